"""Conversion of BEATs checkpoints (Chen et al., ICML 2023) of the original code, `{"cfg": dict, "model": tensors}`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from na_ssl_hf.convert.foreign_pickle import load_foreign_checkpoint, to_plain
from na_ssl_hf.convert.weights import (
    Weights,
    count_layers,
    require_names,
    require_settings,
    require_shape,
    require_tensors,
)
from na_ssl_hf.convert.write import refuse_destination, write_model

# Our model implements one value of each of these settings.
_IMPLEMENTED: dict[str, Any] = {
    "layer_norm_first": False,
    "deep_norm": True,
    "gru_rel_pos": True,
    "conv_bias": False,
    "relative_position_embedding": True,
    "activation_fn": "gelu",
}
# The original code assumes these values where a `cfg` does not name the setting.
_CODE_DEFAULTS = _IMPLEMENTED | {"deep_norm": False, "gru_rel_pos": False, "relative_position_embedding": False}

# Names of sizes in a `cfg`, and ours.
_CFG_NAMES = {
    "embed_dim": "patch_embedding_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "conv_pos": "position_convolution_kernel",
    "conv_pos_groups": "position_convolution_groups",
    "num_buckets": "num_buckets",
}

_LAYER_NAMES = {
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.out_proj",
    "self_attn.grep_linear": "attention.gate_proj",
    "self_attn_layer_norm": "attention_layer_norm",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "final_layer_norm": "final_layer_norm",
}


def beats_weights(tensors: Mapping[str, torch.Tensor], cfg: Mapping[str, Any] | None, source: str | Path) -> Weights:
    """Rename the tensors of the original code and read every size from their shapes.

    Args:
        tensors: float32 tensors under the names of the original code.
        cfg: the settings stored beside them; `None` where there are none (Lightning files), which means those of the
            public `BEATs_iter3` (`max_distance` 800 and its dropouts; everything else follows from the shapes).
        source: the file that errors name.

    Raises:
        ValueError: missing or unexpected names, position tables that differ between layers, or a `cfg` that our model
            does not implement or that contradicts the shapes.
    """
    predictor = [name for name in tensors if name.startswith("predictor.")]
    if predictor or (cfg or {}).get("finetuned_model"):
        raise ValueError(
            f"{source} is a fine-tuned BEATs classifier (predictor tensors: {len(predictor)}); the encoder of a "
            "self-supervised checkpoint such as BEATs_iter3 is needed."
        )
    sizes = _sizes(tensors, source)
    num_layers = sizes["num_hidden_layers"]
    if cfg is not None:
        _require_fitting_cfg(cfg, sizes, source)
    names = _new_names(num_layers, has_projection=sizes["patch_embedding_size"] != sizes["hidden_size"])
    gates = [f"encoder.layers.{layer}.self_attn.grep_a" for layer in range(num_layers)]
    position_biases = [
        f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight" for layer in range(num_layers)
    ]
    weight_norm = ["encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"]
    require_names(tensors, [*names, *gates, *position_biases, *weight_norm], source)

    state = {new: tensors[old] for old, new in names.items()}
    for layer, name in enumerate(gates):
        state[f"layers.{layer}.attention.gate_scale"] = tensors[name].flatten()  # (1, H, 1, 1) -> (H,)
    for name in position_biases[1:]:
        if not torch.equal(tensors[name], tensors[position_biases[0]]):
            raise ValueError(f"{name} of {source} must equal that of layer 0: all layers share one position table.")
    state["relative_position_bias.embedding.weight"] = tensors[position_biases[0]]
    state["embeddings.position_convolution.weight"] = _fold_weight_norm(*(tensors[name] for name in weight_norm))
    cfg = cfg or {}
    settings = sizes | {
        "max_distance": cfg.get("max_distance", 800),
        "input_dropout": cfg.get("dropout_input", 0.1),
        "hidden_dropout": cfg.get("dropout", 0.1),
        "attention_dropout": cfg.get("attention_dropout", 0.1),
        "activation_dropout": cfg.get("activation_dropout", 0.0),
    }
    return Weights(settings, state)


def _sizes(tensors: Mapping[str, torch.Tensor], source: str | Path) -> dict[str, int]:
    """Read the settings of our configuration that the shapes tell."""
    embedding_size, _, _, patch_size = require_shape(tensors, "patch_embedding.weight", 4, source)
    (hidden_size,) = require_shape(tensors, "encoder.layer_norm.weight", 1, source)
    _, group_size, kernel_size = require_shape(tensors, "encoder.pos_conv.0.weight_v", 3, source)
    num_buckets, num_heads = require_shape(
        tensors, "encoder.layers.0.self_attn.relative_attention_bias.weight", 2, source
    )
    intermediate_size, _ = require_shape(tensors, "encoder.layers.0.fc1.weight", 2, source)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_layers(tensors, "encoder.layers."),
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "patch_size": patch_size,
        "patch_embedding_size": embedding_size,
        "position_convolution_kernel": kernel_size,
        "position_convolution_groups": hidden_size // group_size,
        "num_buckets": num_buckets,
    }


def _require_fitting_cfg(cfg: Mapping[str, Any], sizes: Mapping[str, int], source: str | Path) -> None:
    """Refuse a `cfg` that our model does not implement, that contradicts the shapes or that lacks `max_distance`."""
    require_settings(_CODE_DEFAULTS | dict(cfg), _IMPLEMENTED, source)
    require_settings(cfg, {"input_patch_size": 16} | {old: sizes[new] for old, new in _CFG_NAMES.items()}, source)
    if "max_distance" not in cfg:
        raise ValueError(f"`cfg` of {source} must hold `max_distance`.")


def _new_names(num_layers: int, has_projection: bool) -> dict[str, str]:
    """Map the names of the tensors that are taken over unchanged to ours."""
    modules = {"layer_norm": "embeddings.layer_norm", "encoder.layer_norm": "embeddings.position_layer_norm"}
    if has_projection:
        modules["post_extract_proj"] = "embeddings.projection"
    for layer in range(num_layers):
        modules |= {f"encoder.layers.{layer}.{old}": f"layers.{layer}.{new}" for old, new in _LAYER_NAMES.items()}
    return {
        "patch_embedding.weight": "embeddings.patch_embedding.weight",
        "encoder.pos_conv.0.bias": "embeddings.position_convolution.bias",
    } | {f"{old}.{leaf}": f"{new}.{leaf}" for old, new in modules.items() for leaf in ("weight", "bias")}


def _fold_weight_norm(gain: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """Compute the plain weight `w[:, :, k] = gain[k] * direction[:, :, k] / ||direction[:, :, k]||`.

    Args:
        gain: `(1, 1, K)`.
        direction: `(D, D / groups, K)`, the shape of the result.
    """
    direction = direction.double()  # one rounding to float32, at the end
    norm = torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)  # (1, 1, K)
    return (gain.double() * direction / norm).float()


def read_beats(source: str | Path) -> Weights:
    """Read a BEATs file of the original format.

    Raises:
        OSError: the file is missing, truncated or damaged.
        ValueError: the file is of another kind, or one that [`beats_weights`] refuses.
    """
    checkpoint = load_foreign_checkpoint(source)
    if not isinstance(checkpoint, Mapping) or not {"cfg", "model"} <= set(checkpoint):
        found = list(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"{source} is no BEATs checkpoint: it must be a dict with 'cfg' and 'model', got {found}.")
    cfg = to_plain(checkpoint["cfg"])
    if not isinstance(cfg, Mapping):
        raise ValueError(f"`cfg` of {source} must be a dict, got {type(cfg).__name__}.")
    return beats_weights(require_tensors(checkpoint["model"], source, "`model`"), cfg, source)


def convert_beats(source: str | Path, destination: str | Path) -> Path:
    """Convert a self-supervised BEATs checkpoint, e.g. `BEATs_iter3.pt`, into a directory for `from_pretrained`.

    Args:
        source: the file of the original project.
        destination: a directory that does not exist yet, or is empty.

    Returns:
        `destination`, with the weights (float32), the configurations of model and feature extractor, and their code.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the checkpoint is of another kind, or its weights do not fit. Nothing is written in either case.
    """
    refuse_destination(destination)
    return write_model("beats", read_beats(source), destination, source)
