"""The host's HAProxy, for real: in namespaces, over mutual TLS, while it is changed."""

import os
import re
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.hostnet.agent.haproxy import (
    CLIENT_HEADERS,
    INSTANCE_CONNECTIONS,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_TARGET_BYTES,
    NetworkPath,
)
from services.hostnet.agent.metadata_proxy import ProxyError, _listeners, _processes

pytestmark = pytest.mark.e2e

RED, BLUE = "3f9c4e0a-0000-4000-8000-00000000000a", "blue"
IDENTITIES = {
    RED: {"10.1.0.4": ("i-red", "p-red")},
    BLUE: {"10.1.0.4": ("i-blue", "p-blue")},
}


@pytest.fixture(scope="module")
def quiet(lab, tools):
    """Gives a network's namespace and an instance in it, in which nothing listens.

    They are shared by the tests until one leaves a listener: the next then gets new ones, so that
    one failure stays one.
    """
    made = {}

    def give(name):
        if name not in made or tools.inside(made[name][0], _listeners):
            network = lab.network()
            made[name] = network, lab.instance(network)
        network, instance = made[name]
        return NetworkPath(name, network), instance

    return give


@pytest.fixture
def red(quiet):
    return quiet(RED)


@pytest.fixture
def blue(quiet):
    return quiet(BLUE)


@pytest.fixture
def edge(make_edge, recorder, red, blue):
    edge = make_edge(recorder.port, networks=(red[0], blue[0]))
    edge.apply(IDENTITIES)
    return edge


def test_the_same_address_in_two_networks_is_two_instances(edge, recorder, red, blue, tools):
    """Two tenants with 10.1.0.4 on one host each get their own identity, signed."""
    for (_, instance), network, name in ((red, RED, "red"), (blue, BLUE, "blue")):
        answer = instance.get("/latest/meta-data/?x=%20y")
        assert (answer.status, answer.text) == (200, f"i-{name}")
        seen = recorder.last
        assert seen.one("X-Instance-ID") == f"i-{name}"
        assert seen.one("X-Tenant-ID") == f"p-{name}"
        assert seen.one("X-Mooring-Network") == network
        assert seen.one("X-Forwarded-For") == "10.1.0.4"
        assert abs(int(seen.one("X-Mooring-Time")) - time.time()) < 5
        assert seen.one("X-Mooring-Signature") == tools.expected_signature(
            seen, f"i-{name}", f"p-{name}", network, "10.1.0.4"
        )
        assert "x-mooring-forwarded" not in seen.names


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "//latest//meta-data",
        "/a%2Fb/%2e%2e/%00",
        "/latest/../openstack",
        "/?a=b?c&d=%0a",
        "/x\\y'\"<>",
        "/;a=1",
        "/%25%[src]${HOME}",
    ],
)
def test_the_target_is_forwarded_and_signed_byte_for_byte(edge, recorder, red, target, tools):
    """Whatever stands in the target reaches the controller unchanged and under the signature."""
    assert red[1].get(target).status == 200
    assert recorder.last.target == target
    expected = tools.expected_signature(recorder.last, "i-red", "p-red", RED, "10.1.0.4")
    assert recorder.last.one("X-Mooring-Signature") == expected


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"])
def test_the_method_is_signed(edge, recorder, red, method, tools):
    """The application judges methods; the proxy signs and forwards them."""
    assert red[1].get("/m", "Content-Length: 0", method=method).status == 200
    assert recorder.last.method == method
    expected = tools.expected_signature(recorder.last, "i-red", "p-red", RED, "10.1.0.4")
    assert recorder.last.one("X-Mooring-Signature") == expected


SPOOFED = [
    "X-Instance-ID: evil",
    "x-instance-id: evil",
    "X_Instance_ID: evil",
    "X-Instance_ID: evil",
    "X-Tenant-ID: evil",
    "X-Instance-ID-Signature: evil",
    "X-Mooring-Network: evil",
    "X-Mooring-Time: 1",
    "X-Mooring-Signature: evil",
    "X-Mooring-Anything: evil",
    "X-Mooring-Hop-Limit: 64",
    "X-Ssl-Client-Verify: SUCCESS",
    "X-Ssl-Client-Cert: evil",
    "X-Request-ID: req-evil",
    "X-Real-IP: 10.0.0.9",
    "X-Forwarded-Host: evil",
    "X-Forwarded-Proto: https",
    "Forwarded: for=10.0.0.9",
    "X-Neutron-Network-ID: evil",
    "X-Neutron-Router-ID: evil",
    "X-OVN-Network-ID: evil",
    "X-Metadata-Provider: evil",
    "X-Metadata-Provider-Signature: evil",
    "Client-Cert: evil",
    "Authorization: evil",
    "Cookie: evil",
    "Proxy: evil",
    "Script_Name: /evil",
    "Via: evil",
    "TE: trailers",
    "Trailer: X-Instance-ID",
    "Upgrade: websocket",
    "Expect: 100-continue",
    "Range: bytes=0-1",
]


