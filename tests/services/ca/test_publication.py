"""Publishing lists: numbers, deltas and NGINX's file, over the ledger on both engines."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography import x509
from sqlalchemy import insert, select, update

from services.ca import files, publication
from services.ca.crl import CRL_LIFETIME, build_crl, build_delta, crl_der
from services.ca.hierarchy import create_hierarchy
from services.ca.keystore import Authorities, KeystoreError
from services.ca.ledger import Ledger, ListNumber, serial_text, timestamp
from services.ca.publication import (
    FileRefused,
    Follower,
    NginxFile,
    Periods,
    Publisher,
    ReloadFailed,
    Severity,
    base_number,
    issuer_id,
    nginx_pem,
    publish,
    publisher_from,
    superfluous,
)
from services.ca.states import HELD, ISSUED, REVOKED
from services.core import readiness, schema
from services.core.database import Database, Unavailable

PERIODS = Periods()
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def ledger(database_url):
    database = Database(database_url)
    yield Ledger(database)
    database.close()


@pytest.fixture
def issuer(hierarchy):
    return hierarchy.intermediate


@pytest.fixture
def authority(ledger, issuer):
    """The id of the hierarchy's intermediate, known to the ledger."""
    ledger.register(issuer_id(issuer), issuer.certificate)
    return issuer_id(issuer)


@pytest.fixture
def clock(now):
    return Clock(now)


@pytest.fixture
def directory(hierarchy, tmp_path):
    """A key store's directory, as far as lists need it."""
    files.write_crls(tmp_path / "root.crl", hierarchy.crls()[1])
    return tmp_path


@pytest.fixture
def authorities(hierarchy, directory):
    root_crl = (directory / "root.crl").read_bytes()
    return Authorities(hierarchy.root.certificate, root_crl, hierarchy.intermediate)


@pytest.fixture
def publisher(ledger, authorities, directory, clock, tmp_path):
    """A publisher with a file; its reload command notes each call in `reloads`."""
    command = ("sh", "-c", f"echo x >> {tmp_path}/reloads; test ! -e {tmp_path}/broken")
    nginx = NginxFile(tmp_path / "crl.pem", command)
    return Publisher(ledger, authorities, directory=directory, nginx=nginx, clock=clock)


def add(ledger: Ledger, authority: str, serial: int, now: datetime, life=30 * DAY) -> None:
    """An issued certificate in the ledger."""
    with ledger.database.write() as writer:
        writer.connection.execute(
            insert(schema.ca_certificate).values(
                authority_id=authority,
                serial=serial_text(serial),
                state=ISSUED,
                profile="client",
                subject="CN=x",
                common_name="x",
                names="[]",
                key_id="",
                tbs_digest="",
                fingerprint=f"{authority[:24]}{serial:040x}",
                not_before=timestamp(now),
                not_after=timestamp(now + life),
                created_at=timestamp(now),
                requested_by="x",
            )
        )


def set_state(ledger, authority, serial, state, now, reason=None) -> None:
    with ledger.database.write() as writer:
        ledger.set_state(
            writer.connection,
            authority,
            serial_text(serial),
            state,
            at=None if state == ISSUED else timestamp(now),
            reason=reason,
        )


def revoke(ledger, authority, serial, now, reason="keyCompromise") -> None:
    set_state(ledger, authority, serial, REVOKED, now, reason)


def entries(der: bytes) -> dict[int, str]:
    """Serial to reason of a list."""
    return {
        each.serial_number: next(
            (e.value.reason.value for e in each.extensions if isinstance(e.value, x509.CRLReason)),
            "unspecified",
        )
        for each in x509.load_der_x509_crl(der)
    }


def number_of(der: bytes) -> int:
    crl = x509.load_der_x509_crl(der)
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def base_of(der: bytes) -> int:
    crl = x509.load_der_x509_crl(der)
    extension = crl.extensions.get_extension_for_class(x509.DeltaCRLIndicator)
    assert extension.critical
    return extension.value.crl_number


