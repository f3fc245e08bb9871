"""Models of checkpoints, which may be adapters: an adapter names the base that must be loaded first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoFeatureExtractor, AutoModel, PreTrainedModel

from . import resolve_checkpoint, shipped_checkpoint

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What transformers and peft use of these files before they check it, and the type that it must have.
SETTINGS_FILES: dict[str, dict[str, type]] = {
    "config.json": {"model_type": str, "architectures": list, "auto_map": dict, "custom_pipelines": dict},
    "preprocessor_config.json": {"feature_extractor_type": str, "auto_map": dict},
    ADAPTER_CONFIG: {"base_model_name_or_path": str, "peft_type": str, "r": int, "rank_pattern": dict},
}
# What transformers and peft raise where a file has another form than they expect.
LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(RuntimeError, MemoryError),
)
# A thousand times the size of real ones.
MAX_SETTINGS_BYTES = 1_000_000


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
    check_settings_files(source)
    base = adapter_base(source)
    if base is None or (Path(source) / "config.json").is_file():
        return _loaded(AutoModel, source, **kwargs)
    try:
        model = AutoModel.from_pretrained(base, **kwargs)
    except OSError as error:
        raise OSError(f"the base {base} of the adapter {source} cannot be loaded: {error}") from error
    try:
        model.load_adapter(source)
    except (*LOADING_ERRORS, SafetensorError) as error:
        raise OSError(f"The adapter in {source} does not fit its base {base}: {error}") from error
    return model


def load_extractor(checkpoint: str | os.PathLike[str]) -> Any:
    """Load a feature extractor as `AutoFeatureExtractor.from_pretrained` does, without running a checkpoint's code.

    Raises:
        FileNotFoundError: `checkpoint` is a path, yet there is no directory.
        OSError: a file of the checkpoint is missing or damaged.
        ValueError: a setting is wrong.
    """
    source = resolve_checkpoint(checkpoint)
    check_settings_files(source)
    return _loaded(AutoFeatureExtractor, source, trust_remote_code=False)


def _loaded(auto_class: Any, source: str, **kwargs: Any) -> Any:
    try:
        return auto_class.from_pretrained(source, **kwargs)
    except (OSError, ValueError):
        raise
    except (*LOADING_ERRORS, SafetensorError) as error:
        raise OSError(f"{source} cannot be loaded ({type(error).__name__}: {error})") from error


def check_settings_files(folder: str | os.PathLike[str]) -> None:
    """Check the JSON files of a checkpoint's folder, which may be those of somebody else.

    Each is at most `MAX_SETTINGS_BYTES` long and an object, whose values have the types of `SETTINGS_FILES`; the rank
    of an adapter is that of its weights. What else the files hold is checked where it is used. Anything but a folder
    is left to the hub.

    Raises:
        OSError: A file is none of this; the error names it.
    """
    for name, types in SETTINGS_FILES.items():
        file = Path(folder) / name
        if not file.is_file():
            continue
        if (size := file.stat().st_size) > MAX_SETTINGS_BYTES:
            raise OSError(f"{file} must have at most {MAX_SETTINGS_BYTES} bytes, got {size}.")
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise OSError(f"{file} must hold JSON, got an error: {error}.") from error
        if not isinstance(settings, dict):
            raise OSError(f"{file} must hold a JSON object, got {settings!r:.60}.")
        for key, kind in types.items():
            value = settings.get(key)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
                raise OSError(f"`{key}` in {file} must be of type {kind.__name__}, got {value!r:.60}.")
        if name == ADAPTER_CONFIG:
            _check_rank(file, settings)


def _check_rank(file: Path, settings: dict[str, Any]) -> None:
    """Check the ranks of an adapter, which decide how much memory it takes, against its weights."""
    weights = file.parent / ADAPTER_WEIGHTS
    if not weights.is_file():
        return
    try:
        with safe_open(weights, framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys() if ".lora_A" in name]  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(f"{weights} cannot be read: {error}.") from error
    largest = max((shape[0] for shape in shapes if shape), default=None)
    for rank in (settings.get("r"), *(settings.get("rank_pattern") or {}).values()):
        if largest is not None and rank is not None and not (isinstance(rank, int) and 1 <= rank <= largest):
            raise OSError(f"The ranks in {file} must be those of {weights.name}, at most {largest}, got {rank!r:.60}.")


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
    check_settings_files(folder)
    base = json.loads(config_file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{config_file} must have a base_model_name_or_path, got {base!r}")
    for path in (Path(base), Path(folder) / base, shipped_checkpoint(base)):
        if path and path.is_dir():
            return str(path)
    return base
