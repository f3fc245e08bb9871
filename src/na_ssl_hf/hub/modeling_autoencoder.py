"""The autoencoder of the DCASE Task 2 baseline and its two anomaly scores (Harada et al., EUSIPCO 2023).

Letters: N samples, T frames, M mel bins, P frames in a vector, V = T - P + 1 vectors, K frequency bins.
"""

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_autoencoder import AutoencoderConfig
from .fbank import SAMPLING_RATE, real_tensors
from .modeling_shared import CompleteModel

SCORE_METHODS = ("mse", "mahalanobis")

FFT_LENGTH = 1024
HOP_LENGTH = 512
POWER_FLOOR = 2.220446049250313e-16  # float64's epsilon, as in the original

# The mel scale of Slaney's Auditory Toolbox (1998): linear up to 1 kHz, then 27 mel for every factor of 6.4.
_HERTZ_PER_MEL = 200.0 / 3.0
_LOG_START_HERTZ, _LOG_START_MEL = 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27.0


def log_mel_decibels(waveform: torch.Tensor, num_mel_bins: int = 128) -> torch.Tensor:
    """Compute the power mel spectrogram in dB.

    Frames of 1024 samples every 512 have a periodic Hann window and are centred, with zeros at both ends.

    Args:
        waveform: `(N,)` float, 16 kHz, full scale 1.0.
        num_mel_bins: area-normalised Slaney triangles from 0 to 8000 Hz.

    Returns:
        `(1 + N // 512, num_mel_bins)` float32; digital silence is -156.5 dB.

    Raises:
        ValueError: `waveform` is not one-dimensional, holds integers or is empty.
    """
    if waveform.ndim != 1 or not waveform.is_floating_point() or len(waveform) == 0:
        raise ValueError(
            f"`waveform` must be floating point of shape (N,), N >= 1, got {waveform.dtype} {tuple(waveform.shape)}."
        )
    # In float64, the rounding errors of a loud tone stay below the faint bins beside it.
    window = torch.hann_window(FFT_LENGTH, dtype=torch.float64, device=waveform.device)
    spectrum = torch.stft(
        waveform.double(), FFT_LENGTH, HOP_LENGTH, window=window, pad_mode="constant", return_complex=True
    )  # (K, T)
    power = spectrum.real.square() + spectrum.imag.square()
    mel = _mel_bank(num_mel_bins).to(waveform.device) @ power  # (M, T)
    return (10.0 * mel.clamp_min(POWER_FLOOR).log10()).T.float()


def stack_frames(log_mel: torch.Tensor, num_frames: int = 5) -> torch.Tensor:
    """Put every `num_frames` successive frames side by side: `(T, M)` -> `(T - num_frames + 1, num_frames * M)`.

    Fewer frames than that give no vector, `(0, num_frames * M)`.
    """
    num_vectors = max(0, len(log_mel) - num_frames + 1)
    if num_vectors == 0:
        return log_mel.new_zeros(0, num_frames * log_mel.shape[1])
    return log_mel.unfold(0, num_frames, 1).transpose(1, 2).flatten(1)  # (V, P * M)


@dataclass
class AutoencoderOutput(ModelOutput):
    """The output holds the `reconstruction` `(V, P * M)` of the input vectors, in dB, and the `bottleneck`."""

    reconstruction: torch.Tensor | None = None
    bottleneck: torch.Tensor | None = None


