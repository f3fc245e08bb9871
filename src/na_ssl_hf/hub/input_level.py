"""The level at which recordings reach a model: as recorded or normalised, and a warning where it is a new one.

Besides, what is usual between the two microphones of an installation is learned from its normal recordings.

Letters: B recordings, N samples, F bands, P kept profiles.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
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
# Bands of a profile, as shares of half the sampling rate: from 50 Hz on at 16 kHz, each 1.5 times as wide as the last.
PROFILE_EDGES = tuple(1.5 ** (index - 12) * (1 - 1e-9) for index in range(13))
PROFILE_FRAME = 2048
MAINS_HZ = (50.0, 60.0)
NUM_HARMONICS = 6
# A line that holds less of the power is none.
LEAST_LINE = 1e-3
# So many profiles say what is usual; more only cost time.
MOST_PROFILES = 64


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


def microphone_profiles(waveforms: torch.Tensor) -> torch.Tensor:
    """Describe what both microphones hear, so that a changed gain moves some numbers alike and leaves the others.

    Args:
        waveforms: `(B, 2, N)`, channel 0 close and 1 far; shorter ones than a frame of 2048 samples are continued with
            zeros.

    Returns:
        `(B, 3, F)` float32, F = 12 bands: the levels of the close and the far channel in dB of full scale, and the
        magnitude-squared coherence between them times 10.
    """
    channels = waveforms.float() - waveforms.float().mean(-1, keepdim=True)
    channels = torch.nn.functional.pad(channels, (0, max(0, PROFILE_FRAME - channels.shape[-1])))
    taper = torch.hann_window(PROFILE_FRAME, device=channels.device)
    frames = channels.unfold(-1, PROFILE_FRAME, PROFILE_FRAME // 2) * taper  # (B, 2, T, N)
    spectra = torch.fft.rfft(frames) / (taper.square().sum() * PROFILE_FRAME / 2).sqrt()  # (B, 2, T, K)
    power = (spectra.real.square() + spectra.imag.square()).mean(2)  # (B, 2, K)
    cross = (spectra[:, 0] * spectra[:, 1].conj()).mean(1).abs().square()  # (B, K)
    floor = 10 ** (SILENCE_DB / 10) / power.shape[-1]
    coherence = cross / (power[:, 0] * power[:, 1] + floor**2)
    edges = [round(edge * (power.shape[-1] - 1)) for edge in PROFILE_EDGES]
    bands = [slice(low, max(low + 1, high)) for low, high in pairwise(edges)]
    levels = torch.stack([(power[..., band].sum(-1) + floor).log10() * 10 for band in bands], dim=-1)  # (B, 2, F)
    weights = power.prod(1).sqrt()  # what both hear loudest decides
    alike = [
        (coherence * weights)[:, band].sum(-1) / weights[:, band].sum(-1).clamp_min(1e-30) for band in bands
    ]  # (B,) each
    return torch.cat([levels, 10 * torch.stack(alike, dim=-1)[:, None]], dim=1)  # (B, 3, F)


def mains_share(waveform: torch.Tensor, sampling_rate: int) -> tuple[float, float]:
    """Return the share of each channel's power that lies on the lines of the mains, the larger one of 50 and 60 Hz.

    A machine may turn at the speed of the mains; a cable hums with several harmonics, so that fewer than three of the
    first six are no hum.

    Args:
        waveform: `(2, N)`.
        sampling_rate: in Hz.
    """
    num_samples = waveform.shape[-1]
    taper = torch.hann_window(num_samples, device=waveform.device)
    centred = waveform.float() - waveform.float().mean(-1, keepdim=True)
    power = torch.fft.rfft(centred * taper).abs().square()  # (2, K)
    total = power.sum(-1).clamp_min(1e-30)  # (2,)
    bins_per_hz = num_samples / sampling_rate
    shares = []
    for mains in MAINS_HZ:
        lines = [mains * harmonic * bins_per_hz for harmonic in range(1, NUM_HARMONICS + 1)]
        spans = [(max(0, round(line - 2 - bins_per_hz)), round(line + 2 + bins_per_hz) + 1) for line in lines]
        on_lines = torch.stack([power[:, low:high].sum(-1) / total for low, high in spans])  # (6, 2)
        shares.append(on_lines.sum(0) * ((on_lines > LEAST_LINE).sum(0) >= 3))
    close, far = torch.stack(shares).amax(0).clamp_max(1.0).tolist()
    return close, far


@dataclass(frozen=True)
class UsualMicrophones:
    """What is usual of the microphones of an installation, learned from its normal recordings.

    Attributes:
        profiles: `(P, 3, F)`, those of `microphone_profiles` of at most 64 normal recordings, to a tenth of a dB.
        samples: the fewest and the most samples of a recording, or of a window where they were cut.
        mains_shares: the largest `mains_share` of the close and of the far channel.
        far_leads: the share of the recordings in which the far microphone hears the machine earlier and louder, as if
            the channels were swapped.

    Raises:
        ValueError: an attribute has another form.
    """

    profiles: tuple[tuple[tuple[float, ...], ...], ...]
    samples: tuple[int, int]
    mains_shares: tuple[float, float]
    far_leads: float = 0.0

    def __post_init__(self) -> None:
        try:
            table = torch.tensor(self.profiles, dtype=torch.float32)
            shortest, longest = (int(samples) for samples in self.samples)
            shares = torch.tensor([self.far_leads, *self.mains_shares], dtype=torch.float64)
            is_right = table.ndim == 3 and table.shape[1:] == (3, len(PROFILE_EDGES) - 1) and shares.shape == (3,)
            is_right = is_right and bool(table.isfinite().all()) and bool(((shares >= 0) & (shares <= 1)).all())
            is_right = is_right and 0 < shortest <= longest
        except (TypeError, ValueError):
            is_right = False
        if not is_right:
            raise ValueError(
                f"`microphones` must hold profiles (P, 3, {len(PROFILE_EDGES) - 1}), the range of samples and a share, "
                f"got {self!r:.120}."
            )
        rounded = tuple(
            tuple(tuple(round(value, 1) for value in row) for row in profile) for profile in table.double().tolist()
        )
        object.__setattr__(self, "profiles", rounded)
        object.__setattr__(self, "samples", (shortest, longest))
        object.__setattr__(self, "mains_shares", (float(self.mains_shares[0]), float(self.mains_shares[1])))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON holds."""
        profiles = [[list(row) for row in profile] for profile in self.profiles]
        return asdict(self) | {
            "profiles": profiles,
            "samples": list(self.samples),
            "mains_shares": list(self.mains_shares),
        }


