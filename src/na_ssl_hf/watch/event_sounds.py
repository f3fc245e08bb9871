"""Keep the sound around events as FLAC files, within a bound on their size."""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from ..hub.whole_files import whole_file
from .results import WatchedMachine, WindowResult

# Seconds that are kept before an event begins, and the most that is kept from its beginning on.
BEFORE_S, LONGEST_S = 30.0, 120.0
SUFFIX = ".flac"


@dataclass
class _Machine:
    sampling_rate: int
    recent: deque[np.ndarray] = field(default_factory=deque)  # (2, n) each, the newest last
    num_recent: int = 0
    heard_until: float = 0.0  # the end of the last window, in s since the stream began
    events: dict[str, list[np.ndarray]] = field(default_factory=dict)


class EventSounds:
    """The sounds of events in one folder, a two-channel FLAC file of 16 bits each, named by the event.

    Args:
        folder: of the files; made with the first one.
        most_bytes: the most that all of them take together; the oldest are removed first. 0 keeps none.

    Raises:
        ValueError: `most_bytes` is negative.
    """

    def __init__(self, folder: str | Path, most_bytes: int) -> None:
        if most_bytes < 0:
            raise ValueError(f"`sound_bytes` must be at least 0, got {most_bytes}")
        self.folder = Path(folder)
        self._most_bytes = most_bytes
        self._machines: dict[str, _Machine] = {}

    def opened(self, machine: WatchedMachine) -> None:
        """Begin anew with a machine."""
        self._machines[machine.name] = _Machine(machine.sampling_rate)

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Take the new sound of a window, `(2, N)` float32; write what belongs to events that it begins or ends.

        A file is written when its event begins, so that it can be heard at once, and again when it is complete.

        Raises:
            OSError: a file cannot be written.
        """
        if self._most_bytes == 0 or result.machine not in self._machines:
            return
        machine = self._machines[result.machine]
        new = self._new_sound(machine, result, samples)
        self._remember(machine, new)
        for sounds in machine.events.values():
            sounds.append(new)
        finished = [event.id for event in result.events if event.end is not None]
        for event in result.events:
            if event.end is None and event.id not in machine.events:
                machine.events[event.id] = list(machine.recent)
                self._write(machine, event.id)
        for event_id, sounds in list(machine.events.items()):
            most = (BEFORE_S + LONGEST_S) * machine.sampling_rate
            if event_id in finished or sum(sound.shape[1] for sound in sounds) >= most:
                self._write(machine, event_id)
                del machine.events[event_id]

    def close(self) -> None:
        """Write what is still going on."""
        for machine in self._machines.values():
            for event_id in list(machine.events):
                self._write(machine, event_id)
                del machine.events[event_id]

    def path(self, event: str) -> Path | None:
        """Return the file of an event, None where it has none (or no longer)."""
        path = self.folder / f"{event}{SUFFIX}"
        return path if event.isalnum() and path.is_file() else None

    def _new_sound(self, machine: _Machine, result: WindowResult, samples: np.ndarray) -> np.ndarray:
        """Return the part of a window, `(2, n)`, that the windows before it did not hold."""
        new_seconds = min(result.end - machine.heard_until, result.end - result.start)
        machine.heard_until = result.end
        num_new = min(max(round(new_seconds * machine.sampling_rate), 0), samples.shape[1])
        return np.array(samples[:, samples.shape[1] - num_new :], np.float32)  # (2, n)

    def _remember(self, machine: _Machine, new: np.ndarray) -> None:
        machine.recent.append(new)
        machine.num_recent += new.shape[1]
        most = BEFORE_S * machine.sampling_rate
        while machine.num_recent - machine.recent[0].shape[1] >= most:
            machine.num_recent -= machine.recent.popleft().shape[1]

    def _write(self, machine: _Machine, event: str) -> None:
        sound = np.concatenate(machine.events[event], axis=1)  # (2, N)
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.folder / f"{event}{SUFFIX}") as path:
            soundfile.write(path, sound.T, machine.sampling_rate, format="FLAC", subtype="PCM_16")
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        files = [(entry.stat(), Path(entry.path)) for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX)]
        total = sum(status.st_size for status, _path in files)
        for status, path in sorted(files, key=lambda file: (file[0].st_mtime_ns, file[1].name)):
            if total <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size
