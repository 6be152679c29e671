"""Accounts: made, found, changed, ended; external accounts; another key (RFC 8555 section 7.3)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from services.ca.acme.application import Settings
from services.ca.profiles import NameRules
from tests.services.ca.acme.acme_client import (
    BASE,
    CONTACT,
    Answer,
    Client,
    Key,
    Server,
    assert_problem,
    binding,
    call,
    flattened,
    make_csr,
)

NEW_ACCOUNT = f"{BASE}/new-account"


def test_the_same_key_is_the_same_account(any_server: Server) -> None:
    """A second newAccount finds the first's account with 200, and changes nothing of it."""
    client = any_server.client()
    again = Client(client.app, client.key)
    answer = again.post("/new-account", {"contact": ["mailto:other@example.test"]})
    assert answer.status == 200
    assert answer.header("Location") == client.kid
    assert answer.json["contact"] == CONTACT
    answer = again.post("/new-account", {"onlyReturnExisting": True})
    assert (answer.status, answer.header("Location")) == (200, client.kid)


def test_only_return_existing(server: Server) -> None:
    """Without an account onlyReturnExisting is accountDoesNotExist and makes none (7.3.1)."""
    client = Client(server.workers[0])
    answer = client.register(onlyReturnExisting=True)
    assert_problem(answer, "accountDoesNotExist", 400)
    assert_problem(client.register(onlyReturnExisting=True), "accountDoesNotExist", 400)


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"contact": "mailto:a@b.test"}, "invalidContact"),
        ({"contact": [1]}, "invalidContact"),
        ({"contact": ["tel:+12025551212"]}, "unsupportedContact"),
        ({"contact": ["mailto:a@b.test,c@d.test"]}, "invalidContact"),
        ({"contact": ["mailto:a@b.test?subject=x"]}, "invalidContact"),
        ({"contact": ["mailto:a@b.test\u0000"]}, "invalidContact"),
        ({"contact": ["mailto:a b@b.test"]}, "invalidContact"),
        ({"contact": ["mailto:nobody"]}, "invalidContact"),
        ({"contact": ["mailto:a@b.test"] * 11}, "invalidContact"),
        ({"onlyReturnExisting": "yes"}, "malformed"),
        ({"externalAccountBinding": "x"}, "malformed"),
    ],
)
def test_bad_members(server: Server, members: dict[str, Any], kind: str) -> None:
    """Members that cannot be are named, and no account is made."""
    client = Client(server.workers[0])
    assert_problem(client.register(**members), kind, 400)
    assert_problem(client.register(onlyReturnExisting=True), "accountDoesNotExist", 400)


def test_terms_of_service(server: Server) -> None:
    """Where there are terms, an account needs agreement, and the directory says where they are."""
    app = server.worker(terms_of_service="https://ca.example.test/terms")
    directory = call(app, "GET", "/directory").json
    assert directory["meta"]["termsOfService"] == "https://ca.example.test/terms"
    client = Client(app)
    assert_problem(client.register(), "userActionRequired", 403)
    assert client.register(termsOfServiceAgreed=True).status == 201


def test_contacts_change(client: Client) -> None:
    """An account's contacts can be replaced; what else is in the request is ignored (7.3.2)."""
    url = client.kid or ""
    answer = client.post(url, {"contact": ["mailto:new@example.test"], "orders": "x"})
    assert answer.json["contact"] == ["mailto:new@example.test"]
    assert client.post(url).json["contact"] == ["mailto:new@example.test"]
    assert_problem(client.post(url, {"contact": ["x"]}), "unsupportedContact", 400)
    assert_problem(client.post(url, {"status": "revoked"}), "malformed", 400)
    assert client.post(url).json["status"] == "valid"


def test_deactivation(any_server: Server) -> None:
    """A deactivated account can do nothing any more, and its orders are over (7.3.6)."""
    client = any_server.client()
    url, order = client.ready_order("a.example.test")
    answer = client.post(client.kid or "", {"status": "deactivated"})
    assert (answer.status, answer.json["status"]) == (200, "deactivated")
    for path in (client.kid or "", url, order["finalize"]):
        assert_problem(client.post(path), "unauthorized", 401)
    again = Client(client.app, client.key)
    assert_problem(again.register(), "unauthorized", 401)
    stored = any_server.store.order(url.rpartition("/")[2], any_server.clock())
    assert stored is not None
    assert stored.status == "invalid"


