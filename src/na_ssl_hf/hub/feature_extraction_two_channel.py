"""The feature extractor of all encoders: two-channel recordings (0 close, 1 far) become normalised log-mel frames."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

from .fbank import FLAVOURS, SAMPLING_RATE, num_fbank_frames
from .front_end import TwoChannelFrontEnd

try:
    import soxr
except ImportError:  # only resampling needs it
    soxr = None

logger = logging.get_logger(__name__)

# Letters: B recordings, N samples of one, L samples of the longest, T frames, M mel channels, K frequency bins.
_SILENT_RMS = 1e-6  # a tenth of the root mean square of 16 bit rounding
_FULL_SCALE = 1 - 2.0**-15
_CLIPPED_SHARE = 1e-3
_LARGEST_SAMPLE = 1e9

# These belong to far_leads_and_is_louder; lengths are samples at 16 kHz.
_LAG_FRAME = 1024
_MAX_LAG = 60  # 1.3 m of path difference
_MIN_LAG_FRAMES = 16  # in fewer frames every pair of signals looks coherent
_CHANCE = 6.0  # standard deviations of the correlation of independent noises
_LEAD_DB = 1.0
_LOUDER_DB = 3.0


class _Group(NamedTuple):
    """Recordings of one length: their rows in the batch, and channels `(b, 2, N)` after a canceller and before it."""

    rows: list[int]
    cancelled: torch.Tensor
    recorded: torch.Tensor


class TwoChannelFeatureExtractor(SequenceFeatureExtractor):
    """Turns two-channel recordings into the input of the encoders of this package.

    Levels are not normalised: both channels keep their common gain, which carries information. Silent, identical,
    swapped and clipped channels are legal and give a warning once per process.

    Args:
        frontend: `"beats"`, `"eat"`, `"dasheng"` or `"efficientat"`, the log-mel frames of the model.
        feature_size: the number of channels, 2.
        sampling_rate: the sampling rate of the model in Hz: 16000, and 32000 for EfficientAT; `None` for that.
        num_mel_bins: the number of mel bins of the model: 128, 64 for Dasheng, and one's choice for EfficientAT; `None`
            for that of the front end.
        resample: whether other sampling rates are converted with soxr or refused.
        far_cancellation: `"least_squares"` or `"spectral_subtraction"` removes from the close channel what the far one
            hears, for each recording by itself and before padding; `None` leaves the close channel as it is.
        padding_value: the sample value that continues the shorter recordings of a batch of BEATs or EAT.
        hop_length: samples from one frame to the next at the model's sampling rate: 160, and one's choice, by default
            320, for EfficientAT; `None` for that of the front end.
        lowers_far: whether the far channel is lowered by what `far_cancellation`, or the canceller of a scorer, takes
            from the close one; for models with `noise_aware_lowers_far`.

    Raises:
        ValueError: a parameter is none of these choices.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(
        self,
        frontend: str = "beats",
        feature_size: int = 2,
        sampling_rate: int | None = None,
        num_mel_bins: int | None = None,
        resample: bool = False,
        far_cancellation: str | None = None,
        padding_value: float = 0.0,
        hop_length: int | None = None,
        lowers_far: bool = False,
        **kwargs: Any,
    ):
        front_end = TwoChannelFrontEnd(frontend, far_cancellation, num_mel_bins, hop_length, lowers_far)
        sampling_rate = front_end.sampling_rate if sampling_rate is None else sampling_rate
        for name, value, choice in (
            ("feature_size", feature_size, 2),
            ("sampling_rate", sampling_rate, front_end.sampling_rate),
        ):
            # 2.0 is equal to 2, but is written and shown otherwise.
            if value != choice or type(value) is not int:
                raise ValueError(f"`{name}` must be {choice}, got {value!r}.")
        for name, value in (
            ("resample", resample),
            ("lowers_far", lowers_far),
            ("return_attention_mask", kwargs.get("return_attention_mask", True)),
        ):
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` must be True or False, got {value!r}.")
        if (
            isinstance(padding_value, bool)
            or not isinstance(padding_value, (int, float))
            or not -1e9 <= padding_value <= 1e9
        ):
            raise ValueError(f"`padding_value` must be a finite sample value, got {padding_value!r}.")
        padding_side = kwargs.get("padding_side", "right")
        if padding_side != "right":
            raise ValueError(f"`padding_side` must be 'right', got {padding_side!r}.")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.frontend = frontend
        self.num_mel_bins = front_end.num_mel_bins
        self.hop_length = front_end.hop_length
        self.resample = resample
        self.far_cancellation = far_cancellation
        self.lowers_far = lowers_far

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        try:
            return super().from_dict(feature_extractor_dict, **kwargs)
        except (ValueError, TypeError) as error:
            raise ValueError(f"The settings in preprocessor_config.json are refused: {error}") from error

    @classmethod
    def of(cls, config: Any, far_cancellation: str | None = None) -> "TwoChannelFeatureExtractor":
        """Make the feature extractor of a model's configuration; one for another rate than 16 kHz resamples."""
        front_end = TwoChannelFrontEnd.of(config, far_cancellation)
        return cls(
            front_end.frontend,
            num_mel_bins=front_end.num_mel_bins,
            # Recordings of machines have 16 kHz, in the challenges and mostly elsewhere.
            resample=front_end.sampling_rate != SAMPLING_RATE,
            far_cancellation=front_end.far_cancellation,
            hop_length=front_end.hop_length,
            lowers_far=front_end.lowers_far,
        )

    @property
    def front_end(self) -> TwoChannelFrontEnd:
        """The front end of these settings, made anew because an extractor writes all its attributes to a file."""
        return TwoChannelFrontEnd(
            self.frontend, self.far_cancellation, self.num_mel_bins, self.hop_length, self.lowers_far
        )

    @torch.no_grad()
    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        device: str | torch.device = "cpu",
        padding: bool | str = True,
    ) -> BatchFeature:
        """Compute the features of one recording or of a batch.

        Args:
            audio: `(2, N)` array, tensor or nested list, `(B, 2, N)`, or a list of `(2, N)` of unequal lengths; float
                with full scale 1.0 (louder is legal), or int16 or int32 PCM.
            sampling_rate: the sampling rate of `audio`, in Hz. Without it the extractor's is assumed, with a warning
                once.
            return_tensors: `"pt"`, `"np"`, or `None` for lists of arrays.
            device: the device on which the features are computed; they are returned on the CPU.
            padding: `True` or `"longest"` pads shorter recordings to the longest; `False` refuses unequal lengths.

        Returns:
            `input_values` `(B, 2, T, M)` float32, and `attention_mask` `(B, T)` int64 with 0 for frames of padding
            only, counted as the original BEATs counts them. For EAT, the frames that fill up a recording to a multiple
            of 32 are its own, as in the original, and every frame after is padding. For Dasheng and EfficientAT, the
            frames of each recording are those that it has alone, and frames of silence follow.

        Raises:
            ValueError: a recording has another rank, type or number of channels, NaN or infinity, or another sampling
                rate without `resample`; or it is shorter than the model's minimum (2800 samples for BEATs, 400 for
                EAT, 480 for Dasheng, 514 for EfficientAT).
        """
        if return_tensors not in ("pt", "np", None):
            raise ValueError(f"`return_tensors` must be 'pt', 'np' or None, got {return_tensors!r}.")
        if padding not in (True, False, "longest"):
            raise ValueError(f"`padding` must be True, 'longest' or False, got {padding!r}.")
        recordings = [
            self.waveform(wave, sampling_rate, f"Recording {index}") for index, wave in enumerate(_recordings(audio))
        ]
        lengths = [wave.shape[-1] for wave in recordings]
        if not padding and min(lengths) < max(lengths):
            raise ValueError(f"`padding` must be True for recordings of unequal lengths, got {sorted(set(lengths))}.")

        groups = list(self._cancelled(recordings, lengths, torch.device(device)))
        if self.front_end.silence is None:
            input_values = self._features_of_padded(groups, lengths)  # (B, 2, T, M)
        else:
            input_values = self._padded_features(groups, lengths)  # (B, 2, T, M)
        mask = torch.stack([self._frame_mask(n, max(lengths), input_values.shape[2]) for n in lengths])  # (B, T)
        if self.frontend == "eat":
            zero_log_mel = -FLAVOURS["eat"][2] / FLAVOURS["eat"][3]
            for values, length in zip(input_values, lengths, strict=True):
                values[:, num_fbank_frames(length) :] = zero_log_mel

        features: dict[str, Any] = {"input_values": input_values.cpu()}
        if self.return_attention_mask:
            features["attention_mask"] = mask
        if return_tensors != "pt":
            features = {name: values.numpy() for name, values in features.items()}
        if return_tensors is None:
            features = {name: list(values) for name, values in features.items()}
        return BatchFeature(features)

    def waveform(self, audio: Any, sampling_rate: int | None = None, label: str = "It") -> torch.Tensor:
        """Check one recording and bring it to the extractor's rate.

        Args:
            audio: `(2, N)` array, tensor or nested list, as for a call of the extractor.
            sampling_rate: the sampling rate of `audio`, in Hz; `None` assumes the extractor's, with a warning once.
            label: the name of the recording in errors.

        Returns:
            `(2, N)` float32 at the extractor's rate, full scale 1.0.

        Raises:
            ValueError: as for a call of the extractor.
        """
        wave = self._at_own_rate(_recording(audio, label), sampling_rate)
        least = self.front_end.min_samples
        if wave.shape[-1] < least:
            raise ValueError(
                f"`audio` must have at least {least} samples per channel at {self.sampling_rate} "
                f"Hz for frontend={self.frontend!r}. {label} has {wave.shape[-1]}."
            )
        return wave

    @torch.no_grad()
    def fbank(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Compute the features of checked recordings of one length, on the device that they are on.

        Args:
            waveforms: `(B, 2, N)` float32, from [`TwoChannelFeatureExtractor.waveform`].

        Returns:
            `(B, 2, T, M)` float32, what a call of the extractor gives as `input_values`.
        """
        return self.front_end(waveforms)

    def _at_own_rate(self, wave: torch.Tensor, sampling_rate: int | None) -> torch.Tensor:
        if sampling_rate is None:
            logger.warning_once(
                f"No `sampling_rate` was given to {type(self).__name__}: {self.sampling_rate} Hz is assumed. A wrong "
                "rate cannot be seen in the samples; pass `sampling_rate`."
            )
        elif not self.resample and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"`sampling_rate` must be {self.sampling_rate}, or the extractor made with resample=True; "
                f"got {sampling_rate}."
            )
        elif sampling_rate != self.sampling_rate:
            if soxr is None:
                raise ValueError("`resample=True` needs the package soxr: pip install soxr.")
            if not sampling_rate > 0:
                raise ValueError(f"`sampling_rate` must be positive, got {sampling_rate}.")
            both = np.ascontiguousarray(wave.cpu().numpy().T)  # (N, 2): one call, one delay for both channels
            return torch.from_numpy(soxr.resample(both, sampling_rate, self.sampling_rate).T.copy())
        return wave

    def _features_of_padded(self, groups: list[_Group], lengths: list[int]) -> torch.Tensor:
        """Pad the waves of recordings with `padding_value`, and compute their features `(B, 2, T, M)` together."""
        front_end, device = self.front_end, groups[0].cancelled.device
        waves = torch.full((len(lengths), 2, max(lengths)), float(self.padding_value), device=device)
        for group in groups:
            waves[group.rows, :, : group.cancelled.shape[-1]] = group.cancelled
        features = front_end.fbank(waves)
        if self.lowers_far and self.far_cancellation is not None:
            # Each recording by its own frames, so that those around it have no influence.
            for group in groups:
                far = front_end.frames(group.cancelled, group.recorded)[:, 1]  # (b, T', M)
                features[group.rows, 1, : far.shape[1]] = far
        return features

    def _padded_features(self, groups: list[_Group], lengths: list[int]) -> torch.Tensor:
        """Compute the features of recordings, equal lengths together, and pad them to `(B, 2, T, M)` with silence."""
        front_end, device = self.front_end, groups[0].cancelled.device
        shape = (len(lengths), 2, front_end.num_frames(max(lengths)), self.num_mel_bins)
        features = torch.full(shape, float(front_end.silence or 0.0), device=device)
        for group in groups:
            own = front_end.frames(group.cancelled, group.recorded)  # (b, 2, T', M)
            features[group.rows, :, : own.shape[2]] = own
        return features

    def _cancelled(self, recordings: list[torch.Tensor], lengths: list[int], device: torch.device) -> Iterator[_Group]:
        """Cancel recordings of one length together."""
        for length in sorted(set(lengths)):
            rows = [row for row, n in enumerate(lengths) if n == length]
            group = torch.stack([recordings[row].to(device) for row in rows])  # (b, 2, N)
            for oddity, found in find_oddities(group, self.sampling_rate).items():
                if found.any():
                    logger.warning_once(ODDITIES[oddity])
            yield _Group(rows, self.front_end.cancel(group), group)

    def _frame_mask(self, length: int, longest: int, num_frames: int) -> torch.Tensor:
        """Make the mask `(T,)` int64 of a recording of `length` samples, 1 where a frame is not all padding."""
        if self.frontend == "eat":
            valid = num_fbank_frames(length)
            valid += -valid % FLAVOURS["eat"][4]
        elif self.frontend != "beats":
            valid = self.front_end.num_frames(length)
        else:
            # The original gives every frame longest // T samples, whatever the hop, and drops the rest.
            valid = -(-length // (longest // num_frames))
        return (torch.arange(num_frames) < valid).long()


def far_leads_and_is_louder(channels: torch.Tensor, sampling_rate: int = SAMPLING_RATE) -> torch.Tensor:
    """Tell whether the far microphone hears the machine earlier and louder than the close one, as if they were swapped.

    From the cross-spectrum and power spectra averaged over the clip: (1) the coherence-normalised cross-correlation
    (SCOT; Knapp & Carter, 1976) has a peak at the lags where far does not lag that is beyond chance and 1 dB above the
    best one where it does; and (2) the level of far over close, averaged over frequency with the coherence to the
    fourth power as weight, so that sounds which only one microphone hears do not count, is above 3 dB.

    In 160 simulated rooms, -10 to 10 dB SNR, it fired on 8 of 640 correct clips, all from 2 rooms where a noise source
    or the (randomly displaced) machine truly is louder at the far microphone, and on 59 % (0 dB) to 83 % (10 dB) of
    the same clips with swapped channels.

    Args:
        channels: `(B, 2, N)` float32; recordings below 0.5 s are never suspected.
        sampling_rate: of the channels, in Hz.

    Returns:
        `(B,)` bool.
    """
    lag_frame, max_lag = (round(samples * sampling_rate / SAMPLING_RATE) for samples in (_LAG_FRAME, _MAX_LAG))
    if channels.shape[-1] < lag_frame * (_MIN_LAG_FRAMES + 1) // 2:
        return torch.zeros(len(channels), dtype=torch.bool, device=channels.device)
    window = torch.hann_window(lag_frame, device=channels.device)
    spectra = torch.fft.rfft(channels.unfold(-1, lag_frame, lag_frame // 2) * window)  # (B, 2, frames, K)
    power = spectra.real.square().add_(spectra.imag.square()).mean(2)  # (B, 2, K)
    # The floor excludes bins of mere rounding errors from the normalisation.
    power = power + 1e-10 * power.amax(dim=(1, 2), keepdim=True) + torch.finfo(power.dtype).tiny
    cross = (spectra[:, 0].conj() * spectra[:, 1]).mean(1) / power.prod(1).sqrt()  # (B, K)
    correlation = torch.fft.irfft(cross).abs()  # (B, lags), far lags at the positive ones
    lags = correlation[:, 1 : max_lag + 1].amax(1)
    leads = torch.cat([correlation[:, -max_lag:], correlation[:, :1]], dim=1).amax(1)
    weight = cross.abs().pow(4)
    level_db = 10 * (power[:, 1] / power[:, 0]).log10()
    louder_db = (weight * level_db).sum(1) / weight.sum(1).clamp_min(torch.finfo(power.dtype).tiny)
    chance = _CHANCE / (lag_frame * spectra.shape[2]) ** 0.5
    return (leads > chance) & (leads > lags * 10 ** (_LEAD_DB / 10)) & (louder_db > _LOUDER_DB)


# So many names a warning lists.
LISTED_NAMES = 5
# Normal recordings of a correct installation look swapped no more often than this.
USUAL_SHARE = 0.05
# What may be wrong with a microphone or a cable; legal, but worth a warning.
ODDITIES = {
    "silent close": "A recording has a silent close microphone (channel 0).",
    "silent far": "A recording has a silent far microphone (channel 1); is it connected?",
    "identical": "A recording has two identical channels; a far microphone (channel 1) was expected.",
    "clipped": "A recording is at or above full scale in more than 0.1 % of its samples; it may be clipped.",
    "swapped": (
        "In a recording the far microphone (channel 1) hears the machine earlier and louder than the close one "
        "(channel 0); are the channels swapped?"
    ),
}


def find_oddities(channels: torch.Tensor, sampling_rate: int = SAMPLING_RATE) -> dict[str, torch.Tensor]:
    """Which recordings show which of the `ODDITIES`.

    Args:
        channels: `(B, 2, N)` float32.
        sampling_rate: of the channels, in Hz.

    Returns:
        for each of them `(B,)` bool.
    """
    centred = channels - channels.mean(-1, keepdim=True)
    silent = centred.square_().mean(-1) < _SILENT_RMS**2  # (B, 2), a constant offset is silence, too
    # One clip's spectra stay in the CPU's cache, those of a batch do not; a GPU wants the batch.
    parts = channels.split(1) if channels.device.type == "cpu" else [channels]
    looks_swapped = torch.cat([far_leads_and_is_louder(part, sampling_rate) for part in parts])  # (B,)
    return {
        "silent close": silent[:, 0],
        "silent far": silent[:, 1],
        "identical": (channels[:, 0] == channels[:, 1]).all(-1) & ~silent[:, 0],
        "clipped": ((channels.abs() >= _FULL_SCALE).float().mean(-1) > _CLIPPED_SHARE).any(1),
        "swapped": looks_swapped & ~silent.any(1),
    }


class OddityReport:
    """Collects which recordings show which of the `ODDITIES`, for one warning of each kind that names them.

    Args:
        sampling_rate: of the recordings, in Hz.
        usual_share: the share of the normal recordings that looked "swapped". Where it is above 5 %, the room or the
            place of a microphone does it, and nothing is said.
    """

    def __init__(self, sampling_rate: int = SAMPLING_RATE, usual_share: float = 0.0) -> None:
        self._sampling_rate = sampling_rate
        self._usual_share = usual_share
        self._num_recordings = self._num_swapped = 0
        self._names: dict[str, list[str]] = {}

    def note(self, names: Sequence[str], channels: torch.Tensor) -> None:
        """Look at recordings, or windows of them, `(B, 2, N)` float32."""
        self._num_recordings += len(names)
        for oddity, found in find_oddities(channels, self._sampling_rate).items():
            odd = [name for name, is_odd in zip(names, found.tolist(), strict=True) if is_odd]
            if oddity == "swapped":
                self._num_swapped += len(odd)
                if self._usual_share > USUAL_SHARE:
                    continue
            known = self._names.setdefault(oddity, [])
            known += [name for name in dict.fromkeys(odd) if name not in known[-1:]]

    @property
    def swapped_share(self) -> float:
        """The share of the recordings so far, or windows of them, that look as if their channels were swapped."""
        return self._num_swapped / max(1, self._num_recordings)

    def report(self) -> None:
        """Log what was found."""
        for oddity, names in self._names.items():
            if names:
                listed = ", ".join(names[:LISTED_NAMES]) + (", ..." if len(names) > LISTED_NAMES else "")
                # A warning that was given in the same words is not given again: a scorer may be called for each clip.
                logger.warning_once(f"{ODDITIES[oddity]} ({len(names)}: {listed})")


def _recordings(audio: Any) -> Sequence[Any]:
    """List the recordings in `audio`, unchecked; a ValueError says what `audio` is instead."""
    rank = _rank(audio)
    is_array = isinstance(audio, (np.ndarray, torch.Tensor))
    if rank == 0 or (rank == 1 and not is_array and audio and isinstance(audio[0], (str, bytes, dict))):
        element = f" of {type(audio[0]).__name__}" if rank else ""
        raise ValueError(
            f"`audio` must be an array, a tensor or a list of shape (2, N), got {type(audio).__name__}{element}."
        )
    if rank == 1 and len(audio) > 0:
        raise ValueError(
            f"`audio` must have two channels, (2, N): close and far microphone; got mono, ({len(audio)},)."
        )
    if len(audio) == 0:
        raise ValueError("`audio` must not be empty, got no recording.")
    if not is_array and rank == 2 and not isinstance(audio[0], Sequence):
        raise ValueError(
            "`audio` must be a list of (2, N) recordings, but its first element is one-dimensional, that is mono. "
            "One recording from two arrays is np.stack([close, far])."
        )
    if rank not in (2, 3):
        raise ValueError(f"`audio` must be (2, N), (B, 2, N) or a list of (2, N), got {rank} dimensions.")
    return [audio] if rank == 2 else audio


def _rank(audio: Any) -> int:
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return audio.ndim
    if isinstance(audio, Sequence) and not isinstance(audio, (str, bytes)):
        return 1 + (_rank(audio[0]) if len(audio) else 0)
    return 0


def _recording(audio: Any, label: str) -> torch.Tensor:
    """Turn one recording into `(2, N)` float32 of full scale 1.0; a ValueError says what is wrong with it."""
    wave = _float_samples(audio, label)
    shape = tuple(wave.shape)
    if wave.ndim != 2:
        mono = ", which is mono" if wave.ndim == 1 else ""
        raise ValueError(f"Every recording in `audio` must have the shape (2, N). {label} has {shape}{mono}.")
    if shape[0] != 2 and shape[1] == 2 and shape[0] > 0:
        raise ValueError(
            f"`audio` must be channels first, (2, N). {label} has the shape {shape}, which looks transposed; "
            "pass its transpose."
        )
    if shape[0] != 2:
        noun = "channel (mono)" if shape[0] == 1 else "channels"
        raise ValueError(
            f"`audio` must have two channels, 0 the close and 1 the far microphone. {label} has "
            f"{shape[0]} {noun}, shape {shape}."
        )
    if shape[1] == 0:
        raise ValueError(f"`audio` must not be empty. {label} has no samples, shape {shape}.")
    # The sum is quick and nearly always decides; only a sum that overflows needs the second test.
    if not wave.sum().isfinite() and not wave.isfinite().all():
        raise ValueError(
            f"`audio` must be finite. {label} has {int((~wave.isfinite()).sum())} NaN or infinite samples."
        )
    # The power of such samples would overflow float32, many steps later.
    if float(wave.abs().amax()) > _LARGEST_SAMPLE:
        raise ValueError(
            f"`audio` must have its full scale at 1. {label} has a sample of {float(wave.abs().amax()):.3g}."
        )
    return wave


def _float_samples(audio: Any, label: str) -> torch.Tensor:
    if isinstance(audio, torch.Tensor):
        if audio.is_floating_point():
            return audio.detach().float()
        audio = audio.cpu().numpy()
    try:
        samples = np.asarray(audio)
    except ValueError as error:
        raise ValueError(f"The channels of `audio` must have equal lengths. {label} has not: {error}.") from error
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        return torch.from_numpy((samples / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32))
    if samples.dtype.kind != "f":
        raise ValueError(f"`audio` must be floating point, int16 or int32. {label} has the dtype {samples.dtype}.")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is refused as such
        return torch.from_numpy(samples.astype(np.float32))


TwoChannelFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
