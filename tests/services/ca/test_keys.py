"""Which keys are made and which are certified."""

from __future__ import annotations

import hashlib
import math

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519

from services.ca.keys import (
    KeyType,
    accept_public_key,
    generate_key,
    has_close_primes,
    has_roca_fingerprint,
    has_small_factor,
    key_identifier,
    key_type,
    signature_hash,
)
from services.ca.refusal import Refused


def next_prime(start: int) -> int:
    """The next probable prime (Fermat to four bases: enough for a test's numbers)."""
    number = start | 1
    while any(pow(base, number - 1, number) != 1 for base in (2, 3, 5, 7)):
        number += 2
    return number


@pytest.mark.parametrize("kind", list(KeyType))
def test_each_kind_of_key_can_be_made_and_is_known_again(kind):
    """A generated key is of the kind asked for and is accepted for certificates."""
    assert key_type(accept_public_key(generate_key(kind).public_key())) is kind


def test_the_default_key_is_p256():
    """Without a wish ECDSA P-256 is made."""
    assert key_type(accept_public_key(generate_key().public_key())) is KeyType.P256


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: ec.generate_private_key(ec.SECP256K1()), "curve secp256k1"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "curve secp521r1"),
        (lambda: rsa.generate_private_key(65537, 1024), "an RSA key of 1024 bits"),
        (lambda: rsa.generate_private_key(65537, 2056), "an RSA key of 2056 bits"),
        (lambda: rsa.generate_private_key(3, 2048), "the RSA exponent"),
        (lambda: dsa.generate_private_key(1024), "neither ECDSA"),
        (ed448.Ed448PrivateKey.generate, "neither ECDSA"),
        (x25519.X25519PrivateKey.generate, "neither ECDSA"),
    ],
)
def test_other_keys_are_refused_with_the_reason(make, reason):
    """Another algorithm, curve, size or exponent is refused, and the field is the key."""
    with pytest.raises(Refused) as caught:
        accept_public_key(make().public_key())
    assert caught.value.field == "/public_key"
    assert reason in caught.value.reason


def rsa_public_key(modulus: int) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(65537, modulus).public_key()


def test_a_modulus_with_a_small_factor_is_refused():
    """A modulus divided by a prime below 1000 is found by trial division."""
    modulus = next_prime(1 << 2037 | 12345) * 1021
    assert not has_small_factor(modulus)
    modulus = (1 << 2047 | 1) // 997 * 997
    modulus += 0 if modulus & 1 else 997
    assert has_small_factor(modulus)
    with pytest.raises(Refused, match="small factor"):
        accept_public_key(rsa_public_key(modulus))


def test_close_primes_are_refused():
    """Fermat's factoring finds two primes that follow each other."""
    one = next_prime(3 << 1022 | 98765)
    modulus = one * next_prime(one + 2)
    assert modulus.bit_length() == 2048
    assert has_close_primes(modulus)
    with pytest.raises(Refused, match="too close"):
        accept_public_key(rsa_public_key(modulus))


def test_the_fingerprint_of_roca_is_refused():
    """A modulus built as the faulty library built them is recognised."""
    primes = [p for p in range(2, 168) if all(p % d for d in range(2, math.isqrt(p) + 1))]
    product = math.prod(primes)
    # no primes needed: the fingerprint is one of residues, and factors below 1000 are kept out
    factors = []
    base = (3 << 1022) // product
    for exponent, start in ((12345, base), (54321, base + (1 << 700))):
        factor = start * product + pow(65537, exponent, product)
        while math.gcd(factor, math.prod(range(2, 1000))) != 1:
            factor += product
        factors.append(factor)
    modulus = factors[0] * factors[1]
    assert has_roca_fingerprint(modulus)
    assert not has_roca_fingerprint(modulus + 2)
    assert modulus.bit_length() == 2048
    with pytest.raises(Refused, match="ROCA"):
        accept_public_key(rsa_public_key(modulus))


def test_a_sound_modulus_has_none_of_the_weaknesses():
    """The checks do not refuse what OpenSSL generates."""
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    assert not has_small_factor(modulus)
    assert not has_close_primes(modulus)
    assert not has_roca_fingerprint(modulus)


def test_key_identifier_is_method_1_of_rfc_7093():
    """It is the head of SHA-256 over the bits of the public key, as RFC 7093 section 2 says."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key()
    assert key_identifier(key) == hashlib.sha256(key.public_bytes_raw()).digest()[:20]


def test_hash_follows_the_key():
    """SHA-384 for P-384, none for Ed25519, SHA-256 otherwise."""
    names = {
        kind: getattr(
            signature_hash(accept_public_key(generate_key(kind).public_key())), "name", None
        )
        for kind in (KeyType.P256, KeyType.P384, KeyType.ED25519, KeyType.RSA2048)
    }
    assert list(names.values()) == ["sha256", "sha384", None, "sha256"]
