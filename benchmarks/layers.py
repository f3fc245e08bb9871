"""Every encoder x every layer: how well faulty machines are told from normal ones, on clean clips of 5 s.

    python -m benchmarks.layers                                           # checkpoints and machines of the package
    python -m benchmarks.layers --machines FOLDER --checkpoint "mn04=DIR" "BEATs base=na-beats-tiny"

Half of the normal files are remembered, the others and the faulty clips are scored: mean over time, cosine, nearest
normal. The layer of an encoder is chosen by the mean AUC on one half of the machines (every second one) and reported on
the other, and the other way round, beside the last hidden state; the interval is a paired bootstrap over machines and
splits. Log-mel statistics stand beside the encoders. The output is Markdown.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from transformers.utils import logging

from na_ssl_hf import AnomalyScorer, MemoryBank
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.checkpoints.loading import load_extractor, load_model
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.recorded_bands import num_recorded_bands, recorded_rate

from . import NUM_THREADS
from .clean_machines import Machine, add_options, as_recordings, chosen_machines
from .measuring import SEED, Row, auc_of_scores, parser_of, progress

NUM_DRAWS = 2_000
BATCH_SIZE = 8
LAST = "last"


def main() -> None:
    parser = parser_of(__doc__, "layers")
    add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(NUM_THREADS)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    machines = chosen_machines(options)
    print(table(options.checkpoint, machines, options.splits, options.seed))


def load_scorer(checkpoint: str) -> AnomalyScorer:
    """Make the unfitted scorer of a checkpoint; of a noise-aware one, of the base inside it."""
    source = resolve_checkpoint(checkpoint)
    model, extractor = load_model(source), load_extractor(source)
    extractor.resample = True
    return AnomalyScorer(model=model.to_base() if hasattr(model, "to_base") else model, feature_extractor=extractor)


def layer_aucs(
    by_layer: dict[str, torch.Tensor], machine: Machine, num_splits: int, seed: int, **of_bank: object
) -> dict[str, np.ndarray]:
    """Compute the AUC of every layer in every split: "0", "1", ... and "last" -> `(splits,)`.

    Args:
        by_layer: the vectors `(clips, F, D)` of the normal clips, and then of the faulty ones.
        **of_bank: settings of the memory.
    """
    first_anomaly = len(machine.normal)
    aucs: dict[str, list[float]] = {layer: [] for layer in by_layer}
    for remembered, tested in machine.splits(num_splits, seed):
        for layer, vectors in by_layer.items():
            bank = MemoryBank(**of_bank).fit(vectors[remembered])
            normal, anomalous = (bank.score(each).numpy() for each in (vectors[tested], vectors[first_anomaly:]))
            aucs[layer].append(auc_of_scores(normal, anomalous))
    return {layer: np.array(values) for layer, values in aucs.items()}


@torch.no_grad()
def vectors_of_layers(scorer: AnomalyScorer, machine: Machine) -> dict[str, torch.Tensor]:
    """Embed all clips by all layers in one pass: name of a layer -> the means over time, `(clips, F, D)`."""
    layers: list[int | None] = [*range(scorer.model.num_layers + 1), None]
    found: list[list[torch.Tensor]] = [[] for _ in layers]
    for clip in as_recordings(machine.normal + machine.anomalous):
        wave = scorer.feature_extractor.waveform(clip["array"], clip["sampling_rate"])
        features = scorer.feature_extractor.fbank(wave[None].to(scorer.device))  # (1, 2, T, M)
        rate = recorded_rate(scorer.model, clip["sampling_rate"], scorer.feature_extractor.sampling_rate)
        grids = scorer.model.eval().layer_grids(features, layers)
        for vectors, layer, grid in zip(found, layers, grids, strict=True):
            recorded = grid[:, :, : num_recorded_bands(scorer.model, layer, rate)]
            vectors.append(recorded.float().mean(1).cpu())
    return {LAST if layer is None else str(layer): torch.cat(each) for layer, each in zip(layers, found, strict=True)}


def log_mel_aucs(machines: Sequence[Machine], num_splits: int, seed: int) -> float:
    """Compute the mean AUC of log-mel statistics, which need no network."""
    aucs = []
    for machine in machines:
        vectors = log_mel_embeddings(torch.from_numpy(clip) for clip in machine.normal + machine.anomalous)
        found = layer_aucs({LAST: vectors}, machine, num_splits, seed, distance="euclidean", normalize=False)
        aucs.append(found[LAST].mean())
    return float(np.mean(aucs))


def table(checkpoints: Sequence[str], machines: Sequence[Machine], num_splits: int, seed: int) -> str:
    """Measure, and return the Markdown: a line for every encoder, and the AUCs of all its layers."""
    chosen = [
        "| encoder | layers that the two halves choose | AUC where they did not choose "
        "| last hidden state | difference |",
        "| :-- | --: | --: | --: | --: |",
    ]
    of_layers = ["| encoder | mean AUC in % of layer 0, 1, ..., and of the last hidden state |", "| :-- | :-- |"]
    for pair in checkpoints:
        name, equals, checkpoint = pair.partition("=")
        if not equals:
            raise ValueError(f"--checkpoint must be NAME=DIR, got {pair!r}")
        scorer = load_scorer(checkpoint)
        by_machine = []
        for machine in machines:
            progress(f"  {name}: {machine.name}")
            by_machine.append(layer_aucs(vectors_of_layers(scorer, machine), machine, num_splits, seed))
        aucs = {layer: np.stack([each[layer] for each in by_machine]) for layer in by_machine[0]}  # (machines, splits)
        best = [best_layer(aucs, half) for half in (0, 1)]
        ours = np.concatenate([aucs[best[0]][1::2], aucs[best[1]][::2]])
        last = np.concatenate([aucs[LAST][1::2], aucs[LAST][::2]])
        gain, low, high = difference(ours, last, seed)
        chosen.append(
            f"| {name} | {', '.join(best)} | {100 * ours.mean():.1f} | {100 * last.mean():.1f} "
            f"| {100 * gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] |"
        )
        of_layers.append(f"| {name} | {' '.join(f'{100 * values.mean():.1f}' for values in aucs.values())} |")
    chosen.append(f"| log-mel statistics | - | {100 * log_mel_aucs(machines, num_splits, seed):.1f} | | |")
    return "\n".join([*chosen, "", *of_layers])


def best_layer(aucs: dict[str, np.ndarray], half: int) -> str:
    """Choose the layer with the greatest mean AUC `(machines, splits)` on the first (0) or second (1) half."""
    return max(aucs, key=lambda layer: aucs[layer][half::2].mean())


def difference(ours: np.ndarray, others: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Compare AUCs `(machines, splits)`: mean difference, with a 95 % interval over redrawn machines and splits."""
    paired, rng = ours - others, np.random.default_rng(seed)
    draws = []
    for _ in range(NUM_DRAWS):
        rows, columns = (rng.integers(count, size=count) for count in paired.shape)
        draws.append(paired[np.ix_(rows, columns)].mean())
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(paired.mean()), float(low), float(high)


def measure() -> list[Row]:
    """Compare the layer that one synthetic half chooses with the last one, for the default checkpoint."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args([])
    machines, scorer = chosen_machines(options), load_scorer("na-beats-tiny")
    found = [layer_aucs(vectors_of_layers(scorer, machine), machine, options.splits, SEED) for machine in machines]
    aucs = {layer: np.stack([each[layer] for each in found]) for layer in found[0]}
    best = best_layer(aucs, 0)
    ours, last = (100 * float(aucs[layer][1::2].mean()) for layer in (best, LAST))
    note = "machines of the package; python -m benchmarks.layers has every encoder and layer"
    return [Row(f"AUC of layer {best}, and of the last one", ours, last, f"{ours - last:+.1f}", "-", None, "%", note)]


ITEMS = {"layers": measure}


if __name__ == "__main__":
    main()
