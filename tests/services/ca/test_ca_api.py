"""The certificate API through the filters that stand before it in its pipeline."""

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from webtest import TestApp, TestResponse

from middleware.client_certificate import ClientCertificate
from middleware.errors import Errors
from middleware.forwarded import Forwarded
from middleware.gatekeeper import Gatekeeper
from middleware.request_id import RequestId
from services.ca import api, ceremony, keystore
from services.ca.api import CertificateApi
from services.ca.authority import Actor, Authority
from services.ca.hierarchy import Credential, Hierarchy
from services.ca.keys import KeyType, PrivateKey, generate_key, signature_hash
from services.ca.ledger import Search, serial_text
from services.ca.request import make_request
from services.ca.wire import BODY_LIMIT, CSR, DER, JSON, PAGE_LIMIT, PEM, PEM_CHAIN
from services.core import readiness
from services.core.config import ConfigError
from services.core.database import Database, upgrade
from services.core.identity import ADMINS, HOSTS, OPERATORS
from services.core.policy import RULES

URL = "/v1/certificates"
NODE = "node-1.example.com"
COMMAND = Actor("command:test", frozenset(), "", "", "command")


def csr(
    *names: str,
    key: PrivateKey | None = None,
    common_name: str | None = None,
    groups: tuple[str, ...] = (),
) -> x509.CertificateSigningRequest:
    """A CSR as a client makes it."""
    key = key or generate_key()
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(key, signature_hash(key.public_key()))


def pem(request: x509.CertificateSigningRequest) -> str:
    return request.public_bytes(Encoding.PEM).decode()


class Api(TestApp):  # type: ignore[misc]  # WebTest has no types
    """The pipeline of ca.ini; clients are certificates that the authority has issued."""

    __test__ = False

    def __init__(self, authority: Authority, hierarchy: Hierarchy) -> None:
        self.authority = authority
        self.hierarchy = hierarchy
        self.ledger = authority.ledger
        bundle = hierarchy.intermediate.certificate.public_bytes(Encoding.PEM)
        self.application = CertificateApi(authority, bundle_pem=bundle)
        clients = ClientCertificate(self.application, required=False)
        inner = Errors(Forwarded(clients, 1, required=False), "json")
        super().__init__(Gatekeeper(RequestId(inner), True, ()))
        self.headers: dict[str, str] = {}
        self.admin = self.client("ann", ADMINS)
        self.operator = self.client("alice", OPERATORS)
        self.node = self.enrolled("host", NODE)
        self.stranger = self.client("stan", "some:group")

    def client(self, name: str, *groups: str) -> x509.Certificate:
        """A client certificate that is in the ledger."""
        return self.enrolled("client", name, *groups)

    def enrolled(self, profile: str, name: str, *groups: str) -> x509.Certificate:
        request = make_request(generate_key().public_key(), common_name=name, organizations=groups)
        return self.authority.issue(profile, request, COMMAND).certificate

    def ask(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        by: x509.Certificate | None = None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        token: str | None = None,
    ) -> TestResponse:
        """Send one request of this client; any status comes back."""
        sent = {"X-Forwarded-For": "192.0.2.7", **(headers or {})}
        if by is not None:
            sent["X-Ssl-Client-Verify"] = "SUCCESS"
            sent["X-Ssl-Client-Cert"] = quote(by.public_bytes(Encoding.PEM))
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if document is not None:
            body = json.dumps(document).encode()
        if body is not None:
            sent.setdefault("Content-Type", JSON)
        return self.request(
            path,
            method=method,
            body=body or b"",
            headers=sent,
            expect_errors=True,
            environ={"REMOTE_ADDR": ""},
        )

    def given(self) -> set[str]:
        """The serials of every certificate that is whole in the ledger."""
        found = self.ledger.search(Search(), now=datetime.now(UTC), limit=1000)
        return {each.serial for each in found}

    def actions(self) -> list[tuple[str, str, str]]:
        """Actor, action and decision in the trail, the newest first."""
        rows = [row.entry for row in self.ledger.trail(limit=100)]
        return [(row.actor, row.action, row.decision) for row in rows]


def assert_is_error(
    response: TestResponse, status: int, field: str | None = None, code: str | None = None
) -> str:
    """The one shape of every error: status, code, message, field if any, request id."""
    assert response.status_int == status, response.text
    assert response.content_type == "application/json"
    assert set(response.json) == {"error"}
    error = response.json["error"]
    assert set(error) - {"field"} == {"status", "code", "message", "request_id"}
    assert error["status"] == status
    assert error["code"] == (code or error["code"].lower())
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert error.get("field") == field, error
    assert error["message"]
    assert "Traceback" not in response.text
    return str(error["message"])


@pytest.fixture
def ca(authority: Authority, hierarchy: Hierarchy) -> Api:
    """The API over a new database of each engine."""
    return Api(authority, hierarchy)


