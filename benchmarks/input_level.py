"""A gain at test time: what it does to the ranking and to the threshold, as recorded and with normalised levels.

    python -m benchmarks.input_level                                           # checkpoints and machines of the package
    python -m benchmarks.input_level --machines FOLDER --checkpoint "mn04=DIR"

A scorer is fitted on half of the normal files, with a threshold for 10 % false alarms; the other normal clips and the
faulty ones are scored with a gain of -10, 0 and 10 dB. Log-mel statistics stand beside the encoders; the mean over all
their bins is taken off where levels are normalised. The output is Markdown: mean AUC over machines and splits, and the
share of the normal clips above the threshold.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from transformers.utils import logging

from na_ssl_hf import AnomalyScorer, MemoryBank
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.input_level import LEVELS
from na_ssl_hf.hub.threshold import fit_threshold

from . import NUM_THREADS
from .clean_machines import Machine, add_options, as_recordings, chosen_machines
from .layers import load_scorer
from .measuring import SEED, Row, parser_of, progress

GAINS_DB = (-10.0, 0.0, 10.0)
RATE = 0.1
BATCH_SIZE = 8


def main() -> None:
    parser = parser_of(__doc__, "input_level")
    add_options(parser)
    parser.add_argument("--layer", nargs="+", type=int, metavar="N", help="layers compared (default: the last one)")
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    machines = chosen_machines(options)
    gains = " | ".join(f"{gain:+g} dB" for gain in GAINS_DB)
    print(f"| encoder | level | AUC in %: {gains} | normals above the threshold of 10 %: {gains} |")
    print("| :-- | :-- |" + " --: |" * 2 * len(GAINS_DB))
    for pair in options.checkpoint:
        name, _, checkpoint = pair.partition("=")
        scorer = load_scorer(checkpoint)
        for level in LEVELS:
            print_line(name, level, measured(scorer, machines, level, options.layer, options.splits, options.seed))
    for level in LEVELS:
        print_line("log-mel statistics", level, log_mel_measured(machines, level, options.splits, options.seed))


def print_line(name: str, level: str, found: tuple[np.ndarray, np.ndarray]) -> None:
    cells = [f"{100 * value:.1f}" for values in found for value in values]
    print(f"| {name} | {level} | {' | '.join(cells)} |", flush=True)


def measured(
    scorer: AnomalyScorer,
    machines: Sequence[Machine],
    level: str,
    layers: Sequence[int] | None,
    num_splits: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean AUC and the share of alarms of new normal clips, `(gains,)` each."""
    aucs: list[np.ndarray] = []
    alarms: list[np.ndarray] = []
    for machine in machines:
        progress(f"  {level}: {machine.name}")
        clips = machine.normal + machine.anomalous
        # The settings of a scorer that is fitted once for all splits, which draw from the same vectors.
        scorer.fit(
            as_recordings(machine.normal), layers=layers, level=level, threshold_method="quantile", progress=None
        )
        by_gain = [scorer.embed(as_recordings(clips, gain), BATCH_SIZE) for gain in GAINS_DB]
        add_splits(aucs, alarms, machine, by_gain, num_splits, seed)
    return np.mean(aucs, axis=0), np.mean(alarms, axis=0)


def log_mel_measured(
    machines: Sequence[Machine], level: str, num_splits: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the same of log-mel statistics."""
    aucs: list[np.ndarray] = []
    alarms: list[np.ndarray] = []
    for machine in machines:
        clips = machine.normal + machine.anomalous
        by_gain = [
            log_mel_embeddings(
                (torch.from_numpy(clip * np.float32(10 ** (gain / 20))) for clip in clips),
                center_level=level == LEVELS[1],
            )
            for gain in GAINS_DB
        ]
        add_splits(aucs, alarms, machine, by_gain, num_splits, seed, distance="euclidean", normalize=False)
    return np.mean(aucs, axis=0), np.mean(alarms, axis=0)


def add_splits(
    aucs: list[np.ndarray],
    alarms: list[np.ndarray],
    machine: Machine,
    by_gain: Sequence[torch.Tensor],
    num_splits: int,
    seed: int,
    **of_bank: object,
) -> None:
    """Append AUC and share of alarms, `(gains,)` each, of every split.

    Args:
        by_gain: for each gain the vectors `(clips, F, D)` of normal and then of faulty clips.
        **of_bank: settings of the memory.
    """
    heard = by_gain[GAINS_DB.index(0.0)]
    for remembered, tested in machine.splits(num_splits, seed):
        bank = MemoryBank(**of_bank).fit(heard[remembered])
        threshold = fit_threshold(bank.self_scores(exact=True), "conformal", RATE)
        scores = [bank.score(vectors).numpy() for vectors in by_gain]
        normal = np.stack([each[tested] for each in scores])  # (gains, normal)
        anomalous = np.stack([each[len(machine.normal) :] for each in scores])  # (gains, anomalous)
        aucs.append(np.heaviside(anomalous[:, :, None] - normal[:, None], 0.5).mean(axis=(1, 2)))
        alarms.append((normal > threshold).mean(axis=1))


def measure() -> list[Row]:
    """Measure the default checkpoint on synthetic machines, with a gain of 10 dB."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args([])
    machines, scorer = chosen_machines(options), load_scorer("na-beats-tiny")
    found = {level: measured(scorer, machines, level, None, options.splits, SEED) for level in LEVELS}
    rows = []
    for what, part in (("AUC at +10 dB", 0), ("normals that alarm at +10 dB of stated 10 %", 1)):
        recorded, normalised = (100 * float(found[level][part][-1]) for level in LEVELS)
        note = "left normalised, right as recorded; python -m benchmarks.input_level has every encoder"
        rows.append(Row(what, normalised, recorded, f"{normalised - recorded:+.1f}", "-", None, "%", note))
    return rows


ITEMS = {"input-level": measure}


if __name__ == "__main__":
    main()
