"""The model that is fine-tuned: equal to the encoder on its features, and nothing frozen ever changes."""

import copy

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from na_ssl_hf import TwoChannelFeatureExtractor
from na_ssl_hf.training.attentive_statistics import ProjectionHead
from na_ssl_hf.training.classification_losses import SubClusterAdaCos
from na_ssl_hf.training.discriminative import DiscriminativeModel, TrainedState
from na_ssl_hf.training.lora import add_lora, is_lora_parameter

all_types = pytest.mark.parametrize("model_type", ["beats", "dasheng", "eat", "na-beats", "na-dasheng", "na-eat"])
LABELS = torch.eye(3)


def discriminative(model_type="na-beats", dropout=0.0, **settings):
    encoder = tiny_model(model_type)
    add_lora(encoder, 4, 8, dropout)
    torch.manual_seed(1)
    for name, parameter in encoder.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    return DiscriminativeModel(encoder, ProjectionHead(32, 16), SubClusterAdaCos(16, 3), **settings)


def waveforms():
    return 0.1 * torch.randn(3, 2, 8000, generator=torch.Generator().manual_seed(0))


@all_types
@pytest.mark.parametrize("far_cancellation", [None, "least_squares"])
def test_hears_what_the_feature_extractor_gives(model_type, far_cancellation):
    model = discriminative(model_type, far_cancellation=far_cancellation).eval()
    extractor = TwoChannelFeatureExtractor(model.front_end.frontend, far_cancellation=far_cancellation)
    with torch.no_grad():
        tokens = model.encoder(extractor(waveforms(), sampling_rate=16000).input_values).last_hidden_state
        output = model(waveforms(), LABELS)
    grid = model.encoder.time_frequency_grid(tokens)
    torch.testing.assert_close(output.embeddings, grid.mean(dim=1), atol=1e-5, rtol=0)
    logits = model.loss.logits(model.head(grid.flatten(1, 2)))
    torch.testing.assert_close(output.logits, logits, atol=1e-4, rtol=0)


@all_types
def test_frozen_parameters_get_neither_gradients_nor_optimizer_state_nor_changes(model_type):
    model = discriminative(model_type).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(waveforms(), LABELS).loss.backward()
        optimizer.step()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if is_lora_parameter(n) or not n.startswith("encoder.")}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        assert (parameter in optimizer.state) == (name in trained)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in changed if name.startswith("encoder.")} == {n for n in trained if is_lora_parameter(n)}


@all_types
def test_gradient_checkpointing_changes_no_gradient(model_type):
    gradients = []
    for gradient_checkpointing in (False, True):
        model = discriminative(model_type, gradient_checkpointing=gradient_checkpointing).train()
        torch.manual_seed(2)
        model.head = ProjectionHead(32, 16)
        model.loss = SubClusterAdaCos(16, 3)
        model(waveforms(), LABELS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_checkpointed_layers_keep_no_inner_activations():
    kept = []
    for gradient_checkpointing in (False, True):
        model, sizes = discriminative(gradient_checkpointing=gradient_checkpointing).train(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model(waveforms(), LABELS)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_what_is_frozen_stays_in_eval_mode_and_only_the_adapters_dropout_is_on():
    model = discriminative(dropout=0.5).train()
    on = {name for name, module in model.encoder.named_modules() if module.training and isinstance(module, nn.Dropout)}
    assert on
    assert all("lora_dropout" in name for name in on)
    assert model.head.training
    first, second = (model(waveforms(), LABELS).embeddings for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(*(model(waveforms(), LABELS).embeddings for _ in range(2)))


def test_trained_state_leaves_the_base_out_and_restores_everything_else():
    model = discriminative().train()
    model(waveforms(), LABELS)  # moves the running statistics
    state = TrainedState(model).state_dict()
    assert not [name for name in state if name.startswith("encoder.") and not is_lora_parameter(name)]
    other = discriminative()
    nn.init.normal_(other.head.projection.weight)
    TrainedState(other).load_state_dict(state)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    with pytest.raises(ValueError, match="`state` must be of the same model, 1 names differ"):
        TrainedState(other).load_state_dict({name: value for name, value in state.items() if name != "loss.scale"})
