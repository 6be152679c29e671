"""Fixtures that every test may use: databases of both engines."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.core.database import upgrade

POSTGRES_BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class PostgreSQL:
    """A PostgreSQL server in a directory of its own, which also holds its unix socket."""

    def __init__(self) -> None:
        if not POSTGRES_BIN:
            pytest.fail("PostgreSQL is not installed: tools/test installs it")
        # Not below pytest's directory: the next pytest to start closes that one to other users.
        self.base = base = Path(tempfile.mkdtemp(prefix="mooring-postgresql-"))
        base.chmod(0o755)
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        self.binaries = POSTGRES_BIN[-1]
        self.data = base / "data"
        self.data.mkdir()
        self.as_postgres: list[str] = []
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root
            shutil.chown(self.data, "postgres", "postgres")
            shutil.chown(base, "postgres", "postgres")
            self.as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        subprocess.run(
            [
                *self.as_postgres,
                self.binaries / "initdb",
                *("-D", self.data, "-U", "mooring", "-A", "trust", "-N"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            env=self.environment,
            cwd=base,
        )

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        with (self.base / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.as_postgres,
                    self.binaries / "postgres",
                    "-D",
                    self.data,
                    *("-c", "listen_addresses="),
                    *("-c", f"unix_socket_directories={self.base}"),
                    *("-c", "fsync=off"),
                ],
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.base,
            )
        deadline = time.monotonic() + 30
        ready = [self.binaries / "pg_isready", "-q", "-h", self.base, "-U", "mooring"]
        while subprocess.run(ready, check=False, env=self.environment).returncode != 0:
            assert self.process.poll() is None, (self.base / "log").read_text()
            assert time.monotonic() < deadline, (self.base / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server and every connection to it; data and log stay."""
        if self.process is not None:
            # SIGINT: do not wait for clients
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=30)
            self.process = None

    def remove(self) -> None:
        """End the server and remove its directory."""
        self.stop()
        shutil.rmtree(self.base)

    def create(self, name: str) -> str:
        """Create an empty database; returns its URL."""
        import psycopg

        where = f"host={self.base} user=mooring dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://mooring@/{name}?host={self.base}"

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        import psycopg

        where = f"host={self.base} user=mooring dbname=postgres"
        with psycopg.connect(where, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server that the session shares: do not stop it."""
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgresql_server(postgresql: PostgreSQL) -> Path:
    """The socket directory of that server."""
    return postgresql.base


@pytest.fixture(scope="module")
def own_postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server of a test module's own, running, to be stopped and started at will."""
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A new SQLite database with the schema in place."""
    url = f"sqlite:///{tmp_path}/mooring.db"
    upgrade(url)
    return url


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """A new PostgreSQL database with the schema in place."""
    name = f"test_{os.getpid()}_{time.monotonic_ns()}"
    url = postgresql.create(name)
    upgrade(url)
    yield url
    postgresql.drop(name)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database with the schema in place, of each engine in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole paths run one after another in one process: they share 169.254.169.254."""
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.xdist_group("whole paths"))
