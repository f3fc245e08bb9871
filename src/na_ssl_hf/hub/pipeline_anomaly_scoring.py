"""The pipeline of task "anomaly-scoring": recordings of a machine in, anomaly scores out.

Letters in shape comments: B recordings, N samples, T' patch rows in time, F bands, D hidden size.
"""

import copy
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import torch
from transformers import AutoModel, Pipeline
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .far_microphone import CALIBRATED_METHODS, FAR_MICROPHONE_FILE, FarMicrophone
from .feature_extraction_two_channel import OddityReport
from .front_end import TwoChannelFrontEnd
from .input_level import CHANNELS, LevelRange, LevelReport, at_level, check_level
from .layer_choice import NA_SHARES, LayerChoice, check_has_share, check_na_share, joined
from .memory_bank import MEMORY_BANK_FILE, MemoryBank
from .model_weights import has_adapter, merge_adapter, model_fingerprint, same_weights
from .noise_cancellation import METHODS
from .normal_recordings import NormalRecordings, with_pseudo_faults
from .pooling import LogMelStatistics, Pooling, log_mel_beside, num_log_mel_statistics
from .recorded_bands import check_rate, num_recorded_bands, recorded_rate, tell_left_out_bands
from .recording import (
    WHOLE,
    Piece,
    RecordingSource,
    RecordingSources,
    Unreadable,
    Windows,
    each_recording,
    is_single_recording,
    open_recording,
    recording_name,
)
from .streams import check_second_stream, check_streams, side_by_side, stream_vectors
from .threshold import Calibration, calibrated_threshold, conformal_p_values
from .whole_files import whole_folder

logger = logging.get_logger(__name__)

# A longer recording is scored in windows, because the memory that attention needs grows with the square of the length.
LONGEST_WHOLE_SEC = 60.0
# The arguments of `fit` that a checkpoint's configuration may advise, as a dict `scoring`.
ADVISED = ("far_cancellation", "na_share", "log_mel")
# How transformers and peft name weights, in one file or in shards, and what makes a folder an adapter's.
_WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|adapter_config\.json")


class Result(TypedDict):
    """What the scorer says of one recording.

    Attributes:
        score: the anomaly score; higher is more anomalous.
        is_anomaly: whether the score is above the threshold.
        threshold: the threshold.
        p_value: the chance that a normal recording scores as high (conformal).
        band_scores: the scores of the F frequency bands, from low to high.
    """

    score: float
    is_anomaly: bool
    threshold: float
    p_value: float
    band_scores: list[float]


class FailedResult(TypedDict):
    """What the scorer says of a recording that it could not score, where it is asked to go on.

    Attributes:
        error: one line, which names the recording.
    """

    error: str


class WindowScore(TypedDict):
    """The score of one window of a long recording; `start` and `end` in s."""

    start: float
    end: float
    score: float


class LongResult(Result):
    """What the scorer says of a recording that it cut into windows; `score` and `band_scores` are aggregates.

    Attributes:
        windows: the windows in their order.
        worst_window: the one with the highest score.
    """

    windows: list[WindowScore]
    worst_window: WindowScore


@dataclass(frozen=True)
class Heard:
    """What a scorer takes of recordings.

    Attributes:
        pooling: how tokens are pooled over time; `None` for all tokens.
        layers: the layers that they come from.
        rate: the sampling rate that says which bands the recordings hold, see `recorded_rate`; `None` where the first
            recording says it.
        level: the level at which the model hears the recordings, see [`AnomalyScorer.fit`].
        streams: "cancelled", "raw" or "both", see [`AnomalyScorer.fit`].
        na_share: the share of a noise-aware model, see [`AnomalyScorer.fit`]; `None` for the model as it is.
        log_mel: how log-mel statistics are joined to the vectors; True where that is still to be learned, so that they
            stand beside the vectors as they are.

    Raises:
        ValueError: the level, the streams, the share or `log_mel` is unknown.
    """

    pooling: Any = field(default_factory=Pooling)
    layers: LayerChoice = field(default_factory=LayerChoice)
    rate: int | None = None
    level: str = "as recorded"
    streams: str = "cancelled"
    na_share: float | str | None = None
    log_mel: LogMelStatistics | bool = False

    def __post_init__(self) -> None:
        check_level(self.level)
        check_streams(self.streams)
        if not isinstance(self.log_mel, (bool, LogMelStatistics)):
            raise ValueError(f"`log_mel` must be True or False, got {self.log_mel!r:.80}.")
        object.__setattr__(self, "na_share", check_na_share(self.na_share))

    @classmethod
    def as_fitted(cls, calibration: Calibration) -> "Heard":
        """What a fitted scorer took of its normal recordings."""
        return cls(
            Pooling(**calibration.pooling),
            LayerChoice(calibration.layers),
            calibration.recording_rate,
            calibration.level,
            calibration.streams,
            calibration.na_share,
            calibration.log_mel or False,
        )


