"""The hop limit of token answers, seen in the packets that reach the instance."""

import pytest

from services.hostnet.agent.haproxy import NetworkPath, render_hop_limit_nft

pytestmark = pytest.mark.e2e

IDENTITIES = {"net": {"10.1.0.4": ("i-1", "p-1")}}
PUT = b"PUT /latest/api/token HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
FIN = 0x01


@pytest.fixture(scope="module")
def net(lab):
    network = lab.network()
    return NetworkPath("net", network), lab.instance(network)


@pytest.fixture
def instance(make_edge, recorder, net):
    edge = make_edge(recorder.port, networks=(net[0],))
    edge.apply(IDENTITIES)
    return net[1]


@pytest.fixture
def capture(tools, instance):
    capture = tools.Capture(instance.namespace)
    yield capture
    capture.socket.close()


@pytest.mark.parametrize("hops", [1, 2, 17, 64])
def test_a_token_answer_lives_for_its_hops(instance, recorder, capture, hops):
    """Its packets, to the last FIN, carry the TTL that the application named."""
    recorder.hops = str(hops)
    connection = instance.connect()
    port = connection.getsockname()[1]
    answer = instance.send(PUT, connection)
    assert (answer.status, answer.text) == (200, "i-1")
    assert answer.headers["Connection"] == "close"
    assert connection.recv(1) == b""
    connection.close()
    packets = capture.all(port)
    assert {packet.ttl for packet in packets if packet.data or packet.flags & FIN} == {hops}
    assert b"i-1" in b"".join(packet.data for packet in packets)


def test_other_answers_have_the_normal_ttl(instance, recorder, capture):
    """Before a token's answer on the same connection, and on the next connection."""
    recorder.hops = "1"
    connection = instance.connect()
    port = connection.getsockname()[1]
    assert instance.send(GET, connection).status == 200
    assert instance.send(PUT.replace(b"PUT", b"DELETE"), connection).status == 200
    assert {packet.ttl for packet in capture.all(port)} == {64}
    assert instance.send(PUT, connection).status == 200
    assert {packet.ttl for packet in capture.all(port) if b"i-1" in packet.data} == {64, 1}
    connection.close()
    second = instance.connect()
    port = second.getsockname()[1]
    assert instance.send(GET, second).status == 200
    assert {packet.ttl for packet in capture.all(port)} == {64}
    second.close()


@pytest.mark.parametrize(
    ("hops", "ttl"), [(None, 64), ("0", 1), ("65", 1), ("1, 64", 1), ("x", 1), ("", 1)]
)
def test_an_answer_without_a_proper_hop_limit(instance, recorder, capture, hops, ttl):
    """A refused PUT has the normal TTL; a limit that is none counts as the strictest."""
    recorder.hops = hops
    connection = instance.connect()
    port = connection.getsockname()[1]
    assert instance.send(PUT, connection).status == 200
    assert {packet.ttl for packet in capture.all(port) if packet.data} == {ttl}
    connection.close()


@pytest.fixture(scope="module")
def relayed(lab, net):
    """A container in the instance, behind its NAT."""
    container = lab.namespace()
    inside = net[1].namespace
    lab.wire(inside, "172.30.0.1/24", container, "172.30.0.2/24")
    return container


def test_a_relay_does_not_get_the_token(lab, net, relayed, instance, recorder, capture, tools):
    """A container behind the instance gets documents, but a token only with hop limit 2.

    Also not by sending a GET behind its PUT and waiting for what TCP sends again.
    """
    tools.sh("ip", "-n", relayed, "route", "replace", "default", "via", "172.30.0.1")
    tools.sh("ip", "netns", "exec", net[1].namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    tools.sh(
        *("ip", "netns", "exec", net[1].namespace, "nft", "-f", "-"),
        text="table ip monat { chain out { type nat hook postrouting priority srcnat;"
        " ip saddr 172.30.0.2 masquerade\n}\n}\n",
    )
    container = tools.Instance(relayed, "172.30.0.2")
    assert container.send(GET).text == "i-1"
    recorder.hops = "2"
    assert container.send(PUT).text == "i-1"
    recorder.hops = "1"
    connection = container.connect(timeout=1.5)
    port = connection.getsockname()[1]
    connection.sendall(PUT + GET)

    def tokens():
        return [packet for packet in capture.all(port) if b"i-1" in packet.data]

    # the first and two that TCP sent again
    tools.until(lambda: len(tokens()) >= 3, "the answer is not repeated")
    assert {packet.ttl for packet in tokens()} == {1}
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.close()


def test_the_table_is_loaded_again_without_a_gap(net, tools):
    """One script, one transaction, the same table however often it is loaded."""
    listing = ["ip", "netns", "exec", net[0].namespace, "nft", "list", "ruleset"]
    load = ["ip", "netns", "exec", net[0].namespace, "nft", "-f", "-"]
    tools.sh(*load, text=render_hop_limit_nft())
    once = tools.sh(*listing)
    tools.sh(*load, text=render_hop_limit_nft())
    assert tools.sh(*listing) == once
    assert once.count("ip ttl set") == 64
    assert once.count("ip6 hoplimit set") == 64
