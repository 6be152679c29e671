"""What an instance may send to do harm: every answer is below 500, and the others are served."""

import contextlib
import http.client
import json
import socket
import string

import pytest
from stand import receive, request_bytes, wait_for

pytestmark = pytest.mark.e2e

READ = "/latest/meta-data/instance-id"


@pytest.fixture(scope="module")
def hostile(house):
    """An instance that behaves badly."""
    return house.instance(user_data=b"the hostile one's user data", keys=KEYS)


KEYS = [{"name": "k", "data": "ssh-ed25519 AAAAhostilehostilehostile k"}]


def answer_of(space, raw, half_close=False):
    """The answer to bytes, None if the connection ends without one."""
    with space.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        try:
            return receive(connection, raw.partition(b" ")[0].decode("latin-1"))
        except (http.client.HTTPException, ConnectionError):
            return None


def assert_harmless(answer, method="GET"):
    """Below 500 and in words, or no answer at all."""
    assert answer is None or 200 <= answer.status < 500, answer
    if answer is not None and answer.status >= 400:
        assert_plain(answer, method)


PARSER_PAGE = b"<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n"
"""What HAProxy's parser says, which no configuration changes; it has no client's word in it."""


def assert_plain(answer, method="GET"):
    """An error in plain text that is never empty; what HAProxy cannot parse is its own page."""
    if method != "HEAD" and not answer.body.startswith(PARSER_PAGE):
        assert answer.headers["Content-Type"] == "text/plain; charset=UTF-8", answer
        assert answer.text.startswith(f"{answer.status} "), answer


PATHS = [
    # what Nova answers 500 to, and its neighbours
    "/latest/meta-data/instance-id/foo",
    "/latest/meta-data/instance-id/foo/bar",
    "/latest/user-data/x",
    "/latest/meta-data/security-groups/default",
    "/openstack/latest/content",
    "/openstack/content/0000",
    "/openstack/latest/user_data/x",
    "/openstack/latest/password/x",
    "/latest/meta-data/public-keys/0/_name",
    "/latest/meta-data/public-keys/1/openssh-key",
    "/latest/meta-data/public-keys/-1/openssh-key",
    "/latest/meta-data/public-keys/99999999999999999999/openssh-key",
    # places and spellings
    "/LATEST/",
    "/latest/../../etc/passwd",
    "/..",
    "/../../../../",
    "/.",
    "//",
    "///latest",
    "//latest/meta-data",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/latest%2Fmeta-data%2Finstance-id",
    "/latest/meta-data/%00",
    "/latest/meta-data/%0d%0aX-Evil:%201",
    "/%",
    "/%zz",
    "/%ff%fe",
    "/%c3%28",
    "/latest/meta-data/\u00e9\u00ff",
    "/latest/meta-data/%F0%9F%92%A9",
    "/" + "a/" * 900,
    "/" + "../" * 600,
    "/" + "%2e" * 600,
    "/latest?" + "a=b&" * 400,
    "/?",
    "/#fragment",
    "/latest/meta-data/?\u00e9",
    "/latest/meta-data/network/interfaces/macs/00:00:00:00:00:00/mac",
    "/latest/meta-data/tags/instance/../../instance-id",
    "/latest/dynamic/instance-identity/document",
    "/9999-99-99/meta-data/",
    "/openstack/9999-99-99/meta_data.json",
    "/openstack/latest/version",
    "/v1/instances",
    "/healthz",
    "/favicon.ico",
    "/server-status",
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30].encode("ascii", "replace"))
def test_garbage_paths(hostile, path):
    """No path, however written, is an error of ours; methods do not matter."""
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PROPFIND"):
        answer = answer_of(hostile, request_bytes(method, path.encode("latin-1")))
        assert_harmless(answer, method)


@pytest.mark.parametrize("target", ["*", "latest", "http://example.org/latest/", "", "/a b", "\t"])
def test_targets_that_are_no_path(hostile, target):
    """Asterisk, authority and nothing at all are refused; absolute form is none of ours."""
    for method in ("GET", "OPTIONS", "CONNECT"):
        answer = answer_of(hostile, request_bytes(method, target))
        assert_harmless(answer, method)
        assert answer is None or answer.status in (400, 404, 405), (method, answer.status)


METHODS = ["DELETE", "PATCH", "OPTIONS", "POST", "PUT", "PROPFIND"]


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_get_405_with_allow(hostile, method):
    """Documents are read: anything else is 405 and the answer says what is served."""
    for path in (READ, "/openstack/latest/meta_data.json", "/latest/user-data", "/"):
        answer = hostile.request(method, path)
        assert answer.status == 405, path
        assert answer.headers["Allow"] == "GET, HEAD"
    answer = hostile.request(method, "/openstack/latest/password")
    if method != "POST":
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, POST")


