"""Keep what a monitor finds in one folder: windows and events in SQLite, the sound around events beside it."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from transformers.utils import logging

from .event_sounds import EventSounds
from .results import AlarmEvent, WatchedMachine, WindowResult

logger = logging.get_logger(__name__)

DATABASE = "watch.sqlite"
SOUNDS = "sounds"
FORMAT_VERSION = 1
Verdict = Literal["normal", "fault", "ignore"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# Windows older than this are removed, a few at a time.
KEPT_DAYS = 90.0
_SECONDS_PER_DAY = 86400.0
_WINDOWS_PER_CLEANING = 500
# Another process may hold the database while it copies or reads it.
_LOCK_TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS machines (
    name TEXT PRIMARY KEY, scorer TEXT NOT NULL, source TEXT NOT NULL, sampling_rate INTEGER NOT NULL,
    window REAL NOT NULL, hop REAL NOT NULL, threshold REAL NOT NULL, alarm_evidence REAL NOT NULL,
    started_at REAL NOT NULL, resume TEXT);
CREATE TABLE IF NOT EXISTS learned (machine TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS windows (
    number INTEGER PRIMARY KEY, machine TEXT NOT NULL, unix_time REAL NOT NULL, time REAL NOT NULL, score REAL,
    p_value REAL, state TEXT NOT NULL, evidence REAL NOT NULL, threshold REAL NOT NULL, health TEXT, band_scores TEXT,
    close_db REAL, far_db REAL, skipped INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS windows_by_time ON windows (machine, unix_time);
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY, machine TEXT NOT NULL, kind TEXT NOT NULL, start REAL NOT NULL, end REAL,
    detail TEXT NOT NULL, verdict TEXT, verdict_at REAL);
CREATE INDEX IF NOT EXISTS events_by_time ON events (start);
CREATE TABLE IF NOT EXISTS outbox (
    number INTEGER PRIMARY KEY, destination TEXT NOT NULL, event TEXT NOT NULL, phase TEXT NOT NULL,
    content TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, sent_at REAL,
    UNIQUE (destination, event, phase));
CREATE INDEX IF NOT EXISTS unsent ON outbox (destination, number) WHERE sent_at IS NULL;
"""


@dataclass(frozen=True)
class Message:
    """What a destination is to be told of an event.

    Attributes:
        number: of the message in the queue; negative where it could not be written to the disk.
        destination: the name of the destination.
        content: the event, with `phase` "begin" or "end"; JSON values only.
        attempts: how often sending it has failed.
    """

    number: int
    destination: str
    content: dict[str, Any]
    attempts: int = 0


