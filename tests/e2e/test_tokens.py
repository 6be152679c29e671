"""Session tokens of IMDSv2, per-instance options and the hop limit, through the whole path."""

import base64
import json
import re
import socket
import struct

import pytest
from stand import inside, receive, request_bytes, wait_for

pytestmark = pytest.mark.e2e

PUT = "/latest/api/token"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
READ = ("/latest/meta-data/instance-id", "/openstack/latest/meta_data.json", "/latest/user-data")
USER_DATA = b"user data behind a token"


@pytest.fixture(scope="module")
def required(house):
    """An instance that demands tokens."""
    return house.instance(user_data=USER_DATA, options={"http_tokens": "required"})


@pytest.fixture(scope="module")
def optional(house):
    """An instance that takes tokens and does not demand them."""
    return house.instance(user_data=USER_DATA)


def assert_refused(answer, status):
    """A refusal: its status, plain text, never empty."""
    assert answer.status == status
    assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert answer.text.startswith(f"{status} ")


def test_a_token_opens_both_trees(house, required):
    """Where tokens are demanded, nothing is read without one and everything with one."""
    token = house.token(required)
    for path in READ:
        assert_refused(required.get(path), 401)
        assert required.get(path, (TOKEN, token)).status == 200, path
    assert json.loads(required.get(READ[1], (TOKEN, token)).body)["uuid"] == required.id
    assert required.get(READ[2], (TOKEN, token)).body == USER_DATA
    assert_refused(required.get(READ[0], (TOKEN, "")), 401)
    assert_refused(required.get("/"), 401)
    assert_refused(required.get("/openstack"), 401)


def test_a_token_of_one_worker_is_good_at_every_other(house, required):
    """Tokens have no state: one is checked by whoever gets the request."""
    token = house.token(required)
    statuses = [required.get(READ[0], (TOKEN, token)).status for _ in house.each_worker()]
    assert statuses == [200] * house.stand.workers


def test_the_answer_to_a_token_put(house, optional):
    """200 with the token, its time to live and no caching; HEAD and GET name the method."""
    answer = optional.request("PUT", PUT, [(TTL, "21600")])
    assert answer.status == 200
    house.sensitive.add(answer.text)
    assert re.fullmatch(r"[A-Za-z0-9_-]{68}", answer.text)
    assert answer.headers[TTL] == "21600"
    assert answer.headers["Cache-Control"] == "no-store"
    for method in ("GET", "POST", "DELETE"):
        refused = optional.request(method, PUT)
        assert_refused(refused, 405)
        assert refused.headers["Allow"] == "PUT"


@pytest.mark.parametrize("ttl", [None, "", "0", "21601", "-1", "1.5", "ten", "1e3", "999999", "٣"])
def test_a_token_put_without_a_proper_ttl_gets_400(optional, ttl):
    """The time to live is 1 to 21,600 seconds in decimal digits."""
    headers = [] if ttl is None else [(TTL, ttl.encode().decode("latin-1"))]
    assert_refused(optional.request("PUT", PUT, headers), 400)


def test_a_dated_token_path_gets_403(optional):
    """As AWS has it: tokens are at /latest alone."""
    assert_refused(optional.request("PUT", "/2021-03-23/api/token", [(TTL, "60")]), 403)


def test_an_expired_token_gets_401(house, optional):
    """A token of one second is good, and after that second is not."""
    token = house.token(optional, ttl=1)
    assert optional.get(READ[0], (TOKEN, token)).status == 200
    wait_for(
        "the token's end", lambda: optional.get(READ[0], (TOKEN, token)).status == 401, seconds=10
    )
    assert_refused(optional.get(READ[1], (TOKEN, token)), 401)


def test_a_forged_token_gets_401(house, optional):
    """Any changed bit, a longer life, another form: each is refused also where none is needed."""
    token = house.token(optional)
    raw = bytearray(base64.urlsafe_b64decode(token))
    forged = []
    for position in (0, 3, 8, 12, 20, 50):
        changed = bytearray(raw)
        changed[position] ^= 1
        forged.append(base64.urlsafe_b64encode(changed).decode())
    forged += ["x", token[:-1], token + "A", token.swapcase(), token * 3, "0" * 68, "é" * 34]
    for each in forged:
        assert_refused(optional.get(READ[0], (TOKEN, each)), 401)
    assert_refused(optional.get(READ[0], (TOKEN, forged[0]), (TOKEN, token)), 401)
    assert optional.get(READ[0], (TOKEN, token)).status == 200


