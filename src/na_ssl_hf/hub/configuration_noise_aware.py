"""What the configurations of all encoders share: the noise-aware layers' fields, and the pipelines they name."""

from typing import Any, Protocol

NOISE_AWARE_LAYER_TYPES = ("cross_attention", "film", "self_attention", "aligned")


class NoiseAwareFields(Protocol):
    """These are the fields that [`NoiseAwareLayer`] reads from a configuration.

    Attributes:
        noise_aware_layer_type: "cross_attention" (Fujimura et al., 2026), "film", "self_attention" (D-BEATs: no noise
            stream) or "aligned" (cross attention whose SwiGLU also sees the far token of the same time and frequency).
        noise_aware_num_heads: number of attention heads; must divide `hidden_size`.
        noise_aware_intermediate_size: width of the SwiGLU; `None` means 3 x `hidden_size` (4 x for "film").
        noise_aware_attention_dropout: dropout on the attention weights, in training only.
        noise_aware_norm_eps: epsilon of the RMS norms.
    """

    hidden_size: int
    noise_aware_layer_type: str
    noise_aware_num_heads: int
    noise_aware_intermediate_size: int | None
    noise_aware_attention_dropout: float | int
    noise_aware_norm_eps: float | int


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


def drop_registered_pipelines(config_kwargs: dict[str, Any]) -> None:
    """Remove from `custom_pipelines` the tasks that this process already serves.

    A checkpoint with `custom_pipelines` in its `config.json` makes `pipeline(task, dir)` demand `trust_remote_code`
    even where the task is registered by the installed package. Dropping the entry on load lets the package serve it;
    `AnomalyScorer.save_pretrained` writes it again.

    Args:
        config_kwargs: the keyword arguments of a configuration, changed in place.
    """
    # The import stands here because transformers' pipelines are slow to import, and configurations must load fast.
    from transformers.pipelines import PIPELINE_REGISTRY

    custom_pipelines = config_kwargs.get("custom_pipelines") or {}
    for task in [task for task in custom_pipelines if task in PIPELINE_REGISTRY.supported_tasks]:
        del custom_pipelines[task]
