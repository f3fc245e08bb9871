"""Where and how systems are run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from .processes import Processes


@dataclass(frozen=True)
class RunSettings:
    """Where and how systems are run.

    Attributes:
        cache: folder that keeps embeddings and trained autoencoders.
        batch_size: recordings of one length that go through a model together.
        device: "cpu", "cuda", ...; `None` for the best there is.
        seed: of what is trained here, the autoencoders.
        num_epochs: of the autoencoders.
        false_alarm_rate: share of normal clips that the thresholds may let alarm.
        processes: those that share the work; every one of them must run the same systems.
        show_progress: bars of the main process.
    """

    cache: Path
    batch_size: int = 8
    device: str | torch.device | None = None
    seed: int = 0
    num_epochs: int = 100
    false_alarm_rate: float = 0.1
    processes: Processes = field(default_factory=Processes)
    show_progress: bool = True

    def label(self, text: str) -> str | None:
        """The label of a progress bar, or `None` for no bar."""
        return text if self.show_progress and self.processes.is_main else None
