"""Certificates with their keys on disk, each a directory that changes as a whole.

    DIRECTORY/NAME               a link to the generation in use: this is the path to configure
    DIRECTORY/.NAME/0001/        key.pem (0600), cert.pem, chain.pem, fullchain.pem, request.json,
                                 bundle.pem (0600) if it is wanted
    DIRECTORY/.NAME/new/         the key and request of the generation that is being made
    DIRECTORY/.NAME/reload       present while a reload is still to be done

A generation is complete before the link is moved to it by one rename, so whoever opens files below
DIRECTORY/NAME finds key, certificate and chain of one generation, before and after a crash. The one
before is kept. `new` survives a failure: the next attempt sends the same key, which a one-time
token that was already redeemed still answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.ca import files
from services.ca.issue import Validity, certificate_builder
from services.ca.keys import KeyType, PrivateKey, generate_key, key_identifier, signature_hash
from services.ca.profiles import SERVER
from services.ca.refusal import Refused
from services.ca.request import CertificateRequest, make_request
from services.ca.subjects import certificate_names

RENEW_PART = 3
"""Renewed when a third of the life is left, as the field does: time for many attempts."""

SELF_SIGNED = "self-signed"
"""In place of a profile: nobody is asked."""

SELF_SIGNED_LIFETIME = timedelta(days=365)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_GENERATION = re.compile(r"[0-9]{4,}")
_DIRECTORY_MODE = 0o755


class Unusable(Exception):
    """Something on disk cannot be used; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a certificate shall be; names in normal form, so that two can be compared."""

    profile: str
    common_name: str | None = None
    organizations: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    key_type: str = KeyType.P256.value
    lifetime: int | None = None

    def request_for(self, key: PrivateKey) -> CertificateRequest:
        """Return it as a request of this key; raises Refused for a malformed name."""
        return make_request(
            key.public_key(),
            common_name=self.common_name,
            organizations=self.organizations,
            dns_names=self.dns_names,
            ip_addresses=self.ip_addresses,
            uris=self.uris,
        )

    def csr_for(self, key: PrivateKey) -> x509.CertificateSigningRequest:
        """Sign a CSR with these names; raises Refused for a malformed name."""
        request = self.request_for(key)
        subject = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in request.organizations
        ]
        if request.common_name is not None:
            subject.append(x509.NameAttribute(NameOID.COMMON_NAME, request.common_name))
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in request.dns_names]
        names += [x509.IPAddress(each) for each in request.ip_addresses]
        names += [x509.UniformResourceIdentifier(each) for each in request.uris]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(key, signature_hash(request.public_key))


def wanted(
    profile: str,
    *,
    common_name: str | None = None,
    organizations: Sequence[str] = (),
    dns_names: Sequence[str] = (),
    ip_addresses: Sequence[str] = (),
    uris: Sequence[str] = (),
    key_type: str = KeyType.P256.value,
    lifetime: timedelta | None = None,
) -> Wanted:
    """Bring what is asked for to its normal form; raises Refused for a name that cannot be."""
    probe = make_request(
        generate_key().public_key(),
        common_name=common_name,
        organizations=organizations,
        dns_names=dns_names,
        ip_addresses=ip_addresses,
        uris=uris,
    )
    return Wanted(
        profile,
        probe.common_name,
        probe.organizations,
        probe.dns_names,
        tuple(map(str, probe.ip_addresses)),
        probe.uris,
        key_type,
        None if lifetime is None else int(lifetime.total_seconds()),
    )


@dataclass(frozen=True, slots=True)
class Options:
    """How a certificate is kept, remembered for its renewals; paths are absolute."""

    ca_url: str | None = None
    local: str | None = None  # the mooring.conf of an authority on this machine
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    renew_before: int | None = None
    reload_command: str | None = None
    bundle: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate as it is in use."""

    name: str
    path: Path
    certificate: x509.Certificate
    wanted: Wanted
    options: Options

    @property
    def renew_before(self) -> timedelta:
        """How long before its end it is renewed."""
        if self.options.renew_before is not None:
            return timedelta(seconds=self.options.renew_before)
        begin, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        return (end - begin) / RENEW_PART

    @property
    def due(self) -> datetime:
        """From when on it is renewed."""
        return self.certificate.not_valid_after_utc - self.renew_before

    @property
    def is_client(self) -> bool:
        """Whether a server accepts it as a client's, so that it can renew itself."""
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        except x509.ExtensionNotFound:
            return False
        return ExtendedKeyUsageOID.CLIENT_AUTH in found.value


@dataclass(frozen=True, slots=True)
class Draft:
    """A generation that is being made: its directory and its key."""

    path: Path
    key: PrivateKey

    def csr_pem(self, what: Wanted) -> bytes:
        """The request to send."""
        return what.csr_for(self.key).public_bytes(Encoding.PEM)


