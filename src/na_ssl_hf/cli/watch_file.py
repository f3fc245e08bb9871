"""`na-ssl watch --config watch.toml`: several machines in one process, and the check of their file."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import CommandParser
from .scoring import load_scorer

if TYPE_CHECKING:
    from ..hub.pipeline_anomaly_scoring import AnomalyScorer
    from ..watch.configuration import MachineConfiguration, WatchConfiguration
    from ..watch.monitor import Monitor
    from ..watch.outputs import OutputSettings
    from ..watch.page.server import Cancel, Learn
    from ..watch.results import Listener, StateKeeper
    from ..watch.sources import Source

logger = logging.getLogger(__name__)


def add_file_options(parser: CommandParser) -> None:
    """Add `--config` and `--check`."""
    parser.instead_of_positionals = "--config"
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="watch.toml with the machines, instead of SCORER_DIR and SOURCE"
    )
    parser.add_argument(
        "--check", action="store_true", help="check of the file of --config, its scorers and sources, and no watch"
    )


def one_or_file(
    watch_one: Callable[[argparse.Namespace], int],
    output_settings: Callable[[argparse.Namespace], OutputSettings | None],
) -> Callable[[argparse.Namespace], int]:
    """Return what runs `na-ssl watch`: `watch_one` for a scorer and a source, or the file of `--config`.

    `output_settings` makes the settings of the outputs from options, those of `[outputs]` in the file among them.
    """

    def run(options: argparse.Namespace) -> int:
        if options.config is None:
            if options.check:
                raise ValueError("--check must go with --config, whose file it checks")
            return watch_one(options)
        from ..watch.configuration import read_configuration

        if options.scorer is not None:
            raise ValueError(f"--config must go without SCORER_DIR and SOURCE, got {options.scorer}")
        configuration = read_configuration(options.config)
        for key, value in configuration.outputs.items():
            setattr(options, key, value)
        settings = output_settings(options)
        return _check(options, configuration) if options.check else _watch_all(options, configuration, settings)

    return run


def _check(options: argparse.Namespace, configuration: WatchConfiguration) -> int:
    """Load every scorer and find every source, and name every problem."""
    problems = []
    for machine in configuration.machines:
        try:
            _monitor(machine, *_loaded(machine, options, configuration.device))
        except (ValueError, OSError) as error:
            problems.append(f"{machine.settings.name}: {' '.join(str(error).split())}")
    if problems:
        raise ValueError(f"{options.config}: {'; '.join(problems)}")
    print(f"{options.config}: {len(configuration.machines)} machines, nothing is wrong")
    return 0


@contextmanager
def open_listeners(
    state: Path | None, output_settings: OutputSettings | None, cancel: Cancel | None, learn: Learn
) -> Iterator[tuple[list[Listener], StateKeeper | None]]:
    """Open whoever is told of a watch, standard output first, and whoever keeps the evidence.

    Args:
        state: the file that keeps the evidence; `None` leaves that to the store, where there is one.
        output_settings, cancel, learn: as for `open_outputs`.
    """
    from ..watch.json_lines import JsonLines
    from ..watch.outputs import open_outputs
    from ..watch.state_file import StateFile

    listeners: list[Listener] = [JsonLines()]
    keeper: StateKeeper | None = None
    with ExitStack() as opened:
        if output_settings is not None:
            outputs = opened.enter_context(open_outputs(output_settings, cancel, learn))
            listeners += outputs.listeners
            keeper = outputs.store
            if outputs.address is not None:
                print(f"na-ssl watch: the page is at {outputs.address}", file=sys.stderr)
        if state is not None:
            keeper = StateFile(state)
            listeners.append(keeper)
        yield listeners, keeper


def leave_standard_output() -> None:
    """Turn away from standard output, whose reader is gone: Python would complain of it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _watch_all(
    options: argparse.Namespace, configuration: WatchConfiguration, output_settings: OutputSettings | None
) -> int:
    """Watch every machine in a thread of its own, one window at a time; one that fails does not end the others."""
    from ..watch.outputs import cancelled_channel

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    loaded = [_loaded(machine, options, configuration.device) for machine in configuration.machines]
    names = [machine.settings.name for machine in configuration.machines]
    cancels = {name: cancelled_channel(scorer) for name, (scorer, _) in zip(names, loaded, strict=True)}
    monitors: list[Monitor] = []

    def cancel(machine: str, sounds: Any, rate: int) -> Any:
        own = cancels.get(machine)
        return sounds[0] if own is None else own(machine, sounds, rate)

    def learn(machine: str, sound: Path) -> None:
        monitors[names.index(machine)].learn(sound)

    with ExitStack() as opened:
        any_cancels = cancel if any(cancels.values()) else None
        listeners, keeper = opened.enter_context(
            open_listeners(configuration.state, output_settings, any_cancels, learn)
        )
        shared = _ClosedOnce(listeners)
        opened.callback(shared.close_all)
        turn = threading.Lock()
        for machine, parts in zip(configuration.machines, loaded, strict=True):
            monitors.append(_monitor(machine, *parts, listeners=shared.listeners, keeper=keeper, turn=turn))
        failures = _run_all(monitors, names)
    if failures:
        raise OSError("; ".join(failures))
    print("na-ssl watch: the sound of all machines has ended", file=sys.stderr)
    return 0


def _run_all(monitors: Sequence[Monitor], names: Sequence[str]) -> list[str]:
    """Run monitors until all have ended, or until a signal or a reader that is gone ends them; returns failures."""
    failures: list[str] = []
    is_unread = threading.Event()

    def stop(*_: Any) -> None:
        for monitor in monitors:
            monitor.stop()

    def watch(monitor: Monitor, name: str) -> None:
        try:
            monitor.run()
        except BrokenPipeError:
            is_unread.set()
            stop()
        except Exception as error:
            logger.error(f"{name}: the watch has ended: {error}")
            failures.append(f"{name}: {error}")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    threads = [
        threading.Thread(target=watch, args=(monitor, name)) for monitor, name in zip(monitors, names, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if is_unread.is_set():
        leave_standard_output()
    return failures


class _ClosedOnce:
    """Listeners that several monitors share, of which the first to end must not close them for the others."""

    def __init__(self, listeners: Iterable[Any]):
        self._all = list(listeners)
        self.listeners = [_NotClosed(listener) for listener in self._all]

    def close_all(self) -> None:
        """Close them, when every monitor has ended."""
        for listener in self._all:
            listener.close()


class _NotClosed:
    """A listener but for `close`."""

    def __init__(self, listener: Any):
        self.opened, self.window, self.event = listener.opened, listener.window, listener.event

    def close(self) -> None:
        """Leave the listener open for the others."""


def _loaded(
    machine: MachineConfiguration, options: argparse.Namespace, device: str | None
) -> tuple[AnomalyScorer, Source]:
    from ..watch.sources import open_source

    source = open_source(machine.source, machine.rate, machine.sample_format, machine.speed)
    of_machine = argparse.Namespace(
        device=options.device or device, trust_remote_code=options.trust_remote_code, resample=True
    )
    return load_scorer(machine.scorer, of_machine), source


def _monitor(machine: MachineConfiguration, scorer: AnomalyScorer, source: Source, **shared: Any) -> Monitor:
    from ..watch.monitor import Monitor

    return Monitor(scorer, source, machine.settings, scorer_name=machine.scorer, **shared)
