"""Every profile's output, judged by our own assertions and by those who will rely on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from services.ca import files
from services.ca.crl import Revocation
from services.ca.hierarchy import Hierarchy, create_hierarchy
from services.ca.keys import KeyType, key_identifier
from services.ca.profiles import (
    ALL_KEY_TYPES,
    CLIENT,
    HOST,
    INSTANCE,
    INTERMEDIATE,
    OCSP,
    PROFILES,
    ROOT,
    SERVER,
    NameRules,
    Profile,
)
from services.ca.refusal import Refused
from services.ca.verify import verify_client_chain

SERVER_NAME = "www.example.test"

ASKED: dict[str, dict[str, Any]] = {
    "server": {"dns_names": [SERVER_NAME, "*.example.test"], "ip_addresses": ["192.0.2.1", "::1"]},
    "client": {"common_name": "alice", "organizations": ["mooring:operators", "team"]},
    "host": {"common_name": "host1.example.test"},
    "instance": {"common_name": "2f1c3c9e-4f0a-4f4e-9c1c-2e0f7a3b1d11"},
    "ocsp": {"common_name": "Example OCSP"},
}
PURPOSES = {"server": "sslserver", "client": "sslclient", "host": "sslclient"}
PURPOSES |= {"instance": "sslclient", "ocsp": "ocsphelper"}
GNUTLS_PURPOSES = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "host": ExtendedKeyUsageOID.CLIENT_AUTH,
    "instance": ExtendedKeyUsageOID.CLIENT_AUTH,
}
LEAVES = [
    (name, kind)
    for name in ASKED
    for kind in sorted(PROFILES[name].key_types, key=lambda each: each.value)
    if kind in {KeyType.P256, KeyType.P384, KeyType.ED25519, KeyType.RSA2048}
]


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / "leaf.pem"


@pytest.fixture(scope="module")
def trust(hierarchy: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trust")
    hierarchy.write(directory)
    files.write_crls(directory / "crls.pem", *hierarchy.crls())
    return directory


@pytest.fixture(scope="module", params=LEAVES, ids=lambda each: f"{each[0]}-{each[1].value}")
def leaf(
    request: pytest.FixtureRequest, hierarchy: Hierarchy, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Profile, Issued]:
    name, kind = request.param
    directory = tmp_path_factory.mktemp("leaf")
    issued = hierarchy.issue(PROFILES[name], **ASKED[name], key_type=kind)
    files.write_certificates(directory / "leaf.pem", issued.certificate)
    return PROFILES[name], Issued(issued.certificate, directory)


def openssl_verify(run: Callable[..., Any], trust: Path, leaf: Path, *more: str | Path) -> Any:
    return run(
        *("openssl", "verify", "-x509_strict", "-auth_level", "2"),
        *("-CAfile", trust / "root.crt", "-untrusted", trust / "intermediate.crt"),
        *more,
        leaf,
    )


def certtool_verify(run: Callable[..., Any], root: Path, chain: Path, *more: str) -> Any:
    if shutil.which("certtool") is None:
        pytest.fail("certtool is missing: apt-get install gnutls-bin")
    return run(
        *("certtool", "--verify", "--verify-profile=medium"),
        *("--load-ca-certificate", root, "--infile", chain),
        *more,
    )


def test_every_leaf_is_what_its_profile_promises(leaf, hierarchy, accept_certificate):
    """Our own assertions over the DER hold for every leaf profile and kind of key."""
    profile, issued = leaf
    accept_certificate(issued.certificate, hierarchy.intermediate.certificate, profile)


def test_root_and_intermediate_are_what_their_profiles_promise(hierarchy, accept_certificate):
    """Our own assertions over the DER hold for the authorities."""
    root = hierarchy.root.certificate
    accept_certificate(root, root, ROOT)
    accept_certificate(hierarchy.intermediate.certificate, root, INTERMEDIATE)


def test_pkilint_finds_nothing_in_any_leaf(leaf, trust, pkilint):
    """pkilint has no finding down to NOTICE, in the certificate and against its issuer."""
    _, issued = leaf
    assert pkilint("lint_pkix_cert", issued.file) == []
    issuer = trust / "intermediate.crt"
    assert pkilint("lint_pkix_signer_signee_cert_chain", issuer, issued.file) == []


def test_pkilint_finds_nothing_in_the_authorities(trust, pkilint):
    """pkilint has no finding in root, intermediate, and one against the other."""
    root, intermediate = trust / "root.crt", trust / "intermediate.crt"
    assert pkilint("lint_pkix_cert", root) == []
    assert pkilint("lint_pkix_cert", intermediate) == []
    assert pkilint("lint_pkix_signer_signee_cert_chain", root, intermediate) == []


def test_pkilint_finds_nothing_in_a_host_of_one_label(hierarchy, tmp_path, pkilint):
    """A short host name brings no finding but the explained one about single labels."""
    files.write_certificates(tmp_path / "host1.pem", hierarchy.issue_host("host1").certificate)
    assert pkilint("lint_pkix_cert", tmp_path / "host1.pem") == []


def test_openssl_accepts_every_leaf_for_its_purpose(leaf, trust, run):
    """OpenSSL verifies strictly, at level 2, with the lists of both authorities."""
    profile, issued = leaf
    outcome = openssl_verify(
        run,
        trust,
        issued.file,
        *("-purpose", PURPOSES[profile.name]),
        *("-crl_check_all", "-CRLfile", trust / "crls.pem"),
    )
    assert (outcome.code, outcome.output) == (0, f"{issued.file}: OK\n")


def test_openssl_refuses_a_leaf_for_another_purpose(hierarchy, trust, tmp_path, run):
    """A server's certificate is no client's, and the other way round."""
    server = tmp_path / "server.pem"
    client = tmp_path / "client.pem"
    files.write_certificates(server, hierarchy.issue_server([SERVER_NAME]).certificate)
    files.write_certificates(client, hierarchy.issue_client("alice").certificate)
    as_client = openssl_verify(run, trust, server, "-purpose", "sslclient")
    as_server = openssl_verify(run, trust, client, "-purpose", "sslserver")
    for outcome in (as_client, as_server):
        assert outcome.code == 2
        assert "error 26" in outcome.output


def test_gnutls_accepts_every_leaf_for_its_purpose(leaf, hierarchy, trust, run):
    """GnuTLS verifies the full chain; for a server also its name.

    certtool wants a purpose to be that of the whole chain, which an OCSP responder's is not.
    """
    profile, issued = leaf
    chain = issued.directory / "chain.pem"
    files.write_certificates(chain, issued.certificate, *hierarchy.intermediate.chain)
    more = []
    if profile is not OCSP:
        more.append(f"--verify-purpose={GNUTLS_PURPOSES[profile.name].dotted_string}")
    if profile is SERVER:
        more.append(f"--verify-hostname={SERVER_NAME}")
    outcome = certtool_verify(run, trust / "root.crt", chain, *more)
    assert outcome.code == 0, outcome.output
    assert "Chain verification output: Verified. The certificate is trusted." in outcome.output


def test_gnutls_refuses_a_server_by_another_name(hierarchy, trust, tmp_path, run):
    """The check by GnuTLS can fail: another host's name is refused."""
    chain = tmp_path / "chain.pem"
    files.write_certificates(chain, *hierarchy.issue_server([SERVER_NAME]).full_chain)
    outcome = certtool_verify(
        run, trust / "root.crt", chain, "--verify-hostname=www.example.invalid"
    )
    assert outcome.code == 1


