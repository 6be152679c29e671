"""Validation: http-01, dns-01 (RFC 8555 section 8) and tls-alpn-01 (RFC 8737, RFC 8738).

The only outgoing connections of the service, to addresses that strangers choose. So: names are
resolved here and the connection goes to the address that was judged, never to a name again; an
address outside the configured networks is not connected to, whoever named it, also after a
redirect; what is read and how long it takes is bounded for the whole attempt, not for a single
read; what was read is never repeated to the client; no proxy of the environment is used.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urljoin, urlsplit

import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
from cryptography import x509

from services.ca import names
from services.ca.acme.jws import encode
from services.ca.acme.problems import Problem
from services.ca.acme.rules import IP, Identifier
from services.ca.names import IPAddress
from services.ca.profiles import Network
from services.ca.refusal import Refused

HTTP: Final = "http-01"
DNS_TXT: Final = "dns-01"
TLS_ALPN: Final = "tls-alpn-01"

# One attempt: resolving, connecting, redirects and reading together. Long enough for a machine that
# has to be woken or a name server that has to ask others.
ATTEMPT_SECONDS: Final = 5.0
# Status line, headers and body of one answer; a key authorization has some 90 octets.
ANSWER_BYTES: Final = 16 * 1024
BODY_BYTES: Final = 1024
# As boulder and browsers take it for sane; two are common (to https, to a canonical host).
REDIRECTS: Final = 5
# Of one name: a second and third machine may answer when the first is down.
ADDRESSES: Final = 4
# RFC 1034 gives no limit; resolvers give up at about this many.
ALIASES: Final = 8
# TXT records of one name that are compared; clients leave old ones behind.
TEXTS: Final = 64

# Properties of addresses that are not those of other machines by themselves.
_SPECIAL: Final = (
    "is_link_local",
    "is_loopback",
    "is_multicast",
    "is_reserved",
    "is_unspecified",
)

_ALPN: Final = "acme-tls/1"
_ACME_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_TARGET = re.compile(r"/[!-~]{0,2000}")


class Deadline:
    """The end of an attempt."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, more than 0; raises TimeoutError when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class Lookup(Protocol):
    """What validation asks the DNS; raises Problem dns."""

    def addresses(self, name: str, deadline: Deadline) -> list[IPAddress]:
        """The addresses of a name, IPv6 first."""

    def texts(self, name: str, deadline: Deadline) -> list[str]:
        """The TXT records of a name, at the end of its aliases."""


class Resolver:
    """Lookup by dnspython at these name servers, or at those of /etc/resolv.conf if none.

    `/etc/hosts` is not read: what validation sees has to be what clients of the name see.
    """

    def __init__(self, servers: Sequence[str] = ()) -> None:
        """Take ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT."""
        self._servers = [_endpoint(server) for server in servers]

    def addresses(self, name: str, deadline: Deadline) -> list[IPAddress]:
        found: list[IPAddress] = []
        problem: Problem | None = None
        for kind in (dns.rdatatype.AAAA, dns.rdatatype.A):
            try:
                found += [ipaddress.ip_address(text) for text in self._ask(name, kind, deadline)]
            except Problem as error:
                # a broken AAAA must not hide an A that answers
                problem = error
        if not found:
            raise problem or Problem("dns", f"{name} has no address")
        return found

    def texts(self, name: str, deadline: Deadline) -> list[str]:
        return self._ask(name, dns.rdatatype.TXT, deadline)

    def _ask(self, name: str, kind: dns.rdatatype.RdataType, deadline: Deadline) -> list[str]:
        resolver = self._resolver()
        try:
            target = dns.name.from_text(name)
            for _ in range(ALIASES):
                answer = resolver.resolve(
                    target, kind, lifetime=deadline.left(), search=False, raise_on_no_answer=False
                )
                if answer.rrset is not None:
                    return [_record_text(record) for record in answer.rrset][:TEXTS]
                # an authoritative server gives the alias and leaves its end to be asked for
                if answer.canonical_name == target:
                    return []
                target = answer.canonical_name
        except dns.resolver.NXDOMAIN:
            raise Problem("dns", f"there is no name {name}") from None
        except (dns.exception.Timeout, TimeoutError):
            raise Problem("dns", f"the name servers did not answer for {name} in time") from None
        except (dns.exception.DNSException, OSError):
            raise Problem("dns", f"the name servers could not answer for {name}") from None
        raise Problem("dns", f"{name} is an alias of more than {ALIASES} aliases")

    def _resolver(self) -> dns.resolver.Resolver:
        try:
            resolver = dns.resolver.Resolver(configure=not self._servers)
        except dns.exception.DNSException:
            raise Problem("dns", "the service has no name server") from None
        if self._servers:
            resolver.nameservers = list(self._servers)
        # fits any path; longer answers come over TCP
        resolver.use_edns(0, 0, 1232)
        resolver.timeout = ATTEMPT_SECONDS / 3
        return resolver


