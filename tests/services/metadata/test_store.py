"""The store on both engines: what is kept, who wins a race, who is told."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from services.core import schema
from services.core.database import Database, Unavailable
from services.metadata.model import Instance
from services.metadata.store import (
    KIND,
    PASSWORD_KIND,
    Filters,
    Missing,
    Stale,
    Store,
    Stored,
    Taken,
)

ONE = "11111111-1111-4111-8111-111111111111"
TWO = "22222222-2222-4222-8222-222222222222"
THREE = "33333333-3333-4333-8333-333333333333"


def make(instance_id: str = ONE, address: str | None = "10.1.0.4", **values: Any) -> Instance:
    """An instance of project p1 with one interface in network net-1."""
    document: dict[str, Any] = {"id": instance_id, "project_id": "p1", "name": "web", **values}
    if address is not None:
        document["interfaces"] = [
            {
                "network_id": values.pop("network_id", "net-1"),
                "mac": "fa:16:3e:00:00:01",
                "subnets": [
                    {"cidr": "10.1.0.0/24", "addresses": [{"ip_address": address}]},
                ],
            }
        ]
        document.pop("network_id", None)
    return Instance.from_document(document)


def kept(outcome: object) -> Stored:
    """The stored instance of an outcome that has to be one."""
    assert isinstance(outcome, Stored)
    return outcome


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A store over a new database of each engine."""
    database = Database(database_url)
    yield Store(database)
    database.close()


def changes(store: Store) -> list[tuple[int, str, str, str, str]]:
    """Every change so far: revision, kind, object, operation, scope."""
    table = schema.change
    with store.database.read() as connection:
        rows = connection.execute(
            select(
                table.c.revision,
                table.c.kind,
                table.c.object_id,
                table.c.operation,
                table.c.scope,
            ).order_by(table.c.revision, table.c.ordinal)
        ).all()
    return [tuple(row) for row in rows]


def test_a_created_instance_comes_back_equal_with_its_user_data(store: Store) -> None:
    """What is created is read back unchanged, user data byte for byte."""
    instance = make(
        user_data="H4sIAAAAAAAA/w==",
        vendor_data={"a": [1, 1.5, True, None, "ü"]},
        properties={"role": "wéb"},
        host="node-1",
    )
    created = kept(store.create(instance))
    assert created.version == 1
    assert created.user_data_size == 10
    assert store.get(ONE) == created
    assert store.get(TWO) is None


def test_a_taken_id_is_refused_and_changes_nothing(store: Store) -> None:
    """The second instance of an id is refused with the field, the first stays as it was."""
    first = kept(store.create(make()))
    outcome = store.create(make(name="thief", address="10.1.0.5"))
    assert outcome == Taken("/id", "the id is taken")
    assert store.get(ONE) == first
    assert len(changes(store)) == 1


def test_a_taken_address_is_refused_with_its_pointer_and_without_its_owner(store: Store) -> None:
    """An address belongs to one instance of a network; the refusal does not say to whose."""
    store.create(make(project_id="p2", name="secret-name"))
    outcome = store.create(make(TWO))
    assert outcome == Taken(
        "/interfaces/0/subnets/0/addresses/0/ip_address", "10.1.0.4 is taken in network net-1"
    )
    assert store.get(TWO) is None
    assert isinstance(store.create(make(TWO, network_id="net-2")), Stored)


def test_replacing_frees_old_addresses_and_takes_new_ones(store: Store) -> None:
    """An address that an instance gave up is free at once, one that it took is not."""
    first = kept(store.create(make()))
    second = kept(store.replace(first, make(address="10.1.0.5")))
    assert (second.version, second.created_at) == (2, first.created_at)
    assert isinstance(store.create(make(TWO, "10.1.0.4")), Stored)
    assert isinstance(store.create(make(THREE, "10.1.0.5")), Taken)
    assert isinstance(store.replace(second, make(address="10.1.0.4")), Taken)
    assert store.get(ONE) == second


def test_the_same_content_changes_nothing(store: Store) -> None:
    """Replacing by the same content raises neither version nor revision; true is not 1."""
    first = kept(store.create(make(vendor_data={"a": 1})))
    assert store.replace(first, make(vendor_data={"a": 1})) == first
    assert len(changes(store)) == 1
    assert kept(store.replace(first, make(vendor_data={"a": True}))).version == 2


def test_a_change_made_from_an_old_state_is_refused(store: Store) -> None:
    """Of two changes made from one state the second is refused, and so is a deletion."""
    first = kept(store.create(make()))
    second = kept(store.replace(first, make(name="two")))
    assert store.replace(first, make(name="three")) == Stale()
    assert store.delete(first) == Stale()
    assert store.get(ONE) == second
    assert store.delete(second) is None
    assert store.delete(second) == Stale()
    again = kept(store.create(make()))
    assert again.version == first.version
    assert again.etag != first.etag
    assert store.replace(first, make(name="four")) == Stale()


