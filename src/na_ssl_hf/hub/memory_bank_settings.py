"""The parameters of a memory of normal recordings, and which of them go together."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch

from .approximate_index import INDEX_KINDS, IndexKind

Distance = Literal["cosine", "euclidean"]
Rescaling = Literal["variance_min", "ratio", "difference", "lof"]
CHOICES: dict[str, tuple[str | None, ...]] = {
    "distance": ("cosine", "euclidean"),
    "rescaling": (None, "variance_min", "ratio", "difference", "lof"),
    "band_aggregation": ("mean", "max"),
    "index": INDEX_KINDS,
}
# The least legal value of every int; the sizes and num_target_neighbors may be None too.
LEAST = {
    "num_neighbors": 1,
    "num_rescaling_neighbors": 1,
    "smote_neighbors": 1,
    "num_target_neighbors": 0,
    "memmixup_neighbors": 0,
    "coreset_size": 1,
    "coreset_seed": 0,
    "max_clips": 1,
    "max_history": 0,
}


@dataclass(eq=False)
class MemoryBankSettings:
    """Parameters of [`MemoryBank`], which explains them. Raises ValueError for values outside their range."""

    distance: Distance = "cosine"
    normalize: bool = True
    num_neighbors: int = 1
    rescaling: Rescaling | None = None
    num_rescaling_neighbors: int = 4
    smote_ratio: float = 0.0
    smote_neighbors: int = 2
    band_aggregation: Literal["mean", "max"] = "mean"
    separate_domains: bool = False
    num_target_neighbors: int | None = None
    memmixup_neighbors: int = 0
    rescaling_decay: float | None = None
    coreset_size: int | None = None
    coreset_seed: int = 0
    max_clips: int | None = None
    max_history: int = 8
    index: IndexKind | None = None

    def __post_init__(self) -> None:
        self._check_parameters()

    @property
    def _two_memories(self) -> bool:
        return bool(self.smote_ratio or self.memmixup_neighbors or self.separate_domains)

    def _check_parameters(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        for name in ("normalize", "separate_domains"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is None and name in ("num_target_neighbors", "coreset_size", "max_clips"):
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}.")
        for name in ("smote_ratio", "rescaling_decay"):
            value = getattr(self, name)
            if value is None and name == "rescaling_decay":
                continue
            if not isinstance(value, Real) or isinstance(value, bool) or not 0.0 <= float(value) <= 1.0:
                raise ValueError(f"{name} must be a number in [0, 1], got {value!r}.")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.smote_ratio and self.rescaling:
            raise ValueError(
                f"smote_ratio above 0 must be used with rescaling=None, got {self.smote_ratio!r} and "
                f"{self.rescaling!r}: synthetic clips would decide the densities."
            )
        if self.smote_ratio and self.memmixup_neighbors:
            raise ValueError(
                "smote_ratio and memmixup_neighbors exclude each other, "
                f"got {self.smote_ratio!r} and {self.memmixup_neighbors!r}."
            )
        for name in ("rescaling", "index"):
            if self._two_memories and getattr(self, name):
                raise ValueError(
                    f"smote_ratio, memmixup_neighbors and separate_domains want {name}=None, "
                    f"got {getattr(self, name)!r}."
                )
        if self.num_target_neighbors is not None and not self._two_memories:
            raise ValueError(
                f"num_target_neighbors={self.num_target_neighbors} wants two memories: set separate_domains, "
                "smote_ratio or memmixup_neighbors."
            )
        if self.rescaling_decay is not None and self.rescaling in (None, "lof"):
            raise ValueError(
                f"rescaling_decay={self.rescaling_decay} wants rescaling 'variance_min', 'ratio' or 'difference', "
                f"got {self.rescaling!r}."
            )
        if self.coreset_size and self.max_clips:
            raise ValueError(
                f"coreset_size and max_clips exclude each other, got {self.coreset_size} and {self.max_clips}."
            )

    def _num_synthetic(self, is_target: torch.Tensor | None) -> int:
        if is_target is None:
            return 0
        num_target = int(is_target.sum())
        num_source = len(is_target) - num_target
        if self.memmixup_neighbors:
            return num_target * min(self.memmixup_neighbors, num_source)
        return int(num_source * self.smote_ratio - num_target) if self.smote_ratio else 0

    def _check_clips(self, num_clips: int, is_target: torch.Tensor | None) -> None:
        """Whether so many clips, of these domains, are enough for the settings."""
        if self.rescaling and num_clips < 2:
            raise ValueError(f"rescaling={self.rescaling!r} needs at least 2 clips in embeddings, got {num_clips}.")
        if is_target is None:
            return
        num_target = int(is_target.sum())
        num_source = len(is_target) - num_target
        if self.smote_ratio and num_target <= self.smote_neighbors:
            raise ValueError(
                f"smote_neighbors={self.smote_neighbors} needs at least {self.smote_neighbors + 1} clips of the target "
                f"domain, got {num_target}."
            )
        if self.smote_ratio and self._num_synthetic(is_target) <= 0:
            raise ValueError(
                f"smote_ratio={self.smote_ratio} must ask for more target clips than there are, "
                f"got {num_target} target and {num_source} source clips."
            )
        if self.memmixup_neighbors and not (num_target and num_source):
            raise ValueError(
                f"memmixup_neighbors={self.memmixup_neighbors} needs clips of both domains, "
                f"got {num_target} target and {num_source} source clips."
            )
        if self.num_target_neighbors == 0 and not num_source:
            raise ValueError(f"num_target_neighbors=0 needs source clips, got {num_target} target clips only.")
