"""The scorers of many machines in one process: each encoder once, the memories as they are needed."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..checkpoints.scorers import load_scorer
from ..hub.far_microphone import FAR_MICROPHONE_FILE, FarMicrophone
from ..hub.memory_bank import MEMORY_BANK_FILE, MemoryBank
from ..hub.pipeline_anomaly_scoring import AnomalyScorer

# So many encoders, and exported graphs, a process holds at a time.
NUM_ENCODERS = 4
# What tells that a folder was exported.
EXPORTED_FILE = "scorer.json"
# Files that decide what an encoder does; the two of a machine's own are not among them.
ENCODER_SUFFIXES = (".json", ".safetensors", ".py")

Held = TypeVar("Held")


class LeastRecentlyUsed(Generic[Held]):
    """Holds at most `most` things, and lets go of the one that was not used for the longest time."""

    def __init__(self, most: int):
        self._most = most
        self._held: OrderedDict[str, Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: str, make: Callable[[], Held]) -> Held:
        """Return what is held under a key, or make it; what `make` raises is not remembered."""
        if key not in self._held:
            # Room is made first, so that there is never one more in memory.
            while len(self._held) >= self._most:
                self._held.popitem(last=False)
            self._held[key] = make()
        self._held.move_to_end(key)
        return self._held[key]


class FleetScorers:
    """The scorers of folders, of which those with the same encoder share it.

    Two folders have the same encoder where their settings, weights and code are equal byte by byte. Weights that are
    one file under several names, as `na-ssl fleet fit` leaves them, are read once.

    Args:
        num_memories: memories that are held at a time.
        device, resample, trust_remote_code: as for `load_scorer`.
    """

    def __init__(
        self, num_memories: int = 64, device: str | None = None, resample: bool = False, trust_remote_code: bool = False
    ):
        self._options: dict[str, Any] = {
            "device": device,
            "resample": resample,
            "trust_remote_code": trust_remote_code,
        }
        self._encoders: LeastRecentlyUsed[AnomalyScorer] = LeastRecentlyUsed(NUM_ENCODERS)
        self._exported: LeastRecentlyUsed[Any] = LeastRecentlyUsed(NUM_ENCODERS)
        self._memories: LeastRecentlyUsed[AnomalyScorer] = LeastRecentlyUsed(num_memories)
        self._digests: LeastRecentlyUsed[bytes] = LeastRecentlyUsed(1024)

    @property
    def num_encoders(self) -> int:
        """The number of encoders in memory."""
        return len(self._encoders) + len(self._exported)

    def score(self, folder: str, files: Sequence[str], batch_size: int, windows: dict[str, Any]) -> list[Any]:
        """Score recordings by the scorer of a folder.

        Args:
            folder: what `na-ssl fit` or `na-ssl export` wrote.
            files: the recordings.
            batch_size: as for the scorer; an exported graph takes one at a time.
            windows: `window`, `hop` and `aggregate` of the scorer.

        Returns:
            what the scorer says of each, `{"error": ...}` included.

        Raises:
            ValueError: the scorer has no memory, or one of another model; or a setting does not fit it.
            OSError: a file of the scorer is missing or damaged.
        """
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"there is no folder {folder} of a scorer")
        if os.path.isfile(os.path.join(folder, EXPORTED_FILE)):
            exported = self._exported.get(folder, lambda: self._load_exported(folder))
            return exported(list(files), errors="return", **windows)
        scorer = self._memories.get(folder, lambda: self._load(Path(folder)))
        return list(scorer(list(files), batch_size=batch_size, errors="return", **windows))

    def _load(self, folder: Path) -> AnomalyScorer:
        memory_file, far_file = folder / MEMORY_BANK_FILE, folder / FAR_MICROPHONE_FILE
        if not memory_file.is_file():
            raise ValueError(f"{folder} has no memory of normal recordings ({MEMORY_BANK_FILE}): fit it first")
        encoder = self._encoders.get(self._fingerprint(folder), lambda: load_scorer(str(folder), **self._options))
        far_microphone = FarMicrophone.from_file(far_file) if far_file.is_file() else None
        scorer = encoder.sharing_model(MemoryBank.from_file(memory_file), far_microphone)
        try:
            _ = scorer.threshold  # checks that the memory belongs to the model
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        return scorer

    def _load_exported(self, folder: str) -> Any:
        try:
            from na_ssl_edge import Scorer
        except ImportError as error:
            raise ValueError(
                f"{folder} is an exported scorer, which needs na-ssl-edge: pip install ./packages/na-ssl-edge"
            ) from error
        return Scorer(folder, num_threads=1, resample=self._options["resample"] or None)

    def _fingerprint(self, folder: Path) -> str:
        """A hash of all files that decide what the encoder does."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(folder.iterdir()):
            own = file.name in (MEMORY_BANK_FILE, FAR_MICROPHONE_FILE)
            if file.suffix in ENCODER_SUFFIXES and not own and file.is_file():
                found = file.stat()
                key = f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
                digest.update(os.fsencode(file.name) + self._digests.get(key, partial(_digest, file)))
        return digest.hexdigest()


def _digest(file: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.digest()
