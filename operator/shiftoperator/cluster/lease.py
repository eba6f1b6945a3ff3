"""Leadership by a Lease: one process acts, the others stand by with warm caches.

The clock of another machine is not trusted: a Lease counts as abandoned when *we* have seen it unchanged for its whole
duration. The leader stops acting well before others may think so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from shiftoperator.cluster.client import Cluster
from shiftoperator.errors import ConflictError, TransientError, UserError

log = logging.getLogger(__name__)

Object = dict[str, Any]

_SHORTEST_WAIT = 0.1
# For this part of the Lease's duration after a renewal we act; after all of it others may.
_ACTING_SHARE = 2 / 3


class Election:
    """Renews a Lease for ever; calls `gained` and `lost` as leadership comes and goes."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._namespace, self._name, self._identity = cluster, namespace, name, identity
        self._seconds, self._clock = seconds, clock
        self._seen: tuple[str, float] = ("", 0.0)  # resourceVersion, when it was first seen
        self._renewed = 0.0
        self.leading = False
        # Monotonic time of the last answer of the API server.
        self.last_contact = 0.0

    async def run(self, gained: Callable[[], Awaitable[None]], lost: Callable[[], Awaitable[None]]) -> None:
        try:
            while True:
                holds = await self._try()
                if holds and not self.leading:
                    self.leading = True
                    log.info("leading lease=%s/%s identity=%s", self._namespace, self._name, self._identity)
                    await gained()
                elif not holds and self.leading:
                    self.leading = False
                    log.warning("lost leadership, standing by lease=%s/%s", self._namespace, self._name)
                    await lost()
                await asyncio.sleep(min(self._seconds / 5, self._left()))
        finally:
            if self.leading:
                self.leading = False
                await lost()
                await self._release()

    async def _try(self) -> bool:
        """Whether we may act for the next period."""
        started = self._clock()
        try:
            async with asyncio.timeout(min(self._seconds / 3, self._left())):
                holds = await self._renew_or_take()
        except ConflictError:
            # Somebody was faster; the next round tells who.
            self.last_contact = self._clock()
            holds = False
        except (TransientError, TimeoutError, UserError) as error:
            log.warning("lease not renewed: %s", error)
            # Silence is no loss yet: nobody else may take the Lease before its duration is over.
            return self.leading and self._left() > _SHORTEST_WAIT
        else:
            self.last_contact = self._clock()
        if holds:
            self._renewed = started
        return holds

    def holds(self) -> bool:
        """Whether we may act at this moment. A process that was stopped for a while must ask before each write: what it
        was about to do comes before its own next look at the Lease."""
        return self.leading and self._clock() < self._renewed + self._seconds * _ACTING_SHARE

    def _left(self) -> float:
        """Seconds until we must stop acting; a leader cut off stops at two thirds of the Lease's duration."""
        if not self.leading:
            return self._seconds
        return max(_SHORTEST_WAIT, self._renewed + self._seconds * _ACTING_SHARE - self._clock())

    async def _renew_or_take(self) -> bool:
        lease = await self._cluster.get("Lease", self._namespace, self._name)
        if lease is None:
            self._note(await self._cluster.create(self._record(None)))
            return True
        self._note(lease)
        holder = lease["spec"].get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._abandoned(lease):
            return False
        if self.leading and holder != self._identity:
            # Somebody led while this process was stopped: what it knows is of before, and the next round begins anew.
            return False
        self._note(await self._cluster.replace(self._record(lease)))
        return True

    def _note(self, lease: Object) -> None:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, self._clock())

    def _abandoned(self, lease: Object) -> bool:
        duration = float(lease["spec"].get("leaseDurationSeconds") or self._seconds)
        return self._clock() - self._seen[1] >= duration

    def _record(self, lease: Object | None, holder: str | None = None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        holder = self._identity if holder is None else holder
        metadata: Object = {"name": self._name, "namespace": self._namespace}
        spec: Object = {"acquireTime": now, "leaseTransitions": 0}
        if lease is not None:
            metadata, spec = lease["metadata"], dict(lease["spec"])
            if spec.get("holderIdentity") != holder:
                spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        spec |= {"holderIdentity": holder, "leaseDurationSeconds": max(1, round(self._seconds)), "renewTime": now}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    async def _release(self) -> None:
        """Lets a successor start at once instead of after the Lease's duration."""
        try:
            lease = await self._cluster.get("Lease", self._namespace, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                await self._cluster.replace(self._record(lease, holder=""))
        except (TransientError, UserError) as error:
            log.warning("lease not released, a successor waits for its end: %s", error)
