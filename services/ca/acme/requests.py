"""Who asks: a request's signature, address and nonce, checked together (RFC 8555 section 6).

The order of the checks is part of it: what costs nothing first, the nonce used only once the
signature holds, so that nobody uses up another's; the account's state last, for only its holder is
told of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from services.ca.acme import jws, states
from services.ca.acme.nonces import Nonces
from services.ca.acme.problems import Problem
from services.ca.acme.store import Account, Store
from services.core.edge import Request

JOSE: Final = ("application/jose+json",)

# Which header names the key, by resource (section 6.2).
JWK: Final = "jwk"
KID: Final = "kid"
EITHER: Final = "either"

_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Signed:
    """A verified request: by an account (kid) or by a bare key (jwk), with its payload."""

    url: str
    payload: bytes
    jwk: jws.Jwk
    account: Account | None

    @property
    def is_read(self) -> bool:
        """Whether it is a POST-as-GET (section 6.3)."""
        return self.payload == b""

    def json(self) -> dict[str, Any]:
        """The payload as a JSON object; raises Problem malformed."""
        return jws.load_json(self.payload, "the payload")

    def nothing(self) -> None:
        """Raise Problem unless it is a POST-as-GET."""
        if not self.is_read:
            raise Problem("malformed", "this is read with an empty payload")


class Requests:
    """Reads and verifies requests to the resources below `external_url`."""

    def __init__(
        self,
        store: Store,
        external_url: str,
        nonce_lifetime: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._external_url = external_url
        self._nonce_lifetime = nonce_lifetime
        self._clock = clock
        self._sealed: Nonces | None = None

    def nonce(self) -> str:
        """A new nonce."""
        return self._nonces().make(self._clock())

    def read(self, request: Request, *, by: str) -> Signed:
        """Read and verify a request, and use up its nonce; raises Problem and Failure."""
        envelope = jws.parse(request.json_object(jws.BODY_BYTES, JOSE))
        url = self._external_url + request.path_info
        if request.query_string:
            url += f"?{request.query_string}"
        if envelope.url != url:
            raise Problem(
                "unauthorized", "the signed url is not the one that was asked", status=401
            )
        expires = self._nonces().expiry(envelope.nonce, self._clock())
        account = None
        if envelope.jwk is not None:
            if by == KID:
                raise Problem("malformed", "this is signed by an account: kid, not jwk")
            jwk = envelope.jwk
        else:
            if by == JWK:
                raise Problem("malformed", "this is signed by a key: jwk, not kid")
            account = self._account(envelope.kid or "")
            jwk = jws.parse_jwk(jws.load_json(account.jwk.encode(), "the account's key"))
        jws.verify(envelope, jwk)
        if envelope.nonce is None or not self._store.use_nonce(envelope.nonce, expires):
            raise Problem("badNonce", "the nonce was used before")
        if account is not None and account.status != states.VALID:
            raise Problem("unauthorized", f"the account is {account.status}", status=401)
        return Signed(url, envelope.payload, jwk, account)

    def by_account(self, request: Request) -> tuple[Signed, Account]:
        """Read a request that an account has to sign."""
        signed = self.read(request, by=KID)
        if signed.account is None:
            raise Problem("malformed", "this is signed by an account")
        return signed, signed.account

    def _account(self, kid: str) -> Account:
        prefix = f"{self._external_url}/account/"
        account = None
        if kid.startswith(prefix) and _ID.fullmatch(kid, len(prefix)):
            account = self._store.account(kid[len(prefix) :])
        if account is None:
            raise Problem("accountDoesNotExist", "kid names no account")
        return account

    def _nonces(self) -> Nonces:
        if self._sealed is None:
            self._sealed = Nonces(self._store.secret(), self._nonce_lifetime)
        return self._sealed
