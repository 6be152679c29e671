"""What this host's kernel offers, found out by doing; said once at start."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from services.hostnet.agent import kernel


def vlan() -> str:
    """Why there are no 802.1Q sub-interfaces, "" if there are."""
    name = f"mo{secrets.token_hex(4)}"
    probe = f"{name}v"
    try:
        status, _, complaint = kernel.run(["ip", "link", "add", name, "type", "bridge"])
        if status:
            return f"it could not be tried: {complaint.strip()[:120]}"
        try:
            status, _, complaint = kernel.run(
                ["ip", "link", "add", "link", name, "name", probe, "type", "vlan", "id", "1"]
            )
            if status:
                return f"this kernel has no 802.1Q: {complaint.strip()[:120]}"
            return ""
        finally:
            # the sub-interface goes with it
            kernel.run(["ip", "link", "del", name])
    except kernel.KernelError as error:
        return f"it could not be tried: {error}"


def unusable(interfaces: Iterable[str]) -> dict[str, str]:
    """Interfaces that no bridge may take, and why: an address of the host's would be cut off."""
    found = {}
    for name in set(interfaces):
        try:
            status, out, _ = kernel.run(
                ["ip", "-o", "address", "show", "dev", name, "scope", "global"]
            )
        except kernel.KernelError as error:
            found[name] = str(error)
            continue
        if status:
            found[name] = f"there is no interface {name}"
        elif out.strip():
            found[name] = f"{name} has an address of this host, which a bridge would cut off"
    return found
