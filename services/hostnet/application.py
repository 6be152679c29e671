"""The network API: discovery, and the collections of the registry (docs/network-api.md).

A client sees what its certificate's groups let it see: what it may not see is 404; what it sees but
may not do is 403. Every request that writes is one transaction, which a race for an address, a
segment or a name makes run anew. A refused request changes nothing.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
import webob
from sqlalchemy import delete, insert

from services.core import log, readiness, schema
from services.core.config import ConfigError, load
from services.core.database import Conflict, Database, Unavailable, schema_state
from services.core.deploy import check_once, require_gatekeeper
from services.core.edge import RETRY_AFTER, Request, Response, Router, json_response
from services.core.errors import Failure
from services.core.identity import ClientIdentity
from services.core.policy import PROJECT, RULES, allows, projects_of
from services.hostnet import listing, quotas, refusals, values
from services.hostnet.registry import EXTENSIONS, others, resources
from services.hostnet.resource import (
    ATTEMPTS,
    BULK_LIMIT,
    Action,
    Call,
    Change,
    Extension,
    Resource,
    Row,
    read_post,
    read_put,
)
from services.hostnet.settings import Settings, from_conf

LOG = structlog.get_logger("mooring.network")

BODY_LIMIT = 1024 * 1024
"""Bytes of a body: 500 ports in bulk with all that a client sends of each."""

TAG_LIMIT = 50
"""Tags of one object, as in OpenStack's guideline."""

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_IF_MATCH = re.compile(r"\s*revision_number\s*=\s*([0-9]{1,9})\s*", re.ASCII)
_UPDATED = "2026-11-25T00:00:00-00:00"

_T = TypeVar("_T")
_Tags = list[str]


