"""What is written down for whom, on both engines."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Table, delete, insert, select, update

from services.core import schema
from services.core.database import Database, Writer, now
from services.hostnet import changes

NET, PORT, OTHER, GROUP, REMOTE, ROUTER = (f"00000000-0000-4000-8000-{n:012x}" for n in range(6))
DEVICE = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.write() as writer:
        add(writer, schema.network, id=NET, admin_state_up=True, shared=False, external=False,
            is_default=False, mtu=1450, network_type="local", port_security_enabled=True,
            dns_domain="", availability_zone_hints="[]")  # fmt: skip
    yield database
    database.close()


def add(writer: Writer, table: Table, **values: Any) -> None:
    at = now()
    writer.connection.execute(
        insert(table).values(
            **{"project_id": "red", "name": "", "description": "", "revision_number": 0,
               "created_at": at, "updated_at": at, **values}
        )
    )  # fmt: skip


def add_port(writer: Writer, port_id: str, host: str | None, **values: Any) -> None:
    add(writer, schema.port,
        **{"id": port_id, "network_id": NET, "mac_address": f"fa:16:3e:00:00:{port_id[-2:]}",
           "admin_state_up": True, "device_id": "", "device_owner": "", "host": host,
           "vnic_type": "normal", "binding_profile": "{}", "port_security_enabled": True,
           "allowed_address_pairs": "[]", "extra_dhcp_opts": "[]", "dns_name": "",
           **values})  # fmt: skip


Row = tuple[str, str, str, str]


def said(database: Database, work: Callable[[Writer], None]) -> list[Row]:
    """The rows that a transaction leaves, in their order."""
    with database.read() as connection:
        before = connection.execute(select(schema.revision.c.number)).scalar_one()
    with database.write() as writer:
        work(writer)
    change = schema.change
    with database.read() as connection:
        return [
            (row.kind, row.object_id, row.operation, row.scope)
            for row in connection.execute(
                select(change)
                .where(change.c.revision > before)
                .order_by(change.c.revision, change.c.ordinal)
            )
        ]


def test_the_first_port_of_a_network_on_a_host_brings_the_network(database: Database) -> None:
    """The host gains the network with its first port; a second one is news to the network alone."""

    def first(writer: Writer) -> None:
        add_port(writer, PORT, "one")
        changes.port(writer, PORT, NET, before=(), after=("one",))

    def second(writer: Writer) -> None:
        add_port(writer, OTHER, "one")
        changes.port(writer, OTHER, NET, before=(), after=("one",))

    network = f"network:{NET}"
    assert said(database, first) == [
        ("port", PORT, "put", network),
        ("network", NET, "put", "host:one"),
        ("port", PORT, "put", "host:one"),
    ]
    assert said(database, second) == [
        ("port", OTHER, "put", network),
        ("port", OTHER, "put", "host:one"),
    ]


def test_the_last_port_takes_the_network_away(database: Database) -> None:
    """A host loses the network with its last port there, unbound or deleted."""
    with database.write() as writer:
        add_port(writer, PORT, "one")
        add_port(writer, OTHER, "one")

    def unbind(writer: Writer) -> None:
        writer.connection.execute(
            update(schema.port).where(schema.port.c.id == PORT).values(host=None)
        )
        changes.port(writer, PORT, NET, before=("one",), after=())

    def remove(writer: Writer) -> None:
        writer.connection.execute(delete(schema.port).where(schema.port.c.id == OTHER))
        changes.port(writer, OTHER, NET, before=("one",), after=(), groups=[GROUP])

    assert said(database, unbind) == [("port", PORT, "put", f"network:{NET}")]
    assert said(database, remove) == [
        ("port", OTHER, "put", f"network:{NET}"),
        ("network", NET, "delete", "host:one"),
        ("group_members", GROUP, "put", f"security_group:{GROUP}"),
    ]


def test_a_move_is_gain_then_loss(database: Database) -> None:
    """During a move both hosts carry the network; the old one loses it at the end."""
    with database.write() as writer:
        add_port(writer, PORT, "one")

    def begin(writer: Writer) -> None:
        writer.connection.execute(update(schema.port).values(next_host="two"))
        changes.port(writer, PORT, NET, before=("one",), after=("one", "two"))

    def end(writer: Writer) -> None:
        writer.connection.execute(update(schema.port).values(host="two", next_host=None))
        changes.port(writer, PORT, NET, before=("one", "two"), after=("two",))

    assert ("network", NET, "put", "host:two") in said(database, begin)
    assert said(database, end) == [
        ("port", PORT, "put", f"network:{NET}"),
        ("network", NET, "delete", "host:one"),
    ]


def test_instances_are_told_of_their_ports_and_networks(database: Database) -> None:
    """A port's device that can be an instance is named; a router's or a service's is not."""

    def make(writer: Writer) -> None:
        add_port(writer, PORT, None, device_id=DEVICE, device_owner="compute:nova")
        add_port(writer, OTHER, None, device_id="mooring-dhcp-1", device_owner="network:dhcp")
        changes.port(writer, PORT, NET, before=(), after=(), device_id=DEVICE)
        changes.port(writer, OTHER, NET, before=(), after=(), device_id="mooring-dhcp-1")

    row = ("instance", DEVICE, "put", f"instance:{DEVICE}")
    assert [item for item in said(database, make) if item[0] == "instance"] == [row]
    assert said(database, lambda writer: changes.network(writer, NET)) == [
        ("network", NET, "put", f"network:{NET}"),
        row,
    ]
    assert said(database, lambda writer: changes.floating_ip(writer, PORT)) == [row]
    assert said(database, lambda writer: changes.floating_ip(writer, OTHER)) == []


