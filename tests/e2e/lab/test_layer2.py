"""Scenarios L1 to L4 and L6: what crosses a network between hosts, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lab import VM, Lab
from stand import StandError

pytestmark = pytest.mark.e2e

CIDR = "10.1.0.0/24"


@pytest.fixture(scope="module")
def tenants(lab: Lab) -> dict[str, tuple[VM, VM]]:
    """Two tenants' networks with the same addresses, an instance of each on two hosts."""
    made = {}
    for name, vni in (("red", 10), ("blue", 20)):
        network = lab.network(
            name,
            CIDR,
            project_id=name,
            **{"provider:network_type": "vxlan", "provider:segmentation_id": vni},
        )
        vms = [
            lab.vm(
                f"host-{number}",
                f"{name}{number}",
                network,
                project_id=name,
                fixed_ips=[{"ip_address": f"10.1.0.{3 + number}"}],
            )
            for number in (1, 2)
        ]
        made[name] = (vms[0], vms[1])
    everyone = [vm for pair in made.values() for vm in pair]
    lab.active(*everyone)
    return made


def test_l1_each_tenant_reaches_its_own(lab: Lab, tenants: Any, probes: Any) -> None:
    """red and blue have the same addresses on both hosts; each pings its own peer only, and what
    crosses the underlay is VXLAN with the tenant's VNI."""
    for name, vni in (("red", 10), ("blue", 20)):
        one, two = tenants[name]
        assert (one.address, two.address) == ("10.1.0.4", "10.1.0.5")
        with probes.capture(lab.machines["underlay"], "underlay", "udp port 4789") as capture:
            assert one.pings(two.address, count=3)
            assert probes.transfer(one, two) == one.address
        assert capture.vnis("10.1.0.4") == {vni}


def test_l1_the_other_tenant_does_not_hear_it(tenants: Any, probes: Any) -> None:
    """A ping of red is seen at red's peer and at nobody of blue."""
    red, blue = tenants["red"], tenants["blue"]
    expression = "icmp and src host 10.1.0.4"
    with (
        _inside(probes, red[1], expression) as heard,
        _inside(probes, blue[1], expression) as unheard,
    ):
        assert red[0].pings("10.1.0.5", count=2)
    assert len(heard.lines) == 2
    assert unheard.lines == []


def test_l1_the_mtu_leaves_room_for_the_tunnel(tenants: Any) -> None:
    """1450 on an underlay of 1500: 1422 octets of ping pass unfragmented, 1423 do not."""
    one, two = tenants["red"]
    assert " mtu 1450 " in one.run("ip", "link", "show", "eth0")
    assert one.pings(two.address, "-M", "do", "-s", "1422")
    assert not one.pings(two.address, "-M", "do", "-s", "1423")


def test_l2_no_arp_for_a_known_address_crosses_the_underlay(
    lab: Lab, tenants: Any, probes: Any
) -> None:
    """Known neighbours are answered on the host; an unknown one is asked for on the network's
    hosts only."""
    one, two = tenants["red"]
    one.run("ip", "neigh", "flush", "dev", "eth0")
    with probes.capture(lab.machines["underlay"], "underlay", "udp port 4789") as capture:
        assert one.pings(two.address)
        assert not one.pings("10.1.0.99", wait=1)
    asked = [line for line in capture.lines if "ARP" in line]
    assert not [line for line in asked if "10.1.0.5" in line]
    assert [line for line in asked if "who-has 10.1.0.99" in line]


def test_an_instance_moves_and_keeps_its_address(lab: Lab, tenants: Any) -> None:
    """Bound to another host and attached there, an instance answers under the same address."""
    one, _ = tenants["red"]
    network = lab.api("GET", "/v2.0/networks?name=red")["networks"][0]
    mover = lab.vm("host-2", "mover", network, project_id="red")
    lab.active(mover)
    assert one.pings(mover.address)
    lab.agent("host-2", "detach", mover.port)
    lab.api("PUT", f"/v2.0/ports/{mover.port}", {"port": {"binding:host_id": "host-1"}})
    machine = lab.machines["host-1"]
    machine.run("ip", "netns", "add", "mover")
    lab.agent("host-1", "attach", mover.port, "--netns", "mover", "--address")
    moved = VM(machine, "mover", mover.port, mover.mac, mover.address)
    lab.active(moved)
    assert f" {mover.address}/24 " in moved.run("ip", "address", "show", "eth0")
    assert one.pings(mover.address)
    assert tenants["red"][1].pings(mover.address)


