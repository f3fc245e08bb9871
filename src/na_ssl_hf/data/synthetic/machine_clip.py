"""What a synthesiser of machine sounds works with: how the machine runs, and the generators of one clip.

All signals are float32 arrays of shape (N,); frequencies are in Hz, times in s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from .sound_synthesis import harmonic_sum, impulse_train, rotation_phase, shaped_noise, slow_curve


@dataclass(frozen=True)
class OperatingPoint:
    """How the machine runs in one clip: speed setting (from 1), shaft or stroke rate in Hz, and load in [0, 1]."""

    setting: int
    rate: float
    load: float


@dataclass(frozen=True)
class MachineClip:
    """All that a synthesiser needs for one clip of `num_samples` samples (N) at `sampling_rate` Hz.

    Sound, fault and unit draw from generators of their own. Severity therefore changes nothing but the fault, and the
    seed never changes the unit, which means its resonances and tooth counts.
    """

    sound: np.random.Generator
    fault: np.random.Generator
    unit: np.random.Generator
    num_samples: int
    sampling_rate: int
    point: OperatingPoint
    severity: float

    def shaft(self, wander: float) -> np.ndarray:
        """Return the phase (N,) of the main shaft, whose speed wanders by the fraction `wander`."""
        curve = slow_curve(self.sound, self.num_samples, self.sampling_rate, (0.05, 0.8))
        return rotation_phase(self.sound, self.point.rate * (1 + wander * curve), self.sampling_rate)

    def tones(self, phase: np.ndarray, amplitudes: Sequence[float] | np.ndarray) -> np.ndarray:
        return harmonic_sum(phase, amplitudes, self.sound.uniform(0, 2 * np.pi, size=len(amplitudes)))

    def noise(self, *corners: tuple[float, float]) -> np.ndarray:
        return shaped_noise(self.sound, self.num_samples, self.sampling_rate, corners)

    def fault_noise(self, *corners: tuple[float, float]) -> np.ndarray:
        return shaped_noise(self.fault, self.num_samples, self.sampling_rate, corners)

    def impulses(self, times: np.ndarray, amplitudes: np.ndarray | float) -> np.ndarray:
        return impulse_train(times, np.asarray(amplitudes), self.num_samples, self.sampling_rate)

    def decay(self, train: np.ndarray, seconds: float) -> np.ndarray:
        """Return an envelope that rises at every impulse of `train` and falls by 60 dB in `seconds`."""
        pole = np.exp(-6.9 / (seconds * self.sampling_rate))
        return lfilter(np.array([1.0], np.float32), np.array([1.0, -pole], np.float32), train)

    def body(self, low: float, high: float, count: int, decay: float) -> list[tuple[float, float, float]]:
        """Draw `count` resonances of this unit between `low` and `high` Hz with 60 dB decay times around `decay` s."""
        frequencies = np.exp(self.unit.uniform(np.log(low), np.log(high), size=count))
        decays, gains = decay * self.unit.uniform(0.6, 1.6, size=count), self.unit.uniform(0.4, 1.0, size=count)
        return list(zip(frequencies, decays, gains, strict=True))
