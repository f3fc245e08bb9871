"""The evidence against machines in a small file, so that a restart goes on from it where there is no store."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..hub.whole_files import whole_file
from .results import AlarmEvent, WatchedMachine, WindowResult

logger = logging.getLogger(__name__)


class StateFile:
    """Keeps what a restart needs, for a [`Monitor`] both a listener and its keeper. The file is whole at any time.

    What the monitor has learned, which is large, is kept in a second file beside it, whose name ends in `.learned`.

    Args:
        path: of the file; its folder must exist.

    Raises:
        OSError: a file exists and cannot be read.
    """

    def __init__(self, path: Path):
        self._path, self._learned_path = path, path.with_name(f"{path.name}.learned")
        self._states, self._learned = _found(self._path), _found(self._learned_path)

    def load(self, machine: str) -> Mapping[str, Any] | None:
        """Return what was kept of a machine."""
        found = self._states.get(machine)
        if not isinstance(found, dict):
            return None
        return found | ({"learned": self._learned[machine]} if machine in self._learned else {})

    def opened(self, machine: WatchedMachine) -> None:
        """Take no note: only windows change the evidence."""

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Write the evidence after a window; an OSError says that it could not be written."""
        if result.learned is not None:
            self._learned[result.machine] = dict(result.learned)
            _write(self._learned_path, self._learned)
        self._states[result.machine] = dict(result.resume)
        _write(self._path, self._states)

    def event(self, event: AlarmEvent) -> None:
        """Take no note: the window has told it."""

    def close(self) -> None:
        """Do nothing: the file is written."""


def _found(path: Path) -> dict[str, Any]:
    """What a file holds, machine by machine; nothing where it is missing or holds something else."""
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            logger.warning(f"{path} holds no state and is written anew: {error}")
    return {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as partial:
        Path(partial).write_text(json.dumps(content), encoding="utf-8")
