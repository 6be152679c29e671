"""Validation against real web, name and TLS servers, honest and hostile ones."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from services.ca.acme import challenges
from services.ca.acme.challenges import Deadline, Resolver, Validator
from services.ca.acme.jws import encode
from services.ca.acme.problems import Problem
from services.ca.acme.rules import Identifier
from services.ca.names import IPAddress

TOKEN = "dG9rZW4tb2YtdGhlLXRlc3Q"
THUMBPRINT = "dGh1bWJwcmludA"
AUTHORIZATION = f"{TOKEN}.{THUMBPRINT}"
PATH = f"/.well-known/acme-challenge/{TOKEN}"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
NAME = Identifier("dns", "a.example.test")

Talk = Callable[[socket.socket], None]


@dataclass
class Table:
    """A lookup by table; a name that is not there has 127.0.0.1."""

    hosts: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def addresses(self, name: str, deadline: Deadline) -> list[IPAddress]:
        self.asked.append(name)
        return [ipaddress.ip_address(each) for each in self.hosts.get(name, ["127.0.0.1"])]

    def texts(self, name: str, deadline: Deadline) -> list[str]:
        raise AssertionError(name)


@contextlib.contextmanager
def listening(talk: Talk, host: str = "127.0.0.1") -> Iterator[tuple[int, list[str]]]:
    """A TCP server that talks so to each connection; yields its port and who came."""
    came: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            came.append(self.client_address[0])
            with contextlib.suppress(OSError):
                talk(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server.server_address[1], came
        finally:
            server.shutdown()


def head(connection: socket.socket) -> str:
    """The head of a request."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(4096)
        if not piece:
            break
        data += piece
    return data.decode()


def answering(raw: str | bytes) -> Talk:
    data = raw.encode() if isinstance(raw, str) else raw

    def talk(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(data)

    return talk


def ok(body: str, *headers: str) -> str:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", body])


def validate(
    port: int, kind: str = "http-01", identifier: Identifier = NAME, **more: object
) -> None:
    options = {"lookup": Table(), "allowed": LOOPBACK, "http_port": port, "tls_port": port, **more}
    Validator(**options).validate(kind, identifier, TOKEN, THUMBPRINT)  # type: ignore[arg-type]


def refused(kind: str, says: str) -> contextlib.AbstractContextManager[object]:
    """Expect a Problem of this kind."""

    @contextlib.contextmanager
    def expect() -> Iterator[None]:
        with pytest.raises(Problem) as problem:
            yield
        assert problem.value.kind == kind, problem.value
        assert says in problem.value.detail, problem.value

    return expect()


# ---- http-01 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        ok(AUTHORIZATION),
        ok(AUTHORIZATION + "\r\n \n"),
        f"HTTP/1.0 200 OK\r\n\r\n{AUTHORIZATION}",
        f"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{AUTHORIZATION}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"{len(AUTHORIZATION):x}\r\n{AUTHORIZATION}\r\n0\r\n\r\n",
    ],
)
def test_http(answer: str) -> None:
    """The key authorization, with or without white space behind it, shows control."""
    seen: list[str] = []

    def talk(connection: socket.socket) -> None:
        seen.append(head(connection))
        connection.sendall(answer.encode())

    with listening(talk) as (port, _):
        validate(port)
    request = seen[0].split("\r\n")
    assert request[0] == f"GET {PATH} HTTP/1.1"
    assert f"Host: a.example.test:{port}" in request


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (ok("something else"), "incorrectResponse", "not the challenge's"),
        (ok(""), "incorrectResponse", "not the challenge's"),
        (ok(" " + AUTHORIZATION), "incorrectResponse", "not the challenge's"),
        (ok(AUTHORIZATION + "x"), "incorrectResponse", "not the challenge's"),
        (ok(AUTHORIZATION.swapcase()), "incorrectResponse", "not the challenge's"),
        (ok(TOKEN), "incorrectResponse", "not the challenge's"),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "incorrectResponse",
            "status 404",
        ),
        (
            "HTTP/1.1 204 No Content\r\n\r\n",
            "incorrectResponse",
            "status 204",
        ),
        ("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "incorrectResponse", "status 302"),
        ("", "connection", "broke off"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "connection", "broke off"),
        ("HTTP/1.1 abc\r\n\r\n", "connection", "broke off"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "connection", "broke off"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20000 + b"\r\n\r\n", "connection", "broke off"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "connection",
            "broke off",
        ),
    ],
)
def test_http_answers_that_show_nothing(answer: str | bytes, kind: str, says: str) -> None:
    """Anything else fails, with a reason that repeats nothing of the answer."""
    with listening(answering(answer)) as (port, _), refused(kind, says):
        validate(port)


