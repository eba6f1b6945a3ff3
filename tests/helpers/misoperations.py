"""Mistakes that people make, where each can first be seen, and what the resource must say of it then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from helpers.control_plane.kubelet import Behaviour, Kubelet
from helpers.control_plane.plane import ControlPlane, example
from helpers.control_plane.waiting import collection
from shiftprotos import contract

Object = dict[str, Any]

# From when a mistake can be seen.
LIMIT_SECONDS = 30.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Sight:
    """One resource and what belongs to it, as the API server has them at one moment."""

    resource: Object
    deployment: Object
    pods: tuple[Object, ...]

    def states(self, which: str) -> list[Object]:
        return [s.get(which, {}) for pod in self.pods for s in pod["status"].get("containerStatuses", ())]

    def ready(self) -> tuple[str, str]:
        """Reason and message."""
        conditions = self.resource.get("status", {}).get("conditions", [])
        return next(((c["reason"], c["message"]) for c in conditions if c["type"] == "Ready"), ("", ""))


Seen = Callable[[Sight], bool]


def created(_: Sight) -> bool:
    """in the spec, as soon as it is stored"""
    return True


def unplaced(sight: Sight) -> bool:
    """in the pod, by the scheduler"""
    conditions = [c for pod in sight.pods for c in pod["status"].get("conditions", ())]
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in conditions)


def waiting(sight: Sight) -> bool:
    """in the pod, by the kubelet"""
    return any("waiting" in state for state in sight.states("state"))


def ended(sight: Sight) -> bool:
    """in the pod, by the kubelet"""
    return any("terminated" in state for state in sight.states("lastState"))


def not_made(sight: Sight) -> bool:
    """in the Deployment, by its controller"""
    conditions = sight.deployment.get("status", {}).get("conditions", ())
    return any(c["type"] == "ReplicaFailure" and c["status"] == "True" for c in conditions)


@dataclass(frozen=True)
class Mistake:
    """`words`: what the message must name. `quota`: made in a namespace where no pod may be, `restricted`: in one that
    takes none with more rights than the profile of that name has."""

    seen: Seen
    reason: str
    words: str
    spec: Object = field(default_factory=dict)
    behaviour: Behaviour = field(default_factory=Behaviour)
    where: str = "plain"


def _pod(**spec: Any) -> Object:
    return {"podTemplate": {"spec": spec}}


def _runtime(**container: Any) -> Object:
    return _pod(containers=[{"name": "runtime", **container}])


_NO_ROOM = {"runtime": {"resources": {"requests": {"memory": "900Ti"}}}}
_SECRET = {"runtime": {"env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "no-such", "key": "k"}}}]}}
_UNPLACED = Behaviour(place=False)
_NO_IMAGE = "rpc error: code = NotFound desc = failed to pull registry.example/none:1: not found"

MISTAKES = {
    "more memory than any node has": Mistake(unplaced, "Unschedulable", "nodes are available", _NO_ROOM, _UNPLACED),
    "a Secret that does not exist": Mistake(
        waiting, "CreateContainerConfigError", 'secret "no-such" not found', _SECRET,
        Behaviour(waiting="CreateContainerConfigError", message='secret "no-such" not found'),
    ),
    "a wrong image": Mistake(
        waiting, "ImagePullBackOff", "registry.example/none:1", {"runtime": {"image": "registry.example/none:1"}},
        Behaviour(waiting="ErrImagePull", message=_NO_IMAGE),
    ),
    "an image that is no name": Mistake(
        waiting, "InvalidImageName", "couldn't parse", {"runtime": {"image": "Not A Name"}},
        Behaviour(waiting="InvalidImageName", message='couldn\'t parse image name "Not A Name"'),
    ),
    "an image that may not be pulled": Mistake(
        waiting, "ErrImageNeverPull", "is not present", behaviour=Behaviour(
            waiting="ErrImageNeverPull", message='Container image "x" is not present with pull policy of Never'
        ),
    ),
    "a quota that is used up": Mistake(not_made, "FailedCreate", "exceeded quota: none", where="quota"),
    "a privileged pod where none may be": Mistake(
        not_made, "FailedCreate", "violates PodSecurity", _pod(hostPID=True), where="restricted",
    ),
    "a ServiceAccount that does not exist": Mistake(
        not_made, "FailedCreate", 'serviceaccount "no-such" not found', _pod(serviceAccountName="no-such")
    ),
    "a port of the runtime's own": Mistake(
        created, "InvalidSpec", "podTemplate.spec.containers[0].ports[0]",
        _runtime(ports=[{"name": "mine", "containerPort": 9000}]),
    ),
    "two ports of one name": Mistake(
        created, "InvalidPodTemplate", "ports[1].name: Duplicate value",
        _pod(containers=[{"name": "beside", "image": "i", "ports": [
            {"name": "a", "containerPort": 1}, {"name": "a", "containerPort": 2}]}]),
    ),
    "a field that Kubernetes does not know": Mistake(
        created, "InvalidPodTemplate", "podTemplate.spec.nodeSelectors", _pod(nodeSelectors={"gpu": "h200"})
    ),
    "a volume that is nowhere": Mistake(
        created, "InvalidPodTemplate", "nowhere",
        _runtime(volumeMounts=[{"name": "nowhere", "mountPath": "/nowhere"}]),
    ),
    "a variable that is the operator's": Mistake(
        created, "InvalidSpec", "SHIFT_POD_NAME", _runtime(env=[{"name": "SHIFT_POD_NAME", "value": "x"}])
    ),
    "less time to end than a drain takes": Mistake(
        created, "InvalidSpec", "terminationGracePeriodSeconds", _pod(terminationGracePeriodSeconds=1)
    ),
    "a Service of somebody else in the way": Mistake(created, "NameConflict", "Service"),
    "a model that is not there": Mistake(
        ended, "ModelNotFound", "no such file",
        behaviour=Behaviour(exit_code=1, message='{"reason": "ModelNotFound", "message": "no such file"}'),
    ),
    "a model that no rank can hold": Mistake(
        ended, "OutOfMemory", "rank 0",
        behaviour=Behaviour(exit_code=1, message='{"reason": "OutOfMemory", "message": "rank 0 needs 80 GiB"}'),
    ),
    "a program that ends without a word": Mistake(ended, "ContainerExited", "139", behaviour=Behaviour(exit_code=139)),
}  # fmt: skip


@dataclass(frozen=True)
class Told:
    reason: str
    message: str
    seconds: float  # from when the mistake could be seen


@dataclass(frozen=True)
class Made:
    """`at`: time.monotonic() of its creation."""

    namespace: str
    name: str
    at: float


def make_all(plane: ControlPlane, kubelet: Kubelet, places: dict[str, str]) -> dict[str, Made]:
    """`places`: the namespace of each kind. All are made side by side."""
    made = {}
    for number, (label, mistake) in enumerate(MISTAKES.items()):
        namespace, name = places[mistake.where], f"mistake-{number}"
        kubelet.behave(namespace, name, mistake.behaviour)
        if mistake.reason == "NameConflict":
            body = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}
            plane.admin.call("POST", f"/api/v1/namespaces/{namespace}/services", body)
        plane.admin.call("POST", collection(namespace), _resource(name, mistake.spec))
        made[label] = Made(namespace, name, time.monotonic())
    return made


def _resource(name: str, spec: Object) -> Object:
    """Over a resource that would work; a podTemplate takes the place of its own."""
    made = example(name)
    made["spec"] = {**made["spec"], "podTemplate": {}, **spec}
    if "runtime" in spec:
        made["spec"]["runtime"] = {**example(name)["spec"]["runtime"], **spec["runtime"]}
    return made


def watch(plane: ControlPlane, made: dict[str, Made], seconds: float) -> dict[str, Told]:
    """What each says when it says it, or after so many seconds."""
    seen: dict[str, float] = {}
    told: dict[str, Told] = {}
    deadline = time.monotonic() + seconds
    while len(told) < len(made) and time.monotonic() < deadline:
        now = time.monotonic()
        for label, sight in _look(plane, made).items():
            mistake = MISTAKES[label]
            if label not in seen and mistake.seen(sight):
                seen[label] = made[label].at if mistake.seen is created else now
            reason, message = sight.ready()
            if label not in told and reason == mistake.reason:
                told[label] = Told(reason, message, time.monotonic() - seen.get(label, now))
        time.sleep(_POLL_SECONDS)
    missing = {label: sight for label, sight in _look(plane, made).items() if label not in told}
    return told | {label: Told(*sight.ready(), float("inf")) for label, sight in missing.items()}


def _look(plane: ControlPlane, made: dict[str, Made]) -> dict[str, Sight]:
    sights = {}
    for namespace in {one.namespace for one in made.values()}:
        resources = plane.admin.get(collection(namespace))["items"]
        deployments = plane.admin.get(f"/apis/apps/v1/namespaces/{namespace}/deployments")["items"]
        pods = plane.admin.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        for label, one in made.items():
            if one.namespace == namespace:
                sights[label] = Sight(
                    next(r for r in resources if r["metadata"]["name"] == one.name),
                    next((d for d in deployments if d["metadata"]["name"] == one.name), {}),
                    tuple(p for p in pods if p["metadata"]["labels"].get(contract.LABEL_DEPLOYMENT) == one.name),
                )
    return sights
