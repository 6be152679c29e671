"""Checking client chains: by the `cryptography` library's path validation, never by hand.

The library knows no revocation: whoever relies on the answer also asks the ledger for the serial.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from services.ca.refusal import Refused

# Ours is one intermediate; one more allows a cross-signed root.
GREATEST_DEPTH = 2


def verify_client_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    *,
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Return the chain from the leaf to one of the roots, if it is one of a TLS client at `now`.

    Beside the path validation of RFC 5280 section 6 the leaf must say digitalSignature and
    clientAuth: OpenSSL, and so NGINX, accepts a client certificate without extended key usage.
    Alternative names may be absent, for the name of a user is the common name. Raises Refused with
    the field "/certificate"; the revocation state is not looked at.
    """
    if now.tzinfo is None:
        raise ValueError("the time has no zone")
    verifier = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(now)
        .max_chain_depth(GREATEST_DEPTH)
        .extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(),
            ee_policy=_LEAF_POLICY,
        )
        .build_client_verifier()
    )
    try:
        return tuple(verifier.verify(leaf, list(intermediates)).chain)
    except (VerificationError, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise Refused("/certificate", f"the chain is not a client's: {error}") from None


def _require_client_auth(
    _policy: Policy, _leaf: x509.Certificate, purposes: x509.ExtendedKeyUsage
) -> None:
    if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        raise ValueError("the extended key usage is not clientAuth")


def _require_signature(_policy: Policy, _leaf: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.digital_signature or usage.key_cert_sign:
        raise ValueError("the key usage is not that of a client")


_LEAF_POLICY = (
    ExtensionPolicy.webpki_defaults_ee()
    .may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _require_client_auth)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _require_signature)
)
