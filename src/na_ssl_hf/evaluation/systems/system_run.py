"""Running a published system by name on a DCASE folder.

Letters: N training clips, M test clips, S seeds, F bands, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from ...hub.memory_bank import MemoryBank
from ...hub.memory_bank_rescaling import RescalingName
from ...hub.threshold import fit_threshold
from ..autoencoder.run import run_autoencoder
from .embedders import Embedder, checkpoint_embedder, log_mel_embedder
from .embedding_cache import cached_embeddings
from .machine_data import MachineData, list_machines, read_test_labels
from .machine_scores import MachineScores
from .published_systems import LOG_MEL_FRONTENDS, PublishedSystem, find_system
from .run_settings import RunSettings
from .score_ensemble import ScoreEnsemble

SMOTE_NEIGHBORS = 2


@dataclass(frozen=True)
class SystemRun:
    """A system, what it was run with, and what came out.

    Attributes:
        system: name of the system.
        far_cancellation: "least_squares", "spectral_subtraction", "none", or `None` for what the checkpoints say.
        checkpoints: frontend -> its checkpoints, one for every seed.
        machines: the scored machines, by name.
    """

    system: str
    far_cancellation: str | None
    checkpoints: Mapping[str, tuple[str, ...]]
    machines: tuple[MachineScores, ...]

    @property
    def name(self) -> str:
        """Name of the system with its far-microphone cancellation; fit for a folder."""
        return f"{self.system}+{self.far_cancellation}" if self.far_cancellation else self.system


class _Embedded(NamedTuple):
    """One frontend on one machine: `(N, F, D)` of the training and `(M, F, D)` of the test clips."""

    frontend: Embedder
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
) -> SystemRun:
    """Fit a system on the training clips of every machine and score its test clips; higher is more anomalous.

    Args:
        system: a name of `SYSTEMS`.
        data: a folder that `load_dcase2026` reads.
        settings: where and how.
        checkpoints: frontend -> checkpoints of its seeds, whose scores are averaged; see `checkpoint_embedder`.
        far_cancellation: "least_squares" or "spectral_subtraction" removes from the close channel what the far one
            hears, before everything else; "none" does not, even where a checkpoint says so; `None` does what the
            checkpoints say.
        machines: which ones; default all.
        ground_truth: folder of the `ground_truth_*` folders, for test clips whose names do not say their labels.
        rescaling: of the memory, in place of the system's own; `None` for plain distances. Systems with SMOTE refuse
            any other, autoencoders have none.

    Raises:
        OSError: data, checkpoints or ground truth are missing or damaged.
        ValueError: an unknown system, a frontend without checkpoint, too few clips, or recordings that the system does
            not take; all but the last before any work.
    """
    recipe = find_system(system)
    if rescaling != "published":
        recipe = replace(recipe, rescaling=rescaling)
    given = checkpoints or {}
    seeds = {name: tuple(given.get(name, ())) for name in recipe.frontends if name not in LOG_MEL_FRONTENDS}
    if missing := [name for name, paths in seeds.items() if not paths]:
        raise ValueError(
            f"system {system!r} must have a checkpoint for each of its frontends, got none for {', '.join(missing)}: "
            f"give --frontend {' '.join(f'{name}=CHECKPOINT' for name in missing)}"
        )
    units = list_machines(data, machines)
    labels = {unit.name: read_test_labels(unit, ground_truth) for unit in units}
    if recipe.autoencoder_score:
        scored = run_autoencoder(recipe.autoencoder_score, units, _method(far_cancellation), settings)
    else:
        scored = _run_frontends(recipe, units, seeds, far_cancellation, settings)
    labelled = tuple(
        replace(machine, is_anomaly=labels[machine.machine][0], is_target=labels[machine.machine][1])
        for machine in scored
    )
    return SystemRun(system, far_cancellation, seeds, labelled)


def _method(far_cancellation: str | None) -> str | None:
    """Return the method of a system without checkpoints, for which "none" and `None` are the same."""
    return None if far_cancellation == "none" else far_cancellation


def _run_frontends(
    recipe: PublishedSystem,
    units: Sequence[MachineData],
    checkpoints: Mapping[str, tuple[str, ...]],
    far_cancellation: str | None,
    settings: RunSettings,
) -> list[MachineScores]:
    ensemble = ScoreEnsemble(recipe.frontends, labelled_members=recipe.frontends_with_attributes)
    embeddings: dict[str, dict[str, list[_Embedded]]] = {unit.name: {} for unit in units}
    for name in recipe.frontends:
        served = [unit for unit in units if name in ensemble.members(unit.has_attributes)]
        files = [file for unit in served for file in (*unit.train_files, *unit.test_files)]
        sizes = [size for unit in served for size in (len(unit.train), len(unit.test))]
        if not files:
            continue
        for frontend in _frontends(name, checkpoints.get(name, ()), recipe, far_cancellation, settings):
            computed = cached_embeddings(
                frontend, files, settings.cache, settings.batch_size, settings.processes, settings.label(name)
            )
            parts = iter(computed.split(sizes))
            for unit in served:
                embeddings[unit.name].setdefault(name, []).append(_Embedded(frontend, next(parts), next(parts)))
    return [_score_machine(recipe, ensemble, unit, embeddings[unit.name], settings.false_alarm_rate) for unit in units]


def _frontends(
    name: str,
    checkpoints: Sequence[str],
    recipe: PublishedSystem,
    far_cancellation: str | None,
    settings: RunSettings,
) -> list[Embedder]:
    if name in LOG_MEL_FRONTENDS:
        return [log_mel_embedder(_method(far_cancellation), center_level=LOG_MEL_FRONTENDS[name])]
    device = settings.device if settings.device is not None else settings.processes.device
    return [
        checkpoint_embedder(name, seed, recipe.pooling, recipe.gamma, far_cancellation, settings.batch_size, device)
        for seed in checkpoints
    ]


def _score_machine(
    recipe: PublishedSystem,
    ensemble: ScoreEnsemble,
    unit: MachineData,
    embeddings: Mapping[str, Sequence[_Embedded]],
    false_alarm_rate: float,
) -> MachineScores:
    self_scores, scores, band_scores = {}, {}, {}
    for name, seeds in embeddings.items():
        scored = [_fit_and_score(recipe, seed, unit) for seed in seeds]
        self_scores[name], scores[name], bands = (np.stack(part) for part in zip(*scored, strict=True))  # (S, ...)
        band_scores[name] = bands.mean(axis=0)  # (M, F)
    fused_self_scores = ensemble.score(self_scores, unit.has_attributes)
    return MachineScores(
        machine=unit.name,
        clips=unit.test,
        scores=ensemble.score(scores, unit.has_attributes),
        normal_scores=fused_self_scores,
        threshold=fit_threshold(fused_self_scores, "conformal", false_alarm_rate),
        band_scores=np.average(
            list(band_scores.values()), axis=0, weights=[recipe.frontends[name] for name in band_scores]
        ),
    )


def _fit_and_score(
    recipe: PublishedSystem, embedded: _Embedded, unit: MachineData
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leave-one-out scores `(N,)`, scores `(M,)` and band scores `(M, F)`."""
    bank = _memory(recipe, embedded.frontend, unit).fit(embedded.train, domains=unit.domains)
    bands = torch.as_tensor(bank.band_scores(embedded.test))
    scores = torch.as_tensor(bank.aggregate_bands(bands))
    return bank.self_scores().double().numpy(), scores.double().numpy(), bands.double().numpy()


def _memory(recipe: PublishedSystem, frontend: Embedder, unit: MachineData) -> MemoryBank:
    bank = partial(frontend.bank, rescaling=recipe.rescaling)
    if not recipe.smote_ratio:
        return bank()
    num_target = unit.domains.count("target")
    if int(recipe.smote_ratio * unit.domains.count("source")) <= num_target:
        # There are as many target clips as SMOTE would fill up to.
        return bank(separate_domains=True)
    return bank(smote_ratio=recipe.smote_ratio, smote_neighbors=SMOTE_NEIGHBORS)
