"""Data sets appear whole or not at all, as 16-bit files that share one gain."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from ..hub.whole_files import whole_folder

MANIFEST = "manifest.csv"


@contextmanager
def staged_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends well, and is removed when it does not.

    Raises FileExistsError when `folder` is not empty, unless `overwrite` is given and it holds a manifest of ours.
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
    """Writes channels (C, N) as 32-bit float WAV, to be reduced by `reduce_to_pcm16`; returns the peak."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, channels.T, sampling_rate, subtype="FLOAT", format="WAV")
    return float(np.abs(channels).max())


def common_gain(peak: float) -> float:
    """The largest power of two, at most 1, that keeps `peak` inside 16-bit PCM; powers of two round nothing away."""
    return 1.0 if peak < 1.0 else 2.0 ** -(math.floor(math.log2(peak)) + 1)


def reduce_to_pcm16(folder: Path, gain: float) -> None:
    """Rewrites every float WAV below `folder` as 16-bit PCM after multiplication by `gain`."""
    for path in sorted(folder.rglob("*.wav")):
        samples, sampling_rate = soundfile.read(path, dtype="float32", always_2d=True)
        # A peak within half a step of full scale would round to 32768.
        codes = np.minimum(np.rint(samples * np.float32(gain * 32768)), 32767).astype(np.int16)
        soundfile.write(path, codes, sampling_rate, subtype="PCM_16", format="WAV")


def write_manifest(folder: Path, rows: Sequence[dict[str, object]]) -> None:
    """Writes `rows` as manifest.csv with a header."""
    with (folder / MANIFEST).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
