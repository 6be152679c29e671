"""The `nova_compatible` switch, end to end: answers as Nova 34.0 gives them, byte for byte."""

import pytest

pytestmark = pytest.mark.e2e

TEXT = "text/plain; charset=UTF-8"
NOT_FOUND = b"404 Not Found\n\nThe resource could not be found.\n\n   "
VERSIONS = (
    b"1.0\n2007-01-19\n2007-03-01\n2007-08-29\n2007-10-10\n2007-12-15\n2008-02-01\n2008-09-01\n"
    b"2009-04-04\nlatest"
)
OPENSTACK_VERSIONS = (
    b"2012-08-10\n2013-04-04\n2013-10-17\n2015-10-15\n2016-06-30\n2016-10-06\n2017-02-22\n"
    b"2018-08-27\n2020-10-14\n2025-04-04\nlatest"
)
USER_DATA = b"#!/bin/sh\n# user data as Nova gives it \xff\n"
ANSWERS = {
    "/": (200, TEXT, VERSIONS),
    "/ec2/": (200, TEXT, VERSIONS),
    "//latest/meta-data": (200, TEXT, VERSIONS),
    "/latest/": (200, TEXT, b"meta-data/\nuser-data"),
    "/latest/user-data": (200, TEXT, USER_DATA),
    "/latest/meta-data/public-keys/": (200, TEXT, b"0=mykey"),
    "/latest/meta-data/public-keys/0/": (200, TEXT, b"openssh-key"),
    "/latest/meta-data/public-keys/0/openssh-key": (200, TEXT, b"ssh-ed25519 AAAAnovacompat k\n"),
    "/latest/meta-data/public-keys/0/_name": (200, TEXT, b"0=mykey"),
    "/latest/meta-data/public-ipv4": (200, TEXT, b""),
    "/latest/meta-data/ami-manifest-path": (200, TEXT, b"FIXME"),
    "/latest/meta-data/hostname": (200, TEXT, b"web.novalocal"),
    "/latest/meta-data/../user-data": (200, TEXT, USER_DATA),
    "/latest/meta-data/placement/": (200, TEXT, b"availability-zone"),
    "/latest/meta-data/placement/region": (404, TEXT, NOT_FOUND),
    "/latest/meta-data/mac": (404, TEXT, NOT_FOUND),
    "/latest/dynamic/": (404, TEXT, NOT_FOUND),
    "/latest/api/token": (404, TEXT, NOT_FOUND),
    "/LATEST/": (404, TEXT, NOT_FOUND),
    "/openstack": (200, TEXT, OPENSTACK_VERSIONS),
    "/openstack/2013-10-17/": (
        200,
        TEXT,
        b"meta_data.json\nuser_data\npassword\nvendor_data.json",
    ),
    "/openstack/latest/password": (200, "text/html; charset=UTF-8", b""),
    "/openstack/2012-08-10/password": (404, TEXT, NOT_FOUND),
}


@pytest.fixture(scope="module")
def house(build):
    """A stand with nova_compatible = true."""
    with build(workers=1, nova_compatible=True) as house:
        house.stand.add_network("red", "10.1.0.2/24")
        house.stand.start_agent()
        yield house


@pytest.fixture(scope="module")
def instance(house):
    """An instance as Nova would have it."""
    return house.instance(
        user_data=USER_DATA, keys=[{"name": "mykey", "data": "ssh-ed25519 AAAAnovacompat k\n"}]
    )


@pytest.mark.parametrize("path", ANSWERS)
def test_nova_answers(instance, path):
    """Status, content type and body are Nova's."""
    answer = instance.get(path)
    assert (answer.status, answer.headers["Content-Type"], answer.body) == ANSWERS[path]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nova_answers_every_method(instance, method):
    """Nova gives the value to any method; the password knows GET and POST alone."""
    answer = instance.request(method, "/latest/meta-data/hostname")
    assert (answer.status, answer.body) == (200, b"web.novalocal")
    if method != "POST":
        refused = instance.request(method, "/openstack/latest/password")
        assert refused.status == 400
        assert b"GET and POST only are supported." in refused.body


def test_nova_has_no_tokens(instance):
    """A token PUT is 404, as it is in Nova."""
    answer = instance.request(
        "PUT", "/latest/api/token", [("X-aws-ec2-metadata-token-ttl-seconds", "60")]
    )
    assert (answer.status, answer.body) == (404, NOT_FOUND)


def test_what_nova_answers_500_to(instance):
    """Here the switch ends: where Nova fails we say 404, or 400."""
    for path in ("/latest/meta-data/instance-id/foo", "/latest/user-data/x"):
        assert instance.get(path).status == 404
