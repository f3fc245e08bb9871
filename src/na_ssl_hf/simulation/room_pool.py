"""Pools of simulated rooms, which are saved as one safetensors file and read through memory mapping."""

import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..hub.fbank import SAMPLING_RATE
from ..hub.whole_files import whole_file
from .impulse_responses import ImpulseResponses, simulate_impulse_responses
from .rooms import Room, draw_room

FILE_FORMAT = "na_ssl_hf.room_pool"
PART_FORMAT = "na_ssl_hf.room_pool.part"
FILE_VERSION = "1"
ROOMS_PER_PART = 32
# Tensors with one row for each room: their type, and the shape of a row.
PER_POOL: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "direct_delay": (torch.int64, ()),
    "rt60": (torch.float64, ()),
    "dimensions": (torch.float64, (3,)),
    "positions": (torch.float64, (7, 3)),
}


class RoomPool:
    """The impulse responses of many rooms; `RoomPool.simulate` or `RoomPool.load` makes a pool.

    Room i of a pool is `draw_room((seed, i))`, whatever the size of the pool. Responses are kept as float16, whose
    rounding noise is 70 dB below each response, and returned as float32; saving does not change them. `pool[i]` and
    iteration give `ImpulseResponses`. A pool with a file can be sent to data loader workers, as only its path travels.

    Attributes:
        sampling_rate: in Hz.
        seed: of the whole pool.
        direct_delay: (num_rooms,) int64, the samples before the direct path at the close microphone.
        rt60: (num_rooms,) float64, the reverberation times in s that the rooms were drawn with.
        path: the file, or None for a pool in memory.
    """

    def __init__(self, responses: dict[str, Tensor], sampling_rate: int, seed: int, path: Path | None = None) -> None:
        self._responses = responses
        self.sampling_rate = sampling_rate
        self.seed = seed
        self.path = path
        self.direct_delay = responses["direct_delay"]
        self.rt60 = responses["rt60"]

    @classmethod
    def simulate(
        cls,
        num_rooms: int,
        seed: int,
        path: str | os.PathLike | None = None,
        num_workers: int = 1,
        sampling_rate: int = SAMPLING_RATE,
        show_progress: bool = True,
    ) -> "RoomPool":
        """Simulate rooms 0 ... num_rooms - 1 of a seed, and save them if a path is given.

        A room takes about 0.1 s of CPU time and 0.15 MB. The result does not depend on `num_workers`. With several
        workers a script needs the usual `if __name__ == "__main__":`.

        With a path, finished rooms are kept beside it, in the folder `.<name>.parts`, until all are there. When a call
        was stopped, the same call uses the rooms that it finished (it loses up to 32 rooms a worker) and ends in the
        same file, byte by byte. Parts of another seed, rate or version are not used.

        Raises:
            ValueError: `num_rooms` or `num_workers` is not an integer of at least 1, or `seed` not one of at least 0.
            OSError: rooms cannot be saved; those that were saved before stay there.
        """
        for name, value, least in (("num_rooms", num_rooms, 1), ("num_workers", num_workers, 1), ("seed", seed, 0)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        simulate_parts = partial(_simulate_parts, seed, sampling_rate, num_rooms, num_workers, show_progress)
        if path is None:
            responses = {name: response for part in simulate_parts(()) for name, response in part.items()}
            return cls(_with_geometry(responses, seed, sampling_rate, num_rooms), sampling_rate, seed)
        path = Path(path)
        folder = path.with_name(f".{path.name}.parts")
        metadata = {"format": PART_FORMAT, "version": FILE_VERSION}
        metadata |= {"seed": str(seed), "sampling_rate": str(sampling_rate)}
        for part in simulate_parts(_read_parts(folder, metadata, num_rooms)):
            _write(part, folder / f"{min(part)}.safetensors", metadata)
        # The responses are memory-mapped, so that a large pool is at no time in memory as a whole.
        responses = _read_parts(folder, metadata, num_rooms)
        if len(responses) < num_rooms:
            raise OSError(f"path must be written by one process at a time, another one took parts of {path}")
        pool = cls(_with_geometry(responses, seed, sampling_rate, num_rooms), sampling_rate, seed).save(path)
        shutil.rmtree(folder, ignore_errors=True)
        return pool

    def save(self, path: str | os.PathLike) -> "RoomPool":
        """Write the pool to a safetensors file, which appears whole or not at all, and return the pool of the file."""
        path = Path(path)
        metadata = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "num_rooms": str(len(self)),
            "seed": str(self.seed),
            "sampling_rate": str(self.sampling_rate),
        }
        _write(self._responses, path, metadata)
        return type(self).load(path, sampling_rate=self.sampling_rate)

    @classmethod
    def load(cls, path: str | os.PathLike, sampling_rate: int = SAMPLING_RATE) -> "RoomPool":
        """Open a saved pool; the impulse responses of a room are read from the file when they are asked for.

        Raises:
            OSError: the file is missing, truncated or no room pool, or its content cannot be that of a room pool.
            ValueError: the pool has another sampling rate (Hz) or another version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"path must be a room pool file, nothing found at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FILE_FORMAT:
                    raise OSError(f"path must be a room pool saved by RoomPool.save, got another kind of file: {path}")
                # Memory mapping reads no data before a tensor is used.
                responses = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise OSError(f"path must be a complete safetensors file, got {path}: {error}") from error
        if (version := metadata.get("version")) != FILE_VERSION:
            raise ValueError(f"path must be a room pool of version {FILE_VERSION}, got {version}: {path}")
        numbers = {name: _number(metadata, name, path) for name in ("num_rooms", "seed", "sampling_rate")}
        if numbers["sampling_rate"] != sampling_rate:
            raise ValueError(
                f"sampling_rate must be that of the room pool, {numbers['sampling_rate']} Hz, got {sampling_rate} Hz"
            )
        _check_tensors(responses, numbers["num_rooms"], path)
        return cls(responses, sampling_rate, numbers["seed"], path)

    def room(self, index: int) -> Room:
        """Return the geometry and the reverberation time of one room."""
        index = self._index(index)
        target, close, far, *noises = (tuple(position) for position in self._responses["positions"][index].tolist())
        dimensions = tuple(self._responses["dimensions"][index].tolist())
        return Room(dimensions, float(self.rt60[index]), target, close, far, tuple(noises), (self.seed, index))

    def batch(self, indices: Sequence[int] | Tensor | np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return rooms as `mix_two_channel` takes them, zero-padded to the longest response R among them.

        Returns:
            `rir_target` (B, 2, R) float32, `rir_noise` (B, 4, 2, R) float32, `direct_delay` (B,) int64.

        Raises:
            IndexError: there is no such room.
            ValueError: no room is asked for.
            OSError: the responses of a room are not finite.
        """
        positions = [self._index(int(index)) for index in indices]
        if not positions:
            raise ValueError("indices must name at least one room, got none")
        stored = [self._stored(position) for position in positions]  # (5, 2, R_i) each
        responses = torch.zeros(len(stored), 5, 2, max(response.shape[-1] for response in stored))
        for row, response in zip(responses, stored, strict=True):
            row[..., : response.shape[-1]] = response
        return responses[:, 0], responses[:, 1:], self.direct_delay[positions]

    def __len__(self) -> int:
        return len(self.direct_delay)

    def __getitem__(self, index: int) -> ImpulseResponses:
        index = self._index(index)
        responses = self._stored(index).float()
        return ImpulseResponses(responses[0], responses[1:], int(self.direct_delay[index]))

    def __iter__(self) -> Iterator[ImpulseResponses]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        place = "memory" if self.path is None else json.dumps(str(self.path))
        return f"RoomPool({len(self)} rooms, seed={self.seed}, sampling_rate={self.sampling_rate} Hz, in {place})"

    def __reduce__(self):
        if self.path is None:
            return type(self), (self._responses, self.sampling_rate, self.seed)
        return type(self).load, (self.path, self.sampling_rate)

    def _stored(self, index: int) -> Tensor:
        """Return the responses of a room, (5, 2, R) float16, target first."""
        responses = self._responses[_key(index)]
        # This is not done on loading, because it would read the whole file.
        if not bool(torch.isfinite(responses).all()):
            raise OSError(f"{self.path or 'the pool'} must hold finite impulse responses, got others for room {index}")
        return responses

    def _index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must name one of {len(self)} rooms, got {index}")
        return index % len(self)


