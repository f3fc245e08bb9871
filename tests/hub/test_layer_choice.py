"""The choice of layers: numbered as the hidden states, no layer run in vain, several joined as described."""

import json

import numpy as np
import pytest
import torch
from tiny_models import TRANSFORMERS, some_calibration, tiny_model
from transformers import pipeline

from na_ssl_hf import AnomalyScorer, MemoryBank, TwoChannelFeatureExtractor
from na_ssl_hf.evaluation.systems.embedders import model_embedder
from na_ssl_hf.hub.front_end import TwoChannelFrontEnd
from na_ssl_hf.hub.layer_choice import LayerChoice, joined
from na_ssl_hf.hub.threshold import Calibration

RATE = 16000


def make_clips(number: int, seed: int = 0, num_samples: int = 8000) -> list[np.ndarray]:
    return list(0.1 * np.random.default_rng(seed).standard_normal((number, 2, num_samples)).astype(np.float32))


def make_scorer(model) -> AnomalyScorer:
    return AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor(model.config.frontend), device="cpu")


def features_of(model, frames: int = 70, batch: int = 2) -> torch.Tensor:
    shape = batch, 2, frames, TwoChannelFrontEnd.of(model.config).num_mel_bins
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scorer():
    return make_scorer(tiny_model("beats", num_hidden_layers=3, initializer_range=0.3))