def test_cryptography_accepts_every_server_and_client(leaf, hierarchy, now):
    """The library's own path validation takes them: servers by name, clients by our policy.

    It verifies no OCSP responders; as a client, one is refused.
    """
    profile, issued = leaf
    root = hierarchy.root.certificate
    chain = list(hierarchy.intermediate.chain)
    if profile is OCSP:
        with pytest.raises(Refused):
            verify_client_chain(issued.certificate, chain, [root], now=now)
    elif profile is SERVER:
        builder = PolicyBuilder().store(Store([root])).time(now)
        verifier = builder.build_server_verifier(x509.DNSName(SERVER_NAME))
        assert verifier.verify(issued.certificate, chain) == [issued.certificate, *chain, root]
    else:
        found = verify_client_chain(issued.certificate, chain, [root], now=now)
        assert found == (issued.certificate, *chain, root)


@pytest.mark.parametrize("kind", [KeyType.ED25519, KeyType.RSA2048, KeyType.P384])
def test_a_hierarchy_of_another_key_type_verifies_too(
    kind, now, tmp_path, run, pkilint, accept_certificate
):
    """Profiles widened by an operator give authorities of every kind of key."""
    found = create_hierarchy(
        "Other",
        now=now,
        root_crl_url="http://ca.example.test/root.crl",
        root_url="http://ca.example.test/root.cer",
        crl_url="http://ca.example.test/i1.crl",
        intermediate_url="http://ca.example.test/i1.cer",
        root_profile=replace(ROOT, key_types=ALL_KEY_TYPES, default_key_type=kind),
        intermediate_profile=replace(INTERMEDIATE, key_types=ALL_KEY_TYPES, default_key_type=kind),
    )
    found.write(tmp_path)
    issued = found.issue_server([SERVER_NAME]).certificate
    files.write_certificates(tmp_path / "leaf.pem", issued)
    accept_certificate(found.root.certificate, found.root.certificate, ROOT)
    accept_certificate(found.intermediate.certificate, found.root.certificate, INTERMEDIATE)
    accept_certificate(issued, found.intermediate.certificate, SERVER)
    outcome = openssl_verify(run, tmp_path, tmp_path / "leaf.pem", "-purpose", "sslserver")
    assert outcome.code == 0, outcome.output
    for name in ("root.crt", "intermediate.crt", "leaf.pem"):
        assert pkilint("lint_pkix_cert", tmp_path / name) == []


