"""Waveforms become the Kaldi log-mel filter banks that BEATs and EAT take, batched and differentiable, in torch."""

import functools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import unset_fake_temporarily

# Letters: N samples, T frames, K = 256 FFT bins (the Nyquist bin has no mel weight), M = 128 mel channels.
SAMPLING_RATE = 16000
FRAME_LENGTH = 400
FRAME_SHIFT = 160
FFT_LENGTH = 512
NUM_MEL_BINS = 128
PREEMPHASIS = 0.97
LOG_FLOOR = 1.1920929e-07

# For each flavour: exponent of the Hann window, gain of the wave, mean, divisor, and frame multiple of the result.
FLAVOURS = {
    "beats": (0.85, 2.0**15, 15.41663, 2 * 6.55582, 1),
    "eat": (1.0, 1.0, -4.268, 2 * 4.569, 32),
}

# A chunk of this many frames stays in the cache of a CPU core, which is twice as fast as one pass over 32 clips.
_FRAMES_PER_CHUNK = 4000


def num_fbank_frames(num_samples: int) -> int:
    """Count the whole 25 ms frames, one every 10 ms, in `num_samples` at 16 kHz; EAT pads them to a multiple of 32.

    Raises:
        ValueError: there are fewer than 400 samples.
    """
    if num_samples < FRAME_LENGTH:
        raise ValueError(
            f"`num_samples` must be at least {FRAME_LENGTH} (one 25 ms frame at 16 kHz), got {num_samples}."
        )
    return 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT


def kaldi_fbank(waveforms: torch.Tensor, flavour: str = "beats") -> torch.Tensor:
    """Compute normalised log-mel energies as the original BEATs (Chen et al., ICML 2023) or EAT (IJCAI 2024) does.

    This is Kaldi's pipeline without dither: frames of 25 ms every 10 ms, frame mean removed, pre-emphasis 0.97, Povey
    (BEATs) or symmetric Hann (EAT) window, power spectrum of 512 points, 128 mel triangles from 20 Hz to 8 kHz, natural
    logarithm.

    Args:
        waveforms: `(..., N)` of any float dtype on any device, 16 kHz, full scale 1.0. The arithmetic is float32, also
            under autocast, and every wave is transformed alone.
        flavour: `"beats"`, or `"eat"`, whose frames are padded with log energy 0 to a multiple of 32.

    Returns:
        `(..., T, 128)` float32, differentiable with respect to `waveforms`.

    Raises:
        ValueError: the flavour is unknown, the samples are integers, or there are fewer than 400 of them.
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"`flavour` must be one of {sorted(FLAVOURS)}, got {flavour!r}.")
    check_samples(waveforms)
    _, _, mean, divisor, multiple = FLAVOURS[flavour]
    num_frames = num_fbank_frames(waveforms.shape[-1])
    with outside_autocast(waveforms.device.type):
        log_mel = _log_mel(waveforms.float(), flavour)
    features = (log_mel - mean) / divisor
    if multiple > 1:  # a test of `num_frames % multiple` would bind an exported graph to its example
        features = F.pad(features, (0, 0, 0, -num_frames % multiple), value=-mean / divisor)
    return features


def check_samples(waveforms: torch.Tensor) -> None:
    """Raise a ValueError where `waveforms` are no floating-point samples `(..., N)`."""
    if not waveforms.is_floating_point() or waveforms.dim() == 0:
        raise ValueError(
            f"`waveforms` must be floating point of shape (..., N), got {waveforms.dtype} {tuple(waveforms.shape)}."
        )


def is_traced() -> bool:
    """Whether a graph is being made, which must hold for other inputs too: `torch.compile`, `torch.export` or ONNX."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def outside_autocast(device_type: str) -> AbstractContextManager:
    """Return a context in which arithmetic keeps its precision, whether autocast is on or not."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def clips_per_chunk(num_frames: int) -> int:
    """Compute how many clips of so many frames stay in the cache of a CPU core together."""
    return max(1, _FRAMES_PER_CHUNK // num_frames)


def _log_mel(waves: torch.Tensor, flavour: str) -> torch.Tensor:
    """Compute log-mel energies `(..., T, 128)` of float32 waves `(..., N)`."""
    if is_traced() or waves.numel() == 0:
        # Compilers and ONNX accept neither complex tensors nor the loop over chunks, so they get a real DFT by matrix
        # product. So does an empty batch, which MKL's FFT refuses.
        window, dft, mel_bank = (constant.to(waves.device) for constant in _CONSTANTS[flavour])
        spectrum = _frames(waves, window) @ dft  # (..., T, 2K)
        power = spectrum[..., : FFT_LENGTH // 2].square() + spectrum[..., FFT_LENGTH // 2 :].square()  # (..., T, K)
        return (power @ mel_bank).clamp_min(LOG_FLOOR).log()
    flat = waves.reshape(math.prod(waves.shape[:-1]), waves.shape[-1])  # (clips, N)
    num_frames = num_fbank_frames(waves.shape[-1])
    num_clips = clips_per_chunk(num_frames) if flat.device.type == "cpu" else max(1, len(flat))
    log_mel = [_log_mel_by_fft(chunk, flavour) for chunk in flat.split(num_clips)]
    joined = log_mel[0] if len(log_mel) == 1 else torch.cat(log_mel)
    return joined.reshape(*waves.shape[:-1], num_frames, NUM_MEL_BINS)  # (..., T, M)


def _log_mel_by_fft(waves: torch.Tensor, flavour: str) -> torch.Tensor:
    window, mel_bank = _eager_constants(flavour, waves.device)
    spectrum = torch.fft.rfft(_frames(waves, window), n=FFT_LENGTH)[..., : FFT_LENGTH // 2]  # (clips, T, K)
    # The square of abs() would cost more than the FFT.
    power = spectrum.real.square() + spectrum.imag.square()
    return product_of_each_clip(power, mel_bank).clamp_min(LOG_FLOOR).log()


def product_of_each_clip(power: torch.Tensor, mel_bank: torch.Tensor) -> torch.Tensor:
    """Multiply `(clips, T, K)` by `(K, M)`, each clip by itself.

    In a common product of all clips, the last bits of one would depend on its place in the batch.
    """
    return torch.bmm(power, mel_bank.expand(len(power), -1, -1))  # (clips, T, M)


def _frames(waves: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Cut waves into centred, pre-emphasised and windowed frames `(..., T, 400)`.

    Kaldi's own rule for the first sample of a frame is not needed, since both windows are 0 there.
    """
    frames = waves.unfold(-1, FRAME_LENGTH, FRAME_SHIFT)  # (..., T, 400)
    frames = frames - frames.mean(-1, keepdim=True)
    return (frames - PREEMPHASIS * F.pad(frames[..., :-1], (1, 0))) * window


