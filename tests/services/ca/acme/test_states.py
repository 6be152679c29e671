"""The tables of states, the only ways between them, and what follows for an order."""

from __future__ import annotations

import itertools

import pytest

from services.ca.acme import states
from services.ca.acme.states import (
    ACCOUNT,
    AUTHORIZATION,
    CHALLENGE,
    INVALID,
    ORDER,
    PENDING,
    READY,
    VALID,
    NotAllowed,
    Table,
    check,
    leads_to,
    order_after,
)

TABLES = {
    "account": ACCOUNT,
    "order": ORDER,
    "authorization": AUTHORIZATION,
    "challenge": CHALLENGE,
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_are_closed(table: Table) -> None:
    """Every state that a table leads to has its own row, so no object gets lost."""
    assert set().union(*table.values()) <= set(table)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_check_is_the_table(table: Table) -> None:
    """A step passes exactly if the table has it."""
    for old, new in itertools.product(table, repeat=2):
        if new in table[old]:
            check(table, old, new)
        else:
            with pytest.raises(NotAllowed):
                check(table, old, new)


def test_a_certificate_is_the_end() -> None:
    """Nothing leads out of a valid or an invalid order, and only processing leads to valid."""
    assert ORDER[VALID] == ORDER[INVALID] == frozenset()
    assert leads_to(ORDER, VALID) == (states.PROCESSING,)
    assert leads_to(ORDER, states.PROCESSING) == (READY,)


@pytest.mark.parametrize(
    ("authorizations", "order"),
    [
        ([VALID], READY),
        ([VALID, VALID], READY),
        ([VALID, PENDING], None),
        ([PENDING], None),
        ([PENDING, INVALID], INVALID),
        ([VALID, states.DEACTIVATED], INVALID),
        ([VALID, states.EXPIRED], INVALID),
        ([VALID, states.REVOKED], INVALID),
    ],
)
def test_order_follows(authorizations: list[str], order: str | None) -> None:
    """An order is ready when all its names are valid, invalid as soon as one can not become so."""
    assert order_after(authorizations) == order