def test_no_header_of_the_client_passes_but_the_named_ones(edge, recorder, red):
    """A request with every kind of forged header is forwarded as if it had none of them."""
    doubled = [line for line in SPOOFED for _ in range(2)]
    assert red[1].get("/clean", *doubled).status == 200
    seen = recorder.last
    assert "evil" not in repr(seen.headers)
    assert seen.names == {
        "host",
        "x-forwarded-for",
        "x-instance-id",
        "x-tenant-id",
        "x-mooring-network",
        "x-mooring-time",
        "x-mooring-signature",
    }
    assert seen.one("X-Instance-ID") == "i-red"


def test_connection_header_cannot_delete_what_we_add(edge, recorder, red):
    """Naming an inside header as hop-by-hop does not take it off the way."""
    answer = red[1].get("/", "Connection: close, X-Instance-ID, X-Forwarded-For")
    assert answer.status == 200
    assert recorder.last.one("X-Instance-ID") == "i-red"
    assert recorder.last.one("X-Forwarded-For") == "10.1.0.4"


def test_named_headers_pass(edge, recorder, red):
    """What the metadata application reads arrives, in any case of letters."""
    sent = {
        "Accept": "text/html",
        "Content-Type": "text/plain",
        "USER-AGENT": "curl",
        "X-aws-ec2-metadata-token": "token",
        "X-Aws-Ec2-Metadata-Token-Ttl-Seconds": "60",
        "X-Metadata-Token": "token",
        "X-Metadata-Token-Ttl-Seconds": "60",
    }
    assert {name.lower() for name in sent} < set(CLIENT_HEADERS)
    lines = [f"{name}: {value}" for name, value in sent.items()]
    answer = red[1].send(
        "\r\n".join(["POST / HTTP/1.1", "Host: h", "Content-Length: 3", *lines, "", "abc"]).encode()
    )
    assert answer.status == 200
    for name, value in sent.items():
        assert recorder.last.one(name) == value
    assert recorder.last.body == b"abc"


@pytest.mark.parametrize(
    "line", ["X-Forwarded-For: 10.0.0.9", "x-forwarded-for:", "X-FORWARDED-FOR: 10.1.0.4"]
)
def test_a_forwarded_request_is_marked(edge, recorder, red, line):
    """An X-Forwarded-For of the client, even empty, is noted, and does not replace the address."""
    assert red[1].get("/latest/api/token", line, "Content-Length: 0", method="PUT").status == 200
    assert recorder.last.one("X-Mooring-Forwarded") == "1"
    assert recorder.last.one("X-Forwarded-For") == "10.1.0.4"


def test_an_unknown_address_is_not_forwarded(edge, recorder, red):
    """404 in plain text from the proxy itself."""
    edge.apply({BLUE: IDENTITIES[BLUE]})
    answer = red[1].get("/")
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert answer.text == "404 Not Found\n\nNo instance has this address.\n\n   "
    assert recorder.seen == []


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET http://169.254.169.254/x HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", 405),
        (b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
        (b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\nAccept: " + b"a" * MAX_HEADER_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\nAccept: " + b"a" * 20000 + b"\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1)
            + b"a" * (MAX_BODY_BYTES + 1),
            413,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n900\r\n"
            + b"a" * 0x900
            + b"\r\n0\r\n\r\n",
            413,
        ),
    ],
)
def test_what_is_not_a_plain_request_is_refused(edge, recorder, red, request_bytes, status):
    """Other forms of target, ambiguous framing and sizes beyond the limits end at the proxy."""
    answer = red[1].send(request_bytes)
    assert answer.status == status
    # What is no HTTP at all is answered by HAProxy's parser, with a text of its own.
    assert status == 400 or answer.headers["Content-Type"].startswith("text/plain")
    assert answer.text
    assert recorder.seen == []


