"""The `na-ssl` command.

Every module of this package holds one group of commands: a function that adds them to the parser, with their options,
and the functions that run them. The modules import the rest of the package only when a command runs, so that `--help`
and shell completion answer at once.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from . import (
    app,
    bank,
    completion,
    convert,
    corpora,
    dcase,
    demo,
    export,
    fleet,
    scoring,
    simulate,
    submission,
    train,
    watch,
)
from .command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `na-ssl` with `arguments`, by default those of this process.

    Returns:
        the exit status: 0; 1 for an error, which is told in one line; 130 after an interrupt. A wrong command line
        exits with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file's name that the console cannot show must not cost the result.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"{options.program}: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.program}: interrupted", file=sys.stderr)
        return 130


def build_parser() -> CommandParser:
    """Return the parser of all commands; parsed options have `run`, a function of them, and the command's `program`."""
    parser = CommandParser(
        prog="na-ssl",
        description="Noise-aware audio SSL for two-channel machine recordings (channel 0 close, channel 1 far).",
        epilog="example:\n  na-ssl demo --out demo_output",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (
        demo,
        scoring,
        bank,
        watch,
        app,
        fleet,
        export,
        simulate,
        convert,
        submission,
        dcase,
        corpora,
        train,
        completion,
    ):
        group.add_commands(commands)
    return parser
