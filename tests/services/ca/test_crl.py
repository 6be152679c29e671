"""Complete lists of both authorities, as verifiers of whole chains need them, and deltas."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca import files
from services.ca.crl import (
    CRL_LIFETIME,
    ROOT_CRL_LIFETIME,
    Revocation,
    build_crl,
    build_delta,
    crl_der,
    crl_pem,
    delta_url,
)
from services.ca.issue import BACKDATE


@pytest.fixture
def lists(hierarchy, now):
    revoked = [
        Revocation(7, now - timedelta(days=1), x509.ReasonFlags.key_compromise),
        Revocation(1 << 158, now - timedelta(hours=1)),
    ]
    return hierarchy.crls(number=41, revoked=revoked, now=now)


def test_a_list_holds_number_key_identifier_and_entries(hierarchy, lists, now):
    """Version 2, AKI by key identifier, CRLNumber, dates; no reason "unspecified" is written."""
    crl = lists[0]
    assert crl.is_signature_valid(hierarchy.intermediate_key.public_key())
    assert crl.issuer == hierarchy.intermediate.certificate.subject
    moment = now.replace(microsecond=0)
    assert crl.last_update_utc == moment - BACKDATE
    assert crl.next_update_utc == moment + CRL_LIFETIME
    assert {type(each.value): (each.value, each.critical) for each in crl.extensions} == {
        x509.AuthorityKeyIdentifier: (hierarchy.intermediate.key_id, False),
        x509.CRLNumber: (x509.CRLNumber(41), False),
    }
    assert [(each.serial_number, [e.value for e in each.extensions]) for each in crl] == [
        (7, [x509.CRLReason(x509.ReasonFlags.key_compromise)]),
        (1 << 158, []),
    ]
    assert crl[0].revocation_date_utc == (now - timedelta(days=1)).replace(microsecond=0)


def test_the_root_has_a_long_empty_list(hierarchy, lists, now):
    """No revokedCertificates at all when there are none, and a year until the next."""
    crl = lists[1]
    assert crl.is_signature_valid(hierarchy.root_key.public_key())
    assert len(crl) == 0
    assert crl.next_update_utc == now.replace(microsecond=0) + ROOT_CRL_LIFETIME


def test_linter_and_openssl_find_the_lists_sound(hierarchy, lists, tmp_path, pkilint, run):
    """pkilint (as CRL and as list of authorities) and `openssl crl -verify`."""
    hierarchy.write(tmp_path)
    for crl, name, kind in zip(lists, ("intermediate", "root"), ("CRL", "ARL"), strict=True):
        file = tmp_path / f"{name}.crl"
        files.write_crls(file, crl)
        assert pkilint("lint_crl", "-t", kind, "-p", "PKIX", file) == []
        outcome = run(
            *("openssl", "crl", "-in", file, "-noout", "-crlnumber"),
            *("-CAfile", tmp_path / f"{name}.crt", "-verify"),
        )
        assert outcome.code == 0
        assert "verify OK" in outcome.output
        assert "crlNumber=0x29" in outcome.output


def test_openssl_refuses_a_list_of_another_authority(hierarchy, lists, tmp_path, run):
    """The check above can fail."""
    hierarchy.write(tmp_path)
    files.write_crls(tmp_path / "i.crl", lists[0])
    outcome = run(
        *("openssl", "crl", "-in", tmp_path / "i.crl", "-noout"),
        *("-CAfile", tmp_path / "root.crt", "-verify"),
    )
    assert "verify OK" not in outcome.output


@pytest.mark.parametrize("number", [-1, 1 << 159])
def test_numbers_beyond_20_octets_raise(hierarchy, now, number):
    """RFC 5280 section 5.2.3."""
    with pytest.raises(ValueError, match="number"):
        build_crl(hierarchy.intermediate, number=number, now=now)


def test_mistakes_of_the_caller_raise(hierarchy, now):
    """A serial twice, and times without zone."""
    twice = [Revocation(7, now), Revocation(7, now, x509.ReasonFlags.superseded)]
    with pytest.raises(ValueError, match="twice"):
        build_crl(hierarchy.intermediate, number=1, now=now, revoked=twice)
    naive = now.replace(tzinfo=None)
    with pytest.raises(ValueError, match="zone"):
        build_crl(hierarchy.intermediate, number=1, now=naive)
    with pytest.raises(ValueError, match="zone"):
        build_crl(hierarchy.intermediate, number=1, now=now, revoked=[Revocation(7, naive)])


# ---- deltas -------------------------------------------------------------------------------------

DELTA_URL = "http://ca.example.test/i1-delta.crl"


@pytest.fixture
def pair(hierarchy, now):
    """A complete list and the delta of its number, to an older list."""
    revoked = [
        Revocation(7, now - timedelta(days=1), x509.ReasonFlags.key_compromise),
        Revocation(9, now, x509.ReasonFlags.certificate_hold),
    ]
    changed = [revoked[1], Revocation(11, now, x509.ReasonFlags.remove_from_crl)]
    issuer = hierarchy.intermediate
    return (
        build_crl(issuer, number=41, now=now, revoked=revoked, delta_url=DELTA_URL),
        build_delta(
            issuer, number=41, base_number=40, now=now, changed=changed, lifetime=timedelta(days=2)
        ),
    )


def test_a_complete_list_says_where_the_delta_is(pair, hierarchy):
    """FreshestCRL, not critical (RFC 5280 section 5.2.6): OpenSSL applies no delta without it."""
    values = {type(each.value): each for each in pair[0].extensions}
    freshest = values[x509.FreshestCRL]
    assert not freshest.critical
    (point,) = freshest.value
    assert [each.value for each in point.full_name] == [DELTA_URL]
    assert set(values) == {x509.AuthorityKeyIdentifier, x509.CRLNumber, x509.FreshestCRL}


def test_a_delta_is_marked_critically_and_has_the_number_of_its_complete_list(pair, now):
    """Section 5.2.4: a critical DeltaCRLIndicator, the same thisUpdate, and no FreshestCRL."""
    complete, delta = pair
    assert {type(each.value): (each.value, each.critical) for each in delta.extensions} == {
        x509.AuthorityKeyIdentifier: (
            complete.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value,
            False,
        ),
        x509.CRLNumber: (x509.CRLNumber(41), False),
        x509.DeltaCRLIndicator: (x509.DeltaCRLIndicator(40), True),
    }
    assert delta.last_update_utc == complete.last_update_utc
    assert delta.next_update_utc == now.replace(microsecond=0) + timedelta(days=2)


def test_a_delta_holds_and_removes(pair):
    """certificateHold and removeFromCRL as reason codes."""
    assert {each.serial_number: next(iter(each.extensions)).value.reason for each in pair[1]} == {
        9: x509.ReasonFlags.certificate_hold,
        11: x509.ReasonFlags.remove_from_crl,
    }


REASONS = [each for each in x509.ReasonFlags if each is not x509.ReasonFlags.unspecified]


@pytest.mark.parametrize("reason", REASONS, ids=lambda each: each.value)
def test_every_reason_is_written(hierarchy, now, reason):
    """RFC 5280 section 5.3.1; removeFromCRL in deltas only."""
    revoked = [Revocation(7, now, reason)]
    issuer = hierarchy.intermediate
    if reason is x509.ReasonFlags.remove_from_crl:
        with pytest.raises(ValueError, match="delta only"):
            build_crl(issuer, number=2, now=now, revoked=revoked)
        return
    (entry,) = build_crl(issuer, number=2, now=now, revoked=revoked)
    assert [(each.value.reason, each.critical) for each in entry.extensions] == [(reason, False)]


def test_linters_and_relying_parties_find_both_sound(pair, hierarchy, tmp_path, pkilint, run):
    """pkilint, `openssl crl -verify` and `certtool --verify-crl`, on complete list and delta."""
    hierarchy.write(tmp_path)
    for crl, name in zip(pair, ("complete", "delta"), strict=True):
        file = tmp_path / f"{name}.crl"
        files.write_crls(file, crl)
        assert pkilint("lint_crl", "-t", "CRL", "-p", "PKIX", file) == []
        outcome = run(
            *("openssl", "crl", "-in", file, "-noout"),
            *("-CAfile", tmp_path / "intermediate.crt", "-verify"),
        )
        assert (outcome.code, "verify OK" in outcome.output) == (0, True)
        outcome = run(
            *("certtool", "--verify-crl", "--infile", file),
            *("--load-ca-certificate", tmp_path / "intermediate.crt"),
        )
        assert outcome.code == 0, outcome.output
        assert "Verified" in outcome.output


def test_pem_is_what_the_library_writes(pair):
    """DER and PEM of one list, the latter made without reading it."""
    for crl in pair:
        assert crl_pem(crl_der(crl)) == crl.public_bytes(Encoding.PEM)


def test_the_delta_is_found_beside_its_list():
    """/crl/ID.crl and /crl/ID-delta.crl."""
    assert delta_url("http://ca.example.test/crl/ab.crl") == (
        "http://ca.example.test/crl/ab-delta.crl"
    )


@pytest.mark.parametrize("base", [-1, 5, 6])
def test_a_delta_to_a_list_that_is_not_older_raises(hierarchy, now, base):
    """It would be applied to a list that says more than it does."""
    with pytest.raises(ValueError, match="older"):
        build_delta(
            hierarchy.intermediate, number=5, base_number=base, now=now, lifetime=timedelta(days=2)
        )
