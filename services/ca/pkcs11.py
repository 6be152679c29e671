"""A signer whose private key stays in a PKCS #11 token: an HSM, a smart card, SoftHSM.

The library that builds certificates wants a private key object. So a throw-away key of the same
algorithm signs what is built, the to-be-signed bytes are taken out of that, the token signs them,
and the signature is put in its place: the bytes that the token signed are the bytes that were
built. Each signature is checked with the public key before anything is returned.

The token and the key are named by an address of RFC 7512::

    pkcs11:token=mooring;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so

`token`, `serial`, `manufacturer`, `model` choose the token; `object` (label) and `id` the key;
`module-path` is required, `pin-source=file:/PATH` gives the PIN, which else is the passphrase. A
PIN within the address (`pin-value`) is refused: addresses are shown and logged.

Needs the extra `mooring[pkcs11]` (python-pkcs11). A token's session does not survive a fork, so it
is opened at first use in each process.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from services.ca.keys import (
    KeyType,
    PrivateKey,
    PublicKey,
    accept_public_key,
    generate_key,
    key_type,
    signature_hash,
)
from services.ca.refusal import Refused
from services.ca.unsigned import assemble, draft

if TYPE_CHECKING:
    import pkcs11 as driver

Pin = Callable[[], bytes]

# RFC 7512 section 2.3; what is not here is either of no meaning for us or a mistake.
_PATH = frozenset({"token", "serial", "manufacturer", "model", "object", "id", "type"})
_QUERY = frozenset({"module-path", "pin-source"})

_SEQUENCE = 0x30
_BIT_STRING = 0x03


class Pkcs11Error(Exception):
    """The token, or the key in it, cannot be used; the text says why and holds no PIN."""


@dataclass(frozen=True, slots=True)
class Address:
    """A key in a token, as RFC 7512 names it; empty values choose nothing."""

    module: str
    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    label: str = ""
    key_id: bytes = b""
    pin_source: str = ""


def parse_uri(text: str) -> Address:
    """Read a `pkcs11:` address; raises Pkcs11Error naming what is missing or unknown."""
    if not text.startswith("pkcs11:"):
        raise Pkcs11Error("the address does not begin with pkcs11:")
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    found = {**_attributes(path, ";", _PATH), **_attributes(query, "&", _QUERY)}
    if "module-path" not in found:
        raise Pkcs11Error("the address has no module-path: which library drives the token?")
    if not found.get("object") and not found.get("id"):
        raise Pkcs11Error("the address names no key: it needs object= or id=")
    if unquote(found.get("type", "private")) != "private":
        raise Pkcs11Error("the address is not that of a private key")
    words = {name: unquote(value) for name, value in found.items()}
    return Address(
        module=words["module-path"],
        token=words.get("token", ""),
        serial=words.get("serial", ""),
        manufacturer=words.get("manufacturer", ""),
        model=words.get("model", ""),
        label=words.get("object", ""),
        key_id=unquote_to_bytes(found.get("id", "")),
        pin_source=words.get("pin-source", ""),
    )


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name == "pin-value":
            raise Pkcs11Error("the address holds a PIN; use pin-source or the passphrase")
        if name not in known or not equals:
            raise Pkcs11Error(f"the address has the unknown attribute {name[:32]!a}")
        if name in found:
            raise Pkcs11Error(f"the address has the attribute {name} twice")
        found[name] = value
    return found


class Pkcs11Signer:
    """A signer (`services.ca.signer.Signer`) over a key in a token.

    Raises Pkcs11Error if the library, token or key cannot be used or the PIN is wrong. The key is
    looked for at once, so a server with the wrong token does not start.
    """

    def __init__(self, uri: str, pin: Pin | None) -> None:
        self._address = parse_uri(uri)
        self._pin = _pin(self._address, pin)
        # in a process that forks afterwards, as a master that loads before its workers do
        self._key_of: tuple[int, Any] | None = None
        self._public_key = self._find_public_key()
        self._hash = signature_hash(self._public_key)

    def public_key(self) -> PublicKey:
        """Return the public half."""
        return self._public_key

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate whose fields are all set."""
        template = draft(builder, self._public_key)
        return assemble(template, self.sign_bytes(template.tbs_certificate_bytes))

    def sign_crl(
        self, builder: x509.CertificateRevocationListBuilder
    ) -> x509.CertificateRevocationList:
        """Sign a revocation list whose fields are all set."""
        template = builder.sign(self._throw_away, self._hash)
        return x509.load_der_x509_crl(self._signed(template.tbs_certlist_bytes, _der(template)))

    def sign_request(
        self, builder: x509.CertificateSigningRequestBuilder
    ) -> x509.CertificateSigningRequest:
        """Sign a request for this key, which the library would fill with the throw-away one."""
        template = builder.sign(self._throw_away, self._hash)
        # keys of one type are equally long, so no length around them changes
        before, after = (
            _public_bytes(self._throw_away.public_key()),
            _public_bytes(self._public_key),
        )
        whole = _der(template)
        if len(before) != len(after) or whole.count(before) != 1:
            raise Pkcs11Error("the key in the token is encoded in an unusual way")
        tbs = template.tbs_certrequest_bytes
        signed = self._signed(tbs.replace(before, after), whole, tbs)
        return x509.load_der_x509_csr(signed)

    def sign_bytes(self, data: bytes) -> bytes:
        """Sign octets as certificates are signed: ECDSA in DER, RSA as PKCS #1 v1.5, Ed25519."""
        signature = self._sign_in_token(data)
        self._check(signature, data)
        return signature

    @cached_property
    def _throw_away(self) -> PrivateKey:
        return generate_key(key_type(self._public_key))

    def _signed(self, tbs: bytes, template: bytes, template_tbs: bytes | None = None) -> bytes:
        """Return SEQUENCE { tbs, the template's algorithm, BIT STRING of our signature }."""
        algorithm = _after(template, tbs if template_tbs is None else template_tbs)
        signature = self.sign_bytes(tbs)
        return _tlv(_SEQUENCE, tbs + algorithm + _tlv(_BIT_STRING, b"\0" + signature))

    def _sign_in_token(self, data: bytes) -> bytes:
        import pkcs11 as driver

        kind = key_type(self._public_key)
        # a session does one thing at a time
        with _LOCK:
            key = self._private_key()
            try:
                if kind.is_rsa:
                    # the hash of every RSA signature here, see services.ca.keys.signature_hash
                    return bytes(key.sign(data, mechanism=driver.Mechanism.SHA256_RSA_PKCS))
                if kind is KeyType.ED25519:
                    return bytes(key.sign(data, mechanism=driver.Mechanism.EDDSA))
                # hashed here: small tokens do ECDSA over a digest only
                name = "sha384" if isinstance(self._hash, hashes.SHA384) else "sha256"
                digest = hashlib.new(name, data).digest()
                raw = bytes(key.sign(digest, mechanism=driver.Mechanism.ECDSA))
            except driver.PKCS11Error as error:
                # a token that was taken out and put back is found again at the next attempt
                _forget(self._address)
                self._key_of = None
                raise Pkcs11Error(f"the token did not sign: {_why(error)}") from None
        half = len(raw) // 2
        return utils.encode_dss_signature(
            int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        )

    def _check(self, signature: bytes, data: bytes) -> None:
        key = self._public_key
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, data)
            elif isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                key.verify(signature, data, ec.ECDSA(self._hash or hashes.SHA256()))
        except InvalidSignature:
            raise Pkcs11Error("the token's signature does not verify with its key") from None

    def _private_key(self) -> Any:
        if self._key_of is None or self._key_of[0] != os.getpid():
            import pkcs11 as driver

            found = self._find(driver.ObjectClass.PRIVATE_KEY)
            if found is None:
                raise Pkcs11Error("the token holds no such private key")
            self._key_of = (os.getpid(), found)
        return self._key_of[1]

    def _find_public_key(self) -> PublicKey:
        import_driver()
        import pkcs11 as driver

        with _LOCK:
            private = self._private_key()
            try:
                if private.key_type is driver.KeyType.RSA:
                    return _accepted(_rsa(private))
                public = self._find(driver.ObjectClass.PUBLIC_KEY)
                if public is None:
                    raise Pkcs11Error("the token holds no public key beside the private one")
                return _accepted(_curve(public))
            except driver.PKCS11Error as error:
                raise Pkcs11Error(f"the key cannot be read: {_why(error)}") from None

    def _find(self, kind: Any) -> Any:
        import pkcs11 as driver

        wanted: dict[Any, Any] = {driver.Attribute.CLASS: kind}
        if self._address.label:
            wanted[driver.Attribute.LABEL] = self._address.label
        if self._address.key_id:
            wanted[driver.Attribute.ID] = self._address.key_id
        try:
            found = list(_session(self._address, self._pin).get_objects(wanted))
        except driver.PKCS11Error as error:
            raise Pkcs11Error(f"the token cannot be searched: {_why(error)}") from None
        if len(found) > 1:
            raise Pkcs11Error("the address fits more than one key of the token")
        return found[0] if found else None


