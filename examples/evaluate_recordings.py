"""How well do normal and anomalous two-channel recordings of one machine separate? AUC with a bootstrap interval.

    python examples/evaluate_recordings.py rooms/0dB/normal rooms/0dB/anomaly

Every normal recording is scored against all others (leave one out), every anomalous one against all normal ones. Each
system is the checkpoint's model, and per-band log-mel statistics without a network, on the close microphone as it is
and after each kind of far-microphone cancellation.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoFeatureExtractor, AutoModel
from transformers.utils import logging

from na_ssl_hf import AnomalyScorer, MemoryBank
from na_ssl_hf.checkpoints import default_checkpoint
from na_ssl_hf.evaluation.log_mel_baseline import log_mel_embeddings
from na_ssl_hf.hub.noise_cancellation import METHODS, cancel_far_microphone
from na_ssl_hf.hub.recording import load_recording

NUM_DRAWS = 2000


def auc_interval(normal: np.ndarray, anomalous: np.ndarray, seed: int) -> tuple[float, float, float]:
    """AUC and its 95 % percentile interval over clips, both classes redrawn."""

    def auc(first: np.ndarray, second: np.ndarray) -> float:
        return float(roc_auc_score([0] * len(first) + [1] * len(second), np.concatenate([first, second])))

    rng = np.random.default_rng(seed)
    draws = [auc(rng.choice(normal, len(normal)), rng.choice(anomalous, len(anomalous))) for _ in range(NUM_DRAWS)]
    return auc(normal, anomalous), *np.percentile(draws, [2.5, 97.5])


def network_scores(
    normal: list[Path], anomalous: list[Path], checkpoint: str, cancellation: str | None
) -> tuple[np.ndarray, np.ndarray]:
    extractor = AutoFeatureExtractor.from_pretrained(checkpoint, far_cancellation=cancellation)
    scorer = AnomalyScorer(model=AutoModel.from_pretrained(checkpoint), feature_extractor=extractor)
    scorer.fit(normal, batch_size=8, progress=None)
    results = scorer(anomalous, batch_size=8)
    return scorer.memory_bank.self_scores().numpy(), np.array([result["score"] for result in results])


def log_mel_scores(
    normal: list[Path], anomalous: list[Path], cancellation: str | None
) -> tuple[np.ndarray, np.ndarray]:
    def embed(files: list[Path]) -> torch.Tensor:
        waves = []
        for file in files:
            close, far = torch.as_tensor(load_recording(file, 16000).samples)[:, None]  # (1, N) each
            waves.append((cancel_far_microphone(close, far, cancellation) if cancellation else close)[0])
        return log_mel_embeddings(waves)

    bank = MemoryBank(distance="euclidean", normalize=False, rescaling="variance_min").fit(embed(normal))
    return bank.self_scores().numpy(), bank.score(embed(anomalous)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("normal", type=Path, help="folder of normal recordings")
    parser.add_argument("anomalous", type=Path, help="folder of anomalous recordings")
    parser.add_argument("--model", default=str(default_checkpoint()), help="checkpoint (default: the tiny NA-BEATs)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap draws")
    options = parser.parse_args()
    logging.disable_progress_bar()

    normal, anomalous = (sorted(folder.rglob("*.wav")) for folder in (options.normal, options.anomalous))
    print(f"{len(normal)} normal, {len(anomalous)} anomalous recordings; AUC in % [95 % interval over clips]")
    for cancellation in (None, *METHODS):
        name = cancellation or "close only"
        rows = {
            f"{Path(options.model).name}, {name}": network_scores(normal, anomalous, options.model, cancellation),
            f"log-mel, {name}": log_mel_scores(normal, anomalous, cancellation),
        }
        for row, scores in rows.items():
            estimate, low, high = auc_interval(*scores, options.seed)
            print(f"  {row:45} {100 * estimate:5.1f} [{100 * low:.1f}, {100 * high:.1f}]")


if __name__ == "__main__":
    main()
