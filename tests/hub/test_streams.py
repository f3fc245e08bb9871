"""The streams of the close microphone: as recorded, without the far one, or both with their vectors joined."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import some_calibration, tiny_model
from transformers import pipeline

from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor
from na_ssl_hf.cli.scoring import STREAMS as CLI_STREAMS
from na_ssl_hf.hub.layer_choice import joined
from na_ssl_hf.hub.streams import STREAMS
from na_ssl_hf.hub.threshold import Calibration


def make_clips(number: int, seed: int = 0, num_samples: int = 8000) -> list[np.ndarray]:
    """Two microphones that hear a common noise, and the close one a machine of its own."""
    rng = np.random.default_rng(seed)
    noise = 0.1 * rng.standard_normal((number, 1, num_samples))
    own = 0.05 * rng.standard_normal((number, 2, num_samples)) * np.array([[1.0], [0.2]])
    return list((noise + own).astype(np.float32))


def make_scorer(model_type: str = "na-beats", far_cancellation: str | None = None) -> AnomalyScorer:
    model = tiny_model(model_type, initializer_range=0.3)
    extractor = TwoChannelFeatureExtractor(model.config.frontend, far_cancellation=far_cancellation)
    return AnomalyScorer(model=model, feature_extractor=extractor, device="cpu")


def scores_of(results):
    return np.array([result["score"] for result in results])


def test_the_command_line_offers_the_same_streams():
    assert CLI_STREAMS == STREAMS


@pytest.mark.parametrize("model_type", ["beats", "na-beats"])
@pytest.mark.parametrize("method", ["spectral_subtraction", "filter"])
def test_a_stream_is_heard_as_defined(model_type, method):
    clips = make_clips(4, seed=1)
    scorer = make_scorer(model_type).fit(make_clips(20), far_cancellation=method, streams="both")
    raw, cancelled = (scorer.embed(clips, streams=name) for name in ("raw", "cancelled"))
    torch.testing.assert_close(scorer.embed(clips), joined([cancelled, raw]))
    plain = make_scorer(model_type)
    plain.model = scorer.model
    torch.testing.assert_close(raw, plain.embed(clips, pooling="mean"))
    if method == "filter":
        clips = list(scorer.far_microphone.cancel(torch.as_tensor(np.stack(clips))).numpy())
    else:
        plain.feature_extractor.far_cancellation = method
    torch.testing.assert_close(cancelled, plain.embed(clips, pooling="mean"))
    assert (raw - cancelled).abs().max() > 1e-2


def test_cosine_distance_of_both_is_the_mean_of_the_streams():
    clips = make_clips(3, seed=1)
    scorer = make_scorer(far_cancellation="spectral_subtraction").fit(make_clips(20), streams="both")
    one, other = scorer.embed(clips)[:2]  # (F, D)
    both = 1 - (one * other).sum(-1)
    apart = [scorer.embed(clips, streams=name) for name in ("raw", "cancelled")]
    centred = [vectors - vectors.mean(-1, keepdim=True) for vectors in apart]
    distances = [1 - torch.cosine_similarity(vectors[0], vectors[1], dim=-1) for vectors in centred]
    torch.testing.assert_close(both, torch.stack(distances).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("method", ["spectral_subtraction", "filter"])
def test_streams_are_saved_with_the_scorer(tmp_path, streams, method):
    clips = make_clips(3, seed=1)
    scorer = make_scorer().fit(make_clips(20), far_cancellation=method, streams=streams, layers=[0, 1])
    expected = scores_of(scorer(clips))
    scorer.save_pretrained(tmp_path)
    loaded = pipeline("anomaly-scoring", model=str(tmp_path), device="cpu")
    assert loaded.memory_bank.calibration.streams == streams
    np.testing.assert_allclose(scores_of(loaded(clips)), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loaded.embed(clips), scorer.embed(clips))
    torch.testing.assert_close(loaded.anomaly_map(clips[0]), scorer.anomaly_map(clips[0]))


def test_streams_change_the_scores_of_windows_and_maps():
    long = make_clips(1, seed=1, num_samples=32000)[0]
    maps, windows = [], []
    for streams in STREAMS:
        scorer = make_scorer().fit(make_clips(20), far_cancellation="filter", streams=streams)
        maps.append(scorer.anomaly_map(long))
        windows.append([part["score"] for part in scorer(long, window=1.0, hop=1.0)["windows"]])
    assert len({len(each) for each in windows}) == 1
    for index in range(3):
        assert (maps[index] - maps[index - 1]).abs().max() > 1e-4
        assert np.abs(np.subtract(windows[index], windows[index - 1])).max() > 1e-4


@pytest.mark.parametrize("far_cancellation", [None, "none"])
def test_both_streams_need_a_canceller(far_cancellation):
    scorer = make_scorer()
    with pytest.raises(ValueError, match=r"`streams` must be 'cancelled' or 'raw' .*Got 'both'"):
        scorer.fit(make_clips(20), far_cancellation=far_cancellation, streams="both")
    assert scorer.memory_bank is None
    with pytest.raises(ValueError, match="`streams` must be 'cancelled' or 'raw'"):
        scorer.embed(make_clips(1), streams="both", pooling="mean")


@pytest.mark.parametrize("streams", ["all", "", None, 1, True, ["both"], {}, float("nan")])
def test_other_streams_are_refused(streams):
    with pytest.raises(ValueError, match="`streams` must be 'cancelled' or 'raw' or 'both', got"):
        make_scorer().fit(make_clips(20), streams=streams)
    with pytest.raises(ValueError, match="`streams` must be 'cancelled' or 'raw' or 'both', got"):
        Calibration.from_dict(some_calibration().to_dict() | {"streams": streams})


def test_a_calibration_from_before_hears_the_cancelled_stream():
    values = json.loads(json.dumps(some_calibration().to_dict()))
    del values["streams"]
    assert Calibration.from_dict(values).streams == "cancelled"
    both = replace(some_calibration(), streams="both", extractor={"far_cancellation": "least_squares"})
    assert Calibration.from_dict(json.loads(json.dumps(both.to_dict()))) == both
    with pytest.raises(ValueError, match="`streams` must be 'cancelled' or 'raw'"):
        replace(both, extractor={"far_cancellation": None})
