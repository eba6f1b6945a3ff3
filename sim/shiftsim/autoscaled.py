"""Pods under the real autoscaler: what it orders comes after a start-up time, and who leaves finishes first.

The loop is the operator's: every two seconds it reads the pods, asks `shiftcore.scaling` how many there should be, and
pins the throughput gear of those that serve while others load (`shiftcore.bias`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from shiftcore.bias import Staffing, biased_mode
from shiftcore.policy import Mode
from shiftcore.scaling import Limits, Memory, Observation, decide, least_loaded

from shiftsim.engine import EngineOptions
from shiftsim.errors import UserError
from shiftsim.fleet import tokenized
from shiftsim.generation import Generation
from shiftsim.measures import Measures
from shiftsim.scaled_pod import Pod
from shiftsim.trace import Arrival
from shiftsim.work import Executor

POLL_SECONDS = 2.0
HOUR = 3600.0


@dataclass(frozen=True)
class Targets:
    """Of a request: it attains them when its own times do."""

    ttft_seconds: float
    tpot_seconds: float
    percentile: int = 95  # of the pods' times, which the autoscaler compares with them


class Attainment(Measures):
    """How many requests met both targets."""

    def __init__(self, targets: Targets) -> None:
        super().__init__()
        self._targets = targets
        self.attained = 0

    def finished(self, request: Generation, now: float) -> None:
        super().finished(request, now)
        first = request.first_token_seconds
        assert first is not None, f"request {request.id} ends without a token"
        fast = first - request.arrival_seconds <= self._targets.ttft_seconds
        outputs = request.num_output - 1
        self.attained += fast and (not outputs or (now - first) / outputs <= self._targets.tpot_seconds)


class ScaledFleet:
    """``shift_first`` False: capacity is that of the tp gear, and nobody waits for a shift, as elsewhere."""

    def __init__(
        self, executor: Executor, options: EngineOptions, limits: Limits, targets: Targets, start_seconds: float,
        *, shift_first: bool,
    ) -> None:  # fmt: skip
        if limits.minimum < 1:
            raise UserError(
                f"--min-replicas {limits.minimum} must be at least 1: nobody is there to wake a fleet of none"
            )
        self._executor, self._options, self._targets = executor, options, targets
        self._limits = replace(
            limits,
            may_shift=shift_first and len(executor.table.gears) > 1,
            pod_start_seconds=max(limits.pod_start_seconds, start_seconds),
            ttft_seconds=targets.ttft_seconds,
            tpot_seconds=targets.tpot_seconds,
        )
        self._shift_first, self._start_seconds = shift_first, start_seconds
        self._memory = Memory()
        self._tick = 0.0
        self._named = 0
        self._biased = False
        self._calm_since: float | None = None
        self.measures = Attainment(targets)
        self.pods: list[Pod] = []
        self.pod_seconds = 0.0
        self.arrived = self.refused = self.orders = self.peak_pods = 0
        self.reasons: Counter[str] = Counter()  # of changes
        for _ in range(limits.minimum):
            self._order(0.0, 0.0)

    @property
    def gpu_hours(self) -> float:
        """Of all pods from their order on, start-up included."""
        return self.pod_seconds * self._executor.table.base.ranks / HOUR

    @property
    def attainment(self) -> float:
        """Share of the requests that met both targets; a refused one did not."""
        return self.measures.attained / self.arrived if self.arrived else 1.0

    def replay(self, arrivals: Iterable[Arrival], progress: Callable[[int], None] = lambda arrived: None) -> None:
        """To the last token of the last request."""
        for ready, arrival in tokenized(arrivals, self._executor.tokenize_seconds):
            self._until(ready)
            pods = [pod for pod in self.pods if not pod.leaving and pod.ready_seconds <= ready]
            for pod in pods:
                pod.engine.advance(ready)
            request = Generation.of(self.arrived, arrival.seconds, arrival.prompt_tokens, arrival.output_tokens)
            self.arrived += 1
            chosen = min(pods, key=lambda pod: pod.engine.unfinished)
            self.refused += bool(chosen.engine.submit(request, ready))
            progress(self.arrived)
        while any(pod.engine.unfinished for pod in self.pods):
            self._until(self._tick + POLL_SECONDS)
        for pod in self.pods:
            self.pod_seconds += max(0.0, self.measures.last_end_seconds - pod.ordered_seconds)

    def _until(self, now: float) -> None:
        while self._tick <= now:
            self._poll(self._tick)
            self._tick += POLL_SECONDS

    def _poll(self, now: float) -> None:
        for pod in self.pods:
            pod.engine.advance(now)
        for pod in [pod for pod in self.pods if pod.leaving and not pod.engine.unfinished]:
            self._remove(pod, max(now, pod.engine.now))
        staying = [pod for pod in self.pods if not pod.leaving]
        ready = sorted((pod for pod in staying if pod.ready_seconds <= now), key=lambda pod: pod.ready_seconds)
        seen = Observation(
            replicas=len(staying),
            ready=len(ready),
            pods=tuple(
                pod.load(now, self._targets.percentile, self._executor.table, latency=not self._shift_first)
                for pod in ready
            ),
            starting_seconds=tuple(now - pod.ordered_seconds for pod in staying if pod.ready_seconds > now),
            stopping=len(self.pods) - len(staying),
        )
        decision, self._memory = decide(self._limits, seen, now, self._memory)
        if decision.replicas != len(staying):
            self.reasons[str(decision.reason)] += 1
        for _ in range(decision.replicas - len(staying)):
            self._order(now, self._start_seconds)
            self.orders += 1
        self._leave(now, seen, staying, len(staying) - decision.replicas)
        self._bias(now, ready, decision.replicas)

    def _order(self, now: float, start_seconds: float) -> None:
        self._named += 1
        pod = Pod(f"p{self._named}", now, now + start_seconds, self._executor, self._options, self.measures)
        self.pods.append(pod)
        self.peak_pods = max(self.peak_pods, len(self.pods))

    def _leave(self, now: float, seen: Observation, staying: list[Pod], count: int) -> None:
        """Those that start first, the youngest of them; then the least loaded."""
        for pod in [pod for pod in staying[::-1] if pod.ready_seconds > now][: max(0, count)]:
            self._remove(pod, now)
            count -= 1
        for name in least_loaded(seen.pods, max(0, count)):
            next(pod for pod in staying if pod.name == name).leaving = True

    def _remove(self, pod: Pod, now: float) -> None:
        self.pods.remove(pod)
        self.pod_seconds += now - pod.ordered_seconds

    def _bias(self, now: float, ready: list[Pod], asked: int) -> None:
        wanted = self._options.policy
        staffing = Staffing(asked, len(ready), False, max((pod.busy for pod in ready), default=0.0))
        self._calm_since = (now if self._calm_since is None else self._calm_since) if staffing.calm else None
        calm = 0.0 if self._calm_since is None else now - self._calm_since
        if wanted.gear is not None:
            return
        mode = biased_mode(wanted.mode, staffing, self._biased, calm)
        self._biased = mode is Mode.THROUGHPUT and wanted.mode is not Mode.THROUGHPUT
        policy = replace(wanted, mode=mode)
        for pod in self.pods:
            if pod.engine.policy != policy:
                pod.engine.policy = policy


def as_json(name: str, fleet: ScaledFleet) -> dict[str, Any]:
    measures = fleet.measures
    return {
        "autoscaler": name,
        "gpu_hours": fleet.gpu_hours,
        "slo_attainment": fleet.attainment,
        "requests": {"arrived": fleet.arrived, "finished": measures.total.count, "refused": fleet.refused},
        "ordered_pods": fleet.orders,
        "most_pods": fleet.peak_pods,
        "changes": dict(sorted(fleet.reasons.items())),
        "ttft_seconds": {f"p{percent}": measures.ttft.percentile(percent) for percent in (50, 95, 99)},
        "tpot_seconds": {f"p{percent}": measures.tpot.percentile(percent) for percent in (50, 95, 99)},
    }
