"""Reading sound files that may be damaged: a truncated one is refused, a header that was never finished is repaired.

libsndfile decodes, but it passes over the end of a truncated file silently and believes a header that says too little.
"""

import io
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

try:
    import soundfile
except ImportError:  # arrays can be scored without it
    soundfile = None

logger = logging.getLogger(__name__)

# A file is decoded in blocks of so many frames, so that a header that lies about the length reserves no memory.
BLOCK_FRAMES = 1 << 18
# No microphone records at less; a header that says so is wrong, and resampling would multiply the samples.
LEAST_SAMPLING_RATE = 1000
# Programs that write to a pipe put numbers near 2 or 4 GiB where they cannot know the length.
STREAMED_WAV_SIZE = 0x7FFF0000
# The formats of libsndfile whose completeness is checked here.
CHECKED_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3")
W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


class TruncatedSoundError(OSError):
    """A sound file ends before its header, or its format, says."""


class SoundReader:
    """An open sound file (WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg or MP3), to be read whole or in parts.

    Args:
        source: a path, or a binary file object that can seek.
        name: what messages call the file.

    Attributes:
        name: as given.
        sampling_rate: in Hz.
        num_channels: the number of channels.
        num_frames: samples per channel as the (repaired) header says; reading finds out whether they are there.

    Raises:
        OSError: the file is missing, is no sound file, or is truncated ([`TruncatedSoundError`]).
        ValueError: the package soundfile is missing.
    """

    def __init__(self, source: str | BinaryIO, name: str):
        if soundfile is None:
            raise ValueError(f"Reading {name} needs the soundfile package: pip install soundfile.")
        self.name = name
        with ExitStack() as stack:
            if isinstance(source, str) and not os.path.isfile(source):
                raise FileNotFoundError(f"No sound file at {name}.")
            stream: BinaryIO = stack.enter_context(open(source, "rb")) if isinstance(source, str) else source
            patches = _repairs(stream, name)
            stream.seek(0)
            # libsndfile reads a path without calling Python, but only the stream can be repaired.
            is_plain = isinstance(source, str) and not patches and _is_encodable(source)
            readable = source if is_plain else _PatchedStream(stream, patches)
            self._file = stack.enter_context(self._opened(readable))
            self._stack = stack.pop_all()
        if self._file.format not in CHECKED_FORMATS:
            self.close()
            raise OSError(
                f"{name} must be a file of one of the formats {', '.join(CHECKED_FORMATS)}, whose completeness can be "
                f"checked; got {self._file.format}."
            )
        self.sampling_rate: int = self._file.samplerate
        self.num_channels: int = self._file.channels
        self.num_frames: int = self._file.frames
        if self.sampling_rate < LEAST_SAMPLING_RATE:
            self.close()
            raise OSError(
                f"{name} cannot be read as a sound file: its header says {self.sampling_rate} Hz, "
                f"and the sampling rate must be at least {LEAST_SAMPLING_RATE} Hz."
            )

    def read(self, start: int = 0, frames: int | None = None) -> np.ndarray:
        """Read `frames` samples per channel from sample `start` on; `None` reads to the end.

        Returns:
            `(channels, n)` float32 in [-1, 1]; n is less than `frames` only at the end of the file.

        Raises:
            OSError: the file cannot be decoded, or ends before its header says.
        """
        parts = list(self.blocks(BLOCK_FRAMES, start, frames))
        return np.concatenate(parts, axis=1) if parts else np.zeros((self.num_channels, 0), np.float32)

    def blocks(self, block_frames: int, start: int = 0, frames: int | None = None) -> Iterator[np.ndarray]:
        """Read as [`SoundReader.read`] does, in successive blocks `(channels, block_frames)`, the last one shorter."""
        stop = self.num_frames if frames is None else min(self.num_frames, start + frames)
        position = min(start, stop)
        try:
            if position != self._file.tell():
                self._file.seek(position)
            while position < stop:
                wanted = min(block_frames, stop - position)
                block = self._file.read(wanted, dtype="float32", always_2d=True)  # (n, channels)
                if len(block) < wanted:
                    raise TruncatedSoundError(
                        f"{self.name} is truncated: its header promises {self.num_frames} samples per channel, "
                        f"it holds {position + len(block)}."
                    )
                position += wanted
                yield np.ascontiguousarray(block.T)  # (channels, n)
        except (soundfile.SoundFileError, RuntimeError) as error:
            raise OSError(f"{self.name} cannot be read as a sound file, it is damaged or truncated: {error}") from error

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "SoundReader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _opened(self, readable: Any) -> Any:
        try:
            return soundfile.SoundFile(readable)
        except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
            raise OSError(f"{self.name} cannot be read as a sound file: {error}") from error


