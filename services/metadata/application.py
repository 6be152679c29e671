"""What an instance reaches at 169.254.169.254: raw WSGI over pages in memory.

The way of a warm request: who asks (``mooring.instance``, set by the instance signature, or in the
flat mode the address), one look into the cache, the session token if one is shown or demanded, one
dictionary look-up of the rendered page. No ORM, no router, no request object, no JSON.

Statuses follow AWS for session tokens and Nova for the rest, except where Nova is wrong
(docs/metadata.md lists each difference; ``nova_compatible`` takes them back):

- 401 a token is demanded and missing, or it is expired, forged or another instance's
- 403 the endpoint is switched off for the instance; a token is asked for through a proxy
- 404 nothing is here, or nobody: an unknown instance, another project's, another host's
- 405 with Allow for any other method
- 409 the password has been set already
- 503 with Retry-After while the database is away and the instance is not known
"""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog

from services.core import log, readiness
from services.core.config import load
from services.core.database import Database, Unavailable
from services.core.deploy import CHECK_ONLY, check_once, require_gatekeeper
from services.core.errors import Failure
from services.core.identity import InstanceClaim
from services.core.revision import RevisionWatch
from services.core.signature import load_secrets
from services.metadata.cache import Cache, Known
from services.metadata.pages import Page, Settings, Special
from services.metadata.store import Missing, Password, Store, Taken
from services.metadata.tokens import MAX_TTL, MIN_TTL, Tokens
from services.metadata.tree import is_canonical, vendor_data
from services.metadata.vendordata import DynamicVendorData, VendorDataError, parse_targets

LOG = structlog.get_logger("mooring.metadata")

PASSWORD_LIMIT = 1020
"""Bytes of a password: four pieces of 255, as Nova keeps it; an encrypted one has some 350."""

RETRY_AFTER = "5"
"""Seconds after which an instance may ask again; cloud-init from 24.4.1 on obeys it."""

TOKEN_HEADER = "HTTP_X_AWS_EC2_METADATA_TOKEN"  # noqa: S105 - the header's name
TTL_HEADER = "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS"
TOKEN_PATH = "/latest/api/token"  # noqa: S105 - a path

NOT_FOUND = "The resource could not be found."
BEHIND_NEUTRON = {401: 403, 405: 400}
"""A stock Neutron or OVN metadata agent (signature version 1) turns a status it does not know into
500; these are the nearest that it passes on."""


