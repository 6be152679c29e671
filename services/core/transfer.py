"""Copies a whole installation from one database to another, as from SQLite to PostgreSQL.

One snapshot of the source goes into one transaction of the target: there is all of it or nothing.
The copy gets an epoch of its own, so that whoever watched the source reads everything anew and
never takes the two for one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sqlalchemy import Connection, Table, func, insert, select, update

from services.core import schema
from services.core.database import Database, schema_state, upgrade

BATCH = 500
"""Rows of one INSERT. User data and certificates have some KiB each, so a few MiB at most."""


class NotCopied(Exception):
    """The copy was not made; the text says why, and nothing of the target has changed."""


def copy(source_url: str, target_url: str, told: Callable[[str, int], None]) -> None:
    """Copy every table; ``told`` hears each table's name and its number of rows once it is there.

    The target is made, or brought to this version's schema, first; it must hold nothing. Raises
    NotCopied, ValueError for a URL that is none, and Unavailable.
    """
    source, target = Database(source_url), Database(target_url)
    if source.url == target.url:
        raise NotCopied("source and target are the same database")
    try:
        problem = schema_state(source)
        if problem is not None:
            raise NotCopied(f"the source cannot be copied: {problem}")
        upgrade(target_url)
        with source.read() as reader, target.write() as writer:
            if not _empty(writer.connection):
                raise NotCopied("the target holds data already; copy into an empty database")
            for table in schema.METADATA.sorted_tables:
                if table is not schema.revision:
                    told(table.name, _copy_table(reader, writer.connection, table))
            number = reader.execute(select(schema.revision.c.number)).scalar_one()
            writer.connection.execute(
                update(schema.revision).values(epoch=secrets.token_hex(16), number=number)
            )
    finally:
        source.close()
        target.close()


def _empty(connection: Connection) -> bool:
    return not any(
        connection.execute(select(1).select_from(table).limit(1)).first()
        for table in schema.METADATA.sorted_tables
        if table is not schema.revision
    )


def _copy_table(reader: Connection, writer: Connection, table: Table) -> int:
    rows = reader.execution_options(yield_per=BATCH).execute(select(table))
    for part in rows.mappings().partitions():
        writer.execute(insert(table), [dict(row) for row in part])
    written = writer.execute(select(func.count()).select_from(table)).scalar_one()
    if written != reader.execute(select(func.count()).select_from(table)).scalar_one():
        raise NotCopied(f"{table.name}: the target does not have every row")
    return int(written)
