"""The page of a watch: what it serves and to whom, and real clicks in a real browser."""

import io
import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from test_messages import wait_until
from watched import RATE, STARTED_AT, event, machine, sound, window

from chromium import headless_chromium
from na_ssl_hf.watch.store import WatchStore

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from na_ssl_hf.watch.page.news import POLL_S
from na_ssl_hf.watch.page.server import MOST_POINTS, PageServer, is_loopback, make_page, parse_address, thinned

ALARM = event(start=5.0)


@pytest.fixture
def store(tmp_path):
    """A pump with an alarm that has ended, and a fan whose far microphone is dead."""
    store = WatchStore(tmp_path / "kept")
    for name in ("pump", "fan <b>2</b>"):
        store.opened(machine(name))
    rng = np.random.default_rng(0)
    for index in range(60):
        bands = list(rng.uniform(0.2, 0.4, 12) + 0.5 * (5 <= index < 40))
        events = (ALARM,) if index == 5 else (replace(ALARM, end=STARTED_AT + 40),) if index == 40 else ()
        state = "alarm" if 5 <= index < 40 else "ok"
        result = window(index, events=events, state=state, score=float(np.mean(bands)), band_scores=bands)
        store.window(result, sound(index))
    store.window(window(0, "fan <b>2</b>", state="sensor fault", health="far microphone is dead"), sound(0))
    return store


@pytest.fixture
def serve(store):
    servers = []

    def start(**options):
        servers.append(PageServer(make_page(store, **options), "127.0.0.1", 0))
        return servers[-1].address.rstrip("/")

    yield start
    for server in servers:
        server.close()


