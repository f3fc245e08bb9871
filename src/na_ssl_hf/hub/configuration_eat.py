"""The configurations of EAT and of its noise-aware form."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_noise_aware import (
    CheckedConfig,
    checked,
    resolve_noise_aware_intermediate_size,
    validate_noise_aware_fields,
)


@checked
@strict
class EatConfig(CheckedConfig):
    """Configuration of [`EatModel`] (Chen et al., "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer",
    IJCAI 2024).

    The defaults are EAT-base; EAT-large is `hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
    intermediate_size=4096`. All arguments are keyword-only.

    Args:
        hidden_size: width D of the tokens; must be a multiple of 4 (sine and cosine of time and frequency).
        num_hidden_layers: number of transformer layers.
        num_attention_heads: number of attention heads; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layer.
        qkv_bias: whether query, key and value projections have a bias.
        patch_size: side of a square patch, in fbank frames and mel bins.
        num_mel_bins: mel bins of the fbank; must be a multiple of `patch_size`.
        max_time_patches: rows of the position table in time; longer recordings are an error (768 rows are 122.88 s).
        hidden_dropout, attention_dropout: dropout probabilities, in training only.
        layer_norm_eps: epsilon of every layer norm.
        initializer_range: standard deviation of the random initialisation.

    Raises:
        ValueError: an argument has a wrong type, breaks one of the rules above, or is outside its `BOUNDS`.
    """

    model_type = "eat"
    base_model_type = "eat"
    frontend = "eat"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    qkv_bias: bool = True
    patch_size: int = 16
    num_mel_bins: int = 128
    max_time_patches: int = 768
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02

    def validate_eat_sizes(self) -> None:
        """Check the fields together; a `ValueError` names the field, its rule and its value."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` {self.hidden_size}, got {self.num_attention_heads}."
            )
        if self.hidden_size % 4:
            raise ValueError(f"`hidden_size` must be a multiple of 4, got {self.hidden_size}.")
        if self.num_mel_bins % self.patch_size:
            raise ValueError(
                f"`num_mel_bins` must be a multiple of `patch_size` {self.patch_size}, got {self.num_mel_bins}."
            )


@checked
@strict
class NAEatConfig(EatConfig):
    """Configuration of [`NAEatModel`] (Fujimura et al., IWAENC 2026 and DCASE 2026): the fields of [`EatConfig`] and
    those of [`NoiseAwareFields`].

    Raises:
        ValueError: `noise_aware_layer_type` is unknown, or `noise_aware_num_heads` does not divide `hidden_size`.
    """

    model_type = "na-eat"

    noise_aware_layer_type: str = "cross_attention"
    noise_aware_num_heads: int = 8
    noise_aware_intermediate_size: int | None = None
    noise_aware_attention_dropout: float | int = 0.1
    noise_aware_norm_eps: float | int = 1e-6
    noise_aware_gate: bool = False
    noise_aware_lowers_far: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        resolve_noise_aware_intermediate_size(self)
        super().__post_init__(**kwargs)

    def validate_noise_aware(self) -> None:
        """Check the fields together; a `ValueError` names the field, its rule and its value."""
        validate_noise_aware_fields(self)


__all__ = ["EatConfig", "NAEatConfig"]

EatConfig.register_for_auto_class("AutoConfig")
NAEatConfig.register_for_auto_class("AutoConfig")
