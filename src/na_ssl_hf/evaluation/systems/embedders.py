"""Frontends: from sound files to one vector per frequency band, by a checkpoint or by log-mel statistics.

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
from transformers import AutoFeatureExtractor

from ...checkpoints import resolve_checkpoint
from ...checkpoints.loading import load_model
from ...hub.memory_bank import MemoryBank
from ...hub.model_weights import merge_adapter, model_fingerprint
from ...hub.noise_cancellation import cancel_far_microphone
from ...hub.pipeline_anomaly_scoring import AnomalyScorer
from ...hub.recording import Recording, load_recording
from ...quiet_checkpoints import quiet_checkpoints
from .log_mel import log_mel_embeddings
from .published_systems import FRONTENDS

SAMPLING_RATE = 16000
# Of the embeddings: a new number makes cached ones of older versions unknown.
FORMAT_VERSION = 1
# What an extractor does; its file also says where its code is.
_EXTRACTOR_FIELDS = ("frontend", "sampling_rate", "num_mel_bins", "resample", "far_cancellation")


@dataclass(frozen=True)
class Embedder:
    """Something that turns recordings into embeddings.

    Attributes:
        name: for messages and tables.
        key: hash of all that decides the embeddings besides the recordings: weights, extractor, pooling.
        embed: several paths or loaded recordings -> `(B, F, D)` float32 on the CPU; OSError and ValueError name the
            recording at fault.
        bank_settings: of the `MemoryBank` that fits these embeddings.
    """

    name: str
    key: str
    embed: Callable[[Sequence[Path]], torch.Tensor]
    bank_settings: Mapping[str, Any]

    def bank(self, **settings: Any) -> MemoryBank:
        """An unfitted memory for these embeddings."""
        return MemoryBank(**self.bank_settings, **settings)


def log_mel_embedder(far_cancellation: str | None = None, center_level: bool = False) -> Embedder:
    """Per-band log-mel statistics of the close channel, see `log_mel_embeddings`; no network.

    far_cancellation: "least_squares" or "spectral_subtraction" first takes out what the far channel hears.
    """

    def embed(files: Sequence[Path]) -> torch.Tensor:
        waves = (close_channel(load_recording(file, SAMPLING_RATE), far_cancellation) for file in files)
        return log_mel_embeddings(waves, center_level=center_level)

    key = _key({"frontend": "logmel", "far_cancellation": far_cancellation, "center_level": center_level})
    return Embedder("logmel", key, embed, {"distance": "euclidean", "normalize": False})


def checkpoint_embedder(
    name: str,
    checkpoint: str,
    pooling: str = "mean",
    gamma: float = 4.0,
    far_cancellation: str | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
) -> Embedder:
    """A frontend of the published tables from a checkpoint.

    Args:
        name: of `FRONTENDS`, which says what type the model must have; an NA checkpoint also serves its base's names,
            by the base inside it.
        checkpoint: directory or hub id (a fine-tuned one may be an adapter), or the name of one of the package's.
        pooling, gamma: over time, see `pool_time`.
        far_cancellation: as in `TwoChannelFeatureExtractor`, or "none" to switch it off; `None` leaves it as the
            checkpoint says.
        batch_size: recordings of one length that go through the model together.
        device: `None` for the best there is.

    Raises:
        OSError: the checkpoint cannot be loaded.
        ValueError: an unknown name, or a model of another type.
    """
    if name not in FRONTENDS:
        raise ValueError(f"frontend must be one of {', '.join(FRONTENDS)}; got {name!r}")
    model, extractor = _load(checkpoint)
    if model.config.model_type == f"na-{FRONTENDS[name]}":
        model = model.to_base()
    if model.config.model_type != FRONTENDS[name]:
        raise ValueError(
            f"frontend {name!r} must have a model of type {FRONTENDS[name]!r}, "
            f"got {model.config.model_type!r} from {checkpoint}"
        )
    if far_cancellation is not None:
        extractor.far_cancellation = None if far_cancellation == "none" else far_cancellation
    scorer = AnomalyScorer(model=model, feature_extractor=extractor, device=device)
    single_channel = not hasattr(model, "to_base")
    pooled: dict[str, Any] = {"pooling": pooling} | ({"gamma": gamma} if "rdp" in pooling else {})

    def embed(files: Sequence[Path]) -> torch.Tensor:
        recordings = [load_recording(file, SAMPLING_RATE) for file in files]
        if single_channel and extractor.far_cancellation is None:
            recordings = [_with_two_channels(recording) for recording in recordings]
        return scorer.embed([_as_dict(one) for one in recordings], batch_size, **pooled)

    settings = {"pooling": pooling, "gamma": gamma, "dtype": str(model.dtype)}
    settings |= {field: getattr(extractor, field) for field in _EXTRACTOR_FIELDS}
    return Embedder(name, _key({"model": model_fingerprint(model), **settings}), embed, {})


def close_channel(recording: Recording, far_cancellation: str | None = None) -> torch.Tensor:
    """`(N,)` float32: the close channel, or mono; with `far_cancellation` what is left of it without the far one.

    Raises ValueError, naming the recording, for another sampling rate or number of channels, and NaN/inf.
    """
    samples = torch.as_tensor(recording.samples, dtype=torch.float32)
    if recording.sampling_rate != SAMPLING_RATE:
        raise ValueError(f"{recording.name} must have {SAMPLING_RATE} Hz, got {recording.sampling_rate} Hz")
    if len(samples) > 2 or (far_cancellation and len(samples) == 1):
        wanted = "two channels, close and far" if far_cancellation else "one or two channels"
        raise ValueError(f"{recording.name} must have {wanted}, got {len(samples)}")
    if not bool(samples.isfinite().all()):
        raise ValueError(f"{recording.name} must be finite, got NaN or infinite samples")
    if far_cancellation:
        return cancel_far_microphone(samples[:1], samples[1:], far_cancellation)[0]
    return samples[0]


def _with_two_channels(recording: Recording) -> Recording:
    """Mono recordings, as of the challenges until 2025, get a second channel that a single-channel model ignores."""
    if len(recording.samples) != 1:
        return recording
    samples = torch.as_tensor(recording.samples).expand(2, -1)  # (2, N)
    return Recording(samples, recording.sampling_rate, recording.name)


def _as_dict(recording: Recording) -> dict[str, Any]:
    return {"array": recording.samples, "sampling_rate": recording.sampling_rate, "path": recording.name}


def _load(checkpoint: str) -> tuple[Any, Any]:
    source = resolve_checkpoint(checkpoint)
    try:
        with quiet_checkpoints():
            return merge_adapter(load_model(source)), AutoFeatureExtractor.from_pretrained(source)
    except (ValueError, OSError, SafetensorError) as error:
        raise OSError(f"checkpoint {source} cannot be loaded: {' '.join(str(error).split())}") from error


def _key(settings: Mapping[str, Any]) -> str:
    content = json.dumps({"version": FORMAT_VERSION, **settings}, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
