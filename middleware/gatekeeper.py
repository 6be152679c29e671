"""First filter of every pipeline: what only the inside may say is deleted from everyone else.

The attack: whoever reaches the socket sends `X-Ssl-Client-Verify: SUCCESS` with a certificate of
their choice, or an instance id, and every later filter would believe it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from functools import lru_cache
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from middleware.shortcut import short_way
from services.core.headers import INSIDE_ONLY_KEYS

# Distinct peer addresses remembered; behind a proxy there is a handful, so this only bounds memory
# (about 100 bytes each) when the socket is open to a whole network.
_REMEMBERED_PEERS = 1024

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_trusted(text: str) -> tuple[bool, tuple[Network, ...]]:
    """`unix 127.0.0.1 10.0.0.0/8` -> (unix sockets trusted, networks). Raises ValueError."""
    networks = []
    words = text.replace(",", " ").split()
    for word in words:
        if word != "unix":
            try:
                networks.append(ipaddress.ip_network(word))
            except ValueError as error:
                raise ValueError(f"gatekeeper: trusted: {error}") from None
    return "unix" in words, tuple(networks)


class Gatekeeper:
    """Deletes `mooring.*` environ keys from everyone, inside-only headers from untrusted peers.

    Sets `mooring.gatekeeper` (True) and `mooring.trusted_peer` (bool).
    """

    def __init__(
        self, app: WSGIApplication, trust_unix: bool, networks: tuple[Network, ...]
    ) -> None:
        self.app = app
        self.trust_unix = trust_unix
        self.networks = networks
        self._address_trusted = lru_cache(_REMEMBERED_PEERS)(self._in_networks)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # One search through all the keys first: asking each takes three times as long.
        if "mooring." in " ".join(environ):
            for key in [key for key in environ if key.startswith("mooring.")]:
                del environ[key]
        trusted = self.trusts(environ)
        if not trusted:
            for key in INSIDE_ONLY_KEYS:
                environ.pop(key, None)
            # A header that a later version of ours will believe must not pass today either.
            for key in [key for key in environ if key.startswith("HTTP_X_MOORING_")]:
                del environ[key]
        environ["mooring.gatekeeper"] = True
        environ["mooring.trusted_peer"] = trusted
        return self.app(environ, start_response)

    def trusts(self, environ: WSGIEnvironment) -> bool:
        """Whether the connection's other end is one of the trusted."""
        address = environ.get("REMOTE_ADDR")
        if address == "":
            # gunicorn on a unix socket. Its PROXY protocol can empty the address of a TCP peer, so
            # where the socket is at hand it has the last word.
            connection = environ.get("gunicorn.socket")
            return self.trust_unix and (connection is None or connection.family == socket.AF_UNIX)
        return bool(address) and bool(self.networks) and self._address_trusted(address)

    def _in_networks(self, address: str) -> bool:
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.networks)


def filter_factory(
    _global_conf: dict[str, str], *, trusted: str = "unix"
) -> Callable[[WSGIApplication], WSGIApplication]:
    """Builds the filter; `trusted` lists networks, addresses and the word `unix`."""
    trust_unix, networks = parse_trusted(trusted)
    return lambda app: short_way(Gatekeeper(app, trust_unix, networks))
