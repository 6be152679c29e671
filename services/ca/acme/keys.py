"""Operators' side of external accounts: `/v1/acme/keys` of the certificate service's API.

An operator makes a key, says which names its accounts may order, and hands its id and secret to
whoever runs an ACME client (`certbot --eab-kid ... --eab-hmac-key ...`). The secret is shown once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import webob

from services.ca.acme import jws
from services.ca.acme.rules import parse_rules
from services.ca.acme.store import ExternalKey, Store, text
from services.ca.refusal import Refused
from services.core.edge import Handler, Request, Router, json_response
from services.core.errors import Failure
from services.core.identity import ClientIdentity
from services.core.policy import enforce

# A hundred names and networks of the longest kind are some 30 kB.
BODY_LIMIT: Final = 64 * 1024

_NO_STORE: Final = ("Cache-Control", "no-store")


class Note(Protocol):
    """Writes into the audit trail what a client did."""

    def __call__(
        self, request: Request, client: ClientIdentity, action: str, detail: Mapping[str, Any]
    ) -> None: ...  # pragma: no cover


def key_routes(
    store: Store,
    profiles: Iterable[str],
    note: Note,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[tuple[str, str, str, Handler]]:
    """The routes, for the API's Router; `profiles` are the names of those given over ACME."""
    known = frozenset(profiles)

    def create(request: Request, _match: Mapping[str, str]) -> webob.Response:
        client = enforce("acme-key:create", request.client)
        try:
            rules = parse_rules(request.json_object(BODY_LIMIT))
        except Refused as refused:
            raise Failure(400, refused.reason, field=refused.field) from None
        if rules.profile is not None and rules.profile not in known:
            raise Failure(400, "is not given over ACME", field="/profile")
        made, secret = store.create_external_key(rules, created_by=client.user, now=clock())
        note(request, client, "acme-key-create", {"key_id": made.id, **rules.document()})
        document = {**shown(made), "key": jws.encode(secret)}
        location = f"{request.script_name}/v1/acme/keys/{made.id}"
        return json_response(document, 201, [("Location", location), _NO_STORE])

    def index(request: Request, _match: Mapping[str, str]) -> webob.Response:
        enforce("acme-key:list", request.client)
        return json_response({"keys": [shown(each) for each in store.external_keys()]})

    def delete(request: Request, match: Mapping[str, str]) -> webob.Response:
        client = enforce("acme-key:delete", request.client)
        if not store.delete_external_key(match["id"]):
            raise Failure(404, "there is no such key")
        note(request, client, "acme-key-delete", {"key_id": match["id"]})
        return webob.Response(status=204, headerlist=[])

    return [
        ("POST", "/v1/acme/keys", "acme-key:create", create),
        ("GET", "/v1/acme/keys", "acme-key:list", index),
        ("DELETE", "/v1/acme/keys/{id}", "acme-key:delete", delete),
    ]


def key_application(store: Store, profiles: Iterable[str], note: Note) -> Router:
    """The same routes as an application of their own."""
    return Router(key_routes(store, profiles, note))


def shown(key: ExternalKey) -> dict[str, Any]:
    """A key as the API shows it, without its secret."""
    return {
        "id": key.id,
        **key.rules.document(),
        "created_at": text(key.created_at),
        "created_by": key.created_by,
        "used_at": None if key.used_at is None else text(key.used_at),
    }