def test_anothers_resources_are_not_there(server: Server, client: Client) -> None:
    """What belongs to another account is 404, as if it were not there; its account is 403."""
    url, order = client.ready_order("a.example.test")
    authorization = order["authorizations"][0]
    challenge = client.post(authorization).json["challenges"][0]["url"]
    certificate = f"{BASE}/certificate/{url.rpartition('/')[2]}"
    other = server.client()
    for each in (url, authorization, challenge, certificate):
        assert_problem(other.post(each), "malformed", 404)
    assert_problem(other.post(authorization, {"status": "deactivated"}), "malformed", 404)
    assert_problem(other.post(challenge, {}), "malformed", 404)
    assert_problem(other.post(order["finalize"], {"csr": "AAAA"}), "malformed", 404)
    assert_problem(other.post(client.kid or ""), "unauthorized", 403)
    assert_problem(other.post(f"{client.kid}/orders"), "unauthorized", 403)
    assert client.post(url).json["status"] == "ready"


def test_too_many_accounts(server: Server) -> None:
    """Beyond the configured number of an hour a new account is rateLimited with Retry-After."""
    app = server.worker(accounts_per_hour=2)
    first = server.client(app)
    server.client(app)
    answer = Client(app).register()
    assert_problem(answer, "rateLimited", 429)
    assert int(answer.header("Retry-After") or "0") > 0
    # who has an account is not concerned
    assert Client(app, first.key).register().status == 200
    server.clock.offset = timedelta(hours=1, seconds=1)
    assert Client(app).register().status == 201


# ---- external accounts --------------------------------------------------------------------------


def bound(client: Client, kid: str, secret: bytes, **header: Any) -> Answer:
    url = header.pop("url", NEW_ACCOUNT)
    return client.register(externalAccountBinding=binding(kid, secret, client.jwk, url, **header))


def test_an_external_account_is_required(any_server: Server) -> None:
    """Without a key from an operator there is no account; with one there is, once."""
    app = any_server.worker(external_account_required=True)
    meta = call(app, "GET", "/directory").json["meta"]
    assert meta["externalAccountRequired"] is True
    assert Settings(BASE).external_account_required
    assert_problem(Client(app).register(), "externalAccountRequired", 403)
    kid, secret = any_server.external()
    assert bound(Client(app), kid, secret).status == 201
    (shown,) = any_server.store.external_keys()
    assert shown.used_at is not None
    assert_problem(bound(Client(app), kid, secret), "unauthorized", 403)


def test_bindings_that_do_not_hold(server: Server) -> None:
    """A binding by another key, for another address or of another account key makes no account."""
    app = server.worker(external_account_required=True)
    kid, secret = server.external()
    client, other = Client(app), Client(app)
    cases: list[tuple[Any, str]] = [
        (binding(kid, b"x" * 32, client.jwk, NEW_ACCOUNT), "unauthorized"),
        (binding("0" * 32, secret, client.jwk, NEW_ACCOUNT), "unauthorized"),
        (binding(kid, secret, other.jwk, NEW_ACCOUNT), "malformed"),
        (binding(kid, secret, client.jwk, f"{BASE}/new-order"), "malformed"),
        (binding(kid, secret, client.jwk, NEW_ACCOUNT, nonce="x"), "malformed"),
        (binding(kid, secret, client.jwk, NEW_ACCOUNT, jwk=client.jwk), "malformed"),
        (binding(kid, secret, client.jwk, NEW_ACCOUNT, alg="HS512"), "badSignatureAlgorithm"),
        (binding(kid, secret, client.jwk, NEW_ACCOUNT, alg="none"), "badSignatureAlgorithm"),
        (binding("", secret, client.jwk, NEW_ACCOUNT), "malformed"),
    ]
    for body, kind in cases:
        assert_problem(client.register(externalAccountBinding=body), kind)
    (shown,) = server.store.external_keys()
    assert shown.used_at is None
    assert bound(client, kid, secret).status == 201


