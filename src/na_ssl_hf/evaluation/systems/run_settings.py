"""The settings of a run: where its cache lies, and how systems are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .content_hashes import ContentHashes
from .processes import Processes


@dataclass(frozen=True)
class RunSettings:
    """Settings that all systems of a run share.

    Attributes:
        cache: folder that keeps embeddings and trained autoencoders.
        batch_size: number of recordings of one length that go through a model together.
        device: "cpu", "cuda", ...; `None` for the best there is.
        seed: seed of what is trained here, the autoencoders.
        num_epochs: number of epochs of the autoencoders.
        false_alarm_rate: share of normal clips that the thresholds may let alarm.
        processes: processes that share the work; every one of them must run the same systems.
        layers: frontend -> the layers whose tokens are compared; the last one for the frontends that are not in it.
        level: the level at which recordings are heard, "as recorded" or "normalised", see [`AnomalyScorer.fit`].
        show_progress: whether the main process shows progress bars.
        hashes: hashes of the sound files, so that each file is read for its hash once in a run.
    """

    cache: Path
    batch_size: int = 8
    device: str | torch.device | None = None
    seed: int = 0
    num_epochs: int = 100
    false_alarm_rate: float = 0.1
    processes: Processes = field(default_factory=Processes)
    layers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    level: str = "as recorded"
    show_progress: bool = True
    hashes: ContentHashes = field(default_factory=ContentHashes, repr=False, compare=False)

    @property
    def compute_device(self) -> str | torch.device | None:
        """The device that was asked for, else that of the process, else `None` for the best there is."""
        return self.device if self.device is not None else self.processes.device

    def label(self, text: str) -> str | None:
        """Return the label of a progress bar, or `None` where this process shall show none."""
        return text if self.show_progress and self.processes.is_main else None
