"""From whatever a user holds to the samples of one recording: path, bytes, array, dict, dataset row or decoder."""

import io
import os
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import soundfile
except ImportError:  # arrays still work
    soundfile = None


@dataclass
class Recording:
    """Samples and where they came from.

    Attributes:
        samples: `(channels, N)`; float in [-1, 1], or integer PCM.
        sampling_rate: in Hz.
        name: a path or a description, for error messages.
    """

    samples: np.ndarray | torch.Tensor
    sampling_rate: int
    name: str


def is_single_recording(recordings: Any) -> bool:
    """Whether the argument of a scorer is one recording, not a collection or stream of them.

    Raises:
        ValueError: a tuple, which could be both, or something that is neither.
    """
    if isinstance(recordings, tuple):
        raise ValueError(
            "`recordings` must not be a tuple, which could be one recording or several: give a list, or a dict "
            f"{{'array': ..., 'sampling_rate': ...}}; got a tuple of {len(recordings)}."
        )
    if isinstance(recordings, (np.ndarray, torch.Tensor)):
        return recordings.ndim != 3
    if isinstance(recordings, (str, os.PathLike, bytes, bytearray, dict)) or hasattr(recordings, "get_all_samples"):
        return True
    if not hasattr(recordings, "__iter__") and not hasattr(recordings, "__getitem__"):
        raise ValueError(f"`recordings` must be one recording or several, got {type(recordings).__name__}.")
    return False


def load_recording(source: Any, sampling_rate: int) -> Recording:
    """Read one recording; channels are kept as they are, never mixed down.

    Args:
        source: a path of a sound file (WAV, FLAC, OGG: whatever libsndfile reads); the bytes of one; an array
            `(channels, N)`; a dict with `array` (or `raw`) and `sampling_rate`, or with `bytes` and/or `path` as
            `datasets.Audio(decode=False)` gives it; a dataset row with such a value under `audio`; or a torchcodec
            decoder.
        sampling_rate: assumed for bare arrays, Hz.

    Raises:
        OSError: a file is missing or cannot be decoded.
        ValueError: the source is of another kind, or a dict lacks a key.
    """
    if isinstance(source, dict):
        return _from_dict(source, sampling_rate)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fspath(source), str(source))
    if isinstance(source, (bytes, bytearray)):
        return _from_file(io.BytesIO(source), f"{len(source)} bytes")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return Recording(source, sampling_rate, f"array of shape {tuple(source.shape)}")
    if hasattr(source, "get_all_samples"):
        decoded = source.get_all_samples()
        return Recording(decoded.data, decoded.sample_rate, "decoded audio")
    raise ValueError(
        "A recording must be a path, bytes, an array (2, samples), a dict with 'array' and 'sampling_rate', or a "
        f"dataset row with 'audio'; got {type(source).__name__}."
    )


def _from_dict(source: dict[str, Any], sampling_rate: int) -> Recording:
    if "audio" in source:
        return load_recording(source["audio"], sampling_rate)
    array = source.get("array", source.get("raw"))
    if array is not None:
        rate = source.get("sampling_rate")
        if rate is None:
            raise ValueError(f"A recording given as a dict needs 'sampling_rate' in Hz, got keys {sorted(source)}.")
        try:
            is_whole = float(rate).is_integer()
        except (TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"'sampling_rate' of a recording must be a whole number of Hz, got {rate!r}.")
        array = array if isinstance(array, torch.Tensor) else np.asarray(array)
        name = source.get("path") or f"array of shape {tuple(array.shape)}"
        return Recording(array, int(rate), str(name))
    content = source.get("bytes")
    if content is not None:
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError(
                f"'bytes' of a recording must be the content of a sound file, got {type(content).__name__}."
            )
        return _from_file(io.BytesIO(content), str(source.get("path") or f"{len(content)} bytes"))
    if source.get("path") is not None:
        return load_recording(source["path"], sampling_rate)
    raise ValueError(
        f"A recording given as a dict needs 'array', 'bytes', 'path' or 'audio', got keys {sorted(source)}."
    )


def _from_file(file: str | io.BytesIO, name: str) -> Recording:
    if soundfile is None:
        raise ValueError(f"Reading {name} needs the soundfile package: pip install soundfile.")
    if isinstance(file, str) and not Path(file).is_file():
        raise FileNotFoundError(f"No sound file at {name}.")
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise OSError(f"{name} cannot be read as a sound file: {error}") from error
    if missing := missing_wav_bytes(file):
        raise OSError(f"{name} is truncated: its header promises {missing} bytes more of samples.")
    return Recording(samples.T, rate, name)


def missing_wav_bytes(file: str | io.BytesIO) -> int:
    """Bytes of samples that a WAV header promises behind the end of the file; libsndfile passes over them silently."""
    with open(file, "rb") if isinstance(file, str) else nullcontext(file) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        header = stream.read(12)
        if header[:4] != b"RIFF" or header[8:] != b"WAVE":
            return 0
        position = len(header)
        while position + 8 <= size:
            stream.seek(position)
            chunk, length = struct.unpack("<4sI", stream.read(8))
            if chunk == b"data":
                # Programs that write to a pipe put a number near 2 or 4 GiB where they cannot know the length.
                return 0 if length >= 0x7FFF0000 else max(0, position + 8 + length - size)
            position += 8 + length + length % 2  # chunks begin at even positions
    return 0
