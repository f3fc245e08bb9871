"""Whether both microphones hear as they did when the scorer was fitted: before a score means anything.

Some faults show in the samples alone: silence, clipping, equal channels. The others are found by undoing them: where a
window is unlike every normal recording (levels in bands of both channels, and the coherence between them), but is like
one once its channels are swapped or a gain is undone, this is what has happened. A fault of the machine is not undone
that way: it changes some bands and not all alike.

Letters: P profiles of normal recordings, F bands, K frequency bins.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from ..hub.feature_extraction_two_channel import far_leads_and_is_louder
from ..hub.input_level import UsualMicrophones, mains_share, microphone_profiles

CHANNELS = ("close", "far")
# Less than this, in dB of full scale, is digital silence, or the rounding of 16 bits.
SILENT_DB = -96.0
# Clipped samples crowd at the end of their range: so many more in its last hundredth than in the one before.
CROWDED = 8.0
CLIPPED_SHARE = 2e-3
# A microphone that is this much quieter than in every normal recording, in dB, hears its own noise only.
DISCONNECTED_DB = 15.0
# A gain that is turned by less, in dB, is within what machines and rooms do.
LEAST_GAIN_DB = 6.0
# Without a change, a profile is no further from the nearest normal one than so many times the furthest of these, or
# than this in dB, the root mean square over bands.
USUAL_FACTOR, LEAST_DISTANCE_DB = 1.3, 2.0
# What explains a change leaves no more than this share of the distance.
EXPLAINED_SHARE = 0.6
# The far microphone hears what both hear this much louder, in dB, than it did in every normal recording.
FAR_LOUDER_DB = 3.0
# With so much of a gain, in dB, it is the louder one for certain: then only what comes first is asked.
ANY_LOUDER_DB = 40.0
# The lines of the mains hold this share of the power of a channel that hums, and so much more than they ever did.
HUM_SHARE, MORE_HUM = 0.4, 0.25
# So many windows, of one more, decide that a fault begins or ends, but for those that the samples alone show.
NUM_WINDOWS = 3
# The share of the normal recordings in which the far microphone may lead without that being usual.
USUAL_LEADS = 0.05


@dataclass(frozen=True)
class Health:
    """What is known of the microphones after a window.

    Attributes:
        fault: what is wrong, one line for people; `None` where nothing is.
        is_suspected: whether this window is odd, so that its score says little, be it that no fault is certain yet.
    """

    fault: str | None
    is_suspected: bool


class SensorHealth:
    """Judges the microphones window by window.

    Args:
        usual: what was learned when the scorer was fitted; `None` for a scorer of an earlier version: then only what
            the samples alone show is found.
        sampling_rate: of all windows, that of the model, in Hz.
    """

    def __init__(self, usual: UsualMicrophones | None, sampling_rate: int):
        self._sampling_rate = sampling_rate
        self._profiles: torch.Tensor | None = None
        self._usual_kinds: set[str] = set()
        self._leads_usually, self._far_gain_db = True, 0.0
        if usual is not None and len(usual.profiles) > 1:
            self._profiles = torch.tensor(usual.profiles)  # (P, 3, F)
            self._limit = max(LEAST_DISTANCE_DB, USUAL_FACTOR * _spread(self._profiles))
            levels = _channel_levels(self._profiles)  # (P, 2)
            self._lowest = levels.amin(0)  # (2,)
            # Who has one microphone only records silence, or the same sound, in the other channel.
            is_silent = (levels.amax(0) < SILENT_DB).tolist()
            self._usual_kinds = {f"dead {name}" for name, is_so in zip(CHANNELS, is_silent, strict=True) if is_so}
            if torch.equal(self._profiles[:, 0], self._profiles[:, 1]):
                self._usual_kinds.add("identical")
            # How much louder the far microphone ever hears what both hear. One that is set louder than the close one
            # is judged as if it were not, so that the share in which it leads means nothing there.
            self._far_over_close_db = float(_far_over_close_db(self._profiles).max())
            self._far_gain_db = max(0.0, self._far_over_close_db)
            self._leads_usually = self._far_gain_db == 0 and usual.far_leads > USUAL_LEADS
            self._usual_hum = usual.mains_shares
        self._fault: str | None = None
        self._recent: deque[bool] = deque(maxlen=NUM_WINDOWS + 1)

    def step(self, samples: np.ndarray, level_gain: float = 1.0) -> Health:
        """Take the next window.

        Args:
            samples: `(2, N)` float32, channel 0 close and 1 far, as recorded.
            level_gain: the factor that brings the window to the level at which the normal recordings were heard.
        """
        found = self.find(samples, level_gain)
        # Two readings of one fault must not keep each other from becoming certain, nor one window that looks well.
        self._recent.append(found is None)
        num_alike = sum(was_well == (found is None) for was_well in self._recent)
        if num_alike >= NUM_WINDOWS or (found is not None and found[2]):
            self._fault = None if found is None else found[1]
        return Health(self._fault, found is not None)

    def find(self, samples: np.ndarray, level_gain: float = 1.0) -> tuple[str, str, bool] | None:
        """Judge one window by itself, see `step`.

        Returns:
            the kind of fault, a line for people, and whether the samples alone prove it; `None` where all is well.
        """
        if not np.isfinite(samples).all():
            return "invalid", "The sound holds values that are no numbers.", True
        centred = samples - samples.mean(1, keepdims=True)
        levels = [20 * math.log10(max(float(one.std()), 1e-12)) for one in centred]
        for name, level in zip(CHANNELS, levels, strict=True):
            if level < SILENT_DB and f"dead {name}" not in self._usual_kinds:
                return f"dead {name}", f"The {name} microphone is silent ({max(level, -200):.0f} dB).", True
        if np.array_equal(samples[0], samples[1]) and "identical" not in self._usual_kinds:
            return "identical", "Both channels hold the same sound: one microphone is connected twice.", True
        for name, one in zip(CHANNELS, centred, strict=True):
            if _is_clipped(one):
                return f"clipped {name}", f"The {name} microphone is clipped: its gain is too high.", True
        if self._profiles is None:
            return None
        waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None] * level_gain
        profile = microphone_profiles(waveform)[0]  # (3, F)
        return self._unusual(profile, waveform)

    def _unusual(self, profile: torch.Tensor, waveform: torch.Tensor) -> tuple[str, str, bool] | None:
        """What is unlike every normal recording, and what explains it."""
        assert self._profiles is not None
        own = _channel_levels(profile[None])[0]  # (2,)
        for name, share, usual in zip(
            CHANNELS, mains_share(waveform[0], self._sampling_rate), self._usual_hum, strict=True
        ):
            if share > max(HUM_SHARE, usual + MORE_HUM):
                return f"humming {name}", f"The {name} microphone hums with the mains: look at its cable.", False
        for index, name in enumerate(CHANNELS):
            missing = float(self._lowest[index] - own[index])
            if missing > DISCONNECTED_DB:
                line = f"The {name} microphone hears next to nothing, {missing:.0f} dB less than it ever did."
                return f"disconnected {name}", line, False
        distance = float(_distances(self._profiles - profile).min())
        # Swapped channels are as far from the normal ones as these are from each other, where the microphones hear
        # nearly the same: then only the comparison tells them.
        explained = {"swapped": float(_distances(self._profiles - profile[[1, 0, 2]]).min())}
        if distance <= self._limit and explained["swapped"] > EXPLAINED_SHARE * distance:
            # Where normal recordings differ much, the relation of the channels is known better than their levels.
            is_louder = float(_far_over_close_db(profile[None])) > self._far_over_close_db + FAR_LOUDER_DB
            return self._far_leads(waveform, ANY_LOUDER_DB) if is_louder else None
        gains: dict[str, float] = {}
        for kind, rows in (("close", [0]), ("far", [1]), ("both", [0, 1])):
            explained[kind], gains[kind] = self._with_gain(profile, rows)
        best = min(explained, key=lambda kind: explained[kind])
        if explained[best] <= min(EXPLAINED_SHARE * distance, self._limit):
            if best == "swapped":
                return best, "The channels are swapped: the close microphone is where the far one was.", False
            if abs(gains[best]) >= LEAST_GAIN_DB:
                which = "Both microphones are" if best == "both" else f"The {best} microphone is"
                how = "louder" if gains[best] > 0 else "quieter"
                line = f"{which} {abs(gains[best]):.0f} dB {how} than in the normal recordings: has a gain changed?"
                return f"level-shifted {best}", line, False
        return self._far_leads(waveform, -self._far_gain_db)

    def _far_leads(self, waveform: torch.Tensor, far_gain_db: float) -> tuple[str, str, bool] | None:
        """Whether the machine comes to the far microphone first, and louder when this gain is given to it."""
        as_usual = waveform * torch.tensor([[1.0], [10 ** (far_gain_db / 20)]])  # (1, 2, N)
        if not self._leads_usually and bool(far_leads_and_is_louder(as_usual, self._sampling_rate)[0]):
            return "far leads", "The far microphone hears the machine earlier and louder than the close one.", False
        return None

    def _with_gain(self, profile: torch.Tensor, rows: list[int]) -> tuple[float, float]:
        """The distance that is left when the best gain of some channels is undone, and this gain in dB."""
        assert self._profiles is not None
        difference = self._profiles - profile  # (P, 3, F)
        # The median is that of most bands, whatever a machine does in the others.
        gain = difference[:, rows].flatten(1).median(1).values  # (P,)
        undone = difference.clone()
        undone[:, rows] -= gain[:, None, None]
        distances = _distances(undone)
        nearest = int(distances.argmin())
        return float(distances[nearest]), -float(gain[nearest])


def _distances(differences: torch.Tensor) -> torch.Tensor:
    """Root mean squares `(P,)` of differences of profiles `(P, 3, F)`, in dB."""
    return differences.square().mean((1, 2)).sqrt()


def _spread(profiles: torch.Tensor) -> float:
    """The largest distance from a profile to the nearest other one."""
    distances = torch.stack([_distances(profiles - profile) for profile in profiles])  # (P, P)
    distances.fill_diagonal_(math.inf)
    return float(distances.amin(1).max())


def _far_over_close_db(profiles: torch.Tensor) -> torch.Tensor:
    """How much louder `(P,)` the far channel of profiles `(P, 3, F)` is in the bands that both hear, in dB."""
    weights = (profiles[:, 2] / 10).square()  # (P, F), of the coherence, so that the bands of one channel do not count
    return (weights * (profiles[:, 1] - profiles[:, 0])).sum(1) / weights.sum(1).clamp_min(1e-9)


def _channel_levels(profiles: torch.Tensor) -> torch.Tensor:
    """Levels `(P, 2)` of the channels over all bands, from profiles `(P, 3, F)`, in dB."""
    return 10 * (10 ** (profiles[:, :2] / 10)).sum(-1).log10()


def _is_clipped(channel: np.ndarray) -> bool:
    """Whether the samples `(N,)` crowd at both ends, or one end, of their range."""
    magnitude = np.abs(channel)
    largest = float(magnitude.max())
    if largest <= 0:
        return False
    last = float((magnitude > 0.99 * largest).mean())
    before = float(((magnitude > 0.98 * largest) & (magnitude <= 0.99 * largest)).mean())
    return last > CLIPPED_SHARE and last > CROWDED * before
