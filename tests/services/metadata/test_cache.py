"""What a worker holds: bounded, fresh, and served when the database is not."""

from collections.abc import Iterator
from typing import Any

import pytest

from services.core.database import Database, Unavailable
from services.core.revision import EVERYTHING, NOTHING, Changes
from services.metadata import cache as cache_module
from services.metadata.cache import INSTANCE_BYTES, Cache
from services.metadata.model import Instance
from services.metadata.pages import Page, Settings
from services.metadata.store import Store


class ScriptedWatch:
    """Says what the test wants: stands for the revision watch to inject its failures."""

    def __init__(self) -> None:
        self.says: Changes | Unavailable = NOTHING

    def poll(self) -> Changes:
        if isinstance(self.says, Unavailable):
            raise self.says
        said, self.says = self.says, NOTHING
        return said


def name(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    database = Database(sqlite_url)
    store = Store(database)
    for number in range(10):
        store.create(
            Instance.from_document({"id": name(number), "project_id": "p", "name": str(number)})
        )
    yield store
    database.close()


def make(store: Store, limit: int = 1 << 20, **options: Any) -> tuple[Cache, ScriptedWatch]:
    watch = ScriptedWatch()
    options.setdefault("stale_limit", 10.0)
    return Cache(store, watch, Settings(), limit=limit, **options), watch  # type: ignore[arg-type]  # scripted


def test_memory_stays_below_the_limit(store: Store) -> None:
    """However many instances ask for however many pages, what is held stays within the limit."""
    limit = 4 * INSTANCE_BYTES
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
    cache, _ = make(store, 3 * INSTANCE_BYTES)
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
    assert cache.size == INSTANCE_BYTES
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
    cache, watch = make(store, 10 * INSTANCE_BYTES)
    assert cache.warm() == 5
    watch.says = Unavailable("frozen")
    assert cache.find(name(0)) is not None


def test_an_unknown_instance_is_not_remembered(store: Store) -> None:
    """An id without an instance costs no memory, and is found as soon as it exists."""
    cache, _ = make(store)
    assert cache.find(name(99)) is None
    assert cache.size == 0
    store.create(Instance.from_document({"id": name(99), "project_id": "p", "name": "late"}))
    assert cache.find(name(99)) is not None
