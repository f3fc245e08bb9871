"""The trainable layer after each frozen layer: it changes the close stream in the light of the far one.

Fujimura et al., "Noise-aware audio self-supervised learning", IWAENC 2026, and DCASE 2026 Task 2.
Letters in shape comments: B recordings, N tokens of the close stream, N' tokens of the far stream, D hidden size,
H heads, C channels a head.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .modeling_shared import eager_attention_forward

# What a configuration says about one checkpoint rather than about the model.
_IDENTITY_FIELDS = ("model_type", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version")


class ZeroLinear(nn.Linear):
    """The last projection of a residual branch: zero at initialisation.

    A class of its own because transformers initialises custom code only module by module, and skips those that own no
    parameters, so the layer around it could not do this.
    """


class NoiseAwareRMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # In float32 whatever the stream's dtype: the mean square of a half precision stream is too coarse.
        normed = nn.functional.rms_norm(hidden_states.float(), self.weight.shape, eps=self.eps)
        return self.weight * normed.to(hidden_states.dtype)


class NoiseAwareAttention(nn.Module):
    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.noise_aware_num_heads
        self.head_dim = config.hidden_size // config.noise_aware_num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.noise_aware_attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = ZeroLinear(config.hidden_size, config.hidden_size)

    def forward(
        self, query_states: torch.Tensor, key_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.q_proj(query_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, N, C)
        key = self.k_proj(key_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, N', C)
        value = self.v_proj(key_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, N', C)
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
        return self.out_proj(output.reshape(query_states.shape)), weights  # (B, N, D)


class NoiseAwareMLP(nn.Module):
    """SwiGLU: `down(silu(gate(h)) * up(h))`."""

    def __init__(self, input_size: int, intermediate_size: int, output_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(input_size, intermediate_size)
        self.up_proj = nn.Linear(input_size, intermediate_size)
        self.down_proj = ZeroLinear(intermediate_size, output_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class NoiseAwareLayer(nn.Module):
    """`x += mix(norm(x), norm(n))`, then `x += SwiGLU(norm(x))`; the identity at initialisation.

    `config.noise_aware_layer_type` chooses the mix:
        cross_attention: x attends to the far stream n.
        aligned: the same, and the SwiGLU is also given n's token at x's time and frequency.
        self_attention: x attends to itself and n is ignored (D-BEATs).
        film: `gamma * norm(x) + beta`, both from the time average of norm(n); takes no padding mask.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        size, eps = config.hidden_size, config.noise_aware_norm_eps
        self.layer_type = config.noise_aware_layer_type
        self.query_norm = NoiseAwareRMSNorm(size, eps)
        if self.layer_type != "self_attention":
            self.noise_norm = NoiseAwareRMSNorm(size, eps)
        if self.layer_type == "film":
            self.film = ZeroLinear(size, 2 * size)
        else:
            self.attention = NoiseAwareAttention(config)
        self.mlp_norm = NoiseAwareRMSNorm(size, eps)
        mlp_input_size = 2 * size if self.layer_type == "aligned" else size
        self.mlp = NoiseAwareMLP(mlp_input_size, config.noise_aware_intermediate_size, size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        noise_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: the close stream x, `(B, N, D)`.
            noise_states: the far stream n, `(B, N', D)`; unused and may be `None` for "self_attention".
            attention_mask: over the attended tokens (n's, or x's for "self_attention"), as the attention interface
                wants it.

        Returns:
            the changed close stream, `(B, N, D)`.

        Raises:
            ValueError: a padding mask with "film".
        """
        query = self.query_norm(hidden_states)
        noise = None if self.layer_type == "self_attention" else self.noise_norm(noise_states)
        if self.layer_type == "film":
            if attention_mask is not None:
                raise ValueError(
                    "`attention_mask` must be None for noise_aware_layer_type 'film': it averages over all far tokens; "
                    f"got a mask of shape {tuple(attention_mask.shape)}."
                )
            gamma, beta = self.film(noise.mean(dim=1, keepdim=True)).chunk(2, dim=-1)  # (B, 1, D) each
            hidden_states = hidden_states + gamma * query + beta
        else:
            attended, _ = self.attention(query, query if noise is None else noise, attention_mask, **kwargs)
            hidden_states = hidden_states + attended
        mlp_input = self.mlp_norm(hidden_states)
        if self.layer_type == "aligned":
            mlp_input = torch.cat([mlp_input, _fit_length(noise, mlp_input.shape[1])], dim=-1)  # (B, N, 2D)
        return hidden_states + self.mlp(mlp_input)


def _fit_length(noise: torch.Tensor, num_tokens: int) -> torch.Tensor:
    # Both microphones start together, so positions agree from the start; a shorter far channel has no token to give.
    missing = num_tokens - noise.shape[1]
    return noise[:, :num_tokens] if missing <= 0 else nn.functional.pad(noise, (0, 0, 0, missing))  # (B, N, D)


@torch.no_grad()
def init_noise_aware_weights(module: nn.Module) -> None:
    """Make every noise-aware layer the identity, so that an untrained NA model equals its base bit for bit.

    To be called from `_init_weights` of the models.
    """
    if isinstance(module, ZeroLinear):
        init.zeros_(module.weight)
        init.zeros_(module.bias)


def is_noise_aware_parameter(name: str) -> bool:
    """Whether a parameter name of an NA model belongs to a noise-aware layer, not to the base."""
    return ".noise_aware." in name


class NoiseAwareModelMixin:
    """Freezing, train mode and construction of a noise-aware model; mixed into a base encoder class.

    The names of the base's parameters are those of the base model, so an NA state dict is the base's plus
    `layers.i.noise_aware.*`.
    """

    base_is_frozen = False

    def freeze_base(self, frozen: bool = True) -> None:
        """Freeze (or unfreeze) every parameter outside the noise-aware layers; a frozen base also stays in eval mode.

        Args:
            frozen: False to fine-tune the base as well.
        """
        self.base_is_frozen = frozen
        for name, parameter in self.named_parameters():  # type: ignore[attr-defined]
            if not is_noise_aware_parameter(name):
                parameter.requires_grad_(not frozen)
        self.train(self.training)  # type: ignore[attr-defined]

    def train(self, mode: bool = True) -> Any:
        super().train(mode)  # type: ignore[misc]
        if self.base_is_frozen:
            for name, child in self.named_children():  # type: ignore[attr-defined]
                if name != "layers":
                    child.eval()
            for layer in self.layers:  # type: ignore[attr-defined]
                for name, child in layer.named_children():
                    if name != "noise_aware":
                        child.eval()
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As [`PreTrainedModel.from_pretrained`]; the base comes back frozen (loading forgets `requires_grad`)."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_base()
        return loaded

    @classmethod
    def from_base(cls, base: PreTrainedModel, **noise_aware_fields: Any) -> Any:
        """A noise-aware model around a pretrained base: identity layers, so it starts with the base's outputs.

        Args:
            base: a [`BeatsModel`] for NA-BEATs, an [`EatModel`] for NA-EAT; its weights are copied.
            **noise_aware_fields: `noise_aware_...` fields of the configuration.

        Returns:
            the NA model, in eval mode, on the base's device and in its dtype.

        Raises:
            ValueError: `base` is of another type.
        """
        base_type = cls.config_class.base_model_type  # type: ignore[attr-defined]
        if base.config.model_type != base_type:
            raise ValueError(f"`base` must be a model of type {base_type!r}, got {base.config.model_type!r}.")
        fields = base.config.to_dict()
        for field in _IDENTITY_FIELDS:
            fields.pop(field, None)
        config = cls.config_class(**fields, **noise_aware_fields)  # type: ignore[attr-defined]
        model = cls(config).to(device=base.device, dtype=base.dtype)  # type: ignore[call-arg, attr-defined]
        missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
        assert not unexpected
        assert all(is_noise_aware_parameter(name) for name in missing)
        return model.eval()

    def to_base(self) -> PreTrainedModel:
        """The single-channel base inside this model, as a model of its own (weights copied, in eval mode)."""
        fields = self.config.to_dict()  # type: ignore[attr-defined]
        config_class = self.base_class.config_class  # type: ignore[attr-defined]
        known = {field.name for field in dataclasses.fields(config_class)} - set(_IDENTITY_FIELDS)
        base = self.base_class(config_class(**{name: fields[name] for name in known if name in fields}))  # type: ignore[attr-defined]
        state = {name: value for name, value in self.state_dict().items() if not is_noise_aware_parameter(name)}  # type: ignore[attr-defined]
        base.load_state_dict(state)
        return base.to(device=self.device, dtype=self.dtype).eval()  # type: ignore[attr-defined]