def test_reusable_and_expired_keys(server: Server) -> None:
    """A reusable key makes several accounts, an expired one none."""
    app = server.worker(external_account_required=True)
    kid, secret = server.external(reusable=True)
    assert bound(Client(app), kid, secret).status == 201
    assert bound(Client(app), kid, secret).status == 201
    kid, secret = server.external(expires=datetime.now(UTC) - timedelta(seconds=1))
    assert_problem(bound(Client(app), kid, secret), "unauthorized", 403)


def test_the_key_binds_the_names(server: Server) -> None:
    """An account orders what both its external key and the profile allow, and nothing else."""
    kid, secret = server.external(names=NameRules(dns=("team.example.test",)))
    client = Client(server.workers[0])
    assert bound(client, kid, secret).status == 201
    assert client.order("a.team.example.test", "team.example.test").status == 201
    answer = client.order("a.team.example.test", "xteam.example.test", "*.team.example.test")
    document = assert_problem(answer, "rejectedIdentifier", 400)
    assert [each["identifier"] for each in document["subproblems"]] == [
        {"type": "dns", "value": "xteam.example.test"},
        {"type": "dns", "value": "*.team.example.test"},
    ]
    assert_problem(client.order("192.0.2.1", kind="ip"), "rejectedIdentifier", 400)


def test_a_key_that_is_taken_back(server: Server) -> None:
    """Deleting an external key ends what its accounts may do, also for an order that is ready."""
    kid, secret = server.external()
    client = Client(server.workers[0])
    assert bound(client, kid, secret).status == 201
    _, order = client.ready_order("a.example.test")
    assert server.store.delete_external_key(kid)
    assert_problem(client.order("b.example.test"), "unauthorized", 403)
    assert_problem(client.finalize(order, make_csr("a.example.test")), "unauthorized", 403)


def test_a_profile_that_is_not_for_acme(server: Server) -> None:
    """A key that names a profile which is not given over ACME lets nobody order."""
    kid, secret = server.external(profile="client")
    client = Client(server.workers[0])
    assert bound(client, kid, secret).status == 201
    assert_problem(client.order("a.example.test"), "unauthorized", 403)


# ---- key change ---------------------------------------------------------------------------------


def change(
    client: Client, new: Key, payload: dict[str, Any] | None = None, **header: Any
) -> Answer:
    fresh = Client(client.app, new)
    url = f"{BASE}/key-change"
    head = {**fresh.header(url, nonce=None), **header}
    body = {"account": client.kid, "oldKey": client.jwk} | (payload or {})
    inner = flattened(new, {k: v for k, v in head.items() if v}, json.dumps(body).encode())
    return client.post(url, inner)


@pytest.mark.parametrize(
    "new", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_key_change(any_server: Server, new: Key) -> None:
    """After a key change the new key is the account's and the old one is nobody's (7.3.5)."""
    client = any_server.client()
    old = client.key
    assert change(client, new).status == 200
    assert_problem(client.post(client.kid or ""), "badSignatureAlgorithm", 400)
    client.key = new
    assert client.issue("a.example.test")
    found = Client(client.app, new)
    assert found.register().status == 200
    assert found.kid == client.kid
    assert_problem(
        Client(client.app, old).register(onlyReturnExisting=True), "accountDoesNotExist", 400
    )


def test_key_changes_that_do_not_hold(server: Server, client: Client) -> None:
    """Another account, another old key, a nonce, another address, a key in use: refused."""
    new = ec.generate_private_key(ec.SECP256R1())
    other = server.client()
    assert_problem(change(client, new, {"account": other.kid}), "malformed", 400)
    assert_problem(change(client, new, {"oldKey": other.jwk}), "malformed", 400)
    assert_problem(change(client, new, {"oldKey": None}), "malformed", 400)
    assert_problem(change(client, new, nonce=client.nonce()), "malformed", 400)
    assert_problem(change(client, new, url=f"{BASE}/new-order"), "malformed", 400)
    assert_problem(change(client, new, jwk=other.jwk), "malformed", 400)
    assert_problem(change(client, new, kid=client.kid, jwk=None), "malformed", 400)
    assert_problem(client.post("/key-change", {"x": 1}), "malformed", 400)
    answer = change(client, other.key)
    assert_problem(answer, "malformed", 409)
    assert answer.header("Location") == other.kid
    assert client.post(client.kid or "").status == 200
