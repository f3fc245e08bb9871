"""NA-BEATs: BEATs that hears a far microphone (Fujimura et al., IWAENC 2026 and DCASE 2026 Task 2).

Letters in shape comments: B recordings, T and T' fbank frames of the close and far channel, M mel bins, N tokens,
D hidden size.
"""

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_beats import NABeatsConfig
from .modeling_beats import BeatsLayer, BeatsModel, gated_bias_buffer
from .modeling_noise_aware import NoiseAwareAttention, NoiseAwareLayer, NoiseAwareModelMixin, init_noise_aware_weights
from .modeling_shared import close_channel, split_channels, token_mask


class NABeatsLayer(BeatsLayer):
    """A frozen BEATs layer that both streams pass through, and the noise-aware layer behind it."""

    def __init__(self, config: NABeatsConfig):
        super().__init__(config)
        self.noise_aware = NoiseAwareLayer(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        noise_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        noise_attention_mask: torch.Tensor | None,
        cross_attention_mask: torch.Tensor | None,
        position_bias: torch.Tensor,
        noise_position_bias: torch.Tensor | None,
        bias_buffer: torch.Tensor | None,
        together: bool,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if together and noise_states is not None:
            both = torch.cat([hidden_states, noise_states])  # (2B, N, D)
            hidden_states, noise_states = super().forward(both, None, position_bias, bias_buffer, **kwargs).chunk(2)
        else:
            hidden_states = super().forward(hidden_states, attention_mask, position_bias, bias_buffer, **kwargs)
            if noise_states is not None:
                # The far stream is a fixed reference: it is never changed, so nothing flows back through it.
                with torch.no_grad():
                    noise_states = super().forward(noise_states, noise_attention_mask, noise_position_bias, **kwargs)
        hidden_states = self.noise_aware(hidden_states, noise_states, cross_attention_mask, **kwargs)
        return hidden_states, noise_states


class NABeatsModel(NoiseAwareModelMixin, BeatsModel):
    """The noise-aware BEATs encoder: close and far fbank in, tokens of the close recording, denoised, out.

    Its base is frozen. An untrained model (identity layers) gives exactly what BEATs gives for the close channel.
    """

    base_class = BeatsModel
    layer_class = NABeatsLayer
    config: NABeatsConfig
    config_class = NABeatsConfig
    base_model_prefix = "na_beats"
    _no_split_modules = ["BeatsEmbeddings", "NABeatsLayer"]
    _can_record_outputs = {"hidden_states": NABeatsLayer, "attentions": NoiseAwareAttention}

    def __init__(self, config: NABeatsConfig):
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
    ) -> BaseModelOutput:
        """Encode recordings.

        Args:
            input_values: BEATs-normalised fbank of both channels `(B, 2, T, M)`, close first; or of the close channel
                alone, `(B, T, M)`, with `noise_values` beside it.
            noise_values: the far channel, `(B, T', M)`; T' may differ from T.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding; for two-channel
                `input_values` it holds for both channels.
            noise_attention_mask: `(B, T')`, the same for `noise_values`.

        Returns:
            `last_hidden_state` `(B, N, D)`; with `output_hidden_states=True` also the input of the first layer and the
            output of every layer; with `output_attentions=True` (eager attention) the noise-aware layers' weights.

        Raises:
            ValueError: the far channel is missing, a shape is wrong, or there are fewer frames than one patch.
        """
        sizes = self.config.num_mel_bins, self.config.patch_size
        uses_noise = self.config.noise_aware_layer_type != "self_attention"
        if uses_noise:
            if noise_values is None:
                noise_attention_mask = attention_mask
            fbank, noise_fbank = split_channels(input_values, noise_values, *sizes)
        else:
            fbank = close_channel(input_values, *sizes)

        mask = token_mask(attention_mask, fbank.shape[1], self.num_tokens(fbank.shape[1]))
        hidden_states = self.embeddings(fbank, mask)
        position_bias = self.relative_position_bias(hidden_states.shape[1])
        attention_mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_states, attention_mask=mask)
        noise_states = noise_position_bias = noise_mask = None
        cross_attention_mask = attention_mask
        if uses_noise:
            noise_token_mask = token_mask(
                noise_attention_mask, noise_fbank.shape[1], self.num_tokens(noise_fbank.shape[1])
            )
            with torch.no_grad():
                noise_states = self.embeddings(noise_fbank, noise_token_mask)
                same_length = noise_states.shape[1] == hidden_states.shape[1]
                noise_position_bias = (
                    position_bias.detach() if same_length else self.relative_position_bias(noise_states.shape[1])
                )
            noise_mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=noise_states, attention_mask=noise_token_mask
            )
            cross_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                encoder_hidden_states=noise_states,
                attention_mask=noise_token_mask,
            )
        # Without a graph or padding, the frozen layers take both streams as one batch: fewer and larger operations.
        together = (
            uses_noise
            and not torch.is_grad_enabled()
            and attention_mask is None
            and noise_mask is None
            and noise_states.shape == hidden_states.shape
        )
        bias_buffer = None
        if not torch.is_grad_enabled():
            bias_buffer = gated_bias_buffer(position_bias, len(hidden_states) * (2 if together else 1))
        for layer in self.layers:
            hidden_states, noise_states = layer(
                hidden_states,
                noise_states,
                attention_mask,
                noise_mask,
                cross_attention_mask,
                position_bias,
                noise_position_bias,
                bias_buffer,
                together,
                **kwargs,
            )
        return BaseModelOutput(last_hidden_state=hidden_states)


__all__ = ["NABeatsModel"]

NABeatsModel.register_for_auto_class("AutoModel")
