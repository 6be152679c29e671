"""What one host needs to know, as values: the contract between the controllers and the agent.

A host's view holds, for each network that it carries (some port of it is bound here), the network
with its subnets, its local ports, every other port as an `Endpoint` (where its MAC and addresses
are to be found), the security groups that its local ports use or refer to, and the routers that are
scheduled here. Nothing else: a host learns of no network that it does not carry.

On the wire each object is a JSON object with the names of the dataclass's fields. Reading checks
every value again (`ValueError` names the field): the agent runs with privileges and believes
nobody, and no string that fails these patterns reaches a configuration or a command.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII).fullmatch
_mac = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII).fullmatch
_token = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,127}", re.ASCII).fullmatch
_label = r"[0-9a-z](?:[0-9a-z-]{0,61}[0-9a-z])?"
_domain = re.compile(rf"(?=.{{1,253}}\Z){_label}(?:\.{_label})*\.?", re.ASCII).fullmatch

NETWORK_TYPES = ("local", "flat", "vlan", "vxlan")
MODES = (None, "slaac", "dhcpv6-stateful", "dhcpv6-stateless")
DIRECTIONS = ("ingress", "egress")
ETHERTYPES = ("IPv4", "IPv6")

METADATA_ADDRESS = "169.254.169.254"
METADATA_ADDRESS_IPV6 = "fe80::a9fe:a9fe"

DHCP_OWNER = "network:dhcp"
"""Device owner of a network's DHCP port. There is one a network, on no host in particular: every
host that carries the network has its MAC and addresses in a namespace of its own, and lets no frame
from or to it leave the host. So no host is a single point of failure, and it costs one address."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a port and the subnet it was taken from."""

    subnet_id: str
    ip: str


@dataclass(frozen=True, slots=True)
class Route:
    """Destination as CIDR, next hop as address."""

    destination: str
    nexthop: str


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet; ``ra_mode`` and ``address_mode`` are Neutron's ipv6_ra_mode, ipv6_address_mode."""

    id: str
    cidr: str
    gateway_ip: str | None
    enable_dhcp: bool
    ra_mode: str | None
    address_mode: str | None
    dns_nameservers: tuple[str, ...]
    host_routes: tuple[Route, ...]

    @property
    def ip_version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.cidr else 4


@dataclass(frozen=True, slots=True)
class DhcpPort:
    """The port that a network's DHCP service answers from, the same on every host."""

    port_id: str
    mac: str
    fixed_ips: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """A network that this host carries.

    ``segmentation_id`` is the VLAN id (1 to 4094) or the VNI (1 to 16777215). ``mtu`` is what an
    instance may use. ``routed`` says that a router of ours is on it: its instances reach the
    metadata address through the router then (unless the host forces the DHCP way).
    """

    id: str
    project_id: str
    network_type: str
    physical_network: str | None
    segmentation_id: int | None
    mtu: int
    admin_state_up: bool
    external: bool
    routed: bool
    dns_domain: str | None
    subnets: tuple[Subnet, ...]
    dhcp: DhcpPort | None


@dataclass(frozen=True, slots=True)
class AllowedPair:
    """An address (CIDR) and MAC that a port may use beyond its own."""

    mac: str
    cidr: str


@dataclass(frozen=True, slots=True)
class DhcpOption:
    """An extra DHCP option of a port: Neutron's opt_name, opt_value, ip_version."""

    name: str
    value: str
    ip_version: int


@dataclass(frozen=True, slots=True)
class Port:
    """A port bound to this host (``host``), or about to be (``next_host``)."""

    id: str
    network_id: str
    project_id: str
    mac: str
    fixed_ips: tuple[Address, ...]
    device_id: str
    device_owner: str
    host: str | None
    next_host: str | None
    admin_state_up: bool
    port_security: bool
    allowed_pairs: tuple[AllowedPair, ...]
    security_groups: tuple[str, ...]
    dhcp_options: tuple[DhcpOption, ...]
    dns_name: str | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A port of a carried network on another host.

    ``vtep`` is that host's tunnel address, None for a port that is on no host (yet).
    """

    id: str
    network_id: str
    mac: str
    fixed_ips: tuple[Address, ...]
    vtep: str | None
    dns_name: str | None
    device_owner: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One security group rule, normalised.

    ``protocol`` is the IP protocol number, None for any. For TCP, UDP and the like ``port_min`` and
    ``port_max`` are ports; for ICMP and ICMPv6 they are type and code. At most one of
    ``remote_cidr`` and ``remote_group`` is given.
    """

    id: str
    direction: str
    ethertype: str
    protocol: int | None
    port_min: int | None
    port_max: int | None
    remote_cidr: str | None
    remote_group: str | None


