"""What hosts ask and report: /v1/hosts (docs/host-api.md).

A host is whom its certificate names (CN, group mooring:hosts) and asks for itself alone. It reads
its whole view once, then waits for what changes. Nothing here is kept for a host between two
requests: a slow one is one with an old token.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
import webob
from sqlalchemy import Connection, delete, insert, select, update

from services.core import log, readiness, schema
from services.core.config import load
from services.core.database import Conflict, Database, Unavailable, now, schema_state
from services.core.deploy import CHECK_ONLY, check_once, require_gatekeeper
from services.core.edge import Request, Response, Router, json_response
from services.core.errors import Failure
from services.hostnet import changes, views
from services.hostnet.hub import Hub

LOG = structlog.get_logger("mooring.hosts")

WAIT_LIMIT = 50
"""Seconds that a host may wait: less than NGINX's and the agent's own deadline."""

SPAN_LIMIT = 5000
"""Revisions that are looked through for one answer; who is further behind reads everything anew."""

BODY_LIMIT = 1024 * 1024
"""Bytes of a report: some 20,000 wired ports."""

FAILURES_KEPT = 100
"""Failures of one report that are kept; the first ones say enough."""

GZIP_FROM = 1024

_TOKEN = re.compile(r"([0-9a-f]{32})\.(\d{1,10})\.([0-9a-f]{16}|0)")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

_host = schema.host
_status = schema.host_status
_change = schema.change


class Hosts:
    """The WSGI application."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.hub = Hub(database)
        one = "/hosts/{name}"
        self.router = Router(
            [
                ("PUT", one, "host:register", self.register),
                ("GET", one + "/state", "host:view", self.state),
                ("GET", one + "/watch", "host:view", self.watch),
                ("PUT", one + "/report", "host:report", self.report),
            ]
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; raises Failure."""
        require_gatekeeper(environ)
        return self.router(environ, start_response)

    # ---- the view ------------------------------------------------------------------------------

    def state(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """Everything that the host needs to know, and a token to watch from."""
        name = self._self(request, match)
        with self.database.read() as connection:
            self._registered(connection, name)
            token = _token(connection)
            view = views.whole(connection, name)
        return _compressed(request, {"token": token, "objects": view.to_json()})

    def watch(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """What changed since a token; waits for it if nothing has. 410: read everything anew."""
        name = self._self(request, match)
        number, wait = self._asked(request)
        deadline = time.monotonic() + wait
        while True:
            with self.database.read() as connection:
                self._registered(connection, name)
                scopes = views.scopes(connection, name)
            with self.hub.waiting(scopes) as event:
                with self.database.read() as connection:
                    self._check(connection, request.GET["since"])
                    token = _token(connection)
                    told = views.since(connection, name, number)
                left = deadline - time.monotonic()
                if told or left <= 0:
                    return _compressed(
                        request, {"token": token, "changes": [each.to_json() for each in told]}
                    )
                event.wait(left)

    @staticmethod
    def _asked(request: Request) -> tuple[int, float]:
        if set(request.GET) - {"since", "wait"} or len(request.GET) > 2:
            raise Failure(400, "only since and wait are known here", field="query")
        match = _TOKEN.fullmatch(request.GET.get("since", ""))
        if match is None:
            raise Failure(400, "is no token that a state or watch has given", field="since")
        wait = request.GET.get("wait", "0")
        if not (wait.isascii() and wait.isdigit() and len(wait) <= 3 and int(wait) <= WAIT_LIMIT):
            raise Failure(400, f"is not a number of seconds from 0 to {WAIT_LIMIT}", field="wait")
        return int(match[2]), float(wait)

    @staticmethod
    def _check(connection: Connection, text: str) -> None:
        """Raise Failure 410 unless the token is one of this database that is still readable."""
        match = _TOKEN.fullmatch(text)
        assert match is not None  # noqa: S101 - _asked has refused anything else
        epoch, number = connection.execute(
            select(schema.revision.c.epoch, schema.revision.c.number)
        ).one()
        known = int(match[2])
        if epoch == match[1] and number - SPAN_LIMIT <= known <= number:
            if known == 0:
                return
            nonce = connection.execute(
                select(_change.c.nonce).where(_change.c.revision == known).limit(1)
            ).scalar()
            # a number that came back after a fail-over or a restore has another nonce
            if nonce == match[3]:
                return
        raise Failure(410, "the token is not known: read the state anew", code="read-anew")

    # ---- what hosts say ------------------------------------------------------------------------

    def register(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """Say where the host's tunnels end and where its interfaces lead; again changes nothing."""
        name = self._self(request, match)
        document = request.json_object(BODY_LIMIT)
        values = _registration(document)
        try:
            with self.database.write() as writer:
                old = writer.connection.execute(
                    select(_host).where(_host.c.name == name).with_for_update()
                ).first()
                if old is None:
                    writer.connection.execute(
                        insert(_host).values(
                            name=name,
                            agent_id=str(uuid.uuid4()),
                            admin_state_up=True,
                            availability_zone="nova",
                            description="",
                            created_at=now(),
                            **values,
                        )
                    )
                else:
                    writer.connection.execute(
                        update(_host).where(_host.c.name == name).values(**values)
                    )
                if old is None or old.tunnel_address != values["tunnel_address"]:
                    changes.host(writer, name)
                _seen(writer.connection, name, started=True)
        except Conflict:
            raise Failure(409, "another host has this address", field="tunnel_address") from None
        LOG.info("host registered", host=name, request_id=request.environ.get("mooring.request_id"))
        return json_response({"name": name, **_shown(values)}, 201 if old is None else 200)

    def report(self, request: Request, match: Mapping[str, str]) -> webob.Response:
        """Say how far the host is, what it could not do, and which ports are wired."""
        name = self._self(request, match)
        document = request.json_object(BODY_LIMIT)
        token, failures, ports = _report(document)
        with self.database.write() as writer:
            connection = writer.connection
            self._registered(connection, name)
            _seen(connection, name, token=token, failures=failures)
            _wired(connection, name, ports)
        return Response(status=204)

    # ---- who -----------------------------------------------------------------------------------

    @staticmethod
    def _self(request: Request, match: Mapping[str, str]) -> str:
        client = request.client
        if client is None:
            raise Failure(401, "a client certificate is required")
        if client.host is None:
            raise Failure(403, f"{client.user} is no host")
        if client.host != match["name"]:
            raise Failure(404, "there is nothing here")
        return client.host

    @staticmethod
    def _registered(connection: Connection, name: str) -> None:
        if connection.execute(select(_host.c.name).where(_host.c.name == name)).first() is None:
            raise Failure(404, "the host has not registered", code="not-registered")


def _token(connection: Connection) -> str:
    epoch, number = connection.execute(
        select(schema.revision.c.epoch, schema.revision.c.number)
    ).one()
    nonce = connection.execute(
        select(_change.c.nonce).where(_change.c.revision == number).limit(1)
    ).scalar()
    return f"{epoch}.{number}.{nonce or 0}"


def _registration(document: Mapping[str, Any]) -> dict[str, Any]:
    known = ("tunnel_address", "bridge_mappings", "configuration")
    for name in document:
        if name not in known:
            raise Failure(400, "is not known", field=f"/{name[:64]}")
    address = document.get("tunnel_address")
    if address is not None:
        try:
            address = str(ipaddress.ip_address(address if isinstance(address, str) else ""))
        except ValueError:
            raise Failure(400, "is no IP address", field="/tunnel_address") from None
    mappings = document.get("bridge_mappings", {})
    if not isinstance(mappings, dict) or not all(
        isinstance(value, str) and _NAME.fullmatch(key) and _NAME.fullmatch(value)
        for key, value in mappings.items()
    ):
        raise Failure(
            400, "is not an object of physical networks and interfaces", field="/bridge_mappings"
        )
    configuration = document.get("configuration", {})
    if not isinstance(configuration, dict) or len(json.dumps(configuration)) > 16384:
        raise Failure(400, "is not an object of at most 16 KiB", field="/configuration")
    return {
        "tunnel_address": address,
        "bridge_mappings": json.dumps(mappings),
        "configuration": json.dumps(configuration),
    }


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tunnel_address": values["tunnel_address"],
        "bridge_mappings": json.loads(values["bridge_mappings"]),
    }


