"""The sound of two microphones with a clock each, as two USB microphones have, brought onto the clock of the close one.

No two crystals run alike: at a difference of 50 ppm, a common one, two recordings are 4 s apart after a day. How many
samples of each have come by when tells both rates; the far sound is resampled, so that it stays where it was.

Letters: n samples of the close microphone, K taps.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

# One stamp in a second is kept, and so many of them: a clock changes with the temperature, within hours.
STAMP_SECONDS, NUM_STAMPS = 1.0, 1800
# Fewer stamps say nothing of a difference of some parts in a million.
LEAST_STAMPS = 60
# A line that has become better known moves the far sound by no more than this: more would be a change of its pitch.
FASTEST_SLEW = 3e-4
# The interpolation by a sinc in a Kaiser window: it is exact to 70 dB up to nine tenths of half the sampling rate.
HALF_TAPS, KAISER_BETA = 32, 7.0
# Of so many fractions of a sample the window is made once; between them it is a line.
NUM_PHASES = 512


@dataclass(frozen=True)
class Drift:
    """How much faster the clock of the far microphone runs than that of the close one.

    Attributes:
        ppm: in parts in a million.
        error_ppm: its standard error.
        seconds: the time over which it was observed.
    """

    ppm: float
    error_ppm: float
    seconds: float

    def __str__(self) -> str:
        faster = "faster" if self.ppm > 0 else "slower"
        return f"{abs(self.ppm):.1f} +- {self.error_ppm:.1f} ppm {faster} than that of the close one"


class _Clock:
    """Counts the samples of a microphone, and draws a line through the times at which they have come."""

    def __init__(self, rate: int):
        self.rate = rate
        self.num_samples = 0
        self._stamps: deque[tuple[float, int]] = deque(maxlen=NUM_STAMPS)
        self.line = (float(rate), math.inf, 0.0, 0.0)

    def note(self, num_samples: int, at: float) -> None:
        self.num_samples += num_samples
        if not self._stamps or at - self._stamps[-1][0] >= STAMP_SECONDS:
            self._stamps.append((at, self.num_samples))
            self.line = self._fitted()

    def _fitted(self) -> tuple[float, float, float, float]:
        """Rate in Hz, its standard error, the middle time, and the number of samples at that time."""
        times, counts = np.array(self._stamps, dtype=np.float64).T  # (stamps,) each
        middle, mean = times.mean(), counts.mean()
        if len(times) < LEAST_STAMPS:
            return float(self.rate), math.inf, float(middle), float(mean)
        spread = float(np.square(times - middle).sum())
        slope = float(((times - middle) * (counts - mean)).sum()) / spread
        rest = counts - mean - slope * (times - middle)
        error = math.sqrt(float(np.square(rest).sum()) / (len(times) - 2) / spread)
        return slope, error, float(middle), float(mean)

    @property
    def observed(self) -> float:
        """The seconds between the first and the last stamp."""
        return self._stamps[-1][0] - self._stamps[0][0] if self._stamps else 0.0


class TwoClocks:
    """Joins two streams of one nominal rate. The microphones must have begun to record.

    The beginnings are known to some hundredths of a second only, as blocks come when they come; from then on the far
    sound stays in place to a fraction of that.

    Args:
        rate: the nominal sampling rate of both in Hz.
    """

    def __init__(self, rate: int):
        self.rate = rate
        self._close, self._far = _Clock(rate), _Clock(rate)
        self._waiting: deque[np.ndarray] = deque()  # of the close microphone, (n,) each
        self._num_given = 0
        self._buffer = np.zeros(0, np.float32)  # of the far microphone
        self._buffer_begin = 0  # the number of its first sample
        self._position: float | None = None  # in samples of the far microphone, where the next close sample lies

    def push_close(self, samples: np.ndarray, at: float) -> None:
        """Take new samples `(n,)` of the close microphone, which came at a time of a steady clock, in s."""
        self._close.note(len(samples), at)
        self._waiting.append(np.asarray(samples, np.float32))

    def push_far(self, samples: np.ndarray, at: float) -> None:
        """Take new samples of the far microphone, as `push_close`."""
        self._far.note(len(samples), at)
        self._buffer = np.concatenate([self._buffer, np.asarray(samples, np.float32)])

    def joined(self) -> np.ndarray | None:
        """Return the next block `(2, n)` float32, or `None` before its far samples have come."""
        if not self._waiting or not self._far.num_samples:
            return None
        close = self._waiting[0]
        target = self._target(self._num_given + len(close))
        if self._position is None:
            self._position = target - len(close)
        farthest = FASTEST_SLEW * len(close)
        end = self._position + len(close) + float(np.clip(target - self._position - len(close), -farthest, farthest))
        if end + HALF_TAPS >= self._buffer_begin + len(self._buffer):
            return None
        positions = self._position + (end - self._position) * np.arange(len(close)) / len(close)
        far = _interpolated(self._buffer, positions - self._buffer_begin)
        self._waiting.popleft()
        self._num_given += len(close)
        self._position = end
        no_longer_needed = max(0, math.floor(end) - HALF_TAPS - self._buffer_begin)
        self._buffer = self._buffer[no_longer_needed:]
        self._buffer_begin += no_longer_needed
        return np.stack([close, far])

    def _target(self, num_close: int) -> float:
        """The number of far samples that had been heard when there were so many close ones."""
        close_rate, _, close_time, close_count = self._close.line
        far_rate, _, far_time, far_count = self._far.line
        time = close_time + (num_close - close_count) / close_rate
        return far_count + (time - far_time) * far_rate

    @property
    def drift(self) -> Drift | None:
        """The difference of the clocks; `None` before a minute has been heard."""
        if not (self._close.num_samples and self._far.num_samples):
            return None
        close_rate, close_error, _, _ = self._close.line
        far_rate, far_error, _, _ = self._far.line
        error = 1e6 * math.hypot(close_error / close_rate, far_error / far_rate)
        seconds = min(self._close.observed, self._far.observed)
        return None if math.isinf(error) else Drift(1e6 * (far_rate / close_rate - 1), error, seconds)


def _sinc_table() -> np.ndarray:
    """The taps `(NUM_PHASES + 1, K)` for fractions of a sample from 0 to 1."""
    distances = np.linspace(0, 1, NUM_PHASES + 1)[:, None] - np.arange(1 - HALF_TAPS, HALF_TAPS + 1)
    window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - np.square(distances / HALF_TAPS), 0, None))) / np.i0(KAISER_BETA)
    return (np.sinc(distances) * window).astype(np.float32)


_TABLE = _sinc_table()


def _interpolated(samples: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return samples `(n,)` at fractional positions; zeros before the first one."""
    first = np.floor(positions).astype(np.int64)  # (n,)
    phases = (positions - first) * NUM_PHASES
    rows = np.minimum(phases.astype(np.int64), NUM_PHASES - 1)
    shares = (phases - rows).astype(np.float32)[:, None]  # (n, 1)
    padded = np.concatenate([np.zeros(HALF_TAPS, np.float32), samples])
    # The sample before tap 0 of a position, counted in `padded`, is that at `first + 1 - HALF_TAPS`.
    begins = np.clip(first + 1, 0, len(padded) - 2 * HALF_TAPS)
    heard = np.lib.stride_tricks.sliding_window_view(padded, 2 * HALF_TAPS)[begins]  # (n, K)
    lower = np.einsum("nk,nk->n", heard, _TABLE[rows])
    upper = np.einsum("nk,nk->n", heard, _TABLE[rows + 1])
    return lower + shares[:, 0] * (upper - lower)
