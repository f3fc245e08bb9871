"""This module holds the rescalings of a memory bank: how distances to references become the scores of one band.

A rescaling learns from the references alone. To add one, write a class and enter it in `RescalingName` and
`RESCALINGS`.

Letters: N queries, R references, F bands, k neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from .nearest_neighbors import (
    Metric,
    Queries,
    References,
    exact_distances,
    mean_of_finite,
    nearest,
    rank_weighted_density,
)

RescalingName = Literal["variance_min", "ratio", "difference", "lof"]

# References that are duplicates have density 0. With this floor an exact copy of one gets the ratio 0 instead of 0 / 0.
SMALLEST_DENSITY = 1e-12
# Densities whose variance is not above this are taken as constant, and alpha as 0.
SMALLEST_VARIANCE = 1e-12
# Elements of the float64 matrices of an exact leave-one-out, 160 MB each.
LEAVE_ONE_OUT_ELEMENTS = 20_000_000
# scikit-learn adds the same number to a mean reachability distance, which is 0 among duplicates.
SMALLEST_REACHABILITY = 1e-10


@dataclass(frozen=True)
class Rescaling(ABC):
    """A rescaling of the distances in one band.

    What it learns are tensors, named as the attributes of [`MemoryBank`] that hold them for all bands.

    Args:
        num_neighbors: The number of neighbours (`num_rescaling_neighbors` of the bank) that describe the density around
            a reference. There are fewer if the memory is smaller.
        decay: The decay of rank weights in [0, 1], which then replace `num_neighbors`, or `None`.

    Attributes:
        name: The value of `rescaling` in [`MemoryBank`] that asks for it.
        metric: The distance that the rescaling is defined on; `None` if it goes with every distance.
        least_clips: The number of clips that it needs.
        takes_decay: Whether it can use `decay`.
        per_reference: The names of the learned tensors `(R,)`.
        per_band: The names of the learned numbers.

    Raises:
        ValueError: `decay` is given to a rescaling that cannot use it.
    """

    num_neighbors: int
    decay: float | None = None

    name: ClassVar[RescalingName | None]
    metric: ClassVar[Metric | None] = None
    least_clips: ClassVar[int] = 2
    takes_decay: ClassVar[bool] = False
    per_reference: ClassVar[tuple[str, ...]] = ()
    per_band: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.decay is not None and not self.takes_decay:
            raise ValueError(f"`rescaling_decay` must be None with rescaling={self.name!r}, got {self.decay}.")

    def check(self, num_clips: int) -> None:
        """Raise ValueError if there are too few clips to learn from."""
        if num_clips < self.least_clips:
            raise ValueError(
                f"`rescaling={self.name!r}` needs at least {self.least_clips} clips in embeddings, got {num_clips}."
            )

    def state(self, num_bands: int, num_references: int) -> dict[str, tuple[int, ...]]:
        """Return the name and the shape of everything that is learned in all bands together."""
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self.per_reference, (num_bands, num_references))
        return shapes | dict.fromkeys(self.per_band, (num_bands,))

    @abstractmethod
    def learn(self, references: References) -> dict[str, torch.Tensor]:
        """Learn from the references of one band, and return the tensors that `state` names."""

    @abstractmethod
    def apply(
        self, queries: Queries, references: References, learned: Mapping[str, torch.Tensor], num_neighbors: int
    ) -> torch.Tensor:
        """Score the queries of one band, `(N,)` float32. A higher score is more anomalous.

        Args:
            queries: The N queries.
            references: The R references that `learned` belongs to.
            learned: What `learn` returned.
            num_neighbors: The number of smallest distances that are averaged.
        """

    def leave_one_out(
        self, references: References, learned: Mapping[str, torch.Tensor], num_neighbors: int
    ) -> torch.Tensor:
        """Score every reference of one band against all others, `(R,)`, as if it had never been in the memory.

        Here what was learned stays as it is; a rescaling that would have learned something else without the reference
        overrides this.
        """
        return self.apply(_as_queries(references), references, learned, num_neighbors)


class Plain(Rescaling):
    """Distances are averaged as they are."""

    name = None
    least_clips = 1

    def learn(self, references: References) -> dict[str, torch.Tensor]:
        return {}

    def apply(
        self, queries: Queries, references: References, learned: Mapping[str, torch.Tensor], num_neighbors: int
    ) -> torch.Tensor:
        return mean_of_finite(nearest(queries, references, num_neighbors)[0])


class LocalDensity(Rescaling):
    """Each distance is compared with `density_`: the mean distance `c_i` of its reference to the nearest others.

    Subclasses say how; the smallest results are averaged.
    """

    takes_decay = True
    per_reference = ("density_",)

    def learn(self, references: References) -> dict[str, torch.Tensor]:
        return {"density_": self._density(references, *self._neighbors(references))}

    def apply(
        self, queries: Queries, references: References, learned: Mapping[str, torch.Tensor], num_neighbors: int
    ) -> torch.Tensor:
        return mean_of_finite(nearest(queries, self._rescaled(references, learned), num_neighbors)[0])

    def leave_one_out(
        self, references: References, learned: Mapping[str, torch.Tensor], num_neighbors: int
    ) -> torch.Tensor:
        """Score every reference against all others, with the densities that they have without it, `(R,)` float32."""
        size = len(references.vectors)
        if self.decay is not None or references.index is not None or references.owner is not None or size < 3:
            return super().leave_one_out(references, learned, num_neighbors)
        count = min(self.num_neighbors, size - 2)
        distances, neighbors = nearest(_as_queries(references), references, count + 1)  # (R, count + 1)
        # The density of each reference, and what it becomes when one of its neighbours is left out.
        density = distances[:, :count].mean(dim=1).double()  # (R,)
        without = (distances.sum(dim=1, keepdim=True).double() - distances[:, :count]) / count  # (R, count)
        scores = []
        chunk_rows = max(1, LEAVE_ONE_OUT_ELEMENTS // size)
        for start, plain in exact_distances(references, chunk_rows):
            stop = start + len(plain)
            densities = density.repeat(stop - start, 1)  # (C, R), one row for each reference that is left out
            reference, place = ((neighbors[:, :count] >= start) & (neighbors[:, :count] < stop)).nonzero(as_tuple=True)
            densities[neighbors[reference, place] - start, reference] = without[reference, place]
            learned_without = self._learned_without(densities, distances.double(), neighbors, start)
            if set(learned_without) != set(learned):
                # A subclass learns more than is known to change.
                return super().leave_one_out(references, learned, num_neighbors)
            terms = self._rescaled(references, learned_without)
            rescaled = plain if terms.subtract is None else plain - terms.subtract  # (C, R)
            rescaled = rescaled if terms.divide is None else rescaled / terms.divide
            rescaled.diagonal(start).fill_(torch.inf)
            nearest_others = rescaled.topk(min(num_neighbors, size - 1), dim=1, largest=False).values
            scores.append(nearest_others.mean(dim=1))
        return torch.cat(scores).float()

    def _learned_without(
        self, densities: torch.Tensor, near_distances: torch.Tensor, neighbors: torch.Tensor, start: int
    ) -> dict[str, torch.Tensor]:
        """Return what is learned without each of the references `start` to `start + C`, one row for each of them.

        Args:
            densities: `(C, R)`, the densities of all references without it.
            near_distances, neighbors: `(R, k)`, distances and positions of the nearest others of every reference.
            start: The first of the C references.
        """
        return {"density_": densities}

    @abstractmethod
    def _rescaled(self, references: References, learned: Mapping[str, torch.Tensor]) -> References:
        """Return the references with what is subtracted from, or divides, the distances to them."""

    def _neighbors(self, references: References) -> tuple[torch.Tensor, torch.Tensor]:
        """Return distances and positions `(R, k)` of the neighbours; only of the nearest one with rank weights."""
        count = min(self.num_neighbors, len(references.vectors) - 1) if self.decay is None else 1
        return nearest(_as_queries(references), references, count)

    def _density(self, references: References, distances: torch.Tensor, neighbors: torch.Tensor) -> torch.Tensor:
        if self.decay is None:
            return mean_of_finite(distances)  # (R,)
        return rank_weighted_density(references, float(self.decay))  # (R,)


class DensityRatio(LocalDensity):
    """Distances are divided by the density: `D(x, y_i) / c_i` (Wilkinghoff et al., 2025)."""

    name = "ratio"

    def _rescaled(self, references: References, learned: Mapping[str, torch.Tensor]) -> References:
        return replace(references, divide=learned["density_"].clamp(min=SMALLEST_DENSITY))


class DensityDifference(LocalDensity):
    """The density is subtracted from distances: `D(x, y_i) - c_i` (Wilkinghoff et al., 2025)."""

    name = "difference"

    def _rescaled(self, references: References, learned: Mapping[str, torch.Tensor]) -> References:
        return replace(references, subtract=learned["density_"])


class VarianceMin(LocalDensity):
    """A share of the density is subtracted from distances: `D(x, y_i) - alpha * c_i` (Matsumoto et al., 2025).

    The share minimises the variance over the references: with `u` the distance of a reference to the nearest other one
    and `v` the density of that one, `alpha = cov(u, v) / var(v)`.
    """

    name = "variance_min"
    per_band = ("alpha_",)

    def learn(self, references: References) -> dict[str, torch.Tensor]:
        distances, neighbors = self._neighbors(references)
        density = self._density(references, distances, neighbors)
        first = distances[:, 0].double()
        neighbor_density = density[neighbors[:, 0]].double()
        return {"density_": density, "alpha_": _least_variance_share(first, neighbor_density)}

    def _rescaled(self, references: References, learned: Mapping[str, torch.Tensor]) -> References:
        return replace(references, subtract=learned["alpha_"] * learned["density_"])

    def _learned_without(
        self, densities: torch.Tensor, near_distances: torch.Tensor, neighbors: torch.Tensor, start: int
    ) -> dict[str, torch.Tensor]:
        rows = torch.arange(len(densities), device=densities.device)
        nearest_other = neighbors[:, 0].repeat(len(rows), 1)  # (C, R)
        first = near_distances[:, 0].repeat(len(rows), 1)
        # Where the nearest one is left out, the second takes its place.
        reference = ((neighbors[:, 0] >= start) & (neighbors[:, 0] < start + len(rows))).nonzero()[:, 0]
        left_out = neighbors[reference, 0] - start
        nearest_other[left_out, reference] = neighbors[reference, 1]
        first[left_out, reference] = near_distances[reference, 1]
        is_left_out = torch.zeros_like(first, dtype=torch.bool)
        is_left_out[rows, rows + start] = True
        alpha = _least_variance_share(first, densities.gather(1, nearest_other), is_left_out)  # (C,)
        return {"density_": densities, "alpha_": alpha[:, None]}


class LocalOutlierFactor(Rescaling):
    """The local outlier factor (Breunig et al., SIGMOD 2000), on Euclidean distances.

    The score is the mean density of the nearest references, divided by the density around the query. Here
    `density_` is the local reachability density, large where the memory is dense.
    """

    name = "lof"
    metric = "euclidean"
    per_reference = ("density_", "k_distance_")

    def learn(self, references: References) -> dict[str, torch.Tensor]:
        distances, neighbors = self._neighbors(_as_queries(references), references)
        k_distance = distances[:, -1]
        return {"density_": _reachability_density(distances, neighbors, k_distance), "k_distance_": k_distance}

    def apply(
        self, queries: Queries, references: References, learned: Mapping[str, torch.Tensor], num_neighbors: int
    ) -> torch.Tensor:
        distances, neighbors = self._neighbors(queries, references)
        density = _reachability_density(distances, neighbors, learned["k_distance_"])
        return learned["density_"][neighbors].mean(dim=1) / density

    def _neighbors(self, queries: Queries, references: References) -> tuple[torch.Tensor, torch.Tensor]:
        return nearest(queries, references, min(self.num_neighbors, len(references.vectors) - 1))  # (N, k)


RESCALINGS: dict[RescalingName | None, type[Rescaling]] = {
    rescaling.name: rescaling for rescaling in (Plain, VarianceMin, DensityRatio, DensityDifference, LocalOutlierFactor)
}


def _least_variance_share(
    first: torch.Tensor, neighbor_density: torch.Tensor, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `cov(u, v) / var(v)` over the last axis, without `ignored` entries; 0 where v is constant."""
    counts = torch.ones_like(first) if ignored is None else (~ignored).to(first.dtype)
    total = counts.sum(dim=-1, keepdim=True)
    centered = (neighbor_density - (neighbor_density * counts).sum(dim=-1, keepdim=True) / total) * counts
    variance = (centered.square() / total).sum(dim=-1)
    centered_first = first - (first * counts).sum(dim=-1, keepdim=True) / total
    covariance = (centered * centered_first / total).sum(dim=-1)
    return torch.where(variance <= SMALLEST_VARIANCE, 0.0, covariance / variance)


def _as_queries(references: References) -> Queries:
    return Queries(references.vectors, references.squared_norms, leave_one_out=True)


def _reachability_density(distances: torch.Tensor, neighbors: torch.Tensor, k_distance: torch.Tensor) -> torch.Tensor:
    """Return the inverse mean reachability distance `(N,)` from distances and positions of neighbours `(N, k)`."""
    return 1.0 / (torch.maximum(distances, k_distance[neighbors]).mean(dim=1) + SMALLEST_REACHABILITY)
