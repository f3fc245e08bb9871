"""The page of `na-ssl app`: real clicks in a real browser, and what is kept from whom."""

import contextlib
import csv
import io
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from watched_machine import RATE, machine_sound

from chromium import headless_chromium
from na_ssl_hf.cli import main

pytest.importorskip("gradio")

from na_ssl_hf.app import steps
from na_ssl_hf.app.page import page_options
from na_ssl_hf.app.serving import served_page

TOKEN = "s3cret"
SCORE = "#score"
# The room does not hear the fault.
WHINE = machine_sound(101, 1.0)
WHINE[0] += 0.1 * np.sin(2 * np.pi * 1500 * np.arange(RATE) / RATE)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Twenty normal recordings of 1 s, three to judge, and three that nobody can judge."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sounds")

    def write(name, samples, rate=RATE):
        soundfile.write(folder / name, samples.T, rate)
        return folder / name

    (folder / "no sound.wav").write_text("no sound at all")
    return {
        "normals": [write(f"normal_{index:02d}.wav", machine_sound(index, 1.0)) for index in range(20)],
        "tests": [
            write("well.wav", machine_sound(100, 1.0)),
            write("whine.wav", WHINE),
        ],
        "mono": write("mono.wav", machine_sound(1, 1.0)[:1]),
        "other rate": write("other rate.wav", machine_sound(2, 1.0, rate=8000), 8000),
        "bad": [
            folder / "no sound.wav",
            write("short.wav", machine_sound(3, 0.01)),
        ],
    }


@pytest.fixture(scope="module")
def address():
    with served_page(token=TOKEN, device="cpu", largest_upload_mb=24) as address:
        yield address


def fetch(address, **options):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **options), timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_nobody_without_the_token_reaches_the_page(address):
    assert fetch(address)[0] == 401
    assert fetch(f"{address}gradio_api/upload", data=b"")[0] == 401
    status, headers, content = fetch(address, headers={"Authorization": f"Bearer {TOKEN}"})
    assert status == 200
    assert b"How anomalous does a machine sound?" in content
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    with (
        pytest.raises(ValueError, match=r"must have a token, got none for the address 0\.0\.0\.0"),
        served_page("0.0.0.0"),
    ):
        pass


@pytest.mark.parametrize(("size", "status"), [(500_000, 200), (25_500_000, 413)])
def test_uploads_have_a_limit(address, size, status):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "multipart/form-data; boundary=x"}
    body = head + bytes(size) + b"\r\n--x--\r\n"
    assert fetch(f"{address}gradio_api/upload", data=body, headers=headers)[0] == status


def test_a_limit_must_leave_room():
    with pytest.raises(ValueError, match="`largest_upload_mb` must be at least 1, got 0"):
        page_options(0)


@pytest.fixture(scope="module")
def browser():
    with headless_chromium() as opened:
        yield opened


class Visitor:
    """A visitor with a browser of their own, who notes what the page asks for and complains about."""

    def __init__(self, browser, address, **options):
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(60_000)  # of a machine that is busy with other tests
        self.asked, self.problems = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda line: self.problems.append(line.text) if line.type == "error" else None)
        self.page.goto(f"{address}?token={TOKEN}")
        self.page.locator(SCORE).wait_for()

    def upload(self, name, files):
        self.page.locator(f"#{name} input[type=file]").set_input_files(files)
        self.page.locator(f"#{name} tr.file").nth(len(files) - 1).wait_for()

    def told(self, name, kind):
        told = self.page.locator(f"#{name} {kind}").first
        told.wait_for()
        return told.inner_text()

    def table(self):
        self.page.locator("#scores table").wait_for()
        rows = "table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent))"
        return self.page.locator("#scores table").evaluate(rows)

    def download(self, selector):
        with self.page.expect_download() as told:
            self.page.locator(selector).click()
        return told.value.path()


@pytest.fixture(scope="module")
def engineer(browser, address, sounds):
    """A visitor with a phone in dark mode who has fitted, by keyboard, and scored."""
    visitor = Visitor(browser, address, viewport={"width": 390, "height": 800}, color_scheme="dark")
    visitor.upload("normals", sounds["normals"])
    visitor.page.get_by_text("Settings").click()
    visitor.page.locator("#far input").click()
    visitor.page.get_by_role("option", name="least squares").click()
    visitor.page.locator("#log-mel input").check()
    visitor.page.get_by_role("button", name="Settings").focus()
    for _ in range(30):  # by keyboard alone from here to the button
        visitor.page.keyboard.press("Tab")
        if visitor.page.evaluate("document.activeElement.closest('#fit') !== null"):
            break
    assert visitor.page.get_by_role("option").count() == 0  # lists on the way are closed again
    visitor.page.keyboard.press("Enter")
    visitor.fitted = visitor.told("scorer-told", "p")
    visitor.upload("tests", [*sounds["tests"], sounds["mono"], sounds["other rate"], *sounds["bad"]])
    visitor.page.locator(SCORE).click()
    visitor.scores = visitor.table()
    visitor.page.locator("#pictures img").nth(1).wait_for()
    return visitor


