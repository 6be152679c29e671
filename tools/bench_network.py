"""Bench of the host's network: wiring many ports, a pass that changes nothing, one port more.

Everything happens on a machine of the lab (network, mount and process namespaces of its own), by
the agent's own `Reconciler`; beside it stands one `ip -batch` that makes the same kernel objects.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lab import Machine

from services.hostnet.agent.context import Attachment, HostFacts
from services.hostnet.agent.network import Reconciler
from services.hostnet.agent.state import State
from services.hostnet.view import View, from_json

NETWORK = "00000000-0000-4000-8000-000000000000"
FEW = 10
"""Ports beside which the first additional port is added."""

SETTLE_SECONDS = 16.0
"""After links have come the kernel goes on for a while: IPv6's duplicate address detection and
multicast reports of each, which take the processor from whoever measures."""

ADDED = 9
"""Ports that are added one by one, for a median."""


def port(number: int) -> dict[str, Any]:
    """A port of the bench, as a controller would tell it."""
    return {
        "id": f"{number:08x}-{number % 256:02x}01-4000-8000-000000000000",
        "network_id": NETWORK, "project_id": "p",
        "mac": f"fa:16:3e:00:{number // 256:02x}:{number % 256:02x}",
        "fixed_ips": [{"subnet_id": NETWORK, "ip": f"10.{number // 65536}.{number // 256 % 256}."
                       f"{number % 256}"}],
        "device_id": "", "device_owner": "compute:bench", "host": "host-1", "next_host": None,
        "admin_state_up": True, "port_security": False, "allowed_pairs": [],
        "security_groups": [], "dhcp_options": [], "dns_name": None,
    }  # fmt: skip


def network() -> dict[str, Any]:
    """The bench's network: VXLAN, one subnet."""
    return {
        "id": NETWORK, "project_id": "p", "network_type": "vxlan", "physical_network": None,
        "segmentation_id": 10, "mtu": 1450, "admin_state_up": True, "external": False,
        "routed": False, "dns_domain": None, "dhcp": None,
        "subnets": [
            {"id": NETWORK, "cidr": "10.0.0.0/8", "gateway_ip": None, "enable_dhcp": False,
             "ra_mode": None, "address_mode": None, "dns_nameservers": [], "host_routes": []}
        ],
    }  # fmt: skip


def run(*, ports: int, rounds: int) -> dict[str, float]:
    """Measure on machines of their own; prints a table and returns names and numbers."""
    if os.getuid() != 0:
        raise SystemExit("bench: network needs root, or a user namespace as tools/demo makes it")
    found: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        values: dict[str, float] = {}
        for side in ("ours", "batch"):
            machine = Machine("bench").start()
            try:
                words = (sys.executable, Path(__file__), side, str(ports))
                root = Path(__file__).resolve().parent.parent
                path = os.pathsep.join([str(root), str(root / "tools")])
                out = machine.run(*words, timeout=600, env={**os.environ, "PYTHONPATH": path})
                values.update(json.loads(out.strip().splitlines()[-1]))
            finally:
                machine.stop()
        print(
            f"round {number}: {ports} ports wired in {values['wire_s']:.2f} s, ip -batch"
            f" {values['batch_s']:.2f} s; nothing to do {values['noop_cpu_s']:.3f} s of CPU; one"
            f" more {values['few_ms']:.1f} ms beside {FEW}, {values['many_ms']:.1f} ms beside"
            f" {ports}; removed in {values['remove_s']:.2f} s"
        )
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    middle = {name: statistics.median(values) for name, values in found.items()}
    results = {
        "network.wire.batch_ratio": middle["wire_s"] / middle["batch_s"],
        "network.wire.ports": ports,
        "network.wire.s": middle["wire_s"],
        "network.noop.cpu_s": middle["noop_cpu_s"],
        "network.incremental.ratio": middle["many_ms"] / middle["few_ms"],
        "network.incremental.ms": middle["many_ms"],
        "network.incremental.batch_ratio": middle["kernel_many_ms"] / middle["kernel_few_ms"],
        "network.remove.s": middle["remove_s"],
        "network.failures": middle["failures"],
    }
    print()
    for name, value in results.items():
        print(f"{name:32}{value:10.3f}")
    return results


# ---- on the machine -----------------------------------------------------------------------------


def _shell(words: Sequence[str], text: str = "") -> None:
    subprocess.run(words, input=text, text=True, check=True, stdout=subprocess.DEVNULL)


