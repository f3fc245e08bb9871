"""Offer the newest window of each machine to Prometheus."""

import numpy as np

from ..results import STATES, AlarmEvent, WatchedMachine, WindowResult


class Prometheus:
    """A listener whose figures are read over HTTP at `/metrics`.

    Metrics, each with the label `machine`: `na_ssl_score`, `na_ssl_p_value`, `na_ssl_evidence`, `na_ssl_threshold`,
    `na_ssl_state` (1 for the state in the label `state`, 0 for the others), `na_ssl_level_db` (label `microphone`),
    `na_ssl_windows_total`, `na_ssl_skipped_windows_total`, `na_ssl_events_total` (label `kind`) and
    `na_ssl_last_window_timestamp_seconds`, which tells a monitor that has stopped.

    Raises:
        ValueError: prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge
        except ImportError as error:
            raise ValueError("Prometheus needs prometheus-client: pip install 'na-ssl-hf[watch]'") from error
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"na_ssl_{name}", text, ["machine", *labels], registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"na_ssl_{name}", text, ["machine", *labels], registry=self.registry)

        self._score = gauge("score", "Anomaly score of the newest window; higher is more anomalous")
        self._p_value = gauge("p_value", "Chance that a normal window scores as high")
        self._evidence = gauge("evidence", "What the alarm rule has gathered")
        self._threshold = gauge("threshold", "Threshold of one score")
        self._state = gauge("state", "1 for the state that the machine is in", "state")
        self._level = gauge("level_db", "Level in dB of full scale", "microphone")
        self._time = gauge("last_window_timestamp_seconds", "End of the newest window")
        self._windows = counter("windows", "Windows so far")
        self._skipped = counter("skipped_windows", "Windows that were left out because scoring was too slow")
        self._events = counter("events", "Events that began", "kind")

    def opened(self, machine: WatchedMachine) -> None:
        """Offer the figures of a machine that are known before its first window."""
        self._threshold.labels(machine.name).set(machine.threshold)
        self._windows.labels(machine.name)
        self._skipped.labels(machine.name)

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Offer a window in place of the one before."""
        name = result.machine
        self._score.labels(name).set(np.nan if result.score is None else result.score)
        self._p_value.labels(name).set(np.nan if result.p_value is None else result.p_value)
        self._evidence.labels(name).set(result.evidence)
        self._threshold.labels(name).set(result.threshold)
        self._time.labels(name).set(result.started_at + result.end)
        for state in STATES:
            self._state.labels(name, state).set(result.state == state)
        for microphone, level in zip(("close", "far"), result.levels_db or (), strict=False):
            self._level.labels(name, microphone).set(level)
        self._windows.labels(name).inc()
        self._skipped.labels(name).inc(result.skipped)

    def event(self, event: AlarmEvent) -> None:
        """Count an event that begins."""
        if event.end is None:
            self._events.labels(event.machine, event.kind).inc()

    def close(self) -> None:
        """Do nothing: the page that offers the figures is closed by itself."""

    def text(self) -> bytes:
        """Return the figures in the text format of Prometheus."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
