"""Instances and their passwords in the database: the only SQL of the metadata service.

A change is written against the state it was made from: ``replace`` and ``delete`` take the
``Stored`` that was read, and answer ``Stale`` if another writer was there first. Two writers that
race for an id or an address meet a primary key; the loser gets ``Taken``, which names the field and
never the other instance, because that may belong to another project. Every method raises
``services.core.database.Unavailable`` while the database is away.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    cast,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    type_coerce,
    update,
)

from services.core import schema
from services.core.database import Conflict, Database, Writer, now
from services.metadata.model import Instance

KIND = "instance"
"""The ``kind`` of an instance's rows in the table of changes."""

PASSWORD_KIND = "instance-password"  # noqa: S105 - the name of a kind of change, not a password
"""The ``kind`` of the rows that say that an instance's password was set or reset."""

PASSWORD_LIMIT = 1020
"""Bytes of a password: what Nova keeps (four of its metadata items of 255 characters)."""

_instance = schema.instance
_address = schema.instance_address
_password = schema.instance_password
_revision = schema.revision


@dataclass(frozen=True, slots=True)
class Stored:
    """An instance as it stands in the database; ``version`` is 1 at first and raised by a change.

    ``user_data_size`` is the length of the user data, which a list does not read: there
    ``instance.user_data`` is None. The times are ISO 8601 in UTC with microseconds.
    """

    instance: Instance
    version: int
    created_at: str
    updated_at: str
    user_data_size: int | None

    @property
    def etag(self) -> str:
        """An opaque name of this state; an instance made anew under its old id gets another."""
        made = "".join(character for character in self.created_at if character.isdigit())
        return f"{self.version}-{made}"


@dataclass(frozen=True, slots=True)
class Record:
    """An instance for the metadata cache, and the revision of the snapshot it was read from.

    Whatever changed up to ``revision`` of ``epoch`` is in it.
    """

    instance: Instance
    version: int
    epoch: str
    revision: int


@dataclass(frozen=True, slots=True)
class Password:
    """The password that an instance has set (bytes, often encrypted to a key), and when."""

    data: bytes
    set_at: str


@dataclass(frozen=True, slots=True)
class Taken:
    """Refusal: something that only one instance may have is another's. ``field`` is a pointer."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stale:
    """Refusal: the instance has been changed or deleted since it was read."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Refusal: there is no such instance."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is narrowed to; None and empty mean not at all.

    ``visible_projects`` and ``visible_host`` bound what the client may see: an instance of one of
    these projects, or one that this host carries. Both None: everything. ``host`` matches the host
    that carries an instance and the one that it moves to. ``tags`` are (key, value) pairs; a None
    value matches any.
    """

    visible_projects: tuple[str, ...] | None = None
    visible_host: str | None = None
    project_id: str | None = None
    host: str | None = None
    name: str | None = None
    hostname: str | None = None
    availability_zone: str | None = None
    address: str | None = None
    network_id: str | None = None
    tags: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Some instances of a list; ``marker`` is where the next page begins, None after the last."""

    items: tuple[Stored, ...]
    marker: str | None


