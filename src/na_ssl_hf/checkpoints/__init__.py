"""Tiny checkpoints that ship with the package, so that everything works offline."""

from pathlib import Path

DEFAULT_CHECKPOINT = "na-beats-tiny"


def default_checkpoint() -> Path:
    """Directory of the checkpoint that commands use when none is named."""
    return Path(__file__).parent / DEFAULT_CHECKPOINT


def shipped_checkpoint(name: str) -> Path | None:
    """Directory of a checkpoint of the package by its name, such as `"na-beats-tiny"`; `None` for other names."""
    names = {path.name: path for path in Path(__file__).parent.iterdir() if any(path.glob("*model.safetensors"))}
    return names.get(name)
