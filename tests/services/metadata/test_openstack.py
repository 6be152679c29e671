"""The OpenStack tree of instances with everything and with nothing."""

import base64
import json

import pytest

from services.metadata import openstack
from services.metadata.tree import Page, Settings, Special, Tree

SETTINGS = Settings()
VERSIONS = list(openstack.VERSIONS)


def meta_data(tree, version):
    return json.loads(tree.page(f"/openstack/{version}/meta_data.json").complete())


def listing(tree, version):
    return tree.page(f"/openstack/{version}/").body.decode().split("\n")


def test_versions_up_to_today_are_listed(instance_of):
    """``/openstack`` lists every version and latest; cloud-init needs it to be non-empty."""
    page = Tree(instance_of(), SETTINGS).page("/openstack")
    assert page.body.decode().split("\n") == [*VERSIONS, "latest"]
    assert page.keep


def test_a_version_of_the_future_is_hidden_but_answers(instance_of):
    """With a clock that is behind, the list is short and not to be kept."""
    tree = Tree(instance_of(), SETTINGS, today=lambda: "2020-10-14")
    page = tree.page("/openstack/")
    assert page.body.decode().split("\n") == [*VERSIONS[:-1], "latest"]
    assert not page.keep
    assert tree.page("/openstack/2025-04-04/meta_data.json") is not None


def test_files_by_version(instance_of):
    """Each file is listed and answers from its version on, and neither before it."""
    tree = Tree(instance_of(), Settings(vendor_data={"a": 1}))
    expected = []
    for version in VERSIONS:
        expected = [n for n, since in openstack.INTRODUCED.items() if since <= version]
        assert listing(tree, version) == expected
        for name in openstack.INTRODUCED:
            found = tree.page(f"/openstack/{version}/{name}") is not None
            assert found == (name in expected), (version, name)
    assert listing(tree, "latest") == expected == list(openstack.INTRODUCED)


FIELDS = {
    "2012-08-10": {
        "uuid",
        "meta",
        "public_keys",
        "keys",
        "hostname",
        "name",
        "launch_index",
        "availability_zone",
    },
    "2013-04-04": {"random_seed"},
    "2015-10-15": {"project_id"},
    "2016-06-30": {"devices"},
    "2020-10-14": {"dedicated_cpus"},
}


def test_fields_of_meta_data_by_version(instance_of):
    """Each version has the fields of the older ones and its own."""
    tree = Tree(instance_of(), SETTINGS)
    expected = set()
    for version in VERSIONS:
        expected |= FIELDS.get(version, set())
        assert set(meta_data(tree, version)) == expected, version


def test_meta_data_of_the_full_instance(instance_of):
    """Every value but the seed."""
    document = meta_data(Tree(instance_of(), SETTINGS), "latest")
    assert len(base64.b64decode(document.pop("random_seed"), validate=True)) == 512
    devices = document.pop("devices")
    assert document == {
        "uuid": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
        "meta": {"role": "web"},
        "public_keys": {"mykey": "ssh-ed25519 AAAAC3Nz me@laptop"},
        "keys": [{"name": "mykey", "type": "ssh", "data": "ssh-ed25519 AAAAC3Nz me@laptop"}],
        "hostname": "web-1.novalocal",
        "name": "Web 1",
        "launch_index": 2,
        "availability_zone": "zone-b",
        "project_id": "4c7e8f2c2f1d4d1c9a1f0b9f1f8f0a11",
        "dedicated_cpus": [2, 3],
    }
    assert [device["type"] for device in devices] == ["nic", "nic", "disk", "share"]
    assert devices[0] == {
        "type": "nic",
        "bus": "pci",
        "address": "0000:00:02.0",
        "mac": "fa:16:3e:00:00:01",
        "vlan": 7,
        "vf_trusted": False,
        "tags": ["front"],
    }


@pytest.mark.parametrize(
    ("version", "kinds"),
    [
        ("2016-06-30", ["nic", "disk"]),
        ("2017-02-22", ["nic", "disk"]),
        ("2018-08-27", ["nic", "nic", "disk"]),
        ("2025-04-04", ["nic", "nic", "disk", "share"]),
    ],
)
def test_devices_by_version(instance_of, version, kinds):
    """A nic with nothing to tell is left out; the other fields come with their version."""
    devices = meta_data(Tree(instance_of(), SETTINGS), version)["devices"]
    assert [device["type"] for device in devices] == kinds
    assert ("vlan" in devices[0]) == (version >= "2017-02-22")
    assert ("vf_trusted" in devices[0]) == (version >= "2018-08-27")


