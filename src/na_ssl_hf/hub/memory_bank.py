"""Band-wise nearest-neighbour memory of normal recordings.

Letters: N query clips, R reference clips in the memory, F frequency bands, D channels, k candidates.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers.utils import logging

from .approximate_index import ApproximateIndex
from .bank_versions import Change, saved_calibration
from .clip_embeddings import as_embeddings, as_is_target, prepare_
from .coreset import greedy_coreset
from .memory_bank_file import MEMORY_BANK_FILE, find_bank_file, read_bank_file, write_bank_file
from .memory_bank_settings import MemoryBankSettings
from .memory_bank_state import STATE, check_state
from .nearest_neighbors import mean_of_finite, nearest, rank_weighted_density
from .target_memory import memmixup, smote
from .threshold import Calibration

__all__ = ["MEMORY_BANK_FILE", "MemoryBank"]

FORMAT_VERSION = 1
# Multiply-adds that take a few seconds on a small CPU: from here on a progress bar shows.
PROGRESS_BAR_WORK = 2e11


@dataclass(eq=False)
class MemoryBank(MemoryBankSettings):
    """Anomaly score = distance to the nearest normal recordings, band by band. Higher = more anomalous.

    Every band has its own memory and its own nearest neighbours (BEAM, arXiv 2603.13749); the band scores are averaged.
    With `x` a query, `y_i` the references of the same band and `c_i` the mean distance from `y_i` to its
    `num_rescaling_neighbors` nearest other references (itself removed by index; all others where there are fewer), the
    band score is the mean of the `num_neighbors` smallest (all where there are fewer)

    - `rescaling=None`: `D(x, y_i)`
    - `"variance_min"` (Matsumoto et al., 2025): `D(x, y_i) - alpha * c_i`; may be negative
    - `"ratio"`, `"difference"` (Wilkinghoff et al., 2025): `D(x, y_i) / c_i`, `D(x, y_i) - c_i`
    - `"lof"`: the local outlier factor (Breunig et al., SIGMOD 2000) with `num_rescaling_neighbors` neighbours, always
      on Euclidean distances; `num_neighbors` has no influence.

    `smote_ratio`, `memmixup_neighbors` and `separate_domains` make two memories, of source and of target clips; the
    band score is the smaller one of the two. They want `domains` in `fit`, `rescaling=None` and `index=None`.

    A bank can live: `partial_fit`, `forget` and `rollback` change the clips and then learn densities, alpha and
    synthetic references anew, so that the bank is always the one that `fit` would make of the clips it holds.

    Args:
        distance: `"cosine"`: `(1 - cos) / 2`, in [0, 1]; `"euclidean"`: `||x - y||`.
        normalize: scale vectors to unit norm first (norms up to 1e-12: to zero). Without it, `"cosine"` wants vectors
            that have unit norm already.
        num_neighbors: neighbours averaged in the score.
        rescaling: see above. Needs at least two references.
        num_rescaling_neighbors: neighbours in `c_i`.
        smote_ratio: above 0, the target memory is filled with SMOTE (Chawla et al., JAIR 2002) up to this share of the
            number of source clips.
        smote_neighbors: nearest target clips that SMOTE interpolates to.
        band_aggregation: `"mean"` or `"max"` over the band scores.
        separate_domains: two memories, nothing synthetic.
        num_target_neighbors: neighbours averaged in the target memory; `None`: as many as `num_neighbors`, 0: the
            source memory alone decides.
        memmixup_neighbors: above 0, the target memory also gets `0.9 t + 0.1 s` for each target clip t and each of this
            many nearest source clips s (MemMixup of GenRep; Saengthong and Shinozaki, 2024).
        rescaling_decay: in [0, 1], `c_i` is the mean distance to all other references, nearest first, with the weights
            `rescaling_decay**k`; `num_rescaling_neighbors` then has no influence. Not for `"lof"`.
        coreset_size: keep at most this many clips, chosen by `greedy_coreset`; with two memories all target clips
            stay and source clips fill the rest. Such a bank is fitted once and does not live.
        coreset_seed: of the coreset's first clip.
        max_clips: keep at most this many clips; the oldest (first given) go.
        max_history: changes that `rollback` can undo; each costs the memory of the clips that it removed.
        index: `"flat"`, `"ivf"` or `"hnsw"`: FAISS proposes the nearest references (see `ApproximateIndex`), and only
            these are measured and rescaled. For big banks. `None` compares with every reference.

    Attributes:
        memory_: `(F, R, D)` float32, the references, normalised if asked; synthetic ones follow the fitted clips.
        squared_norms_: `(F, R)` float32, `||y_i||**2` (exactly 1 or 0 with `normalize`).
        density_: `(F, R)` float32 with `rescaling`: `c_i`, large where the memory is sparse. For `"lof"` the local
            reachability density instead, small where it is sparse.
        alpha_: `(F,)` float32 with `"variance_min"`: `cov(u, v) / var(v)` over the references, `u` the distance to the
            nearest other reference and `v` its `c`; 0 where `var(v) <= 1e-12`; may be negative.
        k_distance_: `(F, R)` float32 with `"lof"`: distance to the last of the `num_rescaling_neighbors`.
        is_target_: `(R,)` bool with two memories: reference of the target memory.
        coreset_: `(num_clips_,)` long with `coreset_size`: which of the clips given to `fit` were kept, ascending.
        dropped_scores_: `(M, F)` float32 with `coreset_size`: band scores of the M clips that were not.
        num_clips_: clips in the memory, oldest first.
        version_: 0 after `fit`, one more with every change, as asked after `rollback`.
        calibration: what a scorer learned beside the memory, its threshold above all; saved along. `None` for a bank
            that no scorer fitted.

    Raises:
        ValueError: a parameter outside its range.
    """

    calibration: Calibration | None = field(default=None, init=False, repr=False)
    memory_: torch.Tensor = field(init=False, repr=False)
    squared_norms_: torch.Tensor = field(init=False, repr=False)
    density_: torch.Tensor = field(init=False, repr=False)
    alpha_: torch.Tensor = field(init=False, repr=False)
    k_distance_: torch.Tensor = field(init=False, repr=False)
    is_target_: torch.Tensor = field(init=False, repr=False)
    coreset_: torch.Tensor = field(init=False, repr=False)
    dropped_scores_: torch.Tensor = field(init=False, repr=False)
    num_clips_: int = field(init=False, repr=False)
    version_: int = field(init=False, repr=False)
    _history: list[Change] = field(default_factory=list, init=False, repr=False)
    # By band; an index is a copy of the memory in another form, made when it is first wanted.
    _indexes: dict[int, ApproximateIndex] = field(default_factory=dict, init=False, repr=False)

    @torch.no_grad()
    def fit(
        self, embeddings: torch.Tensor | np.ndarray, domains: Sequence[str] | np.ndarray | None = None
    ) -> "MemoryBank":
        """Remember normal recordings and replace what was fitted before, its history included.

        Args:
            embeddings: `(N, F, D)`, any float dtype and device; the memory stays on that device.
            domains: `"source"` or `"target"` for each clip; needed and used only with two memories.

        Raises:
            ValueError: wrong shape, empty, NaN/inf, a single clip with `rescaling`, wrong `domains`, too few clips of a
                domain, or no faiss with `index`.
        """
        self._check_parameters()
        embeddings = as_embeddings(embeddings)
        is_target = self._checked_domains(domains, len(embeddings), embeddings.device)
        if self.max_clips:
            embeddings = embeddings[-self.max_clips :]
            is_target = None if is_target is None else is_target[-self.max_clips :]
        self._check_clips(len(embeddings), is_target)
        clips, norms = self._prepared(embeddings)
        if self.coreset_size:
            state, indexes = self._learn_coreset(clips, norms, is_target)
        else:
            state, indexes = self._learn(clips, norms, is_target)
        num_clips = len(state["coreset_"]) if self.coreset_size else len(embeddings)
        self._install(state, indexes, num_clips, version=0, history=[])
        return self

    @torch.no_grad()
    def partial_fit(
        self, embeddings: torch.Tensor | np.ndarray, domains: Sequence[str] | np.ndarray | None = None
    ) -> "MemoryBank":
        """Remember more normal recordings; above `max_clips` the oldest go. Fits a bank that is not fitted yet.

        The threshold in `calibration` is not moved. Args and errors as `fit`; ValueError also for another number of
        bands or channels than fitted, and with `coreset_size`.
        """
        if not hasattr(self, "memory_"):
            return self.fit(embeddings, domains)
        self._check_parameters()
        self._check_lives()
        new = self._checked_queries(embeddings)
        new_is_target = self._checked_domains(domains, len(new), self.memory_.device)
        new_clips, new_norms = self._prepared(new.to(self.memory_.device))
        clips, norms, is_target = self._clips()
        keep = torch.ones(self.num_clips_ + len(new), dtype=torch.bool)
        if self.max_clips:
            keep[: -self.max_clips] = False
        if is_target is not None and new_is_target is not None:
            is_target = torch.cat([is_target, new_is_target])
        self._change(torch.cat([clips, new_clips], dim=1), torch.cat([norms, new_norms], dim=1), is_target, keep)
        return self

    @torch.no_grad()
    def forget(self, clips: Sequence[int] | np.ndarray | torch.Tensor) -> "MemoryBank":
        """Remove clips by their position, 0 (the oldest) to `num_clips_ - 1`.

        Raises:
            ValueError: not fitted, positions out of range, repeated or none, all of them, fewer clips left than the
                settings need, or a bank with `coreset_size`.
        """
        self._check_fitted()
        self._check_parameters()
        self._check_lives()
        positions = np.asarray(clips)
        if positions.ndim != 1 or positions.dtype.kind not in "iu" or len(positions) == 0:
            raise ValueError(f"clips must be a sequence of at least one int, got {clips!r}.")
        if positions.min() < 0 or positions.max() >= self.num_clips_ or len(set(positions.tolist())) < len(positions):
            raise ValueError(f"clips must be different positions in 0..{self.num_clips_ - 1}, got {clips!r}.")
        if len(positions) == self.num_clips_:
            raise ValueError(f"clips must leave at least one clip in the memory, got all {self.num_clips_} of them.")
        keep = torch.ones(self.num_clips_, dtype=torch.bool)
        keep[positions.tolist()] = False
        self._change(*self._clips(), keep)
        return self

    @torch.no_grad()
    def rollback(self, version: int) -> "MemoryBank":
        """The clips, scores and `calibration` of an earlier `version_`; later versions are gone.

        Raises:
            ValueError: not fitted, or a version that is later, or older than `max_history` changes.
        """
        self._check_fitted()
        oldest = self.version_ - len(self._history)
        if not isinstance(version, Integral) or not oldest <= version <= self.version_:
            raise ValueError(f"version must be an int in {oldest}..{self.version_}, got {version!r}.")
        undone = self._history[len(self._history) - (self.version_ - int(version)) :]
        if not undone:
            return self
        state = self._clips()
        for change in reversed(undone):
            state = change.undo(*state)
        learned = self._learn(*state)
        history = self._history[: len(self._history) - len(undone)]
        self._install(*learned, undone[0].num_before, int(version), history)
        self.calibration = undone[0].calibration
        return self

    @torch.no_grad()
    def band_scores(self, embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
        """`(N, F, D)` -> `(N, F)` float32 on the memory's device. Higher = more anomalous.

        Raises:
            ValueError: not fitted, wrong shape, another number of bands or channels than fitted, NaN/inf, or no faiss
                with `index`.
        """
        self._check_fitted()
        queries = self._checked_queries(embeddings)
        num_bands, num_references, dim = self.memory_.shape
        scores = torch.empty(len(queries), num_bands, device=self.memory_.device)
        for band in _progress(num_bands, len(queries) * num_references * dim, "Scoring"):
            rows = queries[:, band].to(self.memory_.device, torch.float32, copy=True)  # (N, D)
            norms = self._prepare_(rows)
            scores[:, band] = self._score_band(band, rows, norms)
        return scores

    def score(self, embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
        """`(N, F, D)` -> `(N,)` float32: aggregated band scores. Higher = more anomalous. Errors as `band_scores`."""
        return self.aggregate_bands(self.band_scores(embeddings))

    @torch.no_grad()
    def self_scores(self) -> torch.Tensor:
        """`(N,)` float32 scores of the fitted clips, each with its own entry (by index) removed from the memory.

        Densities and alpha stay as fitted; so do synthetic references that SMOTE made from the clip (those that
        MemMixup made from it as the target clip are removed too). With `coreset_size`, the clips that were not kept are
        scored as well: N is the number of clips given to `fit`, in their order. Higher = more anomalous.

        With a rescaling they lie a little above the scores of new normal clips, as the density of a reference still
        counts the removed clip: thresholds that are made of them let fewer clips alarm than stated.

        Raises:
            ValueError: not fitted, a memory of a single clip, or no faiss with `index`.
        """
        self._check_fitted()
        if self.num_clips_ < 2:
            raise ValueError("self_scores needs a memory of at least 2 clips, got 1.")
        num_bands, num_references, dim = self.memory_.shape
        scores = torch.empty(self.num_clips_, num_bands, device=self.memory_.device)
        for band in _progress(num_bands, self.num_clips_ * num_references * dim, "Leave-one-out scores"):
            rows, norms = self.memory_[band, : self.num_clips_], self.squared_norms_[band, : self.num_clips_]
            scores[:, band] = self._score_band(band, rows, norms, leave_one_out=True)
        if not scores.isfinite().all():
            raise ValueError("self_scores needs at least 2 source clips where num_target_neighbors=0, got 1.")
        if self.coreset_size:
            kept = scores
            scores = torch.empty(len(kept) + len(self.dropped_scores_), num_bands, device=kept.device)
            dropped = torch.ones(len(scores), dtype=torch.bool, device=kept.device)
            dropped[self.coreset_] = False
            scores[self.coreset_], scores[dropped] = kept, self.dropped_scores_
        return self.aggregate_bands(scores)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `memory_bank.safetensors`, history included; a kill while writing leaves an older file as it was.

        Raises:
            ValueError: not fitted.
            OSError: the directory cannot be written.
        """
        self._check_fitted()
        header = {
            "format_version": FORMAT_VERSION,
            "settings": {name: _plain(getattr(self, name)) for name in _parameter_names()},
            "num_clips": self.num_clips_,
            "calibration": _to_dict(self.calibration),
            "version": self.version_,
            "history": [
                {"num_before": change.num_before, "calibration": _to_dict(change.calibration)}
                for change in self._history
            ],
        }
        tensors = {name: getattr(self, name).cpu() for name in STATE if hasattr(self, name)}
        for position, change in enumerate(self._history):
            tensors |= change.tensors(_history_prefix(position))
        write_bank_file(save_directory, tensors, header)

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
            OSError: there is no such file, or it is truncated, foreign or inconsistent.
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
            OSError: it is truncated, foreign or inconsistent.
        """
        try:
            tensors, header = read_bank_file(path)
            if header["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version must be {FORMAT_VERSION}, got {header['format_version']!r}.")
            bank = cls(**header["settings"])
            bank.calibration = saved_calibration(header)
            bank._restore(tensors, header)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"{path} is not a readable memory bank ({type(error).__name__}: {error}).") from error
        return bank

    def aggregate_bands(self, band_scores: torch.Tensor) -> torch.Tensor:
        """Band scores `(N, F)` -> scores `(N,)`, as `band_aggregation` says."""
        return band_scores.mean(dim=1) if self.band_aggregation == "mean" else band_scores.amax(dim=1)

    def _learn(
        self, clips: torch.Tensor, norms: torch.Tensor, is_target: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], dict[int, ApproximateIndex]]:
        """Everything that follows from prepared clips `(F, N, D)`; the bank stays as it is until all succeeded."""
        num_bands, num_clips, dim = clips.shape
        self._check_clips(num_clips, is_target)
        num_synthetic = self._num_synthetic(is_target)
        state = {"memory_": clips, "squared_norms_": norms}
        if num_synthetic:
            state["memory_"] = torch.cat([clips, clips.new_empty(num_bands, num_synthetic, dim)], dim=1)
            state["squared_norms_"] = torch.cat([norms, norms.new_empty(num_bands, num_synthetic)], dim=1)
        if is_target is not None:
            state["is_target_"] = torch.cat([is_target, is_target.new_ones(num_synthetic)])
        if self.rescaling:
            state["density_"] = norms.new_empty(num_bands, num_clips)
        if self.rescaling == "variance_min":
            state["alpha_"] = norms.new_empty(num_bands)
        if self.rescaling == "lof":
            state["k_distance_"] = norms.new_empty(num_bands, num_clips)
        indexes = {}
        for band in _progress(num_bands, num_clips * num_clips * dim if self.rescaling else 0, "Fitting memory bank"):
            if num_synthetic and is_target is not None:
                targets, sources = clips[band][is_target], clips[band][~is_target]
                synthetic = (
                    smote(targets, num_synthetic, self.smote_neighbors)
                    if self.smote_ratio
                    else memmixup(targets, sources, self.memmixup_neighbors)
                )
                rows = state["memory_"][band, num_clips:].copy_(synthetic)
                state["squared_norms_"][band, num_clips:] = self._prepare_(rows)
            if self.index:
                indexes[band] = ApproximateIndex(clips[band], self._metric, self.index)
            if self.rescaling:
                self._fit_rescaling(band, state, indexes.get(band))
        return state, indexes

    def _learn_coreset(
        self, clips: torch.Tensor, norms: torch.Tensor, is_target: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], dict[int, ApproximateIndex]]:
        """As `_learn`, from the clips of the coreset; the others are scored and let go."""
        num_clips = clips.shape[1]
        is_kept = torch.ones(num_clips, dtype=torch.bool, device=clips.device)
        size = self.coreset_size or num_clips
        if num_clips > size:
            choice = torch.arange(num_clips, device=clips.device)
            if is_target is not None:
                choice = choice[~is_target]
                size -= num_clips - len(choice)
                if size < 1:
                    raise ValueError(
                        f"coreset_size={self.coreset_size} must leave room for a source clip beside the "
                        f"{num_clips - len(choice)} target clips, which all stay."
                    )
            is_kept[choice] = False
            if len(choice):
                is_kept[choice[greedy_coreset(clips[:, choice], norms[:, choice], size, self.coreset_seed)]] = True
        small = replace(self, coreset_size=None)
        state, indexes = small._learn(
            clips[:, is_kept], norms[:, is_kept], None if is_target is None else is_target[is_kept]
        )
        small._install(state, indexes, int(is_kept.sum()), version=0, history=[])
        dropped = clips[:, ~is_kept], norms[:, ~is_kept]
        state["coreset_"] = is_kept.nonzero()[:, 0]
        state["dropped_scores_"] = norms.new_empty(dropped[0].shape[1], len(clips))
        if dropped[0].shape[1]:
            for band, (rows, row_norms) in enumerate(zip(*dropped, strict=True)):
                state["dropped_scores_"][:, band] = small._score_band(band, rows, row_norms)
        return state, indexes

    def _install(
        self,
        state: dict[str, torch.Tensor],
        indexes: dict[int, ApproximateIndex],
        num_clips: int,
        version: int,
        history: list[Change],
    ) -> None:
        for name in STATE:
            self.__dict__.pop(name, None)
        self.__dict__.update(state)
        self._indexes, self.num_clips_, self.version_, self._history = indexes, num_clips, version, history

    def _change(
        self, clips: torch.Tensor, norms: torch.Tensor, is_target: torch.Tensor | None, keep: torch.Tensor
    ) -> None:
        """Go on with the clips `(F, N, D)` where `keep` `(N,)`; the first `num_clips_` are those of the memory."""
        removed = (~keep[: self.num_clips_]).nonzero()[:, 0]
        on_device = removed.to(clips.device)
        change = Change(
            self.num_clips_,
            removed,
            clips[:, on_device],
            norms[:, on_device],
            None if is_target is None else is_target[on_device],
            self.calibration,
        )
        keep = keep.to(clips.device)
        if not keep.all():
            clips, norms = clips[:, keep], norms[:, keep]
            is_target = None if is_target is None else is_target[keep]
        learned = self._learn(clips, norms, is_target)
        history = [*self._history, change][-self.max_history :] if self.max_history else []
        self._install(*learned, clips.shape[1], self.version_ + 1, history)

    def _prepare_(self, rows: torch.Tensor) -> torch.Tensor:
        return prepare_(rows, bool(self.normalize), wants_unit_norm=self.distance == "cosine")

    def _clips(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Prepared clips `(F, N, D)`, squared norms `(F, N)` and domains `(N,)`, nothing synthetic."""
        is_target = self.is_target_[: self.num_clips_] if self._two_memories else None
        return self.memory_[:, : self.num_clips_], self.squared_norms_[:, : self.num_clips_], is_target

    def _prepared(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings `(N, F, D)` -> `(F, N, D)` float32 as the memory holds them, and squared norms `(F, N)`."""
        num_clips, num_bands, dim = embeddings.shape
        clips = torch.empty(num_bands, num_clips, dim, device=embeddings.device)
        norms = torch.empty(num_bands, num_clips, device=embeddings.device)
        for band in range(num_bands):
            norms[band] = self._prepare_(clips[band].copy_(embeddings[:, band]))
        return clips, norms

    def _fit_rescaling(self, band: int, state: dict[str, torch.Tensor], index: ApproximateIndex | None) -> None:
        memory, norms = state["memory_"][band], state["squared_norms_"][band]
        # With rank weights only the nearest one is left to find, for alpha.
        count = 1 if self.rescaling_decay is not None else min(self.num_rescaling_neighbors, len(memory) - 1)
        distances, neighbors = nearest(
            memory, norms, memory, norms, count, self._metric, leave_one_out=True, index=index
        )  # (R, k)
        if self.rescaling == "lof":
            state["k_distance_"][band] = distances[:, -1]
            state["density_"][band] = _reachability_density(distances, neighbors, state["k_distance_"][band])
            return
        if self.rescaling_decay is None:
            density = mean_of_finite(distances)  # (R,)
        else:
            density = rank_weighted_density(memory, norms, self._metric, float(self.rescaling_decay))
        state["density_"][band] = density
        if self.rescaling == "variance_min":
            first = distances[:, 0].double()
            neighbor_density = density[neighbors[:, 0]].double()
            centered = neighbor_density - neighbor_density.mean()
            variance = centered.square().mean()
            covariance = (centered * (first - first.mean())).mean()
            state["alpha_"][band] = torch.where(variance <= 1e-12, 0.0, covariance / variance)

    def _score_band(
        self, band: int, rows: torch.Tensor, norms: torch.Tensor, leave_one_out: bool = False
    ) -> torch.Tensor:
        memory = (self.memory_[band], self.squared_norms_[band])
        index = self._index_of(band)
        if self.rescaling == "lof":
            count = min(self.num_rescaling_neighbors, self.num_clips_ - 1)
            distances, neighbors = nearest(
                rows, norms, *memory, count, self._metric, leave_one_out, index=index
            )  # (N, k)
            density = _reachability_density(distances, neighbors, self.k_distance_[band])
            return self.density_[band][neighbors].mean(dim=1) / density
        subtract = divide = None
        if self.rescaling == "variance_min":
            subtract = self.alpha_[band] * self.density_[band]
        elif self.rescaling == "difference":
            subtract = self.density_[band]
        elif self.rescaling == "ratio":
            # Duplicates in the memory have density 0; the floor keeps an exact copy of one at score 0, not 0 / 0.
            divide = self.density_[band].clamp(min=1e-12)
        settings: dict[str, Any] = {"leave_one_out": leave_one_out, "subtract": subtract, "divide": divide}
        if not self._two_memories:
            found, _ = nearest(rows, norms, *memory, self.num_neighbors, self._metric, index=index, **settings)
            return mean_of_finite(found)
        settings["owner"] = self._owner() if self.memmixup_neighbors else None
        target_neighbors = self.num_neighbors if self.num_target_neighbors is None else self.num_target_neighbors
        scores = [
            mean_of_finite(nearest(rows, norms, *memory, count, self._metric, hidden=hidden, **settings)[0])
            for hidden, count in ((self.is_target_, self.num_neighbors), (~self.is_target_, target_neighbors))
            if count
        ]
        return torch.stack(scores).amin(dim=0)

    def _owner(self) -> torch.Tensor:
        """`(R,)`: the clip itself, or the target clip that MemMixup made the reference from."""
        clips = torch.arange(self.num_clips_, device=self.memory_.device)
        targets = clips[self.is_target_[: self.num_clips_]]
        return torch.cat([clips, targets.repeat_interleave((len(self.is_target_) - len(clips)) // len(targets))])

    def _index_of(self, band: int) -> ApproximateIndex | None:
        if not self.index:
            return None
        if band not in self._indexes:
            self._indexes[band] = ApproximateIndex(self.memory_[band], self._metric, self.index)
        return self._indexes[band]

    @property
    def _metric(self) -> str:
        return "euclidean" if self.rescaling == "lof" else self.distance

    def _checked_domains(
        self, domains: Sequence[str] | np.ndarray | None, num_clips: int, device: torch.device
    ) -> torch.Tensor | None:
        """Checked wherever given, `None` unless there are two memories."""
        is_target = as_is_target(domains, num_clips)
        if not self._two_memories:
            return None
        if is_target is None:
            names = ("smote_ratio", "memmixup_neighbors", "separate_domains")
            setting = next(f"{name}={getattr(self, name)}" for name in names if getattr(self, name))
            raise ValueError(f"{setting} needs domains ('source' or 'target' per clip), got None.")
        return is_target.to(device)

    def _checked_queries(self, embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
        queries = as_embeddings(embeddings)
        num_bands, _, dim = self.memory_.shape
        if queries.shape[1:] != (num_bands, dim):
            raise ValueError(
                f"embeddings must have {num_bands} bands of {dim} channels like the fitted ones, "
                f"got shape {tuple(queries.shape)}."
            )
        return queries

    def _check_lives(self) -> None:
        if self.coreset_size:
            raise ValueError(
                f"partial_fit and forget want coreset_size=None, got {self.coreset_size}: clips outside the coreset "
                "are gone. Fit again, or cap the memory with max_clips."
            )

    def _restore(self, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        num_clips, saved_changes = header["num_clips"], header.get("history", [])
        parts = [
            {
                name.removeprefix(_history_prefix(position)): tensors.pop(name)
                for name in [name for name in tensors if name.startswith(_history_prefix(position))]
            }
            for position in range(len(saved_changes))
        ]
        check_state(self, tensors, num_clips)
        num_bands, _, dim = tensors["memory_"].shape
        history: list[Change] = []
        num_after = num_clips
        for change, named in reversed(list(zip(saved_changes, parts, strict=True))):
            history.insert(0, Change.restore(change, named, num_after, (num_bands, dim, self._two_memories)))
            num_after = history[0].num_before
        version = header.get("version", 0)
        if not isinstance(version, int) or version < len(history):
            raise ValueError(f"version must be an int of at least {len(history)}, got {version!r}.")
        self._install(tensors, {}, num_clips, version, history)

    def _check_fitted(self) -> None:
        if not hasattr(self, "memory_"):
            raise ValueError(
                "This MemoryBank is not fitted yet. Call 'fit' with embeddings of normal recordings first."
            )


def _reachability_density(distances: torch.Tensor, neighbors: torch.Tensor, k_distance: torch.Tensor) -> torch.Tensor:
    """Inverse mean reachability distance (N,) from neighbour distances and indices (N, k); 1e-10 as scikit-learn."""
    return 1.0 / (torch.maximum(distances, k_distance[neighbors]).mean(dim=1) + 1e-10)


def _progress(num_bands: int, work_per_band: int, description: str) -> Iterable[int]:
    return logging.tqdm(range(num_bands), desc=description, disable=num_bands * work_per_band < PROGRESS_BAR_WORK)


def _parameter_names() -> list[str]:
    return [parameter.name for parameter in fields(MemoryBank) if parameter.init]


def _history_prefix(position: int) -> str:
    return f"history.{position}."


def _to_dict(calibration: Calibration | None) -> dict[str, Any] | None:
    return None if calibration is None else calibration.to_dict()


def _plain(value: Any) -> Any:
    """Numpy scalars, legal as parameters, as the Python numbers that JSON knows."""
    return value.item() if isinstance(value, np.generic) else value
