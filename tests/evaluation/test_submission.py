import io
import itertools
import json
import shutil
import sys

import pytest

from na_ssl_hf.cli import main
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


def _write_section(folder, section, names=lambda clip: f"{clip}.wav", encoding="utf-8"):
    """Write scores and ground truth of 8 clips `section_<nn>_<nnnn>_Lüfter`; those of section 01 are all wrong."""
    clips = [f"section_{section:02d}_{index:04d}_Lüfter" for index in range(8)]
    sign = 1 - 2 * section
    columns = {
        "gt/ground_truth_data/ground_truth": [f"{clip}.wav,{i % 2}" for i, clip in enumerate(clips)],
        "gt/ground_truth_domain/ground_truth": [f"{clip}.wav,{i // 2 % 2}" for i, clip in enumerate(clips)],
        "gt/ground_truth_attributes/ground_truth": [f"{clip}.wav,{clip}_x_{i}.wav" for i, clip in enumerate(clips)],
        "sub/anomaly_score": [f"{names(clip)},{sign * (i % 2) + i / 100}" for i, clip in enumerate(clips)],
    }
    for prefix, rows in columns.items():
        path = folder / f"{prefix}_fan_section_{section:02d}_test.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        is_score = "score" in prefix
        path.write_bytes("".join(f"{row}\n" for row in rows).encode(encoding if is_score else "utf-8"))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize(
    "names",
    [
        lambda clip: clip,
        lambda clip: f"C:\\data\\fan\\test\\{clip}.wav",
        lambda clip: f"{clip}.WAV",
        lambda clip: f"/fan/test/{clip}.Wav",
        lambda clip: f'" {clip}_x_{int(clip[11:15])}.wav "',
    ],
    ids=["no suffix", "Windows", "capitals", "slash", "labelled and quoted"],
)
def test_tables_and_names_of_other_systems_join(tmp_path, names, encoding):
    _write_section(tmp_path, 0, names, encoding=encoding)
    result = evaluate_submission(tmp_path / "sub", tmp_path / "gt")
    assert result["official_score"] == 1
    assert list(result["machines"]) == ["fan"]


def test_letters_of_two_characters_are_those_of_one(tmp_path):
    _write_section(tmp_path, 0, lambda clip: clip.replace("ü", "u\u0308"))
    assert evaluate_submission(tmp_path / "sub", tmp_path / "gt")["official_score"] == 1


def test_a_console_that_cannot_show_a_name_gets_the_numbers(tmp_path, monkeypatch):
    _write_section(tmp_path, 0)
    for path in tmp_path.rglob("*.csv"):
        path.rename(path.with_name(path.name.replace("fan", "Lüfter")))
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["evaluate-submission", str(tmp_path / "sub"), str(tmp_path / "gt")]) == 0
    console.flush()
    lines = console.buffer.getvalue().decode("ascii").splitlines()
    assert lines[0] == "official score 100.00 %"
    assert lines[1].startswith("  L\\xfcfter: auc_source 1.0000")


def test_line_ends_of_other_systems_and_empty_lines_change_nothing(tmp_path):
    path = _write_section(tmp_path, 0)
    text = path.read_bytes()
    for other in (text.replace(b"\n", b"\r\n"), text.replace(b"\n", b"\r"), text + b"\n \n,\n\r\n", text.rstrip()):
        path.write_bytes(other)
        assert evaluate_submission(tmp_path / "sub", tmp_path / "gt")["official_score"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(b",", b";"), r"test\.csv line 1 must have two columns with a comma between them"),
        (lambda text: text.replace(b",", b"\t"), r"line 1 must have two columns with a comma between them"),
        (
            lambda text: text.replace(b",", b";").replace(b"0.", b"0,"),
            r"line 1 must have two columns with a comma between them, and numbers with a decimal point",
        ),
        (lambda text: text.replace(b"0.", b"0,"), r"line 1 must have two columns, got"),
        (lambda text: text.replace(b"_0003", b"_\x000003"), r"line 4: must be CSV, got a line with a NUL"),
        (lambda text: text.replace(b"_0003", b"a" * 140_000), r"line 4: must be CSV, got a line with field larger"),
        (lambda text: text.replace(b"section_00_0003", b'"section_00_0003'), r"must be CSV"),
        (lambda text: text.decode().encode("utf-16-le"), r"line 1: must be CSV, got a line with a NUL"),
        (lambda text: text + text.splitlines()[0].replace(b".wav", b".WAV"), r"every clip once, got"),
        (lambda text: text.replace(b"0.02", b"inf"), r"finite number for 'section_00_0002_Lüfter', got 'inf'"),
        (lambda text: text.replace(b"0.02", b"1_0"), r"finite number for 'section_00_0002_Lüfter', got '1_0'"),
        (lambda text: b"file,score\n" + text, r"clips of the ground truth only, got 'file'"),
        (lambda text: b"", r"must score all 8 clips, 8 missing"),
    ],
    ids=lambda value: None if callable(value) else value[:30],
)
def test_what_is_no_table_of_scores_is_named(tmp_path, change, message):
    path = _write_section(tmp_path, 0)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_submission(tmp_path / "sub", tmp_path / "gt")
    assert "machine 'fan'" in str(caught.value)
    assert path.name in str(caught.value)


