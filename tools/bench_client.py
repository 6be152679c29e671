"""The hosts' side of a boot storm: HAProxy's requests over kept TLS connections, one thread.

Everything that can be made before a round is made before it (the requests' bytes with their
signatures), so that a request costs this program two system calls inside TLS and some look-ups: it
takes a small share of what the servers take, and the same for whichever application answers.
"""

import gc
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
SILENCE_SECONDS = 30.0
"""A server that says nothing for so long has failed, and the round with it."""
PIECE = 1 << 16


class StormError(Exception):
    """The servers broke off or fell silent: there is nothing to measure."""


class Request(NamedTuple):
    """The bytes to send, the status expected (``b"200"``), and what the body must hold, or b""."""

    wire: bytes
    status: bytes
    holds: bytes = b""


@dataclass
class Outcome:
    """What a storm did: seconds it took, each answer's seconds and body length, wrong answers."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def add(self, other: "Outcome") -> None:
        """Count another storm in."""
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.latencies += other.latencies
        self.lengths += other.lengths
        self.errors += other.errors

    def percentile(self, share: float) -> float:
        """The seconds within which this share of the answers came."""
        ranked = sorted(self.latencies)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


class _Connection:
    __slots__ = ("begun", "boot", "buffer", "needed", "request", "socket")

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, name: str) -> None:
        plain = socket.create_connection(address, timeout=10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname=name)
        self.socket.setblocking(False)
        self.boot: Iterator[Request] = iter(())
        self.request = Request(b"", b"")
        self.begun = 0.0
        self.buffer = b""
        self.needed = 0

    def send(self, boot: Iterator[Request], request: Request) -> None:
        self.boot, self.request = boot, request
        self.buffer, self.needed = b"", 0
        self.begun = time.perf_counter()
        # A request is far smaller than the socket's buffer, which is empty.
        self.socket.sendall(request.wire)

    def receive(self) -> bool:
        """Read what is there; True when the answer is complete. Raises StormError."""
        while True:
            try:
                piece = self.socket.recv(PIECE)
            except ssl.SSLWantReadError:
                return False
            if not piece:
                raise StormError("the server closed a connection")
            self.buffer += piece
            if not self.needed:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    continue
                length = _LENGTH.search(self.buffer, 0, end + 2)
                if length is None:
                    raise StormError(f"an answer without a length: {self.buffer[:200]!r}")
                self.needed = end + 4 + int(length[1])
            if len(self.buffer) >= self.needed:
                return True


class Client:
    """Some kept connections to a server; use as a context manager."""

    def __init__(
        self, address: tuple[str, int], context: ssl.SSLContext, name: str, connections: int
    ) -> None:
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        for _ in range(connections):
            connection = _Connection(address, context, name)
            number = connection.socket.fileno()
            self._connections[number] = connection
            self._poll.register(number, select.EPOLLIN)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_exc: object) -> None:
        self._poll.close()
        for connection in self._connections.values():
            connection.socket.close()

    def storm(self, boots: Iterable[Sequence[Request]], at_once: int) -> Outcome:
        """Let the instances boot, ``at_once`` of them at a time; raises StormError.

        Each instance has its requests in order and waits for each answer. Whoever is next in line
        gets the next free connection, as HAProxy shares them.
        """
        outcome = Outcome()
        arrivals = iter(boots)
        line: deque[tuple[Iterator[Request], Request]] = deque()
        free = deque(self._connections.values())
        busy = 0

        def admit() -> None:
            for boot in arrivals:
                requests = iter(boot)
                line.append((requests, next(requests)))
                return

        for _ in range(at_once):
            admit()
        gc.collect()
        gc.disable()
        cpu, begun = time.process_time(), time.perf_counter()
        try:
            while line or busy:
                while line and free:
                    free.popleft().send(*line.popleft())
                    busy += 1
                events = self._poll.poll(SILENCE_SECONDS)
                if not events:
                    raise StormError(f"no answer within {SILENCE_SECONDS:.0f} s")
                for number, _event in events:
                    connection = self._connections[number]
                    if not connection.receive():
                        continue
                    self._note(connection, outcome)
                    busy -= 1
                    free.append(connection)
                    following = next(connection.boot, None)
                    if following is None:
                        admit()
                    else:
                        line.append((connection.boot, following))
                    if line:
                        free.popleft().send(*line.popleft())
                        busy += 1
        finally:
            gc.enable()
        outcome.seconds = time.perf_counter() - begun
        outcome.cpu_seconds = time.process_time() - cpu
        return outcome

    @staticmethod
    def _note(connection: _Connection, outcome: Outcome) -> None:
        outcome.latencies.append(time.perf_counter() - connection.begun)
        buffer, request = connection.buffer, connection.request
        head = buffer.find(b"\r\n\r\n") + 4
        outcome.lengths.append(len(buffer) - head)
        if buffer[9:12] != request.status:
            line = buffer[: buffer.find(b"\r\n")]
            outcome.errors.append(f"{request.wire.split(b' ', 2)[1]!r}: {line!r}")
        elif request.holds and buffer.find(request.holds, head) < 0:
            outcome.errors.append(f"{request.wire.split(b' ', 2)[1]!r}: another's body")
