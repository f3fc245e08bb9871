"""The output of a fleet: Parquet files that appear whole, each with the rows of some shares of the work.

What has a row is done. A run that was stopped therefore goes on where it was, whatever its parts were.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub.whole_files import whole_file
from .machines import Share

if TYPE_CHECKING:
    import pyarrow

PATTERN = "part-*.parquet"
# The file beside a part that grows with each attempt at it, while it is not done.
ATTEMPTS_SUFFIX = ".attempts"
# A hidden file that nobody wrote to for so long was left by a worker that is gone, be it of this machine or not.
LEFT_OVER_SEC = 3600.0
# The key under which a part holds the settings that its rows were made with.
SETTINGS_KEY = b"na_ssl_fleet"
# The columns of each kind of work, with their types in Arrow.
COLUMNS: dict[str, dict[str, str]] = {
    "score": {
        "machine": "string",
        "file": "string",
        "window": "int32",
        "start": "float64",
        "end": "float64",
        "score": "float64",
        "p_value": "float64",
        "is_anomaly": "bool",
        "threshold": "float64",
        "error": "string",
    },
    "fit": {
        "machine": "string",
        "scorer": "string",
        "num_normal": "int32",
        "num_left_out": "int32",
        "threshold": "float64",
        "false_alarm_rate": "float64",
        "error": "string",
    },
}
# What tells one row's work from that of others.
KEYS = {"score": ("machine", "file"), "fit": ("machine", "scorer")}


@dataclass(frozen=True)
class Part:
    """The work that one file of the output holds.

    Attributes:
        name: of the file.
        shares: the work.
    """

    name: str
    shares: tuple[Share, ...]

    def to_json(self) -> str:
        """Write the part as text, names of files in whatever encoding included."""
        return json.dumps({"name": self.name, "shares": [asdict(share) for share in self.shares]})

    @classmethod
    def from_json(cls, text: str) -> Part:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        shares = []
        for share in fields["shares"]:
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in share.items()
            }
            shares.append(Share(**values))
        return cls(fields["name"], tuple(shares))


@dataclass(frozen=True)
class PartReport:
    """What a worker says of a part.

    Attributes:
        name: of the part.
        num_done: its rows of recordings, or of machines, with or without an error.
        num_failed: those with an error.
        num_anomalous: those above their threshold.
        first_error: one of the errors.
        warnings: what was warned of, each once.
        failure: why nothing was written, where that is so.
    """

    name: str
    num_done: int = 0
    num_failed: int = 0
    num_anomalous: int = 0
    first_error: str | None = None
    warnings: tuple[str, ...] = ()
    failure: str | None = None


def write_part(
    folder: str | os.PathLike[str], name: str, kind: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    """Write the rows of a part, whole or not at all; a part of the same name is replaced.

    Args:
        folder: the output of the fleet.
        name: of the part.
        kind: "score" or "fit".
        rows: of the columns of `COLUMNS`; what a row lacks is null.
        settings: what the rows were made with, see `check_settings`.

    Raises:
        OSError: the folder cannot be written.
    """
    import pyarrow

    columns = COLUMNS[kind]
    schema = pyarrow.schema([(column, getattr(pyarrow, _factory(arrow))()) for column, arrow in columns.items()])
    schema = schema.with_metadata({SETTINGS_KEY: json.dumps(settings).encode()})
    _write(Path(folder) / name, pyarrow.Table.from_pylist([_encodable(row) for row in rows], schema=schema))


def done_work(folder: str | os.PathLike[str], kind: str, settings: Mapping) -> set[tuple[str, str]]:
    """Return what has a row already: machine and file as `encodable_name` writes them, or machine and scorer.

    Raises:
        ValueError: a part holds other columns, or was made with other settings.
        OSError: a part cannot be read.
    """
    done: set[tuple[str, str]] = set()
    for path in existing_parts(folder):
        table = _read(path, kind, settings)
        machines, others = (table.column(key).to_pylist() for key in KEYS[kind])
        done.update(zip(machines, others, strict=True))
    return done


def forget_errors(folder: str | os.PathLike[str], kind: str, settings: Mapping) -> int:
    """Take the rows with an error out of all parts, so that their work counts as not done; return their number.

    Errors are those of `done_work`.
    """
    num_forgotten = 0
    for path in existing_parts(folder):
        table = _read(path, kind, settings, columns=None)
        kept = table.filter(table.column("error").is_null())
        if len(kept) == len(table):
            continue
        num_forgotten += len(table) - len(kept)
        if len(kept):
            _write(path, kept)
        else:
            path.unlink()
    return num_forgotten


def existing_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """List the parts of an output, in the order of their names."""
    return sorted(Path(folder).glob(PATTERN))


def remove_left_over(folder: str | os.PathLike[str]) -> None:
    """Remove what a killed run left: numbers of attempts, and files that nobody is writing any more."""
    for path in Path(folder).glob(f".{PATTERN}.*"):
        if path.suffix == ATTEMPTS_SUFFIX or time.time() - path.stat().st_mtime > LEFT_OVER_SEC:
            path.unlink(missing_ok=True)


def make_parts(
    shares: Iterable[Share], size: int, first: int, settings: Mapping, weight: Callable[[Share], int]
) -> Iterator[Part]:
    """Put shares together to parts; neighbours of one machine become one share.

    Args:
        shares: the work.
        size: the weight with which a part ends.
        first: the number in the name of the first part.
        settings: what the names of the parts depend on besides the work.
        weight: how much of a part a share is.
    """
    waiting: list[Share] = []
    weight_waiting = 0
    for share in shares:
        before = waiting[-1] if waiting else None
        if before is not None and before.machine == share.machine and before.error is share.error is None:
            waiting[-1] = replace(before, files=before.files + share.files)
        else:
            waiting.append(share)
        weight_waiting += weight(share)
        if weight_waiting >= size:
            yield _named(waiting, first, settings)
            waiting, weight_waiting, first = [], 0, first + 1
    if waiting:
        yield _named(waiting, first, settings)


def encodable_name(text: str) -> str:
    """Return a name as it stands in a part: bytes that are no UTF-8 are escaped, as in tables."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def _named(shares: Sequence[Share], number: int, settings: Mapping) -> Part:
    """A part whose name no other work has, so that two runs at a time do not overwrite each other's."""
    work = json.dumps([settings, [asdict(share) for share in shares]])
    return Part(f"part-{number:06d}-{hashlib.blake2b(work.encode(), digest_size=6).hexdigest()}.parquet", tuple(shares))


