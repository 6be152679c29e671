"""An ACME server over each engine, and a client with an account (see acme_client.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.ca.acme.application import Settings
from services.ca.hierarchy import Hierarchy, create_hierarchy
from tests.services.ca.acme.acme_client import BASE, Client, Server


@pytest.fixture(scope="session")
def acme_hierarchy() -> Hierarchy:
    """Root and intermediate."""
    return create_hierarchy("ACME test")


def _server(url: str, hierarchy: Hierarchy) -> Iterator[Server]:
    settings = Settings(external_url=BASE, external_account_required=False)
    server = Server(url, hierarchy, settings)
    server.worker()
    yield server
    server.close()


@pytest.fixture
def server(sqlite_url: str, acme_hierarchy: Hierarchy) -> Iterator[Server]:
    """A server on SQLite."""
    yield from _server(sqlite_url, acme_hierarchy)


@pytest.fixture
def any_server(database_url: str, acme_hierarchy: Hierarchy) -> Iterator[Server]:
    """A server on each engine."""
    yield from _server(database_url, acme_hierarchy)


@pytest.fixture
def client(server: Server) -> Client:
    """A client with an account."""
    return server.client()
