"""The files of a run are written here: CSVs of the submission, its numbers, and one table of all runs in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, TypedDict

from ... import tables
from ...hub.whole_files import whole_folder
from ..metrics.official import bootstrap_interval
from ..systems.machine_scores import MachineScores
from ..systems.published_systems import SYSTEMS
from ..systems.system_run import SystemRun

METRICS_FILE = "metrics.json"
TABLE_NAME = "results"
# What a run replaces in its folder; a report is of the files beside it.
_OWN_FILES = ("anomaly_score_", "decision_result_", METRICS_FILE, "report.html")
PUBLISHED_SPLITS: tuple[Literal["dev", "eval"], ...] = ("dev", "eval")


class _Facts(TypedDict):
    system: str
    far_cancellation: str | None
    checkpoints: dict[str, list[str]]
    data: str
    clips: dict[str, dict[str, int]]
    published: dict[str, float | None]
    official_score: float | None


class RunMetrics(_Facts, total=False):
    """The content of `metrics.json`; without labels the official score is `None`, and the fields below are missing.

    `layers` is there only where others than the last one were chosen, `backend` where it is not the system's own, and
    `level` where it is not that of the recordings.
    """

    layers: dict[str, list[int]]
    backend: str
    level: str
    interval: dict[str, float]
    machines: dict[str, dict[str, float]]


def write_run(folder: str | Path, run: SystemRun, data: str | Path, seed: int = 0) -> RunMetrics:
    """Write `anomaly_score_*` and `decision_result_*` CSVs as the challenge wants them, and `metrics.json`.

    Args:
        folder: the folder of the run, made if missing; a kill leaves the files of an earlier run or
            those of this one.
        run: the scores to write.
        data: the folder that the clips came from, which `metrics.json` names.
        seed: seed of the bootstrap over clips.

    Returns:
        the content of `metrics.json`.
    """
    folder = Path(folder)
    metrics = _metrics(run, str(data), seed)
    with whole_folder(folder, keeps=lambda name: not name.startswith(_OWN_FILES)) as staging:
        for machine in run.machines:
            names = [tables.unicode_name(clip.path.name) for clip in machine.clips]
            alarms = machine.is_alarm.astype(int).tolist()
            for kind, column in (("anomaly_score", machine.scores.tolist()), ("decision_result", alarms)):
                path = staging / f"{kind}_{_submission_name(machine)}"
                tables.write_table(path, None, zip(names, column, strict=True), is_for_people=False)
        tables.write_text(staging / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    return metrics


def write_table(folder: str | Path) -> list[dict[str, str]]:
    """Gather `*/metrics.json` into `results.csv` and `results.md`, in the order of the papers' tables.

    Scores are in %, with the 95 % bootstrap interval over clips. Published scores, where there are any, stand beside
    them; those are of the challenge's data with the authors' checkpoints.

    Returns:
        the rows: title of a column -> text.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a `metrics.json` is not that of a run.
    """
    folder = Path(folder)
    found = [_read_metrics(path) for path in sorted(folder.glob(f"*/{METRICS_FILE}"))]
    order = list(SYSTEMS)
    found.sort(
        key=lambda one: (
            order.index(one["system"]),
            one["far_cancellation"] or "",
            one.get("level", ""),
            one.get("backend", ""),
        )
    )
    rows = [_row(one) for one in found]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    tables.write_table(folder / f"{TABLE_NAME}.csv", columns, cells)
    lines = [" | ".join(map(_markdown_cell, line)) for line in (columns, ["---"] * len(columns), *cells)]
    note = (
        "Official scores in %, 95 % bootstrap interval over clips. Published: the papers' numbers, on the challenge's "
        "data with the authors' checkpoints; on other data or checkpoints they are not comparable.\n"
    )
    tables.write_text(folder / f"{TABLE_NAME}.md", "".join(f"| {line} |\n" for line in lines) + "\n" + note)
    return rows


def describe(metrics: RunMetrics) -> dict[str, str]:
    """Return the facts of `metrics.json` that stand at the top of a report: label -> text."""
    sizes = [f"{name} {clips['train']} + {clips['test']}" for name, clips in metrics["clips"].items()]
    facts = {
        "data": metrics["data"],
        "training + test clips": ", ".join(sizes),
        "checkpoints": _checkpoints(metrics) or "none",
        "far-microphone cancellation": metrics["far_cancellation"] or "as the checkpoints say",
    }
    if "level" in metrics:
        facts["level of the recordings"] = metrics["level"]
    if "backend" in metrics:
        facts["backend"] = metrics["backend"]
    for split, value in metrics["published"].items():
        if value is not None:
            facts[f"published, {split} set"] = f"{value:.2f} % (the challenge's data, the authors' checkpoints)"
    return facts


def _read_metrics(path: Path) -> RunMetrics:
    try:
        metrics: RunMetrics = json.loads(path.read_bytes())
        if metrics["system"] not in SYSTEMS:
            raise ValueError(f"an unknown system {metrics['system']!r}")
        _row(metrics)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} must be the numbers of a run, got {why}; remove the file or its folder") from error
    return metrics


def _metrics(run: SystemRun, data: str, seed: int) -> RunMetrics:
    recipe = SYSTEMS[run.system]
    is_published = run.backend is None and run.level == "as recorded"
    metrics: RunMetrics = {
        "system": run.system,
        "far_cancellation": run.far_cancellation,
        "checkpoints": {name: list(seeds) for name, seeds in run.checkpoints.items()},
        "data": data,
        "clips": {one.machine: {"train": len(one.normal_scores), "test": len(one.clips)} for one in run.machines},
        "published": {
            split: recipe.published(split, run.far_cancellation) if is_published else None for split in PUBLISHED_SPLITS
        },
        "official_score": None,
    }
    if run.layers:
        metrics["layers"] = {name: list(layers) for name, layers in run.layers.items()}
    if run.level != "as recorded":
        metrics["level"] = run.level
    if run.backend is not None:
        metrics["backend"] = run.backend
    if all(one.is_labelled for one in run.machines):
        interval = bootstrap_interval({one.machine: one.labelled_scores for one in run.machines}, seed=seed)
        metrics["official_score"] = interval.estimate
        metrics["interval"] = {"confidence": 0.95, "low": interval.low, "high": interval.high, "seed": seed}
        metrics["machines"] = {one.machine: one.metrics.as_dict() for one in run.machines}
    return metrics


def _submission_name(machine: MachineScores) -> str:
    name = machine.clips[0].name
    return f"{name.machine}_section_{name.section:02d}_test.csv"


def _row(metrics: RunMetrics) -> dict[str, str]:
    row = {"system": metrics["system"], "far cancellation": metrics["far_cancellation"] or ""}
    if "level" in metrics:
        row["level"] = metrics["level"]
    if "backend" in metrics:
        row["backend"] = metrics["backend"]
    row["official score"] = _percent(metrics["official_score"])
    if "interval" in metrics:
        row["95 % interval"] = f"{_percent(metrics['interval']['low'])} to {_percent(metrics['interval']['high'])}"
    for split, value in metrics["published"].items():
        row[f"published {split}"] = "" if value is None else f"{value:.2f}"
    row |= {name: _percent(values["official_score"]) for name, values in metrics.get("machines", {}).items()}
    return {**row, "checkpoints": _checkpoints(metrics), "data": metrics["data"]}


def _checkpoints(metrics: RunMetrics) -> str:
    """Return the checkpoints of the frontends in words, with the layers that were chosen."""
    chosen = {name: f" (layer {' + '.join(map(str, layers))})" for name, layers in metrics.get("layers", {}).items()}
    return ", ".join(
        f"{name}: {' + '.join(seeds)}{chosen.get(name, '')}" for name, seeds in metrics["checkpoints"].items()
    )


def _percent(share: float | None) -> str:
    return "no labels" if share is None else f"{100 * share:.2f}"


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
