"""Values an operator sets in mooring.conf, and the check that refuses what nobody reads.

Wiring (which filter stands where) is paste's; values are here. oslo.config ignores an unknown
option in silence, so ``load`` compares the file with what is registered and names the culprit.
``list_opts`` is what oslo-config-generator and oslo-config-validator read.
"""

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oslo_config import cfg, types

from services.core import database
from services.core.config_network import NETWORK


class ConfigError(Exception):
    """A mooring.conf that must not be started with; the text names file, section and option."""


class _Network(types.String):
    def __call__(self, value: Any) -> str:
        # a network with host bits is a mistake: is the host meant, or its network?
        return str(ipaddress.ip_network(str(super().__call__(value)).strip()))


class _Endpoint(types.String):
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, with the address as IP text."""

    def __call__(self, value: Any) -> str:
        text = str(super().__call__(value)).strip()
        match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](?::(\d{1,5}))?|([0-9.]+):(\d{1,5})", text)
        address, port = (match[1] or match[3], match[2] or match[4]) if match else (text, None)
        ipaddress.ip_address(address)
        if port is not None and not 0 < int(port) < 65536:
            raise ValueError(f"{port} is not a port")
        return text


class _DatabaseURL(types.String):
    def __call__(self, value: Any) -> str:
        text = str(super().__call__(value))
        database.parse_url(text)
        return text


DATABASE = [
    cfg.Opt(
        "url",
        type=_DatabaseURL(),
        default="sqlite:////var/lib/mooring/mooring.db",
        secret=True,
        help="Where the state is kept: sqlite:////ABSOLUTE/PATH, or "
        "postgresql://USER@HOST/NAME (install the extra mooring[postgresql]).",
    ),
]

LOG = [
    cfg.StrOpt(
        "level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="Lines below this level are not written.",
    ),
    cfg.StrOpt(
        "format",
        default="text",
        choices=["text", "json"],
        help="text for people, json for a log collector. Lines go to standard error.",
    ),
]

METADATA = [
    cfg.StrOpt(
        "dhcp_domain",
        default="novalocal",
        regex=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.|$))*$",
        help="Domain that is appended to host names in the EC2 tree and meta_data.json; empty "
        "for none. The default is Nova's.",
    ),
    cfg.StrOpt(
        "availability_zone",
        default="nova",
        regex=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        help="Zone of instances that name none.",
    ),
    cfg.StrOpt(
        "availability_zone_id",
        default="",
        regex=r"^[A-Za-z0-9._-]{0,63}$",
        help="The answer of placement/availability-zone-id; empty: not listed.",
    ),
    cfg.StrOpt(
        "region",
        default="mooring",
        regex=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        help="The answer of placement/region.",
    ),
    cfg.StrOpt(
        "public_domain",
        default="",
        regex=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.|$))*$",
        help="Domain of public-hostname; empty: the same as dhcp_domain.",
    ),
    cfg.StrOpt(
        "architecture",
        default="",
        choices=["", "x86_64", "arm64"],
        help="`architecture` of the identity document; empty: null.",
    ),
    cfg.StrOpt(
        "services_domain",
        default="",
        regex=r"^[A-Za-z0-9.-]{0,253}$",
        help="The answer of services/domain; empty: not listed.",
    ),
    cfg.StrOpt(
        "services_partition",
        default="mooring",
        regex=r"^[A-Za-z0-9-]{0,63}$",
        help="The answer of services/partition; empty: not listed.",
    ),
    cfg.BoolOpt(
        "nova_compatible",
        default=False,
        help="Answer with Nova's status, content type and body where Mooring deliberately differs "
        "(docs/metadata.md lists where).",
    ),
    cfg.StrOpt(
        "token_secrets",
        default="/etc/mooring/secrets/signature",
        help="Directory with the secrets (files current, next, previous) that session tokens are "
        "made with. Every replica needs the same; `mooring secret create` makes one.",
    ),
    cfg.StrOpt(
        "vendor_data_file",
        default="",
        help="JSON file whose object every instance finds in vendor_data.json and as `static` in "
        "vendor_data2.json; empty for none. An instance's own vendor data goes before it.",
    ),
    cfg.MultiStrOpt(
        "vendordata_dynamic_targets",
        help="NAME@URL of a service that is asked (POST) for an instance's vendor_data2.json; "
        "may be given several times.",
    ),
    cfg.FloatOpt(
        "vendordata_dynamic_timeout",
        default=5.0,
        min=0.1,
        max=30.0,
        help="Seconds that all dynamic targets together may take.",
    ),
    cfg.IntOpt(
        "vendordata_dynamic_cache",
        default=60,
        min=0,
        max=3600,
        help="Seconds for which a target's answer for one instance is kept.",
    ),
    cfg.BoolOpt(
        "vendordata_dynamic_failure_fatal",
        default=False,
        help="Answer 503 when a target fails, instead of an empty object under its name.",
    ),
    cfg.IntOpt(
        "cache_mib",
        default=64,
        min=1,
        max=65536,
        help="MiB of rendered documents that a worker keeps; the least recently read instances "
        "leave first. Some 27 KiB an instance, plus its user data.",
    ),
    cfg.IntOpt(
        "stale_limit",
        default=86400,
        min=0,
        max=604800,
        help="Seconds for which known instances are still answered while the database is away; "
        "after that, and for unknown instances at once, the answer is 503 with Retry-After.",
    ),
]


class _PublicURL(types.String):
    def __call__(self, value: Any) -> str:
        text = str(super().__call__(value))
        # RFC 5280 section 8: fetching a list over TLS would need the verification that it serves
        if text and not re.fullmatch(r"http://[a-z0-9.\[\]:-]{1,260}(/[A-Za-z0-9._~/-]*)?", text):
            raise ValueError("is not http://NAME[:PORT][/PATH]")
        return text.rstrip("/")


class _OptionalURL(_DatabaseURL):
    def __call__(self, value: Any) -> str:
        return super().__call__(value) if value else ""


CA = [
    cfg.StrOpt(
        "directory",
        default="/etc/mooring/ca",
        help="Where `mooring ca` has put the authorities' certificates and keys.",
    ),
    cfg.StrOpt(
        "passphrase_file",
        default="",
        help="File with the passphrase of the keys (or the PIN of the token), readable by nobody "
        "else; empty: systemd's credential, if there is one.",
    ),
    cfg.StrOpt(
        "passphrase_credential",
        default="ca-passphrase",
        regex=r"^[A-Za-z0-9._-]{1,255}$",
        help="Name of systemd's credential (LoadCredential=) with the passphrase.",
    ),
    cfg.StrOpt(
        "profiles",
        default="/etc/mooring/profiles.toml",
        help="The profiles that are offered and to whom; empty for those that are built in.",
    ),
    cfg.Opt(
        "public_url",
        type=_PublicURL(),
        default="",
        help="http://NAME[:PORT] under which everybody reaches the lists, the authorities' "
        "certificates and OCSP; it is written into every certificate. Empty: nothing is written.",
    ),
    cfg.Opt(
        "database_url",
        type=_OptionalURL(),
        default="",
        secret=True,
        help="A database of its own for the certificate service; empty for that of [database].",
    ),
    cfg.IntOpt(
        "crl_interval",
        default=86_400,
        min=60,
        max=302_400,
        help="Seconds after which new revocation lists are made if nothing was revoked; a "
        "revocation is published at once. Complete lists hold for 7 days, deltas for two "
        "intervals.",
    ),
    cfg.StrOpt(
        "crl_file",
        default="",
        help="Absolute path of the file that NGINX's ssl_crl names; the service keeps it up to "
        "date. Its directory must be writable by the service. Empty: none is written.",
    ),
    cfg.StrOpt(
        "crl_reload",
        default="",
        help="Command, run without a shell, that makes NGINX read crl_file after it changed, such "
        "as `nginx -s reload`. Empty: something else does it (docs/revocation.md).",
    ),
    cfg.IntOpt(
        "token_lifetime",
        default=3600,
        min=60,
        max=31_536_000,
        help="Seconds for which an enrolment token can be used if its maker does not say.",
    ),
    cfg.IntOpt(
        "token_greatest_lifetime",
        default=604_800,
        min=60,
        max=31_536_000,
        help="The most seconds that the maker of a token may say.",
    ),
]

ACME = [
    cfg.StrOpt(
        "external_url",
        default="",
        regex=r"^(https://[a-z0-9.\-\[\]:]+(/[A-Za-z0-9._~-]+)*)?$",
        help="Address of the ACME service as clients write it, such as "
        "https://ca.example.com:8776/acme; its directory stands below it. Empty: no ACME.",
    ),
    cfg.StrOpt(
        "profile",
        default="server",
        regex=r"^[a-z][a-z0-9-]{0,31}$",
        help="Profile by which orders are issued; one without a subject name, since only "
        "DNS names and addresses are validated. A key for external accounts may name another.",
    ),
    cfg.BoolOpt(
        "external_account_required",
        default=True,
        help="A new account needs a key that an operator made (`mooring ca acme-key create`). "
        "Otherwise whoever can show control of a name that the profile allows gets a certificate.",
    ),
    cfg.ListOpt(
        "allowed_networks",
        item_type=_Network(),
        default=[],
        help="Networks that http-01 and tls-alpn-01 may connect to, such as 10.0.0.0/8, "
        "2001:db8::/32. Empty: only dns-01 is offered, for then the service connects to nobody.",
    ),
    cfg.PortOpt("http_port", default=80, min=1, help="Port of http-01; RFC 8555 says 80."),
    cfg.PortOpt("tls_port", default=443, min=1, help="Port of tls-alpn-01; RFC 8737 says 443."),
    cfg.ListOpt(
        "resolver",
        item_type=_Endpoint(),
        default=[],
        help="Name servers that validation asks, ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. "
        "Empty: those of /etc/resolv.conf.",
    ),
    cfg.IntOpt(
        "nonce_lifetime",
        default=3600,
        min=60,
        max=86400,
        help="Seconds for which a nonce can be used.",
    ),
    cfg.IntOpt(
        "order_lifetime",
        default=86400,
        min=600,
        max=2592000,
        help="Seconds in which an order has to be validated and finalized.",
    ),
    cfg.IntOpt(
        "orders_per_hour",
        default=300,
        min=1,
        max=1000000,
        help="Orders that one account may make in an hour.",
    ),
    cfg.IntOpt(
        "accounts_per_hour",
        default=500,
        min=1,
        max=1000000,
        help="New accounts in an hour, all together.",
    ),
    cfg.StrOpt(
        "terms_of_service",
        default="",
        regex=r"^(https?://\S+)?$",
        help="Address of terms that a client must agree to; empty for none.",
    ),
]

OPTIONS: dict[str, list[Any]] = {
    "database": DATABASE,
    "log": LOG,
    "metadata": METADATA,
    "ca": CA,
    "acme": ACME,
    "network": NETWORK,
}


def list_opts() -> list[tuple[str, list[Any]]]:
    """Every option by section, for oslo.config's generator and validator."""
    return [(group, list(options)) for group, options in OPTIONS.items()]


