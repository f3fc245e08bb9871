import json

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from na_ssl_hf.evaluation.metrics import (
    DecisionMetrics,
    MachineMetrics,
    bootstrap_draws,
    bootstrap_interval,
    decision_metrics,
    machine_metrics,
    mean_decision_metrics,
    official_score,
)
from na_ssl_hf.evaluation.report.submission import evaluate_submission

CASES = ["tiny", "unbalanced", "ties", "labelled_names", "constant_perfect"]


def _clips(seed, n=120, quantised=False):
    rng = np.random.default_rng(seed)
    anomaly, target = rng.random(n) < 0.5, rng.random(n) < 0.3
    scores = rng.normal(size=n) + anomaly
    return (np.round(scores * 2) if quantised else scores), anomaly, target


@pytest.mark.parametrize("case", CASES)
def test_official_numbers_of_the_goldens(goldens, case):
    folder = goldens / "backends" / "4_metrics" / case
    expected = json.loads((folder / "expected.json").read_text())
    result = evaluate_submission(folder / "teams" / "team" / case, folder)
    assert result["official_score"] == pytest.approx(expected["official_score"], rel=0, abs=1e-12)
    assert set(result["machines"]) == set(expected["machines"])
    for machine, values in result["machines"].items():
        want = expected["machines"][machine]
        assert values["auc_source"] == pytest.approx(want["AUC (source)"], rel=0, abs=1e-12)
        assert values["auc_target"] == pytest.approx(want["AUC (target)"], rel=0, abs=1e-12)
        assert values["pauc"] == pytest.approx(want["pAUC"], rel=0, abs=1e-12)
        hmean = want["official score of this machine (hmean of its three values)"]
        assert values["official_score"] == pytest.approx(hmean, rel=0, abs=1e-12)


