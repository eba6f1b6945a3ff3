"""What users do while faults strike. Every step waits for what it brought about, by a way that no fault is on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from helpers.api_faults.quiet import Quiet
from helpers.control_plane.apiclient import ApiClient, Refused
from helpers.control_plane.kubelet import Behaviour, Kubelet
from helpers.control_plane.plane import example
from shiftprotos import contract

Object = dict[str, Any]

NAME = "life"
_POLL_SECONDS = 0.1


class NotReachedError(Exception):
    """A workload waited for something in vain."""


@dataclass(frozen=True)
class World:
    """One namespace, seen past the faults."""

    api: ApiClient
    kubelet: Kubelet
    namespace: str
    quiet: Quiet

    def path(self, name: str = NAME, subresource: str = "") -> str:
        prefix = f"/apis/{contract.API_GROUP}/{contract.API_VERSION}/namespaces/{self.namespace}/{contract.PLURAL}"
        return "/".join(part for part in (prefix, name, subresource) if part)

    def child(self, kind: str, name: str, prefix: str = "/api/v1") -> str:
        return f"{prefix}/namespaces/{self.namespace}/{kind}/{name}"

    async def create(self, name: str = NAME, **spec: Any) -> None:
        await self.api.call("POST", self.path(""), example(name, **spec))

    async def change(self, name: str = NAME, **spec: Any) -> None:
        await self.patch(self.path(name), {"spec": spec})

    async def patch(self, path: str, body: Object) -> None:
        await self.api.call("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str) -> None:
        await self.api.call("DELETE", path)

    async def get(self, path: str) -> Object | None:
        try:
            return await self.api.call("GET", path)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    async def items(self, kind: str, prefix: str = "/api/v1") -> list[Object]:
        found: list[Object] = (await self.api.call("GET", f"{prefix}/namespaces/{self.namespace}/{kind}"))["items"]
        return found

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        while not await holds():
            if why := self.quiet.over():
                raise NotReachedError(f"{what} ({why})")
            await asyncio.sleep(_POLL_SECONDS)

    async def settled(self, name: str = NAME, reason: str = "") -> None:
        """All pods asked for serve the present template and policy, and the status says so."""
        await self.until(f"{name} did not settle", lambda: self._settled(name, reason))

    async def refused(self, reason: str, name: str = NAME) -> None:
        async def holds() -> bool:
            found = await self.get(self.path(name)) or {}
            return _condition(found, "Ready") == ("False", reason) and _observed(found)

        await self.until(f"{name} is not Ready=False with {reason}", holds)

    async def empty(self) -> None:
        async def holds() -> bool:
            pods, deployments = await self.items("pods"), await self.items("deployments", "/apis/apps/v1")
            return not pods and not deployments

        await self.until("the children did not go", holds)

    async def _settled(self, name: str, reason: str) -> bool:
        found = await self.get(self.path(name)) or {}
        deployment = await self.get(self.child("deployments", name, "/apis/apps/v1"))
        if not _observed(found) or deployment is None:
            return False
        asked = 0 if found["spec"].get("suspend") else found["spec"]["replicas"]
        status, spec = deployment.get("status", {}), deployment["spec"]
        counted = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")]
        done = status.get("observedGeneration") == deployment["metadata"]["generation"]
        if not done or spec["replicas"] != asked or counted != [asked] * 3:
            return False
        ready, in_sync = _condition(found, "Ready"), _condition(found, "PolicyInSync")
        if reason:
            return ready[1] == reason
        return ready[0] == "True" and (in_sync[0] == "True" or asked == 0)


def _observed(found: Object) -> bool:
    return bool(found.get("status", {}).get("observedGeneration") == found.get("metadata", {}).get("generation", -1))


def _condition(found: Object, kind: str) -> tuple[str, str]:
    conditions = found.get("status", {}).get("conditions", [])
    return next(((c["status"], c["reason"]) for c in conditions if c["type"] == kind), ("", ""))


# --- the workloads ---


async def create(world: World) -> None:
    await world.create(replicas=2)
    await world.settled()


async def scale(world: World) -> None:
    await world.create()
    await world.settled()
    await world.change(replicas=3)
    await world.settled()
    await world.change(replicas=1)
    await world.settled()


async def policy(world: World) -> None:
    await world.create(replicas=2)
    await world.settled()
    await world.change(shift={"policy": "Latency"})
    await world.settled()
    await world.change(shift={"policy": "Throughput", "thresholdTokens": 32})
    await world.settled()


async def policies_in_haste(world: World) -> None:
    """How many of them become generations depends on the moment; the last must hold."""
    await world.create()
    await world.settled()
    for mode in ("Latency", "Throughput", "Latency", "Auto", "Throughput"):
        await world.change(shift={"policy": mode})
        await asyncio.sleep(0.35)
    await world.settled()


async def rollout(world: World) -> None:
    await world.create(replicas=2)
    await world.settled()
    await world.change(engine={"maxNumSeqs": 8})
    await world.settled()


async def delete_while_creating(world: World) -> None:
    await world.create(replicas=2)

    async def begun() -> bool:
        return await world.get(world.child("services", NAME)) is not None

    await world.until("no Service was made", begun)
    await world.delete(world.path())
    await world.empty()


async def deletion_held_up(world: World) -> None:
    """Somebody's finalizer keeps the object; what is deleted meanwhile must not come back."""
    await world.create()
    await world.settled()
    await world.patch(world.path(), {"metadata": {"finalizers": ["test.example/hold"]}})
    await world.delete(world.path())
    await world.delete(world.child("services", f"{NAME}-headless"))
    await asyncio.sleep(2.5)
    await world.patch(world.path(), {"metadata": {"finalizers": None}})
    await world.empty()


