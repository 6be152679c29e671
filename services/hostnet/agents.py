"""Hosts as clients of OpenStack Networking know them: agents, alive or not, and their zones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, false, func, select, true

from services.core import schema
from services.hostnet import changes, refusals, values
from services.hostnet.resource import Action, Attribute, Call, Change, Extension, Resource, Row

AGENT_TYPE = "Mooring agent"
BINARY = "mooring-agent"

_host = schema.host
_status = schema.host_status


class Agents(Resource):
    """The collection /v2.0/agents: hosts, which register themselves."""

    singular = "agent"
    collection = "agents"
    title = "Agent"
    table = _host
    without = frozenset({"create"})
    own = (
        Attribute("id", column="agent_id"),
        Attribute("host", column="name"),
        Attribute("agent_type", column=None),
        Attribute("binary", column=None),
        Attribute("topic", column=None),
        Attribute("availability_zone"),
        Attribute("admin_state_up", values.boolean),
        Attribute("description", values.text()),
        Attribute("alive", column=None),
        Attribute("configurations", column=None),
        Attribute("created_at"),
        Attribute("started_at", column=None),
        Attribute("heartbeat_timestamp", column=None),
        Attribute("resources_synced", column=None),
        Attribute("resource_versions", column=None, shown=False),
    )
    extensions = (Extension("agent", "agent", "Hosts that run the agent"),)

    def common(self) -> tuple[Attribute, ...]:
        """A host belongs to no project and has no tags."""
        return ()

    @property
    def key(self) -> Any:
        """The agent's id; the table's own key is the host's name."""
        return _host.c.agent_id

    def visible(self, call: Call) -> ColumnElement[bool]:
        """Hosts are not a tenant's to see."""
        return true() if call.allows("agent:list") else false()

    def lock(self, change: Change, object_ids: Sequence[str]) -> None:
        """Lock the host's row."""
        change.connection.execute(
            select(_host.c.name).where(_host.c.agent_id.in_(object_ids)).with_for_update()
        ).all()

    def update(self, change: Change, row: Row, attributes: Mapping[str, Any]) -> None:
        """Change what an admin says of a host."""
        change.connection.execute(
            _host.update().where(_host.c.name == row["name"]).values(**self.columns(attributes))
        )

    def delete(self, change: Change, row: Row) -> None:
        """Forget a host that carries nothing."""
        port = schema.port
        held = change.connection.execute(
            select(port.c.id)
            .where((port.c.host == row["name"]) | (port.c.next_host == row["name"]))
            .limit(1)
        ).first()
        if held is not None:
            raise self.in_use(row["agent_id"], "Ports are bound to the host.")
        changes.host(change.writer, row["name"])
        change.connection.execute(_host.delete().where(_host.c.name == row["name"]))

    def extend(self, call: Call, rows: Sequence[Row], documents: Sequence[dict[str, Any]]) -> None:
        """Add what hosts report."""
        names = [row["name"] for row in rows]
        seen = {
            each["host"]: each
            for each in call.connection.execute(
                select(_status).where(_status.c.host.in_(names))
            ).mappings()
        }
        ports: dict[str, int] = {}
        for name, count in call.connection.execute(
            select(schema.port.c.host, func.count())
            .where(schema.port.c.host.in_(names))
            .group_by(schema.port.c.host)
        ):
            ports[name] = count
        oldest = datetime.now(UTC) - timedelta(seconds=call.settings.agent_down_time)
        for row, document in zip(rows, documents, strict=True):
            status = seen.get(row["name"])
            last = row["created_at"] if status is None else status["seen_at"]
            document.update(
                agent_type=AGENT_TYPE,
                binary=BINARY,
                topic="N/A",
                alive=datetime.fromisoformat(last) >= oldest,
                started_at=_shown(row["created_at"] if status is None else status["started_at"]),
                heartbeat_timestamp=_shown(last),
                resources_synced=True,
                configurations={
                    "tunnel_address": row["tunnel_address"],
                    "bridge_mappings": json.loads(row["bridge_mappings"]),
                    "ports": ports.get(row["name"], 0),
                    "failures": [] if status is None else json.loads(status["failures"]),
                    **json.loads(row["configuration"]),
                },
            )


def _shown(at: str) -> str:
    return at[:19].replace("T", " ")


class Zones:
    """The collection /v2.0/availability_zones."""

    path = "availability_zones"

    def routes(self) -> Iterable[tuple[str, str, str, Action]]:
        """(method, path below the collection, rule, action)."""
        yield "GET", "", "availability-zone:list", self.list

    def list(self, call: Call, _match: Mapping[str, str], _body: dict[str, Any]) -> Any:
        """Zones of hosts, as networks and routers may ask for them."""
        if not call.allows("availability-zone:list") and not call.projects:
            raise refusals.forbidden("availability-zone:list is disallowed by policy")
        names = call.connection.execute(
            select(_host.c.availability_zone).where(_host.c.admin_state_up).distinct()
        ).scalars()
        return {
            "availability_zones": [
                {"name": name, "resource": kind, "state": "available"}
                for name in sorted(names)
                for kind in ("network", "router")
            ]
        }
