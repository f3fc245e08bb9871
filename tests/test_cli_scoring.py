"""`na-ssl fit` and `na-ssl score` among bad, long and repeated recordings, and checkpoints that bring code along."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from na_ssl_hf import AnomalyScorer, MemoryBank
from na_ssl_hf.cli import main

RATE = 16000


def write_clip(path, seed, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.05 * np.random.default_rng(seed).standard_normal((int(seconds * RATE), 2))
    soundfile.write(path, samples, RATE)
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`normal/room_{0..4}/` with four recordings each, and a scorer of them."""
    folder = tmp_path_factory.mktemp("scoring")
    for room in range(5):
        for index in range(4):
            write_clip(folder / "normal" / f"room_{room}" / f"{index}.wav", 10 * room + index)
    assert run("fit", folder / "normal", "--out", folder / "scorer", "--device", "cpu") == 0
    return folder


def test_good_scores_are_kept_and_a_bad_file_has_a_row_with_its_error(folder, tmp_path, capsys):
    good = [write_clip(tmp_path / "today" / f"{index}.wav", 100 + index) for index in range(3)]
    bad = write_clip(tmp_path / "today" / "half.wav", 200)
    bad.write_bytes(bad.read_bytes()[:5000])
    gone = tmp_path / "today" / "link.wav"
    gone.symlink_to(tmp_path / "nowhere.wav")
    assert run("score", folder / "scorer", tmp_path / "today", "--csv", tmp_path / "scores.csv") == 1
    captured = capsys.readouterr()
    assert "3 recordings, " in captured.out
    assert "2 of 5 recordings could not be scored, the first of them: " in captured.err.splitlines()[-1]
    table = {row["file"]: row for row in rows(tmp_path / "scores.csv")}
    assert "truncated" in table[str(bad)]["error"]
    assert table[str(bad)]["score"] == ""
    assert "link.wav" in table[str(gone)]["error"]
    assert run("score", folder / "scorer", *good, "--csv", tmp_path / "good.csv") == 0
    for row in rows(tmp_path / "good.csv"):
        assert "error" not in row
        assert float(table[row["file"]]["score"]) == pytest.approx(float(row["score"]), abs=1e-6)
    capsys.readouterr()
    assert run("score", folder / "scorer", tmp_path / "today", "--fail-fast") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "half.wav is truncated" in captured.err


def test_fit_can_leave_out_what_it_cannot_read_and_says_what(folder, tmp_path, capsys):
    for index in range(20):
        write_clip(tmp_path / "normal" / f"{index:02}.wav", index)
    (tmp_path / "normal" / "bad.wav").write_bytes(b"RIFF")
    write_clip(tmp_path / "normal" / "copy.wav", 3)
    assert run("fit", tmp_path / "normal", "--out", tmp_path / "scorer") == 1
    assert "bad.wav" in capsys.readouterr().err
    assert run("fit", tmp_path / "normal", "--out", tmp_path / "scorer", "--skip-unreadable") == 0
    out = capsys.readouterr().out
    assert out.startswith("20 normal recordings, threshold")
    assert "left out: " in out
    assert "bad.wav" in out
    assert "copy.wav: it is a duplicate of" in out


def test_long_recordings_have_their_worst_window_in_the_table(folder, tmp_path, capsys):
    samples = soundfile.read(write_clip(tmp_path / "long.wav", 7, seconds=3.0))[0]
    samples[RATE : 2 * RATE] *= 8
    soundfile.write(tmp_path / "long.wav", np.clip(samples, -1, 1), RATE)
    options = ["--window", "0.5", "--hop", "0.25", "--csv", tmp_path / "scores.csv", "--window-csv", tmp_path / "w.csv"]
    assert run("score", folder / "scorer", tmp_path / "long.wav", *options) == 0
    (row,) = rows(tmp_path / "scores.csv")
    assert 0.75 <= float(row["worst_window_start"]) < float(row["worst_window_end"]) <= 2.25
    over_time = rows(tmp_path / "w.csv")
    assert [float(each["start"]) for each in over_time] == [0.25 * index for index in range(11)]
    assert max(float(each["score"]) for each in over_time) == float(row["score"])
    options = [*options[:4], "--aggregate", "0.5", "--csv", tmp_path / "median.csv"]
    assert run("score", folder / "scorer", tmp_path / "long.wav", *options) == 0
    assert float(rows(tmp_path / "median.csv")[0]["score"]) < float(row["score"])
    with pytest.raises(SystemExit):
        run("score", folder / "scorer", tmp_path / "long.wav", "--aggregate", "median")
    assert "must be max, mean or a quantile" in capsys.readouterr().err


