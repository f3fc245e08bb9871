"""The training script as a whole, on sounds and models small enough for a handful of steps a second."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import accelerate
import numpy as np
import pytest
import soundfile
import torch
from example_scripts import EXAMPLES, ONE_THREAD, kill_in_the_middle, load_example, run_here
from safetensors.torch import load_file
from tiny_models import tiny_model
from transformers import AutoFeatureExtractor, AutoModel, DistilBertConfig

from na_ssl_hf.data.corpora.manifest import SoundFile, read_manifest, write_manifest
from na_ssl_hf.simulation.room_pool import RoomPool
from na_ssl_hf.training import checkpoint_folder
from na_ssl_hf.training.checkpoint_folder import latest_checkpoint
from na_ssl_hf.training.json_lines_tracker import read_json_lines

SCRIPT = EXAMPLES / "train_na_distillation.py"
PROCESS_TIMEOUT = 240  # s, only so that a hanging test ends


script = load_example("train_na_distillation")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Bases, manifests and rooms; their names are in `arguments`."""
    folder = tmp_path_factory.mktemp("data")
    for model_type in ("beats", "dasheng", "eat", "na-beats"):
        tiny_model(model_type).save_pretrained(folder / model_type)
    random = np.random.default_rng(0)
    for use, count in (("targets", 2), ("noises", 4)):
        sounds = []
        for name in [f"{split}{number}" for split in ("train", "validation") for number in range(count)]:
            path = folder / f"{use}-{name}.flac"
            envelope = np.abs(np.sin(np.arange(12000) * random.uniform(1e-4, 1e-2)))
            soundfile.write(path, 0.1 * envelope * random.standard_normal(12000), 16000)
            sounds.append(SoundFile(str(path), 12000, 16000, name.rstrip("0123456789"), "made-up", "CC0-1.0"))
        write_manifest(folder / f"{use}.jsonl", sounds)
    for name, seed in (("rooms", 0), ("validation", 1)):
        RoomPool.simulate(2, seed, folder / f"{name}.safetensors", show_progress=False)
    return folder


