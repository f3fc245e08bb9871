"""EfficientAT, a small convolutional encoder that was trained to name the sounds of AudioSet (Schmid, Koutini and
Widmer, "Efficient Large-Scale Audio Tagging Via Transformer-to-CNN Knowledge Distillation", ICASSP 2023): MobileNetV3
(Howard et al., ICCV 2019) on a mel spectrogram.

Letters in shape comments: B recordings, T frames, M mel bins, T' columns of a map in time, F' its rows in frequency, C
its channels, D those of the last one, L labels.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_efficientat import (
    BlockSizes,
    EfficientATConfig,
    block_sizes,
    classifier_channels,
    stem_channels,
)
from .fbank import is_traced
from .mel_spectrogram import mel_band_centres
from .modeling_shared import CompleteModel, Embedded, SpectrogramEncoder, close_channel

_ACTIVATIONS: dict[str | None, type[nn.Module]] = {"relu": nn.ReLU, "hardswish": nn.Hardswish, None: nn.Identity}


def valid_frames(attention_mask: torch.Tensor | None, fbank: torch.Tensor) -> torch.Tensor | None:
    """Check the mask over the frames of `fbank`, `(B, T, M)`.

    Args:
        attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding; or `None`.

    Returns:
        bool `(B, T)`, or `None` where nothing is padded.

    Raises:
        ValueError: the mask has another shape.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape != fbank.shape[:2]:
        raise ValueError(
            f"The attention mask must be (batch, frames), {tuple(fbank.shape[:2])}, got {tuple(attention_mask.shape)}."
        )
    mask = attention_mask.bool()
    # A mask of ones changes nothing and takes a third more time. Compiled graphs cannot depend on what is in it.
    return mask if is_traced() or mask.is_meta or not bool(mask.all()) else None


def columns_of(mask: torch.Tensor | None, stride: int, maps: torch.Tensor) -> torch.Tensor | None:
    """Find the columns of `maps`, `(B, C, F', T')`, that belong to the recording: those whose middle frame does.

    Args:
        mask: bool `(B, T)`, True on the frames (or columns) of which one every `stride` is a column of `maps`.

    Returns:
        bool `(B, T')`, or `None` where nothing is padded.
    """
    # Every `stride`-th entry by a slice is the same, but an exporter of graphs cannot tell that it has T' of them.
    return None if mask is None else mask.index_select(1, torch.arange(maps.shape[-1], device=maps.device) * stride)


def without_padding(maps: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    """Set the columns of padding to zero, which is what a convolution sees behind the end of a recording.

    Args:
        maps: `(B, C, F', T')`.
        columns: bool `(B, T')`, True on the recording; `None` where nothing is padded.
    """
    return maps if columns is None else maps.masked_fill(~columns[:, None, None], 0.0)


def mean_over_map(maps: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    """Average `(B, C, F', T')` over frequency and over the columns of the recording, to `(B, C)`."""
    mean = without_padding(maps, columns).mean((2, 3))  # (B, C)
    if columns is None:
        return mean
    return mean * (columns.shape[1] / columns.sum(1, keepdim=True).clamp_min(1)).to(mean.dtype)


class EfficientATConvolution(nn.Module):
    """A convolution without bias, with zeros around the map, then batch norm and an activation."""

    def __init__(
        self,
        config: EfficientATConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: str | None = None,
    ):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=config.batch_norm_eps, momentum=0.01)
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.convolution(maps)))  # (B, C, F', T')


