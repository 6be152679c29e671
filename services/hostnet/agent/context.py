"""What the compile functions see: the view with indexes, what is known of the host, attachments.

Pure: no I/O. The indexes are kept up as objects come and go, so that a change of one port costs
nothing that grows with the number of ports.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.hostnet.view import Endpoint, Network, Port, Router, View

ROUTER_OWNERS = frozenset({"network:router_interface", "network:router_gateway"})
"""Device owners of ports that end in a router's namespace, which the router's compiling makes."""


class Unfit(Exception):
    """An object that cannot be realised on this host; the text is reported to the controllers."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A port that ends in a named namespace, as `mooring port attach` says it.

    ``addresses``: set the port's addresses and default route as well, where no DHCP client runs.
    """

    port_id: str
    namespace: str
    name: str = "eth0"
    addresses: bool = False


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What this host is: its configuration, and what its kernel was found to offer.

    ``unusable`` has, by name of an interface of `bridge_mappings`, why it cannot be enslaved.
    ``vlan`` is why there is no 802.1Q, "" where there is.
    """

    host: str
    tunnel_address: str | None = None
    tunnel_device: str | None = None
    bridge_mappings: Mapping[str, str] = field(default_factory=dict)
    vxlan_port: int = 4789
    vxlan_mode: str = "unicast"
    vxlan_group: str = ""
    vxlan_ttl: int = 1
    vlan: str = ""
    unusable: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Context:
    """The view as the compile functions read it. Only `Compiler` writes to it.

    A network is carried if a port of it is local: bound here, or about to be. Nothing is made of
    others, whatever else the view holds.
    """

    def __init__(self, facts: HostFacts) -> None:
        self.view = View()
        self.facts = facts
        self.attachments: dict[str, Attachment] = {}
        self._ports: defaultdict[str, dict[str, Port]] = defaultdict(dict)
        self._endpoints: defaultdict[str, dict[str, Endpoint]] = defaultdict(dict)
        self._vteps: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def network(self, network_id: str) -> Network:
        """The network; Unfit if the view does not hold it."""
        try:
            return self.view.networks[network_id]
        except KeyError:
            raise Unfit(f"network {network_id} is not in this host's view") from None

    def is_local(self, port: Port) -> bool:
        """Whether the port is, or is about to be, on this host."""
        return self.facts.host in (port.host, port.next_host)

    def carried(self, network_id: str) -> bool:
        """Whether a port of the network is local, and the network is known."""
        return bool(self._ports.get(network_id)) and network_id in self.view.networks

    def ports(self, network_id: str) -> Iterable[Port]:
        """The network's local ports, in no order."""
        return self._ports[network_id].values() if network_id in self._ports else ()

    def endpoints(self, network_id: str) -> Iterable[Endpoint]:
        """The network's ports elsewhere, in no order."""
        return self._endpoints[network_id].values() if network_id in self._endpoints else ()

    def vteps(self, network_id: str) -> tuple[str, ...]:
        """Tunnel addresses of the network's other hosts, sorted: where unknown frames flood to."""
        found = self._vteps.get(network_id, ())
        return tuple(
            sorted(
                (each for each in found if each != self.facts.tunnel_address),
                key=lambda text: (":" in text, ipaddress.ip_address(text).packed),
            )
        )

    def routers(self, network_id: str) -> Iterable[Router]:
        """The routers that run here and have a port in the network."""
        return [
            router
            for router in self.view.routers.values()
            if network_id in networks_of_router(router)
        ]

    def find(self, kind: str, object_id: str) -> Any:
        """The object of the view, None if there is none."""
        return self.view.objects[kind].get(object_id)

    def put(self, item: Any) -> None:
        """Add or replace an object of the view; the caller has taken out what it replaces."""
        self.view.put(item)
        if isinstance(item, Port):
            if self.is_local(item):
                self._ports[item.network_id][item.id] = item
        elif isinstance(item, Endpoint):
            self._endpoints[item.network_id][item.id] = item
            if item.vtep is not None:
                self._vteps[item.network_id][item.vtep] += 1

    def take(self, kind: str, object_id: str) -> Any:
        """Take an object out of the view (a network's ports stay); None if there was none."""
        item = self.view.objects[kind].pop(object_id, None)
        if isinstance(item, Port):
            _drop(self._ports, item)
        elif isinstance(item, Endpoint):
            _drop(self._endpoints, item)
            if item.vtep is not None:
                counts = self._vteps[item.network_id]
                counts[item.vtep] -= 1
                if not counts[item.vtep]:
                    del counts[item.vtep]
                if not counts:
                    del self._vteps[item.network_id]
        return item


def _drop(index: defaultdict[str, dict[str, Any]], item: Any) -> None:
    items = index[item.network_id]
    items.pop(item.id, None)
    if not items:
        del index[item.network_id]


def networks_of_router(router: Router) -> frozenset[str]:
    """The networks that the router has a port in."""
    gateway = () if router.gateway is None else (router.gateway,)
    return frozenset(port.network_id for port in (*router.interfaces, *gateway))


def networks_of(item: Any) -> frozenset[str]:
    """The networks that an object of the view is of."""
    if isinstance(item, Network):
        return frozenset({item.id})
    if isinstance(item, Port | Endpoint):
        return frozenset({item.network_id})
    return networks_of_router(item) if isinstance(item, Router) else frozenset()
