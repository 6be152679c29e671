"""OCSP, RFC 6960 and RFC 5019: what a request asks, and the signed answer.

The answers are signed by a delegate: a short-lived certificate that the authority issued for this
process, so that the authority's own key signs certificates and lists only. Each process has its
own, made at the first question and again when half of its life is over; its key is never stored.

An answer without a nonce is kept and given again while the certificate's state is as it was, for
`REFRESH`; the state itself is looked up each time, so that a revocation shows at once.
"""

from __future__ import annotations

import enum
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.ca import der
from services.ca.crl import Revocation
from services.ca.issue import BACKDATE
from services.ca.keys import KeyType, generate_key
from services.ca.refusal import Refused
from services.ca.request import CertificateRequest, make_request
from services.ca.signer import Issuer, KeySigner

# How long an answer may be used. A server that staples fetches a new one well before; half a day
# without us is survived.
ANSWER_LIFETIME = timedelta(hours=12)

# How long the same answer is given. Every answer that is given has eleven hours left.
REFRESH = timedelta(hours=1)

# Octets of a request: 32 certificates take 3 KiB, a signature with a chain the rest.
REQUEST_LIMIT = 16384

# Certificates in one request. Each costs a look into the ledger.
CERTIFICATES_LIMIT = 32

# RFC 9654 section 2.1: outside of these a request is malformed.
NONCE_LEAST, NONCE_GREATEST = 1, 128

# Answers kept by a process, of some 900 octets each.
KEPT_LIMIT = 10_000

# Section 4.3 asks for SHA-1, which RFC 5019 clients use; it only finds the issuer here.
HASHES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}

_BASIC = der.oid("1.3.6.1.5.5.7.48.1.1")
_NONCE = der.oid("1.3.6.1.5.5.7.48.1.2")
_ECDSA_SHA256 = der.sequence(der.oid("1.2.840.10045.4.3.2"))
_HASH_BY_OID = {der.oid(dotted): name for dotted, name in HASHES.items()}
_NULL = der.element(der.NULL)


class ResponseStatus(enum.IntEnum):
    """Section 4.2.1; an answer other than SUCCESSFUL is not signed."""

    SUCCESSFUL = 0
    MALFORMED_REQUEST = 1
    INTERNAL_ERROR = 2
    TRY_LATER = 3
    UNAUTHORIZED = 6


class Known(enum.Enum):
    """A certificate that is not revoked, or that was never issued."""

    GOOD = "good"
    UNKNOWN = "unknown"


Standing: TypeAlias = Known | Revocation


class MalformedRequest(Exception):
    """The octets are no OCSP request that can be answered."""


@dataclass(frozen=True, slots=True)
class CertID:
    """A certificate as the client names it; `encoded` is returned to it as it came."""

    hash_name: str | None
    name_hash: bytes
    key_hash: bytes
    serial: int
    encoded: bytes


@dataclass(frozen=True, slots=True)
class OCSPRequest:
    """What is asked: at least one certificate; `nonce` is the extension as it came, or None."""

    certificates: tuple[CertID, ...]
    nonce: bytes | None


def parse_request(data: bytes) -> OCSPRequest:
    """Read a request (section 4.1.1); a signature on it is not looked at.

    Raises MalformedRequest for anything else, and for an extension that is critical and unknown.
    """
    try:
        return _parse_request(data)
    except der.NotDER as error:
        raise MalformedRequest(str(error)) from None


