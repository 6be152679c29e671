"""Whole Moorings for tests: one that the session shares, others made and removed by a test module.

A `House` is a stand (tools/stand.py) whose operator is at hand and which remembers everything that
no log may show. `test_logs.py` runs last and looks for it in every log of the session.
"""

import base64
import contextlib
import http.client
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stand import (
    LOOPBACK,
    METADATA_NAME,
    Answer,
    InstanceSpace,
    Stand,
    receive,
    request_bytes,
    wait_for,
)

from services.core.signature import host_key, message_v2, sign_v2

VIA = "10.1.0.2"
"""Where the networks of the tests lead to 169.254.169.254."""

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"


@dataclass
class Sensitive:
    """What no log may show, and the logs of the stands that are gone."""

    logs: Path
    values: set[bytes] = field(default_factory=set)
    stands: "list[Stand]" = field(default_factory=list)

    def add(self, value: str | bytes) -> None:
        """Remember a value; short ones would be found by chance."""
        raw = value.encode() if isinstance(value, str) else value
        if len(raw) >= 12:
            self.values.add(raw)

    def keep(self, stand: Stand) -> None:
        """Keep a copy of the stand's logs, which end with it."""
        shutil.copytree(stand.log_dir, self.logs / stand.directory.name, dirs_exist_ok=True)
        self.stands.remove(stand)


