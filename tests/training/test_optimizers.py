"""Which parameters an optimizer moves, and how."""

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from na_ssl_hf.training.optimizers import make_optimizers


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_trained_parameter_has_one_optimizer(name):
    model = tiny_model("na-beats")
    optimizers = make_optimizers(model, name, lr=0.5)
    moved = [id(each) for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]]
    assert sorted(moved) == sorted(id(each) for each in model.parameters() if each.requires_grad)
    # What sets the rate of a step sets that of all parameters.
    assert [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers] == [[0.5]] * len(optimizers)


def test_muon_takes_weights_of_linear_layers_and_nothing_else():
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 5), nn.LayerNorm(5), nn.Conv1d(5, 2, 3))
    muon, adamw = make_optimizers(module, "muon")
    assert [id(each) for each in muon.param_groups[0]["params"]] == [id(module[1].weight)]
    assert len(adamw.param_groups[0]["params"]) == 6


def test_muon_moves_a_matrix_by_the_orthogonal_part_of_its_gradient():
    layer = nn.Linear(6, 6, bias=False)
    before = layer.weight.detach().clone()
    muon, _ = make_optimizers(nn.Sequential(layer, nn.LayerNorm(6)), "muon", lr=0.1, weight_decay=0.0)
    left, scales, right = torch.linalg.svd(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    layer.weight.grad = (left * (scales + 1)) @ right
    muon.step()
    size = 0.1 * 0.2 * 6**0.5  # root mean square 0.2 lr, as a step of AdamW has
    # Five rounds in bfloat16 find the orthogonal matrix roughly: singular values of 0.7 to 1.2.
    torch.testing.assert_close((before - layer.weight) / size, left @ right, rtol=0, atol=0.35)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="`name` must be 'adamw' or 'muon', got 'sgd'"):
        make_optimizers(nn.Linear(2, 2), "sgd")