def _is_encodable(path: str) -> bool:
    """Tell whether soundfile accepts a path; it refuses names in another encoding than the system's."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class _PatchedStream(io.RawIOBase):
    """A binary stream in which some bytes read differently."""

    def __init__(self, stream: BinaryIO, patches: dict[int, bytes]):
        self._stream, self._patches = stream, patches

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(max(0, offset) if whence == io.SEEK_SET else offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any) -> int:
        begin = self._stream.tell()
        data = bytearray(self._stream.read(len(buffer)))
        for position, patch in self._patches.items():
            for offset, value in enumerate(patch, start=position - begin):
                if 0 <= offset < len(data):
                    data[offset] = value
        buffer[: len(data)] = data
        return len(data)


@dataclass(frozen=True)
class _Chunks:
    """How a container divides itself: `struct` format of a chunk's name and length, the multiple of bytes at which
    chunks begin, and whether the length counts name and length themselves."""

    header: str
    alignment: int = 1
    counts_header: bool = False


@dataclass(frozen=True)
class _Samples:
    """Where a container says that its samples lie.

    Attributes:
        start: position of the first byte of samples.
        declared: bytes of samples that the header promises; `None` where the format lets it say "to the end".
        size_position, size_format: where that number stands, and its `struct` format.
        size_offset: what the stored number counts besides the samples.
        frame_bytes: bytes of one sample of all channels, 1 where that is not known.
        unfinished: whether the number is a placeholder of a writer that never came back to it.
        more: other numbers of the header that follow from the bytes of samples: position, format and divisor of each.
        chunks: how the chunks look that may follow the samples; `None` where none may.
    """

    start: int
    declared: int | None
    size_position: int
    size_format: str
    size_offset: int = 0
    frame_bytes: int = 1
    unfinished: bool = False
    more: tuple[tuple[int, str, int], ...] = ()
    chunks: _Chunks | None = None


def _repairs(stream: BinaryIO, name: str) -> dict[int, bytes]:
    """Bytes of the header that must read differently, by position.

    Raises:
        OSError: the file holds less than its header promises.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    magic = stream.read(12)
    if magic[:4] == b"fLaC":
        return _flac_repairs(stream, size, name)
    if magic[:4] == b"OggS":
        _check_ogg(stream, size, name)
        return {}
    samples = _find_samples(stream, magic, size)
    if samples is None:
        if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and len(magic) > 1 and magic[1] & 0xE0 == 0xE0):
            _check_mp3(stream, size, name)
        return {}
    return _sample_repairs(stream, samples, size, name)


