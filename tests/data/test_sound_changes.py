import numpy as np
import pytest
import soundfile

from na_ssl_hf.data.corpora.manifest import SoundFile
from na_ssl_hf.data.sound_changes import at_level, bursts, changed_crop, crop_at_another_speed, smoothly_filtered

RATE = 16000


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "tone.flac"
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 2) / RATE), RATE)
    return SoundFile(str(path), RATE // 2, RATE, "train", "made-up")


def highest_frequency(wave):
    return np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * RATE / len(wave)


def test_speed_moves_the_pitch_within_its_range_and_short_sounds_are_repeated(tone):
    crops = [crop_at_another_speed([tone], RATE, np.random.default_rng(seed)) for seed in range(12)]
    pitches = np.array([highest_frequency(crop) for crop in crops])
    assert ((pitches > 690) & (pitches < 1460)).all()
    assert (abs(pitches - 1000) < 5).any()
    assert (abs(pitches - 1000) > 50).any()
    assert all(np.abs(crop[-RATE // 4 :]).max() > 0.05 for crop in crops)


@pytest.mark.parametrize("level_db", [-10.0, 0.0, 15.0])
def test_level_is_that_of_the_energies(level_db):
    rng = np.random.default_rng(0)
    wave, reference = rng.standard_normal(4000), 0.1 * rng.standard_normal(4000)
    scaled = at_level(wave, reference, level_db)
    assert 10 * np.log10(np.mean(scaled**2) / np.mean(reference**2)) == pytest.approx(level_db, abs=1e-3)


def test_filter_is_linear_and_smooth():
    wave = np.random.default_rng(0).standard_normal(8000)
    once, twice = (smoothly_filtered(scale * wave, np.random.default_rng(3)) for scale in (1, 2))
    np.testing.assert_allclose(twice, 2 * once, atol=1e-9)
    gain_db = 20 * np.log10(np.abs(np.fft.rfft(once) / np.fft.rfft(wave))[1:-1])
    assert np.ptp(gain_db) > 3
    assert np.abs(np.diff(gain_db)).max() < 2


def test_bursts_fill_the_length_and_differ():
    first, second = (bursts(8000, np.random.default_rng(seed)) for seed in (0, 1))
    assert first.shape == second.shape == (8000,)
    assert first.any()
    assert not np.array_equal(first, second)


def test_changed_crops_are_those_of_their_seed_within_full_scale(tone):
    crops = [changed_crop([tone], 8000, np.random.default_rng(seed)) for seed in (0, 0, *range(1, 9))]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert len({crop.tobytes() for crop in crops}) == 9
    assert all(crop.dtype == np.float32 and np.abs(crop).max() <= 1 for crop in crops)
