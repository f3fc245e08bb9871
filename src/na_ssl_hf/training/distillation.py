"""What a noise-aware model learns: its base's tokens of the clean recording, from the noisy one and the far microphone.

Fujimura et al., "Noise-aware audio self-supervised learning", IWAENC 2026, and DCASE 2026 Task 2.
Letters in shape comments: B recordings, L samples, T fbank frames, M mel bins, N tokens, F bands, D hidden size.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from ..hub.fbank import TwoChannelFrontEnd
from ..hub.modeling_beats import gated_bias_buffer


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
        model: Any,
        far_cancellation: str | None = None,
        band_loss_weight: float = 0.0,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        if band_loss_weight < 0:
            raise ValueError(f"`band_loss_weight` must not be negative, got {band_loss_weight}.")
        self.model = model
        self.frontend = model.config.frontend
        self.hears_far = model.config.noise_aware_layer_type != "self_attention"
        self.front_end = TwoChannelFrontEnd(model.config.frontend, far_cancellation)
        self.band_loss_weight = band_loss_weight
        self.gradient_checkpointing = gradient_checkpointing

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
        losses = {"loss": self.loss(self.student(heard_fbank, far_states), teacher)}
        if references:
            with torch.no_grad():
                losses["identity"] = self.loss(self.frozen_states(heard_fbank)[-1], teacher)
                ablations = {"far_is_close": close, "far_is_silent": torch.zeros_like(close)} if self.hears_far else {}
                for name, replaced in ablations.items():
                    replaced_states = self.frozen_states(self.front_end.fbank(replaced))
                    losses[name] = self.loss(self.student(heard_fbank, replaced_states), teacher)
        return losses

    def far_and_teacher(self, far: Tensor, clean: Tensor) -> tuple[list[Tensor], Tensor]:
        """Of the fbank `(B, T, M)` of both: the far stream behind every layer, and the clean tokens `(B, N, D)`."""
        if not self.hears_far:
            return [], self.frozen_states(clean)[-1]
        states = self.frozen_states(torch.cat([far, clean]))  # (2B, N, D) each
        return [state[: len(far)] for state in states], states[-1][len(far) :]

    @torch.no_grad()
    def frozen_states(self, fbank: Tensor) -> list[Tensor]:
        """What the base makes of fbank `(B, T, M)`: `(B, N, D)` behind every layer, without graph."""
        hidden_states, *inputs = self._embed(fbank)
        states = []
        for layer in self.model.layers:
            hidden_states = self._base_layer(layer, hidden_states, *inputs)
            states.append(hidden_states)
        return states

    def student(self, close: Tensor, far_states: list[Tensor]) -> Tensor:
        """The model's tokens `(B, N, D)` of the close fbank `(B, T, M)`, equal to those of its own forward."""
        hidden_states, *inputs = self._embed(close)
        for index, layer in enumerate(self.model.layers):
            far = far_states[index] if self.hears_far else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden_states = checkpoint(self._layer, layer, hidden_states, far, *inputs, use_reentrant=False)
            else:
                hidden_states = self._layer(layer, hidden_states, far, *inputs)
        return hidden_states

    def loss(self, tokens: Tensor, teacher: Tensor) -> DistillationLoss:
        """Between tokens `(B, N, D)`, in float32; EAT's CLS token weighs as much as all its patches together."""
        grid, teacher_grid = (
            self.model.time_frequency_grid(each.float()) for each in (tokens, teacher)
        )  # (B, T, F, D)
        token_loss = mse_loss(grid, teacher_grid)
        if self.frontend == "eat":
            token_loss = token_loss + mse_loss(tokens[:, 0].float(), teacher[:, 0].float())
        band_loss = mse_loss(grid.mean(dim=1), teacher_grid.mean(dim=1))
        return DistillationLoss(token_loss + self.band_loss_weight * band_loss, token_loss, band_loss)

    def _embed(self, fbank: Tensor) -> tuple[Any, ...]:
        """Tokens `(B, N, D)` and what else the base's layers take."""
        if self.frontend == "eat":
            return self.model.embeddings(fbank), None
        hidden_states = self.model.embeddings(fbank, None)
        position_bias = self.model.relative_position_bias(hidden_states.shape[1])
        bias_buffer = None if torch.is_grad_enabled() else gated_bias_buffer(position_bias, len(hidden_states))
        return hidden_states, None, position_bias, bias_buffer

    def _base_layer(self, layer: nn.Module, hidden_states: Tensor, *inputs: Any) -> Tensor:
        # The forward of the base's class, which a noise-aware layer extends: without its noise-aware part.
        return self.model.base_class.layer_class.forward(layer, hidden_states, *inputs)

    def _layer(self, layer: Any, hidden_states: Tensor, far: Tensor | None, *inputs: Any) -> Tensor:
        return layer.noise_aware(self._base_layer(layer, hidden_states, *inputs), far)
