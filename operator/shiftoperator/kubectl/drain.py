"""`kubectl shift drain`: replaces one pod, and lets it finish what it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.kubectl.client import Kubectl, Object, TooManyError
from shiftoperator.kubectl.errors import NOT_IN_TIME, RefusedError
from shiftoperator.kubectl.output import note, paragraph, progress, show, show_json
from shiftoperator.kubectl.resource import Deployment, read
from shiftoperator.kubectl.waiting import until

# Beyond the pod's grace period: for the one that takes its place.
START_SECONDS = 600.0
# Of Kubernetes, where a pod names none.
_GRACE_SECONDS = 30
# How a pod is taken away.
_EVICTION, _DELETION = "Eviction", "Deletion"


@dataclass(frozen=True)
class Asked:
    """`wait_seconds`: None for the pod's grace period and a start; `force`: whatever a PodDisruptionBudget says."""

    yes: bool = False
    wait_seconds: float | None = None
    force: bool = False
    as_json: bool = False


def drain(kubectl: Kubectl, name: str, asked: Asked) -> int:
    """The exit code. Raises RefusedError when the pod is not to be drained this way, or the person says no."""
    pod = kubectl.get(name, "pod")
    owner = pod.get("metadata", {}).get("labels", {}).get(contract.LABEL_DEPLOYMENT)
    if not owner:
        raise RefusedError(f"pod {name} belongs to no ShiftDeployment; for others there is `kubectl delete pod {name}`")
    deployment = read(kubectl.get(owner))
    before = _ready(kubectl, owner)
    _announce(_announcement(pod, deployment, before), asked.as_json)
    _confirm(asked)
    _take_away(kubectl, pod, deployment, asked.force)
    progress(f"pod {name} drains", asked.as_json)
    seconds = _grace(pod) + START_SECONDS if asked.wait_seconds is None else asked.wait_seconds
    done = seconds > 0 and until(_gone_or_replaced(kubectl, pod, owner, len(before)), seconds)
    if asked.as_json:
        show_json(_told(deployment, name, asked, done, _ready(kubectl, owner)))
    elif done:
        progress(f"pod {name} is gone; {len(_ready(kubectl, owner))} pods are ready", as_json=False)
    return 0 if done or seconds <= 0 else NOT_IN_TIME


def _announcement(pod: Object, deployment: Deployment, ready: list[str]) -> list[str]:
    name, owner = pod["metadata"]["name"], deployment.name
    others = [other for other in ready if other != name]
    lines = [
        f"Pod {name} of {deployment.namespace}/{owner} takes no new requests from now on and finishes those it has.",
        f"After at most {_grace(pod)} s (its termination grace period) it is killed with what still runs.",
    ]
    if deployment.suspended or pod["metadata"].get("annotations", {}).get(contract.ANNOTATION_RETIRING):
        lines.append("It leaves already: no other pod takes its place.")
    else:
        lines.append("The Deployment replaces it; the new pod loads the model before it serves.")
    if others:
        lines.append(f"Until then {len(others)} of {deployment.pods_asked} pods serve: {', '.join(others)}.")
    else:
        lines.append("No other pod is ready: until the new one is, NOTHING SERVES.")
    return lines


def _announce(lines: list[str], as_json: bool) -> None:
    if not as_json:
        show(*map(paragraph, lines))
        return
    for line in lines:
        note(line)


def _confirm(asked: Asked) -> None:
    if asked.yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError("nobody can be asked here; say --yes to drain the pod")
    print("Drain it? [y/N] ", end="", flush=True, file=sys.stderr if asked.as_json else sys.stdout)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was done")


def _take_away(kubectl: Kubectl, pod: Object, deployment: Deployment, force: bool) -> None:
    name = pod["metadata"]["name"]
    if force:
        kubectl.delete(name, "pod")
        return
    try:
        kubectl.evict(deployment.namespace, name, pod["metadata"]["uid"])
    except TooManyError as error:
        raise RefusedError(
            f"pod {name} was not drained: a PodDisruptionBudget forbids it now. Wait until the other pods are ready "
            f"(kubectl shift status {deployment.name}), raise spec.disruption.maxUnavailable (now "
            f"{deployment.part('disruption').get('maxUnavailable', 1)}), or say --force to delete the pod all the same"
        ) from error


def _told(deployment: Deployment, name: str, asked: Asked, done: bool, ready: list[str]) -> Object:
    return {
        "namespace": deployment.namespace,
        "name": deployment.name,
        "pod": name,
        "by": _DELETION if asked.force else _EVICTION,
        "done": done,
        "readyPods": ready,
    }


def _gone_or_replaced(kubectl: Kubectl, pod: Object, owner: str, ready_before: int) -> Callable[[], str]:
    name, uid = pod["metadata"]["name"], pod["metadata"].get("uid")

    def look() -> str:
        left = kubectl.find(name, "pod")
        if left is not None and left["metadata"].get("uid") == uid:
            return f"pod {name} finishes what it runs"
        found = kubectl.find(owner)
        ready = len(_ready(kubectl, owner))
        enough = 0 if found is None else min(ready_before, read(found).pods_asked)
        return "" if ready >= enough else f"{ready} of {enough} pods are ready; the new one starts"

    return look


def _ready(kubectl: Kubectl, owner: str) -> list[str]:
    """Names of the pods that serve and stay."""
    pods = kubectl.list("pods", "-l", names.selector_text(owner))
    return sorted(pod["metadata"]["name"] for pod in pods if _serves(pod))


def _serves(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")


def _grace(pod: Object) -> int:
    return int(pod.get("spec", {}).get("terminationGracePeriodSeconds", _GRACE_SECONDS))
