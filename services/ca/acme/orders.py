"""Finalizing: from a ready order to its certificate, once, whoever dies on the way.

Of several that finalize an order one wins it (`ready` to `processing`, compare and swap) and holds
it for `LEASE`; the request is written down with that step. The serial is written into the order in
the transaction that reserves it in the ledger, and only by the holder of the lease. So after a
kill the order says what was begun: whoever polls when the lease is over takes the order and either
finds the certificate in the ledger, or revokes what was reserved and never stored (after which it
can not be stored any more, should its worker still live) and issues anew.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from services.ca.acme import jws, states
from services.ca.acme.problems import Problem
from services.ca.acme.rules import DNS, IP, check_identifiers, check_request
from services.ca.acme.store import Account, LeaseLost, Order, Store
from services.ca.profiles import NameRules, Profile
from services.ca.refusal import Refused
from services.ca.request import CertificateRequest, parse_csr
from services.core.database import Writer

LOG = structlog.get_logger("mooring.acme")

# gunicorn kills a worker after 30 s in one request (etc/gunicorn/ca.py), so who holds a lease that
# is over is dead as a rule; nothing breaks if not.
LEASE: Final = timedelta(seconds=60)

# Seconds after which a client looks again at an order that is not finished.
LOOK_AGAIN: Final = "2"

Reserve = Callable[[Writer, str, str], None]
"""Given (transaction, authority id, serial) of what is about to be signed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the account, and for the audit trail from where and in which request."""

    account_id: str
    address: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Known:
    """A certificate that the ledger has."""

    authority_id: str
    serial: str
    revoked: bool


class Certificates(Protocol):
    """What ACME needs of the certificate authority: services.ca.acme.certificates has it."""

    def issue(
        self, profile: str, request: CertificateRequest, caller: Caller, reserve: Reserve
    ) -> None:
        """Issue; `reserve` is done in the transaction that reserves the serial.

        Raises Refused, Problem, and what `reserve` raises.
        """

    def is_issued(self, authority_id: str, serial: str) -> bool:
        """Whether the ledger has the certificate, still valid or not, and not its serial alone."""

    def abandon(self, authority_id: str, serial: str, caller: Caller) -> None:
        """See to it that what was reserved is never given out."""

    def chain_pem(self, authority_id: str, serial: str) -> bytes | None:
        """A certificate and what is sent behind it, leaf first."""

    def known(self, der: bytes) -> Known | None:
        """The ledger's entry of exactly this certificate."""

    def revoke(self, known: Known, reason: str, caller: Caller) -> None:
        """Revoke a certificate; raises Problem."""


class Policy:
    """Which profile and which names an account has."""

    def __init__(self, store: Store, profiles: Mapping[str, Profile], default: str) -> None:
        """Take the profiles that are given over ACME, by name, and the one of accounts at large."""
        self._store = store
        self._profiles = profiles
        self._default = default

    def of(self, account: Account) -> tuple[Profile, tuple[NameRules, ...]]:
        """The account's profile and the rules that all have to allow a name; raises Problem."""
        name, extra = self._default, None
        if account.external_id is not None:
            found = self._store.external_key(account.external_id)
            if found is None:
                raise Problem("unauthorized", "the account's external account was taken back")
            rules = found[0].rules
            name, extra = rules.profile or name, rules.names
        profile = self._profiles.get(name)
        if profile is None:
            raise Problem("unauthorized", "the account's profile is not given over ACME")
        return profile, (profile.names,) if extra is None else (profile.names, extra)


class Finalizer:
    """Issues for orders."""

    def __init__(
        self,
        store: Store,
        certificates: Certificates,
        policy: Policy,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._certificates = certificates
        self._policy = policy
        self._clock = clock

    def finalize(self, account: Account, order: Order, csr: bytes, caller: Caller) -> Order:
        """Issue for a ready order; returns it as it stands then. Raises Problem."""
        if order.status != states.READY:
            raise Problem("orderNotReady", f"the order is {order.status}, not ready")
        request = _request(account, order, csr)
        profile = self._allowed(account, order)
        now = self._clock()
        lease = self._store.begin_processing(order, csr, now=now, until=now + LEASE)
        if lease is None:
            raise Problem("orderNotReady", "the order is being finalized, or is over")
        return self._issue(order, profile, request, lease, caller)

    def recover(self, account: Account, order: Order, caller: Caller) -> Order:
        """Bring an order to its end whose finalizing was broken off; any other is left alone."""
        now = self._clock()
        if (
            order.status != states.PROCESSING
            or order.processing_until is None
            or order.processing_until > now
            or order.csr is None
        ):
            return order
        lease = self._store.take_over(order, now=now, until=now + LEASE)
        if lease is None:
            return self._again(order)
        LOG.warning("acme order taken over", order=order.id, account=account.id)
        # read after the lease was taken: nobody else writes the serial from here on
        order = self._again(order)
        if order.authority_id is not None and order.serial is not None:
            if self._certificates.is_issued(order.authority_id, order.serial):
                self._store.end_processing(order.id, lease, states.VALID)
                return self._again(order)
            self._certificates.abandon(order.authority_id, order.serial, caller)
        try:
            request = _request(account, order, order.csr or b"")
            profile = self._allowed(account, order)
            return self._issue(order, profile, request, lease, caller)
        except Problem as problem:
            # what was allowed when the order was finalized is not any more
            self._store.end_processing(order.id, lease, states.INVALID, error=problem.document())
            return self._again(order)

    def _allowed(self, account: Account, order: Order) -> str:
        """The account's profile; raises Problem by the policy of now, not of the order's time."""
        profile, rules = self._policy.of(account)
        check_identifiers(order.identifiers, rules)
        return profile.name

    def _issue(
        self, order: Order, profile: str, request: CertificateRequest, lease: str, caller: Caller
    ) -> Order:
        def reserve(writer: Writer, authority_id: str, serial: str) -> None:
            self._store.reserve(writer, order.id, lease, authority_id, serial)

        try:
            self._certificates.issue(profile, request, caller, reserve)
        except LeaseLost:
            return self._again(order)
        except Refused as refused:
            self._store.end_processing(order.id, lease, states.READY)
            raise Problem("badCSR", f"{refused.field}: {refused.reason}") from None
        except Problem:
            self._store.end_processing(order.id, lease, states.READY)
            raise
        # Whatever else is raised leaves the order in processing: whether something was signed is
        # for the ledger to say, when the lease is over.
        self._store.end_processing(order.id, lease, states.VALID)
        return self._again(order)

    def _again(self, order: Order) -> Order:
        return self._store.order(order.id, self._clock()) or order


def _request(account: Account, order: Order, csr: bytes) -> CertificateRequest:
    try:
        request = parse_csr(csr)
    except Refused as refused:
        raise Problem("badCSR", f"{refused.field}: {refused.reason}") from None
    # RFC 8555 section 11.1
    if jws.jwk_of(request.public_key).thumbprint == account.thumbprint:
        raise Problem("badCSR", "the key of the certificate is that of the account")
    check_request(request, order.identifiers)
    # a name may have stood in the subject only; issued are the names that were validated
    return replace(
        request,
        organizations=(),
        dns_names=tuple(each.name for each in order.identifiers if each.kind == DNS),
        ip_addresses=tuple(
            ipaddress.ip_address(each.value) for each in order.identifiers if each.kind == IP
        ),
    )
