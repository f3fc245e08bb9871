"""The autoencoder baselines of DCASE Task 2, `mse` and `mahalanobis`, are trained for one machine and score it.

Letters: N samples, T frames, M mel bins, P frames in a vector, V vectors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from ...hub.configuration_autoencoder import AutoencoderConfig
from ...hub.fbank import SAMPLING_RATE
from ...hub.modeling_autoencoder import HOP_LENGTH, SCORE_METHODS, AutoencoderModel, log_mel_decibels, stack_frames
from ...hub.recording import Recording, RecordingSource, is_single_recording, load_recording
from ...hub.threshold import fit_threshold
from ...one_thread import one_thread

logger = logging.get_logger(__name__)

_DOMAINS = ("source", "target")
# Two training vectors for the batch norm, and two batches for a distribution of their losses.
_MIN_VECTORS = 4
# An eigenvalue below this share of the largest one is rounding of the float32 covariance.
_SMALLEST_EIGENVALUE = 1e-6


@dataclass
class AutoencoderBaseline:
    """Both baseline systems are one autoencoder of log-mel vectors; a higher reconstruction error is more anomalous.

    This follows Harada et al., "First-shot anomaly sound detection for machine condition monitoring: a domain
    generalization baseline", EUSIPCO 2023, and scores as the official code does. Training minimises the MSE with Adam
    over shuffled vectors of all clips; a tenth of the vectors is held out. Then come the covariances of the residuals,
    and for each score the threshold: the 0.9 quantile of a gamma distribution fitted to the scores of batches. A batch
    mixes vectors of many clips, so single clips vary more: expect false alarms far above one in ten, nearly always with
    Mahalanobis.

    Args:
        num_epochs, batch_size, learning_rate: settings of the training; batches of a single vector are skipped.
        validation_split: share of the vectors held out, in (0, 1).
        two_channel: whether recordings are `(2, N)`, of which channel 0, the close one, is used; else they are mono.
        seed: seed of weights, split and shuffling. On one CPU configuration equal seeds give equal scores.
        device: where to train and score.

    Attributes:
        model_: the trained [`AutoencoderModel`], in evaluation mode.

    Raises:
        ValueError: a parameter is out of its range.
    """

    num_epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    validation_split: float = 0.1
    two_channel: bool = True
    seed: int = 0
    device: str | torch.device = "cpu"
    model_: AutoencoderModel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("num_epochs", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not 0.0 < self.validation_split < 1.0:
            raise ValueError(f"validation_split must be in (0, 1), got {self.validation_split}.")

    @one_thread()
    def fit(
        self, recordings: Iterable[RecordingSource], domains: Sequence[str] | None = None, progress: str | None = "fit"
    ) -> AutoencoderBaseline:
        """Train on normal recordings of one machine; an earlier model is replaced only when the training succeeds.

        Args:
            recordings: paths, `(2, N)` arrays or whatever [`load_recording`] takes; 16 kHz, at least 2048 samples.
            domains: "source" or "target" for each; without it, or without targets, both covariances are the same.
            progress: label of the progress bars; `None` for no bar.

        Raises:
            OSError: a file is missing or cannot be decoded.
            ValueError: there are no recordings, or one is too short, mono, not finite or of another sampling rate;
                `domains` are wrong or hold no source clip; there are fewer than 4 vectors in all; or no gamma
                distribution fits the scores of batches. A domain of fewer frames than mel bins (128) only gives a
                warning and no `"mahalanobis"` score.
        """
        sources = _several(recordings)
        is_target = _is_target(domains, len(sources))
        clips = list(self._log_mels(sources, progress))
        config = AutoencoderConfig(two_channel=self.two_channel)
        training = _VectorDataset.join(clips, is_target, config.num_frames, self.device)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(training), generator=generator)
        num_validation = math.ceil(self.validation_split * len(training))
        validation, training = training.subset(order[:num_validation]), training.subset(order[num_validation:])
        if len(training) < 2 or len(training) + len(validation) < _MIN_VECTORS:
            raise ValueError(
                f"recordings must give at least {_MIN_VECTORS} vectors, 2 of them outside of validation_split="
                f"{self.validation_split}; got {len(training) + len(validation)} vectors from {len(clips)} clips."
            )

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            model = AutoencoderModel(config).to(self.device)  # type: ignore[arg-type]
        losses = self._train(model, training, generator, progress)
        training = training.subset(torch.randperm(len(training), generator=generator))
        self._set_covariances(model, training)
        losses += [model.anomaly_score(vectors) for vectors, _ in validation.batches(self.batch_size)]
        model.config.mse_threshold = _threshold("mse", losses)
        if model.cov_source.any() and model.cov_target.any():
            batches = (vectors for part in (training, validation) for vectors, _ in part.batches(self.batch_size))
            distances = [model.anomaly_score(vectors, "mahalanobis") for vectors in batches]
            model.config.mahalanobis_threshold = _threshold("mahalanobis", distances)
        self.model_ = model
        return self

    @one_thread()
    def score(
        self, recordings: Iterable[RecordingSource], method: str = "mse", progress: str | None = None
    ) -> torch.Tensor:
        """Score N recordings, higher = more anomalous: `(N,)` float64, see [`AutoencoderModel.anomaly_score`].

        Args:
            recordings: in any form that `fit` accepts.
            method: `"mse"` or `"mahalanobis"`.
            progress: label of the progress bar; `None` for no bar.

        Raises:
            OSError, ValueError: as in `fit`, nothing is fitted, or there is no covariance for `"mahalanobis"`.
        """
        model = self._fitted()
        if model.config.two_channel != self.two_channel:
            raise ValueError(f"two_channel must be as in training, {model.config.two_channel}, got {self.two_channel}.")
        num_frames = model.config.num_frames
        scores = []
        for log_mel in self._log_mels(_several(recordings), progress):
            scores.append(model.anomaly_score(stack_frames(log_mel, num_frames).to(self.device), method))
        return torch.tensor(scores, dtype=torch.float64)

    def threshold(self, method: str = "mse") -> float:
        """Return the threshold above which a score is an alarm: `score(...) > threshold(...)`, strictly.

        Raises:
            ValueError: the method is unknown, nothing is fitted, or there is no covariance for `"mahalanobis"`.
        """
        if method not in SCORE_METHODS:
            raise ValueError(f"method must be one of {SCORE_METHODS}, got {method!r}.")
        threshold = getattr(self._fitted().config, f"{method}_threshold")
        if threshold is None:
            raise ValueError(f"There is no threshold for method={method!r}: the model lacks a covariance. Use 'mse'.")
        return float(threshold)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the model with covariances and thresholds, which `AutoModel.from_pretrained` reads as well.

        Raises:
            ValueError: nothing is fitted.
        """
        self._fitted().save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> AutoencoderBaseline:
        """Read what `save_pretrained` wrote, which does not contain the settings of the training.

        Raises:
            OSError: there is no model at `path`.
            ValueError: the model is of another type.
        """
        model_type = AutoencoderConfig.get_config_dict(path)[0].get("model_type")
        if model_type != AutoencoderConfig.model_type:
            raise ValueError(f"{path} must hold a {AutoencoderConfig.model_type!r} model, got {model_type!r}.")
        model = AutoencoderModel.from_pretrained(path).to(device)  # type: ignore[arg-type]
        baseline = cls(two_channel=model.config.two_channel, device=device)
        baseline.model_ = model
        return baseline

    def _fitted(self) -> AutoencoderModel:
        if not hasattr(self, "model_"):
            raise ValueError("This AutoencoderBaseline is not fitted: call fit or from_pretrained first.")
        return self.model_

    def _log_mels(self, sources: list[RecordingSource], progress: str | None) -> Iterator[torch.Tensor]:
        """Compute log-mel spectrograms `(T, M)` of the close channels on the CPU, with T >= P."""
        for source in logging.tqdm(sources, desc=progress, unit="clip", disable=progress is None):
            yield log_mel_decibels(_close_channel(load_recording(source, SAMPLING_RATE), self.two_channel))

    def _train(
        self, model: AutoencoderModel, training: _VectorDataset, generator: torch.Generator, progress: str | None
    ) -> list[float]:
        """Train in place, and return the losses of the batches of the last epoch."""
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate, fused=True)
        model.train()
        with logging.tqdm(total=self.num_epochs, desc=progress, unit="epoch", disable=progress is None) as bar:
            for _ in range(self.num_epochs):
                losses = []
                shuffled = training.subset(torch.randperm(len(training), generator=generator))
                for vectors, _ in shuffled.batches(self.batch_size, smallest=2):
                    loss = F.mse_loss(model(vectors).reconstruction, vectors)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach())
                last_losses = torch.stack(losses).tolist()
                bar.set_postfix(mse=f"{sum(last_losses) / len(last_losses):.2f}")
                bar.update()
        model.eval()
        return last_losses

    @torch.no_grad()
    def _set_covariances(self, model: AutoencoderModel, training: _VectorDataset) -> None:
        residuals = (
            ((vectors - model(vectors).reconstruction).cpu(), is_target)
            for vectors, is_target in training.batches(self.batch_size, smallest=2)
        )
        covariances = residual_covariances(residuals, model.config.num_mel_bins)
        for domain, covariance in zip(_DOMAINS, covariances, strict=True):
            eigenvalues = torch.linalg.eigvalsh(covariance)
            if eigenvalues[0] > _SMALLEST_EIGENVALUE * eigenvalues[-1]:
                getattr(model, f"cov_{domain}").copy_(covariance)
            else:
                logger.warning(
                    f"The {domain} clips hold too few frames, or too equal ones, for a covariance of "
                    f"{model.config.num_mel_bins} mel bins: this baseline has an 'mse' score, but no 'mahalanobis'."
                )


