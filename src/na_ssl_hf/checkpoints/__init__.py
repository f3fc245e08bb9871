"""The tiny checkpoints that ship with the package, so that everything works offline, and how checkpoints are named."""

import os
from pathlib import Path

DEFAULT_CHECKPOINT = "na-eat-tiny-distilled"
# The longest time that the hub has for its answer.
HUB_TIMEOUT_SEC = 5.0


def default_checkpoint() -> Path:
    """Return the directory of the checkpoint that commands use when none is named."""
    return Path(__file__).parent / DEFAULT_CHECKPOINT


def shipped_checkpoint(name: str) -> Path | None:
    """Return the directory of a checkpoint of the package by its name, such as `"na-beats-tiny"`, else `None`."""
    return shipped_checkpoints().get(name)


def shipped_checkpoints() -> dict[str, Path]:
    """Return the directories of all checkpoints of the package by their names."""
    return {path.name: path for path in Path(__file__).parent.iterdir() if any(path.glob("*model.safetensors"))}


def resolve_checkpoint(name_or_path: str | os.PathLike) -> str:
    """Return what `from_pretrained` and `pipeline` shall load for the name of a checkpoint.

    Args:
        name_or_path: a directory; the name of a checkpoint of the package, such as `"na-beats-tiny"`; or a name on the
            hub. A directory of the same name comes before a checkpoint of the package, as it does before one on the
            hub.

    Raises:
        FileNotFoundError: `name_or_path` is a path, yet there is no directory; or it can be a name on the hub, but is
            neither in the cache nor on the hub, which is asked once, or the hub is out of reach.
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
    if missing := _why_not_on_hub(name):
        raise FileNotFoundError(f"there is no folder {name}, and {missing}")
    return name


def _why_not_on_hub(name: str) -> str | None:
    """Say why a name cannot be loaded from the hub; `None` where it can. The hub is asked at most once, for 5 s."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return "it cannot be a name on the hub"
    for file in ("config.json", "adapter_config.json"):
        if isinstance(try_to_load_from_cache(name, file), str):
            return None
    if constants.HF_HUB_OFFLINE:
        return "it is not in the cache of the hub, which may not be asked (HF_HUB_OFFLINE)"
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SEC)
    except RepositoryNotFoundError:
        return "no repository of that name on the hub that you may read"
    except Exception as error:
        # Whatever the network throws means the same to the user.
        return f"the hub cannot be reached ({type(error).__name__})"
    return None
