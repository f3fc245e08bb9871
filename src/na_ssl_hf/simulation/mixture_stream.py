"""Two-channel training mixtures without end: drawn from sound files and rooms, streamed, mixed in batches."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.corpora.manifest import SoundFile, read_crop
from ..one_thread import one_thread
from .mixing import TwoChannelMixture, mix_two_channel, spatial_noises
from .recordings import SILENCE_RMS
from .room_pool import RoomPool
from .synthetic_dataset import SAMPLING_RATE

if TYPE_CHECKING:
    from datasets import IterableDataset

_NUM_NOISES = 4
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
    num_shards: int = 64,
    block_size: int = 1,
    mixed: bool = False,
) -> IterableDataset:
    """Streams random mixtures of a target and four noises (Fujimura et al., IWAENC 2026), at 16 kHz.

    Example i is a function of `(seed, i)` and the other arguments: a random crop of a random target, one of each of
    four different noise files (zero-padded at the end where the file is too short; silent crops are drawn again), a
    room, and values uniform in their range. The stream holds the examples `first_index` ... `first_index +
    num_examples - 1`, the same ones for any sharding. Epoch e has `first_index = e * num_examples`; `set_epoch` of
    `datasets` would repeat the same sounds.

    Shard k holds the blocks k, k + num_shards, ... of `block_size` successive examples. Two ways to resume exactly:

    - `state_dict()` and `load_state_dict()` of the dataset, in one process; no skipped sound is read.
    - With data loader workers, which run ahead of the training: set `block_size` to the batch size of a process and
      `num_shards` to processes x workers, and split by `mixtures_of_process`. Then step s of all processes together
      takes `block_size * processes` successive examples, and a training goes on with `first_index` moved behind them.

    Args:
        targets, noises: of the wanted split; at least one and at least four different files.
        rooms: a 16 kHz pool. With `mixed`, it should have a file, which each worker maps into memory.
        duration_s: of every example.
        snr_db: at the close microphone, dB.
        gain_db: one gain for both channels and the clean target, as levels carry information, dB.
        noise_coherence: see `spatial_noises`.
        mixed: mixes in the worker. Otherwise `mix_examples` mixes a batch, on a GPU if there is one.

    Returns:
        Dictionaries with `target` (N,) and `noises` (4, N), dry, or with `close`, `far` and `clean` (N,) if `mixed`,
        float32 NumPy arrays; and the numbers `room`, `snr_db`, `gain_db`, `noise_coherence`, `seed` and `index`.

    Raises:
        ValueError: settings out of range, too few files, a room pool of another rate; while streaming, sounds that are
            not finite, or silent a hundred times in a row.
        OSError: while streaming, a file that cannot be read or does not fit its manifest.
    """
    try:
        from datasets import IterableDataset
    except ImportError as error:
        raise ValueError("streaming mixtures needs datasets: pip install 'na-ssl-hf[train]'") from error

    counts = {"num_examples": num_examples, "num_shards": num_shards, "block_size": block_size}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in {"seed": seed, "first_index": first_index}.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if not 1 / SAMPLING_RATE <= duration_s < math.inf:
        raise ValueError(f"duration_s must be at least one sample and finite, got {duration_s} s")
    if not targets:
        raise ValueError("targets must hold at least one sound file, got none")
    if (num_files := len({noise.path for noise in noises})) < _NUM_NOISES:
        raise ValueError(f"noises must hold at least four different files, got {num_files}")
    if rooms.sampling_rate != SAMPLING_RATE:
        raise ValueError(f"rooms must be a pool of {SAMPLING_RATE} Hz, got {rooms.sampling_rate} Hz")
    draw = _Drawing(
        targets=tuple(targets),
        noises=tuple(noises),
        num_rooms=len(rooms),
        num_samples=round(duration_s * SAMPLING_RATE),
        snr_db=_range("snr_db", snr_db),
        gain_db=_range("gain_db", gain_db),
        noise_coherence=_range("noise_coherence", noise_coherence, 0.0, 1.0),
        seed=seed,
    )
    # Skipping is done among these numbers, before any sound is read.
    indices = IterableDataset.from_generator(
        _indices,
        gen_kwargs={
            "shards": list(range(num_shards)),  # only a list is split among processes and workers
            "first_index": first_index,
            **counts,
        },
    )
    stream = indices.map(draw)
    return stream.map(partial(_mix_example, rooms=rooms), remove_columns=["target", "noises"]) if mixed else stream


def mixtures_of_process(mixtures: IterableDataset, rank: int, world_size: int, num_workers: int = 0) -> IterableDataset:
    """The part of a stream that one training process reads, with the same number of shards for each of its workers.

    Do not let Accelerate prepare the data loader of it, which would split it again.

    Args:
        rank: of the process, below `world_size`.
        num_workers: of its data loader; 0 as for the loader.

    Raises:
        ValueError: a rank out of range, or shards that world size x workers does not divide.
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


