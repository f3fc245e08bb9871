"""Band-wise nearest-neighbour memory of normal recordings.

Letters: N query clips, R reference clips in the memory, F frequency bands, D channels, k candidates.
"""

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging
from transformers.utils.hub import cached_file

MEMORY_BANK_FILE = "memory_bank.safetensors"
FORMAT_VERSION = 1
# Below this norm a vector has no direction: it becomes zero and has cosine 0 with everything, itself included.
SMALLEST_NORM = 1e-12
# 512 rows against 10,000 references are a 20 MB buffer, and the matmul already runs at full speed.
CHUNK_ROWS, CHUNK_ELEMENTS = 512, 512 * 10_000
# Distances from a float32 matmul only rank the references; two more than asked are kept and measured exactly.
SPARE_CANDIDATES = 2
# Multiply-adds that take a few seconds on a small CPU: from here on a progress bar shows.
PROGRESS_BAR_WORK = 2e11

Distance = Literal["cosine", "euclidean"]
Rescaling = Literal["variance_min", "ratio", "difference", "lof"]
CHOICES: dict[str, tuple[str | None, ...]] = {
    "distance": ("cosine", "euclidean"),
    "rescaling": (None, "variance_min", "ratio", "difference", "lof"),
    "band_aggregation": ("mean", "max"),
}


