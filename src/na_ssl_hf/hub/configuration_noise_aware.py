"""What all configurations share: checks of values, the noise-aware layers' fields, and the pipelines they name."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

NOISE_AWARE_LAYER_TYPES = ("cross_attention", "film", "self_attention", "aligned")


ConfigT = TypeVar("ConfigT", bound=PreTrainedConfig)

# The smallest and the largest legal value of every number. The largest sizes are some ten times those of the biggest
# published encoders: a file that asks for more is damaged, and would take the memory or the time of the machine.
BOUNDS: dict[str, tuple[float, float]] = {
    "hidden_size": (1, 16_384),
    "num_hidden_layers": (1, 512),
    "num_attention_heads": (1, 16_384),
    "intermediate_size": (1, 131_072),
    "patch_embedding_size": (1, 16_384),
    "patch_size": (1, 1_024),
    "num_mel_bins": (1, 4_096),
    "position_convolution_kernel": (1, 8_192),
    "position_convolution_groups": (1, 16_384),
    "num_buckets": (1, 65_536),
    "max_distance": (1, 1_000_000),
    "max_time_patches": (1, 65_536),
    "target_length": (1, 1_048_576),
    "num_frames": (1, 1_024),
    "width": (0.01, 40),
    "hop_length": (32, 32_000),
    "bottleneck_size": (1, 16_384),
    "noise_aware_num_heads": (1, 16_384),
    "noise_aware_intermediate_size": (1, 131_072),
    "input_dropout": (0, 1),
    "hidden_dropout": (0, 1),
    "attention_dropout": (0, 1),
    "activation_dropout": (0, 1),
    "classifier_dropout": (0, 1),
    "noise_aware_attention_dropout": (0, 1),
    "layer_norm_eps": (1e-30, 1),
    "noise_aware_norm_eps": (1e-30, 1),
    "batch_norm_eps": (1e-30, 1),
    "initializer_range": (0, 100),
    "mse_threshold": (-1e300, 1e300),
    "mahalanobis_threshold": (-1e300, 1e300),
}
# No encoder classifies; transformers makes a table of so many labels.
MAX_LABELS = 100_000


# What the config.json of an encoder says of the pipeline that scores with it, and of the file of its code.
SCORER_PIPELINES = {
    "anomaly-scoring": {
        "impl": "pipeline_anomaly_scoring.AnomalyScorer",
        "pt": ["AutoModel"],
        "type": "audio",
        "default": {},
    }
}


class ConfigurationError(ValueError, StrictDataclassError):
    """It is raised where a value of a configuration, or of the file of one, breaks a rule."""


class NamedPipelines(dict):
    """The `custom_pipelines` of a checkpoint, where a task that this process serves itself is listed, but not `in`.

    `pipeline(model=...)`, which is not told the task, takes the only one that is listed, without asking the hub. For a
    task that is `in` them it demands `trust_remote_code` and runs the code of the checkpoint. The installed package has
    registered its task, and serves it without either.

    Args:
        pipelines: tasks to what serves them.
        usual_task: the task that is listed instead of them; `None` lists them. The checkpoint of a classifier can be
            asked to score, but who does not name a task wants the names of sounds.
    """

    def __init__(self, pipelines: Mapping[str, Any] | Iterable[Any] = (), usual_task: str | None = None):
        super().__init__(pipelines)
        self.usual_task = usual_task

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) and task not in registered_tasks()

    def keys(self) -> Any:
        """Return the tasks that are listed."""
        return super().keys() if self.usual_task is None else {self.usual_task: None}.keys()


def registered_tasks() -> Collection[str]:
    """Return the tasks of the pipelines that this process knows."""
    # The import stands here because transformers' pipelines are slow to import, and configurations must load fast.
    from transformers.pipelines import PIPELINE_REGISTRY

    tasks: Collection[str] = PIPELINE_REGISTRY.supported_tasks
    return tasks


def served_pipelines() -> dict[str, Any]:
    """Return the pipelines that this process has for every encoder, whatever its checkpoint says."""
    return {task: dict(entry) for task, entry in SCORER_PIPELINES.items() if task in registered_tasks()}


def check_custom_pipelines(config_kwargs: dict[str, Any], architectures: Sequence[str] | None) -> None:
    """Make the `custom_pipelines` of a configuration's keyword arguments a [`NamedPipelines`], in place.

    Args:
        config_kwargs: the arguments.
        architectures: of the configuration, which tell a classifier.

    Raises:
        ValueError: they are no dict.
    """
    custom_pipelines = config_kwargs.get("custom_pipelines")
    if custom_pipelines is None:
        return
    if not isinstance(custom_pipelines, dict):
        raise ValueError(f"`custom_pipelines` must be a dict of tasks, got {custom_pipelines!r}.")
    classifies = any(str(name).endswith("ForAudioClassification") for name in architectures or ())
    usual_task = "audio-classification" if classifies else None
    config_kwargs["custom_pipelines"] = NamedPipelines(custom_pipelines, usual_task)


class CheckedConfig(PreTrainedConfig):
    """The base of all configurations, whose errors name the argument, the rule and the value, and the file if any.

    Subclasses are decorated with `checked` above `strict`.

    Raises:
        ConfigurationError: a `ValueError`, for a value of a wrong type or outside its `BOUNDS`.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        for name in type(self).__dataclass_fields__:
            value = getattr(self, name)
            if name not in BOUNDS or value is None:
                continue
            low, high = BOUNDS[name]
            if not low <= value <= high:  # so that NaN is refused
                rule = f"at most {high}" if value > high else f"at least {low}"
                raise ValueError(f"`{name}` must be {rule}, got {value!r}.")
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and not (isinstance(num_labels, int) and 0 <= num_labels <= MAX_LABELS):
            raise ValueError(f"`num_labels` must be an int in [0, {MAX_LABELS}], got {num_labels!r}.")
        for name, kind in (("attn_implementation", (str, Mapping)), ("quantization_config", Mapping)):
            value = kwargs.get(name)
            # A configuration that is copied holds objects of transformers there, which know how to become a dict.
            if value is not None and not isinstance(value, kind) and not hasattr(value, "to_dict"):
                raise ValueError(f"`{name}` must be of the form that transformers writes, got {value!r}.")
        check_custom_pipelines(kwargs, self.architectures)
        super().__post_init__(**kwargs)
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise ValueError(f"`dtype` must be a floating-point type of torch, got {self.dtype!r}.")

    @classmethod
    def from_dict(cls: type[ConfigT], config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if hasattr(cls, "frontend"):
            config_dict = {"custom_pipelines": served_pipelines()} | config_dict
        try:
            return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]
        except ConfigurationError as error:
            folder = kwargs.get("name_or_path") or config_dict.get("_name_or_path")
            where = os.path.join(str(folder), "config.json") if folder else "The configuration"
            raise ConfigurationError(f"{where} is refused: {error}") from error


