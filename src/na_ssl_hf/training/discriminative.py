"""Discriminative fine-tuning: an adapted encoder, a head and an angular loss, waveforms in, loss out.

Fujimura et al., DCASE 2026 Task 2. Letters in shape comments: B recordings, N samples, T fbank frames, M mel bins, T'
patch rows, F bands, D hidden size, C classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..hub.fbank import TwoChannelFrontEnd
from .classification_losses import ArcFace, SubClusterAdaCos
from .gradient_checkpointing import checkpoint_layers
from .lora import is_lora_parameter


class DiscriminativeOutput(NamedTuple):
    """`loss`: scalar; `logits`: `(B, C)`; `embeddings`: `(B, F, D)`, the band vectors that scores are made from."""

    loss: Tensor
    logits: Tensor
    embeddings: Tensor


class DiscriminativeModel(nn.Module):
    """An encoder with an adapter, the head on its tokens and the loss; whatever is frozen also stays in eval mode.

    Args:
        encoder: see `add_lora`; its far stream, if it has one, passes through the adapted layers without a graph.
        head: tokens `(B, L, D)` -> embeddings, see [`ProjectionHead`].
        loss: of the embeddings.
        far_cancellation: method by which the close channel is cleaned first, as the feature extractor would.
        gradient_checkpointing: keep only what is between the layers and compute the rest again in backward.
    """

    def __init__(
        self,
        encoder: Any,
        head: nn.Module,
        loss: SubClusterAdaCos | ArcFace,
        far_cancellation: str | None = None,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.encoder, self.head, self.loss = encoder, head, loss
        self.front_end = TwoChannelFrontEnd(encoder.config.frontend, far_cancellation)
        if gradient_checkpointing:
            checkpoint_layers(encoder)

    def forward(self, waveforms: Tensor, labels: Tensor) -> DiscriminativeOutput:
        """The mean loss and what it is made from.

        Args:
            waveforms: `(B, 2, N)` at 16 kHz, channel 0 close, 1 far.
            labels: `(B, C)`, soft after mixup.
        """
        with torch.no_grad():
            fbank = self.front_end(waveforms)  # (B, 2, T, M)
        grid = self.encoder.time_frequency_grid(self.encoder(fbank).last_hidden_state)  # (B, T', F, D)
        embeddings = self.head(grid.flatten(1, 2))
        return DiscriminativeOutput(
            self.loss(embeddings, labels), self.loss.logits(embeddings).detach(), grid.detach().float().mean(dim=1)
        )

    def train(self, mode: bool = True) -> "DiscriminativeModel":
        super().train(mode)
        self.encoder.eval()
        for module in self.encoder.modules():
            if isinstance(dropout := getattr(module, "lora_dropout", None), nn.Module):
                dropout.train(mode)
            elif isinstance(module, GradientCheckpointingLayer):
                # Its own flag only, which asks for checkpointing; what it holds stays in eval mode.
                module.training = mode
        return self

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device


class TrainedState:
    """The state of a [`DiscriminativeModel`] without its frozen encoder, which no checkpoint needs a copy of."""

    def __init__(self, model: DiscriminativeModel):
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if _is_trained(name)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError where names are missing or unknown."""
        if odd := set(self.state_dict()) ^ set(state):
            raise ValueError(f"`state` must be of the same model, {len(odd)} names differ, first {min(odd)}.")
        self.model.load_state_dict(state, strict=False)


def _is_trained(name: str) -> bool:
    return not name.startswith("encoder.") or is_lora_parameter(name)
