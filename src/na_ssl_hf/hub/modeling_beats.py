"""BEATs, a single-channel audio encoder (Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", 2023).

Letters in shape comments: B recordings, T fbank frames, M mel bins, N tokens (time-major: index = row * bands + band),
D hidden size, E patch channels, H heads, C channels a head, Q queries, K keys.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_beats import BeatsConfig
from .fbank import is_traced
from .modeling_shared import (
    ALL_ATTENTION_FUNCTIONS,
    AttentionMask,
    Embedded,
    SpectrogramEncoder,
    close_channel,
    eager_attention_forward,
    layer_mask,
    token_mask,
    uses_flex_attention,
)


class BeatsPositionConvolution(nn.Conv1d):
    """Convolves along the tokens, with as many tokens out as in.

    It is a module of its own, and not a function over the weight of one, because what moves weights at the moment of
    their use, such as a `device_map`, does so around the forward of the module that owns them.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the convolution to tokens `(B, N, D)`; the shape stays."""
        kernel, num_tokens = self.kernel_size[0], hidden_states.shape[1]
        # Convolutions with so long a kernel are slow on a CPU. The kernel is therefore cut into rows of 16 taps, a
        # short 2-D kernel over shifted copies of the tokens.
        taps = 16 if kernel % 16 == 0 else kernel
        padded = nn.functional.pad(hidden_states.transpose(1, 2), (kernel // 2, (kernel - 1) // 2))
        shifted = [padded[..., start : start + num_tokens + taps - 1] for start in range(0, kernel, taps)]
        positions = nn.functional.conv2d(
            torch.stack(shifted, dim=2),  # (B, D, kernel / taps, N + taps - 1)
            self.weight.unflatten(2, (-1, taps)),
            self.bias,
            groups=self.groups,
        )
        return positions.squeeze(2).transpose(1, 2)  # (B, N, D)


class BeatsEmbeddings(nn.Module):
    """Turns the fbank into projected patches, and adds a convolutional position embedding over the tokens."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(
            1, config.patch_embedding_size, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.layer_norm = nn.LayerNorm(config.patch_embedding_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Linear(config.patch_embedding_size, config.hidden_size)
            if config.patch_embedding_size != config.hidden_size
            else nn.Identity()
        )
        self.input_dropout = nn.Dropout(config.input_dropout)
        # The original parametrises this convolution by weight norm. The conversion computes the plain weight, which
        # gives the same outputs and loads correctly from the meta device.
        self.position_convolution = BeatsPositionConvolution(
            config.hidden_size,
            config.hidden_size,
            kernel_size=config.position_convolution_kernel,
            groups=config.position_convolution_groups,
        )
        self.position_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, fbank: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        patches = self.patch_embedding(fbank[:, None].to(self.patch_embedding.weight.dtype))  # (B, E, rows, bands)
        hidden_states = self.layer_norm(patches.flatten(2).transpose(1, 2))  # (B, N, E)
        hidden_states = self.input_dropout(self.projection(hidden_states))
        if mask is not None:
            hidden_states = hidden_states * mask[..., None].to(hidden_states.dtype)
        hidden_states = hidden_states + nn.functional.gelu(self.position_convolution(hidden_states))
        return self.dropout(self.position_layer_norm(hidden_states))


class BeatsRelativePositionBias(nn.Module):
    """Gives every head one learned value for each bucket of token distances; all layers share it."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.num_buckets = config.num_buckets
        self.max_distance = config.max_distance
        self.embedding = nn.Embedding(config.num_buckets, config.num_attention_heads)

    def bucket(self, relative_position: torch.Tensor) -> torch.Tensor:
        """Find the bucket of every `key - query` distance in tokens: exact for small distances, then logarithmic."""
        half = self.num_buckets // 2
        exact = half // 2
        distance = relative_position.abs()
        # Distance 0 takes the exact branch; it is clamped to 1 so that the logarithm stays finite.
        logarithmic = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (logarithmic * (half - exact)).long()).clamp(max=half - 1)
        return (relative_position > 0).long() * half + torch.where(distance < exact, distance, far)

    def forward(self, num_tokens: int, device: torch.device, spread: bool = True) -> torch.Tensor:
        """Look up the bias of every query and key.

        Args:
            num_tokens: N.
            device: where the tokens are. The embedding's own device would be wrong where its weight is elsewhere until
                it is used.
            spread: whether the bias of every pair is asked for, or that of every distance.

        Returns:
            `(1, H, Q, K)`; by distance key - query, from 1 - N to N - 1, `(H, 2N - 1)`.
        """
        # There are only 2 N - 1 distances, so their values are looked up once and spread along the diagonals.
        distances = torch.arange(1 - num_tokens, num_tokens, device=device)
        by_distance = self.embedding(self.bucket(distances)).transpose(0, 1).contiguous()  # (H, 2N - 1)
        if not spread:
            return by_distance
        if not is_traced():
            return by_distance.unfold(1, num_tokens, 1).flip(1)[None]  # (1, H, Q, K)
        # A graph would keep the size of the windows for good, and therefore indexes, which costs more in eager mode.
        tokens = torch.arange(num_tokens, device=device)
        return by_distance[:, tokens - tokens[:, None] + (num_tokens - 1)][None]  # (1, H, Q, K)


class BeatsLayerInputs(NamedTuple):
    """What the forward of a BEATs layer takes behind its hidden states, in its order.

    Attributes:
        attention_mask: the padding mask of the tokens.
        position_bias: the learned bias `(1, H, Q, K)` that all layers share; for FlexAttention `(H, 2N - 1)`.
        bias_buffer: memory `(B, H, Q, K)` into which every layer writes its gated bias, or `None` for new memory in
            every layer.
    """

    attention_mask: AttentionMask
    position_bias: torch.Tensor
    bias_buffer: torch.Tensor | None


class BeatsAttention(nn.Module):
    """Self-attention whose relative position bias is scaled by a gate that is computed from each query."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.gate_proj = nn.Linear(self.head_dim, 8)
        self.gate_scale = nn.Parameter(torch.ones(config.num_attention_heads))

    def gate(self, query: torch.Tensor) -> torch.Tensor:
        """Compute the gate `(B, H, Q, 1)`, about 1 to 2 + `gate_scale`, from the unscaled query `(B, Q, H, C)`."""
        # Summing the weights first would be cheaper, but a quantised projection has no such weights
        # and an adapter is not in them. Quantisers such as bitsandbytes take no more than three dimensions.
        groups = self.gate_proj(query.flatten(1, 2)).view(*query.shape[:-1], 2, 4).sum(-1)  # (B, Q, H, 2)
        reset, update = torch.sigmoid(groups).chunk(2, dim=-1)  # (B, Q, H, 1) each
        return (reset * (update * self.gate_scale[:, None] - 1.0) + 2.0).transpose(1, 2)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: AttentionMask,
        position_bias: torch.Tensor,
        bias_buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(heads)  # (B, Q, H, C)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)  # (B, H, K, C)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)  # (B, H, K, C)
        if uses_flex_attention(self.config):
            bias = {"gate": self.gate(query).squeeze(-1), "distance_bias": position_bias}  # (B, H, Q), (H, 2N - 1)
        else:
            bias = {"position_bias": torch.mul(self.gate(query), position_bias, out=bias_buffer)}  # (B, H, Q, K)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query.transpose(1, 2),
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **bias,
            **kwargs,
        )
        return self.out_proj(output.reshape(hidden_states.shape)), weights  # (B, N, D)


