"""What the filters' tests share: an inner application that shows what reached it, certificates."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclasses.dataclass
class Answer:
    """What a client would have got."""

    status: str
    headers: dict[str, str]
    body: bytes
    header_list: list[tuple[str, str]]


class Inner:
    """An application that answers 200 `ok` and keeps the last environ that it got."""

    def __init__(self) -> None:
        self.environ: dict[str, Any] | None = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.environ = dict(environ)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]


def make_environ(**changes: Any) -> dict[str, Any]:
    """A request as gunicorn hands it over on a unix socket; None removes a key."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/latest/meta-data/",
        "QUERY_STRING": "",
        "RAW_URI": "/latest/meta-data/",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "",
        "wsgi.url_scheme": "http",
    }
    environ.update(changes)
    return {key: value for key, value in environ.items() if value is not None}


def call_app(app: Any, environ: dict[str, Any]) -> Answer:
    """Calls the application as a server does, start_response exactly once, close at the end."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if started and exc_info is not None:
            raise exc_info[1]
        assert not started, "start_response called twice"
        started.append((status, list(headers)))
        return written.append

    result = app(environ, start_response)
    try:
        body = b"".join(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    ((status, headers),) = started
    return Answer(status, dict(headers), b"".join(written) + body, headers)


def make_certificate(
    users: tuple[str, ...] = ("host-1",),
    groups: tuple[str, ...] = ("mooring:hosts",),
    *,
    serial: int = 4711,
    not_before: datetime.timedelta = datetime.timedelta(days=-1),
    not_after: datetime.timedelta = datetime.timedelta(days=1),
    usages: tuple[x509.ObjectIdentifier, ...] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
) -> x509.Certificate:
    """A certificate of the shape that NGINX passes on; nobody checks who signed it here."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, user) for user in users]
        + [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now + not_before)
        .not_valid_after(now + not_after)
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(key, hashes.SHA256())


def as_header(certificate: x509.Certificate) -> str:
    """As NGINX's $ssl_client_escaped_cert has it."""
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
    return quote(pem, safe="")


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def environ() -> Callable[..., dict[str, Any]]:
    return make_environ


@pytest.fixture
def call() -> Callable[[Any, dict[str, Any]], Answer]:
    return call_app


@pytest.fixture(scope="session")
def certificate() -> Callable[..., x509.Certificate]:
    return make_certificate


@pytest.fixture(scope="session")
def header() -> Callable[[x509.Certificate], str]:
    return as_header