# ---- lists --------------------------------------------------------------------------------------


def test_the_first_publication_is_a_complete_list_and_a_delta(ledger, issuer, authority, now):
    """Both have one number, at least the Unix time; the delta is to a list that was issued."""
    made = publish(ledger, issuer, now=now, periods=PERIODS)
    number = number_of(made.complete.der)
    assert number == made.complete.number == made.delta.number == number_of(made.delta.der)
    assert number >= int(now.timestamp())
    with ledger.database.read() as connection:
        kept = [each.number for each in ledger.crl_numbers(connection, authority)]
    assert kept == [base_of(made.delta.der), number]
    assert ledger.latest_crl(authority) == made.complete
    assert ledger.latest_crl(authority, delta=True) == made.delta


def test_nothing_is_published_twice(ledger, issuer, authority, now):
    """Not due: not old, nothing changed."""
    first = publish(ledger, issuer, now=now, periods=PERIODS)
    assert publish(ledger, issuer, now=now + HOUR, periods=PERIODS) is None
    assert ledger.latest_crl(authority) == first.complete


def test_force_and_age_make_a_new_list(ledger, issuer, authority, now):
    """`force`, an interval that is over, and a list that is far in the future."""
    first = publish(ledger, issuer, now=now, periods=PERIODS)
    second = publish(ledger, issuer, now=now, periods=PERIODS, force=True)
    assert second.complete.number == first.complete.number + 1
    third = publish(ledger, issuer, now=now + DAY, periods=PERIODS)
    assert third.complete.number == int((now + DAY).timestamp())
    back = publish(ledger, issuer, now=now, periods=PERIODS)
    assert back.complete.number == third.complete.number + 1


def test_a_revocation_shows_in_both_lists(ledger, issuer, authority, now):
    """Revoked and held certificates with their reasons; the delta has them too."""
    for serial in (7, 8, 9):
        add(ledger, authority, serial, now)
    publish(ledger, issuer, now=now, periods=PERIODS)
    revoke(ledger, authority, 7, now)
    set_state(ledger, authority, 8, HELD, now, "certificateHold")
    made = publish(ledger, issuer, now=now, periods=PERIODS)
    assert entries(made.complete.der) == {7: "keyCompromise", 8: "certificateHold"}
    assert entries(made.delta.der) == entries(made.complete.der)


def test_a_released_certificate_leaves_the_complete_list_and_is_removed_by_the_delta(
    ledger, issuer, authority, now
):
    """RFC 5280 section 5.3.1: removeFromCRL, as long as some list that has not ended shows it."""
    add(ledger, authority, 8, now)
    set_state(ledger, authority, 8, HELD, now, "certificateHold")
    held = publish(ledger, issuer, now=now, periods=PERIODS)
    assert entries(held.complete.der) == {8: "certificateHold"}
    set_state(ledger, authority, 8, ISSUED, now)
    made = publish(ledger, issuer, now=now + HOUR, periods=PERIODS)
    assert entries(made.complete.der) == {}
    assert entries(made.delta.der) == {8: "removeFromCRL"}
    later = publish(ledger, issuer, now=now + 8 * DAY, periods=PERIODS)
    assert entries(later.delta.der) == {}


def test_base_and_delta_together_are_the_complete_list(ledger, issuer, authority, now):
    """Whichever complete list that has not ended a client holds, the delta makes it the newest."""
    for serial in range(1, 30):
        add(ledger, authority, serial, now, life=90 * DAY)
    held: list[tuple[datetime, int, dict[int, str]]] = []
    for step in range(1, 28):
        at = now + step * timedelta(hours=13)
        if step % 3 == 0:
            set_state(ledger, authority, step, HELD, at, "certificateHold")
        elif step % 5 == 0:
            set_state(ledger, authority, step - step % 3, ISSUED, at)
        else:
            revoke(ledger, authority, step, at)
        made = publish(ledger, issuer, now=at, periods=PERIODS)
        whole = entries(made.complete.der)
        changes, base = entries(made.delta.der), base_of(made.delta.der)
        for until, number, old in held:
            if until > at:
                assert base <= number < made.delta.number
                merged = {**old, **changes}
                merged = {s: r for s, r in merged.items() if r != "removeFromCRL"}
                assert merged == whole
        held.append((made.complete.next_update, made.complete.number, whole))


