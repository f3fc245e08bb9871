"""Submissions to DCASE Task 2 are read here, and scored against the published ground truth.

A submission is a folder with `anomaly_score_<machine>_section_<nn>_test.csv` (file, score) and optionally
`decision_result_<machine>_section_<nn>_test.csv` (file, 0/1 alarm), both without header; `ground_truth.py` describes
the ground truth. A higher score is more anomalous.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..ground_truth import GroundTruth, finite_number, read_ground_truth, read_pairs, section_files, truth_files
from ..metrics.official import domain_decision_metrics, machine_metrics, official_score


class SubmissionMetrics(TypedDict):
    """The official score of a submission, and the values of each machine by their names."""

    official_score: float
    machines: dict[str, dict[str, float]]


def evaluate_submission(submission_dir: str | Path, ground_truth_dir: str | Path) -> SubmissionMetrics:
    """Compute the official numbers of a submission.

    Rows are joined by file name; a submission may use anonymous or labelled names, with or without folders and the
    suffix. Every section of the ground truth counts. A machine of which there is only section 00 goes by its name
    alone, and others by `<machine>_section_<nn>`.

    Returns:
        the official score, and of each machine `auc_source`, `auc_target`, `pauc` and `official_score`; where the
        machine has a decision file, also precision, recall and F1 of each domain (`precision_source`, ...).

    Raises:
        OSError: a folder or a file is missing.
        ValueError: machines, sections or clips are missing, unknown or named twice, a table is no CSV, a score is not
            finite, a decision is neither 0 nor 1, or the ground truth of a machine has one class only.
    """
    submission_dir = Path(submission_dir)
    scores = section_files(submission_dir, "anomaly_score_", "submission_dir")
    truth = truth_files(ground_truth_dir)
    titles = _titles([*scores, *truth])
    if missing := [titles[section] for section in truth if section not in scores]:
        raise ValueError(
            f"submission_dir must hold anomaly_score files of all machines, got none for {missing} and some for "
            f"{[titles[section] for section in scores]}"
        )
    if unknown := [titles[section] for section in scores if section not in truth]:
        raise ValueError(f"submission_dir must hold only machines of the ground truth, got also {unknown}")
    decisions = _decision_files(submission_dir, scores)
    metrics, machines = {}, {}
    for section, truth_paths in truth.items():
        name = titles[section]
        try:
            labels = read_ground_truth(truth_paths)
            one = machine_metrics(*_joined(scores[section], labels))
            decision_values = _decision_values(decisions[section], labels) if section in decisions else {}
        except ValueError as error:
            raise ValueError(f"machine {name!r}: {error}") from error
        metrics[name] = one
        machines[name] = {**one.as_dict(), **decision_values}
    return {"official_score": official_score(metrics), "machines": machines}


def _titles(sections: list[str]) -> dict[str, str]:
    """Return what results call each section: the machine alone where there is only section 00 of it."""
    numbers: dict[str, set[str]] = {}
    for section in sections:
        machine, _, number = section.rpartition("_section_")
        numbers.setdefault(machine, set()).add(number)
    return {
        section: section.removesuffix("_section_00")
        if numbers[section.rpartition("_section_")[0]] == {"00"}
        else section
        for section in sections
    }


def _decision_files(submission_dir: Path, scores: dict[str, Path]) -> dict[str, Path]:
    try:
        decisions = section_files(submission_dir, "decision_result_", "submission_dir")
    except FileNotFoundError:
        return {}
    if unknown := sorted(set(decisions) - set(scores)):
        raise ValueError(f"submission_dir must hold decisions only beside scores, got decisions alone for {unknown}")
    return decisions


def _decision_values(decision_file: Path, truth: GroundTruth) -> dict[str, float]:
    """Compute precision, recall and F1 of each domain, by name."""
    return {
        f"{value}_{domain}": number
        for domain, values in domain_decision_metrics(*_joined(decision_file, truth)).items()
        for value, number in asdict(values).items()
    }


def _joined(score_file: Path, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read scores, anomaly and target-domain labels of one machine, `(M,)` each, in the order of its ground truth."""
    is_anomaly, is_target, anonymous = truth
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
