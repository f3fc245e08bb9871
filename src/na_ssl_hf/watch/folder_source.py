"""A folder into which recorders drop files of sound."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from ..data.sound_files import is_sound_name
from ..hub.sound_reader import SoundReader
from .sources import BLOCK_SECONDS, Block, check_two_channels

logger = logging.getLogger(__name__)

# A file that has not grown for so long, in s, is looked at; whether it is whole its format says.
SETTLED_SECONDS = 1.0
# A file that still is not whole so long after it has last grown never will be.
GIVEN_UP_SECONDS = 30.0


class DroppedFiles:
    """The sound files of a folder, in the order of their times of change; new ones as they come.

    Every file is a recording of its own: no window reaches over its end. A file that is still written is waited for,
    and one that cannot be read is told in the log and passed over.

    Args:
        folder: of the files; folders in it are not entered.
        after: only files that were changed later than this are given, in s since 1970; `None` for all.
        forever: whether new files are waited for.

    Raises:
        ValueError: the package watchfiles is missing.
    """

    is_live = False

    def __init__(self, folder: Path, after: float | None = None, forever: bool = True):
        try:
            import watchfiles
        except ImportError as error:
            raise ValueError(
                "A folder as a source needs the package watchfiles: pip install 'na-ssl-hf[watch]'."
            ) from error
        self._watch = watchfiles.watch
        self.name = str(folder)
        self._folder = folder
        self._after = -1.0 if after is None else after
        self._forever = forever
        self._stop = threading.Event()
        self._done: set[str] = set()
        # Name -> size at the last look, and the time when it was first seen with this size.
        self._sizes: dict[str, tuple[int, float]] = {}

    def blocks(self) -> Iterator[Block]:
        """Give file after file; errors as those of [`Source`], but for single files, which are passed over."""
        changes = self._watch(
            self._folder,
            stop_event=self._stop,
            rust_timeout=int(1000 * SETTLED_SECONDS),
            yield_on_timeout=True,
            recursive=False,
            raise_interrupt=False,
        )
        while not self._stop.is_set():
            for path in self._settled():
                yield from self._file_blocks(path)
                if self._stop.is_set():
                    return
            if not self._forever and not self._sizes:
                return
            # Whatever has changed, the folder is listed: a change that the system does not tell is found as well.
            next(changes, None)

    def close(self) -> None:
        """End the blocks."""
        self._stop.set()

    def _settled(self) -> list[Path]:
        """Return the new files that no longer grow, oldest first."""
        try:
            entries = [entry for entry in os.scandir(self._folder) if is_sound_name(entry.name) and entry.is_file()]
        except OSError as error:
            raise OSError(f"The folder {self.name} can no longer be read: {error}") from error
        # Names of files that are gone are forgotten, or the set would grow for ever.
        self._done &= {entry.name for entry in entries}
        found = []
        for entry in entries:
            if entry.name in self._done:
                continue
            try:
                status = entry.stat()
            except OSError:  # it went away meanwhile
                continue
            if status.st_mtime <= self._after:
                self._done.add(entry.name)
                continue
            size, since = self._sizes.get(entry.name, (-1, 0.0))
            if size != status.st_size:
                since = time.monotonic()
                self._sizes[entry.name] = (status.st_size, since)
            is_old = time.time() - status.st_mtime > SETTLED_SECONDS
            if is_old or time.monotonic() - since >= SETTLED_SECONDS:
                found.append((status.st_mtime, entry.name))
        return [self._folder / name for _, name in sorted(found)]

    def _file_blocks(self, path: Path) -> Iterator[Block]:
        since = self._sizes[path.name][1]
        try:
            changed = path.stat().st_mtime
            with closing(SoundReader(str(path), str(path))) as reader:
                check_two_channels(reader.num_channels, str(path))
                began = changed - reader.num_frames / reader.sampling_rate
                position = 0
                for samples in reader.blocks(round(BLOCK_SECONDS * reader.sampling_rate)):
                    is_first = position == 0
                    at = began + position / reader.sampling_rate
                    yield Block(samples, reader.sampling_rate, begins=is_first, unix_time=at, is_part=True)
                    position += samples.shape[1]
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and time.monotonic() - since < GIVEN_UP_SECONDS and self._forever:
                return  # its recorder may not have finished it
            logger.warning(f"{path} is passed over: {' '.join(str(error).split())}")
        self._sizes.pop(path.name, None)
        self._done.add(path.name)
