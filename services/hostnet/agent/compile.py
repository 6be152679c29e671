"""Turns a host's view into the objects that are to be there: pure, in parts, each as needed.

A part is compiled by one function out of the context and an id of the view: the bridge of a
network, the wiring of a port, the entry of an endpoint. `PARTS` says of each kind of part whose ids
it is compiled for and what else it reads; `Compiler.update` compiles those anew that a change
concerns, and no others, so that adding a port costs the same beside ten and beside a thousand.
Compiling everything and compiling change by change lead to the same (a property test checks it).

A function raises `Unfit` for what cannot be realised: the part is left out and its owner reported.
To add a room (DHCP, firewall, routers), write its function in a module of its own and add a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.hostnet.agent import linuxbridge
from services.hostnet.agent.context import Attachment, Context, HostFacts, Unfit, networks_of
from services.hostnet.agent.desired import Desired, Key, Object, Owner
from services.hostnet.view import KINDS, Port, View, kind_of

Compile = Callable[[Context, str], Iterable[Object]]
PartId = tuple[str, str]
"""(kind of part, id of the view object it is for)."""


@dataclass(frozen=True, slots=True)
class PartKind:
    """How parts of one kind are compiled, and what they are compiled from.

    ``of`` is the view kind whose ids it is compiled for: compiled anew when that object changes.
    "host" is one part with id "". ``reads`` has what else of the same network it reads:

    - "network": the network itself, and whether it is carried (a first or last local port);
    - "port", "endpoint", "router": any local port, endpoint or router of the network;
    - "security_group", "group_members": for parts of ports, those of the port's groups.

    A part of "host" reads whatever it names, of all networks.
    """

    compile: Compile
    of: str
    reads: frozenset[str] = frozenset()


PARTS: Mapping[str, PartKind] = {
    # order matters only in that earlier ones are compiled first
    "network": PartKind(linuxbridge.network, "network", frozenset({"network"})),
    "flood": PartKind(linuxbridge.flood, "network", frozenset({"network", "endpoint"})),
    "port": PartKind(linuxbridge.port, "port", frozenset({"network"})),
    "endpoint": PartKind(linuxbridge.endpoint, "endpoint", frozenset({"network"})),
}


class Compiler:
    """The view of one host and what it comes to, kept up change by change."""

    def __init__(self, facts: HostFacts, parts: Mapping[str, PartKind] = PARTS) -> None:
        self.context = Context(facts)
        self.desired = Desired()
        self._kinds = parts
        self._keys: dict[PartId, tuple[Key, ...]] = {}
        self._holder: dict[Key, PartId] = {}
        self._failed: dict[PartId, tuple[Owner, str]] = {}
        self._blocked: set[PartId] = set()

    def replace(
        self, view: View, attachments: Mapping[str, Attachment], facts: HostFacts
    ) -> set[Key]:
        """Begin anew with a whole view; returns the keys of objects that are other than before."""
        before = self.desired.objects
        fresh = Compiler(facts, self._kinds)
        fresh.context.attachments = dict(attachments)
        for kind in KINDS:
            for item in view.objects[kind].values():
                fresh.context.put(item)
        fresh._compile(fresh._all())
        for name in ("context", "desired", "_keys", "_holder", "_failed", "_blocked"):
            setattr(self, name, getattr(fresh, name))
        after = self.desired.objects
        return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    def update(self, changes: Iterable[tuple[str, str, Any]]) -> set[Key]:
        """Take (kind, id, object or None for gone) in their order; returns the changed keys.

        A network that goes takes its ports and endpoints with it, as in `View.delete`.
        """
        dirty: dict[PartId, None] = {}
        for kind, object_id, item in changes:
            if item is None and kind == "network":
                gone: list[Any] = [
                    *self.context.ports(object_id),
                    *self.context.endpoints(object_id),
                ]
                gone += [
                    port
                    for port in self.context.view.ports.values()
                    if port.network_id == object_id and not self.context.is_local(port)
                ]
                for each in gone:
                    self._change(kind_of(each), each.id, None, dirty)
            self._change(kind, object_id, item, dirty)
        return self._compile(dirty)

    def attach(self, attachments: Mapping[str, Attachment]) -> set[Key]:
        """Take the attachments as they are now; returns the changed keys."""
        before = self.context.attachments
        self.context.attachments = dict(attachments)
        changed = {
            each
            for each in before.keys() | attachments.keys()
            if before.get(each) != attachments.get(each)
        }
        return self._compile(
            {
                (name, each): None
                for name, kind in self._kinds.items()
                if kind.of == "port"
                for each in sorted(changed)
            }
        )

    def owner_parts(self, owners: Iterable[Owner]) -> set[Key]:
        """The keys of all objects of these owners."""
        wanted = set(owners)
        return {key for key, item in self.desired.objects.items() if item.owner in wanted}

    def _all(self) -> dict[PartId, None]:
        view = self.context.view
        return {
            (name, each): None
            for name, kind in self._kinds.items()
            for each in ([""] if kind.of == "host" else view.objects[kind.of])
        }

    def _change(self, kind: str, object_id: str, item: Any, dirty: dict[PartId, None]) -> None:
        context = self.context
        # a port is either local or an endpoint: one that comes as the other leaves the other
        other = {"port": "endpoint", "endpoint": "port"}.get(kind)
        if item is not None and other is not None and context.find(other, object_id) is not None:
            self._change(other, object_id, None, dirty)
        before = context.find(kind, object_id)
        if before == item:
            return
        networks = networks_of(before) | networks_of(item)
        carried = {each: context.carried(each) for each in networks}
        groups = _groups(before) | _groups(item) if kind == "port" else frozenset()
        routers = {each: list(context.routers(each)) for each in networks}
        context.take(kind, object_id)
        if item is not None:
            context.put(item)
        for name, part in self._kinds.items():
            if part.of == kind:
                dirty[(name, object_id)] = None
            elif part.of == "host" and kind in part.reads:
                dirty[(name, "")] = None
        for each in networks:
            self._dirty_of(kind, each, routers[each], dirty)
            if carried[each] != context.carried(each):
                self._dirty_of("network", each, routers[each], dirty)
                for name, part in self._kinds.items():
                    if part.of == "network":
                        dirty[(name, each)] = None
        if kind in ("security_group", "group_members"):
            self._dirty_users(kind, object_id, dirty)
        for name, part in self._kinds.items():
            if part.of in ("security_group", "group_members") and kind in part.reads:
                dirty.update({(name, each): None for each in groups})

    def _dirty_of(
        self, kind: str, network_id: str, routers: list[Any], dirty: dict[PartId, None]
    ) -> None:
        """Parts of the network that read an object of this kind."""
        context = self.context
        for name, part in self._kinds.items():
            if kind not in part.reads:
                continue
            if part.of == "network":
                dirty[(name, network_id)] = None
            elif part.of == "port":
                dirty.update({(name, each.id): None for each in context.ports(network_id)})
            elif part.of == "endpoint":
                dirty.update({(name, each.id): None for each in context.endpoints(network_id)})
            elif part.of == "router":
                found = [*routers, *context.routers(network_id)]
                dirty.update({(name, each.id): None for each in found})
            elif part.of == "host":
                dirty[(name, "")] = None

    def _dirty_users(self, kind: str, group_id: str, dirty: dict[PartId, None]) -> None:
        """Parts of ports that read a security group, and of groups that read their members."""
        for name, part in self._kinds.items():
            if kind not in part.reads:
                continue
            if part.of == "port":
                for port in self.context.view.ports.values():
                    if kind == "group_members" or group_id in port.security_groups:
                        dirty[(name, port.id)] = None
            elif part.of in ("security_group", "group_members"):
                dirty[(name, group_id)] = None

    def _compile(self, dirty: dict[PartId, None]) -> set[Key]:
        """Compile these parts; what two of them claim is the first one's."""
        changed: dict[Key, Object | None] = {}
        # in a fixed order, for what two parts claim; whoever was refused a key may have it now
        order = {name: number for number, name in enumerate(self._kinds)}
        todo = sorted(
            {**dirty, **dict.fromkeys(self._blocked)}, key=lambda part: (order[part[0]], part[1])
        )
        objects = self.desired.objects
        for part in todo:
            for key in self._keys.pop(part, ()):
                changed.setdefault(key, objects.pop(key))
                del self._holder[key]
            self._failed.pop(part, None)
            self._blocked.discard(part)
        for part in todo:
            self._one(part, changed)
        self.desired.failures = dict(self._failed.values())
        return {key for key, before in changed.items() if objects.get(key) != before}

    def _check_free(self, key: Key, part: PartId) -> None:
        if key in self._holder:
            self._blocked.add(part)
            holder = self.desired.objects[key].owner
            raise Unfit(f"{' '.join(map(str, key))} is {holder[0]} {holder[1]}'s already")

    def _one(self, part: PartId, changed: dict[Key, Object | None]) -> None:
        name, object_id = part
        kind = self._kinds[name]
        owner = (kind.of, object_id)
        if kind.of != "host" and self.context.find(kind.of, object_id) is None:
            return
        try:
            made = {item.key: item for item in kind.compile(self.context, object_id)}
            for key in made:
                self._check_free(key, part)
        except Unfit as reason:
            self._failed[part] = (owner, str(reason))
            return
        for key, item in made.items():
            changed.setdefault(key, None)
            self.desired.objects[key] = item
            self._holder[key] = part
        self._keys[part] = tuple(made)


def _groups(port: Port | None) -> frozenset[str]:
    return frozenset() if port is None else frozenset(port.security_groups)


def compile_view(
    view: View,
    facts: HostFacts,
    attachments: Mapping[str, Attachment] | None = None,
    parts: Mapping[str, PartKind] = PARTS,
) -> Desired:
    """Everything that this view comes to."""
    compiler = Compiler(facts, parts)
    compiler.replace(view, attachments or {}, facts)
    return compiler.desired
