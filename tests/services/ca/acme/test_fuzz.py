"""Whatever a client sends: a problem of its own making, never 500, never a certificate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from services.ca.acme.application import Settings
from services.ca.acme.problems import NAMESPACE, TYPES
from services.ca.hierarchy import Hierarchy
from services.core import schema
from services.core.database import upgrade
from tests.services.ca.acme.acme_client import (
    BASE,
    Answer,
    Client,
    Server,
    b64,
    call,
    flattened,
    make_csr,
)

PATHS = (
    "/new-account",
    "/new-order",
    "/revoke-cert",
    "/key-change",
    "/account/{account}",
    "/account/{account}/orders",
    "/order/{order}",
    "/order/{order}/finalize",
    "/authorization/{authorization}",
    "/challenge/{challenge}",
    "/certificate/{order}",
)

MEMBERS = (
    *("identifiers", "type", "value", "csr", "status", "contact", "certificate", "reason"),
    *("onlyReturnExisting", "externalAccountBinding", "protected", "payload", "signature"),
    *("account", "oldKey", "jwk", "kty", "crv", "x", "y"),
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["dns", "ip", "deactivated", "a.example.test", "mailto:a@b.test", BASE]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(MEMBERS) | st.text(max_size=8),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)

PROPERTIES = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def fuzzed(
    tmp_path_factory: pytest.TempPathFactory, acme_hierarchy: Hierarchy
) -> Iterator[tuple[Server, Client, dict[str, str]]]:
    """A server, a client with an account, and ids of an order that is ready."""
    url = f"sqlite:///{tmp_path_factory.mktemp('fuzz')}/mooring.db"
    upgrade(url)
    server = Server(url, acme_hierarchy, Settings(BASE, external_account_required=False))
    server.worker(orders_per_hour=1_000_000, accounts_per_hour=1_000_000)
    client = server.client()
    order_url, order = client.ready_order("a.example.test")
    authorization = order["authorizations"][0]
    challenge = client.post(authorization).json["challenges"][0]["url"]
    ids = {
        "account": (client.kid or "").rpartition("/")[2],
        "order": order_url.rpartition("/")[2],
        "authorization": authorization.rpartition("/")[2],
        "challenge": challenge.rpartition("/")[2],
    }
    yield server, client, ids
    server.close()


def check(server: Server, answer: Answer) -> None:
    """A problem of a known type below 500 or an honest answer; and nothing was issued."""
    assert answer.status < 500, answer.body
    if answer.status >= 400:
        assert answer.header("Content-Type") == "application/problem+json"
        kind = answer.json["type"]
        assert kind.startswith(NAMESPACE)
        assert kind.removeprefix(NAMESPACE) in TYPES
        assert b"Traceback" not in answer.body
    assert answer.nonce
    with server.store.database.read() as connection:
        count = connection.execute(select(func.count()).select_from(schema.ca_certificate))
        assert count.scalar_one() == 0


@PROPERTIES
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=300))
def test_bytes(fuzzed: tuple[Server, Client, dict[str, str]], path: str, body: bytes) -> None:
    """Bytes of any kind as a body."""
    server, client, ids = fuzzed
    check(server, call(client.app, "POST", path.format(**ids), body))


@PROPERTIES
@given(path=st.sampled_from(PATHS), body=JSON)
def test_json(fuzzed: tuple[Server, Client, dict[str, str]], path: str, body: Any) -> None:
    """JSON of any kind as a body."""
    server, client, ids = fuzzed
    check(server, call(client.app, "POST", path.format(**ids), json.dumps(body).encode()))


@PROPERTIES
@given(
    path=st.sampled_from(PATHS),
    changes=st.dictionaries(
        st.sampled_from(["alg", "nonce", "url", "kid", "jwk", "crit", "b64", "x5c"]), JSON
    ),
)
def test_headers(
    fuzzed: tuple[Server, Client, dict[str, str]], path: str, changes: dict[str, Any]
) -> None:
    """A signed request with any members in its header."""
    server, client, ids = fuzzed
    path = path.format(**ids)
    header = {**client.header(BASE + path), **changes}
    body = flattened(client.key, header, b"{}" if "key" in path else b"")
    check(server, call(client.app, "POST", path, json.dumps(body).encode()))


@PROPERTIES
@given(path=st.sampled_from(PATHS), payload=JSON, by_key=st.booleans())
def test_payloads(
    fuzzed: tuple[Server, Client, dict[str, str]], path: str, payload: Any, by_key: bool
) -> None:
    """A properly signed request with any payload."""
    server, client, ids = fuzzed
    if isinstance(payload, dict) and payload.get("status") == "deactivated":
        return  # would be done, and make all that follows trivial
    sender = Client(client.app) if by_key else client
    path = path.format(**ids)
    data = json.dumps(payload).encode()
    body = flattened(sender.key, sender.header(BASE + path), data)
    check(server, call(client.app, "POST", path, json.dumps(body).encode()))


@PROPERTIES
@given(
    place=st.integers(min_value=0, max_value=2000),
    flip=st.integers(min_value=1, max_value=255),
)
def test_broken_requests(
    fuzzed: tuple[Server, Client, dict[str, str]], place: int, flip: int
) -> None:
    """A CSR with any octet changed that is signed is refused."""
    server, client, ids = fuzzed
    csr = bytearray(make_csr("a.example.test"))
    signed = x509.load_der_x509_csr(bytes(csr)).tbs_certrequest_bytes
    csr[csr.index(signed) + place % len(signed)] ^= flip
    url = f"/order/{ids['order']}/finalize"
    check(server, client.post(url, {"csr": b64(bytes(csr))}))


@PROPERTIES
@given(path=st.text(max_size=60), method=st.sampled_from(["GET", "POST", "HEAD", "PUT", "X"]))
def test_paths(fuzzed: tuple[Server, Client, dict[str, str]], path: str, method: str) -> None:
    """Any path and method: a problem, or what stands there."""
    _, client, _ = fuzzed
    raw = "/" + path.partition("?")[0].encode("utf-8", "surrogatepass").decode("latin-1")
    answer = call(client.app, method, raw, b"{}")
    assert answer.status < 500


def test_a_corpus_of_broken_requests(
    fuzzed: tuple[Server, Client, dict[str, str]], tmp_path: Path
) -> None:
    """The shapes that broke other servers: deep nesting, huge numbers, duplicate and odd names."""
    server, client, _ = fuzzed
    bodies = [
        b"[" * 30000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"protected":' + b"9" * 20000 + b"}",
        b'{"protected":"\\u0000","payload":"","signature":""}',
        b'{"protected":"\\ud800","payload":"","signature":""}',
        '{"protected":"ｅ３０","payload":"","signature":""}'.encode(),
        b'{"protected":"e30","payload":"","signature":"","payload":""}',
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"\x00",
    ]
    for body in bodies:
        check(server, call(client.app, "POST", "/new-order", body))
    protected = [
        b'{"alg":"ES256","alg":"none"}',
        b'{"alg":1e999}',
        b'{"alg":"ES256","url":"\xff"}',
        b'{"alg":"ES256","nonce":NaN}',
        b"[]",
        b'"x"',
        b'{"jwk":' * 600 + b"1" + b"}" * 600,
        b'{"alg":"ES256","jwk":{"kty":"RSA","e":"AQAB","n":"' + b"A" * 690 + b'"}}',
    ]
    for header in protected:
        body = json.dumps({"protected": b64(header), "payload": "", "signature": ""}).encode()
        check(server, call(client.app, "POST", "/new-order", body))