@pytest.fixture
def lite(make_authority: Callable[..., Authority], hierarchy: Hierarchy, sqlite_url: str) -> Api:
    """The API over SQLite, where the engine makes no difference to what is tested."""
    return Api(make_authority(sqlite_url), hierarchy)


# ---- issuing ---------------------------------------------------------------------------------


def test_a_certificate_is_issued_and_shown(ca: Api) -> None:
    """201 with Location; the same document by serial and by fingerprint, in any spelling."""
    wanted = {"profile": "server", "csr": pem(csr("web.example.com")), "lifetime": "12h"}
    created = ca.ask("POST", URL, wanted, by=ca.operator)
    assert created.status_int == 201, created.text
    document = created.json
    certificate = x509.load_pem_x509_certificate(document["certificate"].encode())
    certificate.verify_directly_issued_by(ca.hierarchy.intermediate.certificate)
    assert document["chain"].count("BEGIN CERTIFICATE") == 1
    assert document["serial"] == serial_text(certificate.serial_number)
    assert created.headers["Location"] == f"{URL}/{document['serial']}"
    assert document["names"] == {"dns": ["web.example.com"], "ip": [], "uri": []}
    assert (document["state"], document["requested_by"]) == ("issued", "client:alice")
    span = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert span == timedelta(hours=12) - timedelta(seconds=1)
    fingerprint = document["fingerprint"]
    colons = ":".join(fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
    for name in (document["serial"], document["serial"].lstrip("0").upper(), fingerprint, colons):
        shown = ca.ask("GET", f"{URL}/{name}", by=ca.operator)
        assert (shown.status_int, shown.json) == (200, document)
    assert ca.actions()[:2] == [
        ("client:alice", "issue", "done"),
        ("client:alice", "issue", "intent"),
    ]
    entry = ca.ledger.trail(limit=1)[0].entry
    assert (entry.address, entry.request_id) == ("192.0.2.7", created.headers["X-Request-ID"])


def test_raw_requests_and_raw_answers(lite: Api) -> None:
    """A CSR in PEM or DER as the body, the answer as Accept asks: PEM with its chain, or DER."""
    request = csr("web.example.com")
    path = f"{URL}?profile=server&lifetime=3600"
    for body in (request.public_bytes(Encoding.PEM), request.public_bytes(Encoding.DER)):
        headers = {"Content-Type": CSR, "Accept": PEM}
        answer = lite.ask("POST", path, body=body, headers=headers, by=lite.operator)
        assert (answer.status_int, answer.content_type) == (201, PEM)
        leaf, upper = x509.load_pem_x509_certificates(answer.body)
        leaf.verify_directly_issued_by(upper)
        headers["Accept"] = f"text/html, {DER};q=0.5"
        answer = lite.ask("POST", path, body=body, headers=headers, by=lite.operator)
        assert (answer.status_int, answer.content_type) == (201, DER)
        shown = lite.ask("GET", answer.headers["Location"], headers=headers, by=lite.operator)
        assert (shown.body, shown.headers["Vary"]) == (answer.body, "Accept")
    der = base64.b64encode(request.public_bytes(Encoding.DER)).decode()
    created = lite.ask("POST", URL, {"profile": "server", "csr": der}, by=lite.operator)
    assert created.status_int == 201
    where = created.headers["Location"]
    for accept, query, count in ((PEM, "", 1), (PEM, "?chain=true", 2), (PEM_CHAIN, "", 2)):
        shown = lite.ask("GET", where + query, headers={"Accept": accept}, by=lite.operator)
        assert (shown.content_type, shown.body.count(b"BEGIN")) == (accept, count)
    for headers, query, status, field in (
        ({"Accept": "image/png"}, "", 406, None),
        ({"Accept": f"{JSON};q=0, {PEM};q=x"}, "", 406, None),
        ({"Accept": DER}, "?chain=true", 400, "chain"),
        ({}, "?chain=yes", 400, "chain"),
        ({}, "?colour=red", 400, "colour"),
    ):
        shown = lite.ask("GET", where + query, headers=headers, by=lite.operator)
        assert_is_error(shown, status, field)
    head = lite.ask("HEAD", where, by=lite.operator)
    assert (head.status_int, head.body) == (200, b"")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"csr": "GOOD"}, "/profile"),
    ({"profile": 7, "csr": "GOOD"}, "/profile"),
    ({"profile": "colour", "csr": "GOOD"}, "/profile"),
    ({"profile": "server"}, "/csr"),
    ({"profile": "server", "csr": 7}, "/csr"),
    ({"profile": "server", "csr": "ä"}, "/csr"),
    ({"profile": "server", "csr": "!"}, "/csr"),
    ({"profile": "server", "csr": "A"}, "/csr"),
    ({"profile": "server", "csr": "MAA="}, "/csr"),
    ({"profile": "server", "csr": "-----BEGIN CERTIFICATE-----"}, "/csr"),
    ({"profile": "server", "csr": "A" * 40_000}, ""),
    ({"profile": "server", "csr": "GOOD", "lifetime": "91d"}, "/lifetime"),
    ({"profile": "server", "csr": "GOOD", "lifetime": "1m"}, "/lifetime"),
    ({"profile": "server", "csr": "GOOD", "lifetime": "soon"}, "/lifetime"),
    ({"profile": "server", "csr": "GOOD", "lifetime": 1.5}, "/lifetime"),
    ({"profile": "server", "csr": "GOOD", "lifetime": "9" * 5000}, "/lifetime"),
    ({"profile": "server", "csr": "GOOD", "colour": "red"}, "/colour"),
    ({"profile": "server", "csr": "NAMELESS"}, "/dns_names"),
    ({"profile": "server", "csr": "UNDERSCORE"}, "/dns_names/0"),
    ({"profile": "server", "csr": "WRONG CURVE"}, "/public_key"),
]


