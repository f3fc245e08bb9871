"""The challenge's autoencoder baselines are run here: one autoencoder is trained for every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch

from ...hub.far_microphone import FarMicrophone
from ...hub.fbank import SAMPLING_RATE
from ...hub.input_level import at_level
from ...hub.recording import load_recording
from ...hub.whole_files import whole_folder
from ...quiet_checkpoints import quiet_checkpoints
from ..systems.embedders import close_channel, far_canceller
from ..systems.machine_data import MachineData
from ..systems.machine_scores import MachineScores
from ..systems.run_settings import RunSettings
from .baseline import AutoencoderBaseline


def run_autoencoder(
    method: str,
    machines: Sequence[MachineData],
    far_cancellation: str | None,
    settings: RunSettings,
    far_microphones: Mapping[str, FarMicrophone] | None = None,
) -> list[MachineScores]:
    """Train the autoencoder of every machine, or find it in the cache, and score; processes take machines in turn.

    Args:
        method: "mse" or "mahalanobis".
        machines: what to train on and to score. The scores of the training clips are not leave-one-out ones, as in the
            original.
        far_cancellation: "least_squares" or "spectral_subtraction" first takes out what the far channel hears.
        settings: where the cache lies, and how the autoencoders are trained.
        far_microphones: name of a machine -> its calibrated far microphone, in place of `far_cancellation`.

    Raises:
        OSError, ValueError: as for `AutoencoderBaseline`.
    """
    own = [
        _score_with_autoencoder(method, machine, far_cancellation, settings, (far_microphones or {}).get(machine.name))
        for machine in settings.processes.share(machines)
    ]
    return settings.processes.gather(own)


def _score_with_autoencoder(
    method: str,
    machine: MachineData,
    far_cancellation: str | None,
    settings: RunSettings,
    far_microphone: FarMicrophone | None,
) -> MachineScores:
    cancel = far_canceller(far_cancellation, far_microphone)
    two_channel = cancel is None and soundfile.info(machine.train_files[0]).channels == 2
    baseline = AutoencoderBaseline(
        num_epochs=settings.num_epochs,
        two_channel=two_channel,
        seed=settings.seed,
        device=settings.compute_device or "cpu",
    )
    decisive: list[Any] = [settings.seed, settings.num_epochs, two_channel, far_cancellation, machine.domains]
    # What was before there was a choice keeps its place.
    decisive += [] if far_microphone is None else [far_microphone.fingerprint]
    decisive += [] if settings.level == "as recorded" else [settings.level]
    contents = [settings.hashes.of(file) for file in machine.train_files]
    key = hashlib.blake2b(json.dumps([decisive, contents]).encode(), digest_size=16).hexdigest()
    place = settings.cache / f"autoencoder-{key}"
    train = _recordings(machine.train_files, cancel, settings.level)
    if place.is_dir():
        with quiet_checkpoints():
            baseline = AutoencoderBaseline.from_pretrained(place, baseline.device)
    else:
        baseline.fit(train, domains=machine.domains, progress=settings.label(f"autoencoder of {machine.name}"))
        _keep(baseline, place)
    return MachineScores(
        machine=machine.name,
        clips=machine.test,
        scores=baseline.score(_recordings(machine.test_files, cancel, settings.level), method).numpy(),
        normal_scores=baseline.score(train, method).numpy(),
        threshold=baseline.threshold(method),
    )


def _recordings(
    files: Sequence[Path], cancel: Callable[[torch.Tensor], torch.Tensor] | None, level: str
) -> list[Path] | list[dict[str, Any]]:
    """Return what the baseline takes: the files, or recordings at a level, or their close channels after `cancel`."""
    if cancel is None and level == "as recorded":
        return list(files)
    taken = []
    for recording in (load_recording(file, SAMPLING_RATE) for file in files):
        if cancel is None:
            channels = at_level(torch.as_tensor(recording.samples, dtype=torch.float32)[None], level)[
                0
            ]  # (channels, N)
        else:
            channels = close_channel(recording, cancel, level)[None]  # (1, N)
        taken.append({"array": channels.numpy(), "sampling_rate": recording.sampling_rate, "path": recording.name})
    return taken


def _keep(baseline: AutoencoderBaseline, place: Path) -> None:
    try:
        with whole_folder(place) as staging, quiet_checkpoints():
            baseline.save_pretrained(staging)
    except OSError:
        # Another run with the same cache may have put the same autoencoder there at this very moment.
        if not place.is_dir():
            raise
