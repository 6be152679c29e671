"""Addresses: pools of a subnet, and which address a port gets. Rules without I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Any

# An IPv4Address or IPv6Address: two unions cannot be compared, which is what is done here. Both are
# always of the subnet's version.
Address = Any
Network = IPv4Network | IPv6Network
Pool = tuple[Address, Address]
"""First and last address, both included."""

AUTOMATIC = ("slaac", "dhcpv6-stateless")
"""IPv6 address modes in which an address is made of the MAC (RFC 4862), not taken of a pool."""


def usable(network: Network) -> Pool:
    """First and last address that a port may have.

    Without network and broadcast address for IPv4 (not for /31 and /32, RFC 3021), without the
    subnet-router anycast address for IPv6 (RFC 4291 section 2.6.1, not for /127 and /128).
    """
    first, last = network[0], network[-1]
    if network.prefixlen >= network.max_prefixlen - 1:
        return first, last
    return first + 1, last - 1 if network.version == 4 else last


def default_gateway(network: Network) -> Address:
    """The gateway of a subnet that names none: its first usable address."""
    return usable(network)[0]


def default_pools(network: Network, gateway: Address | None) -> list[Pool]:
    """Every usable address but the gateway's, as at most two ranges."""
    first, last = usable(network)
    if gateway is None or not first <= gateway <= last:
        return [(first, last)]
    pools = []
    if first < gateway:
        pools.append((first, gateway - 1))
    if gateway < last:
        pools.append((gateway + 1, last))
    return pools


def check_pools(network: Network, gateway: Address | None, pools: Sequence[Pool]) -> None:
    """Raise ValueError unless pools lie in the subnet, apart from each other and the gateway."""
    first, last = usable(network)
    previous: Pool | None = None
    for low, high in pools:
        if low.version != network.version or high.version != network.version:
            raise ValueError(f"the pool {low}-{high} is not of the subnet's IP version")
    for pool in sorted(pools):
        low, high = pool
        if low > high:
            raise ValueError(f"the pool {low}-{high} ends before it begins")
        if low < first or high > last:
            raise ValueError(f"the pool {low}-{high} spans beyond the subnet {network}")
        if previous is not None and low <= previous[1]:
            raise ValueError(f"the pools {previous[0]}-{previous[1]} and {low}-{high} overlap")
        if gateway is not None and low <= gateway <= high:
            raise ValueError(f"the gateway {gateway} is in the pool {low}-{high}")
        previous = pool


def is_usable(network: Network, address: Address) -> bool:
    """Whether a port may ask for this address of the subnet."""
    first, last = usable(network)
    return bool(first <= address <= last)


def first_free(pools: Iterable[Pool], taken: Collection[str]) -> Address | None:
    """The first address of the pools that nobody has; None if there is none."""
    for low, high in pools:
        address = low
        while address <= high:
            if str(address) not in taken:
                return address
            address += 1
    return None


def from_mac(network: IPv6Network, mac: str) -> IPv6Address:
    """The address that SLAAC makes of a MAC (modified EUI-64, RFC 4291 appendix A)."""
    octets = bytearray(int(part, 16) for part in mac.split(":"))
    octets[0] ^= 0x02
    identifier = bytes(octets[:3]) + b"\xff\xfe" + bytes(octets[3:])
    return network[int.from_bytes(identifier, "big")]


def parse_pools(items: Iterable[dict[str, str]]) -> list[Pool]:
    """Pools of ``{"start", "end"}`` objects."""
    return [
        (ipaddress.ip_address(item["start"]), ipaddress.ip_address(item["end"])) for item in items
    ]


def pools_document(pools: Iterable[Pool]) -> list[dict[str, str]]:
    """``{"start", "end"}`` objects of pools."""
    return [{"start": str(low), "end": str(high)} for low, high in pools]
