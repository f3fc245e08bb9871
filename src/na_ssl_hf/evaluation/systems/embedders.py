"""Embedders turn sound files into one vector per frequency band, by a checkpoint or by log-mel statistics.

Letters: B recordings, N samples, F bands, D channels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ...checkpoints import resolve_checkpoint
from ...checkpoints.loading import load_extractor, load_model
from ...hub.far_microphone import FarMicrophone
from ...hub.fbank import SAMPLING_RATE
from ...hub.feature_extraction_two_channel import TwoChannelFeatureExtractor
from ...hub.front_end import TwoChannelFrontEnd
from ...hub.input_level import at_level, check_level
from ...hub.layer_choice import LayerChoice
from ...hub.memory_bank import MemoryBank
from ...hub.model_weights import merge_adapter, model_fingerprint
from ...hub.pipeline_anomaly_scoring import AnomalyScorer
from ...hub.recording import Recording, load_recording
from ...quiet_checkpoints import quiet_checkpoints
from .log_mel import log_mel_embeddings
from .published_systems import FRONTENDS

# Part of the key of every embedding: another number makes all embeddings in existing caches be computed again.
FORMAT_VERSION = 1
# The fields that decide what an extractor computes; its file also says where its code is.
_EXTRACTOR_FIELDS = ("frontend", "sampling_rate", "num_mel_bins", "hop_length", "resample", "far_cancellation")


@dataclass(frozen=True)
class Embedder:
    """Something that turns recordings into embeddings.

    Attributes:
        name: name in messages and tables.
        key: hash of everything that decides the embeddings besides the recordings: weights, extractor,
            layers, pooling.
        embed: function from several paths to `(B, F, D)` float32 on the CPU; its OSError and ValueError name the
            recording that they are about.
        bank_settings: settings of the `MemoryBank` that fits these embeddings.
    """

    name: str
    key: str
    embed: Callable[[Sequence[Path]], torch.Tensor]
    bank_settings: Mapping[str, Any]

    def bank(self, **settings: Any) -> MemoryBank:
        """Make an unfitted memory for these embeddings, with further settings of [`MemoryBank`]."""
        return MemoryBank(**self.bank_settings, **settings)


@dataclass(frozen=True)
class Frontend:
    """What embedders are made of: log-mel statistics, or a loaded model, which all machines share.

    Attributes:
        sampling_rate: of what it hears, in Hz.
        waveform: function from a recording to its two channels `(2, N)` float32 at that rate; its ValueError names the
            recording.
        embedder: function from the calibrated far microphone of an installation, or `None`, to the embedder.
    """

    sampling_rate: int
    waveform: Callable[[Recording], torch.Tensor]
    embedder: Callable[[FarMicrophone | None], Embedder]


def log_mel_frontend(
    far_cancellation: str | None = None, center_level: bool = False, level: str = "as recorded"
) -> Frontend:
    """Make the frontend of `log_mel_embedder`, whose arguments these are."""
    return Frontend(
        SAMPLING_RATE,
        lambda recording: _channels(recording, needs_two=True),
        lambda far_microphone: log_mel_embedder(far_cancellation, center_level, far_microphone, level),
    )


def checkpoint_frontend(
    name: str,
    checkpoint: str,
    pooling: str = "mean",
    gamma: float = 4.0,
    far_cancellation: str | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    layers: Sequence[int] | None = None,
    level: str = "as recorded",
) -> Frontend:
    """Load a checkpoint as a frontend; arguments and errors are those of `checkpoint_embedder`."""
    model, extractor = load_frontend(name, checkpoint, far_cancellation)

    def waveform(recording: Recording) -> torch.Tensor:
        return extractor.waveform(recording.samples, recording.sampling_rate, recording.name)

    def embedder(far_microphone: FarMicrophone | None) -> Embedder:
        return model_embedder(name, model, extractor, pooling, gamma, batch_size, device, layers, far_microphone, level)

    return Frontend(extractor.sampling_rate, waveform, embedder)


def log_mel_embedder(
    far_cancellation: str | None = None,
    center_level: bool = False,
    far_microphone: FarMicrophone | None = None,
    level: str = "as recorded",
) -> Embedder:
    """Make the embedder that needs no network: log-mel statistics of the close channel, see `log_mel_embeddings`.

    Args:
        far_cancellation: "least_squares" or "spectral_subtraction" first takes out what the far channel hears.
        center_level: whether the level of the clip is subtracted.
        far_microphone: a calibrated one, which takes it out instead of `far_cancellation`.
        level: the level at which recordings are heard, see [`AnomalyScorer.fit`].
    """
    cancel = far_canceller(far_cancellation, far_microphone)

    def embed(files: Sequence[Path]) -> torch.Tensor:
        waves = (close_channel(load_recording(file, SAMPLING_RATE), cancel, level) for file in files)
        return log_mel_embeddings(waves, center_level=center_level)

    settings = {"frontend": "logmel", "far_cancellation": far_cancellation, "center_level": center_level}
    key = _key(settings | _settings_beside(far_microphone, level))
    return Embedder("logmel", key, embed, {"distance": "euclidean", "normalize": False})


def checkpoint_embedder(
    name: str,
    checkpoint: str,
    pooling: str = "mean",
    gamma: float = 4.0,
    far_cancellation: str | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    layers: Sequence[int] | None = None,
    level: str = "as recorded",
) -> Embedder:
    """Make the embedder of a frontend of the published tables from a checkpoint.

    Args:
        name: a name of `FRONTENDS`, which says what type the model must have; a noise-aware checkpoint also serves the
            names of its base, by the base inside it.
        checkpoint: directory or name on the hub (a fine-tuned one may be an adapter), or the name of a checkpoint of
            the package.
        pooling, gamma: how tokens are pooled over time, see `pool_time`.
        far_cancellation: as in `TwoChannelFeatureExtractor`, or "none" to switch it off; `None` leaves it as the
            checkpoint says.
        batch_size: number of recordings of one length that go through the model together.
        device: where the model computes; `None` for the best there is.
        layers: the layers whose tokens are compared, see [`AnomalyScorer.fit`]; `None` for the last one.
        level: the level at which recordings are heard, see [`AnomalyScorer.fit`].

    Raises:
        OSError: the checkpoint cannot be loaded.
        ValueError: the name is unknown, the model has another type, or it lacks one of the layers.
    """
    settings = (name, checkpoint, pooling, gamma, far_cancellation, batch_size, device, layers, level)
    return checkpoint_frontend(*settings).embedder(None)


def load_frontend(name: str, checkpoint: str, far_cancellation: str | None) -> tuple[Any, TwoChannelFeatureExtractor]:
    """Load the model and the extractor of a frontend; arguments and errors are those of `checkpoint_embedder`."""
    if name not in FRONTENDS:
        raise ValueError(f"frontend must be one of {', '.join(FRONTENDS)}; got {name!r}")
    model, extractor = _load(checkpoint)
    if getattr(model.config, "base_model_type", None) == FRONTENDS[name] and hasattr(model, "to_base"):
        model = model.to_base()
    if model.config.model_type != FRONTENDS[name]:
        raise ValueError(
            f"frontend {name!r} must have a model of type {FRONTENDS[name]!r}, "
            f"got {model.config.model_type!r} from {checkpoint}"
        )
    if far_cancellation is not None:
        extractor.far_cancellation = None if far_cancellation == "none" else far_cancellation
    return model, extractor


def model_embedder(
    name: str,
    model: PreTrainedModel,
    extractor: TwoChannelFeatureExtractor,
    pooling: str = "mean",
    gamma: float = 4.0,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    layers: Sequence[int] | None = None,
    far_microphone: FarMicrophone | None = None,
    level: str = "as recorded",
) -> Embedder:
    """Make the embedder of a model that is loaded already, with its extractor; the rest is as `checkpoint_embedder`.

    A calibrated `far_microphone` takes the far channel out of the close one; the extractor's method must then be off.
    """
    far_canceller(extractor.far_cancellation, far_microphone)
    scorer = AnomalyScorer(model=model, feature_extractor=extractor, device=device)
    scorer.far_microphone = far_microphone
    choice = LayerChoice.of(layers=layers).or_default_of(model)
    choice.check(model)
    uses_far = extractor.far_cancellation is not None or far_microphone is not None
    hears_close_only = not hasattr(model, "to_base") and not uses_far
    pooling_settings: dict[str, Any] = {"pooling": pooling} | ({"gamma": gamma} if "rdp" in pooling else {})

    def embed(files: Sequence[Path]) -> torch.Tensor:
        recordings = [load_recording(file, extractor.sampling_rate) for file in files]
        if hears_close_only:
            recordings = [_with_two_channels(recording) for recording in recordings]
        as_dicts = [_as_dict(one) for one in recordings]
        return scorer.embed(as_dicts, batch_size, layers=choice.layers, level=level, **pooling_settings)

    settings = {"pooling": pooling, "gamma": gamma, "dtype": str(model.dtype)}
    settings |= {field: getattr(extractor, field) for field in _EXTRACTOR_FIELDS}
    # Embeddings of the last layer keep the key that they had before there was a choice.
    settings |= {} if choice.layers is None else {"layers": choice.layers}
    settings |= _settings_beside(far_microphone, level)
    return Embedder(name, _key({"model": model_fingerprint(model), **settings}), embed, {})


def far_canceller(
    far_cancellation: str | None = None, far_microphone: FarMicrophone | None = None
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return the function of waveforms `(B, 2, N)` that takes the far channel out of the close one, or `None`.

    Raises:
        ValueError: both are given, or the method is unknown.
    """
    if far_microphone is not None:
        if far_cancellation is not None:
            raise ValueError(f"far_cancellation must be None beside a far_microphone, got {far_cancellation!r}")
        return far_microphone.cancel
    return None if far_cancellation is None else TwoChannelFrontEnd(far_cancellation=far_cancellation).cancel


