"""Rollouts with the real Deployment controller: one pod at a time, paused, refused, rolled back, and with surge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.control_plane.kubelet import Behaviour, Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import ControlPlane, example

from localcluster.api import ApiError

pytestmark = pytest.mark.timeout(240)

Object = dict[str, Any]
MERGE = "application/merge-patch+json"
TWO, ONE, EXTRA = "two", "one", "extra"
BAD_MODEL = '{"reason": "ModelNotFound", "message": "nothing lies there"}'
BAD_RANK = '{"reason": "RankFailed", "message": "rank 1 died"}'


def wait_for(what: str, holds: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return value


class Service:
    """One ShiftDeployment of the namespace."""

    def __init__(self, plane: ControlPlane, namespace: str, name: str) -> None:
        self._plane, self._namespace, self.name = plane, namespace, name
        self.path = f"/apis/shiftparallel.dev/v1alpha1/namespaces/{namespace}/shiftdeployments"

    def create(self, **spec: Any) -> None:
        self._plane.admin.call("POST", self.path, example(self.name, **spec))

    def patch(self, **spec: Any) -> None:
        self._plane.admin.call("PATCH", f"{self.path}/{self.name}", {"spec": spec}, MERGE)

    def replace(self, spec: Object) -> None:
        """A merge patch would keep what was added."""
        self._plane.admin.call("PUT", f"{self.path}/{self.name}", {**self.get(), "spec": spec})

    def run(self, image: str) -> None:
        self.patch(runtime={"image": image})

    def get(self) -> Object:
        return self._plane.admin.get(f"{self.path}/{self.name}")

    @property
    def rollout(self) -> Object:
        found: Object = self.get().get("status", {}).get("rollout", {})
        return found

    def condition(self, type_: str) -> Object:
        found = self.get().get("status", {}).get("conditions", [])
        return next((c for c in found if c["type"] == type_), {"status": "", "reason": "", "message": ""})

    def says(self, type_: str, status: str, reason: str) -> bool:
        said = self.condition(type_)
        return (said["status"], said["reason"]) == (status, reason)

    def wait_good(self) -> str:
        """Until all pods of the present spec have served long enough; returns the revision."""

        def good() -> str:
            found = self.get()
            status, ready = found.get("status", {}), self.says("Ready", "True", "AllPodsReady")
            revision = str(status.get("rollout", {}).get("goodRevision", ""))
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            return revision if current and ready and revision == status["templateHash"] else ""

        return str(wait_for(f"a good revision of {self.name}", good, 90.0))

    @property
    def pods(self) -> list[Object]:
        found = self._plane.admin.get(f"/api/v1/namespaces/{self._namespace}/pods")["items"]
        return [p for p in found if p["metadata"]["labels"]["shiftparallel.dev/deployment"] == self.name]

    @property
    def live(self) -> list[Object]:
        return [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]

    @property
    def images(self) -> list[str]:
        return sorted(pod["spec"]["containers"][0]["image"] for pod in self.live)

    @property
    def strategy(self) -> Object:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{self.name}"
        found: Object = self._plane.admin.get(path)["spec"]["strategy"]["rollingUpdate"]
        return found

    def evict(self, pod: Object) -> int:
        """The status of the answer."""
        metadata = {"name": pod["metadata"]["name"], "namespace": self._namespace}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        try:
            self._plane.admin.call(
                "POST", f"/api/v1/namespaces/{self._namespace}/pods/{metadata['name']}/eviction", body
            )
        except ApiError as refused:
            return refused.status
        return 201


def is_ready(pod: Object) -> bool:
    said = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
    return said.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


class Watched:
    """The fewest pods that were ready, and the most that were there, while a block ran."""

    def __init__(self, service: Service) -> None:
        self._service, self._over = service, threading.Event()
        self.ready: list[int] = []
        self.present: list[int] = []
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.is_set():
            pods = self._service.pods
            self.ready.append(sum(is_ready(pod) for pod in pods))
            self.present.append(sum("deletionTimestamp" not in pod["metadata"] for pod in pods))
            time.sleep(0.02)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20.0)


class Place:
    """A namespace with an operator that can be restarted."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, stack: ExitStack) -> None:
        self.plane, self.namespace = plane, namespace
        self._folder, self._stack = folder, stack
        self._kubeconfig = plane.kubeconfig("operator-of-rollouts", "system:masters")
        self.start_operator()

    def start_operator(self) -> None:
        self._running = ExitStack()
        self.operator: Operator = self._running.enter_context(
            operator_process(self._kubeconfig, "operator-of-rollouts", self.namespace, self._folder / "operator.log")
        )
        self._stack.push(self._running)

    def restart_operator(self) -> None:
        self._running.close()
        self.start_operator()


