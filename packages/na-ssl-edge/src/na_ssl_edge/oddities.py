"""What may be wrong with a microphone or a cable: legal, but worth a warning that names the recordings.

The rules, their reasons and the words are those of na_ssl_hf (`find_oddities`, `far_leads_and_is_louder` and
`LevelReport` there).

Letters: N samples, K frequency bins.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

logger = logging.getLogger(__name__)

SILENT_RMS = 1e-6
FULL_SCALE = 1 - 2.0**-15
CLIPPED_SHARE = 1e-3
LISTED_NAMES = 5
# Normal recordings of a correct installation look swapped no more often than this.
USUAL_SHARE = 0.05
ODDITIES = {
    "silent close": "A recording has a silent close microphone (channel 0).",
    "silent far": "A recording has a silent far microphone (channel 1); is it connected?",
    "identical": "A recording has two identical channels; a far microphone (channel 1) was expected.",
    "clipped": "A recording is at or above full scale in more than 0.1 % of its samples; it may be clipped.",
    "swapped": (
        "In a recording the far microphone (channel 1) hears the machine earlier and louder than the close one "
        "(channel 0); are the channels swapped?"
    ),
}

# These belong to far_leads_and_is_louder; lengths are samples at 16 kHz.
REFERENCE_RATE = 16000
LAG_FRAME = 1024
MAX_LAG = 60
MIN_LAG_FRAMES = 16
CHANCE = 6.0
LEAD_DB = 1.0
LOUDER_DB = 3.0

# These belong to the level of recordings.
NORMALISED_DB = -26.0
SILENCE_DB = -100.0
MARGIN_DB = 3.0
CHANNELS = ("close", "far")


def far_leads_and_is_louder(channels: np.ndarray, sampling_rate: int) -> bool:
    """Tell whether the far microphone hears the machine earlier and louder, as if `(2, N)` were swapped."""
    lag_frame, max_lag = (round(samples * sampling_rate / REFERENCE_RATE) for samples in (LAG_FRAME, MAX_LAG))
    if channels.shape[-1] < lag_frame * (MIN_LAG_FRAMES + 1) // 2:
        return False
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(lag_frame) / lag_frame)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(channels, lag_frame, axis=-1)[:, :: lag_frame // 2]
    spectra = np.fft.rfft(frames * window)  # (2, frames, K)
    power = (np.square(spectra.real) + np.square(spectra.imag)).mean(1)  # (2, K)
    tiny = float(np.finfo(np.float32).tiny)
    # The floor excludes bins of mere rounding errors from the normalisation.
    power = power + 1e-10 * power.max() + tiny
    cross = (spectra[0].conj() * spectra[1]).mean(0) / np.sqrt(power.prod(0))  # (K,)
    correlation = np.abs(np.fft.irfft(cross))  # far lags at the positive ones
    lags = correlation[1 : max_lag + 1].max()
    leads = max(correlation[-max_lag:].max(), correlation[0])
    weight = np.abs(cross) ** 4
    louder_db = (weight * 10 * np.log10(power[1] / power[0])).sum() / max(weight.sum(), tiny)
    chance = CHANCE / (lag_frame * spectra.shape[1]) ** 0.5
    return bool(leads > chance and leads > lags * 10 ** (LEAD_DB / 10) and louder_db > LOUDER_DB)


def find_oddities(channels: np.ndarray, sampling_rate: int) -> list[str]:
    """Return which of the `ODDITIES` a recording `(2, N)` float32 shows."""
    centred = channels - channels.mean(-1, keepdims=True)
    silent = np.square(centred).mean(-1) < SILENT_RMS**2  # a constant offset is silence, too
    shown = {
        "silent close": silent[0],
        "silent far": silent[1],
        "identical": not silent[0] and (channels[0] == channels[1]).all(),
        "clipped": ((np.abs(channels) >= FULL_SCALE).mean(-1) > CLIPPED_SHARE).any(),
        "swapped": not silent.any() and far_leads_and_is_louder(channels, sampling_rate),
    }
    return [oddity for oddity, is_shown in shown.items() if is_shown]


def levels_db(channels: np.ndarray) -> np.ndarray:
    """Compute the level of each channel of `(2, N)` without its offset, in dB of full scale; -inf for silence."""
    with np.errstate(divide="ignore"):
        return 20 * np.log10(channels.std(-1, dtype=np.float64))


def at_level(channels: np.ndarray, is_normalised: bool) -> np.ndarray:
    """Bring `(2, N)` float32 to the level at which the graph hears it: the close channel at -26 dB, or as recorded."""
    close_db = float(levels_db(channels)[0]) if is_normalised else -math.inf
    return channels * np.float32(10 ** ((NORMALISED_DB - close_db) / 20)) if close_db > SILENCE_DB else channels


class OddityReport:
    """Collects which recordings are odd, or louder or quieter than all normal ones, for one warning of each kind.

    Args:
        sampling_rate: of the recordings, in Hz.
        ranges: channel, "close" or "far", to the lowest and the highest level of the normal recordings as the graph
            hears them, in dB of full scale; `None` where nobody knows.
        channels: those that the graph hears.
        is_normalised: whether the graph brings the close channel to one level.
        usual_share: the share of the normal recordings that looked "swapped". Where it is above 5 %, the room or the
            place of a microphone does it, and nothing is said.
    """

    def __init__(
        self,
        sampling_rate: int,
        ranges: Mapping[str, Sequence[float]] | None,
        channels: Sequence[str],
        is_normalised: bool,
        usual_share: float = 0.0,
    ):
        self._sampling_rate, self._is_normalised = sampling_rate, is_normalised
        self._ranges = {name: ranges[name] for name in channels if name in ranges} if ranges else {}
        self._is_usual = {"swapped"} if usual_share > USUAL_SHARE else set()
        self._odd: dict[str, list[str]] = {}
        self._levels: dict[tuple[str, str], list[str]] = {}

    def note(self, name: str, channels: np.ndarray) -> None:
        """Look at a recording, or a window of it, `(2, N)` float32."""
        for oddity in set(find_oddities(channels, self._sampling_rate)) - self._is_usual:
            _add(self._odd.setdefault(oddity, []), name)
        if not self._ranges:
            return
        levels = levels_db(channels)
        if self._is_normalised and levels[0] > SILENCE_DB:
            levels = levels + (NORMALISED_DB - levels[0])
        for channel, level in zip(CHANNELS, levels.tolist(), strict=True):
            low, high = self._ranges.get(channel, (-math.inf, math.inf))
            # A silent microphone has a warning of its own.
            if level > SILENCE_DB and not low - MARGIN_DB <= level <= high + MARGIN_DB:
                _add(self._levels.setdefault((channel, "louder" if level > high else "quieter"), []), name)

    def report(self) -> None:
        """Log what was found."""
        for oddity, message in ODDITIES.items():
            if names := self._odd.get(oddity):
                logger.warning(f"{message} ({_listed(names)})")
        for (channel, how), names in self._levels.items():
            low, high = self._ranges[channel]
            logger.warning(
                f"The {channel} microphone is {how} than in all normal recordings, by more than {MARGIN_DB:g} dB "
                f"({low:.1f} to {high:.1f} dB there): has its gain or place changed? ({_listed(names)})"
            )


def _add(names: list[str], name: str) -> None:
    if name not in names[-1:]:
        names.append(name)


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: " + ", ".join(names[:LISTED_NAMES]) + (", ..." if len(names) > LISTED_NAMES else "")
