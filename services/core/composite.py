"""Two paste composites: one application by the path's beginning, or by the listening socket.

`by_path` does what Paste's urlmap does, without Paste. `by_listener` keeps two audiences of one
process apart by something that no request can choose: the socket that it came in by.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from services.core.errors import Failure, text_body


class Loader(Protocol):
    """The part of paste.deploy's loader that a composite uses."""

    def get_app(
        self, name: str, *, global_conf: dict[str, str]
    ) -> WSGIApplication: ...  # pragma: no cover


def not_found(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """404 in plain text: no filter stands before a composite that could render a Failure."""
    body = text_body(Failure(404, "The resource could not be found."))
    start_response(
        "404 Not Found",
        [("Content-Type", "text/plain; charset=UTF-8"), ("Content-Length", str(len(body)))],
    )
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


class ByPath:
    """The application with the longest prefix of whole segments, which moves to SCRIPT_NAME."""

    def __init__(self, apps: dict[str, WSGIApplication]) -> None:
        self.apps = sorted(apps.items(), key=lambda item: -len(item[0]))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        for prefix, app in self.apps:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + prefix
                environ["PATH_INFO"] = path[len(prefix) :]
                return app(environ, start_response)
        return not_found(environ, start_response)


class ByListener:
    """The application of the socket that took the connection, or the default one.

    A unix socket goes by its file's name (`metadata.sock`), a TCP socket by its port (`8775`): an
    ini key cannot hold the colon of `host:port`.
    """

    def __init__(self, apps: dict[str, WSGIApplication], default: WSGIApplication) -> None:
        self.apps = apps
        self.default = default
        self._by_path: dict[str, WSGIApplication] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            app = self._by_path[environ["gunicorn.socket"].getsockname()]
        except (LookupError, OSError):
            app = self._find(environ)
        return app(environ, start_response)

    def _find(self, environ: WSGIEnvironment) -> WSGIApplication:
        name = listener_name(environ)
        app = self.apps.get(name, self.default)
        path = environ["gunicorn.socket"].getsockname() if name else None
        # As many as there are listeners; a TCP connection's name is one of many addresses of ours.
        if isinstance(path, str):
            self._by_path[path] = app
        return app


def listener_name(environ: WSGIEnvironment) -> str:
    """The listening socket's name; empty if the server does not hand the connection over.

    gunicorn puts the accepted socket into the environ, whose own name is the listener's.
    """
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return ""
    try:
        name = connection.getsockname()
    except OSError:
        return ""
    if isinstance(name, tuple):
        return str(name[1])
    if isinstance(name, bytes):  # an abstract socket
        name = name.lstrip(b"\0").decode("utf-8", "replace")
    return str(name).rpartition("/")[2]


def by_path(loader: Loader, global_conf: dict[str, str], **targets: str) -> ByPath:
    """paste.composite_factory: keys are path prefixes (`/` for the rest), values applications."""
    apps: dict[str, WSGIApplication] = {}
    for key, target in targets.items():
        prefix = key.rstrip("/")
        if not key.startswith("/"):
            raise ValueError(f"by_path: a key is a path, {key!r} is none")
        if prefix in apps:
            raise ValueError(f"by_path: {key!r} stands there twice")
        apps[prefix] = loader.get_app(target, global_conf=global_conf)
    if not apps:
        raise ValueError("by_path: no path is given")
    return ByPath(apps)


def by_listener(
    loader: Loader, global_conf: dict[str, str], *, default: str = "", **targets: str
) -> ByListener:
    """paste.composite_factory: keys are listeners' names, values applications."""
    if not targets:
        raise ValueError("by_listener: no listener is given")
    apps = {
        name: loader.get_app(target, global_conf=global_conf) for name, target in targets.items()
    }
    rest = loader.get_app(default, global_conf=global_conf) if default else not_found
    return ByListener(apps, rest)
