"""W1: the filters in an operator's paste.ini, with a stranger's filter put in by configuration."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paste.deploy import loadapp
from webtest import TestApp

from services.core import deploy, signature
from services.core.errors import Failure
from services.core.headers import INSIDE_ONLY, environ_key

FILTERS = "".join(
    f"[filter:{name}]\npaste.filter_factory = middleware.{name}:filter_factory\n"
    for name in deploy.ORDER
)
KEYS = {
    "errors": "style = text",
    "forwarded": "trusted_hops = 2",
    "instance_signature": "secrets = %(here)s/secrets",
}
for _name, _key in KEYS.items():
    FILTERS = FILTERS.replace(f"[filter:{_name}]\n", f"[filter:{_name}]\n{_key}\n")
SECRET = b"s" * 32
UNIX = {"REMOTE_ADDR": ""}


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
    """A token filter of somebody else's and an application that shows who asks."""

    def token_filter(_global_conf, **conf):
        def wrap(app):
            def filtered(environ, start_response):
                if environ.get("HTTP_X_AUTH_TOKEN") != conf["token"]:
                    start_response("401 Unauthorized", [("WWW-Authenticate", "Keystone")])
                    return [b"who are you?"]
                environ["HTTP_X_USER_NAME"] = "alice"
                return app(environ, start_response)

            return filtered

        return wrap

    def shows_factory(_global_conf, *, name="app"):
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/missing":
                raise Failure(404, "No such thing.")
            claim = environ.get("mooring.instance")
            shown = {
                "name": name,
                "script": environ["SCRIPT_NAME"],
                "user": environ.get("HTTP_X_USER_NAME"),
                "client": environ["mooring.client"].user if "mooring.client" in environ else None,
                "instance": claim.instance_id if claim else None,
                "inside": sorted(key for key in environ if key in INSIDE),
            }
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(shown).encode()]

        return app

    module = SimpleNamespace(token_filter=token_filter, shows_factory=shows_factory)
    monkeypatch.setitem(sys.modules, "stranger", module)


INSIDE = frozenset(map(environ_key, INSIDE_ONLY))


