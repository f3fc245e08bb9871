import json
import pickle

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader, default_collate

from na_ssl_hf.data.corpora.manifest import SoundFile, read_crop
from na_ssl_hf.simulation import (
    RoomPool,
    mix_examples,
    mix_two_channel,
    mixtures_of_process,
    simulated_mixtures,
    spatial_noises,
)

DURATION_S = 0.1
NUM_SAMPLES = 1600
SIGNALS = ("close", "far", "clean")


@pytest.fixture(scope="module")
def rooms():
    return RoomPool.simulate(3, seed=1, show_progress=False)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")

    def write_sound(name, samples):
        path = folder / f"{name}.flac"
        soundfile.write(path, samples, 16000)
        return SoundFile(str(path), len(samples), 16000, "train", "test")

    return write_sound


@pytest.fixture(scope="module")
def targets(write):
    return [write(f"target{i}", 0.1 * np.random.default_rng(i).standard_normal(1000 * (i + 1))) for i in range(4)]


@pytest.fixture(scope="module")
def noises(write):
    """The level of a noise tells its file: 1/64, 2/64, ..."""
    return [write(f"noise{i}", np.full(4000, (i + 1) / 64)) for i in range(6)]


@pytest.fixture(scope="module")
def stream(targets, noises, rooms):
    def make(num_examples=12, **settings):
        sounds = {"targets": targets, "noises": noises, "rooms": rooms} | settings
        return simulated_mixtures(**{"num_examples": num_examples, "duration_s": DURATION_S} | sounds)

    return make


@pytest.fixture
def read_paths(monkeypatch):
    """Paths that the stream reads, in order."""
    paths = []

    def read(sound, *args):
        paths.append(sound.path)
        return read_crop(sound, *args)

    monkeypatch.setattr("na_ssl_hf.simulation.mixture_stream.read_crop", read)
    return paths


def assert_same_examples(left, right):
    left, right = list(left), list(right)
    assert [int(example["index"]) for example in left] == [int(example["index"]) for example in right]
    for a, b in zip(left, right, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def by_index(examples):
    return sorted(examples, key=lambda example: int(example["index"]))


def rows(batch):
    """The examples of a collated batch."""
    return [{name: column[i] for name, column in batch.items()} for i in range(len(batch["index"]))]


def batches_of_process(mixtures, rank, world_size, num_workers, batch_size):
    part = mixtures_of_process(mixtures, rank, world_size, num_workers)
    return [rows(batch) for batch in DataLoader(part, batch_size, num_workers=num_workers)]


def test_an_example(stream, rooms):
    for index, example in enumerate(stream(num_shards=1, seed=5, snr_db=(2.0, 3.0), gain_db=(-6, 0))):
        assert example["target"].dtype == example["noises"].dtype == np.float32
        assert example["target"].shape == (NUM_SAMPLES,)
        assert example["noises"].shape == (4, NUM_SAMPLES)
        assert 0 <= example["room"] < len(rooms)
        assert 2 <= example["snr_db"] < 3
        assert -6 <= example["gain_db"] < 0
        assert (example["noise_coherence"], example["seed"], example["index"]) == (0, 5, index)


def test_examples_vary_with_index_and_seed(stream):
    examples = [*stream(noise_coherence=(0.0, 1.0)), *stream(noise_coherence=(0.0, 1.0), seed=1)]
    for name in ("snr_db", "noise_coherence"):
        assert len({example[name] for example in examples}) == len(examples)
    assert {example["room"] for example in examples} == {0, 1, 2}
    assert len({example["target"].tobytes() for example in examples}) > len(examples) / 2
    assert len({example["noises"].tobytes() for example in examples}) > len(examples) / 2


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (3, 0), (3, 2)])
def test_any_split_gives_the_same_examples(stream, world_size, num_workers):
    parts = [batches_of_process(stream(num_shards=6), rank, world_size, num_workers, 2) for rank in range(world_size)]
    assert len({sum(map(len, part)) for part in parts}) == 1
    examples = [example for part in parts for batch in part for example in batch]
    assert_same_examples(by_index(examples), by_index(stream()))