def test_an_entry_stays_one_period_past_the_end_of_its_certificate(ledger, issuer, authority, now):
    """RFC 5280 section 3.3."""
    add(ledger, authority, 7, now, life=DAY)
    revoke(ledger, authority, 7, now)
    for days, listed in ((0, True), (2, True), (8, True), (9, False)):
        made = publish(ledger, issuer, now=now + timedelta(days=days), periods=PERIODS, force=True)
        assert (7 in entries(made.complete.der)) is listed


def test_numbers_rise_after_an_older_database_was_restored(ledger, issuer, authority, now):
    """The copy knows a lower number; the clock makes up for what it forgot."""
    publish(ledger, issuer, now=now, periods=PERIODS)
    with ledger.database.read() as connection:
        (state,) = connection.execute(select(schema.ca_authority)).all()
    for _ in range(5):
        lost = publish(ledger, issuer, now=now, periods=PERIODS, force=True)
    with ledger.database.write() as writer:
        writer.connection.execute(update(schema.ca_authority).values(crl_number=state.crl_number))
        ledger.delete_crls(
            writer.connection, authority, range(state.crl_number + 1, lost.complete.number + 1)
        )
    restored = publish(ledger, issuer, now=now + HOUR, periods=PERIODS, force=True)
    assert restored.complete.number > lost.complete.number


