"""Damaged and odd sound files: truncation is noticed in every container, unfinished headers are repaired."""

import contextlib
import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from na_ssl_hf.hub import sound_reader
from na_ssl_hf.hub.recording import load_recording
from na_ssl_hf.hub.sound_reader import SoundReader, TruncatedSoundError

RATE = 16000
NUM_SAMPLES = 16000
CONTAINERS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav-24": {"format": "WAVEX", "subtype": "PCM_24"},
    "wav-big-endian": {"format": "WAV", "subtype": "PCM_16", "endian": "BIG"},
    "wav-adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "wav-ulaw": {"format": "WAV", "subtype": "ULAW"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "w64": {"format": "W64", "subtype": "PCM_16"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "aiff-float": {"format": "AIFF", "subtype": "FLOAT"},
    "au": {"format": "AU", "subtype": "PCM_16"},
    "au-little-endian": {"format": "AU", "subtype": "PCM_16", "endian": "LITTLE"},
    "caf": {"format": "CAF", "subtype": "PCM_16"},
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "ogg-vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "ogg-opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}


def content_of(container: str, num_samples: int = NUM_SAMPLES) -> bytes:
    samples = 0.1 * np.random.default_rng(0).standard_normal((num_samples, 2))
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, **CONTAINERS[container])
    return stream.getvalue()


def read(content: bytes, name: str = "clip") -> np.ndarray:
    with SoundReader(io.BytesIO(content), name) as reader:
        return reader.read()


def is_readable(content: bytes) -> bool:
    try:
        read(content)
    except OSError:
        return False
    return True


