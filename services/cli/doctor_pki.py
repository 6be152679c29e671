"""What `mooring doctor` says of certificates in files: NGINX's, and a host's."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from services.ca.files import FORBIDDEN_KEY_BITS
from services.ca.refusal import Refused
from services.ca.verify import verify_client_chain

LATE_PART = 6
"""A certificate is renewed when a third of its life is left; at a sixth nobody has done it."""

TRUST_WARNING = timedelta(days=60)
"""What servers trust has to be replaced everywhere."""

_DIRECTIVE = re.compile(
    r"^\s*(ssl_certificate|ssl_certificate_key|ssl_client_certificate|ssl_crl|ssl_session_cache"
    r"|ssl_session_tickets|ssl_verify_client)\s+([^;#]+?)\s*;",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: `verdict` is good, skipped, warning or critical."""

    verdict: str
    part: str
    subject: str
    says: str
    remedy: str = ""


GOOD, SKIPPED, WARNING, CRITICAL = "good", "skipped", "warning", "critical"

RENEW = "renew it (mooring cert renew) and see that mooring-cert-renew.timer runs"
FULL_CHAIN = "give NGINX the fullchain.pem that `mooring cert` writes"
BUNDLE = "mooring ca bundle -o FILE, then reload NGINX"


def directives(directory: Path) -> list[tuple[Path, str, str]]:
    """NGINX's directives about TLS in our files: file, name, value; comments are left out."""
    return [
        (path, match[1], match[2])
        for path in sorted(directory.glob("*.conf"))
        for match in _DIRECTIVE.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]


def nginx(
    directory: Path, bundle: Sequence[x509.Certificate], crl_file: str, now: datetime
) -> Iterator[Check]:
    """Everything about the files that NGINX's configuration names.

    `bundle` is what clients may be verified by, if a CA is here; `crl_file` what it writes.
    """
    found = directives(directory)
    named: dict[str, set[str]] = {}
    for _path, name, value in found:
        named.setdefault(name, set()).add(value)
    trusted: list[x509.Certificate] = list(bundle)
    for value in sorted(named.get("ssl_client_certificate", ())):
        yield from _trust_file(Path(value), bundle, now)
        trusted += _quietly(Path(value))
    pairs = {
        (value, key)
        for path, name, value in found
        if name == "ssl_certificate"
        for other, name_of_key, key in found
        if other == path and name_of_key == "ssl_certificate_key"
    }
    for certificate, key in sorted(pairs):
        yield from server(Path(certificate), Path(key), trusted, now)
    if not pairs:
        yield Check(
            CRITICAL,
            "nginx",
            str(directory),
            "names no server certificate",
            "see etc/nginx/tls.conf",
        )
    for name, off in (("ssl_session_cache", "off none"), ("ssl_session_tickets", "off")):
        for path, each, value in found:
            if each == name and value not in off.split():
                yield Check(
                    CRITICAL,
                    "nginx",
                    str(path),
                    f"{name} {value}: a revoked client goes on by resuming its session",
                    f"{name} off;",
                )
    yield _crl(named.get("ssl_crl", set()), crl_file, directory)


def _crl(named: set[str], crl_file: str, directory: Path) -> Check:
    if not named:
        return Check(
            SKIPPED,
            "nginx",
            str(directory),
            "no ssl_crl: NGINX itself lets revoked clients in, and the applications of the"
            " certificate service refuse them",
            "docs/revocation.md",
        )
    if named == {crl_file}:
        return Check(GOOD, "nginx", crl_file, "ssl_crl is the file that the CA writes")
    others = ", ".join(sorted(named))
    missing = [each for each in named if not Path(each).exists()]
    return Check(
        CRITICAL if missing else WARNING,
        "nginx",
        others,
        "does not exist, so NGINX does not start" if missing else "ssl_crl is not [ca] crl_file",
        "let ssl_crl and [ca] crl_file name one file",
    )


def _trust_file(path: Path, bundle: Sequence[x509.Certificate], now: datetime) -> Iterator[Check]:
    try:
        held = _certificates(path)
    except (OSError, ValueError) as error:
        yield Check(CRITICAL, "nginx", str(path), _why(error), BUNDLE)
        return
    lacking = [each for each in bundle if each not in held]
    if lacking:
        name = lacking[0].subject.rfc4514_string()
        yield Check(CRITICAL, "nginx", str(path), f"lacks {name}: its clients are refused", BUNDLE)
        return
    end = min(each.not_valid_after_utc for each in held)
    if end - now <= TRUST_WARNING:
        verdict, says = (CRITICAL, "has ended") if end <= now else (WARNING, "ends soon")
        says = f"a certificate in it {says} ({end:%Y-%m-%d})"
        yield Check(verdict, "nginx", str(path), says, "mooring ca rotate, or a new root")
        return
    yield Check(GOOD, "nginx", str(path), f"{len(held)} authorities, until {end:%Y-%m-%d}")


