"""The operators' edge: routes, methods and JSON that every reader understands alike."""

import json

import pytest
import webob
from hypothesis import given
from hypothesis import strategies as st

from services.core import edge
from services.core.database import Unavailable
from services.core.edge import Request, Router, json_response
from services.core.errors import Failure


def router() -> Router:
    def show(_request: Request, names: object) -> webob.Response:
        return json_response(dict(names))  # type: ignore[call-overload]  # a mapping of names

    def away(_request: Request, _names: object) -> webob.Response:
        raise Unavailable("frozen")

    return Router(
        [
            ("GET", "/v1/things/{id}", "thing:show", show),
            ("DELETE", "/v1/things/{id}", "thing:delete", show),
            ("GET", "/v1/away", "thing:show", away),
        ]
    )


def refused(path: str, method: str = "GET") -> Failure:
    with pytest.raises(Failure) as failure:
        webob.Request.blank(path, method=method).get_response(router())
    return failure.value


def test_a_route_gets_its_names() -> None:
    """The path's names reach the handler, the answer is JSON."""
    response = webob.Request.blank("/v1/things/a.b").get_response(router())
    assert response.json == {"id": "a.b"}
    assert response.content_type == "application/json"


def test_a_wrong_method_says_which_are_right() -> None:
    """405 with Allow (RFC 9110 section 15.5.6), HEAD included where GET is."""
    failure = refused("/v1/things/a", "PUT")
    assert failure.status == 405
    assert failure.headers == (("Allow", "DELETE, GET, HEAD"),)


def test_an_unknown_path_is_404() -> None:
    """What is not routed is not there."""
    assert refused("/v2").status == 404
    assert refused("/v1/things/a/b").status == 404


def test_a_database_that_is_away_is_503_with_retry_after() -> None:
    """No driver's exception passes the edge."""
    failure = refused("/v1/away")
    assert failure.status == 503
    assert dict(failure.headers) == {"Retry-After": edge.RETRY_AFTER}


@given(st.text())
def test_any_path_is_answered_or_refused(path: str) -> None:
    """No path, however odd, raises anything but a Failure."""
    environ = webob.Request.blank("/").environ
    environ["PATH_INFO"] = path.encode("utf-8", "surrogatepass").decode("latin-1")
    with pytest.raises(Failure):
        router()(environ, lambda *_: None)  # type: ignore[arg-type,return-value]  # never called


def body_of(data: bytes, content_type: str = "application/json") -> object:
    request = Request.blank("/", method="POST", body=data, content_type=content_type)
    return request.json_object(1000)


def test_an_object_is_read() -> None:
    """Plain JSON comes out as it went in."""
    value = {"a": [1, 2.5, None, True, "é", "a backslash: \\u0000"]}
    assert body_of(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"[1]", 400),
        (b'{"a": 1, "a": 2}', 400),
        (b'{"a": NaN}', 400),
        (b'{"a": -Infinity}', 400),
        (b'{"a": 1e999}', 400),
        (b'{"a": ' + b"9" * 400 + b"}", 400),
        (b'{"a": "\\ud800"}', 400),
        (b'{"a": "\\u0000"}', 400),
        (b'{"a": "\xff"}', 400),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", 400),
        (b"[" * 900, 400),
        (b'{"a": "' + b"x" * 1000 + b'"}', 413),
    ],
)
def test_what_readers_understand_differently_is_refused(data: bytes, status: int) -> None:
    """Duplicates, NaN, surrogates, depth and size are refused with a status, never an exception."""
    with pytest.raises(Failure) as failure:
        body_of(data)
    assert failure.value.status == status


def test_another_media_type_is_415() -> None:
    """A form is not JSON, whatever its bytes look like."""
    with pytest.raises(Failure) as failure:
        body_of(b"{}", "text/plain")
    assert failure.value.status == 415


@given(st.binary(max_size=200))
def test_any_body_is_an_object_or_refused(data: bytes) -> None:
    """No bytes raise anything but a Failure."""
    try:
        status, value = 200, body_of(data)
    except Failure as failure:
        status, value = failure.status, {}
    assert status in (200, 400)
    assert isinstance(value, dict)
