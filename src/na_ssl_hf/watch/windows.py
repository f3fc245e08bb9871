"""From the blocks of a source to windows of equal length at the rate of the model, and what to do when one is late.

Letters: n samples of a block, N samples of a window.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import soxr

from .sources import Block, Source

logger = logging.getLogger(__name__)

# A source that waits for its reader is read ahead by so many s.
READ_AHEAD_SECONDS = 30.0
# Of live sound, more than this is never kept, in s; a scorer that hangs must not fill the memory.
MOST_KEPT_SECONDS = 600.0


@dataclass(frozen=True)
class Window:
    """One window of the sound of a source.

    Attributes:
        samples: `(2, N)` float32, channel 0 close and 1 far, full scale 1.0.
        start, end: in s since the stream began, by the clock of the samples.
        started_at: when the stream began by that clock, in s since 1970; `None` where nobody knows.
        is_short: whether the recording, or the stream, was shorter than a window.
    """

    samples: np.ndarray
    start: float
    end: float
    started_at: float | None
    is_short: bool = False


class WindowCutter:
    """Cuts a stream into windows. No window reaches over a place where sound is missing.

    The stream is resampled by soxr with its state kept, so that its samples are those of the whole stream resampled at
    once. A stream of a lower rate than the model's stays as it is: the scorer knows which bands it holds.

    Args:
        model_rate: the sampling rate of the model in Hz.
        length, hop: seconds of a window, and from the start of one to that of the next, at most `length`.
        least_samples: the fewest samples at the model's rate that the scorer takes.

    Attributes:
        rate: of the windows' samples in Hz; 0 before the first block.
        num_gaps: the places, after the first block, before which sound was missing.

    Raises:
        ValueError: `length` or `hop` is out of its range.
    """

    def __init__(self, model_rate: int, length: float, hop: float, least_samples: int = 1):
        if not 0 < length < float("inf") or length * model_rate < least_samples:
            raise ValueError(
                f"`window` must be a number of seconds of at least {least_samples / model_rate:g}, got {length!r}."
            )
        if not 0 < hop <= length:
            raise ValueError(f"`hop` must be a number of seconds above 0 and at most {length:g}, got {hop!r}.")
        self._model_rate = model_rate
        self._length, self._hop, self._least = length, hop, least_samples
        self.rate = 0
        self.num_gaps = 0
        self._time = 0.0  # of the first sample in the buffer, in s
        self._started_at: float | None = None
        self._resampler: soxr.ResampleStream | None = None
        self._source_rate = 0
        self._buffer: list[np.ndarray] = []
        self._num_buffered = 0
        self._has_cut = True

    def push(self, block: Block) -> Iterator[Window]:
        """Take the next block and give the windows that end in it, the last one of a part that has ended first."""
        if block.begins or block.sampling_rate != self._source_rate:
            yield from self._begin(block)
        if not block.samples.shape[1]:
            return
        self._add(self._resampled(block.samples))
        yield from self._full_windows()

    def finish(self) -> Iterator[Window]:
        """Give the windows that are left at the end of the stream."""
        yield from self._end_of_part()

    def _begin(self, block: Block) -> Iterator[Window]:
        yield from self._end_of_part()
        if self._source_rate and not block.is_part:
            self.num_gaps += 1
        self._time += block.lost
        self._source_rate = block.sampling_rate
        self.rate = min(block.sampling_rate, self._model_rate)
        self._has_cut = not block.samples.shape[1]
        if block.unix_time is not None:
            self._started_at = block.unix_time - self._time
        self._resampler = None
        if self.rate != block.sampling_rate:
            self._resampler = soxr.ResampleStream(block.sampling_rate, self.rate, 2, dtype="float32")

    def _end_of_part(self) -> Iterator[Window]:
        if not self._source_rate:
            return
        if self._resampler is not None:
            self._add(self._resampled(np.zeros((2, 0), np.float32), is_last=True))
        yield from self._full_windows()
        samples = self._taken(self._num_buffered, keep=0)
        seconds = samples.shape[1] / self.rate
        # Of a longer part the rest was heard in its last window, but for less than a hop.
        if not self._has_cut and samples.shape[1] >= self._least * self.rate / self._model_rate:
            yield Window(samples, self._time, self._time + seconds, self._started_at, is_short=True)
        self._time += seconds

    def _resampled(self, samples: np.ndarray, is_last: bool = False) -> np.ndarray:
        if self._resampler is None:
            return samples
        frames = np.ascontiguousarray(samples.T)  # (n, 2)
        return np.ascontiguousarray(self._resampler.resample_chunk(frames, last=is_last).T)  # (2, n)

    def _add(self, samples: np.ndarray) -> None:
        self._buffer.append(samples)
        self._num_buffered += samples.shape[1]

    def _full_windows(self) -> Iterator[Window]:
        length, hop = round(self._length * self.rate), round(self._hop * self.rate)
        while self._num_buffered >= length:
            samples = self._taken(length, keep=max(0, length - hop))
            yield Window(samples, self._time, self._time + length / self.rate, self._started_at)
            self._time += hop / self.rate
            self._has_cut = True

    def _taken(self, num_samples: int, keep: int) -> np.ndarray:
        """Return the first samples of the buffer, the last `keep` of which stay in it."""
        if not self._buffer:
            return np.zeros((2, 0), np.float32)
        joined = np.concatenate(self._buffer, axis=1) if len(self._buffer) > 1 else self._buffer[0]
        taken, left = joined[:, :num_samples], joined[:, num_samples - keep :]
        self._buffer, self._num_buffered = [left], left.shape[1]
        return np.ascontiguousarray(taken)


class Reader:
    """Reads a source in a thread of its own, so that live sound is taken while a window is scored.

    A source that is not live waits for its reader; of a live one everything is taken, and `backlog` says how much.

    Attributes:
        backlog: the seconds of sound that were read and not yet taken.
    """

    def __init__(self, source: Source):
        self._source = source
        self._blocks: deque[Block | BaseException | None] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._dropped = 0.0
        self.backlog = 0.0
        self._thread = threading.Thread(target=self._read, name=f"reader of {source.name}", daemon=True)

    def blocks(self) -> Iterator[Block]:
        """Give the blocks of the source; errors are those of the source."""
        self._thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._blocks or self._is_stopped)
                if self._is_stopped:
                    return
                block = self._blocks.popleft()
                if isinstance(block, Block):
                    self.backlog = max(0.0, self.backlog - block.seconds)
                self._changed.notify_all()
            if block is None:
                return
            if isinstance(block, BaseException):
                raise block
            yield block

    def stop(self) -> None:
        """End the blocks now; may be called from another thread."""
        self._source.close()
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _read(self) -> None:
        end: BaseException | None = None
        try:
            for block in self._source.blocks():
                if not self._put(block):
                    return
        except Exception as error:
            end = error
        with self._changed:
            self._blocks.append(end)
            self._changed.notify_all()

    def _put(self, block: Block) -> bool:
        """Hand a block over; False where nobody wants more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_stopped or self._source.is_live or self.backlog < READ_AHEAD_SECONDS
            )
            if self._is_stopped:
                return False
            if self.backlog > MOST_KEPT_SECONDS:
                if not self._dropped:
                    logger.warning(
                        f"{self._source.name}: nothing was scored for {MOST_KEPT_SECONDS:g} s; sound is lost."
                    )
                self._dropped += block.seconds
                return True
            if self._dropped:
                block = replace(block, begins=True, lost=block.lost + self._dropped)
                self._dropped = 0.0
            self._blocks.append(block)
            self.backlog += block.seconds
            self._changed.notify_all()
        return True
