"""Inputs of every kind are accepted, or refused by one error that names them; `make fuzz` is the long run."""

import logging
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzzing import KINDS
from benchmarks.fuzzing.trial import (
    ACCEPTED,
    CLEAR,
    DAMAGED,
    GOOD,
    HANG,
    INNER,
    REFUSED,
    SILENT,
    Materials,
    Trial,
    judge,
)


@pytest.fixture(scope="session")
def materials(tmp_path_factory) -> Materials:
    return Materials(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_accepted_or_refused_by_name(kind: str, materials: Materials):
    @settings(max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def try_one(draw: random.Random) -> None:
        trial = KINDS[kind](draw, materials)
        outcome, said = judge(trial, limit_s=20.0)
        assert outcome in (CLEAR, ACCEPTED), f"{outcome}: {trial.what}: {said}"

    try_one()


def _raise(error: Exception):
    raise error


@pytest.mark.parametrize(
    ("act", "is_input", "outcome"),
    [
        (lambda: None, GOOD, ACCEPTED),
        (lambda: None, DAMAGED, SILENT),
        (lambda: logging.getLogger("transformers").warning("x.wav is odd"), DAMAGED, ACCEPTED),
        (lambda: False, GOOD, SILENT),
        (lambda: _raise(ValueError("x.wav is bad")), DAMAGED, CLEAR),
        (lambda: _raise(ValueError("it is bad")), DAMAGED, INNER),
        (lambda: _raise(KeyError("x.wav")), DAMAGED, INNER),
        (lambda: _raise(OSError("x.wav is bad")), GOOD, REFUSED),
        (lambda: [None for _ in iter(int, 1)], DAMAGED, HANG),
    ],
)
def test_faults_are_told_apart(act, is_input, outcome):
    """A fuzz suite that cannot fail would show nothing."""
    assert judge(Trial("x", act, ("x.wav",), is_input), limit_s=0.2)[0] == outcome


def test_inputs_are_drawn_again_from_their_seed(tmp_path: Path):
    for draw in KINDS.values():
        first, second = (draw(random.Random(5), Materials(tmp_path)).what for _ in range(2))
        assert first == second
