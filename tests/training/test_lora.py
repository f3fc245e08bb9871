"""Adapters: where they go, what they leave alone, and that saved, found, merged and scored they stay the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_models import tiny_config, tiny_model, two_channel_fbank
from transformers import AutoFeatureExtractor, AutoModel, pipeline

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints.loading import adapter_base, load_model
from na_ssl_hf.evaluation.systems.embedders import checkpoint_embedder
from na_ssl_hf.hub.model_weights import has_adapter, merge_adapter
from na_ssl_hf.training.lora import add_lora, is_lora_parameter, save_adapter

MODEL_TYPES = ["beats", "dasheng", "eat", "na-beats", "na-dasheng", "na-eat"]
all_types = pytest.mark.parametrize("model_type", MODEL_TYPES)


def adapted(model, rank=4):
    """With matrices that have an effect, as after training."""
    add_lora(model, rank, alpha=8)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def output(model):
    return model(two_channel_fbank(model.config.model_type)).last_hidden_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For every type: `<type>/base` and `<type>/adapter` with its tokens in `<type>.pt`."""
    folder = tmp_path_factory.mktemp("adapters")
    for model_type in MODEL_TYPES:
        model = tiny_model(model_type)
        extractor = TwoChannelFeatureExtractor(tiny_config(model_type).frontend)
        AnomalyScorer(model=model, feature_extractor=extractor).save_pretrained(folder / model_type / "base")
        save_adapter(adapted(model), folder / model_type / "adapter", str(folder / model_type / "base"))
        extractor.save_pretrained(folder / model_type / "adapter")
        torch.save(output(model), folder / f"{model_type}.pt")
    return folder


@pytest.fixture(scope="module")
def clips():
    return 0.1 * np.random.default_rng(0).standard_normal((8, 2, 8000)).astype(np.float32)


# Where it goes


@all_types
@pytest.mark.parametrize("layer_type", ["cross_attention", "aligned", "self_attention", "film"])
def test_goes_to_q_k_v_of_every_attention_and_to_the_whole_cross_attention(model_type, layer_type):
    is_noise_aware = model_type.startswith("na-")
    if not is_noise_aware and layer_type != "cross_attention":
        pytest.skip("only noise-aware models have layer types")
    model = tiny_model(model_type, **({"noise_aware_layer_type": layer_type} if is_noise_aware else {}))
    add_lora(model, 4)
    found = {name.split(".lora_")[0] for name, _ in model.named_parameters() if is_lora_parameter(name)}
    expected = {f"layers.{i}.attention.{p}_proj" for i in range(2) for p in "qkv"}
    if is_noise_aware and layer_type != "film":
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        expected |= {f"layers.{i}.noise_aware.attention.{name}" for i in range(2) for name in names}
    assert found == expected


@all_types
def test_starts_without_effect_and_only_its_matrices_are_trained(model_type):
    model = tiny_model(model_type)
    before = output(model)
    add_lora(model, 4, dropout=0.5)
    assert torch.equal(output(model.eval()), before)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_lora_parameter(name)


def test_bad_settings_are_refused():
    for settings in ({"rank": 0}, {"alpha": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="`rank` must be at least 1, `alpha` positive and `dropout` in"):
            add_lora(tiny_model("beats"), **settings)
    model = tiny_model("beats")
    add_lora(model, 4)
    with pytest.raises(ValueError, match="`model` must be one without an adapter"):
        add_lora(model, 4)


# Saved and loaded


@all_types
def test_loads_by_auto_model_and_is_small(folder, model_type):
    adapter = folder / model_type / "adapter"
    model = AutoModel.from_pretrained(adapter)
    assert type(model) is type(tiny_model(model_type))
    assert not model.training
    assert torch.equal(output(model), torch.load(folder / f"{model_type}.pt"))
    assert not (adapter / "config.json").exists()
    assert not list(adapter.glob(".adapter-*"))
    sizes = [
        (adapter / "adapter_model.safetensors").stat().st_size,
        (adapter.parent / "base" / "model.safetensors").stat().st_size,
    ]
    assert sizes[0] < sizes[1]


@all_types
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
def test_merged_gives_the_same_by_us_and_by_peft(folder, model_type):
    from peft import PeftModel

    adapter, base = folder / model_type / "adapter", folder / model_type / "base"
    expected = torch.load(folder / f"{model_type}.pt")
    model = AutoModel.from_pretrained(adapter)
    assert merge_adapter(model) is model
    assert not has_adapter(model)
    assert set(model.state_dict()) == set(AutoModel.from_pretrained(base).state_dict())
    by_peft = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).merge_and_unload()
    for merged in (model, by_peft):
        torch.testing.assert_close(output(merged), expected, atol=1e-5, rtol=0)
    assert (output(AutoModel.from_pretrained(base)) - expected).abs().max() > 1e-2


