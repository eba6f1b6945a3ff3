"""What was seen of one ShiftDeployment at one moment: frozen, and free of any client library."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shiftoperator import names
from shiftoperator.errors import UserError
from shiftoperator.spec import Policy

# A sentence in a status or an Event; the API refuses longer notes.
MESSAGE_LIMIT = 900

Object = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """How a runtime container ended."""

    pod: str
    reason: str
    exit_code: int
    message: str
    time: str


@dataclass(frozen=True)
class Obstacle:
    """Why a pod's container does not run although it never failed: no node, no image, no volume."""

    reason: str
    message: str


@dataclass(frozen=True)
class Pod:
    name: str
    uid: str
    ip: str = ""
    ready: bool = False
    running: bool = False
    deleting: bool = False
    template_hash: str = ""
    # How the container ended last.
    ended: Failure | None = None
    obstacle: Obstacle | None = None
    # How often the container was started again.
    restarts: int = 0
    # None until the scheduler has looked at the pod.
    scheduled: bool | None = None
    # On its way out, and still holding its place on a node.
    draining: bool = False
    started_at: str = ""
    # Since when it is ready, or is not; seconds since 1970, None when nobody said so yet.
    changed_at: float | None = None
    # The mark of a scale-in as it stands on the pod; empty without one.
    retiring: str = ""
    # Its control port asks for a certificate; pods of an older template have none.
    control_tls: bool = False
    # What the step before the runtime took to fetch the model.
    fetch_seconds: float = 0.0
    # That step runs; when it ended well, and when it was last seen to go on, in seconds since 1970.
    fetching: bool = False
    fetched_at: float | None = None
    moved_at: float | None = None

    @property
    def failure(self) -> Failure | None:
        """How the container ended, while the pod is not ready again."""
        return None if self.ready else self.ended

    @property
    def start_began(self) -> float | None:
        """From when on a start that does not end is held against the pod, in seconds since 1970. How long a model takes
        to come is up to its size and the line; once it stands still, or is there, the time runs."""
        if self.changed_at is None:
            return None
        return max(self.changed_at, self.fetched_at or 0.0, self.moved_at or 0.0)

    @property
    def num_failures(self) -> int:
        """How often the container has ended."""
        return self.restarts + (self.ended is not None and not self.running)


@dataclass(frozen=True)
class GearState:
    name: str
    sequence: int
    tensor: int
    steps: int = 0
    tokens: int = 0
    capacity_tokens_per_second: float = 0.0
    # The smallest measured step; 0 when none was.
    step_seconds: float = 0.0


@dataclass(frozen=True)
class Load:
    running_requests: int = 0
    waiting_requests: int = 0
    waiting_tokens: int = 0
    max_running_requests: int = 0
    kv_blocks_total: int = 0
    kv_blocks_free: int = 0
    oldest_wait_seconds: float = 0.0
    # By percentile: 50, 90, 95, 99; an older runtime says only 95.
    ttft_seconds: Mapping[int, float] = field(default_factory=dict)
    tpot_seconds: Mapping[int, float] = field(default_factory=dict)
    prompt_tokens_per_second: float = 0.0
    output_tokens_per_second: float = 0.0

    def ttft_at(self, percentile: int) -> float:
        """Seconds to the first token; 0 when no request finished in the last minute."""
        return _at(self.ttft_seconds, percentile)

    def tpot_at(self, percentile: int) -> float:
        """Seconds per output token; 0 when no request finished in the last minute."""
        return _at(self.tpot_seconds, percentile)


def _at(seconds: Mapping[int, float], percentile: int) -> float:
    """A runtime of the version before reports the 95th percentile only."""
    return seconds.get(percentile) or seconds.get(95, 0.0)