@pytest.mark.parametrize(("wanted", "field"), BAD)
def test_what_cannot_be_granted_is_named(lite: Api, wanted: dict[str, Any], field: str) -> None:
    """400 with the field, nothing issued."""
    curve = ec.generate_private_key(ec.SECP521R1())
    odd = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    requests = {
        "GOOD": pem(csr("web.example.com")),
        "NAMELESS": pem(csr()),
        "UNDERSCORE": pem(csr("a_b.example.com")),
        "WRONG CURVE": pem(
            odd.sign(curve, signature_hash(generate_key(KeyType.P384).public_key()))
        ),
    }
    wanted = {**wanted, "csr": requests.get(wanted.get("csr"), wanted.get("csr"))}  # type: ignore[arg-type]  # any JSON
    wanted = {name: value for name, value in wanted.items() if value is not None}
    before = lite.given()
    answer = lite.ask("POST", URL, wanted, by=lite.operator)
    if field:
        assert_is_error(answer, 400, field)
    else:
        assert_is_error(answer, 413)
    assert lite.given() == before


def test_bodies_that_are_none(lite: Api) -> None:
    """Too long, ended early, coded, of another type, no JSON: each its own status."""
    long = b'{"csr": "' + b"A" * BODY_LIMIT + b'"}'
    assert_is_error(lite.ask("POST", URL, body=long, by=lite.operator), 413)
    for kind in ("text/plain", "", "application/x-www-form-urlencoded"):
        answer = lite.ask("POST", URL, body=b"{}", headers={"Content-Type": kind}, by=lite.operator)
        assert_is_error(answer, 415)
    coded = {"Content-Encoding": "gzip"}
    assert_is_error(lite.ask("POST", URL, body=b"{}", headers=coded, by=lite.operator), 415)
    assert_is_error(lite.ask("POST", URL, body=b"{", by=lite.operator), 400, "")
    assert_is_error(lite.ask("POST", URL, body=b"[]", by=lite.operator), 400, "")
    assert_is_error(lite.ask("POST", f"{URL}?x=1", body=b"{}", by=lite.operator), 400, "x")


# ---- who asks --------------------------------------------------------------------------------


def test_nobody_is_served_without_proof(lite: Api) -> None:
    """No certificate is 401 with both ways named; a certificate of others, of nobody, 403."""
    for method, path in (
        ("POST", URL),
        ("GET", URL),
        ("GET", f"{URL}/1"),
        ("POST", f"{URL}/renew"),
        ("POST", f"{URL}/1/revoke"),
        ("POST", f"{URL}/1/release"),
        ("POST", "/v1/tokens"),
        ("GET", "/v1/tokens"),
        ("DELETE", "/v1/tokens/1"),
        ("GET", "/v1/profiles"),
        ("GET", "/v1/audit"),
    ):
        answer = lite.ask(method, path, {} if method == "POST" else None)
        assert_is_error(answer, 401)
        assert "Bearer" in answer.headers["WWW-Authenticate"]
        unknown = lite.hierarchy.issue_client("ann", [ADMINS]).certificate
        answer = lite.ask(method, path, {} if method == "POST" else None, by=unknown)
        assert_is_error(answer, 403, code="certificate-unknown")
    forged = lite.ask("GET", URL, headers={"X-Ssl-Client-Verify": "SUCCESS"})
    assert_is_error(forged, 401)


def test_a_revoked_client_is_refused_at_once(ca: Api) -> None:
    """Whatever NGINX says: the next request after the revocation is 403, a release lets in."""
    for method, path in (("GET", URL), ("POST", URL), ("GET", "/v1/audit")):
        bob = ca.client("bob", ADMINS)
        serial = serial_text(bob.serial_number)
        body = {} if method == "POST" else None
        assert ca.ask(method, path, body, by=bob).status_int in (200, 400)
        hold = {"reason": "certificateHold"}
        assert ca.ask("POST", f"{URL}/{serial}/revoke", hold, by=ca.admin).status_int == 200
        assert_is_error(ca.ask(method, path, body, by=bob), 403, code="certificate-revoked")
        assert ca.ask("POST", f"{URL}/{serial}/release", by=ca.admin).status_int == 200
        assert ca.ask(method, path, body, by=bob).status_int in (200, 400)
        assert ca.ask("POST", f"{URL}/{serial}/revoke", {}, by=ca.admin).status_int == 200
        assert_is_error(ca.ask(method, path, body, by=bob), 403, code="certificate-revoked")


