"""Revocation lists: complete ("base") lists of root and intermediate, RFC 5280 section 5.

A verifier that checks every certificate of a chain, as NGINX's `ssl_crl` does, needs the list of
the root beside that of the intermediate, and refuses everybody once either has expired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from services.ca.issue import BACKDATE, SERIAL_BITS
from services.ca.signer import Issuer

# The root's key is fetched from its safe for this, so it may not be often; a year is the most that
# the CA/Browser Forum allows for authorities. Its nextUpdate has to be watched.
ROOT_CRL_LIFETIME = timedelta(days=365)

# Renewed daily, so six attempts may fail before anybody is locked out.
CRL_LIFETIME = timedelta(days=7)

# RFC 5280 section 5.2.3: "CRL numbers up to 20 octets"; positive, so 159 bits.
NUMBER_BITS = SERIAL_BITS


@dataclass(frozen=True, slots=True)
class Revocation:
    """One certificate revoked: its serial, since when (aware), and why."""

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
) -> x509.CertificateRevocationList:
    """Sign a version 2 list of everything that this issuer has revoked.

    `number` must rise from list to list; that, and keeping an entry until one list after its
    certificate's end (section 5), is the caller's to see to. thisUpdate is backdated as
    certificates are. Raises ValueError for a number that is negative or exceeds 20 octets, and for
    a serial that comes twice.
    """
    if not 0 <= number < 1 << NUMBER_BITS:
        raise ValueError(f"the CRL number is negative or exceeds {NUMBER_BITS} bits")
    if now.tzinfo is None:
        raise ValueError("the time has no zone")
    moment = now.replace(microsecond=0)
    if lifetime is None:
        lifetime = ROOT_CRL_LIFETIME if issuer.is_root else CRL_LIFETIME
    listed = list(revoked)
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
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    return issuer.signer.sign_crl(builder)


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