def _sample_repairs(stream: BinaryIO, samples: _Samples, size: int, name: str) -> dict[int, bytes]:
    available = size - samples.start
    whole = available - available % samples.frame_bytes
    if samples.declared is not None:
        declared = 0 if samples.unfinished else samples.declared
        if declared > available:
            missing = declared - available
            raise TruncatedSoundError(f"{name} is truncated: its header promises {missing} bytes more of samples.")
        if not samples.unfinished and (
            declared >= whole or _is_accounted_for(stream, samples, samples.start + declared, size)
        ):
            return {}
        logger.warning(
            f"{name} has an unfinished header (the recorder was stopped, or it wrote to a pipe), which promises "
            f"{declared} bytes of samples: {whole} are read, up to the end of the file."
        )
    patches = {samples.size_position: _packed(samples.size_format, whole + samples.size_offset)}
    for position, number_format, divisor in samples.more:
        patches[position] = _packed(number_format, whole // divisor)
    return patches


def _packed(number_format: str, value: int) -> bytes:
    # A size that a 32-bit field cannot hold is written as its largest value, which libsndfile takes for "to the end".
    largest = 256 ** struct.calcsize(number_format) // (2 if number_format[-1].islower() else 1) - 1
    return struct.pack(number_format, min(value, largest))


def _is_accounted_for(stream: BinaryIO, samples: _Samples, position: int, size: int) -> bool:
    """Whether the bytes behind the samples are chunks, tags or padding, and not samples that the header left out."""
    chunks = samples.chunks
    position += -position % (chunks.alignment if chunks else 1)
    if not _has_content(stream, position, size):
        return True
    stream.seek(position)
    if stream.read(8).startswith((b"TAG", b"ID3", b"APETAGEX")):
        return True
    if chunks is None:
        return False
    # A chain of chunks leads exactly to the end of the file, give or take the padding of the last one.
    header_bytes = struct.calcsize(chunks.header)
    while position + header_bytes <= size:
        stream.seek(position)
        kind, length = struct.unpack(chunks.header, stream.read(header_bytes))
        if length < 0 or not all(32 <= letter < 127 for letter in kind[:4]):
            return False
        position += max(length, header_bytes) if chunks.counts_header else header_bytes + length
        position += -position % chunks.alignment
    return size <= position < size + chunks.alignment


def _has_content(stream: BinaryIO, position: int, size: int) -> bool:
    stream.seek(position)
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            return True
    return False


def _find_samples(stream: BinaryIO, magic: bytes, size: int) -> _Samples | None:
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and magic[8:] == b"WAVE":
        return _find_in_wav(stream, magic[:4], size)
    if magic[:4] == b"FORM" and magic[8:] in (b"AIFF", b"AIFC"):
        return _find_in_aiff(stream, size)
    if magic[:4] == b"riff":
        return _find_in_w64(stream, size)
    if magic[:4] in (b".snd", b"dns."):
        byte_order = ">" if magic[:4] == b".snd" else "<"
        start, declared = struct.unpack(f"{byte_order}II", magic[4:12])
        # The format allows 0xFFFFFFFF for an unknown length.
        return _Samples(start, None if declared == 0xFFFFFFFF else declared, 8, f"{byte_order}I")
    if magic[:4] == b"caff":
        return _find_in_caf(stream, size)
    return None


def _chunks(stream: BinaryIO, position: int, size: int, header: str) -> Iterator[tuple[int, bytes, int]]:
    """Position of the content, name and length of the chunks from `position` on; `header` is the `struct` format."""
    num_bytes = struct.calcsize(header)
    while position + num_bytes <= size:
        stream.seek(position)
        kind, length = struct.unpack(header, stream.read(num_bytes))
        yield position + num_bytes, kind, length
        position += num_bytes + length + length % 2


def _find_in_wav(stream: BinaryIO, magic: bytes, size: int) -> _Samples | None:
    byte_order = ">" if magic == b"RIFX" else "<"
    is_64_bit = magic in (b"RF64", b"BW64")
    frame_bytes, long_size, long_position = 1, None, 0
    for start, kind, length in _chunks(stream, 12, size, f"{byte_order}4sI"):
        stream.seek(start)
        if kind == b"fmt " and start + 16 <= size:
            frame_bytes = max(1, struct.unpack(f"{byte_order}HHIIHH", stream.read(16))[4])
        elif kind == b"ds64" and start + 16 <= size:
            long_size, long_position = struct.unpack("<QQ", stream.read(16))[1], start + 8
        elif kind == b"data":
            chunks = _Chunks(f"{byte_order}4sI", 2)
            if is_64_bit and length == 0xFFFFFFFF and long_size is not None:
                return _Samples(start, long_size, long_position, "<Q", 0, frame_bytes, long_size == 0, chunks=chunks)
            unfinished = length >= STREAMED_WAV_SIZE and length > size - start
            return _Samples(start, length, start - 4, f"{byte_order}I", 0, frame_bytes, unfinished, chunks=chunks)
    return None


def _find_in_aiff(stream: BinaryIO, size: int) -> _Samples | None:
    frame_bytes, frames_position = 1, None
    for start, kind, length in _chunks(stream, 12, size, ">4sI"):
        stream.seek(start)
        if kind == b"COMM" and start + 8 <= size:
            channels, _, bits = struct.unpack(">HIH", stream.read(8))
            frame_bytes, frames_position = max(1, channels * ((bits + 7) // 8)), start + 2
        elif kind == b"SSND":
            # Eight bytes of offset and block size stand before the samples and count as theirs.
            more = () if frames_position is None else ((frames_position, ">I", frame_bytes),)
            declared, chunks = max(0, length - 8), _Chunks(">4sI", 2)
            return _Samples(start + 8, declared, start - 4, ">I", 8, frame_bytes, more=more, chunks=chunks)
    return None


def _find_in_w64(stream: BinaryIO, size: int) -> _Samples | None:
    position, frame_bytes = 40, 1
    while position + 24 <= size:
        stream.seek(position)
        kind, length = struct.unpack("<16sQ", stream.read(24))
        if kind == W64_DATA:
            declared, chunks = max(0, length - 24), _Chunks("<16sQ", 8, counts_header=True)
            return _Samples(position + 24, declared, position + 16, "<Q", 24, frame_bytes, length < 24, chunks=chunks)
        if kind[:4] == b"fmt " and position + 40 <= size:
            frame_bytes = max(1, struct.unpack("<HHIIHH", stream.read(16))[4])
        position += max(24, length + -length % 8)  # chunks begin at multiples of 8 and count their own header
    return None


def _find_in_caf(stream: BinaryIO, size: int) -> _Samples | None:
    position = 8
    while position + 12 <= size:
        stream.seek(position)
        kind, length = struct.unpack(">4sq", stream.read(12))
        if kind == b"data":
            # Four bytes of an edit count belong to the chunk; -1 is the format's own "to the end of the file".
            declared = None if length < 0 else max(0, length - 4)
            return _Samples(position + 16, declared, position + 4, ">q", 4, chunks=_Chunks(">4sq"))
        position += 12 + max(0, length)
    return None


# FLAC: https://www.rfc-editor.org/rfc/rfc9639


def _flac_repairs(stream: BinaryIO, size: int, name: str) -> dict[int, bytes]:
    """The number of samples of a FLAC stream whose writer did not know it, from the header of the last frame."""
    stream.seek(0)
    info = stream.read(42)
    if len(info) < 42 or info[4] & 0x7F:
        return {}
    if int.from_bytes(info[21:26], "big") & 0xFFFFFFFFF:
        return {}
    block_size, largest_frame = struct.unpack(">H", info[8:10])[0], int.from_bytes(info[15:18], "big")
    tail_bytes = min(size, max(largest_frame, 1 << 17) + 128)
    stream.seek(size - tail_bytes)
    tail = stream.read(tail_bytes)
    if tail[-128:-125] == b"TAG":
        tail = tail[:-128]
    position = len(tail)
    while (position := tail.rfind(b"\xff", 0, position)) >= 0:
        num_samples = _samples_up_to_flac_frame(tail[position : position + 16], block_size)
        if num_samples and _crc(tail[position:], 16, 0x8005) == 0:
            logger.warning(f"{name} does not say how long it is: {num_samples} samples per channel are read.")
            return {21: bytes([info[21] & 0xF0 | num_samples >> 32]), 22: struct.pack(">I", num_samples & 0xFFFFFFFF)}
    raise TruncatedSoundError(f"{name} is truncated: its last FLAC frame is not complete.")


def _samples_up_to_flac_frame(header: bytes, fixed_block_size: int) -> int:
    """The samples up to the end of the frame that begins with `header`; 0 where no frame does."""
    if len(header) < 6 or header[1] & 0xFE != 0xF8:
        return 0
    code, is_variable = header[2] >> 4, header[1] & 1
    first = header[4]
    extra = 0 if first < 0x80 else (8 - (first ^ 0xFF).bit_length()) - 1  # continuation bytes, as in UTF-8
    number = first if not extra else first & (0x3F >> extra)
    for byte in header[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    place = 5 + extra
    if code in (6, 7):
        width = code - 5
        num_samples = int.from_bytes(header[place : place + width], "big") + 1
        place += width
    elif code == 0:
        return 0
    else:
        num_samples = 192 if code == 1 else 576 << (code - 2) if code < 6 else 256 << (code - 8)
    place += {12: 1, 13: 2, 14: 2}.get(header[2] & 0x0F, 0)
    if place >= len(header) or _crc(header[: place + 1], 8, 0x07):
        return 0
    return (number if is_variable else number * fixed_block_size) + num_samples


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value, mask = 0, (1 << bits) - 1
    table = []
    for byte in range(256):
        register = byte << (bits - 8)
        for _ in range(8):
            register = (register << 1 ^ (polynomial if register >> (bits - 1) else 0)) & mask
        table.append(register)
    for byte in data:
        value = (value << 8 & mask) ^ table[value >> (bits - 8) ^ byte]
    return value


# Ogg: https://www.rfc-editor.org/rfc/rfc3533


def _check_ogg(stream: BinaryIO, size: int, name: str) -> None:
    """Raise OSError unless the last page is whole and says that it is the last one."""
    position, is_last = 0, False
    while position + 27 <= size:
        stream.seek(position)
        header = stream.read(27)
        if header[:4] != b"OggS":
            break  # a tag behind the last page; anything else, libsndfile does not reach
        lengths = stream.read(header[26])
        position += 27 + header[26] + sum(lengths)
        if len(lengths) < header[26] or position > size:
            raise TruncatedSoundError(f"{name} is truncated: its last Ogg page is not complete.")
        is_last = bool(header[5] & 4)
    if not is_last:
        raise TruncatedSoundError(f"{name} is truncated: its Ogg stream has no last page.")


# MPEG audio layers 1 to 3

_MP3_BITRATES = {  # kbit/s by (MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _check_mp3(stream: BinaryIO, size: int, name: str) -> None:
    """Raise OSError where the last frame is not whole, or where frames are fewer than the first one announces."""
    stream.seek(0)
    start = stream.read(10)
    position = 0
    if start[:3] == b"ID3":
        position = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(start[6:10], (21, 14, 7, 0), strict=True))
    num_frames, announced = 0, None
    while position + 4 <= size:
        stream.seek(position)
        header = stream.read(4)
        length = _mp3_frame_bytes(header)
        if not length:
            break  # a tag, or a format that is not understood: nothing can be said of the rest
        if num_frames == 0:
            first = stream.read(min(length, 256))
            tag = max(first.find(b"Xing"), first.find(b"Info"))
            if tag >= 0 and len(first) >= tag + 12 and first[tag + 7] & 1:
                announced = struct.unpack(">I", first[tag + 8 : tag + 12])[0]
        position += length
        num_frames += 1
    if num_frames and position > size:
        raise TruncatedSoundError(f"{name} is truncated: its last MPEG frame is not complete.")
    if announced is not None and num_frames - 1 < announced - 1:
        raise TruncatedSoundError(
            f"{name} is truncated: it announces {announced} MPEG frames and holds {num_frames - 1}."
        )


def _mp3_frame_bytes(header: bytes) -> int:
    """Bytes of the frame that begins with this header of four bytes; 0 where none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate_index, rate_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or not 1 <= bitrate_index <= 14 or rate_index == 3:
        return 0
    is_first = version == 3
    bitrate = 1000 * _MP3_BITRATES[is_first, layer][bitrate_index - 1]
    rate = (44100, 48000, 32000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    if layer == 1:
        return (12 * bitrate // rate + padding) * 4
    return (144 if is_first or layer == 2 else 72) * bitrate // rate + padding
