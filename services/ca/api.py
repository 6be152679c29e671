"""The API of the certificate service: HTTP over the authority (docs/certificate-api.md).

Who asks is known by a client certificate that the ledger has as issued at this very moment, or, for
one route alone, by an enrolment token. What proves an identity opens only the routes that its table
names; anything else is 401 or 403. A client sees its own certificates, and what it may not see is
404, as if it were not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from services.ca import service, wire
from services.ca.acme.keys import key_routes
from services.ca.acme.store import Store
from services.ca.authority import (
    NAMES_FIELDS,
    Actor,
    Authority,
    Forbidden,
    Issued,
    Missing,
    NotPossible,
    SigningFailed,
    finish,
)
from services.ca.commit import Lookup
from services.ca.files import certificates_pem
from services.ca.ledger import Record, Search, Token, timestamp
from services.ca.profile_file import INTERNAL, Offer, acme_profiles, parse_span
from services.ca.refusal import Refused, shown
from services.ca.request import parse_csr
from services.ca.states import EXPIRED, HELD, ISSUED, PENDING, REASONS, REVOKED
from services.ca.wire import DER, JSON, PEM, PEM_CHAIN, Answer, json_answer
from services.core.database import Unavailable
from services.core.deploy import check_once, require_gatekeeper
from services.core.edge import RETRY_AFTER, Request, Router
from services.core.errors import Failure
from services.core.identity import ClientIdentity
from services.core.policy import allows, enforce

LOG = structlog.get_logger("mooring.ca")

CERTIFICATES = "/v1/certificates"

ANYONE = "anyone"
"""In place of a policy rule: what a certificate's every reader may know."""

LEAST_TOKEN_LIFETIME = timedelta(minutes=1)

SIGNING_RETRY = "30"
"""Seconds after which to try again when the key could not sign: a token or an HSM is back then."""