def test_deletion_takes_addresses_and_password_along(store: Store) -> None:
    """A deleted instance's addresses are free, and its successor has no password."""
    first = kept(store.create(make()))
    store.set_password(ONE, b"secret")
    assert store.delete(first) is None
    assert store.get(ONE) is None
    assert store.identity_by_address("10.1.0.4") == []
    store.create(make())
    assert store.password(ONE) is None


def test_every_host_that_a_change_concerns_is_told(store: Store) -> None:
    """A move tells the old host and the new one; without a host the project is told."""
    stored = kept(store.create(make()))
    for values in (
        {"host": "a"},
        {"host": "a", "next_host": "b"},
        {"host": "b"},
        {},
    ):
        stored = kept(store.replace(stored, make(**values)))
    store.delete(stored)
    assert changes(store) == [
        (1, KIND, ONE, "put", "project:p1"),
        (2, KIND, ONE, "put", "host:a"),
        (3, KIND, ONE, "put", "host:a"),
        (3, KIND, ONE, "put", "host:b"),
        (4, KIND, ONE, "delete", "host:a"),
        (4, KIND, ONE, "put", "host:b"),
        (5, KIND, ONE, "delete", "host:b"),
        (5, KIND, ONE, "put", "project:p1"),
        (6, KIND, ONE, "delete", "project:p1"),
    ]


def test_a_password_is_set_once_until_it_is_reset(store: Store) -> None:
    """The second password is refused until an operator has reset the first; each is a change."""
    store.create(make(host="a"))
    assert store.password(ONE) is None
    assert store.reset_password(ONE) is False
    set_at = store.set_password(ONE, b"\xff\x00first")
    assert store.password(ONE) == set_at
    assert isinstance(store.set_password(ONE, b"second"), Taken)
    assert store.password(ONE) == set_at
    assert store.reset_password(ONE) is True
    assert store.password(ONE) is None
    assert [change[1:] for change in changes(store)[1:]] == [
        (PASSWORD_KIND, ONE, "put", "host:a"),
        (PASSWORD_KIND, ONE, "delete", "host:a"),
    ]
    assert store.set_password(TWO, b"x") == Missing()
    assert store.reset_password(TWO) == Missing()
    for bad in (b"", b"x" * 1021):
        with pytest.raises(ValueError, match="1 to 1020 bytes"):
            store.set_password(ONE, bad)


def test_records_carry_the_revision_they_were_read_at(store: Store) -> None:
    """A cache entry says up to which revision it is good."""
    store.create(make(user_data="aGk="))
    store.create(make(TWO, None))
    record = store.load(ONE)
    assert record is not None
    assert (record.instance, record.version, record.revision) == (
        make(user_data="aGk="),
        1,
        2,
    )
    assert len(record.epoch) == 32
    assert store.load(THREE) is None
    assert [r.instance.id for r in store.load_many()] == [ONE, TWO]
    assert [r.instance.id for r in store.load_many(ONE)] == [TWO]
    assert [r.instance.id for r in store.load_many(limit=1)] == [ONE]


def test_an_address_identifies_every_instance_that_has_it(store: Store) -> None:
    """One address in two networks is two identities, for the caller to refuse."""
    store.create(make())
    store.create(make(TWO, network_id="net-2", project_id="p2"))
    assert store.identity_by_address("10.1.0.4") == [(ONE, "p1"), (TWO, "p2")]
    assert store.identity_by_address("10.1.0.9") == []


def ids(store: Store, **filters: Any) -> list[str]:
    """The ids that a list with these filters holds."""
    page = store.list(Filters(**filters), 100)
    assert page is not None
    return [item.instance.id for item in page.items]


def test_each_filter_narrows_the_list(store: Store) -> None:
    """Every filter finds what it names and nothing else, also with awkward characters."""
    store.create(
        make(
            host="a",
            tags={"role": "web", "a.b": 'x"%_'},
            availability_zone="z1",
            hostname="web.example",
        )
    )
    store.create(make(TWO, "10.1.0.5", next_host="a", name="db", tags={"role": "db"}))
    other = make(THREE, None, project_id="p2", vendor_data={"network_id": "net-1"})
    store.create(other)
    assert ids(store) == [ONE, TWO, THREE]
    assert ids(store, project_id="p2") == [THREE]
    assert ids(store, host="a") == [ONE, TWO]
    assert ids(store, name="db") == [TWO]
    assert ids(store, hostname="web.example") == [ONE]
    assert ids(store, availability_zone="z1") == [ONE]
    assert ids(store, address="10.1.0.5") == [TWO]
    assert ids(store, network_id="net-1") == [ONE, TWO]
    assert ids(store, network_id="net-1", address="10.1.0.4") == [ONE]
    assert ids(store, network_id="net-2", address="10.1.0.4") == []
    assert ids(store, tags=(("role", None),)) == [ONE, TWO]
    assert ids(store, tags=(("role", "db"),)) == [TWO]
    assert ids(store, tags=(("role", "web"), ("a.b", 'x"%_'))) == [ONE]
    assert ids(store, tags=(("a", None),)) == []
    assert ids(store, visible_projects=("p2",)) == [THREE]
    assert ids(store, visible_projects=("p1", "p2"), name="web") == [ONE, THREE]
    assert ids(store, visible_projects=()) == []
    assert ids(store, visible_projects=(), visible_host="a") == [ONE, TWO]
    assert ids(store, visible_host="b") == []