def server(
    path: Path, key: Path, trusted: Sequence[x509.Certificate], now: datetime
) -> Iterator[Check]:
    """A server's full chain and key: dates, order, chain to the root, match, permissions."""
    try:
        held = _certificates(path)
    except (OSError, ValueError) as error:
        yield Check(CRITICAL, "nginx", str(path), _why(error), "mooring cert request")
    else:
        yield _certificate("nginx", path, held, now) or _server_chain(path, held, trusted, now)
    yield _key("nginx", key, path)


def host(path: Path, ca_file: Path, now: datetime) -> Iterator[Check]:
    """A host's certificate, chain and key in one file, as HAProxy and the agent read it."""
    try:
        held, roots = _certificates(path), _certificates(ca_file)
    except (OSError, ValueError) as error:
        says = _why(error)
        yield Check(CRITICAL, "host", f"{path}, {ca_file}", says, "mooring cert request --bundle")
        return
    bad = _certificate("host", path, held, now)
    if bad is None:
        try:
            verify_client_chain(held[0], held[1:], roots, now=now)
        except Refused as refused:
            bad = Check(
                CRITICAL, "host", str(path), refused.reason, "mooring cert request --bundle"
            )
    yield bad or Check(GOOD, "host", str(path), f"until {held[0].not_valid_after_utc:%Y-%m-%d}")
    yield _key("host", path, path)


def _certificate(
    part: str, path: Path, held: Sequence[x509.Certificate], now: datetime
) -> Check | None:
    """What is wrong with the dates and the order of a chain, None if nothing is."""
    leaf = held[0]
    left, life = (
        leaf.not_valid_after_utc - now,
        leaf.not_valid_after_utc - leaf.not_valid_before_utc,
    )
    end = f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%MZ}"
    if left <= timedelta():
        return Check(CRITICAL, part, str(path), f"has ended at {end}", RENEW)
    if leaf.not_valid_before_utc > now:
        says = f"begins at {leaf.not_valid_before_utc:%Y-%m-%d %H:%MZ}"
        return Check(CRITICAL, part, str(path), says, "set this machine's clock")
    if left < life / LATE_PART:
        return Check(WARNING, part, str(path), f"ends at {end} and was not renewed", RENEW)
    for issued, issuer in pairwise(held):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            says = f"{issuer.subject.rfc4514_string()} follows what it has not issued"
            return Check(CRITICAL, part, str(path), says, FULL_CHAIN)
    return None


def _server_chain(
    path: Path,
    held: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    now: datetime,
) -> Check:
    leaf, end = held[0], f"until {held[0].not_valid_after_utc:%Y-%m-%d}"
    roots = [each for each in trusted if each.subject == each.issuer]
    if held[-1].issuer not in {each.subject for each in roots}:
        if held[-1].issuer in {each.subject for each in trusted}:
            says = "lacks the intermediate that has issued it: clients refuse it"
            return Check(CRITICAL, "nginx", str(path), says, FULL_CHAIN)
        return Check(GOOD, "nginx", str(path), f"of another CA, {end}")
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        subject = next(x509.DNSName(name) for name in names.get_values_for_type(x509.DNSName))
    except (x509.ExtensionNotFound, StopIteration):
        says = "holds no DNS name, so clients find none to compare"
        return Check(WARNING, "nginx", str(path), says, "mooring cert request --dns NAME")
    concrete = x509.DNSName(subject.value.replace("*.", "any."))
    verifier = PolicyBuilder().store(Store(roots)).time(now).build_server_verifier(concrete)
    try:
        verifier.verify(leaf, list(held[1:]))
    except VerificationError as error:
        return Check(CRITICAL, "nginx", str(path), f"does not verify: {error}", FULL_CHAIN)
    return Check(GOOD, "nginx", str(path), f"{subject.value}, {end}")


def _key(part: str, path: Path, certificate: Path) -> Check:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        return Check(CRITICAL, part, str(path), f"the key: {_why(error)}", "mooring cert request")
    if mode & FORBIDDEN_KEY_BITS:
        says = f"the key may be read by others (mode {mode:04o})"
        return Check(CRITICAL, part, str(path), says, f"chmod 600 {path}; and make a new key")
    held = _quietly(certificate)
    if held and held[0].public_key() != key.public_key():
        says = f"is not the key of {certificate}"
        return Check(CRITICAL, part, str(path), says, "give both of one `mooring cert request`")
    return Check(GOOD, part, str(path), "the certificate's key, readable by its owner alone")


def _certificates(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file; raises OSError and ValueError."""
    return x509.load_pem_x509_certificates(path.read_bytes())


def _quietly(path: Path) -> list[x509.Certificate]:
    try:
        return _certificates(path)
    except (OSError, ValueError):
        return []


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return "cannot be read as PEM"