def test_a_slow_header_is_cut(edge, recorder, red):
    """A client that never ends its header gets 408 and loses the connection."""
    connection = red[1].connect()
    connection.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n")
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.5):
            try:
                connection.sendall(b"X-A: b\r\n")
            except OSError:
                return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert b"408" in connection.recv(4096)
    finally:
        stop.set()
        dripping.join()
        connection.close()
    assert recorder.seen == []


def test_one_instance_cannot_take_all_connections(edge, red, blue, tools):
    """Beyond its share of connections an instance is cut off; another network is still served."""
    open_ones = []
    refused = 0
    try:
        for _ in range(INSTANCE_CONNECTIONS + 20):
            try:
                open_ones.append(red[1].connect())
            except ConnectionResetError:
                refused += 1

        def closed() -> int:
            count = 0
            for each in open_ones:
                each.setblocking(False)
                try:
                    count += each.recv(1) == b""
                except BlockingIOError:
                    pass
                except ConnectionResetError:
                    count += 1
            return count

        tools.until(lambda: refused + closed() >= 20, "too many connections stay open")
        assert blue[1].get("/").status == 200
    finally:
        for each in open_ones:
            each.close()


def test_warm_connections_are_shared_by_instances(edge, recorder, red, blue):
    """Requests of different instances go over the same TLS connection to the controller."""
    for _ in range(10):
        assert red[1].get("/").status == 200
        assert blue[1].get("/").status == 200
    assert len(recorder.connections) < 5


def test_inside_headers_of_an_answer_stay_inside(edge, red):
    """No X-Mooring header of an answer reaches the instance."""
    assert not [name for name in red[1].get("/").headers if name.lower().startswith("x-mooring")]


def test_no_controller_is_503_with_retry_after(make_edge, red, tools):
    """Plain text, Retry-After, and not a hang."""
    edge = make_edge(tools.free_port(), networks=(red[0],))
    edge.apply(IDENTITIES)
    answer = red[1].get("/")
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "2"
    assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8"
    assert answer.text.startswith("503 Service Unavailable\n\n")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 500, 503])
def test_an_answer_of_the_controller_passes(edge, red, status):
    """What the application answers is what the instance gets."""
    answer = red[1].get(f"/status/{status}")
    assert (answer.status, answer.text) == (status, "i-red")


def test_a_dead_controller_is_stepped_over(make_edge, pki, red, tools):
    """With one of two controllers gone no request fails; when it is back it is used again."""
    first, second = tools.Recorder(), tools.Recorder()
    first.start_tls(pki)
    second.start_tls(pki)
    try:
        edge = make_edge(first.port, second.port, networks=(red[0],))
        edge.apply(IDENTITIES)
        for _ in range(4):
            assert red[1].get("/").status == 200
        assert first.seen
        assert second.seen
        port = first.port
        first.close()
        for number in range(20):
            assert red[1].get(f"/{number}").status == 200
        assert red[1].get("/p", "Content-Length: 0", method="PUT").status == 200
        count = len(first.seen)
        first.start_tls(pki, port=port)
        tools.until(
            lambda: red[1].get("/back").status == 200 and len(first.seen) > count,
            "the controller that came back is not used",
        )
    finally:
        first.close()
        second.close()


def test_a_password_is_not_sent_twice(make_edge, pki, red, tools):
    """A POST whose answer did not come is not repeated; a GET is."""

    class Cutting(tools.Recorder):
        def handler(self):
            recorder, base = self, super().handler()

            class Handler(base):
                def cut(self):
                    if self.path != "/healthz":
                        recorder.seen.append(self.command)
                        self.close_connection = True
                        return
                    self.answer()

                do_GET = do_POST = cut  # noqa: N815  (the names http.server calls)

            return Handler

    cutting = Cutting()
    cutting.start_tls(pki)
    try:
        edge = make_edge(cutting.port, networks=(red[0],))
        edge.apply(IDENTITIES)
        answer = red[1].get("/openstack/latest/password", "Content-Length: 0", method="POST")
        assert answer.status == 502
        assert answer.text.startswith("502 Bad Gateway\n\n")
        assert cutting.seen == ["POST"]
        cutting.seen.clear()
        assert red[1].get("/").status in (502, 503)
        assert cutting.seen.count("GET") > 1
    finally:
        cutting.close()


