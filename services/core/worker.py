"""gunicorn's sync worker, writing each answer's head and body at once.

gunicorn writes them one after the other. A worker that ends in between has promised an answer that
nobody can take back: NGINX has passed the head on. With one write there is either the answer or
nothing, and nothing is what the host's HAProxy asks again for. It also spares a system call and
NGINX one wake-up for each answer.
"""

import socket
from typing import Any

from gunicorn.workers.sync import SyncWorker


class OneWrite:
    """A connection of one request: what is written first waits for the second write, or the end."""

    __slots__ = ("_connection", "_held")

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def sendall(self, data: bytes) -> None:
        """Hold the head back, send it with the body's first part, then part by part."""
        if self._held is None:
            self._held = data
        elif self._held:
            data, self._held = self._held + data, b""
            self._connection.sendall(data)
        else:
            self._connection.sendall(data)

    def flush(self) -> None:
        """Send a head that no body has followed."""
        if self._held:
            data, self._held = self._held, b""
            self._connection.sendall(data)

    def shutdown(self, how: int) -> None:
        """Flush, then shut down."""
        self.flush()
        self._connection.shutdown(how)

    def close(self) -> None:
        """Flush, then close."""
        try:
            self.flush()
        finally:
            self._connection.close()


class Worker(SyncWorker):  # type: ignore[misc]  # gunicorn has no types
    """The sync worker with `OneWrite` in between; its connections serve one request each."""

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection."""
        super().handle(listener, OneWrite(client), addr)
