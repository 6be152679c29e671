"""The one way in which the certificate core says no to what it was asked."""

from __future__ import annotations

# Long enough to recognise a name, short enough that a hostile request cannot fill a log line.
SHOWN_CHARACTERS = 80


class Refused(Exception):
    """A request cannot be granted as it stands; nothing was signed.

    `field` points into the request as a JSON pointer does ("/dns_names/2", "/public_key"), or is
    "/csr" where the request could not be read at all. `reason` is one sentence for the person who
    asked. Neither holds control characters, whatever the request held. The core knows no HTTP: the
    edge turns this into a 400.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def shown(value: object) -> str:
    """Return `value` quoted, in ASCII and cut to length, fit for a reason or a log line."""
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