def checked(cls: type[ConfigT]) -> type[ConfigT]:
    """Decorate a strict configuration, so that a [`ConfigurationError`] says why a value is refused."""
    initialise = cls.__init__

    @wraps(initialise)
    def initialise_checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            initialise(self, *args, **kwargs)
        except ConfigurationError:
            raise
        except (
            # transformers uses the values of its own fields before it checks them.
            *(StrictDataclassError, ValueError, TypeError, AttributeError, LookupError),
            *(ArithmeticError, RecursionError),
        ) as error:
            reason = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
            raise ConfigurationError(str(reason)) from error

    cls.__init__ = initialise_checked  # type: ignore[method-assign, assignment]
    return cls


class NoiseAwareFields(Protocol):
    """These are the fields that [`NoiseAwareLayer`] reads from a configuration.

    Attributes:
        noise_aware_layer_type: "cross_attention" (Fujimura et al., 2026), "film", "self_attention" (D-BEATs: no noise
            stream) or "aligned" (cross attention whose SwiGLU also sees the far token of the same time and frequency).
        noise_aware_num_heads: number of attention heads; must divide `hidden_size`.
        noise_aware_intermediate_size: width of the SwiGLU; `None` means 3 x `hidden_size` (4 x for "film").
        noise_aware_attention_dropout: dropout on the attention weights, in training only.
        noise_aware_norm_eps: epsilon of the RMS norms.
        noise_aware_gate: whether every layer has a gate in (0, 1) for each token, which scales all that it changes.
        noise_aware_lowers_far: whether the far channel was lowered by what a canceller took from the close one when the
            layers were trained, and has to be; the feature extractor does that.
    """

    hidden_size: int
    noise_aware_layer_type: str
    noise_aware_num_heads: int
    noise_aware_intermediate_size: int | None
    noise_aware_attention_dropout: float | int
    noise_aware_norm_eps: float | int
    noise_aware_gate: bool
    noise_aware_lowers_far: bool


def resolve_noise_aware_intermediate_size(config: NoiseAwareFields) -> None:
    """Replace `noise_aware_intermediate_size=None` by the published width of the layer type."""
    if config.noise_aware_intermediate_size is None:
        ratio = 4 if config.noise_aware_layer_type == "film" else 3
        config.noise_aware_intermediate_size = ratio * config.hidden_size


def validate_noise_aware_fields(config: NoiseAwareFields) -> None:
    """Check the fields; a `ValueError` names the field, its rule and its value."""
    if config.noise_aware_layer_type not in NOISE_AWARE_LAYER_TYPES:
        raise ValueError(
            f"`noise_aware_layer_type` must be one of {NOISE_AWARE_LAYER_TYPES}, got {config.noise_aware_layer_type!r}."
        )
    if config.hidden_size % config.noise_aware_num_heads:
        raise ValueError(
            f"`noise_aware_num_heads` must divide `hidden_size` {config.hidden_size}, "
            f"got {config.noise_aware_num_heads}."
        )
