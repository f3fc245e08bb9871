"""What the page offers, one function for each step: fit, keep, load, score, look and listen.

Letters in shape comments: N samples, T' rows of an anomaly map, F bands.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from transformers.utils import logging as transformers_logging

from ..checkpoints.scorers import load_scorer
from ..data.archive_extraction import extract_zip
from ..evaluation.report.figures import Picture, anomaly_map_picture, report_style, spectrogram_picture
from ..evaluation.report.score_report import describe_far_microphone
from ..hub.recording import open_recording
from ..quiet_checkpoints import quiet_checkpoints
from ..tables import write_table
from ..watch.outputs import cancelled_channel
from ..watch.page.event_views import channel_sound
from .log_mel import LogMelOpinion, LogMelResult

if TYPE_CHECKING:
    from ..hub.pipeline_anomaly_scoring import AnomalyScorer

COLUMNS = ("file", "score", "is_anomaly", "threshold", "p_value", "error")
# The brightest colour of a map is this quantile of the recording with the highest score, so that no click decides it.
_HIGHEST_QUANTILE = 0.995
_BATCH_SIZE = 8
_LOGGER = "na_ssl_hf"


@dataclass(frozen=True)
class FitSettings:
    """How a scorer is fitted; see [`AnomalyScorer.fit`] for what the names mean.

    Attributes:
        checkpoint: a directory, the name of a checkpoint of the package, or a name on the hub.
        far_cancellation: a method, "none", or `None` for what the checkpoint says.
        layer: `None` for the default one.
        level: "as recorded" or "normalised".
        false_alarm_rate: share of new normal recordings that may alarm; `None` for the default.
        with_log_mel: whether log-mel statistics are compared as well; the recordings must have 16 kHz then.
    """

    checkpoint: str
    far_cancellation: str | None = None
    layer: int | None = None
    level: str = "as recorded"
    false_alarm_rate: float | None = None
    with_log_mel: bool = False


@dataclass(frozen=True)
class Fitted:
    """A fitted scorer of a visitor.

    Attributes:
        scorer: the scorer.
        recording_rate: of its normal recordings, in Hz; `None` where that is not known.
        log_mel: what log-mel statistics say beside it; `None` where they were not asked for.
    """

    scorer: AnomalyScorer
    recording_rate: int | None = None
    log_mel: LogMelOpinion | None = None


@dataclass(frozen=True)
class Scored:
    """Recordings and what a scorer says of them.

    Attributes:
        files: the recordings.
        results: for each, a result of [`AnomalyScorer`]; with `error` alone where it could not be scored.
        highest: the value of the brightest colour of their maps.
        log_mel: for each, what log-mel statistics say, `None` where it could not be scored; `None` where they were not
            asked for.
    """

    files: tuple[Path, ...]
    results: tuple[Mapping[str, Any], ...]
    highest: float = 0.0
    log_mel: tuple[LogMelResult | None, ...] | None = None

    def order(self) -> list[int]:
        """Return the places of the recordings, the highest score first and those without a score last."""
        return sorted(range(len(self.files)), key=lambda place: -self.results[place].get("score", -np.inf))


@dataclass(frozen=True)
class View:
    """One recording to look at and to listen to.

    Attributes:
        title: its name, and which part of it is shown.
        pictures: the anomaly map, and the spectrograms of both channels.
        sounds: "close", "far" and, where the scorer takes the far microphone out, "cancelled" -> a WAV file of 16 bits.
    """

    title: str
    pictures: tuple[Picture, ...]
    sounds: Mapping[str, bytes]


def fit_scorer(
    normals: Sequence[Path], machine_off: Sequence[Path], settings: FitSettings, device: str | None = None
) -> Fitted:
    """Fit a scorer to normal recordings.

    Args:
        normals: sound files of two channels and one sampling rate, which is brought to that of the checkpoint.
        machine_off: recordings of the noise alone, at the same rate; none are needed.
        settings: how it is fitted.
        device: where the model computes; `None` for the best there is.

    Raises:
        ValueError: there are no recordings, one is not acceptable, or a setting does not fit the others.
        OSError: a file is no sound, or the checkpoint cannot be loaded.
    """
    if not normals:
        raise ValueError("normal recordings must be uploaded before a scorer is fitted, got none")
    rate = _rate(normals[0])
    for file in (*normals[1:], *machine_off):
        _check_rate(file, rate)
    scorer = load_scorer(settings.checkpoint, device, resample=True)
    scorer.fit(
        list(normals),
        machine_off=list(machine_off) or None,
        far_cancellation=settings.far_cancellation,
        layer=settings.layer,
        level=settings.level,
        false_alarm_rate=settings.false_alarm_rate,
        batch_size=_BATCH_SIZE,
        progress=None,
    )
    asked = settings.false_alarm_rate
    log_mel = LogMelOpinion.beside(scorer, normals, asked) if settings.with_log_mel else None
    return Fitted(scorer, rate, log_mel)


def _rate(file: Path) -> int:
    with open_recording(file, 0) as recording:  # a file says its rate
        return recording.sampling_rate


def _check_rate(file: Path, rate: int) -> None:
    """Raise a ValueError where a recording has another rate: what the lower one lacks would sound like a fault."""
    if (own := _rate(file)) != rate:
        raise ValueError(f"{file}: recordings must have the sampling rate of the normal ones, {rate} Hz, got {own} Hz")


def describe_scorer(scorer: AnomalyScorer) -> list[str]:
    """Return sentences about a fitted scorer: its threshold, what that promises, and what it does with the far channel.

    Raises:
        ValueError: it is not fitted.
    """
    threshold = scorer.threshold
    calibration: Any = scorer.memory_bank and scorer.memory_bank.calibration
    lines = [
        f"{len(calibration.self_scores)} normal recordings, threshold {threshold:.6g}.",
    ]
    if calibration.threshold_method != "gamma":
        lines.append(
            f"About {100 * calibration.false_alarm_rate:.3g} % of new normal recordings of the same machine, place, "
            "microphones and conditions will be called anomalous."
        )
    if scorer.far_microphone is not None:
        text = describe_far_microphone(scorer.far_microphone)
        lines.append(f"{text[:1].upper()}{text[1:]}.")
    lines += [f"Left out: {Path(name).name}: {why}" for name, why in scorer.left_out]
    return lines


def pack_scorer(scorer: AnomalyScorer, folder: Path) -> Path:
    """Write a fitted scorer as `scorer.zip` below `folder`; unpacked it is a folder that `na-ssl score` takes.

    Raises:
        OSError: the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        saved = Path(staging) / "scorer"
        with quiet_checkpoints():
            scorer.save_pretrained(saved)
        archive = Path(tempfile.mkdtemp(dir=folder)) / "scorer.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for file in sorted(path for path in saved.rglob("*") if path.is_file()):
                target.write(file, file.relative_to(staging))
    return archive


