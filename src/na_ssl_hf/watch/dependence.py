"""Whether windows depend on each other for longer than the alarm rule takes them to: its promise does not hold then."""

from collections import deque

import numpy as np
from scipy.stats import rankdata

# So many windows are looked at again and again, the newest of them; fewer tell nothing.
LEAST_WINDOWS, MOST_WINDOWS = 500, 4000
# A rank correlation of scores above the first number is told; what is below the second counts as none.
TOLD_CORRELATION, NO_CORRELATION = 0.2, 0.1


class Dependence:
    """Watches the rank correlation between the scores of windows that the alarm rule takes for independent.

    Args:
        spacing: from one of the windows to the next, in s.
        independent_after: the time after which the alarm rule takes them for independent, in s.
    """

    def __init__(self, spacing: float, independent_after: float = 0.0):
        self._spacing = spacing
        self._lag = max(1, round(independent_after / spacing))
        self._scores: deque[float] = deque(maxlen=MOST_WINDOWS)
        self._num_windows = 0

    def step(self, score: float) -> tuple[float, float] | None:
        """Take the score of a window that overlaps with none before.

        Returns:
            now and then, where windows depend on each other: their rank correlation, and twice the time in s
            after which there seems to be none; `None` otherwise.
        """
        self._scores.append(score)
        self._num_windows += 1
        if self._num_windows % LEAST_WINDOWS:
            return None
        size = len(self._scores)
        ranks = rankdata(self._scores) - (size + 1) / 2
        spectrum = np.abs(np.fft.rfft(ranks, 2 * size)) ** 2
        correlations = np.fft.irfft(spectrum)[: size // 4]
        correlations /= max(correlations[0], 1e-12)
        if self._lag >= len(correlations) or correlations[self._lag] < TOLD_CORRELATION:
            return None
        below = np.flatnonzero(correlations < NO_CORRELATION)
        lag = int(below[0]) if len(below) else len(correlations)
        # So few windows tell the time roughly, and too short a one would not keep the promise.
        return float(correlations[self._lag]), 2 * lag * self._spacing
