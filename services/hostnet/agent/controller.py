"""The controllers' API, seen with the host's certificate: who we are, what is to be, what is."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import urllib3

from services.hostnet.view import View

WATCH_SECONDS = 50
"""How long a controller may let us wait for a change: its own limit."""

SHORT = urllib3.Timeout(connect=3.0, read=15.0)
LONG = urllib3.Timeout(connect=3.0, read=WATCH_SECONDS + 15.0)
"""A frozen controller goes on acknowledging TCP, so the deadlines are ours."""


class ControllerError(Exception):
    """No controller answered, or not as it should."""


class ReadAnew(ControllerError):
    """The token is not known any more: the whole view is to be read."""


class Controller:
    """Several addresses of the network service, used in turn: the next one when one fails."""

    def __init__(self, urls: Sequence[str], host: str, ca_file: str, cert_file: str) -> None:
        """Raises OSError or ssl.SSLError for files that are no certificates."""
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(cert_file)
        self._urls = list(urls)
        self._host = host
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False)

    def register(self, document: Mapping[str, Any]) -> None:
        """Say where this host is; raises ControllerError."""
        self._ask("PUT", "", document)

    def state(self) -> tuple[str, View]:
        """Token and the whole view; raises ControllerError."""
        answer = self._ask("GET", "/state")
        try:
            return str(answer["token"]), View.from_json(answer["objects"])
        except (KeyError, TypeError, ValueError) as error:
            raise ControllerError(f"a view that is none: {error}") from None

    def watch(self, token: str, wait: int = WATCH_SECONDS) -> tuple[str, list[dict[str, Any]]]:
        """The next token and what changed since this one; raises ReadAnew or ControllerError."""
        query = urlencode({"since": token, "wait": wait})
        answer = self._ask("GET", f"/watch?{query}", timeout=LONG)
        try:
            return str(answer["token"]), list(answer["changes"])
        except (KeyError, TypeError) as error:
            raise ControllerError(f"an answer without {error}") from None

    def report(self, document: Mapping[str, Any]) -> None:
        """Say how far this host is; raises ControllerError."""
        self._ask("PUT", "/report", document)

    def _ask(
        self,
        method: str,
        path: str,
        document: Mapping[str, Any] | None = None,
        timeout: urllib3.Timeout = SHORT,
    ) -> dict[str, Any]:
        body = None if document is None else json.dumps(document).encode()
        headers = {"Accept-Encoding": "gzip"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        said: list[str] = []
        for _ in range(len(self._urls)):
            url = self._urls[0]
            try:
                answer = self._pool.request(
                    method, f"{url}/v1/hosts/{self._host}{path}", body=body, headers=headers,
                    timeout=timeout, redirect=False,
                )  # fmt: skip
            except (urllib3.exceptions.HTTPError, OSError) as error:
                said.append(f"{url}: {type(error).__name__}")
            else:
                if answer.status == 410:
                    raise ReadAnew("the token is not known any more")
                if answer.status < 300:
                    return _object(url, answer.data)
                said.append(f"{url}: status {answer.status}")
                if answer.status < 500:
                    break  # another controller would say the same
            self._urls.append(self._urls.pop(0))
        raise ControllerError("; ".join(said))


def _object(url: str, data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ControllerError(f"{url}: an answer that is no JSON object")
    return value
