"""This module holds the memory of normal recordings that anomaly scores are distances to, band by band.

Letters: N query clips, R reference clips in the memory, F frequency bands, D channels.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from transformers.utils import logging

from .clip_embeddings import Clips, as_embeddings, as_is_target, prepare_, prepared_clips
from .memory_bank_backends import (
    BACKENDS,
    FUSIONS,
    NEAREST,
    Backend,
    BackendName,
    backend_names,
    finite_float32,
    fused,
    scales,
    scales_of_others,
)
from .memory_bank_file import (
    MEMORY_BANK_FILE,
    calibration_header,
    check_calibration,
    check_state,
    check_vectors,
    find_bank_file,
    read_bank_file,
    saved_calibration,
    write_bank_file,
)
from .memory_bank_history import Change, changed_clips, mask_without, saved_history, take_history
from .memory_bank_rescaling import RESCALINGS, Rescaling, RescalingName
from .nearest_neighbors import INDEX_KINDS, ApproximateIndex, IndexKind, Metric, Queries, References
from .reference_sampling import OneMemory, TwoMemories, coreset_mask, memories_for
from .threshold import Calibration

__all__ = ["MEMORY_BANK_FILE", "MemoryBank"]

# So many multiply-adds take a few seconds on a small CPU; a progress bar is shown.
PROGRESS_BAR_WORK = 2e11

CHOICES: dict[str, Collection[str | None]] = {
    "distance": get_args(Metric),
    "rescaling": RESCALINGS.keys(),
    "band_aggregation": ("mean", "max"),
    "index": INDEX_KINDS,
    "backend_fusion": FUSIONS,
}
# What only the nearest neighbours use, besides the distance and the number of them.
OF_NEAREST = ("rescaling", "smote_ratio", "separate_domains", "memmixup_neighbors", "index")
# The smallest legal value of every int.
LEAST = {
    "num_neighbors": 1,
    "num_rescaling_neighbors": 1,
    "smote_neighbors": 1,
    "num_target_neighbors": 0,
    "memmixup_neighbors": 0,
    "coreset_size": 1,
    "coreset_seed": 0,
    "max_clips": 1,
    "max_history": 0,
}
MAY_BE_NONE = ("num_target_neighbors", "coreset_size", "max_clips", "rescaling_decay")


@dataclass(eq=False)
class MemoryBank:
    """A memory of normal recordings. The score of a clip is its distance to the nearest ones, band by band.

    A higher score is more anomalous. Every frequency band has its own memory and its own nearest neighbours (BEAM,
    arXiv 2603.13749), and the band scores are averaged. With `x` a query, `y_i` the references of the same band and
    `c_i` the mean distance from `y_i` to its `num_rescaling_neighbors` nearest other references, the band score is the
    mean of the `num_neighbors` smallest of

    - `D(x, y_i)` with `rescaling=None`;
    - `D(x, y_i) - alpha * c_i` with `"variance_min"` (Matsumoto et al., 2025), which may be negative;
    - `D(x, y_i) / c_i` with `"ratio"` or `D(x, y_i) - c_i` with `"difference"` (Wilkinghoff et al., 2025).

    With `"lof"` it is the local outlier factor (Breunig et al., SIGMOD 2000) with `num_rescaling_neighbors` neighbours,
    always on Euclidean distances; `num_neighbors` then has no influence. If the memory holds fewer references than
    neighbours are asked for, all of them are used.

    `smote_ratio`, `memmixup_neighbors` and `separate_domains` make two memories, one of source clips and one of target
    clips, and the band score is the smaller of their two scores. Two memories need `domains` in `fit`,
    `rescaling=None` (as synthetic clips would decide the densities) and `index=None`.

    `backend` puts other scores of a band in place of this distance, or beside it:

    - `"two_domains"` is the smaller of the distances to source and to target clips, each divided by its median over
      the clips of that domain, leave-one-out. It needs `domains` in `fit`, and 3 clips of each.
    - `"mahalanobis"` is `||whitening (x - center)||`, the Mahalanobis distance to the mean clip with a covariance that
      is shrunk (OAS; Chen et al., 2010), and `"pca"` is `||residual_map (x - center)||`, the distance to the plane of
      the first principal components. Both need 3 clips, and cost `D**2` for each clip and `D**3` in `fit`.

    Where there are several, each is standardised by mean and standard deviation of its leave-one-out scores, band by
    band, and the band score is their minimum or mean; it may then be negative.

    `partial_fit`, `forget` and `rollback` change the clips of a fitted bank. Densities, alpha and synthetic references
    are then learned anew, so that the bank always equals the one that `fit` makes of the same clips.

    Args:
        distance: `"cosine"` is `(1 - cos) / 2`, in [0, 1]; `"euclidean"` is `||x - y||`.
        normalize: Whether vectors are scaled to unit norm first (to zero if their norm is at most 1e-12). Without it,
            `"cosine"` needs vectors that have unit norm already.
        num_neighbors: The neighbours that the score averages.
        rescaling: The rescaling of distances, see above. A rescaling needs at least two clips.
        num_rescaling_neighbors: The neighbours in `c_i`.
        smote_ratio: If above 0, SMOTE (Chawla et al., JAIR 2002) fills the target memory up to this share of the number
            of source clips.
        smote_neighbors: The nearest target clips that SMOTE interpolates to.
        band_aggregation: Whether the score is the `"mean"` or the `"max"` of the band scores.
        separate_domains: Whether there are two memories without synthetic references.
        num_target_neighbors: The neighbours averaged in the target memory; `None` for `num_neighbors`, 0 if the source
            memory decides alone.
        memmixup_neighbors: If above 0, the target memory also holds `0.9 t + 0.1 s` for each target clip t and each of
            this many nearest source clips s (MemMixup of GenRep; Saengthong and Shinozaki, 2024).
        rescaling_decay: If not `None`, a number in [0, 1]: `c_i` is the mean distance to all other references, nearest
            first, with the weights `rescaling_decay**k`, and `num_rescaling_neighbors` has no influence. It cannot be
            combined with `"lof"`.
        coreset_size: The largest number of clips that are kept, chosen by `greedy_coreset`. Two memories keep all
            target clips, and as many source clips as there is room for. A bank with a coreset cannot be changed.
        coreset_seed: The seed of the coreset's first clip.
        max_clips: The largest number of clips in the memory; the oldest (those given first) are removed.
        max_history: The number of changes that `rollback` can undo. Each takes the memory of the clips that it removed.
        index: The kind of FAISS index (`"flat"`, `"ivf"` or `"hnsw"`) that proposes the nearest references, see
            [`ApproximateIndex`]; only these are measured and rescaled. It is meant for big banks. `None` compares with
            every reference.
        backend: `"nearest"`, `"two_domains"`, `"mahalanobis"` or `"pca"`, or several of them, see above. Rescaling,
            synthetic clips, two memories and an index are those of `"nearest"`; a coreset needs it alone.
        backend_fusion: Whether several backends are fused by their `"minimum"` or their `"mean"`.
        explained_variance: The share of the variance, above 0 and below 1, that the components of `"pca"` hold.

    Attributes:
        memory_: `(F, R, D)` float32, the references, normalised if asked; synthetic ones follow the fitted clips.
        squared_norms_: `(F, R)` float32, `||y_i||**2` (exactly 1 or 0 with `normalize`).
        density_: `(F, R)` float32 with `rescaling`: `c_i`, large where the memory is sparse. With `"lof"` it is the
            local reachability density instead, small where the memory is sparse.
        alpha_: `(F,)` float32 with `"variance_min"`: `cov(u, v) / var(v)` over the references, where `u` is the
            distance to the nearest other reference and `v` is its `c`; 0 if `var(v) <= 1e-12`. It may be negative.
        k_distance_: `(F, R)` float32 with `"lof"`: the distance to the last of the `num_rescaling_neighbors`.
        is_target_: `(R,)` bool with two memories or `"two_domains"`: whether the reference is of the target domain.
        domain_medians_: `(F, 2)` float32 with `"two_domains"`: the median distance of a source clip to the nearest
            other ones, and of a target clip.
        center_: `(F, D)` float32 with `"mahalanobis"` or `"pca"`: the mean of the clips.
        whitening_: `(F, D, D)` float32 with `"mahalanobis"`: the inverse square root of the covariance.
        residual_map_: `(F, D, D)` float32 with `"pca"`: the projection onto what lies outside the plane.
        score_means_, score_spreads_: `(B, F)` float32 with B backends: mean and standard deviation of their
            leave-one-out scores.
        coreset_: `(num_clips_,)` long with `coreset_size`: the ascending positions of the kept clips among those given
            to `fit`.
        dropped_scores_: `(M, F)` float32 with `coreset_size`: the band scores of the M clips that were not kept.
        num_clips_: The number of clips in the memory, which come oldest first.
        version_: 0 after `fit`; every `partial_fit` and `forget` adds 1, and `rollback` restores the version asked for.
        calibration: What a scorer learned beside the memory, above all its threshold. It is saved with the bank, and is
            `None` if no scorer fitted the bank.

    Raises:
        ValueError: A parameter is outside its range, or cannot be combined with another one.
    """

    distance: Metric = "cosine"
    normalize: bool = True
    num_neighbors: int = 1
    rescaling: RescalingName | None = None
    num_rescaling_neighbors: int = 4
    smote_ratio: float = 0.0
    smote_neighbors: int = 2
    band_aggregation: Literal["mean", "max"] = "mean"
    separate_domains: bool = False
    num_target_neighbors: int | None = None
    memmixup_neighbors: int = 0
    rescaling_decay: float | None = None
    coreset_size: int | None = None
    coreset_seed: int = 0
    max_clips: int | None = None
    max_history: int = 8
    index: IndexKind | None = None
    backend: BackendName | Sequence[BackendName] = NEAREST
    backend_fusion: Literal["minimum", "mean"] = "minimum"
    explained_variance: float = 0.95

    calibration: Calibration | None = field(default=None, init=False, repr=False)
    memory_: torch.Tensor = field(init=False, repr=False)
    squared_norms_: torch.Tensor = field(init=False, repr=False)
    density_: torch.Tensor = field(init=False, repr=False)
    alpha_: torch.Tensor = field(init=False, repr=False)
    k_distance_: torch.Tensor = field(init=False, repr=False)
    is_target_: torch.Tensor = field(init=False, repr=False)
    domain_medians_: torch.Tensor = field(init=False, repr=False)
    center_: torch.Tensor = field(init=False, repr=False)
    whitening_: torch.Tensor = field(init=False, repr=False)
    residual_map_: torch.Tensor = field(init=False, repr=False)
    score_means_: torch.Tensor = field(init=False, repr=False)
    score_spreads_: torch.Tensor = field(init=False, repr=False)
    coreset_: torch.Tensor = field(init=False, repr=False)
    dropped_scores_: torch.Tensor = field(init=False, repr=False)
    num_clips_: int = field(init=False, repr=False)
    version_: int = field(init=False, repr=False)
    _history: list[Change] = field(default_factory=list, init=False, repr=False)
    # The names of the tensors that the last fit left behind; the parameters decide which they are.
    _tensor_names: tuple[str, ...] = field(default=(), init=False, repr=False)
    # The index of each band is a copy of the memory in another form, and is made when it is first needed.
    _indexes: dict[int, ApproximateIndex] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_parameters()

    # Changing the clips

    @torch.no_grad()
    def fit(
        self, embeddings: torch.Tensor | np.ndarray, domains: Sequence[str] | np.ndarray | None = None
    ) -> "MemoryBank":
        """Remember normal recordings, and forget what was fitted before, including its history.

        Args:
            embeddings: `(N, F, D)` of any float dtype and device; the memory stays on that device.
            domains: `"source"` or `"target"` for each clip; needed and used only with two memories or `"two_domains"`.

        Raises:
            ValueError: The embeddings are empty, not finite, or of a wrong shape; `domains` is wrong; there are too few
                clips for `rescaling` or `backend`, or of a domain; or FAISS is missing with `index`.
        """
        self._check_parameters()
        embeddings = as_embeddings(embeddings)
        is_target = self._used_domains(domains, len(embeddings))
        newest = slice(-self.max_clips, None) if self.max_clips else slice(None)
        clips = self._prepared(embeddings[newest], None if is_target is None else is_target[newest])
        self._install(self._learn(clips), version=0, history=[])
        # It was of other clips; a scorer that finds none asks to be fitted again.
        self.calibration = None
        return self

    @torch.no_grad()
    def partial_fit(
        self, embeddings: torch.Tensor | np.ndarray, domains: Sequence[str] | np.ndarray | None = None
    ) -> "MemoryBank":
        """Remember more normal recordings; above `max_clips`, the oldest are removed.

        A bank that is not fitted yet is fitted. `calibration` stays as it is.

        Args:
            embeddings, domains: See `fit`.

        Raises:
            ValueError: See `fit`. Also if the number of bands or channels is another one than fitted, or with
                `coreset_size`.
        """
        if not hasattr(self, "memory_"):
            return self.fit(embeddings, domains)
        self._check_can_change()
        new = self._checked_queries(embeddings).to(self.memory_.device)
        is_target = self._used_domains(domains, len(new))
        clips = self._clips().followed_by(self._prepared(new, is_target))
        keep = torch.ones(len(clips), dtype=torch.bool)
        if self.max_clips:
            keep[: -self.max_clips] = False
        self._change(clips, keep)
        return self

    @torch.no_grad()
    def forget(self, clips: Sequence[int] | np.ndarray | torch.Tensor) -> "MemoryBank":
        """Remove clips by their positions, 0 (the oldest) to `num_clips_ - 1`. `calibration` stays as it is.

        Raises:
            ValueError: The bank is not fitted or has a `coreset_size`; positions are out of range, repeated, none, or
                all of them; or fewer clips would be left than the parameters need.
        """
        self._check_fitted()
        self._check_can_change()
        self._change(self._clips(), mask_without(clips, self.num_clips_))
        return self

    @torch.no_grad()
    def rollback(self, version: int) -> "MemoryBank":
        """Restore the clips, scores and `calibration` of an earlier `version_`, and drop later versions.

        Raises:
            ValueError: The bank is not fitted, or the version is a later one or older than `max_history` changes.
        """
        self._check_fitted()
        oldest = self.version_ - len(self._history)
        if not isinstance(version, Integral) or not oldest <= version <= self.version_:
            raise ValueError(f"`version` must be an int in {oldest}..{self.version_}, got {version!r}.")
        num_left = int(version) - oldest
        left, undone = self._history[:num_left], self._history[num_left:]
        if not undone:
            return self
        clips = self._clips()
        for change in reversed(undone):
            clips = change.undo(clips)
        self._install(self._learn(clips), int(version), left)
        self.calibration = undone[0].calibration
        return self

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes that `rollback` can undo, oldest first."""
        return tuple(self._history)

    # Scoring

    @torch.no_grad()
    def band_scores(self, embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Score clips `(N, F, D)` in each band, `(N, F)` float32 on the memory's device. Higher is more anomalous.

        Raises:
            ValueError: The bank is not fitted; the embeddings are not finite, or of another shape than fitted; or FAISS
                is missing with `index`.
        """
        self._check_fitted()
        queries = self._checked_queries(embeddings)
        num_bands, num_references, dim = self.memory_.shape
        scores = torch.empty(len(queries), num_bands, device=self.memory_.device)
        for band in _progress(num_bands, len(queries) * num_references * dim, "Scoring"):
            rows = queries[:, band].to(self.memory_.device, torch.float32, copy=True)  # (N, D)
            scores[:, band] = self._score_band(band, Queries(rows, self._prepare_(rows)))
        return scores

    def score(self, embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Score clips `(N, F, D)`, `(N,)` float32. Higher is more anomalous. Errors are those of `band_scores`."""
        return self.aggregate_bands(self.band_scores(embeddings))

    @torch.no_grad()
    def self_scores(self, exact: bool = False) -> torch.Tensor:
        """Score each fitted clip with its own entry removed from the memory, `(N,)` float32.

        A higher score is more anomalous. Densities and alpha stay as fitted; so do synthetic references that SMOTE made
        from the clip, whereas those that MemMixup made from it as the target clip are removed. With `coreset_size`, the
        clips that were not kept are scored as well: N is the number of clips given to `fit`, in their order.

        With a rescaling these scores are a little above those of new normal clips, because the density of a reference
        still counts the removed clip. Thresholds made from them let fewer clips alarm than stated.

        The backends other than `"nearest"` learn anew for each clip, exactly. Where several are fused, the scores of a
        clip are standardised by those of all others, which still were scored against a memory with the clip.

        Args:
            exact: Let densities and alpha be those of a memory that never held the clip, so that the scores are those
                of new normal clips. It makes a difference for "variance_min", "ratio" and "difference"; with a decay,
                a coreset, an index or "lof", the scores are those of `exact=False`.

        Raises:
            ValueError: The bank is not fitted, holds a single clip, or FAISS is missing with `index`.
        """
        self._check_fitted()
        if self.num_clips_ < 2:
            raise ValueError("`self_scores` needs a memory of at least 2 clips, got 1.")
        num_bands, num_references, dim = self.memory_.shape
        clips = self._clips()
        scores = torch.empty(self.num_clips_, num_bands, device=self.memory_.device)
        for band in _progress(num_bands, self.num_clips_ * num_references * dim, "Leave-one-out scores"):
            queries = Queries(clips.vectors[band], clips.squared_norms[band], leave_one_out=True)
            scores[:, band] = self._score_band(band, queries, exact)
        if not scores.isfinite().all():
            raise ValueError("`self_scores` needs at least 2 source clips where num_target_neighbors=0, got 1.")
        if self.coreset_size:
            kept = scores
            scores = torch.empty(len(kept) + len(self.dropped_scores_), num_bands, device=kept.device)
            dropped = torch.ones(len(scores), dtype=torch.bool, device=kept.device)
            dropped[self.coreset_] = False
            scores[self.coreset_], scores[dropped] = kept, self.dropped_scores_
        return self.aggregate_bands(scores)

    def aggregate_bands(self, band_scores: torch.Tensor) -> torch.Tensor:
        """Turn band scores `(N, F)` into scores `(N,)`, as `band_aggregation` says."""
        return band_scores.mean(dim=1) if self.band_aggregation == "mean" else band_scores.amax(dim=1)

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `memory_bank.safetensors`, including the calibration and the history.

        If the process is killed while writing, an older file stays as it was.

        Raises:
            ValueError: The bank is not fitted.
            OSError: The directory cannot be written.
        """
        self._check_fitted()
        history_tensors, history_headers = saved_history(self._history)
        settings, tensors = self._settings(), self._tensors()
        header = {
            "settings": settings,
            "num_clips": self.num_clips_,
            **calibration_header(self.calibration),
            "version": self.version_,
            "history": history_headers,
        }
        write_bank_file(save_directory, tensors | history_tensors, header)

    def state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return all that scoring needs, for a runtime without torch: settings as JSON holds them, and tensors.

        The settings are the parameters by name and `num_clips`; the tensors, on the CPU, are named as the attributes.

        Raises:
            ValueError: The bank is not fitted.
        """
        self._check_fitted()
        return self._settings() | {"num_clips": self.num_clips_}, self._tensors()

    def _settings(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name).cpu() for name in self._tensor_names}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "MemoryBank":
        """Read `memory_bank.safetensors` from a directory or a hub repository, onto the CPU.

        Raises:
            OSError: There is no such file, or it is truncated, foreign or inconsistent.
        """
        path = find_bank_file(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        if path is None:
            raise OSError(
                f"{pretrained_model_name_or_path} holds no {MEMORY_BANK_FILE}: no fitted memory was saved there."
            )
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "MemoryBank":
        """Read one `memory_bank.safetensors`, onto the CPU.

        Raises:
            OSError: The file is truncated, foreign or inconsistent.
        """
        try:
            tensors, header = read_bank_file(path)
            bank = cls(**header["settings"])
            bank.calibration = saved_calibration(header)
            num_clips, version, memories = header["num_clips"], header.get("version", 0), bank._memories
            history = take_history(tensors, header.get("history", []), num_clips, bank._knows_domains)
            num_backends = len(bank._backend_names)
            kinds = (bank._rescaling, memories, bool(bank.coreset_size), bank._other_backends, num_backends)
            check_state(tensors, num_clips, *kinds)
            saved_vectors = [(tensors["memory_"], tensors["squared_norms_"])]
            saved_vectors += [(change.clips.vectors, change.clips.squared_norms) for change in history]
            for vectors, squared_norms in saved_vectors:
                check_vectors(vectors, squared_norms, bool(bank.normalize), bank.distance == "cosine")
            for calibration in (bank.calibration, *(change.calibration for change in history)):
                check_calibration(calibration, bank._rescaling, num_backends)
            if isinstance(version, bool) or not isinstance(version, int) or version < len(history):
                raise ValueError(f"`version` must be an int of at least {len(history)}, got {version!r}.")
            bank._install(_Learned(tensors, {}, num_clips), version, history)
        except (
            *(SafetensorError, LookupError, TypeError, ValueError, AttributeError),
            *(ArithmeticError, RecursionError, RuntimeError, MemoryError),
        ) as error:
            raise OSError(f"{path} is not a readable memory bank ({type(error).__name__}: {error}).") from error
        return bank

    # The steps

    def _learn(self, clips: Clips) -> "_Learned":
        """Learn everything that follows from clips. The bank itself stays as it is until all has succeeded."""
        rescaling, memories = self._rescaling, self._memories
        num_source, num_target = len(clips) - clips.num_target, clips.num_target
        rescaling.check(len(clips))
        memories.check(num_source, num_target)
        for backend in self._other_backends:
            backend.check(num_source, num_target)
        if self.coreset_size:
            return self._learn_coreset(clips, self.coreset_size)
        num_bands, num_clips, dim = clips.vectors.shape
        memory, norms, is_target = clips.vectors, clips.squared_norms, clips.is_target
        num_synthetic = memories.num_synthetic(num_source, num_target)
        if num_synthetic:
            memory = torch.cat([memory, memory.new_empty(num_bands, num_synthetic, dim)], dim=1)
            norms = torch.cat([norms, norms.new_empty(num_bands, num_synthetic)], dim=1)
        learned_shapes = rescaling.state(num_bands, num_clips)
        for backend in self._other_backends:
            learned_shapes |= backend.state(num_bands, dim)
        tensors = {"memory_": memory, "squared_norms_": norms}
        tensors |= {name: norms.new_empty(shape) for name, shape in learned_shapes.items()}
        if is_target is not None:
            tensors["is_target_"] = torch.cat([is_target, is_target.new_ones(num_synthetic)])
        indexes = {}
        work = num_clips * num_clips * dim if learned_shapes else 0
        for band in _progress(num_bands, work, "Fitting memory bank"):
            if num_synthetic and is_target is not None:
                sources, targets = clips.vectors[band][~is_target], clips.vectors[band][is_target]
                rows = memory[band, num_clips:].copy_(memories.synthesize(sources, targets))
                norms[band, num_clips:] = self._prepare_(rows)
            if self.index:
                indexes[band] = ApproximateIndex(memory[band], self._metric, self.index)
            references = References(memory[band], norms[band], self._metric, index=indexes.get(band))
            learned = rescaling.learn(references)
            for backend in self._other_backends:
                learned |= backend.learn(_clips_of_band(clips, band, self.distance), is_target)
            for name, tensor in learned.items():
                tensors[name][band] = tensor
        result = _Learned(tensors, indexes, num_clips)
        if len(self._backend_names) > 1:
            tensors["score_means_"], tensors["score_spreads_"] = self._learned_scales(result)
        return result

    def _learned_scales(self, learned: "_Learned") -> tuple[torch.Tensor, torch.Tensor]:
        """Return what standardises the scores of each backend in each band, `(B, F)` each."""
        bank = replace(self)
        bank._install(learned, version=0, history=[])
        clips = bank._clips()
        bands = [
            bank._backend_scores(band, Queries(rows, norms, leave_one_out=True), exact=True)  # (B, N)
            for band, (rows, norms) in enumerate(zip(clips.vectors, clips.squared_norms, strict=True))
        ]
        means, spreads = scales(torch.stack(bands, dim=1))  # (B, F)
        return finite_float32(means), finite_float32(spreads)

    def _learn_coreset(self, clips: Clips, size: int) -> "_Learned":
        """Learn from the clips of the coreset; the others are only scored."""
        is_kept = coreset_mask(clips, size, self.coreset_seed)
        small = replace(self, coreset_size=None)
        learned = small._learn(clips[is_kept])
        small._install(learned, version=0, history=[])
        dropped = clips[~is_kept]
        scores = dropped.squared_norms.new_empty(len(dropped), len(dropped.vectors))
        for band, (rows, norms) in enumerate(zip(dropped.vectors, dropped.squared_norms, strict=True)):
            scores[:, band] = small._score_band(band, Queries(rows, norms))
        state = learned.tensors | {"coreset_": is_kept.nonzero()[:, 0], "dropped_scores_": scores}
        return _Learned(state, learned.indexes, learned.num_clips)

    def _install(self, learned: "_Learned", version: int, history: list[Change]) -> None:
        for name in self._tensor_names:
            self.__dict__.pop(name, None)
        self.__dict__.update(learned.tensors)
        self._tensor_names = tuple(learned.tensors)
        self._indexes, self.num_clips_ = learned.indexes, learned.num_clips
        self.version_, self._history = version, history

    def _change(self, clips: Clips, keep: torch.Tensor) -> None:
        """Go on with some of the clips, of which the first `num_clips_` are those of the memory."""
        clips, change = changed_clips(clips, self.num_clips_, keep, self.calibration)
        learned = self._learn(clips)
        history = [*self._history, change][-self.max_history :] if self.max_history else []
        self._install(learned, self.version_ + 1, history)

    def _score_band(self, band: int, queries: Queries, exact: bool = False) -> torch.Tensor:
        scores = self._backend_scores(band, queries, exact)  # (B, N)
        if len(scores) == 1:
            return scores[0]
        if queries.leave_one_out:
            return fused(scores, *scales_of_others(scores), self.backend_fusion)
        means, spreads = self.score_means_[:, band, None], self.score_spreads_[:, band, None]  # (B, 1)
        return fused(scores, means, spreads, self.backend_fusion)

    def _backend_scores(self, band: int, queries: Queries, exact: bool) -> torch.Tensor:
        """Score the queries of one band by each backend, in the order of their names, `(B, N)`."""
        clips = self._clips()
        others = {backend.name: backend for backend in self._other_backends}
        scores = []
        for name in self._backend_names:
            if name not in others:
                scores.append(self._nearest_scores(band, queries, exact))
                continue
            backend, of_band = others[name], _clips_of_band(clips, band, self.distance)
            if queries.leave_one_out:
                scores.append(backend.leave_one_out(of_band, clips.is_target))
                continue
            learned = {name: getattr(self, name)[band] for name in backend.state(*self.memory_.shape[::2])}
            scores.append(backend.apply(queries, of_band, clips.is_target, learned))
        return torch.stack(scores)

    def _nearest_scores(self, band: int, queries: Queries, exact: bool) -> torch.Tensor:
        rescaling, memories = self._rescaling, self._memories
        is_target = self.is_target_ if memories.knows_domains else None
        references = References(
            self.memory_[band],
            self.squared_norms_[band],
            rescaling.metric or self.distance,
            owner=memories.owner(is_target, self.num_clips_) if queries.leave_one_out else None,
            index=self._index_of(band),
        )
        learned = {name: getattr(self, name)[band] for name in (*rescaling.per_reference, *rescaling.per_band)}
        if exact and is_target is None:
            return rescaling.leave_one_out(references, learned, self.num_neighbors)
        scores = [
            rescaling.apply(queries, references.without(hidden), learned, count)
            for hidden, count in memories.parts(is_target, self.num_neighbors)
        ]
        return reduce(torch.minimum, scores)  # (N,)

    def _prepare_(self, rows: torch.Tensor) -> torch.Tensor:
        return prepare_(rows, bool(self.normalize), wants_unit_norm=self.distance == "cosine")

    def _prepared(self, embeddings: torch.Tensor, is_target: torch.Tensor | None) -> Clips:
        return prepared_clips(embeddings, is_target, bool(self.normalize), wants_unit_norm=self.distance == "cosine")

    def _clips(self) -> Clips:
        """Return the clips of the memory, without synthetic references."""
        is_target = self.is_target_ if self._knows_domains else None
        return Clips(self.memory_, self.squared_norms_, is_target)[: self.num_clips_]

    def _index_of(self, band: int) -> ApproximateIndex | None:
        if not self.index:
            return None
        if band not in self._indexes:
            self._indexes[band] = ApproximateIndex(self.memory_[band], self._metric, self.index)
        return self._indexes[band]

    # What the parameters ask for

    @property
    def _rescaling(self) -> Rescaling:
        return RESCALINGS[self.rescaling](self.num_rescaling_neighbors, self.rescaling_decay)

    @property
    def _metric(self) -> Metric:
        return self._rescaling.metric or self.distance

    @property
    def _memories(self) -> OneMemory:
        return memories_for(
            self.separate_domains,
            self.num_target_neighbors,
            self.smote_ratio,
            self.smote_neighbors,
            self.memmixup_neighbors,
        )

    @property
    def _backend_names(self) -> tuple[BackendName, ...]:
        return backend_names(self.backend)

    @property
    def _other_backends(self) -> tuple[Backend, ...]:
        """Return the backends besides the nearest neighbours."""
        settings = (self.num_neighbors, float(self.explained_variance))
        return tuple(BACKENDS[name](*settings) for name in self._backend_names if name != NEAREST)

    @property
    def _knows_domains(self) -> bool:
        return self._memories.knows_domains or any(backend.knows_domains for backend in self._other_backends)

    def _used_domains(self, domains: Sequence[str] | np.ndarray | None, num_clips: int) -> torch.Tensor | None:
        """Check domains wherever they are given, and return whether each clip is of the target domain if that counts.

        Raises:
            ValueError: They are wrong, or missing although they are used.
        """
        is_target = self._memories.used_domains(domains, num_clips)
        if not self._knows_domains:
            return is_target
        if domains is None:
            raise ValueError("`backend='two_domains'` needs domains ('source' or 'target' for each clip), got None.")
        return as_is_target(domains, num_clips)

    # Checks

    def _check_parameters(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)) or value not in tuple(choices):
                raise ValueError(f"`{name}` must be one of {tuple(choices)}, got {getattr(self, name)!r}.")
        for name in ("normalize", "separate_domains"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        for name, least in LEAST.items():
            value = getattr(self, name)
            is_int = isinstance(value, Integral) and not isinstance(value, bool)
            if not (value is None and name in MAY_BE_NONE) and not (is_int and value >= least):
                raise ValueError(f"`{name}` must be an int of at least {least}, got {value!r}.")
        for name in ("smote_ratio", "rescaling_decay"):
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not (value is None and name in MAY_BE_NONE) and not (is_number and 0.0 <= float(value) <= 1.0):
                raise ValueError(f"`{name}` must be a number in [0, 1], got {value!r}.")
        share = self.explained_variance
        if not isinstance(share, Real) or isinstance(share, bool) or not 0.0 < float(share) < 1.0:
            raise ValueError(f"`explained_variance` must be a number above 0 and below 1, got {share!r}.")
        self._check_backends()
        # Both check the parameters that they take when they are made.
        memories, _ = self._memories, self._rescaling
        for name in ("rescaling", "index"):
            if isinstance(memories, TwoMemories) and getattr(self, name):
                raise ValueError(f"`{memories.asked_by}` needs {name}=None, got {getattr(self, name)!r}.")
        if self.coreset_size and self.max_clips:
            raise ValueError(
                f"`coreset_size` and `max_clips` exclude each other, got {self.coreset_size} and {self.max_clips}."
            )

    def _check_backends(self) -> None:
        names = self._backend_names
        if NEAREST not in names:
            for name in OF_NEAREST:
                if getattr(self, name):
                    raise ValueError(f"`{name}` needs backend='nearest', got {getattr(self, name)!r} with {names}.")
        if self.coreset_size and names != (NEAREST,):
            raise ValueError(f"`coreset_size` needs backend='nearest' alone, got {self.coreset_size} with {names}.")

    def _checked_queries(self, embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
        queries = as_embeddings(embeddings)
        num_bands, _, dim = self.memory_.shape
        if queries.shape[1:] != (num_bands, dim):
            raise ValueError(
                f"`embeddings` must have {num_bands} bands of {dim} channels like the fitted ones, "
                f"got shape {tuple(queries.shape)}."
            )
        return queries

    def _check_can_change(self) -> None:
        self._check_parameters()
        if self.coreset_size:
            raise ValueError(
                f"`coreset_size` must be None to change a fitted bank, got {self.coreset_size}: clips outside the "
                "coreset are lost. Call `fit` again, or limit the memory with `max_clips`."
            )

    def _check_fitted(self) -> None:
        if not hasattr(self, "memory_"):
            raise ValueError(
                "This MemoryBank is not fitted yet: call `fit` with embeddings of normal recordings first."
            )


@dataclass(frozen=True, eq=False)
class _Learned:
    """What a fit leaves behind: tensors named as the bank's attributes, indexes by band, and the number of clips."""

    tensors: dict[str, torch.Tensor]
    indexes: dict[int, ApproximateIndex]
    num_clips: int


def _clips_of_band(clips: Clips, band: int, metric: Metric) -> References:
    return References(clips.vectors[band], clips.squared_norms[band], metric)


def _progress(num_bands: int, work_per_band: int, description: str) -> Iterable[int]:
    return logging.tqdm(range(num_bands), desc=description, disable=num_bands * work_per_band < PROGRESS_BAR_WORK)


def _plain(value: Any) -> Any:
    """Turn numpy scalars, which are legal as parameters, into the Python numbers that JSON knows."""
    return value.item() if isinstance(value, np.generic) else value