def test_few_older_lists_are_kept(ledger, issuer, authority, now):
    """The first of each day, the newest, and one that has ended; however many were made."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for hours in range(0, 24 * 10, 5):
        publish(ledger, issuer, now=midnight + timedelta(hours=hours), periods=PERIODS, force=True)
    with ledger.database.read() as connection:
        kept = ledger.crl_numbers(connection, authority)
    assert 8 <= len(kept) <= 10
    assert kept[-1].number == ledger.latest_crl(authority).number


def test_which_older_lists_are_superfluous(now):
    """The rule by itself."""
    at = datetime(2026, 11, 20, 8, tzinfo=UTC)
    lists = [
        ListNumber(0, at - 9 * DAY, at - 2 * DAY),
        ListNumber(1, at - 8 * DAY, at - DAY),
        ListNumber(2, at - DAY, at + 6 * DAY),
        ListNumber(3, at - DAY + HOUR, at + 6 * DAY),
        ListNumber(4, at, at + CRL_LIFETIME),
    ]
    assert (base_number(lists, at), superfluous(lists, at)) == (1, [0, 3])
    assert base_number(lists[2:], at) == 2
    assert base_number([], at) is None


@pytest.mark.parametrize("seconds", [0, -1, 302401])
def test_periods_that_cannot_be_kept_raise(seconds):
    """A list must be renewed twice in its life at least."""
    with pytest.raises(ValueError, match="twice"):
        Periods(interval=timedelta(seconds=seconds))


# ---- several replicas ---------------------------------------------------------------------------


def _replica(url, issuer, barrier, count, start, results):
    database = Database(url)
    ledger = Ledger(database)
    made = []
    barrier.wait(60)
    for step in range(count):
        serial = start + step
        try:
            revoke(ledger, issuer_id(issuer), serial, datetime.now(UTC))
            found = publish(
                ledger, issuer, now=datetime.now(UTC), periods=PERIODS, force=step % 2 == 0
            )
        except Unavailable as error:  # the 5 s that a writer waits were not enough
            results.put(("unavailable", str(error)))
            continue
        if found is not None:
            made.append((found.complete.number, found.complete.der, found.delta.der))
    database.close()
    results.put(("made", made))


@pytest.fixture
def keyed(now):
    """A hierarchy whose intermediate can be taken along into a forked process."""
    return create_hierarchy("Forked", now=now)


def test_replicas_never_issue_two_lists_of_one_number(database_url, ledger, keyed, now):
    """Four processes revoke and publish at once: every number once, and rising contents."""
    issuer = keyed.intermediate
    ledger.register(issuer_id(issuer), issuer.certificate)
    count, replicas = 12, 4
    for serial in range(1, count * replicas + 1):
        add(ledger, issuer_id(issuer), serial, now)
    ledger.database.close()
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(replicas), context.Queue()
    processes = [
        context.Process(
            target=_replica,
            args=(database_url, issuer, barrier, count, 1 + place * count, results),
        )
        for place in range(replicas)
    ]
    for process in processes:
        process.start()
    made = []
    finished = 0
    while finished < replicas:
        kind, value = results.get(timeout=120)
        assert kind == "made", value
        made += value
        finished += 1
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    made.sort()
    numbers = [number for number, _, _ in made]
    assert len(set(numbers)) == len(numbers)
    assert len(numbers) >= count * replicas / 2
    seen: set[int] = set()
    for number, complete, delta in made:
        assert number_of(complete) == number_of(delta) == number
        assert seen <= set(entries(complete)), "nobody is un-revoked by a newer list"
        seen = set(entries(complete))
    last = ledger.latest_crl(issuer_id(issuer))
    if ledger.crl_state(issuer_id(issuer)).unlisted:
        last = publish(ledger, issuer, now=datetime.now(UTC), periods=PERIODS).complete
    assert set(entries(last.der)) == set(range(1, count * replicas + 1))


def test_the_same_test_finds_numbers_taken_twice(ledger, issuer, authority, now):
    """Reading the number without the lock, as is easily done, makes two lists of one number."""
    both = threading.Barrier(2)
    numbers: list[int] = []

    def naive() -> None:
        with ledger.database.read() as connection:
            state = ledger.crl_state_in(connection, authority)
        both.wait(30)
        numbers.append(max(state.number + 1, int(now.timestamp())))

    threads = [threading.Thread(target=naive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(numbers)) == 1


# ---- NGINX's file -------------------------------------------------------------------------------


def reloads(publisher) -> int:
    path = publisher.nginx.path.with_name("reloads")
    return path.read_text().count("x") if path.exists() else 0


def listed(path) -> list[x509.CertificateRevocationList]:
    end = b"-----END X509 CRL-----\n"
    return [x509.load_pem_x509_crl(each + end) for each in path.read_bytes().split(end)[:-1]]


def test_the_file_holds_complete_lists_and_the_roots(publisher, hierarchy, now):
    """The intermediate's and the root's, never a delta; NGINX is told once."""
    assert publisher.run() == list(publisher.issuers)
    crls = listed(publisher.nginx.path)
    assert [each.issuer for each in crls] == [
        hierarchy.intermediate.certificate.subject,
        hierarchy.root.certificate.subject,
    ]
    for crl in crls:
        assert not any(isinstance(e.value, x509.DeltaCRLIndicator) for e in crl.extensions)
    assert publisher.nginx.path.stat().st_mode & 0o777 == 0o644
    assert reloads(publisher) == 1
    assert publisher.run() == []
    assert publisher.refresh() is False
    assert reloads(publisher) == 1


def test_a_revocation_is_in_the_file_at_once(publisher, ledger, clock, now):
    """What `revoked` publishes is what NGINX is told to read."""
    publisher.run()
    (authority,) = publisher.issuers
    add(ledger, authority, 7, now)
    revoke(ledger, authority, 7, now)
    publisher.revoked(authority)
    assert [each.serial_number for each in listed(publisher.nginx.path)[0]] == [7]
    assert reloads(publisher) == 2


def test_another_replicas_list_reaches_this_file(publisher, ledger, issuer, clock, now):
    """Made elsewhere, over the same database."""
    publisher.run()
    publish(ledger, issuer, now=now, periods=PERIODS, force=True)
    assert publisher.run() == []
    assert (
        number_of(crl_der(listed(publisher.nginx.path)[0]))
        == ledger.latest_crl(issuer_id(issuer)).number
    )
    assert reloads(publisher) == 2


def test_a_new_root_list_and_a_lost_file_are_noticed(publisher, hierarchy, directory, now):
    """Without a new list of the intermediate, and without a restart."""
    publisher.run()
    files.write_crls(
        directory / "root.crl", build_crl(hierarchy.root, number=99, now=now + HOUR / 60)
    )
    assert publisher.refresh() is True
    assert number_of(crl_der(listed(publisher.nginx.path)[1])) == 99
    publisher.nginx.path.unlink()
    assert publisher.refresh() is True
    assert publisher.nginx.path.exists()


def test_a_reload_that_failed_is_tried_again(publisher, tmp_path):
    """The file is newer than what NGINX knows until the command has succeeded."""
    (tmp_path / "broken").touch()
    with pytest.raises(ReloadFailed, match="ended with 1"):
        publisher.run()
    assert reloads(publisher) == 1
    assert Severity.WARNING in {each.severity for each in publisher.status()}
    with pytest.raises(ReloadFailed):
        publisher.run()
    (tmp_path / "broken").unlink()
    assert publisher.refresh() is True
    assert reloads(publisher) == 3
    assert publisher.refresh() is False


def test_a_command_that_is_not_there_fails_by_name(publisher, tmp_path):
    """The reload command is the operator's: its absence must be said."""
    nginx = NginxFile(publisher.nginx.path, ("/nonexistent/reload",))
    publisher.nginx = nginx
    with pytest.raises(ReloadFailed, match="/nonexistent/reload"):
        publisher.run()


