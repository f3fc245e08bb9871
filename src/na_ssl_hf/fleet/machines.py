"""The table of a fleet: which scorer and which recordings every machine has."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.sound_files import find_sound_files, is_sound_name
from ..data.tables import read_columns


@dataclass(frozen=True)
class Machine:
    """One row of the table.

    Attributes:
        name: of the machine.
        scorer: the folder of its scorer.
        recordings: a folder of sound files, a single one, or a pattern such as `fan_01/**/*.wav`.
        where: file and line of the row, for error messages.
    """

    name: str
    scorer: str
    recordings: str
    where: str


@dataclass(frozen=True)
class Share:
    """Some recordings of one machine, which are worked on together.

    Attributes:
        machine: its name.
        scorer: the folder of its scorer.
        files: the recordings.
        groups, domains: a label for each, where `fit` has a rule for them.
        error: why there are no recordings, where `files` only holds what the table says.
    """

    machine: str
    scorer: str
    files: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    domains: tuple[str, ...] | None = None
    error: str | None = None


# From recordings to a label for each.
Labels = Callable[[Sequence[Path]], Sequence[str]]


def read_machines(table: str | os.PathLike[str], recordings: str = "recordings") -> list[Machine]:
    """Read a table with the columns `machine`, `scorer` and one of recordings; other columns are passed over.

    Relative paths are taken from the folder of the table.

    Args:
        table: a CSV file.
        recordings: the column of recordings.

    Raises:
        ValueError: a column or a cell is missing, a machine has two rows, or there is none; the error names the line.
        OSError: the file cannot be read.
    """
    columns = ("machine", "scorer", recordings)
    # Whole paths, so that what is done is known wherever the next run is started, and to workers elsewhere.
    folder = Path(os.path.abspath(table)).parent
    machines: dict[str, Machine] = {}
    for line, row in read_columns(Path(table), set(columns)):
        where = f"{table}, line {line}"
        for column in columns:
            if not row.get(column):
                raise ValueError(f"{where}: {column} must not be empty, got {row}")
        machine = Machine(row["machine"], _inside(folder, row["scorer"]), _inside(folder, row[recordings]), where)
        earlier = machines.setdefault(machine.name, machine)
        if earlier is not machine:
            raise ValueError(f"{where}: machine must be a name of its own, got {machine.name!r} as in {earlier.where}")
    if not machines:
        raise ValueError(f"{table} must have a row for every machine, got none")
    return list(machines.values())


def shares_of(
    machine: Machine, is_done: Callable[[str], bool] = lambda file: False, longest: int | None = None
) -> Iterator[Share]:
    """List the recordings of a machine, in shares of at most `longest`, without those that are done.

    A machine without recordings, or whose folder cannot be read, gives one share with the reason.
    """
    try:
        files = [str(file) for file in _recordings(machine)]
    except OSError as error:
        if not is_done(machine.recordings):
            reason = f"{machine.where}: {' '.join(str(error).split())}"
            yield Share(machine.name, machine.scorer, (machine.recordings,), error=reason)
        return
    # Where a share ends depends on all recordings, so that a run that goes on has the shares of one that never stopped.
    size = longest or len(files)
    for start in range(0, len(files), size):
        left = tuple(file for file in files[start : start + size] if not is_done(file))
        if left:
            yield Share(machine.name, machine.scorer, left)


def labelled_share(machine: Machine, groups: Labels | None, domains: Labels | None) -> Share:
    """Put all recordings of a machine into one share, with their labels; a rule that fails is the share's error."""
    (share,) = shares_of(machine)
    if share.error is not None:
        return share
    files = [Path(file) for file in share.files]
    try:
        return Share(
            share.machine,
            share.scorer,
            share.files,
            None if groups is None else tuple(groups(files)),
            None if domains is None else tuple(domains(files)),
        )
    except ValueError as error:
        return Share(share.machine, share.scorer, (machine.recordings,), error=f"{machine.where}: {error}")


def _inside(folder: Path, cell: str) -> str:
    """The path that a cell means: from the folder of the table, also where it is written as on Windows."""
    plain = folder / cell
    return str(plain if plain.exists() or "\\" not in cell else folder / cell.replace("\\", "/"))


def _recordings(machine: Machine) -> list[Path]:
    if os.path.exists(machine.recordings) or not glob.has_magic(machine.recordings):
        return find_sound_files([machine.recordings])
    found = sorted(glob.glob(machine.recordings, recursive=True))
    files = [path for path in found if os.path.isfile(path) and is_sound_name(os.path.basename(path))]
    if not files:
        raise FileNotFoundError(f"{machine.recordings} must match sound files, got none")
    return find_sound_files(files)