_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MARKER = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z),([0-9a-f-]{36,40})")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BEARER = re.compile(r"[Bb]earer ([A-Za-z0-9._~+/=-]{1,200})")
_FORMS = (JSON, PEM, PEM_CHAIN, DER)
_STATES = (ISSUED, HELD, REVOKED, EXPIRED, PENDING)
_SECRET = ("Cache-Control", "no-store")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the identity, as whom the ledger knows it, and the certificate it came with."""

    client: ClientIdentity
    actor: Actor
    record: Record

    @property
    def owner(self) -> tuple[str, str]:
        """The profile and the common name."""
        return self.record.profile, self.client.user


class CertificateApi:
    """The handlers, one a route. Each enforces the rule that its route names."""

    def __init__(
        self,
        authority: Authority,
        *,
        bundle_pem: bytes,
        token_lifetime: timedelta = timedelta(hours=1),
        token_greatest_lifetime: timedelta = timedelta(days=7),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.authority = authority
        self.ledger = authority.ledger
        self.bundle_pem = bundle_pem
        self.token_lifetime = token_lifetime
        self.token_greatest_lifetime = token_greatest_lifetime
        self.clock = clock
        self._chains = {
            name: certificates_pem(issuer.chain).decode()
            for name, issuer in authority.issuers.items()
        }
        one = CERTIFICATES + "/{id}"
        self.router = Router(
            [
                ("GET", "/v1", ANYONE, self.discover),
                ("POST", CERTIFICATES, "certificate:issue", self.issue),
                ("GET", CERTIFICATES, "certificate:list", self.list),
                ("POST", CERTIFICATES + "/renew", "certificate:renew", self.renew),
                ("GET", one, "certificate:show", self.show),
                ("POST", one + "/revoke", "certificate:revoke", self.revoke),
                ("POST", one + "/release", "certificate:release", self.release),
                ("POST", "/v1/tokens", "token:create", self.create_token),
                ("GET", "/v1/tokens", "token:list", self.list_tokens),
                ("DELETE", "/v1/tokens/{id}", "token:delete", self.delete_token),
                ("GET", "/v1/profiles", "certificate:issue", self.profiles),
                ("GET", "/v1/chain", ANYONE, self.chain),
                ("GET", "/v1/root", ANYONE, self.root),
                ("GET", "/v1/audit", "audit:read", self.audit),
                *key_routes(
                    Store(self.ledger.database),
                    self.ledger,
                    acme_profiles(authority.offers),
                    self._may,
                    clock,
                ),
            ]
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; raises Failure."""
        require_gatekeeper(environ)
        try:
            if environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"] == CERTIFICATES:
                # the route that is measured: not through the mapper, and in steps
                pending = Pending(self._issue(environ), environ, start_response)
                return pending.body if pending.advance() else pending
            return self.router(environ, start_response)
        except _REFUSALS as error:
            raise _failure(error) from None

    # ---- issuing -----------------------------------------------------------------------------

    def issue(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """Issue for a CSR: by a client certificate that may ask, or for an enrolment token."""
        return finish(self._issue(request.environ))

    def _issue(self, environ: WSGIEnvironment) -> Generator[None, None, Answer]:
        # it yields before each use of the database, which several then share (`TurnsWorker`)
        authorization = environ.get("HTTP_AUTHORIZATION")
        if authorization is not None:
            return self._enrolled(environ, self._token(authorization))
        client = _client(environ)
        lookup = self.authority.lookups.add(Lookup(client.fingerprint))
        try:
            yield
            self.authority.lookups.settle(lookup)
        except BaseException:
            self.authority.lookups.drop(lookup)
            raise
        caller = _known(environ, client, lookup.record)
        answer = wire.chosen(environ, _FORMS)
        profile, csr, lifetime = self._asked(environ, None)
        issued = yield from self.authority.issuing(
            profile, parse_csr(csr), caller.actor, lifetime=lifetime
        )
        return self._created(issued, answer, made=True)

    def _enrolled(self, environ: WSGIEnvironment, token: Token) -> Answer:
        """Issue for a token, which is used in the transaction that reserves the serial."""
        answer = wire.chosen(environ, _FORMS)
        _profile, csr, lifetime = self._asked(environ, token)
        actor = Actor(f"token:{token.id}", frozenset(), *_where(environ), "token")
        issued, made = self.authority.enrol(token, parse_csr(csr), actor, lifetime=lifetime)
        return self._created(issued, answer, made)

    def _asked(
        self, environ: WSGIEnvironment, token: Token | None
    ) -> tuple[str, bytes, timedelta | None]:
        """Profile, CSR and lifetime, from JSON or from a raw CSR with a query."""
        values: Mapping[str, Any]
        if wire.media_type(environ) == wire.CSR:
            values = wire.query(environ, "profile", "lifetime")
            csr = wire.read_body(environ)
        else:
            wire.query(environ)
            values = wire.read_object(environ, ("profile", "csr", "lifetime"))
            csr = wire.csr_bytes(values.get("csr"))
        profile = values.get("profile")
        if token is not None:
            bound = token.request["profile"]
            if profile not in (None, bound):
                raise Refused("/profile", f"the token is for the profile {bound}")
            profile = bound
        if not isinstance(profile, str):
            raise Refused("/profile", "is needed" if profile is None else "is not text")
        return profile, csr, _lifetime(values)

    def renew(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """Issue anew what the client's own certificate holds, for the key of a CSR."""
        environ = request.environ
        caller = self._caller(environ)
        enforce("certificate:renew", caller.client, owner=True)
        answer = wire.chosen(environ, _FORMS)
        values: Mapping[str, Any]
        if wire.media_type(environ) == wire.CSR:
            values = wire.query(environ, "lifetime")
            csr = wire.read_body(environ)
        else:
            wire.query(environ)
            values = wire.read_object(environ, ("csr", "lifetime"))
            csr = wire.csr_bytes(values.get("csr"))
        lifetime = _lifetime(values)
        issued = self.authority.renew(
            caller.record, parse_csr(csr), caller.actor, lifetime=lifetime
        )
        return self._created(issued, answer, made=True)

    def _created(self, issued: Issued, media_type: str, made: bool) -> Answer:
        serial = issued.record.serial
        # no line of a log: the audit trail has it, and a line costs a tenth of a certificate
        headers = [("Location", f"{CERTIFICATES}/{serial}"), ("Vary", "Accept")]
        status = "201 Created" if made else "200 OK"
        if media_type == JSON:
            return json_answer(self._whole(issued), status, headers)
        if media_type == DER:
            body = issued.der
        else:
            body = issued.pem() + self._chains.get(issued.authority_id, "").encode()
        return Answer(body, status, media_type, headers)

    # ---- reading -----------------------------------------------------------------------------

    def show(self, request: Request, match: Mapping[str, str]) -> Answer:
        """One certificate: what the ledger has, or the certificate itself, or it and its chain."""
        environ = request.environ
        values = wire.query(environ, "chain")
        chain = wire.flag(values, "chain")
        answer = wire.chosen(environ, _FORMS)
        _caller, record = self._find(environ, match["id"], "certificate:show")
        vary = [("Vary", "Accept")]
        if answer == JSON and record.state == PENDING:
            return json_answer(wire.certificate_document(record, self.clock()), headers=vary)
        if answer == DER and chain:
            raise Failure(400, f"is not for {DER}, which holds one certificate", field="chain")
        issued = self.authority.issued(record)
        if answer == JSON:
            return json_answer(self._whole(issued), headers=vary)
        body = _rendered(issued, answer, chain=chain or answer == PEM_CHAIN)
        return Answer(body, media_type=answer, headers=vary)

    def list(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """One page of the certificates that the client may see, the newest first."""
        caller = self._caller(request.environ)
        enforce("certificate:list", caller.client, owner=True)
        values = wire.query(
            request.environ,
            *("subject", "name", "profile", "state", "expires_before", "limit", "marker"),
        )
        if values.get("state", ISSUED) not in _STATES:
            raise Failure(400, f"must be {', '.join(_STATES)}", field="state")
        now = self.clock()
        limit = wire.page_limit(values)
        search = Search(
            subject=values.get("subject"),
            name=values.get("name"),
            profile=values.get("profile"),
            state=values.get("state"),
            expires_before=_before(values, now),
            owner=None if allows("certificate:list", caller.client) else caller.owner,
        )
        found = self.ledger.search(search, now=now, limit=limit + 1, before=_marker(values))
        answer: dict[str, Any] = {
            "certificates": [wire.certificate_document(each, now) for each in found[:limit]]
        }
        if len(found) > limit:
            last = found[limit - 1]
            answer["next"] = _next(CERTIFICATES, values, f"{last.created_at},{last.serial}")
        return json_answer(answer)

    # ---- revoking ----------------------------------------------------------------------------

    def revoke(self, request: Request, match: Mapping[str, str]) -> Answer:
        """Revoke or hold a certificate; the same again changes nothing and is no error."""
        environ = request.environ
        wire.query(environ)
        caller, record = self._find(environ, match["id"], "certificate:revoke")
        values = wire.read_object(environ, ("reason",))
        reason = values.get("reason", "unspecified")
        if not isinstance(reason, str) or reason not in REASONS:
            raise Refused("/reason", f"{shown(reason)} is not one of {', '.join(REASONS)}")
        self.authority.revoke(record.authority_id, int(record.serial, 16), reason, caller.actor)
        return self._changed(record, "certificate revoked", caller)

    def release(self, request: Request, match: Mapping[str, str]) -> Answer:
        """Make a held certificate valid again."""
        wire.query(request.environ)
        caller, record = self._find(request.environ, match["id"], "certificate:release")
        self.authority.release(record.authority_id, int(record.serial, 16), caller.actor)
        return self._changed(record, "certificate released", caller)

    def _changed(self, record: Record, event: str, caller: Caller) -> Answer:
        now = self.ledger.by_serial(record.serial, record.authority_id)
        if now is None:
            raise _not_found()
        LOG.info(
            event,
            serial=now.serial,
            reason=now.reason,
            by=caller.actor.label,
            request_id=caller.actor.request_id,
        )
        return json_answer(wire.certificate_document(now, self.clock()))

    # ---- enrolment tokens --------------------------------------------------------------------

    def create_token(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """Make a token; its secret is in this answer and nowhere else."""
        environ = request.environ
        wire.query(environ)
        caller = self._caller(environ)
        values = wire.read_object(environ, ("profile", "lifetime", *NAMES_FIELDS))
        profile = values.get("profile")
        if not isinstance(profile, str):
            raise Refused("/profile", "is needed" if profile is None else "is not text")
        lifetime = _lifetime(values) or self.token_lifetime
        if not LEAST_TOKEN_LIFETIME <= lifetime <= self.token_greatest_lifetime:
            raise Refused(
                "/lifetime",
                f"is not {LEAST_TOKEN_LIFETIME} to {self.token_greatest_lifetime}",
            )
        names = {name: values[name] for name in NAMES_FIELDS if values.get(name) is not None}
        token, secret = self.authority.create_token(profile, names, lifetime, caller.actor)
        LOG.info("enrolment made", id=token.id, profile=profile, by=caller.actor.label)
        document = {**wire.token_document(token, self.clock()), "token": secret}
        headers = [("Location", f"/v1/tokens/{token.id}"), _SECRET]
        return json_answer(document, "201 Created", headers)

    def list_tokens(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """One page of the tokens that the client may see, the newest first; never a secret."""
        caller = self._caller(request.environ)
        enforce("token:list", caller.client, owner=True)
        values = wire.query(request.environ, "limit", "marker")
        limit = wire.page_limit(values)
        mine = None if allows("token:list", caller.client) else caller.actor.label
        found = self.ledger.tokens(limit=limit + 1, before=_marker(values), created_by=mine)
        now = self.clock()
        answer: dict[str, Any] = {
            "tokens": [wire.token_document(each, now) for each in found[:limit]]
        }
        if len(found) > limit:
            last = found[limit - 1]
            answer["next"] = _next("/v1/tokens", values, f"{last.created_at},{last.id}")
        return json_answer(answer)

    def delete_token(self, request: Request, match: Mapping[str, str]) -> Answer:
        """Withdraw a token."""
        wire.query(request.environ)
        caller = self._caller(request.environ)
        token = self.ledger.token(match["id"]) if _UUID.fullmatch(match["id"]) else None
        owner = token is not None and token.created_by == caller.actor.label
        if token is None or not allows("token:list", caller.client, owner=owner):
            raise Failure(404, "there is no such token")
        enforce("token:delete", caller.client, owner=owner)
        if not self.authority.delete_token(token, caller.actor):
            raise Failure(404, "there is no such token")
        LOG.info("enrolment withdrawn", id=token.id, by=caller.actor.label)
        return Answer(status="204 No Content", media_type=None)

    # ---- what everybody may know -------------------------------------------------------------

    def discover(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """The version of this API and its routes."""
        wire.query(request.environ)
        return json_answer(
            {
                "versions": [{"id": "v1", "status": "CURRENT", "href": "/v1"}],
                "routes": [
                    {"method": method, "path": path, "rule": rule}
                    for method, path, rule in self.router.routes
                ],
            }
        )

    def chain(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """Every authority that lives, and the root: the file to trust."""
        wire.query(request.environ)
        vary = [("Vary", "Accept")]
        if (answer := wire.chosen(request.environ, (PEM, PEM_CHAIN, JSON))) != JSON:
            return Answer(self.bundle_pem, media_type=answer, headers=vary)
        authorities = [
            {
                "id": name,
                "active": name == self.authority.active_id,
                "subject": issuer.certificate.subject.rfc4514_string(),
                "not_after": f"{issuer.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
                "certificate": _pem(issuer.certificate),
            }
            for name, issuer in self.authority.issuers.items()
        ]
        return json_answer(
            {"authorities": authorities, "root": _pem(self._root()), "chain": self.bundle_text},
            headers=vary,
        )

    @property
    def bundle_text(self) -> str:
        """The trust file as text."""
        return self.bundle_pem.decode()

    def root(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """The root's certificate."""
        wire.query(request.environ)
        answer = wire.chosen(request.environ, (PEM, DER))
        encoding = Encoding.DER if answer == DER else Encoding.PEM
        body = self._root().public_bytes(encoding)
        return Answer(body, media_type=answer, headers=[("Vary", "Accept")])

    def _root(self) -> x509.Certificate:
        return self.authority.authorities.active.root

    def profiles(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """The profiles that are offered over the network, and whether the client may ask."""
        wire.query(request.environ)
        caller = self._caller(request.environ)
        offers = self.authority.offers.values()
        shown_offers = [_offer_document(o, caller) for o in offers if o.kind not in INTERNAL]
        return json_answer({"profiles": shown_offers})

    def audit(self, request: Request, _match: Mapping[str, str]) -> Answer:
        """One page of the audit trail, the newest first, with the hashes that chain it."""
        caller = self._caller(request.environ)
        enforce("audit:read", caller.client)
        values = wire.query(request.environ, "limit", "marker")
        limit = wire.page_limit(values)
        marker = values.get("marker")
        if marker is not None and not _NUMBER.fullmatch(marker):
            raise Failure(400, "is no marker that a list has given", field="marker")
        before = None if marker is None else int(marker)
        found = self.ledger.trail(limit=limit + 1, before=before)
        answer: dict[str, Any] = {
            "entries": [
                {
                    "sequence": row.sequence,
                    "at": row.entry.at,
                    "actor": row.entry.actor,
                    "address": row.entry.address,
                    "request_id": row.entry.request_id,
                    "action": row.entry.action,
                    "decision": row.entry.decision,
                    "detail": row.entry.detail,
                    "hash": row.hash,
                }
                for row in found[:limit]
            ]
        }
        if len(found) > limit:
            answer["next"] = _next("/v1/audit", values, str(found[limit - 1].sequence))
        return json_answer(answer)

    # ---- who asks ----------------------------------------------------------------------------

    def _may(self, request: Request, rule: str) -> Actor:
        """Who asks, if the rule lets it; raises Failure."""
        caller = self._caller(request.environ)
        enforce(rule, caller.client)
        return caller.actor

    def _caller(self, environ: WSGIEnvironment) -> Caller:
        """The client, if the ledger has its certificate as issued now; Failure 401 or 403.

        NGINX has verified the chain, with a list that may be hours old, or in a session that was
        resumed; and its word is worth what its configuration is.
        """
        client = _client(environ)
        return _known(environ, client, self.ledger.by_fingerprint(client.fingerprint))

    def _token(self, authorization: str) -> Token:
        """The token of a bearer's secret; Failure 401 if there is none like it."""
        match = _BEARER.fullmatch(authorization)
        token = self.authority.find_token(match[1]) if match else None
        if token is None:
            raise Failure(
                401,
                "the enrolment token is not known",
                code="invalid-token",
                headers=[
                    ("WWW-Authenticate", 'Bearer realm="mooring enrolment", error="invalid_token"')
                ],
            )
        return token

    def _find(self, environ: WSGIEnvironment, text: str, rule: str) -> tuple[Caller, Record]:
        caller = self._caller(environ)
        record = self._lookup(text)
        if record is None:
            raise _not_found()
        label = f"{record.profile}:{record.common_name}" if record.common_name else ""
        owner = caller.actor.label in (label, record.requested_by)
        if not allows("certificate:show", caller.client, owner=owner):
            raise _not_found()
        enforce(rule, caller.client, owner=owner)
        return caller, record

    def _lookup(self, text: str) -> Record | None:
        """A certificate by serial or SHA-256, in hex as any program prints it."""
        plain = text.lower().replace(":", "") if text.isascii() else ""
        if _FINGERPRINT.fullmatch(plain):
            return self.ledger.by_fingerprint(plain)
        if _SERIAL.fullmatch(plain):
            return self.ledger.by_serial(plain.zfill(40))
        return None

    def _whole(self, issued: Issued) -> dict[str, Any]:
        return {
            **wire.certificate_document(issued.record, self.clock()),
            "certificate": issued.pem().decode(),
            "chain": self._chains.get(issued.authority_id, ""),
        }


class Pending:
    """An answer in the making, in steps.

    A worker that knows `advance` runs several of them in turns, so that they share each commit
    (`services.core.worker.TurnsWorker`); any other server iterates, and gets the answer when it is
    done. Raises Failure at any step.
    """

    def __init__(
        self,
        steps: Generator[None, None, Answer],
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> None:
        self._steps = steps
        self._environ = environ
        self._start_response = start_response
        self.body: Iterable[bytes] = ()

    def advance(self) -> bool:
        """Do the next step; True if the answer has begun and is there to be iterated."""
        try:
            next(self._steps)
        except StopIteration as end:
            answer: Answer = end.value
            self.body = answer(self._environ, self._start_response)
            return True
        except _REFUSALS as error:
            raise _failure(error) from None
        return False

    def __iter__(self) -> Iterator[bytes]:
        """The answer, once it is done."""
        while not self.body and not self.advance():
            pass
        yield from self.body

    def close(self) -> None:
        """Give up what is not done: what waits is not written."""
        self._steps.close()


# ---- helpers ---------------------------------------------------------------------------------


def _client(environ: WSGIEnvironment) -> ClientIdentity:
    """Whom the certificate names that NGINX has verified; Failure 401 without one."""
    client: ClientIdentity | None = environ.get("mooring.client")
    if client is None:
        raise Failure(
            401,
            "a client certificate is required",
            headers=[("WWW-Authenticate", 'Bearer realm="mooring enrolment"')],
        )
    return client


def _known(environ: WSGIEnvironment, client: ClientIdentity, record: Record | None) -> Caller:
    """The caller, if what the ledger has of its certificate says that it is issued; Failure 403."""
    if record is None or int(record.serial, 16) != client.serial:
        raise Failure(
            403, "this authority has not issued the certificate", code="certificate-unknown"
        )
    if record.state != ISSUED:
        raise Failure(403, f"the certificate is {record.state}", code="certificate-revoked")
    address, request_id = _where(environ)
    actor = Actor(client.user, client.groups, address, request_id, "certificate", record.profile)
    return Caller(client, actor, record)


def _where(environ: WSGIEnvironment) -> tuple[str, str]:
    """The address and the request id that the ledger's trail gets."""
    address = environ.get("mooring.client_address") or environ.get("REMOTE_ADDR") or ""
    return str(address), str(environ.get("mooring.request_id", ""))


_REFUSALS = (Refused, Forbidden, Missing, NotPossible, SigningFailed, Unavailable)


def _failure(error: Exception) -> Failure:
    """How the client learns of a refusal."""
    match error:
        case Refused():
            return Failure(400, error.reason, field=error.field)
        case Forbidden():
            return Failure(403, error.reason, field=error.field)
        case Missing():
            return _not_found()
        case NotPossible():
            return Failure(409, error.reason, code="wrong-state")
        case SigningFailed():
            headers = [("Retry-After", SIGNING_RETRY)]
            return Failure(503, "the authority cannot sign just now", headers=headers)
        case _:
            headers = [("Retry-After", RETRY_AFTER)]
            return Failure(503, "the database is not available just now", headers=headers)


def _not_found() -> Failure:
    return Failure(404, "there is no such certificate")


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _rendered(issued: Issued, media_type: str, *, chain: bool) -> bytes:
    if media_type == DER:
        return issued.der
    return issued.pem_chain() if chain else issued.pem()


def _lifetime(values: Mapping[str, Any]) -> timedelta | None:
    value = values.get("lifetime")
    if value is None:
        return None
    try:
        return parse_span(int(value) if isinstance(value, str) and value.isdecimal() else value)
    except (ValueError, OverflowError):
        raise Refused("/lifetime", 'is not a time such as "90d", "12h", "30m" or "600s"') from None


def _before(values: Mapping[str, str], now: datetime) -> str | None:
    """The parameter `expires_before`: a moment, or a time from now such as 30d."""
    text = values.get("expires_before")
    if text is None:
        return None
    try:
        return timestamp(now + parse_span(text))
    except ValueError:
        return wire.parse_time(text, "expires_before")
    except OverflowError:
        raise Failure(400, "is out of range", field="expires_before") from None


def _marker(values: Mapping[str, str]) -> tuple[str, str] | None:
    text = values.get("marker")
    if text is None:
        return None
    match = _MARKER.fullmatch(text)
    if match is None:
        raise Failure(400, "is no marker that a list has given", field="marker")
    return match[1], match[2]


def _next(path: str, values: Mapping[str, str], marker: str) -> str:
    return f"{path}?{urlencode({**values, 'marker': marker})}"


def _offer_document(offer: Offer, caller: Caller) -> dict[str, Any]:
    profile = offer.profile
    groups = offer.groups
    return {
        "name": profile.name,
        "kind": offer.kind,
        "key_types": sorted(kind.value for kind in profile.key_types),
        "default_key_type": profile.default_key_type.value,
        "default_lifetime": int(profile.default_lifetime.total_seconds()),
        "greatest_lifetime": int(profile.greatest_lifetime.total_seconds()),
        "names": {
            "dns": list(profile.names.dns),
            "wildcards": profile.names.wildcards,
            "networks": [str(network) for network in profile.names.networks],
            "uris": list(profile.names.uris),
            "required": profile.names.required,
        },
        "groups": sorted(groups),
        "renew": offer.renew,
        "tokens": offer.tokens,
        "acme": offer.acme,
        "may_ask": not groups.isdisjoint(caller.client.groups),
        "may_ask_for_own_name": caller.record.profile in offer.own_name,
    }


def app_factory(global_conf: dict[str, str], *, config: str) -> WSGIApplication:
    """Build the application for paste; ``config`` is the path of mooring.conf.

    Raises ConfigError for a bad file, keys or profiles that cannot be used, and a database whose
    schema is not this version's; one that is away just now does not stop the start.
    """
    check_once(global_conf)
    built = service.build(config)
    return CertificateApi(
        built.authority,
        bundle_pem=built.authorities.bundle_pem(),
        token_lifetime=timedelta(seconds=built.conf.ca.token_lifetime),
        token_greatest_lifetime=timedelta(seconds=built.conf.ca.token_greatest_lifetime),
    )
