"""The optimizers of a training, chosen by name."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

OptimizerName = Literal["adamw", "muon"]


def make_optimizers(
    module: nn.Module,
    name: OptimizerName = "adamw",
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[Optimizer]:
    """Make the optimizers of all parameters that need a gradient, all with the same learning rate.

    `"adamw"` is one optimizer. `"muon"` (Jordan et al., 2024) moves the weights of linear layers by the nearest
    orthogonal matrix to their momentum and leaves the rest to AdamW. Its updates are scaled to the size of AdamW's
    (Liu et al., "Muon is scalable for LLM training", 2025). It allows a larger rate and cannot be sharded by FSDP.

    Raises:
        ValueError: the name is unknown.
    """
    trained: list[torch.Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if name == "adamw":
        return [_adamw(trained, lr, weight_decay, betas)]
    if name != "muon":
        raise ValueError(f"`name` must be 'adamw' or 'muon', got {name!r}.")
    matrices = list(_linear_weights(module))
    of_muon = {id(matrix) for matrix in matrices}
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, _adamw([each for each in trained if id(each) not in of_muon], lr, weight_decay, betas)]


def _adamw(parameters: list[torch.Tensor], lr: float, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def _linear_weights(module: nn.Module) -> Iterator[torch.Tensor]:
    for part in module.modules():
        if isinstance(part, nn.Linear) and part.weight.requires_grad:
            yield part.weight
