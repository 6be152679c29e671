"""Publishing revocation: making lists, and keeping NGINX's file of them.

A list is made at once when a certificate is revoked, held or released, and at least once an
interval. It is numbered, signed and stored in one transaction that holds the authority's row, so
that no two replicas ever sign different lists of one number; whoever comes second finds that there
is nothing left to do. Each publication is a complete list and a delta of the same number. The delta
completes every list that has not ended yet, so it serves whoever keeps one.

NGINX reads `ssl_crl` when it starts and when it is told to, and then refuses everybody if the list
of the root or of an intermediate is missing or has ended. The file therefore holds the complete
lists of all authorities and the root's, is replaced in one step, and never with one that would lock
everybody out. An old file that still works is better.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import logging
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509

from services.ca import files, keystore
from services.ca.crl import (
    CRL_LIFETIME,
    KEPT_AFTER_END,
    build_crl,
    build_delta,
    crl_der,
    crl_pem,
    delta_url,
)
from services.ca.issue import BACKDATE
from services.ca.keystore import Authorities, KeystoreError
from services.ca.ledger import CRLState, Ledger, ListNumber, StoredCRL
from services.ca.signer import Issuer
from services.core import readiness
from services.core.database import Unavailable

LOG = structlog.get_logger("mooring.ca.publication")

# Often enough that a client which missed one still has most of a list's week, seldom enough that
# lists of quiet authorities can be cached.
INTERVAL = timedelta(hours=24)

# The root's key has to be fetched and somebody has to do it: a month of warning, and alarm while
# there is still a working week.
ROOT_WARNING = timedelta(days=30)
ROOT_CRITICAL = timedelta(days=7)

# A published list that is not renewed although it should be: two intervals are a missed one.
LATE_INTERVALS = 2

# A new list is in NGINX's file at once here and after `follow_seconds` (5) on other controllers:
# what is missing for longer is not coming.
FILE_LATE = timedelta(minutes=1)

# NGINX loads some MB of lists in well under a second; a command that hangs must not hang us.
RELOAD_SECONDS = 30

# Seconds between two reloads. Each leaves a generation of NGINX's workers behind that ends with its
# last connection, and a watching agent's connection lasts a minute.
RELOAD_GAP = 0.2


class Severity(enum.IntEnum):
    """How bad a finding is."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said about one list: `subject` is root, file, database or an authority's id.

    `ends` is when the list ends (of the file: its first), where that is known.
    """

    severity: Severity
    subject: str
    text: str
    ends: datetime | None = None


@dataclass(frozen=True, slots=True)
class Periods:
    """How often lists are made, and how long each may be used."""

    interval: timedelta = INTERVAL
    complete: timedelta = CRL_LIFETIME

    def __post_init__(self) -> None:
        """Raise ValueError unless a missed interval does no harm."""
        if not timedelta(0) < self.interval <= self.complete / 2:
            raise ValueError(f"lists hold for {self.complete}, so make one at least twice as often")

    @property
    def delta(self) -> timedelta:
        """How long a delta may be used: one interval may be missed."""
        return 2 * self.interval


@dataclass(frozen=True, slots=True)
class Publication:
    """What was made together; `delta` is None only if something went on without it."""

    complete: StoredCRL
    delta: StoredCRL | None


class FileRefused(Exception):
    """NGINX's file was left as it is, since the new one would lock everybody out."""


class ReloadFailed(Exception):
    """NGINX's file was written, but the command that makes NGINX read it has failed."""


def issuer_id(issuer: Issuer) -> str:
    """An authority's id: its key identifier in hex."""
    return keystore.authority_id(issuer.certificate)


# ---- lists --------------------------------------------------------------------------------------


def is_due(state: CRLState | None, now: datetime, periods: Periods) -> bool:
    """Tell whether an authority needs a new list: none, an old one, or something has changed."""
    if state is None or state.this_update is None or state.unlisted:
        return True
    # thisUpdate as stored is the moment it was made. One far in the future is due too, since
    # verifiers refuse it; clocks of replicas differ by less than lists are set back.
    return not -BACKDATE < now - state.this_update < periods.interval


