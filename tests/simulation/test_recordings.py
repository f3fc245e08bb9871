import csv
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from na_ssl_hf.data.synthetic.machine_sounds import synthesize_machine
from na_ssl_hf.simulation import simulate_recordings

SETTINGS = {"snr_db": (-5.0, 5.0), "num_rooms": 2, "show_progress": False}


@pytest.fixture
def sounds(tmp_path):
    targets, noises = tmp_path / "targets", tmp_path / "noises"
    for label, severity, gain in (("normal", 0.0, 1.0), ("anomaly", 2.0, 4.0)):
        (targets / label).mkdir(parents=True)
        soundfile.write(targets / label / "a.wav", gain * synthesize_machine("fan", 0, 1.0, severity=severity), 16000)
    wide = synthesize_machine("fan", 1, 1.0, sampling_rate=44100)
    soundfile.write(targets / "normal" / "b.flac", np.stack([wide, np.zeros_like(wide)], axis=1), 44100)
    noises.mkdir()
    for index, kind in enumerate(BACKGROUND_TYPES):
        duration = (0.7, 1.0, 3.0)[index % 3]  # shorter than, as long as and longer than the targets
        suffix, rate = ((".wav", 16000), (".ogg", 22050))[index % 2]
        soundfile.write(noises / f"{kind}{suffix}", synthesize_background(kind, 0, duration, rate), rate)
    return targets, noises, tmp_path / "out"


