"""ACME's view of the certificate authority: `services.ca.authority` and its ledger."""

from __future__ import annotations

import hashlib

from services.ca.acme.orders import Caller, Known, Reserve
from services.ca.acme.problems import Problem
from services.ca.authority import (
    Actor,
    Authority,
    Forbidden,
    Missing,
    NotPossible,
    SigningFailed,
)
from services.ca.request import CertificateRequest
from services.ca.states import PENDING, REVOKED, UNKNOWN
from services.core.database import Writer


class AuthorityCertificates:
    """`services.ca.acme.orders.Certificates` over an Authority."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def issue(
        self, profile: str, request: CertificateRequest, caller: Caller, reserve: Reserve
    ) -> None:
        chosen = self._authority.active_id

        def within(writer: Writer, serial: str) -> None:
            reserve(writer, chosen, serial)

        try:
            self._authority.issue(
                profile, request, _actor(caller), authority_id=chosen, within=within
            )
        except Forbidden as forbidden:
            raise Problem("unauthorized", forbidden.reason) from None
        except SigningFailed:
            raise Problem(
                "serverInternal",
                "the authority cannot sign just now",
                status=503,
                headers=[("Retry-After", "60")],
            ) from None

    def is_issued(self, authority_id: str, serial: str) -> bool:
        return self._authority.ledger.der(authority_id, serial) is not None

    def abandon(self, authority_id: str, serial: str, caller: Caller) -> None:
        try:
            self._authority.revoke(
                authority_id, int(serial, 16), "cessationOfOperation", _actor(caller)
            )
        except (Missing, NotPossible):
            return  # it is nowhere, or revoked already

    def chain_pem(self, authority_id: str, serial: str) -> bytes | None:
        record = self._authority.ledger.by_serial(serial, authority_id)
        if record is None or record.state == PENDING:
            return None
        try:
            return self._authority.issued(record).pem_chain()
        except Missing:
            return None

    def known(self, der: bytes) -> Known | None:
        record = self._authority.ledger.by_fingerprint(hashlib.sha256(der).hexdigest())
        if record is None or record.state in (PENDING, UNKNOWN):
            return None
        return Known(record.authority_id, record.serial, record.state == REVOKED)

    def revoke(self, known: Known, reason: str, caller: Caller) -> None:
        try:
            self._authority.revoke(
                known.authority_id, int(known.serial, 16), reason, _actor(caller)
            )
        except NotPossible:
            raise Problem("alreadyRevoked", "the certificate is revoked already") from None
        except Missing:
            raise Problem("malformed", "there is no such certificate", status=404) from None


def _actor(caller: Caller) -> Actor:
    return Actor(
        name=f"acme:{caller.account_id}" if caller.account_id else "acme",
        groups=frozenset(),
        address=caller.address,
        request_id=caller.request_id,
        via="acme",
    )
