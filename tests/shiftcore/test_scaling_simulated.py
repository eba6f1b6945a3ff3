"""A day's ramp on modelled pods: shift-before-scale against utilisation of the latency capacity.

The pods follow the law that `survivors` states: in a gear with capacity C and smallest step t0, load ρ makes a step of
t0 / (1 - ρ); what exceeds the capacity queues. A pod runs the tp gear while that is faster, as the runtime does.
The figures are those of a pod whose throughput gear carries 2.5 times its tp gear and whose smallest step costs twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shiftcore.scaling import Limits, Memory, Observation, PodLoad, decide

TICK_SECONDS = 2.0
START_SECONDS = 120.0
TP_CAPACITY, TP_STEP = 1000.0, 0.010
THROUGHPUT_CAPACITY, THROUGHPUT_STEP = 2500.0, 0.020
TPOT_TARGET = 0.150
TTFT_TARGET = 5.0


@dataclass
class Pod:
    ready_at: float
    queue_tokens: float = 0.0
    waited_seconds: float = 0.0
    tpot_seconds: float = 0.0
    shifted: bool = False

    def run(self, arriving: float) -> float:
        """One tick of `arriving` tokens per second; returns the tokens made."""
        wanted = arriving + self.queue_tokens / TICK_SECONDS
        tp, base = _step(TP_STEP, TP_CAPACITY, wanted), _step(THROUGHPUT_STEP, THROUGHPUT_CAPACITY, wanted)
        self.shifted = base < tp or wanted > TP_CAPACITY
        self.tpot_seconds = min(tp, base)
        made = min(wanted, THROUGHPUT_CAPACITY if self.shifted else TP_CAPACITY) * TICK_SECONDS
        self.queue_tokens = wanted * TICK_SECONDS - made
        self.waited_seconds = self.queue_tokens / THROUGHPUT_CAPACITY
        return made


def _step(smallest: float, capacity: float, rate: float) -> float:
    """Seconds; a full step when there is more to do than the gear can."""
    return smallest / max(0.05, 1 - rate / capacity)


@dataclass
class Fleet:
    """Pods under the autoscaler. `blind_to_gears` is what others do: capacity is that of the gear that answers fast."""

    blind_to_gears: bool
    pods: list[Pod] = field(default_factory=lambda: [Pod(0.0)])
    path: list[int] = field(default_factory=lambda: [1])
    missed: int = 0
    ticks: int = 0
    pod_seconds: float = 0.0
    orders: int = 0
    memory: Memory = field(default_factory=Memory)

    def tick(self, now: float, rate: float) -> None:
        ready = [pod for pod in self.pods if pod.ready_at <= now]
        for pod in ready:
            pod.run(rate / len(ready))
        self.ticks += 1
        self.pod_seconds += len(self.pods) * TICK_SECONDS
        self.missed += any(pod.tpot_seconds > TPOT_TARGET or pod.waited_seconds > TTFT_TARGET for pod in ready)
        self._scale(now, rate, ready)

    def _scale(self, now: float, rate: float, ready: list[Pod]) -> None:
        limits = Limits(
            minimum=1,
            maximum=20,
            in_seconds=120,
            ttft_seconds=TTFT_TARGET,
            tpot_seconds=TPOT_TARGET,
            may_shift=not self.blind_to_gears,
        )
        seen = Observation(
            replicas=len(self.pods),
            ready=len(ready),
            pods=tuple(self._load(pod, now, rate / len(ready)) for pod in ready),
            starting_seconds=tuple(now - pod.ready_at + START_SECONDS for pod in self.pods if pod.ready_at > now),
        )
        decision, self.memory = decide(limits, seen, now, self.memory)
        if decision.replicas > len(self.pods):
            self.orders += decision.replicas - len(self.pods)
            self.pods += [Pod(now + START_SECONDS) for _ in range(decision.replicas - len(self.pods))]
        del self.pods[decision.replicas :]
        if len(self.pods) != self.path[-1]:
            self.path.append(len(self.pods))

    def _load(self, pod: Pod, now: float, arriving: float) -> PodLoad:
        return PodLoad(
            name="p",
            measured_at=now,
            output_tokens_per_second=arriving,
            waiting_tokens=round(pod.queue_tokens),
            running_requests=max(1, round(arriving / 50)),
            waiting_requests=1 if pod.queue_tokens > 1 else 0,
            max_running_requests=1000,
            oldest_wait_seconds=pod.waited_seconds,
            tpot_seconds=pod.tpot_seconds,
            capacity_tokens_per_second=TP_CAPACITY if self.blind_to_gears else THROUGHPUT_CAPACITY,
            step_seconds=TP_STEP if self.blind_to_gears else THROUGHPUT_STEP,
            throughput_share=1.0 if pod.shifted else 0.0,
        )


def ramp(seconds: float) -> float:
    """Tokens per second over two hours: up to 8,000 in 50 minutes, 20 minutes there, and down."""
    low, high, rise, top = 100.0, 8000.0, 3000.0, 1200.0
    if seconds < rise:
        return low + (high - low) * seconds / rise
    return high if seconds < rise + top else max(low, high - (high - low) * (seconds - rise - top) / rise)


def run(blind_to_gears: bool) -> Fleet:
    fleet = Fleet(blind_to_gears)
    for tick in range(round(7200 / TICK_SECONDS)):
        fleet.tick(tick * TICK_SECONDS, ramp(tick * TICK_SECONDS))
    return fleet


def test_shifting_first_orders_fewer_pods_and_keeps_the_targets() -> None:
    shifting, blind = run(blind_to_gears=False), run(blind_to_gears=True)
    # The targets are percentiles: one of the first pods is short of capacity for the start-up time of the second.
    assert shifting.missed / shifting.ticks < 0.02
    assert shifting.orders < blind.orders / 2
    assert shifting.pod_seconds < blind.pod_seconds / 1.8
    assert max(shifting.path) < max(blind.path) / 2


def test_the_ramp_has_one_top() -> None:
    """Up with the load and down with it: no pod is ordered after one was given back."""
    path = run(blind_to_gears=False).path
    top = path.index(max(path))
    assert path[: top + 1] == sorted(path[: top + 1])
    assert path[top:] == sorted(path[top:], reverse=True)
    assert path[-1] == 1


def test_a_burst_orders_once_and_not_a_crowd() -> None:
    """The pod that it orders comes when it is over. Sized by the queue, which does not stay, it ordered 19."""
    fleet = Fleet(blind_to_gears=False)
    for tick in range(round(300 / TICK_SECONDS)):
        fleet.tick(tick * TICK_SECONDS, 3000.0 if 30 <= tick < 80 else 500.0)
    assert fleet.path == [1, 2]