def _key(index: int) -> str:
    return f"impulse_responses.{index}"


def _number(metadata: dict[str, str], name: str, path: Path) -> int:
    text = metadata.get(name, "")
    # Python refuses to convert texts of more than some thousand digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 100):
        raise OSError(f"{path} must be a room pool whose {name} is a whole number, got {text[:100]!r}")
    return int(text)


def _check_tensors(tensors: dict[str, Tensor], num_rooms: int, path: Path) -> None:
    """Raise OSError for tensors that cannot be those of a pool of `num_rooms` rooms."""
    # The count is compared first, so that a wrong number of rooms costs neither time nor memory.
    if num_rooms < 1 or len(tensors) != num_rooms + len(PER_POOL):
        raise OSError(f"{path} must hold {num_rooms} rooms as it says, got {len(tensors) - len(PER_POOL)}")
    expected = {*PER_POOL, *(_key(index) for index in range(num_rooms))}
    if wrong := sorted(expected ^ set(tensors)):
        raise OSError(f"{path} must hold {num_rooms} rooms, {len(wrong)} missing or unknown: {wrong[0]}")
    for name, (dtype, shape) in PER_POOL.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.shape != (num_rooms, *shape):
            wanted = f"{dtype} of shape {(num_rooms, *shape)}"
            raise OSError(f"{path} must hold {name} as {wanted}, got {tensor.dtype} of {tuple(tensor.shape)}")
        if not bool(torch.isfinite(tensor).all()):
            raise OSError(f"{path} must hold finite values of {name}, got NaN or infinity")
    for name in ("rt60", "dimensions"):
        if not bool((tensors[name] > 0).all()):
            raise OSError(f"{path} must hold positive values of {name}, got {float(tensors[name].min())}")
    for index, delay in enumerate(tensors["direct_delay"].tolist()):
        response = tensors[_key(index)]
        if response.dtype != torch.float16 or response.ndim != 3 or response.shape[:2] != (5, 2):
            raise OSError(
                f"{path} must hold {_key(index)} as float16 of shape (5, 2, R), got {response.dtype} of "
                f"{tuple(response.shape)}"
            )
        if not 0 <= delay < response.shape[-1]:
            raise OSError(
                f"{path} must hold a direct_delay within the {response.shape[-1]} samples of the impulse responses, "
                f"got {delay} for room {index}"
            )


