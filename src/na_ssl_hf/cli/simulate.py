"""`na-ssl simulate`: two-channel recordings, data sets and room pools from simulated rooms."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .command_line import CommandParser, add_command, add_group

_SOUND_OPTIONS = ("--targets", "--noises")


def add_commands(commands: Any) -> None:
    """Add `na-ssl simulate` with its commands `recordings`, `synthetic`, `dcase` and `rooms`."""
    group, layouts = add_group(
        commands,
        "simulate",
        "put sounds through simulated rooms with two microphones (the default command is recordings where --targets or "
        "--noises are given, else synthetic)",
        "  na-ssl simulate --targets machine_sounds --noises backgrounds --out rooms --snr -5 0 5\n"
        "  na-ssl simulate --out dataset\n"
        "  na-ssl simulate dcase --out benchmark --preset small --seed 0 --coherence 0.5\n"
        "  na-ssl simulate rooms --num 10000 --workers 8 --out rooms.safetensors",
    )
    group.default_command = _recordings_or_synthetic
    _add_recordings(layouts)
    _add_synthetic(layouts)
    _add_dcase(layouts)
    _add_rooms(layouts)


def _recordings_or_synthetic(arguments: Sequence[str]) -> str:
    """Return the command that is meant when `na-ssl simulate` is followed by options alone."""
    names = [argument.split("=")[0] for argument in arguments]
    # argparse accepts every beginning of an option's name.
    given = [name for name in names if len(name) > 2 and any(option.startswith(name) for option in _SOUND_OPTIONS)]
    return "recordings" if given else "synthetic"


def _add_recordings(layouts: Any) -> None:
    parser = add_command(
        layouts,
        "recordings",
        _recordings,
        "put sounds of a machine and backgrounds into simulated rooms",
        "  na-ssl simulate recordings --targets machine_sounds --noises backgrounds --out rooms --snr -5 0 5",
    )
    parser.add_argument(
        "--targets", type=Path, metavar="DIR", help="folder of sound files of the machine; sub-folders are kept"
    )
    parser.add_argument("--noises", type=Path, metavar="DIR", help="folder of sound files of backgrounds")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new recordings")
    parser.add_argument(
        "--snr", type=float, nargs="+", default=(-5.0, 0.0, 5.0), help="signal-to-noise ratios in dB (default: -5 0 5)"
    )
    parser.add_argument("--rooms", type=int, default=20, help="number of simulated rooms (default: 20)")
    parser.add_argument("--level-match", action="store_true", help="one common level (RMS) for all targets")
    _add_noise_coherence_option(parser)
    _add_seed_option(parser)


def _recordings(options: argparse.Namespace) -> None:
    from ..simulation import simulate_recordings

    # Checked here and not by argparse, because the command may have been chosen by one of the two options.
    if options.targets is None or options.noises is None:
        given = [name for name, value in zip(_SOUND_OPTIONS, (options.targets, options.noises), strict=True) if value]
        raise ValueError(f"--targets and --noises go together, got {given[0] + ' alone' if given else 'none of them'}.")
    simulate_recordings(
        options.targets,
        options.noises,
        options.out,
        snr_db=options.snr,
        num_rooms=options.rooms,
        seed=options.seed,
        level_match=options.level_match,
        noise_coherence=options.noise_coherence,
    )
    print(f"recordings written to {options.out}")


def _add_synthetic(layouts: Any) -> None:
    parser = add_command(
        layouts,
        "synthetic",
        _synthetic,
        "make a small data set of synthetic machines in simulated rooms",
        "  na-ssl simulate synthetic --out dataset",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new data set")
    _add_noise_coherence_option(parser)
    _add_seed_option(parser)


def _synthetic(options: argparse.Namespace) -> None:
    from ..simulation import write_two_channel_dataset

    write_two_channel_dataset(options.out, seed=options.seed, noise_coherence=options.noise_coherence)
    print(f"recordings written to {options.out}")


def _add_dcase(layouts: Any) -> None:
    parser = add_command(
        layouts,
        "dcase",
        _dcase,
        "make a benchmark of synthetic machines like DCASE 2026 Task 2",
        "  na-ssl simulate dcase --out benchmark --preset small --seed 0\n"
        "  na-ssl simulate dcase --out drifting --coherence 0.5 --machine-level -3 --drift microphone_moved gain",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new benchmark")
    parser.add_argument(
        "--preset",
        choices=("smoke", "small", "full"),
        default="small",
        help="size of the benchmark: a few clips, 56 + 48 of 6 s a machine (moving: 109 + 100), or 1000 + 200 of 10 s "
        "(default: small)",
    )
    parser.add_argument(
        "--snr",
        type=_snr,
        nargs="+",
        default=[-10.0, 10.0],
        metavar="DB",
        help="signal-to-noise ratio in dB, one or both ends of a range, or challenge: fan, bearing, gearbox and valve "
        "have their own, at which they behave most like those of the challenge (default: -10 10)",
    )
    parser.add_argument(
        "--installation",
        choices=("fixed", "moving"),
        default="fixed",
        help="one room and placement a machine, or another room for every clip (default: fixed)",
    )
    parser.add_argument(
        "--machines", nargs="+", metavar="NAME", help="machines (default: all ten; moving: the first five)"
    )
    parser.add_argument(
        "--noise-coherence",
        "--coherence",
        type=float,
        help="share of noise power common to all corners, 0 (independent) to 1 (the same noise) (default: drawn for "
        "each machine; moving: 0)",
    )
    parser.add_argument(
        "--machine-level",
        type=float,
        metavar="DB",
        help="level of the machine at the close microphone over that at the far one (default: that "
        "published for the machine, else drawn, -4 to 20 dB)",
    )
    parser.add_argument(
        "--drift",
        nargs="+",
        default=[],
        choices=("microphone_moved", "gain", "new_noise", "door"),
        help="changes at every installation during the test",
    )
    parser.add_argument(
        "--drift-from", type=float, default=0.5, help="share of the test clips before the changes (default: 0.5)"
    )
    _add_seed_option(parser)


def _snr(text: str) -> float | str:
    if text == "challenge":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number of dB, or challenge, got {text!r}") from None


def _dcase(options: argparse.Namespace) -> None:
    from ..simulation import write_dcase_benchmark

    if len(options.snr) > 2 or (len(options.snr) > 1 and "challenge" in options.snr):
        raise ValueError(f"--snr must be one value, the two ends of a range, or challenge, got {options.snr}.")
    snr_db = None if options.snr == ["challenge"] else (options.snr[0], options.snr[-1])
    write_dcase_benchmark(
        options.out,
        options.preset,
        options.seed,
        options.noise_coherence,
        snr_db=snr_db,
        machines=options.machines,
        installation=options.installation,
        machine_level_db=options.machine_level,
        drifts=options.drift,
        drift_from=options.drift_from,
    )
    print(f"benchmark written to {options.out}")


def _add_rooms(layouts: Any) -> None:
    parser = add_command(
        layouts,
        "rooms",
        _rooms,
        "make a pool of rooms for training",
        "  na-ssl simulate rooms --num 10000 --workers 8 --out rooms.safetensors",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file of the new pool")
    parser.add_argument("--num", type=int, default=10_000, help="number of rooms (default: 10000)")
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: 1)")
    _add_seed_option(parser)


def _rooms(options: argparse.Namespace) -> None:
    from ..simulation import RoomPool

    if options.out.is_dir():
        raise ValueError(f"--out must be a file, got the folder {options.out}.")
    pool = RoomPool.simulate(options.num, options.seed, options.out, options.workers)
    print(f"{len(pool)} rooms written to {options.out}")


def _add_noise_coherence_option(parser: CommandParser) -> None:
    parser.add_argument(
        "--noise-coherence",
        type=float,
        default=0.0,
        help="share of noise power common to all corners, 0 (independent) to 1 (the same noise) (default: 0)",
    )


def _add_seed_option(parser: CommandParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="seed of rooms, crops and sounds (default: 0)")
