"""The instances that one worker holds in memory, with the pages it has rendered for them.

A request costs one look for changes (services.core.revision) and two dictionary look-ups. What
changed is forgotten before the next answer, in every worker. While the database is away, what is
held goes on being served for ``stale_limit`` seconds, and what is not held is Unavailable, never
unknown: an instance that asks too early must ask again, not conclude that it has no metadata.

Memory: ``limit`` bytes of what is held, by an estimate that counts each instance's document, user
data and rendered pages. The least recently read instances leave first.
"""

import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from services.core.database import Unavailable
from services.core.revision import NOTHING, Changes, RevisionWatch
from services.metadata.model import Instance
from services.metadata.pages import Page, Settings
from services.metadata.store import Record, Store
from services.metadata.tree import Tree

INSTANCE_BYTES = 8 * 1024
"""Size of an instance with one interface and one key, its tree and no page (tests measure it)."""

PAGE_BYTES = 400
"""Measured size of a page without its body: path, headers, dictionary entry."""

WARM_SHARE = 0.5
"""Part of the limit that warm() fills: the rest is for the pages that instances will ask for."""

FOLLOW_SECONDS = 0.25
"""Time between two looks for instances that are new or changed, to have them ready: an instance is
created seconds before it boots."""

FOLLOW_PAUSE = 0.002
"""Seconds between two instances that are read ahead."""

FOLLOWED = 10_000
"""Changed instances that wait to be read ahead; beyond that they are read when they ask."""


class Known:
    """An instance in memory. ``pages`` maps a canonical PATH_INFO to what is sent for it."""

    __slots__ = ("hosts", "id", "instance", "pages", "project_id", "size", "tree", "unguarded")

    def __init__(self, instance: Instance, settings: Settings) -> None:
        self.instance = instance
        self.id = instance.id
        self.project_id = instance.project_id
        self.hosts = (instance.host, instance.next_host)
        # Nothing to check when a request shows no token.
        options = instance.options
        self.unguarded = options.http_endpoint and not options.http_tokens_required
        self.tree = Tree(instance, settings)
        # All that a boot asks for, at once: page by page, between requests of others, it takes
        # several times as long.
        self.pages: dict[str, Page] = dict(self.tree.boot())
        self.size = INSTANCE_BYTES + len(instance.user_data or b"")
        self.size += sum(self.cost(page) for page in self.pages.values())

    def cost(self, page: Page) -> int:
        """Bytes that a page takes here; one that is the user data itself shares its bytes."""
        return PAGE_BYTES + (0 if page.body is self.instance.user_data else len(page.body))


class Cache:
    """Instances by id, and ids by address for the flat mode; safe for threads."""

    def __init__(
        self,
        store: Store,
        watch: RevisionWatch,
        settings: Settings,
        *,
        limit: int,
        stale_limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._watch = watch
        self._settings = settings
        self._limit = limit
        self._stale_limit = stale_limit
        self._clock = clock
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._addresses: dict[str, str] = {}
        self._changed: deque[str] = deque(maxlen=FOLLOWED)
        self._size = 0
        self._fresh = clock()
        self._generation = 0
        self._lock = threading.RLock()

    @property
    def size(self) -> int:
        """Bytes held, by the estimate that the limit applies to."""
        return self._size

    def __len__(self) -> int:
        return len(self._known)

    def find(self, instance_id: str) -> Known | None:
        """Return the instance as it is now; None if there is none. Raises Unavailable."""
        with self._lock:
            if self._watch.unchanged():
                away = None
                self._fresh = self._clock()
            else:
                away = self._look()
            known = self._known.get(instance_id)
            if known is not None:
                if away is not None and self._clock() - self._fresh > self._stale_limit:
                    raise away
                # The order matters only when something may soon have to leave.
                if self._size > self._limit * WARM_SHARE:
                    self._known.move_to_end(instance_id)
                return known
            if away is not None:
                raise away
            generation = self._generation
        record = self._store.load(instance_id)
        return None if record is None else self._hold(record, generation)

    def find_by_address(self, address: str) -> Known | None:
        """Return the one instance that has this address; None if none or several have it.

        Several happens with tenants of equal addresses, whom the address alone cannot tell apart.
        """
        with self._lock:
            away = self._look()
            instance_id = self._addresses.get(address)
            generation = self._generation
        if instance_id is None:
            if away is not None:
                raise away
            found = self._store.identity_by_address(address)
            if len(found) != 1:
                return None
            instance_id = found[0][0]
            with self._lock:
                if generation == self._generation:
                    if len(self._addresses) >= self._limit // INSTANCE_BYTES:
                        self._addresses.clear()
                    self._addresses[address] = instance_id
        return self.find(instance_id)

    def keep(self, known: Known, path: str, page: Page) -> None:
        """Keep a rendered page; ``path`` must be canonical, or the pages have no bound."""
        with self._lock:
            if self._known.get(known.id) is not known or path in known.pages:
                return
            known.pages[path] = page
            added = known.cost(page)
            known.size += added
            self._size += added
            self._shrink()

    def warm(self) -> int:
        """Hold what fits into part of the limit, before anybody asks; returns how many are held.

        So a worker that began before the database went away knows the instances of its site.
        """
        after = ""
        with self._lock:
            away = self._look()
            if away is not None:
                return len(self._known)
            generation = self._generation
        while self._size < self._limit * WARM_SHARE:
            records = self._store.load_many(after, 100)
            if not records:
                break
            for record in records:
                self._hold(record, generation)
                if self._size >= self._limit * WARM_SHARE:
                    break
            after = records[-1].instance.id
        return len(self._known)

    def follow(self, ended: threading.Event) -> None:
        """Read new and changed instances ahead of their questions, until ``ended``; for a thread.

        Nothing rests on it: what it has not read yet is read when it is asked for.
        """
        while not ended.wait(FOLLOW_SECONDS):
            with self._lock:
                self._look()
            while self._changed and self._size < self._limit * WARM_SHARE:
                with contextlib.suppress(Unavailable, IndexError):
                    self.find(self._changed.popleft())
                # Whoever asks now comes first: reading one takes half a millisecond.
                if ended.wait(FOLLOW_PAUSE):
                    return

    def unavailable(self) -> str | None:
        """Say why this worker cannot see the database; None if it can (the readiness check)."""
        with self._lock:
            away = self._look()
        return None if away is None else f"the database is not available: {away}"

    def _look(self) -> Unavailable | None:
        try:
            changes = self._watch.poll()
        except Unavailable as error:
            return error
        if changes is not NOTHING:
            self._forget(changes)
        self._fresh = self._clock()
        return None

    def _forget(self, changes: Changes) -> None:
        self._generation += 1
        self._addresses.clear()
        if changes.everything:
            self._known.clear()
            self._size = 0
            return
        for kind, object_id in changes.objects:
            if kind == "instance":
                self._drop(object_id)
                self._changed.append(object_id)

    def _hold(self, record: Record, generation: int) -> Known:
        known = Known(record.instance, self._settings)
        with self._lock:
            # What changed while we read is unknown to us: serve this once, read again next time.
            if generation == self._generation:
                self._drop(known.id)
                self._known[known.id] = known
                self._size += known.size
                self._shrink()
        return known

    def _drop(self, instance_id: str) -> None:
        old = self._known.pop(instance_id, None)
        if old is not None:
            self._size -= old.size

    def _shrink(self) -> None:
        while self._size > self._limit and len(self._known) > 1:
            _, old = self._known.popitem(last=False)
            self._size -= old.size
