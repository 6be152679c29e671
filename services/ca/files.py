"""Keys and certificates as files: the one module of the core that touches the disk.

Every file appears whole or not at all: it is written beside its place, synced, given its final
mode, and moved. A private key is 0600 from its first byte, and never replaces another file unless
that is asked for.
"""

from __future__ import annotations

import binascii
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from services.ca.keys import PrivateKey, accept_public_key, is_private_key

KEY_MODE = 0o600
CERTIFICATE_MODE = 0o644

# A key that others can read is not a secret any more.
FORBIDDEN_KEY_BITS = stat.S_IRWXG | stat.S_IRWXO


def key_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return the key as PKCS #8 in PEM, encrypted if there is a passphrase (RFC 5958)."""
    if passphrase is not None and not passphrase:
        raise ValueError("an empty passphrase protects nothing")
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase),
    )


def pem(der: bytes) -> bytes:
    """A certificate in PEM (RFC 7468), from its DER."""
    # the library needs eight times as long
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----\n" % b"\n".join(lines)


def certificates_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Return certificates in PEM one after the other, as given: the leaf first for a full chain."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def write_key(
    path: Path, key: PrivateKey, *, passphrase: bytes | None = None, replace: bool = False
) -> None:
    """Write a private key, mode 0600.

    Raises FileExistsError, with the file untouched, if there is one already and `replace` is not
    set; two that write at once cannot both succeed.
    """
    _write(path, key_pem(key, passphrase), KEY_MODE, replace=replace)


def write_certificates(path: Path, *certificates: x509.Certificate) -> None:
    """Write one certificate or a full chain in the order given, mode 0644, over any older file."""
    _write(path, certificates_pem(certificates), CERTIFICATE_MODE, replace=True)


def write_crls(path: Path, *crls: x509.CertificateRevocationList) -> None:
    """Write revocation lists one after the other (for NGINX: of every authority of the chain)."""
    data = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in crls)
    _write(path, data, CERTIFICATE_MODE, replace=True)


def write_bundle(
    path: Path, key: PrivateKey, *certificates: x509.Certificate, replace: bool = False
) -> None:
    """Write certificate, chain and key into one file, mode 0600, as HAProxy reads them.

    Raises FileExistsError as `write_key` does.
    """
    _write(path, certificates_pem(certificates) + key_pem(key), KEY_MODE, replace=replace)


def write_data(
    path: Path, data: bytes, *, mode: int = CERTIFICATE_MODE, replace: bool = True
) -> None:
    """Write bytes made elsewhere as the functions above do; FileExistsError without `replace`."""
    _write(path, data, mode, replace=replace)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, after one of them was renamed or removed."""
    _sync_directory(directory)


def read_key(path: Path, *, passphrase: bytes | None = None) -> PrivateKey:
    """Read a private key that only its owner can read.

    Raises PermissionError if group or others may, ValueError if it is no key that we use or the
    passphrase is wrong, missing or superfluous. No message holds anything of the file.
    """
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & FORBIDDEN_KEY_BITS:
            raise PermissionError(f"{path} may be read by others (mode {mode:04o}); chmod 600 it")
        data = file.read()
    try:
        key = serialization.load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{path} is no private key, or the passphrase does not fit") from None
    if not is_private_key(key):
        raise ValueError(f"{path} holds a key that is neither ECDSA, Ed25519 nor RSA")
    accept_public_key(key.public_key())
    return key


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Read all certificates of a PEM file in their order; ValueError if there is none."""
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except ValueError:
        raise ValueError(f"{path} holds no certificates in PEM") from None


def _write(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    # 0600 until it is whole; O_EXCL so that nobody's prepared file or link is written through
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, KEY_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)  # whatever the umask
            os.fsync(file.fileno())
        if replace:
            beside.replace(path)
        else:
            path.hardlink_to(beside)  # fails if the name is taken, unlike a rename
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
