"""The states of ACME's objects and the only ways from one to another (RFC 8555 section 7.1.6).

Nothing here does I/O. The store changes a state only through `check`, and in SQL only from the
state that was read, so of two that race one wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PENDING: Final = "pending"
READY: Final = "ready"
PROCESSING: Final = "processing"
VALID: Final = "valid"
INVALID: Final = "invalid"
DEACTIVATED: Final = "deactivated"
REVOKED: Final = "revoked"
EXPIRED: Final = "expired"

Table = Mapping[str, frozenset[str]]


def _table(**rows: str) -> Table:
    return {state: frozenset(targets.split()) for state, targets in rows.items()}


ACCOUNT: Final = _table(
    valid="deactivated revoked",  # by its holder, by an operator
    deactivated="",
    revoked="",
)

ORDER: Final = _table(
    pending="ready invalid",
    ready="processing invalid",
    # ready again: what was asked for was refused before anything was signed, so a corrected
    # request may follow; the RFC's own figure has no such refusal after the answer.
    processing="valid invalid ready",
    valid="",
    invalid="",
)

AUTHORIZATION: Final = _table(
    # deactivated while pending: section 7.5.2 lets a client give up what it began
    pending="valid invalid deactivated",
    valid="deactivated expired revoked",
    invalid="",
    deactivated="",
    expired="",
    revoked="",
)

CHALLENGE: Final = _table(
    pending="processing",
    processing="valid invalid",
    valid="",
    invalid="",
)


class NotAllowed(Exception):
    """A change of state that no table has: a mistake of ours, never of a client's making."""


def check(table: Table, old: str, new: str) -> None:
    """Raise NotAllowed unless the table leads from `old` to `new`."""
    if new not in table[old]:
        raise NotAllowed(f"{old} does not become {new}")


def leads_to(table: Table, new: str) -> tuple[str, ...]:
    """The states from which `new` can be reached in one step, sorted."""
    return tuple(sorted(old for old, targets in table.items() if new in targets))


def order_after(authorizations: list[str]) -> str | None:
    """The state that a pending order takes once its authorizations are in these states, if any."""
    if any(state not in (PENDING, VALID) for state in authorizations):
        return INVALID
    if all(state == VALID for state in authorizations):
        return READY
    return None