def mix_examples(batch: Mapping[str, Tensor], rooms: RoomPool) -> TwoChannelMixture:
    """Mixes a batch of unmixed examples, as a data loader collates them, on the device of its sounds.

    Args:
        batch: `target` (B, N), `noises` (B, 4, N), and `room`, `snr_db`, `gain_db` and `noise_coherence` (B,).
        rooms: the pool of the stream.

    Returns:
        `close`, `far`, `clean`, (B, N) float32 each, the joint gain applied.
    """
    target = batch["target"]
    rir_target, rir_noise, direct_delay = rooms.batch(batch["room"].tolist())
    mixture = mix_two_channel(
        target,
        spatial_noises(batch["noises"], batch["noise_coherence"]),
        rir_target.to(target.device),
        rir_noise.to(target.device),
        batch["snr_db"].to(target.device),
        direct_delay.to(target.device),
        sampling_rate=rooms.sampling_rate,
    )
    gain = 10 ** (batch["gain_db"].to(target.device, torch.float32)[:, None] / 20)  # (B, 1)
    return TwoChannelMixture(*(signal * gain for signal in mixture))


def _indices(
    shards: list[int], first_index: int, num_examples: int, num_shards: int, block_size: int
) -> Iterator[dict[str, int]]:
    for shard in shards:
        for start in range(shard * block_size, num_examples, num_shards * block_size):
            for index in range(start, min(start + block_size, num_examples)):
                yield {"index": first_index + index}


@dataclass(frozen=True)
class _Drawing:
    """Draws the example of an index."""

    targets: tuple[SoundFile, ...]
    noises: tuple[SoundFile, ...]
    num_rooms: int
    num_samples: int
    snr_db: tuple[float, float]
    gain_db: tuple[float, float]
    noise_coherence: tuple[float, float]
    seed: int

    def __call__(self, row: dict[str, int]) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, row["index"]])
        example = {
            "room": int(rng.integers(self.num_rooms)),
            "snr_db": rng.uniform(*self.snr_db),
            "gain_db": rng.uniform(*self.gain_db),
            "noise_coherence": rng.uniform(*self.noise_coherence),
            "seed": self.seed,
        }
        _, target = self._crop("targets", self.targets, rng)
        noises: dict[str, np.ndarray] = {}
        while len(noises) < _NUM_NOISES:
            path, crop = self._crop("noises", self.noises, rng, besides=noises)
            noises[path] = crop
        return {
            "target": target,
            "noises": np.stack(list(noises.values())),
            **example,
        }

    def _crop(
        self, name: str, sounds: Sequence[SoundFile], rng: np.random.Generator, besides: Collection[str] = ()
    ) -> tuple[str, np.ndarray]:
        """The path of a file that is not in `besides`, and a crop (N,) of it that is not silent."""
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
def _mix_example(example: dict[str, Any], rooms: RoomPool) -> dict[str, np.ndarray]:
    batch = {name: torch.as_tensor(value)[None] for name, value in example.items()}
    return {name: signal[0].numpy() for name, signal in mix_examples(batch, rooms)._asdict().items()}


def _range(
    name: str, value: float | tuple[float, float], lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float]:
    limits = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(limits) != 2 or not all(map(math.isfinite, limits)) or not lowest <= limits[0] <= limits[1] <= highest:
        within = f" within [{lowest:g}, {highest:g}]" if math.isfinite(highest) else ""
        raise ValueError(f"{name} must be a finite number or a range (low, high){within}, got {value}")
    return float(limits[0]), float(limits[1])
