"""Certificates end to end: scenarios C1 to C4, with the real service, NGINX and openssl.

A controller as an operator sets one up, by commands alone: `mooring ca init`, the service's own and
the first admin's certificate from the authority on the machine, then gunicorn and NGINX with the
files of etc/, and everything else over the API.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from stand import ETC, LOOPBACK, Process, free_port, run, wait_for

pytestmark = pytest.mark.e2e

SERVER = """
server {{
    listen {loopback}:{port} ssl;
    server_name localhost;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache off;
    ssl_session_tickets off;
    ssl_certificate {certificate}/fullchain.pem;
    ssl_certificate_key {certificate}/key.pem;
    {more}
    location / {{ return 200 "served to [$ssl_client_s_dn]\\n"; }}
}}
"""

TEXTBOOK = """
server {{
    listen {loopback}:{port} ssl;
    server_name localhost;
    include {etc}/nginx/tls-server.conf;
    ssl_verify_client on;
    ssl_crl {crl};
    set $mooring_forwarded_for $remote_addr;
    set $mooring_authorization "";
    set $mooring_instance_id "";
    set $mooring_tenant_id "";
    set $mooring_signature_1 "";
    set $mooring_network "";
    set $mooring_time "";
    set $mooring_signature_2 "";
    set $mooring_forwarded "";
    location / {{
        include {etc}/nginx/proxy.conf;
        proxy_pass http://mooring_ca;
    }}
}}
"""

MAIN = """
worker_processes 1;
pid {run}/{name}.pid;
error_log {log}/{name}.error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {run}/{name}-a; proxy_temp_path {run}/{name}-b;
    fastcgi_temp_path {run}/{name}-c; uwsgi_temp_path {run}/{name}-d;
    scgi_temp_path {run}/{name}-e;
    {http}
}}
"""


@dataclass
class Handshake:
    """What `openssl s_client` says of a connection on which it sent a request."""

    code: int
    text: str

    @property
    def verified(self) -> bool:
        """Whether it trusts the server."""
        return self.code == 0 and "Verify return code: 0 (ok)" in self.text

    @property
    def status(self) -> int:
        """The status of the answer, 0 if there was none."""
        match = re.search(r"^HTTP/1\.1 (\d{3})", self.text, re.MULTILINE)
        return int(match[1]) if match else 0

    @property
    def sent(self) -> int:
        """How many certificates the server sent."""
        return len(re.findall(r"^ *\d+ s:", self.text, re.MULTILINE))

    @property
    def accepted_names(self) -> list[str]:
        """The names of authorities that the server accepts clients of."""
        part = self.text.partition("Acceptable client certificate CA names\n")[2]
        names = []
        for line in part.splitlines():
            if " = " not in line:
                break
            names.append(line)
        return names


@dataclass
class Controller:
    """A directory with the shipped configuration in it, and the programs that run on it."""

    directory: Path
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.etc, self.run_dir = self.directory / "etc", self.directory / "run"
        self.log, self.certificates = self.directory / "log", self.directory / "certificates"
        self.api_port, self.public_port, self.textbook_port = free_port(), free_port(), free_port()
        self.crl = self.etc / "pki" / "crl.pem"
        self.root = self.etc / "ca" / "root.crt"

    # ---- as an operator sets it up ---------------------------------------------------------------

    def configure(self) -> None:
        """Lay out etc/ with paths and ports moved into the directory."""
        moved = {
            "/etc/mooring": str(self.etc),
            "/run/mooring": str(self.run_dir),
            "/var/log/mooring": str(self.log),
            "listen 8776": f"listen {LOOPBACK}:{self.api_port}",
            "listen 8080": f"listen {LOOPBACK}:{self.public_port}",
        }
        for source, target in (
            (ETC / "mooring", self.etc),
            (ETC / "nginx", self.etc / "nginx"),
            (ETC / "gunicorn", self.etc / "gunicorn"),
        ):
            target.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                text = file.read_text(encoding="utf-8")
                for old, new in moved.items():
                    text = text.replace(old, new)
                (target / file.name).write_text(text, encoding="utf-8")
        for folder in (self.run_dir, self.log, self.crl.parent):
            folder.mkdir()
        nginx = f"{self.run_dir}/nginx.pid"
        (self.etc / "mooring.conf").write_text(
            f"[database]\nurl = sqlite:///{self.directory}/mooring.db\n"
            f"[ca]\ndirectory = {self.etc}/ca\n"
            f"passphrase_file = {self.etc}/ca-passphrase\n"
            f"profiles = {self.etc}/profiles.toml\n"
            f"public_url = http://{LOOPBACK}:{self.public_port}\n"
            f"crl_file = {self.crl}\n"
            # NGINX may not run yet, which is no failure
            f"crl_reload = sh -c 'test ! -e {nginx} || kill -HUP $(cat {nginx})'\n"
        )

    def mooring(self, *words: str, user: str | None = "ann", code: int = 0) -> str:
        """Run the command, as this user of the service; returns what it prints on both outputs."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MOORING_", "PG"))}
        environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "MOORING_CONFIG": str(self.etc / "mooring.conf"),
            "MOORING_CERT_DIRECTORY": str(self.certificates),
            "MOORING_CA_URL": f"https://localhost:{self.api_port}",
            "MOORING_CACERT": str(self.root),
        }
        if user is not None:
            environment["MOORING_CERT"] = str(self.certificates / user / "fullchain.pem")
            environment["MOORING_KEY"] = str(self.certificates / user / "key.pem")
        done = subprocess.run(
            [sys.executable, "-m", "services.cli.main", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def set_up(self) -> str:
        """Make the whole of it, or find that it is there; returns what the commands print."""
        pki = self.etc / "pki"
        said = [
            self.mooring("db", "upgrade", user=None),
            self.mooring("ca", "init", "Example", user=None),
            self.mooring("ca", "bundle", "-o", str(pki / "chain.crt"), user=None),
            self.mooring(
                *("cert", "request", "controller", "--local"),
                *("--dns", "localhost", "--ip", LOOPBACK),
                user=None,
            ),
            self.mooring(
                *("cert", "request", "ann", "--local", "--profile", "client"),
                *("--group", "mooring:admins"),
                user=None,
            ),
        ]
        for name, target in (("server.crt", "fullchain.pem"), ("server.key", "key.pem")):
            if not (pki / name).is_symlink():
                (pki / name).symlink_to(self.certificates / "controller" / target)
        return "".join(said)

    # ---- programs --------------------------------------------------------------------------------

    def start(self, name: str, *command: str | Path, **options: object) -> Process:
        """Start a program whose output goes to log/NAME.log."""
        path = self.log / f"{name}.log"
        with path.open("ab") as log:
            popen = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **options,  # type: ignore[call-overload]
            )
        process = Process(name, popen, path)
        self.processes.append(process)
        return process

    def start_service(self) -> None:
        """Start gunicorn and wait until it has made NGINX's file of lists."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MOORING_", "PG"))}
        process = self.start(
            "gunicorn",
            *(sys.executable, "-m", "gunicorn", "--paste", self.etc / "ca.ini"),
            *("-c", self.etc / "gunicorn" / "ca.py", "--workers", "2"),
            env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

        def ready() -> bool:
            process.alive()
            return self.crl.exists() and (self.run_dir / "ca.sock").exists()

        wait_for("the certificate service", ready)

    def start_nginx(self, name: str, http: str, port: int) -> Process:
        """Start an NGINX with these lines in its http block; wait until it listens."""
        path = self.directory / f"{name}.conf"
        path.write_text(MAIN.format(run=self.run_dir, log=self.log, name=name, http=http))
        user = "user root; " if os.getuid() == 0 else ""
        process = self.start(
            name,
            *("nginx", "-c", path, "-p", self.directory),
            *("-g", f"{user}daemon off;", "-e", self.log / f"{name}.error.log"),
        )

        def accepts() -> bool:
            process.alive()
            return self.connect(port).text != "" and "errno" not in self.connect(port).text

        wait_for(name, accepts)
        return process

    def connect(self, port: int, *options: str | Path, path: str = "/") -> Handshake:
        """Send a request with `openssl s_client`, and read until the server closes."""
        done = subprocess.run(
            [
                *("openssl", "s_client", "-connect", f"{LOOPBACK}:{port}"),
                *("-servername", "localhost", "-ign_eof", *map(str, options)),
            ],
            input=f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return Handshake(done.returncode, done.stdout + done.stderr)

    def close(self) -> None:
        """Stop every program."""
        for process in reversed(self.processes):
            process.stop()


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    """A controller with the certificate service behind NGINX."""
    made = Controller(tmp_path_factory.mktemp("controller"))
    try:
        made.configure()
        made.set_up()
        made.start_service()
        http = "".join(
            f"include {made.etc}/nginx/{name}.conf;\n" for name in ("mooring", "ca")
        ) + TEXTBOOK.format(loopback=LOOPBACK, port=made.textbook_port, etc=made.etc, crl=made.crl)
        made.start_nginx("nginx", http, made.api_port)
        yield made
    finally:
        made.close()


@pytest.fixture
def serving(controller: Controller) -> Callable[..., "object"]:
    """An NGINX of its own that serves a certificate directory; yields its port."""

    @contextmanager
    def serve(certificate: Path, more: str = "") -> Iterator[int]:
        port = free_port()
        block = SERVER.format(loopback=LOOPBACK, port=port, certificate=certificate, more=more)
        process = controller.start_nginx(f"nginx-{port}", block, port)
        try:
            yield port
        finally:
            process.stop()
            controller.processes.remove(process)

    return serve


def client_options(controller: Controller, name: str) -> list[str | Path]:
    """The options of s_client for a client with key, certificate and chain, as files of ours."""
    own = controller.certificates / name
    return [
        *("-cert", own / "cert.pem", "-cert_chain", own / "chain.pem", "-key", own / "key.pem"),
        *("-CAfile", controller.root, "-verify_return_error"),
    ]


def test_c1_a_self_signed_certificate_by_one_command(
    controller: Controller, serving: Callable[..., object]
) -> None:
    """C1: SANs *.example.local and example.local, made by one command; NGINX serves it."""
    arguments = ("cert", "self-signed", "local", "--dns", "*.example.local")
    arguments = (*arguments, "--dns", "example.local")
    controller.mooring(*arguments, user=None)
    own = controller.certificates / "local"
    names = run("openssl", "x509", "-in", own / "cert.pem", "-noout", "-ext", "subjectAltName")
    assert "DNS:*.example.local, DNS:example.local" in names
    with serving(own) as port:  # type: ignore[attr-defined]
        for host in ("example.local", "www.example.local"):
            trusting = controller.connect(
                port, "-CAfile", own / "cert.pem", "-verify_return_error", "-verify_hostname", host
            )
            assert (trusting.verified, trusting.status) == (True, 200), trusting.text
        other = controller.connect(
            port,
            *("-CAfile", own / "cert.pem", "-verify_return_error"),
            *("-verify_hostname", "a.b.example.local"),
        )
        assert not other.verified
        assert not controller.connect(port, "-CAfile", controller.root).verified


def test_c2_root_intermediate_and_server(
    controller: Controller, serving: Callable[..., object]
) -> None:
    """C2: NGINX serves leaf and intermediate, and whoever has the root alone verifies them."""
    controller.mooring("cert", "request", "web", "--dns", "localhost")
    own = controller.certificates / "web"
    root = run("openssl", "x509", "-in", controller.root, "-noout", "-text")
    assert "CA:TRUE" in root
    assert "Certificate Sign, CRL Sign" in root
    assert "Subject Key Identifier" in root
    intermediate = run("openssl", "x509", "-in", own / "chain.pem", "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in intermediate
    with serving(own) as port:  # type: ignore[attr-defined]
        found = controller.connect(
            port,
            *("-CAfile", controller.root, "-verify_return_error"),
            *("-verify_hostname", "localhost", "-showcerts"),
        )
        assert (found.verified, found.status, found.sent) == (True, 200, 2), found.text
        assert not controller.connect(port, "-CAfile", own / "cert.pem").verified


def test_c3_clients_in_and_others_out(controller: Controller) -> None:
    """C3: `ssl_verify_client on` takes our client, names its CAs, and refuses none and a revoked.

    The list of revocations is the one that the service keeps for NGINX: root and intermediate.
    """
    controller.mooring(
        "cert", "request", "alice", "--profile", "client", "--group", "mooring:operators"
    )
    alice = client_options(controller, "alice")
    port = controller.textbook_port
    taken = controller.connect(port, *alice, path="/v1/certificates?limit=1")
    assert (taken.verified, taken.status) == (True, 200), taken.text
    assert [name.partition("CN = ")[2][:19] for name in taken.accepted_names] == [
        "Example Issuing CA ",
        "Example Root CA",
    ]
    without = controller.connect(port, "-CAfile", controller.root)
    assert without.status == 400
    assert "No required SSL certificate was sent" in without.text
    stranger = controller.connect(
        port,
        *("-cert", controller.certificates / "controller" / "cert.pem"),
        *("-key", controller.certificates / "controller" / "key.pem"),
    )
    assert stranger.status == 400  # a server's certificate is no client's

    file = controller.certificates / "alice" / "cert.pem"
    before = controller.crl.read_bytes()
    controller.mooring("cert", "revoke", str(file), "--reason", "keyCompromise")
    wait_for("NGINX's file of lists", lambda: controller.crl.read_bytes() != before)

    def refused() -> bool:
        found = controller.connect(port, *alice, path="/v1/certificates?limit=1")
        return found.status == 400 and "The SSL certificate error" in found.text

    wait_for("NGINX to refuse the revoked certificate", refused)
    assert controller.connect(port, *client_options(controller, "ann"), path="/v1").status == 200


def test_c3_common_name_and_organisation_are_user_and_group(controller: Controller) -> None:
    """C3: what the application knows is the CN as the user and every O as a group.

    An operator may ask for servers' certificates and not for people's; the audit trail has the name
    of who asked.
    """
    controller.mooring(
        "cert", "request", "olga", "--profile", "client", "--group", "mooring:operators"
    )
    controller.mooring("cert", "request", "db", "--dns", "db.example.local", user="olga")
    said = controller.mooring("cert", "request", "eve", "--profile", "client", user="olga", code=6)
    assert "Error: " in said
    assert not (controller.certificates / "eve").exists()
    trail = controller.mooring("ca", "audit", "-n", "50", "-f", "json", user=None)
    assert "client:olga" in trail
    assert "the trail is whole" in controller.mooring("ca", "audit", "--verify", user=None)


def test_c4_everything_again_changes_nothing(controller: Controller) -> None:
    """C4: every command is idempotent, and every private key is its owner's alone."""
    controller.mooring("cert", "request", "again", "--dns", "again.example.local")

    def everything() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for folder in (controller.certificates, controller.etc / "ca", controller.etc / "pki")
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != controller.crl
        }

    before = everything()
    said = controller.set_up()
    said += controller.mooring("cert", "request", "again", "--dns", "again.example.local")
    said += controller.mooring("cert", "renew", "again")
    assert said.count("already there: ") == 5
    assert "wrote " not in said
    assert everything() == before
    keys = [path for path in before if b"PRIVATE KEY" in before[path]]
    assert len(keys) >= 5
    for path in keys:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600, path
    assert "good" in controller.mooring("ca", "status", user=None)


