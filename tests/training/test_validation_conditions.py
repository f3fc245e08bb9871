"""Validation by condition: each differs from the reference in what its name says, and harm is not averaged away."""

import math

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from na_ssl_hf.training.validation_conditions import (
    CONDITIONS,
    REFERENCE,
    ClipErrors,
    Condition,
    Sounds,
    clip_errors,
    errors_by_condition,
    heard,
    mix,
    share_of_noisy_error,
)


def sounds(count: int = 3, repeats: int = 0, num_samples: int = 16000) -> Sounds:
    """White sounds in rooms whose responses are a direct path with one echo."""
    random = torch.Generator().manual_seed(count)
    responses = 0.01 * torch.randn(count, 5, 2, 1600, generator=random)
    responses[:, :, 0, 40] += 1.0
    responses[:, :, 1, 60] += 0.5
    return Sounds(
        0.1 * torch.randn(count, num_samples, generator=random),
        0.1 * torch.randn(count, 4, num_samples, generator=random),
        responses[:, 0],
        responses[:, 1:],
        torch.full((count,), 40),
        sounds(count * repeats) if repeats else None,
    )


def power_db(wave: torch.Tensor) -> torch.Tensor:
    return 10 * wave.square().mean(-1).log10()


def test_untrained_layers_have_the_error_of_the_base_under_every_condition():
    found = errors_by_condition(tiny_model("na-eat", identity=True), sounds(2, repeats=4))
    assert list(found) == list(CONDITIONS)
    for errors in found.values():
        assert errors.ratio() == errors.ratio("mean") == 1.0
        assert errors.interval() == (1.0, 1.0)


@pytest.mark.parametrize("model_type", ["na-beats", "na-dasheng", "na-eat"])
@pytest.mark.parametrize("condition", [REFERENCE, "behind subtraction"])
def test_errors_are_those_of_the_distillation_loss(model_type, condition):
    from na_ssl_hf.training.distillation import NoiseAwareDistillation

    model = tiny_model(model_type, noise_aware_lowers_far=True)
    mixture = heard(sounds(), CONDITIONS[condition])
    with torch.no_grad():
        losses = NoiseAwareDistillation(model).eval()(*mixture, references=True)
    errors = clip_errors(model, mixture, batch_size=2)
    assert errors.noise_aware.mean() == pytest.approx(float(losses["loss"].tokens), rel=1e-4)
    assert errors.base.mean() == pytest.approx(float(losses["identity"].tokens), rel=1e-4)


def test_a_clean_machine_has_no_noise_and_a_machine_that_is_off_leaves_only_noise():
    machine = sounds()
    fields = {}, {"snr_db": math.inf}, {"machine_is_off": True}
    noisy, clean, off = (mix(machine, Condition(**each)) for each in fields)
    torch.testing.assert_close(clean.close + off.close, noisy.close, atol=1e-6, rtol=0)
    torch.testing.assert_close(clean.far + off.far, noisy.far, atol=1e-6, rtol=0)
    torch.testing.assert_close(power_db(clean.close), power_db(off.close), atol=0.2, rtol=0)  # at 0 dB they are equal
    assert not off.clean.any()


@pytest.mark.parametrize("difference_db", [-4.0, 12.0])
def test_the_level_difference_is_that_of_the_machine_at_both_microphones(difference_db):
    machine = mix(sounds(), Condition(snr_db=math.inf, level_difference_db=difference_db))
    measured = power_db(machine.close) - power_db(machine.far)
    torch.testing.assert_close(measured, torch.full((3,), difference_db), atol=0.3, rtol=0)


def test_a_wrong_cable_gives_the_close_channel_twice():
    mixture = mix(sounds(), CONDITIONS["far := close"])
    assert torch.equal(mixture.close, mixture.far)


def test_cancellers_change_the_close_channel_alone():
    scene = sounds(2, repeats=4)
    for method in ("least_squares", "spectral_subtraction", "installation"):
        condition = Condition(coherence=1.0, canceller=method)
        before, after = mix(scene, condition), heard(scene, condition)
        assert torch.equal(before.far, after.far)
        assert torch.equal(before.clean, after.clean)
        assert torch.equal(before.close, after.recorded)
        assert not torch.allclose(before.close, after.close)


def test_what_a_condition_lacks_is_named():
    with pytest.raises(ValueError, match="`sounds` must have a `calibration` for the canceller 'installation'"):
        heard(sounds(), Condition(canceller="installation"))
    with pytest.raises(ValueError, match="`snr_db` must be finite where `machine_is_off`"):
        Condition(snr_db=math.inf, machine_is_off=True)


def test_ratios_weigh_mixtures_by_their_error_and_clean_input_by_the_noisy_one():
    noisy = ClipErrors(np.array([1.0, 9.0]), np.array([10.0, 10.0]), np.array([2.0, 2.0]))
    clean = ClipErrors(np.array([1.0, 1.0]), np.array([0.0, 1e-9]), np.array([0.0, 0.0]))
    assert noisy.ratio() == 0.5
    assert noisy.ratio("mean") == pytest.approx(0.2)
    low, high = noisy.interval()
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.9))
    assert share_of_noisy_error({REFERENCE: noisy, "clean": clean}, "clean") == pytest.approx(0.1)
