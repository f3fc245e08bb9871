"""What every encoder shares: the way from fbank through the layers, the checks of its input, and eager attention.

Letters in shape comments: B recordings, T fbank frames, M mel bins, N tokens, D hidden size, H heads, Q queries, K
keys, C channels a head.
"""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.integrations.flex_attention import compile_friendly_flex_attention
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import AttentionInterface
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME

from .configuration_noise_aware import SCORER_PIPELINES, NamedPipelines

# The options of `from_pretrained` that say where a checkpoint lies and who may read it.
HUB_OPTIONS = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "proxies")
# Encoders have been published with up to a tenth of this number.
MAX_PARAMETERS = 2_000_000_000
# The smallest types take half a byte, and a base model in half precision lacks the noise-aware layers.
MAX_PARAMETERS_PER_BYTE = 8
WEIGHTS_SUFFIXES = (".safetensors", ".bin")
# A padding mask in the form that the chosen attention implementation takes; `None` where nothing is padded.
AttentionMask: TypeAlias = torch.Tensor | BlockMask | None


class LayerInputs(Protocol):
    """What an encoder's layers take beside the hidden states: a named tuple, in the order of their forward."""

    @property
    def attention_mask(self) -> AttentionMask:
        """The padding mask of the tokens."""

    def __iter__(self) -> Iterator[Any]: ...


class Embedded(NamedTuple):
    """Embedded recordings are the tokens before an encoder's first layer, with what all layers need beside them.

    Attributes:
        hidden_states: the tokens, `(B, N, D)`.
        token_mask: bool `(B, N)`, True on tokens of the recording; `None` where nothing is padded.
        layer_inputs: what every layer takes beside `hidden_states`.
    """

    hidden_states: torch.Tensor
    token_mask: torch.Tensor | None
    layer_inputs: LayerInputs


class FoundWith(dict):
    """The options by which a checkpoint was found. A copy of the model that is pickled has no token of its owner."""

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return FoundWith, ({name: value for name, value in self.items() if name != "token"},)


