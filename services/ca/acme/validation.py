"""Validation in the background of a worker: no request waits for it, no killed worker loses it.

A client that says it is ready gets its challenge back in the state `processing` at once, which is
written down. A thread of this worker takes it for `LEASE` (also written down), makes up to
`ATTEMPTS` attempts (RFC 8555 section 8.2 wants the server to retry) and records the outcome. If
the worker is killed meanwhile, the lease ends, and whichever worker the client's next poll reaches
takes the challenge anew. Outcomes are recorded only by the holder of the lease.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import structlog

from services.ca.acme import states
from services.ca.acme.challenges import ATTEMPT_SECONDS
from services.ca.acme.problems import Problem
from services.ca.acme.rules import Identifier
from services.ca.acme.store import Authorization, Challenge, Job, Store
from services.core.database import Unavailable

LOG = structlog.get_logger("mooring.acme")

# Seconds before the second and the third attempt: a record that was just written may be a moment
# away, and longer would keep a client waiting whose mistake it is.
PAUSES: Final = (1.0, 2.0)
ATTEMPTS: Final = len(PAUSES) + 1

# Longer than all attempts and pauses together, so that a lease that ended has no holder.
LEASE: Final = timedelta(seconds=ATTEMPTS * ATTEMPT_SECONDS + sum(PAUSES) + 5)

# Of a worker. They wait for the network nearly all of their time.
THREADS: Final = 8
# Challenges that a worker holds or has waiting; others stay in the table until somebody polls.
WAITING: Final = 64

TIDY_SECONDS: Final = 300.0


class Checks(Protocol):
    """What validates: services.ca.acme.challenges.Validator."""

    def types(self, identifier: Identifier) -> tuple[str, ...]:
        """The challenges offered for a name."""

    def validate(self, kind: str, identifier: Identifier, token: str, thumbprint: str) -> None:
        """One attempt; raises Problem."""


class Validation:
    """The threads of this worker; made before a fork, they begin at first use after it."""

    def __init__(
        self,
        store: Store,
        checks: Checks,
        clock: Callable[[], datetime],
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        self._store = store
        self._checks = checks
        self._clock = clock
        self._pauses = pauses
        self._pid = 0
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._tidied = time.monotonic()

    def look(self, authorization: Authorization) -> None:
        """Take up what waits for validation in an authorization; returns at once."""
        for challenge in authorization.challenges:
            self.wake(challenge)

    def wake(self, challenge: Challenge) -> None:
        """Take up a challenge that nobody validates; returns at once."""
        if challenge.status != states.PROCESSING or (
            challenge.processing_until is not None and challenge.processing_until > self._clock()
        ):
            return
        self._submit(challenge.id, lambda: self._run(challenge.id))

    def tidy_if_due(self) -> None:
        """Take away what is over, every few minutes; returns at once."""
        if time.monotonic() - self._tidied < TIDY_SECONDS:
            return
        self._tidied = time.monotonic()
        self._submit("tidy", lambda: self._store.tidy(self._clock()))

    def close(self) -> None:
        """Wait for what is under way."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _submit(self, name: str, work: Callable[[], Any]) -> None:
        with self._lock:
            if self._pid != os.getpid():
                # threads do not survive a fork
                self._pool, self._pid = None, os.getpid()
                self._held.clear()
            if name in self._held or len(self._held) >= WAITING:
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="acme")
            self._held.add(name)
            pool = self._pool

        def run() -> None:
            try:
                work()
            except Unavailable:
                LOG.warning("acme work put off: the database is not available")
            except Exception as error:
                # nobody reads the future, and a thread's end must not end the worker; the text of
                # the exception may quote what a stranger sent
                LOG.error("acme work failed", error=type(error).__name__, exc_info=False)
            finally:
                with self._lock:
                    self._held.discard(name)

        try:
            pool.submit(run)
        except RuntimeError:  # the worker is ending
            with self._lock:
                self._held.discard(name)

    def _run(self, challenge_id: str) -> None:
        now = self._clock()
        job = self._store.claim(challenge_id, now=now, until=now + LEASE)
        if job is None:
            return
        error = self._attempts(job)
        document = None if error is None else error.document()
        kept = self._store.end_challenge(job, document, self._clock())
        LOG.info(
            "acme validation",
            kind=job.challenge.type,
            identifier=job.identifier.name,
            account=job.account_id,
            outcome="valid" if error is None else error.kind,
            kept=kept,
        )

    def _attempts(self, job: Job) -> Problem | None:
        account = self._store.account(job.account_id)
        if account is None:
            return Problem("unauthorized", "the account is gone")
        problem: Problem | None = None
        for pause in (0.0, *self._pauses):
            time.sleep(pause)
            try:
                self._checks.validate(
                    job.challenge.type, job.identifier, job.challenge.token, account.thumbprint
                )
            except Problem as error:
                problem = error
            except Exception as error:
                # a mistake of ours, met by what a stranger's server said: the challenge ends, for
                # it would meet it again and again, and the log says which it was
                LOG.error("acme validation broke", kind=job.challenge.type, error=repr(type(error)))
                return Problem("serverInternal", "the validation broke off")
            else:
                return None
        return problem
