"""middleware.instance_signature and services.core.signature: both versions, every refusal."""

from __future__ import annotations

import hashlib
import hmac
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from middleware.instance_signature import InstanceSignature, filter_factory
from services.core import signature
from services.core.errors import Failure
from services.core.identity import ClientIdentity, InstanceClaim

NOW = 1_790_000_000
MASTERS = (b"a" * 32, b"b" * 32, b"c" * 32)
NOVA = (b"n" * 32, b"o" * 32)
INSTANCE = "5e4ba1d0-8a3c-4ee5-9c0e-0a1b2c3d4e5f"
FIELDS = {
    "host": "host-1",
    "time": str(NOW),
    "network": "net-1",
    "instance": INSTANCE,
    "project": "p1",
    "address": "10.1.0.4",
    "method": "GET",
    "target": "/latest/meta-data/?x=1",
}
REFUSED = (403, "Invalid proxy request signature.")


def client(host="host-1", groups=("mooring:hosts",)):
    return ClientIdentity(host, frozenset(groups), 1, "00")


def build(inner, masters=MASTERS, nova=NOVA, nova_without_host=False, now=NOW, max_age=60):
    return InstanceSignature(
        inner,
        masters=masters,
        nova_secrets=nova,
        nova_without_host=nova_without_host,
        max_age=max_age,
        clock=lambda: now,
    )


@pytest.fixture
def version_1(environ):
    """A request as a Neutron agent sends it, behind a host's certificate; changes go on top."""

    def request(secret=NOVA[0], **changes):
        digest = hmac.new(secret, INSTANCE.encode(), hashlib.sha256).hexdigest()
        return environ(
            **{
                "HTTP_X_INSTANCE_ID": INSTANCE,
                "HTTP_X_TENANT_ID": "p1",
                "HTTP_X_INSTANCE_ID_SIGNATURE": digest,
                "mooring.client": client(),
                "mooring.client_address": "10.1.0.4",
                **changes,
            }
        )

    return request


@pytest.fixture
def version_2(environ):
    """A request as our HAProxy sends it; `signed` changes what was signed, `changes` the rest."""

    def request(master=MASTERS[0], signed=None, **changes):
        fields = {**FIELDS, **(signed or {})}
        key = signature.host_key(master, fields["host"])
        return environ(
            **{
                "REQUEST_METHOD": FIELDS["method"],
                "RAW_URI": FIELDS["target"],
                "HTTP_X_INSTANCE_ID": FIELDS["instance"],
                "HTTP_X_TENANT_ID": FIELDS["project"],
                "HTTP_X_MOORING_NETWORK": FIELDS["network"],
                "HTTP_X_MOORING_TIME": FIELDS["time"],
                "HTTP_X_MOORING_SIGNATURE": signature.sign_v2(key, signature.message_v2(**fields)),
                "mooring.client": client(),
                "mooring.client_address": FIELDS["address"],
                **changes,
            }
        )

    return request


def refusal(call, app, request):
    with pytest.raises(Failure) as caught:
        call(app, request)
    return caught.value.status, caught.value.message


# Version 1


@pytest.mark.parametrize("secret", NOVA)
def test_version_1_is_accepted_under_each_secret(inner, call, version_1, secret):
    """Nova's signature under any accepted secret gives the claim, without a network."""
    call(build(inner), version_1(secret))
    assert inner.environ["mooring.instance"] == InstanceClaim(
        INSTANCE, "p1", "10.1.0.4", None, "host-1", 1
    )


def test_version_1_is_novas(version_1):
    """sign_v1 is hex HMAC-SHA256 of the instance id, as Nova and Neutron compute it."""
    expected = version_1()["HTTP_X_INSTANCE_ID_SIGNATURE"]
    assert signature.sign_v1(NOVA[0], INSTANCE) == expected


def test_version_1_needs_no_address(inner, call, version_1):
    """As with Nova the address may be unknown."""
    call(build(inner), version_1(**{"mooring.client_address": None}))
    assert inner.environ["mooring.instance"].address is None


