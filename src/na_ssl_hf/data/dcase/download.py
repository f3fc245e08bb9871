"""Download DCASE 2026 Task 2 from its Zenodo records, resume what was interrupted, check it and unpack it."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from ..archive_extraction import extract_zip

ZENODO = "https://zenodo.org"
# Training clips of the evaluation machines were published apart from, and before, their test clips.
RECORDS = {"development": 19336329, "evaluation-train": 20151556, "evaluation-test": 20437238}

_ARCHIVE = re.compile(r"(?P<base>.+?)(?:_r(?P<revision>\d+))?\.zip")
_TIMEOUT_S = 60
_MAX_TRIES = 5
_READ_BYTES = 1 << 20
_MOST_RECORD_BYTES = 1 << 26
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a record, with its plain name, size in bytes, MD5 in hexadecimal digits, and address."""

    name: str
    size: int
    md5: str
    url: str


def download_dcase2026(
    out: str | Path,
    sets: Sequence[str] = tuple(RECORDS),
    machines: Sequence[str] | None = None,
    extract: bool = True,
    base_url: str = ZENODO,
    retry_delay_s: float = 2.0,
    show_progress: bool = True,
) -> list[Path]:
    """Download archives to `out/archives` and unpack them to `out/development` and `out/evaluation`.

    When a call is repeated after an interruption, files with the right checksum are kept and a `.part` is continued.
    Where an archive has revisions (`dev_ToyCar.zip`, `dev_ToyCar_r2.zip`), the latest is taken.

    Args:
        out: folder to write.
        sets: some of "development", "evaluation-train", "evaluation-test".
        machines: names of the machines, by default all.
        extract: whether the archives are unpacked.
        base_url: address of a server with Zenodo's records API.
        retry_delay_s: seconds before the second of five tries, doubled for each further one.
        show_progress: whether progress bars are shown.

    Returns:
        The paths of the archives.

    Raises:
        ValueError: a set or machine is unknown, or an archive or record names files outside its folder.
        OSError: the server cannot be reached or does not answer as Zenodo does, a checksum is wrong, an archive is
            broken, or the disk has no room.
    """
    if isinstance(sets, str) or not sets or set(sets) - set(RECORDS):
        raise ValueError(f"sets must be some of {list(RECORDS)}, got {sets!r}")
    if isinstance(machines, str):
        raise ValueError(f"machines must be a list of names, got the string {machines!r}")
    out = Path(out)
    records = {name: select_archives(list_record(RECORDS[name], base_url)) for name in dict.fromkeys(sets)}
    available = sorted(file.name for files in records.values() for file in files)
    if unknown := [name for name in machines or () if not any(_is_of(file, name) for file in available)]:
        raise ValueError(f"machines must be named in the archives {available}, got {unknown}")
    archives = []
    for name, files in records.items():
        for file in files:
            if machines is not None and not any(_is_of(file.name, machine) for machine in machines):
                continue
            archive = download_file(file, out / "archives", retry_delay_s, show_progress)
            archives.append(archive)
            if extract:
                extract_zip(archive, out / name.split("-")[0], show_progress)
    return archives


