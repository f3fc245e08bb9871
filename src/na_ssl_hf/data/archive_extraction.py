"""Unpack ZIP archives of others so that nothing is written outside the folder that was asked for."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Collection
from lzma import LZMAError
from pathlib import Path

from tqdm.auto import tqdm

from ..hub.whole_files import whole_file

_ENCRYPTED = 0x1
_COPY_BYTES = 1 << 20
# Sounds shrink to a half or so and tables to a tenth. Deflate reaches a thousand, which only bombs and silence use.
_LARGEST_RATIO, _ALLOWED_BYTES = 100, 1 << 30


def extract_zip(archive: str | Path, folder: str | Path, show_progress: bool = True) -> list[Path]:
    """Unpack all files of `archive` below `folder` and return their paths.

    Every member is looked at before the first is written. Files appear whole or not at all. A file that is there with
    the archive's content is left as it is, so that a run after a kill writes only what is missing. Folders `__MACOSX`
    are left out.

    Raises:
        ValueError: a member is absolute, leads outside (`..`, a drive, a link on disk), is a link or another special
            file, is encrypted, is named twice, as the folder of another one, or as an unfinished file of this package;
            or the archive is a bomb, which holds far more than its size, or several members in the same bytes.
        OSError: `archive` is no ZIP archive, a checksum of a member is wrong, or the disk has no room for it.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as source:
            members = [member for member in source.infolist() if not member.filename.startswith("__MACOSX/")]
            _refuse_bombs(archive, members)
            targets = _targets(archive, folder, members)
            _remove_left_over(targets)
            _check_room(archive, folder, targets)
            bar = tqdm(targets.items(), f"unpack {archive.name}", unit="file", disable=not show_progress)
            for target, member in bar:
                if not _is_there(target, member):
                    _write(source, member, target)
    except (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, OSError) as error:
        if str(archive) in str(error):
            raise
        raise OSError(f"{archive} cannot be unpacked: {error}") from error
    return list(targets)


def _targets(archive: Path, folder: Path, members: list[zipfile.ZipInfo]) -> dict[Path, zipfile.ZipInfo]:
    """Return where each file goes; raise ValueError for the first member that must not be written."""
    root = folder.resolve()
    targets: dict[Path, zipfile.ZipInfo] = {}
    for member in members:
        # zipfile cuts names at a NUL and mends some separators, but what the archive says is what counts.
        if reason := _refusal(member.orig_filename) or _special(member):
            raise ValueError(f"{archive} must hold plain files only, got {member.orig_filename!r}: {reason}")
        target = root / member.filename
        if not target.resolve().is_relative_to(root):
            raise ValueError(f"{archive} must stay below {root}, got {member.filename!r}: a link leads elsewhere")
        if member.is_dir():
            continue
        if target in targets:
            raise ValueError(f"{archive} must name every file once, got {member.filename!r} twice")
        targets[target] = member
    for target in targets:
        if folders := [parent for parent in target.parents if parent in targets]:
            raise ValueError(f"{archive} must not name {folders[0].name!r} as a file and as the folder of another one")
    return targets


def _refuse_bombs(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    size = archive.stat().st_size
    unpacked, packed = (sum(getattr(member, name) for member in members) for name in ("file_size", "compress_size"))
    if packed > size:
        raise ValueError(f"{archive} must hold every member in bytes of its own, got {packed} bytes in {size}")
    if unpacked > max(_ALLOWED_BYTES, _LARGEST_RATIO * size):
        largest = max(members, key=lambda member: member.file_size)
        raise ValueError(
            f"{archive} must unpack to at most {_LARGEST_RATIO} times its size, got {unpacked} bytes from {size}, most "
            f"of them in {largest.filename!r}"
        )


def _refusal(name: str) -> str | None:
    parts = re.split(r"[/\\]", name)
    if not name or "\0" in name:
        return "no valid name"
    if parts[0] == "" or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if ".." in parts:
        return "a path that leads upwards"
    if re.fullmatch(r"\..*\.(part|partial)", parts[-1]):
        return "named like an unfinished file"
    return None


def _special(member: zipfile.ZipInfo) -> str | None:
    mode = member.external_attr >> 16
    # Archives that were written elsewhere than on Unix have no mode.
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link" if stat.S_ISLNK(mode) else "a special file"
    return "encrypted" if member.flag_bits & _ENCRYPTED else None


def _remove_left_over(targets: Collection[Path]) -> None:
    """Remove the unfinished files of runs that were killed."""
    for parent in {target.parent for target in targets}:
        for path in parent.glob(".*.partial"):
            match = re.fullmatch(r"\.(.+)\.\d+\.partial", path.name)
            if match and parent / match[1] in targets:
                path.unlink(missing_ok=True)


def _check_room(archive: Path, folder: Path, targets: dict[Path, zipfile.ZipInfo]) -> None:
    needed = sum(member.file_size for target, member in targets.items() if not target.exists())
    folder.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(folder).free):
        raise OSError(f"{archive} unpacks to {needed / 1e9:.1f} GB, but {folder} has room for {free / 1e9:.1f} GB")


def _is_there(target: Path, member: zipfile.ZipInfo) -> bool:
    if not target.is_file() or target.stat().st_size != member.file_size:
        return False
    # Size and name are not enough, because revisions of an archive hold other sounds of the same length.
    checksum = 0
    with target.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum == member.CRC


def _write(source: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with whole_file(target) as partial, source.open(member) as content, partial.open("wb") as file:
        shutil.copyfileobj(content, file, _COPY_BYTES)
