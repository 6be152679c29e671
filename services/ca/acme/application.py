"""The resources of ACME: HTTP over the other modules (RFC 8555 section 7).

Every address that is compared or given out is made from the configured `external_url`; what a
client says of the host (Host, X-Forwarded-...) is never read. A resource of another account is 404,
as if it were not there. A refusal is a problem document; only a mistake of ours (500) is left to
the errors filter.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
import webob
from cryptography import x509

from services.ca.acme import jws, states
from services.ca.acme.certificates import AuthorityCertificates
from services.ca.acme.challenges import Resolver, Validator
from services.ca.acme.orders import LOOK_AGAIN, Caller, Certificates, Finalizer, Policy
from services.ca.acme.problems import MEDIA_TYPE, Problem
from services.ca.acme.requests import EITHER, JWK, Requests, Signed
from services.ca.acme.rules import check_identifiers, parse_identifiers, raise_together
from services.ca.acme.store import (
    Account,
    Authorization,
    Challenge,
    Order,
    Refusal,
    Store,
)
from services.ca.acme.validation import Checks, Validation
from services.ca.keys import accept_public_key
from services.ca.profile_file import acme_profiles
from services.ca.refusal import Refused
from services.ca.service import build
from services.core.config import ConfigError
from services.core.database import Conflict, Unavailable
from services.core.deploy import check_once, require_gatekeeper
from services.core.edge import RETRY_AFTER, Request, Router, json_response
from services.core.errors import Failure

LOG = structlog.get_logger("mooring.acme")

PEM_CHAIN: Final = "application/pem-certificate-chain"

# Addresses of one account; more than one is rare, ten is a mistake.
GREATEST_CONTACTS: Final = 10
_MAIL = re.compile(r"mailto:[A-Za-z0-9.!#$&'*+/=?^_{|}~-]{1,64}@[A-Za-z0-9.-]{1,190}")

# Orders of one page of an account's list.
PAGE: Final = 100

HOUR: Final = timedelta(hours=1)

# RFC 5280 section 5.3.1, those that are ours to give for a leaf: 2 and 10 are authorities', 6 would
# be a hold that its holder cannot end, 7 does not exist, 8 is what ending a hold does.
REASONS: Final = {
    0: "unspecified",
    1: "keyCompromise",
    3: "affiliationChanged",
    4: "superseded",
    5: "cessationOfOperation",
    9: "privilegeWithdrawn",
}

_CURSOR = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z),([0-9a-f]{32})")


@dataclass(frozen=True)
class Settings:
    """What the operator configured."""

    external_url: str
    external_account_required: bool = True
    nonce_lifetime: timedelta = HOUR
    order_lifetime: timedelta = timedelta(days=1)
    orders_per_hour: int = 300
    accounts_per_hour: int = 500
    terms_of_service: str = ""


class Acme:
    """The WSGI application."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        certificates: Certificates,
        policy: Policy,
        checks: Checks,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        validation: Validation | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._certificates = certificates
        self._policy = policy
        self._checks = checks
        self._clock = clock
        self._finalizer = Finalizer(store, certificates, policy, clock)
        self._requests = Requests(store, settings.external_url, settings.nonce_lifetime, clock)
        self.validation = validation or Validation(store, checks, clock)
        who = "acme"  # what decides is the signature of each request, not a rule of the policy
        self._router = Router(
            [
                ("GET", "/directory", who, self._directory),
                ("GET", "/new-nonce", who, self._new_nonce),
                # section 6.3: these two also as POST-as-GET
                ("POST", "/directory", who, self._directory),
                ("POST", "/new-nonce", who, self._new_nonce),
                ("POST", "/new-account", who, self._new_account),
                ("POST", "/new-order", who, self._new_order),
                ("POST", "/revoke-cert", who, self._revoke),
                ("POST", "/key-change", who, self._key_change),
                ("POST", "/account/{id}", who, self._account),
                ("POST", "/account/{id}/orders", who, self._orders),
                ("POST", "/order/{id}", who, self._order),
                ("POST", "/order/{id}/finalize", who, self._finalize),
                ("POST", "/authorization/{id}", who, self._authorization),
                ("POST", "/challenge/{id}", who, self._challenge),
                ("POST", "/certificate/{id}", who, self._certificate),
            ]
        )
        self.routes = self._router.routes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        require_gatekeeper(environ)
        extra = []
        path = environ.get("PATH_INFO", "")
        if path != "/directory":
            extra.append(("Link", f'<{self._url("directory")}>;rel="index"'))
        try:
            if environ["REQUEST_METHOD"] == "POST":
                self.validation.tidy_if_due()
                extra += [("Replay-Nonce", self._requests.nonce()), _NO_STORE]
            return self._router(environ, _adding(start_response, extra))
        except Problem as problem:
            answer = _problem(problem)
        except Failure as failure:
            answer = _problem(_of_failure(failure))
        except Unavailable:
            answer = _problem(
                Problem(
                    "serverInternal",
                    "the database is not available just now",
                    status=503,
                    headers=[("Retry-After", RETRY_AFTER)],
                )
            )
        return answer(environ, _adding(start_response, extra))

    # ---- what needs no signature ---------------------------------------------------------------

    def _directory(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        if request.method == "POST":
            self._requests.by_account(request)[0].nothing()
        meta: dict[str, Any] = {"externalAccountRequired": self._settings.external_account_required}
        if self._settings.terms_of_service:
            meta["termsOfService"] = self._settings.terms_of_service
        return json_response(
            {
                "newNonce": self._url("new-nonce"),
                "newAccount": self._url("new-account"),
                "newOrder": self._url("new-order"),
                "revokeCert": self._url("revoke-cert"),
                "keyChange": self._url("key-change"),
                "meta": meta,
            }
        )

    def _new_nonce(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        if request.method == "POST":
            self._requests.by_account(request)[0].nothing()
            return webob.Response(status=204, headerlist=[])  # every answer to a POST has one
        nonce = self._requests.nonce()
        # RFC 8555 section 7.2: 200 to HEAD, 204 to GET
        return webob.Response(
            status=200 if request.method == "HEAD" else 204,
            headerlist=[("Replay-Nonce", nonce), _NO_STORE],
        )

    # ---- accounts ------------------------------------------------------------------------------

    def _new_account(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        signed = self._requests.read(request, by=JWK)
        wanted = signed.json()
        existing = self._store.account_by_key(signed.jwk.thumbprint)
        if existing is not None:
            return self._known_account(existing)
        if _flag(wanted, "onlyReturnExisting"):
            raise Problem("accountDoesNotExist", "there is no account with this key")
        contact = _contact(wanted)
        if self._settings.terms_of_service and not _flag(wanted, "termsOfServiceAgreed"):
            raise Problem("userActionRequired", "the terms of service have to be agreed to")
        external_id = self._external_account(wanted, signed)
        now = self._clock()
        if self._store.accounts_since(now - HOUR) >= self._settings.accounts_per_hour:
            raise Problem(
                "rateLimited",
                "too many accounts were made in the last hour",
                headers=[("Retry-After", "600")],
            )
        try:
            account = self._store.create_account(
                thumbprint=signed.jwk.thumbprint,
                jwk=signed.jwk.text(),
                contact=contact,
                external_id=external_id,
                now=now,
            )
        except Refusal as refusal:
            raise Problem("unauthorized", str(refusal)) from None
        except Conflict:
            # the same key came in twice at once
            existing = self._store.account_by_key(signed.jwk.thumbprint)
            if existing is None:
                raise
            return self._known_account(existing)
        LOG.info("acme account created", account=account.id, external=external_id)
        return self._account_answer(account, 201)

    def _known_account(self, account: Account) -> webob.Response:
        if account.status != states.VALID:
            raise Problem("unauthorized", f"the account is {account.status}", status=401)
        return self._account_answer(account, 200)

    def _external_account(self, wanted: Mapping[str, Any], signed: Signed) -> str | None:
        body = wanted.get("externalAccountBinding")
        if body is None:
            if self._settings.external_account_required:
                raise Problem(
                    "externalAccountRequired", "an account needs an external account's key here"
                )
            return None
        binding = jws.parse_binding(body)
        if binding.url != signed.url:
            raise Problem("malformed", "the external account binding is for another address")
        bound = jws.parse_jwk(jws.load_json(binding.payload, "the bound key"))
        if bound.thumbprint != signed.jwk.thumbprint:
            raise Problem("malformed", "the external account binding holds another key")
        found = self._store.external_key(binding.kid)
        # one answer for both, so that ids cannot be tried
        if found is None or not binding.is_by(found[1]):
            raise Problem("unauthorized", "the external account binding does not verify")
        return binding.kid

    def _account(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        account, signed = self._own_account(request, match)
        if signed.is_read:
            return self._account_answer(account, 200)
        wanted = signed.json()
        status = wanted.get("status")
        if status is not None:
            if status != states.DEACTIVATED:
                raise Problem("malformed", "an account's status becomes deactivated only")
            self._store.deactivate_account(account.id)
            LOG.info("acme account deactivated", account=account.id)
        elif "contact" in wanted:
            self._store.set_contact(account.id, _contact(wanted))
        # other fields are ignored (section 7.3.2)
        return self._account_answer(self._store.account(account.id) or account, 200)

    def _orders(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        account, signed = self._own_account(request, match)
        signed.nothing()
        after = None
        if "cursor" in request.GET:
            cursor = _CURSOR.fullmatch(request.GET["cursor"])
            if cursor is None:
                raise Problem("malformed", "the cursor is not one of ours")
            after = (cursor[1], cursor[2])
        rows = self._store.order_ids(account.id, PAGE + 1, after)
        headers = []
        if len(rows) > PAGE:
            rows = rows[:PAGE]
            more = self._url("account", account.id, "orders")
            headers.append(("Link", f'<{more}?cursor={rows[-1][0]},{rows[-1][1]}>;rel="next"'))
        return json_response(
            {"orders": [self._url("order", order_id) for _, order_id in rows]}, 200, headers
        )

    def _key_change(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        signed, account = self._requests.by_account(request)
        inner = jws.parse_inner(signed.json())
        new = inner.jwk
        if new is None:  # parse_inner has seen to it
            raise Problem("malformed", "the inner JWS carries the new key as jwk")
        if inner.url != signed.url:
            raise Problem("malformed", "the inner JWS is for another address")
        jws.verify(inner, new)
        wanted = jws.load_json(inner.payload, "the inner payload")
        if wanted.get("account") != self._url("account", account.id):
            raise Problem("malformed", "the inner payload names another account")
        if jws.parse_jwk(wanted.get("oldKey")).thumbprint != account.thumbprint:
            raise Problem("malformed", "oldKey is not the account's key")
        owner = self._store.account_by_key(new.thumbprint)
        try:
            if owner is None and not self._store.change_key(
                account, thumbprint=new.thumbprint, jwk=new.text()
            ):
                raise Problem("malformed", "the account's key was changed meanwhile", status=409)
        except Conflict:
            owner = self._store.account_by_key(new.thumbprint)
        if owner is not None:
            raise Problem(
                "malformed",
                "the new key is the key of an account",
                status=409,
                headers=[("Location", self._url("account", owner.id))],
            )
        LOG.info("acme account key changed", account=account.id)
        return self._account_answer(self._store.account(account.id) or account, 200)

    def _account_answer(self, account: Account, status: int) -> webob.Response:
        url = self._url("account", account.id)
        document = {
            "status": account.status,
            "contact": list(account.contact),
            "orders": f"{url}/orders",
        }
        return json_response(document, status, [("Location", url)])

    # ---- orders --------------------------------------------------------------------------------

    def _new_order(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        signed, account = self._requests.by_account(request)
        wanted = signed.json()
        for name in ("notBefore", "notAfter"):
            if name in wanted:
                raise Problem("malformed", f"{name} is not offered: the profile says how long")
        identifiers = parse_identifiers(wanted.get("identifiers"))
        _, rules = self._policy.of(account)
        check_identifiers(identifiers, rules)
        offered = [(identifier, self._checks.types(identifier)) for identifier in identifiers]
        raise_together(
            [
                Problem(
                    "rejectedIdentifier",
                    "no challenge is offered for this name: the service may not connect to it",
                    identifier=identifier.document(),
                )
                for identifier, types in offered
                if not types
            ]
        )
        now = self._clock()
        recent = self._store.orders_since(account.id, now - HOUR)
        if len(recent) >= self._settings.orders_per_hour:
            again = recent[-self._settings.orders_per_hour] + HOUR - now
            raise Problem(
                "rateLimited",
                f"more than {self._settings.orders_per_hour} orders in an hour",
                headers=[("Retry-After", str(max(1, int(again.total_seconds()) + 1)))],
            )
        order = self._store.create_order(
            account.id, offered, now=now, expires=now + self._settings.order_lifetime
        )
        return self._order_answer(order, 201)

    def _order(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        signed, account = self._requests.by_account(request)
        signed.nothing()
        order = self._own_order(account, match["id"])
        if order.status == states.PENDING:
            # a client may poll the order alone
            for challenge in self._store.processing(order.id):
                self.validation.wake(challenge)
        order = self._finalizer.recover(account, order, _caller(request, account))
        return self._order_answer(order, 200)

    def _finalize(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        signed, account = self._requests.by_account(request)
        order = self._own_order(account, match["id"])
        try:
            csr = jws.decode(signed.json().get("csr"), "csr", jws.PAYLOAD_BYTES)
        except Problem as problem:
            raise Problem("badCSR", problem.detail) from None
        order = self._finalizer.finalize(account, order, csr, _caller(request, account))
        LOG.info("acme order finalized", account=account.id, order=order.id, status=order.status)
        return self._order_answer(order, 200)

    def _certificate(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        signed, account = self._requests.by_account(request)
        signed.nothing()
        order = self._own_order(account, match["id"])
        pem = None
        if (
            order.status == states.VALID
            and order.authority_id is not None
            and order.serial is not None
        ):
            pem = self._certificates.chain_pem(order.authority_id, order.serial)
        if pem is None:
            raise Problem("malformed", "there is no certificate here", status=404)
        return webob.Response(status=200, body=pem, headerlist=[("Content-Type", PEM_CHAIN)])

    def _order_answer(self, order: Order, status: int) -> webob.Response:
        url = self._url("order", order.id)
        document: dict[str, Any] = {
            "status": order.status,
            "expires": _shown(order.expires_at),
            "identifiers": [identifier.document() for identifier in order.identifiers],
            "authorizations": [self._url("authorization", each) for each in order.authorizations],
            "finalize": f"{url}/finalize",
        }
        if order.status == states.VALID:
            document["certificate"] = self._url("certificate", order.id)
        if order.error is not None:
            document["error"] = order.error
        headers = [("Location", url)]
        if order.status == states.PROCESSING:
            headers.append(("Retry-After", LOOK_AGAIN))
        return json_response(document, status, headers)

    # ---- authorizations ------------------------------------------------------------------------

    def _authorization(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        signed, account = self._requests.by_account(request)
        found = self._owned(self._store.authorization(match["id"], self._clock()), account)
        if not signed.is_read:
            if signed.json().get("status") != states.DEACTIVATED:
                raise Problem("malformed", "an authorization's status becomes deactivated only")
            if not self._store.deactivate_authorization(found):
                raise Problem("malformed", f"the authorization is {found.status}")
            found = self._owned(self._store.authorization(match["id"], self._clock()), account)
        self.validation.look(found)
        document: dict[str, Any] = {
            "identifier": {"type": found.identifier.kind, "value": found.identifier.value},
            "status": found.status,
            "expires": _shown(found.expires_at),
            "challenges": [self._challenge_document(each) for each in _visible(found)],
        }
        if found.identifier.wildcard:
            document["wildcard"] = True
        return json_response(document, 200, _retry(found.challenges))

    def _challenge(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        signed, account = self._requests.by_account(request)
        found = self._owned(self._store.authorization_of(match["id"], self._clock()), account)
        if not signed.is_read:
            signed.json()  # an object whose members no type of ours reads
            challenge = _one(found, match["id"])
            if challenge.status == states.PENDING:
                if found.status != states.PENDING:
                    raise Problem("malformed", f"the authorization is {found.status}")
                self._store.begin_challenge(challenge, self._clock())
            found = self._owned(self._store.authorization_of(match["id"], self._clock()), account)
        challenge = _one(found, match["id"])
        self.validation.wake(challenge)
        headers = [
            ("Link", f'<{self._url("authorization", found.id)}>;rel="up"'),
            *_retry((challenge,)),
        ]
        return json_response(self._challenge_document(challenge), 200, headers)

    def _challenge_document(self, challenge: Challenge) -> dict[str, Any]:
        document: dict[str, Any] = {
            "type": challenge.type,
            "url": self._url("challenge", challenge.id),
            "token": challenge.token,
            "status": challenge.status,
        }
        if challenge.validated_at is not None:
            document["validated"] = _shown(challenge.validated_at)
        if challenge.error is not None:
            document["error"] = challenge.error
        return document

    # ---- revoking ------------------------------------------------------------------------------

    def _revoke(self, request: Request, _match: Mapping[str, str]) -> webob.Response:
        signed = self._requests.read(request, by=EITHER)
        wanted = signed.json()
        der = jws.decode(wanted.get("certificate"), "certificate", jws.PAYLOAD_BYTES)
        reason = wanted.get("reason", 0)
        if not isinstance(reason, int) or isinstance(reason, bool) or reason not in REASONS:
            codes = ", ".join(map(str, REASONS))
            raise Problem("badRevocationReason", f"the reason has to be one of {codes}")
        try:
            certificate = x509.load_der_x509_certificate(der)
            key = jws.jwk_of(accept_public_key(certificate.public_key()))
        except (ValueError, TypeError, Refused):
            raise Problem("malformed", "certificate is not a certificate of ours") from None
        known = self._certificates.known(der)
        if known is None:
            raise Problem("malformed", "there is no such certificate here", status=404)
        if signed.account is None:
            if key.thumbprint != signed.jwk.thumbprint:
                raise Problem("unauthorized", "the request is not signed by the certificate's key")
        elif not self._store.order_of(
            signed.account.id, known.authority_id, known.serial
        ) and not self._holds_all(signed.account, certificate):
            raise Problem("unauthorized", "the account may not revoke this certificate")
        if known.revoked:
            raise Problem("alreadyRevoked", "the certificate is revoked already")
        account = signed.account
        caller = _caller(request, account)
        self._certificates.revoke(known, REASONS[reason], caller)
        LOG.info("acme certificate revoked", account=caller.account_id, serial=known.serial)
        return webob.Response(status=200, headerlist=[])

    def _holds_all(self, account: Account, certificate: x509.Certificate) -> bool:
        """Section 7.6: an account with valid authorizations for every name may revoke it."""
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
            return False
        wanted: set[tuple[str, str]] = set()
        for name in found.value:
            if isinstance(name, x509.DNSName):
                wanted.add(("dns", name.value))
            elif isinstance(name, x509.IPAddress):
                wanted.add(("ip", str(name.value)))
            else:
                return False
        return bool(wanted) and wanted <= self._store.authorized(account.id, self._clock())

    # ---- parts ---------------------------------------------------------------------------------

    def _own_account(self, request: Request, match: Mapping[str, str]) -> tuple[Account, Signed]:
        signed, account = self._requests.by_account(request)
        if account.id != match["id"]:
            raise Problem("unauthorized", "this is another account")
        return account, signed

    def _own_order(self, account: Account, order_id: str) -> Order:
        order = self._store.order(order_id, self._clock())
        if order is None or order.account_id != account.id:
            raise Problem("malformed", "there is no such order", status=404)
        return order

    def _owned(self, found: Authorization | None, account: Account) -> Authorization:
        if found is None or found.account_id != account.id:
            raise Problem("malformed", "there is no such authorization", status=404)
        return found

    def _url(self, *parts: str) -> str:
        return "/".join((self._settings.external_url, *parts))


_NO_STORE: Final = ("Cache-Control", "no-store")


def _adding(start_response: StartResponse, extra: list[tuple[str, str]]) -> StartResponse:
    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        return start_response(status, [*headers, *extra], exc_info)

    return start


def _problem(problem: Problem) -> webob.Response:
    return webob.Response(
        status=problem.status,
        body=problem.body(),
        headerlist=[("Content-Type", MEDIA_TYPE), *problem.headers],
    )


def _of_failure(failure: Failure) -> Problem:
    kind = "serverInternal" if failure.status >= 500 else "malformed"
    return Problem(kind, failure.message, status=failure.status, headers=failure.headers)


def _caller(request: Request, account: Account | None) -> Caller:
    return Caller(
        account_id=account.id if account is not None else "",
        address=str(request.environ.get("mooring.client_address") or ""),
        request_id=str(request.environ.get("mooring.request_id", "")),
    )


def _flag(wanted: Mapping[str, Any], name: str) -> bool:
    value = wanted.get(name, False)
    if not isinstance(value, bool):
        raise Problem("malformed", f"{name} is not true or false")
    return value


def _contact(wanted: Mapping[str, Any]) -> list[str]:
    contact = wanted.get("contact", [])
    if not isinstance(contact, list) or not all(isinstance(each, str) for each in contact):
        raise Problem("invalidContact", "contact is not a list of addresses")
    if len(contact) > GREATEST_CONTACTS:
        raise Problem("invalidContact", f"more than {GREATEST_CONTACTS} contacts")
    for each in contact:
        if not each.startswith("mailto:"):
            raise Problem("unsupportedContact", "a contact is a mailto: address")
        if not _MAIL.fullmatch(each):
            # also several addresses or header fields in one (section 7.3)
            raise Problem("invalidContact", "a contact is not one plain mail address")
    return contact


def _one(authorization: Authorization, challenge_id: str) -> Challenge:
    for challenge in authorization.challenges:
        if challenge.id == challenge_id:
            return challenge
    raise Problem("malformed", "there is no such challenge", status=404)


def _visible(authorization: Authorization) -> tuple[Challenge, ...]:
    """Section 7.1.4: of a finished authorization, the challenge that decided it."""
    if authorization.status in (states.VALID, states.EXPIRED):
        return tuple(each for each in authorization.challenges if each.status == states.VALID)
    if authorization.status == states.INVALID:
        decided = tuple(each for each in authorization.challenges if each.status == states.INVALID)
        return decided or authorization.challenges
    return authorization.challenges


def _retry(challenges: Iterable[Challenge]) -> list[tuple[str, str]]:
    if any(challenge.status == states.PROCESSING for challenge in challenges):
        return [("Retry-After", "1")]
    return []


def _shown(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def app_factory(global_conf: dict[str, str], *, config: str) -> WSGIApplication:
    """Build the application for paste; `config` is the path of mooring.conf.

    Raises ConfigError as `services.ca.service.build` does, and for an [acme] that cannot work.
    """
    check_once(global_conf)
    service = build(config)
    options = service.conf.acme
    if not options.external_url:
        return _off
    profiles = acme_profiles(service.authority.offers)
    if options.profile not in profiles:
        given = ", ".join(sorted(profiles)) or "none"
        raise ConfigError(
            f"{config}: option profile in [acme]: {options.profile} is not given over ACME"
            f" (those are: {given})"
        )
    store = Store(service.ledger.database)
    checks = Validator(
        Resolver(options.resolver),
        tuple(ipaddress.ip_network(each) for each in options.allowed_networks),
        options.http_port,
        options.tls_port,
    )
    settings = Settings(
        external_url=options.external_url,
        external_account_required=options.external_account_required,
        nonce_lifetime=timedelta(seconds=options.nonce_lifetime),
        order_lifetime=timedelta(seconds=options.order_lifetime),
        orders_per_hour=options.orders_per_hour,
        accounts_per_hour=options.accounts_per_hour,
        terms_of_service=options.terms_of_service,
    )
    certificates = AuthorityCertificates(service.authority)
    return Acme(settings, store, certificates, Policy(store, profiles, options.profile), checks)


def _off(environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
    """What stands there while [acme] external_url is empty."""
    require_gatekeeper(environ)
    raise Failure(404, "ACME is not set up here")
