"""DER, as far as OCSP needs it: a strict reader and a handful of writers (X.690).

The library reads and builds OCSP messages about a single certificate; RFC 6960 allows several in
one. Only definite, minimal lengths and tags of one octet are read, which is all that DER has here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x02, 0x03, 0x04, 0x05, 0x06
BOOLEAN, ENUMERATED, GENERALIZED_TIME, SEQUENCE = 0x01, 0x0A, 0x18, 0x30

# context-specific: implicit and primitive, or explicit and constructed
CONTEXT, CONTEXT_CONSTRUCTED = 0x80, 0xA0

# Octets of a length: two mean 64 KiB, more than any request of ours may have.
_LENGTH_OCTETS = 2


class NotDER(ValueError):
    """The octets are not the DER that was expected."""


@dataclass(frozen=True, slots=True)
class Element:
    """One element: its tag, its content, and the whole with tag and length."""

    tag: int
    content: bytes
    whole: bytes

    def parts(self) -> list[Element]:
        """Read the content as elements one after the other; raises NotDER."""
        return read_all(self.content)

    def expect(self, tag: int) -> Element:
        """Return itself if it has this tag; raises NotDER."""
        if self.tag != tag:
            raise NotDER(f"tag {self.tag:02x} where {tag:02x} is expected")
        return self


def read_one(data: bytes, tag: int) -> Element:
    """Read exactly one element of this tag, with nothing behind it; raises NotDER."""
    element, end = _read(data, 0)
    if end != len(data):
        raise NotDER("something follows")
    return element.expect(tag)


def read_all(data: bytes) -> list[Element]:
    """Read elements to the end; raises NotDER."""
    found: list[Element] = []
    at = 0
    while at < len(data):
        element, at = _read(data, at)
        found.append(element)
    return found


def _read(data: bytes, begin: int) -> tuple[Element, int]:
    if len(data) < begin + 2:
        raise NotDER("ends within an element")
    tag, length, at = data[begin], data[begin + 1], begin + 2
    if tag & 0x1F == 0x1F:
        raise NotDER("a tag of several octets")
    if length & 0x80:
        octets = length & 0x7F
        if not 0 < octets <= _LENGTH_OCTETS or len(data) < at + octets:
            raise NotDER("a length that is indefinite or too long")
        length = int.from_bytes(data[at : at + octets], "big")
        at += octets
        if length < 0x80 or length >> 8 * (octets - 1) == 0:
            raise NotDER("a length that is not minimal")
    end = at + length
    if end > len(data):
        raise NotDER("ends within an element")
    return Element(tag, data[at:end], data[begin:end]), end


def read_integer(element: Element) -> int:
    """Return an INTEGER's value; raises NotDER unless it is minimal."""
    content = element.expect(INTEGER).content
    if not content:
        raise NotDER("an integer without octets")
    if len(content) > 1 and (content[0], content[1] >> 7) in ((0, 0), (0xFF, 1)):
        raise NotDER("an integer that is not minimal")
    return int.from_bytes(content, "big", signed=True)


def element(tag: int, *contents: bytes) -> bytes:
    """Write one element around what is given."""
    content = b"".join(contents)
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def sequence(*contents: bytes) -> bytes:
    """Write a SEQUENCE of what is given."""
    return element(SEQUENCE, *contents)


def explicit(number: int, *contents: bytes) -> bytes:
    """Write an explicit context-specific tag around what is given."""
    return element(CONTEXT_CONSTRUCTED | number, *contents)


def generalized_time(moment: datetime) -> bytes:
    """Write a moment in UTC to the second, as RFC 5280 section 4.1.2.5.2 has it."""
    return element(GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode("ascii"))


def oid(dotted: str) -> bytes:
    """Write an object identifier."""
    first, second, *rest = (int(number) for number in dotted.split("."))
    encoded = bytearray([first * 40 + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return element(OID, bytes(encoded))
