"""The benchmark of noise-aware models in fixed rooms: one mixture for all systems, paired intervals, and resuming."""

import argparse
import json

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from benchmarks import far_microphone, noise_aware_machines
from benchmarks.noise_aware_machines import CANCELLERS, SYSTEMS, auc, difference, rooms, scores_of_room, tables
from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor


@pytest.fixture
def few_clips(monkeypatch):
    monkeypatch.setattr(far_microphone, "CLIP_S", 1.0)
    monkeypatch.setattr(noise_aware_machines, "NUM_CLIPS", 4)
    monkeypatch.setattr(far_microphone, "NUM_CLIPS", 4)


def scorer(**fields) -> AnomalyScorer:
    model = tiny_model("na-eat", initializer_range=0.3, **fields)
    return AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor("eat"), device="cpu")


def test_layers_that_change_nothing_score_as_their_base(few_clips):
    targets, noises = far_microphone.synthetic_targets("fan", 3, 4), far_microphone.synthetic_noises(3)
    of_room = scores_of_room(scorer(identity=True), targets, noises, 0.5, 0.0, 3)
    for method in CANCELLERS:
        base, both, own = (of_room[f"{system}, {method}"] for system in ("base", "mean of both", "noise-aware"))
        assert base == both == own
        assert {part: len(scores) for part, scores in base.items()} == {"normal": 4, "anomaly": 4}
    assert of_room["base, none"] != of_room["base, spectral_subtraction"]
    assert set(of_room) == {f"{system}, {method}" for system in SYSTEMS[:-1] for method in CANCELLERS}


def room(machine: str, seed: int, coherence: float, better_by: float) -> dict:
    random = np.random.default_rng([seed, len(machine)])
    found = {}
    for system in SYSTEMS:
        shift = better_by * (system == "noise-aware")
        for method in CANCELLERS:
            scores = {"normal": random.standard_normal(8), "anomaly": 1 + shift + random.standard_normal(8)}
            found[f"{system}, {method}"] = {part: values.tolist() for part, values in scores.items()}
    return {"machine": machine, "seed": seed, "coherence": coherence, "snr_db": 0.0, "scores": found}


def test_tables_state_means_paired_differences_and_the_machine_that_loses():
    done = [room(name, seed, share, 5.0) for name in ("fan", "pump") for seed in (1, 2) for share in (0.0, 1.0)]
    text = tables(done)
    assert "| system, canceller | coherence 0 | coherence 1 | 0 dB | all |" in text
    assert f"{100 * np.mean([auc(each['scores']['log-mel, none']) for each in done]):.1f}" in text
    gain, low, high = difference(done, "noise-aware, none", "base, none")
    assert 0 < low < gain < high
    assert difference(done, "base, none", "base, none") == (0.0, 0.0, 0.0)
    (row,) = [line for line in text.splitlines() if line.startswith("| noise-aware, none | base, none |")]
    assert "2 of 2" in row


def test_rooms_that_are_done_are_not_scored_again(few_clips, tmp_path, monkeypatch):
    kept = tmp_path / "scores.jsonl"
    options = argparse.Namespace(
        **{"model": "na-eat-tiny", "machines": None, "noises": None, "coherence": [1.0], "snr": [0.0], "seed": [1]},
        **{"layer": None, "auto": False, "scores": kept},
    )
    asked = []

    def score(of_scorer, targets, *others):
        asked.append(targets)
        return {"log-mel, none": {"normal": [0.0], "anomaly": [1.0]}}

    monkeypatch.setattr(noise_aware_machines, "scores_of_room", score)
    monkeypatch.setattr(far_microphone, "MACHINES", ("fan", "valve"))
    first = list(rooms(options))
    assert [each["machine"] for each in first] == ["fan", "valve"]
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == first
    kept.write_text(lines[0] + "\n", encoding="utf-8")
    assert list(rooms(options)) == first
    assert len(asked) == 3


@torch.no_grad()
def test_the_systems_hear_one_layer_of_base_mean_and_model(few_clips):
    clips = 0.1 * torch.randn(3, 2, 8000, generator=torch.Generator().manual_seed(0))
    of_scorer = scorer()
    by_share = noise_aware_machines.vectors_of_shares(of_scorer, clips, 1, clips)
    recordings = [{"array": clip.numpy(), "sampling_rate": 16000} for clip in clips]
    for system, share in noise_aware_machines.ENCODERS.items():
        expected = of_scorer.embed(recordings, layer=1, na_share=share, pooling="mean", batch_size=3)
        torch.testing.assert_close(by_share[system], expected)
