"""The commands that need no server: help, database, configuration, policy."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from services.cli.main import GROUPS, main
from services.core.policy import RULES

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "cli.md"


def run(*arguments: str, code: int = 0) -> Result:
    """Run the command; it has to end with this exit code."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, by its words."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, (*path, name))


def help_of(*path: str) -> str:
    """What --help prints, on a terminal of 80 columns."""
    result = CliRunner().invoke(
        main, [*path, "--help"], prog_name="mooring", terminal_width=80, env={"COLUMNS": "80"}
    )
    assert result.exit_code == 0
    return result.stdout


def section(path: tuple[str, ...]) -> str:
    """The section of docs/cli.md that holds a command's help text."""
    return f"\n## `{' '.join(('mooring', *path))}`\n\n```text\n{help_of(*path)}```\n"


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_the_documentation_has_the_help_text(path: tuple[str, ...]) -> None:
    """docs/cli.md shows what --help prints, of every command."""
    assert section(path) in DOCUMENT.read_text(encoding="utf-8"), (
        f"run `python {Path(__file__).relative_to(ROOT)}` to write the help texts again"
    )


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_help_text_has_an_example(path: tuple[str, ...]) -> None:
    """Help shows a command to paste, and that command exists."""
    text = help_of(*path)
    assert " ".join(("mooring", *path)) in text.partition("Examples:")[2]
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["mooring"] and not line.startswith("Usage"):
            named = tuple(word for word in words[1:3] if not word.startswith("-"))
            assert named in set(commands(main)), line


def test_the_table_of_groups_tells_what_they_say_themselves() -> None:
    """The line that `mooring --help` shows for a group is the first of the group's own help."""
    context = click.Context(main)
    for name, (_, line) in GROUPS.items():
        group = main.get_command(context, name)
        assert group is not None
        assert (group.help or "").splitlines()[0] == line
    assert main.get_command(context, "nothing") is None


def test_help_does_not_wait_for_what_it_does_not_need() -> None:
    """`mooring --help` imports no database, no HTTP and no schema."""
    code = (
        "import sys\nfrom services.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'sqlalchemy', 'alembic', 'urllib3', 'jsonschema', 'oslo_config', 'webob'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "set()\n"


def test_the_version_is_shown() -> None:
    """`mooring --version` says which one it is, also when it runs from its source."""
    assert run("--version").stdout.startswith("mooring ")


def test_a_database_is_made_checked_and_made_again(tmp_path: Path, database_url: str) -> None:
    """upgrade may be repeated; check tells a good database from an empty and a missing one."""
    run("db", "upgrade", "--database", database_url)
    assert "this version's schema" in run("db", "check", "--database", database_url).stdout
    new = f"sqlite:///{tmp_path}/new/new.db"
    assert run("db", "check", "--database", new, code=3).stderr.startswith("Error: the database")
    conf = tmp_path / "mooring.conf"
    conf.write_text(f"[database]\nurl = {new}\n")
    run("db", "upgrade", "--config", str(conf))
    run("db", "check", "--config", str(conf))
    (tmp_path / "empty.db").touch()
    empty = f"sqlite:///{tmp_path}/empty.db"
    assert "mooring db upgrade" in run("db", "check", "--database", empty, code=1).stderr
    assert "oracle" in run("db", "upgrade", "--database", "oracle://x/y", code=1).stderr
    missing = run("db", "check", "--config", str(tmp_path / "none"), code=1).stderr
    assert str(tmp_path / "none") in missing


def test_configuration_files_are_checked(tmp_path: Path) -> None:
    """A good file is said to be good; the first fault is one line with the file's name."""
    conf = tmp_path / "mooring.conf"
    conf.write_text("[database]\nurl = sqlite:////x/y.db\n")
    assert run("config", "check", str(conf)).stdout == f"{conf}: good\n"
    conf.write_text("[database]\nulr = sqlite:////x/y.db\n")
    line = run("config", "check", str(conf), code=1).stderr
    assert line.startswith(f"Error: {conf}: unknown option ulr")
    assert line.count("\n") == 1
    ini = tmp_path / "paste.ini"
    ini.write_text(
        "[pipeline:main]\npipeline = request_id gatekeeper app\n"
        "[filter:request_id]\npaste.filter_factory = middleware.request_id:filter_factory\n"
        "[filter:gatekeeper]\npaste.filter_factory = middleware.gatekeeper:filter_factory\n"
        "[app:app]\npaste.app_factory = services.metadata.operators:app_factory\nconfig = x\n"
    )
    assert "the gatekeeper must be the first" in run("config", "check", str(ini), code=1).stderr


def test_the_policy_is_shown_whole() -> None:
    """Every rule with its groups, in both forms."""
    shown = json.loads(run("policy", "show", "-f", "json").stdout)
    assert {item["rule"]: set(item["groups"]) for item in shown} == {
        rule.name: set(rule.groups) for rule in RULES.values()
    }
    table = run("policy", "show").stdout.splitlines()
    assert table[0].split() == ["RULE", "DESCRIPTION", "GROUPS"]
    assert len(table) == len(RULES) + 1


if __name__ == "__main__":
    kept = DOCUMENT.read_text(encoding="utf-8").partition("\n# Help texts\n")
    DOCUMENT.write_text("".join([*kept[:2], *map(section, commands(main))]), encoding="utf-8")
