"""The configurations of BEATs and of its noise-aware form."""

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
class BeatsConfig(CheckedConfig):
    """Configuration of [`BeatsModel`] (Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023).

    The defaults are those of the published `BEATs_iter3` checkpoint. All arguments are keyword-only.

    Args:
        hidden_size: width D of the tokens.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: number of attention heads; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layer.
        patch_embedding_size: channels E of the patch convolution, projected to `hidden_size` where they differ.
        patch_size: side of a square patch, in fbank frames and mel bins.
        num_mel_bins: mel bins of the fbank; must be a multiple of `patch_size`.
        position_convolution_kernel, position_convolution_groups: kernel and groups of the convolutional position
            embedding over tokens.
        num_buckets, max_distance: number of relative position buckets, and the distance in tokens from which on all
            share the last one.
        input_dropout, hidden_dropout, attention_dropout, activation_dropout: dropout probabilities, in training only.
        layer_norm_eps: epsilon of every layer norm.
        initializer_range: standard deviation of the random initialisation.

    Raises:
        ValueError: an argument has a wrong type, breaks one of the rules above, or is outside its `BOUNDS`.
    """

    model_type = "beats"
    base_model_type = "beats"
    frontend = "beats"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    patch_embedding_size: int = 512
    patch_size: int = 16
    num_mel_bins: int = 128
    position_convolution_kernel: int = 128
    position_convolution_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    input_dropout: float | int = 0.1
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_dropout: float | int = 0.0
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02

    def validate_beats_sizes(self) -> None:
        """Check the fields together; a `ValueError` names the field, its rule and its value."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size` {self.hidden_size}, got {self.num_attention_heads}."
            )
        if self.hidden_size % self.position_convolution_groups:
            raise ValueError(
                f"`position_convolution_groups` must divide `hidden_size` {self.hidden_size}, "
                f"got {self.position_convolution_groups}."
            )
        if self.num_mel_bins % self.patch_size:
            raise ValueError(
                f"`num_mel_bins` must be a multiple of `patch_size` {self.patch_size}, got {self.num_mel_bins}."
            )
        if self.num_buckets < 4 or self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                "`num_buckets` must be a positive multiple of 4 and `max_distance` greater than a quarter of it, "
                f"got {self.num_buckets} and {self.max_distance}."
            )


@checked
@strict
class NABeatsConfig(BeatsConfig):
    """Configuration of [`NABeatsModel`] (Fujimura et al., IWAENC and DCASE 2026): the fields of [`BeatsConfig`] and
    those of [`NoiseAwareFields`].

    Raises:
        ValueError: `noise_aware_layer_type` is unknown, or `noise_aware_num_heads` does not divide `hidden_size`.
    """

    model_type = "na-beats"

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


__all__ = ["BeatsConfig", "NABeatsConfig"]

BeatsConfig.register_for_auto_class("AutoConfig")
NABeatsConfig.register_for_auto_class("AutoConfig")
