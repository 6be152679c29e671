"""Waiting for changes: one thread a process looks, and wakes only whom a change concerns.

Who waits names scopes (services.hostnet.changes); an index from scope to waiters says whom a change
row wakes. The look is a hint of the database (services.core.revision) with a poll behind it; what
has changed is read from the change rows, so nothing depends on who was woken when.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import select

from services.core import schema
from services.core.database import Database, Unavailable
from services.core.revision import NOTHING, RevisionWatch

LOOK_SECONDS = 0.05
"""Time between two looks; a look that finds nothing is no query."""

AWAY_SECONDS = 1.0
"""Time between two looks while the database is away."""


class Hub:
    """Waiters of one process; the thread starts with the first of them, after a fork."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiters: dict[str, set[threading.Event]] = {}
        self._pid = 0
        self.woken = 0
        """How many waiters were woken so far."""

    @contextmanager
    def waiting(self, scopes: frozenset[str]) -> Iterator[threading.Event]:
        """An event that is set when something of these scopes may have changed.

        Read the database again after entering: what changed before is not told.
        """
        event = threading.Event()
        with self._lock:
            self._start()
            for scope in scopes:
                self._waiters.setdefault(scope, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                for scope in scopes:
                    waiters = self._waiters.get(scope)
                    if waiters is not None:
                        waiters.discard(event)
                        if not waiters:
                            del self._waiters[scope]

    def _start(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            threading.Thread(target=self._follow, name="hub", daemon=True).start()

    def _follow(self) -> None:
        watch = RevisionWatch(self._database)
        known: int | None = None
        while True:
            try:
                if watch.poll() is not NOTHING:
                    known = self._wake(known)
                pause = LOOK_SECONDS
            except Unavailable:
                # whoever waits is answered when the time is up; the rows will still be there
                pause = AWAY_SECONDS
            time.sleep(pause)

    def _wake(self, known: int | None) -> int:
        change = schema.change
        with self._database.read() as connection:
            number = int(connection.execute(select(schema.revision.c.number)).scalar_one())
            scopes: set[str] | None = None
            if known is not None and known <= number:
                scopes = set(
                    connection.execute(
                        select(change.c.scope).where(change.c.revision > known).distinct()
                    ).scalars()
                )
        with self._lock:
            # the first look, or a database that was replaced: everybody reads again
            names = self._waiters.keys() if scopes is None else scopes
            events = {event for name in names for event in self._waiters.get(name, ())}
        for event in events:
            if not event.is_set():
                self.woken += 1
                event.set()
        return number
