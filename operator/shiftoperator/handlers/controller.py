"""One worker per object, with its own two clocks; works only while this process leads.

kopf's timers and daemons would need a finalizer and annotations on every object, so the clock is ours.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from shiftoperator.errors import ConflictError, TransientError, UserError
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key
from shiftoperator.plan import Found
from shiftoperator.settings import MOST_POLLS_PER_SECOND, MOST_RESYNCS_PER_SECOND

log = logging.getLogger(__name__)

Object = dict[str, Any]

LONGEST_BACKOFF_SECONDS = 30.0
# More would only wait for each other at the API server, past their deadlines, and the Lease with them.
MOST_PASSES_AT_ONCE = 16
# Of those, what no event asked for, looks at everything and second tries: what happens shall find a place free. Each
# has its own count, so that objects that fail keep none that is well from being looked at.
MOST_RESYNCS_AT_ONCE = 4
MOST_RETRIES_AT_ONCE = 4
_RETRY_LATER_SECONDS = 1.0
# A lane of their own, which such passes do not fill: each is a write, half a second of the pods' at most, and an Event.
MOST_PUSHES_AT_ONCE = 16


class Reconciles(Protocol):
    async def push(self, key: Key, hint: Object) -> None: ...

    async def reconcile(self, key: Key, full: bool, whole: bool) -> Found: ...

    async def forget_all(self) -> None: ...


@dataclass
class _Due:
    """When an object is looked at unasked: at everything, and, while it is not settled, at what changes by itself."""

    whole: float = 0.0
    look: float = math.inf


class Controller:
    """Knows every object; runs a worker for each while leading."""

    def __init__(
        self,
        reconciler: Reconciles,
        metrics: Metrics,
        resync_seconds: float,
        poll_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reconciler, self._metrics, self._clock = reconciler, metrics, clock
        self._resync_seconds, self._poll_seconds = resync_seconds, poll_seconds
        self._known: set[Key] = set()
        # Of these, as the last pass over each left it.
        self._unsettled: set[Key] = set()
        self._workers: dict[Key, Worker] = {}
        self._leading = False
        self._slots = asyncio.Semaphore(MOST_PASSES_AT_ONCE)
        # Nobody waits for these: what finds them locked comes again later.
        self._resyncs = asyncio.Semaphore(MOST_RESYNCS_AT_ONCE)
        self._retries = asyncio.Semaphore(MOST_RETRIES_AT_ONCE)
        self._lane = asyncio.Semaphore(MOST_PUSHES_AT_ONCE)

    def wake(self, key: Key, hint: Object | None = None) -> None:
        """Something happened to the object or its pods; events while a worker is busy are merged."""
        self._known.add(key)
        if self._leading:
            self._worker(key).wake(hint)

    def wake_known(self, key: Key) -> None:
        """For events of pods, which may outlive their object."""
        if key in self._known:
            self.wake(key)

    def notice(self, key: Key) -> None:
        """The object exists; nothing is known to have happened to it."""
        if key not in self._known:
            self.wake(key)

    async def start(self) -> None:
        self._leading = True
        self._metrics.leader.set(1)
        for key in self._known:
            self._worker(key).wake(None)

    async def stop(self) -> None:
        """Returns when nothing of ours writes any more."""
        self._leading = False
        self._metrics.leader.set(0)
        workers, self._workers = self._workers, {}
        self._unsettled.clear()
        for worker in workers.values():
            worker.task.cancel()
        await asyncio.gather(*(worker.task for worker in workers.values()), return_exceptions=True)
        # Whoever leads next changes what we remember; back in the lead we look anew.
        await self._reconciler.forget_all()

    def _worker(self, key: Key) -> Worker:
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = Worker(self, key)
        return worker

    async def work(self, worker: Worker) -> None:
        """The life of one worker: until its object is gone, or somebody else leads."""
        failures, due, pause = 0, _Due(), 0.0
        # Not only until it is cancelled: a read that fails in the same turn makes a failure of that.
        while self._workers.get(worker.key) is worker:
            hint, woken = await worker.next(pause)
            retries = failures > 0 and not woken
            if retries and self._retries.locked():
                pause = _spread(_RETRY_LATER_SECONDS)
                continue
            # One that finds no room among the others comes with the next poll.
            looks = self._clock() >= min(due.whole, due.look) and not self._resyncs.locked()
            whole = (looks and self._clock() >= due.whole) or failures > 0
            full = woken or looks or whole
            try:
                async with self._retries if retries else self._resyncs if looks else nullcontext():
                    found = await self._pass(worker, hint, full, whole)
            except TransientError as error:
                # An event is worth a try at once, and no reason to wait longer after it: in an outage many come.
                failures = max(1, failures) if woken else failures + 1
                pause = self._backoff(worker.key, error, failures)
                continue
            if found is Found.GONE and worker.woken:
                # Something came after the object was looked for: another of its name, maybe.
                failures, pause = 0, 0.0
                continue
            if found is Found.GONE:
                self._workers.pop(worker.key, None)
                self._known.discard(worker.key)
                self._unsettled.discard(worker.key)
                log.info("gone key=%s", worker.key)
                return
            self._plan_looks(worker.key, due, found, full, whole)
            failures, pause = 0, _spread(max(self._poll_seconds, len(self._known) / MOST_POLLS_PER_SECOND))

    def _plan_looks(self, key: Key, due: _Due, found: Found, full: bool, whole: bool) -> None:
        """After a pass."""
        (self._unsettled.add if found is Found.UNSETTLED else self._unsettled.discard)(key)
        at_all = max(self._resync_seconds, len(self._known) / MOST_RESYNCS_PER_SECOND)
        at_these = max(self._resync_seconds, len(self._unsettled) / MOST_RESYNCS_PER_SECOND)
        if whole or not due.whole:  # the first pass over an object reads everything
            due.whole = self._clock() + _spread(at_all)
        if found is not Found.UNSETTLED or at_these >= at_all:
            due.look = math.inf
        elif full or due.look == math.inf:
            due.look = self._clock() + _spread(at_these)

    async def _pass(self, worker: Worker, hint: Object | None, full: bool, whole: bool) -> Found:
        if not full:
            return await self._reconcile_once(worker.key, full, whole)
        async with self._turn(worker, hint):
            return await self._reconcile_once(worker.key, full, whole)

    @asynccontextmanager
    async def _turn(self, worker: Worker, hint: Object | None) -> AsyncIterator[None]:
        """A place among the full passes. A policy that an event shows is pushed before, and so is one that comes while
        this object waits for its place; what comes once it has one wakes the next pass."""
        place = asyncio.create_task(self._slots.acquire(), name=f"place of {worker.key}")
        try:
            while hint is not None or not place.done():
                if hint is not None:
                    await self._push(worker.key, hint)
                if place.done():
                    break
                hint = await worker.hint_before(place)
            yield
        finally:
            # Of a place that was not given yet, the semaphore takes the wish back.
            if not place.cancel() and not place.cancelled():
                self._slots.release()

    async def _push(self, key: Key, hint: Object) -> None:
        """As far as it goes: the full pass that follows does the same."""
        try:
            async with self._lane:
                await self._reconciler.push(key, hint)
        except (TransientError, UserError) as error:
            log.warning("policy not pushed at once key=%s: %s", key, error)
        except Exception:
            log.exception("push failed key=%s", key)

    async def _reconcile_once(self, key: Key, full: bool, whole: bool) -> Found:
        started, outcome = self._clock(), "error"
        try:
            found = await self._reconciler.reconcile(key, full, whole)
            outcome = "ok"
            return found
        except TransientError:
            outcome = "retried"
            raise
        except UserError as refused:
            # Not even the status could be read or written, in which a refusal is told otherwise.
            raise TransientError(f"refused reason={refused.reason}: {refused}", delay_seconds=5.0) from refused
        except Exception as error:
            # A bug on one object must not end the work on the others: it is logged whole and tried again, slower.
            log.exception("reconcile failed key=%s", key)
            raise TransientError(f"{type(error).__name__}: {error}", delay_seconds=5.0) from error
        finally:
            self._metrics.reconciles.labels(outcome).inc()
            self._metrics.reconcile_seconds.observe(self._clock() - started)

    def _backoff(self, key: Key, error: TransientError, failures: int) -> float:
        seconds = min(LONGEST_BACKOFF_SECONDS, error.delay_seconds * 2.0 ** min(failures - 1, 8))
        level = logging.DEBUG if isinstance(error, ConflictError) and failures < 3 else logging.WARNING
        log.log(level, "retrying key=%s in_seconds=%.1f: %s", key, seconds, error)
        return _spread(seconds)


def _spread(seconds: float) -> float:
    """So that what began together does not come together again and again."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - guards nothing


class Worker:
    """One object's task and what woke it."""

    def __init__(self, controller: Controller, key: Key) -> None:
        self.key = key
        self._event = asyncio.Event()
        self._hint: Object | None = None
        self.task = asyncio.create_task(controller.work(self), name=f"worker {key}")

    @property
    def woken(self) -> bool:
        return self._event.is_set()

    def wake(self, hint: Object | None) -> None:
        self._hint = hint if hint is not None else self._hint
        self._event.set()

    async def next(self, seconds: float) -> tuple[Object | None, bool]:
        """Waits for an event or so many seconds; returns the newest hint and whether there was an event."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        woken = self._event.is_set()
        return self._take(), woken

    async def hint_before(self, place: asyncio.Task[Any]) -> Object | None:
        """The next hint; None when `place` is there first, or for an event without one. What happened until the pass
        begins needs no other pass."""
        event = asyncio.create_task(self._event.wait(), name=f"event of {self.key}")
        try:
            await asyncio.wait({event, place}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            event.cancel()
        return self._take()

    def _take(self) -> Object | None:
        hint, self._hint = self._hint, None
        self._event.clear()
        return hint
