"""Who an instance is: its network and address, never what it says."""

import json

import pytest
from stand import StandError, receive, request_bytes

from services.core.headers import INSIDE_ONLY

pytestmark = pytest.mark.e2e

UUID = "/openstack/latest/meta_data.json"


def uuid_of(answer):
    """The instance that an answer of meta_data.json is about."""
    assert answer.status == 200, answer.text
    return json.loads(answer.body)["uuid"]


def test_tenants_with_the_same_address_get_their_own(red, blue):
    """Two instances at 10.1.0.4 of two networks read each their own documents, again and again."""
    assert red.address == blue.address == "10.1.0.4"
    assert red.get("/latest/user-data").body.startswith(b"red's")
    assert blue.get("/latest/user-data").body.startswith(b"blue's")
    for _ in range(10):
        assert uuid_of(red.get(UUID)) == red.id
        assert uuid_of(blue.get(UUID)) == blue.id


def test_curl_tells_the_tenants_apart(red, blue):
    """The same with curl: instance ids differ, and each is the same in both formats."""
    ids = [space.curl("/latest/meta-data/instance-id") for space in (red, blue)]
    assert ids[0] != ids[1]
    assert all(value.startswith("i-") for value in ids)
    for space in (red, blue):
        assert json.loads(space.curl(UUID))["uuid"] == space.id


def test_an_address_without_an_instance_gets_404(house, red):
    """Another address on the red network is nobody, although the network is served."""
    stranger = house.stand.add_instance("nobody", "red", "10.1.0.200/24", "10.1.0.2")
    answer = stranger.get("/latest/meta-data/")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=UTF-8")
    assert answer.text.startswith("404 Not Found\n\n")


def test_connections_are_shared_and_identities_are_not(red, blue):
    """Requests of both tenants in turn over kept connections never get the other's answer."""
    raw = request_bytes("GET", UUID)
    with red.connect() as first, blue.connect() as second:
        for _ in range(20):
            for connection, space in ((first, red), (second, blue)):
                connection.sendall(raw)
                assert uuid_of(receive(connection)) == space.id


def spellings(name):
    """A header's name as an attacker would spell it."""
    return {name, name.lower(), name.upper(), name.replace("-", "_"), name.swapcase()}


def claims(house, victim):
    """Values that would make somebody else of the sender, were they believed."""
    pem = (house.stand.etc / "pki" / "host-host-1.crt").read_text()
    signed = dict(house.signed("host-1", target=UUID, **claim(victim)))
    values = {
        **signed,
        "X-Ssl-Client-Verify": "SUCCESS",
        "X-Ssl-Client-Cert": pem.replace("\n", "%0A").replace(" ", "%20"),
        "X-Metadata-Provider": victim.id,
        "Forwarded": f"for={victim.address}",
        "X-Mooring-Hop-Limit": "64",
    }
    return {name: values.get(name, victim.address) for name in INSIDE_ONLY}


def claim(space):
    """The fields of a signature for an instance."""
    return {
        "instance": space.id,
        "project": f"project-{space.network}",
        "network": space.network,
        "address": space.address,
    }


@pytest.mark.parametrize("header", sorted(INSIDE_ONLY))
def test_a_spoofed_header_changes_nothing(house, red, blue, header):
    """Every header that only the inside may set, however it is spelt, once or twice: no effect."""
    value = claims(house, blue)[header]
    if len(value) > 4000:
        value = value[:3000]
    for spelling in spellings(header):
        assert uuid_of(red.get(UUID, (spelling, value))) == red.id, spelling
        assert uuid_of(red.get(UUID, (spelling, value), (spelling, value))) == red.id, spelling
    mixed = (header, value), (header.lower(), ""), (header.replace("-", "_"), value)
    assert uuid_of(red.get(UUID, *mixed)) == red.id


def test_all_spoofed_headers_together_change_nothing(house, red, blue):
    """A complete claim with the victim's true signature: the sender stays who it is."""
    headers = [(n, v) for n, v in claims(house, blue).items() if n != "X-Ssl-Client-Cert"]
    assert uuid_of(red.get(UUID, *headers)) == red.id
    # The control: the same claim is good where a host's certificate stands behind it.
    signed = house.signed("host-1", target=UUID, **claim(blue))
    assert uuid_of(house.ask(signed, target=UUID)) == blue.id


def test_connection_cannot_name_the_signed_headers(red):
    """`Connection: X-Instance-ID` asks proxies to drop it hop by hop: ours arrives all the same."""
    named = "close, X-Instance-ID, X-Tenant-ID, X-Mooring-Signature, X-Forwarded-For"
    assert uuid_of(red.get(UUID, ("Connection", named))) == red.id


def test_a_token_put_with_an_own_forwarded_for_gets_403(house, red):
    """Whoever relays for others adds X-Forwarded-For; no token for them, however it is written."""
    ttl = ("X-aws-ec2-metadata-token-ttl-seconds", "60")
    for name in ("X-Forwarded-For", "x-forwarded-for", "X-FORWARDED-FOR"):
        for value in ("10.9.9.9", "", "nonsense", red.address):
            answer = red.request("PUT", "/latest/api/token", [ttl, (name, value)])
            assert answer.status == 403, (name, value)
            assert "X-aws-ec2-metadata-token-ttl-seconds" not in answer.headers
    answer = red.request("PUT", "/latest/api/token", [ttl])
    assert answer.status == 200
    house.sensitive.add(answer.text)
    assert uuid_of(red.get(UUID, ("X-Forwarded-For", "10.9.9.9"))) == red.id


def test_the_operators_door_is_not_there_for_an_instance(house, red):
    """No path, host name or header leads an instance to the operators' API or its port."""
    for path in ("/v1", "/v1/instances", f"/v1/instances/{red.id}", "/v1/../v1/instances"):
        assert red.get(path).status == 404
        assert red.get(path, ("X-Forwarded-Prefix", "/operators")).status == 404
        for host in ("operators.sock", f"localhost:{house.stand.operators_port}"):
            assert red.send(request_bytes("GET", path, host=host)).status == 404
    for port in (house.stand.operators_port, house.stand.metadata_port):
        for address in ("169.254.169.254", "10.1.0.2"):
            url = f"https://{address}:{port}/v1/instances"
            with pytest.raises(StandError, match=r"exit (7|28)"):
                red.run("curl", "-sk", "--max-time", "5", url)


def test_health_is_not_for_an_instance(house, red):
    """`/healthz` and `/readyz` mean nothing to an instance, while the inside gets its answer."""
    for path in ("/healthz", "/readyz", "/healthz/", "//healthz", "/healthz?x"):
        answer = red.get(path)
        assert answer.status == 404, path
        assert b"failing" not in answer.body
    assert house.stand.ask_socket("metadata.sock", "/healthz") == 200
    assert house.stand.ask_socket("metadata.sock", "/readyz") == 200


def test_answers_tell_nothing_of_the_inside(house, red):
    """No header of ours reaches an instance: no hop limit, no request's signature."""
    answers = [red.get("/latest/meta-data/"), red.get("/nothing"), red.get("/openstack")]
    answers.append(
        red.request("PUT", "/latest/api/token", [("X-aws-ec2-metadata-token-ttl-seconds", "60")])
    )
    house.sensitive.add(answers[-1].text)
    for answer in answers:
        assert not [name for name in answer.headers if name.lower().startswith("x-mooring")]
