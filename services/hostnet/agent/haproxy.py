"""The host's metadata proxy as text: HAProxy's configuration, its identity map, the nft table.

Nothing here does I/O. One HAProxy serves every network of the host: a frontend per network, bound
inside that network's namespace, and one backend that leads to the controllers over mutual TLS.
Who asks is decided by (network, source address) and the identity map alone; a header of the
client decides nothing. The request that leaves the host is a new one: of the client's headers only
those in `CLIENT_HEADERS` are left, then ours are added.

No string reaches the text unchecked: every field is matched whole against a regular expression
when its dataclass is made (ValueError names the field), and none of these lets a blank, a quote,
a backslash, `$`, `%`, `#` or a control character through.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

CONFIG_FILE = "haproxy.cfg"
MAP_FILE = "identities.map"
SOCKET_FILE = "haproxy.sock"
PID_FILE = "haproxy.pid"

# What the metadata application reads of an instance's request, beside method and target. The
# framing headers stay because HAProxy owns the framing: it has already refused ambiguous ones.
CLIENT_HEADERS = (
    "accept",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
    "x-aws-ec2-metadata-token",
    "x-aws-ec2-metadata-token-ttl-seconds",
    "x-metadata-token",
    "x-metadata-token-ttl-seconds",
)

# Token answers carry the packet mark MARK_BASE + N, N the hop limit. Beyond Neutron's marks
# (0x1 to 0xffff is its mask for access, but it only ever sets 0x1 and 0x3 there).
MARK_BASE = 0x4D00
# AWS's range of HttpPutResponseHopLimit.
MIN_HOP_LIMIT, MAX_HOP_LIMIT = 1, 64
HOP_LIMIT_TABLE = "mooring_hop_limit"

# A header that has not arrived by then is a slow-loris: clients here are one hop away.
HEADER_SECONDS = 5
# All request headers together; cloud-init's are 200 bytes, a token adds about as much.
MAX_HEADER_BYTES = 8192
# Real targets are under 200; NGINX behind takes 12 kB.
MAX_TARGET_BYTES = 2048
# A generated password, base64, is at most 1020 bytes; NGINX has the same limit.
MAX_BODY_BYTES = 2048
# Connections of one network. One network's storm leaves the others their share of the process.
NETWORK_CONNECTIONS = 1024
# Connections of one instance at a time: a boot uses one or two, botocore in many processes some.
INSTANCE_CONNECTIONS = 64
# Addresses of one network on this host whose connections are counted (about 100 bytes each).
NETWORK_ADDRESSES = 2048
# Connections of the process: 16 KiB of buffers each at most, 2 file descriptors.
PROCESS_CONNECTIONS = 8192
# Connections to one controller; more requests wait here, in order, instead of there.
CONTROLLER_CONNECTIONS = 256

MAX_PATH = 255
# A unix socket's path has 107 bytes; HAProxy makes `haproxy.sock.PID.tmp` before it renames it.
MAX_RUN_DIR = 82

_identifier = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,127}", re.ASCII).fullmatch
_network = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", re.ASCII).fullmatch
_namespace = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._-]{0,127}", re.ASCII).fullmatch
_label = r"[0-9a-z](?:[0-9a-z-]{0,61}[0-9a-z])?"
_host = re.compile(rf"(?=.{{1,253}}\Z){_label}(?:\.{_label})*", re.ASCII).fullmatch
_path = re.compile(r"(?:/[0-9A-Za-z_][0-9A-Za-z._+@-]*)+", re.ASCII).fullmatch
_stamp = re.compile(r"[0-9a-f]{0,64}", re.ASCII).fullmatch

Identities = Mapping[str, Mapping[str, tuple[str, str]]]
"""Network id -> address -> (instance id, project id)."""


def _check(what: str, value: str, right: object) -> None:
    if not right:
        raise ValueError(f"{what}: {value!r} cannot stand in the proxy's configuration")


def _address(what: str, value: str) -> str:
    """The address as HAProxy prints a peer's: inet_ntop's form. Raises ValueError."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or int(address) >> 80 == 0):
        # inet_ntop and Python differ on addresses that embed an IPv4 address; no instance has one.
        raise ValueError(f"{what}: {value!r} is not an instance's address")
    return str(address)


@dataclass(frozen=True, slots=True)
class Controller:
    """Where NGINX listens: an IP address, a port, and the DNS name that its certificate holds."""

    address: str
    port: int
    server_name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", _address("controller's address", self.address))
        _check("controller's port", str(self.port), 0 < self.port < 65536)
        _check("controller's server name", self.server_name, _host(self.server_name))


