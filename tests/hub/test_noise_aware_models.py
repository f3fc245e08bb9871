"""What makes a model noise-aware: identity at the start, a frozen base, a far stream that is only listened to."""

import pytest
import torch
from tiny_models import NOISE_AWARE_VARIANTS, tiny_config, tiny_model, two_channel_fbank

from na_ssl_hf import NABeatsModel, NAEatModel

variants = pytest.mark.parametrize(("model_type", "layer_type"), NOISE_AWARE_VARIANTS)
with_noise = pytest.mark.parametrize(
    ("model_type", "layer_type"), [v for v in NOISE_AWARE_VARIANTS if v[1] != "self_attention"]
)


@torch.no_grad()
@variants
def test_untrained_layers_are_the_identity_bit_for_bit(model_type, layer_type):
    model = tiny_model(model_type, identity=True, noise_aware_layer_type=layer_type)
    fbank = two_channel_fbank(model_type)
    assert torch.equal(model(fbank).last_hidden_state, model.to_base()(fbank).last_hidden_state)


@with_noise
def test_channel_order_matters_and_the_far_channel_is_heard(model_type, layer_type):
    model, fbank = tiny_model(model_type, noise_aware_layer_type=layer_type), two_channel_fbank(model_type)
    out = model(fbank).last_hidden_state
    assert not torch.allclose(out, model(fbank.flip(1)).last_hidden_state, atol=1e-3)
    louder_far = torch.stack([fbank[:, 0], fbank[:, 1] + 3.0], dim=1)
    assert not torch.allclose(out, model(louder_far).last_hidden_state, atol=1e-3)
    apart = model(fbank[:, 0], noise_values=fbank[:, 1]).last_hidden_state
    assert torch.equal(out, apart)


@with_noise
def test_far_channel_may_have_another_length(model_type, layer_type):
    model, fbank = tiny_model(model_type, noise_aware_layer_type=layer_type), two_channel_fbank(model_type)
    for frames in (48, 160):
        noise = two_channel_fbank(model_type, frames=frames, seed=1)[:, 0]
        out = model(fbank[:, 0], noise_values=noise).last_hidden_state
        assert out.shape == model(fbank).last_hidden_state.shape
        assert out.isfinite().all()


@variants
def test_a_closed_gate_leaves_the_base_and_an_open_one_the_layer(model_type, layer_type):
    fields = {"noise_aware_layer_type": layer_type, "num_hidden_layers": 1}
    plain, gated = tiny_model(model_type, **fields), tiny_model(model_type, **fields, noise_aware_gate=True)
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.rpartition("noise_aware.")[2] for name in missing} == {"gate.weight", "gate.bias"}
    fbank = two_channel_fbank(model_type)
    for bias, expected in ((-1e3, plain.to_base()(fbank[:, 0])), (1e3, plain(fbank))):
        with torch.no_grad():
            gated.layers[0].noise_aware.gate.bias.fill_(bias)
        torch.testing.assert_close(gated(fbank).last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-5)


def test_untrained_gates_are_the_same_for_all_tokens_and_survive_saving(tmp_path):
    model = NAEatModel.from_base(tiny_model("eat"), noise_aware_layer_type="aligned", noise_aware_gate=True)
    gate = model.layers[0].noise_aware.gate
    tokens = torch.randn(2, 3, 2 * model.config.hidden_size)
    torch.testing.assert_close(gate(tokens), torch.full((2, 3, 1), 2.0).sigmoid())
    with torch.no_grad():
        gate.weight.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(NAEatModel.from_pretrained(tmp_path).layers[0].noise_aware.gate.weight, gate.weight)


@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
def test_aligned_layer_hears_the_far_token_at_its_own_place(model_type):
    model = tiny_model(model_type, noise_aware_layer_type="aligned", num_hidden_layers=1)
    layer = model.layers[0].noise_aware
    for projection in (layer.attention.out_proj.weight, layer.attention.out_proj.bias):
        torch.nn.init.zeros_(projection)
    close, far = torch.randn(1, 40, 32), torch.randn(1, 40, 32)
    changed = far.clone()
    changed[:, 7] = torch.randn(32)
    difference = (layer(close, far) - layer(close, changed)).abs().amax(-1)[0]
    assert difference.nonzero().flatten().tolist() == [7]


