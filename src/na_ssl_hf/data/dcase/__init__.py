"""The data of the DCASE challenges, Task 2: names, folders, data sets, downloads and checks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_dcase
    from .dataset import load_dcase2026
    from .download import download_dcase2026

__all__ = ["check_dcase", "download_dcase2026", "load_dcase2026"]

# The module that defines each public name; it is imported when the name is first used.
_HOMES = {
    "check_dcase": "check",
    "download_dcase2026": "download",
    "load_dcase2026": "dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
