"""docs/pipelines.md: its tables are those of the code."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

from services.core import deploy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/pipelines.md").read_text()


def test_the_table_of_filters_is_true():
    """Filter, key and default of every row are those of the factories, in the pipeline's order."""
    row = re.compile(r"^\| `(\w+)` \| (?:`(\w+)`)? ?\| (?:`([^`]*)`)? ?\|", re.MULTILINE)
    documented = row.findall(PAGE)
    actual = []
    for name in deploy.ORDER:
        factory = importlib.import_module(f"middleware.{name}").filter_factory
        keys = [
            (name, parameter.name, parameter.default)
            for parameter in inspect.signature(factory).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        actual += keys or [(name, "", "")]
    assert documented == actual


def test_every_filter_has_its_section_and_its_place():
    """Each module of middleware is in the boot check's order and has a section of its own.

    But for the short way, which is no filter: no file names it.
    """
    modules = {path.stem for path in (ROOT / "middleware").glob("*.py")} - {"__init__", "shortcut"}
    assert modules == set(deploy.ORDER)
    assert re.findall(r"^### (\w+)$", PAGE, re.MULTILINE) == list(deploy.ORDER)


def test_the_example_starts(tmp_path):
    """The page's first ini passes the boot check once there is an application behind it."""
    example = PAGE.split("```ini\n")[1].split("```")[0]
    path = tmp_path / "paste.ini"
    path.write_text(example + "\n[app:metadata]\nuse = call:wsgiref.simple_server:demo_app\n")
    deploy.check_pipelines(path)
