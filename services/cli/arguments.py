"""Command-line arguments of instances, turned into the members of their document. No I/O but files.

What is wrong with an argument raises click.BadParameter, which names the option and exits with 2.
"""

import base64
import json
import sys
from collections.abc import Callable, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

USER_DATA_LIMIT = 64 * 1024
"""Bytes of user data; the server has the same limit, this one answers before anything is sent."""

_T = TypeVar("_T")

_NIC_TEXTS = {"network": "network_id", "mac": "mac", "id": "id", "name": "name", "type": "type"}
_NIC_NAMES = (*_NIC_TEXTS, "mtu", "group", "address", "floating", "gateway", "dns", "dhcp")


def checked(function: Callable[[str], _T]) -> Callable[[str], _T]:
    """A click type made of a function from text to value; its ValueError is the user's mistake."""

    def convert(text: str) -> _T:
        try:
            return function(text)
        except ValueError as error:
            raise click.BadParameter(f"{text}: {error}") from None

    return convert


def pair(text: str) -> tuple[str, str]:
    """``KEY=VALUE``; the value may be empty and hold further equals signs."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError("is not KEY=VALUE")
    return name, value


def option(text: str) -> tuple[str, str | int]:
    """``NAME=VALUE`` of an access option; a number where the API wants one."""
    name, value = pair(text)
    return name, int(value) if value.isascii() and value.isdigit() and len(value) < 6 else value


def key(text: str) -> dict[str, str]:
    """``[NAME=]FILE``: a public SSH key or an X.509 certificate; NAME defaults to the file's."""
    name, equals, file = text.partition("=")
    if not equals:
        name, file = "", text
    path = Path(file).expanduser()
    data = _read(path)
    if "PRIVATE KEY" in data:
        raise ValueError("holds a private key: give the public one")
    data = data.strip()
    certificate = data.startswith("-----BEGIN CERTIFICATE-----")
    if not data:
        raise ValueError("is empty")
    if not certificate and len(data.splitlines()) > 1:
        raise ValueError("holds more than one line: give one key a file")
    return {
        "name": name or path.name.removesuffix(".pub"),
        "type": "x509" if certificate else "ssh",
        "data": data,
    }


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a file, ``-`` for standard input."""
    try:
        value = json.loads(sys.stdin.read() if text == "-" else _read(Path(text)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 - the text is wrong, not a type
    return value


def nic(text: str) -> dict[str, Any]:
    """``network=ID,mac=MAC[,address=10.1.0.4/24][,gateway=..][,dns=..]...``: one interface.

    ``address``, ``gateway``, ``dns`` and ``group`` may be repeated; ``floating`` belongs to the
    address before it. A gateway or DNS server goes to the first subnet of its family.
    """
    interface: dict[str, Any] = {}
    addresses: list[tuple[IPv4Interface | IPv6Interface, dict[str, str]]] = []
    gateways: list[str] = []
    servers: list[str] = []
    dhcp: bool | None = None
    for part in text.split(","):
        name, value = pair(part)
        if name not in _NIC_NAMES:
            raise ValueError(f"{name} is not one of {', '.join(_NIC_NAMES)}")
        if name in _NIC_TEXTS:
            interface[_NIC_TEXTS[name]] = value
        elif name == "mtu":
            interface["mtu"] = int(value)
        elif name == "group":
            interface.setdefault("security_groups", []).append(value)
        elif name == "address":
            if "/" not in value:
                raise ValueError(f"address={value} needs the length of its network, as in /24")
            found = ip_interface(value)
            addresses.append((found, {"ip_address": str(found.ip)}))
        elif name == "floating":
            if not addresses:
                raise ValueError("floating belongs after its address")
            addresses[-1][1]["floating_ip_address"] = str(ip_address(value))
        elif name == "gateway":
            gateways.append(str(ip_address(value)))
        elif name == "dns":
            servers.append(str(ip_address(value)))
        else:
            if value not in ("yes", "no"):
                raise ValueError("dhcp is yes or no")
            dhcp = value == "yes"
    for needed in ("network", "mac"):
        if _NIC_TEXTS[needed] not in interface:
            raise ValueError(f"{needed}= is missing")
    interface["mac"] = interface["mac"].lower().replace("-", ":")
    subnets: dict[str, dict[str, Any]] = {}
    for found, address in addresses:
        cidr = str(found.network)
        subnets.setdefault(cidr, {"cidr": cidr, "addresses": []})["addresses"].append(address)
    for gateway in gateways:
        _subnet_for(subnets, gateway)["gateway_ip"] = gateway
    for server in servers:
        _subnet_for(subnets, server).setdefault("dns_nameservers", []).append(server)
    for subnet in subnets.values():
        if dhcp is not None:
            subnet["enable_dhcp"] = dhcp
    if subnets:
        interface["subnets"] = list(subnets.values())
    return interface


def user_data(file: BinaryIO) -> str:
    """Base64 of the file's bytes; raises click.BadParameter if there are too many."""
    data = file.read(USER_DATA_LIMIT + 1)
    if len(data) > USER_DATA_LIMIT:
        raise click.BadParameter(f"has more than {USER_DATA_LIMIT} bytes", param_hint="--user-data")
    return base64.b64encode(data).decode()


def put_items(items: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]], name: str) -> Any:
    """The list with new items in it; one with the same ``name`` member is replaced in place."""
    result = {item.get(name, index): item for index, item in enumerate(items)}
    result.update((item[name], item) for item in new)
    return list(result.values())


def _subnet_for(subnets: dict[str, dict[str, Any]], address: str) -> dict[str, Any]:
    family = ip_address(address).version
    for cidr, subnet in subnets.items():
        if ip_interface(cidr).version == family:
            return subnet
    raise ValueError(f"{address} needs an address= of its family")


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8") from None