@dataclass(frozen=True)
class Validator:
    """Validates challenges; `allowed` are the networks that may be connected to."""

    lookup: Lookup
    allowed: tuple[Network, ...] = ()
    http_port: int = 80
    tls_port: int = 443
    _insecure: ssl.SSLContext = field(default_factory=lambda: _context(), repr=False)

    def types(self, identifier: Identifier) -> tuple[str, ...]:
        """The challenges that can be offered for a name.

        A wildcard only dns-01 can show (RFC 8555 section 7.1.3), an address never by dns-01
        (RFC 8738 section 7), and without networks to connect to there are no others.
        """
        found: list[str] = []
        if self.allowed and not identifier.wildcard:
            found += [HTTP, TLS_ALPN]
        if identifier.kind != IP:
            found.append(DNS_TXT)
        return tuple(found)

    def validate(self, kind: str, identifier: Identifier, token: str, thumbprint: str) -> None:
        """One attempt; returns if control was shown, raises Problem that says why not."""
        authorization = f"{token}.{thumbprint}"
        deadline = Deadline(ATTEMPT_SECONDS)
        try:
            if kind == HTTP:
                self._http(identifier, token, authorization, deadline)
            elif kind == DNS_TXT:
                self._dns(identifier, authorization, deadline)
            else:
                self._tls_alpn(identifier, authorization, deadline)
        except TimeoutError:
            raise Problem("connection", f"no answer within {ATTEMPT_SECONDS:.0f} s") from None

    # ---- dns-01 --------------------------------------------------------------------------------

    def _dns(self, identifier: Identifier, authorization: str, deadline: Deadline) -> None:
        name = f"_acme-challenge.{identifier.value}"
        expected = encode(_digest(authorization))
        texts = self.lookup.texts(name, deadline)
        if expected not in texts:
            found = f"none of the {len(texts)} TXT records" if texts else "no TXT record"
            raise Problem(
                "incorrectResponse", f"{name} has {found} with the value of the challenge"
            )

    # ---- http-01 -------------------------------------------------------------------------------

    def _http(
        self, identifier: Identifier, token: str, authorization: str, deadline: Deadline
    ) -> None:
        url = f"http://{_url_host(identifier.value)}/.well-known/acme-challenge/{token}"
        for _ in range(REDIRECTS + 1):
            status, location, body = self._get(url, deadline)
            if status in (301, 302, 303, 307, 308) and location is not None:
                try:
                    url = urljoin(url, location)
                except ValueError:
                    raise Problem("connection", "a redirect leads to what is no URL") from None
                continue
            if status != 200:
                raise Problem("incorrectResponse", f"the web server answered with status {status}")
            # RFC 8555 section 8.3: white space at the end does not count
            if body.rstrip() != authorization.encode("ascii"):
                raise Problem("incorrectResponse", "the web server's answer is not the challenge's")
            return
        raise Problem("connection", f"more than {REDIRECTS} redirects")

    def _get(self, url: str, deadline: Deadline) -> tuple[int, str | None, bytes]:
        secure, host, port, target = self._judged(url)
        connection = self._connect(host, port, deadline)
        with connection:
            stream: socket.socket = connection
            if secure:
                # RFC 8555 section 8.3 has no certificate here: it is what the client wants to get
                stream = self._handshake(connection, self._insecure, str(host), deadline)
            with stream:
                try:
                    return self._exchange(stream, host, port, secure, target, deadline)
                except TimeoutError:
                    raise
                except (OSError, http.client.HTTPException, ValueError):
                    raise Problem(
                        "connection", "the web server's answer broke off or is none"
                    ) from None

    def _exchange(
        self,
        stream: socket.socket,
        host: str | IPAddress,
        port: int,
        secure: bool,
        target: str,
        deadline: Deadline,
    ) -> tuple[int, str | None, bytes]:
        default = port == (443 if secure else 80)
        authority = _url_host(str(host)) + ("" if default else f":{port}")
        request = (
            f"GET {target} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: mooring-acme\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        )
        stream.settimeout(deadline.left())
        stream.sendall(request.encode("ascii"))
        response = http.client.HTTPResponse(_Readable(stream, deadline), method="GET")  # type: ignore[arg-type]  # only makefile is used of a socket
        response.begin()
        location = response.getheader("Location")
        return response.status, location, response.read(BODY_BYTES)

    def _judged(self, url: str) -> tuple[bool, str | IPAddress, int, str]:
        """Take a URL apart; raises Problem for one that validation does not follow."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise Problem("connection", "a redirect leads to what is no URL") from None
        ports = {"http": self.http_port, "https": self.tls_port}
        usual = {"http": 80, "https": 443}
        if parts.scheme not in ports or parts.username is not None or not parts.hostname:
            raise Problem("connection", "a redirect leads to something else than http and https")
        if port not in (None, usual[parts.scheme], ports[parts.scheme]):
            raise Problem("connection", f"a redirect leads to port {port}")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not _TARGET.fullmatch(target):
            raise Problem("connection", "a redirect leads to a path that cannot be asked for")
        return parts.scheme == "https", _host(parts.hostname), port or ports[parts.scheme], target

    # ---- tls-alpn-01 ---------------------------------------------------------------------------

    def _tls_alpn(self, identifier: Identifier, authorization: str, deadline: Deadline) -> None:
        host = _host(identifier.value)
        context = _context()
        context.set_alpn_protocols([_ALPN])
        connection = self._connect(host, self.tls_port, deadline)
        with connection:
            name = host if isinstance(host, str) else host.reverse_pointer
            with self._handshake(connection, context, name, deadline) as stream:
                protocol = stream.selected_alpn_protocol()
                der = stream.getpeercert(binary_form=True)
        if protocol != _ALPN:
            raise Problem("tls", f"the server does not speak {_ALPN}")
        _check_alpn_certificate(der or b"", identifier, _digest(authorization))

    def _handshake(
        self, connection: socket.socket, context: ssl.SSLContext, name: str, deadline: Deadline
    ) -> ssl.SSLSocket:
        # CPython bounds the whole handshake by the timeout, not each of its reads
        connection.settimeout(deadline.left())
        try:
            return context.wrap_socket(connection, server_hostname=name)
        except TimeoutError:
            raise
        except (OSError, ValueError):
            raise Problem("tls", "the TLS handshake failed") from None

    # ---- connecting ----------------------------------------------------------------------------

    def _connect(self, host: str | IPAddress, port: int, deadline: Deadline) -> socket.socket:
        """A connection to the first allowed address that accepts one; raises Problem."""
        candidates = self.lookup.addresses(host, deadline) if isinstance(host, str) else [host]
        allowed = [each for each in map(_plain, candidates) if self._is_allowed(each)]
        if not allowed:
            raise Problem(
                "connection",
                f"{host} has no address in a network that validation may connect to",
            )
        for place, address in enumerate(allowed[:ADDRESSES]):
            # the later ones get a share too
            rest = min(len(allowed), ADDRESSES) - place
            try:
                return socket.create_connection((str(address), port), deadline.left() / rest)
            except TimeoutError:
                deadline.left()
            except OSError:
                continue
        raise Problem("connection", f"nobody accepts connections at {host} port {port}")

    def _is_allowed(self, address: IPAddress) -> bool:
        """Whether a network allows the address; one for all the world allows no special ones.

        Loopback, link-local (where clouds have their metadata), and what leads to another address
        by a gateway are connected to only if they are named: by a network of nothing else.
        """
        special = [kind for kind in _SPECIAL if getattr(address, kind)]
        return any(
            address in network and all(getattr(network, kind) for kind in special)
            for network in self.allowed
        )


class _Readable(io.RawIOBase):
    """A socket as a file that ends with the deadline or after ANSWER_BYTES."""

    def __init__(self, stream: socket.socket, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline
        self._rest = ANSWER_BYTES

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, 4096)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader gives
        if self._rest <= 0:
            raise ValueError("the answer is too long")
        self._stream.settimeout(self._deadline.left())
        count = self._stream.recv_into(buffer, min(len(buffer), self._rest))
        self._rest -= count
        return count


def _check_alpn_certificate(der: bytes, identifier: Identifier, digest: bytes) -> None:
    """RFC 8737 section 3: exactly the name, and the digest in a critical extension."""
    expected: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(identifier.value))
        if identifier.kind == IP
        else x509.DNSName(identifier.value)
    ]
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
        shown = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        mark = extensions.get_extension_for_oid(_ACME_IDENTIFIER)
        value = mark.value.public_bytes()
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise Problem("incorrectResponse", "the certificate is not the challenge's") from None
    if shown != expected:
        raise Problem("incorrectResponse", "the certificate is not for exactly this name")
    # an OCTET STRING of 32 octets
    if not mark.critical or value != b"\x04\x20" + digest:
        raise Problem("incorrectResponse", "the certificate does not hold the challenge's value")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # control of the address is what is shown, the certificate comes after it
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _digest(authorization: str) -> bytes:
    return hashlib.sha256(authorization.encode("ascii")).digest()


def _host(text: str) -> str | IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    try:
        return names.dns_name(text.removesuffix("."), "/host").removeprefix("*.")
    except Refused:
        raise Problem("connection", "a redirect leads to a host name that is none") from None


def _plain(address: IPAddress) -> IPAddress:
    """IPv4 for what the kernel would connect to by IPv4, so that the networks judge that."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _endpoint(text: str) -> dns.nameserver.Nameserver:
    host, port = text, 53
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = int(rest.removeprefix(":") or 53)
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
        port = int(number)
    return dns.nameserver.Do53Nameserver(host, port)


def _record_text(record: object) -> str:
    strings = getattr(record, "strings", None)
    if strings is not None:  # TXT: the strings of one record are one text (RFC 7208 section 3.3)
        return b"".join(strings).decode("ascii", "replace")
    return str(record.address)  # type: ignore[attr-defined]  # A and AAAA have it
