"""The database: one way to read, one way to write, and migrations.

``Database.read`` is one snapshot; ``Database.write`` is one transaction, which raises the revision
as its last statement if anything was said to have changed, so revisions are contiguous and appear
in order on SQLite and PostgreSQL alike (DESIGN, State). What fails is one of two exceptions:
``Conflict`` (a unique constraint refused) or ``Unavailable`` (try again later).

SQLite runs in WAL mode with ``synchronous=FULL``: a commit is on disk before it returns. Writers
begin with BEGIN IMMEDIATE: with a deferred BEGIN, four writing processes met "database is locked"
5,457 times where they now meet it never (measured).
"""

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from services.core import schema

BUSY_TIMEOUT = 5.0
"""Seconds that a writer waits for another one on SQLite, and the limit of a PostgreSQL statement:
longer than any transaction of ours takes, shorter than a client's own deadline."""

CHANGES_KEPT = 100_000
"""Revisions that stay readable in ``change``; a reader that is further behind reads everything
anew. At some 150 bytes a row this bounds the table to a few tens of MiB."""

NOTIFY_CHANNEL = "mooring_revision"


SILENT_PAUSE = 30.0
"""Seconds for which a PostgreSQL that did not answer in time is not asked again, unless the
revision watch hears of it: nearly four times the longest that asking it takes (connect and one
answer), so a worker spends at most a fifth of its time on it."""

_SILENCES = ("Silent", "ConnectionTimeout")
"""Exceptions that mean a server which stands still; one that is gone refuses at once."""

_silent_until: dict[str, float] = {}
"""When a database may be asked again, by URL: all of a process learn from one."""


DriverConnection = Connection | sqlite3.Connection
"""What `Database.direct` gives: the driver's own connection on SQLite."""


_INHERITED: list[sqlite3.Connection] = []


class Unavailable(Exception):
    """The database cannot be reached, read or written just now."""


class Conflict(Exception):
    """A unique constraint refused; ``constraint`` is the name of the table it stands on."""

    def __init__(self, constraint: str) -> None:
        super().__init__(f"a row of {constraint} exists already")
        self.constraint = constraint


