"""Group commit: many steps in one transaction, each with an outcome of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from services.ca.authority import Actor, Authority, Issued, SigningFailed, entry
from services.ca.commit import Lookup, Work
from services.ca.keys import generate_key
from services.ca.ledger import Search
from services.ca.request import make_request
from services.ca.states import ISSUED, PENDING, REVOKED
from services.core.database import Unavailable

ACTOR = Actor("command:test", frozenset(), "", "", "command")


def steps(authority: Authority, name: str) -> Any:
    """A certificate in the making."""
    request = make_request(generate_key().public_key(), common_name=name)
    return authority.issuing("client", request, ACTOR)


def run_together(makings: list[Any]) -> list[Any]:
    """Let each do its step in turn until all are done; return what they return or raise."""
    results: dict[int, Any] = {}
    while len(results) < len(makings):
        for place, making in enumerate(makings):
            if place in results:
                continue
            try:
                next(making)
            except StopIteration as end:
                results[place] = end.value
            except Exception as error:
                results[place] = error
    return [results[place] for place in range(len(makings))]


def transactions(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of entries of each transaction from now on."""
    seen: list[int] = []
    append = authority.ledger.append

    def noted(connection: Any, entries: Any) -> None:
        seen.append(len(entries))
        append(connection, entries)

    monkeypatch.setattr(authority.ledger, "append", noted)
    return seen


def states(authority: Authority) -> list[str]:
    with authority.ledger.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT state FROM ca_certificate").all()
    return sorted(row[0] for row in rows)


def test_steps_that_wait_share_a_transaction(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven certificates are two transactions: all intents, then all that are done."""
    authority.register()
    seen = transactions(authority, monkeypatch)
    issued = run_together([steps(authority, f"user{place}") for place in range(7)])
    assert seen == [7, 7]
    assert len({each.serial for each in issued}) == 7
    assert states(authority) == [ISSUED] * 7
    assert authority.ledger.verify_audit().whole


def test_one_that_fails_leaves_the_others_alone(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one raises is its own; the others are written, and the trail holds."""
    first = authority.issue(
        "client", make_request(generate_key().public_key(), common_name="a"), ACTOR
    )
    makings = [steps(authority, f"user{place}") for place in range(4)]
    complete = authority.ledger.complete
    failing: list[str] = []

    def fail_one(connection: Any, completions: Any) -> bool:
        failing[:] = failing or [completions[0].serial]
        if failing[0] in [each.serial for each in completions]:
            raise Unavailable("just this one")
        return complete(connection, completions)

    monkeypatch.setattr(authority.ledger, "complete", fail_one)
    results = run_together(makings)
    assert isinstance(results[0], Unavailable)
    assert [each.authority_id for each in results[1:]] == [first.authority_id] * 3
    assert states(authority) == [ISSUED] * 4 + [PENDING]
    assert authority.ledger.verify_audit().whole


def test_whoever_gives_up_is_not_written(authority: Authority) -> None:
    """A request that ends between two steps leaves nothing that waits."""
    authority.register()
    making = steps(authority, "gone")
    next(making)
    making.close()
    authority.issue("client", make_request(generate_key().public_key(), common_name="b"), ACTOR)
    assert states(authority) == [ISSUED]


def test_a_database_that_is_away_is_told_to_all(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of the group raises, nothing is signed, and the next try works."""
    authority.register()
    hit: list[bool] = []

    def away(*_arguments: Any) -> None:
        hit.append(True)
        raise Unavailable("gone")

    monkeypatch.setattr(authority.ledger, "reserve", away)
    results = run_together([steps(authority, f"user{place}") for place in range(3)])
    assert [type(each) for each in results] == [Unavailable] * 3
    assert hit
    monkeypatch.undo()
    assert states(authority) == []
    run_together([steps(authority, f"user{place}") for place in range(3)])
    assert states(authority) == [ISSUED] * 3


def test_threads_share_commits_too(authority: Authority) -> None:
    """Settled from several threads at once, every step is written exactly once."""
    authority.register()

    def work(name: str) -> Work:
        made = entry(ACTOR, "test", "done", {"name": name}, authority.clock())
        return authority.commits.add(Work(made))

    def settle(name: str) -> Callable[[], None]:
        return lambda: authority.commits.settle(work(name))

    threads = [threading.Thread(target=settle(f"step {place}")) for place in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [json.loads(row.entry.detail)["name"] for row in authority.ledger.trail(limit=100)]
    assert sorted(written) == sorted(f"step {place}" for place in range(24))
    assert authority.ledger.verify_audit().entries == 24


def test_certificates_are_looked_up_together(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets its own, one that is asked for often is read once, and all of it is of now."""
    requests = [make_request(generate_key().public_key(), common_name=n) for n in ("a", "b")]
    issued = [authority.issue("client", request, ACTOR) for request in requests]
    names = [each.record.fingerprint or "" for each in issued]
    read: list[str] = []
    whole = authority.ledger.by_fingerprint_in

    def noted(connection: Any, fingerprint: str) -> Any:
        read.append(fingerprint)
        return whole(connection, fingerprint)

    monkeypatch.setattr(authority.ledger, "by_fingerprint_in", noted)
    wanted = [names[0], names[1], names[0], "0" * 64, names[0]]
    waiting = [authority.lookups.add(Lookup(name)) for name in wanted]
    # what changes before the first settles is seen by all
    authority.revoke(issued[1].authority_id, issued[1].serial, "superseded", ACTOR)
    for each in waiting:
        authority.lookups.settle(each)
    found = [each.record and (each.record.serial, each.record.state) for each in waiting]
    first = (issued[0].record.serial, ISSUED)
    assert found == [first, (issued[1].record.serial, REVOKED), first, None, first]
    assert sorted(read) == sorted({*wanted})
    dropped = authority.lookups.add(Lookup(names[0]))
    authority.lookups.drop(dropped)
    authority.lookups.settle(authority.lookups.add(Lookup(names[1])))
    assert not dropped.settled


def test_a_look_up_that_fails_is_told_to_all(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is let through because the database was away for another."""
    waiting = [authority.lookups.add(Lookup(str(place) * 64)) for place in range(3)]
    hit: list[bool] = []

    def away(*_arguments: Any) -> None:
        hit.append(True)
        raise Unavailable("gone")

    monkeypatch.setattr(authority.ledger, "by_fingerprint_in", away)
    for each in waiting:
        with pytest.raises(Unavailable):
            authority.lookups.settle(each)
    assert hit == [True]


def test_one_that_was_revoked_meanwhile_leaves_the_others_alone(authority: Authority) -> None:
    """It is not stored and not given out; those beside it are."""
    authority.register()
    makings = [steps(authority, f"user{place}") for place in range(3)]
    for _ in range(2):  # to where each is signed and waits to be stored
        for making in makings:
            next(making)
    pending = authority.ledger.search(Search(state=PENDING), now=authority.clock(), limit=10)
    serial = next(each.serial for each in pending if each.common_name == "user1")
    authority.revoke(authority.active_id, int(serial, 16), "superseded", ACTOR)
    results = run_together(makings)
    assert [type(each) for each in results] == [Issued, SigningFailed, Issued]
    assert states(authority) == [ISSUED, ISSUED, REVOKED]
    assert authority.ledger.verify_audit().whole