def _defective(hierarchy: Hierarchy, now: datetime, defect: str) -> x509.Certificate:
    """A server certificate below the hierarchy with exactly one thing wrong."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = hierarchy.intermediate
    good = hierarchy.issue_server([SERVER_NAME]).certificate
    extensions = {type(each.value): each for each in good.extensions}
    begin, end = good.not_valid_before_utc, good.not_valid_after_utc
    serial = good.serial_number
    subject = good.subject
    values = {kind: (each.value, each.critical) for kind, each in extensions.items()}
    own_identifier = x509.SubjectKeyIdentifier(key_identifier(key.public_key()))
    values[x509.SubjectKeyIdentifier] = (own_identifier, False)
    match defect:
        case "none":
            pass
        case "sequential serial":
            serial = 4711
        case "no key usage":
            del values[x509.KeyUsage]
        case "no extended key usage":
            del values[x509.ExtendedKeyUsage]
        case "outlives its issuer":
            end = issuer.certificate.not_valid_after_utc + timedelta(seconds=1)
        case "valid too long":
            end = begin + SERVER.greatest_lifetime
        case "underscore":
            values[x509.SubjectAlternativeName] = (
                x509.SubjectAlternativeName([x509.DNSName("a_b.example.test")]),
                True,
            )
        case "common name":
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "other.test")])
        case "key identifier by SHA-1":
            by_sha1 = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            values[x509.SubjectKeyIdentifier] = (by_sha1, False)
        case "issuer and serial in AKI":
            values[x509.AuthorityKeyIdentifier] = (
                x509.AuthorityKeyIdentifier(
                    issuer.key_id.key_identifier,
                    [x509.DirectoryName(hierarchy.root.certificate.subject)],
                    issuer.certificate.serial_number,
                ),
                False,
            )
        case "alternative names not critical":
            values[x509.SubjectAlternativeName] = (
                values[x509.SubjectAlternativeName][0],
                False,
            )
        case "an authority":
            values[x509.BasicConstraints] = (x509.BasicConstraints(True, None), True)
        case "unasked extension":
            values[x509.TLSFeature] = (
                x509.TLSFeature([x509.TLSFeatureType.status_request]),
                False,
            )
    builder = x509.CertificateBuilder(issuer.certificate.subject, subject, key.public_key(), serial)
    builder = builder.not_valid_before(begin).not_valid_after(end)
    for value, critical in values.values():
        builder = builder.add_extension(value, critical)
    return builder.sign(hierarchy.intermediate_key, hashes.SHA256())


@pytest.mark.parametrize(
    "defect",
    [
        "sequential serial",
        "no key usage",
        "no extended key usage",
        "outlives its issuer",
        "valid too long",
        "underscore",
        "common name",
        "key identifier by SHA-1",
        "issuer and serial in AKI",
        "alternative names not critical",
        "an authority",
        "unasked extension",
    ],
)
def test_our_own_assertions_see_what_no_tool_sees(defect, hierarchy, now, accept_certificate):
    """Each defect, alone, fails the acceptance that the same certificate without it passes."""
    issuer = hierarchy.intermediate.certificate
    accept_certificate(_defective(hierarchy, now, "none"), issuer, SERVER)
    with pytest.raises((AssertionError, KeyError)):
        accept_certificate(_defective(hierarchy, now, defect), issuer, SERVER)


def test_pkilint_and_openssl_can_find_something(hierarchy, trust, now, tmp_path, pkilint, run):
    """The outside checks fail for a defect that they do know."""
    broken = _defective(hierarchy, now, "alternative names not critical")
    files.write_certificates(tmp_path / "broken.pem", broken)
    assert pkilint("lint_pkix_cert", tmp_path / "broken.pem") != []
    strange = create_hierarchy("Example", now=now).issue_server([SERVER_NAME]).certificate
    files.write_certificates(tmp_path / "strange.pem", strange)
    issuer = trust / "intermediate.crt"
    assert pkilint("lint_pkix_signer_signee_cert_chain", issuer, tmp_path / "strange.pem") != []
    assert openssl_verify(run, trust, tmp_path / "strange.pem").code == 2


def test_a_revoked_leaf_is_refused_by_openssl_and_gnutls(hierarchy, trust, tmp_path, run, now):
    """The base list of the intermediate takes effect, beside that of the root."""
    issued = hierarchy.issue_client("alice")
    files.write_certificates(tmp_path / "leaf.pem", issued.certificate)
    files.write_certificates(tmp_path / "chain.pem", *issued.full_chain)
    revoked = [Revocation(issued.certificate.serial_number, now, x509.ReasonFlags.key_compromise)]
    files.write_crls(tmp_path / "crls.pem", *hierarchy.crls(number=2, revoked=revoked))
    lists = ("-crl_check_all", "-CRLfile", tmp_path / "crls.pem")
    outcome = openssl_verify(run, trust, tmp_path / "leaf.pem", *lists)
    assert outcome.code == 2
    assert "error 23" in outcome.output
    gnutls = certtool_verify(
        run, trust / "root.crt", tmp_path / "chain.pem", f"--load-crl={tmp_path / 'crls.pem'}"
    )
    assert gnutls.code == 1
    assert "revoked" in gnutls.output


def test_every_usage_is_one_purpose(hierarchy):
    """No leaf profile mixes purposes, and none has anyExtendedKeyUsage."""
    for profile in PROFILES.values():
        assert ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in profile.extended_key_usage
        if not profile.is_ca:
            assert len(profile.extended_key_usage) == 1


def test_inconsistent_profiles_do_not_come_to_be():
    """A profile that contradicts itself is a mistake in configuration and raises at once."""
    with pytest.raises(ValueError, match="default key type"):
        replace(ROOT, default_key_type=KeyType.ED25519)
    with pytest.raises(ValueError, match="default lifetime"):
        replace(CLIENT, default_lifetime=timedelta(days=8))
    with pytest.raises(ValueError, match="path length"):
        replace(HOST, path_length=0)
    with pytest.raises(ValueError, match="slash"):
        NameRules(uris=("spiffe://a.example",))


@pytest.mark.parametrize(
    ("rules", "name", "allowed"),
    [
        (NameRules(dns=("example.test",)), "example.test", True),
        (NameRules(dns=("example.test",)), "a.b.example.test", True),
        (NameRules(dns=("example.test",)), "evilexample.test", False),
        (NameRules(dns=("example.test",)), "example.test.evil.test", False),
        (NameRules(dns=("example.test",)), "*.example.test", False),
        (NameRules(dns=("example.test",), wildcards=True), "*.example.test", True),
        (NameRules(dns=("a.example.test",), wildcards=True), "*.example.test", False),
        (NameRules(dns=(".",)), "anything.test", True),
        (NameRules(), "anything.test", False),
    ],
)
def test_dns_trees_compare_whole_labels(rules, name, allowed):
    """A tree allows itself and what is below it; nothing listed allows nothing."""
    if allowed:
        rules.check([name], [], [])
    else:
        with pytest.raises(Refused) as caught:
            rules.check([name], [], [])
        assert caught.value.field == "/dns_names/0"


def test_addresses_and_uris_are_bound_too(hierarchy):
    """Networks and beginnings of URIs allow what lies inside and name the field of the rest."""
    rules = NameRules(networks=(ip_network("192.0.2.0/24"),), uris=("spiffe://example.test/",))
    profile = replace(INSTANCE, names=rules)
    good = hierarchy.issue(
        profile,
        common_name="i-1",
        ip_addresses=["192.0.2.7"],
        uris=["spiffe://example.test/instance/1"],
    )
    names = good.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(each.value) for each in names.value] == [
        "192.0.2.7",
        "spiffe://example.test/instance/1",
    ]
    with pytest.raises(Refused) as caught:
        hierarchy.issue(profile, common_name="i-1", ip_addresses=["192.0.2.7", "198.51.100.1"])
    assert caught.value.field == "/ip_addresses/1"
    with pytest.raises(Refused) as caught:
        hierarchy.issue(profile, common_name="i-1", uris=["spiffe://example.test.evil.test/x"])
    assert caught.value.field == "/uris/0"
