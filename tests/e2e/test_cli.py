"""The `mooring` command against a running controller, and what the instance sees of it."""

import json

import pytest
from stand import StandError

pytestmark = pytest.mark.e2e


@pytest.fixture
def created(house, red):
    """An instance made by `mooring instance create`, and its record; `red` keeps the network."""
    space = house.stand.add_instance(
        "c1000000-0000-4000-8000-000000000001", "red", "10.1.0.250/24", "10.1.0.2"
    )
    document = house.document("red", space.address, space.mac, b"user data by the CLI", id=space.id)
    house.remember(document)
    record = house.stand.create_instance(document)
    house.wait_served(space)
    yield space, record
    house.operate("DELETE", f"/v1/instances/{space.id}")


def test_an_instance_made_by_the_command_is_served(house, created):
    """create, show and list tell the same; the instance reads what was given."""
    space, record = created
    assert record["id"] == space.id
    assert space.get("/latest/user-data").body == b"user data by the CLI"
    shown = json.loads(house.stand.mooring("instance", "show", space.id, "-f", "json"))
    assert shown["name"] == record["name"]
    listed = json.loads(house.stand.mooring("instance", "list", "-f", "json"))
    rows = listed["instances"] if isinstance(listed, dict) else listed
    assert space.id in {row.get("id", row.get("ID")) for row in rows}


def test_set_and_delete_by_the_command(house, created, tmp_path):
    """A changed user data file is read at once; a deleted instance is served no more."""
    space, _ = created
    file = tmp_path / "user-data"
    file.write_bytes(b"#!/bin/sh\n# changed by the CLI \xff\n")
    house.sensitive.add(file.read_bytes())
    house.stand.mooring("instance", "set", space.id, "--user-data", file)
    assert space.get("/latest/user-data").body == file.read_bytes()
    house.stand.mooring("instance", "delete", space.id)
    assert space.get("/latest/user-data").status == 404


def test_a_refusal_is_one_line(house):
    """An unknown instance, and a user without rights: a message and a status that is not 0."""
    with pytest.raises(StandError, match="exit 4: Error: there is no such instance"):
        house.stand.mooring("instance", "show", "99999999-0000-4000-8000-000000000000")
    house.stand.hierarchy.issue_client("eve", ["others"]).write(house.stand.etc / "pki", "eve")
    with pytest.raises(StandError, match="eve"):
        house.stand.mooring("instance", "list", user="eve")
