"""`mooring cert`, and `mooring ca token`, against the real API behind TLS on loopback."""

import io
import json
import re
import socketserver
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest
import structlog.testing
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from middleware.client_certificate import ClientCertificate
from middleware.errors import Errors
from middleware.gatekeeper import Gatekeeper, parse_trusted
from middleware.request_id import RequestId
from services.ca import api, ceremony, profile_file
from services.ca.acme.keys import key_routes
from services.ca.acme.store import Store
from services.ca.api import CertificateApi
from services.ca.authority import Actor, Authority
from services.ca.files import write_certificates, write_key
from services.ca.keys import generate_key, key_type
from services.ca.keystore import Urls
from services.ca.ledger import Ledger
from services.ca.request import make_request
from services.cli import cert, cert_store, client
from services.cli.main import main
from services.core.database import Database, upgrade
from services.core.edge import Request, Router
from services.core.identity import ADMINS, OPERATORS
from services.core.policy import enforce

FILES = {"key.pem", "cert.pem", "chain.pem", "fullchain.pem", "request.json"}
COMMAND = Actor("test", frozenset({ADMINS}), "", "", "command")


class Handler(WSGIRequestHandler):
    """Hands a verified certificate on as NGINX does, and none if there is none."""

    def get_environ(self) -> WSGIEnvironment:
        """Add the two headers that NGINX sets."""
        environ: WSGIEnvironment = super().get_environ()
        der = self.connection.getpeercert(binary_form=True)
        environ["HTTP_X_SSL_CLIENT_VERIFY"] = "SUCCESS" if der else "NONE"
        if der:
            pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
            environ["HTTP_X_SSL_CLIENT_CERT"] = quote(pem)
        return environ

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


