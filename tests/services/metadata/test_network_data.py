"""network_data.json: what is written for each kind of network, and that cloud-init reads it."""

import json
import subprocess
from pathlib import Path

import pytest

from services.metadata.network_data import network_data

ONE, TWO, BOND, VLAN = (f"{c * 8}-0000-4000-8000-000000000000" for c in "1234")
CLOUD_INIT = Path("/usr/lib/python3/dist-packages/cloudinit")

# The facts of Nova's doc/api_schemas/network_data.json (draft-07), in our own words.
MAC = {"type": "string", "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$"}
MTU = {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "maximum": 65535}]}
SERVICE = {
    "type": "object",
    "required": ["type", "address"],
    "properties": {"type": {"const": "dns"}, "address": {"type": "string"}},
}
ROUTE = {
    "type": "object",
    "required": ["network", "netmask", "gateway"],
    "additionalProperties": {"type": "string"},
}
LINK = {"id": {"type": "string"}, "vif_id": {"type": "string"}, "mtu": MTU}
NETWORK = {
    "id": {"type": "string"},
    "link": {"type": "string"},
    "network_id": {"type": "string"},
    "ip_address": {"type": "string"},
    "netmask": {"type": "string"},
    "routes": {"type": "array", "items": ROUTE},
    "services": {"type": "array", "items": SERVICE},
}
MODES = ["802.3ad", "balance-rr", "active-backup", "balance-xor", "broadcast", "balance-tlb"]
SCHEMA = {
    "type": "object",
    "required": ["links", "networks", "services"],
    "properties": {
        "services": {"type": "array", "items": SERVICE},
        "links": {
            "type": "array",
            "items": {
                "oneOf": [
                    {
                        "required": ["id", "type", "ethernet_mac_address"],
                        "properties": LINK
                        | {
                            "type": {"not": {"enum": ["bond", "vlan"]}},
                            "ethernet_mac_address": MAC,
                        },
                    },
                    {
                        "required": [
                            "id",
                            "type",
                            "ethernet_mac_address",
                            "bond_mode",
                            "bond_links",
                        ],
                        "properties": LINK
                        | {
                            "type": {"const": "bond"},
                            "ethernet_mac_address": MAC,
                            "bond_mode": {"enum": [*MODES, "balance-alb"]},
                            "bond_links": {"type": "array", "items": {"type": "string"}},
                        },
                    },
                    {
                        "required": ["id", "type", "vlan_mac_address", "vlan_link", "vlan_id"],
                        "properties": LINK
                        | {
                            "type": {"const": "vlan"},
                            "vlan_mac_address": MAC,
                            "vlan_link": {"type": "string"},
                            "vlan_id": {"type": "integer"},
                        },
                    },
                ]
            },
        },
        "networks": {
            "type": "array",
            "items": {
                "required": ["id", "link", "network_id", "type"],
                "properties": NETWORK
                | {"type": {"enum": ["ipv4", "ipv4_dhcp", "ipv6", "ipv6_dhcp", "ipv6_slaac"]}},
            },
        },
    },
}


def subnet(cidr, *addresses, **more):
    return {"cidr": cidr, "addresses": [{"ip_address": a} for a in addresses], **more}


def interface(*subnets, **more):
    return {"id": ONE, "network_id": "n", "mac": "fa:16:3e:00:00:01", "name": "tap1"} | more | {
        "subnets": list(subnets)
    }  # fmt: skip


def plain(document):
    """The networks without what only names them."""
    return [
        {k: v for k, v in network.items() if k not in ("id", "link", "network_id")}
        for network in document["networks"]
    ]


