"""Models of checkpoints, which may be adapters: an adapter names the base that must be loaded first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedModel

from . import resolve_checkpoint, shipped_checkpoint

ADAPTER_CONFIG = "adapter_config.json"


def load_model(checkpoint: str | os.PathLike[str], **kwargs: Any) -> PreTrainedModel:
    """Load a model as `AutoModel.from_pretrained` does, with the base of an adapter found as `adapter_base` says.

    No code that the checkpoint brings along runs, unless `trust_remote_code=True` is given.

    Args:
        checkpoint: a directory, the name of a checkpoint of the package, or a name on the hub.
        **kwargs: arguments of `AutoModel.from_pretrained`, such as `dtype`.

    Raises:
        FileNotFoundError: `checkpoint` is a path, yet there is no directory.
        OSError: the base of an adapter is not found; else as `AutoModel.from_pretrained`.
        ValueError: the configuration of an adapter names no base.
    """
    # Without an answer, transformers would ask on the terminal whether to run a checkpoint's code.
    kwargs = {"trust_remote_code": False, **kwargs}
    source = resolve_checkpoint(checkpoint)
    base = adapter_base(source)
    if base is None or (Path(source) / "config.json").is_file():
        return AutoModel.from_pretrained(source, **kwargs)
    try:
        model = AutoModel.from_pretrained(base, **kwargs)
    except OSError as error:
        raise OSError(f"the base {base} of the adapter {source} cannot be loaded: {error}") from error
    model.load_adapter(source)
    return model


def adapter_base(folder: str | os.PathLike[str]) -> str | None:
    """Return the checkpoint that the adapter in `folder` was trained on; `None` where there is no adapter.

    A relative path is also looked for beside the adapter, so that the two folders may move together. What is no
    directory may be the name of a checkpoint of the package, and is a name on the hub otherwise.

    Raises:
        ValueError: the configuration of the adapter names no base.
    """
    config_file = Path(folder) / ADAPTER_CONFIG
    if not config_file.is_file():
        return None
    base = json.loads(config_file.read_text()).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{config_file} must have a base_model_name_or_path, got {base!r}")
    for path in (Path(base), Path(folder) / base, shipped_checkpoint(base)):
        if path and path.is_dir():
            return str(path)
    return base