def _with_geometry(responses: dict[str, Tensor], seed: int, sampling_rate: int, num_rooms: int) -> dict[str, Tensor]:
    rooms = [draw_room((seed, i)) for i in range(num_rooms)]
    positions = [(room.target, room.close, room.far, *room.noises) for room in rooms]
    return responses | {
        "direct_delay": torch.tensor([room.direct_delay(sampling_rate) for room in rooms]),
        "rt60": torch.tensor([room.rt60 for room in rooms], dtype=torch.float64),
        "dimensions": torch.tensor([room.dimensions for room in rooms], dtype=torch.float64),
        "positions": torch.tensor(positions, dtype=torch.float64),  # (num_rooms, 7, 3)
    }


def _simulate_parts(
    seed: int, sampling_rate: int, num_rooms: int, num_workers: int, show_progress: bool, done: Collection[str]
) -> Iterator[dict[str, Tensor]]:
    """Simulate all rooms that are not done yet and yield their responses, a few rooms at a time."""
    missing = [index for index in range(num_rooms) if _key(index) not in done]
    size = max(1, min(ROOMS_PER_PART, len(missing) // (4 * num_workers)))
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]
    bar = partial(tqdm, desc="simulating rooms", unit="room", total=num_rooms, disable=not show_progress)
    with bar(initial=num_rooms - len(missing)) as progress, _map_function(min(num_workers, len(parts))) as map_parts:
        for part, arrays in zip(parts, map_parts(partial(_simulate_part, seed, sampling_rate), parts), strict=True):
            yield {_key(index): torch.from_numpy(array) for index, array in zip(part, arrays, strict=True)}
            progress.update(len(part))


def _simulate_part(seed: int, sampling_rate: int, indices: list[int]) -> list[np.ndarray]:
    """Return (5, 2, R) float16 for each room, target first.

    Tensors would travel between processes by file descriptors, of which there are few, so these are NumPy arrays.
    """
    rooms = (simulate_impulse_responses(draw_room((seed, index)), sampling_rate) for index in indices)
    return [torch.cat([room.target[None], room.noise]).half().numpy() for room in rooms]


@contextmanager
def _map_function(num_workers: int) -> Iterator[Callable[..., Iterator]]:
    """Give a `map` in this process or in workers, which end with the block and when their parent is killed."""
    if num_workers <= 1:
        yield map
        return
    # Workers are spawned because a fork of a process with running torch threads may hang.
    spawn = multiprocessing.get_context("spawn")
    workers = ProcessPoolExecutor(num_workers, mp_context=spawn, initializer=_end_with_parent)
    try:
        yield workers.map
    finally:
        workers.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Save tensors to a file that appears whole or not at all; equal tensors give equal bytes."""
    with whole_file(path) as partial_file:
        save_file(tensors, partial_file, metadata=metadata)
        with partial_file.open("r+b") as file:
            # safetensors writes the metadata in another order at every call.
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header["__metadata__"] = metadata
            ordered = json.dumps(header, separators=(",", ":")).encode()
            assert len(ordered) <= size
            file.seek(8)
            file.write(ordered.ljust(size))


def _read_parts(folder: Path, metadata: dict[str, str], num_rooms: int) -> dict[str, Tensor]:
    """Map the responses of the rooms below `num_rooms` from the parts that have these metadata."""
    wanted = {_key(index) for index in range(num_rooms)}
    responses: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() == metadata:
                    responses |= {name: file.get_tensor(name) for name in wanted.intersection(file.keys())}
        except SafetensorError:
            continue  # a crash of the machine damaged the part, whose rooms are simulated again
    return responses
