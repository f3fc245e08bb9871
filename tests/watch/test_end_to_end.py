"""An hour of a machine that breaks while it is watched: pipe, broker, webhook, store, page, and a kill in between."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import soundfile
import torch
from test_messages import MosquittoBroker, Receiver, needs_broker, of_topic, wait_until
from watched_machine import RATE, machine_sound

from benchmarks.watch_soak import small_scorer
from chromium import CHROMIUM, headless_chromium
from na_ssl_hf.cli import main
from na_ssl_hf.watch.alarm_rule import MOST_WINDOWS
from na_ssl_hf.watch.store import WatchStore

WINDOW = 10  # s
HOUR = 3600
FAULT_BEGINS, FAULT_ENDS = 1800, 2300  # s
KILLED_AT, LOOKED_AT = 2000, 2200  # s, while the fault lasts
# The clearest fault is an alarm within so many windows, or the promise would have asked for more normal recordings.
LATEST_ALARM = FAULT_BEGINS + MOST_WINDOWS * WINDOW
OPTIONS = ["--device", "cpu", "--name", "pump", "--hop", str(WINDOW), "--false-alarms-per", "30d"]
OPTIONS += ["--rate", str(RATE), "--format", "f32le"]


@pytest.fixture(scope="module")
def cheap_scorer(tmp_path_factory):
    """A scorer of 24 recordings of a window each, of a random model that is small enough for an hour of sound."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hour") / "scorer"
    small_scorer(folder, [machine_sound(index, WINDOW) for index in range(24)], max_time_patches=64)
    return folder


def sound(second: int) -> bytes:
    """A window of the machine that begins at `second` of the hour, raw samples."""
    fault = 0.1 * (FAULT_BEGINS <= second < FAULT_ENDS)
    return machine_sound(1000 + second, WINDOW, fault=fault).T.tobytes()


class Watch:
    """A running `na-ssl watch`, and what it has printed."""

    def __init__(self, scorer_folder, *options):
        command = [sys.executable, "-m", "na_ssl_hf.cli", "watch", str(scorer_folder), "-", *OPTIONS, *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.lines: list[dict] = []
        self.told = ""
        self._readers = [threading.Thread(target=self._read_lines), threading.Thread(target=self._read_told)]
        for reader in self._readers:
            reader.start()

    def _read_lines(self):
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def _read_told(self):
        for line in self.process.stderr:
            self.told += line.decode()

    def hear(self, first: int, last: int):
        for second in range(first, last, WINDOW):
            self.process.stdin.write(sound(second))
        self.process.stdin.flush()

    def end(self, how: int | None = None) -> int:
        if how is None:
            self.process.stdin.close()
        else:
            self.process.send_signal(how)
        code = self.process.wait(300)
        for reader in self._readers:
            reader.join()
        return code


@needs_broker
def test_a_fault_within_an_hour_is_told_once_everywhere_although_the_watch_is_killed(cheap_scorer, tmp_path):
    pytest.importorskip("paho.mqtt.client")
    pytest.importorskip("uvicorn")
    broker, receiver = MosquittoBroker(tmp_path), Receiver()
    heard = broker.listen()
    where = ["--store", str(tmp_path / "kept"), "--web", "127.0.0.1:0", "--mqtt", f"127.0.0.1:{broker.port}"]
    where += ["--webhook", f"http://127.0.0.1:{receiver.port}/alarm"]
    first = Watch(cheap_scorer, *where)
    first.hear(0, KILLED_AT)
    wait_until(lambda: len(first.lines) == KILLED_AT // WINDOW, "the windows before the kill", 300)
    wait_until(lambda: receiver.received, "the webhook")
    wait_until(lambda: of_topic(heard, "na-ssl/pump/event"), "the message")
    first.end(signal.SIGKILL)
    begun = [line["time"] for line in first.lines if line["state"] == "alarm"]
    assert FAULT_BEGINS < begun[0] <= LATEST_ALARM
    assert begun == list(range(int(begun[0]), KILLED_AT + 1, WINDOW))
    kept = WatchStore(tmp_path / "kept")
    num_kept = len(kept.windows("pump"))
    assert num_kept >= len(first.lines) - 1  # at most one window is lost

    second = Watch(cheap_scorer, *where)
    second.hear(KILLED_AT, LOOKED_AT)
    wait_until(lambda: len(second.lines) == (LOOKED_AT - KILLED_AT) // WINDOW, "the windows after the kill", 300)
    assert {line["state"] for line in second.lines} == {"alarm"}
    _look(re.search(r"the page is at (\S+)", second.told)[1])
    second.hear(LOOKED_AT, HOUR)
    assert second.end() == 0, second.told
    assert (second.lines[-1]["time"], second.lines[-1]["state"]) == (HOUR - KILLED_AT, "ok")
    assert len(kept.windows("pump")) == num_kept + (HOUR - KILLED_AT) // WINDOW

    [alarm] = kept.events()
    assert (alarm["machine"], alarm["kind"]) == ("pump", "alarm")
    assert alarm["end"] is not None
    assert alarm["has_sound"]
    for told in (receiver.contents(), [json.loads(text) for text in of_topic(heard, "na-ssl/pump/event")]):
        assert [content["phase"] for content in told] == ["begin", "end"]
        assert {content["id"] for content in told} == {alarm["id"]}
    assert kept.unsent_messages(f"webhook http://127.0.0.1:{receiver.port}/alarm") == []
    receiver.close()
    broker.kill()


def _look(address: str):
    """The alarm is on the page, where there is a browser."""
    if CHROMIUM is None:
        return
    with headless_chromium() as browser:
        page = browser.new_page()
        page.goto(address)
        page.locator("#events li.alarm", has_text="pump").wait_for()
        page.locator("#machines .alarm", has_text="pump").wait_for()
        page.get_by_role("button", name="Listen and look").click()
        page.locator("#listen .hint", has_text="Hz").nth(1).wait_for()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--web", "127.0.0.1:0"], "--web must go with --store FOLDER"),
        (["--store", "KEPT", "--web", "0.0.0.0:0"], "must have a token"),
        (["--store", "KEPT", "--web", "8080"], "--web must be HOST:PORT"),
        (["--store", "KEPT", "--webhook", "host/x"], "a webhook must have an address"),
        (["--store", "KEPT", "--mqtt", "host:x"], "--mqtt must be HOST or HOST:PORT"),
        (["--store", "KEPT", "--web", "127.0.0.1:0", "--web-token-file", "absent"], "absent"),
    ],
)
def test_outputs_that_are_wrong_are_named(scorer_folder, tmp_path, options, message, capsys):
    soundfile.write(tmp_path / "sound.wav", machine_sound(0, 2.0).T, RATE)
    options = [str(tmp_path / "kept") if option == "KEPT" else option for option in options]
    assert main(["watch", str(scorer_folder), str(tmp_path / "sound.wav"), "--device", "cpu", *options]) != 0
    assert message in capsys.readouterr().err
