"""Several requests at the database together: what each needs waits until the first has to have it.

A commit to disk takes more than all statements of a certificate, and a statement for many rows
little more than one for a single row. Whoever has something to write, or a certificate to look up,
adds it here and settles it later; the first who settles does everything that waits. In a process
that works on one request at a time that is one each, and nothing is lost; where several are under
way at once (`services.core.worker.TurnsWorker`, threads) they share it.

What was added is done before `settle` returns, or `settle` raises.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from services.ca import audit
from services.ca.ledger import Completion, Ledger, Record, Reservation


class NotPending(Exception):
    """The certificate that was to be stored is not waited for any more: it was revoked."""


class Waiting:
    """What waits, and what became of it."""

    __slots__ = ("error", "settled")

    def __init__(self) -> None:
        self.settled = False
        self.error: BaseException | None = None


Each = TypeVar("Each", bound=Waiting)


class Group(ABC, Generic[Each]):
    """Those that wait, and who settles them; for any number of threads."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._waiting: list[Each] = []
        self._busy = threading.Lock()

    def add(self, work: Each) -> Each:
        """Let it wait for the next who settles."""
        self._waiting.append(work)  # atomic, as CPython's lists are
        return work

    def drop(self, work: Each) -> None:
        """Forget what nobody settles any more."""
        with contextlib.suppress(ValueError):  # it is done already
            self._waiting.remove(work)

    def settle(self, work: Each) -> None:
        """Return once it is done; raises what doing it raised."""
        if not work.settled:
            with self._busy:
                if not work.settled:
                    waiting, self._waiting = self._waiting, []
                    self._settle(waiting)
        if work.error is not None:
            raise work.error

    def _settle(self, waiting: list[Each]) -> None:
        try:
            self._do_all(waiting)
        except BaseException as error:
            for work in waiting:
                work.error = work.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for work in waiting:
                work.settled = True

    @abstractmethod
    def _do_all(self, waiting: list[Each]) -> None:
        """Do what waits. One that fails alone gets its error; what is raised is everybody's."""


class Work(Waiting):
    """A step of a certificate: its rows, and the entry of the trail that goes with them."""

    __slots__ = ("completion", "entry", "reservation")

    def __init__(
        self,
        entry: audit.Entry,
        reservation: Reservation | None = None,
        completion: Completion | None = None,
    ) -> None:
        super().__init__()
        self.entry = entry
        self.reservation = reservation
        self.completion = completion


class GroupCommit(Group[Work]):
    """One transaction for several certificates.

    `settle` returns once the step is on disk; it raises Conflict, Unavailable, NotPending. A step
    that fails leaves the others alone: they are then written one by one.
    """

    def _do_all(self, waiting: list[Work]) -> None:
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

    def _write(self, works: Sequence[Work]) -> None:
        reservations = [work.reservation for work in works if work.reservation is not None]
        completions = [work.completion for work in works if work.completion is not None]
        with self.ledger.database.direct(write=True) as connection:
            if reservations:
                self.ledger.reserve(connection, reservations)
            if completions and not self.ledger.complete(connection, completions):
                raise NotPending
            self.ledger.append(connection, [work.entry for work in works])


class Lookup(Waiting):
    """A certificate to be found by its SHA-256; `record` is what the ledger has, or None."""

    __slots__ = ("fingerprint", "record")

    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.record: Record | None = None


class GroupLookup(Group[Lookup]):
    """One reading for several requests, begun after the last of them has come; may be Unavailable.

    Requests of one client, of which there are often many at a time, are one look-up.
    """

    def _do_all(self, waiting: list[Lookup]) -> None:
        found: dict[str, Record | None] = {}
        with self.ledger.database.direct(write=False) as connection:
            for work in waiting:
                name = work.fingerprint
                if name not in found:
                    found[name] = self.ledger.by_fingerprint_in(connection, name)
                work.record = found[name]
