"""middleware.shortcut: what takes the short way, and that no answer tells which way it came."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck as Suppressed
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paste.deploy import loadapp

from middleware.client_certificate import ClientCertificate
from middleware.errors import Errors
from middleware.forwarded import Forwarded
from middleware.gatekeeper import Gatekeeper, filter_factory
from middleware.healthcheck import HealthCheck
from middleware.instance_signature import InstanceSignature
from middleware.request_id import RequestId
from middleware.shortcut import ShortWay
from services.core import signature
from services.core.errors import Failure
from services.core.headers import INSIDE_ONLY, environ_key
from services.core.identity import InstanceClaim

ROOT = Path(__file__).parents[2]
NOW = 1_790_000_000
MASTERS = (b"a" * 32, b"b" * 32)
FIELDS = {
    "host": "host-1",
    "time": str(NOW),
    "network": "net-1",
    "instance": "i-1",
    "project": "p1",
    "address": "10.1.0.4",
    "method": "GET",
    "target": "/latest/?a=%20b",
}
CLAIM = InstanceClaim("i-1", "p1", "10.1.0.4", "net-1", "host-1", 2)
REQUEST_ID = "req-" + "0" * 32


class Application:
    """Answers with the claim that reached it, by either way; notes which way it was."""

    def __init__(self):
        self.ways = []
        self.claims = []
        self.failure = None
        self.nothing_ready = False

    def _answer(self, claim):
        self.claims.append(claim)
        if self.failure:
            raise self.failure
        body = repr(claim).encode()
        return (("Content-Type", "text/plain"), ("Content-Length", str(len(body)))), body

    def answer_at_once(self, claim, _environ):
        self.ways.append("short")
        return None if self.nothing_ready else self._answer(claim)

    def __call__(self, environ, start_response):
        self.ways.append("filters")
        headers, body = self._answer(environ["mooring.instance"])
        start_response("200 OK", list(headers))
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class Clock:
    def __init__(self):
        self.now = float(NOW)

    def __call__(self):
        return self.now


def chain(app, clock, *, nova=(), masters=MASTERS, proxy_answers=True, between=lambda app: app):
    """The filters in their order, as the gatekeeper's factory puts them together."""
    app = InstanceSignature(
        app, masters=masters, nova_secrets=nova, nova_without_host=False, max_age=60, clock=clock
    )
    app = Forwarded(between(ClientCertificate(app, required=True, clock=clock)), 2, required=True)
    app = Errors(HealthCheck(app, "/healthz", "/readyz"), "text")
    return filter_factory({})(RequestId(app, proxy_answers))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def application():
    return Application()


@pytest.fixture
def short(application, clock):
    return chain(application, clock)


@pytest.fixture
def signed(environ, certificate, header, clock):
    """A request as NGINX passes it on; `signed` changes what was signed, `changes` the rest."""
    text = header(certificate())
    dates = certificate().not_valid_before_utc
    clock.now = dates.timestamp() + 3600
    FIELDS["time"] = str(int(clock.now))

    def request(*, master=MASTERS[0], signed=None, **changes):
        fields = {**FIELDS, **(signed or {})}
        key = signature.host_key(master, fields["host"])
        return environ(
            **{
                "REQUEST_METHOD": FIELDS["method"],
                "RAW_URI": FIELDS["target"],
                "PATH_INFO": "/latest/",
                "HTTP_X_REQUEST_ID": REQUEST_ID,
                "HTTP_X_SSL_CLIENT_VERIFY": "SUCCESS",
                "HTTP_X_SSL_CLIENT_CERT": text,
                "HTTP_X_FORWARDED_FOR": f"{FIELDS['address']}, 192.0.2.1",
                "HTTP_X_INSTANCE_ID": FIELDS["instance"],
                "HTTP_X_TENANT_ID": FIELDS["project"],
                "HTTP_X_MOORING_NETWORK": FIELDS["network"],
                "HTTP_X_MOORING_TIME": FIELDS["time"],
                "HTTP_X_MOORING_SIGNATURE": signature.sign_v2(key, signature.message_v2(**fields)),
                "gunicorn.socket": SimpleNamespace(family=socket.AF_UNIX),
                **changes,
            }
        )

    return request


