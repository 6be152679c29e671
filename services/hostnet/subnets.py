"""Subnets: addresses of a network, their pools, and what DHCP says besides."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select

from services.core import schema
from services.hostnet import changes, ipam, refusals, values
from services.hostnet.dhcp_port import keep_dhcp_port
from services.hostnet.networks import Networks
from services.hostnet.resource import REQUIRED, Attribute, Call, Change, Extension, Resource, Row
from services.hostnet.view import DHCP_OWNER, MODES

UNSET: Any = object()
"""Default of what is computed unless the client says otherwise; null is a value of its own."""

POOL_LIMIT = 32
"""Pools of one subnet; each is looked through for every new port."""

SLAAC_PREFIX = 64
"""The length of a prefix that SLAAC works with (RFC 4862 over Ethernet, RFC 2464)."""

_subnet = schema.subnet
_allocation = schema.ip_allocation

_pool = values.members({"start": values.ip, "end": values.ip}, {})
_route = values.members({"destination": values.cidr, "nexthop": values.ip}, {})


def _none(value: Any) -> None:
    if value is not None:
        raise ValueError("there are no such objects here; only null is allowed")


class Subnets(Resource):
    """The collection /v2.0/subnets."""

    singular = "subnet"
    collection = "subnets"
    title = "Subnet"
    table = _subnet
    own = (
        Attribute("network_id", values.uuid, put=False, default=REQUIRED),
        Attribute("ip_version", values.integer(4, 6), put=False, default=REQUIRED),
        Attribute("cidr", values.cidr, put=False, default=REQUIRED),
        Attribute("gateway_ip", values.optional(values.ip), default=UNSET),
        Attribute("enable_dhcp", values.boolean, default=True),
        Attribute("ipv6_ra_mode", values.choice(*MODES), put=False, default=None),
        Attribute("ipv6_address_mode", values.choice(*MODES), put=False, default=None),
        Attribute("dns_nameservers", values.many(values.ip, 256), default=[], as_json=True),
        Attribute("host_routes", values.many(_route, 256), default=[], as_json=True),
        Attribute("allocation_pools", values.many(_pool, POOL_LIMIT), default=UNSET, as_json=True),
        Attribute("service_types", values.many(values.text(), 16), default=[], as_json=True),
        Attribute("dns_publish_fixed_ip", values.boolean, default=False),
        Attribute("subnetpool_id", _none, put=False, default=None),
        Attribute("segment_id", _none, default=None, column=None, shown=False),
    )
    extensions = (
        Extension("subnet-service-types", "Subnet service types", "Which ports a subnet is for"),
        Extension("subnet-dns-publish-fixed-ip", "Subnet DNS publish fixed IP", "As stored"),
    )

    def visible(self, call: Call) -> ColumnElement[bool]:
        """Whoever sees the network sees its subnets."""
        network = schema.network
        return or_(
            super().visible(call),
            _subnet.c.network_id.in_(
                select(network.c.id).where(
                    or_(
                        network.c.shared,
                        network.c.external,
                        network.c.project_id.in_(call.projects),
                    )
                )
            ),
        )

    def create(self, change: Change, attributes: Mapping[str, Any]) -> str:
        """Make a subnet that overlaps no other of its network."""
        changes.lock_network(change.writer, attributes["network_id"])
        network_row = Networks().find(change, attributes["network_id"])
        if not change.allows("subnet:create", network_row["project_id"]):
            raise refusals.forbidden("subnet:create is disallowed by policy on this network")
        network = ipaddress.ip_network(attributes["cidr"])
        _check_version(attributes, network)
        _check_modes(attributes, network)
        for (other,) in change.connection.execute(
            select(_subnet.c.cidr).where(_subnet.c.network_id == attributes["network_id"])
        ):
            if network.version == ipaddress.ip_network(other).version and network.overlaps(
                ipaddress.ip_network(other)
            ):
                raise refusals.invalid(
                    f"Requested subnet with cidr: {network} for network: "
                    f"{attributes['network_id']} overlaps with another subnet"
                )
        gateway = _gateway(attributes["gateway_ip"], network)
        pools = attributes["allocation_pools"]
        parsed = (
            ipam.default_pools(network, gateway)
            if pools is UNSET
            else _pools(pools, network, gateway)
        )
        _check_limits(change, attributes)
        _check_addresses(attributes, network)
        columns = self.columns({k: v for k, v in attributes.items() if v is not UNSET})
        columns.update(
            gateway_ip=None if gateway is None else str(gateway),
            allocation_pools=json.dumps(ipam.pools_document(parsed)),
        )
        subnet_id = self.insert(change, columns)
        keep_dhcp_port(change, network_row)
        changes.network(change.writer, network_row["id"])
        return subnet_id

    def update(self, change: Change, row: Row, attributes: Mapping[str, Any]) -> None:
        """Change what hosts are told; addresses that ports have stay theirs."""
        changes.lock_network(change.writer, row["network_id"])
        network = ipaddress.ip_network(row["cidr"])
        gateway = _gateway(attributes.get("gateway_ip", row["gateway_ip"]), network)
        if "allocation_pools" in attributes:
            _pools(attributes["allocation_pools"], network, gateway)
        elif "gateway_ip" in attributes:
            _pools(json.loads(row["allocation_pools"]), network, gateway)
        if attributes.get("gateway_ip") is not None:
            self._check_gateway_free(change, row, attributes["gateway_ip"])
        _check_limits(change, attributes)
        _check_addresses(attributes, network)
        if attributes.get("enable_dhcp") is False and row["ipv6_address_mode"] is not None:
            raise refusals.invalid("ipv6_address_mode cannot be set without enable_dhcp")
        self.set(change, row, self.columns(attributes))
        network_row = _network_row(change, row["network_id"])
        keep_dhcp_port(change, network_row)
        changes.network(change.writer, row["network_id"])

    @staticmethod
    def _check_gateway_free(change: Change, row: Row, gateway: str) -> None:
        holder = change.connection.execute(
            select(schema.port.c.id, schema.port.c.device_owner)
            .join(_allocation, _allocation.c.port_id == schema.port.c.id)
            .where(
                _allocation.c.network_id == row["network_id"], _allocation.c.ip_address == gateway
            )
        ).first()
        if holder is not None and not holder.device_owner.startswith("network:router"):
            raise refusals.conflict(
                "GatewayIpInUse",
                f"Current gateway ip {gateway} already in use by port {holder.id}. "
                "Unable to update.",
            )

    def delete(self, change: Change, row: Row) -> None:
        """Delete it if no port has an address of it but the DHCP port and SLAAC's."""
        changes.lock_network(change.writer, row["network_id"])
        port = schema.port
        automatic = row["ipv6_address_mode"] in ipam.AUTOMATIC
        conditions = [
            _allocation.c.subnet_id == row["id"],
            port.c.id == _allocation.c.port_id,
            port.c.device_owner != DHCP_OWNER,
        ]
        if automatic:
            conditions.append(port.c.device_owner.like("network:%"))
        if change.connection.execute(select(port.c.id).where(*conditions).limit(1)).first():
            raise self.in_use(
                row["id"], "One or more ports have an IP allocation from this subnet."
            )
        held = (
            change.connection.execute(
                select(port)
                .join(_allocation, _allocation.c.port_id == port.c.id)
                .where(_allocation.c.subnet_id == row["id"])
            )
            .mappings()
            .all()
        )
        change.connection.execute(delete(_allocation).where(_allocation.c.subnet_id == row["id"]))
        self.remove(change, row)
        for each in held:
            if each["device_owner"] != DHCP_OWNER:
                hosts = tuple(filter(None, (each["host"], each["next_host"])))
                changes.port(
                    change.writer, each["id"], each["network_id"], before=hosts, after=hosts,
                    device_id=each["device_id"],
                )  # fmt: skip
        keep_dhcp_port(change, _network_row(change, row["network_id"]))
        changes.network(change.writer, row["network_id"])


