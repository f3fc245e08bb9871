"""This module checks the embeddings and the domains of clips, and brings them into the form that a memory holds.

Letters: N clips, F frequency bands, D channels, M rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Vectors of a smaller norm have no direction. They become zero, and have cosine 0 with everything, even themselves.
SMALLEST_NORM = 1e-12
# How far the norm of a vector may be from 1 where unit norm is needed.
NORM_TOLERANCE = 1e-2
# Rows are prepared in chunks of this size, to keep the temporaries small.
CHUNK_ROWS = 512


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips as a memory holds them.

    Attributes:
        vectors: `(F, N, D)` float32.
        squared_norms: `(F, N)` float32.
        is_target: `(N,)` bool, True for the target domain; `None` for a memory that does not use domains.
    """

    vectors: torch.Tensor
    squared_norms: torch.Tensor
    is_target: torch.Tensor | None

    def __len__(self) -> int:
        return self.vectors.shape[1]

    @property
    def num_target(self) -> int:
        """The number of clips of the target domain; 0 if domains are not used."""
        return 0 if self.is_target is None else int(self.is_target.sum())

    def __getitem__(self, chosen: torch.Tensor | slice) -> "Clips":
        """Return the clips at the chosen positions, given as a bool mask, as positions, or as a slice."""
        if isinstance(chosen, torch.Tensor):
            chosen = chosen.to(self.vectors.device)
        is_target = None if self.is_target is None else self.is_target[chosen]
        return Clips(self.vectors[:, chosen], self.squared_norms[:, chosen], is_target)

    def followed_by(self, others: "Clips") -> "Clips":
        """Return these clips and then the others, on the device of these."""
        device = self.vectors.device
        is_target = None
        if self.is_target is not None and others.is_target is not None:
            is_target = torch.cat([self.is_target, others.is_target.to(device)])
        return Clips(
            torch.cat([self.vectors, others.vectors.to(device)], dim=1),
            torch.cat([self.squared_norms, others.squared_norms.to(device)], dim=1),
            is_target,
        )


def prepared_clips(
    embeddings: torch.Tensor, is_target: torch.Tensor | None, normalize: bool, wants_unit_norm: bool
) -> Clips:
    """Copy checked embeddings `(N, F, D)` into the form that the memory holds, on their device.

    Raises:
        ValueError: See `prepare_`.
    """
    num_clips, num_bands, dim = embeddings.shape
    vectors = torch.empty(num_bands, num_clips, dim, device=embeddings.device)
    squared_norms = torch.empty(num_bands, num_clips, device=embeddings.device)
    for band in range(num_bands):
        squared_norms[band] = prepare_(vectors[band].copy_(embeddings[:, band]), normalize, wants_unit_norm)
    return Clips(vectors, squared_norms, None if is_target is None else is_target.to(embeddings.device))


def as_embeddings(embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return embeddings as a detached tensor `(N, F, D)` of their dtype and device, finite in float32.

    Raises:
        ValueError: They have another rank, an empty axis, NaN or infinite values, or are not real numbers.
    """
    if not isinstance(embeddings, torch.Tensor):
        array = np.asarray(embeddings)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"`embeddings` must hold real numbers, got dtype {array.dtype}.")
        # torch warns about read-only arrays (such as memory-mapped files), although they are only read here.
        embeddings = torch.from_numpy(array if array.flags.writeable else array.copy())
    embeddings = embeddings.detach()
    if embeddings.is_complex() or embeddings.dtype == torch.bool:
        raise ValueError(f"`embeddings` must hold real numbers, got dtype {embeddings.dtype}.")
    if embeddings.ndim != 3 or 0 in embeddings.shape:
        raise ValueError(f"`embeddings` must have shape (N, F, D) without empty axes, got {tuple(embeddings.shape)}.")
    # NaN propagates through aminmax, and unlike isfinite it needs no mask as large as the embeddings.
    smallest, largest = (float(bound) for bound in torch.aminmax(embeddings))
    limit = torch.finfo(torch.float32).max
    if not -limit <= smallest <= largest <= limit:
        clip = next(i for i, row in enumerate(embeddings) if not row.float().isfinite().all())
        raise ValueError(f"`embeddings` must be finite in float32, got NaN or infinite values in clip {clip}.")
    return embeddings


def as_is_target(domains: Sequence[str] | np.ndarray | None, num_clips: int) -> torch.Tensor | None:
    """Turn `"source"` or `"target"` for each clip into `(num_clips,)` bool, True for target; keep `None`.

    Raises:
        ValueError: There is another number of entries, or another domain.
    """
    if domains is None:
        return None
    is_list = hasattr(domains, "__len__") and not isinstance(domains, str)
    if not is_list or len(domains) != num_clips:
        got = f"{len(domains)} entries" if is_list else repr(domains)
        raise ValueError(f"`domains` must have one entry for each of the {num_clips} clips, got {got}.")
    for clip, domain in enumerate(domains):
        if domain not in ("source", "target"):
            raise ValueError(f"`domains` must hold 'source' or 'target', got {domain!r} for clip {clip}.")
    return torch.tensor([domain == "target" for domain in domains])


def prepare_(rows: torch.Tensor, normalize: bool, wants_unit_norm: bool) -> torch.Tensor:
    """Normalise float32 `rows` `(M, D)` in place, if asked, and return their squared norms `(M,)`.

    Raises:
        ValueError: With `wants_unit_norm` and without `normalize`, a row has neither unit norm nor the norm 0.
    """
    squared_norms = []
    for part in rows.split(CHUNK_ROWS):
        # The squares of very small or large float32 numbers leave the range of float32.
        norms = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)
        has_direction = norms > SMALLEST_NORM
        if normalize:
            part.div_(norms[:, None]).masked_fill_(~has_direction[:, None], 0.0)
            squared_norms.append(has_direction.float())
            continue
        if wants_unit_norm and ((norms - 1.0).abs() > NORM_TOLERANCE)[has_direction].any():
            worst = float(norms[(norms - 1.0).abs().argmax()])
            raise ValueError(
                "`embeddings` must have unit norm in every band where normalize=False and distance='cosine', "
                f"got a vector of norm {worst:.6g}."
            )
        squared_norms.append(norms.square().float())
    return torch.cat(squared_norms)