@pytest.mark.parametrize("method", ["get", "X", "G" * 40, "GE@T", "\xff", "M-SEARCH"])
def test_words_that_are_no_method(hostile, method):
    """Refused in plain text by whichever program reads it first."""
    raw = request_bytes("GET", READ).replace(b"GET", method.encode("latin-1"), 1)
    answer = answer_of(hostile, raw)
    assert answer.status in (400, 405)
    assert_plain(answer)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_methods_of_proxies_are_refused(hostile, method):
    """TRACE would show what the inside adds, CONNECT would lead elsewhere."""
    answer = answer_of(hostile, request_bytes(method, "/latest/"))
    assert answer is None or answer.status in (400, 405)
    assert answer is None or b"Mooring" not in answer.body
    if method == "TRACE":
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_unknown_methods_on_unknown_paths_get_404(hostile):
    """What is not there has no methods."""
    assert hostile.request("DELETE", "/latest/nothing").status == 404


RAW = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "HTTP/0.9": b"GET /latest/\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "bad host": b"GET / HTTP/1.1\r\nHost: a b\x80\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b\r\n  c\r\n\r\n",
    "nul in header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: \x00\r\n\r\n",
    "non-ASCII header name": b"GET / HTTP/1.1\r\nHost: x\r\nX-\xff: 1\r\n\r\n",
    "non-ASCII header value": b"GET / HTTP/1.1\r\nHost: x\r\nAccept: \xff\xfe\r\n\r\n",
    "non-ASCII token": b"GET / HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token: \xff\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nhello",
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare CR": b"GET / HTTP/1.1\rHost: x\r\r",
    "negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"
    ),
    "length of words": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: five\r\n\r\nhello",
    "length and chunks": (
        b"POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /latest/ HTTP/1.1\r\nHost: x\r\n\r\n"
    ),
    "odd coding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "bad chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    "upgrade": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ),
    "upgrade to h2c": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    ),
    "expect": (
        b"POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\nExpect: unheard-of\r\n"
        b"Content-Length: 0\r\n\r\n"
    ),
    "script name": b"GET /latest/ HTTP/1.1\r\nHost: x\r\nScript_Name: /latest\r\n\r\n",
    "proxy protocol": (
        b"PROXY TCP4 10.1.0.4 10.1.0.4 1 80\r\nGET /latest/ HTTP/1.1\r\nHost: x\r\n\r\n"
    ),
    "many headers": (
        b"GET / HTTP/1.1\r\nHost: x\r\n"
        + b"".join(b"X-%d: 1\r\n" % number for number in range(400))
        + b"\r\n"
    ),
    "range": b"GET /latest/user-data HTTP/1.1\r\nHost: x\r\nRange: bytes=0-,0-,0-\r\n\r\n",
    "conditions": (
        b"GET /latest/ HTTP/1.1\r\nHost: x\r\nIf-Match: *\r\nIf-None-Match: *\r\n"
        b"If-Modified-Since: yesterday\r\n\r\n"
    ),
    "a wild accept": b"GET /nothing HTTP/1.1\r\nHost: x\r\nAccept: text/html;q=x,*/*;q=9\r\n\r\n",
    "a bad type": (
        b"POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\nContent-Type: \xff;=\r\n"
        b"Content-Length: 0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_requests_that_are_none(hostile, name):
    """Bytes that are no request, or an ambiguous one: refused or answered, never our error."""
    assert_harmless(answer_of(hostile, RAW[name], half_close=True))
    assert hostile.get(READ).status == 200


def test_a_smuggled_request_is_not_answered(hostile):
    """Length and chunks together get one answer, and the connection ends with it."""
    with hostile.connect() as connection:
        connection.sendall(RAW["length and chunks"])
        connection.shutdown(socket.SHUT_WR)
        answers = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answers += part
    assert answers.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"meta-data" not in answers


OVERSIZED = {
    "target": (request_bytes("GET", "/latest/" + "x" * 3000), 414),
    "huge target": (request_bytes("GET", "/latest/" + "x" * 100_000), 400),
    "header": (request_bytes("GET", READ, [("X-Long", "x" * 9000)]), 431),
    "huge header": (request_bytes("GET", READ, [("X-Long", "x" * 100_000)]), 400),
    "token": (request_bytes("GET", READ, [("X-aws-ec2-metadata-token", "A" * 7000)]), 401),
    "password": (request_bytes("POST", "/openstack/latest/password", body=b"p" * 1021), 400),
    "body": (request_bytes("POST", "/openstack/latest/password", body=b"p" * 5000), 413),
    "body of a GET": (
        request_bytes("GET", READ, [("Content-Length", "9000")]) + b"x" * 9000,
        413,
    ),
    "chunks": (
        b"POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"400\r\n"
        + b"c" * 1024
        + b"\r\n"
        + b"400\r\n"
        + b"c" * 1024
        + b"\r\n"
        + b"400\r\n"
        + b"c" * 1024
        + b"\r\n0\r\n\r\n",
        413,
    ),
}


@pytest.mark.parametrize("name", OVERSIZED)
def test_oversized_requests(hostile, name):
    """What is too long is refused with a status that says so, and costs the next one nothing."""
    raw, status = OVERSIZED[name]
    answer = answer_of(hostile, raw)
    assert answer is None or answer.status == status, answer
    if answer is not None:
        assert_plain(answer)
    if status not in (400, 413):
        assert answer is not None
    assert hostile.get(READ).status == 200
    assert hostile.get("/openstack/latest/password").body == b""


def test_a_length_that_lies_is_ended(hostile):
    """A body that never comes is 408 from the host's proxy after 5 s, not a waiting worker."""
    with hostile.connect() as connection:
        head = b"POST /openstack/latest/password HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b"only this")
        assert receive(connection, "POST").status == 408
    assert hostile.get("/openstack/latest/password").body == b""


def test_slow_requests_hold_nobody_up(house, hostile, red, blue):
    """Sixty connections that send a byte now and then: the same instance and others are served.

    Each slow one ends with 408 or a close, since its whole header may take 5 s and no longer.
    """
    slow = [hostile.connect() for _ in range(60)]
    try:
        alive = dict.fromkeys(slow)
        text = iter((f"GET {READ} HTTP/1.1\r\nHost: x\r\nX-Slow: " + string.ascii_letters).encode())
        for _ in range(12):
            byte = bytes([next(text)])
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.sendall(byte)
            for space in (hostile, red, blue):
                assert space.get(READ).status == 200
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.settimeout(15)
                alive[connection] = connection.recv(100)
        for answer in alive.values():
            assert not answer or answer.startswith(b"HTTP/1.1 408 ")
        assert any(alive.values())
    finally:
        for connection in slow:
            connection.close()
    wait_for("the slow ones' end", lambda: hostile.get(READ).status == 200)


def test_one_instance_cannot_take_all_connections(hostile, red):
    """Beyond its share of connections an instance is refused; its neighbour is not."""
    many = []
    try:
        refused = 0
        for _ in range(100):
            try:
                many.append(hostile.connect())
            except ConnectionError:
                refused += 1
        for connection in many:
            with contextlib.suppress(OSError):
                connection.sendall(b"G")
        assert red.get(READ).status == 200
        for connection in many:
            connection.settimeout(0.05)
            try:
                refused += connection.recv(1) == b""
            except TimeoutError:
                pass
            except OSError:
                refused += 1
        assert refused >= 30
    finally:
        for connection in many:
            connection.close()
    raw = request_bytes("GET", READ)
    wait_for("connections again", lambda: answer_of(hostile, raw) is not None)


def test_a_slow_reader_costs_no_worker(house, red):
    """Clients that never read the largest user data hold no gunicorn worker."""
    big = house.instance(user_data=b"\x00" * 65536)
    waiting = []
    try:
        for _ in range(8):
            connection = big.connect()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.sendall(request_bytes("GET", "/latest/user-data"))
            waiting.append(connection)
        for _ in house.each_worker():
            assert red.get(READ).status == 200
    finally:
        for connection in waiting:
            connection.close()


def test_pipelined_requests_get_their_answers_in_order(hostile):
    """Ten requests in one packet: ten answers, each to its own."""
    paths = [READ, "/nothing", "/openstack/latest/meta_data.json"] * 3
    with hostile.connect() as connection:
        connection.sendall(b"".join(request_bytes("GET", path) for path in paths))
        file = connection.makefile("rb")
        answers = []
        for _ in paths:
            head = file.readline()
            headers = http.client.parse_headers(file)
            answers.append((int(head.split()[1]), file.read(int(headers["Content-Length"]))))
        file.close()
    assert [status for status, _ in answers] == [200, 404, 200] * 3
    assert json.loads(answers[2][1])["uuid"] == hostile.id


def test_nobody_saw_an_error_of_ours(house):
    """After all of this gunicorn has logged no exception and NGINX no failed worker."""
    log = house.stand.processes["gunicorn"].log.read_text()
    assert "Traceback" not in log
    assert "Internal Server Error" not in log
    assert len(house.workers()) == house.stand.workers
