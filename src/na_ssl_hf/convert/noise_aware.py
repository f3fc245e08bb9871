"""Conversion of NA-BEATs, NA-EAT, NA-Dasheng and D-BEATs checkpoints (Fujimura et al., IWAENC and DCASE 2026),
Lightning files.

A full file holds the base encoder and the noise-aware layers. A file written by the averaging callback holds only the
averaged layers in `state_dict` (the raw ones in `current_model_state` are not used), so the base must be given. That of
NA-Dasheng also holds the statistics of the base's batch norm, which tell whether the given base is the right one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from na_ssl_hf.convert.beats import beats_weights, read_beats
from na_ssl_hf.convert.dasheng import BATCH_NORM_BUFFERS, dasheng_weights, read_dasheng
from na_ssl_hf.convert.eat import eat_weights, read_config, read_eat, split_projections
from na_ssl_hf.convert.foreign_pickle import load_foreign_checkpoint, to_plain
from na_ssl_hf.convert.weights import (
    Weights,
    count_layers,
    read_safetensors,
    require_names,
    require_shape,
    require_tensors,
)
from na_ssl_hf.convert.write import refuse_destination, write_model

logger = logging.get_logger(__name__)

_NAMES_OF_BASES = {"beats": "BEATs", "dasheng": "Dasheng", "eat": "EAT"}
_READERS = {"beats": read_beats, "dasheng": read_dasheng, "eat": read_eat}
_MLP_NAMES = {
    "norm_ffn.weight": "mlp_norm.weight",
    **{
        f"ffn.{projection}.{leaf}": f"mlp.{projection}.{leaf}"
        for projection in ("gate_proj", "up_proj", "down_proj")
        for leaf in ("weight", "bias")
    },
}
# What the names of NA-EAT's and NA-Dasheng's layers start with, after the leading `model.`.
_LAYER_PREFIXES = ("fusion_layers.", "additional_layers.")
_ATTENTION_NAMES = {f"attention.out_proj.{leaf}": f"attention.out_proj.{leaf}" for leaf in ("weight", "bias")}
_STACKED_NAMES = {f"attention.in_proj_{leaf}": f"attention.{{}}.{leaf}" for leaf in ("weight", "bias")}
# For every layer type, the names of the original layer and ours. The first name tells the types apart.
_LAYER_NAMES = {
    "cross_attention": {
        "norm_kv.weight": "noise_norm.weight",
        "norm_q.weight": "query_norm.weight",
        **_ATTENTION_NAMES,
        **_MLP_NAMES,
    },
    "film": {
        "film.to_gamma_beta.weight": "film.weight",
        "film.to_gamma_beta.bias": "film.bias",
        "norm_x.weight": "query_norm.weight",
        "norm_n_ref.weight": "noise_norm.weight",
        **_MLP_NAMES,
    },
    "self_attention": {"norm.weight": "query_norm.weight", **_ATTENTION_NAMES, **_MLP_NAMES},
}


def _noise_aware_weights(
    tensors: Mapping[str, torch.Tensor], hyper_parameters: Any, num_base_layers: int, source: Path
) -> Weights:
    """Rename the noise-aware layers, given under names like `0.norm_q.weight`, and find out their type."""
    layer_type = next((kind for kind, names in _LAYER_NAMES.items() if f"0.{next(iter(names))}" in tensors), None)
    if layer_type is None:
        raise ValueError(f"{source} has noise-aware layers of an unknown type: {', '.join(list(tensors)[:3])}, ...")
    num_layers = count_layers(tensors, "")
    if num_layers != num_base_layers:
        raise ValueError(
            f"{source} has {num_layers} noise-aware layers for a base of {num_base_layers}; there must be one for each."
        )
    stacked_names = {} if layer_type == "film" else _STACKED_NAMES
    expected = [f"{layer}.{old}" for layer in range(num_layers) for old in (*_LAYER_NAMES[layer_type], *stacked_names)]
    require_names(tensors, expected, source)
    state = {}
    for layer in range(num_layers):
        for old, new in _LAYER_NAMES[layer_type].items():
            state[f"layers.{layer}.noise_aware.{new}"] = tensors[f"{layer}.{old}"]
        for old, new in stacked_names.items():
            name = f"{layer}.{old}"
            state |= split_projections(tensors[name], f"layers.{layer}.noise_aware.{new}", name, source)
    intermediate_size, _ = require_shape(tensors, "0.ffn.gate_proj.weight", 2, source)
    attention = _attention_settings(hyper_parameters)
    settings = {
        "noise_aware_layer_type": layer_type,
        "noise_aware_num_heads": attention.get("num_heads", 8),
        "noise_aware_intermediate_size": intermediate_size,
        "noise_aware_attention_dropout": attention.get("dropout", 0.1),
    }
    return Weights(settings, state)


def _attention_settings(hyper_parameters: Any) -> Mapping[str, Any]:
    """Find `model_cfg.fusion_layer_cfg.attention_cfg` in a Lightning file's hyperparameters, or nothing."""
    model = to_plain(hyper_parameters)
    for names in (("model_cfg",), ("fusion_layer_cfg", "additional_layer_cfg"), ("attention_cfg",)):
        model = next((model[name] for name in names if name in model), {}) if isinstance(model, Mapping) else {}
    return model if isinstance(model, Mapping) else {}


