"""Reads what matters of a Pod object."""

from __future__ import annotations

import json
from datetime import datetime

from shiftprotos import contract

from shiftoperator import names
from shiftoperator.snapshot.model import MESSAGE_LIMIT, Failure, Object, Obstacle, Pod


def pod_from(obj: Object) -> Pod:
    metadata, status = obj["metadata"], obj.get("status", {})
    container = _container(status)
    said = {c["type"]: c["status"] for c in status.get("conditions", ())}
    ready, over = said.get("Ready") == "True", status.get("phase") in ("Failed", "Succeeded")
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        ip=status.get("podIP", ""),
        ready=ready,
        running="running" in container.get("state", {}),
        deleting="deletionTimestamp" in metadata or over,
        template_hash=metadata.get("annotations", {}).get(contract.ANNOTATION_TEMPLATE_HASH, ""),
        ended=_failure(obj, container),
        obstacle=None if ready else _obstacle(status, container),
        restarts=int(container.get("restartCount", 0)),
        scheduled=said["PodScheduled"] == "True" if "PodScheduled" in said else None,
        draining="deletionTimestamp" in metadata and not over and said.get("PodScheduled") != "False",
        started_at=container.get("state", {}).get("running", {}).get("startedAt") or "",
        changed_at=_changed_at(obj),
        retiring=metadata.get("annotations", {}).get(contract.ANNOTATION_RETIRING, ""),
        control_tls=_has_control_tls(obj),
        fetch_seconds=_fetch_seconds(status),
        fetching="running" in _of(status, "initContainerStatuses", names.FETCH_CONTAINER).get("state", {}),
        fetched_at=_fetched_at(status),
    )


def _has_control_tls(obj: Object) -> bool:
    runtime = (c for c in obj.get("spec", {}).get("containers", ()) if c["name"] == names.RUNTIME_CONTAINER)
    return any(e["name"] == contract.ENV_CONTROL_TLS_FOLDER for container in runtime for e in container.get("env", ()))


def _changed_at(obj: Object) -> float | None:
    """Of readiness. A pod that waited for a node starts when it has one: the kubelet sets the condition then."""
    conditions = obj.get("status", {}).get("conditions", ())
    ready: Object = next((c for c in conditions if c["type"] == "Ready"), {})
    text = ready.get("lastTransitionTime") or obj["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(text).timestamp() if text else None


def _container(status: Object) -> Object:
    """The step that fetches the model until it has ended well, then the runtime."""
    step = _of(status, "initContainerStatuses", names.FETCH_CONTAINER)
    return _of(status, "containerStatuses", names.RUNTIME_CONTAINER) if not step or _ended_well(step) else step


def _of(status: Object, kind: str, name: str) -> Object:
    statuses: list[Object] = status.get(kind, [])
    return next((c for c in statuses if c["name"] == name), {})


def _ended_well(step: Object) -> bool:
    ended = step.get("state", {}).get("terminated")
    return bool(ended) and ended.get("exitCode") == 0


def _fetched_at(status: Object) -> float | None:
    step = _of(status, "initContainerStatuses", names.FETCH_CONTAINER)
    text = step.get("state", {}).get("terminated", {}).get("finishedAt")
    return datetime.fromisoformat(text).timestamp() if text and _ended_well(step) else None


def _fetch_seconds(status: Object) -> float:
    """How long the model's fetch took, in the try that ended well; 0 without one."""
    step = _of(status, "initContainerStatuses", names.FETCH_CONTAINER)
    ended = step.get("state", {}).get("terminated", {})
    times = [datetime.fromisoformat(ended[name]) for name in ("startedAt", "finishedAt") if ended.get(name)]
    return (times[1] - times[0]).total_seconds() if len(times) == 2 and _ended_well(step) else 0.0


def _failure(obj: Object, container: Object) -> Failure | None:
    """The end of the container's present run, else of the run before. `obj`: its pod."""
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    if not ended:
        return None
    code = int(ended.get("exitCode", 0))
    reason, message = _told(ended.get("message", ""))
    if not reason and ended.get("reason") == "OOMKilled":
        reason = contract.REASON_OUT_OF_MEMORY
        message = "the kernel killed the container at its memory limit; raise spec.runtime.resources.limits.memory"
    if not reason:
        tail = " ".join(message.split())[-400:]
        reason, message = "ContainerExited", f"exit code {code}" + (f": {tail}" if tail else "; see the pod's log")
    message = _with_its_secret(obj, message)
    return Failure(obj["metadata"]["name"], reason, code, message[:MESSAGE_LIMIT], ended.get("finishedAt") or "")


def _with_its_secret(obj: Object, message: str) -> str:
    """A pod knows where its certificate lies, and not what it is called outside."""
    volumes = obj.get("spec", {}).get("volumes") or ()
    mounted: Object = next((volume for volume in volumes if volume["name"] == names.SERVING_TLS_VOLUME), {})
    if "secret" not in mounted or names.SERVING_TLS_MOUNT not in message:
        return message
    secret = mounted["secret"].get("secretName")
    said = f"{names.SERVING_TLS_MOUNT} is Secret {secret} of service.tls; correct the key of it that is named"
    return f"{message[: MESSAGE_LIMIT - len(said) - 2]}; {said}"


def _told(text: str) -> tuple[str, str]:
    """`{"reason", "message"}` as the runtime writes it to the termination log; ("", text) for anything else."""
    try:
        told = json.loads(text)
    except ValueError:
        return "", text
    if not isinstance(told, dict) or not isinstance(told.get("reason"), str):
        return "", text
    reason = "".join(c for c in told["reason"] if c.isalnum())[:64]
    return reason, str(told.get("message", ""))


# Reasons under which a container waits that pass by themselves.
_PASSING = {"", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"}


def _obstacle(status: Object, container: Object) -> Obstacle | None:
    waiting = container.get("state", {}).get("waiting", {})
    reason = waiting.get("reason", "")
    if reason not in _PASSING:
        return Obstacle(reason, (waiting.get("message") or reason)[:MESSAGE_LIMIT])
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message") or "no node was found"
            reason = "SchedulingGated" if condition.get("reason") == "SchedulingGated" else "Unschedulable"
            return Obstacle(reason, message[:MESSAGE_LIMIT])
    return None