async def suspend(world: World) -> None:
    await world.create(replicas=2)
    await world.settled()
    await world.change(suspend=True)
    await world.settled(reason="Suspended")
    await world.change(suspend=False)
    await world.settled()


async def bad_spec_healed(world: World) -> None:
    good = example(NAME)["spec"]["podTemplate"]
    bad = json.loads(json.dumps(good))
    bad["spec"]["containers"][0]["volumeMounts"].append({"name": "no-such-volume", "mountPath": "/nowhere"})
    await world.create(podTemplate=bad)
    await world.refused("InvalidPodTemplate")
    await world.change(podTemplate=good)
    await world.settled()


async def broken_by_hand(world: World) -> None:
    await world.create()
    await world.settled()
    await world.delete(world.child("services", NAME))
    await world.delete(world.child("poddisruptionbudgets", NAME, "/apis/policy/v1"))
    await world.patch(world.child("services", f"{NAME}-headless"), {"spec": {"publishNotReadyAddresses": True}})
    await world.patch(world.child("networkpolicies", NAME, "/apis/networking.k8s.io/v1"), {"spec": {"ingress": [{}]}})

    async def repaired() -> bool:
        kinds = (("services", "/api/v1"), ("poddisruptionbudgets", "/apis/policy/v1"))
        return all([await world.get(world.child(kind, NAME, prefix)) for kind, prefix in kinds])

    await world.until("what was deleted did not come back", repaired)
    await world.settled()


async def recreate(world: World) -> None:
    await world.create()
    await world.settled()
    await world.delete(world.path())
    await world.create()
    await world.settled()


async def crash_healed(world: World) -> None:
    told = json.dumps({"reason": "ModelNotFound", "message": "no such file"})
    world.kubelet.behave(world.namespace, NAME, Behaviour(exit_code=1, message=told))
    await world.create()
    await world.refused("ModelNotFound")
    world.kubelet.behave(world.namespace, NAME, Behaviour())
    await world.settled()


async def scale_in_by_itself(world: World) -> None:
    """A pod is marked, drained and leaves; then the user takes over with another size."""
    windows = {"scaleOutSeconds": 1, "scaleInSeconds": 2, "drainSeconds": 5}
    await world.create(replicas=2, autoscaling={"mode": "Apply", "min": 1, "max": 3, "windows": windows})

    async def smaller() -> bool:
        return ((await world.get(world.path())) or {})["spec"]["replicas"] == 1

    await world.until("nothing was scaled in", smaller)
    await world.settled()
    await world.change(replicas=3, autoscaling={"mode": "Disabled"})
    await world.settled()


async def neighbours(world: World) -> None:
    """What happens to one is no matter of the other."""
    await world.create()
    await world.create("other")
    await world.settled()
    await world.settled("other")
    await world.change(engine={"maxNumSeqs": 8})
    await world.settled()
    await world.delete(world.path("other"))

    async def gone() -> bool:
        return await world.get(world.child("deployments", "other", "/apis/apps/v1")) is None

    await world.until("the children of the other did not go", gone)
    await world.settled()


@dataclass(frozen=True)
class Workload:
    run: Callable[[World], Awaitable[None]]
    # Whether two good runs give out the same number of generations, and make the same objects on the way.
    count_generations: bool = True
    exact_counts: bool = True


WORKLOADS = {
    "create": Workload(create),
    "scale": Workload(scale),
    "policy": Workload(policy),
    "policies-in-haste": Workload(policies_in_haste, count_generations=False),
    "rollout": Workload(rollout),
    # It is chance how much was made: nothing may be made twice.
    "delete-while-creating": Workload(delete_while_creating, exact_counts=False),
    "deletion-held-up": Workload(deletion_held_up),
    "suspend": Workload(suspend),
    "bad-spec-healed": Workload(bad_spec_healed),
    "broken-by-hand": Workload(broken_by_hand),
    "recreate": Workload(recreate),
    "crash-healed": Workload(crash_healed),
    "scale-in-by-itself": Workload(scale_in_by_itself),
    "neighbours": Workload(neighbours),
}
