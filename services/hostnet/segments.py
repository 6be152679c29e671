"""Which segment a network takes, and what MTU it leaves its instances: rules without I/O.

A segment is (type, physical network, id). VXLAN has no physical network ("" in the key), flat has
no id (0 in the key), a local network takes no segment.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from services.core.config_network import VLANS, VNIS
from services.hostnet.settings import NETWORK_TYPES, Settings

VXLAN_OVERHEAD = {4: 50, 6: 70}
"""Octets that VXLAN takes from the underlay's MTU: outer IP (20 or 40), UDP (8), VXLAN (8), inner
Ethernet (14)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a network's frames travel; ``physical_network`` and ``id`` are None where none is."""

    network_type: str
    physical_network: str | None = None
    id: int | None = None

    @property
    def key(self) -> tuple[str, str, int] | None:
        """Its primary key, None for a local network."""
        if self.network_type == "local":
            return None
        return self.network_type, self.physical_network or "", self.id or 0


def provided(settings: Settings, given: Mapping[str, str | int | None]) -> Segment | None:
    """The segment that provider attributes ask for, its id perhaps None; None if none are given.

    ``given`` has network_type, physical_network and segmentation_id. Raises ValueError.
    """
    kind, physical, number = (
        given.get(name) for name in ("network_type", "physical_network", "segmentation_id")
    )
    if kind is None:
        if physical is not None or number is not None:
            raise ValueError("provider:network_type required")
        return None
    if kind not in NETWORK_TYPES:
        raise ValueError(f"provider:network_type '{kind}' not supported")
    if kind in ("flat", "vlan"):
        if physical is None:
            raise ValueError(f"provider:physical_network required for {kind} provider network")
    elif physical is not None:
        raise ValueError(f"provider:physical_network specified for {kind} provider network")
    if kind in ("flat", "local") and number is not None:
        raise ValueError(f"provider:segmentation_id specified for {kind} provider network")
    if kind == "flat" and physical not in (settings.flat_networks or (physical,)):
        raise ValueError(f"physical_network '{physical}' unknown for flat provider network")
    if kind == "vlan" and physical not in settings.vlan_ranges:
        raise ValueError(f"physical_network '{physical}' unknown for VLAN provider network")
    low, high = VLANS if kind == "vlan" else VNIS
    if number is not None and not low <= int(number) <= high:
        raise ValueError(f"provider:segmentation_id out of range ({low} through {high})")
    return Segment(
        str(kind),
        None if physical is None else str(physical),
        None if number is None else int(number),
    )


def candidates(settings: Settings, asked: Segment | None) -> Iterable[tuple[Segment, range]]:
    """Pools to take a free id from, in order: each a segment without its id, and ids.

    Without ``asked`` these are the tenant types in their order; with it, those of its type.
    """
    kinds = settings.tenant_network_types if asked is None else (asked.network_type,)
    for kind in kinds:
        if kind == "local":
            yield Segment("local"), range(0)
        elif kind == "vxlan":
            for low, high in settings.vni_ranges:
                yield Segment("vxlan"), range(low, high + 1)
        elif kind == "vlan":
            for physical, ranges in settings.vlan_ranges.items():
                if asked is None or asked.physical_network == physical:
                    for low, high in ranges:
                        yield Segment("vlan", physical), range(low, high + 1)


def first_free(ids: range, taken: Collection[int]) -> int | None:
    """The first id of a pool that nobody has."""
    return next((each for each in ids if each not in taken), None)


def greatest_mtu(settings: Settings, segment: Segment) -> int:
    """The largest MTU that the network's instances can use."""
    if segment.network_type in ("flat", "vlan"):
        return settings.physical_network_mtus.get(
            segment.physical_network or "", settings.global_physnet_mtu
        )
    if segment.network_type == "vxlan":
        paths = [mtu for mtu in (settings.global_physnet_mtu, settings.path_mtu) if mtu]
        return min(paths) - VXLAN_OVERHEAD[settings.tunnel_ip_version]
    return settings.global_physnet_mtu
