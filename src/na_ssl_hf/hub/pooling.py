"""Pooling of a time-frequency grid over time, every frequency band on its own.

Letters: N clips, T frames, F bands, D channels.
"""

from dataclasses import asdict, dataclass, replace
from numbers import Real

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