class CompleteModel(PreTrainedModel):
    """The base of all models, which are loaded whole or not at all.

    Attributes:
        made_anew: the names of the tensors that a file may lack, because they are computed and never trained.
        may_be_new: parts of the names of those that the file of another model may lack, and that start untrained.
    """

    made_anew: tuple[str, ...] = ()
    may_be_new: tuple[str, ...] = (".noise_aware.",)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a model as transformers does, yet refuse a file that does not hold its weights.

        Weights that the file lacks would be random, and every score with them; weights that it holds beyond the model's
        say that the sizes in `config.json` are wrong. Only a `config` of one's own, not of the checkpoint, takes a part
        of the weights, and may add noise-aware layers to those of a base model.

        The sizes in `config.json` never decide alone how much memory is taken: a model has at most `MAX_PARAMETERS`,
        and one from a folder at most `MAX_PARAMETERS_PER_BYTE` for every byte of its weights.

        Raises:
            OSError: The weights are missing, truncated, or those of another model.
            ValueError: The configuration is refused.
        """
        source = str(pretrained_model_name_or_path)
        folder = os.path.join(source, kwargs.get("subfolder") or "")
        config = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig) and os.path.isfile(os.path.join(folder, "config.json")):
            options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            assert cls.config_class is not None
            config = cls.config_class.from_pretrained(config or source, **options)
        if isinstance(config, PreTrainedConfig):
            cls._check_size(config, folder)
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except (SafetensorError, RuntimeError, RecursionError) as error:
            raise OSError(f"The weights of {source} cannot be loaded: {_last_line(error)}") from error
        model, info = loaded
        of_base = cls.__name__ not in (model.config.architectures or ())
        may_lack = [name for name in info["missing_keys"] if of_base and any(part in name for part in cls.may_be_new)]
        missing = sorted(set(info["missing_keys"]) - {*may_lack, *cls.made_anew})
        unexpected = [] if of_base else sorted(info["unexpected_keys"])
        for names, what in ((missing, "lack"), (unexpected, "also hold")):
            if names and kwargs.get("state_dict") is None:
                raise OSError(
                    f"The weights of {source} must be those of the {cls.__name__} that config.json describes, but they "
                    f"{what} {len(names)} tensors, such as {names[0]}."
                )
        return loaded if output_loading_info else model

    @classmethod
    def encoder_type(cls) -> "type[SpectrogramEncoder] | None":
        """Return the encoder that a scorer hears with: this class, or that under its head; `None` for none."""
        return None

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Save as transformers does, and beside an encoder what a scorer needs where the package is not installed.

        This is the code of the pipeline, which `config.json` then names, and a feature extractor, where the folder has
        none: that of the checkpoint from which the model was loaded, or else the one of its configuration.

        Args:
            save_directory, *args, **kwargs: as for [`PreTrainedModel.save_pretrained`].
            push_to_hub: whether all of it is uploaded afterwards.
        """
        encoder = self.encoder_type()
        if encoder is None:
            super().save_pretrained(save_directory, *args, **kwargs | {"push_to_hub": push_to_hub})
            return
        # transformers adds the saved class alone to what the configuration says already. From the folder of a
        # classifier the encoder loads as well, and that of an encoder lacks the code of a classifier it came with.
        self.config.auto_map = {"AutoModel": f"{encoder.__module__.rpartition('.')[2]}.{encoder.__name__}"}
        self.config.custom_pipelines = NamedPipelines(SCORER_PIPELINES)
        hub_names = ("repo_id", "commit_message", "private", "revision", "create_pr")
        hub_options = {name: kwargs.pop(name) for name in hub_names if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        if os.path.isfile(os.path.join(save_directory, CONFIG_NAME)) and kwargs.get("is_main_process", True):
            self._complete(save_directory)
        if push_to_hub:
            repository = hub_options.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(repository, token=kwargs.get("token"), **hub_options)

    def _complete(self, folder: str | os.PathLike) -> None:
        """Add to the folder of a saved encoder the code that scores with it, and a feature extractor."""
        # Scoring is built on the encoders and not under them. These lines also make transformers copy the code of the
        # pipeline wherever it copies that of a model.
        from .feature_extraction_two_channel import TwoChannelFeatureExtractor
        from .pipeline_anomaly_scoring import AnomalyScorer

        custom_object_save(AnomalyScorer, folder)
        if os.path.exists(os.path.join(folder, FEATURE_EXTRACTOR_NAME)):
            return
        options = dict(getattr(self, "found_with", None) or {})
        source = options.pop("path_or_repo_id", None)
        try:
            extractor = TwoChannelFeatureExtractor.from_pretrained(source, **options | {"local_files_only": True})
        except (OSError, ValueError, TypeError):  # the model has no source, or this has no extractor
            try:
                extractor = TwoChannelFeatureExtractor.of(self.config)
            except ValueError:  # the front ends have no such mel bins, so that the model cannot hear recordings
                return
        extractor.save_pretrained(folder)

    @classmethod
    def _check_size(cls, config: PreTrainedConfig, folder: str) -> None:
        """Refuse a configuration that asks for more memory than its weights can fill."""
        limit = MAX_PARAMETERS
        if os.path.isdir(folder):
            entries = [entry for entry in os.scandir(folder) if entry.is_file()]
            for entry in entries:
                if entry.name.endswith(".index.json"):
                    _check_index(entry.path)
            num_bytes = sum(entry.stat().st_size for entry in entries if entry.name.endswith(WEIGHTS_SUFFIXES))
            limit = min(limit, MAX_PARAMETERS_PER_BYTE * num_bytes) if num_bytes else limit
        with torch.device("meta"):
            num_parameters = sum(tensor.numel() for tensor in cls(config).state_dict().values())
        if num_parameters > limit:
            raise OSError(
                f"The sizes in {os.path.join(folder, 'config.json')} must be those of the weights beside it, which "
                f"hold at most {limit} parameters, got a model of {num_parameters}."
            )


def _check_index(path: str) -> None:
    """Raise an OSError where the index of weights in several files is none."""
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} must hold JSON, got an error: {error}.") from error
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not isinstance(index.get("metadata", {}), dict):
        raise OSError(f"{path} must hold a dict with the dicts weight_map and metadata, got {index!r:.60}.")
    for name in names.values():
        if not isinstance(name, str) or os.path.basename(name) != name:
            raise OSError(f"{path} must name files beside it, got {name!r:.60}.")


