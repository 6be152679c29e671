"""The certificate service's API, as `mooring cert` and `mooring ca token` use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import click

from services.cli.settings import UNREACHABLE, Failed, Settings

if TYPE_CHECKING:
    from services.cli.client import Api

_F = TypeVar("_F", bound=Callable[..., Any])


def ca_options(function: _F) -> _F:
    """The option --ca-url."""
    return click.option(
        "--ca-url",
        envvar="MOORING_CA_URL",
        show_envvar=True,
        metavar="URL",
        help="Where the certificate service answers, such as https://controller.example:8776.",
    )(function)


def connect(settings: Settings, ca_url: str | None) -> CaApi:
    """The API at --ca-url, with the identity of the global options; raises Failed."""
    if not ca_url:
        raise Failed("no certificate service: give --ca-url or set MOORING_CA_URL", 2)
    from services.cli.client import Api

    return CaApi(Api(dataclasses.replace(settings, url=ca_url)))


class CaApi:
    """The certificate service's API; raises what `services.cli.client.Api` raises."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.request = api.request

    def pages(
        self, path: str, member: str, query: Sequence[tuple[str, str]] = ()
    ) -> list[dict[str, Any]]:
        """All pages of a list as one; each says where the next one is."""
        found: list[dict[str, Any]] = []
        asked = [*query]
        while True:
            answer = self.request("GET", path, query=asked).json()
            try:
                found += answer[member]
                following = answer.get("next")
            except (KeyError, TypeError, AttributeError):
                raise Failed("the server's answer is not a list", UNREACHABLE) from None
            if not following:
                return found
            parts = urlsplit(str(following))
            path, asked = parts.path, parse_qsl(parts.query)
