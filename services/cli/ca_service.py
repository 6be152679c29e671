"""`mooring ca audit|token|acme-key`: what the certificate service keeps in its database.

The audit trail is read on the controller itself, over the database; enrolment tokens and keys for
external ACME accounts are made by the API, so that an operator needs no shell there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import click

from services.cli.arguments import checked
from services.cli.ca_api import ca_options, connect
from services.cli.ca_site import config_option, database_of, site, span
from services.cli.output import format_option, show_object, show_rows
from services.cli.settings import Failed, Settings

TRAIL_ENTRIES = 20
"""Entries that `mooring ca audit` shows: a screen."""

_DATABASE = click.option(
    "--database", metavar="URL", help="Use this database instead of [database] url."
)


@click.command(short_help="Show the audit trail, or verify all of it.")
@config_option
@_DATABASE
@click.option("--verify", is_flag=True, help="Check the whole chain from its first entry.")
@click.option(
    "--known",
    multiple=True,
    metavar="SEQUENCE:HASH",
    help="With --verify: a hash that was kept elsewhere; may be repeated.",
)
@click.option(
    "-n",
    "--entries",
    type=click.IntRange(1, 100000),
    default=TRAIL_ENTRIES,
    show_default=True,
    help="How many of the last entries are shown.",
)
@format_option
def audit(
    config: str | None,
    database: str | None,
    verify: bool,
    known: tuple[str, ...],
    entries: int,
    style: str,
) -> None:
    """Show the last entries of the audit trail, or verify its chain of hashes.

    A verified chain ends with SEQUENCE:HASH; kept elsewhere and given as --known later, it also
    shows that nothing was cut off or written anew. The exit code is 1 if the chain is broken.

    \b
    Examples:
      mooring ca audit
      mooring ca audit --verify
      mooring ca audit --verify --known 4711:9f2c...
    """
    from services.ca.ledger import Ledger

    kept = dict(map(_known, known))
    with database_of(site(config), database) as opened:
        ledger = Ledger(opened)
        if verify:
            verdict = ledger.verify_audit(kept)
        else:
            rows = ledger.trail(limit=entries)
    if not verify:
        show_rows(
            ("sequence", "at", "actor", "action", "decision", "detail"),
            [
                {
                    "sequence": row.sequence,
                    "at": row.entry.at,
                    "actor": row.entry.actor,
                    "address": row.entry.address,
                    "request_id": row.entry.request_id,
                    "action": row.entry.action,
                    "decision": row.entry.decision,
                    "detail": row.entry.detail,
                    "hash": row.hash,
                }
                for row in reversed(rows)
            ],
            style,
        )
        return
    shown = {
        "entries": verdict.entries,
        "head": f"{verdict.entries}:{verdict.head}",
        "whole": verdict.whole,
    }
    if style == "json":
        show_object(shown, style)
    elif verdict.whole:
        click.echo(f"the trail is whole: {verdict.entries} entries")
        click.echo(f"keep elsewhere, for --known: {shown['head']}")
    if not verdict.whole:
        raise Failed(f"the trail is broken at entry {verdict.bad}: {verdict.reason}")


def _known(text: str) -> tuple[int, str]:
    sequence, colon, value = text.partition(":")
    if not colon or not sequence.isascii() or not sequence.isdigit() or len(value) != 64:
        raise click.BadParameter(f"{text}: is not SEQUENCE:HASH", param_hint="--known")
    return int(sequence), value.lower()


# ---- enrolment tokens ---------------------------------------------------------------------------


@click.group(short_help="One-time enrolment tokens.")
def token() -> None:
    """One-time tokens by which a machine without a certificate gets its first one.

    \b
    Examples:
      mooring ca token create --profile host --name host7.example
      mooring ca token list
      mooring ca token delete 3f0c9a52-6a53-4b0e-8f0e-0f4f2f6f9a11
    """


@token.command("create", short_help="Make a token for one certificate.")
@ca_options
@click.option("--profile", required=True, help="The profile that the certificate will have.")
@click.option("--name", "common_name", help="The common name: user, host or instance.")
@click.option("--group", "groups", multiple=True, help="A group (O); may be repeated.")
@click.option("--dns", "dns_names", multiple=True, help="A DNS name; may be repeated.")
@click.option("--ip", "ip_addresses", multiple=True, help="An IP address; may be repeated.")
@click.option("--uri", "uris", multiple=True, help="A URI; may be repeated.")
@click.option(
    "--lifetime",
    type=checked(span),
    metavar="TIME",
    help="How long the token can be used, such as 1h.  [default: the service's]",
)
@format_option
@click.pass_obj
def create(
    settings: Settings,
    ca_url: str | None,
    profile: str,
    common_name: str | None,
    groups: tuple[str, ...],
    dns_names: tuple[str, ...],
    ip_addresses: tuple[str, ...],
    uris: tuple[str, ...],
    lifetime: timedelta | None,
    style: str,
) -> None:
    """Make a token for one certificate of this profile with these names, shown this once only.

    \b
    Examples:
      mooring ca token create --profile host --name host7.example --lifetime 1h
    """
    document: dict[str, object] = {
        "profile": profile,
        "common_name": common_name,
        "organizations": list(groups),
        "dns_names": list(dns_names),
        "ip_addresses": list(ip_addresses),
        "uris": list(uris),
        "lifetime": None if lifetime is None else int(lifetime.total_seconds()),
    }
    document = {name: value for name, value in document.items() if value not in (None, [])}
    made = connect(settings, ca_url).request("POST", "/v1/tokens", document).json()
    if style == "json":
        show_object(made, style)
        return
    click.echo(made["token"])
    click.echo(
        f"shown this once; use it by {made['expires_at']}: mooring cert request --token-file FILE",
        err=True,
    )


@token.command("list", short_help="List tokens, without their secrets.")
@ca_options
@format_option
@click.pass_obj
def list_tokens(settings: Settings, ca_url: str | None, style: str) -> None:
    """List tokens with what they are bound to, when they end and what they were used for.

    \b
    Examples:
      mooring ca token list
    """
    rows = connect(settings, ca_url).pages("/v1/tokens", "tokens")
    show_rows(("id", "profile", "common_name", "expires_at", "used_at", "used_for"), rows, style)


@token.command("delete", short_help="Delete tokens.")
@ca_options
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete(settings: Settings, ca_url: str | None, ids: tuple[str, ...]) -> None:
    """Delete tokens, so that those not yet used never will be.

    \b
    Examples:
      mooring ca token delete 3f0c9a52-6a53-4b0e-8f0e-0f4f2f6f9a11
    """
    api = connect(settings, ca_url)
    for each in ids:
        api.request("DELETE", f"/v1/tokens/{quote(each, safe='')}")
        click.echo(f"deleted {each}")


# ---- external accounts --------------------------------------------------------------------------


@click.group("acme-key", short_help="Keys for external ACME accounts.")
def acme_key() -> None:
    """Keys that an ACME client binds its new account to (external account binding).

    \b
    Examples:
      mooring ca acme-key create --dns example.com
      mooring ca acme-key list
    """


@acme_key.command("create", short_help="Make a key for external ACME accounts.")
@ca_options
@click.option("--profile", help="Profile of what is issued.  [default: the service's]")
@click.option("--dns", "trees", multiple=True, help="A DNS tree that may be ordered; repeatable.")
@click.option("--network", "networks", multiple=True, help="Likewise an IP network.")
@click.option("--wildcards", is_flag=True, help="Wildcards below the trees may be ordered.")
@click.option("--reusable", is_flag=True, help="The key makes any number of accounts, not one.")
@click.option(
    "--lifetime", type=checked(span), metavar="TIME", help="How long the key can be used."
)
@format_option
@click.pass_obj
def create_acme_key(
    settings: Settings,
    ca_url: str | None,
    profile: str | None,
    trees: tuple[str, ...],
    networks: tuple[str, ...],
    wildcards: bool,
    reusable: bool,
    lifetime: timedelta | None,
    style: str,
) -> None:
    """Make a key for external accounts; its HMAC key is shown this once only.

    Without --dns and --network the account may order whatever its profile allows.

    \b
    Examples:
      mooring ca acme-key create --dns example.com --wildcards
      certbot register --server https://ca.example:8776/acme/directory \\
        --eab-kid ID --eab-hmac-key KEY
    """
    document: dict[str, object] = {"reusable": reusable}
    if profile is not None:
        document["profile"] = profile
    if trees or networks:
        document.update(dns=list(trees), networks=list(networks), wildcards=wildcards)
    elif wildcards:
        raise click.UsageError("--wildcards belongs to --dns")
    if lifetime is not None:
        document["expires"] = (datetime.now(UTC) + lifetime).isoformat()
    made = connect(settings, ca_url).request("POST", "/v1/acme/keys", document).json()
    show_object(made, style)


@acme_key.command("list", short_help="List keys for external ACME accounts.")
@ca_options
@format_option
@click.pass_obj
def list_acme_keys(settings: Settings, ca_url: str | None, style: str) -> None:
    """List keys for external accounts, without their HMAC keys.

    \b
    Examples:
      mooring ca acme-key list
    """
    rows = connect(settings, ca_url).pages("/v1/acme/keys", "keys")
    show_rows(("id", "dns", "reusable", "created_at", "created_by", "used_at"), rows, style)


@acme_key.command("delete", short_help="Delete keys for external ACME accounts.")
@ca_options
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.pass_obj
def delete_acme_keys(settings: Settings, ca_url: str | None, ids: tuple[str, ...]) -> None:
    """Delete keys; accounts that were made with them stay, and no new one can be.

    \b
    Examples:
      mooring ca acme-key delete 0f4f2f6f9a11
    """
    api = connect(settings, ca_url)
    for each in ids:
        api.request("DELETE", f"/v1/acme/keys/{quote(each, safe='')}")
        click.echo(f"deleted {each}")