@pytest.mark.parametrize("who", [None, client("alice", ("mooring:operators",))])
def test_version_1_without_a_host_only_if_allowed(inner, call, version_1, who):
    """Without a host's certificate version 1 is refused, unless nova_without_host allows it."""
    request = version_1(**{"mooring.client": who})
    assert refusal(call, build(inner), dict(request)) == REFUSED
    call(build(inner, nova_without_host=True), request)
    assert inner.environ["mooring.instance"].host is None


def test_version_1_is_off_without_secrets(inner, call, version_1):
    """No nova_secrets: a signature of version 1 is no signature."""
    assert refusal(call, build(inner, nova=()), version_1()) == (
        400,
        "X-Mooring-Signature header is missing from request.",
    )


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("HTTP_X_INSTANCE_ID", "X-Instance-ID"),
        ("HTTP_X_INSTANCE_ID_SIGNATURE", "X-Instance-ID-Signature"),
        ("HTTP_X_TENANT_ID", "X-Tenant-ID"),
    ],
)
def test_version_1_missing_headers(inner, call, version_1, missing, name):
    """Nova's texts for what is missing."""
    expected = (400, f"{name} header is missing from request.")
    assert refusal(call, build(inner), version_1(**{missing: None})) == expected


def test_order_of_missing_headers_is_novas(inner, call, environ):
    """A request without any of them hears of the instance id first, then of the signature."""
    assert refusal(call, build(inner), environ())[1].startswith("X-Instance-ID header")
    request = environ(HTTP_X_INSTANCE_ID=INSTANCE)
    assert refusal(call, build(inner), request)[1].startswith("X-Instance-ID-Signature header")


WRONG_SIGNATURES = [
    "",
    "0" * 64,
    "0" * 63,
    "0" * 65,
    "zz" * 32,
    "\u00e9" * 64,
    "\u0660" * 64,
    " " * 64,
    "None",
]


@pytest.mark.parametrize("wrong", WRONG_SIGNATURES)
def test_version_1_wrong_signatures(inner, call, version_1, wrong):
    """Every wrong signature is the same 403, a non-ASCII one too (Nova: 500)."""
    request = version_1(HTTP_X_INSTANCE_ID_SIGNATURE=wrong)
    assert refusal(call, build(inner), request) == REFUSED


def test_right_signatures_in_another_form_are_refused(inner, call, version_1, version_2):
    """Upper case, padding and a duplicate (joined by a comma) of the right signature are wrong."""
    for request, key in (
        (version_1(), "HTTP_X_INSTANCE_ID_SIGNATURE"),
        (version_2(), "HTTP_X_MOORING_SIGNATURE"),
    ):
        right = request[key]
        for form in (right.upper(), f" {right}", f"{right}\n", f"{right},{right}"):
            assert refusal(call, build(inner), {**request, key: form}) == REFUSED


# Version 2


@pytest.mark.parametrize("master", MASTERS)
def test_version_2_is_accepted_under_each_secret(inner, call, version_2, master):
    """Our signature under the key of any accepted master secret gives the whole claim."""
    call(build(inner), version_2(master))
    assert inner.environ["mooring.instance"] == InstanceClaim(
        INSTANCE, "p1", "10.1.0.4", "net-1", "host-1", 2
    )


def test_version_2_message_is_what_the_proxy_signs():
    """Key and message written out: HAProxy's rendered expression has to give these bytes."""
    assert signature.message_v2(**FIELDS) == (
        b"mooring-v2\nhost-1\n1790000000\nnet-1\n" + INSTANCE.encode() + b"\np1\n10.1.0.4\nGET\n"
        b"/latest/meta-data/?x=1"
    )
    expected = hmac.new(MASTERS[0], b"mooring host key v2\0host-1", hashlib.sha256).digest()
    assert signature.host_key(MASTERS[0], "host-1") == expected