class Store:
    """Instances in a database that has this version's schema."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # What operators do

    def get(self, instance_id: str) -> Stored | None:
        """The instance with its user data."""
        with self.database.read() as connection:
            row = connection.execute(
                select(_instance).where(_instance.c.id == instance_id)
            ).one_or_none()
        return None if row is None else _stored(row, row.user_data)

    def create(self, instance: Instance) -> Stored | Taken:
        """Keep a new instance."""
        at = now()
        stored = Stored(instance, 1, at, at, _size(instance))
        try:
            with self.database.write() as writer:
                writer.connection.execute(
                    insert(_instance).values(
                        **_columns(instance), version=1, created_at=at, updated_at=at
                    )
                )
                _add_addresses(writer.connection, instance.id, _addresses(instance))
                _tell(writer, instance.id, (), instance)
        except Conflict:
            return self._taken(instance, new=True)
        return stored

    def replace(self, old: Stored, instance: Instance) -> Stored | Taken | Stale:
        """Change the instance that was read as ``old``; the same content changes nothing."""
        if _same(old.instance, instance):
            return old
        before, after = _addresses(old.instance), _addresses(instance)
        at = max(now(), old.created_at)
        stored = Stored(instance, old.version + 1, old.created_at, at, _size(instance))
        try:
            with self.database.write() as writer:
                changed = writer.connection.execute(
                    update(_instance)
                    .where(_unchanged_since(old))
                    .values(**_columns(instance), version=stored.version, updated_at=at)
                )
                if changed.rowcount == 0:
                    return Stale()
                _remove_addresses(writer.connection, instance.id, before.keys() - after.keys())
                _add_addresses(writer.connection, instance.id, after.keys() - before.keys())
                _tell(writer, instance.id, _hosts(old.instance), instance)
        except Conflict:
            return self._taken(instance, new=False)
        return stored

    def delete(self, old: Stored) -> Stale | None:
        """Delete the instance that was read as ``old``, with its addresses and its password."""
        with self.database.write() as writer:
            # Locks the row first, so that nothing of the instance can be added behind our back.
            found = writer.connection.execute(
                select(_instance.c.id).where(_unchanged_since(old)).with_for_update()
            ).one_or_none()
            if found is None:
                return Stale()
            for table in (_address, _password):
                writer.connection.execute(
                    delete(table).where(table.c.instance_id == old.instance.id)
                )
            writer.connection.execute(delete(_instance).where(_instance.c.id == old.instance.id))
            for scope in _scopes(old.instance):
                writer.changed(KIND, old.instance.id, "delete", scope)
        return None

    def list(self, filters: Filters, limit: int, marker: str | None = None) -> Page | None:
        """At most ``limit`` instances after ``marker``, oldest first, without user data.

        ``marker`` is an id, or what ``Page.marker`` said (which holds even when that instance has
        been deleted). None if the marker is an id that is not in the database.
        """
        columns = [column for column in _instance.c if column.name != "user_data"]
        query = (
            select(*columns, func.length(_instance.c.user_data).label("user_data_size"))
            .order_by(_instance.c.created_at, _instance.c.id)
            .limit(limit + 1)
        )
        place = tuple_(_instance.c.created_at, _instance.c.id)
        with self.database.read() as connection:
            query = query.where(*_conditions(filters, connection.dialect.name))
            if marker is not None:
                at, comma, marker_id = marker.rpartition(",")
                if not comma:
                    found = connection.execute(
                        select(_instance.c.created_at).where(_instance.c.id == marker)
                    ).scalar_one_or_none()
                    if found is None:
                        return None
                    at = found
                query = query.where(place > tuple_(literal(at), literal(marker_id)))
            rows = connection.execute(query).all()
        items = tuple(_stored(row) for row in rows[:limit])
        more = len(rows) > limit
        last = items[-1] if items and more else None
        return Page(items, None if last is None else f"{last.created_at},{last.instance.id}")

    # What the metadata application reads

    def load(self, instance_id: str) -> Record | None:
        """The instance and the revision it was read at, in one query by primary key."""
        with self.database.read() as connection:
            row = connection.execute(_RECORD, {"instance_id": instance_id}).one_or_none()
        return None if row is None else _record(row)

    def load_many(self, after_id: str = "", limit: int = 100) -> Sequence[Record]:
        """The next ``limit`` instances in the order of their ids, to fill a cache with."""
        with self.database.read() as connection:
            rows = connection.execute(
                _RECORDS.where(_instance.c.id > after_id).order_by(_instance.c.id).limit(limit)
            ).all()
        return [_record(row) for row in rows]

    def identity_by_address(self, address: str) -> Sequence[tuple[str, str]]:
        """(instance id, project id) of each instance that has the address in some network.

        ``address`` is normalised IP text. More than one means that the address alone does not say
        who is asking.
        """
        with self.database.read() as connection:
            rows = connection.execute(
                select(_instance.c.id, _instance.c.project_id)
                .where(
                    _instance.c.id.in_(
                        select(_address.c.instance_id).where(_address.c.address == address)
                    )
                )
                .order_by(_instance.c.id)
            ).all()
        return [(row.id, row.project_id) for row in rows]

    # Passwords

    def password(self, instance_id: str) -> Password | None:
        """The password, if one is set."""
        with self.database.read() as connection:
            row = connection.execute(
                select(_password.c.password, _password.c.set_at).where(
                    _password.c.instance_id == instance_id
                )
            ).one_or_none()
        return None if row is None else Password(bytes(row.password), row.set_at)

    def set_password(self, instance_id: str, data: bytes) -> Password | Taken | Missing:
        """Set the password once: of any number of callers, one succeeds and the others get Taken.

        Raises ValueError if ``data`` is empty or longer than PASSWORD_LIMIT.
        """
        if not 0 < len(data) <= PASSWORD_LIMIT:
            raise ValueError(f"a password has 1 to {PASSWORD_LIMIT} bytes, not {len(data)}")
        password = Password(data, now())
        try:
            with self.database.write() as writer:
                instance = _lock(writer.connection, instance_id)
                if instance is None:
                    return Missing()
                writer.connection.execute(
                    insert(_password).values(
                        instance_id=instance_id, password=data, set_at=password.set_at
                    )
                )
                for scope in _scopes(instance):
                    writer.changed(PASSWORD_KIND, instance_id, "put", scope)
        except Conflict:
            return Taken("", "the password is set already")
        return password

    def reset_password(self, instance_id: str) -> bool | Missing:
        """Forget the password, so that one may be set again; say whether there was one."""
        with self.database.write() as writer:
            instance = _lock(writer.connection, instance_id)
            if instance is None:
                return Missing()
            removed = writer.connection.execute(
                delete(_password).where(_password.c.instance_id == instance_id)
            )
            if removed.rowcount == 0:
                return False
            for scope in _scopes(instance):
                writer.changed(PASSWORD_KIND, instance_id, "delete", scope)
        return True

    def _taken(self, instance: Instance, *, new: bool) -> Taken:
        """Say which of the instance's unique values stands in the way, after a Conflict."""
        addresses = _addresses(instance)
        with self.database.read() as connection:
            if (
                new
                and connection.execute(
                    select(_instance.c.id).where(_instance.c.id == instance.id)
                ).one_or_none()
            ):
                return Taken("/id", "the id is taken")
            rows = connection.execute(
                select(_address.c.network_id, _address.c.address).where(
                    _address.c.instance_id != instance.id,
                    tuple_(_address.c.network_id, _address.c.address).in_(list(addresses)),
                )
            ).all()
        held = {(row.network_id, row.address) for row in rows}
        for (network_id, address), field in addresses.items():
            if (network_id, address) in held:
                return Taken(field, f"{address} is taken in network {network_id}")
        # The other writer has withdrawn between our failure and this look: trying again succeeds.
        return Taken("/interfaces", "an address was taken just now")