def _network_row(change: Change, network_id: str) -> Row:
    return (
        change.connection.execute(select(schema.network).where(schema.network.c.id == network_id))
        .mappings()
        .one()
    )


def _check_version(attributes: Mapping[str, Any], network: ipam.Network) -> None:
    version = attributes["ip_version"]
    if version == 5:
        raise refusals.bad_value("ip_version", "'5' is not in [4, 6]")
    if version != network.version:
        raise refusals.invalid(f"cidr {network} does not match the ip_version '{version}'")
    gateway = attributes["gateway_ip"]
    if gateway not in (UNSET, None) and ipaddress.ip_address(gateway).version != version:
        raise refusals.invalid(f"gateway_ip '{gateway}' does not match the ip_version '{version}'")
    if network.is_multicast or network.is_loopback or network.is_link_local:
        raise refusals.invalid(f"cidr {network} is no range that ports can have addresses of")


def _check_modes(attributes: Mapping[str, Any], network: ipam.Network) -> None:
    ra, mode = attributes["ipv6_ra_mode"], attributes["ipv6_address_mode"]
    if ra is None and mode is None:
        return
    if network.version == 4:
        raise refusals.invalid("ipv6_ra_mode and ipv6_address_mode are for ip_version 6")
    if not attributes["enable_dhcp"]:
        raise refusals.invalid(
            "ipv6_ra_mode or ipv6_address_mode cannot be set when enable_dhcp is set to False"
        )
    if ra is not None and mode is not None and ra != mode:
        raise refusals.invalid(
            f"ipv6_ra_mode set to '{ra}' with ipv6_address_mode set to '{mode}' is not valid"
        )
    if {ra, mode} & set(ipam.AUTOMATIC) and network.prefixlen != SLAAC_PREFIX:
        raise refusals.invalid(
            f"Invalid CIDR {network} for IPv6 address mode. OpenStack uses the EUI-64 address "
            f"format, which requires the prefix to be /{SLAAC_PREFIX}"
        )


