"""Cancellation of the far microphone in the close one, by signal processing alone.

The first part treats every clip alone. The second one sums spectra over all recordings of an installation, and solves
for the path of the noise from the far microphone to the close one. `FarMicrophone`, the third, is what users calibrate.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from .whole_files import whole_file

logger = logging.get_logger(__name__)

# Letters: B clips, N samples, K frequency bins, T STFT frames or blocks of W samples, G levels, P taps of a filter.
_REFERENCE_RATE = 16000
# Window length and hop of each method, in samples at this rate.
_STFT_LENGTHS = {"least_squares": (1024, 512), "spectral_subtraction": (512, 256)}
METHODS = tuple(_STFT_LENGTHS)

_WORKING_PEAK = 0.9
_ENERGY_FLOOR = 1e-12
_SPECTRAL_FLOOR = 0.1

# A block lasts about a second: it must be longer than the filters that are drawn from the sums.
BLOCK_SECONDS = 1.024
# The level of the far microphone is that of this neighbourhood, so that single lines do not decide.
NEIGHBOURHOOD_HZ = 800.0
# The upper and the lower share of the blocks, by far level, whose difference is taken.
COMPARED_SHARE = 0.35
# Levels are sorted into steps of this width; a fixed grid makes the order of the recordings irrelevant.
_STEP_DB = 2.0
_LOWEST_DB, _NUM_LEVELS = -160.0, 100
_HOPS_PER_BLOCK = 4
# Shares of the far power, around each frequency and at it alone, that keep the division from following chance. The
# second counts the machine as well: on its lines, which hardly change, nothing is learned.
_RIDGE_AROUND, _RIDGE_ALONE = 1e-2, 3e-2
_TINY = 1e-20
# The frames of the subtraction are as many times shorter than a block.
_BLOCK_PER_FRAME = 32
# Noise that is louder than this in the close microphone, in power, did not come past the far one.
_MOST_SLOPE = 4.0

FAR_MICROPHONE_FILE = "far_microphone.safetensors"
FAR_MICROPHONE_METHODS = ("installation", "filter", "spectral_subtraction", "none", "auto")
# Bands of `report`, in Hz; the last one ends at half the sampling rate.
REPORT_EDGES_HZ = (0.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0)
# Fewer seconds than this many lengths of the filter say too little of it.
_LEAST_FILTER_LENGTHS = 10
# Where the filter takes this much of the noise, in dB, subtraction after it would cost more than it takes.
_ENOUGH_DB = 10.0
# "auto": the close microphone must follow the power of the far one by this share, or there is nothing to take away.
_LEAST_SLOPE = 0.05
# The memory for the sums grows with the rate, so that a damaged file must not choose it.
_RATE_RANGE = (1000, 192_000)
_SILENT_POWER = 1e-12  # -120 dB of full scale
# Machine-off recordings that are alike to the normal ones within this, in dB, are suspicious.
_ALIKE_DB = 0.5
# Beyond this change in dB, recordings are no more those of the installation that was calibrated.
DRIFT_DB = 3.0
_SWAPPED_DB = 3.0


def cancel_far_microphone(
    close: torch.Tensor, far: torch.Tensor, method: str = "least_squares", sampling_rate: int = 16000
) -> torch.Tensor:
    """Remove from the close microphone what the far one predicts, with a centred, reflect-padded Hann STFT.

    Windows last as long at every sampling rate; their lengths here are those at 16 kHz.

    `"least_squares"` (window 1024, hop 512) takes one complex gain per frequency over the whole clip,
    `H = sum_t C conj(F) / (sum_t |F|^2 + 1e-12)`, and returns `Y = C - H F`; both channels are first scaled to a common
    peak of 0.9 and the result is scaled back. It removes only noise that is coherent between the microphones.
    `"spectral_subtraction"` (window 512, hop 256; Boll, 1979) keeps the phase of `C` with the magnitude `|C| - |F|`
    where that is positive, else `0.1 |C|`.

    Args:
        close: `(B, N)` of any float dtype and device; every clip is treated alone.
        far: `(B, N)`, of the same clips. A silent clip leaves `close` as it is.
        method: `"least_squares"` or `"spectral_subtraction"`.
        sampling_rate: of both channels, in Hz.

    Returns:
        `(B, N)` float32. A clip too short to be reflected at its ends is continued with zeros first.

    Raises:
        ValueError: the method is unknown, or the shapes are not two equal, non-empty `(B, N)`.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}, got {method!r}.")
    if close.dim() != 2 or close.shape != far.shape or close.shape[1] == 0:
        raise ValueError(
            "`close` and `far` must both have the same shape (B, N) with N > 0, "
            f"got {tuple(close.shape)} and {tuple(far.shape)}."
        )
    channels = torch.stack([close.float(), far.float()])  # (2, B, N)
    length, hop = (round(samples * sampling_rate / _REFERENCE_RATE) for samples in _STFT_LENGTHS[method])
    if method == "least_squares":
        peak = channels.abs().amax(dim=(0, 2))[:, None]  # (B, 1)
        # The floor prevents a division by 0 where both channels are silent.
        gain = _WORKING_PEAK / peak.clamp_min(torch.finfo(torch.float32).tiny)
        gain = torch.where(peak > 0, gain, 1.0)
        return _through_stft(channels * gain, length, hop, _least_squares) / gain
    return _through_stft(channels, length, hop, _spectral_subtraction)