def load(path: str | Path, known_options: Mapping[str, list[Any]] = OPTIONS) -> Any:
    """Read a mooring.conf; returns oslo.config's ConfigOpts. Raises ConfigError.

    ``known_options`` are the options by section: mooring.conf's unless another file's are given.
    Every value is parsed now: a bad one stops the start, not the first request that needs it.
    """
    path = Path(path)
    try:
        path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    sections: dict[str, dict[str, list[str]]] = {}
    try:
        cfg.ConfigParser(str(path), sections).parse()
    except cfg.ParseError as error:
        raise ConfigError(f"{path}: {error}") from None
    for section, values in sections.items():
        if section not in known_options:
            if section == "DEFAULT" and not values:
                continue
            raise ConfigError(
                f"{path}: unknown section [{section}]{_meant(section, known_options)}"
            )
        known = [option.name for option in known_options[section]]
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{path}: unknown option {name} in [{section}]{_meant(name, known)}"
                )
    conf = cfg.ConfigOpts()
    for group, options in known_options.items():
        conf.register_opts(options, group=group)
    try:
        conf([], project="mooring", default_config_files=[str(path)], default_config_dirs=[])
    except (cfg.Error, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    for group, options in known_options.items():
        for option in options:
            try:
                getattr(conf[group], option.dest)
            except (cfg.Error, ValueError) as error:
                raise ConfigError(f"{path}: option {option.name} in [{group}]: {error}") from None
    return conf


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (is {close[0]} meant?)" if close else ""
