"""Published systems by name on a DCASE-shaped folder: the whole chain, killed, resumed, and shared by two processes."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import tiny_model

from na_ssl_hf import MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.cli import main
from na_ssl_hf.evaluation.autoencoder.baseline import AutoencoderBaseline
from na_ssl_hf.evaluation.report.result_files import write_run, write_table
from na_ssl_hf.evaluation.report.submission import evaluate_submission
from na_ssl_hf.evaluation.systems.content_hashes import content_hash
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.evaluation.systems.published_systems import SYSTEMS
from na_ssl_hf.evaluation.systems.run_settings import RunSettings
from na_ssl_hf.evaluation.systems.system_run import run_system
from two_processes import run_on_two_processes

MACHINES = ["fan", "gearbox", "valve"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, list[str]]:
    """A small random checkpoint for every frontend; two seeds of dis-na-beats."""
    root = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for seed, model_type in enumerate(("na-beats", "na-eat", "eat", "na-dasheng", "efficientat")):
        paths[model_type] = [str(root / model_type)]
        tiny_model(model_type, seed).save_pretrained(root / model_type)
    tiny_model("na-beats", seed=7).save_pretrained(root / "second")
    for folder in root.iterdir():
        kind = "beats" if folder.name == "second" else folder.name.removeprefix("na-")
        TwoChannelFeatureExtractor(kind, resample=kind == "efficientat").save_pretrained(folder)
    two_seeds = [*paths["na-beats"], str(root / "second")]
    return paths | {
        "beats": paths["na-beats"], "sslam": paths["eat"], "dasheng": paths["na-dasheng"],
        "eat-large": paths["eat"], "dis-beats": two_seeds, "dis-eat": paths["eat"],
        "dis-na-beats": two_seeds, "dis-na-eat": paths["na-eat"],
    }  # fmt: skip


@pytest.fixture
def settings(tmp_path) -> RunSettings:
    return RunSettings(tmp_path / "cache", device="cpu", num_epochs=2, show_progress=False)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_cancellation_is_off_by_name_where_there_is_no_checkpoint(benchmark_root, shared_cache):
    settings = RunSettings(shared_cache, device="cpu", num_epochs=1, show_progress=False)
    for system in ("logmel", "baseline_mse"):
        plain, off = (run_system(system, benchmark_root, settings, {}, how, machines=["fan"]) for how in (None, "none"))
        assert off.name == f"{system}+none"
        np.testing.assert_array_equal(plain.machines[0].scores, off.machines[0].scores)


@pytest.mark.parametrize("backend", ["two_domains", "mahalanobis", ("nearest", "pca")])
def test_another_backend_is_a_bank_with_it(benchmark_root, shared_cache, backend):
    settings = RunSettings(shared_cache, device="cpu", show_progress=False)
    run = run_system("logmel", benchmark_root, settings, machines=["fan"], backend=backend, backend_fusion="mean")
    assert run.name == ("logmel+nearest+pca-mean" if isinstance(backend, tuple) else f"logmel+{backend}")
    waves = {
        split: [soundfile.read(clip)[0][:, 0] for clip in sorted((benchmark_root / "fan" / split).glob("*.wav"))]
        for split in ("train", "test")
    }
    domains = [clip.name.split("_")[2] for clip in sorted((benchmark_root / "fan" / "train").glob("*.wav"))]
    rescaling = "variance_min" if "nearest" in backend else None
    bank = MemoryBank("euclidean", False, backend=backend, backend_fusion="mean", rescaling=rescaling)
    bank.fit(log_mel_embeddings(waves["train"]), domains)
    np.testing.assert_allclose(run.machines[0].scores, bank.score(log_mel_embeddings(waves["test"])), rtol=1e-3)
    np.testing.assert_allclose(run.machines[0].normal_scores, bank.self_scores(), rtol=1e-3)


def test_another_backend_is_named_in_the_table_without_published_scores(benchmark_root, tmp_path, capsys):
    command = ["dcase", "run", "--system", "logmel", "--data", str(benchmark_root), "--machines", "fan", "--no-report"]
    command += ["--out", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0
    assert "backend" not in (tmp_path / "results.md").read_text()
    assert main([*command, "--backend", "two-domains,pca"]) == 0
    metrics = json.loads((tmp_path / "logmel+two_domains+pca" / "metrics.json").read_text())
    assert (metrics["backend"], metrics["published"]) == ("two_domains+pca", {"dev": None, "eval": None})
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["backend"] for row in table] == ["", "two_domains+pca"]
    capsys.readouterr()
    for wrong in ("kmeans", "pca,pca", "pca,", ""):
        with pytest.raises(SystemExit):
            main([*command, "--backend", wrong])
        assert "must be one or several different ones of nearest, two-domains" in capsys.readouterr().err


def scores_of(folder: Path) -> dict[str, list[list[str]]]:
    tables = {path.name: list(csv.reader(path.open())) for path in sorted(folder.glob("*.csv"))}
    assert tables
    return tables


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("far_cancellation", [None, "least_squares"])
def test_every_system_runs_by_name(benchmark_root, checkpoints, shared_cache, system, far_cancellation):
    settings = RunSettings(shared_cache, device="cpu", num_epochs=1, show_progress=False)
    run = run_system(system, benchmark_root, settings, checkpoints, far_cancellation, machines=["gearbox", "valve"])
    assert [one.machine for one in run.machines] == ["gearbox", "valve"]
    assert run.name == (f"{system}+least_squares" if far_cancellation else system)
    for one in run.machines:
        assert one.scores.shape == (16,)
        assert one.normal_scores.shape == (15,)
        assert np.isfinite(one.scores).all()
        assert 0 <= one.metrics.auc_source <= 1
        assert sum(one.is_anomaly) == sum(one.is_target) == 8
        if one.band_scores is not None:
            np.testing.assert_allclose(one.band_scores.mean(axis=1), one.scores, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("asked", "rescaling"), [("published", "variance_min"), (None, None), ("lof", "lof")])
def test_a_single_frontend_is_bank_of_embeddings(benchmark_root, checkpoints, settings, asked, rescaling):
    run = run_system("na-beats", benchmark_root, settings, checkpoints, machines=["fan"], rescaling=asked)
    model, extractor = tiny_model("na-beats"), TwoChannelFeatureExtractor(frontend="beats")

    def embed(split):
        files = sorted((benchmark_root / "fan" / split).glob("*.wav"))
        waves = [soundfile.read(file, dtype="float32")[0].T for file in files]
        with torch.no_grad():
            tokens = model(extractor(waves, sampling_rate=16000)["input_values"]).last_hidden_state
        return model.time_frequency_grid(tokens).mean(dim=1)

    bank = MemoryBank(rescaling=rescaling).fit(embed("train"))
    np.testing.assert_allclose(run.machines[0].scores, bank.score(embed("test")), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(run.machines[0].normal_scores, bank.self_scores(), rtol=1e-4, atol=1e-6)


def test_seeds_and_frontends_are_averaged_by_weight(benchmark_root, checkpoints, settings):
    def run(system, **chosen):
        return run_system(system, benchmark_root, settings, {**checkpoints, **chosen}, machines=["fan"]).machines[0]

    first, second = checkpoints["dis-na-beats"]
    seeds = [run("dis-na-beats", **{"dis-na-beats": [path]}).scores for path in (first, second)]
    np.testing.assert_allclose(run("dis-na-beats").scores, np.mean(seeds, axis=0), rtol=1e-6)
    weights = SYSTEMS["fujimura_merl_task2_2"].frontends
    members = [run(name).scores for name in weights]
    fused = np.average(members, axis=0, weights=list(weights.values()))
    np.testing.assert_allclose(run("fujimura_merl_task2_2").scores, fused, rtol=1e-6)


def test_system_4_chooses_the_frontend_by_attributes(benchmark_root, checkpoints, settings):
    def scores(system):
        return [one.scores for one in run_system(system, benchmark_root, settings, checkpoints).machines]

    fan, gearbox, valve = scores("fujimura_merl_task2_4")
    tuned, plain = scores("dis-na-eat"), scores("na-eat")
    np.testing.assert_array_equal(fan, tuned[0])
    np.testing.assert_array_equal(gearbox, tuned[1])
    np.testing.assert_array_equal(valve, plain[2])  # the benchmark's valve has no attributes


def test_anonymous_clips_get_scores_and_with_ground_truth_metrics(benchmark_root, checkpoints, settings, tmp_path):
    """The evaluation layout: the same clips under the anonymous names of the ground truth."""
    anonymous = tmp_path / "evaluation"
    for machine in MACHINES:
        (anonymous / machine / "test").mkdir(parents=True)
        (anonymous / machine / "train").symlink_to(benchmark_root / machine / "train")
        table = benchmark_root / "ground_truth_attributes" / f"ground_truth_{machine}_section_00_test.csv"
        for name, stem in csv.reader(table.open()):
            (anonymous / machine / "test" / name).symlink_to(benchmark_root / machine / "test" / f"{stem}.wav")
    labelled = run_system("logmel", benchmark_root, settings)
    without = run_system("logmel", anonymous, settings)
    assert not any(one.is_labelled for one in without.machines)
    metrics = write_run(tmp_path / "without", without, anonymous)
    assert metrics["official_score"] is None
    with_truth = run_system("logmel", anonymous, settings, ground_truth=benchmark_root)
    official = write_run(tmp_path / "labelled", labelled, benchmark_root)["official_score"]
    assert write_run(tmp_path / "with", with_truth, anonymous)["official_score"] == pytest.approx(official, abs=1e-12)
    for folder in ("without", "labelled"):
        submitted = evaluate_submission(tmp_path / folder, benchmark_root)
        assert submitted["official_score"] == pytest.approx(official, abs=1e-12)


def test_whole_chain_from_the_command_line(benchmark_root, checkpoints, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["dcase", "run", "--data", str(benchmark_root), "--out", str(out), "--device", "cpu", "--epochs", "2"]
    frontends = [f"{name}={','.join(checkpoints[name])}" for name in ("na-beats", "dis-na-beats")]
    systems = ["logmel", "baseline_mse", "fujimura_merl_task2_3"]
    assert main([*arguments, "--system", *systems, "--frontend", *frontends]) == 0
    assert main([*arguments, "--system", "na-beats", "--far-cancellation", "--frontend", *frontends]) == 0
    names = ["baseline_mse", "logmel", "na-beats+least_squares", "fujimura_merl_task2_3"]
    for name in names:
        metrics = json.loads((out / name / "metrics.json").read_text())
        assert main(["evaluate-submission", str(out / name), str(benchmark_root), "--json"]) == 0
        submitted = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert submitted["official_score"] == pytest.approx(metrics["official_score"], abs=1e-12)
        assert metrics["interval"]["low"] <= metrics["official_score"] <= metrics["interval"]["high"]
        for machine in MACHINES:
            decisions = list(csv.reader((out / name / f"decision_result_{machine}_section_00_test.csv").open()))
            scores = list(csv.reader((out / name / f"anomaly_score_{machine}_section_00_test.csv").open()))
            assert [row[0] for row in decisions] == [row[0] for row in scores]
            assert {row[1] for row in decisions} <= {"0", "1"}
        page = (out / name / "report.html").read_text(encoding="utf-8")
        assert page.count("<img") >= len(MACHINES)
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["system"] for row in rows] == ["baseline_mse", "logmel", "na-beats", "fujimura_merl_task2_3"]
    assert [row["published dev"] for row in rows] == ["56.66", "", "", "64.57"]
    assert (out / "results.md").read_text(encoding="utf-8").count("\n| ") == 5


def test_the_order_of_the_table_is_the_papers(benchmark_root, checkpoints, settings, tmp_path):
    for system in ("na-beats", "logmel"):
        run = run_system(system, benchmark_root, settings, checkpoints, machines=["fan"])
        write_run(tmp_path / "runs" / run.name, run, benchmark_root)
    rows = write_table(tmp_path / "runs")
    assert [row["system"] for row in rows] == ["logmel", "na-beats"]
    assert rows[1]["checkpoints"] == f"na-beats: {checkpoints['na-beats'][0]}"


KILLED_RUN = """
import os, signal, sys
from na_ssl_hf import AnomalyScorer
from na_ssl_hf.cli import main
embed, calls = AnomalyScorer.embed, []
def counted(self, *arguments, **settings):
    calls.append(1)
    if len(calls) == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(self, *arguments, **settings)