@pytest.fixture(scope="module")
def place(plane: ControlPlane, kubelet: Kubelet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    plane.create_namespace("rollouts")
    plane.create_claim("rollouts")
    with ExitStack() as stack:
        found = Place(plane, "rollouts", tmp_path_factory.mktemp("rollouts"), stack)
        # Together, because each has to serve for a while before it counts as good.
        Service(plane, "rollouts", TWO).create(replicas=2)
        Service(plane, "rollouts", ONE).create(replicas=1)
        Service(plane, "rollouts", EXTRA).create(replicas=1, rollout={"strategy": "Surge"})
        yield found
    plane.delete_namespace("rollouts")


@pytest.fixture
def two(place: Place) -> Service:
    return Service(place.plane, place.namespace, TWO)


@pytest.fixture
def one(place: Place) -> Service:
    return Service(place.plane, place.namespace, ONE)


@pytest.fixture
def extra(place: Place) -> Service:
    return Service(place.plane, place.namespace, EXTRA)


@contextmanager
def pods_behave(kubelet: Kubelet, rule: Callable[[Object], Behaviour]) -> Iterator[None]:
    kubelet.rule = rule
    try:
        yield
    finally:
        kubelet.rule = None
        kubelet.look_again()


@contextmanager
def images_behave(kubelet: Kubelet, **behaviours: Behaviour) -> Iterator[dict[str, Behaviour]]:
    """By the name of the image before its colon; may be changed inside."""

    def rule(pod: Object) -> Behaviour:
        return behaviours.get(pod["spec"]["containers"][0]["image"].partition(":")[0], Behaviour())

    with pods_behave(kubelet, rule):
        yield behaviours


@pytest.mark.parametrize("asked", [[[]], [], {}, 5, "", "now", "2026-01-31", "2026-02-30T12:00:00Z",
    "2026-01-31T12:00:00Z or so", "2026-01-31T12:00:00Zt", "2026-01-31T12:00:00"])  # fmt: skip
def test_a_restart_at_no_time_is_refused(plane: ControlPlane, asked: Any) -> None:
    """A list was taken for a time, and replaced every pod."""
    where = "/apis/shiftparallel.dev/v1alpha1/namespaces/default/shiftdeployments?dryRun=All"
    with pytest.raises(ApiError, match=r"rollout\.restartedAt") as refused:
        plane.admin.call("POST", where, example("s", rollout={"restartedAt": asked}))
    assert refused.value.status == 422


@pytest.mark.parametrize("asked", ["2026-01-31T12:00:00Z", "2026-01-31t12:00:00.5z", "2026-01-31T12:00:00+02:00"])
def test_a_restart_at_a_time_is_taken(plane: ControlPlane, asked: str) -> None:
    where = "/apis/shiftparallel.dev/v1alpha1/namespaces/default/shiftdeployments?dryRun=All"
    plane.admin.call("POST", where, example("s", rollout={"restartedAt": asked}))


def test_evictions_take_one_pod_at_a_time(kubelet: Kubelet, two: Service) -> None:
    two.wait_good()
    first, second = two.pods
    known = uids(two)

    def rule(pod: Object) -> Behaviour:
        return Behaviour(start_seconds=0.0 if pod["metadata"]["uid"] in known else 2.0)

    with pods_behave(kubelet, rule), Watched(two) as seen:
        assert two.evict(first) == 201
        assert two.evict(second) == 429
        wait_for("another pod", lambda: len(two.live) == 2 and first["metadata"]["uid"] not in uids(two))
        assert two.evict(second) == 429, "it is not ready yet"
        wait_for("the first to be ready elsewhere", lambda: sum(map(is_ready, two.pods)) == 2)
        wait_for("the second to be let go", lambda: two.evict(second) == 201, 15.0)
        wait_for("both", lambda: sum(map(is_ready, two.pods)) == 2 and second["metadata"]["uid"] not in uids(two))
    assert min(seen.ready) == 1


def uids(service: Service) -> set[str]:
    return {pod["metadata"]["uid"] for pod in service.pods}


def test_the_only_pod_can_be_evicted_and_one_that_fails_too(kubelet: Kubelet, one: Service) -> None:
    one.wait_good()
    [pod] = one.live
    assert one.evict(pod) == 201, "a node drain is not blocked"
    wait_for("another", lambda: [p for p in one.live if p["metadata"]["uid"] != pod["metadata"]["uid"]])
    kubelet.behave("rollouts", ONE, Behaviour(exit_code=1, message=BAD_RANK))
    failing = wait_for("a pod that fails", lambda: next((p for p in one.live if not is_ready(p)), None))
    wait_for("the failure", lambda: one.says("Ready", "False", "RankFailed"))
    assert one.evict(failing) == 201
    kubelet.behave("rollouts", ONE, Behaviour())
    one.wait_good()


def test_a_rollout_waits_while_paused_and_then_takes_one_pod_at_a_time(two: Service) -> None:
    good, before = two.wait_good(), uids(two)
    two.patch(rollout={"paused": True, "restartedAt": "2026-11-21T20:00:00Z"})
    wait_for("the pause", lambda: two.says("Progressing", "False", "RolloutPaused"))
    assert two.says("Paused", "True", "RolloutPaused")
    time.sleep(2.0)
    assert uids(two) == before
    with Watched(two) as seen:
        two.patch(rollout={"paused": None})
        assert two.wait_good() != good
    assert uids(two).isdisjoint(before)
    assert (min(seen.ready), max(seen.present)) == (1, 2), "one away at most, and no surge"


def test_a_bad_revision_costs_one_pod_and_is_rolled_back(place: Place, kubelet: Kubelet, two: Service) -> None:
    good = two.wait_good()
    [image] = set(two.images)
    with images_behave(kubelet, bad=Behaviour(exit_code=1, message=BAD_MODEL)), Watched(two) as seen:
        started = time.monotonic()
        two.run("bad:1")
        wait_for("the rollback", lambda: two.says("Ready", "False", "RolledBack"))
        print(f"rolled back {time.monotonic() - started:.1f} s after the change")
        wait_for("the pods", lambda: two.images == [image] * 2 and sum(map(is_ready, two.pods)) == 2)
        wait_for("the end of it", lambda: two.says("Progressing", "False", "RolledBack"))
        rejected = two.rollout["rejected"]
        assert (rejected["reason"], rejected["tried"], two.rollout["goodRevision"]) == ("ModelNotFound", True, good)
        told = two.condition("Ready")["message"]
        assert rejected["revision"] in told
        assert good in told
        assert two.says("Degraded", "True", "RolledBack")
        assert two.get()["spec"]["runtime"]["image"] == "bad:1", "the spec is the user's"
        settled = uids(two)
        place.restart_operator()
        # Changed through the new operator: it has seen the resource.
        two.patch(shift={"policy": "Latency"})
        wait_for("the policy", lambda: two.get()["status"]["policy"]["mode"] == "Latency")
        time.sleep(2.0)
        assert (uids(two), two.rollout["rejected"]) == (settled, rejected), "it goes on with what was decided"
    assert min(seen.ready) == 1, "at most one pod is away"
    events = place.plane.admin.get(f"/apis/events.k8s.io/v1/namespaces/{place.namespace}/events")["items"]
    notes = [e["note"] for e in events if e["reason"] == "RolledBack" and e["regarding"]["name"] == TWO]
    assert any(good in note and "ModelNotFound" in note for note in notes)
    two.run(image)
    two.patch(shift={"policy": "Auto"})
    assert two.wait_good() == good
    assert uids(two) == settled, "nothing to do: that is what runs"
    assert "rejected" not in two.rollout


def test_with_one_replica_a_bad_revision_is_rolled_back_at_once(kubelet: Kubelet, one: Service) -> None:
    good = one.wait_good()
    [image] = one.images
    with images_behave(kubelet, bad=Behaviour(exit_code=1, message=BAD_RANK)):
        started = time.monotonic()
        one.run("bad:1")
        wait_for("the rollback", lambda: one.says("Ready", "False", "RolledBack"))
        wait_for("a pod that serves", lambda: one.images == [image] and one.says("Available", "True", "PodsServe"))
        print(f"serves again {time.monotonic() - started:.1f} s after the change, with pods that start at once")
        one.run("better:1")
        assert one.wait_good() != good
    assert one.images == ["better:1"]


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        (
            {"podTemplate": {"spec": {"containers": [{"name": "runtime", "livenesProbe": {}}]}}},
            "InvalidPodTemplate",
            "podTemplate.spec.containers",
        ),
        ({"podTemplate": {"spec": {"nodeNam": "x"}}}, "InvalidPodTemplate", "podTemplate.spec.nodeNam"),
        (
            {"podTemplate": {"spec": {"volumes": [{"name": "V", "emptyDir": {}}]}}},
            "InvalidPodTemplate",
            "podTemplate.spec.volumes[",
        ),
        (
            {"podTemplate": {"spec": {"tolerations": [{"key": "k", "effect": "Never"}]}}},
            "InvalidPodTemplate",
            "podTemplate.spec.tolerations[0].effect",
        ),
        (
            {"runtime": {"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "t"}}}]}},
            "SecretMissing",
            "Secret hub",
        ),
        ({"model": {"uri": "pvc://nowhere/m.gguf"}}, "ModelNotFound", "PersistentVolumeClaim nowhere"),
    ],
)
def test_what_cannot_work_touches_no_pod(one: Service, change: Object, reason: str, words: str) -> None:
    good, before = one.wait_good(), one.get()
    pods = uids(one)
    one.patch(**change)
    wait_for(reason, lambda: one.says("Ready", "False", reason))
    assert words in one.condition("Ready")["message"]
    assert one.says("Available", "True", "PodsServe")
    assert one.rollout["rejected"]["tried"] is False
    one.replace(before["spec"])
    assert one.wait_good() == good
    assert uids(one) == pods


def test_a_pending_pod_beside_one_that_drains_is_no_shortage(kubelet: Kubelet, one: Service) -> None:
    one.wait_good()
    [image] = one.images
    old = image.partition(":")[0]
    with images_behave(kubelet, **{old: Behaviour(stop_seconds=4.0), "next": Behaviour(place=False)}) as behaviours:
        one.run("next:1")
        wait_for("the drain", lambda: one.says("Scheduled", "False", "WaitingForDrain"))
        assert one.says("Ready", "False", "WaitingForDrain")
        assert one.says("Progressing", "True", "WaitingForDrain")
        wait_for("the old pod to be gone", lambda: len(one.pods) == 1)
        wait_for("a shortage, now", lambda: one.says("Scheduled", "False", "Unschedulable"))
        behaviours["next"] = Behaviour()
        kubelet.look_again()
        one.wait_good()


def test_surge_keeps_the_only_pod_until_the_next_one_serves(kubelet: Kubelet, extra: Service) -> None:
    extra.wait_good()
    assert extra.strategy == {"maxSurge": 1, "maxUnavailable": 0}
    with images_behave(kubelet, next=Behaviour(start_seconds=1.0)), Watched(extra) as seen:
        extra.run("next:1")
        extra.wait_good()
    assert (min(seen.ready), max(seen.present)) == (1, 2)
    assert extra.images == ["next:1"]


def test_surge_without_room_goes_on_without(kubelet: Kubelet, extra: Service) -> None:
    extra.wait_good()
    with images_behave(kubelet, full=Behaviour(place=False)) as behaviours:
        started = time.monotonic()
        extra.run("full:1")
        wait_for("no surge", lambda: extra.strategy == {"maxSurge": 0, "maxUnavailable": 1})
        assert time.monotonic() - started >= 29.0
        wait_for("the old pod to leave", lambda: extra.images == ["full:1"])
        behaviours["full"] = Behaviour()
        kubelet.look_again()
        extra.wait_good()
    assert extra.rollout["noSurgeRevision"] == extra.get()["status"]["templateHash"]
