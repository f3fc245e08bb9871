"""The published systems of DCASE 2026 Task 2 by their names, arranged as in the tables of the papers.

Fujimura et al., DCASE 2026 Task 2 (Tables 3 and 4). Numbers are the papers' official scores in % on the challenge's
data with the authors' checkpoints; `None` where none was published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...hub.memory_bank_backends import NEAREST, BackendName
from ...hub.memory_bank_rescaling import RescalingName

# Frontends without a network: name -> whether the level of the clip is subtracted.
LOG_MEL_FRONTENDS = {"logmel": False, "logmel-centred": True}

# Name of a frontend -> type of its encoder; "dis" ones are the same encoders after discriminative fine-tuning.
FRONTENDS = {
    "beats": "beats",
    "eat": "eat",
    "eat-large": "eat",
    "na-beats": "na-beats",
    "na-eat": "na-eat",
    # SSLAM is EAT trained further, and is read as such.
    "sslam": "eat",
    "dasheng": "dasheng",
    "na-dasheng": "na-dasheng",
    "dis-beats": "beats",
    "dis-eat": "eat",
    "dis-na-beats": "na-beats",
    "dis-na-eat": "na-eat",
    "efficientat": "efficientat",
}


@dataclass(frozen=True)
class PublishedSystem:
    """One row of a table: how a published system embeds recordings, remembers them, and fuses the scores.

    Each frontend embeds the recordings, pools the tokens over time and has one memory per band; the score of the system
    is the weighted mean of their scores.

    Attributes:
        frontends: name of a frontend -> weight of its scores; none for the autoencoder.
        pooling, gamma: how tokens are pooled over time, see `pool_time`.
        rescaling: how scores are rescaled, see [`MemoryBank`].
        backend, backend_fusion: what scores a band, see [`MemoryBank`]; every published system has the nearest
            neighbours, to which rescaling and SMOTE belong.
        smote_ratio: share of the source clips up to which target clips are synthesised; it excludes rescaling.
        frontends_with_attributes: names of the frontends that serve machines with attributes, while the others serve
            the rest; empty where all serve all.
        autoencoder_score: "mse" or "mahalanobis" of the autoencoder that is trained on every machine.
        dev, eval: published official scores in %, of the development and the evaluation set.
        dev_least_squares, eval_least_squares: the same after least-squares far-microphone cancellation.
    """

    frontends: Mapping[str, float]
    pooling: Literal["mean", "rdp"] = "mean"
    gamma: float = 4.0
    rescaling: RescalingName | None = "variance_min"
    backend: BackendName | tuple[BackendName, ...] = NEAREST
    backend_fusion: Literal["minimum", "mean"] = "minimum"
    smote_ratio: float = 0.0
    frontends_with_attributes: tuple[str, ...] = ()
    autoencoder_score: Literal["mse", "mahalanobis"] | None = None
    dev: float | None = None
    eval: float | None = None
    dev_least_squares: float | None = None
    eval_least_squares: float | None = None

    def published(self, split: Literal["dev", "eval"], far_cancellation: str | None) -> float | None:
        """Return the published score of the development or evaluation set, or `None` where there is none."""
        suffix = {None: "", "least_squares": "_least_squares"}.get(far_cancellation)
        return None if suffix is None else getattr(self, split + suffix)


SYSTEMS: dict[str, PublishedSystem] = {
    # The challenge's baselines (Harada et al., EUSIPCO 2023).
    "baseline_mse": PublishedSystem({}, autoencoder_score="mse", dev=56.66),
    "baseline_mahala": PublishedSystem({}, autoencoder_score="mahalanobis", dev=57.66),
    # These need no network, only mean and standard deviation over time of each log-mel band; no paper has them.
    "logmel": PublishedSystem({"logmel": 1.0}),
    "logmel-centred": PublishedSystem({"logmel-centred": 1.0}),
    # Table 3: single frontends.
    "beats": PublishedSystem({"beats": 1.0}, dev=60.28),
    "eat": PublishedSystem({"eat": 1.0}, dev=59.24),
    "eat-large": PublishedSystem({"eat-large": 1.0}, dev=59.95),
    "na-beats": PublishedSystem({"na-beats": 1.0}, dev=63.18),
    "na-eat": PublishedSystem({"na-eat": 1.0}, dev=63.13),
    "dis-beats": PublishedSystem({"dis-beats": 1.0}, dev=61.40),
    "dis-eat": PublishedSystem({"dis-eat": 1.0}, dev=58.83),
    "dis-na-beats": PublishedSystem({"dis-na-beats": 1.0}, dev=63.92),
    "dis-na-eat": PublishedSystem({"dis-na-eat": 1.0}, dev=64.35),
    # Encoders that Table 3 does not have.
    "sslam": PublishedSystem({"sslam": 1.0}),
    "dasheng": PublishedSystem({"dasheng": 1.0}),
    "na-dasheng": PublishedSystem({"na-dasheng": 1.0}),
    "efficientat": PublishedSystem({"efficientat": 1.0}),
    # Frozen BEATs with relative deviation pooling, also published after far-microphone cancellation.
    "beats-rdp4": PublishedSystem(
        {"beats": 1.0}, "rdp", 4.0, dev=61.33, eval=62.84, dev_least_squares=67.48, eval_least_squares=66.84
    ),
    "beats-rdp8": PublishedSystem({"beats": 1.0}, "rdp", 8.0, dev=62.02),
    # Table 4: the submissions; the third won the challenge.
    "fujimura_merl_task2_1": PublishedSystem(
        {"dis-na-eat": 1.0, "dis-na-beats": 1.0}, rescaling=None, smote_ratio=0.2, dev=66.20
    ),
    "fujimura_merl_task2_2": PublishedSystem(
        {"beats": 1.0, "eat": 0.5, "eat-large": 0.5, "na-eat": 1.0, "na-beats": 1.0}, dev=63.43
    ),
    "fujimura_merl_task2_3": PublishedSystem({"dis-na-beats": 1.0}, "rdp", 4.0, dev=64.57, eval=70.24),
    "fujimura_merl_task2_4": PublishedSystem(
        {"na-eat": 1.0, "dis-na-eat": 1.0}, frontends_with_attributes=("dis-na-eat",), dev=63.79
    ),
}


def find_system(name: str) -> PublishedSystem:
    """Return the system of that name; the ValueError for an unknown one lists all names."""
    if name not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(SYSTEMS)}; got {name!r}")
    return SYSTEMS[name]
