"""Change sounds as other machines, rooms and microphones would change them, so that few files teach much.

Every change is one that happens to real sounds: another speed, a second sound beside it, bursts, a smooth frequency
response, another gain. Letters in shapes: N samples.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..hub.fbank import SAMPLING_RATE
from .corpora.manifest import SoundFile, read_crop

# How often a crop is changed in each way, and how much.
SPEED_SHARE, SPEEDS = 0.5, (0.7, 1.45)
FILTER_SHARE, FILTER_DB = 0.5, 12.0
MIXTURE_SHARE, MIXTURE_DB = 0.4, (-10.0, 10.0)
BURST_SHARE, BURST_DB = 0.25, (-10.0, 15.0)
GAIN_DB = 12.0


def changed_crop(sounds: Sequence[SoundFile], num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a crop of a random sound and change it.

    Half of the crops are faster or slower (0.7 to 1.45 times, pitch included), 40 % have a second sound beside them
    (-10 to 10 dB), a quarter have bursts, half are filtered smoothly, and all get a gain of -12 to 12 dB.

    Args:
        sounds: at least one.
        num_samples: N, at 16 kHz; shorter sounds are repeated.
        rng: of all draws.

    Returns:
        (N,) float32, clipped to full scale.

    Raises:
        OSError: a file cannot be read or does not fit its manifest.
    """
    wave = crop_at_another_speed(sounds, num_samples, rng)
    if rng.random() < MIXTURE_SHARE:
        wave = wave + at_level(crop_at_another_speed(sounds, num_samples, rng), wave, rng.uniform(*MIXTURE_DB))
    if rng.random() < BURST_SHARE:
        wave = wave + at_level(bursts(num_samples, rng), wave, rng.uniform(*BURST_DB))
    if rng.random() < FILTER_SHARE:
        wave = smoothly_filtered(wave, rng)
    return (wave * decibels(rng.uniform(-GAIN_DB, GAIN_DB))).astype(np.float32).clip(-1.0, 1.0)


def crop_at_another_speed(sounds: Sequence[SoundFile], num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a crop (N,) of a random sound, often faster or slower, which moves its pitch as well."""
    speed = math.exp(rng.uniform(*np.log(SPEEDS))) if rng.random() < SPEED_SHARE else 1.0
    sound = sounds[int(rng.integers(len(sounds)))]
    needed = math.ceil(num_samples * speed)
    start = int(rng.integers(max(1, sound.num_samples() - needed + 1)))
    crop = read_crop(sound, start, needed)
    length = min(needed, sound.num_samples() - start)
    crop = np.resize(crop[:length], needed)  # a short sound is repeated: silence would teach nothing
    positions = np.arange(num_samples) * (needed - 1) / max(1, num_samples - 1)
    return crop if speed == 1.0 else np.interp(positions, np.arange(needed), crop)


def at_level(wave: np.ndarray, reference: np.ndarray, level_db: float) -> np.ndarray:
    """Scale a wave (N,) to a level relative to the reference (N,), in dB of their energies."""
    energy, wanted = float(np.square(wave).mean()), float(np.square(reference).mean())
    return wave * decibels(level_db) * math.sqrt((wanted + 1e-10) / (energy + 1e-10))


def bursts(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Make a few short decaying bursts of coloured noise, periodic or at random times, (N,)."""
    decay = SAMPLING_RATE * math.exp(rng.uniform(math.log(0.004), math.log(0.15)))
    length = min(num_samples, round(6 * decay))
    burst = smoothly_filtered(rng.standard_normal(length), rng) * np.exp(-np.arange(length) / decay)
    count = int(rng.integers(1, 24))
    starts = np.linspace(0, 1, count, endpoint=False) if rng.random() < 0.5 else rng.random(count)
    train = np.zeros(num_samples + length)
    for start in starts:
        begin = int(start * num_samples)
        train[begin : begin + length] += burst * rng.uniform(0.5, 1.0)
    return train[:num_samples]


def smoothly_filtered(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Filter a wave (N,) by a random smooth magnitude response."""
    spectrum = np.fft.rfft(wave)
    knots = rng.normal(0.0, FILTER_DB / 2, int(rng.integers(3, 9)))
    # Equal steps on a scale between linear and logarithmic, as hearing and mel bands have it.
    places = np.sqrt(np.linspace(0, 1, len(spectrum)))
    return np.fft.irfft(spectrum * decibels(np.interp(places, np.linspace(0, 1, len(knots)), knots)), n=len(wave))


def decibels(gain_db: Any) -> Any:
    """Return the factor of amplitude that a gain in dB is."""
    return 10 ** (gain_db / 20)
