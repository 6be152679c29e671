"""Ports: addresses, MAC, the host that carries one, and its security groups."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, insert, or_, select

from services.core import schema
from services.hostnet import addresses, changes, refusals, values
from services.hostnet.networks import Networks, unguarded
from services.hostnet.resource import REQUIRED, Attribute, Call, Change, Extension, Resource, Row
from services.hostnet.subnets import UNSET
from services.hostnet.view import DHCP_OWNER

BINDING_RULE = "port:binding"
OWNER_RULE = "port:device-owner"

_port = schema.port
_allocation = schema.ip_allocation
_member = schema.port_security_group

_OPTION_NAME = re.compile(r"[a-z0-9][a-z0-9:-]{0,62}", re.ASCII)
_HOST_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", re.ASCII)
_FIXED_IP = re.compile(r"(subnet_id|ip_address|ip_address_substr)=(.{1,64})")


def _option_name(value: Any) -> str:
    if isinstance(value, str) and _OPTION_NAME.fullmatch(value):
        return value
    raise ValueError("opt_name is a DHCP option's name or number")


def _host(value: Any) -> str:
    if isinstance(value, str) and (value == "" or _HOST_NAME.fullmatch(value)):
        return value
    raise ValueError("is not a host's name")


def _pair_address(value: Any) -> str:
    text = values.cidr(value) if isinstance(value, str) and "/" in value else values.ip(value)
    return str(text)


def _profile(value: Any) -> dict[str, Any]:
    if value in (None, ""):
        return {}
    if not isinstance(value, dict) or len(json.dumps(value)) > 4095:
        raise ValueError("is no JSON object of at most 4095 characters")
    if "migrating_to" in value:
        _host(value["migrating_to"])
    return value


def _fixed_ip(value: Any) -> dict[str, str]:
    item: dict[str, str] = values.members({}, {"subnet_id": values.uuid, "ip_address": values.ip})(
        {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
    )
    if not item:
        raise ValueError("subnet_id or ip_address is needed")
    return item


def _fixed_ip_filter(given: Sequence[str]) -> ColumnElement[bool]:
    conditions = []
    for text in given:
        match = _FIXED_IP.fullmatch(text)
        if match is None:
            raise ValueError(f"'{text:.64}' is not ip_address=... or subnet_id=...")
        name, value = match[1], match[2]
        if name == "ip_address_substr":
            conditions.append(_allocation.c.ip_address.contains(value, autoescape=True))
        elif name == "ip_address":
            conditions.append(_allocation.c.ip_address == str(values.ip(value)))
        else:
            conditions.append(_allocation.c.subnet_id == value)
    return exists().where(_allocation.c.port_id == _port.c.id, or_(*conditions))


def _group_filter(given: Sequence[str]) -> ColumnElement[bool]:
    return exists().where(
        _member.c.port_id == _port.c.id, _member.c.security_group_id.in_(list(given))
    )


class Ports(Resource):
    """The collection /v2.0/ports."""

    singular = "port"
    collection = "ports"
    title = "Port"
    table = _port
    own = (
        Attribute("network_id", values.uuid, put=False, default=REQUIRED),
        Attribute("mac_address", values.optional(values.mac), default=None),
        Attribute(
            "fixed_ips",
            values.many(_fixed_ip, 256),
            default=UNSET,
            column=None,
            matches=_fixed_ip_filter,
        ),
        Attribute("admin_state_up", values.boolean, default=True),
        Attribute("status", column=None),
        Attribute("device_id", values.text(), default=""),
        Attribute("device_owner", values.text(), default=""),
        Attribute(
            "binding:host_id",
            values.optional(_host),
            default=None,
            column="host",
            set_rule=BINDING_RULE,
            see_rule=BINDING_RULE,
        ),
        Attribute(
            "binding:vnic_type",
            values.choice("normal", "direct", "macvtap"),
            default="normal",
            column="vnic_type",
        ),
        Attribute(
            "binding:profile",
            _profile,
            default={},
            column="binding_profile",
            as_json=True,
            set_rule=BINDING_RULE,
            see_rule=BINDING_RULE,
        ),
        Attribute("binding:vif_type", column=None, see_rule=BINDING_RULE),
        Attribute("binding:vif_details", column=None, see_rule=BINDING_RULE),
        Attribute("port_security_enabled", unguarded, default=UNSET),
        Attribute(
            "allowed_address_pairs",
            values.many(
                values.members({"ip_address": _pair_address}, {"mac_address": values.mac}), 256
            ),
            default=[],
            as_json=True,
        ),
        Attribute(
            "extra_dhcp_opts",
            values.many(
                values.members(
                    {"opt_name": _option_name},
                    {
                        "opt_value": values.optional(values.text()),
                        "ip_version": values.integer(4, 6),
                    },
                ),
                32,
            ),
            default=[],
            as_json=True,
        ),
        Attribute("dns_name", values.domain, default=""),
        Attribute("dns_assignment", column=None),
        Attribute(
            "security_groups",
            values.optional(values.many(values.uuid, 32)),
            default=UNSET,
            column=None,
            matches=_group_filter,
        ),
        Attribute("propagate_uplink_status", column=None),
    )
    extensions = (
        Extension("binding", "Port Binding", "The host that carries a port"),
        Extension("allowed-address-pairs", "Allowed Address Pairs", "More addresses of a port"),
        Extension("extra_dhcp_opt", "Extra DHCP options", "DHCP options of one port"),
        Extension("fip-port-details", "Floating IP Port Details", "The port of a floating IP"),
    )

    def visible(self, call: Call) -> ColumnElement[bool]:
        """A tenant sees its own ports, and all ports of its networks."""
        network = schema.network
        return or_(
            super().visible(call),
            _port.c.network_id.in_(
                select(network.c.id).where(network.c.project_id.in_(call.projects))
            ),
        )

    def create(self, change: Change, attributes: Mapping[str, Any]) -> str:
        """Take a MAC and addresses and make the port."""
        network_id = attributes["network_id"]
        changes.lock_network(change.writer, network_id)
        network = Networks().find(change, network_id)
        self._check_owner(change, network, attributes)
        self._check_host(change, attributes.get("binding:host_id"))
        mac = attributes["mac_address"]
        if mac is None:
            mac = addresses.new_mac(change, network_id)
        elif change.connection.execute(
            select(_port.c.id).where(_port.c.network_id == network_id, _port.c.mac_address == mac)
        ).first():
            raise refusals.conflict(
                "MacAddressInUse",
                f"Unable to complete operation for network {network_id}. "
                f"The mac address {mac} is in use.",
            )
        security = attributes["port_security_enabled"]
        if security is UNSET:
            security = network["port_security_enabled"]
        asked = attributes["fixed_ips"]
        if asked is not UNSET and len(asked) > change.settings.max_fixed_ips_per_port:
            raise refusals.invalid("Exceeded maximum amount of fixed ips per port")
        chosen = addresses.choose(
            change, network_id, None if asked is UNSET else asked, mac, attributes["device_owner"]
        )
        columns = self.columns({k: v for k, v in attributes.items() if v is not UNSET})
        columns.update(
            mac_address=mac,
            port_security_enabled=security,
            host=attributes["binding:host_id"] or None,
            next_host=attributes["binding:profile"].get("migrating_to") or None,
            allowed_address_pairs=_pairs(change, attributes["allowed_address_pairs"], mac),
        )
        self._check_security(security, attributes["allowed_address_pairs"], attributes)
        port_id = self.insert(change, columns)
        addresses.write(change, network_id, port_id, chosen)
        groups = attributes["security_groups"]
        if groups is UNSET or groups is None:
            groups = []
        self._set_groups(change, port_id, attributes["project_id"], groups)
        changes.port(
            change.writer,
            port_id,
            network_id,
            before=(),
            after=_hosts(columns),
            groups=groups,
            device_id=attributes["device_id"],
        )
        return port_id

    def update(self, change: Change, row: Row, attributes: Mapping[str, Any]) -> None:
        """Change it and tell the hosts that carry it or did."""
        if row["device_owner"] == DHCP_OWNER:
            raise refusals.conflict(
                "PortInUse", f"Port {row['id']} is the network's own and cannot be changed."
            )
        network_id = row["network_id"]
        changes.lock_network(change.writer, network_id)
        network = Networks().find(change, network_id)
        self._check_owner(change, network, attributes, row)
        self._check_host(change, attributes.get("binding:host_id"))
        columns = self.columns(
            {k: v for k, v in attributes.items() if k not in ("allowed_address_pairs",)}
        )
        mac = attributes.get("mac_address", row["mac_address"]) or row["mac_address"]
        columns["mac_address"] = mac
        if mac != row["mac_address"]:
            if row["host"]:
                raise refusals.conflict(
                    "PortBound",
                    f"Unable to complete operation on port {row['id']}, port is already bound.",
                )
            self._check_mac_free(change, network_id, mac)
        if "binding:host_id" in attributes:
            columns["host"] = attributes["binding:host_id"] or None
        if "binding:profile" in attributes:
            columns["next_host"] = attributes["binding:profile"].get("migrating_to") or None
        pairs = json.loads(row["allowed_address_pairs"])
        if "allowed_address_pairs" in attributes:
            columns["allowed_address_pairs"] = _pairs(
                change, attributes["allowed_address_pairs"], mac
            )
            pairs = json.loads(columns["allowed_address_pairs"])
        has = addresses.of_ports(change, [row["id"]])[row["id"]]
        moved = False
        if "fixed_ips" in attributes or mac != row["mac_address"]:
            moved = self._move(change, row, attributes, mac, has)
        groups_before = _groups(change, [row["id"]])[row["id"]]
        groups = groups_before
        if attributes.get("security_groups") is not None:
            groups = attributes["security_groups"]
            if sorted(groups) != groups_before:
                self._set_groups(change, row["id"], row["project_id"], groups)
        security = attributes.get("port_security_enabled", row["port_security_enabled"])
        self._check_security(security, pairs, {"security_groups": groups})
        self.set(change, row, columns)
        after = {**row, **columns}
        told = set(groups) ^ set(groups_before)
        if moved or "allowed_address_pairs" in attributes:
            told |= set(groups) | set(groups_before)
        changes.port(
            change.writer,
            row["id"],
            network_id,
            before=_hosts(row),
            after=_hosts(after),
            groups=sorted(told),
            device_id=after["device_id"],
        )
        if row["device_id"] not in ("", after["device_id"]):
            changes.instance(change.writer, row["device_id"])

    def _move(
        self,
        change: Change,
        row: Row,
        attributes: Mapping[str, Any],
        mac: str,
        has: list[tuple[str, str]],
    ) -> bool:
        """Give the port the addresses that it is to have; whether they are others."""
        asked = attributes.get("fixed_ips", addresses.fixed_ips_document(has))
        if len(asked) > change.settings.max_fixed_ips_per_port:
            raise refusals.invalid("Exceeded maximum amount of fixed ips per port")
        chosen = addresses.choose(change, row["network_id"], asked, mac, row["device_owner"], has)
        if chosen == has:
            return False
        gone = {ip for _, ip in has} - {ip for _, ip in chosen}
        floating = schema.floating_ip
        held = change.connection.execute(
            select(floating.c.id).where(
                floating.c.port_id == row["id"], floating.c.fixed_ip_address.in_(gone)
            )
        ).first()
        if held is not None:
            raise refusals.conflict(
                "PortInUse",
                f"Port {row['id']} has an address that the floating IP {held.id} stands for.",
            )
        addresses.write(change, row["network_id"], row["id"], chosen)
        return True

    def delete(self, change: Change, row: Row) -> None:
        """Delete it, unless it is a router's or the network's own."""
        if row["device_owner"].startswith("network:"):
            raise refusals.conflict(
                "ServicePortInUse",
                f"Port {row['id']} cannot be deleted directly via the port API: has device owner "
                f"{row['device_owner']}.",
            )
        remove_port(change, row)

    def extend(self, call: Call, rows: Sequence[Row], documents: Sequence[dict[str, Any]]) -> None:
        """Add addresses, groups, status and binding details."""
        ids = [row["id"] for row in rows]
        fixed = addresses.of_ports(call, ids)
        groups = _groups(call, ids)
        wired = _wired(call, ids)
        domain = call.settings.dns_domain
        for row, document in zip(rows, documents, strict=True):
            chosen = fixed[row["id"]]
            up = row["admin_state_up"] and (
                row["device_owner"] == DHCP_OWNER or row["host"] in wired.get(row["id"], ())
            )
            document.update(
                {
                    "fixed_ips": addresses.fixed_ips_document(chosen),
                    "status": "ACTIVE" if up else "DOWN",
                    "security_groups": groups[row["id"]],
                    "binding:host_id": row["host"] or "",
                    "binding:vif_type": "bridge" if row["host"] else "unbound",
                    "binding:vif_details": {"port_filter": True} if row["host"] else {},
                    "dns_assignment": [
                        _assignment(row["dns_name"], ip, domain) for _, ip in chosen
                    ],
                    "propagate_uplink_status": True,
                }
            )

    # ---- checks --------------------------------------------------------------------------------

    @staticmethod
    def _check_owner(
        change: Change, network: Row, attributes: Mapping[str, Any], row: Row | None = None
    ) -> None:
        """What only the network's owner may do on a network that is shared with the client."""
        if change.allows("port:network-owner", network["project_id"]):
            if attributes.get("device_owner", "").startswith("network:") and not change.allows(
                OWNER_RULE
            ):
                raise refusals.forbidden("(rule:port:device_owner) is disallowed by policy")
            return
        if not network["shared"] and row is None:
            raise refusals.forbidden("port:create is disallowed by policy on this network")
        for name in ("mac_address", "port_security_enabled", "allowed_address_pairs"):
            if attributes.get(name) not in (None, UNSET, []):
                raise refusals.forbidden(f"(rule:port:{name}) is disallowed by policy")
        asked = attributes.get("fixed_ips")
        if asked not in (None, UNSET) and any("ip_address" in each for each in asked):
            raise refusals.forbidden("(rule:port:fixed_ips:ip_address) is disallowed by policy")
        if attributes.get("device_owner", "").startswith("network:"):
            raise refusals.forbidden("(rule:port:device_owner) is disallowed by policy")

    @staticmethod
    def _check_host(change: Change, name: str | None) -> None:
        if not name:
            return
        known = change.connection.execute(
            select(schema.host.c.name).where(schema.host.c.name == name)
        ).first()
        if known is None:
            raise refusals.invalid(f"binding:host_id: no host '{name}' has registered")

    @staticmethod
    def _check_mac_free(change: Change, network_id: str, mac: str) -> None:
        if change.connection.execute(
            select(_port.c.id).where(_port.c.network_id == network_id, _port.c.mac_address == mac)
        ).first():
            raise refusals.conflict(
                "MacAddressInUse",
                f"Unable to complete operation for network {network_id}. "
                f"The mac address {mac} is in use.",
            )

    @staticmethod
    def _check_security(security: bool, pairs: Any, attributes: Mapping[str, Any]) -> None:
        if security:
            return
        if attributes.get("security_groups") not in (None, UNSET, []):
            raise refusals.conflict(
                "PortSecurityAndIPRequiredForSecurityGroups",
                "Port security must be enabled and port must have an IP address in order to use "
                "security groups.",
            )
        if pairs:
            raise refusals.conflict(
                "AddressPairAndPortSecurityRequired",
                "Port Security must be enabled in order to have allowed address pairs on a port.",
            )

    @staticmethod
    def _set_groups(change: Change, port_id: str, project_id: str, groups: Sequence[str]) -> None:
        change.connection.execute(delete(_member).where(_member.c.port_id == port_id))
        if not groups:
            return
        group = schema.security_group
        found = set(
            change.connection.execute(
                select(group.c.id)
                .where(group.c.id.in_(groups), group.c.project_id == project_id)
                .with_for_update(key_share=True)
            ).scalars()
        )
        for each in groups:
            if each not in found:
                raise refusals.not_found("SecurityGroup", each)
        change.connection.execute(
            insert(_member), [{"port_id": port_id, "security_group_id": g} for g in groups]
        )


