"""The dry run: what it counts is what a step does, and its hours follow from the stated assumptions."""

import pytest
import torch
from tiny_models import tiny_model

from na_ssl_hf.training import dry_run as module
from na_ssl_hf.training.distillation import NoiseAwareDistillation
from na_ssl_hf.training.dry_run import DryRun, dry_run


def run(num_clips: int) -> DryRun:
    distillation = NoiseAwareDistillation(tiny_model("na-eat", noise_aware_attention_dropout=0.0)).train()
    optimizer = torch.optim.SGD([each for each in distillation.parameters() if each.requires_grad], lr=0.01)

    def step(*waves):
        loss = distillation(*waves)["loss"].total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return dry_run(distillation, step, 3, num_clips, 0.5, torch.device("cpu"))


def test_work_grows_with_clips_and_losses_fall():
    one, three = run(1), run(3)
    assert one.flop > 0
    assert three.flop == pytest.approx(3 * one.flop, rel=0.02)
    assert len(three.losses) == 3
    assert 0 < three.num_trained < three.num_parameters
    assert three.peak_bytes > three.state_bytes


def test_hours_follow_from_the_assumptions():
    measured = DryRun(20, 1.0, 2, 10.0, 2e12, 100, 50, 10**9, "cpu", (1.0, 0.5))
    hours = 1e12 * 160 * 1000 / (module.REACHED * module.H100_BFLOAT16) / 3600
    assert measured.hours(1000, 160, 1) == pytest.approx(hours)
    assert measured.hours(1000, 160, 4) == pytest.approx(hours / 4 / module.FOUR_GPUS)
    assert measured.state_bytes == 4 * (100 + 3 * 50)
    text = measured.report(1000, 160)
    assert "1000 GFLOP a clip, 160.0 TFLOP a step of 160 clips, 1000 steps" in text
    assert text.count("an assumption") == 2


def test_a_loss_that_is_not_finite_ends_the_run():
    def step(*waves):
        return torch.tensor(float("nan"))

    with pytest.raises(FloatingPointError, match="all losses of a dry run must be finite"):
        dry_run(torch.nn.Linear(1, 1), step, 2, 1, 0.1, torch.device("cpu"))