def test_the_report_shows_scores_over_time_the_worst_window_and_errors(folder, tmp_path):
    long = write_clip(tmp_path / "today" / "long <b>.wav", 7, seconds=3.0)
    write_clip(tmp_path / "today" / "short.wav", 8)
    (tmp_path / "today" / "bad.wav").write_bytes(b"RIFF")
    options = ["--window", "0.5", "--report", tmp_path / "report.html", "--csv", tmp_path / "scores.csv"]
    assert run("score", folder / "scorer", tmp_path / "today", *options) == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    row = next(row for row in rows(tmp_path / "scores.csv") if row["file"] == str(long))
    assert f"{float(row['worst_window_start']):.1f} to {float(row['worst_window_end']):.1f} s" in page
    assert f"{float(row['score']):.6g}" in page
    assert page.count("<polyline") == 1
    points = page.split('points="')[1].split('"')[0].split()
    assert len(points) == 6
    assert "long &lt;b&gt;.wav" in page
    assert "<b>" not in page
    assert "bad.wav cannot be read" in page


def test_windows_of_fit_are_those_of_score(folder, tmp_path):
    for index in range(20):
        write_clip(tmp_path / "normal" / f"{index:02}.wav", index, seconds=1.0)
    assert run("fit", tmp_path / "normal", "--out", tmp_path / "scorer", "--window", "0.5", "--aggregate", "mean") == 0
    new = write_clip(tmp_path / "new.wav", 99, seconds=1.0)
    assert run("score", tmp_path / "scorer", new, "--window-csv", tmp_path / "w.csv", "--csv", tmp_path / "s.csv") == 0
    scores = [float(row["score"]) for row in rows(tmp_path / "w.csv")]
    assert len(scores) == 2
    assert float(rows(tmp_path / "s.csv")[0]["score"]) == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("rule", ["folder", r"room_\d", r"room_(\d)"])
def test_groups_are_folders_or_what_a_pattern_finds(folder, tmp_path, capsys, rule):
    assert run("fit", folder / "normal", "--out", tmp_path / "scorer", "--groups", rule) == 0
    assert "in conditions that differ as the 5 groups do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "message"),
    [("room_(", "regular expression"), ("hall", "must match in the path"), ("normal", "two groups")],
)
def test_bad_groups_are_named(folder, tmp_path, capsys, rule, message):
    assert run("fit", folder / "normal", "--out", tmp_path / "scorer", "--groups", rule) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "scorer").exists()


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        (["--backend", "mahalanobis"], ("mahalanobis",)),
        (["--backend", "nearest,pca", "--backend-fusion", "mean", "--rescaling", "ratio"], ("nearest", "pca")),
        (["--backend", "two-domains", "--domains", "folder"], ("two_domains",)),
        (["--backend", "two-domains", "--domains", "day_(source|target)"], ("two_domains",)),
    ],
)
def test_backends_by_name_score_alike_after_saving(tmp_path, options, backend):
    for index in range(10):
        domain = "target" if index < 4 else "source"
        write_clip(tmp_path / "day_source" / domain / f"day_{domain}_{index}.wav", index)
    if options[-1].startswith("day"):
        (tmp_path / "day_source").rename(tmp_path / "normal")
    normal = tmp_path / ("normal" if options[-1].startswith("day") else "day_source")
    assert run("fit", normal, "--out", tmp_path / "scorer", "--device", "cpu", *options) == 0
    bank = MemoryBank.from_pretrained(tmp_path / "scorer")
    assert tuple(bank.backend) == backend
    today = write_clip(tmp_path / "today.wav", 100)
    assert run("score", tmp_path / "scorer", today, "--csv", tmp_path / "scores.csv", "--device", "cpu") == 0
    scorer = pipeline("anomaly-scoring", model=str(tmp_path / "scorer"), device="cpu")
    assert float(rows(tmp_path / "scores.csv")[0]["score"]) == pytest.approx(scorer(str(today))["score"], rel=1e-4)
    domains = ["target"] * 4 + ["source"] * 6
    files = [str(next(normal.rglob(f"day_*_{index}.wav"))) for index in range(10)]
    again = AnomalyScorer(model=scorer.model, feature_extractor=scorer.feature_extractor, device="cpu")
    again.fit(files, domains, memory_bank=replace(bank))
    assert again.threshold == pytest.approx(scorer.threshold, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "two-domains"], "--backend two-domains needs --domains"),
        (["--backend", "pca", "--rescaling", "ratio"], "`rescaling` needs backend='nearest', got 'ratio'"),
        (["--domains", "folder"], "--domains must give source or target for every recording, got 'room_0'"),
        (["--domains", "room_("], "--domains must be 'folder' or a regular expression"),
        (["--domains", "source|target"], "--domains must match in the path of every recording"),
    ],
)
def test_bad_backends_and_domains_are_named(folder, tmp_path, capsys, options, message):
    assert run("fit", folder / "normal", "--out", tmp_path / "scorer", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "scorer").exists()


def test_fit_says_what_its_false_alarm_rate_holds_for(folder, tmp_path, capsys):
    assert run("fit", folder / "normal", "--out", tmp_path / "scorer") == 0
    out = capsys.readouterr().out
    assert "The false-alarm rate of 5 % is for new recordings of the same machine, place" in out


FOREIGN = """
print("the code of the checkpoint runs")
from transformers import PretrainedConfig, PreTrainedModel
class ForeignConfig(PretrainedConfig):
    model_type = "foreign-encoder"
class ForeignModel(PreTrainedModel):
    config_class = ForeignConfig
"""


