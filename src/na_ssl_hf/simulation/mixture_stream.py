"""Stream two-channel training mixtures that are drawn from sound files and rooms, and mix them singly or in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.corpora.manifest import SoundFile, read_crop
from ..data.sound_changes import changed_crop
from ..hub.fbank import SAMPLING_RATE
from ..one_thread import one_thread
from .conditions import Conditions
from .mixing import HeardMixture, TwoChannelMixture, mix_two_channel, spatial_noises
from .recordings import SILENCE_RMS
from .room_pool import RoomPool

if TYPE_CHECKING:
    from datasets import IterableDataset

_NUM_NOISES = 4
# Draws of conditions and of calibration recordings are apart from those of examples.
_CONDITIONS, _CALIBRATION = 60, 61
_MAX_SILENT_CROPS = 100  # in a row, before the sounds are called silent


def simulated_mixtures(
    targets: Sequence[SoundFile],
    noises: Sequence[SoundFile],
    rooms: RoomPool,
    *,
    num_examples: int,
    seed: int = 0,
    first_index: int = 0,
    duration_s: float = 10.0,
    snr_db: float | tuple[float, float] = (-10.0, 10.0),
    gain_db: float | tuple[float, float] = 0.0,
    noise_coherence: float | tuple[float, float] = 0.0,
    conditions: Conditions | None = None,
    num_shards: int = 64,
    block_size: int = 1,
    mixed: bool = False,
) -> IterableDataset:
    """Stream random mixtures of a target and four noises (Fujimura et al., IWAENC 2026), at 16 kHz.

    Example i is a function of `(seed, i)` and the other arguments: a random crop of a random target, one of each of
    four different noise files (zero-padded at the end where the file is too short; silent crops are drawn again), a
    room, and values uniform in their range. The stream holds the examples `first_index` ... `first_index +
    num_examples - 1`, the same ones for any sharding. Epoch e has `first_index = e * num_examples`; `set_epoch` of
    `datasets` would repeat the same sounds.

    Shard k holds the blocks k, k + num_shards, ... of `block_size` successive examples. A stream is resumed exactly:

    - In one process, call `state_dict()` and `load_state_dict()` of the data set; no sound that is skipped is read.
    - With data loader workers, which run ahead of the training, set `block_size` to the batch size of a process and
      `num_shards` to processes x workers, and split by `mixtures_of_process`. A step of all processes then takes
      `block_size * processes` successive examples, and a training goes on with `first_index` behind them.

    Args:
        targets: sounds of the wanted split, at least one.
        noises: sounds of the wanted split, of at least four different files.
        rooms: a 16 kHz pool. With `mixed`, it should have a file, which each worker maps into memory.
        num_examples: length of the stream.
        seed: of all that is drawn.
        first_index: number of the first example.
        duration_s: duration of every example in s.
        snr_db: SNR at the close microphone in dB, one value or a range.
        gain_db: gain of both channels and the clean target in dB, which is one because levels carry information.
        noise_coherence: as `spatial_noises` takes it, one value or a range.
        conditions: what else mixtures go through: no noise, a silent far microphone, cancellation.
        num_shards: parts that processes and workers divide among themselves.
        block_size: successive examples that one shard holds.
        mixed: whether the worker mixes. Otherwise `mix_examples` mixes a batch, on a GPU if there is one.

    Returns:
        A data set of dictionaries. They hold the dry `target` (N,) and `noises` (4, N), or with `mixed` the signals
        `close`, `far` and `clean` (N,), all float32 NumPy arrays; the numbers `room`, `snr_db`, `gain_db`,
        `noise_coherence`, `seed` and `index`, with conditions also `machine_level_db`, `far_is_silent` and `stream`.

    Raises:
        ValueError: a setting is out of its range, there are too few files, or the room pool has another rate; while
            streaming, a sound is not finite, or crops are silent a hundred times in a row.
        OSError: while streaming, a file cannot be read or does not fit its manifest.
    """
    counts = {"num_examples": num_examples, "num_shards": num_shards, "block_size": block_size}
    _check_settings(counts, {"seed": seed, "first_index": first_index}, duration_s)
    _check_sounds(targets, noises, rooms)
    draw = _Drawing(
        targets=tuple(targets),
        noises=tuple(noises),
        num_rooms=len(rooms),
        num_samples=round(duration_s * SAMPLING_RATE),
        snr_db=_range("snr_db", snr_db),
        gain_db=_range("gain_db", gain_db),
        noise_coherence=_range("noise_coherence", noise_coherence, 0.0, 1.0),
        seed=seed,
        conditions=conditions,
    )
    # A stream that is resumed skips these numbers, before any sound is read. Only a list is split among workers.
    positions = {"shards": list(range(num_shards)), "first_index": first_index, **counts}
    stream = _stream_of_indices(positions).map(draw)
    if not mixed:
        return stream
    return stream.map(partial(_mix_example, rooms=rooms, conditions=conditions), remove_columns=["target", "noises"])


def mixtures_of_process(mixtures: IterableDataset, rank: int, world_size: int, num_workers: int = 0) -> IterableDataset:
    """Return the part of a stream that one training process reads, with equally many shards for each of its workers.

    Do not let Accelerate prepare the data loader of this part, because it would split the part again.

    Args:
        mixtures: the whole stream.
        rank: number of the process, below `world_size`.
        world_size: number of processes.
        num_workers: number of workers of the data loader; 0 means, as for the loader, that the process reads itself.

    Raises:
        ValueError: `rank` is out of its range, or world size x workers does not divide the shards.
    """
    from datasets.distributed import split_dataset_by_node

    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and below world_size {world_size}, got {rank}")
    readers = world_size * max(num_workers, 1)
    if mixtures.num_shards % readers:
        raise ValueError(
            f"num_shards of the mixtures must be a multiple of world_size x num_workers = {world_size} x "
            f"{max(num_workers, 1)} = {readers}, got {mixtures.num_shards}"
        )
    return split_dataset_by_node(mixtures, rank, world_size)


def mix_examples(
    batch: Mapping[str, Tensor], rooms: RoomPool, conditions: Conditions | None = None
) -> TwoChannelMixture | HeardMixture:
    """Mix a batch of unmixed examples, as a data loader collates them, on the device of its sounds.

    Args:
        batch: `target` (B, N), `noises` (B, 4, N), and `room`, `snr_db`, `gain_db` and `noise_coherence` (B,);
            with conditions also what they drew.
        rooms: the pool of the stream.
        conditions: those of the stream.

    Returns:
        `close`, `far`, `clean`, (B, N) float32 each, with the gain of each example applied to all three; with
        conditions also `recorded`, the close channel before a canceller.
    """
    target, snr_db = batch["target"], batch["snr_db"].to(batch["target"].device)
    noises = spatial_noises(batch["noises"], batch["noise_coherence"])
    machine_level_db = None
    if conditions is not None:
        noises = noises.masked_fill(snr_db.isinf()[:, None, None], 0.0)
        snr_db = snr_db.masked_fill(snr_db.isinf(), 0.0)  # any finite SNR, since silent noises have no gain
        if conditions.machine_level_db is not None or conditions.installations is not None:
            machine_level_db = batch["machine_level_db"].to(target.device)
    rir_target, rir_noise, direct_delay = rooms.batch(batch["room"].tolist())
    mixed = mix_two_channel(
        target,
        noises,
        rir_target.to(target.device),
        rir_noise.to(target.device),
        snr_db,
        direct_delay.to(target.device),
        sampling_rate=rooms.sampling_rate,
        machine_level_db=machine_level_db,
    )
    mixture: TwoChannelMixture | HeardMixture = mixed
    if conditions is not None:
        stream, far_is_silent, room = (batch[name] for name in ("stream", "far_is_silent", "room"))
        mixture = conditions.heard(mixed, stream, far_is_silent, room, rooms.sampling_rate)
    gain = 10 ** (batch["gain_db"].to(target.device, torch.float32)[:, None] / 20)  # (B, 1)
    return type(mixture)(**{name: wave * gain for name, wave in mixture._asdict().items() if wave is not None})


def calibration_recordings(
    targets: Sequence[SoundFile],
    noises: Sequence[SoundFile],
    rooms: RoomPool,
    *,
    num_recordings: int = 8,
    duration_s: float = 10.0,
    snr_db: tuple[float, float] = (-10.0, 10.0),
    seed: int = 0,
) -> Callable[[int, float, float], Tensor]:
    """Return what makes the normal recordings of an installation in a room, for [`FittedInstallations`].

    One target is the machine of all recordings of a room; their noises differ, and none of them is an example of a
    stream with another seed.

    Args:
        targets, noises, rooms: as `simulated_mixtures` takes them.
        num_recordings: B, of each installation.
        duration_s: of a recording in s.
        snr_db: range of the SNR in dB.
        seed: of all that is drawn.

    Returns:
        a function of the room's number, the machine's level in dB and the coherence of the noises, which gives
        `(B, 2, N)` float32, channel 0 close.
    """
    _check_settings({"num_recordings": num_recordings}, {"seed": seed}, duration_s)
    _check_sounds(targets, noises, rooms)
    drawing = partial(
        _Drawing,
        noises=tuple(noises),
        num_rooms=len(rooms),
        num_samples=round(duration_s * SAMPLING_RATE),
        snr_db=_range("snr_db", snr_db),
        gain_db=(0.0, 0.0),
        noise_coherence=(0.0, 0.0),
        seed=seed,
    )

    def record(room: int, machine_level_db: float, noise_coherence: float) -> Tensor:
        rng = np.random.default_rng([seed, _CALIBRATION, room])
        path, _ = drawing(targets=tuple(targets))._crop("targets", targets, rng)
        draw = drawing(targets=tuple(sound for sound in targets if sound.path == path))
        examples = [draw({"index": room * num_recordings + i}) for i in range(num_recordings)]
        batch = {name: torch.as_tensor(np.stack([example[name] for example in examples])) for name in examples[0]}
        rir_target, rir_noise, direct_delay = rooms.batch([room] * num_recordings)
        level = torch.full((num_recordings,), machine_level_db)
        sounds = batch["target"], spatial_noises(batch["noises"], noise_coherence)
        mixture = mix_two_channel(
            *sounds, rir_target, rir_noise, batch["snr_db"], direct_delay, rooms.sampling_rate, machine_level_db=level
        )
        return torch.stack([mixture.close, mixture.far], dim=1)

    return record


def _check_settings(counts: Mapping[str, int], offsets: Mapping[str, int], duration_s: float) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in offsets.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if not 1 / SAMPLING_RATE <= duration_s < math.inf:
        raise ValueError(f"duration_s must be at least one sample and finite, got {duration_s} s")


def _check_sounds(targets: Sequence[SoundFile], noises: Sequence[SoundFile], rooms: RoomPool) -> None:
    if not targets:
        raise ValueError("targets must hold at least one sound file, got none")
    if (num_files := len({noise.path for noise in noises})) < _NUM_NOISES:
        raise ValueError(f"noises must hold at least four different files, got {num_files}")
    if rooms.sampling_rate != SAMPLING_RATE:
        raise ValueError(f"rooms must be a pool of {SAMPLING_RATE} Hz, got {rooms.sampling_rate} Hz")


def _stream_of_indices(positions: dict[str, Any]) -> IterableDataset:
    try:
        from datasets import IterableDataset
    except ImportError as error:
        raise ValueError("streaming mixtures needs datasets: pip install 'na-ssl-hf[train]'") from error
    return IterableDataset.from_generator(_indices, gen_kwargs=positions)


def _indices(
    shards: list[int], first_index: int, num_examples: int, num_shards: int, block_size: int
) -> Iterator[dict[str, int]]:
    for shard in shards:
        for start in range(shard * block_size, num_examples, num_shards * block_size):
            for index in range(start, min(start + block_size, num_examples)):
                yield {"index": first_index + index}


@dataclass(frozen=True)
class _Drawing:
    """A function of the number of an example, which draws the example."""

    targets: tuple[SoundFile, ...]
    noises: tuple[SoundFile, ...]
    num_rooms: int
    num_samples: int
    snr_db: tuple[float, float]
    gain_db: tuple[float, float]
    noise_coherence: tuple[float, float]
    seed: int
    conditions: Conditions | None = None

    def __call__(self, row: dict[str, int]) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, row["index"]])
        example = {
            "room": int(rng.integers(self.num_rooms)),
            "snr_db": rng.uniform(*self.snr_db),
            "gain_db": rng.uniform(*self.gain_db),
            "noise_coherence": rng.uniform(*self.noise_coherence),
            "seed": self.seed,
        }
        if self.conditions is not None:
            # What conditions draw changes no draw of the sounds.
            example |= self.conditions.draw(example, np.random.default_rng([self.seed, row["index"], _CONDITIONS]))
        target = self._target(rng)
        noises: dict[str, np.ndarray] = {}
        while len(noises) < _NUM_NOISES:
            path, crop = self._crop("noises", self.noises, rng, besides=noises)
            noises[path] = crop
        return {
            "target": target,
            "noises": np.stack(list(noises.values())),
            **example,
        }

    def _target(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a target (N,), changed where the conditions say so."""
        if self.conditions is None or not self.conditions.changed_targets:
            return self._crop("targets", self.targets, rng)[1]
        for _ in range(_MAX_SILENT_CROPS):
            target = changed_crop(self.targets, self.num_samples, rng)
            if not math.isfinite(rms := math.sqrt(np.dot(target, target) / len(target))):
                raise ValueError("targets must be finite, got NaN or infinity in a changed crop")
            if rms >= SILENCE_RMS:
                return target
        raise ValueError(f"targets must not be silent, got {_MAX_SILENT_CROPS} silent crops")

    def _crop(
        self, name: str, sounds: Sequence[SoundFile], rng: np.random.Generator, besides: Collection[str] = ()
    ) -> tuple[str, np.ndarray]:
        """Draw a file that is not in `besides` and a crop (N,) of it that is not silent, and return path and crop."""
        for _ in range(_MAX_SILENT_CROPS):
            sound = sounds[int(rng.integers(len(sounds)))]
            while sound.path in besides:
                sound = sounds[int(rng.integers(len(sounds)))]
            start = int(rng.integers(max(sound.num_samples(SAMPLING_RATE) - self.num_samples, 0) + 1))
            crop = read_crop(sound, start, self.num_samples, SAMPLING_RATE)
            rms = math.sqrt(np.dot(crop, crop) / len(crop))
            if not math.isfinite(rms):
                raise ValueError(f"{name} must be finite, got NaN or infinity in {sound.path}")
            if rms >= SILENCE_RMS:
                return sound.path, crop
        raise ValueError(f"{name} must not be silent, got {_MAX_SILENT_CROPS} silent crops, the last of {sound.path}")


@one_thread()
def _mix_example(
    example: dict[str, Any], rooms: RoomPool, conditions: Conditions | None = None
) -> dict[str, np.ndarray]:
    batch = {name: torch.as_tensor(value)[None] for name, value in example.items()}
    mixture = mix_examples(batch, rooms, conditions)
    return {name: getattr(mixture, name)[0].numpy() for name in ("close", "far", "clean")}


def _range(
    name: str, value: float | tuple[float, float], lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float]:
    limits = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(limits) != 2 or not all(map(math.isfinite, limits)) or not lowest <= limits[0] <= limits[1] <= highest:
        within = f" within [{lowest:g}, {highest:g}]" if math.isfinite(highest) else ""
        raise ValueError(f"{name} must be a finite number or a range (low, high){within}, got {value}")
    return float(limits[0]), float(limits[1])
