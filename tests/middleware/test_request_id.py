"""middleware.request_id: one id a request, on the way in and out."""

from __future__ import annotations

import re
import uuid

import pytest

from middleware import gatekeeper, request_id


def test_makes_an_id_and_sends_it_back(inner, environ, call):
    """Without an id of the proxy's each request gets its own, in our form, also in the answer."""
    app = request_id.filter_factory({})(inner)
    ids = []
    for _ in range(2):
        answer = call(app, environ())
        assert answer.headers["X-Request-ID"] == inner.environ["mooring.request_id"]
        ids.append(answer.headers["X-Request-ID"])
    assert ids[0] != ids[1]
    assert ids[0] == f"req-{uuid.UUID(ids[0].removeprefix('req-'))}"


@pytest.mark.parametrize(
    "given", ["req-" + "0123456789abcdef" * 2, "req-7f1e2f0a-5a6b-4c3d-9e8f-001122334455"]
)
def test_keeps_the_proxys_id(inner, environ, call, given):
    """NGINX's id and a UUID are kept, so that its log and ours can be joined."""
    answer = call(request_id.filter_factory({})(inner), environ(HTTP_X_REQUEST_ID=given))
    assert answer.headers["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        "7f1e2f0a-5a6b-4c3d-9e8f-001122334455",
        "req-short",
        "req-" + "0" * 37,
        "req-" + "A" * 32,
        "req-" + "0" * 32 + "\n",
        "req-" + "0" * 31 + "é",
    ],
)
def test_an_id_of_another_form_is_replaced(inner, environ, call, given):
    """Text that would do harm in a log or a header never becomes the id."""
    answer = call(request_id.filter_factory({})(inner), environ(HTTP_X_REQUEST_ID=given))
    assert answer.headers["X-Request-ID"] != given
    assert re.fullmatch(r"req-[0-9a-f-]{36}", answer.headers["X-Request-ID"])


def test_an_untrusted_clients_id_is_not_kept(inner, environ, call):
    """Behind the gatekeeper a client cannot choose its id."""
    given = "req-" + "0" * 32
    app = gatekeeper.filter_factory({})(request_id.filter_factory({})(inner))
    answer = call(app, environ(REMOTE_ADDR="192.0.2.7", HTTP_X_REQUEST_ID=given))
    assert answer.headers["X-Request-ID"] != given


def test_the_applications_header_list_is_not_changed(environ, call):
    """An application may hand out one list for every answer; it does not grow."""
    headers = [("Content-Length", "0")]

    def app(_environ, start_response):
        start_response("200 OK", headers)
        return []

    filtered = request_id.filter_factory({})(app)
    call(filtered, environ())
    call(filtered, environ())
    assert headers == [("Content-Length", "0")]


def test_request_id_refuses_any_key():
    """It has no keys: a typo stops the start."""
    with pytest.raises(TypeError, match="'header'"):
        request_id.filter_factory({}, header="X-Id")


def test_a_proxy_may_answer_with_its_own_id(inner, environ, call):
    """With proxy_answers the proxy's id is only kept for us; one that we made is still sent."""
    app = request_id.filter_factory({}, proxy_answers="true")(inner)
    given = "req-" + "0" * 32
    answer = call(app, environ(HTTP_X_REQUEST_ID=given))
    assert "X-Request-ID" not in answer.headers
    assert inner.environ["mooring.request_id"] == given
    answer = call(app, environ())
    assert answer.headers["X-Request-ID"] == inner.environ["mooring.request_id"]


def test_proxy_answers_is_true_or_false():
    """Another word stops the start."""
    with pytest.raises(ValueError, match="proxy_answers is true or false"):
        request_id.filter_factory({}, proxy_answers="yes")
