"""Compiling and planning, without a kernel: what is wanted, the difference, and its order."""

from __future__ import annotations

import random
from typing import Any

import pytest

from services.hostnet.agent import applier, kernel, plan
from services.hostnet.agent.compile import Compiler, compile_view
from services.hostnet.agent.context import Attachment, HostFacts
from services.hostnet.agent.desired import FdbEntry, Link
from services.hostnet.agent.kernel import Actual
from services.hostnet.agent.state import State
from services.hostnet.view import View, from_json

FACTS = HostFacts(host="host-1", tunnel_address="192.0.2.1", bridge_mappings={"physnet1": "eth1"})


def uuid(number: int, kind: int = 0) -> str:
    return f"{number:08x}-{kind:04x}-4000-8000-000000000000"


def network(number: int, **changes: Any) -> Any:
    return from_json(
        "network",
        {
            "id": uuid(number), "project_id": "p", "network_type": "vxlan",
            "physical_network": None, "segmentation_id": 10 + number, "mtu": 1450,
            "admin_state_up": True, "external": False, "routed": False, "dns_domain": None,
            "subnets": [
                {"id": uuid(number, 9), "cidr": "10.1.0.0/24", "gateway_ip": "10.1.0.1",
                 "enable_dhcp": False, "ra_mode": None, "address_mode": None,
                 "dns_nameservers": [], "host_routes": []}
            ],
            "dhcp": None, **changes,
        },
    )  # fmt: skip


def port(number: int, on: int, **changes: Any) -> Any:
    return from_json(
        "port",
        {
            "id": uuid(number, 1), "network_id": uuid(on), "project_id": "p",
            "mac": f"fa:16:3e:00:00:{number:02x}",
            "fixed_ips": [{"subnet_id": uuid(on, 9), "ip": f"10.1.0.{number + 3}"}],
            "device_id": "", "device_owner": "compute:nova", "host": "host-1", "next_host": None,
            "admin_state_up": True, "port_security": False, "allowed_pairs": [],
            "security_groups": [], "dhcp_options": [], "dns_name": None, **changes,
        },
    )  # fmt: skip


def endpoint(number: int, on: int, vtep: str | None) -> Any:
    return from_json(
        "endpoint",
        {
            "id": uuid(number, 1), "network_id": uuid(on), "mac": f"fa:16:3e:00:01:{number:02x}",
            "fixed_ips": [{"subnet_id": uuid(on, 9), "ip": f"10.1.0.{number + 100}"}],
            "vtep": vtep, "dns_name": None, "device_owner": "compute:nova",
        },
    )  # fmt: skip


def view_of(*items: Any) -> View:
    view = View()
    for item in items:
        view.put(item)
    return view


def test_a_network_without_a_local_port_comes_to_nothing() -> None:
    """Whatever else the view holds, only what this host carries is made."""
    view = view_of(network(1), endpoint(2, 1, "192.0.2.2"), port(3, 1, host="host-9"))
    assert compile_view(view, FACTS).objects == {}


