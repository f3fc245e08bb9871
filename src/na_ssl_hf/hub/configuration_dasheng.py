"""The configurations of Dasheng and of its noise-aware form."""

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
class DashengConfig(CheckedConfig):
    """Configuration of [`DashengModel`] (Dinkel et al., "Scaling up masked audio encoder learning for general audio
    classification", Interspeech 2024).

    The defaults are dasheng-base; dasheng-0.6B is `hidden_size=1280, num_hidden_layers=32, num_attention_heads=16,
    intermediate_size=5120`, and dasheng-1.2B is `hidden_size=1536, num_hidden_layers=40, num_attention_heads=24,
    intermediate_size=6144`. All arguments are keyword-only.

    Args:
        hidden_size: width D of the tokens.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: number of attention heads; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layer.
        qkv_bias: whether query, key and value projections have a bias.
        patch_size: frames of one token, which spans all mel bins.
        num_mel_bins: mel bins of the spectrogram.
        target_length: frames of the position table (1008 are 10.08 s); longer recordings are encoded in pieces of this
            length; must be a multiple of `patch_size`.
        hidden_dropout, attention_dropout: dropout probabilities, in training only.
        layer_norm_eps: epsilon of every layer norm.
        batch_norm_eps: epsilon of the batch norm over the mel bins.
        initializer_range: standard deviation of the random initialisation.

    Raises:
        ValueError: an argument has a wrong type, breaks one of the rules above, or is outside its `BOUNDS`.
    """

    model_type = "dasheng"
    base_model_type = "dasheng"
    frontend = "dasheng"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    qkv_bias: bool = True
    patch_size: int = 4
    num_mel_bins: int = 64
    target_length: int = 1008
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float | int = 1e-6
    batch_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02

    def validate_dasheng_sizes(self) -> None:
        """Check the fields together; a `ValueError` names the field, its rule and its value."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` {self.hidden_size}, got {self.num_attention_heads}."
            )
        if self.target_length % self.patch_size:
            raise ValueError(
                f"`target_length` must be a multiple of `patch_size` {self.patch_size}, got {self.target_length}."
            )


@checked
@strict
class NADashengConfig(DashengConfig):
    """Configuration of [`NADashengModel`] (Fujimura et al., IWAENC 2026 and DCASE 2026): the fields of
    [`DashengConfig`] and those of [`NoiseAwareFields`].

    Raises:
        ValueError: `noise_aware_layer_type` is unknown, or `noise_aware_num_heads` does not divide `hidden_size`.
    """

    model_type = "na-dasheng"

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


__all__ = ["DashengConfig", "NADashengConfig"]

DashengConfig.register_for_auto_class("AutoConfig")
NADashengConfig.register_for_auto_class("AutoConfig")
