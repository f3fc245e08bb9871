"""What is done with a part of the work, in whatever process: its recordings are scored, or its machines are fitted."""

from __future__ import annotations

import copy
import filecmp
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .machines import Share
from .parts import Part, PartReport, write_part

if TYPE_CHECKING:
    from ..hub.pipeline_anomaly_scoring import AnomalyScorer

# So many warnings a part reports.
MOST_WARNINGS = 10


class Worker(Protocol):
    """Does parts of the work, one at a time."""

    def __call__(self, part: Part) -> PartReport:
        """Do a part and write it; whatever goes wrong is in the report."""
        ...


@dataclass(frozen=True)
class ScoreWork:
    """How recordings are scored.

    Attributes:
        out: the folder of the parts.
        window, hop, aggregate: how recordings are cut, as for the scorer.
        resample, trust_remote_code, device: as for `load_scorer`.
        batch_size: recordings of equal length that go through the model together.
        num_memories: memories that a worker holds at a time.
    """

    out: str
    window: float | None = None
    hop: float | None = None
    aggregate: str | float | None = None
    resample: bool = False
    trust_remote_code: bool = False
    device: str | None = "cpu"
    batch_size: int = 8
    num_memories: int = 64

    kind = "score"
    unit = "clip"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scores."""
        return {name: getattr(self, name) for name in ("window", "hop", "aggregate", "resample")}

    def weight(self, share: Share) -> int:
        """The number of rows of recordings that a share becomes."""
        return len(share.files)

    def worker(self) -> Worker:
        """Make what does parts of the work; it loads what it needs once."""
        return ScoreWorker(self)


@dataclass(frozen=True)
class FitWork:
    """How scorers are fitted.

    Attributes:
        out: the folder of the parts.
        model: the checkpoint.
        arguments: of `AnomalyScorer.fit`; `memory_bank` holds the settings of the bank.
        resample, trust_remote_code, device: as for `load_scorer`.
    """

    out: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    resample: bool = False
    trust_remote_code: bool = False
    device: str | None = "cpu"

    kind = "fit"
    unit = "machine"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the scorers, as JSON gives it back."""
        arguments = {name: value for name, value in self.arguments.items() if name != "batch_size"}
        arguments["memory_bank"] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in arguments.get("memory_bank", {}).items()
        }
        return {"model": self.model, "resample": self.resample, **arguments}

    def weight(self, share: Share) -> int:
        """The number of rows that a share becomes: one for its machine."""
        return 1

    def worker(self) -> Worker:
        """Make what does parts of the work; it loads the model once."""
        return FitWorker(self)


class ScoreWorker:
    """Scores the recordings of a part, those of each machine by its own scorer."""

    def __init__(self, work: ScoreWork):
        from .scorers import FleetScorers

        self._work = work
        self._scorers = FleetScorers(work.num_memories, work.device, work.resample, work.trust_remote_code)

    def __call__(self, part: Part) -> PartReport:
        return _reported(part, self._rows, self._work)

    def _rows(self, part: Part) -> list[dict[str, Any]]:
        return [row for share in part.shares for row in self._share_rows(share)]

    def _share_rows(self, share: Share) -> Iterator[dict[str, Any]]:
        work = self._work
        windows = {"window": work.window, "hop": work.hop, "aggregate": work.aggregate}
        try:
            if share.error is not None:
                raise ValueError(share.error)
            results = self._scorers.score(share.scorer, share.files, work.batch_size, windows)
        except (ValueError, OSError) as error:
            # A machine without a scorer must not keep the others from being scored.
            results = [{"error": " ".join(str(error).split())}] * len(share.files)
        for file, result in zip(share.files, results, strict=True):
            yield {"machine": share.machine, "file": file, **_columns(result)}
            for index, window in enumerate(result.get("windows", ())):
                yield {"machine": share.machine, "file": file, "window": index, **window}


