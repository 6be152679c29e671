"""Orders, authorizations and challenges: every refusal, and the states in between."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import func, select

from services.ca.acme.problems import Problem
from services.ca.acme.rules import Identifier
from services.ca.acme.validation import LEASE
from services.core import schema
from tests.services.ca.acme.acme_client import (
    BASE,
    Client,
    Server,
    assert_problem,
    b64,
    make_csr,
)


def certificates(server: Server) -> int:
    """How many certificates the ledger has."""
    with server.store.database.read() as connection:
        count = select(func.count()).select_from(schema.ca_certificate)
        return int(connection.execute(count).scalar_one())


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({}, "malformed"),
        ({"identifiers": []}, "malformed"),
        ({"identifiers": "a.example.test"}, "malformed"),
        ({"identifiers": ["a.example.test"]}, "malformed"),
        ({"identifiers": [{"type": "dns"}]}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": 1}]}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": ""}]}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": "a_b.example.test"}]}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": "a.example.test."}]}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": "192.0.2.1"}]}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": "*.*.example.test"}]}, "malformed"),
        ({"identifiers": [{"type": "dns", "value": "a" * 300}]}, "malformed"),
        ({"identifiers": [{"type": "ip", "value": "300.0.0.1"}]}, "malformed"),
        ({"identifiers": [{"type": "ip", "value": "fe80::1%eth0"}]}, "malformed"),
        ({"identifiers": [{"type": "email", "value": "a@b.test"}]}, "unsupportedIdentifier"),
        (
            {
                "identifiers": [
                    {"type": "dns", "value": "a.example.test"},
                    {"type": "dns", "value": "A.example.test"},
                ]
            },
            "malformed",
        ),
        (
            {
                "identifiers": [
                    {"type": "email", "value": "x"},
                    {"type": "dns", "value": "a_b.test"},
                ]
            },
            "compound",
        ),
        (
            {
                "identifiers": [{"type": "dns", "value": "a.example.test"}],
                "notAfter": "2030-01-01T00:00:00Z",
            },
            "malformed",
        ),
    ],
)
def test_orders_that_cannot_be(client: Client, payload: dict[str, Any], kind: str) -> None:
    """A bad name makes no order; the document says which and why."""
    document = assert_problem(client.post("/new-order", payload), kind, 400)
    for each in document.get("subproblems", []):
        assert each["identifier"]["value"] is not None
        assert each["type"].startswith("urn:ietf:params:acme:error:")
        assert "status" not in each
    assert client.post(f"{client.kid}/orders").json["orders"] == []


def test_names_are_normal(client: Client) -> None:
    """An order shows names in the form that is signed."""
    answer = client.order("WWW.Example.TEST")
    assert answer.json["identifiers"] == [{"type": "dns", "value": "www.example.test"}]


def test_too_many_orders(server: Server) -> None:
    """Beyond the configured number of an hour an order is rateLimited; Retry-After is the time."""
    app = server.worker(orders_per_hour=2)
    client = server.client(app)
    assert client.order("a.example.test").status == 201
    server.clock.offset = timedelta(minutes=20)
    assert client.order("b.example.test").status == 201
    answer = client.order("c.example.test")
    assert_problem(answer, "rateLimited", 429)
    wait = int(answer.header("Retry-After") or "0")
    assert 0 < wait <= 2401
    server.clock.offset += timedelta(seconds=wait)
    assert client.order("c.example.test").status == 201
    # another account is not concerned
    assert server.client(app).order("c.example.test").status == 201


def test_finalize_before_ready(client: Client, server: Server) -> None:
    """An order that is not ready is orderNotReady, with 403 (section 7.4)."""
    order = client.order("a.example.test").json
    answer = client.finalize(order, make_csr("a.example.test"))
    assert_problem(answer, "orderNotReady", 403)
    assert certificates(server) == 0


def test_finalize_twice(client: Client, server: Server) -> None:
    """A finished order is not finalized again."""
    _, order = client.ready_order("a.example.test")
    assert client.finalize(order, make_csr("a.example.test")).status == 200
    assert_problem(client.finalize(order, make_csr("a.example.test")), "orderNotReady", 403)
    assert certificates(server) == 1


def bad_csrs(account: Client) -> dict[str, bytes]:
    """Requests for a.example.test that must not be granted."""
    good = make_csr("a.example.test")
    key = ec.generate_private_key(ec.SECP256R1())

    def with_extension(extension: x509.ExtensionType, critical: bool) -> bytes:
        builder = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("a.example.test")]), critical=False
            )
            .add_extension(extension, critical=critical)
        )
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)

    return {
        "empty": b"",
        "noise": b"\x30\x03\x02\x01\x01",
        "pem is no der": b"-----BEGIN CERTIFICATE REQUEST-----\n",
        "more names": make_csr("a.example.test", "b.example.test"),
        "other name": make_csr("b.example.test"),
        "no name": make_csr(),
        "wildcard": make_csr("*.example.test"),
        "other subject": make_csr("a.example.test", common_name="b.example.test"),
        "account's key": make_csr("a.example.test", key=account.key),
        "signature": good[:-1] + bytes([good[-1] ^ 1]),
        "trailing": good + b"\0",
        "curve": make_csr("a.example.test", key=ec.generate_private_key(ec.SECP521R1())),
        "authority": with_extension(x509.BasicConstraints(ca=True, path_length=None), True),
        "critical": with_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), True),
    }


def test_requests_that_are_refused(client: Client, server: Server) -> None:
    """A bad CSR is badCSR, nothing is issued, and the order stays ready for a good one."""
    url, order = client.ready_order("a.example.test")
    for name, csr in bad_csrs(client).items():
        answer = client.finalize(order, csr)
        assert_problem(answer, "badCSR", 400)
        assert client.post(url).json["status"] == "ready", name
    for payload in ({}, {"csr": None}, {"csr": "=="}, {"csr": ["x"]}):
        assert_problem(client.post(order["finalize"], payload), "badCSR", 400)
    assert certificates(server) == 0
    assert client.finalize(order, make_csr("a.example.test")).json["status"] == "valid"


def test_a_refusal_of_the_authority(client: Client, server: Server) -> None:
    """What only the authority refuses (its own key) is badCSR too, and the order is ready again."""
    url, order = client.ready_order("a.example.test")
    csr = make_csr("a.example.test", key=server.hierarchy.intermediate_key)  # type: ignore[arg-type]
    assert_problem(client.finalize(order, csr), "badCSR", 400)
    assert client.post(url).json["status"] == "ready"
    assert server.ledger.verify_audit().whole


@pytest.mark.parametrize("kind", ["connection", "dns", "incorrectResponse", "tls"])
def test_a_failed_validation(client: Client, server: Server, kind: str) -> None:
    """A failed challenge fails the authorization and the order; each shows the reason."""
    server.answers.wrong["a.example.test"] = Problem(kind, "it is not so")
    answer = client.order("a.example.test", "b.example.test")
    order, url = answer.json, answer.header("Location") or ""
    client.solve(order)
    order = client.wait(url, "invalid")
    assert order["error"]["type"] == f"urn:ietf:params:acme:error:{kind}"
    found = [client.post(each).json for each in order["authorizations"]]
    (failed,) = [each for each in found if each["identifier"]["value"] == "a.example.test"]
    assert failed["status"] == "invalid"
    (challenge,) = failed["challenges"]
    assert challenge["status"] == "invalid"
    assert challenge["error"]["detail"] == "it is not so"
    assert_problem(
        client.finalize(order, make_csr("a.example.test", "b.example.test")), "orderNotReady", 403
    )
    # what failed is not tried again
    count = len(server.answers.asked)
    assert client.post(challenge["url"], {}).json["status"] == "invalid"
    assert len(server.answers.asked) == count
    assert certificates(server) == 0


def test_a_challenge_is_answered_at_once(client: Client, server: Server) -> None:
    """POST to a challenge does not wait for its validation: it is processing, with Retry-After."""
    gate = threading.Event()
    server.answers.hook = lambda _kind, _identifier: assert_opens(gate)
    answer = client.order("a.example.test")
    url = answer.json["authorizations"][0]
    challenge = client.post(url).json["challenges"][0]
    answer = client.post(challenge["url"], {})
    assert answer.json["status"] == "processing"
    assert answer.header("Retry-After") == "1"
    assert f'<{url}>;rel="up"' in answer.all("Link")
    assert client.post(url).header("Retry-After") == "1"
    # asking again and again begins nothing anew
    for _ in range(5):
        assert client.post(challenge["url"], {}).json["status"] == "processing"
    gate.set()
    assert client.wait(url)["status"] == "valid"
    assert len(server.answers.asked) == 1


def assert_opens(gate: threading.Event) -> None:
    assert gate.wait(20)


def test_a_killed_worker_loses_no_challenge(any_server: Server) -> None:
    """A challenge whose worker died is validated by the next one that is polled, later."""
    client = any_server.client()
    order = client.order("a.example.test").json
    url = order["authorizations"][0]
    challenge = client.post(url).json["challenges"][0]
    # the first worker noted it and took it, and is no more
    stored = any_server.store.authorization(url.rpartition("/")[2], any_server.clock())
    assert stored is not None
    (chosen,) = [
        each for each in stored.challenges if each.id == challenge["url"].rpartition("/")[2]
    ]
    now = any_server.clock()
    assert any_server.store.begin_challenge(chosen, now)
    job = any_server.store.claim(chosen.id, now=now, until=now + LEASE)
    assert job is not None
    client.app = any_server.worker()
    assert client.post(url).json["status"] == "pending"
    assert any_server.answers.asked == []
    any_server.clock.offset = LEASE
    assert client.wait(url)["status"] == "valid"
    # the one thought dead comes back with another outcome: it does not count
    document = Problem("connection", "late").document()
    assert not any_server.store.end_challenge(job, document, any_server.clock())
    assert client.post(url).json["status"] == "valid"


def test_a_pending_order_is_validated_by_polling_the_order(client: Client, server: Server) -> None:
    """A client that polls only the order gets on as well."""
    answer = client.order("a.example.test")
    url = answer.header("Location") or ""
    authorization = answer.json["authorizations"][0].rpartition("/")[2]
    stored = server.store.authorization(authorization, server.clock())
    assert stored is not None
    assert server.store.begin_challenge(stored.challenges[0], server.clock())
    assert client.wait(url, "ready")


def test_challenge_of_a_finished_authorization(client: Client) -> None:
    """Another challenge of an authorization that is decided is not begun."""
    answer = client.order("a.example.test")
    url = answer.json["authorizations"][0]
    challenges = {each["type"]: each["url"] for each in client.post(url).json["challenges"]}
    client.solve(answer.json)
    assert_problem(client.post(challenges["dns-01"], {}), "malformed", 400)
    assert client.post(challenges["dns-01"]).json["status"] == "pending"
    assert_problem(client.post(f"{BASE}/challenge/{'0' * 32}", {}), "malformed", 404)


def test_deactivated_authorization(any_server: Server) -> None:
    """Giving up an authorization ends its order (section 7.5.2)."""
    client = any_server.client()
    url, order = client.ready_order("a.example.test")
    authorization = order["authorizations"][0]
    assert_problem(client.post(authorization, {"status": "valid"}), "malformed", 400)
    answer = client.post(authorization, {"status": "deactivated"})
    assert answer.json["status"] == "deactivated"
    assert_problem(client.post(authorization, {"status": "deactivated"}), "malformed", 400)
    assert client.post(url).json["status"] == "invalid"
    assert_problem(client.finalize(order, make_csr("a.example.test")), "orderNotReady", 403)


def test_what_ran_out_of_time(client: Client, server: Server) -> None:
    """After its lifetime an order is invalid, and what was valid has expired."""
    url, order = client.ready_order("a.example.test")
    pending = client.order("b.example.test")
    server.clock.offset = timedelta(days=1, seconds=1)
    assert client.post(url).json["status"] == "invalid"
    assert client.post(order["authorizations"][0]).json["status"] == "expired"
    found = client.post(pending.json["authorizations"][0]).json
    assert found["status"] == "invalid"
    assert_problem(client.post(found["challenges"][0]["url"], {}), "malformed", 400)
    assert_problem(client.finalize(order, make_csr("a.example.test")), "orderNotReady", 403)
    # and a while later it is gone
    server.clock.offset = timedelta(days=9)
    server.store.tidy(server.clock())
    assert_problem(client.post(url), "malformed", 404)


def test_no_certificate_yet(client: Client) -> None:
    """The certificate of an order that has none is 404."""
    url, _ = client.ready_order("a.example.test")
    path = f"{BASE}/certificate/{url.rpartition('/')[2]}"
    assert_problem(client.post(path), "malformed", 404)


def test_payload_where_none_belongs(client: Client) -> None:
    """What is read is read with an empty payload (section 6.3)."""
    answer = client.order("a.example.test")
    assert_problem(client.post(answer.header("Location") or "", {}), "malformed", 400)
    assert_problem(client.post(f"{client.kid}/orders", {}), "malformed", 400)
    assert_problem(client.post(f"{client.kid}/orders?cursor=x"), "malformed", 400)


def test_a_name_without_any_challenge(server: Server) -> None:
    """A name for which no challenge can be offered is refused at once."""
    server.answers.types = lambda identifier: (  # type: ignore[method-assign]
        () if identifier.kind == "ip" else ("dns-01",)
    )
    client = server.client()
    assert_problem(client.order("192.0.2.1", kind="ip"), "rejectedIdentifier", 400)
    assert server.answers.types(Identifier("dns", "a.example.test")) == ("dns-01",)
    assert client.order("a.example.test").status == 201


# ---- revoking -----------------------------------------------------------------------------------


def revocation(leaf: x509.Certificate, **more: Any) -> dict[str, Any]:
    return {"certificate": b64(leaf.public_bytes(Encoding.DER)), **more}


def test_revoke_by_the_certificates_key(server: Server, client: Client) -> None:
    """Whoever has the certificate's key revokes it without any account (section 7.6)."""
    key = ec.generate_private_key(ec.SECP256R1())
    (leaf, _) = client.issue("a.example.test", csr=make_csr("a.example.test", key=key))
    stranger = Client(client.app)
    assert_problem(stranger.post("/revoke-cert", revocation(leaf)), "unauthorized", 403)
    holder = Client(client.app, key)
    assert holder.post("/revoke-cert", revocation(leaf, reason=1)).status == 200
    assert_problem(holder.post("/revoke-cert", revocation(leaf)), "alreadyRevoked", 400)


