import json
import os
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.neighbors import LocalOutlierFactor
from tiny_models import some_calibration

from na_ssl_hf.hub import memory_bank, memory_bank_rescaling, nearest_neighbors
from na_ssl_hf.hub.memory_bank import MEMORY_BANK_FILE, MemoryBank
from na_ssl_hf.hub.memory_bank_rescaling import LocalDensity, RescalingName

RESCALINGS = [None, "variance_min", "ratio", "difference", "lof"]


def load(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def knn(goldens):
    names = ("embeddings", "knn", "knn_rescale", "merl", "smote", "edge_duplicates_zero")
    return {name: load(goldens / f"backends/2_knn/{name}.npz") for name in names}


@pytest.fixture(scope="module")
def data(knn):
    arrays = knn["embeddings"]
    arrays["domains"] = np.where(arrays["train_is_target"] == 1, "target", "source")
    return arrays


@pytest.fixture(scope="module")
def beam(goldens):
    return load(goldens / "backends/3_beam/beam_main.npz")


@pytest.fixture(scope="module")
def edges(goldens):
    return load(goldens / "backends/3_beam/beam_edges.npz")


def flat(embeddings):
    return embeddings.reshape(len(embeddings), 1, -1)  # (N, 1, F * D)


def close(got, wanted, atol=0.0, rtol=0.0):
    np.testing.assert_allclose(np.asarray(got), wanted, atol=atol, rtol=rtol)


# Reference numbers


@pytest.mark.parametrize("K", [1, 4, 16])
def test_variance_minimisation_equals_the_reference(data, beam, K):
    bank = MemoryBank(rescaling="variance_min", num_rescaling_neighbors=K).fit(data["train"], data["domains"])
    close(bank.density_.T, beam[f"K{K}_b_f64"], atol=3e-6)
    close(bank.alpha_, beam[f"K{K}_alpha_f64"], atol=5e-4)
    close(bank.band_scores(data["test"]), beam[f"K{K}_main_band_f64"], atol=3e-6)
    close(bank.score(data["test"]), beam[f"K{K}_main_f64"], atol=3e-6)


def test_leave_one_out_scores_equal_the_reference(data, beam):
    index = beam["trainself_index"]
    raw = MemoryBank().fit(data["train"])
    close(raw.self_scores()[index], beam["trainself_raw_f64"], atol=3e-6)
    rescaled = MemoryBank(rescaling="variance_min").fit(data["train"])
    close(rescaled.self_scores()[index], beam["trainself_main_f64"], atol=3e-6)


def test_a_flattened_embedding_is_a_single_band(data, beam):
    bank = MemoryBank(rescaling="variance_min").fit(flat(data["train"]))
    close(bank.score(flat(data["test"])), beam["flat_K4_main_f64"], atol=3e-6)
    close(bank.alpha_, beam["flat_K4_alpha_f64"], atol=5e-4)


EDGES = ["constdensity", "mixedconst", "R3", "R2", "zero", "dups", "dups_scaled", "tight", "negalpha", "switch"]


@pytest.mark.parametrize("case", EDGES)
def test_variance_minimisation_at_edges(edges, case):
    K = int(edges.get(f"{case}_K", 4))
    bank = MemoryBank(rescaling="variance_min", num_rescaling_neighbors=K).fit(edges[f"{case}_train"])
    close(bank.density_.T, edges[f"{case}_b_f64"], atol=1e-5)
    close(bank.alpha_, edges[f"{case}_alpha_f64"], atol=5e-4)
    close(bank.score(edges[f"{case}_test"]), edges[f"{case}_main_f64"], atol=1e-5)
    raw = MemoryBank().fit(edges[f"{case}_train"])
    close(raw.score(edges[f"{case}_test"]), edges[f"{case}_raw_f64"], atol=1e-5)


def test_a_single_reference_scores_raw_but_does_not_rescale(edges):
    bank = MemoryBank().fit(edges["R1_train"])
    close(bank.score(edges["R1_test"]), edges["R1_raw_f64"], atol=1e-6)
    with pytest.raises(ValueError, match="at least 2 clips"):
        bank.self_scores()
    for rescaling in RESCALINGS[1:]:
        with pytest.raises(ValueError, match="at least 2 clips in embeddings, got 1"):
            MemoryBank(rescaling=rescaling).fit(edges["R1_train"])


@pytest.mark.parametrize("rescaling", [None, "ratio", "difference"])
@pytest.mark.parametrize("K", [1, 4, 16])
def test_local_density_normalisation_equals_the_reference(data, knn, rescaling, K):
    name = f"{rescaling}_K{K}" if rescaling else "none"
    settings = {"rescaling": rescaling, "num_rescaling_neighbors": K}
    cosine = MemoryBank(**settings).fit(data["train"])
    close(cosine.score(data["test"]), knn["merl"][f"bandmean_cos_{name}_f64"], 3e-6, 2e-4)
    # "mse" of the reference is a quarter of the plain distance, which the ratio cancels.
    quarter = 1.0 if rescaling == "ratio" else 0.25
    euclidean = MemoryBank(distance="euclidean", normalize=False, **settings).fit(data["train"])
    close(quarter * euclidean.score(data["test"]), knn["merl"][f"bandmean_mse_{name}_f64"], 3e-6, 2e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
@pytest.mark.parametrize("suffix", ["K1", "K4", "K16", "K4_n2", "K4_n5"])
def test_distance_ratio_equals_the_reference(data, knn, metric, suffix):
    K, _, n = suffix[1:].partition("_n")
    bank = MemoryBank(
        distance="euclidean",
        normalize=metric == "cosine",
        rescaling="ratio",
        num_rescaling_neighbors=int(K),
        num_neighbors=int(n or 1),
    ).fit(flat(data["train"]))
    close(bank.score(flat(data["test"])), knn["knn_rescale"][f"flat_{metric}_{suffix}_f64"], rtol=2e-4)


@pytest.mark.parametrize("metric", ["cos", "mse"])
@pytest.mark.parametrize("K", [4, 8])
def test_local_outlier_factor_equals_the_reference(data, knn, metric, K):
    bank = MemoryBank(rescaling="lof", num_rescaling_neighbors=K, normalize=metric == "cos", distance="euclidean")
    bank.fit(data["train"])
    close(bank.score(data["test"]), knn["merl"][f"bandmean_{metric}_LOF_K{K}"], rtol=1e-4)


def test_leave_one_out_local_outlier_factor_is_that_of_scikit_learn(data):
    train = data["train"][:200]
    bank = MemoryBank(rescaling="lof", normalize=False, distance="euclidean").fit(train)
    factors = [-LocalOutlierFactor(n_neighbors=4).fit(train[:, band]).negative_outlier_factor_ for band in range(8)]
    close(bank.self_scores(), np.mean(factors, axis=0), rtol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_nearest_distance_equals_the_reference(data, knn, metric):
    bank = MemoryBank(distance="euclidean", normalize=metric == "cosine").fit(data["train"])
    half = 0.5 if metric == "cosine" else 1.0
    close(half * bank.band_scores(data["test"]), knn["knn"][f"band_{metric}_so1_ta1_smote0"], atol=5e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclid"])
def test_smote_equals_the_reference(data, knn, metric):
    bank = MemoryBank(distance="euclidean", normalize=metric == "cosine", smote_ratio=0.2, smote_neighbors=2)
    half = 0.5 if metric == "cosine" else 1.0
    bank.fit(data["train"], data["domains"])
    close(half * bank.band_scores(data["test"]), knn["knn"][f"band_{metric}_so1_ta1_smote02k2"], atol=5e-6)
    assert bank.memory_.shape == (8, 1000 + 188, 32)
    if metric == "euclid":
        close(bank.memory_[3, 1000:], knn["smote"]["band3_euclid_synthetic"], atol=1e-6)
    bank.fit(flat(data["train"]), data["domains"])
    close(half * bank.score(flat(data["test"])), knn["knn"][f"flat_{metric}_so1_ta1_smote02k2_f64"], atol=5e-6)


def test_zero_vectors_under_euclidean_distance(knn):
    edge = knn["edge_duplicates_zero"]
    bank = MemoryBank(distance="euclidean").fit(edge["zero_train"][:, None])
    close(bank.score(edge["zero_test"][:, None]) / 2, edge["zero_knn_cosine_so1_ta1"], atol=1e-6)


# Properties


def random_embeddings(n, f=3, d=16, seed=0):
    return torch.randn(n, f, d, generator=torch.Generator().manual_seed(seed)) + 0.5


@pytest.mark.parametrize("rescaling", RESCALINGS)
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_duplicates_never_give_nan_and_a_copy_is_not_anomalous(rescaling, distance):
    train = random_embeddings(6).repeat(3, 1, 1)
    bank = MemoryBank(distance=distance, rescaling=rescaling, num_rescaling_neighbors=2).fit(train)
    assert bank.self_scores().isfinite().all()
    scores = bank.score(torch.cat([train[:2], random_embeddings(2, seed=1)]))
    assert scores.isfinite().all()
    assert scores[:2].max() < scores[2:].min()
    if rescaling in (None, "ratio"):
        assert scores[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("rescaling", RESCALINGS)
def test_one_by_one_equals_a_batch(rescaling):
    bank = MemoryBank(rescaling=rescaling, num_neighbors=2).fit(random_embeddings(50))
    queries = random_embeddings(20, seed=1)
    torch.testing.assert_close(torch.cat([bank.score(query[None]) for query in queries]), bank.score(queries))


@pytest.mark.parametrize("rescaling", RESCALINGS)
def test_chunking_changes_nothing(monkeypatch, rescaling):
    whole = MemoryBank(rescaling=rescaling).fit(random_embeddings(50))
    monkeypatch.setattr(nearest_neighbors, "CHUNK_ROWS", 7)
    pieces = MemoryBank(rescaling=rescaling).fit(random_embeddings(50))
    torch.testing.assert_close(pieces.self_scores(), whole.self_scores())
    torch.testing.assert_close(pieces.score(random_embeddings(9, seed=1)), whole.score(random_embeddings(9, seed=1)))


@pytest.mark.parametrize("rescaling", [None, "ratio", "difference"])
def test_self_scores_are_scores_against_the_others(rescaling):
    train = random_embeddings(30)
    bank = MemoryBank(rescaling=rescaling, num_neighbors=3).fit(train)
    others = MemoryBank(num_neighbors=3).fit(train[1:])
    # Densities stay as fitted with all clips.
    others.rescaling, others.density_ = rescaling, bank.density_[:, 1:] if rescaling else None
    torch.testing.assert_close(bank.self_scores()[0], others.score(train[:1])[0])


def test_bands_are_independent_and_aggregated_as_asked():
    train, test = random_embeddings(40), random_embeddings(5, seed=1)
    bank = MemoryBank(rescaling="variance_min").fit(train)
    alone = MemoryBank(rescaling="variance_min").fit(train[:, 1:2])
    torch.testing.assert_close(alone.score(test[:, 1:2]), bank.band_scores(test)[:, 1])
    highest = MemoryBank(rescaling="variance_min", band_aggregation="max").fit(train)
    torch.testing.assert_close(highest.score(test), bank.band_scores(test).amax(dim=1))


def test_near_duplicates_keep_their_distance_in_float32():
    train = random_embeddings(20, d=768)
    step = 1e-4 * torch.nn.functional.normalize(random_embeddings(1, d=768, seed=1), dim=2)
    near = torch.nn.functional.normalize(train[:1], dim=2) + step
    bank = MemoryBank(distance="euclidean").fit(train)
    exact = [torch.nn.functional.normalize(array.double(), dim=2).float().double() for array in (near, train[:1])]
    wanted = (exact[0] - exact[1]).norm(dim=2).mean()
    assert bank.score(near).item() == pytest.approx(wanted.item(), rel=1e-2)


def test_every_input_type_gives_the_same_scores():
    train = random_embeddings(20).bfloat16()
    wanted = MemoryBank().fit(train).self_scores()
    frozen = train.double().numpy()
    frozen.flags.writeable = False
    for same in (train.float(), frozen, train.double().numpy().tolist(), train.clone().float().requires_grad_()):
        torch.testing.assert_close(MemoryBank().fit(same).self_scores(), wanted, rtol=0, atol=0)


def test_autocast_does_not_lower_the_precision():
    train = random_embeddings(20)
    wanted = MemoryBank(rescaling="variance_min").fit(train).self_scores()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = MemoryBank(rescaling="variance_min").fit(train).self_scores()
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_new_rescaling_is_a_new_class(monkeypatch, tmp_path):
    class HalfDensity(LocalDensity):
        """Half of the density is subtracted, and a number is learned that no other rescaling knows."""

        name = "half"
        per_band = ("half_",)

        def learn(self, references):
            return super().learn(references) | {"half_": torch.tensor(0.5)}

        def _rescaled(self, references, learned):
            return replace(references, subtract=learned["half_"] * learned["density_"])

    monkeypatch.setitem(memory_bank_rescaling.RESCALINGS, "half", HalfDensity)
    bank = MemoryBank(rescaling="half").fit(random_embeddings(30))
    bank.save_pretrained(tmp_path)
    loaded = MemoryBank.from_pretrained(tmp_path)
    queries = random_embeddings(5, seed=1)
    torch.testing.assert_close(loaded.score(queries), bank.score(queries), rtol=0, atol=0)
    plain, difference = (MemoryBank(rescaling=name).fit(random_embeddings(30)) for name in (None, "difference"))
    assert (difference.score(queries) < bank.score(queries)).all()
    assert (bank.score(queries) < plain.score(queries)).all()
    bank.rescaling = None
    assert not hasattr(bank.fit(random_embeddings(30)), "half_")


def test_every_rescaling_has_a_name_that_types_know():
    assert set(memory_bank_rescaling.RESCALINGS) == set(RESCALINGS) == {None, *get_args(RescalingName)}


# Leave one out


def refitted_scores(embeddings, **settings):
    """The score of every clip by a memory that never held it."""
    rows = torch.arange(len(embeddings))
    return torch.cat(
        [MemoryBank(**settings).fit(embeddings[rows != row]).score(embeddings[row : row + 1]) for row in rows]
    )


@pytest.mark.parametrize("num_neighbors", [1, 3])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("rescaling", [None, "variance_min", "ratio", "difference"])
def test_exact_self_scores_are_those_of_memories_that_never_held_the_clip(rescaling, distance, num_neighbors):
    embeddings = random_embeddings(25).cumsum(dim=0)  # of uneven density
    settings = {"rescaling": rescaling, "distance": distance, "num_neighbors": num_neighbors}
    expected = refitted_scores(embeddings, **settings)
    bank = MemoryBank(**settings).fit(embeddings)
    torch.testing.assert_close(bank.self_scores(exact=True), expected, rtol=1e-3, atol=1e-6)
    if rescaling is not None:
        assert not torch.allclose(bank.self_scores(), expected, rtol=1e-2)


@pytest.mark.parametrize("num_clips", [3, 4, 5])
def test_exact_self_scores_of_a_few_clips(num_clips):
    embeddings = random_embeddings(num_clips)
    bank = MemoryBank(rescaling="ratio").fit(embeddings)
    expected = refitted_scores(embeddings, rescaling="ratio")
    torch.testing.assert_close(bank.self_scores(exact=True), expected, rtol=1e-3, atol=1e-6)


def test_chunks_do_not_change_exact_self_scores(monkeypatch):
    bank = MemoryBank(rescaling="variance_min").fit(random_embeddings(30))
    whole = bank.self_scores(exact=True)
    monkeypatch.setattr(memory_bank_rescaling, "LEAVE_ONE_OUT_ELEMENTS", 7 * 30)
    torch.testing.assert_close(bank.self_scores(exact=True), whole)


@pytest.mark.parametrize("settings", [{"rescaling": "lof"}, {"coreset_size": 9}, {"smote_ratio": 0.5}])
def test_other_memories_have_one_kind_of_self_scores(settings):
    bank = MemoryBank(**settings).fit(random_embeddings(40), domains=["target"] * 5 + ["source"] * 35)
    torch.testing.assert_close(bank.self_scores(exact=True), bank.self_scores(), rtol=0, atol=0)


# Saving


@pytest.mark.parametrize("settings", [{"rescaling": rescaling} for rescaling in RESCALINGS] + [{"smote_ratio": 0.5}])
def test_a_saved_bank_scores_the_same(tmp_path, settings):
    bank = MemoryBank(num_neighbors=np.int64(2), **settings)
    bank.fit(random_embeddings(40), domains=["target"] * 5 + ["source"] * 35)
    bank.calibration = some_calibration()
    bank.save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == [MEMORY_BANK_FILE]
    loaded = MemoryBank.from_pretrained(tmp_path)
    assert repr(loaded) == repr(MemoryBank(num_neighbors=2, **settings))
    assert loaded.calibration == bank.calibration
    queries = random_embeddings(5, seed=1)
    torch.testing.assert_close(loaded.score(queries), bank.score(queries), rtol=0, atol=0)
    torch.testing.assert_close(loaded.self_scores(), bank.self_scores(), rtol=0, atol=0)


def test_a_kill_while_writing_leaves_the_old_bank(tmp_path, monkeypatch):
    MemoryBank().fit(random_embeddings(5)).save_pretrained(tmp_path)
    before = (tmp_path / MEMORY_BANK_FILE).read_bytes()

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(memory_bank.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        MemoryBank().fit(random_embeddings(6)).save_pretrained(tmp_path)
    assert (tmp_path / MEMORY_BANK_FILE).read_bytes() == before
    assert os.listdir(tmp_path) == [MEMORY_BANK_FILE]


def test_a_bank_is_for_whom_the_umask_says_whatever_safetensors_sets(tmp_path):
    before = os.umask(0o022)
    try:
        MemoryBank().fit(random_embeddings(5)).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / MEMORY_BANK_FILE).stat().st_mode & 0o777 == 0o644


def test_a_missing_bank_is_named(tmp_path):
    with pytest.raises(OSError, match=f"holds no {MEMORY_BANK_FILE}"):
        MemoryBank.from_pretrained(tmp_path)


def test_truncated_and_foreign_files_are_named(tmp_path):
    file = tmp_path / MEMORY_BANK_FILE
    MemoryBank().fit(random_embeddings(5)).save_pretrained(tmp_path)
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[:-1], b"not a bank at all"):
        file.write_bytes(content)
        with pytest.raises(OSError, match="not a readable memory bank"):
            MemoryBank.from_pretrained(tmp_path)
    save_file({"weight": torch.ones(2)}, file)
    with pytest.raises(OSError, match="not a readable memory bank"):
        MemoryBank.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"settings": {"distance": "manhattan"}},
        {"settings": {"colour": "red"}},
        {"settings": {"rescaling": "variance_min"}},
        {"num_clips": 6},
        {"num_clips": "5"},
        {"calibration": {}},
        {"calibration": some_calibration().to_dict() | {"threshold": float("nan")}},
    ],
)
def test_inconsistent_files_are_named(tmp_path, change):
    MemoryBank().fit(random_embeddings(5)).save_pretrained(tmp_path)
    with safe_open(tmp_path / MEMORY_BANK_FILE, "pt") as file:
        header = {**json.loads(file.metadata()["memory_bank"]), **change}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, tmp_path / MEMORY_BANK_FILE, metadata={"memory_bank": json.dumps(header)})
    with pytest.raises(OSError, match="not a readable memory bank"):
        MemoryBank.from_pretrained(tmp_path)


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distance": "manhattan"}, "`distance` must be one of .* got 'manhattan'"),
        ({"rescaling": "none"}, "`rescaling` must be one of"),
        ({"band_aggregation": ["mean"]}, "`band_aggregation` must be one of"),
        ({"normalize": "yes"}, "`normalize` must be True or False"),
        ({"num_neighbors": 0}, "`num_neighbors` must be an int of at least 1, got 0"),
        ({"num_rescaling_neighbors": 2.0}, "`num_rescaling_neighbors` must be an int"),
        ({"smote_neighbors": True}, "`smote_neighbors` must be an int"),
        ({"smote_ratio": float("nan")}, r"`smote_ratio` must be a number in \[0, 1\]"),
        ({"smote_ratio": 0.2, "rescaling": "ratio"}, "rescaling=None"),
    ],
)
def test_bad_parameters_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(**settings)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.ones(4, 3), r"shape \(N, F, D\) .* got \(4, 3\)"),
        (torch.ones(0, 3, 16), "without empty axes"),
        (torch.full((2, 3, 16), torch.nan), "finite in float32, .* in clip 0"),
        (torch.cat([torch.ones(2, 3, 16), torch.full((1, 3, 16), -torch.inf)]), "in clip 2"),
        (np.full((2, 3, 16), 1e300), "finite in float32"),
        (torch.ones(2, 3, 16, dtype=torch.complex64), "real numbers"),
        (np.full((2, 3, 16), "a"), "real numbers"),
    ],
)
def test_bad_embeddings_are_named(embeddings, message):
    fitted = MemoryBank().fit(random_embeddings(5))
    for use in (MemoryBank().fit, fitted.fit, fitted.score):
        with pytest.raises(ValueError, match=message):
            use(embeddings)
    assert fitted.num_clips_ == 5


