"""The operators' API for instances: HTTP and JSON over the store (docs/instances.md).

A client sees what its certificate's groups let it see: what it may not see is 404, as if it were
not there; what it sees but may not do is 403. A change is made against the state that was read and
tried again when another writer was faster, unless the client named that state in ``If-Match``: then
it is 412. A refused request changes nothing.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
import webob

from services.core import log, readiness
from services.core.config import ConfigError, load
from services.core.database import Database, Unavailable, schema_state
from services.core.deploy import check_once, require_gatekeeper
from services.core.edge import RETRY_AFTER, Request, Response, Router, json_response
from services.core.errors import Failure
from services.core.identity import ClientIdentity
from services.core.policy import HOST, PROJECT, RULES, allows, enforce, projects_of
from services.metadata.model import Instance, Invalid
from services.metadata.store import Filters, Missing, Stale, Store, Stored, Taken, document_of
from services.metadata.validation import parse, pointer

LOG = structlog.get_logger("mooring.operators")

BODY_LIMIT = 256 * 1024
"""Bytes of a request's body: 64 KiB of user data are 86 KiB of base64, keys and vendor data the
rest. It also bounds what many small changes can make of one instance."""

PAGE_LIMIT = 1000
PAGE_DEFAULT = 100
"""Instances of one answer: a thousand of some 2 KB keep a worker busy for well under a second."""

QUERY_LIMIT = 64
"""Parameters of one query; the longest sensible one asks for some tags."""

ATTEMPTS = 10
"""Times that a change is made anew because another writer was faster. Each lost attempt means that
another one succeeded, so only a storm of changes of a single instance gets there."""

READ_ONLY = ("version", "created_at", "updated_at", "user_data_size")
"""What an answer says beyond the document. PUT and POST ignore it, so an answer can be edited and
sent back."""

HIDDEN_FROM_HOSTS = ("keys", "vendor_data", "user_data_size")
"""What a host does not read of the instances it carries: it needs to know where they are, not what
is in them."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MARKER = re.compile(rf"(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{6}}Z,)?{_UUID.pattern}")
_TAG_KEY = re.compile(r"[A-Za-z0-9+\-=.,_:@]{1,128}")
_FILTERS = ("project_id", "host", "name", "hostname", "availability_zone", "network_id")
_DOCUMENT = ("application/json",)
_PATCH = ("application/merge-patch+json", "application/json")
_SECRET = ("Cache-Control", "no-store")

_T = TypeVar("_T")


