"""A whole Mooring on this machine, in a directory of its own: for the demo, benchmarks and tests.

Everything is the shipped thing: the files of etc/ with their paths and ports moved, a PKI made by
services.ca, NGINX, gunicorn, mooring-agent with its HAProxy, the `mooring` command. Instances are
network namespaces behind a network namespace of their network. What a stand made, it removes:
processes by their pids, namespaces by their names, the directory if it made that too.
"""

import base64
import contextlib
import ctypes
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from services.ca.hierarchy import create_hierarchy
from services.core.database import upgrade
from services.core.signature import host_key

ETC = Path(__file__).resolve().parent.parent / "etc"
LOOPBACK = "127.0.0.1"
METADATA_NAME = "metadata.mooring.test"
METADATA_ADDRESS = "169.254.169.254"
START_SECONDS = 30.0
_CLONE_NEWNET = 0x40000000

Result = TypeVar("Result")


class StandError(Exception):
    """Something of the stand did not start or did not answer; the text says what and why."""


def free_port() -> int:
    """A TCP port that nobody listens on, below the range of outgoing connections."""
    for _ in range(200):
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                return port
    raise StandError("no free port between 20000 and 32000")


def run(*command: str | Path, timeout: float = 60, **options: Any) -> str:
    """Run a program to its end and return what it prints; raises StandError with its complaint."""
    result = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
    if result.returncode:
        words = " ".join(str(word) for word in command)
        raise StandError(f"{words}: exit {result.returncode}: {result.stderr or result.stdout}")
    return str(result.stdout)


