"""Cancellation of the far microphone in the close one, by signal processing alone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

# Letters: B clips, N samples, K frequency bins, T STFT frames.
_REFERENCE_RATE = 16000
# Window length and hop of each method, in samples at this rate.
_STFT_LENGTHS = {"least_squares": (1024, 512), "spectral_subtraction": (512, 256)}
METHODS = tuple(_STFT_LENGTHS)

_WORKING_PEAK = 0.9
_ENERGY_FLOOR = 1e-12
_SPECTRAL_FLOOR = 0.1


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
