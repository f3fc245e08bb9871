"""The building blocks of the synthetic sounds: phases, harmonics, shaped noise, impulse trains and resonances.

All signals are float32 arrays of shape (N,); frequencies are in Hz, times in s, gains in dB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

_CONTROL_RATE = 100  # Hz, at which slow modulations are drawn before they are interpolated


def slow_curve(
    rng: np.random.Generator, num_samples: int, sampling_rate: int, rates: tuple[float, float]
) -> np.ndarray:
    """Draw a zero-mean curve of unit RMS between `rates` (Hz), which is the wander of a speed, load or level."""
    times = np.arange(int(num_samples / sampling_rate * _CONTROL_RATE) + 2) / _CONTROL_RATE
    frequencies = rng.uniform(*rates, size=4)
    phases = rng.uniform(0, 2 * np.pi, size=4)
    curve = np.cos(2 * np.pi * frequencies[:, None] * times + phases[:, None]).sum(axis=0) / np.sqrt(2.0)
    return np.interp(np.arange(num_samples) / sampling_rate, times, curve).astype(np.float32)


def rotation_phase(rng: np.random.Generator, frequency: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return the phase (N,) in radians, float64, of a shaft that turns with `frequency` (N,) Hz from a random angle."""
    return np.cumsum(frequency, dtype=np.float64) * (2 * np.pi / sampling_rate) + rng.uniform(0, 2 * np.pi)


def harmonic_sum(phase: np.ndarray, amplitudes: Sequence[float] | np.ndarray, phases: np.ndarray) -> np.ndarray:
    """Return sum_k amplitudes[k] * cos((k + 1) * phase + phases[k]).

    Complex powers of one rotation take the place of a cosine for each harmonic.
    """
    rotation = np.exp(1j * phase).astype(np.complex64)
    total = np.zeros_like(rotation)
    for coefficient in reversed(np.asarray(amplitudes) * np.exp(1j * np.asarray(phases))):  # Horner's rule
        total += np.complex64(coefficient)
        total *= rotation
    return total.real


def shaped_noise(
    rng: np.random.Generator, num_samples: int, sampling_rate: int, corners: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Draw Gaussian noise of unit RMS whose spectrum follows `corners` (Hz, dB), linear in dB over log frequency."""
    length = next_fast_len(num_samples, real=True)
    spectrum = rfft(rng.standard_normal(length, dtype=np.float32))
    spectrum *= _gain_curve(length, sampling_rate, corners)
    noise = irfft(spectrum, length)[:num_samples]
    return noise / (np.sqrt(np.mean(noise**2)) + np.float32(1e-12))


def coloured(signal: np.ndarray, sampling_rate: int, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """Filter `signal` (N,) without phase shift by the gain of `corners` (Hz, dB)."""
    length = next_fast_len(len(signal), real=True)
    spectrum = rfft(signal, length)
    spectrum *= _gain_curve(length, sampling_rate, corners)
    return irfft(spectrum, length)[: len(signal)]


def impulse_train(times: np.ndarray, amplitudes: np.ndarray, num_samples: int, sampling_rate: int) -> np.ndarray:
    """Place impulses at fractional `times` (s), each of which is split over its two neighbouring samples."""
    position = np.asarray(times) * sampling_rate
    inside = (position >= 0) & (position < num_samples - 1)
    position, amplitudes = position[inside], np.broadcast_to(amplitudes, inside.shape)[inside]
    index = position.astype(np.int64)
    fraction = position - index
    train = np.bincount(index, weights=amplitudes * (1 - fraction), minlength=num_samples)
    train[:num_samples] += np.bincount(index + 1, weights=amplitudes * fraction, minlength=num_samples)
    return train.astype(np.float32)


def resonate(
    excitation: np.ndarray, sampling_rate: int, modes: Sequence[tuple[float, float, float]], length_s: float = 0.25
) -> np.ndarray:
    """Send `excitation` (N,) through a ringing body, with modes of frequency in Hz, 60 dB decay in s and amplitude."""
    times = np.arange(int(length_s * sampling_rate), dtype=np.float32) / sampling_rate
    response = np.zeros_like(times)
    for frequency, decay, amplitude in modes:
        response += amplitude * np.exp(-6.9 * times / decay) * np.sin(2 * np.pi * frequency * times)
    length = next_fast_len(len(excitation) + len(response), real=True)
    spectrum = rfft(excitation, length)
    spectrum *= rfft(response, length)
    return irfft(spectrum, length)[: len(excitation)]


def crossings(phase: np.ndarray, per_turn: float, sampling_rate: int) -> np.ndarray:
    """Return the times (s) of `per_turn` events a turn of a shaft with increasing `phase` (N,) in radians."""
    turns = phase * (per_turn / (2 * np.pi))
    events = np.arange(np.ceil(turns[0]), np.floor(turns[-1]) + 1)
    return np.interp(events, turns, np.arange(len(turns)) / sampling_rate)


def _gain_curve(length: int, sampling_rate: int, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    frequencies = np.maximum(np.fft.rfftfreq(length, 1 / sampling_rate), 1.0)
    points, decibels = np.array(corners, dtype=np.float64).T
    gain = 10 ** (np.interp(np.log(frequencies), np.log(points), decibels) / 20)
    return gain.astype(np.float32)
