"""Templates: octet for octet what the library's builder makes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from services.ca.hierarchy import Hierarchy, create_hierarchy
from services.ca.issue import decide, prepare
from services.ca.keys import KeyType, generate_key, key_identifier, key_type
from services.ca.profiles import CLIENT, HOST, INSTANCE, INTERMEDIATE, OCSP, SERVER, Profile
from services.ca.request import CertificateRequest, make_request
from services.ca.signer import Issuer, KeySigner
from services.ca.template import Template, assemble
from services.ca.unsigned import draft

NOW = datetime(2026, 11, 21, 12, 30, 15, 250000, tzinfo=UTC)
KEYS = {kind: generate_key(kind).public_key() for kind in KeyType}


def same(
    profile: Profile,
    request: CertificateRequest,
    issuer: Issuer,
    *,
    now: datetime = NOW,
    serial: int = 1 << 158,
) -> x509.Certificate:
    """Assert that both ways give the same octets; return the certificate, signed."""
    decision = decide(profile, request, issuer, now=now)
    unsigned = Template(profile, issuer, key_type(request.public_key)).fill(
        request, decision, serial
    )
    builder = prepare(profile, request, issuer, now=now, serial=serial)
    expected = draft(builder, issuer.public_keys[0])
    assert unsigned.tbs_certificate_bytes == expected.tbs_certificate_bytes
    signature = issuer.signer.sign_bytes(unsigned.tbs_certificate_bytes)
    certificate = x509.load_der_x509_certificate(assemble(unsigned, signature))
    certificate.verify_directly_issued_by(issuer.certificate)
    assert certificate.tbs_certificate_bytes == expected.tbs_certificate_bytes
    assert certificate.serial_number == unsigned.serial_number == serial
    assert unsigned.key_id == key_identifier(request.public_key)
    return certificate


@pytest.fixture(scope="module", params=[KeyType.P256, KeyType.P384, KeyType.ED25519, "rsa"])
def issuer(request: pytest.FixtureRequest) -> Issuer:
    """An intermediate with each kind of key."""
    kind = KeyType.RSA2048 if request.param == "rsa" else request.param
    return pki(kind).intermediate


def pki(kind: KeyType = KeyType.P256, **urls: str) -> Hierarchy:
    urls = urls or {
        "crl_url": "http://ca.example.test/i1.crl",
        "intermediate_url": "http://ca.example.test/i1.cer",
        "ocsp_url": "http://ca.example.test/ocsp",
    }
    made = create_hierarchy("Example", now=NOW - timedelta(days=1), **urls)
    if kind is KeyType.P256:
        return made
    signer = KeySigner(generate_key(kind))
    wanted = make_request(signer.public_key(), common_name="Example Issuing", is_ca=True)
    profile = replace(INTERMEDIATE, key_types=frozenset({kind}), default_key_type=kind)
    certificate = made.root.signer.sign(
        prepare(profile, wanted, made.root, now=NOW - timedelta(hours=1))
    )
    issuer = replace(
        made.intermediate,
        certificate=certificate,
        signer=signer,
        above=(made.root.certificate,),
    )
    return replace(made, intermediate=issuer)


def test_every_issuers_key_signs_the_same(issuer: Issuer) -> None:
    """The algorithm is named as the library names it, inside and outside."""
    certificate = same(SERVER, make_request(KEYS[KeyType.P256], dns_names=["a.example"]), issuer)
    assert certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", KeyType)
def test_every_kind_of_key_is_certified_the_same(kind: KeyType) -> None:
    """Key, key identifier, and key usage where the profile gives RSA keys another."""
    issuer = pki().intermediate
    request = make_request(KEYS[kind], dns_names=["a.example"], ip_addresses=["192.0.2.1", "::2"])
    same(SERVER, request, issuer)
    same(replace(SERVER, key_encipherment_for_rsa=True), request, issuer)


def test_every_profile_is_the_same() -> None:
    """Subjects, groups, alternative names of each kind, no-check; with and without addresses."""
    key = KEYS[KeyType.P256]
    uris = replace(CLIENT, names=replace(CLIENT.names, uris=("spiffe://example/",)))
    requests = [
        (CLIENT, make_request(key, common_name="alice", organizations=["a", "b"])),
        (uris, make_request(key, common_name="alice", uris=["spiffe://example/alice"])),
        (HOST, make_request(key, common_name="node-1.example")),
        (INSTANCE, make_request(key, common_name="i-1", dns_names=["vm.example"])),
        (OCSP, make_request(key, common_name="Responder é")),
        (SERVER, make_request(key, dns_names=["*.example.com"])),
    ]
    bare = create_hierarchy("Bare", now=NOW - timedelta(days=1)).intermediate
    for profile, request in requests:
        same(profile, request, pki().intermediate)
        same(profile, request, bare)


def test_an_authority_below_a_root_is_the_same() -> None:
    """Basic constraints with a path length, and the usage of an authority."""
    request = make_request(KEYS[KeyType.P384], common_name="Next", is_ca=True)
    same(INTERMEDIATE, request, pki().root)


def test_dates_of_all_years_and_zones_are_the_same() -> None:
    """UTCTime through 2049, GeneralizedTime from 2050, in UTC whatever the clock's zone."""
    request = make_request(KEYS[KeyType.P256], dns_names=["a.example"])
    zone = timezone(timedelta(hours=5, minutes=30))
    same(SERVER, request, pki().intermediate, now=NOW.astimezone(zone))
    for year in (2049, 2050):
        moment = datetime(year, 12, 20, tzinfo=UTC)
        issuer = create_hierarchy("Late", now=moment).intermediate
        same(SERVER, request, issuer, now=moment + timedelta(hours=1))


ISSUER = pki().intermediate


@given(
    serial=st.integers(1, (1 << 159) - 1),
    labels=st.lists(st.from_regex(r"[a-z]([a-z0-9]{0,60}[a-z0-9])?", fullmatch=True), max_size=60),
)
def test_any_serial_and_any_number_of_names_are_the_same(serial: int, labels: list[str]) -> None:
    """Lengths of one, two and three octets, and serials whose first bit is set."""
    names = [f"{label}.example" for label in dict.fromkeys(["a", *labels])]
    same(SERVER, make_request(KEYS[KeyType.P256], dns_names=names), ISSUER, serial=serial)
