"""Names and marks by which what we make on a host is known as ours from the kernel alone.

Names are Neutron's, so that an operator's habits and tools fit: `brq` and the first 11 characters
of the network's id, `tap` and those of the port's, and so on. Links carry our group as well, and
an alias that says for which object they stand; routes, rules and neighbours carry our protocol.
"""

from __future__ import annotations

import re

GROUP = 0x4D00
"""Link group (19712) of links that we make: what is not in it is never removed."""

PROTOCOL = 77
"""Routing protocol number of our routes, rules and neighbours (unassigned in rt_protos)."""

NAME_BYTES = 15
"""IFNAMSIZ without the end: a longer name cannot be a link's."""

_ours = re.compile(
    r"(?:brq|tap|ns-|qr-|qg-|rfp|fpr)[0-9a-f]{8}-[0-9a-f]{2}|vxlan-[0-9]{1,8}|[^/\s]+\.[0-9]{1,4}",
    re.ASCII,
).fullmatch
_tap = re.compile(r"tap[0-9a-f]{8}-[0-9a-f]{2}", re.ASCII).fullmatch
_namespace = re.compile(r"(?:qdhcp|qrouter)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def bridge(network_id: str) -> str:
    """The bridge of a network."""
    return f"brq{network_id[:11]}"


def tap(port_id: str) -> str:
    """The host's end of a port: a veth that we make, or a tap that KVM or LXC makes."""
    return f"tap{port_id[:11]}"


def vxlan(vni: int) -> str:
    """The VXLAN device of a VNI."""
    return f"vxlan-{vni}"


def vlan(interface: str, vlan_id: int) -> str:
    """The 802.1Q sub-interface of a physical interface."""
    return f"{interface}.{vlan_id}"


def dhcp_namespace(network_id: str) -> str:
    """The namespace from which DHCP, DNS and metadata of a network are served."""
    return f"qdhcp-{network_id}"


def dhcp_link(port_id: str) -> str:
    """The DHCP port's end inside that namespace."""
    return f"ns-{port_id[:11]}"


def router_namespace(router_id: str) -> str:
    """The namespace of a router."""
    return f"qrouter-{router_id}"


def router_link(port_id: str, *, gateway: bool = False) -> str:
    """A router's end of one of its ports."""
    return f"{'qg' if gateway else 'qr'}-{port_id[:11]}"


def alias(kind: str, object_id: str) -> str:
    """What a link of ours stands for: `mooring:KIND:ID`."""
    return f"mooring:{kind}:{object_id}"


def is_ours(name: str, group: int, link_alias: str) -> bool:
    """Whether a link is one of ours: the group, and the name or (where it was renamed) the alias.

    A process may end between making a link and giving it its alias: group and name are set as it
    is made.
    """
    return group == GROUP and (_ours(name) is not None or link_alias.startswith("mooring:"))


def is_tap(name: str) -> bool:
    """Whether a link is named as a port's, whoever made it."""
    return _tap(name) is not None


def is_our_namespace(name: str) -> bool:
    """Whether a namespace is named as one of ours."""
    return _namespace(name) is not None
