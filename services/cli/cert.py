"""`mooring cert`: get certificates, keep them renewed, look at and revoke them.

Keys are made here and never sent. Every command that makes something can be run again: it does
something only if a certificate is due or what is wanted has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from services.cli.arguments import checked
from services.cli.ca_api import ca_options, connect
from services.cli.ca_site import KEY_TYPES, config_option, span, when
from services.cli.output import format_option, show_object, show_rows
from services.cli.settings import UNREACHABLE, Failed, Settings

if TYPE_CHECKING:
    from cryptography import x509

    from services.cli.cert_store import CertificateStore, Held, Options, Wanted

_F = TypeVar("_F", bound=Callable[..., Any])

Secret = Callable[[], str | None]
"""A token, read only when it is needed: its file may be gone once it was used."""

DEFAULT_DIRECTORY = "/etc/mooring/certificates"

RELOAD_TIMEOUT = 120.0
"""Seconds for a reload command; a server that takes longer hangs."""

JITTER_PART = 10
"""A watcher renews up to a tenth of --renew-before early, so that machines that were installed
together do not all come at once."""

WATCH_LONGEST = 3600.0
"""Seconds between two looks: names may be added, and clocks be set, meanwhile."""

WATCH_RETRY = 60.0
"""Seconds after a first failure, twice as long after each further one, at most WATCH_LONGEST."""

REASONS = [
    "unspecified",
    "keyCompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "certificateHold",
    "privilegeWithdrawn",
]


@click.group("cert")
def group() -> None:
    """Certificates: request, renew, watch, list, show, revoke.

    \b
    Examples:
      export MOORING_CA_URL=https://controller.example:8776 MOORING_CACERT=root.crt
      mooring cert request host7.example --profile host --token-file token
      mooring cert request web --dns www.example.com --reload-command "systemctl reload nginx"
      mooring cert renew
      mooring cert list --expires-before 14d
    """


def _directory_option(function: _F) -> _F:
    return click.option(
        "--directory",
        envvar="MOORING_CERT_DIRECTORY",
        show_envvar=True,
        type=click.Path(file_okay=False, path_type=Path),
        default=DEFAULT_DIRECTORY,
        show_default=True,
        help="Where the certificates are, a directory for each.",
    )(function)


def _keeping_options(function: _F) -> _F:
    for option in (
        click.option(
            "--bundle", is_flag=True, help="Also write bundle.pem: full chain and key, for HAProxy."
        ),
        click.option(
            "--reload-command",
            metavar="COMMAND",
            help="Run this, without a shell, after a certificate was put in place.",
        ),
        click.option(
            "--renew-before",
            type=checked(span),
            metavar="TIME",
            help="Renew so long before its end.  [default: a third of its life]",
        ),
        click.option(
            "--key-type",
            type=click.Choice(KEY_TYPES),
            default="p256",
            show_default=True,
            help="Key to make.",
        ),
    ):
        function = option(function)
    return function


@group.command(short_help="Get a certificate, or renew it if it is due.")
@click.argument("name")
@_directory_option
@ca_options
@click.option("--profile", default="server", show_default=True, help="What kind of certificate.")
@click.option("--dns", "dns_names", multiple=True, help="A DNS name; may be repeated.")
@click.option("--ip", "ip_addresses", multiple=True, help="An IP address; may be repeated.")
@click.option("--uri", "uris", multiple=True, help="A URI; may be repeated.")
@click.option("--name", "common_name", help="The common name: user, host or instance.")
@click.option("--group", "groups", multiple=True, help="A group (O); may be repeated.")
@click.option("--lifetime", type=checked(span), metavar="TIME", help="How long it shall hold.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with a one-time enrolment token, instead of a certificate.",
)
@click.option(
    "--token", envvar="MOORING_CA_TOKEN", show_envvar=True, help="The token itself, by variable."
)
@click.option(
    "--local",
    is_flag=True,
    help="Ask the authority on this machine, by its mooring.conf, instead of the service: for the "
    "service's own certificate, and the first admin's.",
)
@config_option
@_keeping_options
@click.pass_obj
def request(
    settings: Settings,
    name: str,
    directory: Path,
    ca_url: str | None,
    profile: str,
    dns_names: tuple[str, ...],
    ip_addresses: tuple[str, ...],
    uris: tuple[str, ...],
    common_name: str | None,
    groups: tuple[str, ...],
    lifetime: timedelta | None,
    token_file: Path | None,
    token: str | None,
    local: bool,
    config: str | None,
    key_type: str,
    renew_before: timedelta | None,
    reload_command: str | None,
    bundle: bool,
) -> None:
    """Get a certificate called NAME, or renew it if it is due or other names are wanted.

    The key is made here. DIRECTORY/NAME then holds key.pem, cert.pem, chain.pem and fullchain.pem,
    which change together. Without any name NAME is the DNS name (profile server) or the common
    name. Who asks is told by a one-time token, by --tls-cert, or for a renewal by the certificate
    itself.

    \b
    Examples:
      mooring cert request host7.example --profile host --token-file token
      mooring cert request web --dns www.example.com --dns example.com --ip 192.0.2.7 \\
        --reload-command "systemctl reload nginx"
      mooring cert request alice --profile client --group mooring:operators
      mooring cert request controller --local --dns controller.example
    """
    from services.ca.refusal import Refused
    from services.cli import cert_store

    if not (dns_names or ip_addresses or uris or common_name):
        dns_names, common_name = ((name,), None) if profile == "server" else ((), name)
    _check_command(reload_command)
    try:
        what = cert_store.wanted(
            profile,
            common_name=common_name,
            organizations=groups,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            uris=uris,
            key_type=key_type,
            lifetime=lifetime,
        )
    except Refused as error:
        raise Failed(f"{error.field}: {error.reason}", 2) from None
    options = _options(settings, ca_url, renew_before, reload_command, bundle)
    if local:
        from services.cli.cert_local import absolute_config

        options = dataclasses.replace(options, local=absolute_config(config), ca_url=None)
    _ensure(settings, directory, name, what, options, lambda: _token(token, token_file))


@group.command("self-signed", short_help="Make a server's certificate that signs itself.")
@click.argument("name")
@_directory_option
@click.option("--dns", "dns_names", multiple=True, help="A DNS name; may be repeated.")
@click.option("--ip", "ip_addresses", multiple=True, help="An IP address; may be repeated.")
@click.option(
    "--lifetime",
    type=checked(span),
    metavar="TIME",
    help="How long it shall hold.  [default: 365d]",
)
@_keeping_options
@click.pass_obj
def self_signed(
    settings: Settings,
    name: str,
    directory: Path,
    dns_names: tuple[str, ...],
    ip_addresses: tuple[str, ...],
    lifetime: timedelta | None,
    key_type: str,
    renew_before: timedelta | None,
    reload_command: str | None,
    bundle: bool,
) -> None:
    """Make a server's certificate that signs itself; no authority is asked.

    Whoever shall trust it needs cert.pem itself. Run again, it is made anew only when it is due or
    other names are wanted.

    \b
    Examples:
      mooring cert self-signed web --dns '*.example.local' --dns example.local
    """
    from services.ca.refusal import Refused
    from services.cli import cert_store

    _check_command(reload_command)
    if not dns_names and not ip_addresses:
        dns_names = (name,)
    try:
        what = cert_store.wanted(
            cert_store.SELF_SIGNED,
            dns_names=dns_names,
            ip_addresses=ip_addresses,
            key_type=key_type,
            lifetime=lifetime,
        )
    except Refused as error:
        raise Failed(f"{error.field}: {error.reason}", 2) from None
    options = _options(settings, None, renew_before, reload_command, bundle)
    _ensure(settings, directory, name, what, options, _no_token)


@group.command(short_help="Renew what is due.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_directory_option
@click.option("--force", is_flag=True, help="Renew also what is not due.")
@click.pass_obj
def renew(settings: Settings, names: tuple[str, ...], directory: Path, force: bool) -> None:
    """Renew the certificates of these names, of all without one, that are due.

    Everything else, the service's address and the reload command included, is as it was given to
    `mooring cert request`. One that cannot be renewed does not stop the others; the exit code is
    that of the last failure.

    \b
    Examples:
      mooring cert renew
      mooring cert renew web --force
    """
    from services.cli import cert_store

    store = cert_store.CertificateStore(directory)
    failed: Failed | None = None
    for name in names or store.names():
        try:
            with _explained(), store.locked(name):
                _renew_one(settings, store, name, cert_store.present(), force=force)
        except Failed as error:
            click.echo(f"Error: {name}: {error.message}", err=True)
            failed = error
    if failed is not None:
        raise click.exceptions.Exit(failed.exit_code)


@group.command(short_help="Renew what is due, for ever.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_directory_option
@click.pass_obj
def watch(settings: Settings, names: tuple[str, ...], directory: Path) -> None:
    """Renew the certificates of these names, of all without one, each when it is due, for ever.

    A little early, by up to a tenth of --renew-before, so that many machines do not come at once.
    After a failure it tries again after a minute, then after two, at most an hour.

    \b
    Examples:
      mooring cert watch
    """
    from services.cli import cert_store

    store = cert_store.CertificateStore(directory)
    failures = 0
    while True:
        waits = [WATCH_LONGEST]
        failed = False
        for name in names or store.names():
            try:
                with _explained(), store.locked(name):
                    held = store.read(name)
                    early = timedelta() if held is None else _jitter(held)
                    now = cert_store.present()
                    held = _renew_one(settings, store, name, now + early, quiet=True)
                    left = held.due - _jitter(held) - cert_store.present()
                    waits.append(left.total_seconds())
            except Failed as error:
                click.echo(f"Error: {name}: {error.message}", err=True)
                failed = True
        failures = failures + 1 if failed else 0
        if failed:
            waits.append(WATCH_RETRY * 2.0 ** min(failures - 1, 10))
        _sleep(max(min(waits), 1.0))


@group.command("list", short_help="List what the service has issued.")
@ca_options
@click.option("--subject", help="Only those whose subject has this part.")
@click.option("--name", help="Only those for this name, alternative or common.")
@click.option("--profile", help="Only those of this profile.")
@click.option("--state", type=click.Choice(["issued", "held", "revoked", "expired", "pending"]))
@click.option(
    "--expires-before",
    type=checked(span),
    metavar="TIME",
    help="Only those that end within this time.",
)
@format_option
@click.pass_obj
def list_certificates(
    settings: Settings,
    ca_url: str | None,
    subject: str | None,
    name: str | None,
    profile: str | None,
    state: str | None,
    expires_before: timedelta | None,
    style: str,
) -> None:
    """List certificates that the service has issued, the newest first.

    \b
    Examples:
      mooring cert list
      mooring cert list --name www.example.com
      mooring cert list --state revoked -f json
      mooring cert list --expires-before 14d
    """
    until = None
    if expires_before is not None:
        until = f"{int(expires_before.total_seconds())}s"
    query = [
        (key, value)
        for key, value in (
            ("subject", subject),
            ("name", name),
            ("profile", profile),
            ("state", state),
            ("expires_before", until),
        )
        if value is not None
    ]
    rows = connect(settings, ca_url).pages("/v1/certificates", "certificates", query)
    if style == "table":
        rows = [{**row, "names": _names(row)} for row in rows]
    show_rows(("serial", "state", "profile", "names", "not_after"), rows, style)


@group.command(short_help="Show one certificate of the service.")
@click.argument("which", metavar="SERIAL|FINGERPRINT|FILE")
@ca_options
@format_option
@click.pass_obj
def show(settings: Settings, which: str, ca_url: str | None, style: str) -> None:
    """Show what the service knows of a certificate.

    \b
    Examples:
      mooring cert show /etc/mooring/certificates/web/cert.pem
      mooring cert show 3dbaca7619a296ce46b4ee3133eae2b75fcbb1c2 -f json
    """
    found = connect(settings, ca_url).request("GET", _certificate_path(which)).json()
    show_object(found, style)


@group.command(short_help="Revoke a certificate, or hold it.")
@click.argument("which", metavar="SERIAL|FINGERPRINT|FILE")
@ca_options
@click.option(
    "--reason",
    type=click.Choice(REASONS),
    default="unspecified",
    show_default=True,
    help="Why; certificateHold can be taken back by `mooring cert release`.",
)
@click.pass_obj
def revoke(settings: Settings, which: str, ca_url: str | None, reason: str) -> None:
    """Revoke a certificate for good, or hold it; again changes nothing.

    \b
    Examples:
      mooring cert revoke /etc/mooring/certificates/web/cert.pem --reason keyCompromise
      mooring cert revoke 3dbaca7619a296ce46b4ee3133eae2b75fcbb1c2 --reason certificateHold
    """
    path = f"{_certificate_path(which)}/revoke"
    found = connect(settings, ca_url).request("POST", path, {"reason": reason}).json()
    click.echo(f"{found['serial']} is {found['state']} ({found['reason']})")


@group.command(short_help="Release a certificate that was held.")
@click.argument("which", metavar="SERIAL|FINGERPRINT|FILE")
@ca_options
@click.pass_obj
def release(settings: Settings, which: str, ca_url: str | None) -> None:
    """Make a certificate valid again that was held (revoked with certificateHold).

    \b
    Examples:
      mooring cert release 3dbaca7619a296ce46b4ee3133eae2b75fcbb1c2
    """
    path = f"{_certificate_path(which)}/release"
    found = connect(settings, ca_url).request("POST", path, {}).json()
    click.echo(f"{found['serial']} is {found['state']}")


# ---- making -------------------------------------------------------------------------------------


def _ensure(
    settings: Settings,
    directory: Path,
    name: str,
    what: Wanted,
    options: Options,
    token: Secret,
) -> None:
    """Make what is wanted be there, and say what was done."""
    from services.cli import cert_store

    store = cert_store.CertificateStore(directory)
    with _explained(), store.locked(name):
        held = store.read(name)
        now = cert_store.present()
        if held is None or held.wanted != what:
            _make(settings, store, name, what, options, token, None)
            return
        if held.options != options:
            held = store.remember(held, options)
        if now >= held.due:
            _make(settings, store, name, what, options, token, held)
            return
        click.echo(f"already there: {held.path}, renewed from {when(held.due)} on")
        _reload(store, held)


def _renew_one(
    settings: Settings,
    store: CertificateStore,
    name: str,
    now: datetime,
    *,
    force: bool = False,
    quiet: bool = False,
) -> Held:
    held = store.read(name)
    if held is None:
        raise Failed(f"there is no certificate {name} in {store.directory}", 4)
    if force or now >= held.due:
        return _make(settings, store, name, held.wanted, held.options, _no_token, held)
    if not quiet:
        click.echo(f"{name}: not due before {when(held.due)}")
    _reload(store, held)
    return held


def _make(
    settings: Settings,
    store: CertificateStore,
    name: str,
    what: Wanted,
    options: Options,
    token: Secret,
    held: Held | None,
) -> Held:
    """Make a new generation and tell what was written."""
    from services.ca.refusal import Refused
    from services.cli import cert_store

    draft = store.begin(name, what)
    try:
        if what.profile == cert_store.SELF_SIGNED:
            chain: Sequence[x509.Certificate] = [
                cert_store.self_signed(draft.key, what, cert_store.present())
            ]
        else:
            csr = draft.csr_pem(what)
            if options.local is not None:
                from services.cli import cert_local

                chain = cert_local.obtain(options.local, what, csr)
            else:
                chain = _obtain(settings, what, options, csr.decode(), token, held)
    except Refused as error:
        raise Failed(f"{error.field}: {error.reason}") from None
    made = store.finish(name, draft, chain, what, options)
    _tell(made, len(chain))
    _reload(store, made)
    return made


def _obtain(
    settings: Settings,
    what: Wanted,
    options: Options,
    csr: str,
    secret: Secret,
    held: Held | None,
) -> Sequence[x509.Certificate]:
    """Ask the service; returns the chain, leaf first."""
    from services.cli import cert_store

    asking = _identity(settings, options)
    document: dict[str, object] = {"csr": csr}
    if what.lifetime is not None:
        document["lifetime"] = what.lifetime
    headers = {"Accept": "application/x-pem-file"}
    path = "/v1/certificates"
    alive = held is not None and held.certificate.not_valid_after_utc > cert_store.present()
    if held is not None and alive and held.is_client:
        path = "/v1/certificates/renew"
        full, key = held.path / "fullchain.pem", held.path / "key.pem"
        asking = dataclasses.replace(asking, tls_cert=str(full), tls_key=str(key))
    else:
        document["profile"] = what.profile
        token = secret()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
            # the token says who asks; two answers to that question would be one too many
            asking = dataclasses.replace(asking, tls_cert=None, tls_key=None)
        elif asking.tls_cert is None:
            raise Failed("who asks? give --tls-cert and --tls-key, or a token", 2)
    answer = connect(asking, asking.url).request("POST", path, document, headers=headers)
    return _chain(answer.body)


def _identity(settings: Settings, options: Options) -> Settings:
    """The settings for asking: those of now, else those that were remembered."""
    own = settings.tls_cert is not None
    return dataclasses.replace(
        settings,
        url=options.ca_url,
        tls_cert=settings.tls_cert if own else options.tls_cert,
        tls_key=settings.tls_key if own else options.tls_key,
        tls_ca=settings.tls_ca or options.tls_ca,
    )


def _chain(body: bytes) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        chain = x509.load_pem_x509_certificates(body)
        for lower, upper in itertools.pairwise(chain):
            lower.verify_directly_issued_by(upper)
    except Exception:  # the library raises five kinds; each means the same here
        raise Failed(
            "the server's answer is not a certificate with its chain", UNREACHABLE
        ) from None
    return chain


def _options(
    settings: Settings,
    ca_url: str | None,
    renew_before: timedelta | None,
    reload_command: str | None,
    bundle: bool,
) -> Options:
    from services.cli.cert_store import Options, absolute

    return Options(
        ca_url=ca_url,
        tls_cert=absolute(settings.tls_cert),
        tls_key=absolute(settings.tls_key),
        tls_ca=absolute(settings.tls_ca),
        renew_before=None if renew_before is None else int(renew_before.total_seconds()),
        reload_command=reload_command,
        bundle=bundle,
    )


def _tell(held: Held, length: int) -> None:
    purposes = {
        "key.pem": "the private key, readable by its owner alone",
        "cert.pem": "the certificate",
        "chain.pem": "what is sent behind it",
        "fullchain.pem": "both: NGINX's ssl_certificate, with key.pem as ssl_certificate_key",
    }
    if length == 1:
        purposes["cert.pem"] = "the certificate; whoever shall trust it needs this file"
        del purposes["chain.pem"]
    if held.options.bundle:
        purposes["bundle.pem"] = "full chain and key: HAProxy's crt"
    for name, purpose in purposes.items():
        click.echo(f"wrote {held.path / name}: {purpose}")
    end = held.certificate.not_valid_after_utc
    click.echo(f"it holds until {when(end)}; renewed from {when(held.due)} on (mooring cert renew)")


def _reload(store: CertificateStore, held: Held) -> None:
    """Run the reload command if it is still to be run; one that fails is run again next time."""
    command = held.options.reload_command
    if command is None or not store.needs_reload(held.name):
        return
    try:
        done = subprocess.run(
            shlex.split(command),
            check=False,
            timeout=RELOAD_TIMEOUT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or "takes too long"
        raise Failed(f"the certificate is in place, but {command}: {reason}") from None
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        said = f": {last[0]}" if last else ""
        raise Failed(
            f"the certificate is in place, but {command} ended with {done.returncode}{said}"
        )
    store.reloaded(held.name)
    click.echo(f"ran {command}")


def _check_command(command: str | None) -> None:
    if command is None:
        return
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise Failed(f"--reload-command: {error}", 2) from None
    if not words:
        raise Failed("--reload-command: is empty", 2)


def _no_token() -> None:
    return None


def _token(token: str | None, file: Path | None) -> str | None:
    if file is not None:
        try:
            token = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise Failed(f"--token-file: {file} cannot be read", 2) from None
    # it goes into a header: a second line would be a second header
    if token is not None and (not token or not token.isascii() or not token.isprintable()):
        raise Failed("the token is empty or not one line of text", 2)
    return token


def _names(row: Mapping[str, Any]) -> str:
    """Every name of a certificate in one cell."""
    try:
        names = [value for values in row["names"].values() for value in values]
        return " ".join(dict.fromkeys([*filter(None, [row["common_name"]]), *names]))
    except (KeyError, TypeError, AttributeError):
        raise Failed("the server's answer is not a list of certificates", UNREACHABLE) from None


def _certificate_path(which: str) -> str:
    """The API's path of a certificate that is named by serial, fingerprint or file."""
    path = Path(which)
    if not path.is_file():
        return f"/v1/certificates/{quote(which, safe='')}"
    from services.ca import files

    try:
        certificate = files.read_certificates(path)[0]
    except (OSError, ValueError) as error:
        raise Failed(str(error), 2) from None
    from cryptography.hazmat.primitives.serialization import Encoding

    # not the serial: another authority of ours may have given the same
    der = certificate.public_bytes(Encoding.DER)
    return f"/v1/certificates/{hashlib.sha256(der).hexdigest()}"


def _jitter(held: Held) -> timedelta:
    """How much early a watcher renews this one: always the same for one certificate."""
    part = random.Random(held.certificate.serial_number).random()  # noqa: S311 - spreads load only
    return held.renew_before / JITTER_PART * part


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


class _explained:  # noqa: N801 - used as a statement, like contextlib's own
    """Turn what is wrong on disk into the command's failure."""

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise Failed for an error of the disk."""
        from services.cli.cert_store import Unusable

        if isinstance(error, Unusable):
            raise Failed(str(error)) from None
        if isinstance(error, OSError):
            named = f"{error.filename}: " if error.filename else ""
            raise Failed(f"{named}{error.strerror or error}") from None
