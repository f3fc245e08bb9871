"""List the clips below a DCASE Task 2 folder, with what their names and the attribute tables say."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..tables import read_table
from .names import NO_ATTRIBUTE, SPLIT_FOLDERS, SUPPLEMENTAL, DcaseName, dcase_stem, parse_dcase_name

SPLITS = ("train", "test", SUPPLEMENTAL)
# The layout of the official baseline, <root>/<set>/raw/<machine>/<split>, is the deepest that is looked for.
_MAX_DEPTH = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitFolder:
    """A folder `.../<machine>/<train|test|supplemental>`, or of 2021 `.../<machine>/<source_test|target_test>`."""

    machine: str
    split: str
    path: Path

    def files(self) -> list[Path]:
        """Return its WAV files sorted by name; hidden ones, such as the `._*` that some archives hold, are left out.

        A link that leads nowhere is returned like a file, so that its reader reports it as missing.
        """
        return sorted(
            Path(entry.path)
            for entry in os.scandir(self.path)
            if entry.name.lower().endswith(".wav") and not entry.name.startswith(".") and not os.path.isdir(entry.path)
        )


@dataclass(frozen=True)
class DcaseClip:
    """One file, what its name says, and its attributes: "spd_1_pow_2", "noAttribute", or None for anonymous clips."""

    path: Path
    name: DcaseName
    attributes: str | None


def find_split_folders(root: str | Path) -> list[SplitFolder]:
    """Return all split folders up to four levels below `root`, sorted by machine and split.

    `root` may also be the folder of one machine. Links to folders are followed, but a folder counts once.

    Raises:
        FileNotFoundError: `root` is not a folder or holds no split folder.
    """
    root = Path(os.path.abspath(root))
    if not root.is_dir():
        raise FileNotFoundError(f"root must be a folder of DCASE machines, got {root}, which is none")
    found = []
    entered = {os.path.realpath(root)}
    level = [root]
    for _ in range(_MAX_DEPTH):
        below = [path for folder in level for path in sorted(folder.iterdir()) if path.is_dir()]
        level = []
        # The name that a folder has without a link is the better one.
        for path in sorted(below, key=lambda path: (path.is_symlink(), path)):
            if path.name not in SPLIT_FOLDERS and path.name[0] in "._":
                continue
            if (real := os.path.realpath(path)) in entered:
                logger.warning(f"The link {path} leads to a folder that is listed already: {real}.")
                continue
            entered.add(real)
            if path.name in SPLIT_FOLDERS:
                found.append(SplitFolder(path.parent.name, SPLIT_FOLDERS[path.name], path))
            else:
                level.append(path)
    if all(folder.split == SUPPLEMENTAL for folder in found):
        raise FileNotFoundError(f"root must hold folders <machine>/train or <machine>/test, got {root} without any")
    return sorted(found, key=lambda folder: (folder.machine, SPLITS.index(folder.split), folder.path))


def list_dcase_clips(root: str | Path, split: str, machines: Sequence[str] | None = None) -> list[DcaseClip]:
    """Return the clips of one split, "train", "test" or "supplemental", sorted by machine and file name.

    Args:
        root: folder of the data set.
        split: the split.
        machines: names of the machines, by default all, or those that have supplemental clips.

    Raises:
        FileNotFoundError: `root` or folders of the split are missing (all of them are named) or empty.
        ValueError: the split is unknown, `machines` is a string, a table is wrong, or the name of a file is.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if isinstance(machines, str):
        raise ValueError(f"machines must be a list of names, got the string {machines!r}")
    folders = find_split_folders(root)
    present = {folder.machine for folder in folders if folder.split == split}
    if machines is not None:
        wanted = sorted(set(machines))
    elif split == SUPPLEMENTAL and present:
        # Supplemental clips are an offer that a machine may lack, and no part of the task.
        wanted = sorted(present)
    else:
        wanted = sorted({folder.machine for folder in folders})
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
    """Map the stems of file names to their attributes, as all `attributes_*.csv` of a folder give them.

    The attributes are written as file names write them, "spd_1_pow_2".

    Raises:
        ValueError: a table is no CSV, or has no header `file_name,d1p,d1v,...`.
    """
    table: dict[str, str] = {}
    names = (name for name in os.listdir(machine_folder) if re.fullmatch(r"attributes_.*\.csv", name, re.IGNORECASE))
    for path in sorted(machine_folder / name for name in names):
        rows = [cells for _, cells in read_table(path)]
        header = rows[0] if rows else []
        if header[:1] != ["file_name"]:
            raise ValueError(f"{path} must begin with the header file_name,d1p,d1v,..., got {header}")
        for name, *values in rows[1:]:
            if name:
                table[dcase_stem(name)] = "_".join(filter(None, values)) or NO_ATTRIBUTE
    return table


def _clip(file: Path, table: dict[str, str]) -> DcaseClip:
    name = parse_dcase_name(file)
    attributes = table.get(dcase_stem(file.name))
    if attributes in (None, NO_ATTRIBUTE):
        # A labelled clip whose name has no attributes has none, but an anonymous one may have some.
        attributes = name.attributes or (NO_ATTRIBUTE if name.label else None)
    return DcaseClip(file, name, attributes)
