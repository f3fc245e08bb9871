"""EAT, a single-channel audio encoder (Chen et al., "EAT: Self-Supervised Pre-Training with Efficient Audio
Transformer", IJCAI 2024).

Letters in shape comments: B recordings, T fbank frames, M mel bins, N patch tokens (time-major: index = row * bands +
band) that follow one CLS token, D hidden size, H heads, C channels a head, Q queries, K keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_eat import EatConfig
from .modeling_shared import (
    ALL_ATTENTION_FUNCTIONS,
    AttentionMask,
    Embedded,
    SpectrogramEncoder,
    close_channel,
    eager_attention_forward,
    layer_mask,
    token_mask,
)


def sine_cosine_positions(num_rows: int, num_bands: int, hidden_size: int) -> torch.Tensor:
    """Compute the fixed position table `(1, rows * bands, D)`, float32.

    The first half of D encodes the band and the second half the row, each as `[sin(p w), cos(p w)]` with
    `w_i = 10000^(-i / (D / 4))`. The published tables differ from it by up to 3.9e-5 (EAT-base) and 7.0e-5
    (EAT-large): they were computed in float32, whose rounding depends on the processor.
    """
    frequencies = 1.0 / 10000 ** (np.arange(hidden_size // 4) / (hidden_size // 4))

    def encode(num_positions: int) -> np.ndarray:
        angles = np.arange(num_positions)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)  # (positions, D / 2)

    size = (num_rows, num_bands, hidden_size // 2)
    bands = np.broadcast_to(encode(num_bands)[None], size)
    rows = np.broadcast_to(encode(num_rows)[:, None], size)
    table = np.concatenate([bands, rows], axis=-1)  # (rows, bands, D)
    return torch.from_numpy(table.reshape(1, num_rows * num_bands, hidden_size).astype(np.float32))


class EatEmbeddings(nn.Module):
    """Turns the fbank into patches with fixed 2-D positions, puts a CLS token first and normalises all of them."""

    position_embeddings: torch.Tensor

    def __init__(self, config: EatConfig):
        super().__init__()
        num_bands = config.num_mel_bins // config.patch_size
        self.patch_embedding = nn.Conv2d(1, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.register_buffer(
            "position_embeddings", torch.zeros(1, config.max_time_patches * num_bands, config.hidden_size)
        )
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.config = config
        if not self.position_embeddings.is_meta:
            self.position_embeddings.copy_(self.position_table())

    def position_table(self) -> torch.Tensor:
        """Compute the fixed positions, `(1, max_time_patches * bands, D)`, float32."""
        num_bands = self.config.num_mel_bins // self.config.patch_size
        return sine_cosine_positions(self.config.max_time_patches, num_bands, self.config.hidden_size)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The table of a model that was made without memory, and was then given some, holds anything. What is loaded
        # into it may lack the table, which is fixed and need not be stored.
        name = f"{prefix}position_embeddings"
        if name not in state_dict:
            state_dict = {**state_dict, name: self.position_table().to(self.position_embeddings.dtype)}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, fbank: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(fbank[:, None].to(self.patch_embedding.weight.dtype))  # (B, D, rows, bands)
        if patches.shape[2] > self.config.max_time_patches:
            raise ValueError(
                f"`input_values` must have at most {self.config.max_time_patches * self.config.patch_size} frames "
                f"(`max_time_patches` x `patch_size`), got {fbank.shape[1]}."
            )
        patches = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        patches = patches + self.position_embeddings[:, : patches.shape[1]].to(patches.dtype)
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)  # (B, 1, D)
        return self.dropout(self.layer_norm(torch.cat([cls_token, patches], dim=1)))  # (B, 1 + N, D)


class EatLayerInputs(NamedTuple):
    """What the forward of an EAT layer takes behind its hidden states.

    Attributes:
        attention_mask: the padding mask of the tokens.
    """

    attention_mask: AttentionMask


class EatAttention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: EatConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: AttentionMask, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # (B, H, Q, C)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)  # (B, H, K, C)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # (B, H, K, C)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(output.reshape(hidden_states.shape)), weights  # (B, 1 + N, D)


class EatMLP(nn.Module):
    """The feed-forward network of an EAT layer."""

    def __init__(self, config: EatConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # This is the exact GELU; its tanh approximation would change the output by 7e-4.
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class EatLayer(GradientCheckpointingLayer):
    """A post-norm transformer layer: `r = norm(x + attention(x))`, then `norm(r + mlp(r))`."""

    def __init__(self, config: EatConfig):
        super().__init__()
        self.attention = EatAttention(config)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = EatMLP(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask: AttentionMask, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.attention(hidden_states, attention_mask, **kwargs)
        hidden_states = self.attention_layer_norm(hidden_states + self.dropout(attended))
        return self.final_layer_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class EatPreTrainedModel(SpectrogramEncoder):
    """What transformers needs to know of every EAT model."""

    config: EatConfig
    config_class: type[EatConfig] = EatConfig
    base_model_prefix = "eat"
    made_anew = ("embeddings.position_embeddings",)
    # They are no reason for a warning either.
    _keys_to_ignore_on_load_missing = [r"position_embeddings$"]
    main_input_name = "input_values"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["EatEmbeddings", "EatLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": EatLayer, "attentions": EatAttention}
    _input_embed_layer = "patch_embedding"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EatEmbeddings):
            init.normal_(module.cls_token, mean=0.0, std=self.config.initializer_range)
            init.copy_(module.position_embeddings, module.position_table())


class EatModel(EatPreTrainedModel):
    """The EAT encoder turns fbank into a CLS token and one token for every 16 x 16 patch.

    There is no norm after the last layer.
    """

    layer_class = EatLayer
    has_cls_token = True

    def __init__(self, config: EatConfig):
        super().__init__(config)
        self.embeddings = EatEmbeddings(config)
        self.layers = nn.ModuleList([self.layer_class(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def embed(self, fbank: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Embedded:
        mask = token_mask(attention_mask, fbank.shape[1], self.num_tokens(fbank.shape[1]))
        if mask is not None:
            mask = nn.functional.pad(mask, (1, 0), value=True)  # (B, 1 + N), CLS is always attended to
        hidden_states = self.embeddings(fbank)
        return Embedded(hidden_states, mask, EatLayerInputs(layer_mask(self.config, hidden_states, mask)))

    def output(self, hidden_states: torch.Tensor) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode recordings.

        Args:
            input_values: EAT-normalised fbank `(B, T, M)`, or `(B, 2, T, M)` of which the close channel is used.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding.

        Returns:
            `last_hidden_state` `(B, 1 + N, D)`, CLS first, and `pooler_output` `(B, D)`, the CLS token; with
            `output_hidden_states=True` also the input of the first layer and the output of every layer; with
            `output_attentions=True` (eager attention) the attention weights.

        Raises:
            ValueError: a shape is wrong, or there are fewer frames than in a patch or more than in the position table.
        """
        fbank = close_channel(input_values, self.config.num_mel_bins, self.config.patch_size)
        return self.output(self.run_layers(self.embed(fbank, attention_mask), **kwargs))


__all__ = ["EatModel", "EatPreTrainedModel"]

EatModel.register_for_auto_class("AutoModel")
