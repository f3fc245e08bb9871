"""Machines and windows for the tests of the watch."""

import numpy as np

from na_ssl_hf.watch.results import AlarmEvent, WatchedMachine, WindowResult, event_id

RATE = 8000
STARTED_AT = 1_800_000_000.0


def machine(name: str = "pump") -> WatchedMachine:
    return WatchedMachine(name, "scorer", "-", RATE, 2.0, 1.0, 1.0, 100.0, STARTED_AT)


def event(name: str = "pump", start: float = 5.0, end: float | None = None) -> AlarmEvent:
    begin = STARTED_AT + start
    return AlarmEvent(name, event_id(name, "alarm", begin), "alarm", begin, end and STARTED_AT + end, "too loud")


def window(index: int, name: str = "pump", events: tuple[AlarmEvent, ...] = (), **more) -> WindowResult:
    """Window `index` of 2 s, one a second."""
    fields = {"score": 0.5 + index, "p_value": 0.25, "state": "ok", "evidence": 2.0, "threshold": 1.0}
    fields |= {"band_scores": [0.25, 0.75], "levels_db": (-20.0, -30.0), "resume": {"index": index}} | more
    return WindowResult(name, float(index), index + 2.0, STARTED_AT, events=events, **fields)


def sound(index: int) -> np.ndarray:
    """`(2, 2 * RATE)`: every second has its own level, so that one sees which seconds were kept."""
    seconds = np.repeat(np.arange(index + 1, index + 3) / 256, RATE).astype(np.float32)
    return np.stack([seconds, -seconds])