@pytest.mark.parametrize("status", [502, 504])
def test_a_controller_without_application_is_stepped_over(make_edge, pki, red, tools, status):
    """A gateway's error is tried elsewhere; from the last one it is 503 with Retry-After."""
    broken, whole = tools.Recorder(status=status), tools.Recorder()
    broken.start_tls(pki)
    whole.start_tls(pki)
    try:
        edge = make_edge(broken.port, whole.port, networks=(red[0],))
        edge.apply(IDENTITIES)
        for _ in range(6):
            assert red[1].get("/").text == "i-red"
        assert broken.seen
        whole.status = status
        answer = red[1].get("/")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert answer.text
    finally:
        broken.close()
        whole.close()


@pytest.mark.parametrize("directory", ["other", "name"])
def test_a_controller_with_the_wrong_certificate_gets_nothing(
    make_edge, pki, red, tools, directory
):
    """Another authority's certificate, or another name, ends the handshake."""
    recorder = tools.Recorder()
    recorder.start_tls(pki, directory if directory == "other" else "")
    try:
        edge = make_edge(recorder.port, networks=(red[0],))
        path = edge.path
        if directory == "name":
            wrong = tuple(
                replace(controller, server_name="else.example.org")
                for controller in path.controllers
            )
            path = replace(path, controllers=wrong)
        edge.apply(IDENTITIES, path)
        assert red[1].get("/").status == 503
        assert recorder.seen == []
    finally:
        recorder.close()


# -- changes


def test_files_are_for_root_alone(edge):
    """The key stands in no file that others can read, and in no argument."""
    run = Path(edge.path.run_dir)
    assert run.stat().st_mode & 0o077 == 0
    for name in ("haproxy.cfg", "identities.map", "haproxy.sock"):
        assert (run / name).stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in run.iterdir()) == [
        "haproxy.cfg",
        "haproxy.pid",
        "haproxy.sock",
        "identities.map",
        "lock",
    ]


def test_nothing_changed_is_nothing_done(edge):
    """A second apply, also by an agent that has just started, finds nothing to do."""
    before = edge.pid()
    assert edge.apply(IDENTITIES).steps == ()
    edge.proxy = type(edge.proxy)()
    assert edge.apply(IDENTITIES).steps == ()
    assert edge.pid() == before


class Load:
    """Requests one after the other, each on a new connection, until told to stop."""

    def __init__(self, instance, expected):
        self.failures, self.count, self.stopping = [], 0, threading.Event()
        self.instance, self.expected = instance, expected
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.stopping.is_set():
            try:
                answer = self.instance.get("/load")
                if (answer.status, answer.text) != (200, self.expected):
                    self.failures.append((answer.status, answer.text))
            except Exception as error:
                self.failures.append(error)
            self.count += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()


def test_identities_change_under_load(edge, red, tools):
    """Hundreds of changed identities, large and small, no request of another instance fails."""
    with Load(red[1], "i-red") as load:
        for number in range(20):
            many = {f"10.9.{n // 250}.{n % 250}": (f"i-{number}-{n}", "p") for n in range(600)}
            changed = {RED: {**IDENTITIES[RED], **(many if number % 2 else {})}}
            changed[BLUE] = {"10.1.0.4": (f"i-blue-{number}", "p-blue")}
            assert edge.apply(changed).steps == ("write identities.map", "commit map")
        tools.until(lambda: load.count > 50, "no load")
    assert load.failures == []


def test_a_changed_identity_holds_for_the_next_request(edge, recorder, red):
    """On a connection that was open before, too."""
    connection = red[1].connect()
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    assert red[1].send(request, connection).text == "i-red"
    edge.apply({RED: {"10.1.0.4": ("i-other", "p-other")}})
    assert red[1].send(request, connection).text == "i-other"
    assert recorder.last.one("X-Tenant-ID") == "p-other"
    connection.close()


def test_networks_come_and_go_under_load(edge, lab, red, blue, tools):
    """Frontends are added and removed by reload; no request of another network fails."""
    with Load(red[1], "i-red") as load:
        for _ in range(5):
            assert edge.apply(IDENTITIES, replace(edge.path, networks=(red[0],))).steps == (
                "write haproxy.cfg",
                "reload",
            )
            with pytest.raises(ConnectionRefusedError):
                blue[1].connect()
            edge.apply(IDENTITIES, replace(edge.path, networks=(red[0], blue[0])))
            assert blue[1].get("/").text == "i-blue"
        tools.until(lambda: load.count > 50, "no load")
    assert load.failures == []


