"""Write data sets that appear whole or not at all, as 16-bit files that share one gain."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from ..data.sound_files import libsndfile_path
from ..hub.whole_files import whole_folder

MANIFEST = "manifest.csv"


@contextmanager
def staged_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of `folder` when the block ends well.

    When the block raises, `folder` stays as it was; a kill leaves the old content or the new one.

    Args:
        folder: the folder to write.
        overwrite: whether it may hold files, which are then replaced; one of them must be a manifest of this module.

    Raises:
        FileExistsError: `folder` is a file, or holds files that may not be replaced.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is not a folder")
    occupied = folder.is_dir() and any(folder.iterdir())
    if occupied and not overwrite:
        raise FileExistsError(f"{folder} is not empty; choose another folder or overwrite it")
    if occupied and not (folder / MANIFEST).is_file():
        raise FileExistsError(f"{folder} holds no {MANIFEST}, so it was not written here and is not overwritten")
    with whole_folder(folder) as partial:
        yield partial


def write_float_wav(path: Path, channels: np.ndarray, sampling_rate: int) -> float:
    """Write channels (C, N) as 32-bit float WAV, which `reduce_to_pcm16` reduces later; return the peak."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_wav(path, channels.T, sampling_rate, "FLOAT")
    return float(np.abs(channels).max())


def common_gain(peak: float) -> float:
    """Return the largest power of two, at most 1, that keeps `peak` inside 16-bit PCM; it rounds nothing away."""
    return 1.0 if peak < 1.0 else 2.0 ** -(math.floor(math.log2(peak)) + 1)


def reduce_to_pcm16(folder: Path, gain: float) -> None:
    """Write every float WAV below `folder` again as 16-bit PCM, multiplied by `gain`."""
    for path in sorted(folder.rglob("*.wav")):
        samples, sampling_rate = soundfile.read(libsndfile_path(path), dtype="float32", always_2d=True)
        # A peak within half a step of full scale would round to 32768.
        codes = np.minimum(np.rint(samples * np.float32(gain * 32768)), 32767).astype(np.int16)
        _write_wav(path, codes, sampling_rate, "PCM_16")


def write_manifest(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write `rows` with a header as manifest.csv."""
    with (folder / MANIFEST).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_wav(path: Path, samples: np.ndarray, sampling_rate: int, subtype: str) -> None:
    try:
        soundfile.write(libsndfile_path(path), samples, sampling_rate, subtype=subtype, format="WAV")
    except soundfile.SoundFileError as error:
        # libsndfile does not pass on what the system said, and it answers a full disk with a bare "System error".
        raise OSError(f"{path.name} cannot be written to {path.parent}, is the disk full? {error}") from error
