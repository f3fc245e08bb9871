"""Normal and faulty clips of machines without noise, real from a folder or synthetic, for benchmarks of ranking."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from na_ssl_hf.data.sound_files import find_sound_files
from na_ssl_hf.data.synthetic.machine_sounds import DEFAULT_SEVERITY, MACHINE_TYPES, synthesize_machine
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.feature_extraction_two_channel import TwoChannelFeatureExtractor
from na_ssl_hf.hub.recording import load_recording

CLIP_S = 5.0
NUM_SYNTHETIC = 24
# Files shorter than a clip are taken whole from this length; longer ones are cut into clips.
LEAST_S = 1.0


@dataclass(frozen=True)
class Machine:
    """Clips of one machine, mono: each `(N,)` float32, and the file that each is of.

    Attributes:
        name: of the machine.
        normal, anomalous: the clips, at 16 kHz.
        normal_files: for every normal clip the number of its file; clips of one file are never on both sides of a
            split.
    """

    name: str
    normal: tuple[np.ndarray, ...]
    anomalous: tuple[np.ndarray, ...]
    normal_files: tuple[int, ...]

    def splits(self, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draw which normal clips are remembered and which are tested, half of the files each; positions of both."""
        files = np.array(self.normal_files)
        for split in range(count):
            order = np.random.default_rng([seed, split]).permutation(np.unique(files))
            is_remembered = np.isin(files, order[: len(order) // 2])
            yield np.flatnonzero(is_remembered), np.flatnonzero(~is_remembered)


def synthetic_machines(unit: int) -> list[Machine]:
    """Synthesise the machine types of the package, one specimen of each."""
    machines = []
    for name in MACHINE_TYPES:
        normal, anomalous = (
            tuple(
                synthesize_machine(name, (unit, first + index), CLIP_S, severity=severity, unit=unit)
                for index in range(count)
            )
            for first, count, severity in (
                (0, NUM_SYNTHETIC, 0.0),
                (NUM_SYNTHETIC, NUM_SYNTHETIC // 2, DEFAULT_SEVERITY[name]),
            )
        )
        machines.append(Machine(f"{name} {unit}", normal, anomalous, tuple(range(len(normal)))))
    return machines


def machines_in(folder: Path) -> list[Machine]:
    """Read `<machine>/normal` and `<machine>/anomaly` below a folder, cut into clips of 5 s at 16 kHz.

    Raises:
        ValueError: there is no such machine.
    """
    extractor = TwoChannelFeatureExtractor(resample=True)
    machines = []
    for place in sorted(path for path in folder.iterdir() if (path / "normal").is_dir()):
        clips: dict[str, list[np.ndarray]] = {}
        numbers: dict[str, list[int]] = {}
        for kind in ("normal", "anomaly"):
            of_files = [_clips(file, extractor) for file in find_sound_files([place / kind])]
            clips[kind] = [clip for of_file in of_files for clip in of_file]
            numbers[kind] = [number for number, of_file in enumerate(of_files) for _ in of_file]
        machines.append(Machine(place.name, tuple(clips["normal"]), tuple(clips["anomaly"]), tuple(numbers["normal"])))
    if not machines:
        raise ValueError(f"--machines must be a folder of <machine>/normal and <machine>/anomaly, got {folder}")
    return machines


def _clips(file: Path, extractor: TwoChannelFeatureExtractor) -> list[np.ndarray]:
    recording = load_recording(file, SAMPLING_RATE)
    first = torch.as_tensor(recording.samples, dtype=torch.float32)[:1].expand(2, -1)  # (2, N)
    wave = extractor.waveform(first, recording.sampling_rate)[0].numpy()
    length = round(CLIP_S * SAMPLING_RATE)
    if len(wave) <= length:
        return [wave] if len(wave) >= LEAST_S * SAMPLING_RATE else []
    return [wave[start : start + length] for start in range(0, len(wave) - length + 1, length)]


def as_recordings(clips: Sequence[np.ndarray], gain_db: float = 0.0) -> list[dict]:
    """Make recordings for a scorer of mono clips: both channels are equal."""
    gain = np.float32(10 ** (gain_db / 20))
    return [{"array": np.stack([clip, clip]) * gain, "sampling_rate": SAMPLING_RATE} for clip in clips]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose machines and checkpoints."""
    parser.add_argument(
        "--machines", type=Path, metavar="FOLDER", help="real machines, <machine>/normal and <machine>/anomaly"
    )
    parser.add_argument("--units", type=int, default=2, help="specimens of the synthetic machines (default: 2)")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        metavar="NAME=DIR",
        default=[
            *("BEATs base=na-beats-tiny", "EAT base=na-eat-tiny"),
            *("EAT deep=eat-tiny-deep", "EAT distilled=eat-tiny-distilled"),
            "BEATs distilled=beats-tiny-distilled",
        ],
        help="encoders, of a noise-aware one the base inside it (default: those of the package)",
    )
    parser.add_argument("--splits", type=int, default=10, help="splits of the normal clips (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default: 0)")


def chosen_machines(options: argparse.Namespace) -> list[Machine]:
    """Read or synthesise the machines that the options choose."""
    if options.machines is not None:
        return machines_in(options.machines)
    return [machine for unit in range(options.units) for machine in synthetic_machines(unit)]
