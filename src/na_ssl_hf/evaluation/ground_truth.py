"""The published ground truth of DCASE Task 2: which test clips are anomalies, and of which domain they are.

A ground truth is a folder with `ground_truth_{data,domain,attributes}/ground_truth_<machine>_section_<nn>_test.csv`,
all without header: (file, 0/1 anomaly), (file, 0/1 target) and (anonymous file, labelled file). The challenge of 2026
has the section 00 only; others have several, each of which is scored like a machine of its own.
"""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from ..data.dcase.names import dcase_stem
from ..data.tables import read_table
from ..tables import unicode_name

LABEL_FOLDER = "ground_truth_data"
TRUTH_FOLDERS = (LABEL_FOLDER, "ground_truth_domain", "ground_truth_attributes")
# A name with `;` or a tab and a number behind it, which is what is left of `a.wav;0,5` when it is cut at the comma.
_OTHER_DELIMITER = re.compile(r"[;\t]\s*[+-]?\d*$")


class GroundTruth(NamedTuple):
    """The ground truth of the test clips of one section, by what `clip_key` makes of their anonymous names.

    Attributes:
        is_anomaly: clip -> whether it is an anomaly.
        is_target: clip -> whether it is of the target domain; the same clips as in `is_anomaly`.
        anonymous: key of the labelled name -> key of the anonymous name.
    """

    is_anomaly: dict[str, bool]
    is_target: dict[str, bool]
    anonymous: dict[str, str]


def clip_key(name: str) -> str:
    """Return what the names of a clip are compared by, in tables and on disk.

    Folders, in the style of Windows too, and the suffix `.wav` or `.WAV` do not count. A name that a disk holds in
    Latin-1 is the same as in Unicode, and so is an accented letter of one character or of two.
    """
    return unicodedata.normalize("NFC", dcase_stem(unicode_name(name)))


def section_files(folder: str | Path, prefix: str, argument: str) -> dict[str, Path]:
    """Find the tables `<prefix><machine>_section_<nn>_test.csv` of a folder.

    Args:
        folder: the folder; its hidden files, other kinds of files and tables with another prefix do not count.
        prefix: how the names begin.
        argument: what errors call the folder.

    Returns:
        `<machine>_section_<nn>` -> path, sorted.

    Raises:
        OSError: there is no such folder, or it holds no such table.
        ValueError: a table with the prefix has another name than the rule says, or a section has two.
    """
    folder = Path(folder)
    rule = f"{prefix}<machine>_section_<nn>_test.csv"
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument}: {folder} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(prefix) or path.suffix.lower() != ".csv":
            continue
        match = re.fullmatch(r"(.+_section_\d{2})_test", path.stem.removeprefix(prefix))
        if not match:
            raise ValueError(f"{argument} must hold tables named {rule}, got {path.name!r}")
        if match[1] in found:
            raise ValueError(
                f"{argument} must hold one table of {match[1]}, got {found[match[1]].name} and {path.name}"
            )
        found[match[1]] = path
    if not found:
        raise FileNotFoundError(f"{argument}: {folder} holds no file named like {rule}")
    return found


def truth_files(ground_truth_dir: str | Path) -> dict[str, list[Path]]:
    """Find the three tables of every section of a ground truth.

    Returns:
        `<machine>_section_<nn>` -> its tables, in the order of `TRUTH_FOLDERS`.

    Raises:
        OSError: a folder is missing or empty, or one of the three tables of a section is missing.
        ValueError: as `section_files`.
    """
    sections = sorted(set().union(*_files_of_folders(ground_truth_dir)))
    return {section: _three_tables(ground_truth_dir, section) for section in sections}


def read_section(ground_truth_dir: str | Path, section: str) -> GroundTruth:
    """Read the ground truth of one section, `<machine>_section_<nn>`; OSError and ValueError as `read_ground_truth`."""
    return read_ground_truth(_three_tables(ground_truth_dir, section))


def read_ground_truth(paths: list[Path]) -> GroundTruth:
    """Read the three tables of one section, in the order of `TRUTH_FOLDERS`.

    Raises:
        OSError: a folder or a file is missing.
        ValueError: a file is damaged, a label is neither 0 nor 1, or the tables do not belong together.
    """
    is_anomaly, is_target = (_binary(path) for path in paths[:2])
    if set(is_target) != set(is_anomaly):
        odd = sorted(set(is_target) ^ set(is_anomaly))
        raise ValueError(
            f"{paths[0].name} must list the same clips in {TRUTH_FOLDERS[0]} and {TRUTH_FOLDERS[1]}, got {odd[0]!r} in "
            "one of them"
        )
    anonymous: dict[str, str] = {}
    for clip, labelled in read_pairs(paths[2]).items():
        key = clip_key(labelled)
        other = key if key in is_anomaly else anonymous.get(key, clip)
        if other != clip:
            raise ValueError(
                f"{paths[2]} must give every clip a name of its own, got {key!r} for {clip!r} and {other!r}"
            )
        anonymous[key] = clip
    return GroundTruth(is_anomaly, is_target, anonymous)


def read_pairs(path: Path) -> dict[str, str]:
    """Read a table of two columns: `clip_key` of the file name -> second column, in the order of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no CSV, a line has another number of columns, or names a clip a second time.
    """
    found: dict[str, str] = {}
    for line, row in read_table(path):
        if any(_OTHER_DELIMITER.search(cell) for cell in row[:1]) or (len(row) == 1 and re.search(r"[;\t]", row[0])):
            raise ValueError(
                f"{path.name} line {line} must have two columns with a comma between them, and numbers with a decimal "
                f"point, got {','.join(row)!r}"
            )
        if len(row) != 2:
            raise ValueError(f"{path.name} line {line} must have two columns, got {row}")
        name = clip_key(row[0])
        if name in found:
            raise ValueError(f"{path.name} line {line} must name every clip once, got {name!r} twice")
        found[name] = row[1]
    return found


def finite_number(path: Path, clip: str, text: str) -> float:
    """Read a number of the table `path`; ValueError, naming table and clip, where it is none or not finite."""
    try:
        # Python reads 1_0 as 10.
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path.name} must hold a finite number for {clip!r}, got {text!r}")
    return value


def _files_of_folders(ground_truth_dir: str | Path) -> list[dict[str, Path]]:
    return [
        section_files(Path(ground_truth_dir) / folder, "ground_truth_", "ground_truth_dir") for folder in TRUTH_FOLDERS
    ]


def _three_tables(ground_truth_dir: str | Path, section: str) -> list[Path]:
    tables = []
    for folder, files in zip(TRUTH_FOLDERS, _files_of_folders(ground_truth_dir), strict=True):
        if section not in files:
            missing = Path(ground_truth_dir) / folder / f"ground_truth_{section}_test.csv"
            raise FileNotFoundError(f"ground_truth_dir: {missing} is missing, there are tables of {list(files)}")
        tables.append(files[section])
    return tables


def _binary(path: Path) -> dict[str, bool]:
    values = {clip: finite_number(path, clip, text) for clip, text in read_pairs(path).items()}
    for clip, value in values.items():
        if value not in (0, 1):
            raise ValueError(f"{path} must hold 0 or 1 for {clip!r}, got {value:g}")
    return {clip: value == 1 for clip, value in values.items()}
