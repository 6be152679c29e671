"""Real ACME clients against the shipped service behind gunicorn and NGINX.

certbot, dehydrated, lego and uacme are Debian's. NGINX serves a certificate of our own authority,
which is all that the clients trust. Names come from a name server of this module, challenges are
answered by the clients' own servers or by those below; all of it on loopback and high ports.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from sqlalchemy import select
from stand import ETC, LOOPBACK, Process, free_port, wait_for

from services.ca import ceremony, keystore
from services.ca.acme.jws import encode
from services.ca.acme.rules import KeyRules
from services.ca.acme.store import Store
from services.ca.hierarchy import Credential
from services.ca.issue import issue
from services.ca.keys import generate_key
from services.ca.ledger import Ledger, serial_text
from services.ca.profiles import SERVER, NameRules
from services.ca.request import make_request
from services.core import schema
from services.core.database import Database, upgrade

pytestmark = pytest.mark.e2e


class NameServer(socketserver.ThreadingUDPServer):
    """Authoritative for acme.test: every name is 127.0.0.1, TXT and aliases from tables."""

    daemon_threads = True

    def __init__(self, texts: Path) -> None:
        super().__init__((LOOPBACK, 0), _Query)
        self.texts = texts
        self.aliases: dict[str, str] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.server_address[1]}"

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        if not name.endswith(".acme.test"):
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif name in self.aliases:
            # the alias alone, as an authoritative server answers for a target it does not have
            response.answer.append(
                dns.rrset.from_text(question.name, 1, "IN", "CNAME", self.aliases[name] + ".")
            )
        elif question.rdtype == dns.rdatatype.A and not name.startswith("_"):
            response.answer.append(dns.rrset.from_text(question.name, 1, "IN", "A", LOOPBACK))
        elif question.rdtype == dns.rdatatype.TXT and (self.texts / name).is_dir():
            values = [f'"{file.name}"' for file in (self.texts / name).iterdir()]
            if values:
                response.answer.append(dns.rrset.from_text(question.name, 1, "IN", "TXT", *values))
        return response


class _Query(socketserver.BaseRequestHandler):
    server: NameServer

    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(self.server.answer(dns.message.from_wire(data)).to_wire(), self.client_address)


class AlpnServer(socketserver.ThreadingTCPServer):
    """Answers tls-alpn-01 with the certificates that dehydrated lays into a directory."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, directory: Path) -> None:
        super().__init__((LOOPBACK, port), _Handshake)
        self.directory = directory
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.sni_callback = self.choose
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def choose(self, stream: ssl.SSLObject, name: str, _context: ssl.SSLContext) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["acme-tls/1"])
        context.load_cert_chain(
            self.directory / f"{name}.crt.pem", self.directory / f"{name}.key.pem"
        )
        stream.context = context


class _Handshake(socketserver.BaseRequestHandler):
    server: AlpnServer

    def handle(self) -> None:
        try:
            with self.server.context.wrap_socket(self.request, server_side=True) as stream:
                stream.recv(1)
        except OSError:
            pass


