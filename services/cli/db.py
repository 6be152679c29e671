"""`mooring db`: the database's schema, and its move to another engine."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from services.cli.settings import UNREACHABLE, Failed

_F = TypeVar("_F", bound=Callable[..., Any])


def _database_options(function: _F) -> _F:
    function = click.option(
        "--config",
        envvar="MOORING_CONFIG",
        show_envvar=True,
        type=click.Path(dir_okay=False),
        default="/etc/mooring/mooring.conf",
        show_default=True,
        help="mooring.conf whose [database] url is used.",
    )(function)
    return click.option("--database", metavar="URL", help="Use this database instead.")(function)


@click.group("db")
def group() -> None:
    """The database: bring its schema to this version, move it to another engine.

    \b
    Examples:
      mooring db upgrade
      mooring db check --config /etc/mooring/mooring.conf
      mooring db upgrade --database sqlite:////var/lib/mooring/mooring.db
    """


@group.command(short_help="Create the database or bring its schema to this version.")
@_database_options
def upgrade(config: str, database: str | None) -> None:
    """Create the database or bring its schema to this version; safe to repeat.

    \b
    Examples:
      mooring db upgrade
    """
    from services.core import database as core

    with _explained():
        core.upgrade(database or _url(config))
    click.echo("the database has this version's schema")


@group.command(short_help="Say whether the database has this version's schema.")
@_database_options
def check(config: str, database: str | None) -> None:
    """Say whether the database can be read and has this version's schema.

    \b
    Examples:
      mooring db check
    """
    from services.core import database as core

    with _explained():
        opened = core.Database(database or _url(config))
        try:
            problem = core.schema_state(opened)
        finally:
            opened.close()
    if problem is not None:
        raise Failed(problem)
    click.echo("the database has this version's schema")


@group.command(short_help="Copy a whole installation into another, empty database.")
@click.option(
    "--config",
    envvar="MOORING_CONFIG",
    show_envvar=True,
    type=click.Path(dir_okay=False),
    default="/etc/mooring/mooring.conf",
    show_default=True,
    help="mooring.conf whose [database] url is copied from.",
)
@click.option("--from", "source", metavar="URL", help="Copy from this database instead.")
@click.option("--to", "target", metavar="URL", required=True, help="The database to copy into.")
def copy(config: str, source: str | None, target: str) -> None:
    """Copy a whole installation into another, empty database.

    As when a SQLite installation moves to PostgreSQL. Stop the services first: what is written
    during the copy is not in it. Nothing changes in the source; the target has all or nothing.
    Then let [database] url name the target, and start the services.

    \b
    Examples:
      mooring db copy --to postgresql://mooring@db.example/mooring
      mooring db copy --from sqlite:////var/lib/mooring/mooring.db --to postgresql:///mooring
    """
    from services.core.transfer import NotCopied
    from services.core.transfer import copy as copy_all

    def told(table: str, rows: int) -> None:
        if rows:
            click.echo(f"{table}: {rows}")

    with _explained():
        try:
            copy_all(source or _url(config), target, told)
        except NotCopied as error:
            raise Failed(str(error)) from None
    click.echo("copied; set [database] url to the target and start the services")


def _url(config: str) -> str:
    from services.core.config import ConfigError, load

    try:
        return str(load(config).database.url)
    except ConfigError as error:
        raise Failed(str(error)) from None


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    from services.core.database import Unavailable

    try:
        yield
    except ValueError as error:
        raise Failed(f"the database URL {error}") from None
    except (Unavailable, OSError) as error:
        raise Failed(f"the database is not available ({error})", UNREACHABLE) from None
