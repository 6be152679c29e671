"""middleware.errors: one shape for every refusal, nothing of our own mistakes."""

from __future__ import annotations

import json
import logging

import pytest

from middleware.errors import filter_factory
from services.core.errors import Failure


def raising(error):
    def app(_environ, _start_response):
        raise error

    return app


def late(error, *pieces, headers=(("Content-Length", "99"),)):
    def app(_environ, start_response):
        start_response("200 OK", list(headers))
        yield from pieces
        raise error

    return app


@pytest.fixture
def request_environ(environ):
    return environ(**{"mooring.request_id": "req-1"})


def test_json_style(request_environ, call):
    """A Failure becomes the JSON error with status, headers, field and request id."""
    failure = Failure(409, "taken", field="/name", headers=[("Retry-After", "3")])
    answer = call(filter_factory({})(raising(failure)), request_environ)
    assert answer.status == "409 Conflict"
    assert answer.headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.body)),
        "Retry-After": "3",
    }
    assert json.loads(answer.body) == {
        "error": {
            "status": 409,
            "code": "conflict",
            "message": "taken",
            "field": "/name",
            "request_id": "req-1",
        }
    }


def test_text_style(request_environ, call):
    """Instances get Nova's plain text layout, never an empty body."""
    app = filter_factory({}, style="text")(raising(Failure(404, "No such key.")))
    answer = call(app, request_environ)
    assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert answer.body == b"404 Not Found\n\nNo such key.\n\n   "


@pytest.mark.parametrize("style", ["json", "text"])
def test_head_has_headers_but_no_body(request_environ, call, style):
    """HEAD gets the length that GET would have, and nothing after it."""
    app = filter_factory({}, style=style)(raising(Failure(404, "gone")))
    length = call(app, request_environ).headers["Content-Length"]
    answer = call(app, {**request_environ, "REQUEST_METHOD": "HEAD"})
    assert (answer.body, answer.headers["Content-Length"]) == (b"", length)


@pytest.mark.parametrize("style", ["json", "text"])
def test_unexpected_exception_tells_nothing(request_environ, call, caplog, style):
    """A bug of ours is a bare 500; the log has id, type and place but no text and no query."""
    request = {**request_environ, "PATH_INFO": "/x\ny", "QUERY_STRING": "token=topsecret"}
    with caplog.at_level(logging.DEBUG):
        answer = call(filter_factory({}, style=style)(raising(KeyError("topsecret"))), request)
    assert answer.status == "500 Internal Server Error"
    for text in (answer.body.decode(), caplog.text):
        assert "topsecret" not in text
    assert b"KeyError" not in answer.body
    assert b"Traceback" not in answer.body
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("mooring.errors", logging.ERROR)
    line = record.getMessage()
    assert "req-1 unexpected KeyError at GET '/x\\ny'" in line
    assert "test_errors.py" in line
    assert "\n" not in line


def test_unavailability_is_logged_by_code(request_environ, call, caplog):
    """A 503 that a store raised is the operator's business too; a 4xx is not."""
    call(filter_factory({})(raising(Failure(503, "database away"))), request_environ)
    call(filter_factory({})(raising(Failure(404, "no"))), request_environ)
    assert [r.getMessage() for r in caplog.records] == ["req-1 failed: 503 service-unavailable"]


def test_failure_in_a_body_that_has_not_begun_replaces_the_answer(request_environ, call):
    """A generator fails before its first piece: one start, no header of the given-up answer."""
    answer = call(filter_factory({})(late(Failure(403, "no"))), request_environ)
    assert answer.status == "403 Forbidden"
    assert [name for name, _ in answer.header_list] == ["Content-Type", "Content-Length"]
    assert json.loads(answer.body)["error"]["message"] == "no"


def test_failure_in_a_body_under_way_breaks_off(request_environ):
    """Once bytes have left, the exception goes on to the server, which closes the connection."""
    started = []
    app = filter_factory({})(late(ValueError("x"), b"first"))
    body = iter(app(request_environ, lambda *a: started.append(a)))
    assert next(body) == b"first"
    with pytest.raises(ValueError, match="x"):
        next(body)
    assert len(started) == 1


def test_failure_after_write_breaks_off(request_environ, call):
    """The same for an application that uses WSGI's write()."""

    def app(_environ, start_response):
        start_response("200 OK", [])(b"first")
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"):
        call(filter_factory({})(app), request_environ)


def test_bodies_pass_through_unbuffered_and_are_closed(request_environ, call):
    """An iterator is asked for a piece only when the server asks, and closed by the server."""
    log = []

    class Body:
        def __iter__(self):
            for piece in (b"a", b"b"):
                log.append(piece)
                yield piece

        def close(self):
            log.append("closed")

    def app(_environ, start_response):
        start_response("200 OK", [])
        return Body()

    result = filter_factory({})(app)(request_environ, lambda *a: None)
    assert log == []
    pieces = iter(result)
    assert next(pieces) == b"a"
    assert log == [b"a"]
    result.close()
    assert log == [b"a", "closed"]
    assert call(filter_factory({})(app), request_environ).body == b"ab"


def test_empty_iterator_still_starts_the_answer(request_environ, call):
    """204 from a generator without pieces."""

    def app(_environ, start_response):
        start_response("204 No Content", [])
        yield from ()

    assert call(filter_factory({})(app), request_environ).status == "204 No Content"


def test_lists_and_files_are_handed_on_as_they_are(request_environ):
    """The server takes the length from a list and sends a file by itself: neither is wrapped."""

    class File:
        pass

    started = []
    for body in ([b"x"], (b"x",), File()):

        def app(_environ, start_response, body=body):
            start_response("200 OK", [])
            return body

        started.clear()
        request = {**request_environ, "wsgi.file_wrapper": File}
        assert filter_factory({})(app)(request, lambda *a: started.append(a)) is body
        assert len(started) == 1


def test_an_application_may_change_its_mind_with_exc_info(request_environ, call):
    """start_response with exc_info before the first byte replaces the earlier one (PEP 3333)."""

    def app(_environ, start_response):
        start_response("200 OK", [("Content-Length", "99")])
        start_response("202 Accepted", [], (ValueError, ValueError(), None))
        return [b""]

    answer = call(filter_factory({})(app), request_environ)
    assert (answer.status, answer.headers) == ("202 Accepted", {})


def test_starting_twice_is_our_bug(request_environ, call):
    """A second start_response without exc_info is a 500, as PEP 3333 wants it to be fatal."""

    def app(_environ, start_response):
        start_response("200 OK", [])
        start_response("201 Created", [])
        return [b""]

    assert call(filter_factory({})(app), request_environ).status.startswith("500 ")


def test_a_body_that_the_server_cannot_parse_is_the_clients_fault(request_environ, call, caplog):
    """gunicorn parses chunks while the application reads: its errors are 400, not 500."""
    errors = pytest.importorskip("gunicorn.http.errors")
    app = filter_factory({})(raising(errors.InvalidChunkSize(b"zz")))
    assert call(app, request_environ).status == "400 Bad Request"
    assert caplog.records == []


def test_unknown_style_is_named():
    """A style that does not exist stops the start."""
    with pytest.raises(ValueError, match="errors: style is json or text, not 'html'"):
        filter_factory({}, style="html")
