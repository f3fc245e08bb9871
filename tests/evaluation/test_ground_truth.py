"""The ground truth beside a data folder with anonymous test clips."""

import csv
import os
import sys

import numpy as np
import pytest

from na_ssl_hf.evaluation.report.result_files import write_run, write_table
from na_ssl_hf.evaluation.report.submission import evaluate_submission
from na_ssl_hf.evaluation.systems.machine_data import list_machines, read_labels_of_machines
from na_ssl_hf.evaluation.systems.machine_scores import MachineScores
from na_ssl_hf.evaluation.systems.system_run import SystemRun


def write_data(root, *sections, suffix=".wav", num_clips=8, machine="fan"):
    """Make empty files of one training clip and 8 anonymous test clips of each section, which nobody opens."""
    for split in ("train", "test"):
        (root / machine / split).mkdir(parents=True, exist_ok=True)
    for section in sections:
        train = f"section_{section:02d}_source_train_normal_0000_noAttribute.wav"
        (root / machine / "train" / train).touch()
        for index in range(num_clips):
            (root / machine / "test" / f"section_{section:02d}_{index:04d}{suffix}").touch()
    return root


def write_truth(root, *sections, suffix=".wav", name=lambda clip: clip):
    for section in sections:
        clips = [f"section_{section:02d}_{index:04d}" for index in range(8)]
        columns = {
            "data": [(index + section) % 2 for index in range(8)],
            "domain": [index // 2 % 2 for index in range(8)],
            "attributes": [f"{name(clip)}_labelled.wav" for clip in clips],
        }
        for kind, column in columns.items():
            path = root / f"ground_truth_{kind}" / f"ground_truth_fan_section_{section:02d}_test.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [f"{name(clip)}{suffix},{value}\n" for clip, value in zip(clips, column, strict=True)]
            path.write_text("".join(rows), encoding="utf-8")
    return root


@pytest.mark.parametrize("sections", [(0,), (0, 1), (1,), (2, 5)])
@pytest.mark.parametrize("suffix", [".wav", ".WAV"])
def test_labels_of_every_section_come_from_its_own_tables(tmp_path, sections, suffix):
    machines = list_machines(write_data(tmp_path / "data", *sections, suffix=suffix))
    truth = write_truth(tmp_path / "gt", *sections)
    labels = read_labels_of_machines(machines, truth)
    assert list(labels) == (["fan"] if sections == (0,) else [f"fan_section_{section:02d}" for section in sections])
    for section, (is_anomaly, is_target) in zip(sections, labels.values(), strict=True):
        np.testing.assert_array_equal(is_anomaly, [(index + section) % 2 == 1 for index in range(8)])
        np.testing.assert_array_equal(is_target, [False, False, True, True] * 2)


@pytest.mark.parametrize(("here", "absent"), [((0,), ["fan_section_01"]), ((0, 1), ["fan_section_02"])])
def test_a_section_that_the_data_lack_is_named(tmp_path, here, absent):
    machines = list_machines(write_data(tmp_path / "data", *here))
    truth = write_truth(tmp_path / "gt", *here, *(int(name[-2:]) for name in absent))
    with pytest.raises(ValueError, match=rf"sections of the ground truth, got none of \['{absent[0]}'\]"):
        read_labels_of_machines(machines, truth)


def test_a_section_that_the_ground_truth_lacks_is_named(tmp_path):
    machines = list_machines(write_data(tmp_path / "data", 0, 1))
    with pytest.raises(FileNotFoundError, match=r"fan_section_01_test\.csv is missing"):
        read_labels_of_machines(machines, write_truth(tmp_path / "gt", 0))


def test_other_machines_of_the_ground_truth_need_no_data(tmp_path):
    machines = list_machines(write_data(tmp_path / "data", 0))
    truth = write_truth(tmp_path / "gt", 0)
    for path in truth.rglob("*.csv"):
        path.with_name(path.name.replace("fan", "valve")).write_bytes(path.read_bytes())
    assert list(read_labels_of_machines(machines, truth)) == ["fan"]


def test_clips_that_the_data_lack_are_told_and_clips_without_a_label_are_an_error(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("na_ssl_hf.evaluation.systems.machine_data.logger.propagate", True)
    truth = write_truth(tmp_path / "gt", 0)
    read_labels_of_machines(list_machines(write_data(tmp_path / "some", 0, num_clips=6)), truth)
    assert "lack 2 of the 8 test clips that the ground truth has of fan, first section_00_0006" in caplog.text
    caplog.clear()
    data = write_data(tmp_path / "data", 0)
    read_labels_of_machines(list_machines(data), truth)
    assert not caplog.text
    (data / "fan" / "test" / "section_00_0008.wav").touch()
    with pytest.raises(ValueError, match="none for 1, first section_00_0008"):
        read_labels_of_machines(list_machines(data), truth)


def run_of(machines, labels):
    scored = []
    for machine in machines:
        is_anomaly, is_target = labels[machine.name]
        scores = is_anomaly + np.arange(8) / 100
        scored.append(MachineScores(machine.name, machine.test, scores, np.zeros(1), 0.5, None, is_anomaly, is_target))
    return SystemRun("logmel", None, {}, tuple(scored))


def test_what_a_run_writes_is_scored_as_the_run_was(tmp_path):
    machines = list_machines(write_data(tmp_path / "data", 0, 3))
    truth = write_truth(tmp_path / "gt", 0, 3)
    metrics = write_run(tmp_path / "run", run_of(machines, read_labels_of_machines(machines, truth)), "data")
    result = evaluate_submission(tmp_path / "run", truth)
    assert result["official_score"] == metrics["official_score"] == 1
    assert list(result["machines"]) == list(metrics["machines"]) == ["fan_section_00", "fan_section_03"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_names_that_a_disk_holds_in_latin_1_join_and_are_written(tmp_path):
    data = write_data(tmp_path / "data", 0)
    for path in sorted((data / "fan" / "test").iterdir()):
        latin = os.fsencode(path.with_suffix("")) + "_Lüfter.wav".encode("latin-1")
        path.rename(os.fsdecode(latin))
    truth = write_truth(tmp_path / "gt", 0, name=lambda clip: f"{clip}_Lüfter")
    machines = list_machines(data)
    run = run_of(machines, read_labels_of_machines(machines, truth))
    write_run(tmp_path / "run", run, os.fsdecode(b"/d\xfc"))
    assert "section_00_0000_Lüfter.wav,0.0\n" in (tmp_path / "run" / "anomaly_score_fan_section_00_test.csv").read_text(
        encoding="utf-8"
    )
    assert evaluate_submission(tmp_path / "run", truth)["official_score"] == 1


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "null", '{"system": "logmel"}', '{"system": "toaster"}', '{"system": []}', "[" * 100_000, "\xff"],
)
def test_numbers_that_are_not_those_of_a_run_are_named(tmp_path, content):
    (tmp_path / "logmel").mkdir()
    (tmp_path / "logmel" / "metrics.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"logmel/metrics\.json must be the numbers of a run, got"):
        write_table(tmp_path)


def test_the_table_of_all_runs_takes_any_name(tmp_path):
    machines = list_machines(write_data(tmp_path / "data", 0))
    run = run_of(machines, read_labels_of_machines(machines, write_truth(tmp_path / "gt", 0)))
    write_run(tmp_path / "out" / "logmel", run, "=a|b\n\udcfc")
    (row,) = write_table(tmp_path / "out")
    assert row["data"] == "=a|b\n\udcfc"
    with (tmp_path / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        (read,) = csv.DictReader(file)
    assert read["official score"] == "100.00"
    assert read["data"] == "'=a|b\n\\udcfc"
    table = (tmp_path / "out" / "results.md").read_text(encoding="utf-8").splitlines()
    assert table[2].endswith(r"=a\|b \udcfc |")