@pytest.mark.parametrize("shape", [(2, 4, 16), (2, 3, 8)])
def test_another_band_or_channel_count_is_named(shape):
    with pytest.raises(ValueError, match="3 bands of 16 channels"):
        MemoryBank().fit(random_embeddings(5)).score(torch.ones(shape))


def test_an_unfitted_bank_says_so(tmp_path):
    for use in (MemoryBank().self_scores, lambda: MemoryBank().score(random_embeddings(1))):
        with pytest.raises(ValueError, match="not fitted yet"):
            use()
    with pytest.raises(ValueError, match="not fitted yet"):
        MemoryBank().save_pretrained(tmp_path)


def test_cosine_without_normalisation_wants_unit_vectors():
    unit = torch.nn.functional.normalize(random_embeddings(10), dim=2)
    scores = MemoryBank(normalize=False).fit(unit).self_scores()
    torch.testing.assert_close(scores, MemoryBank().fit(unit).self_scores())
    with pytest.raises(ValueError, match="unit norm"):
        MemoryBank(normalize=False).fit(random_embeddings(10))


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (None, "needs domains"),
        (["source"] * 39, "40 clips, got 39"),
        ("source", "one entry for each"),
        (["source"] * 39 + ["tar"], "got 'tar' for clip 39"),
        (["source"] * 38 + ["target"] * 2, "at least 3 clips of the target domain, got 2"),
        (["source"] * 30 + ["target"] * 10, "10 target and 30 source clips"),
    ],
)
def test_bad_domains_are_named(domains, message):
    with pytest.raises(ValueError, match=message):
        MemoryBank(smote_ratio=0.2).fit(random_embeddings(40), domains=domains)
