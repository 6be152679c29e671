"""The difference between what is to be and what is, as operations in their order: pure.

Objects are looked at by key, so a plan for a few changed keys costs the same beside ten ports and
beside a thousand; a plan for everything also removes what is ours and wanted by nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.hostnet.agent import names
from services.hostnet.agent.desired import (
    FLOOD,
    Address,
    FdbEntry,
    Key,
    Link,
    Namespace,
    Neighbour,
    NftPart,
    Object,
    Owner,
    Process,
    Route,
    Rule,
    Sysctl,
    Vxlan,
)
from services.hostnet.agent.kernel import Actual

NFT, NETNS, MAKE, SYSCTL, SET, ADDRESS, TABLE, REMOVE, UNMAKE = range(9)
"""Phases. Filters come first: nothing passes before they are there."""

GROUP_REMOVED = names.GROUP + 1
"""Links are moved into this group and deleted by it: 1,000 in a quarter of a second, where one by
one they take 19 (measured: the kernel waits for a grace period for each)."""

PARTED = ("mooring_underlay", "mooring_router", "mooring_ports")
"""nft tables that are made of parts; others of ours have their own keepers."""

REMOVED_AT_ONCE = 8
"""So many links are deleted by their group rather than one by one."""

_table = re.compile(r"^add table (\S+ mooring_\S+)$", re.MULTILINE)
_chain = re.compile(r"^add chain (\S+ mooring_\S+ \S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Operation:
    """One step: ``program`` is ip, bridge, nft, sysctl, netns or up; ``text`` is for it."""

    phase: int
    program: str
    text: str
    owner: Owner
    namespace: str = ""

    def to_json(self) -> dict[str, str]:
        """As `mooring-agent plan` shows it."""
        return {
            "for": " ".join(self.owner),
            "namespace": self.namespace,
            "program": self.program,
            "text": self.text,
        }


@dataclass(slots=True)
class Plan:
    """Operations in order, and owners for whom some are not possible."""

    operations: list[Operation] = field(default_factory=list)
    failures: dict[Owner, str] = field(default_factory=dict)


class _Planner:
    def __init__(self, wanted: Mapping[Key, Object], actual: Actual) -> None:
        self.wanted = wanted
        self.actual = actual
        self.plan = Plan()
        self.made: set[tuple[str, str]] = set()
        """(namespace, name) of links that this plan makes."""
        self.coming: set[str] = set()
        """Namespaces that this plan makes."""

    def add(self, phase: int, program: str, text: str, owner: Owner, namespace: str = "") -> None:
        self.plan.operations.append(Operation(phase, program, text, owner, namespace))

    def fail(self, owner: Owner, reason: str) -> None:
        self.plan.failures.setdefault(owner, reason)

    def link(self, namespace: str, name: str) -> dict[str, Any] | None:
        return self.actual.links.get(namespace, {}).get(name)

    # ---- what is to be -------------------------------------------------------------------------

    def put(self, item: Object) -> None:
        match item:
            case Namespace():
                if item.name not in self.actual.namespaces:
                    self.coming.add(item.name)
                    self.add(NETNS, "netns", f"add {item.name}", item.owner)
                    self.add(SET, "ip", "link set lo up", item.owner, item.name)
            case Link():
                self.put_link(item)
            case Address():
                self.put_address(item)
            case Route():
                self.put_route(item)
            case FdbEntry():
                self.put_forwarding(item)
            case Neighbour():
                have = self.actual.neighbours.get(item.namespace, {})
                if have.get((item.link, item.address)) != item.mac:
                    self.add(
                        TABLE, "ip",
                        f"neighbour replace {item.address} lladdr {item.mac} dev {item.link}"
                        f" nud permanent protocol {names.PROTOCOL}",
                        item.owner, item.namespace,
                    )  # fmt: skip
            case Sysctl():
                if self.actual.sysctls.get((item.namespace, item.name)) != item.value:
                    text = f"{item.name}={item.value}"
                    self.add(SYSCTL, "sysctl", text, item.owner, item.namespace)
            case NftPart():
                self.add(NFT, "nft", item.text, item.owner, item.namespace)
            case Rule() | Process():
                pass  # rules: nobody makes one yet; processes are their supervisors'

    def put_link(self, item: Link) -> None:
        if item.initial and item.peer is not None and item.peer not in self.made:
            return  # an instance's end: there with the host's end, and then the instance's own
        have = self.link(item.namespace, item.name)
        if item.kind == "existing":
            if have is not None:
                self.set_link(item, have)
            return
        if have is not None and not _same(item, have):
            self.add(MAKE, "ip", f"link del {item.name}", item.owner, item.namespace)
            have = None
        if have is None:
            self.make_link(item)
        else:
            self.set_link(item, have)

    def make_link(self, item: Link) -> None:
        if item.peer is not None:
            namespace, other = item.peer
            if item.namespace:
                # made from the host's end, where the peer's plan is; here it is only set up
                if self.link("", other) is None and (item.namespace, item.name) not in self.made:
                    self.made.add((item.namespace, item.name))
                if item.initial:
                    self.add(SET, "up", item.name, item.owner, item.namespace)
                else:
                    self.set_link(item, {})
                return
            if namespace not in self.actual.namespaces | self.coming:
                self.fail(item.owner, f"there is no namespace {namespace}")
                return
            peer = self.wanted.get(("link", namespace, other))
            inside = ""
            if isinstance(peer, Link):
                inside += f" address {peer.mac}" if peer.mac else ""
                inside += f" mtu {peer.mtu}" if peer.mtu else ""
            self.made |= {("", item.name), (namespace, other)}
            self.add(
                MAKE, "ip",
                f"link add {item.name} group {item.group}{_mtu(item)} type veth"
                f" peer name {other}{inside} netns {namespace}",
                item.owner,
            )  # fmt: skip
        else:
            self.made.add((item.namespace, item.name))
            kind = f"type {item.kind}"
            parent = ""
            if item.vxlan is not None:
                kind += _vxlan(item.vxlan)
            elif item.vlan is not None:
                parent = f" link {item.vlan.parent}"
                kind += f" id {item.vlan.vlan_id}"
            elif item.bridge is not None:
                kind += f" mcast_snooping {int(item.bridge.multicast_snooping)}"
            self.add(
                MAKE, "ip",
                f"link add{parent} name {item.name} group {item.group}{_mtu(item)} {kind}",
                item.owner, item.namespace,
            )  # fmt: skip
        self.set_link(item, {})

    def set_link(self, item: Link, have: Mapping[str, Any]) -> None:
        words: list[str] = []
        if item.mtu is not None and have and have.get("mtu") != item.mtu:
            words.append(f"mtu {item.mtu}")
        if item.mac is not None and have.get("address") != item.mac and item.kind != "existing":
            words.append(f"address {item.mac}")
        if item.alias and have.get("ifalias") != item.alias:
            words.append(f"alias {item.alias}")
        if item.kind != "existing" and have and have.get("group") not in _group(item.group):
            words.append(f"group {item.group}")
        if item.master is not None and have.get("master") != item.master:
            words.append(f"master {item.master}")
        # a new link is down
        if item.up is not None and ("UP" in have.get("flags", ())) != item.up:
            words.append("up" if item.up else "down")
        if words:
            line = f"link set dev {item.name} {' '.join(words)}"
            self.add(SET, "ip", line, item.owner, item.namespace)
        if item.port is not None:
            slave = have.get("linkinfo", {}).get("info_slave_data", {})
            flags = [
                f"{name} {'on' if getattr(item.port, name) else 'off'}"
                for name in ("learning", "flood", "isolated", "neigh_suppress", "hairpin")
                if slave.get(name, name in ("learning", "flood")) is not getattr(item.port, name)
            ]
            if flags:
                line = f"link set dev {item.name} {' '.join(flags)}"
                self.add(ADDRESS, "bridge", line, item.owner, item.namespace)

    def put_address(self, item: Address) -> None:
        if item.namespace in self.actual.addresses or item.namespace in self.coming:
            if (item.link, item.address) in self.actual.addresses.get(item.namespace, ()):
                return
        elif (item.namespace, item.link) not in self.made:
            return  # in an instance it is what we leave when we make its link
        nodad = " nodad" if item.nodad and ":" in item.address else ""
        line = f"address replace {item.address} dev {item.link}{nodad}"
        self.add(ADDRESS, "ip", line, item.owner, item.namespace)

    def put_route(self, item: Route) -> None:
        if item.namespace in self.actual.routes or item.namespace in self.coming:
            have = self.actual.routes.get(item.namespace, {}).get((item.table, item.destination))
            if have is not None and (
                (item.via, item.link) == (have.get("gateway"), item.link and have.get("dev"))
            ):
                return
        elif (item.namespace, item.link) not in self.made:
            return
        words = ["route replace", item.destination]
        for name, value in (("via", item.via), ("dev", item.link), ("src", item.source)):
            if value is not None:
                words.append(f"{name} {value}")
        words.append(f"table {item.table} proto {names.PROTOCOL}")
        if item.onlink:
            words.append("onlink")
        self.add(TABLE, "ip", " ".join(words), item.owner, item.namespace)

    def put_forwarding(self, item: FdbEntry) -> None:
        have = self.actual.forwarding.get(item.namespace, set())
        if (item.link, item.mac, item.destination) in have:
            return
        if item.destination is None:
            line = f"fdb replace {item.mac} dev {item.link} master static"
        elif item.mac == FLOOD:
            line = f"fdb append {item.mac} dev {item.link} dst {item.destination} self permanent"
        else:
            line = f"fdb replace {item.mac} dev {item.link} dst {item.destination} self permanent"
        self.add(TABLE, "bridge", line, item.owner, item.namespace)

    # ---- what is not ---------------------------------------------------------------------------

    def drop(self, old: Object) -> None:
        """Remove what an object came to that nobody wants any more."""
        namespace = old.namespace if not isinstance(old, Namespace) else ""
        match old:
            case Namespace():
                if old.name in self.actual.namespaces:
                    self.add(UNMAKE, "netns", f"del {old.name}", old.owner)
            case Link():
                self.drop_link(old)
            case Address():
                if (old.link, old.address) in self.actual.addresses.get(namespace, ()):
                    line = f"address del {old.address} dev {old.link}"
                    self.add(REMOVE, "ip", line, old.owner, namespace)
            case Route():
                if (old.table, old.destination) in self.actual.routes.get(namespace, ()):
                    line = f"route del {old.destination} table {old.table} proto {names.PROTOCOL}"
                    self.add(REMOVE, "ip", line, old.owner, namespace)
            case FdbEntry():
                if (old.link, old.mac, old.destination) in self.actual.forwarding.get(
                    namespace, ()
                ):
                    self.drop_forwarding(old.owner, namespace, old.link, old.mac, old.destination)
            case Neighbour():
                if (old.link, old.address) in self.actual.neighbours.get(namespace, ()):
                    line = f"neighbour del {old.address} dev {old.link}"
                    self.add(REMOVE, "ip", line, old.owner, namespace)
            case NftPart():
                self.add(UNMAKE, "nft", old.remove, old.owner, namespace)
            case _:
                pass

    def drop_link(self, old: Link) -> None:
        have = self.link(old.namespace, old.name)
        if have is None or old.namespace or old.initial:
            return  # the peer in a namespace goes with the host's end
        if old.kind == "existing":
            if old.master is not None and have.get("master") == old.master:
                self.add(REMOVE, "ip", f"link set dev {old.name} nomaster", old.owner)
            return
        self.add(REMOVE, "ip", f"link del {old.name}", old.owner)

    def drop_forwarding(
        self, owner: Owner, namespace: str, link: str, mac: str, destination: str | None
    ) -> None:
        place = "master" if destination is None else f"dst {destination} self"
        self.add(REMOVE, "bridge", f"fdb del {mac} dev {link} {place}", owner, namespace)


def changes(
    keys: Iterable[Key],
    before: Mapping[Key, Object],
    wanted: Mapping[Key, Object],
    actual: Actual,
) -> Plan:
    """The operations for objects of these keys that changed from ``before`` to ``wanted``."""
    planner = _Planner(wanted, actual)
    ordered = sorted(keys, key=_order)
    for key in ordered:
        item = wanted.get(key)
        if item is not None:
            planner.put(item)
    for key in ordered:
        if key not in wanted and key in before:
            planner.drop(before[key])
    return _finished(planner)


def everything(wanted: Mapping[Key, Object], actual: Actual, *, reload: bool = True) -> Plan:
    """The operations that lead from what is there to what is wanted, and remove what else is ours.

    With ``reload`` filters are loaded anew as a whole, in one transaction, which loses no packet;
    without it only where a chain of theirs is missing, or one too many.
    """
    planner = _Planner(wanted, actual)
    for key in sorted(wanted, key=_order):
        planner.put(wanted[key])
    _replace_tables(planner, actual, reload=reload)
    _sweep(planner, wanted, actual)
    return _finished(planner)


_ORDER = {
    kind: place
    for place, kind in enumerate(
        ("nft", "namespace", "link", "sysctl", "address", "route", "rule", "fdb", "neighbour",
         "process")
    )
}  # fmt: skip


def _order(key: Key) -> tuple[int, int, str]:
    # the host's end of a veth before the other one
    inside = 1 if key[0] == "link" and key[1] else 0
    return (_ORDER[str(key[0])], inside, str(key[1:]))


def _finished(planner: _Planner) -> Plan:
    plan = planner.plan
    plan.operations = [op for op in plan.operations if op.owner not in plan.failures or
                       op.phase >= REMOVE]  # fmt: skip
    removed = [op for op in plan.operations if op.phase == REMOVE and _deletes(op)]
    if len(removed) >= REMOVED_AT_ONCE:
        gone = set(removed)
        plan.operations = [op for op in plan.operations if op not in gone]
        for op in removed:
            name = op.text.removeprefix("link del ")
            line = f"link set dev {name} group {GROUP_REMOVED}"
            plan.operations.append(Operation(REMOVE, "ip", line, op.owner))
        plan.operations.append(
            Operation(UNMAKE, "ip", f"link del group {GROUP_REMOVED}", ("host", ""))
        )
    plan.operations.sort(key=lambda op: (op.phase, op.program))
    return plan


def _deletes(op: Operation) -> bool:
    return op.program == "ip" and op.namespace == "" and op.text.startswith("link del ")


def _replace_tables(planner: _Planner, actual: Actual, *, reload: bool) -> None:
    """Make one script a namespace of all its parts, which begins with its tables deleted."""
    parts = [op for op in planner.plan.operations if op.phase == NFT]
    others = [op for op in planner.plan.operations if op.phase != NFT]
    texts: dict[str, list[str]] = {}
    for op in parts:
        texts.setdefault(op.namespace, []).append(op.text)
    scripts = []
    for namespace in sorted({*texts, *actual.tables}):
        text = "".join(texts.get(namespace, ()))
        there = {" ".join(each.split()[:2]) for each in actual.tables.get(namespace, ())}
        tables = sorted({*_table.findall(text), *(t for t in there if _swept(t))})
        known = {each for each in actual.tables.get(namespace, ()) if _swept(each)}
        if tables and (reload or set(_chain.findall(text)) != known):
            head = "".join(f"add table {each}\ndelete table {each}\n" for each in tables)
            scripts.append(Operation(NFT, "nft", head + text, ("host", ""), namespace))
    planner.plan.operations = scripts + others


def _swept(table: str) -> bool:
    """Whether a table (or chain) is made of parts: it goes when no part of it is wanted."""
    return table.split()[1] in PARTED


def _sweep(planner: _Planner, wanted: Mapping[Key, Object], actual: Actual) -> None:
    host = ("host", "")
    for name in sorted(actual.namespaces):
        if names.is_our_namespace(name) and ("namespace", name) not in wanted:
            planner.add(UNMAKE, "netns", f"del {name}", host)
    for name, have in sorted(actual.links.get("", {}).items()):
        group = _number(have.get("group"))
        ours = names.is_ours(name, group, have.get("ifalias", "")) or group == GROUP_REMOVED
        if ours and ("link", "", name) not in wanted:
            planner.add(REMOVE, "ip", f"link del {name}", host)
    links = {key for key in wanted if key[0] == "link"}
    for namespace, found in actual.forwarding.items():
        for link, mac, destination in sorted(found, key=str):
            entry = FdbEntry(owner=host, link=link, mac=mac, destination=destination,
                             namespace=namespace)  # fmt: skip
            item = wanted.get(entry.key)
            known = ("link", namespace, link) in links
            # another destination of a single MAC is replaced, not removed
            if known and item is None:
                planner.drop_forwarding(host, namespace, link, mac, destination)
    for namespace, neighbours in actual.neighbours.items():
        for link, address in sorted(neighbours):
            if ("link", namespace, link) in links and (
                ("neighbour", namespace, link, address) not in wanted
            ):
                line = f"neighbour del {address} dev {link}"
                planner.add(REMOVE, "ip", line, host, namespace)
    for namespace, addresses in actual.addresses.items():
        if not namespace:
            continue
        for link, address in sorted(addresses):
            if ("link", namespace, link) in links and (
                ("address", namespace, link, address) not in wanted
            ):
                planner.add(REMOVE, "ip", f"address del {address} dev {link}", host, namespace)
    for namespace, routes in actual.routes.items():
        for table, destination in sorted(routes):
            if ("route", namespace, table, destination) not in wanted:
                line = f"route del {destination} table {table} proto {names.PROTOCOL}"
                planner.add(REMOVE, "ip", line, host, namespace)


# ---- comparing ----------------------------------------------------------------------------------


def _same(item: Link, have: Mapping[str, Any]) -> bool:
    """Whether a link is of the kind that is wanted, in what cannot be changed."""
    info = have.get("linkinfo", {})
    kind = info.get("info_kind")
    if kind is not None and kind != item.kind:
        return False
    data = info.get("info_data", {})
    if item.vxlan is not None and data:
        want = item.vxlan
        return bool(
            data.get("id") == want.vni
            and data.get("local", data.get("local6")) == want.local
            and data.get("port") == want.port
            and bool(data.get("learning")) == want.learning
            and data.get("group", data.get("remote", data.get("group6", data.get("remote6"))))
            == want.remote
        )
    if item.vlan is not None and data:
        return bool(data.get("id") == item.vlan.vlan_id and have.get("link") == item.vlan.parent)
    return True


def _vxlan(want: Vxlan) -> str:
    words = [f" id {want.vni} local {want.local} dstport {want.port}"]
    if want.remote is not None:
        words.append(f"{'group' if want.device else 'remote'} {want.remote}")
    if want.device is not None:
        words.append(f"dev {want.device}")
    if want.ttl:
        words.append(f"ttl {want.ttl}")
    words.append("learning" if want.learning else "nolearning")
    return " ".join(words)


def _mtu(item: Link) -> str:
    return f" mtu {item.mtu}" if item.mtu else ""


def _group(number: int) -> tuple[Any, ...]:
    return (number, str(number))


def _number(group: Any) -> int:
    try:
        return int(group)
    except (TypeError, ValueError):
        return 0