def test_every_route_and_every_group(lite: Api) -> None:
    """The rule of each route, for an admin, an operator, a host and a stranger."""
    other = lite.enrolled("host", "node-2.example.com")
    one = f"{URL}/{serial_text(other.serial_number)}"
    good = {"profile": "server", "csr": pem(csr("web.example.com"))}
    token = {"profile": "host", "common_name": "node-9.example.com"}
    named = {"profile": "client", "csr": pem(csr(common_name="x"))}
    table: list[tuple[str, str, object, tuple[int, int, int, int]]] = [
        ("GET", "/v1", None, (200, 200, 200, 200)),
        ("GET", "/v1/chain", None, (200, 200, 200, 200)),
        ("GET", "/v1/root", None, (200, 200, 200, 200)),
        ("GET", "/v1/profiles", None, (200, 200, 200, 200)),
        ("GET", URL, None, (200, 200, 200, 200)),
        ("POST", URL, good, (201, 201, 403, 403)),
        ("POST", URL, named, (201, 403, 403, 403)),
        ("GET", one, None, (200, 200, 404, 404)),
        ("POST", f"{one}/revoke", {"reason": "certificateHold"}, (200, 200, 404, 404)),
        ("POST", f"{one}/release", None, (200, 200, 404, 404)),
        ("POST", f"{URL}/renew", {"csr": pem(csr())}, (201, 201, 201, 201)),
        ("POST", "/v1/tokens", token, (201, 201, 403, 403)),
        ("GET", "/v1/tokens", None, (200, 200, 200, 200)),
        ("DELETE", "/v1/tokens/" + "0" * 8 + "-0000" * 3 + "-" + "0" * 12, None, (404,) * 4),
        ("GET", "/v1/audit", None, (200, 403, 403, 403)),
        ("POST", "/v1/acme/keys", {"dns": ["example.com"]}, (201, 201, 403, 403)),
        ("GET", "/v1/acme/keys", None, (200, 200, 403, 403)),
        ("DELETE", "/v1/acme/keys/none", None, (404, 404, 403, 403)),
    ]
    for method, path, body, statuses in table:
        for who, status in zip(
            (lite.admin, lite.operator, lite.node, lite.stranger), statuses, strict=True
        ):
            answer = lite.ask(method, path, body, by=who)
            assert answer.status_int == status, (method, path, answer.text)
            if status >= 400:
                assert_is_error(answer, status, answer.json["error"].get("field"))
    routes = {(method, path) for method, path, _ in lite.application.router.routes}
    fixed = {(m, p.replace(one, f"{URL}/{{id}}")) for m, p, _, _ in table}
    assert {(m, p.rpartition("/")[0] + "/{id}" if m == "DELETE" else p) for m, p in fixed} == routes
    for _, _, rule in lite.application.router.routes:
        assert rule == api.ANYONE or rule in RULES
    assert_is_error(lite.ask("PUT", URL, by=lite.admin), 405)
    assert_is_error(lite.ask("GET", "/v2", by=lite.admin), 404)


def test_an_owner_sees_and_revokes_its_own_alone(ca: Api) -> None:
    """A host: what names it and what it asked for; a user of the host's name sees none of it."""
    wanted = {"profile": "server", "csr": pem(csr(NODE))}
    created = ca.ask("POST", URL, wanted, by=ca.node)
    assert created.status_int == 201, created.text
    listed = ca.ask("GET", URL, by=ca.node).json["certificates"]
    assert [each["profile"] for each in listed] == ["server", "host"]
    namesake = ca.client(NODE)
    own = ca.ask("GET", URL, by=namesake).json["certificates"]
    assert [(each["profile"], each["common_name"]) for each in own] == [("client", NODE)]
    where = created.headers["Location"]
    assert_is_error(ca.ask("GET", where, by=namesake), 404)
    assert_is_error(ca.ask("POST", f"{where}/revoke", {}, by=namesake), 404)
    assert ca.ask("GET", where, by=ca.node).status_int == 200
    assert_is_error(ca.ask("POST", f"{where}/release", by=ca.node), 403)
    revoked = ca.ask("POST", f"{where}/revoke", {"reason": "superseded"}, by=ca.node)
    assert (revoked.json["state"], revoked.json["reason"]) == ("revoked", "superseded")
    itself = f"{URL}/{serial_text(ca.node.serial_number)}"
    assert ca.ask("POST", f"{itself}/revoke", {}, by=ca.node).status_int == 200
    assert_is_error(ca.ask("GET", URL, by=ca.node), 403, code="certificate-revoked")


# ---- reading ---------------------------------------------------------------------------------