def _report(document: Mapping[str, Any]) -> tuple[str, list[dict[str, str]], set[str]]:
    token = document.get("token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Failure(400, "is no token that a state or watch has given", field="/token")
    failures = document.get("failures", [])
    if not isinstance(failures, list):
        raise Failure(400, "is no list", field="/failures")
    kept = []
    for index, each in enumerate(failures[:FAILURES_KEPT]):
        if not isinstance(each, dict) or not all(
            isinstance(each.get(name), str) for name in ("kind", "id", "reason")
        ):
            raise Failure(400, "needs kind, id and reason", field=f"/failures/{index}")
        kept.append({name: each[name][:500] for name in ("kind", "id", "reason")})
    ports = document.get("ports", [])
    if not isinstance(ports, list) or not all(
        isinstance(each, str) and _UUID.fullmatch(each) for each in ports
    ):
        raise Failure(400, "is no list of ports' ids", field="/ports")
    return token, kept, set(ports)


def _seen(
    connection: Connection,
    name: str,
    *,
    started: bool = False,
    token: str | None = None,
    failures: list[dict[str, str]] | None = None,
) -> None:
    at = now()
    values: dict[str, Any] = {"seen_at": at}
    if started:
        values["started_at"] = at
    if token is not None:
        values.update(token=token, failures=json.dumps(failures))
    changed = connection.execute(update(_status).where(_status.c.host == name).values(**values))
    if changed.rowcount == 0:
        complete = {"host": name, "started_at": at, "token": "", "failures": "[]", **values}
        connection.execute(insert(_status).values(**complete))


def _wired(connection: Connection, name: str, ports: set[str]) -> None:
    status, port = schema.port_status, schema.port
    old = set(connection.execute(select(status.c.port_id).where(status.c.host == name)).scalars())
    gone, come = sorted(old - ports), sorted(ports - old)
    for start in range(0, len(gone), 500):
        connection.execute(
            delete(status).where(
                status.c.host == name, status.c.port_id.in_(gone[start : start + 500])
            )
        )
    at = now()
    for start in range(0, len(come), 500):
        known = connection.execute(
            select(port.c.id).where(port.c.id.in_(come[start : start + 500]))
        ).scalars()
        rows = [{"port_id": each, "host": name, "at": at} for each in known.all()]
        if rows:
            connection.execute(insert(status), rows)


def _compressed(request: Request, value: Any) -> webob.Response:
    body = json.dumps(value, separators=(",", ":")).encode()
    headers = [("Content-Type", "application/json"), ("Vary", "Accept-Encoding")]
    accepted = request.environ.get("HTTP_ACCEPT_ENCODING", "")
    if len(body) >= GZIP_FROM and "gzip" in accepted:
        body = gzip.compress(body, 1)
        headers.append(("Content-Encoding", "gzip"))
    return Response(body=body, headerlist=headers)


def app_factory(global_conf: dict[str, str], *, config: str) -> WSGIApplication:
    """Build the application for paste; ``config`` is the path of mooring.conf."""
    check_once(global_conf)
    conf = load(config)
    log.configure(conf.log.level, conf.log.format)
    database = Database(conf.database.url)

    def check() -> str | None:
        try:
            return schema_state(database)
        except Unavailable as error:
            return f"the database is not available ({error})"

    if CHECK_ONLY not in global_conf:
        readiness.register("database of the hosts' API", check)
    return Hosts(database)
