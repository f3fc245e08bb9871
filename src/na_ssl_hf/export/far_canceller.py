"""The cancellation of the far microphone in real arithmetic, which graphs can express: they have no complex spectra.

What the far microphone says of the close one is computed in `hub`; here is its mathematics once more, by matrix
products, for any number of samples in one graph.

Letters: B recordings, N samples, L samples of a frame or block, K = L / 2 + 1 frequencies of a frame, T frames.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..hub.far_microphone import FarMicrophone
from ..hub.noise_cancellation import (
    ENERGY_FLOOR,
    SPECTRAL_FLOOR,
    TINY,
    WORKING_PEAK,
    stft_lengths,
    sum_around,
)
from ..hub.pipeline_anomaly_scoring import AnomalyScorer

_SMALLEST = torch.finfo(torch.float32).tiny


def far_canceller(scorer: AnomalyScorer) -> "FarCanceller | None":
    """Make the module that cancels the far microphone as a scorer does, `(B, 2, N)` to `(B, 2, N)` float32.

    Args:
        scorer: a fitted scorer, calibrated to its installation or with a method that treats every clip alone.

    Returns:
        the module; `None` where the scorer leaves the close microphone as it is.

    Raises:
        ValueError: the far microphone is calibrated with a method that is not known here.
    """
    extractor, calibrated = scorer.feature_extractor, scorer.far_microphone
    steps: list[nn.Module] = []
    if calibrated is not None:
        steps = _steps_of(calibrated)
    elif extractor.far_cancellation is not None:
        steps = [_of_clip(extractor.far_cancellation, extractor.sampling_rate)]
    return FarCanceller(steps) if steps else None


def _steps_of(calibrated: FarMicrophone) -> list[nn.Module]:
    if calibrated.method_ == "spectral_subtraction":
        return [_of_clip("spectral_subtraction", calibrated.sampling_rate)]
    if calibrated.method_ == "none":
        return []
    if calibrated.method_ not in ("filter", "installation"):
        raise ValueError(
            f"`far_microphone` must be one whose method has an exportable form, got {calibrated.method_!r}."
        )
    steps: list[nn.Module] = [NoisePath(calibrated.filter_, round(calibrated.future * calibrated.sampling_rate))]
    if calibrated.method_ == "installation" and calibrated.slope_.any():
        steps.append(Subtraction(calibrated.slope_))
    return steps


def _of_clip(method: str, sampling_rate: int) -> nn.Module:
    kinds: dict[str, type[ClipCanceller]] = {
        "least_squares": LeastSquares,
        "spectral_subtraction": SpectralSubtraction,
    }
    return kinds[method](stft_lengths(method, sampling_rate)[0])


class FarCanceller(nn.Module):
    """Takes the far microphone out of the close channel, in one or several steps.

    Attributes:
        min_samples: the fewest samples per channel that it takes.
    """

    def __init__(self, steps: list[nn.Module]):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        # A mirrored margin is shorter than what it mirrors.
        self.min_samples = max(step.stft.hop + 1 if isinstance(step, ClipCanceller) else 1 for step in steps)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Turn `(B, 2, N)` into `(B, 2, N)` with another close channel."""
        close, far = waveforms.unbind(1)
        for step in self.steps:
            close = step(close, far)
        return torch.stack([close, far], dim=1)


