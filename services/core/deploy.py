"""Checks a paste ini before anything starts, so that a wrong pipeline is one line and no service.

Rules, for every way from an entry of the file to an application that holds a part of ours:

- the gatekeeper is the first filter, whatever else stands there;
- `request_id` and `errors` are among the filters: only they turn a Failure into a proper answer;
- our filters keep the order of `ORDER` and none stands there twice;
- what the instance signature rests on (`NEEDS`) stands before it.

Filters of others may stand anywhere after the gatekeeper. Keys of our factories are compared with
the factory's signature. By hand: `python -m services.core.deploy etc/paste/metadata.ini`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.types import WSGIEnvironment

from paste.deploy import loadwsgi

from services.core.errors import Failure

ORDER = (
    "gatekeeper",
    "request_id",
    "errors",
    "healthcheck",
    "forwarded",
    "client_certificate",
    "instance_signature",
)
ALWAYS = ("request_id", "errors")
NEEDS = {"instance_signature": ("forwarded", "client_certificate")}

_ENTRIES = ("app", "application", "composite", "composit", "pipeline", "filter-app")
# In a factory's global_conf: what it makes is thrown away, so work for later requests is in vain.
CHECK_ONLY = "mooring_check_only"
_COMPOSITES = ("paste.composite_factory", "paste.composit_factory")
_COMPOSITE_MODULE = "services.core.composite"
# The check imports what the file names; anything slower than this hangs.
_CHECK_SECONDS = 60


class DeployError(Exception):
    """A paste ini that must not start; the text is one line with file, section and culprit."""

    def __init__(self, where: str, what: object) -> None:
        super().__init__(" ".join(f"{where}: {what}".split()))


class Part(NamedTuple):
    """One filter or application of a chain: its factory, its keys and where the file has it."""

    factory: Any
    conf: dict[str, str]
    where: str
    defaults: frozenset[str]

    @property
    def module(self) -> str:
        """The module of the factory, empty if it has none."""
        return getattr(self.factory, "__module__", None) or ""

    @property
    def filter_name(self) -> str | None:
        """The name in `ORDER` if this is a filter of ours."""
        package, _, name = self.module.partition(".")
        return name if package == "middleware" and name in ORDER else None

    @property
    def ours(self) -> bool:
        """Whether the factory is one of Mooring's."""
        return self.module.split(".")[0] in ("middleware", "services")


