"""The ledger's statements, on both engines."""

import multiprocessing
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from services.ca.hierarchy import Hierarchy
from services.ca.issue import random_serial
from services.ca.ledger import (
    Completion,
    Ledger,
    Reservation,
    Search,
    StoredCRL,
    moment,
    serial_text,
    timestamp,
)
from services.ca.states import HELD, ISSUED, PENDING, REVOKED, UNKNOWN
from services.core.database import Conflict, Database

FORK = multiprocessing.get_context("fork")
NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
AUTHORITY = "aa" * 20


@pytest.fixture
def ledger(database_url: str, hierarchy: Hierarchy) -> Iterator[Ledger]:
    """A ledger with one authority."""
    database = Database(database_url)
    ledger = Ledger(database)
    ledger.register(AUTHORITY, hierarchy.intermediate.certificate)
    yield ledger
    database.close()


def reservation(serial: int = 1, **values: Any) -> Reservation:
    fields = {
        "authority_id": AUTHORITY,
        "serial": serial_text(serial),
        "profile": "server",
        "subject": "CN=web",
        "common_name": "web",
        "names": (("dns", "web.example.com"),),
        "key_id": "bb" * 20,
        "tbs_digest": "cc" * 32,
        "not_before": timestamp(NOW),
        "not_after": timestamp(NOW + timedelta(days=1)),
        "created_at": timestamp(NOW + timedelta(seconds=serial % 1000)),
        "requested_by": "client:alice",
    }
    return Reservation(**{**fields, **values})


def completion(serial: str, fingerprint: str) -> Completion:
    return Completion(AUTHORITY, serial, fingerprint, b"der")


def put(ledger: Ledger, serial: int = 1, **values: Any) -> None:
    """A certificate that was issued."""
    with ledger.database.write() as writer:
        ledger.reserve(writer.connection, [reservation(serial, **values)])
        text = serial_text(serial)
        assert ledger.complete(writer.connection, [completion(text, f"{serial:064x}")])


def test_times_and_serials_sort_as_text() -> None:
    """Both have one length, so that text compares as what it stands for."""
    assert serial_text(255) == "0" * 38 + "ff"
    assert len(serial_text((1 << 159) - 1)) == 40
    assert timestamp(NOW) == "2026-11-21T12:00:00.000000Z"
    assert moment(timestamp(NOW)) == NOW


def test_registering_twice_changes_nothing(ledger: Ledger, hierarchy: Hierarchy) -> None:
    """Every process registers at its start; the CRL number survives."""
    with ledger.database.write() as writer:
        assert ledger.lock_authority(writer.connection, AUTHORITY) == 0
        ledger.add_crl(
            writer.connection, StoredCRL(AUTHORITY, 7, None, b"x", NOW, NOW + timedelta(days=7))
        )
    ledger.register(AUTHORITY, hierarchy.intermediate.certificate)
    with ledger.database.write() as writer:
        assert ledger.lock_authority(writer.connection, AUTHORITY) == 7
        with pytest.raises(LookupError, match="is not registered"):
            ledger.lock_authority(writer.connection, "00" * 20)


def test_a_certificate_is_pending_then_issued(ledger: Ledger) -> None:
    """It is found by serial at once, and by fingerprint and with its bytes once it is stored."""
    assert ledger.status(AUTHORITY, serial_text(1)).state == UNKNOWN
    with ledger.database.write() as writer:
        ledger.reserve(writer.connection, [reservation()])
    assert ledger.status(AUTHORITY, serial_text(1)).state == PENDING
    assert ledger.der(AUTHORITY, serial_text(1)) is None
    with ledger.database.write() as writer:
        done = ledger.complete(writer.connection, [completion(serial_text(1), "f" * 64)])
        again = ledger.complete(writer.connection, [completion(serial_text(1), "e" * 64)])
    assert (done, again) == (True, False)
    record = ledger.by_fingerprint("f" * 64)
    assert record == ledger.by_serial(serial_text(1))
    assert record is not None
    assert (record.state, record.values("dns")) == (ISSUED, ("web.example.com",))
    assert record == reservation().issued("f" * 64)
    assert ledger.der(AUTHORITY, serial_text(1)) == b"der"
    assert ledger.by_serial(serial_text(1), "00" * 20) is None
    assert ledger.by_fingerprint("0" * 64) is None