def test_a_group_that_goes_is_news_to_those_that_name_it(database: Database) -> None:
    """The rules that name a deleted group go with it: their groups have changed."""
    with database.write() as writer:
        for group in (GROUP, REMOTE):
            add(writer, schema.security_group, id=group, stateful=True, is_default=False)
        add(writer, schema.security_group_rule, id=PORT, security_group_id=GROUP,
            direction="ingress", ethertype="IPv4", remote_group_id=REMOTE)  # fmt: skip
    assert said(database, lambda writer: changes.security_group(writer, REMOTE, deleted=True)) == [
        ("security_group", REMOTE, "delete", f"security_group:{REMOTE}"),
        ("security_group", GROUP, "put", f"security_group:{GROUP}"),
    ]
    assert said(database, lambda writer: changes.security_group(writer, GROUP)) == [
        ("security_group", GROUP, "put", f"security_group:{GROUP}")
    ]


def test_routers_and_hosts(database: Database) -> None:
    """A router is news to its host; a tunnel address to whoever shares a network with the host."""
    assert said(
        database, lambda writer: changes.router(writer, ROUTER, before=("one",), after=("two",))
    ) == [("router", ROUTER, "delete", "host:one"), ("router", ROUTER, "put", "host:two")]
    assert said(database, lambda writer: changes.host(writer, "one")) == [
        ("host", "one", "put", "tunnel:one")
    ]


def test_two_that_bind_at_once_do_not_both_miss_the_gain(database: Database) -> None:
    """Of writers that race to bind the first port of a network, exactly one brings the network."""
    count = 8
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def bind(number: int) -> None:
        port_id = f"00000000-0000-4000-9000-{number:012x}"
        try:
            barrier.wait()
            with database.write() as writer:
                add_port(writer, port_id, "one", mac_address=f"fa:16:3e:01:00:{number:02x}")
                changes.port(writer, port_id, NET, before=(), after=("one",))
        except BaseException as error:
            errors.append(error)

    def unbind(number: int) -> None:
        port_id = f"00000000-0000-4000-9000-{number:012x}"
        try:
            barrier.wait()
            with database.write() as writer:
                writer.connection.execute(delete(schema.port).where(schema.port.c.id == port_id))
                changes.port(writer, port_id, NET, before=("one",), after=())
        except BaseException as error:
            errors.append(error)

    for work, operation in ((bind, "put"), (unbind, "delete")):
        threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        change = schema.change
        with database.read() as connection:
            rows = connection.execute(
                select(change.c.operation).where(
                    change.c.kind == "network", change.c.scope == "host:one"
                )
            ).scalars()
            assert list(rows).count(operation) == 1