class TlsServer(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each connection; client certificates are optional."""

    daemon_threads = True
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the handshake, then serve."""
        try:
            with self.context.wrap_socket(request, server_side=True) as wrapped:
                self.RequestHandlerClass(wrapped, client_address, self)
        except OSError:
            pass  # a client that hung up, or whose certificate is no client's

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Write nothing: tests break connections on purpose."""


class Ca:
    """The certificate service's API over a CA of its own; ``fault`` may answer in its place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        upgrade(f"sqlite:///{directory}/mooring.db")
        self.database = Database(f"sqlite:///{directory}/mooring.db")
        self.ledger = Ledger(self.database)
        authorities = ceremony.create(
            directory / "ca", "Test", passphrase=None, urls=Urls(), now=datetime.now(UTC)
        )
        self.authority = Authority(authorities, self.ledger, profile_file.SHIPPED)
        self.root = directory / "ca" / "root.crt"
        self.issue("server", "server", dns_names=["localhost"])
        self.issue("ann", "client", common_name="ann", organizations=[ADMINS])
        self.issue("alice", "client", common_name="alice", organizations=[OPERATORS])
        self.requests: list[str] = []
        self.fault: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes] | None] | None
        self.fault = None
        self.lose_answer = False
        app = CertificateApi(self.authority, bundle_pem=authorities.bundle_pem())

        def authorise(request: Request, rule: str) -> Actor:
            caller = app._caller(request.environ)
            enforce(rule, caller.client)
            return caller.actor

        keys = Router(key_routes(Store(self.database), self.ledger, ["server"], authorise))

        def either(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            chosen: WSGIApplication = keys if "/acme/" in environ["PATH_INFO"] else app
            return chosen(environ, start_response)

        pipeline = ClientCertificate(either, False)
        self.app = Gatekeeper(RequestId(Errors(pipeline, "json")), *parse_trusted("127.0.0.1"))
        self.http = TlsServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(directory / "server.crt", directory / "server.key")
        context.load_verify_locations(self.root)
        context.verify_mode = ssl.CERT_OPTIONAL
        self.http.context = context
        self.http.set_app(self.serve)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://localhost:{self.http.server_port}"

    def issue(self, name: str, profile: str, **names: Any) -> None:
        """Write NAME.key and NAME.crt, issued past the API."""
        key = generate_key()
        issued = self.authority.issue(profile, make_request(key.public_key(), **names), COMMAND)
        write_key(self.directory / f"{name}.key", key)
        write_certificates(self.directory / f"{name}.crt", issued.certificate, *issued.chain)

    def serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Note the request, let the fault act, else answer."""
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        # as NGINX does: a body that nobody reads would break the connection
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        if self.fault is not None:
            answer = self.fault(environ, start_response)
            if answer is not None:
                return answer
        whole = list(self.app(environ, start_response))
        if self.lose_answer:
            self.lose_answer = False
            raise ConnectionAbortedError
        return whole

    def close(self) -> None:
        """Stop listening."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(10)
        self.database.close()


class Mooring:
    """The command as a user would run it."""

    def __init__(self, ca: Ca, directory: Path) -> None:
        self.ca = ca
        self.directory = directory

    def run(self, *arguments: str, code: int = 0, user: str | None = "ann", **env: str) -> Result:
        """Run the command; it has to end with this exit code."""
        environment: dict[str, str | None] = {
            "MOORING_CA_URL": self.ca.url,
            "MOORING_CACERT": str(self.ca.root),
            "MOORING_CERT_DIRECTORY": str(self.directory),
            "MOORING_CERT": None,
            "MOORING_KEY": None,
            **env,
        }
        if user is not None:
            environment["MOORING_CERT"] = str(self.ca.directory / f"{user}.crt")
            environment["MOORING_KEY"] = str(self.ca.directory / f"{user}.key")
        result = CliRunner().invoke(main, arguments, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, (result.stdout, result.stderr)
        return result

    def failure(self, *arguments: str, code: int, **more: Any) -> str:
        """Run the command, which has to fail with this code and one line; return the line."""
        result = self.run(*arguments, code=code, **more)
        line = result.stderr.strip()
        assert "\n" not in line, line
        return line

    def certificate(self, name: str) -> x509.Certificate:
        """The certificate in use."""
        return x509.load_pem_x509_certificate((self.directory / name / "cert.pem").read_bytes())


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ca]:
    """One certificate service for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "LOG", structlog.testing.CapturingLogger())
        made = Ca(tmp_path_factory.mktemp("service"))
        yield made
    made.close()


@pytest.fixture
def mooring(ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mooring:
    """The command with an empty directory, and a service without faults."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    ca.requests.clear()
    ca.fault = None
    ca.lose_answer = False
    return Mooring(ca, tmp_path / "certificates")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Move the command's clock; the service's stays."""

    def move(by: timedelta) -> None:
        monkeypatch.setattr(cert_store, "present", lambda: datetime.now(UTC) + by)

    return move


def assert_whole(path: Path, root: Path) -> None:
    """Key, certificate, chain and full chain belong together, and the key is its owner's alone."""
    certificate = x509.load_pem_x509_certificate((path / "cert.pem").read_bytes())
    key = load_pem_private_key((path / "key.pem").read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    assert stat.S_IMODE((path / "key.pem").stat().st_mode) == 0o600
    cert_pem, chain_pem = (path / "cert.pem").read_bytes(), (path / "chain.pem").read_bytes()
    assert (path / "fullchain.pem").read_bytes() == cert_pem + chain_pem
    done = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-CAfile", root),
            *("-untrusted", path / "chain.pem", path / "cert.pem"),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_request_writes_what_it_says(mooring: Mooring) -> None:
    """Key, certificate, chain and full chain, each named with what to do with it."""
    out = mooring.run("cert", "request", "web", "--dns", "www.example.com", "--ip", "192.0.2.7")
    path = mooring.directory / "web"
    assert {each.name for each in path.iterdir()} == FILES
    assert_whole(path, mooring.ca.root)
    for name in FILES - {"request.json"}:
        assert f"wrote {path / name}: " in out.stdout
    names = mooring.certificate("web").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["www.example.com"]
    assert mooring.ca.requests == ["POST /v1/certificates"]


def test_run_twice_it_asks_nobody_and_changes_nothing(mooring: Mooring) -> None:
    """Idempotent: the second time nothing is sent and no file differs."""
    arguments = ("cert", "request", "web", "--dns", "www.example.com")
    mooring.run(*arguments)
    before = {path: path.read_bytes() for path in (mooring.directory / "web").iterdir()}
    mooring.ca.requests.clear()
    assert mooring.run(*arguments).stdout.startswith("already there: ")
    assert mooring.ca.requests == []
    assert {path: path.read_bytes() for path in (mooring.directory / "web").iterdir()} == before


def test_other_names_are_a_new_certificate(mooring: Mooring) -> None:
    """Changed names, key type or lifetime are asked for at once; another order of names is not."""
    run = ("cert", "request", "web")
    mooring.run(*run, "--dns", "a.example.com")
    first = mooring.certificate("web")
    mooring.run(*run, "--dns", "A.example.com")
    assert mooring.certificate("web") == first
    mooring.run(*run, "--dns", "a.example.com", "--dns", "b.example.com")
    second = mooring.certificate("web")
    assert second != first
    mooring.run(*run, "--dns", "a.example.com", "--key-type", "p384")
    third = mooring.certificate("web")
    assert key_type(third.public_key()).value == "p384"  # type: ignore[arg-type]  # it is ours


def test_a_token_enrols_and_the_certificate_renews_itself(
    mooring: Mooring, later: Callable[[timedelta], None]
) -> None:
    """A host without any identity: token, certificate, then renewal by mutual TLS with itself."""
    secret = mooring.run("ca", "token", "create", "--profile", "host", "--name", "host7.example")
    token = mooring.directory.parent / "token"
    token.write_text(secret.stdout)
    arguments = ("cert", "request", "host7.example", "--profile", "host")
    mooring.run(*arguments, "--token-file", str(token), user=None)
    token.unlink()
    again = mooring.run(*arguments, "--token-file", str(token), user=None)
    assert again.stdout.startswith("already there: ")
    first = mooring.certificate("host7.example")
    assert first.subject.rfc4514_string() in (
        "CN=host7.example,O=mooring:hosts",
        "O=mooring:hosts,CN=host7.example",
    )
    mooring.ca.requests.clear()
    assert "not due" in mooring.run("cert", "renew", user=None).stdout
    assert mooring.ca.requests == []
    later(timedelta(days=5))
    mooring.run(*arguments, "--token-file", str(token), user=None)  # as `cert renew`
    second = mooring.certificate("host7.example")
    assert mooring.ca.requests == ["POST /v1/certificates/renew"]
    assert second.subject == first.subject
    assert second.public_key() != first.public_key()
    assert_whole(mooring.directory / "host7.example", mooring.ca.root)


def test_renew_before_decides_when(mooring: Mooring, later: Callable[[timedelta], None]) -> None:
    """A third of the life by default, or what was said; `request` renews then, too."""
    arguments = ("cert", "request", "web", "--dns", "a.example.com")
    mooring.run(*arguments, "--lifetime", "30d", "--renew-before", "2d")
    first = mooring.certificate("web")
    later(timedelta(days=27, hours=20))
    mooring.run(*arguments, "--lifetime", "30d", "--renew-before", "2d")
    assert mooring.certificate("web") == first
    mooring.run(*arguments, "--lifetime", "30d")  # a third: it has been due for a week
    assert mooring.certificate("web") != first


def test_a_servers_certificate_is_renewed_by_the_identity_that_asked(
    mooring: Mooring, later: Callable[[timedelta], None]
) -> None:
    """No server accepts serverAuth as a client; the timer uses the identity that was remembered."""
    mooring.run("cert", "request", "web", "--dns", "a.example.com")
    later(timedelta(days=25))
    mooring.ca.requests.clear()
    mooring.run("cert", "renew", user=None, MOORING_CA_URL="", MOORING_CACERT="")
    assert mooring.ca.requests == ["POST /v1/certificates"]


def test_a_lost_answer_costs_no_token(mooring: Mooring) -> None:
    """The key of the attempt is kept, so the second gets the certificate that the first was for."""
    made = mooring.run("ca", "token", "create", "--profile", "host", "--name", "h1.example")
    arguments = ("cert", "request", "h1.example", "--profile", "host")
    mooring.ca.lose_answer = True
    mooring.failure(*arguments, code=3, user=None, MOORING_CA_TOKEN=made.stdout.strip())
    assert not mooring.ca.lose_answer
    assert not (mooring.directory / "h1.example").exists()
    mooring.run(*arguments, user=None, MOORING_CA_TOKEN=made.stdout.strip())
    assert_whole(mooring.directory / "h1.example", mooring.ca.root)
    rows = json.loads(mooring.run("cert", "list", "--name", "h1.example", "-f", "json").stdout)
    assert len(rows) == 1


def test_a_refusal_leaves_what_is_in_use(mooring: Mooring) -> None:
    """Names that the service refuses: its sentence with the field; what is in use stays."""
    mooring.run("cert", "request", "web", "--dns", "a.example.com")
    before = {path: path.read_bytes() for path in (mooring.directory / "web").iterdir()}
    said = mooring.failure(
        "cert", "request", "web", "--dns", "a.example.com", "--uri", "spiffe://x.example/a", code=1
    )
    assert "/uris/0" in said
    said = mooring.failure("cert", "request", "web", "--dns", "under_score.example", code=2)
    assert "/dns_names/0" in said
    mooring.failure("cert", "request", "mallory", "--profile", "client", user="alice", code=6)
    assert {path: path.read_bytes() for path in (mooring.directory / "web").iterdir()} == before


def test_nobody_asking_and_wrong_answers_are_said(mooring: Mooring) -> None:
    """No identity, no service, no certificate in the answer, another key's certificate."""
    web = ("cert", "request", "web", "--dns", "a.example.com")
    assert "who asks?" in mooring.failure(*web, user=None, code=2)
    assert "--ca-url" in mooring.failure(*web, code=2, MOORING_CA_URL="")
    body = [b"nonsense"]

    def other(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("201 Created", [("Content-Type", "application/x-pem-file")])
        return body

    mooring.ca.fault = other
    assert "is not a certificate with its chain" in mooring.failure(*web, code=3)
    body = [(mooring.ca.directory / "ann.crt").read_bytes()]
    assert "is for another key" in mooring.failure(*web, code=1)
    assert not (mooring.directory / "web").exists()
    mooring.ca.fault = None
    said = mooring.failure(*web, code=6, user=None, MOORING_CA_TOKEN="x")
    assert "the enrolment token is not known" in said
    for wrong in ("../web", ".web", "a/b"):
        assert "a name is" in mooring.failure("cert", "request", wrong, "--dns", "a.b.c", code=1)


def test_a_reload_that_fails_is_run_again(mooring: Mooring) -> None:
    """The certificate stays, the exit code says so, and the next run reloads without a renewal."""
    mark = mooring.directory.parent / "mark"
    command = f"/usr/bin/test -e {mark}"
    web = ("cert", "request", "web", "--dns", "a.example.com", "--reload-command", command)
    assert "ended with 1" in mooring.failure(*web, code=1)
    first = mooring.certificate("web")
    assert "ended with 1" in mooring.failure(*web, code=1)
    mark.write_text("")
    assert f"ran {command}" in mooring.run(*web).stdout
    assert "ran" not in mooring.run(*web).stdout
    assert mooring.certificate("web") == first
    wrong = (*web[:-1], "/nonexistent/program")
    said = mooring.failure(*wrong, "--dns", "b.example.com", code=1)
    assert "/nonexistent/program: No such file or directory" in said
    assert "--reload-command" in mooring.failure(*web[:-1], "'", code=2)


def test_one_failure_does_not_stop_the_other_renewals(mooring: Mooring) -> None:
    """`renew` goes on; its exit code is that of the failure."""
    mooring.run("cert", "request", "b", "--dns", "b.example.com")
    mooring.run("cert", "request", "a", "--dns", "a.example.com")
    (mooring.directory / "a" / "request.json").write_text("{}")
    first = mooring.certificate("b")
    said = mooring.failure("cert", "renew", "--force", code=1)
    assert said.startswith("Error: a: ")
    assert mooring.certificate("b") != first
    assert "there is no certificate c" in mooring.failure("cert", "renew", "c", code=4)


@pytest.mark.parametrize("step", range(1, 9))
def test_a_failure_at_any_write_leaves_one_generation(
    mooring: Mooring, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All or nothing: what is in use is the old or the new generation, and a further run works."""
    mooring.run("cert", "request", "web", "--dns", "a.example.com")
    old = mooring.certificate("web")
    real, count = cert_store.files._write, [0]

    def failing(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
        count[0] += 1
        if count[0] == step:
            raise OSError(28, "No space left on device")
        real(path, data, mode, replace=replace)

    monkeypatch.setattr(cert_store.files, "_write", failing)
    renewed = ("cert", "renew", "--force")
    # a renewal writes six files: key, what is wanted, three of certificates, how it is kept
    if step <= 6:
        assert "No space left" in mooring.failure(*renewed, code=1)
        assert mooring.certificate("web") == old
    else:
        mooring.run(*renewed)
        assert count[0] == 6
    assert_whole(mooring.directory / "web", mooring.ca.root)
    monkeypatch.setattr(cert_store.files, "_write", real)
    mooring.run(*renewed)
    assert mooring.certificate("web") != old
    assert_whole(mooring.directory / "web", mooring.ca.root)


def test_the_generation_before_is_kept_and_no_older(mooring: Mooring) -> None:
    """Two generations stay on disk: what is in use, and what was before it."""
    mooring.run("cert", "request", "web", "--dns", "a.example.com")
    for _ in range(3):
        mooring.run("cert", "renew", "--force")
    found = sorted(path.name for path in (mooring.directory / ".web").iterdir() if path.is_dir())
    assert found == ["0003", "0004"]
    assert (mooring.directory / "web").readlink() == Path(".web/0004")


def test_a_timer_and_a_person_at_once_make_one(mooring: Mooring) -> None:
    """Whoever comes second waits, and finds that it is there already."""
    store = cert_store.CertificateStore(mooring.directory)
    order: list[str] = []
    inside, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with store.locked("web"):
            inside.set()
            may_leave.wait(30)
            order.append("first")

    def second() -> None:
        with cert_store.CertificateStore(mooring.directory).locked("web"):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    with store.locked("other"):  # another certificate is nobody's concern
        may_leave.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "second"]


def test_what_is_not_ours_is_not_touched(mooring: Mooring) -> None:
    """A directory that stands where a certificate would go stays as it is."""
    (mooring.directory / "web").mkdir(parents=True)
    said = mooring.failure("cert", "request", "web", "--dns", "a.example.com", code=1)
    assert "is not one of ours" in said
    assert mooring.ca.requests == []


def test_a_bundle_for_haproxy(mooring: Mooring) -> None:
    """--bundle adds one file with full chain and key, 0600."""
    mooring.run("cert", "request", "web", "--dns", "a.example.com", "--bundle")
    path = mooring.directory / "web"
    data = (path / "bundle.pem").read_bytes()
    assert data == (path / "fullchain.pem").read_bytes() + (path / "key.pem").read_bytes()
    assert stat.S_IMODE((path / "bundle.pem").stat().st_mode) == 0o600


def test_self_signed_asks_nobody(mooring: Mooring, later: Callable[[timedelta], None]) -> None:
    """One command, no service; verified by itself alone, idempotent, renewed when due."""
    arguments = ("cert", "self-signed", "local", "--dns", "*.example.local")
    arguments = (*arguments, "--dns", "example.local")
    mooring.run(*arguments, user=None)
    path = mooring.directory / "local"
    first = mooring.certificate("local")
    for host in ("example.local", "www.example.local"):
        done = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
                *("-verify_hostname", host, "-CAfile", path / "cert.pem", path / "cert.pem"),
            ],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "already there" in mooring.run(*arguments, user=None).stdout
    later(timedelta(days=300))
    mooring.run("cert", "renew", user=None)
    assert mooring.certificate("local") != first
    assert mooring.ca.requests == []
    names = ("cert", "self-signed", "wrong", "--dns", "*.local")
    assert "/dns_names/0" in mooring.failure(*names, code=2)


def test_list_show_revoke_hold_and_release(mooring: Mooring) -> None:
    """What the service has issued, by serial, fingerprint and file; revoked for a reason."""
    mooring.run("cert", "request", "web", "--dns", "shown.example.com")
    file = str(mooring.directory / "web" / "cert.pem")
    table = mooring.run("cert", "list", "--name", "shown.example.com").stdout
    assert "shown.example.com" in table
    rows = json.loads(
        mooring.run("cert", "list", "--name", "shown.example.com", "-f", "json").stdout
    )
    serial = rows[0]["serial"]
    assert serial == f"{mooring.certificate('web').serial_number:040x}"
    for which in (serial, rows[0]["fingerprint"], file):
        found = json.loads(mooring.run("cert", "show", which, "-f", "json").stdout)
        assert found["serial"] == serial
    held = mooring.run("cert", "revoke", file, "--reason", "certificateHold").stdout
    assert held == f"{serial} is held (certificateHold)\n"
    assert mooring.run("cert", "release", file).stdout == f"{serial} is issued\n"
    for _ in range(2):
        gone = mooring.run("cert", "revoke", serial, "--reason", "keyCompromise").stdout
        assert gone == f"{serial} is revoked (keyCompromise)\n"
    mooring.failure("cert", "release", serial, code=5)
    listed = mooring.run("cert", "list", "--state", "revoked", "-f", "json").stdout
    assert serial in listed
    mooring.failure("cert", "show", "0" * 40, code=4)
    mooring.failure("cert", "revoke", str(mooring.ca.directory / "ann.key"), code=2)


def test_a_list_of_many_pages_is_one(mooring: Mooring, monkeypatch: pytest.MonkeyPatch) -> None:
    """The links from page to page are followed to the end."""
    from services.ca import wire

    monkeypatch.setattr(wire, "PAGE_DEFAULT", 2)
    for number in range(3):
        mooring.run("cert", "request", f"p{number}", "--dns", "paged.example.com")
    rows = json.loads(mooring.run("cert", "list", "-f", "json").stdout)
    assert len(rows) == len({row["serial"] for row in rows}) >= 6
    assert len([each for each in mooring.ca.requests if each.startswith("GET")]) >= 3


def test_tokens_are_made_listed_and_deleted(mooring: Mooring) -> None:
    """The secret is shown once; a deleted token enrols nobody."""
    made = mooring.run(
        "ca", "token", "create", "--profile", "server", "--dns", "t.example.com",
        "--lifetime", "10m", "-f", "json",
    )  # fmt: skip
    document = json.loads(made.stdout)
    listed = mooring.run("ca", "token", "list", "-f", "json").stdout
    assert document["id"] in listed
    assert document["token"] not in listed
    assert document["id"] in mooring.run("ca", "token", "list").stdout
    assert mooring.run("ca", "token", "delete", document["id"]).stdout == (
        f"deleted {document['id']}\n"
    )
    request = ("cert", "request", "t", "--dns", "t.example.com")
    mooring.failure(*request, user=None, code=6, MOORING_CA_TOKEN=document["token"])
    mooring.failure("ca", "token", "create", "--profile", "client", "--name", "eve",
                    user="alice", code=6)  # fmt: skip
    for wrong in ("", "a b\nX-Header: 1", "\N{SNOWMAN}"):
        path = mooring.directory.parent / "wrong"
        path.write_text(wrong)
        said = mooring.failure(*request, "--token-file", str(path), user=None, code=2)
        assert "token" in said


def test_keys_for_external_accounts(mooring: Mooring) -> None:
    """Made with rules and shown once; listed without the secret; deleted."""
    made = mooring.run(
        *("ca", "acme-key", "create", "--dns", "example.com", "--wildcards"),
        *("--network", "192.0.2.0/24", "--lifetime", "7d", "-f", "json"),
    )
    document = json.loads(made.stdout)
    assert (document["dns"], document["wildcards"]) == (["example.com"], True)
    assert document["networks"] == ["192.0.2.0/24"]
    assert datetime.fromisoformat(document["expires"]) > datetime.now(UTC) + timedelta(days=6)
    listed = mooring.run("ca", "acme-key", "list", "-f", "json").stdout
    assert document["id"] in listed
    assert document["key"] not in listed
    assert document["id"] in mooring.run("ca", "acme-key", "list").stdout
    mooring.run("ca", "acme-key", "delete", document["id"])
    mooring.failure("ca", "acme-key", "delete", document["id"], code=4)
    assert "--wildcards belongs to --dns" in mooring.run(
        "ca", "acme-key", "create", "--wildcards", code=2
    ).stderr  # fmt: skip
    said = mooring.failure("ca", "acme-key", "create", "--profile", "client", code=1)
    assert "/profile" in said


class Stop(Exception):
    """Ends a watcher that would go on for ever."""


def test_watch_renews_each_when_due_and_tries_again(
    mooring: Mooring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sleeps until the next is due, less its jitter; after a failure a minute, then two."""
    for name in ("a", "b"):
        mooring.run("cert", "request", name, "--dns", f"{name}.example.com", "--lifetime", "1h")
    firsts = {name: mooring.certificate(name) for name in ("a", "b")}
    moved = [timedelta()]
    slept: list[float] = []
    mooring.ca.requests.clear()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 1:
            assert mooring.ca.requests == []  # nothing was due
            moved[0] = timedelta(minutes=50)
            mooring.ca.fault = away
        elif len(slept) == 2:
            moved[0] += timedelta(seconds=seconds)
        elif len(slept) == 3:
            mooring.ca.fault = None
        else:
            raise Stop

    def away(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("503 Service Unavailable", [("Content-Type", "application/json")])
        return [b"{}"]

    monkeypatch.setattr(cert_store, "present", lambda: datetime.now(UTC) + moved[0])
    monkeypatch.setattr(cert, "_sleep", sleep)
    with pytest.raises(Stop):
        mooring.run("cert", "watch")
    # 55 minutes are left at first (it began five minutes ago), and it is due with 20 to go
    assert 30 * 60 < slept[0] <= 35 * 60
    assert slept[1:3] == [60.0, 120.0]
    for name, first in firsts.items():
        assert mooring.certificate(name) != first


def test_jitter_is_small_and_stays_the_same(mooring: Mooring) -> None:
    """At most a tenth of --renew-before, one value for a certificate, several for several."""
    held = []
    for number in range(4):
        mooring.run("cert", "request", f"j{number}", "--dns", "j.example.com")
        found = cert_store.CertificateStore(mooring.directory).read(f"j{number}")
        assert found is not None
        held.append(found)
    spread = [cert._jitter(each) for each in held]
    assert spread == [cert._jitter(each) for each in held]
    assert len(set(spread)) == 4
    for each, early in zip(held, spread, strict=True):
        assert timedelta() <= early <= each.renew_before / 10


def test_nothing_secret_is_printed(mooring: Mooring) -> None:
    """Neither a key nor a token stands in any output of a request."""
    made = mooring.run("ca", "token", "create", "--profile", "host", "--name", "quiet.example")
    token = made.stdout.strip()
    result = mooring.run(
        "cert", "request", "quiet.example", "--profile", "host", user=None, MOORING_CA_TOKEN=token
    )
    assert token not in result.output
    assert not re.search("PRIVATE", result.output)
    kept = (mooring.directory / "quiet.example" / "request.json").read_text()
    assert token not in kept
