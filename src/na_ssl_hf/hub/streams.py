"""The streams that a model hears of two microphones: with the far one taken out of the close one, as recorded, or both.

Letters: B recordings, F bands, D channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .layer_choice import joined

# What stands for the close channel; the far channel always stays beside it.
STREAMS = ("cancelled", "raw", "both")


def check_streams(streams: Any) -> str:
    """Return a legal `streams`; a ValueError for every other value."""
    if not isinstance(streams, str) or streams not in STREAMS:
        raise ValueError(f"`streams` must be {' or '.join(map(repr, STREAMS))}, got {streams!r:.80}.")
    return streams


def check_second_stream(streams: str, far_cancellation: str | None) -> None:
    """Raise a ValueError where both streams are asked for, and nothing takes the far microphone out of the close one.

    Args:
        streams: a name of `STREAMS`.
        far_cancellation: the method of the canceller; `None` or "none" where there is none.
    """
    if streams == "both" and far_cancellation in (None, "none"):
        raise ValueError(
            "`streams` must be 'cancelled' or 'raw' where the far microphone is not cancelled, because the second "
            "stream would be the first one; set `far_cancellation`, for instance to 'auto'. Got 'both'."
        )


def stream_vectors(
    streams: str,
    cancelled: Callable[[], torch.Tensor],
    raw: Callable[[], torch.Tensor],
    join: Callable[[Sequence[torch.Tensor]], torch.Tensor] = joined,
) -> torch.Tensor:
    """Return the vectors of the asked stream, or join those of both as the vectors of several layers are joined.

    The cosine distance of joined vectors is the mean of the distances in both streams, each by standardised vectors.

    Args:
        streams: a name of `STREAMS`.
        cancelled, raw: make the vectors `(..., F, D)` of a stream; only what is needed is called.
        join: how those of both become one; log-mel statistics stay as they are, see `side_by_side`.

    Returns:
        `(..., F, D)`, of both streams `(..., F, 2 D)` with the cancelled one first, of norm 1, dtype as made.
    """
    if streams == "both":
        return join([cancelled(), raw()])
    return cancelled() if streams == "cancelled" else raw()


def side_by_side(statistics: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the log-mel statistics `(..., F, S)` of streams as they are, because levels tell much of a machine."""
    return torch.cat(tuple(statistics), dim=-1)
