"""Sources: what comes through a pipe, from a file or from a folder is what was recorded."""

import io
import os
import struct
import threading
import time

import numpy as np
import pytest
import soundfile

from na_ssl_hf.watch.device_sources import NetworkStream, SoundCard
from na_ssl_hf.watch.folder_source import DroppedFiles
from na_ssl_hf.watch.pipe_source import Pipe
from na_ssl_hf.watch.sources import RecordedFile, open_source

SAMPLES = np.random.default_rng(0).uniform(-0.9, 0.9, (3001, 2)).astype(np.float32)


def joined(source) -> np.ndarray:
    return np.concatenate([block.samples for block in source.blocks()], axis=1)


def wav(subtype: str = "PCM_16", rate: int = 16000, samples: np.ndarray = SAMPLES) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_wav_stream_is_decoded_as_soundfile_decodes_the_file(subtype):
    content = wav(subtype)
    wanted, _ = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(joined(Pipe(io.BytesIO(content))), wanted.T)


@pytest.mark.parametrize(
    ("sample_format", "subtype"), [("s16le", "PCM_16"), ("s24le", "PCM_24"), ("s32le", "PCM_32"), ("f32le", "FLOAT")]
)
def test_raw_samples_are_decoded_as_soundfile_decodes_them(sample_format, subtype):
    stream = io.BytesIO()
    soundfile.write(stream, SAMPLES, 16000, format="RAW", subtype=subtype, endian="LITTLE")
    stream.seek(0)
    wanted, _ = soundfile.read(
        stream, dtype="float32", format="RAW", subtype=subtype, samplerate=16000, channels=2, endian="LITTLE"
    )
    stream.seek(0)
    np.testing.assert_array_equal(joined(Pipe(stream, 16000, sample_format)), wanted.T)


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_header_that_does_not_know_the_length_is_read_to_the_end(size):
    content = bytearray(wav())
    content[content.index(b"data") + 4 : content.index(b"data") + 8] = struct.pack("<I", size)
    assert joined(Pipe(io.BytesIO(bytes(content)))).shape == (2, 3001)


def test_chunks_behind_the_samples_are_no_sound():
    content = wav() + b"LIST" + struct.pack("<I", 400) + bytes(400)
    assert joined(Pipe(io.BytesIO(content))).shape == (2, 3001)


def test_blocks_are_those_of_the_pipe_whatever_its_pieces():
    read_end, write_end = os.pipe()
    content = wav()

    def write() -> None:
        with os.fdopen(write_end, "wb", buffering=0) as file:
            for start in range(0, len(content), 501):
                file.write(content[start : start + 501])

    threading.Thread(target=write).start()
    with os.fdopen(read_end, "rb") as file:
        assert joined(Pipe(file)).shape == (2, 3001)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(samples=SAMPLES[:, :1]), "must have two channels.*has 1.*one stereo device"),
        (wav("PCM_U8"), "must be a WAV stream of s16le.* 8 bits"),
        (b"ID3 and something else", "WAV stream, or raw samples"),
    ],
)
def test_a_stream_of_another_kind_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        joined(Pipe(io.BytesIO(content)))


def test_a_stream_that_ends_within_its_header_is_an_error():
    with pytest.raises(OSError, match="within the header"):
        joined(Pipe(io.BytesIO(wav()[:30])))


def test_a_live_pipe_is_told_from_a_replay():
    class Slow(io.BytesIO):
        def read1(self, size=-1):
            time.sleep(0.05)
            return super().read1(1600 * 4)  # 0.1 s

    samples = np.zeros((48000, 2))
    live = Pipe(Slow(wav(samples=samples)[:44] + wav(samples=samples)[44:]))
    replayed = Pipe(io.BytesIO(wav(samples=samples)))
    joined(live)
    joined(replayed)
    assert live.is_live
    assert not replayed.is_live


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("-", {"rate": 16000}, "given together"),
        ("-", {"rate": 10, "sample_format": "s16le"}, "at least 1000 Hz"),
        ("device:no such card", {}, "known sound card|apt install libportaudio2"),
        (".", {"rate": 16000}, "says its own"),
        (".", {"sample_format": "s16le"}, "must go with the source -"),
        ("-", {"speed": 2.0}, "recorded file"),
        ("", {}, "must be -, a file"),
    ],
)
def test_sources_that_mean_nothing_are_refused(text, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(text, **options)


def test_a_missing_file_is_an_error():
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        open_source("nowhere.wav")


def test_a_recorded_file_is_given_at_the_asked_speed(tmp_path):
    path = tmp_path / "file.wav"
    path.write_bytes(wav(samples=np.zeros((16000, 2))))
    began = time.monotonic()
    assert joined(RecordedFile(path, speed=5.0)).shape == (2, 16000)
    assert time.monotonic() - began >= 0.2


def test_files_of_a_folder_come_once_each_in_order_and_bad_ones_are_passed_over(tmp_path, caplog):
    for index, age in enumerate([30, 20, 10]):
        path = tmp_path / f"{9 - index}.wav"
        path.write_bytes(wav(samples=np.full((100, 2), (1 + index) / 8)))
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "mono.wav").write_bytes(wav(samples=SAMPLES[:, :1]))
    os.utime(tmp_path / "mono.wav", (time.time() - 5,) * 2)
    (tmp_path / "notes.txt").write_text("no sound")
    source = DroppedFiles(tmp_path, forever=False)
    blocks = list(source.blocks())
    assert [block.samples[0, 0] for block in blocks] == [1 / 8, 2 / 8, 3 / 8]
    assert all(block.begins for block in blocks)
    assert "mono.wav is passed over" in caplog.text
    later = DroppedFiles(tmp_path, after=time.time() - 15, forever=False)
    assert [block.samples[0, 0] for block in later.blocks()] == [3 / 8]


def test_a_file_that_is_dropped_later_comes_when_it_is_whole(tmp_path):
    source = DroppedFiles(tmp_path)
    content = wav(samples=np.full((16000, 2), 0.25))
    blocks = source.blocks()

    def drop() -> None:
        with (tmp_path / "new.wav").open("wb") as file:
            for start in range(0, len(content), len(content) // 4):
                file.write(content[start : start + len(content) // 4])
                file.flush()
                time.sleep(0.3)

    threading.Thread(target=drop).start()
    num_samples = 0
    for block in blocks:
        num_samples += block.samples.shape[1]
        if num_samples == 16000:
            source.close()
    assert num_samples == 16000


def test_pyav_gives_the_samples_of_a_file(tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "file.flac"
    soundfile.write(path, SAMPLES, 16000)
    wanted, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(joined(NetworkStream(f"file://{path}")), wanted.T, atol=1e-4)


def test_the_password_of_an_address_is_not_told():
    pytest.importorskip("av")
    assert NetworkStream("rtsp://user:secret@camera/audio").name == "rtsp://...@camera/audio"


def test_a_sound_card_gives_sound():
    sounddevice = pytest.importorskip("sounddevice", exc_type=(ImportError, OSError))
    if not any(device["max_input_channels"] >= 2 for device in sounddevice.query_devices()):
        pytest.skip("there is no sound card with two inputs")
    source = SoundCard()
    block = next(source.blocks())
    source.close()
    assert block.samples.shape[0] == 2
