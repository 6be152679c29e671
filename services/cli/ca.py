"""`mooring ca`: the authorities' keys and certificates, on the server and in the root's safe.

Every command says what it wrote and what to do with it, and run twice says that it is there
already.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from services.cli.arguments import checked
from services.cli.ca_ceremony import (
    KEY_TYPE,
    PUBLIC_URL,
    ROOT_KEY_TYPE,
    ROOT_PASSPHRASE,
    csr,
    install,
    install_into,
    prepare_in,
    root,
    root_crl,
    root_directory_option,
    root_secret,
    sign_intermediate,
    tell_next,
    tell_root,
    urls_of,
    waiting_in,
)
from services.cli.ca_publish import publish
from services.cli.ca_service import acme_key, audit, token
from services.cli.ca_site import (
    Site,
    database_of,
    directory_option,
    dry_run_option,
    explained,
    key_type,
    passphrase,
    passphrase_options,
    present,
    site,
    span,
    told,
    when,
)
from services.cli.output import format_option, show_rows
from services.cli.settings import CONFLICT, NOT_FOUND, Failed

if TYPE_CHECKING:
    from services.ca.keystore import Surveyed

ROOT_WARNING = timedelta(days=365)
"""A new root has to reach every machine that trusts the old one."""

INTERMEDIATE_WARNING = timedelta(days=60)
"""Leaves are cut to their issuer's end, so rotate before that shortens them."""

ROOT_CRL_WARNING = timedelta(days=30)
"""Once the root's list has ended every client is refused; renewing it needs a walk to the safe."""


@click.group("ca")
def group() -> None:
    """The certificate authority: keys, ceremonies, rotation, audit.

    \b
    Examples:
      mooring ca init Example --public-url http://ca.example:8080
      mooring ca status
      mooring ca rotate Example --root-directory /media/safe/root
      mooring ca token create --profile host --name host7.example
    """


for _command in (
    *(root, csr, sign_intermediate, install, root_crl),
    *(audit, publish, token, acme_key),
):
    group.add_command(_command)


@group.command(short_help="Make root and intermediate in one step.")
@click.argument("name")
@directory_option
@root_directory_option(False)
@PUBLIC_URL
@KEY_TYPE
@ROOT_KEY_TYPE
@passphrase_options
@ROOT_PASSPHRASE
@dry_run_option
def init(
    name: str,
    config: str | None,
    directory: str | None,
    root_directory: Path | None,
    public_url: str | None,
    kind: str | None,
    root_kind: str | None,
    passphrase_file: str | None,
    no_passphrase: bool,
    root_passphrase_file: str | None,
    dry_run: bool,
) -> None:
    """Make the root NAME Root CA and the intermediate NAME Issuing CA in one step.

    The root's directory (default: root/ below the CA's) is to be moved to a safe place afterwards:
    the server never needs it. A passphrase file that does not exist is made with a random
    passphrase. To keep the root's key off this machine from the beginning, use `mooring ca root`
    there, and `csr`, `sign-intermediate` and `install`.

    \b
    Examples:
      mooring ca init Example --public-url http://ca.example:8080
      mooring ca init Example --passphrase-file /etc/mooring/ca-passphrase
      mooring ca init Example --root-key-type rsa4096 --key-type rsa2048
    """
    from services.ca import ceremony, keystore

    where = site(config, directory)
    keep = root_directory or where.directory / "root"
    if (where.directory / "active").exists():
        with explained():
            keystore.survey(where.directory)
        click.echo(f"already there: {where.directory}; see `mooring ca show`")
        return
    if dry_run:
        click.echo(f"would make the root {name} Root CA in {keep}")
        click.echo(f"would make an intermediate {name} Issuing CA in {where.directory}")
        return
    urls = urls_of(where, public_url)
    with explained():
        secret = passphrase(
            where, passphrase_file, what="the server's key", create=True, none=no_passphrase
        )
        root_secret = secret
        if root_passphrase_file is not None and not no_passphrase:
            root_secret = passphrase(
                where, root_passphrase_file, what="the root's key", create=True
            )
        made = ceremony.create(
            where.directory,
            name,
            passphrase=secret,
            urls=urls,
            now=present(),
            offline=keep,
            root_passphrase=root_secret,
            root_kind=key_type(root_kind),
            kind=key_type(kind),
        )
    tell_root(keep)
    told(where.directory / "root.crt", "what clients and servers trust; give it to everybody")
    told(where.directory / "root.crl", "the root's list; NGINX needs it beside the intermediate's")
    place = where.directory / "authorities" / keystore.authority_id(made.active.certificate)
    told(place, "the intermediate that signs, its key encrypted" if secret else "the intermediate")
    if not urls.crl:
        click.echo(
            "no --public-url: what is issued will not say where its lists are served", err=True
        )


