"""Who may do what: one table of rules, and the one function that applies it.

A rule lists the groups that pass it. Some of them are relative: ``project`` is the group of the
project that the object belongs to, ``host`` the host whose certificate asks for what it carries,
``owner`` whom a certificate names or who made a token, ``profile`` those whom the certificate
service's profiles.toml names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from services.core.errors import Failure
from services.core.identity import ADMINS, HOSTS, OPERATORS, PROJECT_PREFIX, ClientIdentity

PROJECT = "project"
HOST = "host"
OWNER = "owner"
PROFILE = "profile"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it allows, in words, and to whom."""

    name: str
    description: str
    groups: frozenset[str]


def _rule(name: str, description: str, *groups: str) -> Rule:
    return Rule(name, description, frozenset(groups))


def _resource(kind: str, what: str, prefix: str) -> tuple[Rule, ...]:
    """The five rules of an object that a project has."""
    verbs = (
        ("create", f"make {what}"),
        ("list", f"list {kind}s"),
        ("show", f"read {what}"),
        ("update", f"change {what}"),
        ("delete", f"delete {what}"),
    )
    return tuple(
        _rule(f"{prefix}{verb}", words, ADMINS, OPERATORS, PROJECT) for verb, words in verbs
    )


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
        _rule("certificate:issue", "ask for a certificate of a profile", ADMINS, PROFILE),
        _rule("certificate:list", "list certificates", ADMINS, OPERATORS, OWNER),
        _rule("certificate:show", "read a certificate and its state", ADMINS, OPERATORS, OWNER),
        _rule("certificate:renew", "renew a certificate", ADMINS, OWNER),
        _rule("certificate:revoke", "revoke or hold a certificate", ADMINS, OPERATORS, OWNER),
        _rule("certificate:release", "release a held certificate", ADMINS, OPERATORS),
        _rule("token:create", "make an enrolment token for a profile", ADMINS, PROFILE),
        _rule("token:list", "list enrolment tokens", ADMINS, OPERATORS, OWNER),
        _rule("token:delete", "withdraw an enrolment token", ADMINS, OPERATORS, OWNER),
        _rule("acme-key:create", "make a key for external ACME accounts", ADMINS, OPERATORS),
        _rule("acme-key:list", "list keys for external ACME accounts", ADMINS, OPERATORS),
        _rule("acme-key:delete", "withdraw a key for external ACME accounts", ADMINS, OPERATORS),
        _rule("audit:read", "read the audit trail", ADMINS),
        *_resource("network", "a network", "network:"),
        _rule("network:provider", "choose and see a network's segment", ADMINS, OPERATORS),
        _rule("network:share", "share a network with every project", ADMINS, OPERATORS),
        _rule("network:external", "make a network one to the outside", ADMINS, OPERATORS),
        *_resource("subnet", "a subnet", "subnet:"),
        *_resource("port", "a port", "port:"),
        _rule("port:binding", "say and see which host carries a port", ADMINS, OPERATORS),
        _rule("port:device-owner", "make a port of the network's own", ADMINS, OPERATORS),
        _rule("port:network-owner", "use a network as its owner", ADMINS, OPERATORS, PROJECT),
        _rule("agent:list", "list hosts", ADMINS, OPERATORS),
        _rule("agent:show", "read a host", ADMINS, OPERATORS),
        _rule("agent:update", "change what is said of a host", ADMINS, OPERATORS),
        _rule("agent:delete", "forget a host", ADMINS),
        _rule("host:register", "say where a host is", ADMINS, HOST),
        _rule("host:view", "read a host's view", ADMINS, HOST),
        _rule("host:report", "report what a host has done", ADMINS, HOST),
        _rule("availability-zone:list", "list zones", ADMINS, OPERATORS, PROJECT),
        _rule("quota:list", "list quotas", ADMINS, OPERATORS),
        _rule("quota:show", "read a project's quotas", ADMINS, OPERATORS, PROJECT),
        _rule("quota:update", "set a project's quotas", ADMINS),
    )
}


def allows(
    rule_name: str,
    client: ClientIdentity,
    *,
    project_id: str | None = None,
    hosts: tuple[str | None, ...] = (),
    owner: bool = False,
) -> bool:
    """Say whether the client passes a rule for an object of this project, carried by these hosts.

    Without ``project_id``, ``hosts`` or ``owner`` the relative groups do not apply; ``profile`` is
    the certificate service's to apply.
    """
    groups = RULES[rule_name].groups
    if not groups.isdisjoint(client.groups):
        return True
    if OWNER in groups and owner:
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
    owner: bool = False,
) -> ClientIdentity:
    """Return the client if it passes the rule; raises Failure 401 or 403."""
    if client is None:
        raise Failure(401, "a client certificate is required")
    if not allows(rule_name, client, project_id=project_id, hosts=hosts, owner=owner):
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


__all__ = [
    "HOST",
    "HOSTS",
    "OWNER",
    "PROFILE",
    "PROJECT",
    "RULES",
    "Rule",
    "allows",
    "enforce",
    "projects_of",
]
