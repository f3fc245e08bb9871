"""`na-ssl watch` as a process: sound through a pipe in, lines of JSON out."""

import io
import json
import os
import signal
import subprocess
import sys

import soundfile
from watched_machine import RATE, machine_sound

from na_ssl_hf.cli import main

WINDOW = ["--window", "1", "--hop", "0.5", "--device", "cpu"]


def watch(scorer_folder, source, *options, content=None):
    command = [sys.executable, "-m", "na_ssl_hf.cli", "watch", str(scorer_folder), source, *WINDOW, *options]
    return subprocess.run(command, input=content, capture_output=True, check=False)


def test_a_wav_stream_gives_a_line_for_every_window(scorer_folder):
    stream = io.BytesIO()
    soundfile.write(stream, machine_sound(70, 4.0, rate=48000).T, 48000, format="WAV", subtype="PCM_24")
    done = watch(scorer_folder, "-", content=stream.getvalue())
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["time"] for line in lines] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    for line in lines:
        assert line["state"] in ("ok", "watch", "alarm", "sensor fault")
        assert 0 < line["p_value"] <= 1
        assert isinstance(line["score"], float)
    assert b"the sound has ended: 7 windows" in done.stderr


def test_raw_samples_and_a_file_give_the_same_lines(scorer_folder, tmp_path, capsys):
    samples = machine_sound(71, 2.0).T
    soundfile.write(tmp_path / "sound.wav", samples, RATE, subtype="FLOAT")
    raw = watch(scorer_folder, "-", "--rate", str(RATE), "--format", "f32le", content=samples.tobytes())
    assert main(["watch", str(scorer_folder), str(tmp_path / "sound.wav"), *WINDOW]) == 0
    both = [[json.loads(line)["score"] for line in out.splitlines()] for out in (raw.stdout, capsys.readouterr().out)]
    assert both[0] == both[1]
    assert len(both[0]) == 3


def test_the_watch_ends_well_when_it_is_asked_to_or_its_reader_goes(scorer_folder):
    command = [sys.executable, "-m", "na_ssl_hf.cli", "watch", str(scorer_folder), "-", *WINDOW]
    raw = ["--rate", str(RATE), "--format", "f32le"]
    for end in ("signal", "pipe"):
        process = subprocess.Popen([*command, *raw], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(machine_sound(72, 2.0).T.tobytes())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["time"] == 1.0
        if end == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            process.stdout.close()
            process.stdin.write(machine_sound(73, 2.0).T.tobytes())
            process.stdin.flush()
        assert process.wait(30) == 0
        process.stdin.close()


def test_bad_command_lines_are_one_line_errors(scorer_folder, tmp_path, capsys):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, machine_sound(74, 1.0)[0], RATE)
    for arguments, message in [
        (["nowhere.wav"], "there is no file nowhere.wav"),
        ([str(silent)], "must have two channels"),
        (["-", "--rate", "16000"], "must be given together"),
        ([str(silent), "--false-alarms-per", "often"], "must be a time such as 30d"),
        ([str(silent), "--false-alarms-per", "90000d"], "needs at least"),
        ([str(silent), "--independent-after", "never"], "`--independent-after` must be a time such as 30d"),
        ([str(silent), "--independent-after", "40d"], "`independent_after` must be a number of seconds"),
        ([str(silent), "--hop", "5"], "`hop` must be a number of seconds above 0 and at most 1"),
    ]:
        assert main(["watch", str(scorer_folder), *WINDOW, *arguments]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir(tmp_path) == ["silent.wav"]
