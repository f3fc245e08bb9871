"""The watch over one machine: windows of its sound are scored, judged, and told to whoever listens."""

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch

from ..hub.input_level import NORMALISED_DB, SILENCE_DB, levels_db
from ..hub.memory_bank import MEMORY_BANK_FILE, MemoryBank
from ..hub.pipeline_anomaly_scoring import AnomalyScorer
from ..hub.threshold import Calibration
from .alarm_rule import DAY, AlarmRule, duration_text, longest_promise
from .dependence import Dependence
from .drift import DriftWatch
from .living_memory import learn_event
from .results import AlarmEvent, EventKind, Listener, StateKeeper, WatchedMachine, WindowResult, event_id
from .sensor_health import SensorHealth
from .sources import Block, Source
from .windows import Reader, Window, WindowCutter

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = 10.0
DEFAULT_PROMISE = 30 * DAY
HOPS_PER_WINDOW = 4
# Recordings whose lengths differ by less than this factor are of one length.
SAME_LENGTH = 1.01
# What the rule has learned is kept so often, in s of sound: it is large, and changes slowly.
LEARNED_SECONDS = 3600.0
# Of silence, whose level is minus infinity, this is told, in dB of full scale; JSON has no infinity.
LEAST_DB = -200.0


@dataclass
class Counts:
    """What a monitor has met so far."""

    windows: int = 0
    skipped: int = 0
    gaps: int = 0
    alarms: int = 0
    faults: int = 0


@dataclass
class MonitorSettings:
    """What a user may choose for a machine; times in s.

    Attributes:
        name: of the machine.
        window: length of a window; `None` for that of the recordings that the scorer was fitted on, or 10 s where they
            differ.
        hop: from the start of a window to that of the next; `None` for a quarter of the window.
        false_alarms_per: the promised mean time between false alarms; `None` for 30 days, or what so few normal
            recordings allow.
        debounce, shortest_alarm, independent_after: see [`AlarmRule`].
    """

    name: str = "machine"
    window: float | None = None
    hop: float | None = None
    false_alarms_per: float | None = None
    debounce: int = 1
    shortest_alarm: float = 60.0
    independent_after: float = 0.0


