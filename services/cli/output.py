"""Answers on standard output: a table for people, JSON for programs."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def format_option(function: _F) -> _F:
    """The option -f of every command that shows something."""
    return click.option(
        "-f",
        "--format",
        "style",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="table for people, json for programs.",
    )(function)


def show_rows(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], style: str) -> None:
    """Print rows under the columns' names in capitals, or the whole rows as a JSON list."""
    rows = list(rows)
    if style == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    _table(
        [[name.upper().replace("_", " ") for name in columns]]
        + [[_cell(row.get(name)) for name in columns] for row in rows]
    )


def show_object(value: Mapping[str, Any], style: str) -> None:
    """Print one object, a line for each member, or as JSON."""
    if style == "json":
        click.echo(json.dumps(value, indent=2))
        return
    _table([[name, _cell(item)] for name, item in value.items()])


def _cell(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text)


def _table(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """The text with everything escaped that could move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
