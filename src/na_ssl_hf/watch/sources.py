"""Where the sound of a machine comes from: a pipe, a file, a folder, a sound card or a network stream.

A source gives blocks of two channels, 0 close and 1 far, and says where sound is missing between them. What a user
writes on the command line or in a file becomes a source by `open_source`.

Letters: n samples of a block.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..hub.sound_reader import SoundReader

logger = logging.getLogger(__name__)

# Long enough to cost little, short against every window.
BLOCK_SECONDS = 0.25


@dataclass(frozen=True)
class Block:
    """Some sound of a source.

    Attributes:
        samples: `(2, n)` float32, channel 0 close and 1 far, full scale 1.0; n may be 0.
        sampling_rate: in Hz.
        begins: whether sound is missing before it, as before the first block: no window reaches over such a place.
        lost: how much is missing, in s, where that is known.
        unix_time: when its first sample was recorded, in s since 1970; `None` where nobody knows.
        is_part: whether a recording begins with it that ends where the next block `begins`, as a file of a folder does.
        trouble: why no sound comes at present, one line for people; `None` where it does.
    """

    samples: np.ndarray
    sampling_rate: int
    begins: bool = False
    lost: float = 0.0
    unix_time: float | None = None
    is_part: bool = False
    trouble: str | None = None

    @property
    def seconds(self) -> float:
        """The length of the block in s."""
        return self.samples.shape[1] / self.sampling_rate


class Source(Protocol):
    """Where sound comes from.

    Attributes:
        name: what messages call it.
        is_live: whether sound goes on whether or not somebody takes it, so that one can be too late for it.
    """

    name: str

    @property
    def is_live(self) -> bool: ...

    def blocks(self) -> Iterator[Block]:
        """Give the sound block by block, until it ends or the source is closed.

        Raises:
            ValueError: the sound has not two channels, or a wrong format.
            OSError: the source is missing or cannot be read.
        """
        ...

    def close(self) -> None:
        """End the blocks soon; may be called from another thread, and more than once."""
        ...


class RecordedFile:
    """A sound file, at its own speed or at any other.

    Args:
        path: of the file.
        speed: seconds of sound in a second; 0 for as fast as it is taken.

    Raises:
        ValueError: `speed` is negative or not finite.
    """

    is_live = False

    def __init__(self, path: str | Path, speed: float = 0.0):
        if not 0 <= speed < float("inf"):
            raise ValueError(f"`speed` must be a number of at least 0, got {speed!r}.")
        self.name = str(path)
        self._speed = speed
        self._is_closed = False

    def blocks(self) -> Iterator[Block]:
        """Give the file from its beginning to its end; errors as those of [`Source`]."""
        began, given = time.monotonic(), 0.0
        with closing(SoundReader(self.name, self.name)) as reader:
            check_two_channels(reader.num_channels, self.name)
            for samples in reader.blocks(round(BLOCK_SECONDS * reader.sampling_rate)):
                if self._is_closed:
                    return
                yield Block(samples, reader.sampling_rate, begins=given == 0.0)
                given += samples.shape[1] / reader.sampling_rate
                if self._speed:
                    time.sleep(max(0.0, began + given / self._speed - time.monotonic()))

    def close(self) -> None:
        """End the blocks."""
        self._is_closed = True


def check_two_channels(num_channels: int, name: str) -> None:
    """Raise a ValueError for sound that is not of one close and one far microphone."""
    if num_channels != 2:
        raise ValueError(
            f"The source must have two channels, 0 close and 1 far; {name} has {num_channels}. Record both "
            "microphones with one stereo device, or name two devices, as device:CLOSE+FAR."
        )


def open_source(text: str, rate: int | None = None, sample_format: str | None = None, speed: float = 0.0) -> Source:
    """Return the source that a user means.

    Args:
        text: `-` for standard input; a folder into which recorders drop files; a sound file; `device`, or
            `device:NAME` with the number or a part of the name of a sound card; `device:CLOSE+FAR` for two of them with
            a microphone each; an address such as
            `rtsp://camera/audio` for what PyAV can open.
        rate: the sampling rate in Hz: of raw samples on standard input, and asked of a sound card.
        sample_format: the format of raw samples on standard input, one of `RAW_FORMATS`.
        speed: see [`RecordedFile`].

    Raises:
        ValueError: the text means nothing, an option does not go with it, or a package is missing.
        OSError: there is no such file.
    """
    from .device_sources import NetworkStream, SoundCard, TwoSoundCards
    from .folder_source import DroppedFiles
    from .pipe_source import Pipe

    if not isinstance(text, str) or not text:
        raise ValueError(f"`source` must be -, a file, a folder, device[:NAME] or an address, got {text!r}.")
    is_device = text == "device" or text.startswith("device:")
    if sample_format is not None and text != "-":
        raise ValueError(f"`format` must go with the source -, whose raw samples it describes, got {text!r}.")
    if rate is not None and text != "-" and not is_device:
        raise ValueError(f"`rate` must go with the source - or device, because {text!r} says its own.")
    if speed and (text == "-" or is_device or "://" in text):
        raise ValueError(f"`speed` must go with a recorded file, got {speed!r} for {text!r}.")
    if text == "-":
        return Pipe(rate=rate, sample_format=sample_format)
    if is_device:
        close, plus, far = text.partition(":")[2].partition("+")
        if plus and not (close and far):
            raise ValueError(f"`source` must name two devices, as device:CLOSE+FAR, got {text!r}.")
        return TwoSoundCards(close, far, rate) if plus else SoundCard(close, rate)
    if "://" in text:
        return NetworkStream(text)
    path = Path(text)
    if path.is_dir():
        return DroppedFiles(path)
    if not path.exists():
        raise FileNotFoundError(
            f"`source` must be -, a file, a folder, device[:NAME] or an address; there is no file {text}."
        )
    return RecordedFile(path, speed)
