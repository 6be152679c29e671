"""What somebody asks to have certified: a typed request, built from values or parsed from a CSR.

A CSR (PKCS #10, RFC 2986) is a wish. Its signature proves possession of the key; of the rest only
the common name, the organisations and the alternative names are read, and every other attribute
and extension is dropped, since the profile decides those. What could not be dropped without
issuing something other than what was asked for is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from services.ca import der, names
from services.ca.keys import PublicKey, accept_public_key, is_elliptic
from services.ca.refusal import Refused, shown

# The largest honest request, RSA 4096 and 100 names, is some 10 kB of PEM.
CSR_BYTES = 16 * 1024

# As public authorities have it; a certificate is sent in every handshake.
GREATEST_NAMES = 100

# The leaf travels URL-encoded in one header line, of which gunicorn takes 8190 octets: with 32
# groups of 64 characters, an RSA 4096 key and signature it needs some 6 kB.
GREATEST_GROUPS = 32

# Critical in a CSR means "not without this". Of these the profile's own value is known to be what
# the request can mean, or is_ca is compared; anything else critical is refused.
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)

# PKCS #9 and Microsoft's own: the library reads extensions from either.
_EXTENSION_REQUESTS = frozenset(
    {
        x509.ObjectIdentifier("1.2.840.113549.1.9.14"),
        x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.14"),
    }
)

_GOOD_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

_ECDSA = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ec.ECDSA(hashes.SHA256()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: ec.ECDSA(hashes.SHA384()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: ec.ECDSA(hashes.SHA512()),
}

_PEM = re.compile(
    rb"\s*-----BEGIN (NEW )?CERTIFICATE REQUEST-----\r?\n"
    rb"([A-Za-z0-9+/=\s]+)"
    rb"-----END (?:NEW )?CERTIFICATE REQUEST-----\s*"
)

# What the parser raises for bytes that are no CSR, for the parts that it reads lazily, and for
# algorithms and name types that it does not know.
_UNREADABLE = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.AttributeNotFound,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_Raw = TypeVar("_Raw")
_Normal = TypeVar("_Normal", bound=Hashable)


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A key and the names asked for it; checked and in normal form once it exists.

    The sequences may be given as any iterable of text (addresses also as `ipaddress` objects) and
    are tuples of normal forms afterwards, in the order asked. Raises Refused for an unacceptable
    key, a malformed name, a duplicate, or more than `GREATEST_NAMES` names or `GREATEST_GROUPS`
    organisations. Whether the names may be had is the profile's and the caller's decision.
    """

    public_key: PublicKey
    common_name: str | None = None
    organizations: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[names.IPAddress, ...] = ()
    uris: tuple[str, ...] = ()
    is_ca: bool = False

    def __post_init__(self) -> None:
        accept_public_key(self.public_key)
        set_field = object.__setattr__
        if self.common_name is not None:
            names.title(self.common_name, "/common_name")
        set_field(
            self,
            "organizations",
            _each(names.principal, self.organizations, "/organizations", GREATEST_GROUPS),
        )
        set_field(
            self, "dns_names", _each(names.dns_name, self.dns_names, "/dns_names", GREATEST_NAMES)
        )
        set_field(
            self,
            "ip_addresses",
            _each(names.ip_address, self.ip_addresses, "/ip_addresses", GREATEST_NAMES),
        )
        set_field(self, "uris", _each(names.uri, self.uris, "/uris", GREATEST_NAMES))
        count = len(self.dns_names) + len(self.ip_addresses) + len(self.uris)
        if count > GREATEST_NAMES:
            raise Refused("/", f"{count} alternative names; at most {GREATEST_NAMES}")


def make_request(
    public_key: PublicKey,
    *,
    common_name: str | None = None,
    organizations: Iterable[str] = (),
    dns_names: Iterable[str] = (),
    ip_addresses: Iterable[str | names.IPAddress] = (),
    uris: Iterable[str] = (),
    is_ca: bool = False,
) -> CertificateRequest:
    """Build a request from values, for a key whose possession needs no proof; see the class."""
    return CertificateRequest(
        public_key,
        common_name,
        tuple(organizations),
        tuple(dns_names),
        # text becomes addresses here, where the types still say so
        _each(names.ip_address, ip_addresses, "/ip_addresses", GREATEST_NAMES),
        tuple(uris),
        is_ca,
    )


def parse_csr(data: bytes) -> CertificateRequest:
    """Read a CSR in DER, or in PEM holding nothing else, and check its own signature.

    Raises Refused, and nothing else, for whatever bytes: "/csr" if they are no canonical CSR of at
    most `CSR_BYTES` octets or its signature does not verify, else the field that is not acceptable.
    """
    if len(data) > CSR_BYTES:
        raise Refused("/csr", f"larger than {CSR_BYTES} octets")
    csr = _load(_octets(data))
    try:
        key = csr.public_key()
    except _UNREADABLE:
        raise Refused("/public_key", "the key or its algorithm cannot be read") from None
    public_key = accept_public_key(key)
    _check_signature(csr, public_key)
    try:
        common_name, organizations = _subject(csr.subject)
        _check_attributes(csr)
        alternatives, is_ca = _extensions(csr)
        dns_names, addresses, uris = _alternative_names(alternatives)
    except der.NotDER as error:
        raise Refused("/csr", f"not canonical DER: {error}") from None
    except x509.DuplicateExtension:
        raise Refused("/csr", "an extension stands in the request twice") from None
    except _UNREADABLE:
        raise Refused("/csr", "its subject or extensions cannot be read") from None
    return CertificateRequest(
        public_key, common_name, organizations, dns_names, addresses, uris, is_ca
    )


