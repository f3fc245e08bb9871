import itertools
import json
import shutil

import pytest

from na_ssl_hf.evaluation.report.submission import evaluate_submission

SCORES = "anomaly_score_Sander_section_00_test.csv"


@pytest.fixture
def case(goldens, tmp_path):
    shutil.copytree(goldens / "backends" / "4_metrics" / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


def _evaluate(case):
    return evaluate_submission(case / "teams" / "team" / "tiny", case)


def _rewrite(case, change):
    path = case / "teams" / "team" / "tiny" / SCORES
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_leading_slash_and_missing_suffix_still_join(case):
    before = _evaluate(case)
    _rewrite(case, lambda rows: ["/test/" + row.replace(".wav", "") for row in rows])
    assert _evaluate(case) == before


def test_decisions_are_the_goldens_and_optional(goldens, tmp_path):
    names = {"precision": "precision", "recall": "recall", "F1 score": "f1"}
    for folder in sorted(path for path in (goldens / "backends" / "4_metrics").iterdir() if path.is_dir()):
        expected = json.loads((folder / "expected.json").read_text())["machines"]
        got = evaluate_submission(folder / "teams" / "team" / folder.name, folder)["machines"]
        for machine, domain, name in itertools.product(expected, ("source", "target"), names):
            want = expected[machine][f"{name} ({domain})"]
            assert got[machine][f"{names[name]}_{domain}"] == pytest.approx(want, rel=0, abs=1e-12)
    case = shutil.copytree(goldens / "backends" / "4_metrics" / "tiny", tmp_path / "tiny")
    (case / "teams" / "team" / "tiny" / SCORES.replace("anomaly_score", "decision_result")).unlink()
    machines = _evaluate(case)["machines"]
    assert "f1_source" not in machines["Sander"]
    assert "f1_source" in machines["SewingMachine"]


def test_decisions_other_than_0_and_1_are_named(case):
    path = case / "teams" / "team" / "tiny" / SCORES.replace("anomaly_score", "decision_result")
    path.write_text(path.read_text().replace(",1", ",0.7"))
    with pytest.raises(ValueError, match=r"'Sander': is_alarm must hold 0 and 1 only"):
        _evaluate(case)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "must score all 4 clips, 1 missing"),
        (lambda rows: [*rows, rows[0]], "every clip once"),
        (lambda rows: [*rows, "section_00_9999.wav,0.1"], "section_00_9999"),
        (lambda rows: [rows[0].split(",")[0] + ",nan", *rows[1:]], "finite number"),
        (lambda rows: [rows[0].split(",")[0] + ",high", *rows[1:]], "got 'high'"),
        (lambda rows: [rows[0] + ",1", *rows[1:]], "two columns"),
    ],
)
def test_bad_rows_are_named(case, change, message):
    _rewrite(case, change)
    with pytest.raises(ValueError, match=message):
        _evaluate(case)


def test_missing_and_unknown_machines_are_named(case):
    scores = case / "teams" / "team" / "tiny" / SCORES
    scores.rename(scores.with_name(SCORES.replace("Sander", "Toaster")))
    with pytest.raises(ValueError, match="none for \\['Sander'\\]"):
        _evaluate(case)
    shutil.copy(scores.with_name(SCORES.replace("Sander", "Toaster")), scores)
    with pytest.raises(ValueError, match="Toaster"):
        _evaluate(case)


def test_missing_folders_are_named(case):
    with pytest.raises(OSError, match="submission_dir"):
        evaluate_submission(case / "nowhere", case)
    shutil.rmtree(case / "ground_truth_domain")
    with pytest.raises(OSError, match="ground_truth_domain"):
        _evaluate(case)
