"""What the certificate API reads and writes: media types, bodies, queries, documents."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.types import StartResponse, WSGIEnvironment

from services.ca.ledger import Record, Token, moment, timestamp
from services.ca.refusal import Refused
from services.ca.request import CSR_BYTES
from services.ca.states import EXPIRED, HELD, ISSUED
from services.core.edge import parse_object
from services.core.errors import Failure

JSON = "application/json"
PEM = "application/x-pem-file"
PEM_CHAIN = "application/pem-certificate-chain"
DER = "application/pkix-cert"
CSR = "application/pkcs10"

BODY_LIMIT = 32 * 1024
"""Bytes of a request's body: a CSR of 16 KiB as text in JSON, or a token's 100 names of 253."""

QUERY_LIMIT = 16
"""Parameters of one query; no route knows more than eight."""

PAGE_DEFAULT = 100
PAGE_LIMIT = 1000
"""Rows of one answer: a thousand of some 600 bytes keep a worker busy for well under a second."""

_LIMIT = re.compile(r"[0-9]{1,4}")
_LENGTH = re.compile(r"[0-9]{1,10}")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")


class Answer:
    """A response: status, headers and body, sent without any further object between."""

    def __init__(
        self,
        body: bytes = b"",
        status: str = "200 OK",
        media_type: str | None = JSON,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.body = body
        self.status = status
        self.headers = [
            *([("Content-Type", media_type)] if media_type else []),
            ("Content-Length", str(len(body))),
            *headers,
        ]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send it."""
        start_response(self.status, self.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]


def json_answer(
    value: Any, status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()
) -> Answer:
    """An answer in JSON."""
    return Answer(json.dumps(value).encode(), status, JSON, headers)


def media_type(environ: WSGIEnvironment) -> str:
    """The body's media type, without parameters, in lower case."""
    return str(environ.get("CONTENT_TYPE") or "").partition(";")[0].strip().lower()


def read_body(environ: WSGIEnvironment, limit: int = BODY_LIMIT) -> bytes:
    """The whole body; Failure 413 if it is longer, 400 if it ends early, 415 if it is coded."""
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise Failure(415, "the body must come without Content-Encoding")
    length = environ.get("CONTENT_LENGTH") or None
    if length is not None and (not _LENGTH.fullmatch(length) or int(length) > limit):
        raise Failure(413, f"the body may have at most {limit} bytes")
    try:
        body: bytes = environ["wsgi.input"].read(limit + 1 if length is None else int(length))
    except OSError:
        raise Failure(400, "the body ended early", field="") from None
    if len(body) > limit:
        raise Failure(413, f"the body may have at most {limit} bytes")
    if length is not None and len(body) < int(length):
        raise Failure(400, "the body ended early", field="")
    return body


def read_object(environ: WSGIEnvironment, known: Sequence[str]) -> dict[str, Any]:
    """The body as a JSON object with known members; Failure 400, 413 or 415."""
    if media_type(environ) != JSON:
        raise Failure(415, f"Content-Type must be {JSON}")
    value = parse_object(read_body(environ))
    for name in value:
        if name not in known:
            raise Failure(400, "is no member that is known here", field=f"/{name[:64]}")
    return value


def csr_bytes(value: object) -> bytes:
    """A CSR in JSON: PEM, or DER in base64. Raises Refused."""
    if value is None:
        raise Refused("/csr", "is needed")
    if not isinstance(value, str) or not value.isascii():
        raise Refused("/csr", "is neither PEM nor base64")
    if len(value) > 2 * CSR_BYTES:
        raise Refused("/csr", f"larger than {CSR_BYTES} octets")
    if value.lstrip().startswith("-----"):
        return value.encode()
    if not _BASE64.fullmatch(value):
        raise Refused("/csr", "is neither PEM nor base64")
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except binascii.Error:
        raise Refused("/csr", "is neither PEM nor base64") from None


