from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from na_ssl_hf.data.dcase.clips import DcaseClip, list_dcase_clips
from na_ssl_hf.training.labelled_crops import LabelledCrops, check_recordings


def write(folder: Path, index: int, samples: np.ndarray, rate: int = 16000) -> DcaseClip:
    path = folder / "fan" / "train" / f"section_00_source_train_normal_{index:04d}_noAttribute.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return list_dcase_clips(folder, "train")[-1]


def test_crops_of_another_rate_sound_the_same(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)[:, None]
    crops = LabelledCrops([write(tmp_path, 0, tone)], torch.zeros(1), 0.5, sampling_rate=32000)
    crop, _ = crops[0, 0]
    assert crop.shape == (2, 16000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 32000)
    np.testing.assert_allclose(crop[1, 1000:-1000], expected[1000:-1000], atol=2e-3)


def test_long_clips_are_cut_by_seed_and_short_ones_repeated(tmp_path):
    ramp = np.arange(4000, dtype=np.float32)[:, None] / 8000 * [1, -1]
    clips = [write(tmp_path, 0, ramp), write(tmp_path, 1, ramp[:700])]
    crops = LabelledCrops(clips, torch.tensor([3, 5]), duration_s=0.1)
    wave, label = crops[0, 0]
    assert wave.shape == (2, 1600)
    assert int(label) == 3
    np.testing.assert_allclose(wave, ramp[:1600].T)
    starts = {round(float(crops[0, seed][0][0, 0]) * 8000) for seed in range(1, 30)}
    assert len(starts) > 20
    assert torch.equal(crops[0, 7][0], crops[0, 7][0])
    repeated, label = crops[1, 7]
    assert int(label) == 5
    np.testing.assert_allclose(repeated, np.concatenate([ramp[:700]] * 3)[:1600].T)


def test_mono_clips_are_both_channels(tmp_path):
    crops = LabelledCrops([write(tmp_path, 0, np.linspace(0, 1, 2000)[:, None])], torch.zeros(1), 0.1)
    wave, _ = crops[0, 1]
    assert wave.shape == (2, 1600)
    assert torch.equal(wave[0], wave[1])


def test_headers_are_checked(tmp_path):
    stereo, mono = np.zeros((100, 2)), np.zeros((100, 1))
    good = write(tmp_path / "good", 0, stereo)
    check_recordings([good], two_channels=True)
    one = write(tmp_path / "mono", 0, mono)
    check_recordings([one, good], two_channels=False)
    for clip, message in (
        (one, "fan/train/section_00.*must have two channels, close and far, for this model, got 1"),
        (write(tmp_path / "three", 0, np.zeros((100, 3))), "must have two channels.*got 3"),
        (write(tmp_path / "rate", 0, stereo, 8000), "must have 16000 Hz, got 8000 Hz"),
        (write(tmp_path / "empty", 0, stereo[:0]), "must have samples, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            check_recordings([good, clip], two_channels=True)
    good.path.write_bytes(b"nothing")
    with pytest.raises(OSError, match="cannot be read as a sound file"):
        check_recordings([replace(good)], two_channels=True)


def test_files_that_were_cut_off_are_named_before_the_training(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (16000, 2))
    for kind in ("FLAC", "WAV"):
        clip = write(tmp_path / kind, 0, noise)
        soundfile.write(clip.path, noise, 16000, format=kind)
        clip.path.write_bytes(clip.path.read_bytes()[:20000])
        with pytest.raises(OSError, match=r"section_00.*truncated"):
            check_recordings([clip], two_channels=True)
