"""Scores by a memory bank of 100,000 clips: exact search beside its matrix products, and FAISS beside exact search."""

from importlib.util import find_spec

import torch

from na_ssl_hf import MemoryBank

from .measuring import HAS_PROC, Row, alternate, cpu_seconds, forget_peak, in_its_own_process, peak_megabytes, progress
from .memory_bank import NUM_QUERIES, bank_matmuls

BIG_BANK_SHAPE = (100_000, 8, 768)
RECALL_QUERIES = 800


def exact_search() -> tuple[float, ...]:
    """Measures exact scores.

    Returns:
        CPU seconds of the scores and of the bare matrix products, megabytes at the peak beside bank and queries, and
        megabytes of the bank.
    """
    num_clips, num_bands, dim = BIG_BANK_SHAPE
    # The embeddings are overlapping windows of one line of noise, so that only the bank takes memory.
    step = 13
    line = torch.randn(num_bands * dim + step * (num_clips - 1))
    queries = torch.randn(NUM_QUERIES, num_bands, dim)
    MemoryBank().fit(queries).score(queries)
    before = forget_peak()
    bank = MemoryBank().fit(line.unfold(0, num_bands * dim, step).unflatten(1, (num_bands, dim)))
    kept = bank.memory_.nbytes / 1e6
    forget_peak()
    bank.score(queries)
    # Memory that fitting freed but the allocator kept counts too, because scoring may use it again.
    extra = peak_megabytes() - before - kept if HAS_PROC else 0.0
    out = torch.empty(NUM_QUERIES, num_clips)
    score, bare = alternate(3, lambda: bank.score(queries), lambda: bank_matmuls(bank, queries, out))
    return score, bare, extra, kept


def big_bank() -> list[Row]:
    score, bare, extra, kept = in_its_own_process(exact_search)
    ratio = f"{score / bare:.2f} x the matmuls"
    rows = [Row("scores of 200 clips, bank 100,000 x 8 x 768", score, bare, ratio, "<= 1.3 x", score <= 1.3 * bare)]
    what, target = "their peak memory beside the bank", "< 2,000 MB"
    if not HAS_PROC:
        return [*rows, Row(what, None, None, "-", target, None, note="not measured: needs Linux")]
    note = "straightforward: the bank itself"
    return [*rows, Row(what, extra, kept, f"{extra / kept:.2f} x the bank", target, extra < 2000, unit="MB", note=note)]


def curved_embeddings(noise_levels: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns references and queries `(N, F, D)` near a curved surface of 12 dimensions in each band, with some noise.

    Points without any structure would all be about equally far from each other, and no neighbour would be nearest.
    """
    num_clips, _, dim = BIG_BANK_SHAPE
    bands = []
    for noise in noise_levels:
        first, second = torch.randn(12, 64), torch.randn(64, dim) / 8
        latent = torch.randn(num_clips + RECALL_QUERIES, 12)
        bands.append(torch.nn.functional.gelu(latent @ first) @ second + noise * torch.randn(len(latent), dim))
    embeddings = torch.stack(bands, dim=1)  # (N, F, D)
    return embeddings[:num_clips], embeddings[num_clips:]


def big_bank_index() -> list[Row]:
    if find_spec("faiss") is None:
        note = "not measured: faiss is not installed"
        return [Row("its scores with a FAISS index", None, None, "-", ">= 10 x faster", None, note=note)]
    # Bands are searched one after the other, so two of them are enough to measure the speed.
    noise_levels = (0.05, 0.3)
    references, queries = curved_embeddings(noise_levels)
    few = queries[:NUM_QUERIES]
    exact = MemoryBank().fit(references)
    nearest = exact.band_scores(queries)
    rows = []
    for kind in ("flat", "ivf", "hnsw"):
        indexed = MemoryBank(index=kind)
        build = cpu_seconds(lambda indexed=indexed: indexed.fit(references)) / len(noise_levels)
        found = indexed.band_scores(queries)
        recalls = (found <= 1.01 * nearest + 1e-9).double().mean(dim=0).tolist()
        progress(f"  {kind}: built in {build:.1f} s a band, recall {recalls}")
        ours, bare = alternate(5, lambda indexed=indexed: indexed.score(few), lambda: exact.score(few))
        recall = sum(recalls) / len(recalls)
        rows.append(
            Row(
                f"{kind} index: scores of 200 clips, bank 100,000 x {len(noise_levels)} x 768, beside exact ones",
                ours,
                bare,
                f"{bare / ours:.1f} x faster, recall {recall:.3f}",
                ">= 10 x, >= 0.98" if kind == "ivf" else "-",
                (bare >= 10 * ours and recall >= 0.98) if kind == "ivf" else None,
                note=f"built in {build:.0f} CPU s a band; recall: found within 1% of the nearest one's distance, "
                f"{len(queries)} queries x {len(noise_levels)} bands",
            )
        )
    return rows


ITEMS = {"bank-big": big_bank, "bank-big-index": big_bank_index}