class Metadata:
    """The application for instances."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        tokens: Tokens,
        settings: Settings,
        *,
        by_address: bool = False,
        dynamic: DynamicVendorData | None = None,
    ) -> None:
        self._cache = cache
        self._store = store
        self._tokens = tokens
        self._settings = settings
        self._by_address = by_address
        self._nova = settings.nova_compatible
        self._dynamic = dynamic

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; raises Failure."""
        require_gatekeeper(environ)
        claim: InstanceClaim | None = environ.get("mooring.instance")
        try:
            known = self._who(environ, claim)
            method = environ["REQUEST_METHOD"]
            if method == "GET":
                return self._get(environ, start_response, known)
            return self._other(environ, start_response, known, method)
        except Unavailable as error:
            LOG.warning("unavailable", reason=str(error))
            raise Failure(
                503,
                "The metadata of this instance is not available just now.",
                headers=[("Retry-After", RETRY_AFTER)],
            ) from None
        except VendorDataError as error:
            LOG.warning("vendor data target failed", target=error.target, reason=error.reason)
            raise Failure(
                503,
                "Vendor data is not available just now.",
                headers=[("Retry-After", RETRY_AFTER)],
            ) from None
        except Failure as failure:
            if claim is not None and claim.version == 1 and failure.status in BEHIND_NEUTRON:
                raise Failure(BEHIND_NEUTRON[failure.status], failure.message) from None
            raise

    def answer_at_once(
        self, claim: InstanceClaim, environ: WSGIEnvironment
    ) -> tuple[tuple[tuple[str, str], ...], bytes] | None:
        """What is in memory for a GET (`middleware.shortcut`).

        None, or an exception, for whatever needs `__call__`, which looks again and says why.
        """
        known = self._cache.find(claim.instance_id)
        if known is None or known.project_id != claim.project_id or claim.host not in known.hosts:
            return None
        if TOKEN_HEADER in environ or not known.unguarded:
            self._admit(environ, known)
        page = known.pages.get(environ["PATH_INFO"])
        if page is None:
            return None
        return page.headers, page.body if page.seed_at is None else page.complete()

    def _who(self, environ: WSGIEnvironment, claim: InstanceClaim | None) -> Known:
        if self._by_address:
            known = self._cache.find_by_address(environ.get("mooring.client_address", ""))
            if known is None:
                raise Failure(404, NOT_FOUND)
            return known
        if claim is None:
            # A pipeline that leaves the signature out serves nobody.
            raise Failure(403, "Invalid proxy request signature.")
        known = self._cache.find(claim.instance_id)
        if known is None:
            raise Failure(404, NOT_FOUND)
        if known.project_id != claim.project_id:
            LOG.warning("refused", reason="another project's", instance=known.id, host=claim.host)
            raise Failure(404, NOT_FOUND)
        host = claim.host
        if host is not None and host not in known.hosts:
            # The same 404 as for an unknown instance: a stolen host certificate learns nothing.
            LOG.warning("refused", reason="another host's", instance=known.id, host=host)
            raise Failure(404, NOT_FOUND)
        return known

    def _get(
        self, environ: WSGIEnvironment, start_response: StartResponse, known: Known
    ) -> Iterable[bytes]:
        if TOKEN_HEADER in environ or not known.unguarded:
            self._admit(environ, known)
        path = environ.get("PATH_INFO", "")
        page = known.pages.get(path)
        if page is None:
            found = known.tree.page(path)
            if found is None:
                raise Failure(404, NOT_FOUND)
            if isinstance(found, Special):
                page = self._special(found, known)
            else:
                page = found
                if page.keep and is_canonical(path):
                    self._cache.keep(known, path, page)
        start_response("200 OK", list(page.headers))
        return [page.body if page.seed_at is None else page.complete()]

    def _other(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        known: Known,
        method: str,
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if method == "PUT" and (not self._nova or known.instance.options.http_tokens_required):
            return self._put(environ, start_response, known, path)
        self._admit(environ, known)
        found = known.tree.page(path)
        if found is None:
            raise Failure(404, NOT_FOUND)
        if found is Special.PASSWORD:
            if method == "POST":
                return self._post_password(environ, start_response, known)
            if self._nova:
                raise Failure(400, "GET and POST only are supported.")
        if method == "HEAD" or self._nova:
            body = self._get(environ, start_response, known)
            return [] if method == "HEAD" else body
        raise _not_served(found)

    def _admit(self, environ: WSGIEnvironment, known: Known) -> None:
        """Let in who may read: the endpoint is on, and the token is good if one is there."""
        options = known.instance.options
        if not options.http_endpoint:
            raise Failure(403, "Metadata is switched off for this instance.")
        token = environ.get(TOKEN_HEADER)
        if token is None:
            if options.http_tokens_required:
                raise Failure(401, "A session token is required.")
        elif self._tokens.remaining(token, known.id) is None:
            raise Failure(401, "The session token is not valid.")

    def _special(self, special: Special, known: Known) -> Page:
        if special is Special.PASSWORD:
            password = self._store.password(known.id)
            content_type = "text/html; charset=UTF-8" if self._nova else "text/plain; charset=UTF-8"
            return Page.of(b"" if password is None else password.data, content_type)
        if special is Special.VENDOR_DATA2 and self._dynamic is not None:
            static = vendor_data(known.instance, self._settings)
            return self._dynamic.page(known.instance, static)
        if self._nova:
            raise Failure(404, NOT_FOUND)
        raise Failure(405, "Ask for a token with PUT.", headers=[("Allow", "PUT")])

    def _put(
        self, environ: WSGIEnvironment, start_response: StartResponse, known: Known, path: str
    ) -> Iterable[bytes]:
        if path != TOKEN_PATH:
            if path.endswith("/api/token"):
                raise Failure(403, f"Ask for a token at {TOKEN_PATH}.")
            self._admit(environ, known)
            found = known.tree.page(path)
            raise Failure(404, NOT_FOUND) if found is None else _not_served(found)
        if not known.instance.options.http_endpoint:
            raise Failure(403, "Metadata is switched off for this instance.")
        if "HTTP_X_MOORING_FORWARDED" in environ:
            # Whoever relays for others adds X-Forwarded-For: an open proxy gets no token.
            raise Failure(403, "A token is not given through a proxy.")
        text = environ.get(TTL_HEADER, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 5):
            raise Failure(400, f"X-aws-ec2-metadata-token-ttl-seconds is {MIN_TTL} to {MAX_TTL}.")
        ttl = int(text)
        if not MIN_TTL <= ttl <= MAX_TTL:
            raise Failure(400, f"X-aws-ec2-metadata-token-ttl-seconds is {MIN_TTL} to {MAX_TTL}.")
        body = self._tokens.make(known.id, ttl).encode()
        start_response(
            "200 OK",
            [
                ("Content-Type", "text/plain; charset=UTF-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-aws-ec2-metadata-token-ttl-seconds", str(ttl)),
                ("X-Mooring-Hop-Limit", str(known.instance.options.http_put_response_hop_limit)),
            ],
        )
        return [body]

    def _post_password(
        self, environ: WSGIEnvironment, start_response: StartResponse, known: Known
    ) -> Iterable[bytes]:
        data = environ["wsgi.input"].read(PASSWORD_LIMIT + 1)
        if len(data) > PASSWORD_LIMIT:
            raise Failure(400, "Request is too large.")
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise Failure(400, "The password is not UTF-8.") from None
        # An empty body sets nothing, as in Nova: guests probe with it.
        if data:
            match self._store.set_password(known.id, data):
                case Taken():
                    raise Failure(409, "The password has been set already.")
                case Missing():
                    raise Failure(404, NOT_FOUND)
                case Password():
                    pass
        content_type = "text/html; charset=UTF-8" if self._nova else "text/plain; charset=UTF-8"
        start_response("200 OK", [("Content-Type", content_type), ("Content-Length", "0")])
        return [b""]


def _not_served(found: Page | Special) -> Failure:
    allow = {Special.PASSWORD: "GET, HEAD, POST", Special.TOKEN: "PUT"}
    methods = allow.get(found, "GET, HEAD") if isinstance(found, Special) else "GET, HEAD"
    return Failure(405, "This method is not served here.", headers=[("Allow", methods)])


def settings_of(conf: Any) -> Settings:
    """The documents' settings out of mooring.conf's [metadata]; raises ValueError."""
    metadata = conf.metadata
    vendor_data = None
    if metadata.vendor_data_file:
        path = Path(metadata.vendor_data_file)
        try:
            vendor_data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"[metadata] vendor_data_file {path}: {error}") from None
        if not isinstance(vendor_data, dict):
            raise ValueError(f"[metadata] vendor_data_file {path}: is no JSON object")
    return Settings(
        nova_compatible=metadata.nova_compatible,
        dhcp_domain=metadata.dhcp_domain,
        availability_zone=metadata.availability_zone,
        region=metadata.region,
        availability_zone_id=metadata.availability_zone_id or None,
        public_domain=metadata.public_domain or None,
        architecture=metadata.architecture or None,
        services_domain=metadata.services_domain,
        services_partition=metadata.services_partition,
        vendor_data=vendor_data,
        dynamic_vendor_data=bool(metadata.vendordata_dynamic_targets),
    )


