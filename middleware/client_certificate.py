"""Turns the client certificate that NGINX verified into user and groups.

NGINX has checked chain, dates and CRL at the handshake and says so in `X-Ssl-Client-Verify`. Here
the leaf is read again: a connection may outlive its certificate, and names come from the parsed
attributes, never from a DN string (whose escaping differs between programs).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.core.errors import Failure
from services.core.headers import environ_key
from services.core.identity import ClientIdentity

VERIFY = environ_key("X-Ssl-Client-Verify")
CERTIFICATE = environ_key("X-Ssl-Client-Cert")

# A leaf with an RSA-4096 key takes about 3 KB when URL-encoded; gunicorn's own limit is the same.
MAX_HEADER_CHARACTERS = 8190
# Certificates remembered by header text: the hosts of the largest cell (2,000) and their operators.
# About 2 KB each with P-256 keys, so 8 MB a worker; 32 MB if every header had the full length.
REMEMBERED = 4096
# RFC 5280 appendix A: ub-common-name and ub-organization-name.
MAX_NAME_CHARACTERS = 64


class Verified(NamedTuple):
    """What a certificate says; the dates are Unix seconds, both inclusive."""

    identity: ClientIdentity
    not_before: float
    not_after: float


@lru_cache(REMEMBERED)
def read_certificate(header: str) -> Verified | None:
    """Parses the URL-encoded PEM leaf. None if it is no certificate that may name a client.

    It has to have extended key usage clientAuth (RFC 5280, 4.2.1.12), exactly one CN and no name
    that is empty, overlong or holds control characters.
    """
    if len(header) > MAX_HEADER_CHARACTERS:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(unquote_to_bytes(header))
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        users = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        groups = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        identity = ClientIdentity(
            user=_name(users[0].value),
            groups=frozenset(_name(group.value) for group in groups),
            serial=certificate.serial_number,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )
        not_before = certificate.not_valid_before_utc.timestamp()
        not_after = certificate.not_valid_after_utc.timestamp()
    except Exception:  # the parser's errors have no common base, and none of them is our bug
        return None
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages or len(users) != 1:
        return None
    return Verified(identity, not_before, not_after)


def _name(value: str | bytes) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("a name that is no text")
    if not 1 <= len(value) <= MAX_NAME_CHARACTERS or value != value.strip():
        raise ValueError("an empty, overlong or padded name")
    return value


class ClientCertificate:
    """Sets `mooring.client` for a good certificate; without one the client is anonymous, or 403."""

    def __init__(
        self, app: WSGIApplication, required: bool, clock: Callable[[], float] = time.time
    ) -> None:
        self.app = app
        self.required = required
        self.clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        outcome = environ.pop(VERIFY, None)
        header = environ.pop(CERTIFICATE, None)
        verified = read_certificate(header) if outcome == "SUCCESS" and header else None
        if verified and verified.not_before <= self.clock() <= verified.not_after:
            environ["mooring.client"] = verified.identity
        elif self.required:
            # 403, not 401: a 401 would have to name an HTTP authentication scheme (RFC 9110,
            # 15.5.2), and TLS is none.
            raise Failure(
                403, "A valid client certificate is required.", code="certificate-required"
            )
        return self.app(environ, start_response)


def filter_factory(
    _global_conf: dict[str, str], *, required: str = "true"
) -> Callable[[WSGIApplication], ClientCertificate]:
    """Builds the filter; `required` says whether anonymous clients are refused."""
    if required not in ("true", "false"):
        raise ValueError(f"client_certificate: required is true or false, not {required!r}")
    return lambda app: ClientCertificate(app, required == "true")