def test_every_section_of_the_ground_truth_counts(tmp_path):
    _write_section(tmp_path, 0)
    alone = evaluate_submission(tmp_path / "sub", tmp_path / "gt")
    path = _write_section(tmp_path, 1)
    both = evaluate_submission(tmp_path / "sub", tmp_path / "gt")
    assert list(both["machines"]) == ["fan_section_00", "fan_section_01"]
    assert both["machines"]["fan_section_00"] == alone["machines"]["fan"]
    assert both["official_score"] < 1e-6 < alone["official_score"] == 1
    path.unlink()
    with pytest.raises(ValueError, match=r"none for \['fan_section_01'\]"):
        evaluate_submission(tmp_path / "sub", tmp_path / "gt")


def test_sections_and_machines_that_the_ground_truth_lacks_are_named(tmp_path):
    _write_section(tmp_path, 0)
    path = _write_section(tmp_path, 1)
    for folder in ("data", "domain", "attributes"):
        (tmp_path / "gt" / f"ground_truth_{folder}" / "ground_truth_fan_section_01_test.csv").unlink()
    with pytest.raises(ValueError, match=r"got also \['fan_section_01'\]"):
        evaluate_submission(tmp_path / "sub", tmp_path / "gt")
    path.rename(path.with_name("decision_result_fan_section_01_test.csv"))
    with pytest.raises(ValueError, match=r"decisions alone for \['fan_section_01'\]"):
        evaluate_submission(tmp_path / "sub", tmp_path / "gt")


@pytest.mark.parametrize("folder", ["data", "domain", "attributes"])
def test_a_section_that_one_folder_of_the_ground_truth_lacks_is_named(tmp_path, folder):
    _write_section(tmp_path, 0)
    _write_section(tmp_path, 1).unlink()
    missing = tmp_path / "gt" / f"ground_truth_{folder}" / "ground_truth_fan_section_01_test.csv"
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing.parent.name}/{missing.name} is missing"):
        evaluate_submission(tmp_path / "sub", tmp_path / "gt")


@pytest.mark.parametrize(
    "name", ["sub/anomaly_score_fan_section_1_test.csv", "gt/ground_truth_data/ground_truth_fan_section_01.csv"]
)
def test_tables_whose_names_do_not_follow_the_rule_are_not_passed_over(tmp_path, name):
    _write_section(tmp_path, 0)
    (tmp_path / name).write_text("section_01_0000.wav,1\n")
    with pytest.raises(ValueError, match=rf"section_<nn>_test\.csv, got '{name.split('/')[-1]}'"):
        evaluate_submission(tmp_path / "sub", tmp_path / "gt")
    (tmp_path / name).rename(tmp_path / name.replace("/anomaly", "/.anomaly").replace("/ground_truth_fan", "/._x"))
    assert evaluate_submission(tmp_path / "sub", tmp_path / "gt")["official_score"] == 1


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("data", lambda text: text.replace(",1", ",2"), r"0001_Lüfter', got 2"),
        ("domain", lambda text: text.replace(",1", ",0.5"), r"0 or 1 for 'section_00_0002_Lüfter', got 0\.5"),
        ("domain", lambda text: text.replace("_0003", "_0009"), r"same clips in ground_truth_data and"),
        ("attributes", lambda text: text.replace("x_3", "x_2").replace("0003_Lüfter_", "0002_Lüfter_"), r"of its own"),
        ("attributes", lambda text: text.replace("_x_3", ""), None),
        ("attributes", lambda text: text.replace("0003_Lüfter_x_3", "0002_Lüfter"), r"a name of its own"),
    ],
)
def test_tables_of_the_ground_truth_must_belong_together(tmp_path, table, change, message):
    _write_section(tmp_path, 0)
    path = tmp_path / "gt" / f"ground_truth_{table}" / "ground_truth_fan_section_00_test.csv"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    if message is None:
        assert evaluate_submission(tmp_path / "sub", tmp_path / "gt")["official_score"] == 1
        return
    with pytest.raises(ValueError, match=message):
        evaluate_submission(tmp_path / "sub", tmp_path / "gt")
