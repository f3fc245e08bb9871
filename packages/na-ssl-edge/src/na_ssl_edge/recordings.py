"""Recordings of two microphones: read, checked, brought to the graph's rate, and cut into windows.

Rules and messages are those of the scorer of na_ssl_hf, so that the same file is refused in the same words.

Letters: N samples.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .sound_reader import SoundReader

# A longer recording is cut into windows unless they are asked for otherwise, in s.
LONGEST_WHOLE_SEC = 60.0
LARGEST_SAMPLE = 1e9


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Windows:
    """How long recordings are cut, and how the scores of their windows become one.

    Args:
        length: of a window, in s.
        hop: from the start of one window to that of the next, in s; `None` for `length`. The last window ends with the
            recording.
        aggregate: "max", "mean", or a quantile in (0, 1): the recording's score from those of its windows.

    Raises:
        ValueError: an argument is out of its range.
    """

    length: float = 10.0
    hop: float | None = None
    aggregate: str | float = "max"

    def __post_init__(self) -> None:
        for name, value in (("window", self.length), ("hop", self.hop)):
            if value is None and name == "hop":
                continue
            if value is None or not _is_number(value) or not 0.0 < value < math.inf:
                raise ValueError(f"`{name}` must be a number of seconds above 0, got {value!r}.")
        if self.hop is not None and self.hop > self.length:
            raise ValueError(
                f"`hop` must be at most `window`, so that nothing is left out, got {self.hop!r} and {self.length!r}."
            )
        is_name = isinstance(self.aggregate, str) and self.aggregate in ("max", "mean")
        if not is_name and not (_is_number(self.aggregate) and 0.0 < float(self.aggregate) < 1.0):
            raise ValueError(f"`aggregate` must be 'max', 'mean' or a quantile in (0, 1), got {self.aggregate!r}.")

    def starts(self, num_samples: int, sampling_rate: int) -> list[tuple[int, int]]:
        """Return first sample and number of samples of every window of a recording."""
        if num_samples <= self.length * sampling_rate:
            return [(0, num_samples)]
        length = max(1, round(self.length * sampling_rate))
        hop = length if self.hop is None else max(1, round(self.hop * sampling_rate))
        starts = list(range(0, num_samples - length + 1, hop))
        if starts[-1] + length < num_samples:
            starts.append(num_samples - length)
        return [(start, length) for start in starts]

    def aggregated(self, scores: np.ndarray) -> np.ndarray:
        """Turn scores `(n, ...)` of the n windows of a recording into `(...)`."""
        if self.aggregate == "max":
            return scores.max(axis=0)
        if self.aggregate == "mean":
            return scores.mean(axis=0)
        return np.quantile(scores, float(self.aggregate), axis=0).astype(scores.dtype)


# Asks for whole recordings, however long.
WHOLE = Windows(length=sys.float_info.max)


@dataclass(frozen=True)
class Piece:
    """A recording or a window of it, checked.

    Attributes:
        samples: `(2, N)` float32 at the graph's rate, full scale 1.0.
        name: of the recording.
        start, end: of the window, in s.
        is_last: whether the recording ends with it.
        was_cut: whether the recording was cut into windows, be it one.
        recording_rate: the recording's own sampling rate, in Hz.
    """

    samples: np.ndarray
    name: str
    start: float
    end: float
    is_last: bool
    was_cut: bool
    recording_rate: int


@dataclass
class Samples:
    """Samples `(channels, N)` that are at hand already, with what a sound reader has."""

    samples: np.ndarray
    sampling_rate: int
    name: str

    @property
    def num_frames(self) -> int:
        """Samples per channel."""
        return self.samples.shape[-1] if self.samples.ndim else 0

    def read(self, start: int = 0, frames: int | None = None) -> np.ndarray:
        """Return `frames` samples `(channels, n)` from sample `start` on; `None` reads to the end."""
        return self.samples[..., start : None if frames is None else start + frames]


@dataclass(frozen=True)
class RecordingRules:
    """What a graph takes, and how recordings become that.

    Args:
        sampling_rate: of the graph, in Hz.
        min_samples: the fewest samples per channel that it takes.
        max_samples: the most; `None` for any number.
        frontend: the name of the front end, for messages.
        resample: whether other sampling rates are converted with soxr or refused.
    """

    sampling_rate: int
    min_samples: int
    max_samples: int | None
    frontend: str
    resample: bool

    def pieces(self, source: Any, windows: Windows | None) -> Iterator[Piece]:
        """Read one recording, whole or in windows.

        Args:
            source: a path, or an array `(2, N)` at the graph's rate, or a dict with `array` and `sampling_rate`.
            windows: how it is cut; `None` cuts what is longer than 60 s, or than the graph takes.

        Raises:
            ValueError or OSError: the recording breaks a rule, or cannot be read; the message names it.
        """
        with open_recording(source, self.sampling_rate) as recording:
            rate, num_frames = recording.sampling_rate, recording.num_frames
            if windows is None and rate > 0 and num_frames > rate * self.longest_whole:
                windows = self.default_windows
            was_cut = windows is not None and windows is not WHOLE
            spans = windows.starts(num_frames, rate) if windows is not None and was_cut else [(0, num_frames)]
            for index, (start, frames) in enumerate(spans):
                samples = recording.read(start, frames) if was_cut else recording.read()
                try:
                    wave = self.waveform(samples, rate)
                except ValueError as error:
                    raise ValueError(f"{recording.name}: {error}") from error
                is_last = index == len(spans) - 1
                yield Piece(wave, recording.name, start / rate, (start + frames) / rate, is_last, was_cut, rate)

    def waveform(self, audio: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Check samples `(2, N)`, and bring them to the graph's rate, float32 of full scale 1.0.

        Raises:
            ValueError: the shape or the type is another, samples are not finite, or there are too few of them.
        """
        wave = _checked(audio)
        if sampling_rate != self.sampling_rate:
            wave = self._resampled(wave, sampling_rate)
        if wave.shape[-1] < self.min_samples:
            raise ValueError(
                f"`audio` must have at least {self.min_samples} samples per channel at {self.sampling_rate} "
                f"Hz for frontend={self.frontend!r}. It has {wave.shape[-1]}."
            )
        return wave

    def _resampled(self, wave: np.ndarray, sampling_rate: int) -> np.ndarray:
        if not self.resample:
            raise ValueError(
                f"`sampling_rate` must be {self.sampling_rate}, or the extractor made with resample=True; "
                f"got {sampling_rate}."
            )
        if not sampling_rate > 0:
            raise ValueError(f"`sampling_rate` must be positive, got {sampling_rate}.")
        import soxr

        both = np.ascontiguousarray(wave.T)  # (N, 2): one call, one delay for both channels
        return np.ascontiguousarray(soxr.resample(both, sampling_rate, self.sampling_rate).T)

    @property
    def longest_possible(self) -> float:
        """The longest recording that the graph takes, in s."""
        return math.inf if self.max_samples is None else self.max_samples / self.sampling_rate

    @property
    def longest_whole(self) -> float:
        """The longest recording that is not cut unless asked, in s."""
        return min(LONGEST_WHOLE_SEC, self.longest_possible)

    @property
    def default_windows(self) -> Windows:
        """How recordings are cut that are too long."""
        return Windows(length=min(10.0, self.longest_whole))


