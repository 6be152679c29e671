"""The one way a refusal reaches a client: `Failure`, and its two renderings.

JSON is for operators and agents, text for instances (in the layout of Nova's metadata service, so
that clients written against it see nothing new).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

# Python 3.13 renamed these phrases (RFC 9110); fixed here so that error codes do not depend on the
# interpreter.
_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}


class Failure(Exception):
    """A refusal that reaches the client with its HTTP status (4xx: the client's fault, 5xx: ours).

    `code` is a slug for programs and defaults to the reason phrase ("not-found"); `field` is a JSON
    pointer to the offending value. Raises ValueError for a status that is no error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(status, message)
        if not 400 <= status <= 599:
            raise ValueError(f"{status} is not the status of an error")
        self.status = status
        self.reason = _PHRASES.get(status) or HTTPStatus(status).phrase
        self.message = message
        self.code = code or self.reason.lower().replace("'", "").replace(" ", "-")
        self.field = field
        self.headers = tuple(headers)

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}"


def json_body(failure: Failure, request_id: str) -> bytes:
    """The JSON error: `{"error": {"status", "code", "message", "field" if any, "request_id"}}`."""
    error: dict[str, object] = {
        "status": failure.status,
        "code": failure.code,
        "message": failure.message,
    }
    if failure.field is not None:
        error["field"] = failure.field
    error["request_id"] = request_id
    return json.dumps({"error": error}).encode("ascii")


def text_body(failure: Failure) -> bytes:
    """The text error, never empty, laid out as WebOb's plain text and so as Nova's answers."""
    text = f"{failure.status} {failure.reason}\n\n{failure.message}\n\n   "
    return text.encode("utf-8", "replace")