class NetworkAPI:
    """The WSGI application; `routes` are (method, path, rule)."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.resources = resources()
        self.extensions = {
            each.alias: each
            for each in (*EXTENSIONS, *(e for r in self.resources for e in r.extensions))
        }
        v2 = "/v2.0"
        routes: list[tuple[str, str, str, Callable[..., WSGIApplication]]] = [
            ("GET", "/", "", self.versions),
            ("GET", v2, "", self.version),
            ("GET", v2 + "/", "", self.version),
            ("GET", v2 + "/extensions", "", self.list_extensions),
            ("GET", v2 + "/extensions/{alias}", "", self.show_extension),
        ]
        for resource in self.resources:
            routes += self._routes(resource, f"{v2}/{resource.path}")
        for other in others():
            for method, path, rule, action in other.routes():
                routes.append(
                    (method, f"{v2}/{other.path}{path}", rule, self._action(method, action))
                )
        self.router = Router(routes)

    def _routes(
        self, resource: Resource, many: str
    ) -> Iterable[tuple[str, str, str, Callable[..., WSGIApplication]]]:
        rule, one = resource.rules, many + "/{id}"
        # before the members, so that a further route may stand where an id would
        for method, path, further, action in resource.routes():
            yield method, many + path, further, self._action(method, action)
        yield "GET", many, f"{rule}:list", partial(self.list, resource)
        yield "GET", one, f"{rule}:show", partial(self.show, resource)
        if "update" not in resource.without:
            yield "PUT", one, f"{rule}:update", partial(self.update, resource)
        if "create" not in resource.without:
            yield "POST", many, f"{rule}:create", partial(self.create, resource)
        if "delete" not in resource.without:
            yield "DELETE", one, f"{rule}:delete", partial(self.delete, resource)
        if "tags" in resource.attributes:
            tags, tag = one + "/tags", one + "/tags/{tag}"
            yield "GET", tags, f"{rule}:show", partial(self.list_tags, resource)
            yield "PUT", tags, f"{rule}:update", partial(self.put_tags, resource)
            yield "POST", tags, f"{rule}:update", partial(self.add_tags, resource)
            yield "DELETE", tags, f"{rule}:update", partial(self.delete_tags, resource)
            yield "GET", tag, f"{rule}:show", partial(self.show_tag, resource)
            yield "PUT", tag, f"{rule}:update", partial(self.put_tag, resource)
            yield "DELETE", tag, f"{rule}:update", partial(self.delete_tag, resource)

    @property
    def routes(self) -> list[tuple[str, str, str]]:
        """(method, path, rule) of every route."""
        return self.router.routes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; a refusal is a NeutronError."""
        try:
            require_gatekeeper(environ)
            # WSGI has an empty path where the client asked for the root of what by_path took off
            environ.setdefault("PATH_INFO", "/")
            environ["PATH_INFO"] = environ["PATH_INFO"] or "/"
            return self.router(environ, start_response)
        except Failure as failure:
            if failure.status == 500:
                raise
            if failure.status > 500:
                LOG.warning(
                    "request failed",
                    request_id=environ.get("mooring.request_id"),
                    status=failure.status,
                )
            response = Response(
                status=failure.status,
                body=refusals.body(failure),
                headerlist=[("Content-Type", "application/json"), *failure.headers],
            )
            return response(environ, start_response)

    # ---- discovery -----------------------------------------------------------------------------

    def versions(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        """What every client asks first."""
        _known(request.client)
        return json_response({"versions": [self._version(request)]})

    def version(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        """The one version, and its collections."""
        _known(request.client)
        base = f"{self._base(request)}/v2.0"
        collections = [
            {
                "name": resource.singular,
                "collection": resource.collection,
                "links": [{"rel": "self", "href": f"{base}/{resource.path}"}],
            }
            for resource in self.resources
        ]
        return json_response({"version": self._version(request), "resources": collections})

    def _version(self, request: Request) -> dict[str, Any]:
        return {
            "id": "v2.0",
            "status": "CURRENT",
            "links": [{"rel": "self", "href": f"{self._base(request)}/v2.0/"}],
        }

    def _base(self, request: Request) -> str:
        """What links begin with. NGINX speaks TLS and hands the client's Host on."""
        if self.settings.api_url:
            return self.settings.api_url
        host = request.environ.get("HTTP_HOST", "")
        return f"https://{host}" if _HOST.fullmatch(host) else ""

    def list_extensions(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        """Every alias that is served."""
        _known(request.client)
        query = listing.parse(request.query_string)
        shown = [listing.chosen(_extension(each), query.fields) for each in self._served()]
        return json_response({"extensions": shown})

    def show_extension(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """One alias."""
        _known(request.client)
        extension = self.extensions.get(match["alias"])
        if extension is None:
            raise refusals.not_found("Extension", match["alias"])
        return json_response({"extension": _extension(extension)})

    def _served(self) -> Iterable[Extension]:
        return (self.extensions[alias] for alias in sorted(self.extensions))

    # ---- collections ---------------------------------------------------------------------------

    def list(
        self, resource: Resource, request: Request, _match: Mapping[str, str]
    ) -> webob.Response:
        """One page of what the client may see."""
        client = _may_begin(f"{resource.rules}:list", request.client)
        query = listing.parse(request.query_string)
        with self.database.read() as connection:
            page = listing.page(resource, Call(client, connection, self.settings), query)
        answer: dict[str, Any] = {resource.collection: page.documents}
        links = [
            {"rel": rel, "href": f"{self._base(request)}{request.path}?{text}"}
            for rel, text in (("next", page.next), ("previous", page.previous))
            if text is not None
        ]
        if links:
            answer[f"{resource.collection}_links"] = links
        return json_response(answer)

    def show(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """One object."""
        client = _may_begin(f"{resource.rules}:show", request.client)
        query = listing.parse(request.query_string)
        with self.database.read() as connection:
            call = Call(client, connection, self.settings)
            document = _document(resource, call, resource.find(call, match["id"]))
        return json_response({resource.singular: listing.chosen(document, query.fields)})

    def create(
        self, resource: Resource, request: Request, _match: Mapping[str, str]
    ) -> webob.Response:
        """Make one or, from a list, many or none."""
        client = _may_begin(f"{resource.rules}:create", request.client)
        body = _body(request)
        if resource.collection in body:
            bulk, many = True, body.pop(resource.collection)
            if not isinstance(many, list) or not many:
                raise refusals.bad_body(f"'{resource.collection}' must be a list of objects")
            if len(many) > BULK_LIMIT:
                raise refusals.bad_body(f"'{resource.collection}' may hold {BULK_LIMIT} objects")
        elif resource.singular in body:
            bulk, many = False, [body.pop(resource.singular)]
        else:
            raise refusals.bad_body(f"Unable to find '{resource.singular}' in request body")
        _nothing_else(body)

        def work(change: Change) -> Any:
            asked = [read_post(resource, change, each) for each in many]
            quotas.check(change, resource, asked)
            made = resource.create_many(change, asked)
            return [_document(resource, change, resource.find(change, each)) for each in made]

        documents = self._write(client, work)
        for document in documents:
            self._note("created", resource, request, document["id"])
        if bulk:
            return json_response({resource.collection: documents}, 201)
        return json_response({resource.singular: documents[0]}, 201)

    def update(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """Change one; 412 if If-Match names another revision number."""
        client = _may_begin(f"{resource.rules}:update", request.client)
        body = _body(request)
        if resource.singular not in body:
            raise refusals.bad_body(f"Unable to find '{resource.singular}' in request body")
        asked = body.pop(resource.singular)
        _nothing_else(body)

        def work(change: Change) -> Any:
            row = self._for_change(resource, change, request, match["id"], "update")
            attributes = read_put(resource, change, row, asked)
            if attributes:
                resource.update(change, row, attributes)
            return _document(resource, change, resource.find(change, match["id"]))

        document = self._write(client, work)
        self._note("changed", resource, request, match["id"])
        return json_response({resource.singular: document})

    def delete(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """Delete one, with its tags."""
        client = _may_begin(f"{resource.rules}:delete", request.client)

        def work(change: Change) -> None:
            row = self._for_change(resource, change, request, match["id"], "delete")
            resource.delete(change, row)
            forget_tags(change, resource, match["id"])

        self._write(client, work)
        self._note("deleted", resource, request, match["id"])
        return Response(status=204)

    def _for_change(
        self, resource: Resource, change: Change, request: Request, object_id: str, verb: str
    ) -> Row:
        """The member, locked; raises 404, 403 or 412."""
        if values.is_uuid(object_id):
            resource.lock(change, [object_id])
        row = resource.find(change, object_id)
        rule = f"{resource.rules}:{verb}"
        if not change.allows(rule, row.get("project_id")):
            raise refusals.forbidden(f"(rule:{verb}_{resource.singular}) is disallowed by policy")
        wanted = request.headers.get("If-Match")
        if wanted is not None:
            match = _IF_MATCH.fullmatch(wanted.strip("\"'"))
            if match is None:
                raise refusals.bad_body("If-Match must be revision_number=NUMBER")
            if int(match[1]) != row.get("revision_number", 0):
                raise refusals.Refused(
                    412,
                    "RevisionNumberConstraintFailed",
                    f"Constrained to {match[1]}, but the current revision is another one",
                )
        return row

    def _write(self, client: ClientIdentity, work: Callable[[Change], _T]) -> _T:
        for _ in range(ATTEMPTS):
            try:
                with self.database.write() as writer:
                    return work(Change(client, writer.connection, self.settings, writer))
            except Conflict:
                continue
        raise Failure(
            503, "others change the same all the while", headers=[("Retry-After", RETRY_AFTER)]
        )

    # ---- further routes ------------------------------------------------------------------------

    def _action(self, method: str, action: Action) -> Callable[..., WSGIApplication]:
        return partial(self.read_action if method == "GET" else self.write_action, action)

    def read_action(
        self, action: Action, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """A further route that reads."""
        client = _known(request.client)
        with self.database.read() as connection:
            answer = action(Call(client, connection, self.settings), match, {})
        return json_response(answer)

    def write_action(
        self, action: Action, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """A further route that writes."""
        client = _known(request.client)
        body = {} if request.method == "DELETE" else _body(request)
        answer = self._write(client, lambda change: action(change, match, dict(body)))
        LOG.info(
            "network action",
            request_id=request.environ.get("mooring.request_id"),
            user=client.user,
            method=request.method,
            path=request.path,
        )
        if answer is None:
            return Response(status=204)
        return json_response(answer, 201 if request.method == "POST" else 200)

    # ---- tags ----------------------------------------------------------------------------------

    def list_tags(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """The tags of one object."""
        client = _may_begin(f"{resource.rules}:show", request.client)
        with self.database.read() as connection:
            call = Call(client, connection, self.settings)
            resource.find(call, match["id"])
            return json_response({"tags": _tags(resource, call, match["id"])})

    def show_tag(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """204 if the object has the tag."""
        client = _may_begin(f"{resource.rules}:show", request.client)
        with self.database.read() as connection:
            call = Call(client, connection, self.settings)
            resource.find(call, match["id"])
            if match["tag"] not in _tags(resource, call, match["id"]):
                raise refusals.not_found("Tag", match["tag"])
        return Response(status=204)

    def put_tags(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """Replace the tags of one object."""
        tags = _asked_tags(_body(request))
        self._set_tags(resource, request, match["id"], lambda _: tags)
        return json_response({"tags": tags})

    def add_tags(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """Add tags to those of one object."""
        tags = _asked_tags(_body(request))
        self._set_tags(resource, request, match["id"], lambda old: sorted({*old, *tags}))
        return json_response({"tags": tags}, 201)

    def delete_tags(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """Remove every tag."""
        self._set_tags(resource, request, match["id"], lambda _: [])
        return Response(status=204)

    def put_tag(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """Add one tag."""
        (tag,) = _asked_tags({"tags": [match["tag"]]})
        self._set_tags(resource, request, match["id"], lambda old: sorted({*old, tag}))
        return Response(status=201)

    def delete_tag(
        self, resource: Resource, request: Request, match: Mapping[str, str]
    ) -> webob.Response:
        """Remove one tag; 404 if the object does not have it."""

        def without(old: _Tags) -> _Tags:
            if match["tag"] not in old:
                raise refusals.not_found("Tag", match["tag"])
            return [each for each in old if each != match["tag"]]

        self._set_tags(resource, request, match["id"], without)
        return Response(status=204)

    def _set_tags(
        self,
        resource: Resource,
        request: Request,
        object_id: str,
        make: Callable[[_Tags], _Tags],
    ) -> None:
        client = _may_begin(f"{resource.rules}:update", request.client)

        def work(change: Change) -> None:
            self._for_change(resource, change, request, object_id, "update")
            old = _tags(resource, change, object_id)
            new = make(old)
            if len(new) > TAG_LIMIT:
                raise refusals.bad_value("tags", f"an object may have {TAG_LIMIT}")
            if new == old:
                return
            forget_tags(change, resource, object_id)
            if new:
                change.connection.execute(
                    insert(schema.resource_tag),
                    [
                        {
                            "resource_type": resource.collection,
                            "resource_id": object_id,
                            "tag": tag,
                        }
                        for tag in new
                    ],
                )
            resource.touch(change, object_id)

        self._write(client, work)

    @staticmethod
    def _note(event: str, resource: Resource, request: Request, object_id: str) -> None:
        """Write who changed what into the log, after the commit."""
        LOG.info(
            f"{resource.singular} {event}",
            request_id=request.environ.get("mooring.request_id"),
            user=request.client.user if request.client else None,
            id=object_id,
        )


def _extension(extension: Extension) -> dict[str, Any]:
    return {
        "alias": extension.alias,
        "name": extension.name,
        "description": extension.description,
        "updated": _UPDATED,
        "links": [],
    }


def _document(resource: Resource, call: Call, row: Row) -> dict[str, Any]:
    (document,) = resource.documents(call, [row])
    if "tags" in resource.attributes:
        listing.add_tags(resource, call, [document])
    return document


def _known(client: ClientIdentity | None) -> ClientIdentity:
    if client is None:
        raise Failure(401, "a client certificate is required")
    return client


def _may_begin(rule: str, client: ClientIdentity | None) -> ClientIdentity:
    """Refuse a client for whom no object could be right."""
    known = _known(client)
    if not allows(rule, known) and not (PROJECT in RULES[rule].groups and projects_of(known)):
        raise refusals.forbidden(f"{rule} is disallowed by policy")
    return known


def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Failure(415, "the body must come without Content-Encoding")
    try:
        return request.json_object(BODY_LIMIT)
    except OSError:
        raise refusals.bad_body("the body ended early") from None


def _nothing_else(body: Mapping[str, Any]) -> None:
    if body:
        raise refusals.bad_body(f"Unrecognized attribute(s) {sorted(body)[0][:64]!r}")


def _tags(resource: Resource, call: Call, object_id: str) -> _Tags:
    document: dict[str, Any] = {"id": object_id}
    listing.add_tags(resource, call, [document])
    return list(document["tags"])


def _asked_tags(body: dict[str, Any]) -> _Tags:
    tags = body.get("tags")
    if len(body) != 1 or not isinstance(tags, list):
        raise refusals.bad_body("Invalid tags body: {'tags': [...]} is needed")
    for tag in tags:
        # a comma separates tags in filters, a slash segments of a path
        if not isinstance(tag, str) or not 1 <= len(tag) <= 255 or not tag.isprintable():
            raise refusals.bad_value("tags", "a tag is a text of 1 to 255 printable characters")
        if "," in tag or "/" in tag:
            raise refusals.bad_value("tags", "a tag holds neither comma nor slash")
    return sorted(set(tags))


def forget_tags(change: Change, resource: Resource, object_id: str) -> None:
    """Delete the tags of an object that goes."""
    table = schema.resource_tag
    change.connection.execute(
        delete(table).where(
            table.c.resource_type == resource.collection, table.c.resource_id == object_id
        )
    )


def app_factory(global_conf: dict[str, str], *, config: str) -> WSGIApplication:
    """Build the application for paste; ``config`` is the path of mooring.conf.

    Raises ConfigError for a bad file, and for a database whose schema is not this version's; one
    that is away just now does not stop the start.
    """
    check_once(global_conf)
    conf = load(config)
    log.configure(conf.log.level, conf.log.format)
    database = Database(conf.database.url)

    def check() -> str | None:
        try:
            return schema_state(database)
        except Unavailable as error:
            return f"the database is not available ({error})"

    try:
        problem = schema_state(database)
    except Unavailable:
        problem = None
    finally:
        database.close()
    if problem is not None:
        raise ConfigError(f"{config}: {problem}")
    readiness.register("database of the network API", check)
    return NetworkAPI(database, from_conf(conf.network))
