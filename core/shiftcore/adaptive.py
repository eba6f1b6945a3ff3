"""Moves the shift threshold when one target is missed and the other has room: a slow loop over what pods measure.

A pod's calibration says in which gear a step of n tokens is cheaper. It was taken at start-up, on synthetic steps; a
neighbour, longer contexts or a threshold that a person set may make it wrong. This loop looks at the outcome instead.
A higher threshold runs more steps in the tp gear, which makes output steps shorter; a lower one runs more in the base
gear, which works off prompts sooner. Each move is judged by what came of it, and taken back when it made things worse.
Where both targets are missed, capacity is short, and that is the autoscaler's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from shiftcore.policy import MAX_THRESHOLD_TOKENS, MIN_THRESHOLD_TOKENS


class Reason(StrEnum):
    """Why; docs/CONDITIONS.md says of each what to do."""

    TARGETS_MISSING = "TargetsMissing"
    NO_TRAFFIC = "NoTraffic"
    PODS_CHANGING = "PodsChanging"
    SETTLING = "Settling"
    IMPROVING = "Improving"
    BOTH_MISSED = "BothMissed"
    TARGETS_MET = "TargetsMet"
    NO_ROOM = "NoRoom"
    AT_BOUND = "AtBound"
    DID_NOT_HELP = "DidNotHelp"
    PINNED = "Pinned"  # said by who knows the policy: nothing to move while a schedule pins a gear
    # Moves.
    OUTPUT_TOO_SLOW = "OutputTooSlow"
    PROMPTS_TOO_SLOW = "PromptsTooSlow"
    TAKEN_BACK = "TakenBack"
    RESTORED = "Restored"


@dataclass(frozen=True)
class Settings:
    """The user's bounds and targets, and the margins of the loop. Thresholds in tokens per step, times in seconds."""

    ttft_seconds: float | None
    tpot_seconds: float | None
    min_tokens: int = MIN_THRESHOLD_TOKENS
    max_tokens: int = MAX_THRESHOLD_TOKENS
    # Moves are geometric: a threshold matters by its order of magnitude.
    factor: float = 2.0
    # So many moves in a row may do nothing: a threshold far off lies on a plateau.
    tries: int = 3
    # The other target has room below this share of it.
    room: float = 0.7
    # What holds for so long is no accident. Pods report times over a minute, so that these are of after a
    # disturbance.
    window_seconds: float = 60.0
    # Pods report times over the last minute: before this has passed, they also tell of the time before the move.
    settle_seconds: float = 90.0
    # A move must improve what it was made for by this share.
    gain: float = 0.02
    # A direction that did not help is not tried again for so long.
    bar_seconds: float = 1800.0
    # With room on both sides for so long, the threshold goes a step back towards the start; longer each time that the
    # step was wrong.
    restore_seconds: float = 900.0

    def __post_init__(self) -> None:
        if not MIN_THRESHOLD_TOKENS <= self.min_tokens <= self.max_tokens <= MAX_THRESHOLD_TOKENS:
            raise ValueError(
                f"min_tokens {self.min_tokens} and max_tokens {self.max_tokens} must be ascending and lie in "
                f"{MIN_THRESHOLD_TOKENS}..{MAX_THRESHOLD_TOKENS}"
            )
        if self.factor <= 1:
            raise ValueError(f"factor {self.factor} must be above 1")


@dataclass(frozen=True)
class Seen:
    """What pods that serve report, at the percentile of the targets: the worst of them; 0 when nothing finished.

    ``start_tokens`` is the threshold without this loop: the user's, or the median of what the pods measured.
    ``changing``: pods load, roll or leave, which explains any figure.
    """

    start_tokens: int
    ttft_seconds: float
    tpot_seconds: float
    changing: bool = False


@dataclass(frozen=True)
class Probe:
    """Moves in one direction, 1 up and -1 down, from ``origin`` tokens, to be judged some time after ``at``.

    ``missed``: the missed time over its target at that moment. ``moves`` is 0 when the last of them helped.
    """

    at: float
    direction: int
    origin: int
    missed: float
    moves: int = 1