def _write(path: Path, table: pyarrow.Table) -> None:
    from pyarrow import parquet

    with whole_file(path) as partial:
        parquet.write_table(table, partial, compression="zstd")


def _read(path: Path, kind: str, settings: Mapping, columns: Sequence[str] | None = ()) -> pyarrow.Table:
    """The keys of a part, all its columns with `columns=None`, after checking where it comes from."""
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
        check_settings(path, schema, kind, settings)
        return parquet.read_table(path, columns=None if columns is None else list(KEYS[kind]), partitioning=None)
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{path} cannot be read as Parquet; remove it to do its work again: {reason}") from error


def check_settings(path: Path, schema: pyarrow.Schema, kind: str, settings: Mapping) -> None:
    """Raise a ValueError where a part is of another kind of work, or was made with other settings."""
    saved = json.loads((schema.metadata or {}).get(SETTINGS_KEY, b"null"))
    if schema.names != list(COLUMNS[kind]) or not isinstance(saved, dict):
        raise ValueError(f"--out must hold nothing but parts of `na-ssl fleet {kind}`, got {path}")
    if saved != settings:
        other = {key: saved.get(key) for key in (*settings, *saved) if saved.get(key) != settings.get(key)}
        wanted = {key: settings.get(key) for key in other}
        raise ValueError(f"--out must hold parts of the same settings, got {path} with {other} instead of {wanted}")


def _encodable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: encodable_name(value) if isinstance(value, str) else value for key, value in row.items()}


def _factory(name: str) -> str:
    return {"bool": "bool_"}.get(name, name)