def test_lists_are_filtered_and_paged(ca: Api) -> None:
    """Pages follow `next` to the end and hold everything once."""
    for number in range(5):
        ca.enrolled("host", f"node-{number}.example.org")
    seen: list[str] = []
    path: str | None = f"{URL}?limit=2"
    while path is not None:
        answer = ca.ask("GET", path, by=ca.operator).json
        assert len(answer["certificates"]) <= 2
        seen += [each["serial"] for each in answer["certificates"]]
        path = answer.get("next")
    assert len(seen) == 9
    assert set(seen) == ca.given()

    def names(query: str) -> list[str]:
        answer = ca.ask("GET", f"{URL}?{query}", by=ca.operator)
        assert answer.status_int == 200, answer.text
        return [each["common_name"] for each in answer.json["certificates"]]

    assert names("name=node-3.example.org") == ["node-3.example.org"]
    assert names("subject=ALICE") == ["alice"]
    assert names("profile=client&limit=1") == ["stan"]
    assert names("expires_before=2d&profile=host") == []
    assert len(names("expires_before=8d&profile=host&state=issued")) == 6
    assert names("expires_before=2020-01-01") == []
    assert names("state=revoked") == []
    for query, field in (
        ("limit=0", "limit"),
        (f"limit={PAGE_LIMIT + 1}", "limit"),
        ("limit=x", "limit"),
        ("state=gone", "state"),
        ("marker=x", "marker"),
        ("expires_before=soon", "expires_before"),
        ("expires_before=999999999d", "expires_before"),
        ("expires_before=0001-01-01T00:00:00%2B14:00", "expires_before"),
        ("colour=red", "colour"),
        ("name=a&name=b", "name"),
        ("name=", "name"),
        ("name=%00", "name"),
        ("name=%ff", ""),
    ):
        assert_is_error(ca.ask("GET", f"{URL}?{query}", by=ca.operator), 400, field)


def test_chain_and_root_are_for_everybody(lite: Api) -> None:
    """As files in PEM unless something else is asked for."""
    chain = lite.ask("GET", "/v1/chain")
    assert (chain.content_type, chain.body) == (PEM, lite.application.bundle_pem)
    described = lite.ask("GET", "/v1/chain", headers={"Accept": JSON}).json
    assert [each["active"] for each in described["authorities"]] == [True]
    root = lite.ask("GET", "/v1/root", headers={"Accept": DER})
    assert root.body == lite.hierarchy.root.certificate.public_bytes(Encoding.DER)
    assert lite.ask("GET", "/v1/root").text == described["root"]


def test_profiles_say_what_one_may_ask_for(lite: Api) -> None:
    """Only those that anybody can ask for at all."""
    found = lite.ask("GET", "/v1/profiles", by=lite.node).json["profiles"]
    assert {each["name"]: (each["may_ask"], each["may_ask_for_own_name"]) for each in found} == {
        "server": (False, True),
        "client": (False, False),
        "host": (False, False),
        "instance": (False, False),
    }


def test_the_audit_trail_is_read_in_pages_and_chains(ca: Api) -> None:
    """The newest first; hash and fields are those that verification needs."""
    entries: list[dict[str, Any]] = []
    path: str | None = "/v1/audit?limit=3"
    while path is not None:
        answer = ca.ask("GET", path, by=ca.admin).json
        entries += answer["entries"]
        path = answer.get("next")
    assert [each["sequence"] for each in entries] == list(range(8, 0, -1))
    assert entries[0]["hash"] == ca.ledger.verify_audit().head
    assert_is_error(ca.ask("GET", "/v1/audit?marker=x", by=ca.admin), 400, "marker")


# ---- renewing and revoking -------------------------------------------------------------------


def test_a_host_renews_itself(ca: Api) -> None:
    """With its certificate and a new key, in JSON or as a raw CSR; another name is refused."""
    key = generate_key()
    renewed = ca.ask("POST", f"{URL}/renew", {"csr": pem(csr(key=key))}, by=ca.node)
    assert renewed.status_int == 201, renewed.text
    certificate = x509.load_pem_x509_certificate(renewed.json["certificate"].encode())
    assert certificate.subject == ca.node.subject
    assert certificate.public_key() == key.public_key()
    raw = csr(NODE, common_name=NODE).public_bytes(Encoding.DER)
    headers = {"Content-Type": CSR, "Accept": PEM}
    again = ca.ask("POST", f"{URL}/renew?lifetime=1d", body=raw, headers=headers, by=certificate)
    assert (again.status_int, again.body.count(b"BEGIN")) == (201, 2)
    other = {"csr": pem(csr(common_name="node-2.example.com"))}
    assert_is_error(ca.ask("POST", f"{URL}/renew", other, by=ca.node), 400, "/common_name")
    more = {"csr": pem(csr(common_name=NODE, groups=(ADMINS,)))}
    assert_is_error(ca.ask("POST", f"{URL}/renew", more, by=ca.node), 400, "/organizations")
    assert_is_error(ca.ask("POST", f"{URL}/renew", {"profile": "x"}, by=ca.node), 400, "/profile")


