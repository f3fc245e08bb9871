import json
import re
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from tiny_models import some_calibration

from na_ssl_hf.hub.threshold import (
    Calibration,
    conformal_p_values,
    fit_domain_thresholds,
    fit_threshold,
    required_self_scores,
)


@pytest.mark.parametrize("false_alarm_rate", [0.05, 0.07, 0.1, 1 / 3, 1 / 49, 0.5, 0.9])
@pytest.mark.parametrize("distinct", [3, 20, 10**6], ids=["many ties", "some ties", "no ties"])
def test_conformal_decision_agrees_with_the_p_values(false_alarm_rate, distinct):
    random = np.random.default_rng(distinct)
    for num_normal in (60, 99, 100, 333):
        normal = random.integers(-distinct, distinct, num_normal) / 7.0
        # Drawn from the same values, so that test scores tie with the threshold too.
        scores = np.concatenate([random.integers(-distinct, distinct, 200) / 7.0, normal])
        threshold = fit_threshold(normal, "conformal", false_alarm_rate)
        p_values = conformal_p_values(normal, scores)
        assert np.array_equal(scores > threshold, p_values.numpy() <= false_alarm_rate)


def test_p_values_count_the_normal_scores_at_least_as_high():
    p_values = conformal_p_values(torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 3.0, 4.0]))
    assert p_values.tolist() == [1.0, 4 / 5, 2 / 5, 1 / 5]


def test_conformal_false_alarm_rate_holds_on_average():
    random = np.random.default_rng(0)
    rates = [
        (random.gamma(2.0, size=50) > fit_threshold(random.gamma(2.0, size=99), false_alarm_rate=0.1)).mean()
        for _ in range(400)
    ]
    assert 0.085 < np.mean(rates) < 0.115


@pytest.mark.parametrize(("false_alarm_rate", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.07, 14), (1 / 49, 48)])
def test_conformal_says_how_many_clips_it_needs(false_alarm_rate, needed):
    assert required_self_scores(false_alarm_rate) == needed
    assert fit_threshold(np.arange(float(needed)), false_alarm_rate=false_alarm_rate) == needed - 1
    with pytest.raises(ValueError, match=rf"at least {needed} normal clips, got {needed - 1}"):
        fit_threshold(np.arange(needed - 1.0), false_alarm_rate=false_alarm_rate)


def test_quantile_is_the_empirical_one():
    assert fit_threshold(np.arange(101.0), "quantile", 0.1) == pytest.approx(90.0)


def test_gamma_recovers_the_quantile_and_shifts_with_negative_scores():
    scores = np.random.default_rng(0).gamma(4.0, 0.1, 2000)
    threshold = fit_threshold(scores, "gamma")
    assert threshold == pytest.approx(np.quantile(scores, 0.9), rel=0.03)
    assert fit_threshold(scores - 5.0, "gamma") == pytest.approx(threshold - 5.0, abs=0.01)
    assert fit_threshold(scores, "gamma", false_alarm_rate=0.3) == threshold


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "sigma"}, "`method` must be one of"),
        ({"false_alarm_rate": 0.0}, r"`false_alarm_rate` must be a number in \(0, 1\), got 0.0"),
        ({"false_alarm_rate": 5}, "got 5"),
        ({"self_scores": np.zeros((3, 2))}, r"shape \(N,\)"),
        ({"self_scores": np.zeros(0)}, "N >= 1"),
        ({"self_scores": np.array([0.0, np.nan])}, "finite"),
        ({"self_scores": np.full(30, 0.1), "method": "gamma"}, "30 equal scores"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_threshold(**{"self_scores": np.arange(30.0), **arguments})


def test_gamma_without_scipy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ValueError, match=re.escape("needs scipy")):
        fit_threshold(np.arange(30.0), "gamma")


def test_gamma_equals_the_official_baseline(goldens):
    cases = json.loads((goldens / "backends/5_baseline_ae/gamma_threshold.json").read_text())
    compared = 0
    for case in cases.values():
        if "threshold_q0.9" not in case:
            continue
        # Another version of the optimiser may stop elsewhere on a flat likelihood.
        threshold = fit_threshold(np.array(case["y_pred"]), "gamma")
        assert threshold == pytest.approx(case["threshold_q0.9"], rel=1e-4)
        far = np.abs(np.array(case["probe_scores"]) - threshold) > 1e-3
        assert np.array_equal((np.array(case["probe_scores"]) > threshold)[far], np.array(case["probe_decisions"])[far])
        assert fit_threshold(np.array(case["y_pred"]), "quantile", 0.1) == pytest.approx(case["empirical_q0.9_linear"])
        compared += 1
    assert compared >= 3


