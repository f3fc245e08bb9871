"""A slow change of the normal sound, told before it becomes a false alarm: refit, or add recordings to the memory."""

import logging
from typing import Any

logger = logging.getLogger(__name__)

# The chance that ADWIN takes steady p-values for changed ones, at each window.
CHANCE = 1e-4
# Before so many windows nothing is said.
LEAST_WINDOWS = 60


class DriftWatch:
    """Watches the mean of the p-values by ADWIN (Bifet and Gavalda, SIAM Data Mining 2007), as river has it.

    While windows are as the normal recordings, their p-values are spread evenly. A mean that moves says that machine,
    room or microphones change slowly, in whichever direction. Nothing is refitted by itself.
    """

    def __init__(self) -> None:
        self._detector: Any = None
        try:
            from river.drift import ADWIN
        except ImportError:
            logger.warning("A slow drift is not watched for: pip install 'na-ssl-hf[watch]' brings river.")
            return
        self._detector = ADWIN(delta=CHANCE)
        self._num_windows = 0

    def step(self, p_value: float) -> str | None:
        """Take the p-value of a window that overlaps with none before; returns a line for people after a change."""
        if self._detector is None:
            return None
        before = self._detector.estimation
        self._detector.update(p_value)
        self._num_windows += 1
        if not self._detector.drift_detected or self._num_windows < LEAST_WINDOWS:
            return None
        now = self._detector.estimation
        return (
            f"The p-values have moved from a mean of {before:.2f} to {now:.2f}: the normal sound has changed. Add "
            "recordings of it with `na-ssl bank add`, or fit again."
        )
