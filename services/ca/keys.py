"""Key types that Mooring issues for: making keys, judging public keys, naming them.

Accepted: ECDSA on P-256 and P-384 (named curves), Ed25519, RSA of 2048, 3072 or 4096 bits with the
exponent 65537. An RSA modulus is also tried for the weaknesses that can be seen in a public key.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeAlias, TypeGuard

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.ca.refusal import Refused

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

FIELD = "/public_key"

RSA_EXPONENT = 65537

# RFC 7093, section 2, method 1: the leftmost 160 bits of the hash.
KEY_IDENTIFIER_BYTES = 20

# Fermat's method finds the factors in few steps only when both primes are close together, which a
# sound generator never produces (CVE-2022-26320 was found this way); 100 steps cost some 30 us.
FERMAT_STEPS = 100

# Trial division below this bound finds the moduli of broken generators; a sound modulus has no
# factor below 2^1023.
SMALL_FACTOR_BOUND = 1000


class KeyType(enum.Enum):
    """A kind and size of key; the value is its name in configuration and in refusals."""

    P256 = "p256"
    P384 = "p384"
    ED25519 = "ed25519"
    RSA2048 = "rsa2048"
    RSA3072 = "rsa3072"
    RSA4096 = "rsa4096"

    @property
    def is_rsa(self) -> bool:
        return self in _RSA_BITS


_RSA_BITS = {KeyType.RSA2048: 2048, KeyType.RSA3072: 3072, KeyType.RSA4096: 4096}
_RSA_TYPES = {bits: kind for kind, bits in _RSA_BITS.items()}
_CURVES: dict[KeyType, ec.EllipticCurve] = {
    KeyType.P256: ec.SECP256R1(),
    KeyType.P384: ec.SECP384R1(),
}
_CURVE_TYPES: dict[str, KeyType] = {curve.name: kind for kind, curve in _CURVES.items()}


def generate_key(kind: KeyType = KeyType.P256) -> PrivateKey:
    """Make a new private key of this kind from the operating system's random source."""
    if kind in _CURVES:
        return ec.generate_private_key(_CURVES[kind])
    if kind is KeyType.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(RSA_EXPONENT, _RSA_BITS[kind])


def is_private_key(key: object) -> TypeGuard[PrivateKey]:
    """Tell whether the object is a private key of an algorithm that we use."""
    return isinstance(
        key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
    )


def accept_public_key(key: object) -> PublicKey:
    """Return the key, now typed, if it is one that we certify.

    Raises Refused for another algorithm, curve, size or exponent and for an RSA modulus with a
    known weakness.
    """
    if is_elliptic(key):
        if key.curve.name not in _CURVE_TYPES:
            raise Refused(FIELD, f"curve {key.curve.name} is not issued for; use P-256 or P-384")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        _accept_rsa(key)
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise Refused(FIELD, "the key is neither ECDSA, Ed25519 nor RSA")


@lru_cache(64)
def _is_elliptic_class(kind: Hashable) -> bool:
    return isinstance(kind, type) and issubclass(kind, ec.EllipticCurvePublicKey)


