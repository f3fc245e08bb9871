"""The fingerprint is of weights, not of their clothes; what is saved of an adapted model scores as it did."""

import copy

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModel, pipeline

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.hub.model_weights import has_adapter, merge_adapter, model_fingerprint, same_weights

peft = pytest.importorskip("peft")
# peft asks transformers for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
MODEL_TYPES = ["beats", "na-beats", "na-dasheng", "na-eat"]


def clip(seed):
    return 0.1 * np.random.default_rng(seed).standard_normal((2, 8000)).astype(np.float32)


@pytest.fixture
def model():
    return tiny_model("na-beats")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_checkpoint_in_another_type_is_the_same(model_type, dtype, tmp_path):
    model = tiny_model(model_type)
    fingerprint = model_fingerprint(model)
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert reloaded.dtype == dtype
    assert same_weights(fingerprint, model_fingerprint(reloaded))
    if dtype != torch.float64:
        reloaded.save_pretrained(tmp_path / "again")
        again = AutoModel.from_pretrained(tmp_path / "again", dtype=torch.float32)
        assert same_weights(model_fingerprint(reloaded), model_fingerprint(again))


def test_compiled_models_and_another_default_type_are_the_same(model, tmp_path):
    fingerprint = model_fingerprint(model)
    assert model_fingerprint(torch.compile(model, backend="eager")) == fingerprint
    layers = copy.deepcopy(model)
    layers.layers[0] = torch.compile(layers.layers[0], backend="eager")
    assert model_fingerprint(layers) == fingerprint
    model.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        assert model_fingerprint(AutoModel.from_pretrained(tmp_path)) == fingerprint
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("offloaded", ["cpu", "disk"])
def test_offloaded_models_are_the_same(model, tmp_path, offloaded):
    accelerate = pytest.importorskip("accelerate")
    fingerprint = model_fingerprint(model)
    if offloaded == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    assert any(parameter.is_meta for parameter in model.parameters())
    assert model_fingerprint(model) == fingerprint


@pytest.mark.parametrize("change", [1e-2, 1.0])
def test_a_real_change_of_any_weight_is_another(model, change):
    fingerprint = model_fingerprint(model)
    for name, parameter in model.named_parameters():
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.get_parameter(name).view(-1)[-1] += change * (1.0 + parameter.view(-1)[-1].abs())
        assert not same_weights(model_fingerprint(changed), fingerprint), name


def test_fingerprints_of_the_first_version_are_understood(model):
    first_version = model_fingerprint(model).split("-")[0]
    assert same_weights(first_version, model_fingerprint(model))
    assert not same_weights(first_version, model_fingerprint(tiny_model("na-beats", seed=1)))


# Adapters


def lora(**settings):
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)


def plain(model):
    model.add_adapter(lora())
    return model


def disabled(model):
    model.add_adapter(lora())
    model.disable_adapters()
    return model


def several(model):
    model.add_adapter(lora(), "first")
    model.add_adapter(lora(lora_alpha=32), "second")
    model.set_adapter("first")
    return model


def both(model):
    several(model).set_adapter(["first", "second"])
    return model


def merged_already(model):
    model.add_adapter(lora())
    for module in model.modules():
        if hasattr(module, "base_layer"):
            module.merge()
    return model


def modules_to_save(model):
    model.add_adapter(lora(modules_to_save=["final_layer_norm"]))
    changed(model, "modules_to_save")
    return model


def modules_to_save_disabled(model):
    modules_to_save(model).disable_adapters()
    return model


def peft_model(model):
    return changed(peft.get_peft_model(model, lora(modules_to_save=["final_layer_norm"])), "modules_to_save")


def peft_model_with_ia3(model):
    settings = peft.IA3Config(target_modules=["q_proj", "fc2"], feedforward_modules=["fc2"], init_ia3_weights=False)
    return changed(peft.get_peft_model(model, settings), "ia3")


def changed(model, part):
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if part in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return model


ADAPTED = [
    plain,
    disabled,
    several,
    both,
    merged_already,
    modules_to_save,
    modules_to_save_disabled,
    peft_model,
    peft_model_with_ia3,
]


@pytest.mark.parametrize("adapt", ADAPTED)
def test_saved_scorers_score_as_their_adapted_models_did(model, adapt, tmp_path):
    scorer = AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor())
    scorer.model = adapt(model).eval()
    assert has_adapter(scorer.model)
    scorer.fit([clip(seed) for seed in range(10)], batch_size=10, progress=None)
    before = scorer(clip(99))
    scorer.save_pretrained(tmp_path)
    assert scorer(clip(99)) == before
    assert not list(tmp_path.glob("adapter*"))
    after = pipeline("anomaly-scoring", model=str(tmp_path))(clip(99))
    assert after["score"] == pytest.approx(before["score"], rel=1e-4, abs=1e-6)
    assert after["threshold"] == before["threshold"]


def test_a_memory_fitted_with_the_adapter_is_not_that_of_the_disabled_one(model, tmp_path):
    scorer = AnomalyScorer(model=plain(model), feature_extractor=TwoChannelFeatureExtractor())
    scorer.fit([clip(seed) for seed in range(10)], batch_size=10, progress=None)
    scorer.model = disabled(tiny_model("na-beats"))
    with pytest.raises(ValueError, match="another model"):
        scorer(clip(99))
    scorer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another model"):
        pipeline("anomaly-scoring", model=str(tmp_path))(clip(99))


def test_an_adapter_that_cannot_be_merged_is_refused_and_leaves_the_old_scorer(model, tmp_path):
    scorer = AnomalyScorer(model=plain(model), feature_extractor=TwoChannelFeatureExtractor())
    scorer.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for module in model.modules():
        if hasattr(module, "base_layer"):
            module.merge = lambda: None
    with pytest.raises(ValueError, match="adapter that can be merged"):
        scorer.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_models_without_an_adapter_stay_as_they_are(model):
    assert merge_adapter(model) is model
    assert not has_adapter(model)
