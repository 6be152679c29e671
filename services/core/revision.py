"""What changed since the last look, cheaply enough to be asked before every answer.

On SQLite the look is at the head of the database's shared memory, which every commit changes, and
only then at ``PRAGMA data_version``: no query, and as a rule no system call but a stat. On
PostgreSQL a thread waits for notifications, with a poll behind it because a notification may be
lost; the look is then a read of two attributes. Correctness rests on the change rows alone:
whatever woke us, we read the rows after the revision that we know.
"""

import contextlib
import mmap
import os
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, select
from sqlalchemy.exc import SQLAlchemyError

from services.core import schema
from services.core.database import NOTIFY_CHANNEL, Database, Unavailable, inode

POLL_SECONDS = 2.0
"""The longest time for which a lost notification hides a change."""

SILENCE_SECONDS = 3 * POLL_SECONDS
"""A PostgreSQL not heard of for this long counts as away: a frozen server goes on acknowledging
TCP, so only a deadline on our side notices it."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What to forget: everything, or the objects named by (kind, id)."""

    everything: bool
    objects: frozenset[tuple[str, str]]


NOTHING = Changes(False, frozenset())
EVERYTHING = Changes(True, frozenset())


_forks = 0
# How often this process is the child of a fork: neither a connection nor a thread survives one. A
# number, because asking for the process id is a system call.


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class RevisionWatch:
    """Tells a reader what changed since it last asked; one per process and reader.

    Its methods are called by one thread at a time.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hint: _SQLiteHint | _PostgreSQLHint | None = None
        self._fork = _forks
        self._mark: object = None
        self._known: tuple[str, int] | None = None

    def poll(self) -> Changes:
        """Return what changed since the last call that succeeded; raises Unavailable.

        The first call says EVERYTHING: whatever was read before it may be out of date.
        """
        if self._hint is None or self._fork != _forks:
            path = self._database.sqlite_path
            self._hint = _PostgreSQLHint(self._database) if path is None else _SQLiteHint(path)
            self._fork = _forks
            self._mark = self._known = None
        mark = self._hint.mark()
        if mark == self._mark and self._known is not None:
            return NOTHING
        with self._database.read() as connection:
            epoch, number = connection.execute(
                select(schema.revision.c.epoch, schema.revision.c.number)
            ).one()
            known, now = self._known, (str(epoch), int(number))
            if known is None or known[0] != now[0] or number < known[1]:
                changes = EVERYTHING
            elif number == known[1]:
                changes = NOTHING
            else:
                changes = self._between(connection, known[1], number)
        self._known = now
        self._mark = mark
        return changes

    def unchanged(self) -> bool:
        """Whether `poll` would say NOTHING, if that is certain without asking the database.

        False says nothing. True holds as `poll` would: the database was there moments ago.
        """
        hint = self._hint
        return hint is not None and self._fork == _forks and hint.certain(self._mark)

    def _between(self, connection: Connection, old: int, new: int) -> Changes:
        change = schema.change
        first_kept = connection.execute(
            select(change.c.revision).order_by(change.c.revision).limit(1)
        ).scalar()
        if first_kept is None or first_kept > old + 1:
            return EVERYTHING
        rows = connection.execute(
            select(change.c.kind, change.c.object_id).where(
                change.c.revision > old, change.c.revision <= new
            )
        )
        return Changes(False, frozenset((str(kind), str(name)) for kind, name in rows))

    def close(self) -> None:
        """Let go of the connection or the thread."""
        if self._hint is not None and self._fork == _forks:
            self._hint.close()
        self._hint = None


FILE_SECONDS = 0.05
"""Time between two looks whether the database file is still there and the same."""

WAL_INDEX_HEAD = 48
"""Bytes of a WAL index's head: format, counter of changes, frames, salts, checksum. A commit is
visible to readers when it stands there (https://www.sqlite.org/walformat.html, 2.1)."""

WAL_INDEX_FORMAT = 3007000
"""The only format of a WAL index so far, the first number in its head."""

_wal_indexes: dict[tuple[int, int], tuple[int, mmap.mmap]] = {}
# By device and inode, with the descriptor. Never closed: closing any descriptor of a file drops the
# locks that SQLite holds on it for this process (https://www.sqlite.org/howtocorrupt.html, 2.2).


def _wal_index(path: Path) -> mmap.mmap | None:
    """The shared memory of an open database in WAL mode; None if it is not as we know it."""
    name = f"{path}-shm"
    try:
        found = os.stat(name)  # noqa: PTH116 - as the descriptor below
        place = (found.st_dev, found.st_ino)
        if place not in _wal_indexes:
            descriptor = os.open(name, os.O_RDONLY)
            index = mmap.mmap(descriptor, mmap.PAGESIZE, prot=mmap.PROT_READ)
            _wal_indexes[place] = (descriptor, index)
    except (OSError, ValueError):
        return None
    known = _wal_indexes[place][1]
    return known if int.from_bytes(known[:4], sys.byteorder) == WAL_INDEX_FORMAT else None


class _SQLiteHint:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = str(path)
        self._inode = 0
        self._opened = 0
        self._connection: sqlite3.Connection | None = None
        self._index: mmap.mmap | None = None
        self._head = b""
        self._mark: object = None
        self._sure_until = 0.0

    def mark(self) -> object:
        head = b"" if self._index is None else self._index[:WAL_INDEX_HEAD]
        clock = time.monotonic()
        if head and head == self._head and clock < self._sure_until:
            return self._mark
        now = inode(self._name)
        if now == 0:
            self._sure_until = 0.0
            raise Unavailable("the database file is not there")
        self._sure_until = clock + FILE_SECONDS
        if head and head == self._head and now == self._inode:
            return self._mark
        opened = False
        try:
            if self._connection is None or now != self._inode:
                self.close()
                self._connection = sqlite3.connect(
                    f"file:{quote(str(self._path))}?mode=rw",
                    uri=True,
                    isolation_level=None,
                    check_same_thread=False,
                )
                self._inode = now
                self._opened += 1
                opened = True
            version = self._connection.execute("PRAGMA data_version").fetchone()[0]
            if opened:
                # There once the database has been read, and while our connection is open.
                self._index = _wal_index(self._path)
        except sqlite3.Error as error:
            self.close()
            raise Unavailable(type(error).__name__) from error
        # The head was read before the version: what came between is seen at the next look.
        self._head = head
        # data_version is comparable within one connection only
        self._mark = (self._opened, version)
        return self._mark

    def certain(self, mark: object) -> bool:
        """Whether ``mark`` is what ``mark()`` would return, without a system call."""
        index = self._index
        return (
            index is not None
            and mark == self._mark
            and index[:WAL_INDEX_HEAD] == self._head
            and time.monotonic() < self._sure_until
        )

    def close(self) -> None:
        self._index, self._head = None, b""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _PostgreSQLHint:
    """A thread that keeps the latest (epoch, number) and the time it was last known to be so."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._latest: tuple[str, int] | None = None
        self._heard = time.monotonic()
        self._first = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._follow, name="revision-watch", daemon=True).start()

    def mark(self) -> object:
        if self._latest is None:
            self._first.wait(POLL_SECONDS)
        if self._latest is None or time.monotonic() - self._heard > SILENCE_SECONDS:
            raise Unavailable("the database has not been heard of")
        return self._latest

    def certain(self, mark: object) -> bool:
        """Whether ``mark`` is the latest, and the server has been heard of."""
        return mark == self._latest and time.monotonic() - self._heard <= SILENCE_SECONDS

    def close(self) -> None:
        self._ended.set()

    def _follow(self) -> None:
        while not self._ended.is_set():
            # Whatever fails here, the next turn connects anew; mark() tells that time passes.
            with (
                contextlib.suppress(SQLAlchemyError, OSError),
                self._database.engine.connect() as c,
            ):
                listener = c.execution_options(isolation_level="AUTOCOMMIT")
                listener.exec_driver_sql(f"LISTEN {NOTIFY_CHANNEL}")
                driver: Any = listener.connection.driver_connection
                while True:
                    epoch, number = listener.execute(
                        select(schema.revision.c.epoch, schema.revision.c.number)
                    ).one()
                    self._latest = (str(epoch), int(number))
                    self._heard = time.monotonic()
                    self._database.heard()
                    self._first.set()
                    for _ in driver.notifies(timeout=POLL_SECONDS, stop_after=1):
                        pass
                    if self._ended.is_set():
                        return
            self._ended.wait(POLL_SECONDS / 4)