@torch.no_grad()
@variants
def test_a_known_far_stream_gives_what_both_channels_give(model_type, layer_type):
    model, fbank = tiny_model(model_type, noise_aware_layer_type=layer_type), two_channel_fbank(model_type)
    close, far = fbank.unbind(1)
    states = model.base_states(far)
    assert len(states) == model.config.num_hidden_layers
    base_tokens = model.last_hidden_state(states[-1], far.shape[1])
    torch.testing.assert_close(base_tokens, model.to_base()(far).last_hidden_state)
    tokens = model.denoise(close, states if model.hears_far else None)
    torch.testing.assert_close(tokens, model(fbank).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("masks", ["neither", "close", "far", "both"])
@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
def test_streams_as_one_batch_equal_the_streams_apart(model_type, masks):
    # Only without a graph do both streams go through the frozen layers as one batch.
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type, frames=128)
    mask = torch.ones(2, 128, dtype=torch.long)
    mask[1, 64:] = 0
    close_mask = mask if masks in ("close", "both") else None
    far_mask = mask.flip(0) if masks in ("far", "both") else None
    arguments = {"noise_values": fbank[:, 1], "attention_mask": close_mask, "noise_attention_mask": far_mask}
    apart = model(fbank[:, 0], **arguments).last_hidden_state
    with torch.no_grad():
        torch.testing.assert_close(model(fbank[:, 0], **arguments).last_hidden_state, apart, atol=1e-5, rtol=0)


@variants
def test_only_noise_aware_layers_learn_and_the_base_stays_in_eval_mode(model_type, layer_type, tmp_path):
    model = tiny_model(model_type, noise_aware_layer_type=layer_type)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for one in (model, loaded):
        one.train()
        assert {n for n, p in one.named_parameters() if p.requires_grad} == {
            n for n, _ in one.named_parameters() if ".noise_aware." in n
        }
        modes = {".noise_aware" in name: module.training for name, module in one.named_modules() if "." in name}
        base = [m.training for n, m in one.named_modules() if n.count(".") >= 2 and ".noise_aware" not in n]
        assert not any(base)
        assert modes[True]
        one(two_channel_fbank(model_type)).last_hidden_state.square().mean().backward()
        assert all((p.grad is not None) == p.requires_grad for p in one.parameters())
        one.eval()
        assert not any(module.training for module in one.modules())


@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
def test_base_dropout_is_silent_in_training(model_type):
    # With every noise-aware dropout at zero, nothing random is left although the base was made with dropout.
    model = tiny_model(model_type, noise_aware_attention_dropout=0.0, hidden_dropout=0.5, attention_dropout=0.5).train()
    fbank = two_channel_fbank(model_type)
    assert torch.equal(model(fbank).last_hidden_state, model(fbank).last_hidden_state)


@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
def test_noise_stream_builds_no_graph(model_type):
    model = tiny_model(model_type).train()
    model.freeze_base(False)
    close, noise = two_channel_fbank(model_type).unbind(1)
    noise.requires_grad_()
    model(close, noise_values=noise).last_hidden_state.sum().backward()
    assert noise.grad is None
    assert model.embeddings.patch_embedding.weight.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
def test_from_base_keeps_the_base_and_its_outputs(model_type):
    source = tiny_model(model_type, identity=True)
    base = source.to_base()
    model = type(source).from_base(base, noise_aware_layer_type="aligned")
    assert model.config.noise_aware_layer_type == "aligned"
    fbank = two_channel_fbank(model_type)
    assert torch.equal(model(fbank).last_hidden_state, base(fbank).last_hidden_state)
    with pytest.raises(ValueError, match="base"):
        type(source).from_base(source)


@torch.no_grad()
def test_loading_a_base_checkpoint_starts_as_the_identity(tmp_path):
    base = tiny_model("beats")
    base.save_pretrained(tmp_path)
    model = NABeatsModel.from_pretrained(tmp_path, config=tiny_config("na-beats"))
    fbank = two_channel_fbank()
    assert torch.equal(model(fbank).last_hidden_state, base(fbank).last_hidden_state)


@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
def test_far_channel_errors_are_named(model_type):
    model, fbank = tiny_model(model_type), two_channel_fbank(model_type)
    with pytest.raises(ValueError, match="two channels"):
        model(fbank[:, 0])
    with pytest.raises(ValueError, match="noise_values"):
        model(fbank, noise_values=fbank[:, 1])
    with pytest.raises(ValueError, match="batch size"):
        model(fbank[:, 0], noise_values=fbank[:1, 1])
    with pytest.raises(Exception, match="noise_aware_layer_type"):
        tiny_config(model_type, noise_aware_layer_type="gating")
    with pytest.raises(Exception, match="noise_aware_num_heads"):
        tiny_config(model_type, noise_aware_num_heads=7)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
def test_film_averages_over_the_far_recording_without_its_padding(model_type):
    model = tiny_model(model_type, noise_aware_layer_type="film")
    close, far = two_channel_fbank(model_type, frames=96).unbind(1)
    mask = torch.ones(2, 96, dtype=torch.long)
    whole = model(close, noise_values=far).last_hidden_state
    all_heard = model(close, noise_values=far, noise_attention_mask=mask).last_hidden_state
    torch.testing.assert_close(all_heard, whole, atol=1e-5, rtol=0)
    mask[1, 48:] = 0
    padded = model(close, noise_values=far, noise_attention_mask=mask).last_hidden_state
    alone = model(close[1:], noise_values=far[1:, :48]).last_hidden_state
    torch.testing.assert_close(padded[:1], whole[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[1:], alone, atol=1e-5, rtol=0)
    assert (padded[1] - whole[1]).abs().max() > 1e-3
