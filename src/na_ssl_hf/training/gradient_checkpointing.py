"""Gradient checkpointing of an encoder, whose base may be frozen and may carry an adapter."""

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def checkpoint_layers(encoder: PreTrainedModel) -> None:
    """In training, keep only what is between the layers and compute the rest again in the backward pass."""
    # Not `activation_checkpointing_enable`, which lets gradients into the frozen embeddings where there is an adapter.
    encoder._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_checkpoint)


def _checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)