class Operators:
    """The handlers, one a route. Each enforces the rule that its route names."""

    def __init__(self, store: Store) -> None:
        self.store = store
        one, password = "/v1/instances/{id}", "/v1/instances/{id}/password"
        self.router = Router(
            [
                ("GET", "/v1", "instance:list", self.discover),
                ("GET", "/v1/instances", "instance:list", self.list),
                ("POST", "/v1/instances", "instance:create", self.create),
                ("GET", one, "instance:show", self.show),
                ("PUT", one, "instance:update", self.put),
                ("PATCH", one, "instance:update", self.patch),
                ("DELETE", one, "instance:delete", self.delete),
                ("GET", one + "/user_data", "instance:show", self.user_data),
                ("GET", password, "instance:password", self.password),
                ("DELETE", password, "instance:password", self.reset_password),
            ]
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; raises Failure."""
        require_gatekeeper(environ)
        return self.router(environ, start_response)

    def discover(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        """The version of this API and its routes."""
        _visible(request.client)
        _query(request)
        return json_response(
            {
                "versions": [{"id": "v1", "status": "CURRENT", "href": "/v1"}],
                "routes": [
                    {"method": method, "path": path, "rule": rule}
                    for method, path, rule in self.router.routes
                ],
            }
        )

    def list(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        """One page of the instances that the client may see, oldest first."""
        client, projects, host = _visible(request.client)
        query = _query(request, *_FILTERS, "address", "tag", "limit", "marker")
        limit = _limit(query.get("limit", [str(PAGE_DEFAULT)])[0])
        marker = query["marker"][0] if "marker" in query else None
        if marker is not None and not _MARKER.fullmatch(marker):
            raise Failure(400, "is no marker that a list has given", field="marker")
        page = self.store.list(
            Filters(
                visible_projects=projects,
                visible_host=host,
                address=_address(query["address"][0]) if "address" in query else None,
                tags=tuple(_tag(text) for text in query.get("tag", ())),
                **{name: query[name][0] for name in _FILTERS if name in query},
            ),
            limit,
            marker,
        )
        if page is None:
            raise Failure(400, "the instance at the marker is gone: begin anew", field="marker")
        answer: dict[str, Any] = {
            "instances": [_shown(stored, whole=_sees_all(client, stored)) for stored in page.items]
        }
        if page.marker is not None:
            again = [(n, v) for n, values in query.items() for v in values if n != "marker"]
            answer["next"] = f"{request.path}?{urlencode([*again, ('marker', page.marker)])}"
        return json_response(answer)

    def create(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        """Make an instance; 409 if its id or an address is taken."""
        client = _may_begin("instance:create", request.client)
        _query(request)
        instance = self._new(client, _complete_document(request))
        stored = _unrefused(self.store.create(instance))
        return _created(request, stored)

    def put(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """Make the instance of this id, or replace it; the same document again changes nothing."""
        client = _may_begin("instance:update", request.client)
        _query(request)
        instance_id = match["id"]
        if not _UUID.fullmatch(instance_id):
            raise Failure(400, "the id in the path is no UUID in lower case", field="/id")
        document = _complete_document(request)
        if document.setdefault("id", instance_id) != instance_id:
            raise Failure(400, "is not the id in the path", field="/id")

        def attempt() -> webob.Response | None:
            old = self.store.get(instance_id)
            if old is not None and not _sees(client, old):
                raise _not_found()
            _check_condition(request, old)
            if old is None:
                outcome = self.store.create(self._new(client, document))
                if isinstance(outcome, Taken) and outcome.field == "/id":
                    return None
                return _created(request, _unrefused(outcome))
            enforce("instance:update", client, project_id=old.instance.project_id)
            _check_place(client, document, old)
            place = {name: document.get(name) for name in ("host", "next_host")}
            if not allows("instance:place", client):
                place = {"host": old.instance.host, "next_host": old.instance.next_host}
            return self._replace(request, old, {**document, **place})

        return _tried(attempt)

    def show(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """One instance; with its user data if ``include=user_data`` asks for it."""
        query = _query(request, "include")
        include = query["include"][0] if "include" in query else None
        if include not in (None, "user_data"):
            raise Failure(400, "must be user_data", field="include")
        client, stored = self._find(request, match, "instance:show")
        whole = _sees_all(client, stored)
        if include and not whole:
            raise Failure(403, f"{client.user} may not read user data here", field="include")
        etag = _etag(stored)
        if etag in _etags(request, "If-None-Match"):
            return Response(status=304, headerlist=[("ETag", etag)])
        headers = [("ETag", etag)]
        document = _shown(stored, whole=whole)
        if include:
            document["user_data"] = stored.instance.to_document()["user_data"]
            headers.append(_SECRET)
        return json_response(document, headers=headers)

    def patch(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """Change an instance by a JSON merge patch (RFC 7396)."""
        _may_begin("instance:update", request.client)
        _query(request)
        changes = _body(request, _PATCH)
        for name in READ_ONLY:
            if name in changes:
                raise Failure(400, "is read-only", field=pointer(name))

        def attempt() -> webob.Response | None:
            client, old = self._find(request, match, "instance:update")
            _check_condition(request, old)
            _check_place(client, changes, old)
            document = _merged(old.instance.to_document(), changes)
            if document.get("id") != old.instance.id:
                raise Failure(400, "cannot be changed", field="/id")
            if len(json.dumps(document)) > BODY_LIMIT:
                raise Failure(400, f"the instance would have over {BODY_LIMIT} bytes", field="")
            return self._replace(request, old, document)

        return _tried(attempt)

    def delete(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """Delete an instance, with its password; its addresses are free at once."""
        _query(request)

        def attempt() -> webob.Response | None:
            _, old = self._find(request, match, "instance:delete")
            _check_condition(request, old)
            if self.store.delete(old) is not None:
                return None
            _noted("instance deleted", request, old.instance)
            return Response(status=204)

        return _tried(attempt)

    def user_data(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """The user data, byte for byte as the instance reads it."""
        _query(request)
        client, stored = self._find(request, match, "instance:show")
        if not _sees_all(client, stored):
            raise Failure(403, f"{client.user} may not read user data here")
        if stored.instance.user_data is None:
            raise Failure(404, "the instance has no user data")
        return Response(
            body=stored.instance.user_data,
            headerlist=[
                ("Content-Type", "application/octet-stream"),
                ("X-Content-Type-Options", "nosniff"),
                ("ETag", _etag(stored)),
                _SECRET,
            ],
        )

    def password(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """The password that the instance has set, null before that.

        ``encoding`` is ``utf-8``, or ``base64`` if the bytes are not UTF-8.
        """
        _query(request)
        self._find(request, match, "instance:password")
        password = self.store.password(match["id"])
        if password is None:
            value: dict[str, str | None] = {"password": None, "encoding": None, "set_at": None}
        else:
            encoding, text = _text(password.data)
            value = {"password": text, "encoding": encoding, "set_at": password.set_at}
        return json_response(value, headers=[_SECRET])

    def reset_password(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """Forget the password, so that the instance may set one again."""
        _query(request)
        _, stored = self._find(request, match, "instance:password")
        if isinstance(self.store.reset_password(match["id"]), Missing):
            raise _not_found()
        _noted("password reset", request, stored.instance)
        return Response(status=204)

    def _find(
        self, request: Request, match: Mapping[str, str], rule: str
    ) -> tuple[ClientIdentity, Stored]:
        client = _known(request.client)
        stored = self.store.get(match["id"]) if _UUID.fullmatch(match["id"]) else None
        if stored is None or not _sees(client, stored):
            raise _not_found()
        instance = stored.instance
        hosts = (instance.host, instance.next_host)
        return enforce(rule, client, project_id=instance.project_id, hosts=hosts), stored

    def _new(self, client: ClientIdentity, document: dict[str, Any]) -> Instance:
        instance = _parsed(document)
        if not allows("instance:create", client, project_id=instance.project_id):
            raise Failure(
                403,
                f"{client.user} may not create an instance in this project",
                field="/project_id",
            )
        _check_place(client, document, None)
        return instance

    def _replace(
        self, request: Request, old: Stored, document: Mapping[str, Any]
    ) -> webob.Response | None:
        instance = _parsed(document)
        if instance.project_id != old.instance.project_id:
            raise Failure(400, "cannot be changed", field="/project_id")
        outcome = self.store.replace(old, instance)
        if isinstance(outcome, Stale):
            return None
        stored = _unrefused(outcome)
        if stored.version != old.version:
            _noted("instance changed", request, stored.instance)
        return json_response(_shown(stored, whole=True), headers=[("ETag", _etag(stored))])


# Who sees what


def _known(client: ClientIdentity | None) -> ClientIdentity:
    if client is None:
        raise Failure(401, "a client certificate is required")
    return client


def _may_begin(rule: str, client: ClientIdentity | None) -> ClientIdentity:
    """Refuse, before the body is read, a client for whom no body could be right."""
    known = _known(client)
    if not (PROJECT in RULES[rule].groups and projects_of(known)):
        enforce(rule, known)
    return known


def _visible(
    client: ClientIdentity | None,
) -> tuple[ClientIdentity, tuple[str, ...] | None, str | None]:
    """The client, and the projects and the host that its lists are bounded by (None: nothing)."""
    known = _known(client)
    if allows("instance:list", known):
        return known, None, None
    groups = RULES["instance:list"].groups
    projects = projects_of(known) if PROJECT in groups else ()
    host = known.host if HOST in groups else None
    if not projects and host is None:
        enforce("instance:list", known)
    return known, projects, host


def _sees(client: ClientIdentity, stored: Stored) -> bool:
    instance = stored.instance
    hosts = (instance.host, instance.next_host)
    return allows("instance:show", client, project_id=instance.project_id, hosts=hosts)


def _sees_all(client: ClientIdentity, stored: Stored) -> bool:
    return allows("instance:show", client, project_id=stored.instance.project_id)


def _check_place(client: ClientIdentity, asked: Mapping[str, Any], old: Stored | None) -> None:
    """Where an instance runs decides which host may read it, so its project does not say it."""
    if allows("instance:place", client):
        return
    for name in ("host", "next_host"):
        current = None if old is None else getattr(old.instance, name)
        if name in asked and asked[name] != current:
            raise Failure(403, f"{client.user} may not say where it runs", field=pointer(name))


# What comes in


def _query(request: Request, *known: str) -> dict[str, list[str]]:
    """The parameters by name; each at most once, but ``tag`` as often as one likes."""
    try:
        text = request.query_string.encode("latin-1").decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_LIMIT)
    except ValueError:
        raise Failure(400, "the query is not UTF-8, or too long", field="") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in known:
            raise Failure(400, "is no parameter of this route", field=name[:64])
        if name in values and name != "tag":
            raise Failure(400, "stands twice in the query", field=name)
        if len(value) > 512 or not value.isprintable() or not value:
            raise Failure(400, "must have 1 to 512 printable characters", field=name)
        values.setdefault(name, []).append(value)
    return values


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= PAGE_LIMIT:
        raise Failure(400, f"must be 1 to {PAGE_LIMIT}", field="limit")
    return int(text)


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise Failure(400, "is no IP address", field="address") from None


def _tag(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    if not _TAG_KEY.fullmatch(key):
        raise Failure(400, "must be KEY or KEY=VALUE", field="tag")
    return key, value if equals else None


def _body(request: Request, media_types: Sequence[str]) -> dict[str, Any]:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Failure(415, "the body must come without Content-Encoding")
    try:
        return request.json_object(BODY_LIMIT, media_types)
    except OSError:
        raise Failure(400, "the body ended early", field="") from None


def _complete_document(request: Request) -> dict[str, Any]:
    """The body of a POST or PUT without what is read-only."""
    document = _body(request, _DOCUMENT)
    if document.get("user_data_size") and "user_data" not in document:
        # An answer that came without its user data, sent back, would delete it.
        raise Failure(400, "is missing from a document that says it has some", field="/user_data")
    for name in READ_ONLY:
        document.pop(name, None)
    return document


def _merged(target: Any, changes: Any) -> Any:
    """The merge patch of RFC 7396 section 2; ``changes`` is bounded in depth."""
    if not isinstance(changes, dict):
        return changes
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result


def _parsed(document: Mapping[str, Any]) -> Instance:
    try:
        return parse(document)
    except Invalid as error:
        raise Failure(400, error.reason, field=error.field) from None


def _etags(request: Request, header: str) -> Sequence[str]:
    """The entity tags that a header lists, quoted; ``*`` stands for itself."""
    return re.findall(r'\*|(?:W/)?"[^"]*"', request.headers.get(header, ""))


def _check_condition(request: Request, old: Stored | None) -> None:
    """If-Match and If-None-Match (RFC 9110 section 13.1); raises Failure 412."""
    current = None if old is None else _etag(old)
    if "If-Match" in request.headers:
        wanted = _etags(request, "If-Match")
        if current is None or not ({"*", current} & set(wanted)):
            raise Failure(412, "the instance is not in the state that If-Match names")
    if "If-None-Match" in request.headers:
        unwanted = _etags(request, "If-None-Match")
        if current is not None and {"*", current} & set(unwanted):
            raise Failure(412, "the instance is in a state that If-None-Match excludes")


def _tried(attempt: Callable[[], webob.Response | None]) -> webob.Response:
    """The first answer of ``attempt``; None says that another writer was faster."""
    for _ in range(ATTEMPTS):
        response = attempt()
        if response is not None:
            return response
    raise Failure(
        503,
        "others change this instance all the while",
        headers=[("Retry-After", RETRY_AFTER)],
    )


# What goes out


def _not_found() -> Failure:
    return Failure(404, "there is no such instance")


def _unrefused(outcome: Stored | Taken | _T) -> Stored:
    if isinstance(outcome, Taken):
        raise Failure(409, outcome.reason, field=outcome.field)
    assert isinstance(outcome, Stored)  # noqa: S101 - for the type checker
    return outcome


def _etag(stored: Stored) -> str:
    return f'"{stored.etag}"'


def _shown(stored: Stored, *, whole: bool) -> dict[str, Any]:
    document = {
        **document_of(stored.instance),
        "version": stored.version,
        "created_at": stored.created_at,
        "updated_at": stored.updated_at,
        "user_data_size": stored.user_data_size,
    }
    if not whole:
        for name in HIDDEN_FROM_HOSTS:
            del document[name]
    return document


def _noted(event: str, request: Request, instance: Instance) -> None:
    """Write who changed what into the log, after the commit; what it holds stays out of it."""
    LOG.info(
        event,
        request_id=request.environ.get("mooring.request_id"),
        user=request.client.user if request.client else None,
        instance=instance.id,
        project=instance.project_id,
        host=instance.host,
    )


def _created(request: Request, stored: Stored) -> webob.Response:
    _noted("instance created", request, stored.instance)
    location = f"{request.script_name}/v1/instances/{stored.instance.id}"
    return json_response(
        _shown(stored, whole=True), 201, [("Location", location), ("ETag", _etag(stored))]
    )


def _text(data: bytes) -> tuple[str, str]:
    try:
        return "utf-8", data.decode("utf-8")
    except UnicodeDecodeError:
        return "base64", base64.b64encode(data).decode("ascii")


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
    readiness.register("database of the operators' API", check)
    return Operators(Store(database))