@dataclass(frozen=True)
class Memory:
    """``tokens``: the threshold that this loop set, None while it is the start. All times are of one clock."""

    tokens: int | None = None
    probe: Probe | None = None
    wish: tuple[Reason, float] | None = None  # a reason to move, and since when it has held without a break
    barred_until: tuple[tuple[int, float], ...] = ()  # by direction
    restored_at: float | None = None
    patience: int = 1  # how many times as long as the first a restore waits

    def barred(self, direction: int, now: float) -> bool:
        return any(d == direction and now < until for d, until in self.barred_until)


@dataclass(frozen=True)
class Advice:
    """The threshold that should hold; None: the start. ``moved`` when this answer changes it."""

    tokens: int | None
    reason: Reason
    message: str
    moved: bool = False


def adapt(settings: Settings, seen: Seen, now: float, memory: Memory) -> tuple[Advice, Memory]:
    """The same arguments give the same answer."""
    if settings.ttft_seconds is None or settings.tpot_seconds is None:
        return _hold(
            memory, Reason.TARGETS_MISSING, "needs both slo.ttftMs and slo.tpotMs to weigh one against the other"
        )
    if seen.changing:
        message = "pods load, roll or leave; their times say nothing of the threshold"
        return _hold(_unjudged(memory, now), Reason.PODS_CHANGING, message)
    if not seen.ttft_seconds or not seen.tpot_seconds:
        return _hold(_unjudged(memory, now), Reason.NO_TRAFFIC, "no request finished in the last minute")
    ttft, tpot = seen.ttft_seconds / settings.ttft_seconds, seen.tpot_seconds / settings.tpot_seconds
    if memory.probe is not None:
        judged = _judge(settings, seen, now, memory, memory.probe, ttft, tpot)
        if judged is not None:
            return judged
    return _weigh(settings, seen, now, replace(memory, probe=None), ttft, tpot)


def _unjudged(memory: Memory, now: float) -> Memory:
    """A probe begins anew: what was measured meanwhile says nothing of it."""
    return memory if memory.probe is None else replace(memory, probe=replace(memory.probe, at=now))


def _judge(
    settings: Settings, seen: Seen, now: float, memory: Memory, probe: Probe, ttft: float, tpot: float
) -> tuple[Advice, Memory] | None:
    """None when the probe is over."""
    present = memory.tokens or seen.start_tokens
    if now - probe.at < settings.settle_seconds:
        message = f"moved to {present} tokens; judged {settings.settle_seconds:g} s after it"
        return _hold(memory, Reason.SETTLING, message)
    missed, other = (tpot, ttft) if probe.direction > 0 else (ttft, tpot)
    if other > 1:
        return _take_back(settings, seen, now, memory, probe, f"cost the other target ({other:.0%})")
    if missed <= 1:
        return None
    if missed < probe.missed * (1 - settings.gain):
        # A queue takes its time: as long as it becomes better, nothing else is needed.
        message = f"from {probe.missed:.0%} of target to {missed:.0%} since the move to {present} tokens"
        better = replace(memory, probe=Probe(now, probe.direction, present, missed, moves=0))
        return _hold(better, Reason.IMPROVING, message)
    if probe.moves == 0:
        return None
    target = _step(settings, present, probe.direction)
    if probe.moves < settings.tries and target != present and other <= settings.room:
        reason = Reason.OUTPUT_TOO_SLOW if probe.direction > 0 else Reason.PROMPTS_TOO_SLOW
        further = replace(probe, at=now, missed=missed, moves=probe.moves + 1)
        message = f"no change at {present} tokens ({missed:.0%} of target): on to {target}"
        return Advice(target, reason, message, moved=True), replace(memory, tokens=target, probe=further)
    return _take_back(settings, seen, now, memory, probe, f"did not help ({missed:.0%} of target)")


