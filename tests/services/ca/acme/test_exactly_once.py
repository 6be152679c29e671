"""An order gets one certificate, whoever finalizes it at once and whoever dies on the way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from services.ca.acme.orders import LEASE
from services.ca.authority import Authority
from services.ca.states import ISSUED, PENDING, REVOKED
from services.core import schema
from services.core.database import Unavailable
from tests.services.ca.acme.acme_client import (
    BASE,
    Answer,
    Client,
    Server,
    assert_problem,
    binding,
    make_csr,
)

WORKERS = 6


def states_of(server: Server) -> Counter[str]:
    """How many certificates the ledger has, by state."""
    with server.store.database.read() as connection:
        return Counter(connection.execute(select(schema.ca_certificate.c.state)).scalars())


def at_once(jobs: list[Callable[[], Answer]]) -> list[Answer]:
    """Do all of them at the same time."""
    barrier = threading.Barrier(len(jobs))
    answers: list[Answer] = []

    def run(job: Callable[[], Answer]) -> None:
        barrier.wait(20)
        answers.append(job())

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == len(jobs)
    return answers


def test_many_finalize_one_order(any_server: Server) -> None:
    """Of several that finalize one order at once, with different keys, one gets a certificate."""
    client = any_server.client()
    for round_number in range(3):
        name = f"r{round_number}.example.test"
        url, order = client.ready_order(name)
        jobs = []
        for _ in range(WORKERS):
            worker = Client(any_server.worker(), client.key, client.kid)
            csr = make_csr(name)
            jobs.append(lambda w=worker, o=order, c=csr: w.finalize(o, c))
        answers = at_once(jobs)
        assert sorted(each.status for each in answers) == [200] + [403] * (WORKERS - 1)
        for each in answers:
            if each.status == 403:
                assert_problem(each, "orderNotReady", 403)
        assert client.post(url).json["status"] == "valid"
        assert states_of(any_server) == {ISSUED: round_number + 1}
    assert any_server.ledger.verify_audit().whole


def test_one_nonce_at_once(any_server: Server) -> None:
    """Of several requests with one nonce at once, at several workers, one is answered."""
    client = any_server.client()
    nonce = client.nonce()
    workers = [Client(any_server.worker(), client.key, client.kid) for _ in range(WORKERS)]
    url = client.kid or ""
    answers = at_once([lambda w=worker: w.post(url, nonce=nonce) for worker in workers])
    assert sorted(each.status for each in answers) == [200] + [400] * (WORKERS - 1)


def test_one_external_key_at_once(any_server: Server) -> None:
    """A key for one account makes one, however many ask at once."""
    kid, secret = any_server.external()
    jobs = []
    for _ in range(WORKERS):
        client = Client(any_server.worker())
        body = binding(kid, secret, client.jwk, f"{BASE}/new-account")
        jobs.append(lambda c=client, b=body: c.register(externalAccountBinding=b))
    answers = at_once(jobs)
    assert sorted(each.status for each in answers) == [201] + [403] * (WORKERS - 1)


def test_the_same_account_at_once(any_server: Server) -> None:
    """A key that registers several times at once has one account."""
    key = Client(any_server.workers[0]).key
    clients = [Client(any_server.worker(), key) for _ in range(WORKERS)]
    answers = at_once([client.register for client in clients])
    assert sorted(each.status for each in answers) == [200] * (WORKERS - 1) + [201]
    assert len({client.kid for client in clients}) == 1


def test_many_names_validated_at_once(any_server: Server) -> None:
    """An order is ready when the last of its names is valid, in whatever order they end."""
    client = any_server.client()
    names = [f"n{place}.example.test" for place in range(12)]
    for _ in range(2):
        url, _order = client.ready_order(*names)
        assert client.post(url).json["status"] == "ready"


class Killed(BaseException):
    """What ends a worker in the middle: nothing of ours may catch it."""


def dies(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Let the worker die at this point of issuing, once."""

    def killed(*_arguments: Any, **_more: Any) -> Any:
        monkeypatch.undo()
        raise Killed

    if where == "before reserving":
        monkeypatch.setattr(Authority, "_reserve", killed)
    elif where == "before signing":
        monkeypatch.setattr(Authority, "_sign", killed)
    elif where == "before storing":
        monkeypatch.setattr(Authority, "_store", killed)
    else:
        assert where == "before the order"
        whole = Authority._store

        def store(self: Authority, *arguments: Any, **more: Any) -> None:
            whole(self, *arguments, **more)
            killed()

        monkeypatch.setattr(Authority, "_store", store)