# ---- sessions -----------------------------------------------------------------------------------

# A login holds for a process and token, whatever signer asked for it; and a session does one thing
# at a time. One lock for all of it: signing in a token is what takes the time.
_LOCK = threading.RLock()
_sessions: dict[tuple[str, str, str], driver.Session] = {}
_process: list[int] = []


def import_driver() -> None:
    """Raise Pkcs11Error if python-pkcs11 is not installed."""
    try:
        import pkcs11 as driver  # noqa: F401 - tried, for the message
    except ImportError:
        raise Pkcs11Error("python-pkcs11 is not installed; install mooring[pkcs11]") from None


def _session(address: Address, pin: Pin | None) -> driver.Session:
    import pkcs11 as driver

    key = _session_key(address)
    inherited = _process != [] and _process != [os.getpid()]
    if inherited:
        # PKCS #11 section 5.4 (C_Initialize): a child has to initialise the library for itself
        _sessions.clear()
    if key in _sessions:
        return _sessions[key]
    try:
        library = driver.lib(address.module)
        if inherited:
            library.reinitialize()
    except (driver.PKCS11Error, RuntimeError) as error:
        raise Pkcs11Error(f"{address.module} cannot be loaded: {_why(error)}") from None
    _process[:] = [os.getpid()]
    try:
        found = [
            slot.get_token()
            for slot in library.get_slots(token_present=True)
            if _fits(slot.get_token(), address)
        ]
        if len(found) != 1:
            raise Pkcs11Error(f"{len(found) or 'no'} tokens fit the address")
        secret = pin().decode("utf-8") if pin is not None else None
        try:
            _sessions[key] = found[0].open(user_pin=secret)
        except driver.UserAlreadyLoggedIn:
            # a login is the process's, not the session's (PKCS #11 section 5.6): it holds for this
            _sessions[key] = found[0].open()
    except (driver.PinIncorrect, driver.PinLenRange, driver.PinInvalid):
        raise Pkcs11Error("the PIN is wrong") from None
    except driver.PinLocked:
        raise Pkcs11Error("the PIN is locked after too many wrong ones") from None
    except UnicodeDecodeError:
        raise Pkcs11Error("the PIN is not text in UTF-8") from None
    except driver.PKCS11Error as error:
        raise Pkcs11Error(f"the token cannot be opened: {_why(error)}") from None
    return _sessions[key]


