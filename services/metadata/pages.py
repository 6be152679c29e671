"""What the documents are made of and how: pages ready to send, and the settings of a deployment.

Nothing here knows WSGI or does I/O; ``tree.py`` puts the two trees together.
"""

import base64
import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SEED_BYTES = 512
"""Random bytes in every ``random_seed``, the number that Nova gives."""

SEED_LENGTH = 684
"""Characters of base64 that ``SEED_BYTES`` bytes become (RFC 4648 section 4, with padding)."""

TEXT = "text/plain; charset=UTF-8"
JSON = "application/json"
BINARY = "application/octet-stream"


class Special(enum.Enum):
    """A path that answers, but not with a page that can be kept."""

    TOKEN = "token"  # noqa: S105 - the name of a path; /latest/api/token
    PASSWORD = "password"  # noqa: S105 - the name of a path; /openstack/<version>/password
    VENDOR_DATA2 = "vendor_data2"  # static part and what the dynamic targets answer


@lru_cache(4096)
def _headers(content_type: str, length: int) -> tuple[tuple[str, str], ...]:
    """The two headers of a page; pages of one length share them, which most short ones do."""
    return (("Content-Type", content_type), ("Content-Length", str(length)))


@dataclass(frozen=True, slots=True)
class Page:
    """An answer with status 200, ready to send.

    ``headers`` holds Content-Type and Content-Length; the length counts the seed where one is
    inserted. ``seed_at`` is the offset in ``body`` at which ``fresh_seed()`` belongs, or None.
    A page with ``keep`` False depends on the date and is not to be cached.
    """

    body: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...]
    seed_at: int | None = None
    keep: bool = True

    @classmethod
    def of(
        cls, body: bytes, content_type: str, *, seed_at: int | None = None, keep: bool = True
    ) -> "Page":
        """A page with its headers."""
        length = len(body) if seed_at is None else len(body) + SEED_LENGTH
        return cls(body, content_type, _headers(content_type, length), seed_at, keep)

    def complete(self) -> bytes:
        """The body as it goes out: with a fresh seed where one belongs."""
        if self.seed_at is None:
            return self.body
        return self.body[: self.seed_at] + fresh_seed() + self.body[self.seed_at :]


def fresh_seed() -> bytes:
    """512 random bytes from the kernel as base64: 684 ASCII characters, never the same twice."""
    return base64.b64encode(os.urandom(SEED_BYTES))


@dataclass(frozen=True, slots=True)
class Settings:
    """What a deployment decides for the documents of all its instances.

    Texts that are None or empty leave their keys out of the trees.
    """

    nova_compatible: bool = False
    dhcp_domain: str = "novalocal"
    public_domain: str | None = None
    """Domain of ``public-hostname``; None means ``dhcp_domain``."""
    availability_zone: str | None = "nova"
    """Zone of an instance that names none."""
    availability_zone_id: str | None = None
    region: str | None = "RegionOne"
    architecture: str | None = None
    """``architecture`` of the identity document, in EC2's words: ``x86_64``, ``arm64``."""
    services_domain: str | None = None
    services_partition: str | None = None
    vendor_data: Mapping[str, Any] | None = None
    """Static vendor data for every instance; an instance's own stands above it, key by key."""
    dynamic_vendor_data: bool = False
    """True when targets are configured: vendor_data2.json is then made for each reader."""