DEATHS = {
    "before reserving": {ISSUED: 1},
    # what was reserved can not be given out any more once the order was taken over
    "before signing": {ISSUED: 1, REVOKED: 1},
    "before storing": {ISSUED: 1, REVOKED: 1},
    "before the order": {ISSUED: 1},
}


@pytest.mark.parametrize("where", DEATHS)
def test_a_worker_killed_while_issuing(
    any_server: Server, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Whoever polls after the lease gets the order's one certificate, wherever the worker died."""
    client = any_server.client()
    url, order = client.ready_order("a.example.test")
    csr = make_csr("a.example.test")
    dies(monkeypatch, where)
    with pytest.raises(Killed):
        client.finalize(order, csr)
    client.app = any_server.worker()
    answer = client.post(url)
    assert answer.json["status"] == "processing"
    assert int(answer.header("Retry-After") or "0") > 0
    assert_problem(client.finalize(order, csr), "orderNotReady", 403)
    any_server.clock.offset = LEASE
    workers = [Client(any_server.worker(), client.key, client.kid) for _ in range(WORKERS)]
    answers = at_once([lambda w=worker: w.post(url) for worker in workers])
    assert {each.json["status"] for each in answers} <= {"valid", "processing"}
    order = client.wait(url, "valid")
    assert client.post(order["certificate"]).status == 200
    assert states_of(any_server) == DEATHS[where]
    assert any_server.ledger.verify_audit().whole


def test_a_worker_thought_dead(any_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was only slow gives nothing out after its order was taken over."""
    client = any_server.client()
    url, order = client.ready_order("a.example.test")
    slow, go = threading.Event(), threading.Event()
    whole = Authority._store

    def store(self: Authority, *arguments: Any, **more: Any) -> None:
        monkeypatch.undo()
        slow.set()
        assert go.wait(30)
        whole(self, *arguments, **more)

    monkeypatch.setattr(Authority, "_store", store)
    late: list[Answer] = []
    csr = make_csr("a.example.test")
    sleeper = Client(any_server.worker(), client.key, client.kid)
    thread = threading.Thread(target=lambda: late.append(sleeper.finalize(order, csr)))
    thread.start()
    assert slow.wait(30)
    any_server.clock.offset = LEASE
    client.app = any_server.worker()
    order = client.wait(url, "valid")
    go.set()
    thread.join(30)
    assert late[0].status == 503
    assert states_of(any_server) == {ISSUED: 1, REVOKED: 1}
    assert client.post(url).json["status"] == "valid"


def test_the_database_leaves_while_issuing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database is away the answer is 503 with Retry-After, and nothing is lost."""
    client = server.client()
    url, order = client.ready_order("a.example.test")
    failed = []

    def away(*_arguments: Any, **_more: Any) -> None:
        failed.append(1)
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Authority, "_store", away)
        answer = client.finalize(order, make_csr("a.example.test"))
    assert failed == [1]
    assert_problem(answer, "serverInternal", 503)
    assert answer.header("Retry-After")
    assert client.post(url).json["status"] == "processing"
    server.clock.offset = LEASE
    assert client.wait(url, "valid")
    assert states_of(server)[PENDING] == 0


def test_the_policy_of_now(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order taken over after its account lost the right ends invalid, with the reason."""
    kid, secret = server.external()
    client = Client(server.workers[0])
    body = binding(kid, secret, client.jwk, f"{BASE}/new-account")
    assert client.register(externalAccountBinding=body).status == 201
    url, order = client.ready_order("a.example.test")
    dies(monkeypatch, "before signing")
    with pytest.raises(Killed):
        client.finalize(order, make_csr("a.example.test"))
    assert server.store.delete_external_key(kid)
    server.clock.offset = LEASE
    order = client.wait(url, "invalid")
    assert order["error"]["type"].endswith(":unauthorized")
    assert states_of(server) == {REVOKED: 1}


def test_the_audit_names_the_account(any_server: Server) -> None:
    """What was issued over ACME is in the trail under the account, its address and request id."""
    client = any_server.client()
    client.issue("a.example.test")
    found = [row for row in any_server.ledger.trail(limit=10) if row.entry.action == "issue"]
    assert {row.entry.decision for row in found} == {"intent", "done"}
    account = (client.kid or "").rpartition("/")[2]
    assert {row.entry.actor for row in found} == {f"acme:{account}"}
    assert {row.entry.request_id[:4] for row in found} == {"req-"}
