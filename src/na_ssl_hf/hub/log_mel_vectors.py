"""Log-mel vectors of the DCASE Task 2 autoencoder baseline: several frames of decibels in one vector.

Letters: N samples, T frames, M mel bins, P frames in a vector, V = T - P + 1 vectors.
"""

import functools
import math

import torch

SAMPLING_RATE = 16000
FFT_LENGTH = 1024
HOP_LENGTH = 512
POWER_FLOOR = 2.220446049250313e-16  # of the original: float64's epsilon

# The mel scale of Slaney's Auditory Toolbox (1998): linear up to 1 kHz, then 27 mel for every factor of 6.4.
_HERTZ_PER_MEL = 200.0 / 3.0
_LOG_START_HERTZ, _LOG_START_MEL = 1000.0, 15.0
_LOG_STEP = math.log(6.4) / 27.0


def log_mel_decibels(waveform: torch.Tensor, num_mel_bins: int = 128) -> torch.Tensor:
    """Power mel spectrogram in dB: frames of 1024 samples every 512, periodic Hann, centred with zeros at both ends.

    Args:
        waveform: `(N,)` float, 16 kHz, full scale 1.0.
        num_mel_bins: area-normalised Slaney triangles from 0 to 8000 Hz.

    Returns:
        `(1 + N // 512, num_mel_bins)` float32; digital silence is -156.5 dB.

    Raises:
        ValueError: not one-dimensional, integer samples, or none.
    """
    if waveform.ndim != 1 or not waveform.is_floating_point() or len(waveform) == 0:
        raise ValueError(
            f"`waveform` must be floating point of shape (N,), N >= 1. Got {waveform.dtype} {tuple(waveform.shape)}."
        )
    # In float64, rounding of a loud tone stays below the faint bins beside it.
    window = torch.hann_window(FFT_LENGTH, dtype=torch.float64, device=waveform.device)
    spectrum = torch.stft(
        waveform.double(), FFT_LENGTH, HOP_LENGTH, window=window, pad_mode="constant", return_complex=True
    )  # (K, T)
    power = spectrum.real.square() + spectrum.imag.square()
    mel = _mel_bank(num_mel_bins).to(waveform.device) @ power  # (M, T)
    return (10.0 * mel.clamp_min(POWER_FLOOR).log10()).T.float()


def stack_frames(log_mel: torch.Tensor, num_frames: int = 5) -> torch.Tensor:
    """Every `num_frames` successive frames side by side: `(T, M)` -> `(T - num_frames + 1, num_frames * M)`.

    Fewer frames than that give no vector, `(0, num_frames * M)`.
    """
    num_vectors = max(0, len(log_mel) - num_frames + 1)
    if num_vectors == 0:
        return log_mel.new_zeros(0, num_frames * log_mel.shape[1])
    return log_mel.unfold(0, num_frames, 1).transpose(1, 2).flatten(1)  # (V, P * M)


@functools.lru_cache(maxsize=4)
def _mel_bank(num_mel_bins: int) -> torch.Tensor:
    """Triangles `(M, K)` float64 over the FFT bins, each of area 1 over Hz."""
    highest_mel = _LOG_START_MEL + math.log(SAMPLING_RATE / 2 / _LOG_START_HERTZ) / _LOG_STEP
    # Whatever device context or inference mode the first call is made in, this is an ordinary CPU tensor.
    with torch.inference_mode(False):
        mel = torch.linspace(0.0, highest_mel, num_mel_bins + 2, dtype=torch.float64, device="cpu")
        logarithmic = _LOG_START_HERTZ * ((mel - _LOG_START_MEL) * _LOG_STEP).exp()
        corners = torch.where(mel < _LOG_START_MEL, mel * _HERTZ_PER_MEL, logarithmic)[:, None]  # (M + 2, 1)
        left, centre, right = corners[:-2], corners[1:-1], corners[2:]
        bins = torch.arange(FFT_LENGTH // 2 + 1, dtype=torch.float64, device="cpu")
        hertz = bins * (SAMPLING_RATE / FFT_LENGTH)  # (K,)
        rising, falling = (hertz - left) / (centre - left), (right - hertz) / (right - centre)
        return torch.minimum(rising, falling).clamp_min(0.0) * (2.0 / (right - left))
