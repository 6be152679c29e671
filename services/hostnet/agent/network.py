"""Keeps this host's network as its view says: compile, read, plan, carry out, report.

Level-triggered: a pass may be broken off anywhere, and the next one does what is left. A change
compiles and plans what it concerns and nothing else; everything is read and compared when the agent
begins, from time to time, and when something is not as expected. While no controller answers, the
last view, which is kept on disk, is kept up.
"""

from __future__ import annotations

import queue
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import structlog

from services.core.config import ConfigError
from services.hostnet.agent import applier, kernel, names, plan
from services.hostnet.agent.compile import Compiler
from services.hostnet.agent.context import Attachment, HostFacts
from services.hostnet.agent.controller import Controller, ControllerError, ReadAnew
from services.hostnet.agent.desired import Key, Link, Object, Owner, Process, Sysctl
from services.hostnet.agent.kernel import Actual, KernelError
from services.hostnet.agent.netlink import LinkWatch
from services.hostnet.agent.plan import Plan
from services.hostnet.agent.state import State
from services.hostnet.view import KINDS, View, from_json

LOG = structlog.get_logger("mooring.network")

LOOK_SECONDS = 0.2
"""Time between two looks for attachments and events."""

FULL_SECONDS = 600.0
"""Time between two passes that read everything, a tenth earlier or later so that hosts spread."""

REPORT_SECONDS = 20.0
"""The longest time between two reports; the controllers take a host for dead after 75 s."""

RETRY_FIRST, RETRY_MOST = 1.0, 60.0
"""Seconds after a failure until it is tried again; twice as long each time, and at random."""

SHRINK_FROM = 10
"""A whole view with less than half of as many local ports, or more, is not believed at once."""


class Supervisor(Protocol):
    """Keeps daemons of one kind."""

    def apply(self, wanted: Mapping[str, Process]) -> Mapping[Owner, str]:
        """Make them run, and no others; returns whom it failed for."""
        ...  # pragma: no cover


Supervisors = Mapping[str, Supervisor]


