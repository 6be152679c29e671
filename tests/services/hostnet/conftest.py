"""Real namespaces, real certificates, and an upstream that writes down what reaches it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import http.server
import itertools
import json
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stand import Answer, inside, receive

from services.ca.hierarchy import Hierarchy, create_hierarchy
from services.hostnet.agent.haproxy import Controller, MetadataPath, NetworkPath
from services.hostnet.agent.metadata_proxy import MetadataProxy

DEADLINE = 15.0
HOST = "host-a"
HOST_KEY = hashlib.sha256(b"the key of host a").digest()
SERVER_NAME = "metadata.example.org"
METADATA = "169.254.169.254"
ETH_P_IP = 0x0800
PACKET_OUTGOING = 4
_numbers = itertools.count()


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's first true value; fails after a deadline."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


def sh(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Instance:
    """A namespace with an address, behind a network's namespace."""

    namespace: str
    address: str

    def connect(self, timeout: float = DEADLINE) -> socket.socket:
        def work() -> socket.socket:
            return socket.create_connection((METADATA, 80), timeout, (self.address, 0))

        return inside(self.namespace, work)

    def send(self, request: bytes, connection: socket.socket | None = None) -> Answer:
        """The answer to these bytes, on a connection of their own unless one is given."""
        own = connection is None
        connection = connection or self.connect()
        try:
            connection.sendall(request)
            return receive(connection, request.partition(b" ")[0].decode())
        finally:
            if own:
                connection.close()

    def get(self, target: str = "/", *headers: str, method: str = "GET") -> Answer:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {METADATA}", *headers, "", ""]
        return self.send("\r\n".join(lines).encode("latin-1"))


@dataclass
class Packet:
    ttl: int
    port: int
    flags: int
    data: bytes


class Capture:
    """What comes from 169.254.169.254 into a namespace, as it comes off the wire."""

    def __init__(self, namespace: str) -> None:
        def make() -> socket.socket:
            # protocol 8 in network byte order: IPv4, without the Ethernet header
            return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))

        self.socket = inside(namespace, make)
        self.socket.setblocking(False)
        self.packets: list[Packet] = []

    def all(self, port: int) -> list[Packet]:
        """The packets to this port so far."""
        while True:
            try:
                raw, (_, _, kind, *_) = self.socket.recvfrom(65536)
            except BlockingIOError:
                return [packet for packet in self.packets if packet.port == port]
            if kind == PACKET_OUTGOING or raw[12:16] != socket.inet_aton("169.254.169.254"):
                continue
            length = (raw[0] & 15) * 4
            (total,) = struct.unpack("!H", raw[2:4])
            _, port_to = struct.unpack("!HH", raw[length : length + 4])
            data = raw[length + (raw[length + 12] >> 4) * 4 : total]
            self.packets.append(Packet(raw[8], port_to, raw[length + 13], data))


class Lab:
    """Makes namespaces, and unmakes them all."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.stem = f"mo{os.getpid() % 100000:x}"

    def namespace(self) -> str:
        name = f"{self.stem}n{next(_numbers)}"
        sh("ip", "netns", "add", name)
        self.made.append(name)
        sh("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def wire(self, one: str, one_address: str, other: str, other_address: str) -> None:
        """A veth pair between two namespaces, addresses with their prefix lengths."""
        names = [f"mo{next(_numbers)}v{os.getpid() % 1000}" for _ in range(2)]
        sh("ip", "-n", one, "link", "add", names[0], "type", "veth",
           "peer", "name", names[1], "netns", other)  # fmt: skip
        for namespace, name, address in (
            (one, names[0], one_address),
            (other, names[1], other_address),
        ):
            sh("ip", "-n", namespace, "address", "add", address, "dev", name)
            sh("ip", "-n", namespace, "link", "set", name, "up")

    def network(self, namespace: str | None = None) -> str:
        """A network's namespace, with the metadata address."""
        name = namespace or self.namespace()
        sh("ip", "-n", name, "address", "add", f"{METADATA}/32", "dev", "lo")
        return name

    def instance(self, network: str, address: str = "10.1.0.4") -> Instance:
        """An instance in the network; several need addresses in different /24s."""
        name = self.namespace()
        gateway = address.rpartition(".")[0] + ".1"
        self.wire(network, f"{gateway}/24", name, f"{address}/24")
        sh("ip", "-n", name, "route", "add", "default", "via", gateway)
        return Instance(name, address)

    def remove(self, namespace: str) -> None:
        sh("ip", "netns", "del", namespace)
        self.made.remove(namespace)

    def close(self) -> None:
        for namespace in list(self.made):
            self.remove(namespace)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.close()


