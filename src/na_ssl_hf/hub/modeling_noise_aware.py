"""NA-BEATs, NA-EAT and NA-Dasheng, and what makes an encoder noise-aware: a trainable layer after each frozen one.

Fujimura et al., "Noise-aware audio self-supervised learning", IWAENC 2026, and DCASE 2026 Task 2.
Letters in shape comments: B recordings, N tokens of the close stream, N' tokens of the far stream, D hidden size,
H heads, C channels a head, T and T' fbank frames of the close and far channel, M mel bins.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_beats import NABeatsConfig
from .configuration_dasheng import NADashengConfig
from .configuration_eat import NAEatConfig
from .modeling_beats import BeatsLayer, BeatsModel
from .modeling_dasheng import DashengLayer, DashengModel, joins_pieces
from .modeling_eat import EatLayer, EatModel
from .modeling_shared import (
    ALL_ATTENTION_FUNCTIONS,
    AttentionMask,
    LayerInputs,
    SpectrogramEncoder,
    close_channel,
    eager_attention_forward,
    layer_mask,
    split_channels,
)

# These fields of a configuration describe one checkpoint and not the model.
_IDENTITY_FIELDS = ("model_type", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version")


class ZeroLinear(nn.Linear):
    """The last projection of a residual branch, which is zero at initialisation.

    It is a class of its own because transformers initialises custom code module by module and skips modules that own
    no parameters, so that the layer around it could not set it to zero.
    """


class NoiseAwareGate(nn.Linear):
    """The gate computes `sigmoid(w h + b)`, which is 0.88 for every token at initialisation."""

    initial_bias = 2.0

    def __init__(self, input_size: int):
        super().__init__(input_size, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states).sigmoid()


class NoiseAwareRMSNorm(nn.Module):
    """Root mean square normalisation with a learned gain for every channel."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # The mean square needs float32: in half precision it would be too coarse.
        normed = nn.functional.rms_norm(hidden_states.float(), self.weight.shape, eps=self.eps)
        return self.weight * normed.to(hidden_states.dtype)


