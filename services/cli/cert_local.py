"""Certificates from the authority on this machine: before there is a service to ask, and for it.

The first certificates of a controller, NGINX's own and the first admin's, cannot come over NGINX.
They are made by whoever can read the authority's key, through the same ledger and audit trail.
"""

from __future__ import annotations

import getpass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli import ca_site
from services.cli.ca_site import database_of, explained, passphrase, site
from services.cli.settings import FORBIDDEN, Failed

if TYPE_CHECKING:
    from cryptography import x509

    from services.cli.cert_store import Wanted


def obtain(config: str, what: Wanted, csr: bytes) -> list[x509.Certificate]:
    """Issue by the authority of this mooring.conf; returns the chain, leaf first. Raises Failed."""
    from services.ca import keystore, profile_file, service
    from services.ca.authority import Actor, Authority, Forbidden, SigningFailed
    from services.ca.ledger import Ledger
    from services.ca.request import parse_csr

    where = site(config)
    lifetime = None if what.lifetime is None else timedelta(seconds=what.lifetime)
    actor = Actor(f"command:{getpass.getuser()}", frozenset(), "", "", "command")
    with explained():
        kept = {each.key for each in keystore.survey(where.directory)}
        secret = None
        if kept & {"encrypted", "pkcs11"}:
            secret = passphrase(where, None, what="the server's key")
        urls = keystore.Urls.below(where.public_url)
        authorities = keystore.load(where.directory, secret, urls=urls)
        try:
            with database_of(where, None) as database:
                authority = Authority(
                    authorities, Ledger(database), service.read_offers(where.conf)
                )
                issued = authority.issue(what.profile, parse_csr(csr), actor, lifetime=lifetime)
        except profile_file.ProfileError as error:
            raise Failed(str(error)) from None
        except Forbidden as error:
            raise Failed(error.reason, FORBIDDEN) from None
        except SigningFailed as error:
            raise Failed(f"the authority's key did not sign: {error}") from None
    return [issued.certificate, *issued.chain]


def absolute_config(config: str | None) -> str:
    """The path of the mooring.conf that a renewal reads again; raises Failed if there is none."""
    path = Path(config or ca_site.DEFAULT_CONFIG)
    if not path.exists():
        raise Failed(f"{path} does not exist; --local needs the mooring.conf of this machine", 2)
    return str(path.absolute())
