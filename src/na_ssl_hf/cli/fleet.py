"""`na-ssl fleet`: scorers and scores of many machines, on all processors of a machine or a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import default_checkpoint
from .command_line import CommandParser, add_command, add_group
from .scoring import (
    add_common_options,
    add_fit_options,
    add_window_options,
    check_device,
    domains_of,
    fit_arguments,
    groups_of,
)

if TYPE_CHECKING:
    from ..evaluation.systems.processes import Processes
    from ..fleet.running import Engine, Outcome

# So many warnings of workers are printed.
PRINTED_WARNINGS = 10


def add_commands(commands: Any) -> None:
    """Add `na-ssl fleet` with its commands `fit` and `score`."""
    _, fleet = add_group(
        commands,
        "fleet",
        "fit scorers for many machines, and score the recordings of all of them",
        "  na-ssl fleet score --machines machines.csv --out scores",
    )
    _add_fit(fleet)
    _add_score(fleet)


def _add_score(fleet: Any) -> None:
    parser = add_command(
        fleet,
        "score",
        _score,
        "score the recordings of many machines into Parquet files; run again to resume",
        "  na-ssl fleet score --machines machines.csv --out scores\n"
        "  na-ssl fleet score --machines machines.csv --out scores --address head:6379\n"
        "  accelerate launch -m na_ssl_hf.cli fleet score --machines machines.csv --out scores",
    )
    _add_work_options(parser, "machine, scorer (what na-ssl fit wrote) and recordings", 256, "recordings")
    parser.add_argument(
        "--memories", type=int, default=64, metavar="N", help="memories that a worker holds at a time (default: 64)"
    )
    add_window_options(parser)
    add_common_options(parser, device="cpu")


def _add_fit(fleet: Any) -> None:
    parser = add_command(
        fleet,
        "fit",
        _fit,
        "fit a scorer for each of many machines; run again to resume",
        "  na-ssl fleet fit --machines machines.csv --model checkpoint --out fitted",
    )
    _add_work_options(parser, "machine, scorer (the new folder) and normal (recordings)", 16, "machines")
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="checkpoint: a directory, a name on the hub or of the package (default: na-eat-tiny-distilled)",
    )
    add_fit_options(parser)
    add_common_options(parser, device="cpu")


def _add_work_options(parser: CommandParser, columns: str, part_size: int, unit: str) -> None:
    parser.add_argument("--machines", type=Path, required=True, metavar="CSV", help=f"table with the columns {columns}")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the Parquet files, new or of an earlier run"
    )
    parser.add_argument(
        "--engine",
        choices=("ray", "local"),
        help="ray, or local for this process and those of accelerate launch (default: ray, under a launcher local)",
    )
    parser.add_argument("--address", metavar="ADDRESS", help="address of a Ray cluster (default: this machine alone)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of Ray's workers (default: one a processor, or one a GPU)"
    )
    parser.add_argument(
        "--part-size",
        type=int,
        default=part_size,
        metavar="N",
        help=f"number of {unit} in a file, which is done again when its worker is killed (default: {part_size})",
    )
    parser.add_argument(
        "--retry-errors", action="store_true", help=f"another try for {unit} whose row of an earlier run has an error"
    )


def _score(options: argparse.Namespace) -> int:
    from ..evaluation.systems.processes import launched_processes
    from ..fleet.machines import read_machines
    from ..fleet.running import score_fleet
    from ..fleet.workers import ScoreWork

    _on_every_node(options)
    machines = read_machines(options.machines)
    if options.batch_size < 1 or options.memories < 1:
        raise ValueError(
            f"--batch-size and --memories must be at least 1, got {options.batch_size} and {options.memories}"
        )
    with launched_processes() as processes:
        engine = _engine(options, processes)
        work = ScoreWork(
            str(options.out),
            window=options.window,
            hop=options.hop,
            aggregate=options.aggregate,
            resample=options.resample,
            trust_remote_code=options.trust_remote_code,
            device=options.device,
            batch_size=options.batch_size,
            num_memories=options.memories,
        )
        outcome = score_fleet(machines, work, engine, options.part_size, options.retry_errors, progress="score")
        if not processes.is_main:
            return 0
    num_anomalous = sum(report.num_anomalous for report in outcome.reports)
    done = sum(report.num_done - report.num_failed for report in outcome.reports)
    earlier = f", {outcome.num_earlier} of an earlier run" if outcome.num_earlier else ""
    print(f"{done} recordings of {len(machines)} machines, {num_anomalous} anomalous, scores in {options.out}{earlier}")
    return _told(options.program, outcome, "recordings could not be scored")


def _fit(options: argparse.Namespace) -> int:
    from ..evaluation.systems.processes import launched_processes
    from ..fleet.machines import read_machines
    from ..fleet.running import fit_fleet
    from ..fleet.workers import FitWork

    _on_every_node(options)
    machines = read_machines(options.machines, recordings="normal")
    if "two_domains" in options.backend and options.domains is None:
        raise ValueError("--backend two-domains needs --domains, which tells source from target recordings; got none")
    with launched_processes() as processes:
        engine = _engine(options, processes)
        work = FitWork(
            str(options.out),
            options.model or str(default_checkpoint()),
            fit_arguments(options),
            resample=options.resample,
            trust_remote_code=options.trust_remote_code,
            device=options.device,
        )
        outcome = fit_fleet(
            machines,
            work,
            engine,
            options.part_size,
            options.retry_errors,
            groups=None if options.groups is None else partial(groups_of, rule=options.groups),
            domains=None if options.domains is None else partial(domains_of, rule=options.domains),
            progress="fit",
        )
        if not processes.is_main:
            return 0
    done = sum(report.num_done - report.num_failed for report in outcome.reports)
    earlier = f", {outcome.num_earlier} by an earlier run" if outcome.num_earlier else ""
    print(f"{done} of {len(machines)} machines fitted{earlier}, thresholds in {options.out}")
    return _told(options.program, outcome, "machines could not be fitted")


def _on_every_node(options: argparse.Namespace) -> None:
    """Make the path of the output whole, where workers of a cluster would look for another one."""
    if options.address is not None:
        options.out = options.out.absolute()


def _engine(options: argparse.Namespace, processes: Processes) -> Engine:
    from ..fleet.running import Engine

    name = options.engine or ("local" if processes.count > 1 else "ray")
    if name == "ray" and processes.count > 1:
        raise ValueError("--engine ray starts its workers itself: run it without accelerate launch")
    if name == "local" and (options.address is not None or options.workers is not None):
        raise ValueError("--address and --workers are options of --engine ray, got --engine local")
    if options.address is None:
        check_device(options.device)  # a cluster may have devices that this machine lacks
    return Engine(name, options.workers, options.address, processes)


def _told(program: str, outcome: Outcome, failed: str) -> int:
    """Print warnings and errors of all workers; return the exit status."""
    warnings = list(dict.fromkeys(warning for report in outcome.reports for warning in report.warnings))
    for warning in warnings[:PRINTED_WARNINGS]:
        print(f"{program}: warning: {warning}", file=sys.stderr)
    if len(warnings) > PRINTED_WARNINGS:
        print(f"{program}: warning: {len(warnings) - PRINTED_WARNINGS} more warnings like these", file=sys.stderr)
    num_failed = sum(report.num_failed for report in outcome.reports)
    if num_failed:
        first = next(report.first_error for report in outcome.reports if report.num_failed)
        print(f"{program}: error: {num_failed} {failed}, the first of them: {first}", file=sys.stderr)
    if outcome.failures:
        lost = f"{len(outcome.failures)} parts are missing, run again to make them: {outcome.failures[0]}"
        print(f"{program}: error: {lost}", file=sys.stderr)
    return 1 if num_failed or outcome.failures else 0