def test_a_reload_lets_open_requests_end(edge, recorder, red, blue, tools):
    """A request in flight is answered, and an idle connection still gets one more answer."""
    flying, idle = red[1].connect(), red[1].connect()
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    assert red[1].send(request, idle).status == 200
    flying.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
    tools.until(lambda: [seen for seen in recorder.seen if seen.target == "/slow"], "no request")
    edge.apply(IDENTITIES, replace(edge.path, networks=(red[0],)))
    answer = red[1].send(request, idle)
    assert (answer.status, answer.text) == (200, "i-red")
    recorder.go.set()
    answer = tools.receive(flying)
    assert (answer.status, answer.text) == (200, "i-red")
    flying.close()
    idle.close()


def test_a_renewed_certificate_is_taken_up(edge, pki, red, tmp_path):
    """Other bytes in the certificate's file are a reload; the same bytes are none."""
    path = replace(edge.path, cert_file=str(tmp_path / "host.pem"))
    pem = Path(pki.path("host-host-a.pem"))
    Path(path.cert_file).write_bytes(pem.read_bytes())
    edge.apply(IDENTITIES, path)
    Path(path.cert_file).write_bytes(pem.read_bytes() + b"\n")
    assert "reload" in edge.apply(IDENTITIES).steps
    assert edge.apply(IDENTITIES).steps == ()
    assert red[1].get("/").status == 200


@pytest.mark.parametrize("who", ["master", "worker"])
def test_a_killed_process_is_started_again(edge, red, tools, who):
    """kill -9 of either; the next apply brings both back with the same identities."""
    master = edge.pid()
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    os.kill(master if who == "master" else int(worker), signal.SIGKILL)
    for process in (str(master), worker):
        tools.until(lambda p=process: not Path("/proc", p).exists(), "the process stays")
    assert edge.apply(IDENTITIES).steps == ("start",)
    assert red[1].get("/").text == "i-red"


@pytest.mark.parametrize("lost", ["pid file", "master, and the worker hangs"])
def test_what_a_lost_process_left_is_ended(edge, red, tools, lost):
    """Also what no pid file names any more: no second HAProxy answers beside it from an old map."""
    master = edge.pid()
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    if lost == "pid file":
        Path(edge.path.run_dir, "haproxy.pid").unlink()
    else:
        os.kill(int(worker), signal.SIGSTOP)
        os.kill(master, signal.SIGKILL)
        tools.until(lambda: not Path(f"/proc/{master}/cmdline").read_bytes(), "the master stays")
    assert edge.apply(IDENTITIES).steps == ("start",)
    assert _processes(Path(edge.path.run_dir)).isdisjoint({master, int(worker)})
    assert red[1].get("/").text == "i-red"


@pytest.mark.parametrize("lost", ["nothing", "pid file", "master", "the will to end"])
def test_stop_leaves_no_process_and_no_listener(edge, red, tools, lost):
    """Whatever of the directory's HAProxy is still there."""
    master = edge.pid()
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    if lost == "pid file":
        Path(edge.path.run_dir, "haproxy.pid").unlink()
    elif lost == "master":
        os.kill(int(worker), signal.SIGSTOP)
        os.kill(master, signal.SIGKILL)
    elif lost == "the will to end":
        for process in (master, int(worker)):
            os.kill(process, signal.SIGSTOP)
    edge.proxy.stop(edge.path.run_dir)
    assert _processes(Path(edge.path.run_dir)) == set()
    assert tools.inside(red[0].namespace, _listeners) == set()


def test_a_stopped_process_does_not_hold_the_agent(edge, red, tools):
    """A worker that does not answer is reported before long, and nothing is killed."""
    master = edge.pid()
    (worker,) = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    os.kill(int(worker), signal.SIGSTOP)
    try:
        with pytest.raises(ProxyError, match="does not answer"):
            edge.apply(IDENTITIES)
    finally:
        os.kill(int(worker), signal.SIGCONT)
    assert edge.apply(IDENTITIES).steps == ()
    assert edge.pid() == master


def test_memory_that_drifted_is_put_right(edge, red):
    """An entry that somebody changed through the socket is found and replaced."""
    run = Path(edge.path.run_dir)
    with socket.socket(socket.AF_UNIX) as cli:
        cli.connect(str(run / "haproxy.sock"))
        cli.sendall(f"set map {run}/identities.map {RED}/10.1.0.4 i-wrong/p\n".encode())
        cli.recv(100)
    assert red[1].get("/").text == "i-wrong"
    assert edge.apply(IDENTITIES).steps == ("commit map",)
    assert red[1].get("/").text == "i-red"