class AutoencoderModel(CompleteModel):
    """A fully connected autoencoder of log-mel vectors; sounds that it reconstructs badly are anomalous.

    Attributes:
        cov_source, cov_target: the covariance `(M, M)` of the residuals of each domain, in dB^2 as the official code
            scales it; zero where it could not be estimated.
    """

    config: AutoencoderConfig
    config_class = AutoencoderConfig
    base_model_prefix = "autoencoder"
    main_input_name = "input_values"
    cov_source: torch.Tensor
    cov_target: torch.Tensor

    def __init__(self, config: AutoencoderConfig):
        super().__init__(config)
        size = config.num_frames * config.num_mel_bins
        hidden = [config.hidden_size] * config.num_hidden_layers
        self.encoder = nn.Sequential(*_blocks([size, *hidden, config.bottleneck_size], config.batch_norm_eps))
        self.decoder = nn.Sequential(
            *_blocks([config.bottleneck_size, *hidden], config.batch_norm_eps), nn.Linear(config.hidden_size, size)
        )
        for name in ("cov_source", "cov_target"):
            self.register_buffer(name, torch.zeros(config.num_mel_bins, config.num_mel_bins))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # This is torch's own default, with which the published numbers were trained.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        if isinstance(module, AutoencoderModel):
            init.zeros_(module.cov_source)
            init.zeros_(module.cov_target)

    def forward(self, input_values: torch.Tensor, **kwargs: Any) -> AutoencoderOutput:
        """Reconstruct log-mel vectors `(V, P * M)` in dB; in eval mode each is reconstructed by itself.

        Raises:
            ValueError: the shape is another.
        """
        size = self.config.num_frames * self.config.num_mel_bins
        if input_values.ndim != 2 or input_values.shape[1] != size:
            raise ValueError(f"`input_values` must have the shape (V, {size}), got {tuple(input_values.shape)}.")
        bottleneck = self.encoder(input_values.to(self.dtype))
        return AutoencoderOutput(reconstruction=self.decoder(bottleneck), bottleneck=bottleneck)

    def vectors(self, waveform: torch.Tensor) -> torch.Tensor:
        """Make the input vectors `(V, P * M)` of a close channel, `(N,)` float at 16 kHz; a short clip has none."""
        return stack_frames(log_mel_decibels(waveform, self.config.num_mel_bins), self.config.num_frames)

    @torch.no_grad()
    def anomaly_score(self, input_values: torch.Tensor, method: str = "mse") -> float:
        """Score one clip; a higher score is more anomalous.

        With `residual = reconstruction - input` and `m` its mean over all vectors and their frames, `(M,)`:

        - `"mse"`: mean of `residual**2`, in dB^2.
        - `"mahalanobis"`: `m @ inverse(cov) @ m`, the smaller value of both domains. The official code computes it by
          averaging a whole matrix of products, and not the mean of the distances of single frames.

        Args:
            input_values: all log-mel vectors of the clip, `(V, P * M)`.
            method: `"mse"` or `"mahalanobis"`.

        Raises:
            ValueError: the method is unknown, there is no vector, a shape is wrong, the model is in training mode, or a
                covariance is missing.
        """
        if method not in SCORE_METHODS:
            raise ValueError(f"`method` must be one of {SCORE_METHODS}, got {method!r}.")
        if self.training:
            raise ValueError("A score needs the statistics of training: call `model.eval()` first.")
        reconstruction = self(input_values).reconstruction
        residual = (reconstruction.float() - input_values.float()).cpu().double()
        if len(residual) == 0:
            raise ValueError(f"`input_values` must hold at least one vector, got {tuple(input_values.shape)}.")
        if method == "mse":
            return float(residual.square().mean())
        mean = residual.view(-1, self.config.num_mel_bins).mean(0)  # (V * P, M) -> (M,)
        return min(_squared_distance(mean, self.cov_source), _squared_distance(mean, self.cov_target))


def _blocks(sizes: list[int], eps: float) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        blocks += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, eps=eps), nn.ReLU()]
    return blocks


def _squared_distance(mean: torch.Tensor, covariance: torch.Tensor) -> float:
    """Compute `mean @ inverse(covariance) @ mean` of `(M,)` and `(M, M)`, in float64."""
    factor, failed = torch.linalg.cholesky_ex(covariance.to("cpu", torch.float64))
    if failed:
        raise ValueError(
            "method='mahalanobis' needs an invertible covariance of the residuals of both domains, which this model "
            "lacks: it is untrained, or was trained on too few clips of one domain. Use 'mse' or train with more."
        )
    whitened = torch.linalg.solve_triangular(factor, mean[:, None], upper=False)
    return float(whitened.square().sum())


@functools.lru_cache(maxsize=4)
def _mel_bank(num_mel_bins: int) -> torch.Tensor:
    """Make the mel triangles `(M, K)` over the FFT bins, float64, each of area 1 over Hz."""
    highest_mel = _LOG_START_MEL + math.log(SAMPLING_RATE / 2 / _LOG_START_HERTZ) / _LOG_STEP
    with real_tensors():
        mel = torch.linspace(0.0, highest_mel, num_mel_bins + 2, dtype=torch.float64, device="cpu")
        logarithmic = _LOG_START_HERTZ * ((mel - _LOG_START_MEL) * _LOG_STEP).exp()
        corners = torch.where(mel < _LOG_START_MEL, mel * _HERTZ_PER_MEL, logarithmic)[:, None]  # (M + 2, 1)
        left, centre, right = corners[:-2], corners[1:-1], corners[2:]
        bins = torch.arange(FFT_LENGTH // 2 + 1, dtype=torch.float64, device="cpu")
        hertz = bins * (SAMPLING_RATE / FFT_LENGTH)  # (K,)
        rising, falling = (hertz - left) / (centre - left), (right - hertz) / (right - centre)
        return torch.minimum(rising, falling).clamp_min(0.0) * (2.0 / (right - left))


__all__ = ["AutoencoderModel"]

AutoencoderModel.register_for_auto_class("AutoModel")
