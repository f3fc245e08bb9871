"""NA-BEATs model configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_beats import BeatsConfig
from .configuration_noise_aware import resolve_noise_aware_intermediate_size, validate_noise_aware_fields


@strict
class NABeatsConfig(BeatsConfig):
    """Configuration of [`NABeatsModel`] (Fujimura et al., IWAENC and DCASE 2026): the fields of [`BeatsConfig`] and
    those of [`NoiseAwareFields`].

    Raises:
        ValueError: an unknown `noise_aware_layer_type`, or heads that do not divide `hidden_size`.
    """

    model_type = "na-beats"

    noise_aware_layer_type: str = "cross_attention"
    noise_aware_num_heads: int = 8
    noise_aware_intermediate_size: int | None = None
    noise_aware_attention_dropout: float | int = 0.1
    noise_aware_norm_eps: float | int = 1e-6

    def __post_init__(self, **kwargs: Any) -> None:
        resolve_noise_aware_intermediate_size(self)
        super().__post_init__(**kwargs)

    def validate_noise_aware(self) -> None:
        validate_noise_aware_fields(self)


__all__ = ["NABeatsConfig"]

NABeatsConfig.register_for_auto_class("AutoConfig")
