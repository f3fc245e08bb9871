"""EAT checkpoints of both layouts convert to models with the outputs of the original code."""

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from na_ssl_hf import EatConfig, EatModel
from na_ssl_hf.convert import convert_eat, foreign_pickle
from na_ssl_hf.convert.eat import eat_weights, read_eat


@pytest.fixture(scope="module")
def layouts(models):
    return {"hf": models / "eat_tiny/hf", "fairseq": models / "eat_tiny/fairseq/eat_tiny_fairseq.pt"}


@pytest.fixture(scope="module", params=["hf", "fairseq"])
def converted(request, layouts, tmp_path_factory):
    return convert_eat(layouts[request.param], tmp_path_factory.mktemp("eat") / request.param)


def test_outputs_equal_those_of_the_original(models, converted, features):
    outputs = np.load(models / "eat_tiny" / "io.npz")
    model = AutoModel.from_pretrained(converted).eval()
    waves = [name.removeprefix("out_") for name in outputs if name.startswith("out_") and "mel" not in name]
    assert len(waves) == 9
    for wave in waves:
        with torch.no_grad():
            output = model(features(converted, wave)).last_hidden_state[0].numpy()
        tolerance = 2e-2 if wave == "sweep" else 1e-4
        np.testing.assert_allclose(output, outputs[f"out_{wave}"], rtol=0, atol=tolerance, err_msg=wave)
    with torch.no_grad():
        output = model(torch.from_numpy(outputs["mel_rand"])[:, 0]).last_hidden_state.numpy()
    np.testing.assert_allclose(output, outputs["out_mel_rand"], rtol=0, atol=1e-4)


def test_both_layouts_give_the_same_weights(layouts):
    first, second = (read_eat(source) for source in layouts.values())
    assert first.settings == second.settings
    assert first.state.keys() == second.state.keys()
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("layout", ["hf", "fairseq"])
def test_the_published_names_and_shapes_are_exactly_those_of_our_model(
    models, listed_tensors, tmp_path, monkeypatch, size, layout
):
    tensors = listed_tensors(models / "eat_tiny" / f"keys_{layout}_{size}.txt")
    if layout == "hf":
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        weights = eat_weights(tensors, {}, "EAT")  # without settings the published widths tell the heads
    else:
        teacher = {name: tensors.pop(name) for name in list(tensors) if name.startswith("_ema/")}
        path = tmp_path / "eat.pt"
        torch.save({"args": None, "cfg": None, "model": {**tensors, "_ema": teacher}}, path)
        # Expanded zeros keep the file tiny; elsewhere they are refused.
        monkeypatch.setattr(foreign_pickle, "_check_tensors", lambda checkpoint, file_size: None)
        weights = read_eat(path)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    config = EatConfig(**(large if size == "large" else {}))
    assert {name: getattr(config, name) for name in weights.settings} == weights.settings
    with torch.device("meta"):
        expected = EatModel(config).state_dict()
    assert {name: tensor.shape for name, tensor in weights.state.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def test_old_fairseq_files_keep_their_settings_in_args(layouts, edited):
    def age(checkpoint):
        model = checkpoint["cfg"]["model"]
        checkpoint.update(args=argparse.Namespace(**model), cfg=None)

    path = edited(layouts["fairseq"], age)
    assert read_eat(path).settings == read_eat(layouts["hf"]).settings


def test_other_sizes_and_projections_without_bias(layouts, tmp_path):
    weights = read_eat(layouts["hf"])
    hidden_size = weights.settings["hidden_size"]
    tensors = {
        "local_encoder.proj.weight": torch.randn(hidden_size, 1, 16, 16),
        "local_encoder.proj.bias": torch.randn(hidden_size),
        "extra_tokens": torch.randn(1, 1, hidden_size),
        "fixed_positional_encoder.positions": torch.randn(1, 24, hidden_size),
        "pre_norm.weight": torch.ones(hidden_size),
        "pre_norm.bias": torch.ones(hidden_size),
        "blocks.0.attn.qkv.weight": torch.randn(3 * hidden_size, hidden_size),
        "blocks.0.attn.proj.weight": torch.randn(hidden_size, hidden_size),
        "blocks.0.attn.proj.bias": torch.randn(hidden_size),
        "blocks.0.mlp.fc1.weight": torch.randn(40, hidden_size),
        "blocks.0.mlp.fc1.bias": torch.randn(40),
        "blocks.0.mlp.fc2.weight": torch.randn(hidden_size, 40),
        "blocks.0.mlp.fc2.bias": torch.randn(hidden_size),
    }
    for norm in ("norm1", "norm2"):
        tensors |= {f"blocks.0.{norm}.{leaf}": torch.ones(hidden_size) for leaf in ("weight", "bias")}
    torch.save({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"num_heads": 2, "qkv_bias": False, "norm_eps": 1e-5}))
    model = AutoModel.from_pretrained(convert_eat(tmp_path, tmp_path / "converted"))
    assert model.config.max_time_patches == 3
    assert model.config.layer_norm_eps == 1e-5
    assert model.config.intermediate_size == 40
    assert torch.equal(model.embeddings.position_embeddings, tensors["fixed_positional_encoder.positions"])
    stacked = tensors["blocks.0.attn.qkv.weight"]
    for part, projection in enumerate(("q_proj", "k_proj", "v_proj")):
        found = getattr(model.layers[0].attention, projection)
        assert found.bias is None
        assert torch.equal(found.weight, stacked[part * hidden_size : (part + 1) * hidden_size])