def test_revoke_by_another_account(server: Server, client: Client) -> None:
    """Another account revokes only with valid authorizations for all names."""
    (leaf, _) = client.issue("a.example.test", "b.example.test")
    other = server.client()
    assert_problem(other.post("/revoke-cert", revocation(leaf)), "unauthorized", 403)
    other.ready_order("a.example.test")
    assert_problem(other.post("/revoke-cert", revocation(leaf)), "unauthorized", 403)
    other.ready_order("b.example.test")
    assert other.post("/revoke-cert", revocation(leaf)).status == 200


@pytest.mark.parametrize("reason", [2, 6, 7, 8, 10, 11, -1, "1", 1.5, True, None])
def test_reasons(client: Client, reason: Any) -> None:
    """Reasons that are none, or not a client's to give, are badRevocationReason."""
    (leaf, _) = client.issue("a.example.test")
    answer = client.post("/revoke-cert", revocation(leaf, reason=reason))
    document = assert_problem(answer, "badRevocationReason", 400)
    assert "0, 1, 3, 4, 5, 9" in document["detail"]


def test_revoking_what_is_not_ours(client: Client, server: Server) -> None:
    """A certificate that the ledger does not have is 404, noise is malformed."""
    foreign = server.hierarchy.issue_server(["a.example.test"]).certificate
    assert_problem(client.post("/revoke-cert", revocation(foreign)), "malformed", 404)
    for text in ("", "AAAA", "!", b64(b"\x30\x03\x02\x01\x01"), 7):
        assert_problem(client.post("/revoke-cert", {"certificate": text}), "malformed", 400)
    assert_problem(client.post("/revoke-cert", {}), "malformed", 400)
