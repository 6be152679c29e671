"""services.core.composite: by path, and by the socket of a real gunicorn."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.core.composite import by_listener, by_path, listener_name

ROOT = Path(__file__).parents[3]


class Loader:
    """Gives applications that answer with their name and where the path was cut."""

    def get_app(self, name, *, global_conf):
        def app(environ, start_response):
            start_response("200 OK", [])
            cut = f"{name}:{environ.get('SCRIPT_NAME')}:{environ.get('PATH_INFO')}"
            return [cut.encode()]

        return app


def ask(app, path="/", method="GET", **environ):
    started = []
    request = {"REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", **environ}
    body = b"".join(app(request, lambda *a: started.append(a)))
    return started[0][0], body.decode()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "rest::/"),
        ("", "rest::"),
        ("/v1", "one:/v1:"),
        ("/v1/", "one:/v1:/"),
        ("/v1/x", "one:/v1:/x"),
        ("/v1x", "rest::/v1x"),
        ("/v1/admin", "two:/v1/admin:"),
        ("/v1/admin/x", "two:/v1/admin:/x"),
        ("/v1/adminx", "one:/v1:/adminx"),
        ("//v1/x", "rest:://v1/x"),
        ("/V1", "rest::/V1"),
    ],
)
def test_longest_prefix_of_whole_segments(path, expected):
    """The longest matching prefix wins, and a prefix ends where a segment ends."""
    targets = {"/v1": "one", "/": "rest", "/v1/admin/": "two"}
    assert ask(by_path(Loader(), {}, **targets), path) == ("200 OK", expected)


def test_script_name_grows():
    """Composites can be nested: what an outer one cut off is kept."""
    app = by_path(Loader(), {}, **{"/b": "x"})
    assert ask(app, "/b/c", SCRIPT_NAME="/a") == ("200 OK", "x:/a/b:/c")


@pytest.mark.parametrize(
    "app", [by_path(Loader(), {}, **{"/v1": "x"}), by_listener(Loader(), {}, **{"x.sock": "x"})]
)
def test_nothing_matches(app):
    """404 in plain text, for HEAD without a body."""
    body = "404 Not Found\n\nThe resource could not be found.\n\n   "
    assert ask(app, "/v2") == ("404 Not Found", body)
    assert ask(app, "/v2", "HEAD") == ("404 Not Found", "")


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        ({}, "no path is given"),
        ({"v1": "x"}, "a key is a path, 'v1' is none"),
        ({"/v1": "x", "/v1/": "y"}, "'/v1/' stands there twice"),
    ],
)
def test_wrong_paths_stop_the_start(targets, text):
    """Each is named."""
    with pytest.raises(ValueError, match=text):
        by_path(Loader(), {}, **targets)


def test_no_listener_stops_the_start():
    """Only a default is no composite."""
    with pytest.raises(ValueError, match="no listener is given"):
        by_listener(Loader(), {}, default="x")


def test_default_listener_and_a_closed_connection():
    """Unknown sockets, none at all and one that is gone go to the default."""
    app = by_listener(Loader(), {}, default="rest", **{"x.sock": "x"})
    gone = socket.socket()
    gone.close()
    for environ in ({}, {"gunicorn.socket": gone}):
        assert ask(app, **environ) == ("200 OK", "rest::/")


@pytest.mark.parametrize(
    ("address", "expected"), [("\0mooring", "mooring"), ("", "")], ids=["abstract", "unnamed"]
)
def test_unusual_unix_sockets(address, expected):
    """An abstract socket goes by its name; an unnamed one has none."""
    with socket.socket(socket.AF_UNIX) as listener:
        if address:
            listener.bind(address + str(os.getpid()))
            expected += str(os.getpid())
        assert listener_name({"gunicorn.socket": listener}) == expected


APPLICATION = """
def factory(global_conf, *, name):
    def app(environ, start_response):
        peer = environ["gunicorn.socket"].family.name + " " + repr(environ["REMOTE_ADDR"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{name} {peer} {environ['RAW_URI']} {environ['PATH_INFO']}".encode()]
    return app
"""


@pytest.fixture
def gunicorn(tmp_path):
    """A real gunicorn with two unix sockets and a TCP one behind a by_listener composite."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "shown.py").write_text(APPLICATION)
    sections = [
        f"[app:{name}]\npaste.app_factory = shown:factory\nname = {name}\n"
        for name in ("red", "blue", "tcp")
    ]
    (tmp_path / "paste.ini").write_text(
        "[composite:main]\n"
        "paste.composite_factory = services.core.composite:by_listener\n"
        f"red.sock = red\nblue.sock = blue\n{port} = tcp\n" + "".join(sections)
    )
    log = tmp_path / "log"
    with log.open("wb") as errors:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--paste", tmp_path / "paste.ini"),
                *("--no-control-socket", "--log-level", "warning"),
                *("-b", f"unix:{tmp_path}/red.sock", "-b", f"unix:{tmp_path}/blue.sock"),
                *("-b", f"unix:{tmp_path}/other.sock", "-b", f"127.0.0.1:{port}"),
            ],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
            stderr=errors,
        )

    def get(name, target="/"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection):
            if name is not None:
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(10)
                connection.sock.connect(str(tmp_path / name))
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read().decode()

    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                get("red.sock")
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield get
    finally:
        server.terminate()
        server.wait(20)


def test_listeners_of_a_real_gunicorn(gunicorn):
    """Each socket leads to its application; an unlisted one leads to nothing."""
    assert gunicorn("red.sock") == (200, "red AF_UNIX '' / /")
    assert gunicorn("blue.sock") == (200, "blue AF_UNIX '' / /")
    assert gunicorn(None) == (200, "tcp AF_INET '127.0.0.1' / /")
    assert gunicorn("other.sock")[0] == 404


def test_raw_target_of_a_real_gunicorn(gunicorn):
    """What the signature rests on: RAW_URI is the target as on the wire, PATH_INFO is decoded."""
    assert gunicorn("red.sock", "/a%2Fb?x=%20") == (200, "red AF_UNIX '' /a%2Fb?x=%20 /a/b")
