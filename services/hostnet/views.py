"""A host's view out of the database: whole, or what of it changed since a revision.

Each function reads in the snapshot of the connection that it is given, with a fixed number of
queries, whatever the number of ports.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, or_, select

from services.core import schema
from services.hostnet import changes
from services.hostnet.view import (
    DHCP_OWNER,
    Address,
    AllowedPair,
    DhcpOption,
    DhcpPort,
    Endpoint,
    FloatingIP,
    GroupMembers,
    Network,
    Object,
    Port,
    Route,
    Router,
    RouterPort,
    Rule,
    SecurityGroup,
    Subnet,
    View,
    kind_of,
    to_json,
)

CHUNK = 500
"""Values of one IN: below every engine's limit of parameters."""

_port = schema.port
_allocation = schema.ip_allocation
_member = schema.port_security_group

PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "icmp": 1, "icmpv6": 58, "igmp": 2,
    "ipip": 4, "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59,
    "ipv6-opts": 60, "ipv6-route": 43, "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6,
    "udp": 17, "udplite": 136, "vrrp": 112,
}  # fmt: skip
"""Names of IP protocols that security group rules may have (IANA, as OpenStack spells them)."""


@dataclass(frozen=True, slots=True)
class Told:
    """One change as the host is told it; ``item`` is None for a deletion."""

    kind: str
    id: str
    item: Object | None

    def to_json(self) -> dict[str, Any]:
        """As on the wire."""
        if self.item is None:
            return {"kind": self.kind, "id": self.id, "op": "delete"}
        return {"kind": self.kind, "id": self.id, "op": "put", "object": to_json(self.item)}


def whole(connection: Connection, host: str) -> View:
    """Everything that the host needs to know."""
    view = View()
    networks = carried(connection, host)
    items: list[Object] = [*_networks(connection, networks)]
    items += _ports_of_networks(connection, host, networks)
    items += _groups(connection, [each for each in items if isinstance(each, Port)])
    items += _routers(connection, _routers_of_host(connection, host))
    for item in items:
        view.put(item)
    return view


def carried(connection: Connection, host: str) -> set[str]:
    """Ids of the networks that a port on this host is on."""
    return set(
        connection.execute(
            select(_port.c.network_id)
            .where(or_(_port.c.host == host, _port.c.next_host == host))
            .distinct()
        ).scalars()
    )


def scopes(connection: Connection, host: str) -> frozenset[str]:
    """Scopes of changes (services.hostnet.changes) that concern the host."""
    networks = carried(connection, host)
    own = [
        row.id
        for row in _chunked(
            connection,
            _port,
            _port.c.network_id,
            networks,
            or_(_port.c.host == host, _port.c.next_host == host),
        )
    ]
    used = {row.security_group_id for row in _chunked(connection, _member, _member.c.port_id, own)}
    rule = schema.security_group_rule
    named = {
        row.remote_group_id
        for row in _chunked(
            connection, rule, rule.c.security_group_id, used, rule.c.remote_group_id.is_not(None)
        )
    }
    peers = {
        row.host
        for row in _chunked(
            connection, _port, _port.c.network_id, networks, _port.c.host.is_not(None)
        )
    }
    return frozenset(
        {
            f"host:{host}",
            *(f"network:{each}" for each in networks),
            *(f"security_group:{each}" for each in used | named),
            *(f"tunnel:{each}" for each in peers),
        }
    )


