"""Networks: segments, MTU, and who may see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, or_, select, update

from services.core import schema
from services.hostnet import changes, refusals, segments, values
from services.hostnet.resource import Attribute, Call, Change, Document, Extension, Resource, Row
from services.hostnet.segments import Segment
from services.hostnet.settings import NETWORK_TYPES
from services.hostnet.view import DHCP_OWNER

PROVIDER = ("network_type", "physical_network", "segmentation_id")
PROVIDER_RULE = "network:provider"

_network = schema.network
_segment = schema.network_segment


def unguarded(value: Any) -> bool:
    """False. Nothing filters a port's frames yet, and nobody shall believe that something does."""
    if values.boolean(value):
        raise ValueError("security groups and port security are not enforced yet")
    return False


class Networks(Resource):
    """The collection /v2.0/networks."""

    singular = "network"
    collection = "networks"
    title = "Network"
    table = _network
    own = (
        Attribute("admin_state_up", values.boolean, default=True),
        Attribute("status", column=None),
        Attribute("shared", values.boolean, default=False, set_rule="network:share"),
        Attribute(
            "router:external",
            values.boolean,
            default=False,
            column="external",
            set_rule="network:external",
        ),
        Attribute("is_default", values.boolean, default=False, set_rule="network:external"),
        Attribute("mtu", values.optional(values.integer(68, 65535)), default=None),
        Attribute(
            "provider:network_type",
            values.optional(values.choice(*NETWORK_TYPES)),
            put=False,
            column="network_type",
            set_rule=PROVIDER_RULE,
            see_rule=PROVIDER_RULE,
        ),
        Attribute(
            "provider:physical_network",
            values.optional(values.token),
            put=False,
            column="physical_network",
            set_rule=PROVIDER_RULE,
            see_rule=PROVIDER_RULE,
        ),
        Attribute(
            "provider:segmentation_id",
            values.optional(values.integer(0, 2**24 - 1)),
            put=False,
            column="segmentation_id",
            set_rule=PROVIDER_RULE,
            see_rule=PROVIDER_RULE,
        ),
        Attribute("port_security_enabled", unguarded, default=False),
        Attribute("dns_domain", values.domain, default=""),
        Attribute(
            "availability_zone_hints", values.many(values.token, 8), default=[], as_json=True
        ),
        Attribute("availability_zones", column=None),
        Attribute("subnets", column=None),
        Attribute("ipv4_address_scope", column=None),
        Attribute("ipv6_address_scope", column=None),
        Attribute("l2_adjacency", column=None),
    )
    extensions = (
        Extension("provider", "Provider Network", "Segments of networks, for admins"),
        Extension("external-net", "Neutron external network", "Networks to the outside"),
        Extension("net-mtu", "Network MTU", "The MTU of a network's instances"),
        Extension("net-mtu-writable", "Network MTU (writable)", "An MTU below the greatest"),
        Extension("network_availability_zone", "Network Availability Zone", "Zones of networks"),
        Extension("availability_zone", "Availability Zone", "Zones of hosts"),
        Extension("dns-integration", "DNS Integration", "Names of ports"),
    )

    def visible(self, call: Call) -> ColumnElement[bool]:
        """A tenant sees its own networks, shared ones, and those to the outside."""
        return or_(super().visible(call), _network.c.shared, _network.c.external)

    def create(self, change: Change, attributes: Mapping[str, Any]) -> str:
        """Take a segment and make the network."""
        segment = self._segment(change, attributes)
        columns = {**self.columns(attributes), **_columns(segment)}
        columns["mtu"] = _mtu(change, segment, attributes["mtu"])
        network_id = self.insert(change, columns)
        if segment.key is not None:
            kind, physical, number = segment.key
            change.connection.execute(
                insert(_segment).values(
                    network_type=kind,
                    physical_network=physical,
                    segmentation_id=number,
                    network_id=network_id,
                )
            )
        if attributes["is_default"]:
            _only_default(change, network_id)
        return network_id

    def _segment(self, change: Change, attributes: Mapping[str, Any]) -> Segment:
        try:
            asked = segments.provided(
                change.settings, {name: attributes[f"provider:{name}"] for name in PROVIDER}
            )
        except ValueError as error:
            raise refusals.invalid(str(error)) from None
        if asked is not None and (asked.id is not None or asked.network_type in ("flat", "local")):
            if asked.key in _taken(change, asked):
                raise _in_use(asked)
            return asked
        for pool, ids in segments.candidates(change.settings, asked):
            if pool.network_type == "local":
                return pool
            taken = {number for _, _, number in _taken(change, pool)}
            number = segments.first_free(ids, taken)
            if number is not None:
                return Segment(pool.network_type, pool.physical_network, number)
        raise refusals.conflict(
            "NoNetworkAvailable",
            "Unable to create the network. No tenant network is available for allocation.",
        )

    def update(self, change: Change, row: Row, attributes: Mapping[str, Any]) -> None:
        """Change it, and tell its hosts."""
        columns = self.columns(attributes)
        if "mtu" in attributes:
            segment = Segment(row["network_type"], row["physical_network"], row["segmentation_id"])
            columns["mtu"] = _mtu(change, segment, attributes["mtu"])
        if attributes.get("shared") is False:
            self._check_unshared(change, row)
        if attributes.get("router:external") is False:
            self._check_inside(change, row)
        self.set(change, row, columns)
        if attributes.get("is_default"):
            _only_default(change, row["id"])
        changes.network(change.writer, row["id"])

    @staticmethod
    def _check_unshared(change: Change, row: Row) -> None:
        foreign = change.connection.execute(
            select(schema.port.c.id)
            .where(
                schema.port.c.network_id == row["id"],
                schema.port.c.project_id.not_in(["", row["project_id"]]),
            )
            .limit(1)
        ).first()
        if foreign is not None:
            raise refusals.conflict(
                "InvalidSharedSetting",
                f"Unable to reconfigure sharing settings for network {row['id']}. "
                "Multiple tenants are using it.",
            )

    @staticmethod
    def _check_inside(change: Change, row: Row) -> None:
        used = change.connection.execute(
            select(schema.router.c.id)
            .where(schema.router.c.external_network_id == row["id"])
            .limit(1)
        ).first()
        if used is not None:
            raise refusals.conflict(
                "ExternalNetworkInUse",
                f"External network {row['id']} cannot be updated to be made non-external, since "
                "it has existing gateway ports.",
            )

    def delete(self, change: Change, row: Row) -> None:
        """Delete it with its subnets and its DHCP port, if no other port is on it."""
        changes.lock_network(change.writer, row["id"])
        port = schema.port
        others = change.connection.execute(
            select(port.c.id)
            .where(port.c.network_id == row["id"], port.c.device_owner != DHCP_OWNER)
            .limit(1)
        ).first()
        if others is not None:
            raise self.in_use(row["id"], "There are one or more ports still in use on the network.")
        for table in (schema.ip_allocation, port, schema.subnet):
            ids = select(table.c.id if "id" in table.c else table.c.port_id).where(
                table.c.network_id == row["id"]
            )
            if "id" in table.c:
                change.connection.execute(
                    delete(schema.resource_tag).where(
                        schema.resource_tag.c.resource_type == f"{table.name}s",
                        schema.resource_tag.c.resource_id.in_(ids),
                    )
                )
            change.connection.execute(delete(table).where(table.c.network_id == row["id"]))
        changes.network(change.writer, row["id"], deleted=True)
        change.connection.execute(delete(_segment).where(_segment.c.network_id == row["id"]))
        self.remove(change, row)

    def extend(self, call: Call, rows: Sequence[Row], documents: Sequence[Document]) -> None:
        """Add status, zones, and the ids of subnets."""
        subnet = schema.subnet
        subnets: dict[str, list[str]] = {row["id"]: [] for row in rows}
        ids = list(subnets)
        for start in range(0, len(ids), 500):
            for network_id, subnet_id in call.connection.execute(
                select(subnet.c.network_id, subnet.c.id)
                .where(subnet.c.network_id.in_(ids[start : start + 500]))
                .order_by(subnet.c.created_at, subnet.c.id)
            ):
                subnets[network_id].append(subnet_id)
        for row, document in zip(rows, documents, strict=True):
            document.update(
                status="ACTIVE" if row["admin_state_up"] else "DOWN",
                availability_zones=[],
                subnets=subnets[row["id"]],
                ipv4_address_scope=None,
                ipv6_address_scope=None,
                l2_adjacency=True,
            )


