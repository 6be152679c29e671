"""The edge of operators' APIs: routes to handlers, JSON in and out. Nothing below it knows WSGI.

Routes 2.5 answers "no match" for a wrong method, so the router asks it for the path alone and
finds the method itself: 405 with ``Allow`` (RFC 9110 section 15.5.6). Failures are raised; the
errors filter renders them.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import webob
from routes import Mapper

from services.core.database import Unavailable
from services.core.errors import Failure
from services.core.identity import ClientIdentity

NESTING_LIMIT = 32
"""Depth of JSON that is read; our deepest document has 8. Deeper is an attack on a recursion."""

RETRY_AFTER = "5"
"""Seconds after which a client may try again while the database is away."""


class Request(webob.Request):
    """A request at the operators' edge."""

    @property
    def client(self) -> ClientIdentity | None:
        """Who the client certificate says is asking."""
        client: ClientIdentity | None = self.environ.get("mooring.client")
        return client

    def json_object(
        self, limit: int, media_types: Sequence[str] = ("application/json",)
    ) -> dict[str, Any]:
        """The body as a JSON object of at most ``limit`` bytes; raises Failure 400, 413 or 415.

        Refused beyond RFC 8259: duplicate names, NaN and infinities, unpaired surrogates, nesting
        deeper than NESTING_LIMIT: each of them means different things to different readers.
        """
        if self.content_type not in media_types:
            raise Failure(415, f"Content-Type must be {' or '.join(media_types)}")
        if self.content_length is not None and self.content_length > limit:
            raise Failure(413, f"the body may have at most {limit} bytes")
        body = self.body_file.read(limit + 1)
        if len(body) > limit:
            raise Failure(413, f"the body may have at most {limit} bytes")
        return parse_object(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that these bytes are, as ``Request.json_object`` reads it; Failure 400."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Failure(400, "the body is not UTF-8", field="") from None
    # counting is a hundred times as fast as walking, and hardly a body has so many brackets
    if text.count("{") + text.count("[") > NESTING_LIMIT and _depth(text) > NESTING_LIMIT:
        raise Failure(400, f"the body is nested deeper than {NESTING_LIMIT}", field="")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except _Refused as error:
        raise Failure(400, str(error), field=error.field) from None
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Failure(400, f"the body is not JSON{where}", field="") from None
    if not isinstance(value, dict):
        raise Failure(400, "the body must be a JSON object", field="")
    for each in _texts(value):
        # PostgreSQL's text cannot hold either, so nothing of ours does
        if "\x00" in each:
            raise Failure(400, "the body holds the character U+0000", field="")
        if not each.isascii() and any("\ud800" <= c <= "\udfff" for c in each):
            raise Failure(400, "the body holds an unpaired surrogate", field="")
    return value


class _Refused(ValueError):
    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Refused("a name stands twice in one object", field=f"/{name[:64]}")
            seen.add(name)
    return result


def _no_constant(name: str) -> None:
    raise _Refused(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused("a number is too large")
    return value


def _bounded(text: str) -> int:
    # int() of thousands of digits takes quadratic time and then raises
    if len(text) > 20:
        raise _Refused("a number has more than 20 digits")
    return int(text)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names of members included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)


def _depth(text: str) -> int:
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest


Handler = Callable[[Request, Mapping[str, str]], WSGIApplication]
"""What answers a request: a webob.Response, or any other WSGI application."""


class Router:
    """A WSGI application that sends each method and path to its handler.

    Every route carries the name of the policy rule that its handler enforces, so that a test can
    walk all of them with every group.
    """

    def __init__(self, routes: Iterable[tuple[str, str, str, Handler]]) -> None:
        """Take (method, path with ``{names}``, rule, handler) tuples."""
        self.routes: list[tuple[str, str, str]] = []
        self._methods: dict[str, dict[str, Handler]] = {}
        self._mapper = Mapper(register=False)
        self._mapper.minimization = False
        for method, path, rule, handler in routes:
            self.routes.append((method, path, rule))
            if path not in self._methods:
                self._methods[path] = {}
                self._mapper.connect(path, path, route_path=path)
            self._methods[path][method] = handler

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; raises Failure."""
        try:
            path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8")
        except UnicodeDecodeError:
            raise Failure(404, "there is nothing here") from None
        match = self._mapper.match(path)
        if match is None:
            raise Failure(404, "there is nothing here")
        methods = self._methods[match.pop("route_path")]
        method = environ["REQUEST_METHOD"]
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = sorted(methods) + (["HEAD"] if "GET" in methods else [])
            raise Failure(
                405, f"{method[:20]} is not served here", headers=[("Allow", ", ".join(allowed))]
            )
        try:
            response = handler(Request(environ), match)
        except Unavailable:
            raise Failure(
                503,
                "the database is not available just now",
                headers=[("Retry-After", RETRY_AFTER)],
            ) from None
        return response(environ, start_response)


class Response(webob.Response):
    """A response whose Location stays relative.

    WebOb would make it absolute from Host and wsgi.url_scheme, which behind NGINX are the client's
    choice and http.
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send it."""
        start_response(self.status, self.headerlist)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else self.app_iter


def json_response(
    value: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()
) -> webob.Response:
    """A response with a JSON body."""
    return Response(
        status=status,
        body=json.dumps(value).encode(),
        headerlist=[("Content-Type", "application/json"), *headers],
    )