@dataclass(frozen=True, slots=True)
class SecurityGroup:
    """A group that a local port uses."""

    id: str
    stateful: bool
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class GroupMembers:
    """Addresses (CIDRs) of all members of a group that a rule of a local port refers to.

    An object of its own, so that a member that comes or goes costs one small change.
    ``id`` is the group's.
    """

    id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FloatingIP:
    """A floating address and the fixed address that it stands for, on this router."""

    id: str
    floating_ip: str
    fixed_ip: str
    port_id: str


@dataclass(frozen=True, slots=True)
class RouterPort:
    """A router's port in a network; ``fixed_ips`` lie in that network's subnets."""

    port_id: str
    network_id: str
    mac: str
    fixed_ips: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Router:
    """A router that runs on this host."""

    id: str
    project_id: str
    admin_state_up: bool
    enable_snat: bool
    gateway: RouterPort | None
    interfaces: tuple[RouterPort, ...]
    routes: tuple[Route, ...]
    floating_ips: tuple[FloatingIP, ...]


Object = Network | Port | Endpoint | SecurityGroup | GroupMembers | Router

KINDS: Mapping[str, type[Any]] = {
    "network": Network,
    "port": Port,
    "endpoint": Endpoint,
    "security_group": SecurityGroup,
    "group_members": GroupMembers,
    "router": Router,
}
"""Kind on the wire to class. Within a view an object is known by (kind, id)."""


def kind_of(item: Object) -> str:
    """The kind of an object, as on the wire."""
    return next(kind for kind, cls in KINDS.items() if type(item) is cls)


@dataclass(slots=True)
class View:
    """Objects by kind and id; mutable: the agent applies changes to it in their order."""

    objects: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )

    @property
    def networks(self) -> dict[str, Network]:
        """Networks by id."""
        return self.objects["network"]

    @property
    def ports(self) -> dict[str, Port]:
        """Local ports by id."""
        return self.objects["port"]

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Remote ports by id."""
        return self.objects["endpoint"]

    @property
    def security_groups(self) -> dict[str, SecurityGroup]:
        """Security groups by id."""
        return self.objects["security_group"]

    @property
    def group_members(self) -> dict[str, GroupMembers]:
        """Members of remote groups by the group's id."""
        return self.objects["group_members"]

    @property
    def routers(self) -> dict[str, Router]:
        """Routers by id."""
        return self.objects["router"]

    def put(self, item: Object) -> None:
        """Add or replace an object. A port is either local or an endpoint, never both."""
        self.objects[kind_of(item)][item.id] = item
        if isinstance(item, Port):
            self.endpoints.pop(item.id, None)
        elif isinstance(item, Endpoint):
            self.ports.pop(item.id, None)

    def delete(self, kind: str, object_id: str) -> None:
        """Forget an object, if it is there; a network takes its ports and endpoints with it."""
        self.objects[kind].pop(object_id, None)
        if kind == "network":
            for table in (self.ports, self.endpoints):
                for each in [item for item in table.values() if item.network_id == object_id]:
                    del table[each.id]

    def apply(self, changes: Iterable[Mapping[str, Any]]) -> None:
        """Apply the ``changes`` of one answer, in their order, then `prune`.

        Raises ValueError, and has changed nothing then, if one of them does not fit. What is of an
        unknown kind is passed over (a newer controller).
        """
        checked: list[tuple[str, str, Object | None]] = []
        for index, change in enumerate(changes):
            where = f"changes[{index}]"
            kind, operation = str(change.get("kind")), change.get("op")
            if kind not in KINDS:
                continue
            object_id = _id(change.get("id"), f"{where}.id")
            if operation == "put":
                item = from_json(kind, change.get("object") or {})
                if item.id != object_id:
                    raise _wrong(f"{where}.id", "is not the object's")
                checked.append((kind, object_id, item))
            elif operation == "delete":
                checked.append((kind, object_id, None))
            else:
                raise _wrong(f"{where}.op", f"{operation!r:.80} is neither put nor delete")
        for kind, object_id, item in checked:
            if item is None:
                self.delete(kind, object_id)
            else:
                self.put(item)
        self.prune()

    def prune(self) -> None:
        """Forget security groups that no local port is in, and members that no rule refers to.

        The controllers send what a host comes to need and leave it to the host to know what it
        needs no more: they keep no account of what each host was told.
        """
        used = {group for port in self.ports.values() for group in port.security_groups}
        for group in self.security_groups.keys() - used:
            del self.security_groups[group]
        named = {
            rule.remote_group
            for group in self.security_groups.values()
            for rule in group.rules
            if rule.remote_group is not None
        }
        for group in self.group_members.keys() - named:
            del self.group_members[group]

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Lists by kind, each sorted by id: equal views give equal JSON."""
        return {
            kind: [to_json(items[key]) for key in sorted(items)]
            for kind, items in self.objects.items()
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> View:
        """Read `to_json`'s; an unknown kind is left out (a newer controller). Raises ValueError."""
        view = cls()
        for kind in KINDS:
            for item in document.get(kind, ()):
                view.put(from_json(kind, item))
        return view