def _columns(segment: Segment) -> dict[str, Any]:
    return {
        "network_type": segment.network_type,
        "physical_network": segment.physical_network,
        "segmentation_id": segment.id,
    }


def _mtu(call: Call, segment: Segment, asked: int | None) -> int:
    greatest = segments.greatest_mtu(call.settings, segment)
    if asked is not None and asked > greatest:
        raise refusals.invalid(f"Requested MTU is too big, maximum is {greatest}")
    return asked or greatest


def _taken(change: Change, segment: Segment) -> set[tuple[str, str, int]]:
    """Keys that are taken: of the segment's pool, or its own if it has an id."""
    kind, physical, number = segment.key or ("", "", 0)
    conditions = [_segment.c.network_type == kind, _segment.c.physical_network == physical]
    if segment.id is not None or kind == "flat":
        conditions.append(_segment.c.segmentation_id == number)
    rows = change.connection.execute(
        select(
            _segment.c.network_type, _segment.c.physical_network, _segment.c.segmentation_id
        ).where(*conditions)
    )
    return {(row[0], row[1], row[2]) for row in rows}


def _in_use(segment: Segment) -> refusals.Refused:
    where = f" on physical network {segment.physical_network}" if segment.physical_network else ""
    if segment.network_type == "flat":
        return refusals.conflict(
            "FlatNetworkInUse",
            "Unable to create the flat network. "
            f"Physical network {segment.physical_network} is in use.",
        )
    kind, what = (
        ("VlanIdInUse", "VLAN")
        if segment.network_type == "vlan"
        else (
            "TunnelIdInUse",
            "tunnel ID",
        )
    )
    return refusals.conflict(
        kind, f"Unable to create the network. The {what} {segment.id}{where} is in use."
    )


def _only_default(change: Change, network_id: str) -> None:
    change.connection.execute(
        update(_network).where(_network.c.id != network_id).values(is_default=False)
    )