def unpack_scorer(archive: Path, folder: Path, device: str | None = None) -> AnomalyScorer:
    """Load a scorer from an archive as `pack_scorer` writes it; no code in it runs.

    Args:
        archive: the ZIP archive; the scorer lies in it, or in a folder of it.
        folder: where it is unpacked for the time of loading.
        device: where the model computes; `None` for the best there is.

    Raises:
        ValueError: the archive is unsafe, or holds no fitted scorer.
        OSError: it is no ZIP archive, or damaged.
    """
    with tempfile.TemporaryDirectory(dir=folder) as unpacked:
        files = extract_zip(archive, unpacked, show_progress=False)
        folders = sorted({file.parent for file in files if file.name == "config.json"}, key=lambda one: len(one.parts))
        if not folders:
            raise ValueError(f"{archive} must hold a folder that `na-ssl fit` wrote, got no config.json in it")
        try:
            scorer = load_scorer(str(folders[0]), device, resample=True)
        except OSError as error:
            raise OSError(str(error).replace(str(folders[0]), str(archive))) from error
    if scorer.memory_bank is None:
        raise ValueError(f"{archive} must hold a fitted scorer, got a checkpoint without a memory of normal recordings")
    return scorer


def score_files(fitted: Fitted, files: Sequence[Path]) -> Scored:
    """Score recordings; those that cannot be read, or have another rate than the normal ones, are told in their places.

    Raises:
        ValueError: there are no recordings, or the scorer is not fitted.
    """
    if not files:
        raise ValueError("recordings must be uploaded before they are scored, got none")
    results: dict[Path, Mapping[str, Any]] = {}
    for file in files:
        try:
            if fitted.recording_rate is not None:
                _check_rate(file, fitted.recording_rate)
        except (ValueError, OSError) as error:
            results[file] = {"error": " ".join(str(error).split())}
    alike = [file for file in files if file not in results]
    results.update(zip(alike, fitted.scorer(alike, batch_size=_BATCH_SIZE, errors="return"), strict=True))
    log_mel = None
    if fitted.log_mel is not None:
        log_mel = tuple(None if "error" in results[file] else fitted.log_mel.of(file) for file in files)
    scored = Scored(tuple(files), tuple(results[file] for file in files), log_mel=log_mel)
    first = scored.order()[0]
    if "error" in scored.results[first]:
        return scored
    # One scale for all, so that a recording without a fault stays dark.
    samples, rate, _start = _shown_part(files[first], scored.results[first])
    highest = np.quantile(_map(fitted.scorer, samples, rate), _HIGHEST_QUANTILE)
    return replace(scored, highest=max(float(highest), float(np.finfo(np.float32).tiny)))


