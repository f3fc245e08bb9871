"""Training checkpoints that neither a kill nor a full disk can damage; the last few are kept."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator

_PREFIX = "step-"
_PARTIAL = ".partial-"
_POSITION_FILE = "position.json"


def save_checkpoint(accelerator: Accelerator, folder: Path, position: Mapping[str, Any], keep: int) -> Path:
    """Save Accelerate's state and a position as `folder/step-<step>`; all processes must call it together.

    Everything is written into another folder, which is then renamed; older checkpoints beyond `keep` are removed last.

    Args:
        position: `step`, and the settings that a resumed training must have as well; plain JSON values.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are still there.
    """
    step = position["step"]
    final, partial = folder / f"{_PREFIX}{step:08d}", folder / f"{_PARTIAL}{step:08d}"
    if accelerator.is_main_process:
        _remove_partial(folder)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            (partial / _POSITION_FILE).write_text(json.dumps(dict(position), indent=2))
    except Exception as error:  # safetensors raises an error of its own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        kept = latest_checkpoint(folder)
        raise OSError(
            f"The checkpoint of step {step} cannot be written to {folder}: {error}. "
            + (f"The last good one is {kept}." if kept else "There is none before it.")
        ) from error
    # Every process has written its part before the folder gets its name.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if final.exists():  # a training that was resumed from an older checkpoint reaches this step again
            shutil.rmtree(final)
        os.replace(partial, final)
        for old in _checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def find_checkpoint(folder: Path, resume: str | None, settings: Any, lasting: Sequence[str]) -> Path | None:
    """Find the checkpoint to resume: a path, or the latest step for "latest"; `None` means to start from scratch.

    Args:
        resume: `None` for a new training, which must not find checkpoints of another one.
        settings: a dataclass with the settings of the training that goes on.
        lasting: names of those that must have the values of the checkpoint's position. One that the position does not
            name is younger than the checkpoint, which was trained with what is now its default.

    Raises:
        OSError: `resume` is no checkpoint.
        ValueError: a value has changed, or there are checkpoints already.
    """
    latest = latest_checkpoint(folder)
    if resume is None and latest:
        raise ValueError(
            f"`resume` must be given to go on from the checkpoints in {folder}, or the folder be another; got None."
        )
    if resume is None or (resume == "latest" and latest is None):
        return None
    checkpoint = latest if resume == "latest" and latest else Path(resume)
    position = read_position(checkpoint)
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(settings)
    }
    for name in lasting:
        trained, value = position.get(name, defaults[name]), getattr(settings, name)
        if trained != value:
            raise ValueError(f"`{name}` must be {trained!r} as in {checkpoint}, got {value!r}.")
    return checkpoint


def load_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Load what `save_checkpoint` saved into the prepared and registered objects, in all processes together."""
    accelerator.wait_for_everyone()
    accelerator.load_state(str(path))
    accelerator.wait_for_everyone()


def read_position(path: Path) -> dict[str, Any]:
    """Read the `position` of a checkpoint.

    Raises:
        OSError: `path` is not a checkpoint.
    """
    file = path / _POSITION_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{path} must be a folder of save_checkpoint, but it holds no {_POSITION_FILE}.")
    return json.loads(file.read_text())


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the checkpoint of the latest step; `None` where there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in the order of their steps."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if re.fullmatch(rf"{_PREFIX}\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def _remove_partial(folder: Path) -> None:
    """Remove what a killed process has left behind."""
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path)
