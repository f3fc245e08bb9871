import numpy as np
import pytest
import torch

from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from na_ssl_hf.data.synthetic.machine_sounds import DEFAULT_SEVERITY, MACHINE_TYPES, operating_point, synthesize_machine
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings

DURATION_S = 2.0


def _distance_to_normal(clips, normals):
    clips, normals = log_mel_embeddings(clips), log_mel_embeddings(normals)
    per_band = [torch.cdist(clips[:, f], normals[:, f]).amin(dim=1) for f in range(clips.shape[1])]
    return torch.stack(per_band).mean(dim=0)


@pytest.mark.parametrize("machine", MACHINE_TYPES)
def test_same_seed_same_sound_and_other_seed_other_sound(machine):
    first = synthesize_machine(machine, 3, DURATION_S)
    assert first.dtype == np.float32
    assert first.shape == (32000,)
    np.testing.assert_array_equal(first, synthesize_machine(machine, [3], DURATION_S))
    for other in (
        synthesize_machine(machine, 4, DURATION_S),
        synthesize_machine(machine, 3, DURATION_S, domain="target"),
        synthesize_machine(machine, 3, DURATION_S, severity=1.0),
        synthesize_machine(machine, 3, DURATION_S, unit=1),
    ):
        assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("machine", MACHINE_TYPES)
def test_levels_are_absolute_and_fit_full_scale(machine):
    clips = [synthesize_machine(machine, seed, DURATION_S, severity=s) for seed in range(4) for s in (0.0, 3.0)]
    levels = [np.sqrt(np.mean(clip**2)) for clip in clips]
    assert 0.01 < min(levels) < max(levels) < 0.2
    assert max(np.abs(clip).max() for clip in clips) < 2
    assert np.std(levels[::2]) > 1e-4  # normal clips are not level-normalised


@pytest.mark.parametrize("machine", MACHINE_TYPES)
def test_distance_to_normal_grows_with_severity(machine):
    normals = [synthesize_machine(machine, [0, seed], DURATION_S) for seed in range(12)]
    default = DEFAULT_SEVERITY[machine]
    medians = []
    for severity in (0.0, default, 3 * default):
        clips = [synthesize_machine(machine, [1, seed], DURATION_S, severity=severity) for seed in range(12)]
        medians.append(float(_distance_to_normal(clips, normals).median()))
    assert medians[0] < medians[1] < medians[2]


@pytest.mark.parametrize("machine", MACHINE_TYPES)
def test_target_domain_runs_at_settings_the_source_never_saw(machine):
    source = [operating_point(machine, seed, "source") for seed in range(30)]
    target = [operating_point(machine, seed, "target") for seed in range(30)]
    assert not {p.setting for p in source} & {p.setting for p in target}
    assert max(p.rate for p in source) < min(p.rate for p in target)


def test_fan_turns_at_the_rate_of_its_operating_point():
    clip = synthesize_machine("fan", 5, 8.0)
    rate = operating_point("fan", 5).rate
    power = np.abs(np.fft.rfft(clip * np.hanning(len(clip)))) ** 2
    frequencies = np.fft.rfftfreq(len(clip), 1 / 16000)
    strongest = frequencies[np.argmax(power * (frequencies > 80))]
    blades = strongest / rate
    assert abs(blades - round(blades)) < 0.1


@pytest.mark.parametrize("kind", BACKGROUND_TYPES)
def test_backgrounds_are_seeded_and_audible(kind):
    first = synthesize_background(kind, 0, DURATION_S)
    assert first.dtype == np.float32
    assert first.shape == (32000,)
    np.testing.assert_array_equal(first, synthesize_background(kind, [0], DURATION_S))
    assert np.abs(first - synthesize_background(kind, 1, DURATION_S)).max() > 1e-3
    for seed in range(5):
        clip = synthesize_background(kind, seed, DURATION_S)
        assert np.isfinite(clip).all()
        assert 0.005 < np.sqrt(np.mean(clip**2)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"machine": "toaster"}, "machine must be one of"),
        ({"domain": "elsewhere"}, "domain must be"),
        ({"severity": -1.0}, "severity must be"),
        ({"severity": float("nan")}, "severity must be"),
        ({"duration_s": 0.0}, "duration_s must be"),
        ({"sampling_rate": 100}, "sampling_rate must be"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthesize_machine(**{"machine": "fan", "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"kind": "silence"}, "kind"), ({"duration_s": 0.0}, "duration_s"), ({"sampling_rate": 10}, "sampling_rate")],
)
def test_bad_background_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthesize_background(**{"kind": "voices", "seed": 0, **arguments})


def test_log_mel_embeddings_cut_bands_of_mean_and_deviation():
    clips = [synthesize_machine("fan", seed, 1.0) for seed in range(2)]
    embeddings = log_mel_embeddings(clips)
    assert embeddings.shape == (2, 8, 32)
    coarse = log_mel_embeddings(clips, num_bands=4)
    torch.testing.assert_close(coarse[:, :, :32].flatten(1), embeddings[:, :, :16].flatten(1))
    with pytest.raises(ValueError, match="num_bands"):
        log_mel_embeddings(clips, num_bands=7)
    with pytest.raises(ValueError, match="at least one clip"):
        log_mel_embeddings([])
