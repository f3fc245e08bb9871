"""`na-ssl watch`: the sound of a machine, scored live, with alarms that keep a promised distance."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .command_line import add_command, add_device_option, add_trust_option
from .scoring import load_scorer
from .watch_file import add_file_options, leave_standard_output, one_or_file, open_listeners

if TYPE_CHECKING:
    from ..watch.outputs import OutputSettings

# The choices are repeated here, because the module that defines them takes seconds to import.
RAW_FORMATS = ("s16le", "s24le", "s32le", "f32le", "f64le")


def add_commands(commands: Any) -> None:
    """Add `na-ssl watch`."""
    parser = add_command(
        commands,
        "watch",
        one_or_file(_watch, _output_settings),
        "score the sound of a machine live; a line of JSON for every window",
        "  na-ssl watch scorer device:USB --false-alarms-per 30d\n"
        "  na-ssl watch scorer - --rate 48000 --format s16le\n"
        "  na-ssl watch --config watch.toml",
    )
    add_file_options(parser)
    parser.add_argument("scorer", metavar="SCORER_DIR", help="directory that `na-ssl fit` wrote")
    parser.add_argument(
        "source",
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
        "--independent-after",
        metavar="TIME",
        help="time, such as 15m, after which windows do not depend on each other (default: when they do not overlap)",
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
    _add_output_options(parser)
    add_trust_option(parser)
    add_device_option(parser)


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add who is told of the watch beside standard output."""
    parser.add_argument(
        "--store",
        type=Path,
        metavar="FOLDER",
        help="folder that keeps windows, events, their sound, and what a restart needs",
    )
    parser.add_argument(
        "--web", metavar="HOST:PORT", help="serve the page of the store there, such as 127.0.0.1:8080; /metrics too"
    )
    parser.add_argument(
        "--web-token-file", type=Path, metavar="FILE", help="file with the token that visitors of the page must know"
    )
    parser.add_argument(
        "--webhook",
        action="append",
        default=[],
        metavar="URL",
        help="address that gets events as JSON; repeatable",
    )
    parser.add_argument("--mqtt", metavar="HOST[:PORT]", help="broker that gets states and events")
    parser.add_argument("--mqtt-tls", action="store_true", help="encrypt the connection to the broker")
    parser.add_argument("--mqtt-user", metavar="NAME", help="name for the broker")
    parser.add_argument("--mqtt-password-file", type=Path, metavar="FILE", help="file with the password for the broker")


def _output_settings(options: argparse.Namespace) -> OutputSettings | None:
    """Return what the options say of outputs, None where they want none."""
    from ..watch.messages.mqtt import Broker
    from ..watch.messages.secret import read_secret
    from ..watch.messages.webhook import Webhook
    from ..watch.outputs import OutputSettings

    for option in ("web", "webhook", "mqtt"):
        if getattr(options, option) and options.store is None:
            raise ValueError(f"--{option} must go with --store FOLDER, which keeps what is shown and sent")
    if options.store is None:
        return None
    broker = None
    if options.mqtt is not None:
        host, _, port = options.mqtt.partition(":")
        if port and not (port.isascii() and port.isdigit()):
            raise ValueError(f"--mqtt must be HOST or HOST:PORT, got {options.mqtt!r}")
        broker = Broker(
            host,
            int(port) if port else None,
            tls=options.mqtt_tls,
            username=options.mqtt_user,
            password=read_secret("the password for the broker", file=options.mqtt_password_file),
        )
    return OutputSettings(
        options.store,
        web=options.web,
        web_token=read_secret("the token of the page", file=options.web_token_file),
        broker=broker,
        webhooks=[Webhook(url) for url in options.webhook],
    )


def _watch(options: argparse.Namespace) -> int:
    from ..watch.alarm_rule import parse_duration
    from ..watch.monitor import Monitor, MonitorSettings
    from ..watch.outputs import cancelled_channel
    from ..watch.sources import open_source

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    promise = None
    if options.false_alarms_per is not None:
        promise = parse_duration(options.false_alarms_per, "--false-alarms-per")
    apart = 0.0
    if options.independent_after is not None:
        apart = parse_duration(options.independent_after, "--independent-after")
    settings = MonitorSettings(
        name=options.name,
        window=options.window,
        hop=options.hop,
        false_alarms_per=promise,
        debounce=options.debounce,
        shortest_alarm=options.shortest_alarm,
        independent_after=apart,
    )
    output_settings = _output_settings(options)
    source = open_source(options.source, options.rate, options.format, options.speed)
    options.resample = True
    scorer = load_scorer(options.scorer, options)
    cancel = None if output_settings is None else cancelled_channel(scorer)
    with open_listeners(options.state, output_settings, cancel, lambda _, sound: monitor.learn(sound)) as opened:
        listeners, keeper = opened
        turn = threading.Lock()
        monitor = Monitor(scorer, source, settings, listeners, keeper, turn, scorer_name=options.scorer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: monitor.stop())
        try:
            counts = monitor.run()
        except BrokenPipeError:
            leave_standard_output()
            return 0
    told = f"{counts.windows} windows, {counts.alarms} alarms, {counts.skipped} skipped, {counts.gaps} gaps"
    print(f"na-ssl watch: the sound has ended: {told}", file=sys.stderr)
    return 0