class Reconciler:
    """What is wanted on this host, what is known to be there, and the difference carried out."""

    def __init__(self, facts: HostFacts, state: State, supervisors: Supervisors) -> None:
        self.facts = facts
        self.state = state
        self.compiler = Compiler(facts)
        self.token = ""
        self.refused = ""
        """Why a whole view was not believed; empty if the last one was."""
        self._failed: dict[Owner, str] = {}
        self._supervisors = supervisors
        self._actual: Actual | None = None
        self._before: dict[Key, Object] = {}

    @property
    def view(self) -> View:
        """The view as it was last taken up."""
        return self.compiler.context.view

    @property
    def failures(self) -> dict[Owner, str]:
        """Owners of whom something is not as it is to be, with the reason."""
        refused = {("host", ""): f"{self.refused}: mooring-agent accept"} if self.refused else {}
        return {**self._failed, **self.compiler.desired.failures, **refused}

    @property
    def wanted(self) -> dict[Key, Object]:
        """What is to be there."""
        return self.compiler.desired.objects

    # ---- what is to be -------------------------------------------------------------------------

    def replace(self, token: str, view: View) -> None:
        """Take up a whole view; `full` makes it so."""
        self.compiler.replace(view, self.state.attachments(), self.facts)
        self.token = token

    def follow(self, token: str, changes: Iterable[Mapping[str, Any]]) -> set[Key]:
        """Take up what changed; returns the keys of what is to be otherwise. Raises ValueError."""
        checked: list[tuple[str, str, Any]] = []
        for change in changes:
            kind, operation = str(change.get("kind")), change.get("op")
            if kind in KINDS:
                item = from_json(kind, change["object"]) if operation == "put" else None
                checked.append((kind, str(change.get("id")), item))
        keys = self.compiler.update(checked)
        self.token = token
        return keys

    def attach(self, attachments: Mapping[str, Attachment]) -> set[Key]:
        """Take up the attachments as they are now; returns the keys of what is to be otherwise."""
        return self.compiler.attach(attachments)

    # ---- making it so --------------------------------------------------------------------------

    def plan(self, *, reload: bool = False) -> Plan:
        """What a full pass would do; with ``reload`` it loads every filter anew."""
        items = self.wanted.values()
        self._actual = kernel.read(
            [(item.namespace, item.name) for item in items if isinstance(item, Sysctl)]
        )
        return plan.everything(self.wanted, self._actual, reload=reload)

    def full(self) -> int:
        """Read everything and make it so; returns the number of operations. Raises KernelError."""
        todo = self.plan(reload=True)
        assert self._actual is not None  # noqa: S101 - plan has read it
        self._carry_out(todo, set(self.wanted) | set(self._before))
        return len(todo.operations)

    def change(self, keys: set[Key]) -> int:
        """Make it so for these keys alone; returns the number of operations."""
        if self._actual is None:
            return self.full()
        # those of instances come and go by others' doing
        for key in keys:
            item = self.wanted.get(key)
            if isinstance(item, Link) and item.namespace:
                known = self._actual.namespaces
                (known.add if kernel.has_namespace(item.namespace) else known.discard)(
                    item.namespace
                )
        todo = plan.changes(keys, self._before, self.wanted, self._actual)
        self._carry_out(todo, keys)
        return len(todo.operations)

    def look_again(self, link_names: Iterable[str]) -> int:
        """Compare links of these names, which have come, changed or gone, with what is wanted."""
        keys: set[Key] = {("link", "", name) for name in link_names}
        keys &= self.wanted.keys()
        if not keys or self._actual is None:
            return 0
        there = kernel.links()
        for key in keys:
            name = str(key[2])
            self._actual.links[""].pop(name, None)
            if name in there:
                self._actual.links[""][name] = there[name]
        lost = {item.owner for key in keys if (item := self.wanted[key]) and key[2] not in there}
        return self.change(keys | self.compiler.owner_parts(lost) if lost else keys)

    def _carry_out(self, todo: Plan, keys: set[Key]) -> None:
        assert self._actual is not None  # noqa: S101 - whoever planned has read it
        failures = applier.carry_out(todo)
        applier.learn(self._actual, keys, self.wanted, failures)
        touched = {
            item.owner
            for key in keys
            for item in (self.wanted.get(key), self._before.get(key))
            if item is not None
        }
        kept = {owner: reason for owner, reason in self._failed.items() if owner not in touched}
        for key in keys:
            if key in self.wanted:
                self._before[key] = self.wanted[key]
            else:
                self._before.pop(key, None)
        self._failed = {**kept, **failures, **self._supervise()}

    def _supervise(self) -> dict[Owner, str]:
        wanted = self.compiler.desired.of("process")
        failures: dict[Owner, str] = {}
        for kind, supervisor in self._supervisors.items():
            of_kind = {item.name: item for item in wanted.values() if item.kind == kind}
            failures.update(supervisor.apply(of_kind))
        return failures

    # ---- what is -------------------------------------------------------------------------------

    def wired(self) -> list[str]:
        """Ids of local ports whose link is in its bridge and up, sorted."""
        if self._actual is None:
            return []
        links = self._actual.links.get("", {})
        found = []
        for port in self.view.ports.values():
            have = links.get(names.tap(port.id))
            if (
                have is not None
                and have.get("master") == names.bridge(port.network_id)
                and "UP" in have.get("flags", ())
                and ("port", port.id) not in self.failures
            ):
                found.append(port.id)
        return sorted(found)

    def report(self) -> dict[str, Any]:
        """What the controllers are told."""
        return {
            "token": self.token,
            "failures": [
                {"kind": kind, "id": object_id, "reason": reason[:500]}
                for (kind, object_id), reason in sorted(self.failures.items())
            ],
            "ports": self.wired(),
        }


