"""This module finds the nearest references of one band, exactly or with the help of an approximate index.

Letters: N queries, R references, D channels, C rows of one chunk, k candidates.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

Metric = Literal["cosine", "euclidean"]
IndexKind = Literal["flat", "ivf", "hnsw"]
INDEX_KINDS = (None, "flat", "ivf", "hnsw")

# A chunk of 512 rows against 100,000 references needs a buffer of 200 MB; with fewer rows the matrix product is limited
# by memory bandwidth.
CHUNK_ROWS, CHUNK_ELEMENTS = 512, 512 * 100_000
# The float32 matrix product is only precise enough to rank the references, so that two candidates more than asked are
# kept and measured exactly.
SPARE_CANDIDATES = 2
# An index does not know the rescaling and compresses its vectors. Both errors are made up for by more candidates.
SPARE_INDEX_CANDIDATES, RESCALED_INDEX_CANDIDATES = 15, 48
# Rank weights below this share of the first weight are left out of a rank-weighted mean.
SMALLEST_RANK_WEIGHT = 1e-9
# Settings of the IVF index. Many short lists follow the data better than few long ones. The first line holds the number
# of lists per sqrt(R), the share of lists that a search reads, and the number that it always reads; the second line
# holds the clips per list and the rounds of the clustering.
LISTS_PER_ROOT, PROBED_SHARE, LEAST_PROBED = 6, 1 / 60, 16
CLIPS_PER_LIST, CLUSTERING_ROUNDS = 40, 5
# Settings of the HNSW index: links of a vector, and breadth of the search while building and scoring.
HNSW_LINKS, HNSW_BUILD_BREADTH, HNSW_SEARCH_BREADTH = 32, 80, 128


class ApproximateIndex:
    """A FAISS index (Douze et al., 2024) over the references of one band, which proposes the nearest ones.

    - `"flat"` compares with every reference, and therefore proposes the true nearest ones.
    - `"ivf"` (Jégou et al., 2011) compares with the references in the nearest of about `6 sqrt(R)` clusters, and stores
      one bit for each channel (RaBitQ; Gao and Long, 2024).
    - `"hnsw"` (Malkov and Yashunin, 2018) walks a graph, and stores one byte for each channel.

    All seeds are fixed, so that equal memories give equal indexes.

    Args:
        memory: The references, `(R, D)` float32.
        metric: `"cosine"` (for unit or zero vectors, by inner product) or `"euclidean"`.
        kind: The kind of index, see above.

    Raises:
        ValueError: FAISS is not installed.
    """

    def __init__(self, memory: torch.Tensor, metric: Metric, kind: IndexKind) -> None:
        faiss = import_faiss()
        vectors = memory.cpu().contiguous().numpy()
        num_references, dim = vectors.shape
        measure = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
        self.device = memory.device
        # FAISS has no types.
        self.index: Any
        if kind == "flat":
            self.index = faiss.IndexFlat(dim, measure)
        elif kind == "hnsw":
            self.index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, HNSW_LINKS, measure)
            self.index.hnsw.efConstruction = HNSW_BUILD_BREADTH
            self.index.hnsw.efSearch = HNSW_SEARCH_BREADTH
        else:
            num_lists = max(1, min(LISTS_PER_ROOT * math.isqrt(num_references), num_references // 8))
            # FAISS refers to the coarse quantiser without owning it, so that this object must keep it alive.
            self.lists = faiss.IndexFlat(dim, measure)
            self.index = faiss.IndexIVFRaBitQ(self.lists, dim, num_lists, measure)
            self.index.nprobe = min(num_lists, max(LEAST_PROBED, math.ceil(num_lists * PROBED_SHARE)))
            # Small banks are legal; without this setting FAISS would print that it prefers 39 points for each list.
            self.index.cp.min_points_per_centroid = 1
            self.index.cp.max_points_per_centroid = CLIPS_PER_LIST
            self.index.cp.niter = CLUSTERING_ROUNDS
            self.index.cp.seed = 0
        self.index.train(vectors)
        self.index.add(vectors)

    def search(self, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Propose `count` references for each of the rows `(N, D)`.

        Returns:
            The proposed references `(N, count)` long, ascending, and a bool mask `(N, count)` that is False where the
            index found fewer than `count`.
        """
        _, found = self.index.search(rows.cpu().contiguous().numpy(), count)
        candidates = torch.from_numpy(found).to(self.device).sort(dim=1).values  # -1 stands for "not found"
        return candidates.clamp(min=0), candidates >= 0


