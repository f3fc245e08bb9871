"""Exact nearest neighbours among the references of one band, by plain or rescaled distance.

Letters: N queries, R references, D channels, C rows of one chunk, k candidates.
"""

import math

import torch

from .approximate_index import ApproximateIndex

# 512 rows against 100,000 references are a 200 MB buffer; with fewer rows the matmul waits for memory.
CHUNK_ROWS, CHUNK_ELEMENTS = 512, 512 * 100_000
# Distances from a float32 matmul only rank the references; two more than asked are kept and measured exactly.
SPARE_CANDIDATES = 2
# An index knows nothing of the rescaling and compresses its vectors: more candidates leave room for both.
SPARE_INDEX_CANDIDATES, RESCALED_INDEX_CANDIDATES = 15, 48
# Rank weights below this share of the first one are left out of a rank-weighted mean.
SMALLEST_RANK_WEIGHT = 1e-9


def nearest(
    queries: torch.Tensor,
    query_norms: torch.Tensor,
    memory: torch.Tensor,
    memory_norms: torch.Tensor,
    count: int,
    metric: str,
    leave_one_out: bool = False,
    subtract: torch.Tensor | None = None,
    divide: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    owner: torch.Tensor | None = None,
    index: ApproximateIndex | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` smallest rescaled distances, ascending, and their references (first index wins a tie).

    Args:
        queries, memory: `(N, D)` and `(R, D)` float32 with squared norms `query_norms (N,)`, `memory_norms (R,)`.
        count: neighbours asked; fewer come back where the memory is smaller.
        metric: `"cosine"`: `(1 - x.y) / 2`, `"euclidean"`: `||x - y||`.
        leave_one_out: reference n is infinitely far from query n.
        subtract, divide: `(R,)`, rescale the distances to each reference.
        hidden: `(R,)` bool, references that are infinitely far.
        owner: `(R,)` long; with `leave_one_out`, all references of owner n are infinitely far from query n.
        index: proposes the candidates instead of the exact search; goes without `hidden` and `owner`.

    Returns:
        `(N, k)` float32 and `(N, k)` long. Extra memory is one chunk of rows times R.
    """
    num_queries, num_references = len(queries), len(memory)
    count = min(count, num_references)
    best = torch.empty(num_queries, count, device=memory.device)
    best_index = torch.empty(num_queries, count, dtype=torch.long, device=memory.device)
    exact = index is None
    chunk_rows = max(1, min(num_queries, CHUNK_ROWS, CHUNK_ELEMENTS // num_references if exact else CHUNK_ROWS))
    buffer = torch.empty(chunk_rows if exact else 0, num_references, device=memory.device)
    for start in range(0, num_queries, chunk_rows):
        rows, norms = queries[start : start + chunk_rows], query_norms[start : start + chunk_rows, None]
        if index is not None:
            spare = SPARE_INDEX_CANDIDATES if subtract is None and divide is None else RESCALED_INDEX_CANDIDATES
            candidates, reachable = index.search(rows, min(count + spare + leave_one_out, num_references))
            if leave_one_out:
                own = torch.arange(start, start + len(rows), device=memory.device)[:, None]
                reachable &= candidates != own
        else:
            ranking = _ranking(rows, norms, memory, memory_norms, metric, subtract, divide, buffer[: len(rows)])
            if hidden is not None:
                ranking.masked_fill_(hidden, torch.inf)
            if leave_one_out and owner is not None:
                own = torch.arange(start, start + len(rows), device=memory.device)[:, None]
                ranking.masked_fill_(owner == own, torch.inf)
            elif leave_one_out:
                ranking.diagonal(start).fill_(torch.inf)
            candidates = ranking.topk(min(count + SPARE_CANDIDATES, num_references), dim=1, largest=False).indices
            # topk breaks ties anyhow, argmin by the first index (a zero vector is equally far from all); a spare gives
            # way.
            first = ranking.argmin(dim=1)
            candidates[:, -1] = torch.where((candidates == first[:, None]).any(dim=1), candidates[:, -1], first)
            # Ordered by index first: the stable sort by distance below then lets the first index win a tie.
            candidates = candidates.sort(dim=1).values  # (C, k)
            reachable = ranking.gather(1, candidates).isfinite()

        # The matmul loses the small differences of near duplicates; the few candidates are measured by subtraction.
        squared = torch.stack(
            [(rows - memory[column]).square_().sum(dim=1) for column in candidates.unbind(dim=1)], dim=1
        )  # (C, k)
        if metric == "cosine":
            # (1 - x.y) / 2 = (||x - y||^2 + 2 - ||x||^2 - ||y||^2) / 4, which is 1/2 beside a zero vector.
            distances = (0.25 * (squared + (1.0 - norms) + (1.0 - memory_norms[candidates]))).clamp_(0.0, 1.0)
        else:
            distances = squared.sqrt_()
        _rescale_(distances, *(row if row is None else row[candidates] for row in (subtract, divide)))
        distances.masked_fill_(~reachable, torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        best[start : start + len(rows)] = distances[:, :count]
        best_index[start : start + len(rows)] = candidates.gather(1, order)[:, :count]
    return best, best_index


def rank_weighted_density(memory: torch.Tensor, memory_norms: torch.Tensor, metric: str, decay: float) -> torch.Tensor:
    """Mean distance of every reference to all others, nearest first with the weights `decay**k / sum decay**k`.

    `memory` `(R, D)`, R >= 2, and squared norms `(R,)` -> `(R,)` float32. This is global weighted rank pooling
    (Kolesnikov and Lampert, ECCV 2016) of the distances: `decay=0` the nearest one, `decay=1` their plain mean.
    """
    count = len(memory) - 1
    if 0.0 < decay < 1.0:
        count = min(count, math.ceil(math.log(SMALLEST_RANK_WEIGHT) / math.log(decay)))
    weights = torch.pow(torch.tensor(decay, dtype=torch.float64), torch.arange(count)).to(memory.device)  # (k,)
    weights /= weights.sum()
    # float64, because all others take part and not a few candidates that could be measured one by one.
    references, norms = memory.double(), memory_norms.double()
    chunk_rows = max(1, min(CHUNK_ROWS, CHUNK_ELEMENTS // len(memory)))
    densities = []
    for start in range(0, len(memory), chunk_rows):
        products = references[start : start + chunk_rows] @ references.T  # (C, R)
        if metric == "cosine":
            distances = products.mul_(-0.5).add_(0.5).clamp_(0.0, 1.0)
        else:
            distances = products.mul_(-2.0).add_(norms).add_(norms[start : start + chunk_rows, None])
            distances = distances.clamp_(min=0.0).sqrt_()
        distances.diagonal(start).fill_(torch.inf)
        densities.append(distances.topk(count, dim=1, largest=False, sorted=True).values @ weights)
    return torch.cat(densities).float()


def mean_of_finite(distances: torch.Tensor) -> torch.Tensor:
    """(N, k) -> (N,); infinite (removed) entries do not count, and a row of nothing else stays infinite."""
    finite = distances.isfinite()
    mean = distances.where(finite, 0.0).sum(dim=1) / finite.sum(dim=1)
    return mean.where(finite.any(dim=1), torch.inf)


def _ranking(
    rows: torch.Tensor,
    norms: torch.Tensor,
    memory: torch.Tensor,
    memory_norms: torch.Tensor,
    metric: str,
    subtract: torch.Tensor | None,
    divide: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Rescaled distances `(C, R)` of rows `(C, D)` with squared norms `(C, 1)`, as well as a matmul tells them.

    Up to a constant, which changes no order and would cost one more pass over `out`.
    """
    if metric == "cosine":
        torch.mm(rows * -0.5, memory.T, out=out)
        if divide is not None:
            out.add_(0.5)
    else:
        torch.addmm(memory_norms, rows, memory.T, alpha=-2.0, out=out)
        out.add_(norms).clamp_(min=0.0).sqrt_()
    if divide is not None:
        # What the matmul cannot tell from a copy ranks as a copy; a tiny divisor would blow the rounding noise up.
        resolution = torch.full_like(norms, 5e-7) if metric == "cosine" else 1e-3 * norms.sqrt()
        out.masked_fill_(out < resolution, 0.0)
    _rescale_(out, subtract, divide)
    return out


def _rescale_(distances: torch.Tensor, subtract: torch.Tensor | None, divide: torch.Tensor | None) -> None:
    if subtract is not None:
        distances.sub_(subtract)
    if divide is not None:
        distances.div_(divide)