AnomalyScorer.embed = counted
status = main(sys.argv[1:])
print("batches", len(calls))
sys.exit(status)
"""


def test_a_killed_run_loses_one_batch_and_ends_in_the_same_files(benchmark_root, checkpoints, tmp_path):
    def run(out: str, kill_at: int) -> subprocess.CompletedProcess:
        frontend = f"na-beats={checkpoints['na-beats'][0]}"
        arguments = ["dcase", "run", "--system", "na-beats", "--frontend", frontend, "--no-report", "--device", "cpu"]
        arguments += ["--data", str(benchmark_root), "--out", str(tmp_path / out), "--batch-size", "8"]
        return subprocess.run(
            [sys.executable, "-c", KILLED_RUN, *arguments],
            env=os.environ | {"KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    whole = run("whole", 0)
    assert whole.returncode == 0, whole.stderr[-2000:]
    total = int(whole.stdout.split()[-1])
    killed = run("killed", 6)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "na-beats").exists()
    resumed = run("killed", 0)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert int(resumed.stdout.split()[-1]) == total - 5
    assert scores_of(tmp_path / "killed" / "na-beats") == scores_of(tmp_path / "whole" / "na-beats")


def test_two_processes_give_equal_scores(benchmark_root, checkpoints, tmp_path):
    frontend = f"na-beats={checkpoints['na-beats'][0]}"
    command = ["dcase", "run", "--system", "na-beats", "baseline_mse", "--epochs", "1", "--frontend", frontend]
    command += ["--data", str(benchmark_root), "--no-report", "--out"]
    assert main([*command, str(tmp_path / "one"), "--device", "cpu"]) == 0
    done = run_on_two_processes(["-m", "na_ssl_hf.cli", *command, tmp_path / "two"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("| na-beats |") == 1  # only the main process prints
    for system in ("na-beats", "baseline_mse"):
        one, two = (scores_of(tmp_path / out / system) for out in ("one", "two"))
        assert one.keys() == two.keys()
        for name in one:
            assert [row[0] for row in one[name]] == [row[0] for row in two[name]]
            np.testing.assert_allclose(
                [float(row[1]) for row in one[name]], [float(row[1]) for row in two[name]], rtol=1e-5, atol=1e-7
            )


def test_every_file_is_hashed_once_in_a_run(benchmark_root, checkpoints, settings, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        "na_ssl_hf.evaluation.systems.content_hashes.content_hash",
        lambda file: hashed.append(file) or content_hash(file),
    )
    for system in ("fujimura_merl_task2_1", "baseline_mse"):
        run_system(system, benchmark_root, settings, checkpoints, machines=["fan"])
    assert sorted(hashed) == sorted((benchmark_root / "fan").rglob("*.wav"))


def test_bad_input_is_named_before_any_work(benchmark_root, checkpoints, settings, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"got none for dis-na-eat, dis-na-beats: give --frontend dis-na-eat=CHECK"):
        run_system("fujimura_merl_task2_1", benchmark_root, settings)
    with pytest.raises(ValueError, match="system must be one of"):
        run_system("fujimura", benchmark_root, settings)
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        run_system("logmel", tmp_path / "nothing", settings)
    with pytest.raises(FileNotFoundError, match="pump/train"):
        run_system("logmel", benchmark_root, settings, machines=["pump"])
    assert not settings.cache.exists()
    with pytest.raises(ValueError, match="'baseline_mse' is an autoencoder, which has backend 'nearest' alone"):
        run_system("baseline_mse", benchmark_root, settings, backend="pca")
    few = tmp_path / "few"
    (few / "fan" / "train").mkdir(parents=True)
    (few / "fan" / "test").symlink_to(benchmark_root / "fan" / "test")
    for clip in (benchmark_root / "fan" / "train").glob("*_source_*.wav"):
        (few / "fan" / "train" / clip.name).symlink_to(clip)
    with pytest.raises(ValueError, match="fan: `backend='two_domains'` needs at least 3 clips of each domain"):
        run_system("logmel", few, settings, backend="two_domains")
    assert not settings.cache.exists()
    with pytest.raises(ValueError, match="needs rescaling=None, got 'lof'"):
        run_system("fujimura_merl_task2_1", benchmark_root, settings, checkpoints, rescaling="lof")
    common = ["dcase", "run", "--system", "beats", "--data", str(benchmark_root), "--out", str(tmp_path / "out")]
    for pair in ("beats", "beats=", "bets=x", "beats=a,,b"):
        assert main([*common, "--frontend", pair]) == 1
        assert f"got '{pair}'" in capsys.readouterr().err


def test_ground_truth_that_lacks_a_clip(benchmark_root, checkpoints, settings, tmp_path):
    (tmp_path / "fan" / "test").mkdir(parents=True)
    (tmp_path / "fan" / "train").symlink_to(benchmark_root / "fan" / "train")
    clip = next((benchmark_root / "fan" / "test").glob("*.wav"))
    (tmp_path / "fan" / "test" / "section_00_0999.wav").symlink_to(clip)
    with pytest.raises(ValueError, match=r"labels of all test clips of fan, got none for 1, first section_00_0999"):
        run_system("logmel", tmp_path, settings, ground_truth=benchmark_root)


def test_another_run_with_the_same_cache_may_train_the_same_autoencoder_first(benchmark_root, tmp_path, monkeypatch):
    settings = RunSettings(tmp_path / "cache", device="cpu", num_epochs=1, show_progress=False)

    def run() -> np.ndarray:
        return run_system("baseline_mse", benchmark_root, settings, machines=["fan"]).machines[0].scores

    save = AutoencoderBaseline.save_pretrained

    def save_after_the_other_run(baseline, folder):
        monkeypatch.setattr(AutoencoderBaseline, "save_pretrained", save)
        other.append(run())
        save(baseline, folder)

    other = []
    monkeypatch.setattr(AutoencoderBaseline, "save_pretrained", save_after_the_other_run)
    np.testing.assert_array_equal(run(), other[0])
    assert [path.name.startswith("autoencoder-") for path in settings.cache.iterdir()] == [True]


def test_chosen_layers_of_a_frontend_are_scored_named_and_shown(benchmark_root, checkpoints, tmp_path, capsys):
    arguments = ["dcase", "run", "--system", "na-beats", "--frontend", f"na-beats={checkpoints['na-beats'][0]}"]
    arguments += ["--data", str(benchmark_root), "--machines", "fan", "--out", str(tmp_path / "runs"), "--no-report"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert main([*arguments, "--device", "cpu", "--layer", "na-beats=1,0"]) == 0
    table = capsys.readouterr().out
    assert "(layer 1 + 0)" in table
    folders = [tmp_path / "runs" / name for name in ("na-beats", "na-beats+na-beats-layer-1-0")]
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    assert "layers" not in metrics[0]
    assert metrics[1]["layers"] == {"na-beats": [1, 0]}
    assert scores_of(folders[0]) != scores_of(folders[1])


@pytest.mark.parametrize("pair", ["na-beats", "na-beats=", "na-beats=1,x", "nothing=1", "=1"])
def test_a_layer_that_names_no_frontend_or_number_is_one_clear_line(benchmark_root, tmp_path, capsys, pair):
    arguments = ["--data", str(benchmark_root), "--out", str(tmp_path / "runs"), "--layer", pair]
    assert main(["dcase", "run", "--system", "logmel", *arguments]) != 0
    assert "--layer must be NAME=N or NAME=N,M" in capsys.readouterr().err.splitlines()[-1]


def test_a_layer_that_the_checkpoint_lacks_is_one_clear_line(benchmark_root, checkpoints, tmp_path, capsys):
    arguments = ["--data", str(benchmark_root), "--out", str(tmp_path / "runs"), "--layer", "na-beats=13"]
    frontend = f"na-beats={checkpoints['na-beats'][0]}"
    assert main(["dcase", "run", "--system", "na-beats", "--frontend", frontend, *arguments]) != 0
    assert "`layers` must be in 0 ... 2 for this NABeatsModel, got 13." in capsys.readouterr().err.splitlines()[-1]