@pytest.mark.parametrize("quantised", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("seed", range(5))
def test_rank_route_equals_sklearn(seed, quantised):
    scores, anomaly, target = _clips(seed, quantised=quantised)
    got = machine_metrics(scores, anomaly, target)
    source_side, target_side = anomaly | ~target, anomaly | target
    assert got.auc_source == pytest.approx(roc_auc_score(anomaly[source_side], scores[source_side]), abs=1e-12)
    assert got.auc_target == pytest.approx(roc_auc_score(anomaly[target_side], scores[target_side]), abs=1e-12)
    assert got.pauc == pytest.approx(roc_auc_score(anomaly, scores, max_fpr=0.1), abs=1e-12)


def test_every_draw_equals_sklearn_on_the_redrawn_clips():
    scores, anomaly, target = _clips(3, n=60, quantised=True)
    draws = bootstrap_draws(scores, anomaly, target, num_draws=4, seed=11)
    rng = np.random.default_rng(11)
    counts = np.zeros((4, 60), dtype=int)
    for stratum in range(4):
        members = np.flatnonzero(2 * target + anomaly == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=4)
    for draw, count in zip(draws, counts, strict=True):
        clips = np.repeat(np.arange(60), count)
        again = machine_metrics(scores[clips], anomaly[clips], target[clips])
        np.testing.assert_allclose(draw, [again.auc_source, again.auc_target, again.pauc], atol=1e-12)
        assert again.pauc == pytest.approx(roc_auc_score(anomaly[clips], scores[clips], max_fpr=0.1), abs=1e-12)


def test_interval_is_seeded_paired_and_holds_the_estimate():
    machines = {name: _clips(seed) for seed, name in enumerate(["fan", "valve"])}
    first = bootstrap_interval(machines, num_draws=300)
    assert first.low < first.estimate < first.high
    reordered = bootstrap_interval(dict(reversed(machines.items())), num_draws=300)
    np.testing.assert_array_equal(first.draws, reordered.draws)
    shifted = {name: (3 * scores + 1, *labels) for name, (scores, *labels) in machines.items()}
    np.testing.assert_array_equal(first.draws, bootstrap_interval(shifted, num_draws=300).draws)
    assert not np.array_equal(first.draws, bootstrap_interval(machines, num_draws=300, seed=1).draws)


def test_official_score_clamps_and_takes_the_harmonic_mean():
    perfect, worst = MachineMetrics(1.0, 1.0, 1.0), MachineMetrics(0.0, 1.0, 1.0)
    assert perfect.official_score == 1.0
    assert 0 < worst.official_score < 1e-14
    assert official_score({"a": MachineMetrics(0.5, 1.0, 0.5), "b": perfect}) == pytest.approx(6 / (2 + 1 + 2 + 3))
    with pytest.raises(ValueError, match="at least one machine"):
        official_score([])


@pytest.mark.parametrize("seed", range(5))
def test_decisions_equal_sklearn(seed):
    rng = np.random.default_rng(seed)
    alarm, anomaly = rng.random(30) < 0.4, rng.random(30) < 0.5
    got = decision_metrics(alarm, anomaly.astype(int))
    expected = precision_recall_fscore_support(anomaly, alarm, average="binary")[:3]
    assert (got.precision, got.recall, got.f1) == pytest.approx(expected, rel=0, abs=1e-12)


def test_no_alarm_and_no_hit_are_zero():
    assert decision_metrics([0, 0], [0, 1]) == decision_metrics([1, 0], [0, 1]) == DecisionMetrics(0.0, 0.0, 0.0)


def test_decisions_are_averaged_like_the_official_score():
    mean = mean_decision_metrics([DecisionMetrics(0.5, 1.0, 2 / 3), DecisionMetrics(1.0, 0.0, 0.0)])
    assert mean.precision == pytest.approx(2 / 3)
    assert 0 < mean.recall < 1e-14
    with pytest.raises(ValueError, match="at least one domain"):
        mean_decision_metrics([])


@pytest.mark.parametrize(
    ("is_alarm", "is_anomaly", "message"),
    [
        ([0, 1], [0, 0], "at least one anomaly, got 2 normal clips"),
        ([0, 1], [0, 1, 1], r"shape of is_alarm \(2,\), got \(3,\)"),
        ([0, 0.5], [0, 1], r"is_alarm must hold 0 and 1 only, got \[0\.  0\.5\]"),
        ([0, 1], [0, 2], "is_anomaly must hold 0 and 1"),
        ([[0, 1]], [[0, 1]], r"is_alarm must have shape \(N,\)"),
    ],
)
def test_bad_decisions_are_named(is_alarm, is_anomaly, message):
    with pytest.raises(ValueError, match=message):
        decision_metrics(is_alarm, is_anomaly)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a, t: (np.where(np.arange(len(s)) == 7, np.nan, s), a, t), "finite, got nan at index 7"),
        (lambda s, a, t: (s[:-1], a, t), "is_anomaly must have the shape"),
        (lambda s, a, t: (s, a, t[:-1]), "is_target must have the shape"),
        (lambda s, a, t: (s, np.zeros_like(a), t), "at least one anomaly"),
        (lambda s, a, t: (s, np.ones_like(a), t), "source domain must have at least one normal"),
        (lambda s, a, t: (s, a, np.zeros_like(t)), "target domain must have at least one normal"),
        (lambda s, a, t: (s, 2 * a.astype(int), t), "is_anomaly must hold 0 and 1"),
        (lambda s, a, t: (s[None], a, t), r"shape \(N,\)"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        machine_metrics(*change(*_clips(0)))
    with pytest.raises(ValueError, match="machine 'fan'"):
        bootstrap_interval({"fan": change(*_clips(0))}, num_draws=2)


@pytest.mark.parametrize(("argument", "value"), [("confidence", 1.0), ("num_draws", 0)])
def test_bad_bootstrap_settings_are_named(argument, value):
    with pytest.raises(ValueError, match=argument):
        bootstrap_interval({"fan": _clips(0)}, **{argument: value})
