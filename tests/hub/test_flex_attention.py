"""BEATs by FlexAttention, whose kernel scales a stored bias by the gate: the numbers of plain matrix products."""

import pytest
import torch
from tiny_models import NOISE_AWARE_VARIANTS, tiny_model, two_channel_fbank
from torch.nn.attention.flex_attention import flex_attention

from na_ssl_hf.hub import modeling_shared
from na_ssl_hf.hub.modeling_shared import eager_attention_forward, flex_attention_forward

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
MODELS = [(model_type, {}) for model_type in ("beats", "eat", "dasheng")] + [
    (model_type, {"noise_aware_layer_type": layer_type})
    for model_type, layer_type in NOISE_AWARE_VARIANTS
    if model_type == "na-beats" or layer_type == "self_attention"
]


def both(model_type, fields):
    """The same model with eager attention and with FlexAttention; the biases of BEATs matter."""
    models = []
    for attention in ("eager", "flex_attention"):
        model = tiny_model(model_type, **fields)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "relative_position_bias" in name or "gate_scale" in name:
                torch.nn.init.normal_(parameter, mean=1.0, generator=generator)
        model.set_attn_implementation(attention)
        models.append(model)
    return models


@pytest.mark.parametrize(("model_type", "fields"), MODELS)
@pytest.mark.parametrize("is_padded", [False, True], ids=["whole", "padded"])
@torch.no_grad()
def test_tokens_equal_those_of_eager_attention(model_type, fields, is_padded):
    eager, flex = both(model_type, fields)
    fbank, mask = two_channel_fbank(model_type, frames=100), None
    if is_padded:
        mask = torch.ones(2, 100)
        mask[1, 40:] = 0
    expected = eager(fbank, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(flex(fbank, attention_mask=mask).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    if is_padded:  # the mask counts
        assert not torch.allclose(flex(fbank).last_hidden_state, expected, atol=1e-3)


@torch.no_grad()
def test_far_recordings_may_be_of_another_length():
    eager, flex = both("na-beats", {})
    close, far = two_channel_fbank(frames=100)[:, 0], two_channel_fbank(frames=64, seed=1)[:, 1]
    torch.testing.assert_close(
        flex(close, noise_values=far).last_hidden_state,
        eager(close, noise_values=far).last_hidden_state,
        atol=1e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_gate_and_distance_have_their_place():
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8, generator=rng) for _ in range(3))
    gate, by_distance = torch.randn(2, 3, 7, generator=rng), torch.randn(3, 13, generator=rng)
    distance = torch.arange(7)[None, :] - torch.arange(7)[:, None]  # key - query
    bias = gate[..., None] * by_distance[:, distance + 6][None]  # (B, H, Q, K)
    expected, _ = eager_attention_forward(torch.nn.Identity(), query, key, value, None, 0.3, position_bias=bias)
    output, weights = flex_attention_forward(
        torch.nn.Identity(), query, key, value, None, 0.3, gate=gate, distance_bias=by_distance
    )
    torch.testing.assert_close(output, expected)
    assert weights is None


@torch.no_grad()
def test_no_bias_of_every_pair_is_made(monkeypatch):
    given = []

    def recorded(*args, score_mod, scale):
        captured = [cell.cell_contents for cell in score_mod.__closure__]
        given.append(sorted(tuple(value.shape) for value in captured if torch.is_tensor(value)))
        return flex_attention(*args, score_mod=score_mod, scale=scale)

    monkeypatch.setattr(modeling_shared, "flex_attention", recorded)
    _, flex = both("beats", {})
    flex(two_channel_fbank("beats", frames=96))
    # In both layers the kernel is given gates (B, H, Q) and the bias of every distance (H, 2 N - 1) of 6 x 8 tokens.
    assert given == [[(2, 4, 48), (4, 95)]] * 2


def test_what_it_cannot_do_is_refused():
    _, flex = both("beats", {})
    fbank = two_channel_fbank("beats", frames=32)
    with pytest.raises(ValueError, match="`attn_implementation` must be 'sdpa' or 'eager' for training on a CPU"):
        flex(fbank)
    flex.train()
    with torch.no_grad(), pytest.raises(ValueError, match=r"`attention_dropout` must be 0 .* got 0\.1"):
        flex(fbank)


def test_it_is_used_only_when_asked():
    assert tiny_model("na-beats").config._attn_implementation == "sdpa"
