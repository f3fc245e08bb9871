"""The proof that an export kept its scores: what changed, by how much, and what it costs.

Letters: n normal recordings.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

TIMED_RUNS = 5


@dataclass(frozen=True)
class Proof:
    """The figures of one export, beside those of torch on the same recordings.

    Attributes:
        num_normal: normal recordings, each scored by a memory of the others.
        num_labelled: recordings whose label was given, scored by the fitted memory; 0 where there are none.
        largest_change, median_change: of a score, as a share of the spread of the scores of torch: their 5 to 95 %
            range. Memories of int8 vectors have another scale, which is brought to torch's by median and spread first.
        rank_correlation: Spearman's, of all scores.
        auc, auc_before: of the labelled recordings, by the export and by torch; `None` without labels.
        size_ratio: bytes of the graph as a share of the bytes of the model's weights in float32.
        time_ratio: CPU time of the graph as a share of torch's, for one recording on one thread.
    """

    num_normal: int
    num_labelled: int
    largest_change: float
    median_change: float
    rank_correlation: float
    auc: float | None
    auc_before: float | None
    size_ratio: float
    time_ratio: float

    @property
    def drop(self) -> float:
        """The drop in percent: of the AUC where there are labels, else of the rank correlation from 1."""
        if self.auc is None or self.auc_before is None:
            return 100 * (1 - self.rank_correlation)
        return 100 * (self.auc_before - self.auc)

    @property
    def measure(self) -> str:
        """What `drop` is the drop of."""
        return "rank correlation" if self.auc is None else "AUC"


def compare_scores(before: Sequence[float], after: Sequence[float], is_rescaled: bool) -> tuple[float, float, float]:
    """Compare scores of the same recordings.

    Args:
        before: the scores of torch.
        after: those of the export.
        is_rescaled: whether the second are first brought to median and spread of the first.

    Returns:
        largest change and median change as shares of the spread of the first, and Spearman's rank correlation, which
        is 1 where all scores of both are equal.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    spread = _spread(old)
    if is_rescaled and _spread(new) > 0:
        new = (new - np.median(new)) / _spread(new) * spread + np.median(old)
    # Scores that are equal but for rounding have no spread worth the name.
    changes = np.abs(new - old) / max(spread, 1e-6 * float(np.abs(old).max()), 1e-12)
    return float(changes.max()), float(np.median(changes)), _rank_correlation(old, new)


def auc(scores: Sequence[float], is_anomalous: Sequence[bool]) -> float:
    """Compute the area under the ROC curve of scores of normal and anomalous recordings."""
    return float(roc_auc_score(np.asarray(is_anomalous), np.asarray(scores)))


def time_ratio(
    graph: Callable[[np.ndarray], np.ndarray], chain: Callable[[torch.Tensor], torch.Tensor], num_samples: int
) -> float:
    """Measure the CPU time of a graph on one thread as a share of that of the chain in torch, medians of 5 runs each.

    Args:
        graph: maps `(2, N)` to band vectors.
        chain: maps `(1, 2, N)` to them.
        num_samples: N.
    """
    wave = 0.1 * torch.randn(1, 2, num_samples, generator=torch.Generator().manual_seed(0))
    sample = wave[0].numpy()
    ways = {"graph": lambda: graph(sample), "torch": lambda: chain(wave)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for run in range(TIMED_RUNS + 1):
                for name, way in ways.items():
                    start = time.process_time()
                    way()
                    if run:  # the first run of each prepares
                        times[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times["graph"]) / max(statistics.median(times["torch"]), 1e-9)


def _spread(scores: np.ndarray) -> float:
    low, high = np.quantile(scores, [0.05, 0.95])
    return float(high - low)


def _rank_correlation(old: np.ndarray, new: np.ndarray) -> float:
    ranks = [rankdata(scores) for scores in (old, new)]
    spreads = [float(rank.std()) for rank in ranks]
    if min(spreads) == 0:
        return 1.0 if max(spreads) == 0 else 0.0
    return float(np.corrcoef(*ranks)[0, 1])
