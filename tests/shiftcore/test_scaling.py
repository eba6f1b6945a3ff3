"""The autoscaler's rules, one row each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shiftcore.scaling import (
    Action,
    Decision,
    Limits,
    Memory,
    MetricsLoss,
    Observation,
    PodLoad,
    decide,
    least_loaded,
    survivors,
    throughput_share,
    utilisation,
)

LIMITS = Limits(minimum=1, maximum=4, out_seconds=5, in_seconds=20, ttft_seconds=2.0, tpot_seconds=0.4)
NOW = 1000.0
HELD = Memory(out_since=NOW - 60, in_since=NOW - 60, stale_since=NOW - 60)
# 300 of 1000 tokens/s, room everywhere.
BUSY = PodLoad(
    name="a",
    measured_at=NOW,
    prompt_tokens_per_second=300,
    running_requests=2,
    max_running_requests=16,
    capacity_tokens_per_second=1000,
)
LOADED = replace(BUSY, prompt_tokens_per_second=900)
QUEUED = replace(BUSY, waiting_requests=1)
IDLE = PodLoad("a", NOW, max_running_requests=16, capacity_tokens_per_second=1000)


def decided(
    pods: tuple[PodLoad, ...], limits: Limits = LIMITS, memory: Memory = HELD, ready: int | None = None
) -> Decision:
    seen = Observation(len(pods), len(pods) if ready is None else ready, pods)
    return decide(limits, seen, NOW, memory)[0]


@pytest.mark.parametrize(
    ("case", "pods", "limits", "action", "reason", "replicas"),
    [
        ("moderate load", (BUSY,), LIMITS, Action.HOLD, "Steady", 1),
        ("high and shifted", (LOADED,), LIMITS, Action.OUT, "HighUtilisation", 2),
        ("high, still in the tp gear", (replace(LOADED, throughput_share=0.1),), LIMITS, Action.HOLD, "ShiftFirst", 1),
        (
            "high in the tp gear that the policy pins",
            (replace(LOADED, throughput_share=0.0),),
            replace(LIMITS, may_shift=False),
            Action.OUT,
            "HighUtilisation",
            2,
        ),
        (
            "far too high: several pods at once",
            (replace(BUSY, prompt_tokens_per_second=2300),),
            LIMITS,
            Action.OUT,
            "HighUtilisation",
            3,
        ),
        (
            "no more than the maximum at once",
            (replace(BUSY, prompt_tokens_per_second=90_000),),
            LIMITS,
            Action.OUT,
            "HighUtilisation",
            4,
        ),
        (
            "a long queue is demand",
            (replace(BUSY, waiting_tokens=2000, waiting_requests=3),),
            LIMITS,
            Action.OUT,
            "HighUtilisation",
            2,
        ),
        ("at the maximum", (LOADED,), replace(LIMITS, maximum=1), Action.HOLD, "AtMaximum", 1),
        # Bypasses: a step that only decodes never leaves the tp gear, so the gate must not hold these back.
        (
            "a request waits too long",
            (replace(QUEUED, oldest_wait_seconds=2.5, throughput_share=0.0),),
            LIMITS,
            Action.OUT,
            "QueueTooOld",
            2,
        ),
        ("a short wait", (replace(QUEUED, oldest_wait_seconds=1.5),), LIMITS, Action.HOLD, "Steady", 1),
        (
            "no slot free and a queue",
            (replace(QUEUED, running_requests=16, throughput_share=0.0),),
            LIMITS,
            Action.OUT,
            "SlotsFull",
            2,
        ),
        ("no slot free, no queue", (replace(BUSY, running_requests=16),), LIMITS, Action.HOLD, "Steady", 1),
        (
            "KV cache nearly full",
            (replace(BUSY, kv_used_fraction=0.95, throughput_share=0.0),),
            LIMITS,
            Action.OUT,
            "KvPressure",
            2,
        ),
        ("an idle pod's cache", (replace(IDLE, kv_used_fraction=1.0),), LIMITS, Action.HOLD, "Steady", 1),
        (
            "output too slow",
            (replace(BUSY, tpot_seconds=0.5, throughput_share=0.0),),
            LIMITS,
            Action.OUT,
            "OutputTooSlow",
            2,
        ),
        ("output was slow, nothing runs", (replace(IDLE, tpot_seconds=0.5),), LIMITS, Action.HOLD, "Steady", 1),
        (
            "slow output without a target",
            (replace(BUSY, tpot_seconds=0.5),),
            replace(LIMITS, tpot_seconds=None),
            Action.HOLD,
            "Steady",
            1,
        ),
        # In: only if the survivors still meet demand with a margin.
        ("nothing to do", (IDLE, IDLE), LIMITS, Action.IN, "Idle", 1),
        ("at the minimum", (IDLE,), LIMITS, Action.HOLD, "Steady", 1),
        (
            "light load",
            (replace(BUSY, prompt_tokens_per_second=100), BUSY),
            LIMITS,
            Action.IN,
            "LowUtilisation",
            1,
        ),
        ("survivors would be too busy", (BUSY, BUSY), LIMITS, Action.HOLD, "Steady", 2),
        (
            "survivors would have too few slots",
            (replace(BUSY, prompt_tokens_per_second=10, running_requests=5),) * 2,
            LIMITS,
            Action.HOLD,
            "Steady",
            2,
        ),
        (
            "somebody waits",
            (replace(BUSY, prompt_tokens_per_second=10), replace(QUEUED, prompt_tokens_per_second=10)),
            LIMITS,
            Action.HOLD,
            "Steady",
            2,
        ),
        # The price of a scale-in in latency: 100 of 1000 tokens/s on one survivor leave T(n) = t0 / 0.9.
        (
            "survivors meet the TPOT target",
            (replace(BUSY, prompt_tokens_per_second=50, step_seconds=0.28),) * 2,
            LIMITS,
            Action.IN,
            "LowUtilisation",
            1,
        ),
        (
            "survivors would miss the TPOT target",
            (replace(BUSY, prompt_tokens_per_second=50, step_seconds=0.29),) * 2,
            LIMITS,
            Action.HOLD,
            "SurvivorsTooSlow",
            2,
        ),
        (
            "survivors would miss the TTFT target",
            (replace(BUSY, prompt_tokens_per_second=50, ttft_seconds=1.55),) * 2,
            LIMITS,
            Action.HOLD,
            "SurvivorsTooSlow",
            2,
        ),
        (
            "no target, no price",
            (replace(BUSY, prompt_tokens_per_second=50, step_seconds=3.0, ttft_seconds=9.0),) * 2,
            replace(LIMITS, tpot_seconds=None, ttft_seconds=None),
            Action.IN,
            "LowUtilisation",
            1,
        ),
        # What cannot be known.
        (
            "capacity not measured",
            (replace(LOADED, capacity_tokens_per_second=0),),
            LIMITS,
            Action.HOLD,
            "Steady",
            1,
        ),
        ("stale", (replace(LOADED, measured_at=NOW - 60),), LIMITS, Action.HOLD, "MetricsStale", 1),
        (
            "stale, and the user would rather pay",
            (replace(IDLE, measured_at=NOW - 60),),
            replace(LIMITS, on_metrics_loss=MetricsLoss.SCALE_TO_MAX),
            Action.OUT,
            "MetricsLost",
            4,
        ),
        (
            "stale at the maximum",
            (replace(IDLE, measured_at=NOW - 60),),
            replace(LIMITS, on_metrics_loss=MetricsLoss.SCALE_TO_MAX, maximum=1),
            Action.HOLD,
            "MetricsStale",
            1,
        ),
        # The GPU budget: pods × GPUs never above.
        ("budget for no more", (LOADED,), replace(LIMITS, gpus_per_pod=8, max_gpus=15), Action.HOLD, "GpuBudget", 1),
        (
            "budget for one more of three wanted",
            (replace(BUSY, prompt_tokens_per_second=2300),),
            replace(LIMITS, gpus_per_pod=8, max_gpus=16),
            Action.OUT,
            "HighUtilisation",
            2,
        ),
        ("a budget above the maximum", (LOADED,), replace(LIMITS, maximum=1, max_gpus=9), Action.HOLD, "AtMaximum", 1),
        ("over the budget", (BUSY,) * 3, replace(LIMITS, gpus_per_pod=4, max_gpus=8), Action.IN, "GpuBudget", 2),
        ("below the minimum", (IDLE,), replace(LIMITS, minimum=3), Action.OUT, "BelowMinimum", 3),
        ("above the maximum", (IDLE,) * 5, LIMITS, Action.IN, "AboveMaximum", 4),
    ],
)
def test_rule(case: str, pods: tuple[PodLoad, ...], limits: Limits, action: Action, reason: str, replicas: int) -> None:
    decision = decided(pods, limits)
    assert (decision.action, decision.reason, decision.replicas) == (action, reason, replicas), case
    assert decision.message


def test_pods_that_start_are_waited_for() -> None:
    decision = decided((LOADED,), ready=0)
    assert (decision.action, decision.reason) == (Action.HOLD, "PodsStarting")
    decision, memory = decide(LIMITS, Observation(2, 1, (LOADED,)), NOW, HELD)
    assert (decision.action, memory) == (Action.HOLD, Memory(uncreated_since=NOW))


@pytest.mark.parametrize(
    ("case", "pods", "replicas", "action", "reason", "after"),
    [
        ("idle beside a pod that cannot start", (IDLE,), 2, Action.IN, "Idle", 1),
        ("the ready pod is enough", (BUSY,), 2, Action.IN, "LowUtilisation", 1),
        ("two that cannot start leave one at a time", (BUSY,), 3, Action.IN, "LowUtilisation", 2),
        ("two ready, one not", (BUSY, BUSY), 3, Action.IN, "LowUtilisation", 2),
        (
            "the ready pod is not enough",
            (replace(BUSY, prompt_tokens_per_second=600),),
            2,
            Action.HOLD,
            "PodsStarting",
            2,
        ),
        ("no more pods while some start", (LOADED,), 2, Action.HOLD, "CapacityComing", 2),
        (
            "a missed target is no spare room",
            (replace(BUSY, tpot_seconds=0.5),),
            2,
            Action.HOLD,
            "CapacityComing",
            2,
        ),
        ("the ready pod is silent", (replace(IDLE, measured_at=NOW - 60),), 2, Action.HOLD, "MetricsStale", 2),
        ("none is ready", (), 2, Action.HOLD, "PodsStarting", 2),
    ],
)
def test_pods_that_never_start_do_not_hold_the_size(
    case: str, pods: tuple[PodLoad, ...], replicas: int, action: Action, reason: str, after: int
) -> None:
    decision, _ = decide(LIMITS, Observation(replicas, len(pods), pods), NOW, HELD)
    assert (decision.action, decision.reason, decision.replicas) == (action, reason, after), case


def test_scale_in_beside_a_starting_pod_waits_for_its_window() -> None:
    decision, memory = decide(LIMITS, Observation(2, 1, (IDLE,)), NOW, Memory())
    assert (decision.action, memory) == (Action.HOLD, Memory(in_since=NOW, uncreated_since=NOW))


def test_a_reason_must_hold_for_its_window() -> None:
    decision, memory = decide(LIMITS, Observation(1, 1, (LOADED,)), NOW, Memory())
    assert (decision.action, memory.out_since) == (Action.HOLD, NOW)
    assert "5 s" in decision.message
    later = replace(LOADED, measured_at=NOW + 4.9)
    decision, memory = decide(LIMITS, Observation(1, 1, (later,)), NOW + 4.9, memory)
    assert (decision.action, memory.out_since) == (Action.HOLD, NOW)
    decision, memory = decide(LIMITS, Observation(1, 1, (replace(LOADED, measured_at=NOW + 5),)), NOW + 5, memory)
    assert (decision.action, memory) == (Action.OUT, Memory())


def test_a_break_starts_the_window_anew() -> None:
    _, memory = decide(LIMITS, Observation(1, 1, (LOADED,)), NOW, Memory())
    _, memory = decide(LIMITS, Observation(1, 1, (BUSY,)), NOW, memory)
    assert memory == Memory()


def test_load_ends_a_pending_scale_in() -> None:
    _, memory = decide(LIMITS, Observation(2, 2, (IDLE, IDLE)), NOW, Memory())
    assert memory.in_since == NOW
    _, memory = decide(LIMITS, Observation(2, 2, (LOADED, LOADED)), NOW, memory)
    assert (memory.in_since, memory.out_since) == (None, NOW)


def test_one_to_two_to_one() -> None:
    """A burst and its end, read every two seconds."""
    replicas, memory, path = 1, Memory(), [1]
    for tick in range(60):
        now = NOW + 2.0 * tick
        burst = replace(QUEUED, measured_at=now, running_requests=16, oldest_wait_seconds=3.0 + tick)
        pods = (burst if tick < 10 else replace(IDLE, measured_at=now),) * replicas
        decision, memory = decide(replace(LIMITS, maximum=2), Observation(replicas, replicas, pods), now, memory)
        if decision.replicas != replicas:
            replicas = decision.replicas
            path.append(replicas)
    assert path == [1, 2, 1]


def test_sentences_do_not_follow_every_reading() -> None:
    first = decided((replace(BUSY, prompt_tokens_per_second=301),))
    assert first == decided((replace(BUSY, prompt_tokens_per_second=312),))


def test_utilisation_and_share() -> None:
    pods = (replace(BUSY, throughput_share=0.0), replace(BUSY, prompt_tokens_per_second=100, throughput_share=1.0))
    assert utilisation(LIMITS, pods) == pytest.approx(0.2)
    assert throughput_share(pods) == pytest.approx(0.25)
    assert throughput_share((IDLE,)) == 1.0
    assert utilisation(LIMITS, ()) is None


def test_bad_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="minimum 3 must lie in"):
        Limits(minimum=3, maximum=2)
    with pytest.raises(ValueError, match="low_utilisation"):
        Limits(low_utilisation=0.9)
    with pytest.raises(ValueError, match="gpus_per_pod 0 must be at least 1"):
        Limits(gpus_per_pod=0)


# --- ordered capacity ---

TOO_HIGH = replace(BUSY, prompt_tokens_per_second=1500)  # needs two pods


@pytest.mark.parametrize(
    ("case", "starting", "replicas", "uncreated_since", "reason", "after"),
    [
        ("one comes", (30.0,), 2, None, "CapacityComing", 2),
        ("one comes, the second counts too", (30.0, 60.0), 3, None, "CapacityComing", 3),
        ("it did not come in time: another is ordered beside it", (601.0,), 2, None, "HighUtilisation", 3),
        ("one did not come, the other may", (601.0, 10.0), 3, None, "CapacityComing", 3),
        ("asked for and not yet created", (), 2, NOW - 10, "CapacityComing", 2),
        ("never created", (), 2, NOW - 601, "HighUtilisation", 3),
    ],
)
def test_ordered_pods_are_credited_until_their_time_is_over(
    case: str, starting: tuple[float, ...], replicas: int, uncreated_since: float | None, reason: str, after: int
) -> None:
    seen = Observation(replicas, 1, (TOO_HIGH,), starting)
    decision, _ = decide(LIMITS, seen, NOW, replace(HELD, uncreated_since=uncreated_since))
    assert (decision.reason, decision.replicas) == (reason, after), case


def test_a_burst_beyond_what_was_ordered_orders_the_rest() -> None:
    seen = Observation(2, 1, (replace(BUSY, prompt_tokens_per_second=2300),), (30.0,))
    decision, _ = decide(LIMITS, seen, NOW, HELD)
    assert (decision.reason, decision.replicas) == ("HighUtilisation", 3)


def test_a_window_does_not_run_while_ordered_capacity_is_awaited() -> None:
    _, memory = decide(LIMITS, Observation(2, 1, (LOADED,), (30.0,)), NOW, HELD)
    assert memory.out_since is None


def test_pods_that_leave_count_in_the_budget() -> None:
    limits = replace(LIMITS, gpus_per_pod=2, max_gpus=4)
    assert decide(limits, Observation(1, 1, (LOADED,)), NOW, HELD)[0].replicas == 2
    leaving = decide(limits, Observation(1, 1, (LOADED,), stopping=1), NOW, HELD)[0]
    assert (leaving.reason, leaving.replicas) == ("GpuBudget", 1)
    assert decide(replace(limits, max_gpus=None), Observation(1, 1, (LOADED,), stopping=1), NOW, HELD)[0].replicas == 2
    below = decide(replace(limits, minimum=2), Observation(1, 1, (IDLE,), stopping=1), NOW, HELD)[0]
    assert (below.reason, below.replicas) == ("GpuBudget", 1)


LARGE_PODS = replace(LIMITS, minimum=2, gpus_per_pod=8, max_gpus=8)


@pytest.mark.parametrize(
    ("case", "pods", "limits", "stopping", "action", "reason", "after"),
    [
        ("the minimum stays", (LOADED,) * 2, LARGE_PODS, 0, Action.HOLD, "GpuBudget", 2),
        ("also while it is idle", (IDLE,) * 2, LARGE_PODS, 0, Action.HOLD, "GpuBudget", 2),
        ("what is above it leaves", (LOADED,) * 3, LARGE_PODS, 0, Action.IN, "GpuBudget", 2),
        ("also from above the maximum", (LOADED,) * 5, LARGE_PODS, 0, Action.IN, "AboveMaximum", 2),
        ("none is added up to it", (LOADED,), LARGE_PODS, 0, Action.HOLD, "GpuBudget", 1),
        ("not even one", (), replace(LARGE_PODS, max_gpus=7), 0, Action.HOLD, "GpuBudget", 0),
        ("nor while more leave than are paid for", (LOADED,) * 2, LARGE_PODS, 3, Action.HOLD, "GpuBudget", 2),
    ],
)
def test_a_budget_that_pays_for_less_than_the_minimum_adds_nothing_and_takes_no_more(
    case: str, pods: tuple[PodLoad, ...], limits: Limits, stopping: int, action: Action, reason: str, after: int
) -> None:
    """Pods of another revision are larger than those whose minimum the spec's budget pays for."""
    decision, _ = decide(limits, Observation(len(pods), len(pods), pods, stopping=stopping), NOW, HELD)
    assert (decision.action, decision.reason, decision.replicas) == (action, reason, after), case
    assert "room for -" not in decision.message


