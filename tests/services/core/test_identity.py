"""services.core.identity and the registry of headers."""

from __future__ import annotations

import dataclasses

import pytest

from services.core import headers
from services.core.identity import HOSTS, OPERATORS, ClientIdentity, InstanceClaim


def test_host_is_the_user_of_a_host_certificate():
    """Only a member of mooring:hosts is a host, under its CN."""
    assert ClientIdentity("h1", frozenset({HOSTS}), 1, "00").host == "h1"
    assert ClientIdentity("alice", frozenset({OPERATORS}), 1, "00").host is None


@pytest.mark.parametrize(
    "identity",
    [
        ClientIdentity("h1", frozenset(), 1, "00"),
        InstanceClaim("i", "p", None, None, None, 0),
    ],
)
def test_identities_cannot_be_changed(identity):
    """What a filter established stays as it is, and can be a dictionary's key."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(identity, dataclasses.fields(identity)[0].name, "other")
    assert hash(identity) == hash(dataclasses.replace(identity))


def test_environ_keys_are_spelled_as_wsgi_has_them():
    """Header names become HTTP_ keys, and the registry's keys are those of its names."""
    assert headers.environ_key("X-Real-IP") == "HTTP_X_REAL_IP"
    assert {headers.environ_key(name) for name in headers.INSIDE_ONLY} == headers.INSIDE_ONLY_KEYS