class AnomalyScorer(Pipeline):
    """Scores recordings by their distance to normal ones, band by band, in a model's representation.

    A higher score is more anomalous. The model's tokens are pooled over time, compared with a memory of normal
    recordings per frequency band ([`MemoryBank`]), and averaged over bands; the threshold comes from the leave-one-out
    scores of the normal recordings. A checkpoint may advise how it is fitted best: in its configuration, a dict
    `scoring` with `far_cancellation`, `na_share` or `log_mel` holds where [`AnomalyScorer.fit`] is given `None`.

    ```python
    scorer = pipeline("anomaly-scoring", model="path/or/hub-id")
    scorer.fit(normal_recordings)
    scorer(recordings)      # [{"score": ..., "is_anomaly": ..., "threshold": ..., "p_value": ..., "band_scores": ...}]
    scorer.save_pretrained("scorer")                          # model, extractor, memory and threshold
    pipeline("anomaly-scoring", model="scorer")(recordings)   # the same scores
    ```

    Attributes:
        memory_bank: the fitted memory with its calibration, or `None`.
        far_microphone: the calibrated [`FarMicrophone`], where `fit` was asked for one.
        left_out: the recordings that the last `fit` did not count (copies and unreadable ones), with the reason.

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
            raise ValueError(f"`model` must be an encoder of this package, got {type(self.model).__name__}.")
        if self.feature_extractor is None:
            raise ValueError("`feature_extractor` must be a TwoChannelFeatureExtractor, got None.")
        wanted = TwoChannelFrontEnd.of(self.model.config)
        for name in ("frontend", "num_mel_bins", "hop_length"):
            if getattr(self.feature_extractor, name) != getattr(wanted, name):
                raise ValueError(
                    f"`feature_extractor` must be of the model's {name} {getattr(wanted, name)!r}, "
                    f"got one of {getattr(self.feature_extractor, name)!r}."
                )
        self.memory_bank: MemoryBank | None = None
        self.far_microphone: FarMicrophone | None = None
        self.left_out: list[tuple[str, str]] = []
        # The bank and the model whose weights were last seen to belong together; hashing them takes a while.
        self._verified: tuple[MemoryBank | None, torch.nn.Module | None] = (None, None)
        # The model whose fingerprint `sharing_model` knows.
        self._hashed: tuple[torch.nn.Module, str] | None = None
        # A model with an adapter has the name of its base, whose memory is of other embeddings.
        if not has_adapter(self.model):
            self.memory_bank = _saved(self.model, MEMORY_BANK_FILE, MemoryBank.from_file)
            calibration = None if self.memory_bank is None else self.memory_bank.calibration
            # Without its memory a far microphone is of no use, and most memories have none: each look-up costs time.
            if calibration is not None and "far_microphone" in calibration.extractor:
                self.far_microphone = _saved(self.model, FAR_MICROPHONE_FILE, FarMicrophone.from_file)
                self._check_far_microphone()

    # Fitting

    def fit(
        self,
        recordings: RecordingSources,
        domains: Iterable[str] | None = None,
        *,
        groups: Iterable[Hashable] | None = None,
        layer: int | None = None,
        layers: Sequence[int] | None = None,
        level: str = "as recorded",
        far_cancellation: str | None = None,
        machine_off: RecordingSources | None = None,
        far_future: float | None = None,
        streams: str = "cancelled",
        na_share: float | str | None = None,
        log_mel: bool | None = None,
        pooling: str = "mean",
        gamma: float | None = None,
        p: float | None = None,
        r: float | None = None,
        window: float | None = None,
        hop: float | None = None,
        aggregate: str | float | None = None,
        memory_bank: MemoryBank | None = None,
        threshold_method: str = "conformal",
        false_alarm_rate: float | None = None,
        skip_unreadable: bool = False,
        batch_size: int | None = None,
        progress: str | None = "fit",
    ) -> "AnomalyScorer":
        """Remember normal recordings and set the threshold.

        The stated false-alarm rate holds for new recordings that are exchangeable with the normal ones: same machine,
        place, microphones and conditions; with `groups`, conditions that were never heard. Copies count once.

        Args:
            recordings, domains: normal ones in any form that a call accepts; "source" or "target" for each if known.
            groups: a label for each, say its room, day or machine; its threshold score has a memory without its group.
            layer, layers: the layer whose tokens are compared, 0 for the input of the first one, or several, whose
                pooled vectors are joined, see [`LayerChoice`]; `None` for the last one, of EfficientAT for layer 7.
            level: "as recorded", or "normalised": the close channel of every recording, or window, is brought to -26 dB
                of full scale. Neither gains of the microphones nor the loudness of the machine have an influence then.
            pooling, gamma, p, r: pooling of tokens over time, and its parameter where it has one, see [`pool_time`].
            far_cancellation: "installation", "filter" or "auto" of a [`FarMicrophone`], calibrated on `recordings`;
                "least_squares", "spectral_subtraction" or "none"; `None` for what the feature extractor says.
            machine_off, far_future: recordings of the noise alone for that, and by how many s it hears ahead (0.128).
            streams: the close channel that is heard: "cancelled", "raw" or "both" joined, see [`stream_vectors`].
            na_share: the share of a noise-aware model in the compared tokens, 0 to 1, beside its base; "auto" for 0,
                0.5 or 1 by the normal recordings, see [`NormalRecordings.choose_share`]; `None` for the model as it is.
            log_mel: whether log-mel statistics stand beside the tokens, see [`LogMelStatistics`]; `None` for no.
            window, hop, aggregate: how recordings are cut, see [`Windows`]; seconds. With `None`, recordings above 60 s
                are cut into windows of 10 s. For the threshold, a memory without the recording scores it alike.
            memory_bank: a [`MemoryBank`] whose settings replace the default ones, plain distances; it is not changed.
            threshold_method, false_alarm_rate: see [`AnomalyScorer.calibrate`].
            skip_unreadable: leave out, with a warning, recordings that cannot be read or break a rule.
            batch_size, progress: recordings of equal length that are embedded together, and the progress bar's label.

        Returns:
            the scorer itself.

        Raises:
            ValueError: too few recordings, one that is not acceptable, or a setting that does not fit the others.
            OSError: a file is missing or cannot be decoded.
        """
        if is_single_recording(recordings):
            raise ValueError("`recordings` must be several normal recordings, got a single one.")
        pooled, chosen = Pooling().changed(pooling, gamma=gamma, p=p, r=r), LayerChoice.of(layer, layers)
        asked, far_cancellation = far_cancellation is not None, self._cancellation(far_cancellation, streams)
        heard = self._heard(pooled, chosen, level, streams, far_cancellation, na_share, log_mel)
        bank = _unfitted(memory_bank, heard)
        windows, normal = self._windows(None, window, hop, aggregate), NormalRecordings(domains, groups)
        levels = LevelRange(self.feature_extractor.sampling_rate)
        method = far_cancellation, asked, machine_off, far_future
        with self._calibrated(recordings, *method, windows, skip_unreadable) as kept:
            normal.take(self._embedded(kept, heard, windows, batch_size, progress, skip_unreadable, levels))
            heard = self._settled(normal, heard, bank)
            bank.fit(normal.vectors, domains=normal.domains)
            calibration = self._calibration(bank, normal, heard, windows, threshold_method, false_alarm_rate)
        bank.calibration = replace(calibration, levels=levels.ranges, microphones=levels.microphones)
        self.memory_bank, self._verified, self.left_out = bank, (bank, self.model), normal.left_out
        return self

    def _check_far_microphone(self) -> None:
        """Raise a ValueError where the loaded far microphone was calibrated at another rate than the model's."""
        rate = self.feature_extractor.sampling_rate
        if self.far_microphone is not None and self.far_microphone.sampling_rate != rate:
            raise ValueError(
                f"`{FAR_MICROPHONE_FILE}` must be calibrated at the rate of the feature extractor, {rate} Hz, "
                f"got one of {self.far_microphone.sampling_rate} Hz."
            )

    def _heard(
        self,
        pooling: Pooling,
        asked: LayerChoice,
        level: str,
        streams: str,
        far_cancellation: str | None,
        na_share: float | str | None,
        log_mel: bool | None,
    ) -> Heard:
        """What is taken of normal recordings; a ValueError where this model or its canceller cannot give it.

        What is `None` of `na_share` and `log_mel` is what the checkpoint's configuration says, where it does.
        """
        chosen = asked.or_default_of(self.model)
        chosen.check(self.model)
        advice = self._advice()
        na_share = advice.get("na_share") if na_share is None else na_share
        log_mel = advice.get("log_mel", False) if log_mel is None else log_mel
        heard = Heard(pooling, chosen, level=level, streams=streams, na_share=na_share, log_mel=log_mel)
        check_has_share(self.model, na_share)
        check_second_stream(streams, far_cancellation or self.feature_extractor.far_cancellation)
        return heard

    def _cancellation(self, asked: str | None, streams: str) -> str | None:
        """What the user asks for; what the checkpoint advises where neither user nor feature extractor say anything."""
        if asked is not None or self.feature_extractor.far_cancellation is not None or streams == "raw":
            return asked
        return self._advice().get("far_cancellation")

    def _advice(self) -> Mapping[str, Any]:
        """The arguments of `fit` that the checkpoint's `config.json` advises under `scoring`."""
        advice = getattr(self.model.config, "scoring", None) or {}
        if not isinstance(advice, Mapping) or not set(advice) <= set(ADVISED):
            raise ValueError(
                f"`scoring` of the checkpoint must be a dict with keys among {ADVISED}, got {advice!r:.80}."
            )
        return advice

    def _settled(self, normal: NormalRecordings, heard: Heard, bank: MemoryBank) -> Heard:
        """What the normal recordings decide of what is heard; their vectors become those that are compared."""
        shares = NA_SHARES if heard.na_share == "auto" else (heard.na_share,)
        log_mel: Sequence[LogMelStatistics | bool] = [heard.log_mel] * len(shares)
        if heard.log_mel:
            # Where bands can be left out of the vectors, the model knows how many there are.
            has_rows = hasattr(self.model, "row_centres")
            num_bands = len(self.model.row_centres(heard.layers.deepest)) if has_rows else normal.vectors.shape[1]
            num_statistics = num_log_mel_statistics(num_bands, self.feature_extractor.num_mel_bins)
            log_mel = normal.join_log_mel(num_statistics * (2 if heard.streams == "both" else 1), len(shares))
        share = heard.na_share
        if share == "auto":
            share = normal.choose_share(bank, NA_SHARES)
        heard = replace(heard, na_share=share, log_mel=log_mel[shares.index(share)])
        self._tell_bands(normal, heard)
        return heard

    def _tell_bands(self, normal: NormalRecordings, heard: Heard) -> None:
        """Warn once of bands that no recording holds, and of a model whose tokens have one band."""
        tell_left_out_bands(self.model, heard.layers.deepest, normal.rate)
        if normal.vectors.shape[1] == 1:
            logger.warning_once(
                f"The memory has one band, because each token of {type(self.model).__name__} spans all frequencies: a "
                "score cannot tell in which band a recording deviates."
            )

    @contextmanager
    def _calibrated(
        self,
        recordings: RecordingSources,
        far_cancellation: str | None,
        is_asked: bool,
        machine_off: RecordingSources | None,
        far_future: float | None,
        windows: Windows | None,
        skip_unreadable: bool,
    ) -> Iterator[RecordingSources]:
        """Set the cancellation of the far microphone, calibrated where asked; if the block fails, the old one is back.

        Args:
            far_cancellation, machine_off, far_future: as for `fit`.
            is_asked: whether the user asks for this method; where a far microphone cannot be calibrated that a
                checkpoint advises, a warning says so instead of an error.

        Yields:
            the recordings, which can be read once more.

        Raises:
            ValueError: the method is unknown, `machine_off` or `far_future` is given to one that learns nothing, or as
                `FarMicrophone`.
            OSError: a file is missing or cannot be decoded.
        """
        known = (*CALIBRATED_METHODS, *METHODS, "none")
        if far_cancellation is not None and (not isinstance(far_cancellation, str) or far_cancellation not in known):
            raise ValueError(f"`far_cancellation` must be None or one of {list(known)}, got {far_cancellation!r}.")
        for name, value in (("machine_off", machine_off), ("far_future", far_future)):
            if value is not None and far_cancellation not in CALIBRATED_METHODS:
                raise ValueError(
                    f"`{name}` must go with far_cancellation={' or '.join(map(repr, CALIBRATED_METHODS))}, "
                    f"got {far_cancellation!r}."
                )
        extractor = self.feature_extractor
        own = self.far_microphone, extractor.far_cancellation
        try:
            if far_cancellation in CALIBRATED_METHODS:
                ahead = {} if far_future is None else {"future": far_future}
                far_microphone = FarMicrophone(far_cancellation, extractor.sampling_rate, **ahead)
                # What can be read once only is read twice.
                recordings = recordings if isinstance(recordings, Sized) else list(each_recording(recordings))
                self._hear(far_microphone, recordings, windows, skip_unreadable, machine_off=False)
                if machine_off is not None:
                    self._hear(far_microphone, machine_off, windows, skip_unreadable, machine_off=True)
                self.far_microphone, extractor.far_cancellation = _finished(far_microphone, is_asked), None
            else:
                self.far_microphone = None
                if far_cancellation is not None:
                    extractor.far_cancellation = None if far_cancellation == "none" else far_cancellation
            yield recordings
            if self.far_microphone is not None:
                self.far_microphone.listen_anew()
        except BaseException:
            self.far_microphone, extractor.far_cancellation = own
            raise

    def _hear(
        self,
        far_microphone: FarMicrophone,
        recordings: RecordingSources,
        windows: Windows | None,
        skip_unreadable: bool,
        machine_off: bool,
    ) -> None:
        """Add recordings to what a far microphone is calibrated on; they are not kept."""
        for source in each_recording(recordings):
            try:
                for piece in self.preprocess(source, windows):
                    far_microphone.partial_fit(piece.samples[None], machine_off)
            except (ValueError, OSError):
                if not skip_unreadable:
                    raise

    def _calibration(
        self,
        bank: MemoryBank,
        normal: NormalRecordings,
        heard: Heard,
        windows: Windows | None,
        threshold_method: str,
        false_alarm_rate: float | None,
    ) -> Calibration:
        """What a fitted memory needs beside itself to score recordings."""
        if normal.was_cut and windows is None:
            windows = self._default_windows()
        self_scores = normal.self_scores(bank, windows)
        threshold, rate = calibrated_threshold(self_scores, threshold_method, false_alarm_rate)
        return Calibration(
            threshold=threshold,
            threshold_method=threshold_method,
            false_alarm_rate=rate,
            asked_false_alarm_rate=false_alarm_rate,
            self_scores=tuple(self_scores.tolist()),
            bank_version=bank.version_,
            windows=None if windows is None else asdict(windows),
            num_groups=normal.num_groups,
            pooling=asdict(heard.pooling),
            layers=heard.layers.layers,
            recording_rate=normal.rate,
            level=heard.level,
            streams=heard.streams,
            na_share=heard.na_share,  # type: ignore[arg-type] # "auto" has become a number
            log_mel=heard.log_mel or None,  # type: ignore[arg-type] # what is True has been learned
            model=model_fingerprint(self.model),
            extractor=self._extractor_settings(),
        )

    def calibrate(self, threshold_method: str = "conformal", false_alarm_rate: float | None = None) -> float:
        """Set the threshold from the leave-one-out scores of the fitted recordings.

        Args:
            threshold_method: "conformal", "gamma" or "quantile", see [`fit_threshold`].
            false_alarm_rate: asked share of normal recordings above the threshold, of new ones that are exchangeable
                with the fitted ones. `None` means 0.05, or the least rate that so few normal recordings allow, with a
                warning.

        Returns:
            the threshold; a recording is anomalous when its score is greater.

        Raises:
            ValueError: not fitted, an unknown method, or too few recordings for the asked rate.
        """
        bank, calibration = self._fitted()
        bank.calibration = calibration.recalibrated(threshold_method, false_alarm_rate)
        return bank.calibration.threshold

    @property
    def threshold(self) -> float:
        """The score above which a recording counts as anomalous."""
        return self._fitted()[1].threshold

    # Scoring

    def __call__(  # type: ignore[override]
        self,
        recordings: RecordingSources,
        batch_size: int | None = None,
        progress: str | None = None,
        *,
        window: float | None = None,
        hop: float | None = None,
        aggregate: str | float | None = None,
        errors: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """Score recordings.

        Args:
            recordings: one recording or several. One is a path, the bytes of a sound file, an open binary file, an
                array `(2, N)` at the extractor's rate (channel 0 close, 1 far), a dict `{"array", "sampling_rate"}` or
                `{"bytes", "path"}`, a `datasets` row with `audio`. Several are a list, a `datasets` column, batch or
                data set, an array `(B, 2, N)` or of paths, or any iterable; one without a length is scored lazily.
            batch_size: recordings of equal length that go through the model together.
            progress: label of a progress bar; `None` for no bar.
            window, hop, aggregate: how recordings are cut, see [`Windows`]; seconds. With `None` as in `fit`, and
                recordings above 60 s, or above what the model takes, are cut into windows of 10 s.
            errors: "raise", or "return": a recording that cannot be read or breaks a rule gives `{"error": ...}` in
                its place, and scoring goes on.

        Returns:
            for each recording a dict with `score` (float; higher is more anomalous), `is_anomaly` (bool),
            `threshold`, `p_value` (conformal: the chance that a normal recording scores as high) and `band_scores`
            (F floats, low to high frequency); of one that was cut also `windows` and `worst_window`, dicts of `start`,
            `end` (s) and `score`. One dict, a list of them, or an iterator for a lazy input.

        Raises:
            ValueError: not fitted, fitted with another model, extractor or pooling, or a recording breaks a rule.
            OSError: a file is missing or cannot be decoded.
        """
        if kwargs:
            raise ValueError(
                "Calling the scorer takes `recordings`, `batch_size`, `progress`, `window`, `hop`, `aggregate` and "
                f"`errors`, got {sorted(kwargs)}."
            )
        if not isinstance(errors, str) or errors not in ("raise", "return"):
            raise ValueError(f"`errors` must be 'raise' or 'return', got {errors!r}.")
        bank, calibration = self._fitted()
        fitted = None if calibration.windows is None else Windows(**calibration.windows)
        windows = self._windows(fitted, window, hop, aggregate)
        heard = Heard.as_fitted(calibration)
        heard.layers.check(self.model)
        usual = calibration.microphones
        levels = LevelReport(
            calibration.levels,
            CHANNELS if self._hears_far(heard.streams) else CHANNELS[:1],
            0.0 if usual is None else usual.far_leads,
        )
        embedded = self._embedded(recordings, heard, windows, batch_size, progress, errors == "return", levels)
        results = self._results(embedded, windows, bank, calibration)
        if is_single_recording(recordings):
            return next(results)
        return list(results) if isinstance(recordings, Sized) else results

    def embed(
        self,
        recordings: RecordingSources,
        batch_size: int | None = None,
        *,
        layer: int | None = None,
        layers: Sequence[int] | None = None,
        level: str | None = None,
        streams: str | None = None,
        na_share: float | None = None,
        pooling: str | None = None,
        gamma: float | None = None,
        p: float | None = None,
        r: float | None = None,
    ) -> torch.Tensor:
        """The pooled band vectors `(B, F, D)`, float32 on the CPU, that the memory compares.

        Args:
            recordings, batch_size: as for scoring.
            layer, layers, level, streams, na_share, pooling, gamma, p, r: as for `fit`, without "auto". With no
                `pooling`, what is `None` is as `fit` used it; with it, an unfitted scorer will do, and what is `None`
                has the default of `fit`.

        Raises:
            ValueError: as for scoring, a parameter that the pooling does not use, layers as for `fit`, or there are no
                recordings.
            OSError: a file is missing or cannot be decoded.
        """
        unfitted = Heard(layers=LayerChoice().or_default_of(self.model))
        heard = unfitted if pooling else Heard.as_fitted(self._fitted()[1])
        heard = replace(heard, pooling=heard.pooling.changed(pooling, gamma=gamma, p=p, r=r))
        if layer is not None or layers is not None:
            heard = replace(heard, layers=LayerChoice.of(layer, layers))
        heard.layers.check(self.model)
        if level is not None:
            heard = replace(heard, level=level)
        if streams is not None:
            heard = replace(heard, streams=streams)
        if na_share is not None:
            heard = replace(heard, na_share=na_share)
        if heard.na_share == "auto":
            raise ValueError("`na_share` must be a number from 0 to 1 for `embed`, got 'auto', which `fit` decides.")
        check_has_share(self.model, heard.na_share)
        check_second_stream(heard.streams, self._canceller())
        batches = self._embedded(recordings, heard, WHOLE, batch_size, None)
        vectors = [vector for batch in batches for _, vector in batch]
        if not vectors:
            raise ValueError("`recordings` must hold at least one recording, got none.")
        return torch.stack(vectors)  # (B, F, D)

    def anomaly_map(self, recording: RecordingSource) -> torch.Tensor:
        """Where in time and frequency one recording deviates: the band scores of its unpooled tokens.

        Returns:
            `(T', F)` float32; a row is one row of tokens in time (0.16 s for BEATs and EAT), a column one band, higher
            is more anomalous. Rows that are partly padding, at the end of EAT's, are left out: they differ from sound.

        Raises:
            ValueError: as for scoring, or not a single recording.
            OSError: a file is missing or cannot be decoded.
        """
        bank, calibration = self._fitted()
        (piece,) = self.preprocess(recording, WHOLE)
        check_rate(piece.name, piece.rate, calibration.recording_rate, self.feature_extractor.sampling_rate)
        heard = replace(Heard.as_fitted(calibration), pooling=None)
        waveforms = at_level(piece.samples[None], heard.level)  # (1, 2, N)
        tokens = self.forward({"waveforms": waveforms, "heard": heard})["vectors"]  # (1, T', F, D)
        band_scores = torch.as_tensor(bank.band_scores(tokens[0]))  # (T', F)
        front_end, num_samples = self.feature_extractor.front_end, waveforms.shape[-1]
        num_whole = front_end.num_sound_frames(num_samples) * len(band_scores) // front_end.num_frames(num_samples)
        return band_scores[: max(num_whole, 1)]

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model, extractor, code, and the memory with its threshold, all or nothing.

        An adapter is merged into what is saved, which then needs neither peft nor the base.

        Args:
            save_directory: created if missing; files of other names in it are left alone.
            **kwargs: for the model's `save_pretrained`; `push_to_hub=True` uploads with the memory.

        Raises:
            OSError: `save_directory` is a file or cannot be written; what was saved there before stays as it was.
        """
        destination = Path(save_directory)
        if destination.is_file():
            raise FileExistsError(f"`save_directory` must be a directory, got the file {destination}.")
        push_to_hub = kwargs.pop("push_to_hub", False)
        hub_names = ("repo_id", "commit_message", "private", "token", "revision")
        hub_kwargs = {name: kwargs.pop(name) for name in hub_names if name in kwargs}
        own = self.model, self.memory_bank
        try:
            with whole_folder(destination, keeps=lambda name: not _belongs_to_a_scorer(name)) as staging:
                self.model, self.memory_bank = _without_adapter(*own)
                super().save_pretrained(staging, **kwargs)
                if self.memory_bank is not None:
                    self.memory_bank.save_pretrained(staging)
                if self.far_microphone is not None:
                    self.far_microphone.save_pretrained(staging)
        finally:
            self.model, self.memory_bank = own
        if push_to_hub:
            self.push_to_hub(hub_kwargs.pop("repo_id", destination.name), **hub_kwargs)

    # Many machines

    def sharing_model(self, memory_bank: MemoryBank, far_microphone: FarMicrophone | None = None) -> "AnomalyScorer":
        """A scorer with the memory of another machine, fitted with this model, which the two hold once.

        The weights are hashed once for all machines; what a scorer does is not changed by others that share its model.

        Args:
            memory_bank: the memory of that machine, with its calibration.
            far_microphone: the calibrated far microphone of that machine, where its scorer has one.
        """
        if self._hashed is None or self._hashed[0] is not self.model:
            self._hashed = (self.model, model_fingerprint(self.model))
        scorer = copy.copy(self)
        scorer.feature_extractor = copy.copy(self.feature_extractor)
        scorer.memory_bank, scorer.far_microphone, scorer.left_out = memory_bank, far_microphone, []
        calibration = memory_bank.calibration
        if calibration is not None and same_weights(calibration.model, self._hashed[1]):
            scorer._verified = (memory_bank, self.model)
        return scorer

    # The steps of one recording, in their order

    def _embedded(
        self,
        recordings: RecordingSources,
        heard: Heard,
        windows: Windows | None,
        batch_size: int | None,
        progress: str | None,
        keep_failures: bool = False,
        levels: LevelRange | LevelReport | None = None,
    ) -> Iterator[list[tuple[Piece | Unreadable, Any]]]:
        """Up to `batch_size` pieces at a time, in order, with their vectors `(F, D)`; unreadable ones with `None`."""
        # Checked when this is called, not when the first vectors are asked for.
        size, sources = self._checked_batch_size(batch_size), each_recording(recordings)

        def pieces() -> Iterator[Piece | Unreadable]:
            rate = heard.rate
            for source in sources:
                try:
                    for piece in self.preprocess(source, windows):
                        check_rate(piece.name, piece.rate, rate, self.feature_extractor.sampling_rate)
                        rate = piece.rate
                        yield piece
                except (ValueError, OSError) as error:
                    if not keep_failures:
                        raise
                    yield Unreadable(recording_name(source), " ".join(str(error).split()))

        def batches() -> Iterator[list[tuple[Piece | Unreadable, Any]]]:
            total = len(sources) if isinstance(sources, Sized) else None
            usual_share = 0.0 if levels is None else levels.far_leads
            oddities = OddityReport(self.feature_extractor.sampling_rate, usual_share)
            stream = pieces()
            with logging.tqdm(total=total, desc=progress, unit="clip", disable=progress is None) as bar:
                try:
                    while batch := list(islice(stream, size)):
                        yield list(zip(batch, self._batch_vectors(batch, heard, oddities, levels), strict=True))
                        bar.update(sum(isinstance(item, Unreadable) or item.is_last for item in batch))
                        if levels is not None:
                            levels.far_leads = oddities.swapped_share
                finally:
                    oddities.report()
                    if levels is not None:
                        levels.report()

        return batches()

    def _batch_vectors(
        self,
        batch: Sequence[Piece | Unreadable],
        heard: Heard,
        oddities: OddityReport,
        levels: LevelRange | LevelReport | None,
    ) -> list[torch.Tensor | None]:
        """The vector `(F, D)` of every piece, `None` for what could not be read."""
        vectors: list[torch.Tensor | None] = [None] * len(batch)
        rows_by_length: dict[int, list[int]] = {}
        for row, item in enumerate(batch):
            if isinstance(item, Piece):
                rows_by_length.setdefault(item.samples.shape[-1], []).append(row)
        # Padding would change scores: only pieces of one length go through the model together.
        for rows in rows_by_length.values():
            pieces = [item for row in rows if isinstance(item := batch[row], Piece)]
            waveforms = torch.stack([piece.samples for piece in pieces])  # (n, 2, N)
            oddities.note([piece.name for piece in pieces], waveforms)
            waveforms = at_level(waveforms, heard.level)
            if levels is not None:
                levels.note([piece.name for piece in pieces], waveforms)
            for row, vector in zip(
                rows,
                self.forward({"waveforms": waveforms, "heard": replace(heard, rate=pieces[0].rate)})["vectors"],
                strict=True,
            ):
                vectors[row] = vector
        return vectors

    def preprocess(self, source: RecordingSource, windows: Windows | None = None) -> Iterator[Piece]:  # type: ignore[override]
        """Read and check one recording, whole or in windows. ValueError and OSError name it."""
        with open_recording(source, self.feature_extractor.sampling_rate) as recording:
            rate, num_frames = recording.sampling_rate, recording.num_frames
            if windows is None and rate > 0 and num_frames > rate * self._longest_whole():
                windows = self._default_windows()
            was_cut = windows is not None and windows is not WHOLE
            spans = windows.starts(num_frames, rate) if windows is not None and was_cut else [(0, num_frames)]
            for index, (start, frames) in enumerate(spans):
                samples = recording.read(start, frames) if was_cut else recording.read()
                try:
                    waveform = self.feature_extractor.waveform(samples, rate)
                except ValueError as error:
                    raise ValueError(f"{recording.name}: {error}") from error
                is_last = index == len(spans) - 1
                own_rate = recorded_rate(self.model, rate, self.feature_extractor.sampling_rate)
                yield Piece(waveform, recording.name, start / rate, (start + frames) / rate, is_last, was_cut, own_rate)

    def _forward(self, inputs: dict[str, Any], **forward_parameters: Any) -> Any:  # type: ignore[override]
        """Waveforms `(B, 2, N)` of one length to vectors `(B, F, D)`, or tokens `(B, T', F, D)` without pooling."""
        # In a training loop the model may be in train mode, where dropout makes scores random.
        if self.model.training:
            self.model.eval()
        # Equal lengths have no padding, so there is no mask to pass.
        waveforms, heard = inputs["waveforms"], inputs["heard"]
        if heard.na_share == "auto":
            # What the choice needs of every piece lies side by side: all shares, and all shares of a pseudo fault.
            both = (waveforms, with_pseudo_faults(waveforms, self.feature_extractor.sampling_rate))
            vectors = torch.cat([part for waves in both for part in self._vectors(waves, heard, NA_SHARES)], dim=-1)
        else:
            (vectors,) = self._vectors(waveforms, heard, (heard.na_share,))
        num_bands = num_recorded_bands(self.model, heard.layers.deepest, heard.rate)
        return {"vectors": vectors[..., :num_bands, :]}

    def _vectors(self, waveforms: torch.Tensor, heard: Heard, shares: Sequence[float | None]) -> list[torch.Tensor]:
        """Waveforms `(B, 2, N)` to vectors `(B, F, D)`, or tokens `(B, T', F, D)`, of every share of the model."""
        front_end = self.feature_extractor.front_end
        canceller = front_end if self.far_microphone is None else self.far_microphone

        @cache
        def of_stream(is_cancelled: bool) -> list[torch.Tensor]:
            waves = waveforms
            if is_cancelled:
                with torch.no_grad():
                    waves = canceller.cancel(waveforms)
                if self.far_microphone is not None and self.memory_bank is not None:  # scoring, not fitting
                    self.far_microphone.listen(waveforms)
            fbank = front_end.frames(waves, waveforms)  # (B, 2, T, M)
            if None in shares:
                vectors = [heard.layers.vectors(self.model, fbank, heard.pooling)]
            else:
                vectors = heard.layers.vectors_of_shares(self.model, fbank, heard.pooling, shares)  # type: ignore[arg-type]
            if heard.log_mel is False:
                return vectors
            return [*vectors, log_mel_beside(vectors[0], fbank, front_end.num_sound_frames(waves.shape[-1]))]

        def at(index: int, join: Callable[[Sequence[torch.Tensor]], torch.Tensor] = joined) -> torch.Tensor:
            return stream_vectors(heard.streams, lambda: of_stream(True)[index], lambda: of_stream(False)[index], join)

        by_share = [at(index) for index in range(len(shares))]
        if heard.log_mel is False:
            return by_share
        statistics = at(len(shares), side_by_side)
        if heard.log_mel is True:
            return [torch.cat([vectors, statistics], dim=-1) for vectors in by_share]
        return [heard.log_mel.joined(vectors, statistics) for vectors in by_share]

    def _results(
        self,
        embedded: Iterator[list[tuple[Piece | Unreadable, Any]]],
        windows: Windows | None,
        bank: MemoryBank,
        calibration: Calibration,
    ) -> Iterator[Result | LongResult | FailedResult]:
        """Vectors to results, by distance to the memory; the windows of a recording are put together again."""
        spans: list[tuple[float, float]] = []
        of_windows: list[torch.Tensor] = []
        for batch in embedded:
            rows = [row for row, (_, vector) in enumerate(batch) if vector is not None]
            if rows:
                band_scores = torch.as_tensor(bank.band_scores(torch.stack([batch[row][1] for row in rows]))).cpu()
            for row, (item, _) in enumerate(batch):
                if isinstance(item, Unreadable):
                    spans, of_windows = [], []
                    yield FailedResult(error=item.reason)
                    continue
                spans.append((item.start, item.end))
                of_windows.append(band_scores[rows.index(row)])
                if item.is_last:
                    cut = (windows or self._default_windows()) if item.was_cut else None
                    yield self.postprocess(torch.stack(of_windows), spans, cut, bank, calibration, item.name)
                    spans, of_windows = [], []

    def postprocess(  # type: ignore[override]
        self,
        band_scores: torch.Tensor,
        spans: Sequence[tuple[float, float]],
        windows: Windows | None,
        bank: MemoryBank,
        calibration: Calibration,
        name: str,
    ) -> Result | LongResult:
        """Band scores `(n, F)` of the n windows of a recording (of 1, where it was taken whole) to its result."""
        scores = torch.as_tensor(bank.aggregate_bands(band_scores))  # (n,)
        if windows is None:
            score, bands = scores[0], band_scores[0]
        else:
            score = windows.aggregated(scores)
            bands = band_scores[int(scores.argmax())] if windows.aggregate == "max" else windows.aggregated(band_scores)
        p_value = conformal_p_values(torch.tensor(calibration.self_scores), score[None])  # (1,)
        result = Result(
            score=float(score),
            is_anomaly=float(score) > calibration.threshold,
            threshold=calibration.threshold,
            p_value=float(p_value),
            band_scores=bands.tolist(),
        )
        if windows is None:
            return result
        if len(spans) > 1 and calibration.windows != asdict(windows):
            logger.warning_once(
                f"{name} was cut into {len(spans)} windows, but the threshold was not set on recordings that were cut "
                "alike: its false-alarm rate is not the stated one. Fit with recordings as long as those to be scored."
            )
        parts = [
            WindowScore(start=start, end=end, score=part)
            for (start, end), part in zip(spans, scores.tolist(), strict=True)
        ]
        return LongResult(**result, windows=parts, worst_window=parts[int(scores.argmax())])

    def _windows(
        self, fitted: Windows | None, window: float | None, hop: float | None, aggregate: str | float | None
    ) -> Windows | None:
        """The windows that are asked for; what is not asked is as fitted, or as by default."""
        asked = {"length": window, "hop": hop, "aggregate": aggregate}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if not given:
            return fitted
        if window is not None and hop is None:
            given["hop"] = None
        windows = replace(fitted or self._default_windows(), **given)
        if windows.length > self._longest_possible():
            raise ValueError(
                f"`window` must be at most {self._longest_possible():g} s, which is what the model takes, "
                f"got {windows.length!r}."
            )
        return windows

    def _hears_far(self, streams: str) -> bool:
        """Whether the far channel has an influence on scores."""
        return getattr(self.model, "hears_far", False) or (streams != "raw" and self._canceller() is not None)

    def _canceller(self) -> str | None:
        """The method that takes the far microphone out of the close one; `None` without one."""
        if self.far_microphone is not None:
            return self.far_microphone.method
        return self.feature_extractor.far_cancellation

    def _default_windows(self) -> Windows:
        return Windows(length=min(10.0, self._longest_whole()))

    def _longest_whole(self) -> float:
        """The longest recording that is not cut unless asked, in s."""
        return min(LONGEST_WHOLE_SEC, self._longest_possible())

    def _longest_possible(self) -> float:
        """The longest recording that the model takes, in s."""
        frames, extractor = self.model.longest_frames, self.feature_extractor
        return math.inf if frames is None else frames * extractor.hop_length / extractor.sampling_rate

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise ValueError(
                f"The anomaly-scoring pipeline takes no parameters beside its call's, got {sorted(kwargs)}."
            )
        return {}, {}, {}

    def _checked_batch_size(self, batch_size: int | None) -> int:
        if batch_size is None:
            batch_size = 1 if self._batch_size is None else self._batch_size
        if not isinstance(batch_size, int) or not 1 <= batch_size <= sys.maxsize:
            raise ValueError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}.")
        return batch_size

    # What a memory belongs to

    def _fitted(self) -> tuple[MemoryBank, Calibration]:
        """The memory and its calibration, after making sure that they belong to this model and extractor."""
        bank = self.memory_bank
        if bank is None:
            raise ValueError("This scorer is not fitted yet: call `fit` with normal recordings first.")
        calibration = bank.calibration
        if calibration is None:
            raise ValueError("The memory bank was fitted with another scorer: it holds None of it. Call `fit` again.")
        self._check_belongs("extractor", calibration.extractor, self._extractor_settings(), operator.eq)
        if bank is not self._verified[0] or self.model is not self._verified[1]:
            self._check_belongs("model", calibration.model, model_fingerprint(self.model), same_weights)
        self._verified = (bank, self.model)
        if calibration.bank_version != bank.version_:
            if calibration.windows is not None or calibration.num_groups is not None:
                raise ValueError(
                    "The memory bank has changed, and nothing tells which of its clips are windows of one recording or "
                    "belong to one group. Call `fit` again."
                )
            # `partial_fit` and `forget` move the scores of the normal recordings, and with them the threshold.
            calibration = calibration.recalibrated(
                calibration.threshold_method,
                calibration.asked_false_alarm_rate,
                self_scores=bank.self_scores(exact=True).tolist(),
                bank_version=bank.version_,
            )
            bank.calibration = calibration
        return bank, calibration

    @staticmethod
    def _check_belongs(part: str, fitted: Any, current: Any, agrees: Callable[[Any, Any], bool]) -> None:
        if not agrees(fitted, current):
            raise ValueError(
                f"The memory bank was fitted with another {part}: it holds {fitted!r}, this pipeline has {current!r}. "
                "Call `fit` again."
            )

    def _extractor_settings(self) -> dict[str, Any]:
        names = ("frontend", "sampling_rate", "num_mel_bins", "far_cancellation")
        settings = {name: getattr(self.feature_extractor, name) for name in names}
        # Memories of before there was this setting do not have it.
        if self.feature_extractor.lowers_far:
            settings["lowers_far"] = True
        if self.far_microphone is not None:
            settings["far_microphone"] = self.far_microphone.fingerprint
        return settings


def _unfitted(memory_bank: MemoryBank | None, heard: Heard) -> MemoryBank:
    """A new memory with the settings of one, so that a refit that fails leaves the bank that is in use alone."""
    if not (memory_bank is None or isinstance(memory_bank, MemoryBank)):
        raise ValueError(f"`memory_bank` must be a MemoryBank or None, got {memory_bank!r}.")
    # Among joined vectors a cosine distance would be made of squares, in which one band outweighs all others.
    joined: dict[str, Any] = {"distance": "euclidean", "normalize": False} if heard.log_mel else {}
    return replace(MemoryBank() if memory_bank is None else memory_bank, **joined)


def _finished(far_microphone: FarMicrophone, is_asked: bool) -> FarMicrophone | None:
    """The calibrated far microphone; a warning and `None` where that cannot be and nobody asked for it."""
    try:
        return far_microphone.finish().without_sums()
    except ValueError as error:
        if is_asked:
            raise
        logger.warning(
            f"The far microphone is not calibrated, as this checkpoint advises, and stays in what is heard: {error}"
        )
        return None


def _belongs_to_a_scorer(name: str) -> bool:
    """Whether a file of an earlier save would be loaded in place of, or along with, the new ones."""
    return name in (MEMORY_BANK_FILE, FAR_MICROPHONE_FILE) or _WEIGHTS.fullmatch(name) is not None


def _without_adapter(model: Any, bank: MemoryBank | None) -> tuple[Any, MemoryBank | None]:
    """Copies in which an adapter is merged and the memory belongs to the merged weights; others stay as they are.

    Raises:
        ValueError: the merged model does not give what the adapted one gives, so that the memory would not fit it.
    """
    if not has_adapter(model):
        return model, bank
    merged = merge_adapter(copy.deepcopy(model)).eval()
    frames, mel_bins = 4 * model.least_frames, model.config.num_mel_bins
    fbank = torch.randn(1, 2, frames, mel_bins, generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.no_grad():
        before, after = (one(fbank).last_hidden_state.float() for one in (copy.deepcopy(model).eval(), merged))
    if not torch.allclose(before, after, atol=0.01 * float(before.std()), rtol=0.01):
        raise ValueError(
            "`model` must have an adapter that can be merged into its weights; merged, its tokens change by up to "
            f"{float((before - after).abs().max()):.3g}."
        )
    calibration = None if bank is None else bank.calibration
    if bank is not None and calibration is not None and same_weights(calibration.model, model_fingerprint(model)):
        bank = copy.copy(bank)
        bank.calibration = replace(calibration, model=model_fingerprint(merged))
    return merged, bank


def _saved(model: Any, file_name: str, read: Callable[[str], Any]) -> Any:
    """What was saved with a model's checkpoint in a file, found as the model was; `None` where there is none."""
    found_with = dict(getattr(model, "found_with", None) or {"path_or_repo_id": getattr(model, "name_or_path", None)})
    source = found_with.pop("path_or_repo_id")
    if not source:
        return None
    try:
        path = cached_file(source, file_name, **found_with, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        # The model is loaded; that its source is gone or out of reach by now must not keep it from being fitted.
        logger.warning_once(f"No memory of normal recordings could be looked up at {source}: {error}")
        return None
    return None if path is None else read(path)


# A pipeline that was itself loaded from a checkpoint's code is not registered, yet must save its code again.
AnomalyScorer._registered_impl = {  # type: ignore[attr-defined]
    "anomaly-scoring": {"impl": AnomalyScorer, "pt": (AutoModel,), "type": "audio", "default": {}}
}