def arguments(data: Path, out: Path, **changed) -> list[str]:
    options = {
        "base": data / "beats",
        "targets": data / "targets.jsonl",
        "noises": data / "noises.jsonl",
        "rooms": data / "rooms.safetensors",
        "validation_rooms": data / "validation.safetensors",
        "output_dir": out,
        "duration": 0.5,
        "batch_size": 2,
        "max_steps": 20,
        "save_every": 4,
        "validate_every": 10,
        "validation_examples": 4,
        "noise_aware_heads": 4,
        "lr": 3e-3,
        "ema_start": 5,
        "ema_decay": 0.9,
        "trackers": False,
        "cpu": True,
    } | changed
    return [
        word
        for name, value in options.items()
        if value is not None
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


@pytest.fixture
def train(data, monkeypatch, tmp_path):
    """Runs the script in this process, as a new one would; returns its output folder."""

    def run(out: str | Path = "out", **changed) -> Path:
        run_here(script, arguments(data, tmp_path / out, **changed), monkeypatch)
        return tmp_path / out

    return run


def losses(folder: Path) -> dict[int, tuple[float, ...]]:
    """What must repeat itself exactly, by step."""
    rows = [row for row in read_json_lines(folder / "log.jsonl") if "loss" in row]
    return {
        row["step"]: tuple(row[name] for name in ("loss", "token_loss", "band_loss", "gradient_norm")) for row in rows
    }


def latest_step(folder: Path) -> int:
    return int(latest_checkpoint(folder / "checkpoints").name.removeprefix("step-"))


def validations(folder: Path) -> dict[int, dict[str, float]]:
    return {row["step"]: row for row in read_json_lines(folder / "log.jsonl") if "validation/ratio" in row}


def started(command: list[str], num_processes: int = 1) -> list[subprocess.Popen]:
    """The processes of a training, as torchrun starts them; its own would outlive it when it is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    group = place | {"WORLD_SIZE": str(num_processes)} if num_processes > 1 else {}
    processes = []
    for rank in range(num_processes):
        environment = os.environ | ONE_THREAD | group
        if group:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    return processes


# What a training leaves


@pytest.mark.parametrize("base", ["beats", "dasheng", "eat"])
def test_leaves_a_checkpoint_with_the_averaged_weights_a_card_and_curves(train, data, base):
    out = train(
        base=data / base,
        layer_type="aligned",
        band_loss=0.5,
        far_cancellation="spectral_subtraction",
        licence="cc0-1.0",
    )
    model, extractor = AutoModel.from_pretrained(out), AutoFeatureExtractor.from_pretrained(out)
    assert model.config.noise_aware_layer_type == "aligned"
    assert (extractor.frontend, extractor.far_cancellation) == (base, "spectral_subtraction")
    untouched = AutoModel.from_pretrained(data / base).state_dict()
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in untouched.items())

    checkpoint = latest_checkpoint(out / "checkpoints")
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == [f"step-{n:08d}" for n in (12, 16, 20)]
    averages = torch.load(checkpoint / "custom_checkpoint_0.pkl")
    weights = load_file(checkpoint / "model.safetensors")
    assert averages
    for name, average in averages.items():
        assert torch.equal(model.state_dict()[name.removeprefix("model.")], average)
    assert any(not torch.equal(weights[name], average) for name, average in averages.items())

    measured = validations(out)[20]
    low, high = (measured[f"validation/ratio_{end}"] for end in ("low", "high"))
    assert low < measured["validation/ratio"] < high
    card = (out / "README.md").read_text()
    assert f"| ratio | {measured['validation/ratio']:.4f} |" in card
    assert "| targets | train | made-up | CC0-1.0 | 2 | 0.0 |" in card
    assert "license: cc0-1.0" in card
    assert "--band_loss 0.5" in card
    assert (out / "loss.png").stat().st_size > 10_000


def test_float16_weights_load_as_float32(train):
    out = train(max_steps=2, fp16_weights=True)
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert AutoModel.from_pretrained(out).dtype == torch.float32


def test_untrained_model_has_the_ratio_one(train):
    measured = validations(train(max_steps=1, lr=0.0))[1]
    ratios = [value for name, value in measured.items() if "ratio" in name]
    assert ratios == [1.0] * 6


@pytest.mark.parametrize("base", ["beats", "eat"])
def test_goes_on_from_a_noise_aware_model(train, data, base):
    first = train("first", base=data / base, layer_type="aligned")
    same = train("same", base=first, layer_type="aligned", lr=0.0, max_steps=1)
    weights, kept = (load_file(folder / "model.safetensors") for folder in (first, same))
    assert weights.keys() == kept.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, kept[name]), name
    assert validations(same)[1]["validation/loss"] == pytest.approx(validations(first)[20]["validation/loss"], rel=1e-5)
    assert "from the noise-aware model `first`" in (same / "README.md").read_text()
    assert "around the frozen base" in (first / "README.md").read_text()

    assert (same / "modeling_noise_aware.py").exists()  # its code goes with it, as with the first

    more = train("more", base=first, layer_type="aligned", noise_aware_dropout=0.0, lowers_far=True, max_steps=2)
    changed = {
        name for name, weight in load_file(more / "model.safetensors").items() if not torch.equal(weight, weights[name])
    }
    assert changed
    assert all("noise_aware" in name for name in changed)
    config = AutoModel.from_pretrained(more).config
    assert config.noise_aware_attention_dropout == 0.0
    assert config.noise_aware_lowers_far


def test_workers_accumulation_and_checkpointing_change_nothing_but_speed(train):
    settings = {"max_steps": 3, "noise_aware_dropout": 0.0}
    plain = losses(train("plain", **settings))
    assert losses(train("workers", num_workers=2, gradient_checkpointing=True, **settings)) == plain
    accumulated = losses(train("accumulated", gradient_accumulation=2, **settings))
    for step, values in plain.items():
        assert accumulated[step] == pytest.approx(values, rel=1e-4)


def test_batches_are_cut_to_random_durations(train, monkeypatch):
    lengths = []
    mixed = script.mixed
    monkeypatch.setattr(
        script, "mixed", lambda batch, **rest: lengths.append(batch["target"].shape[-1]) or mixed(batch, **rest)
    )
    train(shortest_duration=0.2, max_steps=8, gradient_accumulation=2, validate_every=8)
    of_training, of_validation = lengths[:16], lengths[16:]
    assert of_training[::2] == of_training[1::2]  # a step has one duration, whatever it is cut into
    assert len(set(of_training)) == 8
    assert 0.2 * 16000 <= min(of_training) < max(of_training) <= 0.5 * 16000
    assert set(of_validation) == {8000}


def test_all_conditions_and_a_gate_are_trained_and_resumed(train, tmp_path):
    conditions = {"clean_share": 0.3, "silent_far_share": 0.2, "machine_level": [-4, 20], "changed_targets": True}
    conditions |= {"stream_shares": [0.4, 0.3, 0.3], "noise_aware_gate": True, "duration": 4, "max_steps": 6}
    conditions |= {"save_every": 3, "keep": 0, "validate_every": 6, "lowers_far": True}
    out = train(**conditions)
    assert AutoModel.from_pretrained(out).config.noise_aware_gate
    assert AutoModel.from_pretrained(out).config.noise_aware_lowers_far
    assert AutoFeatureExtractor.from_pretrained(out).lowers_far
    first = losses(out)
    assert all(math.isfinite(value) for values in first.values() for value in values)
    train(**conditions, resume=out / "checkpoints" / "step-00000003")
    assert losses(out) == first


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    class settings:
        lr, warmup_steps, schedule = 1.0, 2, "cosine"

    rates = [script.learning_rate(step, 6, settings) for step in range(1, 7)]
    assert rates == pytest.approx([0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4))])
    settings.schedule = "constant"
    assert script.learning_rate(6, 6, settings) == 1.0


# Going on


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_training_equals_the_uninterrupted_one(train, data, tmp_path, optimizer):
    uninterrupted = train("uninterrupted", optimizer=optimizer)
    out = tmp_path / "killed"
    # Without an end of its own, so that it cannot finish before it is killed.
    command = [sys.executable, str(SCRIPT), *arguments(data, out, max_steps=100_000, optimizer=optimizer)]
    kill_in_the_middle(started(command), out / "log.jsonl", step=10, timeout=PROCESS_TIMEOUT)
    assert 8 <= latest_step(out) < 20
    train("killed", resume="latest", optimizer=optimizer)
    assert losses(out) == losses(uninterrupted)
    assert len(losses(out)) == 20
    assert validations(out) == validations(uninterrupted)
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_two_processes_are_killed_and_resumed(data, tmp_path):
    out = tmp_path / "out"

    def command(**changed) -> list[str]:
        return [sys.executable, str(SCRIPT), *arguments(data, out, batch_size=4, save_every=6, **changed)]

    kill_in_the_middle(
        started(command(max_steps=100_000), num_processes=2), out / "log.jsonl", step=10, timeout=PROCESS_TIMEOUT
    )
    before, position = losses(out), latest_step(out)
    resumed = started(command(resume="latest"), num_processes=2)
    for process in resumed:
        _, errors = process.communicate(timeout=PROCESS_TIMEOUT)
        assert process.returncode == 0, errors.decode()[-3000:]
    after = losses(out)
    assert sorted(after) == list(range(1, 21))
    # The steps between the checkpoint and the kill were done twice.
    repeated = [step for step in before if position < step <= 20]
    assert repeated
    assert {step: after[step] for step in repeated} == {step: before[step] for step in repeated}
    assert AutoModel.from_pretrained(out).config.model_type == "na-beats"


def test_resume_starts_where_nothing_is_and_refuses_other_settings_and_used_folders(train, tmp_path):
    out = train(max_steps=4, resume="latest")
    with pytest.raises(ValueError, match="`resume` must be given to go on from the checkpoints"):
        train(max_steps=8)
    with pytest.raises(ValueError, match=r"`seed` must be 0 as in .*step-00000004, got 1"):
        train(max_steps=8, resume="latest", seed=1)
    with pytest.raises(FileNotFoundError, match=r"holds no position\.json"):
        train(max_steps=8, resume=tmp_path)
    checkpoint = out / "checkpoints" / "step-00000004"
    position = checkpoint_folder.read_position(checkpoint)
    del position["noise_coherence"]  # as in a checkpoint from before there was this option
    (checkpoint / "position.json").write_text(json.dumps(position))
    with pytest.raises(ValueError, match=r"`noise_coherence` must be \[0.0, 0.0\] as in .*step-00000004, got"):
        train(max_steps=8, resume="latest", noise_coherence=[0, 1])
    train(max_steps=8, resume=checkpoint)
    assert sorted(losses(out)) == list(range(1, 9))


def test_full_disk_leaves_the_old_checkpoint(train, monkeypatch, tmp_path):
    out = train(max_steps=4)
    weights = (out / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes()

    def full(self, folder):
        (Path(folder) / "model.safetensors").write_bytes(weights[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accelerate.Accelerator, "save_state", full)
    with pytest.raises(OSError, match=r"step 8 cannot be written.*No space left.*last good one is .*step-00000004"):
        train(max_steps=8, resume="latest")
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    assert checkpoint_folder.read_position(latest_checkpoint(out / "checkpoints"))["step"] == 4


# What goes wrong


def test_loss_that_is_not_finite_stops_and_names_the_batch(train, monkeypatch, tmp_path):
    mixed = script.mixed

    def spoilt(batch, **rest):
        mixture = mixed(batch, **rest)
        return mixture._replace(close=mixture.close * math.nan) if 10 in batch["index"] else mixture

    monkeypatch.setattr(script, "mixed", spoilt)
    message = r"loss must be finite.*step 6: seed 7, mixtures \[10, 11\].*step-00000004"
    with pytest.raises(FloatingPointError, match=message):
        train(seed=7)
    assert sorted(losses(tmp_path / "out")) == [1, 2, 3, 4, 5]
    assert latest_checkpoint(tmp_path / "out" / "checkpoints").name == "step-00000004"


def test_bad_input_is_refused_before_the_first_step(train, data, tmp_path):
    few = tmp_path / "few.jsonl"
    noises = read_manifest(data / "noises.jsonl")
    write_manifest(few, [noise for noise in noises if noise.split == "train" or "validation0" in noise.path])
    DistilBertConfig().save_pretrained(data / "other")
    other_rate = tmp_path / "rooms.safetensors"
    RoomPool.simulate(1, 0, other_rate, sampling_rate=8000, show_progress=False)
    for wrong, message in (
        ({"noises": few}, "`noises` must hold at least 4 files of split validation, got 1 in"),
        ({"validation_rooms": other_rate}, "8000 Hz"),
        (
            {"base": data / "other"},
            r"`base` must be a model of type \['beats', 'dasheng', 'eat'\], plain or .*, got 'distilbert'",
        ),
        (
            {"base": data / "na-beats", "layer_type": "film"},
            "`layer_type` must be 'cross_attention', as in .* got 'film'",
        ),
        ({"base": data / "na-beats", "noise_aware_heads": 1}, "`noise_aware_heads` must be 8, as in .*, got 1"),
        ({"batch_size": 3, "gradient_accumulation": 2}, "`batch_size` must be a multiple of processes x .* = 2, got 3"),
        ({"validation_examples": 1}, "whole batches of `validation_examples` must be at least 1, got 0"),
        ({"shortest_duration": 0.6}, "`shortest_duration` must be positive and at most `duration` 0.5 s, got 0.6 s"),
        ({"snr": [10, -10]}, r"snr_db must be .* got \(10.0, -10.0\)"),
        ({"save_every": 0}, "`save_every` must be at least 1, got 0"),
        ({"ema_decay": 1.0}, r"`decay` must lie in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            train("wrong", **wrong)
    assert not (tmp_path / "wrong" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "wrong", ignore_errors=True)


def test_push_to_hub_uploads_all_but_the_checkpoints(train, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path, ignore_patterns):
            calls.append((repo_id, folder_path, ignore_patterns))

    monkeypatch.setattr(script, "HfApi", Hub)
    out = train(max_steps=1, push_to_hub="someone/na-beats")
    assert calls == [("someone/na-beats", True), ("someone/na-beats", out, ["checkpoints/*", "na-distillation/*"])]
    assert 'from_pretrained("someone/na-beats")' in (out / "README.md").read_text()


def test_log_is_json_lines(train):
    rows = [json.loads(line) for line in (train(max_steps=1) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 1]
    assert rows[0]["clips_per_s"] > 0


# Recipes and the dry run


def test_a_recipe_stands_in_for_defaults_and_options_win(data, tmp_path):
    paper, ours, changed = (
        script.parsed_settings(arguments(data, tmp_path) + more)
        for more in ([], ["--recipe", "installation"], ["--clean_share", "0.5", "--recipe", "installation"])
    )
    assert script.RECIPES["paper"] == {}
    assert {name for name in vars(paper) if getattr(paper, name) != getattr(ours, name)} == {
        "recipe",
        *script.RECIPES["installation"],
    }
    assert ours.stream_shares == [0.34, 0.33, 0.33]
    assert (changed.clean_share, changed.machine_level) == (0.5, [-4.0, 20.0])
    with pytest.raises(SystemExit):
        script.parsed_settings([*arguments(data, tmp_path), "--recipe", "unknown"])


@pytest.mark.parametrize("recipe", ["paper", "installation"])
def test_a_dry_run_reads_and_writes_nothing_and_says_what_training_would_take(
    data, tmp_path, monkeypatch, capsys, recipe
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "DRY_RUN_STEPS", 3)
    words = ["--dry-run", "2", "--base", str(data / "eat"), "--noise-aware-heads", "4", "--cpu", "True"]
    run_here(script, [*words, "--duration", "0.5", "--recipe", recipe], monkeypatch)
    said = capsys.readouterr().out
    assert "3 steps of 2 x 0.5 s on cpu" in said
    assert "51207 steps" in said  # 200 epochs of FSD50K in steps of 160
    assert "one H100: " in said
    assert "four H100s: " in said
    assert not list(tmp_path.iterdir())
