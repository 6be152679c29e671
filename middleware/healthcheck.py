"""Answers liveness and readiness to the inside; for anyone else the paths do not exist."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from services.core import readiness
from services.core.errors import Failure
from services.core.headers import INSIDE_ONLY_KEYS

# A request that one of these came with was forwarded for somebody: an instance, or a client of the
# API. The inside asks directly, with at most a request id.
_FORWARDED = INSIDE_ONLY_KEYS - {"HTTP_X_REQUEST_ID"}


class HealthCheck:
    """200 on the liveness path; on the readiness path 200, or 503 with the reasons by check."""

    def __init__(self, app: WSGIApplication, path: str, ready_path: str) -> None:
        self.app = app
        self.path = path
        self.ready_path = ready_path

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if (path != self.path and path != self.ready_path) or not asked_from_inside(environ):
            return self.app(environ, start_response)
        method = environ.get("REQUEST_METHOD")
        if method not in ("GET", "HEAD"):
            raise Failure(405, "A health check is read.", headers=[("Allow", "GET, HEAD")])
        reasons = readiness.failing() if path == self.ready_path else {}
        body = json.dumps({"ok": not reasons, "failing": reasons}).encode("ascii")
        start_response(
            "503 Service Unavailable" if reasons else "200 OK",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [] if method == "HEAD" else [body]


def asked_from_inside(environ: WSGIEnvironment) -> bool:
    """Whether a trusted peer asks for itself."""
    return bool(environ.get("mooring.trusted_peer")) and _FORWARDED.isdisjoint(environ)


def filter_factory(
    _global_conf: dict[str, str], *, path: str = "/healthz", ready_path: str = "/readyz"
) -> Callable[[WSGIApplication], HealthCheck]:
    """Builds the filter; both keys are paths, and they differ."""
    for name, value in (("path", path), ("ready_path", ready_path)):
        if not value.startswith("/"):
            raise ValueError(f"healthcheck: {name} begins with a slash, {value!r} does not")
    if path == ready_path:
        raise ValueError(f"healthcheck: path and ready_path are both {path!r}")
    return lambda app: HealthCheck(app, path, ready_path)