def publish(
    ledger: Ledger,
    issuer: Issuer,
    *,
    now: datetime,
    periods: Periods,
    force: bool = False,
) -> Publication | None:
    """Make, sign and store a complete list and a delta, if one is due or `force` is set.

    Whether one is due is asked again under the lock: None if another process was faster. The first
    list of an authority is made twice, for a delta needs an older one. Raises Unavailable; then
    nothing is stored.
    """
    authority = issuer_id(issuer)
    ledger.register(authority, issuer.certificate)
    with ledger.database.write() as writer:
        connection = writer.connection
        number = ledger.next_number(connection, authority, now)
        if not force and not is_due(ledger.crl_state_in(connection, authority), now, periods):
            return None
        revoked = ledger.revoked(connection, authority, now=now, keep=KEPT_AFTER_END)
        url = None if issuer.crl_url is None else delta_url(issuer.crl_url)
        older = ledger.crl_numbers(connection, authority)
        base = base_number(older, now)

        def complete(number: int) -> StoredCRL:
            crl = build_crl(
                issuer,
                number=number,
                now=now,
                revoked=revoked,
                lifetime=periods.complete,
                delta_url=url,
            )
            stored = _stored(authority, number, None, crl, now)
            ledger.add_crl(connection, stored)
            return stored

        if base is None:
            complete(number)
            base, number = number, number + 1
        made = complete(number)
        changed = ledger.changed_since(connection, authority, base, now=now, keep=KEPT_AFTER_END)
        delta = build_delta(
            issuer,
            number=number,
            base_number=base,
            now=now,
            changed=changed,
            lifetime=min(periods.delta, periods.complete),
        )
        stored = _stored(authority, number, base, delta, now)
        ledger.add_crl(connection, stored)
        ledger.delete_crls(connection, authority, superfluous(older, now))
    LOG.info(
        "list published",
        authority=authority,
        number=number,
        revoked=len(revoked),
        changed=len(changed),
        base=base,
    )
    return Publication(made, stored)


def base_number(lists: Sequence[ListNumber], now: datetime) -> int | None:
    """The list that a delta is to; `lists` are those kept, the oldest first. None if there is none.

    A client may hold any list that has not ended, also one that is not kept, and can apply a delta
    to that or to an older one (RFC 5280 section 5.2.4): so it is the last that has ended.
    """
    ended = [each.number for each in lists if each.next_update <= now]
    if ended:
        return ended[-1]
    return lists[0].number if lists else None


def superfluous(lists: Sequence[ListNumber], now: datetime) -> list[int]:
    """The older lists that need not be kept: what is before the base, and all but the first of a
    day.

    What is left bounds the database, however many certificates are revoked in a day, and is what
    deltas are based on.
    """
    base = base_number(lists, now)
    seen: set[str] = set()
    numbers: list[int] = []
    for each in lists:
        day = each.this_update.astimezone(UTC).date().isoformat()
        if (base is not None and each.number < base) or day in seen:
            numbers.append(each.number)
        else:
            seen.add(day)
    return numbers


def _stored(
    authority: str,
    number: int,
    base_number: int | None,
    crl: x509.CertificateRevocationList,
    now: datetime,
) -> StoredCRL:
    until = crl.next_update_utc
    if until is None:
        raise ValueError("the list has no end")
    # not the list's own thisUpdate, which is set back: this is when it was made
    return StoredCRL(authority, number, base_number, crl_der(crl), now, until)


