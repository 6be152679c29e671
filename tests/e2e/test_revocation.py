"""Revocation end to end: the API revokes, NGINX refuses, OCSP and stapling tell.

The shipped files of the certificate service, with `ssl_crl` switched on as an operator would, and
beside them servers of the kind that an operator has: one that wants client certificates, one that
staples, one that asks OCSP about its clients.
"""

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from stand import LOOPBACK, Stand, free_port, run, wait_for

from services.ca import ceremony, files
from services.ca.authority import Actor, Authority
from services.ca.keys import generate_key
from services.ca.keystore import Urls
from services.ca.ledger import Ledger, serial_text
from services.ca.profile_file import SHIPPED
from services.ca.request import make_request
from services.core.database import Database, upgrade

pytestmark = pytest.mark.e2e

ADMIN_ACTOR = Actor("test", frozenset({"mooring:admins"}), "", "", "certificate")

SETTLED = 25
"""Times that the workers are looked at, half a second: a reload takes NGINX some 50 ms here."""

SERVERS = """
server {{
    listen {address}:{plain} ssl;
    include {etc}/nginx/tls.conf;
    location / {{ return 200 "$ssl_client_verify $ssl_client_s_dn $ssl_session_reused\\n"; }}
    location /slow {{ limit_rate 20k; alias {directory}/slow; }}
}}
server {{
    listen {address}:{stapling} ssl;
    include {etc}/nginx/tls-server.conf;
    ssl_stapling on;
    ssl_stapling_verify on;
    ssl_trusted_certificate {etc}/pki/chain.crt;
    location / {{ return 200 "stapled\\n"; }}
}}
server {{
    listen {address}:{ocsp} ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {etc}/pki/server.crt;
    ssl_certificate_key {etc}/pki/server.key;
    ssl_client_certificate {etc}/pki/chain.crt;
    ssl_verify_depth 2;
    ssl_verify_client on;
    ssl_session_cache off;
    ssl_session_tickets off;
    ssl_ocsp leaf;
    location / {{ return 200 "$ssl_client_verify\\n"; }}
}}
"""


