"""Plays scheduler and kubelet: places pods on stand-in nodes and runs them as gRPC servers on loopback addresses.

It works in a thread with a loop of its own, so that tests with and without asyncio can use it.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from helpers.control_plane.apiclient import ApiClient, Refused
from helpers.control_plane.plane import ControlPlane
from helpers.control_plane.runtime import Runtime, listen
from shiftprotos import contract

Object = dict[str, Any]

NODES = 3
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Behaviour:
    """What becomes of a pod. `waiting` is why its container cannot start (`ImagePullBackOff`); an `exit_code` makes it
    end at once, again and again."""

    place: bool = True
    start_seconds: float = 0.0
    ready: bool = True
    waiting: str = ""
    exit_code: int | None = None
    message: str = ""  # in the termination log of a container that ends
    stop_seconds: float = 0.0


@dataclass(eq=False)
class RunningPod:
    obj: Object
    address: str = ""
    runtime: Runtime | None = None
    server: grpc.aio.Server | None = None
    restarts: int = 0
    deleting: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def namespace(self) -> str:
        return str(self.obj["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.obj["metadata"]["name"])

    @property
    def deployment(self) -> str:
        return str(self.obj["metadata"].get("labels", {}).get(contract.LABEL_DEPLOYMENT, ""))

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"


class Kubelet:
    """`rule` says how a pod behaves; pods look at it at their start and at every `behave` or `look_again`."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._behaviours: dict[tuple[str, str], Behaviour] = {}
        self.rule: Callable[[Object], Behaviour] | None = None
        self._pods: dict[str, RunningPod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubelet", daemon=True)
        self._addresses = _addresses(plane.network)
        self._stopping = False

    # --- what tests call ---

    def __enter__(self) -> Kubelet:
        for number in range(NODES):
            _add_node(self._plane, f"node-{number}")
        self._thread.start()
        user = self._plane.kubeconfig("stand-in-kubelet", "system:masters")
        self._call(self._open(ApiClient(user))).result(_STOP_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close()).result(_STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STOP_SECONDS)
        self._loop.close()

    def behave(self, namespace: str, deployment: str, behaviour: Behaviour) -> None:
        """For the pods of one ShiftDeployment, those that run too."""
        self._behaviours[namespace, deployment] = behaviour
        self.look_again()

    def look_again(self) -> None:
        self._loop.call_soon_threadsafe(lambda: [pod.changed.set() for pod in self._pods.values()])

    def runtimes(self, namespace: str, deployment: str = "") -> dict[str, Runtime]:
        """By pod name: those whose container runs."""
        return {
            pod.name: pod.runtime
            for pod in list(self._pods.values())
            if pod.namespace == namespace and pod.runtime is not None and deployment in ("", pod.deployment)
        }

    def _call(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # --- what runs in its thread ---

    async def _open(self, api: ApiClient) -> None:
        self._api = api
        await api.open()
        self._watch = asyncio.create_task(api.watch("/api/v1/pods", self._seen, self._listed))

    async def _close(self) -> None:
        self._stopping, pods = True, list(self._pods.values())
        tasks = [self._watch, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(_stop(pod) for pod in pods))
        # Servers of pods that left a moment ago are still about to end.
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            await asyncio.wait(rest, timeout=5.0)
        await self._api.close()

    def _listed(self, pods: list[Object]) -> None:
        present = {pod["metadata"]["uid"] for pod in pods}
        for uid in [uid for uid in self._tasks if uid not in present]:
            self._tasks[uid].cancel()
        for pod in pods:
            self._seen("MODIFIED", pod)

    def _seen(self, kind: str, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        if kind == "DELETED":
            if uid in self._tasks:
                self._tasks[uid].cancel()
            return
        known = self._pods.get(uid)
        if known is None:
            known = self._pods[uid] = RunningPod(obj)
            task = self._tasks[uid] = asyncio.create_task(self._live(known), name=f"pod {known.name}")
            task.add_done_callback(lambda _: (self._pods.pop(uid, None), self._tasks.pop(uid, None)))
        known.obj = obj
        if "deletionTimestamp" in obj["metadata"] and not known.deleting:
            known.deleting = True
            known.changed.set()

    def _behaviour(self, pod: RunningPod) -> Behaviour:
        if self.rule is not None:
            return self.rule(pod.obj)
        return self._behaviours.get((pod.namespace, pod.deployment), Behaviour())

    async def _live(self, pod: RunningPod) -> None:
        try:
            if not pod.obj["spec"].get("nodeName"):
                await self._schedule(pod)
            pod.address = next(self._addresses)
            done: Behaviour | None = None
            while not pod.deleting:
                pod.changed.clear()
                behaviour = self._behaviour(pod)
                if behaviour != done and await self._become(pod, behaviour):
                    done = behaviour
                if not pod.changed.is_set():
                    await pod.changed.wait()
            if pod.runtime is not None:
                pod.runtime.draining = True
            await asyncio.sleep(self._behaviour(pod).stop_seconds)
            body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.obj["metadata"]["uid"]}}
            await self._api.call("DELETE", pod.path, body)
        except Refused as error:
            if error.status not in (404, 409):  # gone, or another by now
                raise
        finally:
            if not self._stopping:
                await asyncio.shield(_stop(pod))

    async def _schedule(self, pod: RunningPod) -> None:
        refused = False
        while not pod.deleting:
            pod.changed.clear()
            if self._behaviour(pod).place:
                target = {"apiVersion": "v1", "kind": "Node", "name": f"node-{hash(pod.name) % NODES}"}
                await self._api.call("POST", f"{pod.path}/binding", {"metadata": {"name": pod.name}, "target": target})
                return
            if not refused:
                refused = True
                message = f"0/{NODES} nodes are available: {NODES} Insufficient nvidia.com/gpu."
                await self._status(pod, "Pending", [_condition("PodScheduled", False, "Unschedulable", message)])
            await pod.changed.wait()

    async def _become(self, pod: RunningPod, behaviour: Behaviour) -> bool:
        """False when something else is asked of the pod meanwhile."""
        if behaviour.waiting:
            await _stop(pod)
            state = {"waiting": {"reason": behaviour.waiting, "message": behaviour.message or behaviour.waiting}}
            await self._report(pod, "Pending", state, ready=False)
        elif behaviour.exit_code is not None:
            await _stop(pod)
            await self._crash(pod, behaviour)
        else:
            if pod.runtime is None:
                mounted = await self._mounted(pod)
                pod.runtime = Runtime(mounted.get(contract.CONTROL_TOKEN_KEY, b"").decode(), ready=False)
                pod.server = await listen(pod.runtime, pod.address, mounted)
            if behaviour.ready and behaviour.start_seconds > 0:
                await self._report(pod, "Running", {"running": {"startedAt": _now()}}, ready=False)
                try:
                    async with asyncio.timeout(behaviour.start_seconds):
                        await pod.changed.wait()
                    return False
                except TimeoutError:
                    pass
            pod.runtime.ready = behaviour.ready
            await self._report(pod, "Running", {"running": {"startedAt": _now()}}, ready=behaviour.ready)
        return True

    async def _crash(self, pod: RunningPod, behaviour: Behaviour) -> None:
        pod.restarts += 1
        ended = {
            "exitCode": behaviour.exit_code, "reason": "Error", "message": behaviour.message,
            "startedAt": _now(), "finishedAt": _now(),
        }  # fmt: skip
        back_off = {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}
        await self._report(pod, "Running", {"waiting": back_off}, ready=False, last={"terminated": ended})

    async def _mounted(self, pod: RunningPod) -> dict[str, bytes]:
        """What the kubelet would mount from the control Secret."""
        sources = [volume["secret"]["secretName"] for volume in pod.obj["spec"]["volumes"] if "secret" in volume]
        for name in sources:
            secret = await self._api.call("GET", f"/api/v1/namespaces/{pod.namespace}/secrets/{name}")
            if contract.CONTROL_TOKEN_KEY in secret.get("data", {}):
                return {key: base64.b64decode(value) for key, value in secret["data"].items()}
        return {}

    async def _report(
        self, pod: RunningPod, phase: str, state: Object, ready: bool, last: Object | None = None
    ) -> None:
        container = pod.obj["spec"]["containers"][0]
        status = {
            "name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
            "started": "running" in state, "restartCount": pod.restarts, "state": state, "lastState": last or {},
        }  # fmt: skip
        conditions = [
            _condition("PodScheduled", True), _condition("Initialized", True),
            _condition("ContainersReady", ready), _condition("Ready", ready),
        ]  # fmt: skip
        address = {"podIP": pod.address, "podIPs": [{"ip": pod.address}], "startTime": _now()}
        await self._status(pod, phase, conditions, containerStatuses=[status], **address)

    async def _status(self, pod: RunningPod, phase: str, conditions: list[Object], **more: Any) -> None:
        body = {
            "metadata": {"uid": pod.obj["metadata"]["uid"]},
            "status": {"phase": phase, "conditions": conditions, **more},
        }
        await self._api.call("PATCH", f"{pod.path}/status", body, "application/merge-patch+json")


async def _stop(pod: RunningPod) -> None:
    server, pod.server, pod.runtime = pod.server, None, None
    if server is not None:
        await server.stop(None)


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Object:
    status = "True" if holds else "False"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": _now()}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _addresses(network: str) -> Iterator[str]:
    """Never the same twice: an operator may still ask the pod that had it."""
    return (f"{network}.{high}.{low}" for high, low in itertools.product(range(1, 255), range(1, 255)))


def _add_node(plane: ControlPlane, name: str) -> None:
    plane.admin.call("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    status = {
        "conditions": [_condition("Ready", True)],
        "capacity": {"pods": "10000"},
        "allocatable": {"pods": "10000"},
    }
    plane.admin.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, "application/merge-patch+json")