def close_channel(
    recording: Recording,
    cancel: Callable[[torch.Tensor], torch.Tensor] | None = None,
    level: str = "as recorded",
) -> torch.Tensor:
    """Return the close channel, or the only one; with `cancel`, of `far_canceller`, without the far channel.

    Args:
        recording: of one or two channels.
        cancel: function from waveforms `(B, 2, N)` to waveforms of which the first channel is taken.
        level: the level that the recording is brought to before that, see [`AnomalyScorer.fit`].

    Returns:
        `(N,)` float32.

    Raises:
        ValueError: the recording, which is named, has another sampling rate or number of channels, NaN or infinite
            samples; or the level is unknown.
    """
    samples = at_level(_channels(recording, needs_two=cancel is not None)[None], check_level(level))  # (1, channels, N)
    return samples[0, 0] if cancel is None else cancel(samples)[0, 0]


def _channels(recording: Recording, needs_two: bool) -> torch.Tensor:
    """Return the channels `(channels, N)` float32 of a recording at 16 kHz; a ValueError names it."""
    samples = torch.as_tensor(recording.samples, dtype=torch.float32)
    if recording.sampling_rate != SAMPLING_RATE:
        raise ValueError(f"{recording.name} must have {SAMPLING_RATE} Hz, got {recording.sampling_rate} Hz")
    if len(samples) > 2 or (needs_two and len(samples) == 1):
        wanted = "two channels, close and far" if needs_two else "one or two channels"
        raise ValueError(f"{recording.name} must have {wanted}, got {len(samples)}")
    if not bool(samples.isfinite().all()):
        raise ValueError(f"{recording.name} must be finite, got NaN or infinite samples")
    return samples


