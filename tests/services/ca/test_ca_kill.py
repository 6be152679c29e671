"""The certificate service as it is deployed, while its workers are killed at random moments.

MOORING_KILL_REQUESTS says how many requests (2,000 for the promise of the issue; fewer by default,
for a test that is run often).
"""

import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from services.ca import ceremony, keystore
from services.ca.authority import Actor, Authority
from services.ca.keys import generate_key, signature_hash
from services.ca.keystore import crl_number
from services.ca.ledger import Ledger, Search, serial_text
from services.ca.profile_file import SHIPPED
from services.ca.publication import issuer_id
from services.ca.request import make_request
from services.ca.states import ISSUED, REVOKED
from services.core.database import Database
from services.core.identity import ADMINS

ROOT = Path(__file__).parents[3]
REQUESTS = int(os.environ.get("MOORING_KILL_REQUESTS", "300"))
AT_ONCE = 48
# every so many certificates that a client receives are revoked, while workers die
REVOKED_EACH = 6
WORKERS = 4
TRIES_OF_A_TOKEN = 4
COMMAND = Actor("command:test", frozenset(), "", "", "command")
PASSPHRASE = b"a passphrase for the test"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket, as NGINX speaks it."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


@dataclass
class Running:
    """The service: its socket, its master process, and an authority of ours over the same files."""

    directory: Path
    socket: Path
    master: "subprocess.Popen[bytes]"
    authority: Authority
    headers: dict[str, str] = field(default_factory=dict)

    def workers(self) -> list[int]:
        """The process ids of the workers that live now."""
        with contextlib.suppress(OSError):
            pid = self.master.pid
            return [
                int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            ]
        return []

    def ask(self, path: str, document: object, **headers: str) -> tuple[int, bytes]:
        """One POST; status and body, or an OSError or HTTPException as the connection broke."""
        connection = UnixConnection(self.socket)
        try:
            sent = {"Content-Type": "application/json", "X-Forwarded-For": "192.0.2.1", **headers}
            connection.request("POST", path, json.dumps(document), sent)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def crl(self) -> x509.CertificateRevocationList | None:
        """The list as everybody fetches it; None if the connection broke or there is none now."""
        connection = UnixConnection(self.directory / "ca-public.sock")
        try:
            connection.request("GET", f"/crl/{issuer_id(self.authority.authorities.active)}.crl")
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        assert response.status in (200, 503), response.status
        return x509.load_der_x509_crl(body) if response.status == 200 else None


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll until the condition holds, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def running(database_url: str, tmp_path: Path) -> Iterator[Running]:
    """gunicorn with etc/gunicorn/ca.py and etc/mooring/ca.ini, their paths moved, and an admin."""
    authorities = ceremony.create(
        tmp_path / "ca",
        "Example",
        passphrase=lambda: PASSPHRASE,
        urls=keystore.Urls.below("http://ca.example.com"),
        now=datetime.now(UTC),
    )
    (tmp_path / "passphrase").write_bytes(PASSPHRASE)
    (tmp_path / "passphrase").chmod(0o600)
    shutil.copy(ROOT / "etc/mooring/ca.ini", tmp_path)
    shutil.copy(ROOT / "etc/mooring/profiles.toml", tmp_path)
    (tmp_path / "mooring.conf").write_text(
        f"[database]\nurl = {database_url}\n[ca]\ndirectory = {tmp_path}/ca\n"
        f"passphrase_file = {tmp_path}/passphrase\nprofiles = {tmp_path}/profiles.toml\n"
        "public_url = http://ca.example.com\n"
    )
    settings = (ROOT / "etc/gunicorn/ca.py").read_text().replace("/run/mooring", str(tmp_path))
    settings = settings.replace("max(2, os.cpu_count() or 1)", str(WORKERS))
    (tmp_path / "gunicorn.py").write_text(settings)
    with (tmp_path / "log").open("wb") as log:
        master = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--paste", tmp_path / "ca.ini"),
                *("-c", tmp_path / "gunicorn.py"),
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    database = Database(database_url)
    authority = Authority(authorities, Ledger(database), SHIPPED)
    running = Running(tmp_path, tmp_path / "ca.sock", master, authority)
    try:
        request = make_request(
            generate_key().public_key(), common_name="ann", organizations=[ADMINS]
        )
        admin = authority.issue("client", request, COMMAND).certificate
        running.headers = {
            "X-Ssl-Client-Verify": "SUCCESS",
            "X-Ssl-Client-Cert": quote(admin.public_bytes(Encoding.PEM)),
        }

        def answers() -> bool:
            assert master.poll() is None, (tmp_path / "log").read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                return running.ask("/v1/tokens", {})[0] == 401
            return False

        until(answers, "gunicorn does not answer")
        yield running
    finally:
        master.send_signal(signal.SIGTERM)
        try:
            master.wait(30)
        except subprocess.TimeoutExpired:
            master.kill()
            master.wait(30)
        database.close()


def csr(name: str | None) -> str:
    key = generate_key()
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    request = builder.sign(key, signature_hash(key.public_key()))
    return request.public_bytes(Encoding.PEM).decode()


