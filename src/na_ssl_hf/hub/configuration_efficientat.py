"""The configuration of EfficientAT, and the sizes of its layers.

Letters: M mel bins, D channels of the last map.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from huggingface_hub.dataclasses import strict

from .configuration_noise_aware import CheckedConfig, checked

HEADS = ("mlp", "fc")
# Every number of channels of the network is a multiple of it.
CHANNEL_MULTIPLE = 8


class _Kind(NamedTuple):
    """A block of MobileNetV3-Large at width 1.0; `stride` is the place of its stride in `strides`, if it has one."""

    kernel_size: int
    expanded: int
    out: int
    gated: bool
    activation: str
    stride: int | None = None


# Howard et al., "Searching for MobileNetV3", ICCV 2019, Table 1.
_STEM, _CLASSIFIER = 16, 1280
_BLOCKS = (
    _Kind(3, 16, 16, False, "relu"),
    _Kind(3, 64, 24, False, "relu", stride=0),
    _Kind(3, 72, 24, False, "relu"),
    _Kind(5, 72, 40, True, "relu", stride=1),
    _Kind(5, 120, 40, True, "relu"),
    _Kind(5, 120, 40, True, "relu"),
    _Kind(3, 240, 80, False, "hardswish", stride=2),
    _Kind(3, 200, 80, False, "hardswish"),
    _Kind(3, 184, 80, False, "hardswish"),
    _Kind(3, 184, 80, False, "hardswish"),
    _Kind(3, 480, 112, True, "hardswish"),
    _Kind(3, 672, 112, True, "hardswish"),
    _Kind(5, 672, 160, True, "hardswish", stride=3),
    _Kind(5, 960, 160, True, "hardswish"),
    _Kind(5, 960, 160, True, "hardswish"),
)


class BlockSizes(NamedTuple):
    """These are the sizes of one block.

    Attributes:
        in_channels, expanded_channels, out_channels: channels of its input, between its convolutions, of its output.
        gate_channels: width between the two layers of its squeeze-excitation; 0 where it has none.
        kernel_size, stride: those of its depthwise convolution, in time and in frequency alike.
        activation: "relu" or "hardswish".
    """

    in_channels: int
    expanded_channels: int
    out_channels: int
    gate_channels: int
    kernel_size: int
    stride: int
    activation: str


def round_channels(channels: float) -> int:
    """Round to the nearest multiple of 8 that is at least 8 and not below 90 % of `channels`."""
    rounded = max(CHANNEL_MULTIPLE, int(channels + CHANNEL_MULTIPLE / 2) // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE)
    return rounded + CHANNEL_MULTIPLE if rounded < 0.9 * channels else rounded


def stem_channels(width: float) -> int:
    """Compute the channels of the first map."""
    return round_channels(_STEM * width)


def classifier_channels(width: float) -> int:
    """Compute the hidden channels of the head "mlp"."""
    return round_channels(_CLASSIFIER * width)


def last_channels(width: float) -> int:
    """Compute the channels of the last map."""
    return 6 * round_channels(_BLOCKS[-1].out * width)


def block_sizes(width: float, strides: Sequence[int] = (2, 2, 2, 2)) -> list[BlockSizes]:
    """Compute the sizes of the 15 blocks at a width."""
    sizes, in_channels = [], stem_channels(width)
    for kind in _BLOCKS:
        expanded, out = round_channels(kind.expanded * width), round_channels(kind.out * width)
        gate = round_channels(expanded // 4) if kind.gated else 0
        stride = 1 if kind.stride is None else strides[kind.stride]
        sizes.append(BlockSizes(in_channels, expanded, out, gate, kind.kernel_size, stride, kind.activation))
        in_channels = out
    return sizes


@checked
@strict
class EfficientATConfig(CheckedConfig):
    """Configuration of [`EfficientATModel`] (Schmid, Koutini and Widmer, "Efficient Large-Scale Audio Tagging Via
    Transformer-to-CNN Knowledge Distillation", ICASSP 2023).

    The defaults are the published `mn10`; `mn04` is `width=0.4`. All arguments are keyword-only.

    Args:
        width: factor of all channels; they are rounded to multiples of 8, see [`round_channels`].
        strides: strides of the blocks 2, 4, 7 and 13, each 1 or 2, in time and in frequency alike.
        num_mel_bins: mel bins of the spectrogram.
        hop_length: samples between two frames of the spectrogram, at 32 kHz.
        head: head of the classifier: "mlp" with one hidden layer on the mean of the last map, or "fc", one convolution.
        classifier_dropout: dropout probability in the head "mlp", in training only.
        batch_norm_eps: epsilon of every batch norm but that of the head "fc".
        initializer_range: standard deviation of the random initialisation of the linear layers.

    Attributes:
        hidden_size: channels D of the last map.
        num_hidden_layers: number of layers behind the stem, 16.
        scoring_layer: the layer that scorers compare where none is asked for. Maps in the middle tell faults better
            than the last one, see `docs/results.md`; 7 is the first with eight rows.

    Raises:
        ValueError: an argument has a wrong type, breaks one of the rules above, or is outside its `BOUNDS`.
    """

    model_type = "efficientat"
    base_model_type = "efficientat"
    frontend = "efficientat"
    scoring_layer = 7

    width: float | int = 1.0
    strides: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    num_mel_bins: int = 128
    hop_length: int = 320
    head: str = "mlp"
    classifier_dropout: float | int = 0.2
    batch_norm_eps: float | int = 1e-3
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.strides, list):
            self.strides = tuple(self.strides)  # JSON knows only lists
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """The channels D of the last map."""
        return last_channels(self.width)

    @property
    def num_hidden_layers(self) -> int:
        """The number of layers behind the stem: 15 blocks and the last convolution."""
        return len(_BLOCKS) + 1

    def layer_stride(self, layer: int) -> int:
        """Compute how many frames, and how many mel bins, one position of a map stands for.

        Args:
            layer: 0 for the stem, 1 to 15 for the blocks, 16 for the last convolution.
        """
        return 2 * math.prod(sizes.stride for sizes in block_sizes(self.width, self.strides)[:layer])

    def validate_efficientat(self) -> None:
        """Check the fields together; a `ValueError` names the field, its rule and its value."""
        if len(self.strides) != 4 or any(stride not in (1, 2) for stride in self.strides):
            raise ValueError(f"`strides` must be four numbers, each 1 or 2, got {self.strides!r}.")
        if self.head not in HEADS:
            raise ValueError(f"`head` must be one of {HEADS}, got {self.head!r}.")


__all__ = ["EfficientATConfig"]

EfficientATConfig.register_for_auto_class("AutoConfig")
