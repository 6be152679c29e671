"""Lets only signed requests of instances through, and tells the application whose they are.

Unlike in Nova, `/` too needs a signature: there is no path that answers just anyone. A refused
signature always looks the same from outside, and neither it nor the expected one is ever logged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from services.core.errors import Failure
from services.core.headers import environ_key
from services.core.identity import ClientIdentity, InstanceClaim
from services.core.signature import (
    host_key,
    load_secrets,
    matches,
    message_v2,
    prepared,
    request_target,
)

INSTANCE, PROJECT = environ_key("X-Instance-ID"), environ_key("X-Tenant-ID")
_SIGNATURE_1 = environ_key("X-Instance-ID-Signature")
NETWORK, TIME = environ_key("X-Mooring-Network"), environ_key("X-Mooring-Time")
SIGNATURE_2 = environ_key("X-Mooring-Signature")
_NAMES = {
    INSTANCE: "X-Instance-ID",
    PROJECT: "X-Tenant-ID",
    _SIGNATURE_1: "X-Instance-ID-Signature",
    NETWORK: "X-Mooring-Network",
    TIME: "X-Mooring-Time",
    SIGNATURE_2: "X-Mooring-Signature",
}
# WSGI joins duplicates with a comma, which no identifier may hold.
_identifier = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,127}", re.ASCII).fullmatch
_hex_digest = re.compile(r"[0-9a-f]{64}", re.ASCII).fullmatch
SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII).fullmatch
# Hosts whose derived keys are remembered (three keys of 32 bytes): twice the largest cell.
_REMEMBERED_HOSTS = 4096
# Claims remembered, under 1 KB each: one for each instance on the hot path.
REMEMBERED_CLAIMS = 8192


@lru_cache(REMEMBERED_CLAIMS)
def claim_v2(
    instance: str, project: str, address: str | None, network: str, host: str | None
) -> InstanceClaim:
    """The claim of well-formed identifiers; raises Failure (which is not remembered) for others."""
    _check_identifiers((INSTANCE, instance), (PROJECT, project), (NETWORK, network))
    return InstanceClaim(instance, project, address, network, host, 2)


class InstanceSignature:
    """Sets `mooring.instance`; a missing or malformed header is 400, a wrong signature 403.

    `masters` and `nova_secrets` are the accepted secrets of versions 2 and 1; a version without a
    secret is off. A request that carries a version 2 signature is judged by that one alone.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        masters: tuple[bytes, ...],
        nova_secrets: tuple[bytes, ...],
        nova_without_host: bool,
        max_age: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app, self.clock = app, clock
        self.masters, self.nova_secrets = masters, tuple(map(prepared, nova_secrets))
        self.nova_without_host, self.max_age = nova_without_host, max_age
        self.host_keys = lru_cache(_REMEMBERED_HOSTS)(
            lambda host: tuple(prepared(host_key(master, host)) for master in masters)
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        version_2 = bool(self.masters) and (SIGNATURE_2 in environ or not self.nova_secrets)
        if version_2:
            claim = self.version_2(environ)
            environ.pop(_SIGNATURE_1, None)
        else:
            claim = self.version_1(environ)
            for key in _NAMES:
                environ.pop(key, None)
        environ["mooring.instance"] = claim
        return self.app(environ, start_response)

    def version_1(self, environ: WSGIEnvironment) -> InstanceClaim:
        """Nova's: order and texts of the refusals are those of its metadata handler."""
        instance = _required(environ, INSTANCE)
        signature = _required(environ, _SIGNATURE_1)
        project = _required(environ, PROJECT)
        _check_identifiers((INSTANCE, instance), (PROJECT, project))
        client: ClientIdentity | None = environ.get("mooring.client")
        host = client.host if client else None
        right = matches(self.nova_secrets, instance.encode("ascii"), signature)
        if not right or not _hex_digest(signature) or not (host or self.nova_without_host):
            raise _refused()
        address = environ.get("mooring.client_address")
        return InstanceClaim(instance, project, address, None, host, 1)

    def version_2(self, environ: WSGIEnvironment) -> InstanceClaim:
        """Ours: only with a host's certificate, under that host's key, and only for a while."""
        take = environ.pop
        try:
            instance = take(INSTANCE)
            signature = take(SIGNATURE_2)
            project = take(PROJECT)
            network = take(NETWORK)
            when = take(TIME)
        except KeyError as error:
            raise _missing(error.args[0]) from None
        client: ClientIdentity | None = environ.get("mooring.client")
        host = client.host if client else None
        address = environ.get("mooring.client_address")
        claim = claim_v2(instance, project, address, network, host)
        if not host or not address or not SECONDS(when):
            raise _refused()
        try:
            message = message_v2(
                host=host,
                time=when,
                network=network,
                instance=instance,
                project=project,
                address=address,
                method=environ["REQUEST_METHOD"],
                target=request_target(environ),
            )
        except ValueError:
            raise _refused() from None
        right = matches(self.host_keys(host), message, signature)
        if not right or abs(self.clock() - int(when)) > self.max_age:
            raise _refused()
        return claim


def _required(environ: WSGIEnvironment, key: str) -> str:
    value: str | None = environ.get(key)
    if value is None:
        raise _missing(key)
    return value


def _missing(key: str) -> Failure:
    return Failure(400, f"{_NAMES[key]} header is missing from request.")


def _check_identifiers(*headers: tuple[str, str]) -> None:
    for key, value in headers:
        if not _identifier(value):
            raise Failure(400, f"{_NAMES[key]} header is not valid.")


def _refused() -> Failure:
    return Failure(403, "Invalid proxy request signature.")


def filter_factory(
    _global_conf: dict[str, str],
    *,
    secrets: str = "",
    nova_secrets: str = "",
    nova_without_host: str = "false",
    max_age: str = "60",
) -> Callable[[WSGIApplication], InstanceSignature]:
    """Builds the filter; `secrets` and `nova_secrets` are directories, one of them is needed."""
    if not secrets and not nova_secrets:
        raise ValueError("instance_signature: secrets or nova_secrets is needed")
    if not max_age.isdecimal() or not 1 <= int(max_age) <= 3600:
        raise ValueError(f"instance_signature: max_age is 1 to 3600 seconds, not {max_age!r}")
    if nova_without_host not in ("true", "false"):
        raise ValueError(
            f"instance_signature: nova_without_host is true or false, not {nova_without_host!r}"
        )
    masters = load_secrets(secrets) if secrets else ()
    nova = load_secrets(nova_secrets) if nova_secrets else ()
    return lambda app: InstanceSignature(
        app,
        masters=masters,
        nova_secrets=nova,
        nova_without_host=nova_without_host == "true",
        max_age=int(max_age),
    )
