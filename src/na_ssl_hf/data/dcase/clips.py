"""The clips below a DCASE Task 2 folder, with what their names and the attribute tables say."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .names import NO_ATTRIBUTE, SPLIT_FOLDERS, DcaseName, dcase_stem, parse_dcase_name

SPLITS = ("train", "test")
# <root>/<set>/raw/<machine>/<split>, as the official baseline lays it out, is the deepest that is looked for.
_MAX_DEPTH = 4


@dataclass(frozen=True)
class SplitFolder:
    """A folder `.../<machine>/<train|test>` (2021 also `source_test`, `target_test`)."""

    machine: str
    split: str
    path: Path

    def files(self) -> list[Path]:
        """Its WAV files by name; hidden ones, such as the `._*` that some archives hold, are left out."""
        return sorted(
            Path(entry.path)
            for entry in os.scandir(self.path)
            if entry.name.lower().endswith(".wav") and not entry.name.startswith(".")
        )


@dataclass(frozen=True)
class DcaseClip:
    """One file, what its name says, and its attributes: "spd_1_pow_2", "noAttribute", None for anonymous clips."""

    path: Path
    name: DcaseName
    attributes: str | None


def find_split_folders(root: str | Path) -> list[SplitFolder]:
    """All split folders up to four levels below `root`, by machine and split; `root` may also be one machine's folder.

    Raises FileNotFoundError when `root` is not a folder or holds none.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of DCASE machines, got {root}, which is none")
    found = []
    for folder, children, _ in os.walk(root, followlinks=True):
        path = Path(folder)
        for name in children:
            if name in SPLIT_FOLDERS:
                found.append(SplitFolder(path.name, SPLIT_FOLDERS[name], path / name))
        too_deep = len(path.relative_to(root).parts) >= _MAX_DEPTH - 1
        # In place: os.walk goes down what is left in the list.
        children[:] = [] if too_deep else sorted(n for n in children if n not in SPLIT_FOLDERS and n[0] not in "._")
    if not found:
        raise FileNotFoundError(f"root must hold folders <machine>/train or <machine>/test, got {root} without any")
    return sorted(found, key=lambda folder: (folder.machine, SPLITS.index(folder.split), folder.path))


def list_dcase_clips(root: str | Path, split: str, machines: Sequence[str] | None = None) -> list[DcaseClip]:
    """The clips of one split, "train" or "test", by machine and file name; `machines` chooses some of them.

    Raises:
        FileNotFoundError: `root` or folders of the split are missing (all of them are named) or empty.
        ValueError: an unknown split, a string for `machines`, or a file that is not named as DCASE names it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if isinstance(machines, str):
        raise ValueError(f"machines must be a list of names, got the string {machines!r}")
    folders = find_split_folders(root)
    wanted = sorted({folder.machine for folder in folders} if machines is None else set(machines))
    present = {folder.machine for folder in folders if folder.split == split}
    if missing := [f"{machine}/{split}" for machine in wanted if machine not in present]:
        raise FileNotFoundError(f"root must hold the folders {missing}, got {root} without them")
    clips = []
    for folder in folders:
        if folder.split != split or folder.machine not in wanted:
            continue
        files = folder.files()
        if not files:
            raise FileNotFoundError(f"{folder.path} must hold WAV files, got an empty folder")
        table = read_attribute_tables(folder.path.parent)
        clips += [_clip(file, table) for file in files]
    return clips


def read_attribute_tables(machine_folder: Path) -> dict[str, str]:
    """{stem of the file name: attributes as file names write them, "spd_1_pow_2"} of all `attributes_*.csv` there.

    Raises ValueError for a table without the header `file_name,d1p,d1v,...`.
    """
    table: dict[str, str] = {}
    for path in sorted(machine_folder.glob("attributes_*.csv")):
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [cell.strip() for cell in next(rows, [])]
            if header[:1] != ["file_name"]:
                raise ValueError(f"{path} must begin with the header file_name,d1p,d1v,..., got {header}")
            for row in rows:
                if row and row[0].strip():
                    values = [cell.strip() for cell in row[1:] if cell.strip()]
                    table[dcase_stem(row[0])] = "_".join(values) or NO_ATTRIBUTE
    return table


def _clip(file: Path, table: dict[str, str]) -> DcaseClip:
    name = parse_dcase_name(file)
    attributes = table.get(dcase_stem(file.name))
    if attributes in (None, NO_ATTRIBUTE):
        # Labelled clips of years without attributes in the name have none; anonymous ones may have some.
        attributes = name.attributes or (NO_ATTRIBUTE if name.label else None)
    return DcaseClip(file, name, attributes)
