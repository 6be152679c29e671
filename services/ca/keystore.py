"""The authorities' keys and certificates on disk: read at start, written by `mooring ca`.

DIRECTORY ([ca] directory) of a server::

    root.crt  root.crl               what everybody trusts, and the root's own list; no root key
    active                           the id of the authority that signs, one line
    authorities/ID/certificate.pem   an intermediate; ID is its subject key identifier, 40 digits
                   key.pem           its key, encrypted PKCS #8, mode 0600; or
                   key.uri           where the key is, RFC 7512 (pkcs11:...)
                   activated         when it signed first; without it, it is prepared
                   retired           when its key was removed on purpose
    pending/ID/request.csr           an intermediate that the root has not signed yet, with its key

OFFLINE directory of the root, kept away from any server::

    root.key  root.crt  root.crl     the key encrypted, mode 0600
    issued/SERIAL.pem                every intermediate that it has signed
    revoked.json                     those that it has revoked: serial, at, reason

An authority appears by one rename of its whole directory and signs by one rename of `active`, so
a crash leaves the state before or after. Rotation: a new one is prepared (present, does not sign;
everybody learns the bundle), activated (signs; the old one still answers for what it issued), and
the old one is retired once nothing of it lives.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from services.ca import files
from services.ca.crl import Revocation, build_crl
from services.ca.hierarchy import NAME_KEY_BYTES, issuing_name
from services.ca.issue import create_root, issue
from services.ca.keys import (
    KeyType,
    PrivateKey,
    generate_key,
    is_private_key,
    key_identifier,
    signature_hash,
)
from services.ca.names import title
from services.ca.profiles import INTERMEDIATE, ROOT, Profile
from services.ca.request import parse_csr
from services.ca.signer import Issuer, KeySigner, Signer

Passphrase = Callable[[], bytes]

DEFAULT_DIRECTORY = Path("/etc/mooring/ca")

# 256 bits as text: no guessing helps, whatever the key derivation costs.
PASSPHRASE_BYTES = 32

# A passphrase is a line; more is a mistake (a key file given in its place).
PASSPHRASE_LIMIT = 1024

DIRECTORY_MODE = 0o700
PUBLIC_DIRECTORY_MODE = 0o755

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


def authority_id(certificate: x509.Certificate) -> str:
    """Return an authority's id: its subject key identifier, 40 hexadecimal digits.

    Raises ValueError if it has none of 20 octets (those of other software may differ).
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no subject key identifier") from None
    text = extension.value.digest.hex()
    if not _ID.fullmatch(text):
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
    root_crl_pem = _read(directory / "root.crl", "make it with `mooring ca root-crl`")
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
    if not _is_list_of(root, crl):
        raise KeystoreError(path, "is not signed by this root")
    return crl


def read_crl(path: Path) -> x509.CertificateRevocationList:
    """Read the one list of a PEM file; raises KeystoreError."""
    data = _read(path, "make it with `mooring ca root-crl`")
    try:
        return x509.load_pem_x509_crl(data)
    except ValueError:
        raise KeystoreError(path, "is no revocation list in PEM") from None


