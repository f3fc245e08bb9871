import numpy as np
import pytest

from na_ssl_hf.data.synthetic.random_sounds import _LAYERS, synthesize_random_sound
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings


def test_same_seed_same_sound_and_other_seed_other_sound():
    first = synthesize_random_sound(3, 1.0)
    assert first.dtype == np.float32
    assert first.shape == (16000,)
    np.testing.assert_array_equal(first, synthesize_random_sound([3], 1.0))
    assert np.abs(first - synthesize_random_sound(4, 1.0)).max() > 1e-3


def test_finite_at_levels_around_that_of_the_machines():
    sounds = np.stack([synthesize_random_sound(seed, 1.0) for seed in range(60)])
    assert np.isfinite(sounds).all()
    levels_db = 20 * np.log10(np.sqrt(np.mean(sounds**2, axis=1)) + 1e-9)
    assert -29 < np.median(levels_db) < -23  # 0.05 of full scale is -26 dB
    assert 3 < np.std(levels_db) < 12


@pytest.mark.parametrize("layer", _LAYERS)
def test_every_layer_is_finite_and_sounds(layer):
    for seed in range(20):
        sound = layer(np.random.default_rng(seed), 8000, 16000)
        assert sound.shape == (8000,)
        assert np.isfinite(sound).all()
        assert np.square(sound).mean() > 0


def test_sounds_differ_more_than_the_crops_of_one_of_them():
    embeddings = log_mel_embeddings([s for i in range(30) for s in np.split(synthesize_random_sound(i, 4.0), 2)])
    first, second = embeddings[::2].flatten(1), embeddings[1::2].flatten(1)
    within, between = (first - second).norm(dim=1).median(), (first - second.roll(1, 0)).norm(dim=1).median()
    assert between > 2 * within


@pytest.mark.parametrize("duration_s", [0.1, 0.517])
@pytest.mark.parametrize("sampling_rate", [8000, 22050])
def test_any_length_at_any_rate(duration_s, sampling_rate):
    for seed in range(5):
        assert len(synthesize_random_sound(seed, duration_s, sampling_rate)) == round(duration_s * sampling_rate)


@pytest.mark.parametrize("settings", [{"duration_s": 0.05}, {"duration_s": float("nan")}, {"sampling_rate": 4000}])
def test_bad_settings_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be at least"):
        synthesize_random_sound(0, **settings)
