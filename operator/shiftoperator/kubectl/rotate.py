"""`kubectl shift rotate`: asks for a new authority of the control channel."""

from __future__ import annotations

from shiftprotos import contract

from shiftoperator.kubectl.client import Kubectl, KubectlError
from shiftoperator.kubectl.resource import Object, read


def rotate(kubectl: Kubectl, name: str) -> int:
    """The exit code."""
    asked = _server_time(kubectl, name)
    patched = read(kubectl.patch(name, _annotated(asked)))
    print(f"the control channel of {patched.namespace}/{name} gets a new authority")
    print(f"in place of one made before {asked}, the time of the API server.")
    print("It is trusted first, signs ten minutes later, and the one before is trusted for an hour more.")
    print("Pods read it while they serve; none restarts.")
    return 0


def _server_time(kubectl: Kubectl, name: str) -> str:
    """The operator compares it with what was made in the cluster, and the clock of this machine may be wrong. The API
    server notes when a field was changed, in a trial as well."""
    tried = kubectl.try_patch(name, _annotated("trial"))
    times = [entry.get("time") or "" for entry in tried.get("metadata", {}).get("managedFields") or ()]
    if not any(times):
        raise KubectlError(
            f"the API server did not tell its time; annotate {name} with {contract.ANNOTATION_ROTATE}=TIME instead"
        )
    return max(times)


def _annotated(asked: str) -> Object:
    return {"metadata": {"annotations": {contract.ANNOTATION_ROTATE: asked}}}
