"""The autoencoder of the DCASE Task 2 baseline and its two anomaly scores (Harada et al., EUSIPCO 2023).

Letters: V vectors of one clip, P frames in a vector, M mel bins.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_autoencoder import AutoencoderConfig
from .log_mel_vectors import log_mel_decibels, stack_frames

SCORE_METHODS = ("mse", "mahalanobis")


@dataclass
class AutoencoderOutput(ModelOutput):
    """`reconstruction` `(V, P * M)` of the input vectors, in dB; `bottleneck` `(V, bottleneck_size)`."""

    reconstruction: torch.Tensor | None = None
    bottleneck: torch.Tensor | None = None


class AutoencoderModel(PreTrainedModel):
    """Fully connected autoencoder of log-mel vectors; what it cannot reconstruct is anomalous.

    Attributes:
        cov_source, cov_target: `(M, M)` buffers, covariance of the residuals of each domain in dB^2 as the official
            code scales it; zero where it could not be estimated.
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
            # torch's own default, which the published numbers were trained from.
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        if isinstance(module, AutoencoderModel):
            init.zeros_(module.cov_source)
            init.zeros_(module.cov_target)

    def forward(self, input_values: torch.Tensor, **kwargs: Any) -> AutoencoderOutput:
        """Reconstruct log-mel vectors `(V, P * M)` in dB, each by itself outside of training.

        Raises:
            ValueError: another shape.
        """
        size = self.config.num_frames * self.config.num_mel_bins
        if input_values.ndim != 2 or input_values.shape[1] != size:
            raise ValueError(f"`input_values` must have the shape (V, {size}), got {tuple(input_values.shape)}.")
        bottleneck = self.encoder(input_values.to(self.dtype))
        return AutoencoderOutput(reconstruction=self.decoder(bottleneck), bottleneck=bottleneck)

    def vectors(self, waveform: torch.Tensor) -> torch.Tensor:
        """Input vectors `(V, P * M)` of the close channel of a clip, `(N,)` float at 16 kHz; V = 0 for a short one."""
        return stack_frames(log_mel_decibels(waveform, self.config.num_mel_bins), self.config.num_frames)

    @torch.no_grad()
    def anomaly_score(self, input_values: torch.Tensor, method: str = "mse") -> float:
        """Score of one clip; higher = more anomalous.

        With `residual = reconstruction - input` and `m` its mean over all vectors and their frames, `(M,)`:

        - `"mse"`: mean of `residual**2`, in dB^2.
        - `"mahalanobis"`: `m @ inverse(cov) @ m`, the smaller one of both domains. This is what the official code
          computes when it averages a whole matrix of products, and not the mean of the distances of single frames.

        Args:
            input_values: all log-mel vectors of the clip, `(V, P * M)`.
            method: `"mse"` or `"mahalanobis"`.

        Raises:
            ValueError: an unknown method, no vector, a wrong shape, a model in training mode, or a covariance that is
                missing.
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
    """`mean @ inverse(covariance) @ mean` of `(M,)` and `(M, M)`, in float64."""
    factor, failed = torch.linalg.cholesky_ex(covariance.to("cpu", torch.float64))
    if failed:
        raise ValueError(
            "method='mahalanobis' needs an invertible covariance of the residuals of both domains, which this model "
            "lacks: it is untrained, or was trained on too few clips of one domain. Use 'mse' or train with more."
        )
    whitened = torch.linalg.solve_triangular(factor, mean[:, None], upper=False)
    return float(whitened.square().sum())


__all__ = ["AutoencoderModel"]

AutoencoderModel.register_for_auto_class("AutoModel")
