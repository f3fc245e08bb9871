"""What the groups of commands share: the parser, how a command is added, and options that several commands have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

# The choices are repeated here, because the module that defines them takes seconds to import.
BACKENDS = ("nearest", "two-domains", "mahalanobis", "pca")


# Repeated from hub.input_level, whose import takes seconds.
LEVELS = ("as recorded", "normalised")


class CommandParser(argparse.ArgumentParser):
    """A parser in which a group of commands may have a default one.

    Attributes:
        default_command: for a group, the function that chooses the command when the command line names none, from the
            arguments behind the name of the group.
        instead_of_positionals: the option with which the positional arguments may be left out. Without it they are
            required, because argparse takes optional ones only where they stand side by side.
    """

    default_command: Callable[[Sequence[str]], str] | None = None
    instead_of_positionals: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        names_no_command = not args or (args[0].startswith("-") and args[0] not in ("-h", "--help"))
        if self.default_command is not None and names_no_command:
            args.insert(0, self.default_command(args))
        if (option := self.instead_of_positionals) is not None:
            is_given = any(word == option or word.startswith(f"{option}=") for word in args)
            for action in self._get_positional_actions():
                action.nargs, action.required = ("?", False) if is_given else (None, True)
        return super().parse_known_args(args, namespace)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str, example: str
) -> CommandParser:
    """Add a command and return its parser.

    Args:
        commands: the `add_subparsers` of `na-ssl` or of one of its groups.
        name: the word that calls the command.
        run: the function of the parsed options that runs the command; it returns the exit status, `None` for 0.
        summary: what the command does.
        example: one or more command lines, indented by two spaces.
    """
    parser = _add_parser(commands, name, summary, example)
    parser.set_defaults(run=run, program=parser.prog)
    return parser


def add_group(
    commands: Any, name: str, summary: str, example: str, parser_class: type[CommandParser] = CommandParser
) -> tuple[CommandParser, Any]:
    """Add a group of commands, whose parsers are of `parser_class`.

    Returns:
        the parser of the group, and what `add_command` takes as `commands`.
    """
    parser = _add_parser(commands, name, summary, example)
    group = parser.add_subparsers(dest=f"{name}_command", required=True, metavar="COMMAND", parser_class=parser_class)
    return parser, group


def _add_parser(commands: Any, name: str, summary: str, example: str) -> CommandParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_far_cancellation_option(parser: CommandParser) -> None:
    """Add `--far-cancellation [METHOD]`, with the methods that are calibrated on normal recordings."""
    parser.add_argument(
        "--far-cancellation",
        nargs="?",
        const="least_squares",
        choices=("none", "least_squares", "spectral_subtraction", "installation", "filter", "auto"),
        help="method that removes from the close channel what the far one hears, before everything else; installation, "
        "filter and auto are calibrated on the normal recordings "
        "(without a method: least_squares; without the option: as the checkpoint says)",
    )


def add_level_option(parser: CommandParser) -> None:
    """Add `--level LEVEL`."""
    parser.add_argument(
        "--level",
        choices=LEVELS,
        default="as recorded",
        help="level of the recordings; normalised, a gain of the microphones has no influence (default: as recorded)",
    )


def add_backend_options(parser: CommandParser) -> None:
    """Add `--backend NAME[,NAME...]` and `--backend-fusion RULE`."""
    parser.add_argument(
        "--backend",
        type=_backends,
        default=("nearest",),
        metavar="NAME[,NAME...]",
        help=f"score of a band: {', '.join(BACKENDS)}, or several of them (default: nearest)",
    )
    parser.add_argument(
        "--backend-fusion",
        choices=("minimum", "mean"),
        default="minimum",
        help="rule by which several backends, each in units of its normal scores, become one (default: minimum)",
    )


def _backends(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if not set(names) <= set(BACKENDS) or len(set(names)) < len(names):
        known = ", ".join(BACKENDS)
        raise argparse.ArgumentTypeError(f"must be one or several different ones of {known}, got {text!r}")
    return tuple(name.replace("-", "_") for name in names)


def add_checkpoint_options(parser: CommandParser) -> None:
    """Add `--resample` and `--trust-remote-code`."""
    parser.add_argument(
        "--resample", action="store_true", help="resampling of recordings whose rate is not the checkpoint's"
    )
    add_trust_option(parser)


def add_trust_option(parser: CommandParser) -> None:
    """Add `--trust-remote-code`."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="permission to run the code that a checkpoint brings along; no code of a checkpoint runs without it",
    )


def add_inference_options(parser: CommandParser, device: str | None = None) -> None:
    """Add `--batch-size` and `--device`, by default the best device there is or the one given."""
    parser.add_argument(
        "--batch-size", type=int, default=8, help="number of recordings that the model takes at a time (default: 8)"
    )
    add_device_option(parser, device)


def add_device_option(parser: CommandParser, device: str | None = None) -> None:
    """Add `--device`, by default the best there is or the one given."""
    parser.add_argument(
        "--device",
        default=device,
        help=f"device of the model: cpu, cuda, cuda:1, mps, ... (default: {device or 'the best there is'})",
    )