@dataclass(frozen=True, slots=True)
class NetworkPath:
    """One network: its id, the named namespace (None: HAProxy's own) and where to listen there."""

    id: str
    namespace: str | None = None
    addresses: tuple[str, ...] = ("169.254.169.254",)
    port: int = 80

    def __post_init__(self) -> None:
        _check("network id", self.id, _network(self.id))
        if self.namespace is not None:
            _check("namespace", self.namespace, _namespace(self.namespace))
        _check("listen addresses", str(self.addresses), self.addresses)
        listen = tuple(_address("listen address", address) for address in self.addresses)
        object.__setattr__(self, "addresses", listen)
        _check("listen port", str(self.port), 0 < self.port < 65536)


@dataclass(frozen=True, slots=True)
class MetadataPath:
    """Everything that HAProxy's configuration depends on.

    `host` is the CN of the host's certificate, `host_key` the 32-byte key derived for it. `ca_file`
    verifies the controllers; `cert_file` holds the host's certificate, its chain and its key.
    `stamp` is a digest of both files' contents: a renewed certificate changes the configuration,
    and so reloads it. `log` is a syslog socket, or None for no log of requests.
    """

    host: str
    host_key: bytes = field(repr=False)
    controllers: tuple[Controller, ...]
    ca_file: str
    cert_file: str
    run_dir: str
    networks: tuple[NetworkPath, ...] = ()
    stamp: str = ""
    log: str | None = None

    def __post_init__(self) -> None:
        _check("host", self.host, _host(self.host))
        if len(self.host_key) < 32:
            raise ValueError("host key: shorter than 32 bytes")
        _check("controllers", "()", self.controllers)
        for what in ("ca_file", "cert_file", "run_dir"):
            value = getattr(self, what)
            _check(what, value, _path(value) and len(value) <= MAX_PATH)
        _check("run_dir", self.run_dir, len(self.run_dir) <= MAX_RUN_DIR)
        _check("stamp", self.stamp, _stamp(self.stamp))
        if self.log is not None:
            _check("log", self.log, _path(self.log) and len(self.log) <= MAX_PATH)
        ids = [network.id for network in self.networks]
        _check("network ids", str(ids), len(ids) == len(set(ids)))
        binds = [
            (network.namespace, address, network.port)
            for network in self.networks
            for address in network.addresses
        ]
        _check("listen addresses", str(binds), len(binds) == len(set(binds)))


def render_maps(identities: Identities) -> dict[str, str]:
    """File name -> content: one map from `NETWORK/ADDRESS` to `INSTANCE/PROJECT`, sorted.

    One map for all networks, so that one transaction on the runtime socket replaces it whole.
    Raises ValueError if an id or an address is not one, or two addresses are the same.
    """
    entries: dict[str, str] = {}
    for network, addresses in identities.items():
        _check("network id", network, _network(network))
        for address, (instance, project) in addresses.items():
            _check("instance id", instance, _identifier(instance))
            _check("project id", project, _identifier(project))
            key = f"{network}/{_address('instance address', address)}"
            _check("instance address", address, key not in entries)
            entries[key] = f"{instance}/{project}"
    return {MAP_FILE: "".join(f"{key} {entries[key]}\n" for key in sorted(entries))}


def parse_map(text: str) -> dict[str, str]:
    """Entries of a map file, or of `show map` (which puts a pointer before each)."""
    entries = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2:
            entries[words[-2]] = words[-1]
    return entries


def render_config(path: MetadataPath) -> str:
    """HAProxy's configuration. It holds the host's key: whoever writes it uses mode 0600.

    Its description is `config_digest` of the rest, so a running process tells what it runs.
    Needs HAProxy 2.6 with PCRE (a look-ahead), OpenSSL and, for namespaces, a kernel with them.
    """
    body = "\n".join(_global(path) + _defaults(path) + _backend(path) + _frontends(path)) + "\n"
    return f"{_HEAD}global\n    description {_digest(body)}\n{body}"


def config_digest(config: str) -> str:
    """The digest that `show info` of a process with this configuration reports."""
    found = re.search(r"^    description ([0-9a-f]{64})$", config, re.MULTILINE)
    return found[1] if found else ""


def served_networks(config: str) -> frozenset[str]:
    """The ids of the networks that a configuration has a frontend for."""
    return frozenset(re.findall(r"^frontend network-(\S+)$", config, re.MULTILINE))


