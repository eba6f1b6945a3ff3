"""What every condition is decided from, and how: the first check of a chain that has something to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from shiftoperator.errors import UserError
from shiftoperator.snapshot import Object, Pod, Snapshot
from shiftoperator.spec import section

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"


@dataclass(frozen=True)
class Scaling:
    """What the autoscaler says at the moment; `active` when it can decide."""

    active: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Rejected:
    """A revision of the pods that does not run although the spec asks for it; the good one does.

    `tried` when its pods failed, else it was refused before a pod was touched.
    """

    revision: str
    reason: str
    message: str
    time: str
    good: str
    tried: bool

    def as_status(self) -> Object:
        return {
            "revision": self.revision,
            "reason": self.reason,
            "message": self.message,
            "time": self.time,
            "tried": self.tried,
        }

    @classmethod
    def from_status(cls, told: Object | None, good: str) -> Rejected | None:
        if not told:
            return None
        said = [str(told.get(name, "")) for name in ("revision", "reason", "message", "time")]
        return cls(said[0], said[1], said[2], said[3], good, bool(told.get("tried", True)))


@dataclass(frozen=True)
class Outcome:
    """What one reconcile came to, beside what it saw. `desired_replicas` is 0 while suspended; `template_hash` is that
    of the pods that should run, `rollout`, `adaptive` and `schedule` what the status says of revisions, of the
    threshold and of windows of time; `ignored` is a sentence about what was asked for beside the spec and makes no
    sense."""

    desired_replicas: int
    template_hash: str
    policy_generation: int
    scaling: Scaling
    error: UserError | None = None
    rejected: Rejected | None = None
    rollout: Object = field(default_factory=dict)
    adaptive: Object | None = None
    schedule: Object | None = None
    ignored: str = ""


@dataclass(frozen=True)
class Verdict:
    status: str
    reason: str
    message: str


@dataclass(frozen=True)
class View:
    """One moment of one ShiftDeployment. `now` is written as in the status."""

    snapshot: Snapshot
    outcome: Outcome
    now: str

    @property
    def suspended(self) -> bool:
        return bool(self.snapshot.resource["spec"].get("suspend", False))

    @property
    def rollout_paused(self) -> bool:
        return bool(section(self.snapshot.resource["spec"], "rollout").get("paused", False))

    @property
    def rolled_back(self) -> Rejected | None:
        """Set when pods of the present spec failed, and those of an earlier one run in their place."""
        rejected = self.outcome.rejected
        return rejected if rejected is not None and rejected.tried else None

    @property
    def wanted(self) -> int:
        return self.outcome.desired_replicas

    @property
    def live(self) -> tuple[Pod, ...]:
        return self.snapshot.live_pods

    @property
    def ready(self) -> tuple[Pod, ...]:
        return self.snapshot.ready_pods

    @property
    def current(self) -> tuple[Pod, ...]:
        """Ready pods of the present spec."""
        return tuple(pod for pod in self.ready if pod.template_hash == self.outcome.template_hash)

    @property
    def old(self) -> tuple[Pod, ...]:
        """Pods of an earlier spec."""
        return tuple(pod for pod in self.live if pod.template_hash != self.outcome.template_hash)

    @property
    def settled(self) -> int:
        """Pods that were asked for when all of them last served."""
        return int(self.snapshot.status.get("settledReplicas", 0))

    def before(self, type_: str) -> Object | None:
        """The condition as it is written now."""
        return next((c for c in self.snapshot.status.get("conditions", ()) if c["type"] == type_), None)

    def seconds_in(self, type_: str, status: str) -> float:
        """For how long the condition has had this status; 0 when it has another one."""
        before = self.before(type_)
        if before is None or before["status"] != status:
            return 0.0
        return seconds_between(before["lastTransitionTime"], self.now)

    def deployment_condition(self, type_: str) -> Object:
        deployment = self.snapshot.children.get(("Deployment", self.snapshot.key.name), {})
        found: list[Object] = deployment.get("status", {}).get("conditions", [])
        return next((c for c in found if c["type"] == type_), {})


Check: TypeAlias = Callable[[View], Verdict | None]


def first(checks: tuple[Check, ...], view: View) -> Verdict:
    for check in checks:
        verdict = check(view)
        if verdict is not None:
            return verdict
    raise AssertionError(f"the last check of {[c.__name__ for c in checks]} must always answer")


def seconds_between(earlier: str, later: str) -> float:
    """Infinite when either is no time: nothing waits for a moment that never comes."""
    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
