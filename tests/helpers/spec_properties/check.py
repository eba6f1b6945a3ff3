"""Puts values into the spec of a resource that runs, looks at what comes of them, and takes them out again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from helpers.api_faults.state import differences
from helpers.control_plane.apiclient import ApiClient, Refused
from helpers.failures.processes import patience
from helpers.spec_properties.ends import end_state
from helpers.spec_properties.schema import Property, Schema
from helpers.spec_properties.values import MUST_BE_REFUSED, Value, values
from shiftoperator.status import reasons
from shiftprotos import contract

Object = dict[str, Any]

# On an idle machine.
SETTLE_SECONDS = 60.0
_KIND = {"apiVersion": f"{contract.API_GROUP}/{contract.API_VERSION}", "kind": contract.KIND}
_POLL_SECONDS = 0.3
_UNDER_WAY = {
    reasons.PODS_STARTING, reasons.ROLLING_OUT, reasons.WAITING_FOR_DRAIN, reasons.SCALING_OUT, reasons.PODS_STOPPING,
    reasons.SUSPENDING, reasons.SCHEDULING, reasons.CONTAINER_STARTING, reasons.NOT_REPORTED, reasons.APPLYING,
}  # fmt: skip
_SETTLED = (
    contract.CONDITION_READY, contract.CONDITION_PROGRESSING, contract.CONDITION_PAUSED,
    contract.CONDITION_SCHEDULED, contract.CONDITION_MODEL_LOADED, contract.CONDITION_POLICY_IN_SYNC,
)  # fmt: skip


@dataclass
class Tally:
    cases: int = 0
    accepted: Counter[str] = field(default_factory=Counter)  # by reason of Ready
    refused: int = 0  # by the API server
    never_accepted: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    settled_seconds: list[float] = field(default_factory=list)

    def problem(self, *lines: str) -> None:
        self.problems += lines
        for line in lines:
            print(line, flush=True)

    def __str__(self) -> str:
        took = sorted(self.settled_seconds) or [0.0]
        reasons_of_ready = ", ".join(f"{n} {reason}" for reason, n in self.accepted.most_common())
        return (
            f"{self.cases} cases: {self.refused} refused by the API server with a reason, "
            f"{self.accepted.total()} accepted ({reasons_of_ready}); "
            f"settled after {took[len(took) // 2]:.1f} s in the middle, {took[-1]:.1f} s at most"
        )


class NotSettledError(Exception):
    """A resource says nothing final."""


class Subject:
    """One resource with the base spec, and how it was before anything was put into it."""

    def __init__(self, api: ApiClient, namespace: str, name: str, base: Schema, tally: Tally) -> None:
        self._api, self._namespace, self.name, self.base, self._tally = api, namespace, name, base, tally
        self._path = f"/apis/{contract.API_GROUP}/{contract.API_VERSION}/namespaces/{namespace}/{contract.PLURAL}"
        self.before: Object = {}

    async def create(self, good: bool) -> None:
        """`good`: until there is a revision to go back to."""
        body = {**_KIND, "metadata": {"name": self.name}, "spec": self.base}
        await self._api.call("POST", self._path, body)
        await self.settle()
        deadline = time.monotonic() + SETTLE_SECONDS * patience()
        while good and not (await self.get()).get("status", {}).get("rollout", {}).get("goodRevision"):
            if time.monotonic() > deadline:
                raise NotSettledError(f"{self.name} has no good revision")
            await asyncio.sleep(0.5)
        self.before = await end_state(self._api, await self.get())

    async def delete(self) -> None:
        await self._api.call("DELETE", f"{self._path}/{self.name}")

    async def get(self) -> Object:
        return await self._api.call("GET", f"{self._path}/{self.name}")

    async def replace(self, spec: Schema) -> None:
        """Raises Refused."""
        while True:
            found = await self.get()
            try:
                await self._api.call("PUT", f"{self._path}/{self.name}?fieldValidation=Strict", {**found, "spec": spec})
                return
            except Refused as refused:
                if refused.status != 409:
                    raise

    async def settle(self) -> Object:
        """Raises NotSettledError."""
        started = time.monotonic()
        while True:
            found = await self.get()
            if _is_settled(found) and await self._deployed(found):
                self._tally.settled_seconds.append(time.monotonic() - started)
                return found
            if (waited := time.monotonic() - started) > SETTLE_SECONDS * patience():
                raise NotSettledError(f"after {waited:.0f} s it says {_said(found)}; {await self._children()}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _deployed(self, found: Object) -> bool:
        """Whether the Deployment has come to rest too; pods that cannot be made are waited for no more."""
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{self.name}"
        deployment = await self._api.call("GET", path)
        status, asked = deployment.get("status", {}), deployment["spec"]["replicas"]
        observed = status.get("observedGeneration") == deployment["metadata"]["generation"]
        if _ready(found)["status"] != "True" and asked:
            return observed
        counted = [status.get(key, 0) for key in ("replicas", "readyReplicas")]
        return observed and counted == [asked] * 2 and not status.get("terminatingReplicas")

    async def _children(self) -> str:
        deployments = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{self.name}"
        query = f"?labelSelector={contract.LABEL_DEPLOYMENT}%3D{self.name}"
        sets = await self._api.call("GET", f"/apis/apps/v1/namespaces/{self._namespace}/replicasets{query}")
        said = [(await self._api.call("GET", deployments)).get("status"), *(one.get("status") for one in sets["items"])]
        return f"Deployment and ReplicaSets say {said}"

    # --- one property ---

    async def check(self, prop: Property) -> None:
        """Every value after the other, then without it: as before."""
        accepted = False
        for value in values(prop, self.base):
            self._tally.cases += 1
            label = f"{prop} {value.kind} {value.shown}"
            try:
                accepted |= await self._try(prop, value, label)
            except (NotSettledError, Refused) as error:
                self._tally.problem(f"{label}: {error}")
                await self._go_back(f"{label}, gone back")
        if not accepted:
            self._tally.never_accepted.append(str(prop))
        await self._go_back(f"{prop} removed")

    async def _try(self, prop: Property, value: Value, label: str) -> bool:
        """Whether it was accepted, by the API server and by the operator."""
        generation = (await self.get())["metadata"]["generation"]
        try:
            await self.replace(value.spec)
        except Refused as refused:
            self._tally.refused += 1
            unchanged = (await self.get())["metadata"]["generation"] == generation
            if refused.status not in (400, 422) or not unchanged or not any(step in str(refused) for step in prop.path):
                self._tally.problem(f"{label}: refused without a reason that names it: {refused}")
            return False
        if value.kind in MUST_BE_REFUSED:
            self._tally.problem(f"{label}: was accepted")
        found = await self.settle()
        ready = _ready(found)
        self._tally.accepted[ready["reason"]] += 1
        self._tally.problem(*(f"{label}: {wrong}" for wrong in _inexact(found)))
        if ready["status"] != "True" and ready["reason"] != reasons.SUSPENDED:
            await self._go_back(f"{label}, healed")
        return ready["status"] == "True" or ready["reason"] == reasons.SUSPENDED

    async def _go_back(self, label: str) -> None:
        await self.replace(self.base)
        try:
            await self.settle()
        except NotSettledError as error:
            self._tally.problem(f"{label}: {error}")
            return
        # Counts of ready pods may lag behind for a moment.
        for pause in (0.0, 1.0, 3.0):
            await asyncio.sleep(pause)
            wrong = differences(self.before, await end_state(self._api, await self.get()))
            if not wrong:
                return
        self._tally.problem(*(f"{label}: {line}" for line in wrong[:4]))

    async def check_removal(self, prop: Property, without: Schema, twin: Subject) -> None:
        """Of a property that the base has: as if it had never been there, and back."""
        self._tally.cases += 1
        await twin.create(good=False)
        try:
            await self.replace(without)
            await self.settle()
            mine = await end_state(self._api, await self.get(), secrets=False)
            its = await end_state(self._api, await twin.get(), secrets=False)
            self._tally.problem(*(f"{prop} removed leaves: {line}" for line in differences(its, mine)[:4]))
            self._tally.accepted["removed"] += 1
        except (NotSettledError, Refused) as error:
            self._tally.problem(f"{prop} removed: {error}")
        await twin.delete()
        await self._go_back(f"{prop} put back")


def _ready(found: Object) -> Object:
    return _conditions(found).get(contract.CONDITION_READY, {"status": "", "reason": "", "message": ""})


def _conditions(found: Object) -> dict[str, Object]:
    return {c["type"]: c for c in found.get("status", {}).get("conditions", ())}


def _said(found: Object) -> str:
    said = {name: f"{c['status']} {c['reason']}" for name, c in _conditions(found).items()}
    observed = found.get("status", {}).get("observedGeneration")
    return f"generation {found['metadata']['generation']}, observed {observed}, {said}"


def _is_settled(found: Object) -> bool:
    said = _conditions(found)
    if found.get("status", {}).get("observedGeneration") != found["metadata"]["generation"] or not said:
        return False
    # Of what cannot start its later conditions stay as they are.
    counted = _SETTLED if said[contract.CONDITION_READY]["status"] == "True" else _SETTLED[:3]
    return not any(said[kind]["reason"] in _UNDER_WAY for kind in counted)


def _inexact(found: Object) -> Iterator[str]:
    """What is wrong with the words of a settled resource."""
    for kind, said in _conditions(found).items():
        if kind == contract.CONDITION_READY and said["reason"] not in reasons.OF_CONDITION[kind]:
            yield f"Ready has the reason {said['reason']}, which is not documented"
        if not said["message"]:
            yield f"{kind} has no message"
        if said["observedGeneration"] != found["metadata"]["generation"]:
            yield f"{kind} is about generation {said['observedGeneration']}"


async def check_all(
    api: ApiClient, namespace: str, base: Schema, chosen: Iterable[Property], at_once: int, good: bool
) -> Tally:
    """Each property on one of `at_once` resources."""
    tally, queue = Tally(), iter(list(chosen))

    async def work(number: int) -> None:
        subject = Subject(api, namespace, f"subject{number}", base, tally)
        await subject.create(good)
        for prop in queue:
            await subject.check(prop)
        await subject.delete()

    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(work(number))
    return tally