# ---- NGINX's file -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NginxFile:
    """The file of `ssl_crl`, and the command that makes NGINX read it (a list of words)."""

    path: Path
    reload: tuple[str, ...] = ()

    def refresh(self, read: Callable[[], bytes]) -> bool:
        """Write what `read` returns (`nginx_pem`), and reload, if the file holds something else.

        Returns whether there was something to do. A reload that failed is tried again at the next
        call. Several processes may call at once: each reads when its turn has come, so that none
        writes an older list over a newer one. Raises ReloadFailed, what `read` raises, and OSError
        if the file cannot be written; the old file is whole then.
        """
        with self._locked() as lock:
            # after many revocations at once, the first of those that wait finds them all
            since = time.time() - os.fstat(lock).st_mtime
            if 0 <= since < RELOAD_GAP:
                time.sleep(RELOAD_GAP - since)
            data = read()
            unread = self.path.with_name(f".{self.path.name}.unread")
            same = _content(self.path) == data
            if same and not unread.exists():
                return False
            if not same:
                unread.touch()
                files.write_data(self.path, data)
            os.utime(lock)
            self._run_reload()
            unread.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        lock = os.open(
            self.path.with_name(f".{self.path.name}.lock"),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
        try:
            if os.geteuid() == 0:
                # made by a command, and still the service's to open
                owner = self.path.parent.stat()
                os.fchown(lock, owner.st_uid, owner.st_gid)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    def _run_reload(self) -> None:
        if not self.reload:
            return
        try:
            done = subprocess.run(
                self.reload,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=RELOAD_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ReloadFailed(f"{self.reload[0]}: {type(error).__name__}") from error
        if done.returncode:
            said = done.stdout.decode("utf-8", "replace").strip()[-500:]
            raise ReloadFailed(f"{self.reload[0]} ended with {done.returncode}: {said}")


def nginx_pem(
    lists: Sequence[bytes], root_crl: x509.CertificateRevocationList, now: datetime
) -> bytes:
    """Return what NGINX is to read; raises FileRefused for what would lock everybody out.

    That is: no list of an intermediate, one that is a delta (OpenSSL takes it for a complete one
    and lets revoked certificates pass), one that has ended or has not begun, among them the root's.
    """
    if not lists:
        raise FileRefused("there is no list of an intermediate")
    crls = [x509.load_der_x509_crl(each) for each in lists]
    for name, crl in (("root", root_crl), *(("intermediate", each) for each in crls)):
        if any(isinstance(each.value, x509.DeltaCRLIndicator) for each in crl.extensions):
            raise FileRefused(f"the {name}'s list is a delta")
        if crl.next_update_utc is None or crl.next_update_utc <= now:
            raise FileRefused(f"the {name}'s list has ended ({crl.next_update_utc})")
        if crl.last_update_utc > now:
            raise FileRefused(f"the {name}'s list begins at {crl.last_update_utc}, in the future")
    return b"".join(crl_pem(each) for each in (*lists, crl_der(root_crl)))


def _mark(path: Path) -> object:
    """What differs when a file is another one or was written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


# ---- all of it together -------------------------------------------------------------------------


class Publisher:
    """Publishes for every authority of a server and keeps NGINX's file; made once a process."""

    def __init__(
        self,
        ledger: Ledger,
        authorities: Authorities,
        *,
        directory: Path,
        periods: Periods | None = None,
        nginx: NginxFile | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`directory` is the key store's: the root's list is read there each time, since a new
        one appears without a restart."""
        self.ledger = ledger
        self.issuers = {issuer_id(issuer): issuer for issuer in authorities.all()}
        self.root = authorities.root
        self.directory = directory
        self.periods = periods or Periods()
        self.nginx = nginx
        self.clock = clock
        self._refreshed: object = None
        self._warned: date | None = None

    def run(self, *, force: bool = False) -> list[str]:
        """Publish what is due (everything with `force`), refresh the file, warn of the root's end.

        Returns the ids of authorities that have a new list. Raises Unavailable, FileRefused,
        ReloadFailed, KeystoreError and OSError.
        """
        made = self.publish(force=force)
        self.refresh()
        return made

    def publish(self, *, force: bool = False) -> list[str]:
        """Make the lists that are due (all with `force`); return their ids. Raises Unavailable."""
        return [
            authority
            for authority, issuer in self.issuers.items()
            if self._due(authority, force)
            and publish(self.ledger, issuer, now=self.clock(), periods=self.periods, force=force)
        ]

    def revoked(self, authority: str) -> None:
        """Publish at once what has just changed: for whoever revokes, after the commit.

        Never raises: the certificate is revoked whatever happens here, and the next round publishes
        what this one could not.
        """
        issuer = self.issuers.get(authority)
        try:
            if issuer is not None:
                publish(self.ledger, issuer, now=self.clock(), periods=self.periods)
            self.refresh()
        except Exception as error:
            LOG.error("publishing failed", authority=authority, reason=_reason(error))

    def refresh(self) -> bool:
        """Bring NGINX's file up to date, if there is one; tell whether it was not.

        Raises as `run`.
        """
        self._warn(self.root_crl(), self.clock())
        if self.nginx is None:
            return False
        # lists may be megabytes, and this is asked every few seconds
        state = self._file_state()
        if state == self._refreshed:
            return False
        changed = self.nginx.refresh(self._nginx_pem)
        self._refreshed = (state[0], *self._file_state()[1:])
        if changed:
            LOG.info("file for NGINX written", file=str(self.nginx.path))
        return changed

    def _nginx_pem(self) -> bytes:
        latest = [self.ledger.latest_crl(authority) for authority in self.issuers]
        lists = [each.der for each in latest if each is not None]
        if len(lists) != len(latest):
            raise FileRefused("an authority has no list yet")
        return nginx_pem(lists, self.root_crl(), self.clock())

    def _file_state(self) -> tuple[tuple[int | None, ...], object, object]:
        """The numbers of the lists, and what tells a changed file of the root's and of NGINX's."""
        states = [self.ledger.crl_state(authority) for authority in self.issuers]
        return (
            tuple(None if each is None else each.number for each in states),
            _mark(self.directory / "root.crl"),
            None if self.nginx is None else _mark(self.nginx.path),
        )

    def _warn(self, root_crl: x509.CertificateRevocationList, now: datetime) -> None:
        for finding in _root_findings(root_crl, now):
            if finding.severity is Severity.OK or self._warned == now.date():
                continue
            self._warned = now.date()
            LOG.log(_LEVELS[finding.severity], "root list", reason=finding.text)

    def root_crl(self) -> x509.CertificateRevocationList:
        """Read the root's list; raises KeystoreError."""
        return keystore.read_root_crl(self.directory, self.root)

    def status(self) -> list[Finding]:
        """Everything there is to say about lists, without changing anything; never raises."""
        now = self.clock()
        return [
            *root_status(self.directory, self.root, now),
            *list_status(self.ledger, list(self.issuers), self.periods, self.nginx, now),
        ]

    def unready(self) -> str | None:
        """For readiness: the reason if everybody is locked out or cannot be.

        A list that only nears its end is no reason: taking every replica out of service a month
        ahead would be the outage that the warning is about.
        """
        try:
            end = self.root_crl().next_update_utc
        except KeystoreError as error:
            return error.reason
        if end is None or end <= self.clock():
            return "the root's revocation list has ended: NGINX refuses everybody"
        return None

    def _due(self, authority: str, force: bool) -> bool:
        # without the lock first: on SQLite it keeps everybody from writing
        return force or is_due(self.ledger.crl_state(authority), self.clock(), self.periods)


def root_status(directory: Path, root: x509.Certificate, now: datetime) -> list[Finding]:
    """What there is to say about the root's own list; never raises."""
    try:
        return _root_findings(keystore.read_root_crl(directory, root), now)
    except KeystoreError as error:
        return [Finding(Severity.CRITICAL, "root", str(error))]


def list_status(
    ledger: Ledger,
    authorities: Sequence[str],
    periods: Periods,
    nginx: NginxFile | None,
    now: datetime,
) -> list[Finding]:
    """What there is to say about the lists of these authorities and NGINX's file; never raises.

    It needs no key, so that monitoring needs no passphrase.
    """
    findings: list[Finding] = []
    latest: list[StoredCRL] = []
    try:
        for authority in authorities:
            crl = ledger.latest_crl(authority)
            state = ledger.crl_state(authority)
            findings.append(_authority_finding(authority, crl, state, now, periods))
            if crl is not None:
                latest.append(crl)
    except Unavailable as error:
        findings.append(Finding(Severity.CRITICAL, "database", f"is away: {error}"))
    if nginx is not None:
        findings.append(_file_finding(nginx, latest, now))
    return findings


_LEVELS = {Severity.WARNING: logging.WARNING, Severity.CRITICAL: logging.ERROR}


def _root_findings(crl: x509.CertificateRevocationList, now: datetime) -> list[Finding]:
    end = crl.next_update_utc
    if end is None:
        return [Finding(Severity.CRITICAL, "root", "the root's list has no end")]
    left = end - now
    remedy = "make a new one with the root's key (`mooring ca root-crl`) and install it"
    if left <= timedelta(0):
        text = f"the root's list has ended at {end:%Y-%m-%d %H:%MZ}: NGINX refuses everybody"
        return [Finding(Severity.CRITICAL, "root", f"{text}; {remedy}", end)]
    severity = (
        Severity.CRITICAL
        if left <= ROOT_CRITICAL
        else Severity.WARNING
        if left <= ROOT_WARNING
        else Severity.OK
    )
    text = f"the root's list ends at {end:%Y-%m-%d %H:%MZ}, in {left.days} days"
    shown = text if severity is Severity.OK else f"{text}; {remedy}"
    return [Finding(severity, "root", shown, end)]


def _authority_finding(
    authority: str,
    crl: StoredCRL | None,
    state: CRLState | None,
    now: datetime,
    periods: Periods,
) -> Finding:
    if crl is None:
        return Finding(
            Severity.CRITICAL,
            authority,
            "no list was ever published: start the certificate service, or `mooring ca publish`",
        )
    text, severity = f"list {crl.number} ends at {crl.next_update:%Y-%m-%d %H:%MZ}", Severity.OK
    if crl.next_update <= now:
        severity, text = Severity.CRITICAL, f"{text}, which is over"
    elif state is not None and state.unlisted:
        severity, text = Severity.WARNING, f"{text}, and does not show the last revocation"
    elif now - crl.this_update > LATE_INTERVALS * periods.interval:
        severity, text = Severity.WARNING, f"{text}, and should have been renewed"
    if severity is not Severity.OK:
        text += ": is the certificate service running?"
    return Finding(severity, authority, text, crl.next_update)


def _file_finding(nginx: NginxFile, latest: Sequence[StoredCRL], now: datetime) -> Finding:
    path = nginx.path
    try:
        crls = _read_crls(path.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(Severity.CRITICAL, "file", f"{path}: {type(error).__name__}")
    ends = [each.next_update_utc for each in crls if each.next_update_utc is not None]
    if not ends or min(ends) <= now:
        text = f"{path} holds a list that has ended"
        return Finding(Severity.CRITICAL, "file", text, min(ends, default=None))
    if path.with_name(f".{path.name}.unread").exists():
        text = f"{path} is newer than what NGINX has read"
        return Finding(Severity.WARNING, "file", text, min(ends))
    held = {crl_der(each) for each in crls}
    for each in latest:
        if each.der not in held and now - each.this_update > FILE_LATE:
            text = f"{path} does not hold list {each.number} of {each.authority_id}"
            return Finding(Severity.WARNING, "file", text, min(ends))
    text = f"{path} holds until {min(ends):%Y-%m-%d %H:%MZ}"
    return Finding(Severity.OK, "file", text, min(ends))


def _read_crls(data: bytes) -> list[x509.CertificateRevocationList]:
    end = b"-----END X509 CRL-----\n"
    return [x509.load_pem_x509_crl(each + end) for each in data.split(end)[:-1]]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class Follower:
    """A thread that lets a publisher run every so many seconds, for as long as the process lives.

    It makes the list that is due, and brings what another controller has published to the NGINX of
    this one.
    """

    def __init__(self, publisher: Publisher, seconds: float) -> None:
        self._publisher = publisher
        self._seconds = seconds
        self._ended = threading.Event()
        self._last = ""
        self._thread = threading.Thread(target=self._follow, name="ca-publication", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the round that is under way."""
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while True:
            reason = ""
            try:
                self._publisher.run()
            except Exception as error:  # the next round tries again, whatever it was
                reason = _reason(error)
            # once for each change, not once a round
            if reason and reason != self._last:
                LOG.error("publishing failed", reason=reason)
            elif self._last and not reason:
                LOG.info("publishing works again")
            self._last = reason
            if self._ended.wait(self._seconds):
                return


def publisher_from(conf: Any, ledger: Ledger, authorities: Authorities) -> Publisher:
    """Make the publisher that mooring.conf describes, and register its readiness check.

    Raises ValueError naming the option.
    """
    publisher = Publisher(
        ledger,
        authorities,
        directory=Path(conf.ca.directory),
        periods=periods_from(conf),
        nginx=nginx_from(conf),
    )
    readiness.register("ca root list", publisher.unready)
    return publisher


def periods_from(conf: Any) -> Periods:
    """The periods that mooring.conf gives; raises ValueError naming the option."""
    try:
        return Periods(interval=timedelta(seconds=conf.ca.crl_interval))
    except ValueError as error:
        raise ValueError(f"[ca] crl_interval: {error}") from None


def nginx_from(conf: Any) -> NginxFile | None:
    """NGINX's file as mooring.conf gives it, if it does; raises ValueError naming the option."""
    if not conf.ca.crl_file:
        return None
    path = Path(conf.ca.crl_file)
    if not path.is_absolute():
        raise ValueError(f"[ca] crl_file: {path} is not absolute")
    try:
        return NginxFile(path, tuple(shlex.split(conf.ca.crl_reload)))
    except ValueError as error:
        raise ValueError(f"[ca] crl_reload: {error}") from None
