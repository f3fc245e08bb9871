"""Saved scorers load with `trust_remote_code=True` in a process that has no na_ssl_hf, and give the same scores."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import tiny_config, tiny_model
from transformers import AutoFeatureExtractor, AutoModel, pipeline
from without_package import WITHOUT_PACKAGE

from na_ssl_hf import AnomalyScorer, BeatsForAudioClassification, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import shipped_checkpoint

RATE = 16000
SCORERS = ["na-beats", "na-eat", "na-dasheng", "beats", "unfitted", "model"]
# Those without a memory; "model" is what the `save_pretrained` of a model writes.
UNFITTED = ["unfitted", "model"]

# What the process without the package does: load everything, score, save again, and load that.
REMOTE = (
    WITHOUT_PACKAGE
    + """
import json, os, sys
import numpy as np
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, pipeline

folder, names = sys.argv[1], sys.argv[2:]
clips = list(np.load(f"{folder}/clips.npy"))
report = {}
for name in names:
    saved, again = f"{folder}/{name}", f"{folder}/{name}-again"
    autos = AutoConfig, AutoFeatureExtractor, AutoModel
    parts = [auto.from_pretrained(saved, trust_remote_code=True) for auto in autos]
    scorer = pipeline("anomaly-scoring", model=saved, trust_remote_code=True)
    if scorer.memory_bank is None:
        scorer.fit(clips, batch_size=4)
    scores = [result["score"] for result in scorer(clips, batch_size=4)]
    scorer.save_pretrained(again)
    second = pipeline("anomaly-scoring", model=again, trust_remote_code=True)
    report[name] = {
        "modules": sorted({type(part).__module__.split(".")[0] for part in [*parts, scorer]}),
        "classes": [type(part).__name__ for part in [*parts, scorer]],
        "scores": scores,
        "threshold": scorer.threshold,
        "again": [result["score"] for result in second(clips, batch_size=4)],
    }
for task in (None, "anomaly-scoring"):
    served = pipeline(task, model=f"{folder}/classifier", trust_remote_code=True)
    report.setdefault("of_classifier", []).append([served.task, type(served.model).__name__])
report["package_imported"] = "na_ssl_hf" in sys.modules
print(json.dumps(report))
"""
)

# What a process with the package does, where the hub is out of reach.
OFFLINE = """
import na_ssl_hf
from transformers import pipeline