def _is_list_of(root: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    try:
        return crl.issuer == root.subject and crl.is_signature_valid(_any_key(root))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def read_certificate(path: Path) -> x509.Certificate:
    """Read the one certificate of a PEM file; raises KeystoreError."""
    data = _read(path)
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
    text = _read(path, "choose one with `mooring ca activate`").decode("ascii", "replace").strip()
    if not _ID.fullmatch(text):
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
        if not _ID.fullmatch(place.name) or not place.is_dir():
            raise KeystoreError(place, "is not the directory of an authority")
    return places


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
        return Pkcs11Signer(_read(uri).decode("utf-8", "replace").strip(), passphrase)
    except Pkcs11Error as error:
        raise KeystoreError(uri, str(error)) from None


def _is_encrypted(data: bytes) -> bool:
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data or b"Proc-Type: 4,ENCRYPTED" in data


def _any_key(certificate: x509.Certificate) -> Any:
    # the library's type of a certificate's key is wider than that of one which signs lists
    return certificate.public_key()


def _read(path: Path, remedy: str = "") -> bytes:
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
    return (lambda: _line(path, _read(path))) if path.exists() else None


def create_passphrase(path: Path) -> bool:
    """Write a random passphrase, mode 0600, unless the file exists; tell whether it was written."""
    text = secrets.token_urlsafe(PASSPHRASE_BYTES) + "\n"
    try:
        files.write_data(path, text.encode(), mode=files.KEY_MODE, replace=False)
    except FileExistsError:
        return False
    except OSError as error:
        raise KeystoreError(path, error.strerror or "cannot be written") from None
    _own_like(path.parent, path)
    return True


def _line(path: Path, data: bytes) -> bytes:
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if not line or b"\n" in line or len(line) > PASSPHRASE_LIMIT:
        raise KeystoreError(path, "does not hold one line with a passphrase")
    return line


# ---- the root, offline --------------------------------------------------------------------------


def with_key_type(profile: Profile, kind: KeyType | None) -> Profile:
    """Return the profile with this type of key allowed and made; None leaves it as it is."""
    if kind is None:
        return profile
    return dataclasses.replace(profile, key_types=profile.key_types | {kind}, default_key_type=kind)


def make_root(
    offline: Path,
    common_name: str,
    *,
    passphrase: Passphrase | None,
    now: datetime,
    kind: KeyType | None = None,
    lifetime: timedelta | None = None,
) -> x509.Certificate:
    """Make a root in its offline directory: key, certificate and an empty list.

    Raises KeystoreError if there is one already, Refused for a name or lifetime that cannot be.
    """
    profile = with_key_type(ROOT, kind)
    key = generate_key(profile.default_key_type)
    signer = KeySigner(key)
    certificate = create_root(
        signer, common_name=common_name, now=now, lifetime=lifetime, profile=profile
    )
    path = offline / "root.key"
    if path.exists():
        raise KeystoreError(path, "exists already")
    # not the service's: it must never be able to read the root's key
    make_directory(offline, DIRECTORY_MODE, own_like_above=False)
    try:
        # the key last: with it the root is complete, without it the next attempt starts anew
        crl = build_crl(Issuer(certificate, signer), number=_crl_number(now), now=now)
        files.write_certificates(offline / "root.crt", certificate)
        files.write_crls(offline / "root.crl", crl)
        files.write_key(path, key, passphrase=None if passphrase is None else passphrase())
    except FileExistsError:
        raise KeystoreError(path, "exists already") from None
    except OSError as error:
        raise KeystoreError(offline, error.strerror or "cannot be written") from None
    return certificate


def load_root(offline: Path, passphrase: Passphrase | None, *, urls: Urls) -> Issuer:
    """Read the root with its key; raises KeystoreError."""
    certificate = read_root(offline)
    own = urls.of(authority_id(certificate))
    path = offline / "root.key"
    try:
        return Issuer(
            certificate,
            KeySigner(read_private_key(path, passphrase)),
            crl_url=own.crl,
            certificate_url=own.certificate,
        )
    except ValueError as error:
        raise KeystoreError(path, str(error)) from None


def sign_intermediate(
    offline: Path,
    csr: bytes,
    passphrase: Passphrase | None,
    *,
    urls: Urls,
    now: datetime,
    lifetime: timedelta | None = None,
) -> tuple[x509.Certificate, bool]:
    """Sign an intermediate's request with the root; return it and whether it is new.

    A request whose key has a living certificate of this root gets that one again. Raises
    KeystoreError and Refused.
    """
    request = parse_csr(csr)
    certificate = read_root(offline)
    wanted = key_identifier(request.public_key)
    for path in sorted((offline / "issued").glob("*.pem")):
        before = read_certificate(path)
        if before.public_key() == request.public_key and now < before.not_valid_after_utc:
            return before, False
    root = load_root(offline, passphrase, urls=urls)
    # the ceremony's operator has chosen the type of the key when it was made
    profile = dataclasses.replace(INTERMEDIATE, key_types=frozenset(KeyType))
    certificate = issue(profile, request, root, now=now, lifetime=lifetime)
    if bytes.fromhex(authority_id(certificate)) != wanted:
        raise AssertionError("the key identifier is not that of the key")
    make_directory(offline / "issued", DIRECTORY_MODE, own_like_above=False)
    path = offline / "issued" / f"{certificate.serial_number:040x}.pem"
    files.write_certificates(path, certificate)
    return certificate, True


def renew_root_crl(
    offline: Path,
    passphrase: Passphrase | None,
    *,
    now: datetime,
    revoke: Iterable[Revocation] = (),
) -> x509.CertificateRevocationList:
    """Sign and write the root's list anew, with further intermediates revoked if any are given.

    Number: the time, and more than the last. Raises KeystoreError.
    """
    root = load_root(offline, passphrase, urls=Urls())
    path = offline / "revoked.json"
    revoked = {each.serial: each for each in _read_revoked(path)}
    for each in revoke:
        revoked.setdefault(each.serial, each)
    number = _crl_number(now)
    if (offline / "root.crl").exists():
        last = read_root_crl(offline, root.certificate)
        number = max(number, crl_number(last) + 1)
    crl = build_crl(root, number=number, now=now, revoked=revoked.values())
    if revoked:
        text = json.dumps([_revoked_json(each) for each in revoked.values()], indent=2) + "\n"
        files.write_data(path, text.encode(), mode=files.KEY_MODE)
    files.write_crls(offline / "root.crl", crl)
    return crl


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """Return the list's number, 0 if it has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _crl_number(now: datetime) -> int:
    return int(now.timestamp())


def _revoked_json(revocation: Revocation) -> dict[str, str]:
    return {
        "serial": f"{revocation.serial:040x}",
        "at": revocation.at.isoformat(),
        "reason": revocation.reason.value,
    }


def _read_revoked(path: Path) -> list[Revocation]:
    if not path.exists():
        return []
    try:
        return [
            Revocation(
                int(item["serial"], 16),
                datetime.fromisoformat(item["at"]),
                x509.ReasonFlags(item["reason"]),
            )
            for item in json.loads(_read(path))
        ]
    except (ValueError, KeyError, TypeError):
        # dropping an entry would make a revoked authority good again
        raise KeystoreError(path, "cannot be understood; restore it from a copy") from None


# ---- intermediates, on the server ---------------------------------------------------------------


def prepare(
    directory: Path,
    name: str,
    *,
    passphrase: Passphrase | None,
    kind: KeyType | None = None,
    key_uri: str | None = None,
) -> Path:
    """Make an intermediate's key and request in pending/ID; return that directory.

    The common name is NAME, "Issuing CA" and the head of the key's identifier: new with every key.
    With `key_uri` the key is one that a PKCS #11 token holds already. Raises KeystoreError, and
    Refused for a name that is too long.
    """
    _check_name(name)
    make_directory(directory, PUBLIC_DIRECTORY_MODE)
    above = directory / "pending"
    make_directory(above, DIRECTORY_MODE)
    staged = above / f".{secrets.token_hex(8)}"
    staged.mkdir(mode=DIRECTORY_MODE)
    try:
        signer, csr = _make_request(staged, name, passphrase, kind, key_uri)
        files.write_data(staged / "request.csr", csr.public_bytes(serialization.Encoding.PEM))
        place = above / key_identifier(signer.public_key()).hex()
        _own_like(directory, staged, *staged.iterdir())
        staged.rename(place)  # of a key in a token it may be there: then the rename fails
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise KeystoreError(above, error.strerror or "cannot be written") from None
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    files.sync_directory(above)
    return place


def _make_request(
    staged: Path,
    name: str,
    passphrase: Passphrase | None,
    kind: KeyType | None,
    key_uri: str | None,
) -> tuple[Signer, x509.CertificateSigningRequest]:
    if key_uri is None:
        key = generate_key(kind or INTERMEDIATE.default_key_type)
        files.write_key(
            staged / "key.pem", key, passphrase=None if passphrase is None else passphrase()
        )
        in_memory = KeySigner(key)
        builder = _request_builder(issuing_name(name, in_memory))
        return in_memory, builder.sign(key, signature_hash(in_memory.public_key()))
    from services.ca.pkcs11 import Pkcs11Error, Pkcs11Signer

    files.write_data(staged / "key.uri", f"{key_uri}\n".encode(), mode=files.KEY_MODE)
    try:
        token = Pkcs11Signer(key_uri, passphrase)
        return token, token.sign_request(_request_builder(issuing_name(name, token)))
    except Pkcs11Error as error:
        raise KeystoreError(staged / "key.uri", str(error)) from None


def _check_name(name: str) -> None:
    """Refuse a name with which an intermediate's would not fit, before anything is made."""
    title(f"{name} Issuing CA {'0' * 2 * NAME_KEY_BYTES}", "/common_name")


def _request_builder(common_name: str) -> x509.CertificateSigningRequestBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )


