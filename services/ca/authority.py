"""The authority in service: who may have which certificate, and the order in which one is made.

Nothing is signed that is not in the ledger, and nothing is given out that is not there whole:

1. decide: the profile, the names, who asks. A refusal signs nothing;
2. one transaction records the serial, the digest of what is about to be signed, and the intent in
   the audit trail;
3. sign, and compare what was signed with what was recorded;
4. one transaction stores the certificate and says in the trail that it is done;
5. only then is it returned.

A process that dies between two of these leaves a pending row and no certificate in anybody's hands.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NoReturn, Protocol, TypeVar, cast

from cryptography import x509
from cryptography.x509.oid import NameOID

from services.ca import audit, keystore
from services.ca.commit import GroupCommit, GroupLookup, NotPending, Work
from services.ca.files import certificates_pem, pem
from services.ca.issue import Decision, Validity, decide, random_serial
from services.ca.keys import KeyType, PublicKey, key_identifier, key_type
from services.ca.ledger import (
    Completion,
    Ledger,
    Record,
    Reservation,
    Status,
    Token,
    serial_text,
    timestamp,
)
from services.ca.profile_file import INTERNAL, Offer
from services.ca.profiles import Profile, Subject
from services.ca.refusal import Refused, shown
from services.ca.request import CertificateRequest, make_request
from services.ca.signer import Issuer
from services.ca.states import (
    HELD,
    ISSUED,
    PENDING,
    REASONS,
    REVOKED,
    TRANSITIONS,
    UNKNOWN,
    state_for,
)
from services.ca.subjects import certificate_names
from services.ca.template import Template, Unsigned, assemble
from services.core.database import Conflict, Writer

Result = TypeVar("Result")

VIA = ("certificate", "token", "acme", "command")

TOKEN_BYTES = 32
"""Random bytes of an enrolment token's secret: as many as a key of AES-256."""

TOKEN_PREFIX = "mooring-enrol-"  # noqa: S105 - the public part
"""What a token begins with, so that one that was leaked can be found in a repository or a log."""

SERIAL_ATTEMPTS = 3
"""Times that a serial is drawn. Two of 159 random bits are equal only if the source of randomness
is broken, and then drawing on is no help."""

NAMES_FIELDS = ("common_name", "organizations", "dns_names", "ip_addresses", "uris")
"""The fields of a token's request that bind names."""


class Forbidden(Exception):
    """This one may not have what was asked for; `reason` is fit for the one who asked."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field


class Missing(LookupError):
    """There is no such certificate."""


class NotPossible(Exception):
    """The certificate's state does not allow what was asked for."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SigningFailed(Exception):
    """The authority's key could not sign just now, or signed something else; nothing was given."""


class _Authorities(Protocol):
    """The part of `services.ca.keystore.Authorities` that is used here."""

    @property
    def active(self) -> Issuer:
        """The one that signs."""

    def all(self) -> tuple[Issuer, ...]:
        """Every one whose key is here, the active one first."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks, as the edge has found out.

    `via` says how: "certificate" (the name is its CN, `profile` the profile it was issued by),
    "token", "acme" or "command" (on the machine that has the key; no group is asked for).
    """

    name: str
    groups: frozenset[str]
    address: str
    request_id: str
    via: str
    profile: str = ""

    @property
    def label(self) -> str:
        """What the ledger and the trail call it: "client:alice", "host:node-1.example".

        With the profile, for a host may be named as a user is; others have a name that says so.
        """
        name = f"{self.profile}:{self.name}" if self.profile else self.name
        return name[:255]


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that the ledger has as `record`, and what is sent behind it (not the root)."""

    authority_id: str
    serial: int
    der: bytes
    chain: tuple[x509.Certificate, ...]
    record: Record

    @property
    def certificate(self) -> x509.Certificate:
        """What was issued."""
        return x509.load_der_x509_certificate(self.der)

    def pem(self) -> bytes:
        """The certificate in PEM."""
        return pem(self.der)

    def pem_chain(self) -> bytes:
        """The leaf and its chain in PEM, the leaf first."""
        return self.pem() + certificates_pem(self.chain)


Within = Callable[[Writer, str], None]
"""Work that belongs into the transaction which reserves a serial, given that serial as text: it is
done exactly if the serial is recorded. It may raise, and then nothing is recorded or signed."""


Issuing = Generator[None, None, Issued]
"""Issuing in steps (`Authority.issuing`)."""


def finish(steps: Generator[None, None, Result]) -> Result:
    """Run all steps, alone, and return what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Result, end.value)


