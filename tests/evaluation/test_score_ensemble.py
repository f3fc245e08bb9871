import numpy as np
import pytest
import torch

from na_ssl_hf.evaluation.systems.score_ensemble import ScoreEnsemble

RANDOM = np.random.default_rng(0)
A, B, C = RANDOM.normal(size=(3, 20))


def test_weighted_mean_over_members():
    ensemble = ScoreEnsemble({"beats": 1.0, "eat": 0.5, "eat-large": 0.5})
    got = ensemble.score({"eat": B, "beats": A, "eat-large": torch.from_numpy(C)})
    np.testing.assert_allclose(got, (A + 0.5 * B + 0.5 * C) / 2.0, rtol=1e-12)


def test_seeds_of_a_member_share_its_weight():
    got = ScoreEnsemble({"beats": 1.0, "eat": 1.0}).score({"beats": np.stack([A, B]), "eat": C})
    np.testing.assert_allclose(got, ((A + B) / 2 + C) / 2, rtol=1e-12)


def test_minimum_fusion_ignores_members_without_weight():
    scores = {"beats": A, "eat": B, "eat-large": C - 100.0}
    ensemble = ScoreEnsemble({"beats": 1.0, "eat": 3.0, "eat-large": 0.0}, fusion="minimum")
    np.testing.assert_array_equal(ensemble.score(scores), np.minimum(A, B))
    del scores["eat-large"]
    np.testing.assert_array_equal(ensemble.score(scores), np.minimum(A, B))


def test_choice_by_label_availability():
    ensemble = ScoreEnsemble({"na-eat": 1.0, "dis-na-eat": 1.0}, labelled_members=("dis-na-eat",))
    scores = {"na-eat": A, "dis-na-eat": B}
    np.testing.assert_array_equal(ensemble.score(scores, has_attributes=False), A)
    np.testing.assert_array_equal(ensemble.score(scores, has_attributes=True), B)
    np.testing.assert_array_equal(ensemble.score({"dis-na-eat": B}, has_attributes=True), B)


@pytest.mark.parametrize("fusion", ["mean", "minimum"])
def test_z_normalisation_makes_the_unit_of_a_member_irrelevant(fusion):
    normal = {"beats": RANDOM.normal(size=(2, 50)), "eat": RANDOM.normal(size=50)}
    scores = {"beats": np.stack([A, B]), "eat": C}
    ensemble = ScoreEnsemble({"beats": 1.0, "eat": 2.0}, fusion, z_normalize=True)
    wanted = ensemble.fit(normal).score(scores)
    ensemble.fit({**normal, "eat": 1000.0 * normal["eat"] - 7.0})
    np.testing.assert_allclose(ensemble.score({**scores, "eat": 1000.0 * C - 7.0}), wanted, atol=1e-9)


def test_z_normalised_self_scores_have_mean_zero_and_the_spread_of_the_fusion():
    normal = {"beats": 5.0 + RANDOM.normal(size=50)}
    ensemble = ScoreEnsemble({"beats": 3.0}, z_normalize=True).fit(normal)
    self_scores = ensemble.score(normal)
    assert self_scores.mean() == pytest.approx(0.0, abs=1e-12)
    assert self_scores.std() == pytest.approx(1.0)


def test_equal_self_scores_are_only_centred():
    ensemble = ScoreEnsemble({"beats": 1.0}, z_normalize=True).fit({"beats": np.full(7, 0.1)})
    np.testing.assert_allclose(ensemble.score({"beats": A}), A - 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {}}, "at least one member of weight above 0, got {}"),
        ({"weights": {"a": 0.0}}, "at least one member of weight above 0"),
        ({"weights": {"a": -1.0}}, "at least 0, got -1.0 for 'a'"),
        ({"weights": {"a": float("nan")}}, "finite"),
        ({"weights": {"a": 1.0}, "fusion": "maximum"}, "fusion must be 'mean' or 'minimum', got 'maximum'"),
        ({"weights": {"a": 1.0}, "labelled_members": ("b",)}, r"labelled_members must be among \['a'\]"),
        ({"weights": {"a": 1.0}, "labelled_members": "a"}, r"labelled_members must be among \['a'\]"),
        ({"weights": {"a": 1.0}, "labelled_members": ("a",)}, "for machines without labels"),
        ({"weights": {"a": 0.0, "b": 1.0}, "labelled_members": ("a",)}, "for machines with labels"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ScoreEnsemble(**settings)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"a": A}, r"must hold member 'b', got \['a'\]"),
        ({"a": A, "b": B, "c": C}, r"among \['a', 'b'\], got \['c'\]"),
        ({"a": A, "b": B[:-1]}, "one entry per clip for every member, got {'a': 20, 'b': 19}"),
        ({"a": A, "b": np.full(20, np.nan)}, "'b' must be finite"),
        ({"a": A, "b": np.zeros((2, 2, 20))}, r"'b' must have shape \(M,\) or \(S, M\), got \(2, 2, 20\)"),
        ({"a": A, "b": np.zeros(0)}, "shape"),
    ],
)
def test_bad_scores_are_named(scores, message):
    ensemble = ScoreEnsemble({"a": 1.0, "b": 1.0})
    for use in (ensemble.score, ensemble.fit):
        with pytest.raises(ValueError, match=message):
            use(scores)


def test_z_normalisation_wants_the_same_members_and_seeds():
    ensemble = ScoreEnsemble({"a": 1.0}, z_normalize=True)
    with pytest.raises(ValueError, match="needs fit with the self scores of 'a' first"):
        ensemble.score({"a": A})
    with pytest.raises(ValueError, match="2 seeds like the fitted ones, got 1"):
        ensemble.fit({"a": np.stack([A, B])}).score({"a": A})
