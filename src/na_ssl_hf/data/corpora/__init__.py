"""Sound corpora for training: their layouts, downloads, preparation and manifests."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .download import download_corpus
    from .manifest import SoundFile, read_crop, read_manifest, write_manifest
    from .prepare import prepare_corpus

__all__ = ["SoundFile", "download_corpus", "prepare_corpus", "read_crop", "read_manifest", "write_manifest"]

# The module that defines each public name; it is imported when the name is first used.
_HOMES = {
    "SoundFile": "manifest",
    "download_corpus": "download",
    "prepare_corpus": "prepare",
    "read_crop": "manifest",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
