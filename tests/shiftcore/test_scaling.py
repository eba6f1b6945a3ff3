"""The autoscaler's rules, one row each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shiftcore.scaling import Action, Decision, Limits, Memory, PodLoad, decide, throughput_share, utilisation

LIMITS = Limits(minimum=1, maximum=4, out_seconds=5, in_seconds=20, ttft_seconds=2.0, tpot_seconds=0.4)
NOW = 1000.0
HELD = Memory(out_since=NOW - 60, in_since=NOW - 60)
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
    return decide(limits, len(pods), len(pods) if ready is None else ready, pods, NOW, memory)[0]


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
            (replace(BUSY, tpot_p95_seconds=0.5, throughput_share=0.0),),
            LIMITS,
            Action.OUT,
            "OutputTooSlow",
            2,
        ),
        ("output was slow, nothing runs", (replace(IDLE, tpot_p95_seconds=0.5),), LIMITS, Action.HOLD, "Steady", 1),
        (
            "slow output without a target",
            (replace(BUSY, tpot_p95_seconds=0.5),),
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
    decision, memory = decide(LIMITS, 2, 1, (LOADED,), NOW, HELD)
    assert (decision.action, memory) == (Action.HOLD, Memory())


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
        ("no more pods while some start", (LOADED,), 2, Action.HOLD, "PodsStarting", 2),
        (
            "a missed target is no spare room",
            (replace(BUSY, tpot_p95_seconds=0.5),),
            2,
            Action.HOLD,
            "PodsStarting",
            2,
        ),
        ("the ready pod is silent", (replace(IDLE, measured_at=NOW - 60),), 2, Action.HOLD, "PodsStarting", 2),
        ("none is ready", (), 2, Action.HOLD, "PodsStarting", 2),
    ],
)
def test_pods_that_never_start_do_not_hold_the_size(
    case: str, pods: tuple[PodLoad, ...], replicas: int, action: Action, reason: str, after: int
) -> None:
    decision, _ = decide(LIMITS, replicas, len(pods), pods, NOW, HELD)
    assert (decision.action, decision.reason, decision.replicas) == (action, reason, after), case


def test_scale_in_beside_a_starting_pod_waits_for_its_window() -> None:
    decision, memory = decide(LIMITS, 2, 1, (IDLE,), NOW, Memory())
    assert (decision.action, memory) == (Action.HOLD, Memory(in_since=NOW))


def test_a_reason_must_hold_for_its_window() -> None:
    decision, memory = decide(LIMITS, 1, 1, (LOADED,), NOW, Memory())
    assert (decision.action, memory.out_since) == (Action.HOLD, NOW)
    assert "5 s" in decision.message
    later = replace(LOADED, measured_at=NOW + 4.9)
    decision, memory = decide(LIMITS, 1, 1, (later,), NOW + 4.9, memory)
    assert (decision.action, memory.out_since) == (Action.HOLD, NOW)
    decision, memory = decide(LIMITS, 1, 1, (replace(LOADED, measured_at=NOW + 5),), NOW + 5, memory)
    assert (decision.action, memory) == (Action.OUT, Memory())


def test_a_break_starts_the_window_anew() -> None:
    _, memory = decide(LIMITS, 1, 1, (LOADED,), NOW, Memory())
    _, memory = decide(LIMITS, 1, 1, (BUSY,), NOW, memory)
    assert memory == Memory()


def test_load_ends_a_pending_scale_in() -> None:
    _, memory = decide(LIMITS, 2, 2, (IDLE, IDLE), NOW, Memory())
    assert memory.in_since == NOW
    _, memory = decide(LIMITS, 2, 2, (LOADED, LOADED), NOW, memory)
    assert (memory.in_since, memory.out_since) == (None, NOW)


def test_one_to_two_to_one() -> None:
    """A burst and its end, read every two seconds."""
    replicas, memory, path = 1, Memory(), [1]
    for tick in range(60):
        now = NOW + 2.0 * tick
        burst = replace(QUEUED, measured_at=now, running_requests=16, oldest_wait_seconds=3.0 + tick)
        pods = (burst if tick < 10 else replace(IDLE, measured_at=now),) * replicas
        decision, memory = decide(replace(LIMITS, maximum=2), replicas, replicas, pods, now, memory)
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
