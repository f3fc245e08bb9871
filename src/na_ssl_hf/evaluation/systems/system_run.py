"""A system is run by its name on a DCASE folder: fitted on the training clips of every machine, scored on the others.

Letters: N training clips, M test clips, S seeds, F bands, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from ...hub.far_microphone import FarMicrophone
from ...hub.input_level import check_level
from ...hub.memory_bank import MemoryBank
from ...hub.memory_bank_backends import BACKENDS, NEAREST, BackendName, backend_names
from ...hub.memory_bank_rescaling import RescalingName
from ...hub.threshold import fit_threshold
from ..autoencoder.run import run_autoencoder
from .embedders import Embedder, Frontend, checkpoint_frontend, log_mel_frontend
from .embedding_cache import cached_embeddings
from .far_calibration import calibrated_far_microphones, is_calibrated
from .machine_data import MachineData, list_machines, read_labels_of_machines
from .machine_scores import MachineScores, fit_and_score
from .published_systems import LOG_MEL_FRONTENDS, PublishedSystem, find_system
from .run_settings import RunSettings
from .score_ensemble import ScoreEnsemble

SMOTE_NEIGHBORS = 2


@dataclass(frozen=True)
class SystemRun:
    """The run of one system: what it was run with, and the scores that it gave.

    Attributes:
        system: name of the system.
        far_cancellation: "least_squares", "spectral_subtraction", "none", a calibrated method ("installation",
            "filter" or "auto"), or `None` for what the checkpoints say.
        checkpoints: name of a frontend -> its checkpoints, one for every seed.
        layers: name of a frontend -> the layers whose tokens are compared, where they are not the last one.
        machines: the scores of every machine, in the order of their names.
        backend: what scored the bands in place of the nearest neighbours, such as "pca" or "nearest+pca-mean"; `None`
            for the system's own.
        level: the level at which recordings were heard, "as recorded" or "normalised".
    """

    system: str
    far_cancellation: str | None
    checkpoints: Mapping[str, tuple[str, ...]]
    machines: tuple[MachineScores, ...]
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    backend: str | None = None
    level: str = "as recorded"

    @property
    def name(self) -> str:
        """Return the name of the system with all that was chosen for it; it may also name a folder."""
        chosen = [f"{frontend}-layer-{'-'.join(map(str, layers))}" for frontend, layers in self.layers.items()]
        level = None if self.level == "as recorded" else self.level
        return "+".join(part for part in (self.system, self.far_cancellation, level, *chosen, self.backend) if part)


class _Embedded(NamedTuple):
    """The embeddings of one machine by one embedder: `(N, F, D)` of its training and `(M, F, D)` of its test clips."""

    embedder: Embedder
    train: torch.Tensor
    test: torch.Tensor


def run_system(
    system: str,
    data: str | Path,
    settings: RunSettings,
    checkpoints: Mapping[str, Sequence[str]] | None = None,
    far_cancellation: str | None = None,
    machines: Sequence[str] | None = None,
    ground_truth: str | Path | None = None,
    rescaling: RescalingName | Literal["published"] | None = "published",
    backend: BackendName | Sequence[BackendName] = NEAREST,
    backend_fusion: Literal["minimum", "mean"] = "minimum",
) -> SystemRun:
    """Fit a system on the training clips of every machine and score its test clips; higher is more anomalous.

    Args:
        system: a name of `SYSTEMS`.
        data: a folder that `load_dcase2026` reads.
        settings: where the cache lies, and how systems are computed.
        checkpoints: name of a frontend -> checkpoints of its seeds, whose scores are averaged; see
            `checkpoint_embedder`.
        far_cancellation: "least_squares" or "spectral_subtraction" removes from the close channel what the far one
            hears, before everything else; "installation", "filter" or "auto" of a [`FarMicrophone`] does, which is
            calibrated on the training clips of each machine, and on its supplemental clips of the noise alone, where
            there are some; "none" does not, even where a checkpoint says so; `None` does what the checkpoints say.
        machines: names of the machines to run on; `None` for all.
        ground_truth: folder of the `ground_truth_*` folders, for test clips whose names do not say their labels.
        rescaling: the rescaling of the memory, in place of the system's own; `None` for plain distances. Systems with
            SMOTE refuse every other one; autoencoders have none.
        backend, backend_fusion: what scores a band, see [`MemoryBank`]. Rescaling and SMOTE are those of "nearest", and
            have no part where it is not among the backends. Autoencoders take no other backend.

    Raises:
        OSError: data, checkpoints or ground truth are missing or damaged.
        ValueError: the system, the method or the level is unknown, a frontend has no checkpoint, there are too few
            clips, a checkpoint lacks a chosen layer, a far microphone cannot be calibrated, or the system does not take
            one of the recordings; all but the last three are found before any work.
    """
    recipe = find_system(system)
    learns = is_calibrated(far_cancellation)
    check_level(settings.level)
    if rescaling != "published":
        recipe = replace(recipe, rescaling=rescaling)
    names = backend_names(backend)
    if recipe.autoencoder_score and names != (NEAREST,):
        raise ValueError(f"system {system!r} is an autoencoder, which has backend 'nearest' alone; got {backend!r}")
    recipe = replace(recipe, backend=names, backend_fusion=backend_fusion)
    given = checkpoints or {}
    seeds = {name: tuple(given.get(name, ())) for name in recipe.frontends if name not in LOG_MEL_FRONTENDS}
    if missing := [name for name, paths in seeds.items() if not paths]:
        raise ValueError(
            f"system {system!r} must have a checkpoint for each of its frontends, got none for {', '.join(missing)}: "
            f"give --frontend {' '.join(f'{name}=CHECKPOINT' for name in missing)}"
        )
    machine_data = list_machines(data, machines, with_machine_off=learns)
    labels = read_labels_of_machines(machine_data, ground_truth)
    _check_clips(recipe, machine_data)
    if recipe.autoencoder_score:
        far_microphones = _far_microphones(far_cancellation, machine_data, log_mel_frontend(), settings)
        method = _own_method(far_cancellation)
        scored = run_autoencoder(recipe.autoencoder_score, machine_data, method, settings, far_microphones)
    else:
        scored = _run_embedders(recipe, machine_data, seeds, far_cancellation, settings)
    labelled = tuple(
        replace(machine, is_anomaly=labels[machine.machine][0], is_target=labels[machine.machine][1])
        for machine in scored
    )
    layers = {name: tuple(settings.layers[name]) for name in seeds if name in settings.layers}
    label = _backend_label(names, backend_fusion)
    return SystemRun(system, far_cancellation, seeds, labelled, layers, label, settings.level)


def _backend_label(names: Sequence[BackendName], fusion: str) -> str | None:
    if tuple(names) == (NEAREST,):
        return None
    return "+".join(names) + (f"-{fusion}" if len(names) > 1 and fusion != "minimum" else "")


def _check_clips(recipe: PublishedSystem, machine_data: Sequence[MachineData]) -> None:
    """Raise ValueError, which names the machine, where a backend needs more clips than there are."""
    for machine in machine_data:
        num_target = machine.domains.count("target")
        for name in backend_names(recipe.backend):
            if name == NEAREST:
                continue
            try:
                BACKENDS[name]().check(len(machine.train) - num_target, num_target)
            except ValueError as error:
                raise ValueError(f"{machine.name}: {error}") from error


def _own_method(far_cancellation: str | None) -> str | None:
    """Return the method of a system without checkpoints that learns nothing, for which "none" and `None` are alike."""
    return None if far_cancellation == "none" or is_calibrated(far_cancellation) else far_cancellation


def _far_microphones(
    far_cancellation: str | None, machines: Sequence[MachineData], frontend: Frontend, settings: RunSettings
) -> dict[str, FarMicrophone]:
    """Calibrate the far microphone of every machine at the rate of a frontend, where the method asks for it."""
    if far_cancellation is None or not is_calibrated(far_cancellation):
        return {}
    return calibrated_far_microphones(
        far_cancellation, machines, frontend.sampling_rate, frontend.waveform, settings.processes
    )


def _run_embedders(
    recipe: PublishedSystem,
    machine_data: Sequence[MachineData],
    checkpoints: Mapping[str, tuple[str, ...]],
    far_cancellation: str | None,
    settings: RunSettings,
) -> list[MachineScores]:
    """Embed the clips of all machines, one embedder after the other, then score machine by machine."""
    ensemble = ScoreEnsemble(recipe.frontends, labelled_members=recipe.frontends_with_attributes)
    embedded: dict[str, dict[str, list[_Embedded]]] = {machine.name: {} for machine in machine_data}
    calibrated: dict[int, dict[str, FarMicrophone]] = {}  # by sampling rate
    for name in recipe.frontends:
        served = [machine for machine in machine_data if name in ensemble.members(machine.has_attributes)]
        if not served:
            continue
        for frontend in _frontends(name, checkpoints.get(name, ()), recipe, far_cancellation, settings):
            if frontend.sampling_rate not in calibrated:
                calibrated[frontend.sampling_rate] = _far_microphones(
                    far_cancellation, machine_data, frontend, settings
                )
            far_microphones = calibrated[frontend.sampling_rate]
            # One embedder serves all machines, unless each has a far microphone of its own.
            for together in [[machine] for machine in served] if far_microphones else [served]:
                embedder = frontend.embedder(far_microphones.get(together[0].name))
                parts = _embeddings_of(embedder, together, name, settings)
                for machine in together:
                    embedded[machine.name].setdefault(name, []).append(_Embedded(embedder, next(parts), next(parts)))
    return [
        _score_machine(recipe, ensemble, machine, embedded[machine.name], settings.false_alarm_rate)
        for machine in machine_data
    ]


def _embeddings_of(
    embedder: Embedder, machines: Sequence[MachineData], name: str, settings: RunSettings
) -> Iterator[torch.Tensor]:
    """Embed the clips of machines: of each, `(N, F, D)` of its training and `(M, F, D)` of its test clips."""
    files = [file for machine in machines for file in (*machine.train_files, *machine.test_files)]
    sizes = [size for machine in machines for size in (len(machine.train), len(machine.test))]
    embeddings = cached_embeddings(
        embedder,
        files,
        settings.cache,
        settings.batch_size,
        settings.processes,
        settings.label(name),
        settings.hashes,
    )
    return iter(embeddings.split(sizes))


def _frontends(
    name: str,
    checkpoints: Sequence[str],
    recipe: PublishedSystem,
    far_cancellation: str | None,
    settings: RunSettings,
) -> Iterator[Frontend]:
    """Load one frontend of a system, for every seed; each may be freed before the next one is loaded."""
    if name in LOG_MEL_FRONTENDS:
        yield log_mel_frontend(_own_method(far_cancellation), LOG_MEL_FRONTENDS[name], settings.level)
    for checkpoint in checkpoints:
        yield checkpoint_frontend(
            name,
            checkpoint,
            recipe.pooling,
            recipe.gamma,
            # A calibrated far microphone takes the place of what the checkpoint says.
            "none" if is_calibrated(far_cancellation) else far_cancellation,
            settings.batch_size,
            settings.compute_device,
            settings.layers.get(name),
            settings.level,
        )


def _score_machine(
    recipe: PublishedSystem,
    ensemble: ScoreEnsemble,
    machine: MachineData,
    embedded: Mapping[str, Sequence[_Embedded]],
    false_alarm_rate: float,
) -> MachineScores:
    self_scores, scores, band_scores = {}, {}, {}
    for name, seeds in embedded.items():
        scored = [
            fit_and_score(_memory(recipe, seed.embedder, machine), seed.train, seed.test, machine.domains)
            for seed in seeds
        ]
        self_scores[name], scores[name], bands = (np.stack(part) for part in zip(*scored, strict=True))  # (S, ...)
        band_scores[name] = bands.mean(axis=0)  # (M, F)
    fused_self_scores = ensemble.score(self_scores, machine.has_attributes)
    return MachineScores(
        machine=machine.name,
        clips=machine.test,
        scores=ensemble.score(scores, machine.has_attributes),
        normal_scores=fused_self_scores,
        threshold=fit_threshold(fused_self_scores, "conformal", false_alarm_rate),
        band_scores=np.average(
            list(band_scores.values()), axis=0, weights=[recipe.frontends[name] for name in band_scores]
        ),
    )


def _memory(recipe: PublishedSystem, embedder: Embedder, machine: MachineData) -> MemoryBank:
    """Make the unfitted memory of a system for one machine."""
    bank = partial(embedder.bank, backend=recipe.backend, backend_fusion=recipe.backend_fusion)
    if NEAREST not in backend_names(recipe.backend):
        return bank()
    bank = partial(bank, rescaling=recipe.rescaling)
    if not recipe.smote_ratio:
        return bank()
    num_target = machine.domains.count("target")
    if int(recipe.smote_ratio * machine.domains.count("source")) <= num_target:
        # There are as many target clips as SMOTE would fill up to.
        return bank(separate_domains=True)
    return bank(smote_ratio=recipe.smote_ratio, smote_neighbors=SMOTE_NEIGHBORS)
