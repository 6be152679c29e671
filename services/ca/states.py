"""The life of a certificate in the ledger, as a table; RFC 5280 section 5.3.1 gives the reasons.

    pending -> issued -> revoked
       |        |  ^        ^
       |        v  |        |
       |        held -------+
       +------------------->+

A pending one is recorded and perhaps signed, and was never given out.
"""

from __future__ import annotations

from cryptography import x509

PENDING, ISSUED, HELD, REVOKED = "pending", "issued", "held", "revoked"
UNKNOWN = "unknown"

EXPIRED = "expired"
"""What an issued or held certificate is called after its end; no row says it."""

TRANSITIONS: frozenset[tuple[str, str]] = frozenset(
    {
        (PENDING, ISSUED),
        (PENDING, REVOKED),  # its signature may exist somewhere, if the process died just then
        (ISSUED, HELD),
        (ISSUED, REVOKED),
        (HELD, ISSUED),
        (HELD, REVOKED),
    }
)

HOLD = "certificateHold"

# Who may say cACompromise and aACompromise revokes no leaf; removeFromCRL is what releasing does.
REASONS: dict[str, x509.ReasonFlags] = {
    flag.value: flag
    for flag in (
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.certificate_hold,
        x509.ReasonFlags.privilege_withdrawn,
    )
}


def state_for(reason: str) -> str:
    """Return the state that revoking for this reason leads to; KeyError if it is none of ours."""
    return HELD if REASONS[reason] is x509.ReasonFlags.certificate_hold else REVOKED
