"""Sound files are known by their content, so that renamed and copied ones are found in a cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


class ContentHashes:
    """The hashes of the files of one run: every file is read once, however many systems and seeds ask for its hash.

    A file whose size or time of change differs from before is read again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, file: str | Path) -> str:
        """Return the hash of the bytes of a file; FileNotFoundError when it is missing."""
        status = os.stat(file)
        key = (os.path.abspath(file), status.st_size, status.st_mtime_ns)
        if key not in self._known:
            self._known[key] = content_hash(file)
        return self._known[key]


def content_hash(file: str | Path) -> str:
    """Compute the hash of the bytes of a file; FileNotFoundError when it is missing."""
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
