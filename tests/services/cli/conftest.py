"""A real operators' API behind mutual TLS on loopback, for the command to talk to."""

import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import structlog.testing
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from middleware.client_certificate import ClientCertificate
from middleware.errors import Errors
from middleware.gatekeeper import Gatekeeper, parse_trusted
from middleware.request_id import RequestId
from services.ca.hierarchy import create_hierarchy
from services.cli import client
from services.cli.main import main
from services.core.database import Database, upgrade
from services.core.identity import ADMINS, OPERATORS, PROJECT_PREFIX
from services.metadata import operators
from services.metadata.operators import Operators
from services.metadata.store import Filters, Store

USERS = {"ann": ADMINS, "alice": OPERATORS, "bob": PROJECT_PREFIX + "p1"}


class Handler(WSGIRequestHandler):
    """Hands the verified certificate on as NGINX does."""

    def get_environ(self) -> WSGIEnvironment:
        """Add the two headers that NGINX sets."""
        environ: WSGIEnvironment = super().get_environ()
        der = self.connection.getpeercert(binary_form=True)
        pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
        environ["HTTP_X_SSL_CLIENT_VERIFY"] = "SUCCESS"
        environ["HTTP_X_SSL_CLIENT_CERT"] = quote(pem)
        return environ

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


class ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection; the TLS handshake happens there, not in accept."""

    daemon_threads = True
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the handshake, then serve."""
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                self.RequestHandlerClass(wrapped, client_address, self)
        except OSError:
            pass  # a client without a certificate, or one that hung up

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write nothing: tests break connections on purpose."""


class Server:
    """The API; ``fault`` may answer, or break, a request in its place or after it."""

    def __init__(self, directory: Path, database: Database) -> None:
        self.store = Store(database)
        self.requests: list[str] = []
        self.before: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes] | None] | None = (
            None
        )
        self.after: Callable[[WSGIEnvironment], None] | None = None
        self.directory = directory
        hierarchy = create_hierarchy("Test")
        hierarchy.write(directory)
        hierarchy.issue_server(["localhost"]).write(directory, "server")
        for user, group in USERS.items():
            hierarchy.issue_client(user, [group]).write(directory, user)
        app = Operators(self.store)
        pipeline = ClientCertificate(app, True)
        self.app = Gatekeeper(RequestId(Errors(pipeline, "json")), *parse_trusted("127.0.0.1"))
        self.http = ThreadingServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(directory / "server.crt", directory / "server.key")
        context.load_verify_locations(directory / "root.crt")
        context.verify_mode = ssl.CERT_REQUIRED
        self.http.context = context
        self.http.set_app(self.serve)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://localhost:{self.http.server_port}"

    def serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Note the request, let the fault act, else answer."""
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self.before is not None:
            faulty = self.before(environ, start_response)
            if faulty is not None:
                return faulty
        answer = self.app(environ, start_response)
        if self.after is not None:
            self.after(environ)
        return answer

    def close(self) -> None:
        """Stop listening."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(10)


class Mooring:
    """The command as a user would run it against the server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def environment(self, user: str) -> dict[str, str]:
        """The variables that name the server and this user's certificate."""
        directory = self.server.directory
        return {
            "MOORING_URL": self.server.url,
            "MOORING_CERT": str(directory / f"{user}.crt"),
            "MOORING_KEY": str(directory / f"{user}.key"),
            "MOORING_CACERT": str(directory / "root.crt"),
        }

    def run(
        self,
        *arguments: str,
        user: str = "alice",
        code: int = 0,
        stdin: bytes | str | None = None,
        **environment: str,
    ) -> Result:
        """Run the command; it has to end with this exit code."""
        result = CliRunner().invoke(
            main, arguments, input=stdin, env={**self.environment(user), **environment}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, (result.stdout, result.stderr)
        return result

    def failure(self, *arguments: str, code: int, **more: Any) -> str:
        """Run the command, which has to fail with this code and one line; return the line."""
        result = self.run(*arguments, code=code, **more)
        assert result.stdout == ""
        line = result.stderr.strip()
        assert "\n" not in line, line
        assert line.startswith("Error: ")
        return line.removeprefix("Error: ")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module, with a database and certificates of its own."""
    directory = tmp_path_factory.mktemp("server")
    upgrade(f"sqlite:///{directory}/mooring.db")
    database = Database(f"sqlite:///{directory}/mooring.db")
    made = Server(directory, database)
    with pytest.MonkeyPatch.context() as patch:
        # The server's log lines would go where the command's output goes: one process runs both.
        patch.setattr(operators, "LOG", structlog.testing.CapturingLogger())
        yield made
    made.close()
    database.close()


@pytest.fixture
def mooring(server: Server, monkeypatch: pytest.MonkeyPatch) -> Mooring:
    """The command against an empty server without faults."""
    page = server.store.list(Filters(), 1000)
    assert page is not None
    for item in page.items:
        stored = server.store.get(item.instance.id)
        assert stored is not None
        server.store.delete(stored)
    server.before = server.after = None
    monkeypatch.setattr(client, "PAUSE", 0.01)
    server.requests.clear()
    return Mooring(server)
