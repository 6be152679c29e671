"""Operators' side of external accounts: `/v1/acme/keys` of the certificate service's API.

An operator makes a key, says which names its accounts may order, and hands its id and secret to
whoever runs an ACME client (`certbot --eab-kid ... --eab-hmac-key ...`). The secret is shown once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from services.ca.acme import jws
from services.ca.acme.rules import parse_rules
from services.ca.acme.store import ExternalKey, Store, Within, new_id, text
from services.ca.authority import Actor, entry
from services.ca.ledger import Ledger
from services.ca.refusal import Refused
from services.ca.wire import Answer, json_answer
from services.core.database import Writer
from services.core.edge import Handler, Request
from services.core.errors import Failure

# A hundred names and networks of the longest kind are some 30 kB.
BODY_LIMIT: Final = 64 * 1024

PATH: Final = "/v1/acme/keys"

_NO_STORE: Final = ("Cache-Control", "no-store")


Authorise = Callable[[Request, str], Actor]
"""Given a request and the name of a policy rule: who asks, if the rule lets it; raises Failure."""


def key_routes(
    store: Store,
    ledger: Ledger,
    profiles: Iterable[str],
    authorise: Authorise,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[tuple[str, str, str, Handler]]:
    """The routes, for the API's Router; `profiles` are the names of those given over ACME.

    What was made or withdrawn is in the audit trail by the same transaction.
    """
    known = frozenset(profiles)

    def noted(actor: Actor, action: str, key_id: str, more: Mapping[str, Any]) -> Within:
        detail = {"key_id": key_id, "rules": json.dumps(dict(more)), "via": actor.via}

        def within(writer: Writer) -> None:
            ledger.append(writer.connection, [entry(actor, action, "done", detail, clock())])

        return within

    def create(request: Request, _match: Mapping[str, str]) -> Answer:
        actor = authorise(request, "acme-key:create")
        try:
            rules = parse_rules(request.json_object(BODY_LIMIT))
        except Refused as refused:
            raise Failure(400, refused.reason, field=refused.field) from None
        if rules.profile is not None and rules.profile not in known:
            raise Failure(400, "is not given over ACME", field="/profile")
        key_id = new_id()
        made, secret = store.create_external_key(
            rules,
            key_id=key_id,
            created_by=actor.label,
            now=clock(),
            within=noted(actor, "acme-key-create", key_id, rules.document()),
        )
        document = {**shown(made), "key": jws.encode(secret)}
        headers = [("Location", f"{PATH}/{key_id}"), _NO_STORE]
        return json_answer(document, "201 Created", headers)

    def index(request: Request, _match: Mapping[str, str]) -> Answer:
        authorise(request, "acme-key:list")
        return json_answer({"keys": [shown(each) for each in store.external_keys()]})

    def delete(request: Request, match: Mapping[str, str]) -> Answer:
        actor = authorise(request, "acme-key:delete")
        within = noted(actor, "acme-key-delete", match["id"], {})
        if not store.delete_external_key(match["id"], within=within):
            raise Failure(404, "there is no such key")
        return Answer(status="204 No Content", media_type=None)

    return [
        ("POST", PATH, "acme-key:create", create),
        ("GET", PATH, "acme-key:list", index),
        ("DELETE", PATH + "/{id}", "acme-key:delete", delete),
    ]


def shown(key: ExternalKey) -> dict[str, Any]:
    """A key as the API shows it, without its secret."""
    return {
        "id": key.id,
        **key.rules.document(),
        "created_at": text(key.created_at),
        "created_by": key.created_by,
        "used_at": None if key.used_at is None else text(key.used_at),
    }