_RECORDS = select(
    _instance.c.id,
    _instance.c.document,
    _instance.c.user_data,
    _instance.c.version,
    _revision.c.epoch,
    _revision.c.number,
).join_from(_instance, _revision, _revision.c.id == 1)
# Made once: making the statement takes longer than the database takes to answer it.
_RECORD = _RECORDS.where(_instance.c.id == bindparam("instance_id"))


def document_of(instance: Instance) -> dict[str, Any]:
    """The instance's document without its user data: what is kept, and what a list shows."""
    document = dataclasses.replace(instance, user_data=None).to_document()
    del document["user_data"]
    return document


def _same(one: Instance, other: Instance) -> bool:
    # By JSON text, not by ==, for which 1, 1.0 and True are the same vendor data.
    def text(instance: Instance) -> str:
        return json.dumps(document_of(instance), sort_keys=True)

    return one.user_data == other.user_data and text(one) == text(other)


def _size(instance: Instance) -> int | None:
    return None if instance.user_data is None else len(instance.user_data)


def _columns(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.id,
        "project_id": instance.project_id,
        "name": instance.name,
        "hostname": instance.hostname,
        "host": instance.host,
        "next_host": instance.next_host,
        "instance_type": instance.instance_type,
        "image_id": instance.image_id,
        "availability_zone": instance.availability_zone,
        "document": json.dumps(document_of(instance), separators=(",", ":")),
        "user_data": instance.user_data,
    }


def _instance_of(document: str, user_data: bytes | None) -> Instance:
    instance = Instance.from_document(json.loads(document))
    if user_data is None:
        return instance
    return dataclasses.replace(instance, user_data=bytes(user_data))


def _stored(row: Any, user_data: bytes | None = None) -> Stored:
    instance = _instance_of(row.document, user_data)
    size = row.user_data_size if "user_data_size" in row._fields else _size(instance)
    return Stored(instance, row.version, row.created_at, row.updated_at, size)


def _record(row: Any) -> Record:
    return Record(_instance_of(row.document, row.user_data), row.version, row.epoch, row.number)


def _unchanged_since(old: Stored) -> ColumnElement[bool]:
    return and_(
        _instance.c.id == old.instance.id,
        _instance.c.version == old.version,
        _instance.c.created_at == old.created_at,
    )


