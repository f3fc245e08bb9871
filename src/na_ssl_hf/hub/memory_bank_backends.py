"""This module holds the backends of a memory bank besides the nearest neighbours: what else can score a band.

A backend learns from the clips of one band, and scores each of them exactly as if it had never been among them. To add
one, write a class and enter it in `BackendName` and `BACKENDS`.

Letters: N queries, R clips, D channels, C rows of one chunk, F bands, B backends.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch

from .memory_bank_rescaling import LEAVE_ONE_OUT_ELEMENTS, SMALLEST_DENSITY
from .nearest_neighbors import Queries, References, nearest

BackendName = Literal["nearest", "two_domains", "mahalanobis", "pca"]
NEAREST: BackendName = "nearest"
FUSIONS = ("minimum", "mean")

# Where all clips are equal, a covariance has at least this variance in every direction.
SMALLEST_VARIANCE = 1e-12
# A share of the variance is held if it is missed by rounding only.
SHARE_TOLERANCE = 1e-12
# Scores whose spread is a smaller share of the largest one are equal but for rounding, which is not scaled up.
SMALLEST_SPREAD = 1e-6
# Rows that are mapped at a time, in float64.
CHUNK_ROWS = 512
# Halvings of the logarithm of an offset from a pole, and the smallest offset as a share of the gap between two poles.
# They find the offset to 12 digits, however near it is to the pole.
HALVINGS, SMALLEST_OFFSET = 48, 1e-30
# The smallest share of a clip's energy along one axis. It moves the clip by rounding only, and keeps every pole.
SMALLEST_ENERGY = 1e-24


@dataclass(frozen=True)
class Backend(ABC):
    """A way to score the clips of one band against normal ones.

    What it learns are tensors, named as the attributes of [`MemoryBank`] that hold them for all bands.

    Args:
        num_neighbors: The neighbours that are averaged, where there are any.
        explained_variance: The share of the variance that counts as normal, where it is asked for.

    Attributes:
        name: The entry of `backend` in [`MemoryBank`] that asks for it.
        knows_domains: Whether it needs the domains of the clips.
    """

    num_neighbors: int = 1
    explained_variance: float = 0.95

    name: ClassVar[BackendName]
    knows_domains: ClassVar[bool] = False

    @abstractmethod
    def check(self, num_source: int, num_target: int) -> None:
        """Raise ValueError if there are too few clips, all of which are source ones where domains are not used."""

    @abstractmethod
    def state(self, num_bands: int, dim: int) -> dict[str, tuple[int, ...]]:
        """Return the name and the shape of everything that is learned in all bands together."""

    @abstractmethod
    def learn(self, clips: References, is_target: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Learn from the R clips of one band, and return the tensors that `state` names."""

    @abstractmethod
    def apply(
        self,
        queries: Queries,
        clips: References,
        is_target: torch.Tensor | None,
        learned: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Score the queries of one band, `(N,)` float32. A higher score is more anomalous.

        Args:
            queries: The N queries.
            clips: The R clips that `learned` belongs to.
            is_target: `(R,)` bool with `knows_domains`.
            learned: What `learn` returned.
        """

    @abstractmethod
    def leave_one_out(self, clips: References, is_target: torch.Tensor | None) -> torch.Tensor:
        """Score every clip of one band, `(R,)` float32, as `learn` and `apply` score it without itself."""


class TwoDomains(Backend):
    """The smaller of the distances to source and to target clips, each divided by its median between those clips.

    The two domains then weigh the same, although one has many clips close together and the other a few far apart.
    """

    name = "two_domains"
    knows_domains = True
    # Without one of its clips, a domain needs two for a distance between them.
    least_of_each: ClassVar[int] = 3

    def check(self, num_source: int, num_target: int) -> None:
        if min(num_source, num_target) < self.least_of_each:
            raise ValueError(
                f"`backend='two_domains'` needs at least {self.least_of_each} clips of each domain, "
                f"got {num_source} source and {num_target} target clips."
            )

    def state(self, num_bands: int, dim: int) -> dict[str, tuple[int, ...]]:
        return {"domain_medians_": (num_bands, 2)}

    def learn(self, clips: References, is_target: torch.Tensor | None) -> dict[str, torch.Tensor]:
        medians = []
        for domain in _domains(clips, is_target):
            distances, _ = nearest(_left_out(domain), domain, min(self.num_neighbors, len(domain.vectors) - 1))
            medians.append(_median(distances.double().mean(dim=1)[None], len(distances)))
        return {"domain_medians_": torch.cat(medians).float()}

    def apply(
        self,
        queries: Queries,
        clips: References,
        is_target: torch.Tensor | None,
        learned: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        scores = [
            self._mean_distance(queries, domain) / median.clamp(min=SMALLEST_DENSITY)
            for domain, median in zip(_domains(clips, is_target), learned["domain_medians_"], strict=True)
        ]
        return torch.minimum(*scores)

    def leave_one_out(self, clips: References, is_target: torch.Tensor | None) -> torch.Tensor:
        assert is_target is not None
        domains, medians = _domains(clips, is_target), self.learn(clips, is_target)["domain_medians_"]
        scores = torch.empty(len(is_target), device=is_target.device)
        for index, is_own in enumerate((~is_target, is_target)):
            own, other = domains[index], domains[1 - index]
            queries = _left_out(own)
            to_own = self._mean_distance(queries, own) / self._medians_without(own).clamp(min=SMALLEST_DENSITY)
            to_other = self._mean_distance(replace(queries, leave_one_out=False), other)
            scores[is_own] = torch.minimum(to_own, to_other / medians[1 - index].clamp(min=SMALLEST_DENSITY))
        return scores

    def _mean_distance(self, queries: Queries, domain: References) -> torch.Tensor:
        available = len(domain.vectors) - queries.leave_one_out
        return nearest(queries, domain, min(self.num_neighbors, available))[0].mean(dim=1)

    def _medians_without(self, domain: References) -> torch.Tensor:
        """Return the median distance `(R,)` between the clips of a domain without each of its R clips."""
        size = len(domain.vectors)
        count = min(self.num_neighbors, size - 2)
        distances, neighbors = nearest(_left_out(domain), domain, count + 1)  # (R, count + 1)
        distances = distances.double()
        # The mean distance of each clip to its nearest ones, and what it becomes without one of them.
        mean = distances[:, :count].mean(dim=1)  # (R,)
        without = (distances.sum(dim=1, keepdim=True) - distances[:, :count]) / count  # (R, count)
        medians = []
        chunk_rows = max(1, LEAVE_ONE_OUT_ELEMENTS // size)
        for start in range(0, size, chunk_rows):
            rows = mean.repeat(min(chunk_rows, size - start), 1)  # (C, R), one row for each clip that is left out
            clip, place = ((neighbors[:, :count] >= start) & (neighbors[:, :count] < start + len(rows))).nonzero(
                as_tuple=True
            )
            rows[neighbors[clip, place] - start, clip] = without[clip, place]
            rows.diagonal(start).fill_(torch.inf)
            medians.append(_median(rows, size - 1))
        return torch.cat(medians).float()


class DistanceToCenter(Backend):
    """The length of a linear map of the difference to the mean clip: `||map (x - center)||`.

    Subclasses say which map. All sums are float64.
    """

    map_name: ClassVar[str]
    least_clips: ClassVar[int] = 3

    def check(self, num_source: int, num_target: int) -> None:
        if num_source + num_target < self.least_clips:
            raise ValueError(
                f"`backend={self.name!r}` needs at least {self.least_clips} clips in embeddings, "
                f"got {num_source + num_target}."
            )

    def state(self, num_bands: int, dim: int) -> dict[str, tuple[int, ...]]:
        return {"center_": (num_bands, dim), self.map_name: (num_bands, dim, dim)}

    def learn(self, clips: References, is_target: torch.Tensor | None) -> dict[str, torch.Tensor]:
        scatter = _Scatter.of(clips.vectors)
        return {"center_": scatter.center.float(), self.map_name: self._map(scatter).float()}

    def apply(
        self,
        queries: Queries,
        clips: References,
        is_target: torch.Tensor | None,
        learned: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        center, linear_map = learned["center_"].double(), learned[self.map_name].double()
        mapped = [(rows.double() - center) @ linear_map.T for rows in queries.vectors.split(CHUNK_ROWS)]  # (C, D) each
        return finite_float32(torch.cat([torch.linalg.vector_norm(rows, dim=1) for rows in mapped]))

    def leave_one_out(self, clips: References, is_target: torch.Tensor | None) -> torch.Tensor:
        squares = self._squares_without(_Scatter.of(clips.vectors), clips.vectors.double())
        return finite_float32(squares.clamp(min=0.0).sqrt())

    @abstractmethod
    def _map(self, scatter: "_Scatter") -> torch.Tensor:
        """Return the map `(D, D)` float64."""

    @abstractmethod
    def _squares_without(self, scatter: "_Scatter", vectors: torch.Tensor) -> torch.Tensor:
        """Return the squared score `(R,)` float64 of every clip, with center and map made without it."""


class Mahalanobis(DistanceToCenter):
    """The Mahalanobis distance `sqrt((x - m)' S^-1 (x - m))` to the mean m of the clips.

    The covariance S of R clips is shrunk towards a multiple of the identity by the oracle approximating shrinkage (OAS;
    Chen et al., IEEE Transactions on Signal Processing 2010), so that R may be smaller than D. The covariance without
    one clip differs from S by one outer product and other shrinkage, whose inverse has a closed form.
    """

    name = "mahalanobis"
    map_name = "whitening_"

    def _map(self, scatter: "_Scatter") -> torch.Tensor:
        values = scatter.values
        scale, floor = _shrunk(values.sum(), values.square().sum(), scatter.num_clips, len(scatter.center))
        return scatter.axes @ ((scale * values + floor).rsqrt()[:, None] * scatter.axes.T)

    def _squares_without(self, scatter: "_Scatter", vectors: torch.Tensor) -> torch.Tensor:
        values, size = scatter.values, scatter.num_clips
        # Without clip i the scatter A becomes A - c z z', and x_i - m becomes c z, where z = x_i - m with all clips.
        factor = size / (size - 1)
        squares = (vectors - scatter.center).matmul(scatter.axes).square()  # (R, D)
        energy, weighted = squares.sum(dim=1), squares @ values
        trace = (values.sum() - factor * energy).clamp(min=0.0)
        trace_of_square = values.square().sum() - 2 * factor * weighted + (factor * energy).square()
        scale, floor = _shrunk(trace, trace_of_square.clamp(min=0.0), size - 1, len(scatter.center))  # (R,) each
        form = (squares / (scale[:, None] * values + floor[:, None])).sum(dim=1)
        # Sherman and Morrison; the denominator is a ratio of determinants, above 0.
        removed = (scale * factor * form).clamp(max=1.0 - SHARE_TOLERANCE)
        return factor**2 * form / (1.0 - removed)


class PrincipalComponents(DistanceToCenter):
    """The distance to the plane of the first principal components, which hold a share of the variance of the clips.

    Without one clip the eigenvalues are the roots of a secular equation between those of all clips (Golub, SIAM Review
    1973), of which only as many are found as there are components.
    """

    name = "pca"
    map_name = "residual_map_"

    def _map(self, scatter: "_Scatter") -> torch.Tensor:
        total = scatter.values.sum()
        # A component belongs to the plane if those before it hold less than the share.
        before = scatter.values.cumsum(dim=0) - scatter.values
        plane = scatter.axes[:, before < self._threshold(total, total)]  # (D, k)
        return torch.eye(len(scatter.center), dtype=torch.float64, device=total.device) - plane @ plane.T

    def _squares_without(self, scatter: "_Scatter", vectors: torch.Tensor) -> torch.Tensor:
        size, total = scatter.num_clips, scatter.values.sum()
        factor = size / (size - 1)
        squares = (vectors - scatter.center).matmul(scatter.axes).square()  # (R, D)
        energy = squares.sum(dim=1)
        rank = min(size - 1, len(scatter.center))
        values, squares = scatter.values[:rank], squares[:, :rank].clone()
        squares.clamp_(min=SMALLEST_ENERGY * total / size)
        threshold = self._threshold(total - factor * energy, total)  # (R,)
        held, left = torch.zeros_like(energy), factor**2 * energy
        for component in range(rank):
            is_needed = held < threshold
            if not is_needed.any():
                break
            root, length = _downdated_component(values, squares[is_needed], factor, component)
            held[is_needed] += root
            left[is_needed] -= length
        return left

    def _threshold(self, total: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        return self.explained_variance * total - SHARE_TOLERANCE * largest


BACKENDS: dict[BackendName, type[Backend]] = {
    backend.name: backend for backend in (TwoDomains, Mahalanobis, PrincipalComponents)
}


def backend_names(backend: Any) -> tuple[BackendName, ...]:
    """Return the names that `backend` of [`MemoryBank`], one name or several, asks for.

    Raises:
        ValueError: There is none, an unknown one, or one twice.
    """
    names = backend if isinstance(backend, (list, tuple)) else (backend,)
    known = get_args(BackendName)
    if not names or not all(isinstance(name, str) and name in known for name in names) or len(set(names)) < len(names):
        raise ValueError(f"`backend` must be one or several different ones of {known}, got {backend!r:.200}.")
    return tuple(names)


def scales(self_scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of leave-one-out scores over the last axis, float64; see `_spread`."""
    scores = self_scores.double()
    return scores.mean(dim=-1), _spread(scores.var(dim=-1, correction=0), scores)


def scales_of_others(self_scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `scales` of the other clips for every clip, `(..., R)` each.

    A clip that took part in its own standard would look less odd than a new one: of R clips none can be more than
    `sqrt(R - 1)` standard deviations away.
    """
    scores = self_scores.double()
    mean, others = scores.mean(dim=-1, keepdim=True), scores.shape[-1] - 1
    centered = scores - mean
    squares = centered.square()
    shift = centered / others
    variance = (squares.sum(dim=-1, keepdim=True) - squares) / others - shift.square()
    return mean - shift, _spread(variance.clamp(min=0.0), scores)


def fused(scores: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor, fusion: str) -> torch.Tensor:
    """Fuse the scores of backends `(B, N)` in one band to `(N,)` float32.

    Args:
        scores: The scores of each backend.
        mean, spread: `(B, 1)` or `(B, N)`, by which they are standardised.
        fusion: `"minimum"` or `"mean"` of what they then are.
    """
    standardised = (scores.double() - mean) / spread  # (B, N)
    return finite_float32(standardised.amin(dim=0) if fusion == "minimum" else standardised.mean(dim=0))


def finite_float32(values: torch.Tensor) -> torch.Tensor:
    """Return values as float32; what lies beyond its range becomes its largest number."""
    limit = torch.finfo(torch.float32).max
    return values.clamp(-limit, limit).float()


@dataclass(frozen=True, eq=False)
class _Scatter:
    """The scatter `A = sum (x - m)(x - m)'` of the clips of one band, float64.

    Attributes:
        num_clips: R.
        center: `(D,)`, m.
        values: `(D,)`, the eigenvalues, largest first.
        axes: `(D, D)`, an eigenvector a column.
    """

    num_clips: int
    center: torch.Tensor
    values: torch.Tensor
    axes: torch.Tensor

    @classmethod
    def of(cls, vectors: torch.Tensor) -> "_Scatter":
        """Compute it from the clips `(R, D)`."""
        centered = vectors.double()
        center = centered.mean(dim=0)
        centered = centered - center
        values, axes = torch.linalg.eigh(centered.T @ centered)
        return cls(len(vectors), center, values.clamp(min=0.0).flip(0), axes.flip(1))


def _shrunk(
    trace: torch.Tensor, trace_of_square: torch.Tensor, num_clips: int, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a and b of the shrunk covariance `a A + b I` of clips with scatter A, by oracle approximating shrinkage.

    `trace` and `trace_of_square` are those of A and of `A A`, of one scatter or of several.
    """
    variance = trace / (num_clips * dim)
    mean_square = trace_of_square / (num_clips * dim) ** 2
    excess = (num_clips + 1) * (mean_square - variance.square() / dim)
    share = ((mean_square + variance.square()) / excess).where(excess > 0, 1.0).clamp(max=1.0)
    return (1.0 - share) / num_clips, (share * variance).clamp(min=SMALLEST_VARIANCE)


def _downdated_component(
    values: torch.Tensor, squares: torch.Tensor, factor: float, component: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find one principal component of `A - c z z'` for the differences z of several clips.

    Its eigenvalue is the root of `1 = c sum z_j^2 / (v_j - root)` between the eigenvalues v of A, and its product with
    `c z` has the square `1 / sum z_j^2 / (v_j - root)^2`. Offsets from the nearer of the two eigenvalues are
    bisected, because differences of the root and its pole would be rounded away.

    Args:
        values: `(r,)`, v, largest first.
        squares: `(C, r)`, above 0: the squares of z along the axes of A.
        factor: c.
        component: The number of the component, from 0.

    Returns:
        The eigenvalue and the square, `(C,)` each.
    """
    upper = values[component]
    lower = values[component + 1] if component + 1 < len(values) else torch.zeros_like(upper)
    half = (upper - lower) / 2

    def remainder(differences: torch.Tensor) -> torch.Tensor:
        return 1.0 - factor * (squares / differences).sum(dim=1)

    is_upper = remainder(values - upper + half) > 0  # (C,)
    pole = torch.where(is_upper, upper, lower)
    sign = torch.where(is_upper, 1.0, -1.0).double()
    distances = values - pole[:, None]  # (C, r)
    smallest = (half * SMALLEST_OFFSET).clamp(min=torch.finfo(torch.float64).tiny).log()
    low, high = smallest.expand_as(pole), torch.maximum(half.log(), smallest).expand_as(pole)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        # Below the upper pole the remainder falls towards it; above the lower pole it falls away from it.
        is_beyond = remainder(distances + (sign * middle.exp())[:, None]) * sign > 0
        low, high = torch.where(is_beyond, low, middle), torch.where(is_beyond, middle, high)
    offset = sign * ((low + high) / 2).exp()
    return pole - offset, 1.0 / (squares / (distances + offset[:, None]).square()).sum(dim=1)


def _spread(variance: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return the square root of the variance of scores over their last axis; 1 where they only differ by rounding."""
    largest = scores.abs().amax(dim=-1).reshape(*scores.shape[:-1], *[1] * (variance.ndim - scores.ndim + 1))
    spread = variance.sqrt()
    return spread.masked_fill(spread <= SMALLEST_SPREAD * largest, 1.0)


def _domains(clips: References, is_target: torch.Tensor | None) -> tuple[References, References]:
    """Return the source and the target clips."""
    assert is_target is not None
    source, target = (
        replace(clips, vectors=clips.vectors[chosen], squared_norms=clips.squared_norms[chosen])
        for chosen in (~is_target, is_target)
    )
    return source, target


def _left_out(domain: References) -> Queries:
    return Queries(domain.vectors, domain.squared_norms, leave_one_out=True)


def _median(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the median of the `count` smallest entries of each row, the mean of two where their number is even."""
    ordered = rows.sort(dim=1).values
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
