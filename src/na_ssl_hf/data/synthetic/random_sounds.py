"""Synthesise random sounds of great variety for training, which are like no machine in particular.

A noise-aware model that has heard nothing but normal machines removes all else, faults included. These sounds keep it
from learning what a machine should sound like. Levels are absolute, as those of the synthetic machines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.signal import lfilter

from ...hub.fbank import SAMPLING_RATE
from .sound_synthesis import coloured, harmonic_sum, impulse_train, resonate, rotation_phase, shaped_noise, slow_curve

_MAX_LAYERS = 4
_LOWEST_HZ, _NYQUIST_SHARE = 40.0, 0.47
_RMS, _RMS_SPREAD_DB = 0.05, 6.0
_FADE_S = 0.004  # the on/off patterns fade, so that they do not click


def synthesize_random_sound(
    seed: int | Sequence[int], duration_s: float = 10.0, sampling_rate: int = SAMPLING_RATE
) -> np.ndarray:
    """Synthesise a mixture of one to four random layers, (N,) float32 with N = round(duration_s * sampling_rate).

    Layers are harmonic stacks, frequency-modulated tones, chirps, shaped noise, impulse trains through resonances and
    random bursts, each with an amplitude modulation and an on/off pattern of its own; the mixture is coloured. Its RMS
    is 0.05 of full scale with a spread of 6 dB.

    Args:
        seed: of the sound.
        duration_s: duration in s, at least 0.1.
        sampling_rate: rate in Hz, at least 8000.

    Raises:
        ValueError: a duration or rate is too small.
    """
    if not duration_s >= 0.1:
        raise ValueError(f"duration_s must be at least 0.1 s, got {duration_s}")
    if sampling_rate < 8000:
        raise ValueError(f"sampling_rate must be at least 8000 Hz, got {sampling_rate}")
    rng = np.random.default_rng([200, *([seed] if isinstance(seed, int | np.integer) else seed)])
    num_samples = round(duration_s * sampling_rate)
    total = np.zeros(num_samples, np.float32)
    for layer in rng.choice(len(_LAYERS), size=int(rng.integers(1, _MAX_LAYERS + 1))):
        sound = _LAYERS[layer](rng, num_samples, sampling_rate)
        sound = sound * _modulation(rng, num_samples, sampling_rate) * _pattern(rng, num_samples, sampling_rate)
        total += 10 ** (rng.uniform(-20, 0) / 20) * _unit_rms(sound)
    corners = [(hertz, rng.normal(0, 5)) for hertz in (60, 250, 1000, 2500, 5000, 8000)]
    level = 10 ** (rng.normal(0, _RMS_SPREAD_DB) / 20)
    return (_RMS * level * _unit_rms(coloured(total, sampling_rate, corners))).astype(np.float32)


def _unit_rms(sound: np.ndarray) -> np.ndarray:
    return sound / (np.sqrt(np.mean(np.square(sound, dtype=np.float64))) + 1e-9)


def _frequency(rng: np.random.Generator, sampling_rate: int, low: float = _LOWEST_HZ, high: float = np.inf) -> float:
    """Draw a log-uniform frequency between `low` and `high` Hz that stays below the Nyquist frequency."""
    return float(np.exp(rng.uniform(np.log(low), np.log(min(high, _NYQUIST_SHARE * sampling_rate)))))


def _harmonics(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray:
    pitch = _frequency(rng, sampling_rate, high=2000.0)
    count = int(np.clip(rng.integers(1, 40), 1, _NYQUIST_SHARE * sampling_rate / (1.15 * pitch)))
    order = np.arange(1, count + 1)
    amplitudes = rng.uniform(0.1, 1.0, size=count) * (rng.random(count) < rng.uniform(0.4, 1.0)) + 0.02
    amplitudes = amplitudes / order ** rng.uniform(0.0, 1.5)
    drift = rng.choice([0.0, 0.003, 0.02, 0.05]) * slow_curve(rng, num_samples, sampling_rate, (0.1, 3.0))
    phase = rotation_phase(rng, pitch * (1 + drift), sampling_rate)
    return harmonic_sum(phase, amplitudes, rng.uniform(0, 2 * np.pi, size=count))


def _frequency_modulation(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray:
    carrier, rate = _frequency(rng, sampling_rate, low=150.0), np.exp(rng.uniform(np.log(0.5), np.log(300.0)))
    modulator = rotation_phase(rng, np.full(num_samples, rate), sampling_rate)
    phase = rotation_phase(rng, np.full(num_samples, carrier), sampling_rate)
    # The deviation stays under a third of the carrier, so that the tone neither aliases nor crosses zero.
    index = rng.uniform(0, min(12.0, 0.3 * carrier / rate))
    return np.cos(phase + index * np.sin(modulator)).astype(np.float32)


def _chirps(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray:
    start, stop = _frequency(rng, sampling_rate, low=100.0), _frequency(rng, sampling_rate, low=100.0)
    period = np.exp(rng.uniform(np.log(0.05), np.log(4.0)))
    position = (np.arange(num_samples) / sampling_rate / period + rng.random()) % 1.0
    if rng.random() < 0.5:  # up and down, instead of jumping back
        position = 1 - np.abs(2 * position - 1)
    phase = rotation_phase(rng, start * (stop / start) ** position, sampling_rate)
    return np.cos(phase).astype(np.float32)


def _noise(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray:
    if rng.random() < 0.5:
        frequencies = np.geomspace(_LOWEST_HZ, sampling_rate / 2, int(rng.integers(3, 9)))
        corners = [(float(f), float(rng.uniform(-40, 0))) for f in frequencies]
    else:
        centre, octaves = _frequency(rng, sampling_rate, low=100.0), rng.uniform(0.1, 2.0)
        corners = [(centre / 2**octaves, -40.0), (centre, 0.0), (centre * 2**octaves, -40.0)]
    return shaped_noise(rng, num_samples, sampling_rate, corners)


def _impulses(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray:
    duration_s = num_samples / sampling_rate
    rate = max(1 / duration_s, np.exp(rng.uniform(np.log(0.7), np.log(200.0))))
    times = np.arange(rng.uniform(0, 1), rate * duration_s, 1.0) / rate
    jitter = rng.choice([0.0, 0.01, 0.1, 1.0])  # from the regularity of a machine to chance
    times = (times + jitter * rng.normal(0, 1, size=len(times)) / rate) % duration_s
    force = np.exp(rng.uniform(0, 0.8) * rng.standard_normal(len(times)))
    if rng.random() < 0.3:  # a load zone turns
        turn = rng.uniform(0.05, 0.5) * rate
        force = force * (1 + rng.uniform(0.2, 1.0) * np.cos(2 * np.pi * turn * times))
    train = impulse_train(times, force, num_samples, sampling_rate)
    decay = np.exp(rng.uniform(np.log(0.004), np.log(0.3)))
    low = _frequency(rng, sampling_rate, low=100.0, high=3000.0)
    modes = [
        (_frequency(rng, sampling_rate, low=low), decay * rng.uniform(0.5, 1.6), rng.uniform(0.2, 1.0))
        for _ in range(int(rng.integers(1, 8)))
    ]
    return resonate(train, sampling_rate, modes)


def _bursts(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray:
    """Place hisses at random times, which rise at once and fade."""
    duration_s = num_samples / sampling_rate
    count = 1 + rng.poisson(np.exp(rng.uniform(np.log(0.5), np.log(8.0))) * duration_s)
    onsets = impulse_train(
        rng.uniform(0, duration_s, size=count), rng.uniform(0.2, 1.0, size=count), num_samples, sampling_rate
    )
    fade = np.exp(rng.uniform(np.log(0.02), np.log(0.4)))
    pole = np.exp(-1 / (fade * sampling_rate))
    envelope = lfilter(np.array([1.0], np.float32), np.array([1.0, -pole], np.float32), onsets)
    return envelope * _noise(rng, num_samples, sampling_rate)


_LAYERS: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (
    _harmonics,
    _frequency_modulation,
    _chirps,
    _noise,
    _impulses,
    _bursts,
)


def _modulation(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray | float:
    """Draw an amplitude over time, which is constant, periodic or wandering."""
    kind = rng.integers(3)
    if kind == 0:
        return 1.0
    if kind == 1:
        rate = np.full(num_samples, np.exp(rng.uniform(np.log(0.5), np.log(120.0))))
        return 1 + rng.uniform(0.1, 1.0) * np.cos(rotation_phase(rng, rate, sampling_rate)).astype(np.float32)
    return np.exp(rng.uniform(0.1, 0.8) * slow_curve(rng, num_samples, sampling_rate, (0.1, 6.0)))


def _pattern(rng: np.random.Generator, num_samples: int, sampling_rate: int) -> np.ndarray | float:
    """Draw when a layer sounds (1) and rests (0); half of them always sound, the others have strokes or pauses."""
    if rng.random() < 0.5:
        return 1.0
    period = min(num_samples / sampling_rate, np.exp(rng.uniform(np.log(0.2), np.log(4.0))))
    jitter = rng.uniform(0, 0.4)
    count = int(num_samples / sampling_rate / period) + 3
    starts = (np.arange(count) - 1 + rng.random() + jitter * rng.standard_normal(count)) * period
    stops = starts + rng.uniform(0.1, 0.8) * period
    times = np.arange(num_samples) / sampling_rate
    # The time since the last start and since the last stop tell whether the layer sounds; both lists are sorted first.
    sounding = np.searchsorted(np.sort(starts), times, "right") > np.searchsorted(np.sort(stops), times, "right")
    width = max(1, round(_FADE_S * sampling_rate))
    return np.convolve(sounding.astype(np.float32), np.full(width, 1 / width, np.float32), mode="same")