def test_revoking_twice_is_no_error_and_another_reason_is(ca: Api) -> None:
    """Idempotent; 409 for what the state forbids, 400 for a reason that is none, 404 for none."""
    where = f"{URL}/{serial_text(ca.stranger.serial_number)}"
    for _ in range(2):
        answer = ca.ask("POST", f"{where}/revoke", {"reason": "keyCompromise"}, by=ca.operator)
        assert (answer.status_int, answer.json["state"]) == (200, "revoked")
    other = ca.ask("POST", f"{where}/revoke", {"reason": "superseded"}, by=ca.operator)
    assert_is_error(other, 409, code="wrong-state")
    assert_is_error(ca.ask("POST", f"{where}/release", by=ca.operator), 409, code="wrong-state")
    for reason in ("bored", 7, None, ["keyCompromise"]):
        answer = ca.ask("POST", f"{where}/revoke", {"reason": reason}, by=ca.operator)
        assert_is_error(answer, 400, "/reason")
    for name in ("1", "f" * 64, "x", "%00", "f" * 41, "é"):
        answer = ca.ask("POST", f"{URL}/{quote(name, safe='%')}/revoke", {}, by=ca.operator)
        assert_is_error(answer, 404)
    assert [each for each in ca.actions() if each[1] == "revoke"] == [
        ("client:alice", "revoke", "done")
    ]


# ---- enrolment -------------------------------------------------------------------------------


def test_a_machine_enrols_with_a_token(ca: Api) -> None:
    """Once, with the token alone; a repetition with the same key gets the same, another nothing."""
    wanted = {"profile": "host", "common_name": "node-7.example.com", "lifetime": "2h"}
    made = ca.ask("POST", "/v1/tokens", wanted, by=ca.operator)
    assert made.status_int == 201, made.text
    assert made.headers["Cache-Control"] == "no-store"
    secret = made.json["token"]
    assert (made.json["state"], made.json["common_name"]) == ("valid", "node-7.example.com")
    key = generate_key()
    first = ca.ask("POST", URL, {"csr": pem(csr(key=key))}, token=secret)
    assert first.status_int == 201, first.text
    assert first.json["common_name"] == "node-7.example.com"
    raw = csr(key=key).public_bytes(Encoding.DER)
    again = ca.ask("POST", URL, body=raw, headers={"Content-Type": CSR}, token=secret)
    assert (again.status_int, again.json) == (200, first.json)
    assert_is_error(ca.ask("POST", URL, {"csr": pem(csr())}, token=secret), 403)
    listed = ca.ask("GET", "/v1/tokens", by=ca.operator)
    assert [each["state"] for each in listed.json["tokens"]] == ["used"]
    assert listed.json["tokens"][0]["used_for"] == first.json["serial"]
    assert secret not in listed.text
    assert secret.encode() not in repr(ca.ledger.trail(limit=100)).encode()
    wrong = ca.ask("POST", URL, {"csr": pem(csr()), "profile": "server"}, token=secret)
    assert_is_error(wrong, 400, "/profile")


def test_what_a_token_does_not_open(lite: Api) -> None:
    """It is for one route; one that is unknown, mangled or withdrawn is 401, expired 403."""
    wanted = {"profile": "host", "common_name": "node-7.example.com"}
    made = lite.ask("POST", "/v1/tokens", wanted, by=lite.operator).json
    for method, path in (("GET", URL), ("GET", "/v1/tokens"), ("POST", f"{URL}/renew")):
        body = {} if method == "POST" else None
        assert_is_error(lite.ask(method, path, body, token=made["token"]), 401)
    for token in ("x", made["token"][:-1], made["token"] + "=", "ä", "a b", ""):
        answer = lite.ask("POST", URL, {"csr": pem(csr())}, token=token, by=lite.admin)
        assert_is_error(answer, 401, code="invalid-token")
    basic = {"Authorization": "Basic YTpi"}
    assert_is_error(lite.ask("POST", URL, {}, headers=basic), 401, code="invalid-token")
    where = f"/v1/tokens/{made['id']}"
    assert_is_error(lite.ask("DELETE", where, by=lite.node), 404)
    assert lite.ask("DELETE", where, by=lite.operator).status_int == 204
    assert_is_error(lite.ask("DELETE", where, by=lite.operator), 404)
    gone = lite.ask("POST", URL, {"csr": pem(csr())}, token=made["token"])
    assert_is_error(gone, 401, code="invalid-token")
    for lifetime in ("30s", "8d", "x"):
        answer = lite.ask("POST", "/v1/tokens", {**wanted, "lifetime": lifetime}, by=lite.operator)
        assert_is_error(answer, 400, "/lifetime")
    short = {**wanted, "lifetime": "1m"}
    late = lite.ask("POST", "/v1/tokens", short, by=lite.operator).json["token"]
    lite.authority.clock = lambda: datetime.now(UTC) + timedelta(minutes=2)
    assert_is_error(lite.ask("POST", URL, {"csr": pem(csr())}, token=late), 403)


