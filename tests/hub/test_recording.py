"""Every form in which a user may hold a recording, read from real sound files on disk."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from na_ssl_hf.hub.recording import is_single_recording, load_recording

RATE = 16000


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4000)).astype(np.float32)


def sound_bytes(samples, file_format="WAV", subtype=None, rate=RATE):
    stream = io.BytesIO()
    soundfile.write(stream, samples.T, rate, format=file_format, subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [("wav", "PCM_16", 1e-4), ("wav", "FLOAT", 0.0), ("wav", "PCM_24", 1e-6), ("flac", "PCM_16", 1e-4)],
)
def test_lossless_files_keep_samples_and_channel_order(tmp_path, samples, suffix, subtype, tolerance):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, samples.T, RATE, subtype=subtype)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        recording = load_recording(source, 8000)
        assert recording.sampling_rate == RATE
        assert recording.samples.dtype == np.float32
        np.testing.assert_allclose(recording.samples, samples, atol=tolerance, rtol=0)


def test_ogg_keeps_channels_apart(tmp_path):
    time = np.arange(RATE) / RATE
    tones = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 1000 * time)]).astype(np.float32) * 0.3
    path = tmp_path / "clip.ogg"
    soundfile.write(path, tones.T, RATE)
    read = load_recording(path, RATE).samples
    assert read.shape == tones.shape
    assert np.abs(np.fft.rfft(read)).argmax(axis=1).tolist() == [440, 1000]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_channels_are_never_mixed_down(tmp_path, channels):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (channels, 3000))
    soundfile.write(tmp_path / "clip.wav", samples.T, RATE)
    assert load_recording(tmp_path / "clip.wav", RATE).samples.shape == (channels, 3000)


def test_dicts_of_every_kind_give_the_same_samples(tmp_path, samples):
    path = tmp_path / "clip.wav"
    path.write_bytes(sound_bytes(samples, subtype="FLOAT"))
    sources = [
        {"array": samples, "sampling_rate": RATE},
        {"array": samples.tolist(), "sampling_rate": RATE},
        {"raw": samples, "sampling_rate": RATE},
        {"array": torch.from_numpy(samples), "sampling_rate": torch.tensor(RATE), "path": "clip.wav"},
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": path.read_bytes(), "path": "elsewhere.wav"},
        {"bytes": None, "path": str(path)},
        {"path": path},
        {"audio": {"bytes": None, "path": str(path)}, "label": "normal"},
        {"audio": str(path)},
        samples,
        torch.from_numpy(samples),
        SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(samples), sample_rate=RATE)),
    ]
    for source in sources:
        recording = load_recording(source, RATE)
        assert recording.sampling_rate == RATE
        np.testing.assert_array_equal(np.asarray(recording.samples, dtype=np.float32), samples)


def test_only_bare_arrays_are_assumed_to_have_the_given_rate(samples):
    assert load_recording(samples, 12345).sampling_rate == 12345
    assert load_recording({"array": samples, "sampling_rate": 44100}, 12345).sampling_rate == 44100
    assert load_recording(sound_bytes(samples, rate=48000), 12345).sampling_rate == 48000


def test_name_says_where_the_samples_came_from(tmp_path, samples):
    path = tmp_path / "clip.wav"
    path.write_bytes(sound_bytes(samples))
    assert load_recording(path, RATE).name == str(path)
    assert load_recording({"bytes": path.read_bytes(), "path": "shard/7.wav"}, RATE).name == "shard/7.wav"
    assert load_recording({"array": samples, "sampling_rate": RATE, "path": "8.wav"}, RATE).name == "8.wav"
    assert "(2, 4000)" in load_recording(samples, RATE).name


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "NoneType"),
        (7, "int"),
        ((np.zeros((2, 9)), RATE), "tuple"),
        ([[0.0], [0.0]], "list"),
        ({}, r"'array', 'bytes', 'path' or 'audio', got keys \[\]"),
        ({"array": np.zeros((2, 9))}, r"'sampling_rate' in Hz, got keys \['array'\]"),
        ({"array": np.zeros((2, 9)), "sampling_rate": "16 kHz"}, "'16 kHz'"),
        ({"array": np.zeros((2, 9)), "sampling_rate": 16000.5}, "16000.5"),
        ({"array": np.zeros((2, 9)), "sampling_rate": float("nan")}, "nan"),
        ({"array": np.zeros((2, 9)), "sampling_rate": [RATE]}, r"\[16000\]"),
        ({"bytes": "RIFF", "path": None}, "'bytes' .* got str"),
        ({"bytes": None, "path": None}, r"got keys \['bytes', 'path'\]"),
        ({"audio": None}, "NoneType"),
    ],
)
def test_what_is_no_recording_is_a_value_error(source, message):
    with pytest.raises(ValueError, match=message):
        load_recording(source, RATE)


def test_missing_foreign_and_truncated_files_are_os_errors_that_name_the_file(tmp_path, samples):
    wav, flac = sound_bytes(samples), sound_bytes(samples, "FLAC")
    contents = {
        "text.wav": b"file,score\n" * 100,
        "empty.wav": b"",
        "header.wav": wav[:30],
        "half.wav": wav[: len(wav) // 2],
        "almost.wav": wav[:-2],
        "half.flac": flac[: len(flac) // 2],
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(OSError, match=name):
            load_recording(path, RATE)
        with pytest.raises(OSError, match=f"{len(content)} bytes"):
            load_recording(content, RATE)
        with pytest.raises(OSError, match=name):
            load_recording({"bytes": content, "path": str(path)}, RATE)
    for missing in (tmp_path / "missing.wav", tmp_path):
        with pytest.raises(FileNotFoundError, match=missing.name):
            load_recording(missing, RATE)


def test_a_wav_of_unknown_length_and_chunks_around_the_samples_are_no_truncation(samples):
    wav = bytearray(sound_bytes(samples, subtype="PCM_16"))
    data = wav.index(b"data")
    odd_chunk = b"note" + (3).to_bytes(4, "little") + b"abc\0"
    with_notes = wav[:data] + odd_chunk + wav[data:] + odd_chunk
    with_notes[4:8] = (len(with_notes) - 8).to_bytes(4, "little")
    piped = wav.copy()
    piped[data + 4 : data + 8] = b"\xff\xff\xff\xff"
    for content in (with_notes, piped):
        np.testing.assert_allclose(load_recording(bytes(content), RATE).samples, samples, atol=1e-4)


def test_one_recording_and_several_are_told_apart(samples):
    for single in ("clip.wav", b"RIFF", {"path": "clip.wav"}, samples, torch.zeros(2, 9), torch.zeros(9)):
        assert is_single_recording(single)
    for several in ([samples], iter([samples]), np.stack([samples] * 3), torch.zeros(3, 2, 9), []):
        assert not is_single_recording(several)
    with pytest.raises(ValueError, match="tuple of 2"):
        is_single_recording((samples, samples))
    for neither in (None, 3):
        with pytest.raises(ValueError, match=type(neither).__name__):
            is_single_recording(neither)
