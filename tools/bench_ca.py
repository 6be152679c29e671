"""Certificates per CPU second: CSR in over HTTP, certificate out, every durable write included.

Three sides take turns with the same requests: the certificate service as it is shipped (the files
of etc/, gunicorn, SQLite), the `cryptography` library in a bare loop, and Debian's `cfssl serve`,
which keeps no record. What is compared is CPU, user and kernel, of whoever signs; never the bench's
own, and not the time that passes: the machine is shared by all of them.
"""

import abc
import contextlib
import gc
import hashlib
import json
import secrets
import select
import shutil
import socket
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from bench_metadata import TICKS, children, cpu_seconds, wait_until_settled
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from stand import LOOPBACK, Stand, StandError, free_port, wait_for

from services.ca import ceremony, keystore
from services.ca.authority import Actor, Authority
from services.ca.issue import BACKDATE
from services.ca.keys import KeyType, PrivateKey, generate_key
from services.ca.ledger import Ledger
from services.ca.profile_file import SHIPPED
from services.ca.profiles import SERVER
from services.ca.request import make_request
from services.core.database import Database, upgrade
from services.core.identity import OPERATORS

TURN = 200
"""Certificates of one side before it is the next one's turn: a tenth of a second or more, so that
a neighbour's noise meets all of them alike and the kernel's clock of 10 ms is fine enough."""

WARM_UP = 40
"""Certificates of each side outside the measurement: interpreters and caches settle."""

RSA_SHARE = 4
"""An RSA signature takes ten times what an ECDSA one does: a fourth of the certificates is made."""

RSA_KEYS = 8
"""Different RSA keys in the requests: making one takes as long as fifty certificates."""

AT_ONCE = 64
"""Requests under way at the same time, as many as a worker serves together for each of two."""

SILENCE_SECONDS = 30.0
LIFETIME = SERVER.default_lifetime
PUBLIC_URL = "http://ca.example.com"
PIECE = 1 << 16
ALGORITHMS = {"p256": KeyType.P256, "rsa2048": KeyType.RSA2048}


class BenchError(Exception):
    """A side broke off or fell silent: there is nothing to measure."""


# ---- the requests ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """A certificate to ask for: its CSR in PEM, the key that it must hold, and its name."""

    csr: bytes
    key: bytes
    name: str


def wishes(kind: KeyType, count: int) -> list[Wish]:
    """Requests for server certificates, each with a name of its own and, unless RSA, a key."""
    keys = [generate_key(kind) for _ in range(RSA_KEYS)] if kind.is_rsa else []
    made = []
    for number in range(count):
        key = keys[number % len(keys)] if keys else generate_key(kind)
        name = f"web-{number}-{secrets.token_hex(4)}.example.com"
        builder = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        )
        pem = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
        made.append(Wish(pem, spki(key.public_key()), name))
    return made


def spki(key: object) -> bytes:
    """A public key as a certificate holds it."""
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# ---- the client --------------------------------------------------------------------------------