def query(environ: WSGIEnvironment, *known: str) -> dict[str, str]:
    """The query's parameters; Failure 400 for one that is unknown, empty or stands twice."""
    text = environ.get("QUERY_STRING", "")
    if not text:
        return {}
    try:
        pairs = _pairs(text)
    except ValueError:
        raise Failure(400, "the query is not UTF-8, or too long", field="") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise Failure(400, "is no parameter of this route", field=name[:64])
        if name in values:
            raise Failure(400, "stands twice in the query", field=name)
        if not 1 <= len(value) <= 512 or not value.isprintable():
            raise Failure(400, "must have 1 to 512 printable characters", field=name)
        values[name] = value
    return values


@lru_cache(256)  # at most 4 KB each, gunicorn's limit of a request's first line
def _pairs(text: str) -> list[tuple[str, str]]:
    text = text.encode("latin-1").decode("utf-8")
    return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_LIMIT)


def page_limit(values: Mapping[str, str]) -> int:
    """The parameter `limit`."""
    text = values.get("limit", str(PAGE_DEFAULT))
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= PAGE_LIMIT:
        raise Failure(400, f"must be 1 to {PAGE_LIMIT}", field="limit")
    return int(text)


def flag(values: Mapping[str, str], name: str) -> bool:
    """A parameter that is true or false."""
    text = values.get(name, "false")
    if text not in ("true", "false"):
        raise Failure(400, "must be true or false", field=name)
    return text == "true"


def chosen(environ: WSGIEnvironment, offered: Sequence[str]) -> str:
    """The media type of the answer by the client's Accept (RFC 9110 section 12.5.1).

    The first that is offered where the client does not mind; Failure 406 if it wants none.
    """
    accept = str(environ.get("HTTP_ACCEPT", ""))
    if not accept or accept == "*/*":
        return offered[0]
    if accept in offered:
        return accept
    wanted = [_range(each) for each in accept.split(",")[:32]]
    best, best_quality = None, 0.0
    for each in offered:
        kind = each.partition("/")[0] + "/*"
        # the most specific range decides: the type itself, its kind, anything
        qualities = [
            quality for which in (each, kind, "*/*") for name, quality in wanted if name == which
        ]
        if qualities and qualities[0] > best_quality:
            best, best_quality = each, qualities[0]
    if best is None:
        raise Failure(406, f"the answer can be {', '.join(offered)}")
    return best


def _range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                return name, 0.0
    return name, 1.0


def parse_time(text: str, field: str) -> str:
    """A moment as the ledger has it, from ISO 8601; one without a zone is in UTC."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(400, "is no time such as 2026-12-31T00:00:00Z", field=field) from None
    try:
        return timestamp(value if value.tzinfo else value.replace(tzinfo=UTC))
    except OverflowError:
        raise Failure(400, "is out of range", field=field) from None


def shown_state(record: Record, now: datetime) -> str:
    """The state as answers have it: "expired" for what is merely at its end."""
    if record.state in (ISSUED, HELD) and moment(record.not_after) < now:
        return EXPIRED
    return record.state


def certificate_document(record: Record, now: datetime) -> dict[str, Any]:
    """A certificate in a list; `names` by kind."""
    return {
        "serial": record.serial,
        "authority": record.authority_id,
        "profile": record.profile,
        "state": shown_state(record, now),
        "subject": record.subject,
        "common_name": record.common_name or None,
        "names": {kind: list(record.values(kind)) for kind in ("dns", "ip", "uri")},
        "key_id": record.key_id,
        "fingerprint": record.fingerprint,
        "not_before": _short(record.not_before),
        "not_after": _short(record.not_after),
        "created_at": record.created_at,
        "requested_by": record.requested_by,
        "revoked_at": record.revoked_at,
        "reason": record.reason,
    }


def _short(text: str) -> str:
    """A certificate's own times, which have no fractions of a second."""
    return text.replace(".000000Z", "Z")


def token_document(token: Token, now: datetime) -> dict[str, Any]:
    """A token in a list; never its secret, of which nobody has more than a digest."""
    state = "used" if token.used_at else "expired" if moment(token.expires_at) <= now else "valid"
    return {
        "id": token.id,
        "state": state,
        **token.request,
        "created_at": token.created_at,
        "created_by": token.created_by,
        "expires_at": token.expires_at,
        "used_at": token.used_at,
        "used_for": token.used_for,
    }
