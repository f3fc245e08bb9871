"""The table of error ratios by sound and condition: the worst stands beside the mean, and no sound was trained on."""

import json

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import distillation_conditions
from na_ssl_hf.training.validation_conditions import CONDITIONS, REFERENCE, ClipErrors


def errors(ratio: float) -> ClipErrors:
    return ClipErrors(np.full(4, ratio), np.ones(4), np.full(4, ratio / 2))


def test_the_worst_kind_and_condition_are_named_beside_the_mean():
    found = {kind: {name: errors(ratio) for name in CONDITIONS} for kind, ratio in (("fans", 0.2), ("events", 0.8))}
    found["events"]["behind subtraction"] = errors(3.0)
    text = distillation_conditions.table(found)
    assert "| 0 dB | 0.20 [0.20, 0.20] | 0.80 [0.80, 0.80] | 0.40 |" in text
    assert "| clean, as a share of the base's error at 0 dB | 0.20 | 0.80 | |" in text
    assert f"Mean ratio at {REFERENCE} over kinds of sound 0.50, worst 0.80 (events)" in text
    assert "worst of all conditions 3.00 (events, behind subtraction)" in text


def test_sounds_come_level_matched_from_folders_and_from_the_validation_split_of_manifests(tmp_path):
    lines = []
    for index, split in enumerate(["validation"] * 4 + ["train"]):
        path = tmp_path / "sounds" / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.01 * (index + 1) * np.random.default_rng(index).standard_normal(20000), 16000)
        lines.append({"path": str(path), "num_frames": 20000, "sampling_rate": 16000, "split": split, "corpus": "own"})
    # A sound may count several times in a manifest.
    manifest = tmp_path / "sounds.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]), encoding="utf-8")
    assert len(distillation_conditions.waves_of(tmp_path / "sounds")) == 5
    waves = distillation_conditions.waves_of(manifest)
    assert len(waves) == 4
    for wave in waves:
        assert np.sqrt(np.square(wave).mean()) == pytest.approx(distillation_conditions.LEVEL, rel=1e-3)
    (tmp_path / "one").mkdir()
    (tmp_path / "sounds" / "0.wav").rename(tmp_path / "one" / "0.wav")
    with pytest.raises(ValueError, match="at least four files, got 1"):
        distillation_conditions.waves_of(tmp_path / "one")


def test_kinds_of_sound_share_their_rooms():
    noises = [np.random.default_rng(index).standard_normal(90000) for index in range(5)]
    one, other = (
        distillation_conditions.in_rooms([np.full(90000, level), np.full(90000, 2 * level)], noises, 2)
        for level in (0.1, 0.2)
    )
    assert torch.equal(one.rir_target, other.rir_target)
    assert torch.equal(one.noises, other.noises)
    assert one.target[:, 0].tolist() == pytest.approx([0.1, 0.2])
    assert len(one.calibration.target) == 2 * distillation_conditions.NUM_CALIBRATION
    assert torch.equal(one.calibration.rir_noise[0], one.rir_noise[0])
    assert torch.equal(one.calibration.rir_noise[-1], one.rir_noise[1])
