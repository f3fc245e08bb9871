"""A far microphone that is calibrated: it learns how the noise of one installation gets to the close microphone.

Letters: B clips, N samples, K frequencies of a block, P taps of a filter, S frequencies of a frame.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from .noise_cancellation import (
    METHODS,
    REFERENCE_RATE,
    TINY,
    Contrast,
    Heard,
    NoisePathSums,
    Spectra,
    block_length,
    blocks_of,
    cancel_far_microphone,
    excess_slope,
    frame_slope,
    frequency_response,
    lead_db,
    level_ratio,
    solve_noise_path,
    stft_lengths,
    subtraction_hop,
    without_noise,
)
from .whole_files import whole_file

logger = logging.get_logger(__name__)

FAR_MICROPHONE_FILE = "far_microphone.safetensors"
FAR_MICROPHONE_METHODS = ("installation", "filter", "spectral_subtraction", "none", "auto")
# Those that learn from normal recordings; the others take every clip alone.
CALIBRATED_METHODS = tuple(name for name in FAR_MICROPHONE_METHODS if name not in (*METHODS, "none"))
_CONTRAST_NAMES = tuple(f"contrast_{name}_spectra" for name in Contrast._fields)
# Bands of `report`, in Hz; the last one ends at half the sampling rate.
REPORT_EDGES_HZ = (0.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0)
# Fewer seconds than this many lengths of the filter say too little of it.
_LEAST_FILTER_LENGTHS = 10
# Where the filter takes this much of the noise, in dB, subtraction after it would cost more than it takes.
_ENOUGH_DB = 5.0
# Noise is subtracted twice, in power: what its fluctuation leaves otherwise hides more than the machine loses by it
# (Berouti et al., 1979).
_OVERSUBTRACTION = 2.0
# "auto": the close microphone must follow the power of the far one by this share, or there is nothing to take away. The
# second one is for normal recordings alone, of which the machine's part is known better.
_LEAST_SLOPE, _LEAST_SLOPE_OF_CONTRAST = 0.05, 0.01
# "auto" stands back where the machine comes to the far microphone first, in dB: what is softest at the close microphone
# is then the machine, and no noise. Of 81 simulated sites on which this was chosen, the 12 in which the far microphone
# hears more of the machine for its noise than the close one does had -7.7 or less, and the others -5.4 or more.
_LEAST_LEAD_DB = -6.7
# It does not where the machine is this much louder at the close microphone, in dB: then it is the noise that comes to
# the far one first. Of 46 simulated sites, 9 had such a lead: filters harmed the 7 of 0.8 dB or less, and helped the 2
# of 14 dB or more.
_CLEAR_LEVEL_DB = 3.0
# "auto": where a filter takes as much, in dB, from what it was not drawn from, subtraction costs more than it gains.
_ENOUGH_HELD_OUT_DB = 7.0
# "auto" subtracts this share of the power that the far microphone may explain: a whole one takes too much of machines,
# of real ones above all, also where the far microphone hardly hears them.
_CONTRAST_SUBTRACTION = 0.25
# The memory for the sums grows with the rate, so that a damaged file must not choose it.
_RATE_RANGE = (1000, 192_000)
_SILENT_POWER = 1e-12  # -120 dB of full scale
# Machine-off recordings that are alike to the normal ones within this, in dB, are suspicious.
_ALIKE_DB = 0.5
# Beyond this change in dB, recordings are no more those of the installation that was calibrated.
DRIFT_DB = 3.0
_SWAPPED_DB = 3.0
# As much of what is scored is compared with the calibration at a time; less would differ from it by chance.
LISTENED_SECONDS = 120.0


@dataclass(frozen=True)
class CancelledBand:
    """What calibration took from one frequency band.

    Attributes:
        low, high: the edges of the band in Hz.
        cancelled_db: how much less of the noise, the difference between loud and quiet blocks, is left; in dB.
        coherence: the magnitude-squared coherence of the noise between the microphones, in [0, 1].
    """

    low: float
    high: float
    cancelled_db: float
    coherence: float


@dataclass(frozen=True)
class Drift:
    """How far recordings are from those of the calibration.

    Attributes:
        residual_db: by how much more of the noise the filter now leaves, in dB; 0 for the same installation.
        level_db: change of the far microphone's level against the close one's, in dB.
        is_drifted: whether either is beyond what chance does, 3 dB.
    """

    residual_db: float
    level_db: float
    is_drifted: bool


@dataclass
class FarMicrophone:
    """Learns from normal recordings of one installation how noise gets from the far to the close microphone.

    A machine and its microphones stay where they are, so that one filter serves all recordings. It is solved for by the
    *difference* between the spectra of blocks in which the far microphone is loud and of those in which it is quiet: a
    machine that runs steadily has no part in the difference, and is not cancelled although the far microphone hears it.
    The filter acts on samples (`cancel`), 128 ms of later and 256 ms of earlier ones by default.

    ```python
    far_microphone = FarMicrophone().fit(normals)       # each (2, N): channel 0 close, 1 far
    cleaned = far_microphone.cancel(waveforms)          # (B, 2, N) -> (B, 2, N)
    ```

    Args:
        method: `"installation"`, the filter, and after it subtraction of what it leaves, where it takes less than 5 dB
            of the noise in the normal recordings; `"filter"` alone; `"spectral_subtraction"`, which learns nothing, of
            [`cancel_far_microphone`]; `"none"`; or `"auto"`, which takes for noise what is softest at the close
            microphone against the far one, where the two others take what varies, subtracts less, and is `"none"`
            where the machine comes to the far microphone first, or the close one does not follow it. With recordings
            of the noise alone it is `"installation"`, or `"none"`.
        sampling_rate: of all recordings, in Hz.
        past, future: length of the filter in s over earlier and later samples of the far microphone. `future=0` gives
            a causal filter without delay, which cancels less where noise reaches the close microphone first.

    Attributes:
        method_: the method in use, one of the first four.
        filter_: `(P,)` float32, tap i belongs to the far sample `i - future` samples ago; zero with other methods.
        slope_: `(S,)` float32, power that is subtracted for each power of the far microphone, at the frequencies of
            frames of 32 ms: twice what the filter leaves, or with `"auto"` a quarter of it; zero where nothing is
            subtracted.
        heard_: spectra of the noise, from which the filter is drawn, and of all that the normal recordings hold.
        contrast_: spectra of the parts with least and with most of the machine, of which `"auto"` draws the filter
            instead; `None` with other methods, and where recordings of the noise alone were heard.
        num_seconds_: how much was heard.

    Raises:
        ValueError: a setting is out of its range.
    """

    method: str = "installation"
    sampling_rate: int = REFERENCE_RATE
    past: float = 0.256
    future: float = 0.128

    def __post_init__(self) -> None:
        self.method_: str | None = None
        self._off: NoisePathSums | None = None
        self._halves: list[NoisePathSums] = []
        self._ratio_halves: list[NoisePathSums] = []
        self.contrast_: Contrast | None = None
        # What `listen` has heard, the seconds that it passes over next, and whether it told of a drift.
        self._listened: NoisePathSums | None = None
        self._unheard: float = 0.0
        self._is_told: bool = False
        if not isinstance(self.method, str) or self.method not in FAR_MICROPHONE_METHODS:
            raise ValueError(f"`method` must be one of {list(FAR_MICROPHONE_METHODS)}, got {self.method!r}.")
        rate, (lowest, highest) = self.sampling_rate, _RATE_RANGE
        if isinstance(rate, bool) or not isinstance(rate, int) or not lowest <= rate <= highest:
            raise ValueError(f"`sampling_rate` must be a whole number of {lowest} to {highest} Hz, got {rate!r}.")
        for name, least in (("past", 0.001), ("future", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= 0.256:
                raise ValueError(f"`{name}` must be from {least} to 0.256 s, got {value!r}.")
        self._forget()

    # Learning

    def fit(
        self, recordings: Iterable[torch.Tensor], machine_off: Iterable[torch.Tensor] | None = None
    ) -> "FarMicrophone":
        """Learn from normal recordings in one pass, and from recordings of the noise alone where there are some.

        Args:
            recordings: each `(2, N)` or `(B, 2, N)`, see `partial_fit`; their order has no influence.
            machine_off: recordings in which the machine is off. The filter is then drawn from them alone.

        Raises:
            ValueError: no recordings, one that `partial_fit` refuses, or what `finish` refuses.
        """
        self._forget()
        for is_off, several in ((False, recordings), (True, machine_off)):
            for waveforms in [] if several is None else several:
                self.partial_fit(waveforms, machine_off=is_off)
        return self.finish()

    def partial_fit(self, waveforms: torch.Tensor, machine_off: bool = False) -> "FarMicrophone":
        """Add recordings to the sums; `finish` then makes the filter. No memory is taken for each.

        What was loaded has no sums, so that this would begin anew: `update` goes on from it.

        Args:
            waveforms: `(2, N)` or `(B, 2, N)` of any float dtype and device, channel 0 close and 1 far.
            machine_off: whether the machine is off in them.

        Raises:
            ValueError: another shape, integers, NaN or infinite values.
        """
        channels = self._checked(waveforms)
        if machine_off:
            if self._off is None:
                self._off = NoisePathSums(self.sampling_rate)
            self._off.add(channels)
            return self
        self._make_halves()
        for recording in channels.detach():
            # A half is chosen by the samples, so that the order of the recordings has no influence.
            parity, blocks = _parity(recording), blocks_of(recording, self.sampling_rate)
            for halves in (self._halves, self._ratio_halves):
                if halves:
                    halves[parity].add_blocks(blocks)
        return self

    def finish(self) -> "FarMicrophone":
        """Solve for the filter with all that was heard, and choose the method where it is `"auto"`.

        Raises:
            ValueError: no recordings, too few seconds of them, or a silent far microphone.
        """
        self._make_halves()
        both = self._halves[0].joined(self._halves[1])
        self._check_enough(both, "recordings")
        if self._off is not None:
            self._check_enough(self._off, "machine_off")
            self._warn_if_alike(both.mean(), self._off.mean())
        self.num_seconds_ = both.num_samples / self.sampling_rate
        self._warn_if_swapped(both.quiet())
        self.contrast_ = None
        if self._off is not None:
            self.heard_ = Heard(self._off.mean(), both.mean())
            self._solve([])
            return self
        self.heard_ = Heard(both.difference(), both.mean())
        if self._ratio_halves and self.method == "auto":
            contrast = self._ratio_halves[0].joined(self._ratio_halves[1]).contrast()
            self._choose(contrast, [half for half in self._ratio_halves if half.counts.any()])
            return self
        halves = [half for half in self._halves if half.counts.any()]
        self._solve([Heard(half.difference(), half.mean()) for half in halves])
        return self

    def _choose(self, contrast: Contrast, halves: Sequence[NoisePathSums]) -> None:
        """Choose by normal recordings alone whether to do anything, and whether to subtract after the filter."""
        self.contrast_ = contrast
        self.filter_, self.method_ = torch.zeros(sum(self._num_taps())), "none"
        self.slope_ = torch.zeros_like(frame_slope(contrast.noise.far))
        lead = lead_db(contrast.machine, self.sampling_rate)
        level = level_ratio(contrast.without_noise(), self.sampling_rate)
        if lead < _LEAST_LEAD_DB and 10 * math.log10(max(level, TINY)) < _CLEAR_LEVEL_DB:
            logger.warning(
                "The machine seems to be heard by the far microphone (channel 1) before the close one (channel 0), by "
                f"{-lead:.1f} dB: 'auto' leaves the close microphone as it is."
            )
            return
        if float(self._excess(self.heard_.noise, self.filter_).median()) < _LEAST_SLOPE_OF_CONTRAST:
            return
        self.method_ = "installation"
        heard = [Heard(half.contrast().without_machine(), half.mean()) for half in halves]
        self._solve_contrast(contrast, heard, is_subtracted=self._held_out_db(heard) < _ENOUGH_HELD_OUT_DB)

    def _solve_contrast(self, contrast: Contrast, halves: Sequence[Heard], is_subtracted: bool) -> None:
        noise = Heard(contrast.without_machine(), self.heard_.all)
        self.filter_ = solve_noise_path(noise, halves, *self._num_taps(), self.sampling_rate)
        left = _CONTRAST_SUBTRACTION * frame_slope(self._excess(contrast.noise, self.filter_))
        self.slope_ = left if is_subtracted else torch.zeros_like(left)

    def _excess(self, spectra: Spectra, taps: torch.Tensor) -> torch.Tensor:
        return excess_slope(spectra, taps, self._num_taps()[1], self.sampling_rate)

    def _held_out_db(self, halves: Sequence[Heard]) -> float:
        """Return how much a filter takes, in dB, from the noise in the half that it was not drawn from; 0 without."""
        if len(halves) != 2:
            return 0.0
        taken = []
        for half, other in zip(halves, reversed(halves), strict=True):
            taps = solve_noise_path(half, [], *self._num_taps(), self.sampling_rate)
            before, left = (self._excess(other.noise, one) for one in (torch.zeros_like(taps), taps))
            taken.append(_cancelled_db(before, left))
        return sum(taken) / 2

    def _solve(self, halves: Sequence[Heard]) -> None:
        zero = torch.zeros(sum(self._num_taps()))
        self.filter_, self.method_ = zero, self.method
        if self.method in ("installation", "filter", "auto"):
            self.filter_ = solve_noise_path(self.heard_, halves, *self._num_taps(), self.sampling_rate)
        before, left = (self._excess(self.heard_.noise, taps) for taps in (zero, self.filter_))
        self.slope_ = torch.zeros_like(frame_slope(left))
        if self.method == "auto":
            self.method_ = "installation" if float(before.median()) >= _LEAST_SLOPE else "none"
        if self.method_ == "installation" and _cancelled_db(before, left) < _ENOUGH_DB:
            self.slope_ = _OVERSUBTRACTION * frame_slope(left)
        if self.method_ == "none":
            self.filter_ = zero

    def _num_taps(self) -> tuple[int, int]:
        past, future = (round(seconds * self.sampling_rate) for seconds in (self.past, self.future))
        return past, future

    # Use

    def cancel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Take the noise out of the close channel; the far one stays as it is.

        Args:
            waveforms: `(B, 2, N)` of any float dtype and device, at `sampling_rate`; every recording is treated alone.

        Returns:
            `(B, 2, N)` float32 on the same device, differentiable.

        Raises:
            ValueError: not fitted yet, another shape, or integers.
        """
        self._check_fitted()
        channels = self._shaped(waveforms)
        close, far = channels.unbind(1)
        if self.method_ in ("filter", "installation"):
            slope = self.slope_ if self.method_ == "installation" else torch.zeros_like(self.slope_)
            close = without_noise(close, far, self.filter_, slope, self._num_taps()[1])
        elif self.method_ == "spectral_subtraction":
            close = cancel_far_microphone(close, far, "spectral_subtraction", self.sampling_rate)
        return torch.stack([close, far], dim=1)

    @property
    def latency(self) -> int:
        """How many later samples decide what `cancel` makes of one, and by how many a `stream` is late.

        These are the `future` of the filter and, where something is subtracted, three hops of 16 ms (two for
        `"spectral_subtraction"`), because a frame needs all of its samples and those of the next one.

        Raises:
            ValueError: not fitted yet.
        """
        self._check_fitted()
        return self._reach()[1]

    def stream(self) -> "CancellingStream":
        """Return what takes the noise out of one recording while it goes on, see [`CancellingStream`].

        Raises:
            ValueError: not fitted yet.
        """
        self._check_fitted()
        return CancellingStream(self)

    def _reach(self) -> tuple[int, int, int]:
        """Return by how many earlier and later samples one is decided, and the grid on which frames begin."""
        past, future = self._num_taps() if self.method_ in ("filter", "installation") else (0, 0)
        if self.method_ == "installation" and self.slope_.any():
            hop = subtraction_hop(len(self.slope_))
            return past + 3 * hop, future + 3 * hop, hop
        if self.method_ == "spectral_subtraction":
            length, hop = stft_lengths(self.method_, self.sampling_rate)
            return length, length, hop
        return past, future, 1

    def report(self) -> list[CancelledBand]:
        """Return what the filter takes from the noise of the normal recordings, band by band."""
        self._check_fitted()
        response = frequency_response(self.filter_, self._num_taps()[1], self.sampling_rate)
        frequencies = torch.linspace(0, self.sampling_rate / 2, len(response), dtype=torch.float64)
        edges = [edge for edge in REPORT_EDGES_HZ if edge < self.sampling_rate / 2] + [self.sampling_rate / 2]
        bands = []
        for low, high in pairwise(edges):
            inside = (frequencies >= low) & (frequencies < high)
            close = self.heard_.noise.close[inside].sum().clamp_min(TINY)
            left = self.heard_.noise.residual(response)[inside].sum()
            # Coherence is that of each frequency; a mean over the band would mix the phases of different paths.
            power = (self.heard_.noise.close * self.heard_.noise.far)[inside]
            cross = self.heard_.noise.cross[inside].abs().square()
            coherence = (cross.sum() / power.clamp_min(TINY).sum()).clamp(0, 1)
            bands.append(
                CancelledBand(low, high, float(-10 * (left / close).clamp(1e-6, 1e6).log10()), float(coherence))
            )
        return bands

    # Drift

    def drift(self, recordings: Iterable[torch.Tensor]) -> Drift:
        """Measure whether recordings still come from the installation that was calibrated.

        Args:
            recordings: as for `fit`, normal or not; about a minute or more of them tells little changes from chance.

        Raises:
            ValueError: not fitted yet, or as `fit`.
        """
        self._check_fitted()
        return self._drift_of(self._heard_in(recordings).noise)

    def listen(self, recordings: torch.Tensor) -> None:
        """Warn where recordings that are scored have drifted, with the measure; a tenth of them is listened to.

        Two minutes that follow each other are compared with the calibration, then eighteen are passed over, so that the
        time and the memory of it are small. A drift is told once, until recordings are again as they were.

        Args:
            recordings: `(B, 2, N)` float, as for `cancel`.

        Raises:
            ValueError: not fitted yet.
        """
        self._check_fitted()
        seconds = recordings.shape[0] * recordings.shape[-1] / self.sampling_rate
        if self.method_ == "none" or self._unheard >= seconds:
            self._unheard -= seconds
            return
        if self._listened is None:
            self._listened = NoisePathSums(self.sampling_rate)
        self._listened.add(recordings.float())
        if self._listened.num_samples < LISTENED_SECONDS * self.sampling_rate:
            return
        listened, self._listened, self._unheard = self._listened, None, 9 * LISTENED_SECONDS
        if float(listened.mean().far.mean()) >= _SILENT_POWER:
            self._tell_drift(listened.difference())

    def listen_anew(self) -> None:
        """Forget what `listen` has heard, so that the next recordings are listened to."""
        self._listened = None
        self._unheard, self._is_told = 0.0, False

    def _tell_drift(self, noise: Spectra) -> None:
        drift = self._drift_of(noise)
        if drift.is_drifted and not self._is_told:
            swapped = self._drift_of(Spectra(noise.far, noise.close, noise.cross.conj()))
            guess = "" if swapped.is_drifted else " With its channels swapped it would be as it was: are they?"
            logger.warning(
                f"The installation has drifted since the far microphone was calibrated: {drift.residual_db:+.1f} dB of "
                f"noise that the filter leaves, {drift.level_db:+.1f} dB of the far microphone against the close one "
                f"(normal: within {DRIFT_DB:g} dB). Fit the scorer anew on normal recordings of today.{guess}"
            )
        self._is_told = drift.is_drifted

    def _drift_of(self, now: Spectra) -> Drift:
        rate, future, none = self.sampling_rate, self._num_taps()[1], torch.zeros_like(self.filter_)
        before_db, now_db = (
            [10 * excess_slope(noise, taps, future, rate).clamp_min(1e-3).log10() for taps in (self.filter_, none)]
            for noise in (self.heard_.noise, now)
        )
        residual, level = (float((new - old).median()) for new, old in zip(now_db, before_db, strict=True))
        # A microphone that became quieter leaves more noise, too; the filter's part is what the level does not explain.
        residual -= level
        return Drift(residual, -level, max(residual, abs(level)) > DRIFT_DB)

    def update(self, recordings: Iterable[torch.Tensor], forget: float = 0.9) -> "FarMicrophone":
        """Follow a slow drift: blend what new normal recordings say into what was learned, and solve anew.

        Args:
            recordings: as for `fit`.
            forget: share of the old calibration that stays, in [0, 1].

        Raises:
            ValueError: not fitted yet, `forget` is out of its range, or as `fit`.
        """
        self._check_fitted()
        if isinstance(forget, bool) or not isinstance(forget, (int, float)) or not 0 <= forget <= 1:
            raise ValueError(f"`forget` must be in [0, 1], got {forget!r}.")
        by_ratio = None if self.contrast_ is None else NoisePathSums(self.sampling_rate, by_ratio=True)
        new = self._heard_in(recordings, by_ratio)
        self.heard_ = Heard(*(old.blended(one, forget) for old, one in zip(self.heard_, new, strict=True)))
        if self.contrast_ is None or by_ratio is None:
            self._solve([])
            return self
        self.contrast_ = self.contrast_.blended(by_ratio.contrast(), forget)
        # The choice was made on halves of the recordings, which are gone.
        if self.method_ != "none":
            self._solve_contrast(self.contrast_, [], is_subtracted=bool(self.slope_.any()))
        return self

    def _heard_in(self, recordings: Iterable[torch.Tensor], by_ratio: NoisePathSums | None = None) -> Heard:
        """Return the spectra of recordings, which are added to `by_ratio` as well, if it is given."""
        sums = NoisePathSums(self.sampling_rate)
        every = [sums] if by_ratio is None else [sums, by_ratio]
        for waveforms in recordings:
            for recording in self._checked(waveforms).detach():
                blocks = blocks_of(recording, self.sampling_rate)
                for one in every:
                    one.add_blocks(blocks)
        self._check_enough(sums, "recordings")
        return Heard(sums.difference(), sums.mean())

    # Saving

    def without_sums(self) -> "FarMicrophone":
        """Return what would be loaded: a copy without the sums over recordings, which take more than most models.

        Raises:
            ValueError: not fitted yet.
        """
        return FarMicrophone.from_state(*self.state())

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what was learned: tensors for a safetensors file, and settings that JSON holds; see `from_state`.

        Raises:
            ValueError: not fitted yet.
        """
        self._check_fitted()
        tensors = {"filter": self.filter_, "slope": self.slope_}
        for name, spectra in zip(Heard._fields, self.heard_, strict=True):
            tensors[f"{name}_spectra"] = spectra.stacked().float()  # (4, K)
        for name, spectra in zip(_CONTRAST_NAMES, self.contrast_ or (), strict=False):
            tensors[name] = spectra.stacked().float()
        return tensors, asdict(self) | {"chosen": self.method_, "num_seconds": self.num_seconds_}

    @classmethod
    def from_state(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> "FarMicrophone":
        """Return the calibrated far microphone whose `state` this is; other keys in `settings` are ignored.

        Raises:
            ValueError: a key is missing, a value is out of its range, or a tensor has another shape or is not finite.
        """
        names = {field.name for field in fields(cls)} | {"chosen", "num_seconds"}
        wanted = {"filter", "slope", *(f"{name}_spectra" for name in Heard._fields)}
        if not isinstance(settings, Mapping) or not names <= set(settings) or not wanted <= set(tensors):
            raise ValueError(
                f"`settings` must have the keys {sorted(names)} and `tensors` {sorted(wanted)}, "
                f"got {sorted(settings)} and {sorted(tensors)}."
            )
        loaded = cls(**{field.name: settings[field.name] for field in fields(cls)})
        chosen, seconds = settings["chosen"], settings["num_seconds"]
        if chosen not in FAR_MICROPHONE_METHODS[:-1] or loaded.method not in (chosen, "auto"):
            raise ValueError(f"`chosen` must be what method={loaded.method!r} can be, got {chosen!r}.")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise ValueError(f"`num_seconds` must be a positive number, got {seconds!r}.")
        num_frequencies = block_length(loaded.sampling_rate) // 2 + 1
        # Scorers of earlier versions have none of the contrast, and those of other methods neither.
        with_contrast = loaded.method == "auto" and set(_CONTRAST_NAMES) <= set(tensors)
        wanted |= set(_CONTRAST_NAMES) if with_contrast else set()
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(wanted, (4, num_frequencies))
        shapes |= {
            "filter": (sum(loaded._num_taps()),),
            "slope": tuple(frame_slope(torch.zeros(num_frequencies)).shape),
        }
        for name, shape in shapes.items():
            if tuple(tensors[name].shape) != shape or not tensors[name].isfinite().all():
                raise ValueError(f"`{name}` must be finite of shape {shape}, got {tuple(tensors[name].shape)}.")
        loaded.method_, loaded.num_seconds_ = chosen, float(seconds)
        loaded.filter_, loaded.slope_ = tensors["filter"].float().cpu(), tensors["slope"].float().cpu()
        loaded.heard_ = Heard(*(Spectra.of(tensors[f"{name}_spectra"]) for name in Heard._fields))
        if with_contrast:
            loaded.contrast_ = Contrast(*(Spectra.of(tensors[name]) for name in _CONTRAST_NAMES))
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `far_microphone.safetensors`, whole or not at all.

        Raises:
            ValueError: not fitted yet.
            OSError: the directory cannot be written.
        """
        tensors, settings = self.state()
        path = Path(save_directory) / FAR_MICROPHONE_FILE
        try:
            with whole_file(path) as partial:
                metadata = {"format": "pt", "far_microphone": json.dumps(settings)}
                save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, partial, metadata)
        except SafetensorError as error:
            raise OSError(f"Could not write {path}: {error}") from error

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "FarMicrophone":
        """Read what `save_pretrained` wrote.

        Raises:
            OSError: the file is missing, or not one of a far microphone.
        """
        try:
            with safe_open(path, framework="pt") as file:
                settings = json.loads((file.metadata() or {})["far_microphone"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return cls.from_state(tensors, settings)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise OSError(f"{path} must be a calibrated far microphone: {' '.join(str(error).split())}") from error

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what `cancel` does."""
        self._check_fitted()
        digest = hashlib.blake2b(json.dumps([asdict(self), self.method_], sort_keys=True).encode(), digest_size=16)
        for tensor in (self.filter_, self.slope_):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    # Checks

    def _forget(self) -> None:
        self._halves, self._ratio_halves = [], []
        self._off = self.contrast_ = None
        self.method_ = None
        self.listen_anew()

    def _make_halves(self) -> None:
        # They take 33 MB each at 16 kHz, which one that was loaded does not need.
        if not self._halves:
            self._halves = [NoisePathSums(self.sampling_rate), NoisePathSums(self.sampling_rate)]
            if self.method == "auto":
                self._ratio_halves = [NoisePathSums(self.sampling_rate, by_ratio=True) for _ in range(2)]

    def _check_fitted(self) -> None:
        if self.method_ is None:
            raise ValueError("This FarMicrophone is not fitted yet: call `fit` with normal recordings first.")

    @staticmethod
    def _shaped(waveforms: torch.Tensor) -> torch.Tensor:
        if not isinstance(waveforms, torch.Tensor) or waveforms.dim() != 3 or waveforms.shape[1] != 2:
            got = tuple(waveforms.shape) if isinstance(waveforms, torch.Tensor) else type(waveforms).__name__
            raise ValueError(f"`waveforms` must be a tensor of shape (B, 2, N), got {got}.")
        if not waveforms.is_floating_point():
            raise ValueError(f"`waveforms` must be floating point of full scale 1.0, got {waveforms.dtype}.")
        return waveforms.float()

    @classmethod
    def _checked(cls, waveforms: torch.Tensor) -> torch.Tensor:
        if isinstance(waveforms, torch.Tensor) and waveforms.dim() == 2:
            waveforms = waveforms[None]
        channels = cls._shaped(waveforms)
        if channels.numel() and not channels.isfinite().all():
            value = float(channels[~channels.isfinite()][0])
            raise ValueError(f"`waveforms` must be finite, got {value}.")
        return channels

    def _check_enough(self, sums: NoisePathSums, name: str) -> None:
        if sums.num_samples == 0:
            raise ValueError(f"`{name}` must hold at least one recording, got none.")
        needed = _LEAST_FILTER_LENGTHS * sum(self._num_taps()) / self.sampling_rate
        if (seconds := sums.num_samples / self.sampling_rate) < needed:
            raise ValueError(
                f"`{name}` must hold at least {needed:.2f} s for a filter of {sum(self._num_taps())} taps, "
                f"got {seconds:.2f} s."
            )
        if float(sums.mean().far.mean()) < _SILENT_POWER:
            raise ValueError(
                f"`{name}` must have a far microphone (channel 1) that hears something, got silence: there is nothing "
                "to calibrate on."
            )

    @staticmethod
    def _warn_if_alike(normal: Spectra, off: Spectra) -> None:
        """Warn where the machine seems to run in recordings in which it should be off."""
        heard = (normal.far > TINY) & (off.far > TINY) & (normal.close > TINY) & (off.close > TINY)
        # The noise may be as loud as it likes, but with the machine the close microphone hears more for each far power.
        ratios = [spectra.close[heard] / spectra.far[heard] for spectra in (normal, off)]
        change = 10 * (ratios[0] / ratios[1]).log10().abs()
        if len(change) and float(change.median()) < _ALIKE_DB:
            logger.warning(
                "`machine_off` recordings sound like the normal ones (close to far microphone, within "
                f"{float(change.median()):.2f} dB): the machine runs in them, or is not heard in the normal ones."
            )

    @staticmethod
    def _warn_if_swapped(quiet: Spectra) -> None:
        """Warn where, in quiet blocks, the far microphone hears the machine earlier and louder than the close one."""
        coherence = quiet.cross.abs().square() / (quiet.close * quiet.far).clamp_min(TINY)
        louder = 10 * (quiet.far.clamp_min(TINY) / quiet.close.clamp_min(TINY)).log10()
        level = float((louder * coherence.square()).sum() / coherence.square().sum().clamp_min(TINY))
        correlation = torch.fft.irfft(quiet.cross / (quiet.close * quiet.far).clamp_min(TINY).sqrt()).abs()
        far_leads, close_leads = (
            correlation[1 : len(correlation) // 2].max(),
            correlation[len(correlation) // 2 :].max(),
        )
        if level > _SWAPPED_DB and far_leads > max(close_leads, correlation[0]):
            logger.warning(
                "The far microphone (channel 1) hears the machine earlier and "
                f"{level:.1f} dB louder than the close one (channel 0); are the channels swapped?"
            )


class CancellingStream:
    """Takes the noise out of a recording that goes on, block by block; `FarMicrophone.stream` makes it.

    All that was given back, joined, is what `FarMicrophone.cancel` makes of the whole recording, to rounding, however
    it was cut into blocks. What is kept does not grow.

    ```python
    stream = far_microphone.stream()
    for block in blocks:                  # each (2, n)
        cleaned = stream.push(block)      # (2, m): n samples as well, once `latency` samples have been taken in
    rest = stream.finish()                # (2, latency)
    ```

    Attributes:
        latency: samples by which the output is late.
    """

    def __init__(self, far_microphone: FarMicrophone):
        self._far_microphone = far_microphone
        self._before, self.latency, self._grid = far_microphone._reach()
        self._begin()

    def _begin(self) -> None:
        self._kept = torch.zeros(2, 0)  # the last samples that were taken in
        self._start = 0  # the place of the first of them in the recording, always on the grid
        self._given = 0

    def push(self, block: torch.Tensor) -> torch.Tensor:
        """Take in the next samples, and give back those that no later sample will change.

        Args:
            block: `(2, n)` of any float dtype, n >= 0; channel 0 close and 1 far, at the rate of the calibration. All
                blocks of a recording must be on one device.

        Returns:
            `(2, m)` float32 on the same device. After N samples in all, `max(0, N - latency)` have been given back.

        Raises:
            ValueError: another shape, integers, NaN or infinite values.
        """
        if isinstance(block, torch.Tensor) and block.dim() != 2:
            raise ValueError(f"`block` must be a tensor of shape (2, n), got {tuple(block.shape)}.")
        with torch.no_grad():
            new = FarMicrophone._checked(block)[0]
            self._kept = torch.cat([self._kept.to(new.device), new], dim=1)
            return self._give(self._start + self._kept.shape[1] - self.latency)

    def finish(self) -> torch.Tensor:
        """Give back the samples that are left, `(2, latency)` or all of a shorter recording; the next one may begin."""
        with torch.no_grad():
            rest = self._give(self._start + self._kept.shape[1])
        self._begin()
        return rest

    def _give(self, end: int) -> torch.Tensor:
        """Return the samples up to `end` that were not given yet, and forget what no later one needs."""
        if end <= self._given:
            return self._kept[:, :0]
        cancelled = self._far_microphone.cancel(self._kept[None])[0]
        given = cancelled[:, self._given - self._start : end - self._start]
        self._given = end
        unneeded = max(0, end - self._before - self._start) // self._grid * self._grid
        self._kept, self._start = self._kept[:, unneeded:].clone(), self._start + unneeded
        return given


def _cancelled_db(before: torch.Tensor, left: torch.Tensor) -> float:
    """Return how much of the noise is cancelled, in dB, as the mean over frequencies `(K,)` that count alike."""
    heard = before > TINY
    return float(-10 * (left[heard] / before[heard]).clamp(1e-6, 1.0).log10().mean()) if heard.any() else 0.0


def _parity(recording: torch.Tensor) -> int:
    """Return 0 or 1, which the samples decide."""
    return hashlib.blake2b(recording.cpu().contiguous().numpy().data, digest_size=1).digest()[0] & 1