def test_a_vxlan_network_floods_to_its_hosts_and_learns_nothing() -> None:
    """One forwarding entry for each remote MAC, one flood entry for each host."""
    view = view_of(
        network(1), port(1, 1), endpoint(2, 1, "192.0.2.2"), endpoint(3, 1, "192.0.2.2"),
        endpoint(4, 1, "192.0.2.3"), endpoint(5, 1, None),
    )  # fmt: skip
    wanted = compile_view(view, FACTS).objects
    entries = [each for each in wanted.values() if isinstance(each, FdbEntry)]
    flooded = {each.destination for each in entries if each.mac == "00:00:00:00:00:00"}
    assert flooded == {"192.0.2.2", "192.0.2.3"}
    known = {each.mac: each.destination for each in entries if each.destination}
    assert known["fa:16:3e:00:01:03"] == "192.0.2.2"
    assert "fa:16:3e:00:01:05" not in known
    device = wanted[("link", "", "vxlan-11")]
    assert isinstance(device, Link)
    assert device.vxlan is not None
    assert (device.vxlan.learning, device.mtu) == (False, 1450)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"network_type": "flat", "physical_network": "other", "segmentation_id": None},
         "not in this host's bridge_mappings"),
        ({"network_type": "vlan", "physical_network": "physnet1", "segmentation_id": 5}, "802.1Q"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_reported_and_leaves_the_others(
    changes: dict[str, Any], reason: str
) -> None:
    """The owner and why; every other network is compiled."""
    facts = HostFacts(
        host="host-1", tunnel_address="192.0.2.1", bridge_mappings={"physnet1": "eth1"},
        vlan="this kernel has no 802.1Q",
    )  # fmt: skip
    view = view_of(network(1, **changes), port(1, 1), network(2), port(2, 2))
    desired = compile_view(view, facts)
    assert reason in desired.failures[("network", uuid(1))]
    assert ("link", "", f"brq{uuid(2)[:11]}") in desired.objects


@pytest.mark.parametrize("seed", range(20))
def test_change_by_change_comes_to_the_same_as_all_at_once(seed: int) -> None:
    """Any sequence of changes leads to what a fresh compile of the final view is."""
    dice = random.Random(seed)
    compiler = Compiler(FACTS)
    compiler.replace(View(), {}, FACTS)
    view, attachments = View(), {}
    for _ in range(80):
        number, on = dice.randrange(6), dice.randrange(3)
        what = dice.randrange(6)
        change: tuple[str, str, Any]
        if what == 0:
            change = ("network", uuid(on), network(on, mtu=dice.choice([1400, 1450])))
        elif what == 1:
            change = ("network", uuid(on), None)
        elif what == 2:
            change = ("port", uuid(number, 1), port(number, on))
        elif what == 3:
            item = endpoint(number, on, dice.choice([None, "192.0.2.2", "192.0.2.3"]))
            change = ("endpoint", item.id, item)
        elif what == 4:
            change = (dice.choice(["port", "endpoint"]), uuid(number, 1), None)
        else:
            attachments = {uuid(number, 1): Attachment(uuid(number, 1), f"vm{number}")}
            compiler.attach(attachments)
            continue
        kind, object_id, item = change
        compiler.update([change])
        if item is None:
            view.delete(kind, object_id)
        else:
            view.put(item)
        assert compiler.desired.objects == compile_view(view, FACTS, attachments).objects
        assert compiler.desired.failures == compile_view(view, FACTS, attachments).failures


def test_a_plan_is_empty_once_it_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learnt of an applied plan leaves nothing to do, in full and for single keys."""
    monkeypatch.setattr(kernel, "run", lambda *_: (0, "", ""))
    monkeypatch.setattr(kernel, "write_sysctl", lambda *_: None)
    monkeypatch.setattr(applier.netlink, "bring_up", lambda links: [None] * len(links))
    view = view_of(network(1), port(1, 1), endpoint(2, 1, "192.0.2.2"))
    attachments = {uuid(1, 1): Attachment(uuid(1, 1), "vm1")}
    wanted = compile_view(view, FACTS, attachments).objects
    actual = Actual(
        namespaces={"vm1"}, links={"": {}}, addresses={"": set()}, routes={"": {}},
        forwarding={"": set()}, neighbours={"": {}},
    )  # fmt: skip
    todo = plan.everything(wanted, actual)
    assert todo.operations[0].program == "nft"
    assert applier.carry_out(todo) == {}
    applier.learn(actual, wanted, wanted, ())
    actual.tables[""] = {"inet mooring_underlay vni_11"}
    assert plan.everything(wanted, actual, reload=False).operations == []
    again = plan.changes(wanted, wanted, wanted, actual).operations
    assert {each.program for each in again} <= {"nft"}


def test_each_program_that_fails_leaves_other_owners_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ip, bridge, nft and sysctl each made to fail for one port: the other one is complete."""
    view = view_of(network(1), port(1, 1), port(2, 1))
    attachments = {uuid(n, 1): Attachment(uuid(n, 1), f"vm{n}") for n in (1, 2)}
    wanted = compile_view(view, FACTS, attachments).objects
    actual = Actual(namespaces={"vm1", "vm2"}, links={"": {}})
    bad, good = f"tap{uuid(1, 1)[:11]}", f"tap{uuid(2, 1)[:11]}"
    done: list[str] = []

    def run(command: Any, text: str = "") -> tuple[int, str, str]:
        complaints = ""
        for number, line in enumerate(text.splitlines(), 1):
            if bad in line and "-batch" in command:
                complaints += f"Error: injected.\nCommand failed -:{number}\n"
            else:
                done.append(line)
        return (1 if complaints else 0), "", complaints

    monkeypatch.setattr(kernel, "run", run)
    monkeypatch.setattr(kernel, "write_sysctl", lambda *_: None)
    monkeypatch.setattr(applier.netlink, "bring_up", lambda links: [None] * len(links))
    failures = applier.carry_out(plan.everything(wanted, actual))
    assert set(failures) == {("port", uuid(1, 1))}
    assert "injected" in failures[("port", uuid(1, 1))]
    assert any(line.startswith(f"link add {good} ") for line in done)
    assert any(line.startswith(f"link set dev {good} ") and "up" in line for line in done)
    assert not any(bad in line for line in done)


def test_a_missing_namespace_is_that_port_s_failure_alone() -> None:
    """It is named; nothing is tried for that port."""
    view = view_of(network(1), port(1, 1))
    attachments = {uuid(1, 1): Attachment(uuid(1, 1), "nowhere")}
    wanted = compile_view(view, FACTS, attachments).objects
    todo = plan.everything(wanted, Actual(links={"": {}}))
    assert todo.failures == {("port", uuid(1, 1)): "there is no namespace nowhere"}
    assert not [each for each in todo.operations if each.owner[0] == "port"]


def test_many_links_are_removed_by_their_group() -> None:
    """One by one 1,000 of them would take 19 s."""
    links = {
        f"tap{uuid(n, 1)[:11]}": {"ifname": f"tap{uuid(n, 1)[:11]}", "group": "19712"}
        for n in range(50)
    }
    links["eth0"] = {"ifname": "eth0", "group": "default"}
    todo = plan.everything({}, Actual(links={"": links}))
    assert [each.text for each in todo.operations if "link del" in each.text] == [
        f"link del group {plan.GROUP_REMOVED}"
    ]
    assert not any("eth0" in each.text for each in todo.operations)


def test_state_survives_and_a_broken_file_is_none(tmp_path: Any) -> None:
    """View, token and attachments come back; what cannot be read counts as not there."""
    state = State(tmp_path / "state")
    state.prepare()
    assert state.load() is None
    view = view_of(network(1), port(1, 1))
    state.keep("a.1.b", view)
    kept = state.load()
    assert kept is not None
    assert (kept[0], kept[1].to_json()) == ("a.1.b", view.to_json())
    state.attach(Attachment(uuid(1, 1), "vm1", "eth0", True))
    assert state.attachments() == {uuid(1, 1): Attachment(uuid(1, 1), "vm1", "eth0", True)}
    (tmp_path / "state" / "attachments" / "x.json").write_text('{"port_id": "../x"}')
    assert len(state.attachments()) == 1
    assert state.detach(uuid(1, 1))
    assert not state.detach(uuid(1, 1))
    (tmp_path / "state" / "view.json").write_text("{")
    assert state.load() is None