class FitWorker:
    """Fits the machines of a part, each into the folder of its scorer."""

    def __init__(self, work: FitWork):
        self._work = work
        self._loaded: AnomalyScorer | None = None
        self._first_weights: list[Path] = []

    def __call__(self, part: Part) -> PartReport:
        return _reported(part, self._rows, self._work)

    def _rows(self, part: Part) -> list[dict[str, Any]]:
        rows = []
        for share in part.shares:
            row: dict[str, Any] = {"machine": share.machine, "scorer": share.scorer}
            try:
                row |= self._fitted(share)
            except (ValueError, OSError) as error:
                row["error"] = f"{share.machine}: {' '.join(str(error).split())}"
            rows.append(row)
        return rows

    def _fitted(self, share: Share) -> dict[str, Any]:
        from ..checkpoints.scorers import load_scorer
        from ..hub.memory_bank import MemoryBank
        from ..quiet_checkpoints import quiet_checkpoints

        if share.error is not None:
            raise ValueError(share.error)
        arguments = dict(self._work.arguments)
        bank = MemoryBank(**arguments.pop("memory_bank", {}))
        work = self._work
        if self._loaded is None:
            self._loaded = load_scorer(work.model, work.device, work.resample, work.trust_remote_code)
        scorer = copy.copy(self._loaded)
        scorer.feature_extractor = copy.copy(scorer.feature_extractor)  # `fit` may change it
        labels: dict[str, Any] = {"groups": share.groups, "domains": share.domains}
        scorer.fit(list(share.files), memory_bank=bank, progress=None, **labels, **arguments)
        with quiet_checkpoints():
            scorer.save_pretrained(share.scorer)
        self._share_weights(Path(share.scorer))
        calibration = scorer.memory_bank.calibration  # type: ignore[union-attr]
        assert calibration is not None
        return {
            "num_normal": len(calibration.self_scores),
            "num_left_out": len(scorer.left_out),
            "threshold": calibration.threshold,
            "false_alarm_rate": calibration.false_alarm_rate,
        }

    def _share_weights(self, folder: Path) -> None:
        """Make the weights of a scorer another name of those of the first one, where the file system has such names."""
        weights = sorted(folder.glob("model*.safetensors"))
        if not self._first_weights:
            self._first_weights = weights
            return
        for file, first in zip(weights, self._first_weights, strict=False):
            link = file.with_name(f".{file.name}.{os.getpid()}.partial")
            try:
                if file.name == first.name and filecmp.cmp(file, first, shallow=False):
                    os.link(first, link)
                    os.replace(link, file)
            except OSError:
                # A copy of its own does as well; only the disk is fuller.
                link.unlink(missing_ok=True)


def _columns(result: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of one recording, of what the scorer says of it."""
    return {name: result.get(name) for name in ("score", "p_value", "is_anomaly", "threshold", "error")}


def _reported(part: Part, rows_of: Any, work: ScoreWork | FitWork) -> PartReport:
    """Do a part and write it; what is no fault of a recording or a scorer is reported instead of rows."""
    from ..one_thread import one_thread

    # The number of threads would decide the last bits of scores; the processors have workers of their own.
    with one_thread() if str(work.device) == "cpu" else nullcontext(), _collected_warnings() as warnings:
        try:
            rows = rows_of(part)
            write_part(work.out, part.name, work.kind, rows, work.settings)
        except Exception as error:
            # The other parts are written, and a new run does this one again.
            return PartReport(part.name, failure=f"{type(error).__name__}: {' '.join(str(error).split())}")
    whole = [row for row in rows if row.get("window") is None]
    errors = [row["error"] for row in whole if row.get("error") is not None]
    return PartReport(
        part.name,
        num_done=len(whole),
        num_failed=len(errors),
        num_anomalous=sum(row.get("is_anomaly") is True for row in whole),
        first_error=errors[0] if errors else None,
        warnings=tuple(dict.fromkeys(warnings)),
    )


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings of this package instead of printing them."""
    collected: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(collected) < MOST_WARNINGS:
                collected.append(record.getMessage())

    collector = Collector(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("na_ssl_hf", "na_ssl_edge")]
    propagated = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(collector)
        logger.propagate = False
    try:
        yield collected
    finally:
        for logger, propagate in zip(loggers, propagated, strict=True):
            logger.removeHandler(collector)
            logger.propagate = propagate
        _forget_warnings()


def _forget_warnings() -> None:
    """Empty the list of warnings that were given once, which would grow for as long as a worker lives."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.warning_once.cache_clear()
