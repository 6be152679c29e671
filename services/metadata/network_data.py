"""network_data.json: the links, networks and services of an instance.

The shapes are those of OpenStack's network_data schema (``doc/api_schemas/network_data.json`` of
Nova) as cloud-init's ``convert_net_json`` reads them. Nova writes the first IPv4 and the first
IPv6 subnet of each interface; here every subnet and every address of it is written:

* one ``ipv4_dhcp`` network for an interface with DHCP (a client gets one lease);
* addresses that a lease does not bring (a second one in a subnet, one in a further subnet) as
  static networks without routes;
* the default route once for each interface and family.

Bonds and VLANs, which Nova never writes, are links of types ``bond`` and ``vlan``.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from services.metadata.model import Address, Instance, Interface, Subnet

NOVA_LINK_TYPES = frozenset(
    {"bridge", "dvs", "hw_veb", "hyperv", "ovs", "tap", "vhostuser", "vif", "bond", "vlan"}
)
"""Types of links that Nova names; any other it calls ``phy``. Bonds and VLANs are ours."""

Document = dict[str, Any]


def network_data(instance: Instance, *, nova_compatible: bool = False) -> Document:
    """The document; ``{}`` for an instance without interfaces, as Nova has it.

    With ``nova_compatible`` the choice of subnets, and the MTU of links, follow Nova:
    null where DHCP tells it.
    """
    if not instance.interfaces:
        return {}
    names = _link_names(instance.interfaces)
    links: list[Document] = []
    networks: list[Document] = []
    services: list[Document] = []
    for interface in instance.interfaces:
        if nova_compatible and not interface.subnets:
            continue
        links.append(_link(interface, names, nova_compatible))
        written = _nova_networks(interface) if nova_compatible else _networks(interface)
        for network in written:
            entry: Document = {
                "id": f"network{len(networks)}",
                "type": network.pop("type"),
                "link": names[interface.id],
            }
            dns = network.pop("services", None)
            entry |= network
            entry["network_id"] = interface.network_id
            if dns is not None:
                entry["services"] = dns
            networks.append(entry)
        subnets = _nova_subnets(interface) if nova_compatible else interface.subnets
        for service in _services(*subnets):
            if service not in services:
                services.append(service)
    return {"links": links, "networks": networks, "services": services}


def _link_names(interfaces: Iterable[Interface]) -> Mapping[str, str]:
    """Link ids by interface id: the device's name on the host, made unique where it is not."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for interface in interfaces:
        name = interface.name
        if name in taken:
            # Longer than any device's name (15 characters): no other interface is called so.
            name = f"{interface.name}-{interface.id}"
        taken.add(name)
        names[interface.id] = name
    return names


def _link(interface: Interface, names: Mapping[str, str], nova_compatible: bool) -> Document:
    kind = interface.type
    mtu = interface.mtu
    if nova_compatible:
        kind = kind if kind in NOVA_LINK_TYPES else "phy"
        mtu = None if any(subnet.enable_dhcp for subnet in interface.subnets) else mtu
    link: Document = {"id": names[interface.id], "vif_id": interface.id, "type": kind, "mtu": mtu}
    if interface.vlan is not None:
        link["vlan_mac_address"] = interface.mac
        link["vlan_link"] = names[interface.vlan.link]
        link["vlan_id"] = interface.vlan.id
        return link
    link["ethernet_mac_address"] = interface.mac
    if interface.bond is not None:
        link["bond_mode"] = interface.bond.mode
        link["bond_links"] = [names[carrier] for carrier in interface.bond.links]
        # Not in the schema, read by cloud-init, written by Ironic under these names.
        if interface.bond.xmit_hash_policy is not None:
            link["bond_xmit_hash_policy"] = interface.bond.xmit_hash_policy
        if interface.bond.miimon is not None:
            link["bond_miimon"] = interface.bond.miimon
    return link