def test_makers_see_their_own_tokens(ca: Api) -> None:
    """Whoever may make tokens and is no operator sees and withdraws its own alone."""
    wanted = {"profile": "server", "dns_names": [NODE]}
    mine = ca.ask("POST", "/v1/tokens", wanted, by=ca.node).json
    for number in range(3):
        others = {"profile": "server", "dns_names": [f"{number}.example.com"]}
        assert ca.ask("POST", "/v1/tokens", others, by=ca.operator).status_int == 201
    assert [each["id"] for each in ca.ask("GET", "/v1/tokens", by=ca.node).json["tokens"]] == [
        mine["id"]
    ]
    page = ca.ask("GET", "/v1/tokens?limit=3", by=ca.operator).json
    assert len(page["tokens"]) == 3
    rest = ca.ask("GET", page["next"], by=ca.operator).json
    assert [each["id"] for each in rest["tokens"]] == [mine["id"]]
    assert "next" not in rest
    assert ca.ask("DELETE", f"/v1/tokens/{mine['id']}", by=ca.node).status_int == 204


# ---- hostile input ---------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
KNOWN = ("profile", "csr", "lifetime", "reason", "common_name", "dns_names", "ip_addresses", "uris")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, hierarchy: Hierarchy) -> Iterator[Api]:
    """One API for all examples of the fuzz tests."""
    from services.ca.ledger import Ledger
    from services.ca.profile_file import SHIPPED

    url = f"sqlite:///{tmp_path_factory.mktemp('fuzz')}/ca.db"
    upgrade(url)
    database = Database(url)
    authorities = keystore.Authorities(hierarchy.root.certificate, b"", hierarchy.intermediate)
    yield Api(Authority(authorities, Ledger(database), SHIPPED), hierarchy)
    database.close()


FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


GOOD = csr("web.example.com", common_name="web.example.com").public_bytes(Encoding.DER)


def assert_nothing_happens(target: Api, send: Callable[[], TestResponse]) -> None:
    before = target.given()
    answer = send()
    assert 400 <= answer.status_int < 500, (answer.status_int, answer.text)
    assert_is_error(answer, answer.status_int, answer.json["error"].get("field"))
    assert target.given() == before


@FUZZ
@given(body=st.binary(max_size=400), kind=st.sampled_from([CSR, JSON, "text/plain"]))
@example(body=b"\x30\x80", kind=CSR)
@example(body=b"\x30\x84\xff\xff\xff\xff", kind=CSR)
@example(body=b"[" * 400, kind=JSON)
@example(body=b'{"csr": "\\ud800"}', kind=JSON)
@example(body=b'{"csr": "\\u0000"}', kind=JSON)
def test_any_bytes_issue_nothing(target: Api, body: bytes, kind: str) -> None:
    """Whatever stands in the body: a 4xx of the one shape, nothing issued."""
    headers = {"Content-Type": kind}
    for path in (f"{URL}?profile=server" if kind == CSR else URL, f"{URL}/renew"):
        assert_nothing_happens(
            target,
            lambda path=path: target.ask(  # type: ignore[misc]  # mypy cannot infer its type
                "POST", path, body=body, headers=headers, by=target.admin
            ),
        )


@FUZZ
@given(document=st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=8), JSON_VALUES))
def test_any_document_issues_nothing(target: Api, document: dict[str, Any]) -> None:
    """So for every JSON object on every route that reads one."""
    try:
        body = json.dumps(document, allow_nan=False).encode()
    except ValueError:
        body = b"{"
    serial = serial_text(target.stranger.serial_number)
    for path in (URL, f"{URL}/renew", "/v1/tokens", f"{URL}/{serial}/revoke"):
        if path.endswith("revoke") and document.get("reason", "x") == "x":
            continue  # an empty object is an honest wish there
        if path == "/v1/tokens" and document.get("profile") in ("server", "host", "instance"):
            continue
        assert_nothing_happens(
            target,
            lambda path=path: target.ask("POST", path, body=body, by=target.admin),  # type: ignore[misc]  # the same
        )


@FUZZ
@given(data=st.data())
def test_a_broken_csr_issues_nothing(target: Api, data: st.DataObject) -> None:
    """A good CSR with some octets changed, cut or doubled."""
    good = GOOD
    at = data.draw(st.integers(0, len(good) - 1))
    octet = data.draw(st.integers(0, 255).filter(lambda value: value != good[at]))
    changed = data.draw(
        st.sampled_from(
            [
                good[:at] + bytes([octet]) + good[at + 1 :],
                good[:at],
                good[:at] + good[at:] * 2,
                good + bytes([octet]),
            ]
        )
    )
    headers = {"Content-Type": CSR}
    assert_nothing_happens(
        target,
        lambda: target.ask(
            "POST", f"{URL}?profile=server", body=changed, headers=headers, by=target.admin
        ),
    )


