"""The one place that touches the kernel: reads what there is, and runs what a plan says.

Reading is `ip -j` and `bridge -j`, a process for each kind and namespace: dumping 2,000 links takes
some 50 ms, where pyroute2 takes a second (measured). Writing is `ip -batch -force`, one process for
each namespace and phase: it goes on after a line that fails and says which one, so that one object
leaves the others alone. Every program is started by `run`, which tests make fail.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from services.hostnet.agent import names, netlink

COMMAND_SECONDS = 60.0
"""A batch for 1,000 ports takes a second; removing that many namespaces some ten."""

UNDERLAY_PREFIX = "mooring_"

_failed = re.compile(r"Command failed (?:-|.*?):(\d+)")


class KernelError(Exception):
    """A program did not run, or what it printed is not what it prints."""


@dataclass(slots=True)
class Actual:
    """What is there, of what concerns us. Links and all else by namespace ("" is the host's)."""

    namespaces: set[str] = field(default_factory=set)
    links: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Namespace -> name -> as `ip -d -j link` has it."""
    addresses: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """Namespace -> (link, ADDRESS/LENGTH) without what the kernel made itself."""
    routes: dict[str, dict[tuple[int, str], dict[str, Any]]] = field(default_factory=dict)
    """Namespace -> (table, destination) -> as `ip -j route` has it, of protocol 77."""
    forwarding: dict[str, set[tuple[str, str, str | None]]] = field(default_factory=dict)
    """Namespace -> (link, MAC, destination or None for the bridge's), permanent ones."""
    neighbours: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)
    """Namespace -> (link, address) -> MAC, permanent ones of protocol 77."""
    tables: dict[str, set[str]] = field(default_factory=dict)
    """Namespace -> chains of ours: FAMILY TABLE CHAIN."""
    sysctls: dict[tuple[str, str], str] = field(default_factory=dict)
    """(namespace, name) -> value, of those that were asked for."""


def run(command: Sequence[str], text: str = "") -> tuple[int, str, str]:
    """Run a program to its end: status, output, complaint. Raises KernelError if it cannot."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{command[0]}: {type(error).__name__}") from None
    return done.returncode, done.stdout, done.stderr


def _json(command: Sequence[str]) -> list[dict[str, Any]]:
    status, out, complaint = run(command)
    if status:
        raise KernelError(f"{' '.join(command)}: {complaint.strip()[:200]}")
    try:
        return [each for each in json.loads(out or "[]") if each]
    except ValueError:
        raise KernelError(f"{' '.join(command)}: its answer is no JSON") from None


def namespaces() -> set[str]:
    """Every named namespace."""
    try:
        return {path.name for path in netlink.NAMESPACES.iterdir()}
    except OSError:
        return set()


def has_namespace(name: str) -> bool:
    """Whether there is a namespace of this name."""
    return (netlink.NAMESPACES / name).exists()


def read(sysctls: Iterable[tuple[str, str]] = ()) -> Actual:
    """What is there: in the host's namespace and in each of ours, not in those of instances.

    ``sysctls`` are (namespace, name) of values to read as well.
    """
    actual = Actual(namespaces=namespaces())
    _read_namespace(actual, "")
    for name in sorted(actual.namespaces):
        if names.is_our_namespace(name):
            _read_namespace(actual, name)
    for namespace, group in groupby(sorted(sysctls), key=lambda item: item[0]):
        with contextlib.suppress(OSError):
            values = netlink.inside(namespace, lambda g=tuple(group): _sysctls(g))  # type: ignore[misc]
            actual.sysctls.update(values)
    return actual


def _sysctls(wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    values = {}
    for item in wanted:
        with contextlib.suppress(OSError):
            values[item] = Path("/proc/sys", item[1]).read_text().strip()
    return values


def links(namespace: str = "") -> dict[str, dict[str, Any]]:
    """The links of a namespace by name, with details."""
    return {each["ifname"]: each for each in _json(["ip", *_in(namespace), "-j", "-d", "link"])}


def _read_namespace(actual: Actual, namespace: str) -> None:
    there = _in(namespace)
    actual.links[namespace] = links(namespace)
    actual.addresses[namespace] = {
        (link["ifname"], f"{each['local']}/{each['prefixlen']}")
        for link in _json(["ip", *there, "-j", "address"])
        for each in link.get("addr_info", ())
        if "local" in each and not _kernels(each)
    }
    actual.routes[namespace] = {
        (int(_table(each)), _destination(each, family)): each
        for family in ("-4", "-6")
        for each in _json(
            ["ip", *there, family, "-j", "-d", "-N", "route", "show", "table", "all",
             "proto", str(names.PROTOCOL)]
        )
    }  # fmt: skip
    actual.forwarding[namespace] = {
        (each["ifname"], each["mac"], each.get("dst"))
        for each in _json(["bridge", *there, "-j", "fdb", "show"])
        if (each.get("state") == "permanent" and "dst" in each)
        or (each.get("state") == "static" and "master" in each)
    }
    actual.neighbours[namespace] = {
        (each["dev"], each["dst"]): each.get("lladdr", "")
        for family in ("-4", "-6")
        for each in _json(["ip", *there, family, "-j", "neighbour", "show", "nud", "permanent"])
        if "dst" in each and "dev" in each
    }
    status, out, complaint = run([*_nsenter(namespace), "nft", "list", "chains"])
    if status:
        raise KernelError(f"nft list chains: {complaint.strip()[:200]}")
    actual.tables[namespace] = _chains(out)


def _chains(text: str) -> set[str]:
    found, table = set(), ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"] and table.partition(" ")[2].startswith(UNDERLAY_PREFIX):
            found.add(f"{table} {words[1]}")
    return found


def _kernels(address: Mapping[str, Any]) -> bool:
    return address.get("scope") == "link" and ":" in address["local"]


def _table(route: Mapping[str, Any]) -> str:
    return str(route.get("table", "254"))


def _destination(route: Mapping[str, Any], family: str) -> str:
    text = str(route["dst"])
    if text == "default":
        return "0.0.0.0/0" if family == "-4" else "::/0"
    if "/" in text:
        return text
    return f"{text}/32" if family == "-4" else f"{text}/128"


def _in(namespace: str) -> list[str]:
    return ["-n", namespace] if namespace else []


def _nsenter(namespace: str) -> list[str]:
    return ["nsenter", f"--net={netlink.NAMESPACES / namespace}"] if namespace else []


# ---- writing ------------------------------------------------------------------------------------


def batch(program: str, namespace: str, lines: Sequence[str]) -> dict[int, str]:
    """Run lines of `ip` or `bridge`, all of them; returns what failed: line's index to reason.

    Raises KernelError if the program could not be run at all.
    """
    if not lines:
        return {}
    text = "\n".join(lines) + "\n"
    status, _, complaint = run([program, *_in(namespace), "-force", "-batch", "-"], text)
    failures: dict[int, str] = {}
    said: list[str] = []
    for line in complaint.splitlines():
        match = _failed.search(line)
        if match is None:
            said.append(line.strip())
        else:
            failures[int(match[1]) - 1] = " ".join(said)[-200:] or "it failed"
            said = []
    if status and not failures:
        raise KernelError(f"{program} -batch: {complaint.strip()[:200]}")
    return failures


def nft(namespace: str, text: str) -> str | None:
    """Load a script in one transaction; what nft complains of, None if it is loaded."""
    status, _, complaint = run([*_nsenter(namespace), "nft", "-f", "-"], text)
    return complaint.strip()[:300] or "it failed" if status else None


def write_sysctl(namespace: str, name: str, value: str) -> None:
    """Write a value under /proc/sys of a namespace, if it is another one; raises OSError."""

    def work() -> None:
        path = Path("/proc/sys", name)
        # /proc/sys/net is that of the thread that opens it
        if path.read_text().strip() != value:
            path.write_text(value)

    netlink.inside(namespace, work)