class _Loader(loadwsgi.ConfigLoader):  # type: ignore[misc]  # paste.deploy has no types
    """paste.deploy's own reader, so that the check sees what will run; it notes the sections."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename)
        self.stack: list[tuple[str, str]] = []
        self.referenced: set[str] = set()

    def get_context(self, object_type: Any, name: Any = None, global_conf: Any = None) -> Any:
        if self.absolute_name(name):
            return super().get_context(object_type, name, global_conf)
        section = self.find_config_section(object_type, name=name)
        where = f"{self.filename} [{section}]"
        step = (section, object_type.name)
        if step in self.stack:
            raise DeployError(where, "leads back to itself")
        if self.stack:
            self.referenced.add(section)
        self.stack.append(step)
        try:
            context = super().get_context(object_type, name, global_conf)
        except DeployError:
            raise
        except Exception as error:  # importing a factory may raise anything
            raise DeployError(where, error if str(error) else type(error).__name__) from error
        finally:
            self.stack.pop()
        context.where = where
        if context.object_type is loadwsgi.FILTER_WITH:
            context.next_context.where = getattr(context.next_context, "where", where)
        elif context.object_type is loadwsgi.FILTER_APP:
            context.filter_context.where = where  # its keys stand in this section
        if (
            context.object_type is loadwsgi.FILTER_WITH
            and object_type is loadwsgi.APP
            and context.next_context.object_type is not loadwsgi.APP
        ):
            # PasteDeploy 3.1 makes a filter of it, and every request then ends in a TypeError.
            raise DeployError(
                where, "filter-with works on an app only; put the filter into the pipeline"
            )
        return context

    def entries(self) -> list[str]:
        """The sections that can be started, as they are written."""
        return [name for name in self.parser.sections() if name.split(":")[0] in _ENTRIES]


def check_pipelines(
    path: str | os.PathLike[str], name: str | None = None, *, build: bool = False
) -> None:
    """Raises DeployError if the file breaks a rule; `name` is the entry that will be started.

    Entries are `main`, `name` and every application that no other section uses. Factories are
    imported; with `build` our filters and applications are also made, so that a wrong value, a bad
    mooring.conf or an old schema is found as well.
    """
    filename = os.fspath(path)
    try:
        loader = _Loader(filename)
    except Exception as error:  # unreadable, or one of configparser's many errors
        raise DeployError(filename, error) from error
    if name is not None:
        _context(loader, name, filename)
    chains: dict[str, list[list[Part]]] = {}
    for section in loader.entries():
        bare = section.partition(":")[2].strip() or "main"
        chains[section] = list(_chains(_context(loader, bare, filename), ()))
    for section, found in chains.items():
        started = section.partition(":")[2].strip() in ("", "main", name)
        if started or section not in loader.referenced:
            for chain in found:
                _check_chain(chain)
    applications = {chain[-1].where for found in chains.values() for chain in found}
    for part in {
        part.where: part for found in chains.values() for c in found for part in c
    }.values():
        _check_keys(part)
        if build and (part.filter_name or (part.ours and part.where in applications)):
            _build(part)


def _context(loader: _Loader, name: str, where: str) -> Any:
    try:
        return loader.get_context(loadwsgi.APP, name)
    except LookupError as error:
        raise DeployError(where, error) from error


def _part(context: Any) -> Part:
    filename = getattr(context.loader, "filename", "")
    parser = getattr(context.loader, "parser", None)
    return Part(
        factory=context.object,
        conf=dict(context.local_conf),
        where=getattr(context, "where", filename),
        defaults=frozenset(parser.defaults() if parser else ()),
    )


def _filters(context: Any) -> list[Part]:
    if context.object_type is loadwsgi.FILTER_WITH:
        return _filters(context.filter_context) + _filters(context.next_context)
    return [_part(context)]


def _chains(context: Any, seen: tuple[str, ...]) -> Iterator[list[Part]]:
    """Every way from here to an application: the filters in the order of a request, then it."""
    if context.object_type is loadwsgi.PIPELINE:
        filters = [part for inner in context.filter_contexts for part in _filters(inner)]
        for chain in _chains(context.app_context, seen):
            yield filters + chain
    elif context.object_type in (loadwsgi.FILTER_APP, loadwsgi.FILTER_WITH):
        for chain in _chains(context.next_context, seen):
            yield _filters(context.filter_context) + chain
    elif context.protocol in _COMPOSITES:
        yield from _composite_chains(context, seen)
    else:
        yield [_part(context)]


def _composite_chains(context: Any, seen: tuple[str, ...]) -> Iterator[list[Part]]:
    part = _part(context)
    if part.where in seen:
        raise DeployError(part.where, "leads back to itself")
    for key, target in part.conf.items():
        try:
            inner = context.loader.get_context(loadwsgi.APP, target, context.global_conf)
        except LookupError as error:
            if part.module != _COMPOSITE_MODULE:
                continue  # a key of somebody else's composite that names no application
            raise DeployError(part.where, f"{key}: {error}") from error
        if isinstance(context.loader, _Loader):
            context.loader.referenced.add(
                context.loader.find_config_section(loadwsgi.APP, name=target)
            )
        yield from _chains(inner, (*seen, part.where))


def _check_chain(chain: list[Part]) -> None:
    *filters, app = chain
    if not any(part.ours for part in chain):
        return
    if not filters or filters[0].filter_name != "gatekeeper":
        first = filters[0].where if filters else "nothing"
        raise DeployError(app.where, f"the gatekeeper must be the first filter, {first} is")
    names: list[str] = []
    for part in filters:
        name = part.filter_name
        if name is None:
            continue
        if name in names:
            raise DeployError(part.where, f"the filter {name} stands twice before {app.where}")
        if names and ORDER.index(name) < ORDER.index(names[-1]):
            raise DeployError(
                part.where,
                f"the filter {name} stands after {names[-1]} before {app.where};"
                f" the order is {', '.join(ORDER)}",
            )
        names.append(name)
    for name in ALWAYS:
        if name not in names:
            raise DeployError(app.where, f"the filter {name} is missing before it")
    for name in names:
        for needed in NEEDS.get(name, ()):
            if needed not in names:
                raise DeployError(app.where, f"{name} needs the filter {needed} before it")


def _check_keys(part: Part) -> None:
    if not part.ours:
        return
    parameters = inspect.signature(part.factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    keys = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    allowed = ", ".join(sorted(keys)) or "none"
    for key in part.conf:
        if key not in keys:
            raise DeployError(part.where, f"unknown key {key!r}; allowed: {allowed}")
    for key, default in keys.items():
        if key in part.conf:
            continue
        if key in part.defaults:
            # paste.deploy keeps [DEFAULT] from the factory, and hides the section's own value too.
            raise DeployError(
                part.where, f"the key {key!r} stands in [DEFAULT], where it sets nothing"
            )
        if default is inspect.Parameter.empty:
            raise DeployError(part.where, f"the key {key!r} is missing; allowed: {allowed}")


def _build(part: Part) -> None:
    try:
        part.factory({CHECK_ONLY: "true"}, **part.conf)
    except Exception as error:  # whatever it is would end each worker with a traceback
        raise DeployError(part.where, error if str(error) else type(error).__name__) from error


_checked: set[tuple[str, int]] = set()


def check_once(global_conf: dict[str, str]) -> None:
    """For application factories: checks the file that they are loaded from, once a process.

    Does nothing for one that was not made from a file: `require_gatekeeper` is left then.
    """
    filename = global_conf.get("__file__")
    if not filename:
        return
    state = (filename, Path(filename).stat().st_mtime_ns)
    if state not in _checked:
        check_pipelines(filename)
        _checked.add(state)


def on_starting(server: Any) -> None:
    """gunicorn's hook of that name: ends the start with one line if the paste file is wrong.

    The check runs in a process of its own: what the master has imported would outlive a reload.
    """
    if server.cfg.paste is None:
        return
    search = os.pathsep.join(filter(None, sys.path))
    check = subprocess.run(
        [sys.executable, "-m", "services.core.deploy", "--build", server.app.app_uri],
        env={**os.environ, "PYTHONPATH": search},
        stderr=subprocess.PIPE,
        text=True,
        timeout=_CHECK_SECONDS,
        check=False,
    )
    if check.returncode:
        raise SystemExit(check.stderr.strip())


def require_gatekeeper(environ: WSGIEnvironment) -> None:
    """Raises Failure 500 unless the gatekeeper stands before: the last line of defence."""
    if environ.get("mooring.gatekeeper") is not True:
        raise Failure(500, "This application is not behind Mooring's gatekeeper.")


def main() -> None:
    """Checks the files given; one line on standard error and status 1 for the first wrong one."""
    parser = argparse.ArgumentParser(prog="python -m services.core.deploy", description=__doc__)
    parser.add_argument(
        "--build", action="store_true", help="also make our filters and applications"
    )
    parser.add_argument("files", nargs="+", metavar="FILE[#NAME]")
    arguments = parser.parse_args()
    for uri in arguments.files:
        path, _, name = uri.partition("#")
        try:
            check_pipelines(path, name or None, build=arguments.build)
        except DeployError as error:
            raise SystemExit(f"mooring: {error}") from None


if __name__ == "__main__":
    main()
