"""Subject and alternative names follow the rule of the profile."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from services.ca.profiles import CLIENT, HOST, INSTANCE, INTERMEDIATE, OCSP, ROOT, SERVER, Profile
from services.ca.refusal import Refused
from services.ca.request import make_request
from services.ca.subjects import certificate_names

KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


def decide(profile: Profile, **asked: Any) -> tuple[str, list[str]]:
    found = certificate_names(profile, make_request(KEY, **asked))
    names = [] if found.alternatives is None else [str(each.value) for each in found.alternatives]
    assert found.critical == (found.subject == x509.Name([]))
    return found.subject.rfc4514_string(), names


@pytest.mark.parametrize(
    ("profile", "asked", "subject", "names"),
    [
        (SERVER, {"dns_names": ["A.test", "*.b.test"]}, "", ["a.test", "*.b.test"]),
        (SERVER, {"common_name": "A.test", "dns_names": ["a.test"]}, "", ["a.test"]),
        (SERVER, {"common_name": "::1", "ip_addresses": ["::1"]}, "", ["::1"]),
        (SERVER, {"organizations": ["mooring:admins"], "dns_names": ["a.test"]}, "", ["a.test"]),
        (CLIENT, {"common_name": "alice"}, "CN=alice", []),
        (
            CLIENT,
            {"common_name": "alice", "organizations": ["mooring:admins", "b"]},
            "CN=alice,O=b,O=mooring:admins",
            [],
        ),
        (HOST, {"common_name": "Host1"}, "CN=host1,O=mooring:hosts", ["host1"]),
        (
            HOST,
            {"common_name": "h", "organizations": ["mooring:hosts"], "dns_names": ["H"]},
            "CN=h,O=mooring:hosts",
            ["h"],
        ),
        (INSTANCE, {"common_name": "i-1"}, "CN=i-1,O=mooring:instances", []),
        (
            INSTANCE,
            {"common_name": "i-1", "dns_names": ["vm.test"]},
            "CN=i-1,O=mooring:instances",
            ["vm.test"],
        ),
        (ROOT, {"common_name": "Beispiel Größe"}, "CN=Beispiel Größe", []),
        (INTERMEDIATE, {"common_name": "I", "organizations": ["x"]}, "CN=I", []),
        (OCSP, {"common_name": "Responder 1"}, "CN=Responder 1", []),
    ],
)
def test_names_by_profile(profile, asked, subject, names):
    """What is asked becomes the names that the profile writes."""
    assert decide(profile, **asked) == (subject, names)


@pytest.mark.parametrize(
    ("profile", "asked", "field"),
    [
        (SERVER, {}, "/dns_names"),
        (SERVER, {"common_name": "a.test"}, "/common_name"),
        (SERVER, {"common_name": "b.test", "dns_names": ["a.test"]}, "/common_name"),
        (SERVER, {"dns_names": ["a.test"], "uris": ["spiffe://a.test/x"]}, "/uris/0"),
        (CLIENT, {}, "/common_name"),
        (CLIENT, {"common_name": "al ice"}, "/common_name"),
        (CLIENT, {"common_name": "mooring:hosts"}, "/common_name"),
        (CLIENT, {"common_name": "a", "organizations": ["b", "mooring:hosts"]}, "/organizations/1"),
        (CLIENT, {"common_name": "a", "organizations": ["mooring:instances"]}, "/organizations/0"),
        (CLIENT, {"common_name": "a", "dns_names": ["a.test"]}, "/dns_names/0"),
        (HOST, {}, "/common_name"),
        (HOST, {"common_name": "*.example.test"}, "/common_name"),
        (HOST, {"common_name": "a_b"}, "/common_name"),
        (HOST, {"common_name": "a", "dns_names": ["b"]}, "/dns_names"),
        (HOST, {"common_name": "a", "dns_names": ["a", "b"]}, "/dns_names"),
        (HOST, {"common_name": "a", "organizations": ["mooring:admins"]}, "/organizations"),
        (HOST, {"common_name": "a", "ip_addresses": ["192.0.2.1"]}, "/ip_addresses/0"),
        (INSTANCE, {"common_name": "i", "organizations": ["mooring:hosts"]}, "/organizations"),
        (INSTANCE, {"common_name": "i", "dns_names": ["*.a.test"]}, "/dns_names/0"),
        (ROOT, {}, "/common_name"),
        (INTERMEDIATE, {"common_name": "I", "dns_names": ["a.test"]}, "/dns_names"),
    ],
)
def test_what_the_profile_does_not_give_is_refused_by_field(profile, asked, field):
    """A missing, foreign or contradicting name is refused and the field is told."""
    with pytest.raises(Refused) as caught:
        decide(profile, **asked)
    assert caught.value.field == field
