"""Lists of the network API: the query string, and the page of objects that it asks for.

As OpenStack Networking has it: attributes are filters and may be repeated (any of the values),
``fields``, ``sort_key`` with ``sort_dir``, ``limit``, ``marker``, ``page_reverse``, ``tags`` and
its kin, ``changed_since``. Filters and sort keys that are columns become SQL; the others are
applied in memory to what the client would be shown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Integer,
    and_,
    exists,
    false,
    func,
    or_,
    select,
)

from services.core import schema
from services.hostnet import refusals, values
from services.hostnet.resource import Attribute, Call, Document, Resource, Row

QUERY_LIMIT = 2000
"""Parameters of one query: clients ask for the ports of a few hundred devices at once."""

TAG_FILTERS = ("tags", "tags-any", "not-tags", "not-tags-any")
_RESERVED = ("fields", "sort_key", "sort_dir", "limit", "marker", "page_reverse", "changed_since")
_INT32 = 2**31


@dataclass(frozen=True, slots=True)
class Query:
    """A list's query string."""

    fields: frozenset[str]
    filters: Mapping[str, tuple[str, ...]]
    tags: Mapping[str, tuple[tuple[str, ...], ...]]
    sort: tuple[tuple[str, bool], ...]
    limit: int | None
    marker: str | None
    reverse: bool
    changed_since: str | None
    raw: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Documents, and the query strings of the pages around them."""

    documents: list[Document]
    next: str | None
    previous: str | None


def parse(query_string: str) -> Query:
    """Read a query string as WSGI has it; raises Refused 400."""
    try:
        text = query_string.encode("latin-1").decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_LIMIT)
    except ValueError:
        raise refusals.bad_body("the query is not UTF-8, or too long") from None
    known: dict[str, list[str]] = {}
    for name, value in pairs:
        if not value.isprintable() or len(value) > 1024:
            raise refusals.bad_value(name[:64], "it is not a short printable text")
        known.setdefault(name, []).append(value)

    keys = known.get("sort_key", [])
    directions = known.get("sort_dir", [])
    if len(directions) > len(keys) or len(set(keys)) != len(keys) or len(keys) > 8:
        raise refusals.bad_body("The number of sort_keys and sort_dirs must be same")
    for each in directions:
        if each not in ("asc", "desc"):
            raise refusals.bad_value("sort_dir", f"'{each[:64]}' is not asc or desc")
    directions += ["asc"] * (len(keys) - len(directions))

    return Query(
        fields=frozenset(name for name in known.get("fields", []) if name),
        filters={
            name: tuple(given)
            for name, given in known.items()
            if name not in _RESERVED and name not in TAG_FILTERS
        },
        tags={
            name: tuple(_tag_list(each) for each in known[name])
            for name in TAG_FILTERS
            if name in known
        },
        sort=tuple((key, way == "asc") for key, way in zip(keys, directions, strict=True)),
        limit=_limit(known),
        marker=_one(known, "marker"),
        reverse=_truth("page_reverse", _one(known, "page_reverse") or "false"),
        changed_since=_time(_one(known, "changed_since")),
        raw=tuple(pairs),
    )


def _tag_list(text: str) -> tuple[str, ...]:
    return tuple(each for each in text.split(",") if each)


def _one(known: Mapping[str, Sequence[str]], name: str) -> str | None:
    given = known.get(name, ())
    if len(given) > 1:
        raise refusals.bad_value(name, "it stands there twice")
    return given[0] if given else None


def _limit(known: Mapping[str, Sequence[str]]) -> int | None:
    text = _one(known, "limit")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise refusals.bad_value("limit", f"'{text[:64]}' is not a number that is not negative")
    return int(text) or None


def _truth(name: str, text: str) -> bool:
    try:
        return values.boolean(text)
    except ValueError as error:
        raise refusals.bad_value(name, str(error)) from None


def _time(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise refusals.bad_value("changed_since", f"'{text[:64]}' is no time") from None
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


# ---- the page -----------------------------------------------------------------------------------


def page(resource: Resource, call: Call, query: Query) -> Page:
    """The page that the query asks for, of what the client sees; raises Refused 400."""
    names = [*query.filters, *(key for key, _ in query.sort), *query.fields]
    for name in names:
        attribute = resource.attributes.get(name)
        if attribute is None or not _may_see(attribute, call):
            raise refusals.bad_body(f"'{name[:64]}' is no attribute of {resource.collection}")
    conditions = [resource.visible(call), *_tag_conditions(resource, query)]
    in_memory: list[Callable[[Document], bool]] = []
    for name, given in query.filters.items():
        condition = _condition(resource, name, given)
        if condition is None:
            in_memory.append(_predicate(name, given))
        else:
            conditions.append(condition)
    if query.changed_since is not None:
        conditions.append(resource.table.c.updated_at >= query.changed_since)

    most = call.settings.pagination_max_limit
    limit = min(query.limit or most, most)
    columns = [_sort_column(resource, key) for key, _ in query.sort]
    if in_memory or any(column is None for column in columns):
        shown = _page_in_memory(resource, call, query, conditions, in_memory)
    else:
        keys = [(column, up) for column, (_, up) in zip(columns, query.sort, strict=True)]
        rows = _page_of_rows(resource, call, query, conditions, keys, limit + 1)
        shown = resource.documents(call, rows)
    # one more than the page was read: it says whether there is a next one
    more = len(shown) > limit
    shown = shown[:limit]
    if query.reverse:
        shown.reverse()
    if "tags" in resource.attributes:
        add_tags(resource, call, shown)
    forward = more if not query.reverse else query.marker is not None
    backward = more if query.reverse else query.marker is not None
    return Page(
        documents=[chosen(document, query.fields) for document in shown],
        next=_link(query, shown[-1]["id"], False) if shown and forward else None,
        previous=_link(query, shown[0]["id"], True) if shown and backward else None,
    )


def chosen(document: Document, fields: frozenset[str]) -> Document:
    """The document with these fields only, if any are named."""
    if not fields:
        return document
    return {name: value for name, value in document.items() if name in fields}


def _may_see(attribute: Attribute, call: Call) -> bool:
    return attribute.shown and (
        attribute.see_rule is None or any(call.allows(attribute.see_rule, p) for p in _any(call))
    )


def _any(call: Call) -> tuple[str | None, ...]:
    return (None, *call.projects)


def _condition(resource: Resource, name: str, given: tuple[str, ...]) -> ColumnElement[bool] | None:
    attribute = resource.attributes[name]
    if attribute.matches is not None:
        try:
            return attribute.matches(given)
        except ValueError as error:
            raise refusals.bad_value(name, str(error)) from None
    column_name = resource.column(attribute)
    if column_name is None or attribute.as_json or not attribute.shown:
        return None
    column = resource.table.c[column_name]
    if isinstance(column.type, Boolean):
        return column.in_([_truth(name, each) for each in given])
    if isinstance(column.type, Integer):
        numbers = [_number(name, each) for each in given if each != ""]
        found: ColumnElement[bool] = column.in_([n for n in numbers if abs(n) < _INT32])
    elif name in ("created_at", "updated_at"):
        found = or_(false(), *(column.like(_second(each), escape="\\") for each in given))
    else:
        found = column.in_(given)
    if column.nullable and "" in given:
        found = or_(found, column.is_(None))
    return found


def _second(text: str) -> str:
    """Times are shown in whole seconds, and kept with more."""
    return text[:19].replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def _number(name: str, text: str) -> int:
    try:
        number: int = values.integer(-(10**18), 10**18)(text)
    except ValueError as error:
        raise refusals.bad_value(name, str(error)) from None
    return number


def _predicate(name: str, given: tuple[str, ...]) -> Callable[[Document], bool]:
    wanted = {each.lower() for each in given}

    def holds(document: Document) -> bool:
        value = document.get(name)
        if isinstance(value, list):
            return bool(wanted & {str(each).lower() for each in value}) or (
                not value and "" in wanted
            )
        return ("" if value is None else str(value).lower()) in wanted

    return holds


def _tag_conditions(resource: Resource, query: Query) -> list[ColumnElement[bool]]:
    tags = schema.resource_tag.c
    of_this = and_(tags.resource_type == resource.collection, tags.resource_id == resource.key)

    def tagged(*names: str) -> ColumnElement[bool]:
        return exists(select(tags.tag).where(of_this, tags.tag.in_(names)))

    result: list[ColumnElement[bool]] = []
    for group in query.tags.get("tags", ()):
        result += [tagged(tag) for tag in group]
    for group in query.tags.get("tags-any", ()):
        result.append(tagged(*group))
    for group in query.tags.get("not-tags", ()):
        result.append(~and_(*(tagged(tag) for tag in group)) if group else false())
    for group in query.tags.get("not-tags-any", ()):
        result.append(~tagged(*group))
    return result


def _sort_column(resource: Resource, key: str) -> ColumnElement[Any] | None:
    attribute = resource.attributes[key]
    name = resource.column(attribute)
    if name is None or attribute.as_json:
        return None
    column = resource.table.c[name]
    if not column.nullable:
        return column
    # null sorts first on one engine and last on the other
    return func.coalesce(column, -1 if isinstance(column.type, Integer) else "")


def _page_of_rows(
    resource: Resource,
    call: Call,
    query: Query,
    conditions: list[ColumnElement[bool]],
    keys: Sequence[tuple[ColumnElement[Any] | None, bool]],
    limit: int,
) -> Sequence[Row]:
    table = resource.table
    order = [(column, up) for column, up in keys if column is not None]
    if not order:
        order = [(table.c.created_at, True)]
    order.append((resource.key, True))
    order = [(column, up is not query.reverse) for column, up in order]
    if query.marker is not None:
        marker = call.connection.execute(
            select(*(column for column, _ in order)).where(
                resource.key == query.marker, resource.visible(call)
            )
        ).first()
        if marker is None:
            raise _no_marker(query)
        # after the marker: equal in the first keys and beyond it in the next one
        conditions = [
            *conditions,
            or_(
                *(
                    and_(
                        *(order[i][0] == marker[i] for i in range(place)),
                        column > marker[place] if up else column < marker[place],
                    )
                    for place, (column, up) in enumerate(order)
                )
            ),
        ]
    statement = (
        select(table)
        .where(*conditions)
        .order_by(*(column.asc() if up else column.desc() for column, up in order))
        .limit(limit)
    )
    return call.connection.execute(statement).mappings().all()


def _page_in_memory(
    resource: Resource,
    call: Call,
    query: Query,
    conditions: list[ColumnElement[bool]],
    predicates: list[Callable[[Document], bool]],
) -> list[Document]:
    table = resource.table
    statement = select(table).where(*conditions).order_by(table.c.created_at, resource.key)
    rows = call.connection.execute(statement).mappings().all()
    documents = [
        document
        for document in resource.documents(call, rows)
        if all(holds(document) for holds in predicates)
    ]
    for key, up in reversed(query.sort):
        documents.sort(key=lambda document: _sortable(document.get(key)), reverse=not up)
    if query.reverse:
        documents.reverse()
    if query.marker is not None:
        for place, document in enumerate(documents):
            if document["id"] == query.marker:
                return documents[place + 1 :]
        raise _no_marker(query)
    return documents


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, bool | int | float):
        return (0, float(value), "")
    return (1, 0.0, "" if value is None else str(value))


def _no_marker(query: Query) -> refusals.Refused:
    shown = (query.marker or "")[:64]
    return refusals.bad_value("marker", f"'{shown}' is no object of this list")


def _link(query: Query, marker: str, reverse: bool) -> str:
    kept = [(n, v) for n, v in query.raw if n not in ("marker", "page_reverse")]
    if query.limit is None:
        kept = [(n, v) for n, v in kept if n != "limit"]
    back = [("page_reverse", "True")] if reverse else []
    return urlencode([*kept, ("marker", marker), *back])


def add_tags(resource: Resource, call: Call, documents: Sequence[Document]) -> None:
    """Add ``tags``, sorted, to each of the documents."""
    table = schema.resource_tag.c
    found: dict[str, list[str]] = {document["id"]: [] for document in documents}
    ids = list(found)
    for start in range(0, len(ids), 500):
        rows = call.connection.execute(
            select(table.resource_id, table.tag)
            .where(
                table.resource_type == resource.collection,
                table.resource_id.in_(ids[start : start + 500]),
            )
            .order_by(table.tag)
        )
        for object_id, tag in rows:
            found[object_id].append(tag)
    for document in documents:
        document["tags"] = found[document["id"]]
