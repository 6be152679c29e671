"""The database's promises, on both engines."""

import os
import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, select

from services.core import schema
from services.core.database import (
    Conflict,
    Database,
    DriverConnection,
    Unavailable,
    parse_url,
    schema_state,
    upgrade,
)


def row(name: str, address: str = "") -> dict[str, object]:
    return {
        "id": name,
        "project_id": "p",
        "name": name,
        "hostname": name,
        "created_at": "t",
        "updated_at": "t",
        "version": 1,
        "document": "{}",
    }


def test_migrations_and_tables_agree(database_url: str) -> None:
    """The schema that the migrations make is the one that the code uses."""
    database = Database(database_url)
    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.METADATA)
    assert differences == []
    database.close()


def test_upgrade_twice_changes_nothing(database_url: str) -> None:
    """An upgrade may be repeated: the epoch and the data stay."""
    database = Database(database_url)
    with database.read() as connection:
        before = connection.execute(select(schema.revision)).one()
    upgrade(database_url)
    with database.read() as connection:
        assert connection.execute(select(schema.revision)).one() == before
    assert schema_state(database) is None
    database.close()


def test_revisions_are_contiguous_under_concurrency(database_url: str) -> None:
    """Writers in parallel raise the revision by one each, and no number lacks its change."""
    database = Database(database_url)

    def work(number: int) -> None:
        for turn in range(10):
            with database.write() as writer:
                writer.changed("instance", f"{number}-{turn}", "put", "host:a")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        number = connection.execute(select(schema.revision.c.number)).scalar_one()
        seen = connection.execute(
            select(schema.change.c.revision).order_by(schema.change.c.revision)
        ).scalars()
        assert list(seen) == list(range(1, 41))
    assert number == 40
    database.close()


def test_a_failed_transaction_leaves_nothing(database_url: str) -> None:
    """An exception inside write() undoes rows, changes and revision together."""
    database = Database(database_url)
    with pytest.raises(RuntimeError), database.write() as writer:  # noqa: PT012 - one transaction
        writer.connection.execute(insert(schema.instance), row("a"))
        writer.changed("instance", "a", "put", "host:a")
        raise RuntimeError
    with database.read() as connection:
        assert connection.execute(select(schema.instance)).all() == []
        assert connection.execute(select(schema.change)).all() == []
        assert connection.execute(select(schema.revision.c.number)).scalar_one() == 0
    database.close()


def test_a_taken_key_is_a_conflict_that_names_the_table(database_url: str) -> None:
    """Two rows with one key: the second writer gets Conflict with the table's name."""
    database = Database(database_url)
    with database.write() as writer:
        writer.connection.execute(insert(schema.instance), row("a"))
    with pytest.raises(Conflict) as refused, database.write() as writer:
        writer.connection.execute(insert(schema.instance), row("a"))
    assert refused.value.constraint == "instance"
    database.close()


def test_a_removed_sqlite_file_is_unavailable_and_comes_back(sqlite_url: str) -> None:
    """A database file that disappears is noticed at once, never made anew, and found again."""
    database = Database(sqlite_url)
    path = database.sqlite_path
    assert path is not None
    with database.read():
        pass
    away = Path(f"{path}.away")
    path.rename(away)
    with pytest.raises(Unavailable), database.read():
        pass
    with pytest.raises(Unavailable), database.write():
        pass
    assert not path.exists()
    away.rename(path)
    with database.write() as writer:
        writer.changed("instance", "a", "put", "host:a")
    database.close()


def test_a_missing_server_is_unavailable(tmp_path: Path) -> None:
    """A PostgreSQL that is not there is Unavailable, not an exception of a driver."""
    database = Database(f"postgresql+psycopg://mooring@/x?host={tmp_path}")
    with pytest.raises(Unavailable), database.read():
        pass
    database.close()


def test_sqlite_keeps_what_it_promised(sqlite_url: str) -> None:
    """Commits are synchronous, so an answered write survives a power failure."""
    database = Database(sqlite_url)
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    assert database.sqlite_path is not None
    assert database.sqlite_path.stat().st_mode & 0o007 == 0
    database.close()