def _settings_beside(far_microphone: FarMicrophone | None, level: str) -> dict[str, Any]:
    """Return the settings that decide embeddings; what was before there was a choice keeps its keys."""
    settings = {} if far_microphone is None else {"far_microphone": far_microphone.fingerprint}
    return settings if check_level(level) == "as recorded" else {**settings, "level": level}


def _with_two_channels(recording: Recording) -> Recording:
    """Give a mono recording, as of the challenges until 2025, a second channel that a single-channel model ignores."""
    if len(recording.samples) != 1:
        return recording
    samples = torch.as_tensor(recording.samples).expand(2, -1)  # (2, N)
    return Recording(samples, recording.sampling_rate, recording.name)


def _as_dict(recording: Recording) -> dict[str, Any]:
    return {"array": recording.samples, "sampling_rate": recording.sampling_rate, "path": recording.name}


def _load(checkpoint: str) -> tuple[Any, TwoChannelFeatureExtractor]:
    source = resolve_checkpoint(checkpoint)
    try:
        with quiet_checkpoints():
            return merge_adapter(load_model(source)), load_extractor(source)
    except (ValueError, OSError, SafetensorError) as error:
        raise OSError(f"checkpoint {source} cannot be loaded: {' '.join(str(error).split())}") from error


def _key(settings: Mapping[str, Any]) -> str:
    content = json.dumps({"version": FORMAT_VERSION, **settings}, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
