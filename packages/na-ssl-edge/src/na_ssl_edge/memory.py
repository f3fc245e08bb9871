"""The memory of normal recordings in numpy: band vectors of a recording to the scores of its bands.

This is the scoring half of `MemoryBank` of na_ssl_hf, with equal scores; learning stays there. The formulas of the
rescalings and their papers are in the docstring of that class.

Letters: N queries, R references, F frequency bands, D channels, k neighbours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

# These numbers, and the reasons for them, are those of MemoryBank.
SMALLEST_NORM = 1e-12
NORM_TOLERANCE = 1e-2
SMALLEST_DENSITY = 1e-12
SMALLEST_REACHABILITY = 1e-10
SPARE_CANDIDATES = 2
LARGEST_FLOAT = float(np.finfo(np.float32).max)

NEAREST = "nearest"
BACKENDS = (NEAREST, "two_domains", "mahalanobis", "pca")
RESCALINGS = (None, "variance_min", "ratio", "difference", "lof")
# The tensors that each setting needs, besides the references and their norms.
OF_RESCALING = {
    None: (),
    "variance_min": ("density_", "alpha_"),
    "ratio": ("density_",),
    "difference": ("density_",),
    "lof": ("density_", "k_distance_"),
}
OF_BACKEND = {
    NEAREST: (),
    "two_domains": ("is_target_", "domain_medians_"),
    "mahalanobis": ("center_", "whitening_"),
    "pca": ("center_", "residual_map_"),
}


@dataclass(frozen=True, eq=False)
class References:
    """The references of one band, and what decides how far away each of them is.

    Attributes:
        vectors: `(R, D)` float32.
        squared_norms: `(R,)` float32.
        metric: "cosine" stands for `(1 - x.y) / 2`, "euclidean" for `||x - y||`.
        hidden: `(R,)` bool, the references that are infinitely far from every query.
        subtract, divide: `(R,)` float32, what is taken off the distances to each reference, or divides them.
    """

    vectors: np.ndarray
    squared_norms: np.ndarray
    metric: str
    hidden: np.ndarray | None = None
    subtract: np.ndarray | None = None
    divide: np.ndarray | None = None


class Memory:
    """The references of a fitted `MemoryBank`, which score band vectors. A higher score is more anomalous.

    Args:
        settings: the parameters of the `MemoryBank`, by name.
        tensors: its fitted tensors, by the names of its attributes.

    Attributes:
        num_bands, num_channels: F and D.

    Raises:
        ValueError: a setting is unknown, or a tensor is missing or of a wrong shape.
    """

    def __init__(self, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]):
        self._settings, self._tensors = dict(settings), dict(tensors)
        backend = self._setting("backend")
        self._backends = tuple(backend) if isinstance(backend, list | tuple) else (backend,)
        self._check()
        self.num_bands, self._num_references, self.num_channels = self._tensors["memory_"].shape

    def band_scores(self, vectors: np.ndarray) -> np.ndarray:
        """Score band vectors `(N, F, D)` in each band, `(N, F)` float32.

        Raises:
            ValueError: the vectors have other bands or channels than the memory, or are not finite.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 3 or vectors.shape[1:] != (self.num_bands, self.num_channels):
            raise ValueError(
                f"`vectors` must have {self.num_bands} bands of {self.num_channels} channels like the memory, got "
                f"shape {vectors.shape}."
            )
        if not np.isfinite(vectors).all():
            raise ValueError("`vectors` must be finite, got NaN or infinite values.")
        return np.stack([self._score_band(band, vectors[:, band]) for band in range(self.num_bands)], axis=1)

    def aggregate_bands(self, band_scores: np.ndarray) -> np.ndarray:
        """Turn band scores `(N, F)` into scores `(N,)`, by the mean or the maximum, as the memory says."""
        is_mean = self._setting("band_aggregation") == "mean"
        return band_scores.mean(axis=1) if is_mean else band_scores.max(axis=1)

    def _score_band(self, band: int, rows: np.ndarray) -> np.ndarray:
        rows, norms = self._prepared(rows)
        scores = np.stack([self._backend_scores(name, band, rows, norms) for name in self._backends])  # (B, N)
        if len(scores) == 1:
            return scores[0]
        means, spreads = (self._tensors[name][:, band, None] for name in ("score_means_", "score_spreads_"))
        standardised = (scores.astype(np.float64) - means) / spreads
        is_minimum = self._setting("backend_fusion") == "minimum"
        return finite_float32(standardised.min(axis=0) if is_minimum else standardised.mean(axis=0))

    def _backend_scores(self, name: str, band: int, rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
        if name == NEAREST:
            return self._nearest_scores(band, rows, norms)
        if name == "two_domains":
            return self._two_domains(band, rows, norms)
        linear_map = self._tensors["whitening_" if name == "mahalanobis" else "residual_map_"][band]
        centred = rows.astype(np.float64) - self._tensors["center_"][band]
        return finite_float32(np.linalg.norm(centred @ linear_map.astype(np.float64).T, axis=1))

    def _two_domains(self, band: int, rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
        clips, num_clips = self._references(band), self._settings["num_clips"]
        is_target = self._tensors["is_target_"][:num_clips]
        scores = []
        for chosen, median in zip((~is_target, is_target), self._tensors["domain_medians_"][band], strict=True):
            domain = replace(
                clips,
                vectors=clips.vectors[:num_clips][chosen],
                squared_norms=clips.squared_norms[:num_clips][chosen],
            )
            distances = nearest(rows, norms, domain, self._setting("num_neighbors"))[0]
            scores.append(distances.mean(axis=1) / max(np.float32(median), np.float32(SMALLEST_DENSITY)))
        return np.minimum(*scores)

    def _nearest_scores(self, band: int, rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
        rescaling, references = self._setting("rescaling"), self._references(band)
        if rescaling == "lof":
            return self._local_outlier_factor(band, rows, norms, references)
        if rescaling is not None:
            density = self._tensors["density_"][band]
            if rescaling == "ratio":
                references = replace(references, divide=np.maximum(density, np.float32(SMALLEST_DENSITY)))
            else:
                share = self._tensors["alpha_"][band] if rescaling == "variance_min" else np.float32(1)
                references = replace(references, subtract=share * density)
        scores = [
            mean_of_finite(nearest(rows, norms, replace(references, hidden=hidden), count)[0])
            for hidden, count in self._parts()
        ]
        return reduce(np.minimum, scores)

    def _local_outlier_factor(
        self, band: int, rows: np.ndarray, norms: np.ndarray, references: References
    ) -> np.ndarray:
        count = min(self._setting("num_rescaling_neighbors"), self._num_references - 1)
        distances, neighbors = nearest(rows, norms, replace(references, metric="euclidean"), count)
        reachability = np.maximum(distances, self._tensors["k_distance_"][band][neighbors]).mean(axis=1)
        density = np.float32(1) / (reachability + np.float32(SMALLEST_REACHABILITY))
        return self._tensors["density_"][band][neighbors].mean(axis=1) / density

    def _parts(self) -> Iterator[tuple[np.ndarray | None, int]]:
        """Yield which references each memory does not hold, and the neighbours that it averages."""
        count, of_target = self._setting("num_neighbors"), self._setting("num_target_neighbors")
        if not self._has_two_memories():
            yield None, count
            return
        is_target = self._tensors["is_target_"]
        yield is_target, count
        if of_target is None or of_target > 0:
            yield ~is_target, count if of_target is None else of_target

    def _has_two_memories(self) -> bool:
        return any(self._setting(name) for name in ("separate_domains", "smote_ratio", "memmixup_neighbors"))

    def _references(self, band: int) -> References:
        vectors, norms = self._tensors["memory_"][band], self._tensors["squared_norms_"][band]
        return References(vectors, norms, self._setting("distance"))

    def _prepared(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows `(N, D)` as the memory holds its references, and their squared norms `(N,)`, float32."""
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        has_direction = norms > SMALLEST_NORM
        rows = rows.astype(np.float32)
        if self._setting("normalize"):
            scaled = rows / np.where(has_direction, norms, 1.0)[:, None]
            return np.where(has_direction[:, None], scaled, 0.0).astype(np.float32), has_direction.astype(np.float32)
        if self._setting("distance") == "cosine" and (np.abs(norms - 1) > NORM_TOLERANCE)[has_direction].any():
            raise ValueError(
                "`vectors` must have unit norm in every band where normalize=False and distance='cosine', got one of "
                f"norm {norms[np.abs(norms - 1).argmax()]:.6g}."
            )
        return rows, np.square(norms).astype(np.float32)

    def _setting(self, name: str) -> Any:
        return self._settings[name]

    def _check(self) -> None:
        for name, legal in (
            ("distance", ("cosine", "euclidean")),
            ("rescaling", RESCALINGS),
            ("band_aggregation", ("mean", "max")),
            ("backend_fusion", ("minimum", "mean")),
        ):
            if self._setting(name) not in legal:
                raise ValueError(f"`{name}` must be one of {legal}, got {self._setting(name)!r}.")
        if not self._backends or not set(self._backends) <= set(BACKENDS):
            raise ValueError(f"`backend` must be one or several of {BACKENDS}, got {self._backends!r}.")
        needed = {"memory_", "squared_norms_", *OF_RESCALING[self._setting("rescaling")]}
        needed |= {name for backend in self._backends for name in OF_BACKEND[backend]}
        needed |= {"score_means_", "score_spreads_"} if len(self._backends) > 1 else set()
        needed |= {"is_target_"} if self._has_two_memories() else set()
        if not needed <= set(self._tensors):
            raise ValueError(f"A memory with these settings must hold {sorted(needed)}, got {sorted(self._tensors)}.")
        if self._tensors["memory_"].ndim != 3:
            raise ValueError(f"`memory_` must have the shape (F, R, D), got {self._tensors['memory_'].shape}.")
        num_bands, num_references, num_channels = self._tensors["memory_"].shape
        square, num_backends = (num_bands, num_channels, num_channels), len(self._backends)
        shapes: dict[str, tuple[int, ...]] = {
            "center_": (num_bands, num_channels),
            "domain_medians_": (num_bands, 2),
            "alpha_": (num_bands,),
            "is_target_": (num_references,),
            **dict.fromkeys(("whitening_", "residual_map_"), square),
            **dict.fromkeys(("score_means_", "score_spreads_"), (num_backends, num_bands)),
            **dict.fromkeys(("squared_norms_", "density_", "k_distance_"), (num_bands, num_references)),
        }
        for name in needed - {"memory_"}:
            if self._tensors[name].shape != shapes[name]:
                raise ValueError(f"`{name}` must have the shape {shapes[name]}, got {self._tensors[name].shape}.")
        for name in needed:
            if not np.isfinite(self._tensors[name]).all():
                raise ValueError(f"`{name}` must be finite, got NaN or infinite values.")


def nearest(rows: np.ndarray, norms: np.ndarray, references: References, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` references with the smallest rescaled distance to each query; the first of equal ones wins.

    Args:
        rows, norms: the queries `(N, D)` and their squared norms `(N,)`, float32.
        references: the R references.
        count: the number k of neighbours; fewer are returned if there are fewer references.

    Returns:
        the rescaled distances `(N, k)` float32, ascending (infinite for hidden references), and the references
        `(N, k)`.
    """
    count = min(count, len(references.vectors))
    candidates, reachable = _candidates(rows, norms, references, count)
    distances = np.where(reachable, _measured_distances(rows, norms, references, candidates), np.inf)
    order = distances.argsort(axis=1, kind="stable")[:, :count]
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def mean_of_finite(distances: np.ndarray) -> np.ndarray:
    """Average each row of `(N, k)` over its finite entries, `(N,)`; a row without any is infinite."""
    finite = np.isfinite(distances)
    total = np.where(finite, distances, 0).sum(axis=1, dtype=np.float32)
    return np.where(finite.any(axis=1), total / np.maximum(finite.sum(axis=1), 1), np.inf).astype(np.float32)


def finite_float32(values: np.ndarray) -> np.ndarray:
    """Return values as float32; what lies beyond its range becomes its largest number."""
    return np.clip(values, -LARGEST_FLOAT, LARGEST_FLOAT).astype(np.float32)


def _candidates(
    rows: np.ndarray, norms: np.ndarray, references: References, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a few more references than are asked for `(N, k)`, ascending, and which of them may be used.

    A matrix product is only precise enough to rank the references.
    """
    is_cosine = references.metric == "cosine"
    products = rows @ references.vectors.T  # (N, R)
    if is_cosine:
        ranking = np.float32(0.5) - np.float32(0.5) * products
        resolution = np.full_like(norms, 5e-7)[:, None]
    else:
        squared = references.squared_norms - np.float32(2) * products + norms[:, None]
        ranking = np.sqrt(np.maximum(squared, 0))
        resolution = np.float32(1e-3) * np.sqrt(norms)[:, None]
    if references.divide is not None:
        # A tiny divisor would magnify the rounding of what may be a copy.
        ranking = np.where(ranking < resolution, np.float32(0), ranking) / references.divide
    if references.subtract is not None:
        ranking = ranking - references.subtract
    if references.hidden is not None:
        ranking = np.where(references.hidden, np.float32(np.inf), ranking)
    wanted = min(count + SPARE_CANDIDATES, ranking.shape[1])
    candidates = np.argpartition(ranking, wanted - 1, axis=1)[:, :wanted]
    # Among equally far references the partition returns any, and argmin the first one, which must be a candidate.
    first = ranking.argmin(axis=1)
    candidates[:, -1] = np.where((candidates == first[:, None]).any(axis=1), candidates[:, -1], first)
    candidates.sort(axis=1)
    return candidates, np.isfinite(np.take_along_axis(ranking, candidates, axis=1))


def _measured_distances(
    rows: np.ndarray, norms: np.ndarray, references: References, candidates: np.ndarray
) -> np.ndarray:
    """Compute the rescaled distances `(N, k)` to the candidates by subtraction, which near duplicates need."""
    squared = np.square(rows[:, None] - references.vectors[candidates]).sum(axis=2)  # (N, k)
    if references.metric == "cosine":
        # This is 1/2 beside a zero vector.
        own = (1 - norms)[:, None] + (1 - references.squared_norms[candidates])
        distances = np.clip(np.float32(0.25) * (squared + own), 0, 1)
    else:
        distances = np.sqrt(squared)
    if references.subtract is not None:
        distances = distances - references.subtract[candidates]
    if references.divide is not None:
        distances = distances / references.divide[candidates]
    return distances