def test_sharding_does_not_change_examples(stream):
    whole = list(stream(num_shards=1))
    for settings in ({"num_shards": 5}, {"num_shards": 64}, {"num_shards": 2, "block_size": 5}):
        assert_same_examples(by_index(stream(**settings)), whole)


def test_an_epoch_goes_on_where_the_last_one_ended(stream):
    assert_same_examples([*stream(4, num_shards=1), *stream(8, first_index=4, num_shards=1)], stream(12, num_shards=1))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("num_taken", [0, 2, 4, 5, 9])
def test_resuming_is_exact_and_reads_nothing_twice(stream, read_paths, num_taken, mixed):
    make = lambda: stream(10, num_shards=3, mixed=mixed)  # noqa: E731 (shards of 4, 3 and 3)
    whole = list(make())
    first = make()
    taken = [example for _, example in zip(range(num_taken), first, strict=False)]
    state = json.loads(json.dumps(first.state_dict()))
    again = make()
    again.load_state_dict(state)
    read_paths.clear()
    rest = list(again)
    assert_same_examples([*taken, *rest], whole)
    assert len(read_paths) == 5 * len(rest)


def test_steps_do_not_depend_on_workers_and_resume_by_first_index(stream):
    steps = {}
    for num_workers, first_index in ((0, 0), (2, 0), (2, 12)):  # 12 examples are three steps, an odd number
        blocks = {"num_shards": 2 * max(num_workers, 1), "block_size": 2, "first_index": first_index}
        mixtures = stream(28 - first_index, **blocks)
        ranks = [batches_of_process(mixtures, rank, 2, num_workers, 2) for rank in range(2)]
        steps[num_workers, first_index] = [[*a, *b] for a, b in zip(*ranks, strict=True)]
    for number, step in enumerate(steps[0, 0]):
        assert [int(example["index"]) for example in step] == list(range(4 * number, 4 * number + 4))
    for step, other in zip(steps[0, 0], steps[2, 0], strict=True):
        assert_same_examples(step, other)
    for step, other in zip(steps[2, 0][3:], steps[2, 12], strict=True):
        assert_same_examples(step, other)


def test_stream_can_be_sent_to_spawned_workers(stream):
    assert_same_examples(pickle.loads(pickle.dumps(stream(3))), stream(3))


def test_mixed_examples_are_the_mixed_unmixed_ones(stream, rooms):
    settings = {"num_shards": 1, "gain_db": (-6.0, 6.0), "noise_coherence": (0.0, 1.0)}
    examples = list(stream(6, **settings))
    batch = default_collate(examples)
    mixture = mix_examples(batch, rooms)
    for index, example in enumerate(stream(6, mixed=True, **settings)):
        assert set(example) == {*SIGNALS, "room", "snr_db", "gain_db", "noise_coherence", "seed", "index"}
        for name in SIGNALS:
            assert example[name].dtype == np.float32
            np.testing.assert_allclose(example[name], getattr(mixture, name)[index], atol=1e-6)
    # By hand, with one gain for the three signals.
    rir_target, rir_noise, direct_delay = rooms.batch([examples[3]["room"]])
    noises = spatial_noises(torch.from_numpy(examples[3]["noises"])[None], examples[3]["noise_coherence"])
    by_hand = mix_two_channel(
        torch.from_numpy(examples[3]["target"])[None],
        noises,
        rir_target,
        rir_noise,
        torch.tensor([examples[3]["snr_db"]]),
        direct_delay,
    )
    for name in SIGNALS:
        expected = getattr(by_hand, name)[0] * 10 ** (examples[3]["gain_db"] / 20)
        torch.testing.assert_close(getattr(mixture, name)[3], expected, atol=1e-6, rtol=1e-4)