def test_what_locks_everybody_out_is_not_written(publisher, hierarchy, directory, clock, now):
    """A root list that has ended leaves the old file alone, and everybody is told."""
    publisher.run()
    before = publisher.nginx.path.read_bytes()
    clock.now = now + timedelta(days=366)
    with pytest.raises(FileRefused, match="root"):
        publisher.run()
    assert publisher.nginx.path.read_bytes() == before
    assert "ended" in publisher.unready()
    critical = {each.subject for each in publisher.status() if each.severity is Severity.CRITICAL}
    assert {"root", "file"} <= critical


def test_a_root_list_that_is_missing_or_anothers_is_refused(publisher, directory, now):
    """The file must hold the root's own."""
    publisher.run()
    files.write_crls(directory / "root.crl", create_hierarchy("Other").crls()[1])
    with pytest.raises(KeystoreError, match="not signed by this root"):
        publisher.refresh()
    (directory / "root.crl").unlink()
    with pytest.raises(KeystoreError, match="does not exist"):
        publisher.refresh()
    assert publisher.unready()
    assert publisher.status()[0].severity is Severity.CRITICAL


def test_lists_that_openssl_would_misread_are_refused(hierarchy, now):
    """A delta, none at all, one that has ended, one that has not begun."""
    complete, root = hierarchy.crls(now=now)
    delta = build_delta(hierarchy.intermediate, number=2, base_number=1, now=now, lifetime=DAY)
    good = crl_der(complete)
    assert nginx_pem([good], root, now).count(b"BEGIN X509 CRL") == 2
    with pytest.raises(FileRefused, match="delta"):
        nginx_pem([good, crl_der(delta)], root, now)
    with pytest.raises(FileRefused, match="no list"):
        nginx_pem([], root, now)
    with pytest.raises(FileRefused, match="intermediate's list has ended"):
        nginx_pem([good], root, now + CRL_LIFETIME)
    with pytest.raises(FileRefused, match="future"):
        nginx_pem([good], root, now - HOUR)


