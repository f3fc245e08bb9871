"""Tiny checkpoints that ship with the package, so that everything works offline."""

from pathlib import Path

DEFAULT_CHECKPOINT = "na-beats-tiny"


def default_checkpoint() -> Path:
    """Directory of the checkpoint that commands use when none is named."""
    return Path(__file__).parent / DEFAULT_CHECKPOINT
