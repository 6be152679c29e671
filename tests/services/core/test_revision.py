"""What a reader is told of changes, on both engines."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from services.core import revision, schema
from services.core.database import Database, Unavailable
from services.core.revision import EVERYTHING, NOTHING, Changes, RevisionWatch


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def watch(database: Database) -> Iterator[RevisionWatch]:
    watch = RevisionWatch(database)
    yield watch
    watch.close()


def change(database: Database, *names: str) -> None:
    with database.write() as writer:
        for name in names:
            writer.changed("instance", name, "put", "host:a")


def next_change(watch: RevisionWatch) -> Changes:
    """What poll() says as soon as it says anything; PostgreSQL's notification takes a moment."""
    deadline = time.monotonic() + 2 * revision.POLL_SECONDS
    while time.monotonic() < deadline:
        changes = watch.poll()
        if changes != NOTHING:
            return changes
        time.sleep(0.01)
    return NOTHING


def test_the_first_poll_forgets_everything(watch: RevisionWatch) -> None:
    """Whatever was read before the first look may be old."""
    assert watch.poll() == EVERYTHING
    assert watch.poll() == NOTHING


def test_a_change_is_named_once(database: Database, watch: RevisionWatch) -> None:
    """A reader is told which objects changed, and not told again."""
    watch.poll()
    change(database, "a", "b")
    assert next_change(watch).objects == {("instance", "a"), ("instance", "b")}
    assert watch.poll() == NOTHING


def certain(watch: RevisionWatch) -> bool:
    """Whether two polls and a moment are enough for the watch to be certain without asking."""
    deadline = time.monotonic() + 2 * revision.POLL_SECONDS
    while time.monotonic() < deadline:
        if watch.poll() == NOTHING and watch.unchanged():
            return True
    return False


def test_certainty_ends_with_a_change(database: Database, watch: RevisionWatch) -> None:
    """Nobody is certain before the first look, nor after a change until it has been told."""
    assert not watch.unchanged()
    watch.poll()
    assert certain(watch)
    change(database, "a")
    deadline = time.monotonic() + 2 * revision.POLL_SECONDS
    while watch.unchanged() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not watch.unchanged()
    assert not watch.unchanged()
    assert watch.poll().objects == {("instance", "a")}
    assert certain(watch)


def test_a_change_that_could_not_be_read_is_not_forgotten(
    database: Database, watch: RevisionWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that noticed a change and failed to read it leaves no certainty behind."""
    watch.poll()
    assert certain(watch)
    change(database, "a")
    failures = []

    def fail() -> None:
        failures.append(1)
        raise Unavailable("injected")

    deadline = time.monotonic() + 2 * revision.POLL_SECONDS
    with monkeypatch.context() as patch:
        patch.setattr(database, "read", fail)
        while not failures and time.monotonic() < deadline:
            with contextlib.suppress(Unavailable):
                watch.poll()
        assert failures
        assert not watch.unchanged()
    assert watch.poll().objects == {("instance", "a")}


def test_certainty_does_not_survive_a_fork(database: Database, watch: RevisionWatch) -> None:
    """A child has neither the connection nor the thread: it looks anew."""
    watch.poll()
    assert certain(watch)
    child = os.fork()
    if child == 0:
        os._exit(watch.unchanged())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert watch.poll() == NOTHING


def test_changes_add_up(database: Database, watch: RevisionWatch) -> None:
    """Several revisions between two looks are one answer that misses none."""
    watch.poll()
    change(database, "a")
    change(database, "b")
    change(database, "a")
    seen: set[tuple[str, str]] = set()
    deadline = time.monotonic() + 2 * revision.POLL_SECONDS
    while len(seen) < 2 and time.monotonic() < deadline:
        seen |= watch.poll().objects
    assert seen == {("instance", "a"), ("instance", "b")}


def test_compacted_changes_mean_everything(database: Database, watch: RevisionWatch) -> None:
    """A reader who is behind what is kept must forget everything, not miss the gap."""
    watch.poll()
    with database.write() as writer:
        writer.connection.execute(update(schema.revision).values(number=10))
        writer.connection.execute(delete(schema.change))
        writer.changed("instance", "late", "put", "host:a")
    assert next_change(watch).everything


def test_a_restored_database_means_everything(database: Database, watch: RevisionWatch) -> None:
    """Another epoch is another history: nothing known is kept, whatever the number says."""
    watch.poll()
    with database.write() as writer:
        writer.connection.execute(update(schema.revision).values(epoch="f" * 32))
        writer.changed("instance", "a", "put", "host:a")
    assert next_change(watch).everything


def test_sqlite_sees_a_commit_at_the_very_next_look(sqlite_url: str) -> None:
    """On SQLite there is no moment in which an answered write is not seen."""
    database = Database(sqlite_url)
    watch = RevisionWatch(database)
    watch.poll()
    for turn in range(50):
        change(database, str(turn))
        assert watch.poll().objects == {("instance", str(turn))}
    watch.close()
    database.close()


WRITER = """
import sys
from services.core.database import Database
database = Database(sys.argv[1])
for line in sys.stdin:
    with database.write() as writer:
        writer.changed("instance", line.strip(), "put", "host:a")
    print("done", flush=True)
"""


def test_sqlite_sees_another_process_at_the_very_next_look(sqlite_url: str) -> None:
    """The same for a writer elsewhere; between writes the look says that nothing changed."""
    database = Database(sqlite_url)
    watch = RevisionWatch(database)
    watch.poll()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, sqlite_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        # Beyond 1000 pages SQLite starts its log anew, which changes the shared memory otherwise.
        for turn in range(300):
            writer.stdin.write(f"{turn}\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "done\n"
            assert watch.poll().objects == {("instance", str(turn))}
            assert watch.poll() == NOTHING
        writer.stdin.close()
    # The writer was the last of its process; its end takes nothing from us.
    change(database, "after")
    assert watch.poll().objects == {("instance", "after")}
    watch.close()
    database.close()


def test_sqlite_without_its_shared_memory_is_asked(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the shared memory is not as we know it, every look asks the database."""
    monkeypatch.setattr(revision, "WAL_INDEX_FORMAT", 0)
    database = Database(sqlite_url)
    watch = RevisionWatch(database)
    watch.poll()
    for turn in range(5):
        change(database, str(turn))
        assert watch.poll().objects == {("instance", str(turn))}
        assert watch.poll() == NOTHING
    watch.close()
    database.close()


def test_a_replaced_sqlite_file_is_read_anew(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file put in place of another is noticed; while there is none, the look says so."""
    monkeypatch.setattr(revision, "FILE_SECONDS", 0.0)
    database = Database(sqlite_url)
    watch = RevisionWatch(database)
    watch.poll()
    path = database.sqlite_path
    assert path is not None
    away = Path(f"{path}.away")
    database.close()
    path.rename(away)
    with pytest.raises(Unavailable):
        watch.poll()
    away.rename(path)
    change(database, "a")
    assert watch.poll().objects == {("instance", "a")}
    watch.close()
    database.close()


def test_a_silent_postgresql_is_unavailable(tmp_path: Path) -> None:
    """A server that does not answer is noticed by our own clock."""
    database = Database(f"postgresql+psycopg://mooring@/x?host={tmp_path}")
    watch = RevisionWatch(database)
    with pytest.raises(Unavailable, match="not been heard"):
        watch.poll()
    watch.close()
    database.close()