class WatchStore:
    """A folder that holds what a monitor finds; it is a listener, and keeps what a restart needs.

    Everything that belongs to a window is written in one transaction, with write-ahead logging: the window, the events
    that begin or end with it, the messages that they cause, and the monitor's state after it. A process that is killed
    therefore loses at most the window that it was working on, and no event is forgotten or told twice. When the disk
    is full, windows and sounds are not kept until there is room again, but messages go on from memory.

    Args:
        folder: where everything is kept; made if it does not exist.
        destinations: names of those who are to be told of events, one message each.
        sound_bytes: the most that the sounds of events may take; the oldest are removed first. 0 keeps none.
        kept_days: windows older than this are removed.

    Raises:
        ValueError: a number is out of its range, or the folder was written by a newer version.
        OSError: the folder cannot be made or its database cannot be opened.
    """

    def __init__(
        self,
        folder: str | Path,
        destinations: Sequence[str] = (),
        sound_bytes: int = 1_000_000_000,
        kept_days: float = KEPT_DAYS,
    ) -> None:
        if not kept_days > 0:
            raise ValueError(f"`kept_days` must be above 0, got {kept_days}")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.destinations = tuple(destinations)
        self.sounds = EventSounds(self.folder / SOUNDS, sound_bytes)
        self._kept_seconds = kept_days * _SECONDS_PER_DAY
        self._connections = threading.local()
        self._unwritten: list[Message] = []
        self._unwritten_numbers = count(-1, -1)
        self._unwritten_lock = threading.Lock()
        self._failing: set[str] = set()
        self._prepare()

    def opened(self, machine: WatchedMachine) -> None:
        """Take note of a machine; what a restart needs of it stays as it was."""
        fields = asdict(machine)
        columns, marks = ", ".join(fields), ", ".join("?" * len(fields))
        changes = ", ".join(f"{name} = excluded.{name}" for name in fields if name != "name")
        with self._writing() as database:
            database.execute(
                f"INSERT INTO machines ({columns}) VALUES ({marks}) ON CONFLICT (name) DO UPDATE SET {changes}",
                tuple(fields.values()),
            )
        self.sounds.opened(machine)

    def window(self, result: WindowResult, samples: np.ndarray) -> None:
        """Keep a window, its events and their messages in one step; then the sound, if an event asks for it."""
        messages = [
            (destination, event.id, phase, content)
            for event in result.events
            for phase in ["begin" if event.end is None else "end"]
            for content in [message_content(event, phase)]
            for destination in self.destinations
        ]
        try:
            with self._writing() as database:
                self._insert_window(database, result)
                for event in result.events:
                    self._insert_event(database, event)
                database.executemany(
                    "INSERT OR IGNORE INTO outbox (destination, event, phase, content) VALUES (?, ?, ?, ?)",
                    [(*message[:3], json.dumps(message[3])) for message in messages],
                )
                self._remove_old_windows(database, result)
        except sqlite3.Error as error:
            with self._unwritten_lock:
                for destination, _event, _phase, content in messages:
                    self._unwritten.append(Message(next(self._unwritten_numbers), destination, content))
            self._tell_once(DATABASE, f"cannot be written ({error}): windows are not kept until it can")
        else:
            self._failing.discard(DATABASE)
        try:
            self.sounds.window(result, samples)
        except (OSError, RuntimeError) as error:  # soundfile raises its own RuntimeError
            self._tell_once(SOUNDS, f"cannot be written ({error}): no sound is kept until it can")
        else:
            self._failing.discard(SOUNDS)

    def event(self, event: AlarmEvent) -> None:
        """Do nothing: an event is kept together with its window."""

    def close(self) -> None:
        """Finish the sounds; connections close with their threads."""
        self.sounds.close()

    def load(self, machine: str) -> Mapping[str, Any] | None:
        """Return what the monitor needs to go on with a machine, see `StateKeeper`."""
        rows = self._rows(
            "SELECT resume, content FROM machines LEFT JOIN learned ON machine = name WHERE name = ?", (machine,)
        )
        if not rows or rows[0]["resume"] is None:
            return None
        content = rows[0]["content"]
        return json.loads(rows[0]["resume"]) | ({} if content is None else {"learned": json.loads(content)})

    def machines(self) -> list[dict[str, Any]]:
        """Return all machines with their newest window (`None` before the first), in the order of their names."""
        found = self._rows("SELECT * FROM machines ORDER BY name")
        for machine in found:
            del machine["resume"]
            newest = self.windows(machine["name"], limit=1)
            machine["newest"] = newest[0] if newest else None
        return found

    def windows(
        self, machine: str, since: float = 0.0, limit: int = 1000, after_number: int = 0
    ) -> list[dict[str, Any]]:
        """Return the newest windows of a machine, oldest first.

        Args:
            machine: its name.
            since: only windows that end after this time, in s since 1970 (UTC).
            limit: at most so many.
            after_number: only windows that were kept after that of this `number`.
        """
        rows = self._rows(
            "SELECT * FROM windows WHERE machine = ? AND unix_time > ? AND number > ? "
            "ORDER BY unix_time DESC, number DESC LIMIT ?",
            (machine, since, after_number, limit),
        )
        for row in rows:
            row["band_scores"] = None if row["band_scores"] is None else json.loads(row["band_scores"])
        return rows[::-1]

    def events(self, machine: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest events, newest first, of one machine or of all; `has_sound` tells if it can be heard."""
        chosen = "" if machine is None else "WHERE machine = ? "
        values = (limit,) if machine is None else (machine, limit)
        rows = self._rows(f"SELECT * FROM events {chosen}ORDER BY start DESC, id LIMIT ?", values)
        for row in rows:
            row["has_sound"] = self.sounds.path(row["id"]) is not None
        return rows

    def find_event(self, event: str) -> dict[str, Any]:
        """Return one event.

        Raises:
            ValueError: there is none of this identity.
        """
        rows = self._rows("SELECT * FROM events WHERE id = ?", (event,))
        if not rows:
            raise ValueError(f"`event` must be the identity of an event in {self.folder}, got {event!r}")
        rows[0]["has_sound"] = self.sounds.path(event) is not None
        return rows[0]

    def give_verdict(self, event: str, verdict: Verdict | None) -> None:
        """Keep what an operator says of an event: "normal", "fault", "ignore", or None to take it back.

        Raises:
            ValueError: the verdict is another word, or there is no such event.
        """
        if verdict is not None and verdict not in VERDICTS:
            raise ValueError(f"`verdict` must be one of {', '.join(VERDICTS)}, got {verdict!r}")
        self.find_event(event)
        with self._writing() as database:
            database.execute(
                "UPDATE events SET verdict = ?, verdict_at = ? WHERE id = ?",
                (verdict, None if verdict is None else time.time(), event),
            )

    def unsent_messages(self, destination: str, limit: int = 20) -> list[Message]:
        """Return the messages that a destination has not been sent yet, oldest first."""
        with self._unwritten_lock:
            in_memory = [message for message in self._unwritten if message.destination == destination]
        rows = self._rows(
            "SELECT number, content, attempts FROM outbox WHERE destination = ? AND sent_at IS NULL "
            "ORDER BY number LIMIT ?",
            (destination, limit),
        )
        on_disk = [Message(row["number"], destination, json.loads(row["content"]), row["attempts"]) for row in rows]
        return on_disk + in_memory

    def mark_sent(self, message: Message) -> None:
        """Note that a message was sent, so that it is never sent again."""
        if message.number < 0:
            with self._unwritten_lock:
                self._unwritten = [kept for kept in self._unwritten if kept.number != message.number]
            return
        with self._writing() as database:
            database.execute("UPDATE outbox SET sent_at = ? WHERE number = ?", (time.time(), message.number))

    def mark_failed(self, message: Message) -> None:
        """Count an attempt that failed."""
        if message.number >= 0:
            with self._writing() as database:
                database.execute("UPDATE outbox SET attempts = attempts + 1 WHERE number = ?", (message.number,))

    def _prepare(self) -> None:
        path = self.folder / DATABASE
        try:
            database = self._connection()
            database.execute("PRAGMA journal_mode = WAL")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > FORMAT_VERSION:
                raise ValueError(
                    f"{path} was written by a newer version (format {version}, this one knows {FORMAT_VERSION})"
                )
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        except sqlite3.DatabaseError as error:
            raise OSError(f"{path} cannot be used as the store of a watch: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        """Return the connection of this thread."""
        connection: sqlite3.Connection | None = getattr(self._connections, "of_thread", None)
        if connection is None:
            connection = sqlite3.connect(self.folder / DATABASE, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
            connection.row_factory = sqlite3.Row
            # A killed process loses nothing that is committed; only a power failure can lose the last windows.
            connection.execute("PRAGMA synchronous = NORMAL")
            self._connections.of_thread = connection
        return connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection within one transaction, which is undone as a whole when anything fails."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection().execute(query, tuple(values))]

    def _insert_window(self, database: sqlite3.Connection, result: WindowResult) -> None:
        close_db, far_db = result.levels_db or (None, None)
        database.execute(
            "INSERT INTO windows (machine, unix_time, time, score, p_value, state, evidence, threshold, health, "
            "band_scores, close_db, far_db, skipped) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                result.machine,
                result.started_at + result.end,
                result.end,
                result.score,
                result.p_value,
                result.state,
                result.evidence,
                result.threshold,
                result.health,
                None if result.band_scores is None else json.dumps([round(score, 6) for score in result.band_scores]),
                close_db,
                far_db,
                result.skipped,
            ),
        )
        database.execute(
            "UPDATE machines SET resume = ? WHERE name = ?", (json.dumps(dict(result.resume)), result.machine)
        )
        if result.learned is not None:
            database.execute(
                "INSERT OR REPLACE INTO learned (machine, content) VALUES (?, ?)",
                (result.machine, json.dumps(dict(result.learned))),
            )

    def _insert_event(self, database: sqlite3.Connection, event: AlarmEvent) -> None:
        database.execute(
            "INSERT INTO events (id, machine, kind, start, end, detail) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET end = excluded.end, detail = excluded.detail",
            (event.id, event.machine, event.kind, event.start, event.end, event.detail),
        )

    def _remove_old_windows(self, database: sqlite3.Connection, result: WindowResult) -> None:
        oldest = result.started_at + result.end - self._kept_seconds
        database.execute(
            "DELETE FROM windows WHERE number IN "
            "(SELECT number FROM windows WHERE machine = ? AND unix_time < ? LIMIT ?)",
            (result.machine, oldest, _WINDOWS_PER_CLEANING),
        )

    def _tell_once(self, part: str, text: str) -> None:
        """Log a failure of a part when it begins, so that a full disk does not fill the log as well."""
        if part not in self._failing:
            logger.error(f"{self.folder / part} {text}")
        self._failing.add(part)


def message_content(event: AlarmEvent, phase: str) -> dict[str, Any]:
    """Return what is sent of an event: its fields and `phase`, "begin" or "end"."""
    return {**asdict(event), "phase": phase}
