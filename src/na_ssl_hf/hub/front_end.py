"""The signal front ends of all encoders: waveforms of both microphones become what an encoder takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .fbank import FLAVOURS, FRAME_LENGTH, FRAME_SHIFT, NUM_MEL_BINS, SAMPLING_RATE, kaldi_fbank, num_fbank_frames
from .mel_spectrogram import (
    DASHENG_HOP,
    DASHENG_MEL_BINS,
    DASHENG_RATE,
    DASHENG_SILENCE_DB,
    EFFICIENTAT_FFT,
    EFFICIENTAT_HOP,
    EFFICIENTAT_MEL_BINS,
    EFFICIENTAT_RATE,
    EFFICIENTAT_SILENCE,
    dasheng_log_mel,
    efficientat_log_mel,
    num_dasheng_frames,
    num_efficientat_frames,
)
from .noise_cancellation import METHODS, cancel_far_microphone

# Letters: B recordings, N samples, T frames, M mel bins.


@dataclass(frozen=True)
class FrontEndType:
    """What a kind of front end computes.

    Attributes:
        sampling_rate: of the waveforms, in Hz.
        num_mel_bins: number M of mel bins, unless another is asked for.
        hop_length: samples from one frame to the next, unless another is asked for.
        min_samples: the fewest samples from which an encoder gets one token.
        has_choice: whether mel bins and hop may be others; an encoder is trained for one choice.
        silence: the feature of digital silence, which fills up a batch of features; `None` where waves are filled up
            instead, as the originals of BEATs and EAT do.
        features: computes `(..., T, M)` of `(..., N)` with M mel bins and a hop.
        num_frames: counts the frames T of N samples with a hop.
        num_sound_frames: counts those of them that hold sound; `None` where there is no padding behind them.
    """

    sampling_rate: int
    num_mel_bins: int
    hop_length: int
    min_samples: int
    has_choice: bool
    silence: float | None
    features: Callable[[torch.Tensor, int, int], torch.Tensor]
    num_frames: Callable[[int, int], int]
    num_sound_frames: Callable[[int], int] | None = None


def _num_eat_frames(num_samples: int, _: int) -> int:
    num_frames = num_fbank_frames(num_samples)
    return num_frames + -num_frames % FLAVOURS["eat"][4]


FRONT_ENDS: dict[str, FrontEndType] = {
    # BEATs needs one row of 16 x 16 patches. EAT pads to 32 frames, so that a single frame is enough.
    "beats": FrontEndType(
        sampling_rate=SAMPLING_RATE,
        num_mel_bins=NUM_MEL_BINS,
        hop_length=FRAME_SHIFT,
        min_samples=FRAME_LENGTH + 15 * FRAME_SHIFT,
        has_choice=False,
        silence=None,
        features=lambda waves, *_: kaldi_fbank(waves, "beats"),
        num_frames=lambda num_samples, _: num_fbank_frames(num_samples),
    ),
    "eat": FrontEndType(
        sampling_rate=SAMPLING_RATE,
        num_mel_bins=NUM_MEL_BINS,
        hop_length=FRAME_SHIFT,
        min_samples=FRAME_LENGTH,
        has_choice=False,
        silence=None,
        features=lambda waves, *_: kaldi_fbank(waves, "eat"),
        num_frames=_num_eat_frames,
        num_sound_frames=num_fbank_frames,
    ),
    # A patch of Dasheng has four frames.
    "dasheng": FrontEndType(
        sampling_rate=DASHENG_RATE,
        num_mel_bins=DASHENG_MEL_BINS,
        hop_length=DASHENG_HOP,
        min_samples=3 * DASHENG_HOP,
        has_choice=False,
        silence=DASHENG_SILENCE_DB,
        features=lambda waves, *_: dasheng_log_mel(waves),
        num_frames=lambda num_samples, _: num_dasheng_frames(num_samples),
    ),
    # Its convolutions take a single frame, but a wave is mirrored by half an FFT.
    "efficientat": FrontEndType(
        sampling_rate=EFFICIENTAT_RATE,
        num_mel_bins=EFFICIENTAT_MEL_BINS,
        hop_length=EFFICIENTAT_HOP,
        min_samples=EFFICIENTAT_FFT // 2 + 2,
        has_choice=True,
        silence=EFFICIENTAT_SILENCE,
        features=efficientat_log_mel,
        num_frames=num_efficientat_frames,
    ),
}
# The smallest and the largest number of mel bins and of samples a hop, where there is a choice.
MEL_BINS_RANGE = (8, 1024)
HOP_RANGE = (32, 32_000)


# Frames over which the share that a canceller took is averaged, a tenth of a second.
SMOOTHED_FRAMES = 9


def lowered_by(cancelled: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """Compute by how much a canceller lowered the close channel, so that the far one can be lowered as much.

    Behind a canceller the noise in the close channel is softer, and the far microphone, which still hears all of it,
    does not say by how much. A far channel that is lowered by the same has the same relation to the noise that is left
    as one without a canceller has to the whole noise.

    Args:
        cancelled, recorded: log-mel frames of the close channel behind the canceller and before it, `(B, T, M)`.

    Returns:
        `(B, T, M)`, at most 0: their difference, averaged over nine frames.
    """
    difference = (cancelled - recorded).transpose(1, 2)  # (B, M, T)
    smoothed = torch.nn.functional.avg_pool1d(
        difference, SMOOTHED_FRAMES, stride=1, padding=SMOOTHED_FRAMES // 2, count_include_pad=False
    )
    return smoothed.transpose(1, 2).clamp(max=0.0)


class TwoChannelFrontEnd:
    """An encoder's signal front end: waveforms of both microphones become its log-mel frames.

    Where asked, what the far microphone hears is first taken out of the close channel. The feature extractor and every
    training use this one class, so that a model is trained on what it will hear.

    Args:
        frontend: a name of `FRONT_ENDS`: `"beats"` and `"eat"` ([`kaldi_fbank`]), `"dasheng"` ([`dasheng_log_mel`]) or
            `"efficientat"` ([`efficientat_log_mel`]).
        far_cancellation: the method of [`cancel_far_microphone`], or `None` to leave the close channel as it is.
        num_mel_bins: number M of mel bins; `None` for that of the front end. Only EfficientAT has a choice.
        hop_length: samples from one frame to the next; `None` for that of the front end. Only EfficientAT has a choice.
        lowers_far: whether the far channel is lowered by what a canceller took from the close one, see [`lowered_by`].

    Raises:
        ValueError: the front end or the method is unknown, or the front end has no such mel bins or hop.
    """

    def __init__(
        self,
        frontend: str = "beats",
        far_cancellation: str | None = None,
        num_mel_bins: int | None = None,
        hop_length: int | None = None,
        lowers_far: bool = False,
    ):
        if not isinstance(frontend, str) or frontend not in FRONT_ENDS:
            raise ValueError(f"`frontend` must be {' or '.join(map(repr, FRONT_ENDS))}, got {frontend!r}.")
        if far_cancellation is not None and (not isinstance(far_cancellation, str) or far_cancellation not in METHODS):
            names = " or ".join(map(repr, (None, *METHODS)))
            raise ValueError(f"`far_cancellation` must be {names}, got {far_cancellation!r}.")
        self._type = FRONT_ENDS[frontend]
        self.frontend = frontend
        self.far_cancellation = far_cancellation
        self.lowers_far = lowers_far
        self.sampling_rate = self._type.sampling_rate
        self.num_mel_bins = self._chosen("num_mel_bins", num_mel_bins, self._type.num_mel_bins, MEL_BINS_RANGE)
        self.hop_length = self._chosen("hop_length", hop_length, self._type.hop_length, HOP_RANGE)
        self.min_samples = self._type.min_samples
        self.silence = self._type.silence

    @classmethod
    def of(cls, config: Any, far_cancellation: str | None = None) -> "TwoChannelFrontEnd":
        """Make the front end of a model's configuration."""
        lowers_far = getattr(config, "noise_aware_lowers_far", False)
        hop_length = getattr(config, "hop_length", None)
        return cls(config.frontend, far_cancellation, config.num_mel_bins, hop_length, lowers_far)

    def _chosen(self, name: str, value: int | None, default: int, legal: tuple[int, int]) -> int:
        """Return the value that is asked for; a ValueError where the front end does not have it."""
        if value is None:
            return default
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int or (value != default and not self._type.has_choice):
            raise ValueError(f"`{name}` must be {default} for frontend={self.frontend!r}, got {value!r}.")
        if not legal[0] <= value <= legal[1]:
            raise ValueError(f"`{name}` must be in [{legal[0]}, {legal[1]}], got {value!r}.")
        return value

    def __call__(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Compute the log-mel frames of both channels.

        Args:
            waveforms: `(B, 2, N)` of any float dtype on any device, at `sampling_rate`, channel 0 close and 1 far;
                every recording is treated alone.

        Returns:
            `(B, 2, T, M)` float32 on the same device, differentiable with respect to `waveforms`.

        Raises:
            ValueError: the shape is another, the samples are integers, or there are too few of them for one frame.
        """
        return self.frames(self.cancel(waveforms), waveforms)

    def frames(self, waveforms: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
        """Compute the log-mel frames of both channels, where the close one may have gone through a canceller.

        Args:
            waveforms: `(B, 2, N)`, as a canceller left it.
            recorded: `(B, 2, N)`, as it was before; the same tensor where nothing was cancelled.

        Returns:
            `(B, 2, T, M)` float32. With `lowers_far` the far channel is lower by what was taken from the close one.
        """
        fbank = self.fbank(waveforms)
        if not self.lowers_far or waveforms is recorded:
            return fbank
        close, far = fbank.unbind(1)  # (B, T, M) each
        num_frames = self.num_sound_frames(waveforms.shape[-1])
        lowered = lowered_by(close[:, :num_frames], self.fbank(recorded[:, 0])[:, :num_frames])
        far = torch.cat([far[:, :num_frames] + lowered, far[:, num_frames:]], dim=1)
        return torch.stack([close, far], dim=1)

    def cancel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Take the far microphone out of the close channel of `(B, 2, N)`; without a method nothing is changed."""
        if waveforms.dim() != 3 or waveforms.shape[1] != 2:
            raise ValueError(f"`waveforms` must have the shape (B, 2, N), got {tuple(waveforms.shape)}.")
        if self.far_cancellation is None:
            return waveforms
        close, far = waveforms.unbind(1)
        cancelled = cancel_far_microphone(close, far, self.far_cancellation, self.sampling_rate)
        return torch.stack([cancelled, far], dim=1)

    def fbank(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Compute the log-mel frames `(..., T, M)` of `(..., N)` as it is, for example of one channel."""
        return self._type.features(waveforms, self.num_mel_bins, self.hop_length)

    def num_frames(self, num_samples: int) -> int:
        """Count the frames T of `num_samples`; a ValueError where there are too few for one frame."""
        return self._type.num_frames(num_samples, self.hop_length)

    def num_sound_frames(self, num_samples: int) -> int:
        """Count the frames of `num_samples` that hold sound; behind them, EAT has frames of padding."""
        counted = self._type.num_sound_frames
        return self.num_frames(num_samples) if counted is None else counted(num_samples)
