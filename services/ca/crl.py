"""Revocation lists of root and intermediate, complete and delta, RFC 5280 section 5.

A verifier that checks every certificate of a chain, as NGINX's `ssl_crl` does, needs the complete
list of the root beside that of the intermediate, and refuses everybody once either has expired. It
must never be given a delta: OpenSSL takes one for a complete list and so un-revokes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from services.ca.issue import BACKDATE, SERIAL_BITS
from services.ca.signer import Issuer

# The root's key is fetched from its safe for this, so it may not be often; a year is the most that
# the CA/Browser Forum allows for authorities. Its nextUpdate has to be watched.
ROOT_CRL_LIFETIME = timedelta(days=365)

# Renewed daily, so six attempts may fail before anybody is locked out.
CRL_LIFETIME = timedelta(days=7)

# How long an entry stays behind its certificate's end: section 3.3 asks for one regular list more,
# and lists are made at least once in their lifetime.
KEPT_AFTER_END = CRL_LIFETIME

# RFC 5280 section 5.2.3: "CRL numbers up to 20 octets"; positive, so 159 bits.
NUMBER_BITS = SERIAL_BITS


@dataclass(frozen=True, slots=True)
class Revocation:
    """One certificate revoked: its serial, since when (aware), and why.

    In a delta the reason remove_from_crl says that a hold has ended.
    """

    serial: int
    at: datetime
    reason: x509.ReasonFlags = x509.ReasonFlags.unspecified


def build_crl(
    issuer: Issuer,
    *,
    number: int,
    now: datetime,
    revoked: Iterable[Revocation] = (),
    lifetime: timedelta | None = None,
    delta_url: str | None = None,
) -> x509.CertificateRevocationList:
    """Sign a version 2 list of everything that this issuer has revoked.

    `number` must rise from list to list; that, and keeping an entry until `KEPT_AFTER_END`, is the
    caller's to see to. `delta_url` becomes the FreshestCRL: without one OpenSSL applies no delta.
    thisUpdate is backdated as certificates are. Raises ValueError for a number that is negative or
    exceeds 20 octets, for a serial that comes twice, and for remove_from_crl.
    """
    if lifetime is None:
        lifetime = ROOT_CRL_LIFETIME if issuer.is_root else CRL_LIFETIME
    listed = list(revoked)
    if any(each.reason is x509.ReasonFlags.remove_from_crl for each in listed):
        raise ValueError("remove_from_crl stands in a delta only")
    builder = _builder(issuer, number, now, lifetime, listed)
    if delta_url is not None:
        point = x509.DistributionPoint(
            [x509.UniformResourceIdentifier(delta_url)], None, None, None
        )
        builder = builder.add_extension(x509.FreshestCRL([point]), critical=False)
    return issuer.signer.sign_crl(builder)


def build_delta(
    issuer: Issuer,
    *,
    number: int,
    base_number: int,
    now: datetime,
    lifetime: timedelta,
    changed: Iterable[Revocation] = (),
) -> x509.CertificateRevocationList:
    """Sign a list of what has changed since the complete list `base_number`.

    It completes every list from `base_number` on (section 5.2.4). A complete list made at the same
    time has the same number and says the same. Released holds are in `changed` with the reason
    remove_from_crl. Raises ValueError as `build_crl` does, and unless the base is older.
    """
    if not 0 <= base_number < number:
        raise ValueError("the base is not older than the delta")
    builder = _builder(issuer, number, now, lifetime, list(changed))
    # section 5.2.4: critical, so that nobody takes it for a complete list by mistake
    builder = builder.add_extension(x509.DeltaCRLIndicator(base_number), critical=True)
    return issuer.signer.sign_crl(builder)


def delta_url(crl_url: str) -> str:
    """Return where the delta is found whose complete list is at `crl_url`."""
    return f"{crl_url.removesuffix('.crl')}-delta.crl"


def crl_der(crl: x509.CertificateRevocationList) -> bytes:
    """Return a list as it is served (application/pkix-crl)."""
    return crl.public_bytes(serialization.Encoding.DER)


def crl_pem(der: bytes) -> bytes:
    """Return a list in PEM from its DER, without reading it."""
    text = base64.b64encode(der).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN X509 CRL-----", *lines, "-----END X509 CRL-----", ""]).encode()


def _builder(
    issuer: Issuer, number: int, now: datetime, lifetime: timedelta, listed: list[Revocation]
) -> x509.CertificateRevocationListBuilder:
    if not 0 <= number < 1 << NUMBER_BITS:
        raise ValueError(f"the CRL number is negative or exceeds {NUMBER_BITS} bits")
    if now.tzinfo is None:
        raise ValueError("the time has no zone")
    moment = now.replace(microsecond=0)
    if len({each.serial for each in listed}) != len(listed):
        raise ValueError("a serial is revoked twice")
    # Entries go to the constructor: adding them one by one copies the list each time, 0.37 s
    # instead of 0.13 s for 10,000.
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=issuer.certificate.subject,
        last_update=_naive(moment - BACKDATE),
        next_update=_naive(moment + lifetime),
        revoked_certificates=[_entry(each) for each in listed],
    )
    builder = builder.add_extension(issuer.key_id, critical=False)
    return builder.add_extension(x509.CRLNumber(number), critical=False)


def _entry(revocation: Revocation) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder(
        revocation.serial, _naive(revocation.at.replace(microsecond=0))
    )
    # section 5.3.1: the code is left out rather than written as unspecified
    if revocation.reason is not x509.ReasonFlags.unspecified:
        builder = builder.add_extension(x509.CRLReason(revocation.reason), critical=False)
    return builder.build()


def _naive(moment: datetime) -> datetime:
    """Return the moment in UTC without its zone, as the library's constructors hold it."""
    offset = moment.utcoffset()
    if offset is None:
        raise ValueError("the time has no zone")
    return moment.replace(tzinfo=None) - offset
