"""The alarm rule: its promise on simulated normals, its delay on faults, and what it refuses."""

import json

import numpy as np
import pytest
from scipy.signal import lfilter

from na_ssl_hf.watch.alarm_rule import (
    MOST_KEPT_SCORES,
    MOST_SEQUENCES,
    AlarmRule,
    duration_text,
    longest_promise,
    parse_duration,
    required_normals,
)

HOUR = 3600.0


def alarms_of(rule: AlarmRule, scores, hop: float) -> list[float]:
    return [hop * index for index, score in enumerate(scores) if rule.step(score, hop * index).change == "begin"]


@pytest.mark.parametrize(("num_normals", "hop"), [(20, 10.0), (100, 10.0), (50, 2.5)])
def test_false_alarms_are_as_rare_as_promised(num_normals, hop):
    # 12 machines for a day each; windows that overlap share their parts, as those of a stream do.
    num_parts, found = round(10 / hop), 0
    for seed in range(12):
        generator = np.random.default_rng(seed)
        rule = AlarmRule(generator.standard_normal(num_normals).tolist(), 12 * HOUR, 10.0, hop)
        parts = generator.standard_normal(int(24 * HOUR / hop) + num_parts)
        scores = np.convolve(parts, np.ones(num_parts), "valid") / num_parts**0.5
        found += len(alarms_of(rule, scores.tolist(), hop))
    assert found <= 12 * 24 / 12


def test_scores_that_wander_need_windows_that_are_further_apart():
    generator = np.random.default_rng(8)
    drawn = generator.standard_normal(6 * 24 * 360)  # six days, a window every 10 s

    def wander(drawn, half_life):
        kept = 0.5 ** (1 / half_life)
        return lfilter([(1 - kept**2) ** 0.5], [1, -kept], drawn)

    scores = (0.7 * wander(drawn, 60) + 0.7 * generator.standard_normal(len(drawn))).tolist()  # half of it, 10 minutes
    normals = generator.standard_normal(100).tolist()
    found = {}
    for apart in (0.0, HOUR):
        rule = AlarmRule(normals, 24 * HOUR, 10.0, 10.0, independent_after=apart)
        found[apart] = len(alarms_of(rule, scores, 10.0))
    assert found[0.0] > 3 * 6
    assert found[HOUR] <= 6
    faulty = [score + 6 for score in scores[:2000]]
    (at,) = alarms_of(AlarmRule(normals, 24 * HOUR, 10.0, 10.0, independent_after=HOUR), faulty, 10.0)
    assert at <= 8 * HOUR
    with pytest.raises(ValueError, match=r"`independent_after` must be a number of seconds .* got 90000"):
        AlarmRule(normals, 24 * HOUR, 10.0, 10.0, independent_after=25 * HOUR)


@pytest.mark.parametrize(("shift", "most_seconds"), [(6.0, 80.0), (3.0, 150.0), (1.5, 1200.0)])
def test_a_fault_raises_one_alarm_soon(shift, most_seconds):
    generator = np.random.default_rng(3)
    rule = AlarmRule(generator.standard_normal(50).tolist(), 30 * 24 * HOUR, 10.0, 10.0)
    scores = generator.standard_normal(2000)
    scores[1000:] += shift
    (at,) = alarms_of(rule, scores.tolist(), 10.0)
    assert 10_000 < at <= 10_000 + most_seconds


def test_an_alarm_ends_when_the_sound_is_normal_again_and_can_come_back():
    generator = np.random.default_rng(4)
    rule = AlarmRule(generator.standard_normal(50).tolist(), 24 * HOUR, 10.0, 10.0)
    scores = generator.standard_normal(900)
    scores[300:400] += 6
    scores[700:800] += 6
    changes = [(index, rule.step(score, 10.0 * index).change) for index, score in enumerate(scores)]
    begun = [index for index, change in changes if change == "begin"]
    ended = [index for index, change in changes if change == "end"]
    assert len(begun) == len(ended) == 2
    assert 400 < ended[0] < 440
    assert 800 < ended[1] < 840


def test_one_bang_is_no_alarm():
    generator = np.random.default_rng(5)
    rule = AlarmRule(generator.standard_normal(100).tolist(), 24 * HOUR, 10.0, 2.5)
    scores = generator.standard_normal(400)
    scores[200:204] = 50.0  # the windows that hold the same moment
    assert alarms_of(rule, scores.tolist(), 2.5) == []


def test_debounce_and_shortest_alarm_are_kept():
    rule = AlarmRule([0.0] * 50, HOUR, 10.0, 10.0, debounce=3, shortest_alarm=500.0)
    plain = AlarmRule([0.0] * 50, HOUR, 10.0, 10.0, shortest_alarm=0.0)
    scores = [1.0] * 10 + [-1.0] * 90
    changes = [[(i, c) for i, s in enumerate(scores) if (c := one.step(s, 10.0 * i).change)] for one in (rule, plain)]
    (slow_begin, _), (slow_end, _) = changes[0]
    (begin, _), (end, _) = changes[1]
    assert slow_begin == begin + 2
    assert end < slow_begin + 50 <= slow_end


