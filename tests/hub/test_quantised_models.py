"""Any module in the place of a linear layer works: quantised ones and adapters."""

import numpy as np
import pytest
import torch
from tiny_models import MODELS, NOISE_AWARE_VARIANTS, TRANSFORMERS, tiny_model, two_channel_fbank
from torch import nn
from transformers import AutoModel, BitsAndBytesConfig, TorchAoConfig

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.hub.model_weights import has_quantised_weights, model_fingerprint

VARIANTS = [(name, None) for name in MODELS if not name.startswith("na-")] + NOISE_AWARE_VARIANTS
variants = pytest.mark.parametrize(("model_type", "layer_type"), VARIANTS)


class StoredOtherwise(nn.Module):
    """Stands in for a quantiser's linear layer: it has no `weight` that one could view or multiply with."""

    def __init__(self, linear):
        super().__init__()
        self.scale = float(linear.weight.abs().max()) / 127
        self.register_buffer("packed", (linear.weight / self.scale).round().to(torch.int8).flatten())
        self.register_buffer("offset", linear.bias)
        self.shape = linear.weight.shape
        self.calls = 0

    def forward(self, states):
        assert states.ndim <= 3  # bitsandbytes takes no more
        self.calls += 1
        return nn.functional.linear(states, self.packed.view(self.shape).float() * self.scale, self.offset)


def model_of(model_type, layer_type):
    return tiny_model(model_type, **({"noise_aware_layer_type": layer_type} if layer_type else {}))


def assert_only_rounded(got, expected):
    assert 0 < (got - expected).norm() < 0.1 * expected.norm()


@torch.no_grad()
@variants
def test_every_linear_layer_may_be_replaced(model_type, layer_type):
    model, fbank = model_of(model_type, layer_type), two_channel_fbank(model_type)
    expected = model(fbank).last_hidden_state
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, module in linear.items():
        model.set_submodule(name, StoredOtherwise(module))
    assert_only_rounded(model(fbank).last_hidden_state, expected)
    assert [name for name in linear if not model.get_submodule(name).calls] == []


@torch.no_grad()
@variants
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_dynamic_int8_of_torch(model_type, layer_type):
    model, fbank = model_of(model_type, layer_type), two_channel_fbank(model_type)
    expected = model(fbank).last_hidden_state
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert any("quantized" in type(module).__module__ for module in quantised.modules())
    assert_only_rounded(quantised(fbank).last_hidden_state, expected)
    assert model_fingerprint(quantised) == model_fingerprint(quantised) != model_fingerprint(model)


def by_torchao(folder):
    config = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
    return AutoModel.from_pretrained(folder, quantization_config=TorchAoConfig(config))


def by_bitsandbytes(folder):
    pytest.importorskip("bitsandbytes")
    config = BitsAndBytesConfig(load_in_8bit=True)
    return AutoModel.from_pretrained(folder, quantization_config=config, device_map="cpu", dtype=torch.float32)


def by_torch(folder):
    return torch.ao.quantization.quantize_dynamic(AutoModel.from_pretrained(folder), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("quantised", [by_torch, by_torchao, by_bitsandbytes])
@pytest.mark.filterwarnings("ignore")  # what packages say of each other
def test_a_quantised_model_has_a_memory_of_its_own(quantised, tmp_path):
    tiny_model("na-beats").save_pretrained(tmp_path)
    clips = [0.1 * np.random.default_rng(seed).standard_normal((2, 8000)).astype(np.float32) for seed in range(4)]
    scorers = []
    for model in (AutoModel.from_pretrained(tmp_path), quantised(tmp_path)):
        scorers.append(AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor()))
        scorers[-1].fit(clips, threshold_method="quantile", progress=None)
    assert_only_rounded(*(scorer.embed(clips) for scorer in reversed(scorers)))
    assert [has_quantised_weights(scorer.model) for scorer in scorers] == [False, True]
    own = scorers[1](clips[0])["score"]
    scorers[1].memory_bank = scorers[0].memory_bank
    with pytest.raises(ValueError, match="fitted with another model"):
        scorers[1](clips[0])
    assert own == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("model_type", TRANSFORMERS)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_adapters_of_all_linear_layers_have_a_gradient(model_type):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(model_type), peft.LoraConfig(r=2, target_modules="all-linear"))
    adapters = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    for name, parameter in adapters.items():
        if ".lora_B." in name:  # it is zero at the start, and then lora_A has no gradient yet
            nn.init.normal_(parameter, std=0.1)
    model(two_channel_fbank(model_type)).last_hidden_state.square().sum().backward()
    assert "gate_proj" in " ".join(adapters) or "beats" not in model_type
    assert [name for name, each in adapters.items() if each.grad is None or not each.grad.abs().max() > 0] == []
