"""Sound on standard input: a WAV stream whose header need not know its length, or raw samples."""

import io
import logging
import struct
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from ..hub.sound_reader import STREAMED_WAV_SIZE
from .sources import Block, check_two_channels

logger = logging.getLogger(__name__)

# Name -> bytes of a sample. All are little endian, as `arecord`, `sox` and `ffmpeg` name and write them.
RAW_FORMATS = {"s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4, "f64le": 8}
# Format tag and bits of a WAV header -> the format of its samples.
_WAV_FORMATS = {(1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le"}
_EXTENSIBLE = 0xFFFE
_READ_BYTES = 1 << 15
# A header that is longer than this belongs to something else.
_MOST_HEADER_BYTES = 1 << 20
# Reading has waited for this share of the time of the sound: somebody records it now.
_LIVE_SHARE = 0.5


class Pipe:
    """Two-channel sound from a binary stream, by default standard input.

    Args:
        stream: what is read; `None` for standard input.
        rate, sample_format: the rate in Hz and the format of raw samples, one of `RAW_FORMATS`; `None` for a WAV
            stream, which says both.

    Raises:
        ValueError: only one of rate and format is given, or one is out of its range.
    """

    name = "standard input"

    def __init__(self, stream: BinaryIO | None = None, rate: int | None = None, sample_format: str | None = None):
        if (rate is None) != (sample_format is None):
            raise ValueError(
                "`rate` and `format` must be given together for raw samples, or neither for a WAV stream, "
                f"got {rate!r} and {sample_format!r}."
            )
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int) or rate < 1000):
            raise ValueError(f"`rate` must be a whole number of at least 1000 Hz, got {rate!r}.")
        if sample_format is not None and sample_format not in RAW_FORMATS:
            raise ValueError(f"`format` must be one of {', '.join(RAW_FORMATS)}, got {sample_format!r}.")
        # Without a buffer of Python's own, whose lock a thread that waits for sound would hold when the process ends.
        self._stream: BinaryIO | io.FileIO = io.FileIO(0, closefd=False) if stream is None else stream
        self._raw = None if rate is None or sample_format is None else (rate, sample_format)
        self._is_closed = False
        self._waited = self._given = 0.0

    @property
    def is_live(self) -> bool:
        """Whether the sound comes as it is recorded: one waits for it, as one does not for a file that is replayed."""
        return self._given > 1.0 and self._waited > _LIVE_SHARE * self._given

    def blocks(self) -> Iterator[Block]:
        """Give the sound until the stream ends; errors as those of [`Source`]."""
        rate, sample_format, num_bytes = (*self._raw, None) if self._raw else self._read_header()
        frame_bytes = 2 * RAW_FORMATS[sample_format]
        left, begins = b"", True
        while not self._is_closed and (num_bytes is None or num_bytes > 0):
            content = self._read_some(_READ_BYTES if num_bytes is None else min(num_bytes, _READ_BYTES))
            if not content:
                if num_bytes is not None:
                    logger.warning(f"{self.name} ended {num_bytes} bytes before its header says.")
                break
            num_bytes = None if num_bytes is None else num_bytes - len(content)
            content = left + content
            whole = len(content) - len(content) % frame_bytes
            left = content[whole:]
            if whole:
                block = Block(decoded(content[:whole], sample_format), rate, begins)
                self._given += block.seconds
                begins = False
                yield block
        if left:
            logger.warning(f"{self.name} ended within a sample: {len(left)} bytes are left out.")

    def close(self) -> None:
        """End the blocks when the next sound has come."""
        self._is_closed = True

    def _read_some(self, most: int) -> bytes:
        """Return what is there, at least one byte; nothing at the end."""
        # `read` of a buffered pipe would wait until all of `most` has come.
        read: Callable[[int], bytes] = getattr(self._stream, "read1", self._stream.read)
        began = time.monotonic()
        content = read(most)
        self._waited += time.monotonic() - began
        return content

    def _read_exactly(self, num_bytes: int) -> bytes:
        content = b""
        while len(content) < num_bytes:
            more = self._stream.read(num_bytes - len(content))
            if not more:
                raise OSError(
                    f"{self.name} ended within the header of a WAV stream: `rate` and `format` describe raw samples."
                )
            content += more
        return content

    def _read_header(self) -> tuple[int, str, int | None]:
        """Read up to the first sample: rate, format, and the bytes of samples, `None` where nobody knows."""
        magic = self._read_exactly(12)
        if magic[:4] not in (b"RIFF", b"RF64") or magic[8:] != b"WAVE":
            raise ValueError(
                f"`source` must be a WAV stream, or raw samples that `rate` and `format` describe; {self.name} begins "
                f"with {magic!r}."
            )
        described: tuple[int, str] | None = None
        while True:
            kind, length = struct.unpack("<4sI", self._read_exactly(8))
            if kind == b"data":
                break
            if length > _MOST_HEADER_BYTES:
                raise ValueError(f"`source` must be a WAV stream; {self.name} has a chunk {kind!r} of {length} bytes.")
            content = self._read_exactly(length + length % 2)
            if kind == b"fmt ":
                described = self._described(content)
        if described is None:
            raise ValueError(f"`source` must be a WAV stream; {self.name} has samples before their format.")
        is_unknown = length == 0 or length >= STREAMED_WAV_SIZE or magic[:4] == b"RF64"
        return *described, None if is_unknown else length

    def _described(self, content: bytes) -> tuple[int, str]:
        """Rate and format that a `fmt ` chunk names."""
        if len(content) < 16:
            raise ValueError(f"`source` must be a WAV stream; the format of {self.name} has {len(content)} bytes.")
        tag, num_channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
        if tag == _EXTENSIBLE and len(content) >= 26:
            tag = struct.unpack("<H", content[24:26])[0]
        check_two_channels(num_channels, self.name)
        if (tag, bits) not in _WAV_FORMATS or rate < 1000:
            known = ", ".join(RAW_FORMATS)
            raise ValueError(
                f"`source` must be a WAV stream of {known} at 1000 Hz or more; {self.name} has format {tag} of {bits} "
                f"bits at {rate} Hz."
            )
        return rate, _WAV_FORMATS[tag, bits]


def decoded(content: bytes, sample_format: str) -> np.ndarray:
    """Decode interleaved samples of two channels.

    Args:
        content: whole frames.
        sample_format: one of `RAW_FORMATS`.

    Returns:
        `(2, n)` float32, full scale 1.0.
    """
    if sample_format == "s24le":
        as_bytes = np.frombuffer(content, np.uint8).reshape(-1, 3)
        # The three bytes become the upper ones of an int32, which keeps the sign.
        wide = np.zeros((len(as_bytes), 4), np.uint8)
        wide[:, 1:] = as_bytes
        values = wide.view("<i4")[:, 0] / 2.0**31
    elif sample_format.startswith("s"):
        bits = 8 * RAW_FORMATS[sample_format]
        values = np.frombuffer(content, f"<i{bits // 8}") / 2.0 ** (bits - 1)
    else:
        values = np.frombuffer(content, f"<f{RAW_FORMATS[sample_format]}")
    return np.ascontiguousarray(values.reshape(-1, 2).T, dtype=np.float32)  # (2, n)
