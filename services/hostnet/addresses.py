"""Takes addresses out of a network's subnets for a port, and gives them back.

The network's row is locked meanwhile (`changes.lock_network`), so that two ports see each other's
addresses; a primary key stands behind it.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, insert, select

from services.core import schema
from services.hostnet import ipam, refusals
from services.hostnet.resource import Call, Change, Row

_allocation = schema.ip_allocation
_subnet = schema.subnet

MAC_ATTEMPTS = 16
"""Random MACs that are tried; with three random octets, 64,000 ports on one network make one try in
256 fail."""


def subnets_of(call: Call, network_id: str) -> list[Row]:
    """The network's subnets, oldest first."""
    return list(
        call.connection.execute(
            select(_subnet)
            .where(_subnet.c.network_id == network_id)
            .order_by(_subnet.c.created_at, _subnet.c.id)
        )
        .mappings()
        .all()
    )


def choose(
    change: Change,
    network_id: str,
    asked: Sequence[Mapping[str, str]] | None,
    mac: str,
    device_owner: str,
    keep: Iterable[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """(subnet id, address) of each address that a port gets; nothing is written yet.

    ``asked`` are the API's fixed_ips, None for the usual: an address of one IPv4 and one IPv6
    subnet, and of every subnet whose addresses are made of the MAC. ``keep`` are addresses that the
    port has already and may keep. Raises Refused.
    """
    subnets = subnets_of(change, network_id)
    kept = {ip for _, ip in keep}
    if asked is None:
        return _usual(change, network_id, subnets, mac, device_owner)
    chosen: list[tuple[str, str]] = []
    for item in asked:
        subnet, address = _asked(network_id, subnets, item, mac)
        if address is None:
            address = _next(change, subnet, [ip for _, ip in chosen])
        text = str(address)
        if any(text == ip for _, ip in chosen):
            raise refusals.invalid(f"Duplicate IP address '{text}'")
        if text not in kept and _is_taken(change, network_id, text):
            raise refusals.conflict(
                "IpAddressAlreadyAllocated",
                f"IP address {text} already allocated in subnet {subnet['id']}",
            )
        chosen.append((subnet["id"], text))
    present = {subnet_id for subnet_id, _ in chosen}
    if chosen and not device_owner.startswith("network:router"):
        chosen += [
            each
            for each in _automatic(change, network_id, subnets, mac, kept)
            if each[0] not in present
        ]
    return chosen


def _asked(
    network_id: str, subnets: list[Row], item: Mapping[str, str], mac: str
) -> tuple[Row, ipam.Address | None]:
    """The subnet that an item of fixed_ips is of, and its address if that is decided."""
    address = ipaddress.ip_address(item["ip_address"]) if "ip_address" in item else None
    if "subnet_id" in item:
        subnet = next((each for each in subnets if each["id"] == item["subnet_id"]), None)
        if subnet is None:
            raise refusals.invalid(
                f"Failed to create port on network {network_id}, because fixed_ips included "
                f"invalid subnet {item['subnet_id']}"
            )
    else:
        subnet = next(
            (each for each in subnets if address in ipaddress.ip_network(each["cidr"])), None
        )
        if subnet is None:
            raise refusals.Refused(
                400,
                "InvalidIpForNetwork",
                f"IP address {address} is not a valid IP for any of the subnets on the specified "
                "network.",
            )
    network = ipaddress.ip_network(subnet["cidr"])
    if address is None:
        if subnet["ipv6_address_mode"] in ipam.AUTOMATIC and network.version == 6:
            return subnet, ipam.from_mac(network, mac)
        return subnet, None
    if address not in network or not ipam.is_usable(network, address):
        raise refusals.Refused(
            400,
            "InvalidIpForSubnet",
            f"IP address {address} is not a valid IP for the specified subnet.",
        )
    return subnet, address


def _usual(
    change: Change, network_id: str, subnets: list[Row], mac: str, device_owner: str
) -> list[tuple[str, str]]:
    chosen: list[tuple[str, str]] = []
    for version in (4, 6):
        pooled = [
            each
            for each in subnets
            if each["ip_version"] == version
            and each["ipv6_address_mode"] not in ipam.AUTOMATIC
            and _serves(each, device_owner)
        ]
        for subnet in pooled:
            address = _free(change, subnet, ())
            if address is not None:
                chosen.append((subnet["id"], str(address)))
                break
        else:
            if pooled:
                raise _exhausted(network_id)
    return chosen + _automatic(change, network_id, subnets, mac, set())


def _serves(subnet: Row, device_owner: str) -> bool:
    types = json.loads(subnet["service_types"])
    return not types or any(device_owner.startswith(each) for each in types)


def _automatic(
    change: Change, network_id: str, subnets: list[Row], mac: str, kept: set[str]
) -> list[tuple[str, str]]:
    chosen = []
    for subnet in subnets:
        if subnet["ipv6_address_mode"] in ipam.AUTOMATIC:
            network = ipaddress.IPv6Network(subnet["cidr"])
            text = str(ipam.from_mac(network, mac))
            if text in kept or not _is_taken(change, network_id, text):
                chosen.append((subnet["id"], text))
    return chosen


def _next(change: Change, subnet: Row, besides: Iterable[str]) -> ipam.Address:
    address = _free(change, subnet, besides)
    if address is None:
        raise _exhausted(subnet["network_id"])
    return address


def _free(change: Change, subnet: Row, besides: Iterable[str]) -> ipam.Address | None:
    taken = set(
        change.connection.execute(
            select(_allocation.c.ip_address).where(_allocation.c.subnet_id == subnet["id"])
        ).scalars()
    )
    pools = ipam.parse_pools(json.loads(subnet["allocation_pools"]))
    return ipam.first_free(pools, taken | set(besides))


def _is_taken(change: Change, network_id: str, ip: str) -> bool:
    return (
        change.connection.execute(
            select(_allocation.c.port_id).where(
                _allocation.c.network_id == network_id, _allocation.c.ip_address == ip
            )
        ).first()
        is not None
    )


def _exhausted(network_id: str) -> refusals.Refused:
    return refusals.conflict(
        "IpAddressGenerationFailure", f"No more IP addresses available on network {network_id}."
    )


def write(change: Change, network_id: str, port_id: str, chosen: Sequence[tuple[str, str]]) -> None:
    """Make these the port's addresses, in this order, and no others."""
    change.connection.execute(delete(_allocation).where(_allocation.c.port_id == port_id))
    if chosen:
        change.connection.execute(
            insert(_allocation),
            [
                {
                    "network_id": network_id,
                    "ip_address": ip,
                    "subnet_id": subnet_id,
                    "port_id": port_id,
                    "ordinal": ordinal,
                }
                for ordinal, (subnet_id, ip) in enumerate(chosen)
            ],
        )


def of_ports(call: Call, port_ids: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """(subnet id, address) of each address of these ports, in their order."""
    found: dict[str, list[tuple[str, str]]] = {port_id: [] for port_id in port_ids}
    ids = list(found)
    for start in range(0, len(ids), 500):
        for row in call.connection.execute(
            select(_allocation.c.port_id, _allocation.c.subnet_id, _allocation.c.ip_address)
            .where(_allocation.c.port_id.in_(ids[start : start + 500]))
            .order_by(_allocation.c.port_id, _allocation.c.ordinal)
        ):
            found[row.port_id].append((row.subnet_id, row.ip_address))
    return found


def new_mac(change: Change, network_id: str) -> str:
    """A MAC below the configured base that no port of the network has."""
    base = change.settings.base_mac
    for _ in range(MAC_ATTEMPTS):
        mac = _random_mac(base)
        port = schema.port
        if (
            change.connection.execute(
                select(port.c.id).where(port.c.network_id == network_id, port.c.mac_address == mac)
            ).first()
            is None
        ):
            return mac
    raise refusals.Refused(
        503,
        "MacAddressGenerationFailure",
        f"Unable to generate unique mac on network {network_id}.",
    )


def _random_mac(base: str) -> str:
    fixed = base.split(":")
    count = 3 if fixed[3] == "00" else 2
    return ":".join([*fixed[: 6 - count], *(f"{byte:02x}" for byte in secrets.token_bytes(count))])


def fixed_ips_document(chosen: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """fixed_ips as the API shows them."""
    return [{"subnet_id": subnet_id, "ip_address": ip} for subnet_id, ip in chosen]
