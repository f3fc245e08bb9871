"""Synthesise the backgrounds of a workshop: every seed is another place, so that unseen seeds are unseen noise.

Levels are absolute (an RMS of about 0.05 of full scale, a few dB of variation); mixing sets them through the SNR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...hub.fbank import SAMPLING_RATE
from .sound_synthesis import harmonic_sum, impulse_train, resonate, rotation_phase, shaped_noise, slow_curve

BACKGROUND_TYPES = ("ventilation", "voices", "conveyor", "traffic", "clatter")


@dataclass(frozen=True)
class _Scene:
    rng: np.random.Generator
    num_samples: int
    sampling_rate: int

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sampling_rate

    def noise(self, *corners: tuple[float, float]) -> np.ndarray:
        return shaped_noise(self.rng, self.num_samples, self.sampling_rate, corners)

    def wander(self, low: float, high: float) -> np.ndarray:
        return slow_curve(self.rng, self.num_samples, self.sampling_rate, (low, high))

    def tones(self, frequency: np.ndarray | float, amplitudes: np.ndarray) -> np.ndarray:
        phase = rotation_phase(self.rng, np.broadcast_to(frequency, self.num_samples), self.sampling_rate)
        return harmonic_sum(phase, amplitudes, self.rng.uniform(0, 2 * np.pi, size=len(amplitudes)))

    def hits(self, per_second: float, low: float, high: float, decay: float) -> np.ndarray:
        """Hit a random metal body at random times; its resonances lie between `low` and `high` Hz."""
        count = self.rng.poisson(per_second * self.duration_s)
        force = self.rng.exponential(1.0, size=count) * self.rng.choice([-1.0, 1.0], size=count)
        train = impulse_train(
            self.rng.uniform(0, self.duration_s, size=count), force, self.num_samples, self.sampling_rate
        )
        frequencies = np.exp(self.rng.uniform(np.log(low), np.log(high), size=6))
        modes = [(f, decay * self.rng.uniform(0.5, 1.5), self.rng.uniform(0.3, 1.0)) for f in frequencies]
        return resonate(train, self.sampling_rate, modes, length_s=min(1.0, 1.5 * decay))


def synthesize_background(
    kind: str, seed: int | Sequence[int], duration_s: float = 10.0, sampling_rate: int = SAMPLING_RATE
) -> np.ndarray:
    """Synthesise a background of one of BACKGROUND_TYPES, (N,) float32 with N = round(duration_s * sampling_rate).

    Args:
        kind: one of BACKGROUND_TYPES.
        seed: the place.
        duration_s: duration in s, at least 0.1.
        sampling_rate: rate in Hz, at least 8000.

    Raises:
        ValueError: an argument is out of its range.
    """
    if kind not in BACKGROUND_TYPES:
        raise ValueError(f"kind must be one of {BACKGROUND_TYPES}, got {kind!r}")
    if sampling_rate < 8000:
        raise ValueError(f"sampling_rate must be at least 8000 Hz, got {sampling_rate}")
    if not duration_s >= 0.1:
        raise ValueError(f"duration_s must be at least 0.1 s, got {duration_s}")
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    rng = np.random.default_rng([100 + BACKGROUND_TYPES.index(kind), *seeds])
    scene = _Scene(rng, round(duration_s * sampling_rate), sampling_rate)
    level = 10 ** (rng.normal(0.0, 3.0) / 20)
    return (0.05 * level * _SYNTHESIZERS[kind](scene)).astype(np.float32)


def _ventilation(scene: _Scene) -> np.ndarray:
    """Mix mains hum and a duct with a random colour."""
    rng = scene.rng
    hum = scene.tones(rng.choice([100.0, 120.0]), rng.uniform(0.1, 1.0, size=10) / np.arange(1, 11))
    peak = rng.uniform(150, 900)
    duct = scene.noise((50, -6), (peak, 0), (4 * peak, rng.uniform(-14, -4)), (8000, rng.uniform(-34, -14)))
    return rng.uniform(0.1, 0.7) * hum + duct * (1 + 0.1 * scene.wander(0.1, 1.0))


def _voices(scene: _Scene) -> np.ndarray:
    """Mix babble without words: voiced and unvoiced streams are switched at the rate of syllables."""
    rng = scene.rng
    total = np.zeros(scene.num_samples, np.float32)
    for _ in range(int(rng.integers(2, 5))):
        pitch = rng.uniform(95, 230) * (1 + 0.1 * scene.wander(0.3, 3.0))
        order = np.arange(1, 26)
        formants = rng.uniform([350, 1100, 2300], [800, 2000, 3000])
        frequency = order[:, None] * float(pitch.mean())
        envelope = (np.exp(-(((frequency - formants) / 180) ** 2)) * [1, 0.6, 0.3]).sum(axis=1) + 0.03
        syllables = np.maximum(scene.wander(2.0, 6.0) + 0.3, 0)
        hiss = np.maximum(scene.wander(2.0, 6.0) - 0.8, 0)
        total += syllables * scene.tones(pitch, envelope) + 0.5 * hiss * scene.noise((1500, -20), (4500, 0), (8000, -8))
    return total + 0.2 * scene.noise((60, 0), (1000, -8), (8000, -18))


def _conveyor(scene: _Scene) -> np.ndarray:
    """Mix rollers that rumble at their own rate and the knocks of what lies on the belt."""
    rng = scene.rng
    rate = rng.uniform(4, 14)
    rumble = scene.noise(
        (50, 0), (rng.uniform(200, 500), -2), (1500, rng.uniform(-14, -4)), (8000, rng.uniform(-32, -18))
    )
    pulse = 1 + 0.5 * scene.tones(rate * (1 + 0.02 * scene.wander(0.1, 1.0)), np.array([1.0, 0.5, 0.3]))
    drive = scene.tones(rng.uniform(180, 420), rng.uniform(0.1, 1.0, size=6) / np.arange(1, 7))
    return pulse * rumble + rng.uniform(0.1, 0.6) * drive + 0.4 * scene.hits(3 * rate, 300, 3000, 0.06)


def _traffic(scene: _Scene) -> np.ndarray:
    """Mix passing vehicles, whose rumble and tyre noise swell and fade, and an idling engine."""
    rng = scene.rng
    swell = np.exp(0.8 * scene.wander(0.05, 0.4))
    tyres = scene.noise((60, -8), (rng.uniform(500, 1100), 0), (2500, -9), (8000, -22))
    rumble = scene.noise((30, 0), (120, -4), (400, -18), (8000, -60))
    engine = scene.tones(rng.uniform(25, 60) * (1 + 0.02 * scene.wander(0.1, 1.0)), 1.0 / np.arange(1, 13) ** 0.7)
    return swell * (0.7 * tyres + 0.5 * rumble) + rng.uniform(0.1, 0.4) * engine


def _clatter(scene: _Scene) -> np.ndarray:
    """Mix tools and metal parts over a quiet floor, now and then with compressed air."""
    rng = scene.rng
    floor = scene.noise((60, 0), (500, -4), (3000, -12), (8000, -24))
    air = np.maximum(scene.wander(0.1, 0.7) - 0.9, 0) * scene.noise((800, -20), (4000, 0), (8000, -4))
    light = scene.hits(rng.uniform(2, 10), 1200, 6500, 0.15)
    heavy = scene.hits(rng.uniform(0.5, 3), 150, 2000, 0.4)
    return 0.5 * floor + 1.2 * air + 1.0 * light + 0.8 * heavy


_SYNTHESIZERS: dict[str, Callable[[_Scene], np.ndarray]] = {
    "ventilation": _ventilation,
    "voices": _voices,
    "conveyor": _conveyor,
    "traffic": _traffic,
    "clatter": _clatter,
}
