"""A scorer calibrates the far microphone on its normal recordings, keeps it, and hears everything through it."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from transformers import pipeline

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.hub import far_microphone
from na_ssl_hf.hub.far_microphone import FAR_MICROPHONE_FILE, FarMicrophone

RATE = 16000


def recording(seed, seconds=1.0, machine=True):
    """A tone, and noise of a level of its own that comes to the close microphone 30 samples after the far one."""
    random = np.random.default_rng(seed)
    num_samples = int(seconds * RATE)
    heard = 0.3 * 10 ** random.normal(0, 0.4) * random.standard_normal(num_samples + 30).astype("float32")
    tone = 0.05 * np.sin(2 * np.pi * 440 * np.arange(num_samples) / RATE + seed)
    return np.stack([machine * tone + 0.5 * heard[:-30], heard[30:]]).astype("float32")


@pytest.fixture(scope="module")
def normal():
    return [recording(seed) for seed in range(20)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("beats")


def new_scorer(model, far_cancellation=None):
    extractor = TwoChannelFeatureExtractor(far_cancellation=far_cancellation)
    return AnomalyScorer(model=model, feature_extractor=extractor)


@pytest.fixture(scope="module")
def fitted(model, normal):
    return new_scorer(model).fit(normal, far_cancellation="installation", progress=None)


def test_the_far_microphone_is_that_of_the_normal_recordings(fitted, normal):
    alone = FarMicrophone("installation").fit([torch.from_numpy(one) for one in normal])
    assert fitted.far_microphone.filter_.equal(alone.filter_)
    assert fitted.far_microphone.method_ == "installation"


def test_scores_windows_maps_and_vectors_are_those_of_cancelled_recordings(fitted, model, normal):
    clips = [recording(seed, seconds=3.0) for seed in range(100, 103)]
    cancel = fitted.far_microphone.cancel
    plain = new_scorer(model).fit([cancel(torch.from_numpy(one)[None])[0] for one in normal], progress=None)
    cancelled = [cancel(torch.from_numpy(clip)[None])[0] for clip in clips]
    assert [one["score"] for one in fitted(clips)] == pytest.approx(
        [one["score"] for one in plain(cancelled)], rel=1e-4
    )
    torch.testing.assert_close(fitted.embed(clips), plain.embed(cancelled), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fitted.anomaly_map(clips[0]), plain.anomaly_map(cancelled[0]), atol=1e-5, rtol=1e-4)
    long = fitted(clips[0], window=1.0)
    parts = [cancel(torch.from_numpy(clips[0][:, i * RATE : (i + 1) * RATE])[None])[0] for i in range(3)]
    assert [one["score"] for one in long["windows"]] == pytest.approx([one["score"] for one in plain(parts)], rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", ["installation", "spectral_subtraction"])
def test_a_model_that_was_trained_so_hears_the_far_microphone_as_lowered_as_the_close_one(normal, method, tmp_path):
    model = tiny_model("na-eat", noise_aware_layer_type="aligned", noise_aware_lowers_far=True)
    extractor = TwoChannelFeatureExtractor.of(model.config)
    assert extractor.lowers_far
    scorer = AnomalyScorer(model=model, feature_extractor=extractor)
    scorer.fit(normal, far_cancellation=method, pooling="mean", progress=None)
    clip = torch.from_numpy(recording(100))[None]  # (1, 2, N)
    canceller = scorer.far_microphone or scorer.feature_extractor.front_end
    front_end = scorer.feature_extractor.front_end
    fbank = front_end.frames(canceller.cancel(clip), clip)  # (1, 2, T, M)
    plain = front_end.fbank(canceller.cancel(clip))
    assert (fbank[:, 1] - plain[:, 1]).mean() < -0.1
    expected, other = (model.time_frequency_grid(model(each).last_hidden_state).mean(1) for each in (fbank, plain))
    found = scorer.embed([clip[0].numpy()])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (other - found).abs().max() > 1e-3
    scorer.save_pretrained(tmp_path)
    loaded = pipeline("anomaly-scoring", model=str(tmp_path))
    assert loaded.feature_extractor.lowers_far
    assert loaded(clip[0].numpy())["score"] == scorer(clip[0].numpy())["score"]
    loaded.feature_extractor.lowers_far = False
    with pytest.raises(ValueError, match="fitted with another"):
        loaded(clip[0].numpy())


def test_saved_and_loaded_it_scores_the_same(fitted, tmp_path):
    clips = [recording(seed) for seed in range(100, 104)]
    fitted.save_pretrained(tmp_path)
    loaded = pipeline("anomaly-scoring", model=str(tmp_path))
    assert loaded.far_microphone.fingerprint == fitted.far_microphone.fingerprint
    assert [one["score"] for one in loaded(clips)] == pytest.approx([one["score"] for one in fitted(clips)], rel=1e-6)


def test_a_memory_without_its_far_microphone_is_refused(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    (tmp_path / FAR_MICROPHONE_FILE).unlink()
    with pytest.raises(ValueError, match="fitted with another extractor"):
        pipeline("anomaly-scoring", model=str(tmp_path))(recording(100))


def test_a_save_without_a_far_microphone_leaves_none_behind(fitted, model, normal, tmp_path):
    fitted.save_pretrained(tmp_path)
    new_scorer(model).fit(normal, progress=None).save_pretrained(tmp_path)
    assert not (tmp_path / FAR_MICROPHONE_FILE).exists()
    assert pipeline("anomaly-scoring", model=str(tmp_path)).far_microphone is None


def test_recordings_that_can_be_read_once_are_enough(fitted, model, normal):
    scorer = new_scorer(model).fit((one for one in normal), far_cancellation="installation", progress=None)
    assert scorer.far_microphone.filter_.equal(fitted.far_microphone.filter_)
    assert scorer.threshold == pytest.approx(fitted.threshold)


def test_machine_off_recordings_decide_the_filter(model, normal):
    off = [recording(seed, machine=False) for seed in range(50, 55)]
    scorer = new_scorer(model).fit(normal, far_cancellation="filter", machine_off=off, progress=None)
    alone = FarMicrophone("filter").fit(map(torch.from_numpy, normal), machine_off=map(torch.from_numpy, off))
    assert scorer.far_microphone.filter_.equal(alone.filter_)


def test_the_filter_can_be_causal(model, normal, tmp_path):
    scorer = new_scorer(model).fit(normal, far_cancellation="filter", far_future=0, progress=None)
    alone = FarMicrophone("filter", future=0.0).fit(map(torch.from_numpy, normal))
    assert scorer.far_microphone.filter_.equal(alone.filter_)
    scorer.save_pretrained(tmp_path)
    assert pipeline("anomaly-scoring", model=str(tmp_path)).far_microphone.latency == 0


def test_scoring_warns_of_an_installation_that_has_drifted(model, normal, monkeypatch):
    scorer = new_scorer(model).fit(normal, far_cancellation="installation", progress=None)
    seen = []
    monkeypatch.setattr(far_microphone.logger, "warning", seen.append)
    monkeypatch.setattr(far_microphone, "LISTENED_SECONDS", 15.0)
    scorer([recording(seed) for seed in range(100, 116)])
    assert seen == []
    scorer.far_microphone.listen_anew()
    scorer([recording(seed)[::-1].copy() for seed in range(100, 116)])
    assert len(seen) == 1
    assert "The installation has drifted since the far microphone was calibrated" in seen[0]


def test_a_far_microphone_of_another_rate_is_refused(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    random = torch.randn(8, 2, 8000, generator=torch.Generator().manual_seed(0))
    FarMicrophone(sampling_rate=8000).fit(random).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"at the rate of the feature extractor, 16000 Hz, got one of 8000 Hz"):
        pipeline("anomaly-scoring", model=str(tmp_path))


def test_methods_that_learn_nothing_are_set_in_the_extractor(model, normal):
    scorer = new_scorer(model).fit(normal, far_cancellation="least_squares", progress=None)
    assert scorer.feature_extractor.far_cancellation == "least_squares"
    assert scorer.far_microphone is None
    scorer.fit(normal, far_cancellation="none", progress=None)
    assert scorer.feature_extractor.far_cancellation is None
    kept = new_scorer(model, "spectral_subtraction").fit(normal, progress=None)
    assert kept.feature_extractor.far_cancellation == "spectral_subtraction"


def test_a_fit_that_fails_leaves_the_scorer_as_it_was(model, normal):
    scorer = new_scorer(model).fit(normal, far_cancellation="installation", progress=None)
    before, score = scorer.far_microphone, scorer(recording(100))["score"]
    with pytest.raises(ValueError, match="needs at least"):
        scorer.fit(normal, far_cancellation="least_squares", false_alarm_rate=0.001, progress=None)
    with pytest.raises(ValueError, match=r"must hold at least .* s for a filter"):
        scorer.fit(normal[:3], far_cancellation="installation", progress=None)
    assert scorer.far_microphone is before
    assert scorer.feature_extractor.far_cancellation is None
    assert scorer(recording(100))["score"] == score


def test_unreadable_recordings_are_left_out_of_the_calibration_too(fitted, model, normal):
    scorer = new_scorer(model).fit(
        [*normal, "nowhere.wav"], far_cancellation="installation", skip_unreadable=True, progress=None
    )
    assert scorer.far_microphone.filter_.equal(fitted.far_microphone.filter_)
    assert len(scorer.left_out) == 1


def test_bad_arguments_are_named(model, normal):
    with pytest.raises(ValueError, match=r"`far_cancellation` must be None or one of .* got 'best'"):
        new_scorer(model).fit(normal, far_cancellation="best", progress=None)
    with pytest.raises(ValueError, match=r"`machine_off` must go with far_cancellation='installation'"):
        new_scorer(model).fit(normal, machine_off=normal, progress=None)
    with pytest.raises(ValueError, match=r"`far_future` must go with far_cancellation='installation' .* got 'none'"):
        new_scorer(model).fit(normal, far_cancellation="none", far_future=0.0, progress=None)
    with pytest.raises(ValueError, match=r"`future` must be from 0\.0 to 0\.256 s, got 3"):
        new_scorer(model).fit(normal, far_cancellation="filter", far_future=3, progress=None)
