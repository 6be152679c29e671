"""A psycopg connection that waits for its server for a limited time (needs mooring[postgresql]).

statement_timeout and lock_timeout are the server's to keep. One that stands still keeps nothing and
goes on acknowledging what it is sent, on TCP and on a unix socket alike, so only the client can end
the wait.
"""

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

ANSWER_SECONDS = 6.0
"""A second more than the longest statement may take (database.BUSY_TIMEOUT); with the 2 s for a new
connection it is less than NGINX waits for gunicorn (12 s)."""

Result = TypeVar("Result")


class Silent(psycopg.OperationalError):
    """The server has not answered in time; the connection is closed."""


def bounded(waiting: Generator[Any, Any, Result], deadline: float) -> Generator[Any, Any, Result]:
    """The generator by which psycopg waits, ended by Silent when nothing came by the deadline.

    psycopg sends 0 at its intervals of 0.1 s while the socket is not ready.
    """
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise Silent("the server does not answer")
            wanted = waiting.send(ready)
    except StopIteration as end:
        result: Result = end.value
        return result


class Connection(psycopg.Connection[Any]):
    """A connection whose every wait ends after ANSWER_SECONDS."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Wait as psycopg does, with a deadline; raises Silent."""
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            return super().wait(bounded(gen, deadline), *args, **kwargs)
        except Silent:
            # An answer that comes late would be taken for the next statement's.
            self.pgconn.finish()
            raise
