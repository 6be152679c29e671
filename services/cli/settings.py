"""What every command shares: the global options and the ways to fail."""

from dataclasses import dataclass

import click

REFUSED = 1
UNREACHABLE = 3
NOT_FOUND = 4
CONFLICT = 5
FORBIDDEN = 6
"""Exit codes beside 0 (done) and click's 2 (wrong usage)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options; ``timeout`` is in seconds."""

    url: str | None
    tls_cert: str | None
    tls_key: str | None
    tls_ca: str | None
    timeout: float


class Failed(click.ClickException):
    """The end of a command: one line on standard error and an exit code."""

    def __init__(self, message: str, exit_code: int = REFUSED) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance
