"""Renders every refusal (`Failure`) in one shape, and keeps our own mistakes from the client.

An exception that is no Failure is a bug of ours: it is logged by type and place, never with its
text (which may quote what a request or the database held), and answered 500 without a word of it.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from services.core.errors import Failure, json_body, text_body

logger = logging.getLogger("mooring.errors")

STYLES = {"json": "application/json", "text": "text/plain; charset=UTF-8"}
# Innermost calls that a log line names: enough to find the place.
_LOGGED_FRAMES = 12
_LOGGED_PATH = 200


class Errors:
    """Holds the answer's start back until its body begins, so that a failure replaces it whole.

    gunicorn adds the headers of a second start_response to those of the first: there is only one.
    """

    def __init__(self, app: WSGIApplication, style: str) -> None:
        self.app = app
        self.style = style

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        held = _Held(start_response)
        try:
            body = self.app(environ, held.start)
        except Exception as error:
            if held.begun:
                raise
            return self.render(error, environ, start_response)
        if type(body) is list or type(body) is tuple or not is_iterated(body, environ):
            held.begin()
            return body
        return _Body(self, body, environ, held)

    def render(
        self, error: Exception, environ: WSGIEnvironment, start_response: StartResponse
    ) -> list[bytes]:
        """Answers with the failure; anything else becomes one without its details."""
        request_id = environ.get("mooring.request_id", "")
        failure = as_failure(error, environ, request_id)
        body = json_body(failure, request_id) if self.style == "json" else text_body(failure)
        headers = [
            ("Content-Type", STYLES[self.style]),
            ("Content-Length", str(len(body))),
            *failure.headers,
        ]
        start_response(f"{failure.status} {failure.reason}", headers)
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


def is_iterated(body: object, environ: WSGIEnvironment) -> bool:
    """False for a file, which the server sends by itself if it gets it unwrapped."""
    wrapper = environ.get("wsgi.file_wrapper")
    return not (isinstance(wrapper, type) and isinstance(body, wrapper))


class _Held:
    """The start of an answer, and whether it has gone to the server."""

    __slots__ = ("begun", "headers", "start_response", "status", "write")

    def __init__(self, start_response: StartResponse) -> None:
        self.start_response = start_response
        self.begun = False
        self.status: str | None = None

    def start(self, status, headers, exc_info=None):  # type: ignore[no-untyped-def]  # as WSGI has it
        if exc_info is None and self.status is not None:
            raise AssertionError("start_response called twice")
        if self.begun:
            return self.start_response(status, headers, exc_info)
        self.status, self.headers = status, headers
        return self.late_write

    def begin(self) -> None:
        if not self.begun and self.status is not None:
            self.begun = True
            self.write = self.start_response(self.status, self.headers)

    def late_write(self, data: bytes) -> object:
        self.begin()
        return self.write(data)


class _Body:
    """Passes an iterator on piece by piece; a failure before the first piece is still rendered."""

    def __init__(
        self,
        errors: Errors,
        body: Iterable[bytes],
        environ: WSGIEnvironment,
        held: _Held,
    ) -> None:
        self.errors, self.body, self.environ, self.held = errors, body, environ, held
        self.pieces: Iterator[bytes] | None = None

    def advance(self) -> bool:
        """Do a step of an answer that is made in steps (`services.core.worker`); True at the end.

        A failure of it is rendered as one of the first piece is.
        """
        step = getattr(self.body, "advance", None)
        if step is None:
            return True
        try:
            return bool(step())
        except Exception as error:
            rendered = self.errors.render(error, self.environ, self.held.start_response)
            self.held.begun = True
            self.pieces = iter(rendered)
            return True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if self.pieces is None:
                self.pieces = iter(self.body)
            piece = next(self.pieces)
        except StopIteration:
            self.held.begin()
            raise
        except Exception as error:
            # The client may have the status already: then only breaking off tells the truth.
            if self.held.begun:
                raise
            rendered = self.errors.render(error, self.environ, self.held.start_response)
            self.held.begun = True
            self.pieces = iter(rendered)
            return next(self.pieces)
        self.held.begin()
        return piece

    def close(self) -> None:
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def as_failure(error: Exception, environ: WSGIEnvironment, request_id: str) -> Failure:
    """The failure that the client sees; logs what is ours (5xx) under the request id."""
    if isinstance(error, Failure):
        if error.status >= 500:
            logger.warning("%s failed: %d %s", request_id, error.status, error.code)
        return error
    if type(error).__module__ == "gunicorn.http.errors":
        # The server parses the body while the application reads it: a broken chunk, a short body.
        return Failure(400, "The body of the request cannot be read.")
    frames = traceback.extract_tb(error.__traceback__)[-_LOGGED_FRAMES:]
    logger.error(
        "%s unexpected %s at %s %r: %s",
        request_id,
        type(error).__name__,
        environ.get("REQUEST_METHOD"),
        str(environ.get("PATH_INFO"))[:_LOGGED_PATH],
        " > ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames),
    )
    return Failure(500, "An unexpected error happened; the log has it under the request id.")


def filter_factory(
    _global_conf: dict[str, str], *, style: str = "json"
) -> Callable[[WSGIApplication], Errors]:
    """Builds the filter; `style` is `json` (operators) or `text` (instances)."""
    if style not in STYLES:
        raise ValueError(f"errors: style is {' or '.join(STYLES)}, not {style!r}")
    return lambda app: Errors(app, style)