@pytest.mark.parametrize(
    ("field", "key", "other"),
    [
        ("network", "HTTP_X_MOORING_NETWORK", "net-2"),
        ("instance", "HTTP_X_INSTANCE_ID", "other"),
        ("project", "HTTP_X_TENANT_ID", "p2"),
        ("address", "mooring.client_address", "10.1.0.5"),
        ("method", "REQUEST_METHOD", "PUT"),
        ("target", "RAW_URI", "/latest/user-data"),
        ("time", "HTTP_X_MOORING_TIME", str(NOW + 1)),
        ("host", "mooring.client", client("host-2")),
    ],
)
def test_version_2_covers_every_field(inner, call, version_2, field, key, other):
    """A request that differs from the signed one in a single field is refused."""
    assert field in FIELDS
    assert refusal(call, build(inner), version_2(**{key: other})) == REFUSED
    assert inner.environ is None


@given(
    st.sampled_from(sorted(FIELDS)),
    st.text(st.characters(max_codepoint=255, exclude_characters="\n"), max_size=20),
)
def test_version_2_message_differs_with_every_field(field, other):
    """For any other value of any field the signature is another."""
    if other == FIELDS[field]:
        return
    changed = signature.message_v2(**{**FIELDS, field: other})
    key = signature.host_key(MASTERS[0], "host-1")
    assert signature.sign_v2(key, changed) != signature.sign_v2(key, signature.message_v2(**FIELDS))


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_no_field_may_run_into_the_next(field):
    """A newline in any field is refused when signing as when checking."""
    with pytest.raises(ValueError, match="newline"):
        signature.message_v2(**{**FIELDS, field: "a\nb"})


def test_the_key_is_the_hosts_own():
    """Another host's key, or the master itself, signs nothing for this host."""
    message = signature.message_v2(**FIELDS)
    keys = [signature.prepared(signature.host_key(MASTERS[0], "host-1"))]
    for key in (MASTERS[0], signature.host_key(MASTERS[0], "host-2")):
        assert not signature.matches(keys, message, signature.sign_v2(key, message))


@pytest.mark.parametrize("skew", [-61, 61, 10**6, -(10**6)])
def test_version_2_outside_its_time(inner, call, version_2, skew):
    """A signature from more than max_age ago, or ahead, is refused like a wrong one."""
    assert refusal(call, build(inner, now=NOW + skew), version_2()) == REFUSED


@pytest.mark.parametrize("skew", [-60, 0, 60])
def test_version_2_within_its_time(inner, call, version_2, skew):
    """Clocks may differ by max_age in both directions."""
    call(build(inner, now=NOW + skew), version_2())
    assert inner.environ["mooring.instance"].version == 2


@pytest.mark.parametrize("when", ["", "-1", "1e9", "1790000000.0", "+1", " 1", "\u0661", "9" * 13])
def test_version_2_malformed_time(inner, call, version_2, when):
    """Time is decimal digits, nothing else that int() would take."""
    request = (
        version_2(signed={"time": when}, HTTP_X_MOORING_TIME=when)
        if when.isascii()
        else (version_2(HTTP_X_MOORING_TIME=when))
    )
    assert refusal(call, build(inner), request) == REFUSED


@pytest.mark.parametrize("who", [None, client("host-1", ("mooring:operators",))])
def test_version_2_needs_a_hosts_certificate(inner, call, version_2, who):
    """No certificate, or one outside the group of hosts: refused like a wrong signature."""
    assert refusal(call, build(inner), version_2(**{"mooring.client": who})) == REFUSED


def test_version_2_needs_the_address(inner, call, version_2):
    """Without a client address (no forwarded filter) nothing can match."""
    request = version_2(**{"mooring.client_address": None})
    assert refusal(call, build(inner), request) == REFUSED


