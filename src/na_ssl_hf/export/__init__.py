"""Export of a fitted scorer into a graph that runs without torch, with the proof that its scores stayed.

`export_scorer` writes the folder that `na-ssl export` writes and that the package na-ssl-edge reads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporting import Exported, ProofRecordings, export_scorer

__all__ = ["Exported", "ProofRecordings", "export_scorer"]


def __getattr__(name: str) -> Any:
    # The module is imported when it is first used, because it is slow to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".exporting", __name__), name)
