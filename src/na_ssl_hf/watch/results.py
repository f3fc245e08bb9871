"""What watching a machine gives: the result of every window, and the events that begin and end in it.

Whoever wants to know of them is a [`Listener`]: a file of JSON lines, a store, a message broker, a page.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

State = Literal["ok", "watch", "alarm", "sensor fault"]
STATES: tuple[State, ...] = ("ok", "watch", "alarm", "sensor fault")
EventKind = Literal["alarm", "sensor fault", "drift"]
EVENT_KINDS: tuple[EventKind, ...] = ("alarm", "sensor fault", "drift")


@dataclass(frozen=True)
class WatchedMachine:
    """What is known of a machine before its first window.

    Attributes:
        name: the name of the machine, unique among the machines of a monitor.
        scorer: the folder or name of its scorer.
        source: what its sound comes from, as the user wrote it.
        sampling_rate: of the samples that listeners get, in Hz.
        window, hop: seconds of a window, and between the beginnings of windows.
        threshold: the scorer's threshold of one score, for the line in a chart.
        alarm_evidence: the evidence from which on the machine is in alarm.
        started_at: when the stream began, in s since 1970 (UTC).
    """

    name: str
    scorer: str
    source: str
    sampling_rate: int
    window: float
    hop: float
    threshold: float
    alarm_evidence: float
    started_at: float


@dataclass(frozen=True)
class AlarmEvent:
    """An event of a machine, which begins in one window and ends in a later one.

    The event is told once when it begins, `end` being `None`, and once more with the same `id` when it has ended.

    Attributes:
        machine: the name of the machine.
        id: the same for the same machine, kind and beginning, see `event_id`.
        kind: "alarm", "sensor fault" or "drift".
        start, end: in s since 1970 (UTC); `end` is `None` while the event lasts.
        detail: one line for people.
    """

    machine: str
    id: str
    kind: EventKind
    start: float
    end: float | None
    detail: str


@dataclass(frozen=True)
class WindowResult:
    """What is found in one window of the sound of a machine.

    Attributes:
        machine: the name of the machine.
        start, end: of the window, in s since the stream began, by the clock of its samples.
        started_at: when the stream began, in s since 1970 (UTC); `started_at + end` is the time of day.
        score: the anomaly score, higher is more anomalous; `None` where the window could not be scored.
        p_value: the chance that a normal recording scores as high; `None` as the score.
        state: "ok", "watch", "alarm" or "sensor fault" after this window.
        evidence: what the alarm rule has gathered against the machine.
        threshold: the scorer's threshold of one score.
        health: what is wrong with the microphones, one line for people; `None` where nothing is.
        band_scores: `(F,)`, the scores of the frequency bands, from low to high.
        levels_db: the levels of the close and the far channel, in dB of full scale.
        skipped: the windows that were left out before this one, because scoring was more than a window behind.
        events: those that begin or end with this window; `Listener.event` gets each of them, too.
        resume: what the monitor needs to go on after this window, JSON values only.
        learned: what it has learned of the normal windows so far, JSON values only. It is large and changes slowly: a
            window in an hour has it, the others `None`.
    """

    machine: str
    start: float
    end: float
    started_at: float
    score: float | None
    p_value: float | None
    state: State
    evidence: float
    threshold: float
    health: str | None = None
    band_scores: list[float] | None = None
    levels_db: tuple[float, float] | None = None
    skipped: int = 0
    events: tuple[AlarmEvent, ...] = ()
    resume: Mapping[str, Any] = field(default_factory=dict, repr=False)
    learned: Mapping[str, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what a line of JSON says of the window; `time` is its end, in s since the stream began."""
        return {
            "machine": self.machine,
            "time": self.end,
            "unix_time": self.started_at + self.end,
            "score": self.score,
            "p_value": self.p_value,
            "state": self.state,
            "evidence": self.evidence,
            "threshold": self.threshold,
            "health": self.health,
            "skipped": self.skipped,
        }


class Listener(Protocol):
    """Whoever is told what a monitor finds. The methods are called from one thread, in the order of time.

    A listener that raises an `Exception` is told of it in the log and is called again for the next window: a full
    disk or a broker that is down must not end the watch.
    """

    def opened(self, machine: WatchedMachine) -> None:
        """Take note of a machine, once before its first window."""

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Take note of a window.

        Args:
            result: what was found in it.
            samples: `(2, N)` float32, the sound of the window, channel 0 close and 1 far, full scale 1.0. Windows
                overlap: the new sound is that behind the end of the window before. It is not to be changed.
        """

    def event(self, event: AlarmEvent) -> None:
        """Take note of an event that begins or ends, right after the window in which it does."""

    def close(self) -> None:
        """Finish, at the end of the stream or when the monitor is stopped."""


class StateKeeper(Protocol):
    """Whoever keeps `WindowResult.resume` over a restart, most simply a store that keeps the results."""

    def load(self, machine: str) -> Mapping[str, Any] | None:
        """Return the `resume` of the last window that was kept of a machine; `None` where there is none.

        Its key "learned" is the last `WindowResult.learned`, if there was one.
        """


def event_id(machine: str, kind: str, start: float) -> str:
    """Return the identity of an event, 16 hexadecimal digits: the same whenever the same event is told again."""
    digest = hashlib.blake2b(f"{machine}\n{kind}\n{start:.3f}".encode(), digest_size=8)
    return digest.hexdigest()
