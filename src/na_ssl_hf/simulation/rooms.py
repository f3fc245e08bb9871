"""Draw the geometry of shoebox rooms with a machine, two microphones and four noise sources."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..hub.fbank import SAMPLING_RATE

SOUND_SPEED = 343.0  # m/s
# pyroomacoustics centres its 81-tap fractional-delay filters 40 samples late.
FRACTIONAL_DELAY_SAMPLES = 40

MAX_IMAGE_ORDER = 30
LENGTH_RANGE = (3.0, 8.0)  # m, length and width
HEIGHT_RANGE = (1.5, 3.0)  # m
RT60_RANGE = (0.1, 0.4)  # s
SOURCE_HEIGHT = 1.0  # m, sources and microphones alike
TARGET_WALL_DISTANCE = 0.5  # m
CLOSE_DISTANCE = 0.05  # m
FAR_DISTANCE_RANGE = (0.1, 1.0)  # m
CORNER_DISTANCE = 0.2  # m, to both walls of the corner

Position = tuple[float, float, float]


@dataclass(frozen=True)
class Room:
    """A shoebox room; every position is (x, y, z) in metres from one corner of the floor.

    `seed`, one or more non-negative ints, fixes the random part of the simulation.

    Raises:
        ValueError: a position lies outside the room, or no wall material gives the reverberation time (Sabine).
    """

    dimensions: Position
    rt60: float  # s
    target: Position
    close: Position
    far: Position
    noises: tuple[Position, ...]  # four
    seed: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.noises) != 4:
            raise ValueError(f"noises must hold four positions, got {len(self.noises)}")
        points = {"target": self.target, "close": self.close, "far": self.far}
        points |= {f"noises[{i}]": noise for i, noise in enumerate(self.noises)}
        for name, point in {"dimensions": self.dimensions, **points}.items():
            if len(point) != 3:
                raise ValueError(f"{name} must be (x, y, z) in metres, got {point}")
        for name, point in points.items():
            if not all(0 < p < d for p, d in zip(point, self.dimensions, strict=True)):
                raise ValueError(f"{name} must lie inside the room of {self.dimensions} m, got {point}")
        for name in ("close", "far"):
            if points[name] == self.target:
                raise ValueError(f"{name} must differ from target, got {points[name]} for both")
        if not self.rt60 > 0 or self.absorption > 1:
            raise ValueError(
                f"rt60 must be at least {_shortest_rt60(self.dimensions):.3f} s in a room of {self.dimensions} m "
                f"(Sabine), got {self.rt60}"
            )

    @property
    def distance_close(self) -> float:
        """The distance from the target to the close microphone in m."""
        return math.dist(self.target, self.close)

    @property
    def distance_far(self) -> float:
        """The distance from the target to the far microphone in m."""
        return math.dist(self.target, self.far)

    @property
    def absorption(self) -> float:
        """The energy absorption of all walls that gives `rt60` by Sabine's formula."""
        return _shortest_rt60(self.dimensions) / self.rt60

    @property
    def max_order(self) -> int:
        """The order of all reflections of at most `SOUND_SPEED * rt60` metres of path, at most `MAX_IMAGE_ORDER`."""
        # Orders up to N fill a diamond of mirrored rooms; its inscribed sphere has radius (N + 1) * inscribed.
        inscribed = min(a * b / math.hypot(a, b) for a, b in combinations(self.dimensions, 2))
        return min(MAX_IMAGE_ORDER, math.ceil(SOUND_SPEED * self.rt60 / inscribed - 1))

    def direct_delay(self, sampling_rate: int = SAMPLING_RATE) -> int:
        """Return the samples from the start of the impulse response to the direct path at the close microphone."""
        return int(self.distance_close / SOUND_SPEED * sampling_rate) + FRACTIONAL_DELAY_SAMPLES


def draw_room(seed: int | Sequence[int]) -> Room:
    """Draw a room of the NA-SSL training distribution (Fujimura et al., IWAENC 2026); equal seeds give equal rooms.

    Length and width are U[3, 8] m, the height is U[1.5, 3] m and the RT60 is U[0.1, 0.4] s; all are drawn again when
    Sabine's formula has no solution. Everything stands 1.0 m high. The target is at least 0.5 m from the walls. The
    close microphone is 0.05 m and the far one U[0.1, 1.0] m from it, each in a random direction of its own. The four
    noises are 0.2 m from both walls of their corners.

    Args:
        seed: a non-negative int or several, e.g. `(pool_seed, index)`, so that any subset of rooms can be drawn alone.

    Raises:
        ValueError: `seed` is something else.
    """
    entropy = (seed,) if isinstance(seed, int | np.integer) else tuple(seed)
    if not entropy or not all(isinstance(s, int | np.integer) and s >= 0 for s in entropy):
        raise ValueError(f"seed must be a non-negative int or a sequence of them, got {seed!r}")
    rng = np.random.default_rng(entropy)

    while True:
        length, width, height = rng.uniform(*LENGTH_RANGE), rng.uniform(*LENGTH_RANGE), rng.uniform(*HEIGHT_RANGE)
        rt60 = rng.uniform(*RT60_RANGE)
        if rt60 >= _shortest_rt60((length, width, height)):
            break
    target = (
        rng.uniform(TARGET_WALL_DISTANCE, length - TARGET_WALL_DISTANCE),
        rng.uniform(TARGET_WALL_DISTANCE, width - TARGET_WALL_DISTANCE),
        SOURCE_HEIGHT,
    )
    close = _at_distance(target, CLOSE_DISTANCE, rng)
    far_distance = rng.uniform(*FAR_DISTANCE_RANGE)
    far = _at_distance(target, far_distance, rng)
    # Only the direction is drawn again, so that the distance stays uniform.
    while not (0 < far[0] < length and 0 < far[1] < width):
        far = _at_distance(target, far_distance, rng)
    near = CORNER_DISTANCE
    return Room(
        dimensions=(length, width, height),
        rt60=rt60,
        target=target,
        close=close,
        far=far,
        noises=(
            (near, near, SOURCE_HEIGHT),
            (length - near, near, SOURCE_HEIGHT),
            (near, width - near, SOURCE_HEIGHT),
            (length - near, width - near, SOURCE_HEIGHT),
        ),
        seed=tuple(int(s) for s in entropy),
    )


def _shortest_rt60(dimensions: Sequence[float]) -> float:
    """Return the RT60 in s of a shoebox whose walls absorb everything, by Sabine's formula."""
    surface = 2 * sum(a * b for a, b in combinations(dimensions, 2))
    return 24 * math.log(10) * math.prod(dimensions) / (SOUND_SPEED * surface)


def _at_distance(origin: Position, distance: float, rng: np.random.Generator) -> Position:
    angle = rng.uniform(0, 2 * math.pi)
    return (origin[0] + distance * math.cos(angle), origin[1] + distance * math.sin(angle), origin[2])
