"""What a monitoring system reads of the certificate service, in Prometheus' text format.

Everything is looked up when it is asked for, in the ledger and in the files: any worker of any
controller says the same, and nothing is lost when one ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from services.ca.publication import Publisher
from services.core.database import Unavailable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Values = Iterable[tuple[Mapping[str, str], float]]


def render(publisher: Publisher) -> bytes:
    """Return every metric now; while the database is away, those that need none."""
    return "".join(line for each in _families(publisher) for line in _lines(*each)).encode()


def _families(publisher: Publisher) -> Iterator[tuple[str, str, str, _Values]]:
    """Name, type, help and values of each."""
    now = publisher.clock()
    authorities = {
        "root": publisher.root,
        **{name: issuer.certificate for name, issuer in publisher.issuers.items()},
    }
    yield (
        "mooring_ca_authority_end_timestamp_seconds",
        "gauge",
        "When the authority's certificate ends.",
        [
            ({"authority": name}, certificate.not_valid_after_utc.timestamp())
            for name, certificate in authorities.items()
        ],
    )
    findings = publisher.status()
    yield (
        "mooring_ca_list_end_timestamp_seconds",
        "gauge",
        "When a revocation list ends: root, an authority, or the first in NGINX's file.",
        [({"list": each.subject}, each.ends.timestamp()) for each in findings if each.ends],
    )
    yield (
        "mooring_ca_list_severity",
        "gauge",
        "What `mooring ca status` says of it: 0 good, 1 warning, 2 critical.",
        [
            ({"list": each.subject}, each.severity)
            for each in findings
            if each.subject != "database"
        ],
    )
    counts: dict[tuple[str, str], int] = {}
    entries: list[int] = []
    try:
        counts = publisher.ledger.living_counts(now)
        entries = [row.sequence for row in publisher.ledger.trail(limit=1)] or [0]
    except Unavailable:
        entries = []
    yield (
        "mooring_ca_database_up",
        "gauge",
        "Whether the ledger could be read.",
        [({}, 1 if entries else 0)],
    )
    yield (
        "mooring_ca_certificates",
        "gauge",
        "Certificates that have not ended.",
        [
            ({"profile": profile, "state": state}, count)
            for (profile, state), count in sorted(counts.items())
        ],
    )
    yield (
        "mooring_ca_audit_entries_total",
        "counter",
        "Entries of the audit trail: whatever was decided.",
        [({}, number) for number in entries],
    )


def _lines(name: str, kind: str, text: str, values: _Values) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in values:
        # ids, names of profiles and states: nothing that would have to be escaped
        shown = ",".join(f'{label}="{text}"' for label, text in labels.items())
        yield f"{name}{{{shown}}} {value:.0f}\n" if shown else f"{name} {value:.0f}\n"
