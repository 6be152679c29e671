"""Signed requests: flattened JWS (RFC 7515) as RFC 8555 section 6.2 narrows it.

`parse` checks the shape and decodes, `verify` checks the signature with a key, and nothing else
here knows what is asked. Base64url is strict (no padding, no foreign characters, no loose bits), a
private key or a header that changes the meaning of others (`crit`, `b64`) is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from services.ca.acme.problems import Problem
from services.ca.keys import KeyType, PublicKey, accept_public_key, key_type
from services.ca.refusal import Refused

ALGORITHMS: Final = ("ES256", "ES384", "EdDSA", "RS256")

# The longest honest header holds an RSA 4096 key (some 700 octets), a nonce and an address.
HEADER_BYTES: Final = 4096
# Of RSA 4096.
SIGNATURE_BYTES: Final = 512
# A CSR is at most 16 KiB of DER, base64url in JSON; a certificate to revoke is smaller.
PAYLOAD_BYTES: Final = 24 * 1024
# The three in base64url, and the JSON around them. The edge reads no more.
BODY_BYTES: Final = 40 * 1024

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_CURVES: Final = {"P-256": (ec.SECP256R1(), 32), "P-384": (ec.SECP384R1(), 48)}
_OF_KEY_TYPE: Final = {
    KeyType.P256: "ES256",
    KeyType.P384: "ES384",
    KeyType.ED25519: "EdDSA",
    KeyType.RSA2048: "RS256",
    KeyType.RSA3072: "RS256",
    KeyType.RSA4096: "RS256",
}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_KID_CHARACTERS: Final = 512


def malformed(detail: str, status: int | None = None) -> Problem:
    """The problem of a request that cannot be read."""
    return Problem("malformed", detail, status=status)


def bad_algorithm(detail: str) -> Problem:
    """The problem that lists the algorithms which would do (RFC 8555 section 6.2)."""
    return Problem("badSignatureAlgorithm", detail, members={"algorithms": list(ALGORITHMS)})


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: object, what: str, greatest: int) -> bytes:
    """The octets of strict base64url; raises Problem malformed that names `what`."""
    if not isinstance(text, str):
        raise malformed(f"{what} is not a string")
    if len(text) > greatest * 4 // 3 + 2:
        raise malformed(f"{what} is longer than {greatest} octets", 413)
    if not _BASE64URL.fullmatch(text):
        raise malformed(f"{what} is not base64url without padding")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise malformed(f"{what} is not base64url without padding") from None
    if encode(data) != text:
        raise malformed(f"{what} is not canonical base64url")
    return data


@dataclass(frozen=True)
class Jwk:
    """A public key in JSON (RFC 7517); `members` are the ones that its thumbprint is made of."""

    members: Mapping[str, str]
    key: PublicKey

    @cached_property
    def thumbprint(self) -> str:
        """RFC 7638: SHA-256 over the required members in lexicographic order, base64url."""
        return encode(hashlib.sha256(self.text().encode("ascii")).digest())

    @property
    def algorithm(self) -> str:
        """The one signature algorithm that goes with this key."""
        return _OF_KEY_TYPE[key_type(self.key)]

    def text(self) -> str:
        """The canonical JSON of the key, which `parse_jwk` takes back."""
        return json.dumps(self.members, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Envelope:
    """A signed request: what its header says, and what was signed. Nothing is verified yet.

    Exactly one of `jwk` and `kid` is set.
    """

    algorithm: str
    jwk: Jwk | None
    kid: str | None
    nonce: str | None
    url: str
    payload: bytes
    signing_input: bytes
    signature: bytes


def parse(body: Mapping[str, Any]) -> Envelope:
    """Read a flattened JWS; raises Problem malformed, badSignatureAlgorithm or badPublicKey."""
    header, signing_input, payload, signature = _parts(body)
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise bad_algorithm(f"alg has to be one of {', '.join(ALGORITHMS)}")
    if ("jwk" in header) == ("kid" in header):
        raise malformed("the header has to hold either jwk or kid")
    nonce = header.get("nonce")
    if nonce is not None and not isinstance(nonce, str):
        raise malformed("nonce is not a string")
    kid = header.get("kid")
    if kid is not None and (not isinstance(kid, str) or len(kid) > _KID_CHARACTERS):
        raise malformed("kid is not the address of an account")
    jwk = parse_jwk(header["jwk"]) if "jwk" in header else None
    return Envelope(
        algorithm=algorithm,
        jwk=jwk,
        kid=kid,
        nonce=nonce,
        url=_url(header),
        payload=payload,
        signing_input=signing_input,
        signature=signature,
    )


def verify(envelope: Envelope, jwk: Jwk) -> None:
    """Check the signature; raises Problem badSignatureAlgorithm or malformed."""
    if envelope.algorithm != jwk.algorithm:
        raise bad_algorithm(f"the key signs with {jwk.algorithm}, not with {envelope.algorithm}")
    key = jwk.key
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            _verify_ec(key, envelope)
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(envelope.signature, envelope.signing_input)
        else:
            key.verify(
                envelope.signature, envelope.signing_input, padding.PKCS1v15(), hashes.SHA256()
            )
    except InvalidSignature:
        raise malformed("the signature does not verify with the key") from None


@dataclass(frozen=True)
class Binding:
    """An external account binding (RFC 8555 section 7.3.4), not verified yet."""

    kid: str
    url: str
    payload: bytes
    signing_input: bytes
    signature: bytes

    def is_by(self, key: bytes) -> bool:
        """Tell whether the HMAC is by this key, in constant time."""
        expected = hmac.digest(key, self.signing_input, "sha256")
        return hmac.compare_digest(expected, self.signature)


def parse_binding(body: object) -> Binding:
    """Read the JWS of an external account binding; raises Problem."""
    if not isinstance(body, dict):
        raise malformed("externalAccountBinding is not a JWS")
    header, signing_input, payload, signature = _parts(body)
    if header.get("alg") != "HS256":
        # RFC 8555 section 7.3.4 wants a MAC; every client that we know sends this one
        raise Problem(
            "badSignatureAlgorithm",
            "the external account binding is signed with HS256",
            members={"algorithms": ["HS256"]},
        )
    if "nonce" in header:
        raise malformed("the external account binding has no nonce of its own")
    if "jwk" in header:
        raise malformed("the external account binding has a kid and no jwk")
    kid = header.get("kid")
    if not isinstance(kid, str) or not 0 < len(kid) <= 64:
        raise malformed("the external account binding has no kid")
    return Binding(kid, _url(header), payload, signing_input, signature)


def parse_inner(body: object) -> Envelope:
    """Read the inner JWS of a key change (RFC 8555 section 7.3.5); raises Problem."""
    if not isinstance(body, dict):
        raise malformed("the payload of a key change is not a JWS")
    envelope = parse(body)
    if envelope.jwk is None:
        raise malformed("the inner JWS of a key change carries the new key as jwk")
    if envelope.nonce is not None:
        raise malformed("the inner JWS of a key change has no nonce")
    return envelope


def parse_jwk(value: object) -> Jwk:
    """Read a public key that we accept; raises Problem malformed or badPublicKey."""
    if not isinstance(value, dict):
        raise malformed("jwk is not an object")
    if _PRIVATE & value.keys():
        raise Problem("badPublicKey", "jwk holds a private or symmetric key")
    kind = value.get("kty")
    if not isinstance(kind, str) or kind not in _READERS:
        raise Problem("badPublicKey", f"kty is none of {', '.join(_READERS)}")
    try:
        members, key = _READERS[kind](value)
        return Jwk(members, accept_public_key(key))
    except Refused as refused:
        raise Problem("badPublicKey", refused.reason) from None
    except ValueError:
        raise Problem("badPublicKey", "jwk is no key") from None


def jwk_of(key: PublicKey) -> Jwk:
    """The JSON form of a key."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        name, size = next(
            (name, size) for name, (curve, size) in _CURVES.items() if curve.name == key.curve.name
        )
        point = key.public_numbers()
        x, y = (encode(number.to_bytes(size, "big")) for number in (point.x, point.y))
        return Jwk({"crv": name, "kty": "EC", "x": x, "y": y}, key)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return Jwk({"crv": "Ed25519", "kty": "OKP", "x": encode(key.public_bytes_raw())}, key)
    numbers = key.public_numbers()
    e, n = (
        encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))
        for number in (numbers.e, numbers.n)
    )
    return Jwk({"e": e, "kty": "RSA", "n": n}, key)