def render_hop_limit_nft() -> str:
    """An nft script that makes the packets of token answers die after N hops; idempotent, atomic.

    Load it in each network's namespace: the mark is HAProxy's (`http-response set-mark`), the
    socket lives in that namespace, so its output hook is there. One rule a hop limit: nft 1.0.6
    cannot look a TTL up in a map ("Binary operation (<<) is undefined"). Unmarked packets, which
    are nearly all, leave at the first rule.
    """
    first, last = MARK_BASE + MIN_HOP_LIMIT, MARK_BASE + MAX_HOP_LIMIT
    rules = [f"        meta mark != {first:#x}-{last:#x} accept"]
    for limit in range(MIN_HOP_LIMIT, MAX_HOP_LIMIT + 1):
        rules.append(f"        meta mark {MARK_BASE + limit:#x} ip ttl set {limit}")
        rules.append(f"        meta mark {MARK_BASE + limit:#x} ip6 hoplimit set {limit}")
    return "\n".join(
        [
            f"table inet {HOP_LIMIT_TABLE}",
            f"delete table inet {HOP_LIMIT_TABLE}",
            f"table inet {HOP_LIMIT_TABLE} {{",
            "    chain output {",
            "        type filter hook output priority mangle; policy accept;",
            *rules,
            "    }",
            "}",
            "",
        ]
    )


