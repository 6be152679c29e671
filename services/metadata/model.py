"""An instance as the metadata service knows it: frozen values, made once at the edge.

``Instance.from_document`` takes the JSON object that ``instance.schema.json`` describes (after
that schema accepted it), fills in defaults and checks what a schema cannot say: that addresses
lie in their subnets, that a bond names links which exist. ``Instance.to_document`` gives the same
object back with every default written out, so that what is stored needs no defaults to be read.

Until the network service owns ports and subnets, an instance carries the network facts that its
documents need, under the names that OpenStack Networking uses.
"""

import base64
import binascii
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

USER_DATA_LIMIT = 64 * 1024
"""Bytes of user data, raw. OpenStack accepts 65,535 bytes of base64; AWS 16 KiB raw."""

_INTERFACE_NAMESPACE = uuid.UUID("6a1f1b52-6f7c-5d57-9d1d-6d6f6f72696e")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Invalid(Exception):
    """A document that breaks a rule; ``field`` is a JSON pointer (RFC 6901), ``reason`` a text."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Key:
    """A public key; ``type`` is ``ssh`` or ``x509``."""

    name: str
    type: str
    data: str


@dataclass(frozen=True, slots=True)
class Route:
    """A host route of a subnet."""

    destination: Network
    nexthop: Address


@dataclass(frozen=True, slots=True)
class FixedAddress:
    """An address of an interface and, where there is one, the floating IP in front of it."""

    ip_address: Address
    floating_ip_address: Address | None


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet of an interface with the addresses that this interface has there.

    ``ipv6_address_mode`` is None, ``slaac``, ``dhcpv6-stateful`` or ``dhcpv6-stateless``.
    """

    id: str
    cidr: Network
    gateway_ip: Address | None
    dns_nameservers: tuple[Address, ...]
    host_routes: tuple[Route, ...]
    enable_dhcp: bool
    ipv6_address_mode: str | None
    addresses: tuple[FixedAddress, ...]


@dataclass(frozen=True, slots=True)
class Bond:
    """Bonding of other interfaces of the same instance, named by their ids."""

    mode: str
    links: tuple[str, ...]
    xmit_hash_policy: str | None
    miimon: int | None


