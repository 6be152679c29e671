"""`mooring ca root|csr|sign-intermediate|install|root-crl`: the ceremony in two places.

Its steps are also what `mooring ca init` and `rotate` are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from services.cli.arguments import checked
from services.cli.ca_site import (
    KEY_TYPES,
    Site,
    directory_option,
    dry_run_option,
    explained,
    for_key,
    key_type,
    passphrase,
    passphrase_file_option,
    passphrase_options,
    present,
    site,
    span,
    told,
    when,
)
from services.cli.settings import Failed

if TYPE_CHECKING:
    from cryptography import x509

    from services.ca.keystore import Urls

REASONS = {
    "unspecified": "unspecified",
    "caCompromise": "cACompromise",
    "superseded": "superseded",
    "cessationOfOperation": "cessationOfOperation",
}


def root_directory_option(required: bool) -> Callable[[Any], Any]:
    return click.option(
        "--root-directory",
        required=required,
        envvar="MOORING_CA_ROOT_DIRECTORY",
        show_envvar=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="The root's own directory; keep it off the server.",
    )


PUBLIC_URL = click.option(
    "--public-url",
    metavar="URL",
    help="http address below which lists and certificates are served; written into what is "
    "signed.  [default: [ca] public_url]",
)
KEY_TYPE = click.option(
    "--key-type",
    "kind",
    type=click.Choice(KEY_TYPES),
    help="Key of the intermediate.  [default: p256]",
)
ROOT_KEY_TYPE = click.option(
    "--root-key-type",
    "root_kind",
    type=click.Choice(KEY_TYPES),
    help="Key of the root.  [default: p384]",
)
ROOT_PASSPHRASE = click.option(
    "--root-passphrase-file",
    envvar="MOORING_CA_ROOT_PASSPHRASE_FILE",
    show_envvar=True,
    type=click.Path(dir_okay=False),
    help="File whose one line is the root key's passphrase.  [default: that of the server's keys]",
)
LIFETIME = click.option(
    "--lifetime", type=checked(span), metavar="TIME", help="How long it holds, such as 730d."
)


@click.command(short_help="Make a root, where it will stay.")
@click.argument("name")
@root_directory_option(True)
@click.option(
    "--key-type", "kind", type=click.Choice(KEY_TYPES), help="Key of the root.  [default: p384]"
)
@LIFETIME
@passphrase_options
@dry_run_option
def root(
    name: str,
    root_directory: Path,
    kind: str | None,
    lifetime: timedelta | None,
    passphrase_file: str | None,
    no_passphrase: bool,
    dry_run: bool,
) -> None:
    """Make a root called NAME on the machine, or the medium, where it will stay.

    \b
    Examples:
      mooring ca root "Example Root CA" --root-directory /media/safe/root
    """
    from services.ca import ceremony, keystore

    if (root_directory / "root.key").exists():
        with explained():
            certificate = keystore.read_root(root_directory)
        click.echo(
            f"already there: {root_directory / 'root.key'}, "
            f"ends {when(certificate.not_valid_after_utc)}"
        )
        return
    if dry_run:
        click.echo(f"would make the root {name} in {root_directory}")
        return
    with explained():
        secret = passphrase(
            Site(root_directory),
            passphrase_file,
            what="the root's key",
            create=True,
            none=no_passphrase,
        )
        ceremony.make_root(
            root_directory,
            name,
            passphrase=secret,
            now=present(),
            kind=key_type(kind),
            lifetime=lifetime,
        )
    tell_root(root_directory)
    click.echo("next, on the server: mooring ca csr NAME")


@click.command(short_help="Make an intermediate's key and request.")
@click.argument("name")
@directory_option
@KEY_TYPE
@click.option(
    "--key-uri",
    metavar="PKCS11-URI",
    help="Use this key of a PKCS #11 token; needs module-path and object or id.",
)
@passphrase_options
def csr(
    name: str,
    config: str | None,
    directory: str | None,
    kind: str | None,
    key_uri: str | None,
    passphrase_file: str | None,
    no_passphrase: bool,
) -> None:
    """Make the key of the intermediate NAME Issuing CA, and the request that the root signs.

    \b
    Examples:
      mooring ca csr Example
      mooring ca csr Example --key-type p384
      mooring ca csr Example \\
        --key-uri 'pkcs11:token=ca;object=issuing?module-path=/usr/lib/softhsm/libsofthsm2.so'
    """
    where = site(config, directory)
    waiting = waiting_in(where.directory, name)
    if waiting is not None:
        click.echo(f"already there: {waiting / 'request.csr'} waits for its certificate")
        return
    if (where.directory / "active").exists():
        click.echo(
            f"already there: {where.directory} has an authority; `mooring ca rotate` adds one"
        )
        return
    place = prepare_in(where, name, kind, key_uri, passphrase_file, no_passphrase)
    told(place / "request.csr", "carry it to the root")
    click.echo("next, at the root: mooring ca sign-intermediate request.csr")


@click.command("sign-intermediate", short_help="Sign an intermediate's request with the root.")
@click.argument("request", metavar="CSR", type=click.File("rb"))
@root_directory_option(True)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="intermediate.pem",
    show_default=True,
    help="Where the certificate goes.",
)
@PUBLIC_URL
@LIFETIME
@passphrase_file_option
def sign_intermediate(
    request: BinaryIO,
    root_directory: Path,
    output: Path,
    public_url: str | None,
    lifetime: timedelta | None,
    passphrase_file: str | None,
) -> None:
    """Sign an intermediate's request, at the root. A request is signed once: again gives the same.

    \b
    Examples:
      mooring ca sign-intermediate request.csr --root-directory /media/safe/root \\
        --public-url http://ca.example:8080 -o intermediate.pem
    """
    from services.ca import ceremony, files, keystore
    from services.ca.request import CSR_BYTES

    with explained():
        secret = root_secret(root_directory, passphrase_file)
        certificate, new = ceremony.sign_intermediate(
            root_directory,
            request.read(CSR_BYTES + 1),
            secret,
            urls=urls_of(Site(root_directory), public_url),
            now=present(),
            lifetime=lifetime,
        )
        if not new and output.exists() and keystore.read_certificate(output) == certificate:
            click.echo(f"already there: {output}")
            return
        files.write_certificates(output, certificate)
    told(output, "carry it to the server, with root.crt and root.crl of the root's directory")
    click.echo(f"next, on the server: mooring ca install {output.name} --root root.crt")


@click.command(short_help="Put a signed intermediate, or a newer root's list, in place.")
@click.argument("certificate", required=False, type=click.Path(dir_okay=False, path_type=Path))
@directory_option
@click.option(
    "--root",
    "root_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The root's certificate.  [default: the server's]",
)
@click.option(
    "--root-crl",
    "crl_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The root's list.  [default: root.crl beside --root, else the server's]",
)
@passphrase_file_option
def install(
    certificate: Path | None,
    config: str | None,
    directory: str | None,
    root_file: Path | None,
    crl_file: Path | None,
    passphrase_file: str | None,
) -> None:
    """Put the certificate of a waiting intermediate in place; the first one becomes the active.

    Without CERTIFICATE, put a newer list of the root in place.

    \b
    Examples:
      mooring ca install intermediate.pem --root root.crt --root-crl root.crl
      mooring ca install --root-crl root.crl
    """
    from services.ca import ceremony, keystore

    where = site(config, directory)
    if certificate is None and crl_file is None:
        raise click.UsageError("give the intermediate's CERTIFICATE, --root-crl, or both")
    with explained():
        crl_of = crl_file or (root_file or where.directory / "root.crt").with_name("root.crl")
        above = keystore.read_certificate(root_file or where.directory / "root.crt")
        crl = keystore.read_crl(crl_of)
        if certificate is None:
            changed = ceremony.install_root_crl(where.directory, crl)
            place = where.directory / "root.crl"
        else:
            read = keystore.read_certificate(certificate)
            secret = passphrase(where, passphrase_file, what="the server's key")
            changed = install_into(where.directory, read, above, crl, secret)
            place = where.directory / "authorities" / keystore.authority_id(read)
    if not changed:
        click.echo(f"already there: {place}")
    elif certificate is None:
        told(place, f"the root's list, good until {when(crl.next_update_utc)}")
    else:
        told(place, "the intermediate; restart the certificate service")
        tell_next(where.directory, place.name)


@click.command("root-crl", short_help="Renew the root's revocation list.")
@root_directory_option(True)
@click.option(
    "--revoke",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also revoke this intermediate, for good.",
)
@click.option(
    "--reason", type=click.Choice(list(REASONS)), default="unspecified", show_default=True
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the list here, to carry it to the server.",
)
@passphrase_file_option
def root_crl(
    root_directory: Path,
    revoke: Path | None,
    reason: str,
    output: Path | None,
    passphrase_file: str | None,
) -> None:
    """Sign the root's revocation list anew, at the root: once a year, or to revoke an intermediate.

    \b
    Examples:
      mooring ca root-crl --root-directory /media/safe/root -o root.crl
      mooring ca root-crl --root-directory /media/safe/root --revoke old.pem --reason caCompromise
    """
    from cryptography import x509

    from services.ca import ceremony, files, keystore
    from services.ca.crl import Revocation

    now = present()
    gone = []
    with explained():
        if revoke is not None:
            certificate = keystore.read_certificate(revoke)
            above = keystore.read_root(root_directory)
            if certificate.issuer != above.subject or certificate == above:
                raise Failed(f"{revoke}: is not an intermediate of this root")
            flag = x509.ReasonFlags(REASONS[reason])
            gone.append(Revocation(certificate.serial_number, now, flag))
        crl = ceremony.renew_root_crl(
            root_directory, root_secret(root_directory, passphrase_file), now=now, revoke=gone
        )
        places = [root_directory / "root.crl"]
        if output is not None:
            files.write_crls(output, crl)
            places.append(output)
    for path in places:
        told(path, f"number {keystore.crl_number(crl)}, good until {when(crl.next_update_utc)}")
    click.echo("next, on every server: mooring ca install --root-crl root.crl")


def install_into(
    directory: Path,
    certificate: x509.Certificate,
    root: x509.Certificate,
    crl: x509.CertificateRevocationList,
    secret: Callable[[], bytes] | None,
) -> bool:
    from services.ca import ceremony, keystore

    key = directory / "pending" / keystore.authority_id(certificate) / "key.pem"
    return ceremony.install(
        directory,
        certificate,
        root=root,
        root_crl=crl,
        passphrase=for_key(key, secret) if key.exists() else secret,
        now=present(),
    )


def prepare_in(
    where: Site,
    name: str,
    kind: str | None,
    key_uri: str | None,
    passphrase_file: str | None,
    no_passphrase: bool,
) -> Path:
    from services.ca import ceremony

    with explained():
        secret = passphrase(
            where,
            passphrase_file,
            what="the server's key" if key_uri is None else "the token (its PIN)",
            create=key_uri is None,
            none=no_passphrase,
        )
        return ceremony.prepare(
            where.directory, name, passphrase=secret, kind=key_type(kind), key_uri=key_uri
        )


def waiting_in(directory: Path, name: str) -> Path | None:
    """The key of this name that waits for its certificate."""
    from services.ca import keystore
    from services.ca.request import parse_csr

    for place in keystore.pending(directory):
        found = parse_csr((place / "request.csr").read_bytes()).common_name or ""
        if found.startswith(f"{name} Issuing CA "):
            return place
    return None


def root_secret(
    root_directory: Path, file: str | None, where: Site | None = None
) -> Callable[[], bytes] | None:
    found = passphrase(where or Site(root_directory), file, what="the root's key")
    return for_key(root_directory / "root.key", found)


def urls_of(where: Site, public_url: str | None) -> Urls:
    from services.ca.keystore import Urls

    given = where.public_url if public_url is None else public_url
    if given and not given.startswith("http://"):
        # RFC 5280 section 8: fetching them over TLS needs the verification that they serve
        raise Failed(f"--public-url: {given} is not an http address", 2)
    return Urls.below(given)


def tell_root(directory: Path) -> None:
    told(
        directory / "root.key", "the root's key; move its directory to a safe place, off this host"
    )
    told(directory / "root.crt", "its certificate")
    told(directory / "root.crl", "its list; renew it within a year (`mooring ca root-crl`)")


def tell_next(directory: Path, authority: str) -> None:
    from services.ca import keystore

    if keystore.read_active(directory) != authority:
        click.echo(f"once everybody has it: mooring ca activate {authority}")
