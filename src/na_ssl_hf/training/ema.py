"""An exponential moving average of the weights that are trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class ExponentialMovingAverage:
    """It keeps `average = decay * average + (1 - decay) * weight`, after every step from `start_step` on.

    At `start_step` the average is the weights themselves. It is kept in float32, and sharded where the parameters are.

    Args:
        parameters: parameters by name; those that need no gradient are not averaged.
        decay: the share of the old average, in [0, 1).
        start_step: number of finished optimizer steps, at least 1, from which on there is an average.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float = 0.999, start_step: int = 1):
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must lie in [0, 1), got {decay}.")
        if start_step < 1:
            raise ValueError(f"`start_step` must be at least 1, got {start_step}.")
        self.parameters = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        self.decay = decay
        self.start_step = start_step
        self.averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after optimizer step number `step`, counted from 1."""
        if step < self.start_step:
            return
        for name, parameter in self.parameters.items():
            if name in self.averages:
                self.averages[name].lerp_(parameter.float(), 1 - self.decay)
            else:
                self.averages[name] = parameter.detach().float().clone()

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the parameters hold the average, if there is one yet, inside the block, and their own values after it."""
        own = {name: self.parameters[name].detach().clone() for name in self.averages}
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages, unsharded; all processes must call it together where they are sharded."""
        return {name: _whole(average).cpu() for name, average in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state and set(state) != set(self.parameters):
            raise ValueError(
                f"`state` must be of the same {len(self.parameters)} parameters, got {len(state)}, of which "
                f"{len(set(state) - set(self.parameters))} unknown."
            )
        self.averages = {name: _placed_like(self.parameters[name], average) for name, average in state.items()}

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)


def _whole(tensor: Tensor) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _placed_like(parameter: Tensor, average: Tensor) -> Tensor:
    average = average.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(average, parameter.device_mesh, parameter.placements)
    return average