@pytest.mark.parametrize("with_mask", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("model_type", TRANSFORMERS)
@torch.no_grad()
def test_layers_are_those_of_the_hidden_states(model_type, with_mask):
    model = tiny_model(model_type)
    fbank = features_of(model)
    mask = torch.ones(fbank.shape[0], fbank.shape[2])
    mask[1, 40:] = 0
    options = {"attention_mask": mask} if with_mask else {}
    outputs = model(fbank, output_hidden_states=True, **options)
    grids = model.layer_grids(fbank, [2, None, 0, 1], **options)
    assert model.num_layers == 2
    for grid, layer in zip(grids, (2, None, 0, 1), strict=True):
        states = outputs.last_hidden_state if layer is None else outputs.hidden_states[layer]
        torch.testing.assert_close(grid, model.time_frequency_grid(states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", TRANSFORMERS)
@torch.no_grad()
def test_no_layer_is_run_behind_the_last_one_asked_for(model_type):
    model = tiny_model(model_type)
    fbank, run = features_of(model), []
    for number, layer in enumerate(model.layers, start=1):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    for layers, expected in (([0], []), ([1], [1]), ([1, 0], [1]), ([None], [1, 2])):
        run.clear()
        model.layer_grids(fbank, layers)
        assert run == expected


@pytest.mark.parametrize("layer", [3, -1, True, 1.0, "1"])
@pytest.mark.parametrize("model_type", TRANSFORMERS)
def test_a_layer_that_does_not_exist_is_refused_with_the_range(model_type, layer):
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match=r"`layers` must be None or in 0 \.\.\. 2, got"):
        model.layer_grids(features_of(model), [layer])


@pytest.mark.parametrize("model_type", TRANSFORMERS)
@torch.no_grad()
def test_least_and_longest_frames_are_what_the_model_takes(model_type):
    model = tiny_model(model_type)
    (grid,) = model.layer_grids(features_of(model, model.least_frames), [None])
    assert grid.shape[1] == 1
    with pytest.raises(ValueError, match="frames"):
        model.layer_grids(features_of(model, model.least_frames - 1), [None])
    if model.longest_frames is not None:
        model.layer_grids(features_of(model, model.longest_frames, 1), [0])
        with pytest.raises(ValueError, match="at most"):
            model.layer_grids(features_of(model, model.longest_frames + model.least_frames, 1), [0])


def test_joined_vectors_count_every_layer_equally_whatever_its_scale_and_size():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(4, 8, 16, generator=generator), 100 + 50 * torch.randn(4, 8, 64, generator=generator)
    vectors = joined([first, second])
    assert vectors.shape == (4, 8, 80)
    parts = vectors.split([16, 64], dim=-1)
    for part, vector in zip(parts, (first, second), strict=True):
        torch.testing.assert_close(part.mean(-1), torch.zeros(4, 8), rtol=0, atol=1e-6)
        torch.testing.assert_close(part.square().sum(-1), torch.full((4, 8), 0.5))
        standardised = (vector - vector.mean(-1, keepdim=True)) / vector.std(-1, correction=0, keepdim=True)
        torch.testing.assert_close(part, standardised / (2 * part.shape[-1]) ** 0.5, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined([7 * first + 3, second]), vectors, rtol=1e-4, atol=1e-5)
    assert not joined([torch.full((1, 2, 4), 0.1), torch.zeros(1, 2, 4)]).any()


def test_one_layer_is_left_as_it_is_and_several_are_joined(scorer):
    clips = make_clips(2)
    of_layer = [scorer.embed(clips, layer=layer, pooling="mean") for layer in (1, 3)]
    fbank = scorer.feature_extractor.fbank(torch.as_tensor(np.stack(clips)))
    with torch.no_grad():
        (grid,) = scorer.model.layer_grids(fbank, [1])
    torch.testing.assert_close(of_layer[0], grid.mean(1), rtol=1e-4, atol=1e-5)
    both = scorer.embed(clips, layers=[1, 3], pooling="mean")
    torch.testing.assert_close(both, joined(of_layer), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scorer.embed(clips, layers=[3], pooling="mean"), of_layer[1])
    torch.testing.assert_close(scorer.embed(clips, pooling="mean"), of_layer[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [(1,), (1, 2)], ids=["one layer", "two layers"])
def test_a_saved_scorer_scores_by_the_layers_it_was_fitted_with(scorer, layers, tmp_path):
    normal, clips = make_clips(20), make_clips(3, seed=1)
    fitted = make_scorer(scorer.model).fit(normal, layers=list(layers))
    assert fitted.memory_bank.calibration.layers == layers
    scores = [result["score"] for result in fitted(clips)]
    other = make_scorer(scorer.model).fit(normal)
    assert np.abs(np.subtract(scores, [result["score"] for result in other(clips)])).max() > 1e-4
    fitted.save_pretrained(tmp_path)
    loaded = pipeline("anomaly-scoring", model=str(tmp_path), device="cpu")
    assert loaded.memory_bank.calibration.layers == layers
    np.testing.assert_allclose([result["score"] for result in loaded(clips)], scores, rtol=1e-5, atol=1e-6)
    # What is not said is as fitted.
    torch.testing.assert_close(loaded.embed(clips), loaded.embed(clips, layers=layers, pooling="mean"))


@pytest.mark.parametrize("layers", [(1,), (1, 2)], ids=["one layer", "two layers"])
def test_the_anomaly_map_is_of_the_fitted_layers(scorer, layers):
    fitted = make_scorer(scorer.model).fit(make_clips(20), layers=list(layers))
    (clip,) = make_clips(1, seed=1)
    with torch.no_grad():
        grids = scorer.model.layer_grids(scorer.feature_extractor.fbank(torch.as_tensor(clip[None])), layers)
    tokens = grids[0] if len(grids) == 1 else joined(grids)
    expected = torch.as_tensor(fitted.memory_bank.band_scores(tokens[0]))
    torch.testing.assert_close(fitted.anomaly_map(clip), expected, rtol=1e-4, atol=1e-5)


def test_layers_with_different_grids_are_refused_and_named():
    model = tiny_model("efficientat")
    extractor = TwoChannelFeatureExtractor("efficientat")
    scorer = AnomalyScorer(model=model, feature_extractor=extractor, device="cpu")
    clips = make_clips(3, num_samples=16000)
    with pytest.raises(ValueError, match=r"equal grids .*, got \d+ x 16 in layer 5, \d+ x 4 in layer 16\."):
        scorer.fit(clips, layers=[5, 16], threshold_method="quantile")
    scorer.fit(clips, layers=[7, 8], threshold_method="quantile")
    assert scorer(clips[0])["score"] >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 4}, r"`layers` must be in 0 \.\.\. 3 for this BeatsModel, got 4\."),
        ({"layers": [1, 9]}, r"`layers` must be in 0 \.\.\. 3 for this BeatsModel, got 9\."),
        ({"layer": -1}, "`layer` must be a whole number of at least 0, got -1"),
        ({"layer": True}, "`layer` must be a whole number"),
        ({"layer": "last"}, "`layer` must be a whole number of at least 0, got 'last'"),
        ({"layers": []}, r"`layers` must be a list of at least one number of a layer, or None, got \[\]"),
        ({"layers": "12"}, "`layers` must be a list"),
        ({"layers": [1, 1]}, r"`layers` must name every layer once, got \[1, 1\]"),
        ({"layers": [1, None]}, "`layers` must hold whole numbers of at least 0, got None"),
        ({"layer": 1, "layers": [2]}, "`layer` must be None where `layers` is given"),
    ],
)
def test_wrong_layers_are_refused_before_any_work(scorer, arguments, message):
    def recordings():
        raise AssertionError("no recording may be asked for")
        yield

    with pytest.raises(ValueError, match=message):
        scorer.fit(recordings(), **arguments)
    with pytest.raises(ValueError, match=message):
        scorer.embed(make_clips(1), pooling="mean", **arguments)


