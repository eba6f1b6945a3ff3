"""`kubectl shift drain`: replaces one pod, and lets it finish what it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.kubectl.client import Kubectl, Object
from shiftoperator.kubectl.errors import NOT_IN_TIME, RefusedError
from shiftoperator.kubectl.output import paragraph, show
from shiftoperator.kubectl.resource import Deployment, read
from shiftoperator.kubectl.waiting import until

# Beyond the pod's grace period: for the one that takes its place.
START_SECONDS = 600.0
# Of Kubernetes, where a pod names none.
_GRACE_SECONDS = 30


def drain(kubectl: Kubectl, name: str, yes: bool, wait_seconds: float | None) -> int:
    """The exit code. Raises RefusedError when the pod is not to be drained this way, or the person says no."""
    pod = kubectl.get(name, "pod")
    owner = pod.get("metadata", {}).get("labels", {}).get(contract.LABEL_DEPLOYMENT)
    if not owner:
        raise RefusedError(f"pod {name} belongs to no ShiftDeployment; for others there is `kubectl delete pod {name}`")
    deployment = read(kubectl.get(owner))
    before = _ready(kubectl, owner)
    show(*map(paragraph, _announcement(pod, deployment, before)))
    _confirm(yes)
    kubectl.delete(name, "pod")
    print(f"pod {name} drains")
    seconds = _grace(pod) + START_SECONDS if wait_seconds is None else wait_seconds
    return _wait(kubectl, pod, owner, len(before), seconds)


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


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError("nobody can be asked here; say --yes to drain the pod")
    print("Drain it? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was done")


def _wait(kubectl: Kubectl, pod: Object, owner: str, ready_before: int, seconds: float) -> int:
    if seconds <= 0:
        return 0
    if not until(_gone_or_replaced(kubectl, pod, owner, ready_before), seconds):
        return NOT_IN_TIME
    print(f"pod {pod['metadata']['name']} is gone; {len(_ready(kubectl, owner))} pods are ready")
    return 0


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