@dataclass
class AcmeStand:
    """The service on loopback, and what clients need around it."""

    directory: Path
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.http_port, self.tls_port = free_port(), free_port()
        self.port, self.public_port = free_port(), free_port()
        self.url = f"https://localhost:{self.port}/acme"
        self.root = self.directory / "ca" / "root.crt"
        self.names = NameServer(self.directory / "texts")
        for name in ("texts", "etc/pki", "run", "log", "www/.well-known/acme-challenge"):
            (self.directory / name).mkdir(parents=True)

    def write(self) -> None:
        etc, run = self.directory / "etc", self.directory / "run"
        ceremony.create_passphrase(etc / "passphrase")
        authorities = ceremony.create(
            self.directory / "ca",
            "ACME clients",
            passphrase=keystore.passphrase_in(etc / "passphrase"),
            urls=keystore.Urls(),
            now=datetime.now(UTC),
        )
        key = generate_key()
        certificate = issue(
            SERVER,
            make_request(key.public_key(), dns_names=["localhost"]),
            authorities.active,
            now=datetime.now(UTC),
        )
        Credential(key, certificate, authorities.active.chain).write(etc / "pki", "server")
        (etc / "pki" / "chain.crt").write_bytes(authorities.bundle_pem())
        database_url = f"sqlite:///{self.directory}/mooring.db"
        upgrade(database_url)
        self.database = Database(database_url)
        self.store, self.ledger = Store(self.database), Ledger(self.database)
        (etc / "mooring.conf").write_text(
            f"[database]\nurl = {database_url}\n"
            f"[ca]\ndirectory = {self.directory}/ca\npassphrase_file = {etc}/passphrase\n"
            "profiles =\n"
            f"[acme]\nexternal_url = {self.url}\nallowed_networks = 127.0.0.0/8\n"
            f"http_port = {self.http_port}\ntls_port = {self.tls_port}\n"
            f"resolver = {self.names.address}\n"
        )
        self.lay_out(etc, run)

    def lay_out(self, etc: Path, run: Path) -> None:
        """The shipped files of the certificate service, with paths and ports moved."""
        moved = {
            "/etc/mooring": str(etc),
            "/run/mooring": str(run),
            "/var/log/mooring": str(self.directory / "log"),
            "listen 8776": f"listen {LOOPBACK}:{self.port}",
            "listen 8080": f"listen {LOOPBACK}:{self.public_port}",
            # this controller serves nothing else
            f"include {etc}/nginx/metadata.conf;": "",
            f"include {etc}/nginx/operators.conf;": "",
            f"include {etc}/nginx/network.conf;": "",
            f"#include {etc}/nginx/ca.conf;": f"include {etc}/nginx/ca.conf;",
        }
        for source in ("nginx", "gunicorn"):
            (etc / source).mkdir()
            for file in (ETC / source).iterdir():
                text = file.read_text(encoding="utf-8")
                for old, new in moved.items():
                    text = text.replace(old, new)
                (etc / source / file.name).write_text(text, encoding="utf-8")
        shutil.copy(ETC / "mooring" / "ca.ini", etc)

    def start(self, name: str, *command: str | Path) -> Process:
        log = self.directory / "log" / f"{name}.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MOORING_", "PG"))}
        with log.open("ab") as file:
            popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        process = Process(name, popen, log)
        self.processes.append(process)
        return process

    def serve(self) -> None:
        etc = self.directory / "etc"
        gunicorn = self.start(
            "gunicorn",
            *(sys.executable, "-m", "gunicorn", "--paste", etc / "ca.ini"),
            *("-c", etc / "gunicorn" / "ca.py", "--workers", "2"),
        )
        user = "user root; " if os.getuid() == 0 else ""
        nginx = self.start(
            "nginx",
            *("nginx", "-c", etc / "nginx" / "nginx.conf", "-p", self.directory),
            *("-g", f"{user}daemon off;", "-e", self.directory / "log" / "nginx.error.log"),
        )
        context = ssl.create_default_context(cafile=str(self.root))

        def ready() -> bool:
            gunicorn.alive()
            nginx.alive()
            try:
                with (
                    socket.create_connection((LOOPBACK, self.port), 5) as plain,
                    context.wrap_socket(plain, server_hostname="localhost") as stream,
                ):
                    stream.sendall(b"HEAD /acme/new-nonce HTTP/1.0\r\nHost: localhost\r\n\r\n")
                    return stream.recv(12)[9:] == b"200"
            except OSError:
                return False

        wait_for("the ACME service", ready)

    def external(self, **rules: object) -> tuple[str, str]:
        """A key for external accounts, as an operator makes one: id and secret."""
        made, secret = self.store.create_external_key(
            KeyRules(**rules),  # type: ignore[arg-type]  # as the test has written them
            created_by="alice",
            now=datetime.now(UTC),
        )
        return made.id, encode(secret)

    def run(self, *command: str | Path, ok: bool = True, **environment: str) -> str:
        """Run a client that trusts our root only; returns what it says."""
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        done = subprocess.run(
            [str(word) for word in command],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.directory,
            env={
                **kept,
                "REQUESTS_CA_BUNDLE": str(self.root),
                "LEGO_CA_CERTIFICATES": str(self.root),
                "CURL_CA_BUNDLE": str(self.root),
                "TEXTS": str(self.directory / "texts"),
                **environment,
            },
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, said + self.logs()
        return said

    def logs(self) -> str:
        return "".join(
            f"\n--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted((self.directory / "log").iterdir())
        )

    def script(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def accept(self, path: Path, *names: str, key: Path | None = None) -> x509.Certificate:
        """The certificate of a chain file: ours, verified, recorded, for exactly these names."""
        leaf, *above = x509.load_pem_x509_certificates(path.read_bytes())
        shown = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert sorted(shown.get_values_for_type(x509.DNSName)) == sorted(names)
        bundle = path.parent / "above.pem"
        bundle.write_bytes(b"".join(each.public_bytes(PEM) for each in above))
        single = path.parent / "leaf.pem"
        single.write_bytes(leaf.public_bytes(PEM))
        self.run(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
            *("-verify_hostname", names[0].replace("*", "any")),
            *("-CAfile", self.root, "-untrusted", bundle, single),
        )
        if key is not None:
            private = load_pem_private_key(key.read_bytes(), None)
            assert private.public_key() == leaf.public_key()
        assert self.state(leaf) == "issued"
        return leaf

    def state(self, leaf: x509.Certificate) -> str:
        record = self.ledger.by_serial(serial_text(leaf.serial_number))
        assert record is not None
        assert record.requested_by.startswith("acme:")
        return record.state

    def close(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self.names.shutdown()
        self.names.server_close()
        self.database.close()


PEM = Encoding.PEM


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcmeStand]:
    """The service, running."""
    stand = AcmeStand(tmp_path_factory.mktemp("acme"))
    try:
        stand.write()
        stand.serve()
        yield stand
    finally:
        stand.close()


@pytest.fixture
def web(acme: AcmeStand) -> Iterator[Path]:
    """A web server for http-01; returns the directory of the challenges."""
    www = acme.directory / "www"

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(www))  # type: ignore[arg-type]  # as given

        def log_message(self, *_arguments: object) -> None:
            return

    server = http.server.ThreadingHTTPServer((LOOPBACK, acme.http_port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield www / ".well-known" / "acme-challenge"
    server.shutdown()
    server.server_close()


# ---- certbot ------------------------------------------------------------------------------------


@dataclass
class Certbot:
    """certbot with a directory of its own."""

    acme: AcmeStand
    home: Path

    def __call__(self, *words: str | Path, ok: bool = True) -> str:
        places: Sequence[str | Path] = ("--config-dir", self.home, "--work-dir", self.home)
        return self.acme.run(
            *("certbot", "--non-interactive", "--logs-dir", self.home / "logs", *places),
            *("--server", f"{self.acme.url}/directory", *words),
            ok=ok,
        )

    def live(self, name: str) -> Path:
        return self.home / "live" / name


@pytest.fixture
def certbot(acme: AcmeStand, tmp_path: Path) -> Certbot:
    """certbot with an account, made with a key for external accounts."""
    assert shutil.which("certbot"), "Debian's package certbot is needed"
    client = Certbot(acme, tmp_path / "certbot")
    kid, secret = acme.external()
    client(
        *("register", "--agree-tos", "--email", "ops@acme.test"),
        *("--eab-kid", kid, "--eab-hmac-key", secret),
    )
    return client


def test_certbot_http_renew_revoke(acme: AcmeStand, certbot: Certbot) -> None:
    """certbot gets a certificate by http-01, renews it, revokes it and ends its account."""
    standalone = (
        *("--standalone", "--http-01-port", str(acme.http_port)),
        *("--http-01-address", LOOPBACK),
    )
    certbot("certonly", *standalone, "-d", "cb.acme.test", "-d", "www.cb.acme.test")
    live = certbot.live("cb.acme.test")
    names = ("cb.acme.test", "www.cb.acme.test")
    first = acme.accept(live / "fullchain.pem", *names, key=live / "privkey.pem")
    certbot("renew", "--force-renewal", "--no-random-sleep-on-renew")
    second = acme.accept(live / "fullchain.pem", *names, key=live / "privkey.pem")
    assert first.serial_number != second.serial_number
    certbot("update_account", "--email", "new@acme.test")
    certbot(
        *("revoke", "--cert-path", live / "cert.pem", "--reason", "superseded"),
        "--no-delete-after-revoke",
    )
    assert acme.state(second) == "revoked"
    assert acme.state(first) == "issued"
    # by the key of the certificate instead of the account's
    certbot("certonly", *standalone, "-d", "key.acme.test")
    live = certbot.live("key.acme.test")
    third = acme.accept(live / "fullchain.pem", "key.acme.test")
    certbot(
        *("revoke", "--cert-path", live / "cert.pem", "--key-path", live / "privkey.pem"),
        "--no-delete-after-revoke",
    )
    assert acme.state(third) == "revoked"
    certbot("unregister")


HOOK = """#!/bin/sh
# certbot's manual plugin: CERTBOT_DOMAIN and CERTBOT_VALIDATION
place="$TEXTS/_acme-challenge.$CERTBOT_DOMAIN"
mkdir -p "$place"
: > "$place/$CERTBOT_VALIDATION"
"""


def test_certbot_wildcard_by_dns(acme: AcmeStand, certbot: Certbot) -> None:
    """certbot gets a wildcard and its base by dns-01: two values under one name."""
    hook = acme.script("certbot-hook", HOOK)
    certbot(
        *("certonly", "--manual", "--preferred-challenges", "dns"),
        *("--manual-auth-hook", hook, "-d", "*.wild.acme.test", "-d", "wild.acme.test"),
    )
    live = certbot.live("wild.acme.test")
    acme.accept(
        live / "fullchain.pem", "*.wild.acme.test", "wild.acme.test", key=live / "privkey.pem"
    )


def test_certbot_is_told_why(acme: AcmeStand, certbot: Certbot) -> None:
    """A failed validation reaches certbot's user as a reason, and nothing is issued."""
    said = certbot(
        *("certonly", "--manual", "--preferred-challenges", "dns"),
        *("--manual-auth-hook", "true", "-d", "not.acme.test"),
        ok=False,
    )
    assert "_acme-challenge.not.acme.test has no TXT record" in said


def test_certbot_without_an_external_account(acme: AcmeStand, tmp_path: Path) -> None:
    """Without the key of an external account nobody gets an account here."""
    client = Certbot(acme, tmp_path / "certbot")
    said = client("register", "--agree-tos", "--email", "ops@acme.test", ok=False)
    assert "eab" in said.lower()


# ---- dehydrated ---------------------------------------------------------------------------------


@dataclass
class Dehydrated:
    """dehydrated with a directory of its own."""

    acme: AcmeStand
    home: Path

    def __call__(self, *words: str | Path) -> str:
        return self.acme.run("dehydrated", "--config", self.home / "config", *words)


DEHYDRATED_HOOK = """#!/bin/sh
# dehydrated: OPERATION DOMAIN TOKEN VALUE
case $1 in
deploy_challenge)
    mkdir -p "$TEXTS/_acme-challenge.$2"
    : > "$TEXTS/_acme-challenge.$2/$4" ;;
clean_challenge) rm -f "$TEXTS/_acme-challenge.$2/$4" ;;
esac
"""


@pytest.fixture
def dehydrated(acme: AcmeStand, tmp_path: Path) -> Dehydrated:
    """dehydrated with an account."""
    assert shutil.which("dehydrated"), "Debian's package dehydrated is needed"
    home = tmp_path / "dehydrated"
    (home / "alpn").mkdir(parents=True)
    kid, secret = acme.external()
    (home / "config").write_text(
        f"CA={acme.url}/directory\nBASEDIR={home}\nALPNCERTDIR={home}/alpn\n"
        f"WELLKNOWN={acme.directory}/www/.well-known/acme-challenge\n"
        f"CURL_OPTS='--cacert {acme.root}'\nCONTACT_EMAIL=ops@acme.test\n"
        f"EAB_KID={kid}\nEAB_HMAC_KEY={secret}\n"
    )
    client = Dehydrated(acme, home)
    client("--register", "--accept-terms")
    return client


def test_dehydrated_http(acme: AcmeStand, dehydrated: Dehydrated, web: Path) -> None:
    """dehydrated gets a certificate by http-01 through a web server, and revokes it."""
    dehydrated("--cron", "--challenge", "http-01", "--domain", "dh.acme.test")
    certs = dehydrated.home / "certs" / "dh.acme.test"
    leaf = acme.accept(certs / "fullchain.pem", "dh.acme.test", key=certs / "privkey.pem")
    dehydrated("--revoke", certs / "cert.pem")
    assert acme.state(leaf) == "revoked"
    dehydrated("--account")  # updates its contacts


def test_dehydrated_dns_through_an_alias(acme: AcmeStand, dehydrated: Dehydrated) -> None:
    """dns-01 follows an alias to another name, as delegated validation has it."""
    acme.names.aliases["_acme-challenge.al.acme.test"] = "_acme-challenge.elsewhere.acme.test"
    hook = acme.script(
        "alias-hook",
        DEHYDRATED_HOOK.replace("_acme-challenge.$2", "_acme-challenge.elsewhere.acme.test"),
    )
    dehydrated("--cron", "--challenge", "dns-01", "--hook", hook, "--domain", "al.acme.test")
    acme.accept(dehydrated.home / "certs" / "al.acme.test" / "fullchain.pem", "al.acme.test")


def test_dehydrated_tls_alpn(acme: AcmeStand, dehydrated: Dehydrated) -> None:
    """tls-alpn-01 with dehydrated's certificates and a TLS server of our own."""
    server = AlpnServer(acme.tls_port, dehydrated.home / "alpn")
    try:
        dehydrated("--cron", "--challenge", "tls-alpn-01", "--domain", "tls.acme.test")
    finally:
        server.shutdown()
        server.server_close()
    acme.accept(dehydrated.home / "certs" / "tls.acme.test" / "fullchain.pem", "tls.acme.test")


# ---- lego ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("challenge", "key_type"), [("http", "ec256"), ("http", "rsa2048"), ("tls", "ec384")]
)
def test_lego(acme: AcmeStand, tmp_path: Path, challenge: str, key_type: str) -> None:
    """lego, with its own servers for http-01 and tls-alpn-01, gets, renews and revokes."""
    assert shutil.which("lego"), "Debian's package lego is needed"
    port = acme.http_port if challenge == "http" else acme.tls_port
    kid, secret = acme.external()
    name = f"{challenge}-{key_type}.acme.test"
    common = (
        *("lego", "--server", f"{acme.url}/directory", "--path", tmp_path, "--accept-tos"),
        *("--email", "ops@acme.test", "--domains", name, "--key-type", key_type),
        *("--eab", "--kid", kid, "--hmac", secret),
        *(f"--{challenge}", f"--{challenge}.port", f"{LOOPBACK}:{port}"),
    )
    acme.run(*common, "run")
    certificates = tmp_path / "certificates"
    first = acme.accept(certificates / f"{name}.crt", name, key=certificates / f"{name}.key")
    acme.run(*common, "renew", "--days", "90", "--reuse-key", "--no-random-sleep")
    second = acme.accept(certificates / f"{name}.crt", name)
    assert first.serial_number != second.serial_number
    acme.run(*common, "revoke")
    assert acme.state(second) == "revoked"


def test_lego_is_bound_by_the_external_key(acme: AcmeStand, tmp_path: Path) -> None:
    """What an operator wrote into the key for external accounts binds the account's orders."""
    kid, secret = acme.external(names=NameRules(dns=("mine.acme.test",)))

    def lego(name: str, ok: bool) -> str:
        return acme.run(
            *("lego", "--server", f"{acme.url}/directory", "--path", tmp_path, "--accept-tos"),
            *("--email", "ops@acme.test", "--domains", name, "--eab", "--kid", kid),
            *("--hmac", secret, "--http", "--http.port", f"{LOOPBACK}:{acme.http_port}", "run"),
            ok=ok,
        )

    lego("a.mine.acme.test", ok=True)
    assert "rejectedIdentifier" in lego("theirs.acme.test", ok=False)


# ---- uacme --------------------------------------------------------------------------------------


UACME_HOOK = """#!/bin/sh
# uacme: METHOD TYPE IDENTIFIER TOKEN AUTHORIZATION; status 1 declines a type
[ "$2" = http-01 ] || exit 1
case $1 in
begin) printf %s "$5" > "$WELLKNOWN/$4" ;;
done | failed) rm -f "$WELLKNOWN/$4" ;;
esac
"""


def test_uacme_changes_its_key(acme: AcmeStand, web: Path, tmp_path: Path) -> None:
    """uacme makes an account, changes its key, and is known by the new one only."""
    assert shutil.which("uacme"), "Debian's package uacme is needed"
    hook = acme.script("uacme-hook", UACME_HOOK)
    kid, secret = acme.external()
    # its libcurl reads only the system's bundle: put ours there, in a mount namespace of its own
    inside = (
        *("unshare", "--mount", "sh", "-c"),
        f'mount --bind {acme.root} /etc/ssl/certs/ca-certificates.crt && exec "$@"',
        "sh",
    )

    def uacme(*words: str | Path, ok: bool = True) -> str:
        return acme.run(
            *(*inside, "uacme", "--confdir", tmp_path, "--acme-url", f"{acme.url}/directory"),
            *("--yes", "--hook", hook, *words),
            ok=ok,
            WELLKNOWN=str(web),
        )

    uacme("--eab", f"{kid}:{secret}", "new", "ops@acme.test")
    key = tmp_path / "private" / "key.pem"
    old = key.read_bytes()
    uacme("newkey")
    assert key.read_bytes() != old
    uacme("issue", "ua.acme.test")
    leaf = acme.accept(
        tmp_path / "ua.acme.test" / "cert.pem",
        "ua.acme.test",
        key=tmp_path / "private" / "ua.acme.test" / "key.pem",
    )
    uacme("revoke", tmp_path / "ua.acme.test" / "cert.pem")
    assert acme.state(leaf) == "revoked"
    new = key.read_bytes()
    key.write_bytes(old)
    uacme("issue", "ub.acme.test", ok=False)
    key.write_bytes(new)
    uacme("deactivate")


def test_logs_hold_no_secret(acme: AcmeStand) -> None:
    """After all of that, no log of the service holds a key, a token or a traceback."""
    logs = acme.logs()
    assert "Traceback" not in logs
    assert json.dumps("unexpected") not in logs
    with acme.database.read() as connection:
        tokens = connection.execute(select(schema.acme_challenge.c.token)).scalars().all()
        keys = connection.execute(select(schema.acme_external_key.c.key)).scalars().all()
    text = "".join(path.read_text(errors="replace") for path in (acme.directory / "log").iterdir())
    assert not [token for token in tokens if token in text]
    assert not [key for key in keys if encode(bytes(key)) in text]
