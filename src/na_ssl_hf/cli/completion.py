"""`na-ssl completion`: a static script for the shell, so that completion never starts Python."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from .command_line import CommandParser, add_command

# The function follows the words of the command line as long as they name commands, and offers what comes next. File
# names are offered by the shell itself, because of `-o default`.
_SCRIPT = """\
_na_ssl() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} path=na-ssl word words
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$path $word" in
            {commands}) path="$path $word" ;;
        esac
    done
    case "$path" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _na_ssl na-ssl"""


def add_commands(commands: Any) -> None:
    """Add `na-ssl completion`."""
    parser = add_command(
        commands,
        "completion",
        _completion,
        "print the script that completes commands and options in the shell",
        '  eval "$(na-ssl completion bash)"',
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="shell that reads the script")


def _completion(options: argparse.Namespace) -> None:
    from . import build_parser

    words = dict(_words(build_parser()))
    cases = "\n".join(f'        "{path}") words="{" ".join(each)}" ;;' for path, each in words.items())
    if options.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_SCRIPT.format(commands="|".join(f'"{path}"' for path in words if " " in path), cases=cases))


def _words(parser: CommandParser) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of every command with the commands and options that may follow it."""
    words: list[str] = []
    for action in parser._actions:
        words += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action, argparse._SubParsersAction):
            words += action.choices
            for command in action.choices.values():
                yield from _words(command)
    yield parser.prog, words