@dataclass(frozen=True, slots=True)
class Actual:
    """What is there: both files, and what the process has in memory.

    `running` is the digest of the configuration that the process runs, None without a process.
    `entries` is the map in its memory. `listening` are the ids of the networks in whose namespace
    something listens where it should: a namespace that was made anew under its old name has no
    listener, although a reloaded HAProxy, which takes sockets over by name, believes it has.
    """

    config: str = ""
    maps: Mapping[str, str] = field(default_factory=dict)
    running: str | None = None
    entries: Mapping[str, str] = field(default_factory=dict)
    listening: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: write files, then start or reload, or else replace the map.

    `config` and `maps` are to be written, None or empty if they stand already. `entries` is the
    map to put into the process's memory, None to leave it. `unbind` names the networks that
    `config` leaves out, for HAProxy to let go of sockets in namespaces that are no more; the next
    plan brings them back.
    """

    config: str | None = field(default=None, repr=False)
    maps: Mapping[str, str] = field(default_factory=dict)
    process: Literal["keep", "start", "reload"] = "keep"
    entries: Mapping[str, str] | None = None
    unbind: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        written = self.config is not None or bool(self.maps)
        return written or self.process != "keep" or self.entries is not None


def plan(path: MetadataPath, identities: Identities, actual: Actual) -> Plan:
    """The steps from what is there to what is wanted; false if there are none."""
    maps = render_maps(identities)
    stale = {name: text for name, text in maps.items() if actual.maps.get(name) != text}
    config = render_config(path)
    digest = config_digest(config)
    unbind: frozenset[str] = frozenset()
    if actual.running == digest:
        unbind = frozenset(network.id for network in path.networks) - actual.listening
    if unbind:
        kept = tuple(network for network in path.networks if network.id not in unbind)
        config = render_config(replace(path, networks=kept))
        digest = config_digest(config)
    process: Literal["keep", "start", "reload"] = "keep"
    if actual.running is None:
        process = "start"
    elif actual.running != digest:
        process = "reload"
    entries = None
    if process == "keep":
        wanted = parse_map(maps[MAP_FILE])
        entries = wanted if wanted != actual.entries else None
    return Plan(
        config=config if config != actual.config else None,
        maps=stale,
        process=process,
        entries=entries,
        unbind=unbind,
    )


_HEAD = "# Written by mooring-agent from what the controllers say; changes here are overwritten.\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _global(path: MetadataPath) -> list[str]:
    key = base64.b64encode(path.host_key).decode("ascii")
    lines = [
        # An old worker has the old map and certificate: a request's longest time, then it ends.
        "    hard-stop-after 60s",
        f"    maxconn {PROCESS_CONNECTIONS}",
        # Where the limit of open files is lower (rootless), fewer connections instead of none.
        "    no strict-limits",
        # expose-fd: a new worker takes the sockets over, so that a reload refuses no connection.
        f"    stats socket {path.run_dir}/{SOCKET_FILE} mode 600 level admin expose-fd listeners",
        "    stats timeout 10s",
        "    ssl-default-server-options ssl-min-ver TLSv1.2",
        # Base64, as the hmac converter wants it; a variable, so that no rule and no error shows it.
        f"    set-var proc.host_key str({key})",
        f"    # certificates {path.stamp}",
    ]
    if path.log is not None:
        lines.append(f"    log {path.log} format rfc3164 daemon info")
    return lines


def _defaults(path: MetadataPath) -> list[str]:
    # Texts in Nova's layout, never empty (a Neutron agent turns an empty error into a 500).
    def error(status: int, reason: str, text: str, header: str = "") -> str:
        return (
            f'    http-error status {status} content-type "text/plain; charset=UTF-8" '
            f'string "{status} {reason}\\n\\n{text}\\n\\n   "{header}'
        )

    again = ' hdr Retry-After "2"'
    # Path without query and no header: tokens and signatures are headers.
    log = [
        "    log global",
        "    option dontlognull",
        '    log-format "%ci %[var(txn.network)] %[var(txn.instance)]'
        ' %HM %HPO %ST %B %Tr %Ta %tsc"',
    ]
    if path.log is None:
        log = []
    unavailable = "The metadata service does not answer. Please try again."
    return [
        "",
        "defaults",
        "    mode http",
        *log,
        # Smuggling by HTTP/2's preface on a plain port: not a protocol that this path speaks.
        "    option disable-h2-upgrade",
        # An old worker answers a last request on a connection that it keeps, with a close, rather
        # than cut it while the client is sending.
        "    option idle-close-on-response",
        # The header timeout then covers the small bodies too.
        "    option http-buffer-request",
        f"    timeout http-request {HEADER_SECONDS}s",
        "    timeout http-keep-alive 10s",
        "    timeout client 10s",
        "    timeout connect 2s",
        "    timeout queue 5s",
        "    timeout server 15s",
        error(400, "Bad Request", "The request is not valid HTTP."),
        error(408, "Request Timeout", "The request did not arrive in time."),
        error(500, "Internal Server Error", "The metadata proxy failed."),
        error(502, "Bad Gateway", unavailable, again),
        error(503, "Service Unavailable", unavailable, again),
        error(504, "Gateway Timeout", unavailable, again),
    ]


def _backend(path: MetadataPath) -> list[str]:
    allowed = "|".join(CLIENT_HEADERS)
    message = "\\n".join(
        [
            "mooring-v2",
            path.host,
            "%[var(txn.time)]",
            "%[var(txn.network)]",
            "%[var(txn.instance)]",
            "%[var(txn.project)]",
            "%[var(txn.address)]",
            "%[method]",
            "%[pathq]",
        ]
    )
    lines = [
        "",
        "backend controllers",
        "    balance roundrobin",
        # A boot storm is many clients with one request each: they share warm TLS connections. The
        # race of a reused connection that NGINX just closed is what `empty-response` retries.
        "    http-reuse always",
        "    retries 2",
        "    option redispatch 1",
        "    retry-on conn-failure empty-response 502 504",
        # Any answer that is not a server's failure: the application refuses an unsigned request,
        # which shows that NGINX and gunicorn live. A database that is away takes no one down.
        "    option httpchk",
        "    http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host metadata",
        "    http-check expect ! rstatus ^5",
        "",
        # -- refusals that need no identity
        *_refuse(
            405,
            "Method Not Allowed",
            "The method is not served.",
            "{ method CONNECT TRACE }",
            ' hdr Allow "GET, HEAD"',  # RFC 9110, 15.5.6
        ),
        *_refuse(400, "Bad Request", "The target must be a path.", "!{ url,bytes(0,1) -m str / }"),
        *_refuse(
            414,
            "URI Too Long",
            "The target is too long.",
            f"{{ url,length gt {MAX_TARGET_BYTES} }}",
        ),
        *_refuse(
            431,
            "Request Header Fields Too Large",
            "The headers are too long.",
            f"{{ req.hdrs,length gt {MAX_HEADER_BYTES} }}",
        ),
        *_refuse(
            413,
            "Content Too Large",
            "The body is too long.",
            f"{{ req.body_size gt {MAX_BODY_BYTES} }}",
        ),
        "",
        # -- who asks: network and source address, nothing the client says
        "    http-request set-var-fmt(txn.address) %[src]",
        '    http-request set-var-fmt(txn.key) "%[var(txn.network)]/%[src]"',
        f"    http-request set-var(txn.identity) var(txn.key),map_str({path.run_dir}/{MAP_FILE})",
        *_refuse(
            404,
            "Not Found",
            "No instance has this address.",
            "!{ var(txn.identity) -m found }",
        ),
        "    http-request set-var(txn.instance) var(txn.identity),field(1,/)",
        "    http-request set-var(txn.project) var(txn.identity),field(2,/)",
        "",
        # -- a new request: what the client said about forwarding is noted, then all but the
        # -- allowed headers goes (HAProxy keeps header names in lower case)
        "    http-request set-var(txn.forwarded) bool(true)"
        " if { req.fhdr_cnt(x-forwarded-for) gt 0 }",
        f"    http-request del-header ^(?!(?:{allowed})$) -m reg",
        "    http-request set-header X-Mooring-Forwarded 1 if { var(txn.forwarded) -m bool }",
        "    http-request set-header X-Forwarded-For %[var(txn.address)]",
        "    http-request set-header X-Instance-ID %[var(txn.instance)]",
        "    http-request set-header X-Tenant-ID %[var(txn.project)]",
        "    http-request set-header X-Mooring-Network %[var(txn.network)]",
        "    http-request set-var(txn.time) date()",
        "    http-request set-header X-Mooring-Time %[var(txn.time)]",
        f'    http-request set-var-fmt(txn.message) "{message}"',
        "    http-request set-header X-Mooring-Signature"
        " %[var(txn.message),hmac(sha256,proc.host_key),hex,lower]",
        # Sent again only if once more does no more: a password is set once.
        "    http-request disable-l7-retry if !METH_GET !{ method PUT }",
        "",
        # -- the hop limit of a token's answer. The mark belongs to the connection, and lost
        # -- packets are sent again with the mark it has then: were it taken off for a next
        # -- answer, a relay that holds back its acknowledgement would get the token with a
        # -- normal TTL. So a marked connection ends with this answer.
        "    http-response set-var(txn.hops) res.fhdr(X-Mooring-Hop-Limit)",
        "    http-response del-header x-mooring- -m beg",
        # A controller without its application: by now the others have been tried. cloud-init waits
        # and asks again for 503 with Retry-After alone.
        '    http-response set-header Retry-After "2" if { status 502 504 }',
        '    http-response set-status 503 reason "Service Unavailable" if { status 502 504 }',
    ]
    # the strictest first: a value that is none of the others leaves it at that
    strictest = MARK_BASE + MIN_HOP_LIMIT
    lines.append(f"    http-response set-mark {strictest:#x} if {{ var(txn.hops) -m found }}")
    for limit in range(MIN_HOP_LIMIT + 1, MAX_HOP_LIMIT + 1):
        mark = f"{MARK_BASE + limit:#x}"
        lines.append(f"    http-response set-mark {mark} if {{ var(txn.hops) -m str {limit} }}")
    lines += [
        "    http-response set-header Connection close if { var(txn.hops) -m found }",
        "",
        # Few checks: with 2,000 hosts every second of this is 200 handshakes a second; a failed
        # request hastens them.
        "    default-server check inter 10s fastinter 1s downinter 2s fall 2 rise 1"
        " observe layer4 error-limit 3 on-error mark-down"
        f" maxconn {CONTROLLER_CONNECTIONS} ssl verify required ca-file {path.ca_file}"
        f" crt {path.cert_file} alpn http/1.1 pool-purge-delay 30s",
    ]
    for number, controller in enumerate(path.controllers):
        address = f"[{controller.address}]" if ":" in controller.address else controller.address
        name = controller.server_name
        lines.append(
            f"    server controller{number} {address}:{controller.port}"
            f" verifyhost {name} sni str({name}) check-sni {name}"
        )
    return lines


def _refuse(status: int, reason: str, text: str, condition: str, header: str = "") -> list[str]:
    return [
        f'    http-request return status {status} content-type "text/plain; charset=UTF-8"'
        f' string "{status} {reason}\\n\\n{text}\\n\\n   "{header} if {condition}'
    ]


def _frontends(path: MetadataPath) -> list[str]:
    lines = []
    for network in sorted(path.networks, key=lambda network: network.id):
        lines += ["", f"frontend network-{network.id}"]
        inside = f" namespace {network.namespace}" if network.namespace is not None else ""
        for address in network.addresses:
            where = f"[{address}]" if ":" in address else address
            # transparent: binds although the address is not there yet, so one late network does
            # not keep the process from starting.
            lines.append(f"    bind {where}:{network.port}{inside} transparent")
        lines += [
            f"    maxconn {NETWORK_CONNECTIONS}",
            # Counted from the first packet on, so that connections which never ask count too.
            f"    stick-table type ipv6 size {NETWORK_ADDRESSES} expire 1m store conn_cur",
            "    tcp-request connection track-sc0 src",
            f"    tcp-request connection reject if {{ sc0_conn_cur gt {INSTANCE_CONNECTIONS} }}",
            f"    http-request set-var(txn.network) str({network.id})",
            "    default_backend controllers",
        ]
    return lines