def test_another_instances_token_gets_401(house, optional, required, blue):
    """A token is bound to its instance: of the same network, or of another with equal address."""
    stolen = house.token(required)
    assert_refused(optional.get(READ[0], (TOKEN, stolen)), 401)
    assert_refused(blue.get(READ[1], (TOKEN, stolen)), 401)
    assert required.get(READ[0], (TOKEN, stolen)).status == 200


def test_tokens_can_be_demanded_while_the_instance_runs(house):
    """`http_tokens` counts from the next request on, both ways."""
    instance = house.instance()
    assert instance.get(READ[0]).status == 200
    house.change(instance.id, options={"http_tokens": "required"})
    assert instance.get(READ[0]).status == 401
    house.change(instance.id, options={"http_tokens": "optional"})
    assert instance.get(READ[0]).status == 200


def test_a_disabled_endpoint_gets_403(house):
    """With `http_endpoint` off nothing is read and no token given; switched on it is all there."""
    instance = house.instance(options={"http_endpoint": "disabled"})
    for path in ("/", "/openstack", *READ[:2], "/openstack/latest/password"):
        assert_refused(instance.get(path), 403)
    assert_refused(instance.request("PUT", PUT, [(TTL, "60")]), 403)
    assert_refused(instance.request("POST", "/openstack/latest/password", body=b"x" * 20), 403)
    house.change(instance.id, options={"http_endpoint": "enabled"})
    assert instance.get(READ[0]).status == 200
    assert instance.get("/openstack/latest/password").body == b""


def test_tags_are_there_only_where_they_are_enabled(house):
    """`instance_metadata_tags` opens tags/instance/, with each tag's value."""
    tags = {"Name": "web 1", "cost:center": "42", "empty": ""}
    instance = house.instance(tags=tags, options={"instance_metadata_tags": "enabled"})
    base = "/latest/meta-data/tags/instance/"
    assert sorted(instance.get(base).text.split()) == sorted(tags)
    for name, value in tags.items():
        answer = instance.get(base + name)
        assert (answer.status, answer.text) == (200, value)
    house.change(instance.id, options={"instance_metadata_tags": "disabled"})
    assert instance.get(base).status == 404
    assert "tags/" not in instance.get("/latest/meta-data/").text.split()


class Capture:
    """The IPv4 packets with data that come to a namespace from 169.254.169.254."""

    def __init__(self, space):
        def make():
            # IPv4 (0x0800) without the Ethernet header
            return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))

        self.socket = inside(space.namespace, make)
        self.socket.setblocking(False)

    def ttls(self, port):
        """The TTLs of packets with data to this port so far."""
        found = set()
        while True:
            try:
                raw, (_, _, kind, *_) = self.socket.recvfrom(65536)
            except BlockingIOError:
                return found
            if kind == socket.PACKET_OUTGOING or raw[12:16] != socket.inet_aton("169.254.169.254"):
                continue
            head = (raw[0] & 15) * 4
            (total,) = struct.unpack("!H", raw[2:4])
            (target,) = struct.unpack("!H", raw[head + 2 : head + 4])
            if target == port and total > head + (raw[head + 12] >> 4) * 4:
                found.add(raw[8])


def ttls_of(space, *requests):
    """The TTLs of the packets that answer each request, all on connections of their own."""
    capture = Capture(space)
    found = []
    try:
        for raw in requests:
            with space.connect() as connection:
                port = connection.getsockname()[1]
                connection.sendall(raw)
                assert receive(connection).status == 200
                found.append(capture.ttls(port))
    finally:
        capture.socket.close()
    return found


def test_the_hop_limit_is_on_the_tokens_answer_alone(house, optional):
    """A token comes in packets with TTL 1, everything else with the normal one."""
    put = request_bytes("PUT", PUT, [(TTL, "60")])
    get = request_bytes("GET", READ[0])
    assert ttls_of(optional, get, put, get) == [{64}, {1}, {64}]


def test_the_hop_limit_is_the_instances_option(house, optional):
    """`http_put_response_hop_limit` sets the TTL, from the next token on."""
    put = request_bytes("PUT", PUT, [(TTL, "60")])
    for hops in (2, 33, 64):
        house.change(optional.id, options={"http_put_response_hop_limit": hops})
        assert ttls_of(optional, put) == [{hops}]
    house.change(optional.id, options={"http_put_response_hop_limit": 1})
    assert ttls_of(optional, put) == [{1}]
