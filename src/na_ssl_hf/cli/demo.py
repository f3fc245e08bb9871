"""`na-ssl demo`: the offline demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .command_line import add_command


def add_commands(commands: Any) -> None:
    """Add `na-ssl demo`."""
    parser = add_command(
        commands,
        "demo",
        _demo,
        "make a small two-channel data set, fit and score it, print the table and save a picture",
        "  na-ssl demo --out demo_output",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="output directory (default: demo_output)")
    parser.add_argument(
        "--model",
        metavar="CHECKPOINT",
        help="noise-aware checkpoint: a directory, a name on the hub or of the package "
        "(default: na-eat-tiny-distilled)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of sounds and rooms (default: 0)")


def _demo(options: argparse.Namespace) -> None:
    from ..demo import run_demo

    run_demo(options.out, model=options.model, seed=options.seed)