@FUZZ
@given(
    path=st.text(max_size=30),
    query=st.text(max_size=30),
    method=st.sampled_from(["GET", "POST", "DELETE", "HEAD", "PUT"]),
)
def test_any_target_is_answered(target: Api, path: str, query: str, method: str) -> None:
    """No 500 whatever the path and the query are."""
    before = target.given()
    where = f"/v1/{quote(path, safe='/')}?{quote(query, safe='&=')}"
    answer = target.ask(method, where, by=target.admin)
    assert answer.status_int < 500
    assert target.given() == before


# ---- the process -----------------------------------------------------------------------------


def test_a_database_that_is_away_is_503(lite: Api, tmp_path: Path) -> None:
    """With Retry-After, on every route that needs it; nothing is issued."""
    (tmp_path / "mooring.db").rename(tmp_path / "away.db")
    good = {"profile": "server", "csr": pem(csr("web.example.com"))}
    for method, path, body in (("POST", URL, good), ("GET", URL, None), ("GET", "/v1/audit", None)):
        answer = lite.ask(method, path, body, by=lite.admin)
        assert_is_error(answer, 503)
        assert answer.headers["Retry-After"] == api.RETRY_AFTER
    (tmp_path / "away.db").rename(tmp_path / "mooring.db")
    assert lite.ask("POST", URL, good, by=lite.admin).status_int == 201


def test_a_key_that_cannot_sign_is_503(lite: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Retry-After, and without a word of why."""

    def broken(_data: bytes) -> bytes:
        raise RuntimeError("PIN 1234 is wrong")

    monkeypatch.setattr(lite.authority.authorities.active.signer, "sign_bytes", broken)
    good = {"profile": "server", "csr": pem(csr("web.example.com"))}
    answer = lite.ask("POST", URL, good, by=lite.admin)
    assert "1234" not in assert_is_error(answer, 503)
    assert answer.headers["Retry-After"] == api.SIGNING_RETRY


@pytest.fixture
def logs() -> Iterator[None]:
    """Undo what configuring the log changes for the whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_the_factory_builds_from_files(tmp_path: Path, logs: None) -> None:
    """mooring.conf, profiles.toml and the key store; what is wrong is one line that names it."""
    url = f"sqlite:///{tmp_path}/ca.db"
    upgrade(url)
    made = ceremony.create(
        tmp_path / "ca",
        "Example",
        passphrase=lambda: b"a passphrase",
        urls=keystore.Urls(),
        now=datetime.now(UTC),
    )
    (tmp_path / "secret").write_text("a passphrase\n")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "profiles.toml").write_text("[profile.server]\n")

    def conf(name: str, text: str = "") -> str:
        path = tmp_path / f"{name}.conf"
        path.write_text(
            f"[database]\nurl = sqlite:////nowhere/x.db\n[ca]\ndatabase_url = {url}\n"
            f"directory = {tmp_path}/ca\nprofiles = {tmp_path}/profiles.toml\n"
            f"passphrase_file = {tmp_path}/secret\n{text}"
        )
        return str(path)

    application = api.app_factory(
        {}, config=conf("good", "public_url = http://ca.example.com:8080/\n")
    )
    assert isinstance(application, CertificateApi)
    assert application.authority.active_id == keystore.authority_id(made.active.certificate)
    assert application.authority.authorities.active.crl_url == (
        f"http://ca.example.com:8080/crl/{application.authority.active_id}.crl"
    )
    assert set(application.authority.offers) == {"root", "intermediate", "ocsp", "server"}
    assert "certificate authority" not in readiness.failing()
    again = api.app_factory({}, config=conf("good", "public_url = http://ca.example.com:8080/\n"))
    assert isinstance(again, CertificateApi)
    assert again.authority is application.authority
    application.ledger.database.close()
    for name, text, says in (
        ("profiles", f"profiles = {tmp_path}/none.toml\n", "none.toml: cannot be read"),
        ("keys", f"directory = {tmp_path}/none\n", "none/root.crt: does not exist"),
        ("schema", f"database_url = sqlite:///{tmp_path}/empty.db\n", "run `mooring db upgrade`"),
    ):
        (tmp_path / "empty.db").touch()
        with pytest.raises(ConfigError, match=says):
            api.app_factory({}, config=conf(name, text))
    for name in ("database of the certificate service", "certificate authority"):
        readiness.unregister(name)


def test_fingerprints_are_of_the_whole_certificate(lite: Api) -> None:
    """The ledger is asked for the very certificate, so a serial that another made up is unknown."""
    namesake: Credential = lite.hierarchy.issue_client("alice", [OPERATORS])
    serial = lite.operator.serial_number
    assert namesake.certificate.serial_number != serial
    record = lite.ledger.by_fingerprint(
        hashlib.sha256(lite.operator.public_bytes(Encoding.DER)).hexdigest()
    )
    assert record is not None
    assert record.serial == serial_text(serial)
    assert HOSTS not in record.subject