def test_the_table_has_scores_decisions_and_what_is_wrong(engineer):
    assert "20 normal recordings, threshold" in engineer.fitted
    head, *rows = engineer.scores
    assert head == ["file", "score", "p-value", "decision", "log-mel p-value"]
    cells = {row[0]: row[1:] for row in rows}
    assert list(cells)[:2] == ["whine.wav", "well.wav"]  # the highest score first
    assert cells["whine.wav"][2] == "anomalous"
    assert cells["well.wav"][2] == "normal"
    assert cells["whine.wav"][3] == "0.0476"  # 1 of 21: no normal recording is as far away
    assert float(cells["well.wav"][3]) > 0.1
    assert float(cells["whine.wav"][0]) > float(cells["well.wav"][0])
    assert "must have two channels" in cells["mono.wav"][0]
    assert "must have the sampling rate of the normal ones" in cells["other rate.wav"][0]
    assert "cannot be read as a sound file" in cells["no sound.wav"][0]
    assert "must have at least 400 samples" in cells["short.wav"][0]
    assert "na-ssl-app-" not in str(rows)  # no paths of this computer


def test_pictures_and_sounds_of_a_recording(engineer):
    page = engineer.page
    assert page.locator("#pictures p").inner_text() == "whine.wav"
    pictures = page.locator("#pictures img")
    assert pictures.nth(0).get_attribute("alt").startswith("Anomaly map of whine.wav: largest distance")
    assert pictures.nth(1).get_attribute("alt").startswith("Spectrograms of whine.wav")
    assert all(pictures.nth(index).evaluate("one => one.naturalWidth > 100") for index in range(2))
    levels = {}
    for name in ("close", "far", "cancelled"):
        address = page.locator(f"#{name} a[download]").get_attribute("href")
        samples, rate = soundfile.read(io.BytesIO(page.request.get(address).body()))
        assert (len(samples), rate) == (RATE, RATE)
        levels[name] = float(np.std(samples))
    assert levels["close"] == pytest.approx(float(np.std(WHINE[0])), rel=1e-3)
    assert levels["far"] == pytest.approx(float(np.std(WHINE[1])), rel=1e-3)
    assert 0.05 < levels["cancelled"] < 0.9 * levels["close"]  # the hum, which the far microphone hears, is gone
    page.locator("#close").get_by_role("button", name="Play", exact=True).click()
    page.locator("#close time", has_text="0:01").first.wait_for()  # it was heard to the end
    page.locator("#choice input").click()
    page.get_by_role("option", name="well.wav").click()
    page.locator("#pictures p", has_text="well.wav").wait_for()


def test_the_page_fits_on_a_phone_and_asks_nobody_else(engineer, address):
    assert engineer.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    elsewhere = [url for url in engineer.asked if not url.startswith((address, "data:", "blob:"))]
    assert len(engineer.asked) > 10
    assert elsewhere == []
    assert engineer.problems == []


def test_the_downloaded_scorer_scores_alike_elsewhere(engineer, sounds, browser, address, tmp_path):
    archive, table = engineer.download("#keep"), engineer.download("#csv")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path)
    files = [str(file) for file in sounds["tests"]]
    assert main(["score", str(tmp_path / "scorer"), *files, "--csv", str(tmp_path / "own.csv"), "--device", "cpu"]) == 0
    own, page = (list(csv.DictReader(file.read_text().splitlines())) for file in (tmp_path / "own.csv", table))
    for ours, theirs in zip(own, page[:2], strict=True):
        assert theirs["file"] == ours["file"].rpartition("/")[2]
        for column in ("score", "threshold", "p_value"):
            assert float(theirs[column]) == pytest.approx(float(ours[column]), rel=1e-5)
        assert theirs["is_anomaly"] == ours["is_anomaly"]

    # Another visitor sees nothing of the first one, until the scorer is given to them.
    other = Visitor(browser, address)
    other.page.locator(SCORE).click()
    assert (
        other.told("scores", ".problem") == "a scorer must be fitted or loaded before recordings are scored, got none"
    )
    other.page.locator("#fit").click()
    assert "normal recordings must be uploaded" in other.told("scorer-told", ".problem")
    other.page.get_by_role("tab", name="A fitted scorer").click()
    shutil.copy(archive, tmp_path / "scorer.zip")
    other.upload("archive", [tmp_path / "scorer.zip"])
    other.page.locator("#load").click()
    other.page.locator("#scorer-told p", has_text="20 normal recordings").wait_for()
    other.upload("tests", sounds["tests"])
    other.page.locator(SCORE).click()
    assert other.table() == [row[:4] for row in engineer.scores[:3]]  # log-mel statistics are no part of a scorer


