"""Carries a plan out, and remembers what came of it so that the next one need not read it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from services.hostnet.agent import kernel, netlink
from services.hostnet.agent.desired import (
    Address,
    FdbEntry,
    Key,
    Link,
    Namespace,
    Neighbour,
    Object,
    Owner,
    Route,
    Sysctl,
)
from services.hostnet.agent.kernel import Actual, KernelError
from services.hostnet.agent.plan import REMOVE, Operation, Plan

GONE = ("Cannot find device", "No such", "No route to host", "does not exist")
"""What a removal says of something that is gone already."""


def carry_out(plan: Plan) -> dict[Owner, str]:
    """Do every operation; returns whom something failed for, with the reason.

    An operation that fails leaves those of other owners alone; the following ones of the same owner
    are left out, but for removals.
    """
    failures = dict(plan.failures)
    for (phase, program, namespace), group in groupby(
        plan.operations,
        # one visit sets all up
        key=lambda op: (op.phase, op.program, "" if op.program == "up" else op.namespace),
    ):
        operations = [op for op in group if op.owner not in failures or phase >= REMOVE]
        for op, reason in _run(program, namespace, operations):
            if not (phase >= REMOVE and any(word in reason for word in GONE)):
                failures.setdefault(op.owner, f"{reason} ({op.program} {op.text[:120].strip()})")
    return failures


def _run(
    program: str, namespace: str, operations: list[Operation]
) -> Iterable[tuple[Operation, str]]:
    try:
        if program in ("ip", "bridge"):
            failed = kernel.batch(program, namespace, [op.text for op in operations])
            yield from ((operations[index], reason) for index, reason in failed.items())
            return
        if program == "up":
            said = netlink.bring_up([(op.namespace, op.text) for op in operations])
            yield from ((op, why) for op, why in zip(operations, said, strict=True) if why)
            return
    except KernelError as error:
        yield from ((op, str(error)) for op in operations)
        return
    for op in operations:
        try:
            reason = _one(op)
        except (KernelError, OSError) as error:
            reason = str(error)
        if reason is not None:
            yield op, reason


def _one(op: Operation) -> str | None:
    if op.program == "nft":
        return kernel.nft(op.namespace, op.text)
    if op.program == "netns":
        status, _, complaint = kernel.run(["ip", "netns", *op.text.split()])
        return complaint.strip()[:200] or "it failed" if status else None
    name, _, value = op.text.partition("=")
    kernel.write_sysctl(op.namespace, name, value)
    return None


def learn(
    actual: Actual, keys: Iterable[Key], wanted: Mapping[Key, Object], failures: Iterable[Owner]
) -> None:
    """Note in ``actual`` that these objects are as wanted now, but for owners with failures."""
    failed = set(failures)
    for key in keys:
        item = wanted.get(key)
        if item is None:
            _forget(actual, key)
        elif item.owner not in failed:
            _note(actual, item)


def _note(actual: Actual, item: Object) -> None:
    match item:
        case Namespace():
            actual.namespaces.add(item.name)
            for table in (actual.links, actual.routes, actual.neighbours):
                table.setdefault(item.name, {})
            actual.addresses.setdefault(item.name, set())
            actual.forwarding.setdefault(item.name, set())
        case Link():
            links = actual.links.setdefault(item.namespace, {})
            have = links.get(item.name)
            if have is None and item.kind == "existing":
                return
            have = dict(have or {"ifname": item.name})
            values = {
                "mtu": item.mtu, "address": item.mac, "ifalias": item.alias or None,
                "master": item.master, "group": str(item.group),
            }  # fmt: skip
            have.update({name: value for name, value in values.items() if value is not None})
            if item.up is not None:
                have["flags"] = ["UP"] if item.up else []
            if item.port is not None:
                have["linkinfo"] = {
                    "info_slave_data": {
                        name: getattr(item.port, name)
                        for name in ("learning", "flood", "isolated", "neigh_suppress", "hairpin")
                    }
                }
            links[item.name] = have
        case Address():
            actual.addresses.setdefault(item.namespace, set()).add((item.link, item.address))
        case Route():
            actual.routes.setdefault(item.namespace, {})[(item.table, item.destination)] = {
                "gateway": item.via,
                "dev": item.link,
            }
        case FdbEntry():
            found = actual.forwarding.setdefault(item.namespace, set())
            if item.destination is not None and item.key[-1] == "":
                found -= {e for e in found if e[:2] == (item.link, item.mac) and e[2] is not None}
            found.add((item.link, item.mac, item.destination))
        case Neighbour():
            place = actual.neighbours.setdefault(item.namespace, {})
            place[(item.link, item.address)] = item.mac
        case Sysctl():
            actual.sysctls[(item.namespace, item.name)] = item.value
        case _:
            pass


def _forget(actual: Actual, key: Key) -> None:
    kind, *rest = key
    if kind == "namespace":
        name = str(rest[0])
        actual.namespaces.discard(name)
        for table in (actual.links, actual.routes, actual.neighbours, actual.addresses,
                      actual.forwarding, actual.tables):  # fmt: skip
            table.pop(name, None)
        return
    namespace = str(rest[0])
    if kind == "link":
        actual.links.get(namespace, {}).pop(str(rest[1]), None)
    elif kind == "address":
        actual.addresses.get(namespace, set()).discard((str(rest[1]), str(rest[2])))
    elif kind == "route":
        actual.routes.get(namespace, {}).pop((int(rest[1]), str(rest[2])), None)
    elif kind == "neighbour":
        actual.neighbours.get(namespace, {}).pop((str(rest[1]), str(rest[2])), None)
    elif kind == "fdb":
        _, link, where, mac, flood = rest
        found = actual.forwarding.get(namespace, set())
        for each in list(found):
            if (
                each[:2] == (link, mac)
                and (each[2] is None) == (where == "bridge")
                and (not flood or each[2] == flood)
            ):
                found.discard(each)
