"""The authorities' keys and certificates on disk, as the service reads them at start.

DIRECTORY ([ca] directory) of a server::

    root.crt  root.crl               what everybody trusts, and the root's own list; no root key
    active                           the id of the authority that signs, one line
    authorities/ID/certificate.pem   an intermediate; ID is its subject key identifier, 40 digits
                   key.pem           its key, encrypted PKCS #8, mode 0600; or
                   key.uri           where the key is, RFC 7512 (pkcs11:...)
                   activated         when it signed first; without it, it is prepared
                   retired           when its key was removed on purpose
    pending/ID/request.csr           an intermediate that the root has not signed yet, with its key

How all of it is made and changed is in `ceremony.py`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from services.ca import files
from services.ca.keys import PrivateKey, is_private_key
from services.ca.signer import Issuer, KeySigner, Signer

Passphrase = Callable[[], bytes]

DEFAULT_DIRECTORY = Path("/etc/mooring/ca")

# A passphrase is a line; more is a mistake (a key file given in its place).
PASSPHRASE_LIMIT = 1024

_ID = re.compile(r"[0-9a-f]{40}")


class KeystoreError(Exception):
    """The key material cannot be used as it is; the text names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Urls:
    """Where an authority's list and certificate are fetched and its OCSP is asked, or None.

    `{id}` stands for the authority's id. Written into what it issues: plain http (RFC 5280
    section 8). The root's list and certificate are found by its own id under the same patterns.
    """

    crl: str | None = None
    certificate: str | None = None
    ocsp: str | None = None

    @classmethod
    def below(cls, public_url: str | None) -> Urls:
        """The paths that the certificate service serves below its public address; none for ""."""
        if not public_url:
            return cls()
        base = public_url.rstrip("/")
        return cls(f"{base}/crl/{{id}}.crl", f"{base}/ca/{{id}}.cer", f"{base}/ocsp")

    def of(self, authority_id: str) -> Urls:
        """The same addresses with an id put in."""
        return Urls(
            *(
                None if each is None else each.replace("{id}", authority_id)
                for each in (self.crl, self.certificate, self.ocsp)
            )
        )


@dataclass(frozen=True, slots=True)
class RetiredIssuer:
    """An authority that was: its key is gone and nothing of it lives; kept for the record."""

    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...]


@dataclass(frozen=True, slots=True)
class Authorities:
    """What a server holds: the root's certificate and list, and the intermediates.

    `active` signs certificates. `others` are prepared or rotated out, each still signing its own
    lists and answers, or retired.
    """

    root: x509.Certificate
    root_crl_pem: bytes
    active: Issuer
    others: tuple[Issuer | RetiredIssuer, ...] = ()

    def all(self) -> tuple[Issuer, ...]:
        """Return every authority that has its key, the active one first."""
        return (self.active, *(each for each in self.others if isinstance(each, Issuer)))

    def bundle_pem(self) -> bytes:
        """Return every intermediate that has its key, then the root: NGINX's trust file."""
        return files.certificates_pem([*(each.certificate for each in self.all()), self.root])

    def find(self, authority: str) -> Issuer | None:
        """Return the authority of this id that has its key, if there is one."""
        return next(
            (each for each in self.all() if authority_id(each.certificate) == authority), None
        )


def is_authority_id(text: str) -> bool:
    """Tell whether a text has the form of an authority's id."""
    return _ID.fullmatch(text) is not None