def _last_line(error: Exception) -> str:
    """Return the last line of a message, where transformers puts the reason."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]


class SpectrogramEncoder(CompleteModel):
    """The base class of the transformers over the patches of an fbank.

    A subclass makes its `embeddings` and `layers`, and defines `embed` and `output`.
    """

    config_class: type[PreTrainedConfig]
    layers: nn.ModuleList
    has_cls_token = False
    # The weights of a classifier may lie in the same folder.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]
    # What else was saved with the checkpoint, a memory of normal recordings above all, is looked up with the same.
    found_with: FoundWith | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as [`PreTrainedModel.from_pretrained`] does, and remember by which options the checkpoint was found."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        options = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        model.found_with = FoundWith(options | {"path_or_repo_id": str(pretrained_model_name_or_path)})
        if commit := getattr(model.config, "_commit_hash", None):
            model.found_with["revision"] = commit
        return loaded

    @classmethod
    def encoder_type(cls) -> type["SpectrogramEncoder"]:
        return cls

    def embed(self, fbank: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Embedded:
        """Make the input of the first layer.

        Args:
            fbank: normalised fbank of one channel, `(B, T, M)`.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding.
        """
        raise NotImplementedError

    def output(self, hidden_states: torch.Tensor) -> BaseModelOutput | BaseModelOutputWithPooling:
        """Make the result of the model's forward from the output of the last layer, `(B, N, D)`."""
        raise NotImplementedError

    def run_layers(self, embedded: Embedded, **kwargs: Any) -> torch.Tensor:
        """Run all layers on embedded recordings and return the output of the last one, `(B, N, D)`."""
        hidden_states = embedded.hidden_states
        for layer in self.layers:
            hidden_states = layer(hidden_states, *embedded.layer_inputs, **kwargs)
        return hidden_states

    def join_pieces(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Make the tokens of recordings, `(B, N, D)`, from what the layers take and give.

        Most encoders take recordings whole, and change nothing. Dasheng cuts long ones into pieces.

        Args:
            hidden_states: the input or output of a layer, `(B, N, D)`; for pieces `(B * P, n, D)`.
            num_frames: T of the fbank that was embedded.
        """
        return hidden_states

    def last_hidden_state(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Make `last_hidden_state` `(B, N, D)` from the output of the last layer; arguments as for `join_pieces`."""
        finished = self.output(hidden_states).last_hidden_state
        assert finished is not None
        return self.join_pieces(finished, num_frames)

    @property
    def num_layers(self) -> int:
        """The number of the last layer; 0 is the input of the first one."""
        return len(self.layers)

    @property
    def least_frames(self) -> int:
        """The fewest frames that give a token."""
        return self.config.patch_size

    @property
    def longest_frames(self) -> int | None:
        """The most frames that the model takes; `None` for any number."""
        rows = getattr(self.config, "max_time_patches", None)
        return None if rows is None else rows * self.config.patch_size

    def layer_states(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Iterator[torch.Tensor]:
        """Run the layers one by one, as they are asked for.

        Args:
            input_values, attention_mask: as for the forward.

        Yields:
            the input of the first layer and the output of every layer, as the next layer takes it, `(B, N, D)`.
        """
        fbank = close_channel(input_values, self.config.num_mel_bins, self.least_frames)
        hidden_states, _, layer_inputs = self.embed(fbank, attention_mask)
        yield hidden_states
        for layer in self.layers:
            hidden_states = layer(hidden_states, *layer_inputs)
            yield hidden_states

    def layer_grids(
        self, input_values: torch.Tensor, layers: Sequence[int | None], attention_mask: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Compute the grids after chosen layers; no layer behind the last of them is run.

        Args:
            input_values, attention_mask: as for the forward.
            layers: 0 for the input of the first layer, i for the output of layer i, as `output_hidden_states` counts
                them; `None` for `last_hidden_state`. In any order.

        Returns:
            for each of `layers` a grid `(B, T', F', D)`.

        Raises:
            ValueError: there is no such layer, or a shape is wrong.
        """
        return self.grids_of_states(self.layer_states(input_values, attention_mask), layers, input_values.shape[-2])

    def grids_of_states(
        self, states: Iterator[torch.Tensor], layers: Sequence[int | None], num_frames: int
    ) -> list[torch.Tensor]:
        """Take the grids of chosen layers from the states of all, and no state behind the last of them.

        Args:
            states: what `layer_states` yields.
            layers: see `layer_grids`, which also says what is returned and raised.
            num_frames: T of the fbank.
        """
        for layer in layers:
            is_number = isinstance(layer, int) and not isinstance(layer, bool)
            if layer is not None and not (is_number and 0 <= layer <= self.num_layers):
                raise ValueError(f"`layers` must be None or in 0 ... {self.num_layers}, got {layer!r}.")
        deepest = max((self.num_layers if layer is None else layer for layer in layers), default=-1)
        found: dict[int | None, torch.Tensor] = {}
        # The iterator comes second, so that no layer more is run than is asked for.
        for index, hidden_states in zip(range(deepest + 1), states):  # noqa: B905
            if index in layers:
                found[index] = self.time_frequency_grid(self.join_pieces(hidden_states, num_frames))
        if None in layers:
            found[None] = self.time_frequency_grid(self.last_hidden_state(hidden_states, num_frames))
        return [found[layer] for layer in layers]

    def num_tokens(self, num_frames: int) -> int:
        """Compute the number of patch tokens, CLS not counted, of `num_frames` fbank frames.

        Frames past the last whole patch are dropped.
        """
        return (num_frames // self.config.patch_size) * (self.config.num_mel_bins // self.config.patch_size)

    def heard_tokens(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """Reduce a mask over frames, `(B, T)`, to a bool one over the tokens of recordings, `(B, N)`, without CLS."""
        num_frames = attention_mask.shape[1]
        mask = token_mask(attention_mask, num_frames, self.num_tokens(num_frames))
        assert mask is not None
        return mask

    def time_frequency_grid(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Arrange tokens `(B, N, D)`, without CLS, as `(B, T', F', D)`: patch rows in time, bands from low to high."""
        patches = last_hidden_state[:, 1:] if self.has_cls_token else last_hidden_state
        return patches.unflatten(1, (-1, self.config.num_mel_bins // self.config.patch_size))  # (B, T', F', D)


def close_channel(input_values: torch.Tensor, num_mel_bins: int, patch_size: int) -> torch.Tensor:
    """Take the close channel from `input_values`, and check its shape.

    Args:
        input_values: normalised fbank, `(B, T, M)`, or `(B, 2, T, M)` of which channel 0 is taken.
        num_mel_bins: the mel bins M that the model was made for.
        patch_size: the least number of frames T.

    Returns:
        `(B, T, M)`.

    Raises:
        ValueError: the rank, the channel count or the number of mel bins is wrong, or there are too few frames.
    """
    if input_values.ndim == 4:
        if input_values.shape[1] != 2:
            raise ValueError(
                "`input_values` must be (batch, frames, mel bins) or have two channels, (batch, 2, frames, mel bins); "
                f"got shape {tuple(input_values.shape)}."
            )
        input_values = input_values[:, 0]
    return _checked(input_values, "input_values", num_mel_bins, patch_size)


def split_channels(
    input_values: torch.Tensor, noise_values: torch.Tensor | None, num_mel_bins: int, patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the close and the far channel from a model's inputs, and check their shapes.

    Args:
        input_values: `(B, 2, T, M)` close and far together, or `(B, T, M)` close alone.
        noise_values: `(B, T', M)`, the far channel, when `input_values` holds the close one alone.
        num_mel_bins: the mel bins M that the model was made for.
        patch_size: the least number of frames T and T'.

    Returns:
        close `(B, T, M)` and far `(B, T', M)`.

    Raises:
        ValueError: the far channel is missing or given twice, batch sizes differ, or a shape is wrong.
    """
    if noise_values is None:
        if input_values.ndim != 4:
            raise ValueError(
                "A noise-aware model needs two channels: give `input_values` of shape (batch, 2, frames, mel bins), or "
                f"`noise_values` beside it; got `input_values` of shape {tuple(input_values.shape)} alone."
            )
        return (
            close_channel(input_values, num_mel_bins, patch_size),
            _checked(input_values[:, 1], "input_values", num_mel_bins, patch_size),
        )
    if input_values.ndim == 4:
        raise ValueError(
            "`noise_values` must not be given when `input_values` already holds two channels; "
            f"got shapes {tuple(noise_values.shape)} and {tuple(input_values.shape)}."
        )
    if input_values.shape[0] != noise_values.shape[0]:
        raise ValueError(
            "`noise_values` must have the batch size of `input_values`; "
            f"got shapes {tuple(noise_values.shape)} and {tuple(input_values.shape)}."
        )
    return (
        _checked(input_values, "input_values", num_mel_bins, patch_size),
        _checked(noise_values, "noise_values", num_mel_bins, patch_size),
    )


def token_mask(attention_mask: torch.Tensor | None, num_frames: int, num_tokens: int) -> torch.Tensor | None:
    """Reduce a mask over frames to one over tokens, as the original BEATs does.

    Every token takes `T // N` consecutive mask entries (the last `T % N` are dropped), and is padding when all of
    them are. Tokens are time-major, so in the boundary patch row only the upper bands are masked.

    Args:
        attention_mask: `(B, T)`, nonzero where the recording is; `None` where nothing is padded.
        num_frames: T of the fbank that the mask belongs to.
        num_tokens: N.

    Returns:
        bool `(B, N)`, True for tokens to attend to, or `None`.

    Raises:
        ValueError: the mask does not have the fbank's number of frames.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[1] != num_frames:
        raise ValueError(
            f"The attention mask must be (batch, frames) with {num_frames} frames, got {tuple(attention_mask.shape)}."
        )
    return count_frames(attention_mask, num_tokens, num_frames // num_tokens) > 0


def count_frames(attention_mask: torch.Tensor, num_tokens: int, frames_per_token: int) -> torch.Tensor:
    """Count the frames of the recording in every token.

    Args:
        attention_mask: `(B, T)`, nonzero where the recording is; T is at least N times `frames_per_token`.
        num_tokens: N.
        frames_per_token: the consecutive frames of a token.

    Returns:
        int64 `(B, N)`.
    """
    # A reshape to (B, N, frames) would say the same, but exported graphs would keep its sizes.
    edges = torch.arange(num_tokens + 1, device=attention_mask.device) * frames_per_token
    counts = nn.functional.pad(attention_mask.bool().cumsum(1), (1, 0)).index_select(1, edges)  # (B, N + 1)
    return counts[:, 1:] - counts[:, :-1]  # (B, N)


def _checked(fbank: torch.Tensor, name: str, num_mel_bins: int, patch_size: int) -> torch.Tensor:
    if fbank.ndim != 3 or fbank.shape[-1] != num_mel_bins:
        raise ValueError(
            f"`{name}` must be fbank of shape (batch, frames, {num_mel_bins}), got shape {tuple(fbank.shape)}."
        )
    if fbank.shape[1] < patch_size:
        raise ValueError(f"`{name}` must have at least {patch_size} frames, got {fbank.shape[1]}.")
    return fbank


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention by plain matrix products, which give the weights that fused kernels cannot give.

    Args:
        query, key, value: `(B, H, Q, C)`, `(B, H, K, C)` and `(B, H, K, C)`.
        attention_mask: additive, broadcast to `(B, H, Q, K)`.
        position_bias: additive, broadcast to `(B, H, Q, K)`.

    Returns:
        the output `(B, Q, H, C)` and the weights `(B, H, Q, K)`.
    """
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        weights = weights + position_bias
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights  # (B, Q, H, C)


def uses_flex_attention(config: PreTrainedConfig) -> bool:
    """Whether a model was asked to attend by `attn_implementation="flex_attention"`."""
    return config._attn_implementation == "flex_attention"


def layer_mask(
    config: PreTrainedConfig,
    hidden_states: torch.Tensor,
    mask: torch.Tensor | None,
    attended: torch.Tensor | None = None,
) -> AttentionMask:
    """Bring a padding mask to the form that the chosen attention implementation takes.

    Args:
        hidden_states: the tokens that attend, `(B, N, D)`.
        mask: bool `(B, K)`, True on tokens of the recording; `None` where nothing is padded.
        attended: the tokens that are attended to, `(B, K, D)`; `None` where these are the same.

    Returns:
        for [`flex_attention_forward`] the mask as it is, for others what transformers makes of it.
    """
    if uses_flex_attention(config):
        return mask
    made: AttentionMask = create_bidirectional_mask(
        config=config, inputs_embeds=hidden_states, encoder_hidden_states=attended, attention_mask=mask
    )
    return made


def flex_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    gate: torch.Tensor | None = None,
    distance_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention by FlexAttention (Dong et al., 2024), which never makes the `(B, H, Q, K)` biases of BEATs.

    The kernel looks the bias of a query and a key up by their distance, and scales it by the gate of the query. On a
    GPU it is compiled at its first use. On a CPU there is no such kernel outside of `torch.compile`, and torch computes
    the same step by step, which is slow.

    Args:
        query, key, value: `(B, H, Q, C)`, `(B, H, K, C)` and `(B, H, K, C)`.
        attention_mask: bool `(B, K)`, True on tokens to attend to; `None` for all.
        gate: `(B, H, Q)`; `None` without a bias.
        distance_bias: `(H, Q + K - 1)`, the bias of every distance key - query from 1 - Q to K - 1.

    Returns:
        the output `(B, Q, H, C)`, and no weights.

    Raises:
        ValueError: there is dropout on the weights, or gradients are asked for on a CPU; FlexAttention has neither.
    """
    if dropout > 0.0:
        raise ValueError(f"`attention_dropout` must be 0 for training with flex_attention, got {dropout}.")
    on_cpu = query.device.type == "cpu"
    if on_cpu and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        raise ValueError(
            "`attn_implementation` must be 'sdpa' or 'eager' for training on a CPU, where FlexAttention has no "
            "gradients, got 'flex_attention'."
        )
    num_queries = query.shape[2]

    def score_mod(
        score: torch.Tensor, batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor
    ) -> torch.Tensor:
        if gate is not None and distance_bias is not None:
            score = score + gate[batch, head, q] * distance_bias[head, k - q + (num_queries - 1)]
        if attention_mask is not None:
            score = torch.where(attention_mask[batch, k], score, torch.finfo(score.dtype).min)
        return score

    output: Any
    if on_cpu:
        output = flex_attention(query, key, value, score_mod=score_mod, scale=scaling)
    else:
        output = compile_friendly_flex_attention(
            query, key, value, training=module.training, score_mod=score_mod, scale=scaling
        )
    return output.transpose(1, 2).contiguous(), None


# The attention implementations of transformers, of which one is ours: its own would be given the bias of every pair.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
ALL_ATTENTION_FUNCTIONS["flex_attention"] = flex_attention_forward
