"""The EC2 tree of instances with everything and with nothing."""

import json
import subprocess
from pathlib import Path

import pytest

from services.metadata import ec2
from services.metadata.tree import Settings, Tree

SETTINGS = Settings()
NOVA = Settings(nova_compatible=True)
MAC1 = "/latest/meta-data/network/interfaces/macs/fa:16:3e:00:00:01/"


def body_of(tree, path):
    page = tree.page(path)
    return None if page is None else page.body.decode()


def lines_of(tree, path):
    return body_of(tree, path).split("\n")


def test_root_lists_every_version_oldest_first_and_each_one_answers(instance_of):
    """``/`` lists the versions, 1.0 first and ``latest`` last; every one of them is a directory."""
    tree = Tree(instance_of(), SETTINGS)
    versions = lines_of(tree, "/")
    assert versions == [*ec2.VERSIONS, "latest"]
    assert versions[0] == "1.0"
    assert sorted(versions) == versions
    for version in versions:
        assert "meta-data/" in lines_of(tree, f"/{version}/")
        assert tree.page(f"/ec2/{version}") is tree.page(f"/{version}")
    assert tree.page("/ec2/") is tree.page("/")


def test_dates_that_clients_probe_are_versions(instance_of):
    """cloud-init, afterburn and AWS's own tools ask for these dates by name."""
    for date in ("2009-04-04", "2016-09-02", "2018-09-24", "2021-01-03", "2021-03-23"):
        page = Tree(instance_of(), SETTINGS).page(f"/{date}/meta-data/instance-id")
        assert page.body.startswith(b"i-")


@pytest.mark.parametrize(
    "version", ["2008-01-01", "LATEST", "Latest", "1", "2021-03", "ec2/ec2", "\xff"]
)
def test_unknown_version_is_not_found(instance_of, version):
    """Versions are taken literally."""
    tree = Tree(instance_of(), SETTINGS)
    assert tree.page(f"/{version}") is None
    assert tree.page(f"/{version}/meta-data/") is None


NOVA_KEYS = {
    "1.0": {
        "ami-id",
        "ami-launch-index",
        "ami-manifest-path",
        "hostname",
        "instance-id",
        "local-ipv4",
        "public-keys/",
        "reservation-id",
        "security-groups",
    },
    "2007-01-19": {"local-hostname", "public-hostname", "public-ipv4"},
    "2007-03-01": set(),
    "2007-08-29": {"instance-type"},
    "2007-10-10": set(),
    "2007-12-15": {"block-device-mapping/"},
    "2008-02-01": {"placement/"},
    "2008-09-01": {"instance-action"},
    "2009-04-04": set(),
}
AWS_KEYS = {
    "2011-01-01": {"mac", "network/"},
    "2014-02-25": {"services/"},
    "2019-10-01": {"instance-life-cycle"},
    "2021-01-03": {"ipv6"},
    "2021-03-23": {"tags/"},
}


def test_each_version_shows_its_own_keys_and_the_older_ones(instance_of):
    """A key is listed and answers from its date on, and neither before it."""
    settings = Settings(services_domain="cloud.example", services_partition="example")
    tree = Tree(instance_of(), settings)
    expected: set[str] = set()
    for version in ec2.VERSIONS:
        expected |= NOVA_KEYS.get(version, set()) | AWS_KEYS.get(version, set())
        assert set(lines_of(tree, f"/{version}/meta-data/")) == expected
        for key in set().union(*NOVA_KEYS.values(), *AWS_KEYS.values()):
            found = tree.page(f"/{version}/meta-data/{key}") is not None
            assert found == (key in expected), (version, key)
    assert body_of(tree, "/latest/meta-data/") == body_of(tree, f"/{ec2.VERSIONS[-1]}/meta-data/")


@pytest.mark.parametrize(
    ("key", "before", "since"),
    [
        ("placement/region", "2019-10-01", "2020-10-27"),
        ("placement/availability-zone-id", "2018-09-24", "2019-10-01"),
        ("services/partition", "2014-11-05", "2015-10-20"),
        ("network/interfaces/macs/fa:16:3e:00:00:01/ipv6s", "2016-04-19", "2016-06-30"),
        (
            "network/interfaces/macs/fa:16:3e:00:00:01/network-card-index",
            "2020-10-27",
            "2021-01-03",
        ),
        (
            "network/interfaces/macs/fa:16:3e:00:00:01/vpc-ipv6-cidr-blocks",
            "2016-04-19",
            "2016-06-30",
        ),
    ],
)
def test_nested_keys_are_gated_like_others(instance_of, key, before, since):
    """A key below a directory is absent from the listing and 404 before its date."""
    settings = Settings(
        availability_zone_id="z1", services_domain="cloud.example", services_partition="example"
    )
    tree = Tree(instance_of(), settings)
    folder, _, name = key.rpartition("/")
    assert tree.page(f"/{before}/meta-data/{key}") is None
    assert name not in lines_of(tree, f"/{before}/meta-data/{folder}/")
    assert tree.page(f"/{since}/meta-data/{key}") is not None
    assert name in lines_of(tree, f"/{since}/meta-data/{folder}/")


