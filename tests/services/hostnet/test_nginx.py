"""NGINX's files, as they are shipped, in front of an application on a unix socket."""

import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
from pathlib import Path

import pytest

from services.core.headers import INSIDE_ONLY
from services.hostnet.agent.haproxy import NetworkPath

pytestmark = pytest.mark.e2e

FILES = Path(__file__).parents[3] / "etc" / "nginx"
IDENTITIES = {"net": {"10.1.0.4": ("i-1", "p-1")}}
SERVER_BLOCKS = {
    "metadata.conf": 1,
    "operators.conf": 1,
    "flat.conf": 1,
    "ca.conf": 2,
    "network.conf": 1,
}


class Stand:
    """The files with their three prefixes and the ports changed, and an NGINX that runs them."""

    def __init__(self, directory, pki, tools, network=None, flat=False):
        self.directory, self.tools = directory, tools
        self.ports = {port: tools.free_port() for port in ("8775", "8774", "9696")}
        for name in ("etc/nginx", "run", "log"):
            (directory / name).mkdir(parents=True)
        (directory / "etc" / "pki").symlink_to(pki.directory)
        for file in FILES.glob("*.conf"):
            text = file.read_text()
            for before, after in (
                ("/etc/mooring", f"{directory}/etc"),
                ("/run/mooring", f"{directory}/run"),
                ("/var/log/mooring", f"{directory}/log"),
                ("worker_processes auto;", "worker_processes 1; user root;"),
            ):
                text = text.replace(before, after)
            for before, after in self.ports.items():
                text = text.replace(f"listen {before} ", f"listen 127.0.0.1:{after} ")
            if flat:
                text = text.replace("    #include", "    include")
            (directory / "etc" / "nginx" / file.name).write_text(text)
        self.metadata = tools.Recorder()
        self.operators = tools.Recorder()
        self.flat = tools.Recorder()
        for name in ("metadata", "operators", "flat"):
            getattr(self, name).start_unix(directory / "run" / f"{name}.sock")
        enter = ["ip", "netns", "exec", network] if network else []
        self.command = [
            *enter,
            "nginx",
            *("-c", str(directory / "etc" / "nginx" / "nginx.conf")),
            *("-e", str(directory / "log" / "start.log")),
        ]
        tools.sh(*self.command)

    def close(self):
        pid = int((self.directory / "run" / "nginx.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        self.tools.until(lambda: not Path("/proc", str(pid)).exists(), "NGINX stays")
        for recorder in (self.metadata, self.operators, self.flat):
            recorder.close()

    def logs(self):
        return "".join(file.read_text() for file in (self.directory / "log").iterdir())


@pytest.fixture(scope="module")
def stand(tmp_path_factory, pki, tools):
    stand = Stand(tmp_path_factory.mktemp("nginx"), pki, tools)
    yield stand
    stand.close()


@pytest.fixture(autouse=True)
def fresh(request):
    if "stand" in request.fixturenames:
        stand = request.getfixturevalue("stand")
        for recorder in (stand.metadata, stand.operators, stand.flat):
            recorder.seen.clear()


def connect(stand, pki, port="8775", client="host-host-a"):
    if client:
        context = pki.client(client)
    else:
        context = ssl.create_default_context(cafile=pki.path("root.crt"))
    raw = socket.create_connection(("127.0.0.1", stand.ports[port]), 15)
    return context.wrap_socket(raw, server_hostname="metadata.example.org")


def send(stand, pki, tools, request, port="8775", client="host-host-a"):
    with connect(stand, pki, port, client) as connection:
        connection.sendall(request)
        return tools.receive(connection, request.partition(b" ")[0].decode())


def get(*headers, target="/", method="GET"):
    lines = [f"{method} {target} HTTP/1.1", "Host: metadata", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def test_a_hosts_request_carries_its_certificate(stand, pki, tools):
    """Verification's outcome, the certificate, a request id, and the peer behind the address."""
    answer = send(
        *(stand, pki, tools),
        get("X-Forwarded-For: 10.1.0.4", "X-Instance-ID: i-1", "X-Tenant-ID: p-1"),
    )
    assert (answer.status, answer.text) == (200, "i-1")
    seen = stand.metadata.last
    assert seen.one("X-Ssl-Client-Verify") == "SUCCESS"
    assert seen.one("X-Ssl-Client-Cert").startswith("-----BEGIN%20CERTIFICATE-----")
    assert re.fullmatch("req-[0-9a-f]{32}", seen.one("X-Request-ID"))
    assert seen.one("X-Forwarded-For") == "10.1.0.4, 127.0.0.1"
    assert seen.one("X-Tenant-ID") == "p-1"
    assert seen.one("Host") == "metadata"
    assert seen.one("Connection") == "close"


@pytest.mark.parametrize("port", ["8775", "8774"])
@pytest.mark.parametrize("client", [None, "other/host-host-a"])
def test_no_certificate_of_ours_no_request(stand, pki, tools, port, client):
    """Without a certificate, or with another authority's, nothing reaches the application."""
    answer = send(stand, pki, tools, get(), port=port, client=client)
    assert answer.status == 400
    if port == "8774":
        error = json.loads(answer.body)["error"]
        assert (error["status"], error["code"]) == (400, "client-certificate")
        assert re.fullmatch("req-[0-9a-f]{32}", error["request_id"])
    else:
        assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
        assert answer.text.startswith("400 Bad Request\n\n")
    assert stand.metadata.seen == stand.operators.seen == []


def test_a_leaf_alone_is_enough(stand, pki, tools, tmp_path):
    """A client that does not send its intermediate is served as well."""
    leaf = Path(pki.path("operator.crt")).read_text().partition("-----END CERTIFICATE-----")
    (tmp_path / "leaf.crt").write_text(leaf[0] + leaf[1] + "\n")
    context = ssl.create_default_context(cafile=pki.path("root.crt"))
    context.load_cert_chain(tmp_path / "leaf.crt", pki.path("operator.key"))
    with (
        socket.create_connection(("127.0.0.1", stand.ports["8774"]), 15) as raw,
        context.wrap_socket(raw, server_hostname="metadata.example.org") as connection,
    ):
        connection.sendall(get())
        assert tools.receive(connection).status == 200


@pytest.mark.parametrize(
    ("version", "right"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_tls_versions(stand, pki, version, right):
    """1.2 and 1.3, nothing older; no session is resumed, for then no certificate is verified."""
    context = pki.client("host-host-a")
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    if not right:
        done = subprocess.run(
            [
                *("openssl", "s_client", "-connect", f"127.0.0.1:{stand.ports['8775']}"),
                *("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"),
            ],
            input=b"",
            capture_output=True,
            check=False,
        )
        assert b"protocol version" in done.stderr
        return
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", stand.ports["8775"]), 15) as raw,
        context.wrap_socket(raw, server_hostname="metadata.example.org") as connection,
    ):
        connection.sendall(get())
        assert connection.recv(12) == b"HTTP/1.1 200"
        session = connection.session
    with (
        socket.create_connection(("127.0.0.1", stand.ports["8775"]), 15) as raw,
        context.wrap_socket(
            raw, server_hostname="metadata.example.org", session=session
        ) as connection,
    ):
        connection.sendall(get())
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert not connection.session_reused


FROM_HOSTS = {
    "X-Forwarded-For",
    "X-Instance-ID",
    "X-Tenant-ID",
    "X-Instance-ID-Signature",
    "X-Mooring-Network",
    "X-Mooring-Time",
    "X-Mooring-Signature",
    "X-Mooring-Forwarded",
}
OTHERS = {
    "X-Ssl-Client-S-Dn",
    "Client-Cert",
    "X-Mooring-Anything",
    "Script_Name",
    "X_Instance_ID",
    "X_Ssl_Client_Verify",
    "Proxy",
    "Authorization",
    "Cookie",
    "Expect",
    "Via",
    "Upgrade",
    "TE",
}


@pytest.mark.parametrize("port", ["8775", "8774"])
def test_what_a_client_forges_does_not_pass(stand, pki, tools, port):
    """Not from a host, beyond what hosts say; from an operator nothing of the inside at all."""
    forged = sorted((set(INSIDE_ONLY) | OTHERS) - (FROM_HOSTS if port == "8775" else set()))
    forged.remove("Expect")
    lines = [f"{name}: evil" for name in forged]
    again = [line for line in lines if not line.startswith("Authorization")]  # one only: else 400
    answer = send(stand, pki, tools, get(*lines, *again), port=port)
    assert answer.status == 200
    (seen,) = stand.metadata.seen + stand.operators.seen
    assert "evil" not in repr(seen.headers)
    assert seen.all("X-Ssl-Client-Verify") == ["SUCCESS"]
    assert seen.one("X-Forwarded-For") == "127.0.0.1"
    assert seen.names == {
        "host",
        "connection",
        "x-request-id",
        "x-ssl-client-verify",
        "x-ssl-client-cert",
        "x-forwarded-for",
    }


TARGETS = [
    "/",
    "//latest//meta-data/",
    "///",
    "/a/../b/./c",
    "/a%2Fb%2fc/%41",
    "/%25%20+?q=%2F&r=a+b??",
    "/;a?b;c",
    "/a'\"<>|{}^`\\",
]


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_goes_on_byte_for_byte(stand, pki, tools, target):
    """The signature covers the target as sent, so NGINX may not tidy it."""
    assert send(stand, pki, tools, get(target=target)).status == 200
    assert stand.metadata.last.target == target


def test_an_absolute_target_goes_on_in_origin_form(stand, pki, tools):
    """What is signed is the origin form; HAProxy refuses the other before."""
    assert send(stand, pki, tools, get(target="http://metadata//a%2Fb?c")).status == 200
    assert stand.metadata.last.target == "//a%2Fb?c"


@pytest.mark.parametrize("target", ["/%00", "/%zz", "/../etc/passwd", "/%2e%2e/x"])
def test_a_target_that_nginx_refuses_is_plain_400(stand, pki, tools, target):
    """In text for instances, in JSON for operators, never NGINX's page."""
    answer = send(stand, pki, tools, get(target=target))
    assert (answer.status, answer.headers["Content-Type"]) == (400, "text/plain; charset=UTF-8")
    answer = send(stand, pki, tools, get(target=target), port="8774")
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "bad-request"
    assert stand.metadata.seen == stand.operators.seen == []


@pytest.mark.parametrize(("port", "limit"), [("8775", 2048), ("8774", 256 * 1024)])
def test_body_limits(stand, pki, tools, port, limit):
    """The largest body passes whole, one byte more is 413; chunked is counted as well."""
    recorder = stand.metadata if port == "8775" else stand.operators
    body = b"x" * limit
    request = get(f"Content-Length: {limit}", "Content-Type: text/plain", method="POST") + body
    assert send(stand, pki, tools, request, port=port).status == 200
    assert recorder.last.body == body
    assert recorder.last.one("Content-Type") == "text/plain"
    chunked = get("Transfer-Encoding: chunked", method="POST")
    request = chunked + b"%x\r\n" % limit + body + b"\r\n0\r\n\r\n"
    assert send(stand, pki, tools, request, port=port).status == 200
    assert recorder.last.body == body
    recorder.seen.clear()
    request = get(f"Content-Length: {limit + 1}", method="POST")
    answer = send(stand, pki, tools, request, port=port)
    assert answer.status == 413
    assert answer.headers["Content-Type"].startswith(
        "text/plain" if port == "8775" else "application/json"
    )
    request = chunked + b"%x\r\n" % (limit + 1) + body + b"x\r\n0\r\n\r\n"
    assert send(stand, pki, tools, request, port=port).status == 413
    assert recorder.seen == []


def test_header_limits(stand, pki, tools):
    """What HAProxy lets through passes, much more does not."""
    token = "t" * 8000
    assert send(stand, pki, tools, get(f"X-Metadata-Token: {token}")).status == 200
    assert stand.metadata.last.one("X-Metadata-Token") == token
    stand.metadata.seen.clear()
    answer = send(stand, pki, tools, get(f"X-Metadata-Token: {token * 2}"))
    assert (answer.status, answer.headers["Content-Type"]) == (400, "text/plain; charset=UTF-8")
    answer = send(stand, pki, tools, get(target="/" + "a" * 13000))
    assert (answer.status, answer.headers["Content-Type"]) == (414, "text/plain; charset=UTF-8")
    assert stand.metadata.seen == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n",
        b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_ambiguous_requests_end_here(stand, pki, tools, request_bytes):
    """Two lengths, two hosts, no host, TRACE."""
    answer = send(stand, pki, tools, request_bytes)
    assert answer.status == (405 if request_bytes.startswith(b"TRACE") else 400)
    assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert stand.metadata.seen == []


def test_the_pages_of_errors_are_not_there_for_clients(stand, pki, tools):
    """Asked for by name they are 404, in our form."""
    answer = send(stand, pki, tools, get(target="/.mooring/unavailable"))
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=UTF-8")
    answer = send(stand, pki, tools, get(target="/.mooring/unavailable"), port="8774")
    assert json.loads(answer.body)["error"]["code"] == "not-found"


def test_without_application_another_controller_is_asked(stand, pki, tools):
    """502 for HAProxy, which tries elsewhere; operators get 503 in JSON, with Retry-After."""
    stand.metadata.close()
    stand.operators.close()
    try:
        answer = send(stand, pki, tools, get())
        assert (answer.status, answer.headers["Retry-After"]) == (502, "2")
        assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
        assert answer.text
        answer = send(stand, pki, tools, get(), port="8774")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert json.loads(answer.body)["error"]["status"] == 503
    finally:
        stand.metadata.start_unix(stand.directory / "run" / "metadata.sock")
        stand.operators.start_unix(stand.directory / "run" / "operators.sock")


def test_a_host_asks_for_health_itself(stand, pki, tools):
    """Bare and unlogged; an instance's request for the same path is like any other."""
    send(stand, pki, tools, get("X-Forwarded-For: 10.1.0.4", target="/healthz"))
    assert stand.metadata.health[-1].names == {"host", "connection"}
    answer = send(stand, pki, tools, get("X-Instance-ID: i-1", target="/healthz?a=%20"))
    assert answer.text == "i-1"
    assert send(stand, pki, tools, get("X-Instance-ID: i-1", target="/%68ealthz")).text == "i-1"
    send(stand, pki, tools, get("X-Instance-ID: i-1", target="/healthz"))
    seen = stand.metadata.health[-1]
    assert seen.one("X-Ssl-Client-Verify") == "SUCCESS"
    assert seen.one("X-Instance-ID") == "i-1"
    assert seen.one("X-Forwarded-For") == "127.0.0.1"


@pytest.mark.parametrize("status", [400, 404, 413, 500, 502, 503])
def test_the_applications_errors_pass_as_they_are(stand, pki, tools, status):
    """NGINX's own pages never replace an answer of the application."""
    answer = send(stand, pki, tools, get("X-Instance-ID: i", target=f"/status/{status}"))
    assert (answer.status, answer.text) == (status, "i")
    answer = send(stand, pki, tools, get(target=f"/status/{status}"), port="8774")
    assert (answer.status, answer.text) == (status, "nobody")


def test_logs_hold_no_secret(stand, pki, tools):
    """One JSON object a request, with its id and path, without query, headers or certificate."""
    lines = [
        "X-aws-ec2-metadata-token: secret-1",
        "Authorization: secret-2",
        "X-Mooring-Signature: secret-3",
        "Cookie: secret-4",
    ]
    assert send(stand, pki, tools, get(*lines, target="/seen?password=secret-5")).status == 200
    request_id = stand.metadata.last.one("X-Request-ID")
    access = stand.directory / "log" / "metadata.access.log"
    tools.until(lambda: request_id in access.read_text(), "not logged")
    assert "secret-" not in stand.logs()
    assert "BEGIN" not in stand.logs()
    for line in access.read_text().splitlines():
        json.loads(line)
    (entry,) = [json.loads(text) for text in access.read_text().splitlines() if request_id in text]
    assert entry["path"] == "/seen"
    assert entry["client"] == "CN=host-a,O=mooring:hosts"
    assert (entry["status"], entry["method"]) == (200, "GET")


def test_every_location_that_proxies_includes_the_one_snippet():
    """One proxy_set_header elsewhere, or a block that forgets a variable, would open a way in."""
    variables = set(re.findall(r"(\$mooring_\w+);", (FILES / "proxy.conf").read_text()))
    assert len(variables) == 9
    for file in FILES.glob("*.conf"):
        text = re.sub(r"#.*", "", file.read_text())
        proxied = text.count("proxy_pass http")
        if file.name == "health.conf":
            # two headers that NGINX makes up, none of the client's
            assert re.findall(r"proxy_set_header (.+);", text) == [
                "Host health",
                "Connection close",
            ]
            assert text.count("proxy_pass_request_headers off;") == 1
            proxied -= 1
        else:
            assert ("proxy_set_header" in text) == (file.name == "proxy.conf")
        assert proxied == text.count("include /etc/mooring/nginx/proxy.conf")
        _, *blocks = text.split("server {")
        assert len(blocks) == SERVER_BLOCKS.get(file.name, 0)
        for block in blocks:
            assert set(re.findall(r"set (\$mooring_\w+) ", block)) == variables
    sent = re.findall(r"proxy_set_header (\S+)", (FILES / "proxy.conf").read_text())
    assert len(sent) == len({name.lower() for name in sent})


# -- behind a real HAProxy


def test_the_whole_path(lab, make_edge, stand, pki, tools):
    """Instance, HAProxy, mutual TLS, NGINX: identity and signature arrive whole."""
    network = lab.network()
    instance = lab.instance(network)
    edge = make_edge(stand.ports["8775"], networks=(NetworkPath("net", network),))
    edge.apply(IDENTITIES)
    for target in ("/", "//a%2Fb?c=%20", "/latest/meta-data/"):
        assert instance.get(target, "X-Instance-ID: evil").text == "i-1"
        seen = stand.metadata.last
        assert seen.target == target
        assert seen.one("X-Forwarded-For") == "10.1.0.4, 127.0.0.1"
        expected = tools.expected_signature(seen, "i-1", "p-1", "net", "10.1.0.4")
        assert seen.one("X-Mooring-Signature") == expected
        assert "x-mooring-forwarded" not in seen.names
    assert instance.get("/", "X-Forwarded-For: 1.2.3.4").status == 200
    assert stand.metadata.last.one("X-Mooring-Forwarded") == "1"
    body = "Content-Length: 2048\r\n\r\n" + "p" * 2048
    answer = instance.send(f"POST /password HTTP/1.1\r\nHost: h\r\n{body}".encode())
    assert answer.status == 200
    assert len(stand.metadata.last.body) == 2048
    stand.metadata.close()
    try:
        answer = instance.get("/")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert answer.text.startswith("503 Service Unavailable\n\n")
    finally:
        stand.metadata.start_unix(stand.directory / "run" / "metadata.sock")


# -- the flat mode


@pytest.fixture(scope="module")
def flat(lab, tmp_path_factory, pki, tools):
    """NGINX in the namespace of a flat network, an instance beside it, the hop limit loaded."""
    network = lab.network()
    instance = lab.instance(network)
    stand = Stand(tmp_path_factory.mktemp("flat"), pki, tools, network=network, flat=True)
    tools.sh("ip", "netns", "exec", network, "nft", "-f", str(FILES / "flat-hop-limit.nft"))
    yield stand, instance
    stand.close()


def test_flat_identity_is_the_address(flat):
    """X-Forwarded-For is set to the peer; nothing that the instance says about itself passes."""
    stand, instance = flat
    lines = [f"{name}: evil" for name in sorted((set(INSIDE_ONLY) | OTHERS) - {"Expect"})]
    lines.remove("X-Forwarded-For: evil")
    again = [line for line in lines if not line.startswith("Authorization")]  # one only: else 400
    assert instance.get("//a%2Fb?c", *lines, *again).status == 200
    seen = stand.flat.last
    assert seen.target == "//a%2Fb?c"
    assert "evil" not in repr(seen.headers)
    assert seen.one("X-Forwarded-For") == "10.1.0.4"
    assert seen.names == {"host", "connection", "x-request-id", "x-forwarded-for"}


def test_flat_forwarded_requests_are_marked(flat):
    """As HAProxy does; the address stays the peer's."""
    stand, instance = flat
    assert instance.get("/", "X-Forwarded-For: 10.0.0.9").status == 200
    assert stand.flat.last.one("X-Mooring-Forwarded") == "1"
    assert stand.flat.last.one("X-Forwarded-For") == "10.1.0.4"


def test_flat_is_one_request_a_connection(flat):
    """The hop limit belongs to the connection; and the limit itself stays inside."""
    stand, instance = flat
    stand.flat.hops = "1"
    answer = instance.get("/latest/api/token", "Content-Length: 0", method="PUT")
    assert answer.status == 200
    assert answer.headers["Connection"] == "close"
    assert "X-Mooring-Hop-Limit" not in answer.headers
    connection = instance.connect()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
    response = b""
    while chunk := connection.recv(4096):
        response += chunk
    assert response.count(b"HTTP/1.1 ") == 1
    connection.close()


@pytest.mark.parametrize(
    ("pieces", "ttl"),
    [
        ([b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"], 64),
        ([b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"], 64),
        ([b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"], 64),
        ([b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n"], 1),
        ([b"P", b"UT / HTTP/1.1\r\nHost: h\r\n\r\n"], 1),
        ([b"PUT", b" / HTTP/1.1\r\nHost: h\r\n\r\n"], 1),
        ([b"\r\n", b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n"], 1),
        ([b"PUT / HTTP/1.1\r\n", b"GET : h\r\nHost: h\r\n\r\n"], 1),
        # the price: an answer to a request in pieces does not go through a relay
        ([b"GET / HTTP/1.1\r\n", b"Host: h\r\n\r\n"], 1),
    ],
)
def test_flat_hop_limit(flat, tools, pieces, ttl):
    """Answers to a PUT, however it is cut, have TTL 1; those to a GET the normal one."""
    _, instance = flat
    capture = tools.Capture(instance.namespace)
    connection = instance.connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    port = connection.getsockname()[1]
    for piece in pieces:
        connection.sendall(piece)
        # the next piece goes into a packet of its own once this one is acknowledged
        tools.until(lambda: unacknowledged(connection) == 0, "not acknowledged")
    while connection.recv(4096):
        pass
    connection.close()
    assert {packet.ttl for packet in capture.all(port) if packet.data} == {ttl}
    capture.socket.close()


def unacknowledged(connection):
    # struct tcp_info: tcpi_unacked is the fifth 32-bit word after eight octets
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack_from("I", information, 24)[0]
