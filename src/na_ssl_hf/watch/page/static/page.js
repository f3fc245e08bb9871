"use strict";
// The page of a watch. It asks the server once for what there is, and then listens to what is new.

const CLASS_OF_STATE = { ok: "ok", watch: "watch", alarm: "alarm", "sensor fault": "fault" };
const VERDICTS = ["normal", "fault", "ignore"];
const MOST_POINTS = 2000;
let machines = new Map();
let channels = ["close", "far"];
let chosen = null; // the name of the machine in the chart
let columns = null; // its windows, as /api/windows gives them
let chart = null;
let chartMachine = 0; // counts requests, so that a late answer does not replace a newer one

const find = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const timeOf = (seconds) => new Date(1000 * seconds).toLocaleString();
const short = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(3));

function element(tag, text = "", properties = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  Object.assign(made, properties);
  return made;
}

async function ask(address, options) {
  const answer = await fetch(address, options);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error || answer.statusText);
  return content;
}

// Machines

function showMachines() {
  const shown = find("machines");
  for (const machine of machines.values()) {
    let card = shown.querySelector(`[data-machine="${CSS.escape(machine.name)}"]`);
    if (!card) {
      card = element("button", "", { type: "button" });
      card.dataset.machine = machine.name;
      card.addEventListener("click", () => choose(machine.name));
      card.append(element("strong"), element("div", "", { className: "state" }));
      card.append(element("div", "", { className: "health" }), element("div", "", { className: "numbers" }));
      shown.append(card);
    }
    const newest = machine.newest;
    const state = newest ? newest.state : "waiting";
    card.className = `card ${CLASS_OF_STATE[state] || ""}`;
    card.setAttribute("aria-pressed", machine.name === chosen);
    const [name, stateText, health, numbers] = card.children;
    name.textContent = machine.name;
    if (stateText.textContent !== state) stateText.textContent = state;
    health.textContent = newest && newest.health ? newest.health : "";
    numbers.textContent = newest
      ? `score ${short(newest.score)}, threshold ${short(newest.threshold)}, evidence ${short(newest.evidence)} of ` +
        `${short(machine.alarm_evidence)}; close ${short(newest.close_db)} dB, far ${short(newest.far_db)} dB; ` +
        timeOf(newest.unix_time)
      : "no window yet";
  }
}

async function choose(name) {
  chosen = name;
  showMachines();
  const request = ++chartMachine;
  const query = new URLSearchParams({ machine: name, hours: find("span").value });
  const answer = await ask(`/api/windows?${query}`);
  if (request !== chartMachine) return;
  columns = answer;
  showChart();
}

// Score and bands over time

function showChart() {
  const data = [columns.unix_time, columns.score, columns.threshold];
  if (chart) {
    chart.setData(data);
  } else {
    const width = () => Math.max(find("chart").clientWidth, 200);
    const axis = { stroke: () => colour("faint"), grid: { stroke: () => colour("line") }, ticks: { show: false } };
    chart = new uPlot(
      {
        width: width(),
        height: 240,
        series: [
          { value: (_, at) => (at === null ? "–" : timeOf(at)) },
          { label: "score", stroke: () => colour("accent"), width: 1.5, value: (_, v) => short(v) },
          { label: "threshold", stroke: () => colour("alarm"), dash: [6, 4], value: (_, v) => short(v) },
        ],
        axes: [axis, axis],
      },
      data,
      find("chart"),
    );
    new ResizeObserver(() => chart.setSize({ width: width(), height: 240 })).observe(find("chart"));
  }
  showBands();
}

// From dark blue over green to yellow; brightness rises throughout, so that it can be read without colour as well.
const STOPS = [[22, 18, 60], [49, 70, 140], [33, 144, 141], [93, 201, 99], [253, 231, 37]];
function heat(share) {
  const position = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const index = Math.min(Math.floor(position), STOPS.length - 2);
  return STOPS[index].map((from, part) => from + (position - index) * (STOPS[index + 1][part] - from));
}

function paint(canvas, numColumns, numRows, shareAt) {
  canvas.width = numColumns;
  canvas.height = numRows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(numColumns, numRows);
  for (let row = 0; row < numRows; row++) {
    for (let column = 0; column < numColumns; column++) {
      const share = shareAt(row, column);
      const [red, green, blue] = share === null ? [128, 128, 128] : heat(share);
      image.data.set([red, green, blue, 255], 4 * (row * numColumns + column));
    }
  }
  context.putImageData(image, 0, 0);
}

function showBands() {
  const bands = columns.band_scores;
  const first = bands.find((values) => values !== null);
  const canvas = find("bands");
  if (!first) {
    canvas.hidden = true;
    return;
  }
  canvas.hidden = false;
  const all = bands.filter((values) => values !== null).flat().sort((a, b) => a - b);
  const low = all[Math.floor(0.05 * (all.length - 1))];
  const high = all[Math.floor(0.995 * (all.length - 1))];
  const share = (value) => (value - low) / Math.max(high - low, 1e-9);
  const height = first.length;
  paint(canvas, bands.length, height, (row, column) => {
    const value = (bands[column] || [])[height - 1 - row]; // a memory that was fitted anew may have other bands
    return value === undefined ? null : share(value);
  });
}