def test_a_click_right_after_an_answer_is_answered_too(browser, address):
    for _ in range(3):
        visitor = Visitor(browser, address)
        visitor.page.locator(SCORE).click()
        visitor.told("scores", ".problem")
        visitor.page.locator("#fit").click()
        assert "normal recordings must be uploaded" in visitor.told("scorer-told", ".problem")


def test_what_cannot_be_fitted_is_told(sounds):
    settings = steps.FitSettings("na-beats-tiny")
    for wrong, message in (
        ("mono", "must have two channels"),
        ("other rate", "the normal ones, 16000 Hz, got 8000 Hz"),
    ):
        with pytest.raises(ValueError, match=message):
            steps.fit_scorer([*sounds["normals"][:2], sounds[wrong]], [], settings, "cpu")
    with pytest.raises(ValueError, match="`machine_off` must go with far_cancellation"):
        steps.fit_scorer(sounds["normals"][:2], sounds["tests"][:1], settings, "cpu")


def test_log_mel_statistics_are_those_of_the_benchmarks(sounds):
    from na_ssl_hf.evaluation.systems.embedders import log_mel_embedder
    from na_ssl_hf.evaluation.systems.machine_scores import fit_and_score

    settings = steps.FitSettings("na-beats-tiny", "least_squares", with_log_mel=True)
    fitted = steps.fit_scorer(sounds["normals"], [], settings, "cpu")
    embedder = log_mel_embedder("least_squares")
    embedded = [embedder.embed(files) for files in (sounds["normals"], sounds["tests"])]
    _normal_scores, scores, _band_scores = fit_and_score(
        embedder.bank(), *embedded, ["source"] * len(sounds["normals"])
    )
    assert [fitted.log_mel.of(file)["score"] for file in sounds["tests"]] == pytest.approx(list(scores), rel=1e-5)


def test_a_long_recording_is_shown_where_it_is_worst(sounds, tmp_path):
    settings = steps.FitSettings("na-beats-tiny", "installation", layer=2)
    fitted = steps.fit_scorer(sounds["normals"][:6], sounds["normals"][6:10], settings, "cpu")
    assert fitted.scorer.far_microphone.method == "installation"
    fitted.scorer.fit(sounds["normals"][:6], window=0.5, hop=0.25, progress=None)
    soundfile.write(tmp_path / "long.wav", np.concatenate([machine_sound(50, 2.0), WHINE], axis=1).T, RATE)
    scored = steps.score_files(fitted, [tmp_path / "long.wav"])
    view = steps.look_at(fitted.scorer, scored, 0, tmp_path)
    worst = scored.results[0]["worst_window"]
    assert worst["start"] >= 1.75
    assert view.title == f"long.wav, its worst window, {worst['start']:.1f} to {worst['end']:.1f} s"
    samples, _rate = soundfile.read(io.BytesIO(view.sounds["close"]))
    assert len(samples) == RATE // 2
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


def test_archives_of_others(tmp_path):
    cases = {
        "no archive": (b"text", OSError, "cannot be unpacked"),
        "no scorer": ({"a.txt": b""}, ValueError, "must hold a folder that `na-ssl fit` wrote"),
        "outside": ({"../config.json": b"{}"}, ValueError, "a path that leads upwards"),
        "no model": ({"scorer/config.json": b"{}"}, OSError, r"scorer\.zip cannot be loaded"),
    }
    for content, error, message in cases.values():
        archive = tmp_path / "scorer.zip"
        if isinstance(content, bytes):
            archive.write_bytes(content)
        else:
            with zipfile.ZipFile(archive, "w") as opened:
                for name, data in content.items():
                    opened.writestr(name, data)
        with pytest.raises(error, match=message):
            steps.unpack_scorer(archive, tmp_path, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.zip"]


def test_the_command_serves_until_it_is_told_to_end_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen = []

    def visit():
        try:
            while not seen:
                with contextlib.suppress(urllib.error.URLError):
                    seen.append(fetch(f"http://127.0.0.1:{port}/")[0])
                time.sleep(0.1)
            seen.append(fetch(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example"})[0])
            seen.extend(path.name[:11] for path in tmp_path.iterdir())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        assert main(["app", "--port", str(port), "--device", "cpu"]) == 0
    finally:
        visitor.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert seen == [200, 400, "na-ssl-app-"]
    assert f"Open http://127.0.0.1:{port}/" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 1
    assert "pip install 'na-ssl-hf[app]'" in capsys.readouterr().err


def test_wrong_options_of_the_command(capsys):
    for options, message in (
        (["--port", "70000"], "--port must be in 0 ... 65535, got 70000"),
        (["--max-upload", "0"], "--max-upload must be at least 1, got 0"),
        (["--host", "0.0.0.0"], "must have a token, got none for the address 0.0.0.0"),
        (["--model", "./nowhere"], "no checkpoint directory ./nowhere"),
    ):
        assert main(["app", *options]) == 1
        assert message in capsys.readouterr().err
