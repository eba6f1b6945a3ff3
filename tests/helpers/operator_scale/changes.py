"""Changes that must reach a child, and when they did: seen by a watch, from before the call that asks for them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from helpers.control_plane.apiclient import ApiClient, Refused
from helpers.control_plane.waiting import collection

Object = dict[str, Any]

BUDGETS = "/apis/policy/v1/namespaces/{}/poddisruptionbudgets"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"
# One that is not seen by then is lost.
LOST_SECONDS = 60.0
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"
BASELINE = "baseline"


@dataclass(frozen=True)
class Kind:
    """A field of the spec, the field of a child that follows it, and how often it is chosen."""

    spec: Callable[[int], Object]
    children: str
    shown: str
    values: tuple[int, ...]
    weight: int


KINDS = {
    "budget": Kind(lambda v: {"disruption": {"maxUnavailable": v}}, BUDGETS, "maxUnavailable", (1, 2, 3), 4),
    # The Deployment has 60 s more, for a drain.
    "deadline": Kind(
        lambda v: {"rollout": {"progressDeadlineSeconds": v - 60}},
        DEPLOYMENTS,
        "progressDeadlineSeconds",
        (1860, 1861, 1862),
        4,
    ),
    "replicas": Kind(lambda v: {"replicas": v}, DEPLOYMENTS, "replicas", (1, 2), 1),
}


@dataclass
class Waiting:
    name: str
    kind: Kind
    value: int
    started: float
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Changes:
    """`replicas` are those of resources that have settled; each has one change under way at most."""

    def __init__(self, api: ApiClient, namespace: str, replicas: Mapping[str, int], seed: int) -> None:
        self._api, self._namespace, self._rng = api, namespace, random.Random(seed)
        self._free = set(replicas)
        self._values = {(name, "replicas"): count for name, count in replicas.items()}
        self._waiting: dict[tuple[str, str], Waiting] = {}
        self.seconds: dict[str, list[float]] = {name: [] for name in (*KINDS, BASELINE)}
        self.lost: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def watch(self) -> None:
        await asyncio.gather(*(self._watch(path) for path in (BUDGETS, DEPLOYMENTS)))

    async def _watch(self, path: str) -> None:
        def seen(_: str, child: Object) -> None:
            waiting = self._waiting.get((path, child["metadata"]["name"]))
            if waiting is not None and child["spec"].get(waiting.kind.shown) == waiting.value:
                waiting.done.set()

        def listed(children: list[Object]) -> None:
            for child in children:
                seen("", child)

        await self._api.watch(path.format(self._namespace), seen, listed)

    async def run(self, seconds: float, per_second: float) -> None:
        """The baseline once a second beside them."""
        started, count = time.monotonic(), 0
        while (now := time.monotonic() - started) < seconds:
            self._begin(self._change())
            if count % round(per_second) == 0:
                self._begin(self._apply_directly())
            count += 1
            await asyncio.sleep(max(0.0, count / per_second - now))
        await asyncio.gather(*self._tasks)

    async def some(self, number: int) -> float:
        """So many at once; returns the seconds until all are done."""
        started = time.monotonic()
        for _ in range(number):
            self._begin(self._change())
        await asyncio.gather(*self._tasks)
        return time.monotonic() - started

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self) -> None:
        label = self._rng.choices(list(KINDS), [kind.weight for kind in KINDS.values()])[0]
        kind, name = KINDS[label], self._rng.choice(sorted(self._free))
        self._free.discard(name)
        value = self._next(name, label)
        path = f"{collection(self._namespace)}/{name}"
        await self._measured(label, name, kind, value, path, {"spec": kind.spec(value)}, _MERGE)
        self._free.add(name)

    async def _apply_directly(self) -> None:
        """What an operator without any work of its own could do at best."""
        kind, value = KINDS["budget"], self._next(BASELINE, "budget")
        body = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": BASELINE, "namespace": self._namespace},
            "spec": {"maxUnavailable": value, "selector": {"matchLabels": {"none": "has-it"}}},
        }
        path = f"{BUDGETS.format(self._namespace)}/{BASELINE}?fieldManager=baseline&force=true"
        await self._measured(BASELINE, BASELINE, kind, value, path, body, _APPLY)

    def _next(self, name: str, label: str) -> int:
        values = KINDS[label].values
        found = self._values.get((name, label), values[0])
        value = self._values[name, label] = values[(values.index(found) + 1) % len(values)]
        return value

    async def _measured(
        self, label: str, name: str, kind: Kind, value: int, path: str, body: Object, content_type: str
    ) -> None:
        waiting = self._waiting[kind.children, name] = Waiting(name, kind, value, time.monotonic())
        try:
            async with asyncio.timeout(LOST_SECONDS):
                await self._api.call("PATCH", path, body, content_type)
                await waiting.done.wait()
            self.seconds[label].append(time.monotonic() - waiting.started)
        except (TimeoutError, Refused):
            self.lost[label] += 1
        finally:
            self._waiting.pop((kind.children, name), None)


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
