"""What issuing decides beside the names: serial, dates, keys, and who may issue what."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.ca.hierarchy import create_hierarchy
from services.ca.issue import BACKDATE, create_root, issue, prepare, random_serial
from services.ca.keys import KeyType, accept_public_key, generate_key
from services.ca.profiles import CLIENT, HOST, INTERMEDIATE, OCSP, ROOT, SERVER
from services.ca.refusal import Refused
from services.ca.request import make_request
from services.ca.signer import Issuer, KeySigner

NOW = datetime(2026, 11, 20, 12, 0, 0, 987654, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def pki():
    return create_hierarchy("Issue", now=NOW)


def ask(**names):
    return make_request(generate_key().public_key(), **(names or {"common_name": "alice"}))


def refused_field(*arguments, **options):
    with pytest.raises(Refused) as caught:
        issue(*arguments, **options)
    return caught.value.field


def test_serials_are_random_positive_and_long():
    """Of a thousand serials none repeats, all fit 20 octets, and the high bits vary."""
    serials = [random_serial() for _ in range(1000)]
    assert len(set(serials)) == 1000
    assert all(0 < serial < 1 << 159 for serial in serials)
    assert len({serial >> 95 for serial in serials}) == 1000
    assert any(serial >> 158 for serial in serials)


def test_a_reserved_serial_is_used_and_a_bad_one_never(pki):
    """The ledger's serial is written as it is; zero, negative and overlong ones raise."""
    options = {"now": NOW + timedelta(hours=1)}
    certificate = issue(CLIENT, ask(), pki.intermediate, serial=4711, **options)
    assert certificate.serial_number == 4711
    for serial in (0, -1, 1 << 159):
        with pytest.raises(ValueError, match="serial"):
            issue(CLIENT, ask(), pki.intermediate, serial=serial, **options)


def test_dates_are_backdated_whole_seconds_and_inclusive(pki):
    """notBefore is five minutes ago; with both ends the validity is the lifetime exactly."""
    later = NOW + timedelta(hours=1)
    certificate = issue(CLIENT, ask(), pki.intermediate, now=later)
    begin = later.replace(microsecond=0) - BACKDATE
    assert certificate.not_valid_before_utc == begin
    assert certificate.not_valid_after_utc == begin + CLIENT.default_lifetime - SECOND


def test_other_time_zones_are_the_same_moment(pki):
    """A time in another zone is written in UTC."""
    there = NOW.astimezone(timezone(timedelta(hours=5)))
    certificate = issue(CLIENT, ask(), pki.intermediate, now=there)
    assert certificate.not_valid_before_utc == NOW.replace(microsecond=0) - BACKDATE


def test_nothing_begins_before_its_issuer(pki):
    """A leaf made at once is not backdated beyond the issuer's own beginning."""
    issuer = pki.intermediate.certificate
    early = issuer.not_valid_before_utc + SECOND
    certificate = issue(CLIENT, ask(), pki.intermediate, now=early)
    assert certificate.not_valid_before_utc == issuer.not_valid_before_utc


def test_the_default_lifetime_is_cut_to_the_issuers_end(pki):
    """Near the issuer's end a leaf gets what is left; a longer wish is refused."""
    end = pki.intermediate.certificate.not_valid_after_utc
    late = end - timedelta(days=3)
    request = ask(dns_names=["a.test"])
    certificate = issue(SERVER, request, pki.intermediate, now=late)
    assert certificate.not_valid_after_utc == end
    field = refused_field(SERVER, request, pki.intermediate, now=late, lifetime=timedelta(days=4))
    assert field == "/lifetime"


@pytest.mark.parametrize("lifetime", [timedelta(days=7, seconds=1), timedelta(minutes=9)])
def test_a_lifetime_beyond_the_profile_is_refused(pki, lifetime):
    """Longer than the greatest, or too short to be of use."""
    assert refused_field(CLIENT, ask(), pki.intermediate, now=NOW, lifetime=lifetime) == "/lifetime"


def test_a_wished_lifetime_is_kept(pki):
    """What is within the profile is given exactly."""
    certificate = issue(CLIENT, ask(), pki.intermediate, now=NOW, lifetime=CLIENT.greatest_lifetime)
    span = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert span + SECOND == CLIENT.greatest_lifetime


@pytest.mark.parametrize("away", [timedelta(days=-1), timedelta(days=400)])
def test_an_issuer_outside_its_validity_issues_nothing(pki, away):
    """Before its beginning and after its end."""
    assert refused_field(CLIENT, ask(), pki.intermediate, now=NOW + away) == "/issuer"