def test_a_serial_is_there_once(ledger: Ledger) -> None:
    """A second reservation of a serial is a Conflict and leaves nothing."""
    put(ledger)
    with pytest.raises(Conflict) as conflict, ledger.database.write() as writer:
        ledger.reserve(writer.connection, [reservation(2), reservation(1)])
    assert conflict.value.constraint == "ca_certificate"
    assert ledger.by_serial(serial_text(2)) is None


def test_names_of_any_length_are_recorded(ledger: Ledger) -> None:
    """URIs may be longer than what the search compares, and alike up to there."""
    uris = tuple(("uri", "spiffe://example.com/" + "a" * 300 + end) for end in "xy")
    put(ledger, names=uris)
    record = ledger.by_serial(serial_text(1))
    assert record is not None
    assert record.names == uris
    found = ledger.search(Search(name=uris[1][1]), now=NOW, limit=10)
    assert [each.serial for each in found] == [serial_text(1)]


def test_search_and_paging(ledger: Ledger) -> None:
    """Each bound narrows the list; pages are the newest first and miss nothing."""
    for serial in range(1, 8):
        put(
            ledger,
            serial,
            subject=f"CN=node-{serial},O=50%_Group",
            common_name=f"node-{serial}",
            profile="host" if serial % 2 else "client",
            names=(("dns", f"node-{serial}.example.com"), ("ip", "10.0.0.1")),
            not_after=timestamp(NOW + timedelta(days=serial - 2, seconds=1)),
            requested_by="token:x" if serial == 3 else "host:node-5",
        )
    with ledger.database.write() as writer:
        ledger.reserve(writer.connection, [reservation(99)])
        ledger.set_state(
            writer.connection,
            AUTHORITY,
            serial_text(4),
            REVOKED,
            at=timestamp(NOW),
            reason="superseded",
        )
        ledger.set_state(
            writer.connection,
            AUTHORITY,
            serial_text(2),
            HELD,
            at=timestamp(NOW),
            reason="certificateHold",
        )

    def serials(
        limit: int = 100, before: tuple[str, str] | None = None, **bounds: Any
    ) -> list[int]:
        found = ledger.search(Search(**bounds), now=NOW, limit=limit, before=before)
        return [int(each.serial, 16) for each in found]

    assert serials() == [7, 6, 5, 4, 3, 2, 1]
    assert serials(state=PENDING) == [99]
    assert serials(state=REVOKED) == [4]
    assert serials(state=HELD) == [2]
    assert serials(state=ISSUED) == [7, 6, 5, 3]
    assert serials(state="expired") == [1]
    assert serials(subject="NODE-3") == [3]
    assert serials(subject="%_g") == [7, 6, 5, 4, 3, 2, 1]
    assert serials(subject="node%3") == []
    assert serials(name="node-6.example.com") == [6]
    assert serials(name="node-6") == [6]
    assert serials(name="10.0.0.1") == [7, 6, 5, 4, 3, 2, 1]
    assert serials(name="example.com") == []
    assert serials(profile="client", state=ISSUED) == [6]
    assert serials(expires_before=timestamp(NOW + timedelta(days=2))) == [3, 2, 1]
    assert serials(owner=("host", "node-3")) == [3]
    assert serials(owner=("client", "node-3")) == []
    assert serials(owner=("host", "node-5")) == [7, 6, 5, 4, 2, 1]
    pages, before = [], None
    while page := ledger.search(Search(), now=NOW, limit=3, before=before):
        pages.append([int(each.serial, 16) for each in page])
        before = (page[-1].created_at, page[-1].serial)
    assert pages == [[7, 6, 5], [4, 3, 2], [1]]


