"""Pooling of a sequence of tokens into one vector for the loss, by attentive statistics or the plain mean.

Letters in shape comments: B recordings, L tokens, E token size, H bottleneck size.
"""

from typing import Literal

import torch
from torch import Tensor, nn

# Below this variance a channel counts as constant, because the root has no finite gradient at zero.
_SMALLEST_VARIANCE = 1e-4


class AttentiveStatisticsPooling(nn.Module):
    """Pools tokens into their mean and standard deviation, weighted by an attention of its own for every channel.

    Okabe et al., "Attentive statistics pooling for deep speaker embedding", Interspeech 2018. The attention is computed
    from each token beside the mean and standard deviation of all, as in ECAPA-TDNN (Desplanques et al., Interspeech
    2020).

    Args:
        size: E of the tokens.
    """

    def __init__(self, size: int):
        super().__init__()
        bottleneck = max(1, size // 16)
        self.context = nn.Linear(3 * size, bottleneck)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.attention = nn.Linear(bottleneck, size)
        self.output = nn.Sequential(nn.BatchNorm1d(2 * size), nn.Linear(2 * size, size), nn.BatchNorm1d(size))

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool `(B, L, E)` to `(B, E)`; a single token counts as constant. In training, B must be above 1."""
        mean = tokens.mean(dim=1, keepdim=True)  # (B, 1, E)
        # Not var(): the unbiased variance of one token is NaN.
        variance = (tokens - mean).square().sum(dim=1, keepdim=True) / max(1, tokens.shape[1] - 1)
        statistics = torch.cat([mean, _root(variance)], dim=-1).expand(-1, tokens.shape[1], -1)  # (B, L, 2E)
        hidden = self.context(torch.cat([tokens, statistics], dim=-1)).relu()  # (B, L, H)
        hidden = self.norm(hidden.flatten(0, 1)).view_as(hidden).tanh()
        weights = self.attention(hidden).softmax(dim=1)  # (B, L, E)
        weighted_mean = (weights * tokens).sum(dim=1)  # (B, E)
        weighted_variance = (weights * tokens.square()).sum(dim=1) - weighted_mean.square()
        return self.output(torch.cat([weighted_mean, _root(weighted_variance)], dim=-1))


class ProjectionHead(nn.Module):
    """Pools the tokens and projects them for the loss; anomaly scores are computed from the tokens themselves.

    Args:
        size: E of the tokens.
        output_size: width of the embeddings.
        pooling: "attentive", or "mean" for the average.
    """

    def __init__(self, size: int, output_size: int = 256, pooling: Literal["attentive", "mean"] = "attentive"):
        super().__init__()
        if pooling not in ("attentive", "mean"):
            raise ValueError(f"`pooling` must be 'attentive' or 'mean', got {pooling!r}.")
        self.pooling = AttentiveStatisticsPooling(size) if pooling == "attentive" else None
        self.projection = nn.Linear(size, output_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens `(B, L, E)` as `(B, output_size)`."""
        return self.projection(tokens.mean(dim=1) if self.pooling is None else self.pooling(tokens))


def _root(variance: Tensor) -> Tensor:
    return variance.clamp_min(_SMALLEST_VARIANCE).sqrt()
