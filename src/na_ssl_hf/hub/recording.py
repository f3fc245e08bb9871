"""From what a user holds to the samples of one recording: path, bytes, file, array, dict, dataset row or decoder."""

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from .sound_reader import SoundReader


class DecodedAudio(Protocol):
    """What an audio decoder of `datasets` gives: samples `(channels, N)` and their rate in Hz."""

    data: torch.Tensor
    sample_rate: int


class AudioDecoder(Protocol):
    """A lazy recording, as torchcodec's decoders are."""

    def get_all_samples(self) -> DecodedAudio: ...


class BinaryFile(Protocol):
    """An open sound file, such as `io.BytesIO`."""

    def read(self, size: int = -1, /) -> bytes: ...


# One recording: a path, the bytes of a sound file, an open file, samples `(channels, N)`, a dict (`array` or `raw` with
# `sampling_rate`, `bytes`, `path`, or a dataset row with `audio`), or a decoder.
RecordingSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | np.ndarray
    | torch.Tensor
    | Mapping[str, Any]
    | AudioDecoder
    | BinaryFile
)
# One recording or several: a list, a stream, an array `(B, channels, N)` or of paths, a data set or a part of it.
RecordingSources: TypeAlias = RecordingSource | Iterable[RecordingSource]


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


def is_single_recording(recordings: RecordingSources) -> bool:
    """Whether the argument of a scorer is one recording, not a collection or stream of them.

    Raises:
        ValueError: a tuple, which could be both, or something that is neither.
    """
    if isinstance(recordings, tuple):
        raise ValueError(
            "`recordings` must not be a tuple, which could be one recording or several: give a list, or a dict "
            f"{{'array': ..., 'sampling_rate': ...}}; got a tuple of {len(recordings)}."
        )
    if isinstance(recordings, np.ndarray) and recordings.dtype.kind in "OSU":
        return recordings.ndim == 0
    if isinstance(recordings, (np.ndarray, torch.Tensor)):
        return recordings.ndim != 3
    if isinstance(recordings, Mapping):
        return not isinstance(recordings.get("audio"), list)
    if isinstance(recordings, (str, os.PathLike, bytes, bytearray)):
        return True
    if hasattr(recordings, "get_all_samples") or hasattr(recordings, "read"):
        return True
    if not hasattr(recordings, "__iter__") and not hasattr(recordings, "__getitem__"):
        raise ValueError(f"`recordings` must be one recording or several, got {type(recordings).__name__}.")
    return False


def each_recording(recordings: RecordingSources) -> Iterable[RecordingSource]:
    """The recordings one by one, whether there is a single one or several. ValueError as `is_single_recording`."""
    if is_single_recording(recordings):
        return [recordings]  # type: ignore[list-item]
    if isinstance(recordings, Mapping):  # a batch of a data set: columns, not rows
        return recordings["audio"]
    if isinstance(recordings, np.ndarray) and recordings.dtype.kind in "OSU":
        return recordings.ravel().tolist()
    return recordings  # type: ignore[return-value]


def load_recording(source: RecordingSource, sampling_rate: int) -> Recording:
    """Read one recording; channels are kept as they are, never mixed down.

    Args:
        source: a path of a sound file (WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg or MP3); its bytes, or an open binary
            file; an array `(channels, N)`; a dict with `array` (or `raw`) and `sampling_rate`, or with `bytes` and/or
            `path` as `datasets.Audio(decode=False)` gives it; a dataset row with such a value under `audio`; or a
            torchcodec decoder.
        sampling_rate: assumed for bare arrays, Hz.

    Raises:
        OSError: a file is missing, truncated, or cannot be decoded.
        ValueError: the source is of another kind, or a dict lacks a key.
    """
    if isinstance(source, Mapping):
        return _from_mapping(source, sampling_rate)
    if isinstance(source, np.ndarray) and source.ndim == 0 and source.dtype.kind in "OSU":
        source = source.item()
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fspath(source), str(source))
    if isinstance(source, (bytes, bytearray)):
        return _from_file(io.BytesIO(source), f"{len(source)} bytes")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return Recording(source, sampling_rate, f"array of shape {tuple(source.shape)}")
    if hasattr(source, "get_all_samples"):
        decoded = source.get_all_samples()
        return Recording(decoded.data, decoded.sample_rate, "decoded audio")
    if hasattr(source, "read"):
        return _from_open_file(source)
    raise ValueError(
        "A recording must be a path, bytes, an array (2, samples), a dict with 'array' and 'sampling_rate', or a "
        f"dataset row with 'audio'; got {type(source).__name__}."
    )


def _from_mapping(source: Mapping[str, Any], sampling_rate: int) -> Recording:
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


def _from_open_file(stream: Any) -> Recording:
    content = stream.read()
    name = getattr(stream, "name", None)
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"A recording given as a file must be opened in binary mode, got {type(content).__name__}.")
    return _from_file(io.BytesIO(content), name if isinstance(name, str) else f"file of {len(content)} bytes")


def _from_file(file: str | io.BytesIO, name: str) -> Recording:
    with SoundReader(file, name) as opened:
        return Recording(opened.read(), opened.sampling_rate, name)