scorer = pipeline(model="me/scorer")
print(type(scorer).__name__, scorer.memory_bank is not None)
"""


@pytest.fixture(scope="module")
def clips():
    return 0.1 * np.random.default_rng(0).standard_normal((10, 2, RATE // 2)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(clips, tmp_path_factory):
    """One saved scorer for each name in `SCORERS`."""
    folder = tmp_path_factory.mktemp("remote")
    np.save(folder / "clips.npy", clips)
    scorers = {
        name: AnomalyScorer(
            model=tiny_model(name), feature_extractor=TwoChannelFeatureExtractor(tiny_config(name).frontend)
        )
        for name in ("na-eat", "na-dasheng", "beats")
    }
    scorers["na-beats"] = pipeline("anomaly-scoring", model=str(shipped_checkpoint("na-beats-tiny")))
    for name, scorer in scorers.items():
        scorer.fit(clips, false_alarm_rate=0.2, batch_size=10)
        scorer.save_pretrained(folder / name)
    pipeline("anomaly-scoring", model=str(shipped_checkpoint("na-beats-tiny"))).save_pretrained(folder / "unfitted")
    tiny_model("na-beats", seed=1).save_pretrained(folder / "model")
    BeatsForAudioClassification(tiny_config("beats")).save_pretrained(folder / "classifier")
    return folder


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, folder, *SCORERS],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_package_was_out_of_reach(report):
    assert not report["package_imported"]


@pytest.mark.parametrize("name", SCORERS)
def test_everything_comes_from_the_code_in_the_directory(report, name):
    assert report[name]["modules"] == ["transformers_modules"]
    family = {
        "na-beats": "NABeats",
        "unfitted": "NABeats",
        "model": "NABeats",
        "na-eat": "NAEat",
        "na-dasheng": "NADasheng",
        "beats": "Beats",
    }[name]
    assert report[name]["classes"] == [
        f"{family}Config",
        "TwoChannelFeatureExtractor",
        f"{family}Model",
        "AnomalyScorer",
    ]


@pytest.mark.parametrize("name", ["na-beats", "na-eat", "na-dasheng", "beats"])
def test_remote_scores_equal_those_of_the_package(folder, report, clips, name):
    local = pipeline("anomaly-scoring", model=str(folder / name))
    expected = [result["score"] for result in local(clips, batch_size=4)]
    np.testing.assert_allclose(report[name]["scores"], expected, atol=1e-6, rtol=0)
    assert report[name]["threshold"] == local.threshold


@pytest.mark.parametrize("name", SCORERS)
def test_saved_by_the_remote_process_it_loads_remotely_again(report, name):
    assert report[name]["again"] == report[name]["scores"]


@pytest.mark.parametrize("name", SCORERS)
def test_saved_by_the_remote_process_it_holds_all_code_and_loads_in_the_package(folder, report, clips, name):
    again = folder / f"{name}-again"
    code = {path.name for path in (folder / name).glob("*.py")}
    assert code == {path.name for path in again.glob("*.py")}
    assert "pipeline_anomaly_scoring.py" in code
    config = json.loads((again / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel"}
    assert config["custom_pipelines"]["anomaly-scoring"]["impl"] == "pipeline_anomaly_scoring.AnomalyScorer"
    local = pipeline("anomaly-scoring", model=str(again))
    assert type(local) is AnomalyScorer
    scores = [result["score"] for result in local(clips, batch_size=4)]
    np.testing.assert_allclose(scores, report[name]["scores"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SCORERS)
def test_the_package_needs_no_trust_and_wins_over_the_code(folder, name):
    for parts in (AutoModel.from_pretrained(folder / name), AutoFeatureExtractor.from_pretrained(folder / name)):
        assert type(parts).__module__.startswith("na_ssl_hf.")
    for trust in (None, True):
        scorer = pipeline("anomaly-scoring", model=str(folder / name), trust_remote_code=trust)
        assert type(scorer) is AnomalyScorer
        assert (scorer.memory_bank is None) == (name in UNFITTED)


@pytest.mark.parametrize("name", SCORERS)
def test_the_package_needs_no_name_of_the_task(folder, clips, name):
    scorer = pipeline(model=str(folder / name))
    assert type(scorer) is AnomalyScorer
    assert (scorer.memory_bank is None) == (name in UNFITTED)


def test_a_classifier_names_sounds_unless_it_is_asked_to_score(folder, report, tmp_path):
    shutil.copytree(folder / "classifier", tmp_path / "without code")
    config = json.loads((tmp_path / "without code" / "config.json").read_text())
    assert list(config.pop("custom_pipelines")) == ["anomaly-scoring"]
    del config["auto_map"]
    (tmp_path / "without code" / "config.json").write_text(json.dumps(config))
    of_classifier = [["audio-classification", "BeatsForAudioClassification"], ["anomaly-scoring", "BeatsModel"]]
    for source in (folder / "classifier", tmp_path / "without code"):
        served = [pipeline(task, model=str(source)) for task in (None, "anomaly-scoring")]
        assert [[one.task, type(one.model).__name__] for one in served] == of_classifier
    assert report["of_classifier"] == of_classifier


def test_nor_does_it_for_a_checkpoint_without_code():
    assert "custom_pipelines" not in json.loads((shipped_checkpoint("na-beats-tiny") / "config.json").read_text())
    assert type(pipeline(model=str(shipped_checkpoint("na-beats-tiny")))) is AnomalyScorer


def test_nor_for_a_repository_in_the_cache(folder, tmp_path):
    repository = tmp_path / "models--me--scorer"
    shutil.copytree(folder / "na-beats", repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["AnomalyScorer", "True"]


def test_a_model_keeps_the_extractor_of_its_checkpoint(folder, tmp_path):
    clean = TwoChannelFeatureExtractor(tiny_config("na-eat").frontend, far_cancellation="least_squares")
    tiny_model("na-eat").save_pretrained(tmp_path / "one")
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "one").far_cancellation is None
    clean.save_pretrained(tmp_path / "one")
    AutoModel.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "two").far_cancellation == "least_squares"
    # One that is there already stays.
    tiny_model("na-eat").save_pretrained(tmp_path / "two")
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "two").far_cancellation == "least_squares"
