"""middleware.gatekeeper: who is believed, and what everyone else loses."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from middleware.gatekeeper import Gatekeeper, filter_factory, parse_trusted
from services.core.headers import INSIDE_ONLY, SECRET, environ_key

FORGED = {environ_key(name): "forged" for name in INSIDE_ONLY}


class FakeSocket:
    def __init__(self, family: int) -> None:
        self.family = family


def test_untrusted_peer_loses_every_inside_only_header(inner, environ, call):
    """No header of the registry gets past the gatekeeper from a peer that is not trusted."""
    call(filter_factory({})(inner), environ(REMOTE_ADDR="192.0.2.1", **FORGED))
    assert set() == set(FORGED) & set(inner.environ)
    assert inner.environ["mooring.trusted_peer"] is False


def test_untrusted_peer_loses_our_headers_of_the_future(inner, environ, call):
    """Any X-Mooring-* header is deleted, also one that this version does not know."""
    call(filter_factory({})(inner), environ(REMOTE_ADDR="192.0.2.1", HTTP_X_MOORING_NEW="1"))
    assert "HTTP_X_MOORING_NEW" not in inner.environ


def test_other_headers_pass_from_everyone(inner, environ, call):
    """What is no inside-only header stays as it is."""
    call(filter_factory({})(inner), environ(REMOTE_ADDR="192.0.2.1", HTTP_ACCEPT="*/*"))
    assert inner.environ["HTTP_ACCEPT"] == "*/*"


def test_trusted_peer_keeps_its_headers(inner, environ, call):
    """A unix socket is trusted by default, so the proxy's headers pass."""
    call(filter_factory({})(inner), environ(**FORGED))
    assert set(FORGED) <= set(inner.environ)
    assert inner.environ["mooring.trusted_peer"] is True


@pytest.mark.parametrize("peer", ["", "192.0.2.1"])
def test_mooring_keys_are_deleted_from_everyone(inner, environ, call, peer):
    """`mooring.*` environ keys are ours alone: trusted or not, nobody brings them along."""
    request = environ(
        REMOTE_ADDR=peer, **{"mooring.client": "x", "mooring.instance": "x", "mooring.zzz": "x"}
    )
    call(filter_factory({})(inner), request)
    ours = {key for key in inner.environ if key.startswith("mooring.")}
    assert ours == {"mooring.gatekeeper", "mooring.trusted_peer"}
    assert inner.environ["mooring.gatekeeper"] is True


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("127.0.0.1", True),
        ("10.255.0.3", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::5", True),
        ("11.0.0.1", False),
        ("127.0.0.2", False),
        ("2001:db9::5", False),
        ("fe80::1%eth0", False),
        ("no address", False),
        ("", False),
        (None, False),
    ],
)
def test_trust_by_address(inner, environ, call, peer, expected):
    """Addresses and networks of `trusted` are believed, nothing else; no `unix`, no unix socket."""
    trusted = "127.0.0.1 10.0.0.0/8, 2001:db8::/32"
    call(filter_factory({}, trusted=trusted)(inner), environ(REMOTE_ADDR=peer))
    assert inner.environ["mooring.trusted_peer"] is expected


@pytest.mark.parametrize(("family", "expected"), [(socket.AF_UNIX, True), (socket.AF_INET, False)])
def test_empty_address_counts_only_on_a_unix_socket(inner, environ, call, family, expected):
    """An empty REMOTE_ADDR on a TCP connection (PROXY protocol) is not taken for a unix socket."""
    call(filter_factory({})(inner), environ(**{"gunicorn.socket": FakeSocket(family)}))
    assert inner.environ["mooring.trusted_peer"] is expected


def test_wrong_network_stops_the_start_with_its_text():
    """A network with host bits or a typo is refused by name."""
    with pytest.raises(ValueError, match=r"gatekeeper: trusted: 10\.0\.0\.1/8 has host bits"):
        filter_factory({}, trusted="unix 10.0.0.1/8")
    with pytest.raises(ValueError, match="'localhost'"):
        parse_trusted("localhost")


@given(st.text(max_size=60))
def test_any_peer_address_is_judged_without_an_error(peer):
    """Whatever stands in REMOTE_ADDR, the gatekeeper decides."""
    keeper = Gatekeeper(lambda environ, start: [], *parse_trusted("10.0.0.0/8 ::1"))
    assert keeper.trusts({"REMOTE_ADDR": peer}) in (True, False)


def test_every_credential_of_the_inside_is_redacted():
    """Inside-only headers that carry a signature or a certificate are also in the log's list."""
    carrying = {name for name in INSIDE_ONLY if "Signature" in name or name.endswith("Cert")}
    assert carrying <= SECRET