@pytest.mark.parametrize(
    ("missing", "name"),
    [
        ("HTTP_X_INSTANCE_ID", "X-Instance-ID"),
        ("HTTP_X_TENANT_ID", "X-Tenant-ID"),
        ("HTTP_X_MOORING_NETWORK", "X-Mooring-Network"),
        ("HTTP_X_MOORING_TIME", "X-Mooring-Time"),
    ],
)
def test_version_2_missing_headers(inner, call, version_2, missing, name):
    """The same texts as version 1 for its own headers."""
    expected = (400, f"{name} header is missing from request.")
    assert refusal(call, build(inner), version_2(**{missing: None})) == expected


@pytest.mark.parametrize("wrong", WRONG_SIGNATURES)
def test_version_2_wrong_signatures(inner, call, version_2, wrong):
    """Every wrong signature is the same 403."""
    assert refusal(call, build(inner), version_2(HTTP_X_MOORING_SIGNATURE=wrong)) == REFUSED


def test_version_2_does_not_fall_back_to_version_1(inner, call, version_1, version_2):
    """A wrong signature of version 2 is not saved by a right one of version 1."""
    request = {
        **version_1(),
        **version_2(HTTP_X_MOORING_SIGNATURE="0" * 64),
    }
    assert "HTTP_X_INSTANCE_ID_SIGNATURE" in request
    assert refusal(call, build(inner), request) == REFUSED


# Both


@pytest.mark.parametrize("name", ["INSTANCE_ID", "TENANT_ID", "MOORING_NETWORK"])
@pytest.mark.parametrize("value", ["", "a,a", "a b", "a\nb", "-a", "\u00e9", "a/b", "x" * 129])
def test_malformed_identifiers_are_400(inner, call, version_1, version_2, name, value):
    """Duplicates (joined by a comma) and anything else that is no identifier is 400."""
    spelled = {"INSTANCE_ID": "Instance-ID", "TENANT_ID": "Tenant-ID"}.get(name, "Mooring-Network")
    for request in (version_1(), version_2()):
        if f"HTTP_X_{name}" not in request:
            continue
        request[f"HTTP_X_{name}"] = value
        assert refusal(call, build(inner), request) == (400, f"X-{spelled} header is not valid.")


def test_headers_are_deleted_afterwards(inner, call, version_1, version_2):
    """The application has the claim only; what the proxy says beside it stays."""
    for request in (version_1(), version_2()):
        request["HTTP_X_MOORING_FORWARDED"] = "1"
        call(build(inner), request)
        left = [key for key in inner.environ if key.startswith("HTTP_X_")]
        assert left == ["HTTP_X_MOORING_FORWARDED"]


def test_the_root_needs_a_signature_too(inner, call, environ):
    """Unlike Nova, the list of versions is not for everyone."""
    assert refusal(call, build(inner), environ(PATH_INFO="/", RAW_URI="/"))[0] == 400


@pytest.mark.parametrize("position", [0, 1, 2, None])
def test_every_secret_is_compared(monkeypatch, position):
    """Whichever secret matches, first or none: all are tried, each by compare_digest."""
    compared = []
    real = hmac.compare_digest

    def compare(left, right):
        compared.append((type(left), type(right)))
        return real(left, right)

    monkeypatch.setattr(signature.hmac, "compare_digest", compare)
    offered = "0" * 64 if position is None else signature.sign_v2(MASTERS[position], b"m")
    keys = [signature.prepared(master) for master in MASTERS]
    assert signature.matches(keys, b"m", offered) is (position is not None)
    assert compared == [(bytes, bytes)] * len(MASTERS)