def _namespaces(numbers: Iterable[int]) -> None:
    _shell(["ip", "-batch", "-"], "".join(f"netns add vm{number}\n" for number in numbers))


def _cpu() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _ours(ports: int) -> dict[str, float]:
    _namespaces(range(1, ports + FEW + 2 * ADDED + 1))
    with tempfile.TemporaryDirectory() as directory:
        state = State(directory)
        state.prepare()
        facts = HostFacts(host="host-1", tunnel_address="127.0.0.1")
        reconciler = Reconciler(facts, state, {})

        def take(count: int) -> None:
            view = View()
            view.put(from_json("network", network()))
            attachments = {}
            for number in range(1, count + 1):
                item = from_json("port", port(number))
                view.put(item)
                attachments[item.id] = Attachment(item.id, f"vm{number}")
            reconciler.compiler.replace(view, attachments, facts)

        def add(number: int) -> float:
            item = port(number)
            known = dict(reconciler.compiler.context.attachments)
            known[item["id"]] = Attachment(item["id"], f"vm{number}")

            def work() -> None:
                change = {"kind": "port", "id": item["id"], "op": "put", "object": item}
                keys = reconciler.follow("x.1.x", [change]) | reconciler.attach(known)
                reconciler.change(keys)

            return _timed(work) * 1000

        take(FEW)
        reconciler.full()
        time.sleep(SETTLE_SECONDS)
        few = statistics.median(add(ports + FEW + number) for number in range(1, ADDED + 1))
        take(0)
        reconciler.full()
        take(ports)
        wire = _timed(reconciler.full)
        failures = len(reconciler.failures)
        begun = _cpu()
        left = len(reconciler.plan().operations)
        noop = _cpu() - begun
        time.sleep(SETTLE_SECONDS)
        many = statistics.median(
            add(ports + FEW + ADDED + number) for number in range(1, ADDED + 1)
        )
        take(0)
        remove = _timed(reconciler.full)
    return {
        "wire_s": wire, "noop_cpu_s": noop, "few_ms": few, "many_ms": many, "remove_s": remove,
        "failures": failures + left + len(reconciler.failures),
    }  # fmt: skip


def _batch(ports: int) -> dict[str, float]:
    _namespaces(range(1, ports + FEW + 2 * ADDED + 1))

    # a bridge has 1,023 ports at most: the first few have one of their own
    fewer = range(ports + 1, ports + FEW + ADDED + 1)

    def lines(numbers: Iterable[int]) -> str:
        return "".join(
            f"link add tap{number} mtu 1450 type veth peer name eth0"
            f" address {port(number)['mac']} mtu 1450 netns vm{number}\n"
            f"link set dev tap{number} master {'br1' if number in fewer else 'br0'} up\n"
            for number in numbers
        )

    def add(number: int) -> float:
        def work() -> None:
            _shell(["ip", "-batch", "-"], lines([number]))
            _shell(["ip", "-n", f"vm{number}", "link", "set", "eth0", "up"])

        return _timed(work) * 1000

    head = (
        "link add name br0 type bridge mcast_snooping 0\n"
        "link add name vx0 type vxlan id 10 local 127.0.0.1 dstport 4789 nolearning\n"
        "link set dev vx0 master br0 up\nlink set dev br0 up\n"
        "link add name br1 up type bridge mcast_snooping 0\n"
    )
    _shell(["ip", "-batch", "-"], head + lines(range(ports + 1, ports + FEW + 1)))
    few = statistics.median(add(ports + FEW + number) for number in range(1, ADDED + 1))
    wire = _timed(lambda: _shell(["ip", "-batch", "-"], lines(range(1, ports + 1))))
    for number in range(1, ports + 1):
        _shell(["ip", "-n", f"vm{number}", "link", "set", "eth0", "up"])
    time.sleep(SETTLE_SECONDS)
    many = statistics.median(add(ports + FEW + ADDED + number) for number in range(1, ADDED + 1))
    return {"batch_s": wire, "kernel_few_ms": few, "kernel_many_ms": many}


def main() -> None:
    """Measure one side, inside a machine; prints JSON."""
    side, ports = sys.argv[1], int(sys.argv[2])
    print(json.dumps(_ours(ports) if side == "ours" else _batch(ports)))


if __name__ == "__main__":
    main()
