"""`kubectl shift policy`: shows the shift policy, or changes it and waits until every ready pod has applied it."""

from __future__ import annotations

from shiftprotos import contract

from shiftoperator.errors import INVALID_SPEC
from shiftoperator.kubectl import explain
from shiftoperator.kubectl.client import Kubectl, Object
from shiftoperator.kubectl.errors import NOT_IN_TIME, RefusedError
from shiftoperator.kubectl.output import heading, progress, show, show_json, table
from shiftoperator.kubectl.resource import Deployment, read
from shiftoperator.kubectl.waiting import until

MODES = {"auto": "Auto", "latency": "Latency", "throughput": "Throughput"}
WAIT_SECONDS = 30.0


def told(deployment: Deployment) -> Object:
    return {
        "namespace": deployment.namespace,
        "name": deployment.name,
        "generation": deployment.generation,
        "observedGeneration": deployment.observed_generation,
        "policy": explain.policy(deployment),
    }


def display(deployment: Deployment) -> None:
    said = explain.policy(deployment)
    rows = [("asked", *_cells(said["asked"])), ("set", *_cells(said["set"]))]
    sync = deployment.condition(contract.CONDITION_POLICY_IN_SYNC)
    synced = "no operator has seen it yet" if sync is None else f"{sync.status}, {sync.reason}: {sync.message}"
    show(
        heading(f"{deployment.namespace}/{deployment.name}"),
        table(("", "POLICY", "THRESHOLD"), rows, indent=2),
        table(("", ""), [*_schedule(said), ("generation", said["generation"]), ("in sync", synced)], indent=2),
    )


def _schedule(told: Object) -> list[tuple[str, object]]:
    words = explain.schedule_words(told["schedule"])
    return [("schedule", words)] if words else []


def _cells(policy: Object) -> tuple[str, str]:
    threshold = policy["thresholdTokens"]
    return str(policy["mode"] or "-"), "measured crossover" if threshold is None else f"{threshold} tokens"


def change(kubectl: Kubectl, name: str, wanted: Object, wait_seconds: float, as_json: bool = False) -> int:
    """`wanted`: what of spec.shift to merge; null removes. The exit code."""
    patched = read(kubectl.patch(name, {"spec": {"shift": wanted}}))
    words = f"policy of {patched.namespace}/{name} is {_text(patched)} in the spec, generation {patched.generation}"
    progress(words, as_json)
    found, code = _followed(kubectl, patched, wait_seconds, as_json)
    if as_json:
        show_json(told(found))
    return code


def _followed(kubectl: Kubectl, patched: Deployment, wait_seconds: float, as_json: bool) -> tuple[Deployment, int]:
    """Until it holds, with the exit code."""
    found = patched
    if wait_seconds <= 0:
        return found, 0
    if not patched.pods_asked:
        progress("no pod is asked for; those that start later begin with this policy", as_json)
        return found, 0

    def look() -> str:
        nonlocal found
        found = read(kubectl.get(patched.name))
        return _missing(found, patched)

    if not until(look, wait_seconds):
        return found, NOT_IN_TIME
    by = f"applied by {found.ready_pods} ready pods, policy generation {found.policy_generation}{_otherwise(found)}"
    progress(by, as_json)
    return found, 0


def _otherwise(found: Deployment) -> str:
    """Why what is set is not what was asked for, as the operator tells it."""
    told = explain.policy(found)
    if told["set"] == told["asked"]:
        return ""
    mode, threshold = _cells(told["set"])
    sync = found.condition(contract.CONDITION_POLICY_IN_SYNC)
    why = explain.schedule_words(told["schedule"]) if (told["schedule"] or {}).get("name") else ""
    why = why or ("" if sync is None else sync.message)
    return f": {mode} ({threshold}) and not what was asked for; {why}"


def _text(deployment: Deployment) -> str:
    mode, threshold = _cells(explain.policy(deployment)["asked"])
    return f"{mode} ({threshold})"


def _missing(found: Deployment, patched: Deployment) -> str:
    """What is still to come before the policy that was patched holds; somebody else's change of it ends the wait."""
    if explain.policy(found)["asked"] != explain.policy(patched)["asked"]:
        raise RefusedError(f"somebody else changed the policy meanwhile: it is {_text(found)} now")
    if not found.current:
        return f"no operator has seen generation {found.generation} yet"
    ready = found.condition(contract.CONDITION_READY)
    if ready is not None and ready.reason == INVALID_SPEC and ready.generation >= found.generation:
        raise RefusedError(f"the operator refused the spec: {ready.message}")
    if explain.in_sync(found):
        return ""
    told = found.condition(contract.CONDITION_POLICY_IN_SYNC)
    return "PolicyInSync is not told yet" if told is None else told.message


def wanted(mode: str | None, threshold: int | None, no_threshold: bool) -> Object:
    """A merge patch of spec.shift; empty: only show it."""
    changed: Object = {} if mode is None else {"policy": MODES[mode]}
    if threshold is not None:
        if not contract.MIN_THRESHOLD_TOKENS <= threshold <= contract.MAX_THRESHOLD_TOKENS:
            bounds = f"{contract.MIN_THRESHOLD_TOKENS}..{contract.MAX_THRESHOLD_TOKENS}"
            raise RefusedError(f"--threshold {threshold}: use {bounds} tokens, or --no-threshold")
        changed["thresholdTokens"] = threshold
    if no_threshold:
        changed["thresholdTokens"] = None
    return changed