def test_a_list_is_paged_without_loss_while_instances_are_deleted(store: Store) -> None:
    """Pages go on from where they were although the instance at the boundary is gone."""
    for number in range(7):
        store.create(make(f"{number:08d}-1111-4111-8111-111111111111", None, user_data="aGk="))
    seen: list[str] = []
    marker: str | None = None
    while True:
        page = store.list(Filters(), 2, marker)
        assert page is not None
        for item in page.items:
            assert item.instance.user_data is None
            assert item.user_data_size == 2
            seen.append(item.instance.id)
            whole = store.get(item.instance.id)
            assert whole is not None
            assert store.delete(whole) is None
        marker = page.marker
        if marker is None:
            break
    assert seen == [f"{number:08d}-1111-4111-8111-111111111111" for number in range(7)]


def test_an_id_is_a_marker_only_while_it_exists(store: Store) -> None:
    """A marker that is an id means the instances after it; an unknown one is said to be so."""
    store.create(make())
    store.create(make(TWO, None))
    page = store.list(Filters(), 10, ONE)
    assert page is not None
    assert [item.instance.id for item in page.items] == [TWO]
    assert store.list(Filters(), 10, THREE) is None


def _race(url: str, number: int, start: Any, results: Any, what: str) -> None:
    store = Store(Database(url))
    start.wait(30)
    if what == "password":
        outcome: object = store.set_password(ONE, f"from {number}".encode())
    elif what == "address":
        outcome = store.create(make(f"{number:08d}-1111-4111-8111-111111111111", "10.1.0.9"))
    else:
        outcome = store.create(make(TWO, f"10.1.0.{number + 10}"))
    results.put((number, type(outcome).__name__))


@pytest.mark.parametrize("what", ["password", "address", "id"])
def test_of_racing_processes_exactly_one_wins(store: Store, database_url: str, what: str) -> None:
    """Four processes that want the same thing at once: one gets it, three are told Taken."""
    store.create(make())
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    racers = [
        context.Process(target=_race, args=(database_url, number, start, results, what))
        for number in range(4)
    ]
    for racer in racers:
        racer.start()
    start.set()
    outcomes = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join(timeout=60)
        assert racer.exitcode == 0
    won = [number for number, outcome in outcomes.items() if outcome in ("Password", "Stored")]
    assert len(won) == 1
    assert sorted(outcomes.values())[-3:] == ["Taken"] * 3
    if what == "password":
        password = store.password(ONE)
        assert password is not None
        assert password.data == f"from {won[0]}".encode()


def test_of_racing_changes_from_one_state_exactly_one_wins(store: Store) -> None:
    """Eight threads change and delete what each has read: one does, the others are Stale."""
    first = kept(store.create(make()))
    barrier = threading.Barrier(8)
    outcomes: list[object] = []

    def run(number: int) -> None:
        barrier.wait(30)
        if number == 0:
            outcomes.append(store.delete(first))
        else:
            outcomes.append(store.replace(first, make(name=f"name-{number}")))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 8
    assert sum(isinstance(outcome, Stale) for outcome in outcomes) == 7
    assert len(changes(store)) == 2


METHODS: list[Callable[[Store], object]] = [
    lambda store: store.get(ONE),
    lambda store: store.create(make()),
    lambda store: store.list(Filters(), 10),
    lambda store: store.load(ONE),
    lambda store: store.load_many(),
    lambda store: store.identity_by_address("10.1.0.4"),
    lambda store: store.password(ONE),
    lambda store: store.set_password(ONE, b"x"),
    lambda store: store.reset_password(ONE),
]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_when_the_database_is_away(
    tmp_path: Path, method: Callable[[Store], object]
) -> None:
    """Without its database the store raises Unavailable, whatever is asked."""
    store = Store(Database(f"sqlite:///{tmp_path}/missing.db"))
    with pytest.raises(Unavailable):
        method(store)
