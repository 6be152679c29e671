"""Operators' side of external accounts: `/v1/acme/keys`."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from services.ca.acme.jws import decode, encode
from services.ca.acme.keys import key_routes
from services.ca.acme.store import new_external_key
from services.ca.authority import Actor
from services.core.edge import Request, Router
from services.core.errors import Failure
from services.core.policy import RULES
from tests.services.ca.acme.acme_client import (
    BASE,
    Answer,
    Client,
    Server,
    assert_problem,
    binding,
    call,
)

ALICE = Actor(
    "alice", frozenset({"mooring:operators"}), "192.0.2.9", "req-1", "certificate", "client"
)


class Door:
    """Lets in whom a test says, and notes which rule was asked."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.closed = False

    def __call__(self, request: Request, rule: str) -> Actor:
        self.rules.append(rule)
        if self.closed:
            raise Failure(403, "not you")
        return ALICE


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def api(server: Server, door: Door) -> Router:
    """The routes as an application."""
    return Router(key_routes(server.store, server.ledger, ["server"], door, server.clock))


def post(api: Router, body: Any) -> Answer:
    data = json.dumps(body).encode()
    return call(api, "POST", "/v1/acme/keys", data, content_type="application/json")


def test_no_key_looks_like_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose text begins with a hyphen is thrown away: command lines take it for an option."""
    drawn = iter([b"\xf8" + bytes(31), b"\xfb" + bytes(31), b"\xfc" + bytes(31)])
    monkeypatch.setattr(secrets, "token_bytes", lambda _length: next(drawn))
    assert encode(bytes([0xF8])).startswith("-")
    assert encode(new_external_key()).startswith("_")


def test_a_key_from_making_to_withdrawing(server: Server, api: Router, door: Door) -> None:
    """A key is made, shown once, listed without its secret, used by a client, withdrawn."""
    answer = post(api, {"dns": ["team.example.test"], "wildcards": True, "profile": "server"})
    assert answer.status == 201
    made = answer.json
    assert answer.header("Location") == f"/v1/acme/keys/{made['id']}"
    assert answer.header("Cache-Control") == "no-store"
    secret = decode(made.pop("key"), "key", 64)
    assert len(secret) == 32
    assert made["created_by"] == "client:alice"
    assert made["used_at"] is None
    assert call(api, "GET", "/v1/acme/keys").json == {"keys": [made]}

    client = Client(server.workers[0])
    body = binding(made["id"], secret, client.jwk, f"{BASE}/new-account")
    assert client.register(externalAccountBinding=body).status == 201
    assert client.order("*.team.example.test").status == 201
    assert_problem(client.order("b.example.test"), "rejectedIdentifier", 400)
    (listed,) = call(api, "GET", "/v1/acme/keys").json["keys"]
    assert listed["used_at"] is not None

    assert call(api, "DELETE", f"/v1/acme/keys/{made['id']}").status == 204
    with pytest.raises(Failure, match="404"):
        call(api, "DELETE", f"/v1/acme/keys/{made['id']}")
    assert_problem(client.order("a.team.example.test"), "unauthorized", 403)
    assert set(door.rules) == {"acme-key:create", "acme-key:list", "acme-key:delete"}
    assert set(door.rules) <= set(RULES)

    trail = [row.entry for row in server.ledger.trail(limit=10)]
    assert {(each.action, each.actor) for each in trail} == {
        ("acme-key-create", "client:alice"),
        ("acme-key-delete", "client:alice"),
    }
    assert server.ledger.verify_audit().whole
    assert all(encode(secret) not in each.detail for each in trail)


def test_who_may_not(server: Server, api: Router, door: Door) -> None:
    """Whom the policy does not let in makes, sees and withdraws nothing."""
    door.closed = True
    for method, path in (
        ("POST", "/v1/acme/keys"),
        ("GET", "/v1/acme/keys"),
        ("DELETE", "/v1/acme/keys/x"),
    ):
        with pytest.raises(Failure, match="403"):
            call(api, method, path, b"{}", content_type="application/json")
    assert server.store.external_keys() == []
    assert server.ledger.trail(limit=10) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"dnss": []}, "/dnss"),
        ({"profile": 1}, "/profile"),
        ({"profile": "client"}, "/profile"),
        ({"dns": "example.test"}, "/dns"),
        ({"dns": [1]}, "/dns"),
        ({"dns": ["a_b.test"]}, "/dns/0"),
        ({"dns": ["example.test", "*.example.test"]}, "/dns/1"),
        ({"dns": ["example.test"] * 101}, "/dns"),
        ({"wildcards": "yes"}, "/wildcards"),
        ({"wildcards": True}, "/wildcards"),
        ({"networks": ["10.0.0.1/8"]}, "/networks/0"),
        ({"networks": ["x"]}, "/networks/0"),
        ({"reusable": 1}, "/reusable"),
        ({"expires": "tomorrow"}, "/expires"),
        ({"expires": "2030-01-01T00:00:00"}, "/expires"),
        ({"expires": 1}, "/expires"),
    ],
)
def test_rules_that_cannot_be(
    server: Server, api: Router, body: dict[str, Any], field: str
) -> None:
    """A rule that cannot be is a 400 that points at it, and no key is made."""
    with pytest.raises(Failure) as failure:
        post(api, body)
    assert (failure.value.status, failure.value.field) == (400, field)
    assert server.store.external_keys() == []


def test_rules_survive_their_document(server: Server, api: Router) -> None:
    """What was asked for is what is listed: every rule."""
    body = {
        "profile": "server",
        "dns": ["example.test", "."],
        "wildcards": True,
        "networks": ["192.0.2.0/24", "2001:db8::/32"],
        "reusable": True,
        "expires": "2030-01-01T00:00:00+00:00",
    }
    assert post(api, body).status == 201
    (listed,) = call(api, "GET", "/v1/acme/keys").json["keys"]
    assert {name: listed[name] for name in body} == body
