"""The agent: what it wants from what the controllers say, and its configuration."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from services.core.config import ConfigError
from services.hostnet.agent import config
from services.hostnet.agent.haproxy import NetworkPath
from services.hostnet.agent.main import main, wanted


def instance(number: int, network: str, *addresses: str) -> Mapping[str, Any]:
    fixed = [{"ip_address": address, "floating_ip_address": None} for address in addresses]
    return {
        "id": f"instance-{number}",
        "project_id": "p",
        "interfaces": [{"network_id": network, "subnets": [{"addresses": fixed}]}],
    }


def test_each_address_is_an_identity_of_its_network() -> None:
    """Equal addresses of different networks are different instances, each in its namespace."""
    found = wanted(
        iter([instance(1, "red", "10.1.0.4", "10.1.0.5"), instance(2, "blue", "10.1.0.4")]),
        {"red": "ns-red", "own": ""},
    )
    assert found.identities == {
        "red": {"10.1.0.4": ("instance-1", "p"), "10.1.0.5": ("instance-1", "p")},
        "blue": {"10.1.0.4": ("instance-2", "p")},
    }
    assert found.networks == (NetworkPath("blue", "qdhcp-blue"), NetworkPath("red", "ns-red"))
    assert found.left_out == {}


def test_an_empty_namespace_is_the_host_s_own() -> None:
    """A flat network of the host needs no namespace."""
    found = wanted(iter([instance(1, "flat", "10.1.0.4")]), {"flat": ""})
    assert found.networks == (NetworkPath("flat", None),)


def test_a_network_that_cannot_be_served_leaves_the_others() -> None:
    """One bad name is left out and said; every other network is served."""
    found = wanted(
        iter([instance(1, "good", "10.1.0.4"), instance(2, "bad", "10.1.0.4")]), {"bad": "a b"}
    )
    assert [network.id for network in found.networks] == ["good"]
    assert list(found.identities) == ["good"]
    assert list(found.left_out) == ["bad"]


def test_an_address_that_cannot_be_served_leaves_the_others() -> None:
    """Operators may say `::5`, which HAProxy and Python may write differently: it is left out."""
    found = wanted(iter([instance(1, "red", "::5", "fd00::5"), instance(2, "red", "10.1.0.4")]), {})
    assert found.identities == {
        "red": {"fd00::5": ("instance-1", "p"), "10.1.0.4": ("instance-2", "p")}
    }
    assert [network.id for network in found.networks] == ["red"]
    assert list(found.left_out) == ["red/::5"]


def test_of_two_networks_in_one_namespace_one_is_served() -> None:
    """The same address cannot be bound twice: the second is left out and said."""
    found = wanted(
        iter([instance(1, "blue", "10.1.0.4"), instance(2, "red", "10.1.0.4")]),
        {"blue": "", "red": ""},
    )
    assert found.networks == (NetworkPath("blue", None),)
    assert list(found.identities) == ["blue"]
    assert list(found.left_out) == ["red"]


def write(tmp_path: Path, **changes: str) -> Path:
    key = tmp_path / "key"
    key.write_bytes(base64.b64encode(b"k" * 32))
    key.chmod(0o600)
    values = {
        "host": "host-1",
        "api_url": "https://c:8774",
        "controllers": "192.0.2.1:8775/c.example,[2001:db8::1]:8775/d.example",
        "host_key_file": str(key),
        "ca_file": str(tmp_path / "none.crt"),
        **changes,
    }
    path = tmp_path / "agent.conf"
    path.write_text("[agent]\n" + "".join(f"{k} = {v}\n" for k, v in values.items() if v))
    return path


def test_controllers_are_read(tmp_path: Path) -> None:
    """IPv4 and IPv6 controllers with the names of their certificates."""
    path = config.metadata_path(config.read(write(tmp_path)))
    assert [(c.address, c.port, c.server_name) for c in path.controllers] == [
        ("192.0.2.1", 8775, "c.example"),
        ("2001:db8::1", 8775, "d.example"),
    ]
    assert path.host_key == b"k" * 32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host": ""}, "value required for option host"),
        ({"controllers": "somewhere"}, "'somewhere' is not ADDRESS:PORT/NAME"),
        ({"controllers": "192.0.2.300:1/x"}, "192.0.2.300"),
        ({"host": "no host"}, "host"),
        ({"api_url": "http://c"}, "api_url"),
        ({"poll_second": "1"}, "unknown option poll_second in [agent] (is poll_seconds meant?)"),
        ({"host_key_file": "/nonexistent"}, "host_key_file /nonexistent"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    """The agent does not start with a value that it cannot use, and names it."""
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as refused:
        config.metadata_path(config.read(path))
    assert says in str(refused.value)


def test_a_signing_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Whoever reads the key can speak for every instance of the host."""
    path = write(tmp_path)
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="others can read it"):
        config.metadata_path(config.read(path))


def test_the_command_fails_with_one_line(tmp_path: Path) -> None:
    """No traceback: the line says which file is wrong."""
    result = CliRunner().invoke(main, ["--config", str(write(tmp_path)), "apply"])
    assert result.exit_code == 1
    assert "Error: ca_file or cert_file" in result.output
    assert len(result.output.strip().splitlines()) == 1