def test_a_restart_goes_on_with_the_evidence():
    normals = np.random.default_rng(6).standard_normal(30).tolist()
    whole, first, second = (AlarmRule(normals, 24 * HOUR, 10.0, 2.5) for _ in range(3))
    scores = [0.0] * 10 + [5.0] * 12
    for index, score in enumerate(scores):
        wanted = whole.step(score, 2.5 * index)
        if index < 15:
            first.step(score, 2.5 * index)
            continue
        if index == 15:
            second.restore(json.loads(json.dumps(first.resume())))
        assert second.step(score, 2.5 * index) == wanted
    other = AlarmRule(normals, 24 * HOUR, 10.0, 5.0)
    other.restore(first.resume())  # of windows that overlap otherwise
    assert other.evidence == 0.0


def test_a_restart_goes_on_with_the_ranks_that_were_learned():
    generator = np.random.default_rng(9)
    normals = generator.standard_normal(20).tolist()
    first, second, fresh, other = (AlarmRule(normals, 30 * 24 * HOUR, 10.0, 5.0) for _ in range(4))
    for index, score in enumerate(generator.standard_normal(1000)):
        first.step(score, 5.0 * index)
    kept = json.loads(json.dumps(first.learned()))
    second.restore_learned(kept)
    # Among 20 normals the highest score says little, among 500 much.
    for rule in (first, second, fresh):
        rule.restore(other.resume())
    evidence = [[rule.step(4.0, 5.0 * index).evidence for index in range(6)] for rule in (first, second, fresh)]
    assert evidence[1] == pytest.approx(evidence[0], rel=0.2)
    assert evidence[0][-1] > 5 * evidence[2][-1]
    changed = AlarmRule([*normals[1:], 0.5], 30 * 24 * HOUR, 10.0, 5.0)
    changed.restore_learned(kept)  # of another memory
    assert [changed.step(4.0, 5.0 * index).evidence for index in range(6)] == pytest.approx(evidence[2])
    with pytest.raises(ValueError, match="must be that of an alarm rule"):
        second.restore_learned(kept | {"references": 3})


def test_what_is_kept_is_bounded_however_long_windows_depend_on_each_other():
    normals = [float(index) for index in range(6000)]
    rules = [AlarmRule(normals, 30 * 24 * HOUR, 10.0, 10.0, independent_after=2 * HOUR) for _ in range(2)]
    references = rules[0].learned()["references"]
    assert len(references) == MOST_SEQUENCES == len(rules[0].resume()["bets"])
    assert {len(one) for one in references} == {MOST_KEPT_SCORES // MOST_SEQUENCES}
    # 720 windows lie within two hours, of which every 45th is taken; a restart goes on at the same place.
    for index in range(100):
        rules[0].step(7000.0, 10.0 * index)
    rules[1].restore(rules[0].resume())
    for index in range(100, 3000):
        decisions = [rule.step(7000.0, 10.0 * index) for rule in rules]
        assert decisions[0] == decisions[1]
    assert decisions[0].state == "alarm"


def test_too_few_normals_for_a_promise_are_refused_with_the_number():
    with pytest.raises(ValueError, match="needs at least 20 normal recordings, got 12"):
        AlarmRule([0.0] * 12, 24 * HOUR, 10.0, 10.0)
    promise = 3000 * 365 * 24 * HOUR
    needed = required_normals(promise, 10.0, 2.5)
    assert needed > 20
    with pytest.raises(ValueError, match=f"needs at least {needed} normal recordings, got {needed - 1}"):
        AlarmRule([0.0] * (needed - 1), promise, 10.0, 2.5)
    AlarmRule([0.0] * needed, promise, 10.0, 2.5)
    assert longest_promise(needed, 10.0, 2.5) >= promise > longest_promise(needed - 1, 10.0, 2.5)
    assert longest_promise(19, 10.0, 2.5) is None


def test_what_was_kept_of_another_kind_is_refused():
    rule = AlarmRule([0.0] * 20, 24 * HOUR, 10.0, 10.0)
    with pytest.raises(ValueError, match="must be that of an alarm rule"):
        rule.restore({"bets": "none"})
    with pytest.raises(ValueError, match="must be that of an alarm rule"):
        rule.restore(rule.resume() | {"state": "sleepy"})


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * 86400.0), ("12h", 43200.0), ("1.5m", 90.0), ("600s", 600.0)]
)
def test_durations_are_read_and_written(text, seconds):
    assert parse_duration(text) == seconds
    assert parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "infd", "3 weeks", "nand"])
def test_other_durations_are_refused(text):
    with pytest.raises(ValueError, match="--false-alarms-per` must be a time such as 30d"):
        parse_duration(text, "--false-alarms-per")
