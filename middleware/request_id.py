"""Gives each request the id that its error, its log lines and its answer carry."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# NGINX writes 32 hexadecimal digits, a UUID has four dashes between them.
ACCEPTED = re.compile(r"req-[0-9a-f-]{32,36}", re.ASCII).fullmatch


class RequestId:
    """Sets `mooring.request_id` and the answer's `X-Request-ID`.

    An id that came with the request is kept if it has our form: the gatekeeper has left it there
    only if a trusted proxy sent it. With `proxy_answers` that proxy itself adds its id to the
    answer, and only an id of ours is added here.
    """

    def __init__(self, app: WSGIApplication, proxy_answers: bool = False) -> None:
        self.app = app
        self.proxy_answers = proxy_answers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request_id = environ.get("HTTP_X_REQUEST_ID", "")
        if ACCEPTED(request_id):
            if self.proxy_answers:
                environ["mooring.request_id"] = request_id
                return self.app(environ, start_response)
        else:
            request_id = f"req-{uuid.uuid4()}"
        environ["mooring.request_id"] = request_id
        header = ("X-Request-ID", request_id)

        def start(status, headers, exc_info=None):  # type: ignore[no-untyped-def]  # as WSGI has it
            # A new list: an application may hand out the same one for each answer.
            return start_response(status, [*headers, header], exc_info)

        return self.app(environ, start)


def filter_factory(
    _global_conf: dict[str, str], *, proxy_answers: str = "false"
) -> Callable[[WSGIApplication], RequestId]:
    """Builds the filter; `proxy_answers` says whether the proxy adds its id to the answer."""
    if proxy_answers not in ("true", "false"):
        raise ValueError(f"request_id: proxy_answers is true or false, not {proxy_answers!r}")
    return lambda app: RequestId(app, proxy_answers == "true")
