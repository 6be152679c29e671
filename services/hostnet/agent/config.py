"""Values an operator sets in mooring-agent.conf, read once at start."""

import base64
import binascii
import ipaddress
import re
from pathlib import Path
from typing import Any

from oslo_config import cfg

from services.core.config import ConfigError, load
from services.hostnet.agent import probe
from services.hostnet.agent.context import HostFacts
from services.hostnet.agent.haproxy import Controller, MetadataPath

AGENT = [
    cfg.StrOpt(
        "host",
        required=True,
        help="This host's name: the CN of its certificate, and `host` of its instances.",
    ),
    cfg.StrOpt(
        "api_url",
        required=True,
        regex=r"^https://[A-Za-z0-9.\[\]:-]+$",
        help="Where the controllers' API answers, https://NAME:PORT.",
    ),
    cfg.ListOpt(
        "controllers",
        required=True,
        help="Where HAProxy finds the metadata service: ADDRESS:PORT/NAME, NAME as in the "
        "controller's certificate; several are used in turn and replace each other.",
    ),
    cfg.StrOpt(
        "ca_file",
        default="/etc/mooring/pki/root.crt",
        help="Certificate that the controllers' certificates lead to.",
    ),
    cfg.StrOpt(
        "cert_file",
        default="/etc/mooring/pki/host.pem",
        help="This host's certificate, its chain and its key in one file.",
    ),
    cfg.StrOpt(
        "host_key_file",
        default="/etc/mooring/secrets/host-key",
        help="This host's signing key in base64 (`mooring secret host-key` prints it), readable "
        "by its owner alone.",
    ),
    cfg.StrOpt(
        "run_dir",
        default="/run/mooring/agent",
        help="Directory of HAProxy's configuration, map, socket and process id.",
    ),
    cfg.DictOpt(
        "namespaces",
        default={},
        help="Network namespace of each network, NETWORK:NAMESPACE,...; an empty NAMESPACE is the "
        "host's own. Networks that are not named are in qdhcp-NETWORK.",
    ),
    cfg.FloatOpt(
        "poll_seconds",
        default=2.0,
        min=0.1,
        max=3600.0,
        help="Seconds between two looks for changed instances.",
    ),
    cfg.ListOpt(
        "network_urls",
        default=[],
        help="Where the network service answers, https://NAME:PORT each; the next is asked when "
        "one does not answer. Empty: the agent keeps the metadata path alone.",
    ),
    cfg.StrOpt(
        "state_dir",
        default="/var/lib/mooring/agent",
        help="Directory of the last view and of the ports' attachments.",
    ),
    cfg.StrOpt(
        "tunnel_address",
        default="",
        regex=r"^[0-9A-Fa-f:.]*$",
        help="Address of this host that the others send VXLAN to. Empty: no VXLAN networks.",
    ),
    cfg.StrOpt(
        "tunnel_device",
        default="",
        regex=r"^[0-9A-Za-z._-]{0,15}$",
        help="Interface that has it; needed for multicast.",
    ),
    cfg.DictOpt(
        "bridge_mappings",
        default={},
        help="Interface of each physical network, PHYSICAL:INTERFACE,...: flat networks take it "
        "into their bridge, VLAN networks sub-interfaces of it.",
    ),
    cfg.PortOpt("vxlan_port", default=4789, min=1, help="UDP port of VXLAN; RFC 7348 says 4789."),
    cfg.StrOpt(
        "vxlan_mode",
        default="unicast",
        choices=["unicast", "p2p", "multicast"],
        help="unicast: where each MAC is, is programmed and nothing learnt; p2p: one other host; "
        "multicast: unknown frames go to vxlan_group and the rest is learnt.",
    ),
    cfg.StrOpt(
        "vxlan_group",
        default="239.255.0.1",
        regex=r"^[0-9A-Fa-f:.]+$",
        help="Multicast group of the multicast mode.",
    ),
    cfg.IntOpt("vxlan_ttl", default=1, min=1, max=255, help="TTL of the multicast mode's packets."),
]

OPTIONS: dict[str, list[Any]] = {"agent": AGENT}


def list_opts() -> list[tuple[str, list[Any]]]:
    """Every option by section, for oslo.config's generator and validator."""
    return [(group, list(options)) for group, options in OPTIONS.items()]


def read(path: str | Path) -> Any:
    """The [agent] values of a mooring-agent.conf; raises ConfigError."""
    return load(path, OPTIONS).agent


def host_facts(agent: Any) -> HostFacts:
    """What this host is, as the network's compiling sees it; raises ConfigError."""
    for url in agent.network_urls:
        if not re.fullmatch(r"https://[A-Za-z0-9.\[\]:-]+", url):
            raise ConfigError(f"network_urls: {url!r} is not https://NAME:PORT")
    address = agent.tunnel_address or None
    if address is not None:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            raise ConfigError(f"tunnel_address: {address!r} is no IP address") from None
    if agent.vxlan_mode == "multicast":
        try:
            group = ipaddress.ip_address(agent.vxlan_group)
        except ValueError:
            group = None
        if group is None or not group.is_multicast:
            raise ConfigError(f"vxlan_group: {agent.vxlan_group!r} is no multicast address")
        if not agent.tunnel_device:
            raise ConfigError("tunnel_device: vxlan_mode multicast needs it")
    for physical, interface in agent.bridge_mappings.items():
        if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]{0,14}", interface or ""):
            raise ConfigError(f"bridge_mappings: {physical}: {interface!r} is no interface")
    return HostFacts(
        host=agent.host,
        tunnel_address=address,
        tunnel_device=agent.tunnel_device or None,
        bridge_mappings=dict(agent.bridge_mappings),
        vxlan_port=agent.vxlan_port,
        vxlan_mode=agent.vxlan_mode,
        vxlan_group=agent.vxlan_group,
        vxlan_ttl=agent.vxlan_ttl,
        vlan=probe.vlan(),
        unusable=probe.unusable(agent.bridge_mappings.values()),
    )


def metadata_path(agent: Any) -> MetadataPath:
    """The proxy's description, without networks; raises ConfigError that names the option."""
    try:
        text = Path(agent.host_key_file).read_bytes().strip()
        key = base64.b64decode(text, validate=True)
    except OSError as error:
        raise ConfigError(f"host_key_file {agent.host_key_file}: {error.strerror}") from None
    except (binascii.Error, ValueError):
        raise ConfigError(f"host_key_file {agent.host_key_file}: is not base64") from None
    if Path(agent.host_key_file).stat().st_mode & 0o077:
        raise ConfigError(f"host_key_file {agent.host_key_file}: others can read it (chmod 600)")
    controllers = []
    for text_of_one in agent.controllers:
        found = re.fullmatch(r"\[?([0-9A-Fa-f:.]+?)\]?:([0-9]{1,5})/([A-Za-z0-9.-]+)", text_of_one)
        if found is None:
            raise ConfigError(f"controllers: {text_of_one!r} is not ADDRESS:PORT/NAME")
        controllers.append((found[1], int(found[2]), found[3].lower()))
    try:
        return MetadataPath(
            host=agent.host,
            host_key=key,
            controllers=tuple(Controller(*each) for each in controllers),
            ca_file=agent.ca_file,
            cert_file=agent.cert_file,
            run_dir=agent.run_dir,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