class Authority:
    """Issues and revokes over the ledger; made once a process, and safe in several at a time."""

    def __init__(
        self,
        authorities: _Authorities,
        ledger: Ledger,
        offers: Mapping[str, Offer],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.authorities = authorities
        self.ledger = ledger
        self.offers = offers
        self.clock = clock
        # called with the authority's id after each change of a status is committed; never raises
        self.on_change: Callable[[str], None] = lambda _authority_id: None
        self.issuers = {
            keystore.authority_id(issuer.certificate): issuer for issuer in authorities.all()
        }
        self.active_id = keystore.authority_id(authorities.active.certificate)
        self.commits = GroupCommit(ledger)
        self.lookups = GroupLookup(ledger)
        self._templates: dict[tuple[str, str, KeyType], Template] = {}
        self._registered = False

    def register(self) -> None:
        """Make every authority known to the ledger; raises Unavailable."""
        for name, issuer in self.issuers.items():
            self.ledger.register(name, issuer.certificate)
        self._registered = True

    # ---- issuing -----------------------------------------------------------------------------

    def issue(
        self,
        profile: str,
        request: CertificateRequest,
        actor: Actor,
        *,
        lifetime: timedelta | None = None,
        authority_id: str | None = None,
        within: Within | None = None,
        action: str = "issue",
    ) -> Issued:
        """Issue by a profile for an actor who is known to be who it says.

        `authority_id` chooses another authority than the active one. Raises Refused (the request
        cannot be granted as it is), Forbidden (not to this actor), SigningFailed, and Unavailable
        (the database); nothing was given out then.
        """
        return finish(
            self.issuing(
                profile,
                request,
                actor,
                lifetime=lifetime,
                authority_id=authority_id,
                within=within,
                action=action,
            )
        )

    def issuing(
        self,
        profile: str,
        request: CertificateRequest,
        actor: Actor,
        *,
        lifetime: timedelta | None = None,
        authority_id: str | None = None,
        within: Within | None = None,
        action: str = "issue",
    ) -> Issuing:
        """`issue` in steps, between which it yields: before some of them a row waits to be written.

        Who runs several at the same time, each to where it yields, has them written together.
        """
        asked = {"profile": profile, "via": actor.via, "common_name": request.common_name}
        try:
            offer = self._offer(profile)
            if action == "issue":
                _authorise(offer, request, actor)
            return (
                yield from self._issue(
                    offer, request, actor, lifetime, authority_id, within, action
                )
            )
        except (Refused, Forbidden) as error:
            self._note_refusal(actor, action, asked, error)
            raise

    def _issue(
        self,
        offer: Offer,
        request: CertificateRequest,
        actor: Actor,
        lifetime: timedelta | None,
        issuer_id: str | None,
        within: Within | None,
        action: str,
    ) -> Issuing:
        if not self._registered:
            self.register()
        chosen = self.active_id if issuer_id is None else issuer_id
        issuer = self.issuers.get(chosen)
        if issuer is None:
            raise Refused("/issuer", f"there is no authority {shown(chosen)} here")
        profile = offer.profile
        attempt = 1
        while True:
            now = self.clock()
            decision = decide(profile, request, issuer, now=now, lifetime=lifetime)
            unsigned = self._template(profile, chosen, key_type(request.public_key)).fill(
                request, decision, random_serial()
            )
            reservation = _reservation(profile, decision, chosen, unsigned, actor, now)
            intent = self._intended(reservation, actor, action)
            try:
                if within is None:
                    work = Work(intent, reservation=reservation)
                    yield from self._settled(work, self.commits.settle)
                else:
                    self._reserve(reservation, intent, within)
                break
            except Conflict as conflict:
                if conflict.constraint != "ca_certificate" or attempt == SERIAL_ATTEMPTS:
                    raise
                attempt += 1
        der = self._sign(issuer, unsigned, reservation, actor, action)
        fingerprint = hashlib.sha256(der).hexdigest()
        done = self._entry(
            actor, action, "done", {"fingerprint": fingerprint, "serial": reservation.serial}
        )
        completion = Completion(chosen, reservation.serial, fingerprint, der)
        try:
            yield from self._settled(Work(done, completion=completion), self._store)
        except NotPending:
            raise SigningFailed("the certificate was revoked before it was stored") from None
        record = reservation.issued(fingerprint)
        return Issued(chosen, unsigned.serial_number, der, issuer.chain, record)

    def _template(self, profile: Profile, issuer_id: str, kind: KeyType) -> Template:
        name = (profile.name, issuer_id, kind)
        found = self._templates.get(name)
        if found is None:
            found = self._templates[name] = Template(profile, self.issuers[issuer_id], kind)
        return found

    def _settled(self, work: Work, settle: Callable[[Work], None]) -> Generator[None, None, None]:
        """Have a step written, together with those of others who wait at the same time."""
        self.commits.add(work)
        try:
            yield
            settle(work)
        except BaseException:  # it has failed, or whoever ran this has given up
            self.commits.drop(work)
            raise

    def _store(self, work: Work) -> None:
        self.commits.settle(work)

    def _intended(self, reservation: Reservation, actor: Actor, action: str) -> audit.Entry:
        detail = {
            "authority": reservation.authority_id,
            "names": [f"{kind}:{value}" for kind, value in reservation.names],
            "profile": reservation.profile,
            "serial": reservation.serial,
            "subject": reservation.subject,
            "via": actor.via,
        }
        return _entry_at(actor, action, "intent", detail, reservation.created_at)

    def _reserve(self, reservation: Reservation, intent: audit.Entry, within: Within) -> None:
        with self.ledger.database.write() as writer:
            self.ledger.reserve(writer.connection, [reservation])
            within(writer, reservation.serial)
            self.ledger.append(writer.connection, [intent])

    def _sign(
        self,
        issuer: Issuer,
        unsigned: Unsigned,
        reservation: Reservation,
        actor: Actor,
        action: str,
    ) -> bytes:
        try:
            signature = issuer.signer.sign_bytes(unsigned.tbs_certificate_bytes)
            der = assemble(unsigned, signature)
        except Exception as error:  # a token's library raises anything
            failure = {"serial": reservation.serial, "reason": type(error).__name__}
            self.note(actor, action, "failed", failure)
            raise SigningFailed(type(error).__name__) from error
        # SEQUENCE { tbsCertificate, ... }: behind a tag and a length of three octets
        signed = der[4 : 4 + len(unsigned.tbs_certificate_bytes)]
        if hashlib.sha256(signed).hexdigest() != reservation.tbs_digest:
            failure = {"serial": reservation.serial, "reason": "signed something else"}
            self.note(actor, action, "failed", failure)
            raise SigningFailed("what was signed is not what was recorded")
        return der

    def renew(
        self,
        record: Record,
        request: CertificateRequest,
        actor: Actor,
        *,
        lifetime: timedelta | None = None,
    ) -> Issued:
        """Issue anew what `record` holds, for the key of `request`, to the holder of `record`.

        The profile's present rules apply. Names in the request, if it has any, must be the same.
        Raises as `issue` does.
        """
        with self._noted(actor, "renew", {"serial": record.serial, "profile": record.profile}):
            offer = self.offers.get(record.profile)
            if offer is None or not offer.renew or offer.kind in INTERNAL:
                _forbid(f"certificates of the profile {record.profile} are not renewed")
            held = _names_of(record, offer.profile, self._der_of(record), request.public_key)
            bound = bind(offer.profile, request, held)
        return self.issue(record.profile, bound, actor, lifetime=lifetime, action="renew")

    def _der_of(self, record: Record) -> bytes:
        der = self.ledger.der(record.authority_id, record.serial)
        if der is None:
            raise Missing(record.serial)
        return der

    # ---- revoking ----------------------------------------------------------------------------

    def revoke(self, authority_id: str, serial: int, reason: str, actor: Actor) -> Status:
        """Revoke a certificate, or hold it (reason certificateHold); the caller has authorised.

        Doing the same again changes nothing. Raises Refused for a reason that is none, Missing, and
        NotPossible if it is revoked for another reason already.
        """
        if reason not in REASONS:
            raise Refused("/reason", f"{shown(reason)} is not one of {', '.join(REASONS)}")
        status = self._change(authority_id, serial, state_for(reason), reason, actor, "revoke")
        self.on_change(authority_id)
        return status

    def release(self, authority_id: str, serial: int, actor: Actor) -> Status:
        """Make a held certificate valid again. Raises Missing, and NotPossible if it is revoked."""
        status = self._change(authority_id, serial, ISSUED, None, actor, "release")
        self.on_change(authority_id)
        return status

    def _change(
        self,
        authority_id: str,
        serial: int,
        state: str,
        reason: str | None,
        actor: Actor,
        action: str,
    ) -> Status:
        text = serial_text(serial)
        detail = {"authority": authority_id, "serial": text, "reason": reason, "via": actor.via}
        at = None if state == ISSUED else timestamp(self.clock())
        entry = self._entry(actor, action, "done", detail)
        with self.ledger.database.write() as writer:
            old = self.ledger.locked_status(writer.connection, authority_id, text)
            if old.state == UNKNOWN or (old.state == PENDING and state != REVOKED):
                raise Missing(text)
            if old.state == state and (old.reason.value if old.reason else None) == reason:
                return old
            if (old.state, state) not in TRANSITIONS:
                raise NotPossible(_not_possible(old, state))
            if old.state == HELD and state != ISSUED and old.revoked_at is not None:
                at = timestamp(old.revoked_at)  # it has not been valid since it was held
            self.ledger.set_state(
                writer.connection, authority_id, text, state, at=at, reason=reason
            )
            self.ledger.append(writer.connection, [entry])
            return self.ledger.status_in(writer.connection, authority_id, text)

    def status(self, authority_id: str, serial: int) -> Status:
        """The state of a certificate now."""
        return self.ledger.status(authority_id, serial_text(serial))

    # ---- enrolment tokens --------------------------------------------------------------------

    def create_token(
        self, profile: str, wanted: Mapping[str, object], lifetime: timedelta, actor: Actor
    ) -> tuple[Token, str]:
        """Make a one-time token for a certificate with these names; return it and its secret.

        `wanted` has the fields `NAMES_FIELDS` (text, or lists of text). Whoever makes a token may
        have the certificate; the profile's rules for names are applied now and again when it is
        used. The secret is nowhere kept. Raises Refused and Forbidden.
        """
        asked = {"profile": profile, "common_name": str(wanted.get("common_name") or "")}
        with self._noted(actor, "token-create", asked):
            offer = self._offer(profile)
            # no key is known yet; the authority's own stands in for it and is never certified
            probe = names_from(wanted, self.authorities.active.public_keys[0])
            _authorise(offer, probe, actor)
            if not offer.tokens:
                _forbid(f"the profile {profile} is not given for tokens", "/profile")
            certificate_names(offer.profile, probe)
        bound = names_to(probe)
        secret = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        now = self.clock()
        with self.ledger.database.write() as writer:
            token = self.ledger.add_token(
                writer.connection,
                digest=token_digest(secret),
                request={"profile": profile, **bound},
                created_at=now,
                created_by=actor.label,
                expires_at=now + lifetime,
            )
            detail = {
                **asked,
                "token_id": token.id,
                "expires_at": token.expires_at,
                **{f"bound_{name}": bound[name] for name in NAMES_FIELDS[1:] if bound[name]},
            }
            self.ledger.append(
                writer.connection, [self._entry(actor, "token-create", "done", detail)]
            )
        return token, secret

    def find_token(self, secret: str) -> Token | None:
        """The token of this secret, used or expired ones too."""
        return self.ledger.token_by_digest(token_digest(secret))

    def enrol(
        self,
        token: Token,
        request: CertificateRequest,
        actor: Actor,
        *,
        lifetime: timedelta | None = None,
    ) -> tuple[Issued, bool]:
        """Issue what a token is for; return the certificate and whether it was made now.

        A token is used once. Whoever comes again with the same key gets the same certificate, for
        an answer can be lost on its way; another key is refused. Raises as `issue` does.
        """
        profile = str(token.request["profile"])
        with self._noted(actor, "enrol", {"token_id": token.id, "profile": profile}):
            offer = self.offers.get(profile)
            if offer is None or not offer.tokens or offer.kind in INTERNAL:
                _forbid(f"the profile {profile} is not given for tokens")
            if token.used_for is not None:
                again = self._enrolled(token, request)
                if again is not None:
                    return again, False
            held = names_from(token.request, request.public_key)
            bound = bind(offer.profile, request, held)

        def redeem(writer: Writer, serial: str) -> None:
            if not self.ledger.redeem(writer.connection, token.id, serial, self.clock()):
                raise Forbidden("the token is used, expired or withdrawn")

        return (
            self.issue(profile, bound, actor, lifetime=lifetime, within=redeem, action="enrol"),
            True,
        )

    def _enrolled(self, token: Token, request: CertificateRequest) -> Issued | None:
        record = self.ledger.by_serial(token.used_for or "")
        if record is None or record.state != ISSUED:
            return None
        if record.key_id != key_identifier(request.public_key).hex():
            return None
        return self.issued(record)

    def issued(self, record: Record) -> Issued:
        """A certificate of the ledger with its chain, which is empty if its authority is gone."""
        der = self._der_of(record)
        issuer = self.issuers.get(record.authority_id)
        chain = issuer.chain if issuer else ()
        return Issued(record.authority_id, int(record.serial, 16), der, chain, record)

    def delete_token(self, token: Token, actor: Actor) -> bool:
        """Withdraw a token; False if another was faster."""
        entry = self._entry(actor, "token-delete", "done", {"token_id": token.id})
        with self.ledger.database.write() as writer:
            if not self.ledger.delete_token(writer.connection, token.id):
                return False
            self.ledger.append(writer.connection, [entry])
        return True

    # ---- audit -------------------------------------------------------------------------------

    def note(self, actor: Actor, action: str, decision: str, detail: audit.Detail) -> None:
        """Write one entry into the audit trail, in a transaction of its own."""
        self.ledger.record([self._entry(actor, action, decision, detail)])

    @contextlib.contextmanager
    def _noted(self, actor: Actor, action: str, asked: audit.Detail) -> Iterator[None]:
        """Note in the trail what is refused or forbidden inside, and let it go on."""
        try:
            yield
        except (Refused, Forbidden) as error:
            self._note_refusal(actor, action, asked, error)
            raise

    def _note_refusal(
        self, actor: Actor, action: str, asked: audit.Detail, error: Refused | Forbidden
    ) -> None:
        if isinstance(error, Refused):
            why = {**asked, "field": error.field, "reason": error.reason}
            self.note(actor, action, "refused", why)
        else:
            self.note(actor, action, "forbidden", {**asked, "reason": error.reason})

    def _offer(self, profile: str) -> Offer:
        offer = self.offers.get(profile)
        if offer is None:
            raise Refused("/profile", f"there is no profile {shown(profile)}")
        return offer

    def _entry(self, actor: Actor, action: str, decision: str, detail: audit.Detail) -> audit.Entry:
        return entry(actor, action, decision, detail, self.clock())


def entry(
    actor: Actor, action: str, decision: str, detail: audit.Detail, now: datetime
) -> audit.Entry:
    """An entry of the audit trail for what this actor did."""
    return _entry_at(actor, action, decision, detail, timestamp(now))


def _entry_at(
    actor: Actor, action: str, decision: str, detail: audit.Detail, at: str
) -> audit.Entry:
    return audit.Entry(
        at,
        actor.label,
        actor.address[:64],
        actor.request_id[:64],
        action,
        decision,
        audit.detail(detail),
    )


def _forbid(reason: str, field: str | None = None) -> NoReturn:
    raise Forbidden(reason, field)


def token_digest(secret: str) -> str:
    """What is kept of a token's secret. It is random and long, so one SHA-256 is enough."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


# ---- who may have what -----------------------------------------------------------------------


def _authorise(offer: Offer, request: CertificateRequest, actor: Actor) -> None:
    """Raise Forbidden unless this actor may ask for this; what is not allowed is forbidden.

    Tokens and renewals are not for here: `Authority.enrol` and `renew` have asked already.
    """
    if actor.via == "command":
        return
    name = offer.profile.name
    if offer.kind in INTERNAL:
        raise Forbidden(f"nobody may ask for the profile {name} here", "/profile")
    if actor.via == "acme":
        if not offer.acme:
            raise Forbidden(f"the profile {name} is not given over ACME", "/profile")
        return
    if actor.via != "certificate":
        raise Forbidden(f"{actor.via} does not ask for the profile {name}", "/profile")
    if not offer.groups.isdisjoint(actor.groups):
        if offer.grants_any.isdisjoint(actor.groups):
            for place, group in enumerate(request.organizations):
                if group not in actor.groups and group not in offer.profile.fixed_groups:
                    raise Forbidden(
                        f"{shown(group)} is given only by those who may give any group",
                        f"/organizations/{place}",
                    )
        return
    if actor.profile in offer.own_name:
        _own_name_only(request, actor)
        return
    raise Forbidden(f"{actor.name} may not ask for the profile {name}", "/profile")


def _own_name_only(request: CertificateRequest, actor: Actor) -> None:
    if request.common_name not in (None, actor.name):
        raise Forbidden("is not the name of the one who asks", "/common_name")
    for place, name in enumerate(request.dns_names):
        if name != actor.name:
            raise Forbidden("is not the name of the one who asks", f"/dns_names/{place}")
    for field in ("organizations", "ip_addresses", "uris"):
        if getattr(request, field):
            raise Forbidden("may not be asked for, beside one's own name", f"/{field}")


# ---- names that a token or an older certificate binds ----------------------------------------


def names_from(wanted: Mapping[str, object], public_key: PublicKey) -> CertificateRequest:
    """Read names as a token binds them (text, or lists of text), for a key. Raises Refused."""
    common_name = wanted.get("common_name")
    if common_name is not None and not isinstance(common_name, str):
        raise Refused("/common_name", "is not text")
    lists: dict[str, list[str]] = {}
    for field in NAMES_FIELDS[1:]:
        values = wanted.get(field, [])
        if not isinstance(values, list):
            raise Refused(f"/{field}", "is not a list")
        for place, value in enumerate(values):
            if not isinstance(value, str):
                raise Refused(f"/{field}/{place}", "is not text")
        lists[field] = values
    return make_request(
        public_key,
        common_name=common_name,
        organizations=lists["organizations"],
        dns_names=lists["dns_names"],
        ip_addresses=lists["ip_addresses"],
        uris=lists["uris"],
    )


def names_to(request: CertificateRequest) -> dict[str, Any]:
    """The names of a request as a token binds them; the reverse of `names_from`."""
    return {
        "common_name": request.common_name,
        "organizations": list(request.organizations),
        "dns_names": list(request.dns_names),
        "ip_addresses": [str(address) for address in request.ip_addresses],
        "uris": list(request.uris),
    }


def bind(
    profile: Profile, request: CertificateRequest, bound: CertificateRequest
) -> CertificateRequest:
    """Return what is bound, for the key of `request`; Refused if that asks for other names.

    A request may name nothing, or all of it: a part could be what was changed on the way.
    """
    if request.is_ca:
        raise Refused("/csr", "asks for an authority")
    common_name = bound.common_name
    if request.common_name is not None:
        if common_name is None and profile.subject is Subject.NONE:
            common_name = request.common_name  # issuing compares it with the alternative names
        elif request.common_name != common_name:
            raise Refused("/common_name", "is not the name that this is bound to")
    groups = set(request.organizations)
    if groups and not (groups == set(bound.organizations) or groups <= set(profile.fixed_groups)):
        raise Refused("/organizations", "are not the groups that this is bound to")
    own = {common_name} if profile.subject is Subject.HOST else set()
    for field in ("dns_names", "ip_addresses", "uris"):
        given, wanted = set(getattr(request, field)) - own, set(getattr(bound, field)) - own
        if given != wanted and _names_anything(request, own):
            raise Refused(f"/{field}", "are not the names that this is bound to")
    return CertificateRequest(
        request.public_key,
        common_name,
        bound.organizations,
        bound.dns_names,
        bound.ip_addresses,
        bound.uris,
    )


def _names_anything(request: CertificateRequest, own: set[str | None]) -> bool:
    return bool(set(request.dns_names) - own or request.ip_addresses or request.uris)


def _names_of(
    record: Record, profile: Profile, der: bytes, public_key: PublicKey
) -> CertificateRequest:
    """The names that were asked for when the certificate was made."""
    subject = x509.load_der_x509_certificate(der).subject
    groups = [str(each.value) for each in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    return make_request(
        public_key,
        common_name=record.common_name or None,
        organizations=[] if profile.fixed_groups else groups,
        dns_names=[] if profile.subject is Subject.HOST else record.values("dns"),
        ip_addresses=record.values("ip"),
        uris=record.values("uri"),
    )


# ---- what the ledger records -----------------------------------------------------------------


def _reservation(
    profile: Profile,
    decision: Decision,
    issuer_id: str,
    unsigned: Unsigned,
    actor: Actor,
    now: datetime,
) -> Reservation:
    names = decision.names
    not_before, not_after = _dates(decision.validity)
    return Reservation(
        authority_id=issuer_id,
        serial=serial_text(unsigned.serial_number),
        profile=profile.name,
        subject=names.subject_text,
        common_name=names.common_name or "",
        names=(
            *[("dns", name) for name in names.dns_names],
            *[("ip", str(address)) for address in names.ip_addresses],
            *[("uri", uri) for uri in names.uris],
        ),
        key_id=unsigned.key_id.hex(),
        tbs_digest=hashlib.sha256(unsigned.tbs_certificate_bytes).hexdigest(),
        not_before=not_before,
        not_after=not_after,
        created_at=timestamp(now),
        requested_by=actor.label,
    )


@lru_cache(64)  # what is issued in one second by one profile has the same
def _dates(validity: Validity) -> tuple[str, str]:
    return timestamp(validity.not_before), timestamp(validity.not_after)


def _not_possible(old: Status, state: str) -> str:
    if old.state == REVOKED:
        why = old.reason.value if old.reason else "unspecified"
        return f"it is revoked ({why}), and that is for good"
    return f"it is {old.state} and cannot become {state}"