def write_scores(scored: Scored, path: Path) -> None:
    """Write the table of scores as CSV, as `na-ssl score --csv` does, with the names of the uploaded files.

    Where log-mel statistics were asked for, columns of theirs follow.

    Raises:
        OSError: the file cannot be written.
    """
    columns = [*COLUMNS]
    cells = [{**result, "file": file.name} for file, result in zip(scored.files, scored.results, strict=True)]
    if scored.log_mel is not None:
        columns += [f"log_mel_{name}" for name in LogMelResult.__annotations__]
        for row, opinion in zip(cells, scored.log_mel, strict=True):
            row |= {f"log_mel_{name}": value for name, value in (opinion or {}).items()}
    write_table(path, columns, [[row.get(column, "") for column in columns] for row in cells])


def look_at(scorer: AnomalyScorer, scored: Scored, place: int, folder: Path) -> View:
    """Make the pictures and sounds of one recording; of one that was scored in windows, those of its worst window.

    Args:
        scorer: the one that scored it.
        scored: what `score_files` returned.
        place: of the recording in `scored`.
        folder: for a file that is needed meanwhile.

    Raises:
        ValueError: it could not be scored, or is not acceptable.
        OSError: the file is gone.
    """
    file, result = scored.files[place], scored.results[place]
    if "error" in result:
        raise ValueError(result["error"])
    samples, rate, start = _shown_part(file, result)  # (2, N)
    seconds = samples.shape[1] / rate
    title = file.name
    if "worst_window" in result:
        title += f", its worst window, {start:.1f} to {start + seconds:.1f} s"
    with report_style():
        pictures = (
            anomaly_map_picture(title, _map(scorer, samples, rate), seconds, scored.highest),
            spectrogram_picture(title, samples, rate),
        )
    make_cancelled = cancelled_channel(scorer)
    cancel = None if make_cancelled is None else (lambda sounds, rate: make_cancelled("", sounds, rate))
    names = ("close", "far") if cancel is None else ("close", "far", "cancelled")
    with tempfile.TemporaryDirectory(dir=folder) as own:
        part = Path(own) / "part.wav"
        soundfile.write(part, samples.T, rate, subtype="FLOAT")
        sounds = {name: channel_sound(part, name, cancel) for name in names}
    return View(title, pictures, sounds)


def _shown_part(file: Path, result: Mapping[str, Any]) -> tuple[np.ndarray, int, float]:
    """Return `(2, N)` float32, its rate in Hz, and where it begins in s."""
    with open_recording(file, 0) as recording:  # a file says its rate
        rate = recording.sampling_rate
        if "worst_window" not in result:
            return np.asarray(recording.read(), np.float32), rate, 0.0
        start, end = result["worst_window"]["start"], result["worst_window"]["end"]
        first = round(start * rate)
        return np.asarray(recording.read(first, round(end * rate) - first), np.float32), rate, start


def _map(scorer: AnomalyScorer, samples: np.ndarray, rate: int) -> np.ndarray:
    return scorer.anomaly_map({"array": samples, "sampling_rate": rate}).cpu().numpy()  # (T', F)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what this package warns of in this thread: what it says to one visitor is nothing for another."""
    collected: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and (message := record.getMessage()) not in collected:
                collected.append(message)

    # What another visitor was told once must be told again.
    transformers_logging.warning_once.cache_clear()
    collector, logger = Collector(logging.WARNING), logging.getLogger(_LOGGER)
    logger.addHandler(collector)
    try:
        yield collected
    finally:
        logger.removeHandler(collector)