def test_an_older_or_foreign_schema_is_named(tmp_path: Path) -> None:
    """A start on a database of another version says what to do."""
    path = tmp_path / "x.db"
    sqlite3.connect(path).close()
    database = Database(f"sqlite:///{path}")
    assert schema_state(database) == "the database is empty: run `mooring db upgrade`"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    connection.close()
    assert "newer than this version" in (schema_state(database) or "")
    database.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://x:secret@y/z", "sqlite and postgresql are served"),
        ("sqlite:///relative.db", "absolute path"),
        ("no url at all", "is no database URL"),
    ],
)
def test_a_bad_url_is_explained_without_its_password(url: str, reason: str) -> None:
    """A URL that cannot be served is refused with a reason that repeats no secret."""
    with pytest.raises(ValueError, match=reason) as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)


TOKEN = (
    "INSERT INTO ca_token (id, digest, request, created_at, created_by, expires_at)"
    " VALUES ('{0}', '{0}', 'r', 'c', 'b', 'e')"
)


def say(connection: DriverConnection, text: str) -> list[str]:
    """Run a statement of the driver's text; the first column of what it returns."""
    if isinstance(connection, sqlite3.Connection):
        return [row[0] for row in connection.execute(text)]
    result = connection.exec_driver_sql(text)
    return [row[0] for row in result] if result.returns_rows else []


def tokens(database: Database) -> list[str]:
    """What both ways of reading see, which is the same."""
    text = "SELECT id FROM ca_token ORDER BY id"
    with database.direct(write=False) as connection:
        found = say(connection, text)
    with database.read() as pooled:
        assert [row[0] for row in pooled.exec_driver_sql(text)] == found
    return found


def test_direct_transactions_are_kept_whole_or_not_at_all(database_url: str) -> None:
    """An exception undoes all of one, and the next begins afresh; durable as the others are."""
    database = Database(database_url)
    with database.direct(write=True) as connection:
        say(connection, TOKEN.format("a"))
        if isinstance(connection, sqlite3.Connection):
            assert say(connection, "PRAGMA synchronous") == [2]
            assert say(connection, "PRAGMA journal_mode") == ["wal"]
            assert say(connection, "PRAGMA foreign_keys") == [1]

    def write(*names: str) -> None:
        with database.direct(write=True) as connection:
            for name in names:
                say(connection, TOKEN.format(name) if name else str(1 / 0))

    with pytest.raises(ZeroDivisionError):
        write("b", "")
    with pytest.raises(Conflict) as conflict:
        write("c", "a")
    assert conflict.value.constraint == "ca_token"
    write("d")
    assert tokens(database) == ["a", "d"]
    database.close()
    assert tokens(database) == ["a", "d"]
    database.close()


def test_direct_says_unavailable_for_a_database_that_went(tmp_path: Path) -> None:
    """A file that was removed is not answered from, and a new one in its place is found."""
    path = tmp_path / "mooring.db"
    upgrade(f"sqlite:///{path}")
    database = Database(f"sqlite:///{path}")
    with database.direct(write=True) as connection:
        say(connection, TOKEN.format("a"))
    for file in tmp_path.iterdir():
        file.unlink()
    for write in (False, True):
        with pytest.raises(Unavailable), database.direct(write=write) as connection:
            say(connection, "SELECT id FROM ca_token")
    upgrade(f"sqlite:///{path}")
    assert tokens(database) == []
    database.close()


def test_a_forked_child_has_a_direct_connection_of_its_own(tmp_path: Path) -> None:
    """The parent's is neither used nor closed there."""
    upgrade(f"sqlite:///{tmp_path}/mooring.db")
    database = Database(f"sqlite:///{tmp_path}/mooring.db")
    with database.direct(write=True) as connection:
        say(connection, TOKEN.format("a"))
    child = os.fork()
    if child == 0:
        try:
            with database.direct(write=True) as mine:
                say(mine, TOKEN.format("b"))
            os._exit(0 if mine is not connection else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with database.direct(write=False) as again:
        assert again is connection
    assert tokens(database) == ["a", "b"]
    database.close()