def assert_same_by_both_ways(call, short, request):
    """The answer is the filters' answer; returns it."""
    expected = call(short.filters, dict(request))
    answer = call(short, dict(request))
    assert (answer.status, answer.body) == (expected.status, expected.body)
    headers, expected_headers = (
        # An id of our own is another one each time.
        [
            (name, value if value == REQUEST_ID or name != "X-Request-ID" else "")
            for name, value in each
        ]
        for each in (answer.header_list, expected.header_list)
    )
    assert headers == expected_headers
    return answer


@pytest.mark.parametrize("master", MASTERS)
def test_a_request_in_order_takes_the_short_way(call, short, application, signed, master):
    """Signed under any accepted secret: the application is asked once, for the right instance."""
    answer = call(short, signed(master=master))
    assert (answer.status, answer.body) == ("200 OK", repr(CLAIM).encode())
    assert (application.ways, application.claims) == (["short"], [CLAIM])
    assert_same_by_both_ways(call, short, signed(master=master))


OTHERS = {
    "a method": ({"REQUEST_METHOD": "HEAD"}, "403"),
    "the right method's signature": (
        {"REQUEST_METHOD": "HEAD", "signed": {"method": "HEAD"}},
        "200",
    ),
    "no request id": ({"HTTP_X_REQUEST_ID": None}, "200"),
    "a request id of another form": ({"HTTP_X_REQUEST_ID": "req-x"}, "200"),
    "a peer by TCP": ({"REMOTE_ADDR": "192.0.2.9"}, "400"),
    "no peer": ({"REMOTE_ADDR": None}, "400"),
    "a TCP peer without address": (
        {"gunicorn.socket": SimpleNamespace(family=socket.AF_INET)},
        "400",
    ),
    "no verification": ({"HTTP_X_SSL_CLIENT_VERIFY": None}, "403"),
    "a failed verification": ({"HTTP_X_SSL_CLIENT_VERIFY": "FAILED:expired"}, "403"),
    "no certificate": ({"HTTP_X_SSL_CLIENT_CERT": None}, "403"),
    "something else than a certificate": ({"HTTP_X_SSL_CLIENT_CERT": "x"}, "403"),
    "no addresses": ({"HTTP_X_FORWARDED_FOR": None}, "400"),
    "an address too few": ({"HTTP_X_FORWARDED_FOR": "10.1.0.4"}, "400"),
    "another's address": ({"HTTP_X_FORWARDED_FOR": "10.1.0.5, 192.0.2.1"}, "403"),
    "an address in front": ({"HTTP_X_FORWARDED_FOR": "1.1.1.1, 10.1.0.4, 192.0.2.1"}, "200"),
    "a malformed address in front": ({"HTTP_X_FORWARDED_FOR": "x, 10.1.0.4, 192.0.2.1"}, "400"),
    "no instance": ({"HTTP_X_INSTANCE_ID": None}, "400"),
    "another instance": ({"HTTP_X_INSTANCE_ID": "i-2"}, "403"),
    "two instances": ({"HTTP_X_INSTANCE_ID": "i-1,i-1"}, "400"),
    "another project": ({"HTTP_X_TENANT_ID": "p2"}, "403"),
    "another network": ({"HTTP_X_MOORING_NETWORK": "net-2"}, "403"),
    "no network": ({"HTTP_X_MOORING_NETWORK": None}, "400"),
    "a time without digits": ({"HTTP_X_MOORING_TIME": "now"}, "403"),
    "digits of another script": ({"HTTP_X_MOORING_TIME": "\u0661"}, "403"),
    "no signature": ({"HTTP_X_MOORING_SIGNATURE": None}, "400"),
    "a wrong signature": ({"HTTP_X_MOORING_SIGNATURE": "0" * 64}, "403"),
    "a signature that is no text": ({"HTTP_X_MOORING_SIGNATURE": "\xe9\ud800"}, "403"),
    "another host's signature": ({"signed": {"host": "host-2"}}, "403"),
    "another secret": ({"master": b"z" * 32}, "403"),
    "another target": ({"RAW_URI": "/latest/"}, "403"),
    "no target": ({"RAW_URI": ""}, "403"),
    "a target with a newline": ({"RAW_URI": "/latest/\n"}, "403"),
    "a target beyond ASCII": ({"RAW_URI": "/\xe9", "signed": {"target": "/\xe9"}}, "200"),
    "a target with a host": ({"RAW_URI": "http://x/latest/?a=%20b"}, "200"),
    "an inside key from outside": ({"mooring.instance": "i-9", "mooring.client": "x"}, "200"),
    "the health check's path": ({"PATH_INFO": "/healthz"}, "200"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_answer_is_the_filters(call, short, signed, what):
    """Whatever is changed in a request, it is answered as the filters answer it."""
    changes, status = OTHERS[what]
    answer = assert_same_by_both_ways(call, short, signed(**changes))
    assert answer.status[:3] == status


@pytest.mark.parametrize("seconds", [-61.5, -60, 60, 61.5])
def test_an_old_or_early_signature(call, short, signed, clock, seconds):
    """A signature holds for as long as the filter says, both ways."""
    clock.now = int(FIELDS["time"]) + seconds
    answer = assert_same_by_both_ways(call, short, signed())
    assert answer.status[:3] == ("200" if abs(seconds) == 60 else "403")


@pytest.mark.parametrize("days", [-2, 0, 2])
def test_a_certificate_that_has_ended(call, short, signed, clock, days):
    """The dates are looked at again each time, also of a certificate that is known already."""
    call(short, signed())
    clock.now += days * 86400
    when = str(int(clock.now))
    request = signed(signed={"time": when}, HTTP_X_MOORING_TIME=when)
    clock.now = float(when)
    answer = assert_same_by_both_ways(call, short, request)
    assert answer.status[:3] == ("403" if days else "200")


@pytest.mark.parametrize("groups", [("mooring:operators",), ()])
def test_a_certificate_of_no_host(call, short, signed, certificate, header, groups):
    """A signature that would be right is refused with a certificate that names no host."""
    text = header(certificate(("host-1",), groups))
    answer = assert_same_by_both_ways(call, short, signed(HTTP_X_SSL_CLIENT_CERT=text))
    assert answer.status[:3] == "403"


@pytest.mark.parametrize(
    "failure",
    [Failure(404, "No such thing."), Failure(503, "Later."), ValueError("a bug"), KeyError("b")],
)
def test_the_applications_refusals(call, short, application, signed, failure):
    """A failure or a bug behind the short way is rendered by the filters."""
    application.failure = failure
    answer = assert_same_by_both_ways(call, short, signed())
    assert int(answer.status[:3]) == getattr(failure, "status", 500)
    assert b"a bug" not in answer.body


def test_what_is_not_ready(call, short, application, signed):
    """The application is called as usual, with the environ that the filters make."""
    application.nothing_ready = True
    answer = call(short, signed())
    assert (answer.status, answer.body) == ("200 OK", repr(CLAIM).encode())
    assert application.ways == ["short", "filters"]


def test_the_request_goes_on_as_it_came(call, short, application, signed):
    """Looking at a request changes nothing in it."""
    application.nothing_ready = True
    seen = []
    short.filters = lambda environ, start_response: (
        seen.append(dict(environ))
        or Errors(application, "text").render(Failure(404, "x"), environ, start_response)
    )
    for changes in [{}, *(changes for changes, _status in OTHERS.values())]:
        request = signed(**changes)
        call(short, dict(request))
        assert seen.pop() == request


CHANGED = st.dictionaries(
    st.sampled_from(
        sorted(
            {environ_key(name) for name in INSIDE_ONLY}
            | {"RAW_URI", "REQUEST_METHOD", "REMOTE_ADDR", "PATH_INFO", "mooring.client"}
        )
    ),
    st.none()
    | st.text(st.characters(max_codepoint=255), max_size=60)
    | st.sampled_from(["GET", "SUCCESS", "i-1", "10.1.0.4, 192.0.2.1", "/", "net-1"]),
    max_size=3,
)


@settings(suppress_health_check=[Suppressed.function_scoped_fixture], deadline=None)
@given(CHANGED)
@example({})
def test_any_request_is_answered_as_by_the_filters(call, short, signed, changes):
    """Whatever up to three values are set to or left out: both ways give one answer."""
    request = signed(**changes)
    expected = call(short.filters, dict(request))
    answer = call(short, dict(request))
    assert (answer.status, answer.body) == (expected.status, expected.body)


def test_only_a_pipeline_of_ours_has_it(clock, application):
    """A stranger's filter, a derived one or a missing condition: the filters stand alone."""

    class Derived(ClientCertificate):
        pass

    whole = chain(application, clock)
    assert type(whole) is ShortWay
    for other in (
        chain(application, clock, between=lambda app: lambda e, s: app(e, s)),
        chain(application, clock, between=lambda app: Derived(app.app, True, clock)),
        chain(application, clock, between=lambda app: ClientCertificate(app.app, required=True)),
        chain(application, clock, proxy_answers=False),
        chain(application, clock, masters=(), nova=(b"n" * 32,)),
        chain(lambda _environ, _start: [], clock),
    ):
        assert type(other) is Gatekeeper


def test_the_shipped_pipeline_has_it(tmp_path, monkeypatch):
    """etc/mooring/metadata.ini: the instances' pipeline has the short way, the others have none."""
    factories = SimpleNamespace(factory=lambda _global_conf, **_conf: Application())
    monkeypatch.setitem(sys.modules, "short_applications", factories)
    text = (ROOT / "etc/mooring/metadata.ini").read_text()
    for module in ("application", "operators"):
        text = text.replace(f"services.metadata.{module}:app_factory", "short_applications:factory")
    (tmp_path / "metadata.ini").write_text(text)
    secret = tmp_path / "secrets/signature/current"
    secret.parent.mkdir(parents=True)
    secret.write_bytes(b"s" * 32)
    secret.chmod(0o600)
    kinds = {
        name: type(loadapp(f"config:{tmp_path}/metadata.ini", name=name))
        for name in ("instances", "flat", "operators")
    }
    assert kinds == {"instances": ShortWay, "flat": Gatekeeper, "operators": Gatekeeper}


def test_a_strangers_filter_sees_every_request(call, application, clock, signed):
    """Put between ours by configuration, it is asked each time."""
    seen = []

    def between(app):
        def stranger(environ, start_response):
            seen.append(environ["PATH_INFO"])
            return app(environ, start_response)

        return stranger

    app = chain(application, clock, between=between)
    for _ in range(2):
        assert call(app, signed()).body == repr(CLAIM).encode()
    assert (seen, application.ways) == (["/latest/"] * 2, ["filters"] * 2)


def test_nova_and_ours_side_by_side(call, application, clock, signed):
    """With Nova's secrets as well, version 2 still takes the short way and version 1 does not."""
    app = chain(application, clock, nova=(b"n" * 32,))
    call(app, signed())
    assert application.ways == ["short"]
    digest = signature.sign_v1(b"n" * 32, "i-1")
    answer = assert_same_by_both_ways(
        call,
        app,
        signed(HTTP_X_MOORING_SIGNATURE=None, HTTP_X_INSTANCE_ID_SIGNATURE=digest),
    )
    assert answer.body == repr(InstanceClaim("i-1", "p1", "10.1.0.4", None, "host-1", 1)).encode()
