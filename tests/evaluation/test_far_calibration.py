"""A system with a calibrated far microphone is run machine by machine, as a scorer would be fitted there."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import tiny_model

from na_ssl_hf import AnomalyScorer, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.cli import main
from na_ssl_hf.evaluation.autoencoder.baseline import AutoencoderBaseline
from na_ssl_hf.evaluation.systems.embedders import log_mel_embedder, model_embedder
from na_ssl_hf.evaluation.systems.far_calibration import calibrated_far_microphones
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.evaluation.systems.machine_data import list_machines
from na_ssl_hf.evaluation.systems.run_settings import RunSettings
from na_ssl_hf.evaluation.systems.system_run import run_system
from na_ssl_hf.hub.far_microphone import FarMicrophone
from na_ssl_hf.hub.input_level import at_level
from na_ssl_hf.simulation import write_dcase_benchmark
from na_ssl_hf.simulation.benchmark_presets import BenchmarkPreset
from two_processes import run_on_two_processes

MACHINES = ("fan", "valve")
TINY = BenchmarkPreset(8, 2, 2, duration_s=1.5, num_rooms=1, num_places=5, num_supplemental=4)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Two machines at their places, with supplemental clips."""
    return write_dcase_benchmark(
        tmp_path_factory.mktemp("site") / "data", TINY, 3, 1.0, (-5.0, 0.0), MACHINES, show_progress=False
    )


