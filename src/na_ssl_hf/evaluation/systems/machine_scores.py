"""What a system says about the test clips of one machine, and what the labels say of that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...data.dcase.clips import DcaseClip
from ..metrics.official import MachineMetrics, machine_metrics


@dataclass(frozen=True)
class MachineScores:
    """One system on one machine; a higher score is more anomalous. M test clips, N training clips, F bands.

    Attributes:
        machine: its name.
        clips: the M test clips.
        scores: `(M,)` float64.
        normal_scores: `(N,)` float64, of the training clips, each scored without itself where the system allows that.
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
        """Whether labels and domains of the test clips are known."""
        return self.is_anomaly is not None and self.is_target is not None

    @property
    def labelled_scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, anomaly labels and target-domain labels, `(M,)` each; ValueError without labels."""
        if self.is_anomaly is None or self.is_target is None:
            raise ValueError(f"{self.machine} must have labelled test clips, got anonymous ones")
        return self.scores, self.is_anomaly, self.is_target

    @property
    def metrics(self) -> MachineMetrics:
        """The official values; ValueError without labels."""
        return machine_metrics(*self.labelled_scores)

    @property
    def is_alarm(self) -> np.ndarray:
        """`(M,)` bool: the decision for every clip."""
        return self.scores > self.threshold
