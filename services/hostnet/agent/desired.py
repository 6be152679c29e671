"""What is to be on this host, as values: kernel objects, nft rulesets, daemons.

Every object has a `key` that says which one it is (two objects with one key are two states of the
same thing) and an `owner`, (kind, id) of the view object that it is there for: when it cannot be
programmed, that owner is reported and fenced, and every other one proceeds. `namespace` is the name
of a network namespace (in /run/netns), "" the host's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.hostnet.agent.names import GROUP

Owner = tuple[str, str]
"""(kind, id), as failures are reported: ("port", UUID); ("host", "") is the host itself."""

Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A network namespace that is ours; those of instances are never made or removed by us."""

    owner: Owner
    name: str

    @property
    def key(self) -> Key:
        """By name."""
        return ("namespace", self.name)


@dataclass(frozen=True, slots=True)
class Bridge:
    """Options of a bridge. Snooping is off: without a querier it would lose IPv6's multicasts."""

    multicast_snooping: bool = False


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN device, which cannot be changed once made (but for `learning`).

    ``remote`` is one peer (point to point) or a multicast group, None if only forwarding entries
    say where frames go. ``device`` is the underlay's interface, needed for a group.
    """

    vni: int
    local: str
    port: int
    learning: bool
    remote: str | None = None
    device: str | None = None
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Vlan:
    """An 802.1Q sub-interface of `parent`."""

    parent: str
    vlan_id: int


@dataclass(frozen=True, slots=True)
class BridgePort:
    """Flags of a bridge port, as `bridge -d link` has them; the defaults are the kernel's."""

    learning: bool = True
    flood: bool = True
    isolated: bool = False
    neigh_suppress: bool = False
    hairpin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link. A veth pair is two of these, each with the other's (namespace, name) as `peer`.

    ``kind`` is bridge, veth, vxlan, vlan or existing. An existing one is made by others (a tap of
    KVM's, a physical interface): it is plugged in where it is found, never made, renamed or
    removed, and no failure while it is absent. What is None is left as it is.

    ``initial``: MAC, state and name are what it is made with; afterwards they are its user's (the
    instance's end of a port). ``group`` and ``alias`` are not set on existing links, nor ``alias``
    on initial ones.
    """

    owner: Owner
    name: str
    kind: str
    namespace: str = ""
    mac: str | None = None
    mtu: int | None = None
    master: str | None = None
    up: bool | None = True
    alias: str = ""
    group: int = GROUP
    initial: bool = False
    peer: tuple[str, str] | None = None
    bridge: Bridge | None = None
    vxlan: Vxlan | None = None
    vlan: Vlan | None = None
    port: BridgePort | None = None

    @property
    def key(self) -> Key:
        """By namespace and name."""
        return ("link", self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of a link, ADDRESS/LENGTH. Others' addresses on the same link stay.

    On links of ours (not initial, not existing) addresses that are not wanted are removed, but for
    link-local ones that the kernel made. ``nodad``: usable at once, without duplicate detection.
    """

    owner: Owner
    link: str
    address: str
    namespace: str = ""
    nodad: bool = True

    @property
    def key(self) -> Key:
        """By namespace, link and address."""
        return ("address", self.namespace, self.link, self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of protocol 77; ``destination`` as CIDR (0.0.0.0/0 or ::/0 is the default route)."""

    owner: Owner
    destination: str
    link: str | None = None
    via: str | None = None
    source: str | None = None
    onlink: bool = False
    table: int = 254
    namespace: str = ""

    @property
    def key(self) -> Key:
        """By namespace, table and destination."""
        return ("route", self.namespace, self.table, self.destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy rule of protocol 77 that leads to a table; what is None matches anything."""

    owner: Owner
    priority: int
    table: int
    family: int = 4
    source: str | None = None
    destination: str | None = None
    iif: str | None = None
    mark: int | None = None
    namespace: str = ""

    @property
    def key(self) -> Key:
        """By all that it says: a changed rule is another one."""
        return (
            "rule",
            self.namespace,
            self.family,
            self.priority,
            self.table,
            self.source or "",
            self.destination or "",
            self.iif or "",
            -1 if self.mark is None else self.mark,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FdbEntry:
    """A forwarding entry of a VXLAN device, or (``destination`` None) of the bridge it is in.

    To the all-zero MAC there may be several destinations: where unknown frames flood to.
    """

    owner: Owner
    link: str
    mac: str
    destination: str | None = None
    namespace: str = ""

    @property
    def key(self) -> Key:
        """By link and MAC, for VXLAN's flood entries by destination as well.

        A MAC that moves to another host is the same entry with a changed destination.
        """
        where = "bridge" if self.destination is None else "vxlan"
        flood = (self.destination or "") if self.mac == FLOOD else ""
        return ("fdb", self.namespace, self.link, where, self.mac, flood)


FLOOD = "00:00:00:00:00:00"
"""MAC of the forwarding entries for frames to MACs that have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A permanent neighbour of protocol 77: on a bridge, what neigh_suppress answers with."""

    owner: Owner
    link: str
    address: str
    mac: str
    namespace: str = ""

    @property
    def key(self) -> Key:
        """By link and address."""
        return ("neighbour", self.namespace, self.link, self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """A value under /proc/sys, ``name`` as path: net/ipv4/ip_forward. Not restored afterwards.

    ``link`` is the link that it belongs to, if any: written after that was made and before it is
    up.
    """

    owner: Owner
    name: str
    value: str
    link: str | None = None
    namespace: str = ""

    @property
    def key(self) -> Key:
        """By namespace and name."""
        return ("sysctl", self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NftPart:
    """A part of an nft table of ours (`mooring_*`), loaded and replaced as a whole.

    Parts of one namespace are loaded in one transaction, in the order of (``order``, name).
    ``text`` is nft's language and good to be loaded again over itself; ``remove`` undoes it.
    Loaded before links are made and up, removed after they are gone.
    """

    owner: Owner
    name: str
    text: str
    remove: str
    order: int = 0
    namespace: str = ""

    @property
    def key(self) -> Key:
        """By namespace and name."""
        return ("nft", self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A daemon that is kept running; ``config`` is a frozen value that its supervisor understands.

    ``kind`` names the supervisor ("dnsmasq"), ``name`` is unique within it.
    """

    owner: Owner
    kind: str
    name: str
    config: Any = field(hash=False)
    namespace: str = ""

    @property
    def key(self) -> Key:
        """By kind and name."""
        return ("process", self.kind, self.name)


Object = (
    Namespace | Link | Address | Route | Rule | FdbEntry | Neighbour | Sysctl | NftPart | Process
)

Failures = dict[Owner, str]
"""Why an owner's objects are not all there."""


@dataclass(slots=True)
class Desired:
    """Objects by key, and whom some could not be compiled for, with the reason."""

    objects: dict[Key, Object] = field(default_factory=dict)
    failures: Failures = field(default_factory=dict)

    def of(self, kind: str) -> dict[Key, Any]:
        """The objects of one kind: the first element of their keys."""
        return {key: item for key, item in self.objects.items() if key[0] == kind}
