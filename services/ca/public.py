"""What everybody may read over plain HTTP: lists, authorities' certificates, and OCSP.

Plain, because fetching them over TLS would need the verification that they serve (RFC 5280 section
8); everything is signed. Raw WSGI, from memory: each answer to a known path is prepared when its
list is published. While the database is away, what is in memory goes on being served for as long
as it is valid.

    GET  /crl/ID.crl  /crl/ID.pem  /crl/ID-delta.crl  /crl/ID-delta.pem     ID may be `root`
    GET  /ca/ID.cer   /ca/root.cer  /ca/bundle.pem
    POST /ocsp        GET /ocsp/BASE64
    GET  /metrics     on the socket itself only, not through NGINX
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca import keystore, metrics, ocsp
from services.ca.authority import Actor, Authority
from services.ca.crl import Revocation, crl_der, crl_pem
from services.ca.keystore import Authorities, KeystoreError
from services.ca.ledger import Ledger, StoredCRL, serial_text
from services.ca.publication import Follower, Publisher, is_due, publish
from services.ca.request import CertificateRequest
from services.ca.service import build
from services.ca.signer import Issuer
from services.ca.states import HELD, ISSUED, REVOKED
from services.core.database import Unavailable
from services.core.deploy import check_once, require_gatekeeper
from services.core.errors import Failure

LOG = structlog.get_logger("mooring.ca.public")

# Seconds for which a proxy or a client need not ask again. A revocation is published at once, and
# so this is what a cache may add to it; asking again costs 304.
LIST_SECONDS = 300

# A certificate of an authority never changes, the bundle seldom.
CERTIFICATE_SECONDS = 86400

RETRY_AFTER = "5"

# Until a key that did not sign is tried again: anybody may ask for a list.
RETRY = timedelta(seconds=5)

CRL_TYPE, CERTIFICATE_TYPE = "application/pkix-crl", "application/pkix-cert"
REQUEST_TYPE, RESPONSE_TYPE = "application/ocsp-request", "application/ocsp-response"
PEM_TYPE = "application/x-pem-file"

_LIST_PATH = re.compile(r"/crl/([0-9a-f]{40}|root)(-delta)?\.(crl|pem)")
_READ = ("Allow", "GET, HEAD")
_NOT_FOUND = "There is nothing at this path."


@dataclass(frozen=True, slots=True)
class Document:
    """Something to be read: `until` is when it ends, `seconds` how long it may be kept at most."""

    content_type: str
    body: bytes
    etag: str
    modified: datetime
    until: datetime
    seconds: int

    @classmethod
    def of(
        cls, content_type: str, body: bytes, modified: datetime, until: datetime, seconds: int
    ) -> Document:
        """Make one, with the entity tag of its body."""
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return cls(content_type, body, etag, modified.replace(microsecond=0), until, seconds)

    def headers(self, now: datetime) -> list[tuple[str, str]]:
        """What goes with it, and with 304 (RFC 9110 section 15.4.5)."""
        seconds = max(0, min(self.seconds, int((self.until - now).total_seconds())))
        return [
            ("ETag", self.etag),
            ("Last-Modified", format_datetime(self.modified, usegmt=True)),
            ("Cache-Control", f"public, max-age={seconds}, no-transform"),
        ]


@dataclass(frozen=True, slots=True)
class _Shown:
    """An authority's newest lists, ready to be sent: by (delta, kind)."""

    number: int
    documents: dict[tuple[bool, str], Document]