def test_short_sounds_are_padded_at_the_end_and_long_ones_cropped_anywhere(stream, write):
    ramp = np.arange(1, 20001) / 2**15
    starts = []
    for example in stream(24, targets=[write("ramp", ramp), write("short", ramp[:500])]):
        target = example["target"]
        if target[-1] == 0:
            np.testing.assert_array_equal(target, np.pad(ramp[:500], (0, NUM_SAMPLES - 500)).astype(np.float32))
        else:
            starts.append(round(target[0] * 2**15) - 1)
            np.testing.assert_array_equal(target, ramp[starts[-1] :][:NUM_SAMPLES].astype(np.float32))
    assert 0 < len(starts) < 24
    assert max(starts) > 14000
    assert min(starts) < 4000


def test_silent_crops_are_drawn_again(stream, write, targets, noises, read_paths):
    silence = write("silence", np.zeros(5000))
    for settings in ({"targets": [silence, targets[0]]}, {"noises": [silence, *noises[:4]]}):
        read_paths.clear()
        for example in stream(8, **settings):
            assert example["target"].any()
            assert example["noises"].any(axis=1).all()
        assert silence.path in read_paths


def test_sounds_that_are_all_silent(stream, write, noises):
    silence = write("all_silent", np.zeros(5000))
    with pytest.raises(ValueError, match=r"targets must not be silent, .*all_silent\.flac"):
        next(iter(stream(targets=[silence])))
    with pytest.raises(ValueError, match=r"noises must not be silent, .*all_silent\.flac"):
        next(iter(stream(noises=[silence, *noises[:3]])))


def test_sound_that_is_not_finite(stream, tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"targets must be finite, got NaN or infinity in .*nan\.wav"):
        next(iter(stream(targets=[SoundFile(str(tmp_path / "nan.wav"), 4000, 16000, "train", "test")])))


@pytest.mark.parametrize("num_noises", [4, 6])
def test_the_four_noises_are_of_different_files(stream, noises, num_noises):
    used = set()
    for example in stream(20, noises=[*noises[:num_noises], noises[0], noises[0]]):  # a file listed three times
        levels = set(example["noises"][:, 0].tolist())
        assert len(levels) == 4
        used |= levels
    assert used == {(i + 1) / 64 for i in range(num_noises)}


def test_too_few_noise_files(stream, noises):
    with pytest.raises(ValueError, match="noises must hold at least four different files, got 3"):
        stream(noises=[*noises[:3], noises[0]])


def test_room_pool_of_another_rate(stream):
    other = RoomPool.simulate(1, seed=1, sampling_rate=8000, show_progress=False)
    with pytest.raises(ValueError, match="rooms must be a pool of 16000 Hz, got 8000 Hz"):
        stream(rooms=other)


@pytest.mark.parametrize(
    "change",
    [
        {"num_examples": 0},
        {"num_shards": 0},
        {"block_size": 0},
        {"seed": -1},
        {"first_index": -1},
        {"duration_s": 0},
        {"duration_s": float("inf")},
        {"snr_db": (3, 2)},
        {"snr_db": float("nan")},
        {"snr_db": (0.0, float("inf"))},
        {"gain_db": (0, 1, 2)},
        {"noise_coherence": (0.0, 1.5)},
        {"targets": []},
    ],
    ids=str,
)
def test_bad_settings(stream, change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} must"):
        stream(**change)


def test_bad_splits(stream):
    with pytest.raises(ValueError, match=r"num_shards .* multiple of world_size x num_workers = 2 x 3 = 6, got 64"):
        mixtures_of_process(stream(num_shards=64), 0, world_size=2, num_workers=3)
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"rank must be at least 0 and below world_size 2, got {rank}"):
            mixtures_of_process(stream(), rank, world_size=2)


def test_file_that_is_gone_is_named(stream, write):
    gone = SoundFile(write("gone", np.ones(10)).path + "?", 10, 16000, "train", "test")
    with pytest.raises(OSError, match="gone"):
        next(iter(stream(targets=[gone])))
