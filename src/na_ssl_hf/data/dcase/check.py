"""Count the clips of a DCASE Task 2 folder and find damaged ones; every file is read once."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...hub.fbank import SAMPLING_RATE
from ...hub.recording import load_recording
from .clips import SPLITS, SplitFolder, find_split_folders, read_attribute_tables
from .names import SUPPLEMENTAL, DcaseName, dcase_stem, parse_dcase_name

DEVELOPMENT_MACHINES = ("ToyCar", "ToyCarEmu", "bearingEmu", "fan", "gearboxEmu", "sliderEmu", "valveEmu")
EVALUATION_MACHINES = ("BlowerDustCollector", "Sander", "SewingMachine", "ToothBrush", "ToyDrone")

_Group = tuple[str, str | None, str | None]  # split, domain, label
_TRAIN: dict[_Group, int] = {("train", "source", "normal"): 990, ("train", "target", "normal"): 10}
_TEST: dict[_Group, int] = {("test", d, label): 50 for d in ("source", "target") for label in ("normal", "anomaly")}
_ANONYMOUS_TEST: dict[_Group, int] = {("test", None, None): 200}

DAMAGE = {
    "misnamed": "not named as DCASE names clips",
    "unreadable": "not readable as a sound file, or truncated",
    "empty": "no samples",
    "wrong_rate": f"not at {SAMPLING_RATE} Hz",
    "one_channel": "one channel, as DCASE 2020 to 2025 have; noise-aware models need two",
    "many_channels": "more than two channels",
    "not_finite": "NaN or infinite samples",
    "duplicated": "the same name twice in one machine",
    "without_row": "not in the attribute table",
    "without_file": "in the attribute table, but no such file",
    "bad_table": "attribute table not readable",
    "empty_folder": "folder without WAV files",
}
_SHOWN = 5


@dataclass(frozen=True)
class ClipCount:
    """The number of clips of one group beside the published one, which is None for machines that are not of DCASE 2026.

    `domain` and `label` are None for anonymous test clips.
    """

    machine: str
    split: str
    domain: str | None
    label: str | None
    count: int
    published: int | None

    @property
    def differs(self) -> bool:
        """Whether there is a published number and it is another one."""
        return self.published is not None and self.count != self.published


@dataclass
class DcaseReport:
    """What `check_dcase` found.

    Attributes:
        root: the absolute path of the folder.
        counts: counts by machine, split, domain and label; a published group without any clip has count 0.
        missing_machines: machines that `root` lacks although it holds others of the same published set.
        damage: the files of every kind of damage (a key of `DAMAGE`); empty when nothing is wrong.
    """

    root: str
    counts: list[ClipCount] = field(default_factory=list)
    missing_machines: list[str] = field(default_factory=list)
    damage: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        """Whether no file is damaged, whatever the counts."""
        return not self.damage

    @property
    def is_complete(self) -> bool:
        """Whether all counts of DCASE 2026 machines are the published ones."""
        return not self.missing_machines and not any(count.differs for count in self.counts)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, `is_sound` and `is_complete` as a dictionary for JSON."""
        return {**asdict(self), "is_sound": self.is_sound, "is_complete": self.is_complete}

    def lines(self) -> list[str]:
        """Return the report as lines to read: a table of counts, then every kind of damage with its first files."""
        lines = [self.root]
        width = max((len(count.machine) for count in self.counts), default=0)
        split_width = max((len(count.split) for count in self.counts), default=0)
        for count in self.counts:
            group = f"{count.split:{split_width}} {count.domain or 'unknown':7} {count.label or 'unknown':7}"
            published = f"  published: {count.published}" if count.differs else ""
            lines.append(f"  {count.machine:{width}}  {group}  {count.count:5d}{published}")
        if self.missing_machines:
            lines.append(f"  missing machines: {', '.join(self.missing_machines)}")
        for kind, files in self.damage.items():
            lines.append(f"damage: {len(files)} x {DAMAGE[kind]}")
            lines += [f"    {file}" for file in files[:_SHOWN]]
            if len(files) > _SHOWN:
                lines.append(f"    ... and {len(files) - _SHOWN} more")
        if self.is_sound:
            lines.append("no damage" + ("" if self.is_complete else ", but not the published number of clips"))
        return lines