def test_every_domain_keeps_its_own_false_alarm_rate():
    random = np.random.default_rng(0)
    scores = np.concatenate([random.gamma(2.0, size=200), 3.0 + random.gamma(2.0, size=50)])
    domains = ["source"] * 200 + ["target"] * 50
    thresholds = fit_domain_thresholds(scores, domains, false_alarm_rate=0.1)
    assert thresholds.by_domain["source"] == fit_threshold(scores[:200], false_alarm_rate=0.1)
    assert thresholds.by_domain["target"] == fit_threshold(scores[200:], false_alarm_rate=0.1)
    assert thresholds.pooled == fit_threshold(scores, false_alarm_rate=0.1)
    alarms = scores > thresholds.of(domains)
    assert alarms[:200].mean() <= 0.1
    assert alarms[200:].mean() <= 0.1
    # One threshold for both puts all false alarms into the rare domain.
    assert (scores > thresholds.pooled)[200:].mean() > 0.3
    known = thresholds.by_domain
    assert thresholds.of(["target", None, "source"]).tolist() == [known["target"], thresholds.pooled, known["source"]]


def test_a_small_domain_is_named_or_pooled():
    scores, domains = np.arange(40.0), ["source"] * 30 + ["target"] * 10
    with pytest.raises(ValueError, match=r"Domain 'target': .*at least 19 normal clips, got 10"):
        fit_domain_thresholds(scores, domains)
    thresholds = fit_domain_thresholds(scores, domains, pool_small_domains=True)
    assert thresholds.by_domain == {"source": fit_threshold(scores[:30]), "target": thresholds.pooled}
    with pytest.raises(ValueError, match=r"`domains` must hold one of \('source', 'target'\) or None, got 'sauce'"):
        thresholds.of(["source", "sauce"])
    for wrong in ("source", ["source"] * 39):
        with pytest.raises(ValueError, match="one entry for each of the 40 self_scores"):
            fit_domain_thresholds(scores, wrong)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", float("nan")),
        ("threshold", "0.5"),
        ("threshold_method", "median"),
        ("false_alarm_rate", 0.0),
        ("false_alarm_rate", None),
        ("asked_false_alarm_rate", 1.5),
        ("self_scores", ()),
        ("self_scores", (0.1, float("inf"))),
        ("self_scores", "scores"),
        ("model", None),
        ("extractor", []),
        ("pooling", {"method": "mean"}),
        ("pooling", {"method": "median", "gamma": 4.0, "p": 3.0, "r": 0.9}),
        ("bank_version", -1),
        ("bank_version", 1.0),
    ],
)
def test_a_calibration_is_checked_however_it_is_made(name, value):
    whole = some_calibration().to_dict()
    assert Calibration.from_dict(whole) == some_calibration()
    with pytest.raises(ValueError, match=rf"(`{name}`|method) must be"):
        Calibration.from_dict(whole | {name: value})
    del whole[name]
    with pytest.raises(ValueError, match=rf"none of \['{name}'\]"):
        Calibration.from_dict(whole)


def test_a_calibration_says_which_rule_made_its_threshold():
    scores = tuple(np.linspace(0.1, 1.0, 10))
    first = some_calibration(self_scores=scores).recalibrated("quantile", 0.25)
    assert first.threshold == pytest.approx(np.quantile(scores, 0.75))
    assert (first.threshold_method, first.false_alarm_rate, first.bank_version) == ("quantile", 0.25, 0)
    second = first.recalibrated("conformal", None, self_scores=scores[:9], bank_version=3)
    assert second.threshold == scores[8]
    assert (second.false_alarm_rate, second.asked_false_alarm_rate) == (pytest.approx(0.1), None)
    assert (second.bank_version, second.model) == (3, first.model)


def test_a_calibration_is_frozen_and_json_can_hold_it():
    extractor = {"frontend": "beats"}
    calibration = some_calibration(extractor=extractor, threshold=np.float32(0.5), false_alarm_rate=np.float32(0.25))
    extractor["frontend"] = "eat"
    assert calibration.extractor == {"frontend": "beats"}
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    with pytest.raises(FrozenInstanceError):
        calibration.threshold = 0.1
