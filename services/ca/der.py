"""DER, as far as OCSP and CSRs need it: a strict reader, a check, a handful of writers (X.690).

The library reads and builds OCSP messages about a single certificate; RFC 6960 allows several in
one. Only definite, minimal lengths and tags of one octet are read, which is all that DER has here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x02, 0x03, 0x04, 0x05, 0x06
BOOLEAN, ENUMERATED, GENERALIZED_TIME, SEQUENCE, SET = 0x01, 0x0A, 0x18, 0x30, 0x31

_CONSTRUCTED = 0x20

# and EXTERNAL and EMBEDDED PDV, which are sequences
_MAY_BE_CONSTRUCTED = frozenset({SEQUENCE, SET, 0x28, 0x2B})

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


def check(data: bytes) -> None:
    """Raise NotDER unless the octets are canonical elements one after the other, all the way down.

    What is in an OCTET STRING, or implicit and primitive, is not looked into. It checks what X.690
    sections 8, 10 and 11 say of the types that have more than one encoding in BER.
    """
    waiting = [data]
    while waiting:
        for found in read_all(waiting.pop()):
            _check_content(found)
            if found.tag & _CONSTRUCTED:
                waiting.append(found.content)


def _check_content(found: Element) -> None:
    tag, content = found.tag, found.content
    if tag & _CONSTRUCTED:
        if tag < CONTEXT and tag not in _MAY_BE_CONSTRUCTED:
            raise NotDER(f"tag {tag:02x}, a string in pieces")
        if tag == SET:
            parts = [part.whole for part in found.parts()]
            if parts != sorted(parts):
                raise NotDER("a set out of order")
    elif tag | _CONSTRUCTED in (SEQUENCE, SET):
        raise NotDER(f"tag {tag:02x}, a sequence or set that is primitive")
    elif tag == BOOLEAN and content not in (b"\x00", b"\xff"):
        raise NotDER("a boolean that is neither 00 nor ff")
    elif tag in (INTEGER, ENUMERATED):
        read_integer(Element(INTEGER, content, found.whole))
    elif tag == NULL and content:
        raise NotDER("a null with octets")
    elif tag == OID:
        # each number in the fewest octets of seven bits, the last of which has no high bit
        starts = [0, *(at + 1 for at, octet in enumerate(content) if octet < 0x80)]
        if (
            starts[-1] != len(content)
            or not content
            or any(content[at] == 0x80 for at in starts[:-1])
        ):
            raise NotDER("an object identifier that is not minimal")
    elif tag == BIT_STRING:
        unused = content[0] if content else 8
        if unused > 7 or (unused and (len(content) == 1 or content[-1] & (1 << unused) - 1)):
            raise NotDER("a bit string whose unused bits are not zero")


def element(tag: int, *contents: bytes) -> bytes:
    """Write one element around what is given."""
    content = contents[0] if len(contents) == 1 else b"".join(contents)
    length = len(content)
    if length < 0x80:
        return b"%c%c%b" % (tag, length, content)
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