class NetworkAgent:
    """The loop: controllers, attachments and the kernel's word in, passes and reports out."""

    def __init__(self, values: Any, facts: HostFacts, supervisors: Supervisors) -> None:
        """Raises ConfigError."""
        self._values = values
        self.state = State(values.state_dir)
        self.reconciler = Reconciler(facts, self.state, supervisors)
        try:
            self.controller = Controller(
                values.network_urls, values.host, values.ca_file, values.cert_file
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ca_file or cert_file: {error}") from None
        self._events: queue.Queue[Callable[[], None]] = queue.Queue(100)
        self._report: dict[str, Any] | None = None
        self._reported = threading.Condition()

    # ---- one pass ------------------------------------------------------------------------------

    def once(self) -> Plan:
        """Read the view from a controller, or the kept one, and say what a full pass would do."""
        try:
            self._register()
            self._take(*self.controller.state())
        except ControllerError as error:
            kept = self.state.load()
            if kept is None:
                raise
            LOG.warning("the kept view is used", reason=str(error))
            self.reconciler.replace(*kept)
        return self.reconciler.plan()

    def apply(self) -> int:
        """One full pass with what the controllers say now, and a report; number of operations."""
        self.once()
        done = self.reconciler.full()
        self.controller.report(self.reconciler.report())
        return done

    # ---- for ever ------------------------------------------------------------------------------

    def run(self, ended: threading.Event) -> None:
        """Keep the host as it is to be until ``ended``."""
        self.state.prepare()
        kept = self.state.load()
        if kept is not None:
            self.reconciler.replace(*kept)
        watch = LinkWatch()
        for work in (self._watch, self._send):
            threading.Thread(target=work, args=(ended,), name=work.__name__, daemon=True).start()
        attachments: object = None
        full_at, retry, failed = (0.0 if kept else float("inf")), RETRY_FIRST, False
        while not ended.is_set():
            begun = time.monotonic()
            try:
                self._events.get(timeout=LOOK_SECONDS)()
            except queue.Empty:
                pass
            except KernelError as error:
                LOG.warning("not applied", reason=str(error))
                full_at, failed = begun, True
            now = self.state.attachments_changed()
            try:
                if now != attachments:
                    attachments = now
                    keys = self.reconciler.attach(self.state.attachments())
                    if keys:
                        self._did(self.reconciler.change(keys), "attachments")
                told = watch.wait(0.001)
                if told is None:
                    full_at = 0.0
                elif told:
                    self._did(self.reconciler.look_again(told), "links")
                if begun >= full_at and self.reconciler.token:
                    self._did(self.reconciler.full(), "full")
                    watch.wait(0.001)
                    failed = bool(self.reconciler.failures)
                    pause = retry * random.uniform(0.5, 1) if failed else _about(FULL_SECONDS)  # noqa: S311 - spreads load
                    retry = min(2 * retry, RETRY_MOST) if failed else RETRY_FIRST
                    full_at = time.monotonic() + pause
                elif self.reconciler.failures and full_at > begun + RETRY_MOST:
                    full_at = time.monotonic() + retry
            except KernelError as error:
                LOG.warning("not applied", reason=str(error))
                full_at = time.monotonic() + retry
                retry = min(2 * retry, RETRY_MOST)
            self._tell()
        watch.close()

    def _did(self, operations: int, why: str) -> None:
        if operations:
            failures = {" ".join(k): v for k, v in self.reconciler.failures.items()}
            LOG.info("applied", operations=operations, why=why, failures=failures)

    def _tell(self) -> None:
        document = self.reconciler.report()
        with self._reported:
            if self.reconciler.token and document != self._report:
                self._report = document
                self._reported.notify()

    def _register(self) -> None:
        facts = self.reconciler.facts
        self.controller.register(
            {
                "tunnel_address": facts.tunnel_address,
                "bridge_mappings": dict(facts.bridge_mappings),
                "configuration": {"driver": "linuxbridge", "vxlan_mode": facts.vxlan_mode},
            }
        )

    # ---- threads -------------------------------------------------------------------------------

    def _watch(self, ended: threading.Event) -> None:
        """Follow the controllers: hand each answer to the loop."""
        pause, registered = RETRY_FIRST, False
        token = self.reconciler.token
        while not ended.is_set():
            try:
                if not registered:
                    self._register()
                    registered = True
                if not token:
                    token, view = self.controller.state()
                    self._events.put(lambda t=token, v=view: self._take_up(t, v))  # type: ignore[misc]
                following, changes = self.controller.watch(token)
                if changes or following != token:
                    self._events.put(lambda t=following, c=changes: self._follow(t, c))  # type: ignore[misc]
                token, pause = following, RETRY_FIRST
            except ReadAnew:
                token = ""
                ended.wait(random.uniform(0, pause))  # noqa: S311 - spreads load
            except ControllerError as error:
                LOG.warning("no controller", reason=str(error))
                if "status 404" in str(error):
                    registered = False
                ended.wait(random.uniform(0.5, 1) * pause)  # noqa: S311 - spreads load
                pause = min(2 * pause, RETRY_MOST)

    def _send(self, ended: threading.Event) -> None:
        """Send the newest report when it changed, and from time to time."""
        while not ended.is_set():
            with self._reported:
                self._reported.wait(REPORT_SECONDS)
                document = self._report
            if document is not None:
                try:
                    self.controller.report(document)
                except ControllerError as error:
                    LOG.warning("not reported", reason=str(error))
                    ended.wait(1.0)
                    with self._reported:
                        if self._report is document:
                            self._report = None

    # ---- what the watcher hands over -----------------------------------------------------------

    def _take(self, token: str, view: View) -> None:
        """Take up a whole view, unless it shrank as no operator's doing would look."""
        before, after = len(self.reconciler.view.ports), len(view.ports)
        accept = self.state.directory / "accept"
        if before >= SHRINK_FROM and after < before / 2 and not accept.exists():
            self.reconciler.refused = (
                f"a view with {after} ports in place of {before} is not believed"
            )
            LOG.error("view refused", before=before, after=after)
            return
        accept.unlink(missing_ok=True)
        self.reconciler.refused = ""
        self.reconciler.replace(token, view)
        self.state.prepare()
        self.state.keep(token, view)

    def _take_up(self, token: str, view: View) -> None:
        self._take(token, view)
        self._did(self.reconciler.full(), "view")

    def _follow(self, token: str, changes: list[dict[str, Any]]) -> None:
        if self.reconciler.refused:
            return  # what changes is told of a view that we do not have
        try:
            keys = self.reconciler.follow(token, changes)
        except (ValueError, KeyError) as error:
            LOG.error("a change does not fit", reason=str(error))
            return
        self.state.keep(token, self.reconciler.view)
        self._did(self.reconciler.change(keys), "change")


def _about(seconds: float) -> float:
    return seconds * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
