"""Files and folders that appear whole or not at all: a kill or a full disk leaves the old ones as they were."""

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Constants of Linux's renameat2(2).
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well; missing folders are made.

    When the block raises, what was written is removed and `path` stays as it was; a kill leaves at most a hidden file
    that ends in `.partial`, which the next call removes. A link is followed. A pipe or a device is written through: it
    cannot be replaced.

    Args:
        path: the file to write.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the message names `path`.
    """
    target = Path(path).resolve() if os.path.islink(path) else Path(path)
    with _naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():
        if target.is_dir():
            raise IsADirectoryError(f"{path} must be a file to write, got a folder.")
        yield target
        return
    prefix = f".{_short(target.name)}."
    _remove_left_over_files(target.parent, prefix)
    partial = target.with_name(f"{prefix}{os.getpid()}.partial")
    try:
        with _naming(path):
            mode = _mode_of_new_files(partial)
            yield partial
            partial.chmod(mode)
            os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | os.PathLike[str], keeps: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` when the block ends well.

    The two are exchanged by one operation of the file system, so that a kill leaves the old content or the new one.
    When the block raises, `folder` stays as it was. What an earlier kill left behind is removed. A link is followed;
    where `folder` is a mount point, or the system cannot exchange, its files are replaced one by one.

    Args:
        folder: the folder to write.
        keeps: whether an entry of `folder`, by its name, stays in it where the block writes none of that name.

    Raises:
        OSError: `folder` is a file, or cannot be written; the message names it.
    """
    target = Path(folder).resolve() if os.path.islink(folder) else Path(folder)
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{folder} must be a folder to write, got a file.")
    prefix = f".{_short(target.name)}.staging-"
    with _naming(folder):
        # A mount point's neighbours are on another file system.
        beside = target if os.path.ismount(target) else target.parent
        beside.mkdir(parents=True, exist_ok=True)
        _remove_left_over(beside, prefix)
        staging = beside / f"{prefix}{os.getpid()}-{uuid.uuid4().hex}"
        staging.mkdir()
    try:
        with _naming(folder):
            mode = _mode_of_new_files(staging / ".mode.partial")
            yield staging
            for file in staging.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    file.chmod(mode | file.stat().st_mode & 0o111)
            if not target.exists():
                os.rename(staging, target)
            elif beside == target:
                _replace_files(staging, target, keeps)
            else:
                _link_kept_files(target, staging, keeps)
                if not _exchange(staging, target):
                    _replace_files(staging, target, keeps)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _short(name: str) -> str:
    """Return a name that leaves room for more in the 255 bytes of a file's name, and differs where long names do."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= 128 else f"{name[:20]}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _remove_left_over(beside: Path, prefix: str) -> None:
    for left_over in beside.iterdir():
        if not left_over.name.startswith(prefix):
            continue
        owner = left_over.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not _is_running(int(owner)):
            shutil.rmtree(left_over, ignore_errors=True)


def _remove_left_over_files(folder: Path, prefix: str) -> None:
    for left_over in folder.glob(f"{glob.escape(prefix)}*.partial"):
        owner = left_over.name.removeprefix(prefix).removesuffix(".partial")
        if owner.isdigit() and not _is_running(int(owner)):
            left_over.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def _mode_of_new_files(probe: Path) -> int:
    """What the umask leaves of a new file's permissions; some libraries write files that only the owner can read."""
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders by one operation; False where the system has none."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # an old C library
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EBUSY, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _replace_files(staging: Path, target: Path, keeps: Callable[[str], bool]) -> None:
    written = {entry.name for entry in staging.iterdir()}
    for name in sorted(written):
        if (target / name).is_dir() and not (target / name).is_symlink():
            shutil.rmtree(target / name)
        os.replace(staging / name, target / name)
    for entry in list(target.iterdir()):
        if entry.name not in written and entry != staging and not keeps(entry.name):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _link_kept_files(target: Path, staging: Path, keeps: Callable[[str], bool]) -> None:
    """Put the entries of `target` that are kept into `staging`, as further names of the same files."""
    for entry in target.iterdir():
        place = staging / entry.name
        if not keeps(entry.name) or place.exists() or place.is_symlink():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, place, symlinks=True, copy_function=_link)
        else:
            _link(entry, place)


def _link(source: str | Path, destination: str | Path) -> str | Path:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination, follow_symlinks=False)
    return destination


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of a disk that is full say what was being written, whichever library met them."""
    try:
        yield
    except Exception as error:
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # safetensors and others hand the system's message on in their own exceptions.
        if is_full or "No space left on device" in str(error):
            raise OSError(errno.ENOSPC, f"{path} cannot be written: No space left on device") from error
        raise
