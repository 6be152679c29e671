"""services.core.errors: one Failure, two renderings."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import Failure, json_body, text_body


def test_defaults():
    """Reason and code follow from the status."""
    failure = Failure(404, "No such instance.")
    assert (failure.reason, failure.code, failure.field) == ("Not Found", "not-found", None)
    assert failure.headers == ()
    assert str(failure) == "404 Not Found: No such instance."


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (413, "Content Too Large", "content-too-large"),
        (418, "I'm a Teapot", "im-a-teapot"),
        (422, "Unprocessable Content", "unprocessable-content"),
        (503, "Service Unavailable", "service-unavailable"),
    ],
)
def test_codes_do_not_depend_on_the_interpreter(status, reason, code):
    """RFC 9110's phrases, also where an older Python has others."""
    failure = Failure(status, "x")
    assert (failure.reason.lower(), failure.code) == (reason.lower(), code)


@pytest.mark.parametrize("status", [0, 200, 304, 399, 600])
def test_only_errors_are_failures(status):
    """A status outside 4xx and 5xx is a mistake in our code."""
    with pytest.raises(ValueError, match=str(status)):
        Failure(status, "x")


def test_json_rendering():
    """All members when there is a field, no `field` otherwise."""
    failure = Failure(400, "bad mac", code="invalid", field="/interfaces/0/mac")
    assert json.loads(json_body(failure, "req-1")) == {
        "error": {
            "status": 400,
            "code": "invalid",
            "message": "bad mac",
            "field": "/interfaces/0/mac",
            "request_id": "req-1",
        }
    }
    assert "field" not in json.loads(json_body(Failure(400, "x"), "req-1"))["error"]


def test_text_rendering():
    """Nova's layout to the byte."""
    assert text_body(Failure(404, "The resource could not be found.")) == (
        b"404 Not Found\n\nThe resource could not be found.\n\n   "
    )


@given(st.text())
def test_any_message_can_be_rendered(message):
    """Whatever a message quotes, lone surrogates included, the body is never empty."""
    failure = Failure(400, message + "\udc80")
    assert json.loads(json_body(failure, "r"))["error"]["message"] == message + "\udc80"
    assert text_body(failure).startswith(b"400 Bad Request\n\n")
