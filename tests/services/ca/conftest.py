"""What the tests of certificates share: a hierarchy, a DER reader, and the acceptance checks.

`accept_certificate` states over the bytes what none of the linters and relying parties that can be
had notices; it reads DER by itself, so that an error of the library cannot hide in its own reader.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca.authority import Authority
from services.ca.hierarchy import Hierarchy, create_hierarchy
from services.ca.keystore import Authorities
from services.ca.ledger import Ledger
from services.ca.profile_file import SHIPPED, Offer
from services.ca.profiles import Profile
from services.core.database import Database

BOOLEAN, INTEGER, OCTETS, NULL, OID = 0x01, 0x02, 0x04, 0x05, 0x06
SEQUENCE, SET, UTC_TIME, GENERALIZED_TIME, UTF8 = 0x30, 0x31, 0x17, 0x18, 0x0C

SKI, KEY_USAGE, SAN = "551d0e", "551d0f", "551d11"
CONSTRAINTS, CRLDP, AKI, EKU = "551d13", "551d1f", "551d23", "551d25"
AIA, NO_CHECK = "2b06010505070101", "2b0601050507300105"

ECDSA_SHA256, ECDSA_SHA384 = "2a8648ce3d040302", "2a8648ce3d040303"
ED25519, RSA_SHA256 = "2b6570", "2a864886f70d01010b"

COMMON_NAME, ORGANIZATION = "550403", "55040a"

AcceptCertificate: TypeAlias = Callable[[x509.Certificate, x509.Certificate, Profile], None]
Run: TypeAlias = Callable[..., "Outcome"]


@dataclass(frozen=True)
class Der:
    """One element of DER; `whole` is with tag and length."""

    tag: int
    content: bytes
    whole: bytes

    @property
    def parts(self) -> list[Der]:
        return list(read_der(self.content))

    @property
    def hex(self) -> str:
        return self.content.hex()


def read_der(data: bytes) -> Iterator[Der]:
    while data:
        length, start = data[1], 2
        if length & 0x80:
            start = 2 + (length & 0x7F)
            length = int.from_bytes(data[2:start], "big")
            assert length >= 0x80, "a length that is not minimal"
        whole, data = data[: start + length], data[start + length :]
        assert len(whole) == start + length
        yield Der(whole[0], whole[start:], whole)


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a program and return its exit code and all it said."""

    def run_program(*command: str | Path) -> Outcome:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=60, check=False
        )
        return Outcome(done.returncode, done.stdout + done.stderr)

    return run_program


FINDING = re.compile(r"^    ([a-z0-9_.]+ \([A-Z]+\))(?:: (.*))?$", re.MULTILINE)

# What pkilint finds and we do not share. RFC 5280 section 4.2.1.6 takes the preferred name syntax
# of RFC 1034 section 3.5, where a single label is a domain, and leaves wildcards to applications:
# RFC 9525 section 6.3 has them.
EXPLAINED = re.compile(
    r'Invalid domain name syntax: "(?:[a-z0-9-]+|\*\.[a-z0-9-]+(?:\.[a-z0-9-]+)+)"'
)


@pytest.fixture(scope="session")
def pkilint(run: Run) -> Callable[..., list[str]]:
    """Run one of pkilint's programs, down to NOTICE; return its findings but the explained ones."""

    def lint(program: str, *arguments: str | Path) -> list[str]:
        module = f"pkilint.bin.{program}"
        outcome = run(sys.executable, "-m", module, "lint", "-s", "NOTICE", *arguments)
        findings = FINDING.findall(outcome.output)
        # the exit code is the number of findings: anything else is an error of the program
        assert len(findings) == outcome.code, outcome.output
        return [f"{code} {text}" for code, text in findings if not EXPLAINED.fullmatch(text)]

    return lint


@pytest.fixture(scope="session")
def now() -> datetime:
    """The present, as the programs outside know it too."""
    return datetime.now(UTC)


@pytest.fixture(scope="session")
def hierarchy(now: datetime) -> Hierarchy:
    """A root and an intermediate with every address written into what they issue."""
    return create_hierarchy(
        "Example",
        now=now,
        root_crl_url="http://ca.example.test/root.crl",
        root_url="http://ca.example.test/root.cer",
        crl_url="http://ca.example.test/i1.crl",
        intermediate_url="http://ca.example.test/i1.cer",
        ocsp_url="http://ca.example.test/ocsp",
    )


