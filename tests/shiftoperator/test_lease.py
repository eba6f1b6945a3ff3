from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from shiftoperator.cluster import Cluster, Election
from shiftoperator.errors import ConflictError, TransientError

Object = dict[str, Any]
SECONDS = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Leases:
    """The Lease API with optimistic concurrency."""

    def __init__(self) -> None:
        self.stored: Object | None = None
        self.version = 0
        self.down = False

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        self._check()
        return copy.deepcopy(self.stored)

    async def create(self, lease: Object) -> Object:
        self._check()
        if self.stored is not None:
            raise ConflictError("exists")
        return self._store(lease)

    async def replace(self, lease: Object) -> Object:
        self._check()
        assert self.stored is not None
        if lease["metadata"]["resourceVersion"] != self.stored["metadata"]["resourceVersion"]:
            raise ConflictError("changed")
        return self._store(lease)

    def _check(self) -> None:
        if self.down:
            raise TransientError("no API server")

    def _store(self, lease: Object) -> Object:
        self.version += 1
        stored = copy.deepcopy(lease)
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.stored = stored
        return copy.deepcopy(stored)

    @property
    def holder(self) -> str:
        assert self.stored is not None
        return str(self.stored["spec"]["holderIdentity"])


def election(leases: Leases, identity: str, clock: Clock) -> Election:
    return Election(leases, "ns", "shift", identity, SECONDS, clock)  # type: ignore[arg-type]


async def attempt(candidate: Election) -> bool:
    candidate.leading = await candidate._try()
    return candidate.leading


async def test_one_leads_the_other_stands_by() -> None:
    leases, clock = Leases(), Clock()
    a, b = election(leases, "a", clock), election(leases, "b", clock)
    assert await attempt(a)
    assert not await attempt(b)
    clock.now = 9.0
    assert await attempt(a)
    clock.now = 18.0
    assert not await attempt(b), "it was renewed in the meantime"


async def test_a_silent_leader_is_replaced_and_notices() -> None:
    leases, clock = Leases(), Clock()
    a, b = election(leases, "a", clock), election(leases, "b", clock)
    await attempt(a)
    await attempt(b)
    clock.now = SECONDS - 0.1
    assert not await attempt(b)
    clock.now = SECONDS
    assert await attempt(b)
    assert leases.holder == "b"
    assert leases.stored is not None
    assert leases.stored["spec"]["leaseTransitions"] == 1
    assert not await attempt(a)


async def test_the_wall_clock_of_another_machine_does_not_matter() -> None:
    leases, clock = Leases(), Clock()
    await attempt(election(leases, "a", clock))
    assert leases.stored is not None
    leases.stored["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert not await attempt(election(leases, "b", clock))


async def test_without_an_api_server_the_leader_stops_before_others_may_start() -> None:
    leases, clock = Leases(), Clock()
    a = election(leases, "a", clock)
    await attempt(a)
    leases.down = True
    clock.now = SECONDS / 3
    assert await attempt(a)
    clock.now = SECONDS * 2 / 3
    assert not await attempt(a)
    leases.down = False
    assert await attempt(a), "back without a restart"


async def test_the_end_releases_the_lease() -> None:
    leases, calls = Leases(), []

    async def gained() -> None:
        calls.append("gained")

    async def lost() -> None:
        calls.append("lost")

    a = Election(leases, "ns", "shift", "a", SECONDS)  # type: ignore[arg-type]
    task = asyncio.create_task(a.run(gained, lost))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert calls == ["gained", "lost"]
    assert leases.holder == ""
    assert await attempt(election(leases, "b", Clock()))


@pytest.mark.parametrize("ends", ["releases", "dies"])
async def test_a_leader_that_slept_through_anothers_reign_begins_anew(ends: str) -> None:
    """It took the Lease back without having lost it, and went on with what it knew of before."""
    leases, clock = Leases(), Clock()
    a, b = election(leases, "a", clock), election(leases, "b", clock)
    await attempt(a)
    await attempt(b)
    clock.now += 2 * SECONDS
    assert await attempt(b), "a is silent"
    if ends == "releases":
        await b._release()
    else:
        clock.now += 2 * SECONDS
        await attempt(a)
        clock.now += 2 * SECONDS
    a.leading = True  # it has not looked since
    assert not await attempt(a), "first it must lose what it had"
    assert await attempt(a)


async def test_a_leader_that_was_stopped_for_too_long_may_not_write() -> None:
    """Woken up, it wrote what it had been about to write before it looked at the Lease again."""
    leases, clock = Leases(), Clock()
    a = election(leases, "a", clock)
    assert not a.holds(), "nobody leads yet"
    await attempt(a)
    clock.now = SECONDS * 2 / 3 - 0.1
    assert a.holds()
    clock.now = SECONDS * 2 / 3
    assert a.leading, "it has not looked yet"
    assert not a.holds()
    await attempt(a)
    assert a.holds(), "nobody took the Lease"
    fenced = Cluster(None, lambda: False)  # type: ignore[arg-type]
    body = {"kind": "Secret", "metadata": {"name": "n", "namespace": "ns", "uid": "u", "resourceVersion": "1"}}
    writes = (
        fenced.apply(body),
        fenced.create(body),
        fenced.replace(body),
        fenced.patch_status(body, {}),
        fenced.patch_scale(body, 1),
        fenced.annotate(body, {}),
        fenced.delete(body),
    )
    for write in writes:
        with pytest.raises(TransientError, match="does not lead"):
            await write
