"""Running the challenge's autoencoder baselines, one trained for every machine."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile

from ...hub.recording import load_recording
from ...quiet_checkpoints import quiet_checkpoints
from ..systems.embedders import SAMPLING_RATE, close_channel
from ..systems.embedding_cache import content_hash
from ..systems.machine_data import MachineData
from ..systems.machine_scores import MachineScores
from ..systems.run_settings import RunSettings
from .baseline import AutoencoderBaseline


def run_autoencoder(
    method: str, units: Sequence[MachineData], far_cancellation: str | None, settings: RunSettings
) -> list[MachineScores]:
    """Train the autoencoder of every machine, or find it in the cache, and score; processes take machines in turn.

    method: "mse" or "mahalanobis". The scores of the training clips are not leave-one-out ones, as in the original.
    Raises ValueError and OSError as `AutoencoderBaseline`.
    """
    own = [
        _score_with_autoencoder(method, unit, far_cancellation, settings) for unit in settings.processes.share(units)
    ]
    return settings.processes.gather(own)


def _score_with_autoencoder(
    method: str, unit: MachineData, far_cancellation: str | None, settings: RunSettings
) -> MachineScores:
    def recordings(files: Sequence[Path]) -> list[Any]:
        if far_cancellation is None:
            return list(files)
        loaded = (load_recording(file, SAMPLING_RATE) for file in files)
        return [close_channel(recording, far_cancellation)[None].numpy() for recording in loaded]

    two_channel = far_cancellation is None and soundfile.info(unit.train_files[0]).channels == 2
    baseline = AutoencoderBaseline(
        num_epochs=settings.num_epochs,
        two_channel=two_channel,
        seed=settings.seed,
        device=settings.device or settings.processes.device or "cpu",
    )
    decisive = [settings.seed, settings.num_epochs, two_channel, far_cancellation, unit.domains]
    contents = [content_hash(file) for file in unit.train_files]
    key = hashlib.blake2b(json.dumps([decisive, contents]).encode(), digest_size=16).hexdigest()
    place = settings.cache / f"autoencoder-{key}"
    train = recordings(unit.train_files)
    if place.is_dir():
        with quiet_checkpoints():
            baseline = AutoencoderBaseline.from_pretrained(place, baseline.device)
    else:
        baseline.fit(train, domains=unit.domains, progress=settings.label(f"autoencoder of {unit.name}"))
        _save_whole(baseline, place)
    return MachineScores(
        machine=unit.name,
        clips=unit.test,
        scores=baseline.score(recordings(unit.test_files), method).numpy(),
        normal_scores=baseline.score(train, method).numpy(),
        threshold=baseline.threshold(method),
    )


def _save_whole(baseline: AutoencoderBaseline, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        with quiet_checkpoints():
            baseline.save_pretrained(staging)
        staging.rename(place)
    except OSError:
        # Another run with the same cache may have trained the same one meanwhile.
        if not place.is_dir():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
