"""The audit trail: what was written cannot be changed without being found."""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, update

from services.ca import audit
from services.ca.audit import GENESIS, Entry, Row, chain, detail, verify
from services.ca.ledger import Ledger
from services.core import schema
from services.core.database import Database

FORK = multiprocessing.get_context("fork")


def entry(number: int = 0, **fields: str) -> Entry:
    values = {
        "at": f"2026-11-21T03:00:00.{number:06d}Z",
        "actor": "client:alice",
        "address": "192.0.2.1",
        "request_id": f"req-{number}",
        "action": "issue",
        "decision": "done",
        "detail": "{}",
    }
    return Entry(**{**values, **fields})


def rows(count: int = 5) -> list[Row]:
    return chain(0, GENESIS, [entry(number) for number in range(count)])


def test_a_whole_chain_verifies() -> None:
    """An empty trail and one with entries are whole; the head is the last hash."""
    assert verify([]) == audit.Verdict(0, GENESIS)
    found = rows()
    assert verify(found) == audit.Verdict(5, found[-1].hash)
    assert verify(found).whole


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Entry)])
def test_a_changed_field_is_found(field: str) -> None:
    """Whatever field of an entry is changed, that entry is named."""
    found = rows()
    found[2] = dataclasses.replace(
        found[2], entry=dataclasses.replace(found[2].entry, **{field: "changed"})
    )
    verdict = verify(found)
    assert (verdict.bad, verdict.entries, verdict.whole) == (3, 2, False)


def test_a_changed_hash_a_gap_and_another_order_are_found() -> None:
    """So is a row that was removed, put in, moved, or given another hash."""
    found = rows()
    assert verify([*found[:2], *found[3:]]).bad == 4
    assert verify(found[1:]).bad == 2
    assert verify([found[1], found[0], *found[2:]]).bad == 2
    assert verify([*found[:3], found[2], *found[3:]]).bad == 3
    changed = dataclasses.replace(found[4], hash="0" * 64)
    assert verify([*found[:4], changed]).bad == 5
    # rewritten from there on, hashes and all: only one that was kept elsewhere tells
    rewritten = [*found[:2], *chain(2, found[1].hash, [entry(9), entry(10), entry(11)])]
    assert verify(rewritten).whole
    assert verify(rewritten, known={5: found[4].hash}).bad == 5


def test_an_end_that_was_cut_off_is_found_by_a_hash_that_was_kept() -> None:
    """Without a kept hash nobody can know; with one the trail must still hold it."""
    found = rows()
    assert verify(found[:3]).whole
    verdict = verify(found[:3], known={5: found[4].hash})
    assert (verdict.bad, verdict.entries) == (5, 3)
    assert verify(found, known={5: found[4].hash, 1: found[0].hash}).whole


def test_fields_cannot_flow_into_each_other() -> None:
    """Two entries whose texts joined would be equal have different hashes."""
    one = audit.entry_hash(GENESIS, 1, entry(actor="ab", address="c"))
    assert one != audit.entry_hash(GENESIS, 1, entry(actor="a", address="bc"))


def test_details_are_canonical_bounded_and_hold_no_secret() -> None:
    """One spelling, texts cut to length, nothing unprintable, no field that names a secret."""
    assert detail({"b": 1, "a": "x", "c": None}) == '{"a":"x","b":1,"c":null}'
    assert len(detail({"a": "x" * 10_000})) < 600
    assert len(json.loads(detail({"a": ["n"] * 500}))["a"]) == audit.LIST_LIMIT
    assert "\n" not in json.loads(detail({"a": "x\ny"}))["a"]
    for name in ("secret", "csr", "token_secret", "private_key", "passphrase", "key_pem"):
        with pytest.raises(ValueError, match=name):
            detail({name: "x"})


def append_many(url: str, name: str, count: int) -> None:
    ledger = Ledger(Database(url))
    for number in range(count):
        ledger.record([entry(number, actor=name), entry(number, actor=name, decision="second")])
    ledger.database.close()


def test_processes_make_one_chain(database_url: str) -> None:
    """Entries of four processes are contiguous and chained, each pair side by side."""
    workers = [FORK.Process(target=append_many, args=(database_url, f"w{n}", 25)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    ledger = Ledger(Database(database_url))
    verdict = ledger.verify_audit()
    assert (verdict.entries, verdict.bad) == (200, None)
    found = ledger.trail(limit=1000)
    assert [row.sequence for row in found] == list(range(200, 0, -1))
    for second, first in zip(found[::2], found[1::2], strict=True):
        assert (second.entry.actor, second.entry.decision) == (first.entry.actor, "second")
    ledger.database.close()


@pytest.mark.parametrize(
    "tamper",
    [
        lambda t: update(t).where(t.c.sequence == 4).values(actor="client:eve"),
        lambda t: update(t).where(t.c.sequence == 4).values(detail="{} "),
        lambda t: delete(t).where(t.c.sequence == 4),
    ],
)
def test_the_ledger_s_trail_is_verified_row_by_row(
    database_url: str, tamper: Callable[..., object]
) -> None:
    """A row that was changed or removed in the database is named; pages go on where one ended."""
    database = Database(database_url)
    ledger = Ledger(database)
    ledger.record([entry(number) for number in range(6)])
    head = ledger.trail(limit=1)[0]
    assert ledger.verify_audit({head.sequence: head.hash}).whole
    assert [row.sequence for row in ledger.trail(limit=2, before=5)] == [4, 3]
    with database.write() as writer:
        writer.connection.execute(tamper(schema.ca_audit))  # type: ignore[call-overload]
    verdict = ledger.verify_audit()
    assert verdict.bad in (4, 5)
    assert verdict.entries == 3
    database.close()


def test_an_entry_that_is_rolled_back_leaves_no_gap(database_url: str) -> None:
    """What a transaction appended and did not commit is as if it had never been."""
    database = Database(database_url)
    ledger = Ledger(database)
    ledger.record([entry(1)])
    with contextlib.suppress(RuntimeError), database.write() as writer:
        ledger.append(writer.connection, [entry(2)])
        raise RuntimeError
    ledger.record([entry(3)])
    verdict = ledger.verify_audit()
    assert (verdict.entries, verdict.bad) == (2, None)
    database.close()


@given(
    texts=st.lists(st.text(max_size=600), min_size=7, max_size=7),
    values=st.dictionaries(
        st.sampled_from(["serial", "names", "profile", "reason", "field", "via"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=600) | st.lists(st.text()),
    ),
)
def test_the_json_is_the_library_s(texts: list[str], values: dict[str, Any]) -> None:
    """What is put together by hand, and hashed for good, is what an encoder writes."""
    text = detail(values)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text).keys() == values.keys()
    fields = json.dumps([GENESIS, 7, *texts], separators=(",", ":"))
    assert (
        audit.entry_hash(GENESIS, 7, Entry(*texts)) == hashlib.sha256(fields.encode()).hexdigest()
    )