class NoiseAwareAttention(nn.Module):
    """Multi-head attention of one stream's tokens to those of another, or to its own."""

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
        self, query_states: torch.Tensor, key_states: torch.Tensor, attention_mask: AttentionMask, **kwargs: Any
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
    """The SwiGLU feed-forward network computes `down(silu(gate(h)) * up(h))`."""

    def __init__(self, input_size: int, intermediate_size: int, output_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(input_size, intermediate_size)
        self.up_proj = nn.Linear(input_size, intermediate_size)
        self.down_proj = ZeroLinear(intermediate_size, output_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class NoiseAwareLayer(nn.Module):
    """The trainable layer computes `x += mix(norm(x), norm(n))`, then `x += SwiGLU(norm(x))`.

    It is the identity at initialisation.

    `config.noise_aware_layer_type` chooses the mix:
        cross_attention: x attends to the far stream n.
        aligned: the same, and the SwiGLU (and a gate) is also given n's token at x's time and frequency.
        self_attention: x attends to itself and n is ignored (D-BEATs).
        film: `gamma * norm(x) + beta`, both from the time average of norm(n) without its padding.

    With `config.noise_aware_gate`, what is added to x is multiplied by a gate in (0, 1) for each token, computed from
    norm(x) before the mix. A layer can so leave a token alone where the far microphone says nothing new.
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
        self.gate = NoiseAwareGate(mlp_input_size) if config.noise_aware_gate else None
        self.mlp = NoiseAwareMLP(mlp_input_size, config.noise_aware_intermediate_size, size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        noise_states: torch.Tensor | None,
        attention_mask: AttentionMask = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Change the close stream.

        Args:
            hidden_states: the close stream x, `(B, N, D)`.
            noise_states: the far stream n, `(B, N', D)`; unused and may be `None` for "self_attention".
            attention_mask: the padding mask of the attended tokens: n's, or x's for "self_attention"; for "film" bool
                `(B, N')`, True on tokens of the recording.

        Returns:
            the changed close stream, `(B, N, D)`.
        """
        unchanged, query = hidden_states, self.query_norm(hidden_states)
        if self.layer_type == "self_attention":
            attended = query
        else:
            assert noise_states is not None
            attended = self.noise_norm(noise_states)  # (B, N', D)
        if self.layer_type == "film":
            assert attention_mask is None or isinstance(attention_mask, torch.Tensor)
            gamma, beta = self.film(_mean_over_tokens(attended, attention_mask)).chunk(2, dim=-1)  # (B, 1, D) each
            hidden_states = hidden_states + gamma * query + beta
        else:
            hidden_states = hidden_states + self.attention(query, attended, attention_mask, **kwargs)[0]
        mlp_input, gate_input = self.mlp_norm(hidden_states), query
        if self.layer_type == "aligned":
            same_place = _fit_length(attended, mlp_input.shape[1])  # (B, N, D)
            mlp_input = torch.cat([mlp_input, same_place], dim=-1)  # (B, N, 2D)
            gate_input = torch.cat([query, same_place], dim=-1)  # (B, N, 2D)
        changed = hidden_states + self.mlp(mlp_input)
        return changed if self.gate is None else unchanged + self.gate(gate_input) * (changed - unchanged)


def _mean_over_tokens(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Average `(B, N, D)` over the tokens where the bool mask `(B, N)` is True, or over all, to `(B, 1, D)`."""
    if mask is None:
        return states.mean(dim=1, keepdim=True)
    mean = states.masked_fill(~mask[..., None], 0.0).mean(dim=1, keepdim=True)
    # A mask of ones multiplies by exactly 1 and changes no bit.
    return mean * (mask.shape[1] / mask.sum(1).clamp_min(1))[:, None, None].to(mean.dtype)


def _fit_length(noise: torch.Tensor, num_tokens: int) -> torch.Tensor:
    # Both recordings start together, so positions agree from the start. Where a far recording ends earlier, zeros stand
    # in for its missing tokens.
    missing = num_tokens - noise.shape[1]
    if torch.compiler.is_compiling():
        missing = num_tokens  # enough for any length, so that one graph takes both a shorter and a longer recording
    return noise[:, :num_tokens] if missing <= 0 else nn.functional.pad(noise, (0, 0, 0, missing))[:, :num_tokens]


def _halves(both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Part a batch of both streams, `(2B, ...)`, into the close and the far one."""
    # ONNX cannot express `chunk` along a batch of any size.
    close, far = both.unflatten(0, (2, -1)).unbind(0)
    return close, far


class StreamInputs(NamedTuple):
    """What a layer of a noise-aware encoder takes beside its two streams.

    Attributes:
        close: what the frozen layer takes beside the close stream; beside both streams where `as_one_batch`.
        far: what it takes beside the far stream; `None` where there is no far stream, or where the far states that are
            given are the frozen layer's output already.
        cross_attention_mask: the padding mask of the far tokens, or of the close ones where there is no far stream; for
            "film" bool `(B, N')`.
        as_one_batch: whether both streams go through the frozen layer together.
    """

    close: LayerInputs
    far: LayerInputs | None = None
    cross_attention_mask: AttentionMask = None
    as_one_batch: bool = False


class NoiseAwareEncoderLayer(GradientCheckpointingLayer):
    """A frozen layer of the base, which both streams pass through, and the noise-aware layer after it.

    It is mixed into the base's layer class, whose parameters keep their names.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.noise_aware = NoiseAwareLayer(config)

    def base_forward(self, hidden_states: torch.Tensor, *layer_inputs: torch.Tensor | None, **kwargs: Any) -> Any:
        """Run the frozen layer alone, with the arguments of its own forward."""
        return super().forward(hidden_states, *layer_inputs, **kwargs)

    def forward(
        self, hidden_states: torch.Tensor, far_states: torch.Tensor | None, inputs: StreamInputs, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the frozen layer on both streams and the noise-aware layer on the close one.

        Args:
            hidden_states: the close stream, `(B, N, D)`.
            far_states: the far stream, `(B, N', D)`.
            inputs: what the layers need beside the streams.

        Returns:
            both streams after this layer.
        """
        if inputs.as_one_batch and far_states is not None:
            both = torch.cat([hidden_states, far_states])  # (2B, N, D)
            hidden_states, far_states = _halves(self.base_forward(both, *inputs.close, **kwargs))
        else:
            hidden_states = self.base_forward(hidden_states, *inputs.close, **kwargs)
            if far_states is not None and inputs.far is not None:
                # The far stream is a fixed reference: it is never changed, so nothing flows back through it.
                with torch.no_grad():
                    far_states = self.base_forward(far_states, *inputs.far, **kwargs)
        return self.noise_aware(hidden_states, far_states, inputs.cross_attention_mask, **kwargs), far_states


def is_noise_aware_parameter(name: str) -> bool:
    """Tell whether a parameter name of an NA model belongs to a noise-aware layer and not to the base."""
    return ".noise_aware." in name


ModelT = TypeVar("ModelT", bound="NoiseAwareModelMixin")


class NoiseAwareModelMixin(SpectrogramEncoder):
    """Adds noise-aware layers to a base encoder class: how such a model is made, frozen and run.

    The names of the base's parameters are those of the base model, so an NA state dict is the base's plus
    `layers.i.noise_aware.*`.
    """

    base_class: type[SpectrogramEncoder]
    base_is_frozen = False

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.freeze_base()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            # Every noise-aware layer starts as the identity, so that an untrained model equals its base bit for bit.
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, NoiseAwareGate):
            init.zeros_(module.weight)
            init.constant_(module.bias, module.initial_bias)

    @property
    def hears_far(self) -> bool:
        """Whether the noise-aware layers use the far stream; those of "self_attention" do not."""
        return self.config.noise_aware_layer_type != "self_attention"

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_values: torch.Tensor,
        noise_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        noise_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput | BaseModelOutputWithPooling:
        """Encode recordings.

        Args:
            input_values: fbank of both channels `(B, 2, T, M)`, close first, normalised as the base wants it; or of
                the close channel alone, `(B, T, M)`, with `noise_values` beside it.
            noise_values: the far channel, `(B, T', M)`; T' may differ from T.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding; for two-channel
                `input_values` it holds for both channels.
            noise_attention_mask: `(B, T')`, the same for `noise_values`.

        Returns:
            `last_hidden_state` `(B, N, D)` as the base gives it, for Dasheng after its final norm, for EAT with CLS
            first and again as `pooler_output` `(B, D)`; with `output_hidden_states=True` also the input of the first
            layer and the output of every layer; with `output_attentions=True` (eager attention) the noise-aware layers'
            weights.

        Raises:
            ValueError: the far channel is missing, a shape is wrong, or there are fewer frames than in one patch or
                more than EAT's position table holds; or Dasheng would cut the two channels into different numbers of
                pieces.
        """
        hidden_states, far_states, inputs = self._embed_streams(
            input_values, noise_values, attention_mask, noise_attention_mask
        )
        for layer in self.layers:
            hidden_states, far_states = layer(hidden_states, far_states, inputs, **kwargs)
        return self.output(hidden_states)

    def layer_states(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Iterator[torch.Tensor]:
        """Run the layers one by one, as [`SpectrogramEncoder.layer_states`] does; yields the close stream."""
        hidden_states, far_states, inputs = self._embed_streams(input_values, None, attention_mask, None)
        yield hidden_states
        for layer in self.layers:
            hidden_states, far_states = layer(hidden_states, far_states, inputs)
            yield hidden_states

    def base_layer_states(self, input_values: torch.Tensor) -> Iterator[torch.Tensor]:
        """Run the frozen layers alone on the close channel, as the base itself would; yields as `layer_states` does."""
        fbank = close_channel(input_values, self.config.num_mel_bins, self.config.patch_size)
        hidden_states, _, layer_inputs = self.embed(fbank)
        yield hidden_states
        for layer in cast("Iterable[NoiseAwareEncoderLayer]", self.layers):
            hidden_states = layer.base_forward(hidden_states, *layer_inputs)
            yield hidden_states

    def interpolated_grids(
        self, input_values: torch.Tensor, layers: Sequence[int | None], shares: Sequence[float]
    ) -> list[list[torch.Tensor]]:
        """Compute the grids between those of the base and those of this model.

        The noise-aware layers do harm where they hear what they were not trained on. A share below 1 shrinks towards
        the base. The layers run once for all shares; at 0 the noise-aware ones, at 1 the base alone is not run.

        Args:
            input_values: fbank of both channels, `(B, 2, T, M)`.
            layers: see `layer_grids`.
            shares: shares of this model, 0 for the base, 1 for the model.

        Returns:
            for each of `shares`, for each of `layers` a grid `(B, T', F', D)`.

        Raises:
            ValueError: there is no such layer, or a shape is wrong.
        """
        base: list[torch.Tensor] = []
        own: list[torch.Tensor] = []
        if any(share < 1 for share in shares):
            base = self.grids_of_states(self.base_layer_states(input_values), layers, input_values.shape[-2])
        if any(share > 0 for share in shares):
            own = self.layer_grids(input_values, layers)
        return [
            base
            if share == 0
            else own
            if share == 1
            else [torch.lerp(*pair, share) for pair in zip(base, own, strict=True)]
            for share in shares
        ]

    def _embed_streams(
        self,
        input_values: torch.Tensor,
        noise_values: torch.Tensor | None,
        mask: torch.Tensor | None,
        far_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, StreamInputs]:
        """Embed what the forward takes: both streams, or the close one where the far one is not used."""
        sizes = self.config.num_mel_bins, self.config.patch_size
        if self.hears_far:
            if noise_values is None:
                far_mask = mask
            close, far = split_channels(input_values, noise_values, *sizes)
            return self._embed_both(close, far, mask, far_mask, together=noise_values is None)
        embedded = self.embed(close_channel(input_values, *sizes), mask)
        own_mask = embedded.layer_inputs.attention_mask
        return embedded.hidden_states, None, StreamInputs(embedded.layer_inputs, cross_attention_mask=own_mask)

    def _embed_both(
        self,
        close: torch.Tensor,
        far: torch.Tensor,
        mask: torch.Tensor | None,
        far_mask: torch.Tensor | None,
        together: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, StreamInputs]:
        """Embed both streams, from fbank `(B, T, M)` and `(B, T', M)`; `together` where they came as one tensor."""
        # A graph for any two lengths must not depend on whether those of its example were equal.
        alike = together or (not torch.compiler.is_compiling() and close.shape == far.shape)
        if mask is None or far_mask is None:
            masks, alike = None, alike and mask is far_mask
        else:
            alike = alike and (mask is far_mask or mask.shape == far_mask.shape)
            masks = torch.cat([mask, far_mask]) if alike else None
        if alike and not torch.is_grad_enabled():
            # Without a graph, the frozen layers take both streams as one batch: fewer and larger operations.
            both = self.embed(torch.cat([close, far]), masks)
            hidden_states, far_states = _halves(both.hidden_states)
            far_token_mask = None if both.token_mask is None else _halves(both.token_mask)[1]
            inputs = StreamInputs(both.layer_inputs, both.layer_inputs, as_one_batch=True)
        else:
            embedded = self.embed(close, mask)
            with torch.no_grad():
                embedded_far = self.embed(far, far_mask)
            hidden_states, far_states = embedded.hidden_states, embedded_far.hidden_states
            far_token_mask = embedded_far.token_mask
            inputs = StreamInputs(embedded.layer_inputs, embedded_far.layer_inputs)
        if hidden_states.shape[0] != far_states.shape[0]:
            raise ValueError(
                "`noise_values` must have as many pieces of `target_length` frames as `input_values`, because every "
                f"piece hears only the far one of the same time; got {far.shape[1]} and {close.shape[1]} frames."
            )
        if self.config.noise_aware_layer_type == "film":
            return hidden_states, far_states, inputs._replace(cross_attention_mask=far_token_mask)
        cross_attention_mask = layer_mask(self.config, hidden_states, far_token_mask, far_states)
        return hidden_states, far_states, inputs._replace(cross_attention_mask=cross_attention_mask)

    @torch.no_grad()
    def base_states(self, fbank: torch.Tensor) -> list[torch.Tensor]:
        """Encode fbank `(B, T, M)` with the base alone, without a graph.

        Returns:
            every layer's output as the next layer takes it, `(B, N, D)`; see [`SpectrogramEncoder.join_pieces`].
        """
        hidden_states, _, layer_inputs = self.embed(fbank)
        states = []
        for layer in cast("Iterable[NoiseAwareEncoderLayer]", self.layers):
            hidden_states = layer.base_forward(hidden_states, *layer_inputs)
            states.append(hidden_states)
        return states

    def denoise(self, fbank: torch.Tensor, far_states: Sequence[torch.Tensor] | None) -> torch.Tensor:
        """Encode the close channel where the far stream is known already.

        Args:
            fbank: the fbank of the close channel, `(B, T, M)`.
            far_states: the [`NoiseAwareModelMixin.base_states`] of the far channel; `None` for a model that does
                not use it.

        Returns:
            `(B, N, D)`, what `forward` gives of both channels as `last_hidden_state`.
        """
        hidden_states, _, layer_inputs = self.embed(fbank)
        inputs = StreamInputs(layer_inputs)
        known: Sequence[torch.Tensor | None] = [None] * len(self.layers) if far_states is None else far_states
        for layer, far in zip(self.layers, known, strict=True):
            hidden_states, _ = layer(hidden_states, far, inputs)
        return self.last_hidden_state(hidden_states, fbank.shape[1])

    def freeze_base(self, frozen: bool = True) -> None:
        """Freeze (or unfreeze) every parameter outside the noise-aware layers; a frozen base also stays in eval mode.

        Args:
            frozen: False to fine-tune the base as well.
        """
        self.base_is_frozen = frozen
        for name, parameter in self.named_parameters():
            if not is_noise_aware_parameter(name):
                parameter.requires_grad_(not frozen)
        self.train(self.training)

    def train(self: ModelT, mode: bool = True) -> ModelT:
        super().train(mode)
        if self.base_is_frozen:
            for name, child in self.named_children():
                if name != "layers":
                    child.eval()
            for layer in self.layers:
                for name, child in layer.named_children():
                    if name != "noise_aware":
                        child.eval()
        return self

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as [`PreTrainedModel.from_pretrained`] does, and freeze the base, which loading leaves trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_base()
        return loaded

    @classmethod
    def from_base(cls: type[ModelT], base: PreTrainedModel, **noise_aware_fields: Any) -> ModelT:
        """Make a noise-aware model around a pretrained base; its new layers are the identity and change no output yet.

        Args:
            base: a [`BeatsModel`] for NA-BEATs, an [`EatModel`] for NA-EAT, a [`DashengModel`] for NA-Dasheng; its
                weights are copied.
            **noise_aware_fields: `noise_aware_...` fields of the configuration.

        Returns:
            the NA model, in eval mode, on the base's device and in its dtype.

        Raises:
            ValueError: `base` is of another type.
        """
        base_type = cls.base_class.config_class.model_type
        if base.config.model_type != base_type:
            raise ValueError(f"`base` must be a model of type {base_type!r}, got {base.config.model_type!r}.")
        fields = base.config.to_dict()
        for field in _IDENTITY_FIELDS:
            fields.pop(field, None)
        config = cls.config_class(**fields, **noise_aware_fields)
        model = cls(config)
        nn.Module.to(model, device=base.device, dtype=base.dtype)
        missing, unexpected = model.load_state_dict(base.state_dict(), strict=False)
        assert not unexpected
        assert all(is_noise_aware_parameter(name) for name in missing)
        return model.eval()

    def to_base(self) -> SpectrogramEncoder:
        """Copy the single-channel base inside this model into a model of its own, in eval mode."""
        fields = self.config.to_dict()
        config_class = self.base_class.config_class
        known = {field.name for field in dataclasses.fields(config_class)} - set(_IDENTITY_FIELDS)
        base = self.base_class(config_class(**{name: fields[name] for name in known if name in fields}))
        state = {name: value for name, value in self.state_dict().items() if not is_noise_aware_parameter(name)}
        base.load_state_dict(state)
        nn.Module.to(base, device=self.device, dtype=self.dtype)
        return base.eval()


class NABeatsLayer(NoiseAwareEncoderLayer, BeatsLayer):  # type: ignore[misc] # takes two streams and not one
    """A frozen BEATs layer that both streams pass through, and the noise-aware layer behind it."""


class NABeatsModel(NoiseAwareModelMixin, BeatsModel):
    """The noise-aware BEATs encoder turns close and far fbank into denoised tokens of the close recording.

    Its base is frozen. An untrained model, whose new layers are the identity, gives exactly what BEATs gives for the
    close channel.
    """

    base_class = BeatsModel
    layer_class = NABeatsLayer
    config: NABeatsConfig
    config_class = NABeatsConfig
    base_model_prefix = "na_beats"
    _no_split_modules = ["BeatsEmbeddings", "NABeatsLayer"]
    _can_record_outputs = {"hidden_states": NABeatsLayer, "attentions": NoiseAwareAttention}


class NAEatLayer(NoiseAwareEncoderLayer, EatLayer):  # type: ignore[misc] # takes two streams and not one
    """A frozen EAT layer that both streams pass through, and the noise-aware layer behind it."""


class NAEatModel(NoiseAwareModelMixin, EatModel):
    """The noise-aware EAT encoder turns close and far fbank into denoised tokens of the close recording.

    Its base is frozen. An untrained model, whose new layers are the identity, gives exactly what EAT gives for the
    close channel.
    """

    base_class = EatModel
    layer_class = NAEatLayer
    config: NAEatConfig
    config_class = NAEatConfig
    base_model_prefix = "na_eat"
    _no_split_modules = ["EatEmbeddings", "NAEatLayer"]
    _can_record_outputs = {"hidden_states": NAEatLayer, "attentions": NoiseAwareAttention}


class NADashengLayer(NoiseAwareEncoderLayer, DashengLayer):  # type: ignore[misc] # takes two streams and not one
    """A frozen Dasheng layer that both streams pass through, and the noise-aware layer behind it."""


class NADashengModel(NoiseAwareModelMixin, DashengModel):
    """The noise-aware Dasheng encoder turns close and far spectrograms into denoised tokens of the close recording.

    Its base is frozen. An untrained model, whose new layers are the identity, gives exactly what Dasheng gives for the
    close channel. Of recordings longer than `target_length`, every piece hears only the far piece of the same time; the
    two may differ in length as long as they have equally many pieces.
    """

    base_class = DashengModel
    layer_class = NADashengLayer
    config: NADashengConfig
    config_class = NADashengConfig
    base_model_prefix = "na_dasheng"
    _no_split_modules = ["DashengEmbeddings", "NADashengLayer"]
    _can_record_outputs = {"hidden_states": NADashengLayer, "attentions": NoiseAwareAttention}
    forward = joins_pieces(NoiseAwareModelMixin.forward)


__all__ = ["NABeatsModel", "NADashengModel", "NAEatModel"]

NABeatsModel.register_for_auto_class("AutoModel")
NADashengModel.register_for_auto_class("AutoModel")
NAEatModel.register_for_auto_class("AutoModel")
