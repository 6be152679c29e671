"""Nonces that need no row until they are used (RFC 8555 section 6.5).

A nonce is when it was made, 16 random octets, and a seal (HMAC-SHA256, cut to 16 octets) over
both with a key that every worker and replica has. Whoever receives one sees by the seal that we
made it and by the time that it still counts; only that it was used has to be written down, and
only until it would no longer count anyhow. So a restart or another worker changes nothing.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final

from services.ca.acme.jws import decode, encode
from services.ca.acme.problems import Problem

_TIME_BYTES: Final = 6
_RANDOM_BYTES: Final = 16
# Forging one gains only what newNonce gives for nothing, a row in the table of used ones.
_SEAL_BYTES: Final = 16
_BYTES: Final = _TIME_BYTES + _RANDOM_BYTES + _SEAL_BYTES
_LABEL: Final = b"mooring acme nonce\0"
KEY_BYTES: Final = 32


class Nonces:
    """Makes and judges nonces with one key; `lifetime` is how long one counts."""

    def __init__(self, key: bytes, lifetime: timedelta) -> None:
        self._key = key
        self.lifetime = lifetime

    def make(self, now: datetime) -> str:
        """A new nonce, 51 characters of base64url."""
        made = int(now.timestamp() * 1000).to_bytes(_TIME_BYTES, "big")
        head = made + secrets.token_bytes(_RANDOM_BYTES)
        return encode(head + self._seal(head))

    def expiry(self, nonce: str | None, now: datetime) -> datetime:
        """When a nonce that counts now will not any more; raises Problem badNonce."""
        if nonce is None:
            raise Problem("badNonce", "the request has no nonce")
        try:
            data = decode(nonce, "nonce", _BYTES)
        except Problem:
            raise Problem("badNonce", "the nonce is not one of ours") from None
        head = data[:-_SEAL_BYTES]
        if len(data) != _BYTES or not hmac.compare_digest(self._seal(head), data[-_SEAL_BYTES:]):
            raise Problem("badNonce", "the nonce is not one of ours")
        made = datetime.fromtimestamp(int.from_bytes(head[:_TIME_BYTES], "big") / 1000, UTC)
        # a replica's clock may be ahead of ours by a little; a nonce of the far future is none
        if not made - self.lifetime <= now < made + self.lifetime:
            raise Problem("badNonce", "the nonce is too old")
        return made + self.lifetime

    def _seal(self, head: bytes) -> bytes:
        return hmac.digest(self._key, _LABEL + head, "sha256")[:_SEAL_BYTES]
