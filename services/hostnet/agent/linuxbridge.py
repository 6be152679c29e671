"""The linuxbridge driver, compiled: a bridge a network, uplinks into it, and the ports.

Pure functions of the context, registered in compile.PARTS. VXLAN without multicast: the device
learns nothing; forwarding entries say at which host a MAC is, and the all-zero entries flood what
is unknown to the network's hosts alone. Known ARP and ND are answered by the bridge
(neigh_suppress, which floods unknown ones, where the device's own `proxy` would drop them): it
needs the neighbour on the bridge, and the MAC both in the bridge's table and in the device's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from services.hostnet.agent import names
from services.hostnet.agent.context import ROUTER_OWNERS, Context, Unfit
from services.hostnet.agent.desired import (
    FLOOD,
    Address,
    Bridge,
    BridgePort,
    FdbEntry,
    Link,
    Neighbour,
    NftPart,
    Object,
    Owner,
    Route,
    Sysctl,
    Vlan,
    Vxlan,
)
from services.hostnet.view import Network, Port

UNDERLAY_TABLE = "mooring_underlay"


def network(context: Context, network_id: str) -> Iterator[Object]:
    """The bridge and its uplink, of a network that is carried."""
    if not context.carried(network_id):
        return
    net = context.network(network_id)
    owner = ("network", net.id)
    bridge = names.bridge(net.id)
    yield Link(
        owner=owner,
        name=bridge,
        kind="bridge",
        mtu=net.mtu,
        up=net.admin_state_up,
        alias=names.alias("network", net.id),
        bridge=Bridge(),
    )
    yield from quiet(owner, bridge)
    yield from _uplink(context, net, owner, bridge)


def quiet(owner: Owner, link: str) -> Iterator[Sysctl]:
    """Keep the host's own IPv6 off a link of its tenants: no address, no router solicitation."""
    yield Sysctl(owner=owner, name=f"net/ipv6/conf/{link}/disable_ipv6", value="1", link=link)


def _uplink(context: Context, net: Network, owner: Owner, bridge: str) -> Iterator[Object]:
    if net.network_type == "local":
        return
    if net.network_type == "vxlan":
        yield from _vxlan(context, net, owner, bridge)
        return
    physical = _physical(context, net)
    if net.network_type == "flat":
        if physical in context.facts.unusable:
            raise Unfit(
                f"physical network {net.physical_network}: {context.facts.unusable[physical]}"
            )
        yield Link(owner=owner, name=physical, kind="existing", master=bridge)
        return
    if context.facts.vlan:
        raise Unfit(f"VLAN {net.segmentation_id}: {context.facts.vlan}")
    name = names.vlan(physical, net.segmentation_id or 0)
    if len(name) > names.NAME_BYTES:
        raise Unfit(f"VLAN {net.segmentation_id}: {name} is too long for the name of a link")
    yield Link(owner=owner, name=physical, kind="existing")
    yield Link(
        owner=owner,
        name=name,
        kind="vlan",
        mtu=net.mtu,
        master=bridge,
        alias=names.alias("network", net.id),
        vlan=Vlan(physical, net.segmentation_id or 0),
    )
    yield from quiet(owner, name)


def _physical(context: Context, net: Network) -> str:
    try:
        return context.facts.bridge_mappings[net.physical_network or ""]
    except KeyError:
        raise Unfit(
            f"physical network {net.physical_network} is not in this host's bridge_mappings"
        ) from None


def _vxlan(context: Context, net: Network, owner: Owner, bridge: str) -> Iterator[Object]:
    facts = context.facts
    if facts.tunnel_address is None:
        raise Unfit("VXLAN: this host has no tunnel_address")
    vni = net.segmentation_id or 0
    name = names.vxlan(vni)
    remote, device, ttl = None, None, 0
    if facts.vxlan_mode == "p2p":
        vteps = context.vteps(net.id)
        if len(vteps) > 1:
            raise Unfit(
                f"VXLAN point to point: the network has {len(vteps) + 1} hosts, not two at most"
            )
        remote = vteps[0] if vteps else None
    elif facts.vxlan_mode == "multicast":
        remote, device, ttl = facts.vxlan_group, facts.tunnel_device, facts.vxlan_ttl
    programmed = facts.vxlan_mode == "unicast"
    yield Link(
        owner=owner,
        name=name,
        kind="vxlan",
        mtu=net.mtu,
        master=bridge,
        alias=names.alias("network", net.id),
        vxlan=Vxlan(
            vni, facts.tunnel_address, facts.vxlan_port, not programmed, remote, device, ttl
        ),
        port=BridgePort(learning=not programmed, neigh_suppress=programmed),
    )
    yield from quiet(owner, name)


def flood(context: Context, network_id: str) -> Iterator[Object]:
    """Where unknown frames of a VXLAN network go, and from whom they are taken."""
    if not _tunnelled(context, network_id):
        return
    net = context.network(network_id)
    vni, vteps = net.segmentation_id or 0, context.vteps(network_id)
    owner = ("network", net.id)
    if context.facts.vxlan_mode == "unicast":
        for vtep in vteps:
            yield FdbEntry(owner=owner, link=names.vxlan(vni), mac=FLOOD, destination=vtep)
    if context.facts.vxlan_mode != "multicast":
        yield _sources(context, owner, vni, vteps)


