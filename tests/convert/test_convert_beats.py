"""BEATs files convert to models with the outputs of the original code; anything else is refused and nothing written."""

import json
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModel

from na_ssl_hf import BeatsConfig, BeatsModel
from na_ssl_hf.convert import convert, convert_beats
from na_ssl_hf.convert.beats import beats_weights


@pytest.fixture(scope="module")
def source(models):
    return models / "beats_tiny" / "beats_tiny.pt"


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    return convert_beats(source, tmp_path_factory.mktemp("beats") / "converted")


def test_outputs_equal_those_of_the_original(models, converted, features):
    outputs = np.load(models / "beats_tiny" / "io.npz")
    model = AutoModel.from_pretrained(converted).eval()
    waves = [name.removeprefix("out_") for name in outputs if name.startswith("out_")]
    assert len(waves) == 9
    for wave in waves:
        with torch.no_grad():
            output = model(features(converted, wave)).last_hidden_state[0].numpy()
        tolerance = 2e-2 if wave == "sweep" else 1e-4  # the fbank of a pure tone is rounding noise off the tone
        np.testing.assert_allclose(output, outputs[f"out_{wave}"], rtol=0, atol=tolerance, err_msg=wave)


def test_the_directory_is_complete(converted):
    names = {path.name for path in converted.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_beats.py"} <= names
    assert "AutoModel" in json.loads((converted / "config.json").read_text())["auto_map"]
    assert [path.name for path in converted.parent.iterdir()] == ["converted"]  # nothing unfinished beside it


def test_the_published_names_and_shapes_are_exactly_those_of_the_default_model(models, listed_tensors):
    tensors = listed_tensors(models / "beats_tiny" / "keys.txt")
    cfg = json.loads((models / "beats_tiny" / "beats_iter3_cfg.json").read_text())
    weights = beats_weights(tensors, cfg, "BEATs_iter3.pt")
    config = BeatsConfig()
    assert {name: getattr(config, name) for name in weights.settings} == weights.settings
    with torch.device("meta"):
        expected = BeatsModel(config).state_dict()
    assert {name: tensor.shape for name, tensor in weights.state.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


def test_equal_sizes_need_no_projection(source, edited, tmp_path):
    def widen(checkpoint):
        model, cfg = checkpoint["model"], checkpoint["cfg"]
        del model["post_extract_proj.weight"], model["post_extract_proj.bias"]
        cfg["embed_dim"] = cfg["encoder_embed_dim"]
        model["patch_embedding.weight"] = torch.randn(cfg["embed_dim"], 1, 16, 16)
        model["layer_norm.weight"] = model["layer_norm.bias"] = torch.ones(cfg["embed_dim"])

    model = AutoModel.from_pretrained(convert_beats(edited(source, widen), tmp_path / "converted"))
    assert not any("projection" in name for name in model.state_dict())
    assert model(torch.randn(1, 32, 128)).last_hidden_state.shape == (1, 16, 32)


def test_half_precision_files_become_float32(source, edited, tmp_path):
    def halve(checkpoint):
        checkpoint["model"] = {name: tensor.half() for name, tensor in checkpoint["model"].items()}

    model = AutoModel.from_pretrained(convert_beats(edited(source, halve), tmp_path / "converted"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def drop(*names):
    return lambda checkpoint: [checkpoint["model"].pop(name) for name in names]


def put(name, tensor):
    return lambda checkpoint: checkpoint["model"].update({name: tensor})


def setting(**settings):
    return lambda checkpoint: checkpoint["cfg"].update(settings)


BIAS = "encoder.layers.1.self_attn.relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("encoder.layers.1.fc1.bias", "layer_norm.bias"), r"2 missing \(.*layer_norm.bias.*fc1.bias"),
        (put("extra.weight", torch.zeros(2)), r"1 unexpected \(extra.weight\)"),
        (put("encoder.layers.0.fc2.bias", torch.zeros(3)), r"mlp.fc2.bias.*\(32,\), got \(3,\)"),
        (put("encoder.layers.0.fc2.bias", "text"), "only tensors, got str"),
        (put(BIAS, torch.zeros(320, 4)), "must equal that of layer 0"),
        (drop("patch_embedding.weight"), "no patch_embedding.weight"),
        (put("predictor.weight", torch.zeros(527, 32)), "fine-tuned BEATs classifier"),
        (setting(finetuned_model=True), "fine-tuned BEATs classifier"),
        (setting(layer_norm_first=True), "`layer_norm_first`.*False.*True"),
        (setting(deep_norm=False), "`deep_norm`.*True.*False"),
        (setting(gru_rel_pos=False), "`gru_rel_pos`"),
        (setting(relative_position_embedding=False), "`relative_position_embedding`"),
        (setting(activation_fn="relu"), "`activation_fn`.*'gelu'.*'relu'"),
        (setting(input_patch_size=8), "`input_patch_size`.*16.*8"),
        (setting(conv_bias=True), "`conv_bias`"),
        (setting(encoder_layers=12), "`encoder_layers`.*3.*12"),
        (setting(encoder_attention_heads=8), "`encoder_attention_heads`.*4.*8"),
        (setting(num_buckets=32), "`num_buckets`.*320.*32"),
        (setting(max_distance=8), "max_distance"),
        (setting(dropout="high"), "dropout"),
        (lambda checkpoint: checkpoint["cfg"].pop("max_distance"), "max_distance"),
        (lambda checkpoint: checkpoint["cfg"].pop("deep_norm"), "`deep_norm`.*True.*False"),
        (lambda checkpoint: checkpoint.pop("cfg"), "'cfg' and 'model'"),
        (lambda checkpoint: checkpoint.update(cfg=3), "`cfg`.*dict, got int"),
        (lambda checkpoint: checkpoint.update(model=[1]), "`model`.*dict of tensors, got list"),
    ],
)
def test_another_file_is_a_named_error_and_nothing_is_written(source, edited, tmp_path, edit, message):
    path = edited(source, edit)
    with pytest.raises(ValueError, match=message) as raised:
        convert_beats(path, tmp_path / "new" / "converted")
    assert path.name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_leaves_nothing(source, tmp_path):
    path = tmp_path / "truncated.pt"
    path.write_bytes(source.read_bytes()[:100_000])
    with pytest.raises(OSError, match=r"truncated\.pt is truncated or damaged"):
        convert_beats(path, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_writing_leaves_nothing(source, tmp_path, monkeypatch):
    def fail(self, directory):
        raise OSError("No space left on device")

    monkeypatch.setattr(BeatsModel, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_beats(source, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_destination_is_kept(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    for destination in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="already exists"):
            convert_beats(source, destination)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    assert (convert_beats(source, tmp_path / "empty") / "config.json").is_file()


def test_convert_picks_by_kind(source, tmp_path):
    assert convert("beats", source, tmp_path / "a") == tmp_path / "a"
    with pytest.raises(ValueError, match=r"`kind`.*got 'hubert'"):
        convert("hubert", source, tmp_path / "b")
    with pytest.raises(ValueError, match="`base`"):
        convert("beats", source, tmp_path / "b", base=source)


def test_conversion_gives_no_warnings(source, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_beats(source, tmp_path / "converted")
