"""Log-mel statistics beside a model's tokens, and what a checkpoint advises of how it is fitted."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_na_share import make_clips, make_scorer, scorer_of, scores_of
from tiny_models import some_calibration, tiny_model
from transformers import pipeline

from na_ssl_hf import AnomalyScorer, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.export import ProofRecordings, export_scorer
from na_ssl_hf.export.chain import ScoringChain
from na_ssl_hf.hub.pooling import LogMelStatistics, log_mel_statistics, num_log_mel_statistics
from na_ssl_hf.hub.threshold import Calibration


def test_statistics_are_mean_and_deviation_of_the_bins_of_each_band():
    frames = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    found = log_mel_statistics(frames, 4).numpy()
    assert found.shape == (3, 4, 6)
    for band in range(4):
        bins = frames[:, :, 3 * band : 3 * band + 3].numpy()
        np.testing.assert_allclose(found[:, band, :3], bins.mean(1), atol=1e-6)
        np.testing.assert_allclose(found[:, band, 3:], bins.std(1), atol=1e-6)
    of_rows = log_mel_statistics(frames, 4, num_rows=6).numpy()  # 3 frames each, 2 are left
    padded = torch.cat([frames[:, :14], torch.full((3, 6, 12), 9.0)], dim=1)
    torch.testing.assert_close(log_mel_statistics(padded, 4, 14), log_mel_statistics(frames[:, :14], 4))
    rows_of_padded = log_mel_statistics(padded, 4, 14, num_rows=4)  # the third has 4 frames of sound, the last has none
    torch.testing.assert_close(rows_of_padded[:, 3], log_mel_statistics(frames[:, :14], 4))
    torch.testing.assert_close(rows_of_padded[:, 2, 0, :3], frames[:, 10:14, :3].mean(1))
    np.testing.assert_allclose(of_rows[:, 1, 0, :3], frames[:, 3:6, :3].mean(1), atol=1e-6)
    np.testing.assert_allclose(of_rows[:, 5, :, 3:], found[:, :, 3:], atol=1e-6)
    assert num_log_mel_statistics(4, 12) == 6
    with pytest.raises(ValueError, match="`log_mel` must be False for a model of 5 bands, among which its 12 mel bins"):
        log_mel_statistics(frames, 5)


@pytest.mark.parametrize("frontend", ["beats", "eat", "dasheng", "efficientat"])
def test_padding_is_no_sound(frontend):
    front_end = TwoChannelFeatureExtractor(frontend).front_end
    num_samples = 3 * front_end.sampling_rate // 2 + 77
    fbank = front_end.fbank(0.1 * torch.randn(1, num_samples, generator=torch.Generator().manual_seed(0)))
    sound = front_end.num_sound_frames(num_samples)
    assert 0 <= fbank.shape[1] - sound < 32
    # The mel bins of noise differ from each other, those of padding do not.
    assert (fbank[0, :sound].std(-1) > 0).all()
    assert (fbank[0, sound:].std(-1) == 0).all()


def nearest(vectors: torch.Tensor) -> torch.Tensor:
    distances = torch.cdist(vectors.transpose(0, 1), vectors.transpose(0, 1))
    return (distances + torch.diag_embed(torch.full(distances.shape[:2], torch.inf))).min(-1).values.median(-1).values


def test_in_each_band_both_count_alike_whatever_their_scales():
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(30, 4, 8, generator=random)
    statistics = torch.randn(30, 4, 6, generator=random) * torch.tensor([0.01, 1.0, 100.0, 3.0])[:, None] + 7
    learned = LogMelStatistics.learned(vectors, statistics)
    joined = learned.joined(vectors, statistics)
    torch.testing.assert_close(joined[..., :8], torch.nn.functional.normalize(vectors, dim=-1))
    torch.testing.assert_close(nearest(joined[..., 8:]), nearest(joined[..., :8]))
    torch.testing.assert_close(joined[..., 8:].mean(0), torch.zeros(4, 6), atol=1e-4, rtol=0)
    # A memory without the highest bands, and any batch, are joined alike.
    torch.testing.assert_close(learned.joined(vectors[:1, :3], statistics[:1, :3]), joined[:1, :3])


def test_what_is_the_same_in_all_recordings_does_not_count():
    vectors, statistics = torch.randn(8, 2, 4), torch.randn(8, 2, 6)
    statistics[:, 0] = 3.0
    vectors[:, 1] = vectors[0, 1]
    assert LogMelStatistics.learned(vectors, statistics).weight == (0.0, 0.0)
    assert LogMelStatistics.learned(vectors[:1], statistics[:1]).weight == (0.0, 0.0)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("na-eat", {"na_share": 0.5, "far_cancellation": "filter", "streams": "both"}),
        ("na-beats", {"layers": [1, 2], "level": "normalised", "window": 0.25, "pooling": "rdp"}),
        ("dasheng", {"memory_bank": MemoryBank(rescaling="variance_min")}),
        ("efficientat", {}),
    ],
)
def test_scorers_with_log_mel_load_as_they_were(tmp_path, model_type, settings):
    normal, clips = make_clips(20), make_clips(3, seed=1)
    model = tiny_model(model_type, initializer_range=0.3)
    # EfficientAT hears 32 kHz, and the recordings hold nothing in its highest bands.
    extractor = TwoChannelFeatureExtractor(model.config.frontend, resample=True)
    scorer = AnomalyScorer(model=model, feature_extractor=extractor, device="cpu")
    normal, clips = ([{"array": each, "sampling_rate": 16000} for each in part] for part in (normal, clips))
    plain = scorer.fit(normal, **settings)
    without, expected = plain.embed(clips), plain(clips)
    scorer.fit(normal, log_mel=True, batch_size=7, **settings)
    assert scorer.embed(clips).shape[1] == without.shape[1]
    assert scorer.embed(clips).shape[2] > without.shape[2]
    results = scorer(clips)
    assert scores_of(results) != pytest.approx(scores_of(expected))
    np.testing.assert_allclose(scores_of(scorer(clips, batch_size=3)), scores_of(results), rtol=1e-4, atol=1e-6)
    scorer.save_pretrained(tmp_path)
    loaded = pipeline("anomaly-scoring", model=str(tmp_path), device="cpu")
    loaded.feature_extractor.resample = True
    np.testing.assert_allclose(scores_of(loaded(clips)), scores_of(results), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loaded.anomaly_map(clips[0]), scorer.anomaly_map(clips[0]))
    assert loaded.memory_bank.distance == "euclidean"


def test_a_fault_that_the_model_does_not_tell_is_heard():
    """A model whose tokens are the same for every sound is no obstacle where the spectrum tells the fault."""
    scorer = make_scorer("eat")
    normal, good = make_clips(24), make_clips(6, seed=1)
    louder = [2 * clip for clip in make_clips(6, seed=2)]
    scorer.fit(normal, log_mel=True)
    assert scores_of(scorer(louder)).min() > scores_of(scorer(good)).max()


def test_a_share_by_itself_is_chosen_with_its_own_statistics():
    normal, clips = make_clips(24), make_clips(3, seed=1)
    scorer = make_scorer()
    chosen = scorer.fit(normal, na_share="auto", log_mel=True, batch_size=5)
    share, results = chosen.memory_bank.calibration.na_share, chosen(clips)
    again = scorer.fit(normal, na_share=share, log_mel=True, batch_size=5)
    np.testing.assert_allclose(scores_of(again(clips)), scores_of(results), rtol=1e-4, atol=1e-7)


def test_an_export_has_the_statistics_of_its_scorer(tmp_path):
    pytest.importorskip("onnxruntime")
    normal = make_clips(20)
    for settings in ({"streams": "both", "far_cancellation": "spectral_subtraction"}, {"far_cancellation": "none"}):
        scorer = make_scorer().fit(normal, log_mel=True, na_share=0.5, **settings)
        chain = ScoringChain(scorer, scorer.memory_bank.calibration)
        torch.testing.assert_close(chain(torch.as_tensor(np.stack(normal))), scorer.embed(normal))
    # The export itself proves that the graph's scores are those of the scorer.
    exported = export_scorer(scorer, tmp_path / "exported", ProofRecordings(normal))
    assert exported.proof.rank_correlation > 0.999


def test_calibrations_keep_what_was_learned_and_refuse_what_was_not():
    learned = LogMelStatistics(centre=((0.5, -1.0), (2.0, 3.0)), weight=(0.25, 0.0))
    calibration = replace(some_calibration(), log_mel=learned)
    values = json.loads(json.dumps(calibration.to_dict()))
    assert Calibration.from_dict(values) == calibration
    del values["log_mel"]
    assert Calibration.from_dict(values).log_mel is None
    for wrong in (True, {}, {"centre": [[1.0]]}, {"centre": [1.0], "weight": [1.0]}):
        with pytest.raises(ValueError, match="`log_mel` must be"):
            Calibration.from_dict(values | {"log_mel": wrong})
    with pytest.raises(ValueError, match="`weight` must have one number for each of the 2 bands"):
        Calibration.from_dict(values | {"log_mel": {"centre": [[1.0], [2.0]], "weight": [1.0]}})
    with pytest.raises(ValueError, match="`centre` must be made of finite numbers"):
        Calibration.from_dict(values | {"log_mel": {"centre": [[float("nan")]], "weight": [1.0]}})
    with pytest.raises(ValueError, match="`log_mel` must be True or False, got 'yes'"):
        make_scorer().fit(make_clips(20), log_mel="yes")


ADVICE = {"far_cancellation": "auto", "na_share": 0.5, "log_mel": True}


def advised(advice=ADVICE, **settings) -> AnomalyScorer:
    model = tiny_model("na-eat", initializer_range=0.3)
    model.config.scoring = advice
    return scorer_of(model, **settings)


def test_what_a_checkpoint_advises_holds_where_the_user_says_nothing(tmp_path):
    normal, clips = make_clips(20), make_clips(3, seed=1)
    told = make_scorer().fit(normal, **ADVICE)(clips)
    scorer = advised()
    assert scorer.fit(normal)(clips) == told
    assert scorer.far_microphone.method == "auto"
    scorer.save_pretrained(tmp_path)
    # What is saved advises the same of the next fit, and scores as it did.
    loaded = pipeline("anomaly-scoring", model=str(tmp_path), device="cpu")
    np.testing.assert_allclose(scores_of(loaded(clips)), scores_of(told), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores_of(loaded.fit(normal)(clips)), scores_of(told), rtol=1e-5, atol=1e-6)
    plain = {"far_cancellation": "none", "na_share": 1.0, "log_mel": False}
    assert scorer.fit(normal, **plain)(clips) == make_scorer().fit(normal, **plain)(clips)
    assert scorer.far_microphone is None


def test_advice_gives_way_to_the_extractor_and_to_raw_streams():
    normal = make_clips(20)
    scorer = advised(far_cancellation="spectral_subtraction").fit(normal)
    assert scorer.far_microphone is None
    assert scorer.feature_extractor.far_cancellation == "spectral_subtraction"
    assert advised().fit(normal, streams="raw").far_microphone is None


def test_a_far_microphone_that_cannot_be_calibrated_is_left_alone_unless_asked_for(caplog):
    silent = [clip * np.array([[1.0], [0.0]], dtype=np.float32) for clip in make_clips(20)]
    scorer = advised()
    scorer.fit(silent)
    assert "The far microphone is not calibrated, as this checkpoint advises, and stays in what is heard" in caplog.text
    assert scorer.far_microphone is None
    assert scorer.fit(silent, far_cancellation="none")(silent[0]) == scorer.fit(silent)(silent[0])
    with pytest.raises(ValueError, match="must have a far microphone"):
        scorer.fit(silent, far_cancellation="auto")


@pytest.mark.parametrize("advice", ["auto", {"layer": 3}, ["log_mel"]])
def test_other_advice_is_refused(advice):
    with pytest.raises(ValueError, match="`scoring` of the checkpoint must be a dict with keys among"):
        advised(advice).fit(make_clips(20))
    with pytest.raises(ValueError, match="`far_cancellation` must be None or one of"):
        advised({"far_cancellation": "all"}).fit(make_clips(20))
