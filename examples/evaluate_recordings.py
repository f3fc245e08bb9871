"""Measure how well normal and anomalous two-channel recordings of one machine separate, as AUC with an interval.

    python examples/evaluate_recordings.py rooms/0dB/normal rooms/0dB/anomaly

Every normal recording and every anomalous one are compared by their scores against all other normal recordings. The
systems are the model of the checkpoint, the base inside it, and log-mel statistics without a network, each on the close
microphone as it is and after each kind of far-microphone cancellation.
"""

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.utils import logging

from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.evaluation.systems.embedders import Embedder, checkpoint_embedder, log_mel_embedder
from na_ssl_hf.hub.memory_bank_rescaling import RescalingName
from na_ssl_hf.hub.noise_cancellation import METHODS

NUM_DRAWS = 2000


def comparisons(
    embedder: Embedder, normal: list[Path], anomalous: list[Path], rescaling: RescalingName | None
) -> np.ndarray:
    """Compare each normal recording to each anomalous one by their scores against all other normal recordings.

    Both are new to the same memory. With rescaling, leave-one-out scores of the recordings that a memory was fitted on
    are higher than the scores of new ones, so that AUCs between the two would tend to be below 50 %.

    Returns:
        `(normal, anomalous)`: 1 where the anomalous recording scores higher, 0 where the normal one does.
    """
    normal_embeddings, anomalous_embeddings = (embedder.embed(files) for files in (normal, anomalous))
    rows = []
    for left_out in tqdm(range(len(normal)), embedder.name, delay=5, leave=False):
        others = normal_embeddings[torch.arange(len(normal)) != left_out]
        bank = embedder.bank(rescaling=rescaling).fit(others)
        scores = bank.score(torch.cat([normal_embeddings[left_out, None], anomalous_embeddings])).numpy()
        rows.append(np.heaviside(scores[1:] - scores[0], 0.5))
    return np.stack(rows)


def auc_interval(is_higher: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Compute the AUC and its 95 % percentile interval over clips, with both classes redrawn."""
    rng = np.random.default_rng(seed)
    draws = [
        is_higher[np.ix_(*(rng.integers(count, size=count) for count in is_higher.shape))].mean()
        for _ in range(NUM_DRAWS)
    ]
    return is_higher.mean(), *np.percentile(draws, [2.5, 97.5])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("normal", type=Path, help="folder of normal recordings")
    parser.add_argument("anomalous", type=Path, help="folder of anomalous recordings")
    parser.add_argument("--model", default="na-beats-tiny", help="checkpoint of a model (default: the tiny NA-BEATs)")
    parser.add_argument(
        "--rescaling",
        choices=("none", *get_args(RescalingName)),
        default="none",
        help="rescaling of the distances: none (default), variance_min (as published), ratio, difference or lof",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    options = parser.parse_args()
    logging.disable_progress_bar()
    rescaling = None if options.rescaling == "none" else options.rescaling

    normal, anomalous = (sorted(folder.rglob("*.wav")) for folder in (options.normal, options.anomalous))
    for name, files, least in (("normal", normal, 2), ("anomalous", anomalous, 1)):
        if len(files) < least:
            parser.error(f"{name} must hold at least {least} WAV files, got {len(files)} in {getattr(options, name)}")
    config = AutoConfig.from_pretrained(resolve_checkpoint(options.model))
    names = dict.fromkeys([config.base_model_type, config.model_type])
    print(f"{len(normal)} normal, {len(anomalous)} anomalous recordings; AUC in % [95 % interval over clips]")
    for cancellation in (None, *METHODS):
        embedders = {
            "log-mel": log_mel_embedder(cancellation),
            "log-mel without level": log_mel_embedder(cancellation, center_level=True),
            **{name: checkpoint_embedder(name, options.model, far_cancellation=cancellation) for name in names},
        }
        for name, embedder in embedders.items():
            estimate, low, high = auc_interval(comparisons(embedder, normal, anomalous, rescaling), options.seed)
            row = f"{name}, {cancellation or 'close only'}"
            print(f"  {row:45} {100 * estimate:5.1f} [{100 * low:.1f}, {100 * high:.1f}]")


if __name__ == "__main__":
    main()
