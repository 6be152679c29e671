"""`mooring ca publish`: revocation lists by hand or by a timer, without the service."""

from __future__ import annotations

import click

from services.cli.ca_site import (
    config_option,
    database_of,
    explained,
    passphrase,
    passphrase_file_option,
    site,
    told,
)
from services.cli.settings import REFUSED, Failed


@click.command(short_help="Make the revocation lists that are due.")
@config_option
@click.option("--force", is_flag=True, help="Make every list anew, due or not.")
@passphrase_file_option
@click.pass_context
def publish(
    context: click.Context, config: str | None, force: bool, passphrase_file: str | None
) -> None:
    """Make the revocation lists that are due, and bring NGINX's file up to date.

    The certificate service does both by itself; this is for a service that is not running, or is
    told not to. Run it as the service's user. The exit code is 1 if a list has ended or cannot be
    had.

    \b
    Examples:
      mooring ca publish
      mooring ca publish --force
    """
    from services.ca import keystore
    from services.ca.ledger import Ledger
    from services.ca.publication import FileRefused, ReloadFailed, Severity, publisher_from

    where = site(config)
    if where.conf is None:
        raise Failed("no mooring.conf: give --config", 2)
    with explained(), database_of(where, None) as database:
        authorities = keystore.load(
            where.directory,
            passphrase(where, passphrase_file, what="the intermediate"),
            urls=keystore.Urls.below(where.public_url),
        )
        try:
            publisher = publisher_from(where.conf, Ledger(database), authorities)
        except ValueError as error:
            raise Failed(str(error), 2) from None
        refused = ""
        try:
            made = publisher.publish(force=force)
            for authority in made:
                click.echo(f"made new lists of {authority}")
            if not made:
                click.echo("already there: every list is fresh")
            if publisher.refresh() and publisher.nginx is not None:
                told(publisher.nginx.path, "the lists for NGINX, which has been told")
        except (FileRefused, ReloadFailed) as error:
            refused = str(error)
        findings = publisher.status()
    for finding in findings:
        if finding.severity is not Severity.OK:
            click.echo(
                f"{finding.severity.name.lower()}: {finding.subject}: {finding.text}", err=True
            )
    if refused:
        raise Failed(refused)
    if any(each.severity is Severity.CRITICAL for each in findings):
        context.exit(REFUSED)
