"""docs/instances.md: its examples work when pasted, and nothing of the API is missing from it."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from services.core.database import Database
from services.metadata.operators import READ_ONLY, Operators
from services.metadata.store import Filters, Store

PAGE = (Path(__file__).parents[3] / "docs" / "instances.md").read_text(encoding="utf-8")


def test_the_examples_work_when_pasted(mooring: Any, tmp_path: Path) -> None:
    """Every shell block, run by bash one after the other, with curl and mutual TLS."""
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    assert script.count("api ") >= 10
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **mooring.environment("alice")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = mooring.server.store.list(Filters(), 10)
    assert [item.instance.name for item in page.items] == ["web2"]
    assert "PATCH" in {request.split()[0] for request in mooring.server.requests}


def names(schema: Any) -> Iterator[str]:
    """The name of every field of the schema, however deep."""
    for name, inner in schema.get("properties", {}).items():
        yield name
        yield from names(inner)
    if "items" in schema:
        yield from names(schema["items"])


def test_every_field_is_on_the_page() -> None:
    """Each field of the schema and each that answers add stands in backquotes."""
    text = resources.files("services.metadata").joinpath("instance.schema.json").read_text("utf-8")
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    quoted = set(re.findall(r"[A-Za-z0-9_]+", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert {*names(json.loads(text)), *READ_ONLY} - quoted == set()


def test_every_route_and_filter_is_on_the_page(tmp_path: Path) -> None:
    """Each route with its rule, each filter of the store."""
    router = Operators(Store(Database(f"sqlite:///{tmp_path}/x.db"))).router
    listed = re.findall(r"^\| `([A-Z]+) (/[^`]+)` \|.*\| `([a-z:]+)` \|$", PAGE, re.MULTILINE)
    assert listed == router.routes
    for name in Filters.__dataclass_fields__:
        if not name.startswith("visible"):
            assert f"`{name.removesuffix('s')}`" in PAGE or f"`{name}`" in PAGE