def test_nothing_is_logged(inner, call, version_1, version_2, caplog):
    """Neither an accepted nor a refused signature reaches a log from here."""
    with caplog.at_level(logging.DEBUG):
        call(build(inner), version_1())
        refusal(call, build(inner), version_2(HTTP_X_MOORING_SIGNATURE="0" * 64))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("environ_part", "expected"),
    [
        ({"RAW_URI": "/a%2Fb?x=%20"}, "/a%2Fb?x=%20"),
        ({"RAW_URI": "http://host:80/a?b"}, "/a?b"),
        ({"RAW_URI": "http://host"}, "/"),
        ({"RAW_URI": "*"}, "*"),
        ({"SCRIPT_NAME": "/v1", "PATH_INFO": "/a b", "QUERY_STRING": "x=1"}, "/v1/a%20b?x=1"),
        ({"PATH_INFO": "/a"}, "/a"),
    ],
)
def test_request_target(environ_part, expected):
    """Path and query as on the wire; an absolute target loses scheme and host."""
    assert signature.request_target(environ_part) == expected


HEADER = st.one_of(st.none(), st.text(st.characters(max_codepoint=255), max_size=70))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_headers_are_refused_with_400_or_403(version_1, version_2, call, data):
    """Whatever replaces any of the headers: a refusal of the client, never an error of ours."""
    request = data.draw(st.sampled_from([version_1(), version_2()]))
    keys = sorted(key for key in request if key.startswith("HTTP_"))
    for key in data.draw(st.sets(st.sampled_from([*keys, "RAW_URI"]), min_size=1)):
        request[key] = data.draw(HEADER)
        if request[key] is None:
            del request[key]
    status = 200
    try:
        call(build(lambda _environ, start: start("200 OK", []) and []), request)
    except Failure as failure:
        status = failure.status
    assert status in (200, 400, 403)


# Secrets and keys


@pytest.fixture
def directory(tmp_path):
    def make(**files):
        for name, content in files.items():
            path = tmp_path / name
            path.write_bytes(content)
            path.chmod(0o600)
        return tmp_path

    return make


def test_secrets_are_read_in_order(directory):
    """current, next, previous, without the newline that an editor leaves."""
    path = directory(previous=b"p" * 32, current=b"c" * 32 + b"\n", next=b"n" * 40)
    assert signature.load_secrets(path) == (b"c" * 32, b"n" * 40, b"p" * 32)


def test_unusable_secrets_stop_the_start(directory, tmp_path):
    """Missing, short and open secrets are named by their file, never by their content."""
    with pytest.raises(ValueError, match="current does not exist"):
        signature.load_secrets(tmp_path)
    path = directory(current=b"c" * 32, next=b"short\n")
    with pytest.raises(ValueError, match="next is shorter than 32 bytes") as caught:
        signature.load_secrets(path)
    assert "short\n" not in str(caught.value)
    path = directory(next=b"n" * 32)
    (path / "next").chmod(0o644)
    with pytest.raises(ValueError, match="next is readable by everyone"):
        signature.load_secrets(path)
    (path / "next").unlink()
    (path / "next").mkdir()
    with pytest.raises(ValueError, match="next cannot be read"):
        signature.load_secrets(path)


def test_factory_reads_the_directories(directory, inner, call, version_1, version_2):
    """The keys name directories; both versions then work, and each may be left out."""
    path = str(directory(current=NOVA[0]))
    app = filter_factory({}, secrets=path, nova_secrets=path)(inner)
    call(app, version_1())
    app.clock = lambda: NOW
    call(app, version_2(NOVA[0]))
    call(filter_factory({}, nova_secrets=path)(inner), version_1())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "secrets or nova_secrets is needed"),
        ({"secrets": "x", "max_age": "0"}, "max_age is 1 to 3600 seconds, not '0'"),
        ({"secrets": "x", "max_age": "1m"}, "max_age is 1 to 3600 seconds, not '1m'"),
        ({"secrets": "x", "nova_without_host": "yes"}, "nova_without_host is true or false"),
        ({"secrets": "/nonexistent"}, "secret /nonexistent/current does not exist"),
    ],
)
def test_wrong_keys_stop_the_start(keys, text):
    """Each value that cannot be used is named."""
    with pytest.raises(ValueError, match=text):
        filter_factory({}, **keys)
