"""This module decides which references a memory holds: a coreset of the clips, and synthetic clips beside them.

To add another kind of memory, write a subclass of [`OneMemory`] and choose it in `memories_for`.

Letters: N clips, M target clips, S source clips, R references, F bands, D channels, k neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from transformers.utils import logging

from .clip_embeddings import Clips, as_is_target
from .nearest_neighbors import Queries, References, nearest

# The share of the target clip in a MemMixup vector, as published.
MEMMIXUP_TARGET_SHARE = 0.9
# A selection of so many multiply-adds takes a few seconds on a small CPU, and shows a progress bar.
PROGRESS_BAR_WORK = 2e10


@dataclass(frozen=True)
class OneMemory:
    """One memory holds all clips, whatever their domains.

    Attributes:
        knows_domains: Whether the memory uses the domains of the clips.
    """

    knows_domains: ClassVar[bool] = False

    def used_domains(self, domains: Sequence[str] | np.ndarray | None, num_clips: int) -> torch.Tensor | None:
        """Check domains wherever they are given, and return them as `as_is_target` does only if they are used.

        Raises:
            ValueError: They are wrong, or missing although they are used.
        """
        as_is_target(domains, num_clips)
        return None

    def check(self, num_source: int, num_target: int) -> None:
        """Raise ValueError if there are too few clips of a domain."""

    def num_synthetic(self, num_source: int, num_target: int) -> int:
        """Return how many synthetic clips follow the fitted ones."""
        return 0

    def synthesize(self, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Make the synthetic clips of one band from its clips `(S, D)` and `(M, D)`."""
        return targets[:0]

    def owner(self, is_target: torch.Tensor | None, num_clips: int) -> torch.Tensor | None:
        """Return the clip `(R,)` that each reference is left out with; `None` if each belongs to itself alone."""
        return None

    def parts(self, is_target: torch.Tensor | None, num_neighbors: int) -> Iterator[tuple[torch.Tensor | None, int]]:
        """Yield the memories of which the nearest one decides.

        Each is a pair of the references `(R,)` that it does not hold, if any, and the neighbours that it averages.
        """
        yield None, num_neighbors


@dataclass(frozen=True)
class TwoMemories(OneMemory):
    """One memory holds the source clips and one the target clips, and the smaller score decides.

    Args:
        num_target_neighbors: The neighbours averaged in the target memory; `None` for as many as in the source memory,
            0 if the source memory decides alone.
    """

    knows_domains = True
    num_target_neighbors: int | None = None

    @property
    def asked_by(self) -> str:
        """The parameter of [`MemoryBank`] that asks for two memories, for error messages."""
        return "separate_domains=True"

    def used_domains(self, domains: Sequence[str] | np.ndarray | None, num_clips: int) -> torch.Tensor | None:
        if domains is None:
            raise ValueError(f"`{self.asked_by}` needs domains ('source' or 'target' for each clip), got None.")
        return as_is_target(domains, num_clips)

    def check(self, num_source: int, num_target: int) -> None:
        if self.num_target_neighbors == 0 and not num_source:
            raise ValueError(f"`num_target_neighbors=0` needs source clips, got {num_target} target clips only.")

    def parts(self, is_target: torch.Tensor | None, num_neighbors: int) -> Iterator[tuple[torch.Tensor | None, int]]:
        assert is_target is not None
        yield is_target, num_neighbors
        num_target_neighbors = num_neighbors if self.num_target_neighbors is None else self.num_target_neighbors
        if num_target_neighbors:
            yield ~is_target, num_target_neighbors


