"""The audit trail's hash chain: pure, without a database.

Each entry's hash is SHA-256 over the hash before it and the entry's own fields, so whoever kept a
later hash finds every change to what came before: a field changed, an entry removed, put in or
moved. What the chain alone cannot show is its end cut off; for that a hash is kept elsewhere
(`mooring ca audit` prints the last one).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from services.ca.refusal import shown

GENESIS = "0" * 64
"""What the first entry has in place of a hash before it."""

TEXT_LIMIT = 512
"""Characters of one text in a detail: names are at most 253, and a reason is one sentence."""

LIST_LIMIT = 132
"""Values of one list in a detail: 100 names and 32 groups are the most of one request."""

# Names of details that would hold something which no trail may keep. The trail is read by more
# people than the keys are.
_SECRET = ("secret", "password", "passphrase", "private", "csr", "pem", "der", "bearer", "jwk")

# JSON is put together here: an encoder is made for each text, at five times the cost. A test
# compares with the library's.
_quoted = json.encoder.encode_basestring_ascii

Detail = Mapping[str, str | int | bool | Iterable[str] | None]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written: who asked from where for what, and what was decided.

    `action` is a verb ("issue", "revoke"), `decision` one of "intent", "done", "refused" (what was
    asked for cannot be had), "forbidden" (not by this one), "failed" (our fault).
    """

    at: str
    actor: str
    address: str
    request_id: str
    action: str
    decision: str
    detail: str


@dataclass(frozen=True, slots=True)
class Row:
    """An entry in its place."""

    sequence: int
    entry: Entry
    hash: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What reading the chain has shown.

    `entries` were read and found whole; `bad` is the sequence of the first that is not, None if all
    are; `reason` says what is wrong with it. `head` is the hash of the last whole one.
    """

    entries: int
    head: str
    bad: int | None = None
    reason: str = ""

    @property
    def whole(self) -> bool:
        return self.bad is None


def detail(fields: Detail) -> str:
    """Return details as canonical JSON, cut to length.

    Raises ValueError for a name that says it holds a secret or key material.
    """
    parts: list[str] = []
    for name in sorted(fields):
        value = fields[name]
        if isinstance(value, str):
            text = _text(value)
        elif value is None or isinstance(value, int):
            text = json.dumps(value)
        else:
            text = f"[{','.join([_text(each) for each in list(value)[:LIST_LIMIT]])}]"
        parts.append(_name(name) + text)
    return f"{{{','.join(parts)}}}"


@lru_cache(256)
def _name(name: str) -> str:
    """A detail's name as JSON has it; ValueError for one that says it holds a secret."""
    if any(secret in name.split("_") for secret in _SECRET):
        raise ValueError(f"{name} may not stand in the audit trail")
    return f"{_quoted(name)}:"


def _text(text: str) -> str:
    if not text.isprintable():
        text = shown(text)
    return _quoted(text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 3] + "...")


def entry_hash(previous: str, sequence: int, entry: Entry) -> str:
    """Return the hash of an entry in its place; a JSON list keeps the fields apart."""
    fields = (
        f"[{_quoted(previous)},{sequence},{_quoted(entry.at)},{_quoted(entry.actor)},"
        f"{_quoted(entry.address)},{_quoted(entry.request_id)},{_quoted(entry.action)},"
        f"{_quoted(entry.decision)},{_quoted(entry.detail)}]"
    )
    return hashlib.sha256(fields.encode("ascii")).hexdigest()


def chain(sequence: int, head: str, entries: Iterable[Entry]) -> list[Row]:
    """Return the entries as rows behind the one that has this sequence and hash."""
    rows: list[Row] = []
    for entry in entries:
        sequence += 1
        head = entry_hash(head, sequence, entry)
        rows.append(Row(sequence, entry, head))
    return rows


def verify(rows: Iterable[Row], *, known: Mapping[int, str] | None = None) -> Verdict:
    """Check a chain from its first entry; `known` are hashes kept elsewhere, by sequence.

    Names the first row that does not follow from those before it, or does not have the hash that
    is known of it; a known row behind the end says that the end was cut off.
    """
    expected, head = 1, GENESIS
    kept = known or {}
    for row in rows:
        if row.sequence != expected:
            reason = (
                f"the entry {expected} is missing" if row.sequence > expected else "out of order"
            )
            return Verdict(expected - 1, head, row.sequence, reason)
        if row.hash != entry_hash(head, row.sequence, row.entry):
            return Verdict(
                expected - 1, head, row.sequence, "does not follow from what stands before it"
            )
        if kept.get(row.sequence, row.hash) != row.hash:
            return Verdict(expected - 1, head, row.sequence, "is not the entry that was known")
        expected, head = expected + 1, row.hash
    beyond = [sequence for sequence in kept if sequence >= expected]
    if beyond:
        return Verdict(expected - 1, head, min(beyond), "is known and no longer there")
    return Verdict(expected - 1, head)