HEAD = {
    "fc_norm.weight": torch.ones(32),
    "fc_norm.bias": torch.zeros(32),
    "head.weight": torch.zeros(527, 32),
    "head.bias": torch.zeros(527),
}


def fine_tuned(source, destination):
    """Write the layout of a classifier, of EAT or SSLAM, that was fine-tuned from a checkpoint of this layout."""
    if source.is_dir():
        shutil.copytree(source, destination)
        path = destination / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_variant": "finetune", "num_classes": 527}))
        weights = load_file(source / "model.safetensors") | {f"model.{name}": tensor for name, tensor in HEAD.items()}
        save_file(weights, destination / "model.safetensors", metadata={"format": "pt"})
        return destination
    checkpoint = torch.load(source, weights_only=False)
    unused = ("_ema", "modality_encoders.IMAGE.decoder.")
    encoder = {name: tensor for name, tensor in checkpoint["model"].items() if not name.startswith(unused)}
    checkpoint["model"] = {f"model.{name}": tensor for name, tensor in encoder.items()} | HEAD
    torch.save(checkpoint, destination)
    return destination


@pytest.mark.parametrize("layout", ["hf", "fairseq"])
def test_the_encoder_of_a_fine_tuned_classifier_is_taken_and_its_head_named(layouts, tmp_path, monkeypatch, layout):
    messages = []
    monkeypatch.setattr("na_ssl_hf.convert.eat.logger.warning", messages.append)
    source = fine_tuned(layouts[layout], tmp_path / "classifier")
    found, expected = read_eat(source), read_eat(layouts[layout])
    assert found.settings == expected.settings
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())
    assert len(messages) == 1
    assert all(name in messages[0] for name in ("classifier", *HEAD, "dropped"))


def put(name, tensor):
    return lambda checkpoint: checkpoint["model"].update({name: tensor})


def setting(**settings):
    return lambda checkpoint: checkpoint["cfg"]["model"].update(settings)


def image_setting(**settings):
    return lambda checkpoint: checkpoint["cfg"]["model"]["modalities"]["image"].update(settings)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda checkpoint: checkpoint["model"].pop("blocks.1.norm1.bias"), r"1 missing \(blocks.1.norm1.bias\)"),
        (put("blocks.0.alien", torch.zeros(1)), r"1 unexpected \(blocks.0.alien\)"),
        (put("blocks.0.attn.qkv.bias", torch.zeros(95)), r"stack query, key and value, got shape \(95,\)"),
        (put("blocks.0.mlp.fc2.bias", torch.zeros(5)), r"mlp.fc2.bias.*\(32,\), got \(5,\)"),
        (setting(layer_norm_first=True), "`layer_norm_first`.*False.*True"),
        (setting(depth=12), "`depth`.*3.*12"),
        (setting(num_heads=5), "num_attention_heads"),
        (lambda checkpoint: checkpoint["cfg"]["model"].pop("num_heads"), r"`num_heads`.*32.*\[768, 1024\]"),
        (image_setting(in_chans=3), "`in_chans`.*1.*3"),
        (image_setting(fixed_positions=False), "`fixed_positions`"),
        (lambda checkpoint: checkpoint.pop("model"), "fairseq checkpoint"),
        (lambda checkpoint: checkpoint["cfg"].update(model="eat"), "settings.*dict, got str"),
    ],
)
def test_another_fairseq_file_is_a_named_error_and_nothing_is_written(layouts, edited, tmp_path, edit, message):
    path = edited(layouts["fairseq"], edit)
    with pytest.raises(ValueError, match=message) as raised:
        convert_eat(path, tmp_path / "converted")
    assert path.name in str(raised.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_variant": "distilled"}, "`model_variant`.*'pretrain' or 'finetune', got 'distilled'"),
        ({"norm_affine": False}, "`norm_affine`"),
        ({"stride": 8}, "`stride`.*16.*8"),
        ({"max_length": 768}, "`max_length`.*64.*768"),
        ({"mel_bins": 8}, "position table"),
    ],
)
def test_another_configuration_is_a_named_error(layouts, tmp_path, settings, message):
    shutil.copytree(layouts["hf"], tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        convert_eat(tmp_path / "hf", tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_incomplete_and_damaged_directories_are_named(layouts, tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        convert_eat(source, tmp_path / "converted")
    (source / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        convert_eat(source, tmp_path / "converted")
    shutil.copy(layouts["hf"] / "config.json", source / "config.json")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        convert_eat(source, tmp_path / "converted")
    whole = (layouts["hf"] / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(OSError, match="truncated or damaged"):
        convert_eat(source, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
