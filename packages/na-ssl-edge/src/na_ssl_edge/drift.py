"""Whether what is scored still comes from the installation to which the far microphone was calibrated.

The rules, their reasons and the words are those of na_ssl_hf (`FarMicrophone.listen`, `FarMicrophone.drift` and
`NoisePathSums` there).

Letters: N samples, W samples of a block, T blocks, K = W / 2 + 1 frequencies, G levels, P taps of the filter.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

LISTENED_SECONDS = 120.0
DRIFT_DB = 3.0
SILENT_POWER = 1e-12

BLOCK_SECONDS = 1.024
HOPS_PER_BLOCK = 4
NEIGHBOURHOOD_HZ = 800.0
COMPARED_SHARE = 0.35
STEP_DB, LOWEST_DB, NUM_LEVELS = 2.0, -160.0, 100
TINY = 1e-20
LEAST_SLOPE = 1e-3


class Spectra(NamedTuple):
    """Mean spectra over blocks, or a difference of two: `close` and `far` `(K,)` float64, `cross` `(K,)` complex128."""

    close: np.ndarray
    far: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, stacked: np.ndarray) -> "Spectra":
        """Return the spectra of which `stacked (4, K)` holds close, far, and real and imaginary part of cross."""
        close, far, real, imaginary = stacked.astype(np.float64)
        return cls(close, far, real + 1j * imaginary)

    def swapped(self) -> "Spectra":
        """Return what there would be with the channels swapped."""
        return Spectra(self.far, self.close, self.cross.conj())


class Sums:
    """Sums of the spectra of blocks by the level of the far microphone, `(4, G, K)`, and their numbers, `(G, K)`."""

    def __init__(self, sampling_rate: int):
        self._sampling_rate = sampling_rate
        self._window = block_length(sampling_rate)
        num_frequencies = self._window // 2 + 1
        self._sums = np.zeros((4, NUM_LEVELS, num_frequencies))
        self._counts = np.zeros((NUM_LEVELS, num_frequencies))
        self.num_samples = 0

    def add(self, channels: np.ndarray) -> None:
        """Add a recording `(2, N)` float32."""
        self.num_samples += channels.shape[1]
        window = self._window
        taper = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)
        padded = np.pad(channels.astype(np.float32), ((0, 0), (window // 2, window // 2)))
        blocks = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)[:, :: window // HOPS_PER_BLOCK]
        places = np.arange(window // 2 + 1)
        scale = np.sqrt(np.square(taper).sum())
        # One block at a time, because all of a long recording would take more memory than its samples.
        for index in range(blocks.shape[1]):
            close, far = np.fft.rfft(blocks[:, index] * taper) / scale  # (K,) each
            power = np.square(far.real) + np.square(far.imag)
            around = smoothed(power, neighbourhood(self._sampling_rate))
            # A block without any sound says nothing of a path.
            if not around.max() > 0:
                continue
            steps = (10 * np.log10(np.maximum(around, 1e-30)) - LOWEST_DB) / STEP_DB
            level = np.clip(steps.astype(np.int64), 0, NUM_LEVELS - 1)
            cross = close * far.conj()
            values = (np.square(close.real) + np.square(close.imag), power, cross.real, cross.imag)
            for sums, value in zip(self._sums, values, strict=True):
                sums[level, places] += value
            self._counts[level, places] += 1

    def mean_far(self) -> float:
        """Return the mean power of the far microphone over blocks and frequencies."""
        return float((self._sums[1].sum(0) / np.maximum(self._counts.sum(0), 1e-12)).mean())

    def difference(self) -> Spectra:
        """Return the mean of the 35 % of the blocks in which the far microphone is loudest, minus the quietest 35 %."""
        loud = self._lowest(self._counts[::-1])[::-1]
        weights = self._shares(loud) - self._shares(self._lowest(self._counts))
        return Spectra.of((self._sums * weights).sum(1))

    def _lowest(self, counts: np.ndarray) -> np.ndarray:
        before = counts.cumsum(0) - counts
        return np.clip((COMPARED_SHARE * counts.sum(0) - before) / np.maximum(counts, 1e-12), 0, 1)

    def _shares(self, part: np.ndarray) -> np.ndarray:
        return part / np.maximum((part * self._counts).sum(0), 1e-12)


class Installation:
    """The installation of a calibrated far microphone, and whether recordings still come from it.

    Args:
        settings: `sampling_rate` in Hz, and `future`, the taps of the filter that lie ahead.
        arrays: `filter (P,)` and `noise_spectra (4, K)`, see [`Spectra.of`].

    Raises:
        LookupError: a setting or an array is missing.
        ValueError: one is out of its range, or an array has another shape or is not finite.
    """

    def __init__(self, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        rate, future = settings["sampling_rate"], settings["future"]
        for name, value, least in (("sampling_rate", rate, 1000), ("future", future, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 192_000:
                raise ValueError(f"`{name}` must be a whole number from {least} to 192000, got {value!r}.")
        self._sampling_rate, self._future = rate, future
        self._filter, spectra = arrays["filter"], arrays["noise_spectra"]
        shape = (4, block_length(rate) // 2 + 1)
        if spectra.shape != shape or not np.isfinite(spectra).all():
            raise ValueError(f"`noise_spectra` must be finite of shape {shape}, got {spectra.shape}.")
        most = block_length(rate)
        if self._filter.ndim != 1 or not future < len(self._filter) <= most or not np.isfinite(self._filter).all():
            raise ValueError(
                f"`filter` must be finite with {future + 1} to {most} taps, got shape {self._filter.shape}."
            )
        self._before_db = self._slopes_db(Spectra.of(spectra))
        self._listened: Sums | None = None
        self._unheard, self._is_told = 0.0, False

    def listen(self, channels: np.ndarray) -> None:
        """Warn where what is scored has drifted, once until it is as it was; a tenth of it is listened to.

        Args:
            channels: `(2, N)` float32, channel 0 close and 1 far, at the rate of the calibration.
        """
        seconds = channels.shape[1] / self._sampling_rate
        if self._unheard >= seconds:
            self._unheard -= seconds
            return
        if self._listened is None:
            self._listened = Sums(self._sampling_rate)
        self._listened.add(channels)
        if self._listened.num_samples < LISTENED_SECONDS * self._sampling_rate:
            return
        listened, self._listened, self._unheard = self._listened, None, 9 * LISTENED_SECONDS
        if listened.mean_far() >= SILENT_POWER:
            self._tell_drift(listened.difference())

    def _tell_drift(self, noise: Spectra) -> None:
        residual_db, level_db = self.drift_of(noise)
        is_drifted = _is_drifted(residual_db, level_db)
        if is_drifted and not self._is_told:
            as_swapped = _is_drifted(*self.drift_of(noise.swapped()))
            guess = "" if as_swapped else " With its channels swapped it would be as it was: are they?"
            logger.warning(
                f"The installation has drifted since the far microphone was calibrated: {residual_db:+.1f} dB of "
                f"noise that the filter leaves, {level_db:+.1f} dB of the far microphone against the close one "
                f"(normal: within {DRIFT_DB:g} dB). Fit the scorer anew on normal recordings of today.{guess}"
            )
        self._is_told = is_drifted

    def drift_of(self, noise: Spectra) -> tuple[float, float]:
        """Return how much more noise the filter leaves, and how the far level changed against the close one, in dB."""
        residual_db, level_db = (
            float(np.median(now - before)) for now, before in zip(self._slopes_db(noise), self._before_db, strict=True)
        )
        # A microphone that became quieter leaves more noise, too; the filter's part is what the level does not explain.
        return residual_db - level_db, -level_db

    def _slopes_db(self, noise: Spectra) -> list[np.ndarray]:
        """Return how power in the close microphone grows with that in the far one, filtered and not, `(K,)` in dB."""
        width, window = neighbourhood(self._sampling_rate), block_length(self._sampling_rate)
        taps = np.pad(self._filter.astype(np.float64), (0, window - len(self._filter)))
        response = np.fft.rfft(np.roll(taps, -self._future))
        explained = 2 * (noise.cross * response.conj()).real - np.square(np.abs(response)) * noise.far
        far = np.maximum(smoothed(noise.far, width), TINY)
        left = (smoothed(noise.close - explained, width), smoothed(noise.close, width))
        return [10 * np.log10(np.maximum(power / far, LEAST_SLOPE)) for power in left]


def block_length(sampling_rate: int) -> int:
    """Return the samples W of a block at a rate in Hz: the power of two nearest to 1.024 s."""
    return 1 << round(math.log2(BLOCK_SECONDS * sampling_rate))


def neighbourhood(sampling_rate: int) -> int:
    """Return the odd number of frequencies of a block that lie within 800 Hz."""
    return 2 * round(NEIGHBOURHOOD_HZ / 2 * block_length(sampling_rate) / sampling_rate) + 1


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Average `(K,)` over `width` (odd) neighbours; the ends have fewer, and nothing is below 0."""
    sums = np.concatenate([[0.0], values.astype(np.float64).cumsum()])
    places = np.arange(len(values))
    first, last = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    return np.maximum((sums[last] - sums[first]) / (last - first), 0.0)


def _is_drifted(residual_db: float, level_db: float) -> bool:
    return max(residual_db, abs(level_db)) > DRIFT_DB