def test_lists_hold_what_is_revoked(ledger: Ledger) -> None:
    """A complete list has the revoked and held; an expired one stays for one more period."""
    for serial, days in ((1, 1), (2, 1), (3, -6), (4, -8), (5, 1)):
        put(ledger, serial, not_after=timestamp(NOW + timedelta(days=days)))
    with ledger.database.write() as writer:
        for serial, reason in ((1, "keyCompromise"), (3, "superseded"), (4, "superseded")):
            ledger.set_state(
                writer.connection,
                AUTHORITY,
                serial_text(serial),
                REVOKED,
                at=timestamp(NOW),
                reason=reason,
            )
        ledger.set_state(
            writer.connection,
            AUTHORITY,
            serial_text(2),
            HELD,
            at=timestamp(NOW),
            reason="certificateHold",
        )
    with ledger.database.read() as connection:
        found = ledger.revoked(connection, AUTHORITY, now=NOW)
        assert [(each.serial, each.reason.value, each.at) for each in found] == [
            (1, "keyCompromise", NOW),
            (2, "certificateHold", NOW),
            (3, "superseded", NOW),
        ]
        assert ledger.revoked(connection, "00" * 20, now=NOW) == []


def test_a_delta_holds_what_changed_since_its_base(ledger: Ledger) -> None:
    """Changes after the base, a release as removeFromCRL; nothing that the base already had."""
    for serial in (1, 2, 3):
        put(ledger, serial)
    revoked = {"at": timestamp(NOW), "reason": "superseded"}
    held = {"at": timestamp(NOW), "reason": "certificateHold"}
    with ledger.database.write() as writer:
        ledger.set_state(writer.connection, AUTHORITY, serial_text(1), REVOKED, **revoked)
        ledger.set_state(writer.connection, AUTHORITY, serial_text(2), HELD, **held)
    with ledger.database.write() as writer:
        base = ledger.next_number(writer.connection, AUTHORITY, NOW)
        assert base == int(NOW.timestamp())
        until = NOW + timedelta(days=7)
        ledger.add_crl(writer.connection, StoredCRL(AUTHORITY, base, None, b"base", NOW, until))
        assert ledger.changed_since(writer.connection, AUTHORITY, base, now=NOW) == []
    with ledger.database.write() as writer:
        ledger.set_state(writer.connection, AUTHORITY, serial_text(2), ISSUED)
        ledger.set_state(writer.connection, AUTHORITY, serial_text(3), REVOKED, **revoked)
        found = ledger.changed_since(writer.connection, AUTHORITY, base, now=NOW)
        assert [(each.serial, each.reason) for each in found] == [
            (2, x509.ReasonFlags.remove_from_crl),
            (3, x509.ReasonFlags.superseded),
        ]
        number = ledger.next_number(writer.connection, AUTHORITY, NOW)
        assert number == base + 1
        ledger.add_crl(writer.connection, StoredCRL(AUTHORITY, number, base, b"delta", NOW, until))
    complete, delta = ledger.latest_crl(AUTHORITY), ledger.latest_crl(AUTHORITY, delta=True)
    assert complete == StoredCRL(AUTHORITY, base, None, b"base", NOW, until)
    assert delta is not None
    assert (delta.number, delta.base_number, delta.der) == (number, base, b"delta")
    with pytest.raises(Conflict), ledger.database.write() as writer:
        ledger.add_crl(writer.connection, StoredCRL(AUTHORITY, base, None, b"2", NOW, until))


def take_numbers(url: str, count: int) -> None:
    ledger = Ledger(Database(url))
    for _ in range(count):
        with ledger.database.write() as writer:
            number = ledger.next_number(writer.connection, AUTHORITY, NOW)
            der = f"{number}".encode()
            until = NOW + timedelta(days=7)
            ledger.add_crl(writer.connection, StoredCRL(AUTHORITY, number, None, der, NOW, until))
    ledger.database.close()


