"""Calibrate a far microphone in every room of a pool, so that a model can be trained behind its canceller.

Letters in shapes: B mixtures, N samples, P taps of a filter and S frequencies of a frame.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..hub.far_microphone import FarMicrophone
from ..hub.noise_cancellation import without_noise
from ..hub.whole_files import whole_file
from .installation import MACHINE_LEVEL_RANGE_DB
from .room_pool import RoomPool

FILE_FORMAT = "na_ssl_hf.fitted_installations"
TENSORS = ("machine_level_db", "noise_coherence", "filter", "slope")
# Draws of installations are apart from those of examples.
_STREAM = 50


class FittedInstallations:
    """One installation in each room of a pool, whose far microphone was calibrated on normal recordings of it.

    An installation keeps its room, the level of its machine, U[-4, 20] dB, and the coherence of its noises, U[0, 1]. Of
    independent noises no filter takes much away, so that the failures of the canceller are among them.

    Attributes:
        machine_level_db: (num_rooms,) float32, the machine's level at the close microphone minus that at the far one.
        noise_coherence: (num_rooms,) float32, as `spatial_noises` takes it.
        seed: of the draws.
    """

    def __init__(self, tensors: dict[str, Tensor], seed: int) -> None:
        self._tensors = tensors
        self.machine_level_db = tensors["machine_level_db"]
        self.noise_coherence = tensors["noise_coherence"]
        self.seed = seed

    @classmethod
    def fit(
        cls, rooms: RoomPool, recordings: Callable[[int, float, float], Tensor], seed: int = 0
    ) -> FittedInstallations:
        """Draw an installation for each room and calibrate a [`FarMicrophone`] in it.

        Args:
            rooms: the pool.
            recordings: gives normal recordings `(B, 2, N)` of one installation, channel 0 close, for the number of its
                room, the level of its machine in dB, and the coherence of its noises.
            seed: of the draws, not negative.

        Raises:
            ValueError: the recordings are too short or silent, see [`FarMicrophone`].
        """
        levels, coherences, filters, slopes = [], [], [], []
        for room in tqdm(range(len(rooms)), desc="calibrating installations", unit="room"):
            rng = np.random.default_rng([seed, _STREAM, room])
            levels.append(rng.uniform(*MACHINE_LEVEL_RANGE_DB))
            coherences.append(rng.uniform())
            far_microphone = FarMicrophone(sampling_rate=rooms.sampling_rate)
            far_microphone.fit(recordings(room, levels[-1], coherences[-1]))
            filters.append(far_microphone.filter_)
            slopes.append(far_microphone.slope_)
        drawn = (torch.tensor(levels).float(), torch.tensor(coherences).float(), torch.stack(filters))
        return cls(dict(zip(TENSORS, (*drawn, torch.stack(slopes)), strict=True)), seed)

    @classmethod
    def beside(
        cls, rooms: RoomPool, recordings: Callable[[int, float, float], Tensor], seed: int = 0
    ) -> FittedInstallations:
        """Load the installations that are saved beside the file of a pool, or fit and save them there.

        Args:
            rooms: a pool with a file; the installations of `rooms.safetensors` are in
                `rooms.installations-<seed>.safetensors`.
            recordings, seed: as `fit` takes them.

        Raises:
            OSError: a file is there that holds other installations, or it cannot be written.
            ValueError: the pool has no file, or as `fit`.
        """
        if rooms.path is None:
            raise ValueError("rooms must be a pool with a file, got one in memory")
        path = rooms.path.with_name(f"{rooms.path.stem}.installations-{seed}.safetensors")
        if not path.exists():
            cls.fit(rooms, recordings, seed).save(path, rooms)
        return cls.load(path, rooms)

    def save(self, path: str | os.PathLike, rooms: RoomPool) -> None:
        """Write the installations of a pool to a safetensors file, which appears whole or not at all."""
        with whole_file(Path(path)) as partial:
            save_file(self._tensors, partial, metadata=_metadata(rooms, self.seed))

    @classmethod
    def load(cls, path: str | os.PathLike, rooms: RoomPool) -> FittedInstallations:
        """Read what `save` wrote.

        Raises:
            OSError: the file is missing, damaged, or of other rooms.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                seed = int(metadata.get("seed", "-1")) if metadata.get("seed", "").isdigit() else -1
                if metadata != _metadata(rooms, seed) or set(file.keys()) != set(TENSORS):
                    raise OSError(f"{path} must hold the installations of {rooms}, got those of {metadata}")
                tensors = {name: file.get_tensor(name) for name in TENSORS}
        except SafetensorError as error:
            raise OSError(f"{path} must hold installations: {error}") from error
        for name, tensor in tensors.items():
            if len(tensor) != len(rooms) or not bool(torch.isfinite(tensor).all()):
                raise OSError(f"{path} must hold a finite {name} for each of {len(rooms)} rooms, got {len(tensor)}")
        return cls(tensors, seed)

    def cancel(self, close: Tensor, far: Tensor, rooms: Sequence[int], sampling_rate: int) -> Tensor:
        """Take out of the close microphone what the calibrated far ones of `rooms` (B,) predict, `(B, N)` float32.

        Args:
            close, far: `(B, N)`.
            rooms: (B,) the installation of each mixture.
            sampling_rate: in Hz.
        """
        future = round(FarMicrophone(sampling_rate=sampling_rate).future * sampling_rate)
        cancelled = []
        for i, room in enumerate(rooms):
            taps, slope = self._tensors["filter"][room], self._tensors["slope"][room]
            cancelled.append(without_noise(close[i : i + 1], far[i : i + 1], taps, slope, future))
        return torch.cat(cancelled)

    def __len__(self) -> int:
        return len(self.machine_level_db)


def _metadata(rooms: RoomPool, seed: int) -> dict[str, str]:
    numbers = {"num_rooms": len(rooms), "rooms_seed": rooms.seed, "sampling_rate": rooms.sampling_rate, "seed": seed}
    return {"format": FILE_FORMAT} | {name: str(number) for name, number in numbers.items()}
