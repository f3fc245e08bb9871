"""Distillation: the frozen streams are computed together, and nothing but the noise-aware layers learns."""

import pytest
import torch
from tiny_models import NOISE_AWARE_VARIANTS, tiny_model
from torch.nn.functional import mse_loss

from na_ssl_hf.hub.front_end import TwoChannelFrontEnd, lowered_by
from na_ssl_hf.hub.noise_cancellation import cancel_far_microphone
from na_ssl_hf.training.distillation import NoiseAwareDistillation

variants = pytest.mark.parametrize(("model_type", "layer_type"), NOISE_AWARE_VARIANTS)
model_types = pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])


def mixture(batch: int = 3, seed: int = 0) -> torch.Tensor:
    """Close, far and clean, `(3, batch, 8000)`."""
    return 0.1 * torch.randn(3, batch, 8000, generator=torch.Generator().manual_seed(seed))


def fbank(waves: torch.Tensor, model) -> torch.Tensor:
    return TwoChannelFrontEnd.of(model.config).fbank(waves)


@torch.no_grad()
@variants
def test_streams_together_equal_the_models_apart(model_type, layer_type):
    model = tiny_model(model_type, noise_aware_layer_type=layer_type)
    distillation = NoiseAwareDistillation(model)
    close, far, clean = fbank(mixture(), model)
    far_states, teacher = distillation.far_and_teacher(far, clean)
    torch.testing.assert_close(teacher, model.to_base()(clean).last_hidden_state)
    tokens = model.denoise(close, far_states)
    torch.testing.assert_close(tokens, model(torch.stack([close, far], dim=1)).last_hidden_state)


@variants
def test_gradients_equal_those_of_the_models_own_forward(model_type, layer_type):
    model = tiny_model(model_type, noise_aware_layer_type=layer_type, noise_aware_attention_dropout=0.0).train()
    waves = mixture()
    close, far, clean = fbank(waves, model)
    with torch.no_grad():
        teacher = model.to_base()(clean).last_hidden_state
    tokens = model(torch.stack([close, far], dim=1)).last_hidden_state
    cls = mse_loss(tokens[:, 0], teacher[:, 0]) if model_type == "na-eat" else 0.0
    (mse_loss(model.time_frequency_grid(tokens), model.time_frequency_grid(teacher)) + cls).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for gradient_checkpointing in (False, True):
        model.zero_grad()
        distillation = NoiseAwareDistillation(model, gradient_checkpointing=gradient_checkpointing).train()
        distillation(*waves)["loss"].total.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@variants
def test_loss_falls_and_the_base_stays_as_it_was(model_type, layer_type):
    model = tiny_model(model_type, identity=True, noise_aware_layer_type=layer_type)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    distillation = NoiseAwareDistillation(model).train()
    trained = [p for p in distillation.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-4 if layer_type == "film" else 1e-3)
    losses = []
    for _ in range(20):
        loss = distillation(*mixture())["loss"].total
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.97 * losses[0]
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".noise_aware." in name and name in changed}
    assert any("out_proj" in name or "film" in name for name in changed)
    assert {id(p) for p in trained} == {id(p) for n, p in model.named_parameters() if ".noise_aware." in n}


@torch.no_grad()
@variants
def test_identity_model_has_the_loss_of_the_base_exactly(model_type, layer_type):
    model = tiny_model(model_type, identity=True, noise_aware_layer_type=layer_type)
    losses = NoiseAwareDistillation(model).eval()(*mixture(), references=True)
    hears_far = layer_type != "self_attention"
    assert list(losses) == ["loss", "identity", *(["far_is_close", "far_is_silent"] if hears_far else [])]
    assert all(loss == losses["identity"] for loss in losses.values())


@torch.no_grad()
@model_types
def test_references_are_the_losses_with_another_far_microphone(model_type):
    model = tiny_model(model_type)
    distillation = NoiseAwareDistillation(model).eval()
    close, far, clean = mixture()
    losses = distillation(close, far, clean, references=True)
    torch.testing.assert_close(losses["far_is_close"], distillation(close, close, clean)["loss"])
    torch.testing.assert_close(losses["far_is_silent"], distillation(close, torch.zeros_like(far), clean)["loss"])
    assert len({round(float(loss.total), 6) for loss in losses.values()}) == 4


@torch.no_grad()
@model_types
def test_total_is_tokens_and_weighted_bands(model_type):
    model = tiny_model(model_type)
    distillation = NoiseAwareDistillation(model, band_loss_weight=0.5).eval()
    close, far, clean = fbank(mixture(), model)
    far_states, teacher = distillation.far_and_teacher(far, clean)
    tokens = model.denoise(close, far_states)
    loss = distillation(*mixture())["loss"]
    difference = model.time_frequency_grid(tokens - teacher)  # (B, T, F, D)
    torch.testing.assert_close(loss.bands, difference.mean(dim=1).square().mean())
    cls = (tokens - teacher)[:, 0].square().mean() if model_type == "na-eat" else 0.0
    torch.testing.assert_close(loss.tokens, difference.square().mean() + cls)
    torch.testing.assert_close(loss.total, loss.tokens + 0.5 * loss.bands)


@torch.no_grad()
def test_far_cancellation_cleans_the_close_channel_and_nothing_else():
    model = tiny_model("na-beats")
    close, far, clean = mixture()
    cancelled = cancel_far_microphone(close, far, "spectral_subtraction")
    with_it = NoiseAwareDistillation(model, far_cancellation="spectral_subtraction").eval()(close, far, clean)
    assert with_it["loss"] == NoiseAwareDistillation(model).eval()(cancelled, far, clean)["loss"]


@torch.no_grad()
def test_the_far_channel_is_lowered_by_what_was_cancelled_before():
    model = tiny_model("na-eat", noise_aware_layer_type="aligned")
    close, far, clean = mixture()
    cancelled = cancel_far_microphone(close, far, "spectral_subtraction")
    plain = NoiseAwareDistillation(model).eval()
    assert plain(cancelled, far, clean, close) == plain(cancelled, far, clean)
    model.config.noise_aware_lowers_far = True
    lowering = NoiseAwareDistillation(model).eval()
    assert lowering(close, far, clean) == plain(close, far, clean)
    found = lowering(cancelled, far, clean, close)["loss"]
    itself = NoiseAwareDistillation(model, far_cancellation="spectral_subtraction").eval()(close, far, clean)["loss"]
    assert found == itself
    heard, far_fbank, clean_fbank, before = (lowering.front_end.fbank(each) for each in (cancelled, far, clean, close))
    sound = slice(lowering.front_end.num_sound_frames(close.shape[-1]))  # the frames behind are padding
    far_fbank[:, sound] += lowered_by(heard[:, sound], before[:, sound])
    far_states, teacher = lowering.far_and_teacher(far_fbank, clean_fbank)
    torch.testing.assert_close(found, lowering.loss(model.denoise(heard, far_states), teacher))
    assert abs(float(found.total - plain(cancelled, far, clean)["loss"].total)) > 1e-5


def test_negative_band_loss_weight_is_refused():
    with pytest.raises(ValueError, match=r"`band_loss_weight` must not be negative, got -1"):
        NoiseAwareDistillation(tiny_model("na-eat"), band_loss_weight=-1.0)


@torch.no_grad()
@model_types
def test_bfloat16_autocast_is_near_float32(model_type):
    distillation = NoiseAwareDistillation(tiny_model(model_type)).eval()
    expected = distillation(*mixture())["loss"].total
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(distillation(*mixture())["loss"].total, expected, rtol=0.03, atol=0)
