"""The benchmarks of layers and of the input level: machines from folders, fair splits, and paired numbers."""

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import input_level, layers
from benchmarks.clean_machines import CLIP_S, Machine, machines_in
from na_ssl_hf import AnomalyScorer, TwoChannelFeatureExtractor

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two machines: noise, which hums where it is faulty; one file is twice as long as a clip."""
    folder = tmp_path_factory.mktemp("machines")
    rng = np.random.default_rng(0)
    for machine in ("pump", "saw"):
        for kind in ("normal", "anomaly"):
            (folder / machine / kind).mkdir(parents=True)
            for index in range(20 if kind == "normal" else 3):
                seconds = 2 * CLIP_S if index == 0 and kind == "normal" else 1.0
                time = np.arange(int(seconds * RATE)) / RATE
                hum = 0.2 * np.sin(2 * np.pi * 440 * time) * (kind == "anomaly")
                sound = hum + 0.05 * rng.standard_normal(len(time))
                soundfile.write(folder / machine / kind / f"{index:02d}.flac", sound, RATE)
    return folder


@pytest.fixture(scope="module")
def machines(folder):
    return machines_in(folder)


@pytest.fixture(scope="module")
def scorer():
    from tiny_models import tiny_model

    model = tiny_model("beats", initializer_range=0.3)
    return AnomalyScorer(model=model, feature_extractor=TwoChannelFeatureExtractor("beats"), device="cpu")


def test_clips_of_one_file_are_never_on_both_sides(machines):
    assert [machine.name for machine in machines] == ["pump", "saw"]
    machine = machines[0]
    assert len(machine.normal) == 21
    assert len(machine.normal[0]) == CLIP_S * RATE
    assert machine.normal_files[:3] == (0, 0, 1)
    for remembered, tested in machine.splits(5, seed=0):
        assert sorted([*remembered, *tested]) == list(range(21))
        assert not {machine.normal_files[clip] for clip in remembered} & {machine.normal_files[clip] for clip in tested}


def test_a_folder_without_machines_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--machines must be a folder of <machine>/normal"):
        machines_in(tmp_path)


def test_every_layer_has_aucs_and_a_loud_fault_is_found(machines, scorer):
    aucs = layers.layer_aucs(layers.vectors_of_layers(scorer, machines[0]), machines[0], num_splits=3, seed=0)
    assert list(aucs) == ["0", "1", "2", "last"]
    np.testing.assert_allclose(aucs["2"], aucs["last"], atol=1e-6)
    assert aucs["0"].shape == (3,)
    assert aucs["0"].mean() > 0.9


def test_the_difference_is_paired():
    others = np.random.default_rng(0).random((4, 5))
    mean, low, high = layers.difference(others + 0.1, others, seed=0)
    np.testing.assert_allclose([mean, low, high], 0.1)


def test_a_gain_has_no_influence_on_normalised_levels(machines, scorer):
    aucs, alarms = input_level.measured(scorer, machines[:1], "normalised", [1], 2, seed=0)
    np.testing.assert_allclose(aucs, aucs[0], atol=0.02)
    np.testing.assert_allclose(alarms, alarms[0], atol=0.06)
    _, recorded = input_level.measured(scorer, machines[:1], "as recorded", [1], 2, seed=0)
    assert recorded[-1] > recorded[1]


def test_synthetic_machines_are_of_their_unit():
    from benchmarks.clean_machines import synthetic_machines

    machine = synthetic_machines(1)[0]
    assert isinstance(machine, Machine)
    assert machine.name == "fan 1"
    assert not torch.equal(torch.as_tensor(machine.normal[0]), torch.as_tensor(machine.normal[1]))
