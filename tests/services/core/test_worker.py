"""The connection that writes an answer's head and body at once."""

import socket

import pytest

from services.core.worker import OneWrite


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
