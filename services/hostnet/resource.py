"""A resource of the network API as a table of attributes, and the hooks for what is its own.

To add a resource: one module with a subclass of `Resource` (see networks.py for a whole one), one
line in `services.hostnet.registry`, its rules in `services.core.policy` (`_resource_rules`), its
section in docs/network-api.md. Everything else follows from the class:

- ``attributes`` say what a client may send (``post``, ``put``, ``convert``, ``default``), who may
  (``set_rule``) and who sees it (``see_rule``), in which column it is kept (``column``, by default
  the column of the same name; ``as_json`` for lists and objects) and how it is filtered (by default
  equality with the column; ``matches`` gives a condition of its own; an attribute with neither is
  filtered and sorted in memory, on what is shown). The common ones (id, name, description,
  project_id, revision_number, times, tags) are added by themselves.
- the collection gets GET (filters, fields, sort, pages, tags), POST (one and many), and each member
  GET, PUT (with If-Match: revision_number), DELETE, and its tags. Ids, times, revision numbers,
  quotas, project scoping and error bodies are the framework's.
- hooks, all of which run inside the one transaction of the request (`Change`); what they raise
  (`Refused`) undoes all of it, and a `Conflict` of the database makes the whole request run again,
  up to `ATTEMPTS` times. So a hook checks by reading, and lets a primary key decide a race:
    ``lock(change, ids)``            take row locks before anything is read (PostgreSQL)
    ``create(change, values)``       values: every attribute with ``post``, converted, with defaults
    ``update(change, row, values)``  values: what the client sent, converted
    ``delete(change, row)``
    ``extend(call, rows, documents)`` add shown attributes that are no columns, for many at once
    ``visible(call)``                condition for rows that the client sees
    ``routes()``                     further routes below the collection
- ``extensions`` are the aliases that /v2.0/extensions lists: only those that are really served.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, Connection, Table, insert, select, true, update

from services.core.database import Writer, now
from services.core.errors import Failure
from services.core.identity import ClientIdentity
from services.core.policy import allows, projects_of
from services.hostnet import refusals, values
from services.hostnet.settings import Settings

ATTEMPTS = 20
"""Times that a request runs anew because another one took what it was about to take. Each lost
attempt means that another request succeeded."""

REQUIRED: Any = object()
"""Default of an attribute that a POST must hold."""

BULK_LIMIT = 500
"""Objects of one bulk POST: the whole of it is one transaction, during which SQLite has no other
writer; 500 ports take well under a second."""

Row = Mapping[Any, Any]
# A row as SQLAlchemy maps it, by column name.
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Extension:
    """What /v2.0/extensions says about a part of the API."""

    alias: str
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a resource; see the head of this module.

    ``convert`` is None for one that is read-only. ``column`` is None for one that is no column.
    ``matches`` makes a condition of a filter's values; it raises ValueError for a bad value.
    """

    name: str
    convert: values.Converter | None = None
    post: bool = True
    put: bool = True
    default: Any = None
    column: str | None = ""
    as_json: bool = False
    set_rule: str | None = None
    see_rule: str | None = None
    shown: bool = True
    matches: Callable[[Sequence[str]], ColumnElement[bool]] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who asks, the database's connection, and how the service is set."""

    client: ClientIdentity
    connection: Connection
    settings: Settings

    def allows(self, rule: str, project_id: str | None = None) -> bool:
        """Whether the client passes a rule for an object of this project."""
        return allows(rule, self.client, project_id=project_id)

    @property
    def projects(self) -> tuple[str, ...]:
        """The projects that the client's certificate names."""
        return projects_of(self.client)


@dataclass(frozen=True, slots=True)
class Change(Call):
    """A request that writes: ``writer`` is what the feed's functions (changes.py) take."""

    writer: Writer


