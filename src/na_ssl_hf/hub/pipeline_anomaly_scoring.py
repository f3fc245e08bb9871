"""The pipeline of task "anomaly-scoring": recordings of a machine in, anomaly scores out.

Letters in shape comments: B recordings, C channels, T' patch rows in time, F bands, D hidden size.
"""

import copy
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, Pipeline
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .memory_bank import MEMORY_BANK_FILE, MemoryBank
from .model_weights import has_adapter, merge_adapter, model_fingerprint
from .pooling import pool_time
from .recording import Recording, is_single_recording, load_recording
from .threshold import conformal_p_values, fit_threshold, required_self_scores

logger = logging.get_logger(__name__)

DEFAULT_FALSE_ALARM_RATE = 0.05

# How transformers and peft name weights, in one file or in shards, and what makes a folder an adapter's.
_WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|adapter_config\.json")


class AnomalyScorer(Pipeline):
    """Scores recordings by their distance to normal ones, band by band, in a model's representation.

    A higher score is more anomalous. The model's tokens are pooled over time, compared with a memory of normal
    recordings per frequency band ([`MemoryBank`]), and averaged over bands; the threshold comes from the leave-one-out
    scores of the normal recordings.

    ```python
    scorer = pipeline("anomaly-scoring", model="path/or/hub-id")
    scorer.fit(normal_recordings)
    scorer(recordings)      # [{"score": ..., "is_anomaly": ..., "threshold": ..., "p_value": ..., "band_scores": ...}]
    scorer.save_pretrained("scorer")                          # model, extractor, memory and threshold
    pipeline("anomaly-scoring", model="scorer")(recordings)   # the same scores
    ```

    Attributes:
        memory_bank: the fitted memory, or `None`.

    Raises:
        ValueError: the model is not an encoder of this package, or the feature extractor is missing or another's.
    """

    _load_feature_extractor: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_tokenizer: Any = False
    model: Any
    feature_extractor: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "time_frequency_grid"):
            raise ValueError(
                f"`model` must be a BEATs, EAT, NA-BEATs or NA-EAT model, got {type(self.model).__name__}."
            )
        if self.feature_extractor is None:
            raise ValueError("`feature_extractor` must be a TwoChannelFeatureExtractor, got None.")
        frontend = self.model.config.model_type.removeprefix("na-")
        if self.feature_extractor.frontend != frontend:
            raise ValueError(
                f"`feature_extractor` must be of the model's frontend {frontend!r}, "
                f"got one of {self.feature_extractor.frontend!r}."
            )
        self.memory_bank: MemoryBank | None = None
        # The bank and the model whose weights were last seen to belong together; hashing them takes a while.
        self._verified: tuple[MemoryBank | None, torch.nn.Module | None] = (None, None)
        source = getattr(self.model, "name_or_path", None)
        # A model with an adapter has the name of its base, whose memory is of other embeddings.
        if source and not has_adapter(self.model):
            self.memory_bank = _saved_bank(source, getattr(self.model.config, "_commit_hash", None))

    # Fitting

    def fit(
        self,
        recordings: Any,
        domains: Iterable[str] | None = None,
        *,
        pooling: str = "mean",
        gamma: float = 4.0,
        p: float = 3.0,
        r: float = 0.9,
        memory_bank: MemoryBank | None = None,
        threshold_method: str = "conformal",
        false_alarm_rate: float | None = None,
        batch_size: int | None = None,
        progress: str | None = "fit",
    ) -> "AnomalyScorer":
        """Remember normal recordings and set the threshold.

        Args:
            recordings: normal recordings, in any form that calling the scorer accepts.
            domains: "source" or "target" for each, where known.
            pooling: how tokens are pooled over time, see [`pool_time`], with its `gamma`, `p` and `r`.
            memory_bank: a [`MemoryBank`] whose settings replace the default ones, plain distances; it is not changed
                itself. `MemoryBank(rescaling="variance_min")` is that of the published systems; a few normal recordings
                that lie apart undo it.
            threshold_method, false_alarm_rate: see [`AnomalyScorer.calibrate`].
            batch_size: recordings of equal length that go through the model together.
            progress: label of the progress bar; `None` for no bar.

        Returns:
            the scorer itself.

        Raises:
            ValueError: no recordings, too few for the asked false-alarm rate, or one of them is not acceptable.
        """
        if is_single_recording(recordings):
            raise ValueError("`recordings` must be several normal recordings, got a single one.")
        pooling_settings = {"method": pooling, "gamma": gamma, "p": p, "r": r}
        batches = list(self._embedded(recordings, self._checked(batch_size), pooling_settings, progress))
        if not batches:
            raise ValueError("`recordings` must hold at least one normal recording, got none.")
        # A copy, so that a refit that fails leaves the bank that is in use alone.
        bank = MemoryBank() if memory_bank is None else replace(memory_bank)
        bank.fit(torch.cat(batches), domains=None if domains is None else list(domains))
        bank.metadata = {
            "model": model_fingerprint(self.model),
            "extractor": self._extractor_settings(),
            "pooling": pooling_settings,
            **_normal_scores(bank),
        }
        bank.metadata |= _calibration(bank.metadata["self_scores"], threshold_method, false_alarm_rate)
        self.memory_bank, self._verified = bank, (bank, self.model)
        return self

    def calibrate(self, method: str = "conformal", false_alarm_rate: float | None = None) -> float:
        """Set the threshold from the leave-one-out scores of the fitted recordings.

        Args:
            method: "conformal", "gamma" or "quantile", see [`fit_threshold`].
            false_alarm_rate: asked share of normal recordings above the threshold. `None` means 0.05, or the least
                rate that so few normal recordings allow, with a warning.

        Returns:
            the threshold; a recording is anomalous when its score is greater.

        Raises:
            ValueError: not fitted, an unknown method, or too few recordings for the asked rate.
        """
        bank = self._fitted_bank()
        bank.metadata |= _calibration(bank.metadata["self_scores"], method, false_alarm_rate)
        return self.threshold

    @property
    def threshold(self) -> float:
        """The score above which a recording counts as anomalous."""
        return self._fitted_bank().metadata["threshold"]

    # Scoring

    def __call__(  # type: ignore[override]
        self, recordings: Any, batch_size: int | None = None, progress: str | None = None, **kwargs: Any
    ) -> Any:
        """Score recordings.

        Args:
            recordings: one recording or several. One is a path, the bytes of a sound file, an array `(2, N)` at the
                extractor's rate (channel 0 close, 1 far), a dict `{"array", "sampling_rate"}` or `{"bytes", "path"}`,
                a `datasets` row with `audio`. Several are a list, a `datasets` column or data set, an array
                `(B, 2, N)`, or any iterable; one without a length is scored lazily.
            batch_size: recordings of equal length that go through the model together.
            progress: label of a progress bar; `None` for no bar.

        Returns:
            for each recording a dict with `score` (float; higher is more anomalous), `is_anomaly` (bool),
            `threshold`, `p_value` (conformal: the chance that a normal recording scores as high) and `band_scores`
            (F floats, low to high frequency). One dict, a list of them, or an iterator for a lazy input.

        Raises:
            ValueError: not fitted, fitted with another model, extractor or pooling, or a recording breaks a rule.
            OSError: a file is missing or cannot be decoded.
        """
        if kwargs:
            raise ValueError(
                f"Calling the scorer takes `recordings`, `batch_size` and `progress`, got {sorted(kwargs)}."
            )
        self._fitted_bank()
        batch_size = self._checked(batch_size)
        if is_single_recording(recordings):
            return next(self._results([recordings], 1, None))
        results = self._results(recordings, batch_size, progress)
        return list(results) if isinstance(recordings, Sized) else results

    def embed(
        self,
        recordings: Any,
        batch_size: int | None = None,
        *,
        pooling: str | None = None,
        gamma: float = 4.0,
        p: float = 3.0,
        r: float = 0.9,
    ) -> torch.Tensor:
        """The pooled band vectors `(B, F, D)`, float32 on the CPU, that the memory compares.

        Args:
            recordings, batch_size: as for scoring.
            pooling: how tokens are pooled over time, see [`pool_time`], with its `gamma`, `p` and `r`; `None` for what
                `fit` used.

        Raises:
            ValueError: as for scoring (with `pooling`, an unfitted scorer will do), or there are no recordings.
            OSError: a file is missing or cannot be decoded.
        """
        single = is_single_recording(recordings)
        settings = {"method": pooling, "gamma": gamma, "p": p, "r": r} if pooling else self._pooling_settings()
        batches = list(self._embedded([recordings] if single else recordings, self._checked(batch_size), settings))
        if not batches:
            raise ValueError("`recordings` must hold at least one recording, got none.")
        return torch.cat(batches)  # (B, F, D)

    def anomaly_map(self, recording: Any) -> torch.Tensor:
        """Where in time and frequency one recording deviates: the band scores of its unpooled tokens.

        Returns:
            `(T', F)` float32; a row is one patch (0.16 s), a column one band, higher is more anomalous.

        Raises:
            ValueError: as for scoring, or not a single recording.
            OSError: a file is missing or cannot be decoded.
        """
        bank = self._fitted_bank()
        grid = self._grid([load_recording(recording, self.feature_extractor.sampling_rate)])[0]  # (T', F, D)
        return torch.as_tensor(bank.band_scores(grid))

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, extractor, code, and the memory with its threshold; all files are written before any is replaced.

        An adapter is merged into what is saved, which so needs neither peft nor the base.

        Args:
            save_directory: created if missing; files of other names in it are left alone.
            **kwargs: for the model's `save_pretrained`; `push_to_hub=True` uploads with the memory.

        Raises:
            OSError: `save_directory` is a file or cannot be written.
        """
        destination = Path(save_directory)
        if destination.is_file():
            raise FileExistsError(f"`save_directory` must be a directory, got the file {destination}.")
        push_to_hub = kwargs.pop("push_to_hub", False)
        hub_names = ("repo_id", "commit_message", "private", "token", "revision")
        hub_kwargs = {name: kwargs.pop(name) for name in hub_names if name in kwargs}
        destination.parent.mkdir(parents=True, exist_ok=True)
        # The renames below must stay on one file system, and a destination that exists may be a mount point or a link.
        beside = destination if destination.is_dir() else destination.parent
        staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=beside))
        own = self.model, self.memory_bank
        try:
            self.model, self.memory_bank = _without_adapter(*own)
            super().save_pretrained(staging, **kwargs)
            if self.memory_bank is not None:
                self.memory_bank.save_pretrained(staging)
            destination.mkdir(exist_ok=True)
            written = sorted(file.name for file in staging.iterdir())
            for name in written:
                os.replace(staging / name, destination / name)
            # Weights or a memory of an earlier save would be loaded in place of, or along with, the new ones.
            for file in list(destination.iterdir()):
                if file.name not in written and (file.name == MEMORY_BANK_FILE or _WEIGHTS.fullmatch(file.name)):
                    file.unlink()
        finally:
            self.model, self.memory_bank = own
            shutil.rmtree(staging, ignore_errors=True)
        if push_to_hub:
            self.push_to_hub(hub_kwargs.pop("repo_id", destination.name), **hub_kwargs)

    # The steps

    def _results(self, recordings: Iterable[Any], batch_size: int, progress: str | None) -> Iterator[dict[str, Any]]:
        bank = self._fitted_bank()
        threshold = self.threshold
        self_scores = self._self_scores()
        for embeddings in self._embedded(recordings, batch_size, self._pooling_settings(), progress):
            band_scores = torch.as_tensor(bank.band_scores(embeddings))  # (B, F)
            scores = torch.as_tensor(bank.aggregate_bands(band_scores))  # (B,)
            p_values = conformal_p_values(self_scores, scores)
            for score, p_value, bands in zip(scores.tolist(), p_values.tolist(), band_scores.tolist(), strict=True):
                yield {
                    "score": score,
                    "is_anomaly": score > threshold,
                    "threshold": threshold,
                    "p_value": p_value,
                    "band_scores": bands,
                }

    def _embedded(
        self,
        recordings: Iterable[Any],
        batch_size: int,
        pooling_settings: dict[str, Any],
        progress: str | None = None,
    ) -> Iterator[torch.Tensor]:
        """Pooled vectors `(n, F, D)` of up to `batch_size` recordings at a time, in order."""
        total = len(recordings) if isinstance(recordings, Sized) else None
        stream = iter(recordings)
        with logging.tqdm(total=total, desc=progress, unit="clip", disable=progress is None) as bar:
            while batch := list(islice(stream, batch_size)):
                loaded = [load_recording(source, self.feature_extractor.sampling_rate) for source in batch]
                pooled: dict[int, torch.Tensor] = {}
                for indices in _equal_lengths(loaded):
                    grid = self._grid([loaded[index] for index in indices])  # (n, T', F, D)
                    pooled.update(zip(indices, pool_time(grid, **pooling_settings), strict=True))
                bar.update(len(batch))
                yield torch.stack([pooled[i] for i in range(len(batch))])  # (n, F, D)

    def _grid(self, recordings: list[Recording]) -> torch.Tensor:
        """Tokens `(B, T', F, D)`, float32 on the CPU, of recordings that have one length and rate."""
        try:
            features = self._features(recordings)
        except ValueError:
            # Only the extractor knows the rules, and only a recording's name tells a user which file breaks one.
            for recording in recordings:
                try:
                    self._features([recording])
                except ValueError as error:
                    message = str(error).replace("Recording 0 has", "It has")
                    raise ValueError(f"{recording.name}: {message}") from error
            raise
        return self.forward(features)["grid"]

    def _features(self, recordings: list[Recording]) -> dict[str, Any]:
        samples = [recording.samples for recording in recordings]
        return self.preprocess(samples, sampling_rate=recordings[0].sampling_rate)

    def preprocess(  # type: ignore[override]
        self, samples: Any, sampling_rate: int | None = None
    ) -> dict[str, Any]:
        features = self.feature_extractor(
            samples, sampling_rate=sampling_rate, return_tensors="pt", device=str(self.device)
        )
        # Equal lengths have no padding, so there is no mask to pass.
        return {"input_values": features["input_values"]}

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        # In a training loop the model may be in train mode, where dropout makes scores random.
        if self.model.training:
            self.model.eval()
        outputs = self.model(**input_tensors)
        return {"grid": self.model.time_frequency_grid(outputs.last_hidden_state).float()}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
        return model_outputs["grid"]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise ValueError(f"The anomaly-scoring pipeline takes no parameters {sorted(kwargs)}.")
        return {}, {}, {}

    def _checked(self, batch_size: int | None) -> int:
        if batch_size is None:
            batch_size = 1 if self._batch_size is None else self._batch_size
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}.")
        return batch_size

    # What a memory belongs to

    def _fitted_bank(self) -> MemoryBank:
        bank = self.memory_bank
        if bank is None:
            raise ValueError("This scorer is not fitted yet: call `fit` with normal recordings first.")
        current: dict[str, Any] = {"extractor": self._extractor_settings()}
        if bank is not self._verified[0] or self.model is not self._verified[1]:
            current["model"] = model_fingerprint(self.model)
        for part, expected in current.items():
            if bank.metadata.get(part) != expected:
                raise ValueError(
                    f"The memory bank was fitted with another {part}: it holds {bank.metadata.get(part)!r}, this "
                    f"pipeline has {expected!r}. Call `fit` again."
                )
        self._verified = (bank, self.model)
        if bank.metadata.get("bank_version") != bank.version_:
            # `partial_fit` and `forget` move the scores of the normal recordings, and with them the threshold.
            method, asked_rate = bank.metadata["threshold_method"], bank.metadata["asked_false_alarm_rate"]
            moved = _normal_scores(bank)
            bank.metadata |= moved | _calibration(moved["self_scores"], method, asked_rate)
        return bank

    def _extractor_settings(self) -> dict[str, Any]:
        names = ("frontend", "sampling_rate", "num_mel_bins", "far_cancellation")
        return {name: getattr(self.feature_extractor, name) for name in names}

    def _pooling_settings(self) -> dict[str, Any]:
        return self._fitted_bank().metadata["pooling"]

    def _self_scores(self) -> torch.Tensor:
        return torch.tensor(self._fitted_bank().metadata["self_scores"])  # (R,)


def _normal_scores(bank: MemoryBank) -> dict[str, Any]:
    """The leave-one-out scores in the bank's metadata: kept, for they cost as much as all clips against all clips."""
    return {"self_scores": bank.self_scores().tolist(), "bank_version": bank.version_}