STATIC4 = subnet(
    "10.1.0.0/24",
    "10.1.0.4",
    "10.1.0.5",
    gateway_ip="10.1.0.1",
    enable_dhcp=False,
    dns_nameservers=["192.0.2.53"],
    host_routes=[{"destination": "10.9.0.0/16", "nexthop": "10.1.0.2"}],
)
DNS = [{"type": "dns", "address": "192.0.2.53"}]
DEFAULT4 = {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"}


def bonded():
    return [
        interface(id=ONE, mac="fa:16:3e:00:00:01", name="tap1"),
        interface(id=TWO, mac="fa:16:3e:00:00:02", name="tap2"),
        interface(
            STATIC4,
            id=BOND,
            name="bond0",
            type="bond",
            mtu=9000,
            bond={
                "mode": "802.3ad",
                "links": [ONE, TWO],
                "xmit_hash_policy": "layer3+4",
                "miimon": 100,
            },
        ),
        interface(
            subnet("10.5.0.0/24", "10.5.0.9", enable_dhcp=False),
            id=VLAN,
            network_id="v",
            name="vlan5",
            type="vlan",
            vlan={"id": 5, "link": BOND},
        ),
    ]


def test_static_subnet_with_two_addresses(instance_of):
    """The first address carries routes and DNS, the further ones only themselves."""
    document = network_data(instance_of(interfaces=[interface(STATIC4, type="ovs", mtu=1450)]))
    assert document["links"] == [
        {
            "id": "tap1",
            "vif_id": ONE,
            "type": "ovs",
            "mtu": 1450,
            "ethernet_mac_address": "fa:16:3e:00:00:01",
        }
    ]
    assert document["services"] == DNS
    assert document["networks"] == [
        {
            "id": "network0",
            "type": "ipv4",
            "link": "tap1",
            "ip_address": "10.1.0.4",
            "netmask": "255.255.255.0",
            "routes": [
                DEFAULT4,
                {"network": "10.9.0.0", "netmask": "255.255.0.0", "gateway": "10.1.0.2"},
            ],
            "network_id": "n",
            "services": DNS,
        },
        {
            "id": "network1",
            "type": "ipv4",
            "link": "tap1",
            "ip_address": "10.1.0.5",
            "netmask": "255.255.255.0",
            "routes": [],
            "network_id": "n",
            "services": [],
        },
    ]


def test_dhcp_is_asked_once_and_further_addresses_are_static(instance_of):
    """A client gets one lease; what the lease does not bring is told."""
    subnets = [
        subnet("10.1.0.0/24"),
        subnet("10.2.0.0/24", "10.2.0.4", "10.2.0.5", gateway_ip="10.2.0.1"),
        subnet("10.3.0.0/24", "10.3.0.4", gateway_ip="10.3.0.1"),
        subnet("10.4.0.0/24", "10.4.0.4", gateway_ip="10.4.0.1", enable_dhcp=False),
    ]
    networks = plain(network_data(instance_of(interfaces=[interface(*subnets)])))
    assert networks[0] == {"type": "ipv4_dhcp"}
    assert [(n["ip_address"], n["routes"]) for n in networks[1:]] == [
        ("10.2.0.5", []),
        ("10.3.0.4", []),
        ("10.4.0.4", []),
    ]


@pytest.mark.parametrize("mode", ["slaac", "dhcpv6-stateful", "dhcpv6-stateless"])
def test_ipv6_address_modes(instance_of, mode):
    """The type names the mode, the address and the default route are told as Nova tells them."""
    given = subnet("2001:db8::/64", "2001:db8::4", gateway_ip="2001:db8::1", ipv6_address_mode=mode)
    (network,) = plain(network_data(instance_of(interfaces=[interface(given)])))
    assert network == {
        "type": f"ipv6_{mode}",
        "ip_address": "2001:db8::4",
        "netmask": "ffff:ffff:ffff:ffff::",
        "routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8::1"}],
        "services": [],
    }


def test_ipv6_static_dhcp_and_slaac_without_an_address(instance_of):
    """The other three kinds."""
    static = subnet("2001:db8:1::/64", "2001:db8:1::4", enable_dhcp=False)
    dhcp = subnet("2001:db8:2::/64", "2001:db8:2::4")
    own = subnet("2001:db8:3::/64", ipv6_address_mode="slaac")
    networks = plain(network_data(instance_of(interfaces=[interface(static, dhcp, own)])))
    assert [network["type"] for network in networks] == ["ipv6", "ipv6_dhcp", "ipv6_slaac"]
    assert networks[0]["ip_address"] == "2001:db8:1::4"
    assert networks[1] == {"type": "ipv6_dhcp"}
    assert "ip_address" not in networks[2]


def test_bond_and_vlan_links(instance_of):
    """Both name the links they stand on by the ids of the same document."""
    document = network_data(instance_of(interfaces=bonded()))
    assert document["links"][2:] == [
        {
            "id": "bond0",
            "vif_id": BOND,
            "type": "bond",
            "mtu": 9000,
            "ethernet_mac_address": "fa:16:3e:00:00:01",
            "bond_mode": "802.3ad",
            "bond_links": ["tap1", "tap2"],
            "bond_xmit_hash_policy": "layer3+4",
            "bond_miimon": 100,
        },
        {
            "id": "vlan5",
            "vif_id": VLAN,
            "type": "vlan",
            "mtu": None,
            "vlan_mac_address": "fa:16:3e:00:00:01",
            "vlan_link": "bond0",
            "vlan_id": 5,
        },
    ]


