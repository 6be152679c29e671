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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Path]:
    """The socket directory of a PostgreSQL server that this session made and ends."""
    if not POSTGRES_BIN:
        pytest.fail("PostgreSQL is not installed: tools/test installs it")
    binaries = POSTGRES_BIN[-1]
    # Not below pytest's directory: the next pytest to start closes that one to other users.
    base = Path(tempfile.mkdtemp(prefix="mooring-postgresql-"))
    base.chmod(0o755)
    data = base / "data"
    data.mkdir()
    as_postgres: list[str] = []
    if os.getuid() == 0:
        # PostgreSQL refuses to run as root
        shutil.chown(data, "postgres", "postgres")
        shutil.chown(base, "postgres", "postgres")
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    subprocess.run(
        [*as_postgres, binaries / "initdb", "-D", data, "-U", "mooring", "-A", "trust", "-N"],
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment,
        cwd=base,
    )
    with (base / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *as_postgres,
                binaries / "postgres",
                "-D",
                data,
                *("-c", "listen_addresses="),
                *("-c", f"unix_socket_directories={base}"),
                *("-c", "fsync=off"),
            ],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=base,
        )
    try:
        deadline = time.monotonic() + 30
        ready = [binaries / "pg_isready", "-q", "-h", base, "-U", "mooring"]
        while subprocess.run(ready, check=False, env=environment).returncode != 0:
            assert server.poll() is None, (base / "log").read_text()
            assert time.monotonic() < deadline, (base / "log").read_text()
            time.sleep(0.05)
        yield base
    finally:
        # SIGINT: do not wait for clients
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        shutil.rmtree(base)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A new SQLite database with the schema in place."""
    url = f"sqlite:///{tmp_path}/mooring.db"
    upgrade(url)
    return url


@pytest.fixture
def postgresql_url(postgresql_server: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new PostgreSQL database with the schema in place."""
    import psycopg

    name = f"test_{os.getpid()}_{time.monotonic_ns()}"
    where = f"host={postgresql_server} user=mooring"
    with psycopg.connect(f"{where} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = f"postgresql+psycopg://mooring@/{name}?host={postgresql_server}"
    upgrade(url)
    yield url
    with psycopg.connect(f"{where} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database with the schema in place, of each engine in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))
