"""From what a user holds (path, bytes, file, array, dict, dataset row or decoder) to the samples of one recording.

A long recording is read in windows, so that its length decides the time that it takes and not the memory.
"""

import io
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from .sound_reader import SoundReader


class DecodedAudio(Protocol):
    """What an audio decoder of `datasets` gives: samples `(channels, N)` and their rate in Hz."""

    data: torch.Tensor
    sample_rate: int


class AudioDecoder(Protocol):
    """A lazy recording, as torchcodec's decoders are."""

    def get_all_samples(self) -> DecodedAudio: ...


class BinaryFile(Protocol):
    """An open sound file, such as `io.BytesIO`."""

    def read(self, size: int = -1, /) -> bytes: ...


# One recording: a path, the bytes of a sound file, an open file, samples `(channels, N)`, a dict (`array` or `raw` with
# `sampling_rate`, `bytes`, `path`, or a dataset row with `audio`), or a decoder.
RecordingSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | np.ndarray
    | torch.Tensor
    | Mapping[str, Any]
    | AudioDecoder
    | BinaryFile
)
# One recording or several: a list, a stream, an array `(B, channels, N)` or of paths, a data set or a part of it.
RecordingSources: TypeAlias = RecordingSource | Iterable[RecordingSource]


@dataclass(frozen=True)
class Windows:
    """How long recordings are cut, and how the scores of their windows become one.

    Args:
        length: of a window, in s.
        hop: from the start of one window to that of the next, in s; `None` for `length`. The last window ends with the
            recording.
        aggregate: "max", "mean", or a quantile in (0, 1): the recording's score from those of its windows.

    Raises:
        ValueError: an argument out of its range.
    """

    length: float = 10.0
    hop: float | None = None
    aggregate: str | float = "max"

    def __post_init__(self) -> None:
        for name, value in (("window", self.length), ("hop", self.hop)):
            if value is None and name == "hop":
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not 0.0 < value < math.inf:
                raise ValueError(f"`{name}` must be a number of seconds above 0, got {value!r}.")
        if self.hop is not None and self.hop > self.length:
            raise ValueError(
                f"`hop` must be at most `window`, so that nothing is left out, got {self.hop!r} and {self.length!r}."
            )
        is_quantile = isinstance(self.aggregate, Real) and not isinstance(self.aggregate, bool)
        is_name = isinstance(self.aggregate, str) and self.aggregate in ("max", "mean")
        if not is_name and not (is_quantile and 0.0 < float(self.aggregate) < 1.0):
            raise ValueError(f"`aggregate` must be 'max', 'mean' or a quantile in (0, 1), got {self.aggregate!r}.")

    def starts(self, num_samples: int, sampling_rate: int) -> list[tuple[int, int]]:
        """First sample and number of samples of every window of a recording."""
        if num_samples <= self.length * sampling_rate:
            return [(0, num_samples)]
        length = max(1, round(self.length * sampling_rate))
        hop = length if self.hop is None else max(1, round(self.hop * sampling_rate))
        starts = list(range(0, num_samples - length + 1, hop))
        if starts[-1] + length < num_samples:
            starts.append(num_samples - length)
        return [(start, length) for start in starts]

    def aggregated(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores `(n, ...)` of the n windows of a recording to `(...)`."""
        if self.aggregate == "max":
            return scores.amax(dim=0)
        if self.aggregate == "mean":
            return scores.mean(dim=0)
        return scores.quantile(float(self.aggregate), dim=0)


# Asks for whole recordings, however long.
WHOLE = Windows(length=sys.float_info.max)


@dataclass(frozen=True)
class Piece:
    """A recording or a window of it, checked: `(2, N)` float32 at the extractor's rate.

    Attributes:
        samples: the samples.
        name: of the recording.
        start, end: of the window, in s.
        is_last: whether the recording ends with it.
        was_cut: whether the recording was cut into windows, be it one.
        rate: the sampling rate that says which bands it holds, see `recorded_rate`; `None` for all of them.
    """

    samples: torch.Tensor
    name: str
    start: float
    end: float
    is_last: bool
    was_cut: bool
    rate: int | None = None


@dataclass(frozen=True)
class Unreadable:
    """A recording that could not be read, and why."""

    name: str
    reason: str


@dataclass
class Recording:
    """Samples and where they came from.

    Attributes:
        samples: `(channels, N)`; float in [-1, 1], or integer PCM.
        sampling_rate: in Hz.
        name: a path or a description, for error messages.
    """

    samples: np.ndarray | torch.Tensor
    sampling_rate: int
    name: str

    @property
    def num_frames(self) -> int:
        """Samples per channel."""
        return self.samples.shape[-1] if self.samples.ndim else 0

    def read(self, start: int = 0, frames: int | None = None) -> np.ndarray | torch.Tensor:
        """`frames` samples `(channels, n)` from sample `start` on; `None` reads to the end."""
        whole = start == 0 and frames is None
        return self.samples if whole else self.samples[..., start : None if frames is None else start + frames]


def is_single_recording(recordings: RecordingSources) -> bool:
    """Whether the argument of a scorer is one recording, not a collection or stream of them.

    Raises:
        ValueError: a tuple, which could be both, or something that is neither.
    """
    if isinstance(recordings, tuple):
        raise ValueError(
            "`recordings` must not be a tuple, which could be one recording or several: give a list, or a dict "
            f"{{'array': ..., 'sampling_rate': ...}}; got a tuple of {len(recordings)}."
        )
    if isinstance(recordings, np.ndarray) and recordings.dtype.kind in "OSU":
        return recordings.ndim == 0
    if isinstance(recordings, (np.ndarray, torch.Tensor)):
        if recordings.ndim == 0:
            raise ValueError("`recordings` must be arrays (2, samples), got an array without axes.")
        return recordings.ndim != 3
    if isinstance(recordings, Mapping):
        return not isinstance(recordings.get("audio"), list)
    if isinstance(recordings, (str, os.PathLike, bytes, bytearray)):
        return True
    if hasattr(recordings, "get_all_samples") or hasattr(recordings, "read"):
        return True
    is_iterable = hasattr(recordings, "__iter__") or hasattr(recordings, "__getitem__")
    if not is_iterable or isinstance(recordings, np.generic):  # a number of numpy has a `__getitem__` that fails
        raise ValueError(f"`recordings` must be one recording or several, got {type(recordings).__name__}.")
    return False


def each_recording(recordings: RecordingSources) -> Iterable[RecordingSource]:
    """The recordings one by one, whether there is a single one or several. ValueError as `is_single_recording`."""
    if is_single_recording(recordings):
        return [recordings]  # type: ignore[list-item]
    if isinstance(recordings, Mapping):  # a batch of a data set: columns, not rows
        return recordings["audio"]
    if isinstance(recordings, np.ndarray) and recordings.dtype.kind in "OSU":
        return recordings.ravel().tolist()
    return recordings  # type: ignore[return-value]


class OpenRecording(Protocol):
    """A recording that can be read in parts.

    Attributes:
        name: a path or a description, for error messages.
        sampling_rate: in Hz.
        num_frames: samples per channel.
    """

    name: str
    sampling_rate: int

    @property
    def num_frames(self) -> int: ...

    def read(self, start: int = 0, frames: int | None = None) -> np.ndarray | torch.Tensor:
        """`frames` samples `(channels, n)` from sample `start` on; `None` reads to the end."""
        ...


@contextmanager
def open_recording(source: RecordingSource, sampling_rate: int) -> Iterator[OpenRecording]:
    """Open one recording to be read in parts; arguments and errors are those of `load_recording`."""
    found: Any = _from_mapping(source) if isinstance(source, Mapping) else source
    if isinstance(found, np.ndarray) and found.ndim == 0 and found.dtype.kind in "OSU":
        found = found.item()
    if isinstance(found, Recording):
        yield found
    elif isinstance(found, (np.ndarray, torch.Tensor)):
        yield Recording(found, sampling_rate, f"array of shape {tuple(found.shape)}")
    elif hasattr(found, "get_all_samples"):
        decoded = found.get_all_samples()
        yield Recording(decoded.data, decoded.sample_rate, "decoded audio")
    else:
        with _sound_reader(found) as reader:
            yield reader


def _sound_reader(source: Any) -> SoundReader:
    if isinstance(source, (str, os.PathLike)):
        return SoundReader(os.fspath(source), str(source))
    if isinstance(source, _Named):
        return SoundReader(io.BytesIO(source.content), source.name)
    if isinstance(source, (bytes, bytearray)):
        return SoundReader(io.BytesIO(source), f"{len(source)} bytes")
    if hasattr(source, "read"):
        content, name = _content(source)
        return SoundReader(io.BytesIO(content), name)
    raise ValueError(
        "A recording must be a path, bytes, an array (2, samples), a dict with 'array' and 'sampling_rate', or a "
        f"dataset row with 'audio'; got {type(source).__name__}."
    )


def recording_name(source: RecordingSource) -> str:
    """What messages call a recording that may be unreadable."""
    found = source
    while isinstance(found, Mapping):
        found = found.get("audio") or found.get("path") or found.get("array", type(found).__name__)
    if isinstance(found, (str, os.PathLike)):
        return str(found)
    if isinstance(found, (np.ndarray, torch.Tensor)):
        return f"array of shape {tuple(found.shape)}"
    return str(getattr(found, "name", None) or type(found).__name__)


def load_recording(source: RecordingSource, sampling_rate: int) -> Recording:
    """Read one recording; channels are kept as they are, never mixed down.

    Args:
        source: a path of a sound file (WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg or MP3); its bytes, or an open binary
            file; an array `(channels, N)`; a dict with `array` (or `raw`) and `sampling_rate`, or with `bytes` and/or
            `path` as `datasets.Audio(decode=False)` gives it; a dataset row with such a value under `audio`; a
            torchcodec decoder; or a [`Recording`].
        sampling_rate: assumed for bare arrays, Hz.

    Raises:
        OSError: a file is missing, truncated, or cannot be decoded.
        ValueError: the source is of another kind, or a dict lacks a key.
    """
    with open_recording(source, sampling_rate) as opened:
        return Recording(opened.read(), opened.sampling_rate, opened.name)


@dataclass
class _Named:
    """The content of a sound file, and what messages call it."""

    content: bytes | bytearray
    name: str


def _from_mapping(source: Mapping[str, Any]) -> Any:
    """The source that is in a dict, under whatever key."""
    if "audio" in source:
        inner = source["audio"]
        return _from_mapping(inner) if isinstance(inner, Mapping) else inner
    array = source.get("array", source.get("raw"))
    if array is not None:
        rate = source.get("sampling_rate")
        if rate is None:
            raise ValueError(f"A recording given as a dict needs 'sampling_rate' in Hz, got keys {sorted(source)}.")
        try:
            is_whole = float(rate).is_integer()
        except (TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"'sampling_rate' of a recording must be a whole number of Hz, got {rate!r}.")
        array = array if isinstance(array, torch.Tensor) else np.asarray(array)
        name = source.get("path") or f"array of shape {tuple(array.shape)}"
        return Recording(array, int(rate), str(name))
    content = source.get("bytes")
    if content is not None:
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError(
                f"'bytes' of a recording must be the content of a sound file, got {type(content).__name__}."
            )
        return _Named(content, str(source.get("path") or f"{len(content)} bytes"))
    if source.get("path") is not None:
        return source["path"]
    raise ValueError(
        f"A recording given as a dict needs 'array', 'bytes', 'path' or 'audio', got keys {sorted(source)}."
    )


def _content(stream: Any) -> tuple[bytes, str]:
    """What is left to read of an open binary file, and its name."""
    content = stream.read()
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"A recording given as a file must be opened in binary mode, got {type(content).__name__}.")
    name = getattr(stream, "name", None)
    return bytes(content), name if isinstance(name, str) else f"file of {len(content)} bytes"