def test_what_still_leaves_or_may_come_back_takes_no_pod_that_is_paid_for() -> None:
    """After a rollout to smaller pods, four of two GPUs fit in eight. One of four GPUs that still drains does not
    change that, and no other is added meanwhile."""
    limits = replace(LIMITS, gpus_per_pod=2, largest_pod_gpus=4, max_gpus=8)
    all_of_them = Observation(4, 4, (BUSY,) * 4, stopping=1)
    assert decide(limits, all_of_them, NOW, Memory())[0].action is Action.HOLD
    assert decide(replace(limits, gpus_per_pod=4), all_of_them, NOW, Memory())[0].replicas == 2
    more = decide(limits, Observation(3, 3, (LOADED,) * 3), NOW, HELD)[0]
    assert (more.action, more.reason) == (Action.HOLD, "GpuBudget")
    assert "room for 2 pods of 4" in more.message
    assert decide(replace(limits, largest_pod_gpus=2), Observation(3, 3, (LOADED,) * 3), NOW, HELD)[0].replicas == 4


# --- metrics, rollouts, victims ---


def test_lost_metrics_must_stay_lost_before_the_maximum_is_ordered() -> None:
    limits = replace(LIMITS, on_metrics_loss=MetricsLoss.SCALE_TO_MAX)
    seen = Observation(1, 1, (replace(IDLE, measured_at=NOW - 60),))
    decision, memory = decide(limits, seen, NOW, Memory())
    assert (decision.action, decision.reason, memory.stale_since) == (Action.HOLD, "MetricsStale", NOW)
    assert decide(limits, seen, NOW + 5, memory)[0].replicas == 4


