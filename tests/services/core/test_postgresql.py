"""The deadline of a PostgreSQL connection, against a server that is made to stand still."""

import os
import signal

import pytest
from sqlalchemy import text

from services.core import postgresql
from services.core.database import Database, Unavailable, upgrade

pytestmark = pytest.mark.postgresql


PID = text("SELECT pg_backend_pid()")


def test_a_frozen_server_is_unavailable(own_postgresql, monkeypatch):
    """A backend that stands still ends the wait for it, and its connection is not used again."""
    url = own_postgresql.create("frozen")
    upgrade(url)
    monkeypatch.setattr(postgresql, "ANSWER_SECONDS", 0.5)
    database = Database(url)
    frozen = []

    def freeze_and_ask():
        with database.read() as connection:
            frozen.append(connection.execute(PID).scalar_one())
            os.kill(frozen[0], signal.SIGSTOP)
            connection.execute(PID)

    try:
        with pytest.raises(Unavailable, match="OperationalError"):
            freeze_and_ask()
        # Nobody else waits for it, until somebody has heard of it.
        for other in (database, Database(url)):
            with pytest.raises(Unavailable, match="not answered"), other.read():
                pass
            with pytest.raises(Unavailable, match="not answered"), other.write():
                pass
        database.heard()
        with database.read() as connection:
            assert connection.execute(PID).scalar_one() not in frozen
    finally:
        os.kill(frozen[0], signal.SIGCONT)
    database.close()


def test_a_pooled_connection_that_froze_is_replaced(own_postgresql, monkeypatch):
    """The pool looks at a connection before it gives it, and that look has the deadline too."""
    monkeypatch.setattr(postgresql, "ANSWER_SECONDS", 0.5)
    database = Database(own_postgresql.create("pooled"))
    with database.read() as connection:
        frozen = connection.execute(PID).scalar_one()
    os.kill(frozen, signal.SIGSTOP)
    try:
        with database.read() as connection:
            assert connection.execute(PID).scalar_one() != frozen
    finally:
        os.kill(frozen, signal.SIGCONT)
    database.close()


def test_what_takes_a_while_is_waited_for(own_postgresql, monkeypatch):
    """An answer within the deadline is an answer, with notifications on the same connection."""
    monkeypatch.setattr(postgresql, "ANSWER_SECONDS", 5.0)
    database = Database(own_postgresql.create("slow"))
    with database.read() as connection:
        assert connection.execute(text("SELECT 1 FROM pg_sleep(0.5)")).scalar_one() == 1
    with database.engine.connect() as connection:
        listener = connection.execution_options(isolation_level="AUTOCOMMIT")
        listener.exec_driver_sql("LISTEN somewhere")
        assert list(listener.connection.driver_connection.notifies(timeout=0.3)) == []
        listener.exec_driver_sql("NOTIFY somewhere, 'hello'")
        (heard,) = listener.connection.driver_connection.notifies(timeout=3, stop_after=1)
        assert heard.payload == "hello"
    database.close()
