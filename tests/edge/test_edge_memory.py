"""The memory of na-ssl-edge scores as MemoryBank does, on the goldens of MemoryBank and on its own edges."""

import numpy as np
import pytest

from na_ssl_edge.memory import Memory
from na_ssl_hf import MemoryBank


def memory_of(bank: MemoryBank) -> Memory:
    settings, tensors = bank.state()
    return Memory(settings, {name: tensor.numpy() for name, tensor in tensors.items()})


def load(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def data(goldens):
    arrays = load(goldens / "backends/2_knn/embeddings.npz")
    arrays["domains"] = np.where(arrays["train_is_target"] == 1, "target", "source")
    return arrays


@pytest.mark.parametrize("K", [1, 4, 16])
def test_variance_minimisation_equals_the_reference(goldens, data, K):
    beam = load(goldens / "backends/3_beam/beam_main.npz")
    bank = MemoryBank(rescaling="variance_min", num_rescaling_neighbors=K).fit(data["train"])
    np.testing.assert_allclose(memory_of(bank).band_scores(data["test"]), beam[f"K{K}_main_band_f64"], atol=3e-6)


EDGES = ["constdensity", "mixedconst", "R3", "R2", "zero", "dups", "dups_scaled", "tight", "negalpha", "switch"]


@pytest.mark.parametrize("case", EDGES)
def test_edges_equal_the_reference(goldens, case):
    edges = load(goldens / "backends/3_beam/beam_edges.npz")
    count, train, test = int(edges.get(f"{case}_K", 4)), edges[f"{case}_train"], edges[f"{case}_test"]
    for settings, wanted in (({"rescaling": "variance_min", "num_rescaling_neighbors": count}, "main"), ({}, "raw")):
        memory = memory_of(MemoryBank(**settings).fit(train))
        scores = memory.aggregate_bands(memory.band_scores(test))
        np.testing.assert_allclose(scores, edges[f"{case}_{wanted}_f64"], atol=1e-5)


SETTINGS = {
    "plain": {},
    "several neighbours": {"num_neighbors": 3},
    "euclidean": {"distance": "euclidean", "normalize": False},
    "largest band": {"band_aggregation": "max"},
    "ratio": {"rescaling": "ratio"},
    "ratio euclidean": {"rescaling": "ratio", "distance": "euclidean", "normalize": False},
    "difference": {"rescaling": "difference", "num_neighbors": 2},
    "rank weights": {"rescaling": "ratio", "rescaling_decay": 0.5},
    "lof": {"rescaling": "lof"},
    "coreset": {"coreset_size": 40},
    "two memories": {"separate_domains": True, "num_neighbors": 2, "num_target_neighbors": 1},
    "source decides": {"separate_domains": True, "num_target_neighbors": 0},
    "smote": {"smote_ratio": 0.5},
    "memmixup": {"memmixup_neighbors": 3},
    "two domains": {"backend": "two_domains", "num_neighbors": 2},
    "mahalanobis": {"backend": "mahalanobis"},
    "pca": {"backend": "pca"},
    "fused by minimum": {"backend": ("nearest", "mahalanobis", "two_domains"), "rescaling": "variance_min"},
    "fused by mean": {"backend": ("nearest", "pca"), "backend_fusion": "mean"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_scores_as_memory_bank(data, name):
    some = slice(0, 1000, 8)
    target = data["domains"] == "target"
    chosen = np.concatenate([np.flatnonzero(~target)[some], np.flatnonzero(target)])
    bank = MemoryBank(**SETTINGS[name]).fit(data["train"][chosen], data["domains"][chosen])
    queries = np.concatenate([data["test"], data["train"][chosen][:3], np.zeros_like(data["test"][:1])])
    if name == "lof":
        queries = queries[:-1]  # which of the equally far neighbours of a zero vector count is anybody's choice
    wanted = bank.band_scores(queries)
    scores = memory_of(bank).band_scores(queries)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, wanted, atol=2e-6, rtol=2e-5)
    aggregated = memory_of(bank).aggregate_bands(scores)
    np.testing.assert_allclose(aggregated, bank.aggregate_bands(wanted), atol=2e-6, rtol=2e-5)


def test_vectors_of_another_shape_and_damaged_memories_are_refused(data):
    bank = MemoryBank(rescaling="ratio").fit(data["train"][:20])
    memory = memory_of(bank)
    with pytest.raises(ValueError, match="8 bands of 32 channels like the memory, got shape"):
        memory.band_scores(data["test"][:, :4])
    with pytest.raises(ValueError, match="must be finite"):
        memory.band_scores(np.full_like(data["test"][:1], np.nan))
    settings, tensors = bank.state()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    with pytest.raises(ValueError, match="must hold"):
        Memory(settings, {name: array for name, array in arrays.items() if name != "density_"})
    with pytest.raises(ValueError, match="`density_` must have the shape"):
        Memory(settings, arrays | {"density_": arrays["density_"][:, :5]})
    with pytest.raises(ValueError, match="`rescaling` must be one of"):
        Memory(settings | {"rescaling": "magic"}, arrays)
    with pytest.raises(ValueError, match="`memory_` must be finite"):
        Memory(settings, arrays | {"memory_": np.full_like(arrays["memory_"], np.inf)})
