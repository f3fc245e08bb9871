"""Dasheng, a single-channel audio encoder whose tokens span all frequencies (Dinkel et al., "Scaling up masked audio
encoder learning for general audio classification", Interspeech 2024).

Letters in shape comments: B recordings, T frames, M mel bins, N tokens in time, P pieces of a recording, n tokens of a
piece, D hidden size.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_dasheng import DashengConfig
from .modeling_eat import EatAttention, EatLayer, EatLayerInputs
from .modeling_shared import AttentionMask, Embedded, SpectrogramEncoder, close_channel, count_frames, layer_mask


class DashengBatchNorm(nn.BatchNorm1d):
    """Normalises every mel bin by its mean and variance over the training data."""

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        channels_first = spectrogram.transpose(1, 2)  # (B, M, T)
        if self.training:
            normed = super().forward(channels_first.to(self.weight.dtype))
        else:
            # Levels of -100 dB would lose half a decibel in half precision, so float32 is kept up to here.
            statistics = (self.running_mean, self.running_var, self.weight, self.bias)
            mean, variance, gain, bias = (each.float() for each in statistics if each is not None)
            normed = nn.functional.batch_norm(channels_first.float(), mean, variance, gain, bias, eps=self.eps)
        return normed.transpose(1, 2).to(self.weight.dtype)  # (B, T, M)


class DashengEmbeddings(nn.Module):
    """Normalises the spectrogram, cuts it into pieces, and turns every four frames of a piece into a token."""

    def __init__(self, config: DashengConfig):
        super().__init__()
        self.config = config
        self.batch_norm = DashengBatchNorm(config.num_mel_bins, eps=config.batch_norm_eps)
        kernel = (config.num_mel_bins, config.patch_size)
        self.patch_embedding = nn.Conv2d(1, config.hidden_size, kernel_size=kernel, stride=kernel)
        num_positions = config.target_length // config.patch_size
        self.time_positions = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))
        self.frequency_positions = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, spectrogram: torch.Tensor, num_pieces: int) -> torch.Tensor:
        pieces = self._cut(self.batch_norm(spectrogram), num_pieces)  # (B * P, T', M)
        tokens = self.patch_embedding(pieces.transpose(1, 2)[:, None])  # (B * P, D, 1, n)
        tokens = tokens.flatten(2).transpose(1, 2)  # (B * P, n, D)
        tokens = tokens + self.time_positions[:, : tokens.shape[1]] + self.frequency_positions
        return self.dropout(tokens)

    def _cut(self, spectrogram: torch.Tensor, num_pieces: int) -> torch.Tensor:
        """Cut `(B, T, M)` into pieces `(B * P, target_length, M)`; a single piece may be shorter."""
        length = self.config.target_length
        if num_pieces == 1:
            return spectrogram
        # The original fills the last piece up with zeros behind the batch norm, and attends to them.
        missing = num_pieces * length - spectrogram.shape[1]
        padded = nn.functional.pad(spectrogram, (0, 0, 0, missing))  # (B, P * length, M)
        return padded.unflatten(1, (num_pieces, length)).flatten(0, 1)  # (B * P, length, M)


class DashengLayer(EatLayer):
    """A pre-norm transformer layer: `r = x + attention(norm(x))`, then `r + mlp(norm(r))`."""

    def forward(self, hidden_states: torch.Tensor, attention_mask: AttentionMask, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.attention(self.attention_layer_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.final_layer_norm(hidden_states)))


def joins_pieces(forward: Callable) -> Callable:
    """Decorate the forward of an encoder of pieces: its outputs `(B * P, n, D)` become `(B, N, D)` of recordings."""

    @wraps(forward)
    def joined(
        self: Any, input_values: torch.Tensor, *args: Any, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        outputs = forward(self, input_values, *args, return_dict=True, **kwargs)
        num_frames = input_values.shape[-2]
        outputs.last_hidden_state = self.join_pieces(outputs.last_hidden_state, num_frames)
        if outputs.hidden_states is not None:
            outputs.hidden_states = tuple(
                state if state is None else self.join_pieces(state, num_frames) for state in outputs.hidden_states
            )
        wants_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return outputs if wants_dict else outputs.to_tuple()

    return joined


class DashengPreTrainedModel(SpectrogramEncoder):
    """What transformers needs to know of every Dasheng model."""

    config: DashengConfig
    config_class: type[DashengConfig] = DashengConfig
    base_model_prefix = "dasheng"
    main_input_name = "input_values"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["DashengEmbeddings", "DashengLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DashengLayer, "attentions": EatAttention}
    _input_embed_layer = "patch_embedding"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DashengEmbeddings):
            for positions in (module.time_positions, module.frequency_positions):
                init.normal_(positions, mean=0.0, std=self.config.initializer_range)


class DashengModel(DashengPreTrainedModel):
    """The Dasheng encoder turns a log-mel spectrogram into one token for every 40 ms, which spans all frequencies.

    Recordings longer than `target_length` are encoded in pieces of that length, each by itself, as the original does
    for one recording. It loses the last piece of a recording of exactly a multiple of that length, and mixes the
    recordings of a batch; this model does neither.
    """

    layer_class = DashengLayer

    def __init__(self, config: DashengConfig):
        super().__init__(config)
        self.embeddings = DashengEmbeddings(config)
        # The configuration has every field that EAT's layer reads.
        layers = [self.layer_class(config) for _ in range(config.num_hidden_layers)]  # type: ignore[arg-type]
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def num_tokens(self, num_frames: int) -> int:
        """Compute the number of tokens, 40 ms each, of `num_frames` frames; those past the last whole one are dropped.

        There is one band, so that this is the number of rows in time as well.
        """
        return num_frames // self.config.patch_size

    def num_pieces(self, num_frames: int) -> int:
        """Compute the number of pieces in which a recording of `num_frames` frames is encoded.

        The last one may be of fewer frames than a token has, and then gives none.
        """
        # Not by two negations: integer division of ONNX rounds towards zero.
        return (num_frames + self.config.target_length - 1) // self.config.target_length

    def time_frequency_grid(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Arrange tokens `(B, N, D)` as `(B, N, 1, D)`: one row every 40 ms, and a single band."""
        return last_hidden_state[:, :, None]

    def embed(self, fbank: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Embedded:
        num_frames = fbank.shape[1]
        num_pieces = self.num_pieces(num_frames)
        hidden_states = self.embeddings(fbank, num_pieces)
        mask = self._token_mask(attention_mask, num_frames, num_pieces, hidden_states.shape[1])
        return Embedded(hidden_states, mask, EatLayerInputs(layer_mask(self.config, hidden_states, mask)))

    def _token_mask(
        self, attention_mask: torch.Tensor | None, num_frames: int, num_pieces: int, tokens_of_piece: int
    ) -> torch.Tensor | None:
        """Reduce a mask over frames `(B, T)` to bool over the tokens of the pieces, `(B * P, n)`.

        As in the original, a recording keeps the tokens that it has alone: those of four frames that are all its own.
        """
        if attention_mask is None:
            return None
        if attention_mask.ndim != 2 or attention_mask.shape[1] != num_frames:
            raise ValueError(
                f"`attention_mask` must be (batch, frames) with {num_frames} frames, got shape "
                f"{tuple(attention_mask.shape)}."
            )
        # The two are equal for one piece, but an exporter of graphs cannot know that.
        num_tokens = tokens_of_piece if num_pieces == 1 else self.num_tokens(num_frames)
        patch_size = self.config.patch_size
        mask = count_frames(attention_mask, num_tokens, patch_size) == patch_size  # (B, N)
        if num_pieces > 1:
            # What fills up the last piece is attended to, unless the recording ends before.
            filling = mask[:, -1:].expand(-1, num_pieces * tokens_of_piece - num_tokens)
            mask = torch.cat([mask, filling], dim=1)  # (B, P * n)
        return mask.reshape(-1, tokens_of_piece)  # (B * P, n)

    def heard_tokens(self, attention_mask: torch.Tensor) -> torch.Tensor:
        num_tokens, patch_size = self.num_tokens(attention_mask.shape[1]), self.config.patch_size
        return count_frames(attention_mask, num_tokens, patch_size) == patch_size  # (B, N)

    def join_pieces(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        num_pieces = self.num_pieces(num_frames)
        if num_pieces == 1:
            return hidden_states
        joined = hidden_states.unflatten(0, (-1, num_pieces)).flatten(1, 2)  # (B, P * n, D)
        return joined[:, : self.num_tokens(num_frames)]  # (B, N, D)

    def output(self, hidden_states: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.layer_norm(hidden_states))

    @joins_pieces
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode recordings.

        Args:
            input_values: log-mel spectrogram in dB, `(B, T, M)`, or `(B, 2, T, M)` of which the close channel is used.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding.

        Returns:
            `last_hidden_state` `(B, N, D)`, after the final norm; with `output_hidden_states=True` also the input of
            the first layer and the output of every layer, before that norm; with `output_attentions=True` (eager
            attention) the attention weights, of every piece by itself.

        Raises:
            ValueError: a shape is wrong, or there are fewer frames than in one token.
        """
        spectrogram = close_channel(input_values, self.config.num_mel_bins, self.config.patch_size)
        return self.output(self.run_layers(self.embed(spectrogram, attention_mask), **kwargs))


__all__ = ["DashengModel", "DashengPreTrainedModel"]

DashengModel.register_for_auto_class("AutoModel")