class Monitor:
    """Watches one machine until its source ends or `stop` is called.

    Args:
        scorer: a fitted scorer.
        source: of the sound.
        settings: what may be chosen.
        listeners: whoever is told of windows and events, in this order.
        keeper: whoever kept the evidence of an earlier run; `None` to begin anew.
        turn: a lock that monitors of several machines share, so that one window is scored at a time, and listeners are
            called by one monitor at a time.
        scorer_name: the folder of the scorer, for `WatchedMachine`.

    Attributes:
        counts: what was met so far.

    Raises:
        ValueError: the scorer is not fitted, has too few normal recordings for the promise, or a setting is wrong.
    """

    def __init__(
        self,
        scorer: AnomalyScorer,
        source: Source,
        settings: MonitorSettings | None = None,
        listeners: Iterable[Listener] = (),
        keeper: StateKeeper | None = None,
        turn: AbstractContextManager[Any] | None = None,
        scorer_name: str = "",
    ):
        self._settings = settings or MonitorSettings()
        self._scorer, self._source, self._scorer_name = scorer, source, scorer_name
        self._threshold = scorer.threshold  # also makes sure that the memory belongs to the model
        calibration = calibration_of(scorer)
        extractor = scorer.feature_extractor
        length = self._settings.window or fitted_window(calibration, extractor.sampling_rate)
        hop = self._settings.hop or length / HOPS_PER_WINDOW
        self._cutter = WindowCutter(extractor.sampling_rate, length, hop, extractor.front_end.min_samples)
        # Windows of a lower rate than the model's are resampled by the scorer, which then knows which bands they hold.
        extractor.resample = True
        self._length, self._hop = length, hop
        self._rule = alarm_rule_for(calibration, self._settings, length, hop)
        if calibration.microphones is None:
            logger.warning(
                f"{self._settings.name}: the scorer is of an earlier version and knows nothing of its microphones: "
                "only silence and clipping are found. Fit it again for the rest."
            )
        self._health = SensorHealth(calibration.microphones, extractor.sampling_rate)
        self._level = calibration.level
        self._drift = DriftWatch()
        self._dependence = Dependence(length, self._settings.independent_after)
        self._dependent_for = 0.0
        self._num_judged = 0
        self._memory_written: int | None = None
        self._reader = Reader(source)
        self._listeners = list(listeners)
        self._turn = turn or nullcontext()
        self._open_events: dict[EventKind, AlarmEvent] = {}
        self._started_at = time.time()
        self._is_opened = False
        self._skipped = 0
        self._learned_until = 0.0
        self.counts = Counts()
        if keeper is not None:
            self._restore(keeper)

    def run(self) -> Counts:
        """Watch until the source ends or `stop` is called; then the listeners are closed.

        Raises:
            ValueError, OSError: of the source, when it begins or where it cannot go on.
        """
        self._started_at = time.time()
        try:
            for block in self._reader.blocks():
                if block.trouble is not None:
                    self._lose_source(block)
                for window in self._cutter.push(block):
                    self._take(window)
            for window in self._cutter.finish():
                self._take(window)
        finally:
            self._reader.stop()
            with self._turn:
                self._tell("close")
        return self.counts

    def learn(self, sound: Path) -> None:
        """Remember the sound of an event as normal, as an operator says; may be called from another thread.

        Raises:
            ValueError, OSError: as `learn_event`.
        """
        with self._turn:
            learn_event(self._scorer, Path(self._scorer_name), sound, self._length)

    def stop(self) -> None:
        """End the watch after the window that is being scored; may be called from another thread or a signal."""
        self._reader.stop()

    # One window

    def _take(self, window: Window) -> None:
        self.counts.gaps = self._cutter.num_gaps
        # Whoever is late for live sound must not become later and later.
        if self._source.is_live and self._reader.backlog > self._length:
            self._skipped += 1
            self.counts.skipped += 1
            return
        with self._turn:
            if window.started_at is not None:
                self._started_at = window.started_at
            self._open()
            result = self._judged(window)
            self._skipped = 0
            self.counts.windows += 1
            self._tell("window", result, window.samples)
            for event in result.events:
                self._tell("event", event)

    def _judged(self, window: Window) -> WindowResult:
        """Score a window and decide what it means."""
        self._take_new_memory()
        close_db, far_db = levels_db(torch.from_numpy(window.samples)[None])[0].clamp_min(LEAST_DB).tolist()
        now = self._started_at + window.end
        health = self._health.step(self._at_model_rate(window.samples), self._level_gain(close_db))
        events: list[AlarmEvent] = []
        if health.fault is None:
            events += self._end_event("sensor fault", now)
        elif begun := self._begin_event("sensor fault", now, health.fault):
            self.counts.faults += 1
            events += begun
        scored = self._scored(window)
        # What a faulty microphone hears is neither evidence against the machine nor normal.
        if scored is not None and not health.is_suspected and health.fault is None:
            decision = self._rule.step(scored["score"], now)
            if decision.change == "begin":
                self.counts.alarms += 1
                detail = (
                    f"The sound has been unlike that of the normal recordings; the last score is {scored['score']:.4g}."
                )
                events += self._begin_event("alarm", now, detail)
            elif decision.change == "end":
                events += self._end_event("alarm", now)
            events += self._drifted(scored["p_value"], scored["score"], now)
        return WindowResult(
            machine=self._settings.name,
            start=window.start,
            end=window.end,
            started_at=self._started_at,
            score=scored["score"] if scored else None,
            p_value=scored["p_value"] if scored else None,
            state=self._rule.state if health.fault is None else "sensor fault",
            evidence=self._rule.evidence,
            threshold=self._threshold,
            band_scores=scored["band_scores"] if scored else None,
            health=health.fault,
            levels_db=(close_db, far_db),
            skipped=self._skipped,
            events=tuple(events),
            resume=self._resume(),
            learned=self._learned(window.end),
        )

    def _drifted(self, p_value: float, score: float, now: float) -> list[AlarmEvent]:
        """Events of a slow drift: windows that overlap would count the same sound several times."""
        self._num_judged += 1
        if self._rule.state == "alarm" or self._num_judged % max(1, round(self._length / self._hop)):
            return []
        self._warn_of_dependence(score)
        line = self._drift.step(p_value)
        # A second change is another event: what it says of the mean replaces the first.
        return [] if line is None else [*self._end_event("drift", now), *self._begin_event("drift", now, line)]

    def _warn_of_dependence(self, score: float) -> None:
        """Tell that windows depend on each other beyond their overlap, for which the promise does not hold."""
        found = self._dependence.step(score)
        # The first windows tell of short times only.
        if found is None or found[1] < 2 * self._dependent_for:
            return
        correlation, self._dependent_for = found
        logger.warning(
            f"{self._settings.name}: windows depend on each other (rank correlation {correlation:.2f}), so that "
            "false alarms may come more often than promised: ask for --independent-after "
            f"{duration_text(self._dependent_for)} or more."
        )

    def _take_new_memory(self) -> None:
        """Go on with the memory that `na-ssl bank` has written meanwhile, and with the evidence as it is."""
        path = Path(self._scorer_name) / MEMORY_BANK_FILE
        try:
            written = path.stat().st_mtime_ns
        except OSError:
            return
        if self._memory_written in (None, written):
            self._memory_written = written
            return
        self._memory_written = written
        old = self._scorer.memory_bank
        try:
            self._scorer.memory_bank = MemoryBank.from_file(str(path))
            threshold = self._scorer.threshold
            rule = alarm_rule_for(calibration_of(self._scorer), self._settings, self._length, self._hop)
            rule.restore(self._rule.resume())
        except (OSError, ValueError) as error:
            # Scores of the new memory would be ranked among the normals of the old one.
            self._scorer.memory_bank = old
            logger.error(f"{self._settings.name}: the changed memory cannot be used, the old one stays: {error}")
            return
        self._threshold, self._rule = threshold, rule
        self._drift = DriftWatch()
        logger.info(f"{self._settings.name}: the memory has changed, the threshold is {self._threshold:.6g} now.")

    def _level_gain(self, close_db: float) -> float:
        """The factor between the sound and what the model heard of the normal recordings."""
        is_normalised = self._level == "normalised" and close_db > SILENCE_DB
        return 10 ** ((NORMALISED_DB - close_db) / 20) if is_normalised else 1.0

    def _at_model_rate(self, samples: np.ndarray) -> np.ndarray:
        """The samples `(2, N)` at the rate at which the normal recordings were learned."""
        rate = self._scorer.feature_extractor.sampling_rate
        return samples if rate == self._cutter.rate else soxr.resample(samples.T, self._cutter.rate, rate).T

    def _scored(self, window: Window) -> dict[str, Any] | None:
        """The scorer's result of a window, which is that of the same samples in a file; `None` where it has none."""
        try:
            return self._scorer({"array": window.samples, "sampling_rate": self._cutter.rate})
        except ValueError as error:
            logger.warning(f"{self._settings.name}: a window could not be scored: {' '.join(str(error).split())}")
            return None

    # Events

    def _begin_event(self, kind: EventKind, at: float, detail: str) -> list[AlarmEvent]:
        if kind in self._open_events:
            return []
        event = AlarmEvent(self._settings.name, event_id(self._settings.name, kind, at), kind, at, None, detail)
        self._open_events[kind] = event
        return [event]

    def _end_event(self, kind: EventKind, at: float) -> list[AlarmEvent]:
        event = self._open_events.pop(kind, None)
        return [] if event is None else [replace(event, end=at)]

    def _lose_source(self, block: Block) -> None:
        """Tell that no sound comes; there is no window that could."""
        with self._turn:
            self._open()
            for event in self._begin_event("sensor fault", time.time(), block.trouble or ""):
                self.counts.faults += 1
                self._tell("event", event)

    # Listeners

    def _open(self) -> None:
        if self._is_opened:
            return
        self._is_opened = True
        machine = WatchedMachine(
            name=self._settings.name,
            scorer=self._scorer_name,
            source=self._source.name,
            sampling_rate=self._cutter.rate or self._scorer.feature_extractor.sampling_rate,
            window=self._length,
            hop=self._hop,
            threshold=self._threshold,
            alarm_evidence=self._rule.alarm_evidence,
            started_at=self._started_at,
        )
        self._tell("opened", machine)

    def _tell(self, method: str, *what: Any) -> None:
        for listener in self._listeners:
            try:
                getattr(listener, method)(*what)
            except BrokenPipeError:
                raise  # whoever read our output is gone, and with it the reason to go on
            except Exception as error:
                logger.error(
                    f"{type(listener).__name__} failed to take note of a {method}: {type(error).__name__}: {error}"
                )

    # What a later run goes on from

    def _resume(self) -> dict[str, Any]:
        return {
            "rule": self._rule.resume(),
            "events": [asdict(event) for event in self._open_events.values()],
        }

    def _learned(self, end: float) -> dict[str, Any] | None:
        """What the rule has learned, once in `LEARNED_SECONDS`; during an alarm what was kept before is as good."""
        if end - self._learned_until < LEARNED_SECONDS or self._rule.state == "alarm":
            return None
        self._learned_until = end
        return self._rule.learned()

    def _restore(self, keeper: StateKeeper) -> None:
        kept = keeper.load(self._settings.name)
        if kept is None:
            return
        try:
            self._rule.restore(kept["rule"])
            if "learned" in kept:
                self._rule.restore_learned(kept["learned"])
            events = [AlarmEvent(**event) for event in kept["events"]]
        except (KeyError, TypeError, ValueError) as error:
            logger.warning(
                f"{self._settings.name}: what was kept of the last run cannot be used, it begins anew: {error}"
            )
            return
        self._open_events = {event.kind: event for event in events}