class CertificateStore:
    """The certificates below a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """The names of all certificates, sorted."""
        try:
            found = [path.name for path in self.directory.iterdir() if path.is_symlink()]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if _NAME.fullmatch(name))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep a timer, a watcher and a person from making the same certificate at once."""
        if not _NAME.fullmatch(name):
            raise Unusable(f"{name}: a name is letters, digits and . _ @ + - (no / or leading dot)")
        home = self._home(name)
        home.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        with (home / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self, name: str) -> Held | None:
        """What is in use under this name, None if nothing; raises Unusable."""
        link = self.directory / name
        if not link.is_symlink():
            if link.exists():
                raise Unusable(f"{link}: exists and is not one of ours")
            return None
        path = link / "request.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            what = _fields(Wanted, document["wanted"])
            options = _fields(Options, document["options"])
            certificate = files.read_certificates(link / "cert.pem")[0]
            key = files.read_key(link / "key.pem")
        except FileNotFoundError:
            return None  # a generation was removed by hand: make it anew
        except (OSError, ValueError, KeyError, TypeError, Refused) as error:
            raise Unusable(f"{link}: {error}") from None
        if key.public_key() != certificate.public_key():
            raise Unusable(f"{link}: key.pem and cert.pem do not belong together")
        return Held(name, link, certificate, what, options)

    def begin(self, name: str, what: Wanted) -> Draft:
        """Return the generation to make: the one that was begun for the same, or a new key."""
        path = self._home(name) / "new"
        note = path / "request.json"
        text = json.dumps(dataclasses.asdict(what), sort_keys=True)
        with contextlib.suppress(OSError, ValueError, Refused):
            if note.read_text(encoding="utf-8") == text:
                return Draft(path, files.read_key(path / "key.pem"))
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=_DIRECTORY_MODE)
        key = generate_key(KeyType(what.key_type))
        files.write_key(path / "key.pem", key)
        files.write_data(note, text.encode())
        return Draft(path, key)

    def finish(
        self,
        name: str,
        draft: Draft,
        chain: Sequence[x509.Certificate],
        what: Wanted,
        options: Options,
    ) -> Held:
        """Put a certificate and its chain (leaf first) in use; raises Unusable if it is not ours.

        Nothing that is in use changes until the rename of the link, and after it everything has.
        """
        if not chain or chain[0].public_key() != draft.key.public_key():
            raise Unusable(f"{name}: the certificate that came is for another key")
        files.write_certificates(draft.path / "cert.pem", chain[0])
        files.write_certificates(draft.path / "chain.pem", *chain[1:])
        files.write_certificates(draft.path / "fullchain.pem", *chain)
        if options.bundle:
            files.write_bundle(draft.path / "bundle.pem", draft.key, *chain, replace=True)
        document = {"wanted": dataclasses.asdict(what), "options": dataclasses.asdict(options)}
        files.write_data(
            draft.path / "request.json", (json.dumps(document, indent=2) + "\n").encode()
        )
        home = self._home(name)
        if options.reload_command:
            files.write_data(home / "reload", b"")
        generation = home / self._following(home)
        draft.path.rename(generation)
        files.sync_directory(home)
        beside = home / "link"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path(home.name) / generation.name)
        # the link points from DIRECTORY, so it is made there in one rename
        beside.rename(self.directory / name)
        files.sync_directory(self.directory)
        self._tidy(home, generation.name)
        found = self.read(name)
        if found is None:
            raise Unusable(f"{self.directory / name}: was removed while it was made")
        return found

    def remember(self, held: Held, options: Options) -> Held:
        """Keep other options for a certificate that stays as it is."""
        document = {
            "wanted": dataclasses.asdict(held.wanted),
            "options": dataclasses.asdict(options),
        }
        files.write_data(
            held.path.resolve() / "request.json", (json.dumps(document, indent=2) + "\n").encode()
        )
        return dataclasses.replace(held, options=options)

    def needs_reload(self, name: str) -> bool:
        """Whether a reload is still to be done for what is in use."""
        return (self._home(name) / "reload").exists()

    def reloaded(self, name: str) -> None:
        """The reload was done."""
        (self._home(name) / "reload").unlink(missing_ok=True)

    def _home(self, name: str) -> Path:
        return self.directory / f".{name}"

    def _generations(self, home: Path) -> list[str]:
        return sorted(path.name for path in home.iterdir() if _GENERATION.fullmatch(path.name))

    def _following(self, home: Path) -> str:
        return f"{int((self._generations(home) or ['0'])[-1]) + 1:04d}"

    def _tidy(self, home: Path, current: str) -> None:
        for name in self._generations(home)[:-2]:
            if name != current:
                shutil.rmtree(home / name, ignore_errors=True)


def self_signed(key: PrivateKey, what: Wanted, now: datetime) -> x509.Certificate:
    """Sign a server's certificate with its own key; raises Refused for names that cannot be.

    The subject is the first name, since it is the issuer too and may not be empty (RFC 5280
    section 4.1.2.4). It is no authority: it stands for itself alone.
    """
    request = make_request(
        key.public_key(), dns_names=what.dns_names, ip_addresses=what.ip_addresses
    )
    names = certificate_names(SERVER, request).alternatives
    if names is None:  # the profile has refused already
        raise Refused("/dns_names", "at least one name is needed")
    first = [*what.dns_names, *what.ip_addresses][0][:64]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, first)])
    lifetime = SELF_SIGNED_LIFETIME if what.lifetime is None else timedelta(seconds=what.lifetime)
    begin = now.replace(microsecond=0) - timedelta(minutes=5)
    builder = certificate_builder(
        subject=subject,
        public_key=request.public_key,
        issuer_name=subject,
        authority_key=x509.AuthorityKeyIdentifier(key_identifier(request.public_key), None, None),
        validity=Validity(begin, begin + lifetime - timedelta(seconds=1)),
        serial=None,
    )
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(SERVER.key_usage, critical=True)
    builder = builder.add_extension(
        x509.ExtendedKeyUsage(SERVER.extended_key_usage), critical=False
    )
    builder = builder.add_extension(names, critical=False)
    return builder.sign(key, signature_hash(request.public_key))


def present() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


def absolute(path: str | None) -> str | None:
    """A path that a timer finds too, wherever it runs."""
    return None if path is None else os.path.abspath(path)  # noqa: PTH100 - links stay links


def _fields(kind: Any, document: Any) -> Any:
    return kind(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in document.items()
        }
    )
