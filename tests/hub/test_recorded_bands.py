"""Recordings of a lower rate than the model's: the bands that they lack are left out, and rates are not mixed."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from transformers import pipeline
from transformers.utils import logging

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.hub import recorded_bands


def scorer():
    extractor = TwoChannelFeatureExtractor("efficientat", resample=True)
    return AnomalyScorer(model=tiny_model("efficientat"), feature_extractor=extractor)


def clips(rate, count=6, seed=0):
    random = np.random.default_rng(seed)
    waves = 0.1 * random.standard_normal((count, 2, rate // 2)).astype(np.float32)
    return [{"array": wave, "sampling_rate": rate, "path": f"{rate}-{index}.wav"} for index, wave in enumerate(waves)]


@pytest.fixture
def messages(monkeypatch):
    """What is logged; a warning that is to be given once in a process is given anew in every test."""
    found = []
    logging.get_logger(recorded_bands.__name__).warning_once.cache_clear()
    monkeypatch.setattr(recorded_bands.logger, "warning_once", found.append)
    return found


@pytest.mark.parametrize(
    ("rate", "layer", "num_bands"),
    [(16000, 9, 7), (32000, 9, 8), (44100, 9, 8), (16000, None, 7), (16000, 16, 4), (8000, 12, 5)],
)
def test_bands_centred_above_half_the_rate_are_left_out_and_named(messages, rate, layer, num_bands):
    fitted = scorer().fit(clips(rate), layer=layer, false_alarm_rate=0.5)
    (result,) = fitted(clips(rate, 1, seed=1))
    assert len(result["band_scores"]) == num_bands
    assert fitted.memory_bank.calibration.recording_rate == min(rate, 32000)
    assert fitted.embed(clips(rate), pooling="mean", layer=layer).shape[1] == num_bands
    assert fitted.anomaly_map(clips(rate)[0]).shape[1] == num_bands
    all_bands = 4 if layer == 16 else 8
    if num_bands == all_bands:
        assert not messages
    else:
        (message,) = messages
        assert f"hold nothing above {rate // 2} Hz: of 8 bands, {all_bands - num_bands} centred above (" in message
        assert "9975 Hz" in message


def test_the_bands_that_stay_are_those_of_the_model():
    wave = clips(16000, 1)
    vectors = scorer().embed(wave, pooling="mean", layer=9)
    extractor, model = TwoChannelFeatureExtractor("efficientat", resample=True), tiny_model("efficientat")
    with torch.no_grad():
        (grid,) = model.layer_grids(extractor(wave[0]["array"], sampling_rate=16000)["input_values"], [9])
    torch.testing.assert_close(vectors, grid.mean(1)[:, :7], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("fitted_at", "scored_at", "wanted"), [(16000, 32000, "16000 Hz"), (32000, 16000, "32000 Hz or more")]
)
@pytest.mark.parametrize("layer", [9, None])
def test_recordings_of_another_rate_are_refused_by_name(tmp_path, fitted_at, scored_at, wanted, layer):
    scorer().fit(clips(fitted_at), layer=layer, false_alarm_rate=0.5).save_pretrained(tmp_path)
    fitted = pipeline("anomaly-scoring", model=str(tmp_path))
    assert len(fitted(clips(fitted_at))) == 6
    message = rf"{scored_at}-0\.wav: recordings that are compared .* here {wanted}, got {scored_at} Hz"
    for call in (fitted, fitted.embed, lambda one: fitted.anomaly_map(one[0])):
        with pytest.raises(ValueError, match=message):
            call(clips(scored_at, 1))
    good, bad = fitted([*clips(fitted_at, 1), *clips(scored_at, 1)], errors="return")
    assert "score" in good
    assert f"got {scored_at} Hz" in bad["error"]
    assert "\n" not in bad["error"]


def test_normal_recordings_have_one_rate():
    with pytest.raises(ValueError, match=r"16000-0\.wav: .* here 32000 Hz or more, got 16000 Hz"):
        scorer().fit([*clips(32000, 3), *clips(48000, 3), *clips(16000, 1)], false_alarm_rate=0.5)


def test_models_whose_bands_have_no_known_places_take_every_rate_as_before():
    extractor = TwoChannelFeatureExtractor("beats", resample=True)
    fitted = AnomalyScorer(model=tiny_model("beats"), feature_extractor=extractor)
    fitted.fit(clips(16000), false_alarm_rate=0.5)
    assert fitted.memory_bank.calibration.recording_rate is None
    assert len(fitted(clips(8000, 1))[0]["band_scores"]) == 8
