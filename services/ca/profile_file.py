"""The profiles that an authority offers and to whom: read from profiles.toml, or as shipped.

A profile of the file begins as the built-in one of its kind (`services.ca.profiles`) and changes
what it names. What only the kind decides, key usage, subject and basic constraints, is no key of
the file: a mistake there makes certificates that no verifier takes, or an authority of a leaf.
What is not in the file is not offered, except the authority's own kinds, which nobody may ask for
over the network.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from services.ca import names
from services.ca.issue import LEAST_LIFETIME
from services.ca.keys import KeyType
from services.ca.profiles import PROFILES, NameRules, Network, Profile, Subject
from services.ca.refusal import Refused
from services.core.identity import ADMINS, OPERATORS

INTERNAL = frozenset({"root", "intermediate", "ocsp"})
"""Kinds that the service and the `mooring ca` command use; the file may change what they hold and
never offers them over the network."""

NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
"""A profile's name; the ledger's column has 32 characters."""

PURPOSES: Mapping[str, x509.ObjectIdentifier] = {
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "OCSPSigning": ExtendedKeyUsageOID.OCSP_SIGNING,
}

RESERVED = frozenset({"token", "acme", "command"})
"""No names of profiles: the ledger calls who asked "PROFILE:NAME", and these are other askers."""

_SPAN = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ProfileError(Exception):
    """A profiles.toml that must not be started with; the text names file, key and reason."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A profile, the built-in one that it is a variation of (`kind`), and who may ask for it.

    `groups` may ask for any name that the profile allows. `grants_any` are those of them who may
    write any group into a certificate; the others only groups that they have themselves, else
    whoever may ask for one certificate could make themselves an admin. `own_name` are profiles
    whose holders may ask for their own common name as the only name (a host for its server
    certificate). `renew`: whoever holds a certificate of this profile may have it renewed. `tokens`
    and `acme`: whether it is given for an enrolment token, and over ACME.
    """

    profile: Profile
    kind: str
    groups: frozenset[str] = frozenset()
    grants_any: frozenset[str] = frozenset({ADMINS})
    own_name: frozenset[str] = frozenset()
    renew: bool = True
    tokens: bool = True
    acme: bool = False


def _shipped() -> dict[str, Offer]:
    staff = frozenset({ADMINS, OPERATORS})
    return {
        "root": Offer(PROFILES["root"], "root", renew=False, tokens=False),
        "intermediate": Offer(PROFILES["intermediate"], "intermediate", renew=False, tokens=False),
        "server": Offer(
            PROFILES["server"], "server", staff, own_name=frozenset({"host"}), acme=True
        ),
        # whoever makes a client's certificate decides who that is, so operators do not
        "client": Offer(PROFILES["client"], "client", frozenset({ADMINS})),
        "host": Offer(PROFILES["host"], "host", staff),
        "instance": Offer(PROFILES["instance"], "instance", staff),
        "ocsp": Offer(PROFILES["ocsp"], "ocsp", renew=False, tokens=False),
    }


SHIPPED: Mapping[str, Offer] = _shipped()
"""What etc/mooring/profiles.toml says as shipped, and what is offered without a file."""


def parse_span(text: object) -> timedelta:
    """Read a length of time: "90d", "12h", "30m", "600s" or whole seconds. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool) and 0 < text < 10**9:
        return timedelta(seconds=text)
    match = _SPAN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('is not a time such as "90d", "12h", "30m" or "600s"')
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def load(path: Path) -> dict[str, Offer]:
    """Read profiles.toml. Raises ProfileError that names what is wrong; nothing is ignored."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from None
    try:
        return parse(text)
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from None


def parse(text: str) -> dict[str, Offer]:
    """Read the text of a profiles.toml; raises ProfileError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"is not TOML: {error}") from None
    for name, value in document.items():
        if name != "profile" or not isinstance(value, dict):
            raise ProfileError(f"{name}: every section is [profile.NAME]")
    offers = {name: SHIPPED[name] for name in INTERNAL}
    for name, table in document.get("profile", {}).items():
        if not NAME.fullmatch(name):
            raise ProfileError(
                f"[profile.{name}]: a name is a-z, 0-9 and hyphens, at most 32 characters"
            )
        if name in RESERVED:
            raise ProfileError(f"[profile.{name}]: this name is reserved")
        if not isinstance(table, dict):
            raise ProfileError(f"profile.{name}: is not a section")
        offers[name] = _offer(name, table)
    for name, offer in offers.items():
        absent = offer.own_name - offers.keys()
        if absent and "own_name" in document["profile"][name].get("who", {}):
            raise ProfileError(f"[profile.{name}.who] own_name: there is no profile {min(absent)}")
        if absent:  # the kind's value names a profile that this file does not offer
            offers[name] = replace(offer, own_name=offer.own_name - absent)
    return offers


