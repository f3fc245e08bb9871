"""Waveforms become the log-mel spectrograms that Dasheng and EfficientAT take, batched and differentiable, in torch.

Both cut frames around their centres, with the wave mirrored at its ends, where Kaldi's fbank takes whole frames only.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .fbank import (
    check_samples,
    clips_per_chunk,
    is_traced,
    kaldi_mel,
    outside_autocast,
    product_of_each_clip,
    real_dft,
    real_tensors,
)

# Letters: N samples, T frames, W samples of the window, K FFT bins (the Nyquist bin has no mel weight), M mel bins.
DASHENG_RATE = 16000
DASHENG_HOP = 160
DASHENG_MEL_BINS = 64
DASHENG_FFT = 512
DASHENG_POWER_FLOOR = 1e-10
# Everything this far below the loudest value of a recording is raised to it.
DASHENG_RANGE_DB = 120.0
DASHENG_SILENCE_DB = -100.0

EFFICIENTAT_RATE = 32000
EFFICIENTAT_HOP = 320
EFFICIENTAT_MEL_BINS = 128
EFFICIENTAT_FFT = 1024
EFFICIENTAT_WINDOW = 800
EFFICIENTAT_HIGHEST_HZ = 15000.0
EFFICIENTAT_PREEMPHASIS = 0.97
EFFICIENTAT_LOG_OFFSET = 1e-5
EFFICIENTAT_SILENCE = (math.log(EFFICIENTAT_LOG_OFFSET) + 4.5) / 5.0


class _Tables(NamedTuple):
    """The constants of a spectrogram, float32 on the CPU.

    Attributes:
        window: `(W,)`.
        mel_bank: `(K, M)`.
        fft_length: the length of the FFT, 2 K.
    """

    window: torch.Tensor
    mel_bank: torch.Tensor
    fft_length: int


def num_dasheng_frames(num_samples: int) -> int:
    """Count the frames of `num_samples` at 16 kHz, one every 10 ms.

    Raises:
        ValueError: there are fewer than 257 samples, which cannot be mirrored by half a window.
    """
    return 1 + _checked_length(num_samples, DASHENG_FFT // 2 + 1, "16 kHz") // DASHENG_HOP


def num_efficientat_frames(num_samples: int, hop_length: int = EFFICIENTAT_HOP) -> int:
    """Count the frames of `num_samples` at 32 kHz, one every `hop_length` samples.

    Raises:
        ValueError: there are fewer than 514 samples, which cannot be mirrored by half an FFT.
    """
    return 1 + (_checked_length(num_samples, EFFICIENTAT_FFT // 2 + 2, "32 kHz") - 1) // hop_length


def dasheng_log_mel(waveforms: torch.Tensor) -> torch.Tensor:
    """Compute the log-mel spectrogram of Dasheng (Dinkel et al., "Scaling up masked audio encoder learning for general
    audio classification", Interspeech 2024).

    It has frames of 32 ms every 10 ms with a periodic Hann window, and 64 HTK mel bands from 0 to 8 kHz, in dB. Values
    more than 120 dB below the loudest one of the same wave are raised to that floor.

    Args:
        waveforms: `(..., N)` of any float dtype on any device, 16 kHz, full scale 1.0; every wave is transformed alone.

    Returns:
        `(..., T, 64)` float32 in dB, differentiable with respect to `waveforms`; silence is -100.

    Raises:
        ValueError: the samples are integers, or there are fewer than 257 of them.
    """
    check_samples(waveforms)
    num_dasheng_frames(waveforms.shape[-1])

    def decibels(waves: torch.Tensor) -> torch.Tensor:
        mel = _mel_power(waves, "dasheng", DASHENG_MEL_BINS, DASHENG_HOP)
        levels = 10.0 * mel.clamp_min(DASHENG_POWER_FLOOR).log10()  # (..., T, M)
        return levels.maximum(levels.amax(dim=(-2, -1), keepdim=True) - DASHENG_RANGE_DB)

    return _of_each(waveforms, decibels, DASHENG_HOP)


def efficientat_log_mel(
    waveforms: torch.Tensor, num_mel_bins: int = EFFICIENTAT_MEL_BINS, hop_length: int = EFFICIENTAT_HOP
) -> torch.Tensor:
    """Compute the log-mel spectrogram of EfficientAT (Schmid et al., "Efficient Large-scale Audio Tagging Via
    Transformer-to-CNN Knowledge Distillation", ICASSP 2023).

    After pre-emphasis 0.97, it has frames of 25 ms with a symmetric Hann window, and Kaldi's mel triangles from 0 to
    15 kHz, as natural logarithms, shifted and scaled.

    Args:
        waveforms: `(..., N)` of any float dtype on any device, 32 kHz, full scale 1.0; every wave is transformed alone.
        num_mel_bins: number M of mel bins.
        hop_length: samples from one frame to the next; 320 is 10 ms.

    Returns:
        `(..., T, M)` float32, differentiable with respect to `waveforms`.

    Raises:
        ValueError: the samples are integers, or there are fewer than 514 of them.
    """
    check_samples(waveforms)
    num_efficientat_frames(waveforms.shape[-1], hop_length)

    def log_mel(waves: torch.Tensor) -> torch.Tensor:
        waves = waves[..., 1:] - EFFICIENTAT_PREEMPHASIS * waves[..., :-1]  # (..., N - 1)
        mel = _mel_power(waves, "efficientat", num_mel_bins, hop_length)
        return ((mel + EFFICIENTAT_LOG_OFFSET).log() + 4.5) / 5.0  # (..., T, M)

    return _of_each(waveforms, log_mel, hop_length)


def mel_band_centres(num_mel_bins: int = EFFICIENTAT_MEL_BINS) -> torch.Tensor:
    """Return the centre frequencies of EfficientAT's mel bins, `(M,)` float64 in Hz."""
    highest = 1127.0 * math.log(1.0 + EFFICIENTAT_HIGHEST_HZ / 700.0)
    centres = torch.arange(1, num_mel_bins + 1, dtype=torch.float64) * (highest / (num_mel_bins + 1))
    return 700.0 * ((centres / 1127.0).exp() - 1.0)


def _checked_length(num_samples: int, least: int, rate: str) -> int:
    if num_samples < least:
        raise ValueError(f"`num_samples` must be at least {least} at {rate}, got {num_samples}.")
    return num_samples


def _of_each(
    waveforms: torch.Tensor, transform: Callable[[torch.Tensor], torch.Tensor], hop_length: int
) -> torch.Tensor:
    """Transform waves `(..., N)` in float32, on the CPU a few at a time."""
    with outside_autocast(waveforms.device.type):
        waves = waveforms.float()
        if waves.device.type != "cpu" or is_traced() or waves.dim() < 2 or waves.numel() == 0:
            return transform(waves)
        flat = waves.flatten(0, -2)  # (clips, N)
        chunks = flat.split(clips_per_chunk(1 + waves.shape[-1] // hop_length))
        joined = torch.cat([transform(chunk) for chunk in chunks])  # (clips, T, M)
        return joined.unflatten(0, waves.shape[:-1])  # (..., T, M)


def _mel_power(waves: torch.Tensor, kind: str, num_mel_bins: int, hop_length: int) -> torch.Tensor:
    """Compute mel energies `(..., T, M)` of float32 waves `(..., N)`, mirrored at both ends by half a window."""
    tables = _tables_on(kind, num_mel_bins, waves.device)
    length = len(tables.window)
    # What a window shorter than the FFT leaves out is multiplied by zero in the original, at both ends.
    flat = waves.reshape(math.prod(waves.shape[:-1]), 1, waves.shape[-1])  # (clips, 1, N)
    padded = F.pad(flat, (length // 2, length // 2), mode="reflect")  # (clips, 1, N + W)
    frames = (
        padded.reshape(*waves.shape[:-1], padded.shape[-1]).unfold(-1, length, hop_length) * tables.window
    )  # (..., T, W)
    num_bins = tables.fft_length // 2
    if is_traced() or waves.numel() == 0:
        # Compilers and ONNX take no complex tensors, and MKL's FFT no empty batch.
        spectrum = frames @ real_dft(length, tables.fft_length).to(waves.device)  # (..., T, 2K)
        power = spectrum[..., :num_bins].square() + spectrum[..., num_bins:].square()
    else:
        bins = torch.fft.rfft(frames, n=tables.fft_length)[..., :num_bins]
        power = bins.real.square() + bins.imag.square()  # the square of abs() would cost more than the FFT
    if is_traced():
        return power @ tables.mel_bank
    of_clips = power.reshape(math.prod(power.shape[:-2]), *power.shape[-2:])  # (clips, T, K)
    mel = product_of_each_clip(of_clips, tables.mel_bank)
    return mel.reshape(*power.shape[:-1], num_mel_bins)  # (..., T, M)


@functools.lru_cache(maxsize=16)
def _tables_on(kind: str, num_mel_bins: int, device: torch.device) -> _Tables:
    with real_tensors(), torch.device("cpu"):  # whatever device context this happens in
        window, bank, fft_length = _dasheng_tables() if kind == "dasheng" else _efficientat_tables(num_mel_bins)
        return _Tables(window.to(device), bank.to(device), fft_length)


def _dasheng_tables() -> _Tables:
    """Make the periodic Hann window and the HTK triangles, linear in Hz; the triangles do not have equal areas."""
    hertz = torch.linspace(0, DASHENG_RATE // 2, DASHENG_FFT // 2 + 1)[:-1, None]  # (K, 1)
    highest = 2595.0 * math.log10(1.0 + DASHENG_RATE / 2 / 700.0)
    corners = 700.0 * (10.0 ** (torch.linspace(0.0, highest, DASHENG_MEL_BINS + 2) / 2595.0) - 1.0)  # (M + 2,)
    widths = corners.diff()
    rising = (hertz - corners[:-2]) / widths[:-1]  # (K, M)
    falling = (corners[2:] - hertz) / widths[1:]
    return _Tables(torch.hann_window(DASHENG_FFT), torch.minimum(rising, falling).clamp_min(0.0), DASHENG_FFT)


def _efficientat_tables(num_mel_bins: int) -> _Tables:
    """Make the symmetric Hann window and Kaldi's triangles, linear in mel."""
    hertz = torch.arange(EFFICIENTAT_FFT // 2) * (EFFICIENTAT_RATE / EFFICIENTAT_FFT)
    bank = kaldi_mel(hertz, num_mel_bins, 0.0, EFFICIENTAT_HIGHEST_HZ)  # (K, M)
    return _Tables(torch.hann_window(EFFICIENTAT_WINDOW, periodic=False), bank, EFFICIENTAT_FFT)
