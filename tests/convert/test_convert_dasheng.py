"""Dasheng and NA-Dasheng checkpoints of every layout convert to models with the outputs of the original code."""

import json
import shutil

import numpy as np
import pytest
import torch
from dasheng_layouts import HEADS, LAYERS, fusion_layers
from safetensors.torch import load_file, save_file
from torch.nn.functional import layer_norm, linear, rms_norm, scaled_dot_product_attention, silu
from transformers import AutoModel

from na_ssl_hf import DashengConfig, DashengModel, NADashengConfig, NADashengModel
from na_ssl_hf.convert import convert, convert_dasheng, convert_na_dasheng
from na_ssl_hf.convert.dasheng import dasheng_weights, read_dasheng
from na_ssl_hf.convert.noise_aware import _noise_aware_weights

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def original(goldens):
    """The tensors under the names of the original code."""
    with np.load(goldens / "dasheng" / "weights.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


# Dasheng


@pytest.mark.parametrize("layout", ["hub", "package", "training"])
def test_every_layout_gives_the_outputs_of_the_original(goldens, dasheng_files, features, tmp_path, layout):
    directory = convert("dasheng", dasheng_files[layout], tmp_path / "converted")
    model, outputs = AutoModel.from_pretrained(directory), np.load(goldens / "dasheng" / "io.npz")
    assert type(model) is DashengModel
    with torch.no_grad():
        for wave in ("noise_a", "silence"):
            output = model(features(directory, wave)).last_hidden_state[0].numpy()
            np.testing.assert_allclose(output, outputs[f"out_{wave}"], rtol=0, atol=2e-4)


def test_no_tensor_is_lost_or_changed(dasheng_files, original):
    weights = read_dasheng(dasheng_files["package"])
    assert weights.settings["target_length"] == 240
    assert weights.settings["num_attention_heads"] == HEADS
    assert sum(tensor.numel() for tensor in weights.state.values()) == sum(map(torch.numel, original.values()))
    times = original["time_pos_embed"][0, :, 0].T
    assert torch.equal(weights.state["embeddings.time_positions"][0], times)
    assert weights.state["embeddings.batch_norm.num_batches_tracked"] == original["init_bn.1.num_batches_tracked"]


def test_the_published_names_and_shapes_are_exactly_those_of_our_model(goldens, listed_tensors):
    tensors = listed_tensors(goldens / "dasheng" / "keys_hf_base.txt")
    weights = dasheng_weights({name.removeprefix("encoder."): each for name, each in tensors.items()}, {}, "base")
    config = DashengConfig()
    assert {name: getattr(config, name) for name in weights.settings} == weights.settings
    with torch.device("meta"):
        model = DashengModel(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in weights.state.items()} == expected


@pytest.mark.parametrize(
    ("size", "depth", "heads", "parameters"),
    [(768, 12, 12, 85_447_808), (1280, 32, 16, 630_333_568), (1536, 40, 24, 1_134_047_360)],
    ids=["base", "0.6B", "1.2B"],
)
def test_every_published_size_has_its_number_of_parameters(size, depth, heads, parameters):
    sizes = {"hidden_size": size, "num_hidden_layers": depth, "num_attention_heads": heads}
    with torch.device("meta"):
        model = DashengModel(DashengConfig(**sizes, intermediate_size=4 * size))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_sizes_of_the_hub_come_from_the_top_level(dasheng_files, tmp_path):
    # The original ignores the nested settings; ours only take the heads of a width without a name from there.
    source = tmp_path / "hub"
    shutil.copytree(dasheng_files["hub"], source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_heads": 7}))
    assert read_dasheng(source).settings["num_attention_heads"] == 7


def test_a_head_is_dropped_and_named(dasheng_files, original, tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr("na_ssl_hf.convert.dasheng.logger.warning", messages.append)
    source = tmp_path / "hub"
    shutil.copytree(dasheng_files["hub"], source)
    head = {"outputlayer.0.weight": torch.ones(56), "outputlayer.1.weight": torch.zeros(527, 56)}
    save_file(load_file(source / "model.safetensors") | head, source / "model.safetensors")
    found, expected = read_dasheng(source), read_dasheng(dasheng_files["hub"])
    assert found.state.keys() == expected.state.keys()
    assert len(messages) == 1
    assert "outputlayer.0.weight" in messages[0]


def put(name, tensor):
    return lambda checkpoint: checkpoint["model"].update({name: tensor})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda checkpoint: checkpoint["model"].pop("blocks.1.norm1.bias"), r"1 missing \(blocks.1.norm1.bias\)"),
        (put("blocks.0.alien", torch.zeros(1)), r"1 unexpected \(blocks.0.alien\)"),
        (put("cls_token", torch.zeros(1, 1, 56)), r"1 unexpected \(cls_token\)"),
        (put("blocks.0.attn.qkv.bias", torch.zeros(167)), r"stack query, key and value, got shape \(167,\)"),
        (put("norm.bias", torch.zeros(5)), r"layer_norm.bias.*\(56,\), got \(5,\)"),
        (put("freq_pos_embed", torch.zeros(1, 56, 2, 1)), r"frequency_positions.*\(1, 1, 56\), got \(1, 2, 56\)"),
        (put("front_end.0.mel_scale.fb", torch.zeros(257, 80)), r"mel_scale.fb.*\(257, 64\), got \(257, 80\)"),
        (lambda checkpoint: checkpoint["config"].update(target_length=1008), "`target_length`.*240.*1008"),
        (lambda checkpoint: checkpoint["config"].update(patch_stride=[64, 2]), r"`patch_stride`.*\[64, 4\].*\[64, 2\]"),
        (lambda checkpoint: checkpoint["config"].update(num_heads=5), "num_attention_heads"),
        (lambda checkpoint: checkpoint["config"].pop("num_heads"), r"`num_heads`.*56.*\[768, 1280, 1536\]"),
        (lambda checkpoint: checkpoint.pop("model"), "no Dasheng checkpoint"),
        (lambda checkpoint: checkpoint["model"].clear(), "not a checkpoint of this kind: it has no patch_embed"),
    ],
)
def test_another_file_is_a_named_error_and_nothing_is_written(dasheng_files, edited, tmp_path, edit, message):
    path = edited(dasheng_files["package"], edit)
    with pytest.raises(ValueError, match=message) as raised:
        convert_dasheng(path, tmp_path / "converted")
    assert path.name in str(raised.value)
    assert list(tmp_path.iterdir()) == [path]