def to_json(item: Any) -> dict[str, Any]:
    """The object as JSON would have it."""
    return {
        field.name: _plain(getattr(item, field.name)) for field in dataclasses.fields(type(item))
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value):
        return to_json(value)
    return value


T = TypeVar("T")


def from_json(kind: str, document: Mapping[str, Any]) -> Any:
    """The object of this kind, without members that are unknown; ValueError names the field."""
    return _read(KINDS[kind], document, kind)


def _wrong(where: str, what: str) -> ValueError:
    return ValueError(f"{where}: {what}")


def _read(cls: type[T], document: Any, where: str) -> T:
    if not isinstance(document, Mapping):
        raise _wrong(where, "is no JSON object")
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # only dataclasses come here
        if field.name not in document:
            raise _wrong(f"{where}.{field.name}", "is missing")
        check = _CHECKS[(cls.__name__, field.name)]
        values[field.name] = check(document[field.name], f"{where}.{field.name}")
    return cls(**values)


def _text(match: Any, *, empty: bool = False) -> Any:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or not (match(value) or (empty and value == "")):
            raise _wrong(where, f"{value!r:.80} is not allowed")
        return value

    return check


def _optional(inner: Any) -> Any:
    return lambda value, where: None if value is None else inner(value, where)


def _many(inner: Any) -> Any:
    def check(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _wrong(where, "is no list")
        return tuple(inner(each, f"{where}[{index}]") for index, each in enumerate(value))

    return check


def _nested(cls: type[Any]) -> Any:
    return lambda value, where: _read(cls, value, where)


def _choice(*allowed: Any) -> Any:
    def check(value: Any, where: str) -> Any:
        if not any(value is each or (type(value) is type(each) and value == each)
                   for each in allowed):  # fmt: skip
            raise _wrong(where, f"{value!r:.80} is none of {allowed}")
        return value

    return check


def _number(least: int, most: int) -> Any:
    def check(value: Any, where: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _wrong(where, f"{value!r:.80} is no number from {least} to {most}")
        return value

    return check


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, f"{value!r:.80} is neither true nor false")
    return value


def _ip(value: Any, where: str) -> str:
    try:
        address = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise _wrong(where, f"{value!r:.80} is no address") from None
    if str(address) != value or getattr(address, "scope_id", None):
        raise _wrong(where, f"{value!r:.80} is not written as usual")
    return value  # type: ignore[no-any-return]  # a str: it equals one


def _cidr(value: Any, where: str) -> str:
    try:
        network = ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise _wrong(where, f"{value!r:.80} is no network in CIDR form") from None
    if str(network) != value:
        raise _wrong(where, f"{value!r:.80} is not written as usual")
    return value  # type: ignore[no-any-return]  # a str: it equals one


def _any_text(most: int) -> Any:
    """Text that an operator chose, without control characters; never put anywhere unescaped."""
    return _text(lambda text: len(text) <= most and text.isprintable())


_id = _text(_uuid)
_name = _optional(_text(_domain))
_addresses = _many(_nested(Address))

_CHECKS: Mapping[tuple[str, str], Any] = {
    (cls.__name__, name): check
    for cls, checks in (
        (Address, {"subnet_id": _id, "ip": _ip}),
        (Route, {"destination": _cidr, "nexthop": _ip}),
        (
            Subnet,
            {
                "id": _id,
                "cidr": _cidr,
                "gateway_ip": _optional(_ip),
                "enable_dhcp": _boolean,
                "ra_mode": _choice(*MODES),
                "address_mode": _choice(*MODES),
                "dns_nameservers": _many(_ip),
                "host_routes": _many(_nested(Route)),
            },
        ),
        (DhcpPort, {"port_id": _id, "mac": _text(_mac), "fixed_ips": _addresses}),
        (
            Network,
            {
                "id": _id,
                "project_id": _text(_token, empty=True),
                "network_type": _choice(*NETWORK_TYPES),
                "physical_network": _optional(_text(_token)),
                "segmentation_id": _optional(_number(1, 2**24 - 1)),
                "mtu": _number(68, 65535),
                "admin_state_up": _boolean,
                "external": _boolean,
                "routed": _boolean,
                "dns_domain": _name,
                "subnets": _many(_nested(Subnet)),
                "dhcp": _optional(_nested(DhcpPort)),
            },
        ),
        (AllowedPair, {"mac": _text(_mac), "cidr": _cidr}),
        (
            DhcpOption,
            {"name": _any_text(255), "value": _any_text(255), "ip_version": _choice(4, 6)},
        ),
        (
            Port,
            {
                "id": _id,
                "network_id": _id,
                "project_id": _text(_token, empty=True),
                "mac": _text(_mac),
                "fixed_ips": _addresses,
                "device_id": _any_text(255),
                "device_owner": _any_text(255),
                "host": _optional(_text(_domain)),
                "next_host": _optional(_text(_domain)),
                "admin_state_up": _boolean,
                "port_security": _boolean,
                "allowed_pairs": _many(_nested(AllowedPair)),
                "security_groups": _many(_id),
                "dhcp_options": _many(_nested(DhcpOption)),
                "dns_name": _name,
            },
        ),
        (
            Endpoint,
            {
                "id": _id,
                "network_id": _id,
                "mac": _text(_mac),
                "fixed_ips": _addresses,
                "vtep": _optional(_ip),
                "dns_name": _name,
                "device_owner": _any_text(255),
            },
        ),
        (
            Rule,
            {
                "id": _id,
                "direction": _choice(*DIRECTIONS),
                "ethertype": _choice(*ETHERTYPES),
                "protocol": _optional(_number(0, 255)),
                "port_min": _optional(_number(0, 65535)),
                "port_max": _optional(_number(0, 65535)),
                "remote_cidr": _optional(_cidr),
                "remote_group": _optional(_id),
            },
        ),
        (SecurityGroup, {"id": _id, "stateful": _boolean, "rules": _many(_nested(Rule))}),
        (GroupMembers, {"id": _id, "addresses": _many(_cidr)}),
        (
            FloatingIP,
            {"id": _id, "floating_ip": _ip, "fixed_ip": _ip, "port_id": _id},
        ),
        (
            RouterPort,
            {
                "port_id": _id,
                "network_id": _id,
                "mac": _text(_mac),
                "fixed_ips": _addresses,
            },
        ),
        (
            Router,
            {
                "id": _id,
                "project_id": _text(_token, empty=True),
                "admin_state_up": _boolean,
                "enable_snat": _boolean,
                "gateway": _optional(_nested(RouterPort)),
                "interfaces": _many(_nested(RouterPort)),
                "routes": _many(_nested(Route)),
                "floating_ips": _many(_nested(FloatingIP)),
            },
        ),
    )
    for name, check in checks.items()
}


def vteps(view: View, network_id: str) -> tuple[str, ...]:
    """Tunnel addresses of the other hosts of a network, sorted: whom unknown frames flood to."""
    return tuple(
        sorted(
            {
                each.vtep
                for each in _of(view.endpoints.values(), network_id)
                if each.vtep is not None
            },
            key=lambda text: (":" in text, ipaddress.ip_address(text).packed),
        )
    )


def _of(items: Iterable[Endpoint], network_id: str) -> Iterable[Endpoint]:
    return (item for item in items if item.network_id == network_id)
