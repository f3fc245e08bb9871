"""The official numbers of DCASE 2026 Task 2 and bootstrap intervals for them are computed here.

Everywhere a higher score means more anomalous. Letters: N clips, R bootstrap draws, G groups of clips with equal score.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

MAX_FALSE_POSITIVE_RATE = 0.1


@dataclass(frozen=True)
class MachineMetrics:
    """The three official values of one machine, all in [0, 1].

    auc_source and auc_target rank the normal clips of that domain against the anomalies of *both* domains; pauc uses
    all clips up to a false positive rate of 0.1, standardised after McClish (1989).
    """

    auc_source: float
    auc_target: float
    pauc: float

    @property
    def official_score(self) -> float:
        """Compute the harmonic mean of the three values, each clamped from below to the float epsilon."""
        return official_score([self])

    def as_dict(self) -> dict[str, float]:
        """Return the three values and their official score, by name."""
        return {**asdict(self), "official_score": self.official_score}


@dataclass(frozen=True)
class DecisionMetrics:
    """Precision, recall and F1 of the alarms, all in [0, 1]; officially for each domain of a machine on its own."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class BootstrapInterval:
    """A percentile interval of the official score; `draws` (R,) allow paired differences between systems."""

    estimate: float
    low: float
    high: float
    draws: np.ndarray


def machine_metrics(scores: np.ndarray, is_anomaly: np.ndarray, is_target: np.ndarray) -> MachineMetrics:
    """Compute AUC source, AUC target and pAUC of one machine.

    Args:
        scores: `(N,)` float, higher = more anomalous.
        is_anomaly: `(N,)` bool or 0/1.
        is_target: `(N,)` bool or 0/1.

    Raises:
        ValueError: scores are NaN or infinite, lengths are unequal, labels are others than 0 and 1, or there is no
            anomaly or no normal clip of one of the domains.
    """
    scores, is_anomaly, is_target = _checked(scores, is_anomaly, is_target)
    values = _weighted_metrics(scores, is_anomaly, is_target, np.ones((1, len(scores))))[0]
    return MachineMetrics(*(float(value) for value in values))


def official_score(metrics: Iterable[MachineMetrics] | Mapping[str, MachineMetrics]) -> float:
    """Compute the harmonic mean over the 3 values of all machines.

    Each value is clamped from below to the float epsilon (2.2e-16).

    Raises:
        ValueError: there are no machines.
    """
    machines = list(metrics.values()) if isinstance(metrics, Mapping) else list(metrics)
    if not machines:
        raise ValueError("metrics must hold at least one machine, got none")
    values = np.array([[machine.auc_source, machine.auc_target, machine.pauc] for machine in machines])
    return float(_harmonic_mean(values.reshape(1, -1))[0])


def decision_metrics(is_alarm: np.ndarray, is_anomaly: np.ndarray) -> DecisionMetrics:
    """Compute precision, recall and F1 of N decisions in one domain of one machine; without any alarm all are 0.

    Args:
        is_alarm: `(N,)` bool or 0/1.
        is_anomaly: `(N,)` bool or 0/1.

    Raises:
        ValueError: labels are others than 0 and 1, lengths are unequal, or there is no anomaly, which leaves the recall
            undefined.
    """
    alarm, anomaly = np.asarray(is_alarm), np.asarray(is_anomaly)
    if alarm.ndim != 1:
        raise ValueError(f"is_alarm must have shape (N,), got {alarm.shape}")
    alarm, anomaly = _as_bool(alarm, "is_alarm"), _as_bool(anomaly, "is_anomaly")
    if anomaly.shape != alarm.shape:
        raise ValueError(f"is_anomaly must have the shape of is_alarm {alarm.shape}, got {anomaly.shape}")
    if not anomaly.any():
        raise ValueError(f"is_anomaly must hold at least one anomaly, got {len(anomaly)} normal clips")
    hits = int((alarm & anomaly).sum())
    precision, recall = hits / max(1, int(alarm.sum())), hits / int(anomaly.sum())
    return DecisionMetrics(precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0)


def domain_decision_metrics(
    is_alarm: np.ndarray, is_anomaly: np.ndarray, is_target: np.ndarray
) -> dict[str, DecisionMetrics]:
    """Compute `decision_metrics` of the "source" and of the "target" clips of one machine; all arguments are `(N,)`."""
    is_target = np.asarray(is_target).astype(bool)
    return {
        domain: decision_metrics(is_alarm[members], is_anomaly[members])
        for domain, members in (("source", ~is_target), ("target", is_target))
    }


def mean_decision_metrics(metrics: Iterable[DecisionMetrics]) -> DecisionMetrics:
    """Compute harmonic means over all machines and domains, as in the challenge's tables.

    Each value is clamped from below to the float epsilon.

    Raises:
        ValueError: there are no metrics.
    """
    values = np.array([[each.precision, each.recall, each.f1] for each in metrics])
    if not len(values):
        raise ValueError("metrics must hold at least one domain of a machine, got none")
    return DecisionMetrics(*(float(value) for value in _harmonic_mean(values.T)))


