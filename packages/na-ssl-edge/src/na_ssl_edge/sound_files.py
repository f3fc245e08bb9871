"""The sound files that a user names: single files, and all that lie below folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

# What the sound reader of `hub` can open, by the usual names.
SOUND_SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".aif",
    ".aiff",
    ".aifc",
    ".au",
    ".caf",
    ".rf64",
    ".w64",
)

logger = logging.getLogger(__name__)


def is_sound_name(name: str) -> bool:
    """Tell whether a file of this name is taken for a sound: its suffix is known, in any case, and it is not hidden."""
    return not name.startswith(".") and name.lower().endswith(SOUND_SUFFIXES)


def find_sound_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files among `paths` and the sound files below its folders, sorted within each folder.

    The rules for folders:

    - A file is taken by its suffix (`SOUND_SUFFIXES`, in any case). Hidden files, such as the `._x.wav` of macOS, and
      hidden folders are passed over. A folder whose name ends in `.wav` is a folder.
    - Links to folders are followed. A folder that was met before is not entered again, so that links may form loops.
    - A link to a sound that does not exist is returned like a file, so that its reader reports it as missing. Any
      other link that leads nowhere is left out with a warning, as it may have been a folder of sounds.
    - The same file is returned once, with a warning, when it is met again through `paths` or a link.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no sound files.
        OSError: a folder cannot be read.
    """
    first: dict[str, Path] = {}
    found: list[Path] = []
    repeated: list[str] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = _files_below(path)
            if not files:
                raise FileNotFoundError(f"{path} must hold sound files ({', '.join(SOUND_SUFFIXES)}), got none")
        elif path.is_file():
            files = [path]
        else:
            raise FileNotFoundError(f"no file or folder {path}")
        kept = []
        for file in files:
            earlier = first.setdefault(os.path.realpath(file), file)
            if earlier is file:
                kept.append(file)
            else:
                repeated.append(f"{file} is {earlier}")
        found += sorted(kept)
    if repeated:
        logger.warning(
            f"{len(repeated)} sound files were named more than once and count once, the first of them: {repeated[0]}."
        )
    return found


def libsndfile_path(path: str | Path) -> str | bytes:
    """Return a path as soundfile takes it; it refuses texts for names in another encoding than the system's."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return str(path)


def _files_below(root: Path) -> list[Path]:
    """List the sound files below a folder, those that only links lead to last."""
    entered = {os.path.realpath(root)}
    folders = [root]
    linked_folders: list[Path] = []
    files: list[Path] = []
    linked_files: list[Path] = []
    is_linked = False
    while folders or linked_folders:
        if not folders:
            # The name that a file has without links is the better one, so links wait until all else is listed.
            is_linked = True
            link = linked_folders.pop(0)
            if (real := os.path.realpath(link)) in entered:
                logger.warning(f"The link {link} leads to a folder whose sounds are listed already: {real}.")
                continue
            entered.add(real)
            folders.append(link)
        folder = folders.pop(0)
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                if os.path.isdir(path):
                    linked_folders.append(path)
                elif is_sound_name(entry.name):
                    linked_files.append(path)
                elif not os.path.exists(path):
                    logger.warning(f"The link {path} leads nowhere and is left out: {os.readlink(path)}.")
            elif entry.is_dir():
                if (real := os.path.realpath(path)) not in entered:
                    entered.add(real)
                    folders.append(path)
            elif is_sound_name(entry.name):
                (linked_files if is_linked else files).append(path)
    return sorted(files) + sorted(linked_files)