class RealDft(nn.Module):
    """The discrete Fourier transform of L samples as two products with small matrices, each of about the root of L.

    Sample `b n + m` and frequency `k + a j`, with L = a b, meet in `exp(-2 pi i (n k / a + m k / L + m j / b))`:
    a transform over n, a turn by the middle term, and a transform over m (Cooley and Tukey, 1965).
    """

    over_rows_real: torch.Tensor
    over_rows_imaginary: torch.Tensor
    turn_real: torch.Tensor
    turn_imaginary: torch.Tensor
    over_columns_real: torch.Tensor
    over_columns_imaginary: torch.Tensor

    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.rows = max(rows for rows in range(1, math.isqrt(length) + 1) if length % rows == 0)
        self.columns = length // self.rows
        for name, first, second, period in (
            ("over_rows", self.rows, self.rows, self.rows),
            ("turn", self.rows, self.columns, length),
            ("over_columns", self.columns, self.columns, self.columns),
        ):
            numbers = torch.outer(torch.arange(first), torch.arange(second)) % period
            angles = 2 * math.pi * numbers.double() / period
            self.register_buffer(f"{name}_real", angles.cos().float(), persistent=False)
            self.register_buffer(f"{name}_imaginary", (-angles.sin()).float(), persistent=False)

    def of_real(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Transform `(..., L)` into real and imaginary part `(..., L)` of all frequencies."""
        grid = samples.unflatten(-1, (self.rows, self.columns))  # (..., a, b)
        real, imaginary = self._turned(self.over_rows_real @ grid, self.over_rows_imaginary @ grid)
        return (
            _transposed(real @ self.over_columns_real - imaginary @ self.over_columns_imaginary),
            _transposed(real @ self.over_columns_imaginary + imaginary @ self.over_columns_real),
        )

    def to_real(self, real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
        """Transform the spectrum `(..., L)` of something real back into it, `(..., L)`."""
        # The transform of the conjugate is the inverse but for the factor L, and another conjugate of what is real.
        real, imaginary = (part.unflatten(-1, (self.rows, self.columns)) for part in (real, -imaginary))
        real, imaginary = self._turned(
            self.over_rows_real @ real - self.over_rows_imaginary @ imaginary,
            self.over_rows_imaginary @ real + self.over_rows_real @ imaginary,
        )
        return _transposed(real @ self.over_columns_real - imaginary @ self.over_columns_imaginary) / self.length

    def _turned(self, real: torch.Tensor, imaginary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            real * self.turn_real - imaginary * self.turn_imaginary,
            real * self.turn_imaginary + imaginary * self.turn_real,
        )


def _transposed(grid: torch.Tensor) -> torch.Tensor:
    """Put `(..., a, b)` into the order of frequencies, `(..., L)`."""
    return grid.transpose(-1, -2).flatten(-2)


class Stft(nn.Module):
    """Frames of L samples with a Hann window, each half a frame after the last one, and back."""

    window: torch.Tensor

    def __init__(self, length: int):
        super().__init__()
        self.length, self.hop = length, length // 2
        self.dft = RealDft(length)
        self.register_buffer("window", torch.hann_window(length), persistent=False)

    def analyse(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return real and imaginary part `(..., T, K)` of `(..., N)`."""
        real, imaginary = self.dft.of_real(samples.unfold(-1, self.length, self.hop) * self.window)
        return real[..., : self.hop + 1], imaginary[..., : self.hop + 1]

    def synthesise(
        self, real: torch.Tensor, imaginary: torch.Tensor, is_used: torch.Tensor, num_samples: int
    ) -> torch.Tensor:
        """Return the samples `(B, N)` whose frames are nearest to `(B, T, K)`, without the half frame before them.

        Args:
            real, imaginary: parts of the spectra.
            is_used: `(T,)`, 1.0 for frames that count and 0.0 for others.
            num_samples: N.
        """
        mirrored = slice(1, self.hop)
        full = (
            torch.cat([real, real[..., mirrored].flip(-1)], dim=-1),
            torch.cat([imaginary, -imaginary[..., mirrored].flip(-1)], dim=-1),
        )
        weights = is_used[:, None] * self.window  # (T, L)
        sums = self._overlapped(self.dft.to_real(*full) * weights)
        weight = self._overlapped((weights * self.window)[None])
        inside = slice(self.hop, self.hop + num_samples)
        return sums[:, inside] / weight[:, inside].clamp_min(_SMALLEST)

    def _overlapped(self, frames: torch.Tensor) -> torch.Tensor:
        """Add up frames `(B, T, L)` to `(B, (T + 1) L / 2)`."""
        first, second = frames[..., : self.hop], frames[..., self.hop :]
        return (F.pad(first, (0, 0, 0, 1)) + F.pad(second, (0, 0, 1, 0))).flatten(-2)


class ClipCanceller(nn.Module):
    """What `cancel_far_microphone` does, with one of its methods."""

    def __init__(self, length: int):
        super().__init__()
        self.stft = Stft(length)

    def forward(self, close: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        """Return the close channel `(B, N)` without what the far one `(B, N)` explains."""
        gain = self.gain(close, far)
        num_samples, hop = close.shape[-1], self.stft.hop
        channels = F.pad(torch.stack([close, far]) * gain, (hop, hop), mode="reflect")
        real, imaginary = self.stft.analyse(F.pad(channels, (0, hop)))  # (2, B, T, K)
        starts = hop * torch.arange(real.shape[-2])
        is_known = (starts <= num_samples).float()[:, None]  # (T, 1)
        real, imaginary = self.cancelled(real, imaginary, is_known)
        # The last frame is used where less than an eighth of a hop is missing to it.
        is_used = (starts < num_samples + hop - 7 * hop // 8).float()
        return self.stft.synthesise(real, imaginary, is_used, num_samples) / gain

    def gain(self, close: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        """Return the gain `(B, 1)` of both channels before, which is taken back afterwards."""
        return torch.ones_like(close[:, :1])

    def cancelled(
        self, real: torch.Tensor, imaginary: torch.Tensor, is_known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the parts `(B, T, K)` of the close spectra, of those of both channels `(2, B, T, K)`.

        Args:
            real, imaginary: parts of the spectra, close channel first.
            is_known: `(T, 1)`, 0.0 for the frame that lies beyond the recording.
        """
        raise NotImplementedError


class LeastSquares(ClipCanceller):
    """One complex gain of the far microphone for each frequency, over the whole clip."""

    def gain(self, close: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        peak = torch.maximum(close.abs().amax(-1, keepdim=True), far.abs().amax(-1, keepdim=True))
        return torch.where(peak > 0, WORKING_PEAK / peak.clamp_min(_SMALLEST), 1.0)

    def cancelled(
        self, real: torch.Tensor, imaginary: torch.Tensor, is_known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (close_real, far_real), (close_imaginary, far_imaginary) = real, imaginary
        known_real, known_imaginary = far_real * is_known, far_imaginary * is_known
        energy = (known_real.square() + known_imaginary.square()).sum(-2, keepdim=True) + ENERGY_FLOOR  # (B, 1, K)
        cross_real = close_real * known_real + close_imaginary * known_imaginary
        cross_imaginary = close_imaginary * known_real - close_real * known_imaginary
        path_real, path_imaginary = (part.sum(-2, keepdim=True) / energy for part in (cross_real, cross_imaginary))
        return (
            close_real - (path_real * far_real - path_imaginary * far_imaginary),
            close_imaginary - (path_real * far_imaginary + path_imaginary * far_real),
        )


class SpectralSubtraction(ClipCanceller):
    """The magnitude of the far microphone off that of the close one (Boll, 1979)."""

    def cancelled(
        self, real: torch.Tensor, imaginary: torch.Tensor, is_known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        close, far = (real.square() + imaginary.square()).sqrt()
        difference = close - far
        magnitude = torch.where(difference > 0, difference, SPECTRAL_FLOOR * close)
        share = magnitude / close.clamp_min(_SMALLEST)
        return real[0] * share, imaginary[0] * share


class NoisePath(nn.Module):
    """The calibrated filter of an installation, by transforms of blocks (overlap-save).

    Args:
        filter_taps: `(P,)` float32.
        future: how many of them belong to later samples.
    """

    real: torch.Tensor
    imaginary: torch.Tensor

    def __init__(self, filter_taps: torch.Tensor, future: int):
        super().__init__()
        self.future, self.overlap = future, len(filter_taps) - 1
        length = 1 << max(8, (2 * self.overlap).bit_length())
        self.hop = length - self.overlap
        self.dft = RealDft(length)
        response = torch.fft.fft(filter_taps.double(), length)
        self.register_buffer("real", response.real.float(), persistent=False)
        self.register_buffer("imaginary", response.imag.float(), persistent=False)

    def forward(self, close: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        """Return the close channel `(B, N)` without what the filter makes of the far one `(B, N)`."""
        num_samples = close.shape[-1]
        # One block more than is needed: a graph for a single block would be bound to it.
        num_blocks = (num_samples + self.future + self.hop - 1) // self.hop + 1
        padded = F.pad(far, (self.overlap, num_blocks * self.hop - num_samples))
        real, imaginary = self.dft.of_real(padded.unfold(-1, self.dft.length, self.hop))  # (B, blocks, L)
        noise = self.dft.to_real(
            real * self.real - imaginary * self.imaginary, real * self.imaginary + imaginary * self.real
        )
        joined = noise[..., self.overlap :].flatten(-2)  # (B, blocks * hop)
        return close - joined[:, self.future : self.future + num_samples]


class Subtraction(nn.Module):
    """What `subtracted` does with the noise that follows the far microphone in power alone.

    Args:
        slope: `(K,)` float32, of `frame_slope`.
    """

    slope: torch.Tensor

    def __init__(self, slope: torch.Tensor):
        super().__init__()
        self.stft = Stft(2 * (len(slope) - 1))
        self.register_buffer("slope", slope.clone(), persistent=False)

    def forward(self, close: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        """Return the close channel `(B, N)` with less of what the far one `(B, N)` hears."""
        num_samples, hop = close.shape[-1], self.stft.hop
        channels = F.pad(torch.stack([close, far]), (hop, 3 * hop))
        real, imaginary = self.stft.analyse(channels)  # (2, B, T, K)
        of_close, of_far = sum_around(real.square() + imaginary.square())
        share = 1 - (self.slope * of_far / of_close.clamp_min(TINY) + TINY).sqrt()
        share = share.clamp_min(SPECTRAL_FLOOR)
        is_used = torch.ones_like(real[0, 0, :, 0])
        return self.stft.synthesise(real[0] * share, imaginary[0] * share, is_used, num_samples)