def test_a_namespace_made_anew_is_bound_anew(lab, make_edge, recorder, red, tools):
    """A network whose namespace was replaced under its name is served in the new one."""
    network = lab.network()
    identities = {**IDENTITIES, "green": {"10.1.0.4": ("i-green", "p")}}
    edge = make_edge(recorder.port, networks=(red[0], NetworkPath("green", network)))
    edge.apply(identities)
    with Load(red[1], "i-red") as load:
        tools.sh("ip", "netns", "del", network)
        tools.sh("ip", "netns", "add", network)
        tools.sh("ip", "-n", network, "link", "set", "lo", "up")
        lab.network(network)
        green = lab.instance(network)
        assert "unbind" in edge.apply(identities).steps
        assert green.get("/").text == "i-green"
        assert edge.apply(identities).steps == ()
        lab.remove(network)
        assert edge.apply(identities).fenced == {"green": f"there is no namespace {network}"}
        tools.until(lambda: load.count > 20, "no load")
    assert load.failures == []


def test_a_network_without_namespace_does_not_stop_the_others(make_edge, recorder, red):
    """It is reported by its id, the others are served."""
    lost = NetworkPath("lost", "mo-there-is-none")
    edge = make_edge(recorder.port, networks=(red[0], lost))
    applied = edge.apply(IDENTITIES)
    assert applied.fenced == {"lost": "there is no namespace mo-there-is-none"}
    assert red[1].get("/").text == "i-red"


@pytest.mark.parametrize("running", [True, False])
def test_a_taken_address_does_not_stop_the_others(lab, make_edge, recorder, red, tools, running):
    """A network in which another program listens is reported, and served once that is gone."""
    network = lab.network()
    edge = make_edge(recorder.port, networks=(red[0],))
    if running:
        edge.apply(IDENTITIES)
    other = tools.inside(network, lambda: socket.create_server(("169.254.169.254", 80)))
    both = replace(edge.path, networks=(red[0], NetworkPath("taken", network)))
    assert edge.apply(IDENTITIES, both).fenced == {"taken": "something else listens there"}
    assert red[1].get("/").text == "i-red"
    other.close()
    assert edge.apply(IDENTITIES).fenced == {}
    assert edge.apply(IDENTITIES).steps == ()


def test_listeners_are_those_of_one_namespace(lab, tools):
    """Address and port of every listener in there, of both families; connections are none."""
    network = lab.network()

    def look():
        with (
            socket.create_server(("169.254.169.254", 81)) as four,
            socket.create_server(("::1", 82), family=socket.AF_INET6),
            socket.create_connection(("169.254.169.254", 81)),
            four.accept()[0],
        ):
            return _listeners()

    assert tools.inside(network, look) == {("169.254.169.254", 81), ("::1", 82)}
    assert tools.inside(network, _listeners) == set()


def test_few_open_files_are_no_obstacle(make_edge, recorder, red):
    """With a low limit of open files, as rootless has it, HAProxy starts all the same."""
    edge = make_edge(recorder.port, networks=(red[0],))
    wrapper = Path(edge.path.run_dir + ".sh")
    wrapper.write_text('#!/bin/sh\nulimit -Sn 512; ulimit -Hn 512; exec haproxy "$@"\n')
    wrapper.chmod(0o700)
    edge.proxy.binary = str(wrapper)
    edge.apply(IDENTITIES)
    assert red[1].get("/").text == "i-red"


def test_a_refused_configuration_changes_nothing(edge, red, tmp_path):
    """A broken certificate file is reported, what ran runs on, and no key is in the message."""
    broken = tmp_path / "broken.pem"
    broken.write_text("nonsense")
    with pytest.raises(ProxyError, match=re.escape("HAProxy's configuration failed")) as caught:
        edge.proxy.apply(replace(edge.path, cert_file=str(broken)), IDENTITIES)
    assert "proc.host_key" not in str(caught.value)
    assert red[1].get("/").text == "i-red"
    assert edge.apply(IDENTITIES).steps == ()


def test_a_host_without_networks_has_a_running_proxy(make_edge, recorder, red):
    """The first network is then a reload like any other."""
    edge = make_edge(recorder.port)
    assert "start" in edge.apply({}).steps
    applied = edge.apply(IDENTITIES, replace(edge.path, networks=(red[0],)))
    assert "reload" in applied.steps
    assert red[1].get("/").text == "i-red"


def test_two_agents_do_not_work_in_one_directory(edge):
    """The second is told so."""
    import fcntl

    with (Path(edge.path.run_dir) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ProxyError, match="another agent"):
            edge.apply(IDENTITIES)
