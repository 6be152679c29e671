"""Dynamic vendor data: what configured services answer about an instance, for vendor_data2.json.

Each target gets one POST of JSON with Nova's body and headers and answers with JSON, which
becomes the value of the target's name. All targets are asked at the same time and the whole has a
deadline; a target that is late, refuses, redirects or answers anything but JSON of a reasonable
size counts as ``{}``, or fails the request where failures are configured to be fatal.

Nova asks every target at every read of the file. Here the answers about an instance are kept for
``cache_seconds`` in each worker, as long as the instance does not change.

This is the only module below the application that talks to the network.
"""

import base64
import hashlib
import json
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
import urllib3

from services.metadata.model import Instance
from services.metadata.pages import JSON, Page

log = structlog.get_logger(__name__)

ANSWER_LIMIT = 256 * 1024
"""Bytes of one target's answer: four times the largest user data, and small beside a worker."""

CACHE_LIMIT = 16 * 1024 * 1024
"""Bytes of answers that a worker keeps; the least recently used go first."""

CACHE_SECONDS = 30.0
"""A boot of cloud-init reads the file once or twice within seconds, then not until the next."""

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 5.0
"""Nova's defaults, in seconds; both are cut to what is left of the deadline."""

DEADLINE = 8.0
"""Seconds for all targets together; cloud-init waits 10 for an answer."""

USER_AGENT = "openstack-nova-vendordata"
"""Nova's. Services that exist tell its requests by it."""