class Public:
    """The application."""

    def __init__(self, publisher: Publisher, authorities: Authorities, responder: ocsp.Responder):
        self._publisher = publisher
        self._ledger = publisher.ledger
        self._responder = responder
        self._clock = publisher.clock
        self._certificates = _certificates(authorities)
        self._root_id = keystore.authority_id(authorities.root)
        self._root_crl = x509.load_pem_x509_crl(authorities.root_crl_pem)
        self._root_mark: object = None
        self._shown: dict[str, _Shown] = {}
        self._failed: dict[str, datetime] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; raises Failure."""
        require_gatekeeper(environ)
        path = environ.get("PATH_INFO", "")
        if path == "/ocsp" or path.startswith("/ocsp/"):
            return self._ocsp(environ, start_response, path)
        if path == "/metrics":
            return self._metrics(environ, start_response)
        document = self._find(path)
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            raise Failure(405, "This is only read.", headers=[_READ])
        return _send(environ, start_response, document, self._clock())

    def _find(self, path: str) -> Document:
        document = self._certificates.get(path)
        if document is not None:
            return document
        match = _LIST_PATH.fullmatch(path)
        if match is None:
            raise Failure(404, _NOT_FOUND)
        authority, delta, kind = match[1], match[2] is not None, match[3]
        if authority in ("root", self._root_id):
            if delta:
                raise Failure(404, _NOT_FOUND)
            return self._root_list(kind)
        if authority not in self._publisher.issuers:
            raise Failure(404, _NOT_FOUND)
        document = self._lists(authority).documents.get((delta, kind))
        if document is None:
            raise Failure(404, _NOT_FOUND)
        return _unless_over(document, self._clock())

    def _root_list(self, kind: str) -> Document:
        path = self._publisher.directory / "root.crl"
        try:
            found = path.stat()
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if mark != self._root_mark:
                self._root_crl = self._publisher.root_crl()
                self._root_mark = mark
        except (OSError, KeystoreError) as error:
            # what was read before is served as long as it holds
            LOG.error("root list not read", reason=str(error))
        crl = self._root_crl
        until = crl.next_update_utc or crl.last_update_utc
        der = crl_der(crl)
        body, content_type = (crl_pem(der), PEM_TYPE) if kind == "pem" else (der, CRL_TYPE)
        document = Document.of(content_type, body, crl.last_update_utc, until, LIST_SECONDS)
        return _unless_over(document, self._clock())

    def _lists(self, authority: str) -> _Shown:
        """The newest lists; one that is due is made now. Raises Failure 503 if there are none."""
        shown = self._shown.get(authority)
        now = self._clock()
        try:
            state = self._ledger.crl_state(authority)
            if is_due(state, now, self._publisher.periods):
                self._publish(authority, now)
                state = self._ledger.crl_state(authority)
            if state is not None and (shown is None or shown.number != state.number):
                shown = _show(self._ledger, authority) or shown
        except Unavailable as error:
            LOG.warning("lists from memory", reason=str(error))
        if shown is None:
            raise _away()
        self._shown[authority] = shown
        return shown

    def _publish(self, authority: str, now: datetime) -> None:
        publisher = self._publisher
        failed = self._failed.get(authority)
        if failed is not None and abs(now - failed) < RETRY:
            return
        try:
            publish(self._ledger, publisher.issuers[authority], now=now, periods=publisher.periods)
        except Unavailable:
            raise
        except Exception as error:  # a key in a token raises anything; the last list still holds
            self._failed[authority] = now
            LOG.error("publishing failed", authority=authority, reason=type(error).__name__)

    def _metrics(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # NGINX says whom it asks for (etc/nginx/proxy.conf), and who is asked for is outside
        if environ.get("HTTP_X_FORWARDED_FOR"):
            raise Failure(404, _NOT_FOUND)
        method = environ.get("REQUEST_METHOD")
        if method not in ("GET", "HEAD"):
            raise Failure(405, "This is only read.", headers=[_READ])
        body = metrics.render(self._publisher)
        start_response(
            "200 OK",
            [
                ("Content-Type", metrics.CONTENT_TYPE),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [] if method == "HEAD" else [body]

    # ---- OCSP --------------------------------------------------------------------------------

    def _ocsp(
        self, environ: WSGIEnvironment, start_response: StartResponse, path: str
    ) -> Iterable[bytes]:
        method = environ.get("REQUEST_METHOD")
        if method == "POST" and path == "/ocsp":
            data = _posted(environ)
        elif method in ("GET", "HEAD") and path != "/ocsp":
            data = _decoded(path.removeprefix("/ocsp/"))
        else:
            allow = "POST" if path == "/ocsp" else "GET, HEAD"
            raise Failure(
                405, "OCSP is asked by POST, or by GET below it.", headers=[("Allow", allow)]
            )
        now = self._clock()
        answer = self._answer(data, now)
        if (
            method != "POST"
            and answer.cacheable
            and answer.this_update is not None
            and answer.next_update is not None
        ):
            document = Document.of(
                RESPONSE_TYPE, answer.body, answer.this_update, answer.next_update, LIST_SECONDS
            )
            return _send(environ, start_response, document, now)
        start_response(
            "200 OK",
            [
                ("Content-Type", RESPONSE_TYPE),
                ("Content-Length", str(len(answer.body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [] if method == "HEAD" else [answer.body]

    def _answer(self, data: bytes, now: datetime) -> ocsp.Answer:
        try:
            return self._responder.answer(data, now)
        except Unavailable as error:
            LOG.warning("OCSP unavailable", reason=str(error))
        except Exception as error:  # a key in a token raises anything
            LOG.error("OCSP failed", reason=type(error).__name__)
        # section 2.3: whoever asks may come back; and this one is not signed
        return ocsp.refusal(ocsp.ResponseStatus.TRY_LATER)


def _posted(environ: WSGIEnvironment) -> bytes:
    content_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if content_type not in ("", REQUEST_TYPE):
        raise Failure(415, f"A question is sent as {REQUEST_TYPE}.")
    length = environ.get("CONTENT_LENGTH") or ""
    if length.isascii() and length.isdigit() and int(length[:9]) > ocsp.REQUEST_LIMIT:
        raise Failure(413, f"A question has at most {ocsp.REQUEST_LIMIT} octets.")
    data = bytes(environ["wsgi.input"].read(ocsp.REQUEST_LIMIT + 1))
    if len(data) > ocsp.REQUEST_LIMIT:
        raise Failure(413, f"A question has at most {ocsp.REQUEST_LIMIT} octets.")
    return data


def _decoded(text: str) -> bytes:
    """The request in a path (RFC 6960 appendix A.1); empty, which is malformed, if it is none."""
    # a client that joins ".../ocsp/" and "/BASE64"; the request's own first octet is never a slash
    text = text.lstrip("/").rstrip("=")
    try:
        raw = text.encode("ascii")
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""


# ---- documents ----------------------------------------------------------------------------------


def _certificates(authorities: Authorities) -> dict[str, Document]:
    everyone = [authorities.active, *authorities.others]
    certificates = [authorities.root, *(each.certificate for each in everyone)]
    found = {f"/ca/{keystore.authority_id(each)}.cer": _certificate(each) for each in certificates}
    found["/ca/root.cer"] = _certificate(authorities.root)
    found["/ca/bundle.pem"] = Document.of(
        PEM_TYPE,
        authorities.bundle_pem(),
        max(each.not_valid_before_utc for each in certificates),
        authorities.root.not_valid_after_utc,
        LIST_SECONDS,
    )
    return found


def _certificate(certificate: x509.Certificate) -> Document:
    return Document.of(
        CERTIFICATE_TYPE,
        certificate.public_bytes(Encoding.DER),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        CERTIFICATE_SECONDS,
    )


def _show(ledger: Ledger, authority: str) -> _Shown | None:
    with ledger.database.read() as connection:  # both of one moment
        complete = ledger.latest_crl_in(connection, authority)
        delta = ledger.latest_crl_in(connection, authority, delta=True)
    if complete is None:
        return None
    documents = _list_documents(complete)
    if delta is not None:
        documents |= _list_documents(delta)
    return _Shown(complete.number, documents)


def _list_documents(crl: StoredCRL) -> dict[tuple[bool, str], Document]:
    delta = crl.base_number is not None
    return {
        (delta, kind): Document.of(
            content_type, body, crl.this_update, crl.next_update, LIST_SECONDS
        )
        for kind, content_type, body in (
            ("crl", CRL_TYPE, crl.der),
            ("pem", PEM_TYPE, crl_pem(crl.der)),
        )
    }


def _unless_over(document: Document, now: datetime) -> Document:
    if document.until <= now:
        raise _away()
    return document


def _away() -> Failure:
    return Failure(503, "There is no valid list just now.", headers=[("Retry-After", RETRY_AFTER)])


def _send(
    environ: WSGIEnvironment, start_response: StartResponse, document: Document, now: datetime
) -> Iterable[bytes]:
    headers = document.headers(now)
    if _has(environ, document):
        start_response("304 Not Modified", headers)
        return []
    headers += [
        ("Content-Type", document.content_type),
        ("Content-Length", str(len(document.body))),
    ]
    start_response("200 OK", headers)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [document.body]


def _has(environ: WSGIEnvironment, document: Document) -> bool:
    """Tell whether the client has it already (RFC 9110 section 13.2.2)."""
    tags = environ.get("HTTP_IF_NONE_MATCH")
    if tags is not None:
        offered = {each.strip().removeprefix("W/") for each in tags.split(",")}
        return "*" in offered or document.etag in offered
    since = environ.get("HTTP_IF_MODIFIED_SINCE")
    if since is None:
        return False
    try:
        moment = parsedate_to_datetime(since)
        return document.modified <= moment.replace(tzinfo=moment.tzinfo or UTC)
    except (ValueError, OverflowError):
        return False


# ---- wiring -------------------------------------------------------------------------------------


def ledger_lookup(ledger: Ledger) -> ocsp.Lookup:
    """How certificates stand by the ledger; pending ones were never given out, so are unknown."""

    def look(issuer: Issuer, serial: int) -> ocsp.Standing:
        if not 0 < serial < 1 << 160:
            return ocsp.Known.UNKNOWN
        status = ledger.status(keystore.authority_id(issuer.certificate), serial_text(serial))
        if status.state == ISSUED:
            return ocsp.Known.GOOD
        if status.state not in (HELD, REVOKED) or status.revoked_at is None:
            return ocsp.Known.UNKNOWN
        reason = status.reason or x509.ReasonFlags.unspecified
        return Revocation(serial, status.revoked_at, reason)

    return look


def certify_with(authority: Authority) -> ocsp.Certify:
    """Have delegates' certificates issued as all others are: recorded, and in the audit trail."""
    actor = Actor("OCSP responder", frozenset(), "", "", "command")

    def certify(issuer: Issuer, request: CertificateRequest) -> x509.Certificate:
        name = keystore.authority_id(issuer.certificate)
        return authority.issue(
            "ocsp", request, actor, authority_id=name, action="ocsp-signer"
        ).certificate

    return certify


def app_factory(
    global_conf: dict[str, str], *, config: str, follow_seconds: str = "5"
) -> WSGIApplication:
    """Build the application; `config` is mooring.conf.

    Every `follow_seconds` each process makes the lists that are due and brings those of other
    controllers to NGINX's file; 0 leaves that to `mooring ca publish`.
    """
    check_once(global_conf)
    try:
        seconds = float(follow_seconds)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise ValueError(f"public: follow_seconds is 0 to 3600, not {follow_seconds!r}")
    service = build(config)
    issuers = service.authorities.all()
    responder = ocsp.Responder(
        issuers, certify_with(service.authority), ledger_lookup(service.ledger)
    )
    if seconds:
        Follower(service.publisher, seconds).start()
    return Public(service.publisher, service.authorities, responder)