def calibration_of(scorer: AnomalyScorer) -> Calibration:
    """Return what a fitted scorer learned from its normal recordings.

    Raises:
        ValueError: the scorer is not fitted.
    """
    bank = scorer.memory_bank
    if bank is None or bank.calibration is None:
        raise ValueError("`scorer` must be fitted with normal recordings, got one that is not.")
    return bank.calibration


def fitted_window(calibration: Calibration, model_rate: int) -> float:
    """Return the length of window for which the normal scores hold, in s: that of the normal recordings, or 10 s."""
    if calibration.windows is not None:
        return float(calibration.windows["length"])
    usual = calibration.microphones
    if usual is not None and usual.samples[1] <= SAME_LENGTH * usual.samples[0]:
        return usual.samples[0] / model_rate
    return DEFAULT_WINDOW


def alarm_rule_for(calibration: Calibration, settings: MonitorSettings, length: float, hop: float) -> AlarmRule:
    """Return the rule with the promise that was asked for, or the longest up to 30 days that the normals allow.

    Raises:
        ValueError: as [`AlarmRule`].
    """
    scores, promise = calibration.self_scores, settings.false_alarms_per
    rule: Mapping[str, Any] = {
        "window": length,
        "hop": hop,
        "debounce": settings.debounce,
        "shortest_alarm": settings.shortest_alarm,
        "independent_after": settings.independent_after,
    }
    if promise is not None:
        return AlarmRule(scores, promise, **rule)
    possible = longest_promise(len(scores), length, hop)
    if possible is None:
        logger.warning(
            f"{settings.name}: {len(scores)} normal recordings are too few to promise a time between false alarms; "
            "fit with more."
        )
        return AlarmRule(scores, DEFAULT_PROMISE, **rule, is_promise=False)
    if possible < DEFAULT_PROMISE:
        logger.warning(
            f"{settings.name}: {len(scores)} normal recordings allow a mean time between false alarms of "
            f"{duration_text(possible)}, not of {duration_text(DEFAULT_PROMISE)}."
        )
    return AlarmRule(scores, min(possible, DEFAULT_PROMISE), **rule)