def test_values_of_the_full_instance(instance_of):
    """Every leaf of an instance with everything, by name."""
    tree = Tree(instance_of(), SETTINGS)
    expected = {
        "ami-id": ec2.image_id_of("8d6f1a52-43b1-4a3c-8b07-2d9e55b6b7a1"),
        "ami-launch-index": "2",
        "ami-manifest-path": "(unknown)",
        "block-device-mapping/ami": "vda",
        "block-device-mapping/ebs0": "/dev/vdb",
        "block-device-mapping/root": "/dev/vda",
        "hostname": "web-1.novalocal",
        "instance-action": "none",
        "instance-id": ec2.instance_id_of("3fa85f64-5717-4562-b3fc-2c963f66afa6"),
        "instance-life-cycle": "on-demand",
        "instance-type": "m1.small",
        "ipv6": "2001:db8:1::4",
        "local-hostname": "web-1.novalocal",
        "local-ipv4": "10.1.0.4",
        "mac": "fa:16:3e:00:00:01",
        "placement/availability-zone": "zone-b",
        "placement/region": "RegionOne",
        "public-hostname": "web-1.novalocal",
        "public-ipv4": "203.0.113.7",
        "public-keys/0/openssh-key": "ssh-ed25519 AAAAC3Nz me@laptop",
        "reservation-id": "r-k3x9",
        "security-groups": "default\nweb",
        "tags/instance/team": "blue",
    }
    for key, value in expected.items():
        assert body_of(tree, f"/latest/meta-data/{key}") == value, key


def test_values_of_an_interface(instance_of):
    """Every leaf below a MAC; ids are those of the network API, so they can be looked up there."""
    tree = Tree(instance_of(), SETTINGS)
    expected = {
        "device-number": "0",
        "interface-id": "aaaaaaaa-1111-4111-8111-111111111111",
        "ipv4-associations/": "203.0.113.7",
        "ipv6s": "2001:db8:1::4",
        "local-hostname": "web-1.novalocal",
        "local-ipv4s": "10.1.0.4\n10.1.0.5",
        "mac": "fa:16:3e:00:00:01",
        "network-card-index": "0",
        "owner-id": "4c7e8f2c2f1d4d1c9a1f0b9f1f8f0a11",
        "public-hostname": "web-1.novalocal",
        "public-ipv4s": "203.0.113.7",
        "security-group-ids": "sg-1\nsg-2",
        "security-groups": "default\nweb",
        "subnet-id": "s-four",
        "subnet-ipv4-cidr-block": "10.1.0.0/24",
        "subnet-ipv6-cidr-blocks": "2001:db8:1::/64",
        "vpc-id": "6d7f2a0e-1111-4111-8111-111111111111",
        "vpc-ipv4-cidr-block": "10.1.0.0/24",
        "vpc-ipv4-cidr-blocks": "10.1.0.0/24",
        "vpc-ipv6-cidr-blocks": "2001:db8:1::/64",
    }
    assert {key: body_of(tree, MAC1 + key) for key in lines_of(tree, MAC1)} == expected
    assert body_of(tree, MAC1 + "ipv4-associations/203.0.113.7") == "10.1.0.4"
    second = lines_of(tree, MAC1.replace("01/", "02/"))
    assert "public-ipv4s" not in second
    assert body_of(tree, MAC1.replace("01/", "02/device-number")) == "1"


def test_an_instance_with_nothing_lists_only_what_it_has(smallest):
    """What has no value is neither listed nor answered; AWS answers 404 there too."""
    tree = Tree(smallest, Settings(availability_zone=None, region=None))
    assert lines_of(tree, "/latest/") == ["dynamic/", "meta-data/"]
    assert lines_of(tree, "/latest/meta-data/") == [
        "ami-launch-index",
        "ami-manifest-path",
        "hostname",
        "instance-action",
        "instance-id",
        "instance-life-cycle",
        "local-hostname",
        "reservation-id",
    ]
    for key in ("public-ipv4", "local-ipv4", "ami-id", "placement/", "network/", "tags/"):
        assert tree.page(f"/latest/meta-data/{key}") is None
    assert tree.page("/latest/user-data") is None