def _networks(interface: Interface) -> Iterator[Document]:
    leased = _leased(interface.subnets)
    routed: set[int] = set()
    asked6 = False
    for subnet in interface.subnets:
        version = subnet.cidr.version
        if subnet.ipv6_address_mode is not None:
            addresses = [fixed.ip_address for fixed in subnet.addresses]
            yield _addressed(
                f"ipv6_{subnet.ipv6_address_mode}", subnet, addresses[0] if addresses else None
            )
            yield from (_further(subnet, address) for address in addresses[1:])
            continue
        addresses = [fixed.ip_address for fixed in subnet.addresses]
        if subnet.enable_dhcp and version == 6:
            if not asked6:
                asked6 = True
                yield {"type": "ipv6_dhcp"}
            # A DHCPv6 server hands out all addresses of the client that it knows.
            continue
        if subnet is leased:
            routed.add(4)
            yield {"type": "ipv4_dhcp"}
            addresses = addresses[1:]
        elif addresses and not subnet.enable_dhcp:
            yield _addressed(f"ipv{version}", subnet, addresses[0], default=version not in routed)
            if subnet.gateway_ip is not None:
                routed.add(version)
            addresses = addresses[1:]
        yield from (_further(subnet, address) for address in addresses)


def _leased(subnets: Iterable[Subnet]) -> Subnet | None:
    """The IPv4 subnet that the interface's lease is from: the first with DHCP and an address."""
    served = [s for s in subnets if s.enable_dhcp and s.cidr.version == 4]
    return next((s for s in served if s.addresses), served[0] if served else None)


def _nova_subnets(interface: Interface) -> list[Subnet]:
    return [
        subnet
        for version in (4, 6)
        for subnet in [s for s in interface.subnets if s.cidr.version == version][:1]
    ]


def _nova_networks(interface: Interface) -> Iterator[Document]:
    for subnet in _nova_subnets(interface):
        if not subnet.addresses:
            continue
        address = subnet.addresses[0].ip_address
        if subnet.ipv6_address_mode is not None:
            yield _addressed(f"ipv6_{subnet.ipv6_address_mode}", subnet, address)
        elif subnet.enable_dhcp:
            yield {"type": f"ipv{subnet.cidr.version}_dhcp"}
        else:
            yield _addressed(f"ipv{subnet.cidr.version}", subnet, address)


def _addressed(
    kind: str, subnet: Subnet, address: Address | None, *, default: bool = True
) -> Document:
    """A network with its address (None where the instance makes its own), routes and services."""
    network: Document = {"type": kind}
    if address is not None:
        network["ip_address"] = str(address)
        network["netmask"] = str(subnet.cidr.netmask)
    network["routes"] = list(_routes(subnet, default))
    network["services"] = list(_services(subnet))
    return network


def _further(subnet: Subnet, address: Address) -> Document:
    """A further address on a link that has its routes from elsewhere."""
    return {
        "type": f"ipv{subnet.cidr.version}",
        "ip_address": str(address),
        "netmask": str(subnet.cidr.netmask),
        "routes": [],
        "services": [],
    }


def _routes(subnet: Subnet, default: bool) -> Iterator[Document]:
    if subnet.gateway_ip is not None and default:
        everything = "0.0.0.0" if subnet.cidr.version == 4 else "::"  # noqa: S104 - a route
        yield _route(everything, everything, str(subnet.gateway_ip))
    for route in subnet.host_routes:
        destination: IPv4Network | IPv6Network = route.destination
        yield _route(str(destination.network_address), str(destination.netmask), str(route.nexthop))


def _route(network: str, netmask: str, gateway: str) -> Document:
    return {"network": network, "netmask": netmask, "gateway": gateway}


def _services(*subnets: Subnet) -> Iterator[Document]:
    for subnet in subnets:
        for address in subnet.dns_nameservers:
            yield {"type": "dns", "address": str(address)}
