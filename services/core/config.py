"""Values an operator sets in mooring.conf, and the check that refuses what nobody reads.

Wiring (which filter stands where) is paste's; values are here. oslo.config ignores an unknown
option in silence, so ``load`` compares the file with what is registered and names the culprit.
``list_opts`` is what oslo-config-generator and oslo-config-validator read.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oslo_config import cfg, types

from services.core import database


class ConfigError(Exception):
    """A mooring.conf that must not be started with; the text names file, section and option."""


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
        "region",
        default="mooring",
        regex=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        help="The answer of placement/region.",
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
        "leave first. Some 20 KiB an instance, plus its user data.",
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

OPTIONS: dict[str, list[Any]] = {"database": DATABASE, "log": LOG, "metadata": METADATA}


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
