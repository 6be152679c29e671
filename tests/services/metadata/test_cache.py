"""What a worker holds: bounded, fresh, and served when the database is not."""

import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from services.core.database import Database, Unavailable
from services.core.revision import EVERYTHING, NOTHING, Changes
from services.metadata import cache as cache_module
from services.metadata.cache import Cache, Known
from services.metadata.model import Instance
from services.metadata.pages import Page, Settings
from services.metadata.store import Store


class ScriptedWatch:
    """Says what the test wants: stands for the revision watch to inject its failures."""

    def __init__(self) -> None:
        self.says: Changes | Unavailable = NOTHING

    def unchanged(self) -> bool:
        """Never certain: each look is a poll."""
        return False

    def poll(self) -> Changes:
        if isinstance(self.says, Unavailable):
            raise self.says
        said, self.says = self.says, NOTHING
        return said


def instance(number: int) -> Instance:
    return Instance.from_document({"id": name(number), "project_id": "p", "name": str(number)})


def name(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


ONE = Known(instance(0), Settings()).size
"""Bytes that one of these instances is counted with."""


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    database = Database(sqlite_url)
    store = Store(database)
    for number in range(10):
        store.create(instance(number))
    yield store
    database.close()


def make(store: Store, limit: int = 1 << 20, **options: Any) -> tuple[Cache, ScriptedWatch]:
    watch = ScriptedWatch()
    options.setdefault("stale_limit", 10.0)
    return Cache(store, watch, Settings(), limit=limit, **options), watch  # type: ignore[arg-type]  # scripted


def test_memory_stays_below_the_limit(store: Store) -> None:
    """However many instances ask for however many pages, what is held stays within the limit."""
    limit = 4 * ONE
    cache, _ = make(store, limit)
    for turn in range(3):
        for number in range(10):
            known = cache.find(name(number))
            assert known is not None
            for page in range(5):
                cache.keep(known, f"/{turn}/{page}", Page.of(b"x" * 1000, "text/plain"))
                assert cache.size <= limit
    assert 1 <= len(cache) <= 4


def test_the_least_recently_read_leave_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that goes on asking stays."""
    cache, _ = make(store, 3 * ONE)
    first = cache.find(name(0))
    for number in range(1, 10):
        cache.find(name(number))
        assert cache.find(name(0)) is first


def test_the_size_is_the_sum_of_what_is_held(store: Store) -> None:
    """Dropping what was added leaves nothing counted."""
    cache, watch = make(store)
    known = cache.find(name(1))
    assert known is not None
    cache.keep(known, "/a", Page.of(b"x" * 1000, "text/plain"))
    cache.keep(known, "/a", Page.of(b"x" * 1000, "text/plain"))
    assert cache.size == known.size
    watch.says = Changes(False, frozenset({("instance", name(1))}))
    cache.find(name(2))
    assert cache.size == ONE
    watch.says = EVERYTHING
    cache.find(name(2))
    assert len(cache) == 1


def test_a_change_forgets_that_instance_only(store: Store) -> None:
    """What did not change is not read again."""
    cache, watch = make(store)
    one, two = cache.find(name(1)), cache.find(name(2))
    watch.says = Changes(False, frozenset({("instance", name(1)), ("network", name(2))}))
    assert cache.find(name(2)) is two
    assert cache.find(name(1)) is not one


def test_a_page_of_a_forgotten_instance_is_not_kept(store: Store) -> None:
    """A page rendered while its instance changed does not come back later."""
    cache, watch = make(store)
    known = cache.find(name(1))
    assert known is not None
    watch.says = EVERYTHING
    again = cache.find(name(1))
    assert again is not None
    cache.keep(known, "/old", Page.of(b"old", "text/plain"))
    assert "/old" not in again.pages
    assert cache.size == again.size


def test_what_changed_while_it_was_read_is_not_held(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that was read before a change and held after it would stay old for ever."""
    cache, watch = make(store)
    load = Store.load
    hit: list[str] = []

    def slow(self: Store, instance_id: str) -> Any:
        record = load(self, instance_id)
        if not hit:
            hit.append(instance_id)
            watch.says = EVERYTHING
            cache.find(name(2))
        return record

    monkeypatch.setattr(cache_module.Store, "load", slow)
    held = cache.find(name(1))
    assert hit == [name(1)]
    assert cache.find(name(1)) is not held


def test_stale_answers_end(store: Store) -> None:
    """Known instances are served for stale_limit seconds without the database, no longer."""
    now = [1000.0]
    cache, watch = make(store, stale_limit=10.0, clock=lambda: now[0])
    known = cache.find(name(1))
    watch.says = Unavailable("frozen")
    now[0] += 10
    assert cache.find(name(1)) is known
    with pytest.raises(Unavailable):
        cache.find(name(2))
    now[0] += 1
    with pytest.raises(Unavailable):
        cache.find(name(1))
    watch.says = NOTHING
    assert cache.find(name(1)) is known


def test_a_worker_warms_up_to_a_part_of_its_limit(store: Store) -> None:
    """A new worker knows instances before they ask, and leaves room for their pages."""
    cache, watch = make(store, 10 * ONE)
    assert cache.warm() == 5
    watch.says = Unavailable("frozen")
    assert cache.find(name(0)) is not None


def test_an_unknown_instance_is_not_remembered(store: Store) -> None:
    """An id without an instance costs no memory, and is found as soon as it exists."""
    cache, _ = make(store)
    assert cache.find(name(99)) is None
    assert cache.size == 0
    store.create(instance(99))
    assert cache.find(name(99)) is not None


def test_what_a_boot_asks_for_is_ready(store: Store) -> None:
    """An instance that is held has every page of a boot, rendered before the first request."""
    cache, _ = make(store)
    known = cache.find(name(1))
    assert known is not None
    assert known.pages["/openstack/2018-08-27/meta_data.json"].seed_at is not None
    assert known.pages["/latest/meta-data/local-hostname"].body == b"1.novalocal"
    for path, page in known.pages.items():
        assert known.tree.page(path) == page


def test_a_new_instance_is_read_before_it_asks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that follows changes has a new instance ready, and a deleted one gone."""
    monkeypatch.setattr(cache_module, "FOLLOW_SECONDS", 0.001)
    cache, watch = make(store)
    store.create(instance(99))
    gone = store.get(name(1))
    assert gone is not None
    store.delete(gone)
    watch.says = Changes(False, frozenset({("instance", name(99)), ("instance", name(1))}))
    ended = threading.Event()
    thread = threading.Thread(target=cache.follow, args=(ended,))
    thread.start()
    deadline = time.monotonic() + 10
    while len(cache) != 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    ended.set()
    thread.join()
    watch.says = Unavailable("frozen")
    assert cache.find(name(99)) is not None
    with pytest.raises(Unavailable):
        cache.find(name(1))


def test_the_estimate_is_near_the_truth() -> None:
    """What an instance is counted with is at least what Python says it takes, and not twice it."""
    settings = Settings()
    Known(instance(0), settings)
    documents = [instance(number) for number in range(1, 101)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    held = [Known(Instance.from_document(each.to_document()), settings) for each in documents]
    taken = (tracemalloc.get_traced_memory()[0] - before) / len(held)
    tracemalloc.stop()
    counted = sum(known.size for known in held) / len(held)
    assert taken <= counted <= 2 * taken
