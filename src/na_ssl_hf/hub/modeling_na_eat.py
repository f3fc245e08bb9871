"""NA-EAT: EAT that hears a far microphone (Fujimura et al., IWAENC 2026 and DCASE 2026 Task 2).

Letters in shape comments: B recordings, T and T' fbank frames of the close and far channel, M mel bins, N patch tokens
behind one CLS token, D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_eat import NAEatConfig
from .modeling_eat import EatLayer, EatModel
from .modeling_noise_aware import NoiseAwareAttention, NoiseAwareLayer, NoiseAwareModelMixin, init_noise_aware_weights
from .modeling_shared import close_channel, split_channels


class NAEatLayer(EatLayer):
    """A frozen EAT layer that both streams pass through, and the noise-aware layer behind it."""

    def __init__(self, config: NAEatConfig):
        super().__init__(config)
        self.noise_aware = NoiseAwareLayer(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        noise_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        noise_attention_mask: torch.Tensor | None,
        cross_attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        hidden_states = super().forward(hidden_states, attention_mask, **kwargs)
        if noise_states is not None:
            # The far stream is a fixed reference: it is never changed, so nothing flows back through it.
            with torch.no_grad():
                noise_states = super().forward(noise_states, noise_attention_mask, **kwargs)
        hidden_states = self.noise_aware(hidden_states, noise_states, cross_attention_mask, **kwargs)
        return hidden_states, noise_states


class NAEatModel(NoiseAwareModelMixin, EatModel):
    """The noise-aware EAT encoder: close and far fbank in, tokens of the close recording, denoised, out.

    Its base is frozen. An untrained model (identity layers) gives exactly what EAT gives for the close channel.
    """

    base_class = EatModel
    layer_class = NAEatLayer
    config: NAEatConfig
    config_class = NAEatConfig
    base_model_prefix = "na_eat"
    _no_split_modules = ["EatEmbeddings", "NAEatLayer"]
    _can_record_outputs = {"hidden_states": NAEatLayer, "attentions": NoiseAwareAttention}

    def __init__(self, config: NAEatConfig):
        super().__init__(config)
        self.freeze_base()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_noise_aware_weights(module)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor,
        noise_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        noise_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode recordings.

        Args:
            input_values: EAT-normalised fbank of both channels `(B, 2, T, M)`, close first; or of the close channel
                alone, `(B, T, M)`, with `noise_values` beside it.
            noise_values: the far channel, `(B, T', M)`; T' may differ from T.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding; for two-channel
                `input_values` it holds for both channels.
            noise_attention_mask: `(B, T')`, the same for `noise_values`.

        Returns:
            `last_hidden_state` `(B, 1 + N, D)`, CLS first, and `pooler_output` `(B, D)`, the CLS token; with
            `output_hidden_states=True` also the input of the first layer and the output of every layer; with
            `output_attentions=True` (eager attention) the noise-aware layers' weights.

        Raises:
            ValueError: the far channel is missing, a shape is wrong, fewer frames than one patch, or more than the
                position table holds.
        """
        sizes = self.config.num_mel_bins, self.config.patch_size
        uses_noise = self.config.noise_aware_layer_type != "self_attention"
        if uses_noise:
            if noise_values is None:
                noise_attention_mask = attention_mask
            fbank, noise_fbank = split_channels(input_values, noise_values, *sizes)
        else:
            fbank = close_channel(input_values, *sizes)

        hidden_states = self.embeddings(fbank)
        attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=self.sequence_mask(attention_mask, fbank.shape[1]),
        )
        noise_states = noise_mask = None
        cross_attention_mask = attention_mask
        if uses_noise:
            noise_sequence_mask = self.sequence_mask(noise_attention_mask, noise_fbank.shape[1])
            with torch.no_grad():
                noise_states = self.embeddings(noise_fbank)
            noise_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=noise_states, attention_mask=noise_sequence_mask
            )
            cross_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                encoder_hidden_states=noise_states,
                attention_mask=noise_sequence_mask,
            )
        for layer in self.layers:
            hidden_states, noise_states = layer(
                hidden_states, noise_states, attention_mask, noise_mask, cross_attention_mask, **kwargs
            )
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


__all__ = ["NAEatModel"]

NAEatModel.register_for_auto_class("AutoModel")
