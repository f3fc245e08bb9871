"""The benchmark of the far microphone: fixed rooms, other noises in the test, and a gain where the noise has a path."""

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import far_microphone


@pytest.fixture
def few_clips(monkeypatch):
    monkeypatch.setattr(far_microphone, "NUM_CLIPS", 8)
    monkeypatch.setattr(far_microphone, "CLIP_S", 2.0)


def test_calibration_gains_on_the_close_microphone_where_the_noise_comes_from_one_place(few_clips):
    targets, noises = far_microphone.synthetic_targets("fan", 3), far_microphone.synthetic_noises(3)
    aucs = far_microphone.aucs_of_site(targets, noises, 1.0, 3, far_microphone.embedder("logmel"))
    of_method = dict(zip(far_microphone.METHODS, aucs, strict=True))
    assert of_method["installation"] > of_method["none"]
    assert of_method["auto"] > of_method["none"]


def test_training_and_test_share_the_room_but_no_noise(few_clips):
    noises = far_microphone.synthetic_noises(0)
    assert not any(np.array_equal(one, other) for one in noises["train"] for other in noises["test"])
    click = np.zeros(8000, np.float32)
    click[100] = 1.0
    silence = {split: [np.zeros(8000, np.float32)] * 4 for split in ("train", "test")}
    mixtures = far_microphone.mixed({part: [click] for part in ("train", "normal", "anomaly")}, silence, 0.0, 0)
    assert mixtures["train"].shape == (1, 2, 8000)
    assert torch.equal(mixtures["train"], mixtures["normal"])
    assert mixtures["train"][:, 1].any()


def test_real_machines_are_level_matched_and_no_file_is_on_both_sides(few_clips, tmp_path):
    for kind, count in (("normal", 6), ("anomaly", 3)):
        for index in range(count):
            path = tmp_path / "machines" / "pump" / kind / f"{index}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            wave = 0.01 * (index + 1) * np.random.default_rng([index, count]).standard_normal(40000)
            soundfile.write(path, wave, 16000)
            noise = tmp_path / "noises" / f"{kind}{index}.wav"
            noise.parent.mkdir(exist_ok=True)
            soundfile.write(noise, wave[::-1], 16000)
    ((name, targets, noises),) = far_microphone.sounds(tmp_path / "machines", tmp_path / "noises", 0)
    assert name == "pump"
    assert [len(noises[split]) for split in ("train", "test")] == [4, 5]
    for part in targets.values():
        assert all(len(clip) == 32000 for clip in part)
        assert all(np.sqrt(np.square(clip).mean()) == pytest.approx(far_microphone.LEVEL, rel=0.05) for clip in part)
    of_train, of_test = (
        {round(float(np.abs(clip).max()), 6) for clip in targets[part]} for part in ("train", "normal")
    )
    assert not of_train & of_test