@dataclass
class Pki:
    directory: Path
    hierarchy: Hierarchy

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def client(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.path("root.crt"))
        context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        return context


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """The files as the stand lays them, from the CA's own core."""
    directory = tmp_path_factory.mktemp("pki")
    hierarchy = create_hierarchy("Test")
    hierarchy.write(directory)
    hierarchy.issue_server([SERVER_NAME]).write(directory, "server")
    hierarchy.issue_host(HOST).write(directory, f"host-{HOST}", bundle=True)
    hierarchy.issue_client("alice", ["mooring:operators"]).write(directory, "operator")
    other = directory / "other"
    other.mkdir()
    strangers = create_hierarchy("Strangers")
    strangers.write(other)
    strangers.issue_server([SERVER_NAME]).write(other, "server")
    strangers.issue_host(HOST).write(other, f"host-{HOST}", bundle=True)
    return Pki(directory, hierarchy)


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    version: str

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header.lower() == name.lower()]

    def one(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    @property
    def names(self) -> set[str]:
        return {header.lower() for header, _ in self.headers}


@dataclass
class Recorder:
    """A server that writes down what it is asked; health checks are left out.

    It answers 200 with the instance id it was told; a PUT gets the hop limit `hops`; `/slow` waits
    for `go`; `/status/N` answers N.
    """

    seen: list[Seen] = field(default_factory=list)
    health: list[Seen] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    hops: str | None = None
    status: int = 200
    go: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    server: Any = None

    @property
    def last(self) -> Seen:
        return self.seen[-1]

    def handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def answer(self) -> None:
                method, target, version = self.raw_requestline.decode("latin-1").split()
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status = recorder.status
                seen = Seen(method, target, self.headers.items(), body, version)
                if target == "/healthz":
                    status = 400
                    recorder.health.append(seen)
                else:
                    recorder.seen.append(seen)
                    recorder.connections.add(id(self.connection))
                if target == "/slow":
                    recorder.go.wait(DEADLINE)
                if target.startswith("/status/"):
                    status = int(target.rpartition("/")[2])
                out = self.headers.get("X-Instance-ID", "nobody").encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(out)))
                self.send_header("Content-Type", "text/plain")
                self.send_header("X-Mooring-Secret", "of the inside")
                if method == "PUT" and recorder.hops is not None:
                    self.send_header("X-Mooring-Hop-Limit", recorder.hops)
                self.end_headers()
                if method != "HEAD":
                    self.wfile.write(out)

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self.answer
                raise AttributeError(name)

            def log_message(self, *_: object) -> None:
                pass

            def address_string(self) -> str:
                return "peer"

        return Handler

    def close(self) -> None:
        self.go.set()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def start_tls(self, pki: Pki, directory: str = "", port: int = 0) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        where = Path(pki.path(directory)) if directory else pki.directory
        context.load_cert_chain(where / "server.crt", where / "server.key")
        context.load_verify_locations(pki.path("chain.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        handler = self.handler()

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def finish_request(self, request: Any, client_address: Any) -> None:
                try:
                    tls = context.wrap_socket(request, server_side=True)
                except (OSError, ssl.SSLError):
                    return
                open_sockets.append(tls)
                with contextlib.suppress(OSError):
                    handler(tls, client_address, self)
                with contextlib.suppress(OSError):
                    tls.close()

            def server_close(self) -> None:
                super().server_close()
                for each in open_sockets:
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)

            def handle_error(self, *_: object) -> None:
                pass

        open_sockets: list[ssl.SSLSocket] = []
        self.server = Server(("127.0.0.1", port), handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def start_unix(self, path: Path) -> None:
        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass

        path.unlink(missing_ok=True)
        self.server = Server(str(path), self.handler())
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def recorder(pki: Pki) -> Iterator[Recorder]:
    recorder = Recorder()
    recorder.start_tls(pki)
    yield recorder
    recorder.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Edge:
    """A HAProxy under test and what it is to be."""

    proxy: MetadataProxy
    path: MetadataPath

    def apply(self, identities: Any, path: MetadataPath | None = None) -> Any:
        self.path = path or self.path
        return self.proxy.apply(self.path, identities)

    def pid(self) -> int:
        return int(Path(self.path.run_dir, "haproxy.pid").read_text())


@pytest.fixture
def make_edge(pki: Pki, tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    """Makes a proxy towards the ports of controllers, for the networks; ends it afterwards."""
    made: list[Edge] = []

    def make(*ports: int, networks: tuple[NetworkPath, ...] = (), **changes: Any) -> Edge:
        values: dict[str, Any] = {
            "host": HOST,
            "host_key": HOST_KEY,
            "controllers": tuple(Controller("127.0.0.1", port, SERVER_NAME) for port in ports),
            "ca_file": pki.path("root.crt"),
            "cert_file": pki.path(f"host-{HOST}.pem"),
            "run_dir": str(tmp_path / f"run{len(made)}"),
            "networks": networks,
        }
        edge = Edge(MetadataProxy(), MetadataPath(**{**values, **changes}))
        made.append(edge)
        return edge

    yield make
    for edge in made:
        edge.proxy.stop(edge.path.run_dir)


def expected_signature(seen: Seen, instance: str, project: str, network: str, address: str) -> str:
    """Version 2, computed from the contract's words and nothing of ours."""
    message = "\n".join(
        ["mooring-v2", HOST, seen.one("X-Mooring-Time"), network, instance, project, address,
         seen.method, seen.target]
    )  # fmt: skip
    return hmac.new(HOST_KEY, message.encode("latin-1"), hashlib.sha256).hexdigest()


@pytest.fixture(scope="session")
def tools() -> Any:
    """The helpers of this file, for test modules that cannot import it."""

    class Tools:
        pass

    for name in ("until", "sh", "inside", "receive", "free_port", "expected_signature", "json"):
        setattr(Tools, name, staticmethod(globals()[name]) if name != "json" else json)
    Tools.Recorder = Recorder
    Tools.Instance = Instance
    Tools.Capture = Capture
    return Tools