def since(connection: Connection, host: str, number: int) -> list[Told]:
    """What changed for the host after revision ``number``, objects as they are now, in order."""
    change = schema.change
    concerned = scopes(connection, host)
    rows = [
        row
        for row in connection.execute(
            select(change.c.kind, change.c.object_id, change.c.operation, change.c.scope)
            .where(change.c.revision > number)
            .order_by(change.c.revision, change.c.ordinal)
        )
        if row.scope in concerned
    ]
    networks = carried(connection, host)
    own = f"host:{host}"
    moved = list(
        dict.fromkeys(
            row.object_id for row in rows if row.kind == changes.NETWORK and row.scope == own
        )
    )
    gained = {each for each in moved if each in networks}

    told = [Told("network", each, None) for each in moved]
    changed = {
        row.object_id for row in rows if row.kind == changes.NETWORK and row.object_id in networks
    }
    told += _told(_networks(connection, changed | gained))
    ports = {row.object_id for row in rows if row.kind == changes.PORT}
    peers = {row.object_id for row in rows if row.kind == changes.HOST}
    found = {
        item.id: item
        for item in (
            *_ports_of_networks(connection, host, gained),
            *_ports(connection, host, ports, networks),
            *_ports_of_peers(connection, host, peers, networks),
        )
    }
    for port_id in sorted(ports - found.keys()):
        told += [Told("port", port_id, None), Told("endpoint", port_id, None)]
    told += _told(found.values())

    local = [item for item in found.values() if isinstance(item, Port)]
    groups = {row.object_id for row in rows if row.kind == changes.SECURITY_GROUP}
    members = {row.object_id for row in rows if row.kind == changes.GROUP_MEMBERS}
    told += _told(_groups(connection, local, groups, members))

    routers = {row.object_id for row in rows if row.kind == changes.ROUTER}
    here = routers & set(_routers_of_host(connection, host))
    told += [Told("router", each, None) for each in sorted(routers - here)]
    told += _told(_routers(connection, here))
    return told


def _told(items: Iterable[Object]) -> list[Told]:
    return [Told(kind_of(item), item.id, item) for item in items]


def _chunked(
    connection: Connection, table: Table, column: Any, wanted: Collection[str], *conditions: Any
) -> Iterable[Any]:
    ids = sorted(wanted)
    for start in range(0, len(ids), CHUNK):
        yield from connection.execute(
            select(table).where(column.in_(ids[start : start + CHUNK]), *conditions)
        )


# ---- networks -----------------------------------------------------------------------------------


def _networks(connection: Connection, ids: Collection[str]) -> list[Network]:
    subnets: dict[str, list[Any]] = {}
    for row in _chunked(connection, schema.subnet, schema.subnet.c.network_id, ids):
        subnets.setdefault(row.network_id, []).append(row)
    dhcp = {
        row.network_id: row
        for row in _chunked(
            connection, _port, _port.c.network_id, ids, _port.c.device_owner == DHCP_OWNER
        )
    }
    fixed = _fixed(connection, [row.id for row in dhcp.values()])
    routed = {
        row.network_id
        for row in _chunked(
            connection,
            _port,
            _port.c.network_id,
            ids,
            _port.c.device_owner == "network:router_interface",
        )
    }
    return [
        Network(
            id=row.id,
            project_id=row.project_id,
            network_type=row.network_type,
            physical_network=row.physical_network,
            segmentation_id=row.segmentation_id,
            mtu=row.mtu,
            admin_state_up=row.admin_state_up,
            external=row.external,
            routed=row.id in routed,
            dns_domain=row.dns_domain or None,
            subnets=tuple(
                _subnet(each)
                for each in sorted(subnets.get(row.id, []), key=lambda s: (s.created_at, s.id))
            ),
            dhcp=(
                DhcpPort(dhcp[row.id].id, dhcp[row.id].mac_address, fixed[dhcp[row.id].id])
                if row.id in dhcp
                else None
            ),
        )
        for row in _chunked(connection, schema.network, schema.network.c.id, ids)
    ]


def _subnet(row: Any) -> Subnet:
    return Subnet(
        id=row.id,
        cidr=row.cidr,
        gateway_ip=row.gateway_ip,
        enable_dhcp=row.enable_dhcp,
        ra_mode=row.ipv6_ra_mode,
        address_mode=row.ipv6_address_mode,
        dns_nameservers=tuple(json.loads(row.dns_nameservers)),
        host_routes=_routes(row.host_routes),
    )


def _routes(text: str) -> tuple[Route, ...]:
    return tuple(Route(each["destination"], each["nexthop"]) for each in json.loads(text))


