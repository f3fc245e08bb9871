"""The pipeline as a user meets it: every kind of input, the same scores each way, and named errors."""

import copy
import io
import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import torch
from tiny_models import tiny_config, tiny_model
from transformers import AutoFeatureExtractor, AutoModel, BertConfig, BertModel, pipeline

from na_ssl_hf import AnomalyScorer, BeatsModel, MemoryBank, NABeatsModel, TwoChannelFeatureExtractor
from na_ssl_hf.checkpoints import shipped_checkpoint
from na_ssl_hf.hub import threshold
from na_ssl_hf.hub.model_weights import model_fingerprint

RATE = 16000
LENGTH = 8000  # half a second keeps the many passes through the model short
NUM_NORMAL = 20


def make_clip(seed: int, num_samples: int = LENGTH, anomalous: bool = False) -> np.ndarray:
    """A hum with its own noise at the close microphone and a room at the far one, `(2, N)` float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(num_samples) / RATE
    hum = sum(0.05 * np.sin(2 * np.pi * 120 * k * time + rng.uniform(0, 6)) for k in range(1, 6))
    noise = rng.standard_normal((2, num_samples)) * np.array([[0.01], [0.03]])
    clip = noise + np.array([[1.0], [0.2]]) * hum
    if anomalous:
        clip[0] += 0.3 * rng.standard_normal(num_samples)
    return clip.astype(np.float32)


def scores_of(results) -> list[float]:
    return [result["score"] for result in results]


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(shipped_checkpoint("na-beats-tiny"))


@pytest.fixture(scope="module")
def normal():
    return [make_clip(seed) for seed in range(NUM_NORMAL)]


@pytest.fixture(scope="module")
def clips():
    """Three recordings of the normal kind and three anomalous ones."""
    return [make_clip(100 + i, anomalous=i >= 3) for i in range(6)]


@pytest.fixture(scope="module")
def fitted(model, normal):
    """A fitted scorer that no test changes; `refittable` is for those that do."""
    extractor = AutoFeatureExtractor.from_pretrained(shipped_checkpoint("na-beats-tiny"))
    return AnomalyScorer(model=model, feature_extractor=extractor).fit(normal, batch_size=8)


@pytest.fixture
def refittable(fitted):
    scorer = AnomalyScorer(model=fitted.model, feature_extractor=copy.deepcopy(fitted.feature_extractor))
    scorer.memory_bank = copy.deepcopy(fitted.memory_bank)
    return scorer


@pytest.fixture(scope="module")
def expected(fitted, clips):
    return scores_of(fitted(clip) for clip in clips)


@pytest.fixture(scope="module")
def files(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"clip_{index}.wav" for index in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip.T, RATE, subtype="FLOAT")
    return paths


# Results


def test_result_holds_score_decision_threshold_p_value_and_bands(fitted, clips):
    result = fitted(clips[-1])
    assert list(result) == ["score", "is_anomaly", "threshold", "p_value", "band_scores"]
    assert isinstance(result["score"], float)
    assert type(result["is_anomaly"]) is bool
    assert result["threshold"] == fitted.threshold
    assert len(result["band_scores"]) == 8
    assert result["score"] == pytest.approx(np.mean(result["band_scores"]), abs=1e-6)
    json.dumps(result)


def test_anomalous_recordings_score_higher_and_alarm(fitted, clips, expected):
    assert max(expected[:3]) < min(expected[3:])
    assert all(result["is_anomaly"] for result in fitted(clips[3:]))


def test_p_value_counts_self_scores_and_agrees_with_the_decision(fitted, clips, normal):
    self_scores = fitted.memory_bank.self_scores().numpy()
    for result in fitted([*clips, *normal[:4]]):
        p_value = (1 + (self_scores >= result["score"]).sum()) / (1 + NUM_NORMAL)
        assert result["p_value"] == pytest.approx(p_value)
        assert result["is_anomaly"] == (result["p_value"] <= 0.05)


def test_single_gives_dict_list_gives_list_and_generator_gives_lazy_iterator(fitted, clips):
    assert isinstance(fitted(clips[0]), dict)
    assert [type(result) for result in fitted(clips[:1])] == [dict]
    assert fitted([]) == []
    taken = []

    def stream():
        for clip in clips:
            taken.append(clip)
            yield clip

    results = fitted(stream())
    assert isinstance(results, Iterator)
    assert len(taken) == 0
    next(results)
    assert len(taken) == 1
    next(fitted(stream(), batch_size=3))
    assert len(taken) == 4


# Inputs


def test_every_form_of_a_recording_gives_the_same_score(fitted, clips, files, expected):
    clip, file = clips[3], files[3]
    forms = {
        "str": str(file),
        "path": file,
        "bytes": file.read_bytes(),
        "array": clip,
        "float64": clip.astype(np.float64),
        "tensor": torch.from_numpy(clip),
        "dict array": {"array": clip, "sampling_rate": RATE},
        "dict path": {"path": str(file)},
        "undecoded bytes": {"bytes": file.read_bytes(), "path": None},
        "undecoded path": {"bytes": None, "path": str(file)},
        "row": {"audio": {"bytes": None, "path": str(file)}, "label": 1},
    }
    for name, form in forms.items():
        assert fitted(form)["score"] == pytest.approx(expected[3], abs=1e-6), name
    mixed = scores_of(fitted(list(forms.values()), batch_size=len(forms)))
    np.testing.assert_allclose(mixed, expected[3], atol=1e-5)


@pytest.mark.parametrize(("suffix", "subtype", "atol"), [("wav", "PCM_16", 1e-3), ("flac", "PCM_24", 1e-4)])
def test_sound_files_give_the_scores_of_their_samples(fitted, clips, tmp_path, suffix, subtype, atol):
    clip = 0.5 * clips[4]
    assert np.abs(clip).max() < 1 < np.abs(clips[4]).max()  # where files of integers saturate
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, clip.T, RATE, subtype=subtype)
    rounded = soundfile.read(path, dtype="float32")[0].T
    assert fitted(path)["score"] == pytest.approx(fitted(rounded)["score"], abs=1e-6)
    assert fitted(path)["score"] == pytest.approx(fitted(clip)["score"], abs=atol)


def test_ogg_files_are_read(fitted, clips, tmp_path):
    soundfile.write(tmp_path / "clip.ogg", clips[4].T, RATE)
    assert fitted(tmp_path / "clip.ogg")["is_anomaly"]


def test_pcm_arrays_give_the_score_of_their_fractions(fitted, clips):
    pcm = np.round(clips[0] * 2**15).astype(np.int16)
    fractions = pcm.astype(np.float32) / 2**15
    assert fitted(pcm)["score"] == fitted(fractions)["score"]
    assert fitted({"array": pcm, "sampling_rate": RATE})["score"] == fitted(fractions)["score"]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_lists_generators_and_batches_score_like_one_by_one(fitted, clips, files, expected, batch_size):
    as_array = np.stack(clips)  # (B, 2, N)
    for several in (clips, files, iter(files), (clip for clip in clips), as_array, torch.from_numpy(as_array)):
        np.testing.assert_allclose(scores_of(fitted(several, batch_size=batch_size)), expected, atol=1e-5, rtol=0)


def test_mixed_lengths_in_one_batch_score_like_one_by_one_in_order(fitted):
    lengths = [8000, 12000, 8000, 4000, 12000, 2800]
    mixed = [make_clip(i, length, anomalous=i % 2 == 0) for i, length in enumerate(lengths)]
    alone = [fitted(clip) for clip in mixed]
    together = fitted(mixed, batch_size=6)
    np.testing.assert_allclose(scores_of(together), scores_of(alone), atol=1e-5, rtol=0)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one["band_scores"], other["band_scores"], atol=1e-5, rtol=0)


def test_pipeline_batch_size_is_the_default_of_calls(fitted, clips, expected):
    scorer = AnomalyScorer(model=fitted.model, feature_extractor=fitted.feature_extractor, batch_size=3)
    scorer.memory_bank = fitted.memory_bank
    np.testing.assert_allclose(scores_of(scorer(clips)), expected, atol=1e-5, rtol=0)


def test_datasets_columns_rows_and_streams_give_the_same_scores(fitted, files, expected):
    datasets = pytest.importorskip("datasets")
    paths = [str(file) for file in files]
    data = datasets.Dataset.from_dict({"audio": paths, "label": list(range(6))})
    data = data.cast_column("audio", datasets.Audio(decode=False))
    held = [{"audio": {"bytes": file.read_bytes(), "path": file.name}} for file in files]
    in_memory = datasets.Dataset.from_list(held).cast_column("audio", datasets.Audio(decode=False))
    for several in (data, data["audio"], data.select_columns("audio"), in_memory, in_memory["audio"]):
        results = fitted(several, batch_size=4)
        assert isinstance(results, list)
        np.testing.assert_allclose(scores_of(results), expected, atol=1e-5, rtol=0)
    streamed = fitted(data.to_iterable_dataset())
    assert isinstance(streamed, Iterator)
    np.testing.assert_allclose(scores_of(streamed), expected, atol=1e-5, rtol=0)
    assert fitted(data[2])["score"] == pytest.approx(expected[2], abs=1e-6)
    assert fitted(data[2]["audio"])["score"] == pytest.approx(expected[2], abs=1e-6)


def test_open_files_arrays_of_paths_and_parts_of_data_sets_are_inputs(fitted, files, expected, tmp_path):
    datasets = pytest.importorskip("datasets")
    stream = io.BytesIO(files[3].read_bytes())
    assert fitted(stream)["score"] == pytest.approx(expected[3], abs=1e-6)
    with open(files[2], "rb") as opened:
        assert fitted(opened)["score"] == pytest.approx(expected[2], abs=1e-6)
    for paths in (np.array([str(file) for file in files]), np.array(files, dtype=object)):
        np.testing.assert_allclose(scores_of(fitted(paths, batch_size=6)), expected, atol=1e-5, rtol=0)
    assert fitted(np.array(str(files[1])))["score"] == pytest.approx(expected[1], abs=1e-6)
    data = datasets.Dataset.from_dict({"audio": [str(file) for file in files], "label": list(range(6))})
    data = data.cast_column("audio", datasets.Audio(decode=False))
    np.testing.assert_allclose(scores_of(fitted(data[:4])), expected[:4], atol=1e-5, rtol=0)
    mapped = data.map(lambda row: {"score": fitted(row)["score"]})
    np.testing.assert_allclose(mapped["score"], expected, atol=1e-5, rtol=0)
    (tmp_path / "link.wav").symlink_to(files[0])
    assert fitted(tmp_path / "link.wav")["score"] == pytest.approx(expected[0], abs=1e-6)
    with pytest.raises(ValueError, match="binary mode"):
        fitted(io.StringIO("text"))


def test_fit_accepts_files_datasets_and_streams(fitted, refittable, normal, tmp_path):
    paths = [tmp_path / f"{index:02}.wav" for index in range(NUM_NORMAL)]
    for path, clip in zip(paths, normal, strict=True):
        soundfile.write(path, clip.T, RATE, subtype="FLOAT")
    for several in (paths, iter(paths), np.stack(normal)):
        refittable.fit(several, batch_size=10)
        assert refittable.threshold == pytest.approx(fitted.threshold, abs=1e-5)


def test_channel_order_matters(fitted, clips, expected):
    assert abs(fitted(clips[0][::-1].copy())["score"] - expected[0]) > 1e-3


def test_resampling_extractor_accepts_other_rates_in_one_batch(refittable, clips):
    refittable.feature_extractor.resample = True
    wide = {"array": np.repeat(clips[0], 2, axis=1), "sampling_rate": 2 * RATE}
    mixed = refittable([clips[0], wide, {"array": clips[1], "sampling_rate": RATE}], batch_size=3)
    assert len(mixed) == 3
    assert refittable(wide)["score"] == pytest.approx(mixed[1]["score"], abs=1e-5)


# Bad input

BAD_SAMPLES = {
    "mono": (np.zeros((1, RATE), np.float32), "mono"),
    "three channels": (np.zeros((3, RATE), np.float32), "3 channels"),
    "not a number": (np.full((2, LENGTH), np.nan, np.float32), "finite.* has 16000 NaN"),
    "too short": (np.zeros((2, 2799), np.float32), "at least 2800 samples"),
    "empty": (np.zeros((2, 0), np.float32), "empty"),
}


@pytest.mark.parametrize("kind", BAD_SAMPLES)
def test_bad_samples_in_a_file_are_named_with_the_file(fitted, clips, files, tmp_path, kind):
    samples, message = BAD_SAMPLES[kind]
    bad = tmp_path / "bad recording.wav"
    soundfile.write(bad, samples.T, RATE, subtype="FLOAT")
    for recordings in (bad, [bad], [files[0], bad, files[1]], iter([bad]), {"bytes": None, "path": str(bad)}):
        with pytest.raises(ValueError, match=rf"bad recording\.wav: .*{message}") as caught:
            list(fitted(recordings, batch_size=3))
        assert "clip_" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        fitted(samples)
    with pytest.raises(ValueError, match=message):
        fitted.anomaly_map(samples)
    with pytest.raises(ValueError, match=r"bad recording\.wav"):
        fitted.embed([bad])


def test_only_the_offending_recording_of_a_batch_is_named(fitted, clips, tmp_path):
    paths = [tmp_path / f"clip_{index}.wav" for index in range(4)]
    for index, path in enumerate(paths):
        samples = clips[index].copy()
        samples[1, 7] = np.nan if index == 2 else samples[1, 7]
        soundfile.write(path, samples.T, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"clip_2\.wav: .* It has 1 NaN") as caught:
        fitted(paths, batch_size=4)
    assert "clip_0" not in str(caught.value)


def test_wrong_rate_is_named_with_the_file_and_both_rates(fitted, tmp_path):
    path = tmp_path / "slow.wav"
    soundfile.write(path, np.zeros((8000, 2)), 8000)
    with pytest.raises(ValueError, match=r"slow\.wav: .*16000.*8000"):
        fitted(path)
    with pytest.raises(ValueError, match=r"16000.*44100"):
        fitted({"array": make_clip(0), "sampling_rate": 44100})


def test_unreadable_files_are_os_errors_that_name_the_file(fitted, files, tmp_path):
    whole = files[0].read_bytes()
    for name, content in {"text.wav": b"no sound", "half.wav": whole[: len(whole) // 2], "nothing.flac": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=name):
            fitted([files[0], tmp_path / name])
    with pytest.raises(FileNotFoundError, match="missing"):
        fitted(tmp_path / "missing.wav")


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        ((np.zeros((2, RATE)), RATE), "tuple"),
        (None, "NoneType"),
        (5, "int"),
        ([None], "NoneType"),
        (np.zeros(RATE), "mono"),
        (np.zeros((2, 2, 2, RATE)), r"\(2, 2, 2, 16000\)"),
        ({"array": np.zeros((2, RATE))}, "sampling_rate"),
        ({"train": []}, r"\['train'\]"),
    ],
    ids=["tuple", "none", "number", "none in list", "one-dimensional", "four-dimensional", "no rate", "foreign dict"],
)
def test_what_is_no_recording_is_a_value_error(fitted, recordings, message):
    with pytest.raises(ValueError, match=message):
        fitted(recordings)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_batch_size_is_checked_at_once_even_for_lazy_input(fitted, normal, refittable, batch_size):
    for call in (fitted, fitted.embed, refittable.fit):
        with pytest.raises(ValueError, match=r"`batch_size`.*got"):
            call(iter(normal), batch_size=batch_size)


def test_unknown_arguments_are_refused(fitted, clips):
    with pytest.raises(ValueError, match="top_k"):
        fitted(clips, top_k=3)
    with pytest.raises(ValueError, match="top_k"):
        AnomalyScorer(model=fitted.model, feature_extractor=fitted.feature_extractor, top_k=3)


def test_unfitted_scorer_says_so(model, clips):
    scorer = pipeline("anomaly-scoring", model=str(shipped_checkpoint("na-beats-tiny")))
    for call in (scorer, scorer.embed, scorer.anomaly_map, lambda _: scorer.threshold, lambda _: scorer.calibrate()):
        with pytest.raises(ValueError, match="not fitted yet: call `fit`"):
            call(clips[0])


def test_fit_refuses_nothing_and_a_single_recording(refittable, normal, files):
    for single in (normal[0], str(files[0]), {"array": normal[0], "sampling_rate": RATE}):
        with pytest.raises(ValueError, match="several normal recordings"):
            refittable.fit(single)
    for none in ([], iter([])):
        with pytest.raises(ValueError, match="at least one"):
            refittable.fit(none)


def test_model_and_extractor_are_checked(fitted):
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8))
    with pytest.raises(ValueError, match=r"`model` must be .* got BertModel"):
        AnomalyScorer(model=bert, feature_extractor=fitted.feature_extractor)
    with pytest.raises(ValueError, match="`feature_extractor`"):
        AnomalyScorer(model=fitted.model)
    with pytest.raises(ValueError, match="must be of the model's frontend 'beats', got one of 'eat'"):
        AnomalyScorer(model=fitted.model, feature_extractor=TwoChannelFeatureExtractor(frontend="eat"))


# Threshold


def test_too_few_recordings_for_an_asked_rate_leave_the_scorer_as_it_was(refittable, normal, clips, expected):
    bank, threshold = refittable.memory_bank, refittable.threshold
    with pytest.raises(ValueError, match=r"at least 99 .*got 20"):
        refittable.fit(normal, false_alarm_rate=0.01, batch_size=10)
    with pytest.raises(ValueError, match="at least 99"):
        refittable.calibrate(false_alarm_rate=0.01)
    with pytest.raises(ValueError, match="at least 99"):
        refittable.fit(normal[:19], false_alarm_rate=0.01, memory_bank=bank, batch_size=10)
    with pytest.raises(ValueError, match="median"):
        refittable.fit(normal[:5], threshold_method="median", batch_size=5)
    assert refittable.memory_bank is bank
    assert refittable.threshold == threshold
    np.testing.assert_allclose(scores_of(refittable(clips)), expected, atol=1e-5)


def test_default_with_few_recordings_uses_the_least_rate_and_warns(refittable, normal, monkeypatch):
    messages = []
    monkeypatch.setattr(threshold.logger, "warning", messages.append)
    refittable.fit(normal[:9], batch_size=9)
    assert "9 normal recordings" in messages[0]
    assert "0.100" in messages[0]
    assert "19 are needed" in messages[0]
    assert refittable.memory_bank.calibration.false_alarm_rate == pytest.approx(0.1)
    assert refittable.threshold == pytest.approx(refittable.memory_bank.self_scores().max().item())
    refittable.fit(normal[:19], batch_size=10)
    assert len(messages) == 1
    assert refittable.memory_bank.calibration.false_alarm_rate == 0.05


def test_threshold_methods(refittable):
    self_scores = refittable.memory_bank.self_scores().double().numpy()
    quantile = refittable.calibrate("quantile", false_alarm_rate=0.25)
    assert quantile == pytest.approx(np.quantile(self_scores, 0.75))
    assert refittable.threshold == quantile
    gamma = refittable.calibrate("gamma")
    assert np.median(self_scores) < gamma < 2 * self_scores.max() - self_scores.min()
    conformal = refittable.calibrate("conformal", false_alarm_rate=0.1)
    assert conformal in self_scores.astype(np.float32)
    assert refittable.memory_bank.calibration.threshold_method == "conformal"


# What a memory belongs to


def test_memory_of_another_model_is_refused_until_refitted(fitted, normal, clips):
    other = tiny_model("na-beats", seed=3)
    scorer = AnomalyScorer(model=other, feature_extractor=fitted.feature_extractor)
    scorer.memory_bank = fitted.memory_bank
    for call in (scorer, scorer.embed, scorer.anomaly_map):
        with pytest.raises(ValueError, match=r"another model.*Call `fit` again"):
            call(clips[0])
    scorer.fit(normal[:10], batch_size=10)
    assert scorer(clips[0])["band_scores"]
    scorer.model = fitted.model
    with pytest.raises(ValueError, match="another model"):
        scorer(clips[0])


@pytest.mark.parametrize(("setting", "value"), [("far_cancellation", "least_squares"), ("frontend", "eat")])
def test_memory_of_another_extractor_setting_is_refused_until_refitted(refittable, normal, clips, setting, value):
    refittable(clips[0])  # a scorer that has scored before must notice as well
    setattr(refittable.feature_extractor, setting, value)
    with pytest.raises(ValueError, match=rf"another extractor: .*{value}.*Call `fit` again"):
        refittable(clips[0])
    refittable.fit(normal[:10], batch_size=10)
    refittable(clips[0])


def test_foreign_banks_are_refused(refittable, clips):
    refittable.memory_bank = MemoryBank().fit(torch.randn(30, 8, 128))
    with pytest.raises(ValueError, match=r"another \w+: it holds None"):
        refittable(clips[0])


def test_half_precision_has_the_same_fingerprint_and_close_scores(fitted, clips, expected, tmp_path):
    fitted.save_pretrained(tmp_path)
    half = pipeline("anomaly-scoring", model=str(tmp_path), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    assert model_fingerprint(half.model) == model_fingerprint(fitted.model)
    spread = max(expected) - min(expected)
    np.testing.assert_allclose(scores_of(half(clips)), expected, atol=0.05 * spread)
    assert [r["is_anomaly"] for r in half(clips[3:])] == [True] * 3


def test_fingerprint_sees_every_weight(model):
    changed = copy.deepcopy(model)
    name, parameter = list(changed.named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[-1] += 1.0
    assert model_fingerprint(changed) != model_fingerprint(model), name


# Settings and other models


@pytest.mark.parametrize("settings", [{"pooling": "rdp", "gamma": 8.0}, {"pooling": "gem", "p": 2.0}])
def test_pooling_and_bank_settings_survive_saving(refittable, normal, clips, tmp_path, settings):
    bank = MemoryBank(num_neighbors=2, rescaling="ratio", band_aggregation="max")
    refittable.fit(normal, memory_bank=bank, threshold_method="quantile", batch_size=10, **settings)
    assert not hasattr(bank, "memory_")
    assert refittable.memory_bank.num_neighbors == 2
    scores = refittable(clips)
    assert scores[0]["score"] == pytest.approx(max(scores[0]["band_scores"]))
    refittable.save_pretrained(tmp_path)
    np.testing.assert_allclose(
        scores_of(pipeline("anomaly-scoring", model=str(tmp_path))(clips)), scores_of(scores), atol=1e-6
    )


def test_memory_is_of_plain_distances_unless_asked(refittable, normal, clips):
    scores = scores_of(refittable.fit(normal, batch_size=10)(clips))
    assert scores == scores_of(refittable.fit(normal, memory_bank=MemoryBank(), batch_size=10)(clips))
    assert scores != scores_of(refittable.fit(normal, memory_bank=MemoryBank(rescaling="variance_min"))(clips))


def test_domains_reach_the_bank(refittable, normal):
    domains = ["source"] * 14 + ["target"] * 6
    refittable.fit(normal, domains=iter(domains), memory_bank=MemoryBank(smote_ratio=0.5), batch_size=10)
    assert refittable.memory_bank.is_target_.sum() == 7
    with pytest.raises(ValueError, match="domains"):
        refittable.fit(normal[:4], domains=["source"] * 3, memory_bank=MemoryBank(smote_ratio=0.5), batch_size=4)


@pytest.mark.parametrize(
    ("model_type", "frontend"),
    [("na-eat", "eat"), ("beats", "beats"), ("eat", "eat"), ("dasheng", "dasheng"), ("na-dasheng", "dasheng")],
)
def test_every_model_type_fits_scores_and_reloads(normal, clips, tmp_path, model_type, frontend):
    extractor = TwoChannelFeatureExtractor(frontend=frontend)
    scorer = AnomalyScorer(model=tiny_model(model_type), feature_extractor=extractor)
    scorer.fit(normal, batch_size=10)
    scores = scores_of(scorer(clips, batch_size=6))
    np.testing.assert_allclose(scores_of(scorer(iter(clips))), scores, atol=1e-5, rtol=0)
    scorer.save_pretrained(tmp_path)
    assert scores_of(pipeline("anomaly-scoring", model=str(tmp_path))(clips, batch_size=6)) == scores


def test_model_and_extractor_objects_make_a_pipeline(fitted, normal, clips):
    scorer = pipeline("anomaly-scoring", model=fitted.model, feature_extractor=fitted.feature_extractor)
    assert type(scorer) is AnomalyScorer
    assert scorer.fit(normal, batch_size=10) is scorer
    assert scores_of(scorer(clips, batch_size=6)) == scores_of(fitted(clips, batch_size=6))


def test_scores_are_the_same_for_a_model_in_train_mode(normal, clips):
    scorer = AnomalyScorer(model=tiny_model("beats"), feature_extractor=TwoChannelFeatureExtractor())
    scorer.fit(normal[:5], batch_size=5)
    expected = scorer(clips[0])
    scorer.model.train()
    assert scorer(clips[0]) == expected


def test_model_from_a_configuration_needs_no_source(normal):
    model = NABeatsModel(tiny_config("na-beats")).eval()
    assert not model.name_or_path
    AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor()).fit(normal[:5], batch_size=5)


def test_model_whose_directory_is_gone_can_still_be_fitted(normal, tmp_path):
    tiny_model("beats").save_pretrained(tmp_path / "gone")
    model = BeatsModel.from_pretrained(tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    scorer = AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor())
    assert scorer.memory_bank is None
    scorer.fit(normal[:5], batch_size=5)


# Vectors and maps


def test_embed_gives_the_vectors_that_the_memory_compares(fitted, clips, expected):
    vectors = fitted.embed(clips, batch_size=4)
    assert vectors.shape == (6, 8, 128)
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(fitted.memory_bank.score(vectors), expected, atol=1e-5)
    torch.testing.assert_close(fitted.embed(clips[1]), vectors[1:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(fitted.embed(iter(clips)), vectors, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="at least one"):
        fitted.embed([])
    unfitted = AnomalyScorer(model=fitted.model, feature_extractor=fitted.feature_extractor)
    torch.testing.assert_close(unfitted.embed(clips, pooling="mean"), vectors, atol=1e-5, rtol=0)
    assert not torch.allclose(fitted.embed(clips[0], pooling="rdp", gamma=8.0), vectors[:1], atol=1e-3)
    with pytest.raises(ValueError, match="not fitted"):
        unfitted.embed(clips)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 8.0}, "`gamma` must be given with pooling 'rdp' or 'rdp_gem' only, got gamma=8.0"),
        ({"pooling": "gem", "r": 0.5}, "`r` must be given with pooling 'gwrp' only"),
        ({"pooling": "max", "p": 2.0}, "`p` must be given with pooling 'gem' or 'rdp_gem' only"),
        ({"pooling": "median"}, "must be one of"),
    ],
)
def test_no_parameter_of_the_pooling_is_ignored(fitted, refittable, normal, clips, settings, message):
    for call in (fitted.embed, refittable.fit):
        with pytest.raises(ValueError, match=message):
            call(clips, **settings)
    refittable.fit(normal, pooling="rdp", gamma=2.0, batch_size=10)
    changed = refittable.embed(clips[:1], gamma=8.0)
    torch.testing.assert_close(changed, fitted.embed(clips[:1], pooling="rdp", gamma=8.0))
    assert not torch.equal(changed, refittable.embed(clips[:1]))


def test_anomaly_map_has_a_row_per_patch_and_a_column_per_band(fitted, clips):
    assert fitted.anomaly_map(clips[0]).shape == (3, 8)
    assert fitted.anomaly_map(make_clip(0, 48000)).shape == (18, 8)
    with pytest.raises(ValueError, match="list"):
        fitted.anomaly_map(clips)


@pytest.mark.parametrize(("num_samples", "num_rows"), [(8000, 3), (7839, 2), (400, 1), (40000, 15)])
def test_anomaly_map_has_no_row_that_is_partly_padding(num_samples, num_rows):
    # EAT pads 48, 47, 1 and 248 frames of sound to multiples of 32, in rows of 16.
    scorer = AnomalyScorer(model=tiny_model("eat"), feature_extractor=TwoChannelFeatureExtractor("eat"))
    scorer.fit([make_clip(seed, num_samples) for seed in range(3)])
    assert scorer.anomaly_map(make_clip(4, num_samples)).shape == (num_rows, 8)


def test_anomaly_map_of_a_single_patch_is_its_band_scores(fitted):
    short = make_clip(0, 2800)
    result = fitted(short)
    bands = fitted.anomaly_map(short)
    assert bands.shape == (1, 8)
    np.testing.assert_allclose(bands[0], result["band_scores"], atol=1e-5)
    assert bands.mean().item() == pytest.approx(result["score"], abs=1e-5)


def test_anomaly_map_is_higher_where_the_recording_deviates(fitted):
    clip = make_clip(50, 2 * RATE)
    clip[0, RATE:] = make_clip(50, 2 * RATE, anomalous=True)[0, RATE:]
    rows = fitted.anomaly_map(clip).mean(dim=1)  # (T',)
    assert rows[7:].mean() > rows[:5].mean()


# Saving


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "deeper" / "scorer"
    fitted.save_pretrained(directory)
    return directory


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_reloaded_scorer_gives_equal_results_without_trusting_code(fitted, saved, clips):
    reloaded = pipeline("anomaly-scoring", model=str(saved))
    assert type(reloaded) is AnomalyScorer
    assert reloaded(clips, batch_size=4) == fitted(clips, batch_size=4)
    assert type(AutoModel.from_pretrained(saved)) is NABeatsModel
    assert type(AutoFeatureExtractor.from_pretrained(saved)) is TwoChannelFeatureExtractor


def test_reloaded_scorer_can_be_saved_again(saved, clips, tmp_path):
    first = pipeline("anomaly-scoring", model=str(saved))
    first.save_pretrained(tmp_path / "again")
    again = pipeline("anomaly-scoring", model=str(tmp_path / "again"))
    assert scores_of(again(clips)) == scores_of(first(clips))
    assert set(contents(tmp_path / "again")) == set(contents(saved))


def test_saved_directory_holds_only_data_and_code(saved):
    names = set(contents(saved))
    assert {name.rsplit(".", 1)[1] for name in names} == {"safetensors", "json", "py"}
    assert {"config.json", "preprocessor_config.json", "model.safetensors", "memory_bank.safetensors"} <= names
    assert {"pipeline_anomaly_scoring.py", "recording.py", "memory_bank.py", "modeling_noise_aware.py"} <= names
    assert [path.name for path in saved.parent.iterdir()] == ["scorer"]


def test_saving_twice_into_one_directory_replaces_and_keeps_foreign_files(refittable, normal, clips, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    refittable.save_pretrained(tmp_path)
    refittable.fit(normal[:10], pooling="rdp", batch_size=10)
    refittable.save_pretrained(tmp_path)
    assert scores_of(pipeline("anomaly-scoring", model=str(tmp_path))(clips)) == scores_of(refittable(clips))
    assert (tmp_path / "README.md").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    refittable.memory_bank = None
    refittable.save_pretrained(tmp_path)
    assert pipeline("anomaly-scoring", model=str(tmp_path)).memory_bank is None


def test_weights_of_an_earlier_save_in_shards_or_in_one_file_are_removed(fitted, clips, tmp_path):
    other = AnomalyScorer(model=tiny_model("na-beats"), feature_extractor=fitted.feature_extractor)
    for shard_size in ("1GB", "300KB", "1GB"):
        other.save_pretrained(tmp_path, max_shard_size=shard_size)
        fitted.save_pretrained(tmp_path, max_shard_size=shard_size.replace("300KB", "2MB"))
        reloaded = pipeline("anomaly-scoring", model=str(tmp_path))
        assert scores_of(reloaded(clips)) == scores_of(fitted(clips))
    assert [name for name in contents(tmp_path) if name.startswith("model") and "safetensors" in name] == [
        "model.safetensors"
    ]


@pytest.mark.parametrize("failing", ["model", "extractor", "memory"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_while_saving_leaves_the_old_directory_as_it_was(
    refittable, normal, tmp_path, monkeypatch, failing, error
):
    destination = tmp_path / "scorer"
    refittable.save_pretrained(destination)
    before = contents(destination)
    refittable.calibrate("quantile", 0.3)

    def fail(*args, **kwargs):
        raise error("disk full")

    target = {
        "model": type(refittable.model),
        "extractor": type(refittable.feature_extractor),
        "memory": type(refittable.memory_bank),
    }[failing]
    monkeypatch.setattr(target, "save_pretrained", fail)
    with pytest.raises(error):
        refittable.save_pretrained(destination)
    assert contents(destination) == before
    with pytest.raises(error):
        refittable.save_pretrained(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["scorer"]


def test_saving_to_a_file_is_refused(fitted, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="`save_directory` must be a directory, got the file"):
        fitted.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_memory_is_an_os_error_that_names_it(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    memory = tmp_path / "copy" / "memory_bank.safetensors"
    memory.write_bytes(memory.read_bytes()[:500])
    with pytest.raises(OSError, match=r"memory_bank\.safetensors"):
        pipeline("anomaly-scoring", model=str(tmp_path / "copy"))


def test_threshold_follows_a_bank_that_lives(refittable, normal, clips):
    before = refittable.threshold
    refittable.memory_bank.partial_fit(refittable.embed(clips[3:]))
    everything = AnomalyScorer(model=refittable.model, feature_extractor=refittable.feature_extractor)
    everything.fit(normal + clips[3:], progress=None)
    assert refittable.threshold == pytest.approx(everything.threshold, abs=1e-6)
    assert refittable.threshold != pytest.approx(before, abs=1e-4)
    assert refittable(clips[0])["p_value"] == everything(clips[0])["p_value"]
    refittable.memory_bank.rollback(0)
    assert refittable.threshold == before


def test_a_rate_that_cannot_be_had_keeps_the_threshold(refittable):
    before = refittable.threshold
    with pytest.raises(ValueError, match="99"):
        refittable.calibrate(false_alarm_rate=0.01)
    assert refittable.threshold == before
    assert refittable.calibrate("quantile", 0.5) < before