def _least_squares(close: torch.Tensor, far: torch.Tensor, num_frames: int) -> torch.Tensor:
    known, heard = close[..., :num_frames], far[..., :num_frames]
    cross = (known * heard.conj()).sum(-1, keepdim=True)  # (B, K, 1)
    energy = (heard.real.square() + heard.imag.square()).sum(-1, keepdim=True)  # (B, K, 1)
    return close - cross / (energy + _ENERGY_FLOOR) * far


def _spectral_subtraction(close: torch.Tensor, far: torch.Tensor, _num_frames: int) -> torch.Tensor:
    close_magnitude = close.abs()
    difference = close_magnitude - far.abs()
    magnitude = torch.where(difference > 0, difference, _SPECTRAL_FLOOR * close_magnitude)
    # Scaling C keeps its phase and costs less than angle and polar. The floor prevents 0 / 0.
    return close * (magnitude / close_magnitude.clamp_min(torch.finfo(torch.float32).tiny))


def _through_stft(
    channels: torch.Tensor,
    length: int,
    hop: int,
    cancel: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
) -> torch.Tensor:
    """Apply `cancel` to the spectra `(B, K, T)` of `channels (2, B, N)`, and return to waveforms `(B, N)`."""
    num_samples = channels.shape[-1]
    margin = length // 2
    filled = F.pad(channels, (0, max(0, margin + 1 - num_samples)))  # reflection needs more than `margin` samples
    num_frames = 1 + filled.shape[-1] // hop
    # There is one frame more than the definition has; it is silent beyond the reflection.
    padded = F.pad(F.pad(filled, (margin, margin), mode="reflect"), (0, hop))
    window = torch.hann_window(length, device=channels.device)
    spectra = torch.stft(padded.flatten(0, 1), length, hop, window=window, center=False, return_complex=True)
    close, far = spectra.unflatten(0, channels.shape[:2])  # (B, K, T + 1) each
    # The last N % hop samples lie in a single frame, by whose fading window the inverse STFT divides them. Where less
    # than 4 % of the window is left, a delay in H would make a click at the end; there the extra frame is used as well.
    if filled.shape[-1] % hop <= 7 * hop // 8:
        close, far = close[..., :num_frames], far[..., :num_frames]
    cancelled = cancel(close, far, num_frames)
    return torch.istft(cancelled, length, hop, window=window, length=num_samples)


# The path of the noise in an installation


def block_length(sampling_rate: int) -> int:
    """Return the samples W of a block at a rate in Hz: the power of two nearest to 1.024 s."""
    return 1 << round(torch.tensor(BLOCK_SECONDS * sampling_rate).log2().item())


