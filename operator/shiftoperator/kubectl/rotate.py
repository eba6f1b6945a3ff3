"""`kubectl shift rotate`: asks for a new authority of the control channel."""

from __future__ import annotations

from datetime import UTC

from shiftprotos import contract

from shiftoperator.kubectl import output
from shiftoperator.kubectl.client import Kubectl
from shiftoperator.kubectl.resource import read


def rotate(kubectl: Kubectl, name: str) -> int:
    """The exit code."""
    asked = output.now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    patched = read(kubectl.patch(name, {"metadata": {"annotations": {contract.ANNOTATION_ROTATE: asked}}}))
    print(f"the control channel of {patched.namespace}/{name} gets a new authority, asked for at {asked}")
    print("It is trusted first, signs ten minutes later, and the one before is trusted for an hour more.")
    print("Pods read it while they serve; none restarts.")
    return 0
