"""The instance model: defaults, what no schema can say, and the way back to a document."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metadata.model import USER_DATA_LIMIT, Instance, Invalid, hostname_of
from services.metadata.validation import parse, pointer

ONE = "11111111-1111-4111-8111-111111111111"
PORT = "aaaaaaaa-0000-4000-8000-00000000000{}"
MAC = "fa:16:3e:00:00:0{}"

WHOLE: dict[str, Any] = {
    "id": ONE,
    "project_id": "p1",
    "name": "Wéb 1",
    "hostname": "web.example",
    "host": "node-1",
    "next_host": "node-2",
    "instance_type": "m1.small",
    "image_id": "img",
    "kernel_id": "aki",
    "ramdisk_id": "ari",
    "reservation_id": "r-1",
    "availability_zone": "z1",
    "launch_index": 3,
    "keys": [
        {"name": "k", "type": "x509", "data": "PEM"},
        {"name": "l", "type": "ssh", "data": "s"},
    ],
    "properties": {"b": "2", "a": "1"},
    "tags": {"t": ""},
    "user_data": base64.b64encode(bytes(range(256))).decode(),
    "vendor_data": {"x": [1, None, {"y": 1.5}]},
    "security_groups": ["b", "a"],
    "block_device_mapping": {"root": "/dev/vda"},
    "dedicated_cpus": [1, 3],
    "devices": [
        {
            "type": "nic",
            "bus": "pci",
            "address": "0000:00:02.0",
            "tags": ["a"],
            "vf_trusted": True,
            "mac": MAC.format(1),
            "vlan": 7,
        },
        {
            "type": "disk",
            "bus": "none",
            "address": "none",
            "tags": [],
            "vf_trusted": False,
            "serial": "s",
            "path": "/dev/vda",
        },
        {
            "type": "share",
            "bus": "none",
            "address": "none",
            "tags": [],
            "vf_trusted": False,
            "share_id": "sh",
            "tag": "t",
        },
    ],
    "options": {
        "http_endpoint": "disabled",
        "http_tokens": "required",
        "http_put_response_hop_limit": 64,
        "instance_metadata_tags": "enabled",
    },
    "interfaces": [
        {
            "id": PORT.format(number),
            "network_id": "net-1",
            "mac": MAC.format(number),
            "name": f"tap{number}",
            "type": "phy",
            "mtu": 1450,
            "security_groups": ["default"],
            "subnets": [
                {
                    "id": "sub",
                    "cidr": "10.1.0.0/24",
                    "gateway_ip": "10.1.0.1",
                    "dns_nameservers": ["10.1.0.2", "2001:db8::2"],
                    "host_routes": [{"destination": "10.2.0.0/16", "nexthop": "10.1.0.9"}],
                    "enable_dhcp": False,
                    "ipv6_address_mode": None,
                    "addresses": [
                        {
                            "ip_address": f"10.1.0.{number + 3}",
                            "floating_ip_address": "198.51.100.7",
                        },
                        {"ip_address": f"10.1.0.{number + 103}", "floating_ip_address": None},
                    ],
                },
                {
                    "id": "sub6",
                    "cidr": "2001:db8::/64",
                    "gateway_ip": "fe80::1",
                    "dns_nameservers": [],
                    "host_routes": [],
                    "enable_dhcp": True,
                    "ipv6_address_mode": "slaac",
                    "addresses": [],
                },
            ],
        }
        for number in (1, 2)
    ]
    + [
        {
            "id": PORT.format(3),
            "network_id": "net-1",
            "mac": MAC.format(1),
            "name": "bond0",
            "type": "bond",
            "mtu": None,
            "security_groups": [],
            "subnets": [],
            "bond": {
                "mode": "802.3ad",
                "links": [PORT.format(1), PORT.format(2)],
                "xmit_hash_policy": "layer3+4",
                "miimon": 100,
            },
        },
        {
            "id": PORT.format(4),
            "network_id": "net-2",
            "mac": MAC.format(1),
            "name": "vlan7",
            "type": "vlan",
            "mtu": None,
            "security_groups": [],
            "subnets": [],
            "vlan": {"id": 7, "link": PORT.format(3)},
        },
    ],
}


def test_a_complete_document_comes_back_as_it_went_in() -> None:
    """Every field survives the way through the model unchanged."""
    assert parse(WHOLE).to_document() == WHOLE


def test_defaults_are_written_out_once_and_stay() -> None:
    """What a minimal document leaves out is filled in, the same for the same document."""
    minimal = {
        "id": ONE,
        "project_id": "p1",
        "name": "Web 1",
        "interfaces": [{"network_id": "n", "mac": MAC.format(1), "subnets": [{"cidr": "::/64"}]}],
    }
    instance = parse(minimal)
    assert instance == parse(minimal)
    document = instance.to_document()
    assert document["hostname"] == "web-1"
    assert document["reservation_id"] == "r-11111111"
    assert document["options"] == {
        "http_endpoint": "enabled",
        "http_tokens": "optional",
        "http_put_response_hop_limit": 1,
        "instance_metadata_tags": "disabled",
    }
    (interface,) = document["interfaces"]
    assert interface["name"] == "tap" + interface["id"][:11]
    assert (interface["type"], interface["mtu"]) == ("phy", None)
    assert interface["subnets"][0]["enable_dhcp"] is True
    assert parse(document) == instance
    del minimal["id"]
    assert parse(minimal).id != parse(minimal).id


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("Web 1", "web-1"),
        ("-a.b_c-", "a-b-c"),
        ("ÄÖ", "instance"),
        ("x" * 70, "x" * 63),
        ("a" * 62 + " b", "a" * 62),
        ("٣", "instance"),
    ],
)
def test_a_host_name_is_made_of_a_name(name: str, hostname: str) -> None:
    """Whatever the display name, the host name is one label by RFC 1123."""
    assert hostname_of(name) == hostname


@given(st.text(min_size=1, max_size=255))
def test_any_name_makes_a_host_name_that_the_schema_takes(name: str) -> None:
    """The made host name is never refused by our own schema."""
    parse({"project_id": "p", "name": "n", "hostname": hostname_of(name)})


def damaged(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The whole document with one value replaced, or removed if it is ``...``."""
    document: dict[str, Any] = json.loads(json.dumps(WHOLE))
    holder: Any = document
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return document


