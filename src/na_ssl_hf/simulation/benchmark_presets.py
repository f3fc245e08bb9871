"""The sizes of benchmarks, which both kinds of them share: of fixed installations and of clips in many rooms."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BenchmarkPreset:
    """The size of a benchmark: clips of one machine, and the rooms and noises that each split has for itself.

    Attributes:
        num_train_source: normal training clips of the source domain.
        num_train_target: normal training clips of the target domain.
        num_test: test clips of every domain and label, a quarter of the machine's test clips.
        duration_s: of every clip, in s.
        num_rooms: rooms of a split; a fixed installation has one room for both.
        num_places: backgrounds of each of the five types in a split, at least five with fixed installations.
        num_supplemental: clips of the machine alone, and as many of the noise alone; of fixed installations only.
    """

    num_train_source: int
    num_train_target: int
    num_test: int
    duration_s: float
    num_rooms: int
    num_places: int
    num_supplemental: int = 2


_MOVING = {
    # Three target clips are the fewest that SMOTE with two neighbours takes.
    "smoke": BenchmarkPreset(12, 3, 4, duration_s=1.5, num_rooms=3, num_places=2),
    "small": BenchmarkPreset(99, 10, 25, duration_s=6.0, num_rooms=20, num_places=8),
    "full": BenchmarkPreset(990, 10, 50, duration_s=10.0, num_rooms=100, num_places=12),
}
PRESETS = {
    "fixed": {
        **_MOVING,
        # Ten machines instead of five, each with about half as many clips, take the same time.
        "small": BenchmarkPreset(50, 6, 12, duration_s=6.0, num_rooms=1, num_places=5, num_supplemental=4),
        "full": replace(_MOVING["full"], num_supplemental=50),
    },
    "moving": _MOVING,
}
"""Presets by kind of installation and by name."""