_PROFILE_KEYS = (
    "kind",
    "extended_key_usage",
    "key_types",
    "default_key_type",
    "default_lifetime",
    "greatest_lifetime",
    "key_encipherment_for_rsa",
    "names",
    "who",
)
_NAMES_KEYS = tuple(field.name for field in fields(NameRules))
_WHO_KEYS = ("groups", "grants_any", "own_name", "renew", "tokens", "acme")


def _offer(name: str, table: Mapping[str, Any]) -> Offer:
    where = f"[profile.{name}]"
    _known(where, table, _PROFILE_KEYS)
    kind = table.get("kind", name)
    if not isinstance(kind, str) or kind not in SHIPPED:
        given = f"{kind!r} is no kind" if "kind" in table else "kind is needed"
        raise ProfileError(f"{where}: {given} ({', '.join(sorted(SHIPPED))})")
    if kind in INTERNAL and name != kind:
        raise ProfileError(f"{where} kind: there is one profile of the kind {kind}, named so")
    base = SHIPPED[kind]
    read = _Reader(where, table)
    changes: dict[str, Any] = {
        "name": name,
        "extended_key_usage": read.words("extended_key_usage", PURPOSES.get),
        "key_types": read.words("key_types", _key_type),
        "default_key_type": read.one("default_key_type", _key_type),
        "default_lifetime": read.one("default_lifetime", parse_span),
        "greatest_lifetime": read.one("greatest_lifetime", parse_span),
        "key_encipherment_for_rsa": read.one("key_encipherment_for_rsa", _boolean),
        "names": _names(where, table.get("names", {}), base.profile.names),
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if "key_types" in changes:
        changes["key_types"] = frozenset(changes["key_types"])
        if not changes["key_types"] <= base.profile.key_types:
            raise ProfileError(f"{where} key_types: more than the kind allows")
    try:
        profile = replace(base.profile, **changes)
    except ValueError as error:
        raise ProfileError(f"{where}: {error}") from None
    _check(where, profile, base.profile)
    return _who(where, table.get("who", {}), replace(base, profile=profile), kind)


def _names(where: str, table: object, base: NameRules) -> NameRules:
    where = where.replace("]", ".names]")
    if not isinstance(table, dict):
        raise ProfileError(f"{where}: is not a section")
    _known(where, table, _NAMES_KEYS)
    read = _Reader(where, table)
    changes: dict[str, Any] = {
        "dns": read.words("dns", _tree),
        "wildcards": read.one("wildcards", _boolean),
        "networks": read.words("networks", _network),
        "uris": read.words("uris", _uri_beginning),
        "required": read.one("required", _boolean),
    }
    return replace(base, **{key: value for key, value in changes.items() if value is not None})


def _who(where: str, table: object, offer: Offer, kind: str) -> Offer:
    where = where.replace("]", ".who]")
    if not isinstance(table, dict):
        raise ProfileError(f"{where}: is not a section")
    _known(where, table, _WHO_KEYS)
    if kind in INTERNAL and table:
        raise ProfileError(f"{where}: nobody asks for the kind {kind} over the network")
    read = _Reader(where, table)
    changes: dict[str, Any] = {
        "groups": read.words("groups", _principal),
        "grants_any": read.words("grants_any", _principal),
        "own_name": read.words("own_name", _profile_name),
        "renew": read.one("renew", _boolean),
        "tokens": read.one("tokens", _boolean),
        "acme": read.one("acme", _boolean),
    }
    for key in ("groups", "grants_any", "own_name"):
        if changes[key] is not None:
            changes[key] = frozenset(changes[key])
    if changes["acme"] and kind != "server":
        # RFC 8555 proves control of DNS names; it says nothing of who a user or a host is
        raise ProfileError(f"{where} acme: proves names of servers, not of the kind {kind}")
    return replace(offer, **{key: value for key, value in changes.items() if value is not None})


def _check(where: str, profile: Profile, base: Profile) -> None:
    if profile.default_lifetime < LEAST_LIFETIME:
        raise ProfileError(f"{where} default_lifetime: is less than {LEAST_LIFETIME}")
    if not set(profile.extended_key_usage) <= set(base.extended_key_usage) | {
        # a server that is also a client of its peers, as in a cluster of databases
        *((PURPOSES["clientAuth"],) if base.name == "server" else ()),
    }:
        raise ProfileError(f"{where} extended_key_usage: more than the kind allows")
    if base.extended_key_usage and not profile.extended_key_usage:
        raise ProfileError(f"{where} extended_key_usage: a certificate without is good for all")


class _Reader:
    """Values of one section, each converted; a bad one is named."""

    def __init__(self, where: str, table: Mapping[str, Any]) -> None:
        self.where = where
        self.table = table

    def one(self, key: str, convert: Any) -> Any:
        if key not in self.table:
            return None
        return self._converted(key, self.table[key], convert)

    def words(self, key: str, convert: Any) -> tuple[Any, ...] | None:
        if key not in self.table:
            return None
        values = self.table[key]
        if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
            raise ProfileError(f"{self.where} {key}: is not a list of texts")
        if len(set(values)) != len(values):
            raise ProfileError(f"{self.where} {key}: holds a value twice")
        return tuple(self._converted(key, each, convert) for each in values)

    def _converted(self, key: str, value: object, convert: Any) -> Any:
        try:
            result = convert(value)
        except Refused as error:
            raise ProfileError(f"{self.where} {key}: {error.reason}") from None
        except ValueError as error:
            raise ProfileError(f"{self.where} {key}: {value!r} {error}") from None
        if result is None:
            raise ProfileError(f"{self.where} {key}: {value!r} is none that is known")
        return result


def _known(where: str, table: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in table:
        if key not in keys:
            close = difflib.get_close_matches(key, list(keys), n=1)
            meant = f" (is {close[0]} meant?)" if close else ""
            raise ProfileError(f"{where}: unknown key {key}{meant}")


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is not true or false")  # noqa: TRY004 - one kind of error for the reader
    return value


def _key_type(value: object) -> KeyType | None:
    return next((kind for kind in KeyType if kind.value == value), None)


def _tree(value: str) -> str:
    if value == ".":
        return value
    name = names.dns_name(value, "dns")
    if name.startswith("*"):
        raise ValueError("is a wildcard; write the tree, and wildcards = true")
    return name


def _network(value: str) -> Network:
    return ipaddress.ip_network(value)


def _uri_beginning(value: str) -> str:
    if not value.endswith("/"):
        raise ValueError("does not end with a slash")
    names.uri(value[:-1], "uris")
    return value


def _principal(value: str) -> str:
    return names.principal(value, "groups")


def _profile_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("is no name of a profile")
    return value


def acme_profiles(offers: Mapping[str, Offer]) -> dict[str, Profile]:
    """The profiles that are given over ACME, by name."""
    return {
        name: offer.profile
        for name, offer in offers.items()
        # a subject name would not have been validated
        if offer.acme and offer.profile.subject is Subject.NONE
    }