SUBNET = ("interfaces", 0, "subnets", 0)
SUBNET6 = ("interfaces", 0, "subnets", 1)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ((*SUBNET, "cidr"), "10.1.0.4/24", "/interfaces/0/subnets/0/cidr"),
        ((*SUBNET, "cidr"), "x", "/interfaces/0/subnets/0/cidr"),
        ((*SUBNET, "gateway_ip"), "fe80::1", "/interfaces/0/subnets/0/gateway_ip"),
        ((*SUBNET6, "gateway_ip"), "fe80::1%eth0", "/interfaces/0/subnets/1/gateway_ip"),
        ((*SUBNET, "dns_nameservers", 1), "dns", "/interfaces/0/subnets/0/dns_nameservers/1"),
        ((*SUBNET, "ipv6_address_mode"), "slaac", "/interfaces/0/subnets/0/ipv6_address_mode"),
        (
            (*SUBNET, "addresses", 0, "ip_address"),
            "10.2.0.4",
            "/interfaces/0/subnets/0/addresses/0/ip_address",
        ),
        (
            (*SUBNET, "addresses", 1, "ip_address"),
            "10.1.0.4",
            "/interfaces/0/subnets/0/addresses/1/ip_address",
        ),
        (
            (*SUBNET, "addresses", 0, "floating_ip_address"),
            "x",
            "/interfaces/0/subnets/0/addresses/0/floating_ip_address",
        ),
        (
            (*SUBNET, "host_routes", 0, "nexthop"),
            "fe80::1",
            "/interfaces/0/subnets/0/host_routes/0",
        ),
        (
            (*SUBNET, "host_routes", 0, "destination"),
            "10.2.0.1/16",
            "/interfaces/0/subnets/0/host_routes/0/destination",
        ),
        (("interfaces", 1, "id"), PORT.format(1), "/interfaces/1/id"),
        (("interfaces", 1, "mac"), MAC.format(1), "/interfaces/1/mac"),
        (("interfaces", 2, "bond"), ..., "/interfaces/2/bond"),
        (("interfaces", 2, "type"), "phy", "/interfaces/2/bond"),
        (("interfaces", 2, "bond", "links", 1), PORT.format(9), "/interfaces/2/bond/links/1"),
        (("interfaces", 2, "bond", "links", 1), PORT.format(4), "/interfaces/2/bond/links/1"),
        (("interfaces", 3, "vlan"), ..., "/interfaces/3/vlan"),
        (("interfaces", 3, "vlan", "link"), PORT.format(4), "/interfaces/3/vlan/link"),
        (("keys", 1, "name"), "k", "/keys/1/name"),
        (("user_data",), "A", "/user_data"),
        (("user_data",), "AAAA\n", "/user_data"),
        (
            ("user_data",),
            base64.b64encode(b"x" * (USER_DATA_LIMIT + 1)).decode(),
            "/user_data",
        ),
    ],
)
def test_what_no_schema_can_say_is_checked(
    path: tuple[str | int, ...], value: Any, field: str
) -> None:
    """Addresses outside their subnet, doubles, bonds of nothing: refused with the field."""
    with pytest.raises(Invalid) as caught:
        parse(damaged(path, value))
    assert caught.value.field == field


def strings(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The places of all strings in a document."""
    if isinstance(value, str):
        return [path]
    if not isinstance(value, dict | list):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for name, inner in items for place in strings(inner, (*path, name))]


FREE = {"data", "a", "b", "t"}
"""Names whose values are text of any characters: keys, properties, tags."""


@pytest.mark.parametrize(
    "path",
    [path for path in strings(WHOLE) if path[-1] not in FREE],
    ids=lambda path: pointer(*path),
)
def test_no_field_that_goes_into_a_header_ends_in_a_newline(path: tuple[str | int, ...]) -> None:
    """Python's $ matches before a final newline; what we check by pattern must not."""
    value: Any = WHOLE
    for step in path:
        value = value[step]
    with pytest.raises(Invalid):
        parse(damaged(path, value + "\n"))


def test_user_data_may_be_as_large_as_it_says() -> None:
    """The limit itself is allowed, and empty user data is none."""
    data = base64.b64encode(b"x" * USER_DATA_LIMIT).decode()
    instance = parse({**WHOLE, "user_data": data})
    assert len(instance.user_data or b"") == USER_DATA_LIMIT
    assert parse({**WHOLE, "user_data": ""}).user_data is None


def test_an_instance_is_a_value() -> None:
    """Instances compare by content and cannot be changed."""
    one = Instance.from_document(WHOLE)
    assert one == Instance.from_document(WHOLE)
    with pytest.raises(AttributeError):
        one.name = "x"  # type: ignore[misc]