def test_processes_never_share_a_crl_number(ledger: Ledger, database_url: str) -> None:
    """Four processes take 80 numbers: contiguous, each once."""
    ledger.database.close()
    workers = [FORK.Process(target=take_numbers, args=(database_url, 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    latest = ledger.latest_crl(AUTHORITY)
    assert latest is not None
    assert latest.number == int(NOW.timestamp()) + 79


def make_token(ledger: Ledger, digest: str = "d" * 64, **values: Any) -> str:
    fields = {
        "request": {"profile": "host", "common_name": "node-1"},
        "created_at": NOW,
        "created_by": "client:alice",
        "expires_at": NOW + timedelta(hours=1),
    }
    with ledger.database.write() as writer:
        return ledger.add_token(writer.connection, digest=digest, **{**fields, **values}).id


def redeem(ledger: Ledger, token: str, serial: int, now: datetime = NOW) -> bool:
    with ledger.database.write() as writer:
        return ledger.redeem(writer.connection, token, serial_text(serial), now)


def test_tokens_are_used_once_in_time(ledger: Ledger) -> None:
    """A token is good until it is used, expired or withdrawn, and never after."""
    token = make_token(ledger)
    assert redeem(ledger, token, 1, NOW + timedelta(hours=1)) is False
    assert redeem(ledger, token, 1) is True
    assert redeem(ledger, token, 2) is False
    found = ledger.token_by_digest("d" * 64)
    assert found == ledger.token(token)
    assert found is not None
    assert (found.used_for, found.request["profile"]) == (serial_text(1), "host")
    with ledger.database.write() as writer:
        assert ledger.delete_token(writer.connection, token) is True
        assert ledger.delete_token(writer.connection, token) is False
    assert ledger.token(token) is None
    other = make_token(ledger, "e" * 64)
    with ledger.database.write() as writer:
        ledger.delete_token(writer.connection, other)
    assert redeem(ledger, other, 1) is False
    with pytest.raises(Conflict):
        make_token(ledger, make_token(ledger, "f" * 64) and "f" * 64)


def test_tokens_are_listed_in_pages(ledger: Ledger) -> None:
    """The newest first, all or those of one maker."""
    ids = [
        make_token(
            ledger,
            f"{number:064x}",
            created_at=NOW + timedelta(seconds=number),
            created_by="client:bob" if number % 2 else "client:alice",
        )
        for number in range(5)
    ]
    assert [each.id for each in ledger.tokens(limit=10)] == ids[::-1]
    first = ledger.tokens(limit=2)
    rest = ledger.tokens(limit=10, before=(first[-1].created_at, first[-1].id))
    assert [each.id for each in [*first, *rest]] == ids[::-1]
    assert [each.id for each in ledger.tokens(limit=10, created_by="client:bob")] == ids[3::-2]


def test_of_many_that_redeem_one_wins(ledger: Ledger) -> None:
    """Sixteen threads with one token: one certificate's serial stands in it."""
    token = make_token(ledger)
    won: list[int] = []
    barrier = threading.Barrier(16)

    def attempt(serial: int) -> None:
        barrier.wait(30)
        if redeem(ledger, token, serial):
            won.append(serial)

    threads = [threading.Thread(target=attempt, args=(number + 1,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    found = ledger.token(token)
    assert found is not None
    assert found.used_for == serial_text(won[0])


def reserve_many(url: str, count: int) -> None:
    ledger = Ledger(Database(url))
    for _ in range(count):
        with ledger.database.write() as writer:
            ledger.reserve(writer.connection, [reservation(random_serial()) for _ in range(5)])
    ledger.database.close()


def test_processes_reserve_side_by_side(ledger: Ledger, database_url: str) -> None:
    """Four processes, several reservations a transaction: every one is there."""
    ledger.database.close()
    workers = [FORK.Process(target=reserve_many, args=(database_url, 10)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(ledger.search(Search(state=PENDING), now=NOW, limit=1000)) == 200
