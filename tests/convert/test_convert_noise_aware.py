"""NA-BEATs, NA-EAT, FiLM and D-BEATs files convert to models with the outputs of the original code."""

import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel

from na_ssl_hf import NABeatsConfig, NABeatsModel, NAEatConfig, NAEatModel
from na_ssl_hf.convert import convert, convert_beats, convert_eat, convert_na_beats, convert_na_eat
from na_ssl_hf.convert.noise_aware import _noise_aware_weights


@pytest.fixture(scope="module")
def bases(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    beats, eat = models / "beats_tiny/beats_tiny.pt", models / "eat_tiny/hf"
    return {
        "none": None,
        "beats": beats,
        "converted beats": convert_beats(beats, folder / "beats"),
        "eat": eat,
        "fairseq eat": models / "eat_tiny/fairseq/eat_tiny_fairseq.pt",
        "converted eat": convert_eat(eat, folder / "eat"),
    }


CASES = [
    ("na-beats", "nabeats_tiny/nabeats_full.ckpt", "none", "cross_attention"),
    ("na-beats", "nabeats_tiny/nabeats_full.ckpt", "beats", "cross_attention"),
    ("na-beats", "nabeats_tiny/nabeats_ema.ckpt", "beats", "cross_attention"),
    ("na-beats", "nabeats_tiny/nabeats_ema.ckpt", "converted beats", "cross_attention"),
    ("na-eat", "naeat_tiny/naeat_full.ckpt", "eat", "cross_attention"),
    ("na-eat", "naeat_tiny/naeat_ema.ckpt", "eat", "cross_attention"),
    ("na-eat", "naeat_tiny/naeat_ema.ckpt", "fairseq eat", "cross_attention"),
    ("na-eat", "naeat_tiny/naeat_ema.ckpt", "converted eat", "cross_attention"),
    ("na-beats", "film_tiny/film_ema.ckpt", "beats", "film"),
    ("na-beats", "dbeats_tiny/dbeats_ema.ckpt", "beats", "self_attention"),
]


@pytest.mark.parametrize(("kind", "checkpoint", "base", "layer_type"), CASES)
def test_outputs_equal_those_of_the_original(models, bases, features, tmp_path, kind, checkpoint, base, layer_type):
    source = models / checkpoint
    outputs = np.load(source.parent / "io.npz")
    names = np.load(models / "nabeats_tiny" / "io.npz")
    directory = convert(kind, source, tmp_path / "converted", base=bases[base])
    model = AutoModel.from_pretrained(directory).eval()
    assert model.config.noise_aware_layer_type == layer_type
    cases = [name for name in outputs if name.endswith("_out") and name not in ("batch_out", "pad_out")]
    cases += [name for name in outputs if name.startswith("out_")]
    assert cases
    for case in cases:
        if case.startswith("out_"):  # D-BEATs hears one channel
            inputs = {"input_values": features(directory, case.removeprefix("out_"))}
        else:
            close, far = names[case.replace("_out", "_names")]
            inputs = {"input_values": features(directory, close), "noise_values": features(directory, far)}
        with torch.no_grad():
            output = model(**inputs).last_hidden_state[0].numpy()
        np.testing.assert_allclose(output, outputs[case], rtol=0, atol=1e-4, err_msg=case)
    assert "omegaconf" not in sys.modules


@pytest.mark.parametrize(
    ("folder", "prefix", "layer_type", "config_class", "model_class"),
    [
        ("nabeats_tiny", "model.encoder.fusion_layers.", "cross_attention", NABeatsConfig, NABeatsModel),
        ("film_tiny", "model.encoder.fusion_layers.", "film", NABeatsConfig, NABeatsModel),
        ("dbeats_tiny", "model.encoder.additional_layers.", "self_attention", NABeatsConfig, NABeatsModel),
        ("naeat_tiny", "model.fusion_layers.", "cross_attention", NAEatConfig, NAEatModel),
    ],
)
def test_the_published_names_and_shapes_are_exactly_those_of_our_layers(
    models, listed_tensors, folder, prefix, layer_type, config_class, model_class
):
    tensors = listed_tensors(models / folder / "keys_real_ema.txt")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    weights = _noise_aware_weights(tensors, None, 12, folder)
    config = config_class(noise_aware_layer_type=layer_type)
    assert {name: getattr(config, name) for name in weights.settings} == weights.settings
    with torch.device("meta"):
        expected = model_class(config).state_dict()
    assert {name: tensor.shape for name, tensor in weights.state.items()} == {
        name: tensor.shape for name, tensor in expected.items() if ".noise_aware." in name
    }


def test_settings_of_the_layers_come_from_the_hyper_parameters(models, bases, edited, tmp_path):
    def fewer_heads(checkpoint):
        attention = checkpoint["hyper_parameters"]["model_cfg"]["fusion_layer_cfg"]["attention_cfg"]
        attention.update(num_heads=2, dropout=0.25)

    source = edited(models / "nabeats_tiny/nabeats_ema.ckpt", fewer_heads)
    model = AutoModel.from_pretrained(convert_na_beats(source, tmp_path / "converted", bases["beats"]))
    assert model.config.noise_aware_num_heads == 2
    assert model.config.noise_aware_attention_dropout == 0.25


def test_the_base_gives_the_settings_that_tensors_do_not_tell(models, bases, edited, tmp_path):
    base = edited(bases["beats"], lambda checkpoint: checkpoint["cfg"].update(max_distance=400, dropout=0.2))
    source = models / "nabeats_tiny/nabeats_full.ckpt"
    config = AutoModel.from_pretrained(convert_na_beats(source, tmp_path / "converted", base)).config
    assert (config.max_distance, config.hidden_dropout, config.attention_dropout) == (400, 0.2, 0.1)


def test_a_full_file_wins_over_another_base_and_says_so(models, bases, edited, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr("na_ssl_hf.convert.noise_aware.logger.warning", messages.append)
    source = models / "nabeats_tiny/nabeats_full.ckpt"
    expected = AutoModel.from_pretrained(convert_na_beats(source, tmp_path / "a", bases["beats"])).state_dict()
    assert messages == []
    base = edited(bases["beats"], lambda checkpoint: checkpoint["model"]["layer_norm.bias"].add_(1.0))
    found = AutoModel.from_pretrained(convert_na_beats(source, tmp_path / "b", base)).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(messages) == 1
    assert "1 of" in messages[0]


def test_layers_alone_need_a_base(models, tmp_path):
    for kind, checkpoint in (("na-beats", "nabeats_tiny/nabeats_ema.ckpt"), ("na-eat", "naeat_tiny/naeat_ema.ckpt")):
        with pytest.raises(ValueError, match=r"only noise-aware layers; pass .*--base"):
            convert(kind, models / checkpoint, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == []


def test_the_wrong_base_is_an_error(models, bases, tmp_path, edited):
    beats_layers, eat_layers = models / "nabeats_tiny/nabeats_ema.ckpt", models / "naeat_tiny/naeat_ema.ckpt"
    with pytest.raises(ValueError, match="'cfg' and 'model'"):
        convert_na_beats(beats_layers, tmp_path / "converted", beats_layers)
    with pytest.raises(ValueError, match=r"model type 'beats', got 'eat'"):
        convert_na_beats(beats_layers, tmp_path / "converted", bases["eat"])
    with pytest.raises(ValueError, match=r"model type 'eat', got 'beats'"):
        convert_na_eat(eat_layers, tmp_path / "converted", bases["converted beats"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert_na_beats(beats_layers, tmp_path / "converted", tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="num_heads"):
        convert_na_eat(models / "naeat_tiny/naeat_full.ckpt", tmp_path / "converted")

    def shorten(checkpoint):
        for name in list(checkpoint["model"]):
            if name.startswith("encoder.layers.2."):
                del checkpoint["model"][name]
        checkpoint["cfg"]["encoder_layers"] = 2

    shorter = edited(bases["beats"], shorten)
    with pytest.raises(ValueError, match="3 noise-aware layers for a base of 2"):
        convert_na_beats(beats_layers, tmp_path / "converted", shorter)
    with pytest.raises(ValueError, match="does not fit"):
        convert_na_beats(models / "nabeats_tiny/nabeats_full.ckpt", tmp_path / "converted", shorter)
    assert not (tmp_path / "converted").exists()


def drop(name):
    return lambda checkpoint: checkpoint["state_dict"].pop(name)


def put(name, tensor):
    return lambda checkpoint: checkpoint["state_dict"].update({name: tensor})


LAYER = "model.encoder.fusion_layers.1."


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop(f"{LAYER}norm_q.weight"), r"1 missing \(1.norm_q.weight\)"),
        (put(f"{LAYER}alien", torch.zeros(1)), r"1 unexpected \(1.alien\)"),
        (put("alien", torch.zeros(1)), r"1 unexpected \(alien\)"),
        (put(f"{LAYER}norm_q.weight", torch.zeros(5)), r"query_norm.weight.*\(32,\), got \(5,\)"),
        (put(f"{LAYER}attention.in_proj_bias", torch.zeros(5)), "stack query, key and value"),
        (drop("model.encoder.fusion_layers.0.norm_kv.weight"), "unknown type"),
        (lambda checkpoint: checkpoint["state_dict"].clear(), "no NA-BEATs checkpoint.*nothing"),
        (lambda checkpoint: checkpoint.pop("state_dict"), "no Lightning checkpoint"),
        (lambda checkpoint: checkpoint.update(state_dict=3), "`state_dict`.*got int"),
    ],
)
def test_another_file_is_a_named_error_and_nothing_is_written(models, bases, edited, tmp_path, edit, message):
    path = edited(models / "nabeats_tiny/nabeats_ema.ckpt", edit)
    with pytest.raises(ValueError, match=message) as raised:
        convert_na_beats(path, tmp_path / "converted", bases["beats"])
    assert path.name in str(raised.value)
    assert list(tmp_path.iterdir()) == [path]


def test_kinds_are_not_confused(models, bases, tmp_path):
    with pytest.raises(ValueError, match="no NA-BEATs checkpoint"):
        convert_na_beats(models / "naeat_tiny/naeat_ema.ckpt", tmp_path / "converted", bases["beats"])
    with pytest.raises(ValueError, match="no NA-EAT checkpoint"):
        convert_na_eat(models / "nabeats_tiny/nabeats_full.ckpt", tmp_path / "converted", bases["eat"])
    with pytest.raises(ValueError, match="no Lightning checkpoint"):
        convert_na_beats(bases["beats"], tmp_path / "converted", bases["beats"])
    with pytest.raises(ValueError, match="no BEATs checkpoint"):
        convert_beats(models / "nabeats_tiny/nabeats_full.ckpt", tmp_path / "converted")
