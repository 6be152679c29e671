"""middleware.healthcheck: for the inside only."""

from __future__ import annotations

import json

import pytest

from middleware import errors, gatekeeper, healthcheck
from services.core import readiness
from services.core.headers import INSIDE_ONLY, environ_key


@pytest.fixture(autouse=True)
def no_checks(monkeypatch):
    monkeypatch.setattr(readiness, "_checks", {})


@pytest.fixture
def app(inner):
    return gatekeeper.filter_factory({})(
        errors.filter_factory({})(healthcheck.filter_factory({})(inner))
    )


def test_liveness_and_readiness(app, environ, call, inner):
    """Both answer 200 when no check fails, and the application is not asked."""
    for path in ("/healthz", "/readyz"):
        answer = call(app, environ(PATH_INFO=path))
        assert answer.status == "200 OK"
        assert json.loads(answer.body) == {"ok": True, "failing": {}}
        assert answer.headers["Content-Length"] == str(len(answer.body))
    assert inner.environ is None


def test_readiness_names_what_fails_and_liveness_does_not_care(app, environ, call):
    """A failing and a raising check give 503 with their reasons; the raised text stays inside."""

    def broken():
        raise RuntimeError("dsn=secret")

    readiness.register("database", lambda: "no answer for 5 s")
    readiness.register("broken", broken)
    readiness.register("fine", lambda: None)
    answer = call(app, environ(PATH_INFO="/readyz"))
    assert answer.status == "503 Service Unavailable"
    assert json.loads(answer.body)["failing"] == {
        "database": "no answer for 5 s",
        "broken": "check failed with RuntimeError",
    }
    assert call(app, environ(PATH_INFO="/healthz")).status == "200 OK"
    readiness.unregister("database")
    readiness.unregister("broken")
    assert call(app, environ(PATH_INFO="/readyz")).status == "200 OK"


def test_registering_again_replaces(app, environ, call):
    """An application that is built anew does not leave its predecessor's check behind."""
    readiness.register("database", lambda: "old")
    readiness.register("database", lambda: None)
    assert call(app, environ(PATH_INFO="/readyz")).status == "200 OK"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_an_untrusted_peer_reaches_the_application_instead(app, environ, call, inner, path):
    """To a peer that is not trusted the path is the application's."""
    call(app, environ(PATH_INFO=path, REMOTE_ADDR="192.0.2.1"))
    assert inner.environ["PATH_INFO"] == path


@pytest.mark.parametrize("name", sorted(set(INSIDE_ONLY) - {"X-Request-ID"}))
def test_a_forwarded_request_reaches_the_application_instead(app, environ, call, inner, name):
    """What a proxy forwards for an instance or a client never sees the health check."""
    call(app, environ(**{"PATH_INFO": "/readyz", environ_key(name): "x"}))
    assert inner.environ["PATH_INFO"] == "/readyz"


def test_head_and_other_methods(app, environ, call):
    """HEAD has no body; writing is 405 with Allow."""
    assert call(app, environ(PATH_INFO="/healthz", REQUEST_METHOD="HEAD")).body == b""
    answer = call(app, environ(PATH_INFO="/healthz", REQUEST_METHOD="POST"))
    assert (answer.status, answer.headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")


def test_paths_are_keys(inner, environ, call):
    """Both paths can be chosen; the defaults are then the application's."""
    app = healthcheck.filter_factory({}, path="/live", ready_path="/ready")(inner)
    trusted = {"mooring.trusted_peer": True}
    assert b"ok" in call(app, environ(PATH_INFO="/live", **trusted)).body
    assert inner.environ is None
    call(app, environ(PATH_INFO="/healthz", **trusted))
    assert inner.environ is not None


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"path": "live"}, "healthcheck: path begins with a slash"),
        ({"path": "/readyz"}, "path and ready_path are both '/readyz'"),
    ],
)
def test_wrong_paths_stop_the_start(keys, text):
    """A relative path, or twice the same, is refused by name."""
    with pytest.raises(ValueError, match=text):
        healthcheck.filter_factory({}, **keys)
