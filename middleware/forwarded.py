"""Takes the client's address from `X-Forwarded-For`, then deletes what proxies say about clients.

The list is read from the right: each of our own proxies appends one entry, and everything further
left is the client's own invention.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from services.core.errors import Failure
from services.core.headers import environ_key

# No chain of proxies that we know is longer; longer lists are made to waste our time.
MAX_ENTRIES = 16
# An IPv6 address has at most 45 characters; with comma and space for each entry.
_MAX_LENGTH = MAX_ENTRIES * 47
# Header values remembered, about 300 bytes each: one for each client address on the hot path.
_REMEMBERED = 8192

HEADER = environ_key("X-Forwarded-For")
_DELETED = tuple(
    environ_key(name)
    for name in (
        "Forwarded",
        "X-Real-IP",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Proto",
        "X-Forwarded-Server",
    )
)


@lru_cache(_REMEMBERED)
def parse_address(text: str) -> str:
    """IP text normalised; IPv4-mapped IPv6 becomes IPv4. Raises ValueError, also for a zone id.

    A zone names an interface of the machine that wrote it: of no meaning here.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError("an address with a zone")
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
    return str(address)


@lru_cache(_REMEMBERED)
def client_address(value: str, hops: int) -> str:
    """The entry `hops` from the right of the header. Raises ValueError if any is malformed."""
    if len(value) > _MAX_LENGTH or value.count(",") >= MAX_ENTRIES:
        raise ValueError("too many entries")
    entries = [parse_address(entry.strip(" \t")) for entry in value.split(",")]
    if len(entries) < hops:
        raise ValueError("fewer entries than trusted hops")
    return entries[-hops]


class Forwarded:
    """Sets `mooring.client_address`; a header that is malformed (or absent but required) is 400."""

    def __init__(self, app: WSGIApplication, hops: int, required: bool) -> None:
        self.app = app
        self.hops = hops
        self.required = required

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        value = environ.pop(HEADER, None)
        for key in _DELETED:
            if key in environ:
                del environ[key]
        if value is not None:
            try:
                environ["mooring.client_address"] = client_address(value, self.hops)
            except ValueError:
                raise Failure(400, "X-Forwarded-For header is not valid.") from None
        elif self.required:
            raise Failure(400, "X-Forwarded-For header is missing from request.")
        return self.app(environ, start_response)


def filter_factory(
    _global_conf: dict[str, str], *, trusted_hops: str = "1", required: str = "true"
) -> Callable[[WSGIApplication], Forwarded]:
    """Builds the filter; `trusted_hops` is how many of our own proxies append to the header."""
    if not trusted_hops.isdecimal() or not 1 <= int(trusted_hops) <= MAX_ENTRIES:
        raise ValueError(f"forwarded: trusted_hops is 1 to {MAX_ENTRIES}, not {trusted_hops!r}")
    if required not in ("true", "false"):
        raise ValueError(f"forwarded: required is true or false, not {required!r}")
    return lambda app: Forwarded(app, int(trusted_hops), required == "true")
