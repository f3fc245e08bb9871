"""The input level: one gain for both channels, in fitting as in scoring, and a warning for levels never heard."""

import numpy as np
import pytest
import torch
from tiny_models import some_calibration, tiny_model
from transformers import pipeline

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.cli.command_line import LEVELS as CLI_LEVELS
from na_ssl_hf.hub.input_level import LEVELS, NORMALISED_DB, LevelRange, LevelReport, at_level, levels_db
from na_ssl_hf.hub.threshold import Calibration


def make_clips(number: int, seed: int = 0, num_samples: int = 8000) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return list((rng.standard_normal((number, 2, num_samples)) * np.array([[0.1], [0.03]])).astype(np.float32))


def make_scorer(model_type: str = "beats") -> AnomalyScorer:
    model = tiny_model(model_type, initializer_range=0.3)
    return AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor(model.config.frontend), device="cpu")


def scores_of(results):
    return np.array([result["score"] for result in results])


@pytest.fixture
def warned(monkeypatch):
    """The warnings of the levels, every one of them."""
    from na_ssl_hf.hub import input_level

    messages: list[str] = []
    monkeypatch.setattr(input_level.logger, "warning_once", messages.append)
    return messages


def test_levels_are_dB_of_full_scale_without_offset():
    square = torch.ones(1, 2, 1000)
    square[..., ::2] = -1
    square[0, 1] *= 0.1
    torch.testing.assert_close(levels_db(square + 0.5), torch.tensor([[0.0, -20.0]]), rtol=0, atol=1e-4)
    assert levels_db(torch.full((1, 2, 10), 0.25)).tolist() == [[-torch.inf, -torch.inf]]


def test_normalising_scales_both_channels_by_the_gain_of_the_close_one():
    waves = torch.as_tensor(np.stack(make_clips(3))) * torch.tensor([1.0, 10.0, 0.001])[:, None, None]
    scaled = at_level(waves, "normalised")
    torch.testing.assert_close(levels_db(scaled)[:, 0], torch.full((3,), NORMALISED_DB), rtol=0, atol=1e-3)
    before, after = (levels_db(each).diff(dim=1) for each in (waves, scaled))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-3)
    assert at_level(waves, "as recorded") is waves
    silent = waves.clone()
    silent[0, 0] = 0.2
    torch.testing.assert_close(at_level(silent, "normalised")[0], silent[0])


def test_a_gain_changes_scores_as_recorded_and_not_normalised(tmp_path):
    normal, clips = make_clips(20), make_clips(4, seed=1)
    louder = [3.0 * clip for clip in clips]
    as_recorded = make_scorer().fit(normal)
    assert np.abs(scores_of(as_recorded(louder)) - scores_of(as_recorded(clips))).max() > 1e-3
    scorer = make_scorer().fit(normal, level="normalised")
    expected = scores_of(scorer(clips))
    np.testing.assert_allclose(scores_of(scorer(louder)), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(scorer.anomaly_map(louder[0]), scorer.anomaly_map(clips[0]), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(scorer.embed(louder), scorer.embed(clips), rtol=1e-2, atol=1e-3)
    scorer.save_pretrained(tmp_path)
    loaded = pipeline("anomaly-scoring", model=str(tmp_path), device="cpu")
    assert loaded.memory_bank.calibration.level == "normalised"
    assert loaded.memory_bank.calibration.levels == scorer.memory_bank.calibration.levels
    np.testing.assert_allclose(scores_of(loaded(louder)), expected, rtol=1e-3, atol=1e-5)


def test_every_window_is_normalised(warned):
    (clip,) = make_clips(1, num_samples=32000)
    ramp = clip * np.repeat([1.0, 30.0], 16000).astype(np.float32)
    scorer = make_scorer().fit(make_clips(20, num_samples=16000), level="normalised", window=1.0)
    windows = [[part["score"] for part in scorer(each)["windows"]] for each in (clip, ramp)]
    np.testing.assert_allclose(windows[1], windows[0], rtol=1e-3, atol=1e-5)
    assert warned == []


@pytest.mark.parametrize(("gain_db", "how"), [(10, "louder"), (-10, "quieter"), (2, None), (-2, None)])
def test_a_level_that_no_normal_recording_had_is_warned_of_by_name(warned, gain_db, how):
    scorer = make_scorer().fit(make_clips(20))
    assert warned == []
    clip = make_clips(1, seed=1)[0] * 10 ** (gain_db / 20)
    scorer([{"array": clip, "sampling_rate": 16000, "path": "today.wav"}])
    assert [how] * len(warned) == ["louder" if "louder" in each else "quieter" for each in warned]
    assert len(warned) == (how is not None)
    assert all("The close microphone" in each and "(1: today.wav)" in each for each in warned)


@pytest.mark.parametrize(("model_type", "is_warned"), [("beats", False), ("na-beats", True)])
def test_the_far_level_counts_where_the_far_channel_is_heard(warned, model_type, is_warned):
    scorer = make_scorer(model_type).fit(make_clips(20))
    clip = make_clips(1, seed=1)[0] * np.array([[1.0], [4.0]], dtype=np.float32)
    scorer([clip])
    assert [each.split(" is ")[0] for each in warned] == ["The far microphone"] * is_warned


def test_a_silent_channel_and_unknown_levels_are_not_warned_of(warned):
    levels = LevelRange()
    levels.note(["silent"], torch.zeros(1, 2, 100))
    assert levels.ranges == {}
    for ranges, waves in (({"close": (-20, -10)}, torch.zeros(1, 2, 100)), (None, torch.rand(1, 2, 100))):
        report = LevelReport(ranges, ["close", "far"])
        report.note(["one"], waves)
        report.report()
    assert warned == []


@pytest.mark.parametrize("level", ["loud", None, 5, ["normalised"]])
def test_another_level_is_refused(level):
    with pytest.raises(ValueError, match="`level` must be 'as recorded' or 'normalised', got"):
        make_scorer().fit(make_clips(2), level=level)
    with pytest.raises(ValueError, match="`level` must"):
        some_calibration(level=level)


@pytest.mark.parametrize(
    "levels",
    [
        "close", {"near": [-20, -10]}, {"close": [-10]}, {"close": [-10, -20]}, {"far": [-10, float("nan")]},
        {"far": [None, 0]}, {"far": [-1e400, 0]}, {"close": [True, 5]},
    ],
)  # fmt: skip
def test_a_calibration_with_other_levels_is_refused_by_name(levels):
    with pytest.raises(ValueError, match="`levels` must"):
        some_calibration(levels=levels)


def test_calibrations_of_before_have_the_recorded_level():
    values = some_calibration(level="normalised", levels={"close": (-30, -20.5)}).to_dict()
    assert Calibration.from_dict(values).levels == {"close": (-30.0, -20.5)}
    old = Calibration.from_dict({name: value for name, value in values.items() if name not in ("level", "levels")})
    assert old.level == "as recorded"
    assert old.levels is None


def test_the_command_line_knows_the_same_levels():
    assert CLI_LEVELS == LEVELS