def _read_converted(source: Path, model_type: str) -> Weights:
    """Read a directory that the converter of a base wrote."""
    config = read_config(source)
    if config.get("model_type") != model_type:
        raise ValueError(f"The base {source} must be of model type {model_type!r}, got {config.get('model_type')!r}.")
    state = read_safetensors(source / "model.safetensors")
    # These fields describe the file and not the encoder.
    about_the_file = ("architectures", "auto_map", "custom_pipelines", "dtype", "model_type", "transformers_version")
    settings = {name: value for name, value in config.items() if name not in about_the_file}
    return Weights(settings, require_tensors(state, source, "The weights"))


def _read_base(source: Path, model_type: str) -> Weights:
    """Read a base encoder: one of our directories, or any checkpoint that its converter reads."""
    if source.is_dir() and (model_type == "beats" or "hidden_size" in read_config(source)):
        return _read_converted(source, model_type)
    return _READERS[model_type](source)


def _read_noise_aware(
    source: Path,
    base: Path | None,
    model_type: str,
    layer_prefixes: tuple[str, ...],
    base_prefix: str,
    base_weights: Callable[[Mapping[str, torch.Tensor], Weights | None], Weights],
) -> Weights:
    """Read a Lightning file, and its base from there or from `base`.

    Args:
        source: the Lightning file.
        base: the base encoder's checkpoint, if given.
        model_type: of the base encoder.
        layer_prefixes: what the names of noise-aware layers start with, after the leading `model.`.
        base_prefix: what the names of the base's tensors start with, after the leading `model.`.
        base_weights: renames the base's tensors of a full file; it also gets the given base, whose settings it may
            need.

    A file may hold `BATCH_NORM_BUFFERS` of the base beside the layers alone, which are compared with the given base.
    """
    checkpoint = load_foreign_checkpoint(source)
    if not isinstance(checkpoint, Mapping) or "state_dict" not in checkpoint:
        found = list(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"{source} is no Lightning checkpoint: it must be a dict with 'state_dict', got {found}.")
    layers, encoder, others = {}, {}, []
    for name, tensor in require_tensors(checkpoint["state_dict"], source, "`state_dict`").items():
        if name.startswith("teacher_model."):
            continue
        # Only the leading `model.` belongs to Lightning: NA-EAT has names like `model.org_model.pre_norm.weight`.
        inner = name.removeprefix("model.")
        layer_prefix = next((prefix for prefix in layer_prefixes if inner.startswith(prefix)), None)
        if layer_prefix is not None and inner != name:
            layers[inner.removeprefix(layer_prefix)] = tensor
        elif inner != name and inner.startswith(base_prefix):
            encoder[inner.removeprefix(base_prefix)] = tensor
        else:
            others.append(name)
    if not layers:
        raise ValueError(
            f"{source} is no NA-{_NAMES_OF_BASES[model_type]} checkpoint: it has no names like "
            f"model.{layer_prefixes[0]}0.*; it has {', '.join([*others, *encoder][:3]) or 'nothing'}."
        )
    if others:
        require_names(others, (), source)
    given = None if base is None else _read_base(base, model_type)
    if set(encoder) <= set(BATCH_NORM_BUFFERS):
        if given is not None:
            _require_fitting_statistics(encoder, given, source, base)
        encoder = {}
    if encoder:
        weights = base_weights(encoder, given)
        if given is not None:
            _compare_bases(weights, given, source, base)
    elif given is not None:
        weights = given
    else:
        raise ValueError(
            f"{source} holds only noise-aware layers; pass the {_NAMES_OF_BASES[model_type]} checkpoint that they were "
            "trained on as `base` (--base)."
        )
    extra = _noise_aware_weights(
        layers, checkpoint.get("hyper_parameters"), weights.settings["num_hidden_layers"], source
    )
    return Weights(weights.settings | extra.settings, weights.state | extra.state)


def _require_fitting_statistics(
    buffers: Mapping[str, torch.Tensor], given: Weights, source: Path, base: Path | None
) -> None:
    """Refuse a given base whose batch norm has other statistics than the base that the layers were trained on."""
    for name, buffer in buffers.items():
        own = given.state.get(name.replace("init_bn.1.", "embeddings.batch_norm."))
        if own is None or own.shape != buffer.shape or not torch.allclose(own, buffer, rtol=1e-2, atol=1e-2):
            raise ValueError(
                f"The base {base} does not fit {source}: its {name} differs from that of the base on which the layers "
                "were trained."
            )