class Writer:
    """A writing transaction: its connection, and what it changes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._changes: list[dict[str, str]] = []

    def changed(self, kind: str, object_id: str, operation: str, scope: str) -> None:
        """Say that an object changed: operation ``put`` or ``delete``, scope ``host:NAME`` etc."""
        self._changes.append(
            {"kind": kind, "object_id": object_id, "operation": operation, "scope": scope}
        )

    def raise_revision(self) -> int | None:
        """Raise the revision and record the changes; None if nothing changed.

        The revision's row stays locked from here to the commit, so nothing may follow.
        """
        if not self._changes:
            return None
        number = self.connection.execute(
            update(schema.revision)
            .values(number=schema.revision.c.number + 1)
            .returning(schema.revision.c.number)
        ).scalar_one()
        at = now()
        nonce = secrets.token_hex(8)
        self.connection.execute(
            insert(schema.change),
            [
                {"revision": number, "ordinal": ordinal, "nonce": nonce, "at": at, **item}
                for ordinal, item in enumerate(self._changes)
            ],
        )
        if number % 1000 == 0:
            self.connection.execute(
                delete(schema.change).where(schema.change.c.revision <= number - CHANGES_KEPT)
            )
        return int(number)


class Database:
    """A database by URL; connects at first use, so it may be made before a fork."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self.sqlite_path = sqlite_path(self.url)
        self._engine: Engine | None = None
        self._pid = 0
        self._direct: sqlite3.Connection | None = None
        self._direct_of = (0, 0)
        self._direct_lock = threading.Lock()

    @property
    def engine(self) -> Engine:
        """The engine of this process; a forked child gets its own and leaves the parent's alone."""
        if self._engine is None or self._pid != os.getpid():
            self._engine = _make_engine(self.url, create=False)
            self._pid = os.getpid()
        return self._engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection in one snapshot; nothing it does is kept. Raises Unavailable."""
        with self._answering(), self.engine.connect() as connection:
            if self.sqlite_path is None:
                connection = connection.execution_options(
                    isolation_level="REPEATABLE READ", postgresql_readonly=True
                )
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Writer]:
        """One transaction, committed when the block ends. Raises Conflict or Unavailable."""
        with self._answering(), self.engine.connect() as connection:
            connection = connection.execution_options(mooring_write=True)
            with connection.begin():
                writer = Writer(connection)
                yield writer
                number = writer.raise_revision()
            if number is not None and self.sqlite_path is None:
                # In a transaction of its own: a NOTIFY inside the writing one holds a cluster-wide
                # lock through its commit. A lost hint costs a reader its next poll, nothing more.
                with contextlib.suppress(SQLAlchemyError), connection.begin():
                    connection.exec_driver_sql(
                        "SELECT pg_notify(%s, %s)", (NOTIFY_CHANNEL, str(number))
                    )

    @contextlib.contextmanager
    def direct(self, *, write: bool) -> Iterator[DriverConnection]:
        """As `read` and `write`, for few statements that are run often. Raises the same.

        On SQLite this is the driver's own connection, kept open, and a read is of one statement:
        what SQLAlchemy puts around it takes several times what SQLite takes (measured in a loop: 46
        us a transaction in place of 8, 11 a statement in place of 1). On PostgreSQL, where a round
        trip takes longer than that, it is SQLAlchemy's. The statements are the driver's text
        (`Connection.exec_driver_sql`).
        """
        if self.sqlite_path is None:
            if write:
                with self.write() as writer:
                    yield writer.connection
            else:
                with self.read() as pooled:
                    yield pooled
            return
        with self._direct_lock:
            try:
                connection = self._driver_connection(self.sqlite_path)
                if not write:
                    yield connection
                    return
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:  # an exception, or a commit that failed
                        connection.execute("ROLLBACK")
            except sqlite3.IntegrityError as error:
                raise Conflict(_sqlite_table(error)) from error
            except sqlite3.Error as error:
                raise Unavailable(type(error).__name__) from error

    def _driver_connection(self, path: Path) -> sqlite3.Connection:
        # as the pool does: one to a file that was replaced goes on answering from the old one
        now = (os.getpid(), inode(path))
        if self._direct is not None:
            if self._direct_of == now:
                return self._direct
            self._drop_direct()
        self._direct = connect_sqlite(path)
        self._direct_of = now
        return self._direct

    def _drop_direct(self) -> None:
        if self._direct is not None:
            if self._direct_of[0] == os.getpid():
                self._direct.close()
            else:
                _INHERITED.append(self._direct)  # SQLite must not close it in a forked child
            self._direct = None

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Let one ask a silent server, and refuse the others at once while it is known to be so.

        Each wait for it holds a worker for seconds, who has instances to serve from memory.
        """
        name = str(self.url)
        if time.monotonic() < _silent_until.get(name, 0.0):
            raise Unavailable("the database has not answered for a while")
        try:
            with _translated():
                yield
        except Unavailable as error:
            if type(getattr(error.__cause__, "orig", None)).__name__ in _SILENCES:
                _silent_until[name] = time.monotonic() + SILENT_PAUSE
            raise

    def heard(self) -> None:
        """Say that the server has answered: whoever asks next may."""
        _silent_until.pop(str(self.url), None)

    def close(self) -> None:
        """Close every pooled connection of this process."""
        if self._engine is not None and self._pid == os.getpid():
            self._engine.dispose()
        self._engine = None
        with self._direct_lock:
            self._drop_direct()