def residual_covariances(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], num_mel_bins: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute covariances `(M, M)` float64 of the residuals of source and target vectors, as the official code does.

    In every batch the frames of a domain are centred by *that batch's* mean; the outer products of all frames are
    divided by the number of *vectors* - 1, which makes it about P times a usual covariance. Batches of one vector are
    skipped. Without any target vector both are those of the source.

    Args:
        batches: residuals in dB `(V, P * M)`, and whether they are of the target domain, `(V,)` bool.
        num_mel_bins: number M of mel bins.
    """
    products = torch.zeros(2, num_mel_bins, num_mel_bins, dtype=torch.float64)
    counts = [0, 0]
    for residuals, is_target in batches:
        if len(residuals) == 1:
            continue
        for domain, rows in enumerate((residuals[~is_target], residuals[is_target])):
            if len(rows):
                frames = rows.double().reshape(-1, num_mel_bins)  # (V * P, M)
                frames = frames - frames.mean(0)
                products[domain] += frames.T @ frames
                counts[domain] += len(rows)
    source, target = (product / max(1, count - 1) for product, count in zip(products, counts, strict=True))
    return source, target if counts[1] else source.clone()


@dataclass
class _VectorDataset:
    """Vectors that are stacked only when a batch needs them, since each frame would otherwise be stored P times.

    Attributes:
        log_mel: `(all T, M)`, the frames of all clips.
        starts: `(V,)` int64, the first frame of each vector.
        is_target: `(V,)` bool on the CPU.
        num_frames: number P of frames in a vector.
    """

    log_mel: torch.Tensor
    starts: torch.Tensor
    is_target: torch.Tensor
    num_frames: int

    @classmethod
    def join(
        cls, clips: list[torch.Tensor], is_target: list[bool], num_frames: int, device: str | torch.device
    ) -> _VectorDataset:
        counts = torch.tensor([len(clip) - num_frames + 1 for clip in clips])
        # The last P - 1 frames of a clip start no vector, so that none crosses into the next clip.
        offset = (num_frames - 1) * torch.arange(len(clips))
        starts = torch.arange(int(counts.sum())) + offset.repeat_interleave(counts)
        targets = torch.tensor(is_target).repeat_interleave(counts)
        return cls(torch.cat(clips).to(device), starts, targets, num_frames)

    def __len__(self) -> int:
        return len(self.starts)

    def subset(self, indices: torch.Tensor) -> _VectorDataset:
        return _VectorDataset(self.log_mel, self.starts[indices], self.is_target[indices], self.num_frames)

    def batches(self, batch_size: int, smallest: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield `(vectors (V, P * M), is_target (V,))` in order, without batches of fewer than `smallest` vectors."""
        for starts, is_target in zip(self.starts.split(batch_size), self.is_target.split(batch_size), strict=True):
            if len(starts) >= smallest:
                frames = starts[:, None] + torch.arange(self.num_frames)  # (V, P)
                yield self.log_mel[frames.to(self.log_mel.device)].flatten(1), is_target


