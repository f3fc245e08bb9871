"""Filling up the memory of the rare target domain: SMOTE and MemMixup.

Letters: M target clips, S source clips, D channels, k neighbours.
"""

import numpy as np
import torch

from .nearest_neighbors import nearest

# Share of the target clip in a MemMixup vector, as published.
MEMMIXUP_TARGET_SHARE = 0.9


def smote(targets: torch.Tensor, num_synthetic: int, num_neighbors: int) -> torch.Tensor:
    """Points between target clips `(M, D)` and their nearest other target clips, `(num_synthetic, D)` float64.

    Chawla et al., JAIR 2002, drawn as imbalanced-learn draws with `random_state=0`.
    """
    norms = targets.square().sum(dim=1)
    _, neighbors = nearest(targets, norms, targets, norms, num_neighbors, "euclidean", leave_one_out=True)  # (M, k)
    # The published memories were drawn with numpy's legacy generator, the same seed in every band.
    random = np.random.RandomState(0)
    drawn = torch.from_numpy(random.randint(0, neighbors.numel(), num_synthetic)).to(targets.device)
    step = torch.from_numpy(random.uniform(size=num_synthetic)[:, None]).to(targets.device)
    base = targets[drawn // num_neighbors].double()
    return base + step * (targets[neighbors.flatten()[drawn]].double() - base)


def memmixup(targets: torch.Tensor, sources: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    """`0.9 t + 0.1 s` for every target clip t `(M, D)` and each of its k nearest source clips s `(S, D)`.

    Gives `(M * k, D)`, target by target, nearest source first; k is at most S. GenRep (Saengthong and Shinozaki, 2024).
    """
    target_norms, source_norms = targets.square().sum(dim=1), sources.square().sum(dim=1)
    _, neighbors = nearest(targets, target_norms, sources, source_norms, num_neighbors, "euclidean")  # (M, k)
    near = sources[neighbors]  # (M, k, D)
    mixed = MEMMIXUP_TARGET_SHARE * targets[:, None] + (1.0 - MEMMIXUP_TARGET_SHARE) * near
    return mixed.flatten(0, 1)  # (M * k, D)