def load_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object without a name that stands twice; raises Problem malformed."""
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise malformed(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise malformed(f"{what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parts(body: Mapping[str, Any]) -> tuple[dict[str, Any], bytes, bytes, bytes]:
    """Header, signing input, payload and signature."""
    if "header" in body:
        raise malformed("the JWS has an unprotected header")
    if "signatures" in body:
        raise malformed("the JWS has several signatures")
    for name in ("protected", "payload", "signature"):
        if name not in body:
            raise malformed(f"the JWS has no {name}")
    protected = decode(body["protected"], "protected", HEADER_BYTES)
    payload = decode(body["payload"], "payload", PAYLOAD_BYTES)
    signature = decode(body["signature"], "signature", SIGNATURE_BYTES)
    header = load_json(protected, "protected")
    for name in ("crit", "b64"):
        # RFC 7515 section 4.1.11: what is not understood and critical must not be passed over
        if name in header:
            raise malformed(f"the header {name} is not supported")
    signing_input = f"{body['protected']}.{body['payload']}".encode("ascii")
    return header, signing_input, payload, signature


def _url(header: Mapping[str, Any]) -> str:
    url = header.get("url")
    if not isinstance(url, str):
        raise malformed("the header has no url")
    return url


def _verify_ec(key: ec.EllipticCurvePublicKey, envelope: Envelope) -> None:
    size = (key.curve.key_size + 7) // 8
    if len(envelope.signature) != 2 * size:
        raise InvalidSignature
    r, s = (
        int.from_bytes(half, "big")
        for half in (envelope.signature[:size], envelope.signature[size:])
    )
    digest = hashes.SHA384() if size == 48 else hashes.SHA256()
    key.verify(encode_dss_signature(r, s), envelope.signing_input, ec.ECDSA(digest))


def _ec(value: Mapping[str, Any]) -> tuple[dict[str, str], ec.EllipticCurvePublicKey]:
    name = value.get("crv")
    if not isinstance(name, str) or name not in _CURVES:
        raise Problem("badPublicKey", f"crv has to be one of {', '.join(_CURVES)}")
    curve, size = _CURVES[name]
    x, y = (decode(value.get(part), f"jwk {part}", size) for part in "xy")
    if len(x) != size or len(y) != size:
        raise malformed(f"the coordinates of {name} have {size} octets each")
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
    )
    members = {"crv": name, "kty": "EC", "x": value["x"], "y": value["y"]}
    return members, numbers.public_key()


def _okp(value: Mapping[str, Any]) -> tuple[dict[str, str], ed25519.Ed25519PublicKey]:
    if value.get("crv") != "Ed25519":
        raise Problem("badPublicKey", "crv of an OKP key has to be Ed25519")
    x = decode(value.get("x"), "jwk x", 32)
    members = {"crv": "Ed25519", "kty": "OKP", "x": value["x"]}
    return members, ed25519.Ed25519PublicKey.from_public_bytes(x)


def _rsa(value: Mapping[str, Any]) -> tuple[dict[str, str], rsa.RSAPublicKey]:
    e = decode(value.get("e"), "jwk e", 4)
    n = decode(value.get("n"), "jwk n", 512)
    if e[:1] == b"\0" or n[:1] == b"\0":
        # a second spelling of the same key would be a second account
        raise malformed("a number of the RSA key begins with a zero octet")
    numbers = rsa.RSAPublicNumbers(int.from_bytes(e, "big"), int.from_bytes(n, "big"))
    members = {"e": value["e"], "kty": "RSA", "n": value["n"]}
    return members, numbers.public_key()


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], tuple[dict[str, str], PublicKey]]]] = {
    "EC": _ec,
    "OKP": _okp,
    "RSA": _rsa,
}