def test_link_ids_are_unique_whatever_the_names_are(instance_of):
    """Two devices of one name (on different hosts, say) are told apart."""
    interfaces = [
        interface(id=ONE, mac="fa:16:3e:00:00:01", name="interface1"),
        interface(id=TWO, mac="fa:16:3e:00:00:02", name="interface1"),
        interface(id=BOND, mac="fa:16:3e:00:00:03", name="interface1"),
    ]
    links = network_data(instance_of(interfaces=interfaces))["links"]
    assert [link["id"] for link in links] == [
        "interface1",
        f"interface1-{TWO}",
        f"interface1-{BOND}",
    ]


def test_nova_tells_the_first_subnet_of_each_family(instance_of):
    """With nova_compatible there is Nova's limit, and no MTU where DHCP tells it."""
    subnets = [STATIC4, subnet("10.3.0.0/24", "10.3.0.4"), subnet("2001:db8::/64", "2001:db8::4")]
    given = instance_of(interfaces=[interface(*subnets, mtu=1450)])
    document = network_data(given, nova_compatible=True)
    assert [network["type"] for network in document["networks"]] == ["ipv4", "ipv6_dhcp"]
    assert document["links"][0]["mtu"] is None


EVERYTHING = {
    "bond, vlan": bonded(),
    "static": [interface(STATIC4)],
    "dhcp": [interface(subnet("10.2.0.0/24", "10.2.0.4", "10.2.0.5", gateway_ip="10.2.0.1"))],
    "slaac": [interface(subnet("2001:db8::/64", "2001:db8::4", ipv6_address_mode="slaac"))],
    "static6": [interface(subnet("2001:db8::/64", "2001:db8::4", enable_dhcp=False))],
    "dhcp6": [interface(subnet("2001:db8::/64", "2001:db8::4"))],
    "link alone": [interface()],
}
DHCPV6 = {
    mode: [interface(subnet("2001:db8::/64", "2001:db8::4", ipv6_address_mode=mode))]
    for mode in ("dhcpv6-stateful", "dhcpv6-stateless")
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_document_fits_the_schema(instance_of, name):
    """All but the two dhcpv6 types, which Nova writes against its own schema, fit it."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator(SCHEMA).validate(
        network_data(instance_of(interfaces=EVERYTHING[name]))
    )


READER = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from cloudinit.sources.helpers.openstack import convert_net_json
from cloudinit.net import network_state, netplan
out = {}
for name, document in json.load(sys.stdin).items():
    macs = {link["ethernet_mac_address"]: "eth%d" % number
            for number, link in enumerate(document["links"])
            if "ethernet_mac_address" in link and link["type"] != "bond"}
    config = convert_net_json(document, known_macs=macs)
    state = network_state.parse_net_config_data(config, skip_broken=False)
    out[name] = {"config": config["config"],
                 "netplan": netplan.Renderer()._render_content(state)}
json.dump(out, sys.stdout)
"""


@pytest.fixture(scope="module")
def cloud_init():
    """Debian's own cloud-init over documents by name: its configuration, and netplan of it."""

    def read(documents):
        done = subprocess.run(
            ["/usr/bin/python3", "-c", READER],
            input=json.dumps(documents),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


@pytest.mark.skipif(not CLOUD_INIT.is_dir(), reason="cloud-init is not installed")
def test_cloud_init_accepts_every_kind_of_network(instance_of, cloud_init):
    """convert_net_json reads each document, and its netplan has the addresses and routes."""
    documents = {
        name: network_data(instance_of(interfaces=interfaces))
        for name, interfaces in (EVERYTHING | DHCPV6).items()
    }
    found = cloud_init(documents)
    for name, result in found.items():
        kinds = {item["type"] for item in result["config"]}
        assert kinds <= {"physical", "bond", "vlan", "nameserver"}, name
    static = found["static"]["netplan"]
    assert "10.1.0.4/24" in static
    assert "10.1.0.5/24" in static
    assert "10.1.0.1" in static
    assert "dhcp4: true" in found["dhcp"]["netplan"]
    assert "10.2.0.5/24" in found["dhcp"]["netplan"]
    assert "2001:db8::4/64" in found["static6"]["netplan"]
    assert "dhcp6: true" in found["dhcp6"]["netplan"]
    bond, vlan = (
        next(item for item in found["bond, vlan"]["config"] if item["type"] == kind)
        for kind in ("bond", "vlan")
    )
    assert bond["bond_interfaces"] == ["eth0", "eth1"]
    assert (vlan["vlan_id"], vlan["vlan_link"]) == (5, "bond0")
    assert "10.5.0.9/24" in found["bond, vlan"]["netplan"]
