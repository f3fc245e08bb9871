"""Attention by plain matrix products, where a caller wants the weights that fused kernels cannot give."""

from typing import Any

import torch
from torch import nn


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The "eager" entry of the attention interface (B recordings, H heads, Q queries, K keys, C channels a head).

    Args:
        query, key, value: `(B, H, Q, C)`, `(B, H, K, C)` and `(B, H, K, C)`.
        attention_mask: additive, broadcast to `(B, H, Q, K)`.
        position_bias: additive, broadcast to `(B, H, Q, K)`.

    Returns:
        the output `(B, Q, H, C)` and the weights `(B, H, Q, K)`.
    """
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        weights = weights + position_bias
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights  # (B, Q, H, C)