def _read_all(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.wav")}


def test_layout_manifest_and_format(sounds):
    targets, noises, out = sounds
    manifest = simulate_recordings(targets, noises, out, **SETTINGS)
    names = ["anomaly/a.wav", "normal/a.wav", "normal/b.wav"]
    assert sorted(_read_all(out)) == sorted(f"{tree}/{name}" for tree in ("-5dB", "5dB", "clean") for name in names)
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == set(_read_all(out))
    assert {row["target"] for row in rows} == {"anomaly/a.wav", "normal/a.wav", "normal/b.flac"}
    assert all(len(set(row["noises"].split(";"))) == 4 for row in rows)
    for path in out.rglob("*.wav"):
        header = soundfile.info(path)
        assert (header.channels, header.samplerate, header.frames, header.subtype) == (2, 16000, 16000, "PCM_16")


def test_snr_holds_at_the_close_microphone_and_trees_share_the_room(sounds):
    targets, noises, out = sounds
    simulate_recordings(targets, noises, out, **SETTINGS)
    for name in ("anomaly/a.wav", "normal/b.wav"):
        low, high, clean = (soundfile.read(out / tree / name)[0] for tree in ("-5dB", "5dB", "clean"))
        np.testing.assert_array_equal(clean[:, 0], clean[:, 1])
        # Both mixtures are t + g * n with the same t and n, so their difference is noise alone.
        ratio = 10 ** (10 / 20)
        noise = (low - high) / (1 - 1 / ratio)
        target = low - noise
        snr = 10 * np.log10(np.mean(target**2, axis=0) / np.mean(noise**2, axis=0))
        assert snr[0] == pytest.approx(-5.0, abs=0.1)
        assert snr[1] < snr[0]  # the far microphone hears more of the room
        assert np.corrcoef(target[:, 0], clean[:, 0])[0, 1] > 0.8


def test_same_seed_same_bytes_whatever_else_is_there(sounds):
    targets, noises, out = sounds
    simulate_recordings(targets, noises, out, **SETTINGS)
    before = _read_all(out)
    simulate_recordings(targets, noises, out, overwrite=True, **SETTINGS)
    assert _read_all(out) == before
    (targets / "anomaly" / "z.wav").write_bytes((targets / "anomaly" / "a.wav").read_bytes())
    (targets / "normal" / "b.flac").unlink()
    simulate_recordings(targets, noises, out.with_name("others"), **SETTINGS)
    after = _read_all(out.with_name("others"))
    assert all(after[f"{tree}/anomaly/a.wav"] == before[f"{tree}/anomaly/a.wav"] for tree in ("-5dB", "5dB", "clean"))
    assert after["5dB/anomaly/z.wav"] != before["5dB/anomaly/a.wav"]
    simulate_recordings(targets, noises, out.with_name("seed"), seed=1, **SETTINGS)
    assert _read_all(out.with_name("seed"))["5dB/normal/a.wav"] != before["5dB/normal/a.wav"]


def test_level_match_removes_the_loudness_difference(sounds):
    targets, noises, out = sounds

    def loudness_ratio(folder):
        rms = [np.sqrt(np.mean(soundfile.read(folder / "clean" / c / "a.wav")[0] ** 2)) for c in ("anomaly", "normal")]
        return rms[0] / rms[1]

    simulate_recordings(targets, noises, out, **SETTINGS)
    simulate_recordings(targets, noises, out.with_name("matched"), level_match=True, **SETTINGS)
    assert loudness_ratio(out) > 3
    assert 0.5 < loudness_ratio(out.with_name("matched")) < 2  # rooms differ a little


def test_fewer_than_four_noise_files_must_be_long_enough(sounds):
    targets, noises, out = sounds
    for path in sorted(noises.iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"four crops of 1\.0 s"):
        simulate_recordings(targets, noises, out, **SETTINGS)
    soundfile.write(noises / "long.wav", synthesize_background("clatter", 1, 4.5), 16000)
    manifest = simulate_recordings(targets, noises, out, **SETTINGS)
    assert "long.wav;long.wav;long.wav" in manifest.read_text()


def test_bad_files_are_named(sounds):
    targets, noises, out = sounds
    cases = {
        "silent.wav": (np.zeros(16000), ValueError, "silent"),
        "short.wav": (np.ones(100) * 0.1, ValueError, "at least 0.5 s"),
        "broken.wav": (None, OSError, "cannot be read"),
        "a.flac": (np.ones(16000) * 0.1, ValueError, "two files of one stem"),
    }
    for name, (samples, error, message) in cases.items():
        path = targets / "normal" / name
        if samples is None:
            path.write_bytes(b"RIFF no sound")
        else:
            soundfile.write(path, samples, 16000)
        with pytest.raises(error, match=message) as caught:
            simulate_recordings(targets, noises, out, **SETTINGS)
        assert name in str(caught.value)
        path.unlink()
    not_finite = np.full(16000, np.nan, np.float32)
    soundfile.write(targets / "normal" / "nan.wav", not_finite, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav must hold finite"):
        simulate_recordings(targets, noises, out, **SETTINGS)
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"snr_db": ()}, ValueError, "snr_db"),
        ({"snr_db": (0.0, 0.0)}, ValueError, "snr_db"),
        ({"snr_db": (float("nan"),)}, ValueError, "snr_db"),
        ({"num_rooms": 0}, ValueError, "num_rooms"),
        ({"noise_coherence": -1.0}, ValueError, r"noise_coherence must lie in \[0, 1\], got -1.0"),
        ({"seed": -1}, ValueError, "seed must not be negative"),
        ({"targets_dir": "nowhere"}, OSError, "targets_dir must be a folder"),
        ({"noises_dir": "empty"}, OSError, "noises_dir must hold"),
        ({"out_dir": "targets/out"}, ValueError, "out_dir must not contain targets_dir or lie inside"),
        ({"out_dir": "."}, ValueError, "out_dir must not contain targets_dir"),
    ],
)
def test_bad_settings_are_named(sounds, tmp_path, change, error, message):
    targets, noises, out = sounds
    (tmp_path / "empty").mkdir()
    folders = {"targets_dir": targets, "noises_dir": noises, "out_dir": out}
    change = {key: tmp_path / value if key.endswith("_dir") else value for key, value in change.items()}
    with pytest.raises(error, match=message):
        simulate_recordings(**{**folders, **SETTINGS, **change})
    assert not out.exists()