def check_dcase(root: str | Path, num_workers: int | None = None, show_progress: bool = True) -> DcaseReport:
    """Read every clip below `root` and count clips and damage.

    Args:
        root: folder of the data set, with a layout that `load_dcase2026` knows.
        num_workers: number of threads that read, by default the number of CPU cores, at most 8.
        show_progress: whether a progress bar is shown.

    Raises:
        FileNotFoundError: `root` is missing or holds no `<machine>/<train|test>`.
    """
    folders = find_split_folders(root)
    report = DcaseReport(root=os.path.abspath(root))
    damage: dict[str, list[str]] = defaultdict(list)
    names: dict[str, list[tuple[Path, DcaseName]]] = defaultdict(list)
    for folder in folders:
        _collect_names(folder, names[folder.machine], damage)
    for machine, clips in sorted(names.items()):
        split_folders = [folder for folder in folders if folder.machine == machine]
        report.counts += _counts(machine, {folder.split for folder in split_folders}, (name for _, name in clips))
        damage["duplicated"] += _duplicates(clips)
        _compare_with_tables(split_folders, clips, damage)
    paths = [path for clips in names.values() for path, _ in clips]
    workers = num_workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        bar = tqdm(pool.map(_faults, paths), "checking", total=len(paths), unit="clip", disable=not show_progress)
        for path, faults in zip(paths, bar, strict=True):
            for kind in faults:
                damage[kind].append(str(path))
    report.damage = {kind: damage[kind] for kind in DAMAGE if damage[kind]}
    for published in (DEVELOPMENT_MACHINES, EVALUATION_MACHINES):
        if len(present := set(published) & set(names)) > 1:  # one name alone, such as `fan`, may be of another year
            report.missing_machines += sorted(set(published) - present)
    return report


def _collect_names(folder: SplitFolder, clips: list[tuple[Path, DcaseName]], damage: dict[str, list[str]]) -> None:
    files = folder.files()
    if not files:
        damage["empty_folder"].append(str(folder.path))
    for path in files:
        try:
            clips.append((path, parse_dcase_name(path)))
        except ValueError:
            damage["misnamed"].append(str(path))


def _counts(machine: str, splits: set[str], names: Iterable[DcaseName]) -> list[ClipCount]:
    found = Counter((name.split, name.domain, name.label) for name in names)
    published: dict[_Group, int] = {}
    if machine in DEVELOPMENT_MACHINES:
        published = _TRAIN | _TEST
    elif machine in EVALUATION_MACHINES:
        # Test clips that were renamed after the published ground truth look like development ones.
        labelled = any(split == "test" and label for split, _, label in found)
        published = _TRAIN | (_TEST if labelled else _ANONYMOUS_TEST)
    # Training and test clips of the evaluation set come in different archives, so one of the folders may be absent.
    partial = machine in EVALUATION_MACHINES
    expected = {group: count for group, count in published.items() if group[0] in splits or not partial}
    # No number of supplemental clips is published.
    supplemental = {group for group in found if group[0] == SUPPLEMENTAL}
    groups = sorted(set(found) | set(expected), key=lambda group: (SPLITS.index(group[0]), *map(str, group[1:])))
    known = bool(published)
    return [
        ClipCount(
            machine,
            *group,
            count=found[group],
            published=expected.get(group, 0) if known and group not in supplemental else None,
        )
        for group in groups
    ]


def _duplicates(clips: list[tuple[Path, DcaseName]]) -> list[str]:
    first: dict[tuple[str, str], Path] = {}
    duplicates = []
    for path, name in clips:
        # Training and test clips of 2020 have the same names.
        earlier = first.setdefault((name.split, dcase_stem(path.name).lower()), path)
        if earlier is not path:
            duplicates.append(f"{path} = {earlier}")
    return duplicates


def _compare_with_tables(
    folders: list[SplitFolder], clips: list[tuple[Path, DcaseName]], damage: dict[str, list[str]]
) -> None:
    """Report attribute rows without file and labelled files without row, for the splits that both know."""
    rows: set[str] = set()
    for machine_folder in sorted({folder.path.parent for folder in folders}):
        try:
            rows |= set(read_attribute_tables(machine_folder))
        except ValueError as error:
            damage["bad_table"].append(str(error))
    stems = {dcase_stem(path.name) for path, _ in clips}
    for split in SPLITS:
        split_rows = {row for row in rows if f"_{split}_" in row}
        if split_rows and any(folder.split == split for folder in folders):
            damage["without_file"] += [f"{folders[0].machine}: {row}" for row in sorted(split_rows - stems)]
            damage["without_row"] += [
                str(path)
                for path, name in clips
                if name.split == split and name.label and dcase_stem(path.name) not in split_rows
            ]


def _faults(path: Path) -> list[str]:
    try:
        recording = load_recording(path, SAMPLING_RATE)
    except OSError:
        return ["unreadable"]
    samples = np.asarray(recording.samples)  # (C, N)
    faults = {
        "empty": samples.shape[1] == 0,
        "wrong_rate": recording.sampling_rate != SAMPLING_RATE,
        "one_channel": samples.shape[0] == 1,
        "many_channels": samples.shape[0] > 2,
        "not_finite": not np.isfinite(samples).all(),
    }
    return [kind for kind, found in faults.items() if found]
