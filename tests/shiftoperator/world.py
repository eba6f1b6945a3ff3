"""An API server and pods held in memory, and whole passes over them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shiftoperator.errors import FORBIDDEN, ConflictError, RuntimeCallError, TransientError, UserError
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key
from shiftoperator.plan import Found
from shiftoperator.reconcile import Reconciler
from shiftoperator.runtime_client import Accepted, Endpoint
from shiftoperator.settings import Settings
from shiftoperator.snapshot import Access, Load, RuntimeState
from shiftoperator.spec import Policy

from .conftest import Make

Object = dict[str, Any]
KEY = Key("team", "gemma")


def merged(before: Any, patch: Any) -> Any:
    """RFC 7386, as the API server merges."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


class FakeCluster:
    """Stores objects by (kind, name) and records every write in order."""

    def __init__(self, resource: Object) -> None:
        self.objects: dict[tuple[str, str], Object] = {(resource["kind"], resource["metadata"]["name"]): resource}
        self.writes: list[str] = []
        self.reads: list[str] = []
        # Hashes of the templates that were tried on the API server, which is no write.
        self.checks: list[str] = []
        # Names of Secrets and claims that are not there.
        self.missing: set[str] = set()
        # Keys of Secrets, as their metadata tells; of others it tells nothing.
        self.keys: dict[str, tuple[str, ...]] = {}
        self.events: list[str] = []
        self.statuses: list[Object] = []
        # What the API server says to a write, by the kind applied, "dry run", "status" or "scale".
        self.refusals: dict[str, Exception] = {}
        # Rights to read that the operator lacks, as (verb, kind).
        self.forbidden: set[tuple[str, str]] = set()
        # Writes, "status" or "scale", that arrive without an answer, once each.
        self.lost: set[str] = set()
        # What somebody else does just before the next write of the status, once.
        self.meanwhile: Callable[[Object], None] | None = None
        # What somebody else does just after an object of that kind was read, once.
        self.after_read: dict[str, Callable[[], None]] = {}

    @property
    def resource(self) -> Object:
        return self.objects["ShiftDeployment", "gemma"]

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        self._read("get", kind)
        found = copy.deepcopy(self.objects.get((kind, name)))
        if kind in self.after_read:
            self.after_read.pop(kind)()
        return found

    async def list(self, kind: str, namespace: str, label_selector: str = "") -> list[Object]:
        self._read("list", kind)
        return [copy.deepcopy(obj) for (k, _), obj in self.objects.items() if k == kind]

    async def metadata(self, kind: str, namespace: str, name: str) -> Object | None:
        if name in self.missing:
            return None
        fields = {"f:data": {".": {}, **{f"f:{key}": {} for key in self.keys.get(name, ())}}}
        return {
            "name": name,
            "managedFields": [{"manager": "kubectl", "fieldsV1": fields}] if name in self.keys else [],
        }

    async def apply(self, obj: Object, dry_run: bool = False) -> Object:
        self._refuse("dry run" if dry_run else obj["kind"])
        if dry_run:
            self.checks.append(obj["spec"]["template"]["metadata"]["annotations"]["shiftparallel.dev/template-hash"])
            return obj
        self.writes.append(f"apply {obj['kind']}/{obj['metadata']['name']}")
        self.objects[obj["kind"], obj["metadata"]["name"]] = copy.deepcopy(obj)
        return obj

    async def create(self, obj: Object) -> Object:
        if obj["kind"] == "Event":
            self.events.append(obj["reason"])
            return obj
        identity = (obj["kind"], obj["metadata"]["name"])
        if identity in self.objects:
            raise ConflictError(f"{identity} already exists")
        self.writes.append(f"create {'/'.join(identity)}")
        self.objects[identity] = copy.deepcopy(obj)
        return obj

    async def patch_status(self, obj: Object, status: Object) -> Object:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile(self.resource)
        self._refuse("status")
        stored = self.resource.get("status", {}).get("policyGeneration", 0)
        if status.get("policyGeneration", stored) < stored:
            raise ConflictError("a policy generation only grows")
        self.writes.append("status")
        self.statuses.append(copy.deepcopy(status))
        self.resource["status"] = merged(self.resource.get("status", {}), copy.deepcopy(status))
        self._lose("status")
        return copy.deepcopy(self.resource)

    async def patch_scale(self, obj: Object, replicas: int) -> None:
        self._refuse("scale")
        self.writes.append(f"scale {replicas}")
        self.scaled(replicas, "shift-operator")
        self._lose("scale")

    def scaled(self, replicas: int, manager: str) -> None:
        """As the API server leaves it: a field that changes is its writer's."""
        self.resource["spec"]["replicas"] = replicas
        self.resource["metadata"]["generation"] += 1
        owned = {"f:spec": {"f:replicas": {}}}
        entry = {"manager": manager, "operation": "Update", "subresource": "scale", "fieldsV1": owned}
        self.resource["metadata"]["managedFields"] = [entry]

    async def annotate(self, obj: Object, annotations: dict[str, str | None]) -> None:
        name = obj["metadata"]["name"]
        self.writes.append(f"annotate {name}")
        kept = self.objects["Pod", name]["metadata"]["annotations"] | annotations
        self.objects["Pod", name]["metadata"]["annotations"] = {k: v for k, v in kept.items() if v is not None}

    async def delete(self, obj: Object) -> None:
        self.writes.append(f"delete {obj['kind']}/{obj['metadata']['name']}")
        del self.objects[obj["kind"], obj["metadata"]["name"]]

    def _read(self, verb: str, kind: str) -> None:
        self.reads.append(kind)
        if (verb, kind) in self.forbidden:
            raise UserError(FORBIDDEN, f"the API server refused GET: operator cannot {verb} {kind} in team")

    def _lose(self, what: str) -> None:
        if what in self.lost:
            self.lost.remove(what)
            raise TransientError(f"no answer to {what}")

    def _refuse(self, what: str) -> None:
        if what in self.refusals:
            raise self.refusals[what]

    def add_pod(self, name: str, template_hash: str) -> None:
        self.objects["Pod", name] = {
            "kind": "Pod",
            "metadata": {
                "name": name,
                "uid": f"uid-{name}",
                "annotations": {"shiftparallel.dev/template-hash": template_hash},
            },
            "status": {
                "podIP": "10.0.0.1",
                "conditions": [{"type": kind, "status": "True"} for kind in ("PodScheduled", "Ready")],
                "containerStatuses": [{"name": "runtime", "state": {"running": {}}}],
            },
        }


