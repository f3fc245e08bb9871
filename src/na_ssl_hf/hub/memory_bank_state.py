"""The tensors that a fitted memory consists of, and whether those read from a file go together."""

import torch

from .memory_bank_settings import MemoryBankSettings

# Everything that a fit may leave behind; which of them, the settings decide.
STATE = (
    "memory_",
    "squared_norms_",
    "density_",
    "alpha_",
    "k_distance_",
    "is_target_",
    "coreset_",
    "dropped_scores_",
)


def check_state(settings: MemoryBankSettings, tensors: dict[str, torch.Tensor], num_clips: int) -> None:
    """Whether `tensors` are the state of a memory of `num_clips` clips with these settings.

    Raises:
        ValueError, TypeError or KeyError: they are not.
    """
    num_bands, num_references, dim = tensors["memory_"].shape
    num_dropped = len(tensors["dropped_scores_"]) if settings.coreset_size else 0
    expected = _state_shapes(settings, num_bands, num_references, dim, num_clips, num_dropped)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise ValueError(f"tensors must have the shapes {expected}, got {found}.")
    if not 1 <= num_clips <= num_references:
        raise ValueError(f"num_clips must fit the {num_references} references, got {num_clips!r}.")
    for name, tensor in tensors.items():
        wanted = {"is_target_": torch.bool, "coreset_": torch.int64}.get(name, torch.float32)
        if tensor.dtype != wanted:
            raise ValueError(f"{name} must be {wanted}, got {tensor.dtype}.")
    if settings.coreset_size:
        kept = tensors["coreset_"].tolist()
        if kept != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < num_clips + num_dropped:
            raise ValueError(f"coreset_ must hold ascending positions among the fitted clips, got {kept}.")
    num_synthetic = settings._num_synthetic(tensors["is_target_"][:num_clips]) if settings._two_memories else 0
    if num_clips + num_synthetic != num_references:
        raise ValueError(f"num_clips={num_clips} and domains must fit the {num_references} references.")


def _state_shapes(
    settings: MemoryBankSettings, num_bands: int, num_references: int, dim: int, num_clips: int, num_dropped: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "memory_": (num_bands, num_references, dim),
        "squared_norms_": (num_bands, num_references),
    }
    if settings.rescaling:
        shapes["density_"] = (num_bands, num_references)
    if settings.rescaling == "variance_min":
        shapes["alpha_"] = (num_bands,)
    if settings.rescaling == "lof":
        shapes["k_distance_"] = (num_bands, num_references)
    if settings._two_memories:
        shapes["is_target_"] = (num_references,)
    if settings.coreset_size:
        shapes["coreset_"] = (num_clips,)
        shapes["dropped_scores_"] = (num_dropped, num_bands)
    return shapes