def neighbourhood(sampling_rate: int) -> int:
    """Return the odd number of frequencies of a block that lie within 800 Hz."""
    return 2 * round(NEIGHBOURHOOD_HZ / 2 * block_length(sampling_rate) / sampling_rate) + 1


def smoothed(values: torch.Tensor, width: int) -> torch.Tensor:
    """Average `(..., K)` over `width` (odd) neighbours along the last dimension; the ends have fewer."""
    # The difference of running sums costs the same for every width; it needs float64.
    sums = F.pad(values.to(torch.float64).cumsum(-1), (1, 0))
    places = torch.arange(values.shape[-1], device=values.device)
    first, last = (places - width // 2).clamp_min(0), (places + width // 2 + 1).clamp_max(values.shape[-1])
    return ((sums[..., last] - sums[..., first]) / (last - first)).clamp_min(0.0)


class Spectra(NamedTuple):
    """Mean spectra over blocks, or the difference of two such means, `(K,)` float64 and complex128.

    Attributes:
        close: power of the close microphone.
        far: power of the far microphone.
        cross: close times conjugate far.
    """

    close: torch.Tensor
    far: torch.Tensor
    cross: torch.Tensor

    @classmethod
    def of(cls, stacked: torch.Tensor) -> "Spectra":
        """Return the spectra of which `stacked (4, K)` holds close, far, and real and imaginary part of cross."""
        close, far, real, imaginary = stacked.to("cpu", torch.float64)
        return cls(close, far, torch.complex(real, imaginary))

    def stacked(self) -> torch.Tensor:
        """Return `(4, K)` float64 for `of`."""
        return torch.stack([self.close, self.far, self.cross.real, self.cross.imag])

    def blended(self, other: "Spectra", share: float) -> "Spectra":
        """Return `share` of these spectra and the rest of `other`."""
        return Spectra(*(share * own + (1 - share) * new for own, new in zip(self, other, strict=True)))

    def residual(self, filter_response: torch.Tensor) -> torch.Tensor:
        """Return the power of the close microphone without what `filter_response (K,)` makes of the far one."""
        explained = 2 * (self.cross * filter_response.conj()).real - filter_response.abs().square() * self.far
        return self.close - explained


class NoisePathSums:
    """Sums of the spectra of blocks, for each frequency apart and sorted by the level of the far microphone there.

    The size is that of the range of levels, never that of the number of recordings. The sums of two sets of recordings
    add up, and their order has no influence beyond rounding.

    Args:
        sampling_rate: of the recordings, in Hz.

    Attributes:
        sums: `(4, G, K)` float64 on the CPU: power of the close and of the far microphone, real and imaginary part of
            the cross-spectrum; G = 100 levels.
        counts: `(G, K)` float64, the blocks of each level.
        num_samples: the samples that were given, of one channel.
    """

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate
        self.window = block_length(sampling_rate)
        num_frequencies = self.window // 2 + 1
        self.sums = torch.zeros(4, _NUM_LEVELS, num_frequencies, dtype=torch.float64)
        self.counts = torch.zeros(_NUM_LEVELS, num_frequencies, dtype=torch.float64)
        self.num_samples = 0

    def add(self, recordings: torch.Tensor) -> None:
        """Add `(B, 2, N)` float32 recordings, channel 0 close and 1 far; every one is a row of the sums of its own."""
        for recording in recordings.detach():
            self._add_one(recording)
        self.num_samples += recordings.shape[0] * recordings.shape[-1]

    def _add_one(self, recording: torch.Tensor) -> None:
        window, hop = self.window, self.window // _HOPS_PER_BLOCK
        taper = torch.hann_window(window, device=recording.device)
        # Blocks reach over both ends, so that clips shorter than a block count, too.
        padded = F.pad(recording, (window // 2, window // 2))
        spectra = torch.stft(padded, window, hop, window=taper, center=False, return_complex=True).transpose(1, 2)
        close, far = spectra / taper.square().sum().sqrt()  # (T, K) each; a level is that of the samples
        power = far.real.square() + far.imag.square()
        around = smoothed(power, neighbourhood(self.sampling_rate))  # (T, K)
        cross = close * far.conj()
        values = torch.stack([close.real.square() + close.imag.square(), power, cross.real, cross.imag])  # (4, T, K)
        level = ((10 * around.clamp_min(1e-30).log10() - _LOWEST_DB) / _STEP_DB).long().clamp(0, _NUM_LEVELS - 1)
        # A block without any sound says nothing of a path.
        level, values = level[around.amax(1) > 0].cpu(), values[:, around.amax(1) > 0].double().cpu()
        for sums, value in zip(self.sums, values, strict=True):
            sums.scatter_add_(0, level, value)
        self.counts.scatter_add_(0, level, torch.ones_like(values[0]))

    def joined(self, other: "NoisePathSums") -> "NoisePathSums":
        """Return the sums over the recordings of both."""
        both = NoisePathSums(self.sampling_rate)
        both.sums, both.counts = self.sums + other.sums, self.counts + other.counts
        both.num_samples = self.num_samples + other.num_samples
        return both

    def mean(self) -> Spectra:
        """Return the mean spectra over all blocks; zero where there is none."""
        return self._weighted(self._shares(torch.ones_like(self.counts)))

    def quiet(self) -> Spectra:
        """Return the mean spectra over the 35 % of the blocks in which the far microphone is quietest."""
        return self._weighted(self._shares(self._lowest(self.counts)))

    def difference(self) -> Spectra:
        """Return mean spectra of the 35 % of the blocks in which the far microphone is loudest, minus `quiet()`.

        Whatever is as loud in both, above all a machine that runs steadily, drops out; the noise stays.
        """
        loud = self._lowest(self.counts.flip(0)).flip(0)
        return self._weighted(self._shares(loud) - self._shares(self._lowest(self.counts)))

    def _lowest(self, counts: torch.Tensor) -> torch.Tensor:
        """Return which part `(G, K)` of each level belongs to the first 35 % of all blocks."""
        wanted = COMPARED_SHARE * counts.sum(0)
        before = counts.cumsum(0) - counts
        return ((wanted - before) / counts.clamp_min(1e-12)).clamp(0, 1)

    def _shares(self, part: torch.Tensor) -> torch.Tensor:
        """Return the weight `(G, K)` of a block of each level in the mean over a part of each level."""
        return part / (part * self.counts).sum(0).clamp_min(1e-12)

    def _weighted(self, weights: torch.Tensor) -> Spectra:
        return Spectra.of((self.sums * weights).sum(1))  # (4, K)


class Heard(NamedTuple):
    """What a set of recordings says of the noise.

    Attributes:
        noise: spectra in which the noise alone is left: a difference between loud and quiet blocks, or those of
            recordings in which the machine is off.
        all: mean spectra of all blocks, machine and noise.
    """

    noise: Spectra
    all: Spectra


def solve_noise_path(heard: Heard, halves: Sequence[Heard], past: int, future: int, sampling_rate: int) -> torch.Tensor:
    """Return the filter whose output of the far microphone is the noise in the close one, and nothing where none is.

    For each frequency the filter is `H = D_cf / (D_ff + ridge)`, where D are the spectra of the noise alone, so that a
    machine has no part in it. It is cut to its taps. Then every band is lowered to the gain that takes most from the
    noise in the *other* half of the recordings, and no band may come out louder than it went in.

    Args:
        heard: by all recordings.
        halves: by each half of them; anything but two, and the gains are those of `heard`.
        past, future: taps of earlier and of later samples of the far microphone.
        sampling_rate: in Hz.

    Returns:
        `(future + past,)` float32; tap i belongs to the far sample `i - future` samples ago.
    """
    response = _cut(_response(heard, sampling_rate), past, future)
    gain = _best_gain(heard.noise, response, sampling_rate)
    if len(halves) == 2:
        tried = [_cut(_response(half, sampling_rate), past, future) for half in halves]
        gain = torch.minimum(
            *(_best_gain(half.noise, other, sampling_rate) for half, other in zip(halves, reversed(tried), strict=True))
        )
    # The power that is left is a parabola of the gain, which is back at its start at twice the best gain.
    gain = torch.minimum(gain, 2 * _best_gain(heard.all, response, sampling_rate))
    return _taps(response * gain, past, future).float()


def excess_slope(learned: Spectra, filter_taps: torch.Tensor, future: int, sampling_rate: int) -> torch.Tensor:
    """Return how much the power that a filter leaves in the close microphone grows with that of the far one, `(K,)`.

    0 means that the filter takes all noise away, 1 without a filter that both microphones hear it equally loud.
    """
    width = neighbourhood(sampling_rate)
    left = smoothed(learned.residual(frequency_response(filter_taps, future, sampling_rate)), width)
    return left / smoothed(learned.far, width).clamp_min(_TINY)


def frame_slope(slope: torch.Tensor) -> torch.Tensor:
    """Return what `excess_slope` gave, `(K,)`, at the frequencies of a frame of 32 ms, `(S,)` float32."""
    return slope[::_BLOCK_PER_FRAME].clamp(0.0, _MOST_SLOPE).float()


def frequency_response(filter_taps: torch.Tensor, future: int, sampling_rate: int) -> torch.Tensor:
    """Return the response `(K,)` complex128 of `(P,)` taps, `future` of which lie ahead."""
    window = block_length(sampling_rate)
    ordered = F.pad(filter_taps.double(), (0, window - len(filter_taps))).roll(-future)
    return torch.fft.rfft(ordered)


def filtered(far: torch.Tensor, filter_taps: torch.Tensor, future: int) -> torch.Tensor:
    """Return the noise `(B, N)` that the filter predicts from the far microphone `(B, N)`, which is silent outside."""
    num_samples, overlap = far.shape[-1], len(filter_taps) - 1
    # Blocks that stay in the cache of a core take an eighth of the time of one long transform (overlap-save).
    length = 1 << (4 * overlap).bit_length()
    hop = length - overlap
    num_blocks = -(-(num_samples + future) // hop)
    blocks = F.pad(far, (overlap, num_blocks * hop - num_samples)).unfold(-1, length, hop)  # (B, blocks, length)
    product = torch.fft.rfft(blocks) * torch.fft.rfft(filter_taps, length)
    joined = torch.fft.irfft(product, length)[..., overlap:].flatten(-2)  # (B, blocks * hop)
    return joined[..., future : future + num_samples]


def subtracted(close: torch.Tensor, far: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Subtract from the close microphone `(B, N)` the noise that follows the far one in power alone, `(B, N)`.

    The magnitudes of the STFT (32 ms, hop 16 ms, Hann) keep the share `max(1 - sqrt(slope * S_f / S_c), 0.1)`, where S
    is the power averaged over 3 frames and 3 frequencies: noise from many directions has no filter, and its power is
    alike in both microphones on such an average only. `slope (S,)` is that of `frame_slope`.
    """
    length = (len(slope) - 1) * 2
    hop = length // 2
    num_samples = close.shape[-1]
    channels = F.pad(torch.stack([close, far]), (length // 2, length // 2 + length))  # (2, B, N')
    window = torch.hann_window(length, device=close.device)
    spectra = torch.stft(channels.flatten(0, 1), length, hop, window=window, center=False, return_complex=True)
    power = _sum_around(spectra.real.square() + spectra.imag.square())  # (2 B, S, T)
    (known, _), (of_close, of_far) = (each.unflatten(0, channels.shape[:2]) for each in (spectra, power))
    # The root of 0 has no finite derivative.
    share = 1 - (slope[:, None].to(close) * of_far / of_close.clamp_min(_TINY) + _TINY).sqrt()
    return torch.istft(
        known * share.clamp_min(_SPECTRAL_FLOOR), length, hop, window=window, center=True, length=num_samples
    )


def _sum_around(power: torch.Tensor) -> torch.Tensor:
    """Return the sums over the 3 x 3 neighbours in `(B, S, T)`; slices take a fifth of the time of a pooling layer."""
    for dim, margins in ((-1, (1, 1)), (-2, (0, 0, 1, 1))):
        before, here, after = (F.pad(power, margins).narrow(dim, start, power.shape[dim]) for start in range(3))
        power = before + here + after
    return power


def _response(heard: Heard, sampling_rate: int) -> torch.Tensor:
    far = heard.noise.far.clamp_min(0.0)
    ridge = _RIDGE_AROUND * smoothed(far, neighbourhood(sampling_rate)) + _RIDGE_ALONE * heard.all.far
    return heard.noise.cross / (far + ridge).clamp_min(_TINY)


def _best_gain(learned: Spectra, response: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Return the factor of each band, in [0, 1], with which a filter leaves least of `learned`."""
    width = neighbourhood(sampling_rate)
    explained = smoothed((learned.cross * response.conj()).real, width)
    power = smoothed(response.abs().square() * learned.far.clamp_min(0.0), width)
    return (explained / power.clamp_min(_TINY)).clamp(0.0, 1.0)


def _cut(response: torch.Tensor, past: int, future: int) -> torch.Tensor:
    window = 2 * (len(response) - 1)
    return torch.fft.rfft(F.pad(_taps(response, past, future), (0, window - past - future)).roll(-future))


def _taps(response: torch.Tensor, past: int, future: int) -> torch.Tensor:
    return torch.fft.irfft(response).roll(future)[: past + future]


# A far microphone that is calibrated


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
        method: `"installation"`, the filter, and after it subtraction of what it leaves, where it takes less than 10 dB
            of the noise in the normal recordings; `"filter"` alone; `"spectral_subtraction"`, which learns nothing, of
            [`cancel_far_microphone`]; `"none"`; or `"auto"`, which is `"installation"` where the close microphone
            follows the noise in the far one at all, and else `"none"`.
        sampling_rate: of all recordings, in Hz.
        past, future: length of the filter in s over earlier and later samples of the far microphone. `future=0` gives
            a causal filter without delay, which cancels less.

    Attributes:
        method_: the method in use, one of the first four.
        filter_: `(P,)` float32, tap i belongs to the far sample `i - future` samples ago; zero with other methods.
        slope_: `(S,)` float32, power that the filter leaves for each power of the far microphone, at the frequencies of
            frames of 32 ms; zero where nothing is subtracted.
        heard_: spectra of the noise, from which the filter is drawn, and of all that the normal recordings hold.
        num_seconds_: how much was heard.

    Raises:
        ValueError: a setting is out of its range.
    """

    method: str = "installation"
    sampling_rate: int = _REFERENCE_RATE
    past: float = 0.256
    future: float = 0.128

    def __post_init__(self) -> None:
        self.method_: str | None = None
        self._off: NoisePathSums | None = None
        self._halves: list[NoisePathSums] = []
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
            self._halves[_parity(recording)].add(recording[None])
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
        if self._off is not None:
            self.heard_ = Heard(self._off.mean(), both.mean())
            self._solve([])
            return self
        self.heard_ = Heard(both.difference(), both.mean())
        halves = [half for half in self._halves if half.counts.any()]
        self._solve([Heard(half.difference(), half.mean()) for half in halves])
        return self

    def _solve(self, halves: Sequence[Heard]) -> None:
        past, future = self._num_taps()
        zero = torch.zeros(past + future)
        self.filter_, self.method_ = zero, self.method
        if self.method in ("installation", "filter", "auto"):
            self.filter_ = solve_noise_path(self.heard_, halves, past, future, self.sampling_rate)
        before, left = (
            excess_slope(self.heard_.noise, taps, future, self.sampling_rate) for taps in (zero, self.filter_)
        )
        self.slope_ = torch.zeros_like(frame_slope(left))
        if self.method == "auto":
            self.method_ = "installation" if float(before.median()) >= _LEAST_SLOPE else "none"
        if self.method_ == "installation" and _cancelled_db(before, left) < _ENOUGH_DB:
            self.slope_ = frame_slope(left)
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
            close = close - filtered(far, self.filter_.to(far.device), self._num_taps()[1])
        if self.method_ == "installation" and self.slope_.any():
            close = subtracted(close, far, self.slope_)
        elif self.method_ == "spectral_subtraction":
            close = cancel_far_microphone(close, far, "spectral_subtraction", self.sampling_rate)
        return torch.stack([close, far], dim=1)

    def report(self) -> list[CancelledBand]:
        """Return what the filter takes from the noise of the normal recordings, band by band."""
        self._check_fitted()
        response = frequency_response(self.filter_, self._num_taps()[1], self.sampling_rate)
        frequencies = torch.linspace(0, self.sampling_rate / 2, len(response), dtype=torch.float64)
        edges = [edge for edge in REPORT_EDGES_HZ if edge < self.sampling_rate / 2] + [self.sampling_rate / 2]
        bands = []
        for low, high in pairwise(edges):
            inside = (frequencies >= low) & (frequencies < high)
            close = self.heard_.noise.close[inside].sum().clamp_min(_TINY)
            left = self.heard_.noise.residual(response)[inside].sum()
            # Coherence is that of each frequency; a mean over the band would mix the phases of different paths.
            power = (self.heard_.noise.close * self.heard_.noise.far)[inside]
            cross = self.heard_.noise.cross[inside].abs().square()
            coherence = (cross.sum() / power.clamp_min(_TINY).sum()).clamp(0, 1)
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
        now = self._heard_in(recordings).noise
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
        new = self._heard_in(recordings)
        self.heard_ = Heard(*(old.blended(one, forget) for old, one in zip(self.heard_, new, strict=True)))
        self._solve([])
        return self

    def _heard_in(self, recordings: Iterable[torch.Tensor]) -> Heard:
        sums = NoisePathSums(self.sampling_rate)
        for waveforms in recordings:
            sums.add(self._checked(waveforms))
        self._check_enough(sums, "recordings")
        return Heard(sums.difference(), sums.mean())

    # Saving

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what was learned: tensors for a safetensors file, and settings that JSON holds; see `from_state`.

        Raises:
            ValueError: not fitted yet.
        """
        self._check_fitted()
        tensors = {"filter": self.filter_, "slope": self.slope_}
        for name, spectra in zip(Heard._fields, self.heard_, strict=True):
            tensors[f"{name}_spectra"] = spectra.stacked().float()  # (4, K)
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
        self._halves = []
        self._off = None
        self.method_ = None

    def _make_halves(self) -> None:
        # They take 33 MB each at 16 kHz, which one that was loaded does not need.
        if not self._halves:
            self._halves = [NoisePathSums(self.sampling_rate), NoisePathSums(self.sampling_rate)]

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
        heard = (normal.far > _TINY) & (off.far > _TINY) & (normal.close > _TINY) & (off.close > _TINY)
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
        coherence = quiet.cross.abs().square() / (quiet.close * quiet.far).clamp_min(_TINY)
        louder = 10 * (quiet.far.clamp_min(_TINY) / quiet.close.clamp_min(_TINY)).log10()
        level = float((louder * coherence.square()).sum() / coherence.square().sum().clamp_min(_TINY))
        correlation = torch.fft.irfft(quiet.cross / (quiet.close * quiet.far).clamp_min(_TINY).sqrt()).abs()
        far_leads, close_leads = (
            correlation[1 : len(correlation) // 2].max(),
            correlation[len(correlation) // 2 :].max(),
        )
        if level > _SWAPPED_DB and far_leads > max(close_leads, correlation[0]):
            logger.warning(
                "The far microphone (channel 1) hears the machine earlier and "
                f"{level:.1f} dB louder than the close one (channel 0); are the channels swapped?"
            )


def _cancelled_db(before: torch.Tensor, left: torch.Tensor) -> float:
    """Return how much of the noise is cancelled, in dB, as the mean over frequencies `(K,)` that count alike."""
    heard = before > _TINY
    return float(-10 * (left[heard] / before[heard]).clamp(1e-6, 1.0).log10().mean()) if heard.any() else 0.0


def _parity(recording: torch.Tensor) -> int:
    """Return 0 or 1, which the samples decide."""
    return hashlib.blake2b(recording.cpu().contiguous().numpy().data, digest_size=1).digest()[0] & 1
