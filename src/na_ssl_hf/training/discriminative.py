"""The model of discriminative fine-tuning: an encoder with an adapter or trained whole, a head and an angular loss.

Fujimura et al., DCASE 2026 Task 2. Letters in shape comments: B recordings, N samples, T fbank frames, M mel bins, T'
patch rows, F bands, D hidden size, C classes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..hub.front_end import TwoChannelFrontEnd
from ..hub.modeling_shared import SpectrogramEncoder
from .classification_losses import ArcFace, SubClusterAdaCos
from .gradient_checkpointing import checkpoint_layers


class DiscriminativeOutput(NamedTuple):
    """A scalar `loss`, the `logits` `(B, C)`, and as `embeddings` `(B, F, D)` the band vectors for the scores."""

    loss: Tensor
    logits: Tensor
    embeddings: Tensor


class DiscriminativeModel(nn.Module):
    """An encoder, a head on its tokens and the loss; the encoder, batch norms included, stays in eval mode.

    Args:
        encoder: an encoder after `add_lora`, whose far stream, if it has one, passes the adapted layers without a
            graph; or one that is trained whole, as EfficientAT must be.
        head: turns tokens `(B, L, D)` into embeddings, see [`ProjectionHead`].
        loss: the loss of the embeddings.
        far_cancellation: the method that takes the far microphone out of the close channel, as in the extractor.
        gradient_checkpointing: whether only what is between the layers is kept, and the rest computed again.
    """

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        head: nn.Module,
        loss: SubClusterAdaCos | ArcFace,
        far_cancellation: str | None = None,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.encoder, self.head, self.loss = encoder, head, loss
        self.front_end = TwoChannelFrontEnd.of(encoder.config, far_cancellation)
        if gradient_checkpointing:
            checkpoint_layers(encoder)

    def forward(self, waveforms: Tensor, labels: Tensor) -> DiscriminativeOutput:
        """Compute the mean loss, the logits and the embeddings of a batch.

        Args:
            waveforms: `(B, 2, N)` at the rate of the encoder, channel 0 close, 1 far.
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
                # The layer's own flag asks for checkpointing; the modules inside it stay in eval mode.
                module.training = mode
        return self

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device


class TrainedState:
    """The state of a [`DiscriminativeModel`] without its frozen encoder, which a checkpoint need not contain."""

    def __init__(self, model: DiscriminativeModel):
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = self.model.state_dict()
        return {name: state[name] for name in state if name in trained or not name.startswith("encoder.")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state; a ValueError says where names are missing or unknown."""
        if odd := set(self.state_dict()) ^ set(state):
            raise ValueError(f"`state` must be of the same model, {len(odd)} names differ, first {min(odd)}.")
        self.model.load_state_dict(state, strict=False)