def _parse_request(data: bytes) -> OCSPRequest:
    outer = der.read_one(data, der.SEQUENCE).parts()
    if not outer or [each.tag for each in outer[1:]] not in ([], [der.CONTEXT_CONSTRUCTED]):
        raise MalformedRequest("is no sequence of a request and its signature")
    parts = outer[0].expect(der.SEQUENCE).parts()
    # the default, 0, is not written in DER; some clients write it all the same
    versions = [parts.pop(0)] if parts and parts[0].tag == der.CONTEXT_CONSTRUCTED else []
    if any(der.read_integer(_only(each)) != 0 for each in versions):
        raise MalformedRequest("is not of version 1")
    if parts and parts[0].tag == der.CONTEXT_CONSTRUCTED | 1:
        parts.pop(0)  # who asks; it needs no rights
    if not parts:
        raise MalformedRequest("asks for nothing")
    asked = parts.pop(0).expect(der.SEQUENCE).parts()
    if not 0 < len(asked) <= CERTIFICATES_LIMIT:
        raise MalformedRequest(f"asks for none or more than {CERTIFICATES_LIMIT} certificates")
    nonce = None
    if parts:
        nonce = _nonce(_only(parts.pop(0).expect(der.CONTEXT_CONSTRUCTED | 2)))
    if parts:
        raise MalformedRequest("something follows the extensions")
    return OCSPRequest(tuple(_one_request(each) for each in asked), nonce)


def _one_request(element: der.Element) -> CertID:
    parts = element.expect(der.SEQUENCE).parts()
    if not 1 <= len(parts) <= 2:
        raise MalformedRequest("a single request of other than one or two parts")
    if len(parts) == 2:
        _extensions(_only(parts[1].expect(der.CONTEXT_CONSTRUCTED)))
    fields = parts[0].expect(der.SEQUENCE).parts()
    if len(fields) != 4:
        raise MalformedRequest("a certificate's name of other than four parts")
    algorithm = fields[0].expect(der.SEQUENCE).parts()
    if not algorithm or [each.whole for each in algorithm[1:]] not in ([], [_NULL]):
        raise MalformedRequest("a hash with parameters")
    return CertID(
        _HASH_BY_OID.get(algorithm[0].expect(der.OID).whole),
        fields[1].expect(der.OCTET_STRING).content,
        fields[2].expect(der.OCTET_STRING).content,
        der.read_integer(fields[3]),
        parts[0].whole,
    )


def _only(element: der.Element) -> der.Element:
    parts = element.parts()
    if len(parts) != 1:
        raise MalformedRequest("a tag around other than one element")
    return parts[0]


def _extensions(element: der.Element) -> list[tuple[bytes, bytes, bytes]]:
    """Return (OID, value, whole) of each extension that is known or not critical."""
    found: list[tuple[bytes, bytes, bytes]] = []
    for each in element.expect(der.SEQUENCE).parts():
        parts = each.expect(der.SEQUENCE).parts()
        if not 2 <= len(parts) <= 3:
            raise MalformedRequest("an extension of other than two or three parts")
        oid, value = parts[0].expect(der.OID).whole, parts[-1].expect(der.OCTET_STRING).content
        critical = len(parts) == 3 and any(parts[1].expect(der.BOOLEAN).content)
        if critical and oid != _NONCE:
            raise MalformedRequest("a critical extension that is unknown")
        found.append((oid, value, each.whole))
    if len({oid for oid, _, _ in found}) != len(found):
        raise MalformedRequest("an extension comes twice")
    return found


def _nonce(element: der.Element) -> bytes | None:
    for oid, value, whole in _extensions(element):
        if oid == _NONCE:
            octets = der.read_one(value, der.OCTET_STRING).content
            if not NONCE_LEAST <= len(octets) <= NONCE_GREATEST:
                raise MalformedRequest("a nonce that is empty or too long")
            return whole
    return None


