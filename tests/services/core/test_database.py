"""The database's promises, on both engines."""

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
