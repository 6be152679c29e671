"""`mooring policy`: the table of rules."""

import click

from services.cli.output import format_option, show_rows


@click.group("policy")
def group() -> None:
    """Who may do what.

    \b
    Examples:
      mooring policy show
    """


@group.command()
@format_option
def show(style: str) -> None:
    """List every rule with the groups that pass it.

    Groups are the O values of a client certificate. `project` stands for mooring:project:ID of the
    object's own project, `host` for the host that carries the instance, `owner` for whom a
    certificate names or who made a token, `profile` for those whom profiles.toml names.

    \b
    Examples:
      mooring policy show
      mooring policy show -f json
    """
    from services.core.policy import RULES

    rows = [
        {"rule": rule.name, "description": rule.description, "groups": sorted(rule.groups)}
        for rule in RULES.values()
    ]
    if style == "table":
        rows = [{**row, "groups": " ".join(row["groups"])} for row in rows]
    show_rows(("rule", "description", "groups"), rows, style)
