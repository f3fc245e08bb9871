"""FAISS behind the same class."""

import sys

import pytest
import torch

from na_ssl_hf.hub.memory_bank import MemoryBank

INDEXES = ["flat", "ivf", "hnsw"]
MINUS = ("variance_min", "difference")


@pytest.fixture(scope="module")
def clips():
    """Curved sheets of 6 dimensions in 64, with noise: embeddings fill few of their dimensions too."""
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    bend, spread = (torch.randn(shape, generator=generator) for shape in ((6, 32), (32, 64)))
    sheets = torch.tanh(torch.randn(2100, 2, 6, generator=generator) @ bend) @ spread
    return (sheets + 0.02 * torch.randn(sheets.shape, generator=generator)).split([2000, 100])


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("rescaling", [None, "variance_min", "ratio", "difference", "lof"])
def test_scores_are_those_of_the_exact_search(clips, index, distance, rescaling):
    train, test = clips
    settings = {"distance": distance, "rescaling": rescaling}
    exact = MemoryBank(**settings).fit(train)
    bank = MemoryBank(index=index, **settings).fit(train)
    wanted, got = exact.band_scores(test), bank.band_scores(test)
    # Recall: the share of queries that found a reference as near as the nearest one, within 1 %. The index proposes
    # what is near before rescaling, so that some of the best after it are missed.
    # Differences lie around 0, so their error is measured against the distance itself.
    size = MemoryBank(distance=distance).fit(train).band_scores(test) if rescaling in MINUS else wanted
    near = (got - wanted).abs() <= 0.01 * size + 1e-6
    assert near.float().mean() >= (0.95 if rescaling else 1.0 if index == "flat" else 0.98)
    # What a threshold is made of.
    torch.testing.assert_close(bank.self_scores().quantile(0.9), exact.self_scores().quantile(0.9), rtol=0.05, atol=0)


@pytest.mark.parametrize("index", INDEXES)
def test_one_memory_gives_one_index(clips, index, tmp_path):
    train, test = clips
    bank = MemoryBank(index=index, rescaling="variance_min").fit(train)
    again = MemoryBank(index=index, rescaling="variance_min").fit(train)
    bank.save_pretrained(tmp_path)
    for same in (again, MemoryBank.from_pretrained(tmp_path)):
        torch.testing.assert_close(same.score(test), bank.score(test))


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("rescaling", [None, "ratio", "lof"])
def test_few_clips_duplicates_and_changes(clips, index, rescaling):
    few = clips[0][:3].repeat(4, 1, 1)
    bank = MemoryBank(index=index, rescaling=rescaling, max_clips=10).fit(few)
    for _ in range(2):
        assert bank.score(clips[1]).isfinite().all()
        assert bank.self_scores().isfinite().all()
        bank.partial_fit(clips[1][:5])
    if rescaling != "lof":
        assert bank.score(clips[1][:5]).max() <= bank.score(clips[1][5:]).min()


def test_a_missing_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="`index` needs faiss"):
        MemoryBank(index="flat").fit(torch.eye(8)[:, None])