def test_l3_a_flat_network_is_the_physical_one(lab: Lab, probes: Any) -> None:
    """Instances of a flat network on two hosts meet on the physical network, untagged."""
    network = lab.network(
        "flat",
        "10.3.0.0/24",
        **{"provider:network_type": "flat", "provider:physical_network": "physnet1"},
    )
    one, two = (lab.vm(f"host-{n}", f"flat{n}", network) for n in (1, 2))
    lab.active(one, two)
    with probes.capture(lab.machines["underlay"], "physical", "icmp") as capture:
        assert one.pings(two.address, count=2)
        assert probes.transfer(one, two) == one.address
    assert capture.lines
    assert not [line for line in capture.lines if "vlan" in line or "802.1Q" in line]


def test_l3_a_vlan_network_says_what_this_kernel_lacks(lab: Lab) -> None:
    """Without 802.1Q the network is left out and reported by its id; the others go on."""
    if _has_vlan(lab):
        pytest.skip("this kernel has 802.1Q: the tests of tools/stock-kernel show it at work")
    network = lab.network(
        "vlan100",
        "10.4.0.0/24",
        **{
            "provider:network_type": "vlan",
            "provider:physical_network": "physnet1",
            "provider:segmentation_id": 100,
        },
    )
    port = lab.create(
        "port",
        network_id=network["id"],
        **{"binding:host_id": "host-1"},
        port_security_enabled=False,
    )
    failures = _until(lambda: _failures(lab, "host-1", network["id"]))
    assert "802.1Q" in failures[0]["reason"]
    lab.api("DELETE", f"/v2.0/ports/{port['id']}")
    _until(lambda: not _failures(lab, "host-1", network["id"]))


def _has_vlan(lab: Lab) -> bool:
    machine = lab.machines["host-1"]
    try:
        machine.run("sh", "-c", "ip link add link eth1 name probe type vlan id 4000")
    except StandError:
        return False
    machine.run("ip", "link", "del", "probe")
    return True


def _failures(lab: Lab, host: str, object_id: str) -> list[dict[str, Any]]:
    for agent in lab.api("GET", "/v2.0/agents")["agents"]:
        if agent["host"] == host:
            return [
                each
                for each in agent["configurations"].get("failures", [])
                if each["id"] == object_id
            ]
    return []


def _until(check: Any, seconds: float = 20) -> Any:
    from stand import wait_for

    found: list[Any] = []

    def holds() -> bool:
        value = check()
        found.append(value)
        return bool(value)

    wait_for("a report", holds, seconds)
    return found[-1]


def _inside(probes: Any, vm: VM, expression: str) -> Any:
    """A capture inside an instance."""

    class Inside:
        enter = (*vm.host.enter, "ip", "netns", "exec", vm.name)

    return probes.capture(Inside, "eth0", expression)


@pytest.fixture(scope="module")
def three() -> Iterator[Lab]:
    """Three hosts whose tunnels use a multicast group."""
    with Lab(
        hosts=3,
        agent_options={
            "vxlan_mode": "multicast",
            "vxlan_group": "239.255.0.1",
            "vxlan_ttl": "5",
        },
    ) as lab:
        yield lab


def test_l2_three_hosts_learn_each_other_on_a_group(three: Lab, probes: Any) -> None:
    """With a multicast group nothing is programmed, and each reaches each."""
    network = three.network("group", CIDR, **{"provider:network_type": "vxlan"})
    vms = [three.vm(f"host-{n}", f"g{n}", network) for n in (1, 2, 3)]
    three.active(*vms)
    with probes.capture(three.machines["underlay"], "underlay", "dst host 239.255.0.1") as capture:
        for one in vms:
            for other in vms:
                assert one is other or one.pings(other.address)
    assert any("ttl 5" in line or "239.255.0.1" in line for line in capture.lines)
    assert probes.transfer(vms[0], vms[2]) == vms[0].address