def _calibration(self_scores: list[float], method: str, asked_rate: float | None) -> dict[str, Any]:
    """What the bank's metadata says of its threshold, see `AnomalyScorer.calibrate`."""
    rate = DEFAULT_FALSE_ALARM_RATE if asked_rate is None else asked_rate
    needed = required_self_scores(rate)
    if asked_rate is None and method == "conformal" and len(self_scores) < needed:
        rate = 1 / (1 + len(self_scores))
        logger.warning(
            f"{len(self_scores)} normal recordings allow a false-alarm rate of {rate:.3f} at the least; {needed} are "
            f"needed for {DEFAULT_FALSE_ALARM_RATE}."
        )
    return {
        "threshold": fit_threshold(torch.tensor(self_scores), method=method, false_alarm_rate=rate),
        "threshold_method": method,
        "false_alarm_rate": rate,
        "asked_false_alarm_rate": asked_rate,
    }


def _without_adapter(model: Any, bank: MemoryBank | None) -> tuple[Any, MemoryBank | None]:
    """Copies in which an adapter is merged and the memory belongs to the merged weights; others stay as they are."""
    if not has_adapter(model):
        return model, bank
    merged = merge_adapter(copy.deepcopy(model))
    if bank is not None and bank.metadata.get("model") == model_fingerprint(model):
        bank = copy.copy(bank)
        bank.metadata = bank.metadata | {"model": model_fingerprint(merged)}
    return merged, bank


def _saved_bank(source: str, revision: str | None) -> MemoryBank | None:
    """The memory that was saved with a checkpoint, or `None` for one that was never fitted."""
    try:
        path = cached_file(source, MEMORY_BANK_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        # The model is loaded; that its source is gone or out of reach by now must not keep it from being fitted.
        logger.warning(f"No memory of normal recordings could be looked up at {source}: {error}")
        return None
    return None if path is None else MemoryBank.from_pretrained(Path(path).parent)


def _equal_lengths(recordings: list[Recording]) -> Iterator[list[int]]:
    """Indices of recordings that can share a batch: padding would change scores, so shapes and rates must agree."""
    groups: dict[tuple, list[int]] = {}
    for index, recording in enumerate(recordings):
        key = (*recording.samples.shape, recording.sampling_rate, str(recording.samples.dtype))
        groups.setdefault(key, []).append(index)
    yield from groups.values()


# A pipeline that was itself loaded from a checkpoint's code is not registered, yet must save its code again.
AnomalyScorer._registered_impl = {  # type: ignore[attr-defined]
    "anomaly-scoring": {"impl": AnomalyScorer, "pt": (AutoModel,), "type": "audio", "default": {}}
}