def wait_for(what: str, check: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Return when the check holds; raises StandError when the time is up."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise StandError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def _mac() -> str:
    return "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def inside(namespace: str, work: Callable[[], Result]) -> Result:
    """Do the work in a thread that has entered the namespace: a socket made there stays there."""
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def visit() -> None:
        try:
            _enter(namespace)
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def _enter(namespace: str) -> None:
    with Path("/run/netns", namespace).open("rb") as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


@dataclass(frozen=True)
class Answer:
    """What came back for a request."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()


def receive(connection: socket.socket, method: str = "GET") -> Answer:
    """Read one answer from a connection; raises OSError or http.client.HTTPException."""
    with http.client.HTTPResponse(connection, method=method) as response:
        response.begin()
        return Answer(response.status, response.headers, response.read())


def request_bytes(
    method: str,
    target: str | bytes,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    host: str = METADATA_ADDRESS,
) -> bytes:
    """A request as it goes over the wire, headers exactly as given."""
    raw = target if isinstance(target, bytes) else target.encode("latin-1")
    lines = [f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return method.encode() + b" " + raw + b" HTTP/1.1\r\n" + head + body


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that its parent has not looked at yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@dataclass
class Process:
    """A program that the stand started, and its log."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    def alive(self) -> None:
        """Raise StandError with the end of the log if the program has ended."""
        if self.popen.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise StandError(f"{self.name} ended with {self.popen.returncode}:\n{tail}")

    def stop(self, seconds: float = 10) -> None:
        """Ask it to end, insist after a while."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


@dataclass
class InstanceSpace:
    """An instance as a namespace: its id, where it lives and how it is known."""

    id: str
    namespace: str
    network: str
    address: str
    mac: str

    def run(self, *command: str | Path, timeout: float = 60, **options: Any) -> str:
        """Run a program inside the instance; returns its output, raises StandError."""
        return run("ip", "netns", "exec", self.namespace, *command, timeout=timeout, **options)

    def curl(self, path: str, *options: str) -> str:
        """What curl prints for a path at 169.254.169.254 inside the instance."""
        return self.run(
            "curl", "-sS", "--max-time", "10", *options, f"http://169.254.169.254{path}"
        )

    def status(self, path: str, *options: str) -> int:
        """The HTTP status of a path, seen from inside the instance."""
        return int(self.curl(path, "-o", "/dev/null", "-w", "%{http_code}", *options))

    def connect(self, timeout: float = 20) -> socket.socket:
        """A connection from inside the instance to 169.254.169.254, without a process for it."""

        def dial() -> socket.socket:
            return socket.create_connection((METADATA_ADDRESS, 80), timeout, (self.address, 0))

        return inside(self.namespace, dial)

    def send(self, raw: bytes) -> Answer:
        """The answer to these bytes on a connection of their own."""
        with self.connect() as connection:
            connection.sendall(raw)
            return receive(connection, raw.partition(b" ")[0].decode("latin-1"))

    def request(
        self,
        method: str,
        target: str | bytes,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> Answer:
        """The answer to a request on a connection of its own."""
        return self.send(request_bytes(method, target, headers, body))

    def get(self, target: str, *headers: tuple[str, str]) -> Answer:
        """The answer to a GET."""
        return self.request("GET", target, headers)


@dataclass
class Stand:
    """One controller and one host on this machine; use as a context manager."""

    workers: int = 2
    database_url: str = ""
    host: str = "host-1"
    nova_compatible: bool = False
    flat: bool = False
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    agent_poll_seconds: float = 2.0
    # where the services listen, and how to get to the machine that they run on
    address: str = LOOPBACK
    enter: Sequence[str] = ()
    netns: str = ""
    network_service: bool = False
    progress: Callable[[str], None] = lambda _line: None
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="mooring-")))
    processes: dict[str, Process] = field(default_factory=dict)
    namespaces: list[str] = field(default_factory=list)
    networks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.etc = self.directory / "etc"
        self.run_dir = self.directory / "run"
        self.log_dir = self.directory / "log"
        self.metadata_port = free_port()
        self.operators_port = free_port()
        self.network_port = free_port()
        if not self.database_url:
            self.database_url = f"sqlite:///{self.directory}/lib/mooring.db"
        self.prefix = f"mo{secrets.token_hex(2)}"
        self._count = 0

    def __enter__(self) -> "Stand":
        try:
            self.prepare()
            self.start_gunicorn()
            if self.network_service:
                self.start_hostnet()
            self.start_nginx()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- files ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the PKI, the secrets, the database and the configuration."""
        self.directory.chmod(0o755)
        for folder in (self.etc, self.run_dir, self.log_dir, self.etc / "pki"):
            folder.mkdir(parents=True, exist_ok=True)
        self.hierarchy = create_hierarchy("Mooring stand")
        pki = self.etc / "pki"
        self.hierarchy.write(pki)
        self.hierarchy.issue_server(
            [METADATA_NAME, "localhost"], sorted({LOOPBACK, self.address})
        ).write(pki, "server")
        self.hierarchy.issue_client("alice", ["mooring:operators"]).write(pki, "operator")
        self.hierarchy.issue_client("root", ["mooring:admins"]).write(pki, "admin")
        self.issue_host(self.host)
        signature = self.etc / "secrets" / "signature"
        signature.mkdir(parents=True, mode=0o750)
        self.write_secret(signature / "current", secrets.token_hex(32).encode())
        self.write_configuration()
        upgrade(self.database_url)

    def issue_host(self, name: str) -> None:
        """Give a host its certificate: pki/host-NAME.{key,crt,pem}."""
        self.hierarchy.issue_host(name).write(self.etc / "pki", f"host-{name}", bundle=True)

    @staticmethod
    def write_secret(path: Path, content: bytes) -> None:
        """Write a file that only its owner may read."""
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)

    def write_configuration(self) -> None:
        """Lay out etc/ as an operator would, with paths and ports moved into the directory."""
        moved = {
            "/etc/mooring": str(self.etc),
            "/run/mooring": str(self.run_dir),
            "/var/log/mooring": str(self.log_dir),
            "listen 8775": f"listen {self.address}:{self.metadata_port}",
            "listen 8774": f"listen {self.address}:{self.operators_port}",
            "listen 9696": f"listen {self.address}:{self.network_port}",
        }
        if self.flat:
            moved["#include"] = "include"
        for source, target in (
            (ETC / "mooring", self.etc),
            (ETC / "nginx", self.etc / "nginx"),
            (ETC / "gunicorn", self.etc / "gunicorn"),
        ):
            target.mkdir(exist_ok=True)
            for file in source.iterdir():
                text = file.read_text(encoding="utf-8")
                for old, new in moved.items():
                    text = text.replace(old, new)
                (target / file.name).write_text(text, encoding="utf-8")
        values: dict[str, dict[str, str]] = {
            "database": {"url": self.database_url},
            "log": {"level": "info"},
            "metadata": {"token_secrets": f"{self.etc}/secrets/signature"},
        }
        if self.nova_compatible:
            values["metadata"]["nova_compatible"] = "true"
        for section, more in self.options.items():
            values.setdefault(section, {}).update(more)
        lines = []
        for section, pairs in values.items():
            lines += [f"[{section}]", *(f"{name} = {value}" for name, value in pairs.items()), ""]
        self.write_secret(self.etc / "mooring.conf", "\n".join(lines).encode())

    # ---- processes -----------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *command: str | Path,
        enter: Sequence[str] | None = None,
        **options: Any,
    ) -> Process:
        """Start a program whose output goes to log/NAME.log, on another machine with ``enter``."""
        path = self.log_dir / f"{name}.log"
        log: IO[bytes]
        with path.open("ab") as log:
            popen = subprocess.Popen(
                [str(word) for word in (*(self.enter if enter is None else enter), *command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,
            )
        process = Process(name, popen, path)
        self.processes[name] = process
        return process

    def environment(self) -> dict[str, str]:
        """The environment of Mooring's own programs: this checkout or installation, no settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MOORING_", "PG"))}
        return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start_gunicorn(self) -> Process:
        """Start the metadata service and wait until it says that it is ready."""
        return self._start_service("gunicorn", "metadata", "metadata.sock", self.workers)

    def start_hostnet(self) -> Process:
        """Start the network service and wait until it says that it is ready."""
        return self._start_service("hostnet", "hostnet", "hostnet.sock", 1)

    def _start_service(self, name: str, service: str, door: str, workers: int) -> Process:
        process = self.start(
            name,
            *(sys.executable, "-m", "gunicorn", "--paste", self.etc / f"{service}.ini"),
            *("-c", self.etc / "gunicorn" / f"{service}.py", "--workers", str(workers)),
            env=self.environment(),
        )

        def ready() -> bool:
            process.alive()
            return self.ask_socket(door, "/readyz") == 200

        wait_for(name, ready)
        return process

    def ask_socket(self, name: str, path: str) -> int:
        """The status that a gunicorn socket answers to a GET, 0 if nobody answers."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(str(self.run_dir / name))
                client.sendall(
                    f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
                )
                answer = client.recv(65536)
            except OSError:
                return 0
        return int(answer.split()[1]) if answer.startswith(b"HTTP/1.") else 0

    def start_nginx(self, namespace: str | None = None) -> Process:
        """Start NGINX in the foreground and wait until it accepts connections."""
        there: list[str] = ["ip", "netns", "exec", namespace] if namespace else []
        # Started by root, NGINX would give its workers to a user who may not open our sockets.
        user = "user root; " if os.getuid() == 0 else ""
        process = self.start(
            "nginx",
            *there,
            *("nginx", "-c", f"{self.etc}/nginx/nginx.conf", "-p", f"{self.directory}"),
            *("-g", f"{user}daemon off;", "-e", f"{self.log_dir}/nginx.error.log"),
        )

        def connects() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((self.address, self.metadata_port)) == 0

        def accepts() -> bool:
            process.alive()
            return inside(self.netns, connects) if self.netns else connects()

        if namespace is None:
            wait_for("nginx", accepts)
        return process

    def write_host_key(self, name: str) -> Path:
        """Write a host's signing key; returns the file."""
        master = (self.etc / "secrets" / "signature" / "current").read_bytes()
        path = self.etc / "secrets" / f"host-{name}"
        self.write_secret(path, base64.b64encode(host_key(master, name)))
        return path

    def write_agent_configuration(self) -> Path:
        """Write mooring-agent.conf of this stand's host; returns its path."""
        pki = self.etc / "pki"
        key_file = self.write_host_key(self.host)
        path = self.etc / "mooring-agent.conf"
        values = {
            "host": self.host,
            "api_url": f"https://localhost:{self.operators_port}",
            "controllers": f"{LOOPBACK}:{self.metadata_port}/{METADATA_NAME}",
            "ca_file": pki / "root.crt",
            "cert_file": pki / f"host-{self.host}.pem",
            "host_key_file": key_file,
            "run_dir": self.run_dir / "agent",
            "namespaces": ",".join(f"{k}:{v}" for k, v in self.networks.items()),
            "poll_seconds": self.agent_poll_seconds,
        }
        lines = ["[agent]", *(f"{name} = {value}" for name, value in values.items()), ""]
        path.write_text("\n".join(lines))
        return path

    def start_agent(self) -> Process:
        """Start the host's agent, which starts HAProxy and follows the controller."""
        path = self.write_agent_configuration()
        return self.start(
            "agent",
            *(sys.executable, "-m", "services.hostnet.agent.main", "--config", path, "run"),
            env=self.environment(),
        )

    def apply_agent(self) -> str:
        """Bring the host up to date now, once; returns what the agent says it did."""
        path = self.write_agent_configuration()
        return run(
            *(sys.executable, "-m", "services.hostnet.agent.main", "--config", path),
            "apply",
            env=self.environment(),
        )

    def mooring(self, *words: str | Path, user: str = "operator") -> str:
        """Run the `mooring` command as a user of the stand; returns what it prints."""
        pki = self.etc / "pki"
        return run(
            *(sys.executable, "-m", "services.cli.main"),
            *("--url", f"https://localhost:{self.operators_port}"),
            *("--tls-cert", pki / f"{user}.crt", "--tls-key", pki / f"{user}.key"),
            *("--tls-ca", pki / "root.crt", *words),
            env=self.environment(),
        )

    def create_instance(self, document: dict[str, Any]) -> dict[str, Any]:
        """Create an instance of a whole document through the `mooring` command."""
        path = self.directory / f"instance-{secrets.token_hex(4)}.json"
        path.write_text(json.dumps(document))
        try:
            text = self.mooring("instance", "create", "--file", path, "-f", "json")
        finally:
            path.unlink()
        created: dict[str, Any] = json.loads(text)
        return created

    # ---- networks ------------------------------------------------------------------------------

    def namespace(self, name: str) -> str:
        """Make a network namespace whose name begins with the stand's prefix; returns the name."""
        full = f"{self.prefix}-{name}"
        run("ip", "netns", "add", full)
        self.namespaces.append(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def add_network(self, network: str, *addresses: str) -> str:
        """A network on this host: a namespace with a bridge that holds these addresses.

        The last one is where instances find metadata, 169.254.169.254/32; it is added by itself.
        Returns the namespace's name, which is the one that HAProxy binds in.
        """
        full = self.namespace(f"net-{network}")
        # With an address of its own. It would have its lowest port's, which changes as instances
        # come, and the others would go on sending to the old one.
        batch = [f"link add br0 address {_mac()} type bridge", "link set br0 up"]
        batch += [
            f"address add {address} dev br0" for address in (*addresses, "169.254.169.254/32")
        ]
        self._batch(full, batch)
        self.networks[network] = full
        return full

    def add_instance(self, instance_id: str, network: str, address: str, via: str) -> InstanceSpace:
        """An instance's namespace on a network: address with prefix length, and its route.

        ``via`` is the address that leads to 169.254.169.254, as DHCP's option 121 would say.
        """
        self._count += 1
        full = self.namespace(f"vm{self._count}")
        mac = _mac()
        port = f"tap{self._count}"
        self._batch(
            self.networks[network],
            [
                f"link add {port} type veth peer name eth0 address {mac} netns {full}",
                f"link set {port} master br0 up",
            ],
        )
        self._batch(
            full,
            [
                f"address add {address} dev eth0",
                "link set eth0 up",
                f"route add 169.254.169.254 via {via}",
            ],
        )
        return InstanceSpace(instance_id, full, network, address.partition("/")[0], mac)

    @staticmethod
    def _batch(namespace: str, lines: Sequence[str]) -> None:
        run("ip", "-n", namespace, "-batch", "-", input="\n".join(lines) + "\n")

    # ---- the end -------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop every process; files and namespaces stay."""
        order = ["agent", *(name for name in self.processes if name != "agent")]
        for name in order:
            process = self.processes.pop(name, None)
            if process is not None:
                process.stop()
        self.stop_haproxy()

    def close(self) -> None:
        """Stop every process, remove every namespace and the directory; may be called again."""
        self.stop()
        for name in reversed(self.namespaces):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        self.namespaces.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def stop_haproxy(self) -> None:
        """End the HAProxy that the agent left running, as it does on purpose when it stops."""
        pid_file = self.run_dir / "agent" / "haproxy.pid"
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text().split()[0])
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(self.run_dir).encode() in command:
                os.kill(pid, signal.SIGTERM)
                with contextlib.suppress(StandError):
                    wait_for("haproxy's end", lambda: ended(pid), 5)
