"""One transaction for several certificates: what each needs written waits for the next commit.

A commit to disk takes more than all statements of a certificate. Whoever has something to write
adds it here and settles it later; the first who settles commits everything that waits. In a process
that works on one request at a time that is one each, and nothing is lost; where several are under
way at once (`services.ca.worker`, threads) they share the commit.

What was added is written before `settle` returns, or `settle` raises.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from services.ca import audit
from services.ca.ledger import Ledger
from services.core.database import DriverConnection

Apply = Callable[[DriverConnection], audit.Entry]
"""Writes the rows of one step and returns its entry for the trail."""


class Work:
    """A step that waits to be written."""

    __slots__ = ("apply", "error", "settled")

    def __init__(self, apply: Apply) -> None:
        self.apply = apply
        self.settled = False
        self.error: BaseException | None = None


class GroupCommit:
    """Steps that wait, and who writes them; for any number of threads."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._waiting: list[Work] = []
        self._writing = threading.Lock()

    def add(self, apply: Apply) -> Work:
        """Let a step wait for the next commit."""
        work = Work(apply)
        self._waiting.append(work)  # atomic, as CPython's lists are
        return work

    def drop(self, work: Work) -> None:
        """Forget a step that nobody settles any more."""
        with contextlib.suppress(ValueError):  # it is written already
            self._waiting.remove(work)

    def settle(self, work: Work) -> None:
        """Return once the step is on disk. Raises what its `apply` raised, Conflict, Unavailable.

        A step that fails leaves the others alone: they are then written one by one.
        """
        if not work.settled:
            with self._writing:
                if not work.settled:
                    waiting, self._waiting = self._waiting, []
                    self._write_all(waiting)
        if work.error is not None:
            raise work.error

    def _write_all(self, waiting: list[Work]) -> None:
        try:
            if len(waiting) > 1:
                # where it fails nothing of it is kept, and each finds out for itself
                with contextlib.suppress(Exception):
                    self._write(waiting)
                    return
            for work in waiting:
                try:
                    self._write([work])
                except Exception as error:
                    work.error = error
        except BaseException as error:
            for work in waiting:
                if not work.settled:
                    work.error = work.error or error
            raise
        finally:
            for work in waiting:
                work.settled = True

    def _write(self, works: list[Work]) -> None:
        with self.ledger.database.direct(write=True) as connection:
            entries = [work.apply(connection) for work in works]
            self.ledger.append(connection, entries)
