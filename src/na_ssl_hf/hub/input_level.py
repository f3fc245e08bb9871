"""The level at which recordings reach a model: as recorded or normalised, and a warning where it is a new one.

Letters: B recordings, N samples.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

LEVELS = ("as recorded", "normalised")
# A usual level of recordings with some room above it, in dB of full scale.
NORMALISED_DB = -26.0
# Less than this is digital silence, or the rounding of 16 bits; no gain makes a recording of it.
SILENCE_DB = -100.0
# The levels of N normal recordings and of a new one are alike, so that one of 2 in N + 1 lies outside theirs anyway.
# Within 3 dB, half or double the power, a machine varies from day to day; a gain knob is turned further.
MARGIN_DB = 3.0
CHANNELS = ("close", "far")
LISTED_NAMES = 5


def check_level(level: Any) -> str:
    """Return a legal `level`; a ValueError for every other one."""
    if not isinstance(level, str) or level not in LEVELS:
        raise ValueError(f"`level` must be {' or '.join(map(repr, LEVELS))}, got {level!r:.80}.")
    return level


def levels_db(waveforms: torch.Tensor) -> torch.Tensor:
    """Compute the level of every channel of `(B, 2, N)`, without its constant offset.

    Returns:
        `(B, 2)` float32, in dB of full scale (a square wave of full scale has 0); -inf for silence.
    """
    return 20 * waveforms.float().std(-1, correction=0).log10()


def at_level(waveforms: torch.Tensor, level: str) -> torch.Tensor:
    """Bring recordings to the asked level.

    Args:
        waveforms: `(B, 2, N)`, channel 0 close and 1 far.
        level: "as recorded" changes nothing; "normalised" scales both channels by the one gain that brings the close
            one to `NORMALISED_DB`. A recording whose close channel is silent is left alone.

    Returns:
        `(B, 2, N)`.
    """
    if level == "as recorded":
        return waveforms
    close_db = levels_db(waveforms)[:, 0]
    gain_db = torch.where(close_db > SILENCE_DB, NORMALISED_DB - close_db, 0.0)
    return waveforms * 10 ** (gain_db[:, None, None] / 20)


class LevelRange:
    """Collects the lowest and the highest level that the normal recordings had, silent channels left out."""

    def __init__(self) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}

    def note(self, names: Sequence[str], waveforms: torch.Tensor) -> None:
        """Look at recordings, or windows of them, `(B, 2, N)`, as the model hears them."""
        for channel, levels in zip(CHANNELS, levels_db(waveforms).T.tolist(), strict=True):
            heard = [level for level in levels if level > SILENCE_DB]
            if heard:
                low, high = self._ranges.get(channel, (math.inf, -math.inf))
                self._ranges[channel] = min(low, *heard), max(high, *heard)

    def report(self) -> None:
        """Say nothing; the ranges are what counts."""

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Channel, "close" or "far" -> its lowest and its highest level, in dB of full scale."""
        return dict(self._ranges)


class LevelReport:
    """Collects which recordings are louder or quieter than all normal ones, for one warning of each kind.

    Args:
        ranges: those of [`LevelRange`]; `None` where they are not known, and nothing is said.
        channels: the channels that the scorer hears.
    """

    def __init__(self, ranges: Mapping[str, Sequence[float]] | None, channels: Sequence[str]):
        self._ranges = {name: ranges[name] for name in channels if name in ranges} if ranges else {}
        self._names: dict[tuple[str, str], list[str]] = {}

    def note(self, names: Sequence[str], waveforms: torch.Tensor) -> None:
        """Look at recordings, or windows of them, `(B, 2, N)`, as the model hears them."""
        if not self._ranges:
            return
        of_channels = dict(zip(CHANNELS, levels_db(waveforms).T.tolist(), strict=True))
        for channel, (low, high) in self._ranges.items():
            for name, level in zip(names, of_channels[channel], strict=True):
                # A silent microphone has a warning of its own.
                if level > SILENCE_DB and not low - MARGIN_DB <= level <= high + MARGIN_DB:
                    known = self._names.setdefault((channel, "louder" if level > high else "quieter"), [])
                    known += [name] if name not in known[-1:] else []

    def report(self) -> None:
        """Log what was found."""
        for (channel, how), names in self._names.items():
            low, high = self._ranges[channel]
            listed = ", ".join(names[:LISTED_NAMES]) + (", ..." if len(names) > LISTED_NAMES else "")
            logger.warning_once(
                f"The {channel} microphone is {how} than in all normal recordings, by more than {MARGIN_DB:g} dB "
                f"({low:.1f} to {high:.1f} dB there): has its gain or place changed? ({len(names)}: {listed})"
            )


def check_levels(ranges: Any) -> dict[str, tuple[float, float]] | None:
    """Return ranges as [`LevelRange`] makes them, or `None`; a ValueError for everything else."""
    if ranges is None:
        return None
    if not isinstance(ranges, Mapping) or not set(ranges) <= set(CHANNELS):
        raise ValueError(f"`levels` must be a dict with close and far, or None, got {ranges!r:.80}.")
    checked = {}
    for channel, ends in ranges.items():
        is_pair = isinstance(ends, (list, tuple)) and len(ends) == 2
        if not is_pair or not all(isinstance(end, Real) and not isinstance(end, bool) for end in ends):
            raise ValueError(f"`levels` must hold the lowest and the highest level of {channel}, got {ends!r:.80}.")
        low, high = (float(end) for end in ends)
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"`levels` must hold finite levels of {channel}, the lowest first, got {ends!r:.80}.")
        checked[channel] = (low, high)
    return checked
