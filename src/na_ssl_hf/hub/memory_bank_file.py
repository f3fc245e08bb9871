"""The one file a fitted memory is saved in: tensors, and a JSON header with settings and calibration."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils.hub import cached_file

MEMORY_BANK_FILE = "memory_bank.safetensors"


def write_bank_file(
    directory: str | os.PathLike[str], tensors: dict[str, torch.Tensor], header: dict[str, Any]
) -> None:
    """Write `memory_bank.safetensors`; a kill while writing leaves an older file as it was.

    Raises:
        OSError: the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename is atomic only within one file system; no .safetensors suffix, so that what a
    # kill leaves behind is never taken for a checkpoint.
    temporary = directory / f".{MEMORY_BANK_FILE}.{uuid.uuid4().hex}.tmp"
    try:
        save_file(tensors, temporary, metadata={"format": "pt", "memory_bank": json.dumps(header)})
        os.replace(temporary, directory / MEMORY_BANK_FILE)
    except SafetensorError as error:
        raise OSError(f"Could not write {directory / MEMORY_BANK_FILE}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def find_bank_file(name_or_path: str | os.PathLike[str], **hub_options: Any) -> str | None:
    """Path of the file in a directory or, downloaded, of a hub repository; `None` where there is none.

    Raises:
        OSError: the directory or repository does not exist or is out of reach.
    """
    return cached_file(name_or_path, MEMORY_BANK_FILE, **hub_options, _raise_exceptions_for_missing_entries=False)


def read_bank_file(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header. Raises SafetensorError, KeyError, TypeError or ValueError where the file is another one."""
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["memory_bank"])
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a dict)
