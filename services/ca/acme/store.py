"""The tables of ACME: every statement of SQL that the ACME server has.

A state changes only from the state that was read (`UPDATE ... WHERE status = ...`), along the
tables of `states`; of two that race one sees its row counted. Methods raise
`services.core.database.Unavailable` while the database is away.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    delete,
    exists,
    func,
    insert,
    select,
    tuple_,
    update,
)

from services.ca.acme import states
from services.ca.acme.nonces import KEY_BYTES
from services.ca.acme.rules import Identifier, KeyRules, parse_rules
from services.core import schema
from services.core.database import Conflict, Database, Writer

EXTERNAL_KEY_BYTES: Final = 32
"""Octets of a key for external accounts: as many as the HMAC has (RFC 7518 section 3.2)."""

KEPT: Final = timedelta(days=7)
"""How long an order that came to nothing can still be read after its end."""

TIDIED: Final = 500
"""Rows that one round of tidying takes away, so that it never holds up a writer for long."""

_ACCOUNT = schema.acme_account
_KEY = schema.acme_external_key
_ORDER = schema.acme_order
_AUTHORIZATION = schema.acme_authorization
_CHALLENGE = schema.acme_challenge
_NONCE = schema.acme_nonce
_SECRET = schema.acme_secret


@dataclass(frozen=True, slots=True)
class Account:
    """An account; `jwk` is the canonical JSON of its key."""

    id: str
    thumbprint: str
    jwk: str
    status: str
    contact: tuple[str, ...]
    external_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ExternalKey:
    """A key for external accounts without the key itself."""

    id: str
    rules: KeyRules
    created_at: datetime
    created_by: str
    used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to show control of a name."""

    id: str
    authorization_id: str
    type: str
    token: str
    status: str
    validated_at: datetime | None
    error: Mapping[str, Any] | None
    processing_until: datetime | None


