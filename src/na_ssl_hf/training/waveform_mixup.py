"""Mixup of two-channel waveforms (Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018).

Letters in shape comments: B recordings, N samples, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Mixup(NamedTuple):
    """One draw of mixup: `lam * x + (1 - lam) * x[permutation]`, with lam `(B,)` and permutation `(B,)`."""

    lam: Tensor
    permutation: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Mix values `(B, ...)`; waveforms `(B, 2, N)` and labels `(B, C)` are mixed by the same draw."""
        lam = self.lam.to(values).view(-1, *[1] * (values.dim() - 1))  # (B, 1, ...)
        return lam * values + (1 - lam) * values[self.permutation]


def draw_mixup(batch_size: int, probability: float = 0.5, device: str | torch.device = "cpu") -> Mixup:
    """Draw which recordings are mixed, each with `probability`, and their lambda, uniform in [0, 1]; others keep 1.

    The draw uses torch's global generator on the CPU, so that a seed gives the same mixup on every device.

    Raises:
        ValueError: `probability` is outside of [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must lie in [0, 1], got {probability}.")
    kept = torch.rand(batch_size) >= probability
    lam = torch.rand(batch_size).masked_fill(kept, 1.0)
    return Mixup(lam.to(device), torch.randperm(batch_size).to(device))
