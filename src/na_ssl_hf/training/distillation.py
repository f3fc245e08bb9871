"""What a noise-aware model learns: its base's tokens of the clean recording, from the noisy one and the far microphone.

Fujimura et al., "Noise-aware audio self-supervised learning", IWAENC 2026, and DCASE 2026 Task 2.
Letters in shape comments: B recordings, L samples, T fbank frames, M mel bins, N tokens, F bands, D hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..hub.fbank import TwoChannelFrontEnd
from ..hub.modeling_noise_aware import NoiseAwareModelMixin
from .gradient_checkpointing import checkpoint_layers


class DistillationLoss(NamedTuple):
    """Scalars: `tokens` is the mean squared error of the paper, `bands` that of the tokens averaged over time, and
    `total = tokens + band_loss_weight * bands` is what is minimised."""

    total: Tensor
    tokens: Tensor
    bands: Tensor


class NoiseAwareDistillation(nn.Module):
    """A noise-aware model and its own frozen base as teacher: waveforms in, loss out.

    The far stream and the teacher are fixed, so both go through the frozen layers first, as one batch and without a
    graph; the close stream follows and meets the far stream again behind every layer.

    Args:
        model: an [`NABeatsModel`] or [`NAEatModel`], base frozen; its noise-aware layers are trained in place.
        far_cancellation: method by which the close channel is cleaned first, as the feature extractor would.
        band_loss_weight: of the loss on band vectors (the published loss has none).
        gradient_checkpointing: keep only the streams between the layers and compute the rest again in backward.
    """

    def __init__(
        self,
        model: NoiseAwareModelMixin,
        far_cancellation: str | None = None,
        band_loss_weight: float = 0.0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        if band_loss_weight < 0:
            raise ValueError(f"`band_loss_weight` must not be negative, got {band_loss_weight}.")
        self.model = model
        self.front_end = TwoChannelFrontEnd(model.config.frontend, far_cancellation)
        self.band_loss_weight = band_loss_weight
        if gradient_checkpointing:
            checkpoint_layers(model)

    def forward(
        self, close: Tensor, far: Tensor, clean: Tensor, references: bool = False
    ) -> dict[str, DistillationLoss]:
        """Losses of a batch of mixtures.

        Args:
            close, far, clean: `(B, L)` waveforms at 16 kHz.
            references: beside the loss also, without graph, what validation compares it with.

        Returns:
            "loss"; with `references` also "identity", the loss of the base itself (of untrained noise-aware layers),
            and, of a model that hears the far microphone, "far_is_close" and "far_is_silent", with the far channel
            replaced by the close one and by silence.
        """
        with torch.no_grad():
            heard_fbank, far_fbank = self.front_end(torch.stack([close, far], dim=1)).unbind(1)  # (B, T, M) each
            far_states, teacher = self.far_and_teacher(far_fbank, self.front_end.fbank(clean))
        losses = {"loss": self.loss(self.model.denoise(heard_fbank, far_states), teacher)}
        if references:
            with torch.no_grad():
                losses["identity"] = self.loss(self.model.base_states(heard_fbank)[-1], teacher)
                if self.model.hears_far:
                    for name, wave in {"far_is_close": close, "far_is_silent": torch.zeros_like(close)}.items():
                        other_states = self.model.base_states(self.front_end.fbank(wave))
                        losses[name] = self.loss(self.model.denoise(heard_fbank, other_states), teacher)
        return losses

    def far_and_teacher(self, far: Tensor, clean: Tensor) -> tuple[list[Tensor] | None, Tensor]:
        """Encode fbank `(B, T, M)` with the base: the far stream behind every layer, the clean tokens `(B, N, D)`."""
        if not self.model.hears_far:
            return None, self.model.base_states(clean)[-1]
        states = self.model.base_states(torch.cat([far, clean]))  # (2B, N, D) each
        return [state[: len(far)] for state in states], states[-1][len(far) :]

    def loss(self, tokens: Tensor, teacher: Tensor) -> DistillationLoss:
        """Between tokens `(B, N, D)`, in float32; EAT's CLS token weighs as much as all its patches together."""
        grid, teacher_grid = (
            self.model.time_frequency_grid(each.float()) for each in (tokens, teacher)
        )  # (B, T, F, D)
        token_loss = mse_loss(grid, teacher_grid)
        if self.model.has_cls_token:
            token_loss = token_loss + mse_loss(tokens[:, 0].float(), teacher[:, 0].float())
        band_loss = mse_loss(grid.mean(dim=1), teacher_grid.mean(dim=1))
        return DistillationLoss(token_loss + self.band_loss_weight * band_loss, token_loss, band_loss)
