"""A certificate before its signature: the bytes to be signed, and putting both together.

The ledger records what is about to be signed before the authority's key touches it, so that a
certificate which exists is always one that was recorded. The library builds those bytes only while
it signs, so a key that belongs to nobody signs first; the same way serves a key in a token, which
signs bytes and knows no builder.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca.keys import KeyType, PrivateKey, PublicKey, generate_key, key_type, signature_hash

_SEQUENCE = 0x30
_BIT_STRING = 0x03


@lru_cache(maxsize=len(KeyType))
def _nobodys_key(kind: KeyType) -> PrivateKey:
    """A key made for this process: its signatures are thrown away."""
    return generate_key(kind)


def draft(builder: x509.CertificateBuilder, public_key: PublicKey) -> x509.Certificate:
    """Return the certificate as the authority of `public_key` would sign it, signed by nobody.

    Its `tbs_certificate_bytes` are those to be signed: they name the algorithm, which follows from
    the kind of the authority's key. Nothing trusts its signature, and it is given to no one.
    """
    return builder.sign(_nobodys_key(key_type(public_key)), signature_hash(public_key))


def assemble(unsigned: x509.Certificate, signature: bytes) -> x509.Certificate:
    """Return the draft with the authority's signature in place of nobody's.

    `signature` is as the algorithm has it in a certificate: ECDSA as a DER sequence, RSA and
    Ed25519 as plain octets.
    """
    tbs = unsigned.tbs_certificate_bytes
    whole = unsigned.public_bytes(Encoding.DER)
    # Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }, RFC 5280
    # section 4.1; no algorithm of ours needs more than 127 octets
    start = whole.index(tbs, 2) + len(tbs)
    algorithm = whole[start : start + 2 + whole[start + 1]]
    value = _element(_BIT_STRING, b"\0" + signature)
    return x509.load_der_x509_certificate(_element(_SEQUENCE, tbs + algorithm + value))


def _element(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content
