"""Options of the network service, section [network] of mooring.conf."""

import re
from typing import Any

from oslo_config import cfg, types

VLANS = (1, 4094)
VNIS = (1, 2**24 - 1)

_PHYSICAL = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)

Range = tuple[int, int]


def _range(text: str, bounds: Range) -> Range:
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no range such as 1:1000")
    low, high = int(match[1]), int(match[2])
    if not bounds[0] <= low <= high <= bounds[1]:
        raise ValueError(f"{text!r} is not within {bounds[0]}:{bounds[1]}")
    return low, high


def _physical(name: str) -> str:
    name = name.strip()
    if not _PHYSICAL.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a physical network")
    return name


def vni_range(text: str) -> Range:
    """``1:1000``."""
    return _range(text, VNIS)


def vlan_range(text: str) -> tuple[str, Range | None]:
    """``physnet1:100:199``, or ``physnet1`` alone for ids that only admins choose."""
    name, colon, rest = text.strip().partition(":")
    return _physical(name), _range(rest, VLANS) if colon else None


def physical_mtu(text: str) -> tuple[str, int]:
    """``physnet1:9000``."""
    name, _, mtu = text.strip().rpartition(":")
    if not re.fullmatch(r"[0-9]{2,5}", mtu, re.ASCII) or not 68 <= int(mtu) <= 65535:
        raise ValueError(f"{text!r} is no NAME:MTU with an MTU from 68 to 65535")
    return _physical(name), int(mtu)


def base_mac(text: str) -> str:
    """Six octets, the last two or three of which are 00, of a single station."""
    text = text.strip().lower()
    if not _MAC.fullmatch(text) or not text.endswith(":00:00") or int(text[:2], 16) & 1:
        raise ValueError(f"{text!r} is no MAC whose last two or three octets are 00")
    return text


class _Parsed(types.String):
    """Text that one of the functions above turns into a value; its ValueError stops the start."""

    def __init__(self, parse: Any) -> None:
        super().__init__()
        self.parse = parse

    def __call__(self, value: Any) -> Any:
        # oslo.config hands a default that was parsed already through here again
        return self.parse(str(super().__call__(value))) if isinstance(value, str) else value


NETWORK = [
    cfg.StrOpt(
        "api_url",
        default="",
        regex=r"^(https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~-]+)*/?)?$",
        help="Address of the network API as clients write it, for links in its answers. Empty: "
        "https:// and the name that the client asked for.",
    ),
    cfg.ListOpt(
        "tenant_network_types",
        item_type=types.String(choices=["local", "vlan", "vxlan"]),
        default=["vxlan"],
        help="Types that a network without provider attributes becomes, in this order: the next "
        "one is taken when the one before has no free segment.",
    ),
    cfg.ListOpt(
        "vni_ranges",
        item_type=_Parsed(vni_range),
        default=["1:1000"],
        help="VXLAN network identifiers for tenant networks, FIRST:LAST each.",
    ),
    cfg.ListOpt(
        "network_vlan_ranges",
        item_type=_Parsed(vlan_range),
        default=[],
        help="Physical networks that VLANs are on, NAME:FIRST:LAST each, or NAME alone where only "
        "admins choose ids. Tenant networks take ids from the ranges.",
    ),
    cfg.ListOpt(
        "flat_networks",
        item_type=types.String(regex=r"^(\*|[0-9A-Za-z][0-9A-Za-z._-]{0,63})$"),
        default=["*"],
        help="Physical networks that a flat network may be on; * for any name.",
    ),
    cfg.IntOpt(
        "global_physnet_mtu",
        default=1500,
        min=1280,
        max=65535,
        help="MTU of the physical networks, tunnels' underlay included.",
    ),
    cfg.IntOpt(
        "path_mtu",
        default=0,
        min=0,
        max=65535,
        help="Largest packet that every path between hosts carries, if it is less than "
        "global_physnet_mtu; 0 for none. VXLAN networks have 50 bytes less (70 over IPv6).",
    ),
    cfg.ListOpt(
        "physical_network_mtus",
        item_type=_Parsed(physical_mtu),
        default=[],
        help="NAME:MTU of physical networks whose MTU is not global_physnet_mtu.",
    ),
    cfg.IntOpt(
        "tunnel_ip_version",
        default=4,
        min=4,
        max=6,
        help="IP version of the hosts' tunnel addresses, 4 or 6; it decides the MTU.",
    ),
    cfg.Opt(
        "base_mac",
        type=_Parsed(base_mac),
        default="fa:16:3e:00:00:00",
        help="Ports' MAC addresses begin as this does; the octets that are 00 are random.",
    ),
    cfg.StrOpt(
        "dns_domain",
        default="openstacklocal",
        regex=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.|$))*$",
        help="Domain of ports' names on networks that have none of their own.",
    ),
    cfg.IntOpt(
        "agent_down_time",
        default=75,
        min=5,
        max=86400,
        help="Seconds after its last word for which a host counts as alive.",
    ),
    cfg.IntOpt(
        "pagination_max_limit",
        default=1000,
        min=1,
        max=100000,
        help="Most objects of one answer; it has a link to the rest.",
    ),
    cfg.IntOpt("max_fixed_ips_per_port", default=32, min=1, max=256, help="Addresses of a port."),
    cfg.IntOpt(
        "max_allowed_address_pair",
        default=10,
        min=0,
        max=256,
        help="Allowed address pairs of a port.",
    ),
    cfg.IntOpt(
        "max_subnet_host_routes", default=30, min=0, max=256, help="Host routes of a subnet."
    ),
    cfg.IntOpt("max_dns_nameservers", default=5, min=0, max=32, help="Name servers of a subnet."),
    *(
        cfg.IntOpt(
            f"quota_{name}",
            default=default,
            min=-1,
            max=1000000,
            help=f"{what} that a project may have unless an admin says otherwise; -1: no limit.",
        )
        for name, default, what in (
            ("network", 100, "Networks"),
            ("subnet", 100, "Subnets"),
            ("port", 500, "Ports"),
            ("router", 10, "Routers"),
            ("floatingip", 50, "Floating IPs"),
            ("security_group", 10, "Security groups"),
            ("security_group_rule", 100, "Security group rules"),
        )
    ),
]
