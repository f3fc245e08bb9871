"""The losses of noise-aware distillation: the model learns its base's tokens of the clean recording.

Fujimura et al., "Noise-aware audio self-supervised learning", IWAENC 2026, and DCASE 2026 Task 2.
Letters in shape comments: B recordings, L samples, T fbank frames, M mel bins, N tokens, F bands, D hidden size.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..hub.front_end import TwoChannelFrontEnd
from ..hub.modeling_noise_aware import NoiseAwareModelMixin
from .gradient_checkpointing import checkpoint_layers


class DistillationLoss(NamedTuple):
    """The parts of the loss, all scalars.

    Attributes:
        total: `tokens + band_loss_weight * bands`, which is minimised.
        tokens: the mean squared error of the tokens, as in the paper.
        bands: the mean squared error of the tokens averaged over time.
    """

    total: Tensor
    tokens: Tensor
    bands: Tensor


class NoiseAwareDistillation(nn.Module):
    """A noise-aware model with its own frozen base as the teacher; it turns waveforms into the loss.

    The far stream and the teacher are fixed, so that both go through the frozen layers first, as one batch and without
    a graph. The close stream follows, and every noise-aware layer compares it with the far stream of the same depth.

    Args:
        model: an [`NABeatsModel`], [`NAEatModel`] or [`NADashengModel`], base frozen; its noise-aware layers are
            trained in place.
        far_cancellation: the method that takes the far microphone out of the close channel, as in the extractor.
        band_loss_weight: the weight of the loss on band vectors (0 in the published loss).
        gradient_checkpointing: whether only what is between the layers is kept, and the rest computed again.
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
        self.front_end = TwoChannelFrontEnd.of(model.config, far_cancellation)
        self.band_loss_weight = band_loss_weight
        if gradient_checkpointing:
            checkpoint_layers(model)

    def forward(
        self, close: Tensor, far: Tensor, clean: Tensor, recorded: Tensor | None = None, references: bool = False
    ) -> dict[str, DistillationLoss]:
        """Compute the losses of a batch of mixtures.

        Args:
            close, far, clean: `(B, L)` waveforms at 16 kHz.
            recorded: `(B, L)`, the close channel before a canceller; `None` where it went through none.
            references: whether the losses with which validation compares are computed as well, without a graph.

        Returns:
            "loss"; with `references` also "identity", the loss of the base itself (of untrained noise-aware layers),
            and, of a model that hears the far microphone, "far_is_close" and "far_is_silent", with the far channel
            replaced by the close one and by silence.
        """
        with torch.no_grad():
            waves = torch.stack([close, far], dim=1)  # (B, 2, L)
            before = waves if recorded is None else torch.stack([recorded, far], dim=1)
            heard_fbank, far_fbank = self.front_end.frames(self.front_end.cancel(waves), before).unbind(1)  # (B, T, M)
            far_states, teacher = self.far_and_teacher(far_fbank, self.front_end.fbank(clean))
        losses = {"loss": self.loss(self.model.denoise(heard_fbank, far_states), teacher)}
        if references:
            with torch.no_grad():
                base = self.model.base_states(heard_fbank)[-1]
                losses["identity"] = self.loss(self.model.last_hidden_state(base, heard_fbank.shape[1]), teacher)
                if self.model.hears_far:
                    for name, wave in {"far_is_close": close, "far_is_silent": torch.zeros_like(close)}.items():
                        other_states = self.model.base_states(self.front_end.fbank(wave))
                        losses[name] = self.loss(self.model.denoise(heard_fbank, other_states), teacher)
        return losses

    def far_and_teacher(self, far: Tensor, clean: Tensor) -> tuple[list[Tensor] | None, Tensor]:
        """Encode fbank `(B, T, M)` with the base: the far stream behind every layer, the clean tokens `(B, N, D)`."""
        if not self.model.hears_far:
            return None, self.model.last_hidden_state(self.model.base_states(clean)[-1], clean.shape[1])
        halves = [state.chunk(2) for state in self.model.base_states(torch.cat([far, clean]))]  # (B, N, D) twice, each
        return [half for half, _ in halves], self.model.last_hidden_state(halves[-1][1], clean.shape[1])

    def loss(self, tokens: Tensor, teacher: Tensor) -> DistillationLoss:
        """Compare tokens `(B, N, D)` in float32; a CLS token weighs as much as all patches together."""
        grid, teacher_grid = (
            self.model.time_frequency_grid(each.float()) for each in (tokens, teacher)
        )  # (B, T, F, D)
        token_loss = mse_loss(grid, teacher_grid)
        if self.model.has_cls_token:
            token_loss = token_loss + mse_loss(tokens[:, 0].float(), teacher[:, 0].float())
        band_loss = mse_loss(grid.mean(dim=1), teacher_grid.mean(dim=1))
        return DistillationLoss(token_loss + self.band_loss_weight * band_loss, token_loss, band_loss)
