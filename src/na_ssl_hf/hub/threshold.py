"""This module turns the leave-one-out scores of normal clips into a threshold for alarms.

A higher score is more anomalous everywhere. Letters: N normal clips, M scored clips.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .input_level import UsualMicrophones, check_level, check_levels
from .layer_choice import LayerChoice, check_na_share
from .pooling import LogMelStatistics, Pooling
from .recording import Windows
from .streams import check_second_stream, check_streams

logger = logging.get_logger(__name__)

THRESHOLD_METHODS = ("conformal", "gamma", "quantile")
GAMMA_QUANTILE = 0.9
DEFAULT_FALSE_ALARM_RATE = 0.05
# Scores that differ by a smaller share of the largest one are taken as equal, as a gamma fit would only see the
# rounding noise.
SMALLEST_SPREAD = 1e-9


@dataclass(frozen=True)
class Calibration:
    """A calibration holds what a scorer learned from its normal recordings besides the memory, and what it belongs to.

    Attributes:
        threshold: A recording is anomalous if its score is greater than this.
        threshold_method: The method of `fit_threshold` that gave the threshold.
        false_alarm_rate: The rate of false alarms that the threshold was made for.
        asked_false_alarm_rate: The rate that the user asked for; `None` for the default.
        self_scores: `(N,)`, the leave-one-out scores of the normal recordings. They are kept because making them
            compares every recording with every other one.
        model: The fingerprint of the model's weights.
        extractor: The settings of the feature extractor that decide the features.
        pooling: The method and the parameters of `pool_time`.
        bank_version: The version of the memory that the scores belong to.
        windows: The settings of [`Windows`] by which long recordings were cut; `None` if all were taken whole.
        recording_rate: The sampling rate of the recordings, at most the model's, where it decides which bands
            count, see `recorded_rate`.
        num_groups: The number of groups that were left out one by one, where recordings were grouped.
        layers: The layers whose tokens are compared, see [`LayerChoice`]; `None` for the last one.
        level: "as recorded", or "normalised" where every recording is brought to one level.
        levels: The lowest and the highest level of the close and the far channel of the normal recordings as the model
            heard them, in dB of full scale; `None` where nobody knows.
        streams: "cancelled", "raw" or "both", which of the close channel's streams the model hears.
        na_share: The share of a noise-aware model in the compared tokens, the rest being that of its base; `None` for
            the model as it is.
        log_mel: How log-mel statistics are compared beside the tokens, see [`LogMelStatistics`]; `None` for not at all.
        microphones: What is usual of the microphones, see [`UsualMicrophones`]; `None` where nobody knows.

    Raises:
        ValueError: An attribute has another type, or is outside its range.
    """

    threshold: float
    threshold_method: str
    false_alarm_rate: float
    asked_false_alarm_rate: float | None
    self_scores: tuple[float, ...]
    model: str
    extractor: Mapping[str, Any]
    pooling: Mapping[str, Any]
    bank_version: int
    windows: Mapping[str, Any] | None = None
    num_groups: int | None = None
    recording_rate: int | None = None
    layers: tuple[int, ...] | None = None
    level: str = "as recorded"
    levels: Mapping[str, tuple[float, float]] | None = None
    streams: str = "cancelled"
    na_share: float | None = None
    log_mel: LogMelStatistics | None = None
    microphones: UsualMicrophones | None = None

    def __post_init__(self) -> None:
        if not _is_finite_number(self.threshold):
            raise ValueError(f"`threshold` must be a finite number, got {self.threshold!r}.")
        if not isinstance(self.threshold_method, str) or self.threshold_method not in THRESHOLD_METHODS:
            raise ValueError(f"`threshold_method` must be one of {THRESHOLD_METHODS}, got {self.threshold_method!r}.")
        _check_rate(self.false_alarm_rate)
        if self.asked_false_alarm_rate is not None:
            _check_rate(self.asked_false_alarm_rate, "asked_false_alarm_rate")
        scores = self.self_scores
        if not isinstance(scores, (list, tuple)) or not scores or not all(map(_is_finite_number, scores)):
            raise ValueError(f"`self_scores` must be a sequence of at least one finite number, got {scores!r:.80}.")
        if not isinstance(self.model, str):
            raise ValueError(f"`model` must be the fingerprint of a model's weights, got {self.model!r}.")
        if not isinstance(self.extractor, Mapping):
            raise ValueError(f"`extractor` must be a dict of settings, got {self.extractor!r}.")
        if not isinstance(self.pooling, Mapping) or set(self.pooling) != {field.name for field in fields(Pooling)}:
            raise ValueError(f"`pooling` must be a dict with method, gamma, p and r, got {self.pooling!r}.")
        Pooling(**self.pooling)
        if self.windows is not None:
            if not isinstance(self.windows, Mapping) or set(self.windows) != {field.name for field in fields(Windows)}:
                raise ValueError(f"`windows` must be a dict with length, hop and aggregate, got {self.windows!r}.")
            Windows(**self.windows)
        for name, least in (("bank_version", 0), ("num_groups", 2), ("recording_rate", 1)):
            value = getattr(self, name)
            if value is None and name != "bank_version":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be an int of at least {least}, got {value!r}.")
        # Copies, so that nobody else can change what is frozen; Python numbers, so that JSON can hold them.
        own: dict[str, Any] = {"self_scores": tuple(float(score) for score in scores)}
        own |= {name: dict(getattr(self, name)) for name in ("extractor", "pooling")}
        check_level(self.level)
        has_filter = self.extractor.get("far_microphone") is not None
        check_second_stream(
            check_streams(self.streams), "calibrated" if has_filter else self.extractor.get("far_cancellation")
        )
        own["levels"] = check_levels(self.levels)
        own["na_share"] = check_na_share(self.na_share)
        if own["na_share"] == "auto":
            raise ValueError("`na_share` must be None or a number from 0 to 1, got 'auto'.")
        if self.log_mel is not None and not isinstance(self.log_mel, LogMelStatistics):
            raise ValueError(f"`log_mel` must be LogMelStatistics or None, got {self.log_mel!r:.80}.")
        if self.microphones is not None and not isinstance(self.microphones, UsualMicrophones):
            raise ValueError(f"`microphones` must be UsualMicrophones or None, got {self.microphones!r:.80}.")
        own["layers"] = LayerChoice(self.layers).layers
        own["windows"] = None if self.windows is None else dict(self.windows)
        own |= {name: float(getattr(self, name)) for name in ("threshold", "false_alarm_rate")}
        if self.asked_false_alarm_rate is not None:
            own["asked_false_alarm_rate"] = float(self.asked_false_alarm_rate)
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def recalibrated(
        self,
        threshold_method: str,
        asked_false_alarm_rate: float | None,
        self_scores: Sequence[float] | None = None,
        bank_version: int | None = None,
    ) -> "Calibration":
        """Return this calibration with the threshold made anew.

        Args:
            threshold_method, asked_false_alarm_rate: See `calibrated_threshold`, which also raises the errors.
            self_scores, bank_version: Those of a memory that has changed; `None` if it has not.
        """
        scores = self.self_scores if self_scores is None else tuple(self_scores)
        threshold, rate = calibrated_threshold(scores, threshold_method, asked_false_alarm_rate)
        return replace(
            self,
            threshold=threshold,
            threshold_method=threshold_method,
            false_alarm_rate=rate,
            asked_false_alarm_rate=asked_false_alarm_rate,
            self_scores=scores,
            bank_version=self.bank_version if bank_version is None else bank_version,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes as JSON holds them."""
        layers = None if self.layers is None else list(self.layers)
        levels = None if self.levels is None else {channel: list(ends) for channel, ends in self.levels.items()}
        microphones = None if self.microphones is None else self.microphones.to_dict()
        log_mel = None if self.log_mel is None else self.log_mel.to_dict()
        return asdict(replace(self, microphones=None, log_mel=None)) | {
            "self_scores": list(self.self_scores),
            "layers": layers,
            "levels": levels,
            "log_mel": log_mel,
            "microphones": microphones,
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Calibration":
        """Return the calibration that `to_dict` wrote. Other keys are ignored.

        Raises:
            ValueError: A key is missing, or a value is wrong.
        """
        names = {field.name for field in fields(cls)}
        # The first version knew nothing of the others.
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(values, Mapping) or not needed <= set(values):
            got = f"none of {sorted(needed - set(values))}" if isinstance(values, Mapping) else repr(values)
            raise ValueError(f"A calibration must be a dict with the keys {sorted(needed)}, got {got}.")
        known = {name: values[name] for name in names & set(values)}
        if known.get("log_mel") is not None:
            known["log_mel"] = LogMelStatistics.from_dict(known["log_mel"])
        if isinstance(microphones := known.get("microphones"), Mapping):
            try:
                known["microphones"] = UsualMicrophones(**microphones)
            except TypeError as error:
                raise ValueError(f"`microphones` must be those of UsualMicrophones: {error}.") from error
        return cls(**known)


def calibrated_threshold(
    self_scores: Sequence[float] | torch.Tensor, threshold_method: str, asked_false_alarm_rate: float | None
) -> tuple[float, float]:
    """Return the threshold of a scorer, and the rate of false alarms that it is made for.

    Args:
        self_scores: `(N,)`, see `fit_threshold`.
        threshold_method: The `method` of `fit_threshold`.
        asked_false_alarm_rate: The accepted rate of false alarms. `None` stands for 0.05; if the method is
            `"conformal"` and there are too few normal recordings for 0.05, it stands for the smallest rate that they
            allow, and a warning says so.

    Raises:
        ValueError: See `fit_threshold`.
    """
    _check_method(threshold_method)
    scores = torch.as_tensor(self_scores)
    rate = DEFAULT_FALSE_ALARM_RATE if asked_false_alarm_rate is None else asked_false_alarm_rate
    needed = required_self_scores(rate)
    if asked_false_alarm_rate is None and threshold_method == "conformal" and len(scores) < needed:
        rate = 1 / (1 + len(scores))
        logger.warning(
            f"{len(scores)} normal recordings allow a false-alarm rate of {rate:.3f} at the least; {needed} are "
            f"needed for {DEFAULT_FALSE_ALARM_RATE}."
        )
    return fit_threshold(scores, method=threshold_method, false_alarm_rate=rate), rate


def fit_threshold(
    self_scores: torch.Tensor | np.ndarray, method: str = "conformal", false_alarm_rate: float = 0.05
) -> float:
    """Return the threshold of the decision `is_anomaly = score > threshold`.

    - With `"conformal"` (Laxhammar and Falkman, 2010; Bates et al., Annals of Statistics 2023) the decision agrees
      exactly with `conformal_p_values(...) <= false_alarm_rate`, so that new normal clips raise alarms at most at that
      rate, whatever their distribution. This holds for clips that are exchangeable with the normal ones: same machine,
      place, microphones and conditions. The threshold is one of the self scores (an order statistic).
    - With `"quantile"` it is the empirical `1 - false_alarm_rate` quantile, linearly interpolated.
    - With `"gamma"` it is the 0.9 quantile of a gamma distribution with free shape, location and scale (maximum
      likelihood), as in the DCASE Task 2 baseline, and `false_alarm_rate` has no influence. Negative scores are legal,
      because the location is free.

    Args:
        self_scores: `(N,)`, the scores of normal clips, each with its own entry left out of the memory.
        method: `"conformal"`, `"gamma"` or `"quantile"`.
        false_alarm_rate: The accepted rate of false alarms, in (0, 1).

    Raises:
        ValueError: An argument is wrong; scores are NaN or infinite; there are too few clips for the asked rate
            (`"conformal"`); or all scores are equal, or scipy is missing (`"gamma"`).
    """
    _check_method(method)
    _check_rate(false_alarm_rate)
    normal = _as_scores("self_scores", self_scores)
    if method == "gamma":
        return _gamma_quantile(normal)
    if method == "quantile":
        return float(np.quantile(normal, 1.0 - false_alarm_rate))
    # This is the floating-point expression of `conformal_p_values`, so that both decisions agree to the last bit.
    allowed = _p_value(np.arange(len(normal) + 1), len(normal)) <= false_alarm_rate
    if not allowed[0]:
        needed = required_self_scores(false_alarm_rate)
        raise ValueError(
            f"`method='conformal'` with false_alarm_rate={false_alarm_rate} needs at least {needed} normal clips, "
            f"got {len(normal)}. Give more clips, raise `false_alarm_rate` or use method='quantile'."
        )
    return float(np.sort(normal)[len(normal) - int(allowed.sum())])


@dataclass(frozen=True)
class DomainThresholds:
    """There is a threshold for each domain, and one for clips whose domain is not known.

    Attributes:
        by_domain: The threshold of each domain.
        pooled: The threshold that is made from the self scores of all domains together.
    """

    by_domain: dict[str, float]
    pooled: float

    def of(self, domains: Sequence[str | None] | np.ndarray) -> np.ndarray:
        """Return the threshold of each clip, `(M,)` float64; a clip of domain `None` gets the pooled one.

        The decision is then `is_anomaly = scores > thresholds.of(domains)`.

        Raises:
            ValueError: A domain has no threshold.
        """
        for clip, domain in enumerate(domains):
            if domain is not None and domain not in self.by_domain:
                known = tuple(self.by_domain)
                raise ValueError(f"`domains` must hold one of {known} or None, got {domain!r} for clip {clip}.")
        return np.array([self.pooled if domain is None else self.by_domain[domain] for domain in domains], dtype=float)


def fit_domain_thresholds(
    self_scores: torch.Tensor | np.ndarray,
    domains: Sequence[str] | np.ndarray,
    method: str = "conformal",
    false_alarm_rate: float = 0.05,
    pool_small_domains: bool = False,
) -> DomainThresholds:
    """Fit the threshold of every domain by itself, so that the rate of false alarms holds in each of them.

    With one threshold for all domains it only holds on average.

    Args:
        self_scores: `(N,)`, see `fit_threshold`.
        domains: `(N,)`, for example `"source"` or `"target"`; every domain that occurs gets a threshold.
        method, false_alarm_rate: See `fit_threshold`.
        pool_small_domains: Whether a domain with fewer clips than `"conformal"` needs gets the pooled threshold, whose
            rate holds on average over the domains, instead of an error.

    Raises:
        ValueError: See `fit_threshold`; the message names the domain. Also if there is another number of domains than
            of scores.
    """
    scores = _as_scores("self_scores", self_scores)
    if isinstance(domains, str) or len(domains) != len(scores):
        got = repr(domains) if isinstance(domains, str) else f"{len(domains)} entries"
        raise ValueError(f"`domains` must have one entry for each of the {len(scores)} self_scores, got {got}.")
    pooled = fit_threshold(scores, method, false_alarm_rate)
    by_domain = {}
    names = np.asarray([str(domain) for domain in domains])
    for domain in sorted(set(names.tolist())):
        of_domain = scores[names == domain]
        if pool_small_domains and method == "conformal" and len(of_domain) < required_self_scores(false_alarm_rate):
            by_domain[domain] = pooled
            continue
        try:
            by_domain[domain] = fit_threshold(of_domain, method, false_alarm_rate)
        except ValueError as error:
            raise ValueError(f"Domain {domain!r}: {error}") from error
    return DomainThresholds(by_domain, pooled)


def conformal_p_values(self_scores: torch.Tensor | np.ndarray, scores: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Compute `p = (1 + #{self_scores >= score}) / (1 + N)` for every score.

    A small p-value is anomalous, and so is a high score. For a new normal clip, `P(p <= a) <= a`, if it is exchangeable
    with the clips of `self_scores`: same machine, place, microphones and conditions.

    Args:
        self_scores: `(N,)`, see `fit_threshold`.
        scores: `(M,)`.

    Returns:
        `(M,)` float64.

    Raises:
        ValueError: One of them is empty, not one-dimensional, or holds NaN or infinite values.
    """
    normal = np.sort(_as_scores("self_scores", self_scores))
    at_least = len(normal) - np.searchsorted(normal, _as_scores("scores", scores), side="left")
    return torch.from_numpy(_p_value(at_least, len(normal)))


def required_self_scores(false_alarm_rate: float) -> int:
    """Return how many normal clips `"conformal"` needs, because fewer cannot give so small a p-value.

    Raises:
        ValueError: The rate is not in (0, 1).
    """
    _check_rate(false_alarm_rate)
    # The number is ceil(1 / rate) - 1 up to rounding. The loop ends where the p-values, as they are rounded, do.
    needed = max(1, math.ceil(1.0 / false_alarm_rate) - 2)
    while _p_value(np.zeros(1), needed)[0] > false_alarm_rate:
        needed += 1
    return needed


def _check_method(method: Any) -> None:
    if not isinstance(method, str) or method not in THRESHOLD_METHODS:
        raise ValueError(f"`method` must be one of {THRESHOLD_METHODS}, got {method!r}.")


def _check_rate(rate: float, name: str = "false_alarm_rate") -> None:
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 < rate < 1.0:
        raise ValueError(f"`{name}` must be a number in (0, 1), got {rate!r}.")


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _p_value(num_at_least: np.ndarray, num_normal: int) -> np.ndarray:
    return (1.0 + num_at_least) / (1.0 + num_normal)


def _as_scores(name: str, scores: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(scores, torch.Tensor):
        scores = scores.detach().to("cpu", torch.float64).numpy()
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`{name}` must have shape (N,) with N >= 1, got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must be finite, got {values[~np.isfinite(values)][0]} among {len(values)} scores.")
    return values


def _gamma_quantile(normal: np.ndarray) -> float:
    try:
        from scipy.stats import gamma
    except ImportError as error:
        raise ValueError("`method='gamma'` needs scipy (pip install scipy), which is not installed.") from error
    if np.ptp(normal) <= SMALLEST_SPREAD * np.abs(normal).max():
        raise ValueError(f"`method='gamma'` needs scores that differ, got {len(normal)} equal scores ({normal[0]}).")
    try:
        threshold = float(gamma.ppf(GAMMA_QUANTILE, *gamma.fit(normal)))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"`method='gamma'`: the fit to {len(normal)} scores failed ({error}).") from error
    if not math.isfinite(threshold):
        raise ValueError(f"`method='gamma'`: the fit to {len(normal)} scores has no finite 0.9 quantile ({threshold}).")
    return threshold
