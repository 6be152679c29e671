"""Client chains: accepted only whole, in time, of our root, and of a client."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from services.ca.hierarchy import create_hierarchy
from services.ca.issue import Validity, certificate_builder
from services.ca.refusal import Refused
from services.ca.verify import verify_client_chain


def refused(leaf, chain, roots, now):
    with pytest.raises(Refused) as caught:
        verify_client_chain(leaf, chain, roots, now=now)
    assert caught.value.field == "/certificate"


def test_users_hosts_and_instances_are_clients(hierarchy, now):
    """With and without alternative names."""
    root = hierarchy.root.certificate
    for issued in (
        hierarchy.issue_client("alice", ["mooring:admins"]),
        hierarchy.issue_host("host1"),
        hierarchy.issue_instance("i-1"),
    ):
        found = verify_client_chain(issued.certificate, issued.chain, [root], now=now)
        assert found == (*issued.full_chain, root)


def test_a_server_is_no_client(hierarchy, now):
    """The purpose is checked."""
    issued = hierarchy.issue_server(["a.test"])
    refused(issued.certificate, issued.chain, [hierarchy.root.certificate], now)


def test_chain_root_and_time_are_checked(hierarchy, now):
    """Without the intermediate, under another root of the same name, too early and too late."""
    issued = hierarchy.issue_client("alice")
    root = hierarchy.root.certificate
    refused(issued.certificate, [], [root], now)
    stranger = create_hierarchy("Example", now=now)
    refused(issued.certificate, issued.chain, [stranger.root.certificate], now)
    refused(issued.certificate, stranger.intermediate.chain, [root], now)
    refused(issued.certificate, issued.chain, [root], now + timedelta(days=2))
    refused(issued.certificate, issued.chain, [root], now - timedelta(days=2))


@pytest.mark.parametrize("missing", ["extended key usage", "key usage", "nothing"])
def test_a_client_without_usages_is_refused(hierarchy, now, missing):
    """OpenSSL takes a certificate without extended key usage for a client; we do not."""
    key = ec.generate_private_key(ec.SECP256R1())
    good = hierarchy.issue_client("alice").certificate
    builder = certificate_builder(
        subject=good.subject,
        public_key=key.public_key(),
        issuer_name=good.issuer,
        authority_key=hierarchy.intermediate.key_id,
        validity=Validity(good.not_valid_before_utc, good.not_valid_after_utc),
        serial=None,
    )
    builder = builder.add_extension(x509.BasicConstraints(False, None), True)
    if missing != "key usage":
        usage = good.extensions.get_extension_for_class(x509.KeyUsage)
        builder = builder.add_extension(usage.value, True)
    if missing != "extended key usage":
        purposes = good.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        builder = builder.add_extension(purposes.value, False)
    leaf = builder.sign(hierarchy.intermediate_key, hashes.SHA256())
    chain, roots = hierarchy.intermediate.chain, [hierarchy.root.certificate]
    if missing == "nothing":
        assert verify_client_chain(leaf, chain, roots, now=now)[0] == leaf
    else:
        refused(leaf, chain, roots, now)


def test_a_time_without_zone_is_a_mistake(hierarchy, now):
    """The library would take it for UTC in silence."""
    issued = hierarchy.issue_client("alice")
    with pytest.raises(ValueError, match="zone"):
        verify_client_chain(
            issued.certificate,
            issued.chain,
            [hierarchy.root.certificate],
            now=now.replace(tzinfo=None),
        )
