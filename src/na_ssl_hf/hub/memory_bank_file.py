"""This module reads and writes the one file of a fitted memory bank: tensors, and a JSON header.

The header holds the parameters, the calibration, and the history of the bank.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils.hub import cached_file

from .clip_embeddings import NORM_TOLERANCE
from .memory_bank_backends import Backend
from .memory_bank_rescaling import Rescaling
from .reference_sampling import OneMemory
from .threshold import Calibration
from .whole_files import whole_file

MEMORY_BANK_FILE = "memory_bank.safetensors"
FORMAT_VERSION = 1
# Saved norms and scores differ from exact ones by rounding, which is far less.
SAVED_TOLERANCE = 1e-3


def write_bank_file(
    directory: str | os.PathLike[str], tensors: dict[str, torch.Tensor], header: dict[str, Any]
) -> None:
    """Write `memory_bank.safetensors`. If the process is killed while writing, an older file stays as it was.

    Raises:
        OSError: The directory cannot be written.
    """
    header = {"format_version": FORMAT_VERSION} | header
    path = Path(directory) / MEMORY_BANK_FILE
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata={"format": "pt", "memory_bank": json.dumps(header)})
    except SafetensorError as error:
        raise OSError(f"Could not write {path}: {error}") from error


def find_bank_file(name_or_path: str | os.PathLike[str], **hub_options: Any) -> str | None:
    """Return the path of the file in a directory or, after a download, of a hub repository; `None` if it has none.

    Raises:
        OSError: The directory or repository does not exist, or cannot be reached.
    """
    return cached_file(name_or_path, MEMORY_BANK_FILE, **hub_options, _raise_exceptions_for_missing_entries=False)


def read_bank_file(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and the header of the file.

    Raises:
        SafetensorError, KeyError, TypeError, ValueError or RecursionError: The file is not one of a memory bank. The
            sizes in it are compared with its length before any memory is taken for them.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["memory_bank"])
        if header["format_version"] != FORMAT_VERSION:
            raise ValueError(f"`format_version` must be {FORMAT_VERSION}, got {header['format_version']!r}.")
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a dict)


def saved_calibration(header: dict[str, Any]) -> Calibration | None:
    """Return the calibration in the header of a saved bank or of one of its changes.

    Raises:
        ValueError or KeyError: It is damaged.
    """
    if "calibration" in header:
        return None if header["calibration"] is None else Calibration.from_dict(header["calibration"])
    # Version 0.1.0 kept the calibration in free metadata, whose other entries have no use any more.
    metadata = dict(header["metadata"])
    return Calibration.from_dict(metadata) if "self_scores" in metadata else None


def calibration_header(calibration: Calibration | None) -> dict[str, Any]:
    """Return the part of a header that `saved_calibration` reads."""
    return {"calibration": None if calibration is None else calibration.to_dict()}


def check_vectors(vectors: torch.Tensor, squared_norms: torch.Tensor, normalize: bool, wants_unit_norm: bool) -> None:
    """Check that saved vectors `(F, N, D)` are finite and have the norms `(F, N)` that were saved with them.

    Args:
        vectors, squared_norms: What `prepared_clips` made.
        normalize: Whether it scaled the vectors to unit norm, or to zero.
        wants_unit_norm: Whether it refused vectors of another norm.

    Raises:
        ValueError: They are not.
    """
    for band, (rows, saved) in enumerate(zip(vectors, squared_norms, strict=True)):
        squares = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()  # (N,)
        # NaN is not close to anything, and infinity is close to everything.
        is_close = (squares - saved).abs().le(SAVED_TOLERANCE * (1 + squares))
        if not (is_close & squares.isfinite()).all():
            raise ValueError(f"Vectors must be finite and have the norms saved with them, got others in band {band}.")
        is_unit = (saved == 0) | ((saved - 1).abs() <= 3 * NORM_TOLERANCE)
        if (normalize or wants_unit_norm) and not is_unit.all():
            raise ValueError(f"Vectors must have unit norm or be zero, got a squared norm {saved[~is_unit][0]:.6g}.")


def check_calibration(calibration: Calibration | None, rescaling: Rescaling, num_backends: int) -> None:
    """Check that the scores of a calibration are such as a memory gives: distances are not negative.

    Several backends are standardised, so that their scores may be.

    Raises:
        ValueError: They are not.
    """
    if calibration is None or num_backends > 1 or rescaling.name in ("variance_min", "difference"):
        return
    for name, value in (("threshold", calibration.threshold), ("self_scores", min(calibration.self_scores))):
        if value < -SAVED_TOLERANCE:
            raise ValueError(f"`{name}` must not be negative with rescaling={rescaling.name!r}, got {value}.")


def check_state(
    tensors: dict[str, torch.Tensor],
    num_clips: int,
    rescaling: Rescaling,
    memories: OneMemory,
    has_coreset: bool,
    other_backends: Sequence[Backend],
    num_backends: int,
) -> None:
    """Check that tensors are the state of a memory of `num_clips` clips, and finite.

    Args:
        tensors: The tensors, named as the attributes of [`MemoryBank`].
        num_clips: The number of clips in the memory.
        rescaling: The rescaling that made some of them.
        memories: The kind of memory.
        has_coreset: Whether the clips are a coreset.
        other_backends: The backends besides the nearest neighbours, which made others of them.
        num_backends: The number of all backends.

    Raises:
        ValueError, TypeError or KeyError: They are not.
    """
    num_bands, num_references, dim = tensors["memory_"].shape
    expected: dict[str, tuple[int, ...]] = {
        "memory_": (num_bands, num_references, dim),
        "squared_norms_": (num_bands, num_references),
        **rescaling.state(num_bands, num_references),
    }
    for backend in other_backends:
        expected |= backend.state(num_bands, dim)
    if num_backends > 1:
        expected |= dict.fromkeys(("score_means_", "score_spreads_"), (num_backends, num_bands))
    num_dropped = len(tensors["dropped_scores_"]) if has_coreset else 0
    knows_domains = memories.knows_domains or any(backend.knows_domains for backend in other_backends)
    if knows_domains:
        expected["is_target_"] = (num_references,)
    if has_coreset:
        expected |= {"coreset_": (num_clips,), "dropped_scores_": (num_dropped, num_bands)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise ValueError(f"The tensors must have the shapes {expected}, got {found}.")
    if isinstance(num_clips, bool) or not isinstance(num_clips, int) or not 1 <= num_clips <= num_references:
        raise ValueError(f"`num_clips` must be in 1..{num_references}, got {num_clips!r}.")
    for name, tensor in tensors.items():
        wanted = {"is_target_": torch.bool, "coreset_": torch.int64}.get(name, torch.float32)
        if tensor.dtype != wanted:
            raise ValueError(f"`{name}` must be {wanted}, got {tensor.dtype}.")
        if not tensor.isfinite().all():
            raise ValueError(f"`{name}` must be finite, got {tensor[~tensor.isfinite()][0]}.")
        if name in ("density_", "k_distance_", "domain_medians_") and (tensor < -SAVED_TOLERANCE).any():
            raise ValueError(f"`{name}` must not be negative, got {tensor.min()}.")
        if name == "score_spreads_" and (tensor <= 0).any():
            raise ValueError(f"`{name}` must be above 0, got {tensor.min()}.")
    if not tensors["memory_"].any():
        raise ValueError("`memory_` must hold a vector other than zero, got none.")
    if has_coreset:
        kept = tensors["coreset_"].tolist()
        if kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < num_clips + num_dropped:
            raise ValueError(f"`coreset_` must hold ascending positions among the fitted clips, got {kept}.")
    num_target = int(tensors["is_target_"][:num_clips].sum()) if knows_domains else 0
    for backend in other_backends:
        backend.check(num_clips - num_target, num_target)
    if num_clips + memories.num_synthetic(num_clips - num_target, num_target) != num_references:
        raise ValueError(f"`num_clips` and the domains must fit the {num_references} references, got {num_clips}.")
