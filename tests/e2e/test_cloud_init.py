"""Debian's cloud-init boots from us: user data of every kind, both data sources (scenario M5)."""

import base64
import gzip
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest
from stand import InstanceSpace, StandError

pytestmark = pytest.mark.e2e

BOOT = Path(__file__).resolve().parents[2] / "tools" / "boot-instance"

CONFIG = """#cloud-config
write_files:
- {path: /tmp/foo, content: bar, permissions: '0644'}
"""
SCRIPT = """#!/bin/bash
echo "ran as $(id -un) in $(hostname)" > /root/ran
"""


def archive(*parts):
    """User data as a MIME archive of (content, subtype) parts."""
    whole = MIMEMultipart()
    for content, subtype in parts:
        whole.attach(MIMEText(content, subtype, "utf-8"))
    return whole.as_bytes()


USER_DATA = {
    "script": SCRIPT.encode(),
    "cloud-config": CONFIG.encode(),
    "archive": archive((CONFIG, "cloud-config"), (SCRIPT, "x-shellscript")),
    "gzip": gzip.compress(CONFIG.encode()),
}
BOOTS = {
    # name: (data source, user data, options of the instance)
    "script": ("OpenStack", "script", {}),
    "cloud-config": ("OpenStack", "cloud-config", {}),
    "archive": ("OpenStack", "archive", {}),
    "gzip": ("OpenStack", "gzip", {}),
    "ec2": ("Ec2", "archive", {}),
    "ec2-gzip": ("Ec2", "gzip", {}),
    "aws-required": ("AWS", "archive", {"http_tokens": "required"}),
    "ec2-required": ("Ec2", "script", {"http_tokens": "required"}),
}


@dataclass
class Booted:
    """An instance after its boot: what cloud-init wrote, what it said, how it ended."""

    space: InstanceSpace
    root: Path
    log: str
    error: str

    def file(self, path):
        """A file that the boot left, which must be there."""
        found = self.root / path
        assert found.exists(), f"{path} is missing; cloud-init said:\n{self.log[-3000:]}"
        return found


def boot(directory, space, source):
    """Run all stages of cloud-init in the instance."""
    error = ""
    try:
        space.run(BOOT, directory, source, timeout=120)
    except StandError as failed:
        error = str(failed)
    root = directory / "root"
    logs = (directory / "log", root / "var" / "log" / "cloud-init-output.log")
    log = "".join(path.read_text() for path in logs if path.exists())
    return Booted(space, root, log, error)


@pytest.fixture(scope="module")
def booted(house, tmp_path_factory):
    """Every boot of BOOTS by name; several at a time, since one of them waits in vain."""
    directory = tmp_path_factory.mktemp("boots")
    spaces = {
        name: house.instance(
            user_data=USER_DATA[kind],
            name=name,
            keys=[{"name": "k", "data": f"ssh-ed25519 AAAA{secrets.token_hex(20)} k"}],
            options=options,
        )
        for name, (_, kind, options) in BOOTS.items()
    }
    with ThreadPoolExecutor(3) as pool:
        boots = {
            name: pool.submit(boot, directory / name, spaces[name], source)
            for name, (source, _, _) in reversed(BOOTS.items())
        }
        return {name: future.result() for name, future in boots.items()}


def assert_booted(booted, source):
    """Cloud-init ended well, with this data source, as this instance."""
    assert booted.error == ""
    result = json.loads(booted.file("run/cloud-init/result.json").read_text())["v1"]
    assert result["datasource"].startswith(f"DataSource{source}")
    assert result["errors"] == []
    return json.loads(booted.file("run/cloud-init/instance-data.json").read_text())


def assert_file_written(booted):
    """The entry of `write_files` left its file, with its content and its mode."""
    written = booted.file("tmp/foo")
    assert written.read_text() == "bar"
    assert written.stat().st_mode & 0o7777 == 0o644


def assert_script_ran(booted, name):
    """The script ran as root, under the host name that the metadata gives."""
    assert booted.file("root/ran").read_text() == f"ran as root in {name}\n"


def test_m5_a_script_runs(booted):
    """User data that begins with `#!/bin/bash` runs as root once the machine is set up."""
    data = assert_booted(booted["script"], "OpenStack")
    assert data["v1"]["instance_id"] == booted["script"].space.id
    assert_script_ran(booted["script"], "script")


def test_m5_write_files_leaves_the_file(booted):
    """`#cloud-config` with `write_files` leaves the file with its content and mode 0644."""
    assert_booted(booted["cloud-config"], "OpenStack")
    assert_file_written(booted["cloud-config"])


def test_m5_a_mime_archive_of_several_parts(booted):
    """Each part of a MIME multi-part archive does its work."""
    assert_booted(booted["archive"], "OpenStack")
    assert_file_written(booted["archive"])
    assert_script_ran(booted["archive"], "archive")


def test_m5_gzip(booted):
    """Gzipped user data passes through every proxy as it is, and cloud-init unpacks it."""
    assert_booted(booted["gzip"], "OpenStack")
    assert_file_written(booted["gzip"])


def test_m5_changed_user_data_is_seen_at_the_next_read(house):
    """The read that follows the operator's change has the new bytes, in both trees."""
    instance = house.instance(user_data=SCRIPT.encode())
    assert instance.get("/latest/user-data").body == SCRIPT.encode()
    for turn in range(5):
        new = f"{CONFIG}# turn {turn} {secrets.token_hex(8)}\n".encode()
        house.change(instance.id, user_data=base64.b64encode(new).decode())
        assert instance.get("/latest/user-data").body == new
        assert instance.get("/openstack/latest/user_data").body == new
    house.change(instance.id, user_data=None)
    assert instance.get("/latest/user-data").status == 404


def test_cloud_init_reads_the_ec2_tree(booted):
    """The Ec2 data source finds instance id, host name, zone, keys and the network's facts."""
    data = assert_booted(booted["ec2"], "Ec2")
    metadata = data["ds"]["meta-data"]
    assert metadata["instance-id"].startswith("i-")
    assert metadata["placement"]["availability-zone"] == "nova"
    assert data["v1"]["local_hostname"] == "ec2"
    space = booted["ec2"].space
    assert metadata["network"]["interfaces"]["macs"][space.mac]["local-ipv4s"] == space.address
    assert_file_written(booted["ec2"])
    assert_script_ran(booted["ec2"], "ec2")


def test_cloud_init_reads_gzip_from_the_ec2_tree(booted):
    """Gzipped user data comes whole through the EC2 tree as well."""
    assert_booted(booted["ec2-gzip"], "Ec2")
    assert_file_written(booted["ec2-gzip"])


def test_cloud_init_on_aws_boots_with_tokens_required(booted):
    """Where cloud-init asks for session tokens it boots an instance that demands them."""
    data = assert_booted(booted["aws-required"], "Ec2")
    assert data["v1"]["cloud_name"] == "aws"
    assert '"PUT /latest/api/token HTTP/1.1" 200' in booted["aws-required"].log
    assert_file_written(booted["aws-required"])
    assert_script_ran(booted["aws-required"], "aws-required")


def test_cloud_init_without_tokens_gets_nothing_where_they_are_required(booted):
    """Elsewhere cloud-init 22.4 asks for no token: it finds no data source and runs nothing."""
    refused = booted["ec2-required"]
    assert '"GET /2009-04-04/meta-data/instance-id HTTP/1.1" 401' in refused.log
    assert "PUT" not in refused.log
    assert (refused.root / "run" / "cloud-init" / "result.json").exists()
    assert not (refused.root / "root" / "ran").exists()