@dataclass(frozen=True, slots=True)
class Vlan:
    """A VLAN on top of another interface of the same instance, named by its id."""

    id: int
    link: str


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface; ``id`` is the port's id, ``name`` the device name on the host."""

    id: str
    network_id: str
    mac: str
    name: str
    type: str
    mtu: int | None
    bond: Bond | None
    vlan: Vlan | None
    security_groups: tuple[str, ...]
    subnets: tuple[Subnet, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """A device that carries tags, as OpenStack's ``devices`` list shows it."""

    type: str
    bus: str
    address: str
    tags: tuple[str, ...]
    mac: str | None
    vlan: int | None
    vf_trusted: bool
    serial: str | None
    path: str | None
    share_id: str | None
    tag: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """Access options of one instance, named as in EC2's InstanceMetadataOptions."""

    http_endpoint: bool = True
    http_tokens_required: bool = False
    http_put_response_hop_limit: int = 1
    instance_metadata_tags: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """Everything an instance may read about itself, and the hosts that may ask for it."""

    id: str
    project_id: str
    name: str
    hostname: str
    host: str | None
    next_host: str | None
    instance_type: str | None
    image_id: str | None
    kernel_id: str | None
    ramdisk_id: str | None
    reservation_id: str
    availability_zone: str | None
    launch_index: int
    keys: tuple[Key, ...]
    properties: Mapping[str, str]
    tags: Mapping[str, str]
    user_data: bytes | None
    vendor_data: Mapping[str, Any] | None
    security_groups: tuple[str, ...]
    block_device_mapping: Mapping[str, str]
    dedicated_cpus: tuple[int, ...]
    devices: tuple[Device, ...]
    options: Options
    interfaces: tuple[Interface, ...]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Instance":
        """Make an instance of a document that the schema has accepted; raises Invalid."""
        instance_id = document.get("id") or str(uuid.uuid4())
        name = document["name"]
        interfaces = tuple(
            _interface(item, instance_id, index)
            for index, item in enumerate(document.get("interfaces") or ())
        )
        _check_interfaces(interfaces)
        options = document.get("options") or {}
        return cls(
            id=instance_id,
            project_id=document["project_id"],
            name=name,
            hostname=document.get("hostname") or hostname_of(name),
            host=document.get("host"),
            next_host=document.get("next_host"),
            instance_type=document.get("instance_type"),
            image_id=document.get("image_id"),
            kernel_id=document.get("kernel_id"),
            ramdisk_id=document.get("ramdisk_id"),
            reservation_id=document.get("reservation_id") or "r-" + instance_id[:8],
            availability_zone=document.get("availability_zone"),
            launch_index=document.get("launch_index", 0),
            keys=_keys(document.get("keys") or ()),
            properties=dict(document.get("properties") or {}),
            tags=dict(document.get("tags") or {}),
            user_data=_user_data(document.get("user_data")),
            vendor_data=document.get("vendor_data"),
            security_groups=tuple(document.get("security_groups") or ()),
            block_device_mapping=dict(document.get("block_device_mapping") or {}),
            dedicated_cpus=tuple(sorted(document.get("dedicated_cpus") or ())),
            devices=tuple(_device(item) for item in document.get("devices") or ()),
            options=Options(
                http_endpoint=options.get("http_endpoint", "enabled") == "enabled",
                http_tokens_required=options.get("http_tokens", "optional") == "required",
                http_put_response_hop_limit=options.get("http_put_response_hop_limit", 1),
                instance_metadata_tags=(
                    options.get("instance_metadata_tags", "disabled") == "enabled"
                ),
            ),
            interfaces=interfaces,
        )

    def to_document(self) -> dict[str, Any]:
        """The JSON object of this instance, every default written out, user data included."""
        return {
            "id": self.id,
            "project_id": self.project_id,
            "name": self.name,
            "hostname": self.hostname,
            "host": self.host,
            "next_host": self.next_host,
            "instance_type": self.instance_type,
            "image_id": self.image_id,
            "kernel_id": self.kernel_id,
            "ramdisk_id": self.ramdisk_id,
            "reservation_id": self.reservation_id,
            "availability_zone": self.availability_zone,
            "launch_index": self.launch_index,
            "keys": [{"name": k.name, "type": k.type, "data": k.data} for k in self.keys],
            "properties": dict(self.properties),
            "tags": dict(self.tags),
            "user_data": (
                None if self.user_data is None else base64.b64encode(self.user_data).decode()
            ),
            "vendor_data": self.vendor_data,
            "security_groups": list(self.security_groups),
            "block_device_mapping": dict(self.block_device_mapping),
            "dedicated_cpus": list(self.dedicated_cpus),
            "devices": [_device_document(device) for device in self.devices],
            "options": {
                "http_endpoint": "enabled" if self.options.http_endpoint else "disabled",
                "http_tokens": "required" if self.options.http_tokens_required else "optional",
                "http_put_response_hop_limit": self.options.http_put_response_hop_limit,
                "instance_metadata_tags": (
                    "enabled" if self.options.instance_metadata_tags else "disabled"
                ),
            },
            "interfaces": [_interface_document(interface) for interface in self.interfaces],
        }


def hostname_of(name: str) -> str:
    """A host name made of a display name: lower case, one label, ``instance`` if nothing is left.

    Follows the rule of RFC 1123 for labels (letters, digits, hyphen inside, at most 63).
    """
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return kept.strip("-")[:63].strip("-") or "instance"


def _user_data(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("/user_data", "is not base64 (RFC 4648 section 4)") from None
    if len(data) > USER_DATA_LIMIT:
        raise Invalid("/user_data", f"has {len(data)} bytes, at most {USER_DATA_LIMIT} are kept")
    return data or None


def _keys(items: Any) -> tuple[Key, ...]:
    keys = tuple(Key(item["name"], item.get("type", "ssh"), item["data"]) for item in items)
    seen: set[str] = set()
    for index, key in enumerate(keys):
        if key.name in seen:
            raise Invalid(f"/keys/{index}/name", f"{key.name!r} is used twice")
        seen.add(key.name)
    return keys


def _device(item: Mapping[str, Any]) -> Device:
    return Device(
        type=item["type"],
        bus=item.get("bus", "none"),
        address=item.get("address", "none"),
        tags=tuple(item.get("tags") or ()),
        mac=item.get("mac"),
        vlan=item.get("vlan"),
        vf_trusted=item.get("vf_trusted", False),
        serial=item.get("serial"),
        path=item.get("path"),
        share_id=item.get("share_id"),
        tag=item.get("tag"),
    )


def _device_document(device: Device) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": device.type,
        "bus": device.bus,
        "address": device.address,
        "tags": list(device.tags),
        "vf_trusted": device.vf_trusted,
    }
    for name in ("mac", "vlan", "serial", "path", "share_id", "tag"):
        value = getattr(device, name)
        if value is not None:
            document[name] = value
    return document


def _address(text: str, field: str) -> Address:
    try:
        address = ip_address(text)
    except ValueError:
        raise Invalid(field, f"{text!r} is no IP address") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Invalid(field, f"{text!r} has a zone, which means nothing on another machine")
    return address


def _network(text: str, field: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise Invalid(field, f"{text!r} is no network in CIDR notation: {error}") from None


def _interface(item: Mapping[str, Any], instance_id: str, index: int) -> Interface:
    field = f"/interfaces/{index}"
    interface_id = item.get("id") or str(
        uuid.uuid5(_INTERFACE_NAMESPACE, f"{instance_id}/{item['mac']}")
    )
    kind = item.get("type", "phy")
    bond = item.get("bond")
    vlan = item.get("vlan")
    if (kind == "bond") != (bond is not None):
        raise Invalid(f"{field}/bond", "is needed by an interface of type bond, and only by it")
    if (kind == "vlan") != (vlan is not None):
        raise Invalid(f"{field}/vlan", "is needed by an interface of type vlan, and only by it")
    return Interface(
        id=interface_id,
        network_id=item["network_id"],
        mac=item["mac"],
        name=item.get("name") or "tap" + interface_id[:11],
        type=kind,
        mtu=item.get("mtu"),
        bond=bond
        and Bond(
            bond["mode"],
            tuple(bond["links"]),
            bond.get("xmit_hash_policy"),
            bond.get("miimon"),
        ),
        vlan=vlan and Vlan(vlan["id"], vlan["link"]),
        security_groups=tuple(item.get("security_groups") or ()),
        subnets=tuple(
            _subnet(subnet, f"{field}/subnets/{number}", item["network_id"])
            for number, subnet in enumerate(item.get("subnets") or ())
        ),
    )


def _subnet(item: Mapping[str, Any], field: str, network_id: str) -> Subnet:
    cidr = _network(item["cidr"], f"{field}/cidr")
    gateway = item.get("gateway_ip")
    mode = item.get("ipv6_address_mode")
    if mode is not None and cidr.version == 4:
        raise Invalid(f"{field}/ipv6_address_mode", "belongs to an IPv6 subnet")

    def inside(text: str, place: str) -> Address:
        address = _address(text, place)
        if address.version != cidr.version or address not in cidr:
            raise Invalid(place, f"{text} is not in {cidr}")
        return address

    routes = []
    for index, route in enumerate(item.get("host_routes") or ()):
        place = f"{field}/host_routes/{index}"
        destination = _network(route["destination"], f"{place}/destination")
        nexthop = _address(route["nexthop"], f"{place}/nexthop")
        if not destination.version == nexthop.version == cidr.version:
            raise Invalid(place, "mixes IPv4 and IPv6")
        routes.append(Route(destination, nexthop))
    addresses = []
    for index, entry in enumerate(item.get("addresses") or ()):
        place = f"{field}/addresses/{index}"
        floating = entry.get("floating_ip_address")
        addresses.append(
            FixedAddress(
                inside(entry["ip_address"], f"{place}/ip_address"),
                None if floating is None else _address(floating, f"{place}/floating_ip_address"),
            )
        )
    # A gateway may lie outside its subnet (a link-local router for IPv6, on-link routes for /32s).
    gateway_ip = None if gateway is None else _address(gateway, f"{field}/gateway_ip")
    if gateway_ip is not None and gateway_ip.version != cidr.version:
        raise Invalid(f"{field}/gateway_ip", f"{gateway} is not of the family of {cidr}")
    return Subnet(
        id=item.get("id") or f"subnet-{uuid.uuid5(_INTERFACE_NAMESPACE, f'{network_id}/{cidr}')}",
        cidr=cidr,
        gateway_ip=gateway_ip,
        dns_nameservers=tuple(
            _address(text, f"{field}/dns_nameservers/{index}")
            for index, text in enumerate(item.get("dns_nameservers") or ())
        ),
        host_routes=tuple(routes),
        enable_dhcp=item.get("enable_dhcp", True),
        ipv6_address_mode=mode,
        addresses=tuple(addresses),
    )


def _interface_document(interface: Interface) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": interface.id,
        "network_id": interface.network_id,
        "mac": interface.mac,
        "name": interface.name,
        "type": interface.type,
        "mtu": interface.mtu,
        "security_groups": list(interface.security_groups),
        "subnets": [
            {
                "id": subnet.id,
                "cidr": str(subnet.cidr),
                "gateway_ip": None if subnet.gateway_ip is None else str(subnet.gateway_ip),
                "dns_nameservers": [str(address) for address in subnet.dns_nameservers],
                "host_routes": [
                    {"destination": str(route.destination), "nexthop": str(route.nexthop)}
                    for route in subnet.host_routes
                ],
                "enable_dhcp": subnet.enable_dhcp,
                "ipv6_address_mode": subnet.ipv6_address_mode,
                "addresses": [
                    {
                        "ip_address": str(fixed.ip_address),
                        "floating_ip_address": (
                            None
                            if fixed.floating_ip_address is None
                            else str(fixed.floating_ip_address)
                        ),
                    }
                    for fixed in subnet.addresses
                ],
            }
            for subnet in interface.subnets
        ],
    }
    if interface.bond is not None:
        bond: dict[str, Any] = {"mode": interface.bond.mode, "links": list(interface.bond.links)}
        if interface.bond.xmit_hash_policy is not None:
            bond["xmit_hash_policy"] = interface.bond.xmit_hash_policy
        if interface.bond.miimon is not None:
            bond["miimon"] = interface.bond.miimon
        document["bond"] = bond
    if interface.vlan is not None:
        document["vlan"] = {"id": interface.vlan.id, "link": interface.vlan.link}
    return document


def _check_interfaces(interfaces: tuple[Interface, ...]) -> None:
    by_id: dict[str, Interface] = {}
    macs: set[tuple[str, str]] = set()
    addresses: set[tuple[str, Address]] = set()
    for index, interface in enumerate(interfaces):
        if interface.id in by_id:
            raise Invalid(f"/interfaces/{index}/id", f"{interface.id} is used twice")
        by_id[interface.id] = interface
        # A bond takes the address of one of its links, a VLAN that of its carrier.
        if interface.type not in ("bond", "vlan"):
            if (interface.network_id, interface.mac) in macs:
                raise Invalid(f"/interfaces/{index}/mac", f"{interface.mac} is used twice")
            macs.add((interface.network_id, interface.mac))
        for place, subnet in enumerate(interface.subnets):
            for number, fixed in enumerate(subnet.addresses):
                known = (interface.network_id, fixed.ip_address)
                if known in addresses:
                    raise Invalid(
                        f"/interfaces/{index}/subnets/{place}/addresses/{number}/ip_address",
                        f"{fixed.ip_address} is used twice in network {interface.network_id}",
                    )
                addresses.add(known)
    for index, interface in enumerate(interfaces):
        carriers = interface.bond.links if interface.bond else ()
        for number, link in enumerate(carriers):
            if link not in by_id or by_id[link].type in ("bond", "vlan"):
                raise Invalid(
                    f"/interfaces/{index}/bond/links/{number}",
                    f"{link} is no plain interface of this instance",
                )
        if interface.vlan and (
            interface.vlan.link not in by_id or by_id[interface.vlan.link].type == "vlan"
        ):
            raise Invalid(
                f"/interfaces/{index}/vlan/link",
                f"{interface.vlan.link} is no interface of this instance that can carry a VLAN",
            )
