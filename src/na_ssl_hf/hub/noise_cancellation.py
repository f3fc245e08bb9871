"""Cancellation of the far microphone in the close one, by signal processing alone.

The first part treats every clip alone. The second one sums spectra over all recordings of an installation, and solves
for the path of the noise from the far microphone to the close one; `FarMicrophone` is what users calibrate.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Letters: B clips, N samples, K frequency bins, T STFT frames or blocks of W samples, G levels, P taps of a filter.
REFERENCE_RATE = 16000
# Window length and hop of each method, in samples at this rate.
_STFT_LENGTHS = {"least_squares": (1024, 512), "spectral_subtraction": (512, 256)}
METHODS = tuple(_STFT_LENGTHS)

WORKING_PEAK = 0.9
ENERGY_FLOOR = 1e-12
SPECTRAL_FLOOR = 0.1

# A block lasts about a second: it must be longer than the filters that are drawn from the sums.
BLOCK_SECONDS = 1.024
# The level of the far microphone is that of this neighbourhood, so that single lines do not decide.
NEIGHBOURHOOD_HZ = 800.0
# The upper and the lower share of the blocks, by far level, whose difference is taken.
COMPARED_SHARE = 0.35
# Levels are sorted into steps of this width; a fixed grid makes the order of the recordings irrelevant.
_STEP_DB = 2.0
_LOWEST_DB, _NUM_LEVELS = -160.0, 100
# The same for levels of the close microphone against the far one, and the share of the blocks at either end.
_RATIO_STEP_DB, _LOWEST_RATIO_DB = 1.0, -50.0
_CONTRAST_SHARE = 0.2
_HOPS_PER_BLOCK = 4
# Shares of the far power, around each frequency and at it alone, that keep the division from following chance. The
# second counts the machine as well: on its lines, which hardly change, nothing is learned.
_RIDGE_AROUND, _RIDGE_ALONE = 1e-2, 3e-2
TINY = 1e-20
# The frames of the subtraction are as many times shorter than a block.
_BLOCK_PER_FRAME = 32
# Noise that is louder than this in the close microphone, in power, did not come past the far one.
_MOST_SLOPE = 4.0
# Sound that reaches one microphone this much later than the other took another way than the direct one.
_LONGEST_LEAD_SECONDS = 0.04
# Rumble and the edge of a resampler have no direction.
_LEAD_LOWEST_HZ, _LEAD_HIGHEST_SHARE = 200.0, 0.94


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
    length, hop = stft_lengths(method, sampling_rate)
    if method == "least_squares":
        peak = channels.abs().amax(dim=(0, 2))[:, None]  # (B, 1)
        # The floor prevents a division by 0 where both channels are silent.
        gain = WORKING_PEAK / peak.clamp_min(torch.finfo(torch.float32).tiny)
        gain = torch.where(peak > 0, gain, 1.0)
        return _through_stft(channels * gain, length, hop, _least_squares) / gain
    return _through_stft(channels, length, hop, _spectral_subtraction)


def stft_lengths(method: str, sampling_rate: int) -> tuple[int, int]:
    """Return window length and hop of a method of `cancel_far_microphone`, in samples."""
    length, hop = (round(samples * sampling_rate / REFERENCE_RATE) for samples in _STFT_LENGTHS[method])
    return length, hop


def _least_squares(close: torch.Tensor, far: torch.Tensor, num_frames: int) -> torch.Tensor:
    known, heard = close[..., :num_frames], far[..., :num_frames]
    cross = (known * heard.conj()).sum(-1, keepdim=True)  # (B, K, 1)
    energy = (heard.real.square() + heard.imag.square()).sum(-1, keepdim=True)  # (B, K, 1)
    return close - cross / (energy + ENERGY_FLOOR) * far


def _spectral_subtraction(close: torch.Tensor, far: torch.Tensor, _num_frames: int) -> torch.Tensor:
    close_magnitude = close.abs()
    difference = close_magnitude - far.abs()
    magnitude = torch.where(difference > 0, difference, SPECTRAL_FLOOR * close_magnitude)
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


class Contrast(NamedTuple):
    """What tells a machine from noise in normal recordings: it is louder at the close microphone than at the far one.

    Attributes:
        noise: mean spectra over the blocks in which the close microphone is softest against the far one.
        machine: the same over those in which it is loudest.
    """

    noise: Spectra
    machine: Spectra

    def without_machine(self) -> Spectra:
        """Return the spectra of `noise` minus as much of `machine` as leaves no negative power in any direction.

        The factor is the smallest root of `det(noise - x machine) = 0`, the 2 x 2 matrices of both microphones at a
        frequency. Both machine and noise are in both sets of blocks, in other shares; what is taken away is then all
        of the machine that the blocks of noise hold, and the noise that the blocks of the machine hold with it.
        """
        return _without(self.noise, self.machine)

    def without_noise(self) -> Spectra:
        """Return the spectra of `machine` minus as much of `noise`, in the same way: those of the machine alone."""
        return _without(self.machine, self.noise)

    def blended(self, other: "Contrast", share: float) -> "Contrast":
        """Return `share` of these spectra and the rest of `other`."""
        return Contrast(*(own.blended(new, share) for own, new in zip(self, other, strict=True)))


class Blocks(NamedTuple):
    """The spectra of a recording, T blocks of it.

    Attributes:
        values: `(4, T, K)`: power of the close and of the far microphone, real and imaginary part of the
            cross-spectrum.
        close, far: `(T, K)` float64, the powers averaged over the neighbourhood of each frequency.
        num_samples: N.
    """

    values: torch.Tensor
    close: torch.Tensor
    far: torch.Tensor
    num_samples: int


def blocks_of(recording: torch.Tensor, sampling_rate: int) -> Blocks:
    """Return the spectra of blocks of a second of a recording `(2, N)`, channel 0 close and 1 far."""
    window = block_length(sampling_rate)
    taper = torch.hann_window(window, device=recording.device)
    # Blocks reach over both ends, so that clips shorter than a block count, too.
    padded = F.pad(recording, (window // 2, window // 2))
    spectra = torch.stft(padded, window, window // _HOPS_PER_BLOCK, window=taper, center=False, return_complex=True)
    close, far = spectra.transpose(1, 2) / taper.square().sum().sqrt()  # (T, K) each; a level is that of the samples
    powers = [one.real.square() + one.imag.square() for one in (close, far)]
    cross = close * far.conj()
    values = torch.stack([*powers, cross.real, cross.imag])  # (4, T, K)
    around = [smoothed(power, neighbourhood(sampling_rate)) for power in powers]
    # A block without any sound says nothing of a path.
    is_heard = around[1].amax(1) > 0
    return Blocks(values[:, is_heard], around[0][is_heard], around[1][is_heard], recording.shape[-1])


class NoisePathSums:
    """Sums of the spectra of blocks, for each frequency apart and sorted by the level of the far microphone there.

    The size is that of the range of levels, never that of the number of recordings. The sums of two sets of recordings
    add up, and their order has no influence beyond rounding.

    Args:
        sampling_rate: of the recordings, in Hz.
        by_ratio: whether blocks are sorted by the level of the close microphone against the far one instead.

    Attributes:
        sums: `(4, G, K)` float64 on the CPU: power of the close and of the far microphone, real and imaginary part of
            the cross-spectrum; G = 100 levels.
        counts: `(G, K)` float64, the blocks of each level.
        num_samples: the samples that were given, of one channel.
    """

    def __init__(self, sampling_rate: int, by_ratio: bool = False):
        self.sampling_rate, self.by_ratio = sampling_rate, by_ratio
        num_frequencies = block_length(sampling_rate) // 2 + 1
        self.sums = torch.zeros(4, _NUM_LEVELS, num_frequencies, dtype=torch.float64)
        self.counts = torch.zeros(_NUM_LEVELS, num_frequencies, dtype=torch.float64)
        self.num_samples = 0

    def add(self, recordings: torch.Tensor) -> None:
        """Add `(B, 2, N)` float32 recordings, channel 0 close and 1 far; every one is a row of the sums of its own."""
        for recording in recordings.detach():
            self.add_blocks(blocks_of(recording, self.sampling_rate))

    def add_blocks(self, blocks: Blocks) -> None:
        """Add a recording whose spectra `blocks_of` computed."""
        (lowest, step), power = (_LOWEST_DB, _STEP_DB), blocks.far
        if self.by_ratio:
            (lowest, step), power = (_LOWEST_RATIO_DB, _RATIO_STEP_DB), blocks.close / blocks.far.clamp_min(1e-30)
        level = ((10 * power.clamp_min(1e-30).log10() - lowest) / step).long().clamp(0, _NUM_LEVELS - 1).cpu()
        values = blocks.values.double().cpu()
        for sums, value in zip(self.sums, values, strict=True):
            sums.scatter_add_(0, level, value)
        self.counts.scatter_add_(0, level, torch.ones_like(values[0]))
        self.num_samples += blocks.num_samples

    def joined(self, other: "NoisePathSums") -> "NoisePathSums":
        """Return the sums over the recordings of both."""
        both = NoisePathSums(self.sampling_rate, self.by_ratio)
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

    def contrast(self) -> Contrast:
        """Return mean spectra of the 20 % of the blocks with the lowest ratio, and of those with the highest one."""
        lowest = self._lowest(self.counts, _CONTRAST_SHARE)
        highest = self._lowest(self.counts.flip(0), _CONTRAST_SHARE).flip(0)
        return Contrast(*(self._weighted(self._shares(part)) for part in (lowest, highest)))

    def _lowest(self, counts: torch.Tensor, share: float = COMPARED_SHARE) -> torch.Tensor:
        """Return which part `(G, K)` of each level belongs to the first `share` of all blocks."""
        wanted = share * counts.sum(0)
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
    return left / smoothed(learned.far, width).clamp_min(TINY)


def lead_db(spectra: Spectra, sampling_rate: int) -> float:
    """Return by how much more of what both microphones hear comes to the close one first, in dB.

    It compares the highest peaks of their correlation, each frequency weighted by its coherence alone (the SCOT of
    Knapp and Carter, 1976), in which one or the other is ahead by at most 40 ms. Noise from all around has about 0 dB.
    """
    scale = (spectra.close * spectra.far).clamp_min(TINY).sqrt()
    frequencies = torch.linspace(0, sampling_rate / 2, len(scale), dtype=torch.float64)
    is_used = (frequencies >= _LEAD_LOWEST_HZ) & (frequencies < _LEAD_HIGHEST_SHARE * sampling_rate / 2)
    correlation = torch.fft.irfft(torch.where(is_used, spectra.cross / scale, 0)).abs()
    reach = round(_LONGEST_LEAD_SECONDS * sampling_rate)
    far_first, close_first = correlation[1 : reach + 1].max(), correlation[-reach:].max()
    return float(20 * (close_first.clamp_min(TINY) / far_first.clamp_min(TINY)).log10())


def level_ratio(spectra: Spectra, sampling_rate: int) -> float:
    """Return how many times the power at the close microphone is that at the far one, as the median over bands."""
    width = neighbourhood(sampling_rate)
    close, far = (smoothed(power.clamp_min(0.0), width) for power in (spectra.close, spectra.far))
    return float((close / far.clamp_min(TINY)).median())


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


def subtraction_hop(num_frequencies: int) -> int:
    """Return the samples between the frames of `subtracted`, half of their length, for a slope of that many values."""
    return num_frequencies - 1


def subtracted(close: torch.Tensor, far: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Subtract from the close microphone `(B, N)` the noise that follows the far one in power alone, `(B, N)`.

    The magnitudes of the STFT (32 ms, hop 16 ms, Hann) keep the share `max(1 - sqrt(slope * S_f / S_c), 0.1)`, where S
    is the power averaged over 3 frames and 3 frequencies: noise from many directions has no filter, and its power is
    alike in both microphones on such an average only. `slope (S,)` is that of `frame_slope`.
    """
    hop = subtraction_hop(len(slope))
    length = 2 * hop
    num_samples = close.shape[-1]
    channels = F.pad(torch.stack([close, far]), (length // 2, length // 2 + length))  # (2, B, N')
    window = torch.hann_window(length, device=close.device)
    spectra = torch.stft(channels.flatten(0, 1), length, hop, window=window, center=False, return_complex=True)
    power = sum_around(spectra.real.square() + spectra.imag.square())  # (2 B, S, T)
    (known, _), (of_close, of_far) = (each.unflatten(0, channels.shape[:2]) for each in (spectra, power))
    # The root of 0 has no finite derivative.
    share = 1 - (slope[:, None].to(close) * of_far / of_close.clamp_min(TINY) + TINY).sqrt()
    return torch.istft(
        known * share.clamp_min(SPECTRAL_FLOOR), length, hop, window=window, center=True, length=num_samples
    )


def without_noise(
    close: torch.Tensor, far: torch.Tensor, filter_taps: torch.Tensor, slope: torch.Tensor, future: int
) -> torch.Tensor:
    """Take out of the close microphone `(B, N)` what a calibrated far one `(B, N)` says of the noise.

    The filter comes first, see `filtered`; then what `subtracted` does, unless `slope` is zero.
    """
    left = close - filtered(far, filter_taps.to(far.device), future)
    return subtracted(left, far, slope) if slope.any() else left


def sum_around(power: torch.Tensor) -> torch.Tensor:
    """Return the sums over the 3 x 3 neighbours in `(B, S, T)`; slices take a fifth of the time of a pooling layer."""
    for dim, margins in ((-1, (1, 1)), (-2, (0, 0, 1, 1))):
        before, here, after = (F.pad(power, margins).narrow(dim, start, power.shape[dim]) for start in range(3))
        power = before + here + after
    return power


def _without(spectra: Spectra, other: Spectra) -> Spectra:
    """Return `spectra` minus as much of `other` as leaves no negative power; see `Contrast.without_machine`."""
    (close, far, cross), (own_close, own_far, own_cross) = spectra, other
    square = own_close * own_far - own_cross.abs().square()
    linear = close * own_far + far * own_close - 2 * (cross * own_cross.conj()).real
    constant = close * far - cross.abs().square()
    root = (linear - (linear.square() - 4 * square * constant).clamp_min(0).sqrt()) / (2 * square).clamp_min(1e-30)
    share = root.clamp(0.0, 1.0)
    return Spectra(*(one - share * less for one, less in zip(spectra, other, strict=True)))


def _response(heard: Heard, sampling_rate: int) -> torch.Tensor:
    far = heard.noise.far.clamp_min(0.0)
    ridge = _RIDGE_AROUND * smoothed(far, neighbourhood(sampling_rate)) + _RIDGE_ALONE * heard.all.far
    return heard.noise.cross / (far + ridge).clamp_min(TINY)


def _best_gain(learned: Spectra, response: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Return the factor of each band, in [0, 1], with which a filter leaves least of `learned`."""
    width = neighbourhood(sampling_rate)
    explained = smoothed((learned.cross * response.conj()).real, width)
    power = smoothed(response.abs().square() * learned.far.clamp_min(0.0), width)
    return (explained / power.clamp_min(TINY)).clamp(0.0, 1.0)


def _cut(response: torch.Tensor, past: int, future: int) -> torch.Tensor:
    window = 2 * (len(response) - 1)
    return torch.fft.rfft(F.pad(_taps(response, past, future), (0, window - past - future)).roll(-future))


def _taps(response: torch.Tensor, past: int, future: int) -> torch.Tensor:
    return torch.fft.irfft(response).roll(future)[: past + future]
