"""RFC 8555's own walk, from the directory to a revoked certificate, on both engines."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca.ledger import serial_text
from services.ca.profiles import SERVER
from services.ca.states import REVOKED
from tests.services.ca.acme.acme_client import (
    BASE,
    CONTACT,
    Client,
    Key,
    Server,
    assert_problem,
    b64,
    call,
    make_csr,
)


def names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.DNSName)


def test_directory(server: Server) -> None:
    """The directory names every resource below the configured address, whatever Host says."""
    answer = call(server.workers[0], "GET", "/directory")
    assert answer.status == 200
    assert answer.json == {
        "newNonce": f"{BASE}/new-nonce",
        "newAccount": f"{BASE}/new-account",
        "newOrder": f"{BASE}/new-order",
        "revokeCert": f"{BASE}/revoke-cert",
        "keyChange": f"{BASE}/key-change",
        "meta": {"externalAccountRequired": False},
    }
    assert answer.all("Link") == []


def test_new_nonce(server: Server) -> None:
    """HEAD gets 200 and GET 204, each with a new nonce that no cache keeps (section 7.2)."""
    head = call(server.workers[0], "HEAD", "/new-nonce")
    get = call(server.workers[0], "GET", "/new-nonce")
    assert (head.status, get.status) == (200, 204)
    assert head.body == get.body == b""
    assert head.nonce != get.nonce
    for answer in (head, get):
        assert answer.header("Cache-Control") == "no-store"
        assert answer.all("Link") == [f'<{BASE}/directory>;rel="index"']
        assert len(answer.all("Replay-Nonce")) == 1


def test_directory_and_nonce_by_post(client: Client) -> None:
    """Directory and newNonce are also read with POST-as-GET (section 6.3)."""
    assert client.post("/directory").json["newNonce"] == f"{BASE}/new-nonce"
    answer = client.post("/new-nonce")
    assert (answer.status, len(answer.all("Replay-Nonce"))) == (204, 1)
    assert client.post("/directory", {}).status == 400


def test_whole_walk(any_server: Server) -> None:
    """Account, order, authorization, challenge, finalize, certificate, revocation."""
    client = Client(any_server.workers[0])
    created = client.register()
    assert created.status == 201
    assert created.json == {
        "status": "valid",
        "contact": CONTACT,
        "orders": f"{client.kid}/orders",
    }
    assert created.header("Replay-Nonce")

    answer = client.order("www.example.test", "example.test")
    assert answer.status == 201
    order = answer.json
    order_url = answer.header("Location") or ""
    assert order["status"] == "pending"
    assert order["identifiers"] == [
        {"type": "dns", "value": "www.example.test"},
        {"type": "dns", "value": "example.test"},
    ]
    assert len(order["authorizations"]) == 2
    assert order["finalize"].startswith(order_url)
    assert "certificate" not in order

    authorization = client.post(order["authorizations"][0]).json
    assert authorization["status"] == "pending"
    assert {each["type"] for each in authorization["challenges"]} == {
        "http-01",
        "dns-01",
        "tls-alpn-01",
    }
    assert all(len(each["token"]) >= 43 for each in authorization["challenges"])

    client.solve(order)
    authorization = client.post(order["authorizations"][0]).json
    assert authorization["status"] == "valid"
    (challenge,) = authorization["challenges"]
    assert challenge["status"] == "valid"
    assert challenge["validated"]
    kind, _, shown = any_server.answers.asked[0]
    assert (kind, shown.partition(".")[2]) == ("http-01", client.thumbprint)

    order = client.wait(order_url, "ready")
    key = ec.generate_private_key(ec.SECP256R1())
    csr = make_csr("example.test", "www.example.test", key=key, common_name="www.example.test")
    answer = client.finalize(order, csr)
    assert answer.status == 200
    assert answer.json["status"] == "valid"
    assert answer.header("Location") == order_url

    answer = client.post(answer.json["certificate"])
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/pem-certificate-chain"
    leaf, *above = x509.load_pem_x509_certificates(answer.body)
    assert sorted(names(leaf)) == ["example.test", "www.example.test"]
    assert leaf.public_key() == key.public_key()
    assert above == [any_server.hierarchy.intermediate.certificate]
    lifetime = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert lifetime <= SERVER.greatest_lifetime

    record = any_server.ledger.by_serial(serial_text(leaf.serial_number))
    assert record is not None
    assert record.requested_by == f"acme:{(client.kid or '').rpartition('/')[2]}"
    assert any_server.ledger.verify_audit().whole

    revoke = {"certificate": b64(leaf.public_bytes(Encoding.DER)), "reason": 4}
    assert client.post("/revoke-cert", revoke).status == 200
    status = any_server.ledger.status(record.authority_id, record.serial)
    assert status.state == REVOKED
    assert status.reason is x509.ReasonFlags.superseded
    assert_problem(client.post("/revoke-cert", revoke), "alreadyRevoked", 400)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ES256", "ES384", "EdDSA", "RS256"],
)
def test_account_keys(server: Server, key: Key) -> None:
    """Every algorithm that the service names makes an account and gets a certificate."""
    client = Client(server.workers[0], key)
    assert client.register().status == 201
    (leaf, _) = client.issue("a.example.test")
    assert names(leaf) == ["a.example.test"]


def test_wildcard_needs_dns(client: Client, server: Server) -> None:
    """A wildcard is validated by dns-01 at its base name, and the certificate holds it."""
    answer = client.order("*.example.test", "example.test")
    assert answer.status == 201
    found = [client.post(url).json for url in answer.json["authorizations"]]
    (wildcard,) = [each for each in found if each.get("wildcard")]
    assert wildcard["identifier"] == {"type": "dns", "value": "example.test"}
    assert [each["type"] for each in wildcard["challenges"]] == ["dns-01"]
    client.solve(answer.json, "dns-01")
    order = client.wait(answer.header("Location") or "", "ready")
    answer = client.finalize(order, make_csr("*.example.test", "example.test"))
    (leaf, _) = x509.load_pem_x509_certificates(client.post(answer.json["certificate"]).body)
    assert sorted(names(leaf)) == ["*.example.test", "example.test"]


def test_addresses(client: Client) -> None:
    """An address is an identifier (RFC 8738) and is never validated by dns-01."""
    answer = client.order("192.0.2.7", kind="ip")
    assert answer.status == 201
    authorization = client.post(answer.json["authorizations"][0]).json
    assert {each["type"] for each in authorization["challenges"]} == {"http-01", "tls-alpn-01"}
    client.solve(answer.json)
    order = client.wait(answer.header("Location") or "", "ready")
    # a single name may stand in the subject alone
    answer = client.finalize(order, make_csr(common_name="192.0.2.7"))
    assert answer.status == 200, answer.body
    (leaf, _) = x509.load_pem_x509_certificates(client.post(answer.json["certificate"]).body)
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in found.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]


def test_orders_are_listed_in_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of an account's orders leads on by Link next until all were shown, once each."""
    monkeypatch.setattr("services.ca.acme.application.PAGE", 2)
    made = [client.order(f"{place}.example.test").header("Location") for place in range(5)]
    found: list[str] = []
    url = f"{client.kid}/orders"
    while url:
        answer = client.post(url)
        assert answer.status == 200
        found += answer.json["orders"]
        (url,) = [
            each.partition(">")[0][1:] for each in answer.all("Link") if 'rel="next"' in each
        ] or [""]
    assert found == made
