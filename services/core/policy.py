"""Who may do what: one table of rules, and the one function that applies it.

A rule lists the groups that pass it. Two of them are relative: ``project`` is the group of the
project that the object belongs to, ``host`` the host whose certificate asks for what it carries.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from services.core.errors import Failure
from services.core.identity import ADMINS, HOSTS, OPERATORS, PROJECT_PREFIX, ClientIdentity

PROJECT = "project"
HOST = "host"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it allows, in words, and to whom."""

    name: str
    description: str
    groups: frozenset[str]


def _rule(name: str, description: str, *groups: str) -> Rule:
    return Rule(name, description, frozenset(groups))


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        _rule("instance:create", "create an instance", ADMINS, OPERATORS, PROJECT),
        _rule("instance:list", "list instances", ADMINS, OPERATORS, PROJECT, HOST),
        _rule("instance:show", "read an instance", ADMINS, OPERATORS, PROJECT, HOST),
        _rule("instance:update", "change or replace an instance", ADMINS, OPERATORS, PROJECT),
        _rule("instance:delete", "delete an instance", ADMINS, OPERATORS, PROJECT),
        _rule("instance:place", "say which host carries an instance", ADMINS, OPERATORS),
        _rule("instance:password", "read or reset an instance's password", ADMINS, PROJECT),
    )
}


def allows(
    rule_name: str,
    client: ClientIdentity,
    *,
    project_id: str | None = None,
    hosts: tuple[str | None, ...] = (),
) -> bool:
    """Say whether the client passes a rule for an object of this project, carried by these hosts.

    Without ``project_id`` or ``hosts`` the relative groups do not apply.
    """
    groups = RULES[rule_name].groups
    if not groups.isdisjoint(client.groups):
        return True
    if (
        PROJECT in groups
        and project_id is not None
        and PROJECT_PREFIX + project_id in client.groups
    ):
        return True
    return HOST in groups and client.host is not None and client.host in hosts


def enforce(
    rule_name: str,
    client: ClientIdentity | None,
    *,
    project_id: str | None = None,
    hosts: tuple[str | None, ...] = (),
) -> ClientIdentity:
    """Return the client if it passes the rule; raises Failure 401 or 403."""
    if client is None:
        raise Failure(401, "a client certificate is required")
    if not allows(rule_name, client, project_id=project_id, hosts=hosts):
        raise Failure(403, f"{client.user} may not {RULES[rule_name].description} here")
    return client


def projects_of(client: ClientIdentity) -> tuple[str, ...]:
    """The projects that a client's groups name, sorted."""
    return tuple(
        sorted(
            group.removeprefix(PROJECT_PREFIX)
            for group in client.groups
            if group.startswith(PROJECT_PREFIX)
        )
    )


__all__ = ["HOST", "HOSTS", "PROJECT", "RULES", "Rule", "allows", "enforce", "projects_of"]
