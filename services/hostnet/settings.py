"""Section [network] of mooring.conf, read once into values that are checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.core.config_network import Range

NETWORK_TYPES = ("local", "flat", "vlan", "vxlan")


QUOTAS: Mapping[str, int] = {
    "network": 100,
    "subnet": 100,
    "port": 500,
    "router": 10,
    "floatingip": 50,
    "security_group": 10,
    "security_group_rule": 100,
}
"""Objects that a project may have unless mooring.conf or an admin says otherwise; -1 is no limit.
Neutron's numbers."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the network API is set.

    ``vlan_ranges`` has a physical network that VLANs may be on with the ranges that tenant networks
    take ids from, which may be none. ``flat_networks`` is None if any name will do.
    """

    tenant_network_types: tuple[str, ...] = ("vxlan",)
    vni_ranges: tuple[Range, ...] = ((1, 1000),)
    vlan_ranges: Mapping[str, tuple[Range, ...]] = field(default_factory=dict)
    flat_networks: tuple[str, ...] | None = None
    global_physnet_mtu: int = 1500
    path_mtu: int = 0
    physical_network_mtus: Mapping[str, int] = field(default_factory=dict)
    tunnel_ip_version: int = 4
    base_mac: str = "fa:16:3e:00:00:00"
    dns_domain: str = "openstacklocal"
    agent_down_time: int = 75
    api_url: str = ""
    pagination_max_limit: int = 1000
    quotas: Mapping[str, int] = field(default_factory=lambda: dict(QUOTAS))
    max_fixed_ips_per_port: int = 32
    max_allowed_address_pairs: int = 10
    max_subnet_host_routes: int = 30
    max_dns_nameservers: int = 5


def from_conf(network: Any) -> Settings:
    """The settings of oslo.config's section; every value was parsed when the file was loaded."""
    vlans: dict[str, list[Range]] = {}
    for name, ids in network.network_vlan_ranges:
        vlans.setdefault(name, []).extend([] if ids is None else [ids])
    flat = tuple(network.flat_networks)
    return Settings(
        tenant_network_types=tuple(network.tenant_network_types),
        vni_ranges=tuple(network.vni_ranges),
        vlan_ranges={name: tuple(sorted(ranges)) for name, ranges in vlans.items()},
        flat_networks=None if "*" in flat else flat,
        global_physnet_mtu=network.global_physnet_mtu,
        path_mtu=network.path_mtu,
        physical_network_mtus=dict(network.physical_network_mtus),
        tunnel_ip_version=network.tunnel_ip_version,
        base_mac=network.base_mac,
        dns_domain=network.dns_domain,
        agent_down_time=network.agent_down_time,
        api_url=network.api_url.rstrip("/"),
        pagination_max_limit=network.pagination_max_limit,
        quotas={name: getattr(network, f"quota_{name}") for name in QUOTAS},
        max_fixed_ips_per_port=network.max_fixed_ips_per_port,
        max_allowed_address_pairs=network.max_allowed_address_pair,
        max_subnet_host_routes=network.max_subnet_host_routes,
        max_dns_nameservers=network.max_dns_nameservers,
    )