def pending(directory: Path) -> list[Path]:
    """Return the directories of the keys that wait for a certificate."""
    above = directory / "pending"
    if not above.is_dir():
        return []
    return sorted(path for path in above.iterdir() if _ID.fullmatch(path.name))


def install(
    directory: Path,
    certificate: x509.Certificate,
    *,
    root: x509.Certificate,
    root_crl: x509.CertificateRevocationList,
    passphrase: Passphrase | None,
    now: datetime,
) -> bool:
    """Put a pending key's certificate in place; tell whether anything was changed.

    The first authority of a server becomes the active one. The certificate has to be the root's,
    for the pending key, with path length 0. Raises KeystoreError, with nothing changed.
    """
    try:
        name = authority_id(certificate)
    except ValueError as error:
        raise KeystoreError(directory, str(error)) from None
    place = directory / "authorities" / name
    waiting = directory / "pending" / name
    _check_root(directory, root, root_crl)
    if place.exists():
        if read_certificate(place / "certificate.pem") != certificate:
            raise KeystoreError(place, "holds another certificate of the same key")
    else:
        _check_intermediate(waiting, certificate, root, passphrase)
    changed = _write_root(directory, root, root_crl)
    if not place.exists():
        make_directory(directory / "authorities", DIRECTORY_MODE)
        files.write_certificates(waiting / "certificate.pem", certificate)
        _own_like(directory, waiting / "certificate.pem")
        waiting.rename(place)
        files.sync_directory(place.parent)
        files.sync_directory(waiting.parent)
        changed = True
    if not (directory / "active").exists():
        _write_active(directory, name, now)
        changed = True
    return changed


