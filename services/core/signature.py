"""Signatures of an instance's request: Nova's (version 1) and ours (version 2), and their secrets.

Version 1 is hex HMAC-SHA256 of the instance id under one secret: it holds for ever, for any path.
Version 2 covers host, time, network, instance, project, address, method and target, under a key
that is derived for the host, so what one host leaks is of use for that host's instances alone.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from wsgiref.types import WSGIEnvironment

# A key shorter than the hash's output weakens HMAC (RFC 2104, section 3).
MIN_SECRET_BYTES = 32
SECRET_FILES = ("current", "next", "previous")
_HOST_KEY_LABEL = b"mooring host key v2\0"
_VERSION_2 = "mooring-v2"
_READABLE_BY_OTHERS = 0o004
# SHA-256's block, and HMAC's two paddings as tables that XOR each byte (RFC 2104, section 2).
_BLOCK_BYTES = 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))


def load_secrets(directory: str | Path) -> tuple[bytes, ...]:
    """The accepted secrets: files `current` (required), `next` and `previous`, in that order.

    A trailing newline is not part of the secret. Raises ValueError naming the file (never its
    content) if one is missing, short, readable by everyone or unreadable.
    """
    secrets = []
    for name in SECRET_FILES:
        path = Path(directory, name)
        try:
            mode = path.stat().st_mode
            secret = path.read_bytes().rstrip(b"\r\n")
        except FileNotFoundError:
            if name == "current":
                raise ValueError(f"secret {path} does not exist") from None
            continue
        except OSError as error:
            raise ValueError(f"secret {path} cannot be read: {error.strerror}") from None
        if mode & _READABLE_BY_OTHERS:
            raise ValueError(f"secret {path} is readable by everyone (chmod o-r)")
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"secret {path} is shorter than {MIN_SECRET_BYTES} bytes")
        secrets.append(secret)
    return tuple(secrets)


class Prepared(NamedTuple):
    """HMAC-SHA256 under a secret, begun: the inner and the outer hash with the padded key."""

    inner: hashlib._Hash
    outer: hashlib._Hash


def prepared(secret: bytes) -> Prepared:
    """A secret ready for `matches` (RFC 2104, section 4 has this way of saving half of the work).

    The two hashes by hand: copying the library's HMAC object takes three times as long.
    """
    if len(secret) > _BLOCK_BYTES:
        secret = hashlib.sha256(secret).digest()
    key = secret.ljust(_BLOCK_BYTES, b"\0")
    return Prepared(hashlib.sha256(key.translate(_INNER)), hashlib.sha256(key.translate(_OUTER)))


def matches(secrets: Iterable[Prepared], message: bytes, offered: str) -> bool:
    """Whether the lower-case hex signature is that of the message under any `prepared` secret.

    Every secret is tried, whichever matches, and each comparison takes constant time: the time
    taken tells neither how near a guess is nor which secret is in use.
    """
    given = offered.encode("utf-8", "replace")
    found = False
    for inner, outer in secrets:
        first, expected = inner.copy(), outer.copy()
        first.update(message)
        expected.update(first.digest())
        found |= hmac.compare_digest(expected.hexdigest().encode("ascii"), given)
    return found


def sign_v1(secret: bytes, instance_id: str) -> str:
    """Nova's `X-Instance-ID-Signature`."""
    return hmac.digest(secret, instance_id.encode(), "sha256").hex()


def host_key(master: bytes, host: str) -> bytes:
    """The 32-byte signing key of one host; HAProxy gets it in base64 and never sees the master."""
    return hmac.digest(master, _HOST_KEY_LABEL + host.encode(), "sha256")


def message_v2(
    *,
    host: str,
    time: int | str,
    network: str,
    instance: str,
    project: str,
    address: str,
    method: str,
    target: str,
) -> bytes:
    """The bytes that a version 2 signature covers.

    `time` is Unix seconds as on the wire, `target` is path and query as on the wire, as a WSGI
    string (each character one byte): HAProxy signs bytes, not text. Raises ValueError if a field
    holds a newline, which would let one field run into the next, or a character beyond one byte.
    """
    fields = (_VERSION_2, host, str(time), network, instance, project, address, method, target)
    message = "\n".join(fields)
    if message.count("\n") != len(fields) - 1:
        raise ValueError("a signed field holds a newline")
    return message.encode("latin-1")


def sign_v2(key: bytes, message: bytes) -> str:
    """`X-Mooring-Signature` under a host's key (`host_key`) for a message (`message_v2`)."""
    return hmac.digest(key, message, "sha256").hex()


def request_target(environ: WSGIEnvironment) -> str:
    """Path and query in origin form, as on the wire where the server tells (gunicorn: RAW_URI).

    An absolute-form target loses its scheme and authority, as HAProxy's `pathq` has it.
    """
    raw: str | None = environ.get("RAW_URI")
    if raw is None:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        query = environ.get("QUERY_STRING", "")
        return quote(path.encode("latin-1", "replace")) + (f"?{query}" if query else "")
    if raw.startswith("/"):
        return raw
    _, scheme, rest = raw.partition("://")
    if not scheme:
        return raw
    _, slash, path = rest.partition("/")
    return slash + path if slash else "/"
