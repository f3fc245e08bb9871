"""Draw under which conditions a training mixture is heard: without noise, without a far microphone, or cancelled.

Letters in shapes: B mixtures and N samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hub.noise_cancellation import cancel_far_microphone
from .fitted_installations import FittedInstallations
from .mixing import HeardMixture, TwoChannelMixture

# What the close channel has been through, in the order of `stream_shares`.
STREAMS = ("nothing", "spectral_subtraction", "installation")
# Of the mixtures behind a calibrated filter, these have a level and a coherence of their own, as after a change at the
# site that nobody calibrated for.
_MOVED_SHARE = 0.2


@dataclass(frozen=True)
class Conditions:
    """The conditions under which mixtures are heard, beyond rooms, SNR and coherence.

    Attributes:
        clean_share: share of the mixtures without noise, in [0, 1]; their SNR is infinite.
        silent_far_share: share whose far microphone is silent, as one that is broken or not there. What shall be heard
            then is the close microphone as it is, so that a model learns to change nothing.
        machine_level_db: range of the target's level at the close microphone minus that at the far one, in dB; None
            leaves what the room gives.
        changed_targets: whether targets are changed by [`changed_crop`].
        stream_shares: shares behind nothing, behind spectral subtraction, and behind the filter and subtraction of the
            installation that was calibrated in the room; they sum to 1.
        installations: of the pool's rooms; needed where the third share is not 0.

    Raises:
        ValueError: an attribute is out of its range, or installations are missing.
    """

    clean_share: float = 0.0
    silent_far_share: float = 0.0
    machine_level_db: tuple[float, float] | None = None
    changed_targets: bool = False
    stream_shares: tuple[float, float, float] = (1.0, 0.0, 0.0)
    installations: FittedInstallations | None = None

    def __post_init__(self) -> None:
        for name in ("clean_share", "silent_far_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        levels = self.machine_level_db
        if levels is not None and (len(levels) != 2 or not -math.inf < levels[0] <= levels[1] < math.inf):
            raise ValueError(f"machine_level_db must be a finite range (low, high), got {levels}")
        shares = self.stream_shares
        if len(shares) != len(STREAMS) or not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"stream_shares must be three shares {STREAMS} that sum to 1, got {shares}")
        if shares[2] and self.installations is None:
            raise ValueError(f"installations must be given for stream_shares {shares}, got None")

    def draw(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Return what an example with a room, an SNR and a coherence gets or has replaced."""
        stream = int(np.searchsorted(np.cumsum(self.stream_shares), rng.random(), side="right"))
        stream = min(stream, len(STREAMS) - 1)  # the shares may sum to less than 1 by rounding
        is_clean, is_silent, is_moved = (
            bool(rng.random() < share) for share in (self.clean_share, self.silent_far_share, _MOVED_SHARE)
        )
        level = math.nan if self.machine_level_db is None else rng.uniform(*self.machine_level_db)
        coherence = example["noise_coherence"]
        if STREAMS[stream] == "installation" and not is_moved:
            assert self.installations is not None
            level = float(self.installations.machine_level_db[example["room"]])
            coherence = float(self.installations.noise_coherence[example["room"]])
        return {
            "snr_db": math.inf if is_clean else example["snr_db"],
            "noise_coherence": coherence,
            "machine_level_db": level,
            "far_is_silent": is_silent,
            "stream": stream,
        }

    def heard(
        self, mixture: TwoChannelMixture, stream: Tensor, far_is_silent: Tensor, rooms: Tensor, sampling_rate: int
    ) -> HeardMixture:
        """Let mixtures go through what their conditions say.

        Args:
            mixture: `(B, N)` signals.
            stream: (B,) places in `STREAMS`.
            far_is_silent: (B,) bool.
            rooms: (B,) numbers of the rooms.
            sampling_rate: in Hz.

        Returns:
            the mixture with a silenced far and a cancelled close microphone, and with the close one as it was recorded;
            where far is silent, close is as it was and also what shall be heard.
        """
        silent = far_is_silent.to(mixture.close.device)[:, None]
        far = mixture.far.masked_fill(silent, 0.0)
        clean = torch.where(silent, mixture.close, mixture.clean)
        close = mixture.close.clone()
        cancelled = stream * ~far_is_silent  # a silent far microphone leaves the close one as it is
        if rows := torch.nonzero(cancelled == STREAMS.index("spectral_subtraction"))[:, 0].tolist():
            close[rows] = cancel_far_microphone(close[rows], far[rows], "spectral_subtraction", sampling_rate)
        if rows := torch.nonzero(cancelled == STREAMS.index("installation"))[:, 0].tolist():
            assert self.installations is not None
            close[rows] = self.installations.cancel(close[rows], far[rows], rooms[rows].tolist(), sampling_rate)
        return HeardMixture(close, far, clean, mixture.close if cancelled.any() else None)
