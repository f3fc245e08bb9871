"""Mixup of two-channel waveforms (Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018).

Letters in shape comments: B recordings, N samples, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Mixup(NamedTuple):
    """`lam * x + (1 - lam) * x[permutation]`, with lam `(B,)` and permutation `(B,)`."""

    lam: Tensor
    permutation: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """Mix `(B, ...)`: both channels `(B, 2, N)` of the waveforms, and the labels `(B, C)` alike."""
        lam = self.lam.to(values).view(-1, *[1] * (values.dim() - 1))  # (B, 1, ...)
        return lam * values + (1 - lam) * values[self.permutation]


def draw_mixup(batch_size: int, probability: float = 0.5, device: str | torch.device = "cpu") -> Mixup:
    """Each recording is mixed with probability `probability` and a lambda uniform in [0, 1], else kept (lambda 1).

    Drawn from torch's global generator on the CPU, so that one seed gives one mixup on every device.

    Raises:
        ValueError: `probability` is outside of [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"`probability` must lie in [0, 1], got {probability}.")
    kept = torch.rand(batch_size) >= probability
    lam = torch.rand(batch_size).masked_fill(kept, 1.0)
    return Mixup(lam.to(device), torch.randperm(batch_size).to(device))
