"""Log lines: a static event name plus fields, on standard error, as text or JSON.

Every field whose name says that it holds a secret, and every inside-only header, is replaced
before a line is rendered, whoever wrote it: a log is read by more people than a database.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from services.core.headers import SECRET

SECRET_FIELDS = frozenset(
    {
        "authorization",
        "certificate",
        "key",
        "password",
        "secret",
        "signature",
        "token",
        "user_data",
        "vendor_data",
        *(name.lower().replace("-", "_") for name in SECRET),
    }
)
REDACTED = "[redacted]"


def redact(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace the values of fields that must not be in a log (a structlog processor)."""
    for name in event:
        low = name.lower().replace("-", "_")
        if any(secret in low for secret in SECRET_FIELDS):
            event[name] = REDACTED
    return event


def configure(level: str = "info", style: str = "text") -> None:
    """Send structlog's and the standard library's lines to standard error in one form.

    ``level`` is debug, info, warning or error; ``style`` text or json. Safe to call again.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "mooring", False):
            root.removeHandler(old)
    handler.mooring = True  # type: ignore[attr-defined]  # marks the handler as ours for a second call
    root.addHandler(handler)
    root.setLevel(level.upper())
    # tells at info level each time that it looks at the schema
    logging.getLogger("alembic").setLevel(logging.WARNING)
