"""The clients that people use, unchanged: botocore, ec2-metadata, curl."""

import json
import sys

import pytest
from stand import StandError

pytestmark = pytest.mark.e2e

USER_DATA = b"user data that ec2-metadata reads"

BOTOCORE = """
import json, sys
from botocore.utils import IMDSFetcher, InstanceMetadataFetcher, InstanceMetadataRegionFetcher
config = json.loads(sys.argv[1])
roles = InstanceMetadataFetcher(timeout=5, config=config)
imds = IMDSFetcher(timeout=5, num_attempts=1, config=config)
token = imds._fetch_metadata_token()
def read(path):
    answer = imds._get_request(f"/latest/meta-data/{path}", retry_func=None, token=token)
    return answer.text
print(json.dumps({
    "token": token,
    "region": InstanceMetadataRegionFetcher(timeout=5, config=config).retrieve_region(),
    "credentials": roles.retrieve_iam_role_credentials(),
    "instance-id": read("instance-id"),
    "mac": read("mac"),
}))
"""

EC2_METADATA = """
import json
from ec2_metadata import ec2_metadata as m
(interface,) = m.network_interfaces.values()
print(json.dumps({
    "instance_id": m.instance_id,
    "availability_zone": m.availability_zone,
    "private_hostname": m.private_hostname,
    "private_ipv4": m.private_ipv4,
    "public_ipv4": m.public_ipv4,
    "mac": m.mac,
    "user_data": m.user_data.decode(),
    "security_groups": m.security_groups,
    "partition": m.partition,
    "tags": dict(m.tags.items()),
    "interface": {
        "mac": interface.mac,
        "private_ipv4s": interface.private_ipv4s,
        "subnet_ipv4_cidr_block": interface.subnet_ipv4_cidr_block,
        "device_number": interface.device_number,
        "subnet_id": interface.subnet_id,
        "vpc_id": interface.vpc_id,
    },
}))
"""


@pytest.fixture(scope="module")
def client(house):
    """An instance that demands tokens, with all that the clients ask for."""
    return house.instance(
        user_data=USER_DATA,
        name="client",
        availability_zone="zone-1",
        security_groups=["web", "ssh"],
        tags={"Name": "client", "stage": "test"},
        options={"http_tokens": "required", "instance_metadata_tags": "enabled"},
    )


def python(space, code, *arguments):
    """What a Python program inside the instance prints, as JSON."""
    return json.loads(space.run(sys.executable, "-c", code, *arguments))


def test_botocore_fetches_with_tokens(house, client):
    """botocore asks for a token, reads with it, finds the region and that there is no role."""
    found = python(client, BOTOCORE, json.dumps({"ec2_metadata_v1_disabled": True}))
    house.sensitive.add(found.pop("token"))
    assert (
        found.pop("instance-id")
        == client.get("/latest/meta-data/instance-id", *bearing(house, client)).text
    )
    assert found == {"region": "zone-", "credentials": {}, "mac": client.mac}


def bearing(house, space):
    """The header of a new token."""
    return [("X-aws-ec2-metadata-token", house.token(space))]


def test_botocore_without_version_1_gets_no_region_from_a_switched_off_endpoint(house):
    """403 on the token is botocore's sign that there is no metadata; it does not hang or retry."""
    instance = house.instance(options={"http_endpoint": "disabled"})
    code = (
        "import json; from botocore.utils import InstanceMetadataRegionFetcher as F;"
        "print(json.dumps(F(timeout=5, num_attempts=1).retrieve_region()))"
    )
    assert python(instance, code) is None


def test_ec2_metadata_reads_every_property(client):
    """The PyPI package knows IMDSv2 alone; what it parses is what the record says."""
    found = python(client, EC2_METADATA)
    assert found.pop("instance_id").startswith("i-")
    interface = found.pop("interface")
    assert interface.pop("subnet_id").startswith("subnet-")
    assert interface == {
        "mac": client.mac,
        "private_ipv4s": [client.address],
        "subnet_ipv4_cidr_block": "10.1.0.0/24",
        "device_number": 0,
        "vpc_id": "red",
    }
    assert found == {
        "availability_zone": "zone-1",
        "private_hostname": "client.novalocal",
        "private_ipv4": client.address,
        "public_ipv4": None,
        "mac": client.mac,
        "user_data": USER_DATA.decode(),
        "security_groups": ["web", "ssh"],
        "partition": "mooring",
        "tags": {"Name": "client", "stage": "test"},
    }


def test_curl_as_awss_documentation_has_it(house, client):
    """The two lines that everybody pastes: a token, then a read with it."""
    token = client.run(
        *("curl", "-sS", "-X", "PUT", "http://169.254.169.254/latest/api/token"),
        *("-H", "X-aws-ec2-metadata-token-ttl-seconds: 21600"),
    )
    house.sensitive.add(token)
    header = ("-H", f"X-aws-ec2-metadata-token: {token}")
    assert client.curl("/latest/meta-data/local-ipv4", *header) == client.address
    assert client.status("/latest/meta-data/local-ipv4") == 401
    with pytest.raises(StandError, match="exit 22"):
        client.curl("/latest/meta-data/local-ipv4", "--fail")


def test_curl_head_and_ranges(red):
    """HEAD has the length of GET and no body; a Range changes nothing."""
    head = red.curl("/latest/meta-data/instance-id", "-I")
    body = red.curl("/latest/meta-data/instance-id")
    assert head.startswith("HTTP/1.1 200 ")
    assert f"content-length: {len(body)}" in head.lower()
    assert red.curl("/latest/meta-data/instance-id", "-r", "0-1") == body
