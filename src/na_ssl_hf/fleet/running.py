"""A fleet from its table to its output: what is left to do is listed, cut into parts, and worked on."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from transformers.utils import logging

from ..evaluation.systems.processes import Processes
from .engines import run_here, run_on_ray
from .machines import Machine, Share, labelled_share, shares_of
from .parts import (
    Part,
    PartReport,
    done_work,
    encodable_name,
    existing_parts,
    forget_errors,
    make_parts,
    remove_left_over,
)
from .workers import FitWork, ScoreWork

ENGINES = ("ray", "local")
# Small work is cut into so many parts for each worker, so that none waits for the others.
PARTS_A_WORKER = 4


@dataclass(frozen=True)
class Engine:
    """Where a fleet is worked on.

    Attributes:
        name: "ray", or "local" for this process and those of `accelerate launch`.
        num_workers: actors of Ray; `None` for one a processor, or one a GPU.
        address: of a Ray cluster; `None` for one of this machine, which lives as long as the run.
        processes: all that were launched with this one.
    """

    name: str = "ray"
    num_workers: int | None = None
    address: str | None = None
    processes: Processes = field(default_factory=Processes)

    def run(self, parts: Sequence[Part], work: ScoreWork | FitWork) -> Iterator[PartReport]:
        """Work on parts; errors are those of `run_on_ray`."""
        if not parts:
            return iter(())
        if self.name == "ray":
            return run_on_ray(parts, work, self.num_workers, self.address)
        return run_here(parts, work, self.processes)


@dataclass(frozen=True)
class Outcome:
    """What became of a run, of all its processes.

    Attributes:
        num_earlier: recordings, or machines, that had a row before.
        reports: of the parts that were worked on.
        lost: parts without a report.
    """

    num_earlier: int
    reports: tuple[PartReport, ...]
    lost: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """Why parts were not written, in one line each."""
        failed = [f"{report.name}: {report.failure}" for report in self.reports if report.failure is not None]
        return failed + [f"{name}: nothing was heard of it" for name in self.lost]


def score_fleet(
    machines: Sequence[Machine],
    work: ScoreWork,
    engine: Engine | None = None,
    part_size: int = 256,
    retry_errors: bool = False,
    progress: str | None = None,
) -> Outcome:
    """Score the recordings of machines into Parquet files; what has a row is not scored again.

    Args:
        machines: see `read_machines`.
        work: how they are scored, and where to.
        engine: where; `None` for Ray on this machine.
        part_size: the number of recordings in a file, from which on a killed worker's work is done again.
        retry_errors: whether recordings with an error count as not scored.
        progress: label of the progress bar; `None` for no bar.

    Returns:
        what was done.

    Raises:
        ValueError: an argument is out of its range, the output is of other settings, or a package is missing.
        OSError: the output cannot be read or written, or there is no connection to Ray.
    """

    def shares(done: set[tuple[str, str]]) -> Iterable[Share]:
        # A part ends with a batch of the machine, so that each batch holds what it would hold without parts.
        return chain.from_iterable(
            shares_of(machine, lambda file, name=machine.name: _key(name, file) in done, work.batch_size)  # type: ignore[misc]
            for machine in machines
        )

    return _run(shares, work, engine or Engine(), part_size, retry_errors, progress)


def fit_fleet(
    machines: Sequence[Machine],
    work: FitWork,
    engine: Engine | None = None,
    part_size: int = 16,
    retry_errors: bool = False,
    groups: Callable[[Sequence[Path]], Sequence[str]] | None = None,
    domains: Callable[[Sequence[Path]], Sequence[str]] | None = None,
    progress: str | None = None,
) -> Outcome:
    """Fit a scorer for each machine, into the folder that its row names; what has a row is not fitted again.

    Args:
        machines: see `read_machines`, with the normal recordings.
        work: how they are fitted, and where to.
        engine, retry_errors, progress: as for `score_fleet`, whose errors are also these.
        part_size: the number of machines in a file.
        groups, domains: from the recordings of a machine to their labels for `AnomalyScorer.fit`.
    """
    # Imported here, because the command that leaves the scoring to Ray needs no torch.
    from ..checkpoints.scorers import load_scorer

    if engine is None or engine.processes.is_main:
        # A model that cannot be loaded is told once, before any worker tries.
        load_scorer(work.model, "cpu", trust_remote_code=work.trust_remote_code)

    def shares(done: set[tuple[str, str]]) -> Iterable[Share]:
        left = (machine for machine in machines if _key(machine.name, machine.scorer) not in done)
        return (labelled_share(machine, groups, domains) for machine in left)

    return _run(shares, work, engine or Engine(), part_size, retry_errors, progress)


def _run(
    shares: Callable[[set[tuple[str, str]]], Iterable[Share]],
    work: ScoreWork | FitWork,
    engine: Engine,
    part_size: int,
    retry_errors: bool,
    progress: str | None,
) -> Outcome:
    if engine.name not in ENGINES:
        raise ValueError(f"`engine` must be one of {ENGINES}, got {engine.name!r}.")
    for name, value in (("part_size", part_size), ("num_workers", engine.num_workers)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("a fleet needs pyarrow: pip install 'na-ssl-hf[fleet]'")
    if os.path.exists(work.out) and not os.path.isdir(work.out):
        raise FileExistsError(f"--out must be a folder, got the file {work.out}")
    num_earlier, parts = 0, list[Part]()
    # One process lists the work for all: by the time the others look, the first parts may have been written.
    if engine.processes.is_main:
        remove_left_over(work.out)
        if retry_errors:
            forget_errors(work.out, work.kind, work.settings)
        # Earlier versions wrote paths as they were found; `join` leaves those that are whole.
        here = encodable_name(os.getcwd())
        rows = done_work(work.out, work.kind, work.settings)
        done = {(machine, os.path.join(here, other)) for machine, other in rows}
        parts = _parts(list(shares(done)), work, engine, part_size, len(existing_parts(work.out)))
        num_earlier = len(done)
    parts = engine.processes.gather(parts)
    reports = []
    hidden = progress is None or not engine.processes.is_main
    with logging.tqdm(
        total=sum(work.weight(share) for part in parts for share in part.shares),
        desc=progress,
        unit=work.unit,
        disable=hidden,
    ) as bar:
        for report in engine.run(parts, work):
            reports.append(report)
            bar.update(report.num_done * (engine.processes.count if engine.name == "local" else 1))
    everything = tuple(engine.processes.gather(reports))
    reported = {report.name for report in everything}
    return Outcome(num_earlier, everything, tuple(part.name for part in parts if part.name not in reported))


def _parts(
    shares: Sequence[Share], work: ScoreWork | FitWork, engine: Engine, part_size: int, num_existing: int
) -> list[Part]:
    num_workers = engine.num_workers or max(engine.processes.count, os.cpu_count() or 1)
    total = sum(work.weight(share) for share in shares)
    size = max(1, min(part_size, math.ceil(total / (PARTS_A_WORKER * num_workers))))
    return list(make_parts(shares, size, num_existing, work.settings, work.weight))


def _key(machine: str, other: str) -> tuple[str, str]:
    return encodable_name(machine), encodable_name(other)