class EfficientATGate(nn.Module):
    """The squeeze-excitation weighs every channel by a number that depends on the means of all channels."""

    def __init__(self, channels: int, gate_channels: int):
        super().__init__()
        self.fc1 = nn.Linear(channels, gate_channels)
        self.fc2 = nn.Linear(gate_channels, channels)

    def forward(self, maps: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
        gate = self.fc2(nn.functional.relu(self.fc1(mean_over_map(maps, columns)))).sigmoid()  # (B, C)
        return maps * gate[:, :, None, None]


class EfficientATLayerInputs(NamedTuple):
    """What the forward of a layer takes behind its map.

    Attributes:
        attention_mask: bool `(B, T)`, True on frames of the recording; `None` where nothing is padded.
    """

    attention_mask: torch.Tensor | None


class EfficientATLayer(GradientCheckpointingLayer):
    """The base of the layers behind the stem, each of which makes one map from another.

    A recording has the columns whose middle frame is its own: the first, and one every so many frames.

    Args:
        in_stride: the frames from one column of the input to the next.
    """

    def __init__(self, in_stride: int):
        super().__init__()
        self.in_stride = in_stride

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError


class EfficientATBlock(EfficientATLayer):
    """An inverted residual: channels expanded, convolved one by one, gated in some blocks, and projected."""

    def __init__(self, config: EfficientATConfig, sizes: BlockSizes, in_stride: int):
        super().__init__(in_stride)
        channels, activation = sizes.expanded_channels, sizes.activation
        self.stride = sizes.stride
        self.is_residual = sizes.stride == 1 and sizes.in_channels == sizes.out_channels
        # As published, equal widths have no convolution between them.
        self.expansion = (
            None
            if channels == sizes.in_channels
            else EfficientATConvolution(config, sizes.in_channels, channels, activation=activation)
        )
        self.depthwise = EfficientATConvolution(
            config, channels, channels, sizes.kernel_size, sizes.stride, groups=channels, activation=activation
        )
        self.gate = EfficientATGate(channels, sizes.gate_channels) if sizes.gate_channels else None
        self.projection = EfficientATConvolution(config, channels, sizes.out_channels)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        columns = columns_of(attention_mask, self.in_stride, hidden_states)
        maps = hidden_states if self.expansion is None else self.expansion(hidden_states)
        maps = self.depthwise(without_padding(maps, columns))  # (B, C, F', T')
        if self.gate is not None:
            maps = self.gate(maps, columns_of(columns, self.stride, maps))
        maps = self.projection(maps)
        return hidden_states + maps if self.is_residual else maps


class EfficientATLastLayer(EfficientATLayer):
    """The last convolution looks at every position alone."""

    def __init__(self, config: EfficientATConfig, in_channels: int, in_stride: int):
        super().__init__(in_stride)
        self.projection = EfficientATConvolution(config, in_channels, config.hidden_size, activation="hardswish")

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        return self.projection(hidden_states)


class EfficientATPreTrainedModel(CompleteModel):
    """What transformers needs to know of every EfficientAT model."""

    config: EfficientATConfig
    config_class: type[PreTrainedConfig] = EfficientATConfig
    base_model_prefix = "efficientat"
    main_input_name = "input_values"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["EfficientATConvolution", "EfficientATBlock"]
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": EfficientATLayer}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # Maps keep their scale from layer to layer (He et al., ICCV 2015), though the norms have seen no data yet.
            init.normal_(module.weight, mean=0.0, std=(2.0 / module.weight[0].numel()) ** 0.5)


class EfficientATModel(EfficientATPreTrainedModel, SpectrogramEncoder):
    """The EfficientAT encoder turns a mel spectrogram into 17 maps, from 500 columns of 64 rows in 10 s to 32 of 4.

    A hidden state is a map `(B, C, F', T')`; [`EfficientATModel.time_frequency_grid`] turns it.
    """

    # The weights of a classifier lie in the same folder.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]
    _input_embed_layer = "stem"

    def __init__(self, config: EfficientATConfig):
        super().__init__(config)
        sizes = block_sizes(config.width, config.strides)
        self.stem = EfficientATConvolution(config, 1, stem_channels(config.width), 3, 2, activation="hardswish")
        blocks = [EfficientATBlock(config, size, config.layer_stride(i)) for i, size in enumerate(sizes)]
        self.last_stride = config.layer_stride(len(sizes))
        last = EfficientATLastLayer(config, sizes[-1].out_channels, self.last_stride)
        self.layers = nn.ModuleList([*blocks, last])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stem.convolution

    def embed(self, fbank: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Embedded:
        mask = valid_frames(attention_mask, fbank)
        image = fbank.to(self.stem.convolution.weight.dtype).transpose(1, 2)[:, None]  # (B, 1, M, T)
        hidden_states = self.stem(without_padding(image, mask))  # (B, C, F', T')
        return Embedded(hidden_states, columns_of(mask, 2, hidden_states), EfficientATLayerInputs(mask))

    def output(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Make the result of the forward from the last map `(B, D, F', T')` and the mask `(B, T)` of the frames."""
        pooled = mean_over_map(hidden_states, self.last_columns(attention_mask, hidden_states))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def last_columns(self, attention_mask: torch.Tensor | None, last_map: torch.Tensor) -> torch.Tensor | None:
        """Reduce a mask `(B, T)` over frames to a bool one `(B, T')` over the columns of the last map."""
        columns = columns_of(attention_mask, self.last_stride, last_map)
        return None if columns is None else columns.bool()

    @property
    def least_frames(self) -> int:
        """The fewest frames that give a column."""
        return 1

    def num_tokens(self, num_frames: int) -> int:
        """Compute the number of positions of the last map for `num_frames` frames."""
        return -(-num_frames // self.last_stride) * -(-self.config.num_mel_bins // self.last_stride)

    def time_frequency_grid(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Turn a map `(B, C, F', T')` of any layer into `(B, T', F', C)`: columns in time, rows from low to high."""
        return last_hidden_state.permute(0, 3, 2, 1)

    def row_centres(self, layer: int | None = None) -> list[float]:
        """Compute on which frequency each row of a layer's grid is centred.

        Row r of a grid of stride s is centred on mel bin s r, and hears its neighbours on both sides of it, the more of
        them the later the layer.

        Args:
            layer: 0 for the stem, 1 to 16 for a layer, `None` for the last.

        Returns:
            F' frequencies in Hz, rising.
        """
        stride = self.config.layer_stride(self.num_layers if layer is None else layer)
        return mel_band_centres(self.config.num_mel_bins)[::stride].tolist()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode recordings.

        Args:
            input_values: normalised log-mel spectrogram `(B, T, M)`, or `(B, 2, T, M)` of which the close channel is
                used.
            attention_mask: `(B, T)`, nonzero on the frames of the recording, zero on padding. With it, every recording
                of a padded batch gives what it gives alone, in its own columns; the columns of padding mean nothing.

        Returns:
            `last_hidden_state` `(B, D, F', T')`, the last map, and `pooler_output` `(B, D)`, its mean over time and
            frequency; with `output_hidden_states=True` the maps of the stem and of every layer.

        Raises:
            ValueError: a shape is wrong.
        """
        fbank = close_channel(input_values, self.config.num_mel_bins, self.least_frames)
        return self.output(self.run_layers(self.embed(fbank, attention_mask), **kwargs), attention_mask)


class EfficientATMlpHead(nn.Module):
    """The head "mlp" classifies the mean of the last map by a network with one hidden layer."""

    def __init__(self, config: EfficientATConfig, num_labels: int):
        super().__init__()
        hidden_channels = classifier_channels(config.width)
        self.fc1 = nn.Linear(config.hidden_size, hidden_channels)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.fc2 = nn.Linear(hidden_channels, num_labels)

    def forward(self, maps: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
        return self.fc2(self.dropout(nn.functional.hardswish(self.fc1(mean_over_map(maps, columns)))))  # (B, L)


class EfficientATConvolutionHead(nn.Module):
    """The head "fc" classifies every position of the last map and averages the results."""

    def __init__(self, config: EfficientATConfig, num_labels: int):
        super().__init__()
        self.convolution = nn.Conv2d(config.hidden_size, num_labels, 1, bias=False)
        # This norm has the epsilon of torch, as published.
        self.norm = nn.BatchNorm2d(num_labels)

    def forward(self, maps: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
        return mean_over_map(self.norm(self.convolution(maps)), columns)  # (B, L)


__all__ = ["EfficientATModel", "EfficientATPreTrainedModel"]

EfficientATModel.register_for_auto_class("AutoModel")
