"""`na-ssl dcase`: the data of DCASE 2026 Task 2, and the published systems on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import (
    add_backend_options,
    add_command,
    add_far_cancellation_option,
    add_group,
    add_inference_options,
    add_level_option,
)

if TYPE_CHECKING:
    from ..evaluation.systems.processes import Processes


def add_commands(commands: Any) -> None:
    """Add `na-ssl dcase` with its commands `download`, `check` and `run`."""
    _, dcase = add_group(
        commands,
        "dcase",
        "fetch and check the data of DCASE 2026 Task 2, and run the published systems on it",
        "  na-ssl dcase check dcase2026/development",
    )
    _add_download(dcase)
    _add_check(dcase)
    _add_run(dcase)


def _add_download(dcase: Any) -> None:
    parser = add_command(
        dcase,
        "download",
        _download,
        "fetch DCASE 2026 Task 2 from Zenodo (checksums; run again to resume) and unpack it",
        "  na-ssl dcase download --out dcase2026 --sets development --machines fan ToyCar",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the new archives/, development/ and evaluation/",
    )
    parser.add_argument(
        "--sets", nargs="+", metavar="SET", help="sets: development, evaluation-train, evaluation-test (default: all)"
    )
    parser.add_argument("--machines", nargs="+", metavar="MACHINE", help="machine types, such as fan (default: all)")
    parser.add_argument("--no-extract", action="store_true", help="archives only, without unpacking them")
    parser.add_argument(
        "--base-url", default="https://zenodo.org", help="address of a server with Zenodo's records API"
    )


def _download(options: argparse.Namespace) -> None:
    from ..data.dcase.download import RECORDS, download_dcase2026

    archives = download_dcase2026(
        options.out,
        sets=options.sets or tuple(RECORDS),
        machines=options.machines,
        extract=not options.no_extract,
        base_url=options.base_url,
    )
    print(f"{len(archives)} archives with the right checksums in {options.out}")


def _add_check(dcase: Any) -> None:
    parser = add_command(
        dcase,
        "check",
        _check,
        "count clips beside the published numbers and read every file; exit status 1 when something is damaged",
        "  na-ssl dcase check dcase2026/development",
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of <machine>/train and <machine>/test")
    parser.add_argument(
        "--strict", action="store_true", help="exit status 1 also for counts other than the published ones"
    )
    parser.add_argument("--json", action="store_true", help="JSON output instead of lines")


def _check(options: argparse.Namespace) -> int:
    from ..data.dcase.check import check_dcase

    report = check_dcase(options.root)
    print(json.dumps(report.to_dict()) if options.json else "\n".join(report.lines()))
    return 0 if report.is_sound and (report.is_complete or not options.strict) else 1


def _add_run(dcase: Any) -> None:
    parser = add_command(
        dcase,
        "run",
        _run,
        "run published systems by name: score and decision CSVs, a table beside the published numbers, a report",
        "  na-ssl dcase run --system logmel baseline_mse --data dcase2026/development --out runs\n"
        "  na-ssl dcase run --system fujimura_merl_task2_3 --frontend dis-na-beats=CHECKPOINT --data DATA --out runs\n"
        "  na-ssl dcase run --system beats --far-cancellation --frontend beats=na-beats-tiny --data DATA --out runs\n"
        "  na-ssl dcase run --system logmel --far-cancellation installation --data DATA --out runs\n"
        "  accelerate launch -m na_ssl_hf.cli dcase run --system logmel --data DATA --out runs",
    )
    parser.add_argument(
        "--system",
        nargs="+",
        required=True,
        metavar="NAME",
        help="systems: baseline_mse, baseline_mahala, logmel, logmel-centred, a frontend (beats, na-beats, dis-na-eat, "
        "...), beats-rdp4, beats-rdp8, fujimura_merl_task2_1 to _4",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="ROOT", help="folder of <machine>/train and <machine>/test"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the results: one folder a system, and results.md",
    )
    parser.add_argument(
        "--frontend",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=CHECKPOINT",
        help="checkpoint of a frontend: a directory, a name on the hub or of the package; NAME=A,B,C for three seeds",
    )
    parser.add_argument(
        "--layer",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=N",
        help="layer of a frontend that is compared; NAME=8,10,12 for several, joined (default: last, EfficientAT 7)",
    )
    add_far_cancellation_option(parser)
    add_level_option(parser)
    add_backend_options(parser)
    parser.add_argument("--machines", nargs="+", metavar="MACHINE", help="machine types, such as fan (default: all)")
    parser.add_argument(
        "--ground-truth", type=Path, metavar="DIR", help="folder of ground_truth_* folders, for anonymous test clips"
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder of computed features and autoencoders (default: OUT/cache)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the autoencoders and of the bootstrap (default: 0)"
    )
    parser.add_argument("--epochs", type=int, default=100, help="number of epochs of the autoencoders (default: 100)")
    parser.add_argument("--no-report", action="store_true", help="results without HTML reports")
    add_inference_options(parser)


def _run(options: argparse.Namespace) -> None:
    from ..evaluation.systems.processes import launched_processes

    with launched_processes() as processes:
        _run_systems(options, processes)


def _run_systems(options: argparse.Namespace, processes: Processes) -> None:
    from ..evaluation.report.html_report import write_html_report
    from ..evaluation.report.result_files import describe, write_run, write_table
    from ..evaluation.systems.run_settings import RunSettings
    from ..evaluation.systems.system_run import run_system

    settings = RunSettings(
        cache=options.cache or options.out / "cache",
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
        num_epochs=options.epochs,
        processes=processes,
        layers=_layers(options.layer),
        level=options.level,
    )
    checkpoints = _checkpoints(options.frontend)
    for system in dict.fromkeys(options.system):
        run = run_system(
            system,
            options.data,
            settings,
            checkpoints,
            options.far_cancellation,
            options.machines,
            options.ground_truth,
            backend=options.backend,
            backend_fusion=options.backend_fusion,
        )
        if processes.is_main:
            metrics = write_run(options.out / run.name, run, options.data, options.seed)
            if not options.no_report:
                write_html_report(
                    options.out / run.name / "report.html", run.name, describe(metrics), run.machines, options.seed
                )
            write_table(options.out)
    if processes.is_main:
        print((options.out / "results.md").read_text(encoding="utf-8"), end="")


def _checkpoints(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Return the checkpoints of each frontend, one for every seed, from `NAME=A,B` arguments."""
    from ..evaluation.systems.published_systems import FRONTENDS

    checkpoints: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, paths = pair.partition("=")
        if name not in FRONTENDS or not equals or not all(paths.split(",")):
            raise ValueError(f"--frontend must be NAME=CHECKPOINT with NAME of {', '.join(FRONTENDS)}; got {pair!r}")
        checkpoints.setdefault(name, []).extend(paths.split(","))
    return checkpoints


def _layers(pairs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the layers of each frontend from `NAME=8,10` arguments."""
    from ..evaluation.systems.published_systems import FRONTENDS

    layers = {}
    for pair in pairs:
        name, equals, numbers = pair.partition("=")
        try:
            chosen = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            chosen = ()
        if name not in FRONTENDS or not equals or not chosen or name in layers:
            raise ValueError(
                f"--layer must be NAME=N or NAME=N,M, once for a NAME of {', '.join(FRONTENDS)}; got {pair!r}"
            )
        layers[name] = chosen
    return layers
