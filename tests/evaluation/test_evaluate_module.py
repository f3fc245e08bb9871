"""`evaluate.load(metric_path())` against the numbers of the official evaluator."""

import csv
import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from na_ssl_hf.evaluation.dcase2026_task2 import metric_path

evaluate = pytest.importorskip("evaluate")

CASES = ["tiny", "unbalanced", "ties", "labelled_names", "constant_perfect"]
ALARMS = {"precision": "precision", "recall": "recall", "f1": "F1 score"}


def _load(tmp_path, *arguments):
    return evaluate.load(metric_path(), *arguments, cache_dir=str(tmp_path))


def _pairs(path):
    return {name.removesuffix(".wav"): value for name, value in csv.reader(path.read_text().splitlines())}


def _clips(folder):
    """Columns of a golden case: all clips of all machines."""
    columns = {name: [] for name in ("predictions", "references", "domains", "machines", "decisions")}
    for path in sorted((folder / "ground_truth_data").iterdir()):
        machine = path.name.removeprefix("ground_truth_").removesuffix("_section_00_test.csv")
        team = folder / "teams" / "team" / folder.name
        scores, decisions = (
            _pairs(team / f"{kind}_{machine}_section_00_test.csv") for kind in ("anomaly_score", "decision_result")
        )
        labelled = _pairs(folder / "ground_truth_attributes" / path.name)
        is_target = _pairs(folder / "ground_truth_domain" / path.name)
        for clip, is_anomaly in _pairs(path).items():
            name = clip if clip in scores else labelled[clip]
            columns["predictions"].append(float(scores[name]))
            columns["references"].append(int(is_anomaly))
            columns["domains"].append("target" if int(is_target[clip]) else "source")
            columns["machines"].append(machine)
            columns["decisions"].append(int(decisions[name]))
    return columns


@pytest.mark.parametrize("case", CASES)
def test_official_numbers_of_the_goldens(goldens, tmp_path, case):
    folder = goldens / "backends" / "4_metrics" / case
    expected = json.loads((folder / "expected.json").read_text())
    table = csv.reader((folder / "expected_result.csv").read_text().splitlines())
    means = next(row for row in table if row and row[0].startswith("harmonic mean over all machine types"))[4:]
    result = _load(tmp_path).compute(**_clips(folder))
    got = [result["official_score"], *(result[name] for name in ALARMS)]
    want = [expected["official_score"], *map(float, means)]
    assert got == pytest.approx(want, rel=0, abs=1e-12)
    assert set(result["machines"]) == set(expected["machines"])
    for machine, values in result["machines"].items():
        named = {"auc_source": "AUC (source)", "auc_target": "AUC (target)", "pauc": "pAUC"}
        named["official_score"] = "official score of this machine (hmean of its three values)"
        for domain in ("source", "target"):
            named |= {f"{ours}_{domain}": f"{theirs} ({domain})" for ours, theirs in ALARMS.items()}
        want = {ours: expected["machines"][machine][theirs] for ours, theirs in named.items()}
        assert values == pytest.approx(want, rel=0, abs=1e-12)


def test_batches_equal_one_call(goldens, tmp_path):
    clips = _clips(goldens / "backends" / "4_metrics" / "ties")
    metric = _load(tmp_path, "decisions")
    whole = metric.compute(**clips)
    assert "f1" in whole
    for start in range(0, len(clips["machines"]), 37):
        metric.add_batch(**{name: np.array(column[start : start + 37]) for name, column in clips.items()})
    assert metric.compute() == whole
    decisions = clips.pop("decisions")
    metric = _load(tmp_path)
    metric.add_batch(**clips)
    assert metric.compute(decisions=decisions) == whole
    without = metric.compute(**clips)
    assert "f1" not in without
    assert without["official_score"] == whole["official_score"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("predictions", float("nan"), "machine 'SewingMachine': scores must be finite"),
        ("references", 0.7, "machine 'SewingMachine': is_anomaly must hold 0 and 1"),
        ("domains", "attic", "'source' or 'target', got 'attic' for clip 16"),
        ("machines", "Lathe", "machine 'Lathe': "),
        ("decisions", 0.5, "machine 'SewingMachine': is_alarm must hold 0 and 1"),
    ],
)
def test_bad_input_is_named(goldens, tmp_path, column, value, message):
    clips = _clips(goldens / "backends" / "4_metrics" / "tiny")
    clips[column][-1] = value
    with pytest.raises(ValueError, match=message):
        _load(tmp_path).compute(**clips)


def test_settings_and_lengths_are_checked(goldens, tmp_path):
    with pytest.raises(ValueError, match="config_name must be one of"):
        _load(tmp_path, "decision")
    clips = _clips(goldens / "backends" / "4_metrics" / "tiny")
    clips["decisions"].pop()
    with pytest.raises(ValueError, match="each of the 17 clips, got 16"):
        _load(tmp_path).compute(**clips)


def test_it_explains_itself(tmp_path):
    metric = _load(tmp_path)
    assert "DCASE 2026" in metric.description
    assert "@misc{dcase2026task2" in metric.citation
    assert "higher = more anomalous" in metric.compute.__doc__
    (example, call) = doctest.DocTestParser().get_examples(metric.inputs_description)
    assert example.source == "metric = evaluate.load(metric_path())\n"
    assert repr(eval(call.source, {"metric": metric})) == call.want.strip()


def test_loads_offline_in_a_fresh_process(tmp_path):
    code = """
import evaluate
from na_ssl_hf.evaluation.dcase2026_task2 import metric_path

metric = evaluate.load(metric_path())
clips = dict(references=[0, 1, 0, 1], domains=["source", "source", "target", "target"], machines=["fan"] * 4)
print(metric.compute(predictions=[0.1, 0.9, 0.2, 0.8], **clips)["official_score"])
"""
    private = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | private, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "1.0"
    assert list(Path(tmp_path / "modules").rglob("dcase2026_task2.py"))
