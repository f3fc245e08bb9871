"""`na-ssl train`: the training scripts of `examples/`, which the wheel brings along.

The scripts stay readable loops that are also started by themselves or copied and changed. Here they only get a name;
all arguments are the script's own.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .command_line import CommandParser, add_command, add_group

SCRIPTS = {
    "distil": (
        "train_na_distillation",
        "turn BEATs, EAT or Dasheng into a noise-aware model by distillation on simulated mixtures",
        "--base BASE --targets targets.jsonl --noises noises.jsonl --rooms rooms.safetensors "
        "--validation-rooms val.safetensors --output-dir OUT",
    ),
    "finetune": (
        "finetune_discriminative",
        "fine-tune an encoder to tell the normal training clips of a data set apart (a Dis frontend)",
        "--base na-beats-tiny --data DCASE_FOLDER --output-dir OUT --epochs 3",
    ),
    "pretrain": (
        "pretrain_tiny_base",
        "train a tiny BEATs or EAT, as the base of a tiny noise-aware model",
        "--model-type beats --targets targets.jsonl --output-dir OUT",
    ),
}


class ScriptParser(CommandParser):
    """A parser that leaves all arguments, `--help` too, to the script."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, _ = super().parse_known_args([], namespace)
        namespace.arguments = list(args)
        return namespace, []


def add_commands(commands: Any) -> None:
    """Add `na-ssl train` with its commands `distil`, `finetune` and `pretrain`."""
    examples = [f"  na-ssl train {name} {arguments}" for name, (_, _, arguments) in SCRIPTS.items()]
    _, scripts = add_group(
        commands,
        "train",
        "train on sounds or recordings of your own; `accelerate launch -m na_ssl_hf.cli train` uses several devices",
        "\n".join(examples),
        ScriptParser,
    )
    for name, (script, summary, arguments) in SCRIPTS.items():
        example = f"  na-ssl train {name} {arguments}"
        add_command(scripts, name, _train, summary, example).set_defaults(script=script, example=example)


def _train(options: argparse.Namespace) -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise OSError("training must have the package accelerate, which is missing: pip install 'na-ssl-hf[train]'")
    path = script_path(options.script)
    if {"-h", "--help"} & set(options.arguments):
        print(f"{ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))}\n\nexample:\n{options.example}\n")
    module = _load_script(path)
    arguments = sys.argv
    # The script reads its arguments here, and names itself by the first of them.
    sys.argv = [options.program, *options.arguments]
    try:
        module.main()
    finally:
        sys.argv = arguments


def script_path(name: str) -> Path:
    """Return the path of a training script: in the installed package, or in the `examples/` of a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "training_scripts", package.parents[1] / "examples"):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    raise FileNotFoundError(f"no training script {name}.py in {package / 'training_scripts'}")


def _load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of their fields
    spec.loader.exec_module(module)
    return module
