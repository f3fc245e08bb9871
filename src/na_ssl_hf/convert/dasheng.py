"""Conversion of Dasheng checkpoints (Dinkel et al., Interspeech 2024): the hub's layout and the package's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from na_ssl_hf.convert.eat import read_config, split_projections
from na_ssl_hf.convert.foreign_pickle import load_foreign_checkpoint, to_plain
from na_ssl_hf.convert.weights import (
    Weights,
    count_layers,
    read_directory_weights,
    require_names,
    require_settings,
    require_shape,
    require_tensors,
)
from na_ssl_hf.convert.write import refuse_destination, write_model

logger = logging.get_logger(__name__)

# Number of heads of the published widths, which a checkpoint's tensors do not tell.
_PUBLISHED_HEADS = {768: 12, 1280: 16, 1536: 24}
BATCH_NORM_BUFFERS = tuple(f"init_bn.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked"))
# The package keeps the constants of its spectrogram in the file: the window and the mel bank, with their shapes.
_FRONT_END = {"front_end.0.spectrogram.window": (512,), "front_end.0.mel_scale.fb": (257, 64)}
_LAYER_NAMES = {
    "norm1": "attention_layer_norm",
    "attn.proj": "attention.out_proj",
    "norm2": "final_layer_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def dasheng_weights(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: str | Path) -> Weights:
    """Rename the tensors of the package and read every size from their shapes.

    Args:
        tensors: float32 tensors under the names of the package.
        config: the settings under the package's names, as far as they are known. Without `num_heads` the published
            widths are recognised (768 has 12 heads, 1280 has 16, 1536 has 24).
        source: the file that errors name.

    Raises:
        ValueError: missing or unexpected names, unknown number of heads, or settings that our model does not implement
            or that contradict the shapes.
    """
    head = [name for name in tensors if name.startswith("outputlayer.")]
    if head:
        logger.warning(f"{source} is a fine-tuned Dasheng: its head ({', '.join(head[:2])}, ...) is dropped.")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    settings = _settings(tensors, config, source)
    names = {f"init_bn.1.{leaf}": f"embeddings.batch_norm.{leaf}" for leaf in ("weight", "bias")}
    names |= {name: name.replace("init_bn.1.", "embeddings.batch_norm.") for name in BATCH_NORM_BUFFERS}
    modules = {"patch_embed.proj": "embeddings.patch_embedding", "norm": "layer_norm"}
    for layer in range(settings["num_hidden_layers"]):
        modules |= {f"blocks.{layer}.{old}": f"layers.{layer}.{new}" for old, new in _LAYER_NAMES.items()}
    names |= {f"{old}.{leaf}": f"{new}.{leaf}" for old, new in modules.items() for leaf in ("weight", "bias")}
    positions = {
        "time_pos_embed": "embeddings.time_positions",
        "freq_pos_embed": "embeddings.frequency_positions",
    }
    leaves = ("weight", "bias") if settings["qkv_bias"] else ("weight",)
    stacked = {
        f"blocks.{layer}.attn.qkv.{leaf}": f"layers.{layer}.attention.{{}}.{leaf}"
        for layer in range(settings["num_hidden_layers"])
        for leaf in leaves
    }
    require_names(tensors, [*names, *positions, *stacked], source)

    state = {new: tensors[old] for old, new in names.items()}
    for old, new in positions.items():
        require_shape(tensors, old, 4, source)
        state[new] = tensors[old].flatten(2).transpose(1, 2).contiguous()  # (1, D, 1, n) -> (1, n, D)
    for old, new in stacked.items():
        state |= split_projections(tensors[old], new, old, source)
    return Weights(settings, state)


def _settings(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Read the settings of our configuration from the shapes, and what these do not tell from the config."""
    hidden_size, _, num_mel_bins, patch_size = require_shape(tensors, "patch_embed.proj.weight", 4, source)
    num_positions = require_shape(tensors, "time_pos_embed", 4, source)[-1]
    intermediate_size, _ = require_shape(tensors, "blocks.0.mlp.fc1.weight", 2, source)
    patch = [num_mel_bins, patch_size]
    shapes = {
        "embed_dim": hidden_size,
        "depth": count_layers(tensors, "blocks."),
        "target_length": num_positions * patch_size,
    }
    require_settings(config, shapes | {"patch_size": patch, "patch_stride": patch, "init_bn": True}, source)
    num_heads = config.get("num_heads", _PUBLISHED_HEADS.get(hidden_size))
    if num_heads is None:
        raise ValueError(
            f"{source} does not say its number of attention heads (`num_heads`), and {hidden_size} is none of the "
            f"published widths {sorted(_PUBLISHED_HEADS)}."
        )
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": shapes["depth"],
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "patch_size": patch_size,
        "num_mel_bins": num_mel_bins,
        "target_length": shapes["target_length"],
    }


def read_dasheng_directory(source: Path) -> Weights:
    """Read the hub's layout: `config.json` with `model.safetensors` or `pytorch_model.bin`, names `encoder.*`."""
    config = read_config(source)
    tensors = read_directory_weights(source)
    # The original takes its sizes from here and from the width that `name` means. It ignores the nested
    # `encoder_kwargs`, which therefore only help with a width that has no name.
    names = ("embed_dim", "depth", "num_heads", "target_length")
    settings: dict[str, Any] = {name: config[name] for name in names if name in config}
    nested = config.get("encoder_kwargs")
    width = tensors.get("encoder.norm.weight", torch.zeros(0)).numel()
    if isinstance(nested, Mapping) and "num_heads" in nested and width not in _PUBLISHED_HEADS:
        settings.setdefault("num_heads", nested["num_heads"])
    return dasheng_weights({name.removeprefix("encoder."): value for name, value in tensors.items()}, settings, source)


def read_dasheng_package(source: Path) -> Weights:
    """Read a file of the package, `{"model": tensors, "config": dict}`; a decoder of pretraining is left out."""
    checkpoint = load_foreign_checkpoint(source)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        found = list(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"{source} is no Dasheng checkpoint: it must be a dict with 'model', got {found}.")
    tensors = {}
    for name, tensor in require_tensors(checkpoint["model"], source, "`model`").items():
        name = name.removeprefix("encoder.")
        if name in _FRONT_END:
            if tuple(tensor.shape) != _FRONT_END[name]:
                raise ValueError(f"{name} of {source} must have shape {_FRONT_END[name]}, got {tuple(tensor.shape)}.")
        elif not name.startswith("decoder."):
            tensors[name] = tensor
    config = to_plain(checkpoint.get("config"))
    return dasheng_weights(tensors, config if isinstance(config, Mapping) else {}, source)


def read_dasheng(source: str | Path) -> Weights:
    """Read a Dasheng checkpoint of either layout.

    Raises:
        OSError: the file is missing, truncated or damaged.
        ValueError: the file is of another kind, or one that [`dasheng_weights`] refuses.
    """
    source = Path(source)
    return read_dasheng_directory(source) if source.is_dir() else read_dasheng_package(source)


def convert_dasheng(source: str | Path, destination: str | Path) -> Path:
    """Convert a Dasheng checkpoint into a directory for `from_pretrained`.

    Args:
        source: a directory in the hub's layout, or a `.pt` file of the Python package.
        destination: a directory that does not exist yet, or is empty.

    Returns:
        `destination`, with the weights (float32), the configurations of model and feature extractor, and their code.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the checkpoint is of another kind, or its weights do not fit. Nothing is written in either case.
    """
    refuse_destination(destination)
    return write_model("dasheng", read_dasheng(source), destination, source)