def test_what_was_read_is_not_repeated() -> None:
    """The reason tells nothing of what a server inside answered: no probing through us."""
    neighbour = answering(ok("SECRET-OF-A-NEIGHBOUR", "X-Secret: S2"))
    with listening(neighbour) as (port, _), pytest.raises(Problem) as problem:
        validate(port)
    assert "S2" not in problem.value.detail
    assert "SECRET" not in problem.value.detail


def test_an_endless_body_is_not_read() -> None:
    """Of an endless answer some kilobytes are read, whatever it promises."""
    sent = []

    def talk(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"A" * 65536)
                sent.append(65536)

    with listening(talk) as (port, _), refused("incorrectResponse", "not the challenge's"):
        validate(port)
    assert sum(sent) < 64 << 20


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_slow_server_is_left(monkeypatch: pytest.MonkeyPatch, first: bytes) -> None:
    """A server that sends an octet now and then is left when the attempt's time is up."""
    monkeypatch.setattr(challenges, "ATTEMPT_SECONDS", 0.5)
    stop = threading.Event()

    def talk(connection: socket.socket) -> None:
        head(connection)
        connection.sendall(first)
        while not stop.wait(0.05):
            connection.sendall(b"A")

    with listening(talk) as (port, _), refused("connection", "no answer within"):
        validate(port)
    stop.set()