class VendorDataError(Exception):
    """A target failed and failures are fatal; ``target`` is its name, ``reason`` a text."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"dynamic vendor data target {target}: {reason}")
        self.target = target
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Target:
    """A service that is asked: the name its answer gets in vendor_data2.json, and its URL."""

    name: str
    url: str


def parse_targets(lines: Iterable[str]) -> tuple[Target, ...]:
    """Targets of lines ``name@url``, as Nova's vendordata_dynamic_targets has them.

    Raises ValueError that names the line: no name, a name twice, ``static`` (the name of the
    static part), or a URL that is not http or https. Nova skips such lines.
    """
    targets: dict[str, Target] = {}
    for line in lines:
        name, sign, url = line.strip().partition("@")
        if not sign or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(f"vendor data target {line!r} is not of the form name@url")
        if name == "static" or name in targets:
            raise ValueError(f"vendor data target {line!r} uses a name that is already taken")
        try:
            parsed = urllib3.util.parse_url(url)
        except urllib3.exceptions.LocationParseError:
            raise ValueError(f"vendor data target {line!r} has no valid URL") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"vendor data target {line!r} needs an http or https URL")
        targets[name] = Target(name, url)
    return tuple(targets.values())


class DynamicVendorData:
    """Asks the targets. One object serves a process; it may be made before a fork.

    With ``client_certificate`` (and ``client_key``) each https request is made under that
    certificate; ``ca_file`` replaces the system's list of authorities.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        read_timeout: float = READ_TIMEOUT,
        deadline: float = DEADLINE,
        fatal: bool = False,
        cache_seconds: float = CACHE_SECONDS,
        ca_file: str | None = None,
        client_certificate: str | None = None,
        client_key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.targets = tuple(targets)
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._deadline = deadline
        self._fatal = fatal
        self._cache_seconds = cache_seconds
        self._tls: dict[str, Any] = {
            key: value
            for key, value in (
                ("ca_certs", ca_file),
                ("cert_file", client_certificate),
                ("key_file", client_key),
            )
            if value is not None
        }
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._kept_bytes = 0

    def page(self, instance: Instance, static: Mapping[str, Any] | None) -> Page:
        """vendor_data2.json of an instance; raises VendorDataError if failures are fatal.

        ``static`` is what ``tree.vendor_data`` gives; the key is left out when it is None.
        The page is not to be kept by the caller: what may be kept is kept here.
        """
        members = self._members(instance)
        if static is not None:
            members = [json.dumps("static") + ": " + json.dumps(static), *members]
        return Page.of(("{" + ", ".join(members) + "}").encode("ascii"), JSON, keep=False)

    def _members(self, instance: Instance) -> list[str]:
        """``"name": value`` in JSON for each target."""
        question = _question(instance)
        members: list[str] = []
        asked: list[Target] = []
        found: dict[str, str] = {}
        now = self._clock()
        for target in self.targets:
            kept = self._recall(_cache_key(target, question), now)
            if kept is None:
                asked.append(target)
            else:
                found[target.name] = kept.decode("ascii")
        if asked:
            found.update(self._ask_all(asked, question, instance.id))
        for target in self.targets:
            members.append(f"{json.dumps(target.name)}: {found[target.name]}")
        return members

    def _ask_all(self, targets: Sequence[Target], question: bytes, who: str) -> dict[str, str]:
        end = time.monotonic() + self._deadline
        answers: queue.SimpleQueue[tuple[Target, str | _Failed]] = queue.SimpleQueue()

        def ask(target: Target) -> None:
            try:
                answers.put((target, self._ask(target, question, end)))
            except _Failed as failure:
                answers.put((target, failure))

        # Threads of this round alone: they survive forks, and one that hangs in the resolver
        # (which has no timeout) holds up neither the answer nor the end of the process.
        for target in targets:
            threading.Thread(target=ask, args=(target,), name="vendordata", daemon=True).start()
        results: dict[Target, str | _Failed] = {}
        while len(results) < len(targets):
            try:
                target, result = answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            results[target] = result
        found: dict[str, str] = {}
        for target in targets:
            result = results.get(target, _LATE)
            if isinstance(result, _Failed):
                log.warning(
                    "vendordata-target-failed",
                    target=target.name,
                    instance_id=who,
                    reason=str(result),
                )
                if self._fatal:
                    raise VendorDataError(target.name, str(result))
                result = "{}"
            else:
                self._keep(_cache_key(target, question), result.encode("ascii"))
            found[target.name] = result
        return found

    def _ask(self, target: Target, question: bytes, end: float) -> str:
        """One target's answer as compact ASCII JSON; raises _Failed with a reason."""
        try:
            with urllib3.PoolManager(num_pools=1, retries=False, **self._tls) as pool:
                # No redirect is followed: the body holds user data, and the operator named one
                # place that may have it.
                response = pool.request(
                    "POST",
                    target.url,
                    body=question,
                    headers=_headers(target.url),
                    redirect=False,
                    preload_content=False,
                    timeout=urllib3.Timeout(
                        connect=self._left(end, self._connect_timeout),
                        read=self._left(end, self._read_timeout),
                    ),
                )
                try:
                    if not 200 <= response.status < 300:
                        raise _Failed(f"answered {response.status}")
                    body = self._read(response, end)
                finally:
                    response.close()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # The text of these errors can hold the URL and with it a password.
            raise _Failed(type(error).__name__) from None
        if not body.strip():
            return "{}"
        try:
            return json.dumps(json.loads(body, parse_constant=_refuse_constant))
        except (ValueError, RecursionError):
            raise _Failed("did not answer with JSON") from None

    def _read(self, response: urllib3.BaseHTTPResponse, end: float) -> bytes:
        """The body, at most ANSWER_LIMIT bytes, with the deadline looked at after each piece."""
        body = bytearray()
        while piece := response.read1(16384, decode_content=False):
            body += piece
            if len(body) > ANSWER_LIMIT:
                raise _Failed(f"answered more than {ANSWER_LIMIT} bytes")
            if time.monotonic() > end:
                raise _Failed("did not end its answer within the deadline")
        return bytes(body)

    @staticmethod
    def _left(end: float, timeout: float) -> float:
        return max(0.001, min(timeout, end - time.monotonic()))

    def _recall(self, key: bytes, now: float) -> bytes | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            if kept[0] <= now:
                del self._kept[key]
                self._kept_bytes -= len(kept[1])
                return None
            self._kept.move_to_end(key)
            return kept[1]

    def _keep(self, key: bytes, answer: bytes) -> None:
        if self._cache_seconds <= 0:
            return
        with self._lock:
            former = self._kept.pop(key, None)
            if former is not None:
                self._kept_bytes -= len(former[1])
            self._kept[key] = (self._clock() + self._cache_seconds, answer)
            self._kept_bytes += len(answer)
            while self._kept_bytes > CACHE_LIMIT:
                _, (_, dropped) = self._kept.popitem(last=False)
                self._kept_bytes -= len(dropped)


class _Failed(Exception):
    """One target's failure, with a reason that may be logged: never its URL or what it said."""


_LATE = _Failed("did not answer within the deadline")


def _headers(url: str) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": USER_AGENT,
    }
    auth = urllib3.util.parse_url(url).auth
    if auth:
        # urllib3 drops the user and password of a URL; requests, which Nova uses, sends them.
        headers["Authorization"] = "Basic " + base64.b64encode(unquote_to_bytes(auth)).decode()
    return headers


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _cache_key(target: Target, question: bytes) -> bytes:
    # The question holds everything that a target is told, so a changed instance asks anew.
    return hashlib.sha256(target.name.encode() + b"\0" + question).digest()


def _question(instance: Instance) -> bytes:
    """The body that Nova posts, its keys and their meaning unchanged."""
    user_data = instance.user_data
    return json.dumps(
        {
            "project-id": instance.project_id,
            "instance-id": instance.id,
            "image-id": instance.image_id,
            "user-data": None if user_data is None else base64.b64encode(user_data).decode(),
            "hostname": instance.hostname,
            "metadata": dict(instance.properties),
            "boot-roles": "",
        }
    ).encode("ascii")
