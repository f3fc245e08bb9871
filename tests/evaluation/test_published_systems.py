"""The declarative tables against what the papers say of them."""

import pytest

from na_ssl_hf.evaluation.systems.published_systems import FRONTENDS, LOG_MEL_FRONTENDS, SYSTEMS, find_system
from na_ssl_hf.evaluation.systems.score_ensemble import ScoreEnsemble
from na_ssl_hf.hub.memory_bank import MemoryBank
from na_ssl_hf.hub.pooling import POOLING_METHODS


def test_every_frontend_of_table_3_is_a_system_with_its_published_score():
    published = {name: SYSTEMS[name].dev for name in FRONTENDS if SYSTEMS[name].dev is not None}
    assert published == {
        "beats": 60.28, "eat": 59.24, "eat-large": 59.95, "na-beats": 63.18, "na-eat": 63.13,
        "dis-beats": 61.40, "dis-eat": 58.83, "dis-na-beats": 63.92, "dis-na-eat": 64.35,
    }  # fmt: skip
    assert all(SYSTEMS[name].frontends == {name: 1.0} for name in FRONTENDS)


def test_table_4():
    first, second, third, fourth = (SYSTEMS[f"fujimura_merl_task2_{number}"] for number in (1, 2, 3, 4))
    assert [one.dev for one in (first, second, third, fourth)] == [66.20, 63.43, 64.57, 63.79]
    assert third.eval == 70.24
    assert (third.pooling, third.gamma) == ("rdp", 4.0)
    assert (first.smote_ratio, first.rescaling) == (0.2, None)
    assert dict(second.frontends) == {"beats": 1, "eat": 0.5, "eat-large": 0.5, "na-eat": 1, "na-beats": 1}
    assert fourth.frontends_with_attributes == ("dis-na-eat",)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_is_made_of_legal_parts(name):
    system = find_system(name)
    assert system.pooling in POOLING_METHODS
    MemoryBank(rescaling=system.rescaling, smote_ratio=system.smote_ratio)
    if system.autoencoder_score is None:
        ScoreEnsemble(system.frontends, labelled_members=system.frontends_with_attributes)
        assert set(system.frontends) <= {*FRONTENDS, *LOG_MEL_FRONTENDS}


def test_published_scores_after_cancellation_are_those_of_least_squares_only():
    assert SYSTEMS["beats-rdp4"].published("dev", "least_squares") == 67.48
    assert SYSTEMS["beats-rdp4"].published("eval", "least_squares") == 66.84
    assert SYSTEMS["beats-rdp4"].published("dev", None) == 61.33
    assert SYSTEMS["beats-rdp4"].published("dev", "spectral_subtraction") is None
    assert SYSTEMS["beats"].published("dev", "least_squares") is None


def test_unknown_system_is_told_all_names():
    with pytest.raises(ValueError, match=r"system must be one of baseline_mse, .*fujimura_merl_task2_4; got 'best'"):
        find_system("best")