def _compare_bases(found: Weights, given: Weights, source: Path, base: Path | None) -> None:
    """Refuse a given base of another size; warn where only its weights differ, as they do where it was trained, too."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.state.items()}
    given_shapes = {name: tuple(tensor.shape) for name, tensor in given.state.items()}
    if shapes != given_shapes:
        name = next(name for name in shapes | given_shapes if shapes.get(name) != given_shapes.get(name))
        raise ValueError(
            f"The base {base} does not fit {source}: {name} has shape {given_shapes.get(name)} there and "
            f"{shapes.get(name)} here."
        )
    num_different = sum(not torch.allclose(found.state[name], given.state[name], atol=1e-6) for name in shapes)
    if num_different:
        logger.warning(
            f"{num_different} of {len(shapes)} base tensors of {source} differ from {base}; those of {source} are used."
        )


def convert_na_beats(source: str | Path, destination: str | Path, base: str | Path | None = None) -> Path:
    """Convert an NA-BEATs checkpoint (cross attention or FiLM) or a D-BEATs one; the type is read from its names.

    Args:
        source: a Lightning `.ckpt` file, full or with the noise-aware layers alone.
        destination: a directory that does not exist yet, or is empty.
        base: BEATs in its original format or converted by [`convert_beats`]; needed where `source` holds the layers
            alone. Beside a full file it only gives the settings, and a warning where its weights differ. A full file
            without a base is taken to have the settings of `BEATs_iter3` that shapes do not tell (`max_distance` 800).

    Returns:
        `destination`, with the weights (float32), the configurations of model and feature extractor, and their code.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the checkpoint is of another kind, the base is missing or does not fit, or the weights do not fit.
            Nothing is written in either case.
    """
    source, base = Path(source), None if base is None else Path(base)
    refuse_destination(destination)

    def weights_of_full_file(tensors: Mapping[str, torch.Tensor], given: Weights | None) -> Weights:
        found = beats_weights(tensors, None, source)
        return found if given is None else Weights(found.settings | _unseen_in_shapes(given.settings), found.state)

    prefixes = ("encoder.fusion_layers.", "encoder.additional_layers.")
    weights = _read_noise_aware(source, base, "beats", prefixes, "", weights_of_full_file)
    return write_model("na-beats", weights, destination, source)


def _unseen_in_shapes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Select the settings of BEATs that its tensors do not tell."""
    return {name: value for name, value in settings.items() if name == "max_distance" or name.endswith("_dropout")}


def convert_na_eat(source: str | Path, destination: str | Path, base: str | Path | None = None) -> Path:
    """Convert an NA-EAT checkpoint; the type of its noise-aware layers is read from their names.

    Args:
        source: a Lightning `.ckpt` file, full or with the noise-aware layers alone.
        destination: a directory that does not exist yet, or is empty.
        base: EAT in the remote-code layout, as a fairseq file, or converted by [`convert_eat`]; needed where `source`
            holds the layers alone, and beside a full file of a width other than the published 768 and 1024, whose
            number of heads the tensors do not tell. It then gives the settings only, and a warning where its weights
            differ.

    Returns:
        `destination`, with the weights (float32), the configurations of model and feature extractor, and their code.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the checkpoint is of another kind, the base is missing or does not fit, or the weights do not fit.
            Nothing is written in either case.
    """
    source, base = Path(source), None if base is None else Path(base)
    refuse_destination(destination)

    def weights_of_full_file(tensors: Mapping[str, torch.Tensor], given: Weights | None) -> Weights:
        if given is None:
            return eat_weights(tensors, {}, source)
        # A base of another size is reported by the comparison of shapes that follows; 1 head fits every size.
        found = eat_weights(tensors, {"num_heads": 1, "mel_bins": given.settings["num_mel_bins"]}, source)
        return Weights(given.settings, found.state)

    weights = _read_noise_aware(source, base, "eat", _LAYER_PREFIXES, "org_model.", weights_of_full_file)
    return write_model("na-eat", weights, destination, source)


def convert_na_dasheng(source: str | Path, destination: str | Path, base: str | Path | None = None) -> Path:
    """Convert an NA-Dasheng checkpoint; the type of its noise-aware layers is read from their names.

    Args:
        source: a Lightning `.ckpt` file, full or with the noise-aware layers alone.
        destination: a directory that does not exist yet, or is empty.
        base: Dasheng in the hub's layout, as a file of its package, or converted by [`convert_dasheng`]; needed where
            `source` holds the layers alone, and beside a full file of a width that none of the published sizes has,
            whose number of heads the tensors do not tell. It then gives the settings only, and a warning where its
            weights differ.

    Returns:
        `destination`, with the weights (float32), the configurations of model and feature extractor, and their code.

    Raises:
        OSError: the file is missing, truncated or damaged, or the destination is occupied.
        ValueError: the checkpoint is of another kind, the base is missing or does not fit, or the weights do not fit.
            Nothing is written in either case.
    """
    source, base = Path(source), None if base is None else Path(base)
    refuse_destination(destination)

    def weights_of_full_file(tensors: Mapping[str, torch.Tensor], given: Weights | None) -> Weights:
        if given is None:
            return dasheng_weights(tensors, {}, source)
        return Weights(given.settings, dasheng_weights(tensors, {"num_heads": 1}, source).state)

    weights = _read_noise_aware(source, base, "dasheng", _LAYER_PREFIXES, "org_model.", weights_of_full_file)
    return write_model("na-dasheng", weights, destination, source)