def test_a_time_without_zone_is_a_mistake(pki):
    """A naive time is nobody's request, so it is no refusal."""
    with pytest.raises((ValueError, TypeError)):
        issue(CLIENT, ask(), pki.intermediate, now=NOW.replace(tzinfo=None))


def test_the_authorities_own_keys_are_not_certified(pki):
    """Neither the issuer's nor the root's key gets a leaf."""
    for key in (pki.intermediate_key, pki.root_key):
        request = make_request(key.public_key(), common_name="alice")
        assert refused_field(CLIENT, request, pki.intermediate, now=NOW) == "/public_key"


def test_a_key_type_outside_the_profile_is_refused(pki):
    """The profile's list of key types binds."""
    profile = replace(CLIENT, key_types=frozenset({KeyType.P256}))
    request = make_request(generate_key(KeyType.ED25519).public_key(), common_name="alice")
    assert refused_field(profile, request, pki.intermediate, now=NOW) == "/public_key"
    with pytest.raises(Refused) as caught:
        create_root(KeySigner(generate_key(KeyType.P256)), common_name="R", now=NOW)
    assert caught.value.field == "/public_key"


def test_who_asks_for_an_authority_gets_no_leaf(pki):
    """CA:TRUE under a leaf profile is refused, not dropped."""
    request = make_request(generate_key().public_key(), common_name="alice", is_ca=True)
    assert refused_field(CLIENT, request, pki.intermediate, now=NOW) == "/csr"


def test_an_intermediate_makes_no_authority_and_a_root_no_leaf(pki):
    """Path length 0 below, an offline key above."""
    request = make_request(generate_key().public_key(), common_name="Sub", is_ca=True)
    assert refused_field(INTERMEDIATE, request, pki.intermediate, now=NOW) == "/issuer"
    assert refused_field(CLIENT, ask(), pki.root, now=NOW) == "/issuer"
    assert refused_field(SERVER, ask(dns_names=["a.test"]), pki.root, now=NOW) == "/issuer"
    responder = issue(OCSP, ask(common_name="Root OCSP"), pki.root, now=NOW)
    responder.verify_directly_issued_by(pki.root.certificate)


def test_an_issuer_bound_to_one_purpose_serves_no_other(pki):
    """The extended key usage of the issuer bounds that of its leaves."""
    signer = KeySigner(generate_key())
    only_servers = replace(INTERMEDIATE, extended_key_usage=(ExtendedKeyUsageOID.SERVER_AUTH,))
    request = make_request(signer.public_key(), common_name="Servers", is_ca=True)
    certificate = issue(only_servers, request, pki.root, now=NOW)
    issuer = Issuer(certificate, signer, above=(pki.root.certificate,))
    assert issue(SERVER, ask(dns_names=["a.test"]), issuer, now=NOW).issuer == certificate.subject
    assert refused_field(CLIENT, ask(), issuer, now=NOW) == "/issuer"


def test_key_encipherment_only_where_the_profile_says_so_and_the_key_can(pki):
    """Off by default, an option for RSA, never for other keys."""
    old = replace(SERVER, key_encipherment_for_rsa=True)
    found = {}
    for name, profile, kind in (
        ("default", SERVER, KeyType.RSA2048),
        ("rsa", old, KeyType.RSA2048),
        ("ecdsa", old, KeyType.P256),
    ):
        request = make_request(generate_key(kind).public_key(), dns_names=["a.test"])
        certificate = issue(profile, request, pki.intermediate, now=NOW)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        found[name] = (usage.digital_signature, usage.key_encipherment)
    assert found == {"default": (True, False), "rsa": (True, True), "ecdsa": (True, False)}


def test_preparing_signs_nothing_and_issuing_signs_what_was_prepared(pki):
    """The builder may be kept and signed later; both ways give the same fields."""
    request = ask(common_name="host1")
    builder = prepare(HOST, request, pki.intermediate, now=NOW, serial=99)
    later = pki.intermediate.signer.sign(builder)
    at_once = issue(HOST, request, pki.intermediate, now=NOW, serial=99)
    assert later.tbs_certificate_bytes == at_once.tbs_certificate_bytes
    assert accept_public_key(later.public_key()) == request.public_key


def test_dates_from_2050_are_generalized_time(accept_certificate):
    """RFC 5280 section 4.1.2.5: UTCTime to 2049, GeneralizedTime after."""
    root = create_root(
        KeySigner(generate_key(KeyType.P384)),
        common_name="Far",
        now=datetime(2045, 1, 1, tzinfo=UTC),
    )
    assert root.not_valid_after_utc.year == 2054
    accept_certificate(root, root, ROOT)