def bootstrap_interval(
    clips: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    num_draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> BootstrapInterval:
    """Compute the official score over machines with a percentile bootstrap over clips (Efron and Tibshirani 1993).

    Clips are redrawn inside each domain and label. Equal seed, machine names and clip order give equal draws, so that
    systems scored on the same clips are compared pairwise through `a.draws - b.draws`.

    Args:
        clips: name of a machine -> (scores, is_anomaly, is_target) as for `machine_metrics`.
        num_draws: number R of draws.
        confidence: share of the draws inside the interval, in (0, 1).
        seed: seed of the draws.

    Raises:
        ValueError: there are no machines, an argument is out of range, or as for `machine_metrics`; the message names
            the machine.
    """
    if not clips:
        raise ValueError("clips must hold at least one machine, got none")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    metrics, draws = [], []
    for machine in sorted(clips):
        try:
            metrics.append(machine_metrics(*clips[machine]))
        except ValueError as error:
            raise ValueError(f"machine {machine!r}: {error}") from error
        draws.append(bootstrap_draws(*clips[machine], num_draws=num_draws, seed=[seed, zlib.crc32(machine.encode())]))
    totals = _harmonic_mean(np.concatenate(draws, axis=1))  # (R, 3 * machines) -> (R,)
    low, high = np.quantile(totals, [(1 - confidence) / 2, (1 + confidence) / 2])
    return BootstrapInterval(official_score(metrics), float(low), float(high), totals)


def bootstrap_draws(
    scores: np.ndarray,
    is_anomaly: np.ndarray,
    is_target: np.ndarray,
    num_draws: int = 1000,
    seed: int | list[int] = 0,
) -> np.ndarray:
    """Compute AUC source, AUC target and pAUC of R stratified redraws of one machine's clips: (R, 3) float64."""
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}")
    scores, is_anomaly, is_target = _checked(scores, is_anomaly, is_target)
    rng = np.random.default_rng(seed)
    counts = np.zeros((num_draws, len(scores)))
    for stratum in range(4):
        members = np.flatnonzero(2 * is_target + is_anomaly == stratum)
        if len(members):
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=num_draws)
    return _weighted_metrics(scores, is_anomaly, is_target, counts)


def _checked(
    scores: np.ndarray, is_anomaly: np.ndarray, is_target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores = np.asarray(scores, dtype=np.float64)
    labels = {"is_anomaly": np.asarray(is_anomaly), "is_target": np.asarray(is_target)}
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape (N,), got {scores.shape}")
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise ValueError(f"scores must be finite, got {scores[bad[0]]} at index {bad[0]} ({len(bad)} such values)")
    for name, label in labels.items():
        if label.shape != scores.shape:
            raise ValueError(f"{name} must have the shape of scores {scores.shape}, got {label.shape}")
    anomaly, target = (_as_bool(label, name) for name, label in labels.items())
    if not anomaly.any():
        raise ValueError(f"is_anomaly must hold at least one anomaly, got {len(scores)} normal clips")
    for name, domain in (("source", ~target), ("target", target)):
        if not (domain & ~anomaly).any():
            raise ValueError(f"the {name} domain must have at least one normal clip, got none")
    return scores, anomaly, target


def _as_bool(label: np.ndarray, name: str) -> np.ndarray:
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"{name} must hold 0 and 1 only, got {np.unique(label)[:5]}")
    return label.astype(bool)


def _weighted_metrics(
    scores: np.ndarray, is_anomaly: np.ndarray, is_target: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Compute the metrics when clip n appears counts[r, n] times: (R, N) -> (R, 3). One sort serves every draw."""
    order = np.argsort(-scores, kind="stable")
    group_end = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # tied clips share one step of the ROC
    counts = counts[:, order]
    normal, target = ~is_anomaly[order], is_target[order]

    def steps(members: np.ndarray) -> np.ndarray:
        return _rates(counts * members, group_end)

    hits = steps(~normal)
    return np.stack(
        [
            _area(steps(normal & ~target), hits, 1.0),
            _area(steps(normal & target), hits, 1.0),
            _standardised(_area(steps(normal), hits, MAX_FALSE_POSITIVE_RATE), MAX_FALSE_POSITIVE_RATE),
        ],
        axis=1,
    )


def _rates(weights: np.ndarray, group_end: np.ndarray) -> np.ndarray:
    """Compute the cumulative rate after every group of equal scores, from 0 to 1: (R, N) -> (R, G + 1)."""
    cumulative = np.cumsum(weights, axis=1)[:, group_end]
    return np.pad(cumulative / cumulative[:, -1:], ((0, 0), (1, 0)))


def _area(false_positive_rate: np.ndarray, true_positive_rate: np.ndarray, limit: float) -> np.ndarray:
    """Compute the area under the ROC polyline from 0 to `limit`: (R, G + 1) twice -> (R,)."""
    left, right = false_positive_rate[:, :-1], false_positive_rate[:, 1:]
    low, high = true_positive_rate[:, :-1], true_positive_rate[:, 1:]
    width = np.clip(limit - left, 0.0, right - left)
    fraction = np.divide(width, right - left, out=np.zeros_like(width), where=right > left)
    return (width * (low + 0.5 * fraction * (high - low))).sum(axis=1)


def _standardised(area: np.ndarray, limit: float) -> np.ndarray:
    """Standardise a partial area after McClish (1989): chance becomes 0.5 and a perfect ranking 1."""
    chance = 0.5 * limit**2
    return 0.5 * (1 + (area - chance) / (limit - chance))


def _harmonic_mean(values: np.ndarray) -> np.ndarray:
    return values.shape[1] / (1.0 / np.maximum(values, np.finfo(np.float64).eps)).sum(axis=1)
