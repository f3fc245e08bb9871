"""Write a benchmark in the layout of DCASE 2026 Task 2, with ground truth, of synthetic machines in simulated rooms."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ..data.dcase.names import NO_ATTRIBUTE, SUPPLEMENTAL, DcaseName, format_dcase_name, parse_dcase_name
from ..data.synthetic.machine_sounds import HEARD_MACHINE_TYPES, MACHINE_TYPES
from ..one_thread import one_thread
from .benchmark_presets import PRESETS, BenchmarkPreset
from .installation import SNR_RANGE_DB, Site
from .installed_dataset import write_installed_machines
from .staged_folder import MANIFEST, staged_folder
from .synthetic_dataset import write_two_channel_dataset

Installed = Literal["fixed", "moving"]


def write_dcase_benchmark(
    root: str | Path,
    preset: str | BenchmarkPreset = "small",
    seed: int = 0,
    noise_coherence: float | None = None,
    snr_db: float | tuple[float, float] | None = SNR_RANGE_DB,
    machines: Sequence[str] | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
    installation: Installed = "fixed",
    machine_level_db: float | None = None,
    drifts: Sequence[str] = (),
    drift_from: float = 0.5,
) -> Path:
    """Write the benchmark, which `load_dcase2026` and `evaluate_submission` read, and return `root`.

    Every machine gets the development layout: `<machine>/train`, `<machine>/test` and `<machine>/attributes_00.csv`.
    Some machines have no attributes: `noAttribute` in file names, empty cells in the table. `ground_truth_data`,
    `ground_truth_domain` and `ground_truth_attributes` number the test clips in random order, as the published ones do;
    submissions may use these numbers or the files' names. `manifest.csv` has SNR and severity of every clip.

    Installations are "fixed", as those of the challenge and of real sites are: a machine has one room and one placement
    of the microphones, and its noise comes from the corners with one coherence. Training and test have other noises and
    SNRs, and the target domain changes the speed, the load or the noise. `<machine>/supplemental` has clips of the
    machine alone and of the noise alone, and `installations.json` tells all that was drawn for a machine. Installations
    that are "moving" have another room for every clip, and rooms of the test are unseen in training; the target domain
    runs at a speed of its own.

    Args:
        root: folder to write, which must be missing or empty.
        preset: "smoke" (a few seconds), "small" (6 s clips, under a CPU minute and 0.5 GB; fixed: ten machines, 56
            training and 48 test clips each; moving: five machines, 109 and 100) or "full" (990 + 10 : 200 clips of 10 s
            a machine; about a CPU minute and 0.8 GB a machine, twice that while writing), or sizes of your own.
        seed: of rooms, noises and every clip; equal arguments give equal bytes, on any number of cores.
        noise_coherence: share of noise power common to all corners, 0 for independent noises from the four corners, 1
            for the same noise from all. None draws it from U[0, 1] for each fixed installation, and is 0 for moving
            ones.
        snr_db: SNR at the close microphone in dB, one value or the range of a uniform draw; the default is that of
            NA training (Fujimura et al., IWAENC 2026). Of fixed installations, training and test of a machine have
            halves of this range at places of their own. None gives fan, bearing and gearbox about -10 dB and the valve
            about 0 dB, at which they behave most like those of the challenge.
        machines: which of MACHINE_TYPES, by default all, or of moving installations HEARD_MACHINE_TYPES.
        overwrite: whether a benchmark that an earlier call wrote is replaced.
        show_progress: whether progress bars are shown.
        installation: "fixed" or "moving".
        machine_level_db: level of the machine at the close microphone minus that at the far one in dB; None takes what
            is published for the challenge's machine, else U[-4, 20]. This and the drifts are for fixed ones only.
        drifts: what changes at every installation during the test, of "microphone_moved" (the far microphone by 2 to
            8 cm), "gain" (of the far microphone by 3 to 6 dB), "new_noise" (a fifth source, as loud as the others
            together) and "door" (an open door shortens the reverberation).
        drift_from: share of the test clips of every domain and label, in the order of their numbers, before the change.

    Raises:
        ValueError: the preset is unknown, or a setting is out of its range.
        FileExistsError: `root` is not empty.
    """
    preset = _sizes(preset, installation)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if machines is None:
        machines = MACHINE_TYPES if installation == "fixed" else HEARD_MACHINE_TYPES
    if installation == "moving":
        _check_moving(snr_db, machine_level_db, drifts)
    root = Path(root)
    with staged_folder(root, overwrite) as folder, one_thread():
        if installation == "fixed":
            range_db = snr_db if snr_db is None or isinstance(snr_db, tuple) else (snr_db, snr_db)
            site = Site(noise_coherence, machine_level_db, range_db, tuple(drifts), drift_from)
            write_installed_machines(folder, preset, seed, machines, site, show_progress)
        else:
            assert snr_db is not None  # refused above
            _write_moving(folder, preset, seed, noise_coherence or 0.0, snr_db, machines, show_progress)
        for machine, names in _names_of_machines(folder / MANIFEST).items():
            _write_attributes(folder / machine / "attributes_00.csv", names)
            _write_ground_truth(folder, machine, [name for name in names if name.split == "test"], seed)
    return root


def _sizes(preset: str | BenchmarkPreset, installation: Installed) -> BenchmarkPreset:
    """Return the sizes that a preset's name stands for; a ValueError for an unknown name or installation."""
    if installation not in PRESETS:
        raise ValueError(f"installation must be one of {tuple(PRESETS)}, got {installation!r}")
    if not isinstance(preset, str):
        return preset
    if preset not in PRESETS[installation]:
        raise ValueError(f"preset must be one of {tuple(PRESETS[installation])}, got {preset!r}")
    return PRESETS[installation][preset]


def _check_moving(
    snr_db: float | tuple[float, float] | None, machine_level_db: float | None, drifts: Sequence[str]
) -> None:
    """Refuse what only a fixed installation can have, by a ValueError."""
    if machine_level_db is not None or drifts:
        name, value = ("drifts", drifts) if drifts else ("machine_level_db", machine_level_db)
        raise ValueError(f"{name} must be left out where the installation is 'moving', got {value!r}")
    if snr_db is None:
        raise ValueError(
            "snr_db must be one value or a range where the installation is 'moving', got None (--snr challenge)"
        )


def _write_moving(
    folder: Path,
    preset: BenchmarkPreset,
    seed: int,
    noise_coherence: float,
    snr_db: float | tuple[float, float],
    machines: Sequence[str],
    show_progress: bool,
) -> None:
    write_two_channel_dataset(
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


def _names_of_machines(manifest: Path) -> dict[str, list[DcaseName]]:
    names = defaultdict(list)
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = parse_dcase_name(row["file"])
            if name.split != SUPPLEMENTAL:
                names[name.machine].append(name)
    return names


def _write_attributes(path: Path, names: list[DcaseName]) -> None:
    """Write the official table, which has two columns for every attribute, parameter and value."""
    rows: list[list[str]] = []
    for name in names:
        attributes = ["", ""] if name.attributes == NO_ATTRIBUTE else str(name.attributes).split("_")
        rows.append([format_dcase_name(name), *attributes])
    count = (max(len(row) for row in rows) - 1) // 2
    header = ["file_name", *(f"d{number}{part}" for number in range(1, count + 1) for part in "pv")]
    _write_csv(path, [header, *rows])


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