@group.command(short_help="Prepare the next intermediate.")
@click.argument("name")
@directory_option
@root_directory_option(False)
@PUBLIC_URL
@KEY_TYPE
@click.option("--key-uri", metavar="PKCS11-URI", help="Use this key of a PKCS #11 token.")
@passphrase_options
@ROOT_PASSPHRASE
@dry_run_option
def rotate(
    name: str,
    config: str | None,
    directory: str | None,
    root_directory: Path | None,
    public_url: str | None,
    kind: str | None,
    key_uri: str | None,
    passphrase_file: str | None,
    no_passphrase: bool,
    root_passphrase_file: str | None,
    dry_run: bool,
) -> None:
    """Prepare the next intermediate: it joins the bundle and does not sign yet.

    With the root's directory at hand all of it is done; without, its request is made as by
    `mooring ca csr`, and `install` prepares it. Then `activate` and, once nothing of the old one
    lives, `retire`.

    \b
    Examples:
      mooring ca rotate Example --root-directory /media/safe/root
      mooring ca rotate Example
    """
    from services.ca import ceremony, keystore

    where = site(config, directory)
    with explained():
        prepared = [each for each in keystore.survey(where.directory) if each.state == "prepared"]
    if prepared:
        click.echo(f"already there: {prepared[0].path}")
        tell_next(where.directory, prepared[0].id)
        return
    if dry_run:
        click.echo(f"would prepare an intermediate {name} Issuing CA in {where.directory}")
        return
    urls = urls_of(where, public_url)
    with explained():
        place = waiting_in(where.directory, name) or prepare_in(
            where, name, kind, key_uri, passphrase_file, no_passphrase
        )
        if root_directory is None:
            told(place / "request.csr", "carry it to the root")
            click.echo("next, at the root: mooring ca sign-intermediate request.csr")
            return
        above = keystore.read_root(root_directory)
        certificate, _ = ceremony.sign_intermediate(
            root_directory,
            (place / "request.csr").read_bytes(),
            root_secret(root_directory, root_passphrase_file or passphrase_file, where),
            urls=urls,
            now=present(),
        )
        crl = keystore.read_root_crl(root_directory, above)
        secret = passphrase(where, passphrase_file, what="the server's key")
        install_into(where.directory, certificate, above, crl, secret)
    told(
        where.directory / "authorities" / place.name,
        "the next intermediate; restart the certificate service, and give everybody the new bundle",
    )
    tell_next(where.directory, place.name)


