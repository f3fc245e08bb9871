"""Mix a target and four noises in a simulated room into two channels (Fujimura et al., IWAENC 2026).

Letters in shapes: B mixtures, L samples, R taps of an impulse response, K blocks of n samples and F = n // 2 + 1
frequencies.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..hub.fbank import SAMPLING_RATE

# It keeps the gain of a silent noise finite and is part of the published definition.
NOISE_POWER_FLOOR = 1e-8
TARGET_POWER_FLOOR = 1e-20  # for the division only: a target that the far microphone does not hear stays silent there


class TwoChannelMixture(NamedTuple):
    """The close and far microphone and the clean target, each (B, L) float32; their samples are aligned."""

    close: Tensor
    far: Tensor
    clean: Tensor


class HeardMixture(NamedTuple):
    """A mixture as it is heard, maybe through a canceller, each (B, L) float32.

    `recorded` is the close channel before the canceller; `None` where there was none.
    """

    close: Tensor
    far: Tensor
    clean: Tensor
    recorded: Tensor | None = None


def mix_two_channel(
    target: Tensor,
    noises: Tensor,
    rir_target: Tensor,
    rir_noise: Tensor,
    snr_db: Tensor,
    direct_delay: Tensor,
    sampling_rate: int = SAMPLING_RATE,
    early_reflection_sec: float = 0.05,
    machine_level_db: Tensor | None = None,
) -> TwoChannelMixture:
    """Put targets and noises into rooms and mix them at a given SNR of the close microphone.

    Sounds and impulse responses are convolved in full, and the first L samples are kept. The SNR is the ratio of the
    mean powers of the reverberant target and of the sum of the four reverberant noises; the noise gain
    `sqrt(P_target / 10**(snr_db / 10) / (P_noise + 1e-8))` acts on both microphones. The clean target is the target
    through the close response, which is cut `early_reflection_sec` after the direct path. Nothing is clipped,
    normalised in level or shifted. A silent target silences the noise too; silent noises leave the reverberant target
    as it is.

    Args:
        target: (B, L) dry targets.
        noises: (B, 4, L) dry noises, one per corner; see `spatial_noises` for coherent ones.
        rir_target: (B, 2, R) target to close and far microphone.
        rir_noise: (B, 4, 2, R') corners to close and far microphone; R' may differ from R.
        snr_db: (B,) in dB.
        direct_delay: (B,) integer samples before the direct path in `rir_target[:, 0]`.
        sampling_rate: in Hz.
        early_reflection_sec: in s.
        machine_level_db: (B,) level of the target at the close microphone minus that at the far one in dB, which a gain
            on its path to the far microphone sets, as if the machine radiated more or less to that side; None, and NaN
            for one mixture, leave what the responses give.

    Returns:
        `close`, `far`, `clean`, (B, L) float32 each. All arithmetic is float32, on the device of the inputs.

    Raises:
        ValueError: shapes disagree, an input is empty or not finite, or `direct_delay` is not a count of samples.
    """
    _check(target, noises, rir_target, rir_noise, snr_db, direct_delay, sampling_rate, early_reflection_sec)
    num_samples, num_taps = target.shape[-1], max(rir_target.shape[-1], rir_noise.shape[-1])
    n = _block_size(num_samples, num_taps)

    cutoff = direct_delay + int(early_reflection_sec * sampling_rate)  # (B,)
    early = rir_target[:, 0] * (torch.arange(rir_target.shape[-1], device=target.device) < cutoff[:, None])  # (B, R)

    target_spectra = _block_spectra(target.float(), num_taps, n)  # (B, K, F)
    noise_spectra = _block_spectra(noises.float(), num_taps, n)  # (B, 4, K, F)
    target_response = torch.fft.rfft(rir_target.float(), n).unsqueeze(2)  # (B, 2, 1, F)
    noise_response = torch.fft.rfft(rir_noise.float(), n).unsqueeze(3)  # (B, 4, 2, 1, F)
    target_close = target_spectra * target_response[:, 0]
    noise_close = _sum_of_products(noise_spectra, noise_response[:, :, 0])
    clean = target_spectra * torch.fft.rfft(early.float(), n).unsqueeze(1)
    target_close, noise_close, clean = (
        _join_blocks(blocks, num_taps, n, num_samples) for blocks in (target_close, noise_close, clean)
    )  # (B, L)

    target_power, noise_power = target_close.square().mean(dim=1), noise_close.square().mean(dim=1)
    gain = torch.sqrt(target_power / 10 ** (snr_db.float() / 10) / (noise_power + NOISE_POWER_FLOOR))  # (B,)
    far = _sum_of_products(noise_spectra, noise_response[:, :, 1]).mul_(gain[:, None, None])
    target_far = target_response[:, 1]  # (B, 1, F)
    if machine_level_db is not None:
        heard = _join_blocks(target_spectra * target_far, num_taps, n, num_samples)  # (B, L)
        wanted = target_power / 10 ** (machine_level_db.to(heard) / 10)
        level_gain = torch.sqrt(wanted / (heard.square().mean(dim=1) + TARGET_POWER_FLOOR)).nan_to_num(1.0)  # (B,)
        target_far = target_far * level_gain[:, None, None]
    far = far.addcmul_(target_spectra, target_far)
    return TwoChannelMixture(
        close=target_close.addcmul_(noise_close, gain[:, None]),
        far=_join_blocks(far, num_taps, n, num_samples),
        clean=clean,
    )


def spatial_noises(noises: Tensor, coherence: float | Tensor) -> Tensor:
    """Make four noises of a chosen coherence between the corners from four independent ones.

    The outputs have the correlation `coherence` in every pair: 1 gives the same noise from all corners,
    `noises.sum(1) / 2`, 0 gives `noises` themselves. For uncorrelated inputs the total power never changes, and with
    equal powers neither does that of any corner; `coherence` is then the common part's share of it.

    Args:
        noises: (B, 4, L).
        coherence: in [0, 1], one number or a (B,) tensor.

    Raises:
        ValueError: a shape is wrong, or a coherence lies outside [0, 1].
    """
    if noises.ndim != 3 or noises.shape[1] != 4:
        raise ValueError(f"noises must have shape (B, 4, L), got {tuple(noises.shape)}")
    share = torch.as_tensor(coherence, dtype=noises.dtype, device=noises.device)
    if share.ndim > 1 or (share.ndim == 1 and share.shape != noises.shape[:1]):
        raise ValueError(f"coherence must be a number or of shape ({len(noises)},), got {tuple(share.shape)}")
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"coherence must lie in [0, 1], got {coherence}")
    share = share.reshape(-1, 1, 1)  # (B or 1, 1, 1)
    # The symmetric square root of the covariance (1 - c) I + c 11^T.
    own = torch.sqrt(1 - share)
    common = (torch.sqrt(1 + 3 * share) - own) / 4
    return own * noises + common * noises.sum(dim=1, keepdim=True)


def _block_size(num_samples: int, num_taps: int) -> int:
    """Return the FFT length of the cheapest overlap-save convolution, a power of two of at least `2 * num_taps`."""
    sizes = [2**k for k in range((2 * num_taps - 1).bit_length(), (2 * (num_samples + num_taps)).bit_length() + 1)]
    # A block takes nine transforms (five sources in, four signals out), and there are eleven impulse responses.
    return min(sizes, key=lambda n: n * math.log2(2 * n) * (9 * math.ceil(num_samples / (n - num_taps + 1)) + 11))


def _block_spectra(signals: Tensor, num_taps: int, n: int) -> Tensor:
    """Transform blocks that overlap by `num_taps - 1` samples (overlap-save): (..., L) -> (..., K, F)."""
    hop = n - num_taps + 1
    num_blocks = math.ceil(signals.shape[-1] / hop)
    padded = torch.nn.functional.pad(signals, (num_taps - 1, num_blocks * hop - signals.shape[-1]))
    return torch.fft.rfft(padded.unfold(-1, n, hop))


def _join_blocks(spectra: Tensor, num_taps: int, n: int, num_samples: int) -> Tensor:
    """Join the samples of each block that circular convolution leaves right: (B, K, F) -> (B, L)."""
    return torch.fft.irfft(spectra, n)[..., num_taps - 1 :].flatten(1)[:, :num_samples]  # (B, K * hop) -> (B, L)


def _sum_of_products(spectra: Tensor, responses: Tensor) -> Tensor:
    """Sum the products over the four corners: (B, 4, K, F), (B, 4, 1, F) -> (B, K, F)."""
    total = spectra[:, 0] * responses[:, 0]
    for i in range(1, spectra.shape[1]):
        total = total.addcmul_(spectra[:, i], responses[:, i])
    return total


def _check(
    target: Tensor,
    noises: Tensor,
    rir_target: Tensor,
    rir_noise: Tensor,
    snr_db: Tensor,
    direct_delay: Tensor,
    sampling_rate: int,
    early_reflection_sec: float,
) -> None:
    tensors = {
        "target": target,
        "noises": noises,
        "rir_target": rir_target,
        "rir_noise": rir_noise,
        "snr_db": snr_db,
        "direct_delay": direct_delay,
    }
    received = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    if target.ndim != 2 or target.numel() == 0:
        raise ValueError(f"target must have shape (B, L) and not be empty, got {received}")
    if rir_target.ndim != 3 or rir_target.shape[-1] == 0:
        raise ValueError(f"rir_target must have shape (B, 2, R) and not be empty, got {received}")
    if rir_noise.ndim != 4 or rir_noise.shape[-1] == 0:
        raise ValueError(f"rir_noise must have shape (B, 4, 2, R') and not be empty, got {received}")
    batch, num_samples = target.shape
    shapes = {
        "noises": ("(B, 4, L)", (batch, 4, num_samples)),
        "rir_target": ("(B, 2, R)", (batch, 2, rir_target.shape[-1])),
        "rir_noise": ("(B, 4, 2, R')", (batch, 4, 2, rir_noise.shape[-1])),
        "snr_db": ("(B,)", (batch,)),
        "direct_delay": ("(B,)", (batch,)),
    }
    for name, (rule, shape) in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} must have shape {rule} = {shape}, got {received}")
    if direct_delay.is_floating_point() or direct_delay.is_complex():
        raise ValueError(f"direct_delay must hold integers (samples), got {direct_delay.dtype}")
    if sampling_rate <= 0 or early_reflection_sec < 0:
        raise ValueError(
            "sampling_rate must be positive and early_reflection_sec not negative, "
            f"got {sampling_rate} Hz and {early_reflection_sec} s"
        )
    # All extremes are taken together, so that a GPU is waited for once; NaN counts as an extreme, too.
    signals = [tensor for name, tensor in tensors.items() if name != "direct_delay"]
    extremes = torch.stack([extreme.float() for signal in signals for extreme in signal.aminmax()])
    if not bool(torch.isfinite(extremes).all() & (direct_delay >= 0).all()):
        for name, signal in zip(tensors, signals, strict=False):
            if not bool(torch.isfinite(signal).all()):
                raise ValueError(f"{name} must be finite, got NaN or infinite values; received {received}")
        raise ValueError(f"direct_delay must not be negative, got {direct_delay.tolist()}")
