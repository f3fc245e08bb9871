import math

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import default_collate

from na_ssl_hf.data.corpora.manifest import SoundFile
from na_ssl_hf.hub.far_microphone import FarMicrophone
from na_ssl_hf.hub.noise_cancellation import cancel_far_microphone
from na_ssl_hf.simulation import (
    Conditions,
    FittedInstallations,
    RoomPool,
    calibration_recordings,
    mix_examples,
    simulated_mixtures,
)

SUBTRACTION, INSTALLATION = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return RoomPool.simulate(2, 1, tmp_path_factory.mktemp("pool") / "rooms.safetensors", show_progress=False)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")

    def write(name, seed):
        rng = np.random.default_rng(seed)
        swell = 0.02 + np.abs(np.sin(np.arange(32000) * rng.uniform(1e-4, 1e-3)))
        soundfile.write(folder / f"{name}.flac", 0.1 * swell * rng.standard_normal(32000), 16000)
        return SoundFile(str(folder / f"{name}.flac"), 32000, 16000, "train", "test")

    return [write(f"target{i}", i) for i in range(2)], [write(f"noise{i}", 10 + i) for i in range(5)]


@pytest.fixture(scope="module")
def recordings(sounds, rooms):
    return calibration_recordings(*sounds, rooms, num_recordings=3, duration_s=2.0)


@pytest.fixture(scope="module")
def installations(rooms, recordings):
    return FittedInstallations.fit(rooms, recordings)


@pytest.fixture
def stream(sounds, rooms):
    def make(num_examples=8, **settings):
        settings = {"duration_s": 0.5, "noise_coherence": (0.0, 1.0)} | settings
        return simulated_mixtures(*sounds, rooms, num_examples=num_examples, **settings)

    return make


def batch_of(examples):
    return default_collate(list(examples))


def levels_db(signals):
    return 10 * signals.square().mean(-1).log10()


# What is drawn