def _lock(connection: Connection, instance_id: str) -> Instance | None:
    """The instance without user data, its row locked until the end of the transaction."""
    document = connection.execute(
        select(_instance.c.document).where(_instance.c.id == instance_id).with_for_update()
    ).scalar_one_or_none()
    return None if document is None else _instance_of(document, None)


def _addresses(instance: Instance) -> Mapping[tuple[str, str], str]:
    """(network id, address) of each address, and the JSON pointer to it."""
    return {
        (interface.network_id, str(fixed.ip_address)): (
            f"/interfaces/{index}/subnets/{place}/addresses/{number}/ip_address"
        )
        for index, interface in enumerate(instance.interfaces)
        for place, subnet in enumerate(interface.subnets)
        for number, fixed in enumerate(subnet.addresses)
    }


def _add_addresses(
    connection: Connection, instance_id: str, addresses: Iterable[tuple[str, str]]
) -> None:
    # Sorted: two writers that want the same addresses wait for each other in one order.
    rows = [
        {"network_id": network_id, "address": address, "instance_id": instance_id}
        for network_id, address in sorted(addresses)
    ]
    if rows:
        connection.execute(insert(_address), rows)


def _remove_addresses(
    connection: Connection, instance_id: str, addresses: Iterable[tuple[str, str]]
) -> None:
    for network_id, address in addresses:
        connection.execute(
            delete(_address).where(
                _address.c.network_id == network_id,
                _address.c.address == address,
                _address.c.instance_id == instance_id,
            )
        )


def _hosts(instance: Instance) -> Sequence[str]:
    """The hosts that carry the instance: one, or two during a move."""
    return sorted({host for host in (instance.host, instance.next_host) if host is not None})


def _scopes(instance: Instance) -> Sequence[str]:
    """Who is told of a change: the hosts that carry the instance, else its project."""
    return [f"host:{host}" for host in _hosts(instance)] or [f"project:{instance.project_id}"]


def _tell(writer: Writer, instance_id: str, before: Iterable[str], instance: Instance) -> None:
    """Tell each host that lost the instance, then each that has it; the last word is a put."""
    for host in before:
        if host not in _hosts(instance):
            writer.changed(KIND, instance_id, "delete", f"host:{host}")
    for scope in _scopes(instance):
        writer.changed(KIND, instance_id, "put", scope)


def _conditions(filters: Filters, dialect: str) -> Iterable[ColumnElement[bool]]:
    visible: list[ColumnElement[bool]] = []
    if filters.visible_projects:
        visible.append(_instance.c.project_id.in_(filters.visible_projects))
    if filters.visible_host is not None:
        visible.append(_carried_by(filters.visible_host))
    if visible:
        yield or_(*visible)
    elif filters.visible_projects is not None:
        yield false()
    for name in ("project_id", "name", "hostname", "availability_zone"):
        value = getattr(filters, name)
        if value is not None:
            yield _instance.c[name] == value
    if filters.host is not None:
        yield _carried_by(filters.host)
    if filters.address is not None:
        # In one row: an instance with the address in this very network.
        found = [_address.c.instance_id == _instance.c.id, _address.c.address == filters.address]
        if filters.network_id is not None:
            found.append(_address.c.network_id == filters.network_id)
        yield exists().where(*found)
    elif filters.network_id is not None:
        # Not by address: an interface may be in a network before it has one there.
        interface = _each_interface(dialect)
        yield exists().where(interface == filters.network_id)
    for key, value in filters.tags:
        tag = _document(dialect)[("tags", key)].as_string()
        yield tag.is_not(None) if value is None else tag == value


def _carried_by(host: str) -> ColumnElement[bool]:
    return or_(_instance.c.host == host, _instance.c.next_host == host)


def _document(dialect: str) -> ColumnElement[Any]:
    # SQLite reads JSON from text; its CAST would make a number of it.
    if dialect == "sqlite":
        return type_coerce(_instance.c.document, JSON)
    return cast(_instance.c.document, JSON)


def _each_interface(dialect: str) -> ColumnElement[Any]:
    """The network id of each interface in a document, as a correlated table function's column."""
    if dialect == "sqlite":
        each = func.json_each(_instance.c.document, "$.interfaces").table_valued("value")
        return func.json_extract(each.c.value, "$.network_id")
    each = func.json_array_elements(_document(dialect)["interfaces"]).table_valued("value")
    return func.json_extract_path_text(each.c.value, "network_id")
