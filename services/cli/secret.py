"""`mooring secret`: directories of master secrets, and their rotation.

Servers accept the files `current`, `next` and `previous`, and make new signatures with `current`.
A rotation therefore takes three steps, with time between them for every server and host to follow:

    {current}            -> add next                 everyone learns to accept the new one
    {current, next}      -> next becomes current     everyone begins to use it
    {current, previous}  -> remove previous          the old one is worth nothing from now on

Each step ends in one rename or removal, so a crash leaves a directory that works, and the step can
be taken again.
"""

import base64
import os
import secrets
from pathlib import Path

import click

from services.cli.settings import CONFLICT, NOT_FOUND, Failed
from services.core.signature import host_key, load_secrets

SECRET_BYTES = 32
"""Random bytes of a secret, 256 bits for HMAC-SHA256; written as 64 hexadecimal digits, so that a
newline can never be part of it."""


@click.group("secret")
def group() -> None:
    """Master secrets of signatures and tokens.

    \b
    Examples:
      mooring secret create /etc/mooring/secrets/signature
      mooring secret rotate /etc/mooring/secrets/signature
    """


@group.command(short_help="Make a directory with a first secret.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def create(directory: Path) -> None:
    """Make a directory with a first secret, readable by its owner alone.

    An existing secret is never overwritten. Give the files to the service's user.

    \b
    Examples:
      mooring secret create /etc/mooring/secrets/signature
      chown -R mooring: /etc/mooring/secrets/signature
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(directory / "current")
    except FileExistsError:
        raise Failed(f"{directory / 'current'} exists already; rotate it", CONFLICT) from None
    except OSError as error:
        raise Failed(f"{directory}: {error.strerror}") from None
    click.echo(f"wrote {directory / 'current'}; every replica of the service needs the same")


@group.command(short_help="Take the next step of replacing a secret.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def rotate(directory: Path) -> None:
    """Take the next of the three steps that replace a secret without refusing anyone.

    \b
    1. `next` is made. Copy it to every replica and restart: all accept it.
    2. `next` becomes `current`, `current` becomes `previous`. Copy, restart: all use it.
    3. `previous` is removed. Copy, restart: the old secret is worth nothing.
    Wait after each step until every replica and every host follows.

    \b
    Examples:
      mooring secret rotate /etc/mooring/secrets/signature
    """
    try:
        click.echo(_step(directory))
    except OSError as error:
        raise Failed(f"{directory}: {error.strerror}") from None


@group.command("host-key", short_help="Print a host's signing key.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.argument("host")
def host_key_command(directory: Path, host: str) -> None:
    """Print HOST's signing key in base64, derived from the current master secret.

    It goes into the file that host_key_file of mooring-agent.conf names. HOST is the name
    in the host's certificate.

    \b
    Examples:
      mooring secret host-key /etc/mooring/secrets/signature host-1 |
          ssh host-1 'umask 077; cat > /etc/mooring/secrets/host-key'
    """
    try:
        masters = load_secrets(directory)
    except ValueError as error:
        raise Failed(str(error), NOT_FOUND) from None
    click.echo(base64.b64encode(host_key(masters[0], host)).decode("ascii"))


def _step(directory: Path) -> str:
    current, following, previous = (directory / name for name in ("current", "next", "previous"))
    if not current.exists():
        raise Failed(f"{current} does not exist; create it", NOT_FOUND)
    # An interrupted second step has left current and previous as one file under two names.
    interrupted = previous.exists() and previous.samefile(current)
    if previous.exists() and not interrupted:
        previous.unlink()
        _sync(directory)
        return f"removed {previous}: the old secret is worth nothing; the rotation is complete"
    if not following.exists():
        _write(following, like=current)
        return f"wrote {following}: copy it to every replica, restart, then rotate again"
    # A second name first, so that there is no moment without `current`.
    if not interrupted:
        os.link(current, previous)
    following.rename(current)
    _sync(directory)
    return f"{following} is {current} now: copy both, restart, then rotate again"


def _write(path: Path, like: Path | None = None) -> None:
    """Write a new secret that no one else can read; raises FileExistsError rather than replace."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            if like is not None:
                # the service's user has to read it as it reads the present one
                owner = like.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                os.fchmod(file.fileno(), owner.st_mode & 0o640)
            os.fsync(file.fileno())
        # link() refuses an existing name, which rename() would replace
        os.link(temporary, path)
    finally:
        temporary.unlink()
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