def test_nobody_listens() -> None:
    """A refused connection says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with refused("connection", "nobody accepts"):
        validate(port)


def test_the_next_address_is_tried() -> None:
    """A name with several addresses is validated at the first that answers."""
    lookup = Table({"a.example.test": ["127.0.0.9", "127.0.0.1"]})
    with listening(answering(ok(AUTHORIZATION))) as (port, came):
        validate(port, lookup=lookup)
    assert len(came) == 1


# ---- where it connects to -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "10.0.0.1", "0.0.0.0", "::1", "224.0.0.1"],
)
def test_addresses_outside_the_networks(address: str) -> None:
    """No connection goes to an address outside the configured networks, however it is written."""
    networks = [ipaddress.ip_network("192.0.2.0/24")]
    if address.startswith("::ffff"):
        # wide in IPv6, which says nothing of the IPv4 that is reached by it
        networks.append(ipaddress.ip_network("::/1"))
    lookup = Table({"a.example.test": [address]})
    with (
        listening(answering(ok(AUTHORIZATION))) as (port, came),
        refused("connection", "no address in a network"),
    ):
        validate(port, lookup=lookup, allowed=tuple(networks))
    assert came == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1"),
        *("::1", "::", "fe80::1", "ff02::1", "64:ff9b::7f00:1", "::ffff:127.0.0.1", "::127.0.0.1"),
    ],
)
def test_the_whole_world_is_not_this_machine(address: str) -> None:
    """Networks for all the world allow no special address: those have to be named."""
    world = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    with (
        listening(answering(ok(AUTHORIZATION))) as (port, came),
        refused("connection", "no address in a network"),
    ):
        validate(port, lookup=Table({"a.example.test": [address]}), allowed=world)
    assert came == []


def test_only_allowed_addresses_of_a_name() -> None:
    """Of a name with addresses inside and outside only those inside are connected to."""
    lookup = Table({"a.example.test": ["::1", "127.0.0.1"]})
    with listening(answering(ok(AUTHORIZATION))) as (port, came):
        validate(port, lookup=lookup)
    assert came == ["127.0.0.1"]


def test_an_identifier_that_is_an_address() -> None:
    """An address is connected to directly, if it is in the networks (RFC 8738)."""
    lookup = Table()
    with listening(answering(ok(AUTHORIZATION))) as (port, _):
        validate(port, identifier=Identifier("ip", "127.0.0.1"), lookup=lookup)
        with refused("connection", "no address in a network"):
            validate(port, identifier=Identifier("ip", "192.0.2.1"), lookup=lookup)
    assert lookup.asked == []


def test_without_networks_only_dns_is_offered() -> None:
    """No networks: the service connects to nobody, so only dns-01 can be offered."""
    silent = Validator(Table())
    assert silent.types(NAME) == ("dns-01",)
    assert silent.types(Identifier("dns", "example.test", wildcard=True)) == ("dns-01",)
    assert silent.types(Identifier("ip", "192.0.2.1")) == ()
    wide = Validator(Table(), LOOPBACK)
    assert set(wide.types(NAME)) == {"http-01", "dns-01", "tls-alpn-01"}
    assert wide.types(Identifier("dns", "example.test", wildcard=True)) == ("dns-01",)
    assert set(wide.types(Identifier("ip", "192.0.2.1"))) == {"http-01", "tls-alpn-01"}


def redirecting(location: str, final: str = ok(AUTHORIZATION)) -> Talk:
    def talk(connection: socket.socket) -> None:
        request = head(connection)
        if PATH in request.partition("\r\n")[0]:
            answer = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(answer.encode())
        else:
            connection.sendall(final.encode())

    return talk


@pytest.mark.parametrize(
    "location", ["/elsewhere", "http://b.example.test/elsewhere?x=1", "//b.example.test/y", "y"]
)
def test_redirects_are_followed(location: str) -> None:
    """A redirect to another path or host is followed, and the host judged anew."""
    with listening(redirecting(location)) as (port, came):
        validate(port)
    assert len(came) == 2


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("http://inside.example.test/x", "no address in a network"),
        ("http://169.254.169.254/latest/meta-data/", "no address in a network"),
        ("http://[::1]/x", "no address in a network"),
        ("http://2130706433/x", "host name that is none"),
        ("http://0x7f.1/x", "host name that is none"),
        ("http://127.1/x", "host name that is none"),
        ("http://b.example.test:22/x", "port 22"),
        ("http://b.example.test:99999/x", "no URL"),
        ("http://[::1/x", "no URL"),
        ("ftp://b.example.test/x", "something else"),
        ("file:///etc/passwd", "something else"),
        ("gopher://b.example.test/_x", "something else"),
        ("http://user:pw@b.example.test/x", "something else"),
        ("http://b_c.example.test/x", "host name that is none"),
        ("http://b.example.test/\u00e9", "cannot be asked for"),
    ],
)
def test_redirects_that_are_not_followed(location: str, says: str) -> None:
    """A redirect leads nowhere that the name itself could not have led to."""
    lookup = Table({"inside.example.test": ["10.0.0.1", "169.254.169.254"]})
    with listening(redirecting(location)) as (port, came), refused("connection", says):
        validate(port, lookup=lookup)
    assert len(came) == 1


def test_a_redirect_cannot_add_a_header() -> None:
    """A line break in a Location never reaches a request."""
    seen: list[str] = []

    def talk(connection: socket.socket) -> None:
        seen.append(head(connection))
        connection.sendall(
            b"HTTP/1.1 302 Found\r\nLocation: /x\n X-Injected: 1\r\nContent-Length: 0\r\n\r\n"
        )

    with listening(talk) as (port, _), pytest.raises(Problem):
        validate(port)
    assert all("Injected" not in each for each in seen[1:])


def test_redirects_without_end() -> None:
    """A loop of redirects ends after a few."""
    with listening(redirecting(PATH)) as (port, came), refused("connection", "redirects"):
        validate(port)
    assert len(came) == challenges.REDIRECTS + 1


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy named in the environment sees nothing of a validation."""
    with listening(answering(ok("proxy"))) as (proxy, came):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        with listening(answering(ok(AUTHORIZATION))) as (port, _):
            validate(port)
    assert came == []


