"""What a memory of recordings accepts: finite embeddings, and a domain for each clip."""

from collections.abc import Sequence

import numpy as np
import torch

# Below this norm a vector has no direction: it becomes zero and has cosine 0 with everything, itself included.
SMALLEST_NORM = 1e-12
# Rows that are prepared at a time, to keep the temporaries small.
CHUNK_ROWS = 512


def as_embeddings(embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A detached tensor `(N, F, D)` of any real dtype and device, finite in float32.

    Raises:
        ValueError: wrong rank, an empty axis, complex, bool or not numbers, NaN/inf.
    """
    if not isinstance(embeddings, torch.Tensor):
        array = np.asarray(embeddings)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"embeddings must hold real numbers, got dtype {array.dtype}.")
        # torch warns about read-only arrays (memory-mapped files, say), which are only read here.
        embeddings = torch.from_numpy(array if array.flags.writeable else array.copy())
    embeddings = embeddings.detach()
    if embeddings.is_complex() or embeddings.dtype == torch.bool:
        raise ValueError(f"embeddings must hold real numbers, got dtype {embeddings.dtype}.")
    if embeddings.ndim != 3 or 0 in embeddings.shape:
        raise ValueError(f"embeddings must have shape (N, F, D) without empty axes, got {tuple(embeddings.shape)}.")
    # NaN propagates through aminmax, and unlike isfinite it needs no mask as large as the embeddings.
    smallest, largest = (float(bound) for bound in torch.aminmax(embeddings))
    limit = torch.finfo(torch.float32).max
    if not -limit <= smallest <= largest <= limit:
        clip = next(i for i, row in enumerate(embeddings) if not row.float().isfinite().all())
        raise ValueError(f"embeddings must be finite in float32, got NaN or infinite values in clip {clip}.")
    return embeddings


def as_is_target(domains: Sequence[str] | np.ndarray | None, num_clips: int) -> torch.Tensor | None:
    """`"source"` or `"target"` for each clip -> `(num_clips,)` bool, True for target; `None` stays `None`.

    Raises:
        ValueError: another number of entries, or another domain.
    """
    if domains is None:
        return None
    if isinstance(domains, str) or len(domains) != num_clips:
        got = repr(domains) if isinstance(domains, str) else f"{len(domains)} entries"
        raise ValueError(f"domains must have one entry for each of the {num_clips} clips, got {got}.")
    for clip, domain in enumerate(domains):
        if domain not in ("source", "target"):
            raise ValueError(f"domains must hold 'source' or 'target', got {domain!r} for clip {clip}.")
    return torch.tensor([domain == "target" for domain in domains])


def prepare_(rows: torch.Tensor, normalize: bool, wants_unit_norm: bool) -> torch.Tensor:
    """Normalise float32 `rows` of shape (M, D) in place, if asked, and return their squared norms (M,).

    Raises:
        ValueError: rows that have neither unit norm nor no direction, with `wants_unit_norm` and without `normalize`.
    """
    squared_norms = []
    for part in rows.split(CHUNK_ROWS):
        # In float64, because squares of very small or large float32 numbers leave float32's range.
        norms = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)
        has_direction = norms > SMALLEST_NORM
        if normalize:
            part.div_(norms[:, None]).masked_fill_(~has_direction[:, None], 0.0)
            squared_norms.append(has_direction.float())
            continue
        if wants_unit_norm and ((norms - 1.0).abs() > 1e-2)[has_direction].any():
            worst = float(norms[(norms - 1.0).abs().argmax()])
            raise ValueError(
                "normalize=False with distance='cosine' wants embeddings of unit norm in every band, "
                f"got a vector of norm {worst:.6g}."
            )
        squared_norms.append(norms.square().float())
    return torch.cat(squared_norms)