@dataclass(frozen=True)
class SmoteMemories(TwoMemories):
    """Two memories, where SMOTE fills the target memory up to a share of the number of source clips.

    Args:
        ratio: The share, in (0, 1].
        num_smote_neighbors: The nearest target clips that SMOTE interpolates to.
    """

    ratio: float = 1.0
    num_smote_neighbors: int = 2

    @property
    def asked_by(self) -> str:
        return f"smote_ratio={self.ratio}"

    def check(self, num_source: int, num_target: int) -> None:
        if num_target <= self.num_smote_neighbors:
            raise ValueError(
                f"`smote_neighbors={self.num_smote_neighbors}` needs at least {self.num_smote_neighbors + 1} clips of "
                f"the target domain, got {num_target}."
            )
        if self.num_synthetic(num_source, num_target) <= 0:
            raise ValueError(
                f"`smote_ratio={self.ratio}` must ask for more target clips than there are, "
                f"got {num_target} target and {num_source} source clips."
            )
        super().check(num_source, num_target)

    def num_synthetic(self, num_source: int, num_target: int) -> int:
        return int(num_source * self.ratio - num_target)

    def synthesize(self, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return smote(targets, self.num_synthetic(len(sources), len(targets)), self.num_smote_neighbors)


@dataclass(frozen=True)
class MemMixupMemories(TwoMemories):
    """Two memories, where the target memory also holds mixtures of target clips and their nearest source clips.

    Args:
        num_mixup_neighbors: The source clips that each target clip is mixed with.
    """

    num_mixup_neighbors: int = 1

    @property
    def asked_by(self) -> str:
        return f"memmixup_neighbors={self.num_mixup_neighbors}"

    def check(self, num_source: int, num_target: int) -> None:
        if not (num_target and num_source):
            raise ValueError(
                f"`memmixup_neighbors={self.num_mixup_neighbors}` needs clips of both domains, "
                f"got {num_target} target and {num_source} source clips."
            )
        super().check(num_source, num_target)

    def num_synthetic(self, num_source: int, num_target: int) -> int:
        return num_target * min(self.num_mixup_neighbors, num_source)

    def synthesize(self, sources: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return memmixup(targets, sources, self.num_mixup_neighbors)

    def owner(self, is_target: torch.Tensor | None, num_clips: int) -> torch.Tensor | None:
        assert is_target is not None
        clips = torch.arange(num_clips, device=is_target.device)
        targets = clips[is_target[:num_clips]]
        # The mixtures come target by target.
        return torch.cat([clips, targets.repeat_interleave((len(is_target) - num_clips) // len(targets))])


def memories_for(
    separate_domains: bool,
    num_target_neighbors: int | None,
    smote_ratio: float,
    smote_neighbors: int,
    memmixup_neighbors: int,
) -> OneMemory:
    """Return the kind of memory that these parameters of [`MemoryBank`] ask for.

    Raises:
        ValueError: They contradict each other.
    """
    if smote_ratio and memmixup_neighbors:
        raise ValueError(
            "`smote_ratio` and `memmixup_neighbors` exclude each other, "
            f"got {smote_ratio!r} and {memmixup_neighbors!r}."
        )
    if smote_ratio:
        return SmoteMemories(num_target_neighbors, smote_ratio, smote_neighbors)
    if memmixup_neighbors:
        return MemMixupMemories(num_target_neighbors, memmixup_neighbors)
    if separate_domains:
        return TwoMemories(num_target_neighbors)
    if num_target_neighbors is not None:
        raise ValueError(
            "`num_target_neighbors` must be None unless separate_domains, smote_ratio or memmixup_neighbors asks for "
            f"two memories, got {num_target_neighbors}."
        )
    return OneMemory()


def smote(targets: torch.Tensor, num_synthetic: int, num_neighbors: int) -> torch.Tensor:
    """Draw points between target clips `(M, D)` and their nearest other target clips.

    This is SMOTE (Chawla et al., JAIR 2002), drawn as imbalanced-learn draws with `random_state=0`.

    Returns:
        `(num_synthetic, D)` float64.
    """
    norms = targets.square().sum(dim=1)
    queries = Queries(targets, norms, leave_one_out=True)
    _, neighbors = nearest(queries, References(targets, norms, "euclidean"), num_neighbors)  # (M, k)
    # The published memories were drawn with numpy's legacy generator, with the same seed in every band.
    random = np.random.RandomState(0)
    drawn = torch.from_numpy(random.randint(0, neighbors.numel(), num_synthetic)).to(targets.device)
    step = torch.from_numpy(random.uniform(size=num_synthetic)[:, None]).to(targets.device)
    base = targets[drawn // num_neighbors].double()
    return base + step * (targets[neighbors.flatten()[drawn]].double() - base)


def memmixup(targets: torch.Tensor, sources: torch.Tensor, num_neighbors: int) -> torch.Tensor:
    """Mix every target clip t `(M, D)` with each of its k nearest source clips s `(S, D)`, as `0.9 t + 0.1 s`.

    This is MemMixup of GenRep (Saengthong and Shinozaki, 2024); k is at most S.

    Returns:
        `(M * k, D)`, target by target, nearest source clip first.
    """
    queries = Queries(targets, targets.square().sum(dim=1))
    references = References(sources, sources.square().sum(dim=1), "euclidean")
    _, neighbors = nearest(queries, references, num_neighbors)  # (M, k)
    near = sources[neighbors]  # (M, k, D)
    mixed = MEMMIXUP_TARGET_SHARE * targets[:, None] + (1.0 - MEMMIXUP_TARGET_SHARE) * near
    return mixed.flatten(0, 1)  # (M * k, D)


def coreset_mask(clips: Clips, size: int, seed: int) -> torch.Tensor:
    """Choose at most `size` of the clips: all target clips, where domains are known, and a greedy coreset of the rest.

    Returns:
        `(N,)` bool, True for the chosen clips.

    Raises:
        ValueError: The target clips alone are `size` or more.
    """
    num_clips = len(clips)
    is_kept = torch.ones(num_clips, dtype=torch.bool, device=clips.vectors.device)
    if num_clips <= size:
        return is_kept
    choice = torch.arange(num_clips, device=clips.vectors.device)
    if clips.is_target is not None:
        choice = choice[~clips.is_target]
    num_target = num_clips - len(choice)
    if size <= num_target:
        raise ValueError(
            f"`coreset_size={size}` must leave room for a source clip beside the {num_target} target clips, "
            "which all stay."
        )
    others = clips[choice]
    chosen = greedy_coreset(others.vectors, others.squared_norms, size - num_target, seed)
    is_kept[choice] = False
    is_kept[choice[chosen]] = True
    return is_kept


def greedy_coreset(memory: torch.Tensor, squared_norms: torch.Tensor, size: int, seed: int = 0) -> torch.Tensor:
    """Choose `size` clips such that no clip is far from all of them, by greedy k-center selection.

    The selection starts with a seeded random clip and adds the clip that is farthest from those selected (Gonzalez,
    1985, within twice the best radius; for memories of normal embeddings: Roth et al., CVPR 2022). A clip is one point,
    all bands together. The first clips of the selection are the coreset of a smaller size.

    Args:
        memory: The clips of every band, `(F, N, D)` float32.
        squared_norms: `(F, N)` float32.
        size: The number of clips to select, 1 to N.
        seed: The seed of the first clip.

    Returns:
        Positions of the clips `(size,)`, in the order of selection.

    Raises:
        ValueError: `size` is not in 1..N.
    """
    num_bands, num_clips, dim = memory.shape
    if not 1 <= size <= num_clips:
        raise ValueError(f"`size` must be in 1..{num_clips}, the number of clips, got {size!r}.")
    generator = torch.Generator().manual_seed(seed)
    newest = int(torch.randint(num_clips, (1,), generator=generator))
    selected = [newest]
    norms = squared_norms.sum(dim=0)  # (N,)
    distances = torch.full((num_clips,), torch.inf, device=memory.device)
    work = size * num_clips * num_bands * dim
    for _ in logging.tqdm(range(size - 1), desc="Coreset", disable=work < PROGRESS_BAR_WORK):
        products = torch.zeros(num_clips, device=memory.device)
        for band in memory:
            products.addmv_(band, band[newest])
        squared = (norms + norms[newest]).sub_(products, alpha=2.0).clamp_(min=0.0)
        distances = torch.minimum(distances, squared)
        # A selected clip is nearer than any other, so that among duplicates none is selected twice.
        distances[newest] = -torch.inf
        newest = int(distances.argmax())
        selected.append(newest)
    return torch.tensor(selected, device=memory.device)
