import dataclasses
import math

import pytest

from na_ssl_hf.simulation import draw_room


@pytest.fixture(scope="module")
def rooms():
    return [draw_room((5, index)) for index in range(200)]


def test_same_seed_gives_the_same_room_and_another_seed_another():
    assert draw_room((5, 3)) == draw_room([5, 3])
    assert draw_room(8) == draw_room((8,))
    assert len({draw_room((5, index)) for index in range(50)}) == 50


def test_dimensions_and_reverberation_times_fill_their_ranges(rooms):
    for low, high, values in [
        (3, 8, [room.dimensions[0] for room in rooms]),
        (3, 8, [room.dimensions[1] for room in rooms]),
        (1.5, 3, [room.dimensions[2] for room in rooms]),
        (0.1, 0.4, [room.rt60 for room in rooms]),
        (0.1, 1.0, [room.distance_far for room in rooms]),
    ]:
        margin = 0.1 * (high - low)
        assert low <= min(values) < low + margin
        assert high - margin < max(values) <= high


def test_everything_stands_inside_one_metre_high_and_at_the_asked_distances(rooms):
    for room in rooms:
        length, width, _ = room.dimensions
        for x, y, z in (room.target, room.close, room.far, *room.noises):
            assert 0 < x < length
            assert 0 < y < width
            assert z == 1.0
        assert min(room.target[0], length - room.target[0], room.target[1], width - room.target[1]) >= 0.5
        assert room.distance_close == pytest.approx(0.05)
        corner_distances = [(min(x, length - x), min(y, width - y)) for x, y, _ in room.noises]
        assert corner_distances == [pytest.approx((0.2, 0.2))] * 4
        assert len(set(room.noises)) == 4


def test_walls_are_possible_and_orders_bounded(rooms):
    assert all(0 < room.absorption <= 1 and 1 <= room.max_order <= 30 for room in rooms)
    assert {room.direct_delay() for room in rooms} == {42}


def test_microphones_lie_in_independent_directions(rooms):
    def direction(room, microphone):
        return math.atan2(microphone[1] - room.target[1], microphone[0] - room.target[0])

    between = [direction(room, room.close) - direction(room, room.far) for room in rooms]
    assert abs(sum(map(math.cos, between))) / len(rooms) < 0.2
    assert abs(sum(math.sin(direction(room, room.close)) for room in rooms)) / len(rooms) < 0.2


def test_absorption_and_order_agree_with_pyroomacoustics(rooms):
    from pyroomacoustics import inverse_sabine

    for room in rooms[:20]:
        absorption, order = inverse_sabine(room.rt60, room.dimensions)
        assert room.absorption == pytest.approx(absorption)
        assert room.max_order == min(order, 30)


@pytest.mark.parametrize("seed", [-1, (), (1, -2), (0.5,)], ids=str)
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed"):
        draw_room(seed)


@pytest.mark.parametrize(
    "change",
    [
        {"target": (9.0, 1.0, 1.0)},
        {"close": (1.0, 1.0)},
        {"rt60": 0.01},
        {"rt60": math.nan},
        {"noises": ((1.0, 1.0, 1.0),) * 3},
    ],
    ids=str,
)
def test_impossible_room(change, rooms):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(rooms[0], **change)


def test_microphone_inside_the_target(rooms):
    with pytest.raises(ValueError, match="far must differ"):
        dataclasses.replace(rooms[0], far=rooms[0].target)
