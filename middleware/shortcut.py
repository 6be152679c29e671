"""The short way of an instance's request through the filters: one function for what is in order.

Seven filters one after the other take as long as all of gunicorn's work on a request: in a worker
that shares its processor, each function and each object of theirs has been displaced from the
caches since the request before. So where a pipeline holds our filters alone, in their order, the
gatekeeper's factory puts this in front of them (`short_way`). It looks at a request without
changing it, and asks for every condition that the filters ask for, by their own functions. If all
hold and the application has the answer ready, that is the answer. In every other case, whatever it
is, the filters get the request as if nothing had been: they alone refuse, and say why.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from middleware import client_certificate as certificates
from middleware import forwarded as addresses
from middleware import instance_signature as signatures
from middleware import request_id as ids
from middleware.client_certificate import ClientCertificate
from middleware.errors import Errors
from middleware.forwarded import Forwarded
from middleware.healthcheck import HealthCheck
from middleware.instance_signature import InstanceSignature
from middleware.request_id import RequestId
from services.core.identity import InstanceClaim
from services.core.signature import Prepared, matches, message_v2

if TYPE_CHECKING:
    from middleware.gatekeeper import Gatekeeper

# The parts of a message that change from request to request, while the others are prepared; the
# mark is no character of a target or a time.
_MARK = "\0"
# Between the nine fields of a message; one more, and a field would run into the next.
_NEWLINES = 8


class AtOnce(Protocol):
    """An application that can say at once what it has in memory for a request."""

    def answer_at_once(
        self, claim: InstanceClaim, environ: WSGIEnvironment
    ) -> tuple[tuple[tuple[str, str], ...], bytes] | None:
        """Headers and body of a 200; None or an exception: the application is called as usual."""


class _Host(NamedTuple):
    """A host's certificate: its dates, the host's name and the keys that it may sign with."""

    not_before: float
    not_after: float
    name: str
    keys: tuple[Prepared, ...]


class _Way(NamedTuple):
    """An instance behind a host: its claim, and the signed message around time and target."""

    claim: InstanceClaim
    before_time: str
    before_target: str


class ShortWay:
    """Answers a GET that is in order and whose answer is ready; the filters answer all others."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        forwarded: Forwarded,
        signature: InstanceSignature,
        app: AtOnce,
    ) -> None:
        self.filters: WSGIApplication = gatekeeper
        self._trusts = gatekeeper.trusts
        self._at_once = app.answer_at_once
        self._clock = signature.clock
        self._max_age = signature.max_age
        self._hops = forwarded.hops
        self._keys_of = signature.host_keys
        # As many as the filters remember, and the same strings.
        self._host = lru_cache(certificates.REMEMBERED)(self._make_host)
        self._way = lru_cache(signatures.REMEMBERED_CLAIMS)(self._make_way)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer = None
        try:
            if (
                environ["REQUEST_METHOD"] == "GET"
                and environ[certificates.VERIFY] == "SUCCESS"
                and ids.ACCEPTED(environ["HTTP_X_REQUEST_ID"])
                and self._trusts(environ)
            ):
                host = self._host(environ[certificates.CERTIFICATE])
                way = self._way(
                    environ[addresses.HEADER],
                    environ[signatures.INSTANCE],
                    environ[signatures.PROJECT],
                    environ[signatures.NETWORK],
                    host.name,
                )
                when, target, now = environ[signatures.TIME], environ["RAW_URI"], self._clock()
                message = f"{way.before_time}{when}{way.before_target}{target}"
                if (
                    host.not_before <= now <= host.not_after
                    and signatures.SECONDS(when)
                    and abs(now - int(when)) <= self._max_age
                    and target[0] == "/"
                    and message.count("\n") == _NEWLINES
                    and matches(host.keys, message.encode("ascii"), environ[signatures.SIGNATURE_2])
                ):
                    answer = self._at_once(way.claim, environ)
        except Exception:
            # A header is missing or malformed, or the application refuses or fails: the filters
            # come to the same end, and know what to say and what to log.
            answer = None
        if answer is None:
            return self.filters(environ, start_response)
        headers, body = answer
        start_response("200 OK", list(headers))
        return [body]

    def _make_host(self, header: str) -> _Host:
        verified = certificates.read_certificate(header)
        name = verified.identity.host if verified else None
        if verified is None or name is None:
            raise ValueError("no host's certificate")
        return _Host(verified.not_before, verified.not_after, name, self._keys_of(name))

    def _make_way(
        self, forwarded: str, instance: str, project: str, network: str, host: str
    ) -> _Way:
        address = addresses.client_address(forwarded, self._hops)
        claim = signatures.claim_v2(instance, project, address, network, host)
        message = message_v2(
            host=host,
            time=_MARK,
            network=network,
            instance=instance,
            project=project,
            address=address,
            method="GET",
            target=_MARK,
        ).decode("ascii")
        before_time, before_target, _ = message.split(_MARK)
        return _Way(claim, before_time, before_target)


def short_way(gatekeeper: Gatekeeper) -> WSGIApplication:
    """The gatekeeper with the short way in front; itself if anything else stands in its pipeline.

    Asked for are all seven filters in their order, version 2 of the signature, ids that NGINX adds
    to the answers itself, and an application of a class with `answer_at_once`. A stranger's filter
    between them thus sees every request, and so does one that somebody has derived from ours.
    """
    chain: list[Any] = []
    app: Any = gatekeeper.app
    for kind in (RequestId, Errors, HealthCheck, Forwarded, ClientCertificate, InstanceSignature):
        if type(app) is not kind:
            return gatekeeper
        chain.append(app)
        app = app.app
    request_id, _errors, _health, forwarded, certificate, signature = chain
    if (
        not request_id.proxy_answers
        or not signature.masters
        or certificate.clock is not signature.clock
        or not hasattr(type(app), "answer_at_once")
    ):
        return gatekeeper
    return ShortWay(gatekeeper, forwarded, signature, app)
