"""The one port that a network's DHCP service answers from, on every host that carries the network.

It is there while a subnet has DHCP on, with an address of each such subnet; a client of the API
sees it as it sees other ports and cannot change it.
"""

from __future__ import annotations

import json
import uuid

from sqlalchemy import delete, insert, select

from services.core import schema
from services.core.database import now
from services.hostnet import addresses, changes
from services.hostnet.resource import Change, Row
from services.hostnet.view import DHCP_OWNER

_port = schema.port


def keep_dhcp_port(change: Change, network: Row) -> None:
    """Make, change or remove the network's DHCP port so that it fits the subnets.

    The caller has locked the network and tells its change. Raises Refused 409 if no address is
    left for it.
    """
    served = [each for each in addresses.subnets_of(change, network["id"]) if each["enable_dhcp"]]
    row = (
        change.connection.execute(
            select(_port.c.id, _port.c.mac_address).where(
                _port.c.network_id == network["id"], _port.c.device_owner == DHCP_OWNER
            )
        )
        .mappings()
        .first()
    )
    if not served:
        if row is not None:
            change.connection.execute(
                delete(schema.ip_allocation).where(schema.ip_allocation.c.port_id == row["id"])
            )
            change.connection.execute(delete(_port).where(_port.c.id == row["id"]))
            changes.port(change.writer, row["id"], network["id"], before=(), after=())
        return
    if row is None:
        port_id, mac = str(uuid.uuid4()), addresses.new_mac(change, network["id"])
        _insert(change, network, port_id, mac)
        has: dict[str, str] = {}
    else:
        port_id, mac = row["id"], row["mac_address"]
        has = dict(addresses.of_ports(change, [port_id])[port_id])
    wanted = {each["id"] for each in served}
    if set(has) == wanted:
        return
    kept = [(subnet_id, ip) for subnet_id, ip in has.items() if subnet_id in wanted]
    asked = [{"subnet_id": s, "ip_address": ip} for s, ip in kept]
    asked += [{"subnet_id": each["id"]} for each in served if each["id"] not in has]
    chosen = addresses.choose(change, network["id"], asked, mac, DHCP_OWNER, kept)
    addresses.write(change, network["id"], port_id, [each for each in chosen if each[0] in wanted])


def _insert(change: Change, network: Row, port_id: str, mac: str) -> None:
    at = now()
    change.connection.execute(
        insert(_port).values(
            id=port_id,
            project_id=network["project_id"],
            name="",
            description="",
            revision_number=0,
            created_at=at,
            updated_at=at,
            network_id=network["id"],
            mac_address=mac,
            admin_state_up=True,
            device_id=f"mooring-dhcp-{network['id']}",
            device_owner=DHCP_OWNER,
            vnic_type="normal",
            binding_profile=json.dumps({}),
            port_security_enabled=False,
            allowed_address_pairs=json.dumps([]),
            extra_dhcp_opts=json.dumps([]),
            dns_name="",
        )
    )