def remove_port(change: Change, row: Row) -> None:
    """Delete a port's row with its addresses and groups, and tell the hosts."""
    network_id = row["network_id"]
    changes.lock_network(change.writer, network_id)
    floating = schema.floating_ip
    groups = _groups(change, [row["id"]])[row["id"]]
    for each in change.connection.execute(
        select(floating.c.id).where(floating.c.port_id == row["id"])
    ).all():
        change.connection.execute(
            floating.update()
            .where(floating.c.id == each.id)
            .values(port_id=None, fixed_ip_address=None, router_id=None)
        )
    router = schema.router
    for each in change.connection.execute(
        select(router.c.id, router.c.host).where(
            router.c.id.in_(
                select(schema.router_port.c.router_id)
                .join(_port, _port.c.id == schema.router_port.c.port_id)
                .where(_port.c.network_id == network_id)
            )
        )
    ).all():
        hosts = tuple(filter(None, (each.host,)))
        changes.router(change.writer, each.id, before=hosts, after=hosts)
    change.connection.execute(delete(_allocation).where(_allocation.c.port_id == row["id"]))
    change.connection.execute(delete(_member).where(_member.c.port_id == row["id"]))
    change.connection.execute(delete(_port).where(_port.c.id == row["id"]))
    changes.port(
        change.writer,
        row["id"],
        network_id,
        before=_hosts(row),
        after=(),
        groups=groups,
        device_id=row["device_id"],
    )