@pytest.mark.parametrize(
    ("case", "pods", "limits", "wanted"),
    [
        ("idle", (IDLE, IDLE), LIMITS, "scales in when the rollout is over"),
        ("above the maximum", (IDLE,) * 5, LIMITS, "above the maximum of 4; scales in when the rollout is over"),
    ],
)
def test_no_scale_in_during_a_rollout(case: str, pods: tuple[PodLoad, ...], limits: Limits, wanted: str) -> None:
    decision, _ = decide(limits, Observation(len(pods), len(pods), pods, rolling=True), NOW, HELD)
    assert (decision.action, decision.reason) == (Action.HOLD, "RolloutInProgress"), case
    assert wanted in decision.message


def test_scale_out_goes_on_during_a_rollout() -> None:
    assert decide(LIMITS, Observation(1, 1, (LOADED,), rolling=True), NOW, HELD)[0].action is Action.OUT


def test_the_least_loaded_leave() -> None:
    pods = (
        replace(BUSY, name="b", running_requests=1),
        replace(BUSY, name="c", running_requests=0, kv_used_fraction=0.2),
        replace(BUSY, name="a", running_requests=1),
        replace(BUSY, name="d", running_requests=0, waiting_requests=5),
    )
    assert least_loaded(pods, 2) == ("c", "a"), "of equals the youngest"
    assert least_loaded(pods, 9) == ("c", "a", "b", "d")


def test_survivors_follow_the_stated_formula() -> None:
    pods = (replace(BUSY, prompt_tokens_per_second=200, step_seconds=0.03, tpot_seconds=0.02, ttft_seconds=0.3),) * 3
    after = survivors(LIMITS, pods, 2)
    assert after is not None
    assert after.utilisation == pytest.approx(0.3)
    assert after.tpot_seconds == pytest.approx(0.03 / 0.7)
    assert after.ttft_seconds == pytest.approx(0.3 * 0.8 / 0.7)
    slow = tuple(replace(pod, tpot_seconds=0.1) for pod in pods)
    assert survivors(LIMITS, slow, 2).tpot_seconds == pytest.approx(0.1 * 0.8 / 0.7)  # type: ignore[union-attr]
    full = tuple(replace(pod, prompt_tokens_per_second=700) for pod in pods)
    assert survivors(LIMITS, full, 2).tpot_seconds == float("inf")  # type: ignore[union-attr]
    assert survivors(LIMITS, (replace(BUSY, capacity_tokens_per_second=0),), 1) is None
