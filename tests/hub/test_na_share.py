"""The share of a noise-aware model in a scorer: its base, itself, what lies between, and a choice on normals alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import some_calibration, tiny_model
from transformers import pipeline

from na_ssl_hf import AnomalyScorer, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.export import ProofRecordings, export_scorer
from na_ssl_hf.export.chain import ScoringChain
from na_ssl_hf.hub.layer_choice import NA_SHARES
from na_ssl_hf.hub.normal_recordings import NormalRecordings, with_pseudo_faults
from na_ssl_hf.hub.recording import Piece
from na_ssl_hf.hub.threshold import Calibration

NOISE_AWARE = ["na-beats", "na-dasheng", "na-eat"]


def make_clips(number: int, seed: int = 0, num_samples: int = 8000) -> list[np.ndarray]:
    """Two microphones that hear a common noise, and the close one a machine of its own."""
    rng = np.random.default_rng(seed)
    noise = 0.1 * rng.standard_normal((number, 1, num_samples))
    own = 0.05 * rng.standard_normal((number, 2, num_samples)) * np.array([[1.0], [0.2]])
    return list((noise + own).astype(np.float32))


def scorer_of(model, **settings) -> AnomalyScorer:
    extractor = TwoChannelFeatureExtractor(model.config.frontend, **settings)
    return AnomalyScorer(model=model, feature_extractor=extractor, device="cpu")


def make_scorer(model_type: str = "na-eat", **fields) -> AnomalyScorer:
    return scorer_of(tiny_model(model_type, initializer_range=0.3, **fields))


def scores_of(results) -> np.ndarray:
    return np.array([result["score"] for result in results])


@pytest.mark.parametrize("settings", [{}, {"layers": [0, 2]}, {"pooling": "rdp", "level": "normalised"}])
@pytest.mark.parametrize("model_type", NOISE_AWARE)
def test_share_0_is_the_base_and_share_1_the_model_to_the_last_bit(model_type, settings):
    normal, clips = make_clips(20), make_clips(4, seed=1)
    scorer = make_scorer(model_type)
    expected = {
        0: scorer_of(scorer.model.to_base()).fit(normal, **settings)(clips),
        1: scorer.fit(normal, **settings)(clips),
    }
    for share, results in expected.items():
        assert scorer.fit(normal, na_share=share, **settings)(clips) == results
    assert expected[0] != expected[1]


@pytest.mark.parametrize("layer_type", ["cross_attention", "aligned", "film", "self_attention"])
def test_what_lies_between_is_the_mean_of_tokens(layer_type):
    clips = make_clips(3)
    scorer = make_scorer(noise_aware_layer_type=layer_type)
    base, own, quarter = (scorer.embed(clips, pooling="mean", na_share=share) for share in (0.0, 1.0, 0.25))
    torch.testing.assert_close(quarter, 0.75 * base + 0.25 * own)
    of_both = scorer.model.interpolated_grids(torch.randn(2, 2, 64, 128), [1, None], [0.5, 0.0, 1.0])
    for middle, first, second in zip(*of_both, strict=True):
        torch.testing.assert_close(middle, (first + second) / 2)


@pytest.mark.parametrize("settings", [{"streams": "both", "far_cancellation": "filter"}, {"layers": [1, 2]}])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_share_is_saved_with_the_scorer(tmp_path, share, settings):
    clips = make_clips(3, seed=1)
    scorer = make_scorer().fit(make_clips(20), na_share=share, **settings)
    expected = scorer(clips)
    scorer.save_pretrained(tmp_path)
    loaded = pipeline("anomaly-scoring", model=str(tmp_path), device="cpu")
    assert loaded.memory_bank.calibration.na_share == share
    np.testing.assert_allclose(scores_of(loaded(clips)), scores_of(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loaded.anomaly_map(clips[0]), scorer.anomaly_map(clips[0]))
    torch.testing.assert_close(loaded.embed(clips), scorer.embed(clips))


def test_a_calibration_from_before_hears_the_model_as_it_is():
    values = json.loads(json.dumps(some_calibration().to_dict()))
    del values["na_share"]
    assert Calibration.from_dict(values).na_share is None
    shared = replace(some_calibration(), na_share=0.5)
    assert Calibration.from_dict(json.loads(json.dumps(shared.to_dict()))) == shared


@pytest.mark.parametrize("na_share", ["all", "", -0.1, 1.1, float("nan"), True, [0.5]])
def test_other_shares_are_refused(na_share):
    with pytest.raises(ValueError, match="`na_share` must be None, 'auto' or a number from 0 to 1, got"):
        make_scorer().fit(make_clips(20), na_share=na_share)
    with pytest.raises(ValueError, match="`na_share` must be None"):
        Calibration.from_dict(some_calibration().to_dict() | {"na_share": na_share})


def test_auto_is_for_fit_alone():
    with pytest.raises(ValueError, match="`na_share` must be a number from 0 to 1 for `embed`, got 'auto'"):
        make_scorer().embed(make_clips(1), pooling="mean", na_share="auto")
    with pytest.raises(ValueError, match="`na_share` must be None or a number from 0 to 1, got 'auto'"):
        replace(some_calibration(), na_share="auto")


@pytest.mark.parametrize("na_share", [0.5, "auto"])
def test_a_model_without_noise_aware_layers_has_no_share(na_share):
    scorer = make_scorer("beats")
    with pytest.raises(ValueError, match="`na_share` must be None for BeatsModel, which has no noise-aware layers"):
        scorer.fit(make_clips(20), na_share=na_share)
    assert scorer.memory_bank is None


def recordings_with_faults(good_share: int | None, number: int = 24) -> NormalRecordings:
    """Vectors of all shares side by side, and those of pseudo faults, which stand out in one share alone."""
    random = torch.Generator().manual_seed(0)
    normal = NormalRecordings(None, None)
    for index in range(number):
        parts = [torch.tensor([[1.0, 0.0]]) + 0.1 * torch.randn(1, 2, generator=random) for _ in range(6)]
        if good_share is not None:
            parts[3 + good_share] = torch.tensor([[0.0, 1.0]])
        piece = Piece(torch.full((2, 4), float(index)), str(index), 0.0, 1.0, is_last=True, was_cut=False)
        normal.add(piece, torch.cat(parts, dim=-1))
    normal.take([])
    return normal


@pytest.mark.parametrize("good_share", [0, 1, 2])
def test_the_share_is_chosen_in_which_faults_stand_out(good_share):
    normal = recordings_with_faults(good_share)
    before = normal.vectors
    assert normal.choose_share(MemoryBank(), NA_SHARES) == NA_SHARES[good_share]
    assert torch.equal(normal.vectors, before[..., 2 * good_share : 2 * good_share + 2])


def test_without_a_clear_difference_or_with_a_few_recordings_the_mean_is_chosen():
    assert recordings_with_faults(None).choose_share(MemoryBank(), NA_SHARES) == 0.5
    assert recordings_with_faults(0, number=6).choose_share(MemoryBank(), NA_SHARES) == 0.5


@pytest.mark.parametrize("settings", [{"window": 0.5}, {"streams": "both", "far_cancellation": "spectral_subtraction"}])
def test_auto_gives_the_scorer_of_the_share_that_it_chooses(settings):
    normal, clips = make_clips(24, num_samples=16000), make_clips(3, seed=1, num_samples=16000)
    scorer = make_scorer()
    chosen = scorer.fit(normal, na_share="auto", batch_size=5, **settings)
    share, threshold, results = chosen.memory_bank.calibration.na_share, chosen.threshold, chosen(clips)
    assert share in NA_SHARES
    again = scorer.fit(normal, na_share=share, batch_size=5, **settings)
    assert again.threshold == pytest.approx(threshold, rel=1e-5)
    np.testing.assert_allclose(scores_of(again(clips)), scores_of(results), rtol=1e-4, atol=1e-7)


def test_auto_with_domains_splits_each_and_names_what_is_too_small():
    normal = make_clips(24)
    bank = MemoryBank(smote_ratio=0.5)
    domains = ["source"] * 18 + ["target"] * 6
    scorer = make_scorer().fit(normal, domains, na_share="auto", memory_bank=bank)
    assert scorer.memory_bank.calibration.na_share in NA_SHARES
    too_few = MemoryBank(smote_ratio=0.2)  # half of the target recordings are more than a fifth already
    with pytest.raises(ValueError, match="`na_share` must be a number, got 'auto': half a memory cannot be fitted"):
        scorer.fit(normal, domains, na_share="auto", memory_bank=too_few)


def test_pseudo_faults_are_quiet_sounds_of_the_close_channel_that_depend_on_the_recording_alone():
    waves = torch.as_tensor(np.stack(make_clips(6)))
    faulty = with_pseudo_faults(waves, 16000)
    assert torch.equal(faulty[:, 1], waves[:, 1])
    added = (faulty - waves)[:, 0]
    levels = 10 * (added.square().mean(-1) / waves[:, 0].square().mean(-1)).log10()
    assert ((levels > -18.1) & (levels < -5.9)).all()
    assert len({round(float(level), 3) for level in levels}) == 6
    assert torch.equal(with_pseudo_faults(waves[3:4], 16000), faulty[3:4])
    assert torch.equal(with_pseudo_faults(torch.zeros(1, 2, 400), 16000), torch.zeros(1, 2, 400))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_export_has_the_share_of_its_scorer(tmp_path, share):
    pytest.importorskip("onnxruntime")
    normal = make_clips(20)
    scorer = make_scorer().fit(normal, na_share=share)
    chain = ScoringChain(scorer, scorer.memory_bank.calibration)
    torch.testing.assert_close(chain(torch.as_tensor(np.stack(normal))), scorer.embed(normal))
    # The export itself proves that the graph's scores are those of the scorer.
    export_scorer(scorer, tmp_path / "exported", ProofRecordings(normal))