def now() -> str:
    """The time as the tables keep it: ``2026-11-21T02:17:39.000000Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_url(url: str) -> URL:
    """The URL, checked: ``sqlite:////absolute/path`` or ``postgresql+psycopg://...``.

    Raises ValueError that says what is wrong without repeating a password.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("is no database URL, such as sqlite:////var/lib/mooring.db") from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ValueError(f"asks for {parsed.drivername}; sqlite and postgresql are served")
    if parsed.drivername == "sqlite" and not (parsed.database or "").startswith("/"):
        raise ValueError("needs an absolute path: sqlite:////var/lib/mooring/mooring.db")
    return parsed


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL; None for PostgreSQL."""
    return Path(url.database or "") if url.drivername == "sqlite" else None


def upgrade(url: str) -> None:
    """Create the database or bring it to this version's schema. Raises Unavailable, ValueError.

    Runs twice without harm; two at the same time wait for each other (SQLite) or are kept apart by
    an advisory lock (PostgreSQL).
    """
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # User data may hold secrets: no one else may read the file, from its first byte on.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o660))
    engine = _make_engine(parsed, create=True)
    try:
        with _translated(), engine.connect() as plain:
            connection = plain.execution_options(mooring_write=True)
            with connection.begin():
                if path is None:
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(5063466901)")
                config = _alembic()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    finally:
        engine.dispose()


def schema_state(database: Database) -> str | None:
    """None if the schema is this version's; else what to do, in a sentence. Raises Unavailable."""
    with database.read() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(_alembic())
    head = script.get_current_head()
    if current == head:
        return None
    if current is None:
        return "the database is empty: run `mooring db upgrade`"
    if current not in {item.revision for item in script.walk_revisions()}:
        return f"the database has schema {current}, which is newer than this version knows"
    return f"the database has schema {current}, this version needs {head}: run `mooring db upgrade`"


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _make_engine(url: URL, *, create: bool) -> Engine:
    path = sqlite_path(url)
    if path is None:
        engine = create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            pool_timeout=BUSY_TIMEOUT,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": 2,
                "options": f"-c statement_timeout={int(BUSY_TIMEOUT * 1000)}"
                f" -c lock_timeout={int(BUSY_TIMEOUT * 1000)} -c timezone=UTC",
                "application_name": "mooring",
                "tcp_user_timeout": 5000,
            },
        )
        # Here, because psycopg is an extra
        from services.core.postgresql import Connection as Bounded

        @event.listens_for(engine, "do_connect")
        def bounded(_dialect: object, _record: object, arguments: Any, values: Any) -> Bounded:
            return Bounded.connect(*arguments, **values)

        return engine

    def connect() -> sqlite3.Connection:
        return connect_sqlite(path, create=create)

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=2)

    @event.listens_for(engine, "connect")
    def remember(_connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        record.info["inode"] = inode(path)

    @event.listens_for(engine, "checkout")
    def check(_connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        # A connection to a file that was removed or replaced goes on answering from the old one.
        if record.info.get("inode") != inode(path):
            record.invalidate()
            raise sqlite3.OperationalError("the database file was removed or replaced")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("mooring_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def connect_sqlite(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """A connection of the driver with what every one of ours has; raises sqlite3.Error."""
    # mode=rw: a missing file is an error to report, never an empty database made in silence
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def inode(path: str | Path) -> int:
    """The inode of a file, 0 if there is none: tells a replaced file from the opened one."""
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - asked before each answer, a third faster
    except OSError:
        return 0


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise Conflict(_conflicting_table(error)) from error
    except (DBAPIError, SQLAlchemyError, sqlite3.Error) as error:
        raise Unavailable(type(error).__name__) from error


def _conflicting_table(error: IntegrityError) -> str:
    diagnosis = getattr(error.orig, "diag", None)
    if diagnosis is not None:
        return str(diagnosis.table_name)
    return _sqlite_table(error.orig)


def _sqlite_table(error: BaseException | None) -> str:
    # "UNIQUE constraint failed: instance_address.network_id, instance_address.address"
    return str(error).rpartition(": ")[2].partition(".")[0]
