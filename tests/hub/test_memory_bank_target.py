"""Two memories, rank-weighted densities and coresets."""

import numpy as np
import pytest
import torch

from na_ssl_hf.hub.memory_bank import MemoryBank
from na_ssl_hf.hub.reference_sampling import greedy_coreset


def load(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def knn(goldens):
    return {name: load(goldens / f"backends/2_knn/{name}.npz") for name in ("embeddings", "knn", "merl", "memmixup")}


@pytest.fixture(scope="module")
def data(knn):
    arrays = knn["embeddings"]
    arrays["domains"] = np.where(arrays["train_is_target"] == 1, "target", "source")
    return arrays


def flat(embeddings):
    return embeddings.reshape(len(embeddings), 1, -1)  # (N, 1, F * D)


def random_embeddings(n, f=3, d=16, seed=0):
    return torch.randn(n, f, d, generator=torch.Generator().manual_seed(seed)) + 0.5


def close(got, wanted, atol=0.0, rtol=0.0):
    np.testing.assert_allclose(np.asarray(got), wanted, atol=atol, rtol=rtol)


DOMAINS = ["source"] * 30 + ["target"] * 4


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
@pytest.mark.parametrize(("source", "target"), [(1, 1), (4, 2), (1, 0)])
def test_separate_memories_equal_the_reference(data, knn, metric, source, target):
    bank = MemoryBank(
        distance="euclidean",
        normalize=metric == "cosine",
        num_neighbors=source,
        num_target_neighbors=target,
        separate_domains=True,
    )
    half = 0.5 if metric == "cosine" else 1.0
    name = f"{metric}_so{source}_ta{target}_smote0"
    bank.fit(data["train"], data["domains"])
    close(half * bank.band_scores(data["test"]), knn["knn"][f"band_{name}"], atol=5e-6)
    bank.fit(flat(data["train"]), data["domains"])
    close(half * bank.score(flat(data["test"])), knn["knn"][f"flat_{name}_f64"], atol=5e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_smote_with_several_neighbors_equals_the_reference(data, knn, metric):
    bank = MemoryBank(
        distance="euclidean",
        normalize=metric == "cosine",
        num_neighbors=4,
        num_target_neighbors=2,
        smote_ratio=0.2,
    ).fit(data["train"], data["domains"])
    half = 0.5 if metric == "cosine" else 1.0
    close(half * bank.band_scores(data["test"]), knn["knn"][f"band_{metric}_so4_ta2_smote02k2"], atol=5e-6)


@pytest.mark.parametrize("K", [4, 990])
def test_memmixup_equals_the_reference(data, knn, K):
    settings = {"distance": "euclidean", "normalize": False}
    bank = MemoryBank(memmixup_neighbors=K, **settings).fit(flat(data["train"]), data["domains"])
    close(bank.score(flat(data["test"])), knn["memmixup"][f"raw_min_ks{K}_f64"], atol=5e-6)
    sources = MemoryBank(num_target_neighbors=0, separate_domains=True, **settings)
    sources.fit(flat(data["train"]), data["domains"])
    close(sources.score(flat(data["test"])), knn["memmixup"][f"source_dist_ks{K}_f64"], atol=5e-6)
    # The mixtures come target by target, the nearest source clip first.
    train = flat(data["train"])[:, 0]
    target, source = train[data["domains"] == "target"][0], train[data["domains"] == "source"]
    nearest = source[knn["memmixup"][f"support_index_ks{K}"][0]]
    close(bank.memory_[0, 1000 : 1000 + K], 0.9 * target + 0.1 * nearest, atol=1e-5)


def test_a_target_clip_is_scored_without_its_own_mixtures():
    train = random_embeddings(34)
    bank = MemoryBank(memmixup_neighbors=3).fit(train, DOMAINS)
    others = MemoryBank(memmixup_neighbors=3).fit(train[:-1], DOMAINS[:-1])
    torch.testing.assert_close(bank.self_scores()[-1], others.score(train[-1:])[0])


@pytest.mark.parametrize("metric", ["cos", "mse"])
@pytest.mark.parametrize("rescaling", ["ratio", "difference"])
def test_rank_weighted_density_equals_the_reference(data, knn, metric, rescaling):
    settings = {"normalize": False, "distance": "euclidean"} if metric == "mse" else {}
    bank = MemoryBank(rescaling=rescaling, rescaling_decay=0.9, **settings)
    # "mse" of the reference is a quarter of the plain distance, which the ratio cancels.
    quarter = 0.25 if metric == "mse" else 1.0
    unit = quarter if rescaling == "difference" else 1.0
    name = f"{metric}_{rescaling}_gwrp09"
    close(unit * bank.fit(data["train"]).score(data["test"]), knn["merl"][f"bandmean_{name}_f64"], 3e-6, 2e-4)
    bank.fit(flat(data["train"]))
    close(quarter * bank.density_[0], knn["merl"][f"flat_{name}_refconst_f64"], rtol=2e-4)
    close(unit * bank.score(flat(data["test"])), knn["merl"][f"flat_{name}_f64"], 3e-6, 2e-4)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_rank_weights_reach_from_the_nearest_to_the_mean(distance):
    train = random_embeddings(20)
    settings = {"rescaling": "difference", "distance": distance}
    for decay, neighbors in ((0.0, 1), (1.0, 19)):
        weighted = MemoryBank(rescaling_decay=decay, **settings).fit(train)
        plain = MemoryBank(num_rescaling_neighbors=neighbors, **settings).fit(train)
        torch.testing.assert_close(weighted.density_, plain.density_)


@pytest.mark.parametrize(
    "settings",
    [
        {"rescaling": "ratio", "rescaling_decay": 0.0},
        {"rescaling": "ratio", "rescaling_decay": 0.9},
        {"rescaling": "difference", "rescaling_decay": 0.9},
        {"rescaling": "variance_min", "rescaling_decay": 0.9},
        {"rescaling": "ratio", "coreset_size": 9},
        {"rescaling": "lof", "coreset_size": 9},
        {"rescaling": "variance_min", "coreset_size": 2},
        {"separate_domains": True},
        {"memmixup_neighbors": 4},
        {"smote_ratio": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_duplicates_never_give_nan(settings, distance):
    train = torch.cat([random_embeddings(6).repeat(5, 1, 1), torch.ones(4, 3, 16)])
    for clips in (train, torch.ones(34, 3, 16), torch.zeros(34, 3, 16)):
        bank = MemoryBank(distance=distance, **settings).fit(clips, DOMAINS)
        assert bank.self_scores().isfinite().all()
        scores = bank.score(torch.cat([clips[:2], random_embeddings(2, seed=1)]))
        assert scores.isfinite().all()
        assert scores[:2].max() <= scores[2:].min() + 1e-6


# Coreset


def test_coreset_is_seeded_covers_and_has_nested_sizes():
    clips = random_embeddings(60).transpose(0, 1).contiguous()
    norms = clips.square().sum(dim=2)
    chosen = greedy_coreset(clips, norms, 20, seed=3)
    assert torch.equal(chosen, greedy_coreset(clips, norms, 20, seed=3))
    assert torch.equal(chosen[:7], greedy_coreset(clips, norms, 7, seed=3))
    assert len(set(chosen.tolist())) == 20
    assert chosen[0] != greedy_coreset(clips, norms, 1, seed=4)[0]
    points = clips.transpose(0, 1).flatten(1).double()
    distances = torch.cdist(points, points)
    for size in range(1, 20):
        # Every next clip is the one that lies farthest from those chosen so far.
        to_chosen = distances[:, chosen[:size]].amin(dim=1)
        assert to_chosen[chosen[size]] == pytest.approx(to_chosen.max().item(), rel=1e-5)


def test_coreset_of_duplicates_holds_every_clip_once():
    clips = torch.ones(2, 10, 4)
    assert sorted(greedy_coreset(clips, clips.square().sum(dim=2), 10).tolist()) == list(range(10))
    for size in (0, 11):
        with pytest.raises(ValueError, match=rf"`size` must be in 1..10, .* got {size}"):
            greedy_coreset(clips, clips.square().sum(dim=2), size)


@pytest.mark.parametrize("rescaling", [None, "variance_min", "lof"])
def test_a_coreset_bank_is_the_bank_of_its_clips(rescaling):
    train, test = random_embeddings(40), random_embeddings(6, seed=1)
    bank = MemoryBank(rescaling=rescaling, coreset_size=15).fit(train)
    assert bank.memory_.shape == (3, 15, 16)
    small = MemoryBank(rescaling=rescaling).fit(train[bank.coreset_])
    torch.testing.assert_close(bank.score(test), small.score(test), rtol=0, atol=0)
    # Clips that were kept are scored without their own entry, the others as they are.
    wanted = small.score(train)
    wanted[bank.coreset_] = small.self_scores()
    torch.testing.assert_close(bank.self_scores(), wanted, rtol=0, atol=0)


def test_a_budget_beyond_the_clips_changes_nothing():
    train, test = random_embeddings(12), random_embeddings(6, seed=1)
    bank, whole = MemoryBank(coreset_size=20).fit(train), MemoryBank().fit(train)
    torch.testing.assert_close(bank.score(test), whole.score(test), rtol=0, atol=0)
    torch.testing.assert_close(bank.self_scores(), whole.self_scores(), rtol=0, atol=0)


def test_target_clips_stay_in_the_coreset():
    bank = MemoryBank(separate_domains=True, coreset_size=10).fit(random_embeddings(34), DOMAINS)
    assert bank.coreset_.tolist()[-4:] == [30, 31, 32, 33]
    assert bank.num_clips_ == 10
    assert bank.self_scores().shape == (34,)
    with pytest.raises(
        ValueError, match="`coreset_size=4` must leave room for a source clip beside the 4 target clips"
    ):
        MemoryBank(separate_domains=True, coreset_size=4).fit(random_embeddings(34), DOMAINS)


def test_a_coreset_bank_cannot_be_changed():
    bank = MemoryBank(coreset_size=5).fit(random_embeddings(10))
    for change in (lambda: bank.partial_fit(random_embeddings(1)), lambda: bank.forget([0])):
        with pytest.raises(ValueError, match="`coreset_size` must be None to change a fitted bank, got 5"):
            change()


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"separate_domains": 1}, "`separate_domains` must be True or False, got 1"),
        ({"separate_domains": True, "rescaling": "ratio"}, "rescaling=None"),
        ({"memmixup_neighbors": 2, "smote_ratio": 0.2}, "exclude each other"),
        ({"memmixup_neighbors": -1}, "`memmixup_neighbors` must be an int of at least 0, got -1"),
        ({"memmixup_neighbors": 2, "index": "flat"}, "index=None"),
        ({"num_target_neighbors": 2}, "`num_target_neighbors` must be None unless .* got 2"),
        ({"num_target_neighbors": 1.5, "separate_domains": True}, "`num_target_neighbors` must be an int"),
        ({"rescaling_decay": 0.9}, "`rescaling_decay` must be None with rescaling=None, got 0.9"),
        ({"rescaling_decay": 0.9, "rescaling": "lof"}, "must be None with rescaling='lof', got 0.9"),
        ({"rescaling_decay": 1.5, "rescaling": "ratio"}, r"`rescaling_decay` must be a number in \[0, 1\], got 1.5"),
        ({"coreset_size": 0}, "`coreset_size` must be an int of at least 1, got 0"),
        ({"coreset_size": 2, "max_clips": 5}, "exclude each other"),
        ({"index": "annoy"}, "`index` must be one of"),
    ],
)
def test_bad_parameters_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(**settings)


@pytest.mark.parametrize(
    ("settings", "domains", "message"),
    [
        ({"separate_domains": True}, None, "`separate_domains=True` needs domains"),
        ({"memmixup_neighbors": 2}, None, "`memmixup_neighbors=2` needs domains"),
        ({"memmixup_neighbors": 2}, ["source"] * 5, "needs clips of both domains, got 0 target and 5 source clips"),
        ({"separate_domains": True, "num_target_neighbors": 0}, ["target"] * 5, "needs source clips, got 5 target"),
    ],
)
def test_bad_domains_are_named(settings, domains, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(**settings).fit(random_embeddings(5), domains)


def test_a_single_domain_scores_as_one_memory():
    train, test = random_embeddings(10), random_embeddings(3, seed=1)
    for domain in ("source", "target"):
        bank = MemoryBank(separate_domains=True).fit(train, [domain] * 10)
        torch.testing.assert_close(bank.score(test), MemoryBank().fit(train).score(test), rtol=0, atol=0)
    lonely = MemoryBank(separate_domains=True, num_target_neighbors=0).fit(train[:3], ["source", "target", "target"])
    with pytest.raises(ValueError, match="at least 2 source clips"):
        lonely.self_scores()