def authority_id(certificate: x509.Certificate) -> str:
    """Return an authority's id: its subject key identifier, 40 hexadecimal digits.

    Raises ValueError if it has none of 20 octets (those of other software may differ).
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no subject key identifier") from None
    text = extension.value.digest.hex()
    if not is_authority_id(text):
        raise ValueError("the certificate's subject key identifier is not 20 octets long")
    return text


# ---- reading ------------------------------------------------------------------------------------


def load(directory: Path, passphrase: Passphrase | None, *, urls: Urls) -> Authorities:
    """Read everything that a server needs to sign; `passphrase` is asked at most once.

    Without a passphrase only unencrypted keys and tokens that need no other PIN can be used.
    Raises KeystoreError, naming the file, for anything missing, readable by others, not fitting
    together, or a wrong passphrase. Dates are not judged: an expired authority still signs its
    last lists (`status` of the command and the service's metrics tell of dates).
    """
    asked = None if passphrase is None else _once(passphrase)
    root = read_root(directory)
    root_crl_pem = read_file(directory / "root.crl", "make it with `mooring ca root-crl`")
    read_root_crl(directory, root)
    active_id = read_active(directory)
    issuers: dict[str, Issuer | RetiredIssuer] = {}
    for place in authority_directories(directory):
        issuers[place.name] = _load_authority(place, root, asked, urls)
    active = issuers.pop(active_id, None)
    path = directory / "active"
    if active is None:
        raise KeystoreError(path, f"names {active_id}, of which there is no directory")
    if isinstance(active, RetiredIssuer):
        raise KeystoreError(path, f"names {active_id}, which is retired")
    return Authorities(root, root_crl_pem, active, tuple(issuers.values()))


def read_root(directory: Path) -> x509.Certificate:
    """Read root.crt, which has to be one self-signed authority."""
    path = directory / "root.crt"
    certificate = read_certificate(path)
    try:
        certificate.verify_directly_issued_by(certificate)
        authority_id(certificate)
    except Exception as error:  # the library raises four kinds; each means the same here
        raise KeystoreError(path, f"is no self-signed root: {error}") from None
    return certificate


def read_root_crl(directory: Path, root: x509.Certificate) -> x509.CertificateRevocationList:
    """Read root.crl and check that the root signed it; its dates are not judged."""
    path = directory / "root.crl"
    crl = read_crl(path)
    if not is_list_of(root, crl):
        raise KeystoreError(path, "is not signed by this root")
    return crl


def read_crl(path: Path) -> x509.CertificateRevocationList:
    """Read the one list of a PEM file; raises KeystoreError."""
    data = read_file(path, "make it with `mooring ca root-crl`")
    try:
        return x509.load_pem_x509_crl(data)
    except ValueError:
        raise KeystoreError(path, "is no revocation list in PEM") from None


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """Return the list's number, 0 if it has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def is_list_of(root: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    """Tell whether this root has signed the list."""
    try:
        return crl.issuer == root.subject and crl.is_signature_valid(_any_key(root))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def read_certificate(path: Path) -> x509.Certificate:
    """Read the one certificate of a PEM file; raises KeystoreError."""
    data = read_file(path)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise KeystoreError(path, "holds no certificate in PEM") from None
    if len(found) != 1:
        raise KeystoreError(path, f"holds {len(found)} certificates where one is expected")
    return found[0]


def read_active(directory: Path) -> str:
    """Return the id of the authority that signs."""
    path = directory / "active"
    text = (
        read_file(path, "choose one with `mooring ca activate`").decode("ascii", "replace").strip()
    )
    if not is_authority_id(text):
        raise KeystoreError(path, "does not hold an authority's id (40 hexadecimal digits)")
    return text


def authority_directories(directory: Path) -> list[Path]:
    """Return the directories of all authorities, by id; what is not ours there is refused."""
    above = directory / "authorities"
    try:
        places = sorted(path for path in above.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise KeystoreError(above, _reason(error)) from None
    for place in places:
        if not is_authority_id(place.name) or not place.is_dir():
            raise KeystoreError(place, "is not the directory of an authority")
    return places


def pending(directory: Path) -> list[Path]:
    """Return the directories of the keys that wait for a certificate."""
    above = directory / "pending"
    if not above.is_dir():
        return []
    return sorted(path for path in above.iterdir() if is_authority_id(path.name))


def read_private_key(path: Path, passphrase: Passphrase | None) -> PrivateKey:
    """Read a key that only its owner can read; raises KeystoreError saying which thing is wrong.

    No message holds anything of the file or of the passphrase.
    """
    data = read_secret(path)
    encrypted = _is_encrypted(data)
    if encrypted and passphrase is None:
        raise KeystoreError(path, "is encrypted, and no passphrase is configured")
    if not encrypted and passphrase is not None:
        raise KeystoreError(
            path, "is not encrypted although a passphrase is configured; `openssl pkcs8 -topk8` it"
        )
    try:
        key = serialization.load_pem_private_key(data, passphrase() if passphrase else None)
    except UnsupportedAlgorithm:
        raise KeystoreError(path, "is a key of an unknown algorithm or encryption") from None
    except (ValueError, TypeError):
        reason = "the passphrase is wrong" if encrypted else "is no private key in PEM"
        raise KeystoreError(path, reason) from None
    if not is_private_key(key):
        raise KeystoreError(path, "holds a key that is neither ECDSA, Ed25519 nor RSA")
    return key


def is_encrypted(path: Path) -> bool:
    """Tell whether a key file is encrypted, without its passphrase; raises KeystoreError."""
    return _is_encrypted(read_secret(path))


def read_secret(path: Path) -> bytes:
    """Read a file that group and others may not read; raises KeystoreError."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & files.FORBIDDEN_KEY_BITS:
                raise KeystoreError(path, f"may be read by others (mode {mode:04o}); chmod 600 it")
            return file.read()
    except OSError as error:
        raise KeystoreError(path, _reason(error)) from None


def _load_authority(
    place: Path, root: x509.Certificate, passphrase: Passphrase | None, urls: Urls
) -> Issuer | RetiredIssuer:
    path = place / "certificate.pem"
    certificate = read_certificate(path)
    try:
        if authority_id(certificate) != place.name:
            raise KeystoreError(path, "is not the certificate of this directory's authority")
    except ValueError as error:
        raise KeystoreError(path, str(error)) from None
    if (place / "retired").exists():
        return RetiredIssuer(certificate, (root,))
    signer = read_signer(place, passphrase)
    own = urls.of(place.name)
    try:
        return Issuer(
            certificate,
            signer,
            above=(root,),
            crl_url=own.crl,
            certificate_url=own.certificate,
            ocsp_url=own.ocsp,
        )
    except ValueError as error:
        raise KeystoreError(path, str(error)) from None


def read_signer(place: Path, passphrase: Passphrase | None) -> Signer:
    """Return the signer of an authority's directory: its key.pem, or the token that key.uri says.

    Raises KeystoreError, also where both or neither are there.
    """
    key, uri = place / "key.pem", place / "key.uri"
    if key.exists() and uri.exists():
        raise KeystoreError(uri, "stands beside key.pem: which one is it?")
    if not uri.exists():
        return KeySigner(read_private_key(key, passphrase))
    # PKCS #11 is an extra; nobody else needs its library
    from services.ca.pkcs11 import Pkcs11Error, Pkcs11Signer

    try:
        return Pkcs11Signer(read_file(uri).decode("utf-8", "replace").strip(), passphrase)
    except Pkcs11Error as error:
        raise KeystoreError(uri, str(error)) from None


def _is_encrypted(data: bytes) -> bool:
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data


def _any_key(certificate: x509.Certificate) -> Any:
    # the library's type of a certificate's key is wider than that of one which signs lists
    return certificate.public_key()


def read_file(path: Path, remedy: str = "") -> bytes:
    """Read a file that is no secret; raises KeystoreError, with the remedy if it is missing."""
    try:
        return path.read_bytes()
    except OSError as error:
        more = f"; {remedy}" if remedy and isinstance(error, FileNotFoundError) else ""
        raise KeystoreError(path, _reason(error) + more) from None


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, PermissionError):
        return "may not be read by this user"
    return error.strerror or "cannot be read"


def _once(passphrase: Passphrase) -> Passphrase:
    found: list[bytes] = []

    def ask() -> bytes:
        if not found:
            found.append(passphrase())
        return found[0]

    return ask


# ---- looking, without any passphrase ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One thing of the key store as `survey` finds it.

    `kind` is root, root-crl or authority; `state` of an authority is active, prepared, rotated-out
    or retired; `key` is encrypted, unencrypted, pkcs11, removed or (of the root) "".
    """

    kind: str
    path: Path
    id: str
    name: str
    not_after: datetime
    state: str = ""
    key: str = ""


def survey(directory: Path) -> list[Surveyed]:
    """List root, its list and every authority of a server, the active one first.

    Raises KeystoreError as `load` does, but for what only the keys themselves can show.
    """
    root = read_root(directory)
    crl = read_root_crl(directory, root)
    root_id, name = authority_id(root), _common_name(root)
    path = directory / "root.crl"
    end = crl.next_update_utc
    if end is None:
        raise KeystoreError(path, "does not say when the next list comes")
    found = [
        Surveyed("root", directory / "root.crt", root_id, name, root.not_valid_after_utc),
        Surveyed("root-crl", path, root_id, f"number {crl_number(crl)}", end),
    ]
    active = read_active(directory)
    places = authority_directories(directory)
    if active not in {place.name for place in places}:
        raise KeystoreError(directory / "active", f"names {active}, of which there is no directory")
    for place in sorted(places, key=lambda place: (place.name != active, place.name)):
        certificate = read_certificate(place / "certificate.pem")
        if (place / "retired").exists():
            state, key = "retired", "removed"
        else:
            state = "active" if place.name == active else "rotated-out"
            if not (place / "activated").exists() and state != "active":
                state = "prepared"
            if (place / "key.uri").exists():
                key = "pkcs11"
            else:
                key = "encrypted" if is_encrypted(place / "key.pem") else "unencrypted"
        found.append(
            Surveyed(
                "authority",
                place,
                place.name,
                _common_name(certificate),
                certificate.not_valid_after_utc,
                state,
                key,
            )
        )
    return found


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


# ---- passphrases --------------------------------------------------------------------------------


def passphrase_from(conf: Any) -> Passphrase | None:
    """Return where a service's passphrase comes from, by [ca] of mooring.conf, or None.

    `passphrase_file` if it is set, else systemd's credential `passphrase_credential`
    (LoadCredential=, LoadCredentialEncrypted=) if the unit was given one.
    """
    if conf.ca.passphrase_file:
        return passphrase_in(Path(conf.ca.passphrase_file))
    return passphrase_credential(conf.ca.passphrase_credential)


def passphrase_in(path: Path) -> Passphrase:
    """Return a reader of a file's one line, which others may not read; raises KeystoreError."""
    return lambda: _line(path, read_secret(path))


def passphrase_credential(name: str) -> Passphrase | None:
    """Return a reader of systemd's credential of this name, or None if there is none.

    Its mode is systemd's business: an access list shows as bits of the group there.
    """
    above = os.environ.get("CREDENTIALS_DIRECTORY")
    if not above or not name:
        return None
    path = Path(above) / name
    return (lambda: _line(path, read_file(path))) if path.exists() else None


def _line(path: Path, data: bytes) -> bytes:
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line or b"\n" in line or len(line) > PASSPHRASE_LIMIT:
        raise KeystoreError(path, "does not hold one line with a passphrase")
    return line