# ---- answering ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer in DER; `this_update` and `next_update` are None unless it is signed.

    `cacheable` is set for one known certificate without a nonce: the same question has the same
    answer for a while.
    """

    status: ResponseStatus
    body: bytes
    this_update: datetime | None = None
    next_update: datetime | None = None
    cacheable: bool = False


def refusal(status: ResponseStatus) -> Answer:
    """Return an unsigned answer (section 4.2.1)."""
    return Answer(status, der.sequence(der.element(der.ENUMERATED, bytes([status]))))


Certify: TypeAlias = Callable[[Issuer, CertificateRequest], x509.Certificate]
"""Has the delegate's certificate issued, by the profile ocsp, and recorded. Raises Refused if the
authority cannot issue any more, and anything else that recording raises."""

Lookup: TypeAlias = Callable[[Issuer, int], Standing]
"""Tells how the certificate of an authority with a serial stands now."""


@dataclass(frozen=True)
class Delegate:
    """A key of this process that an authority lets sign answers."""

    certificate: x509.Certificate
    signer: KeySigner = field(repr=False)

    def is_fresh_at(self, now: datetime) -> bool:
        """Tell whether less than half of its life is over."""
        begin = self.certificate.not_valid_before_utc
        return begin <= now < begin + (self.certificate.not_valid_after_utc - begin) / 2

    def is_valid_at(self, now: datetime) -> bool:
        begin, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        return begin <= now < end


class Responder:
    """Answers for some authorities, each by a delegate of its own; safe in several threads."""

    def __init__(self, issuers: Iterable[Issuer], certify: Certify, lookup: Lookup) -> None:
        """`issuers`: the one that signs now comes first, and answers for unknown issuers."""
        self._issuers = tuple(issuers)
        self._by_hashes = {
            hashes: issuer
            for issuer in self._issuers
            for hashes in _issuer_hashes(issuer.certificate)
        }
        self._certify = certify
        self._lookup = lookup
        self._delegates: dict[bytes, Delegate] = {}
        self._kept: OrderedDict[bytes, tuple[Standing, Answer]] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, data: bytes, now: datetime) -> Answer:
        """Answer a request in DER; what cannot be read is MALFORMED_REQUEST.

        Certificates of an issuer that is unknown, or of another one than the first in the request
        (an answer has one signer), are unknown. Raises what `certify` and `lookup` raise, unless
        an answer that was given before still holds.
        """
        try:
            request = parse_request(data)
        except MalformedRequest:
            return refusal(ResponseStatus.MALFORMED_REQUEST)
        found = [self._issuer_of(each) for each in request.certificates]
        issuer = next((each for each in found if each is not None), self._issuers[0])
        single = request.certificates[0] if len(found) == 1 and request.nonce is None else None
        try:
            standings = [
                self._lookup(issuer, each.serial) if own is issuer else Known.UNKNOWN
                for own, each in zip(found, request.certificates, strict=True)
            ]
        except Exception:
            kept = None if single is None else self._given(single.encoded, None, now)
            if kept is None:
                raise
            return kept
        if single is None:
            return self._sign(issuer, request, standings, now)
        kept = self._given(single.encoded, standings[0], now)
        if kept is not None:
            return kept
        answer = self._sign(issuer, request, standings, now)
        if answer.cacheable:
            with self._lock:
                self._kept[single.encoded] = (standings[0], answer)
                self._kept.move_to_end(single.encoded)
                while len(self._kept) > KEPT_LIMIT:
                    self._kept.popitem(last=False)
        return answer

    def _issuer_of(self, asked: CertID) -> Issuer | None:
        if asked.hash_name is None:
            return None
        return self._by_hashes.get((asked.hash_name, asked.name_hash, asked.key_hash))

    def _given(self, asked: bytes, standing: Standing | None, now: datetime) -> Answer | None:
        """Return the answer given before if it is fresh; for None, if it only is still valid."""
        with self._lock:
            kept = self._kept.get(asked)
        if kept is None:
            return None
        old, answer = kept
        if answer.this_update is None or answer.next_update is None:
            return None
        begin, end = answer.this_update, answer.next_update
        if standing is not None:
            end = min(end, begin + BACKDATE + REFRESH)
            if old != standing:
                return None
        return answer if begin <= now < end else None

    def _delegate(self, issuer: Issuer, now: datetime) -> Delegate:
        name = issuer.key_id.key_identifier or b""
        with self._lock:
            old = self._delegates.get(name)
            if old is not None and old.is_fresh_at(now):
                return old
            try:
                new = self._make_delegate(issuer)
            except Exception:
                if old is not None and old.is_valid_at(now):
                    return old
                raise
            self._delegates[name] = new
            return new

    def _make_delegate(self, issuer: Issuer) -> Delegate:
        signer = KeySigner(generate_key(KeyType.P256))
        request = make_request(signer.public_key(), common_name="OCSP responder")
        return Delegate(self._certify(issuer, request), signer)

    def _sign(
        self, issuer: Issuer, request: OCSPRequest, standings: list[Standing], now: datetime
    ) -> Answer:
        try:
            delegate = self._delegate(issuer, now)
        except Refused:
            # the authority has come to its end: nobody can speak for it (section 2.3)
            return refusal(ResponseStatus.UNAUTHORIZED)
        moment = now.replace(microsecond=0)
        this_update = moment - BACKDATE
        next_update = min(moment + ANSWER_LIFETIME, delegate.certificate.not_valid_after_utc)
        key = delegate.signer.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        # section 4.2.1: SHA-1 of the key's bits, whatever hash the rest uses
        key_hash = hashlib.sha1(key, usedforsecurity=False).digest()
        responses = [
            _single(each, standing, this_update, next_update)
            for each, standing in zip(request.certificates, standings, strict=True)
        ]
        parts = [
            der.explicit(2, der.element(der.OCTET_STRING, key_hash)),
            der.generalized_time(moment),
            der.sequence(*responses),
        ]
        if request.nonce is not None:
            parts.append(der.explicit(1, der.sequence(request.nonce)))
        data = der.sequence(*parts)
        basic = der.sequence(
            data,
            _ECDSA_SHA256,
            der.element(der.BIT_STRING, b"\0", delegate.signer.sign_bytes(data)),
            der.explicit(0, der.sequence(delegate.certificate.public_bytes(Encoding.DER))),
        )
        body = der.sequence(
            der.element(der.ENUMERATED, bytes([ResponseStatus.SUCCESSFUL])),
            der.explicit(0, der.sequence(_BASIC, der.element(der.OCTET_STRING, basic))),
        )
        # an unknown certificate may be issued the next moment
        cacheable = (
            request.nonce is None and len(standings) == 1 and standings[0] is not Known.UNKNOWN
        )
        return Answer(ResponseStatus.SUCCESSFUL, body, this_update, next_update, cacheable)


def _single(
    asked: CertID, standing: Standing, this_update: datetime, next_update: datetime
) -> bytes:
    return der.sequence(
        asked.encoded,
        _standing(standing),
        der.generalized_time(this_update),
        der.explicit(0, der.generalized_time(next_update)),
    )


def _standing(standing: Standing) -> bytes:
    if standing is Known.GOOD:
        return der.element(der.CONTEXT)
    if isinstance(standing, Known):
        return der.element(der.CONTEXT | 2)
    parts = [der.generalized_time(standing.at)]
    if standing.reason is not x509.ReasonFlags.unspecified:
        code = x509.CRLReason(standing.reason).public_bytes()
        parts.append(der.explicit(0, code))
    return der.element(der.CONTEXT_CONSTRUCTED | 1, *parts)


def _issuer_hashes(certificate: x509.Certificate) -> list[tuple[str, bytes, bytes]]:
    """Every way in which a client may name this issuer (section 4.1.1): hash, name, key."""
    name = certificate.subject.public_bytes()
    # SubjectPublicKeyInfo ::= SEQUENCE { algorithm, subjectPublicKey BIT STRING }; without the
    # octet that counts unused bits
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = der.read_one(info, der.SEQUENCE).parts()[1].expect(der.BIT_STRING).content[1:]
    return [
        (hash_name, hashlib.new(hash_name, name).digest(), hashlib.new(hash_name, key).digest())
        for hash_name in HASHES.values()
    ]
