"""Dynamic vendor data against real HTTP servers on loopback that behave well and badly."""

import base64
import contextlib
import gzip
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from structlog.testing import capture_logs

from services.metadata import vendordata
from services.metadata.vendordata import (
    ANSWER_LIMIT,
    DynamicVendorData,
    Target,
    VendorDataError,
    parse_targets,
)


class Service:
    """A target: what it was asked, and how it answers (a function of the handler)."""

    def __init__(self):
        self.asked = []
        self.answer = lambda handler: send(handler, 200, b'{"joined": true}')
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.asked.append((self.path, dict(self.headers), body))
                with contextlib.suppress(OSError):
                    service.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def send(handler, status, body, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def service():
    made = Service()
    yield made
    made.close()


@pytest.fixture
def other():
    made = Service()
    yield made
    made.close()


def ask(instance, *targets, static=None, **options):
    return json.loads(DynamicVendorData(targets, **options).page(instance, static).body)


def test_body_and_headers_are_novas(instance_of, service):
    """A service written for Nova sees what Nova sends."""
    page = DynamicVendorData([Target("join", service.url)]).page(instance_of(), {"a": 1})
    assert json.loads(page.body) == {"static": {"a": 1}, "join": {"joined": True}}
    assert page.content_type == "application/json"
    assert not page.keep
    ((path, headers, body),) = service.asked
    assert path == "/v1"
    assert json.loads(body) == {
        "project-id": "4c7e8f2c2f1d4d1c9a1f0b9f1f8f0a11",
        "instance-id": "3fa85f64-5717-4562-b3fc-2c963f66afa6",
        "image-id": "8d6f1a52-43b1-4a3c-8b07-2d9e55b6b7a1",
        "user-data": base64.b64encode(b"#cloud-config\n\xff\x00").decode(),
        "hostname": "web-1",
        "metadata": {"role": "web"},
        "boot-roles": "",
    }
    assert headers["Content-Type"] == headers["Accept"] == "application/json"
    assert headers["User-Agent"] == "openstack-nova-vendordata"


def test_user_and_password_of_a_url_are_sent(smallest, service):
    """As basic authentication, percent escapes undone."""
    ask(smallest, Target("join", service.url.replace("//", "//me:a%40b@")))
    sent = service.asked[0][1]["Authorization"]
    assert sent == "Basic " + base64.b64encode(b"me:a@b").decode()


def test_an_instance_without_user_data_sends_null(smallest, service):
    """As Nova does; without static data the key ``static`` is left out."""
    assert ask(smallest, Target("join", service.url)) == {"join": {"joined": True}}
    assert json.loads(service.asked[0][2])["user-data"] is None


FAILURES = {
    "an error status": (lambda h: send(h, 500, b"{}"), "answered 500"),
    "not found": (lambda h: send(h, 404, b"{}"), "answered 404"),
    "no JSON": (lambda h: send(h, 200, b"<html>"), "did not answer with JSON"),
    "NaN": (lambda h: send(h, 200, b'{"a": NaN}'), "did not answer with JSON"),
    "deep JSON": (lambda h: send(h, 200, b"[" * 100000), "did not answer with JSON"),
    "not UTF-8": (lambda h: send(h, 200, b'"\xff"'), "did not answer with JSON"),
    "a long number": (lambda h: send(h, 200, b"1" * 5000), "did not answer with JSON"),
    "compressed": (
        lambda h: send(h, 200, gzip.compress(b"{}"), Content_Encoding="gzip"),
        "did not answer with JSON",
    ),
    "too much": (
        lambda h: send(h, 200, b'"' + b"x" * ANSWER_LIMIT + b'"'),
        f"answered more than {ANSWER_LIMIT} bytes",
    ),
    "nothing": (lambda h: h.connection.shutdown(socket.SHUT_RDWR), "ProtocolError"),
    "half an answer": (
        lambda h: (
            h.send_response(200),
            h.send_header("Content-Length", "100"),
            h.end_headers(),
            h.wfile.write(b"{"),
        ),
        "ProtocolError",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_target_that_fails_counts_as_empty(instance_of, service, other, name):
    """Its name has ``{}``, the other targets are not harmed, the log says why."""
    service.answer, reason = FAILURES[name]
    with capture_logs() as logs:
        found = ask(instance_of(), Target("bad", service.url), Target("good", other.url))
    assert len(service.asked) == 1
    assert found == {"bad": {}, "good": {"joined": True}}
    (entry,) = logs
    assert entry["event"] == "vendordata-target-failed"
    assert (entry["target"], entry["reason"]) == ("bad", reason)


def test_a_redirect_is_not_followed(instance_of, service, other):
    """User data goes to the place that the operator named, and nowhere else."""
    service.answer = lambda h: send(h, 307, b"", Location=other.url)
    assert ask(instance_of(), Target("bad", service.url)) == {"bad": {}}
    assert len(service.asked) == 1
    assert other.asked == []


def test_an_empty_answer_is_an_empty_object(instance_of, service):
    """As with Nova; it is no failure."""
    service.answer = lambda h: send(h, 204, b"")
    with capture_logs() as logs:
        assert ask(instance_of(), Target("join", service.url)) == {"join": {}}
    assert logs == []


def test_nobody_listens(instance_of):
    """A refused connection is a failure like others; its log line has no URL and no password."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://user:hunter2@127.0.0.1:{closed.getsockname()[1]}/"
    with capture_logs() as logs:
        assert ask(instance_of(), Target("join", url)) == {"join": {}}
    assert "hunter2" not in repr(logs)
    assert logs[0]["target"] == "join"


@pytest.mark.parametrize("drip", [False, True])
def test_a_late_target_ends_with_the_deadline(instance_of, service, other, drip):
    """Silence and an answer that drips are both cut; the others' answers are there."""
    released = threading.Event()

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while drip and not released.wait(0.05):
            handler.wfile.write(b" ")
        released.wait(30)

    service.answer = answer
    with capture_logs() as logs:
        found = ask(
            instance_of(), Target("late", service.url), Target("good", other.url), deadline=0.7
        )
    released.set()
    assert found == {"late": {}, "good": {"joined": True}}
    assert len(service.asked) == 1
    assert logs[0]["target"] == "late"


def test_targets_are_asked_at_the_same_time(instance_of, service, other):
    """Two targets that wait for each other both answer."""
    meeting = threading.Barrier(2, timeout=20)

    def answer(handler):
        meeting.wait()
        send(handler, 200, b"1")

    service.answer = other.answer = answer
    assert ask(instance_of(), Target("a", service.url), Target("b", other.url)) == {"a": 1, "b": 1}


def test_a_failure_can_be_fatal(instance_of, service):
    """With ``fatal`` the request fails and says which target it was."""
    service.answer = lambda h: send(h, 503, b"")
    with pytest.raises(VendorDataError) as raised:
        ask(instance_of(), Target("join", service.url), fatal=True)
    assert (raised.value.target, raised.value.reason) == ("join", "answered 503")


def test_answers_are_kept_for_a_while_per_instance(instance_of, service):
    """The same question within the time is not asked again; a changed instance asks anew."""
    now = [100.0]
    client = DynamicVendorData(
        [Target("join", service.url)], cache_seconds=30, clock=lambda: now[0]
    )
    first = client.page(instance_of(), None)
    now[0] += 29
    assert client.page(instance_of(), None) == first
    assert len(service.asked) == 1
    client.page(instance_of(hostname="other"), None)
    assert len(service.asked) == 2
    now[0] += 2
    client.page(instance_of(), None)
    assert len(service.asked) == 3


def test_failures_are_not_kept(instance_of, service):
    """The next read asks again."""
    client = DynamicVendorData([Target("join", service.url)])
    service.answer = lambda h: send(h, 500, b"")
    assert json.loads(client.page(instance_of(), None).body) == {"join": {}}
    service.answer = lambda h: send(h, 200, b"[]")
    assert json.loads(client.page(instance_of(), None).body) == {"join": []}
    assert len(service.asked) == 2


def test_what_is_kept_is_bounded(instance_of, service, monkeypatch):
    """The least recently used answers go first."""
    monkeypatch.setattr(vendordata, "CACHE_LIMIT", 40)
    client = DynamicVendorData([Target("join", service.url)])
    for name in ("a", "b", "a", "c", "a"):
        client.page(instance_of(hostname=name), None)
    assert [json.loads(body)["hostname"] for _, _, body in service.asked] == ["a", "b", "c"]
    client.page(instance_of(hostname="b"), None)
    assert len(service.asked) == 4


def test_targets_are_parsed_as_nova_writes_them():
    """``name@url``; the URL may hold further at signs."""
    assert parse_targets(["join@http://u:p@h:8090/x", " b@https://h/ "]) == (
        Target("join", "http://u:p@h:8090/x"),
        Target("b", "https://h/"),
    )


@pytest.mark.parametrize(
    "lines",
    [
        ["http://h/"],
        ["@http://h/"],
        ["a b@http://h/"],
        ["static@http://h/"],
        ["a@http://h/", "a@http://i/"],
        ["a@ftp://h/"],
        ["a@h:80"],
        ["a@http://"],
        ["a@http://[x/"],
    ],
)
def test_a_wrong_target_stops_the_start(lines):
    """Nova skips these in silence; here the line is named."""
    with pytest.raises(ValueError, match="vendor data target") as raised:
        parse_targets(lines)
    assert lines[-1] in str(raised.value)
