"""Pooling equal to the reference implementation's (tests/goldens/backends/6_scac), and safe for one token."""

import numpy as np
import pytest
import torch

from na_ssl_hf.training.attentive_statistics import ProjectionHead

# Of the reference's state dict; its 1x1 convolutions are our linear layers.
NAMES = {
    "0.attention.0": "pooling.context",
    "0.attention.2": "pooling.norm",
    "0.attention.4": "pooling.attention",
    "0.last_layer": "pooling.output",
    "1": "projection",
}


@pytest.fixture(scope="module")
def golden(goldens):
    with np.load(goldens / "backends" / "6_scac" / "attn_stat_pool.npz") as arrays:
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


@pytest.fixture
def head(golden):
    state = {}
    for name, value in golden.items():
        if name.startswith("sd/"):
            theirs, ours = next(pair for pair in NAMES.items() if name.removeprefix("sd/").startswith(pair[0]))
            state[ours + name.removeprefix(f"sd/{theirs}")] = value.squeeze(-1) if value.dim() == 3 else value
    head = ProjectionHead(48, 24)
    head.load_state_dict(state)
    return head.eval()


def test_equals_the_reference(head, golden):
    with torch.no_grad():
        pooled, projected = head.pooling(golden["x"]), head(golden["x"])
    for name, value in (("x_pooled", pooled), ("x_projected", projected)):
        torch.testing.assert_close(value, golden[name], atol=2e-5, rtol=0)
        torch.testing.assert_close(value.double(), golden[f"{name}_f64"], atol=2e-5, rtol=0)


def test_attention_and_statistics_equal_the_reference(head, golden, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        head.pooling.attention, "forward", lambda h, f=head.pooling.attention.forward: seen.setdefault("a", f(h))
    )
    head.pooling.output.register_forward_pre_hook(lambda _, inputs: seen.setdefault("s", inputs[0]))
    head(golden["x"])
    torch.testing.assert_close(seen["a"].softmax(dim=1), golden["x_attention"], atol=2e-5, rtol=0)
    mu, sigma = seen["s"].chunk(2, dim=1)
    torch.testing.assert_close(mu, golden["x_mu"], atol=2e-5, rtol=0)
    torch.testing.assert_close(sigma, golden["x_sigma"], atol=2e-5, rtol=0)


def test_equals_the_reference_in_training_mode(head, golden):
    torch.testing.assert_close(head.train()(golden["x"]), golden["x_trainmode_projected"], atol=2e-5, rtol=0)


def test_mean_pooling_equals_the_reference(golden):
    head = ProjectionHead(48, 24, pooling="mean")
    head.load_state_dict({"projection.weight": golden["sd/1.weight"], "projection.bias": golden["sd/1.bias"]})
    torch.testing.assert_close(head(golden["x"]), golden["linear_head_out"], atol=2e-5, rtol=0)


def test_one_token_is_its_own_mean_and_gives_finite_gradients(head, golden):
    assert golden["L1_projected"].isnan().all()  # what the reference makes of it
    tokens = golden["L1"].clone().requires_grad_()
    for mode in (False, True):
        head.train(mode)
        output = head(tokens)
        output.square().sum().backward()
        assert output.isfinite().all()
        assert tokens.grad.isfinite().all()
    constant = golden["L1"].expand(-1, 5, -1)
    torch.testing.assert_close(head.eval()(golden["L1"]), head(constant), atol=1e-5, rtol=0)


def test_order_of_the_tokens_does_not_matter(head, golden):
    torch.testing.assert_close(head(golden["x"].flip(1)), head(golden["x"]), atol=1e-5, rtol=0)


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="`pooling` must be 'attentive' or 'mean', got 'max'"):
        ProjectionHead(4, 2, pooling="max")
