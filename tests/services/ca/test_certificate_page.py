"""docs/certificate-api.md: its examples work when pasted, through NGINX and gunicorn as shipped."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.ca import ceremony, files, keystore
from services.ca.api import CertificateApi
from services.ca.authority import NAMES_FIELDS, Actor, Authority
from services.ca.hierarchy import Credential, Hierarchy
from services.ca.keys import generate_key
from services.ca.ledger import Ledger, Search
from services.ca.profile_file import SHIPPED
from services.ca.request import make_request
from services.ca.states import REASONS
from services.core.database import Database
from services.core.identity import OPERATORS

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "certificate-api.md").read_text(encoding="utf-8")
COMMAND = Actor("command:test", frozenset(), "", "", "command")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


class Site:
    """NGINX and gunicorn over an authority, all of it in one directory."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.port, self.public_port = free_port(), free_port()
        self.authorities = ceremony.create(
            directory / "etc" / "ca",
            "Example",
            passphrase=None,
            urls=keystore.Urls.below(f"http://127.0.0.1:{self.public_port}"),
            now=datetime.now(UTC),
        )
        self.database = Database(url)
        self.ledger = Ledger(self.database)
        self.authority = Authority(self.authorities, self.ledger, SHIPPED)
        self._write_pki()
        self._write_files(url)
        with (directory / "log" / "gunicorn").open("wb") as log:
            self.gunicorn = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "--paste", directory / "etc" / "ca.ini"),
                    *("-c", directory / "etc" / "gunicorn.py"),
                ],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        command = ["nginx", "-c", directory / "etc/nginx/nginx.conf", "-e", directory / "log/start"]
        subprocess.run(command, check=True)

    def _write_pki(self) -> None:
        pki = self.directory / "etc" / "pki"
        pki.mkdir()
        (pki / "chain.crt").write_bytes(self.authorities.bundle_pem())
        for name, profile, groups in (("server", "server", ()), ("alice", "client", (OPERATORS,))):
            key = generate_key()
            request = make_request(
                key.public_key(),
                common_name=None if profile == "server" else name,
                organizations=groups,
                dns_names=["localhost"] if profile == "server" else [],
            )
            issued = self.authority.issue(profile, request, COMMAND)
            Credential(key, issued.certificate, issued.chain).write(pki, name)
        files.write_certificates(pki / "root.crt", self.authorities.root)

    def _write_files(self, url: str) -> None:
        etc, log, run = (self.directory / name for name in ("etc", "log", "run"))
        for path in (log, run):
            path.mkdir()
        shutil.copytree(ROOT / "etc" / "nginx", etc / "nginx")
        for file in (etc / "nginx").glob("*.conf"):
            text = file.read_text()
            for before, after in (
                ("/etc/mooring", str(etc)),
                ("/run/mooring", str(run)),
                ("/var/log/mooring", str(log)),
                ("worker_processes auto;", "worker_processes 1; user root;"),
                ("listen 8776 ", f"listen 127.0.0.1:{self.port} "),
                ("listen 8080;", f"listen 127.0.0.1:{self.public_port};"),
            ):
                text = text.replace(before, after)
            for name in ("metadata", "operators", "network"):
                text = text.replace(f"    include {etc}/nginx/{name}.conf;", "")
            text = text.replace(
                f"    #include {etc}/nginx/ca.conf", f"    include {etc}/nginx/ca.conf"
            )
            file.write_text(text)
        for name in ("ca.ini", "profiles.toml"):
            shutil.copy(ROOT / "etc" / "mooring" / name, etc)
        (etc / "mooring.conf").write_text(
            f"[database]\nurl = {url}\n[ca]\ndirectory = {etc}/ca\n"
            f"profiles = {etc}/profiles.toml\npublic_url = http://127.0.0.1:{self.public_port}\n"
        )
        settings = (ROOT / "etc" / "gunicorn" / "ca.py").read_text()
        settings = settings.replace("/run/mooring", str(run))
        (etc / "gunicorn.py").write_text(settings.replace("max(2, os.cpu_count() or 1)", "1"))

    def logs(self) -> str:
        return "".join(path.read_text() for path in (self.directory / "log").iterdir())

    def get(self, path: str, *, client: str | None = None, **headers: str) -> tuple[int, bytes]:
        """One GET over TLS."""
        context = ssl.create_default_context(cafile=str(self.directory / "etc/pki/root.crt"))
        if client is not None:
            pki = self.directory / "etc" / "pki"
            context.load_cert_chain(pki / f"{client}.crt", pki / f"{client}.key")
        connection = http.client.HTTPSConnection(
            "localhost", self.port, context=context, timeout=30
        )
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ready(self) -> bool:
        assert self.gunicorn.poll() is None, self.logs()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/v1/root")[0] == 200
        return False

    def close(self) -> None:
        pid = int((self.directory / "run" / "nginx.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        self.gunicorn.terminate()
        self.gunicorn.wait(30)
        until(lambda: not Path(f"/proc/{pid}").exists(), lambda: "NGINX stays")
        self.database.close()


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Site]:
    """The whole service."""
    site = Site(tmp_path, sqlite_url)
    try:
        until(site.ready, site.logs)
        yield site
    finally:
        site.close()


def test_the_examples_work_when_pasted(site: Site, tmp_path: Path) -> None:
    """Every shell block, run by bash one after the other, with curl and openssl."""
    script = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    pki = tmp_path / "etc" / "pki"
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path / "work",
        env={
            **os.environ,
            "MOORING_CA_URL": f"https://localhost:{site.port}",
            "MOORING_CACERT": str(pki / "root.crt"),
            "MOORING_CERT": str(pki / "alice.crt"),
            "MOORING_KEY": str(pki / "alice.key"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + site.logs()
    found = site.ledger.search(Search(), now=datetime.now(UTC), limit=100)
    assert [(each.profile, each.state, each.common_name) for each in found][:4] == [
        ("host", "issued", "node-7.example.com"),
        ("host", "issued", "node-7.example.com"),
        ("server", "revoked", ""),
        ("server", "issued", ""),
    ]
    renewed = (tmp_path / "work" / "new.crt").read_text()
    assert renewed.count("BEGIN CERTIFICATE") == 2
    assert site.ledger.verify_audit().whole
    assert site.ledger.trail(limit=1)[0].entry.address == "127.0.0.1"
    token = re.search(r"mooring-enrol-[\w-]+", (tmp_path / "work" / "token.json").read_text())
    assert token is not None
    assert token[0] not in site.logs()


def test_nothing_from_outside_stands_for_a_certificate(site: Site) -> None:
    """Headers that a client sends itself open nothing; a certificate that is verified does."""
    stolen = (site.directory / "etc" / "pki" / "alice.crt").read_text()
    forged = {
        "X-Ssl-Client-Verify": "SUCCESS",
        "X-Ssl-Client-Cert": re.sub(r"\n", "%0A", stolen),
        "X-Forwarded-For": "203.0.113.9",
    }
    assert site.get("/v1/certificates", **forged)[0] == 401
    assert site.get("/v1/certificates", client="alice")[0] == 200


def test_a_revoked_client_is_refused_without_any_list(site: Site) -> None:
    """NGINX has no ssl_crl here; the application alone refuses, from the next request on."""
    (record,) = site.ledger.search(Search(name="alice"), now=datetime.now(UTC), limit=2)
    assert site.get("/v1/certificates", client="alice")[0] == 200
    site.authority.revoke(record.authority_id, int(record.serial, 16), "keyCompromise", COMMAND)
    status, body = site.get("/v1/certificates", client="alice")
    assert (status, b"certificate-revoked" in body) == (403, True)


def test_every_route_member_and_reason_is_on_the_page(hierarchy: Hierarchy, tmp_path: Path) -> None:
    """Each route with its rule, each filter, each field of a token and each reason."""
    authorities = keystore.Authorities(hierarchy.root.certificate, b"", hierarchy.intermediate)
    ledger = Ledger(Database(f"sqlite:///{tmp_path}/x.db"))
    router = CertificateApi(Authority(authorities, ledger, SHIPPED), bundle_pem=b"").router
    listed = re.findall(r"^\| `([A-Z]+) (/[^`]+)` \|.*\| `([a-z:-]+)` \|$", PAGE, re.MULTILINE)
    assert listed == router.routes
    quoted = set(re.findall(r"`([^`\s]+)`", PAGE))
    filters = {each.name for each in fields(Search)} - {"owner"}
    assert {*filters, *NAMES_FIELDS, *REASONS} - quoted == set()