def _fixed(connection: Connection, ids: Collection[str]) -> dict[str, tuple[Address, ...]]:
    found: dict[str, list[tuple[int, Address]]] = {}
    for row in _chunked(connection, _allocation, _allocation.c.port_id, ids):
        found.setdefault(row.port_id, []).append(
            (row.ordinal, Address(row.subnet_id, row.ip_address))
        )
    return {
        port_id: tuple(address for _, address in sorted(found.get(port_id, ()), key=_ordinal))
        for port_id in ids
    }


def _ordinal(item: tuple[int, Address]) -> int:
    return item[0]


# ---- ports --------------------------------------------------------------------------------------


def _ports_of_networks(
    connection: Connection, host: str, networks: Collection[str]
) -> list[Port | Endpoint]:
    rows = list(_chunked(connection, _port, _port.c.network_id, networks))
    return _port_items(connection, host, rows)


def _ports(
    connection: Connection, host: str, ids: Collection[str], networks: Collection[str]
) -> list[Port | Endpoint]:
    rows = [r for r in _chunked(connection, _port, _port.c.id, ids) if r.network_id in networks]
    return _port_items(connection, host, rows)


def _ports_of_peers(
    connection: Connection, host: str, peers: Collection[str], networks: Collection[str]
) -> list[Port | Endpoint]:
    rows = [r for r in _chunked(connection, _port, _port.c.host, peers) if r.network_id in networks]
    return _port_items(connection, host, rows)


def _port_items(connection: Connection, host: str, rows: Sequence[Any]) -> list[Port | Endpoint]:
    rows = [row for row in rows if row.device_owner != DHCP_OWNER]
    fixed = _fixed(connection, [row.id for row in rows])
    local = [row.id for row in rows if host in (row.host, row.next_host)]
    groups: dict[str, list[str]] = {}
    for row in _chunked(connection, _member, _member.c.port_id, local):
        groups.setdefault(row.port_id, []).append(row.security_group_id)
    vteps = {
        row.name: row.tunnel_address
        for row in _chunked(
            connection,
            schema.host,
            schema.host.c.name,
            {row.host for row in rows if row.host is not None},
        )
    }
    items: list[Port | Endpoint] = []
    for row in rows:
        if host not in (row.host, row.next_host):
            items.append(
                Endpoint(
                    id=row.id,
                    network_id=row.network_id,
                    mac=row.mac_address,
                    fixed_ips=fixed[row.id],
                    vtep=vteps.get(row.host),
                    dns_name=row.dns_name or None,
                    device_owner=row.device_owner,
                )
            )
            continue
        items.append(
            Port(
                id=row.id,
                network_id=row.network_id,
                project_id=row.project_id,
                mac=row.mac_address,
                fixed_ips=fixed[row.id],
                device_id=row.device_id,
                device_owner=row.device_owner,
                host=row.host,
                next_host=row.next_host,
                admin_state_up=row.admin_state_up,
                port_security=row.port_security_enabled,
                allowed_pairs=tuple(
                    AllowedPair(each["mac_address"], _cidr(each["ip_address"]))
                    for each in json.loads(row.allowed_address_pairs)
                ),
                security_groups=tuple(sorted(groups.get(row.id, ()))),
                dhcp_options=tuple(
                    DhcpOption(each["opt_name"], each["opt_value"], each.get("ip_version", 4))
                    for each in json.loads(row.extra_dhcp_opts)
                    if each.get("opt_value") is not None
                ),
                dns_name=row.dns_name or None,
            )
        )
    return items


def _cidr(text: str) -> str:
    return str(ipaddress.ip_network(text))


# ---- security groups ----------------------------------------------------------------------------