def test_merged_model_saves_as_an_ordinary_checkpoint(folder, tmp_path):
    model = merge_adapter(AutoModel.from_pretrained(folder / "na-beats" / "adapter"))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    assert torch.equal(output(AutoModel.from_pretrained(tmp_path)), output(model))
    assert merge_adapter(model) is model  # one without an adapter stays as it is


# Its base


def test_base_is_written_as_an_absolute_path_or_as_a_name(folder, tmp_path, monkeypatch):
    model = AutoModel.from_pretrained(folder / "beats" / "adapter")
    monkeypatch.chdir(folder / "beats")
    for base, written in (("base", str(folder / "beats" / "base")), ("someone/beats", "someone/beats")):
        save_adapter(model, tmp_path, base)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == written
        if base == "base":
            assert torch.equal(output(AutoModel.from_pretrained(tmp_path)), output(model))


def test_base_is_also_looked_for_beside_the_adapter_and_in_the_package(folder, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder / "beats", moved)
    config = json.loads((moved / "adapter" / "adapter_config.json").read_text())
    for written in ("../base", "na-beats-tiny", "someone/beats"):
        (moved / "adapter" / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": written})
        )
        found = adapter_base(moved / "adapter")
        if written == "../base":
            assert torch.equal(output(load_model(moved / "adapter")), torch.load(folder / "beats.pt"))
        elif written == "na-beats-tiny":
            assert found.endswith("na_ssl_hf/checkpoints/na-beats-tiny")
        else:
            assert found == written
            with pytest.raises(OSError, match=r"the base someone/beats of the adapter .* cannot be loaded"):
                load_model(moved / "adapter")
    (moved / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="must have a base_model_name_or_path, got None"):
        adapter_base(moved / "adapter")
    assert adapter_base(moved / "base") is None
    assert not has_adapter(load_model(moved / "base"))


# Scored


@all_types
def test_scores_through_the_pipeline_and_a_saved_scorer_needs_no_peft(folder, clips, tmp_path, model_type):
    scorer = pipeline("anomaly-scoring", model=str(folder / model_type / "adapter"))
    assert has_adapter(scorer.model)
    scorer.fit(clips, false_alarm_rate=0.2, batch_size=8)
    scores = [result["score"] for result in scorer(clips[:3], batch_size=3)]
    scorer.save_pretrained(tmp_path)
    assert has_adapter(scorer.model)
    assert scorer(clips[0])["score"] == pytest.approx(scores[0], abs=1e-6)
    assert not list(tmp_path.glob("adapter*"))
    again = pipeline("anomaly-scoring", model=str(tmp_path))
    assert not has_adapter(again.model)
    assert again.threshold == scorer.threshold
    np.testing.assert_allclose([r["score"] for r in again(clips[:3], batch_size=3)], scores, atol=1e-5, rtol=0)
    base = pipeline("anomaly-scoring", model=str(folder / model_type / "base"))
    assert (base.fit(clips, batch_size=8).memory_bank.memory_ - again.memory_bank.memory_).abs().max() > 1e-3


def test_memory_of_the_base_is_not_taken_for_the_adapters(folder, clips, tmp_path):
    shutil.copytree(folder / "beats", tmp_path, dirs_exist_ok=True)
    base = pipeline("anomaly-scoring", model=str(tmp_path / "base")).fit(clips, false_alarm_rate=0.2)
    base.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    scorer = pipeline("anomaly-scoring", model=str(tmp_path / "adapter"))
    assert scorer.memory_bank is None
    # Saved over the adapter, the scorer replaces it.
    scorer.fit(clips, false_alarm_rate=0.2).save_pretrained(tmp_path / "adapter")
    again = pipeline("anomaly-scoring", model=str(tmp_path / "adapter"))
    assert again(clips[0])["score"] == pytest.approx(scorer(clips[0])["score"], abs=1e-5)


def test_is_a_frontend_of_the_published_systems(folder, clips, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "clip.wav", clips[0].T, 16000)
    frontend = checkpoint_embedder("dis-na-beats", str(folder / "na-beats" / "adapter"))
    base = checkpoint_embedder("na-beats", str(folder / "na-beats" / "base"))
    scorer = AnomalyScorer(
        model=AutoModel.from_pretrained(folder / "na-beats" / "adapter"),
        feature_extractor=AutoFeatureExtractor.from_pretrained(folder / "na-beats" / "adapter"),
    )
    expected = scorer.embed([tmp_path / "clip.wav"], pooling="mean")
    torch.testing.assert_close(frontend.embed([tmp_path / "clip.wav"]), expected, atol=1e-5, rtol=0)
    assert frontend.key != base.key