def is_elliptic(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Tell whether it is an ECDSA key.

    The library's key types are abstract classes, of which asking costs a microsecond each time.
    """
    kind: Any = type(key)
    return _is_elliptic_class(kind)


def key_type(key: PublicKey) -> KeyType:
    """Name the kind of an accepted key."""
    if is_elliptic(key):
        return _CURVE_TYPES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PublicKey):
        return KeyType.ED25519
    return _RSA_TYPES[key.key_size]


def subject_public_key_info(key: PublicKey) -> bytes:
    """Return the key as a certificate holds it, in DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def signature_hash(key: PublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Choose the hash with which this key signs.

    SHA-256 for P-256 and RSA, SHA-384 for P-384 (the hash as long as the curve, RFC 5480 section
    4), None for Ed25519, which has its own inside (RFC 8410).
    """
    kind = key_type(key)
    if kind is KeyType.ED25519:
        return None
    return hashes.SHA384() if kind is KeyType.P384 else hashes.SHA256()


def key_identifier(key: PublicKey) -> bytes:
    """Return the 20 octets that name a key: RFC 7093 section 2, method 1.

    They are the head of SHA-256 over the subjectPublicKey bits, without tag, length and the count
    of unused bits. (RFC 5280 section 4.2.1.2 shows the same with SHA-1.)
    """
    return identifier_of(subject_public_key_info(key), key_type(key))


def identifier_of(info: bytes, kind: KeyType) -> bytes:
    """`key_identifier` of a key of this kind whose SubjectPublicKeyInfo is given."""
    bits = info[_BEFORE_BITS[kind] :]
    return hashlib.sha256(bits).digest()[:KEY_IDENTIFIER_BYTES]


# Octets of a SubjectPublicKeyInfo before the key's bits: tags, lengths, the algorithm and the count
# of unused bits. They are the same for all keys of a kind (RFC 5480, RFC 8410, RFC 3279).
_BEFORE_BITS = {KeyType.P256: 26, KeyType.P384: 23, KeyType.ED25519: 12} | dict.fromkeys(
    _RSA_BITS, 24
)


def _accept_rsa(key: rsa.RSAPublicKey) -> None:
    if key.key_size not in _RSA_TYPES:
        raise Refused(FIELD, f"an RSA key of {key.key_size} bits; use 2048, 3072 or 4096")
    numbers = key.public_numbers()
    if numbers.e != RSA_EXPONENT:
        raise Refused(FIELD, f"the RSA exponent is not {RSA_EXPONENT}")
    if has_small_factor(numbers.n):
        raise Refused(FIELD, "the RSA modulus has a small factor")
    if has_roca_fingerprint(numbers.n):
        raise Refused(FIELD, "the RSA key has the fingerprint of CVE-2017-15361 (ROCA)")
    if has_close_primes(numbers.n):
        raise Refused(FIELD, "the primes of the RSA key are too close together")


def _primes_below(bound: int) -> list[int]:
    return [n for n in range(2, bound) if all(n % d for d in range(2, math.isqrt(n) + 1))]


_SMALL_PRIMORIAL = math.prod(_primes_below(SMALL_FACTOR_BOUND))


def has_small_factor(modulus: int) -> bool:
    """Tell whether a prime below 1000 divides the modulus."""
    return math.gcd(modulus, _SMALL_PRIMORIAL) != 1


def _powers(prime: int) -> frozenset[int]:
    found = {1}
    power = RSA_EXPONENT % prime
    while power not in found:
        found.add(power)
        power = power * RSA_EXPONENT % prime
    return frozenset(found)


# The 39 smallest primes, as the library with the fault used for its smallest keys; larger keys used
# more of them, so these suffice to recognise all (Nemec et al., "The Return of Coppersmith's
# Attack", CCS 2017). Primes of which 65537 generates every residue tell nothing and are left out.
_ROCA_RESIDUES = [
    (prime, _powers(prime)) for prime in _primes_below(168)[1:] if len(_powers(prime)) < prime - 1
]


def has_roca_fingerprint(modulus: int) -> bool:
    """Tell whether the modulus is a power of 65537 modulo each of the small primes.

    Both primes of an affected key are built as k*M + (65537^a mod M), M the product of the first
    primes, so their product is a power of 65537 modulo each of these. By chance a sound modulus is
    so about once in 2^27.
    """
    return all(modulus % prime in residues for prime, residues in _ROCA_RESIDUES)


_SQUARES_MODULO_64 = frozenset(n * n % 64 for n in range(64))


def has_close_primes(modulus: int) -> bool:
    """Tell whether Fermat's method factors the modulus within `FERMAT_STEPS` steps."""
    root = math.isqrt(modulus)
    root += root * root < modulus
    rest = root * root - modulus
    for _ in range(FERMAT_STEPS):
        # most numbers are seen not to be squares by their last six bits
        if rest & 63 in _SQUARES_MODULO_64 and math.isqrt(rest) ** 2 == rest:
            return True
        rest += 2 * root + 1
        root += 1
    return False
