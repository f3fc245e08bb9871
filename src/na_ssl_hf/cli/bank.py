"""`na-ssl bank`: the memory of a fitted scorer, changed recording by recording, and every change undone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .command_line import CommandParser, add_checkpoint_options, add_command, add_device_option, add_group
from .scoring import domains_of, load_scorer


def add_commands(commands: Any) -> None:
    """Add `na-ssl bank add | forget | rollback | history`."""
    _, group = add_group(
        commands,
        "bank",
        "change the memory of a fitted scorer, and undo changes",
        "  na-ssl bank add scorer recordings/normal_after_repair\n  na-ssl bank history scorer",
    )
    add = add_command(
        group,
        "add",
        _add,
        "remember more normal recordings, and set the threshold anew",
        "  na-ssl bank add scorer recordings/normal_after_repair --max-clips 500",
    )
    _add_scorer(add)
    add.add_argument(
        "recordings", nargs="+", type=Path, metavar="FILES_OR_DIR", help="normal recordings: sound files, or folders"
    )
    add.add_argument(
        "--max-clips",
        type=int,
        metavar="N",
        help="most recordings in the memory, of which the oldest go (default: the memory's own bound, or 1000)",
    )
    add.add_argument("--domains", metavar="folder|REGEX", help="source or target for each recording, as for na-ssl fit")
    forget = add_command(
        group, "forget", _forget, "forget recordings by their place in the memory", "  na-ssl bank forget scorer 0 1 2"
    )
    _add_scorer(forget)
    forget.add_argument("clips", nargs="+", type=int, metavar="N", help="places in the memory, 0 for the oldest")
    rollback = add_command(
        group, "rollback", _rollback, "go back to an earlier version of the memory", "  na-ssl bank rollback scorer 0"
    )
    _add_scorer(rollback)
    rollback.add_argument("version", type=int, metavar="VERSION", help="version, as na-ssl bank history lists them")
    shown = add_command(
        group, "history", _history, "list the versions of the memory that are kept", "  na-ssl bank history scorer"
    )
    shown.add_argument("scorer", type=Path, metavar="SCORER_DIR", help="directory that `na-ssl fit` wrote")


def _add_scorer(parser: CommandParser) -> None:
    parser.add_argument("scorer", type=Path, metavar="SCORER_DIR", help="directory that `na-ssl fit` wrote")
    add_checkpoint_options(parser)
    add_device_option(parser)


def _add(options: argparse.Namespace) -> None:
    from ..data.sound_files import find_sound_files
    from ..watch.living_memory import add_normal

    files = find_sound_files(options.recordings)
    domains = None if options.domains is None else domains_of(files, options.domains)
    scorer = load_scorer(str(options.scorer), options)
    _tell(scorer, add_normal(scorer, options.scorer, files, options.max_clips, domains))


def _forget(options: argparse.Namespace) -> None:
    from ..watch.living_memory import forget_clips

    scorer = load_scorer(str(options.scorer), options)
    _tell(scorer, forget_clips(scorer, options.scorer, options.clips))


def _rollback(options: argparse.Namespace) -> None:
    from ..watch.living_memory import roll_back

    scorer = load_scorer(str(options.scorer), options)
    _tell(scorer, roll_back(scorer, options.scorer, options.version))


def _tell(scorer: Any, version: Any) -> None:
    print(f"version {version.version}: {version.num_clips} recordings, threshold {scorer.threshold:.6g}")


def _history(options: argparse.Namespace) -> None:
    from ..hub.memory_bank import MEMORY_BANK_FILE, MemoryBank
    from ..watch.living_memory import history

    path = options.scorer / MEMORY_BANK_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {MEMORY_BANK_FILE} in {options.scorer}, which must be a saved scorer.")
    bank = MemoryBank.from_file(str(path))
    for version in history(bank):
        change = f", {version.added} added, {version.removed} removed" if version.added or version.removed else ""
        now = " (now)" if version.version == bank.version_ else ""
        print(f"version {version.version}: {version.num_clips} recordings{change}{now}")
