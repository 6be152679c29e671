"""Names that certificates may carry, brought to the one spelling that is signed.

Each function takes text from outside and returns the normal form, or raises Refused with the
field that it was told. The caller compares, authorises and signs only normal forms: a rule that
is checked before normalising can be passed by another spelling of the same name.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import TypeAlias

from services.ca.refusal import Refused, shown

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 1035 section 2.3.4: 255 octets on the wire, which is 253 characters of text.
DNS_CHARACTERS = 253
# RFC 1035 section 2.3.4.
LABEL_CHARACTERS = 63
# RFC 5280 appendix A.1: ub-common-name, and ub-organization-name.
SUBJECT_CHARACTERS = 64
# The SPIFFE-ID specification, section 2.3, asks for support up to this and allows no more.
URI_CHARACTERS = 2048
# OpenSSL matches a wildcard only with two labels to its right, so a shorter one helps nobody, and
# it would stand for every name under a top-level domain.
WILDCARD_BASE_LABELS = 2

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
# A name in normal form that can be neither an address nor encoded, if it has no "--".
_PLAIN = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
# One shape for user, group and instance names: what can be typed, logged and compared without
# knowing Unicode. "@" and "+" serve mail addresses, ":" Mooring's group names.
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+:-]*")
# RFC 5892 section 2.1, less upper case, which no A-label holds: what may stand behind an A-label.
# Controls, symbols and invisible joiners make names that look like another.
_LETTER_DIGITS = frozenset({"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"})
# RFC 5892 appendix A.3 to A.7: punctuation inside Catalan, Greek, Hebrew and Japanese words.
_CONTEXT_CHARACTERS = frozenset("\u00b7\u0375\u05f3\u05f4\u30fb")
_URI = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9.-]+)((?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*)")


def dns_name(text: str, field: str) -> str:
    """Return the host name in lower-case A-labels; "*" may stand as the whole left label.

    Refused: other than letters, digits and hyphens (RFC 5890 section 2.3.1), so underscores and
    unencoded Unicode; empty labels and a trailing dot; A-labels that do not decode; what a URL
    parser would read as an IPv4 address. RFC 5280 section 4.2.1.6 and RFC 9525 section 6.3.
    """
    if len(text) <= DNS_CHARACTERS and _PLAIN.fullmatch(text) and "--" not in text:
        return text  # as nearly all are, and all that follows would let it pass
    name = text.lower() if text.isascii() else text
    if not name:
        raise Refused(field, "the DNS name is empty")
    if not name.isascii():
        raise Refused(field, f"{shown(text)} is not ASCII; write its labels as A-labels (xn--...)")
    if len(name) > DNS_CHARACTERS:
        raise Refused(field, f"a DNS name longer than {DNS_CHARACTERS} characters")
    if name.endswith("."):
        raise Refused(field, f"{shown(text)} ends with a dot")
    labels = name.split(".")
    if labels[0] == "*":
        labels = labels[1:]
        if len(labels) < WILDCARD_BASE_LABELS:
            raise Refused(
                field, f"{shown(text)}: a wildcard needs {WILDCARD_BASE_LABELS} labels behind it"
            )
    for label in labels:
        _check_label(label, text, field)
    if _NUMBER_LABEL.fullmatch(labels[-1]):
        raise Refused(field, f"{shown(text)} would be read as an IP address, not as a name")
    return name


def host_name(text: str, field: str) -> str:
    """Return a DNS name that names one host and fits a common name: no wildcard, 64 characters."""
    name = dns_name(text, field)
    if name.startswith("*"):
        raise Refused(field, "a wildcard does not name a host")
    if len(name) > SUBJECT_CHARACTERS:
        raise Refused(field, f"a host's name longer than {SUBJECT_CHARACTERS} characters")
    return name


def ip_address(value: str | IPAddress, field: str) -> IPAddress:
    """Return the address of one host.

    Refused: text that is no address or has a zone ("%eth0", which means nothing elsewhere);
    unspecified, multicast and broadcast addresses; IPv4 written inside IPv6, a second spelling.
    """
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise Refused(field, f"{shown(value)} is not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise Refused(field, f"{shown(str(address))} has a zone")
        if address.ipv4_mapped is not None:
            raise Refused(field, f"{shown(str(address))} is an IPv4 address written as IPv6")
    if address.is_unspecified or address.is_multicast or address == _BROADCAST:
        raise Refused(field, f"{address} is not the address of a host")
    return address


_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def uri(text: str, field: str) -> str:
    """Return a URI of the plain shape scheme://host/path.

    Refused is all that gives one name two spellings: upper case in scheme or host, user, port,
    query, fragment, percent-encoding, empty segments, "." and ".." (the rules of SPIFFE IDs).
    """
    if len(text) > URI_CHARACTERS:
        raise Refused(field, f"a URI longer than {URI_CHARACTERS} characters")
    match = _URI.fullmatch(text)
    if match is None:
        raise Refused(field, f"{shown(text)} is not of the form scheme://host/path")
    if {".", ".."} & set(match[3].split("/")):
        raise Refused(field, f"{shown(text)} holds a relative segment")
    dns_name(match[2], field)
    return text


def principal(text: str, field: str) -> str:
    """Return the name of a user, group or instance: 1 to 64 of A-Z a-z 0-9 . _ @ + : -

    Case is kept, since the names are compared as they are.
    """
    if len(text) > SUBJECT_CHARACTERS:
        raise Refused(field, f"longer than {SUBJECT_CHARACTERS} characters")
    if not _PRINCIPAL.fullmatch(text):
        raise Refused(
            field,
            f"{shown(text)} may hold A-Z a-z 0-9 . _ @ + : - only and begin with a letter or digit",
        )
    return text


def title(text: str, field: str) -> str:
    """Return the readable name of an authority: printable, not padded, 1 to 64 octets of UTF-8."""
    if not text or text != text.strip() or not text.isprintable():
        raise Refused(field, f"{shown(text)} is empty, padded or not printable")
    if len(text.encode()) > SUBJECT_CHARACTERS:
        raise Refused(field, f"longer than {SUBJECT_CHARACTERS} octets")
    return text


def _check_label(label: str, text: str, field: str) -> None:
    if not label:
        raise Refused(field, f"{shown(text)} has an empty label")
    if len(label) > LABEL_CHARACTERS:
        raise Refused(field, f"{shown(text)} has a label longer than {LABEL_CHARACTERS}")
    if not _LABEL.fullmatch(label):
        raise Refused(
            field,
            f"{shown(text)}: label {shown(label)} may hold letters, digits and inner hyphens only",
        )
    # RFC 5890 section 2.3.1: hyphens in third and fourth place are kept for encodings, of which
    # there is one.
    if label[2:4] == "--" and not _is_a_label(label):
        raise Refused(field, f"{shown(text)}: label {shown(label)} is not a valid A-label")


def _is_a_label(label: str) -> bool:
    if not label.startswith("xn--"):
        return False
    encoded = label[4:]
    try:
        decoded = encoded.encode("ascii").decode("punycode")
        again = decoded.encode("punycode").decode("ascii")
    except (UnicodeError, ValueError, OverflowError):
        return False
    return (
        again == encoded
        and not decoded.isascii()
        and unicodedata.is_normalized("NFC", decoded)
        and all(
            character in _CONTEXT_CHARACTERS or unicodedata.category(character) in _LETTER_DIGITS
            for character in decoded
            if character != "-"
        )
    )
