"""The scores that a system gives the clips of one machine, and what the labels say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ...data.dcase.clips import DcaseClip
from ...hub.memory_bank import MemoryBank
from ..metrics.official import MachineMetrics, machine_metrics


@dataclass(frozen=True)
class MachineScores:
    """The scores of one system on one machine; a higher score is more anomalous.

    Letters: M test clips, N training clips, F bands.

    Attributes:
        machine: name of the machine.
        clips: the M test clips.
        scores: `(M,)` float64.
        normal_scores: `(N,)` float64, the scores of the training clips, each scored without itself where the system
            allows that.
        threshold: a clip is called anomalous when its score is greater.
        band_scores: `(M, F)`, low to high frequency, or `None` where the system has no bands.
        is_anomaly: `(M,)` bool, or `None` without labels.
        is_target: `(M,)` bool, whether the clip is of the target domain, or `None` without labels.
    """

    machine: str
    clips: tuple[DcaseClip, ...]
    scores: np.ndarray
    normal_scores: np.ndarray
    threshold: float
    band_scores: np.ndarray | None = None
    is_anomaly: np.ndarray | None = None
    is_target: np.ndarray | None = None

    @property
    def is_labelled(self) -> bool:
        """Tell whether labels and domains of the test clips are known."""
        return self.is_anomaly is not None and self.is_target is not None

    @property
    def labelled_scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return scores, anomaly labels and target-domain labels, `(M,)` each; ValueError without labels."""
        if self.is_anomaly is None or self.is_target is None:
            raise ValueError(f"{self.machine} must have labelled test clips, got anonymous ones")
        return self.scores, self.is_anomaly, self.is_target

    @property
    def metrics(self) -> MachineMetrics:
        """Compute the official values; ValueError without labels."""
        return machine_metrics(*self.labelled_scores)

    @property
    def is_alarm(self) -> np.ndarray:
        """Return the decision for every clip, `(M,)` bool."""
        return self.scores > self.threshold


class BankScores(NamedTuple):
    """The scores of one memory bank, float64: M test clips, N training clips, F bands.

    Attributes:
        normal_scores: `(N,)`, the scores of the training clips, each without itself in the memory.
        scores: `(M,)`.
        band_scores: `(M, F)`.
    """

    normal_scores: np.ndarray
    scores: np.ndarray
    band_scores: np.ndarray


def fit_and_score(bank: MemoryBank, train: torch.Tensor, test: torch.Tensor, domains: Sequence[str]) -> BankScores:
    """Fit a memory bank on training clips, and score them and the test clips.

    Args:
        bank: an unfitted bank, which is fitted in place.
        train: embeddings `(N, F, D)` of normal clips.
        test: embeddings `(M, F, D)`.
        domains: "source" or "target" of each training clip.

    Raises:
        ValueError: as `MemoryBank.fit`.
    """
    bank.fit(train, domains=list(domains))
    band_scores = torch.as_tensor(bank.band_scores(test))
    scores = torch.as_tensor(bank.aggregate_bands(band_scores))
    return BankScores(bank.self_scores().double().numpy(), scores.double().numpy(), band_scores.double().numpy())
