"""Embeddings are kept on disk, by the content of the recording and by everything else that decides them.

Letters: N files, B files of a batch, F bands, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from ...hub.whole_files import whole_file
from .content_hashes import ContentHashes
from .embedders import Embedder
from .processes import Processes

_EMBEDDING = "embedding"


def cached_embeddings(
    embedder: Embedder,
    files: Sequence[Path],
    folder: str | Path,
    batch_size: int = 8,
    processes: Processes | None = None,
    progress: str | None = None,
    hashes: ContentHashes | None = None,
) -> torch.Tensor:
    """Read the embeddings of files from `folder` where they are there; compute and keep them otherwise.

    Each recording has a file of its own, `<embedder.key>/<hash of the sound file>.safetensors`, so renamed and copied
    recordings are found, and changed ones are not. A batch always consists of the same `batch_size` successive files:
    when a kill interrupted one, all of it is computed again, which gives the same numbers to the last bit.

    Args:
        embedder: what turns recordings into embeddings.
        files: N sound files.
        folder: the cache, made where it is missing.
        batch_size: number of files that are embedded together.
        processes: those that share the batches; each keeps its own in its `folder`, which may be one for all or not,
            and every process gets all embeddings. `None` for this process alone.
        progress: label of the progress bar, which counts files; `None` for no bar.
        hashes: the hashes of the run, which other embedders have asked for already; `None` reads all files.

    Returns:
        `(N, F, D)` float32, in the order of `files`.

    Raises:
        OSError: a sound file cannot be read, or `folder` cannot be written.
        ValueError: there are no files, or the embedder does not take one of the recordings.
    """
    if not files:
        raise ValueError("files must hold at least one recording, got none")
    processes = processes or Processes()
    hashes = hashes or ContentHashes()
    folder = Path(folder) / embedder.key
    batches = [list(files[start : start + batch_size]) for start in range(0, len(files), batch_size)]
    own = processes.share(batches)
    embedded: list[torch.Tensor] = []
    with logging.tqdm(total=sum(map(len, own)), desc=progress, unit="clip", disable=progress is None) as bar:
        for batch in own:
            places = [folder / f"{hashes.of(file)}.safetensors" for file in batch]
            known = [embedding for place in places if (embedding := _read(place)) is not None]
            if len(known) < len(batch):
                known = list(embedder.embed(batch))
                for place, embedding in zip(places, known, strict=True):
                    _write(place, embedding)
            embedded.append(torch.stack(known))  # (B, F, D)
            bar.update(len(batch))
    return torch.cat(processes.gather(embedded))  # (N, F, D)


def _read(place: Path) -> torch.Tensor | None:
    try:
        with safe_open(place, framework="pt") as file:
            return file.get_tensor(_EMBEDDING)
    except (FileNotFoundError, SafetensorError):
        # A file may also be damaged, by something else than a kill; it is then written again.
        return None


def _write(place: Path, embedding: torch.Tensor) -> None:
    with whole_file(place) as partial:
        save_file({_EMBEDDING: embedding.contiguous()}, partial)
