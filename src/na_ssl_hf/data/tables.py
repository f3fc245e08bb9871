"""Read CSV tables as other programs write them, and find the files that they name."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


def read_table(path: str | Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a CSV table that are not empty, each with the number of the line on which it ends.

    A byte order mark decides the encoding. Without one, the table is UTF-8, or Latin-1 (with a warning) where it is no
    valid UTF-8. Lines may end as on any system, and cells are stripped of blanks.

    Raises:
        ValueError: the table cannot be read as CSV; the message names file and line.
        OSError: the file cannot be read.
    """
    path = Path(path)
    text = _decoded(path)
    if (position := text.find("\0")) >= 0:
        # Newer versions of Python pass it on, and no file can have such a name.
        line = len(f"{text[:position]}.".splitlines())
        raise ValueError(f"{path}, line {line}: must be CSV, got a line with a NUL character")
    # Line ends stay as they are, because those within quoted cells are none.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise ValueError(f"{path}, line {max(1, reader.line_num)}: must be CSV, got a line with {error}") from error
    return rows


def read_columns(path: str | Path, columns: set[str]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table with a header as dictionaries, each with its line number; short rows lack the rest.

    Raises:
        ValueError: the table is no CSV, or lacks one of `columns`; the message names the file.
        OSError: the file cannot be read.
    """
    rows = read_table(path)
    header = rows[0][1] if rows else []
    if missing := columns - set(header):
        raise ValueError(f"{path} must have the columns {sorted(columns)}, {sorted(missing)} missing")
    return [(line, dict(zip(header, cells, strict=False))) for line, cells in rows[1:]]


def file_named_in_table(folder: Path, name: str) -> Path:
    """Return the file below `folder` that a table means by `name`, with forward slashes or as Windows writes paths.

    Where no file has exactly this name, a suffix in other letters (`.WAV` for `.wav`) and a name that the disk holds in
    Latin-1 will do. Where nothing matches, the plain path is returned, which does not exist.
    """
    plain = folder / name.replace("\\", "/")
    for candidate in (folder / name, *_spellings(plain)):
        if candidate.exists():
            return candidate
    return plain


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} must be {encoding} as its byte order mark says, got {error}") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        logger.warning(f"{path} is no UTF-8 in line {line} and is read as Latin-1.")
        return content.decode("latin-1")


def _spellings(path: Path) -> Iterator[Path]:
    yield path
    for suffix in (path.suffix.lower(), path.suffix.upper()):
        yield path.with_suffix(suffix)
    try:
        yield Path(os.fsdecode(str(path).encode("latin-1")))
    except UnicodeError:
        return