def test_user_data_is_byte_for_byte_what_was_given(instance_of):
    """User data is bytes; its type says so."""
    page = Tree(instance_of(), SETTINGS).page("/latest/user-data")
    assert page.body == b"#cloud-config\n\xff\x00"
    assert page.headers == (
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", "16"),
    )
    assert Tree(instance_of(), SETTINGS).page("/1.0/user-data/").body == page.body


def test_tags_are_there_only_when_the_instance_allows_it(instance_of):
    """AWS makes tags readable by an option of the instance; so do we."""
    tree = Tree(instance_of(options={}), SETTINGS)
    assert "tags/" not in lines_of(tree, "/latest/meta-data/")
    assert tree.page("/latest/meta-data/tags/instance/team") is None


@pytest.mark.parametrize("tag", ["0=x", "+1=a", "-7=", "1_0=b"])
def test_a_tag_that_reads_as_a_public_key_answers_without_being_listed(instance_of, tag):
    """cloud-init would ask for N/openssh-key, get 404 and drop all metadata."""
    tree = Tree(instance_of(tags={tag: "v", "x=1": "w", "=": "e"}), SETTINGS)
    assert lines_of(tree, "/latest/meta-data/tags/instance/") == ["=", "x=1"]
    assert body_of(tree, f"/latest/meta-data/tags/instance/{tag}") == "v"


def test_every_ssh_key_is_listed_with_its_number(instance_of):
    """``N=name`` for each SSH key; an X.509 certificate is no openssh-key."""
    keys = [
        {"name": "a", "data": "ssh-rsa A"},
        {"name": "windows", "type": "x509", "data": "-----BEGIN CERTIFICATE-----"},
        {"name": "b\u2028c\x85", "data": "ssh-rsa B"},
    ]
    tree = Tree(instance_of(keys=keys), SETTINGS)
    assert lines_of(tree, "/latest/meta-data/public-keys/") == ["0=a", "1=b c "]
    assert lines_of(tree, "/latest/meta-data/public-keys/1/") == ["openssh-key"]
    assert body_of(tree, "/latest/meta-data/public-keys/1/openssh-key") == "ssh-rsa B"
    assert tree.page("/latest/meta-data/public-keys/2") is None
    assert tree.page("/latest/meta-data/public-keys/0=a") is None
    assert tree.page("/latest/meta-data/public-keys/0/_name") is None


def test_instance_ids_are_stable_and_in_ec2_form():
    """An id is a function of the uuid alone: 17 hex digits, the same in every release."""
    assert ec2.instance_id_of("3fa85f64-5717-4562-b3fc-2c963f66afa6") == "i-c7aa09cd25da8b6ab"
    assert ec2.image_id_of("img") == "ami-b29814cf5792e684c"
    assert ec2.image_id_of("ami-0123abcd") == "ami-0123abcd"
    assert ec2.image_id_of("ami-0123abcd", "aki") != "ami-0123abcd"


def test_hostname_keeps_a_domain_of_its_own(instance_of):
    """Nova puts its domain behind any name; here a name with a domain is left as it is."""
    instance = instance_of(hostname="web.example.org")
    path = "/latest/meta-data/hostname"
    assert body_of(Tree(instance, SETTINGS), path) == "web.example.org"
    assert body_of(Tree(instance, NOVA), path) == "web.example.org.novalocal"
    assert body_of(Tree(instance_of(), Settings(dhcp_domain="")), path) == "web-1"


def test_public_hostname_takes_the_public_domain(instance_of):
    """A deployment with a public zone names it."""
    tree = Tree(instance_of(), Settings(public_domain="example.net"))
    assert body_of(tree, "/latest/meta-data/public-hostname") == "web-1.example.net"
    assert body_of(tree, MAC1 + "public-hostname") == "web-1.example.net"


def test_identity_document(instance_of):
    """The document names instance, zone and region; cloud-init takes the region from it."""
    tree = Tree(instance_of(), SETTINGS)
    page = tree.page("/latest/dynamic/instance-identity/document")
    document = json.loads(page.body)
    assert document["instanceId"] == body_of(tree, "/latest/meta-data/instance-id")
    assert document["region"] == "RegionOne"
    assert document["accountId"] == "4c7e8f2c2f1d4d1c9a1f0b9f1f8f0a11"
    assert document["privateIp"] == "10.1.0.4"
    assert tree.page("/2008-09-01/dynamic") is None
    assert lines_of(tree, "/2009-04-04/dynamic/instance-identity") == ["document"]


