"""HTTP to the operators' API: mutual TLS, one deadline for a request and all its attempts.

Only what may be repeated without harm is (GET, PUT, DELETE: RFC 9110 section 9.2.2), after a
connection failed or the server said that it is away just now.
"""

import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, SSLError

from services.cli.output import printable
from services.cli.settings import (
    CONFLICT,
    FORBIDDEN,
    NOT_FOUND,
    REFUSED,
    UNREACHABLE,
    Failed,
    Settings,
)

ATTEMPTS = 4
"""Times that a request is sent: enough for a worker that restarts or a database that fails over
within some seconds; a longer outage should reach the person who asks."""

PAUSE = 0.2
"""Seconds; the pauses between attempts are 2, 4 and 8 times as long, or what Retry-After says."""

CONNECT_TIMEOUT = 5.0
"""Seconds for TCP and TLS: a controller is near, and one that is not there should be told soon."""

IDEMPOTENT = frozenset({"GET", "PUT", "DELETE"})
AWAY = frozenset({502, 503, 504})

_EXIT_CODES = {401: FORBIDDEN, 403: FORBIDDEN, 404: NOT_FOUND, 409: CONFLICT, 412: CONFLICT}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered; ``attempts`` is how often the request was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    attempts: int

    def json(self) -> Any:
        """The body as JSON; raises Failed if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Failed("the server's answer is not JSON", UNREACHABLE) from None


class Refused(Failed):
    """The server refused; ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(
            message, _EXIT_CODES.get(status, UNREACHABLE if status >= 500 else REFUSED)
        )
        self.status = status


class Api:
    """The operators' API at the URL of the settings."""

    def __init__(self, settings: Settings) -> None:
        if not settings.url:
            raise Failed("no server: give --url or set MOORING_URL", 2)
        parts = urlsplit(settings.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise Failed(f"--url: {settings.url} is not https://HOST[:PORT]", 2)
        self._url = settings.url.rstrip("/")
        self._timeout = settings.timeout
        tls: dict[str, Any] = {"ssl_context": _context(settings)} if parts.scheme == "https" else {}
        self._pool = urllib3.PoolManager(retries=False, **tls)

    def request(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request; raises Refused for an answer of 400 and more, Failed for none.

        A DELETE that is sent again and then finds nothing has succeeded the first time.
        """
        sent = {"Accept": "application/json", **(headers or {})}
        body = None
        if document is not None:
            body = json.dumps(document).encode()
            sent["Content-Type"] = "application/json"
        url = self._url + path + (f"?{urlencode(query)}" if query else "")
        deadline = time.monotonic() + self._timeout
        for attempt in range(1, ATTEMPTS + 1):
            again = method in IDEMPOTENT and attempt < ATTEMPTS
            pause = PAUSE * 2**attempt
            try:
                answer = self._send(method, url, body, sent, deadline, attempt)
            except (HTTPError, OSError) as error:
                # A TLS failure is a wrong certificate; it stays wrong.
                if isinstance(error, SSLError) or not again or _left(deadline) <= pause:
                    raise Failed(f"{self._url}: {_reason(error)}", UNREACHABLE) from None
            else:
                if answer.status not in AWAY or not again:
                    break
                pause = _retry_after(answer.headers) or pause
                if _left(deadline) <= pause:
                    break
            time.sleep(pause)
        if answer.status == 404 and method == "DELETE" and attempt > 1:
            return answer
        if answer.status >= 400:
            raise Refused(answer.status, _message(answer))
        return answer

    def _send(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
        attempt: int,
    ) -> Answer:
        left = max(_left(deadline), 0.01)
        response = self._pool.request(
            method,
            url,
            body=body,
            headers=headers,
            redirect=False,
            preload_content=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, left), read=left),
        )
        # The read timeout holds for each piece; a server that sends one byte at a time meets this.
        pieces = []
        try:
            while piece := response.read1(65536):
                pieces.append(piece)
                if _left(deadline) <= 0:
                    raise TimeoutError
            response.release_conn()
        finally:
            response.close()
        return Answer(response.status, response.headers, b"".join(pieces), attempt)


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None


def _context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise Failed(f"--tls-ca: {settings.tls_ca}: {_reason(error)}", 2) from None
    if settings.tls_cert:
        try:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ssl.SSLError) as error:
            files = " and ".join(filter(None, (settings.tls_cert, settings.tls_key)))
            raise Failed(f"--tls-cert, --tls-key: {files}: {_reason(error)}", 2) from None
    elif settings.tls_key:
        raise Failed("--tls-key needs --tls-cert", 2)
    return context


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words."""
    # urllib3 counts a refused connection among the timeouts.
    late = isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
    if late and not isinstance(error, NewConnectionError):
        return "no answer in time"
    inner = error
    while True:
        following = inner.__cause__ or next(
            (item for item in inner.args if isinstance(item, BaseException)), None
        )
        if following is None:
            break
        inner = following
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {inner.verify_message}"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(inner) or type(inner).__name__


def _message(answer: Answer) -> str:
    """The server's error in one line: what, where, and the id to find it in the log by."""
    try:
        error = json.loads(answer.body)["error"]
        text = str(error["message"])
        if error.get("field"):
            text = f"{error['field']}: {text}"
        if answer.status >= 500:
            text = f"{text} (request {error['request_id']})"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status}"
    return printable(text)
