"""gunicorn's sync worker, writing each answer's head and body at once; and one that groups commits.

gunicorn writes them one after the other. A worker that ends in between has promised an answer that
nobody can take back: NGINX has passed the head on. With one write there is either the answer or
nothing, and nothing is what the host's HAProxy asks again for. It also spares a system call and
NGINX one wake-up for each answer.
"""

import contextlib
import errno
import gc
import socket
from collections import deque
from collections.abc import Generator
from datetime import datetime
from typing import Any

from gunicorn import http, util
from gunicorn.http import wsgi
from gunicorn.workers.sync import StopWaiting, SyncWorker

AT_ONCE = 32
"""Requests that a `TurnsWorker` has under way. More than this many make a commit hardly cheaper for
each, and the last one waits for all: some 15 ms."""


GC_ALLOCATIONS = 50_000
"""Objects more than were freed, before the interpreter looks for circles. Requests that are under
way together hold so many that its own 700 have it look all the time, at objects that live on: a
tenth of all CPU (measured). Nearly all are freed without it."""


class Door:
    """What is the same for all connections of a listener, and asked for with each request."""

    def __init__(self, listener: Any) -> None:
        name = listener.getsockname()
        self.family = listener.FAMILY
        self.getsockname = lambda: name


class OneWrite:
    """A connection of one request: what is written first waits for the second write, or the end."""

    __slots__ = ("_connection", "_held", "family", "getsockname")

    def __init__(self, connection: socket.socket, door: Door | None = None) -> None:
        self._connection = connection
        self._held: bytes | None = None
        if door is not None:
            self.family, self.getsockname = door.family, door.getsockname

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

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._doors: dict[Any, Door] = {}

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection."""
        door = self._doors.get(listener)
        if door is None:
            door = self._doors[listener] = Door(listener)
        super().handle(listener, OneWrite(client, door), addr)


class Settings:
    """gunicorn's settings, each looked up once; its own way is a function each time."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._settings, name)
        setattr(self, name, value)
        return value


class TurnsWorker(Worker):
    """Serves what has come in together, stage by stage, so that it shares caches and commits.

    All are read, then all are begun, then all are answered. An answer may have a method `advance`
    (`services.ca.api.Pending`), which does one step of it and says whether it is ready: then each
    does its first step, each its second, and so on. What a step leaves to be written to disk is
    written with what the others left, by the first that goes on. And the processor does the same
    thing many times over, with its caches warm. Measured with two workers: 64 certificates at once
    take 470 us of CPU each in place of 1,200 one after the other, 16 at once 670 in place of 1,350.
    One that comes alone gains nothing, and takes some 15 in a hundred more for the turns.

    All of it happens in one thread: a request that takes long keeps those that wait. So while
    answers are made in steps, only requests of the same method and path are begun.
    """

    cfg: Any
    alive: bool

    def run(self) -> None:
        """Serve until told to stop; what was begun is finished."""
        timeout = self.timeout or 0.5
        self.cfg = Settings(self.cfg)
        gc.collect()
        gc.freeze()  # what was imported is never looked at again
        gc.set_threshold(GC_ALLOCATIONS)
        for listener in self.sockets:
            listener.setblocking(False)
        self._underway: deque[Generator[None, None, None]] = deque()
        self._place = ("", "")
        self._waiting = 0
        while self.alive and self.is_parent_alive():
            if self._begin():
                self._finish()
                continue
            try:
                self.wait(timeout)
            except StopWaiting:
                break

    def _begin(self) -> bool:
        """Accept what has come in, as far as there is room; whether there was anything.

        One of each listener in turn: a storm at one door does not keep the others shut.
        """
        waiting = list(self.sockets)
        while waiting and self.alive and len(self._underway) < AT_ONCE:
            listener = waiting.pop(0)
            try:
                client, address = listener.accept()
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                    raise
                continue
            self._underway.append(self._serve(listener, OneWrite(client), address))
            waiting.append(listener)
        return bool(self._underway)

    def _finish(self) -> None:
        """Let each do its next step in turn until all are served."""
        while self._underway:
            self.notify()
            for _ in range(len(self._underway)):
                serving = self._underway.popleft()
                if next(serving, self) is None:
                    self._underway.append(serving)

    def _serve(self, listener: Any, client: Any, address: Any) -> Generator[None, None, None]:
        """Serve a connection; yields wherever others may have their turn."""
        client.setblocking(True)
        request = None
        try:
            request = next(http.get_parser(self.cfg, client, address))
            yield
            yield from self._answer(listener, request, client, address)
        except (http.errors.NoMoreData, StopIteration) as error:
            self.log.debug("Closing connection. %s", error)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                self.log.exception("Socket error processing request.")
        except GeneratorExit:
            raise
        except BaseException as error:
            self.handle_error(request, client, address, error)
        finally:
            _close(client)

    def _answer(
        self, listener: Any, request: Any, client: Any, address: Any
    ) -> Generator[None, None, None]:
        environ: dict[str, Any] = {}
        response = None
        try:
            self.cfg.pre_request(self, request)
            begun = datetime.now()
            response, environ = wsgi.create(
                request, client, address, listener.getsockname(), self.cfg
            )
            response.force_close()
            self.nr += 1
            if self.nr >= self.max_requests:
                self.log.info("Autorestarting worker after current request.")
                self.alive = False
            place = (environ["REQUEST_METHOD"], environ["PATH_INFO"])
            while self._waiting and place != self._place:
                yield
            body = self.wsgi(environ, response.start_response)
            try:
                advance = getattr(body, "advance", None)
                if advance is not None:
                    self._place = place
                    self._waiting += 1
                    try:
                        yield
                        while not advance():
                            yield
                    finally:
                        self._waiting -= 1
                    yield
                if isinstance(body, environ["wsgi.file_wrapper"]):
                    response.write_file(body)
                else:
                    for item in body:
                        response.write(item)
                response.close()
            finally:
                self.log.access(response, request, environ, datetime.now() - begun)
                if hasattr(body, "close"):
                    body.close()
        except OSError:
            raise
        except Exception:
            if response is None or not response.headers_sent:
                raise
            # the client has a part: only breaking off tells the truth
            self.log.exception("Error handling request")
        finally:
            self.cfg.post_request(self, request, environ, response)


def _close(client: Any) -> None:
    """Close a connection; with unread data in it the other end would lose the answer's tail."""
    try:
        unread = client.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except OSError:
        unread = b""
    if unread:
        util.close_graceful(client)
        return
    with contextlib.suppress(OSError):  # it is gone, and so is whoever asked
        client.close()
