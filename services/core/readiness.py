"""Whether this process can do its work: named checks that applications register at start.

Per process and therefore per gunicorn worker: the health check filter asks without reaching through
the filters between it and the application.
"""

from __future__ import annotations

from collections.abc import Callable

# Returns None when all is well, else the reason in a few words without secrets. It is called at
# each readiness request, so it answers from memory or within a deadline of its own.
Check = Callable[[], str | None]

_checks: dict[str, Check] = {}


def register(name: str, check: Check) -> None:
    """Adds the check, or replaces the one of that name (an application that was built anew)."""
    _checks[name] = check


def unregister(name: str) -> None:
    """Removes the check if there is one."""
    _checks.pop(name, None)


def failing() -> dict[str, str]:
    """Name -> reason of each check that fails; empty when ready. A check that raises has failed."""
    reasons: dict[str, str] = {}
    for name, check in list(_checks.items()):
        try:
            reason = check()
        except Exception as error:  # the exception's text may quote data; its type may not
            reason = f"check failed with {type(error).__name__}"
        if reason is not None:
            reasons[name] = reason
    return reasons
