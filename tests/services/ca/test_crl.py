"""Base lists of both authorities, as verifiers of whole chains need them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509

from services.ca import files
from services.ca.crl import CRL_LIFETIME, ROOT_CRL_LIFETIME, Revocation, build_crl
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