@dataclass(frozen=True, slots=True)
class Authorization:
    """One name of an order and its challenges, as they stand at the time of reading."""

    id: str
    order_id: str
    account_id: str
    identifier: Identifier
    status: str
    expires_at: datetime
    challenges: tuple[Challenge, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """An order, as it stands at the time of reading."""

    id: str
    account_id: str
    status: str
    identifiers: tuple[Identifier, ...]
    authorizations: tuple[str, ...]
    error: Mapping[str, Any] | None
    authority_id: str | None
    serial: str | None
    created_at: datetime
    expires_at: datetime
    csr: bytes | None
    processing_until: datetime | None


@dataclass(frozen=True, slots=True)
class Job:
    """A challenge that this process is to validate until the lease ends."""

    challenge: Challenge
    identifier: Identifier
    account_id: str
    lease: str


Within = Callable[[Writer], None]
"""Work that belongs into a transaction of ours."""


class Refusal(Exception):
    """What was asked for is not so any more; nothing was changed."""


class LeaseLost(Exception):
    """Another has taken over what this one was working at."""


class Store:
    """The tables of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # ---- nonces ------------------------------------------------------------------------------

    def secret(self) -> bytes:
        """The key that nonces are sealed with, the same for every replica; made at first use."""
        while True:
            with self.database.read() as connection:
                found = connection.execute(select(_SECRET.c.key)).scalar_one_or_none()
            if found is not None:
                return bytes(found)
            try:
                with self.database.write() as writer:
                    writer.connection.execute(
                        insert(_SECRET).values(id=1, key=secrets.token_bytes(KEY_BYTES))
                    )
            except Conflict:
                continue  # another process made it

    def use_nonce(self, nonce: str, expires: datetime) -> bool:
        """Record that a nonce was used; False if it had been."""
        try:
            with self.database.write() as writer:
                writer.connection.execute(
                    insert(_NONCE).values(nonce=nonce, expires_at=text(expires))
                )
        except Conflict:
            return False
        return True

    # ---- accounts ----------------------------------------------------------------------------

    def account(self, account_id: str) -> Account | None:
        """The account with this id."""
        return self._account(_ACCOUNT.c.id == account_id)

    def account_by_key(self, thumbprint: str) -> Account | None:
        """The account with this key."""
        return self._account(_ACCOUNT.c.key_thumbprint == thumbprint)

    def accounts_since(self, since: datetime) -> int:
        """How many accounts were made since then."""
        with self.database.read() as connection:
            return int(
                connection.execute(
                    select(func.count()).where(_ACCOUNT.c.created_at >= text(since))
                ).scalar_one()
            )

    def create_account(
        self,
        *,
        thumbprint: str,
        jwk: str,
        contact: Sequence[str],
        external_id: str | None,
        now: datetime,
    ) -> Account:
        """Make an account, and use up its key for external accounts in the same transaction.

        Raises Conflict if the key has an account, Refusal if the external key is gone or used up.
        """
        account_id = new_id()
        with self.database.write() as writer:
            if external_id is not None:
                self._spend(writer.connection, external_id, now)
            writer.connection.execute(
                insert(_ACCOUNT).values(
                    id=account_id,
                    key_thumbprint=thumbprint,
                    jwk=jwk,
                    status=states.VALID,
                    contact=json.dumps(list(contact)),
                    external_id=external_id,
                    created_at=text(now),
                )
            )
        return Account(account_id, thumbprint, jwk, states.VALID, tuple(contact), external_id, now)

    def set_contact(self, account_id: str, contact: Sequence[str]) -> None:
        """Replace the contacts."""
        with self.database.write() as writer:
            writer.connection.execute(
                update(_ACCOUNT)
                .where(_ACCOUNT.c.id == account_id)
                .values(contact=json.dumps(list(contact)))
            )

    def deactivate_account(self, account_id: str) -> None:
        """End an account and every order of it that is not finished."""
        with self.database.write() as writer:
            connection = writer.connection
            connection.execute(
                update(_ACCOUNT)
                .where(
                    _ACCOUNT.c.id == account_id,
                    _ACCOUNT.c.status.in_(states.leads_to(states.ACCOUNT, states.DEACTIVATED)),
                )
                .values(status=states.DEACTIVATED)
            )
            connection.execute(
                update(_ORDER)
                .where(
                    _ORDER.c.account_id == account_id,
                    _ORDER.c.status.in_((states.PENDING, states.READY)),
                )
                .values(status=states.INVALID)
            )
            connection.execute(
                update(_AUTHORIZATION)
                .where(
                    _AUTHORIZATION.c.account_id == account_id,
                    _AUTHORIZATION.c.status.in_(
                        states.leads_to(states.AUTHORIZATION, states.DEACTIVATED)
                    ),
                )
                .values(status=states.DEACTIVATED)
            )

    def change_key(self, account: Account, *, thumbprint: str, jwk: str) -> bool:
        """Give an account another key; False if its key was changed meanwhile. Raises Conflict."""
        with self.database.write() as writer:
            count = writer.connection.execute(
                update(_ACCOUNT)
                .where(
                    _ACCOUNT.c.id == account.id,
                    _ACCOUNT.c.key_thumbprint == account.thumbprint,
                    _ACCOUNT.c.status == states.VALID,
                )
                .values(key_thumbprint=thumbprint, jwk=jwk)
            ).rowcount
        return bool(count)

    # ---- external accounts -------------------------------------------------------------------

    def create_external_key(
        self,
        rules: KeyRules,
        *,
        created_by: str,
        now: datetime,
        key_id: str | None = None,
        within: Within | None = None,
    ) -> tuple[ExternalKey, bytes]:
        """Make a key for external accounts: its entry and the secret, which is given this once.

        `within` is done in the same transaction.
        """
        key_id, key = key_id or new_id(), new_external_key()
        with self.database.write() as writer:
            if within is not None:
                within(writer)
            writer.connection.execute(
                insert(_KEY).values(
                    id=key_id,
                    key=key,
                    rules=json.dumps(rules.document()),
                    created_at=text(now),
                    created_by=created_by,
                )
            )
        return ExternalKey(key_id, rules, now, created_by, None), key

    def external_key(self, key_id: str) -> tuple[ExternalKey, bytes] | None:
        """A key for external accounts, with the key itself."""
        with self.database.read() as connection:
            row = connection.execute(select(_KEY).where(_KEY.c.id == key_id)).first()
        return None if row is None else (_external_key(row), bytes(row.key))

    def external_keys(self) -> list[ExternalKey]:
        """Every key for external accounts, the newest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                select(_KEY).order_by(_KEY.c.created_at.desc(), _KEY.c.id)
            ).all()
        return [_external_key(row) for row in rows]

    def delete_external_key(self, key_id: str, *, within: Within | None = None) -> bool:
        """Delete a key: no account is made with it, and its accounts order nothing any more.

        `within` is done in the same transaction if there is such a key; False if there is none.
        """
        with self.database.write() as writer:
            count = writer.connection.execute(delete(_KEY).where(_KEY.c.id == key_id)).rowcount
            if count and within is not None:
                within(writer)
        return bool(count)

    # ---- orders ------------------------------------------------------------------------------

    def orders_since(self, account_id: str, since: datetime) -> list[datetime]:
        """When an account made its orders since then, the oldest first."""
        with self.database.read() as connection:
            found = connection.execute(
                select(_ORDER.c.created_at)
                .where(_ORDER.c.account_id == account_id, _ORDER.c.created_at >= text(since))
                .order_by(_ORDER.c.created_at)
            ).scalars()
            return [moment(value) for value in found]

    def create_order(
        self,
        account_id: str,
        offered: Sequence[tuple[Identifier, Sequence[str]]],
        *,
        now: datetime,
        expires: datetime,
    ) -> Order:
        """Make an order, an authorization for each name, and the challenges offered for it."""
        order_id = new_id()
        authorizations: list[dict[str, Any]] = []
        challenges: list[dict[str, Any]] = []
        for identifier, types in offered:
            authorization_id = new_id()
            authorizations.append(
                {
                    "id": authorization_id,
                    "order_id": order_id,
                    "account_id": account_id,
                    "kind": identifier.kind,
                    "value": identifier.value,
                    "wildcard": int(identifier.wildcard),
                    "status": states.PENDING,
                    "expires_at": text(expires),
                }
            )
            token = secrets.token_urlsafe(32)
            challenges += [
                {
                    "id": new_id(),
                    "authorization_id": authorization_id,
                    "type": kind,
                    "token": token,
                    "status": states.PENDING,
                }
                for kind in types
            ]
        identifiers = tuple(identifier for identifier, _ in offered)
        with self.database.write() as writer:
            writer.connection.execute(
                insert(_ORDER).values(
                    id=order_id,
                    account_id=account_id,
                    status=states.PENDING,
                    identifiers=_identifiers_text(identifiers),
                    created_at=text(now),
                    expires_at=text(expires),
                )
            )
            writer.connection.execute(insert(_AUTHORIZATION), authorizations)
            writer.connection.execute(insert(_CHALLENGE), challenges)
        return Order(
            id=order_id,
            account_id=account_id,
            status=states.PENDING,
            identifiers=identifiers,
            authorizations=tuple(row["id"] for row in authorizations),
            error=None,
            authority_id=None,
            serial=None,
            created_at=now,
            expires_at=expires,
            csr=None,
            processing_until=None,
        )

    def order(self, order_id: str, now: datetime) -> Order | None:
        """The order with this id; one that ran out of time reads invalid."""
        with self.database.read() as connection:
            row = connection.execute(select(_ORDER).where(_ORDER.c.id == order_id)).first()
            if row is None:
                return None
            return _order(row, _authorization_ids(connection, order_id), now)

    def order_of(self, account_id: str, authority_id: str, serial: str) -> bool:
        """Whether the account ordered this certificate."""
        with self.database.read() as connection:
            return bool(
                connection.execute(
                    select(
                        exists().where(
                            _ORDER.c.authority_id == authority_id,
                            _ORDER.c.serial == serial,
                            _ORDER.c.account_id == account_id,
                        )
                    )
                ).scalar_one()
            )

    def order_ids(
        self, account_id: str, limit: int, after: tuple[str, str] | None = None
    ) -> list[tuple[str, str]]:
        """(created_at, id) of an account's orders, the oldest first, after the one given."""
        columns = (_ORDER.c.created_at, _ORDER.c.id)
        query = select(*columns).where(_ORDER.c.account_id == account_id)
        if after is not None:
            query = query.where(tuple_(*columns) > tuple_(*after))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(*columns).limit(limit)).all()
        return [(row.created_at, row.id) for row in rows]

    # ---- finalizing --------------------------------------------------------------------------

    def begin_processing(
        self, order: Order, csr: bytes, *, now: datetime, until: datetime
    ) -> str | None:
        """Take a ready order for issuing; returns the lease, or None if it is not ready any more.

        Exactly one caller gets a lease, whatever the number of processes.
        """
        states.check(states.ORDER, states.READY, states.PROCESSING)
        lease = text(until)
        with self.database.write() as writer:
            count = writer.connection.execute(
                update(_ORDER)
                .where(
                    _ORDER.c.id == order.id,
                    _ORDER.c.status == states.READY,
                    _ORDER.c.expires_at > text(now),
                )
                .values(status=states.PROCESSING, csr=csr, processing_until=lease)
            ).rowcount
        return lease if count else None

    def take_over(self, order: Order, *, now: datetime, until: datetime) -> str | None:
        """Take an order whose processing ended without a result; returns the lease or None."""
        lease = text(until)
        with self.database.write() as writer:
            count = writer.connection.execute(
                update(_ORDER)
                .where(
                    _ORDER.c.id == order.id,
                    _ORDER.c.status == states.PROCESSING,
                    _ORDER.c.processing_until <= text(now),
                )
                .values(processing_until=lease)
            ).rowcount
        return lease if count else None

    def reserve(
        self, writer: Writer, order_id: str, lease: str, authority_id: str, serial: str
    ) -> None:
        """Note the serial that is signed for an order, in the transaction that reserves it.

        Raises LeaseLost if another has taken the order over, and so undoes the transaction.
        """
        count = writer.connection.execute(
            update(_ORDER)
            .where(*_held(order_id, lease))
            .values(authority_id=authority_id, serial=serial)
        ).rowcount
        if not count:
            raise LeaseLost(order_id)

    def end_processing(
        self, order_id: str, lease: str, status: str, *, error: Mapping[str, Any] | None = None
    ) -> bool:
        """Record the outcome of issuing; False if the lease was lost."""
        states.check(states.ORDER, states.PROCESSING, status)
        values: dict[str, Any] = {
            "status": status,
            "processing_until": None,
            "csr": None,
            "error": None if error is None else json.dumps(error),
        }
        if status != states.VALID:
            values |= {"authority_id": None, "serial": None}
        with self.database.write() as writer:
            count = writer.connection.execute(
                update(_ORDER).where(*_held(order_id, lease)).values(**values)
            ).rowcount
        return bool(count)

    # ---- authorizations ----------------------------------------------------------------------

    def authorization(self, authorization_id: str, now: datetime) -> Authorization | None:
        """The authorization with this id and its challenges."""
        with self.database.read() as connection:
            row = connection.execute(
                select(_AUTHORIZATION).where(_AUTHORIZATION.c.id == authorization_id)
            ).first()
            if row is None:
                return None
            challenges = connection.execute(
                select(_CHALLENGE)
                .where(_CHALLENGE.c.authorization_id == authorization_id)
                .order_by(_CHALLENGE.c.type)
            ).all()
        return _authorization(row, [_challenge(each) for each in challenges], now)

    def authorization_of(self, challenge_id: str, now: datetime) -> Authorization | None:
        """The authorization that a challenge belongs to."""
        with self.database.read() as connection:
            found = connection.execute(
                select(_CHALLENGE.c.authorization_id).where(_CHALLENGE.c.id == challenge_id)
            ).scalar_one_or_none()
        return None if found is None else self.authorization(found, now)

    def processing(self, order_id: str) -> list[Challenge]:
        """The challenges of an order that are being validated."""
        with self.database.read() as connection:
            parents = select(_AUTHORIZATION.c.id).where(_AUTHORIZATION.c.order_id == order_id)
            rows = connection.execute(
                select(_CHALLENGE).where(
                    _CHALLENGE.c.authorization_id.in_(parents),
                    _CHALLENGE.c.status == states.PROCESSING,
                )
            ).all()
        return [_challenge(row) for row in rows]

    def authorized(self, account_id: str, now: datetime) -> set[tuple[str, str]]:
        """(kind, name) of everything the account has a valid authorization for."""
        with self.database.read() as connection:
            rows = connection.execute(
                select(_AUTHORIZATION)
                .where(
                    _AUTHORIZATION.c.account_id == account_id,
                    _AUTHORIZATION.c.status == states.VALID,
                    _AUTHORIZATION.c.expires_at > text(now),
                )
                .distinct()
            ).all()
        return {
            (each.kind, each.name)
            for each in (Identifier(row.kind, row.value, bool(row.wildcard)) for row in rows)
        }

    def deactivate_authorization(self, authorization: Authorization) -> bool:
        """Give up an authorization, and with it a pending or ready order; False if it was over."""
        with self.database.write() as writer:
            connection = writer.connection
            _lock_order(connection, authorization.order_id)
            count = connection.execute(
                update(_AUTHORIZATION)
                .where(
                    _AUTHORIZATION.c.id == authorization.id,
                    _AUTHORIZATION.c.status.in_(
                        states.leads_to(states.AUTHORIZATION, states.DEACTIVATED)
                    ),
                )
                .values(status=states.DEACTIVATED)
            ).rowcount
            if count:
                connection.execute(
                    update(_ORDER)
                    .where(
                        _ORDER.c.id == authorization.order_id,
                        _ORDER.c.status.in_((states.PENDING, states.READY)),
                    )
                    .values(status=states.INVALID)
                )
        return bool(count)

    # ---- challenges --------------------------------------------------------------------------

    def begin_challenge(self, challenge: Challenge, now: datetime) -> bool:
        """Note that the client is ready for validation; False if it was noted before."""
        states.check(states.CHALLENGE, states.PENDING, states.PROCESSING)
        with self.database.write() as writer:
            count = writer.connection.execute(
                update(_CHALLENGE)
                .where(_CHALLENGE.c.id == challenge.id, _CHALLENGE.c.status == states.PENDING)
                .values(status=states.PROCESSING, processing_until=text(now))
            ).rowcount
        return bool(count)

    def claim(self, challenge_id: str, *, now: datetime, until: datetime) -> Job | None:
        """Take a challenge for validation until then; None if another has it or it is over."""
        lease = text(until)
        with self.database.write() as writer:
            connection = writer.connection
            row = connection.execute(
                update(_CHALLENGE)
                .where(
                    _CHALLENGE.c.id == challenge_id,
                    _CHALLENGE.c.status == states.PROCESSING,
                    _CHALLENGE.c.processing_until <= text(now),
                )
                .values(processing_until=lease)
                .returning(*_CHALLENGE.c)
            ).first()
            if row is None:
                return None
            parent = connection.execute(
                select(_AUTHORIZATION).where(_AUTHORIZATION.c.id == row.authorization_id)
            ).one()
        identifier = Identifier(parent.kind, parent.value, bool(parent.wildcard))
        return Job(_challenge(row), identifier, parent.account_id, lease)

    def end_challenge(self, job: Job, error: Mapping[str, Any] | None, now: datetime) -> bool:
        """Record the outcome of a validation, and what follows for authorization and order.

        `error` None is success. False if the lease was lost: then another's outcome counts.
        """
        status = states.VALID if error is None else states.INVALID
        states.check(states.CHALLENGE, states.PROCESSING, status)
        with self.database.write() as writer:
            connection = writer.connection
            order_id = connection.execute(
                select(_AUTHORIZATION.c.order_id).where(
                    _AUTHORIZATION.c.id == job.challenge.authorization_id
                )
            ).scalar_one()
            # two names of one order may end at once: each has to see what the other did
            _lock_order(connection, order_id)
            count = connection.execute(
                update(_CHALLENGE)
                .where(
                    _CHALLENGE.c.id == job.challenge.id,
                    _CHALLENGE.c.status == states.PROCESSING,
                    _CHALLENGE.c.processing_until == job.lease,
                )
                .values(
                    status=status,
                    processing_until=None,
                    validated_at=text(now) if error is None else None,
                    error=None if error is None else json.dumps(error),
                )
            ).rowcount
            if not count:
                return False
            connection.execute(
                update(_AUTHORIZATION)
                .where(
                    _AUTHORIZATION.c.id == job.challenge.authorization_id,
                    _AUTHORIZATION.c.status == states.PENDING,
                    _AUTHORIZATION.c.expires_at > text(now),
                )
                .values(status=status)
            )
            self._follow(connection, order_id, error)
        return True

    # ---- tidying -----------------------------------------------------------------------------

    def tidy(self, now: datetime) -> None:
        """Take away nonces that count no more and orders that came to nothing a while ago."""
        with self.database.write() as writer:
            connection = writer.connection
            old = select(_NONCE.c.nonce).where(_NONCE.c.expires_at < text(now)).limit(TIDIED)
            connection.execute(delete(_NONCE).where(_NONCE.c.nonce.in_(old)))
            orders = (
                connection.execute(
                    select(_ORDER.c.id)
                    .where(
                        _ORDER.c.expires_at < text(now - KEPT),
                        _ORDER.c.status.in_((states.PENDING, states.READY, states.INVALID)),
                    )
                    .limit(TIDIED)
                )
                .scalars()
                .all()
            )
            if not orders:
                return
            parents = select(_AUTHORIZATION.c.id).where(_AUTHORIZATION.c.order_id.in_(orders))
            connection.execute(delete(_CHALLENGE).where(_CHALLENGE.c.authorization_id.in_(parents)))
            connection.execute(delete(_AUTHORIZATION).where(_AUTHORIZATION.c.order_id.in_(orders)))
            connection.execute(delete(_ORDER).where(_ORDER.c.id.in_(orders)))

    # ---- parts -------------------------------------------------------------------------------

    def _account(self, condition: Any) -> Account | None:
        with self.database.read() as connection:
            row = connection.execute(select(_ACCOUNT).where(condition)).first()
        if row is None:
            return None
        return Account(
            id=row.id,
            thumbprint=row.key_thumbprint,
            jwk=row.jwk,
            status=row.status,
            contact=tuple(json.loads(row.contact)),
            external_id=row.external_id,
            created_at=moment(row.created_at),
        )

    def _spend(self, connection: Connection, key_id: str, now: datetime) -> None:
        row = connection.execute(select(_KEY).where(_KEY.c.id == key_id).with_for_update()).first()
        if row is None:
            raise Refusal("the key for external accounts was deleted")
        rules = parse_rules(json.loads(row.rules))
        if row.used_at is not None and not rules.reusable:
            raise Refusal("the key for external accounts has made its account already")
        if rules.expires is not None and rules.expires <= now:
            raise Refusal("the key for external accounts has expired")
        connection.execute(update(_KEY).where(_KEY.c.id == key_id).values(used_at=text(now)))

    def _follow(
        self, connection: Connection, order_id: str, error: Mapping[str, Any] | None
    ) -> None:
        found = connection.execute(
            select(_AUTHORIZATION.c.status).where(_AUTHORIZATION.c.order_id == order_id)
        ).scalars()
        status = states.order_after(list(found))
        if status is None:
            return
        states.check(states.ORDER, states.PENDING, status)
        connection.execute(
            update(_ORDER)
            .where(_ORDER.c.id == order_id, _ORDER.c.status == states.PENDING)
            .values(status=status, error=None if error is None else json.dumps(error))
        )


