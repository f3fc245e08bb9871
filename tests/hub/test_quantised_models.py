"""Any module in the place of a linear layer works: quantised ones and adapters."""

import pytest
import torch
from tiny_models import MODELS, NOISE_AWARE_VARIANTS, TRANSFORMERS, tiny_model, two_channel_fbank
from torch import nn

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
