"""Labs for tests: hosts as machines of their own, and how to probe what crosses a network."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import VM, Lab, Machine
from stand import inside

QUIET_SECONDS = 1.5
"""For how long a probe that must not arrive is waited for; what arrives takes a millisecond."""


def make_lab(**options: Any) -> Iterator[Lab]:
    """A lab whose logs are kept when a test of it fails, as files of the test's directory."""
    with Lab(**options) as lab:
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A controller and two hosts."""
    yield from make_lab(hosts=2, options={"network": {"network_vlan_ranges": "physnet1"}})


@dataclass
class Capture:
    """What tcpdump sees on a link of a machine, a line a packet, while the block runs."""

    machine: Machine
    link: str
    expression: str
    lines: list[str]

    def __enter__(self) -> Capture:
        self._process = subprocess.Popen(
            [*self.machine.enter, "tcpdump", "-i", self.link, "-nn", "-e", "-l", "-T", "vxlan",
             *self.expression.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("listening on"):
                break
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip():
                self.lines.append(line.rstrip("\n"))

    def __exit__(self, *_exc: object) -> None:
        time.sleep(0.3)
        # tcpdump is nsenter's child: nsenter does not pass signals on
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), 15)
        self._reader.join(10)
        self._process.wait(10)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()

    def vnis(self, text: str) -> set[int]:
        """VNIs of the VXLAN frames whose inner packet has this text: tcpdump's next line."""
        return {
            int(found[1])
            for outer, inner in itertools.pairwise(self.lines)
            if (found := re.search(r"vni (\d+)", outer)) and text in inner
        }


class Probes:
    """Probes that ping misses: TCP at full size, and which address the receiver sees."""

    Capture = Capture
    quiet = QUIET_SECONDS

    @staticmethod
    def capture(machine: Machine, link: str, expression: str = "") -> Capture:
        """A capture on a link."""
        return Capture(machine, link, expression, [])

    @staticmethod
    def transfer(sender: VM, receiver: VM, size: int = 4 << 20, port: int = 5201) -> str:
        """Send bytes over TCP and compare digests; returns the sender's address as received."""
        payload = secrets.token_bytes(1 << 16) * (size >> 16)
        listener = inside(
            receiver.host.namespace(receiver.name),
            lambda: socket.create_server((receiver.address, port), backlog=1),
        )
        seen: list[str] = []
        digest = hashlib.sha256()

        def serve() -> None:
            with listener:
                listener.settimeout(20)
                connection, address = listener.accept()
                with connection:
                    connection.settimeout(20)
                    seen.append(address[0])
                    while data := connection.recv(65536):
                        digest.update(data)

        server = threading.Thread(target=serve)
        server.start()
        with inside(
            sender.host.namespace(sender.name),
            lambda: socket.create_connection((receiver.address, port), 20),
        ) as client:
            client.settimeout(20)
            client.sendall(payload)
        server.join(40)
        assert digest.hexdigest() == hashlib.sha256(payload).hexdigest()
        return seen[0]


@pytest.fixture(scope="session")
def probes() -> type[Probes]:
    """Probes, for test modules that cannot import this file."""
    return Probes


__all__ = ["Capture", "Probes", "lab", "make_lab", "probes"]
