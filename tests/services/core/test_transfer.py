"""Moving an installation to another database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Boolean, Integer, LargeBinary, insert, select

from services.core import schema
from services.core.database import Database, Unavailable, upgrade
from services.core.transfer import NotCopied, copy

ROWS = 3
TABLES = [table for table in schema.METADATA.sorted_tables if table is not schema.revision]


def value(table: Any, column: Any, number: int) -> Any:
    """A value of the column's type; different in each row, the same for what refers to it."""
    if column.foreign_keys:
        (key,) = column.foreign_keys
        return value(key.column.table, key.column, number)
    if any(check.name == f"ck_{table.name}_single" for check in table.constraints):
        number = 1 if column.name == "id" else number
    if isinstance(column.type, Boolean):
        return number == 1
    if isinstance(column.type, Integer):
        return number
    if isinstance(column.type, LargeBinary):
        return bytes([0, 255, number])
    return f"{column.name} ü {number}"[: getattr(column.type, "length", None) or 255]


def fill(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Put rows into every table; returns them."""
    database = Database(url)
    with database.write() as writer:
        for table in TABLES:
            single = any(check.name == f"ck_{table.name}_single" for check in table.constraints)
            for number in range(1, 2 if single else ROWS + 1):
                row = {column.name: value(table, column, number) for column in table.c}
                writer.connection.execute(insert(table).values(**row))
        writer.changed("instance", "x", "put", "host:h")
    database.close()
    return contents(url)


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table but the revision, in the order of the key."""
    database = Database(url)
    with database.read() as connection:
        found = {
            table.name: [
                tuple(row)
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in TABLES
        }
    database.close()
    return found


def revision(url: str) -> tuple[str, int]:
    """Epoch and number."""
    database = Database(url)
    with database.read() as connection:
        row = connection.execute(select(schema.revision.c.epoch, schema.revision.c.number)).one()
    database.close()
    return str(row.epoch), int(row.number)


@pytest.fixture(params=["to postgresql", "to sqlite"])
def pair(request: pytest.FixtureRequest, tmp_path: Path, sqlite_url: str, postgresql: Any) -> Any:
    """(source with this version's schema, target without any), one of each engine."""
    name = f"transfer_{request.param[3:]}"
    url = postgresql.create(name)
    if request.param == "to postgresql":
        yield sqlite_url, url
    else:
        upgrade(url)
        yield url, f"sqlite:///{tmp_path}/new/copy.db"
    postgresql.drop(name)


def test_everything_arrives_under_a_new_epoch(pair: tuple[str, str]) -> None:
    """Every row of every table is there octet for octet; watchers will read anew."""
    source, target = pair
    given = fill(source)
    assert all(given.values())
    told: dict[str, int] = {}
    copy(source, target, told.__setitem__)
    assert contents(target) == contents(source) == given
    assert told == {name: len(rows) for name, rows in given.items()}
    (epoch, number), (new_epoch, new_number) = revision(source), revision(target)
    assert (new_number, new_epoch != epoch) == (number, True)


def test_a_target_with_data_is_left_alone(pair: tuple[str, str]) -> None:
    """A copy is never mixed with what is there."""
    source, target = pair
    fill(source)
    upgrade(target)
    before = fill(target)
    with pytest.raises(NotCopied, match="holds data already"):
        copy(source, target, lambda *_: None)
    assert contents(target) == before


def test_a_copy_that_fails_half_way_leaves_nothing(
    pair: tuple[str, str],
) -> None:
    """What breaks in the last table undoes the first, and the copy can be tried again."""
    source, target = pair
    given = fill(source)

    def told(name: str, _rows: int) -> None:
        if name == TABLES[-1].name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(source, target, told)
    assert not any(contents(target).values())
    copy(source, target, lambda *_: None)
    assert contents(target) == given


def test_what_cannot_be_copied_is_said(tmp_path: Path, sqlite_url: str) -> None:
    """The same database, an old schema, none at all."""
    with pytest.raises(NotCopied, match="same database"):
        copy(sqlite_url, sqlite_url, lambda *_: None)
    (tmp_path / "empty.db").touch()
    with pytest.raises(NotCopied, match="mooring db upgrade"):
        copy(f"sqlite:///{tmp_path}/empty.db", sqlite_url, lambda *_: None)
    with pytest.raises(Unavailable):
        copy(f"sqlite:///{tmp_path}/none.db", sqlite_url, lambda *_: None)