def test_kinds_are_not_confused(models, dasheng_files, tmp_path):
    beats, eat = models / "beats_tiny/beats_tiny.pt", models / "eat_tiny/hf"
    for kind, source, message in (
        ("dasheng", dasheng_files["fusion only"], "no Dasheng checkpoint"),
        ("dasheng", beats, "no patch_embed.proj.weight"),
        ("dasheng", eat, "no patch_embed.proj.weight"),
        ("eat", dasheng_files["hub"], "no local_encoder.proj.weight"),
        ("beats", dasheng_files["package"], "no BEATs checkpoint"),
        ("na-dasheng", models / "nabeats_tiny/nabeats_full.ckpt", "no NA-Dasheng checkpoint"),
        ("na-dasheng", dasheng_files["package"], "no Lightning checkpoint"),
        ("na-beats", dasheng_files["full"], "no NA-BEATs checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(kind, source, tmp_path / "converted")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        convert("dasheng", tmp_path, tmp_path / "converted")
    assert list(tmp_path.iterdir()) == []


# NA-Dasheng


def fused(layers, number, x, n):
    """Compute a noise-aware layer as the papers define it, from the tensors of the original project."""
    layer = {name.partition(".")[2]: each for name, each in layers.items() if name.startswith(f"{number}.")}
    size = x.shape[-1]

    def heads(stream, part):
        rows = slice(part * size, (part + 1) * size)
        weight, bias = layer["attention.in_proj_weight"][rows], layer["attention.in_proj_bias"][rows]
        return linear(stream, weight, bias).unflatten(-1, (8, -1)).transpose(0, 1)

    query, far = (
        rms_norm(stream, (size,), layer[f"norm_{name}.weight"], 1e-6) for name, stream in (("q", x), ("kv", n))
    )
    attended = scaled_dot_product_attention(heads(query, 0), heads(far, 1), heads(far, 2)).transpose(0, 1).flatten(1)
    x = x + linear(attended, layer["attention.out_proj.weight"], layer["attention.out_proj.bias"])
    gate, up = (
        linear(
            rms_norm(x, (size,), layer["norm_ffn.weight"], 1e-6), layer[f"ffn.{name}.weight"], layer[f"ffn.{name}.bias"]
        )
        for name in ("gate_proj", "up_proj")
    )
    return x + linear(silu(gate) * up, layer["ffn.down_proj.weight"], layer["ffn.down_proj.bias"])


@torch.no_grad()
def reference(base, original, close, far):
    """Run the original order: every block on both streams, then the noise-aware layer, and the base's norm at the end.

    Args:
        base: a model whose blocks are those of the original, as the other tests show.
        close, far: `(1, T, 64)`, of one piece.
    """
    x, n = (base.embeddings(stream, 1)[0] for stream in (close, far))
    for number, block in enumerate(base.layers):
        x, n = (block(stream[None], None)[0] for stream in (x, n))
        x = fused(fusion_layers(56), number, x, n)
    return layer_norm(x, (56,), original["norm.weight"], original["norm.bias"], 1e-6)


@pytest.mark.parametrize(
    ("checkpoint", "base"),
    [("full", "hub"), ("fusion only", "hub"), ("fusion only", "package"), ("fusion only", "converted")],
)
def test_noise_aware_outputs_are_those_of_the_definition(
    dasheng_files, original, features, converted, tmp_path, checkpoint, base
):
    base = converted("dasheng") if base == "converted" else dasheng_files[base]
    directory = convert("na-dasheng", dasheng_files[checkpoint], tmp_path / "converted", base=base)
    model = AutoModel.from_pretrained(directory)
    assert type(model) is NADashengModel
    assert len(model.layers) == LAYERS
    alone = AutoModel.from_pretrained(converted("dasheng"))
    for names in (("noise_a", "noise_a2"), ("noise_a", "noise_b")):
        close, far = (features(directory, name) for name in names)
        expected = reference(alone, original, close, far)
        output = model(close, noise_values=far).last_hidden_state[0]
        torch.testing.assert_close(output, expected, rtol=0, atol=2e-4)
        assert not torch.allclose(alone(close).last_hidden_state[0], expected, atol=0.1)
    assert torch.equal(model.to_base()(close).last_hidden_state, alone(close).last_hidden_state)


def test_published_noise_aware_layers_have_exactly_our_names_and_shapes(goldens, listed_tensors):
    tensors = listed_tensors(goldens / "dasheng" / "keys_real_ema.txt")
    prefix = "model.fusion_layers."
    others = {name for name in tensors if not name.startswith(prefix)}
    owners = ("model.org_model", "teacher_model.backbone.encoder")
    assert others == {f"{owner}.init_bn.1.{name}" for owner in owners for name in STATISTICS}
    layers = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in others}
    weights = _noise_aware_weights(layers, None, 12, goldens)
    config = NADashengConfig()
    assert {name: getattr(config, name) for name in weights.settings} == weights.settings
    with torch.device("meta"):
        model = NADashengModel(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items() if ".noise_aware." in name}
    assert {name: tensor.shape for name, tensor in weights.state.items()} == expected


def test_layers_alone_need_the_base_that_they_were_trained_on(dasheng_files, edited, tmp_path):
    with pytest.raises(ValueError, match=r"only noise-aware layers; pass the Dasheng checkpoint .*--base"):
        convert_na_dasheng(dasheng_files["fusion only"], tmp_path / "converted")
    other = edited(dasheng_files["package"], lambda checkpoint: checkpoint["model"]["init_bn.1.running_mean"].add_(1.0))
    with pytest.raises(ValueError, match=rf"{other.name} does not fit .*init_bn.1.running_mean differs"):
        convert_na_dasheng(dasheng_files["fusion only"], tmp_path / "converted", other)
    with pytest.raises(ValueError, match=r"`num_heads`.*56"):
        convert_na_dasheng(dasheng_files["full"], tmp_path / "converted")
    assert not (tmp_path / "converted").exists()
