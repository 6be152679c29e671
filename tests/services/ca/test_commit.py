"""Group commit: many steps in one transaction, each with an outcome of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from services.ca.authority import Actor, Authority, entry
from services.ca.commit import Work
from services.ca.keys import generate_key
from services.ca.request import make_request
from services.ca.states import ISSUED, PENDING
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

    def fail_one(connection: Any, authority_id: str, serial: str, *rest: Any) -> bool:
        failing[:] = failing or [serial]
        if serial == failing[0]:
            raise Unavailable("just this one")
        return complete(connection, authority_id, serial, *rest)

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
    written: list[str] = []

    def work(name: str) -> Work:
        def apply(_connection: Any) -> Any:
            written.append(name)
            return entry(ACTOR, "test", "done", {"name": name}, authority.clock())

        return authority.commits.add(apply)

    def settle(name: str) -> Callable[[], None]:
        return lambda: authority.commits.settle(work(name))

    threads = [threading.Thread(target=settle(f"step {place}")) for place in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(written) == sorted(f"step {place}" for place in range(24))
    assert authority.ledger.verify_audit().entries == 24