@contextmanager
def open_recording(source: Any, sampling_rate: int) -> Iterator[Samples | SoundReader]:
    """Open one recording; `sampling_rate` is that of bare arrays.

    Raises:
        ValueError: the source is of another kind.
        OSError: a file is missing or cannot be read.
    """
    if isinstance(source, np.ndarray):
        yield Samples(source, sampling_rate, recording_name(source))
    elif isinstance(source, Mapping) and {"array", "sampling_rate"} <= set(source):
        name = source.get("path") or recording_name(source)
        yield Samples(np.asarray(source["array"]), int(source["sampling_rate"]), str(name))
    elif isinstance(source, str | os.PathLike):
        with SoundReader(os.fspath(source), str(source)) as reader:
            yield reader
    else:
        raise ValueError(
            "A recording must be a path, an array (2, samples), or a dict with 'array' and 'sampling_rate'; "
            f"got {type(source).__name__}."
        )


def recording_name(source: Any) -> str:
    """Return what messages call a recording."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, Mapping):
        return str(source.get("path") or f"array of shape {np.shape(source.get('array', ()))}")
    return f"array of shape {source.shape}" if isinstance(source, np.ndarray) else type(source).__name__


def _checked(audio: np.ndarray) -> np.ndarray:
    """Return one recording as `(2, N)` float32 of full scale 1.0; a ValueError says what is wrong with it."""
    wave = _float_samples(np.asarray(audio))
    shape = wave.shape
    if wave.ndim != 2:
        mono = ", which is mono" if wave.ndim == 1 else ""
        raise ValueError(f"Every recording in `audio` must have the shape (2, N). It has {shape}{mono}.")
    if shape[0] != 2 and shape[1] == 2 and shape[0] > 0:
        raise ValueError(
            f"`audio` must be channels first, (2, N). It has the shape {shape}, which looks transposed; "
            "pass its transpose."
        )
    if shape[0] != 2:
        noun = "channel (mono)" if shape[0] == 1 else "channels"
        raise ValueError(
            f"`audio` must have two channels, 0 the close and 1 the far microphone. It has {shape[0]} {noun}, "
            f"shape {shape}."
        )
    if shape[1] == 0:
        raise ValueError(f"`audio` must not be empty. It has no samples, shape {shape}.")
    if not np.isfinite(wave).all():
        raise ValueError(f"`audio` must be finite. It has {int((~np.isfinite(wave)).sum())} NaN or infinite samples.")
    # The power of such samples would overflow float32, many steps later.
    if float(np.abs(wave).max()) > LARGEST_SAMPLE:
        raise ValueError(f"`audio` must have its full scale at 1. It has a sample of {float(np.abs(wave).max()):.3g}.")
    return wave


def _float_samples(samples: np.ndarray) -> np.ndarray:
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        return (samples / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32)
    if samples.dtype.kind != "f":
        raise ValueError(f"`audio` must be floating point, int16 or int32. It has the dtype {samples.dtype}.")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is refused as such
        return samples.astype(np.float32)
