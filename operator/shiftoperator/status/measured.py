"""What the pods measured of themselves at start-up: capacity per gear, crossover, timings. Fixed while they run."""

from __future__ import annotations

from collections import defaultdict
from math import floor, isfinite, log10

from shiftprotos import contract

from shiftoperator.snapshot import Object, Phase, Pod, RuntimeState, Snapshot
from shiftoperator.status.fit import int32, int64, text

MAX_GEARS = 16
MAX_PHASES = 16


def capacity(snapshot: Snapshot) -> list[Object]:
    """Tokens per second in each gear over all ready pods, and how many pods measured it."""
    found: dict[str, list[float]] = defaultdict(list)
    for _, state in _reporting(snapshot):
        for gear in state.gears:
            if gear.capacity_tokens_per_second > 0:
                found[text(gear.name, 64)].append(gear.capacity_tokens_per_second)
    return [
        {"gear": gear, "tokensPerSecond": int64(two_digits(sum(figures))), "pods": len(figures)}
        for gear, figures in sorted(found.items())[:MAX_GEARS]
    ]


def two_digits(value: float) -> int:
    """Rounded to two significant digits: two starts of the same pod differ by more than the rest."""
    if not isfinite(value) or value < 1:
        return 0
    step: int = 10 ** max(0, floor(log10(value)) - 1)
    return round(value / step) * step


def crossover(snapshot: Snapshot) -> Object | None:
    """The crossover and where it comes from. Of pods that differ the middle one speaks; status.pods has them all."""
    reporting = [pair for pair in _reporting(snapshot) if pair[1].crossover_tokens or pair[1].crossover_reason]
    if not reporting:
        return None
    by_tokens = sorted(reporting, key=lambda pair: (pair[1].crossover_tokens, pair[0].name))
    pod, state = by_tokens[(len(by_tokens) - 1) // 2]
    said: Object = {
        "source": "Calibration" if _calibrated(state) else "Default",
        "pod": text(pod.name, 253),
        "model": text(snapshot.resource["spec"].get("model", {}).get("uri", ""), 1024),
        "dtype": text(state.dtype, 64),
        "device": text(snapshot.resource["spec"].get("runtime", {}).get("device", "cpu"), 64),
        "runtimeVersion": text(state.version, 64),
    }
    if state.crossover_tokens:
        said["tokens"] = int32(state.crossover_tokens)
    else:
        said["reason"] = text(state.crossover_reason, 256)
    if pod.started_at:
        said["podStartedAt"] = pod.started_at
    return said


def _calibrated(state: RuntimeState) -> bool:
    return any(phase.name == contract.PHASE_CALIBRATE and phase.done for phase in state.phases)


def slowest_start(snapshot: Snapshot) -> Object | None:
    """Phases of the ready pod that took longest to start; while none is, what was known before. A revision without a
    node is given that time, and then nobody is ready."""
    reporting = _reporting(snapshot)
    if not reporting:
        known: Object | None = snapshot.status.get("slowestStart")
        return known
    started = [(pod, phases(pod, state)) for pod, state in reporting if state.phases]
    if not started:
        return None
    pod, slowest = max(started, key=lambda pair: (_seconds(pair[1]), pair[0].name))
    return {
        "pod": text(pod.name, 253),
        "seconds": int32(_seconds(slowest)),
        "phases": [
            {"name": text(phase.name, 64), "seconds": int32(phase.seconds), "bytes": int64(phase.num_bytes)}
            for phase in slowest[:MAX_PHASES]
        ],
    }


def phases(pod: Pod, state: RuntimeState) -> tuple[Phase, ...]:
    """Of the whole start: the step that fetches has ended when the runtime begins, and cannot be asked any more."""
    if not pod.fetch_seconds:
        return state.phases
    return (Phase(contract.PHASE_FETCH, pod.fetch_seconds, done=True), *state.phases)


def _seconds(phases: tuple[Phase, ...]) -> float:
    return sum(phase.seconds for phase in phases)


def _reporting(snapshot: Snapshot) -> list[tuple[Pod, RuntimeState]]:
    """Ready pods that answered, by name."""
    ready = sorted(snapshot.ready_pods, key=lambda pod: pod.name)
    return [(pod, snapshot.states[pod.uid]) for pod in ready if pod.uid in snapshot.states]
