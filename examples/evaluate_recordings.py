"""How well do normal and anomalous two-channel recordings of one machine separate? AUC with a bootstrap interval.

    python examples/evaluate_recordings.py rooms/0dB/normal rooms/0dB/anomaly

Every normal recording is scored against all others (leave one out), every anomalous one against all normal ones. Each
system is the checkpoint's model, the base inside it, and per-band log-mel statistics without a network, on the close
microphone as it is and after each kind of far-microphone cancellation.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score
from transformers import AutoConfig
from transformers.utils import logging

from na_ssl_hf.checkpoints import default_checkpoint
from na_ssl_hf.evaluation.frontends import Frontend, checkpoint_frontend, log_mel_frontend
from na_ssl_hf.hub.noise_cancellation import METHODS

NUM_DRAWS = 2000


def auc_interval(normal: np.ndarray, anomalous: np.ndarray, seed: int) -> tuple[float, float, float]:
    """AUC and its 95 % percentile interval over clips, both classes redrawn."""

    def auc(first: np.ndarray, second: np.ndarray) -> float:
        return float(roc_auc_score([0] * len(first) + [1] * len(second), np.concatenate([first, second])))

    rng = np.random.default_rng(seed)
    draws = [auc(rng.choice(normal, len(normal)), rng.choice(anomalous, len(anomalous))) for _ in range(NUM_DRAWS)]
    return auc(normal, anomalous), *np.percentile(draws, [2.5, 97.5])


def scores(frontend: Frontend, normal: list[Path], anomalous: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    bank = frontend.bank(rescaling="variance_min").fit(frontend.embed(normal))
    return bank.self_scores().numpy(), bank.score(frontend.embed(anomalous)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("normal", type=Path, help="folder of normal recordings")
    parser.add_argument("anomalous", type=Path, help="folder of anomalous recordings")
    parser.add_argument("--model", default=str(default_checkpoint()), help="checkpoint (default: the tiny NA-BEATs)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap draws")
    options = parser.parse_args()
    logging.disable_progress_bar()

    normal, anomalous = (sorted(folder.rglob("*.wav")) for folder in (options.normal, options.anomalous))
    model_type = AutoConfig.from_pretrained(options.model).model_type
    names = dict.fromkeys([model_type.removeprefix("na-"), model_type])
    print(f"{len(normal)} normal, {len(anomalous)} anomalous recordings; AUC in % [95 % interval over clips]")
    for cancellation in (None, *METHODS):
        frontends = {
            "log-mel": log_mel_frontend(cancellation),
            "log-mel without level": log_mel_frontend(cancellation, center_level=True),
            **{name: checkpoint_frontend(name, options.model, far_cancellation=cancellation) for name in names},
        }
        for name, frontend in frontends.items():
            estimate, low, high = auc_interval(*scores(frontend, normal, anomalous), options.seed)
            row = f"{name}, {cancellation or 'close only'}"
            print(f"  {row:45} {100 * estimate:5.1f} [{100 * low:.1f}, {100 * high:.1f}]")


if __name__ == "__main__":
    main()
