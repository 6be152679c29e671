"""The authority: who may have what, and that nobody holds what the ledger does not."""

import hashlib
import json
import multiprocessing
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca import authority as authority_module
from services.ca.authority import (
    TOKEN_PREFIX,
    Actor,
    Authority,
    Forbidden,
    Issued,
    Missing,
    NotPossible,
    SigningFailed,
)
from services.ca.hierarchy import Hierarchy
from services.ca.keys import generate_key
from services.ca.ledger import Ledger, Search, serial_text
from services.ca.profile_file import SHIPPED, parse
from services.ca.refusal import Refused
from services.ca.request import make_request
from services.ca.states import HELD, ISSUED, PENDING, REVOKED, UNKNOWN
from services.ca.template import Unsigned
from services.core.database import Unavailable
from services.core.identity import ADMINS, HOSTS, OPERATORS

FORK = multiprocessing.get_context("fork")
KEY = generate_key().public_key()
HOUR = timedelta(hours=1)


def actor(name: str, *groups: str, profile: str = "client", via: str = "certificate") -> Actor:
    return Actor(name, frozenset(groups), "192.0.2.1", "req-1", via, profile)


ADMIN = actor("ann", ADMINS)
OPERATOR = actor("alice", OPERATORS)
NODE = actor("node-1.example.com", HOSTS, profile="host")
STRANGER = actor("stan", "some:group")
COMMAND = actor("command:root", profile="", via="command")


def client(name: str = "bob", *groups: str) -> Any:
    return make_request(KEY, common_name=name, organizations=groups)


def host(name: str = "node-1.example.com") -> Any:
    return make_request(KEY, common_name=name)


def server(*names: str) -> Any:
    return make_request(KEY, dns_names=names)


def rows(ledger: Ledger, state: str | None = None) -> list[str]:
    return [
        each.serial
        for each in ledger.search(Search(state=state), now=datetime.now(UTC), limit=1000)
    ]


def trail(ledger: Ledger) -> list[tuple[str, str, str]]:
    """Actor, action and decision, the oldest first."""
    found = ledger.trail(limit=1000)[::-1]
    return [(row.entry.actor, row.entry.action, row.entry.decision) for row in found]


def assert_nothing_given(authority: Authority) -> None:
    """No certificate is in the ledger whole, and the trail is."""
    assert rows(authority.ledger) == []
    assert authority.ledger.verify_audit().whole


def test_what_is_issued_is_in_the_ledger(authority: Authority, hierarchy: Hierarchy) -> None:
    """Record, bytes, names and both entries of the trail are there when the call returns."""
    issued = authority.issue("server", server("a.example.com", "b.example.com"), OPERATOR)
    issued.certificate.verify_directly_issued_by(hierarchy.intermediate.certificate)
    assert issued.pem_chain().count(b"BEGIN CERTIFICATE") == 2
    der = issued.certificate.public_bytes(Encoding.DER)
    text = serial_text(issued.serial)
    ledger = authority.ledger
    assert ledger.der(issued.authority_id, text) == der
    assert ledger.by_fingerprint(hashlib.sha256(der).hexdigest()) == issued.record
    assert ledger.by_serial(text) == issued.record
    record = issued.record
    assert (record.state, record.profile, record.requested_by) == (ISSUED, "server", "client:alice")
    assert record.values("dns") == ("a.example.com", "b.example.com")
    assert record.not_after == f"{issued.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%S.%fZ}"
    assert trail(ledger) == [("client:alice", "issue", "intent"), ("client:alice", "issue", "done")]
    done, intent = ledger.trail(limit=2)
    assert json.loads(intent.entry.detail)["names"] == ["dns:a.example.com", "dns:b.example.com"]
    assert json.loads(done.entry.detail)["serial"] == json.loads(intent.entry.detail)["serial"]
    assert (done.entry.address, done.entry.request_id) == ("192.0.2.1", "req-1")
    assert ledger.verify_audit().whole


def test_what_is_recorded_is_what_is_signed(authority: Authority) -> None:
    """The digest that was stored first is that of the certificate's own bytes."""
    digests: list[str] = []
    reserve = authority.ledger.reserve

    def spy(connection: Any, reservations: Any) -> None:
        digests.extend(each.tbs_digest for each in reservations)
        reserve(connection, reservations)

    authority.ledger.reserve = spy  # type: ignore[method-assign]  # looks on
    issued = authority.issue("client", client(), ADMIN)
    assert digests == [hashlib.sha256(issued.certificate.tbs_certificate_bytes).hexdigest()]


