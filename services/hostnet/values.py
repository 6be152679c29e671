"""Converters of attribute values: from what JSON holds to what we keep, or ValueError (the reason).

As lenient as OpenStack Networking where its clients rely on it (numbers and truth as text), and
strict about all else: what passes here may be shown, compared and sent to hosts.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any

Converter = Callable[[Any], Any]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_TOKEN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,63}", re.ASCII)
_LABEL = r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)

_TRUE = ("true", "1", "on", "yes", "t")
_FALSE = ("false", "0", "off", "no", "f")


def _said(value: Any) -> str:
    return f"'{value!s:.64}'"


def _refused(value: Any, what: str) -> ValueError:
    return ValueError(f"{_said(value)} is not {what}")


def text(most: int = 255) -> Converter:
    """Text of at most so many printable characters; may be empty."""

    def convert(value: Any) -> str:
        if not isinstance(value, str):
            raise _refused(value, "a valid string")
        if len(value) > most:
            raise ValueError(f"the text exceeds the maximum length of {most}")
        if not value.isprintable():
            raise ValueError("the text holds control characters")
        return value

    return convert


def boolean(value: Any) -> bool:
    """True or false, also as the texts and numbers that clients send."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | str):
        word = str(value).lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
    raise ValueError(f"{_said(value)} cannot be converted to boolean")


def integer(least: int, most: int) -> Converter:
    """A whole number from ``least`` to ``most``, also as text."""

    def convert(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
            value = int(value)
        if type(value) is not int:
            raise ValueError(f"{_said(value)} is not an integer")
        if not least <= value <= most:
            raise ValueError(f"{value} is not from {least} to {most}")
        return value

    return convert


def choice(*allowed: Any) -> Converter:
    """One of these values."""

    def convert(value: Any) -> Any:
        for each in allowed:
            if type(value) is type(each) and value == each:
                return each
        raise ValueError(f"{_said(value)} is not in {list(allowed)}")

    return convert


def optional(inner: Converter) -> Converter:
    """Null, or what ``inner`` takes."""
    return lambda value: None if value is None else inner(value)


def uuid(value: Any) -> str:
    """A UUID in lower case."""
    if isinstance(value, str) and _UUID.fullmatch(value):
        return value
    raise ValueError(f"{_said(value)} is not a valid UUID")


def is_uuid(value: object) -> bool:
    """Whether this is a UUID as our ids are written."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def token(value: Any) -> str:
    """A short name of letters, digits and ``._:-``, such as a project or a physical network."""
    if isinstance(value, str) and _TOKEN.fullmatch(value):
        return value
    raise ValueError(f"{_said(value)} is not 1 to 64 letters, digits and ._:-")


def domain(value: Any) -> str:
    """A DNS name in lower case; may be empty."""
    if isinstance(value, str) and (value == "" or _DOMAIN.fullmatch(value)):
        return value.lower()
    raise ValueError(f"{_said(value)} is not a valid DNS name")


def mac(value: Any) -> str:
    """A unicast MAC address, as ``fa:16:3e:...``."""
    if not isinstance(value, str) or not _MAC.fullmatch(value):
        raise ValueError(f"{_said(value)} is not a valid MAC address")
    written = value.lower().replace("-", ":")
    if int(written[:2], 16) & 1 or written == "00:00:00:00:00:00":
        raise ValueError(f"{_said(value)} is no address of a single station")
    return written


def ip(value: Any) -> str:
    """An IP address, written as usual."""
    try:
        address = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"{_said(value)} is not a valid IP address") from None
    if getattr(address, "scope_id", None):
        raise ValueError(f"{_said(value)} is not a valid IP address")
    return str(address)


def cidr(value: Any) -> str:
    """A network in CIDR form; host bits are cut off, as OpenStack Networking does."""
    try:
        if not isinstance(value, str) or "/" not in value or not value.rpartition("/")[2].isdigit():
            raise ValueError  # noqa: TRY301 - the same answer as for what does not parse
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError:
        raise ValueError(f"{_said(value)} is not a valid IP subnet") from None


def many(inner: Converter, most: int, *, unique: bool = True) -> Converter:
    """A list of at most so many values, each of which ``inner`` takes."""

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _refused(value, "a list")
        if len(value) > most:
            raise ValueError(f"the list has more than {most} items")
        items = [inner(each) for each in value]
        if unique and any(each in items[:index] for index, each in enumerate(items)):
            raise ValueError("the list holds an item twice")
        return items

    return convert


def members(required: Mapping[str, Converter], more: Mapping[str, Converter]) -> Converter:
    """An object with these members, and perhaps those in ``more``."""
    known = {**required, **more}

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refused(value, "an object")
        for name in value:
            if name not in known:
                raise ValueError(f"{_said(name)} is not one of {sorted(known)}")
        for name in required:
            if name not in value:
                raise ValueError(f"'{name}' is missing")
        result = {}
        for name, each in value.items():
            try:
                result[name] = known[name](each)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return result

    return convert