def test_plain_conditions_change_no_signal(stream, rooms):
    plain, conditioned = batch_of(stream()), batch_of(stream(conditions=Conditions()))
    for name, column in plain.items():
        assert torch.equal(column, conditioned[name]), name
    one, other = mix_examples(plain, rooms), mix_examples(conditioned, rooms, Conditions())
    for name in ("close", "far", "clean"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert other.recorded is None


def test_shares_are_those_of_the_examples_and_change_no_sound(stream, installations):
    shares = {"clean_share": 0.3, "silent_far_share": 0.5, "stream_shares": (0.2, 0.5, 0.3)}
    conditions = Conditions(**shares, machine_level_db=(-4.0, 20.0), installations=installations)
    plain, examples = (
        batch_of(stream(300, duration_s=0.01)),
        batch_of(stream(300, duration_s=0.01, conditions=conditions)),
    )
    for name in ("target", "noises", "room", "gain_db"):
        assert torch.equal(plain[name], examples[name])
    assert examples["snr_db"].isinf().float().mean() == pytest.approx(0.3, abs=0.08)
    assert examples["far_is_silent"].float().mean() == pytest.approx(0.5, abs=0.08)
    assert np.bincount(examples["stream"]) / 300 == pytest.approx([0.2, 0.5, 0.3], abs=0.08)
    assert examples["machine_level_db"].min() >= -4
    assert examples["machine_level_db"].max() <= 20
    installed = examples["stream"] == 2
    own = examples["machine_level_db"].float() == installations.machine_level_db[examples["room"]]
    assert own[installed].float().mean() == pytest.approx(0.8, abs=0.1)  # the rest has moved
    assert not own[~installed].any()


def test_a_stream_that_goes_on_gives_the_same_examples(stream, installations, rooms):
    conditions = Conditions(
        clean_share=0.3, changed_targets=True, stream_shares=(0.3, 0.3, 0.4), installations=installations
    )
    whole = list(stream(6, conditions=conditions, mixed=True, num_shards=1))
    rest = list(stream(3, first_index=3, conditions=conditions, mixed=True, num_shards=1))
    for one, other in zip(whole[3:], rest, strict=True):
        for name in ("close", "far", "clean", "stream", "snr_db"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_changed_targets_differ_and_noises_do_not_need_to(stream):
    plain, changed = batch_of(stream()), batch_of(stream(conditions=Conditions(changed_targets=True)))
    assert not torch.equal(plain["target"], changed["target"])
    assert changed["target"].isfinite().all()
    assert changed["target"].abs().max() <= 1


# What is heard


def test_clean_mixtures_hold_no_noise(stream, rooms):
    conditions = Conditions(clean_share=1.0)
    batch = batch_of(stream(conditions=conditions))
    other = {**batch, "noises": batch["noises"].flip(0)}
    one, another = (mix_examples(each, rooms, conditions) for each in (batch, other))
    assert torch.equal(one.close, another.close)
    assert one.close.isfinite().all()
    assert (levels_db(one.close - one.clean) < levels_db(one.clean)).all()  # late reverberation only


@pytest.mark.parametrize("stream_shares", [(1.0, 0.0, 0.0), SUBTRACTION, INSTALLATION])
def test_a_silent_far_microphone_leaves_the_close_one_as_what_shall_be_heard(
    stream, rooms, installations, stream_shares
):
    conditions = Conditions(silent_far_share=1.0, stream_shares=stream_shares, installations=installations)
    mixture = mix_examples(batch_of(stream(conditions=conditions)), rooms, conditions)
    assert not mixture.far.any()
    assert torch.equal(mixture.close, mixture.clean)
    assert mixture.close.any()


def test_streams_are_those_of_the_cancellers(stream, rooms, recordings, installations):
    subtracting, filtering = (
        Conditions(machine_level_db=(0.0, 0.0), stream_shares=shares, installations=installations)
        for shares in (SUBTRACTION, INSTALLATION)
    )
    plain = Conditions(machine_level_db=(0.0, 0.0), installations=installations)
    for conditions in (subtracting, filtering):
        batch = batch_of(stream(conditions=conditions))
        before = mix_examples({**batch, "stream": torch.zeros(8, dtype=torch.int64)}, rooms, plain)
        after = mix_examples(batch, rooms, conditions)
        assert torch.equal(before.far, after.far)
        assert torch.equal(before.close, after.recorded)
        assert torch.equal(before.clean, after.clean)
        if conditions is subtracting:
            expected = cancel_far_microphone(before.close, before.far, "spectral_subtraction")
        else:
            drawn = zip(installations.machine_level_db.tolist(), installations.noise_coherence.tolist(), strict=True)
            fitted = [FarMicrophone().fit(recordings(room, *values)) for room, values in enumerate(drawn)]
            channels = torch.stack([before.close, before.far], dim=1)
            expected = torch.cat(
                [fitted[room].cancel(channels[i : i + 1])[:, 0] for i, room in enumerate(batch["room"].tolist())]
            )
        torch.testing.assert_close(after.close, expected, atol=1e-5, rtol=1e-3)
        assert not torch.allclose(after.close, before.close, atol=1e-4)


def test_machine_level_is_that_of_the_target_at_the_two_microphones(stream, rooms):
    conditions = Conditions(clean_share=1.0, machine_level_db=(-4.0, 20.0))
    batch = batch_of(stream(conditions=conditions))
    mixture = mix_examples(batch, rooms, conditions)
    difference = levels_db(mixture.close) - levels_db(mixture.far)
    torch.testing.assert_close(difference.double(), batch["machine_level_db"], atol=1e-2, rtol=0)


# Installations


def test_installations_are_those_of_their_seed_and_survive_their_file(rooms, recordings, installations, tmp_path):
    again = FittedInstallations.fit(rooms, recordings)
    other = FittedInstallations.fit(rooms, recordings, seed=1)
    again.save(tmp_path / "saved.safetensors", rooms)
    loaded = FittedInstallations.load(tmp_path / "saved.safetensors", rooms)
    assert len(loaded) == len(rooms)
    assert not torch.equal(other.machine_level_db, again.machine_level_db)
    close, far = torch.randn(2, 2, 8000, generator=torch.Generator().manual_seed(0)).unbind(0)
    cancelled = [each.cancel(close, far, [0, 1], 16000) for each in (installations, again, loaded)]
    assert torch.equal(cancelled[0], cancelled[1])
    assert torch.equal(cancelled[1], cancelled[2])


def test_installations_are_fitted_once_and_kept_beside_the_pool(rooms, recordings):
    first = FittedInstallations.beside(rooms, recordings, seed=3)

    def refused(*_):
        raise AssertionError("fitted twice")

    assert torch.equal(FittedInstallations.beside(rooms, refused, seed=3).noise_coherence, first.noise_coherence)
    others = RoomPool.simulate(2, seed=8, show_progress=False)
    with pytest.raises(OSError, match="must hold the installations of RoomPool"):
        FittedInstallations.load(rooms.path.with_name("rooms.installations-3.safetensors"), others)
    with pytest.raises(ValueError, match="must be a pool with a file"):
        FittedInstallations.beside(others, recordings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clean_share": 1.5}, r"clean_share must lie in \[0, 1\], got 1.5"),
        ({"silent_far_share": math.nan}, "silent_far_share must lie in"),
        ({"machine_level_db": (3.0, 1.0)}, "machine_level_db must be a finite range"),
        ({"stream_shares": (0.5, 0.2, 0.2)}, "stream_shares must be three shares"),
        ({"stream_shares": (1.0,)}, "stream_shares must be three shares"),
        ({"stream_shares": INSTALLATION}, "installations must be given"),
    ],
)
def test_wrong_conditions_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Conditions(**settings)