def test_what_a_client_holds_is_in_the_ledger_whatever_dies(running: Running) -> None:
    """Every certificate received is stored whole, no serial twice, each token used once, and the
    audit trail verifies; every revocation that was confirmed is on the list, whose number only
    rises and whose signature OpenSSL verifies: although workers were killed all the time."""
    authority, ledger = running.authority, running.authority.ledger
    admin = Actor("ann", frozenset({ADMINS}), "", "", "certificate", "client")
    tokens = [
        authority.create_token("host", {"common_name": f"n{n}"}, timedelta(hours=1), admin)[1]
        for n in range(max(1, REQUESTS // 40))
    ]
    shared = csr("bob")
    jobs: list[tuple[dict[str, str], dict[str, str]]] = [
        ({"profile": "client", "csr": shared}, running.headers)
        for _ in range(REQUESTS - len(tokens) * TRIES_OF_A_TOKEN)
    ]
    jobs += [
        ({"csr": csr(None)}, {"Authorization": f"Bearer {token}"})
        for token in tokens
        for _ in range(TRIES_OF_A_TOKEN)
    ]
    random.shuffle(jobs)
    received: list[tuple[str, bytes]] = []
    statuses: list[int] = []
    broken: list[str] = []
    confirmed: set[str] = set()
    unsure: set[str] = set()

    def revoke(serial: str) -> None:
        try:
            status, body = running.ask(
                f"/v1/certificates/{serial}/revoke", {"reason": "superseded"}, **running.headers
            )
        except (OSError, http.client.HTTPException):
            unsure.add(serial)
            return
        assert status in (200, 503), body
        (confirmed if status == 200 else unsure).add(serial)

    def one(job: tuple[dict[str, str], dict[str, str]]) -> None:
        document, headers = job
        try:
            status, body = running.ask("/v1/certificates", document, **headers)
        except (OSError, http.client.HTTPException) as error:
            broken.append(type(error).__name__)
            return
        statuses.append(status)
        if status == 201:
            answer = json.loads(body)
            certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
            assert answer["serial"] == serial_text(certificate.serial_number)
            token = headers.get("Authorization", "")
            received.append((token, certificate.public_bytes(Encoding.DER)))
            if len(received) % REVOKED_EACH == 0:
                revoke(answer["serial"])

    numbers: list[int] = []

    def watcher() -> None:
        while not finished.wait(0.1):
            crl = running.crl()
            if crl is not None:
                numbers.append(crl_number(crl))

    finished = threading.Event()
    killed: list[int] = []

    def killer() -> None:
        while not finished.wait(random.uniform(0.02, 0.4)):
            alive = [pid for pid in running.workers() if pid not in killed]
            # one is left, or nothing would be answered at all while others are born
            if len(alive) > 1:
                victim = random.choice(alive)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

    hunter = threading.Thread(target=killer)
    reader = threading.Thread(target=watcher)
    hunter.start()
    reader.start()
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(one, jobs))
    finally:
        finished.set()
        hunter.join(30)
        reader.join(90)
    print(
        f"{len(received)} certificates received, {len(broken)} connections broken,"
        f" {len(killed)} workers killed, {len(confirmed)} revoked, {len(unsure)} perhaps,"
        f" {len(numbers)} lists read"
    )
    assert len(killed) >= 2
    assert received
    assert confirmed
    assert numbers == sorted(numbers)
    assert set(statuses) <= {201, 403, 503}, statuses

    for _token, der in received:
        record = ledger.by_fingerprint(hashlib.sha256(der).hexdigest())
        assert record is not None
        states = {REVOKED} if record.serial in confirmed else {ISSUED}
        assert record.state in ({ISSUED, REVOKED} if record.serial in unsure else states)
        assert ledger.der(record.authority_id, record.serial) == der
    serials = [x509.load_der_x509_certificate(der).serial_number for _, der in received]
    assert len(set(serials)) == len(serials)
    used = [token for token, _ in received if token]
    assert len(set(used)) == len(used)
    hosts = ledger.search(Search(profile="host"), now=datetime.now(UTC), limit=1000)
    assert len({each.common_name for each in hosts}) == len(hosts)
    verdict = ledger.verify_audit()
    assert (verdict.bad, verdict.reason) == (None, "")
    # it goes on as if nothing had happened
    until(lambda: len(running.workers()) == WORKERS, "the workers do not come back")
    status, _ = running.ask(
        "/v1/certificates", {"profile": "client", "csr": shared}, **running.headers
    )
    assert status == 201
    assert_lists_hold(running, confirmed, max(numbers, default=0))


def assert_lists_hold(running: Running, confirmed: set[str], seen: int) -> None:
    """The list that is served shows exactly what the ledger holds as revoked, at least what was
    confirmed; it verifies, its number is the greatest, and no number was used for two lists."""
    authority, ledger = running.authority, running.authority.ledger
    now = datetime.now(UTC)
    rows = ledger.search(Search(state=REVOKED), now=now, limit=1000)
    revoked = {row.serial for row in rows}
    assert confirmed <= revoked
    crl: x509.CertificateRevocationList | None = None

    def complete() -> bool:
        nonlocal crl
        crl = running.crl()
        return crl is not None and {serial_text(e.serial_number) for e in crl} == revoked

    # a worker that died between the commit and its list left that to the others' next round
    until(complete, "the list does not show every revocation", 30)
    assert crl is not None
    issuer = authority.authorities.active
    name = issuer_id(issuer)
    assert crl_number(crl) >= seen
    with ledger.database.read() as connection:
        stored = [each.number for each in ledger.crl_numbers(connection, name)]
    assert stored == sorted(set(stored))
    assert stored[-1] == crl_number(crl)
    delta = ledger.latest_crl(name, delta=True)
    assert delta is not None
    assert delta.number == crl_number(crl)
    (running.directory / "latest.crl").write_bytes(crl.public_bytes(Encoding.PEM))
    (running.directory / "issuer.pem").write_bytes(issuer.certificate.public_bytes(Encoding.PEM))
    done = subprocess.run(
        [
            *("openssl", "crl", "-in", running.directory / "latest.crl", "-noout", "-verify"),
            *("-CAfile", running.directory / "issuer.pem"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "verify OK\n")