@pytest.mark.parametrize("place", ["targets", "noises"])
@pytest.mark.parametrize("kind", ["FLAC", "OGG", "RF64", "W64", "AIFF", "AU", "MP3", "WAV"])
def test_truncated_files_of_every_format_are_named(sounds, kind, place):
    targets, noises, out = sounds
    path = (targets / "normal" if place == "targets" else noises) / f"cut.{kind.lower()}"
    soundfile.write(path, synthesize_machine("fan", 3, 4.0), 16000, format=kind)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(OSError, match=rf"cut\.{kind.lower()} .*truncated"):
        simulate_recordings(targets, noises, out, **SETTINGS)
    assert not out.exists()


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 4000])
def test_a_header_that_was_never_finished_is_read_whole_with_a_warning(sounds, caplog, monkeypatch, size):
    targets, noises, out = sounds
    monkeypatch.setattr("na_ssl_hf.hub.sound_reader.logger.propagate", True)
    simulate_recordings(targets, noises, out, **SETTINGS)
    expected = _read_all(out)
    assert not caplog.records
    for path in (targets / "normal" / "a.wav", noises / "ventilation.wav"):
        content = bytearray(path.read_bytes())
        place = content.index(b"data") + 4
        content[place : place + 4] = struct.pack("<I", size)
        path.write_bytes(content)
    simulate_recordings(targets, noises, out, overwrite=True, **SETTINGS)
    assert _read_all(out) == expected
    for name in ("a.wav", "ventilation.wav"):
        warnings = [message for message in caplog.messages if f"{name} has an unfinished header" in message]
        assert len(warnings) == 2  # when it is listed and when it is read, not for every crop


def test_links_hidden_files_and_suffixes_in_capitals(sounds, tmp_path):
    targets, noises, out = sounds
    (targets / "normal" / "a.wav").rename(targets / "normal" / "A.WAV")
    (targets / "normal" / "._A.WAV").write_bytes(b"no sound")
    (tmp_path / "disk").mkdir()
    (targets / "anomaly" / "a.wav").rename(tmp_path / "disk" / "a.wav")
    (targets / "linked").symlink_to(tmp_path / "disk")
    simulate_recordings(targets, noises, out, **SETTINGS)
    assert sorted(path.name for path in (out / "clean").rglob("*.wav")) == ["A.wav", "a.wav", "b.wav"]
    (targets / "normal" / "gone.wav").symlink_to(tmp_path / "gone.wav")
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        simulate_recordings(targets, noises, out, overwrite=True, **SETTINGS)


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_names_in_another_encoding_are_kept(sounds):
    targets, noises, out = sounds
    os.rename(targets / "normal" / "a.wav", os.fsencode(targets / "normal") + "/L\u00fcfter.wav".encode("latin-1"))
    manifest = simulate_recordings(targets, noises, out, **SETTINGS)
    assert b"L\xfcfter.wav" in os.listdir(os.fsencode(out / "clean" / "normal"))
    assert b"clean/normal/L\xfcfter.wav,normal/L\xfcfter.wav," in manifest.read_bytes()


def test_a_kill_leaves_the_old_or_the_new_folder(sounds):
    targets, noises, out = sounds
    settings = {"snr_db": (0.0,), "num_rooms": 1, "show_progress": False}
    contents = []
    for seed in (1, 0):
        simulate_recordings(targets, noises, out, overwrite=True, seed=seed, **settings)
        contents.append(_read_all(out))
    new, old = contents
    # The process kills itself at the n-th call that changes the file system while the folders are exchanged.
    code = f"""
import os, signal, sys
import torch
torch.set_num_threads({torch.get_num_threads()})  # sums, and so the last bits, depend on it
from na_ssl_hf.simulation import simulate_recordings
from na_ssl_hf.hub import whole_files
count = 0
def dying(function):
    def call(*arguments, **keywords):
        global count
        count += 1
        if count == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call
exchange = whole_files._exchange
def dying_exchange(one, other):
    for name in ("rename", "replace", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name)))
    return dying(exchange)(one, other)
whole_files._exchange = dying_exchange
simulate_recordings({str(targets)!r}, {str(noises)!r}, {str(out)!r}, overwrite=True, seed=1, **{settings!r})
"""
    seen = []
    for number in (1, 2):
        process = subprocess.run([sys.executable, "-c", code, str(number)], capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        seen.append(_read_all(out))
        assert seen[-1] in (old, new)
    assert seen[0] == old
    assert seen[-1] == new
    simulate_recordings(targets, noises, out, overwrite=True, **settings)
    assert [path.name for path in out.parent.iterdir() if "staging" in path.name] == []
