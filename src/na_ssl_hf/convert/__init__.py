"""Conversion of public checkpoints of other projects into directories for `from_pretrained`.

`convert_beats`, `convert_dasheng`, `convert_eat`, `convert_efficientat`, `convert_na_beats`, `convert_na_dasheng` and
`convert_na_eat` read one kind of checkpoint each; `convert` picks one of them by name. `load_foreign_checkpoint` reads
the files without executing anything that they ask for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .beats import convert_beats
    from .by_kind import convert
    from .dasheng import convert_dasheng
    from .eat import convert_eat
    from .efficientat import convert_efficientat
    from .foreign_pickle import load_foreign_checkpoint
    from .noise_aware import convert_na_beats, convert_na_dasheng, convert_na_eat

# Converters are imported when they are first used, because the models that they need are slow to import.
_MODULE_OF = {
    "convert": "by_kind",
    "convert_beats": "beats",
    "convert_dasheng": "dasheng",
    "convert_eat": "eat",
    "convert_efficientat": "efficientat",
    "convert_na_beats": "noise_aware",
    "convert_na_dasheng": "noise_aware",
    "convert_na_eat": "noise_aware",
    "load_foreign_checkpoint": "foreign_pickle",
}

__all__ = [
    "convert",
    "convert_beats",
    "convert_dasheng",
    "convert_eat",
    "convert_efficientat",
    "convert_na_beats",
    "convert_na_dasheng",
    "convert_na_eat",
    "load_foreign_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
