"""What the network API refuses with: OpenStack Networking's exception names and statuses.

A `Refused` is a `Failure` that also has a type; `body` is how the API says either:
`{"NeutronError": {"type", "message", "detail"}}`. Clients tell refusals apart by the type.
"""

import json

from services.core.errors import Failure


class Refused(Failure):
    """A refusal of a type that the clients of OpenStack Networking know."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(status, message)
        self.kind = kind


def body(failure: Failure) -> bytes:
    """The error as clients of OpenStack Networking read it."""
    if isinstance(failure, Refused):
        kind = failure.kind
    else:
        # a type that says no more than the status does, as WebOb's names are
        kind = "HTTP" + "".join(c for c in failure.reason.title() if c.isalpha())
    error = {"type": kind, "message": failure.message, "detail": ""}
    return json.dumps({"NeutronError": error}).encode("ascii")


def bad_body(message: str) -> Refused:
    """400 for a body or query that does not fit the attribute table."""
    return Refused(400, "HTTPBadRequest", message)


def bad_value(name: str, reason: str) -> Refused:
    """400 for a value of one attribute."""
    return bad_body(f"Invalid input for {name}. Reason: {reason}.")


def invalid(message: str) -> Refused:
    """400 for values that do not fit one another, or what there is."""
    return Refused(400, "InvalidInput", f"Invalid input for operation: {message}.")


def not_found(title: str, object_id: str) -> Refused:
    """404; ``title`` is the resource's, such as Network."""
    shown = object_id[:64].encode("ascii", "replace").decode()
    return Refused(404, f"{title}NotFound", f"{title} {shown} could not be found.")


def conflict(kind: str, message: str) -> Refused:
    """409 of this type."""
    return Refused(409, kind, message)


def forbidden(message: str) -> Refused:
    """403: the policy does not let the client."""
    return Refused(403, "PolicyNotAuthorized", message)