@pytest.mark.parametrize(
    ("days", "severity"),
    [(0, "OK"), (334, "OK"), (336, "WARNING"), (359, "CRITICAL"), (366, "CRITICAL")],
)
def test_the_end_of_the_roots_list_is_announced(publisher, clock, now, days, severity, caplog):
    """A month ahead a warning, a week ahead an alarm; readiness only when it has happened."""
    clock.now = now + timedelta(days=days)
    finding = publisher.status()[0]
    assert (finding.subject, finding.severity.name) == ("root", severity)
    assert (publisher.unready() is None) is (days < 365)
    if severity != "OK":
        assert "mooring ca root-crl" in finding.text


def test_status_tells_of_lists_that_are_missing_late_or_lack_something(
    publisher, ledger, clock, now
):
    """Each with its severity, which is the exit code of a status command."""

    def severity() -> str:
        return publisher.status()[1].severity.name

    (authority,) = publisher.issuers
    assert severity() == "CRITICAL"
    publisher.run()
    assert severity() == "OK"
    add(ledger, authority, 7, now)
    revoke(ledger, authority, 7, now)
    assert severity() == "WARNING"
    publisher.revoked(authority)
    assert severity() == "OK"
    clock.now = now + 3 * DAY
    assert severity() == "WARNING"
    clock.now = now + CRL_LIFETIME
    assert severity() == "CRITICAL"


def test_a_revocation_stands_though_publishing_fails(publisher, ledger, clock, now, monkeypatch):
    """`revoked` raises nothing, and the next round publishes it."""
    (authority,) = publisher.issuers
    publisher.run()
    add(ledger, authority, 7, now)
    revoke(ledger, authority, 7, now)
    hits = []

    def away(*_arguments, **_options):
        hits.append(1)
        raise Unavailable("gone")

    with monkeypatch.context() as patch:
        patch.setattr(publication, "publish", away)
        publisher.revoked(authority)
        publisher.revoked("0" * 40)
    assert hits == [1]
    assert publisher.run() == [authority]
    assert [each.serial_number for each in listed(publisher.nginx.path)[0]] == [7]


def test_status_and_follower_live_without_the_database(publisher, monkeypatch):
    """A database that is away is a finding, and the thread goes on."""
    rounds = threading.Semaphore(0)
    original = publisher.run
    broken = [True]

    def run():
        try:
            if broken[0]:
                raise Unavailable("gone")
            return original()
        finally:
            rounds.release()

    monkeypatch.setattr(publisher, "run", run)
    follower = Follower(publisher, 0.01)
    follower.start()
    try:
        assert rounds.acquire(timeout=30)
        assert rounds.acquire(timeout=30)
        broken[0] = False
        for _ in range(3):
            assert rounds.acquire(timeout=30)
    finally:
        follower.stop()
    assert publisher.nginx.path.exists()

    def away(*_arguments):
        raise Unavailable("gone")

    monkeypatch.setattr(publisher.ledger, "latest_crl", away)
    assert ("database", Severity.CRITICAL) in {
        (each.subject, each.severity) for each in publisher.status()
    }


def test_two_processes_keep_one_file(publisher, ledger, issuer, tmp_path, now, hierarchy):
    """A lock beside the file: a reader never sees half of it."""
    publisher.run()
    _, root = hierarchy.crls(now=now)
    path = publisher.nginx.path
    children = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                crl = build_crl(hierarchy.intermediate, number=100 + number, now=now)
                for _ in range(5):
                    data = nginx_pem([crl_der(crl)], root, now)
                    NginxFile(path).refresh(lambda data=data: data)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    while children:
        assert len(listed(path)) == 2
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0
            children.remove(pid)
    assert not list(tmp_path.glob("*.tmp"))
    assert not path.with_name(f".{path.name}.unread").exists()


