"""How many objects a project may have: the check, and the collection that admins set it with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select

from services.core import schema
from services.hostnet import refusals, values
from services.hostnet.resource import Action, Call, Change, Resource
from services.hostnet.settings import QUOTAS

TABLES = {
    "network": schema.network,
    "subnet": schema.subnet,
    "port": schema.port,
    "router": schema.router,
    "floatingip": schema.floating_ip,
    "security_group": schema.security_group,
    "security_group_rule": schema.security_group_rule,
}

GREATEST = 1_000_000

_quota = schema.quota


def limits(call: Call, project_id: str) -> dict[str, int]:
    """The project's limits, by resource; -1 is none."""
    result = dict(call.settings.quotas)
    rows = call.connection.execute(
        select(_quota.c.resource, _quota.c.limit).where(_quota.c.project_id == project_id)
    )
    result.update({name: limit for name, limit in rows if name in result})
    return result


def used(call: Call, project_id: str, name: str) -> int:
    """How many the project has."""
    table = TABLES[name]
    return int(
        call.connection.execute(
            select(func.count()).select_from(table).where(table.c.project_id == project_id)
        ).scalar_one()
    )


def check(change: Change, resource: Resource, asked: Sequence[Mapping[str, Any]]) -> None:
    """Raise Refused 409 if these new objects are more than their projects may have."""
    name = resource.singular
    if name not in TABLES:
        return
    for project_id, more in Counter(each["project_id"] for each in asked).items():
        limit = limits(change, project_id)[name]
        if limit >= 0 and used(change, project_id, name) + more > limit:
            raise refusals.conflict("OverQuota", f"Quota exceeded for resources: ['{name}'].")


class Quotas:
    """The collection /v2.0/quotas, whose members are projects."""

    path = "quotas"

    def routes(self) -> Iterable[tuple[str, str, str, Action]]:
        """(method, path below /v2.0/quotas, rule, action)."""
        yield "GET", "", "quota:list", self.list
        yield "GET", "/{project}", "quota:show", self.show
        yield "GET", "/{project}/default", "quota:show", self.default
        yield "GET", "/{project}/details.json", "quota:show", self.details
        yield "GET", "/{project}/details", "quota:show", self.details
        yield "PUT", "/{project}", "quota:update", self.update
        yield "DELETE", "/{project}", "quota:update", self.reset

    def list(self, call: Call, _match: Mapping[str, str], _body: dict[str, Any]) -> Any:
        """Projects with limits of their own."""
        _may(call, "quota:list", None)
        projects = call.connection.execute(select(_quota.c.project_id).distinct()).scalars()
        return {"quotas": [{"project_id": p, **limits(call, p)} for p in sorted(projects)]}

    def show(self, call: Call, match: Mapping[str, str], _body: dict[str, Any]) -> Any:
        """A project's limits."""
        return {"quota": limits(call, _project(call, match, "quota:show"))}

    def default(self, call: Call, match: Mapping[str, str], _body: dict[str, Any]) -> Any:
        """The limits of a project that has none of its own."""
        _project(call, match, "quota:show")
        return {"quota": dict(call.settings.quotas)}

    def details(self, call: Call, match: Mapping[str, str], _body: dict[str, Any]) -> Any:
        """Limits and what is used of them."""
        project_id = _project(call, match, "quota:show")
        return {
            "quota": {
                name: {"limit": limit, "used": used(call, project_id, name), "reserved": 0}
                for name, limit in limits(call, project_id).items()
            }
        }

    def update(self, change: Change, match: Mapping[str, str], body: dict[str, Any]) -> Any:
        """Set some of a project's limits."""
        project_id = _project(change, match, "quota:update")
        given = body.pop("quota", None)
        if not isinstance(given, dict) or body:
            raise refusals.bad_body("Unable to find 'quota' in request body")
        given = {k: v for k, v in given.items() if k not in ("project_id", "tenant_id")}
        for name, value in given.items():
            if name not in QUOTAS:
                raise refusals.bad_body(f"Unrecognized attribute(s) '{name[:64]}'")
            try:
                limit = values.integer(-1, GREATEST)(value)
            except ValueError as error:
                raise refusals.bad_value(name, str(error)) from None
            change.connection.execute(
                delete(_quota).where(_quota.c.project_id == project_id, _quota.c.resource == name)
            )
            change.connection.execute(
                insert(_quota).values(project_id=project_id, resource=name, limit=limit)
            )
        return {"quota": limits(change, project_id)}

    def reset(self, change: Change, match: Mapping[str, str], _body: dict[str, Any]) -> Any:
        """Forget a project's own limits."""
        project_id = _project(change, match, "quota:update")
        change.connection.execute(delete(_quota).where(_quota.c.project_id == project_id))


def _project(call: Call, match: Mapping[str, str], rule: str) -> str:
    try:
        project_id = str(values.token(match["project"]))
    except ValueError as error:
        raise refusals.bad_value("project_id", str(error)) from None
    _may(call, rule, project_id)
    return project_id


def _may(call: Call, rule: str, project_id: str | None) -> None:
    if not call.allows(rule, project_id):
        raise refusals.forbidden(f"{rule} is disallowed by policy")