class Resource:
    """A kind of object. Subclasses set what is below and override hooks."""

    singular: ClassVar[str]
    """Name of one in JSON, such as ``security_group``."""
    collection: ClassVar[str]
    """Name of many in JSON, such as ``security_groups``; the path has ``-`` for ``_``."""
    title: ClassVar[str]
    """Beginning of its errors' types: ``Network`` for NetworkNotFound."""
    table: ClassVar[Table]
    own: ClassVar[tuple[Attribute, ...]]
    """Its attributes without the common ones."""
    extensions: ClassVar[tuple[Extension, ...]] = ()
    limited: ClassVar[bool] = True
    """Whether a project's quota counts it."""
    without: ClassVar[frozenset[str]] = frozenset()
    """What it does not serve of create, update and delete."""
    rule: ClassVar[str] = ""
    """Prefix of its policy rules; ``singular`` with ``-`` unless it is set."""

    def __init__(self) -> None:
        common = self.common()
        mine = {each.name for each in self.own}
        self.attributes: Mapping[str, Attribute] = {
            each.name: each for each in (*(c for c in common if c.name not in mine), *self.own)
        }

    @property
    def path(self) -> str:
        """The collection's path segment."""
        return self.collection.replace("_", "-")

    @property
    def key(self) -> Any:
        """The column of ids."""
        return self.table.c.id

    @property
    def rules(self) -> str:
        """Prefix of its policy rules."""
        return self.rule or self.singular.replace("_", "-")

    def common(self) -> tuple[Attribute, ...]:
        """The attributes that every resource has, unless it has its own of the name."""
        return (
            Attribute("id"),
            Attribute("name", values.text(), default=""),
            Attribute("description", values.text(), default=""),
            Attribute("project_id", project, put=False, default=None),
            Attribute("tenant_id", project, put=False, column="project_id"),
            Attribute("revision_number"),
            Attribute("created_at"),
            Attribute("updated_at"),
            Attribute("tags", column=None),
        )

    def column(self, attribute: Attribute) -> str | None:
        """The column that keeps an attribute, if one does."""
        if attribute.column == "":
            return attribute.name if attribute.name in self.table.c else None
        return attribute.column

    # ---- hooks ---------------------------------------------------------------------------------

    def visible(self, call: Call) -> ColumnElement[bool]:
        """Condition for the rows that the client sees."""
        if call.allows(f"{self.rules}:list"):
            return true()
        return self.table.c.project_id.in_(call.projects)

    def lock(self, change: Change, object_ids: Sequence[str]) -> None:
        """Lock the rows of members that are about to be changed or deleted."""
        change.connection.execute(
            select(self.table.c.id)
            .where(self.table.c.id.in_(sorted(object_ids)))
            .order_by(self.table.c.id)
            .with_for_update(key_share=True)
        ).all()

    def create(self, change: Change, attributes: Mapping[str, Any]) -> str:
        """Make one; returns its id."""
        return self.insert(change, self.columns(attributes))

    def create_many(self, change: Change, many: Sequence[Mapping[str, Any]]) -> list[str]:
        """Make several in one transaction; returns their ids."""
        return [self.create(change, each) for each in many]

    def update(self, change: Change, row: Row, attributes: Mapping[str, Any]) -> None:
        """Change one. ``attributes`` holds at least one value that differs from the row's."""
        self.set(change, row, self.columns(attributes))

    def delete(self, change: Change, row: Row) -> None:
        """Delete one; `remove` is the plain way."""
        self.remove(change, row)

    def extend(self, call: Call, rows: Sequence[Row], documents: Sequence[Document]) -> None:
        """Add what is shown beyond columns; ``documents`` are in the order of ``rows``."""

    def routes(self) -> Iterable[tuple[str, str, str, Action]]:
        """Further routes: (method, path below the collection, rule, action)."""
        return ()

    # ---- for hooks to use ----------------------------------------------------------------------

    def columns(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attribute values as column values."""
        result = {}
        for name, value in attributes.items():
            attribute = self.attributes[name]
            column = self.column(attribute)
            if column is not None:
                result[column] = json.dumps(value) if attribute.as_json else value
        return result

    def insert(self, change: Change, columns: Mapping[str, Any], object_id: str = "") -> str:
        """Insert a row with a new id and the times of now; returns the id."""
        object_id = object_id or str(uuid.uuid4())
        at = now()
        change.connection.execute(
            insert(self.table).values(
                id=object_id, revision_number=0, created_at=at, updated_at=at, **columns
            )
        )
        return object_id

    def set(self, change: Change, row: Row, columns: Mapping[str, Any]) -> None:
        """Update a row, its revision number and time."""
        change.connection.execute(
            update(self.table)
            .where(self.table.c.id == row["id"])
            .values(**columns, revision_number=self.table.c.revision_number + 1, updated_at=now())
        )

    def touch(self, change: Change, object_id: str) -> None:
        """Raise the revision number of one, because something that belongs to it changed."""
        self.set(change, {"id": object_id}, {})

    def remove(self, change: Change, row: Row) -> None:
        """Delete the row."""
        change.connection.execute(self.table.delete().where(self.table.c.id == row["id"]))

    def find(self, call: Call, object_id: str) -> Row:
        """A row that the client sees; raises Refused 404."""
        row = None
        if values.is_uuid(object_id):
            row = (
                call.connection.execute(
                    select(self.table).where(self.key == object_id, self.visible(call))
                )
                .mappings()
                .first()
            )
        if row is None:
            raise self.missing(object_id)
        return row

    def missing(self, object_id: str) -> Failure:
        """404 for one that is not there, or not the client's to see."""
        return refusals.not_found(self.title, object_id)

    def in_use(self, object_id: str, reason: str) -> Failure:
        """409 for one that others rest on."""
        return refusals.conflict(
            f"{self.title}InUse",
            f"Unable to complete operation on {self.singular} {object_id}. {reason}",
        )

    def documents(self, call: Call, rows: Sequence[Row]) -> list[Document]:
        """The rows as the client sees them, ``tags`` excepted."""
        plain = []
        for name, attribute in self.attributes.items():
            column = self.column(attribute)
            if column is not None and attribute.shown:
                plain.append((name, column, attribute.as_json))
        documents = [
            {name: json.loads(row[c]) if as_json else row[c] for name, c, as_json in plain}
            for row in rows
        ]
        for document in documents:
            for name in ("created_at", "updated_at"):
                if name in document:
                    document[name] = document[name][:19] + "Z"
        self.extend(call, rows, documents)
        # judged by the object's own project, so that a tenant may see more of its own
        hidden = [each for each in self.attributes.values() if each.see_rule is not None]
        for document in documents:
            for each in hidden:
                if not call.allows(each.see_rule or "", document.get("project_id")):
                    document.pop(each.name, None)
        return documents


Action = Callable[[Any, Mapping[str, str], dict[str, Any]], Any]
"""What a further route does: (call or change, path's names, body) to the JSON value of the answer,
None for 204. GET gets a Call, every other method a Change."""


def project(value: Any) -> str:
    """A project's id as certificates name it; empty is what belongs to no project."""
    return "" if value == "" else str(values.token(value))


# ---- bodies -------------------------------------------------------------------------------------


def read_post(resource: Resource, call: Call, body: Any) -> dict[str, Any]:
    """The attributes of a POST, complete; raises Refused 400 or 403."""
    given = _known(resource, body, "post")
    _alias_project(given)
    result: dict[str, Any] = {}
    project_id = _project_for(resource, call, given)
    for name, attribute in resource.attributes.items():
        if name in ("project_id", "tenant_id") or attribute.convert is None or not attribute.post:
            continue
        if name in given:
            result[name] = _converted(attribute, given[name])
            if result[name] != attribute.default:
                _check_rule(attribute, call, project_id, resource, "create")
        elif attribute.default is REQUIRED:
            raise refusals.bad_body(
                f"Failed to parse request. Required attribute '{name}' not specified"
            )
        else:
            result[name] = attribute.default
    if project_id is not None:
        result["project_id"] = project_id
    return result


def read_put(resource: Resource, call: Call, row: Row, body: Any) -> dict[str, Any]:
    """The attributes of a PUT that differ from the row's; raises Refused 400 or 403."""
    given = _known(resource, body, "put")
    result = {}
    for name, value in given.items():
        attribute = resource.attributes[name]
        converted = _converted(attribute, value)
        column = resource.column(attribute)
        if column is not None:
            kept = json.loads(row[column]) if attribute.as_json else row[column]
            if kept == converted and type(kept) is type(converted):
                continue
        _check_rule(attribute, call, row.get("project_id"), resource, "update")
        result[name] = converted
    return result


def _known(resource: Resource, body: Any, method: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise refusals.bad_body(f"'{resource.singular}' must be an object")
    unknown = sorted(name for name in body if name not in resource.attributes)
    if unknown:
        names = ", ".join(repr(name[:64]) for name in unknown[:8])
        raise refusals.bad_body(f"Unrecognized attribute(s) {names}")
    for name in body:
        attribute = resource.attributes[name]
        if attribute.convert is None or not getattr(attribute, method):
            action = "POST" if method == "post" else "PUT"
            raise refusals.bad_body(f"Attribute '{name}' not allowed in {action}")
    return dict(body)


def _alias_project(given: dict[str, Any]) -> None:
    if "tenant_id" in given:
        tenant = given.pop("tenant_id")
        if given.setdefault("project_id", tenant) != tenant:
            raise refusals.bad_body("'project_id' and 'tenant_id' do not match")


def _project_for(resource: Resource, call: Call, given: Mapping[str, Any]) -> str | None:
    """Whose the new object is: named, or the client's only project, or nobody's for an admin."""
    if "project_id" not in resource.attributes:
        return None
    rule = f"{resource.rules}:create"
    value = given.get("project_id")
    if value is None:
        if len(call.projects) == 1:
            value = call.projects[0]
        elif call.allows(rule):
            value = ""
        else:
            raise refusals.bad_value("project_id", "the certificate names no single project")
    project_id: str = _converted(resource.attributes["project_id"], value)
    if not call.allows(rule, project_id):
        raise refusals.forbidden(f"{rule} is disallowed by policy for project {project_id!r}")
    return project_id


def _converted(attribute: Attribute, value: Any) -> Any:
    if attribute.convert is None:
        raise refusals.bad_body(f"Attribute '{attribute.name}' not allowed")
    try:
        return attribute.convert(value)
    except ValueError as error:
        raise refusals.bad_value(attribute.name, str(error)) from None


def _check_rule(
    attribute: Attribute, call: Call, project_id: str | None, resource: Resource, verb: str
) -> None:
    rule = attribute.set_rule
    if rule is not None and not call.allows(rule, project_id):
        raise refusals.forbidden(
            f"(rule:{verb}_{resource.singular}:{attribute.name}) is disallowed by policy"
        )