@group.command(short_help="Make a prepared intermediate the one that signs.")
@click.argument("authority", metavar="ID")
@directory_option
@dry_run_option
def activate(authority: str, config: str | None, directory: str | None, dry_run: bool) -> None:
    """Make the intermediate ID (or the beginning of it) the one that signs certificates.

    The one before it goes on signing its own lists and answers.

    \b
    Examples:
      mooring ca activate 5f3a
    """
    from services.ca import ceremony, keystore

    where = site(config, directory)
    with explained():
        name = _one(where.directory, authority)
        active = keystore.read_active(where.directory)
        if dry_run and active != name:
            click.echo(f"would make {name} the active authority in place of {active}")
            return
        changed = ceremony.activate(where.directory, name, now=present())
    if not changed:
        click.echo(f"already there: {name} is the active authority")
        return
    told(where.directory / "active", f"{name} signs; restart the certificate service")
    click.echo(f"once nothing of the old one lives: mooring ca retire {active}")


@group.command(short_help="Remove the key of an intermediate of which nothing lives.")
@click.argument("authority", metavar="ID")
@directory_option
@click.option("--database", metavar="URL", help="Use this database instead of [database] url.")
@click.option("--force", is_flag=True, help="Do not ask the database whether anything lives.")
@dry_run_option
def retire(
    authority: str,
    config: str | None,
    directory: str | None,
    database: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Remove the key of the intermediate ID (or the beginning of it), which is not the active one.

    Refused while a certificate of it lives: without its key no list of it can be made, and NGINX
    then refuses whoever has one.

    \b
    Examples:
      mooring ca retire 0c41
    """
    from services.ca import ceremony, keystore

    where = site(config, directory)
    with explained():
        name = _one(where.directory, authority)
        if keystore.read_active(where.directory) == name:
            raise Failed(f"{name} is the active authority; activate another one first", CONFLICT)
        if not force:
            living, last = _living(where, database, name)
            if living:
                raise Failed(f"{living} certificates of {name} live, until {last}", CONFLICT)
        if dry_run:
            click.echo(f"would remove the key of {name}")
            return
        changed = ceremony.retire(where.directory, name, now=present())
    if changed:
        click.echo(f"removed the key of {name}; restart the certificate service")
    else:
        click.echo(f"already there: {name} is retired")


@group.command(short_help="Show root, list and intermediates.")
@directory_option
@format_option
def show(config: str | None, directory: str | None, style: str) -> None:
    """Show the root, its list and every intermediate with state, end and how its key is kept.

    \b
    Examples:
      mooring ca show
      mooring ca show -f json
    """
    from services.ca import keystore

    with explained():
        found = keystore.survey(site(config, directory).directory)
    rows = [
        {
            "kind": each.kind,
            "id": each.id,
            "name": each.name,
            "state": each.state,
            "key": each.key,
            "ends": when(each.not_after),
        }
        for each in found
    ]
    show_rows(("kind", "id", "name", "state", "key", "ends"), rows, style)


@group.command(short_help="Write the file that servers trust clients by.")
@directory_option
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where it goes.",
)
def bundle(config: str | None, directory: str | None, output: Path) -> None:
    """Write every intermediate that is in use or prepared, then the root, into one file.

    It is NGINX's ssl_client_certificate. Write it again after `rotate` and `retire`.

    \b
    Examples:
      mooring ca bundle -o /etc/mooring/pki/chain.crt
    """
    from services.ca import files, keystore

    with explained():
        where = site(config, directory).directory
        intermediates = [
            keystore.read_certificate(each.path / "certificate.pem")
            for each in keystore.survey(where)
            if each.kind == "authority" and each.state != "retired"
        ]
        data = files.certificates_pem([*intermediates, keystore.read_root(where)])
        if output.exists() and output.read_bytes() == data:
            click.echo(f"already there: {output}")
            return
        files.write_data(output, data)
    told(output, f"{len(intermediates)} intermediates and the root; reload NGINX")


@group.command(short_help="Say whether anything of the CA has ended or ends soon.")
@directory_option
@click.option("--database", metavar="URL", help="Use this database instead of [database] url.")
@click.option(
    "--within",
    type=checked(span),
    metavar="TIME",
    help="Warn of what ends within this time.  [default: root 365d, intermediates 60d, root's "
    "list 30d]",
)
@format_option
def status(
    config: str | None,
    directory: str | None,
    database: str | None,
    within: timedelta | None,
    style: str,
) -> None:
    """Say whether root, intermediates and lists hold, and for how long; for monitoring.

    The exit code is 0 if all is well and 1 if anything needs attention: something has ended or
    ends soon, a key is kept badly, a list that is served was not renewed or lacks a revocation,
    NGINX's file is not up to date, the database cannot be read. No passphrase is needed.

    \b
    Examples:
      mooring ca status
      mooring ca status --within 90d -f json
    """
    from services.ca import keystore

    where = site(config, directory)
    now = present()
    with explained():
        found = keystore.survey(where.directory)
    rows = [judged(each, now, within) for each in found]
    if database is not None or where.conf is not None:
        ids = [each.id for each in found if each.kind == "authority" and each.state != "retired"]
        rows += served(where, database, ids, now)
    show_rows(("kind", "id", "ends", "verdict"), rows, style)
    bad = [row for row in rows if row["verdict"] != "good"]
    if bad:
        raise Failed(f"{len(bad)} of {len(rows)} things need attention")


def judged(each: Surveyed, now: datetime, within: timedelta | None = None) -> dict[str, str]:
    """A row of the table: what it is, when it ends, and "good" or what is wrong."""
    warning = {
        "root": ROOT_WARNING,
        "root-crl": ROOT_CRL_WARNING,
        "authority": INTERMEDIATE_WARNING,
    }[each.kind]
    left = each.not_after - now
    remedy = {
        "root": "make a new root and give it to everybody",
        "root-crl": "mooring ca root-crl",
        "authority": "mooring ca retire" if each.state == "rotated-out" else "mooring ca rotate",
    }[each.kind]
    verdict = "good"
    if each.state == "retired":
        pass
    elif left <= timedelta():
        verdict = f"has ended: {remedy}"
    elif each.key == "unencrypted":
        verdict = "its key is not encrypted"
    elif left < (warning if within is None else within) and each.state != "rotated-out":
        verdict = f"ends in {left.days} days: {remedy}"
    return {
        "kind": each.kind,
        "id": each.id,
        "state": each.state,
        "ends": when(each.not_after),
        "verdict": verdict,
    }


def served(
    where: Site, database: str | None, authorities: list[str], now: datetime
) -> list[dict[str, str]]:
    """A row for each authority's list in the database, and for NGINX's file if there is one."""
    from services.ca.ledger import Ledger
    from services.ca.publication import Periods, Severity, list_status, nginx_from, periods_from

    periods, nginx = Periods(), None
    if where.conf is not None:
        try:
            periods, nginx = periods_from(where.conf), nginx_from(where.conf)
        except ValueError as error:
            raise Failed(str(error)) from None
    with database_of(where, database) as opened:
        findings = list_status(Ledger(opened), authorities, periods, nginx, now)
    return [
        {
            "kind": each.subject if each.subject in ("file", "database") else "crl",
            "id": each.subject if each.subject in authorities else "",
            "state": "",
            "ends": when(each.ends) if each.ends else "",
            "verdict": "good" if each.severity is Severity.OK else each.text,
        }
        for each in findings
    ]


def _living(where: Site, database: str | None, authority: str) -> tuple[int, str]:
    """How many certificates of an authority live, and the end of the last of them."""
    from services.ca.ledger import Ledger

    with database_of(where, database) as opened:
        return Ledger(opened).living(authority, present())


def _one(directory: Path, beginning: str) -> str:
    """The id of the one authority whose id begins so."""
    from services.ca import keystore

    found = [
        place.name
        for place in keystore.authority_directories(directory)
        if place.name.startswith(beginning)
    ]
    if len(found) != 1:
        how = "several authorities begin" if found else "no authority begins"
        raise Failed(f"{how} with {beginning}; see `mooring ca show`", NOT_FOUND)
    return found[0]