def _hosts(row: Mapping[str, Any]) -> changes.Hosts:
    return tuple(name for name in (row["host"], row["next_host"]) if name)


def _pairs(change: Change, pairs: Sequence[Mapping[str, str]], mac: str) -> str:
    if len(pairs) > change.settings.max_allowed_address_pairs:
        raise refusals.bad_value("allowed_address_pairs", "there are too many of them")
    return json.dumps(
        [
            {"ip_address": each["ip_address"], "mac_address": each.get("mac_address", mac)}
            for each in pairs
        ]
    )


def _groups(call: Call, ids: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {port_id: [] for port_id in ids}
    for start in range(0, len(ids), 500):
        for port_id, group in call.connection.execute(
            select(_member.c.port_id, _member.c.security_group_id)
            .where(_member.c.port_id.in_(list(ids[start : start + 500])))
            .order_by(_member.c.security_group_id)
        ):
            found[port_id].append(group)
    return found


def _wired(call: Call, ids: Sequence[str]) -> dict[str, list[str]]:
    status = schema.port_status
    found: dict[str, list[str]] = {}
    for start in range(0, len(ids), 500):
        for port_id, host in call.connection.execute(
            select(status.c.port_id, status.c.host).where(
                status.c.port_id.in_(list(ids[start : start + 500]))
            )
        ):
            found.setdefault(port_id, []).append(host)
    return found


def _assignment(dns_name: str, ip: str, domain: str) -> dict[str, str]:
    address = ipaddress.ip_address(ip)
    text = ip.replace(".", "-") if address.version == 4 else address.exploded.replace(":", "-")
    name = dns_name or f"host-{text}"
    fqdn = f"{name}.{domain.rstrip('.')}." if domain else f"{name}."
    return {"hostname": name, "ip_address": ip, "fqdn": fqdn}