def install_root_crl(directory: Path, crl: x509.CertificateRevocationList) -> bool:
    """Put a newer list of the root in place; tell whether it is newer. Raises KeystoreError."""
    root = read_root(directory)
    _check_root(directory, root, crl)
    return _write_root(directory, root, crl)


def _check_intermediate(
    waiting: Path,
    certificate: x509.Certificate,
    root: x509.Certificate,
    passphrase: Passphrase | None,
) -> None:
    if not waiting.is_dir():
        raise KeystoreError(waiting, "does not exist: the certificate is for another key")
    try:
        issuer = Issuer(certificate, read_signer(waiting, passphrase), above=(root,))
    except ValueError as error:
        raise KeystoreError(waiting, str(error)) from None
    if issuer.path_length != 0:
        raise KeystoreError(waiting, "the certificate allows authorities below it")


def _check_root(
    directory: Path, root: x509.Certificate, root_crl: x509.CertificateRevocationList
) -> None:
    if not _is_list_of(root, root_crl):
        raise KeystoreError(directory / "root.crl", "the list given is not signed by this root")
    if (directory / "root.crt").exists() and read_root(directory) != root:
        raise KeystoreError(directory / "root.crt", "is another root than the one given")


def _write_root(
    directory: Path, root: x509.Certificate, root_crl: x509.CertificateRevocationList
) -> bool:
    certificate, path = directory / "root.crt", directory / "root.crl"
    changed = False
    if not certificate.exists():
        files.write_certificates(certificate, root)
        _own_like(directory, certificate)
        changed = True
    if not path.exists() or crl_number(read_root_crl(directory, root)) < crl_number(root_crl):
        files.write_crls(path, root_crl)
        _own_like(directory, path)
        changed = True
    return changed


