"""`na-ssl fleet` in one process, and in two: scores as those of `na-ssl score`, rows of errors, runs that go on."""

import csv
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fleet_of_machines import make_fleet, read_rows, run, write_clip, write_table

from na_ssl_hf import AnomalyScorer
from na_ssl_hf.fleet.engines import not_connected
from na_ssl_hf.fleet.scorers import FleetScorers
from na_ssl_hf.fleet.workers import ScoreWork

sys.path.append(str(Path(__file__).parents[1]))


def score(fleet_table, out, *options):
    return run("fleet", "score", "--machines", fleet_table, "--out", out, "--engine", "local", *options)


def scores_alone(scorer, recordings, folder, *options) -> dict[str, dict[str, str]]:
    """The table of `na-ssl score`, by file."""
    assert run("score", scorer, recordings, "--csv", folder / "alone.csv", "--device", "cpu", *options) == 0
    with (folder / "alone.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_scores_are_those_of_na_ssl_score_to_the_last_bit(fleet, tmp_path, capsys):
    assert torch.get_num_threads() == 1
    assert score(fleet.table, tmp_path / "scores", "--part-size", 2, "--batch-size", 2) == 0
    assert "9 recordings of 3 machines, " in capsys.readouterr().out
    rows = read_rows(tmp_path / "scores")
    assert len(rows) == 9
    for machine in fleet.rows:
        folder = fleet.folder / machine["machine"] / "today"
        alone = scores_alone(fleet.folder / machine["scorer"], folder, tmp_path, "--batch-size", 2)
        own = [row for row in rows if row["machine"] == machine["machine"]]
        assert {row["file"] for row in own} == set(alone)
        for row in own:
            assert row["window"] is row["start"] is row["error"] is None
            assert str(row["is_anomaly"]) == alone[row["file"]]["is_anomaly"]
            for name in ("score", "p_value", "threshold"):
                assert row[name] == float(alone[row["file"]][name])


def test_windows_have_rows_behind_that_of_their_recording(fleet, tmp_path):
    options = ("--window", 0.25, "--aggregate", "mean")
    assert score(fleet.table, tmp_path / "scores", *options) == 0
    rows = [row for row in read_rows(tmp_path / "scores") if row["machine"] == "m1"]
    alone = scores_alone(fleet.folder / "scorers/m1", fleet.folder / "m1/today", tmp_path, *options)
    assert len(rows) == 3 * len(alone)
    for recording, *windows in (rows[at : at + 3] for at in range(0, len(rows), 3)):
        assert recording["score"] == float(alone[recording["file"]]["score"])
        assert [window["window"] for window in windows] == [0, 1]
        assert [(window["start"], window["end"]) for window in windows] == [(0.0, 0.25), (0.25, 0.5)]
        assert sum(window["score"] for window in windows) / 2 == pytest.approx(recording["score"])


def test_what_is_done_does_not_depend_on_the_folder_from_which_the_run_is_started(fleet, tmp_path, monkeypatch):
    monkeypatch.chdir(fleet.folder)
    assert score(fleet.table.name, tmp_path / "scores") == 0
    monkeypatch.chdir(fleet.folder / "m0")
    assert score("../machines.csv", tmp_path / "scores") == 0
    assert score(fleet.table, tmp_path / "scores") == 0
    rows = read_rows(tmp_path / "scores")
    assert len(rows) == 9
    assert all(Path(row["file"]).is_absolute() for row in rows)

    from pyarrow import parquet

    # An output of an earlier version, whose names are those of its folder.
    for part in (tmp_path / "scores").glob("*.parquet"):
        table = parquet.read_table(part)
        relative = [os.path.relpath(file, fleet.folder) for file in table.column("file").to_pylist()]
        parquet.write_table(table.set_column(1, "file", [relative]), part)
    monkeypatch.chdir(fleet.folder)
    assert score(fleet.table.name, tmp_path / "scores") == 0
    assert len(read_rows(tmp_path / "scores")) == 9


def test_bad_files_and_machines_are_rows_and_the_others_are_scored(fleet, tmp_path, capsys):
    write_clip(tmp_path / "today" / "good.wav", 1)
    (tmp_path / "today" / "bad.wav").write_bytes(b"RIFF")
    unfitted = tmp_path / "unfitted"
    shutil.copytree(fleet.folder / "scorers/m0", unfitted)
    (unfitted / "memory_bank.safetensors").unlink()
    damaged = tmp_path / "damaged"
    shutil.copytree(fleet.folder / "scorers/m0", damaged)
    (damaged / "memory_bank.safetensors").write_bytes(b"no memory")
    today = str(tmp_path / "today")
    good = {"scorer": str(fleet.folder / "scorers/m0"), "recordings": today}
    rows = [
        {"machine": "good", **good},
        {"machine": "unfitted", **good, "scorer": str(unfitted)},
        {"machine": "damaged", **good, "scorer": str(damaged)},
        {"machine": "gone", **good, "scorer": str(tmp_path / "nowhere")},
        {"machine": "silent", **good, "recordings": "nothing"},
    ]
    table = write_table(tmp_path / "machines.csv", rows)
    assert score(table, tmp_path / "scores") == 1
    captured = capsys.readouterr()
    assert "1 recordings of 5 machines" in captured.out
    assert "8 recordings could not be scored, the first of them: " in captured.err
    found: dict[str, list] = {}
    for row in read_rows(tmp_path / "scores"):
        assert (row["score"] is None) == (row["error"] is not None)
        found.setdefault(row["machine"], []).append(row)
    assert {name: len(own) for name, own in found.items()} == {
        **dict.fromkeys(("good", "unfitted", "damaged", "gone"), 2),
        "silent": 1,
    }
    errors = {row["file"].rsplit("/", 1)[1]: row["error"] for row in found["good"]}
    assert errors["good.wav"] is None
    assert "bad.wav" in errors["bad.wav"]
    assert "has no memory of normal recordings" in found["unfitted"][0]["error"]
    assert "is not a readable memory bank" in found["damaged"][0]["error"]
    assert "there is no folder" in found["gone"][0]["error"]
    assert "machines.csv, line 6: no file or folder" in found["silent"][0]["error"]

    # What was mended is scored by the next run where it is asked to, and nothing else.
    shutil.copy(fleet.folder / "scorers/m0/memory_bank.safetensors", unfitted)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").glob("*.parquet")}
    assert score(table, tmp_path / "scores") == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").glob("*.parquet")}
    assert score(table, tmp_path / "scores", "--retry-errors") == 1
    rows = read_rows(tmp_path / "scores")
    assert len(rows) == 9
    assert sum(row["error"] is None for row in rows) == 2


def test_a_run_goes_on_where_it_was_and_refuses_other_settings(fleet, tmp_path, capsys):
    out = tmp_path / "scores"
    assert score(fleet.table, out, "--part-size", 2, "--batch-size", 1) == 0
    whole = {(row["machine"], row["file"]): row["score"] for row in read_rows(out)}
    parts = sorted(out.glob("*.parquet"))
    assert len(parts) >= 4
    kept = {path.name: path.stat().st_mtime_ns for path in parts[1:-1]}
    for path in (parts[0], parts[-1]):
        path.unlink()
    capsys.readouterr()
    assert score(fleet.table, out, "--part-size", 2, "--batch-size", 1) == 0
    assert "of an earlier run" in capsys.readouterr().out
    rows = read_rows(out)
    assert len(rows) == len(whole) == 9
    assert {(row["machine"], row["file"]): row["score"] for row in rows} == whole
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert score(fleet.table, out, "--window", 0.25) == 1
    assert "--out must hold parts of the same settings" in capsys.readouterr().err
    assert len(read_rows(out)) == 9


def test_machines_with_one_encoder_share_it_and_memories_are_few(fleet):
    scorers = FleetScorers(num_memories=2)
    folders = [str(fleet.folder / row["scorer"]) for row in fleet.rows]
    files = [str(fleet.folder / "m0/today/0.wav")]
    nothing = {"window": None, "hop": None, "aggregate": None}
    first = [scorers.score(folder, files, 1, nothing)[0]["score"] for folder in folders]
    assert scorers.num_encoders == 1
    assert len(scorers._memories) == 2
    assert len(set(first)) == len(folders)
    again = [scorers.score(folder, files, 1, nothing)[0]["score"] for folder in reversed(folders)]
    assert again == first[::-1]


def test_other_weights_are_another_encoder_and_must_be_those_of_the_memory(fleet, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(fleet.folder / "scorers/m0", tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    name = next(name for name in weights if name.endswith("weight"))
    save_file(
        {**weights, name: weights[name] * 1.5}, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"}
    )
    scorers = FleetScorers()
    nothing = {"window": None, "hop": None, "aggregate": None}
    files = [str(fleet.folder / "m0/today/0.wav")]
    assert "score" in scorers.score(str(fleet.folder / "scorers/m0"), files, 1, nothing)[0]
    with pytest.raises(ValueError, match="fitted with another model"):
        scorers.score(str(tmp_path / "other"), files, 1, nothing)
    assert scorers.num_encoders == 2


def test_fit_gives_the_scorers_of_na_ssl_fit_and_one_file_of_weights(fleet, tmp_path):
    rows = {row["machine"]: row for row in read_rows(fleet.fitted)}
    assert set(rows) == {"m0", "m1", "m2"}
    assert run("fit", fleet.folder / "m1/normal", "--out", tmp_path / "m1", "--device", "cpu") == 0
    alone = scores_alone(tmp_path / "m1", fleet.folder / "m1/today", tmp_path)
    shared = scores_alone(fleet.folder / "scorers/m1", fleet.folder / "m1/today", tmp_path)
    assert shared == alone
    assert rows["m1"]["threshold"] == float(next(iter(alone.values()))["threshold"])
    assert rows["m1"]["num_normal"] == 4
    weights = [(fleet.folder / row["scorer"] / "model.safetensors").stat() for row in fleet.rows]
    assert len({found.st_ino for found in weights}) == 1


def test_fit_goes_on_and_has_a_row_for_what_cannot_be_fitted(tmp_path, capsys):
    fleet = make_fleet(tmp_path, num_machines=2)
    (tmp_path / "m1/normal/0.wav").write_bytes(b"RIFF")
    command = ("fleet", "fit", "--machines", fleet.table, "--out", tmp_path / "fitted", "--engine", "local")
    assert run(*command) == 1
    captured = capsys.readouterr()
    assert "1 of 2 machines fitted" in captured.out
    assert "m1: " in captured.err
    assert not (tmp_path / "scorers/m1").exists()
    before = os.stat(tmp_path / "scorers/m0/memory_bank.safetensors").st_mtime_ns
    assert run(*command, "--skip-unreadable", "--retry-errors") == 1  # the setting is another one
    assert "instead of {'skip_unreadable': True}" in capsys.readouterr().err
    write_clip(tmp_path / "m1/normal/0.wav", 9)
    assert run(*command, "--retry-errors") == 0
    assert "1 of 2 machines fitted, 1 by an earlier run" in capsys.readouterr().out
    assert os.stat(tmp_path / "scorers/m0/memory_bank.safetensors").st_mtime_ns == before
    assert all(row["error"] is None for row in read_rows(tmp_path / "fitted"))
    assert run(*command, "--pooling", "max", "--groups", "folder", "--out", tmp_path / "other") == 1
    assert "`groups` must name at least two groups" in capsys.readouterr().err


def test_two_launched_processes_give_the_scores_of_one(fleet, tmp_path):
    from two_processes import run_on_two_processes

    assert score(fleet.table, tmp_path / "one") == 0
    command = ("fleet", "score", "--machines", fleet.table, "--out", tmp_path / "two", "--part-size", "2")
    done = run_on_two_processes(["-m", "na_ssl_hf.cli", *command])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("9 recordings of 3 machines") == 1
    key = lambda row: (row["machine"], row["file"])  # noqa: E731
    assert sorted(read_rows(tmp_path / "two"), key=key) == sorted(read_rows(tmp_path / "one"), key=key)


def test_a_sharing_scorer_refuses_the_memory_of_another_model_and_leaves_the_first_alone(fleet):
    from na_ssl_hf.checkpoints.scorers import load_scorer

    first, second = (load_scorer(str(fleet.folder / "scorers" / name), "cpu") for name in ("m0", "m1"))
    recording = str(fleet.folder / "m0/today/0.wav")
    expected = first(recording)
    sharing = first.sharing_model(second.memory_bank, second.far_microphone)
    assert isinstance(sharing, AnomalyScorer)
    assert sharing.model is first.model
    assert sharing(recording) == second(recording)
    assert first(recording) == expected != second(recording)
    foreign = load_scorer("na-eat-tiny-distilled", "cpu")
    with torch.no_grad():
        next(foreign.model.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match="fitted with another model"):
        foreign.sharing_model(second.memory_bank, second.far_microphone)(recording)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--engine", "local", "--workers", 2), "options of --engine ray"),
        (("--engine", "local", "--part-size", 0), "`part_size` must be a whole number of at least 1, got 0"),
        (("--engine", "local", "--batch-size", 0), "--batch-size and --memories must be at least 1"),
        (("--engine", "local", "--device", "nothing"), "--device nothing cannot be used"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(fleet, tmp_path, capsys, options, message):
    assert run("fleet", "score", "--machines", fleet.table, "--out", tmp_path / "scores", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "scores").exists()


def test_a_place_that_cannot_be_written_is_told_before_any_work(fleet, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ScoreWork, "worker", None)
    (tmp_path / "file").write_text("")
    assert score(fleet.table, tmp_path / "file" / "scores") == 1
    assert "Not a directory" in capsys.readouterr().err


def test_missing_packages_are_named(fleet, tmp_path, capsys, monkeypatch):
    from na_ssl_hf.fleet import engines, running

    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "ray" else object())
    assert run("fleet", "score", "--machines", fleet.table, "--out", tmp_path / "scores") == 1
    assert "pip install 'na-ssl-hf[fleet]'" in capsys.readouterr().err
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else object())
    assert score(fleet.table, tmp_path / "scores") == 1
    assert "a fleet needs pyarrow" in capsys.readouterr().err
    assert ScoreWork("x").settings["window"] is None


def test_the_command_that_leaves_the_scoring_to_others_needs_no_torch(fleet, tmp_path):
    assert score(fleet.table, tmp_path / "scores") == 0
    code = """
import sys
from na_ssl_hf.cli import main
assert main(sys.argv[1:]) == 0
print([name for name in ("torch", "ray", "sklearn") if name in sys.modules])
"""
    command = ["fleet", "score", "--machines", fleet.table, "--out", tmp_path / "scores"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_cluster_that_nobody_runs_is_named_at_once(fleet, tmp_path, capsys):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address, reason in (
        (f"127.0.0.1:{port}", "refused"),
        (f"ray://127.0.0.1:{port}", "refused"),
        ("head:99999", ""),
    ):
        arguments = ("--machines", fleet.table, "--out", tmp_path / "out", "--address", address)
        assert run("fleet", "score", *arguments) == 1
        told = capsys.readouterr().err
        assert f"no connection to Ray at {address}: " in told
        assert reason in told
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_refuses_is_told_with_what_it_may_want():
    refused = not_connected("head:6379", ConnectionError("Failed to connect to Ray cluster at head:6379"))
    assert str(refused).startswith("no connection to Ray at head:6379: Failed to connect")
    assert "set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH" in str(refused)
    assert str(not_connected("local", RuntimeError("too slow"))) == "no connection to Ray on this machine: too slow"
