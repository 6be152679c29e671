"""A small ACME client of our own over WSGI, and a server of real parts but for the challenges.

The authority, its ledger and both databases are the shipped ones. What answers challenges is a
table (`Answers`), since other tests and the real clients' have real web, name and TLS servers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from wsgiref.types import WSGIApplication

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca.acme.application import Acme, Settings
from services.ca.acme.certificates import AuthorityCertificates
from services.ca.acme.jws import jwk_of
from services.ca.acme.orders import Policy
from services.ca.acme.problems import NAMESPACE, Problem
from services.ca.acme.rules import Identifier, KeyRules
from services.ca.acme.store import Store
from services.ca.acme.validation import Validation
from services.ca.authority import Authority
from services.ca.hierarchy import Hierarchy
from services.ca.ledger import Ledger
from services.ca.profile_file import SHIPPED, acme_profiles
from services.ca.signer import Issuer
from services.core.database import Database

BASE = "https://ca.example.test:8776/acme"
CONTACT = ["mailto:ops@example.test"]

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def b64(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    """The reverse."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k.lower() == name.lower()]

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def nonce(self) -> str:
        nonce = self.header("Replay-Nonce")
        assert nonce is not None
        return nonce


def call(
    app: WSGIApplication,
    method: str,
    path: str,
    body: bytes = b"",
    content_type: str = "application/jose+json",
    **more: Any,
) -> Answer:
    """One request, as gunicorn would hand it over behind the gatekeeper."""
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "/acme",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "HTTP_HOST": "somebody.else.test",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "mooring.gatekeeper": True,
        "mooring.request_id": "req-00000000-0000-4000-8000-000000000000",
        "CONTENT_LENGTH": str(len(body)),
        "CONTENT_TYPE": content_type,
        **more,
    }
    started: list[tuple[int, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> Any:
        started.append((int(status.split()[0]), headers))
        return lambda _data: None

    data = b"".join(app(environ, start))
    return Answer(started[-1][0], started[-1][1], data)


def sign(key: Key, data: bytes) -> bytes:
    """A JWS signature by the key's own algorithm."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.curve.key_size + 7) // 8
        digest = hashes.SHA384() if size == 48 else hashes.SHA256()
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def flattened(
    key: Key, header: Mapping[str, Any], payload: bytes | None, **changes: Any
) -> dict[str, Any]:
    """A flattened JWS; `changes` replace its members."""
    protected = b64(json.dumps(header).encode())
    text = b64(payload or b"")
    signature = b64(sign(key, f"{protected}.{text}".encode()))
    return {"protected": protected, "payload": text, "signature": signature, **changes}


def binding(kid: str, secret: bytes, jwk: Mapping[str, str], url: str, /, **header: Any) -> Any:
    """An external account binding."""
    head = {"alg": "HS256", "kid": kid, "url": url, **header}
    protected = b64(json.dumps(head).encode())
    payload = b64(json.dumps(dict(jwk)).encode())
    mac = hmac.digest(secret, f"{protected}.{payload}".encode(), "sha256")
    return {"protected": protected, "payload": payload, "signature": b64(mac)}


@dataclass
class Client:
    """An ACME client with one key; `kid` once it has an account."""

    app: WSGIApplication
    key: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    kid: str | None = None

    @property
    def jwk(self) -> dict[str, str]:
        return dict(jwk_of(self.key.public_key()).members)

    @property
    def thumbprint(self) -> str:
        canonical = json.dumps(self.jwk, sort_keys=True, separators=(",", ":")).encode()
        return b64(hashlib.sha256(canonical).digest())

    def path(self, url: str) -> str:
        assert url.startswith(BASE + "/"), url
        return url.removeprefix(BASE)

    def nonce(self) -> str:
        return call(self.app, "HEAD", "/new-nonce").nonce

    def header(self, url: str, /, **changes: Any) -> dict[str, Any]:
        algorithm = jwk_of(self.key.public_key()).algorithm
        header: dict[str, Any] = {"alg": algorithm, "nonce": self.nonce(), "url": url}
        header |= {"kid": self.kid} if self.kid else {"jwk": self.jwk}
        header |= changes
        return {name: value for name, value in header.items() if value is not None}

    def post(self, url: str, payload: Any = None, **changes: Any) -> Answer:
        """A signed POST to a URL (or a path); payload None is POST-as-GET."""
        if url.startswith("/"):
            url = BASE + url
        data = None if payload is None else json.dumps(payload).encode()
        body = flattened(self.key, self.header(url, **changes), data)
        return call(self.app, "POST", self.path(url), json.dumps(body).encode())

    def register(self, **members: Any) -> Answer:
        answer = self.post("/new-account", {"contact": CONTACT, **members})
        if answer.status in (200, 201):
            self.kid = answer.header("Location")
        return answer

    def order(self, *names: str, kind: str = "dns") -> Answer:
        identifiers = [{"type": kind, "value": name} for name in names]
        return self.post("/new-order", {"identifiers": identifiers})

    def solve(self, order: Mapping[str, Any], kind: str = "http-01") -> None:
        """Say that every authorization of an order is ready for validation, and wait for it."""
        for url in order["authorizations"]:
            for challenge in self.post(url).json["challenges"]:
                if challenge["type"] == kind:
                    assert self.post(challenge["url"], {}).status == 200
            self.wait(url)

    def wait(self, url: str, *states: str) -> dict[str, Any]:
        """Poll until the object is in one of the states, or at least not pending or processing."""
        deadline = time.monotonic() + 20
        while True:
            found = self.post(url).json
            if found["status"] in states or (
                not states and found["status"] not in ("pending", "processing")
            ):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def ready_order(self, *names: str) -> tuple[str, dict[str, Any]]:
        """(URL, object) of an order that can be finalized."""
        answer = self.order(*names)
        assert answer.status == 201, answer.body
        url = answer.header("Location")
        assert url is not None
        self.solve(answer.json)
        return url, self.wait(url, "ready")

    def finalize(self, order: Mapping[str, Any], csr: bytes) -> Answer:
        return self.post(order["finalize"], {"csr": b64(csr)})

    def issue(self, *names: str, csr: bytes | None = None) -> list[x509.Certificate]:
        """The chain of a new certificate."""
        url, order = self.ready_order(*names)
        answer = self.finalize(order, csr or make_csr(*names))
        assert answer.status == 200, answer.body
        order = self.wait(url, "valid")
        answer = self.post(order["certificate"])
        assert answer.status == 200
        return x509.load_pem_x509_certificates(answer.body)


def make_csr(*names: str, key: Key | None = None, common_name: str | None = None) -> bytes:
    """A request in DER for these DNS names."""
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    key = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


@dataclass
class Answers:
    """Answers challenges by a table: what is in `wrong` fails, `hook` is called first."""

    wrong: dict[str, Problem] = field(default_factory=dict)
    hook: Callable[[str, Identifier], None] = lambda _kind, _identifier: None
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def types(self, identifier: Identifier) -> tuple[str, ...]:
        if identifier.wildcard:
            return ("dns-01",)
        return ("http-01", "tls-alpn-01", *(("dns-01",) if identifier.kind == "dns" else ()))

    def validate(self, kind: str, identifier: Identifier, token: str, thumbprint: str) -> None:
        self.asked.append((kind, identifier.value, f"{token}.{thumbprint}"))
        self.hook(kind, identifier)
        if identifier.value in self.wrong:
            raise self.wrong[identifier.value]


@dataclass
class Clock:
    """The present, which a test moves."""

    offset: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset


@dataclass
class TestAuthorities:
    """What an Authority needs of a key store."""

    __test__ = False
    active: Issuer

    def all(self) -> tuple[Issuer, ...]:
        return (self.active,)


@dataclass
class Server:
    """A server, its parts and a way to make more workers of the same installation."""

    url: str
    hierarchy: Hierarchy
    settings: Settings
    answers: Answers = field(default_factory=Answers)
    clock: Clock = field(default_factory=Clock)
    workers: list[Acme] = field(default_factory=list)
    databases: list[Database] = field(default_factory=list)

    def worker(self, **changes: Any) -> Acme:
        """Another application over the same database, as another process would have it."""
        database = Database(self.url)
        self.databases.append(database)
        self.store = Store(database)
        self.ledger = Ledger(database)
        self.authority = Authority(
            TestAuthorities(self.hierarchy.intermediate), self.ledger, SHIPPED, clock=self.clock
        )
        self.policy = Policy(self.store, acme_profiles(SHIPPED), "server")
        acme = Acme(
            replace(self.settings, **changes),
            self.store,
            AuthorityCertificates(self.authority),
            self.policy,
            self.answers,
            clock=self.clock,
            validation=Validation(self.store, self.answers, self.clock, pauses=()),
        )
        self.workers.append(acme)
        return acme

    def client(self, app: WSGIApplication | None = None, **members: Any) -> Client:
        """A client with an account."""
        client = Client(app or self.workers[0])
        assert client.register(**members).status == 201
        return client

    def external(self, **rules: Any) -> tuple[str, bytes]:
        """A key for external accounts: id and secret."""
        made, secret = self.store.create_external_key(
            KeyRules(**rules), created_by="alice", now=self.clock()
        )
        return made.id, secret

    def close(self) -> None:
        for worker in self.workers:
            worker.validation.close()
        for database in self.databases:
            database.close()


def assert_problem(answer: Answer, kind: str, status: int | None = None) -> dict[str, Any]:
    """The one shape of every refusal; returns the document."""
    assert answer.header("Content-Type") == "application/problem+json", answer.body
    document = answer.json
    assert document["type"] == NAMESPACE + kind, document
    assert document["detail"]
    assert document["status"] == answer.status
    if status is not None:
        assert answer.status == status
    assert f'<{BASE}/directory>;rel="index"' in answer.all("Link")
    return document
