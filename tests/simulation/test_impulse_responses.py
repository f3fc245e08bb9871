import dataclasses

import numpy as np
import pytest
import torch

from na_ssl_hf.simulation import draw_room, simulate_impulse_responses
from na_ssl_hf.simulation import impulse_responses as module


@pytest.fixture(scope="module")
def simulated():
    rooms = [draw_room((11, index)) for index in range(6)]
    return [(room, simulate_impulse_responses(room)) for room in rooms]


def test_shapes_and_common_scale(simulated):
    for _, (target, noise, delay) in simulated:
        assert target.dtype == noise.dtype == torch.float32
        assert target.shape == (2, noise.shape[-1])
        assert noise.shape[:2] == (4, 2)
        assert target[0].abs().max() == 1
        assert isinstance(delay, int)


def test_same_room_gives_the_same_responses_and_leaves_global_generators_alone(simulated):
    room, first = simulated[0]
    np.random.seed(3)  # noqa: NPY002 (the global state is what is tested)
    expected = np.random.random(4)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    again = simulate_impulse_responses(room)
    assert torch.equal(first.target, again.target)
    assert torch.equal(first.noise, again.noise)
    np.testing.assert_array_equal(np.random.random(4), expected)  # noqa: NPY002


def test_seed_randomises_the_images_of_the_same_geometry(simulated):
    room, first = simulated[0]
    other = simulate_impulse_responses(dataclasses.replace(room, seed=(12, 0)))
    length = min(first.noise.shape[-1], other.noise.shape[-1])
    assert (first.noise[..., :length] - other.noise[..., :length]).abs().max() > 0.1 * first.noise.abs().max()


def test_equals_pyroomacoustics(simulated):
    room = simulated[0][0]
    shoebox = module._shoebox(room, 16000)
    shoebox.image_source_model()
    rng = np.random.default_rng(0)
    for source in shoebox.sources:
        source.images = source.images + rng.uniform(-0.08, 0.08, source.images.shape)
    ours = module._render(shoebox)
    shoebox.compute_rir()
    for microphone in range(2):
        for source in range(5):
            reference = shoebox.rir[microphone][source]
            response = np.zeros(max(len(reference), ours.shape[-1]))
            response[: ours.shape[-1]] = ours[source, microphone]
            response[: len(reference)] -= reference
            assert np.abs(response).max() < 3e-4 * np.abs(reference).max()


def test_direct_path_arrives_at_the_direct_delay(simulated):
    # The randomised images move the direct path by at most 0.14 m: 6.5 samples.
    for room, responses in simulated:
        assert abs(int(responses.target[0].abs().argmax()) - responses.direct_delay) <= 7
        early = responses.target[1][: int(room.distance_far / 343 * 16000) + 40 - 8 - 40]
        assert early.numel() == 0 or early.abs().max() < 0.02


def test_decay_is_roughly_the_asked_reverberation_time(simulated):
    ratios = []
    for room, responses in simulated:
        energy = responses.noise.double().square()
        decay = energy.flip(-1).cumsum(-1).flip(-1)
        level = 10 * torch.log10(decay / decay[..., :1])  # (4, 2, R) dB
        time_20_db = (level > -25).sum(-1) - (level > -5).sum(-1)  # samples from -5 dB to -25 dB
        ratios.append(float(time_20_db.double().mean()) * 3 / 16000 / room.rt60)
    # Sabine assumes a diffuse field: in flat rooms the sound that travels horizontally decays up to twice as slowly.
    assert all(0.5 < ratio < 2.2 for ratio in ratios), ratios
    assert 0.75 < sum(ratios) / len(ratios) < 1.4, ratios


def test_other_sampling_rate(simulated):
    room, at_16k = simulated[1]
    at_8k = simulate_impulse_responses(room, sampling_rate=8000)
    assert at_8k.direct_delay == 41
    assert at_8k.noise.shape[-1] == pytest.approx(at_16k.noise.shape[-1] / 2, rel=0.1)


def test_bad_sampling_rate(simulated):
    with pytest.raises(ValueError, match="sampling_rate"):
        simulate_impulse_responses(simulated[0][0], sampling_rate=0)
