"""The operator's autoscaler in the loop: it looks at simulated pods every few seconds, decides, and pods come and go.

Deciding is `shiftcore.scaling`; what carries it out here is as in the operator. A new pod serves after its start-up
time. The least loaded pods leave first: they take no new requests and end what they have, and all leave when the last
of them is empty or the time to drain is over. Until then nobody is ordered; a pod that is empty at the moment at which
those that stay ask for more is replaced, since a drained pod cannot serve again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from shiftcore import scaling

from shiftsim.engine import EngineOptions
from shiftsim.fleet import Progress, tokenized
from shiftsim.generation import Generation
from shiftsim.pods import Pod, Start
from shiftsim.refusals import Refusals
from shiftsim.slo import Attainment, Slo
from shiftsim.trace import Arrival
from shiftsim.work import Executor

POLL_SECONDS = 2.0  # as the operator's default


@dataclass(frozen=True)
class Service:
    """``limits`` has targets and windows; ``drain_seconds``: a leaving pod is cut off after so long."""

    limits: scaling.Limits
    slo: Slo
    start: Start = field(default_factory=Start)
    drain_seconds: float = 300.0
    poll_seconds: float = POLL_SECONDS


@dataclass(frozen=True)
class Event:
    """A change of the size asked for. Seconds on the trace's clock."""

    seconds: float
    source: int
    target: int
    reason: str
    message: str


@dataclass(frozen=True)
class Size:
    """Pods from this moment on: asked for, serving, and holding GPUs (those that load or drain too)."""

    seconds: float
    asked: int
    serving: int
    holding: int