def _sources(context: Context, owner: Owner, vni: int, vteps: tuple[str, ...]) -> NftPart:
    """Drop VXLAN frames of this VNI that come from no host of its network.

    VXLAN authenticates nobody: whoever reaches the port could put frames into any network. The VNI
    is 24 bits, 96 bits into the UDP header (RFC 7348 section 5).
    """
    chain = f"inet {UNDERLAY_TABLE} vni_{vni}"
    frame = f"udp dport {context.facts.vxlan_port} @th,96,24 {vni}"
    rules = []
    for family, version in (("ip", 4), ("ip6", 6)):
        allowed = [each for each in vteps if ipaddress.ip_address(each).version == version]
        if allowed:
            rules.append(f"{frame} {family} saddr {{ {', '.join(allowed)} }} accept")
    lines = [
        f"add table inet {UNDERLAY_TABLE}",
        f"add chain {chain} {{ type filter hook input priority -5; policy accept; }}",
        f"flush chain {chain}",
        *(f"add rule {chain} {rule}" for rule in (*rules, f"{frame} counter drop")),
    ]
    return NftPart(
        owner=owner,
        name=f"vni-{vni}",
        text="\n".join(lines) + "\n",
        remove=f"delete chain {chain}\n",
    )


def _tunnelled(context: Context, network_id: str) -> bool:
    return (
        context.carried(network_id)
        and context.network(network_id).network_type == "vxlan"
        and context.facts.tunnel_address is not None
    )


def endpoint(context: Context, endpoint_id: str) -> Iterator[Object]:
    """Where a port on another host is found, and what its neighbours are told of it."""
    item = context.view.endpoints[endpoint_id]
    if item.vtep is None or context.facts.vxlan_mode != "unicast":
        return
    if not _tunnelled(context, item.network_id) or item.vtep == context.facts.tunnel_address:
        return
    owner = ("endpoint", item.id)
    net = context.network(item.network_id)
    device = names.vxlan(net.segmentation_id or 0)
    yield FdbEntry(owner=owner, link=device, mac=item.mac, destination=item.vtep)
    yield FdbEntry(owner=owner, link=device, mac=item.mac)
    for fixed in item.fixed_ips:
        yield Neighbour(owner=owner, link=names.bridge(net.id), address=fixed.ip, mac=item.mac)


def port(context: Context, port_id: str) -> Iterator[Object]:
    """The port's end in its bridge: a veth into the namespace it is attached to, or a found tap."""
    item = context.view.ports[port_id]
    if not context.is_local(item) or item.device_owner in ROUTER_OWNERS:
        return
    net = context.network(item.network_id)
    attachment = context.attachments.get(port_id)
    owner = ("port", item.id)
    tap = names.tap(item.id)
    if attachment is None:
        yield Link(
            owner=owner,
            name=tap,
            kind="existing",
            mtu=net.mtu,
            master=names.bridge(net.id),
            up=is_up(net, item),
        )
        return
    inside = (attachment.namespace, attachment.name)
    yield from plug(context, item, owner, inside)
    yield Link(
        owner=owner,
        namespace=attachment.namespace,
        name=attachment.name,
        kind="veth",
        mac=item.mac,
        mtu=net.mtu,
        peer=("", tap),
        initial=True,
    )
    if attachment.addresses:
        yield from _static(net, item, owner, inside)


def plug(context: Context, item: Port, owner: Owner, inside: tuple[str, str]) -> Iterator[Object]:
    """The host's end of a veth whose other end is ``inside``, (namespace, name)."""
    net = context.network(item.network_id)
    tap = names.tap(item.id)
    yield Link(
        owner=owner,
        name=tap,
        kind="veth",
        mtu=net.mtu,
        master=names.bridge(net.id),
        up=is_up(net, item),
        alias=names.alias("port", item.id),
        peer=inside,
        port=BridgePort(),
    )
    yield from quiet(owner, tap)


def is_up(net: Network, item: Port) -> bool:
    """Whether a port is to pass frames: as the operator said of it and of its network."""
    return net.admin_state_up and item.admin_state_up


def _static(
    net: Network, item: Port, owner: Owner, inside: tuple[str, str]
) -> Iterator[Address | Route]:
    subnets = {subnet.id: subnet for subnet in net.subnets}
    routed: set[int] = set()
    for fixed in item.fixed_ips:
        subnet = subnets.get(fixed.subnet_id)
        if subnet is None:
            raise Unfit(f"address {fixed.ip}: its subnet is not in the view")
        length = ipaddress.ip_network(subnet.cidr).prefixlen
        yield Address(
            owner=owner, namespace=inside[0], link=inside[1], address=f"{fixed.ip}/{length}"
        )
        if subnet.gateway_ip and subnet.ip_version not in routed:
            routed.add(subnet.ip_version)
            yield Route(
                owner=owner,
                namespace=inside[0],
                link=inside[1],
                destination="0.0.0.0/0" if subnet.ip_version == 4 else "::/0",
                via=subnet.gateway_ip,
            )
