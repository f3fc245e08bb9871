"""CSV tables are written here, for people who open them in a spreadsheet and for programs that read them.

Lines end in a line feed, which a console turns into the line end of its system. No text is lost or makes the writing
fail: what the encoding cannot hold, such as the bytes of a file name that is no UTF-8, is written as an escape like
`\\xfc` or `\\udcfc`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import TextIO

from .whole_files import whole_file

# A spreadsheet runs a cell that begins so as a formula; some take full-width signs for the plain ones.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def write_table(
    target: str | os.PathLike[str] | TextIO,
    columns: Sequence[str] | None,
    rows: Iterable[Sequence[object]],
    is_for_people: bool = True,
) -> None:
    """Write a CSV table.

    Args:
        target: a file, which is written whole or not at all, in UTF-8; or a text stream, such as `sys.stdout`.
        columns: the first line; `None` writes a table without a header.
        rows: the cells of each line. `None` is an empty cell, and a number is written with all its digits.
        is_for_people: puts an apostrophe before text that a spreadsheet would run as a formula, as `escape_formula`
            says. Tables that programs read by the names of files must have them as they are.

    Raises:
        OSError: the file cannot be written.
    """
    lines = [] if columns is None else [_line(columns, is_for_people)]
    lines += [_line(row, is_for_people) for row in rows]
    if isinstance(target, (str, os.PathLike)):
        write_text(target, "".join(lines))
        return
    encoding, errors = getattr(target, "encoding", None) or "utf-8", getattr(target, "errors", None) or "strict"
    for line in lines:
        target.write(_encodable(line, encoding, errors))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or not at all, in UTF-8; what UTF-8 cannot hold is escaped. OSError as for `write_table`."""
    with whole_file(path) as partial:
        partial.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def escape_formula(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run: what begins with = + - @, a tab or a line end.

    Numbers stay numbers. Text that begins with apostrophes before such a sign gets one more, so that whoever takes one
    apostrophe away from all text of that form has the original again.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def unicode_name(name: str) -> str:
    """Return a file's name as Unicode; the bytes of a name that is no UTF-8 are taken for Latin-1, as in old tables."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name


def _line(cells: Sequence[object], is_for_people: bool) -> str:
    texts = []
    for cell in cells:
        # Not every version of Python's csv can write or read a NUL.
        text = "" if cell is None else str(cell).replace("\0", "\\x00")
        if is_for_people and isinstance(cell, str):
            text = escape_formula(text)
        # Python's csv before 3.13 forgets the quotes around a lone carriage return.
        needs_quotes = re.search(r'[,"\r\n]|^\s|\s$', text) or (not text and len(cells) == 1)
        texts.append('"' + text.replace('"', '""') + '"' if needs_quotes else text)
    return ",".join(texts) + "\n"


def _encodable(text: str, encoding: str, errors: str) -> str:
    try:
        text.encode(encoding, errors)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text