@dataclass
class House:
    """A running certificate service; ports by name: api, public, plain, stapling, ocsp."""

    stand: Stand
    authority: Authority
    ports: dict[str, int]

    @property
    def pki(self) -> Path:
        return self.stand.etc / "pki"

    @property
    def authority_id(self) -> str:
        return self.authority.active_id

    def issue(self, profile: str, name: str, **names: Any) -> x509.Certificate:
        """Issue, and write pki/NAME.{key,crt}; the same process as an operator's command."""
        key = generate_key()
        request = make_request(key.public_key(), **names)
        issued = self.authority.issue(profile, request, ADMIN_ACTOR)
        files.write_key(self.pki / f"{name}.key", key)
        files.write_certificates(self.pki / f"{name}.crt", issued.certificate, *issued.chain)
        return issued.certificate

    def client(self, name: str, *groups: str) -> x509.Certificate:
        return self.issue("client", name, common_name=name, organizations=groups)

    def context(self, name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki / "root.crt"))
        if name is not None:
            context.load_cert_chain(self.pki / f"{name}.crt", self.pki / f"{name}.key")
        return context

    def connect(self, name: str | None, port: str = "plain") -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "localhost", self.ports[port], timeout=20, context=self.context(name)
        )

    def ask(self, name: str | None, port: str = "plain", path: str = "/") -> tuple[int, str]:
        """Status and body on a connection of its own; status 0 if there was no answer."""
        connection = self.connect(name, port)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                return 0, str(error)

    def workers(self) -> set[int]:
        """The NGINX processes that take connections."""
        master = self.stand.processes["nginx"].popen.pid
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return {pid for pid in map(int, children) if not _leaving(pid)}

    def change(self, action: str, certificate: x509.Certificate, **body: str) -> None:
        """The same as `operate`, and wait for the workers that have read the older file to leave.

        The API answers when NGINX was told; its master then needs some milliseconds.
        """
        self.settle()
        before = self.workers()
        self.operate(action, certificate, **body)
        wait_for("NGINX to have read its file", lambda: not before & self.workers())
        self.settle()

    def settle(self) -> None:
        """Wait until NGINX was told of its file, and the same workers were seen for a while."""
        wait_for("the reload", lambda: not (self.pki / ".crl.pem.unread").exists())
        seen: list[set[int]] = []

        def steady() -> bool:
            seen.append(self.workers())
            return bool(seen[-1]) and len(seen) > SETTLED and seen[-SETTLED:] == seen[-1:] * SETTLED

        wait_for("NGINX's workers", steady)

    def operate(self, action: str, certificate: x509.Certificate, **body: str) -> None:
        """POST /v1/certificates/SERIAL/ACTION as the admin."""
        connection = self.connect("admin", "api")
        with contextlib.closing(connection):
            connection.request(
                "POST",
                f"/v1/certificates/{serial_text(certificate.serial_number)}/{action}",
                json.dumps(body),
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text

    def fetch(self, path: str) -> tuple[int, bytes, http.client.HTTPMessage]:
        """GET over plain HTTP."""
        connection = http.client.HTTPConnection(LOOPBACK, self.ports["public"], timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def lists(self) -> list[x509.CertificateRevocationList]:
        """What is in NGINX's file now."""
        end = b"-----END X509 CRL-----\n"
        data = (self.pki / "crl.pem").read_bytes()
        return [x509.load_pem_x509_crl(each + end) for each in data.split(end)[:-1]]


def _leaving(pid: int) -> bool:
    try:
        return b"shutting down" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def configure(stand: Stand, ports: dict[str, int]) -> None:
    """The shipped files with the ca block in, `ssl_crl` on, and the operator's own servers."""
    nginx = stand.etc / "nginx"
    tls = nginx / "tls-server.conf"
    text = tls.read_text()
    assert "#ssl_crl /var/lib/mooring/crl.pem;" in text
    tls.write_text(
        text.replace("#ssl_crl /var/lib/mooring/crl.pem", f"ssl_crl {stand.etc}/pki/crl.pem")
    )
    block = nginx / "ca.conf"
    text = block.read_text()
    for listen, port in (("listen 8776", "api"), ("listen 8080", "public")):
        assert listen in text
        text = text.replace(listen, f"listen {LOOPBACK}:{ports[port]}")
    block.write_text(text)
    (nginx / "servers.conf").write_text(
        SERVERS.format(address=LOOPBACK, etc=stand.etc, directory=stand.directory, **ports)
    )
    whole = nginx / "nginx.conf"
    lines = whole.read_text().splitlines()
    kept = [line for line in lines if not re.search(r"include .*/(metadata|operators)\.conf", line)]
    text = "\n".join(kept).replace(f"#include {nginx}/ca.conf", f"include {nginx}/ca.conf")
    assert f" include {nginx}/ca.conf;" in text
    text = text.replace(
        f"include {nginx}/ca.conf;", f"include {nginx}/ca.conf; include {nginx}/servers.conf;"
    )
    whole.write_text(f"user root;\n{text}\n")


@pytest.fixture(scope="module")
def house(sensitive: Any) -> Iterator[House]:
    if shutil.which("nginx") is None:
        pytest.fail("NGINX is missing: apt-get install nginx-light")
    ports = {name: free_port() for name in ("api", "public", "plain", "stapling", "ocsp")}
    stand = Stand()
    sensitive.stands.append(stand)
    try:
        stand.directory.chmod(0o755)
        for folder in (stand.etc, stand.run_dir, stand.log_dir, stand.etc / "pki"):
            folder.mkdir(parents=True)
        url = f"http://{LOOPBACK}:{ports['public']}"
        reload = (
            f"nginx -c {stand.etc}/nginx/nginx.conf -p {stand.directory}"
            f" -e {stand.log_dir}/nginx.error.log -s reload"
        )
        stand.options = {
            "ca": {
                "directory": f"{stand.etc}/ca",
                "profiles": "",
                "public_url": url,
                "crl_file": f"{stand.etc}/pki/crl.pem",
                "crl_reload": reload,
            }
        }
        stand.write_configuration()
        configure(stand, ports)
        (stand.directory / "slow").write_bytes(b"x" * 60_000)
        upgrade(stand.database_url)
        authorities = ceremony.create(
            stand.etc / "ca",
            "Example",
            passphrase=None,
            urls=Urls.below(url),
            now=datetime.now(UTC),
        )
        (stand.etc / "pki" / "chain.crt").write_bytes(authorities.bundle_pem())
        files.write_certificates(stand.etc / "pki" / "root.crt", authorities.root)
        database = Database(stand.database_url)
        house = House(stand, Authority(authorities, Ledger(database), SHIPPED), ports)
        house.issue("server", "server", dns_names=["localhost"], ip_addresses=[LOOPBACK])
        house.client("admin", "mooring:admins")
        gunicorn = stand.start(
            "gunicorn",
            *(sys.executable, "-m", "gunicorn", "--paste", stand.etc / "ca.ini"),
            *("-c", stand.etc / "gunicorn" / "ca.py", "--workers", "2"),
            env=stand.environment(),
        )

        def ready() -> bool:
            gunicorn.alive()
            return stand.ask_socket("ca-public.sock", "/readyz") == 200

        wait_for("gunicorn", ready)
        wait_for("the file for NGINX", (stand.etc / "pki" / "crl.pem").exists)
        nginx = stand.start(
            "nginx",
            *("nginx", "-c", f"{stand.etc}/nginx/nginx.conf", "-p", f"{stand.directory}"),
            *("-g", "daemon off;", "-e", f"{stand.log_dir}/nginx.error.log"),
        )

        def accepts() -> bool:
            nginx.alive()
            with socket.socket() as probe:
                return probe.connect_ex((LOOPBACK, ports["plain"])) == 0

        wait_for("nginx", accepts)
        yield house
        database.close()
    finally:
        stand.stop()
        for path in [*stand.etc.rglob("*.key"), *stand.etc.rglob("key.pem")]:
            # past the first line, which all keys of a kind have in common
            sensitive.add(path.read_text().splitlines()[2])
        sensitive.keep(stand)
        stand.close()


def test_a_revoked_client_is_refused_and_nobody_else(house: House) -> None:
    """As soon as the API has answered: NGINX by its list, the API by the ledger."""
    alice, bob = house.client("alice"), house.client("bob")
    for name in ("alice", "bob"):
        status, text = house.ask(name)
        assert (status, text.split()[0]) == (200, "SUCCESS")
        assert text.split()[-1] == ".", "no session is resumed"
    assert house.ask(None)[0] == 400
    house.change("revoke", alice, reason="keyCompromise")
    assert alice.serial_number in {each.serial_number for each in house.lists()[0]}
    status, text = house.ask("alice")
    assert status == 400
    assert "SSL certificate error" in text
    assert house.ask("bob")[0] == 200
    assert house.ask("alice", "api", "/v1/certificates")[0] in (400, 401, 403)
    assert house.ask("bob", "api", "/v1")[0] == 200
    assert bob.serial_number not in {each.serial_number for each in house.lists()[0]}


def test_a_held_client_comes_back_when_it_is_released(house: House) -> None:
    """certificateHold and release, through the API and back into NGINX."""
    carol = house.client("carol")
    assert house.ask("carol")[0] == 200
    house.change("revoke", carol, reason="certificateHold")
    assert house.ask("carol")[0] == 400
    house.change("release", carol)
    assert house.ask("carol")[0] == 200


def test_neither_session_nor_ticket_outlives_a_revocation(house: House) -> None:
    """TLS 1.2 and 1.3 with a session of before: a full handshake, and refused."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        name = f"dave-{version.name.lower().replace('_', '-')}"
        certificate = house.client(name)
        context = house.context(name)
        context.minimum_version = context.maximum_version = version

        def exchange(
            session: ssl.SSLSession | None, context: ssl.SSLContext = context
        ) -> tuple[bytes, ssl.SSLSession | None, bool]:
            address = (LOOPBACK, house.ports["plain"])
            with (
                socket.create_connection(address, 20) as plain,
                context.wrap_socket(
                    plain, server_hostname="localhost", session=session
                ) as connection,
            ):
                connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
                answer = connection.recv(4096)
                return answer, connection.session, bool(connection.session_reused)

        answer, session, _ = exchange(None)
        assert b" 200 " in answer
        house.change("revoke", certificate, reason="superseded")
        answer, _, reused = exchange(session)
        assert (b" 400 " in answer, reused) == (True, False)


def test_reloading_breaks_nobody_off(house: House) -> None:
    """Answers under way arrive whole, and new connections are taken, through twenty reloads."""
    house.client("erin")
    stop = threading.Event()
    outcomes: list[tuple[int, str]] = []

    def knock() -> None:
        while not stop.is_set():
            outcomes.append(house.ask("erin"))

    slow = house.connect("erin")
    with contextlib.closing(slow):
        slow.request("GET", "/slow")
        answer = slow.getresponse()
        first = answer.read(1000)
        thread = threading.Thread(target=knock)
        thread.start()
        try:
            for number in range(20):
                victim = house.client(f"victim-{number}")
                house.operate("revoke", victim, reason="superseded")
        finally:
            stop.set()
            thread.join()
        rest = answer.read()
    assert len(first) + len(rest) == 60_000
    assert len(outcomes) >= 20
    assert {status for status, _ in outcomes} == {200}


def test_a_kept_connection_ends_with_the_reload(house: House) -> None:
    """A revoked client cannot stay in by never closing: idle connections are closed, cleanly."""
    frank = house.client("frank")
    connection = house.connect("frank")
    with contextlib.closing(connection):
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"SUCCESS")
        house.change("revoke", frank, reason="keyCompromise")

        def out() -> bool:
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                return answer.status == 400
            except (OSError, http.client.HTTPException):
                connection.close()
                return True

        wait_for("the kept connection to end", out)


def test_the_file_of_nginx_never_holds_a_delta(house: House) -> None:
    """Two complete lists, the intermediate's and the root's, though deltas are served."""
    crls = house.lists()
    assert len(crls) == 2
    for crl in crls:
        assert not any(isinstance(e.value, x509.DeltaCRLIndicator) for e in crl.extensions)
    status, body, headers = house.fetch(f"/crl/{house.authority_id}-delta.crl")
    assert (status, headers["Content-Type"]) == (200, "application/pkix-crl")
    delta = x509.load_der_x509_crl(body)
    assert delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator).critical


def test_lists_over_http_are_those_of_the_file_and_can_be_cached(house: House) -> None:
    """The plain door of etc/nginx/ca.conf: types, ETag, 304."""
    path = f"/crl/{house.authority_id}.crl"
    status, body, headers = house.fetch(path)
    assert status == 200
    crl = x509.load_der_x509_crl(body)
    assert crl.fingerprint is not None
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number >= max(
        each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for each in house.lists()[:1]
    )
    said = run(
        *("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"),
        *("-H", f"If-None-Match: {headers['ETag']}"),
        f"http://{LOOPBACK}:{house.ports['public']}{path}",
    )
    assert said == "304 0"
    assert house.fetch("/ca/bundle.pem")[1] == (house.pki / "chain.crt").read_bytes()
    assert house.fetch("/nowhere")[0] == 404


def test_metrics_are_read_on_the_socket_and_not_through_nginx(house: House) -> None:
    """Also not by another spelling of the path, which NGINX does not know for the same."""
    assert house.stand.ask_socket("ca-public.sock", "/metrics") == 200
    for path in ("/metrics", "//metrics", "/metrics?a", "/%6detrics", "/x/../metrics", "/metrics/"):
        assert house.fetch(path)[0] == 404


def ocsp(house: House, name: str, *options: str) -> str:
    issuer = house.stand.directory / "issuer.crt"
    if not issuer.exists():
        files.write_certificates(issuer, house.authority.authorities.active.certificate)
    return run(
        *("openssl", "ocsp", *options, "-issuer", issuer, "-cert", house.pki / f"{name}.crt"),
        *("-url", f"http://{LOOPBACK}:{house.ports['public']}/ocsp"),
        *("-CAfile", house.pki / "chain.crt"),
    )


def test_openssl_and_gnutls_ask_by_ocsp(house: House) -> None:
    """With nonce and without, SHA-1 and SHA-256; good, then revoked."""
    grace = house.client("grace")
    for options in ((), ("-no_nonce",), ("-sha256",)):
        assert "grace.crt: good" in ocsp(house, "grace", *options)
    house.operate("revoke", grace, reason="affiliationChanged")
    said = ocsp(house, "grace")
    assert "grace.crt: revoked" in said
    assert "affiliationChanged" in said
    done = subprocess.run(
        [
            *("ocsptool", f"--ask=http://{LOOPBACK}:{house.ports['public']}/ocsp"),
            *("--load-issuer", house.stand.directory / "issuer.crt"),
            *("--load-cert", house.pki / "server.crt"),
            *("--load-trust", house.pki / "chain.crt", "--nonce"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verifying OCSP Response: Success." in done.stdout
    assert "Certificate Status: good" in done.stdout


def test_nginx_staples_our_answer(house: House) -> None:
    """`ssl_stapling on` with the address in the certificate; `openssl s_client -status` shows it.

    NGINX asks at the first handshake and has the answer for a later one.
    """

    def status() -> str:
        done = subprocess.run(
            [
                *("openssl", "s_client", "-connect", f"{LOOPBACK}:{house.ports['stapling']}"),
                *("-servername", "localhost", "-status", "-CAfile", house.pki / "root.crt"),
            ],
            input="",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout

    wait_for("a stapled answer", lambda: "OCSP Response Status: successful" in status())
    said = status()
    assert "Cert Status: good" in said
    assert "Verify return code: 0 (ok)" in said


def test_nginx_asks_ocsp_about_its_clients(house: House) -> None:
    """`ssl_ocsp leaf` without any list: in, and out at the next handshake once revoked.

    No cache of answers is configured there, so each handshake asks.
    """
    heidi = house.client("heidi")
    house.client("ivan")
    wait_for("an answer", lambda: house.ask("heidi", "ocsp") == (200, "SUCCESS\n"))
    house.operate("revoke", heidi, reason="keyCompromise")
    wait_for("the revoked one's refusal", lambda: house.ask("heidi", "ocsp")[0] == 400)
    assert house.ask("ivan", "ocsp")[0] == 200


def test_nobody_forges_a_client_from_outside(house: House) -> None:
    """Headers that only NGINX may set do nothing on either door of etc/nginx/ca.conf."""
    pem = (house.pki / "admin.crt").read_text().replace("\n", "%0A")
    forged = {
        "X-Ssl-Client-Verify": "SUCCESS",
        "X-Ssl-Client-Cert": pem,
        "X_Ssl_Client_Verify": "SUCCESS",
        "X_Ssl_Client_Cert": pem,
        "Client-Cert": pem,
        "X-Forwarded-For": "192.0.2.99",
    }
    genuine = house.connect("admin", "api")
    with contextlib.closing(genuine):
        genuine.request("GET", "/v1/certificates")
        assert genuine.getresponse().status == 200
    house.client("mallory")
    for name in (None, "mallory"):
        connection = house.connect(name, "api")
        with contextlib.closing(connection):
            connection.request("GET", "/v1/audit", headers=forged)
            assert connection.getresponse().status in (401, 403)
    plain = http.client.HTTPConnection(LOOPBACK, house.ports["public"], timeout=20)
    with contextlib.closing(plain):
        plain.request("GET", "/v1/audit", headers=forged)
        assert plain.getresponse().status == 404
