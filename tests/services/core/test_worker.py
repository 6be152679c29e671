"""The connection that writes an answer's head and body at once."""

import errno
import socket
from collections import deque

import pytest
from gunicorn.config import Config

from services.core.worker import AT_ONCE, OneWrite, Settings, TurnsWorker


@pytest.fixture
def pair():
    """Our end as the worker has it, and the other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    yield OneWrite(ours), theirs
    theirs.close()
    ours.close()


def arrived(theirs):
    """What can be read now."""
    try:
        return theirs.recv(65536)
    except BlockingIOError:
        return None


def test_head_and_body_go_together(pair):
    """Nothing is sent before the body's first part; what follows goes at once."""
    connection, theirs = pair
    connection.sendall(b"head ")
    assert arrived(theirs) is None
    connection.sendall(b"body ")
    assert arrived(theirs) == b"head body "
    connection.sendall(b"more")
    assert arrived(theirs) == b"more"


@pytest.mark.parametrize("end", [lambda c: c.shutdown(socket.SHUT_WR), lambda c: c.close()])
def test_a_head_alone_is_sent_at_the_end(pair, end):
    """An answer without a body leaves when the connection ends, once."""
    connection, theirs = pair
    connection.sendall(b"head")
    end(connection)
    assert arrived(theirs) == b"head"
    assert arrived(theirs) == b""


def test_a_connection_that_is_gone_is_closed_all_the_same(pair):
    """The error of the last write is told, and the descriptor is not kept."""
    connection, theirs = pair
    connection.sendall(b"head")
    theirs.close()
    with pytest.raises(OSError, match="Broken pipe"):
        connection.close()
    assert connection.fileno() == -1


def test_the_rest_is_the_connections(pair):
    """Reading, names and options are the socket's own."""
    connection, theirs = pair
    theirs.send(b"request")
    assert connection.recv(100) == b"request"
    assert connection.family == socket.AF_UNIX
    connection.settimeout(3)
    assert connection.gettimeout() == 3


# ---- requests that take turns ----------------------------------------------------------------


class Steps:
    """An answer in two steps, which notes what it did."""

    def __init__(self, name, seen, start_response):
        self.name, self.seen, self.start_response = name, seen, start_response
        self.left = 2

    def advance(self):
        if self.name == "broken":
            raise RuntimeError("in the middle")
        self.left -= 1
        self.seen.append((self.name, self.left))
        return self.left == 0

    def __iter__(self):
        self.start_response("200 OK", [("Content-Length", str(len(self.name)))])
        yield self.name.encode()


@pytest.fixture
def turns():
    """A worker in this process over a unix socket's pairs: what it is sent, what it answers."""
    config = Config()
    config.set("errorlog", "-")
    worker = TurnsWorker(1, 0, [], None, 30, config, Quiet())
    worker._underway = deque()
    worker._place, worker._waiting = ("", ""), 0
    seen = []

    def app(environ, start_response):
        name = environ["PATH_INFO"].strip("/")
        seen.append((name, "begun"))
        if environ["REQUEST_METHOD"] == "GET":
            start_response("200 OK", [("Content-Length", "3")])
            return [b"get"]
        query = environ["QUERY_STRING"] or name
        return Steps(query, seen, start_response)

    worker.wsgi = app

    def serve(*requests):
        ends = []
        for request in requests:
            ours, theirs = socket.socketpair()
            theirs.sendall(f"{request} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            ends.append(theirs)
            worker._underway.append(worker._serve(Listener(), OneWrite(ours), ""))
        worker._finish()
        answers = []
        for theirs in ends:
            theirs.settimeout(5)
            data = b""
            while piece := theirs.recv(65536):
                data += piece
            theirs.close()
            answers.append(data)
        return answers

    yield serve, seen
    worker.tmp.close()


class Listener:
    """Stands for the listening socket, of which only the name is asked."""

    def getsockname(self):
        return "ca.sock"


class Quiet:
    """A log that says nothing."""

    def __getattr__(self, _name):
        return lambda *_arguments, **_named: None


def test_answers_in_steps_take_turns(turns):
    """Each does its first step before any does its second, and each gets its own answer."""
    serve, seen = turns
    answers = serve("POST /p?a", "POST /p?b", "POST /p?c")
    assert [each.split(b"\r\n\r\n")[1] for each in answers] == [b"a", b"b", b"c"]
    assert [step for _name, step in seen] == ["begun"] * 3 + [1] * 3 + [0] * 3


def test_other_requests_wait_for_those_in_steps(turns):
    """What could take long is not begun while answers are half made."""
    serve, seen = turns
    answers = serve("POST /p?a", "GET /slow", "POST /p?b")
    assert [each.split(b"\r\n\r\n")[1] for each in answers] == [b"a", b"get", b"b"]
    assert seen[-1] == ("slow", "begun")


def test_a_step_that_breaks_is_only_its_own(turns):
    """500 for one, the others are answered."""
    serve, _seen = turns
    answers = serve("POST /p?a", "POST /p?broken", "nonsense", "POST /p?b")
    assert [each.split(b" ")[1] for each in answers] == [b"200", b"500", b"400", b"200"]


def test_settings_are_looked_up_once():
    """What gunicorn's settings say, without asking them again."""

    class Asked:
        count = 0

        @property
        def limit(self):
            self.count += 1
            return 5

    asked = Asked()
    settings = Settings(asked)
    assert (settings.limit, settings.limit, asked.count) == (5, 5, 1)


def test_a_storm_at_one_door_leaves_the_other_open():
    """Listeners are accepted from in turn, so what comes in at the second is begun as well."""
    config = Config()
    config.set("errorlog", "-")

    class Full(Listener):
        """A listener with so many connections waiting."""

        def __init__(self, waiting):
            self.waiting = waiting

        def accept(self):
            if not self.waiting:
                raise BlockingIOError(errno.EAGAIN, "nobody")
            self.waiting -= 1
            return object(), ""

    doors = [Full(1000), Full(1)]
    worker = TurnsWorker(1, 0, doors, None, 30, config, Quiet())
    worker._underway = deque()
    assert worker._begin()
    assert doors[1].waiting == 0
    assert len(worker._underway) == AT_ONCE
    worker._underway.clear()
    worker.tmp.close()