@pytest.fixture(scope="module")
def na_beats(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("na-beats")
    tiny_model("na-beats").save_pretrained(folder)
    TwoChannelFeatureExtractor("beats").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(tmp_path) -> RunSettings:
    return RunSettings(tmp_path / "cache", device="cpu", num_epochs=1, show_progress=False)


def waves_of(folder: Path, pattern: str = "*.wav") -> torch.Tensor:
    """All recordings of a folder, (clips, 2, N)."""
    paths = sorted(folder.glob(pattern))
    assert paths
    return torch.from_numpy(np.stack([soundfile.read(path, dtype="float32")[0].T for path in paths]))


def calibrated(site: Path, machine: str, method: str = "installation") -> FarMicrophone:
    noise = waves_of(site / machine / "supplemental", "*_noise_*.wav")
    return FarMicrophone(method).fit(waves_of(site / machine / "train"), machine_off=noise)


@pytest.mark.parametrize("method", ["installation", "filter", "auto"])
def test_each_machine_is_scored_behind_its_own_far_microphone(site, settings, method):
    run = run_system("logmel", site, settings, {}, method, rescaling=None)
    plain = run_system("logmel", site, settings, {}, rescaling=None)
    assert run.name == f"logmel+{method}"
    for one, without in zip(run.machines, plain.machines, strict=True):
        far_microphone = calibrated(site, one.machine, method)
        train, test = (
            log_mel_embeddings(far_microphone.cancel(waves_of(site / one.machine / split))[:, 0])
            for split in ("train", "test")
        )
        bank = MemoryBank("euclidean", False).fit(train)
        np.testing.assert_allclose(one.scores, bank.score(test), rtol=1e-3)
        # "auto" may stand back, and then the scores are those of the close microphone.
        assert (np.abs(one.scores / without.scores - 1).max() > 0.01) == (far_microphone.method_ != "none")


def test_a_checkpoint_is_scored_as_a_scorer_that_is_fitted_at_the_place(site, settings, na_beats):
    checkpoints = {"beats": [na_beats], "na-beats": [na_beats]}
    model = tiny_model("na-beats")
    for system, encoder in (("na-beats", model), ("beats", model.to_base())):
        run = run_system(system, site, settings, checkpoints, "filter", machines=["fan"])
        scorer = AnomalyScorer(model=encoder, feature_extractor=TwoChannelFeatureExtractor("beats"))
        scorer.fit(
            sorted((site / "fan" / "train").glob("*.wav")),
            far_cancellation="filter",
            machine_off=sorted((site / "fan" / "supplemental").glob("*_noise_*.wav")),
            memory_bank=MemoryBank(rescaling="variance_min"),
        )
        scores = [result["score"] for result in scorer(sorted((site / "fan" / "test").glob("*.wav")))]
        np.testing.assert_allclose(run.machines[0].scores, scores, rtol=1e-4, atol=1e-6)


def test_without_supplemental_clips_the_training_clips_alone_decide(site, settings, tmp_path):
    shutil.copytree(site / "fan", tmp_path / "data" / "fan", ignore=shutil.ignore_patterns("supplemental"))
    [machine] = list_machines(tmp_path / "data")
    assert machine.machine_off == ()
    assert len(list_machines(site, ["fan"], with_machine_off=True)[0].machine_off) == 4
    run = run_system("logmel", tmp_path / "data", settings, {}, "installation", rescaling=None)
    far_microphone = FarMicrophone().fit(waves_of(site / "fan" / "train"))
    train, test = (
        log_mel_embeddings(far_microphone.cancel(waves_of(site / "fan" / split))[:, 0]) for split in ("train", "test")
    )
    scores = MemoryBank("euclidean", False).fit(train).score(test)
    np.testing.assert_allclose(run.machines[0].scores, scores, rtol=1e-3)


def test_too_few_seconds_of_noise_alone_are_left_out_with_a_warning(site, settings, tmp_path, caplog):
    shutil.copytree(site / "fan", tmp_path / "data" / "fan")
    for clip in sorted((tmp_path / "data/fan/supplemental").glob("*_noise_*.wav"))[1:]:
        clip.unlink()
    few = run_system("logmel", tmp_path / "data", settings, {}, "installation")
    assert "fan is calibrated without its clips of the noise alone: `machine_off` must hold at least" in caplog.text
    shutil.rmtree(tmp_path / "data" / "fan" / "supplemental")
    without = run_system("logmel", tmp_path / "data", settings, {}, "installation")
    np.testing.assert_array_equal(few.machines[0].scores, without.machines[0].scores)


def test_supplemental_clips_that_are_not_needed_are_not_looked_at(site, settings, tmp_path):
    shutil.copytree(site / "fan", tmp_path / "data" / "fan")
    for clip in (tmp_path / "data/fan/supplemental").glob("*.wav"):
        clip.rename(clip.with_name(f"another_year_{clip.name}"))
    run_system("logmel", tmp_path / "data", settings)
    with pytest.raises(ValueError, match="another_year"):
        run_system("logmel", tmp_path / "data", settings, {}, "filter")


def test_the_cache_knows_the_calibration(site, settings, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(site / "fan", data / "fan")
    run_system("logmel", data, settings, {}, "installation")
    run_system("logmel", data, settings, {}, "installation")
    assert len(list(settings.cache.iterdir())) == 1
    changed = next((data / "fan" / "supplemental").glob("*_noise_*.wav"))
    soundfile.write(changed, soundfile.read(changed)[0][:, ::-1], 16000)
    run_system("logmel", data, settings, {}, "installation")
    assert len(list(settings.cache.iterdir())) == 2
    assert len({log_mel_embedder(level=level).key for level in ("as recorded", "normalised")}) == 2


def test_the_autoencoder_hears_what_is_left_as_well(site, settings):
    run = run_system("baseline_mse", site, settings, {}, "installation", machines=["fan"])
    far_microphone = calibrated(site, "fan")
    baseline = AutoencoderBaseline(num_epochs=1, two_channel=False, device="cpu")
    train, test = (
        [wave[:1].numpy() for wave in far_microphone.cancel(waves_of(site / "fan" / split))]
        for split in ("train", "test")
    )
    baseline.fit(train, domains=list_machines(site, ["fan"])[0].domains)
    np.testing.assert_allclose(run.machines[0].scores, baseline.score(test, "mse"), rtol=1e-3)
    for other in (None, "filter"):
        run_system("baseline_mse", site, settings, {}, other, machines=["fan"])
    run_system("baseline_mse", site, replace(settings, level="normalised"), machines=["fan"])
    assert len(list(settings.cache.iterdir())) == 4


@pytest.mark.parametrize("method", [None, "auto"])
def test_a_normalised_level_is_that_of_the_scorer(site, settings, na_beats, method):
    normalised = replace(settings, level="normalised")
    run = run_system("logmel", site, normalised, {}, method, machines=["fan"], rescaling=None)
    assert run.name == "+".join(part for part in ("logmel", method, "normalised") if part)
    cancel = (lambda waves: waves) if method is None else calibrated(site, "fan", method).cancel
    train, test = (
        log_mel_embeddings(cancel(at_level(waves_of(site / "fan" / split), "normalised"))[:, 0])
        for split in ("train", "test")
    )
    scores = MemoryBank("euclidean", False).fit(train).score(test)
    np.testing.assert_allclose(run.machines[0].scores, scores, rtol=1e-3)

    scorer = AnomalyScorer(model=tiny_model("na-beats"), feature_extractor=TwoChannelFeatureExtractor("beats"))
    files = {split: sorted((site / "fan" / split).glob("*.wav")) for split in ("train", "test")}
    off = None if method is None else sorted((site / "fan" / "supplemental").glob("*_noise_*.wav"))
    scorer.fit(files["train"], level="normalised", far_cancellation=method, machine_off=off)
    run = run_system("na-beats", site, normalised, {"na-beats": [na_beats]}, method, machines=["fan"], rescaling=None)
    expected = [result["score"] for result in scorer(files["test"])]
    np.testing.assert_allclose(run.machines[0].scores, expected, rtol=1e-4, atol=1e-6)


def test_folder_table_and_metrics_say_it(site, tmp_path, capsys):
    command = ["dcase", "run", "--system", "logmel", "--data", str(site), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*command, "--no-report"]) == 0
    assert "level" not in json.loads((tmp_path / "logmel" / "metrics.json").read_text())
    assert main([*command, "--far-cancellation", "installation", "--level", "normalised"]) == 0
    metrics = json.loads((tmp_path / "logmel+installation+normalised" / "metrics.json").read_text())
    assert (metrics["far_cancellation"], metrics["level"]) == ("installation", "normalised")
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["far cancellation"], row["level"]) for row in table] == [("", ""), ("installation", "normalised")]
    page = (tmp_path / "logmel+installation+normalised" / "report.html").read_text(encoding="utf-8")
    assert "level of the recordings" in page
    assert "normalised" in page