def slowest(loads: Collection[Load], percentile: int) -> tuple[float, float]:
    """Seconds to the first token and per output token, of the slowest pod each; 0 when nothing was measured."""
    # A request that still waits for its first token has already taken this long.
    ttft = max((max(load.ttft_at(percentile), load.oldest_wait_seconds) for load in loads), default=0.0)
    return ttft, max((load.tpot_at(percentile) for load in loads), default=0.0)


@dataclass(frozen=True)
class ClientTls:
    """What shows a pod that we are the operator, and us that it is the pod; all PEM."""

    authorities: bytes
    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Access:
    """What opens the control ports of one ShiftDeployment's pods."""

    token: str = field(repr=False)
    tls: ClientTls | None = None


@dataclass(frozen=True)
class SelfCheck:
    passed: bool
    message: str


@dataclass(frozen=True)
class Phase:
    """One phase of a pod's start-up, as far as it came."""

    name: str
    seconds: float = 0.0
    num_bytes: int = 0
    done: bool = False
    # 0 while it is not known, or does not apply.
    total_bytes: int = 0


@dataclass(frozen=True)
class RuntimeState:
    """What a pod said of itself on its control port."""

    read_at: float
    ready: bool = False
    draining: bool = False
    policy: Policy = field(default_factory=Policy)
    generation_accepted: int = 0
    generation_applied: int = 0
    gears: tuple[GearState, ...] = ()
    base_gear: str = ""
    threshold_tokens: int = 0
    threshold_source: str = ""
    crossover_tokens: int = 0
    crossover_reason: str = ""
    self_check: SelfCheck | None = None
    load: Load = field(default_factory=Load)
    phases: tuple[Phase, ...] = ()
    dtype: str = ""
    version: str = ""


@dataclass(frozen=True)
class Snapshot:
    """The resource, its children by (kind, name), its pods, and what they said, by pod uid."""

    resource: Object
    children: Mapping[tuple[str, str], Object]
    pods: tuple[Pod, ...]
    states: Mapping[str, RuntimeState] = field(default_factory=dict)
    external_scaler: str | None = None
    # Why nobody knows whether there is an external scaler.
    scaler_unread: UserError | None = None
    # The spec has changed since.
    outdated: bool = False
    # Why some of the children or the pods are as they were seen before, or missing here.
    unread: UserError | None = None
    # Some were never seen.
    partial: bool = False

    @property
    def key(self) -> names.Key:
        return names.Key(self.resource["metadata"]["namespace"], self.resource["metadata"]["name"])

    @property
    def generation(self) -> int:
        return int(self.resource["metadata"].get("generation", 0))

    @property
    def status(self) -> Object:
        status: Object = self.resource.get("status") or {}
        return status

    @property
    def live_pods(self) -> tuple[Pod, ...]:
        """Pods that are not on their way out."""
        return tuple(pod for pod in self.pods if not pod.deleting)

    @property
    def ready_pods(self) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.live_pods if pod.ready)

    def answered(self, resource: Object) -> Snapshot:
        """With the status as a write of it left it. A spec that changed meanwhile is for the next pass: this one would
        name what it makes after the new one and fill it from the old one. The old version refuses to be scaled."""
        if resource["metadata"]["generation"] == self.generation:
            # The same spec, as it was read: an answer may bring one that an older CRD let in, of any shape.
            return replace(self, resource={**resource, "spec": self.resource["spec"]})
        return replace(self, resource={**self.resource, "status": resource.get("status", {})}, outdated=True)

    def after(self, written: Mapping[tuple[str, str], Object | None]) -> Snapshot:
        """With children as writes left them; None has been deleted."""
        left = {**self.children, **written}
        return replace(self, children={which: child for which, child in left.items() if child is not None})

    def revisions(self) -> tuple[Object, ...]:
        return tuple(child for (kind, _), child in self.children.items() if kind == "ControllerRevision")


def identity(obj: Object) -> tuple[str, str]:
    """(kind, name), by which a snapshot knows its children."""
    return obj["kind"], obj["metadata"]["name"]
