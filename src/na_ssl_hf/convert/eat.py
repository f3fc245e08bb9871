"""Conversion of EAT checkpoints (Chen et al., IJCAI 2024): the Hugging Face remote-code layout and fairseq files.

SSLAM (Alex et al., ICLR 2025) is EAT trained further on mixtures of sounds, and has the same files. Of classifiers that
were fine-tuned from either of them, the encoder is taken and the head dropped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

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

# Number of heads of the two published widths, which a checkpoint's tensors do not tell.
_PUBLISHED_HEADS = {768: 12, 1024: 16}
_IMPLEMENTED = {
    "layer_norm_first": False,
    "norm_affine": True,
    "fixed_positions": True,
    "in_chans": 1,
    "num_extra_tokens": 1,
    "prenet_depth": 0,
}
_LAYER_NAMES = {
    "attn.proj": "attention.out_proj",
    "norm1": "attention_layer_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm2": "final_layer_norm",
}
_FAIRSEQ_MODALITY = "modality_encoders.IMAGE."


def eat_weights(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: str | Path) -> Weights:
    """Rename the tensors of the remote code and read every size from their shapes.

    Args:
        tensors: float32 tensors under the names of the remote code, without the leading `model.`.
        config: its settings under the names of the remote code, as far as they are known. Without `num_heads` the two
            published widths are recognised (768 has 12 heads, 1024 has 16).
        source: the file that errors name.

    Raises:
        ValueError: missing or unexpected names, unknown number of heads, or settings that our model does not implement
            or that contradict the shapes.
    """
    head = [name for name in tensors if name.startswith(("fc_norm.", "head."))]
    if head:
        logger.warning(f"{source} is a fine-tuned classifier: its head ({', '.join(head)}) is dropped.")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in head}
    if config.get("model_variant", "pretrain") not in ("pretrain", "finetune"):
        raise ValueError(
            f"`model_variant` of {source} must be 'pretrain' or 'finetune', got {config['model_variant']!r}."
        )
    settings = _settings(tensors, config, source)
    names = {
        "extra_tokens": "embeddings.cls_token",
        "fixed_positional_encoder.positions": "embeddings.position_embeddings",
    }
    modules = {"local_encoder.proj": "embeddings.patch_embedding", "pre_norm": "embeddings.layer_norm"}
    for layer in range(settings["num_hidden_layers"]):
        modules |= {f"blocks.{layer}.{old}": f"layers.{layer}.{new}" for old, new in _LAYER_NAMES.items()}
    names |= {f"{old}.{leaf}": f"{new}.{leaf}" for old, new in modules.items() for leaf in ("weight", "bias")}
    stacked = {
        f"blocks.{layer}.attn.qkv.{leaf}": f"layers.{layer}.attention.{{}}.{leaf}"
        for layer in range(settings["num_hidden_layers"])
        for leaf in (("weight", "bias") if settings["qkv_bias"] else ("weight",))
    }
    require_names(tensors, [*names, *stacked], source)

    state = {new: tensors[old] for old, new in names.items()}
    for old, new in stacked.items():
        state |= split_projections(tensors[old], new, old, source)
    return Weights(settings, state)


def _settings(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Read the settings of our configuration from the shapes, and what these do not tell from the config."""
    hidden_size, _, _, patch_size = require_shape(tensors, "local_encoder.proj.weight", 4, source)
    _, num_positions, _ = require_shape(tensors, "fixed_positional_encoder.positions", 3, source)
    intermediate_size, _ = require_shape(tensors, "blocks.0.mlp.fc1.weight", 2, source)
    num_layers = count_layers(tensors, "blocks.")
    num_mel_bins = config.get("mel_bins", 128)
    num_bands = num_mel_bins // patch_size
    if not num_bands or num_positions % num_bands:
        raise ValueError(
            f"The position table of {source} must have a multiple of {num_bands} rows (`mel_bins` {num_mel_bins} / "
            f"patch {patch_size}), got {num_positions}."
        )
    shapes = {
        "embed_dim": hidden_size,
        "depth": num_layers,
        "patch_size": patch_size,
        "stride": patch_size,
        "max_length": num_positions // num_bands,
    }
    require_settings(config, _IMPLEMENTED | shapes, source)
    num_heads = config.get("num_heads", _PUBLISHED_HEADS.get(hidden_size))
    if num_heads is None:
        raise ValueError(
            f"{source} does not say its number of attention heads (`num_heads`), and {hidden_size} is none of the "
            f"published widths {sorted(_PUBLISHED_HEADS)}."
        )
    qkv_bias = "blocks.0.attn.qkv.bias" in tensors
    require_settings(config, {"qkv_bias": qkv_bias}, source)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "qkv_bias": qkv_bias,
        "patch_size": patch_size,
        "num_mel_bins": num_mel_bins,
        "max_time_patches": num_positions // num_bands,
        "layer_norm_eps": config.get("norm_eps", 1e-6),
        "hidden_dropout": config.get("drop_rate", 0.0),
        "attention_dropout": config.get("attn_drop_rate", 0.0),
    }


