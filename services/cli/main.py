"""The entry of the `mooring` command: global options, and where each group of commands lives.

A group's module is imported when the group is used, so that `mooring --help` and shell completion
do not wait for SQLAlchemy and its like.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

import click

from services.cli.settings import Settings

GROUPS = {
    "ca": ("services.cli.ca", "The certificate authority: keys, ceremonies, rotation, audit."),
    "cert": ("services.cli.cert", "Certificates: request, renew, watch, list, show, revoke."),
    "config": ("services.cli.config", "Check configuration files before they are used."),
    "db": (
        "services.cli.db",
        "The database: bring its schema to this version, move it to another engine.",
    ),
    "doctor": (
        "services.cli.doctor",
        "Is this installation sound? What is wrong, and what to do about it.",
    ),
    "instance": ("services.cli.instance", "Instances: what they are and may read."),
    "policy": ("services.cli.policy", "Who may do what."),
    "secret": ("services.cli.secret", "Master secrets of signatures and tokens."),
}
"""Group: (module whose `group` it is, one line of help)."""


class LazyGroup(click.Group):
    """A group whose commands stand in GROUPS and are imported when they are used."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names, sorted."""
        return sorted(GROUPS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of this group; None if there is no such group."""
        if cmd_name not in GROUPS:
            return None
        command: click.Command = importlib.import_module(GROUPS[cmd_name][0]).group
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands' lines from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, GROUPS[name][1]) for name in sorted(GROUPS)])


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    try:
        number = version("mooring")
    except PackageNotFoundError:
        number = "not installed, runs from its source"
    click.echo(f"mooring {number}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.option(
    "--url",
    envvar="MOORING_URL",
    show_envvar=True,
    metavar="URL",
    help="Where the operators' API answers, such as https://controller.example:8774.",
)
@click.option(
    "--tls-cert",
    envvar="MOORING_CERT",
    show_envvar=True,
    type=click.Path(dir_okay=False),
    help="Your client certificate with its chain, PEM.",
)
@click.option(
    "--tls-key",
    envvar="MOORING_KEY",
    show_envvar=True,
    type=click.Path(dir_okay=False),
    help="Its private key, PEM.",
)
@click.option(
    "--tls-ca",
    envvar="MOORING_CACERT",
    show_envvar=True,
    type=click.Path(dir_okay=False),
    help="The CA certificate that the server is verified with, PEM; default: the system's.",
)
@click.option(
    "--timeout",
    envvar="MOORING_TIMEOUT",
    show_envvar=True,
    type=click.FloatRange(min=0.1, max=3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up a request after so long, attempts to try it again included.",
)
@click.pass_context
def main(
    ctx: click.Context,
    url: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    timeout: float,
) -> None:
    """Mooring ties every instance on your hosts to its network, metadata and identity.

    \b
    Examples:
      export MOORING_URL=https://controller.example:8774
      export MOORING_CERT=alice.crt MOORING_KEY=alice.key MOORING_CACERT=root.crt
      mooring instance list
      mooring instance create web1 --project demo --key ~/.ssh/id_ed25519.pub

    \b
    Exit codes:
      0  done
      1  refused: the message says why
      2  wrong usage
      3  a server or the database cannot be reached, or failed
      4  there is no such thing
      5  conflict: it exists already, or has changed meanwhile
      6  not permitted
    """
    ctx.obj = Settings(url, tls_cert, tls_key, tls_ca, timeout)


if __name__ == "__main__":
    main(prog_name="mooring")
