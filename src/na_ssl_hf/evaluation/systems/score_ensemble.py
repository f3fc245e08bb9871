"""Several scores of a clip, by several frontends and seeds, become one; a higher score is more anomalous everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

Scores = Mapping[str, "np.ndarray | torch.Tensor"]


@dataclass
class ScoreEnsemble:
    """An ensemble fuses the scores of its members (frontends) for one machine, as in Fujimura et al. (DCASE 2026).

    The seeds of a member are averaged first; members are then fused. Letters: S seeds, M clips, N normal clips.

    Args:
        weights: member -> weight; weights are at least 0, one of them is above, and they need not sum to 1.
        fusion: `"mean"`, weighted, or `"minimum"` over the members of weight above 0 (an anomaly must convince all).
        z_normalize: first scale the scores of each member and seed by mean and standard deviation (ddof 0) of its own
            self scores, so that no member counts more because its distances are larger. It needs `fit`.
        labelled_members: members that serve machines whose recordings carry attribute labels, while the others serve
            the machines without; empty where all members serve every machine.

    Attributes:
        scale_: member -> mean and standard deviation, each `(S,)`, after `fit`; a spread of 0 counts as 1.

    Raises:
        ValueError: there is no member, a weight is negative or not finite, all weights for a kind of machine are 0, the
            fusion is unknown, or labelled members are no members.
    """

    weights: Mapping[str, float]
    fusion: Literal["mean", "minimum"] = "mean"
    z_normalize: bool = False
    labelled_members: tuple[str, ...] = ()
    scale_: dict[str, tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.fusion not in ("mean", "minimum"):
            raise ValueError(f"fusion must be 'mean' or 'minimum', got {self.fusion!r}")
        for member, weight in self.weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"weights must be finite and at least 0, got {weight!r} for {member!r}")
        unknown = sorted(set(self.labelled_members) - set(self.weights))
        if isinstance(self.labelled_members, str) or unknown:
            raise ValueError(f"labelled_members must be among {sorted(self.weights)}, got {self.labelled_members!r}")
        for has_attributes in (True, False):
            if not self.members(has_attributes):
                kind = (
                    "" if not self.labelled_members else f" for machines with{'' if has_attributes else 'out'} labels"
                )
                raise ValueError(f"weights must hold at least one member of weight above 0{kind}, got {self.weights!r}")

    def members(self, has_attributes: bool = False) -> tuple[str, ...]:
        """Return the members of weight above 0 that score a machine with or without attribute labels."""
        return tuple(
            member
            for member, weight in self.weights.items()
            if weight > 0 and (not self.labelled_members or (member in self.labelled_members) == has_attributes)
        )

    def fit(self, self_scores: Scores, has_attributes: bool = False) -> ScoreEnsemble:
        """Learn the scales from the leave-one-out scores of normal clips; needed only with `z_normalize`.

        Args:
            self_scores: member -> `(N,)`, or `(S, N)` for S seeds.
            has_attributes: whether the machine's recordings carry attribute labels.

        Raises:
            ValueError: as for `score`.
        """
        arrays = self._checked("self_scores", self_scores, has_attributes)
        self.scale_ = {}
        for member, scores in arrays.items():
            spread = scores.std(axis=1)
            # Equal scores differ by rounding only; scaling that up would drown the other members.
            negligible = spread <= 1e-12 * np.abs(scores).max(axis=1)
            self.scale_[member] = scores.mean(axis=1), np.where(negligible, 1.0, spread)
        return self

    def score(self, scores: Scores, has_attributes: bool = False) -> np.ndarray:
        """Fuse scores to `(M,)` float64, comparable with `score(self_scores)`, from which a threshold can be fitted.

        Args:
            scores: member -> `(M,)`, or `(S, M)` for S seeds in the order of `fit`. Members that do not serve the
                machine may be missing.
            has_attributes: whether the machine's recordings carry attribute labels; matters with `labelled_members`.

        Raises:
            ValueError: a member is missing or unknown, scores are NaN or infinite, members have unequal numbers of
                clips, or, with `z_normalize`, the ensemble is not fitted or was fitted with another number of seeds.
        """
        arrays = self._checked("scores", scores, has_attributes)
        if self.z_normalize:
            arrays = {member: self._normalized(member, array) for member, array in arrays.items()}
        of_members = np.stack([array.mean(axis=0) for array in arrays.values()])  # (members, M)
        if self.fusion == "minimum":
            return of_members.min(axis=0)
        return np.average(of_members, axis=0, weights=[self.weights[member] for member in arrays])

    def _normalized(self, member: str, scores: np.ndarray) -> np.ndarray:
        if member not in getattr(self, "scale_", {}):
            raise ValueError(f"z_normalize=True needs fit with the self scores of {member!r} first")
        mean, spread = self.scale_[member]
        if len(mean) != len(scores):
            raise ValueError(
                f"scores of {member!r} must have {len(mean)} seeds like the fitted ones, got {len(scores)}"
            )
        return (scores - mean[:, None]) / spread[:, None]  # (S, M)

    def _checked(self, name: str, scores: Scores, has_attributes: bool) -> dict[str, np.ndarray]:
        """Return `(S, M)` float64 for the members that serve the machine, in the order of the weights."""
        unknown = sorted(set(scores) - set(self.weights))
        if unknown:
            raise ValueError(f"{name} must hold members among {sorted(self.weights)}, got {unknown}")
        arrays = {}
        for member in self.members(has_attributes):
            if member not in scores:
                raise ValueError(f"{name} must hold member {member!r}, got {sorted(scores)}")
            array = torch.as_tensor(scores[member]).detach().to("cpu", torch.float64).numpy()
            if array.ndim == 1:
                array = array[None]
            if array.ndim != 2 or 0 in array.shape:
                raise ValueError(f"{name} of {member!r} must have shape (M,) or (S, M), got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} of {member!r} must be finite, got NaN or infinite values")
            arrays[member] = array
        lengths = {member: array.shape[1] for member, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{name} must have one entry per clip for every member, got {lengths}")
        return arrays