def app_factory(
    global_conf: dict[str, str], *, config: str, identity: str = "signature"
) -> WSGIApplication:
    """Build the application; ``config`` is mooring.conf, ``identity`` signature or address.

    ``signature`` takes the instance from the instance_signature filter, ``address`` from the
    client's address alone: for one flat network whose addresses nobody can borrow.
    """
    check_once(global_conf)
    if identity not in ("signature", "address"):
        raise ValueError(f"metadata: identity is signature or address, not {identity!r}")
    conf = load(config)
    log.configure(conf.log.level, conf.log.format)
    try:
        tokens = Tokens(load_secrets(conf.metadata.token_secrets))
    except ValueError as error:
        raise ValueError(f"{config}: [metadata] token_secrets: {error}") from None
    settings = settings_of(conf)
    database = Database(conf.database.url)
    store = Store(database)
    cache = Cache(
        store,
        RevisionWatch(database),
        settings,
        limit=conf.metadata.cache_mib << 20,
        stale_limit=conf.metadata.stale_limit,
    )
    readiness.register(f"metadata by {identity}", cache.unavailable)
    if identity == "signature" and CHECK_ONLY not in global_conf:
        try:
            LOG.info("warm", instances=cache.warm())
        except Unavailable as error:
            LOG.warning("cold start", reason=str(error))
        threading.Thread(
            target=cache.follow, args=(threading.Event(),), name="read-ahead", daemon=True
        ).start()
    return Metadata(
        cache,
        store,
        tokens,
        settings,
        by_address=identity == "address",
        dynamic=dynamic_vendor_data_of(conf) if settings.dynamic_vendor_data else None,
    )


def dynamic_vendor_data_of(conf: Any) -> DynamicVendorData:
    """The dynamic vendor data targets out of mooring.conf; raises ValueError."""
    metadata = conf.metadata
    return DynamicVendorData(
        parse_targets(metadata.vendordata_dynamic_targets),
        deadline=metadata.vendordata_dynamic_timeout,
        cache_seconds=metadata.vendordata_dynamic_cache,
        fatal=metadata.vendordata_dynamic_failure_fatal,
    )
