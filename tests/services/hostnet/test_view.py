"""The contract between controllers and agents."""

import json
from typing import Any

import pytest

from services.hostnet.view import KINDS, View, from_json, to_json, vteps

NET, SUBNET, PORT, OTHER, GROUP, ROUTER = (f"00000000-0000-4000-8000-{n:012x}" for n in range(6))
FIXED = [{"subnet_id": SUBNET, "ip": "10.1.0.4"}]

DOCUMENTS: dict[str, dict[str, Any]] = {
    "network": {
        "id": NET, "project_id": "red", "network_type": "vxlan", "physical_network": None,
        "segmentation_id": 10, "mtu": 1450, "admin_state_up": True, "external": False,
        "routed": False, "dns_domain": "example.org.",
        "subnets": [
            {"id": SUBNET, "cidr": "10.1.0.0/24", "gateway_ip": "10.1.0.1", "enable_dhcp": True,
             "ra_mode": None, "address_mode": None, "dns_nameservers": ["9.9.9.9"],
             "host_routes": [{"destination": "10.2.0.0/16", "nexthop": "10.1.0.9"}]},
        ],
        "dhcp": {"port_id": OTHER, "mac": "fa:16:3e:00:00:02", "fixed_ips": FIXED},
    },
    "port": {
        "id": PORT, "network_id": NET, "project_id": "red", "mac": "fa:16:3e:00:00:01",
        "fixed_ips": FIXED, "device_id": "i-1", "device_owner": "compute:nova", "host": "host-1",
        "next_host": None, "admin_state_up": True, "port_security": True,
        "allowed_pairs": [{"mac": "fa:16:3e:00:00:01", "cidr": "10.9.0.0/16"}],
        "security_groups": [GROUP],
        "dhcp_options": [{"name": "26", "value": "1400", "ip_version": 4}], "dns_name": "web1",
    },
    "endpoint": {
        "id": OTHER, "network_id": NET, "mac": "fa:16:3e:00:00:03", "fixed_ips": FIXED,
        "vtep": "192.0.2.2", "dns_name": None, "device_owner": "compute:nova",
    },
    "security_group": {
        "id": GROUP, "stateful": True,
        "rules": [
            {"id": OTHER, "direction": "ingress", "ethertype": "IPv4", "protocol": 6,
             "port_min": 22, "port_max": 22, "remote_cidr": "0.0.0.0/0", "remote_group": None},
        ],
    },
    "group_members": {"id": GROUP, "addresses": ["10.1.0.4/32"]},
    "router": {
        "id": ROUTER, "project_id": "red", "admin_state_up": True, "enable_snat": True,
        "gateway": {"port_id": OTHER, "network_id": NET, "mac": "fa:16:3e:00:00:04",
                    "fixed_ips": FIXED},
        "interfaces": [], "routes": [],
        "floating_ips": [{"id": OTHER, "floating_ip": "203.0.113.5", "fixed_ip": "10.1.0.4",
                          "port_id": PORT}],
    },
}  # fmt: skip


def test_every_kind_has_an_example() -> None:
    """The tests below speak of every kind."""
    assert set(DOCUMENTS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_objects_survive_the_wire(kind: str) -> None:
    """What is written is read back equal, and what a newer controller adds is left out."""
    item = from_json(kind, {**DOCUMENTS[kind], "of_the_future": 1})
    assert from_json(kind, json.loads(json.dumps(to_json(item)))) == item
    assert to_json(item) == DOCUMENTS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_member_is_named(kind: str) -> None:
    """Nothing has a default on the wire."""
    for name in DOCUMENTS[kind]:
        short = {key: value for key, value in DOCUMENTS[kind].items() if key != name}
        with pytest.raises(ValueError, match=rf"^{kind}\.{name}: is missing$"):
            from_json(kind, short)


BAD: list[tuple[str, str, Any]] = [
    ("port", "id", "../../etc"),
    ("port", "mac", "FA:16:3E:00:00:01"),
    ("port", "mac", "fa:16:3e:00:00:01\n"),
    ("port", "dns_name", "a b"),
    ("port", "host", "$(id)"),
    ("port", "device_id", "a\nb"),
    ("port", "admin_state_up", 1),
    ("port", "security_groups", "x"),
    ("endpoint", "vtep", "010.0.0.1"),
    ("endpoint", "vtep", "fe80::1%eth0"),
    ("network", "segmentation_id", 2**24),
    ("network", "segmentation_id", True),
    ("network", "network_type", "gre"),
    ("network", "physical_network", "eth0; reboot"),
    ("group_members", "addresses", ["10.0.0.1/8"]),
    ("router", "gateway", []),
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD)
def test_what_does_not_fit_is_refused(kind: str, name: str, value: Any) -> None:
    """The agent believes nobody: a value that fails its pattern is named and goes no further."""
    with pytest.raises(ValueError, match=rf"^{kind}\.{name}"):
        from_json(kind, {**DOCUMENTS[kind], name: value})


def test_a_view_is_its_objects() -> None:
    """Changes in their order; a port is local or elsewhere; a network takes what is on it along."""
    view = View()
    for kind, document in DOCUMENTS.items():
        view.put(from_json(kind, document))
    assert View.from_json(json.loads(json.dumps(view.to_json()))).to_json() == view.to_json()
    assert vteps(view, NET) == ("192.0.2.2",)
    moved = from_json("endpoint", {**DOCUMENTS["endpoint"], "id": PORT, "vtep": "192.0.2.1"})
    view.put(moved)
    assert PORT not in view.ports
    assert vteps(view, NET) == ("192.0.2.1", "192.0.2.2")
    view.delete("network", NET)
    view.delete("port", PORT)
    assert not view.networks
    assert not view.endpoints
    assert set(view.security_groups) == {GROUP}


def test_changes_apply_in_order_and_leave_nothing_unused() -> None:
    """A host keeps the groups of its ports and the members that their rules name, nothing else."""
    view = View()
    rule = {**DOCUMENTS["security_group"]["rules"][0], "remote_cidr": None, "remote_group": OTHER}
    used = {**DOCUMENTS["security_group"], "rules": [rule]}
    puts = [
        ("network", DOCUMENTS["network"]),
        ("port", DOCUMENTS["port"]),
        ("security_group", used),
        ("group_members", {"id": OTHER, "addresses": []}),
        ("group_members", {"id": GROUP, "addresses": []}),
        ("of_the_future", {"id": "?"}),
    ]
    view.apply([{"kind": k, "id": o["id"], "op": "put", "object": o} for k, o in puts])
    assert set(view.security_groups) == {GROUP}
    assert set(view.group_members) == {OTHER}
    view.apply([{"kind": "port", "id": PORT, "op": "delete"}])
    assert not view.security_groups
    assert not view.group_members
    assert set(view.networks) == {NET}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": "port", "id": "x", "op": "delete"}, r"changes\[1\].id"),
        ({"kind": "port", "id": PORT, "op": "drop"}, r"changes\[1\].op"),
        ({"kind": "port", "id": PORT, "op": "put"}, r"port.id"),
        (
            {"kind": "port", "id": OTHER, "op": "put", "object": DOCUMENTS["port"]},
            r"changes\[1\].id",
        ),
    ],
)
def test_a_bad_change_changes_nothing(change: dict[str, Any], field: str) -> None:
    """An answer is applied whole or not at all."""
    view = View()
    view.put(from_json("network", DOCUMENTS["network"]))
    with pytest.raises(ValueError, match=rf"^{field}"):
        view.apply([{"kind": "network", "id": NET, "op": "delete"}, change])
    assert set(view.networks) == {NET}
