"""The published ground truth of DCASE 2026 Task 2: which test clips are anomalies, and of which domain they are.

A ground truth is a folder with `ground_truth_{data,domain,attributes}/ground_truth_<machine>_section_00_test.csv`, all
without header: (file, 0/1 anomaly), (file, 0/1 target) and (anonymous file, labelled file).
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple

LABEL_FOLDER = "ground_truth_data"


class GroundTruth(NamedTuple):
    """The ground truth of the test clips of one machine, by the stems of their anonymous file names.

    Attributes:
        is_anomaly: stem -> whether the clip is an anomaly.
        is_target: stem -> whether the clip is of the target domain; the same clips as in `is_anomaly`.
        anonymous: stem of the labelled name -> stem of the anonymous name.
    """

    is_anomaly: dict[str, float]
    is_target: dict[str, float]
    anonymous: dict[str, str]


def read_labels(ground_truth_dir: str | Path, machine: str) -> dict[str, tuple[bool, bool]]:
    """Read whether each clip of one machine is an anomaly, and whether it is of the target domain.

    Returns:
        stem of a clip, by its anonymous and by its labelled name alike -> (is anomaly, is target).

    Raises:
        OSError: a folder or a file is missing.
        ValueError: a file is damaged.
    """
    truth = read_ground_truth(ground_truth_dir, f"ground_truth_{machine}_section_00_test.csv")
    labels = {clip: (bool(truth.is_anomaly[clip]), bool(truth.is_target[clip])) for clip in truth.is_anomaly}
    return labels | {labelled: labels[clip] for labelled, clip in truth.anonymous.items() if clip in labels}


def read_ground_truth(ground_truth_dir: str | Path, file_name: str) -> GroundTruth:
    """Read the three tables of one machine; OSError and ValueError as for `read_labels`."""
    paths = []
    for folder in (LABEL_FOLDER, "ground_truth_domain", "ground_truth_attributes"):
        paths.append(Path(ground_truth_dir) / folder / file_name)
        if not paths[-1].is_file():
            raise FileNotFoundError(f"ground_truth_dir: {paths[-1]} is missing")
    is_anomaly, is_target = (
        {clip: finite_number(path, clip, text) for clip, text in read_pairs(path).items()} for path in paths[:2]
    )
    if set(is_target) != set(is_anomaly):
        raise ValueError(f"{file_name} must list the same clips in {LABEL_FOLDER} and ground_truth_domain")
    return GroundTruth(is_anomaly, is_target, {_stem(label): clip for clip, label in read_pairs(paths[2]).items()})


def read_pairs(path: Path) -> dict[str, str]:
    """Read a table of two columns: stem of the file name -> second column, in the order of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line has another number of columns, or names a clip a second time.
    """
    found: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            if len(row) != 2:
                raise ValueError(f"{path.name} line {line} must have two columns, got {row}")
            name = _stem(row[0])
            if name in found:
                raise ValueError(f"{path.name} line {line} must name every clip once, got {name!r} twice")
            found[name] = row[1].strip()
    return found


def finite_number(path: Path, clip: str, text: str) -> float:
    """Read a number of the table `path`; ValueError, naming table and clip, where it is none or not finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path.name} must hold a finite number for {clip!r}, got {text!r}")
    return value


def _stem(name: str) -> str:
    # Published tables mix leading folders, a leading slash and names without `.wav`.
    return name.strip().rsplit("/", 1)[-1].removesuffix(".wav")