@pytest.fixture
def load(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/current").write_bytes(SECRET)
    (tmp_path / "secrets/current").chmod(0o600)

    def load(text):
        path = tmp_path / "paste.ini"
        path.write_text(
            f"{text}\n{FILTERS}"
            "[filter:token]\npaste.filter_factory = stranger:token_filter\ntoken = t\n"
            "[app:shows]\npaste.app_factory = stranger:shows_factory\n"
        )
        deploy.check_pipelines(path, build=True)
        return loadapp(f"config:{path}")

    return load


@pytest.fixture
def signed(certificate, header):
    """The headers of a request that HAProxy signed and NGINX passed on."""
    text = header(certificate())

    def headers(target, method="GET"):
        now = str(int(time.time()))
        message = signature.message_v2(
            host="host-1",
            time=now,
            network="net-1",
            instance="i-1",
            project="p1",
            address="10.1.0.4",
            method=method,
            target=target,
        )
        key = signature.host_key(SECRET, "host-1")
        return {
            "X-Ssl-Client-Verify": "SUCCESS",
            "X-Ssl-Client-Cert": text,
            "X-Forwarded-For": "10.1.0.4, 192.0.2.1",
            "X-Instance-ID": "i-1",
            "X-Tenant-ID": "p1",
            "X-Mooring-Network": "net-1",
            "X-Mooring-Time": now,
            "X-Mooring-Signature": signature.sign_v2(key, message),
        }

    return headers


WHOLE = f"[pipeline:main]\npipeline = {' '.join(deploy.ORDER)} shows\n"
OPERATORS = "[pipeline:main]\npipeline = gatekeeper request_id errors {} shows\n"


def test_the_whole_pipeline(load, signed):
    """All seven filters: the application learns the instance, and no inside-only header is left."""
    app = TestApp(load(WHOLE), extra_environ=UNIX)
    answer = app.get("/latest/?a=%20b", headers=signed("/latest/?a=%20b"))
    assert answer.json["instance"] == "i-1"
    assert answer.json["client"] == "host-1"
    assert answer.json["inside"] == []
    assert answer.headers["X-Request-ID"].startswith("req-")


def test_every_refusal_of_the_whole_pipeline_is_text(load, signed):
    """Whichever filter refuses, an instance gets plain text, never empty."""
    app = TestApp(load(WHOLE), extra_environ=UNIX)
    headers = signed("/x")
    for changed, status in (
        ({"X-Forwarded-For": "nonsense"}, 400),
        ({"X-Ssl-Client-Verify": "NONE"}, 403),
        ({"X-Mooring-Signature": "0" * 64}, 403),
    ):
        answer = app.get("/x", headers={**headers, **changed}, status=status)
        assert answer.content_type == "text/plain"
        assert answer.text.startswith(f"{status} ")
    answer = app.get("/missing", headers=signed("/missing"), status=404)
    assert answer.text == "404 Not Found\n\nNo such thing.\n\n   "


def test_everything_forged_from_outside(load, signed):
    """The complete and right set of headers is worth nothing from a peer that is not trusted."""
    app = TestApp(load(WHOLE), extra_environ={"REMOTE_ADDR": "192.0.2.9"})
    app.get("/latest/", headers=signed("/latest/"), status=400)


def test_a_strangers_filter_by_configuration_alone(load):
    """A token filter stands in the pipeline: its answers pass through, its environ arrives."""
    app = TestApp(load(OPERATORS.format("token")), extra_environ=UNIX)
    answer = app.get("/", status=401)
    assert (answer.text, answer.headers["WWW-Authenticate"]) == ("who are you?", "Keystone")
    assert answer.headers["X-Request-ID"]
    assert app.get("/", headers={"X-Auth-Token": "t"}).json["user"] == "alice"


def test_a_strangers_filter_by_filter_with(load):
    """The same with filter-with on the application."""
    text = OPERATORS.format("").replace("shows", "guarded")
    text += "[app:guarded]\nuse = shows\nfilter-with = token\n"
    app = TestApp(load(text), extra_environ=UNIX)
    app.get("/", status=401)
    assert app.get("/", headers={"X-Auth-Token": "t"}).json["user"] == "alice"


def test_a_composite_by_path(load):
    """Two applications of one file by path, each behind its own pipeline."""
    text = (
        "[composite:main]\npaste.composite_factory = services.core.composite:by_path\n"
        "/v1 = guarded\n/ = free\n"
        "[pipeline:guarded]\npipeline = gatekeeper request_id errors token shows\n"
        "[pipeline:free]\npipeline = gatekeeper request_id errors named\n"
        "[app:named]\nuse = shows\nname = free\n"
    )
    app = TestApp(load(text), extra_environ=UNIX)
    app.get("/v1/x", status=401)
    assert app.get("/v1/x", headers={"X-Auth-Token": "t"}).json["script"] == "/v1"
    assert app.get("/v1x").json["name"] == "free"


@pytest.mark.parametrize("name", sorted(set(deploy.ORDER) - {"instance_signature"}))
def test_a_typo_in_a_key_stops_loading(load, name):
    """Without the boot check too: the factory refuses a keyword that it does not know."""
    text = WHOLE + f"[filter:typo]\nuse = {name}\ntypo_key = 1\n"
    with pytest.raises(deploy.DeployError, match=r"\[filter:typo\]: unknown key 'typo_key'"):
        load(text.replace(f" {name} ", " typo "))
    factory = sys.modules[f"middleware.{name}"].filter_factory
    with pytest.raises(TypeError, match="typo_key"):
        factory({}, typo_key="1")


@pytest.fixture
def whole(load):
    return load(WHOLE)


HEADERS = st.dictionaries(
    st.sampled_from(sorted(INSIDE)),
    st.text(st.characters(max_codepoint=255), max_size=80),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    HEADERS,
    st.text(st.characters(max_codepoint=255), max_size=30),
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "OPTIONS", "X"]),
    st.sampled_from(["", "192.0.2.1", None]),
)
def test_no_headers_end_in_500(whole, environ, call, headers, path, method, peer):
    """Whatever the headers, path, method and peer are: the whole pipeline answers below 500."""
    request = environ(
        REQUEST_METHOD=method, PATH_INFO=path, RAW_URI=path, REMOTE_ADDR=peer, **headers
    )
    answer = call(whole, request)
    assert 400 <= int(answer.status[:3]) < 500 or path in ("/healthz", "/readyz")