def import_faiss() -> Any:
    """Return the faiss module.

    Raises:
        ValueError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError("`index` needs faiss (pip install faiss-cpu), which is not installed.") from error
    return faiss


@dataclass(frozen=True, eq=False)
class Queries:
    """The clips of one band that are compared with references.

    Attributes:
        vectors: `(N, D)` float32.
        squared_norms: `(N,)` float32.
        leave_one_out: Query n is the clip of reference n, and is not compared with its own entry.
    """

    vectors: torch.Tensor
    squared_norms: torch.Tensor
    leave_one_out: bool = False


@dataclass(frozen=True, eq=False)
class References:
    """The references of one band, and what decides how far away each of them is.

    Attributes:
        vectors: `(R, D)` float32.
        squared_norms: `(R,)` float32.
        metric: `"cosine"` stands for `(1 - x.y) / 2`, `"euclidean"` for `||x - y||`.
        hidden: `(R,)` bool, the references that are infinitely far from every query.
        owner: `(R,)` long, the query that a reference belongs to when one is left out; `None` if reference n belongs to
            query n.
        subtract: `(R,)` float32, subtracted from the distances to each reference.
        divide: `(R,)` float32, by which the distances to each reference are divided.
        index: An index that proposes the candidates instead of the exact search. It cannot be combined with `hidden`
            and `owner`.
    """

    vectors: torch.Tensor
    squared_norms: torch.Tensor
    metric: Metric
    hidden: torch.Tensor | None = None
    owner: torch.Tensor | None = None
    subtract: torch.Tensor | None = None
    divide: torch.Tensor | None = None
    index: ApproximateIndex | None = None

    @property
    def is_rescaled(self) -> bool:
        """Whether distances are changed before they are compared."""
        return self.subtract is not None or self.divide is not None

    def without(self, hidden: torch.Tensor | None) -> "References":
        """Return these references, with `hidden` `(R,)` infinitely far from every query, if it is given."""
        return self if hidden is None else replace(self, hidden=hidden)

    def rescale_(self, distances: torch.Tensor, candidates: torch.Tensor | None = None) -> None:
        """Rescale in place distances `(C, R)` to all references, or `(C, k)` to the candidates `(C, k)`."""
        if self.subtract is not None:
            distances.sub_(self.subtract if candidates is None else self.subtract[candidates])
        if self.divide is not None:
            distances.div_(self.divide if candidates is None else self.divide[candidates])


def nearest(queries: Queries, references: References, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the `count` references with the smallest rescaled distance to each query.

    If several references are equally far, the first one wins. The extra memory is one chunk of rows times R.

    Args:
        queries: The N queries.
        references: The R references.
        count: The number of neighbours; fewer are returned if the memory is smaller.

    Returns:
        The rescaled distances `(N, k)` float32, ascending (infinite for references that are left out), and their
        references `(N, k)` long.
    """
    num_queries, num_references = len(queries.vectors), len(references.vectors)
    count = min(count, num_references)
    device = references.vectors.device
    best = torch.empty(num_queries, count, device=device)
    best_index = torch.empty(num_queries, count, dtype=torch.long, device=device)
    is_exact = references.index is None
    chunk_rows = max(1, min(num_queries, CHUNK_ROWS, CHUNK_ELEMENTS // num_references if is_exact else CHUNK_ROWS))
    buffer = torch.empty(chunk_rows if is_exact else 0, num_references, device=device)
    for start in range(0, num_queries, chunk_rows):
        rows = queries.vectors[start : start + chunk_rows]  # (C, D)
        norms = queries.squared_norms[start : start + chunk_rows, None]  # (C, 1)
        first_own = start if queries.leave_one_out else None
        if references.index is None:
            candidates, reachable = _ranked_candidates(rows, norms, references, count, first_own, buffer[: len(rows)])
        else:
            candidates, reachable = _proposed_candidates(rows, references, references.index, count, first_own)
        distances = _measured_distances(rows, norms, references, candidates)
        distances.masked_fill_(~reachable, torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        best[start : start + len(rows)] = distances[:, :count]
        best_index[start : start + len(rows)] = candidates.gather(1, order)[:, :count]
    return best, best_index


def rank_weighted_density(references: References, decay: float) -> torch.Tensor:
    """Compute the weighted mean distance of every reference to all others.

    The others are ranked, nearest first, and weighted by `decay**k / sum decay**k`. This is global weighted rank
    pooling (Kolesnikov and Lampert, ECCV 2016) of the distances: `decay=0` gives the nearest one, `decay=1` the plain
    mean.

    Args:
        references: At least two references, whose plain distances are used.
        decay: A number in [0, 1].

    Returns:
        `(R,)` float32.
    """
    num_references = len(references.vectors)
    count = num_references - 1
    if 0.0 < decay < 1.0:
        count = min(count, math.ceil(math.log(SMALLEST_RANK_WEIGHT) / math.log(decay)))
    device = references.vectors.device
    weights = torch.pow(torch.tensor(decay, dtype=torch.float64), torch.arange(count)).to(device)  # (k,)
    weights /= weights.sum()
    chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_ELEMENTS // num_references))
    densities = []
    for start, distances in exact_distances(references, chunk_rows):
        distances.diagonal(start).fill_(torch.inf)
        densities.append(distances.topk(count, dim=1, largest=False, sorted=True).values @ weights)
    return torch.cat(densities).float()


def exact_distances(references: References, chunk_rows: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the plain distances of all references to all, a few rows at a time.

    Args:
        references: The R references.
        chunk_rows: The largest number of rows C at a time.

    Yields:
        The first row, and the distances `(C, R)` float64. Where all references take part, a float32 product would be
        too coarse: there are no few candidates to measure one by one.
    """
    vectors, norms = references.vectors.double(), references.squared_norms.double()
    for start in range(0, len(vectors), chunk_rows):
        products = vectors[start : start + chunk_rows] @ vectors.T  # (C, R)
        if references.metric == "cosine":
            yield start, products.mul_(-0.5).add_(0.5).clamp_(0.0, 1.0)
        else:
            products.mul_(-2.0).add_(norms).add_(norms[start : start + chunk_rows, None])
            yield start, products.clamp_(min=0.0).sqrt_()


def mean_of_finite(distances: torch.Tensor) -> torch.Tensor:
    """Average each row of `(N, k)` over its finite entries, `(N,)`; a row without any is infinite."""
    finite = distances.isfinite()
    mean = distances.where(finite, 0.0).sum(dim=1) / finite.sum(dim=1)
    return mean.where(finite.any(dim=1), torch.inf)


def _proposed_candidates(
    rows: torch.Tensor, references: References, index: ApproximateIndex, count: int, first_own: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the candidates `(C, k)` that the index proposes, ascending, and which of them may be used."""
    spare = RESCALED_INDEX_CANDIDATES if references.is_rescaled else SPARE_INDEX_CANDIDATES
    wanted = count + spare + (first_own is not None)
    candidates, reachable = index.search(rows, min(wanted, len(references.vectors)))
    if first_own is not None:
        reachable &= candidates != _own_positions(first_own, rows)
    return candidates, reachable


def _ranked_candidates(
    rows: torch.Tensor,
    norms: torch.Tensor,
    references: References,
    count: int,
    first_own: int | None,
    buffer: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the candidates `(C, k)` of a search over all references, ascending, and which of them may be used.

    `first_own` is the reference that the first row belongs to if rows are references, and `buffer` `(C, R)` is
    overwritten.
    """
    ranking = _ranking(rows, norms, references, buffer)
    if references.hidden is not None:
        ranking.masked_fill_(references.hidden, torch.inf)
    if first_own is not None and references.owner is not None:
        ranking.masked_fill_(references.owner == _own_positions(first_own, rows), torch.inf)
    elif first_own is not None:
        ranking.diagonal(first_own).fill_(torch.inf)
    num_candidates = min(count + SPARE_CANDIDATES, len(references.vectors))
    candidates = ranking.topk(num_candidates, dim=1, largest=False).indices
    # Among equally far references (a zero vector is equally far from all), topk returns any and argmin the first one.
    # The first one must be a candidate, so that it replaces the last.
    first = ranking.argmin(dim=1)
    candidates[:, -1] = torch.where((candidates == first[:, None]).any(dim=1), candidates[:, -1], first)
    # The stable sort by distance in `nearest` lets the first of equally far candidates win, if they are in order.
    candidates = candidates.sort(dim=1).values  # (C, k)
    return candidates, ranking.gather(1, candidates).isfinite()


def _ranking(rows: torch.Tensor, norms: torch.Tensor, references: References, out: torch.Tensor) -> torch.Tensor:
    """Write into `out` the rescaled distances `(C, R)` of rows `(C, D)`, as precisely as a matrix product gives them.

    A constant is left out that changes no order, as it would cost one more pass over `out`.
    """
    is_cosine = references.metric == "cosine"
    if is_cosine:
        torch.mm(rows * -0.5, references.vectors.T, out=out)
        if references.divide is not None:
            out.add_(0.5)
    else:
        torch.addmm(references.squared_norms, rows, references.vectors.T, alpha=-2.0, out=out)
        out.add_(norms).clamp_(min=0.0).sqrt_()
    if references.divide is not None:
        # What the matrix product cannot distinguish from a copy ranks as a copy, as a tiny divisor would magnify the
        # rounding noise.
        resolution = torch.full_like(norms, 5e-7) if is_cosine else 1e-3 * norms.sqrt()
        out.masked_fill_(out < resolution, 0.0)
    references.rescale_(out)
    return out


def _measured_distances(
    rows: torch.Tensor, norms: torch.Tensor, references: References, candidates: torch.Tensor
) -> torch.Tensor:
    """Compute the rescaled distances `(C, k)` of rows `(C, D)` to their candidates `(C, k)` precisely.

    The matrix product loses the small differences of near duplicates, which a subtraction keeps.
    """
    squared = torch.stack(
        [(rows - references.vectors[column]).square_().sum(dim=1) for column in candidates.unbind(dim=1)], dim=1
    )  # (C, k)
    if references.metric == "cosine":
        # (1 - x.y) / 2 = (||x - y||^2 + 2 - ||x||^2 - ||y||^2) / 4, which is 1/2 beside a zero vector.
        own = 1.0 - references.squared_norms[candidates]
        distances = (0.25 * (squared + (1.0 - norms) + own)).clamp_(0.0, 1.0)
    else:
        distances = squared.sqrt_()
    references.rescale_(distances, candidates)
    return distances


def _own_positions(first_own: int, rows: torch.Tensor) -> torch.Tensor:
    return torch.arange(first_own, first_own + len(rows), device=rows.device)[:, None]  # (C, 1)