def fetch(address: str, headers=None, body: bytes | None = None, method: str | None = None):
    """`(status, headers, content)`, without following redirections."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_):
            return None

    request = urllib.request.Request(address, data=body, headers=headers or {}, method=method)
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def fetch_json(address: str, **options):
    return json.loads(fetch(address, **options)[2])


def test_what_the_page_asks_for(serve, store):
    page = serve(metrics=lambda: b"na_ssl_score 1\n")
    status, headers, index = fetch(page)
    assert status == 200
    assert b"<title>na-ssl watch</title>" in index
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    found = fetch_json(f"{page}/api/machines")
    assert [one["name"] for one in found["machines"]] == ["fan <b>2</b>", "pump"]
    assert found["channels"] == ["close", "far"]
    chart = fetch_json(f"{page}/api/windows?machine=pump&hours=1")
    assert len(chart["score"]) == len(chart["band_scores"]) == 60
    few = fetch_json(f"{page}/api/windows?machine=pump&hours=0.0028")  # 10 s
    assert len(few["score"]) == 11
    assert fetch_json(f"{page}/api/windows?machine=unknown")["score"] == []
    [told] = fetch_json(f"{page}/api/events?machine=pump")["events"]
    assert told["id"] == ALARM.id
    assert told["has_sound"]
    assert fetch(f"{page}/metrics")[2] == b"na_ssl_score 1\n"
    assert fetch(f"{page}/static/../server.py")[0] == 404
    assert fetch(f"{page}/static/page.js")[0] == 200
    for hours in ("0", "-1", "nan", "x", "1e9"):
        assert fetch(f"{page}/api/windows?machine=pump&hours={hours}")[0] == 400


def test_the_sound_of_an_event_by_channel(serve):
    page = serve(cancel=lambda _machine, sounds, _rate: sounds[0] + sounds[1])  # the far channel is minus the close one
    at = f"{page}/api/events/{ALARM.id}"
    heard = {name: fetch(f"{at}/sound?channel={name}") for name in ("close", "far", "cancelled")}
    samples = {name: soundfile.read(io.BytesIO(content)) for name, (_, _, content) in heard.items()}
    assert {rate for _samples, rate in samples.values()} == {RATE}
    np.testing.assert_allclose(samples["close"][0], -samples["far"][0], atol=1e-4)
    assert np.abs(samples["cancelled"][0]).max() < 1e-4
    picture = fetch_json(f"{at}/spectrogram?channel=close")
    assert picture["seconds"] == pytest.approx(len(samples["close"][0]) / RATE)
    assert fetch(f"{at}/sound?channel=left")[0] == 400
    assert fetch(f"{page}/api/events/0000/sound")[0] == 404
    assert fetch(f"{page}/api/events/..%2F..%2Fwatch/sound")[0] == 404


def test_a_tone_lies_in_its_row_of_the_spectrogram(tmp_path):
    import base64

    from na_ssl_hf.watch.page.event_views import channel_spectrogram

    tone = np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)
    soundfile.write(tmp_path / "tone.flac", np.stack([0.5 * tone, 0 * tone], 1), RATE)
    picture = channel_spectrogram(tmp_path / "tone.flac", "close", None)
    levels = np.frombuffer(base64.b64decode(picture["levels"]), np.uint8)
    loudest = levels.reshape(picture["rows"], picture["columns"]).mean(1).argmax()
    share = 1 - (loudest + 0.5) / picture["rows"]  # row 0 is the highest
    frequency = picture["lowest_hz"] * (picture["highest_hz"] / picture["lowest_hz"]) ** share
    assert frequency == pytest.approx(1000, rel=0.05)


def verdict(page, identity, what, **headers):
    body = json.dumps({"verdict": what}).encode()
    return fetch(f"{page}/api/events/{identity}/verdict", headers=headers, body=body, method="POST")


def test_verdicts_are_kept_and_normal_sounds_learned(serve, store):
    learned = []
    page = serve(learn=lambda name, path: learned.append((name, path)))
    assert verdict(page, ALARM.id, "fault")[0] == 200
    assert learned == []
    assert json.loads(verdict(page, ALARM.id, "normal")[2]) == {"verdict": "normal", "learned": True}
    assert learned == [("pump", store.sounds.path(ALARM.id))]
    assert store.find_event(ALARM.id)["verdict"] == "normal"
    assert verdict(page, ALARM.id, "perhaps")[0] == 400
    assert verdict(page, "0000", "normal")[0] == 400
    assert fetch(f"{page}/api/events/{ALARM.id}/verdict", body=b"no json", method="POST")[0] == 400
    assert fetch(f"{page}/api/events/{ALARM.id}/verdict")[0] == 405


def test_another_site_can_neither_change_nor_read(serve, store):
    page = serve()
    assert verdict(page, ALARM.id, "ignore", Origin="https://evil.example")[0] == 403
    assert verdict(page, ALARM.id, "ignore", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert store.find_event(ALARM.id)["verdict"] is None
    assert verdict(page, ALARM.id, "ignore", Origin=page)[0] == 200
    assert fetch(f"{page}/api/machines", headers={"Host": "evil.example"})[0] == 400  # a name that points here


def test_the_token(serve):
    page = serve(token="s3cret")
    assert fetch(page)[0] == 401
    assert fetch(f"{page}/api/machines")[0] == 401
    assert fetch(f"{page}/static/page.js")[0] == 401
    assert fetch(f"{page}/api/machines", headers={"Authorization": "Bearer wrong"})[0] == 401
    assert fetch(f"{page}/api/machines", headers={"Authorization": "Bearer s3cret"})[0] == 200
    status, headers, _ = fetch(f"{page}/?token=s3cret")
    assert status == 303  # so that the token does not stay in the address
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert fetch(f"{page}/api/machines", headers={"Cookie": cookie.split(";")[0]})[0] == 200


def test_addresses():
    assert parse_address("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert parse_address("[::1]:0") == ("::1", 0)
    for wrong in ("8080", ":8080", "host:", "host:x", "host:70000", "host:-1"):
        with pytest.raises(ValueError, match="--web must be HOST:PORT"):
            parse_address(wrong)
    assert is_loopback("localhost")
    assert is_loopback("127.0.0.2")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("printer.local")


def test_the_store_is_looked_at_once_for_all_visitors_who_leave_in_peace(store, monkeypatch, capfd):
    server = PageServer(make_page(store), "127.0.0.1", 0)
    num_looks, machines = [], store.machines
    monkeypatch.setattr(store, "machines", lambda: num_looks.append(1) or machines())
    heard = [[] for _ in range(6)]

    def visit(lines):
        with urllib.request.urlopen(f"{server.address}api/stream") as stream:
            lines += iter(stream.readline, b"")

    visitors = [threading.Thread(target=visit, args=(lines,)) for lines in heard]
    for visitor in visitors:
        visitor.start()
    wait_until(lambda: all(heard), "six visitors")
    before, began = len(num_looks), time.monotonic()
    store.window(window(80), sound(80))
    wait_until(lambda: all(b"event: windows\n" in lines for lines in heard), "the news")
    time.sleep(1.5)
    assert len(num_looks) - before <= (time.monotonic() - began) / POLL_S + 2
    server.close()
    for visitor in visitors:
        visitor.join(5)
        assert not visitor.is_alive()
    # Each was told of the new window alone, and once.
    told = [[json.loads(line[6:]) for line in lines if line.startswith(b"data: ")] for lines in heard]
    assert all(len(news) == 1 and [one["time"] for one in news[0]] == [82.0] for news in told)
    assert "ERROR" not in capfd.readouterr().err


def test_a_page_for_others_needs_a_token(store):
    with pytest.raises(ValueError, match=r"must have a token, got none for the address 0\.0\.0\.0"):
        make_page(store, "0.0.0.0")
    make_page(store, "0.0.0.0", token="s3cret")


def test_a_port_that_is_taken(store):
    first = PageServer(make_page(store), "127.0.0.1", 0)
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{first.port}"):
        PageServer(make_page(store), "127.0.0.1", first.port)
    first.close()


def test_thinned_charts_keep_their_peaks():
    rows = [{"score": float(index == 12_345)} for index in range(50_000)] + [{"score": None}]
    fewer = thinned(rows, MOST_POINTS)
    assert len(fewer) == MOST_POINTS
    assert max(row["score"] for row in fewer) == 1.0
    assert thinned(rows[:10], MOST_POINTS) == rows[:10]


@pytest.fixture
def browser():
    with headless_chromium() as opened:
        yield opened


def test_the_page_in_a_browser(serve, store, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(serve(cancel=lambda _machine, sounds, _rate: sounds[0]))
    page.get_by_text("Live").wait_for()
    cards = page.locator("#machines button")
    assert cards.count() == 2
    assert "far microphone is dead" in cards.nth(0).inner_text()
    assert "fan <b>2</b>" in cards.nth(0).inner_text()  # names are text, never markup
    cards.nth(1).click()
    page.locator("#machines button[aria-pressed=true]", has_text="pump").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # fits on a phone
    page.get_by_role("button", name="Listen and look").click()
    page.locator("#listen .hint", has_text="Hz").nth(2).wait_for()  # three spectrograms are painted
    heard = page.evaluate(
        """async () => {
            const sound = document.querySelector("audio");
            const known = new Promise((done) => sound.addEventListener("loadedmetadata", done));
            sound.load();
            await known;
            return sound.duration;
        }"""
    )
    assert heard > 5
    page.keyboard.press("Escape")
    assert page.locator("#event").is_hidden()
    # By keyboard alone: to the verdict of the event, and press it.
    page.get_by_role("button", name="fault", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator("button[data-verdict=fault][aria-pressed=true]").wait_for()
    assert store.find_event(ALARM.id)["verdict"] == "fault"
    # What is new comes by itself.
    second = event(start=70.0)
    store.window(window(70, state="alarm", events=(second,)), sound(70))
    page.locator(f"li[data-event='{second.id}']").wait_for()
    page.locator("#machines .alarm", has_text="pump").wait_for()
    assert problems == []
