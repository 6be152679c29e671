"""docs/metadata.md names everything that the trees have."""

import re
from pathlib import Path

from services.metadata import ec2, openstack
from services.metadata.tree import Page, Settings, Tree

DOCS = (Path(__file__).parents[3] / "docs" / "metadata.md").read_text(encoding="utf-8")


def test_every_version_is_documented():
    """Both lists of versions are in the page, in order."""
    assert re.findall(
        r"\d{4}-\d\d-\d\d|1\.0", DOCS.split("Versions: ")[1].split(" (AWS's)")[0]
    ) == [*ec2.VERSIONS]
    listed = DOCS.split("lists the versions: 2012")[1].split(", latest")[0]
    assert re.findall(r"\d{4}-\d\d-\d\d", "2012" + listed) == [*openstack.VERSIONS]


def test_every_key_is_documented_with_its_version(instance_of):
    """Each name of the full instance's tree is in a row that begins with its first version."""
    settings = Settings(
        availability_zone_id="z", services_domain="d", services_partition="p", vendor_data={}
    )
    tree = Tree(instance_of(kernel_id="k", ramdisk_id="r"), settings)
    rows = [line for line in DOCS.splitlines() if line.startswith("| ")]

    def check(path, name):
        first = next(
            version
            for version in ec2.VERSIONS
            if tree.page(f"/{version}/meta-data/{path}") is not None
        )
        assert any(row.startswith(f"| {first} |") and f"{name}`" in row for row in rows), path

    for line in tree.page("/latest/meta-data/").body.decode().split("\n"):
        if not line.endswith("/"):
            check(line, line)
    for folder in ("placement/", "services/"):
        for line in tree.page(f"/latest/meta-data/{folder}").body.decode().split("\n"):
            check(folder + line, folder + line)
    mac = "network/interfaces/macs/fa:16:3e:00:00:01/"
    for line in tree.page(f"/latest/meta-data/{mac}").body.decode().split("\n"):
        name = line.replace("ipv4-associations/", "ipv4-associations/<floating IP>")
        check(mac + line, name)
    for name, first in openstack.INTRODUCED.items():
        assert any(row.startswith(f"| {first} | `{name}` |") for row in rows), name
        page = tree.page(f"/openstack/latest/{name}")
        if isinstance(page, Page):
            assert f"| `{name}` | `{page.content_type}` |" in DOCS