def test_whoever_waits_writes_the_newest(publisher, ledger, issuer, tmp_path, now):
    """A list that was published while it waited for its turn is not undone by an older one."""
    publisher.run()
    path = publisher.nginx.path
    publish(ledger, issuer, now=now, periods=PERIODS, force=True)
    begun = threading.Event()
    locked = publisher.nginx._locked

    class Waiting(NginxFile):
        def _locked(self):
            begun.set()
            return locked()

    publisher.nginx = Waiting(path, publisher.nginx.reload)
    thread = threading.Thread(target=publisher.refresh)
    with path.with_name(f".{path.name}.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        assert begun.wait(30)
        newest = publish(ledger, issuer, now=now, periods=PERIODS, force=True)
    thread.join(30)
    assert crl_der(listed(path)[0]) == newest.complete.der


def test_many_revocations_at_once_are_few_reloads(publisher, ledger, clock, now):
    """Those that wait for their turn find that it is done: fewer reloads than revocations."""
    publisher.run()
    (authority,) = publisher.issuers
    for serial in range(1, 13):
        add(ledger, authority, serial, now)

    def one(serial: int) -> None:
        revoke(ledger, authority, serial, now)
        publisher.revoked(authority)

    threads = [threading.Thread(target=one, args=(serial,)) for serial in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(listed(publisher.nginx.path)[0]) == 12
    assert 2 <= reloads(publisher) <= 10


def test_options_make_a_publisher(ledger, authorities, directory, tmp_path):
    """What mooring.conf says, and what it may not say."""
    options = {
        "crl_interval": 3600,
        "crl_file": str(tmp_path / "crl.pem"),
        "crl_reload": "nginx -s reload",
        "directory": str(directory),
    }

    def make(**more):
        return publisher_from(
            SimpleNamespace(ca=SimpleNamespace(**{**options, **more})), ledger, authorities
        )

    try:
        made = make()
        assert made.nginx == NginxFile(tmp_path / "crl.pem", ("nginx", "-s", "reload"))
        assert made.periods == Periods(interval=HOUR)
        assert "ca root list" not in readiness.failing()
        assert make(crl_file="").nginx is None
        for wrong in (
            {"crl_file": "crl.pem"},
            {"crl_reload": "nginx 'x"},
            {"crl_interval": 10**6},
        ):
            with pytest.raises(ValueError, match=f"{next(iter(wrong))}:"):
                make(**wrong)
    finally:
        readiness.unregister("ca root list")


def test_openssl_applies_our_delta(ledger, issuer, authority, hierarchy, now, tmp_path):
    """openssl with -extended_crl -use_deltas: good by the base, revoked with the delta.

    And without them a delta un-revokes, which is why none is ever in NGINX's file.
    """
    hierarchy.write(tmp_path)
    leaf = hierarchy.issue_client("alice", now=now)
    files.write_certificates(tmp_path / "leaf.crt", leaf.certificate)
    serial = leaf.certificate.serial_number
    add(ledger, authority, serial, now)
    base = publish(ledger, issuer, now=now, periods=PERIODS)
    revoke(ledger, authority, serial, now)
    made = publish(ledger, issuer, now=now, periods=PERIODS)
    assert base_of(made.delta.der) <= base.complete.number

    def verify(*ders: bytes, options=()) -> str:
        crls = [x509.load_der_x509_crl(each) for each in ders]
        files.write_crls(tmp_path / "crls.pem", *crls)
        done = subprocess.run(
            [
                *("openssl", "verify", *options, "-crl_check", "-CRLfile", tmp_path / "crls.pem"),
                *("-CAfile", tmp_path / "root.crt", "-untrusted", tmp_path / "intermediate.crt"),
                tmp_path / "leaf.crt",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr

    deltas = ("-extended_crl", "-use_deltas")
    assert "OK" in verify(base.complete.der, options=deltas)
    assert "certificate revoked" in verify(base.complete.der, made.delta.der, options=deltas)
    assert "certificate revoked" in verify(made.complete.der)