@dataclass
class House:
    """A running stand with its operator, and instances made as an operator makes them."""

    stand: Stand
    sensitive: Sensitive
    numbers: "Iterator[int]" = field(default_factory=lambda: itertools.count(10))

    # ---- the operators' door -------------------------------------------------------------------

    def context(self, user: str | None = None) -> ssl.SSLContext:
        """TLS as a client of the controller has it, with the certificate pki/USER if given."""
        pki = self.stand.etc / "pki"
        context = ssl.create_default_context(cafile=str(pki / "root.crt"))
        if user is not None:
            context.load_cert_chain(pki / f"{user}.crt", pki / f"{user}.key")
        return context

    def operate(
        self,
        method: str,
        path: str,
        document: Any = None,
        user: str | None = "operator",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """The answer of the operators' API to a client certificate, none if `user` is None."""
        connection = http.client.HTTPSConnection(
            "localhost", self.stand.operators_port, context=self.context(user), timeout=20
        )
        with contextlib.closing(connection):
            body = None if document is None else json.dumps(document)
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            more = {"Content-Type": kind} if body else {}
            connection.request(method, path, body, {**more, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def create(self, document: dict[str, Any]) -> dict[str, Any]:
        """Create an instance; what it holds may be in no log."""
        self.remember(document)
        answer = self.operate("POST", "/v1/instances", document)
        assert answer.status == 201, answer.text
        created: dict[str, Any] = json.loads(answer.body)
        return created

    def change(self, instance_id: str, **document: Any) -> None:
        """Change an instance by a merge patch."""
        self.remember(document)
        answer = self.operate("PATCH", f"/v1/instances/{instance_id}", document)
        assert answer.status == 200, answer.text

    def remember(self, document: dict[str, Any]) -> None:
        """Note what is in a document that no log may show."""
        if document.get("user_data"):
            raw = base64.b64decode(document["user_data"])
            self.sensitive.add(raw)
            for line in raw.splitlines():
                self.sensitive.add(line)
        for key in document.get("keys", ()):
            self.sensitive.add(key["data"].split()[1] if " " in key["data"] else key["data"])
        for value in _strings(document.get("vendor_data")):
            self.sensitive.add(value)

    # ---- instances -----------------------------------------------------------------------------

    def document(
        self, network: str, address: str, mac: str, user_data: bytes | None = None, **more: Any
    ) -> dict[str, Any]:
        """An instance with one interface, as an operator writes it."""
        document = {
            "project_id": f"project-{network}",
            "name": "web",
            "host": self.stand.host,
            "interfaces": [
                {
                    "network_id": network,
                    "mac": mac,
                    "mtu": 1450,
                    "subnets": [
                        {
                            "cidr": "10.1.0.0/24",
                            "gateway_ip": "10.1.0.1",
                            "enable_dhcp": False,
                            "dns_nameservers": ["10.1.0.53"],
                            "addresses": [{"ip_address": address}],
                        }
                    ],
                }
            ],
            **more,
        }
        if user_data is not None:
            document["user_data"] = base64.b64encode(user_data).decode()
        return document

    def instance(
        self,
        network: str = "red",
        address: str | None = None,
        user_data: bytes | None = None,
        **document: Any,
    ) -> InstanceSpace:
        """An instance that is running and served: its namespace and its record."""
        address = address or f"10.1.0.{next(self.numbers)}"
        instance_id = document.setdefault("id", str(uuid.uuid4()))
        space = self.stand.add_instance(instance_id, network, f"{address}/24", VIA)
        self.create(self.document(network, address, space.mac, user_data, **document))
        self.wait_served(space)
        return space

    def wait_served(self, space: InstanceSpace) -> None:
        """Wait until the host's agent has let HAProxy know the instance."""

        def served() -> bool:
            try:
                return space.get("/").status not in (404, 502, 503, 504)
            except OSError:  # no frontend in this network's namespace yet
                return False

        wait_for(f"metadata of {space.id}", served)

    def token(self, space: InstanceSpace, ttl: int = 300) -> str:
        """A session token of the instance."""
        answer = space.request("PUT", "/latest/api/token", [(TTL, str(ttl))])
        assert answer.status == 200, answer.text
        self.sensitive.add(answer.text)
        return answer.text

    # ---- the controller's side -----------------------------------------------------------------

    def signed(
        self, host: str, method: str = "GET", target: str = "/latest/meta-data/", **fields: Any
    ) -> list[tuple[str, str]]:
        """Headers as HAProxy of a host sets them; `fields` are instance, project, address..."""
        master = (self.stand.etc / "secrets" / "signature" / "current").read_bytes()
        fields = {"network": "red", "time": int(time.time()), **fields}
        message = message_v2(host=host, method=method, target=target, **fields)
        signature = sign_v2(host_key(master, host), message)
        self.sensitive.add(signature)
        return [
            ("X-Forwarded-For", fields["address"]),
            ("X-Instance-ID", fields["instance"]),
            ("X-Tenant-ID", fields["project"]),
            ("X-Mooring-Network", fields["network"]),
            ("X-Mooring-Time", str(fields["time"])),
            ("X-Mooring-Signature", signature),
        ]

    def ask(
        self,
        headers: list[tuple[str, str]],
        method: str = "GET",
        target: str | bytes = "/latest/meta-data/",
        user: str | None = "host-host-1",
        body: bytes = b"",
        context: ssl.SSLContext | None = None,
    ) -> Answer:
        """The answer of NGINX's metadata server, asked with a certificate as a host's HAProxy."""
        context = context or self.context(user)
        address = (LOOPBACK, self.stand.metadata_port)
        with (
            socket.create_connection(address, 20) as plain,
            context.wrap_socket(plain, server_hostname=METADATA_NAME) as connection,
        ):
            connection.sendall(request_bytes(method, target, headers, body, METADATA_NAME))
            return receive(connection, method)

    def workers(self) -> list[int]:
        """The process ids of gunicorn's workers that live."""
        master = self.stand.processes["gunicorn"].popen.pid
        children = Path(f"/proc/{master}/task/{master}/children").read_text()
        return [int(pid) for pid in children.split() if _alive(int(pid))]

    def each_worker(self) -> Iterator[int]:
        """Let each worker in turn be the only one that answers; the others stand still."""
        everyone = self.workers()
        assert len(everyone) == self.stand.workers
        for chosen in everyone:
            others = [pid for pid in everyone if pid != chosen]
            try:
                for pid in others:
                    wait_for("the worker's stop", lambda pid=pid: _stopped(pid))
                yield chosen
            finally:
                for pid in others:
                    os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _stopped(pid: int) -> bool:
    """Stop a process; False, and it runs on, if it holds a lock that others would wait for."""
    os.kill(pid, signal.SIGSTOP)
    wait_for("the process's stop", lambda: _state(pid) == "T")
    if f" WRITE {pid} " not in Path("/proc/locks").read_text():
        return True
    os.kill(pid, signal.SIGCONT)
    return False


def _alive(pid: int) -> bool:
    return _state(pid) not in ("", "Z")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


@pytest.fixture(scope="session")
def sensitive(tmp_path_factory: pytest.TempPathFactory) -> Sensitive:
    """What no log of the session may show."""
    return Sensitive(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def build(sensitive: Sensitive) -> Callable[..., "contextlib.AbstractContextManager[House]"]:
    """How a house is made: `with build(workers=2) as house`; its logs are kept for test_logs.

    ``before`` is called with the stand when its files are written and nothing runs yet, ``start``
    false leaves the programs to the caller.
    """

    @contextlib.contextmanager
    def make(
        before: Callable[[Stand], None] = lambda _stand: None,
        start: bool = True,
        **options: Any,
    ) -> Iterator[House]:
        options.setdefault("agent_poll_seconds", 0.2)
        stand = Stand(**options)
        sensitive.stands.append(stand)
        try:
            stand.prepare()
            before(stand)
            for path in (stand.etc / "secrets").rglob("*"):
                if path.is_file():
                    sensitive.add(path.read_bytes().strip())
            master = (stand.etc / "secrets" / "signature" / "current").read_bytes()
            sensitive.add(base64.b64encode(host_key(master, stand.host)))
            for path in (stand.etc / "pki").glob("*.key"):
                # past the first line, which all keys of a kind have in common
                sensitive.add(path.read_text().splitlines()[2])
            if start:
                stand.start_gunicorn()
                stand.start_nginx()
            yield House(stand, sensitive)
        finally:
            stand.stop()
            sensitive.keep(stand)
            stand.close()

    return make


@pytest.fixture(scope="session")
def house(build: Callable[..., Any]) -> Iterator[House]:
    """The stand that tests share: two workers, two networks of two tenants with equal addresses."""
    with build() as house:
        house.stand.add_network("red", f"{VIA}/24")
        house.stand.add_network("blue", f"{VIA}/24")
        house.stand.start_agent()
        yield house


RED_KEY = f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{secrets.token_hex(16)} red@example"


@pytest.fixture(scope="session")
def red(house: House) -> InstanceSpace:
    """An instance of the red tenant at 10.1.0.4; tests read it and leave it as it is."""
    return house.instance(
        "red",
        "10.1.0.4",
        user_data=b"red's user data \x00\xff\xfe\r\n" + secrets.token_bytes(40),
        name="web red",
        hostname="web-red",
        instance_type="m1.small",
        availability_zone="zone-1",
        launch_index=3,
        keys=[{"name": "mykey", "data": RED_KEY}],
        properties={"role": "frontend"},
        devices=[{"type": "disk", "bus": "scsi", "address": "0:0:0:1", "serial": "disk-1"}],
    )


@pytest.fixture(scope="session")
def blue(house: House) -> InstanceSpace:
    """The blue tenant's instance, which has the same address as the red one."""
    return house.instance(
        "blue", "10.1.0.4", user_data=b"blue's user data: " + secrets.token_hex(20).encode()
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Look into the logs when everything else has written them."""
    items.sort(key=lambda item: item.path.name == "test_logs.py" and item.path.parent.name == "e2e")
