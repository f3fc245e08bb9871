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

    Args:
        path: of the file; its folder must exist.

    Raises:
        OSError: the file exists and cannot be read.
    """

    def __init__(self, path: Path):
        self._path = path
        self._states: dict[str, Any] = {}
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self._states = found if isinstance(found, dict) else {}
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                logger.warning(f"{path} holds no state and is written anew: {error}")

    def load(self, machine: str) -> Mapping[str, Any] | None:
        """Return what was kept of a machine."""
        found = self._states.get(machine)
        return found if isinstance(found, dict) else None

    def opened(self, machine: WatchedMachine) -> None:
        """Take no note: only windows change the evidence."""

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Write the evidence after a window; an OSError says that it could not be written."""
        self._states[result.machine] = dict(result.resume)
        with whole_file(self._path) as partial:
            Path(partial).write_text(json.dumps(self._states), encoding="utf-8")

    def event(self, event: AlarmEvent) -> None:
        """Take no note: the window has told it."""

    def close(self) -> None:
        """Do nothing: the file is written."""
