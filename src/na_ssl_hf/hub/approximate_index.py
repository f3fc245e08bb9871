"""An optional FAISS index that proposes nearest references, for banks too big to be compared with in full."""

import math
from typing import Any, Literal

import torch

IndexKind = Literal["flat", "ivf", "hnsw"]
INDEX_KINDS = (None, "flat", "ivf", "hnsw")
# IVF: many short lists follow the data better than few long ones. So many lists per sqrt(R), the share of them that is
# read, and the number that is always read; clips per list and rounds of the clustering.
LISTS_PER_ROOT, PROBED_SHARE, LEAST_PROBED = 6, 1 / 60, 16
CLIPS_PER_LIST, CLUSTERING_ROUNDS = 40, 5
# HNSW: links of a vector, and breadth of the search while building and scoring.
HNSW_LINKS, HNSW_BUILD_BREADTH, HNSW_SEARCH_BREADTH = 32, 80, 128


class ApproximateIndex:
    """FAISS (Douze et al., 2024) over the references of one band.

    `"flat"` looks at every reference (and so proposes the true nearest ones), `"ivf"` (Jégou et al., 2011) at those in
    the nearest of about `6 sqrt(R)` clusters, of which it stores one bit a channel (RaBitQ; Gao and Long, 2024), and
    `"hnsw"` (Malkov and Yashunin, 2018) walks a graph of one byte a channel. The seeds are fixed: one memory gives one
    index.

    Args:
        memory: `(R, D)` float32.
        metric: `"cosine"` (unit or zero vectors, by inner product) or `"euclidean"`.
        kind: see above.

    Raises:
        ValueError: faiss is not installed.
    """

    def __init__(self, memory: torch.Tensor, metric: str, kind: IndexKind) -> None:
        faiss = import_faiss()
        vectors = memory.cpu().contiguous().numpy()
        num_references, dim = vectors.shape
        measure = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
        self.device = memory.device
        self.index: Any
        if kind == "flat":
            self.index = faiss.IndexFlat(dim, measure)
        elif kind == "hnsw":
            self.index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, HNSW_LINKS, measure)
            self.index.hnsw.efConstruction = HNSW_BUILD_BREADTH
            self.index.hnsw.efSearch = HNSW_SEARCH_BREADTH
        else:
            num_lists = max(1, min(LISTS_PER_ROOT * math.isqrt(num_references), num_references // 8))
            # The index must outlive its coarse quantiser, which faiss refers to but does not own.
            self.lists = faiss.IndexFlat(dim, measure)
            self.index = faiss.IndexIVFRaBitQ(self.lists, dim, num_lists, measure)
            self.index.nprobe = min(num_lists, max(LEAST_PROBED, math.ceil(num_lists * PROBED_SHARE)))
            # Small banks are legal; faiss would print that it prefers 39 points a list.
            self.index.cp.min_points_per_centroid = 1
            self.index.cp.max_points_per_centroid = CLIPS_PER_LIST
            self.index.cp.niter = CLUSTERING_ROUNDS
            self.index.cp.seed = 0
        self.index.train(vectors)
        self.index.add(vectors)

    def search(self, rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Proposed references of `(N, D)` rows: `(N, count)` long, ascending, and which of them are real, bool."""
        _, found = self.index.search(rows.cpu().contiguous().numpy(), count)
        candidates = torch.from_numpy(found).to(self.device).sort(dim=1).values  # -1 where the index found too few
        return candidates.clamp(min=0), candidates >= 0


def import_faiss() -> Any:
    """The faiss module. Raises ValueError, with the remedy, where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ValueError("index needs faiss (pip install faiss-cpu), which is not installed.") from error
    return faiss
