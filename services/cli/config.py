"""`mooring config`: configuration files, checked as a start would check them."""

import click

from services.cli.settings import Failed


@click.group("config")
def group() -> None:
    """Check configuration files before they are used.

    \b
    Examples:
      mooring config check /etc/mooring/mooring.conf /etc/mooring/metadata.ini
    """


@group.command(short_help="Check a mooring.conf or a paste file.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--build", is_flag=True, help="Also make filters and applications, as a start does.")
def check(files: tuple[str, ...], build: bool) -> None:
    """Check a mooring.conf, or a paste file (*.ini): the first fault is told in one line.

    \b
    Examples:
      mooring config check /etc/mooring/mooring.conf
      mooring config check --build /etc/mooring/metadata.ini
    """
    from services.core.config import ConfigError, load
    from services.core.deploy import DeployError, check_pipelines

    for file in files:
        try:
            if file.endswith(".ini"):
                check_pipelines(file, build=build)
            else:
                load(file)
        except (ConfigError, DeployError) as error:
            raise Failed(str(error)) from None
        click.echo(f"{file}: good")
