"""Who signs: a small interface over a private key, and an authority that has one.

A `Signer` is all that the core asks of a key, so that a key in a PKCS #11 token can stand behind
it. An `Issuer` is a certificate of an authority together with its signer, what lies above it, and
the addresses that are written into what it issues.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from services.ca.keys import (
    PrivateKey,
    PublicKey,
    accept_public_key,
    signature_hash,
)


class Signer(Protocol):
    """A private key that signs what is built; the algorithm follows from the key."""

    def public_key(self) -> PublicKey:
        """Return the public half."""

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate whose fields are all set."""

    def sign_crl(
        self, builder: x509.CertificateRevocationListBuilder
    ) -> x509.CertificateRevocationList:
        """Sign a revocation list whose fields are all set."""

    def sign_bytes(self, data: bytes) -> bytes:
        """Sign octets as certificates are signed: ECDSA in DER, RSA as PKCS #1 v1.5, Ed25519."""


class KeySigner:
    """A signer whose private key is in this process's memory."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self._public_key = accept_public_key(key.public_key())
        self._hash = signature_hash(self._public_key)
        self._sign_bytes = _sign_bytes(key, self._hash)

    def public_key(self) -> PublicKey:
        return self._public_key

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, self._hash)

    def sign_crl(
        self, builder: x509.CertificateRevocationListBuilder
    ) -> x509.CertificateRevocationList:
        return builder.sign(self._key, self._hash)

    def sign_bytes(self, data: bytes) -> bytes:
        return self._sign_bytes(data)


def _sign_bytes(
    key: PrivateKey, algorithm: hashes.SHA256 | hashes.SHA384 | None
) -> Callable[[bytes], bytes]:
    """How this key signs octets, with what does not change from one to the next made once."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        ecdsa = ec.ECDSA(algorithm or hashes.SHA256())
        return lambda data: key.sign(data, ecdsa)
    if isinstance(key, rsa.RSAPrivateKey):
        scheme, sha256 = padding.PKCS1v15(), hashes.SHA256()
        return lambda data: key.sign(data, scheme, sha256)
    return key.sign


@dataclass(frozen=True)
class Issuer:
    """An authority that can sign.

    `above` are the certificates between this one and the trust anchor and the anchor itself,
    nearest first; empty for a root. `crl_url`, `certificate_url` (DER, this authority's own
    certificate) and `ocsp_url` are written into what it issues; they are http, since fetching them
    over TLS would need the verification that they serve (RFC 5280 section 8).

    Raises ValueError if the certificate is no authority's, is not the signer's, does not follow
    from `above`, or an address is not http.
    """

    certificate: x509.Certificate
    signer: Signer = field(repr=False)
    above: tuple[x509.Certificate, ...] = ()
    crl_url: str | None = None
    certificate_url: str | None = None
    ocsp_url: str | None = None

    def __post_init__(self) -> None:
        extensions = self.certificate.extensions
        try:
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = extensions.get_extension_for_class(x509.KeyUsage).value
            extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound as error:
            raise ValueError(f"the issuer's certificate is not an authority's: {error}") from None
        if not constraints.ca or not usage.key_cert_sign:
            raise ValueError("the issuer's certificate may not sign certificates")
        own_key = accept_public_key(self.certificate.public_key())
        if own_key != self.signer.public_key():
            raise ValueError("the issuer's certificate and its key do not belong together")
        lower = self.certificate
        for upper in self.above:
            _check_directly_issued(lower, upper)
            lower = upper
        for url in (self.crl_url, self.certificate_url, self.ocsp_url):
            if url is not None and not url.startswith("http://"):
                raise ValueError(f"{url!r} is not an http address")

    @property
    def is_root(self) -> bool:
        return not self.above

    @property
    def root(self) -> x509.Certificate:
        return self.above[-1] if self.above else self.certificate

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What is sent behind a leaf: this and all above it but the root; empty for a root."""
        return () if self.is_root else (self.certificate, *self.above[:-1])

    @cached_property
    def path_length(self) -> int | None:
        """How many authorities may stand below this one; None for any number."""
        extensions = self.certificate.extensions
        return extensions.get_extension_for_class(x509.BasicConstraints).value.path_length

    @cached_property
    def key_id(self) -> x509.AuthorityKeyIdentifier:
        """The authority key identifier of what it issues: its own subject key identifier, copied.

        keyIdentifier only: with issuer and serial a certificate could not be verified through a
        cross-signed or renewed certificate of the same authority.
        """
        extensions = self.certificate.extensions
        own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier(own.key_identifier, None, None)

    @cached_property
    def purposes(self) -> frozenset[x509.ObjectIdentifier] | None:
        """The extended key usages to which it is bound, or None if to none."""
        try:
            extension = self.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        except x509.ExtensionNotFound:
            return None
        return frozenset(extension.value)

    @cached_property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """Its own key and those above it; none of them may be certified for anybody else."""
        return tuple(
            accept_public_key(certificate.public_key())
            for certificate in (self.certificate, *self.above)
        )

    @cached_property
    def pointers(self) -> tuple[x509.ExtensionType, ...]:
        """CRLDistributionPoints and AuthorityInformationAccess, where it has the addresses."""
        found: list[x509.ExtensionType] = []
        if self.crl_url is not None:
            name = x509.UniformResourceIdentifier(self.crl_url)
            point = x509.DistributionPoint([name], None, None, None)
            found.append(x509.CRLDistributionPoints([point]))
        methods = (
            (x509.oid.AuthorityInformationAccessOID.OCSP, self.ocsp_url),
            (x509.oid.AuthorityInformationAccessOID.CA_ISSUERS, self.certificate_url),
        )
        access = [
            x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
            for method, url in methods
            if url is not None
        ]
        if access:
            found.append(x509.AuthorityInformationAccess(access))
        return tuple(found)

    def is_valid_at(self, now: datetime) -> bool:
        """Tell whether `now` lies in the validity of its certificate, both ends included."""
        begin, end = self.validity
        return begin <= now <= end

    @cached_property
    def validity(self) -> tuple[datetime, datetime]:
        """notBefore and notAfter of its certificate."""
        return self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc


def _check_directly_issued(lower: x509.Certificate, upper: x509.Certificate) -> None:
    try:
        lower.verify_directly_issued_by(upper)
    except Exception as error:  # the library raises four kinds; each means the same here
        raise ValueError("the issuer's chain does not hold together") from error
