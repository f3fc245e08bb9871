"""Write a benchmark in the layout of DCASE 2026 Task 2, with ground truth, of synthetic machines in simulated rooms."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.dcase.names import NO_ATTRIBUTE, DcaseName, format_dcase_name, parse_dcase_name
from ..data.synthetic.machine_sounds import MACHINE_TYPES
from ..one_thread import one_thread
from .staged_folder import staged_folder
from .synthetic_dataset import write_two_channel_dataset


@dataclass(frozen=True)
class BenchmarkPreset:
    """The size of a benchmark: clips of one machine, and the rooms and noises that each split has for itself.

    Attributes:
        num_train_source: normal training clips of the source domain.
        num_train_target: normal training clips of the target domain.
        num_test: test clips of every domain and label, a quarter of the machine's test clips.
        duration_s: of every clip, in s.
        num_rooms: rooms of a split.
        num_places: backgrounds of each of the five types in a split.
    """

    num_train_source: int
    num_train_target: int
    num_test: int
    duration_s: float
    num_rooms: int
    num_places: int


PRESETS = {
    # Three target clips are the fewest that SMOTE with two neighbours takes.
    "smoke": BenchmarkPreset(12, 3, 4, duration_s=1.5, num_rooms=3, num_places=2),
    "small": BenchmarkPreset(99, 10, 25, duration_s=6.0, num_rooms=20, num_places=8),
    "full": BenchmarkPreset(990, 10, 50, duration_s=10.0, num_rooms=100, num_places=12),
}


def write_dcase_benchmark(
    root: str | Path,
    preset: str | BenchmarkPreset = "small",
    seed: int = 0,
    noise_coherence: float = 0.0,
    snr_db: float | tuple[float, float] = (-10.0, 10.0),
    machines: Sequence[str] = MACHINE_TYPES,
    overwrite: bool = False,
    show_progress: bool = True,
) -> Path:
    """Write the benchmark, which `load_dcase2026` and `evaluate_submission` read, and return `root`.

    Every machine gets the development layout: `<machine>/train`, `<machine>/test` and `<machine>/attributes_00.csv`.
    Rooms and noises of the test are unseen in training, the target domain runs at a speed of its own, and bearing and
    valve have no attributes: `noAttribute` in file names, empty cells in the table. `ground_truth_data`,
    `ground_truth_domain` and `ground_truth_attributes` number the test clips in random order, as the published ones do;
    submissions may use these numbers or the files' names. `manifest.csv` has room, SNR and severity of every clip.

    Args:
        root: folder to write, which must be missing or empty.
        preset: "smoke" (a few seconds), "small" (a tenth of the challenge's training and half of its test clips, of
            6 s; under a CPU minute and 0.4 GB) or "full" (990 + 10 : 200 clips of 10 s a machine; about five CPU
            minutes and 4 GB, 8 GB while writing), or sizes of your own.
        seed: of rooms, noises and every clip; equal arguments give equal bytes, on any number of cores.
        noise_coherence: 0 for independent noises from the four corners, 1 for the same noise from all.
        snr_db: SNR at the close microphone in dB, one value or the range of a uniform draw; the default is that of
            NA training (Fujimura et al., IWAENC 2026).
        machines: which of MACHINE_TYPES.
        overwrite: whether a benchmark that an earlier call wrote is replaced.
        show_progress: whether progress bars are shown.

    Raises:
        ValueError: the preset is unknown, or a setting is out of its range.
        FileExistsError: `root` is not empty.
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {preset!r}")
        preset = PRESETS[preset]
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    root = Path(root)
    with staged_folder(root, overwrite) as folder, one_thread():
        manifest = write_two_channel_dataset(
            folder,
            machines=machines,
            num_train_source=preset.num_train_source,
            num_train_target=preset.num_train_target,
            num_test=preset.num_test,
            duration_s=preset.duration_s,
            snr_db=snr_db,
            noise_coherence=noise_coherence,
            num_rooms=preset.num_rooms,
            num_places=preset.num_places,
            seed=seed,
            show_progress=show_progress,
        )
        for machine, names in _names_of_machines(manifest).items():
            _write_attributes(folder / machine / "attributes_00.csv", names)
            _write_ground_truth(folder, machine, [name for name in names if name.split == "test"], seed)
    return root


def _names_of_machines(manifest: Path) -> dict[str, list[DcaseName]]:
    names = defaultdict(list)
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = parse_dcase_name(row["file"])
            names[name.machine].append(name)
    return names


def _write_attributes(path: Path, names: list[DcaseName]) -> None:
    """Write the official table, which has two columns for every attribute, parameter and value."""
    rows = [["file_name", "d1p", "d1v"]]
    for name in names:
        parameter, _, value = ("" if name.attributes == NO_ATTRIBUTE else str(name.attributes)).partition("_")
        rows.append([format_dcase_name(name), parameter, value])
    _write_csv(path, rows)


def _write_ground_truth(folder: Path, machine: str, names: list[DcaseName], seed: int) -> None:
    """Write the three official tables of anonymous clips `section_00_<nnnn>.wav`, which have no header."""
    order = np.random.default_rng([seed, MACHINE_TYPES.index(machine)]).permutation(len(names))
    shuffled = [names[index] for index in order]
    columns: dict[str, list[int] | list[str]] = {
        "data": [int(name.label == "anomaly") for name in shuffled],
        "domain": [int(name.domain == "target") for name in shuffled],
        "attributes": [Path(format_dcase_name(name)).name.removesuffix(".wav") for name in shuffled],
    }
    for kind, values in columns.items():
        path = folder / f"ground_truth_{kind}" / f"ground_truth_{machine}_section_00_test.csv"
        path.parent.mkdir(exist_ok=True)
        _write_csv(path, [[f"section_00_{number:04d}.wav", value] for number, value in enumerate(values)])


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