@pytest.fixture(scope="session")
def der() -> Callable[[bytes], Der]:
    """Read exactly one element of DER."""

    def read_one(data: bytes) -> Der:
        (element,) = read_der(data)
        return element

    return read_one


@pytest.fixture(scope="session")
def accept_certificate() -> AcceptCertificate:
    """Assert over its DER that a certificate is what its profile promises."""
    return _accept


def _accept(certificate: x509.Certificate, issuer: x509.Certificate, profile: Profile) -> None:
    (outer,) = read_der(certificate.public_bytes(Encoding.DER))
    tbs, algorithm, _signature = outer.parts
    fields = tbs.parts
    version, serial, inner_algorithm, issuer_name, validity, subject, key, wrapped = fields
    assert version.whole.hex() == "a003020102", "version 3"
    _accept_serial(serial)
    assert inner_algorithm.whole == algorithm.whole
    _accept_algorithm(algorithm)
    issuer_fields = next(read_der(issuer.public_bytes(Encoding.DER))).parts[0].parts
    assert issuer_name.whole == issuer_fields[5].whole, "the issuer's subject, byte for byte"
    _accept_validity(validity, issuer_fields[4], profile)
    extensions = _extensions(wrapped)
    _accept_subject(subject, extensions, profile)
    assert set(extensions) == _expected_extensions(subject, extensions, profile, issuer)
    _accept_constraints(extensions, profile)
    critical, usage = extensions[KEY_USAGE]
    assert critical
    # bits from the left: digitalSignature 0, keyCertSign 5, cRLSign 6
    assert usage.hex == ("0106" if profile.is_ca else "0780")
    if profile.extended_key_usage:
        critical, purposes = extensions[EKU]
        assert not critical
        assert [part.hex for part in purposes.parts] == [
            _oid(purpose) for purpose in profile.extended_key_usage
        ]
    critical, identifier = extensions[SKI]
    bits = key.parts[1].content[1:]
    assert (critical, identifier.content) == (False, hashlib.sha256(bits).digest()[:20])
    critical, authority = extensions[AKI]
    issuer_key_bits = issuer_fields[6].parts[1].content[1:]
    assert not critical
    assert [(part.tag, part.content) for part in authority.parts] == [
        (0x80, hashlib.sha256(issuer_key_bits).digest()[:20])
    ], "keyIdentifier, and neither issuer nor serial"


def _accept_serial(serial: Der) -> None:
    assert serial.tag == INTEGER
    assert len(serial.content) <= 20
    assert int.from_bytes(serial.content, "big", signed=True) > 0
    assert serial.content[0] or serial.content[1] & 0x80, "minimal"
    # random, not counted: fewer octets than this come once in 2^47
    assert len(serial.content) >= 14


def _accept_algorithm(algorithm: Der) -> None:
    oid, *parameters = algorithm.parts
    assert oid.hex in {ECDSA_SHA256, ECDSA_SHA384, ED25519, RSA_SHA256}
    assert [part.tag for part in parameters] == ([NULL] if oid.hex == RSA_SHA256 else [])


def _moment(time: Der) -> datetime:
    text = time.content.decode()
    if time.tag == UTC_TIME:
        assert len(text) == 13, "YYMMDDHHMMSSZ"
        moment = datetime.strptime(text, "%y%m%d%H%M%SZ").replace(tzinfo=UTC)
        assert moment.year < 2050
    else:
        assert (time.tag, len(text)) == (GENERALIZED_TIME, 15)
        moment = datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
        assert moment.year >= 2050
    return moment


def _accept_validity(validity: Der, issuer_validity: Der, profile: Profile) -> None:
    begin, end = (_moment(part) for part in validity.parts)
    issuer_begin, issuer_end = (_moment(part) for part in issuer_validity.parts)
    assert issuer_begin <= begin < end <= issuer_end
    assert end - begin + timedelta(seconds=1) <= profile.greatest_lifetime


