"""What a request must be: signed, for this address, once, by the right key (RFC 8555 section 6)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.ca.acme.jws import BODY_BYTES, jwk_of, parse_jwk
from services.core.errors import Failure
from tests.services.ca.acme.acme_client import (
    BASE,
    Answer,
    Client,
    Server,
    assert_problem,
    b64,
    call,
    flattened,
    unb64,
)

RESOURCES = (
    "/new-account",
    "/new-order",
    "/revoke-cert",
    "/key-change",
    "/account/{id}",
    "/account/{id}/orders",
    "/order/{id}",
    "/order/{id}/finalize",
    "/authorization/{id}",
    "/challenge/{id}",
    "/certificate/{id}",
)


def send(client: Client, body: Any, path: str = "/new-order", **more: Any) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return call(client.app, "POST", path, data, **more)


def order_body(client: Client, **header: Any) -> dict[str, Any]:
    payload = {"identifiers": [{"type": "dns", "value": "a.example.test"}]}
    return flattened(
        client.key, client.header(f"{BASE}/new-order", **header), json.dumps(payload).encode()
    )


def test_the_resources_are_these(server: Server) -> None:
    """Every signed resource is in the list that the other tests walk."""
    routes = server.workers[0].routes
    reads = {path for method, path, _ in routes if method == "GET"}
    assert reads == {"/directory", "/new-nonce"}
    posts = {path for method, path, _ in routes if method == "POST"} - reads
    assert posts == set(RESOURCES)


@pytest.mark.parametrize("path", RESOURCES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_only_post(server: Server, path: str, method: str) -> None:
    """Everything but directory and newNonce is read with POST-as-GET; 405 says so."""
    answer = call(server.workers[0], method, path.replace("{id}", "0" * 32))
    assert_problem(answer, "malformed", 405)
    assert answer.header("Allow") == "POST"


@pytest.mark.parametrize("path", ["/", "", "/directory/", "/order/a/b", "/é", "/x"])
def test_nothing_there(server: Server, path: str) -> None:
    """Other paths are 404, as a problem."""
    path = path.encode().decode("latin-1")
    assert_problem(call(server.workers[0], "GET", path), "malformed", 404)


def test_content_type(client: Client) -> None:
    """A body that is not application/jose+json gets 415 (section 6.2)."""
    answer = send(client, order_body(client), content_type="application/json")
    assert_problem(answer, "malformed", 415)
    assert answer.nonce


def test_a_nonce_in_every_answer_to_a_post(client: Client) -> None:
    """Success and failure alike carry a new nonce that no cache keeps."""
    good = send(client, order_body(client))
    bad = send(client, b"{")
    assert good.status == 201
    assert_problem(bad, "malformed", 400)
    for answer in (good, bad):
        assert len(answer.all("Replay-Nonce")) == 1
        assert answer.header("Cache-Control") == "no-store"
    assert good.nonce != bad.nonce


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b"\xff",
        b'{"protected": 1, "payload": "", "signature": ""}',
        b'{"protected": "e30", "protected": "e30", "payload": "", "signature": ""}',
        b'{"protected": "e30=", "payload": "", "signature": ""}',
        b'{"protected": "e3 0", "payload": "", "signature": ""}',
        b'{"protected": "e31", "payload": "", "signature": ""}',
        b'{"payload": "", "signatures": []}',
        b"[" * 5000,
    ],
)
def test_what_is_no_jws(client: Client, body: bytes) -> None:
    """Anything but a flattened JWS in strict base64url is malformed."""
    assert_problem(send(client, body), "malformed", 400)


@pytest.mark.parametrize(
    ("changes", "kind", "status"),
    [
        ({"alg": "none"}, "badSignatureAlgorithm", 400),
        ({"alg": "HS256"}, "badSignatureAlgorithm", 400),
        ({"alg": "ES384"}, "badSignatureAlgorithm", 400),
        ({"alg": ["ES256"]}, "badSignatureAlgorithm", 400),
        ({"alg": None}, "badSignatureAlgorithm", 400),
        ({"url": None}, "malformed", 400),
        ({"url": f"{BASE}/new-account"}, "unauthorized", 401),
        ({"url": "https://somebody.else.test/acme/new-order"}, "unauthorized", 401),
        ({"url": f"{BASE}/new-order?x=1"}, "unauthorized", 401),
        ({"url": f"{BASE}/new-order/"}, "unauthorized", 401),
        ({"url": f"{BASE}/NEW-ORDER"}, "unauthorized", 401),
        ({"nonce": None}, "badNonce", 400),
        ({"nonce": ""}, "badNonce", 400),
        ({"nonce": "A" * 51}, "badNonce", 400),
        ({"nonce": "not base64url!"}, "badNonce", 400),
        ({"nonce": 7}, "malformed", 400),
        ({"kid": f"{BASE}/account/{'0' * 32}"}, "accountDoesNotExist", 400),
        ({"kid": f"{BASE}/account/"}, "accountDoesNotExist", 400),
        ({"kid": "1"}, "accountDoesNotExist", 400),
        ({"kid": 1}, "malformed", 400),
        ({"kid": None}, "malformed", 400),
        ({"crit": ["b64"], "b64": False}, "malformed", 400),
        ({"b64": True}, "malformed", 400),
    ],
)
def test_header(
    client: Client, server: Server, changes: dict[str, Any], kind: str, status: int
) -> None:
    """Each rule of the protected header has its error, and nothing is ordered."""
    assert_problem(send(client, order_body(client, **changes)), kind, status)
    assert client.post(f"{client.kid}/orders").json["orders"] == []


def test_which_algorithms_would_do(client: Client) -> None:
    """badSignatureAlgorithm lists the algorithms (section 6.2)."""
    document = assert_problem(
        send(client, order_body(client, alg="ES512")), "badSignatureAlgorithm"
    )
    assert document["algorithms"] == ["ES256", "ES384", "EdDSA", "RS256"]


def test_jwk_and_kid(client: Client) -> None:
    """Both are malformed, and so is the one that the resource does not take."""
    assert_problem(send(client, order_body(client, jwk=client.jwk)), "malformed", 400)
    assert_problem(send(client, order_body(client, kid=None, jwk=client.jwk)), "malformed", 400)
    body = flattened(client.key, client.header(f"{BASE}/new-account"), b"{}")
    assert_problem(send(client, body, "/new-account"), "malformed", 400)


def test_signature(client: Client) -> None:
    """A signature by another key, of other content or with loose bits is refused."""
    body = order_body(client)
    other = Client(client.app, kid=client.kid)
    changed = [
        {**body, "signature": order_body(client)["signature"]},
        {**body, "payload": b64(b"{}")},
        {**body, "signature": b64(unb64(body["signature"])[:-1])},
        {**body, "signature": b64(unb64(body["signature"]) + b"\0")},
        {**body, "signature": ""},
        {**body, "signature": b64(b"\0" * 64)},
        {**body, "header": {"alg": "ES256"}},
        order_body(other),
    ]
    for each in changed:
        assert_problem(send(client, each), "malformed", 400)
    # none of them has used up the nonce
    assert send(client, body).status == 201


def test_a_nonce_counts_once(any_server: Server) -> None:
    """A replayed request is badNonce with a new nonce, at every worker and after a restart."""
    first, second = any_server.workers[0], any_server.worker()
    client = any_server.client(first)
    body = json.dumps(order_body(client)).encode()
    assert call(first, "POST", "/new-order", body).status == 201
    for app in (first, second, any_server.worker()):
        answer = call(app, "POST", "/new-order", body)
        assert_problem(answer, "badNonce", 400)
        assert answer.nonce
    # one given out by a worker counts at any other
    client.app = any_server.worker()
    assert client.order("b.example.test").status == 201


def test_a_nonce_grows_old(client: Client, server: Server) -> None:
    """After its lifetime a nonce is badNonce, so the table of used ones can forget it."""
    body = order_body(client)
    server.clock.offset = timedelta(hours=1, seconds=1)
    assert_problem(send(client, body), "badNonce", 400)
    used = order_body(client)
    assert send(client, used).status == 201
    server.clock.offset = timedelta(hours=3)
    server.store.tidy(server.clock())
    assert_problem(send(client, used), "badNonce", 400)


def test_sizes(client: Client) -> None:
    """A body, a header or a signature beyond its limit is refused before anything is computed."""
    body = order_body(client)
    assert_problem(send(client, b" " * (BODY_BYTES + 1)), "malformed", 413)
    assert_problem(send(client, {**body, "protected": "A" * 6000}), "malformed", 413)
    assert_problem(send(client, {**body, "signature": "A" * 1000}), "malformed", 413)
    assert_problem(send(client, {**body, "payload": "A" * 36000}), "malformed", 413)
    names = [f"{place}.example.test" for place in range(101)]
    assert_problem(client.order(*names), "malformed", 400)
    assert client.order(*names[:100]).status == 201


BAD_KEYS: dict[str, Any] = {
    "none": None,
    "text": "x",
    "list": [],
    "empty": {},
    "symmetric": {"kty": "oct", "k": "AAAA"},
    "curve": {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
    "off the curve": {"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32)},
    "short": {"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 31), "y": b64(b"\1" * 32)},
    "x448": {"kty": "OKP", "crv": "X25519", "x": b64(b"\1" * 32)},
    "okp short": {"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" * 31)},
    "rsa small": {"kty": "RSA", "e": "AQAB", "n": b64(b"\xc1" * 128)},
    "rsa exponent": {"kty": "RSA", "e": "Aw", "n": b64(b"\xc1" * 256)},
    "rsa zero": {"kty": "RSA", "e": "AQAB", "n": b64(b"\0" + b"\xc1" * 256)},
    "rsa even": {"kty": "RSA", "e": "AQAB", "n": b64(b"\xc0" * 256)},
    "rsa none": {"kty": "RSA"},
}


@pytest.mark.parametrize("jwk", BAD_KEYS.values(), ids=BAD_KEYS)
def test_keys_that_make_no_account(server: Server, jwk: Any) -> None:
    """A key that is none, weak, private or symmetric is refused and makes no account."""
    client = Client(server.workers[0])
    header = {**client.header(f"{BASE}/new-account"), "jwk": jwk}
    answer = send(client, flattened(client.key, header, b"{}"), "/new-account")
    assert answer.status in (400, 413)
    assert answer.json["type"].rpartition(":")[2] in ("badPublicKey", "malformed")


def test_a_private_key_is_refused(server: Server) -> None:
    """A client that sends its private key by mistake is told so."""
    client = Client(server.workers[0])
    header = {**client.header(f"{BASE}/new-account"), "jwk": {**client.jwk, "d": "AAAA"}}
    answer = send(client, flattened(client.key, header, b"{}"), "/new-account")
    assert_problem(answer, "badPublicKey", 400)


@pytest.mark.parametrize(
    ("key", "thumbprint"),
    [
        # RFC 7638 section 3.1
        (
            {
                "kty": "RSA",
                "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",  # noqa: E501 - as the RFC has it
                "e": "AQAB",
                "alg": "RS256",
                "kid": "2011-04-29",
            },
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
        ),
        # RFC 8037 appendix A.3
        (
            {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
        ),
    ],
    ids=["RSA", "Ed25519"],
)
def test_thumbprints_of_the_rfcs(key: dict[str, str], thumbprint: str) -> None:
    """A thumbprint is the RFC's own for the RFC's own keys, whatever else stands in the key."""
    assert parse_jwk(key).thumbprint == thumbprint


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA"],
)
def test_a_key_survives_its_text(key: Any) -> None:
    """What is stored of a key reads back as the same key with the same thumbprint."""
    jwk = jwk_of(key.public_key())
    again = parse_jwk(json.loads(jwk.text()))
    assert again.key == key.public_key()
    assert again.thumbprint == jwk.thumbprint


def test_the_gatekeeper_has_to_stand_before(server: Server) -> None:
    """Without the gatekeeper before it the application refuses to work."""
    with pytest.raises(Failure, match="gatekeeper"):
        call(server.workers[0], "GET", "/directory", **{"mooring.gatekeeper": None})