@pytest.mark.parametrize("answer", ["y\n", "n\n", ""])
def test_no_code_of_a_checkpoint_runs_unless_it_is_asked_for(folder, tmp_path, answer):
    scorer = tmp_path / "scorer"
    scorer.mkdir()
    (scorer / "foreign.py").write_text(FOREIGN)
    auto_map = {"AutoConfig": "foreign.ForeignConfig", "AutoModel": "foreign.ForeignModel"}
    (scorer / "config.json").write_text(json.dumps({"model_type": "foreign-encoder", "auto_map": auto_map}))
    recording = write_clip(tmp_path / "new.wav", 1)
    for command in (
        ["score", scorer, recording],
        ["fit", folder / "normal", "--model", scorer, "--out", tmp_path / "o"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "na_ssl_hf.cli", *map(str, command)], input=answer, capture_output=True, text=True
        )
        assert done.returncode == 1
        assert "the code of the checkpoint runs" not in done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "which runs only with --trust-remote-code" in done.stderr


def test_code_is_not_asked_for_where_it_is_known(folder, tmp_path, monkeypatch):
    seen = []
    original = AnomalyScorer.__init__

    def spy(self, *arguments, **options):
        original(self, *arguments, **options)
        seen.append(type(self.model).__module__)

    monkeypatch.setattr(AnomalyScorer, "__init__", spy)
    recording = write_clip(tmp_path / "new.wav", 1)
    for trust in ([], ["--trust-remote-code"]):
        assert run("score", folder / "scorer", recording, "--csv", tmp_path / "s.csv", *trust) == 0
    assert all(module.startswith("na_ssl_hf.hub.") for module in seen)


def test_the_share_of_the_noise_aware_layers_is_said_and_saved(folder, tmp_path, capsys):
    fitting = ("fit", folder / "normal", "--model", "na-eat-tiny", "--out", tmp_path / "scorer")
    assert run(*fitting, "--na-share", 0.5) == 0
    assert "share of the noise-aware layers: 0.5" in capsys.readouterr().out.splitlines()
    assert run("score", tmp_path / "scorer", folder / "normal") == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(*fitting, "--na-share", "most")
    assert "must be auto or a number from 0 to 1, got 'most'" in capsys.readouterr().err
    assert run(*fitting, "--na-share", 2) != 0
    assert "`na_share` must be None, 'auto' or a number from 0 to 1, got 2.0" in capsys.readouterr().err


def test_the_chosen_layers_are_said_saved_and_scored(folder, tmp_path, capsys):
    fitting = ["fit", folder / "normal", "--out", tmp_path / "scorer", "--device", "cpu"]
    assert run(*fitting, "--layer", 1, 2) == 0
    assert "layers compared: 1, 2" in capsys.readouterr().out.splitlines()
    clip = write_clip(tmp_path / "today.wav", 100)
    tables = []
    for scorer in (folder / "scorer", tmp_path / "scorer"):
        assert run("score", scorer, clip, "--csv", tmp_path / "scores.csv", "--report", tmp_path / "report.html") == 0
        tables.append(rows(tmp_path / "scores.csv"))
    assert tables[0] != tables[1]
    capsys.readouterr()
    assert run(*fitting, "--layer", 99) != 0
    error = capsys.readouterr().err.splitlines()[-1]
    assert "`layers` must be in 0 ... " in error
    assert "got 99" in error


def test_normalised_recordings_score_alike_at_every_gain(folder, tmp_path, capsys):
    scorer = tmp_path / "scorer"
    assert run("fit", folder / "normal", "--out", scorer, "--device", "cpu", "--level", "normalised") == 0
    assert "level of the recordings: normalised" in capsys.readouterr().out.splitlines()
    clip = write_clip(tmp_path / "today" / "one.wav", 100)
    samples, _ = soundfile.read(clip)
    soundfile.write(tmp_path / "today" / "two.wav", 4 * samples, RATE, subtype="FLOAT")
    assert run("score", scorer, tmp_path / "today", "--csv", tmp_path / "scores.csv") == 0
    scores = [float(row["score"]) for row in rows(tmp_path / "scores.csv")]
    assert scores[0] == pytest.approx(scores[1], rel=0.02)


def test_fit_calibrates_the_far_microphone_and_prints_what_it_cancels(folder, tmp_path, capsys):
    options = [
        "--far-cancellation",
        "auto",
        "--machine-off",
        folder / "normal" / "room_0",
        folder / "normal" / "room_1",
    ]
    assert run("fit", folder / "normal", "--out", tmp_path / "scorer", "--device", "cpu", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "far microphone, calibrated on 10 s: " in next(line for line in lines if "far microphone" in line)
    assert any(line.lstrip().startswith("0 to   250 Hz: the filter takes ") for line in lines)
    assert (tmp_path / "scorer" / "far_microphone.safetensors").exists()
    assert run("score", tmp_path / "scorer", folder / "normal" / "room_0", "--csv", tmp_path / "scores.csv") == 0