def _extensions(wrapped: Der) -> dict[str, tuple[bool, Der]]:
    assert wrapped.tag == 0xA3
    found: dict[str, tuple[bool, Der]] = {}
    for extension in wrapped.parts[0].parts:
        oid, *flag, value = extension.parts
        # the default, FALSE, is not encoded (X.690 section 11.5)
        assert [part.whole.hex() for part in flag] in ([], ["0101ff"])
        assert oid.hex not in found
        found[oid.hex] = (bool(flag), next(read_der(value.content)))
    return found


def _accept_subject(
    subject: Der, extensions: dict[str, tuple[bool, Der]], profile: Profile
) -> None:
    attributes: dict[str, list[str]] = {}
    for rdn in subject.parts:
        (pair,) = rdn.parts
        oid, value = pair.parts
        assert value.tag == UTF8
        attributes.setdefault(oid.hex, []).append(value.content.decode())
    assert set(attributes) <= {COMMON_NAME, ORGANIZATION}
    assert len(attributes.get(COMMON_NAME, [])) <= 1
    if SAN in extensions:
        critical, names = extensions[SAN]
        assert critical == (not attributes)
        dns_names = [part.content.decode() for part in names.parts if part.tag == 0x82]
        for name in dns_names:
            assert name == name.lower()
            assert not set(name.removeprefix("*.")) - set("abcdefghijklmnopqrstuvwxyz0123456789-.")
            assert not name.endswith(".")
        assert all(len(part.content) in (4, 16) for part in names.parts if part.tag == 0x87)
    match profile.name:
        case "server":
            assert not attributes
            assert SAN in extensions
        case "host":
            assert attributes == {COMMON_NAME: dns_names, ORGANIZATION: ["mooring:hosts"]}
        case "instance":
            assert attributes[ORGANIZATION] == ["mooring:instances"]
            assert attributes[COMMON_NAME]
        case "client":
            assert attributes[COMMON_NAME]
            assert not {"mooring:hosts", "mooring:instances"} & set(
                attributes.get(ORGANIZATION, [])
            )
        case _:
            assert set(attributes) == {COMMON_NAME}


def _expected_extensions(
    subject: Der,
    extensions: dict[str, tuple[bool, Der]],
    profile: Profile,
    issuer: x509.Certificate,
) -> set[str]:
    always = {SKI, AKI, CONSTRAINTS, KEY_USAGE}
    match profile.name:
        case "root":
            return always
        case "ocsp":
            return always | {EKU, NO_CHECK}
        case "intermediate":
            return always | {EKU, CRLDP, AIA}
        case "client" | "instance":
            return always | {EKU, CRLDP, AIA} | ({SAN} & set(extensions))
        case _:
            return always | {EKU, CRLDP, AIA, SAN}


def _accept_constraints(extensions: dict[str, tuple[bool, Der]], profile: Profile) -> None:
    critical, constraints = extensions[CONSTRAINTS]
    assert critical
    expected = {"root": "30030101ff", "intermediate": "30060101ff020100"}
    assert constraints.whole.hex() == expected.get(profile.name, "3000")


def _oid(identifier: x509.ObjectIdentifier) -> str:
    first, second, *rest = (int(number) for number in identifier.dotted_string.split("."))
    encoded = bytearray([first * 40 + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return encoded.hex()


# ---- the authority in service -------------------------------------------------------------------


@pytest.fixture
def make_authority(hierarchy: Hierarchy) -> Iterator[Callable[..., Authority]]:
    """Build an authority over a database by URL, with the profiles that are shipped."""
    databases: list[Database] = []

    def make(url: str, offers: Mapping[str, Offer] = SHIPPED, **options: Any) -> Authority:
        database = Database(url)
        databases.append(database)
        root_crl = hierarchy.crls()[1].public_bytes(Encoding.PEM)
        authorities = Authorities(hierarchy.root.certificate, root_crl, hierarchy.intermediate)
        return Authority(authorities, Ledger(database), offers, **options)

    yield make
    for database in databases:
        database.close()


@pytest.fixture
def authority(make_authority: Callable[..., Authority], database_url: str) -> Authority:
    """An authority over a new database of each engine."""
    return make_authority(database_url)
