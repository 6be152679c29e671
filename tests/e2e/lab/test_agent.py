"""The agent may end at any moment: what is wired stays, the next start does what is left."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from lab import VM, Lab
from stand import StandError, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def network(lab: Lab) -> dict[str, Any]:
    """One VXLAN network."""
    return lab.network("net", "10.7.0.0/24")


@pytest.fixture(scope="module")
def pair(lab: Lab, network: dict[str, Any]) -> tuple[VM, VM]:
    """An instance on each of two hosts."""
    vms = (lab.vm("host-1", "a", network), lab.vm("host-2", "b", network))
    lab.active(*vms)
    return vms


class Flood:
    """A ping every 5 ms while the block runs; afterwards `lost`."""

    def __init__(self, one: VM, other: VM) -> None:
        self._command = [
            *one.host.enter, "ip", "netns", "exec", one.name, "ping", "-q", "-n", "-i", "0.005",
            "-w", "60", other.address,
        ]  # fmt: skip

    def __enter__(self) -> Flood:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        time.sleep(0.3)
        return self

    def __exit__(self, *_exc: object) -> None:
        time.sleep(0.3)
        # nsenter's child; SIGINT makes ping print its summary
        (child,) = _children(self._process.pid)
        subprocess.run(["kill", "-INT", child], check=True)
        out, _ = self._process.communicate(timeout=20)
        found = re.search(r"(\d+) packets transmitted, (\d+) received", out)
        assert found is not None, out
        self.sent, self.lost = int(found[1]), int(found[1]) - int(found[2])


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_killed_agent_costs_no_packet(lab: Lab, pair: tuple[VM, VM]) -> None:
    """kill -9, a start with the kept view, and a full pass under a flood ping: nothing is lost."""
    with Flood(*pair) as flood:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            lab.kill_agent("host-1", number)
            lab.start_agent("host-1")
            time.sleep(1.5)
    assert flood.sent > 300
    assert flood.lost == 0
    assert lab.agent("host-1", "plan").strip() == "nothing to do"


def test_what_is_broken_is_made_again(lab: Lab, pair: tuple[VM, VM]) -> None:
    """A bridge, a tunnel or a filter that somebody took away is back after a pass."""
    host = pair[0].host
    for words in (
        ("ip", "link", "set", "dev", f"tap{pair[0].port[:11]}", "nomaster"),
        ("nft", "delete", "table", "inet", "mooring_underlay"),
    ):
        host.run(*words)
        lab.agent("host-1", "apply")
        assert lab.agent("host-1", "plan").strip() == "nothing to do"
        assert pair[0].pings(pair[1].address, count=2)


def test_what_is_not_ours_is_left_alone(lab: Lab, pair: tuple[VM, VM]) -> None:
    """Links, namespaces and tables of others survive a full pass, whatever they are called."""
    host = pair[0].host
    for words in (
        ("ip", "link", "add", "brq00000000-00", "type", "bridge"),
        ("ip", "netns", "add", "others"),
        ("nft", "add", "table", "inet", "others"),
    ):
        host.run(*words)
    lab.agent("host-1", "apply")
    assert "brq00000000-00" in host.run("ip", "-br", "link")
    assert "others" in host.run("ip", "netns")
    assert "others" in host.run("nft", "list", "tables")


def test_what_is_ours_and_wanted_by_nobody_goes(lab: Lab, network: dict[str, Any]) -> None:
    """The last port of a network on a host takes bridge, tunnel and filter with it."""
    other = lab.network("gone", "10.8.0.0/24")
    vm = lab.vm("host-1", "c", other)
    lab.active(vm)
    bridge = f"brq{other['id'][:11]}"
    assert bridge in vm.host.run("ip", "-br", "link")
    lab.api("DELETE", f"/v2.0/ports/{vm.port}")
    vni = other["provider:segmentation_id"]
    for name in (bridge, f"vxlan-{vni} ", f"tap{vm.port[:11]}"):
        wait_for(f"the end of {name}", lambda n=name: n not in vm.host.run("ip", "-br", "link"))  # type: ignore[misc]
    wait_for("the filter's end", lambda: f"vni_{vni} " not in vm.host.run("nft", "list", "ruleset"))


def test_one_port_that_cannot_be_wired_leaves_the_others(lab: Lab, network: dict[str, Any]) -> None:
    """Attached to a namespace that is not there it is reported by its id; the next one is wired."""
    values = {"binding:host_id": "host-1", "device_owner": "compute:nova"}
    lost = lab.create("port", network_id=network["id"], **values)
    lab.agent("host-1", "attach", lost["id"], "--netns", "nowhere", "--wait", "0.1")
    good = lab.vm("host-1", "d", network)
    lab.active(good)

    def reported() -> bool:
        (agent,) = lab.api("GET", "/v2.0/agents?host=host-1")["agents"]
        return any(each["id"] == lost["id"] for each in agent["configurations"]["failures"])

    wait_for("the failure's report", reported)
    good.host.run("ip", "netns", "add", "nowhere")
    wait_for(
        "the retry",
        lambda: "eth0" in good.host.run("ip", "-n", "nowhere", "-br", "link"),
        90,
    )
    lab.agent("host-1", "detach", lost["id"])


def test_frames_from_no_host_of_the_network_are_dropped(lab: Lab, pair: tuple[VM, VM]) -> None:
    """The tunnel's filter counts what comes from an address that is no host of the VNI."""
    host = pair[0].host
    (net,) = lab.api("GET", "/v2.0/networks?name=net")["networks"]
    vni = net["provider:segmentation_id"]
    frame = bytes([8, 0, 0, 0, *vni.to_bytes(3, "big"), 0]) + bytes(60)
    script = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        f" s.sendto(bytes.fromhex('{frame.hex()}'), ('192.0.2.1', 4789))"
    )
    lab.machines["controller"].run("python3", "-c", script)
    rules = host.run("nft", "list", "chain", "inet", "mooring_underlay", f"vni_{vni}")
    assert re.search(r"counter packets [1-9]\d* .*drop", rules), rules


def test_a_bad_attachment_is_refused(lab: Lab) -> None:
    """Nothing but ids and names reaches a command line."""
    for port, netns in (("x", "vm"), ("00000000-0000-4000-8000-000000000000", "../etc")):
        with pytest.raises(StandError, match="is not allowed"):
            lab.agent("host-1", "attach", port, "--netns", netns)
