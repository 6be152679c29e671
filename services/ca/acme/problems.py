"""How the ACME service says no: a problem document (RFC 7807) of a type of RFC 8555 section 6.7."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

NAMESPACE: Final = "urn:ietf:params:acme:error:"
MEDIA_TYPE: Final = "application/problem+json"

# Type -> HTTP status. The RFC fixes some (badNonce 400, externalAccountRequired 403, orderNotReady
# 403, rateLimited 429); the others follow boulder's, which clients are tried against.
TYPES: Final[Mapping[str, int]] = {
    "accountDoesNotExist": 400,
    "alreadyRevoked": 400,
    "badCSR": 400,
    "badNonce": 400,
    "badPublicKey": 400,
    "badRevocationReason": 400,
    "badSignatureAlgorithm": 400,
    "compound": 400,
    "connection": 400,
    "dns": 400,
    "externalAccountRequired": 403,
    "incorrectResponse": 403,
    "invalidContact": 400,
    "malformed": 400,
    "orderNotReady": 403,
    "rateLimited": 429,
    "rejectedIdentifier": 400,
    "serverInternal": 500,
    "tls": 400,
    "unauthorized": 403,
    "unsupportedContact": 400,
    "unsupportedIdentifier": 400,
    "userActionRequired": 403,
}


class Problem(Exception):
    """A refusal as the client sees it.

    `kind` is a key of TYPES and gives the status unless one is named. `identifier` is set on
    subproblems, `members` are further members of the document, `headers` of the answer.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        status: int | None = None,
        identifier: Mapping[str, str] | None = None,
        subproblems: Sequence[Problem] = (),
        members: Mapping[str, Any] | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.status = status or TYPES[kind]
        self.identifier = identifier
        self.subproblems = tuple(subproblems)
        self.members = dict(members or {})
        self.headers = tuple(headers)

    def document(self) -> dict[str, Any]:
        """The problem as JSON shows it."""
        document: dict[str, Any] = {
            "type": NAMESPACE + self.kind,
            "detail": self.detail,
            "status": self.status,
            **self.members,
        }
        if self.identifier is not None:
            document["identifier"] = dict(self.identifier)
            # RFC 8555 section 6.7.1: a subproblem has no status of its own to answer with
            del document["status"]
        if self.subproblems:
            document["subproblems"] = [each.document() for each in self.subproblems]
        return document

    def body(self) -> bytes:
        """The document in bytes."""
        return json.dumps(self.document()).encode()