def _each(
    normalise: Callable[[_Raw, str], _Normal], values: Iterable[_Raw], field: str, greatest: int
) -> tuple[_Normal, ...]:
    if values == ():
        return ()
    found: dict[_Normal, None] = {}
    for place, value in enumerate(values):
        if place >= greatest:
            raise Refused(field, f"more than {greatest} values")
        normal = normalise(value, f"{field}/{place}")
        if normal in found:
            raise Refused(f"{field}/{place}", f"{shown(str(normal))} is asked for twice")
        found[normal] = None
    return tuple(found)


def _octets(data: bytes) -> bytes:
    if not data.lstrip().startswith(b"-----"):
        return data
    match = _PEM.fullmatch(data)
    if match is None:
        raise Refused("/csr", "not exactly one PEM block CERTIFICATE REQUEST")
    try:
        return base64.b64decode(b"".join(match[2].split()), validate=True)
    except binascii.Error:
        raise Refused("/csr", "the PEM block is not base64") from None


def _load(data: bytes) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_der_x509_csr(data)
        again = csr.public_bytes(serialization.Encoding.DER)
    except _UNREADABLE:
        raise Refused("/csr", "not a PKCS #10 certificate request in DER or PEM") from None
    # The library refuses BER in all that it reads; what it lets pass is refused here and by
    # `_check_unread`. One request then has one encoding but for the signature's own randomness.
    if again != data:
        raise Refused("/csr", "not canonical DER")
    # the octet before the signature counts the bits of its last octet that do not belong to it
    if data[-len(csr.signature) - 1]:
        raise Refused("/csr", "not canonical DER: its signature has unused bits")
    return csr


def _check_signature(csr: x509.CertificateSigningRequest, key: PublicKey) -> None:
    try:
        ecdsa = _ECDSA.get(csr.signature_algorithm_oid)
        if ecdsa is not None and is_elliptic(key):
            # what the library does too, but for reading the key once more: a fifth of the time
            key.verify(csr.signature, csr.tbs_certrequest_bytes, ecdsa)
            return
        algorithm = csr.signature_hash_algorithm
        valid = (algorithm is None or isinstance(algorithm, _GOOD_HASHES)) and (
            csr.is_signature_valid
        )
    except (InvalidSignature, *_UNREADABLE):
        valid = False
    if not valid:
        raise Refused("/csr", "its signature by its own key does not verify, or uses a weak hash")


def _subject(subject: x509.Name) -> tuple[str | None, tuple[str, ...]]:
    common_names = [_text(a) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(common_names) > 1:
        raise Refused("/common_name", "more than one common name")
    organizations = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return (common_names[0] if common_names else None, tuple(_text(a) for a in organizations))


def _text(attribute: x509.NameAttribute[str | bytes]) -> str:
    if isinstance(attribute.value, bytes):
        raise Refused("/csr", "a subject attribute is not text")
    return attribute.value


def _check_attributes(csr: x509.CertificateSigningRequest) -> None:
    wishes = [attribute.oid in _EXTENSION_REQUESTS for attribute in csr.attributes]
    # The library reads the first extension request; a second could hold names it does not show.
    if wishes.count(True) > 1:
        raise Refused("/csr", "more than one extension request attribute")
    if not all(wishes):
        der.check(csr.tbs_certrequest_bytes)  # the library has not read them


def _extensions(
    csr: x509.CertificateSigningRequest,
) -> tuple[x509.SubjectAlternativeName | None, bool]:
    """The alternative names, and whether an authority is asked for.

    Raises NotDER for what is dropped without the library's having read it, Refused for what is
    critical and would be dropped.
    """
    alternatives, is_ca = None, False
    for extension in csr.extensions:
        value = extension.value
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise Refused(
                "/csr", f"asks for the critical extension {extension.oid.dotted_string}, not issued"
            )
        if isinstance(value, x509.SubjectAlternativeName):
            alternatives = value
        elif isinstance(value, x509.BasicConstraints):
            is_ca = value.ca
        elif isinstance(value, x509.UnrecognizedExtension):
            der.check(value.value)
        elif isinstance(value, x509.KeyUsage):
            # a list of named bits ends with a one (X.690 section 11.2.2)
            wished = value.public_bytes()
            if wished not in csr.tbs_certrequest_bytes:
                raise der.NotDER("a key usage with trailing zeros")
    return alternatives, is_ca


def _alternative_names(
    wanted: x509.SubjectAlternativeName | None,
) -> tuple[tuple[str, ...], tuple[names.IPAddress, ...], tuple[str, ...]]:
    if wanted is None:
        return (), (), ()
    dns_names: list[str] = []
    addresses: list[names.IPAddress] = []
    uris: list[str] = []
    for place, name in enumerate(wanted):
        if isinstance(name, x509.DNSName):
            dns_names.append(name.value)
        elif isinstance(name, x509.UniformResourceIdentifier):
            uris.append(name.value)
        elif isinstance(name, x509.IPAddress):
            addresses.append(_single_address(name, place))
        else:
            raise Refused("/csr", f"alternative name {place} is not DNS, IP or URI")
    return tuple(dns_names), tuple(addresses), tuple(uris)


def _single_address(name: x509.IPAddress, place: int) -> names.IPAddress:
    # 8 or 32 octets are an address with a mask, which has a meaning in name constraints only
    value = name.value
    if isinstance(value, names.IPAddress):
        return value
    raise Refused("/csr", f"alternative name {place} is a network, not an address")