def new_id() -> str:
    """128 random bits in hex: whoever knows an id knows nothing of another."""
    return secrets.token_hex(16)


def new_external_key() -> bytes:
    """A key whose base64url does not begin with a hyphen.

    `certbot --eab-hmac-key -x...` takes such a key for an option and stops (measured: one key in
    64). Leaving out the first six bits 62 costs 0.02 of 256 bits.
    """
    while (key := secrets.token_bytes(EXTERNAL_KEY_BYTES))[0] >> 2 == 62:
        pass
    return key


def text(when: datetime) -> str:
    """A time as the tables have it: ``2026-11-21T02:17:39.000000Z``."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(value: str) -> datetime:
    """The reverse of `text`."""
    return datetime.fromisoformat(value)


def _held(order_id: str, lease: str) -> tuple[ColumnElement[bool], ...]:
    return (
        _ORDER.c.id == order_id,
        _ORDER.c.status == states.PROCESSING,
        _ORDER.c.processing_until == lease,
    )


def _lock_order(connection: Connection, order_id: str) -> None:
    # SQLite's writers are one at a time anyhow, and it passes over FOR UPDATE
    connection.execute(select(_ORDER.c.id).where(_ORDER.c.id == order_id).with_for_update())


def _authorization_ids(connection: Connection, order_id: str) -> tuple[str, ...]:
    rows = connection.execute(
        select(_AUTHORIZATION.c.id)
        .where(_AUTHORIZATION.c.order_id == order_id)
        .order_by(_AUTHORIZATION.c.value, _AUTHORIZATION.c.wildcard)
    ).scalars()
    return tuple(rows)


def _identifiers_text(identifiers: Sequence[Identifier]) -> str:
    return json.dumps([[each.kind, each.value, each.wildcard] for each in identifiers])


def _optional(value: str | None) -> datetime | None:
    return None if value is None else moment(value)


def _error(value: str | None) -> Mapping[str, Any] | None:
    if value is None:
        return None
    error: Mapping[str, Any] = json.loads(value)
    return error


def _external_key(row: Any) -> ExternalKey:
    return ExternalKey(
        id=row.id,
        rules=parse_rules(json.loads(row.rules)),
        created_at=moment(row.created_at),
        created_by=row.created_by,
        used_at=_optional(row.used_at),
    )


def _order(row: Any, authorizations: tuple[str, ...], now: datetime) -> Order:
    status = row.status
    expires = moment(row.expires_at)
    if status in (states.PENDING, states.READY) and expires <= now:
        status = states.INVALID
    return Order(
        id=row.id,
        account_id=row.account_id,
        status=status,
        identifiers=tuple(Identifier(*each) for each in json.loads(row.identifiers)),
        authorizations=authorizations,
        error=_error(row.error),
        authority_id=row.authority_id,
        serial=row.serial,
        created_at=moment(row.created_at),
        expires_at=expires,
        csr=None if row.csr is None else bytes(row.csr),
        processing_until=_optional(row.processing_until),
    )


def _authorization(row: Any, challenges: Sequence[Challenge], now: datetime) -> Authorization:
    status = row.status
    expires = moment(row.expires_at)
    if expires <= now:
        # what ran out while valid has expired, what never was valid has failed
        status = {states.VALID: states.EXPIRED, states.PENDING: states.INVALID}.get(status, status)
    return Authorization(
        id=row.id,
        order_id=row.order_id,
        account_id=row.account_id,
        identifier=Identifier(row.kind, row.value, bool(row.wildcard)),
        status=status,
        expires_at=expires,
        challenges=tuple(challenges),
    )


def _challenge(row: Any) -> Challenge:
    return Challenge(
        id=row.id,
        authorization_id=row.authorization_id,
        type=row.type,
        token=row.token,
        status=row.status,
        validated_at=_optional(row.validated_at),
        error=_error(row.error),
        processing_until=_optional(row.processing_until),
    )
