"""What every `mooring ca` command shares: where the CA is, by options and mooring.conf, and how a
passphrase is got."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from services.cli.settings import UNREACHABLE, Failed

_F = TypeVar("_F", bound=Callable[..., Any])

DEFAULT_CONFIG = "/etc/mooring/mooring.conf"
DEFAULT_DIRECTORY = "/etc/mooring/ca"
CREDENTIAL = "ca-passphrase"

PASSPHRASE_CHARACTERS = 12
"""Least length of a passphrase that a person types; one that is made here has 43 random ones."""

KEY_TYPES = ["p256", "p384", "ed25519", "rsa2048", "rsa3072", "rsa4096"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where this server's CA is; ``conf`` is mooring.conf's, None if there is none."""

    directory: Path
    public_url: str = ""
    passphrase_file: str = ""
    credential: str = CREDENTIAL
    conf: Any = None


def config_option(function: _F) -> _F:
    """The option --config."""
    return click.option(
        "--config",
        envvar="MOORING_CONFIG",
        show_envvar=True,
        type=click.Path(dir_okay=False),
        help=f"mooring.conf whose [ca] gives what no option says.  [default: {DEFAULT_CONFIG}, "
        "if there is one]",
    )(function)


def directory_option(function: _F) -> _F:
    """The options --config and --directory of what works on a server's CA."""
    function = click.option(
        "--directory",
        envvar="MOORING_CA_DIRECTORY",
        show_envvar=True,
        type=click.Path(file_okay=False),
        help=f"The CA's directory.  [default: [ca] directory, else {DEFAULT_DIRECTORY}]",
    )(function)
    return config_option(function)


def passphrase_options(function: _F) -> _F:
    """The options --passphrase-file and --no-passphrase."""
    function = click.option(
        "--no-passphrase",
        is_flag=True,
        help="Do not encrypt the key (for a try; never for a root).",
    )(function)
    return passphrase_file_option(function)


def passphrase_file_option(function: _F) -> _F:
    """The option --passphrase-file."""
    return click.option(
        "--passphrase-file",
        envvar="MOORING_CA_PASSPHRASE_FILE",
        show_envvar=True,
        type=click.Path(dir_okay=False),
        help="File whose one line is the passphrase (or PIN).  [default: [ca] passphrase_file, "
        "else systemd's credential, else asked for]",
    )(function)


def dry_run_option(function: _F) -> _F:
    """The option --dry-run."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done; change nothing.")(
        function
    )


def site(config: str | None, directory: str | None = None) -> Site:
    """Read mooring.conf if there is one; raises Failed if the one that was given is not good."""
    conf = read_config(config)
    if conf is None:
        return Site(Path(directory or DEFAULT_DIRECTORY))
    return Site(
        Path(directory or conf.ca.directory),
        conf.ca.public_url,
        conf.ca.passphrase_file,
        conf.ca.passphrase_credential,
        conf,
    )


def read_config(config: str | None) -> Any:
    """Read the mooring.conf that was given, or the usual one if it is there; else None."""
    if config is None and not Path(DEFAULT_CONFIG).exists():
        return None
    from services.core.config import ConfigError, load

    try:
        return load(config or DEFAULT_CONFIG)
    except ConfigError as error:
        raise Failed(str(error)) from None


def passphrase(
    where: Site, file: str | None, *, what: str, create: bool = False, none: bool = False
) -> Callable[[], bytes] | None:
    """Return how the passphrase of ``what`` is got: file, credential, or a question.

    With ``create`` a file that does not exist is made with a random one, and what a person types
    is asked for twice.
    """
    from services.ca import ceremony, keystore

    if none:
        return None
    named = file or where.passphrase_file
    if named:
        path = Path(named)
        if create and not path.exists():
            ceremony.create_passphrase(path)
            told(path, f"the passphrase of {what}; keep a copy where the key is not")
        return keystore.passphrase_in(path)
    return keystore.passphrase_credential(where.credential) or _question(what, create)


def _question(what: str, create: bool) -> Callable[[], bytes]:
    found: list[bytes] = []

    def ask() -> bytes:
        if found:
            return found[0]
        if not _has_terminal():
            raise Failed(f"no passphrase for {what}: give --passphrase-file", 2)
        text: str = click.prompt(
            f"Passphrase of {what}", hide_input=True, confirmation_prompt=create, err=True
        )
        if create and len(text) < PASSPHRASE_CHARACTERS:
            raise Failed(f"a passphrase of less than {PASSPHRASE_CHARACTERS} characters", 2)
        found.append(text.encode())
        return found[0]

    return ask


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def for_key(key: Path, found: Callable[[], bytes] | None) -> Callable[[], bytes] | None:
    """Return the passphrase for a key file that is encrypted, None for one that is not."""
    from services.ca import keystore

    return found if keystore.is_encrypted(key) else None


def told(path: Path, purpose: str) -> None:
    """Say that a file was written, and what to do with it."""
    click.echo(f"wrote {path}: {purpose}")


def key_type(name: str | None) -> Any:
    """The key type of an option's value."""
    from services.ca.keys import KeyType

    return None if name is None else KeyType(name)


def span(text: str) -> timedelta:
    """``90d``, ``12h``, ``30m``, ``600s``; raises ValueError."""
    from services.ca.profile_file import parse_span

    return parse_span(text)


def present() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


def when(moment: Any) -> str:
    """A time for people and programs alike."""
    return str(moment.strftime("%Y-%m-%dT%H:%M:%SZ"))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the refusals of the CA's core into the command's failures."""
    from services.ca.keystore import KeystoreError
    from services.ca.refusal import Refused

    try:
        yield
    except KeystoreError as error:
        raise Failed(str(error)) from None
    except Refused as error:
        raise Failed(f"{error.field}: {error.reason}") from None
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        raise Failed(f"{named}{error.strerror or error}") from None


@contextlib.contextmanager
def database_of(where: Site, url: str | None) -> Iterator[Any]:
    """Open the CA's database; raises Failed if there is none or it is away."""
    from services.core.database import Database, Unavailable

    if url is None:
        if where.conf is None:
            raise Failed("no database: give --database, or --config with [database] url", 2)
        url = str(where.conf.ca.database_url or where.conf.database.url)
    try:
        opened = Database(url)
    except ValueError as error:
        raise Failed(f"the database URL {error}", 2) from None
    try:
        yield opened
    except Unavailable as error:
        raise Failed(f"the database is not available ({error})", UNREACHABLE) from None
    finally:
        opened.close()
