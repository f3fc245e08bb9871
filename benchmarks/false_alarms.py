"""The share of new normal recordings that alarm at a stated 5 %, in rooms that were fitted and in rooms never heard.

A stated rate holds for recordings that are exchangeable with the normal ones. In rooms never heard they are not; there,
a threshold that is made with the room as the group (`fit --groups`) is compared with the default one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import pipeline

from na_ssl_hf import MemoryBank
from na_ssl_hf.checkpoints import resolve_checkpoint
from na_ssl_hf.data.synthetic.background_sounds import BACKGROUND_TYPES, synthesize_background
from na_ssl_hf.data.synthetic.machine_sounds import HEARD_MACHINE_TYPES, MACHINE_TYPES, synthesize_machine
from na_ssl_hf.evaluation.systems.log_mel import log_mel_embeddings
from na_ssl_hf.hub.fbank import SAMPLING_RATE
from na_ssl_hf.hub.normal_recordings import NormalRecordings
from na_ssl_hf.hub.recording import Piece
from na_ssl_hf.hub.threshold import calibrated_threshold
from na_ssl_hf.simulation import ImpulseResponses
from na_ssl_hf.simulation.synthetic_dataset import mix_in_room, simulate_rooms

from .measuring import SEED, Row, progress

STATED_RATE = 0.05
RESCALINGS = (None, "variance_min", "ratio")
SNR_DB = (0.0, 5.0)
BATCH_SIZE = 8
NUM_DRAWS = 2_000


@dataclass(frozen=True)
class Sizes:
    """What is simulated: `num_sets` times `num_rooms` rooms, and in each of them `num_clips` clips of every machine.

    A split of the rooms draws half of them, and `num_fitted` clips of each are the normal recordings. Their other clips
    are new recordings in the same rooms, and all clips of the other half are new recordings in rooms never heard.
    """

    machines: Sequence[str] = HEARD_MACHINE_TYPES
    num_sets: int = 3
    num_rooms: int = 24
    num_clips: int = 7
    num_fitted: int = 5
    num_splits: int = 10
    duration_s: float = 4.0


class Place(NamedTuple):
    """A room, and the four noises `(4, N)` that are heard in it."""

    room: ImpulseResponses
    noises: np.ndarray


class Alarms(NamedTuple):
    """Shares of new normal clips that alarm, in the rooms that were fitted and in rooms never heard.

    The thresholds are the default one, that of `MemoryBank.self_scores()`, whose densities keep the clip that is left
    out, and that of `fit` with the rooms as groups.
    """

    same: float
    same_golden: float
    same_groups: float
    new: float
    new_golden: float
    new_groups: float


def false_alarms(sizes: Sizes | None = None) -> list[Row]:
    sizes = sizes or Sizes()
    representations: dict[str, list[torch.Tensor]] = {"NA-BEATs (tiny)": [], "log-mel": []}
    scorer = pipeline("anomaly-scoring", model=resolve_checkpoint("na-beats-tiny"))
    for index in range(sizes.num_sets):
        places = simulated_places(sizes, index)
        for machine in sizes.machines:
            progress(f"  {machine}, rooms {index + 1}/{sizes.num_sets}")
            clips = list(normal_clips(machine, places, sizes, index))
            representations["NA-BEATs (tiny)"].append(scorer.embed(clips, BATCH_SIZE, pooling="mean"))
            representations["log-mel"].append(log_mel_embeddings([torch.as_tensor(clip[0]) for clip in clips]))

    settings = {"NA-BEATs (tiny)": {}, "log-mel": {"distance": "euclidean", "normalize": False}}
    rows = []
    for name, of_machines in representations.items():
        for rescaling in RESCALINGS:
            progress(f"  {name}, {rescaling or 'plain distances'}")

            def bank(name: str = name, rescaling: str | None = rescaling) -> MemoryBank:
                return MemoryBank(rescaling=rescaling, **settings[name])

            alarms = [alarms_of_machine(vectors, bank, sizes) for vectors in of_machines]
            rows += rows_of(f"{name}, {rescaling or 'plain'}", alarms)
    num_fitted_rooms = sizes.num_rooms // 2
    rows[0].note = (
        "shares of new normal clips that alarm; beside a rate without groups stands that of the threshold from "
        "`self_scores()`, beside one with groups that without. Intervals are 95 % bootstraps over "
        f"{sizes.num_sets} sets of rooms x {len(sizes.machines)} machines, with "
        f"{sizes.num_rooms * sizes.num_clips} clips of {sizes.duration_s:g} s each. In each of {sizes.num_splits} "
        f"splits {num_fitted_rooms * sizes.num_fitted} clips of {num_fitted_rooms} rooms are fitted"
    )
    return rows


def simulated_places(sizes: Sizes, index: int) -> list[Place]:
    rooms = simulate_rooms(sizes.num_rooms, [SEED, index], show_progress=False)
    places = []
    for number, room in enumerate(rooms):
        chosen = np.random.default_rng([SEED, index, number]).choice(len(BACKGROUND_TYPES), size=4)
        noises = [
            synthesize_background(
                BACKGROUND_TYPES[kind], [SEED, index, number, corner], 5 * sizes.duration_s, SAMPLING_RATE
            )
            for corner, kind in enumerate(chosen)
        ]
        places.append(Place(room, np.stack(noises)))
    return places


def normal_clips(machine: str, places: Sequence[Place], sizes: Sizes, index: int) -> Iterator[np.ndarray]:
    """Yields `num_clips` recordings (2, N) of a faultless machine in every place, one place after the other."""
    for number, place in enumerate(places):
        for clip in range(sizes.num_clips):
            seed = [SEED, index, MACHINE_TYPES.index(machine), number, clip]
            random = np.random.default_rng(seed)
            target = synthesize_machine(machine, seed, sizes.duration_s, "source", 0.0, SAMPLING_RATE)
            start = int(random.integers(place.noises.shape[1] - len(target) + 1))
            noises = place.noises[:, start : start + len(target)]
            mixture = mix_in_room(target, noises, place.room, [float(random.uniform(*SNR_DB))], noise_coherence=0.0)
            yield torch.stack([mixture.close[0], mixture.far[0]]).numpy()


def alarms_of_machine(vectors: torch.Tensor, bank: Callable[[], MemoryBank], sizes: Sizes) -> Alarms:
    """Returns the shares of alarms of one machine as means over splits of its rooms.

    Args:
        vectors: (rooms * clips, F, D), one room after the other.
        bank: makes an unfitted memory.
        sizes: as the vectors were made.
    """
    by_room = vectors.unflatten(0, (sizes.num_rooms, sizes.num_clips))
    random = np.random.default_rng(SEED)
    shares = []
    for _ in range(sizes.num_splits):
        fitted, unheard = np.split(random.permutation(sizes.num_rooms), [sizes.num_rooms // 2])
        order = random.permutation(sizes.num_clips)
        normal = by_room[fitted][:, order[: sizes.num_fitted]]  # (rooms, clips, F, D)
        same = by_room[fitted][:, order[sizes.num_fitted :]].flatten(0, 1)
        new = by_room[unheard].flatten(0, 1)
        memory = bank().fit(normal.flatten(0, 1))
        thresholds = [
            threshold_of(scores)
            for scores in (self_scores(memory, normal, False), memory.self_scores(), self_scores(memory, normal, True))
        ]
        scores = [torch.as_tensor(memory.score(clips)) for clips in (same, new)]
        shares.append([float((of_clips > level).double().mean()) for of_clips in scores for level in thresholds])
    return Alarms(*np.mean(shares, axis=0).tolist())


def self_scores(memory: MemoryBank, normal: torch.Tensor, by_room: bool) -> torch.Tensor:
    """Returns the scores that `fit` makes its threshold from, with the rooms as `groups` if asked."""
    groups = [room for room, clips in enumerate(normal) for _ in clips] if by_room else None
    collected = NormalRecordings(None, groups)
    # The samples only have to differ from each other: a copy of a recording would not count.
    vectors = normal.flatten(0, 1)
    pieces = [Piece(torch.tensor([index]), str(index), 0.0, 0.0, True, False) for index in range(len(vectors))]
    collected.take([list(zip(pieces, vectors, strict=True))])
    return collected.self_scores(memory, None)


def threshold_of(scores: torch.Tensor) -> float:
    return calibrated_threshold(scores, "conformal", STATED_RATE)[0]


def rows_of(what: str, alarms: Sequence[Alarms]) -> list[Row]:
    """Returns the rows of one kind of score, whose means and intervals are over machines and sets of rooms."""
    shares = 100 * np.array(alarms)  # (pairs, 6)
    drawn = np.random.default_rng(SEED).integers(len(shares), size=(NUM_DRAWS, len(shares)))
    low, high = np.quantile(shares[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    mean = Alarms(*shares.mean(axis=0).tolist())
    intervals = Alarms(*(f"[{least:.1f}, {most:.1f}]" for least, most in zip(low, high, strict=True)))
    least, stated = Alarms(*low.tolist()), 100 * STATED_RATE
    target, nearer = f"<= {stated:g} %", abs(mean.new_groups - stated) < abs(mean.new - stated)
    return [
        Row(f"{what}: same rooms", mean.same, mean.same_golden, intervals.same, target, least.same <= stated, unit="%"),
        Row(
            f"{what}: same rooms, groups",
            mean.same_groups,
            mean.same,
            intervals.same_groups,
            target,
            least.same_groups <= stated,
            unit="%",
        ),
        Row(f"{what}: rooms never heard", mean.new, mean.new_golden, intervals.new, "-", None, unit="%"),
        Row(
            f"{what}: rooms never heard, groups",
            mean.new_groups,
            mean.new,
            intervals.new_groups,
            f"nearer to {stated:g} %",
            nearer,
            unit="%",
        ),
    ]


ITEMS = {"false-alarms": false_alarms}
