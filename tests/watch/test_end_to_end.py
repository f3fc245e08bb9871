"""A machine that breaks while it is watched: pipe, broker, webhook, store and page, with a kill in between."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from test_messages import MosquittoBroker, Receiver, needs_broker, of_topic, wait_until
from test_page import CHROMIUM
from watched_machine import RATE, machine_sound

from na_ssl_hf.cli import main
from na_ssl_hf.watch.store import WatchStore

FAULT_BEGINS = 120.0  # s
SECONDS = 180
OPTIONS = ["--window", "1", "--hop", "1", "--device", "cpu", "--name", "pump", "--shortest-alarm", "5"]
OPTIONS += ["--rate", str(RATE), "--format", "f32le", "--false-alarms-per", "1h"]


def sound(first: int, last: int) -> bytes:
    """The seconds `first` to `last` of the machine, raw samples."""
    parts = [machine_sound(1000 + second, 1.0, fault=0.1 * (second >= FAULT_BEGINS)) for second in range(first, last)]
    return np.concatenate(parts, axis=1).T.tobytes()


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
        for second in range(first, last):
            self.process.stdin.write(sound(second, second + 1))
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
def test_a_fault_is_told_once_everywhere_although_the_watch_is_killed(scorer_folder, tmp_path):
    pytest.importorskip("paho.mqtt.client")
    pytest.importorskip("uvicorn")
    broker, receiver = MosquittoBroker(tmp_path), Receiver()
    heard = broker.listen()
    where = ["--store", str(tmp_path / "kept"), "--web", "127.0.0.1:0", "--mqtt", f"127.0.0.1:{broker.port}"]
    where += ["--webhook", f"http://127.0.0.1:{receiver.port}/alarm"]
    first = Watch(scorer_folder, *where)
    first.hear(0, 60)
    wait_until(lambda: len(first.lines) >= 59, "59 windows")
    first.end(signal.SIGKILL)
    kept = WatchStore(tmp_path / "kept")
    num_kept = len(kept.windows("pump"))
    assert num_kept >= len(first.lines) - 1  # at most one window is lost
    second = Watch(scorer_folder, *where)
    second.hear(60, SECONDS)
    wait_until(lambda: any(row["kind"] == "alarm" for row in kept.events()), "the alarm")
    wait_until(lambda: receiver.received, "the webhook")
    wait_until(lambda: of_topic(heard, "na-ssl/pump/event"), "the message")
    address = re.search(r"the page is at (\S+)", second.told)[1]
    _look(address)
    assert second.end() == 0, second.told
    assert second.lines[-1]["time"] == SECONDS - 60

    [alarm] = kept.events()
    assert (alarm["machine"], alarm["kind"]) == ("pump", "alarm")
    assert alarm["has_sound"]
    firsts = [window for window in kept.windows("pump") if window["state"] == "alarm"]
    begun = firsts[0]["time"]  # in the second stream, which began at 60 s
    assert FAULT_BEGINS - 60 < begun <= FAULT_BEGINS - 60 + 30
    assert len(kept.windows("pump")) == num_kept + SECONDS - 60
    for told in (receiver.contents(), [json.loads(text) for text in of_topic(heard, "na-ssl/pump/event")]):
        phases = [content["phase"] for content in told]
        assert phases[:1] == ["begin"]
        assert len(phases) == len(set(phases))
        assert {content["id"] for content in told} == {alarm["id"]}
    assert kept.unsent_messages(f"webhook http://127.0.0.1:{receiver.port}/alarm") == []
    receiver.close()
    broker.kill()


def _look(address: str):
    """The alarm is on the page, where there is a browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        return
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.locator("#events li.alarm", has_text="pump").wait_for()
        page.locator("#machines .alarm", has_text="pump").wait_for()
        page.get_by_role("button", name="Listen and look").click()
        page.locator("#listen .hint", has_text="Hz").nth(1).wait_for()
        browser.close()


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