def split_projections(stacked: torch.Tensor, new_name: str, name: str, source: str | Path) -> dict[str, torch.Tensor]:
    """Split a stacked projection into query, key and value; their names are `new_name` with its `{}` filled in."""
    if stacked.shape[0] % 3:
        raise ValueError(f"{name} of {source} must stack query, key and value, got shape {tuple(stacked.shape)}.")
    projections = ("q_proj", "k_proj", "v_proj")
    parts = stacked.chunk(3)
    return {new_name.format(projection): part.clone() for projection, part in zip(projections, parts, strict=True)}


def read_eat_directory(source: Path) -> Weights:
    """Read the remote-code layout: `config.json` with `model.safetensors` or `pytorch_model.bin`, names `model.*`."""
    config = read_config(source)
    tensors = read_directory_weights(source)
    return eat_weights({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, config, source)


def read_config(source: Path) -> dict[str, Any]:
    """Read `config.json` of a directory; an `OSError` or a `ValueError` names a missing or damaged one."""
    path = source / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"The checkpoint has no {path}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, got {type(config).__name__}.")
    return config


def read_eat_fairseq(source: Path) -> Weights:
    """Read the student's encoder from a fairseq file, or the encoder of a fine-tuned classifier.

    The decoder and the `_ema` teacher serve pretraining only and are not read, as in the project's own export.
    """
    checkpoint = load_foreign_checkpoint(source)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        found = list(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"{source} is no fairseq checkpoint of EAT: it must be a dict with 'model', got {found}.")
    encoder = {
        name: value
        for name, value in checkpoint["model"].items()
        if name != "_ema" and not str(name).startswith(f"{_FAIRSEQ_MODALITY}decoder.")
    }
    tensors = {}
    for name, tensor in require_tensors(encoder, source, "`model`").items():
        # In a fine-tuned file the encoder is a part, `model.`, of the classifier.
        name = name.removeprefix("model.").removeprefix(_FAIRSEQ_MODALITY)
        tensors[name.replace("context_encoder.norm.", "pre_norm.")] = tensor
    return eat_weights(tensors, _fairseq_settings(checkpoint, source), source)


def _fairseq_settings(checkpoint: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Read the settings from `cfg.model` and its image modality or the older `args`, named as in the remote code."""
    cfg = to_plain(checkpoint.get("cfg"))
    model = cfg.get("model") if isinstance(cfg, Mapping) else to_plain(checkpoint.get("args"))
    if model is None:
        return {}
    if not isinstance(model, Mapping):
        raise ValueError(f"The settings of {source} must be a dict, got {type(model).__name__}.")
    names = ("embed_dim", "depth", "num_heads", "norm_eps", "norm_affine", "layer_norm_first")
    settings = {name: model[name] for name in names if name in model}
    modalities = model.get("modalities")
    image = modalities.get("image", modalities.get("IMAGE")) if isinstance(modalities, Mapping) else None
    if isinstance(image, Mapping):
        names = ("in_chans", "patch_size", "num_extra_tokens", "prenet_depth", "fixed_positions", "max_length")
        settings |= {name: image[name] for name in names if name in image}
    return settings


def read_eat(source: str | Path) -> Weights:
    """Read an EAT checkpoint of either layout.

    Raises:
        OSError: the file is missing, truncated or damaged.
        ValueError: the file is of another kind, or one that [`eat_weights`] refuses.
    """
    source = Path(source)
    return read_eat_directory(source) if source.is_dir() else read_eat_fairseq(source)


def convert_eat(source: str | Path, destination: str | Path) -> Path:
    """Convert an EAT or SSLAM checkpoint into a directory for `from_pretrained`; of a classifier, the encoder alone.

    Args:
        source: a directory in the Hugging Face remote-code layout, or a fairseq `.pt` file.
        destination: a directory that does not exist yet, or is empty.

    Returns:
        `destination`, with the weights (float32), the configurations of model and feature extractor, and their code.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the checkpoint is of another kind, or its weights do not fit. Nothing is written in either case.
    """
    refuse_destination(destination)
    return write_model("eat", read_eat(source), destination, source)
