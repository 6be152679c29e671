"""The metadata scenarios, as an instance sees them: the whole path, nothing left out."""

import base64
import json

import pytest

pytestmark = pytest.mark.e2e


def stored(house, instance):
    """The record of an instance, user data included."""
    answer = house.operate("GET", f"/v1/instances/{instance.id}?include=user_data")
    assert answer.status == 200, answer.text
    return json.loads(answer.body)


def test_m1_ec2_versions_are_listed_and_the_first_is_1_0(red):
    """`curl http://169.254.169.254/` lists versions, one a line, 1.0 first and latest last."""
    versions = red.curl("/").split("\n")
    assert versions[0] == "1.0"
    assert versions[-1] == "latest"
    assert {"2009-04-04", "2016-09-02", "2018-09-24", "2021-01-03", "2021-03-23"} <= set(versions)
    for version in versions:
        assert red.status(f"/{version}/meta-data/instance-id") == 200, version


def test_m1_a_version_lists_user_data_only_when_there_is_any(house, red):
    """`/1.0/` lists `meta-data/` and `user-data`; without user data only the former."""
    assert red.curl("/1.0/").split() == ["meta-data/", "user-data"]
    bare = house.instance()
    assert bare.curl("/1.0/").split() == ["meta-data/"]
    assert bare.status("/latest/user-data") == 404


def test_m1_the_key_is_the_one_given_at_creation(house, red):
    """Below public-keys/0/ stands the key, byte for byte; its name is in the listing."""
    key = stored(house, red)["keys"][0]
    assert red.curl("/latest/meta-data/public-keys/").strip() == f"0={key['name']}"
    assert red.curl("/latest/meta-data/public-keys/0/").strip() == "openssh-key"
    assert red.curl("/latest/meta-data/public-keys/0/openssh-key") == key["data"]


def test_m1_user_data_is_byte_for_byte_what_was_given(house, red):
    """Bytes that are no text come back in both trees as they were given."""
    given = base64.b64decode(stored(house, red)["user_data"])
    assert b"\xff" in given
    assert red.get("/latest/user-data").body == given
    assert red.get("/openstack/latest/user_data").body == given


def test_m1_every_name_that_is_listed_answers(red):
    """A crawl of the EC2 tree, as cloud-init does it, meets no 404 and no empty listing."""
    seen, todo = [], ["/latest/meta-data/"]
    while todo:
        path = todo.pop()
        answer = red.get(path)
        assert answer.status == 200, path
        seen.append(path)
        if not path.endswith("/"):
            continue
        assert answer.body, path
        for name in answer.text.split("\n"):
            child = name.split("=")[0] + "/" if "=" in name and "public-keys" in path else name
            todo.append(path + child)
    assert "/latest/meta-data/public-keys/0/openssh-key" in seen
    assert f"/latest/meta-data/network/interfaces/macs/{red.mac}/local-ipv4s" in seen
    assert len(seen) > 30


def test_m2_meta_data_json_has_what_the_record_says(house, red):
    """Every field of meta_data.json is the record's; random_seed differs at each reading."""
    record = stored(house, red)
    first, second = (json.loads(red.curl("/openstack/latest/meta_data.json")) for _ in range(2))
    seeds = [base64.b64decode(each.pop("random_seed"), validate=True) for each in (first, second)]
    assert [len(seed) for seed in seeds] == [512, 512]
    assert seeds[0] != seeds[1]
    assert first == second
    key = record["keys"][0]
    assert first["uuid"] == red.id
    assert first["public_keys"] == {key["name"]: key["data"]}
    assert first["keys"] == [{"name": key["name"], "type": "ssh", "data": key["data"]}]
    assert first["hostname"] == "web-red.novalocal"
    assert first["name"] == "web red"
    assert first["launch_index"] == 3
    assert first["availability_zone"] == "zone-1"
    assert first["project_id"] == "project-red"
    assert first["meta"] == {"role": "frontend"}
    assert [device["serial"] for device in first["devices"]] == ["disk-1"]


def test_m2_network_data_json_has_links_networks_and_services(house, red):
    """network_data.json describes the interface: link, static address, route, name server."""
    interface = stored(house, red)["interfaces"][0]
    network_data = json.loads(red.curl("/openstack/latest/network_data.json"))
    (link,) = network_data["links"]
    assert link["vif_id"] == interface["id"]
    assert link["ethernet_mac_address"] == red.mac
    assert link["mtu"] == 1450
    assert link["type"]
    (network,) = network_data["networks"]
    assert network["link"] == link["id"]
    assert (network["network_id"], network["type"]) == ("red", "ipv4")
    assert (network["ip_address"], network["netmask"]) == ("10.1.0.4", "255.255.255.0")
    assert network["routes"] == [
        {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.1.0.1"}
    ]
    assert network_data["services"] == [{"type": "dns", "address": "10.1.0.53"}]


def test_m2_every_file_that_is_listed_answers_in_every_version(red):
    """Each OpenStack version lists only what answers 200 there."""
    versions = red.get("/openstack").text.split()
    assert versions[0] == "2012-08-10"
    assert versions[-1] == "latest"
    for version in versions:
        names = red.get(f"/openstack/{version}").text.split()
        assert "meta_data.json" in names
        for name in names:
            answer = red.get(f"/openstack/{version}/{name}")
            assert answer.status == 200, (version, name)
