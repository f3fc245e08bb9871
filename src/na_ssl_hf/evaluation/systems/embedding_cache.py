"""Embeddings on disk, by content: of the recording, and of all that made the embedding from it.

Letters: N files, B files of a batch, F bands, D channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from ...hub.whole_files import whole_file
from .embedders import Embedder
from .processes import Processes

_EMBEDDING = "embedding"


def cached_embeddings(
    frontend: Embedder,
    files: Sequence[Path],
    folder: str | Path,
    batch_size: int = 8,
    processes: Processes | None = None,
    progress: str | None = None,
) -> torch.Tensor:
    """Embeddings `(N, F, D)` float32 of `files`, read from `folder` where they are there, computed and kept otherwise.

    Each recording has a file of its own, `<frontend.key>/<hash of the sound file>.safetensors`, so renamed and copied
    recordings are found, and changed ones are not. Batches are always the same `batch_size` successive files: one that
    a kill interrupted is computed anew as a whole, which gives the same numbers to the last bit.

    Args:
        processes: compute batches in turn, each keeping its own in its `folder`, which may be one for all or not;
            every process gets all embeddings. `None` for this process alone.
        progress: label of the progress bar, counted in files; `None` for no bar.

    Raises:
        OSError: a sound file cannot be read, or `folder` not be written.
        ValueError: no files, or a recording that the frontend does not take.
    """
    if not files:
        raise ValueError("files must hold at least one recording, got none")
    processes = processes or Processes()
    folder = Path(folder) / frontend.key
    batches = [list(files[start : start + batch_size]) for start in range(0, len(files), batch_size)]
    own = processes.share(batches)
    embedded: list[torch.Tensor] = []
    with logging.tqdm(total=sum(map(len, own)), desc=progress, unit="clip", disable=progress is None) as bar:
        for batch in own:
            places = [folder / f"{content_hash(file)}.safetensors" for file in batch]
            known = [embedding for place in places if (embedding := _read(place)) is not None]
            if len(known) < len(batch):
                known = list(frontend.embed(batch))
                for place, embedding in zip(places, known, strict=True):
                    _write(place, embedding)
            embedded.append(torch.stack(known))  # (B, F, D)
            bar.update(len(batch))
    return torch.cat(processes.gather(embedded))  # (N, F, D)


def content_hash(file: str | Path) -> str:
    """Of the bytes of a file; FileNotFoundError when it is missing."""
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(place: Path) -> torch.Tensor | None:
    try:
        with safe_open(place, framework="pt") as file:
            return file.get_tensor(_EMBEDDING)
    except (FileNotFoundError, SafetensorError):
        # Missing, or damaged by something else than a kill: made anew.
        return None


def _write(place: Path, embedding: torch.Tensor) -> None:
    with whole_file(place) as partial:
        save_file({_EMBEDDING: embedding.contiguous()}, partial)