# ---- the order of things ---------------------------------------------------------------------


class Died(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def die(*_arguments: Any, **_named: Any) -> None:
    raise Died


STEPS: dict[str, tuple[Callable[[Authority, pytest.MonkeyPatch], Any], int, list[str]]] = {
    "before the reservation": (lambda a, m: m.setattr(a.ledger, "reserve", die), 0, []),
    "within the first transaction": (lambda a, m: m.setattr(a.ledger, "append", die), 0, []),
    "between the reservation and the signature": (
        lambda a, m: m.setattr(authority_module, "assemble", die),
        1,
        ["intent"],
    ),
    "between the signature and the store": (
        lambda a, m: m.setattr(a.ledger, "complete", die),
        1,
        ["intent"],
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_any_step_gives_nothing_out(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A pending row at most is left, whose serial is never used again; nothing is returned."""
    patch, pending, decisions = STEPS[step]
    authority.register()
    patch(authority, monkeypatch)
    with pytest.raises(Died):
        authority.issue("client", client(), ADMIN)
    monkeypatch.undo()
    assert_nothing_given(authority)
    assert len(rows(authority.ledger, PENDING)) == pending
    assert [decision for _, _, decision in trail(authority.ledger)] == decisions
    issued = authority.issue("client", client(), ADMIN)
    assert rows(authority.ledger) == [serial_text(issued.serial)]
    assert len(rows(authority.ledger, PENDING)) == pending


def test_a_lost_second_transaction_gives_nothing_out(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away after the signature: Unavailable, the row stays pending."""
    complete, hit = authority.ledger.complete, []

    def away(*arguments: Any) -> bool:
        complete(*arguments)
        hit.append(True)
        raise Unavailable("gone")

    monkeypatch.setattr(authority.ledger, "complete", away)
    with pytest.raises(Unavailable):
        authority.issue("client", client(), ADMIN)
    assert hit == [True]
    assert_nothing_given(authority)
    assert len(rows(authority.ledger, PENDING)) == 1


def test_a_key_that_fails_or_lies_gives_nothing_out(
    make_authority: Callable[..., Authority], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigningFailed, and the trail says so."""
    authority = make_authority(database_url)
    signer = authority.authorities.active.signer

    def broken(_data: bytes) -> bytes:
        raise RuntimeError("the token is gone")

    monkeypatch.setattr(signer, "sign_bytes", broken)
    with pytest.raises(SigningFailed):
        authority.issue("client", client(), ADMIN)
    monkeypatch.undo()
    assert trail(authority.ledger)[-1] == ("client:ann", "issue", "failed")
    other = authority.issue("client", client("carol"), COMMAND).der
    monkeypatch.setattr(authority_module, "assemble", lambda *_: other)
    with pytest.raises(SigningFailed, match="is not what was recorded"):
        authority.issue("client", client(), ADMIN)
    assert len(rows(authority.ledger)) == 1
    assert len(rows(authority.ledger, PENDING)) == 2
    assert authority.ledger.verify_audit().whole


def test_a_certificate_revoked_while_it_is_made_is_not_given(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever revokes a pending serial wins over the process that is signing it."""

    def revoke_first(unsigned: Unsigned, signature: bytes) -> bytes:
        authority.revoke(authority.active_id, unsigned.serial_number, "superseded", COMMAND)
        return assemble(unsigned, signature)

    assemble = authority_module.assemble
    monkeypatch.setattr(authority_module, "assemble", revoke_first)
    with pytest.raises(SigningFailed, match="revoked before"):
        authority.issue("client", client(), ADMIN)
    assert rows(authority.ledger, ISSUED) == []
    assert len(rows(authority.ledger, REVOKED)) == 1


def test_a_serial_that_exists_is_drawn_anew(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constraint decides; the second draw is issued under the second serial."""
    first = authority.issue("client", client(), ADMIN)
    draws = iter([first.serial, first.serial, 4711])
    monkeypatch.setattr(authority_module, "random_serial", lambda: next(draws))
    assert authority.issue("client", client(), ADMIN).serial == 4711
    assert len(rows(authority.ledger)) == 2


def test_work_within_the_reservation_is_done_with_it_or_not_at_all(authority: Authority) -> None:
    """What a caller does in that transaction is undone with it, and its exception ends all."""
    seen: list[str] = []

    def refuse(_writer: Any, serial: str) -> None:
        seen.append(serial)
        raise Forbidden("not now")

    with pytest.raises(Forbidden):
        authority.issue("client", client(), ADMIN, within=refuse)
    assert len(seen) == 1
    assert authority.ledger.status(authority.active_id, seen[0]).state == UNKNOWN
    assert trail(authority.ledger) == [("client:ann", "issue", "forbidden")]


# ---- who may have what -----------------------------------------------------------------------

ALLOWED: dict[str, tuple[Actor, str, Any]] = {
    "an admin a client": (ADMIN, "client", client("carol", ADMINS, "other")),
    "an admin a server": (ADMIN, "server", server("a.example.com")),
    "an operator a server": (OPERATOR, "server", server("*.example.com")),
    "an operator a host": (OPERATOR, "host", host()),
    "an operator an instance": (OPERATOR, "instance", make_request(KEY, common_name="i-1")),
    "a host its own server": (NODE, "server", server("node-1.example.com")),
    "ACME a server": (actor("acme:1", profile="", via="acme"), "server", server("a.example.com")),
    "the command a responder": (COMMAND, "ocsp", client("Example OCSP")),
}
NOT_ALLOWED: dict[str, tuple[Actor, str, Any]] = {
    "a stranger": (STRANGER, "server", server("a.example.com")),
    "an operator a client": (OPERATOR, "client", client()),
    "a host a client": (NODE, "client", client()),
    "a host another host": (NODE, "host", host("node-2.example.com")),
    "a host itself anew, unasked": (NODE, "host", host()),
    "a host another name": (NODE, "server", server("node-2.example.com")),
    "a host a second name": (NODE, "server", server("node-1.example.com", "a.example.com")),
    "a host a wildcard": (NODE, "server", server("*.node-1.example.com")),
    "a host an address": (
        NODE,
        "server",
        make_request(KEY, dns_names=["node-1.example.com"], ip_addresses=["10.0.0.1"]),
    ),
    "a user who is called like a host": (
        actor("node-1.example.com"),
        "server",
        server("node-1.example.com"),
    ),
    "an admin a responder": (ADMIN, "ocsp", client()),
    "an admin an authority": (
        ADMIN,
        "intermediate",
        make_request(KEY, common_name="X", is_ca=True),
    ),
    "an admin a root": (ADMIN, "root", make_request(KEY, common_name="X", is_ca=True)),
    "ACME a client": (actor("acme:1", profile="", via="acme"), "client", client()),
    "a token by itself": (
        actor("token:1", ADMINS, profile="", via="token"),
        "server",
        server("a.b"),
    ),
    "a way that is unknown": (actor("x", ADMINS, via="trust me"), "server", server("a.b")),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_who_may_ask(authority: Authority, case: str) -> None:
    """What profiles.toml as shipped allows."""
    who, profile, request = ALLOWED[case]
    assert authority.issue(profile, request, who).record.profile == profile


@pytest.mark.parametrize("case", NOT_ALLOWED)
def test_who_may_not_ask(authority: Authority, case: str) -> None:
    """All else is forbidden, signs nothing, and is in the trail."""
    who, profile, request = NOT_ALLOWED[case]
    with pytest.raises(Forbidden):
        authority.issue(profile, request, who)
    assert_nothing_given(authority)
    assert rows(authority.ledger, PENDING) == []
    assert trail(authority.ledger) == [(who.label, "issue", "forbidden")]


def test_groups_that_one_has_not_are_not_given(
    make_authority: Callable[..., Authority], database_url: str
) -> None:
    """Who may issue and is no grantor gives the groups it has, and no others."""
    offers = parse('[profile.client.who]\ngroups = ["helpdesk"]\ngrants_any = ["mooring:admins"]')
    authority = make_authority(database_url, offers)
    helper = actor("helen", "helpdesk", "staff")
    assert authority.issue("client", client("bob", "staff"), helper)
    with pytest.raises(Forbidden) as forbidden:
        authority.issue("client", client("bob", "staff", ADMINS), helper)
    assert forbidden.value.field == "/organizations/1"
    with pytest.raises(Forbidden):
        authority.issue("client", client("bob"), ADMIN)


def test_a_refusal_names_field_and_reason_and_is_in_the_trail(authority: Authority) -> None:
    """Neither an unknown profile nor a name outside the rules signs anything."""
    with pytest.raises(Refused) as refused:
        authority.issue("colour", client(), ADMIN)
    assert refused.value.field == "/profile"
    with pytest.raises(Refused) as refused:
        authority.issue("client", make_request(KEY, common_name="a", dns_names=["a.b"]), ADMIN)
    assert refused.value.field == "/dns_names/0"
    with pytest.raises(Refused) as refused:
        authority.issue("client", client(), ADMIN, lifetime=timedelta(days=9))
    assert refused.value.field == "/lifetime"
    own = authority.authorities.active.certificate.public_key()
    with pytest.raises(Refused) as refused:
        authority.issue("client", make_request(own, common_name="a"), ADMIN)
    assert refused.value.field == "/public_key"
    assert_nothing_given(authority)
    assert [each[2] for each in trail(authority.ledger)] == ["refused"] * 4


# ---- renewing --------------------------------------------------------------------------------


def test_a_renewal_holds_the_same_names_for_a_new_key(authority: Authority) -> None:
    """Without names in the request, or with all of them."""
    old = authority.issue("client", client("bob", "b", "a"), ADMIN)
    bob = actor("bob", "a", "b")
    for groups in ((), ("a", "b")):
        key = generate_key().public_key()
        name = "bob" if groups else None
        asked = make_request(key, common_name=name, organizations=groups)
        new = authority.renew(old.record, asked, bob)
        assert new.certificate.subject == old.certificate.subject
        assert new.certificate.public_key() == key
        assert new.record.requested_by == "client:bob"
    node = authority.issue("host", host(), ADMIN)
    asked = make_request(KEY, common_name=NODE.name, organizations=[HOSTS], dns_names=[NODE.name])
    for request in (asked, make_request(KEY)):
        new = authority.renew(node.record, request, NODE)
        assert new.record.names == node.record.names
        assert new.certificate.subject == node.certificate.subject
    assert trail(authority.ledger)[-2:] == [
        ("host:node-1.example.com", "renew", "intent"),
        ("host:node-1.example.com", "renew", "done"),
    ]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"common_name": "ann"}, "/common_name"),
        ({"organizations": [ADMINS]}, "/organizations"),
        ({"dns_names": ["a.b"]}, "/dns_names"),
        ({"ip_addresses": ["10.0.0.1"]}, "/ip_addresses"),
        ({"uris": ["spiffe://a/b"]}, "/uris"),
        ({"is_ca": True}, "/csr"),
    ],
)
def test_a_renewal_with_other_names_is_refused(
    authority: Authority, wanted: dict[str, Any], field: str
) -> None:
    """Nothing can be added on the way."""
    old = authority.issue("client", client("bob", "g"), ADMIN)
    with pytest.raises(Refused) as refused:
        authority.renew(old.record, make_request(KEY, **wanted), actor("bob", "g"))
    assert refused.value.field == field
    assert len(rows(authority.ledger)) == 1


def test_a_renewal_follows_the_rules_of_today(
    make_authority: Callable[..., Authority], database_url: str
) -> None:
    """A profile that is not renewed, not offered, or narrower now: no new certificate."""
    old = make_authority(database_url).issue("server", server("a.example.com"), ADMIN)
    for text, error in (
        ("[profile.server.who]\nrenew = false", Forbidden),
        ("[profile.client]", Forbidden),
        ('[profile.server.names]\ndns = ["example.org"]', Refused),
    ):
        authority = make_authority(database_url, parse(text))
        with pytest.raises(error):
            authority.renew(old.record, make_request(KEY), NODE)
    assert len(rows(authority.ledger)) == 1


# ---- revoking --------------------------------------------------------------------------------


def test_revoking_holding_and_releasing(authority: Authority) -> None:
    """The states of RFC 5280; each change is in the trail and shows in the next list."""
    issued = authority.issue("client", client(), ADMIN)
    who = (issued.authority_id, issued.serial)
    assert authority.status(*who).state == ISSUED
    held = authority.revoke(*who, "certificateHold", OPERATOR)
    assert (held.state, held.reason) == (HELD, x509.ReasonFlags.certificate_hold)
    assert authority.release(*who, OPERATOR).state == ISSUED
    assert authority.status(*who).revoked_at is None
    again = authority.revoke(*who, "certificateHold", OPERATOR)
    revoked = authority.revoke(*who, "keyCompromise", OPERATOR)
    assert (revoked.state, revoked.revoked_at) == (REVOKED, again.revoked_at)
    before = trail(authority.ledger)
    assert authority.revoke(*who, "keyCompromise", OPERATOR) == revoked
    assert trail(authority.ledger) == before
    assert [each[1] for each in before] == [
        *("issue", "issue", "revoke", "release", "revoke", "revoke"),
    ]
    for change in (
        lambda: authority.release(*who, OPERATOR),
        lambda: authority.revoke(*who, "superseded", OPERATOR),
        lambda: authority.revoke(*who, "certificateHold", OPERATOR),
    ):
        with pytest.raises(NotPossible, match="is for good"):
            change()
    assert authority.ledger.verify_audit().whole


def test_what_cannot_be_revoked(authority: Authority) -> None:
    """Unknown serials and authorities are missing, and unknown reasons are refused."""
    issued = authority.issue("client", client(), ADMIN)
    with pytest.raises(Missing):
        authority.revoke(issued.authority_id, 4711, "superseded", ADMIN)
    with pytest.raises(Missing):
        authority.revoke("00" * 20, issued.serial, "superseded", ADMIN)
    with pytest.raises(Missing):
        authority.release(issued.authority_id, 4711, ADMIN)
    for reason in ("removeFromCRL", "cACompromise", "", "bored"):
        with pytest.raises(Refused) as refused:
            authority.revoke(issued.authority_id, issued.serial, reason, ADMIN)
        assert refused.value.field == "/reason"
    assert authority.status(issued.authority_id, issued.serial).state == ISSUED


# ---- enrolment tokens ------------------------------------------------------------------------


def test_a_token_gives_what_it_is_bound_to(authority: Authority) -> None:
    """Once; the same key gets the same certificate again, another gets nothing."""
    token, secret = authority.create_token("host", {"common_name": NODE.name}, HOUR, OPERATOR)
    assert secret.startswith(TOKEN_PREFIX)
    enrolling = actor(f"token:{token.id}", profile="", via="token")
    issued, made = authority.enrol(token, make_request(KEY), enrolling)
    assert (made, issued.record.common_name) == (True, NODE.name)
    assert issued.record.requested_by == f"token:{token.id}"
    found = authority.find_token(secret)
    assert found is not None
    assert found.used_for == issued.record.serial
    again, made = authority.enrol(found, make_request(KEY), enrolling)
    assert (again.certificate, made) == (issued.certificate, False)
    other = make_request(generate_key().public_key())
    for stale in (token, found):
        with pytest.raises(Forbidden, match="used, expired or withdrawn"):
            authority.enrol(stale, other, enrolling)
    assert len(rows(authority.ledger)) == 1
    authority.revoke(issued.authority_id, issued.serial, "superseded", ADMIN)
    with pytest.raises(Forbidden):
        authority.enrol(found, make_request(KEY), enrolling)


def test_a_token_s_secret_is_nowhere(authority: Authority) -> None:
    """Neither the token's row nor the trail holds it, whole or in part."""
    token, secret = authority.create_token("host", {"common_name": NODE.name}, HOUR, OPERATOR)
    kept = repr(token) + repr(authority.ledger.trail(limit=10))
    assert secret.removeprefix(TOKEN_PREFIX)[:8] not in kept
    assert authority.find_token(secret) == token
    assert authority.find_token(secret[:-1]) is None


def test_tokens_expire_and_are_withdrawn(
    make_authority: Callable[..., Authority], database_url: str
) -> None:
    """Past its time or withdrawn a token gives nothing."""
    clock = [datetime.now(UTC)]
    authority = make_authority(database_url, clock=lambda: clock[0])
    enrolling = actor("token:x", profile="", via="token")
    token, _ = authority.create_token("host", {"common_name": "n1"}, HOUR, OPERATOR)
    gone, secret = authority.create_token("host", {"common_name": "n2"}, HOUR, OPERATOR)
    assert authority.delete_token(gone, OPERATOR) is True
    assert authority.delete_token(gone, OPERATOR) is False
    assert authority.find_token(secret) is None
    clock[0] += HOUR
    for each in (token, gone):
        with pytest.raises(Forbidden):
            authority.enrol(each, make_request(KEY), enrolling)
    assert_nothing_given(authority)


@pytest.mark.parametrize(
    ("profile", "names", "who", "error"),
    [
        ("client", {"common_name": "bob"}, OPERATOR, Forbidden),
        ("ocsp", {"common_name": "bob"}, ADMIN, Forbidden),
        ("host", {"common_name": "n1"}, STRANGER, Forbidden),
        ("colour", {}, ADMIN, Refused),
        ("host", {}, ADMIN, Refused),
        ("host", {"common_name": "under_score"}, ADMIN, Refused),
        ("host", {"common_name": 7}, ADMIN, Refused),
        ("server", {"dns_names": "a.example.com"}, ADMIN, Refused),
        ("server", {"dns_names": [7]}, ADMIN, Refused),
        ("server", {"ip_addresses": ["10.0.0.256"]}, ADMIN, Refused),
        ("client", {"common_name": "x", "organizations": [HOSTS]}, ADMIN, Refused),
    ],
)
def test_a_token_for_what_could_not_be_had_is_not_made(
    authority: Authority, profile: str, names: dict[str, Any], who: Actor, error: type[Exception]
) -> None:
    """Whoever makes a token needs the right to the certificate, and its names must be possible."""
    with pytest.raises(error):
        authority.create_token(profile, names, HOUR, who)
    assert authority.ledger.tokens(limit=10) == []
    assert trail(authority.ledger)[-1][1] == "token-create"


def test_a_token_is_for_its_names_alone(authority: Authority) -> None:
    """A request with other names uses the token no more than it gets a certificate."""
    names = {"dns_names": ["a.example.com"], "ip_addresses": ["10.0.0.1"]}
    token, _ = authority.create_token("server", names, HOUR, OPERATOR)
    enrolling = actor("token:x", profile="", via="token")
    for wanted in (
        {"dns_names": ["b.example.com"]},
        {"dns_names": ["a.example.com"]},
        {"dns_names": ["a.example.com", "b.example.com"], "ip_addresses": ["10.0.0.1"]},
        {"common_name": "b.example.com"},
    ):
        with pytest.raises(Refused):
            authority.enrol(token, make_request(KEY, **wanted), enrolling)
    whole = make_request(KEY, common_name="a.example.com", **names)
    issued, _ = authority.enrol(token, whole, enrolling)
    assert issued.record.names == (("dns", "a.example.com"), ("ip", "10.0.0.1"))


def test_of_many_that_enrol_with_one_token_one_is_served(authority: Authority) -> None:
    """Eight threads with keys of their own: one certificate, the others are forbidden."""
    token, _ = authority.create_token("host", {"common_name": NODE.name}, HOUR, OPERATOR)
    enrolling = actor(f"token:{token.id}", profile="", via="token")
    outcomes: list[object] = []
    barrier = threading.Barrier(8)

    def attempt() -> None:
        request = make_request(generate_key().public_key())
        barrier.wait(30)
        try:
            outcomes.append(authority.enrol(token, request, enrolling)[0])
        except Forbidden as forbidden:
            outcomes.append(forbidden)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 8
    (served,) = [each for each in outcomes if isinstance(each, Issued)]
    assert rows(authority.ledger) == [served.record.serial]
    assert authority.ledger.verify_audit().whole


def issue_many(authority: Authority, name: str, count: int) -> None:
    for number in range(count):
        authority.issue("client", client(f"{name}-{number}"), ADMIN)
    authority.ledger.database.close()


def test_processes_issue_side_by_side(authority: Authority) -> None:
    """Four processes, 100 certificates: as many serials, and one chain of 200 entries."""
    authority.ledger.database.close()
    workers = [FORK.Process(target=issue_many, args=(authority, f"w{n}", 25)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
        assert worker.exitcode == 0
    assert len(set(rows(authority.ledger))) == 100
    verdict = authority.ledger.verify_audit()
    assert (verdict.entries, verdict.bad) == (200, None)


def test_another_authority_than_the_active_one_can_be_asked(authority: Authority) -> None:
    """By its id; one that is not here is refused."""
    chosen = authority.issue("client", client(), COMMAND, authority_id=authority.active_id)
    assert chosen.authority_id == authority.active_id
    with pytest.raises(Refused) as refused:
        authority.issue("client", client(), COMMAND, authority_id="00" * 20)
    assert refused.value.field == "/issuer"


def test_labels_tell_a_host_from_a_user_of_its_name() -> None:
    """The ledger says as what somebody asked, and cuts what would not fit its column."""
    assert NODE.label == "host:node-1.example.com"
    assert actor("node-1.example.com").label == "client:node-1.example.com"
    assert actor("token:1", profile="").label == "token:1"
    assert len(actor("x" * 300).label) == 255


def test_every_offer_can_be_issued_or_is_internal() -> None:
    """No profile as shipped is a dead letter."""
    assert {name for name, offer in SHIPPED.items() if offer.groups} == {
        *("server", "client", "host", "instance")
    }