@dataclass(eq=False)
class MemoryBank:
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

    Args:
        distance: `"cosine"`: `(1 - cos) / 2`, in [0, 1]; `"euclidean"`: `||x - y||`.
        normalize: scale vectors to unit norm first (norms up to 1e-12: to zero). Without it, `"cosine"` wants vectors
            that have unit norm already.
        num_neighbors: neighbours averaged in the score.
        rescaling: see above. Needs at least two references.
        num_rescaling_neighbors: neighbours in `c_i`.
        smote_ratio: above 0, source and target clips form two memories, the target memory is filled with SMOTE (Chawla
            et al., JAIR 2002) up to this share of the number of source clips, and the band score is the smaller one of
            the two. Wants `domains` in `fit`, and `rescaling=None`.
        smote_neighbors: nearest target clips that SMOTE interpolates to.
        band_aggregation: `"mean"` or `"max"` over the band scores.

    Attributes:
        memory_: `(F, R, D)` float32, the references, normalised if asked; synthetic ones follow the fitted clips.
        squared_norms_: `(F, R)` float32, `||y_i||**2` (exactly 1 or 0 with `normalize`).
        density_: `(F, R)` float32 with `rescaling`: `c_i`, large where the memory is sparse. For `"lof"` the local
            reachability density instead, small where it is sparse.
        alpha_: `(F,)` float32 with `"variance_min"`: `cov(u, v) / var(v)` over the references, `u` the distance to the
            nearest other reference and `v` its `c`; 0 where `var(v) <= 1e-12`; may be negative.
        k_distance_: `(F, R)` float32 with `"lof"`: distance to the last of the `num_rescaling_neighbors`.
        is_target_: `(R,)` bool with `smote_ratio`: reference of the target memory.
        num_clips_: clips given to `fit`.
        metadata: free JSON-able dict with string keys, saved along (say, the fingerprint of the model).

    Raises:
        ValueError: a parameter outside its range.
    """

    distance: Distance = "cosine"
    normalize: bool = True
    num_neighbors: int = 1
    rescaling: Rescaling | None = None
    num_rescaling_neighbors: int = 4
    smote_ratio: float = 0.0
    smote_neighbors: int = 2
    band_aggregation: Literal["mean", "max"] = "mean"
    metadata: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    memory_: torch.Tensor = field(init=False, repr=False)
    squared_norms_: torch.Tensor = field(init=False, repr=False)
    density_: torch.Tensor = field(init=False, repr=False)
    alpha_: torch.Tensor = field(init=False, repr=False)
    k_distance_: torch.Tensor = field(init=False, repr=False)
    is_target_: torch.Tensor = field(init=False, repr=False)
    num_clips_: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_parameters()

    @torch.no_grad()
    def fit(
        self, embeddings: torch.Tensor | np.ndarray, domains: Sequence[str] | np.ndarray | None = None
    ) -> "MemoryBank":
        """Remember normal recordings and replace what was fitted before.

        Args:
            embeddings: `(N, F, D)`, any float dtype and device; the memory stays on that device.
            domains: `"source"` or `"target"` for each clip; needed and used only with `smote_ratio`.

        Raises:
            ValueError: wrong shape, empty, NaN/inf, a single clip with `rescaling`, wrong `domains`, or too few target
                clips for SMOTE.
        """
        self._check_parameters()
        embeddings = _as_embeddings(embeddings)
        is_target = _as_is_target(domains, len(embeddings))
        num_clips, num_bands, dim = embeddings.shape
        num_synthetic = self._num_synthetic(is_target)
        if self.rescaling and num_clips < 2:
            raise ValueError(f"rescaling={self.rescaling!r} needs at least 2 clips in embeddings, got {num_clips}.")

        state: dict[str, torch.Tensor] = {
            "memory_": torch.empty(num_bands, num_clips + num_synthetic, dim, device=embeddings.device),
            "squared_norms_": torch.empty(num_bands, num_clips + num_synthetic, device=embeddings.device),
        }
        if self.rescaling:
            state["density_"] = torch.empty(num_bands, num_clips, device=embeddings.device)
        if self.rescaling == "variance_min":
            state["alpha_"] = torch.empty(num_bands, device=embeddings.device)
        if self.rescaling == "lof":
            state["k_distance_"] = torch.empty(num_bands, num_clips, device=embeddings.device)
        if is_target is not None and num_synthetic:
            state["is_target_"] = torch.cat([is_target, is_target.new_ones(num_synthetic)]).to(embeddings.device)

        for band in _progress(num_bands, num_clips * num_clips * dim if self.rescaling else 0, "Fitting memory bank"):
            memory, norms = state["memory_"][band], state["squared_norms_"][band]
            norms[:num_clips] = self._prepare_(memory[:num_clips].copy_(embeddings[:, band]))
            if num_synthetic:
                targets = memory[:num_clips][state["is_target_"][:num_clips]]
                synthetic = memory[num_clips:].copy_(_smote(targets, num_synthetic, self.smote_neighbors))
                norms[num_clips:] = self._prepare_(synthetic)
            if self.rescaling:
                self._fit_rescaling(band, state)
        for name in ("density_", "alpha_", "k_distance_", "is_target_"):
            self.__dict__.pop(name, None)
        self.__dict__.update(state)
        self.num_clips_ = num_clips
        return self

    @torch.no_grad()
    def band_scores(self, embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
        """`(N, F, D)` -> `(N, F)` float32 on the memory's device. Higher = more anomalous.

        Raises:
            ValueError: not fitted, wrong shape, another number of bands or channels than fitted, NaN/inf.
        """
        self._check_fitted()
        queries = _as_embeddings(embeddings)
        num_bands, num_references, dim = self.memory_.shape
        if queries.shape[1:] != (num_bands, dim):
            raise ValueError(
                f"embeddings must have {num_bands} bands of {dim} channels like the fitted ones, "
                f"got shape {tuple(queries.shape)}."
            )
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

        Densities and alpha stay as fitted; so do synthetic references that SMOTE made from the clip. Higher = more
        anomalous.

        Raises:
            ValueError: not fitted, or fitted with a single clip.
        """
        self._check_fitted()
        if self.num_clips_ < 2:
            raise ValueError("self_scores needs a memory of at least 2 clips, got 1.")
        num_bands, num_references, dim = self.memory_.shape
        scores = torch.empty(self.num_clips_, num_bands, device=self.memory_.device)
        for band in _progress(num_bands, self.num_clips_ * num_references * dim, "Leave-one-out scores"):
            rows, norms = self.memory_[band, : self.num_clips_], self.squared_norms_[band, : self.num_clips_]
            scores[:, band] = self._score_band(band, rows, norms, leave_one_out=True)
        return self.aggregate_bands(scores)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `memory_bank.safetensors`; a kill while writing leaves an older file as it was.

        Raises:
            ValueError: not fitted, or `metadata` is not a JSON-able dict with string keys.
            OSError: the directory cannot be written.
        """
        self._check_fitted()
        header = {
            "format_version": FORMAT_VERSION,
            "settings": {name: _plain(getattr(self, name)) for name in _parameter_names()},
            "num_clips": self.num_clips_,
            "metadata": _json_able(self.metadata),
        }
        tensors = {name: getattr(self, name).cpu() for name in _state_shapes(self, *self.memory_.shape)}
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        # Beside the target, because a rename is atomic only within one file system; no .safetensors suffix, so that
        # what a kill leaves behind is never taken for a checkpoint.
        temporary = directory / f".{MEMORY_BANK_FILE}.{uuid.uuid4().hex}.tmp"
        try:
            save_file(tensors, temporary, metadata={"format": "pt", "memory_bank": json.dumps(header)})
            os.replace(temporary, directory / MEMORY_BANK_FILE)
        except SafetensorError as error:
            raise OSError(f"Could not write {directory / MEMORY_BANK_FILE}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

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
        path = cached_file(
            pretrained_model_name_or_path,
            MEMORY_BANK_FILE,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False,
        )
        if path is None:
            raise OSError(
                f"{pretrained_model_name_or_path} holds no {MEMORY_BANK_FILE}: no fitted memory was saved there."
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["memory_bank"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if header["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format_version must be {FORMAT_VERSION}, got {header['format_version']!r}.")
            bank = cls(**header["settings"])
            bank.metadata = dict(header["metadata"])
            bank._restore(tensors, header["num_clips"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise OSError(f"{path} is not a readable memory bank ({type(error).__name__}: {error}).") from error
        return bank

    def _fit_rescaling(self, band: int, state: dict[str, torch.Tensor]) -> None:
        memory, norms = state["memory_"][band], state["squared_norms_"][band]
        count = min(self.num_rescaling_neighbors, len(memory) - 1)
        distances, nearest = _nearest(memory, norms, memory, norms, count, self._metric, leave_one_out=True)  # (R, k)
        if self.rescaling == "lof":
            state["k_distance_"][band] = distances[:, -1]
            state["density_"][band] = _reachability_density(distances, nearest, state["k_distance_"][band])
            return
        density = distances.mean(dim=1)  # (R,)
        state["density_"][band] = density
        if self.rescaling == "variance_min":
            first = distances[:, 0].double()
            neighbor_density = density[nearest[:, 0]].double()
            centered = neighbor_density - neighbor_density.mean()
            variance = centered.square().mean()
            covariance = (centered * (first - first.mean())).mean()
            state["alpha_"][band] = torch.where(variance <= 1e-12, 0.0, covariance / variance)

    def _score_band(
        self, band: int, rows: torch.Tensor, norms: torch.Tensor, leave_one_out: bool = False
    ) -> torch.Tensor:
        memory = (self.memory_[band], self.squared_norms_[band])
        if self.rescaling == "lof":
            count = min(self.num_rescaling_neighbors, self.num_clips_ - 1)
            distances, nearest = _nearest(rows, norms, *memory, count, self._metric, leave_one_out)  # (N, k)
            density = _reachability_density(distances, nearest, self.k_distance_[band])
            return self.density_[band][nearest].mean(dim=1) / density
        subtract = divide = None
        if self.rescaling == "variance_min":
            subtract = self.alpha_[band] * self.density_[band]
        elif self.rescaling == "difference":
            subtract = self.density_[band]
        elif self.rescaling == "ratio":
            # Duplicates in the memory have density 0; the floor keeps an exact copy of one at score 0, not 0 / 0.
            divide = self.density_[band].clamp(min=1e-12)
        hidden_columns = [self.is_target_, ~self.is_target_] if self.smote_ratio else [None]
        scores = [
            _mean_of_finite(
                _nearest(
                    rows, norms, *memory, self.num_neighbors, self._metric, leave_one_out, subtract, divide, hidden
                )[0]
            )
            for hidden in hidden_columns
        ]
        return torch.stack(scores).amin(dim=0)

    def aggregate_bands(self, band_scores: torch.Tensor) -> torch.Tensor:
        """Band scores `(N, F)` -> scores `(N,)`, as `band_aggregation` says."""
        return band_scores.mean(dim=1) if self.band_aggregation == "mean" else band_scores.amax(dim=1)

    @property
    def _metric(self) -> str:
        return "euclidean" if self.rescaling == "lof" else self.distance

    def _prepare_(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalise float32 `rows` of shape (M, D) in place, if asked, and return their squared norms (M,)."""
        squared_norms = []
        for part in rows.split(CHUNK_ROWS):
            # In float64, because squares of very small or large float32 numbers leave float32's range.
            norms = torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)
            has_direction = norms > SMALLEST_NORM
            if self.normalize:
                part.div_(norms[:, None]).masked_fill_(~has_direction[:, None], 0.0)
                squared_norms.append(has_direction.float())
                continue
            if self.distance == "cosine" and ((norms - 1.0).abs() > 1e-2)[has_direction].any():
                worst = float(norms[(norms - 1.0).abs().argmax()])
                raise ValueError(
                    "normalize=False with distance='cosine' wants embeddings of unit norm in every band, "
                    f"got a vector of norm {worst:.6g}."
                )
            squared_norms.append(norms.square().float())
        return torch.cat(squared_norms)

    def _num_synthetic(self, is_target: torch.Tensor | None) -> int:
        if not self.smote_ratio:
            return 0
        if is_target is None:
            raise ValueError(f"smote_ratio={self.smote_ratio} needs domains ('source' or 'target' per clip), got None.")
        num_target = int(is_target.sum())
        num_source = len(is_target) - num_target
        if num_target <= self.smote_neighbors:
            raise ValueError(
                f"smote_neighbors={self.smote_neighbors} needs at least {self.smote_neighbors + 1} clips of the target "
                f"domain, got {num_target}."
            )
        num_synthetic = int(num_source * self.smote_ratio - num_target)
        if num_synthetic <= 0:
            raise ValueError(
                f"smote_ratio={self.smote_ratio} must ask for more target clips than there are, "
                f"got {num_target} target and {num_source} source clips."
            )
        return num_synthetic

    def _restore(self, tensors: dict[str, torch.Tensor], num_clips: int) -> None:
        num_bands, num_references, dim = tensors["memory_"].shape
        expected = _state_shapes(self, num_bands, num_references, dim)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"tensors must have the shapes {expected}, got {found}.")
        if not 1 <= num_clips <= num_references or (num_clips < num_references and not self.smote_ratio):
            raise ValueError(f"num_clips must fit the {num_references} references, got {num_clips!r}.")
        for name, tensor in tensors.items():
            wanted = torch.bool if name == "is_target_" else torch.float32
            if tensor.dtype != wanted:
                raise ValueError(f"{name} must be {wanted}, got {tensor.dtype}.")
            setattr(self, name, tensor)
        self.num_clips_ = num_clips

    def _check_fitted(self) -> None:
        if not hasattr(self, "memory_"):
            raise ValueError(
                "This MemoryBank is not fitted yet. Call 'fit' with embeddings of normal recordings first."
            )

    def _check_parameters(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        if not isinstance(self.normalize, (bool, np.bool_)):
            raise ValueError(f"normalize must be True or False, got {self.normalize!r}.")
        for name in ("num_neighbors", "num_rescaling_neighbors", "smote_neighbors"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}.")
        ratio = self.smote_ratio
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0.0 <= ratio <= 1.0:
            raise ValueError(f"smote_ratio must be a number in [0, 1], got {ratio!r}.")
        if ratio and self.rescaling:
            raise ValueError(
                f"smote_ratio above 0 must be used with rescaling=None, got {ratio!r} and {self.rescaling!r}: "
                "synthetic clips would decide the densities."
            )


def _nearest(
    queries: torch.Tensor,
    query_norms: torch.Tensor,
    memory: torch.Tensor,
    memory_norms: torch.Tensor,
    count: int,
    metric: str,
    leave_one_out: bool = False,
    subtract: torch.Tensor | None = None,
    divide: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` smallest rescaled distances, ascending, and their references (first index wins a tie).

    `queries` (N, D) and `memory` (R, D) come with squared norms (N,) and (R,); `subtract` and `divide` (R,) rescale;
    references where `hidden` (R,) is True, and with `leave_one_out` reference n for query n, are infinitely far.
    Gives (N, k) and (N, k). Extra memory is one chunk of rows times R.
    """
    num_queries, num_references = len(queries), len(memory)
    count = min(count, num_references)
    num_candidates = min(count + SPARE_CANDIDATES, num_references)
    chunk_rows = max(1, min(num_queries, CHUNK_ROWS, CHUNK_ELEMENTS // num_references))
    buffer = torch.empty(chunk_rows, num_references, device=memory.device)
    half = torch.full((1,), 0.5, device=memory.device)
    best = torch.empty(num_queries, count, device=memory.device)
    best_index = torch.empty(num_queries, count, dtype=torch.long, device=memory.device)
    for start in range(0, num_queries, chunk_rows):
        rows, norms = queries[start : start + chunk_rows], query_norms[start : start + chunk_rows, None]
        ranking = buffer[: len(rows)]  # (C, R)
        if metric == "cosine":
            torch.addmm(half, rows, memory.T, alpha=-0.5, out=ranking)
        else:
            torch.addmm(memory_norms, rows, memory.T, alpha=-2.0, out=ranking)
            ranking.add_(norms).clamp_(min=0.0).sqrt_()
        if divide is not None:
            # What the matmul cannot tell from a copy ranks as a copy; a tiny divisor would blow the rounding noise up.
            resolution = torch.full_like(norms, 5e-7) if metric == "cosine" else 1e-3 * norms.sqrt()
            ranking.masked_fill_(ranking < resolution, 0.0)
        _rescale_(ranking, subtract, divide)
        if hidden is not None:
            ranking.masked_fill_(hidden, torch.inf)
        if leave_one_out:
            ranking.diagonal(start).fill_(torch.inf)
        candidates = ranking.topk(num_candidates, dim=1, largest=False).indices  # (C, k)
        # topk breaks ties anyhow, argmin by the first index (a zero vector is equally far from all); a spare gives way.
        first = ranking.argmin(dim=1)
        candidates[:, -1] = torch.where((candidates == first[:, None]).any(dim=1), candidates[:, -1], first)
        # Ordered by index first: the stable sort by distance below then lets the first index win a tie.
        candidates = candidates.sort(dim=1).values
        reachable = ranking.gather(1, candidates).isfinite()

        # The matmul loses the small differences of near duplicates; the few candidates are measured by subtraction.
        squared = torch.stack(
            [(rows - memory[column]).square_().sum(dim=1) for column in candidates.unbind(dim=1)], dim=1
        )  # (C, k)
        if metric == "cosine":
            # (1 - x.y) / 2 = (||x - y||^2 + 2 - ||x||^2 - ||y||^2) / 4, which is 1/2 beside a zero vector.
            distances = (0.25 * (squared + (1.0 - norms) + (1.0 - memory_norms[candidates]))).clamp_(0.0, 1.0)
        else:
            distances = squared.sqrt_()
        _rescale_(distances, *(row if row is None else row[candidates] for row in (subtract, divide)))
        distances.masked_fill_(~reachable, torch.inf)
        distances, order = distances.sort(dim=1, stable=True)
        best[start : start + len(rows)] = distances[:, :count]
        best_index[start : start + len(rows)] = candidates.gather(1, order)[:, :count]
    return best, best_index


def _rescale_(distances: torch.Tensor, subtract: torch.Tensor | None, divide: torch.Tensor | None) -> None:
    if subtract is not None:
        distances.sub_(subtract)
    if divide is not None:
        distances.div_(divide)


def _mean_of_finite(distances: torch.Tensor) -> torch.Tensor:
    """(N, k) -> (N,); infinite (removed) entries do not count, and a row of nothing else stays infinite."""
    finite = distances.isfinite()
    mean = distances.where(finite, 0.0).sum(dim=1) / finite.sum(dim=1)
    return mean.where(finite.any(dim=1), torch.inf)


def _reachability_density(distances: torch.Tensor, nearest: torch.Tensor, k_distance: torch.Tensor) -> torch.Tensor:
    """Inverse mean reachability distance (N,) from neighbour distances and indices (N, k); 1e-10 as scikit-learn."""
    return 1.0 / (torch.maximum(distances, k_distance[nearest]).mean(dim=1) + 1e-10)


def _smote(targets: torch.Tensor, num_synthetic: int, num_neighbors: int) -> torch.Tensor:
    """Points between target clips (M, D) and their nearest other target clips, (num_synthetic, D)."""
    norms = targets.square().sum(dim=1)
    _, nearest = _nearest(targets, norms, targets, norms, num_neighbors, "euclidean", leave_one_out=True)  # (M, k)
    # The published memories were drawn with numpy's legacy generator, the same seed in every band.
    random = np.random.RandomState(0)
    drawn = torch.from_numpy(random.randint(0, nearest.numel(), num_synthetic)).to(targets.device)
    step = torch.from_numpy(random.uniform(size=num_synthetic)[:, None]).to(targets.device)
    base = targets[drawn // num_neighbors].double()
    return base + step * (targets[nearest.flatten()[drawn]].double() - base)


def _as_embeddings(embeddings: torch.Tensor | np.ndarray) -> torch.Tensor:
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


def _as_is_target(domains: Sequence[str] | np.ndarray | None, num_clips: int) -> torch.Tensor | None:
    if domains is None:
        return None
    if isinstance(domains, str) or len(domains) != num_clips:
        got = repr(domains) if isinstance(domains, str) else f"{len(domains)} entries"
        raise ValueError(f"domains must have one entry for each of the {num_clips} clips, got {got}.")
    for clip, domain in enumerate(domains):
        if domain not in ("source", "target"):
            raise ValueError(f"domains must hold 'source' or 'target', got {domain!r} for clip {clip}.")
    return torch.tensor([domain == "target" for domain in domains])


def _progress(num_bands: int, work_per_band: int, description: str) -> Iterable[int]:
    return logging.tqdm(range(num_bands), desc=description, disable=num_bands * work_per_band < PROGRESS_BAR_WORK)


def _parameter_names() -> list[str]:
    return [parameter.name for parameter in fields(MemoryBank) if parameter.init]


def _state_shapes(bank: MemoryBank, num_bands: int, num_references: int, dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "memory_": (num_bands, num_references, dim),
        "squared_norms_": (num_bands, num_references),
    }
    if bank.rescaling:
        shapes["density_"] = (num_bands, num_references)
    if bank.rescaling == "variance_min":
        shapes["alpha_"] = (num_bands,)
    if bank.rescaling == "lof":
        shapes["k_distance_"] = (num_bands, num_references)
    if bank.smote_ratio:
        shapes["is_target_"] = (num_references,)
    return shapes


def _plain(value: Any) -> Any:
    """Numpy scalars, legal as parameters, as the Python numbers that JSON knows."""
    return value.item() if isinstance(value, np.generic) else value


def _json_able(metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise ValueError(f"metadata must be a dict with string keys, got {metadata!r}.")
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must hold only what JSON knows ({error}), got {metadata!r}.") from error
    return metadata