def kaldi_mel(hertz: torch.Tensor, num_mel_bins: int, lowest_hz: float, highest_hz: float) -> torch.Tensor:
    """Make Kaldi's triangles `(K, M)`, linear in mel and not area-normalised, for bins `(K,)` in Hz."""
    mel = (1127.0 * (1.0 + hertz / 700.0).log())[:, None]  # (K, 1)
    lowest, highest = (1127.0 * math.log(1.0 + corner / 700.0) for corner in (lowest_hz, highest_hz))
    width = (highest - lowest) / (num_mel_bins + 1)
    channels = torch.arange(num_mel_bins, device="cpu", dtype=torch.float32)
    left, centre, right = (lowest + (channels + corner) * width for corner in (0.0, 1.0, 2.0))
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0.0)


@contextmanager
def real_tensors() -> Iterator[None]:
    """Give a context for tensors that are kept, in which they are ordinary ones.

    Those that are made in inference mode, or while `torch.export` follows a model with tensors that have no values, are
    of no use outside of it.
    """
    with torch.inference_mode(False), unset_fake_temporarily():
        yield


@functools.lru_cache(maxsize=8)
def real_dft(num_samples: int, fft_length: int) -> torch.Tensor:
    """Make the real DFT `(num_samples, fft_length)` without the Nyquist bin, cosines first, float32 on the CPU."""
    with real_tensors():
        samples, bins = (torch.arange(n, device="cpu", dtype=torch.float64) for n in (num_samples, fft_length // 2))
        # Whole turns are removed before the multiplication by 2 pi, which keeps the angles exact.
        angles = 2 * math.pi * (torch.outer(samples, bins) % fft_length / fft_length)
        return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def _constants(flavour: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make window with gain `(400,)`, real DFT `(400, 2K)`, cosines first, and mel bank `(K, M)`, float32 on the CPU.

    Window and bank are computed in float32 as the originals do: quiet bands beside a loud tone show the difference.
    """
    exponent, gain = FLAVOURS[flavour][:2]
    with real_tensors():
        window = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float32, device="cpu") ** exponent
        hertz = torch.arange(FFT_LENGTH // 2, device="cpu") * (SAMPLING_RATE / FFT_LENGTH)
        mel_bank = kaldi_mel(hertz, NUM_MEL_BINS, 20.0, SAMPLING_RATE / 2)  # channel 3 contains no FFT bin
        return window * gain, real_dft(FRAME_LENGTH, FFT_LENGTH), mel_bank


_CONSTANTS = {flavour: _constants(flavour) for flavour in FLAVOURS}


@functools.lru_cache(maxsize=16)
def _eager_constants(flavour: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Copy window and mel bank to `device`, once."""
    window, _, mel_bank = _CONSTANTS[flavour]
    with real_tensors():
        return window.to(device), mel_bank.to(device)