def _gateway(asked: Any, network: ipam.Network) -> ipam.Address | None:
    if asked is UNSET:
        return ipam.default_gateway(network)
    if asked is None:
        return None
    gateway = ipaddress.ip_address(asked)
    if gateway.version != network.version:
        raise refusals.invalid(f"gateway_ip '{gateway}' does not match the subnet's version")
    if gateway in network and not ipam.is_usable(network, gateway):
        raise refusals.invalid("Gateway is not valid on subnet")
    if gateway.version == 4 and gateway not in network:
        raise refusals.invalid("Gateway is not valid on subnet")
    return gateway


def _pools(
    items: list[dict[str, str]], network: ipam.Network, gateway: ipam.Address | None
) -> list[ipam.Pool]:
    pools = ipam.parse_pools(items)
    try:
        ipam.check_pools(network, gateway, pools)
    except ValueError as error:
        raise refusals.Refused(
            400 if "spans" not in str(error) else 409,
            "InvalidAllocationPool" if "spans" not in str(error) else "OutOfBoundsAllocationPool",
            f"allocation_pools: {error}.",
        ) from None
    return pools


def _check_limits(change: Change, attributes: Mapping[str, Any]) -> None:
    settings = change.settings
    if len(attributes.get("host_routes", ())) > settings.max_subnet_host_routes:
        raise refusals.bad_value("host_routes", "there are too many of them")
    if len(attributes.get("dns_nameservers", ())) > settings.max_dns_nameservers:
        raise refusals.bad_value("dns_nameservers", "there are too many of them")


def _check_addresses(attributes: Mapping[str, Any], network: ipam.Network) -> None:
    for server in attributes.get("dns_nameservers", ()):
        if ipaddress.ip_address(server).version != network.version:
            raise refusals.invalid(f"dns_nameservers: '{server}' is not of the subnet's IP version")
    for route in attributes.get("host_routes", ()):
        for text in (route["destination"].partition("/")[0], route["nexthop"]):
            if ipaddress.ip_address(text).version != network.version:
                raise refusals.invalid(f"host_routes: '{text}' is not of the subnet's IP version")
