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
        "  na-ssl convert efficientat mn04_as_mAP_432.pt mn04\n"
        "  na-ssl convert na-beats na_beats.ckpt na-beats --base BEATs_iter3.pt",
    )
    parser.add_argument(
        "kind",
        choices=("beats", "dasheng", "eat", "efficientat", "na-beats", "na-dasheng", "na-eat"),
        help="model of the checkpoint; eat also for SSLAM",
    )
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="original file, or directory for the hub layout of Dasheng and EAT"
    )
    parser.add_argument("destination", type=Path, metavar="DST", help="directory of the converted checkpoint")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="CHECKPOINT",
        help="original base checkpoint, where SRC has only noise-aware layers",
    )
    # The name of EfficientAT's files says what their weights do not; a renamed file needs these.
    parser.add_argument("--hop", type=float, metavar="MS", help="time from frame to frame of an efficientat file")
    parser.add_argument("--mels", type=int, metavar="N", help="number of mel bins of an efficientat file")
    parser.add_argument("--strides", metavar="DIGITS", help="four strides of an efficientat file, such as 2221")


def _convert(options: argparse.Namespace) -> None:
    from ..convert import convert

    hints = {"hop": options.hop, "mels": options.mels, "strides": options.strides}
    destination = convert(options.kind, options.source, options.destination, base=options.base, **hints)
    print(f"converted to {destination}")
