"""Losses equal to the reference implementation's (tests/goldens/backends/6_scac), and what they promise beside it."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from na_ssl_hf.training.classification_losses import AdaCos, ArcFace, SubClusterAdaCos
from na_ssl_hf.training.waveform_mixup import Mixup, draw_mixup


@pytest.fixture(scope="module")
def golden(goldens):
    with np.load(goldens / "backends" / "6_scac" / "scadacos.npz") as arrays:
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def loss_with(centres, num_subclusters, **settings):
    size, num_centres = centres.shape
    loss = SubClusterAdaCos(size, num_centres // num_subclusters, num_subclusters, **settings)
    loss.centres.data.copy_(centres)
    return loss


@pytest.mark.parametrize("trainable", [True, False], ids=["trainW", "fixW"])
@pytest.mark.parametrize("dynamic", [True, False], ids=["dyn", "fix"])
def test_equals_the_reference_over_three_steps(golden, dynamic, trainable):
    loss = loss_with(golden["W"], 16, dynamic_scale=dynamic, trainable_centres=trainable)
    assert float(loss.scale) == pytest.approx(float(golden["s_init"]), abs=1e-4)
    assert len(list(loss.parameters())) == trainable
    for step in range(3):
        expected = {
            name.removeprefix(prefix): value
            for prefix in [f"{'dyn' if dynamic else 'fix'}_{'trainW' if trainable else 'fixW'}_step{step}_"]
            for name, value in golden.items()
            if name.startswith(prefix)
        }
        embeddings, labels = golden[f"x{step}"].clone().requires_grad_(), golden[f"y{step}"]
        assert float(loss.scale) == pytest.approx(float(expected["s_before"]), abs=1e-4)
        loss.zero_grad()
        value = loss.train()(embeddings, labels)
        value.backward()
        assert float(value.detach()) == pytest.approx(float(expected["loss"]), abs=1e-4)
        assert float(loss.scale) == pytest.approx(float(expected["s_after"]), abs=1e-4)
        torch.testing.assert_close(embeddings.grad, expected["grad_x"], atol=1e-5, rtol=0)
        if trainable:
            torch.testing.assert_close(loss.centres.grad, expected["grad_W"], atol=1e-5, rtol=0)
        logits = loss.eval().logits(embeddings)
        torch.testing.assert_close(logits, expected["logits_after"], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits.double(), expected["logits_after_f64"], atol=1e-4, rtol=0)
        per_clip = -(labels * logits).sum(dim=1)
        torch.testing.assert_close(per_clip, expected["loss_per_sample"], atol=1e-4, rtol=0)
        assert loss(embeddings, labels).item() == pytest.approx(float(value.detach()), abs=1e-6)


@pytest.mark.parametrize(("case", "after"), [("S1", "s_after"), ("tile", "s_after_asdkit")])
def test_scale_equals_the_reference_where_the_median_angle_is_small(golden, case, after):
    centres, labels = golden[f"{case}_W"], golden[f"{case}_y"]
    loss = loss_with(centres, centres.shape[1] // labels.shape[1], dynamic_scale=True)
    assert float(loss.scale) == pytest.approx(float(golden[f"{case}_s_before"]), abs=1e-4)
    assert loss(golden[f"{case}_x"], labels).item() == pytest.approx(float(golden[f"{case}_loss"]), abs=1e-4)
    assert float(loss.scale) == pytest.approx(float(golden[f"{case}_{after}"]), abs=1e-4)


def test_adacos_is_one_subcluster_with_a_scale_that_adapts(golden):
    loss = AdaCos(32, 5)
    loss.centres.data.copy_(golden["S1_W"])
    assert loss(golden["S1_x"], golden["S1_y"]).item() == pytest.approx(float(golden["S1_loss"]), abs=1e-4)
    assert float(loss.scale) == pytest.approx(float(golden["S1_s_after"]), abs=1e-4)


def test_scale_stays_in_eval_mode_and_travels_with_the_state(golden):
    loss = loss_with(golden["W"], 16, dynamic_scale=True)
    before = float(loss.scale)
    loss.eval()(golden["x0"], golden["y0"])
    assert float(loss.scale) == before
    loss.train()(golden["x0"], golden["y0"])
    again = SubClusterAdaCos(32, 5)
    again.load_state_dict(loss.state_dict())
    assert float(again.scale) == float(loss.scale) != before


# ArcFace


def test_arcface_without_margin_is_cross_entropy_of_cosines():
    torch.manual_seed(0)
    loss, embeddings, classes = ArcFace(8, 4, margin=0.0, scale=5.0), torch.randn(6, 8), torch.arange(6) % 4
    cosines = normalize(embeddings, dim=1) @ normalize(loss.centres, dim=0)
    torch.testing.assert_close(loss(embeddings, one_hot(classes).float()), cross_entropy(5 * cosines, classes))
    torch.testing.assert_close(loss.logits(embeddings), (5 * cosines).log_softmax(1))


def test_arcface_adds_the_margin_to_the_right_angle():
    torch.manual_seed(0)
    loss, embeddings, classes = ArcFace(8, 4, margin=0.3, scale=5.0), torch.randn(6, 8), torch.arange(6) % 4
    angles = (normalize(embeddings, dim=1) @ normalize(loss.centres, dim=0)).acos()
    shifted = angles + 0.3 * one_hot(classes)
    assert shifted.max() < math.pi
    torch.testing.assert_close(loss(embeddings, one_hot(classes).float()), cross_entropy(5 * shifted.cos(), classes))


def test_arcface_of_mixed_labels_is_the_mixture_of_the_losses():
    torch.manual_seed(0)
    loss, embeddings = ArcFace(8, 4), torch.randn(6, 8)
    first, second = one_hot(torch.arange(6) % 4).float(), one_hot((torch.arange(6) + 1) % 4).float()
    mixed = loss(embeddings, 0.3 * first + 0.7 * second)
    torch.testing.assert_close(mixed, 0.3 * loss(embeddings, first) + 0.7 * loss(embeddings, second))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_arcface_has_finite_gradients_on_a_centre_and_opposite_to_it(sign):
    loss = ArcFace(3, 3)
    loss.centres.data.copy_(torch.eye(3))
    embeddings = (sign * torch.eye(3)).requires_grad_()
    loss(embeddings, torch.eye(3)).backward()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("make", [SubClusterAdaCos, AdaCos, ArcFace])
def test_losses_stay_float32_under_autocast_and_fall(make):
    torch.manual_seed(0)
    loss, labels = make(16, 3), one_hot(torch.arange(12) % 3).float()
    embeddings = torch.randn(12, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(embeddings.bfloat16(), labels).dtype == torch.float32
    optimizer = torch.optim.Adam([embeddings, *loss.parameters()], lr=0.05)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        values.append(loss(embeddings, labels))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]
    assert (loss.logits(embeddings).argmax(1) == torch.arange(12) % 3).all()


def test_bad_settings_are_refused():
    for make, message in (
        (lambda: SubClusterAdaCos(8, 1), "`num_classes` must be at least 2.*got 1"),
        (lambda: ArcFace(8, 1), "`num_classes` must be at least 2.*got 1"),
        (lambda: AdaCos(8, 2), "`num_subclusters` must be at least 1.*got 1 for 2 classes"),
        (lambda: SubClusterAdaCos(8, 4, 0), "`num_subclusters` must be at least 1.*got 0"),
        (lambda: ArcFace(8, 4, margin=2.0), r"`margin` must lie in \[0, pi / 2\], got 2.0"),
        (lambda: ArcFace(8, 4, scale=0.0), "`scale` must be positive, got 0.0"),
        (lambda: draw_mixup(4, 1.5), r"`probability` must lie in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# Mixup


def test_mixup_equals_the_reference(golden):
    mixup = Mixup(torch.where(golden["mix_dec"] == 1, golden["mix_lam"], 1.0), golden["mix_perm"])
    torch.testing.assert_close(mixup(golden["mix_x_in"]), golden["x2"], atol=1e-6, rtol=0)
    torch.testing.assert_close(mixup(golden["mix_y_in"]), golden["y2"], atol=1e-6, rtol=0)


def test_mixup_treats_both_channels_and_the_labels_alike():
    torch.manual_seed(0)
    mixup = draw_mixup(64)
    waves, labels = torch.randn(64, 2, 10), torch.eye(64)
    mixed, mixed_labels = mixup(waves), mixup(labels)
    torch.testing.assert_close(mixed, torch.einsum("bk,kcn->bcn", mixed_labels, waves))
    torch.testing.assert_close(mixed_labels.sum(dim=1), torch.ones(64))
    assert 16 < (mixup.lam == 1).sum() < 48


def test_mixup_keeps_everything_with_probability_zero_and_repeats_itself_with_a_seed():
    waves = torch.randn(8, 2, 10)
    assert torch.equal(draw_mixup(8, 0.0)(waves), waves)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(draw_mixup(8, 1.0))
    assert all(torch.equal(*pair) for pair in zip(*draws, strict=True))
    assert (draws[0].lam < 1).all()
