"""Score files of a DCASE 2026 Task 2 submission against the published ground truth.

Layout, all CSVs without header: `SUBMISSION/anomaly_score_<machine>_section_00_test.csv` (file, score), optionally
`SUBMISSION/decision_result_<machine>_section_00_test.csv` (file, 0/1 alarm), and
`GROUND_TRUTH/ground_truth_{data,domain,attributes}/ground_truth_<machine>_section_00_test.csv` (file, 0/1 anomaly),
(file, 0/1 target) and (anonymous file, labelled stem). Higher score = more anomalous.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics.official import domain_decision_metrics, machine_metrics, official_score

_SCORE_FILE = re.compile(r"anomaly_score_(?P<machine>.+)_section_00_test\.csv")
_TRUTH_FILE = re.compile(r"ground_truth_(?P<machine>.+)_section_00_test\.csv")


def evaluate_submission(submission_dir: str | Path, ground_truth_dir: str | Path) -> dict[str, Any]:
    """Official numbers: {"official_score": float, "machines": {name: {auc_source, auc_target, pauc, official_score}}}.

    Where a machine has a decision file, its values also hold precision, recall and F1 of each domain
    (`precision_source`, ...). Rows are joined by file name; a submission may use anonymous or labelled names. Raises
    OSError for missing folders or files, ValueError for missing or unknown machines and clips, duplicates, scores that
    are not finite, decisions other than 0 and 1, and ground truth of one class.
    """
    submission_dir, ground_truth_dir = Path(submission_dir), Path(ground_truth_dir)
    scores = _machine_files(submission_dir, _SCORE_FILE, "submission_dir")
    truth = _machine_files(ground_truth_dir / "ground_truth_data", _TRUTH_FILE, "ground_truth_dir")
    if missing := sorted(set(truth) - set(scores)):
        raise ValueError(f"submission_dir must hold anomaly_score files of all machines, got none for {missing}")
    if unknown := sorted(set(scores) - set(truth)):
        raise ValueError(f"submission_dir must hold only machines of the ground truth, got also {unknown}")
    metrics, machines = {}, {}
    for name in sorted(truth):
        try:
            one = machine_metrics(*_joined(scores[name], truth[name], ground_truth_dir))
            decisions = _decision_values(scores[name], truth[name], ground_truth_dir)
        except ValueError as error:
            raise ValueError(f"machine {name!r}: {error}") from error
        metrics[name] = one
        machines[name] = {**one.as_dict(), **decisions}
    return {"official_score": official_score(metrics), "machines": machines}


def _decision_values(score_file: Path, truth_file: Path, ground_truth_dir: Path) -> dict[str, float]:
    """Precision, recall and F1 of each domain by name; none without a decision file."""
    decision_file = score_file.with_name(score_file.name.replace("anomaly_score_", "decision_result_", 1))
    if not decision_file.is_file():
        return {}
    is_alarm, is_anomaly, is_target = _joined(decision_file, truth_file, ground_truth_dir)
    return {
        f"{value}_{domain}": number
        for domain, values in domain_decision_metrics(is_alarm, is_anomaly, is_target).items()
        for value, number in asdict(values).items()
    }


def _machine_files(folder: Path, pattern: re.Pattern[str], argument: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument}: {folder} is not a folder")
    found = {match["machine"]: path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    if not found:
        raise FileNotFoundError(f"{argument}: {folder} holds no file named like {pattern.pattern}")
    return found


def read_labels(ground_truth_dir: str | Path, machine: str) -> dict[str, tuple[bool, bool]]:
    """{stem of a clip: (is anomaly, is target domain)} of one machine, by anonymous and by labelled stems alike.

    Raises OSError for missing folders or files, ValueError for damaged ones.
    """
    ground_truth_dir = Path(ground_truth_dir)
    truth_file = _sibling(ground_truth_dir, "ground_truth_data", Path(f"ground_truth_{machine}_section_00_test.csv"))
    anomaly, target, anonymous = _read_truth(truth_file, ground_truth_dir)
    labels = {
        clip: (bool(_finite(anomaly[clip], truth_file, clip)), bool(_finite(target[clip], truth_file, clip)))
        for clip in anomaly
    }
    return labels | {labelled: labels[clip] for labelled, clip in anonymous.items() if clip in labels}


def _joined(score_file: Path, truth_file: Path, ground_truth_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, is_anomaly, is_target (N,) of one machine in the order of its ground truth."""
    anomaly, target, anonymous = _read_truth(truth_file, ground_truth_dir)
    scores: dict[str, float] = {}
    for name, text in _read_pairs(score_file).items():
        clip = anonymous.get(name, name)
        if clip not in anomaly:
            raise ValueError(f"{score_file.name} must name clips of the ground truth only, got {name!r}")
        if clip in scores:
            raise ValueError(f"{score_file.name} must name every clip once, got {name!r} twice")
        scores[clip] = _finite(text, score_file, name)
    if absent := sorted(set(anomaly) - set(scores)):
        raise ValueError(f"{score_file.name} must score all {len(anomaly)} clips, {len(absent)} missing: {absent[:3]}")
    clips = list(anomaly)
    return (
        np.array([scores[clip] for clip in clips]),
        np.array([_finite(anomaly[clip], truth_file, clip) for clip in clips]),
        np.array([_finite(target[clip], truth_file, clip) for clip in clips]),
    )


def _read_truth(truth_file: Path, ground_truth_dir: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Anomaly and target column by anonymous stem, and {labelled stem: anonymous stem}."""
    anomaly = _read_pairs(truth_file)
    target = _read_pairs(_sibling(ground_truth_dir, "ground_truth_domain", truth_file))
    labelled = _read_pairs(_sibling(ground_truth_dir, "ground_truth_attributes", truth_file))
    if set(target) != set(anomaly):
        raise ValueError(f"{truth_file.name} must list the same clips in ground_truth_data and ground_truth_domain")
    return anomaly, target, {_stem(label): name for name, label in labelled.items()}


def _sibling(ground_truth_dir: Path, folder: str, truth_file: Path) -> Path:
    path = ground_truth_dir / folder / truth_file.name
    if not path.is_file():
        raise FileNotFoundError(f"ground_truth_dir: {path} is missing")
    return path


def _read_pairs(path: Path) -> dict[str, str]:
    """Two-column CSV -> {stem of the file name: second column}, in file order."""
    pairs: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row:
                continue
            if len(row) != 2:
                raise ValueError(f"{path.name} line {number} must have two columns, got {row}")
            name = _stem(row[0])
            if name in pairs:
                raise ValueError(f"{path.name} line {number} must name every clip once, got {name!r} twice")
            pairs[name] = row[1].strip()
    return pairs


def _stem(name: str) -> str:
    # Published tables mix leading folders, a leading slash and names without `.wav`.
    return name.strip().rsplit("/", 1)[-1].removesuffix(".wav")


def _finite(text: str, path: Path, clip: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path.name} must hold a finite number for {clip!r}, got {text!r}")
    return value