def test_two_processes_share_the_machines(site, settings, tmp_path):
    command = ["-m", "na_ssl_hf.cli", "dcase", "run", "--system", "logmel", "--far-cancellation", "installation"]
    command += ["--data", site, "--no-report", "--out", tmp_path / "two"]
    done = run_on_two_processes(command)
    assert done.returncode == 0, done.stderr[-3000:]
    for one in run_system("logmel", site, settings, {}, "installation").machines:
        rows = csv.reader(
            (tmp_path / "two/logmel+installation" / f"anomaly_score_{one.machine}_section_00_test.csv").open()
        )
        np.testing.assert_allclose([float(score) for _, score in rows], one.scores, rtol=1e-4, atol=1e-6)


def test_bad_input_is_named(site, settings, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"far_cancellation must be None or one of none, .*auto; got 'magic'"):
        run_system("logmel", site, settings, {}, "magic")
    with pytest.raises(ValueError, match=r"`level` must be 'as recorded' or 'normalised', got 'loud'"):
        run_system("logmel", site, replace(settings, level="loud"))
    assert not settings.cache.exists()

    def with_clips(name: str, change) -> Path:
        shutil.copytree(site / "fan", tmp_path / name / "fan", ignore=shutil.ignore_patterns("supplemental"))
        for path in (tmp_path / name / "fan" / "train").glob("*.wav"):
            soundfile.write(path, change(soundfile.read(path)[0]), 16000)
        return tmp_path / name

    mono = with_clips("mono", lambda wave: wave[:, 0])
    with pytest.raises(ValueError, match=r"fan/train/section_00.*\.wav must have two channels, close and far, got 1"):
        run_system("logmel", mono, settings, {}, "installation")
    short = with_clips("short", lambda wave: wave[:3000])
    with pytest.raises(ValueError, match=r"fan: `recordings` must hold at least 3.84 s .* got 1.88 s"):
        run_system("logmel", short, settings, {}, "auto")
    silent = with_clips("silent", lambda wave: wave * [1, 0])
    with pytest.raises(ValueError, match=r"fan: `recordings` must have a far microphone .* got silence"):
        run_system("logmel", silent, settings, {}, "filter")
    out = ["--data", str(site), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["dcase", "run", "--system", "logmel", *out, "--far-cancellation", "magic"])
    assert "invalid choice: 'magic'" in capsys.readouterr().err
    machines = list_machines(site)
    microphones = calibrated_far_microphones("filter", machines, 16000, lambda one: torch.as_tensor(one.samples))
    assert microphones["fan"].fingerprint != microphones["valve"].fingerprint
    model, extractor = tiny_model("beats"), TwoChannelFeatureExtractor("beats", far_cancellation="least_squares")
    with pytest.raises(ValueError, match="far_cancellation must be None beside a far_microphone, got 'least_squares'"):
        model_embedder("beats", model, extractor, far_microphone=microphones["fan"])
