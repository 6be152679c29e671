"""The real `openstack` command and openstacksdk against the network API, through NGINX."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest
from stand import Stand

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """A controller with its network service."""
    with Stand(network_service=True) as stand:
        pki = stand.etc / "pki"
        tenant = stand.hierarchy.issue_client("tina", ["mooring:project:red"])
        tenant.write(pki, "tenant")
        yield stand


@pytest.fixture(scope="module")
def client(stand: Stand) -> Any:
    """Runs the command; returns its JSON, or its complaint if it is to fail."""

    def run(*words: str, user: str = "admin", code: int = 0) -> Any:
        pki = stand.etc / "pki"
        shows = words[1] in ("create", "list", "show") or words[2:3] == ("list",)
        done = subprocess.run(
            [
                Path(sys.executable).with_name("openstack"),
                *("--os-auth-type", "none"),
                *("--os-endpoint", f"https://localhost:{stand.network_port}"),
                *("--os-cacert", pki / "root.crt"),
                *("--os-cert", pki / f"{user}.crt", "--os-key", pki / f"{user}.key"),
                *words,
                *(("-f", "json") if shows else ()),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=stand.environment(),
        )
        assert done.returncode == code, done.stderr
        if code:
            return done.stderr
        return json.loads(done.stdout) if shows else done.stdout

    return run


def test_networks_subnets_and_ports_by_the_command(client: Any) -> None:
    """Create, list, show, set and delete of each, as an operator types them."""
    network = client("network", "create", "blue", "--mtu", "1400")
    assert (network["name"], network["mtu"]) == ("blue", 1400)
    subnet = client(
        *("subnet", "create", "blues", "--network", "blue", "--subnet-range", "10.1.0.0/24"),
        *("--dns-nameserver", "192.0.2.53", "--gateway", "10.1.0.254"),
    )
    assert (subnet["gateway_ip"], subnet["dns_nameservers"]) == ("10.1.0.254", ["192.0.2.53"])
    port = client(
        "port", "create", "web", "--network", "blue", "--fixed-ip", "ip-address=10.1.0.50"
    )
    assert port["fixed_ips"][0]["ip_address"] == "10.1.0.50"
    client("port", "set", "web", "--device", "vm-1", "--tag", "front")
    shown = client("port", "show", "web")
    assert (shown["device_id"], shown["tags"]) == ("vm-1", ["front"])
    assert [p["Name"] for p in client("port", "list", "--network", "blue", "--tags", "front")] == [
        "web"
    ]
    client("network", "set", "blue", "--share", "--name", "azure")
    assert client("network", "show", "azure")["shared"] is True
    assert "in use" in client("network", "delete", "azure", code=1)
    client("port", "delete", "web")
    client("subnet", "delete", "blues")
    client("network", "delete", "azure")
    assert client("network", "list") == []
    assert "No Network found" in client("network", "show", "azure", code=1)


def test_agents_and_extensions_are_listed(client: Any) -> None:
    """What the command asks of a deployment."""
    assert client("network", "agent", "list") == []
    aliases = {each["Alias"] for each in client("extension", "list", "--network")}
    assert {"provider", "net-mtu", "agent", "standard-attr-tag"} <= aliases


def test_a_tenant_is_who_its_certificate_says(client: Any) -> None:
    """What a tenant makes is its project's; segments are not its business."""
    network = client("network", "create", "mine", user="tenant")
    assert network["project_id"] == "red"
    words = ("network", "create", "x", "--provider-network-type", "vxlan")
    assert "disallowed by policy" in client(*words, user="tenant", code=1)
    client("network", "delete", "mine", user="tenant")


@pytest.mark.filterwarnings("ignore")  # the SDK warns of what it will remove from itself
def test_the_sdk_finds_creates_and_pages(stand: Stand) -> None:
    """openstacksdk with a client certificate and no Keystone."""
    pki = stand.etc / "pki"
    connection = openstack.connect(
        auth_type="none",
        endpoint=f"https://localhost:{stand.network_port}",
        cacert=str(pki / "root.crt"),
        cert=str(pki / "admin.crt"),
        key=str(pki / "admin.key"),
    )
    with connection:
        made = [connection.network.create_network(name=f"n{number}") for number in range(5)]
        names = [network.name for network in connection.network.networks(limit=2)]
        assert names == ["n0", "n1", "n2", "n3", "n4"]
        found = connection.network.find_network("n3")
        assert found is not None
        assert found.id == made[3].id
        changed = connection.network.update_network(found, name="third", if_revision=0)
        assert changed.revision_number == 1
        for network in made:
            connection.network.delete_network(network)
