"""Results as lines of JSON, for whatever reads the output of `na-ssl watch`."""

import json
import sys
from typing import TextIO

import numpy as np

from .results import AlarmEvent, WatchedMachine, WindowResult


class JsonLines:
    """A listener that writes a line for every window, at once.

    Args:
        stream: the text file to write to; `None` for standard output.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stdout if stream is None else stream

    def opened(self, machine: WatchedMachine) -> None:
        """Write nothing: a reader gets windows only."""

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Write the line of a window. A BrokenPipeError says that nobody reads any more."""
        self._stream.write(json.dumps(result.to_dict(), allow_nan=False) + "\n")
        self._stream.flush()

    def event(self, event: AlarmEvent) -> None:
        """Write nothing: the state in the line of a window says it."""

    def close(self) -> None:
        """Leave the stream open, which belongs to somebody else."""