def _weigh(
    settings: Settings, seen: Seen, now: float, memory: Memory, ttft: float, tpot: float
) -> tuple[Advice, Memory]:
    """``ttft`` and ``tpot`` are shares of their targets."""
    figures = f"TTFT at {ttft:.0%} and TPOT at {tpot:.0%} of target"
    if ttft > 1 and tpot > 1:
        return _hold(memory, Reason.BOTH_MISSED, f"{figures}: capacity is short, which no threshold mends")
    if ttft <= 1 and tpot <= 1:
        return _rest(settings, seen, now, memory, max(ttft, tpot), figures)
    direction, reason = (1, Reason.OUTPUT_TOO_SLOW) if tpot > 1 else (-1, Reason.PROMPTS_TOO_SLOW)
    if min(ttft, tpot) > settings.room:
        return _hold(memory, Reason.NO_ROOM, f"{figures}: the other has no room below {settings.room:.0%}")
    if memory.barred(direction, now):
        return _hold(memory, Reason.DID_NOT_HELP, f"{figures}: a move {_word(direction)} was tried and did not help")
    present = memory.tokens or seen.start_tokens
    target = _step(settings, present, direction)
    if target == present:
        return _hold(memory, Reason.AT_BOUND, f"{figures}: {present} tokens is as far {_word(direction)} as is allowed")
    since = memory.wish[1] if memory.wish is not None and memory.wish[0] is reason else now
    if now - since < settings.window_seconds:
        message = f"{figures}; moves {_word(direction)} when this holds for {settings.window_seconds:g} s"
        return _hold(memory, reason, message, wish=(reason, since))
    probe = Probe(now, direction, present, max(ttft, tpot))
    after = replace(memory, tokens=target, probe=probe, wish=None, restored_at=None)
    if memory.restored_at is not None and now - memory.restored_at < settings.restore_seconds:
        after = replace(after, patience=2 * memory.patience)
    return Advice(target, reason, f"{figures}: {present} to {target} tokens", moved=True), after


def _take_back(
    settings: Settings, seen: Seen, now: float, memory: Memory, probe: Probe, why: str
) -> tuple[Advice, Memory]:
    barred = tuple((d, until) for d, until in memory.barred_until if d != probe.direction)
    barred += ((probe.direction, now + settings.bar_seconds),)
    message = f"{memory.tokens} tokens {why}: back to {probe.origin}, not tried again for {settings.bar_seconds:g} s"
    back = None if probe.origin == seen.start_tokens else probe.origin
    after = Memory(tokens=back, barred_until=barred, patience=memory.patience)
    return Advice(back, Reason.TAKEN_BACK, message, moved=True), after


def _rest(
    settings: Settings, seen: Seen, now: float, memory: Memory, worst: float, figures: str
) -> tuple[Advice, Memory]:
    """Nothing is missed. What was moved long ago may have been moved for a traffic that is over."""
    if memory.tokens is None or worst > settings.room:
        return _hold(memory, Reason.TARGETS_MET, figures)
    since = memory.wish[1] if memory.wish is not None and memory.wish[0] is Reason.RESTORED else now
    wait = settings.restore_seconds * memory.patience
    if now - since < wait:
        message = f"{figures}; a step towards {seen.start_tokens} tokens when so for {wait:g} s"
        return _hold(memory, Reason.TARGETS_MET, message, wish=(Reason.RESTORED, since))
    direction = 1 if seen.start_tokens > memory.tokens else -1
    stepped = _step(settings, memory.tokens, direction)
    arrived = (seen.start_tokens - stepped) * direction <= 0
    target = None if arrived else stepped
    message = f"{figures}: {memory.tokens} back to {seen.start_tokens if arrived else stepped} tokens"
    return Advice(target, Reason.RESTORED, message, moved=True), replace(
        memory, tokens=target, wish=None, restored_at=now
    )


def _step(settings: Settings, tokens: int, direction: int) -> int:
    moved = tokens * settings.factor if direction > 0 else tokens / settings.factor
    # At least one token, or small thresholds would never move.
    moved = max(moved, tokens + 1) if direction > 0 else min(moved, tokens - 1)
    return min(max(round(moved), settings.min_tokens), settings.max_tokens)


def _word(direction: int) -> str:
    return "up" if direction > 0 else "down"


def _hold(
    memory: Memory, reason: Reason, message: str, wish: tuple[Reason, float] | None = None
) -> tuple[Advice, Memory]:
    return Advice(memory.tokens, reason, message), replace(memory, wish=wish)