def test_below_a_leaf_is_not_found(instance_of):
    """Nova answers 500 to these."""
    tree = Tree(instance_of(), SETTINGS)
    for path in ("meta-data/instance-id/foo", "user-data/x", "meta-data/security-groups/web"):
        assert tree.page(f"/latest/{path}") is None


def test_bonds_stand_for_their_carriers_and_vlans_are_left_out(instance_of):
    """EC2 knows neither; a client must not put a VLAN's address on the untagged device."""
    one, two, bond, vlan = (f"{c * 8}-0000-4000-8000-000000000000" for c in "1234")
    interfaces = [
        {"id": one, "network_id": "n", "mac": "fa:16:3e:00:00:01"},
        {"id": two, "network_id": "n", "mac": "fa:16:3e:00:00:02"},
        {
            "id": bond,
            "network_id": "n",
            "mac": "fa:16:3e:00:00:01",
            "type": "bond",
            "bond": {"mode": "802.3ad", "links": [one, two]},
            "subnets": [{"cidr": "10.0.0.0/24", "addresses": [{"ip_address": "10.0.0.9"}]}],
        },
        {
            "id": vlan,
            "network_id": "m",
            "mac": "fa:16:3e:00:00:01",
            "type": "vlan",
            "vlan": {"id": 5, "link": bond},
            "subnets": [{"cidr": "10.5.0.0/24", "addresses": [{"ip_address": "10.5.0.9"}]}],
        },
    ]
    tree = Tree(instance_of(interfaces=interfaces), SETTINGS)
    assert lines_of(tree, "/latest/meta-data/network/interfaces/macs/") == ["fa:16:3e:00:00:01/"]
    assert body_of(tree, MAC1 + "local-ipv4s") == "10.0.0.9"
    assert body_of(tree, MAC1 + "interface-id") == bond


def test_text_that_utf8_cannot_hold_does_not_fail(instance_of):
    """JSON can carry lone surrogates; they become question marks in text."""
    tree = Tree(instance_of(instance_type="m\ud800", keys=[{"name": "\udfff", "data": "k"}]), NOVA)
    assert body_of(tree, "/latest/meta-data/instance-type") == "m?"
    assert body_of(tree, "/latest/meta-data/public-keys/") == "0=?"


CRAWLER = """
import json, logging, sys
logging.disable(logging.CRITICAL)
sys.path.insert(0, sys.argv[1])
from cloudinit.sources.helpers.ec2 import MetadataMaterializer
from cloudinit.sources.DataSourceEc2 import convert_ec2_metadata_network_config
from services.metadata.model import Instance
from services.metadata.tree import Settings, Tree
from urllib.parse import unquote
tree = Tree(Instance.from_document(json.load(sys.stdin)), Settings())
def read(url):
    page = tree.page(unquote(url.removeprefix("http://169.254.169.254")))
    assert page is not None, url
    return page.body
base = "http://169.254.169.254/2021-03-23/meta-data/"
found = MetadataMaterializer(read(base), base, read).materialize()
macs = {mac: "eth" + entry["device-number"]
        for mac, entry in found["network"]["interfaces"]["macs"].items()}
json.dump([found, convert_ec2_metadata_network_config(found["network"], macs)], sys.stdout)
"""


@pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/cloudinit").is_dir(),
    reason="cloud-init is not installed",
)
def test_cloud_init_crawls_the_tree_and_makes_a_network_of_it(instance_of):
    """Debian's cloud-init reads every key, odd tags included, and finds both interfaces."""
    document = instance_of(tags={"team": "blue", "0=x": "y", "a+b": "c", "u@h": ""}).to_document()
    done = subprocess.run(
        ["/usr/bin/python3", "-c", CRAWLER, str(Path(__file__).parents[3])],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, network = json.loads(done.stdout)
    assert found["public-keys"] == {"mykey": "ssh-ed25519 AAAAC3Nz me@laptop"}
    assert found["tags"]["instance"] == {"team": "blue", "a+b": "c", "u@h": ""}
    assert found["security-groups"] == ["default", "web"]
    assert network["ethernets"]["eth0"]["addresses"] == ["10.1.0.5/24"]
    assert network["ethernets"]["eth0"]["dhcp6"] is True
    assert network["ethernets"]["eth1"]["dhcp4"] is True