def _groups(
    connection: Connection,
    ports: Iterable[Port],
    changed: Collection[str] = (),
    members: Collection[str] = (),
) -> list[SecurityGroup | GroupMembers]:
    """The ports' groups and those that changed, and the members of what their rules name."""
    wanted = {group for port in ports for group in port.security_groups} | set(changed)
    table = schema.security_group_rule
    rules: dict[str, list[Rule]] = {}
    for row in _chunked(connection, table, table.c.security_group_id, wanted):
        rules.setdefault(row.security_group_id, []).append(_rule(row))
    items: list[SecurityGroup | GroupMembers] = [
        SecurityGroup(
            row.id, row.stateful, tuple(sorted(rules.get(row.id, ()), key=lambda rule: rule.id))
        )
        for row in _chunked(connection, schema.security_group, schema.security_group.c.id, wanted)
    ]
    named = {
        rule.remote_group
        for each in rules.values()
        for rule in each
        if rule.remote_group is not None
    } | set(members)
    return items + list(_members(connection, named))


def _rule(row: Any) -> Rule:
    protocol = row.protocol
    number = None
    if protocol is not None:
        number = int(protocol) if protocol.isdigit() else PROTOCOLS[protocol]
        if number == PROTOCOLS["icmp"] and row.ethertype == "IPv6":
            number = PROTOCOLS["icmpv6"]
    return Rule(
        id=row.id,
        direction=row.direction,
        ethertype=row.ethertype,
        protocol=number,
        port_min=row.port_range_min,
        port_max=row.port_range_max,
        remote_cidr=row.remote_ip_prefix,
        remote_group=row.remote_group_id,
    )


def _members(connection: Connection, groups: Collection[str]) -> Iterable[GroupMembers]:
    of_group: dict[str, set[str]] = {group: set() for group in groups}
    of_port: dict[str, list[str]] = {}
    for row in _chunked(connection, _member, _member.c.security_group_id, groups):
        of_port.setdefault(row.port_id, []).append(row.security_group_id)
    for port_id, fixed in _fixed(connection, list(of_port)).items():
        for group in of_port[port_id]:
            of_group[group] |= {_cidr(address.ip) for address in fixed}
    for row in _chunked(connection, _port, _port.c.id, of_port):
        for pair in json.loads(row.allowed_address_pairs):
            for group in of_port[row.id]:
                of_group[group].add(_cidr(pair["ip_address"]))
    for group in sorted(of_group):
        yield GroupMembers(group, tuple(sorted(of_group[group])))


# ---- routers ------------------------------------------------------------------------------------


def _routers_of_host(connection: Connection, host: str) -> list[str]:
    router = schema.router
    return list(connection.execute(select(router.c.id).where(router.c.host == host)).scalars())


def _routers(connection: Connection, ids: Collection[str]) -> list[Router]:
    links = schema.router_port
    of_port = {
        row.port_id: row.router_id for row in _chunked(connection, links, links.c.router_id, ids)
    }
    fixed = _fixed(connection, list(of_port))
    ports: dict[str, dict[str, RouterPort]] = {each: {} for each in ids}
    for row in _chunked(connection, _port, _port.c.id, of_port):
        ports[of_port[row.id]][row.id] = RouterPort(
            row.id, row.network_id, row.mac_address, fixed[row.id]
        )
    floating: dict[str, list[FloatingIP]] = {each: [] for each in ids}
    table = schema.floating_ip
    for row in _chunked(
        connection, table, table.c.router_id, ids, table.c.fixed_ip_address.is_not(None)
    ):
        floating[row.router_id].append(
            FloatingIP(row.id, row.floating_ip_address, row.fixed_ip_address, row.port_id)
        )
    return [
        Router(
            id=row.id,
            project_id=row.project_id,
            admin_state_up=row.admin_state_up,
            enable_snat=row.enable_snat,
            gateway=ports[row.id].get(row.gateway_port_id or ""),
            interfaces=tuple(
                each
                for port_id, each in sorted(ports[row.id].items())
                if port_id != row.gateway_port_id
            ),
            routes=_routes(row.routes),
            floating_ips=tuple(sorted(floating[row.id], key=lambda item: item.id)),
        )
        for row in _chunked(connection, schema.router, schema.router.c.id, ids)
    ]
