"""What the agent keeps on disk: its view with its token, and which ports end in which namespace.

Every file is replaced whole and is on disk before it counts. A view that cannot be read is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from services.hostnet.agent.context import Attachment
from services.hostnet.view import View

VIEW_FILE = "view.json"
ATTACHMENTS = "attachments"

_uuid = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII).fullmatch
_namespace = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._-]{0,127}", re.ASCII).fullmatch
_link = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,14}", re.ASCII).fullmatch


def check(attachment: Attachment) -> None:
    """Raise ValueError, naming the field, for what cannot be an attachment."""
    for name, value, match in (
        ("port", attachment.port_id, _uuid),
        ("netns", attachment.namespace, _namespace),
        ("name", attachment.name, _link),
    ):
        if not match(value):
            raise ValueError(f"{name}: {value!r:.80} is not allowed")


class State:
    """The files of one agent below its state directory."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)

    def prepare(self) -> None:
        """Make the directories; raises OSError."""
        (self.directory / ATTACHMENTS).mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> tuple[str, View] | None:
        """Token and view as they were kept, None if there are none that can be read."""
        try:
            document = json.loads((self.directory / VIEW_FILE).read_text("utf-8"))
            return str(document["token"]), View.from_json(document["objects"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, token: str, view: View) -> None:
        """Keep token and view; raises OSError."""
        text = json.dumps({"token": token, "objects": view.to_json()}, separators=(",", ":"))
        _write(self.directory / VIEW_FILE, text)

    def attachments_changed(self) -> object:
        """Something that is another thing once an attachment came, changed or went."""
        try:
            return (self.directory / ATTACHMENTS).stat().st_mtime_ns
        except OSError:
            return None

    def attachments(self) -> dict[str, Attachment]:
        """Attachments by port; a file that is none is left out."""
        found = {}
        with contextlib.suppress(OSError):
            for path in sorted((self.directory / ATTACHMENTS).glob("*.json")):
                with contextlib.suppress(OSError, ValueError, TypeError):
                    attachment = Attachment(**json.loads(path.read_text("utf-8")))
                    check(attachment)
                    found[attachment.port_id] = attachment
        return found

    def attach(self, attachment: Attachment) -> None:
        """Keep an attachment; raises ValueError or OSError."""
        check(attachment)
        self.prepare()
        document = {
            "port_id": attachment.port_id,
            "namespace": attachment.namespace,
            "name": attachment.name,
            "addresses": attachment.addresses,
        }
        path = self.directory / ATTACHMENTS / f"{attachment.port_id}.json"
        _write(path, json.dumps(document) + "\n")

    def detach(self, port_id: str) -> bool:
        """Forget an attachment; whether there was one. Raises ValueError or OSError."""
        if not _uuid(port_id):
            raise ValueError(f"port: {port_id!r:.80} is not allowed")
        path = self.directory / ATTACHMENTS / f"{port_id}.json"
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        _sync(path.parent)
        return True


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary.rename(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
