"""The same recordings compared without any network: a second opinion beside that of a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch

from ..evaluation.systems.embedders import Embedder, log_mel_embedder
from ..hub.threshold import calibrated_threshold, conformal_p_values

if TYPE_CHECKING:
    from ..hub.memory_bank import MemoryBank
    from ..hub.pipeline_anomaly_scoring import AnomalyScorer


class LogMelResult(TypedDict):
    """What log-mel statistics say of one recording; the meaning is that of the fields of a scorer's result."""

    score: float
    p_value: float
    is_anomaly: bool


@dataclass(frozen=True)
class LogMelOpinion:
    """Log-mel statistics of normal recordings, of the whole files, and the threshold of their distances.

    Attributes:
        embedder: what is compared.
        bank: the normal recordings.
        self_scores: `(N,)` float32, the distance of each of them to the others.
        threshold: a recording is anomalous when its distance is greater.
    """

    embedder: Embedder
    bank: MemoryBank
    self_scores: torch.Tensor
    threshold: float

    @classmethod
    def beside(
        cls, scorer: AnomalyScorer, normals: Sequence[Path], false_alarm_rate: float | None = None
    ) -> LogMelOpinion:
        """Fit log-mel statistics to what a scorer hears: the close microphone at its level, without the far one.

        Args:
            scorer: fitted to the same recordings.
            normals: normal recordings at 16 kHz.
            false_alarm_rate: as for [`AnomalyScorer.fit`].

        Raises:
            ValueError: a recording has another rate, or there are too few for the rate of false alarms.
            OSError: a file is missing or cannot be decoded.
        """
        calibration = None if scorer.memory_bank is None else scorer.memory_bank.calibration
        if calibration is None:
            raise ValueError("`scorer` must be fitted, got one without a memory")
        far_microphone = scorer.far_microphone
        method = None if far_microphone is not None else scorer.feature_extractor.far_cancellation
        embedder = log_mel_embedder(method, far_microphone=far_microphone, level=calibration.level)
        bank = embedder.bank()
        bank.fit(embedder.embed(normals))
        self_scores = bank.self_scores()
        threshold, _rate = calibrated_threshold(self_scores, "conformal", false_alarm_rate)
        return cls(embedder, bank, self_scores, threshold)

    def of(self, file: Path) -> LogMelResult:
        """Compare one recording.

        Raises:
            ValueError: it has another rate than 16 kHz.
            OSError: the file is missing or cannot be decoded.
        """
        score = self.bank.score(self.embedder.embed([file]))  # (1,)
        p_value = conformal_p_values(self.self_scores, score)  # (1,)
        return LogMelResult(score=float(score), p_value=float(p_value), is_anomaly=float(score) > self.threshold)