@pytest.mark.parametrize("layers", ["8", {"8": 1}, [], [-1], [1.5], [True], [2, 2], 3])
def test_a_calibration_with_other_layers_is_refused_by_name(layers):
    values = json.loads(json.dumps(some_calibration(layers=(8, 10)).to_dict()))
    assert Calibration.from_dict(values).layers == (8, 10)
    assert Calibration.from_dict({name: value for name, value in values.items() if name != "layers"}).layers is None
    with pytest.raises(ValueError, match="`layers` must"):
        Calibration.from_dict(values | {"layers": layers})


def test_a_memory_of_a_layer_that_the_model_lacks_is_refused(scorer):
    fitted = make_scorer(scorer.model).fit(make_clips(20), layers=[1])
    bank = fitted.memory_bank
    assert isinstance(bank, MemoryBank)
    bank.calibration = Calibration.from_dict(bank.calibration.to_dict() | {"layers": [7]})
    with pytest.raises(ValueError, match=r"in 0 \.\.\. 3 for this BeatsModel, got 7"):
        fitted(make_clips(1))


def test_embeddings_of_other_layers_have_other_keys(scorer):
    embedders = [
        model_embedder("beats", scorer.model, scorer.feature_extractor, layers=layers, device="cpu")
        for layers in (None, [1], [2], [1, 2])
    ]
    assert len({embedder.key for embedder in embedders}) == 4
    with pytest.raises(ValueError, match="got 9"):
        model_embedder("beats", scorer.model, scorer.feature_extractor, layers=[9], device="cpu")


def test_the_choice_is_made_of_one_or_several():
    assert LayerChoice.of().layers is None
    assert LayerChoice.of(3).layers == LayerChoice.of(layers=[3]).layers == (3,)
    assert LayerChoice.of(layers=[8, 10]).layers == (8, 10)


def test_a_scorer_of_efficientat_compares_a_layer_in_the_middle_unless_another_is_asked_for():
    model = tiny_model("efficientat")
    extractor = TwoChannelFeatureExtractor("efficientat")
    scorer = AnomalyScorer(model=model, feature_extractor=extractor)
    recordings = list(0.1 * torch.randn(4, 2, 16000, generator=torch.Generator().manual_seed(0)))
    middle = scorer.embed(recordings, pooling="mean", layer=model.config.scoring_layer)
    assert torch.equal(scorer.embed(recordings, pooling="mean"), middle)
    assert not torch.equal(scorer.embed(recordings, pooling="max"), scorer.embed(recordings, pooling="max", layer=16))
    scorer.fit(recordings, progress=None)
    assert scorer.memory_bank.calibration.layers == (7,)
    assert torch.equal(scorer.embed(recordings), middle)
    scorer.fit(recordings, layer=16, progress=None)
    assert scorer.memory_bank.calibration.layers == (16,)