class _Exchange:
    __slots__ = ("buffer", "needed", "place", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.place = 0
        self.buffer = b""
        self.needed = 0

    def complete(self) -> bool:
        """Read what is there; True when the answer is whole."""
        try:
            piece = self.socket.recv(PIECE)
        except BlockingIOError:
            return False
        if not piece:
            raise BenchError("the server closed a connection")
        self.buffer += piece
        if not self.needed:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            length = self.buffer[:end].lower().partition(b"\r\ncontent-length:")[2]
            if not length:
                raise BenchError(f"an answer without a length: {self.buffer[:200]!r}")
            self.needed = end + 4 + int(length.split(b"\r\n")[0])
        return len(self.buffer) >= self.needed


def ask_all(
    dial: Callable[[], socket.socket], requests: Sequence[bytes], *, keep: bool
) -> list[bytes]:
    """Send every request, `AT_ONCE` at a time, and return the answers in the same order.

    With `keep` a connection serves one request after the other, else only one, as NGINX does it
    with gunicorn. Raises BenchError if a connection breaks or nothing is heard for long.
    """
    answers = [b""] * len(requests)
    waiting = iter(range(len(requests)))
    underway: dict[int, _Exchange] = {}
    poll = select.epoll()

    def send(exchange: _Exchange | None) -> None:
        place = next(waiting, None)
        if place is None:
            if exchange is not None:
                exchange.socket.close()
            return
        if exchange is None:
            exchange = _Exchange(dial())
            exchange.socket.setblocking(False)
            underway[exchange.socket.fileno()] = exchange
            poll.register(exchange.socket.fileno(), select.EPOLLIN)
        else:
            underway[exchange.socket.fileno()] = exchange
        exchange.place, exchange.buffer, exchange.needed = place, b"", 0
        # a request is far smaller than the socket's buffer, which is empty
        exchange.socket.sendall(requests[place])

    gc.collect()
    gc.disable()
    try:
        for _ in range(AT_ONCE):
            send(None)
        while underway:
            events = poll.poll(SILENCE_SECONDS)
            if not events:
                raise BenchError(f"no answer within {SILENCE_SECONDS:.0f} s")
            for number, _event in events:
                exchange = underway[number]
                if not exchange.complete():
                    continue
                answers[exchange.place] = exchange.buffer
                del underway[number]
                if keep:
                    send(exchange)
                else:
                    poll.unregister(number)
                    exchange.socket.close()
                    send(None)
    finally:
        gc.enable()
        poll.close()
        for exchange in underway.values():
            exchange.socket.close()
    return answers


def post(target: str, headers: Iterable[tuple[str, str]], body: bytes) -> bytes:
    """A POST as it goes over the wire."""
    lines = [f"POST {target} HTTP/1.1", "Host: ca.example.com"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


# ---- the sides ---------------------------------------------------------------------------------


@dataclass
class Turns:
    """What a side did in one round."""

    certificates: list[x509.Certificate | None] = field(default_factory=list)
    cpu: float = 0.0
    seconds: float = 0.0
    client_cpu: float = 0.0

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU for each certificate; one step of the kernel's clock at least."""
        return max(self.cpu, 1 / TICKS) / len(self.certificates) * 1e6

    @property
    def rate(self) -> float:
        """Certificates a second of the clock."""
        return len(self.certificates) / self.seconds


class Side(abc.ABC):
    """One of those that are compared; `name` as in the results."""

    name = ""

    def __init__(self, authority: "Files") -> None:
        self.authority = authority

    def __enter__(self) -> "Side":
        return self

    @abc.abstractmethod
    def __exit__(self, *_exc: object) -> None:
        """Leave nothing behind."""

    def prepare(self, wish: Wish) -> bytes:
        """What is sent for a wish."""
        return wish.csr

    @abc.abstractmethod
    def answer(self, sent: Sequence[bytes]) -> list[bytes]:
        """Have all of them made, and return what came back."""

    @abc.abstractmethod
    def cpu(self) -> float:
        """Seconds of CPU that it has taken so far."""

    @abc.abstractmethod
    def read(self, answer: bytes) -> x509.Certificate | None:
        """The certificate in an answer, None if there is none."""

    def turn(self, wished: Sequence[Wish], turns: Turns) -> None:
        """Make these certificates and add what it took."""
        sent = [self.prepare(wish) for wish in wished]
        before, client_before, begun = self.cpu(), time.process_time(), time.perf_counter()
        answers = self.answer(sent)
        turns.seconds += time.perf_counter() - begun
        turns.client_cpu += time.process_time() - client_before
        turns.cpu += self.cpu() - before
        for wish, answer in zip(wished, answers, strict=True):
            turns.certificates.append(accepted(self.read(answer), wish, self.authority))


def accepted(
    certificate: x509.Certificate | None, wish: Wish, files: "Files"
) -> x509.Certificate | None:
    """The certificate, if it is what was wished for and signed by this authority; else None."""
    try:
        if certificate is None or spki(certificate.public_key()) != wish.key:
            return None
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if names.get_values_for_type(x509.DNSName) != [wish.name]:
            return None
        certificate.verify_directly_issued_by(files.certificate)
    except Exception:  # the library raises many kinds, and each is a wrong answer
        return None
    return certificate


class Loop(Side):
    """The library alone, in this process: parse, verify, build, sign, as a short program would."""

    name = "loop"

    def __init__(self, authority: "Files") -> None:
        super().__init__(authority)
        certificate = authority.certificate
        own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        self.subject = certificate.subject
        # what is the same in all of them, in the order in which the service has it
        self.before = [
            (x509.AuthorityKeyIdentifier(own.digest, None, None), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (SERVER.key_usage, True),
            (x509.ExtendedKeyUsage(SERVER.extended_key_usage), False),
        ]
        self.behind = authority.issuer.pointers

    def __exit__(self, *_exc: object) -> None:
        """It has nothing outside this process."""

    def answer(self, sent: Sequence[bytes]) -> list[bytes]:
        return [self.make(csr) for csr in sent]

    def make(self, pem: bytes) -> bytes:
        """One certificate in PEM, with the profile that the service has for servers."""
        csr = x509.load_pem_x509_csr(pem)
        if not csr.is_signature_valid:
            raise BenchError("a CSR's signature does not verify")
        key = csr.public_key()
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if isinstance(key, ec.EllipticCurvePublicKey):
            bits = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        else:
            assert isinstance(key, rsa.RSAPublicKey)
            bits = key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
        begin = datetime.now(UTC).replace(microsecond=0) - BACKDATE
        builder = (
            x509.CertificateBuilder()
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + LIFETIME - timedelta(seconds=1))
            .issuer_name(self.subject)
            .subject_name(x509.Name([]))
            .public_key(key)
            .add_extension(
                x509.SubjectKeyIdentifier(hashlib.sha256(bits).digest()[:20]), critical=False
            )
        )
        for extension, critical in self.before:
            builder = builder.add_extension(extension, critical)
        builder = builder.add_extension(names, critical=True)
        for extension in self.behind:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.authority.key, SHA256()).public_bytes(Encoding.PEM)

    def cpu(self) -> float:
        return time.process_time()

    def read(self, answer: bytes) -> x509.Certificate | None:
        return x509.load_pem_x509_certificate(answer)


class Cfssl(Side):
    """Debian's cfssl, without a database: nothing that it signs is recorded."""

    name = "cfssl"

    def __init__(self, authority: "Files") -> None:
        super().__init__(authority)
        self.port = free_port()
        urls = authority.issuer
        usages = ["digital signature", "server auth"]
        # as the service has it: lifetime, addresses, and names from the request
        profile = {
            "expiry": f"{int(LIFETIME.total_seconds()) // 3600}h",
            "usages": usages,
            "crl_url": urls.crl_url,
            "ocsp_url": urls.ocsp_url,
            "issuer_urls": [urls.certificate_url],
        }
        directory = authority.directory
        configuration = directory / "cfssl.json"
        configuration.write_text(json.dumps({"signing": {"default": profile}}))
        key = directory / "cfssl.key"
        form = PrivateFormat.TraditionalOpenSSL
        Stand.write_secret(key, authority.key.private_bytes(Encoding.PEM, form, NoEncryption()))
        certificate = directory / "cfssl.crt"
        certificate.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        self.process = authority.stand.start(
            "cfssl",
            *("cfssl", "serve", "-address", LOOPBACK, "-port", str(self.port)),
            *("-ca", certificate, "-ca-key", key, "-config", configuration),
            *("-loglevel", "4"),  # no line of a log for each certificate: the service has none
            cwd=directory,
        )

        def answers() -> bool:
            self.process.alive()
            with socket.socket() as probe:
                return probe.connect_ex((LOOPBACK, self.port)) == 0

        wait_for("cfssl", answers)

    def __exit__(self, *_exc: object) -> None:
        self.process.stop()
        del self.authority.stand.processes[self.process.name]

    def prepare(self, wish: Wish) -> bytes:
        body = json.dumps({"certificate_request": wish.csr.decode()}).encode()
        return post("/api/v1/cfssl/sign", [("Content-Type", "application/json")], body)

    def dial(self) -> socket.socket:
        connection = socket.create_connection((LOOPBACK, self.port), SILENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def answer(self, sent: Sequence[bytes]) -> list[bytes]:
        return ask_all(self.dial, sent, keep=True)

    def cpu(self) -> float:
        return cpu_seconds([self.process.popen.pid])

    def read(self, answer: bytes) -> x509.Certificate | None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if head[9:12] != b"200":
            return None
        return x509.load_pem_x509_certificate(json.loads(body)["result"]["certificate"].encode())


class Service(Side):
    """The certificate service as shipped: gunicorn with its filters, SQLite, an operator asks."""

    name = "ours"

    def __init__(self, authority: "Files") -> None:
        super().__init__(authority)
        stand, directory = authority.stand, authority.directory
        self.socket = directory / "ca.sock"
        self.database = directory / "ca.db"
        url = f"sqlite:///{self.database}"
        upgrade(url)
        self.headers = [
            ("X-Request-ID", "req-" + secrets.token_hex(16)),
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Ssl-Client-Verify", "SUCCESS"),
            ("X-Ssl-Client-Cert", self.operator(url)),
            ("Content-Type", "application/pkcs10"),
            ("Accept", "application/x-pem-file"),
        ]
        for name in ("ca.ini", "profiles.toml"):
            shutil.copy(stand.etc / name, directory)
        Stand.write_secret(
            directory / "mooring.conf",
            f"[database]\nurl = {url}\n[ca]\ndirectory = {directory}/ca\n"
            f"passphrase_file = {directory}/passphrase\nprofiles = {directory}/profiles.toml\n"
            f"public_url = {PUBLIC_URL}\n".encode(),
        )
        settings = (stand.etc / "gunicorn" / "ca.py").read_text(encoding="utf-8")
        (directory / "gunicorn.py").write_text(settings.replace(str(stand.run_dir), str(directory)))
        self.process = stand.start(
            "ca",
            *(sys.executable, "-m", "gunicorn", "--paste", directory / "ca.ini"),
            *("-c", directory / "gunicorn.py", "--workers", str(stand.workers)),
            env=stand.environment(),
        )

        def answers() -> bool:
            self.process.alive()
            with contextlib.suppress(OSError), self.dial():
                return True
            return False

        wait_for("the certificate service", answers)
        self.workers = wait_until_settled(self.process, stand.workers)

    def operator(self, url: str) -> str:
        """An operator's certificate, issued by the service's own authority, as NGINX passes it."""
        database = Database(url)
        try:
            authority = Authority(self.authority.authorities, Ledger(database), SHIPPED)
            actor = Actor("command:bench", frozenset(), "", "", "command")
            request = make_request(
                generate_key().public_key(), common_name="alice", organizations=[OPERATORS]
            )
            issued = authority.issue("client", request, actor).certificate
        finally:
            database.close()
        return quote(issued.public_bytes(Encoding.PEM))

    def __exit__(self, *_exc: object) -> None:
        self.process.stop()
        del self.authority.stand.processes[self.process.name]

    def dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SILENCE_SECONDS)
        try:
            connection.connect(str(self.socket))
        except OSError:
            connection.close()
            raise
        return connection

    def prepare(self, wish: Wish) -> bytes:
        return post("/v1/certificates?profile=server", self.headers, wish.csr)

    def answer(self, sent: Sequence[bytes]) -> list[bytes]:
        return ask_all(self.dial, sent, keep=False)

    def cpu(self) -> float:
        if children(self.process.popen.pid) != self.workers:
            raise BenchError("a worker of the certificate service has ended")
        return cpu_seconds(self.workers)

    def read(self, answer: bytes) -> x509.Certificate | None:
        head, _, body = answer.partition(b"\r\n\r\n")
        return x509.load_pem_x509_certificate(body) if head[9:12] == b"201" else None

    def wrong(self, certificates: Sequence[x509.Certificate]) -> list[str]:
        """What the ledger does not have as it was given out, and whether its audit trail breaks."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            rows = connection.execute("SELECT serial, der FROM ca_certificate WHERE state='issued'")
            stored = dict(rows.fetchall())
        problems = [
            f"the ledger does not have {certificate.serial_number:040x}"
            for certificate in certificates
            if stored.get(f"{certificate.serial_number:040x}")
            != certificate.public_bytes(Encoding.DER)
        ]
        if len({certificate.serial_number for certificate in certificates}) < len(certificates):
            problems.append("a serial was given twice")
        database = Database(f"sqlite:///{self.database}")
        verdict = Ledger(database).verify_audit()
        database.close()
        if not verdict.whole:
            problems.append(f"the audit trail: {verdict.reason}")
        return problems


@dataclass
class Files:
    """An authority in a directory, and the stand that the servers run on."""

    stand: Stand
    kind: KeyType

    def __post_init__(self) -> None:
        self.directory = self.stand.directory / self.kind.value
        self.directory.mkdir()
        passphrase = secrets.token_hex(16).encode()
        Stand.write_secret(self.directory / "passphrase", passphrase)
        self.authorities = ceremony.create(
            self.directory / "ca",
            "Bench",
            passphrase=lambda: passphrase,
            urls=keystore.Urls.below(PUBLIC_URL),
            now=datetime.now(UTC),
            kind=self.kind,
        )
        self.issuer = self.authorities.active
        self.certificate = self.issuer.certificate
        name = keystore.authority_id(self.certificate)
        path = self.directory / "ca" / "authorities" / name / "key.pem"
        self.key: PrivateKey = keystore.read_private_key(path, lambda: passphrase)


# ---- rounds and results ------------------------------------------------------------------------


@dataclass
class Measured:
    """All rounds of one algorithm, by side, and what was wrong in any of them."""

    rounds: list[dict[str, Turns]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def middle(self, value: Callable[[dict[str, Turns]], float]) -> float:
        """The median of the rounds."""
        return statistics.median(value(each) for each in self.rounds)


def slices(wished: Sequence[Wish]) -> Iterator[Sequence[Wish]]:
    """The wishes turn by turn."""
    for begin in range(0, len(wished), TURN):
        yield wished[begin : begin + TURN]


def measure(stand: Stand, kind: KeyType, certificates: int, rounds: int) -> Measured:
    """Let the sides make certificates in turns, round after round."""
    files = Files(stand, kind)
    measured = Measured()
    given: list[x509.Certificate] = []
    with contextlib.ExitStack() as stack:
        service = Service(files)
        stack.enter_context(service)
        sides = [service, Loop(files), stack.enter_context(Cfssl(files))]
        for side in sides:
            side.turn(wishes(kind, WARM_UP), Turns())
        for number in range(rounds):
            wished = wishes(kind, certificates)
            done = {side.name: Turns() for side in sides}
            for place, few in enumerate(slices(wished)):
                # each in turn goes first, so that none always follows the same one
                for step in range(len(sides)):
                    side = sides[(place + step) % len(sides)]
                    side.turn(few, done[side.name])
            measured.rounds.append(done)
            for name, turns in done.items():
                missing = sum(certificate is None for certificate in turns.certificates)
                if missing:
                    measured.errors += [f"{name}: a wrong answer"] * missing
            given += [each for each in done["ours"].certificates if each is not None]
            said = (f"{name} {turns.cpu_us:.0f} us" for name, turns in done.items())
            print(f"{kind.value} round {number + 1}: {', '.join(said)}", flush=True)
        measured.errors += service.wrong(given)
    return measured


def results_of(name: str, measured: Measured) -> dict[str, float]:
    """The numbers of one algorithm: medians of the rounds and of the ratios within each."""
    results: dict[str, float] = {}
    for side, prefix in (("ours", ""), ("loop", "loop."), ("cfssl", "cfssl.")):
        begin = f"ca.issue.{name}.{prefix}"

        def cpu_us(turns: dict[str, Turns], side: str = side) -> float:
            return turns[side].cpu_us

        def rate(turns: dict[str, Turns], side: str = side) -> float:
            return turns[side].rate

        results[f"{begin}cpu_us"] = measured.middle(cpu_us)
        results[f"{begin}per_cpu_second"] = 1e6 / results[f"{begin}cpu_us"]
        results[f"{begin}rate"] = measured.middle(rate)
    for peer in ("loop", "cfssl"):

        def ratio(turns: dict[str, Turns], peer: str = peer) -> float:
            return turns[peer].cpu_us / turns["ours"].cpu_us

        results[f"ca.issue.{name}.{peer}_ratio"] = measured.middle(ratio)
    results[f"ca.issue.{name}.client_cpu_us"] = measured.middle(
        lambda turns: turns["ours"].client_cpu / len(turns["ours"].certificates) * 1e6
    )
    return results


def show(results: dict[str, float]) -> None:
    """Print the table."""
    rows = (
        ("certificates per CPU second", "per_cpu_second", "{:.0f}"),
        ("CPU us a certificate", "cpu_us", "{:.0f}"),
        ("certificates a second", "rate", "{:.0f}"),
    )
    columns = [
        (f"{name} {title}", f"ca.issue.{name}.{prefix}")
        for name in ALGORITHMS
        for title, prefix in (("ours", ""), ("loop", "loop."), ("cfssl", "cfssl."))
    ]
    print("\n" + " " * 28 + "".join(f"{title:>14}" for title, _ in columns))
    for title, key, form in rows:
        cells = (form.format(results[prefix + key]) for _, prefix in columns)
        print(f"{title:<28}" + "".join(f"{cell:>14}" for cell in cells))
    print()
    for name in ALGORITHMS:
        for peer in ("loop", "cfssl"):
            key = f"ca.issue.{name}.{peer}_ratio"
            print(f"{key:<28}{results[key]:>14.3f}")
    print(f"{'ca.issue.errors':<28}{results['ca.issue.errors']:>14.0f}")


def run_ca(*, certificates: int, rounds: int, workers: int) -> dict[str, float]:
    """Measure, print a table; returns the numbers by their dotted names."""
    if shutil.which("cfssl") is None:
        raise StandError("cfssl is not installed: apt-get install golang-cfssl")
    results: dict[str, float] = {}
    errors: list[str] = []
    stand = Stand(workers=workers)
    try:
        stand.prepare()
        for name, kind in ALGORITHMS.items():
            count = max(certificates // RSA_SHARE, 1) if kind.is_rsa else certificates
            measured = measure(stand, kind, count, rounds)
            results |= results_of(name, measured)
            errors += measured.errors
    finally:
        stand.close()
    for error in errors[:5]:
        print(f"  wrong: {error}")
    results["ca.issue.errors"] = float(len(errors))
    results["ca.issue.certificates"] = float(certificates)
    results["ca.issue.workers"] = float(workers)
    show(results)
    return results
