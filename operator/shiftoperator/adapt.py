"""Runs the adaptive threshold: what pods measured goes in, `status.adaptive` comes out.

A threshold stands in the status before any pod hears of it: the pass after it pushes what the status says, so that
another operator goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import median_low

from shiftcore import adaptive
from shiftcore.costs import NO_CROSSOVER
from shiftcore.gears import DEFAULT_THRESHOLD_TOKENS
from shiftcore.policy import Mode

from shiftoperator import plan
from shiftoperator.snapshot import Object, RuntimeState, Snapshot, slowest
from shiftoperator.spec import AdaptiveMode, Spec

# A reason that others interrupt is written only after it has held for so long, or figures at a limit would write the
# status at every pass.
REASON_SECONDS = 60.0


@dataclass
class Memory:
    """What is kept of one object between two passes. All of it can be lost: windows begin anew, and a move that was
    not judged yet is judged from then on."""

    loop: adaptive.Memory = field(default_factory=adaptive.Memory)
    # A reason that is not written yet, and since when it has held.
    reason: tuple[adaptive.Reason, float] | None = None

    def forget_windows(self) -> None:
        self.loop = replace(self.loop, wish=None)


@dataclass(frozen=True)
class Result:
    """`told` is `status.adaptive`, None without it; `move` what to say of a threshold that changed, else empty."""

    told: Object | None
    reason: str = ""
    move: str = ""


def run(memory: Memory, snapshot: Snapshot, spec: Spec, now: float, now_text: str) -> Result:
    """`now`: seconds of a clock that never goes back; `now_text`: as the status has it."""
    asked = spec.adaptive
    if asked.mode is AdaptiveMode.OFF:
        memory.loop, memory.reason = adaptive.Memory(), None
        return Result(None)
    before: Object = snapshot.status.get("adaptive") or {}
    if spec.policy.mode != Mode.AUTO:
        # Only a schedule can: the threshold waits in the status for its end.
        memory.loop, memory.reason = adaptive.Memory(), None
        return Result({**before, "mode": str(asked.mode), "reason": str(adaptive.Reason.PINNED)})
    applies = asked.mode is AdaptiveMode.APPLY
    tokens = plan.adaptive_tokens(snapshot, spec)
    settings, seen = _settings(spec), _seen(snapshot, spec)
    if memory.loop.tokens != tokens:
        memory.loop = adaptive.Memory(tokens=tokens, probe=_unfinished(before, tokens, settings, seen, now))
    advice, after = adaptive.adapt(settings, seen, now, memory.loop)
    # What is not applied cannot be judged: a recommendation is made anew each time its reason has held.
    memory.loop = after if applies else replace(after, tokens=None, probe=None)
    recommended = advice.tokens if applies or advice.moved else _kept(before, advice)
    told: Object = {"mode": str(asked.mode), "reason": _reason(memory, before, advice, now)}
    if recommended is not None:
        told["thresholdTokens"] = recommended
        if spec.policy.threshold_tokens is not None:
            told["startTokens"] = spec.policy.threshold_tokens
    if applies and after.probe is not None and after.probe.moves:
        told["probedFromTokens"] = after.probe.origin
    changed = advice.moved and recommended != before.get("thresholdTokens")
    moved_at = now_text if changed else before.get("movedAt")
    if moved_at:
        told["movedAt"] = moved_at
    return Result(told, str(advice.reason), advice.message) if changed else Result(told)


def _unfinished(
    before: Object, tokens: int | None, settings: adaptive.Settings, seen: adaptive.Seen, now: float
) -> adaptive.Probe | None:
    """Of a move that another operator made and had not judged: as the last of its tries, against the times of now."""
    origin = before.get("probedFromTokens")
    if tokens is None or origin is None or origin == tokens:
        return None
    direction = 1 if tokens > origin else -1
    seconds, target = (
        (seen.tpot_seconds, settings.tpot_seconds) if direction > 0 else (seen.ttft_seconds, settings.ttft_seconds)
    )
    return adaptive.Probe(now, direction, int(origin), seconds / target if target else 0.0, adaptive.Settings.tries)


def _reason(memory: Memory, before: Object, advice: adaptive.Advice, now: float) -> str:
    if memory.reason is None or memory.reason[0] is not advice.reason:
        memory.reason = (advice.reason, now)
    written = before.get("reason")
    if advice.moved or written is None or now - memory.reason[1] >= REASON_SECONDS:
        return str(advice.reason)
    return str(written)


def _kept(before: Object, advice: adaptive.Advice) -> int | None:
    """A recommendation stands until its reason is gone."""
    tokens = before.get("thresholdTokens")
    return int(tokens) if tokens is not None and advice.reason not in _OVER else None


_OVER = (adaptive.Reason.TARGETS_MET, adaptive.Reason.TARGETS_MISSING)


def _settings(spec: Spec) -> adaptive.Settings:
    limits, asked = spec.autoscaling.limits, spec.adaptive
    return adaptive.Settings(limits.ttft_seconds, limits.tpot_seconds, asked.min_tokens, asked.max_tokens)


def _seen(snapshot: Snapshot, spec: Spec) -> adaptive.Seen:
    states = [snapshot.states[pod.uid] for pod in snapshot.ready_pods if pod.uid in snapshot.states]
    ttft, tpot = slowest([state.load for state in states], spec.autoscaling.percentile)
    start = spec.policy.threshold_tokens or median_low(
        [_measured(s, spec) for s in states] or [spec.adaptive.min_tokens]
    )
    return adaptive.Seen(
        start_tokens=min(max(start, spec.adaptive.min_tokens), spec.adaptive.max_tokens),
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        changing=plan.is_short(snapshot, spec) or len(states) < spec.pods,
    )


def _measured(state: RuntimeState, spec: Spec) -> int:
    """The threshold of a pod left to itself."""
    if state.crossover_reason == NO_CROSSOVER:
        return spec.adaptive.max_tokens
    return max(1, state.crossover_tokens - 1) if state.crossover_tokens else DEFAULT_THRESHOLD_TOKENS
