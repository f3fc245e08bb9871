"""Weights between a foreign checkpoint and one of our models, and what they must satisfy."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from na_ssl_hf.convert.foreign_pickle import load_foreign_checkpoint


@dataclass(frozen=True)
class Weights:
    """The settings and tensors from which one of our models is made.

    Attributes:
        settings: keyword arguments of the model's configuration.
        state: float32 tensors under our parameter names.
    """

    settings: dict[str, Any]
    state: dict[str, torch.Tensor]


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a safetensors file; an `OSError` names it where it is missing or damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"The checkpoint has no {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path} is truncated or damaged: {error}.") from None


def read_directory_weights(source: Path) -> dict[str, torch.Tensor]:
    """Read the float32 weights in a directory of the hub's layout: `model.safetensors`, else `pytorch_model.bin`.

    Raises:
        OSError: there is neither, or the file is truncated or damaged.
        ValueError: the file holds anything but tensors by name.
    """
    in_pickle = (source / "pytorch_model.bin").exists() and not (source / "model.safetensors").exists()
    if in_pickle:
        found = load_foreign_checkpoint(source / "pytorch_model.bin")
    else:
        found = read_safetensors(source / "model.safetensors")
    return require_tensors(found, source, "The weights")


def require_tensors(mapping: Any, source: str | Path, what: str) -> dict[str, torch.Tensor]:
    """Return `mapping` as float32 tensors by name, or raise a `ValueError` that says what it is instead."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{what} of {source} must be a dict of tensors, got {type(mapping).__name__}.")
    for name, value in mapping.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{what} of {source} must hold only tensors, got {type(value).__name__} at {name!r}.")
    return {name: tensor.detach().float() for name, tensor in mapping.items()}


def require_names(found: Collection[str], expected: Collection[str], source: str | Path) -> None:
    """Raise a `ValueError` that counts the missing and the unexpected names, if there are any, and gives examples."""
    complaints = []
    for adjective, names in (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
    ):
        if names:
            more = ", ..." if len(names) > 3 else ""
            complaints.append(f"{len(names)} {adjective} ({', '.join(names[:3])}{more})")
    if complaints:
        raise ValueError(f"The weights of {source} do not fit the model: {' and '.join(complaints)}.")


def require_shape(state: Mapping[str, torch.Tensor], name: str, num_dims: int, source: str | Path) -> torch.Size:
    """Return the shape of `state[name]`; it is a `ValueError` where that is absent or has other dimensions."""
    if name not in state:
        raise ValueError(f"{source} is not a checkpoint of this kind: it has no {name}.")
    if state[name].ndim != num_dims or 0 in state[name].shape:
        raise ValueError(f"{name} of {source} must have {num_dims} dimensions, got shape {tuple(state[name].shape)}.")
    return state[name].shape


def count_layers(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Count the layers in names like `<prefix>11.fc1.weight`: one more than the largest index."""
    indices = [name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)]
    return 1 + max((int(index) for index in indices if index.isdecimal()), default=-1)


def require_settings(found: Mapping[str, Any], needed: Mapping[str, Any], source: str | Path) -> None:
    """Raise a `ValueError` for the first setting of `found` that differs from the `needed` one; absent ones pass."""
    for name, value in needed.items():
        if found.get(name, value) != value:
            raise ValueError(f"`{name}` of {source} must be {value!r} for this model, got {found[name]!r}.")