def test_seed_is_fresh_in_every_answer_and_not_in_the_page(instance_of):
    """What is kept has no seed; the length that is announced counts it."""
    tree = Tree(instance_of(properties={"random_seed": ""}), SETTINGS)
    page = tree.page("/openstack/latest/meta_data.json")
    first, second = page.complete(), page.complete()
    assert first != second
    assert json.loads(page.body)["random_seed"] == ""
    assert json.loads(first)["random_seed"] != json.loads(second)["random_seed"]
    assert json.loads(first)["meta"] == {"random_seed": ""}
    assert dict(page.headers)["Content-Length"] == str(len(first)) == str(len(second))


def test_content_types(instance_of):
    """JSON is application/json, user data are bytes, listings are text."""
    tree = Tree(instance_of(), Settings(vendor_data={}))
    for name in ("meta_data.json", "network_data.json", "vendor_data.json", "vendor_data2.json"):
        assert tree.page(f"/openstack/latest/{name}").content_type == "application/json"
    user_data = tree.page("/openstack/latest/user_data")
    assert user_data.content_type == "application/octet-stream"
    assert user_data.body == b"#cloud-config\n\xff\x00"
    assert tree.page("/openstack/latest").content_type == "text/plain; charset=UTF-8"


def test_an_instance_with_nothing_lists_only_what_answers(smallest):
    """No user data, vendor data or interfaces: not listed, and 404.

    An empty network_data.json would make cloud-init configure no interface at all; without one
    it falls back to DHCP.
    """
    tree = Tree(smallest, SETTINGS)
    assert listing(tree, "latest") == ["meta_data.json", "password"]
    for name in ("user_data", "network_data.json", "vendor_data.json", "vendor_data2.json"):
        assert tree.page(f"/openstack/latest/{name}") is None
    document = meta_data(tree, "latest")
    assert "meta" not in document
    assert "keys" not in document
    assert document["devices"] == document["dedicated_cpus"] == []


def test_vendor_data_of_the_instance_stands_above_the_deployments(instance_of):
    """Top-level keys of the instance replace those of the deployment."""
    settings = Settings(vendor_data={"cloud-init": "#a", "site": "here"})
    tree = Tree(instance_of(vendor_data={"cloud-init": "#b"}), settings)
    expected = {"cloud-init": "#b", "site": "here"}
    assert json.loads(tree.page("/openstack/latest/vendor_data.json").body) == expected
    second = json.loads(tree.page("/openstack/latest/vendor_data2.json").body)
    assert second == {"static": expected}


def test_special_paths(instance_of):
    """The password, dynamic vendor data and the token are told apart from pages."""
    tree = Tree(instance_of(), Settings(dynamic_vendor_data=True))
    assert tree.page("/openstack/2013-04-04/password") is Special.PASSWORD
    assert tree.page("/openstack/2012-08-10/password") is None
    assert tree.page("/openstack/latest/vendor_data2.json") is Special.VENDOR_DATA2
    assert tree.page("/openstack/2015-10-15/vendor_data2.json") is None
    assert "vendor_data2.json" in listing(tree, "latest")
    assert "vendor_data.json" not in listing(tree, "latest")
    assert tree.page("/latest/api/token") is Special.TOKEN
    assert tree.page("/2021-03-23/api/token") is None
    assert tree.page("/ec2/latest/api/token") is None


@pytest.mark.parametrize(
    "path",
    [
        "/openstack/content",
        "/openstack/latest/content",
        "/openstack/content/0000",
        "/openstack/latest/version",
        "/openstack/latest/meta_data.json/x",
        "/openstack/2099-01-01",
        "/openstack/LATEST",
        "/openstack/latest/METADATA.json",
    ],
)
def test_paths_that_are_no_place(instance_of, path):
    """404, also where Nova answers 500 or leaks a handler's name."""
    assert Tree(instance_of(), SETTINGS).page(path) is None


def test_versions_with_equal_content_share_a_page(instance_of):
    """A cache by path holds each content once."""
    tree = Tree(instance_of(), SETTINGS)
    newest = tree.page("/openstack/latest/meta_data.json")
    assert isinstance(newest, Page)
    assert tree.page("/openstack/2025-04-04/meta_data.json") is newest
    assert tree.page("/openstack/2013-04-04/meta_data.json") is tree.page(
        "/openstack/2013-10-17/meta_data.json"
    )
    assert tree.page("/1.0/meta-data/hostname") is tree.page("/latest/meta-data/hostname/")
