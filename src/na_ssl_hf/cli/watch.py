"""`na-ssl watch`: the sound of a machine, scored live, with alarms that keep a promised distance."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from .command_line import add_command
from .scoring import load_scorer
from .watch_file import add_file_options, one_or_file

# The choices are repeated here, because the module that defines them takes seconds to import.
RAW_FORMATS = ("s16le", "s24le", "s32le", "f32le", "f64le")


def add_commands(commands: Any) -> None:
    """Add `na-ssl watch`."""
    parser = add_command(
        commands,
        "watch",
        one_or_file(_watch),
        "score the sound of a machine live; a line of JSON for every window",
        "  na-ssl watch scorer device:USB --false-alarms-per 30d\n"
        "  na-ssl watch scorer - --rate 48000 --format s16le\n"
        "  na-ssl watch --config watch.toml",
    )
    add_file_options(parser)
    parser.add_argument("scorer", nargs="?", metavar="SCORER_DIR", help="directory that `na-ssl fit` wrote")
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="- for standard input (WAV, or raw with --rate and --format), a sound file, a folder into which recorders "
        "drop files, device[:NAME] for a sound card, or an address for PyAV",
    )
    parser.add_argument("--rate", type=int, metavar="HZ", help="sampling rate of raw samples, or for a sound card")
    parser.add_argument("--format", choices=RAW_FORMATS, help="format of raw samples on standard input")
    parser.add_argument(
        "--speed", type=float, default=0.0, metavar="X", help="speed of a sound file; 1 is real (default: the most)"
    )
    parser.add_argument("--name", default="machine", metavar="NAME", help="name of the machine (default: machine)")
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="seconds of a window (default: as long as the recordings of the fit, 10 where they differ)",
    )
    parser.add_argument("--hop", type=float, metavar="S", help="seconds between windows (default: a quarter of one)")
    parser.add_argument(
        "--false-alarms-per",
        metavar="TIME",
        help="promised mean time between false alarms, such as 30d or 12h (default: 30d, or what the normals allow)",
    )
    parser.add_argument(
        "--shortest-alarm", type=float, default=60.0, metavar="S", help="least seconds of an alarm (default: 60)"
    )
    parser.add_argument(
        "--debounce",
        type=int,
        default=1,
        metavar="N",
        help="number of windows for which the evidence must be that of an alarm before it begins (default: 1)",
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="file that keeps the evidence, so that a restart goes on from it"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="permission to run the code that a checkpoint brings along; no code of a checkpoint runs without it",
    )
    parser.add_argument("--device", help="device of the model: cpu, cuda, ... (default: the best there is)")


def _watch(options: argparse.Namespace) -> int:
    from ..watch.alarm_rule import parse_duration
    from ..watch.json_lines import JsonLines
    from ..watch.monitor import Monitor, MonitorSettings
    from ..watch.results import Listener
    from ..watch.sources import open_source
    from ..watch.state_file import StateFile

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    promise = None
    if options.false_alarms_per is not None:
        promise = parse_duration(options.false_alarms_per, "--false-alarms-per")
    settings = MonitorSettings(
        name=options.name,
        window=options.window,
        hop=options.hop,
        false_alarms_per=promise,
        debounce=options.debounce,
        shortest_alarm=options.shortest_alarm,
    )
    source = open_source(options.source, options.rate, options.format, options.speed)
    options.resample = True
    scorer = load_scorer(options.scorer, options)
    listeners: list[Listener] = [JsonLines()]
    keeper = None
    if options.state is not None:
        keeper = StateFile(options.state)
        listeners.append(keeper)
    monitor = Monitor(scorer, source, settings, listeners, keeper, scorer_name=options.scorer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: monitor.stop())
    try:
        counts = monitor.run()
    except BrokenPipeError:
        # Python would complain of standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    told = f"{counts.windows} windows, {counts.alarms} alarms, {counts.skipped} skipped, {counts.gaps} gaps"
    print(f"na-ssl watch: the sound has ended: {told}", file=sys.stderr)
    return 0