class LevelRange:
    """Collects the lowest and the highest level that the normal recordings had, silent channels left out.

    Args:
        sampling_rate: of the recordings as the model hears them, in Hz.

    Attributes:
        far_leads: the share of the recordings that look as if the channels were swapped, set by whoever counts them.
    """

    def __init__(self, sampling_rate: int = 16000) -> None:
        self._sampling_rate = sampling_rate
        self._mains_shares = (0.0, 0.0)
        self._ranges: dict[str, tuple[float, float]] = {}
        self._profiles: list[torch.Tensor] = []
        self._samples: list[int] = []
        self._num_seen = 0
        # A seed, so that the same recordings give the same scorer.
        self._random = random.Random(0)
        self.far_leads = 0.0

    def note(self, names: Sequence[str], waveforms: torch.Tensor) -> None:
        """Look at recordings, or windows of them, `(B, 2, N)`, as the model hears them."""
        self._samples = [min([waveforms.shape[-1], *self._samples]), max([waveforms.shape[-1], *self._samples])]
        for waveform in waveforms.split(1):
            # Every recording that was seen is as likely to be among those kept (reservoir sampling).
            place = self._num_seen if self._num_seen < MOST_PROFILES else self._random.randrange(self._num_seen + 1)
            self._num_seen += 1
            if place < MOST_PROFILES:
                self._profiles[place : place + 1] = [microphone_profiles(waveform)[0].cpu()]
                close, far = mains_share(waveform[0], self._sampling_rate)
                self._mains_shares = max(close, self._mains_shares[0]), max(far, self._mains_shares[1])
        for channel, levels in zip(CHANNELS, levels_db(waveforms).T.tolist(), strict=True):
            heard = [level for level in levels if level > SILENCE_DB]
            if heard:
                low, high = self._ranges.get(channel, (math.inf, -math.inf))
                self._ranges[channel] = min(low, *heard), max(high, *heard)

    def report(self) -> None:
        """Say nothing; the ranges are what counts."""

    @property
    def microphones(self) -> UsualMicrophones | None:
        """What is usual of the microphones; `None` before the first recording."""
        if not self._profiles:
            return None
        profiles: Any = tuple(profile.tolist() for profile in self._profiles)
        return UsualMicrophones(profiles, (self._samples[0], self._samples[1]), self._mains_shares, self.far_leads)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Channel, "close" or "far" -> its lowest and its highest level, in dB of full scale."""
        return dict(self._ranges)


class LevelReport:
    """Collects which recordings are louder or quieter than all normal ones, for one warning of each kind.

    Args:
        ranges: those of [`LevelRange`]; `None` where they are not known, and nothing is said.
        channels: the channels that the scorer hears.
        far_leads: that of [`UsualMicrophones`].
    """

    def __init__(self, ranges: Mapping[str, Sequence[float]] | None, channels: Sequence[str], far_leads: float = 0.0):
        self.far_leads = far_leads
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
