"""`na-ssl convert`: public checkpoints for `from_pretrained`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .command_line import add_command


def add_commands(commands: Any) -> None:
    """Add `na-ssl convert`."""
    parser = add_command(
        commands,
        "convert",
        _convert,
        "turn a public checkpoint into a directory for from_pretrained; foreign code is never executed",
        "  na-ssl convert beats BEATs_iter3.pt beats\n"
        "  na-ssl convert na-beats na_beats.ckpt na-beats --base BEATs_iter3.pt",
    )
    parser.add_argument("kind", choices=("beats", "eat", "na-beats", "na-eat"), help="model of the checkpoint")
    parser.add_argument("source", type=Path, metavar="SRC", help="original file, or directory for EAT's hub layout")
    parser.add_argument("destination", type=Path, metavar="DST", help="directory of the converted checkpoint")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="CHECKPOINT",
        help="original base checkpoint, where SRC has only noise-aware layers",
    )


def _convert(options: argparse.Namespace) -> None:
    from ..convert import convert

    print(f"converted to {convert(options.kind, options.source, options.destination, base=options.base)}")