class BeatsMLP(nn.Module):
    """The feed-forward network of a BEATs layer."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # This is the exact GELU; its tanh approximation would change the output by 7e-4.
        return self.fc2(self.activation_dropout(nn.functional.gelu(self.fc1(hidden_states))))


class BeatsLayer(GradientCheckpointingLayer):
    """A post-norm transformer layer with deep norm, which scales residuals by alpha = (2 layers)^(1/4)."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25
        self.attention = BeatsAttention(config)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = BeatsMLP(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: AttentionMask,
        position_bias: torch.Tensor,
        bias_buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended, _ = self.attention(hidden_states, attention_mask, position_bias, bias_buffer, **kwargs)
        hidden_states = torch.add(self.dropout(attended), hidden_states, alpha=self.residual_scale)
        hidden_states = self.attention_layer_norm(hidden_states)
        transformed = self.dropout(self.mlp(hidden_states))
        return self.final_layer_norm(torch.add(transformed, hidden_states, alpha=self.residual_scale))


class BeatsPreTrainedModel(SpectrogramEncoder):
    """What transformers needs to know of every BEATs model."""

    config: BeatsConfig
    config_class: type[BeatsConfig] = BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_values"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["BeatsEmbeddings", "BeatsLayer"]
    _supports_sdpa = True
    # Flash attention takes no additive bias and would silently drop the relative positions.
    _supports_flash_attn = False
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": BeatsLayer, "attentions": BeatsAttention}
    _input_embed_layer = "patch_embedding"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BeatsAttention):
            init.ones_(module.gate_scale)


class BeatsModel(BeatsPreTrainedModel):
    """The BEATs encoder turns fbank into one token for every 16 x 16 patch, without a norm after the last layer."""

    layer_class = BeatsLayer

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.embeddings = BeatsEmbeddings(config)
        self.relative_position_bias = BeatsRelativePositionBias(config)
        self.layers = nn.ModuleList([self.layer_class(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embedding

    def embed(self, fbank: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Embedded:
        mask = token_mask(attention_mask, fbank.shape[1], self.num_tokens(fbank.shape[1]))
        hidden_states = self.embeddings(fbank, mask)
        num_tokens, is_flex = hidden_states.shape[1], uses_flex_attention(self.config)
        position_bias = self.relative_position_bias(num_tokens, hidden_states.device, spread=not is_flex)
        bias_buffer = None
        if not (is_flex or torch.is_grad_enabled() or is_traced()):
            # Allocating this memory anew in every layer costs 5 % of the time on a CPU. Layers cannot share it where a
            # graph must keep each bias, and compilers plan their memory themselves.
            bias_buffer = position_bias.new_empty(hidden_states.shape[0], *position_bias.shape[1:])
        inputs = BeatsLayerInputs(layer_mask(self.config, hidden_states, mask), position_bias, bias_buffer)
        return Embedded(hidden_states, mask, inputs)

    def output(self, hidden_states: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=hidden_states)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """Encode recordings.

        Args:
            input_values: BEATs-normalised fbank `(B, T, M)`, or `(B, 2, T, M)` of which the close channel is used.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding.

        Returns:
            `last_hidden_state` `(B, N, D)`; with `output_hidden_states=True` also the input of the first layer and the
            output of every layer; with `output_attentions=True` (eager attention) the attention weights.

        Raises:
            ValueError: a shape is wrong, or there are fewer frames than in one patch.
        """
        fbank = close_channel(input_values, self.config.num_mel_bins, self.config.patch_size)
        return self.output(self.run_layers(self.embed(fbank, attention_mask), **kwargs))


__all__ = ["BeatsModel", "BeatsPreTrainedModel"]

BeatsModel.register_for_auto_class("AutoModel")
