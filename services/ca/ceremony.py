"""The ceremonies of `mooring ca`: roots, intermediates and their rotation, written to disk.

The server's directory is described in `keystore.py`. Beside it:

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
import secrets
import shutil
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from services.ca import files
from services.ca.crl import Revocation, build_crl
from services.ca.hierarchy import NAME_KEY_BYTES, issuing_name
from services.ca.issue import create_root, issue
from services.ca.keys import KeyType, generate_key, key_identifier, signature_hash
from services.ca.keystore import (
    Authorities,
    KeystoreError,
    Passphrase,
    Urls,
    authority_id,
    crl_number,
    is_authority_id,
    is_list_of,
    load,
    pending,
    read_active,
    read_certificate,
    read_file,
    read_private_key,
    read_root,
    read_root_crl,
    read_signer,
)
from services.ca.names import title
from services.ca.profiles import INTERMEDIATE, ROOT, Profile
from services.ca.request import parse_csr
from services.ca.signer import Issuer, KeySigner, Signer

# 256 bits as text: no guessing helps, whatever the key derivation costs.
PASSPHRASE_BYTES = 32

DIRECTORY_MODE = 0o700
PUBLIC_DIRECTORY_MODE = 0o755


# ---- passphrases --------------------------------------------------------------------------------


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
            for item in json.loads(read_file(path))
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
    if not is_list_of(root, root_crl):
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
    if not is_authority_id(authority) or not place.is_dir():
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
    if not is_authority_id(authority) or not place.is_dir():
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
