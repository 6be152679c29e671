"""What a writer says to the feed, so that each host hears of what concerns it and of nothing else.

Call these inside ``Database.write()``, after the rows have been written unless it says otherwise.
Only the fact is recorded: whoever reads it takes the object as it is then (services.hostnet.views).
A change is told to a scope:

- ``network:ID``: the hosts that carry the network, which are those that a port of it is bound to,
- ``security_group:ID``: the hosts with a port in the group or with a rule that names it as remote,
- ``host:NAME``: that host; what it gains and loses,
- ``tunnel:NAME``: the hosts that share a network with that one,
- ``instance:ID``: nobody's view; a metadata worker forgets the instance's pages.

Whether a host gains or loses a network is decided under a lock on the network's row, so that two
writers cannot both believe that the other one's port is there. The lock is the weak one (FOR NO KEY
UPDATE): the full one and the foreign keys of two new ports would wait for each other for ever. Who
binds ports of several networks in one transaction does so in the order of the networks' ids.
"""

import uuid
from collections.abc import Iterable

from sqlalchemy import exists, or_, select

from services.core import schema
from services.core.database import Writer

Hosts = tuple[str, ...]
"""Names of the hosts that carry a port or router: its ``host`` and ``next_host``; () for none."""

NETWORK = "network"
PORT = "port"
SECURITY_GROUP = "security_group"
GROUP_MEMBERS = "group_members"
ROUTER = "router"
HOST = "host"
INSTANCE = "instance"

PUT = "put"
DELETE = "delete"


def network(writer: Writer, network_id: str, *, deleted: bool = False) -> None:
    """Say that a network, one of its subnets or its DHCP port changed, or the network is gone.

    A network that is deleted has no bound port any more, so no host hears of it again.
    """
    writer.changed(NETWORK, network_id, DELETE if deleted else PUT, f"network:{network_id}")
    port = schema.port
    devices = writer.connection.execute(
        select(port.c.device_id)
        .where(
            port.c.network_id == network_id,
            port.c.device_id != "",
            port.c.device_owner.not_like("network:%"),
        )
        .distinct()
        .order_by(port.c.device_id)
    ).scalars()
    for device_id in devices.all():
        instance(writer, device_id)


def port(
    writer: Writer,
    port_id: str,
    network_id: str,
    *,
    before: Hosts,
    after: Hosts,
    groups: Iterable[str] = (),
    device_id: str = "",
) -> None:
    """Say that a port was made, changed, moved or deleted.

    ``before`` and ``after`` are the hosts that carried it and that carry it now; ``after`` is ()
    for a port that is deleted. ``groups`` are the security groups whose membership changed by this:
    those that it entered or left, and all of its groups if its addresses or allowed pairs changed
    or it was made or deleted. If ``device_id`` changed, call `instance` for the old one too.
    """
    scope = f"network:{network_id}"
    before_set, after_set = _named(before), _named(after)
    groups = sorted(set(groups))
    writer.changed(PORT, port_id, PUT, scope)
    if before_set != after_set:
        lock_network(writer, network_id)
        for name in sorted(after_set - before_set):
            if not _carried(writer, network_id, name, port_id):
                writer.changed(NETWORK, network_id, PUT, f"host:{name}")
        for name in sorted(before_set - after_set):
            if not _carried(writer, network_id, name, port_id):
                writer.changed(NETWORK, network_id, DELETE, f"host:{name}")
    # the host needs the port's security groups too, which it may have had no use for until now
    for name in sorted(after_set if groups else after_set - before_set):
        writer.changed(PORT, port_id, PUT, f"host:{name}")
    for group in groups:
        writer.changed(GROUP_MEMBERS, group, PUT, f"security_group:{group}")
    if device_id:
        instance(writer, device_id)


def security_group(writer: Writer, group_id: str, *, deleted: bool = False) -> None:
    """Say that a group's rules or statefulness changed.

    If it is to be deleted, call this BEFORE its row goes: rules of other groups that name it as
    remote go with it, and those groups are looked up here.
    """
    rule = schema.security_group_rule
    writer.changed(
        SECURITY_GROUP, group_id, DELETE if deleted else PUT, f"security_group:{group_id}"
    )
    if not deleted:
        return
    # Waits for who is adding a rule that names it, and makes the next one fail.
    writer.connection.execute(
        select(schema.security_group.c.id)
        .where(schema.security_group.c.id == group_id)
        .with_for_update()
    ).all()
    others = writer.connection.execute(
        select(rule.c.security_group_id)
        .where(rule.c.remote_group_id == group_id, rule.c.security_group_id != group_id)
        .distinct()
        .order_by(rule.c.security_group_id)
    ).scalars()
    for other in others.all():
        writer.changed(SECURITY_GROUP, other, PUT, f"security_group:{other}")


def router(writer: Writer, router_id: str, *, before: Hosts, after: Hosts) -> None:
    """Say that anything of a router changed: itself, interfaces, routes, floating IPs, its host.

    Its ports are said with `port` as any other. A floating IP that is associated or let go is
    `floating_ip` besides.
    """
    for name in sorted(_named(before) - _named(after)):
        writer.changed(ROUTER, router_id, DELETE, f"host:{name}")
    for name in sorted(_named(after)):
        writer.changed(ROUTER, router_id, PUT, f"host:{name}")


def floating_ip(writer: Writer, port_id: str) -> None:
    """Say that a floating IP was put in front of a port or taken away: its instance shows it."""
    device_id = writer.connection.execute(
        select(schema.port.c.device_id).where(schema.port.c.id == port_id)
    ).scalar_one_or_none()
    if device_id:
        instance(writer, device_id)


def host(writer: Writer, name: str) -> None:
    """Say that a host's tunnel address changed, or the host came or went."""
    writer.changed(HOST, name, PUT, f"tunnel:{name}")


def instance(writer: Writer, device_id: str) -> None:
    """Say that the ports of an instance changed; a device that can be none says nothing."""
    try:
        canonical = str(uuid.UUID(device_id)) == device_id
    except ValueError:
        return
    if canonical:
        writer.changed(INSTANCE, device_id, PUT, f"instance:{device_id}")


def lock_network(writer: Writer, network_id: str) -> None:
    """Let no one else bind or unbind a port of this network until the transaction ends."""
    writer.connection.execute(
        select(schema.network.c.id)
        .where(schema.network.c.id == network_id)
        .with_for_update(key_share=True)
    ).all()


def _carried(writer: Writer, network_id: str, name: str, port_id: str) -> bool:
    """Whether the host carries the network without this port."""
    item = schema.port
    return bool(
        writer.connection.execute(
            select(
                exists().where(
                    item.c.network_id == network_id,
                    item.c.id != port_id,
                    or_(item.c.host == name, item.c.next_host == name),
                )
            )
        ).scalar_one()
    )


def _named(hosts: Hosts) -> set[str]:
    return {name for name in hosts if name}