function addWindows(windows) {
  for (const one of windows) {
    const machine = machines.get(one.machine);
    if (machine) machine.newest = one;
    if (columns && one.machine === chosen && !columns.number.includes(one.number)) {
      for (const name of Object.keys(columns)) columns[name].push(one[name]);
      while (columns.number.length > MOST_POINTS) for (const column of Object.values(columns)) column.shift();
    }
  }
  showMachines();
  if (columns && windows.some((one) => one.machine === chosen)) showChart();
}

// Events

function showEvent(event) {
  const shown = find("events");
  find("no-events").hidden = true;
  let item = shown.querySelector(`[data-event="${event.id}"]`);
  if (!item) {
    item = element("li");
    item.dataset.event = event.id;
    item.dataset.start = event.start;
    item.append(element("div"), element("div"), element("div", "", { className: "actions" }));
    const later = [...shown.children].find((other) => Number(other.dataset.start) <= event.start);
    shown.insertBefore(item, later || null);
    const actions = item.children[2];
    for (const verdict of VERDICTS) {
      const button = element("button", verdict, { type: "button" });
      button.dataset.verdict = verdict;
      button.addEventListener("click", () => giveVerdict(event.id, verdict, button));
      actions.append(button);
    }
    const listen = element("button", "Listen and look", { type: "button" });
    listen.dataset.listen = event.id;
    listen.addEventListener("click", () => openEvent(event.id));
    actions.append(listen);
  }
  item.className = event.kind === "alarm" ? "alarm" : event.kind === "sensor fault" ? "fault" : "watch";
  const [title, detail, actions] = item.children;
  title.replaceChildren(element("span", event.kind, { className: "state" }), ` of ${event.machine}, ${timeOf(event.start)}`);
  title.append(event.end === null ? ", still going on" : ` to ${timeOf(event.end)}`);
  detail.textContent = event.detail;
  for (const button of actions.querySelectorAll("[data-verdict]"))
    button.setAttribute("aria-pressed", button.dataset.verdict === event.verdict);
  actions.querySelector("[data-listen]").hidden = !event.has_sound;
  item.event = event;
}

async function giveVerdict(id, verdict, button) {
  const again = button.getAttribute("aria-pressed") === "true"; // a second click takes it back
  const body = JSON.stringify({ verdict: again ? null : verdict });
  try {
    const answer = await ask(`/api/events/${id}/verdict`, { method: "POST", body, headers: { "Content-Type": "application/json" } });
    const item = find("events").querySelector(`[data-event="${id}"]`);
    showEvent({ ...item.event, verdict: answer.verdict });
    const learned = answer.learned ? "The memory has learned this sound." : "";
    say(answer.error ? `Kept, but not learned: ${answer.error}` : `Kept. ${learned}`);
  } catch (error) {
    say(`Not kept: ${error.message}`);
  }
}

async function openEvent(id) {
  const item = find("events").querySelector(`[data-event="${id}"]`);
  find("event").hidden = false;
  find("event-title").textContent = `${item.event.kind} of ${item.event.machine}, ${timeOf(item.event.start)}`;
  find("event-detail").textContent = item.event.detail;
  const listen = find("listen");
  listen.replaceChildren();
  find("event-title").focus();
  for (const channel of channels) {
    const card = element("div", "", { className: "card" });
    const title = element("h3", `${channel} microphone`);
    if (channel === "cancelled") title.textContent = "close, far microphone cancelled";
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `spectrogram, ${title.textContent}`);
    const sound = element("audio", "", { controls: true, preload: "none", src: `/api/events/${id}/sound?channel=${channel}` });
    const hint = element("p", "", { className: "hint" });
    card.append(title, canvas, hint, sound);
    listen.append(card);
    try {
      const picture = await ask(`/api/events/${id}/spectrogram?channel=${channel}`);
      const levels = Uint8Array.from(atob(picture.levels), (letter) => letter.charCodeAt(0));
      paint(canvas, picture.columns, picture.rows, (row, column) => levels[row * picture.columns + column] / 255);
      hint.textContent = `${Math.round(picture.lowest_hz)} Hz at the bottom, ${Math.round(picture.highest_hz)} Hz at the top (logarithmic), ${picture.seconds.toFixed(1)} s`;
    } catch (error) {
      hint.textContent = error.message;
    }
  }
}

function closeEvent() {
  find("event").hidden = true;
  for (const sound of document.querySelectorAll("audio")) sound.pause();
}

function say(text) {
  find("connection").textContent = text;
}

// Beginning, and what is new

async function load() {
  const answer = await ask("/api/machines");
  channels = answer.channels;
  machines = new Map(answer.machines.map((machine) => [machine.name, machine]));
  showMachines();
  const { events } = await ask("/api/events");
  for (const event of events.reverse()) showEvent(event);
  if (machines.size && (chosen === null || !machines.has(chosen))) chosen = machines.keys().next().value;
  if (chosen !== null) await choose(chosen);
}

function listenToNews() {
  const news = new EventSource("/api/stream");
  news.addEventListener("open", async () => {
    await load(); // what came while there was no connection
    say("Live");
  });
  news.addEventListener("error", () => say("No connection; trying again …"));
  news.addEventListener("windows", (message) => {
    const windows = JSON.parse(message.data);
    if (windows.some((one) => !machines.has(one.machine))) load();
    else addWindows(windows);
  });
  news.addEventListener("events", (message) => JSON.parse(message.data).forEach(showEvent));
}

find("span").addEventListener("change", () => chosen !== null && choose(chosen));
find("close-event").addEventListener("click", closeEvent);
document.addEventListener("keydown", (event) => event.key === "Escape" && closeEvent());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart && chart.redraw(false));
listenToNews();
