"""Fitting and scoring of a memory bank beside its bare matrix products, and its peak memory."""

import statistics

import torch

from na_ssl_hf import MemoryBank

from .measuring import HAS_PROC, SEED, Row, alternate, cpu_seconds, in_its_own_process, peak_megabytes, progress

BANK_SHAPE = (10_000, 8, 768)
BANK_CHUNK = 500
SMALL_BANK_SHAPE = (1_000, 8, 768)
NUM_QUERIES = 200


def bank_embeddings(shape: tuple[int, int, int] = BANK_SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def bank_matmuls(bank: MemoryBank, rows: torch.Tensor, out: torch.Tensor) -> None:
    """Multiplies `rows` of shape `(N, F, D)` by all references, into the buffer `out` of shape `(C, R)`."""
    for band, references in enumerate(bank.memory_):
        for part in rows[:, band].split(len(out)):
            torch.mm(part, references.T, out=out[: len(part)])


def bank_fit_and_scoring() -> list[Row]:
    embeddings, queries = bank_embeddings(), torch.randn(NUM_QUERIES, *BANK_SHAPE[1:])
    bank, small = MemoryBank(rescaling="variance_min"), MemoryBank(rescaling="variance_min")
    out = torch.empty(BANK_CHUNK, BANK_SHAPE[0])
    ours, bare = [], []
    for repetition in range(2):
        ours.append(cpu_seconds(lambda: bank.fit(embeddings)))
        bare.append(cpu_seconds(lambda: bank_matmuls(bank, embeddings, out)))
        progress(f"  {repetition + 1}/2: {ours[-1]:.1f} s, matmuls {bare[-1]:.1f} s")
    fit, fit_bare = statistics.median(ours), statistics.median(bare)
    score, score_bare = alternate(5, lambda: bank.score(queries), lambda: bank_matmuls(bank, queries, out))
    few, out = bank_embeddings(SMALL_BANK_SHAPE), torch.empty(BANK_CHUNK, SMALL_BANK_SHAPE[0])
    small_fit, small_bare = alternate(5, lambda: small.fit(few), lambda: bank_matmuls(small, few, out))
    return [
        Row(
            "VarMin fit, 10,000 x 8 x 768",
            fit,
            fit_bare,
            f"{fit / fit_bare:.2f} x the matmuls",
            "<= 1.5 x",
            fit <= 1.5 * fit_bare,
        ),
        Row("its scores of 200 clips", score, score_bare, f"{score / score_bare:.2f} x the matmuls", "-", None),
        Row(
            "VarMin fit, 1,000 x 8 x 768",
            small_fit,
            small_bare,
            f"{small_fit / small_bare:.2f} x the matmuls",
            "< 1 s",
            small_fit < 1,
        ),
    ]


def fit_memory() -> tuple[float, ...]:
    embeddings = bank_embeddings()
    warm_up = MemoryBank(rescaling="variance_min").fit(embeddings[:64])
    before = peak_megabytes()
    bank = MemoryBank(rescaling="variance_min").fit(embeddings)
    del warm_up
    return peak_megabytes() - before, bank.memory_.nbytes / 1e6


def bank_memory() -> list[Row]:
    what = "VarMin fit, 10,000 x 8 x 768, peak memory beside the embeddings"
    if not HAS_PROC:
        return [Row(what, None, None, "-", "< 300 MB", None, note="not measured: needs Linux")]
    extra, kept = in_its_own_process(fit_memory)
    note = "straightforward: the bank itself, which stays in memory"
    return [Row(what, extra, kept, f"{extra / kept:.2f} x the bank", "< 300 MB", extra < 300, unit="MB", note=note)]


ITEMS = {"bank": bank_fit_and_scoring, "bank-memory": bank_memory}
