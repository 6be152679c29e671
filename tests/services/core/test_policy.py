"""Who may do what."""

import pytest

from services.core import policy
from services.core.errors import Failure
from services.core.identity import ADMINS, HOSTS, OPERATORS, ClientIdentity


def client(*groups: str, user: str = "u") -> ClientIdentity:
    return ClientIdentity(user, frozenset(groups), 1, "00")


def test_nobody_passes_without_a_certificate() -> None:
    """Every rule refuses an anonymous client with 401."""
    for rule in policy.RULES:
        with pytest.raises(Failure) as failure:
            policy.enforce(rule, None)
        assert failure.value.status == 401


def test_a_stranger_passes_no_rule() -> None:
    """A valid certificate without a group opens nothing, whatever the object."""
    for rule in policy.RULES:
        assert not policy.allows(rule, client("others"), project_id="p", hosts=("u",))


def test_an_admin_passes_every_rule() -> None:
    """mooring:admins may do everything."""
    for rule in policy.RULES:
        assert policy.allows(rule, client(ADMINS))


def test_a_project_s_group_opens_that_project_only() -> None:
    """A tenant cannot touch another's object, nor one of no project."""
    tenant = client("mooring:project:p")
    assert policy.allows("instance:delete", tenant, project_id="p")
    assert not policy.allows("instance:delete", tenant, project_id="q")
    assert not policy.allows("instance:delete", tenant)
    assert not policy.allows("instance:place", tenant, project_id="p")


def test_a_host_reads_what_it_carries_and_changes_nothing() -> None:
    """A host's certificate opens reading of its own instances alone."""
    host = client(HOSTS, user="host-1")
    assert policy.allows("instance:show", host, hosts=("host-1", None))
    assert not policy.allows("instance:show", host, hosts=("host-2", None))
    assert not policy.allows("instance:show", host)
    own = ("host:register", "host:view", "host:report")
    changing = [rule for rule in policy.RULES if not rule.endswith((":show", ":list"))]
    changing = [rule for rule in changing if rule not in own]
    for rule in changing:
        assert not policy.allows(rule, host, project_id="p", hosts=("host-1",))


def test_operators_do_not_read_passwords() -> None:
    """An operator runs instances; their passwords are for the project and for admins."""
    assert policy.allows("instance:update", client(OPERATORS))
    assert not policy.allows("instance:password", client(OPERATORS))


def test_projects_of_lists_the_projects() -> None:
    """The groups that name projects, sorted, and no other."""
    found = policy.projects_of(client("mooring:project:b", ADMINS, "mooring:project:a"))
    assert found == ("a", "b")
