"""The tiny checkpoints that ship with the package, so that everything works offline, and how checkpoints are named."""

import os
from pathlib import Path

DEFAULT_CHECKPOINT = "na-beats-tiny"


def default_checkpoint() -> Path:
    """Return the directory of the checkpoint that commands use when none is named."""
    return Path(__file__).parent / DEFAULT_CHECKPOINT


def shipped_checkpoint(name: str) -> Path | None:
    """Return the directory of a checkpoint of the package by its name, such as `"na-beats-tiny"`, else `None`."""
    names = {path.name: path for path in Path(__file__).parent.iterdir() if any(path.glob("*model.safetensors"))}
    return names.get(name)


def resolve_checkpoint(name_or_path: str | os.PathLike) -> str:
    """Return what `from_pretrained` and `pipeline` shall load for the name of a checkpoint.

    Args:
        name_or_path: a directory; the name of a checkpoint of the package, such as `"na-beats-tiny"`; or a name on the
            hub. A directory of the same name comes before a checkpoint of the package, as it does before one on the
            hub.

    Raises:
        FileNotFoundError: `name_or_path` is a path, yet there is no directory. A name on the hub is not looked up.
    """
    name = os.fspath(name_or_path)
    path = Path(name)
    if name and path.is_dir():
        return name
    if shipped := shipped_checkpoint(name):
        return str(shipped)
    is_path = path.exists() or path.is_absolute() or name.startswith(".") or name.count("/") > 1
    if is_path or not name:
        raise FileNotFoundError(
            f"no checkpoint directory {name}: a checkpoint must be a directory, a name on the hub or one of the package"
        )
    return name