def _session_key(address: Address) -> tuple[str, str, str]:
    return (address.module, address.token, address.serial)


def _forget(address: Address) -> None:
    _close(_sessions.pop(_session_key(address), None))


def close_sessions() -> None:
    """Log out of every token; the next signature of a signer fails, the one after it logs in."""
    with _LOCK:
        while _sessions:
            _close(_sessions.popitem()[1])


def _close(session: driver.Session | None) -> None:
    if session is not None:
        with suppress(Exception):  # of a token that is gone there is nothing to close
            session.close()


def _fits(token: driver.Token, address: Address) -> bool:
    wanted = (
        (address.token, token.label),
        (address.serial, token.serial.decode("utf-8", "replace").strip()),
        (address.manufacturer, token.manufacturer_id),
        (address.model, token.model),
    )
    return all(not want or want == have for want, have in wanted)


def _pin(address: Address, pin: Pin | None) -> Pin | None:
    if not address.pin_source:
        return pin
    source = address.pin_source
    path = Path(urlsplit(source).path if source.startswith("file:") else source)
    if not path.is_absolute():
        raise Pkcs11Error("pin-source is not file:/ABSOLUTE/PATH")

    def read() -> bytes:
        # not above: the key store imports this module when it needs it
        from services.ca.keystore import KeystoreError, passphrase_in

        try:
            return passphrase_in(path)()
        except KeystoreError as error:
            raise Pkcs11Error(str(error)) from None

    return read


def _why(error: BaseException) -> str:
    """The error's words, or its kind: the driver's errors mostly have no text."""
    return str(error) or re.sub(r"(?<!^)(?=[A-Z])", " ", type(error).__name__).lower()


# ---- keys and bytes -----------------------------------------------------------------------------


def _rsa(private: Any) -> rsa.RSAPublicKey:
    import pkcs11 as driver

    modulus = int.from_bytes(private[driver.Attribute.MODULUS], "big")
    exponent = int.from_bytes(private[driver.Attribute.PUBLIC_EXPONENT], "big")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _curve(public: Any) -> object:
    import pkcs11 as driver

    point = bytes(public[driver.Attribute.EC_POINT])
    if public.key_type is driver.KeyType.EC_EDWARDS:
        # a DER OCTET STRING by PKCS #11 2.40, the bare 32 octets by 3.0
        return ed25519.Ed25519PublicKey.from_public_bytes(point[-32:])
    from pkcs11.util.ec import encode_ec_public_key

    return serialization.load_der_public_key(encode_ec_public_key(public))


def _accepted(key: object) -> PublicKey:
    try:
        return accept_public_key(key)
    except Refused as error:
        raise Pkcs11Error(f"the key in the token: {error.reason}") from None


def _der(value: Any) -> bytes:
    return bytes(value.public_bytes(serialization.Encoding.DER))


def _public_bytes(key: PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _after(template: bytes, tbs: bytes) -> bytes:
    """Return the element that follows the to-be-signed one: the AlgorithmIdentifier."""
    start = template.index(tbs) + len(tbs)
    # 15 octets at most, so its length is one octet
    return template[start : start + 2 + template[start + 1]]


def _tlv(tag: int, value: bytes) -> bytes:
    """Encode an element in DER (X.690 section 8.1.3)."""
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + value
