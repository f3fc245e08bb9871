"""Speed, memory and false alarms of na_ssl_hf, each beside the straightforward way, in one run.

    python -m benchmarks                                # everything, a quarter of an hour, 4 GB (`make bench`)
    python -m benchmarks --only na-beats bank           # the items whose name begins so
    python -m benchmarks --json > benchmarks.json

Times are CPU seconds of this process, summed over all threads. The two ways alternate, and the medians are shown. The
ratios are what counts, because other programs on the machine stretch both sides.

Every module of this folder holds one subject, and names its items in `ITEMS`.
"""

import argparse
import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from transformers.utils import logging

from . import (
    NUM_THREADS,
    big_memory_bank,
    distillation,
    edge,
    false_alarms,
    far_microphone,
    filter_banks,
    fine_tuning,
    input_level,
    layers,
    memory_bank,
    mixtures,
    models,
    scoring,
    startup,
)
from .measuring import SEED, Row, progress

SUBJECTS = (
    startup,
    models,
    mixtures,
    distillation,
    fine_tuning,
    scoring,
    edge,
    filter_banks,
    memory_bank,
    big_memory_bank,
    false_alarms,
    layers,
    input_level,
    far_microphone,
)


def main() -> None:
    items = {name: measure for subject in SUBJECTS for name, measure in subject.ITEMS.items()}
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m benchmarks",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[""],
        help=f"beginnings of the names of the items to measure: {', '.join(items)} (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of the table")
    arguments = parser.parse_args()
    chosen = [name for name in items if name.startswith(tuple(arguments.only))]
    if not chosen:
        parser.error(f"--only must name the beginning of some of {', '.join(items)}, got {' '.join(arguments.only)}")

    torch.set_num_threads(NUM_THREADS)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = []
    for name in chosen:
        progress(f"[{name}]")
        torch.manual_seed(SEED)
        rows += items[name]()
    if arguments.json:
        print(json.dumps({"machine": machine(), "seed": SEED, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    print(f"{machine()}, seed {SEED}\n")
    print_table(rows)


def machine() -> str:
    names = ("torch", "transformers", "numpy", "kaldi-native-fbank")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} missing")
    return ", ".join([processor(), f"{NUM_THREADS} threads", f"Python {platform.python_version()}", *versions])


def processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.platform()


def print_table(rows: list[Row]) -> None:
    def number(value: float | None, unit: str) -> str:
        return "-" if value is None else f"{value:.3g} {unit}"

    header = ("what", "ours", "straightforward", "ratio", "target", "met")
    met = {True: "yes", False: "NO", None: "-"}
    lines = [
        (
            row.what,
            number(row.ours, row.unit),
            number(row.straightforward, row.unit),
            row.ratio,
            row.target,
            met[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    for line in [header, tuple("-" * width for width in widths), *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if row.note:
            print(f"  {row.what}: {row.note}")


if __name__ == "__main__":
    main()
