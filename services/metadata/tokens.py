"""Session tokens of IMDSv2: made and checked without any state, bound to one instance.

A token is base64url (no padding) of::

    version (1 byte, 1) | expiry (8 bytes, Unix seconds, big endian) | nonce (10) | HMAC-SHA256 (32)

The HMAC covers the part before it and the instance's id, under a key derived from a secret that
all replicas share. So any worker checks what any other made, before or after a restart, and a
token shown by another instance is worth nothing. Sizes and limits are those of AWS: a time to live
of 1 to 21,600 seconds.
"""

import base64
import binascii
import hmac
import math
import os
import struct
import time
from collections.abc import Sequence

MIN_TTL = 1
MAX_TTL = 21600
"""Seconds; six hours, as AWS documents for X-aws-ec2-metadata-token-ttl-seconds."""

_VERSION = b"\x01"
_HEAD = struct.Struct(">cQ10s")
_MAC = 32
_LENGTH = _HEAD.size + _MAC
_TEXT_LENGTH = _LENGTH * 4 // 3  # 51 bytes: no padding and no spare bits, so one text a token


class Tokens:
    """Makes tokens with the first secret and accepts those made with any of them."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """Take the accepted secrets, the current one first; raises ValueError if there is none."""
        if not secrets:
            raise ValueError("session tokens need a secret")
        # A key of its own for this purpose, so that a token can never pass as a signature.
        self._keys = tuple(
            hmac.digest(secret, b"mooring session token v1", "sha256") for secret in secrets
        )

    def make(self, instance_id: str, ttl: int, now: float | None = None) -> str:
        """Return a token of 68 characters that this instance may use for ``ttl`` seconds.

        It holds whole seconds, so it lives up to one second longer, never shorter.
        """
        if not MIN_TTL <= ttl <= MAX_TTL:
            raise ValueError(f"a token lives {MIN_TTL} to {MAX_TTL} seconds, not {ttl}")
        expiry = math.ceil(time.time() if now is None else now) + ttl
        head = _HEAD.pack(_VERSION, expiry, os.urandom(10))
        mac = hmac.digest(self._keys[0], head + instance_id.encode(), "sha256")
        return base64.urlsafe_b64encode(head + mac).decode()

    def remaining(self, token: str, instance_id: str, now: float | None = None) -> int | None:
        """Return the seconds a token has left; None if it is expired, forged or another's.

        Takes any text. Every accepted key is tried whatever the others said, so the time taken
        does not tell which one matched.
        """
        if len(token) != _TEXT_LENGTH:
            return None
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        # Python's decoder takes + and / as well, so one token would have several texts.
        if len(raw) != _LENGTH or base64.urlsafe_b64encode(raw) != token.encode():
            return None
        head, mac = raw[: _HEAD.size], raw[_HEAD.size :]
        message = head + instance_id.encode()
        good = False
        for key in self._keys:
            good |= hmac.compare_digest(hmac.digest(key, message, "sha256"), mac)
        if not good:
            return None
        version, expiry, _nonce = _HEAD.unpack(head)
        left = int(expiry) - int(time.time() if now is None else now)
        return left if version == _VERSION and left > 0 else None
