"""An issuer is only one if certificate, key, chain and addresses go together."""

from __future__ import annotations

import pytest
from cryptography import x509

from services.ca.crl import build_crl
from services.ca.hierarchy import create_hierarchy
from services.ca.issue import issue
from services.ca.keys import generate_key
from services.ca.profiles import CLIENT, SERVER
from services.ca.request import make_request
from services.ca.signer import Issuer, KeySigner


def test_an_issuer_of_parts_that_do_not_belong_together_raises(hierarchy, now):
    """A leaf, a foreign key, a foreign chain and an https address are refused at once."""
    root, intermediate = hierarchy.root, hierarchy.intermediate
    leaf = hierarchy.issue_client("alice")
    with pytest.raises(ValueError, match="may not sign"):
        Issuer(leaf.certificate, KeySigner(leaf.key))
    with pytest.raises(ValueError, match="do not belong together"):
        Issuer(root.certificate, intermediate.signer)
    stranger = create_hierarchy("Example", now=now)
    with pytest.raises(ValueError, match="does not hold together"):
        Issuer(intermediate.certificate, intermediate.signer, (stranger.root.certificate,))
    with pytest.raises(ValueError, match="not an http address"):
        Issuer(root.certificate, root.signer, crl_url="https://ca.example.test/root.crl")


def test_the_chain_is_what_is_sent(hierarchy):
    """The intermediate without the root; nothing for a root."""
    assert hierarchy.intermediate.chain == (hierarchy.intermediate.certificate,)
    assert hierarchy.intermediate.root == hierarchy.root.certificate
    assert hierarchy.root.chain == ()
    assert hierarchy.root.is_root


def test_addresses_are_written_where_they_are_known(hierarchy, now):
    """CRL distribution point by full name, issuer and responder; none without addresses."""
    certificate = hierarchy.issue_client("alice").certificate
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [name.value for name in points[0].full_name or ()] == ["http://ca.example.test/i1.crl"]
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert [(each.access_method.dotted_string, each.access_location.value) for each in access] == [
        ("1.3.6.1.5.5.7.48.1", "http://ca.example.test/ocsp"),
        ("1.3.6.1.5.5.7.48.2", "http://ca.example.test/i1.cer"),
    ]
    bare = create_hierarchy("Bare", now=now).issue_client("alice").certificate
    kinds = {type(each.value) for each in bare.extensions}
    assert not kinds & {x509.CRLDistributionPoints, x509.AuthorityInformationAccess}


def test_another_signer_can_stand_in(hierarchy, now):
    """All that the core asks of a key goes through the three methods of the interface."""

    class Counting:
        def __init__(self, inner):
            self.inner, self.calls = inner, []

        def public_key(self):
            return self.inner.public_key()

        def sign(self, builder):
            self.calls.append("sign")
            return self.inner.sign(builder)

        def sign_crl(self, builder):
            self.calls.append("sign_crl")
            return self.inner.sign_crl(builder)

    signer = Counting(hierarchy.intermediate.signer)
    issuer = Issuer(hierarchy.intermediate.certificate, signer, hierarchy.intermediate.above)
    issue(CLIENT, make_request(generate_key().public_key(), common_name="a"), issuer, now=now)
    issue(SERVER, make_request(generate_key().public_key(), dns_names=["a.b"]), issuer, now=now)
    build_crl(issuer, number=1, now=now)
    assert signer.calls == ["sign", "sign", "sign_crl"]


def test_private_keys_do_not_show(hierarchy):
    """No representation holds a signer or a key."""
    credential = hierarchy.issue_client("alice")
    for shown in (repr(hierarchy), repr(hierarchy.root), repr(credential)):
        assert "rivate" not in shown
        assert "igner" not in shown
