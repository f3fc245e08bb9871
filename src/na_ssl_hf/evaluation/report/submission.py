"""Submissions to DCASE 2026 Task 2 are read here, and scored against the published ground truth.

A submission is a folder with `anomaly_score_<machine>_section_00_test.csv` (file, score) and optionally
`decision_result_<machine>_section_00_test.csv` (file, 0/1 alarm), both without header; `ground_truth.py` describes the
ground truth. A higher score is more anomalous.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..ground_truth import LABEL_FOLDER, finite_number, read_ground_truth, read_pairs
from ..metrics.official import domain_decision_metrics, machine_metrics, official_score

_SCORE_FILE = re.compile(r"anomaly_score_(?P<machine>.+)_section_00_test\.csv")
_TRUTH_FILE = re.compile(r"ground_truth_(?P<machine>.+)_section_00_test\.csv")


class SubmissionMetrics(TypedDict):
    """The official score of a submission, and the values of each machine by their names."""

    official_score: float
    machines: dict[str, dict[str, float]]


def evaluate_submission(submission_dir: str | Path, ground_truth_dir: str | Path) -> SubmissionMetrics:
    """Compute the official numbers of a submission.

    Rows are joined by file name; a submission may use anonymous or labelled names.

    Returns:
        the official score, and of each machine `auc_source`, `auc_target`, `pauc` and `official_score`; where the
        machine has a decision file, also precision, recall and F1 of each domain (`precision_source`, ...).

    Raises:
        OSError: a folder or a file is missing.
        ValueError: machines or clips are missing, unknown or named twice, a score is not finite, a decision is neither
            0 nor 1, or the ground truth of a machine has one class only.
    """
    submission_dir, ground_truth_dir = Path(submission_dir), Path(ground_truth_dir)
    scores = _machine_files(submission_dir, _SCORE_FILE, "submission_dir")
    truth = _machine_files(ground_truth_dir / LABEL_FOLDER, _TRUTH_FILE, "ground_truth_dir")
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
    """Compute precision, recall and F1 of each domain, by name; without a decision file there are none."""
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
    """Find the files of a folder whose names match, by machine; `argument` names the folder in errors."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument}: {folder} is not a folder")
    found = {match["machine"]: path for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    if not found:
        raise FileNotFoundError(f"{argument}: {folder} holds no file named like {pattern.pattern}")
    return found


def _joined(score_file: Path, truth_file: Path, ground_truth_dir: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read scores, anomaly and target-domain labels of one machine, `(M,)` each, in the order of its ground truth."""
    is_anomaly, is_target, anonymous = read_ground_truth(ground_truth_dir, truth_file.name)
    scores: dict[str, float] = {}
    for name, text in read_pairs(score_file).items():
        clip = anonymous.get(name, name)
        if clip not in is_anomaly:
            raise ValueError(f"{score_file.name} must name clips of the ground truth only, got {name!r}")
        if clip in scores:
            raise ValueError(f"{score_file.name} must name every clip once, got {name!r} twice")
        scores[clip] = finite_number(score_file, name, text)
    if absent := sorted(set(is_anomaly) - set(scores)):
        raise ValueError(
            f"{score_file.name} must score all {len(is_anomaly)} clips, {len(absent)} missing: {absent[:3]}"
        )
    clips = list(is_anomaly)
    return (
        np.array([scores[clip] for clip in clips]),
        np.array([is_anomaly[clip] for clip in clips]),
        np.array([is_target[clip] for clip in clips]),
    )
