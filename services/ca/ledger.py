"""The ledger: every statement of SQL that the certificate service has.

What was signed is here before it is signed and again, whole, before anybody gets it. Methods that
take a connection are parts of a transaction that the caller has begun (`ledger.database.write()`),
those that take none are a transaction of their own. All raise `services.core.database.Unavailable`
while the database is away.

Locks are always taken in this order, so that none waits for another in a circle: the rows of
certificates and tokens, the authority's row, the end of the audit trail.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    CursorResult,
    Dialect,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql import Delete, Insert, Select, Update

from services.ca import audit
from services.ca.crl import CRL_LIFETIME, Revocation
from services.ca.states import EXPIRED, HELD, ISSUED, PENDING, REASONS, REVOKED, UNKNOWN
from services.core import schema
from services.core.database import Conflict, Database, DriverConnection

AUDIT_LOCK = 5063466902
"""PostgreSQL's advisory lock for the end of the audit trail (any number that is only ours)."""

VERIFY_BATCH = 2000
"""Rows of the trail in memory while it is read from one end to the other, a few MB."""

NAME_LIMIT = 255
"""Characters of a name that the search compares; only URIs can be longer."""

_JSON = json.JSONEncoder().encode

_CERTIFICATE = schema.ca_certificate
_RECORD = [column for column in _CERTIFICATE.c if column.name not in ("der", "tbs_digest")]
_NAMES = [column.name for column in _RECORD].index("names")


def serial_text(serial: int) -> str:
    """A serial as the tables, the API and the audit trail have it: 40 hex digits."""
    return format(serial, "040x")


def timestamp(moment: datetime) -> str:
    """A time as the tables have it: ``2026-11-21T02:17:39.000000Z``."""
    # a tenth of what strftime takes, and every certificate has five of them
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:-6] + "Z"  # without +00:00


def moment(text: str) -> datetime:
    """The reverse of `timestamp`."""
    return datetime.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A certificate before it is signed; `names` are (kind, value) with kind dns, ip or uri."""

    authority_id: str
    serial: str
    profile: str
    subject: str
    common_name: str
    names: tuple[tuple[str, str], ...]
    key_id: str
    tbs_digest: str
    not_before: str
    not_after: str
    created_at: str
    requested_by: str

    def issued(self, fingerprint: str) -> Record:
        """The record that it is once the certificate is stored."""
        return Record(
            self.authority_id,
            self.serial,
            ISSUED,
            self.profile,
            self.subject,
            self.common_name,
            self.names,
            self.key_id,
            fingerprint,
            self.not_before,
            self.not_after,
            self.created_at,
            self.requested_by,
            None,
            None,
            None,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A certificate that was signed, in DER, with its SHA-256 in hex."""

    authority_id: str
    serial: str
    fingerprint: str
    der: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """What the ledger knows of a certificate, without the certificate itself (`Ledger.der`)."""

    authority_id: str
    serial: str
    state: str
    profile: str
    subject: str
    common_name: str
    names: tuple[tuple[str, str], ...]
    key_id: str
    fingerprint: str | None
    not_before: str
    not_after: str
    created_at: str
    requested_by: str
    revoked_at: str | None
    reason: str | None
    status_number: int | None

    def values(self, kind: str) -> tuple[str, ...]:
        """Its alternative names of one kind."""
        return tuple(value for each, value in self.names if each == kind)


@dataclass(frozen=True, slots=True)
class Status:
    """A certificate's state now; "unknown" if the ledger has never heard of it."""

    state: str
    revoked_at: datetime | None = None
    reason: x509.ReasonFlags | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """What a list is narrowed to; None is no bound.

    `subject` is a part of the subject, case aside; `name` an alternative name or the common name,
    whole; `state` one of the ledger's or "expired", which the others but pending and revoked then
    are not; `owner` (profile, common name) of whom it names or who asked for it.
    """

    subject: str | None = None
    name: str | None = None
    profile: str | None = None
    state: str | None = None
    expires_before: str | None = None
    owner: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """An enrolment token without its secret; `request` is what it is bound to."""

    id: str
    request: Mapping[str, Any]
    created_at: str
    created_by: str
    expires_at: str
    used_at: str | None
    used_for: str | None


