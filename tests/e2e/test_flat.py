"""The simple mode: one flat bridge, NGINX at 169.254.169.254, identity from the address."""

import json
import re
import socket
import uuid

import pytest
from stand import inside, receive, request_bytes, run, wait_for

pytestmark = pytest.mark.e2e

UUID = "/openstack/latest/meta_data.json"
TTL = ("X-aws-ec2-metadata-token-ttl-seconds", "60")


@pytest.fixture(scope="module")
def house(build):
    """A stand whose NGINX runs where the flat bridge is, with the hop limit's table loaded."""
    with build(start=False, flat=True) as house:
        stand = house.stand
        namespace = stand.add_network("flat", "10.1.0.2/24")
        stand.start_gunicorn()
        stand.start_nginx(namespace)

        def listens():
            stand.processes["nginx"].alive()
            with socket.socket() as probe:
                return probe.connect_ex(("169.254.169.254", 80)) == 0

        wait_for("nginx", lambda: inside(namespace, listens))
        table = stand.etc / "nginx" / "flat-hop-limit.nft"
        for _ in range(2):  # loading again replaces it
            run("ip", "netns", "exec", namespace, "nft", "-f", table)
        yield house


def add(house, address, **document):
    """An instance on the bridge; the operator's door is where NGINX is."""
    instance_id = str(uuid.uuid4())
    space = house.stand.add_instance(instance_id, "flat", f"{address}/24", "10.1.0.2")
    document = house.document("flat", address, space.mac, id=instance_id, **document)
    house.remember(document)
    answer = inside(
        house.stand.networks["flat"],
        lambda: house.operate("POST", "/v1/instances", document),
    )
    assert answer.status == 201, answer.text
    return space


@pytest.fixture(scope="module")
def one(house):
    """An instance of the flat network."""
    return add(house, "10.1.0.4", user_data=b"user data of the flat one")


@pytest.fixture(scope="module")
def two(house):
    """Its neighbour."""
    return add(house, "10.1.0.5", user_data=b"user data of the flat two")


def test_the_address_is_the_identity(one, two):
    """Each instance reads its own documents by the address that it has; others are 404."""
    for _ in range(5):
        assert json.loads(one.get(UUID).body)["uuid"] == one.id
        assert json.loads(two.get(UUID).body)["uuid"] == two.id
    assert one.curl("/latest/user-data") == "user data of the flat one"


def test_a_stranger_gets_404(house, one):
    """An address without a record is nobody."""
    space = house.stand.add_instance("nobody", "flat", "10.1.0.99/24", "10.1.0.2")
    answer = space.get(UUID)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=UTF-8")


def test_headers_make_nobody_else(one, two):
    """X-Forwarded-For and all the headers of the signed way count for nothing."""
    claims = [
        ("X-Forwarded-For", two.address),
        ("X_Forwarded_For", two.address),
        ("X-Real-IP", two.address),
        ("Forwarded", f"for={two.address}"),
        ("X-Instance-ID", two.id),
        ("X-Tenant-ID", "project-flat"),
        ("X-Mooring-Network", "flat"),
        ("X-Ssl-Client-Verify", "SUCCESS"),
    ]
    for claim in claims:
        assert json.loads(one.get(UUID, claim).body)["uuid"] == one.id, claim
        assert json.loads(one.get(UUID, claim, claim).body)["uuid"] == one.id, claim
    assert json.loads(one.get(UUID, *claims).body)["uuid"] == one.id


def test_tokens(house, one, two):
    """A token is given, bound to its instance; a PUT that was forwarded gets none."""
    answer = one.request("PUT", "/latest/api/token", [TTL])
    assert answer.status == 200
    assert "X-Mooring-Hop-Limit" not in answer.headers
    house.sensitive.add(answer.text)
    token = ("X-aws-ec2-metadata-token", answer.text)
    assert one.get(UUID, token).status == 200
    assert two.get(UUID, token).status == 401
    for value in ("10.9.9.9", "x"):
        forwarded = one.request("PUT", "/latest/api/token", [TTL, ("X-Forwarded-For", value)])
        assert forwarded.status == 403


def test_the_hop_limit_is_on_the_tokens_answer_alone(house, one):
    """With flat-hop-limit.nft loaded, packets of a token have TTL 1 and those of a read 64."""
    capture = inside(
        one.namespace,
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)),
    )
    capture.setblocking(False)
    found = []
    for raw in (
        request_bytes("GET", UUID),
        request_bytes("PUT", "/latest/api/token", [TTL]),
        request_bytes("GET", UUID),
    ):
        with one.connect() as connection:
            port = connection.getsockname()[1]
            connection.sendall(raw)
            answer = receive(connection)
            assert answer.status == 200
        if raw.startswith(b"PUT"):
            house.sensitive.add(answer.body)
        found.append(ttls(capture, port))
    capture.close()
    assert found == [{64}, {1}, {64}]


def ttls(capture, port):
    """The TTLs of packets with data from 169.254.169.254 to a port."""
    values = set()
    while True:
        try:
            raw, (_, _, kind, *_) = capture.recvfrom(65536)
        except BlockingIOError:
            return values
        if kind == socket.PACKET_OUTGOING or raw[12:16] != socket.inet_aton("169.254.169.254"):
            continue
        head = (raw[0] & 15) * 4
        if int.from_bytes(raw[head + 2 : head + 4], "big") != port:
            continue
        if int.from_bytes(raw[2:4], "big") > head + (raw[head + 12] >> 4) * 4:
            values.add(raw[8])


def test_the_inside_is_not_there(house, one):
    """Neither the operators' API nor health is behind the flat door."""
    for path in ("/v1/instances", "/healthz", "/readyz"):
        assert one.get(path).status == 404
    assert house.stand.ask_socket("flat.sock", "/readyz") == 200


def test_the_signed_door_takes_no_address(house, one):
    """The same address at the hosts' door is nobody without a signature."""
    headers = [("X-Forwarded-For", one.address)]
    answer = inside(house.stand.networks["flat"], lambda: house.ask(headers, target=UUID))
    assert answer.status in (400, 403)


def test_errors_are_text(one):
    """Whoever refuses, NGINX or the application: gunicorn's own errors, which are HTML, never."""
    body = request_bytes("POST", "/openstack/latest/password", body=b"p" * 5000)
    refused = {
        body: 413,
        request_bytes("X", UUID): 405,
        request_bytes("G" * 40, UUID): 405,
        request_bytes("get", UUID): 400,
        request_bytes("TRACE", UUID): 405,
        request_bytes("GET", "/" + "x" * 5000): 404,
        request_bytes("GET", "/" + "x" * 11000): 404,
        request_bytes("GET", "/" + "x" * 13000): 414,
        request_bytes("GET", UUID, [("X-aws-ec2-metadata-token", "A" * 11000)]): 401,
        request_bytes("GET", UUID, [("X-aws-ec2-metadata-token", "A" * 13000)]): 400,
        request_bytes("GET", UUID, [("Host", "other")]): 400,
        body.replace(b"Content-Length: 5000", b"Transfer-Encoding: chunked"): 400,
    }
    for raw, status in refused.items():
        answer = one.send(raw)
        assert answer.status == status, raw[:60]
        assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8", raw[:60]
        assert re.match(rf"{status} [A-Z].*\n\n", answer.text), raw[:60]
        assert (answer.headers["Allow"] == "GET, HEAD") == (status == 405), raw[:60]
        assert len(answer.headers.get_all("X-Request-ID")) == 1, raw[:60]