def activate(directory: Path, authority: str, *, now: datetime) -> bool:
    """Make this authority the one that signs; tell whether it was not. Raises KeystoreError."""
    place = directory / "authorities" / authority
    if not _ID.fullmatch(authority) or not place.is_dir():
        raise KeystoreError(place, "does not exist")
    if (place / "retired").exists():
        raise KeystoreError(place, "is retired: its key is gone")
    if (directory / "active").exists() and read_active(directory) == authority:
        return False
    _write_active(directory, authority, now)
    return True


def retire(directory: Path, authority: str, *, now: datetime) -> bool:
    """Remove the key of an authority that is not active; tell whether it still had one.

    Whether anything that it issued lives is the caller's to know: without its key no list of it
    can be made, and NGINX then refuses all of its certificates. Raises KeystoreError.
    """
    place = directory / "authorities" / authority
    if not _ID.fullmatch(authority) or not place.is_dir():
        raise KeystoreError(place, "does not exist")
    if read_active(directory) == authority:
        raise KeystoreError(place, "is the active authority; activate another one first")
    before = not (place / "retired").exists()
    if before:
        files.write_data(place / "retired", _moment(now))
        _own_like(directory, place / "retired")
    for name in ("key.pem", "key.uri"):
        (place / name).unlink(missing_ok=True)
    files.sync_directory(place)
    return before


def create(
    directory: Path,
    name: str,
    *,
    passphrase: Passphrase | None,
    urls: Urls,
    now: datetime,
    offline: Path | None = None,
    root_passphrase: Passphrase | None = None,
    root_kind: KeyType | None = None,
    kind: KeyType | None = None,
) -> Authorities:
    """Make root and intermediate in one step, and return them as `load` does.

    The root goes to `offline` (default: DIRECTORY/root, to be moved away), under
    `root_passphrase` (default: the same). Steps that were done before are not repeated, so a call
    that was interrupted can be made again. Raises KeystoreError and Refused.
    """
    keep = directory / "root" if offline is None else offline
    _check_name(name)
    root_secret = root_passphrase or passphrase
    make_directory(directory, PUBLIC_DIRECTORY_MODE)
    if not (keep / "root.key").exists():
        if (directory / "root.crt").exists():
            raise KeystoreError(keep / "root.key", "does not exist, but the server has a root")
        make_root(keep, f"{name} Root CA", passphrase=root_secret, now=now, kind=root_kind)
    if not (directory / "active").exists():
        # one that was installed and not made active, one that was not installed, or a new one
        places = [*(directory / "authorities").glob("[0-9a-f]*"), *pending(directory)]
        place = places[0] if places else None
        if place is None:
            place = prepare(directory, name, passphrase=passphrase, kind=kind)
        csr = (place / "request.csr").read_bytes()
        certificate, _ = sign_intermediate(keep, csr, root_secret, urls=urls, now=now)
        root = read_root(keep)
        install(
            directory,
            certificate,
            root=root,
            root_crl=read_root_crl(keep, root),
            passphrase=passphrase,
            now=now,
        )
    return load(directory, passphrase, urls=urls)


def make_directory(path: Path, mode: int, *, own_like_above: bool = True) -> None:
    """Make a directory unless it exists, owned like the one above it; raises KeystoreError."""
    try:
        path.parent.mkdir(mode=PUBLIC_DIRECTORY_MODE, parents=True, exist_ok=True)
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            if not path.is_dir():
                raise
        else:
            path.chmod(mode)  # whatever the umask
            if own_like_above:
                _own_like(path.parent, path)
    except OSError as error:
        raise KeystoreError(path, error.strerror or "cannot be made") from None


def _write_active(directory: Path, authority: str, now: datetime) -> None:
    mark, path = directory / "authorities" / authority / "activated", directory / "active"
    # the mark first: what may have signed is never taken for merely prepared
    if not mark.exists():
        files.write_data(mark, _moment(now))
    files.write_data(path, f"{authority}\n".encode())
    _own_like(directory, mark, path)


def _moment(now: datetime) -> bytes:
    return f"{now.isoformat(timespec='seconds')}\n".encode()


def _own_like(directory: Path, *paths: Path) -> None:
    """Give what root wrote to the owner of the directory: the service reads it as its own user."""
    if os.geteuid() != 0:
        return
    owner = directory.stat()
    for path in paths:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
