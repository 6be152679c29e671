"""Putting the certificate service together from mooring.conf, once for a process.

The API, ACME, the public lists and OCSP are applications of one process (etc/mooring/ca.ini) over
one authority: keys are read and decrypted once, and a token's session is opened once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.ca import keystore, profile_file
from services.ca.authority import Authority
from services.ca.ledger import Ledger
from services.ca.publication import Publisher, publisher_from
from services.core import log, readiness
from services.core.config import ConfigError, load
from services.core.database import Database, Unavailable, schema_state


@dataclass(frozen=True, slots=True)
class Service:
    """What every application of the certificate service is built over."""

    conf: Any
    authorities: keystore.Authorities
    ledger: Ledger
    authority: Authority
    publisher: Publisher


_built: dict[str, Service] = {}


def build(config: str) -> Service:
    """Return the service of this mooring.conf; the same one each time that a process asks.

    Raises ConfigError for a bad file, unusable keys or profiles, and a database whose schema is
    not this version's; one that is away just now does not stop the start.
    """
    path = str(Path(config).resolve())
    if path not in _built:
        _built[path] = _build(config)
    return _built[path]


def _build(config: str) -> Service:
    conf = load(config)
    log.configure(conf.log.level, conf.log.format)
    try:
        offers = read_offers(conf)
        authorities = keystore.load(
            Path(conf.ca.directory),
            keystore.passphrase_from(conf),
            urls=keystore.Urls.below(conf.ca.public_url),
        )
    except (profile_file.ProfileError, keystore.KeystoreError) as error:
        raise ConfigError(f"{config}: {error}") from None
    database = Database(conf.ca.database_url or conf.database.url)
    ledger = Ledger(database)
    authority = Authority(authorities, ledger, offers)
    try:
        publisher = publisher_from(conf, ledger, authorities)
    except ValueError as error:
        raise ConfigError(f"{config}: {error}") from None
    authority.on_change = publisher.revoked
    try:
        problem = schema_state(database)
        if problem is not None:
            raise ConfigError(f"{config}: {problem}")
        authority.register()
    except Unavailable:
        pass  # readiness says so, and the first certificate registers the authorities
    finally:
        database.close()

    def database_check() -> str | None:
        try:
            return schema_state(database)
        except Unavailable as error:
            return f"the database is not available ({error})"

    def authority_check() -> str | None:
        now = datetime.now(UTC)
        return None if authorities.active.is_valid_at(now) else "the authority is not valid now"

    readiness.register("database of the certificate service", database_check)
    readiness.register("certificate authority", authority_check)
    return Service(conf, authorities, ledger, authority, publisher)


def read_offers(conf: Any) -> Mapping[str, profile_file.Offer]:
    """The profiles of [ca] profiles, or the built-in ones. Raises ProfileError."""
    if not conf.ca.profiles:
        return profile_file.SHIPPED
    return profile_file.load(Path(conf.ca.profiles))