@dataclass(frozen=True, slots=True)
class StoredCRL:
    """A revocation list as it was signed; `base_number` is None for a complete one."""

    authority_id: str
    number: int
    base_number: int | None
    der: bytes
    this_update: datetime
    next_update: datetime


@dataclass(frozen=True, slots=True)
class ListNumber:
    """A complete list that is kept, by its number."""

    number: int
    this_update: datetime
    next_update: datetime


@dataclass(frozen=True, slots=True)
class CRLState:
    """An authority's last number, the thisUpdate of that list, and whether more has changed since.

    `this_update` is None if no complete list of that number is there.
    """

    number: int
    this_update: datetime | None
    unlisted: bool


class _Statement:
    """A statement compiled once and run as the driver's own text.

    SQLAlchemy's way from a statement to the driver costs 40 to 60 us each time, several times what
    SQLite itself takes, and issuing needs nine of them (measured).
    """

    def __init__(self, dialect: Dialect, clause: Insert | Update | Delete | Select[Any]) -> None:
        compiled = clause.compile(dialect=dialect)
        self.text = str(compiled)
        self.order: list[str] | None = getattr(compiled, "positiontup", None)
        # values that the dialect itself puts in, as SQLite's OFFSET 0 beside a LIMIT
        self.own = {name: value for name, value in compiled.params.items() if value is not None}
        self._in_order = None
        if self.order is not None and len(self.order) > 1:
            self._in_order = itemgetter(*self.order)

    def __call__(
        self, connection: DriverConnection, values: Mapping[str, Any]
    ) -> CursorResult[Any] | sqlite3.Cursor:
        if isinstance(connection, sqlite3.Connection):
            return connection.execute(self.text, self._bound(values))
        return connection.exec_driver_sql(self.text, self._bound(values))

    def many(self, connection: DriverConnection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Run it for each; return how many rows all of them changed."""
        if not rows:
            return 0
        if len(rows) == 1:
            return self(connection, rows[0]).rowcount
        bound = [self._bound(row) for row in rows]
        if isinstance(connection, sqlite3.Connection):
            return connection.executemany(self.text, bound).rowcount
        return connection.exec_driver_sql(self.text, bound).rowcount

    def _bound(self, values: Mapping[str, Any]) -> Any:
        whole = {**self.own, **values} if self.own else values
        if self._in_order is not None:
            return self._in_order(whole)
        return whole if self.order is None else tuple([whole[name] for name in self.order])


class Ledger:
    """The certificate service's tables; opens nothing before first use, so it may be forked."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._postgresql = database.sqlite_path is None
        dialect: Dialect = database.url.get_dialect()()
        certificate, name, trail = _CERTIFICATE, schema.ca_certificate_name, schema.ca_audit
        this = and_(
            certificate.c.authority_id == bindparam("which_authority"),
            certificate.c.serial == bindparam("which_serial"),
        )
        reserved = ("fingerprint", "der", "revoked_at", "reason", "status_number")
        self._reserve = _Statement(
            dialect,
            insert(certificate).values(
                {c.name: bindparam(c.name) for c in certificate.c if c.name not in reserved}
            ),
        )
        self._name = _Statement(
            dialect, insert(name).values({c.name: bindparam(c.name) for c in name.c})
        )
        self._complete = _Statement(
            dialect,
            update(certificate)
            .where(this, certificate.c.state == bindparam("which_state"))
            .values(
                state=bindparam("state"),
                der=bindparam("der"),
                fingerprint=bindparam("fingerprint"),
            ),
        )
        self._by_fingerprint = _Statement(
            dialect,
            select(*_RECORD).where(certificate.c.fingerprint == bindparam("which_fingerprint")),
        )
        self._head = _Statement(
            dialect,
            select(trail.c.sequence, trail.c.hash).order_by(trail.c.sequence.desc()).limit(1),
        )
        self._lock_trail = _Statement(
            dialect, select(func.pg_advisory_xact_lock(bindparam("which_lock", type_=BigInteger)))
        )
        self._append = _Statement(
            dialect, insert(trail).values({c.name: bindparam(c.name) for c in trail.c})
        )

    # ---- authorities -------------------------------------------------------------------------

    def register(self, authority_id: str, certificate: x509.Certificate) -> None:
        """Make the authority known; does nothing if it is."""
        with self.database.read() as connection:
            if _known(connection, authority_id):
                return
        try:
            with self.database.write() as writer:
                if _known(writer.connection, authority_id):
                    return
                writer.connection.execute(
                    insert(schema.ca_authority).values(
                        id=authority_id,
                        certificate=certificate.public_bytes(Encoding.DER),
                        created_at=timestamp(datetime.now(UTC)),
                        not_after=timestamp(certificate.not_valid_after_utc),
                        crl_number=0,
                    )
                )
        except Conflict:
            return  # another process was faster, with the same row

    def lock_authority(self, connection: Connection, authority_id: str) -> int:
        """Lock the authority's row until the transaction ends; return its last CRL number.

        Raises LookupError if it was never registered.
        """
        table = schema.ca_authority
        number = connection.execute(
            select(table.c.crl_number).where(table.c.id == authority_id).with_for_update()
        ).scalar_one_or_none()
        if number is None:
            raise LookupError(f"the authority {authority_id} is not registered")
        return int(number)

    # ---- issuing -----------------------------------------------------------------------------

    def reserve(self, connection: DriverConnection, reservations: Sequence[Reservation]) -> None:
        """Record certificates that are about to be signed. A serial that exists is a Conflict."""
        self._reserve.many(connection, [_reserved(each) for each in reservations])
        self._name.many(connection, [row for each in reservations for row in _name_rows(each)])

    def complete(self, connection: DriverConnection, completions: Sequence[Completion]) -> bool:
        """Store signed certificates; False if one is not pending any more (it was revoked).

        The caller then has to roll back: which of several it was is not known.
        """
        stored = self._complete.many(
            connection,
            [
                {
                    "which_authority": each.authority_id,
                    "which_serial": each.serial,
                    "which_state": PENDING,
                    "state": ISSUED,
                    "der": each.der,
                    "fingerprint": each.fingerprint,
                }
                for each in completions
            ],
        )
        return stored == len(completions)

    # ---- looking up --------------------------------------------------------------------------

    def by_fingerprint(self, fingerprint: str) -> Record | None:
        """The certificate with this SHA-256, in lower-case hex."""
        with self.database.direct(write=False) as connection:
            return self.by_fingerprint_in(connection, fingerprint)

    def by_fingerprint_in(self, connection: DriverConnection, fingerprint: str) -> Record | None:
        """The same, in a transaction."""
        row = self._by_fingerprint(connection, {"which_fingerprint": fingerprint}).fetchone()
        return None if row is None else _record(row)

    def by_serial(self, serial: str, authority_id: str | None = None) -> Record | None:
        """The certificate with this serial, of any authority unless one is given."""
        with self.database.read() as connection:
            ids = select(schema.ca_authority.c.id) if authority_id is None else [authority_id]
            row = connection.execute(
                select(*_RECORD)
                .where(_CERTIFICATE.c.authority_id.in_(ids), _CERTIFICATE.c.serial == serial)
                .limit(1)
            ).first()
        return None if row is None else _record(row)

    def der(self, authority_id: str, serial: str) -> bytes | None:
        """The certificate itself; None while it is pending, or if there is none."""
        with self.database.read() as connection:
            value = connection.execute(
                select(_CERTIFICATE.c.der).where(
                    _CERTIFICATE.c.authority_id == authority_id, _CERTIFICATE.c.serial == serial
                )
            ).scalar_one_or_none()
        return None if value is None else bytes(value)

    def status(self, authority_id: str, serial: str) -> Status:
        """The state of a certificate now."""
        with self.database.read() as connection:
            return self.status_in(connection, authority_id, serial)

    def status_in(self, connection: Connection, authority_id: str, serial: str) -> Status:
        """The same, in a transaction."""
        row = connection.execute(
            select(_CERTIFICATE.c.state, _CERTIFICATE.c.revoked_at, _CERTIFICATE.c.reason).where(
                _CERTIFICATE.c.authority_id == authority_id, _CERTIFICATE.c.serial == serial
            )
        ).first()
        if row is None:
            return Status(UNKNOWN)
        return Status(
            row.state,
            None if row.revoked_at is None else moment(row.revoked_at),
            None if row.reason is None else REASONS[row.reason],
        )

    def search(
        self, search: Search, *, now: datetime, limit: int, before: tuple[str, str] | None = None
    ) -> list[Record]:
        """Certificates, the newest first; `before` is (created_at, serial) of the last one seen.

        Pending ones are found only if that state is asked for.
        """
        table = _CERTIFICATE
        conditions = _in_state(search.state, timestamp(now))
        if search.subject is not None:
            lower = func.lower(table.c.subject)
            conditions.append(lower.contains(search.subject.lower(), autoescape=True))
        if search.name is not None:
            conditions.append(_named(search.name))
        if search.profile is not None:
            conditions.append(table.c.profile == search.profile)
        if search.expires_before is not None:
            conditions.append(table.c.not_after < search.expires_before)
        if search.owner is not None:
            profile, common_name = search.owner
            conditions.append(
                or_(
                    and_(table.c.profile == profile, table.c.common_name == common_name),
                    table.c.requested_by == f"{profile}:{common_name}",
                )
            )
        if before is not None:
            conditions.append(tuple_(table.c.created_at, table.c.serial) < tuple_(*before))
        with self.database.read() as connection:
            rows = connection.execute(
                select(*_RECORD)
                .where(*conditions)
                .order_by(table.c.created_at.desc(), table.c.serial.desc())
                .limit(limit)
            ).all()
        return [_record(row) for row in rows]

    def living_counts(self, now: datetime) -> dict[tuple[str, str], int]:
        """How many certificates have not ended, by profile and state."""
        table = _CERTIFICATE
        query = (
            select(table.c.profile, table.c.state, func.count())
            .where(table.c.not_after >= timestamp(now))
            .group_by(table.c.profile, table.c.state)
        )
        with self.database.read() as connection:
            return {(profile, state): count for profile, state, count in connection.execute(query)}

    def living(self, authority_id: str, now: datetime) -> tuple[int, str]:
        """How many certificates of an authority are valid or held now, and the end of the last."""
        table = _CERTIFICATE
        query = select(func.count(), func.max(table.c.not_after)).where(
            table.c.authority_id == authority_id,
            table.c.state != REVOKED,
            table.c.not_after >= timestamp(now),
        )
        with self.database.read() as connection:
            count, last = connection.execute(query).one()
        return int(count), last or ""

    # ---- revoking ----------------------------------------------------------------------------

    def locked_status(self, connection: Connection, authority_id: str, serial: str) -> Status:
        """The state of a certificate, which nobody else changes until the transaction ends."""
        connection.execute(
            select(_CERTIFICATE.c.serial)
            .where(_CERTIFICATE.c.authority_id == authority_id, _CERTIFICATE.c.serial == serial)
            .with_for_update()
        )
        return self.status_in(connection, authority_id, serial)

    def set_state(
        self,
        connection: Connection,
        authority_id: str,
        serial: str,
        state: str,
        *,
        at: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Revoke, hold or release; the next list of the authority is the first to show it."""
        number = self.lock_authority(connection, authority_id) + 1
        connection.execute(
            update(_CERTIFICATE)
            .where(_CERTIFICATE.c.authority_id == authority_id, _CERTIFICATE.c.serial == serial)
            .values(state=state, revoked_at=at, reason=reason, status_number=number)
        )

    # ---- revocation lists --------------------------------------------------------------------

    def next_number(self, connection: Connection, authority_id: str, now: datetime) -> int:
        """Lock the authority's row and return the number of its next list, complete or delta.

        It is one more than the last, or the Unix time if that is more: after a database was
        restored from a copy, numbers still rise.
        """
        return max(self.lock_authority(connection, authority_id) + 1, int(now.timestamp()))

    def revoked(
        self,
        connection: Connection,
        authority_id: str,
        *,
        now: datetime,
        keep: timedelta = CRL_LIFETIME,
    ) -> list[Revocation]:
        """What a complete list holds, by serial: all that are revoked or held.

        Those that expired longer than `keep` ago have left (RFC 5280 section 5: an entry stays on
        one list after its certificate's end).
        """
        table = _CERTIFICATE
        rows = connection.execute(
            select(table.c.serial, table.c.revoked_at, table.c.reason)
            .where(
                table.c.authority_id == authority_id,
                table.c.revoked_at.is_not(None),
                table.c.state.in_((HELD, REVOKED)),
                table.c.not_after >= timestamp(now - keep),
            )
            .order_by(table.c.serial)
        ).all()
        return [
            Revocation(int(serial, 16), moment(at), REASONS[reason]) for serial, at, reason in rows
        ]

    def changed_since(
        self,
        connection: Connection,
        authority_id: str,
        number: int,
        *,
        now: datetime,
        keep: timedelta = CRL_LIFETIME,
    ) -> list[Revocation]:
        """What a delta to the complete list of this number holds, by serial.

        A certificate that was released since has the reason removeFromCRL.
        """
        table = _CERTIFICATE
        rows = connection.execute(
            select(table.c.serial, table.c.state, table.c.revoked_at, table.c.reason)
            .where(
                table.c.authority_id == authority_id,
                table.c.status_number > number,
                table.c.not_after >= timestamp(now - keep),
            )
            .order_by(table.c.serial)
        ).all()
        return [
            Revocation(int(serial, 16), now, x509.ReasonFlags.remove_from_crl)
            if state == ISSUED
            else Revocation(int(serial, 16), moment(at), REASONS[reason])
            for serial, state, at, reason in rows
        ]

    def add_crl(self, connection: Connection, crl: StoredCRL) -> None:
        """Store a signed list; its number becomes the authority's.

        A complete list's number twice is a Conflict. A delta replaces the one before.
        """
        values = {
            "number": crl.number,
            "der": crl.der,
            "this_update": timestamp(crl.this_update),
            "next_update": timestamp(crl.next_update),
        }
        if crl.base_number is None:
            connection.execute(
                insert(schema.ca_crl).values(authority_id=crl.authority_id, **values)
            )
        else:
            table = schema.ca_delta
            values["base_number"] = crl.base_number
            updated = connection.execute(
                update(table).where(table.c.authority_id == crl.authority_id).values(values)
            )
            if not updated.rowcount:
                connection.execute(insert(table).values(authority_id=crl.authority_id, **values))
        connection.execute(
            update(schema.ca_authority)
            .where(schema.ca_authority.c.id == crl.authority_id)
            .values(crl_number=crl.number)
        )

    def crl_numbers(self, connection: Connection, authority_id: str) -> list[ListNumber]:
        """The complete lists that are kept, the oldest first."""
        table = schema.ca_crl
        rows = connection.execute(
            select(table.c.number, table.c.this_update, table.c.next_update)
            .where(table.c.authority_id == authority_id)
            .order_by(table.c.number)
        ).all()
        return [ListNumber(int(number), moment(at), moment(until)) for number, at, until in rows]

    def delete_crls(
        self, connection: Connection, authority_id: str, numbers: Sequence[int]
    ) -> None:
        """Delete complete lists."""
        table = schema.ca_crl
        if numbers:
            connection.execute(
                delete(table).where(
                    table.c.authority_id == authority_id, table.c.number.in_(numbers)
                )
            )

    def crl_state(self, authority_id: str) -> CRLState | None:
        """What is known of an authority's lists, without reading one; None if it is unknown."""
        with self.database.read() as connection:
            return self.crl_state_in(connection, authority_id)

    def crl_state_in(self, connection: Connection, authority_id: str) -> CRLState | None:
        """The same, in a transaction."""
        table, lists = schema.ca_authority, schema.ca_crl
        number = connection.execute(
            select(table.c.crl_number).where(table.c.id == authority_id)
        ).scalar_one_or_none()
        if number is None:
            return None
        at = connection.execute(
            select(func.max(lists.c.this_update)).where(
                lists.c.authority_id == authority_id, lists.c.number == number
            )
        ).scalar_one()
        unlisted = connection.execute(
            select(_CERTIFICATE.c.serial)
            .where(
                _CERTIFICATE.c.authority_id == authority_id,
                _CERTIFICATE.c.status_number > number,
            )
            .limit(1)
        ).first()
        return CRLState(int(number), None if at is None else moment(at), unlisted is not None)

    def latest_crl(self, authority_id: str, *, delta: bool = False) -> StoredCRL | None:
        """The newest complete list, or the newest delta."""
        with self.database.read() as connection:
            return self.latest_crl_in(connection, authority_id, delta=delta)

    def latest_crl_in(
        self, connection: Connection, authority_id: str, *, delta: bool = False
    ) -> StoredCRL | None:
        """The same, in a transaction."""
        table = schema.ca_delta if delta else schema.ca_crl
        row = connection.execute(
            select(table)
            .where(table.c.authority_id == authority_id)
            .order_by(table.c.number.desc())
            .limit(1)
        ).first()
        if row is None:
            return None
        return StoredCRL(
            row.authority_id,
            int(row.number),
            int(row.base_number) if delta else None,
            bytes(row.der),
            moment(row.this_update),
            moment(row.next_update),
        )

    # ---- enrolment tokens --------------------------------------------------------------------

    def add_token(
        self,
        connection: Connection,
        *,
        digest: str,
        request: Mapping[str, Any],
        created_at: datetime,
        created_by: str,
        expires_at: datetime,
    ) -> Token:
        """Record a token by the SHA-256 of its secret."""
        token = Token(
            str(uuid.uuid4()),
            request,
            timestamp(created_at),
            created_by,
            timestamp(expires_at),
            None,
            None,
        )
        connection.execute(
            insert(schema.ca_token).values(
                id=token.id,
                digest=digest,
                request=json.dumps(request),
                created_at=token.created_at,
                created_by=created_by,
                expires_at=token.expires_at,
            )
        )
        return token

    def token_by_digest(self, digest: str) -> Token | None:
        """The token whose secret has this SHA-256, used or expired ones too."""
        table = schema.ca_token
        with self.database.read() as connection:
            row = connection.execute(select(table).where(table.c.digest == digest)).first()
        return None if row is None else _token(row)

    def token(self, token_id: str) -> Token | None:
        """The token of this id."""
        table = schema.ca_token
        with self.database.read() as connection:
            row = connection.execute(select(table).where(table.c.id == token_id)).first()
        return None if row is None else _token(row)

    def redeem(self, connection: Connection, token_id: str, serial: str, now: datetime) -> bool:
        """Use a token for the certificate of this serial; False if it is used, expired or gone.

        One conditional UPDATE: of two that come at once the second finds it used.
        """
        table = schema.ca_token
        result = connection.execute(
            update(table)
            .where(
                table.c.id == token_id,
                table.c.used_at.is_(None),
                table.c.expires_at > timestamp(now),
            )
            .values(used_at=timestamp(now), used_for=serial)
        )
        return result.rowcount == 1

    def tokens(
        self,
        *,
        limit: int,
        before: tuple[str, str] | None = None,
        created_by: str | None = None,
    ) -> list[Token]:
        """Tokens, the newest first; `before` is (created_at, id) of the last one seen."""
        table = schema.ca_token
        conditions: list[ColumnElement[bool]] = []
        if created_by is not None:
            conditions.append(table.c.created_by == created_by)
        if before is not None:
            conditions.append(tuple_(table.c.created_at, table.c.id) < tuple_(*before))
        with self.database.read() as connection:
            rows = connection.execute(
                select(table)
                .where(*conditions)
                .order_by(table.c.created_at.desc(), table.c.id.desc())
                .limit(limit)
            ).all()
        return [_token(row) for row in rows]

    def delete_token(self, connection: Connection, token_id: str) -> bool:
        """Delete a token; False if there is none."""
        table = schema.ca_token
        result = connection.execute(delete(table).where(table.c.id == token_id))
        return result.rowcount == 1

    # ---- audit trail -------------------------------------------------------------------------

    def append(self, connection: DriverConnection, entries: Sequence[audit.Entry]) -> None:
        """Write entries at the end of the audit trail.

        Nobody else can append from here until the transaction ends, so this comes last in it.
        """
        if self._postgresql:
            # The last row cannot be locked instead: who waited for it would go on from the row
            # that was last when the wait began.
            self._lock_trail(connection, {"which_lock": AUDIT_LOCK})
        last: Any = self._head(connection, {}).fetchone()
        sequence, head = (0, audit.GENESIS) if last is None else (int(last[0]), str(last[1]))
        self._append.many(
            connection,
            [
                {
                    "sequence": row.sequence,
                    "at": row.entry.at,
                    "actor": row.entry.actor,
                    "address": row.entry.address,
                    "request_id": row.entry.request_id,
                    "action": row.entry.action,
                    "decision": row.entry.decision,
                    "detail": row.entry.detail,
                    "hash": row.hash,
                }
                for row in audit.chain(sequence, head, entries)
            ],
        )

    def record(self, entries: Sequence[audit.Entry]) -> None:
        """Write entries in a transaction of their own."""
        with self.database.write() as writer:
            self.append(writer.connection, entries)

    def trail(self, *, limit: int, before: int | None = None) -> list[audit.Row]:
        """Entries of the audit trail, the newest first; `before` is the last sequence seen."""
        table = schema.ca_audit
        query = select(table).order_by(table.c.sequence.desc()).limit(limit)
        if before is not None:
            query = query.where(table.c.sequence < before)
        with self.database.read() as connection:
            return [_audit_row(row) for row in connection.execute(query)]

    def verify_audit(self, known: Mapping[int, str] | None = None) -> audit.Verdict:
        """Read the whole trail in one snapshot and check its chain (`services.ca.audit.verify`)."""
        with self.database.read() as connection:
            return audit.verify(_whole_trail(connection), known=known)


def _known(connection: Connection, authority_id: str) -> bool:
    table = schema.ca_authority
    query = select(func.count()).where(table.c.id == authority_id)
    return connection.execute(query).scalar_one() > 0


def _reserved(reservation: Reservation) -> dict[str, Any]:
    return {
        "authority_id": reservation.authority_id,
        "serial": reservation.serial,
        "state": PENDING,
        "profile": reservation.profile,
        "subject": reservation.subject,
        "common_name": reservation.common_name,
        "names": _JSON(reservation.names),
        "key_id": reservation.key_id,
        "tbs_digest": reservation.tbs_digest,
        "not_before": reservation.not_before,
        "not_after": reservation.not_after,
        "created_at": reservation.created_at,
        "requested_by": reservation.requested_by,
    }


def _name_rows(reservation: Reservation) -> Iterable[dict[str, str]]:
    # a set: two URIs may begin with the same 255 characters
    return [
        {
            "authority_id": reservation.authority_id,
            "serial": reservation.serial,
            "kind": kind,
            "value": value,
        }
        for kind, value in {(kind, value[:NAME_LIMIT]) for kind, value in reservation.names}
    ]


def _record(row: Any) -> Record:
    values: list[Any] = list(row)  # the columns of _RECORD, which are the fields of a Record
    values[_NAMES] = tuple([(kind, value) for kind, value in json.loads(values[_NAMES])])
    return Record(*values)


def _in_state(state: str | None, now: str) -> list[ColumnElement[bool]]:
    table = _CERTIFICATE
    if state is None:
        return [table.c.state != PENDING]
    if state == EXPIRED:
        return [table.c.state.in_((ISSUED, HELD)), table.c.not_after < now]
    alive = [table.c.not_after >= now] if state in (ISSUED, HELD) else []
    return [table.c.state == state, *alive]


def _named(name: str) -> ColumnElement[bool]:
    table, names = _CERTIFICATE, schema.ca_certificate_name
    found = select(names.c.authority_id, names.c.serial).where(names.c.value == name[:NAME_LIMIT])
    return or_(table.c.common_name == name, tuple_(table.c.authority_id, table.c.serial).in_(found))


def _token(row: Any) -> Token:
    return Token(
        row.id,
        json.loads(row.request),
        row.created_at,
        row.created_by,
        row.expires_at,
        row.used_at,
        row.used_for,
    )


def _audit_row(row: Any) -> audit.Row:
    return audit.Row(
        int(row.sequence),
        audit.Entry(
            row.at,
            row.actor,
            row.address,
            row.request_id,
            row.action,
            row.decision,
            row.detail,
        ),
        row.hash,
    )


def _whole_trail(connection: Connection) -> Iterator[audit.Row]:
    table = schema.ca_audit
    query = (
        select(table)
        .where(table.c.sequence > bindparam("last"))
        .order_by(table.c.sequence)
        .limit(VERIFY_BATCH)
    )
    # page by page: a single statement over all of it would meet the server's limit of time
    first = connection.execute(select(func.min(table.c.sequence))).scalar_one_or_none()
    last = 0 if first is None else int(first) - 1
    while rows := connection.execute(query, {"last": last}).all():
        for row in rows:
            yield _audit_row(row)
        last = int(rows[-1].sequence)