def test_a_host_enrols_by_token_renews_by_itself_and_reloads(controller: Controller) -> None:
    """The way of a new host: a one-time token, then mutual TLS with its own certificate."""
    token = controller.directory / "token"
    secret = controller.mooring(
        "ca", "token", "create", "--profile", "host", "--name", "host7.example"
    )
    token.write_text(secret.splitlines()[0])
    mark = controller.directory / "reloaded"
    arguments = ("cert", "request", "host7.example", "--profile", "host", "--bundle")
    arguments = (*arguments, "--token-file", str(token), "--reload-command", f"touch {mark}")
    controller.mooring(*arguments, user=None)
    assert mark.exists()
    mark.unlink()
    bundle = controller.certificates / "host7.example" / "bundle.pem"
    first = bundle.read_bytes()
    controller.mooring("cert", "renew", "host7.example", "--force", user=None)
    assert mark.exists()
    assert bundle.read_bytes() != first
    # a token is good for one key
    shutil.rmtree(controller.certificates / ".host7.example")
    (controller.certificates / "host7.example").unlink()
    said = controller.mooring(*arguments, user=None, code=6)
    assert "Error: " in said


def test_rotation_under_the_running_service(controller: Controller) -> None:
    """Both chains verify in the overlap: old clients stay in, new ones are of the new authority."""
    controller.mooring("cert", "request", "old", "--profile", "client", "--name", "old")
    bundle = controller.etc / "pki" / "chain.crt"
    controller.mooring(
        *("ca", "rotate", "Example", "--root-directory", str(controller.etc / "ca" / "root")),
        user=None,
    )
    controller.mooring("ca", "bundle", "-o", str(bundle), user=None)
    shown = controller.mooring("ca", "show", user=None)
    prepared = re.search(r"^authority  ([0-9a-f]{40}) .*prepared", shown, re.MULTILINE)
    assert prepared is not None, shown
    controller.mooring("ca", "activate", prepared[1], user=None)
    lists = controller.crl.read_bytes()
    gunicorn = next(each for each in controller.processes if each.name == "gunicorn")
    gunicorn.popen.send_signal(1)
    wait_for(
        "the new authority's list",
        lambda: controller.crl.read_bytes().count(b"BEGIN") > lists.count(b"BEGIN"),
    )
    nginx = int((controller.run_dir / "nginx.pid").read_text())
    os.kill(nginx, 1)

    def issued_anew() -> bool:
        controller.mooring("cert", "request", "new", "--profile", "client", "--name", "new")
        chain = controller.certificates / "new" / "chain.pem"
        subject = run("openssl", "x509", "-in", chain, "-noout", "-subject")
        if prepared[1][:8] in subject:
            return True
        shutil.rmtree(controller.certificates / ".new")
        (controller.certificates / "new").unlink()
        return False

    wait_for("a certificate of the new authority", issued_anew)
    deadline = time.monotonic() + 30
    while True:
        found = {
            name: controller.connect(
                controller.textbook_port, *client_options(controller, name), path="/v1"
            ).status
            for name in ("old", "new")
        }
        if found == {"old": 200, "new": 200} or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert found == {"old": 200, "new": 200}