def with_bytes(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


@pytest.fixture
def warnings(monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(sound_reader.logger, "warning", messages.append)
    return messages


@pytest.mark.parametrize("container", CONTAINERS)
def test_whole_files_are_read_without_a_warning(container, warnings, tmp_path):
    content = content_of(container)
    expected = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0].T
    assert expected.shape[0] == 2
    tolerance = 1e-6 if container == "mp3" else 0.0  # its decoder rounds by the alignment of its buffers
    np.testing.assert_allclose(read(content), expected, atol=tolerance, rtol=0)
    (tmp_path / "clip").write_bytes(content)
    np.testing.assert_allclose(load_recording(tmp_path / "clip", RATE).samples, expected, atol=tolerance, rtol=0)
    assert warnings == []


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("container", CONTAINERS)
def test_truncation_is_noticed_wherever_the_file_ends(container, share):
    content = content_of(container)
    with pytest.raises(OSError, match="cut clip"):
        read(content[: int(share * len(content))], "cut clip")


@pytest.mark.parametrize("container", ["wav", "wav-big-endian", "rf64", "w64", "aiff", "au", "ogg-vorbis", "mp3"])
def test_truncation_is_called_so(container):
    content = content_of(container)
    with pytest.raises(TruncatedSoundError, match="clip is truncated"):
        read(content[: len(content) // 2])


# Where a container keeps the bytes of its samples: what precedes the number, and how it is written.
SIZES = {
    "wav": (b"data", "<I", 0),
    "wav-big-endian": (b"data", ">I", 0),
    "wav-24": (b"data", "<I", 0),
    "w64": (sound_reader.W64_DATA, "<Q", 24),
    "aiff": (b"SSND", ">I", 8),
    "caf": (b"data", ">q", 4),
}


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("container", SIZES)
def test_headers_that_promise_too_little_are_repaired_with_a_warning(container, share, warnings):
    content = content_of(container)
    mark, size_format, offset = SIZES[container]
    position = content.index(mark) + len(mark)
    size = struct.unpack_from(size_format, content, position)[0] - offset
    unfinished = with_bytes(content, position, struct.pack(size_format, int(share * size) // 12 * 12 + offset))
    np.testing.assert_array_equal(read(unfinished, "killed recorder"), read(content))
    assert len(warnings) == 1
    assert "killed recorder" in warnings[0]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000 - 44])
def test_streamed_wav_of_unknown_length_is_read_with_a_warning(size, warnings):
    content = content_of("wav")
    streamed = with_bytes(content, content.index(b"data") + 4, struct.pack("<I", size))
    np.testing.assert_array_equal(read(streamed, "piped"), read(content))
    assert "piped" in warnings[0]


def test_unknown_lengths_that_the_format_allows_are_no_fault(warnings):
    au = content_of("au")
    np.testing.assert_array_equal(read(with_bytes(au, 8, b"\xff\xff\xff\xff")), read(au))
    caf = content_of("caf")
    np.testing.assert_array_equal(read(with_bytes(caf, caf.index(b"data") + 4, struct.pack(">q", -1))), read(caf))
    assert warnings == []


@pytest.mark.parametrize("num_samples", [3000, NUM_SAMPLES, 4096 * 3])
def test_flac_of_unknown_length_is_read_and_its_truncation_noticed(num_samples, warnings):
    content = content_of("flac", num_samples)
    unknown = with_bytes(content, 21, bytes([content[21] & 0xF0]) + b"\0\0\0\0")
    np.testing.assert_array_equal(read(unknown, "stream.flac"), read(content))
    assert "stream.flac" in warnings[0]
    with pytest.raises(TruncatedSoundError, match="last FLAC frame"):
        read(unknown[:-50])


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 4000, b"TAG" + b"x" * 125, b"LIST\x04\0\0\0abcd", b"id3 \x05\0\0\0abcde\0", b""],
    ids=["padding", "ID3v1", "chunk", "odd chunk", "nothing"],
)
def test_what_follows_the_samples_of_a_whole_file_is_no_sound(tail, warnings):
    content = content_of("wav")
    np.testing.assert_array_equal(read(content + tail), read(content))
    assert warnings == []


@pytest.mark.parametrize(
    ("container", "tail"),
    [("rf64", b"LIST\x05\0\0\0abcde\0"), ("caf", b"free" + struct.pack(">q", 3) + b"abc"), ("aiff", b"NAME\0\0\0\2ab")],
)
def test_chunks_behind_the_samples_are_followed_in_other_containers(container, tail, warnings):
    content = content_of(container)
    np.testing.assert_array_equal(read(content + tail), read(content))
    assert warnings == []


def test_a_header_that_lies_reserves_no_memory():
    flac = content_of("flac")
    many_frames = with_bytes(flac, 21, bytes([flac[21] & 0xF0 | 8]) + b"\0\0\0\0")  # 2^35 samples
    tracemalloc.start()
    with pytest.raises(OSError, match="clip"):
        read(many_frames)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    wav = content_of("wav")
    with pytest.raises(OSError, match="says 1 Hz"):
        read(with_bytes(wav, 24, struct.pack("<I", 1)))


def test_parts_of_a_file_equal_the_whole():
    content = content_of("flac")
    whole = read(content)
    with SoundReader(io.BytesIO(content), "clip") as reader:
        assert (reader.num_channels, reader.num_frames, reader.sampling_rate) == (2, NUM_SAMPLES, RATE)
        np.testing.assert_array_equal(reader.read(1000, 500), whole[:, 1000:1500])
        np.testing.assert_array_equal(reader.read(15900, 500), whole[:, 15900:])
        assert reader.read(20000, 5).shape == (2, 0)
        blocks = list(reader.blocks(3000))
    assert [block.shape[1] for block in blocks] == [3000] * 5 + [1000]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), whole)


def test_formats_whose_completeness_cannot_be_checked_are_refused_by_name():
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros((1000, 2)), RATE, format="VOC", subtype="PCM_16")
    with pytest.raises(OSError, match=r"clip must be a file of one of the formats WAV, .* got VOC"):
        read(stream.getvalue())


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_gives_samples_or_a_named_error(seed):
    rng = np.random.default_rng(seed)
    container = list(CONTAINERS)[seed % len(CONTAINERS)]
    content = bytearray(content_of(container, 2000))
    for _ in range(rng.integers(1, 6)):
        content[rng.integers(min(len(content), 120))] = rng.integers(256)
    outcome = contextlib.nullcontext() if is_readable(bytes(content)) else pytest.raises(OSError, match="clip")
    with outcome:
        assert read(bytes(content)).nbytes < 64 * 1024**2
