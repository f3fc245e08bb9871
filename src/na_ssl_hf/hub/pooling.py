"""Pooling over time, every frequency band on its own: of a model's grid, and of the log-mel frames beside it.

Letters: N clips, T frames, F bands, D channels, M mel bins, S statistics of a band.
"""

import math
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import torch

# The parameters that each method uses.
POOLING_PARAMETERS: dict[str, tuple[str, ...]] = {
    "mean": (),
    "rdp": ("gamma",),
    "gem": ("p",),
    "rdp_gem": ("gamma", "p"),
    "gwrp": ("r",),
    "max": (),
}
POOLING_METHODS = tuple(POOLING_PARAMETERS)
# So many normal recordings at most say how far they are from one another.
MOST_COMPARED = 1000


@dataclass(frozen=True)
class Pooling:
    """A method of [`pool_time`] with its parameters, checked when it is made.

    Raises:
        ValueError: an unknown method, or a parameter out of its range.
    """

    method: str = "mean"
    gamma: float = 4.0
    p: float = 3.0
    r: float = 0.9

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in POOLING_METHODS:
            raise ValueError(f"pooling method must be one of {POOLING_METHODS}, got {self.method!r}.")
        for name, is_legal, rule in (
            ("gamma", lambda value: 0.0 <= value <= 1e6, "a number in [0, 1e6]"),
            ("p", lambda value: 0.0 < value <= 1e6, "a number in (0, 1e6]"),
            ("r", lambda value: 0.0 <= value <= 1.0, "in [0, 1]"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not is_legal(value):
                raise ValueError(f"{name} must be {rule}, got {value!r}.")

    def __call__(self, grid: torch.Tensor) -> torch.Tensor:
        """Pool `(N, T, F, D)` over time into `(N, F, D)` float32."""
        return pool_time(grid, **asdict(self))

    def changed(self, method: str | None = None, **parameters: float | None) -> "Pooling":
        """This pooling with another method or other parameters; `None` keeps what it has.

        Raises:
            ValueError: a parameter that the method does not use, so that no setting is ignored silently.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        pooling = replace(self, method=self.method if method is None else method, **given)  # type: ignore[arg-type]
        for name in given:
            if name not in POOLING_PARAMETERS[pooling.method]:
                users = [each for each, names in POOLING_PARAMETERS.items() if name in names]
                raise ValueError(
                    f"`{name}` must be given with pooling {' or '.join(map(repr, users))} only, "
                    f"got {name}={given[name]!r} with pooling {pooling.method!r}."
                )
        return pooling


def pool_time(
    grid: torch.Tensor | np.ndarray,
    method: str = "mean",
    gamma: float = 4.0,
    p: float = 3.0,
    r: float = 0.9,
    mask: torch.Tensor | np.ndarray | None = None,
) -> torch.Tensor:
    """Pool `grid` of shape `(N, T, F, D)` over time into `(N, F, D)`, float32.

    - `"mean"`: average over the valid frames.
    - `"rdp"`, relative deviation pooling (Matsumoto et al., arXiv 2603.13749): weights `(1 + h)**gamma`, scaled to sum
      one, where `h` is the frame's distance to the mean frame of its band, divided by the largest one in that band.
    - `"gem"`, generalised mean (Radenović et al., TPAMI 2019): `(mean_t max(x, 0)**p)**(1/p)` per channel.
    - `"rdp_gem"`: the generalised mean with the weights of `"rdp"`.
    - `"gwrp"`, global weighted rank pooling (Kolesnikov and Lampert, ECCV 2016): every channel sorted descending over
      time, weights `r**rank` scaled to sum one; `r=0` is the maximum and `r=1` the mean.
    - `"max"`: maximum over the valid frames.

    Args:
        grid: real numbers of shape `(N, T, F, D)`, any dtype; the arithmetic is float32.
        method: one of the names above.
        gamma: exponent of `"rdp"` and `"rdp_gem"`, at least 0; 0 gives uniform weights.
        p: exponent of `"gem"` and `"rdp_gem"`, above 0.
        r: decay of `"gwrp"`, in [0, 1].
        mask: `(N, T)`, True (or 1) = valid frame; what padded frames hold has no influence. `None`: all are valid.

    Raises:
        ValueError: unknown method, a parameter out of range, a wrong shape, no frames, a clip without a valid frame,
            or NaN/inf in a valid frame.
    """
    Pooling(method, gamma, p, r)  # checks them
    x = torch.as_tensor(grid)
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"grid must have shape (N, T, F, D) without empty axes, got {tuple(x.shape)}.")
    if x.is_complex():
        raise ValueError(f"grid must hold real numbers, got {x.dtype}.")
    x = x.float()
    valid = _frame_mask(mask, x)  # (N, T, 1, 1)
    # Padding is blanked, not only weighted by zero: 0 * NaN would be NaN.
    x = x.where(valid, 0.0)
    # An exported graph cannot decide by what its tensors hold.
    if not torch.compiler.is_compiling() and not torch.isfinite(x).all():
        raise ValueError("grid must be finite in its valid frames, got NaN or infinite values.")

    if method == "max":
        return x.where(valid, -torch.inf).amax(dim=1)
    if method == "gwrp":
        return _rank_pool(x, valid, r)
    if method in ("rdp", "rdp_gem"):
        weights = _relative_deviation_weights(x, valid, gamma)  # (N, T, F, 1)
    else:
        weights = valid / valid.sum(dim=1, keepdim=True)  # (N, T, 1, 1)
    if method in ("gem", "rdp_gem"):
        return (weights * x.clamp(min=0).pow(p)).sum(dim=1).pow(1 / p)
    return (weights * x).sum(dim=1)


def _frame_mask(mask: torch.Tensor | np.ndarray | None, x: torch.Tensor) -> torch.Tensor:
    if mask is None:
        return torch.ones(x.shape[0], x.shape[1], 1, 1, dtype=torch.bool, device=x.device)
    valid = torch.as_tensor(mask, device=x.device).bool()
    if valid.shape != x.shape[:2]:
        raise ValueError(f"mask must have shape (N, T) = {tuple(x.shape[:2])}, got {tuple(valid.shape)}.")
    if not valid.any(dim=1).all():
        clip = int(valid.any(dim=1).logical_not().nonzero()[0])
        raise ValueError(f"mask must leave every clip at least one valid frame, got none in clip {clip}.")
    return valid[:, :, None, None]


def _relative_deviation_weights(x: torch.Tensor, valid: torch.Tensor, gamma: float) -> torch.Tensor:
    center = x.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True)  # (N, 1, F, D)
    deviation = torch.linalg.vector_norm(x - center, dim=3, keepdim=True).where(valid, 0.0)  # (N, T, F, 1)
    largest = deviation.amax(dim=1, keepdim=True)
    relative = torch.where(largest > 1e-8, deviation / largest, 0.0)
    # softmax(gamma * log(1 + h)) is (1 + h)**gamma / sum, and cannot overflow for a large gamma.
    return (gamma * relative.log1p()).where(valid, -torch.inf).softmax(dim=1)


def _rank_pool(x: torch.Tensor, valid: torch.Tensor, r: float) -> torch.Tensor:
    # Padded frames sort last, so that rank k < number of valid frames is a valid frame in every channel.
    ranked = x.where(valid, -torch.inf).sort(dim=1, descending=True).values
    ranks = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    counted = ranks < valid.sum(dim=1, keepdim=True)  # (N, T, 1, 1)
    weights = torch.as_tensor(r, dtype=x.dtype, device=x.device).pow(ranks).where(counted, 0.0)
    return (weights * ranked.where(counted, 0.0)).sum(dim=1) / weights.sum(dim=1)


@dataclass(frozen=True)
class LogMelStatistics:
    """How the log-mel statistics of a band are compared beside a model's vectors: joined, in units of their spread.

    A model that never heard a kind of machine may miss what its plain spectrum shows. The statistics are taken around
    their mean over the normal recordings, and weighted so that in each band a normal recording is as far from its
    nearest neighbour by the statistics as by the model (the median over the recordings). Joined vectors are compared by
    their Euclidean distance, whose square is the sum of both squares.

    Attributes:
        centre: `(F, S)`, the mean of the normal recordings' statistics, natural logarithms as the model hears them.
        weight: `(F,)`, what the statistics of a band are multiplied by.

    Raises:
        ValueError: an attribute is not made of finite numbers, or their numbers of bands differ.
    """

    centre: tuple[tuple[float, ...], ...]
    weight: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("centre", [value for row in self.centre for value in row]), ("weight", self.weight)):
            if not values or not all(isinstance(value, float) and math.isfinite(value) for value in values):
                raise ValueError(f"`{name}` must be made of finite numbers, got {getattr(self, name)!r:.80}.")
        if len(self.centre) != len(self.weight) or len({len(row) for row in self.centre}) != 1:
            raise ValueError(
                f"`weight` must have one number for each of the {len(self.centre)} bands of `centre`, whose rows are "
                f"equally long, got {len(self.weight)}."
            )

    @classmethod
    def learned(cls, vectors: torch.Tensor, statistics: torch.Tensor) -> "LogMelStatistics":
        """Learn centre and weight from normal recordings: vectors `(N, F, D)` and statistics `(N, F, S)`.

        The weight of a band in which the statistics, or the model's vectors, of most recordings are the same is 0.
        """
        by_model, by_spectrum = _median_neighbour(_of_norm_one(vectors)), _median_neighbour(statistics)
        weight = torch.where((by_spectrum > 0) & (by_model > 0), by_model / by_spectrum.clamp_min(1e-9), 0.0)
        centre = statistics.double().mean(0)
        return cls(tuple(map(tuple, centre.tolist())), tuple(weight.tolist()))

    @classmethod
    def from_dict(cls, values: Any) -> "LogMelStatistics":
        """Return what `to_dict` wrote; other keys are ignored.

        Raises:
            ValueError: a key is missing, or a value is wrong.
        """
        try:
            centre, weight = values["centre"], values["weight"]
            return cls(tuple(tuple(map(float, row)) for row in centre), tuple(map(float, weight)))
        except (TypeError, KeyError) as error:
            raise ValueError(f"`log_mel` must be a dict with centre and weight, got {values!r:.80}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds."""
        return {"centre": [list(row) for row in self.centre], "weight": list(self.weight)}

    def joined(self, vectors: torch.Tensor, statistics: torch.Tensor) -> torch.Tensor:
        """Join vectors `(..., F, D)`, brought to norm 1, and statistics `(..., F, S)` to `(..., F, D + S)`.

        The highest bands, where the normal recordings held nothing and nothing was learned, are left out.
        """
        bands = slice(min(vectors.shape[-2], len(self.weight)))
        centre, weight = statistics.new_tensor(self.centre)[bands], statistics.new_tensor(self.weight)[bands]
        around = weight[:, None] * (statistics[..., bands, :] - centre)
        return torch.cat([_of_norm_one(vectors[..., bands, :]), around], dim=-1)


def num_log_mel_statistics(num_bands: int, num_mel_bins: int) -> int:
    """Count the statistics S of a band.

    Raises:
        ValueError: the mel bins cannot be divided among the bands.
    """
    if num_mel_bins % num_bands:
        raise ValueError(
            f"`log_mel` must be False for a model of {num_bands} bands, among which its {num_mel_bins} mel bins cannot "
            "be divided, got True."
        )
    return 2 * num_mel_bins // num_bands


def log_mel_statistics(
    frames: torch.Tensor, num_bands: int, num_sound_frames: int | None = None, num_rows: int | None = None
) -> torch.Tensor:
    """Compute mean and standard deviation over time of log-mel frames, by band.

    Args:
        frames: `(N, T, M)`, the log-mel frames of one channel.
        num_bands: F, into which the M mel bins are divided.
        num_sound_frames: how many frames hold sound, the others being padding; `None` for all.
        num_rows: T', rows in time whose frames are averaged each on its own. The deviation is always that of the whole
            clip, and a row of padding alone has the mean of the clip; `None` for one row.

    Returns:
        `(N, F, S)` with S = 2 M / F, the means first; with `num_rows` `(N, T', F, S)`.

    Raises:
        ValueError: the mel bins cannot be divided among the bands.
    """
    num_log_mel_statistics(num_bands, frames.shape[-1])
    frames = frames.float()
    sound = frames[:, :num_sound_frames]
    mean = sound.mean(1, keepdim=True)  # (N, 1, M)
    deviation = (sound - mean).square().mean(1, keepdim=True).sqrt()  # (N, 1, M)
    if num_rows is not None:
        length = frames.shape[1] // num_rows
        of_rows = [sound[:, start : start + length] for start in range(0, num_rows * length, length)]
        mean = torch.stack([row.mean(1) if row.shape[1] else mean[:, 0] for row in of_rows], dim=1)  # (N, T', M)
        deviation = deviation.expand_as(mean)
    parts = [part.unflatten(-1, (num_bands, -1)) for part in (mean, deviation)]  # (N, T', F, M / F)
    statistics = torch.cat(parts, dim=-1)  # (N, T', F, S)
    return statistics[:, 0] if num_rows is None else statistics


def log_mel_beside(vectors: torch.Tensor, fbank: torch.Tensor, num_sound_frames: int) -> torch.Tensor:
    """Compute the log-mel statistics of the close channel of fbank `(N, 2, T, M)` for a model's vectors.

    Returns:
        `(N, F, S)` for pooled vectors `(N, F, D)`, `(N, T', F, S)` for tokens `(N, T', F, D)`.
    """
    rows = vectors.shape[1] if vectors.dim() == 4 else None
    return log_mel_statistics(fbank[:, 0], vectors.shape[-2], num_sound_frames, rows)


def _of_norm_one(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def _median_neighbour(vectors: torch.Tensor) -> torch.Tensor:
    """Compute the median over clips of the distance to the nearest other clip, in every band, `(F,)` double."""
    step = -(-len(vectors) // MOST_COMPARED)
    of_bands = vectors[::step].double().transpose(0, 1)  # (F, N, D)
    if of_bands.shape[1] < 2:
        return torch.zeros(len(of_bands), dtype=torch.float64)
    distances = torch.cdist(of_bands, of_bands, compute_mode="donot_use_mm_for_euclid_dist")  # (F, N, N)
    distances.diagonal(dim1=1, dim2=2).fill_(math.inf)
    return distances.min(dim=-1).values.median(dim=-1).values
