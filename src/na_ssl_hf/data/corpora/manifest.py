"""Lists of sound files, kept as JSON lines with what is needed to read crops of the sounds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import gcd
from pathlib import Path

import numpy as np
import soxr

from ...hub.fbank import SAMPLING_RATE
from ...hub.sound_reader import SoundReader
from ...hub.whole_files import whole_file
from ..tables import file_named_in_table

SPLITS = ("train", "validation", "test")

# So much is read on either side of a crop that is resampled. The filter of soxr is shorter, so that a crop equals the
# cut-out of the whole file.
_MARGIN_S = 0.1
# More does not fit into the numbers that positions are drawn with.
_MOST_FRAMES, _MOST_HERTZ = 2**45, 2**31 - 1


@dataclass(frozen=True)
class SoundFile:
    """One file of a corpus.

    Attributes:
        path: the absolute path.
        num_frames: samples per channel at the file's own rate.
        sampling_rate: the file's own rate in Hz.
        split: "train", "validation" or "test".
        corpus: the name of the corpus, such as "fsd50k" or the name of a folder.
        licence: as the corpus gives it for this file, or None.

    Raises:
        ValueError: a field is of another kind.
    """

    path: str
    num_frames: int
    sampling_rate: int
    split: str
    corpus: str
    licence: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not os.path.isabs(self.path):
            raise ValueError(f"path must be absolute, got {self.path!r}")
        for name, most in (("num_frames", _MOST_FRAMES), ("sampling_rate", _MOST_HERTZ)):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
            if value > most:
                raise ValueError(f"{name} must be at most {most}, got {value}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")
        if not isinstance(self.corpus, str) or not self.corpus:
            raise ValueError(f"corpus must be a name, got {self.corpus!r}")
        if not isinstance(self.licence, str | None):
            raise ValueError(f"licence must be text or null, got {self.licence!r}")

    def num_samples(self, sampling_rate: int = SAMPLING_RATE) -> int:
        """Return the length of the sound in samples at `sampling_rate` (Hz), rounded down."""
        return self.num_frames * sampling_rate // self.sampling_rate


def read_manifest(path: str | os.PathLike) -> list[SoundFile]:
    """Read a file of `write_manifest`; the sounds themselves are not looked at.

    Raises:
        OSError: the manifest cannot be read.
        ValueError: a line does not describe a sound; the message names file, line, rule and value.
    """
    path = Path(os.path.abspath(path))
    sounds = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                sounds.append(_from_row(json.loads(line), path.parent))
            except (ValueError, RecursionError) as error:  # errors of JSON and of UTF-8 are ValueErrors, too
                raise ValueError(f"{path}, line {number}: {error}") from error
    return sounds


def write_manifest(path: str | os.PathLike, sounds: Iterable[SoundFile]) -> None:
    """Write one JSON object a line to a file that appears whole or not at all.

    Paths below the manifest's folder are written relative to it, so that the folder can be moved.
    """
    path = Path(os.path.abspath(path))
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for sound in sounds:
            row = asdict(sound)
            if Path(sound.path).is_relative_to(path.parent):
                row["path"] = Path(sound.path).relative_to(path.parent).as_posix()
            # Names of other encodings than UTF-8 have characters that only escapes can write.
            is_unicode = not any("\ud800" <= letter <= "\udfff" for letter in row["path"])
            file.write(json.dumps(row, ensure_ascii=not is_unicode) + "\n")


def read_crop(sound: SoundFile, start: int, num_samples: int, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """Read a piece of a sound without what lies before it, average its channels, and resample it with soxr if needed.

    The result is the cut-out `[start : start + num_samples]` of the whole file resampled, to float32 precision.

    Args:
        sound: the file.
        start: first sample, counted at `sampling_rate`.
        num_samples: length of the crop, counted at `sampling_rate`; zeros follow where the sound ends.
        sampling_rate: rate of the crop in Hz.

    Returns:
        (num_samples,) float32.

    Raises:
        ValueError: `start` is negative, or `num_samples` or `sampling_rate` is less than 1.
        OSError: the file is missing, damaged, truncated, or not the one that the manifest describes.
    """
    for name, value, least in (
        ("start", start, 0),
        ("num_samples", num_samples, 1),
        ("sampling_rate", sampling_rate, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    # `up` samples of the crop last as long as `down` frames of the file, so both are cut at multiples of these.
    common = gcd(sampling_rate, sound.sampling_rate)
    up, down = sampling_rate // common, sound.sampling_rate // common
    margin = 0 if up == down else round(_MARGIN_S * sampling_rate)
    first_block = max(0, start - margin) // up
    last_block = -(-(start + num_samples + margin) // up)
    frames = _read_frames(sound, first_block * down, last_block * down)  # (frames,)
    samples = frames if up == down else soxr.resample(frames, sound.sampling_rate, sampling_rate)
    samples = samples[start - first_block * up :][:num_samples]
    crop = np.zeros(num_samples, dtype=np.float32)
    crop[: len(samples)] = samples
    return crop


def _read_frames(sound: SoundFile, start: int, stop: int) -> np.ndarray:
    """Return the mean of the channels between two frames, (frames,) float32, which is empty behind the end."""
    start, stop = min(start, sound.num_frames), min(stop, sound.num_frames)
    with SoundReader(sound.path, sound.path) as file:
        if (file.sampling_rate, file.num_frames) != (sound.sampling_rate, sound.num_frames):
            raise OSError(
                f"{sound.path} must have {sound.num_frames} frames at {sound.sampling_rate} Hz as its manifest says, "
                f"got {file.num_frames} at {file.sampling_rate} Hz"
            )
        return file.read(start, stop - start).mean(axis=0)


def _from_row(row: object, folder: Path) -> SoundFile:
    known = {field.name for field in fields(SoundFile)}
    if not isinstance(row, dict) or not known - {"licence"} <= set(row) <= known:
        raise ValueError(f"must be an object with {sorted(known - {'licence'})} and perhaps licence, got {row!r}")
    if isinstance(row["path"], str) and row["path"]:
        is_of_windows = "\\" in row["path"]
        row["path"] = os.path.normpath(
            file_named_in_table(folder, row["path"]) if is_of_windows else folder / row["path"]
        )
    return SoundFile(**row)
