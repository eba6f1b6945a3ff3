"""Whole passes against an API server and pods held in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from shiftoperator import manifests
from shiftoperator.errors import ConflictError, RuntimeCallError, TransientError, UserError
from shiftoperator.metrics import Metrics
from shiftoperator.names import Key
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
        # What the API server says to a write, by the kind applied, "dry run" or "scale".
        self.refusals: dict[str, Exception] = {}
        # Writes, "status" or "scale", that arrive without an answer, once each.
        self.lost: set[str] = set()
        # What somebody else does just before the next write of the status, once.
        self.meanwhile: Callable[[Object], None] | None = None

    @property
    def resource(self) -> Object:
        return self.objects["ShiftDeployment", "gemma"]

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        self.reads.append(kind)
        return copy.deepcopy(self.objects.get((kind, name)))

    async def list(self, kind: str, namespace: str, label_selector: str = "") -> list[Object]:
        self.reads.append(kind)
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

    async def full(self, hint: Object | None = None) -> bool:
        if hint is not None:
            await self.reconciler.push(KEY, hint)
        return await self.reconciler.reconcile(KEY, True)

    async def woken(self) -> bool:
        """The pass after an event."""
        self.cluster.reads.clear()
        return await self.reconciler.reconcile(KEY, True, whole=False)

    async def poll(self) -> bool:
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


async def test_from_resource_to_ready(make: Make) -> None:
    world = await World(make).healthy()
    assert world.condition("Ready") == ("True", "AllPodsReady")
    assert world.condition("PolicyInSync") == ("True", "Applied")
    assert world.cluster.resource["status"]["policyGeneration"] == 1
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 64)


async def test_at_rest_nothing_is_written(make: Make) -> None:
    world = await World(make).healthy()
    for _ in range(3):
        await world.full()
        await world.poll()
    assert (world.cluster.writes, world.cluster.events) == ([], [])


async def test_a_new_policy_goes_from_the_event_to_the_pods(make: Make) -> None:
    world = await World(make).healthy()
    world.runtimes.journal = world.cluster.writes
    world.cluster.resource["spec"]["shift"] = {"policy": "Throughput"}
    world.cluster.resource["metadata"]["generation"] += 1
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert world.cluster.writes[:2] == ["status", "push 2"], "stored before it is pushed, and nothing before that"
    assert not any(write.startswith("apply") for write in world.cluster.writes), "no pod is touched"
    assert world.cluster.statuses[-2]["policyGeneration"] == 2
    assert world.runtimes.pods["uid-p1"].policy == Policy("Throughput")
    assert "PolicyAccepted" in world.cluster.events
    assert world.condition("PolicyInSync") == ("True", "Applied")


async def test_a_restarted_pod_gets_the_policy_again(make: Make) -> None:
    world = await World(make).healthy()
    world.runtimes.pods["uid-p1"] = world.runtimes.template
    await world.poll()
    assert world.runtimes.pods["uid-p1"].generation_accepted == 1
    assert world.cluster.resource["status"]["policyGeneration"] == 1


async def test_a_pod_that_was_never_seen_leaving_keeps_no_channel(make: Make) -> None:
    """Each left one behind, 3 MiB a minute under many changes of replicas."""
    world = await World(make).healthy()
    assert "uid-p1" in world.runtimes.pods
    del world.cluster.objects["Pod", "p1"]
    await world.full()
    assert "uid-p1" not in world.runtimes.pods


async def test_lost_status_outdoes_what_pods_know(make: Make) -> None:
    world = await World(make).healthy()
    world.runtimes.pods["uid-p1"] = replace(world.runtimes.pods["uid-p1"], generation_accepted=9, policy=Policy())
    await world.full()
    assert world.cluster.resource["status"]["policyGeneration"] == 10
    assert world.runtimes.pods["uid-p1"].generation_applied == 10
    assert world.runtimes.pods["uid-p1"].policy == Policy("Auto", 64)


async def test_the_token_is_made_once(make: Make) -> None:
    world = await World(make).healthy()
    token = world.cluster.objects["Secret", "gemma-control"]["data"]["token"]
    await world.full()
    assert world.cluster.objects["Secret", "gemma-control"]["data"]["token"] == token
    del world.cluster.objects["Secret", "gemma-control"]
    await world.full()
    assert world.cluster.writes == ["create Secret/gemma-control"]


async def scale_path(world: World, load: Load, polls: int) -> list[int]:
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


async def test_scales_out_and_in(make: Make) -> None:
    world = await World(make).healthy()
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)
    assert (await scale_path(world, burst, 5))[-1] == 2
    assert "scale 2" in world.cluster.writes
    assert (await scale_path(world, Load(max_running_requests=16), 15))[-1] == 1
    decisions = world.cluster.resource["status"]["decisions"]
    assert [(d["from"], d["to"], d["reason"], d["applied"]) for d in decisions] == [
        (2, 1, "Idle", True),
        (1, 2, "QueueTooOld", True),
    ]
    assert world.condition("ScalingActive")[0] == "True"


async def scale_out_through_losses(world: World, **lost: str) -> list[tuple[int, int]]:
    """From one pod to two; what is lost is lost once the scaling begins. Returns the decisions told."""
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)
    world.cluster.lost = set(lost.values())
    for _ in range(4):
        with suppress(TransientError):
            await scale_path(world, burst, 3)
    return [(d["from"], d["to"]) for d in world.cluster.resource["status"].get("decisions", [])]


async def test_a_scale_out_whose_answer_was_lost_is_told(make: Make) -> None:
    assert await scale_out_through_losses(await World(make).healthy(), lost="scale") == [(1, 2)]


async def test_a_scale_out_that_a_person_did_instead_is_not_told_as_ours(make: Make) -> None:
    """The write was not taken, and somebody asked for the same size before the next look."""
    world = await World(make).healthy()
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)
    world.cluster.refusals["scale"] = TransientError("no API")
    with pytest.raises(TransientError):
        await scale_path(world, burst, 5)
    del world.cluster.refusals["scale"]
    world.cluster.scaled(2, "kubectl")
    await scale_path(world, burst, 2)
    assert world.cluster.resource["status"].get("decisions", []) == []


async def test_recommend_only_says_it_and_once(make: Make) -> None:
    world = await World(make, autoscaling={"mode": "Recommend", "max": 2, "windows": {"scaleOutSeconds": 2}}).healthy()
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=60.0)
    assert set(await scale_path(world, burst, 10)) == {1}
    assert not any(write.startswith("scale") for write in world.cluster.writes)
    [decision] = world.cluster.resource["status"]["decisions"]
    assert (decision["to"], decision["applied"]) == (2, False)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [({"autoscaling": {"mode": "Disabled"}}, "Disabled"), ({"replicas": 0}, "ScaledToZero")],
)
async def test_the_autoscaler_keeps_out(make: Make, spec: Object, reason: str) -> None:
    world = World(make, **spec)
    await world.full()
    assert world.condition("ScalingActive") == ("False", reason)


async def test_another_scaler_has_precedence(make: Make) -> None:
    world = World(make)
    world.cluster.objects["HorizontalPodAutoscaler", "hpa"] = {
        "metadata": {"name": "hpa"},
        "spec": {"scaleTargetRef": {"kind": "ShiftDeployment", "name": "gemma"}},
    }
    await world.full()
    assert world.condition("ScalingActive") == ("False", "ExternalScaler")


async def test_a_foreign_object_is_not_overwritten(make: Make) -> None:
    world = World(make)
    world.cluster.objects["Service", "gemma"] = {"kind": "Service", "metadata": {"name": "gemma"}}
    await world.full()
    assert world.condition("Ready") == ("False", "NameConflict")
    assert set(world.cluster.writes) == {"status"}


async def test_a_refusal_is_told_once(make: Make) -> None:
    """Passes that only poll apply nothing: they must not take back what the full pass found."""
    world = await World(make).healthy()
    world.cluster.refusals["Service"] = UserError("Forbidden", "services may not be patched")
    del world.cluster.objects["Service", "gemma"]
    for _ in range(3):
        await world.full()
        await world.poll()
        assert world.condition("Ready") == ("False", "Forbidden")
        assert world.condition("ScalingActive") == ("False", "NotDecided")
    assert world.cluster.writes == ["status"]
    assert sorted(world.cluster.events) == ["Forbidden", "Forbidden", "NotDecided", "SpecRefused"]
    world.cluster.refusals.clear()
    await world.poll()
    assert world.condition("Ready") == ("False", "Forbidden"), "only a full pass knows better"
    await world.full()
    assert world.condition("Ready") == ("True", "AllPodsReady")


async def test_pods_that_run_are_looked_after_while_something_is_refused(make: Make) -> None:
    world = await World(make).healthy()
    world.cluster.objects["Service", "gemma"] = {"kind": "Service", "metadata": {"name": "gemma"}}
    world.runtimes.pods["uid-p1"] = world.runtimes.template
    await world.full()
    assert world.condition("Ready") == ("False", "NameConflict")
    assert world.runtimes.pods["uid-p1"].generation_accepted == 1


async def test_a_scale_that_failed_keeps_its_window(make: Make) -> None:
    world = await World(make).healthy()
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)
    world.cluster.refusals["scale"] = ConflictError("the object changed")
    with pytest.raises(ConflictError):
        await scale_path(world, burst, 5)
    world.cluster.refusals.clear()
    assert await scale_path(world, burst, 1) == [2], "at once, not after another window"


async def test_a_refused_scale_is_told(make: Make) -> None:
    world = await World(make).healthy()
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)
    world.cluster.refusals["scale"] = UserError("Forbidden", "shiftdeployments/scale may not be patched")
    assert set(await scale_path(world, burst, 6)) == {1}
    assert world.condition("ScalingActive") == ("False", "Forbidden")
    assert not world.cluster.resource["status"].get("decisions")


async def test_a_bad_spec_is_told(make: Make) -> None:
    world = World(make, parallelism={"gpus": 4, "sequence": 3, "tensor": 2})
    await world.full()
    assert world.condition("Ready") == ("False", "InvalidSpec")


@pytest.mark.parametrize("spec", ["gpus: 2", 7, None])
async def test_a_spec_of_another_shape_is_refused_at_every_pass(make: Make, spec: Any) -> None:
    """The answer to the write of the status brought it back into the pass after, which ended in a trace."""
    world = World(make)
    world.cluster.resource["spec"] = spec
    await world.full()
    await world.poll()
    await world.woken()
    assert world.condition("Ready") == ("False", "InvalidSpec")


async def test_back_in_the_lead_nothing_old_counts(make: Make) -> None:
    """In between another leader stored a later generation, and the load was another."""
    world = await World(make).healthy()
    burst = Load(running_requests=16, waiting_requests=4, max_running_requests=16, oldest_wait_seconds=5.0)
    await scale_path(world, burst, 2)
    await world.reconciler.forget_all()
    assert world.runtimes.closed
    world.cluster.resource["spec"]["shift"] = {"policy": "Latency"}
    world.cluster.resource["metadata"]["generation"] += 1
    policy = {"mode": "Latency"}
    world.cluster.resource["status"] |= {"policyGeneration": 7, "policy": policy}
    world.runtimes.pods["uid-p1"] = replace(
        world.runtimes.pods["uid-p1"], policy=Policy("Latency"), generation_accepted=7, generation_applied=7
    )
    world.now += 60.0
    assert await scale_path(world, burst, 1) == [1], "the window begins anew"
    world.cluster.writes.clear()
    await world.full(hint=copy.deepcopy(world.cluster.resource))
    assert world.cluster.resource["status"]["policyGeneration"] == 7
    assert world.runtimes.pods["uid-p1"].generation_accepted == 7


async def test_a_bad_pod_template_is_told(make: Make) -> None:
    world = World(make, podTemplate={"spec": {"containers": [{"name": "runtime", "env": ["A=b"]}]}})
    await world.full()
    assert world.condition("Ready") == ("False", "InvalidSpec")
    [ready, *_] = world.cluster.resource["status"]["conditions"]
    assert ready["message"].startswith("podTemplate.spec.containers[0].env[0] must be an object")


async def test_children_collected_during_the_look_are_not_made_again(make: Make) -> None:
    world = await World(make).healthy()
    get, writes = world.cluster.get, len(world.cluster.writes)

    async def deleted_meanwhile(kind: str, namespace: str, name: str) -> Object | None:
        if kind != "ShiftDeployment":
            # The garbage collector comes after the resource is gone.
            world.cluster.objects = {}
        return await get(kind, namespace, name)

    world.cluster.get = deleted_meanwhile  # type: ignore[method-assign]
    assert await world.full() is False
    assert world.cluster.writes[writes:] == []


async def test_a_key_is_made_only_where_there_is_none(make: Make) -> None:
    """A write that its caller gave up on may arrive late: applied, it would replace the key that pods have by then."""
    world = World(make)
    await world.full()
    assert [write for write in world.cluster.writes if "Secret" in write] == [
        "create Secret/gemma-control-ca",
        "create Secret/gemma-control",
    ]


def limit_requests(resource: Object) -> None:
    resource["spec"]["engine"] = {"maxNumSeqs": 8}
    resource["metadata"]["generation"] += 1


async def test_a_spec_changed_during_a_pass_is_not_mixed_with_the_one_before(make: Make) -> None:
    """The revision that was named after the new spec and filled from the old one stayed: the change never came."""
    world = World(make)
    await world.full()
    world.cluster.add_pod("p1", world.cluster.resource["status"]["templateHash"])
    world.cluster.meanwhile = limit_requests
    await world.full()
    resource = world.cluster.resource
    assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"] - 1
    await world.poll()
    assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
    wanted = manifests.template_hash(world.cluster.resource["spec"])
    revisions = {
        revision["metadata"]["annotations"]["shiftparallel.dev/template-hash"]: revision["data"]["template"]
        for (kind, _), revision in world.cluster.objects.items()
        if kind == "ControllerRevision"
    }
    arguments = revisions[wanted]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--max-num-seqs") + 1] == "8"
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["template"] == revisions[wanted]


async def test_a_pass_ends_when_a_write_shows_that_deletion_began(make: Make) -> None:
    world = World(make)
    await world.full()
    world.cluster.add_pod("p1", world.cluster.resource["status"]["templateHash"])
    del world.cluster.objects["Service", "gemma"]
    world.cluster.writes.clear()
    world.cluster.meanwhile = lambda resource: resource["metadata"].update(deletionTimestamp="2026-11-21T20:00:00Z")
    with pytest.raises(ConflictError):
        await world.full()
    assert world.cluster.writes == ["status"], "nothing is made for what is on its way out"
    assert not await world.full()


async def test_gone(make: Make) -> None:
    world = await World(make).healthy()
    del world.cluster.objects["ShiftDeployment", "gemma"]
    assert await world.full() is False
    assert world.runtimes.pods == {}


async def test_certificates_are_rotated_when_asked_and_keys_are_kept_otherwise(make: Make) -> None:
    world = await World(make).healthy()
    authority = world.cluster.objects["Secret", "gemma-control-ca"]["data"]
    kept = {key: authority[key] for key in ("authority.key", "client.key", "tls.key")}
    annotations = world.cluster.resource["metadata"].setdefault("annotations", {})
    annotations["shiftparallel.dev/rotate-control-certificates"] = "2020-01-01T00:00:00Z"
    await world.full()
    assert world.cluster.writes == [], "the authority is younger than that"
    annotations["shiftparallel.dev/rotate-control-certificates"] = datetime.now(UTC).isoformat()
    await world.full()
    assert sorted(world.cluster.writes) == ["apply Secret/gemma-control", "apply Secret/gemma-control-ca"]
    data = world.cluster.objects["Secret", "gemma-control-ca"]["data"]
    assert {key: data[key] for key in kept} == kept, "the next one is trusted first, and nothing else changes"
    assert data["next.key"]
    world.cluster.writes.clear()
    for _ in range(3):
        await world.full()
    assert world.cluster.writes == []


@pytest.mark.parametrize("said", ["now", "2026-01-01T00:00:00", "", "x" * 200_000])
async def test_a_rotation_asked_for_at_no_time_is_told_and_stops_nothing_else(make: Make, said: str) -> None:
    """Free text on the metadata held up children, rollouts and the autoscaler of its resource."""
    world = await World(make).healthy()
    annotations = world.cluster.resource["metadata"].setdefault("annotations", {})
    annotations["shiftparallel.dev/rotate-control-certificates"] = said
    world.cluster.resource["spec"]["replicas"] = 2
    await world.full()
    assert world.cluster.objects["Deployment", "gemma"]["spec"]["replicas"] == 2
    assert not [write for write in world.cluster.writes if "Secret" in write], "nothing is rotated"
    assert world.condition("Ready") == ("True", "ScalingOut")
    assert world.condition("ScalingActive")[1] != "NotDecided"
    assert world.condition("Degraded") == ("True", "RotationIgnored")
    assert world.cluster.events.count("RotationIgnored") == 1
    [told] = [c["message"] for c in world.cluster.resource["status"]["conditions"] if c["type"] == "Degraded"]
    assert "rotate-control-certificates" in told
    assert len(told) < 300
    world.cluster.writes.clear()
    await world.full()
    assert world.cluster.writes == []
    del annotations["shiftparallel.dev/rotate-control-certificates"]
    await world.full()
    assert world.condition("Degraded") == ("False", "AsAsked")


async def test_a_rotation_asked_for_at_no_time_is_told_while_no_pod_is_asked_for(make: Make) -> None:
    world = World(make, replicas=0)
    world.cluster.resource["metadata"]["annotations"] = {"shiftparallel.dev/rotate-control-certificates": "soon"}
    await world.full()
    assert world.condition("Ready") == ("True", "ScaledToZero")
    assert world.condition("Degraded") == ("True", "RotationIgnored")
