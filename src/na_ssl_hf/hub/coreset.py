"""A few clips that stand for many: greedy k-center selection."""

import torch
from transformers.utils import logging

# Multiply-adds that take a few seconds on a small CPU: from here on a progress bar shows.
PROGRESS_BAR_WORK = 2e10


def greedy_coreset(memory: torch.Tensor, squared_norms: torch.Tensor, size: int, seed: int = 0) -> torch.Tensor:
    """Indices of `size` clips such that no clip is far from all of them, in the order of selection.

    Starts with a seeded random clip and adds the clip that is farthest from those selected (Gonzalez, 1985, within
    twice the best radius; for memories of normal embeddings: Roth et al., CVPR 2022). A clip is one point, all bands
    together, so that a prefix of the selection is the coreset of a smaller size.

    Args:
        memory: `(F, N, D)` float32, the clips of every band.
        squared_norms: `(F, N)` float32.
        size: clips to select, 1 to N.
        seed: of the first clip.

    Raises:
        ValueError: `size` is not in 1..N.
    """
    num_bands, num_clips, dim = memory.shape
    if not 1 <= size <= num_clips:
        raise ValueError(f"size must be in 1..{num_clips}, the number of clips, got {size!r}.")
    generator = torch.Generator().manual_seed(seed)
    newest = int(torch.randint(num_clips, (1,), generator=generator))
    selected = [newest]
    norms = squared_norms.sum(dim=0)  # (N,)
    # A selected clip is nearer than any other, so that among duplicates none is selected twice.
    distances = torch.full((num_clips,), torch.inf, device=memory.device)
    work = size * num_clips * num_bands * dim
    for _ in logging.tqdm(range(size - 1), desc="Coreset", disable=work < PROGRESS_BAR_WORK):
        products = torch.zeros(num_clips, device=memory.device)
        for band in memory:
            products.addmv_(band, band[newest])
        squared = (norms + norms[newest]).sub_(products, alpha=2.0).clamp_(min=0.0)
        distances = torch.minimum(distances, squared)
        distances[newest] = -torch.inf
        newest = int(distances.argmax())
        selected.append(newest)
    return torch.tensor(selected, device=memory.device)