def test_a_redirect_to_https_needs_no_trusted_certificate(tmp_path: Path) -> None:
    """A host that redirects to https may have any certificate: a good one is what it asks for."""
    context = tls_context(tmp_path, alpn_certificate("a.example.test", critical=True))

    def secure(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as stream:
            head(stream)
            stream.sendall(ok(AUTHORIZATION).encode())

    with (
        listening(secure) as (tls_port, _),
        listening(redirecting("https://a.example.test/x")) as (port, _),
    ):
        validate(port, tls_port=tls_port)


# ---- tls-alpn-01 --------------------------------------------------------------------------------

DIGEST = hashlib.sha256(AUTHORIZATION.encode()).digest()


def alpn_certificate(
    *names: str,
    value: bytes = b"\x04\x20" + DIGEST,
    critical: bool = True,
    mark: bool = True,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A self-signed certificate as RFC 8737 has it, unless said otherwise."""
    key = ec.generate_private_key(ec.SECP256R1())
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            general.append(x509.DNSName(name))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "challenge")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(hours=1))
    )
    if general:
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    if mark:
        oid = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
        extension = x509.UnrecognizedExtension(oid, value)
        builder = builder.add_extension(extension, critical=critical)
    return key, builder.sign(key, hashes.SHA256())


def tls_context(
    tmp_path: Path,
    credential: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
    alpn: str | None = "acme-tls/1",
) -> ssl.SSLContext:
    key, certificate = credential
    path = tmp_path / "alpn.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


def shaking(context: ssl.SSLContext, names: list[str] | None = None) -> Talk:
    def note(_stream: object, name: str | None, _context: object) -> None:
        if names is not None:
            names.append(name or "")

    context.sni_callback = note

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as stream:
            stream.recv(1)

    return talk


@pytest.mark.parametrize(
    ("identifier", "sni"),
    [
        (NAME, "a.example.test"),
        (Identifier("ip", "127.0.0.1"), "1.0.0.127.in-addr.arpa"),
    ],
)
def test_tls_alpn(tmp_path: Path, identifier: Identifier, sni: str) -> None:
    """The certificate of RFC 8737 shows control; an address is asked for by its reverse name."""
    names: list[str] = []
    context = tls_context(tmp_path, alpn_certificate(identifier.value))
    with listening(shaking(context, names)) as (port, _):
        validate(port, "tls-alpn-01", identifier)
    assert names == [sni]


@pytest.mark.parametrize(
    ("credential", "says"),
    [
        (alpn_certificate("b.example.test"), "exactly this name"),
        (alpn_certificate("a.example.test", "b.example.test"), "exactly this name"),
        (alpn_certificate("127.0.0.1"), "exactly this name"),
        (alpn_certificate(), "not the challenge's"),
        (alpn_certificate("a.example.test", mark=False), "not the challenge's"),
        (alpn_certificate("a.example.test", critical=False), "challenge's value"),
        (alpn_certificate("a.example.test", value=DIGEST), "challenge's value"),
        (alpn_certificate("a.example.test", value=b"\x04\x20" + b"x" * 32), "challenge's value"),
        (alpn_certificate("a.example.test", value=b"\x04\x20" + DIGEST + b"\0"), "value"),
    ],
)
def test_tls_alpn_certificates_that_show_nothing(
    tmp_path: Path,
    credential: tuple[ec.EllipticCurvePrivateKey, x509.Certificate],
    says: str,
) -> None:
    """Another name, more names, no mark or another value: refused."""
    context = tls_context(tmp_path, credential)
    with listening(shaking(context)) as (port, _), refused("incorrectResponse", says):
        validate(port, "tls-alpn-01")


@pytest.mark.parametrize("alpn", [None, "http/1.1"])
def test_tls_without_the_protocol(tmp_path: Path, alpn: str | None) -> None:
    """A server that does not speak acme-tls/1 shows nothing, whatever its certificate."""
    context = tls_context(tmp_path, alpn_certificate("a.example.test"), alpn)
    with listening(shaking(context)) as (port, _), refused("tls", ""):
        validate(port, "tls-alpn-01")


def test_what_is_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that speaks no TLS fails, one that says nothing is left when the time is up."""
    with listening(lambda c: c.sendall(b"220 mail\r\n")) as (port, _), refused("tls", "handshake"):
        validate(port, "tls-alpn-01")
    monkeypatch.setattr(challenges, "ATTEMPT_SECONDS", 0.3)
    stop = threading.Event()
    with (
        listening(lambda _c: assert_set(stop)) as (port, _),
        refused("connection", "no answer within"),
    ):
        validate(port, "tls-alpn-01")
    stop.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


# ---- dns-01 and the resolver --------------------------------------------------------------------


@contextlib.contextmanager
def name_server(answer: Callable[[dns.message.Message], bytes | None]) -> Iterator[str]:
    """A name server over UDP and TCP; yields its address."""

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            found = answer(dns.message.from_wire(data))
            if found is not None:
                if len(found) > 1232:
                    short = dns.message.make_response(dns.message.from_wire(data))
                    short.flags |= dns.flags.TC
                    found = short.to_wire()
                sock.sendto(found, self.client_address)

    class Tcp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            size = int.from_bytes(self.request.recv(2), "big")
            found = answer(dns.message.from_wire(self.request.recv(size)))
            if found is not None:
                self.request.sendall(len(found).to_bytes(2, "big") + found)

    for _ in range(20):
        udp = socketserver.ThreadingUDPServer(("127.0.0.1", 0), Udp)
        try:
            socketserver.ThreadingTCPServer.allow_reuse_address = True
            tcp = socketserver.ThreadingTCPServer(udp.server_address, Tcp)
            break
        except OSError:
            udp.server_close()
    with udp, tcp:
        for server in (udp, tcp):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"127.0.0.1:{udp.server_address[1]}"
        finally:
            udp.shutdown()
            tcp.shutdown()


def zone(records: dict[tuple[str, str], list[str]]) -> Callable[[dns.message.Message], bytes]:
    """Answers by a table of (name, type); a name that is nowhere is NXDOMAIN."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        if not any(each == name for each, _ in records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        for each in (kind, "CNAME"):
            if (name, each) in records:
                values = records[name, each]
                response.answer.append(dns.rrset.from_text(question.name, 1, "IN", each, *values))
                break
        return response.to_wire(max_size=65535)

    return answer


CHALLENGE = "_acme-challenge.a.example.test"
VALUE = encode(DIGEST)


def dns_validate(records: dict[tuple[str, str], list[str]]) -> None:
    with name_server(zone(records)) as address:
        Validator(Resolver([address])).validate("dns-01", NAME, TOKEN, THUMBPRINT)


@pytest.mark.parametrize(
    "records",
    [
        {(CHALLENGE, "TXT"): [f'"{VALUE}"']},
        {(CHALLENGE, "TXT"): ['"old"', f'"{VALUE}"', '"other"']},
        {(CHALLENGE, "TXT"): [f'"{VALUE[:10]}" "{VALUE[10:]}"']},
        {(CHALLENGE, "CNAME"): ["x.other.test."], ("x.other.test", "TXT"): [f'"{VALUE}"']},
        {
            (CHALLENGE, "CNAME"): ["x.other.test."],
            ("x.other.test", "CNAME"): ["y.other.test."],
            ("y.other.test", "TXT"): [f'"{VALUE}"'],
        },
        # too large for a datagram
        {(CHALLENGE, "TXT"): [*(f'"{n:0200d}"' for n in range(20)), f'"{VALUE}"']},
    ],
    ids=["one", "among others", "in pieces", "alias", "aliases", "over TCP"],
)
def test_dns(records: dict[tuple[str, str], list[str]]) -> None:
    """The digest among the TXT records of the name, or of where its aliases lead, shows control."""
    dns_validate(records)


@pytest.mark.parametrize(
    ("records", "kind", "says"),
    [
        ({}, "dns", "there is no name"),
        ({(CHALLENGE, "A"): ["192.0.2.1"]}, "incorrectResponse", "no TXT record"),
        ({(CHALLENGE, "TXT"): ['"x"', '"y"']}, "incorrectResponse", "none of the 2"),
        ({(CHALLENGE, "TXT"): [f'"{AUTHORIZATION}"']}, "incorrectResponse", "none of the 1"),
        ({(CHALLENGE, "TXT"): [f'"{VALUE.lower()}"']}, "incorrectResponse", "none of the 1"),
        ({(CHALLENGE, "CNAME"): [f"{CHALLENGE}."]}, "dns", ""),
        (
            {
                (CHALLENGE, "CNAME"): ["x.other.test."],
                ("x.other.test", "CNAME"): [f"{CHALLENGE}."],
            },
            "dns",
            "alias",
        ),
        ({(CHALLENGE, "CNAME"): ["x.other.test."]}, "dns", "no name"),
    ],
)
def test_dns_that_shows_nothing(
    records: dict[tuple[str, str], list[str]], kind: str, says: str
) -> None:
    """No record, another value, aliases in a circle or into nothing: refused, with the reason."""
    with refused(kind, says):
        dns_validate(records)


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence and noise of a name server end as a problem when the time is up."""
    monkeypatch.setattr(challenges, "ATTEMPT_SECONDS", 0.5)
    for answer in (lambda _query: None, lambda _query: b"noise"):
        with name_server(answer) as address, refused("dns", "name servers"):
            began = time.monotonic()
            Validator(Resolver([address])).validate("dns-01", NAME, TOKEN, THUMBPRINT)
        assert time.monotonic() - began < 10


def test_a_name_server_that_fails() -> None:
    """SERVFAIL is a problem of the type dns."""

    def answer(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.SERVFAIL)
        return response.to_wire()

    with name_server(answer) as address, refused("dns", "could not answer"):
        Validator(Resolver([address])).validate("dns-01", NAME, TOKEN, THUMBPRINT)


def test_the_longest_name() -> None:
    """A name that is too long with _acme-challenge before it is a problem, not a crash."""
    name = ".".join(["a" * 60] * 4) + ".test"
    with refused("dns", "could not answer"):
        Validator(Resolver(["127.0.0.1:1"])).validate(
            "dns-01", Identifier("dns", name), TOKEN, THUMBPRINT
        )


def test_addresses_by_the_resolver() -> None:
    """The resolver gives IPv6 before IPv4, follows aliases, and says when there is none."""
    records = {
        ("a.example.test", "CNAME"): ["b.example.test."],
        ("b.example.test", "A"): ["192.0.2.1"],
        ("b.example.test", "AAAA"): ["2001:db8::1"],
        ("c.example.test", "TXT"): ['"x"'],
    }
    with name_server(zone(records)) as address:
        resolver = Resolver([address])
        found = resolver.addresses("a.example.test", Deadline(5))
        assert [str(each) for each in found] == ["2001:db8::1", "192.0.2.1"]
        with refused("dns", "no address"):
            resolver.addresses("c.example.test", Deadline(5))
        with refused("dns", "there is no name"):
            resolver.addresses("d.example.test", Deadline(5))


def test_the_hosts_file_is_not_read() -> None:
    """localhost is a name like any other: only the name servers say where it is."""
    with name_server(zone({})) as address, refused("dns", "there is no name"):
        Resolver([address]).addresses("localhost", Deadline(5))
