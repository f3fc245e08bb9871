"""The fine-tuning script as a whole, on sounds and models small enough for a handful of steps a second."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from example_scripts import EXAMPLES, ONE_THREAD, kill_in_the_middle, load_example, run_here
from safetensors.torch import load_file
from tiny_models import tiny_config, tiny_model
from transformers import AutoFeatureExtractor, AutoModel, pipeline
from without_package import WITHOUT_PACKAGE

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.training.checkpoint_folder import latest_checkpoint
from na_ssl_hf.training.json_lines_tracker import read_json_lines
from na_ssl_hf.training.pseudo_labels import LabelMap
from two_processes import run_on_two_processes

SCRIPT = EXAMPLES / "finetune_discriminative.py"
PROCESS_TIMEOUT = 480  # s, only so that a hanging test ends

# What a process without the package does with an adapter: load it, fit and score.
REMOTE = (
    WITHOUT_PACKAGE
    + """
import json, sys
import soundfile, torch
from transformers import AutoFeatureExtractor, AutoModel, pipeline

adapter, *files = sys.argv[1:]
model = AutoModel.from_pretrained(adapter, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(adapter, trust_remote_code=True)
features = extractor(soundfile.read(files[0], dtype="float32")[0].T, sampling_rate=16000)
with torch.no_grad():
    tokens = model(**features).last_hidden_state
scorer = pipeline("anomaly-scoring", model=adapter, trust_remote_code=True)
scorer.fit(files, false_alarm_rate=0.2, progress=None)
print(json.dumps({
    "modules": sorted({type(part).__module__.split(".")[0] for part in (model, extractor, scorer)}),
    "package_imported": "na_ssl_hf" in sys.modules,
    "tokens": tokens[0, :2].tolist(),
    "scores": [result["score"] for result in scorer(files[:3])],
}))
"""
)


script = load_example("finetune_discriminative")


def write_machine(root: Path, machine: str, attributes: list[str], channels: int = 2) -> list[Path]:
    """12 source and 4 target clips of 0.6 s: a tone, by attribute or one of three, in noise."""
    random, files = np.random.default_rng(0), []
    folder = root / machine / "train"
    folder.mkdir(parents=True)
    for domain, count in (("source", 12), ("target", 4)):
        for index in range(count):
            number = index % max(3, len(attributes))
            tone = np.sin(2 * np.pi * 400 * (1 + number) * np.arange(9600) / 16000)
            samples = 0.05 * random.standard_normal((9600, channels)) + 0.2 * tone[:, None]
            attribute = attributes[number % len(attributes)]
            files.append(folder / f"section_00_{domain}_train_normal_{index:04d}_{attribute}.wav")
            soundfile.write(files[-1], samples, 16000)
    return files


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """`<model type>`: bases with code and pipeline; `clips`: a machine with attributes and one without; `mono`."""
    folder = tmp_path_factory.mktemp("data")
    for model_type in ("beats", "na-beats", "na-eat"):
        extractor = TwoChannelFeatureExtractor(tiny_config(model_type).frontend)
        AnomalyScorer(model=tiny_model(model_type), feature_extractor=extractor).save_pretrained(folder / model_type)
    write_machine(folder / "clips", "fan", ["spd_1", "spd_2", "spd_3"])
    write_machine(folder / "clips", "valve", ["noAttribute"])
    write_machine(folder / "mono", "fan", ["spd_1", "spd_2"], channels=1)
    return folder


def arguments(folder: Path, out: Path, **changed) -> list[str]:
    options = {
        "base": folder / "na-beats",
        "data": folder / "clips",
        "output_dir": out,
        "duration": 0.5,
        "held_out": 0.2,
        "num_clusters": 3,
        "lora_rank": 4,
        "epochs": 4,
        "warmup_steps": 3,
        "lr": 3e-3,
        "ema_decay": 0.5,
        "save_every": 2,
        "cpu": True,
    } | changed
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


@pytest.fixture
def train(data, monkeypatch, tmp_path):
    """Runs the script in this process, as a new one would; returns its output folder."""

    def run(out: str | Path = "out", **changed) -> Path:
        run_here(script, arguments(data, tmp_path / out, **changed), monkeypatch)
        return tmp_path / out

    return run


def repeatable(folder: Path) -> list[dict[str, float]]:
    """What must repeat itself exactly."""
    rows = read_json_lines(folder / "log.jsonl")
    return [{name: value for name, value in row.items() if name not in ("s", "cpu_s")} for row in rows]


# What a training leaves


@pytest.mark.parametrize("base", ["beats", "na-beats", "na-eat"])
def test_leaves_an_adapter_its_labels_its_card_and_its_log(train, data, base):
    out = train(base=data / base, merged=True)
    model, extractor = AutoModel.from_pretrained(out), AutoFeatureExtractor.from_pretrained(out)
    assert (model.config.model_type, extractor.frontend) == (base, tiny_config(base).frontend)
    untouched = AutoModel.from_pretrained(data / base).state_dict()
    state = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(torch.equal(state[name], weight) for name, weight in untouched.items())

    averages = torch.load(latest_checkpoint(out / "checkpoints") / "custom_checkpoint_1.pkl")
    saved = load_file(out / "adapter_model.safetensors")
    for name, weight in saved.items():
        ours = name.replace("base_model.model.", "encoder.").replace(".weight", ".default.weight")
        assert torch.equal(weight, averages[ours])
    fbank = extractor(0.1 * torch.randn(2, 8000), sampling_rate=16000).input_values
    with torch.no_grad():
        merged = AutoModel.from_pretrained(out / "merged")(fbank).last_hidden_state
        torch.testing.assert_close(merged, model(fbank).last_hidden_state, atol=1e-5, rtol=0)

    classes = LabelMap.load(out / "label_map.json").classes
    assert [len(name.split("/")) for name in classes] == [3] * 3 + [4] * 3 + [3]
    rows = [row for row in repeatable(out) if "validation/accuracy" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert all(row["validation/leave_one_out_variance"] > 0 for row in rows)
    losses = [row["loss"] for row in repeatable(out) if "loss" in row]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    card = (out / "README.md").read_text()
    assert f"| 12 | {rows[-1]['validation/accuracy']:.3f} |" in card
    assert "7 classes of" in card


def test_efficientat_is_trained_whole(train, tmp_path):
    extractor = TwoChannelFeatureExtractor("efficientat", resample=True)
    scorer = AnomalyScorer(model=tiny_model("efficientat"), feature_extractor=extractor)
    scorer.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"attention layers.*got EfficientATModel.*--full"):
        train(base=tmp_path / "base")
    out = train(base=tmp_path / "base", full="true", max_steps=3, ema_decay=0)
    model, before = AutoModel.from_pretrained(out), tiny_model("efficientat")
    assert AutoFeatureExtractor.from_pretrained(out).resample
    changed = {
        name
        for (name, new), old in zip(model.state_dict().items(), before.state_dict().values(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed == {name for name, _ in before.named_parameters()}  # the statistics of the norms stay
    state = torch.load(latest_checkpoint(out / "checkpoints") / "custom_checkpoint_0.pkl")
    assert torch.equal(state["encoder.stem.convolution.weight"], model.stem.convolution.weight)
    assert "All weights of `base` (efficientat)" in (out / "README.md").read_text()


def test_checkpoints_hold_no_copy_of_the_base(train):
    latest = latest_checkpoint(train(max_steps=2) / "checkpoints")
    assert not list(latest.glob("model*"))
    state = torch.load(latest / "custom_checkpoint_0.pkl")
    optimizer = torch.load(latest / "optimizer.bin")
    assert not any("base_layer" in name or "embeddings" in name for name in state)
    assert len(optimizer["state"]) == sum("lora_" in name for name in state) + 15  # head and centres


@pytest.mark.parametrize("loss", ["adacos", "arcface", "subcluster_adacos"])
def test_every_loss_trains(train, loss):
    out = train(max_steps=2, loss=loss, dynamic_scale=True, fixed_centres=True, pooling="mean", held_out=0)
    assert len([row for row in repeatable(out) if "loss" in row]) == 2
    assert "all clips, which were also trained on" in (out / "README.md").read_text()


def test_workers_and_gradient_checkpointing_change_nothing_but_speed(train):
    settings = {"max_steps": 3, "save_every": 3}
    plain = repeatable(train("plain", **settings))
    assert repeatable(train("workers", num_workers=2, **settings)) == plain
    for row, expected in zip(
        repeatable(train("less-memory", gradient_checkpointing=True, **settings)), plain, strict=True
    ):
        assert row == pytest.approx(expected, rel=1e-4)


def test_mono_data_train_a_single_channel_model(train, data):
    out = train(base=data / "beats", data=data / "mono", max_steps=1)
    assert AutoModel.from_pretrained(out).config.model_type == "beats"


def test_another_name_for_the_base_is_written_into_the_adapter(train):
    config = json.loads((train(max_steps=1, base_name="../na-beats") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../na-beats"


# Going on


def test_killed_and_resumed_training_equals_the_uninterrupted_one(train, data, tmp_path):
    uninterrupted, out = train("uninterrupted", lora_dropout=0.1), tmp_path / "killed"
    # Without an end of its own, so that it cannot finish before it is killed.
    command = [sys.executable, str(SCRIPT), *arguments(data, out, lora_dropout=0.1, epochs=100_000, keep=0)]
    process = subprocess.Popen(command, env=os.environ | ONE_THREAD, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    kill_in_the_middle([process], out / "log.jsonl", step=5, timeout=PROCESS_TIMEOUT)
    # Not the latest, which on a busy machine may lie behind the end of the uninterrupted one.
    train("killed", lora_dropout=0.1, resume=out / "checkpoints" / "step-00000004")
    assert repeatable(out) == repeatable(uninterrupted)
    for name in ("adapter_model.safetensors", "label_map.json"):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_resume_refuses_other_settings_labels_and_data(train, data, tmp_path):
    for machine in ("fan", "valve"):
        (tmp_path / "clips" / machine).mkdir(parents=True)
        (tmp_path / "clips" / machine / "train").symlink_to(data / "clips" / machine / "train")
    out = train(max_steps=2, data=tmp_path / "clips", resume="latest")
    with pytest.raises(ValueError, match="`resume` must be given to go on from the checkpoints"):
        train(max_steps=4)
    with pytest.raises(ValueError, match=r"`lora_rank` must be 4 as in .*, got 8"):
        train(max_steps=4, resume="latest", lora_rank=8)
    content = json.loads((out / "label_map.json").read_text())
    content["classes"] = {f"other/{name}" if "valve" in name else name: c for name, c in content["classes"].items()}
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"label map must be .* as in .*step-00000002, got"):
        train(max_steps=4, resume="latest", label_map=tmp_path / "other.json")
    train(max_steps=4, data=tmp_path / "clips", resume="latest")


def test_resume_names_an_attribute_that_is_new(train, tmp_path):
    files = write_machine(tmp_path / "new", "fan", ["spd_1", "spd_2"])
    train(max_steps=2, data=tmp_path / "new")
    files[0].rename(files[0].with_name(files[0].name.replace("spd_1", "spd_9")))
    with pytest.raises(ValueError, match="know the attributes of all clips, got 'spd_9'"):
        train(max_steps=4, data=tmp_path / "new", resume="latest")


def test_label_map_is_used_again_and_refused_for_other_data(train, data, tmp_path):
    first = train("first", max_steps=1)
    second = train("second", max_steps=1, seed=5, label_map=first / "label_map.json")
    assert (second / "label_map.json").read_bytes() == (first / "label_map.json").read_bytes()
    with pytest.raises(ValueError, match="label map must be of this data set"):
        train("third", data=data / "mono", base=data / "beats", label_map=first / "label_map.json")


# What goes wrong


def test_bad_input_is_refused_before_the_first_step(train, data, tmp_path):
    write_machine(tmp_path / "one", "fan", ["spd_1"])
    for wrong, message in (
        ({"data": tmp_path / "one"}, "at least two classes, got one alone: fan/section_00/spd_1"),
        ({"num_clusters": "many"}, "num_clusters must be a whole number of at least 1 or 'silhouette', got 'many'"),
        ({"num_clusters": 13}, "num_clusters must be at most the number of clips, got 13 for 12 of valve"),
        ({"data": data / "mono"}, "must have two channels, close and far, for this model, got 1"),
        ({"batch_size": 1}, "`batch_size` must be a multiple of the 1 processes and at least two for each .*, got 1"),
        ({"batch_size": 32}, "`batch_size` must be at most the number of training clips 26, got 32"),
        ({"held_out": 0.01}, "`held_out` must leave at least two clips of every machine .*, got 0.01: 0 of fan"),
        ({"held_out": 1.5}, r"`held_out` must lie in \[0, 1\], got 1.5"),
        ({"save_every": 0}, "`save_every` must be positive, got 0"),
        ({"mixup": 1.5}, r"`mixup` must lie in \[0, 1\], got 1.5"),
        ({"lora_rank": 0}, "`rank` must be at least 1"),
        ({"ema_decay": 1.0}, r"`decay` must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            train("wrong", **wrong)
        assert not (tmp_path / "wrong" / "checkpoints").exists()


def test_loss_that_is_not_finite_stops_before_the_weights_are_changed(train, monkeypatch, tmp_path):
    draw, calls = script.draw_mixup, []

    def spoilt(*settings):
        calls.append(settings)
        mixup = draw(*settings)
        return mixup._replace(lam=mixup.lam * float("nan")) if len(calls) == 3 else mixup

    monkeypatch.setattr(script, "draw_mixup", spoilt)
    with pytest.raises(FloatingPointError, match=r"loss and gradient must be finite, got nan .* in step 3, seed 0"):
        train()
    assert latest_checkpoint(tmp_path / "out" / "checkpoints").name == "step-00000002"


# From two processes to a process without the package


def test_two_processes_train_an_adapter_that_scores_without_the_package(data, tmp_path):
    out = tmp_path / "out"
    done = run_on_two_processes([SCRIPT, *arguments(data, out, cpu=None, max_steps=4)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in repeatable(out) if "loss" in row] == [1, 2, 3, 4]
    assert "2 processes" in (out / "README.md").read_text()

    files = sorted(str(path) for path in (data / "clips" / "valve" / "train").iterdir())[:8]
    environment = os.environ | ONE_THREAD | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", REMOTE, str(out), *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["modules"] == ["transformers_modules"]
    assert not report["package_imported"]

    scorer = pipeline("anomaly-scoring", model=str(out)).fit(files, false_alarm_rate=0.2, progress=None)
    np.testing.assert_allclose(report["scores"], [result["score"] for result in scorer(files[:3])], atol=1e-6, rtol=0)
    features = scorer.feature_extractor(soundfile.read(files[0], dtype="float32")[0].T, sampling_rate=16000)
    base = AutoModel.from_pretrained(data / "na-beats")
    with torch.no_grad():
        for model, same in ((scorer.model, True), (base, False)):
            tokens = model(features["input_values"]).last_hidden_state[0, :2].numpy()
            assert np.allclose(report["tokens"], tokens, atol=1e-5) == same