class FakeRuntimes:
    """Pods that keep the rule of generations."""

    def __init__(self, template: RuntimeState) -> None:
        self.template = template
        self.pods: dict[str, RuntimeState] = {}
        self.pushed: list[tuple[str, str, int]] = []
        self.journal: list[str] | None = None
        self.closed = False
        self.drained: list[str] = []
        # Pods that cannot be reached to be drained.
        self.deaf = False

    def _state(self, uid: str) -> RuntimeState:
        return self.pods.setdefault(uid, self.template)

    async def states(self, endpoints: list[Endpoint], access: Access) -> dict[str, RuntimeState | RuntimeCallError]:
        return {e.uid: self._state(e.uid) for e in endpoints}

    async def push(
        self, endpoints: list[Endpoint], access: Access, policy: Policy, generation: int
    ) -> dict[str, Accepted | RuntimeCallError]:
        answers: dict[str, Accepted | RuntimeCallError] = {}
        for endpoint in endpoints:
            self.pushed.append((endpoint.uid, policy.mode, generation))
            if self.journal is not None:
                self.journal.append(f"push {generation}")
            state = self._state(endpoint.uid)
            if generation < state.generation_accepted:
                answers[endpoint.uid] = RuntimeCallError("FAILED_PRECONDITION", "older")
                continue
            self.pods[endpoint.uid] = replace(
                state, policy=policy, generation_accepted=generation, generation_applied=generation
            )
            answers[endpoint.uid] = Accepted(generation, generation)
        return answers

    async def drain(self, endpoints: list[Endpoint], access: Access) -> dict[str, RuntimeCallError | None]:
        for endpoint in endpoints:
            self.drained.append(endpoint.name)
            if not self.deaf:
                self.pods[endpoint.uid] = replace(self._state(endpoint.uid), draining=True, ready=False)
        return {e.uid: RuntimeCallError("UNAVAILABLE", "deaf") if self.deaf else None for e in endpoints}

    async def forget(self, uids: set[str]) -> None:
        for uid in uids:
            self.pods.pop(uid, None)

    async def close(self) -> None:
        self.closed = True


class World:
    """One resource with its API server and its pods, and an operator that can restart."""

    def __init__(self, make: Make, **spec: Any) -> None:
        self.now = 100.0
        self.cluster = FakeCluster(make.resource(**spec))
        self.runtimes = FakeRuntimes(make.state(generation_accepted=0, generation_applied=0, policy=Policy()))
        self.metrics = Metrics()
        self.restart_operator()

    def restart_operator(self) -> None:
        self.reconciler = Reconciler(
            self.cluster,  # type: ignore[arg-type]
            self.runtimes,  # type: ignore[arg-type]
            Settings(namespace="shift-system"),
            self.metrics,
            lambda: self.now,
            lambda: self.now,
        )

    async def full(self, hint: Object | None = None) -> Found:
        if hint is not None:
            await self.reconciler.push(KEY, hint)
        return await self.reconciler.reconcile(KEY, True)

    async def woken(self) -> Found:
        """The pass after an event."""
        self.cluster.reads.clear()
        return await self.reconciler.reconcile(KEY, True, whole=False)

    async def poll(self) -> Found:
        return await self.reconciler.reconcile(KEY, False)

    async def healthy(self) -> World:
        await self.full()
        self.cluster.add_pod("p1", self.cluster.resource["status"]["templateHash"])
        await self.full()
        self.cluster.writes.clear()
        self.cluster.events.clear()
        return self

    def condition(self, type_: str) -> tuple[str, str]:
        found = next(c for c in self.cluster.resource["status"]["conditions"] if c["type"] == type_)
        return found["status"], found["reason"]


async def scale_path(world: World, load: Load, polls: int) -> list[int]:
    """The replicas after each pass, one every two seconds under this load; a second pod comes and goes with them."""
    path = []
    for _ in range(polls):
        world.now += 2.0
        for uid in list(world.runtimes.pods):
            world.runtimes.pods[uid] = replace(world.runtimes.pods[uid], load=load, read_at=world.now)
        await world.full()
        path.append(world.cluster.resource["spec"]["replicas"])
        if path[-1] > 1 and ("Pod", "p2") not in world.cluster.objects:
            world.cluster.add_pod("p2", world.cluster.resource["status"]["templateHash"])
        if path[-1] == 1:
            world.cluster.objects.pop(("Pod", "p2"), None)
    return path
