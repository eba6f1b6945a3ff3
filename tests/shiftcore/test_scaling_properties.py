"""What holds of the autoscaler whatever the pods report."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from shiftcore.scaling import Action, Limits, Memory, MetricsLoss, Observation, PodLoad, decide

NOW = 10_000.0
# Every window is over.
HELD = Memory(NOW - 9_000, NOW - 9_000, NOW - 9_000, None)

seconds = st.floats(0, 1_000)
rates = st.floats(0, 5_000)
fractions = st.floats(0, 1)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    minimum = draw(st.integers(0, 5))
    gpus = draw(st.sampled_from([1, 2, 8]))
    maximum = draw(st.integers(minimum, 12))
    return Limits(
        minimum=minimum,
        maximum=maximum,
        gpus_per_pod=gpus,
        largest_pod_gpus=draw(st.sampled_from([0, 1, 4, 8])),
        max_gpus=draw(st.none() | st.integers(minimum * gpus, 100)),
        ttft_seconds=draw(st.none() | st.floats(0.01, 60)),
        tpot_seconds=draw(st.none() | st.floats(0.001, 2)),
        may_shift=draw(st.booleans()),
        on_metrics_loss=draw(st.sampled_from(MetricsLoss)),
    )


@st.composite
def loads(draw: st.DrawFn) -> PodLoad:
    return PodLoad(
        name=draw(st.sampled_from("abcdef")),
        measured_at=NOW - draw(st.sampled_from([0.0, 0.0, 0.0, 14.0, 16.0])),
        prompt_tokens_per_second=draw(rates),
        output_tokens_per_second=draw(rates),
        waiting_tokens=draw(st.integers(0, 100_000)),
        running_requests=draw(st.integers(0, 64)),
        waiting_requests=draw(st.integers(0, 64)),
        max_running_requests=draw(st.sampled_from([0, 16, 64])),
        oldest_wait_seconds=draw(seconds),
        kv_used_fraction=draw(fractions),
        ttft_seconds=draw(seconds),
        tpot_seconds=draw(fractions),
        capacity_tokens_per_second=draw(st.sampled_from([0.0, 500.0, 1000.0])),
        step_seconds=draw(fractions),
        throughput_share=draw(fractions),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    pods = tuple(draw(st.lists(loads(), max_size=6)))
    return Observation(
        replicas=draw(st.integers(0, 14)),
        ready=len(pods) + draw(st.sampled_from([0, 0, 0, 1])),
        pods=pods,
        starting_seconds=tuple(draw(st.lists(st.sampled_from([1.0, 599.0, 601.0]), max_size=4))),
        stopping=draw(st.integers(0, 3)),
        rolling=draw(st.booleans()),
    )


memories = st.builds(Memory, *[st.none() | st.sampled_from([NOW, NOW - 29, NOW - 9_000])] * 4)


@given(limits(), observations(), memories)
def test_bounds_and_budget_are_kept(limits: Limits, seen: Observation, memory: Memory) -> None:
    decision, _ = decide(limits, seen, NOW, memory)
    if decision.action is Action.OUT:
        assert seen.replicas < decision.replicas <= limits.maximum
        if limits.max_gpus is not None:
            assert (decision.replicas + seen.stopping) * limits.new_pod_gpus <= limits.max_gpus
    elif decision.action is Action.IN:
        assert limits.minimum <= decision.replicas < seen.replicas
        assert not seen.rolling


@given(limits(), observations(), memories)
def test_a_hold_never_changes_replicas(limits: Limits, seen: Observation, memory: Memory) -> None:
    decision, _ = decide(limits, seen, NOW, memory)
    assert (decision.action is Action.HOLD) == (decision.replicas == seen.replicas)


@given(limits(), observations(), memories)
def test_stale_metrics_take_no_pod_away(limits: Limits, seen: Observation, memory: Memory) -> None:
    stale = replace(seen, pods=tuple(replace(pod, measured_at=NOW - 60) for pod in seen.pods))
    decision, _ = decide(limits, stale, NOW, memory)
    if decision.action is Action.IN:
        assert decision.reason in ("AboveMaximum", "GpuBudget")


@given(limits(), observations(), st.floats(1, 10))
def test_more_demand_never_asks_for_fewer_pods(limits: Limits, seen: Observation, factor: float) -> None:
    more = replace(
        seen,
        pods=tuple(
            replace(
                pod,
                prompt_tokens_per_second=pod.prompt_tokens_per_second * factor,
                output_tokens_per_second=pod.output_tokens_per_second * factor,
                waiting_tokens=round(pod.waiting_tokens * factor),
            )
            for pod in seen.pods
        ),
    )
    assert decide(limits, more, NOW, HELD)[0].replicas >= decide(limits, seen, NOW, HELD)[0].replicas


@given(limits(), st.lists(observations(), max_size=8))
def test_a_replay_decides_alike(limits: Limits, path: list[Observation]) -> None:
    def run() -> object:
        memory, said = Memory(), []
        for step, seen in enumerate(path):
            decision, memory = decide(limits, seen, NOW + 30.0 * step, memory)
            said.append((decision, memory))
        return said

    assert run() == run()


@given(
    rate=st.floats(0, 12_000),
    start=st.integers(1, 12),
    capacity=st.floats(300, 1500),
    step_seconds=st.floats(0.001, 0.1),
    tpot=st.none() | st.floats(0.005, 0.5),
    requests=st.integers(1, 200),
)
def test_constant_load_settles_and_never_turns_back(
    rate: float, start: int, capacity: float, step_seconds: float, tpot: float | None, requests: int
) -> None:
    """Pods follow the law of `survivors`: a step costs step_seconds / (1 - utilisation)."""
    limits = Limits(minimum=1, maximum=12, tpot_seconds=tpot, out_seconds=4, in_seconds=10)
    replicas, memory, path = start, Memory(), [start]
    for tick in range(120):
        now = NOW + 2.0 * tick
        load = min(0.999, rate / (replicas * capacity))
        pod = PodLoad(
            name="p",
            measured_at=now,
            output_tokens_per_second=rate / replicas,
            running_requests=max(1, requests // replicas),
            max_running_requests=256,
            tpot_seconds=step_seconds / (1 - load),
            capacity_tokens_per_second=capacity,
            step_seconds=step_seconds,
        )
        decision, memory = decide(limits, Observation(replicas, replicas, (pod,) * replicas), now, memory)
        if decision.replicas != replicas:
            replicas = decision.replicas
            path.append(replicas)
    directions = {later > earlier for earlier, later in itertools.pairwise(path)}
    assert len(directions) <= 1, path