def _several(recordings: Iterable[RecordingSource]) -> list[RecordingSource]:
    if is_single_recording(recordings):
        raise ValueError("recordings must be a list of recordings, got a single one.")
    sources = list(recordings)
    if not sources:
        raise ValueError("recordings must hold at least one recording, got none.")
    return sources


def _close_channel(recording: Recording, two_channel: bool) -> torch.Tensor:
    """Return the close channel, `(N,)` float64 with full scale 1.0; a ValueError names the recording and the rule."""
    name, samples = recording.name, recording.samples
    samples = samples.detach().cpu().numpy() if isinstance(samples, torch.Tensor) else np.asarray(samples)
    if recording.sampling_rate != SAMPLING_RATE:
        raise ValueError(f"{name}: the sampling rate must be {SAMPLING_RATE} Hz, got {recording.sampling_rate}.")
    if not two_channel and samples.ndim == 1:
        samples = samples[None]  # (1, N)
    expected = 2 if two_channel else 1
    if samples.ndim != 2 or len(samples) != expected:
        rule = "two channels, (2, N), unless two_channel=False" if two_channel else "one channel, as two_channel=False"
        raise ValueError(f"{name}: a recording must have {rule}; got the shape {samples.shape}.")
    close = samples[0]
    if close.dtype.kind == "i" and close.dtype.itemsize in (2, 4):
        close = close / 2.0 ** (8 * close.dtype.itemsize - 1)
    if close.dtype.kind != "f":
        raise ValueError(f"{name}: samples must be floating point, int16 or int32, got {close.dtype}.")
    if not np.isfinite(close).all():
        raise ValueError(f"{name}: samples must be finite, got {int((~np.isfinite(close)).sum())} NaN or infinite.")
    shortest = (AutoencoderConfig().num_frames - 1) * HOP_LENGTH
    if len(close) < shortest:
        raise ValueError(f"{name}: a recording must have at least {shortest} samples, got {len(close)}.")
    return torch.from_numpy(close.astype(np.float64))


def _is_target(domains: Sequence[str] | None, num_clips: int) -> list[bool]:
    if domains is None:
        return [False] * num_clips
    if isinstance(domains, str) or len(domains) != num_clips:
        got = repr(domains) if isinstance(domains, str) else f"{len(domains)} entries"
        raise ValueError(f"domains must have one entry for each of the {num_clips} recordings, got {got}.")
    for clip, domain in enumerate(domains):
        if domain not in _DOMAINS:
            raise ValueError(f"domains must hold 'source' or 'target', got {domain!r} for recording {clip}.")
    if "source" not in domains:
        raise ValueError(f"domains must hold at least one 'source', got 'target' for all {num_clips} recordings.")
    return [domain == "target" for domain in domains]


def _threshold(method: str, scores: list[float]) -> float:
    try:
        return fit_threshold(np.array(scores), "gamma")
    except ValueError as error:
        raise ValueError(f"No {method} threshold from the scores of {len(scores)} batches: {error}") from error