def list_record(record: int, base_url: str = ZENODO) -> list[RemoteFile]:
    """Return the files of a Zenodo record, sorted by name.

    Raises:
        OSError: the server cannot be reached, or answers otherwise than Zenodo does.
        ValueError: the name of a file has a path in it, or an address is not HTTP.
    """
    url = f"{base_url.rstrip('/')}/api/records/{record}"
    try:
        with _open(url) as response:
            entries = json.loads(response.read(_MOST_RECORD_BYTES))["files"]
        files = [_remote_file(entry, url) for entry in entries]
    except _NETWORK_ERRORS as error:
        raise OSError(f"{url} cannot be read: {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OSError(f"{url} does not list files as Zenodo does: {error!r}") from error
    return sorted(files, key=lambda file: file.name)


def select_archives(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the ZIP archives among `files`, of each its latest revision: not `dev_fan.zip` but `dev_fan_r2.zip`."""
    latest: dict[str, tuple[int, RemoteFile]] = {}
    for file in files:
        if match := _ARCHIVE.fullmatch(file.name):
            revision = int(match["revision"] or 1)
            if revision > latest.get(match["base"], (0, file))[0]:
                latest[match["base"]] = revision, file
    return [file for _, file in latest.values()]


def download_file(file: RemoteFile, folder: str | Path, retry_delay_s: float = 2.0, show_progress: bool = True) -> Path:
    """Download `file` into `folder` through a `.part`, which a later call continues, and check size and MD5.

    A link in the place of the file is followed.

    Raises:
        OSError: five tries in a row bring nothing more, the content does not match, or the disk has no room.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.name
    if path.is_symlink():
        path = path.resolve()
    partial = path.with_name(f"{path.name}.part")
    if path.is_file() and path.stat().st_size == file.size and _md5(path, show_progress) == file.md5:
        return folder / file.name
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()  # it belongs to another version of the file
    have = partial.stat().st_size if partial.exists() else 0
    if file.size - have > (free := shutil.disk_usage(path.parent).free):
        raise OSError(f"{file.name} has {file.size / 1e9:.1f} GB, but {path.parent} has room for {free / 1e9:.1f} GB")
    with tqdm(
        desc=file.name, total=file.size, initial=have, unit="B", unit_scale=True, disable=not show_progress
    ) as bar:
        _fetch(file, partial, retry_delay_s, bar)
    if (md5 := _md5(partial, show_progress)) != file.md5:
        partial.unlink()
        raise OSError(f"{file.url} must have the MD5 {file.md5}, got {md5}; it was removed, run again")
    os.replace(partial, path)
    return folder / file.name


def _fetch(file: RemoteFile, partial: Path, retry_delay_s: float, bar: tqdm) -> None:
    """Append to `partial` until it has the file's size; a connection that breaks off is opened again."""
    tries = 0
    partial.touch()
    while (have := partial.stat().st_size) < file.size:
        reason: object = "the connection ended early"
        try:
            _append(file, partial, bar)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # waiting would not help
                raise OSError(f"{file.url} cannot be downloaded: {error}") from error
            reason = error
        except _NETWORK_ERRORS as error:
            reason = error
        tries = 1 if partial.stat().st_size > have else tries + 1
        if tries >= _MAX_TRIES:
            raise OSError(f"{file.url} cannot be downloaded: {reason}; run again to go on after {have} bytes")
        if partial.stat().st_size < file.size:
            time.sleep(retry_delay_s * 2 ** (tries - 1))
    if partial.stat().st_size > file.size:
        partial.unlink()
        raise OSError(f"{file.url} must have {file.size} bytes, got more; it was removed, run again")


def _append(file: RemoteFile, partial: Path, bar: tqdm) -> None:
    have = partial.stat().st_size
    with _open(file.url, {"Range": f"bytes={have}-"} if have else {}) as response:
        continues = response.status == 206 and (response.headers["Content-Range"] or "").startswith(f"bytes {have}-")
        if have and not continues:
            # The server sends the file from its beginning.
            bar.reset()
        with partial.open("ab" if continues else "wb") as target:
            # A server that sends more than announced must not fill the disk.
            while target.tell() <= file.size and (chunk := response.read(_READ_BYTES)):
                _write(target, chunk, partial)
                bar.update(len(chunk))


def _write(target: BinaryIO, chunk: bytes, path: Path) -> None:
    try:
        target.write(chunk)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error.errno, f"{path} cannot be written: No space left on device") from error
        raise


def _open(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "na-ssl-hf", **(headers or {})})
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


def _remote_file(entry: dict, record_url: str) -> RemoteFile:
    name, checksum = entry["key"], entry["checksum"]
    if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
        raise ValueError(f"{record_url} must list plain file names, got {name!r}")
    if type(entry["size"]) is not int or entry["size"] < 0:
        raise OSError(f"{record_url} must give the size of {name} in bytes, got {entry['size']!r}")
    if not re.fullmatch(r"md5:[0-9a-f]{32}", checksum):
        raise OSError(f"{record_url} must give an MD5 for {name}, got {checksum!r}")
    url = urllib.parse.urljoin(record_url, entry["links"]["self"])
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{record_url} must give HTTP addresses, got {url!r} for {name}")
    return RemoteFile(name, entry["size"], checksum.removeprefix("md5:"), url)


def _is_of(archive: str, machine: str) -> bool:
    return machine in archive.removesuffix(".zip").split("_")


def _md5(path: Path, show_progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        path.open("rb") as file,
        tqdm(
            desc=f"verify {path.name}",
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            delay=5,
            disable=not show_progress,
        ) as bar,
    ):
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
