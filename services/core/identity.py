"""Who asks: the identities that the filters establish and the applications read."""

from __future__ import annotations

from dataclasses import dataclass

ADMINS = "mooring:admins"
OPERATORS = "mooring:operators"
HOSTS = "mooring:hosts"
PROJECT_PREFIX = "mooring:project:"


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The verified client certificate: CN is the user, O values are the groups, as in Kubernetes.

    `fingerprint` is the SHA-256 of the DER certificate in lower-case hex.
    """

    user: str
    groups: frozenset[str]
    serial: int
    fingerprint: str

    @property
    def host(self) -> str | None:
        """The host's name if this is a host's certificate, else None."""
        return self.user if HOSTS in self.groups else None


@dataclass(frozen=True, slots=True)
class InstanceClaim:
    """The instance that a request is signed for, and by whom.

    `version` 2 is our own signature, 1 is Nova's (no network; `host` only if a host certificate
    came with it), 0 is flat mode: `instance_id` is empty and the address alone identifies.
    `address` is normalised IP text.
    """

    instance_id: str
    project_id: str
    address: str | None
    network_id: str | None
    host: str | None
    version: int
