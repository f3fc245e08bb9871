import json

import numpy as np
import pytest
import soundfile
import torch
from example_scripts import forget_accelerator, load_example, run_here
from tiny_models import tiny_model
from transformers import AutoFeatureExtractor, AutoModel

from na_ssl_hf.cli import main
from na_ssl_hf.data.corpora.manifest import SoundFile, write_manifest
from na_ssl_hf.data.synthetic.random_sounds import synthesize_random_sound
from na_ssl_hf.hub.modeling_beats import BeatsModel

script = load_example("pretrain_tiny_base")


@pytest.fixture
def targets(tmp_path):
    sounds = []
    for index in range(4):
        path = tmp_path / f"{index}.flac"
        soundfile.write(path, synthesize_random_sound(index, 2.0).clip(-1, 1), 16000)
        sounds.append(SoundFile(str(path), 32000, 16000, "train" if index else "validation", "random"))
    write_manifest(tmp_path / "targets.jsonl", sounds)
    return tmp_path / "targets.jsonl"


@pytest.fixture
def run(targets, tmp_path, monkeypatch):
    def run(name, *options):
        arguments = ["--targets", targets, "--output_dir", tmp_path / name, "--cpu", "--duration", "0.5"]
        arguments += ["--optimizer", "muon"]
        arguments += ["--hidden_size", "32", "--num_layers", "2", "--batch_size", "6", "--max_steps", "4", *options]
        run_here(script, arguments, monkeypatch)
        return tmp_path / name

    return run


@pytest.mark.parametrize("objective", ["bands", "masked"])
@pytest.mark.parametrize("model_type", ["beats", "eat"])
def test_writes_a_base_and_its_loss_curve(run, objective, model_type):
    folder = run("base", "--model_type", model_type, "--objective", objective)
    model, extractor = AutoModel.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    assert model.config.model_type == extractor.frontend == model_type
    features = extractor(torch.randn(2, 16000).numpy(), sampling_rate=16000)
    assert model(**features).last_hidden_state.isfinite().all()
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_command_trains_as_the_script_does(run, targets, tmp_path):
    script_weights = BeatsModel.from_pretrained(run("script")).state_dict()
    options = "--cpu --duration 0.5 --optimizer muon --hidden-size 32 --num-layers 2 --batch-size 6 --max-steps 4"
    folders = ["--targets", str(targets), "--output-dir", str(tmp_path / "command")]
    forget_accelerator()
    try:
        assert main(["train", "pretrain", *folders, *options.split()]) == 0
    finally:
        forget_accelerator()
    command_weights = BeatsModel.from_pretrained(tmp_path / "command").state_dict()
    for name, weight in script_weights.items():
        torch.testing.assert_close(command_weights[name], weight, rtol=0, atol=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny_model("efficientat").save_pretrained(folder)
    return folder


def test_knowledge_of_a_teacher_is_read_where_the_tokens_lie(run, teacher):
    # Layer 4 has twice as many rows and bands as the layer 7.
    options = ["--objective", "knowledge", "--teacher", teacher, "--teacher_layers", "4", "7"]
    folder = run("base", "--model_type", "eat", *options)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all(0 < row["knowledge"] < 10 for row in rows)
    # Of 128 mel bins up to 15 kHz in 8 rows, the fbank up to 8 kHz reaches between the rows 6 and 7.
    weights = script.band_interpolation(8, 128, 8)
    torch.testing.assert_close(weights.sum(0), torch.ones(8))
    places = (torch.arange(8.0)[:, None] * weights).sum(0)
    assert places.diff().gt(0).all()
    assert 0 < places[0] < 1
    assert 6 < places[-1] < 7


@pytest.mark.parametrize("layers", [["4", "99"], ["-1"]])
def test_knowledge_needs_layers_of_the_teacher(run, teacher, layers):
    with pytest.raises(ValueError, match="`teacher_layers` must be some of 0 to 16"):
        run("base", "--objective", "knowledge", "--teacher", teacher, "--teacher_layers", *layers)


def test_knowledge_needs_a_teacher(run):
    with pytest.raises(ValueError, match="`teacher` must be a folder of an EfficientAT"):
        run("base", "--objective", "knowledge")


def test_changed_crops_are_those_of_their_seed_and_differ(targets):
    sounds = [sound for sound in script.read_manifest(targets) if sound.split == "train"]
    settings = script.Settings(targets=str(targets), output_dir="", batch_size=24, duration=0.5)
    first, again, other = (script.changed_crops(sounds, settings, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (24, 8000)
    assert first.isfinite().all()
    assert first.abs().max() <= 1


@pytest.mark.parametrize("objective", ["bands", "masked", "knowledge"])
def test_resumed_training_equals_uninterrupted(run, objective, teacher, monkeypatch):
    options = ("--objective", objective, "--save_every", "2")
    if objective == "knowledge":
        options += ("--teacher", teacher, "--hidden_share", "0.3")
    expected = BeatsModel.from_pretrained(run("whole", *options)).state_dict()
    save = script.save_checkpoint

    def save_and_stop(*arguments, **settings):
        save(*arguments, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run("resumed", *options)
    monkeypatch.setattr(script, "save_checkpoint", save)
    state = BeatsModel.from_pretrained(run("resumed", *options, "--resume")).state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(state[name], weight, rtol=0, atol=0)


def test_other_settings_and_a_used_folder_are_refused(run):
    run("base")
    with pytest.raises(ValueError, match="`resume` must be given to go on from the checkpoints"):
        run("base")
    with pytest.raises(ValueError, match=r"`seed` must be 0 .* got 1"):
        run("base", "--resume", "--seed", "1")


def test_neighbours_lie_where_the_distance_loss_looks_for_them(targets):
    settings = script.Settings(targets=str(targets), output_dir="", batch_size=9, duration=0.5)
    sounds = [sound for sound in script.read_manifest(targets) if sound.split == "train"]
    waves = script.crops_with_neighbours(sounds, settings, script.np.random.default_rng(0))
    assert waves.shape == (9, 8000)
    first, second = torch.triu_indices(9, 9, 1)
    is_near = (second - first) % 3 == 0
    alike = torch.corrcoef(waves)[first, second].abs()
    assert alike[is_near].median() > 0.5 > alike[~is_near].median()
    assert script.colours(9, "beats")[:3].abs().max() == 0