class ScaledFleet:
    """Pods of one layout under the autoscaler; begins with the minimum, ready."""

    def __init__(self, executor: Executor, options: EngineOptions, service: Service) -> None:
        self.service = service
        self.measures = Attainment(service.slo)
        self.events: list[Event] = []
        self.sizes: list[Size] = []
        self.arrived = self.cut_off = 0
        self.refusals = Refusals()
        self.gpu_seconds = 0.0
        self.gate_seconds = 0.0  # in which nothing but the gate kept a high utilisation from ordering a pod
        self.executor, self.options = executor, options
        self._memory = scaling.Memory()
        self._next_poll = 0.0
        self._named = 0
        self._replicas = service.limits.minimum
        self._pods: list[Pod] = []  # longest ready first
        self._order(-service.start.total_seconds)

    def replay(self, arrivals: Iterable[Arrival], progress: Progress = lambda arrived: None) -> None:
        """To the last token of the last request."""
        for ready, arrival in tokenized(_from_the_first(arrivals), self.executor.tokenize_seconds):
            self._pass(ready)
            self._submit(ready, arrival)
            progress(self.arrived)
        while any(pod.engine.unfinished for pod in self._pods):
            self._pass(self._next_poll + self.service.poll_seconds / 2)
        end = self.measures.last_end_seconds
        for pod in self._pods:
            self._account(pod, end)

    @property
    def attainment(self) -> float:
        """Share of the requests that met both targets; who was refused or cut off did not."""
        return self.measures.met / self.arrived if self.arrived else 1.0

    @property
    def refused(self) -> int:
        return len(self.refusals)

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / 3600

    # --- requests -----------------------------------------------------------------------------------------------------

    def _pass(self, until: float) -> None:
        while self._next_poll <= until:
            self._advance(self._next_poll)
            self._poll(self._next_poll)
            self._next_poll += self.service.poll_seconds
        self._advance(until)

    def _advance(self, until: float) -> None:
        for pod in self._pods:
            pod.engine.advance(until)

    def _submit(self, now: float, arrival: Arrival) -> None:
        request = Generation.of(self.arrived, arrival.seconds, arrival.prompt_tokens, arrival.output_tokens)
        self.arrived += 1
        pod = min(self._serving(now), key=lambda pod: pod.engine.unfinished)
        if refused := pod.submit(request, now):
            self.refusals.add(refused)

    def _serving(self, now: float) -> list[Pod]:
        return [pod for pod in self._pods if pod.ready_seconds <= now and pod.drained_since is None]

    # --- the autoscaler -----------------------------------------------------------------------------------------------

    def _poll(self, now: float) -> None:
        leaving = [pod for pod in self._pods if pod.drained_since is not None]
        seen = self._observation(now, len(leaving))
        decide = scaling.decide_while_leaving if leaving else scaling.decide
        decision, self._memory = decide(self.service.limits, seen, now, self._memory)
        if decision.reason is scaling.Reason.SHIFT_FIRST:
            self.gate_seconds += self.service.poll_seconds
        if leaving:
            self._retire(now, leaving, decision)
        elif decision.action is scaling.Action.OUT:
            self._resize(now, decision)
            self._order(now)
        elif decision.action is scaling.Action.IN:
            self._scale_in(now, seen, decision)
        self._record(now)

    def _observation(self, now: float, leaving: int) -> scaling.Observation:
        serving = self._serving(now)
        starting = tuple(now - pod.ordered_seconds for pod in self._pods if pod.ready_seconds > now)
        return scaling.Observation(
            replicas=self._replicas - leaving,
            ready=len(serving),
            pods=tuple(pod.load(now, self.service.slo.percentile) for pod in serving),
            starting_seconds=starting,
            stopping=leaving,
        )

    def _scale_in(self, now: float, seen: scaling.Observation, decision: scaling.Decision) -> None:
        if not seen.missing:
            chosen = scaling.least_loaded(seen.pods, seen.replicas - decision.replicas)
            for pod in self._pods:
                if pod.name in chosen:
                    pod.drained_since = now
            self._event(now, self._replicas - len(chosen), decision)
            return
        # Pods that do not serve leave first, the youngest of them.
        target = max(decision.replicas, seen.replicas - seen.missing)
        for pod in [pod for pod in self._pods[::-1] if pod.ready_seconds > now][: self._replicas - target]:
            self._remove(pod, now)
        self._event(now, target, decision)
        self._replicas = target

    def _retire(self, now: float, leaving: list[Pod], decision: scaling.Decision) -> None:
        """As the operator's retire.step, but that a pod is gone as soon as it may go."""
        done = [pod for pod in leaving if self._may_go(pod, now)]
        undone = decision.action is scaling.Action.OUT
        if not undone and len(done) < len(leaving):
            return
        for pod in done:
            self.cut_off += pod.engine.unfinished
            self._remove(pod, now)
        if not undone:
            self._replicas -= len(done)
        elif done:
            self.events.append(Event(now, len(self._pods), self._replicas, "ScaleInUndone", decision.message))
            if len(done) == len(leaving):
                # What the survivors alone have shown says nothing of them and the others together.
                self._memory = scaling.Memory()
            self._order(now)

    def _may_go(self, pod: Pod, now: float) -> bool:
        assert pod.drained_since is not None, f"pod {pod.name} does not leave"
        return not pod.engine.unfinished or now - pod.drained_since >= self.service.drain_seconds

    def _resize(self, now: float, decision: scaling.Decision) -> None:
        self._event(now, decision.replicas, decision)
        self._replicas = decision.replicas

    def _event(self, now: float, target: int, decision: scaling.Decision) -> None:
        self.events.append(Event(now, self._replicas, target, str(decision.reason), decision.message))

    # --- pods ---------------------------------------------------------------------------------------------------------

    def _order(self, now: float) -> None:
        """As many as are missing."""
        while len(self._pods) < self._replicas:
            self._named += 1
            name, start = f"pod-{self._named}", self.service.start
            self._pods.append(Pod(name, self.executor, self.options, self.measures, now, start))

    def _remove(self, pod: Pod, now: float) -> None:
        self._pods.remove(pod)
        self._account(pod, now)

    def _account(self, pod: Pod, end: float) -> None:
        self.gpu_seconds += max(0.0, end - max(0.0, pod.held_seconds)) * self.service.limits.gpus_per_pod

    def _record(self, now: float) -> None:
        holding = sum(pod.held_seconds <= now for pod in self._pods)
        size = Size(now, self._replicas, len(self._serving(now)), holding)
        last = self.sizes[-1] if self.sizes else None
        if last is None or (last.asked, last.serving, last.holding) != (size.asked, size.serving, size.holding):
            self.sizes.append(size)


def _from_the_first(arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
    """On a clock that begins with the first of them: nobody pays for the time before."""
    first = 0.0
    for number, arrival in enumerate(arrivals):
        first = first if number else arrival.seconds
        yield replace(arrival, seconds=arrival.seconds - first)
